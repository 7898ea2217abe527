//! When subjects were seen, in the hot insert: rows are written when a subject enters an hour of a meter, or a day, never with
//! every event, so that no row is fought over. `usage::subjects` lists by the last hour, `usage::subject_days` finds
//! rollups and events by the days.

use std::collections::{BTreeMap, BTreeSet};

use diesel::sql_types::{Array, BigInt};
use diesel::{PgConnection, RunQueryDsl, SqliteConnection};

use crate::db::prepared::prepared;
use crate::db::{Conn, DbError};
use crate::ingest::insert::{InsertBatch, WriteCache};
use crate::metering::rollup::{Grain, Key};
use crate::metering::time::{DAY, Timestamp};

prepared!(
    Enter for PgConnection,
    (entering: Array<BigInt> = Vec<i64>, days: Array<BigInt> = Vec<i64>,
     subject_ids: Array<BigInt> = Vec<i64>, meter_ids: Array<BigInt> = Vec<i64>, hours: Array<BigInt> = Vec<i64>),
    "WITH entered AS (
         INSERT INTO subject_days (subject_id, day) SELECT * FROM unnest(?, ?) ON CONFLICT DO NOTHING
     )
     INSERT INTO subject_activity AS a (subject_id, meter_id, last_hour) SELECT * FROM unnest(?, ?, ?)
     ON CONFLICT (subject_id, meter_id) DO UPDATE SET last_hour = excluded.last_hour
         WHERE a.last_hour < excluded.last_hour"
);
prepared!(
    EnterDay for SqliteConnection,
    (subject_id: BigInt = i64, day: BigInt = i64),
    "INSERT INTO subject_days (subject_id, day) VALUES (?, ?) ON CONFLICT DO NOTHING"
);
prepared!(
    See for SqliteConnection,
    (subject_id: BigInt = i64, meter_id: BigInt = i64, hour: BigInt = i64),
    "INSERT INTO subject_activity AS a (subject_id, meter_id, last_hour) VALUES (?, ?, ?)
     ON CONFLICT (subject_id, meter_id) DO UPDATE SET last_hour = excluded.last_hour
         WHERE a.last_hour < excluded.last_hour"
);

/// Subject and meter.
pub(super) type Use = (i64, i64);

impl InsertBatch<'_> {
    /// What is known is never later than what is stored, and whoever knows an hour knows that its day was written
    /// down; so nothing is left out.
    pub(super) fn write_activity<'k>(
        &mut self,
        conn: &mut Conn,
        known: &WriteCache,
        rollups: impl Iterator<Item = &'k Key>,
    ) -> Result<(), DbError> {
        let mut entered: BTreeSet<(i64, i64)> = BTreeSet::new();
        let mut newer: BTreeMap<Use, i64> = BTreeMap::new();
        for key in rollups.filter(|key| key.grain == Grain::SubjectHour) {
            let (one, hour, day) = ((key.subject_id, key.meter_id), key.start.0, key.start.floor(DAY).0);
            let last = known.activity.get(&one);
            if last.is_none_or(|last| Timestamp(last).floor(DAY).0 != day) {
                entered.insert((key.subject_id, day));
            }
            if last.is_none_or(|last| last < hour) {
                let newest = newer.entry(one).or_insert(hour);
                *newest = hour.max(*newest);
            }
        }
        if entered.is_empty() && newer.is_empty() {
            return Ok(());
        }
        match conn {
            Conn::Postgres(c) => enter(c, &entered, &newer)?,
            Conn::Sqlite(c) => {
                for (subject_id, day) in &entered {
                    EnterDay { subject_id, day }.execute(c)?;
                }
                for ((subject_id, meter_id), hour) in &newer {
                    See { subject_id, meter_id, hour }.execute(c)?;
                }
            }
        }
        self.learned.activity.extend(newer);
        Ok(())
    }
}

fn enter(
    conn: &mut PgConnection,
    entered: &BTreeSet<(i64, i64)>,
    newer: &BTreeMap<Use, i64>,
) -> Result<(), DbError> {
    Enter {
        entering: &entered.iter().map(|(subject_id, _)| *subject_id).collect(),
        days: &entered.iter().map(|(_, day)| *day).collect(),
        subject_ids: &newer.keys().map(|(subject_id, _)| *subject_id).collect(),
        meter_ids: &newer.keys().map(|(_, meter_id)| *meter_id).collect(),
        hours: &newer.values().copied().collect(),
    }
    .execute(conn)?;
    Ok(())
}
