//! From the text of a setting to a typed value, kind by kind, and the value types that keep a rule
//! of their own: a secret is never shown, an address can be listened on.
//!
//! Nothing here knows where a text came from.

use std::fmt;
use std::io;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, TcpListener, ToSocketAddrs};
use std::time::Duration;

use ipnet::IpNet;

use crate::config::settings::{ANY, Kind};

/// A text that is never shown: not by `Debug`, not in errors, not by `--print-config`.
#[derive(Clone, PartialEq, Eq)]
pub struct Secret(String);

impl Secret {
    pub fn new(text: impl Into<String>) -> Secret {
        Secret(text.into())
    }

    /// The text itself, for the one call that needs it.
    pub fn expose(&self) -> &str {
        &self.0
    }
}

impl fmt::Debug for Secret {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Secret(set)")
    }
}

/// An address to listen on, as it was written: `127.0.0.1:18081`, `localhost:0`, `[::1]:80`, `:80`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ListenAddr(String);

impl ListenAddr {
    /// Some port of all interfaces.
    pub fn anywhere() -> ListenAddr {
        ListenAddr(":0".to_owned())
    }

    /// The address in a text of the form `host:port`, or `:port` for all interfaces.
    pub fn parse(text: &str) -> Option<ListenAddr> {
        let (host, port) = text.rsplit_once(':')?;
        let bare = host.strip_prefix('[').and_then(|host| host.strip_suffix(']'));
        let host_is_fine = match bare {
            Some(address) => address.parse::<Ipv6Addr>().is_ok(),
            None => host.chars().all(|c| c.is_ascii_alphanumeric() || ".-_".contains(c)),
        };
        let port_is_fine = !port.starts_with('+') && port.parse::<u16>().is_ok();
        (host_is_fine && port_is_fine).then(|| ListenAddr(text.to_owned()))
    }

    /// Where to listen, best first; the first one that can be bound is enough.
    pub fn socket_addrs(&self) -> io::Result<Vec<SocketAddr>> {
        if let Some(port) = self.0.strip_prefix(':').and_then(|port| port.parse::<u16>().ok()) {
            // [::] takes IPv4 callers as well, unless the machine has no IPv6
            return Ok(vec![(Ipv6Addr::UNSPECIFIED, port).into(), (Ipv4Addr::UNSPECIFIED, port).into()]);
        }
        let mut found: Vec<SocketAddr> = self.0.to_socket_addrs()?.collect();
        // clients that say 127.0.0.1 must find what listens on localhost
        found.sort_by_key(|address| address.is_ipv6());
        Ok(found)
    }

    /// Opens the port, on the first of `socket_addrs` that allows it.
    pub fn bind(&self) -> io::Result<TcpListener> {
        TcpListener::bind(self.socket_addrs()?.as_slice())
    }
}

impl fmt::Display for ListenAddr {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

/// A setting that was read; which variant it is follows from its `Kind`.
#[derive(Debug)]
pub enum Value {
    Text(String),
    Secret(Secret),
    Bool(bool),
    Integer(u64),
    Duration(Duration),
    Address(ListenAddr),
    Networks(Vec<IpNet>),
}

impl Kind {
    /// Reads a text that is not empty; the error says what is wrong with it.
    pub fn parse(self, text: &str) -> Result<Value, &'static str> {
        match self {
            Kind::Text(_) => not_blank(text).map(|text| Value::Text(text.to_owned())),
            Kind::Secret => not_blank(text).map(|text| Value::Secret(Secret::new(text))),
            Kind::Url => url(text).map(Value::Text),
            Kind::OneOf(words) => {
                let word = words.iter().find(|word| word.eq_ignore_ascii_case(text));
                word.map(|word| Value::Text((*word).to_owned())).ok_or("is not known")
            }
            Kind::Bool => boolean(text).map(Value::Bool),
            Kind::Integer(first, last) => integer(text, first, last).map(Value::Integer),
            Kind::DurationOrZero => duration(text).map(Value::Duration),
            Kind::Duration => positive(text).map(Value::Duration),
            Kind::DurationUpTo(seconds) => match positive(text)? {
                time if time > Duration::from_secs(seconds) => Err("is too long"),
                time => Ok(Value::Duration(time)),
            },
            Kind::Address | Kind::AddressOrOff => {
                ListenAddr::parse(text).map(Value::Address).ok_or("is not an address to listen on")
            }
            Kind::Networks => networks(text).map(Value::Networks),
        }
    }

