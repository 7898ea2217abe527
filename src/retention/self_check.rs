//! Whether totals agree with the events that they are made of, in one hour: counted anew, meter by meter, while all of it is
//! in use. Only hours of the last day are looked at: no event of them can be past its retention.

use diesel::prelude::*;
use diesel::sql_query;
use diesel::sql_types::BigInt;

use crate::chance;
use crate::db::{Conn, DbError, Store};
use crate::error::Result;
use crate::metering::time::{HOUR, Timestamp};

/// Meters that are looked at in one go, at one instant.
const PAGE: i64 = 50;
/// An hour with more events than this is left out: counting it would take what callers need.
const COUNTED_MAX: i64 = 200_000;

/// One of the hours that are over and whose events are all kept.
pub fn some_hour(now: Timestamp) -> Timestamp {
    now.floor(HOUR).plus(-HOUR * chance::within(1..22i64))
}

#[derive(QueryableByName)]
struct Kept {
    #[diesel(sql_type = BigInt)]
    meter_id: i64,
    #[diesel(sql_type = BigInt)]
    kept: i64,
}

#[derive(QueryableByName)]
struct Count {
    #[diesel(sql_type = BigInt)]
    count: i64,
}

/// A meter whose totals of the hour tell another number of events than there are.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Difference {
    pub meter_id: i64,
    pub in_totals: i64,
    /// Counted to one more than there should be.
    pub stored: i64,
}

/// The meters that do not agree, among all.
pub async fn differences(store: &Store, hour: Timestamp) -> Result<Vec<Difference>> {
    let (mut after, mut found) = (i64::MIN, Vec::new());
    loop {
        let compare = move |conn: &mut Conn| page(conn, hour, after);
        let (last, different) = store.read_snapshot("self_check::compare", compare).await?;
        found.extend(different);
        let Some(last) = last else { return Ok(found) };
        after = last;
    }
}

/// The next meters: the last of them, and those that do not agree.
fn page(conn: &mut Conn, hour: Timestamp, after: i64) -> Result<(Option<i64>, Vec<Difference>), DbError> {
    let text = "-- retention::self_check::kept
        SELECT m.id AS meter_id, CAST((SELECT COALESCE(SUM(r.event_count), 0) FROM rollups r
                                       WHERE r.meter_id = m.id AND r.grain = 1 AND r.start = $1) AS BIGINT) AS kept
        FROM meters m WHERE m.id > $2 ORDER BY m.id LIMIT $3";
    let rows: Vec<Kept> = sql_query(text)
        .bind::<BigInt, _>(hour.0)
        .bind::<BigInt, _>(after)
        .bind::<BigInt, _>(PAGE)
        .load(conn)?;
    let last = rows.last().map(|row| row.meter_id);
    let mut different = Vec::new();
    for Kept { meter_id, kept } in rows {
        if kept > COUNTED_MAX {
            continue;
        }
        let stored = stored(conn, meter_id, hour, kept + 1)?;
        if stored != kept {
            different.push(Difference { meter_id, in_totals: kept, stored });
        }
    }
    Ok((last, different))
}

/// How many events of a meter happened in the hour, counted no further than to `most`.
fn stored(conn: &mut Conn, meter_id: i64, hour: Timestamp, most: i64) -> Result<i64, DbError> {
    let text = "-- retention::self_check::stored
        SELECT COUNT(*) AS count FROM (
            SELECT 1 FROM events WHERE meter_id = $1 AND event_time >= $2 AND event_time < $3 LIMIT $4) AS found";
    let Count { count } = sql_query(text)
        .bind::<BigInt, _>(meter_id)
        .bind::<BigInt, _>(hour.0)
        .bind::<BigInt, _>(hour.plus(HOUR).0)
        .bind::<BigInt, _>(most)
        .get_result(conn)?;
    Ok(count)
}
