//! When subjects were last seen, in the hot insert: a row is written when a subject enters a newer hour of a meter,
//! never with every event, so that no row is fought over. `store::subjects` lists by it.

use std::collections::BTreeMap;

use diesel::sql_types::{Array, BigInt};
use diesel::{PgConnection, RunQueryDsl, SqliteConnection};

use super::{Known, Work};
use crate::rollup::{ALL_SUBJECTS, Grain, Key};
use crate::store::prepared::prepared;
use crate::store::{Conn, Fault};

prepared!(
    EnterHours for PgConnection,
    (subject_ids: Array<BigInt> = Vec<i64>, meter_ids: Array<BigInt> = Vec<i64>, hours: Array<BigInt> = Vec<i64>),
    "INSERT INTO subject_activity AS a (subject_id, meter_id, last_hour) SELECT * FROM unnest(?, ?, ?)
     ON CONFLICT (subject_id, meter_id) DO UPDATE SET last_hour = excluded.last_hour
         WHERE a.last_hour < excluded.last_hour"
);
prepared!(
    EnterHour for SqliteConnection,
    (subject_id: BigInt = i64, meter_id: BigInt = i64, hour: BigInt = i64),
    "INSERT INTO subject_activity AS a (subject_id, meter_id, last_hour) VALUES (?, ?, ?)
     ON CONFLICT (subject_id, meter_id) DO UPDATE SET last_hour = excluded.last_hour
         WHERE a.last_hour < excluded.last_hour"
);

/// Subject and meter.
pub(super) type Use = (i64, i64);

impl Work<'_> {
    /// What is known is never later than what is stored, so nothing is left out.
    pub(super) fn write_activity<'k>(
        &mut self,
        conn: &mut Conn,
        known: &Known,
        rollups: impl Iterator<Item = &'k Key>,
    ) -> Result<(), Fault> {
        let mut newer: BTreeMap<Use, i64> = BTreeMap::new();
        for key in rollups.filter(|key| key.grain == Grain::Hour && key.subject_id != ALL_SUBJECTS) {
            let last = newer.entry((key.subject_id, key.meter_id)).or_insert(key.start.0);
            *last = key.start.0.max(*last);
        }
        newer.retain(|one, hour| known.activity.get(one).is_none_or(|known| known < *hour));
        if newer.is_empty() {
            return Ok(());
        }
        match conn {
            Conn::Postgres(c) => {
                let subject_ids = &newer.keys().map(|(subject_id, _)| *subject_id).collect();
                let meter_ids = &newer.keys().map(|(_, meter_id)| *meter_id).collect();
                EnterHours { subject_ids, meter_ids, hours: &newer.values().copied().collect() }
                    .execute(c)?;
            }
            Conn::Sqlite(c) => {
                for ((subject_id, meter_id), hour) in &newer {
                    EnterHour { subject_id, meter_id, hour }.execute(c)?;
                }
            }
        }
        self.learned.activity.extend(newer);
        Ok(())
    }
}
