//! What PostgreSQL needs beyond SQL: how a connection is opened, and what keeps it from waiting for ever. A peer that
//! is gone is noticed by the operating system, a lock or a statement that takes too long is cut off by the server. One
//! that is frozen does neither: for that, `Store` gives up waiting for the answer.

use std::sync::OnceLock;
use std::time::Duration;

use diesel::connection::SimpleConnection;
use diesel::prelude::*;
use diesel::result::ConnectionError;
use diesel::sql_types::{BigInt, Text};

use super::inspect::unusable;
use super::{Conn, DbError, cluster, migrations, sqlstate};
use crate::clock;
use crate::config::{Db, Driver};
use crate::error::{Code, Error, Result};
use crate::metering::time::Timestamp;

/// What libpq is told unless the connection string says otherwise: seconds to connect, and a peer that acknowledges
/// nothing is gone after 20 to 30 of them.
const PATIENCE: [(&str, &str); 5] = [
    ("connect_timeout", "5"),
    ("keepalives_idle", "15"),
    ("keepalives_interval", "5"),
    ("keepalives_count", "3"),
    ("tcp_user_timeout", "20000"),
];
/// Whoever holds a lock for longer than this does not work with it: callers are told to come back.
const LOCK_WAIT_MAX: Duration = Duration::from_secs(5);
/// A server that was stopped in the middle of a transaction must not keep its locks for ever.
const IDLE_IN_TRANSACTION_MAX: Duration = Duration::from_secs(60);

/// What this process is, for `pg_stat_activity`.
static ROLE: OnceLock<&'static str> = OnceLock::new();

/// Connections from here on say what this process is.
pub fn call_process(role: &'static str) {
    let _ = ROLE.set(role);
}

fn application_name() -> String {
    let role = ROLE.get().map(|role| format!("{role}/")).unwrap_or_default();
    format!("open-spanner/{role}{}", env!("CARGO_PKG_VERSION"))
}

/// A connection whose statements may take as long as they like.
pub fn open(dsn: &str) -> ConnectionResult<PgConnection> {
    let mut conn = open_replica(dsn)?;
    ask_time(&mut conn).map_err(ConnectionError::CouldntSetupConfiguration)?;
    Ok(conn)
}

/// The same to a standby, whose clock nobody goes by.
pub fn open_replica(dsn: &str) -> ConnectionResult<PgConnection> {
    let mut conn = PgConnection::establish(&with_patience(dsn))?;
    // acknowledged means committed: a session default of "off" would break the first promise
    conn.batch_execute(
        "SET TIME ZONE 'UTC'; SET jit = off; SET client_min_messages = warning;
         SELECT set_config('synchronous_commit', 'on', false)
         WHERE current_setting('synchronous_commit') = 'off'",
    )
    .map_err(ConnectionError::CouldntSetupConfiguration)?;
    Ok(conn)
}

#[derive(QueryableByName)]
struct Now {
    #[diesel(sql_type = BigInt)]
    now: i64,
}

/// Tells [`clock`] what time it is. Everybody else asks [`clock`], so that one transaction has one time, and tests can
/// choose it; two statements that wait for a lock first ask for the time after the wait.
pub fn ask_time(conn: &mut PgConnection) -> QueryResult<()> {
    let asked = clock::elapsed();
    // the database's clock is what `clock` goes by
    let text = "SELECT (extract(epoch FROM clock_timestamp()) * 1000000)::bigint AS now";
    let Now { now } = diesel::sql_query(text).get_result(conn)?;
    clock::heed(asked, Timestamp(now), clock::elapsed());
    Ok(())
}

/// From here on a statement that takes too long fails.
pub fn limit(conn: &mut PgConnection, statement: Duration) -> QueryResult<()> {
    conn.batch_execute(&format!(
        "SET statement_timeout = {}; SET lock_timeout = {}; SET idle_in_transaction_session_timeout = {}",
        milliseconds(statement),
        milliseconds(LOCK_WAIT_MAX.min(statement)),
        milliseconds(IDLE_IN_TRANSACTION_MAX),
    ))
}

/// Refuses a database that cannot hold every text, and a pooler that gives a session's connection to others.
pub fn check(driver: &Driver, dsn: &str) -> Result<()> {
    let mut conn = open(dsn).map_err(|error| cannot_open(dsn, error))?;
    let encoding = texts(&mut conn, "SELECT current_setting('server_encoding') AS text")?.concat();
    if encoding != "UTF8" {
        return Err(unusable(format!(
            "the encoding of the database must be UTF8, that of {} is {encoding}",
            driver.target()
        )));
    }
    let mut other = open(dsn).map_err(|error| cannot_open(dsn, error))?;
    let backend = "SELECT concat_ws(' ', pid, backend_start, inet_server_addr()) AS text
                   FROM pg_stat_activity WHERE pid = pg_backend_pid()";
    // two sessions that are open at once have two backends, and keep them
    let seen = [texts(&mut conn, backend)?, texts(&mut other, backend)?, texts(&mut conn, backend)?];
    if seen[0] == seen[1] || seen[0] != seen[2] {
        return Err(unusable(
            "the connection leads to a pooler that pools transactions or statements (pool_mode of pgbouncer): it must \
             pool sessions, or open-spanner must connect to PostgreSQL itself",
        ));
    }
    Ok(())
}

