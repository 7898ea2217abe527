//! What a database holds, counted by the database itself.

use diesel::connection::SimpleConnection;
use diesel::prelude::*;
use diesel::sql_types::{BigInt, Nullable, Text};

use crate::backup::manifest::{Contents, Total};
use crate::db::{Conn, DbError};
use crate::metering::time::Timestamp;

#[derive(QueryableByName)]
struct Name {
    #[diesel(sql_type = Text)]
    name: String,
}

#[derive(QueryableByName)]
struct Count {
    #[diesel(sql_type = BigInt)]
    count: i64,
}

#[derive(QueryableByName)]
struct Installation {
    #[diesel(sql_type = Text)]
    id: String,
    #[diesel(sql_type = BigInt)]
    epoch: i64,
}

#[derive(QueryableByName)]
struct Line {
    #[diesel(sql_type = Text)]
    meter: String,
    #[diesel(sql_type = Text)]
    month: String,
    #[diesel(sql_type = BigInt)]
    events: i64,
    #[diesel(sql_type = Text)]
    quantity: String,
}

#[derive(QueryableByName)]
struct Apart {
    #[diesel(sql_type = Text)]
    meter: String,
    #[diesel(sql_type = BigInt)]
    hours: i64,
}

#[derive(QueryableByName)]
struct Meter {
    #[diesel(sql_type = BigInt)]
    id: i64,
    #[diesel(sql_type = Text)]
    name: String,
}

#[derive(QueryableByName)]
struct First {
    #[diesel(sql_type = BigInt)]
    hour: i64,
}

#[derive(QueryableByName)]
struct Sum {
    #[diesel(sql_type = BigInt)]
    events: i64,
    /// None of no events.
    #[diesel(sql_type = Nullable<Text>)]
    quantity: Option<String>,
}

/// How many events its total tells of, and how many there are.
#[derive(QueryableByName)]
struct Hour {
    #[diesel(sql_type = BigInt)]
    start: i64,
    #[diesel(sql_type = BigInt)]
    told: i64,
    #[diesel(sql_type = BigInt)]
    stored: i64,
}

/// Every table there is; months of a partitioned one are part of it.
pub fn tables(conn: &mut Conn) -> Result<Vec<String>, DbError> {
    let text = match conn {
        Conn::Postgres(_) => {
            "SELECT c.relname::text AS name FROM pg_class c JOIN pg_namespace n ON n.oid = c.relnamespace
             WHERE n.nspname = current_schema() AND c.relkind IN ('r', 'p') AND NOT c.relispartition ORDER BY 1"
        }
        Conn::Sqlite(_) => {
            "SELECT name FROM sqlite_master WHERE type = 'table' AND name NOT LIKE 'sqlite\\_%' ESCAPE '\\' ORDER BY 1"
        }
    };
    let rows: Vec<Name> = diesel::sql_query(text).load(conn)?;
    Ok(rows.into_iter().map(|row| row.name).collect())
}

pub fn contents(conn: &mut Conn) -> Result<Contents, DbError> {
    let Installation { id, epoch } =
        diesel::sql_query("SELECT id, epoch FROM installation").get_result(conn)?;
    let migrations: Vec<Name> =
        diesel::sql_query("SELECT version AS name FROM __diesel_schema_migrations ORDER BY version")
            .load(conn)?;
    let mut found = Contents {
        installation: id,
        epoch,
        migrations: migrations.into_iter().map(|row| row.name).collect(),
        ..Contents::default()
    };
    for table in tables(conn)? {
        let quoted = table.replace('"', "\"\"");
        let Count { count } =
            diesel::sql_query(format!("SELECT count(*) AS count FROM \"{quoted}\"")).get_result(conn)?;
        found.rows.insert(table, count);
    }
    found.totals = totals(conn)?;
    Ok(found)
}

fn totals(conn: &mut Conn) -> Result<Vec<Total>, DbError> {
    if !conn.is_postgres() {
        return totals_month_by_month(conn);
    }
    let text = "SELECT m.public_id AS meter,
                       to_char(timestamp 'epoch' + e.event_time / 1000000 * interval '1 second', 'YYYY-MM') AS month,
                       count(*) AS events, trim_scale(SUM(e.quantity))::text AS quantity
                FROM events e JOIN meters m ON m.id = e.meter_id GROUP BY 1, 2 ORDER BY 1, 2";
    let rows: Vec<Line> = diesel::sql_query(text).load(conn)?;
    let total = |Line { meter, month, events, quantity }| Total { meter, month, events, quantity };
    Ok(rows.into_iter().map(total).collect())
}