    /// What a good text looks like, for error messages.
    pub fn expected(self) -> String {
        match self {
            Kind::Text(_) => "a text that is not blank".to_owned(),
            Kind::Secret => "a secret that is not blank".to_owned(),
            Kind::Url => "an absolute http or https URL without user and password".to_owned(),
            Kind::OneOf(words) => format!("one of {}", words.join(", ")),
            Kind::Bool => "one of 1 t T TRUE true True 0 f F FALSE false False".to_owned(),
            Kind::Integer(first, ANY) => format!("an integer of {first} or more"),
            Kind::Integer(first, last) => format!("an integer from {first} to {last}"),
            Kind::Duration => "a duration above 0 like 250ms, 5s or 1h30m".to_owned(),
            Kind::DurationOrZero => "0 or a duration like 250ms, 5s or 1h30m".to_owned(),
            Kind::DurationUpTo(seconds) => format!("a duration above 0, at most {seconds}s"),
            Kind::Address => "host:port or :port".to_owned(),
            Kind::AddressOrOff => "host:port, :port or nothing".to_owned(),
            Kind::Networks => "networks like 10.0.0.0/8 separated by commas".to_owned(),
        }
    }

    /// What stands for the value in `--help`.
    pub fn placeholder(self) -> String {
        match self {
            Kind::Text(word) => word.to_owned(),
            Kind::Secret => "PATH".to_owned(),
            Kind::Url => "URL".to_owned(),
            Kind::OneOf(words) => words.join("|"),
            Kind::Bool => "true|false".to_owned(),
            Kind::Integer(first, ANY) => format!("{first}.."),
            Kind::Integer(first, last) => format!("{first}..{last}"),
            Kind::Duration | Kind::DurationOrZero | Kind::DurationUpTo(_) => "DURATION".to_owned(),

            Kind::Address | Kind::AddressOrOff => "HOST:PORT".to_owned(),
            Kind::Networks => "NETWORK,...".to_owned(),
        }
    }
}

fn not_blank(text: &str) -> Result<&str, &'static str> {
    if text.trim().is_empty() { Err("is blank") } else { Ok(text) }
}

fn url(text: &str) -> Result<String, &'static str> {
    match url::Url::parse(text) {
        Ok(url) if !matches!(url.scheme(), "http" | "https") => Err("is not an http or https URL"),
        Ok(url) if !url.username().is_empty() || url.password().is_some() => Err("holds a user or password"),
        // kept as written: a provider compares the callback URL letter by letter
        Ok(_) => Ok(text.to_owned()),
        Err(_) => Err("is not an absolute URL"),
    }
}

fn boolean(text: &str) -> Result<bool, &'static str> {
    match text {
        "1" | "t" | "T" | "TRUE" | "true" | "True" => Ok(true),
        "0" | "f" | "F" | "FALSE" | "false" | "False" => Ok(false),
        _ => Err("is not a boolean"),
    }
}

fn integer(text: &str, first: u64, last: u64) -> Result<u64, &'static str> {
    match text.parse::<u64>() {
        Ok(number) if (first..=last).contains(&number) => Ok(number),
        Ok(_) => Err("is out of range"),
        Err(error) => match error.kind() {
            std::num::IntErrorKind::PosOverflow => Err("is out of range"),
            _ => Err("is not an integer"),
        },
    }
}

fn networks(text: &str) -> Result<Vec<IpNet>, &'static str> {
    let network = |part: &str| {
        let single = || part.parse::<IpAddr>().map(IpNet::from);
        part.parse::<IpNet>().or_else(|_| single()).map(|network| network.trunc())
    };
    let parts = text.split(',').map(|part| network(part.trim()));
    parts.collect::<Result<_, _>>().map_err(|_| "is not a list of networks")
}

fn positive(text: &str) -> Result<Duration, &'static str> {
    match duration(text)? {
        Duration::ZERO => Err("is not above 0"),
        time => Ok(time),
    }
}

