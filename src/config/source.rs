//! Where the texts of settings come from - flag, environment, `.env`, secret file - and which one
//! wins; then all of them checked against the table, ready to be asked for by name.
//!
//! The environment arrives here as a map: only `config.rs` reads the real one.

use std::cell::OnceCell;
use std::collections::BTreeMap;
use std::fmt;
use std::path::Path;
use std::time::Duration;

use ipnet::IpNet;

use crate::config::ConfigError;
use crate::config::settings::{self, Kind, PREFIX, Setting};
use crate::config::value::{ListenAddr, Secret, Value, dsn_target};

/// Names that the compose files use for themselves.
const COMPOSE_ONLY: &[&str] = &["HTTP_PORT", "GRPC_PORT", "POSTGRES_PASSWORD"];

/// The places a setting may come from, each a map from variable to text.
#[derive(Default)]
pub struct Source {
    pub flags: BTreeMap<String, String>,
    pub environment: BTreeMap<String, String>,
    pub dotenv: BTreeMap<String, String>,
}

/// Where the value of a setting came from.
#[derive(Clone, Debug, PartialEq)]
pub enum Origin {
    Default,
    Flag,
    Environment,
    DotEnv,
    File(String),
}

impl fmt::Display for Origin {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Origin::Default => f.write_str("default"),
            Origin::Flag => f.write_str("flag"),
            Origin::Environment => f.write_str("environment"),
            Origin::DotEnv => f.write_str(".env"),
            Origin::File(path) => write!(f, "file {path}"),
        }
    }
}

/// Reads a `.env` file; one that is not there is an empty one.
pub fn read_dotenv(path: &Path) -> Result<BTreeMap<String, String>, ConfigError> {
    let error = |problem: String| ConfigError {
        variable: path.display().to_string(),
        problem,
        expected: "lines of the form NAME=value".to_owned(),
    };
    let lines = match dotenvy::from_path_iter(path) {
        Ok(lines) => lines,
        Err(cause) if cause.not_found() => return Ok(BTreeMap::new()),
        Err(_) => return Err(error("cannot be read".to_owned())),
    };
    let mut last = "the start".to_owned();
    let mut found = BTreeMap::new();
    for line in lines {
        // the cause would show the line, and with it a secret
        let (name, text) = line.map_err(|_| error(format!("cannot be read after {last}")))?;
        last.clone_from(&name);
        found.insert(name, text);
    }
    Ok(found)
}

impl Source {
    /// Checks every setting against the table.
    pub fn values(&self) -> Result<Values, ConfigError> {
        let entry = |setting| Ok((setting, self.entry(setting)?));
        let entries = settings::all().map(entry).collect::<Result<Vec<_>, ConfigError>>()?;
        let entries = entries.into_iter().map(|(s, entry)| (s.name, entry)).collect();
        Ok(Values { entries, mistake: OnceCell::new() })
    }

    fn entry(&self, setting: &Setting) -> Result<Entry, ConfigError> {
        let (text, origin) = self.text(setting)?.unwrap_or((String::new(), Origin::Default));
        let is_off = setting.kind == Kind::AddressOrOff && origin != Origin::Default;
        let (text, origin) = match text.as_str() {
            "" if !is_off => (setting.default.to_owned(), Origin::Default),
            _ => (text, origin),
        };
        let value = match text.as_str() {
            "" => None,
            text => Some(setting.kind.parse(text).map_err(|problem| {
                let shown = match setting.kind {
                    Kind::Secret => "the value".to_owned(),
                    Kind::Url if text.contains('@') => "the URL".to_owned(),
                    _ => format!("{:?}", text.chars().take(200).collect::<String>()),
                };
                let variable = match &origin {
                    Origin::File(_) => setting.flag_variable(),
                    _ => setting.variable(),
                };
                let expected = setting.kind.expected();
                ConfigError { variable, problem: format!("{shown} {problem}"), expected }
            })?),
        };
        Ok(Entry { value, text, origin })
    }

