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
    AddDay for SqliteConnection,
    (workspace_id: BigInt = i64, day: BigInt = i64),
    "INSERT INTO event_days (workspace_id, day) VALUES (?, ?) ON CONFLICT DO NOTHING"
);
prepared!(
    EnterDay for SqliteConnection,
    (day: BigInt = i64, subject_id: BigInt = i64),
    "INSERT INTO subject_days (day, subject_id) VALUES (?, ?) ON CONFLICT DO NOTHING"
);

/// A day and a subject that was seen on it, in the order of the table: a batch is of few days.
pub(super) type SubjectDay = (i64, i64);

impl InsertBatch<'_> {
    /// Whoever knows a subject's day knows that both are written down; so nothing is left out.
    pub(super) fn write_activity(
        &mut self,
        conn: &mut SqliteConnection,
        known: &WriteCache,
        rows: &[EventRow],
    ) -> Result<(), DbError> {
        let (mut days, mut entered) = (BTreeSet::new(), BTreeSet::<SubjectDay>::new());
        for row in rows {
            let day = row.event.time.floor(DAY).0;
            if !known.activity.contains_key(&(day, row.subject_id)) {
                days.insert((row.workspace_id, day));
                entered.insert((day, row.subject_id));
            }
        }
        for (workspace_id, day) in &days {
            AddDay { workspace_id, day }.execute(conn)?;
        }
        for (day, subject_id) in &entered {
            EnterDay { day, subject_id }.execute(conn)?;
        }
        self.learned.activity.extend(entered);
        Ok(())
    }
}
