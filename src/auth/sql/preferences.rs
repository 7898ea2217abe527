//! What people chose about the pages: a row of each who chose anything.

use diesel::prelude::*;

use crate::auth::preferences::{Density, Preferences, Theme, known_range};
use crate::db::schema::{sessions, sign_ins, user_preferences};
use crate::db::{Conn, DbError};
use crate::error::{Error, Result};
use crate::metering::calendar::{WeekStart, Zone};
use crate::metering::time::Timestamp;

const ON: &str = "on";
const OFF: &str = "off";

/// The row as it is stored; of somebody who has none, with nothing in it.
#[derive(Clone, Debug, Default, Queryable)]
pub struct Row {
    pub time_zone: Option<String>,
    pub week_start: Option<String>,
    pub theme: Option<String>,
    pub density: Option<String>,
    pub default_range: Option<String>,
    pub shortcuts: Option<String>,
}

/// A word of a fixed set.
fn word<T>(text: Option<String>, parse: impl Fn(&str) -> Option<T>) -> Result<Option<T>> {
    let unknown = |text: &str| Error::internal(format!("the database holds an unknown preference {text:?}"));
    text.map(|text| parse(&text).ok_or_else(|| unknown(&text))).transpose()
}

fn on_or_off(word: &str) -> Option<bool> {
    match word {
        ON => Some(true),
        OFF => Some(false),
        _ => None,
    }
}

impl Row {
    /// A zone or a range that this program does not know any more is nobody's choice.
    pub fn read(self) -> Result<Preferences> {
        Ok(Preferences {
            time_zone: self.time_zone.and_then(|name| Zone::parse(&name)),
            week_start: word(self.week_start, WeekStart::parse)?,
            theme: word(self.theme, Theme::parse)?,
            density: word(self.density, Density::parse)?,
            default_range: self.default_range.and_then(|word| known_range(&word)),
            shortcuts: word(self.shortcuts, on_or_off)?,
        })
    }
}

pub fn find(conn: &mut Conn, user_id: i64) -> Result<Preferences, DbError> {
    let row: Option<Row> = user_preferences::table
        .find(user_id)
        .select((
            user_preferences::time_zone,
            user_preferences::week_start,
            user_preferences::theme,
            user_preferences::density,
            user_preferences::default_range,
            user_preferences::shortcuts,
        ))
        .first(conn)
        .optional()?;
    Ok(row.unwrap_or_default().read()?)
}

#[derive(Insertable)]
#[diesel(table_name = user_preferences, treat_none_as_default_value = false)]
struct NewRow<'a> {
    user_id: i64,
    time_zone: Option<&'a str>,
    week_start: Option<&'static str>,
    theme: Option<&'static str>,
    density: Option<&'static str>,
    default_range: Option<&'static str>,
    shortcuts: Option<&'static str>,
    updated_at: i64,
}

/// Stores them in the place of what was chosen before. Under the lock of the user.
pub fn put(conn: &mut Conn, user_id: i64, wanted: &Preferences, now: Timestamp) -> Result<(), DbError> {
    diesel::delete(user_preferences::table.find(user_id)).execute(conn)?;
    let row = NewRow {
        user_id,
        time_zone: wanted.time_zone.as_ref().map(Zone::name),
        week_start: wanted.week_start.map(WeekStart::as_str),
        theme: wanted.theme.map(Theme::as_str),
        density: wanted.density.map(Density::as_str),
        default_range: wanted.default_range,
        shortcuts: wanted.shortcuts.map(|is_on| if is_on { ON } else { OFF }),
        updated_at: now.0,
    };
    diesel::insert_into(user_preferences::table).values(row).execute(conn)?;
    Ok(())
}

/// Hashes of the sessions of a user in every workspace: they are remembered with what was chosen before.
pub fn sessions_of(conn: &mut Conn, user_id: i64) -> Result<Vec<Vec<u8>>, DbError> {
    let logins: Vec<String> =
        sign_ins::table.filter(sign_ins::user_id.eq(user_id)).select(sign_ins::login_id).load(conn)?;
    let mut hashes = Vec::new();
    for login in &logins {
        let tokens: Vec<Vec<u8>> =
            sessions::table.filter(sessions::login_id.eq(login)).select(sessions::token_hash).load(conn)?;
        hashes.extend(tokens);
    }
    Ok(hashes)
}
