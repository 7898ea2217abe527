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
/// A meter with more events in the hour than this is left out, and after so many the next meters wait for another go:
/// counting them would take what callers need, and longer than a statement may.
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
        let compare = move |conn: &mut Conn| page(conn, hour, after, COUNTED_MAX);
        let (last, different) = store.read_snapshot("self_check::compare", compare).await?;
        found.extend(different);
        let Some(last) = last else { return Ok(found) };
        after = last;
    }
}

/// The next meters, with about so many events: the last of them, and those that do not agree.
fn page(
    conn: &mut Conn,
    hour: Timestamp,
    after: i64,
    most: i64,
) -> Result<(Option<i64>, Vec<Difference>), DbError> {
    let text = "-- retention::self_check::kept
        SELECT m.id AS meter_id, CAST((SELECT COALESCE(SUM(r.event_count), 0) FROM rollups r
                                       WHERE r.meter_id = m.id AND r.grain = 1 AND r.start = $1) AS BIGINT) AS kept
        FROM meters m WHERE m.id > $2 ORDER BY m.id LIMIT $3";
    let rows: Vec<Kept> = sql_query(text)
        .bind::<BigInt, _>(hour.0)
        .bind::<BigInt, _>(after)
        .bind::<BigInt, _>(PAGE)
        .load(conn)?;
    let (mut last, mut counted, mut different) = (None, 0, Vec::new());
    for Kept { meter_id, kept } in rows {
        if counted > most {
            break;
        }
        last = Some(meter_id);
        if kept > most {
            continue;
        }
        let stored = stored(conn, meter_id, hour, kept + 1)?;
        counted += stored;
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

#[cfg(test)]
mod tests {
    use super::*;
    use diesel::connection::SimpleConnection;

    /// Meters with many events are not all counted at one instant, and none is passed over but one with too many.
    #[test]
    fn what_is_counted_in_one_go_is_bounded() {
        let mut conn = Conn::Sqlite(diesel::Connection::establish(":memory:").expect("memory"));
        conn.batch_execute(
            "CREATE TABLE meters (id INTEGER PRIMARY KEY);
             CREATE TABLE rollups (meter_id INTEGER, grain INTEGER, start INTEGER, event_count INTEGER);
             CREATE TABLE events (meter_id INTEGER, event_time INTEGER);
             INSERT INTO meters VALUES (1), (2), (3), (4);
             INSERT INTO rollups VALUES (1, 1, 0, 2), (2, 1, 0, 2), (3, 1, 0, 9), (4, 1, 0, 2);
             INSERT INTO events VALUES (1, 5), (1, 6), (2, 5), (2, 6), (3, 5), (4, 5);",
        )
        .expect("valid");
        let mut next = |after: i64| page(&mut conn, Timestamp(0), after, 3).expect("compared");
        assert_eq!(next(i64::MIN), (Some(2), Vec::new()));
        let missing = Difference { meter_id: 4, in_totals: 2, stored: 1 };
        assert_eq!(next(2), (Some(4), vec![missing]));
        assert_eq!(next(4), (None, Vec::new()));
    }
}
