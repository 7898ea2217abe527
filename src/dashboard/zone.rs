//! The time zone in which a viewer reads instants. Buckets have a zone of their own, in the address of a view.

use crate::metering::calendar::Zone;
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

/// Date and time of day, to the second.
pub fn local(zone: &Zone, at: Timestamp) -> (String, String) {
    let text = zone.text(at);
    let (date, time) = text.split_once('T').unwrap_or((&text, ""));
    (date.to_owned(), time.chars().take(8).collect())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn instants_are_read_in_the_zone() {
        let at = |text: &str| Timestamp::parse(text).expect("a time");
        let local = |zone: &str, text: &str| {
            let (date, time) = super::local(&Zone::parse(zone).expect(zone), at(text));
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
