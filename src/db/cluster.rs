//! A PostgreSQL that is the coordinator of a Citus cluster. What grows with every event lies on the nodes, by subject or by
//! key. Whatever decides or is summed up (subjects, counters, rollups, jobs, plans) stays a plain table of the coordinator:
//! a commit over several nodes is not seen on all of them at one instant, and what a limit is checked against must be.
//! docs/scale.md has what that costs. No statement of a domain.

use std::sync::atomic::{AtomicBool, Ordering};

use diesel::connection::SimpleConnection;
use diesel::sql_types::{BigInt, Bool, Text};
use diesel::{PgConnection, QueryResult, QueryableByName, RunQueryDsl, sql_query};

use super::inspect::unusable;
use super::migrations::{locked, refuse_while_used};
use super::{Conn, DbError, failed};
use crate::config::Driver;
use crate::error::{Code, Error, Result};

/// Whether events lie on nodes. A process works with one database, and no server runs while that changes.
static DISTRIBUTED: AtomicBool = AtomicBool::new(false);

pub fn is_distributed() -> bool {
    DISTRIBUTED.load(Ordering::Relaxed)
}

/// Tables, the column that says on which node a row lies, and the table whose rows of the same value lie beside it.
/// A row of `ingestion_runs` may come with each event, but goes soon; on a node of its own it would be one more that a commit
/// needs.
const LAYOUT: [(&str, &str, &str); 4] = [
    ("events", "subject_id", "none"),
    ("idempotency_keys", "key", "none"),
    ("bulk_replays", "key", "idempotency_keys"),
    ("consumption_decisions", "key", "idempotency_keys"),
];