/// Go's duration syntax: numbers with units, one after the other, `1h30m` or `1.5s`.
fn duration(text: &str) -> Result<Duration, &'static str> {
    const NOT_A_DURATION: &str = "is not a duration";
    let mut rest = text.strip_prefix('+').unwrap_or(text);
    if rest == "0" {
        return Ok(Duration::ZERO);
    }
    let mut total: u128 = 0;
    loop {
        let (whole, after) = digits(rest);
        let (fraction, after) = after.strip_prefix('.').map_or(("", after), digits);
        if whole.is_empty() && fraction.is_empty() {
            return Err(NOT_A_DURATION);
        }
        let end = after.find(|c: char| c == '.' || c.is_ascii_digit()).unwrap_or(after.len());
        let (name, after) = after.split_at(end);
        let unit: u128 = match name {
            "ns" => 1,
            "us" | "µs" | "μs" => 1_000,
            "ms" => 1_000_000,
            "s" => 1_000_000_000,
            "m" => 60_000_000_000,
            "h" => 3_600_000_000_000,
            "" => return Err("has no unit"),
            _ => return Err("has an unknown unit"),
        };
        // beyond 18 digits a fraction is below a nanosecond in every unit
        let fraction = &fraction[..fraction.len().min(18)];
        let scale = 10_u128.pow(fraction.len() as u32);
        let number = |digits: &str| if digits.is_empty() { Ok(0) } else { digits.parse::<u64>() };
        let whole = number(whole).map_err(|_| "is too long")?;
        let fraction = number(fraction).map_err(|_| "is too long")?;
        total += u128::from(whole) * unit + u128::from(fraction) * unit / scale;
        match u64::try_from(total) {
            Ok(nanos) if nanos > ANY => return Err("is too long"),
            Ok(nanos) if after.is_empty() => return Ok(Duration::from_nanos(nanos)),
            Ok(_) => rest = after,
            Err(_) => return Err("is too long"),
        }
    }
}

/// The decimal digits a text starts with, and the rest.
fn digits(text: &str) -> (&str, &str) {
    text.split_at(text.find(|c: char| !c.is_ascii_digit()).unwrap_or(text.len()))
}

/// A PostgreSQL connection string without anything secret: `user@host:5432/database`. `None` when
/// it cannot be told apart with certainty, so that a misplaced `@` never shows half a password.
pub fn dsn_target(dsn: &str) -> Option<String> {
    let uri = ["postgres://", "postgresql://"].iter().find_map(|scheme| dsn.strip_prefix(scheme));
    match uri {
        Some(rest) => uri_target(rest),
        None => pairs_target(dsn),
    }
}

/// A connection string for the arguments of another program, which every user of the machine can read, and the password
/// that goes another way.
pub fn without_password(dsn: &str) -> (String, Option<Secret>) {
    let uri =
        ["postgres://", "postgresql://"].iter().find_map(|scheme| Some((scheme, dsn.strip_prefix(scheme)?)));
    let Some((scheme, rest)) = uri else { return pairs_without_password(dsn) };
    let (rest, query) = match rest.rsplit_once('?').filter(|(_, query)| !query.contains('@')) {
        Some((rest, query)) => (rest, query),
        None => (rest, ""),
    };
    let decoded = |text: &str| Secret::new(percent_encoding::percent_decode_str(text).decode_utf8_lossy());
    let (login, place) = rest.rsplit_once('@').map_or((None, rest), |(login, place)| (Some(login), place));
    let (user, of_login) = match login.map(|login| login.split_once(':').unwrap_or((login, ""))) {
        Some((user, password)) => (format!("{user}@"), (!password.is_empty()).then(|| decoded(password))),
        None => (String::new(), None),
    };
    let (secret, plain): (Vec<&str>, Vec<&str>) =
        query.split('&').filter(|pair| !pair.is_empty()).partition(|pair| pair.starts_with("password="));
    let of_query = secret.last().and_then(|pair| pair.strip_prefix("password=")).map(decoded);
    let query = if plain.is_empty() { String::new() } else { format!("?{}", plain.join("&")) };
    (format!("{scheme}{user}{place}{query}"), of_query.or(of_login))
}

