//! How a person wants to see the pages. Each part is their own choice or nobody's: then the page is as their browser has it,
//! else as it is for everybody. They are read with the session, so that no page asks for them.

use serde_json::json;

use crate::auth::sql::members::Touched;
use crate::auth::sql::preferences;
use crate::auth::{Auth, Caller};
use crate::db::{Conn, audit};
use crate::error::{Error, Result};
use crate::metering::calendar::{WeekStart, Zone};
use crate::metering::time::Timestamp;
use crate::string_enum::string_enum;

string_enum!(
    /// Colours of the pages.
    Theme { System = "system", Light = "light", Dark = "dark" }
);
string_enum!(
    /// How close rows of tables stand.
    Density { Comfortable = "comfortable", Compact = "compact" }
);

/// The ranges of time that pages offer, as in their addresses.
pub const RANGES: [&str; 12] = [
    "1h",
    "24h",
    "today",
    "yesterday",
    "7d+today",
    "7d",
    "28d+today",
    "28d",
    "90d+today",
    "this-month",
    "last-month",
    "12M",
];

#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Preferences {
    /// In which instants are shown.
    pub time_zone: Option<Zone>,
    /// Of views whose address names no such day.
    pub week_start: Option<WeekStart>,
    pub theme: Option<Theme>,
    pub density: Option<Density>,
    /// Of a view whose address names no time.
    pub default_range: Option<&'static str>,
    /// Whether single keys on the keyboard do something.
    pub shortcuts: Option<bool>,
}

/// A text that is not blank.
fn chosen(text: &str) -> Option<&str> {
    Some(text.trim()).filter(|text| !text.is_empty())
}

/// Blank is nobody's choice.
pub fn time_zone(text: &str) -> Result<Option<Zone>> {
    chosen(text).map(|name| Zone::named(name, "time_zone")).transpose()
}

pub fn week_start(text: &str) -> Result<Option<WeekStart>> {
    chosen(text).map(WeekStart::read).transpose()
}

pub fn theme(text: &str) -> Result<Option<Theme>> {
    let wrong = || Error::invalid("theme must be system, light or dark");
    chosen(text).map(|word| Theme::parse(word).ok_or_else(wrong)).transpose()
}

pub fn density(text: &str) -> Result<Option<Density>> {
    let wrong = || Error::invalid("density must be comfortable or compact");
    chosen(text).map(|word| Density::parse(word).ok_or_else(wrong)).transpose()
}

pub fn default_range(text: &str) -> Result<Option<&'static str>> {
    let wrong = || Error::invalid(format!("default_range must be one of {}", RANGES.join(", ")));
    chosen(text).map(|word| known_range(word).ok_or_else(wrong)).transpose()
}

pub(super) fn known_range(word: &str) -> Option<&'static str> {
    RANGES.into_iter().find(|known| *known == word)
}

impl Preferences {
    /// What the trail keeps of them.
    fn shown(&self) -> audit::Shown {
        json!({
            "time_zone": self.time_zone.as_ref().map(Zone::name),
            "week_start": self.week_start,
            "theme": self.theme,
            "density": self.density,
            "default_range": self.default_range,
            "shortcuts": self.shortcuts,
        })
    }
}

impl Auth {
    /// What the caller chose, as it is stored now.
    pub async fn preferences(&self, caller: &Caller) -> Result<Preferences> {
        let user_id = caller.user_id;
        self.0.store.read("preferences::find", move |conn| preferences::find(conn, user_id)).await
    }

    /// Changes what the caller chose: here at once, for sessions that other servers remember a moment later.
    pub async fn change_preferences(
        &self,
        caller: &Caller,
        change: impl Fn(&mut Preferences) + Send + 'static,
    ) -> Result<Preferences> {
        let (standing, now) = (caller.standing(), Timestamp::now());
        let (id, name) = (caller.user.id.clone(), caller.user.email.clone());
        let work = move |conn: &mut Conn| {
            let user_id = standing.check(conn, now)?.user_id;
            let before = preferences::find(conn, user_id)?;
            let mut after = before.clone();
            change(&mut after);
            audit::about(&id, &name);
            audit::states(Some(before.shown()), Some(after.shown()));
            if after == before {
                audit::nothing_changed();
                return Ok((after, Vec::new()));
            }
            preferences::put(conn, user_id, &after, now)?;
            let sessions = preferences::sessions_of(conn, user_id)?;
            Ok((after, sessions))
        };
        let (after, sessions) = self.0.store.write("preferences::change", work).await?;
        self.tell(Touched { sessions, keys: Vec::new() });
        Ok(after)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_blank_is_nobodys_choice() {
        assert_eq!(time_zone(" ").expect("blank"), None);
        assert_eq!(theme("").expect("blank"), None);
        assert_eq!(density("compact").expect("known"), Some(Density::Compact));
        assert_eq!(default_range("7d+today").expect("known"), Some("7d+today"));
        for (field, error) in [
            ("time_zone", time_zone("Mars/Base").expect_err("unknown")),
            ("week_start", week_start("friday").expect_err("unknown")),
            ("theme", theme("pink").expect_err("unknown")),
            ("density", density("tight").expect_err("unknown")),
            ("default_range", default_range("all").expect_err("unknown")),
        ] {
            assert!(error.message.contains(&format!("{field} must be")), "{}", error.message);
        }
    }
}
