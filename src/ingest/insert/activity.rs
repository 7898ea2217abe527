//! SQLite only: on which days subjects were seen, in the hot insert. A row is written when a subject enters a day, never
//! with every event. `usage::subject_days` finds events by them; PostgreSQL has an index of events by subject.

use std::collections::BTreeSet;

use diesel::sql_types::BigInt;
use diesel::{RunQueryDsl, SqliteConnection};

use crate::db::DbError;
use crate::db::prepared::prepared;
use crate::ingest::insert::{EventRow, InsertBatch, WriteCache};
use crate::metering::time::DAY;

prepared!(
    EnterDay for SqliteConnection,
    (subject_id: BigInt = i64, day: BigInt = i64),
    "INSERT INTO subject_days (subject_id, day) VALUES (?, ?) ON CONFLICT DO NOTHING"
);

/// A subject and a day on which it was seen.
pub(super) type SubjectDay = (i64, i64);

impl InsertBatch<'_> {
    /// Whoever knows a day knows that it was written down; so nothing is left out.
    pub(super) fn write_activity(
        &mut self,
        conn: &mut SqliteConnection,
        known: &WriteCache,
        rows: &[EventRow],
    ) -> Result<(), DbError> {
        let days = rows.iter().map(|row| (row.subject_id, row.event.time.floor(DAY).0));
        let entered: BTreeSet<SubjectDay> = days.filter(|day| !known.activity.contains_key(day)).collect();
        for (subject_id, day) in &entered {
            EnterDay { subject_id, day }.execute(conn)?;
        }
        self.learned.activity.extend(entered);
        Ok(())
    }
}
