//! How the rollups and events of single subjects are found. Both lie by time, so that what is written at one time
//! changes few pages (docs/performance.md); a subject's are read hour by hour, on the days it was seen. On PostgreSQL
//! events are partitioned by time instead, and have an index by subject. Written by `ingest::insert`.

use crate::db::statement::{Statement, integers};
use crate::db::{Conn, DbError};
use crate::metering::time::{DAY, HOUR, Timestamp, Window};

/// The hours of the days in `d`.
fn tables_of_hours(is_postgres: bool) -> &'static str {
    match is_postgres {
        true => "subject_days d CROSS JOIN generate_series(0, 82800000000, 3600000000) h (since_midnight)",
        false => "subject_days d CROSS JOIN day_hours h",
    }
}

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
            "{} CROSS JOIN LATERAL (
                 SELECT * FROM rollups WHERE meter_id = {meter_id} AND grain = 0 AND start = d.day + h.since_midnight
                     AND subject_id = d.subject_id OFFSET 0) r",
            tables_of_hours(true)
        );
        return (tables, condition);
    }
    condition.push_str(&format!(
        " AND r.meter_id = {meter_id} AND r.grain = 0 AND r.start = d.day + h.since_midnight
          AND r.subject_id = +d.subject_id"
    ));
    (format!("{} CROSS JOIN rollups r", tables_of_hours(false)), condition)
}

#[derive(diesel::QueryableByName)]
struct DayRow {
    #[diesel(sql_type = diesel::sql_types::BigInt)]
    day: i64,
}

/// The hours of a window that lie in days on which a subject was seen.
pub fn hours(conn: &mut Conn, subject_id: i64, window: Window) -> Result<Vec<i64>, DbError> {
    let mut statement = Statement::new(conn);
    let (from, to) = (statement.int(window.from.floor(DAY).0), statement.int(window.to.0));
    let sql = format!(
        "SELECT day FROM subject_days WHERE subject_id = {subject_id} AND day >= {from} AND day < {to} ORDER BY day"
    );
    let days: Vec<DayRow> = statement.load(conn, &sql)?;
    let hours = days.into_iter().flat_map(|row| (0..DAY / HOUR).map(move |hour| row.day + hour * HOUR));
    Ok(hours.filter(|hour| window.contains(Timestamp(*hour))).collect())
}

/// FROM and WHERE for the rollups `r` of a subject with a meter in these hours: a look into the primary key for each.
/// Twice as fast as [`rollups`] on PostgreSQL, and of all forms the one that distributed tables know.
pub fn rollups_at(is_postgres: bool, meter_id: &str, subject_id: i64, hours: &[i64]) -> (String, String) {
    let starts = match is_postgres {
        true => format!("= ANY (ARRAY[{}]::bigint[])", integers(hours)),
        false => format!("IN ({})", integers(hours)),
    };
    let condition = format!(
        "r.meter_id = {meter_id} AND r.grain = 0 AND r.start {starts} AND r.subject_id = {subject_id}"
    );
    ("rollups r".to_owned(), condition)
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
        tables: format!("{} CROSS JOIN events e", tables_of_hours(false)),
        condition,
        order: "d.day DESC, h.since_midnight DESC, e.event_time DESC, e.id DESC",
        sign: "+",
    }
}