/// In the order of indexes: to group events otherwise, SQLite sorts all that there are, in memory. All meters of a month
/// before the next month, because their events lie beside each other.
fn totals_month_by_month(conn: &mut Conn) -> Result<Vec<Total>, DbError> {
    let (meters, mut totals, mut from) = (meters(conn)?, Vec::new(), Timestamp(i64::MIN));
    while let Some(first) = first_hour(conn, from)? {
        let end = first.month_start().plus_months(1).max(first.plus(1));
        let month: String = first.to_seconds_text().chars().take("2026-12".len()).collect();
        for Meter { id, name } in &meters {
            let query = diesel::sql_query(SUM_OF_TIME).bind::<BigInt, _>(*id).bind::<BigInt, _>(first.0);
            let Sum { events, quantity } = query.bind::<BigInt, _>(end.0).get_result(conn)?;
            if let Some(quantity) = quantity {
                totals.push(Total { meter: name.clone(), month: month.clone(), events, quantity });
            }
        }
        from = end;
    }
    totals.sort();
    Ok(totals)
}

const FIRST_HOUR: &str = "SELECT hour FROM events WHERE hour >= $1 ORDER BY hour LIMIT 1";
const SUM_OF_TIME: &str = "SELECT count(*) AS events,
           CASE WHEN count(*) > 0 THEN quantity_text(quantity_total(quantity)) END AS quantity
    FROM events WHERE meter_id = $1 AND event_time >= $2 AND event_time < $3";
const HOURS_OF_METER: &str = "SELECT t.start, t.told, (
        SELECT count(*) FROM events e
        WHERE e.meter_id = $1 AND e.event_time >= t.start AND e.event_time < t.start + 3600000000) AS stored
    FROM (SELECT start, SUM(event_count) AS told FROM rollups WHERE meter_id = $1 AND grain = 1 GROUP BY start) AS t";

fn meters(conn: &mut Conn) -> Result<Vec<Meter>, DbError> {
    Ok(diesel::sql_query("SELECT id, public_id AS name FROM meters ORDER BY public_id").load(conn)?)
}

fn first_hour(conn: &mut Conn, from: Timestamp) -> Result<Option<Timestamp>, DbError> {
    let query = diesel::sql_query(FIRST_HOUR).bind::<BigInt, _>(from.0);
    let found: Option<First> = query.get_result(conn).optional()?;
    Ok(found.map(|First { hour }| Timestamp(hour)))
}

/// Meters whose totals tell of another number of events in an hour than there are, and in how many hours. Totals outlive
/// their events: that they tell of more is a difference only from `kept_since` on.
pub fn hours_apart(conn: &mut Conn, kept_since: Timestamp) -> Result<Vec<(String, i64)>, DbError> {
    if !conn.is_postgres() {
        return hours_apart_by_meter(conn, kept_since);
    }
    let text = "WITH stored AS (
            SELECT meter_id, event_time - ((event_time % 3600000000) + 3600000000) % 3600000000 AS start, COUNT(*) AS events
            FROM events GROUP BY 1, 2),
        told AS (
            SELECT meter_id, start, CAST(SUM(event_count) AS BIGINT) AS events FROM rollups WHERE grain = 1 GROUP BY 1, 2)
        SELECT m.public_id AS meter, COUNT(*) AS hours FROM meters m JOIN (
            SELECT s.meter_id FROM stored s LEFT JOIN told t ON t.meter_id = s.meter_id AND t.start = s.start
            WHERE s.events > COALESCE(t.events, 0)
            UNION ALL
            SELECT t.meter_id FROM told t LEFT JOIN stored s ON s.meter_id = t.meter_id AND s.start = t.start
            WHERE t.start >= $1 AND t.events > COALESCE(s.events, 0)) AS apart ON apart.meter_id = m.id
        GROUP BY 1 ORDER BY 1";
    let rows: Vec<Apart> = diesel::sql_query(text).bind::<BigInt, _>(kept_since.0).load(conn)?;
    Ok(rows.into_iter().map(|Apart { meter, hours }| (meter, hours)).collect())
}

