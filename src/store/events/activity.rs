//! When subjects were seen, in the hot insert: rows are written when a subject enters an hour of a meter, never with
//! every event, so that no row is fought over. `store::subjects` lists by the last hour, `store::subject_hours` reads
//! hour by hour.

use std::collections::{BTreeMap, BTreeSet};

use diesel::sql_types::{Array, BigInt};
use diesel::{PgConnection, RunQueryDsl, SqliteConnection};

use super::{Known, Work};
use crate::rollup::{Grain, Key};
use crate::store::prepared::prepared;
use crate::store::{Conn, Fault};

prepared!(
    EnterHours for PgConnection,
    (entering: Array<BigInt> = Vec<i64>, entered: Array<BigInt> = Vec<i64>,
     subject_ids: Array<BigInt> = Vec<i64>, meter_ids: Array<BigInt> = Vec<i64>, hours: Array<BigInt> = Vec<i64>),
    "WITH entered AS (
         INSERT INTO subject_hours (subject_id, hour) SELECT * FROM unnest(?, ?) ON CONFLICT DO NOTHING
     )
     INSERT INTO subject_activity AS a (subject_id, meter_id, last_hour) SELECT * FROM unnest(?, ?, ?)
     ON CONFLICT (subject_id, meter_id) DO UPDATE SET last_hour = excluded.last_hour
         WHERE a.last_hour < excluded.last_hour"
);
prepared!(
    EnterHour for SqliteConnection,
    (subject_id: BigInt = i64, hour: BigInt = i64),
    "INSERT INTO subject_hours (subject_id, hour) VALUES (?, ?) ON CONFLICT DO NOTHING"
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

impl Work<'_> {
    /// What is known is never later than what is stored, and whoever knows an hour knows that it was written down; so
    /// nothing is left out.
    pub(super) fn write_activity<'k>(
        &mut self,
        conn: &mut Conn,
        known: &Known,
        rollups: impl Iterator<Item = &'k Key>,
    ) -> Result<(), Fault> {
        let mut entered: BTreeSet<(i64, i64)> = BTreeSet::new();
        let mut newer: BTreeMap<Use, i64> = BTreeMap::new();
        for key in rollups.filter(|key| key.grain == Grain::SubjectHour) {
            let (one, hour) = ((key.subject_id, key.meter_id), key.start.0);
            let last = known.activity.get(&one);
            if last != Some(hour) {
                entered.insert((key.subject_id, hour));
            }
            if last.is_none_or(|last| last < hour) {
                let newest = newer.entry(one).or_insert(hour);
                *newest = hour.max(*newest);
            }
        }
        if entered.is_empty() {
            return Ok(());
        }
        match conn {
            Conn::Postgres(c) => enter_hours(c, &entered, &newer)?,
            Conn::Sqlite(c) => {
                for (subject_id, hour) in &entered {
                    EnterHour { subject_id, hour }.execute(c)?;
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

fn enter_hours(
    conn: &mut PgConnection,
    entered: &BTreeSet<(i64, i64)>,
    newer: &BTreeMap<Use, i64>,
) -> Result<(), Fault> {
    EnterHours {
        entering: &entered.iter().map(|(subject_id, _)| *subject_id).collect(),
        entered: &entered.iter().map(|(_, hour)| *hour).collect(),
        subject_ids: &newer.keys().map(|(subject_id, _)| *subject_id).collect(),
        meter_ids: &newer.keys().map(|(_, meter_id)| *meter_id).collect(),
        hours: &newer.values().copied().collect(),
    }
    .execute(conn)?;
    Ok(())
}