    /// The text of the first place that has the setting, even if it is empty there.
    fn text(&self, setting: &Setting) -> Result<Option<(String, Origin)>, ConfigError> {
        let variable = setting.variable();
        let here = self.lookup(&variable);
        let file_variable = setting.file_variable();
        let file = file_variable.as_deref().and_then(|name| self.lookup(name));
        let Some((path, _)) = file.filter(|(path, _)| !path.is_empty()) else {
            return Ok(here);
        };
        let file_variable = setting.flag_variable();
        if here.is_some_and(|(text, _)| !text.is_empty()) {
            let problem = format!("is set together with {file_variable}");
            return Err(ConfigError { variable, problem, expected: "only one of them".to_owned() });
        }
        let error = |problem: String| ConfigError {
            variable: file_variable,
            problem: format!("{path:?} {problem}"),
            expected: "a file that holds the secret".to_owned(),
        };
        let text = match std::fs::read_to_string(&path) {
            Ok(text) => text,
            Err(cause) => return Err(error(format!("cannot be read ({cause})"))),
        };
        let text = text.strip_suffix('\n').unwrap_or(&text);
        let text = text.strip_suffix('\r').unwrap_or(text);
        if text.is_empty() {
            // taking it for "unset" could switch off signatures without a word
            return Err(error("is empty".to_owned()));
        }
        Ok(Some((text.to_owned(), Origin::File(path))))
    }

    fn lookup(&self, variable: &str) -> Option<(String, Origin)> {
        let places = [
            (&self.flags, Origin::Flag),
            (&self.environment, Origin::Environment),
            (&self.dotenv, Origin::DotEnv),
        ];
        let found = |(place, origin): (&BTreeMap<String, String>, Origin)| {
            place.get(variable).map(|text| (text.clone(), origin))
        };
        places.into_iter().find_map(found)
    }

    /// A sentence for every variable with our prefix that nobody reads.
    pub fn unknown(&self) -> Vec<String> {
        let known: Vec<String> =
            settings::all().flat_map(|s| [Some(s.variable()), s.file_variable()]).flatten().collect();
        let places: BTreeMap<_, _> = self.environment.iter().chain(&self.dotenv).collect();
        let unread = places.into_iter().filter(|(name, text)| {
            name.strip_prefix(PREFIX).is_some_and(|rest| !is_for_others(rest, text)) && !known.contains(name)
        });
        unread
            .map(|(name, _)| match nearest(name, &known) {
                Some(near) => format!("unknown variable {}, did you mean {near}?", name.escape_debug()),
                None => format!("unknown variable {}", name.escape_debug()),
            })
            .collect()
    }
}

/// Variables with our prefix that are meant for compose, for tests, or come from Kubernetes, which
/// sets `OPEN_SPANNER_SERVICE_HOST` and the like when a service is called open-spanner.
fn is_for_others(rest: &str, text: &str) -> bool {
    COMPOSE_ONLY.contains(&rest)
        || rest.starts_with("TEST_")
        || ["SERVICE_HOST", "SERVICE_PORT"].iter().any(|part| rest.contains(part))
        || ["_TCP", "_UDP"].iter().any(|part| rest.contains("PORT_") && rest.contains(part))
        || ["tcp://", "udp://"].iter().any(|scheme| text.starts_with(scheme))
}

fn nearest<'a>(name: &str, known: &'a [String]) -> Option<&'a str> {
    let near = known.iter().map(|candidate| (distance(name, candidate), candidate)).min()?;
    // more than a few slips of the finger is another word
    (near.0 <= 4).then_some(near.1)
}

/// How many characters to insert, remove or replace to get from one name to the other.
fn distance(a: &str, b: &str) -> usize {
    let b: Vec<char> = b.chars().collect();
    let mut row: Vec<usize> = (0..=b.len()).collect();
    for (i, from) in a.chars().enumerate() {
        let mut diagonal = row[0];
        row[0] = i + 1;
        for (j, to) in b.iter().enumerate() {
            let replaced = diagonal + usize::from(from != *to);
            diagonal = row[j + 1];
            row[j + 1] = replaced.min(row[j] + 1).min(row[j + 1] + 1);
        }
    }
    row[b.len()]
}

struct Entry {
    value: Option<Value>,
    text: String,
    origin: Origin,
}

/// All settings, checked. Asking for a name that is not in the table, or for the wrong kind, is a mistake in `config.rs`:
/// it is noted, something stands in, and [`Values::agree`] says so.
pub struct Values {
    entries: BTreeMap<&'static str, Entry>,
    mistake: OnceCell<String>,
}

impl Values {
    /// Fails when something was asked for that the table does not have.
    pub fn agree(&self) -> Result<(), ConfigError> {
        let Some(name) = self.mistake.get() else { return Ok(()) };
        Err(ConfigError {
            variable: format!("{PREFIX}{name}"),
            problem: "is not read as the table of settings has it".to_owned(),
            expected: "a program without this mistake".to_owned(),
        })
    }

    #[cold]
    fn mistake<T>(&self, name: &str, stand_in: T) -> T {
        let _ = self.mistake.get_or_init(|| name.to_owned());
        stand_in
    }

    /// Whether a setting holds anything.
    pub fn has(&self, name: &str) -> bool {
        self.get(name).is_some()
    }