fn pairs_without_password(dsn: &str) -> (String, Option<Secret>) {
    let (mut kept, mut password, mut rest) = (String::new(), None, dsn.trim_start());
    while let Some((key, after)) = rest.split_once('=') {
        let Some((value, after)) = pair_value(after.trim_start()) else { break };
        if key.trim_end() == "password" {
            password = Some(Secret::new(&value));
        } else {
            let value = value.replace('\\', r"\\").replace('\'', r"\'");
            kept += &format!("{}='{value}' ", key.trim_end());
        }
        rest = after.trim_start();
    }
    (kept.trim_end().to_owned(), password)
}

fn uri_target(rest: &str) -> Option<String> {
    let (login, place) = rest.rsplit_once('@').unwrap_or(("", rest));
    let place = place.split(['?', '#']).next()?;
    let (hosts, database) = place.split_once('/').unwrap_or((place, ""));
    let port_of = |host: &str| host.rsplit_once(':').map(|(_, port)| port.to_owned());
    let ports_are_numbers = hosts
        .split(',')
        .filter(|host| !host.ends_with(']'))
        .filter_map(port_of)
        .all(|port| port.bytes().all(|b| b.is_ascii_digit()));
    if login.contains(['@', '/', '?', '#']) || !ports_are_numbers || database.contains(['/', '=']) {
        return None;
    }
    let user = login.split(':').next().filter(|user| !user.is_empty());
    let user = user.map(|user| format!("{user}@")).unwrap_or_default();
    Some(format!("{user}{hosts}/{database}"))
}

fn pairs_target(dsn: &str) -> Option<String> {
    let (mut user, mut host, mut port, mut database) = Default::default();
    let mut rest = dsn.trim_start();
    while !rest.is_empty() {
        let (key, after) = rest.split_once('=')?;
        let (value, after) = pair_value(after.trim_start())?;
        match key.trim_end() {
            "user" => user = format!("{value}@"),
            "host" | "hostaddr" => host = value,
            "port" => port = format!(":{value}"),
            "dbname" => database = value,
            key if key.chars().all(|c| c.is_ascii_lowercase() || c == '_') => {}
            _ => return None,
        }
        rest = after.trim_start();
    }
    // a database name may itself be a whole connection string
    let is_plain = !database.contains(['=', ':', '@']);
    is_plain.then(|| format!("{user}{host}{port}/{database}"))
}

