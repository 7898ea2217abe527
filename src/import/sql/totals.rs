//! What is stored of a meter, added up.

use diesel::sql_types::{BigInt, Nullable, Text};
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

/// An event that was sent to this server: its id is of version 7, those of the other server are of version 4.
#[derive(diesel::QueryableByName)]
struct Sent {
    #[diesel(sql_type = Text)]
    subject: String,
    #[diesel(sql_type = Text)]
    quantity: String,
    #[diesel(sql_type = Nullable<Text>)]
    metadata: Option<String>,
}

pub struct SentHere {
    pub subject: String,
    pub quantity: Quantity,
    pub metadata: Option<String>,
}

/// Events of a meter from one time to another that did not come from elsewhere.
pub fn sent_here(
    conn: &mut Conn,
    meter_id: i64,
    from: Timestamp,
    to: Timestamp,
) -> Result<Vec<SentHere>, DbError> {
    let (quantity, metadata, version) = match conn {
        Conn::Postgres(_) => ("e.quantity::text", "e.metadata::text", "substr(encode(e.id, 'hex'), 13, 1)"),
        Conn::Sqlite(_) => ("quantity_text(e.quantity)", "e.metadata", "substr(hex(e.id), 13, 1)"),
    };
    let text = format!(
        "SELECT s.name AS subject, {quantity} AS quantity, {metadata} AS metadata
         FROM events e JOIN subjects s ON s.id = e.subject_id
         WHERE e.meter_id = $1 AND e.event_time >= $2 AND e.event_time < $3 AND {version} <> '4'"
    );
    let rows: Vec<Sent> = both!(conn, c => sql_query(text)
        .bind::<BigInt, _>(meter_id)
        .bind::<BigInt, _>(from.0)
        .bind::<BigInt, _>(to.0)
        .load(c)?);
    let of = |Sent { subject, quantity, metadata }: Sent| {
        let quantity = Quantity::from_plain(&quantity).unwrap_or_else(Quantity::zero);
        SentHere { subject, quantity, metadata }
    };
    Ok(rows.into_iter().map(of).collect())
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
