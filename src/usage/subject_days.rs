//! How the events of single subjects are found. On SQLite they lie by hour, so that what is written at one time changes
//! few pages (docs/performance.md): a subject's are read hour by hour, on the days it was seen. Those lie by day for the same
//! reason, and are looked up for each day that its workspace has events of. On PostgreSQL events are partitioned by time
//! instead, and have an index by subject; there no days are written. `ingest::insert` writes them.

use crate::db::statement::{Statement, integers};
use crate::metering::time::{DAY, HOUR, Window};

/// SQLite: days of the workspace, those of them on which the subjects were seen, their hours, and the events in these.
const TABLES: &str = "event_days a CROSS JOIN subject_days d CROSS JOIN day_hours h CROSS JOIN events e";

/// SQLite: subjects on the days in `a`; all of them are of one workspace.
fn seen(subjects: &str) -> String {
    format!(
        "a.workspace_id = (SELECT workspace_id FROM subjects WHERE id {subjects} LIMIT 1)
         AND d.day = a.day AND d.subject_id {subjects}"
    )
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
        "{} AND a.day >= {day} AND a.day <= {to} AND d.day + h.since_midnight >= {from}
         AND d.day + h.since_midnight <= {to} AND e.hour = d.day + h.since_midnight AND e.subject_id = +d.subject_id",
        seen(subjects)
    );
    Events {
        tables: TABLES.to_owned(),
        condition,
        order: "a.day DESC, h.since_midnight DESC, e.event_time DESC, e.id DESC",
        sign: "+",
    }
}

/// FROM and WHERE for the events `e` of these subjects with a meter in a piece of time whose bounds are SQL; which part of
/// the first and last hour is wanted remains to be said.
pub fn events_between(
    statement: &Statement,
    subject_ids: &[i64],
    low: &str,
    high: &str,
    meter_id: &str,
) -> (String, String) {
    let subjects = integers(subject_ids);
    if statement.is_postgres {
        let fence = statement.fence;
        let tables = format!(
            "LATERAL (SELECT * FROM events WHERE subject_id IN ({subjects}) AND meter_id = {meter_id}
                 AND event_time >= {low} AND event_time < {high} {fence}) e"
        );
        return (tables, "true".to_owned());
    }
    let condition = format!(
        "{} AND a.day > {low} - {DAY} AND a.day < {high}
         AND d.day + h.since_midnight > {low} - {HOUR} AND d.day + h.since_midnight < {high}
         AND e.hour = d.day + h.since_midnight AND e.subject_id = +d.subject_id AND +e.meter_id = {meter_id}",
        seen(&format!("IN ({subjects})"))
    );
    (TABLES.to_owned(), condition)
}