/// Connections of a process beside its pool: the one that watches readiness, and the one that listens for jobs.
const BESIDE_POOL: i64 = 2;

#[derive(QueryableByName)]
struct Limits {
    #[diesel(sql_type = Text)]
    version: String,
    #[diesel(sql_type = Text)]
    role: String,
    #[diesel(sql_type = BigInt)]
    max_connections: i64,
    #[diesel(sql_type = BigInt)]
    connections: i64,
}

/// Logs where this process works and how many connections all processes may take, and warns when that is more than four
/// fifths of those that PostgreSQL has to give. The others are thought to have the settings of this one.
pub fn describe(dsn: &str, db: &Db) -> std::result::Result<(), String> {
    let mut conn = open(dsn).map_err(|error| error.to_string())?;
    let (target, pool) = (db.driver.target(), db.max_open_conns);
    let text = "SELECT current_setting('server_version') AS version, current_user::text AS role,
                       current_setting('max_connections')::bigint
                       - current_setting('superuser_reserved_connections')::bigint AS max_connections,
                       (SELECT count(*) FROM pg_stat_activity WHERE backend_type = 'client backend') AS connections";
    let found: Limits = diesel::sql_query(text).get_result(&mut conn).map_err(|error| error.to_string())?;
    let Limits { version: server_version, role: user, max_connections, connections } = found;
    cluster::describe(&mut conn).map_err(|error| error.to_string())?;
    let conn = &mut Conn::Postgres(conn);
    let others = migrations::users(conn).map_err(|error| error.to_string())? as i64;
    let servers = migrations::servers(conn).map_err(|error| error.to_string())? as i64;
    let each = |pool: u32| i64::from(pool) + BESIDE_POOL;
    // this one is not marked yet
    let needed =
        servers * each(db.server_open_conns) + (others - servers) * each(db.worker_open_conns) + each(pool);
    let processes = others + 1;
    log::info!(driver = "postgres", database = target.as_str(), user, server_version, pool, processes, needed,
               max_connections, connections; "database");
    if needed * 5 > max_connections * 4 {
        log::warn!(processes, needed, max_connections;
                   "PostgreSQL has few connections for that many processes: raise max_connections or lower \
                    OPEN_SPANNER_DB_MAX_OPEN_CONNS");
    }
    Ok(())
}

#[derive(QueryableByName)]
struct TextRow {
    #[diesel(sql_type = Text)]
    text: String,
}

fn texts(conn: &mut PgConnection, query: &str) -> Result<Vec<String>> {
    let rows: Result<Vec<TextRow>, _> = diesel::sql_query(query).load(conn);
    let failed = |error| super::failed("cannot look at the database", &DbError::from(error));
    Ok(rows.map_err(failed)?.into_iter().map(|row| row.text).collect())
}

/// What libpq says when nobody answers, or not yet: it is never translated, unlike what a server says.
const NOBODY_THERE: [&str; 12] = [
    "Connection refused",
    "No such file or directory",
    "could not translate host name",
    "timeout expired",
    "timed out",
    "No route to host",
    "is unreachable",
    "reset by peer",
    "server closed the connection",
    "session is read-only",
    "session is not read-only",
    "server is",
];
/// How each message about an attempt to connect begins; others are about the connection string, and may quote it.
const ATTEMPT: &str = "connection to server";

/// Tells a server that is not there yet from one that will never let us in.
pub fn cannot_open(dsn: &str, error: ConnectionError) -> Error {
    let message = match error {
        ConnectionError::BadConnection(message) => message,
        ConnectionError::CouldntSetupConfiguration(error) => {
            return super::failed("cannot open the database", &DbError::from(error));
        }
        _ => String::new(),
    };
    let waits = |message: &str| {
        Error::new(Code::Unavailable, format!("cannot open the database: {}", message.trim()))
    };
    if !message.contains(ATTEMPT) && !message.contains("could not translate host name") {
        return unusable("OPEN_SPANNER_POSTGRES_DSN is no connection string that libpq understands");
    }
    if NOBODY_THERE.iter().any(|words| message.contains(words)) {
        return waits(&message);
    }
    let Some(state) = sqlstate::of_connecting(dsn) else {
        let is_tls = message.contains("SSL") || message.contains("certificate");
        let refused = |message: &str| unusable(format!("cannot open the database: {}", message.trim()));
        return if is_tls { refused(&message) } else { waits(&message) };
    };
    // wrong password or role, no such database, no right to connect
    if state.class() == "28" || ["3D000", "42501"].contains(&state.as_str()) {
        return unusable(format!("cannot open the database: {}", message.trim()));
    }
    waits(&message)
}