/// A setting of Citus, the value it should have, and what any other does.
type Setting = (&'static str, &'static str, &'static str);

/// Connections to nodes are kept, a statement takes one for each node instead of one for each shard, and a node that is gone
/// is given up before callers are.
const SETTINGS: [Setting; 3] = [
    ("citus.max_cached_conns_per_worker", "16", "makes commits slow"),
    ("citus.max_adaptive_executor_pool_size", "1", "makes commits slow"),
    ("citus.node_connection_timeout", "2000", "decides how long a node that is gone holds up the others"),
];

/// One for the whole server, which is told of and never changed: until then what was stored lies prepared on a node that
/// was away at the end of a commit, where no query sees it and its keys are locked.
const RECOVERY: Setting =
    ("citus.recover_2pc_interval", "1000", "decides when what a node missed is seen again");

#[derive(QueryableByName)]
struct Answer {
    #[diesel(sql_type = Bool)]
    answer: bool,
}

#[derive(QueryableByName)]
struct Value {
    #[diesel(sql_type = Text)]
    value: String,
    #[diesel(sql_type = Bool)]
    is_chosen: bool,
}

#[derive(QueryableByName)]
struct Nodes {
    #[diesel(sql_type = Text)]
    version: String,
    #[diesel(sql_type = BigInt)]
    nodes: i64,
}

fn is_true(conn: &mut PgConnection, text: &str) -> QueryResult<bool> {
    Ok(sql_query(format!("SELECT {text} AS answer")).get_result::<Answer>(conn)?.answer)
}

fn has_extension(conn: &mut PgConnection) -> QueryResult<bool> {
    is_true(conn, "EXISTS (SELECT 1 FROM pg_extension WHERE extname = 'citus')")
}

fn lies_on_nodes(conn: &mut PgConnection, table: &str) -> QueryResult<bool> {
    is_true(
        conn,
        &format!("EXISTS (SELECT 1 FROM pg_dist_partition WHERE logicalrelid = to_regclass('{table}'))"),
    )
}

/// Remembers how the database of a new connection is laid out, which has the extension.
pub(super) fn note(conn: &mut PgConnection) {
    match lies_on_nodes(conn, "events") {
        Ok(found) => DISTRIBUTED.store(found, Ordering::Relaxed),
        // another connection will tell
        Err(error) => log::debug!(error:%; "the layout of the database was not read"),
    }
}

fn nodes(conn: &mut PgConnection) -> QueryResult<Nodes> {
    sql_query(
        "SELECT extversion AS version,
                (SELECT count(*) FROM pg_dist_node WHERE isactive AND shouldhaveshards) AS nodes
         FROM pg_extension WHERE extname = 'citus'",
    )
    .get_result(conn)
}

fn value_of(conn: &mut PgConnection, name: &str) -> QueryResult<Value> {
    let text = "SELECT setting AS value, source <> 'default' AS is_chosen FROM pg_settings WHERE name = $1";
    sql_query(text).bind::<Text, _>(name).get_result(conn)
}

/// Lays a database out over the nodes that it has, while no server runs; says what was done, and does nothing twice.
pub fn distribute(driver: &Driver) -> Result<Vec<String>> {
    let refused = |error| failed("the tables were not distributed", &DbError::from(error));
    if !matches!(driver, Driver::Postgres { .. }) {
        return Err(unusable("--distribute is for PostgreSQL: SQLite is one file"));
    }
    locked(driver, &AtomicBool::new(false), |conn| {
        let _alone = refuse_while_used(driver, conn)?;
        let Conn::Postgres(conn) = conn else { return Ok(Vec::new()) };
        check(conn)?;
        lay_out(conn).map_err(refused)
    })
}

fn check(conn: &mut PgConnection) -> Result<()> {
    let failed = |error| failed("the extension was not looked at", &DbError::from(error));
    if !has_extension(conn).map_err(failed)? {
        return Err(unusable(
            "the database has no extension citus: run CREATE EXTENSION citus in a database of this name on every node, \
             then citus_set_coordinator_host and citus_add_node here (docs/scale.md)",
        ));
    }
    if !is_true(conn, "citus_is_coordinator()").map_err(failed)? {
        return Err(unusable("this is a node of the cluster: connect to its coordinator"));
    }
    match nodes(conn).map_err(failed)?.nodes {
        0 => Err(unusable("the cluster has no node that takes shards: add one with citus_add_node")),
        _ => Ok(()),
    }
}

/// Keeps others out of a database whose events lie on nodes while this connection lives: each node is seen at another
/// instant. Refuses while somebody uses it.
pub fn hold_still(driver: &Driver, conn: &mut Conn) -> Result<()> {
    let Conn::Postgres(coordinator) = &mut *conn else { return Ok(()) };
    let is_laid_out =
        has_extension(coordinator).and_then(|has| Ok(has && lies_on_nodes(coordinator, "events")?));
    let failed = |error| failed("the layout of the database was not looked at", &DbError::from(error));
    if !is_laid_out.map_err(failed)? {
        return Ok(());
    }
    match refuse_while_used(driver, conn) {
        Err(error) if error.code == Code::Conflict => Err(Error::conflict(
            "events lie on several nodes, which are not seen at one instant: stop every server and worker first, or back \
             up the machines of the cluster (docs/scale.md)",
        )),
        done => done.map(drop),
    }
}

fn lay_out(conn: &mut PgConnection) -> QueryResult<Vec<String>> {
    let Nodes { version, nodes } = nodes(conn)?;
    let mut said = vec![format!("citus {version}, {nodes} nodes take shards")];
    // what it says of each table goes to the log of the server
    conn.batch_execute("SET client_min_messages = error")?;
    for (table, column, beside) in LAYOUT {
        if lies_on_nodes(conn, table)? {
            said.push(format!("{table} lies on the nodes already"));
        } else {
            conn.batch_execute(&format!(
                "SELECT create_distributed_table('{table}', '{column}', colocate_with => '{beside}')"
            ))?;
            said.push(format!("{table} lies on the nodes by {column}"));
        }
        // also what a run before this one was stopped over
        leave_no_copy(conn, table)?;
    }
    for (name, wanted, _) in SETTINGS {
        said.push(set(conn, name, wanted)?);
    }
    let (name, wanted, _) = RECOVERY;
    let Value { value, .. } = value_of(conn, name)?;
    if value != wanted {
        said.push(format!(
            "{name} is {value}: ALTER SYSTEM SET {name} = {wanted} on the coordinator is advised"
        ));
    }
    Ok(said)
}

/// Rows that were there before stay behind where nobody reads them, until this.
fn leave_no_copy(conn: &mut PgConnection, table: &str) -> QueryResult<()> {
    conn.batch_execute(&format!("SELECT truncate_local_data_after_distributing_table('{table}')"))
}

/// For the database, unless somebody has chosen otherwise.
fn set(conn: &mut PgConnection, name: &str, wanted: &str) -> QueryResult<String> {
    let Value { value, is_chosen } = value_of(conn, name)?;
    if value == wanted {
        return Ok(format!("{name} is {value} already"));
    }
    if is_chosen {
        return Ok(format!("{name} is {value}, as somebody has set it: {wanted} is advised"));
    }
    conn.batch_execute(&format!(
        "DO $$ BEGIN EXECUTE format('ALTER DATABASE %I SET {name} = {wanted}', current_database()); END $$"
    ))?;
    Ok(format!("{name} is {wanted} in this database now"))
}

/// Tells the operator what cluster this is, and what would make it slow; nothing where there is no extension.
pub(super) fn describe(conn: &mut PgConnection) -> QueryResult<()> {
    if !has_extension(conn)? {
        return Ok(());
    }
    // `version` of a line is that of the process
    let Nodes { version: citus, nodes } = nodes(conn)?;
    let mut local = Vec::new();
    for (table, ..) in LAYOUT {
        if !lies_on_nodes(conn, table)? {
            local.push(table);
        }
    }
    match local.len() {
        0 => log::info!(citus, nodes; "events lie on the nodes of a Citus cluster"),
        all if all == LAYOUT.len() => {
            log::info!(citus, nodes; "the database has the extension citus, but nothing lies on its nodes: \
                                        `open-spanner migrate --distribute` changes that");
            return Ok(());
        }
        _ => log::warn!(citus, nodes, local = local.join(", ").as_str(); 
                        "some tables do not lie on the nodes: run `open-spanner migrate --distribute` again"),
    }
    for (name, wanted, effect) in SETTINGS.into_iter().chain([RECOVERY]) {
        let Value { value, .. } = value_of(conn, name)?;
        if value != wanted {
            log::warn!(setting = name, value = value.as_str(), wanted; "a setting of Citus {effect}");
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_table_lies_beside_one_that_came_before() {
        for (at, (table, _, beside)) in LAYOUT.iter().enumerate() {
            let before = LAYOUT[..at].iter().any(|(other, ..)| other == beside);
            assert!(*beside == "none" || before, "{table}");
        }
    }
}
