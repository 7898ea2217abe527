//! On which days subjects were seen, in the hot insert: a row is written when a subject enters a day, never with every
//! event. `usage::subject_days` finds events by them.

use std::collections::BTreeSet;

use diesel::sql_types::{Array, BigInt};
use diesel::{PgConnection, RunQueryDsl, SqliteConnection};

use crate::db::prepared::prepared;
use crate::db::{Conn, DbError};
use crate::ingest::insert::{EventRow, InsertBatch, WriteCache};
use crate::metering::time::DAY;

prepared!(
    EnterDays for PgConnection,
    (subject_ids: Array<BigInt> = Vec<i64>, days: Array<BigInt> = Vec<i64>),
    "INSERT INTO subject_days (subject_id, day) SELECT * FROM unnest(?, ?) ON CONFLICT DO NOTHING"
);
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
        conn: &mut Conn,
        known: &WriteCache,
        rows: &[EventRow],
    ) -> Result<(), DbError> {
        let days = rows.iter().map(|row| (row.subject_id, row.event.time.floor(DAY).0));
        let entered: BTreeSet<SubjectDay> = days.filter(|day| !known.activity.contains_key(day)).collect();
        if entered.is_empty() {
            return Ok(());
        }
        match conn {
            Conn::Postgres(c) => {
                let (subject_ids, days) = entered.iter().copied().unzip();
                EnterDays { subject_ids: &subject_ids, days: &days }.execute(c)?;
            }
            Conn::Sqlite(c) => {
                for (subject_id, day) in &entered {
                    EnterDay { subject_id, day }.execute(c)?;
                }
            }
        }
        self.learned.activity.extend(entered);
        Ok(())
    }
}