/// In the order of indexes, as [`totals_month_by_month`]. Hours with events and no total at all count as one.
fn hours_apart_by_meter(conn: &mut Conn, kept_since: Timestamp) -> Result<Vec<(String, i64)>, DbError> {
    let mut apart = Vec::new();
    for Meter { id, name } in meters(conn)? {
        let hours: Vec<Hour> = diesel::sql_query(HOURS_OF_METER).bind::<BigInt, _>(id).load(conn)?;
        let all = "SELECT count(*) AS count FROM events WHERE meter_id = $1";
        let Count { count } = diesel::sql_query(all).bind::<BigInt, _>(id).get_result(conn)?;
        let is_apart =
            |hour: &&Hour| hour.stored > hour.told || (hour.start >= kept_since.0 && hour.told > hour.stored);
        let different = hours.iter().filter(is_apart).count() as i64;
        let stored: i64 = hours.iter().map(|hour| hour.stored).sum();
        let different = different + i64::from(count > stored);
        if different > 0 {
            apart.push((name, different));
        }
    }
    Ok(apart)
}

/// From here on the database is another one than all that was remembered of it. How many processes were alive.
pub fn begin_epoch(conn: &mut Conn) -> Result<i64, DbError> {
    diesel::sql_query("UPDATE installation SET epoch = epoch + 1").execute(conn)?;
    // who was alive then is not now
    let instances = diesel::sql_query("DELETE FROM worker_instances").execute(conn)?;
    Ok(instances as i64)
}

pub fn webhooks_owed(conn: &mut Conn) -> Result<i64, DbError> {
    let text = "SELECT count(*) AS count FROM alert_deliveries WHERE status = 'pending'";
    let Count { count } = diesel::sql_query(text).get_result(conn)?;
    Ok(count)
}

/// What is owed to receivers waits among the dead letters until somebody sends it. How many jobs would have sent it.
pub fn hold_webhooks(conn: &mut Conn, now: Timestamp) -> Result<i64, DbError> {
    let text = "UPDATE alert_deliveries SET status = 'dead_letter', last_error = $1, next_attempt_at = $2, updated_at = $2
                WHERE status = 'pending'";
    let reason = "held back when a backup was restored";
    diesel::sql_query(text).bind::<Text, _>(reason).bind::<BigInt, _>(now.0).execute(conn)?;
    let jobs = diesel::sql_query("DELETE FROM jobs WHERE queue = 'webhooks'").execute(conn)?;
    Ok(jobs as i64)
}

/// Copies the database as it is at one instant into a new file.
pub fn copy_into(conn: &mut Conn, file: &str) -> Result<(), DbError> {
    diesel::sql_query("VACUUM INTO $1").bind::<Text, _>(file).execute(conn)?;
    Ok(())
}

/// From here on this connection sees one instant, which others can be given by the name that is returned.
pub fn share_instant(conn: &mut Conn) -> Result<String, DbError> {
    conn.batch_execute("BEGIN ISOLATION LEVEL REPEATABLE READ READ ONLY")?;
    let Name { name } = diesel::sql_query("SELECT pg_export_snapshot() AS name").get_result(conn)?;
    Ok(name)
}

/// Whether the role of this connection may make a database.
pub fn may_create_databases(conn: &mut Conn) -> Result<bool, DbError> {
    let text =
        "SELECT count(*) AS count FROM pg_roles WHERE rolname = current_user AND (rolcreatedb OR rolsuper)";
    let Count { count } = diesel::sql_query(text).get_result(conn)?;
    Ok(count > 0)
}

/// A new and empty database on the server.
pub fn create_database(conn: &mut Conn, name: &str) -> Result<(), DbError> {
    Ok(conn.batch_execute(&format!("CREATE DATABASE {name} TEMPLATE template0 ENCODING 'UTF8'"))?)
}

pub fn drop_database(conn: &mut Conn, name: &str) -> Result<(), DbError> {
    Ok(conn.batch_execute(&format!("DROP DATABASE {name} WITH (FORCE)"))?)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::db::statement::{Statement, plan};

    /// SQLite holds in memory what it sorts or groups without an index: as many events as there are.
    #[test]
    fn events_are_counted_without_sorting_them() {
        let (_directory, mut conn) = plan::empty_database();
        let of_meter = "INDEX events_meter_time (meter_id=? AND event_time>";
        let expected = [
            (FIRST_HOUR, "INDEX events_subject_time (hour>"),
            (SUM_OF_TIME, of_meter),
            (HOURS_OF_METER, of_meter),
        ];
        for (text, search) in expected {
            let plan = plan::of(Statement::new(&conn), &mut conn, text);
            assert!(plan.contains(search) && !plan.contains("TEMP B-TREE"), "{plan}");
        }
    }
}