#[derive(diesel::QueryableByName)]
struct Found {
    #[diesel(sql_type = diesel::sql_types::Text)]
    timeline: String,
}

#[derive(diesel::QueryableByName)]
struct Stamp {
    #[diesel(sql_type = diesel::sql_types::BigInt)]
    stamp: i64,
    #[diesel(sql_type = diesel::sql_types::Bool)]
    may_be_cluster: bool,
}

/// What tells this database, as it is since the last restart, failover or restore, from any other; 0 while it has no
/// schema. Writes down a failover where it is the first to notice.
pub fn stamp(conn: &mut PgConnection) -> i64 {
    // a standby has no timeline of its own; a role may lack the right to ask for the cluster
    let timeline = [
        "SELECT system_identifier || '/' || CASE WHEN pg_is_in_recovery() THEN '' ELSE
             left(pg_walfile_name(pg_current_wal_lsn()), 8) END AS timeline FROM pg_control_system()",
        "SELECT CASE WHEN pg_is_in_recovery() THEN '' ELSE left(pg_walfile_name(pg_current_wal_lsn()), 8) END AS timeline",
    ]
    .iter()
    .find_map(|text| diesel::sql_query(*text).get_result::<Found>(conn).ok());
    let timeline = timeline.map(|found| found.timeline).filter(|timeline| !timeline.ends_with('/'));
    if let Some(timeline) = timeline.filter(|timeline| !timeline.is_empty()) {
        // the first timeline is no change
        let note = diesel::sql_query(
            "UPDATE installation SET timeline = $1, epoch = epoch + CASE WHEN timeline = '' THEN 0 ELSE 1 END
             WHERE timeline <> $1",
        );
        match note.bind::<diesel::sql_types::Text, _>(&timeline).execute(conn) {
            Ok(0) => {}
            Ok(_) => log::info!(timeline = timeline.as_str(); "the database begins a timeline"),
            // read-only, or not migrated yet
            Err(error) => log::debug!(error:% = error; "the timeline was not written down"),
        }
    }
    let text =
        "SELECT database_stamp() AS stamp, to_regclass('pg_dist_partition') IS NOT NULL AS may_be_cluster";
    let Ok(found) = diesel::sql_query(text).get_result::<Stamp>(conn) else { return 0 };
    if found.may_be_cluster {
        cluster::note(conn);
    }
    found.stamp
}

/// 0 would mean "no limit".
pub fn milliseconds(time: Duration) -> i32 {
    i32::try_from(time.as_millis()).unwrap_or(i32::MAX).max(1)
}

/// Adds to a connection string, in either of its two forms, what it does not say itself.
fn with_patience(dsn: &str) -> String {
    let is_uri = dsn.starts_with("postgres://") || dsn.starts_with("postgresql://");
    let mut text = dsn.to_owned();
    let name = application_name();
    let all = std::iter::once(("fallback_application_name", name.as_str())).chain(PATIENCE);
    for (name, value) in all.filter(|(name, _)| !dsn.contains(name)) {
        let separator = match is_uri {
            true if has_parameters(&text) => '&',
            true => '?',
            false => ' ',
        };
        text.push_str(&format!("{separator}{name}={value}"));
    }
    text
}

/// libpq reads user and password up to the first `@`, so that a password may hold a `?`.
fn has_parameters(uri: &str) -> bool {
    let rest = uri.split_once("://").map_or(uri, |(_, rest)| rest);
    let after_user = rest.find(['@', '/']).filter(|at| rest[*at..].starts_with('@')).unwrap_or(0);
    rest[after_user..].contains('?')
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn connection_strings_of_both_forms_get_what_they_do_not_say() {
        let name = concat!("fallback_application_name=open-spanner/", env!("CARGO_PKG_VERSION"));
        let all = format!(
            "{name}&connect_timeout=5&keepalives_idle=15&keepalives_interval=5&keepalives_count=3&tcp_user_timeout=20000"
        );
        for (dsn, want) in [
            ("postgres://h/d", format!("postgres://h/d?{all}")),
            ("postgresql://u:p?w@h:1", format!("postgresql://u:p?w@h:1?{all}")),
            ("postgres://u@h/d?sslmode=require", format!("postgres://u@h/d?sslmode=require&{all}")),
            ("postgres://?host=/run", format!("postgres://?host=/run&{all}")),
            ("host=h dbname=d", format!("host=h dbname=d {}", all.replace('&', " "))),
        ] {
            assert_eq!(with_patience(dsn), want);
        }
        let own = "host=h connect_timeout=60 tcp_user_timeout=1";
        assert_eq!(
            with_patience(own),
            format!("{own} {name} keepalives_idle=15 keepalives_interval=5 keepalives_count=3")
        );
    }

    #[test]
    fn no_time_is_short_or_long_enough_to_mean_no_limit() {
        assert_eq!(milliseconds(Duration::from_nanos(1)), 1);
        assert_eq!(milliseconds(Duration::from_secs(u64::MAX)), i32::MAX);
    }
}
