//! How the rollups and events of single subjects are found. Both lie by time, so that what is written at one time
//! changes few pages (docs/performance.md); a subject's are read hour by hour, on the days it was seen. On PostgreSQL
//! events are partitioned by time instead, and have an index by subject. Written by `ingest::insert`.

use crate::db::statement::{Statement, integers};
use crate::metering::time::{DAY, HOUR, Window};

/// The hours of the days in `d`.
const HOURS: &str = "subject_days d CROSS JOIN day_hours h";

/// FROM and WHERE for the hourly rollups `r` of these subjects with a meter. The bounds are SQL, `to` is left out when
/// there is none.
///
/// Each hour is a range of the primary key. The planners must not read the whole window instead: PostgreSQL does not
/// look through OFFSET, and SQLite not through sums and the sign.
pub fn rollups(
    is_postgres: bool,
    meter_id: &str,
    subject_ids: &[i64],
    from: &str,
    to: Option<&str>,
) -> (String, String) {
    let mut condition = format!(
        "d.subject_id IN ({}) AND d.day > {from} - {DAY} AND d.day + h.since_midnight >= {from}",
        integers(subject_ids)
    );
    if let Some(to) = to {
        condition.push_str(&format!(" AND d.day < {to} AND d.day + h.since_midnight < {to}"));
    }
    if is_postgres {
        let tables = format!(
            "{HOURS} CROSS JOIN LATERAL (
                 SELECT * FROM rollups WHERE meter_id = {meter_id} AND grain = 0 AND start = d.day + h.since_midnight
                     AND subject_id = d.subject_id OFFSET 0) r"
        );
        return (tables, condition);
    }
    condition.push_str(&format!(
        " AND r.meter_id = {meter_id} AND r.grain = 0 AND r.start = d.day + h.since_midnight
          AND r.subject_id = +d.subject_id"
    ));
    (format!("{HOURS} CROSS JOIN rollups r"), condition)
}

/// Where the events `e` of some subjects are.
pub struct Events {
    /// For FROM.
    pub tables: String,
    /// For WHERE. More about `e` may follow, but on its meter only after [`Events::sign`].
    pub condition: String,
    /// Newest first, straight from an index for a single subject.
    pub order: &'static str,
    /// Goes before `e.meter_id`: keeps SQLite from reading all events of a meter to find those of a subject.
    pub sign: &'static str,
}

/// `subjects` is the rest of a condition: `= 5`, `IN (5, 6)`. The window only leaves out hours; which part of the first
/// and last hour is wanted remains to be said.
pub fn events(statement: &mut Statement, subjects: &str, window: Window) -> Events {
    if statement.is_postgres {
        let condition = format!("e.subject_id {subjects}");
        let order = "e.event_time DESC, e.id DESC";
        return Events { tables: "events e".to_owned(), condition, order, sign: "" };
    }
    let Window { from, to } = window;
    let day = statement.int(from.floor(DAY).0);
    let (from, to) = (statement.int(from.floor(HOUR).0), statement.int(to.0));
    let condition = format!(
        "d.subject_id {subjects} AND d.day >= {day} AND d.day <= {to} AND d.day + h.since_midnight >= {from}
         AND d.day + h.since_midnight <= {to} AND e.hour = d.day + h.since_midnight AND e.subject_id = +d.subject_id"
    );
    Events {
        tables: format!("{HOURS} CROSS JOIN events e"),
        condition,
        order: "d.day DESC, h.since_midnight DESC, e.event_time DESC, e.id DESC",
        sign: "+",
    }
}
