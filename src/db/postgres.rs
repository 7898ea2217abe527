//! What PostgreSQL needs beyond SQL: how a connection is opened, and what keeps it from waiting for ever. A peer that
//! is gone is noticed by the operating system, a lock or a statement that takes too long is cut off by the server. One
//! that is frozen does neither: for that, `Store` gives up waiting for the answer.

use std::time::Duration;

use diesel::connection::SimpleConnection;
use diesel::result::ConnectionError;
use diesel::{Connection, PgConnection, QueryResult, RunQueryDsl, sql_query};

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

/// A connection whose statements may take as long as they like.
pub fn open(dsn: &str) -> Result<PgConnection, ConnectionError> {
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

/// From here on a statement that takes too long fails.
pub fn limit(conn: &mut PgConnection, statement: Duration) -> QueryResult<()> {
    conn.batch_execute(&format!(
        "SET statement_timeout = {}; SET lock_timeout = {}; SET idle_in_transaction_session_timeout = {}",
        milliseconds(statement),
        milliseconds(LOCK_WAIT_MAX.min(statement)),
        milliseconds(IDLE_IN_TRANSACTION_MAX),
    ))
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
    .find_map(|text| sql_query(*text).get_result::<Found>(conn).ok());
    let timeline = timeline.map(|found| found.timeline).filter(|timeline| !timeline.ends_with('/'));
    if let Some(timeline) = timeline.filter(|timeline| !timeline.is_empty()) {
        // the first timeline is no change
        let note = sql_query(
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
    let found = sql_query("SELECT database_stamp() AS stamp").get_result::<Stamp>(conn);
    found.map_or(0, |found| found.stamp)
}

/// 0 would mean "no limit".
pub fn milliseconds(time: Duration) -> i32 {
    i32::try_from(time.as_millis()).unwrap_or(i32::MAX).max(1)
}

/// Adds to a connection string, in either of its two forms, what it does not say itself.
fn with_patience(dsn: &str) -> String {
    let is_uri = dsn.starts_with("postgres://") || dsn.starts_with("postgresql://");
    let mut text = dsn.to_owned();
    for (name, value) in PATIENCE.iter().filter(|(name, _)| !dsn.contains(name)) {
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
        let all = "connect_timeout=5&keepalives_idle=15&keepalives_interval=5&keepalives_count=3&tcp_user_timeout=20000";
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
            format!("{own} keepalives_idle=15 keepalives_interval=5 keepalives_count=3")
        );
    }

    #[test]
    fn no_time_is_short_or_long_enough_to_mean_no_limit() {
        assert_eq!(milliseconds(Duration::from_nanos(1)), 1);
        assert_eq!(milliseconds(Duration::from_secs(u64::MAX)), i32::MAX);
    }
}
