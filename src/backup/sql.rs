//! What a database holds, counted by the database itself.

use diesel::connection::SimpleConnection;
use diesel::prelude::*;
use diesel::sql_types::{BigInt, Text};

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
    let (month, sum) = match conn {
        Conn::Postgres(_) => (
            "to_char(timestamp 'epoch' + e.event_time / 1000000 * interval '1 second', 'YYYY-MM')",
            "trim_scale(SUM(e.quantity))::text",
        ),
        Conn::Sqlite(_) => (
            // not the database's clock: the month of a stored time; whole seconds, rounded down before 1970 as well
            "strftime('%Y-%m', (e.event_time - ((e.event_time % 1000000) + 1000000) % 1000000) / 1000000, 'unixepoch')",
            "quantity_text(quantity_total(e.quantity))",
        ),
    };
    let text = format!(
        "SELECT m.public_id AS meter, {month} AS month, count(*) AS events, {sum} AS quantity
         FROM events e JOIN meters m ON m.id = e.meter_id GROUP BY 1, 2 ORDER BY 1, 2"
    );
    let rows: Vec<Line> = diesel::sql_query(text).load(conn)?;
    let total = |Line { meter, month, events, quantity }| Total { meter, month, events, quantity };
    Ok(rows.into_iter().map(total).collect())
}

/// Meters whose totals tell of another number of events in an hour than there are, and in how many hours. Totals outlive
/// their events: that they tell of more is a difference only from `kept_since` on.
pub fn hours_apart(conn: &mut Conn, kept_since: Timestamp) -> Result<Vec<(String, i64)>, DbError> {
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
