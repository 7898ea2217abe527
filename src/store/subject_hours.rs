//! How the rollups and events of single subjects are found. Both lie by time, so that what is written at one time
//! changes few pages (docs/performance.md); a subject's are read hour by hour, through the hours it was seen in. On
//! PostgreSQL events are partitioned by time instead, and have an index by subject. Written by `store::events`.

use crate::store::statement::{Statement, integers};
use crate::window::{HOUR, Micros};

/// FROM and WHERE for the hourly rollups `r` of these subjects with a meter; more about `h.hour` may follow.
///
/// Each hour is a range of the primary key. The planners must not read the whole window instead: PostgreSQL does not
/// look through OFFSET, and SQLite not through the sign.
pub fn rollups(is_postgres: bool, meter_id: &str, subject_ids: &[i64]) -> (String, String) {
    let ids = integers(subject_ids);
    if is_postgres {
        let tables = format!(
            "subject_hours h CROSS JOIN LATERAL (
                 SELECT * FROM rollups WHERE meter_id = {meter_id} AND grain = 0 AND start = h.hour
                     AND subject_id = h.subject_id OFFSET 0) r"
        );
        return (tables, format!("h.subject_id IN ({ids})"));
    }
    let condition = format!(
        "h.subject_id IN ({ids}) AND r.meter_id = {meter_id} AND r.grain = 0 AND r.start = +h.hour
         AND r.subject_id = +h.subject_id"
    );
    ("subject_hours h CROSS JOIN rollups r".to_owned(), condition)
}

/// Where the events `e` of some subjects are.
pub struct Events {
    /// For FROM.
    pub tables: &'static str,
    /// For WHERE. More about `e` may follow, but on its meter only after [`Events::sign`].
    pub condition: String,
    /// Newest first, straight from an index for a single subject.
    pub order: &'static str,
    /// Goes before `e.meter_id`: keeps SQLite from reading all events of a meter to find those of a subject.
    pub sign: &'static str,
}

/// `subjects` is the rest of a condition: `= 5`, `IN (5, 6)`. The instants only leave out hours; which of the first and
/// last hour is wanted remains to be said.
pub fn events(statement: &mut Statement, subjects: &str, from: Option<Micros>, to: Option<Micros>) -> Events {
    if statement.is_postgres {
        let condition = format!("e.subject_id {subjects}");
        return Events { tables: "events e", condition, order: "e.event_time DESC, e.id DESC", sign: "" };
    }
    let mut condition =
        format!("h.subject_id {subjects} AND e.hour = h.hour AND e.subject_id = h.subject_id");
    if let Some(from) = from {
        condition.push_str(&format!(" AND h.hour >= {}", statement.int(from.floor(HOUR).0)));
    }
    if let Some(to) = to {
        condition.push_str(&format!(" AND h.hour <= {}", statement.int(to.0)));
    }
    Events {
        tables: "subject_hours h CROSS JOIN events e",
        condition,
        order: "h.hour DESC, e.event_time DESC, e.id DESC",
        sign: "+",
    }
}