    /// A text, or a word in the spelling of the table.
    pub fn text(&self, name: &str) -> String {
        self.optional_text(name).unwrap_or_else(|| self.mistake(name, String::new()))
    }

    pub fn optional_text(&self, name: &str) -> Option<String> {
        match self.get(name)? {
            Value::Text(text) => Some(text.clone()),
            _ => self.mistake(name, None),
        }
    }

    pub fn secret(&self, name: &str) -> Option<Secret> {
        match self.get(name)? {
            Value::Secret(secret) => Some(secret.clone()),
            _ => self.mistake(name, None),
        }
    }

    pub fn boolean(&self, name: &str) -> bool {
        self.optional_boolean(name).unwrap_or_else(|| self.mistake(name, false))
    }

    pub fn optional_boolean(&self, name: &str) -> Option<bool> {
        match self.get(name)? {
            Value::Bool(boolean) => Some(*boolean),
            _ => self.mistake(name, None),
        }
    }

    /// An integer of the type wanted, which must hold the whole range of the table.
    pub fn integer<T: TryFrom<u64> + Default>(&self, name: &str) -> T {
        match self.get(name) {
            Some(Value::Integer(number)) => {
                T::try_from(*number).unwrap_or_else(|_| self.mistake(name, T::default()))
            }
            _ => self.mistake(name, T::default()),
        }
    }

    pub fn duration(&self, name: &str) -> Duration {
        match self.get(name) {
            Some(Value::Duration(time)) => *time,
            _ => self.mistake(name, Duration::ZERO),
        }
    }

    /// A duration for which zero means that there is no limit.
    pub fn optional_duration(&self, name: &str) -> Option<Duration> {
        Some(self.duration(name)).filter(|time| !time.is_zero())
    }

    pub fn address(&self, name: &str) -> ListenAddr {
        self.optional_address(name).unwrap_or_else(|| self.mistake(name, ListenAddr::anywhere()))
    }

    pub fn optional_address(&self, name: &str) -> Option<ListenAddr> {
        match self.get(name)? {
            Value::Address(address) => Some(address.clone()),
            _ => self.mistake(name, None),
        }
    }

    pub fn networks(&self, name: &str) -> Vec<IpNet> {
        match self.get(name) {
            Some(Value::Networks(networks)) => networks.clone(),
            None => Vec::new(),
            _ => self.mistake(name, Vec::new()),
        }
    }

    fn get(&self, name: &str) -> Option<&Value> {
        match self.entries.get(name) {
            Some(entry) => entry.value.as_ref(),
            None => self.mistake(name, None),
        }
    }

    /// What each variable says, by its name: two looks tell what changed between them.
    pub fn texts(&self) -> BTreeMap<String, Secret> {
        let text = |setting: &Setting| {
            let entry = self.entries.get(setting.name)?;
            Some((setting.variable(), Secret::new(entry.text.as_str())))
        };
        settings::all().filter_map(text).collect()
    }

    /// One line per setting for `--print-config`, in the form of a `.env` file.
    pub fn print(&self) -> String {
        let mut page = String::new();
        for group in settings::TABLE {
            page += &format!("\n# {}\n", group.title);
            for setting in group.rows {
                if let Some(Entry { value, text, origin }) = self.entries.get(setting.name) {
                    let shown = match value {
                        Some(Value::Secret(dsn)) if setting.name == "POSTGRES_DSN" => {
                            dsn_target(dsn.expose()).map_or("set".to_owned(), |to| format!("set ({to})"))
                        }
                        Some(Value::Secret(_)) => "set".to_owned(),
                        None if setting.is_secret() => "unset".to_owned(),
                        _ => text.escape_debug().to_string(),
                    };
                    page += &format!("{}={shown}  # {origin}\n", setting.variable());
                }
            }
        }
        page
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_the_table_does_not_have_is_an_error_of_the_start() {
        let values = || Source::default().values().expect("the defaults are fine");
        type Ask = fn(&Values);
        let asked: [Ask; 5] = [
            |values| drop(values.text("NOTHING")),
            |values| drop(values.networks("LOG_FORMAT")),
            |values| assert!(values.duration("LOG_FORMAT").is_zero()),
            |values| drop(values.address("LOG_FORMAT")),
            // larger than a byte
            |values| assert_eq!(values.integer::<u8>("BODIES_MAX_BYTES"), 0),
        ];
        for ask in asked {
            let values = values();
            assert_eq!(values.agree(), Ok(()));
            ask(&values);
            let error = values.agree().expect_err("it was noted");
            assert!(error.variable.starts_with(PREFIX), "{error}");
        }
    }
}
