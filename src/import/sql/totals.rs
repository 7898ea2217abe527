//! What is stored of a meter, added up.

use diesel::sql_types::{BigInt, Text};
use diesel::{RunQueryDsl, sql_query};

use crate::both;
use crate::db::{Conn, DbError};
use crate::metering::quantity::Quantity;
use crate::metering::time::{DAY, Timestamp};

#[derive(diesel::QueryableByName)]
struct Day {
    #[diesel(sql_type = BigInt)]
    day: i64,
    #[diesel(sql_type = BigInt)]
    event_count: i64,
    #[diesel(sql_type = Text)]
    total: String,
}

/// Days with events: how many, and their sum.
pub fn days(conn: &mut Conn, meter_id: i64) -> Result<Vec<(Timestamp, u64, Quantity)>, DbError> {
    let total = match conn {
        Conn::Postgres(_) => "sum(quantity)::text",
        Conn::Sqlite(_) => "quantity_text(quantity_total(quantity))",
    };
    let text = format!(
        "SELECT event_time - ((event_time % {DAY}) + {DAY}) % {DAY} AS day, count(*) AS event_count, {total} AS total
         FROM events WHERE meter_id = $1 GROUP BY 1"
    );
    let rows: Vec<Day> = both!(conn, c => sql_query(text).bind::<BigInt, _>(meter_id).load(c)?);
    let of = |row: Day| {
        let total = Quantity::from_plain(&row.total).unwrap_or_else(Quantity::zero);
        (Timestamp(row.day), row.event_count.unsigned_abs(), total)
    };
    Ok(rows.into_iter().map(of).collect())
}