/// One value of `key=value`: up to white space, or in quotes; a backslash keeps the next character.
fn pair_value(text: &str) -> Option<(String, &str)> {
    let quoted = text.starts_with('\'');
    let mut value = String::new();
    let mut chars = text.char_indices().skip(usize::from(quoted));
    while let Some((at, c)) = chars.next() {
        match c {
            '\'' if quoted => return Some((value, &text[at + 1..])),
            c if c.is_whitespace() && !quoted => return Some((value, &text[at..])),
            '\\' => value.push(chars.next()?.1),
            c => value.push(c),
        }
    }
    (!quoted).then_some((value, ""))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn durations_are_those_of_go() {
        let good = [
            ("0", 0),
            ("0s", 0),
            ("1ns", 1),
            ("2us", 2_000),
            ("2µs", 2_000),
            ("2μs", 2_000),
            ("250ms", 250_000_000),
            ("1h30m", 5_400_000_000_000),
            ("0h0m1s", 1_000_000_000),
            ("1.5s", 1_500_000_000),
            (".5s", 500_000_000),
            ("1.s", 1_000_000_000),
            ("+5s", 5_000_000_000),
            ("0.3333333333333333333h", 1_199_999_999_999),
            ("2562047h47m16.854775807s", i64::MAX as u64),
        ];
        for (text, nanos) in good {
            assert_eq!(duration(text), Ok(Duration::from_nanos(nanos)), "{text}");
        }
        let bad = "5|s|.s||-5s|5 s| 5s|5s |5d|1h30|1e3s|١s|0x1s|1..5s|00|2562047h47m16.854775808s|99999999999999999999h";
        for text in bad.split('|') {
            assert!(duration(text).is_err(), "{text}");
        }
    }

    #[test]
    fn addresses() {
        for text in [":0", ":18081", "127.0.0.1:1", "[::1]:65535", "localhost:80", "my_host-1.a:80"] {
            assert_eq!(ListenAddr::parse(text).map(|a| a.to_string()).as_deref(), Some(text));
        }
        for text in ["", " ", "80", ":", ":65536", ":+1", ":http", "::1:80", "[::1]", "a b:1", "http://a:1"] {
            assert_eq!(ListenAddr::parse(text), None, "{text}");
        }
    }

    #[test]
    fn no_host_means_every_interface() {
        let addresses = ListenAddr(":80".to_owned()).socket_addrs().unwrap();
        assert_eq!(addresses, ["[::]:80".parse().unwrap(), "0.0.0.0:80".parse().unwrap()]);
    }

    #[test]
    fn a_free_port_answers_on_ipv4() {
        for text in [":0", "localhost:0", "127.0.0.1:0"] {
            let listener = ListenAddr(text.to_owned()).bind().unwrap();
            let port = listener.local_addr().unwrap().port();
            assert_ne!(port, 0);
            std::net::TcpStream::connect(("127.0.0.1", port)).unwrap();
        }
    }

    #[test]
    fn networks_and_single_addresses() {
        let found = networks("10.1.2.3/8, ::1,192.168.0.1").unwrap();
        let found: Vec<String> = found.iter().map(ToString::to_string).collect();
        assert_eq!(found, ["10.0.0.0/8", "::1/128", "192.168.0.1/32"]);
        for text in ["10.0.0.0/33", "10.0.0.0/8,", "example.org", "10.0.0.0 8"] {
            assert!(networks(text).is_err(), "{text}");
        }
    }

    #[test]
    fn integers_and_urls() {
        assert_eq!(integer("7", 1, 7), Ok(7));
        assert_eq!(integer("8", 1, 7), Err("is out of range"));
        assert_eq!(integer("99999999999999999999", 1, 7), Err("is out of range"));
        for text in ["-1", "1.0", "0x10", "1_000", " 1", "one"] {
            assert_eq!(integer(text, 0, ANY), Err("is not an integer"), "{text}");
        }
        assert_eq!(url("https://a.example/cb").as_deref(), Ok("https://a.example/cb"));
        for text in ["a.example/cb", "/cb", "ftp://a.example", "https://", "https://u:p@a.example"] {
            assert!(url(text).is_err(), "{text}");
        }
    }

    #[test]
    fn passwords_do_not_become_arguments() {
        for (dsn, want, password) in [
            ("postgres://u:p%20w@h:1/d?sslmode=require", "postgres://u@h:1/d?sslmode=require", Some("p w")),
            ("postgresql://u:p?w@h/d", "postgresql://u@h/d", Some("p?w")),
            ("postgres://u@h/d?password=pw&sslmode=require", "postgres://u@h/d?sslmode=require", Some("pw")),
            ("postgres:///d?host=/run", "postgres:///d?host=/run", None),
            (r"host=h user='a b' password='p\' w' dbname=d", "host='h' user='a b' dbname='d'", Some("p' w")),
        ] {
            let (found, secret) = without_password(dsn);
            assert_eq!((found.as_str(), secret.as_ref().map(Secret::expose)), (want, password), "{dsn}");
        }
    }

    #[test]
    fn connection_strings_lose_their_secrets() {
        let good = [
            ("postgres://u:hidden@db:5432/app?sslmode=require&password=hidden", "u@db:5432/app"),
            ("postgresql://db/app", "db/app"),
            ("postgresql:///app?host=/run/postgresql", "/app"),
            ("postgres://u@[::1]:5432,b:5433/app", "u@[::1]:5432,b:5433/app"),
            ("postgres://u:hid%40den@[::1]/app", "u@[::1]/app"),
            ("host=db port=5433 user=u password=hidden dbname=app", "u@db:5433/app"),
            (r"user = 'my u' password='hid\' den host=x' host=db", "my u@db/"),
        ];
        for (dsn, target) in good {
            assert_eq!(dsn_target(dsn).as_deref(), Some(target), "{dsn}");
        }
        let unclear = [
            "postgres://u:hid/den@db/app",
            "postgres://u:hid@den@db/app",
            "postgres://u:hidden",
            "postgres://u:1/hidden/app",
            "user=u password=hid den host=db",
            "password='hidden",
            "hidden",
            "dbname=postgres://u:hidden@db/app",
        ];
        for dsn in unclear {
            assert_eq!(dsn_target(dsn), None, "{dsn}");
        }
    }
}
