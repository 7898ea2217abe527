//! The time zone in which a viewer reads instants. Buckets and periods stay in UTC, in the store and on the pages.

use std::fmt;

use jiff::tz::TimeZone;

use crate::metering::time::Timestamp;

/// Zones that the settings offer; any other name of the IANA database can be typed.
pub const OFFERED: [&str; 24] = [
    "UTC",
    "Africa/Johannesburg",
    "Africa/Lagos",
    "America/Chicago",
    "America/Denver",
    "America/Los_Angeles",
    "America/Mexico_City",
    "America/New_York",
    "America/Sao_Paulo",
    "America/Toronto",
    "Asia/Dubai",
    "Asia/Hong_Kong",
    "Asia/Kolkata",
    "Asia/Seoul",
    "Asia/Shanghai",
    "Asia/Singapore",
    "Asia/Tokyo",
    "Australia/Sydney",
    "Europe/Berlin",
    "Europe/London",
    "Europe/Madrid",
    "Europe/Paris",
    "Europe/Zurich",
    "Pacific/Auckland",
];
const NAME_BYTES_MAX: usize = 64;

/// A zone of the IANA database.
#[derive(Clone, Debug)]
pub struct Zone(TimeZone);

impl Zone {
    pub fn utc() -> Zone {
        Zone(TimeZone::UTC)
    }

    /// A zone by its name, upper and lower case alike.
    pub fn parse(name: &str) -> Option<Zone> {
        if name.is_empty() || name.len() > NAME_BYTES_MAX {
            return None;
        }
        if name.eq_ignore_ascii_case("utc") {
            return Some(Zone::utc());
        }
        TimeZone::get(name).ok().map(Zone)
    }

    /// Date and time of day, to the second.
    pub fn local(&self, at: Timestamp) -> (String, String) {
        let utc = at.to_seconds_text();
        let local = jiff::Timestamp::from_microsecond(at.0)
            .map(|instant| instant.to_zoned(self.0.clone()).strftime("%Y-%m-%dT%H:%M:%S").to_string());
        let text = local.unwrap_or(utc);
        let (date, time) = text.trim_end_matches('Z').split_once('T').unwrap_or((&text, ""));
        (date.to_owned(), time.to_owned())
    }
}

impl fmt::Display for Zone {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.0.iana_name().unwrap_or("UTC"))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn instants_are_read_in_the_zone() {
        let at = |text: &str| Timestamp::parse(text).expect("a time");
        let local = |zone: &str, text: &str| {
            let (date, time) = Zone::parse(zone).expect(zone).local(at(text));
            format!("{date} {time}")
        };
        assert_eq!(local("Europe/Berlin", "2026-11-28T23:30:00Z"), "2026-11-29 00:30:00");
        // both sides of a change of the clocks
        assert_eq!(local("Europe/Berlin", "2026-10-25T00:30:00Z"), "2026-10-25 02:30:00");
        assert_eq!(local("Europe/Berlin", "2026-10-25T01:30:00Z"), "2026-10-25 02:30:00");
        assert_eq!(local("utc", "2026-11-28T23:30:00.5Z"), "2026-11-28 23:30:00");
        for name in OFFERED {
            assert_eq!(Zone::parse(name).expect(name).to_string(), name);
        }
        assert!(
            Zone::parse("Mars/Base").is_none() && Zone::parse("").is_none() && Zone::parse("../x").is_none()
        );
    }
}
