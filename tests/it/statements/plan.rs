//! How a database finds the rows of the statements that a server sends it. SQLite is asked with EXPLAIN QUERY PLAN
//! for the texts in the server's log; PostgreSQL writes the plans it carried out into its own log (auto_explain).
//! Kept is what should not depend on the version of the database, the size of small tables or the month of today:
//! by which index the rows of the large tables were found.

use std::collections::BTreeSet;
use std::time::Duration;

use diesel::connection::SimpleConnection;
use diesel::sql_types::{Integer, Text};
use diesel::{QueryableByName, RunQueryDsl, SqliteConnection, sql_query};
use serde_json::Value;

use crate::support::{Database, Server};

/// Tables that grow with use. Planners read small ones whole, and may.
const LARGE: [&str; 12] = [
    "consumption_decisions",
    "event_days",
    "events",
    "idempotency_keys",
    "ingestion_runs",
    "quota_counters",
    "recent_keys",
    "rollup_subjects",
    "rollups",
    "settled_keys",
    "subject_days",
    "subjects",
];

/// How the rows of one table are found.
#[derive(PartialEq, Eq, PartialOrd, Ord)]
pub struct Way {
    pub text: String,
    /// The whole table is read.
    pub is_scan: bool,
}

/// One statement.
pub struct Sent {
    pub name: String,
    pub ways: Vec<Way>,
    pub text: String,
}

pub struct Watch<'a> {
    database: &'a Database,
}

impl<'a> Watch<'a> {
    /// To be called before the server connects.
    pub fn start(database: &'a Database) -> Watch<'a> {
        if let Database::Postgres { name, .. } = database {
            let settings = [
                ("session_preload_libraries", "auto_explain"),
                ("auto_explain.log_min_duration", "0"),
                ("auto_explain.log_format", "json"),
            ];
            for (setting, value) in settings {
                let sql = format!("ALTER DATABASE {name} SET {setting} = '{value}'");
                database.postgres_connection().batch_execute(&sql).expect("a superuser may");
            }
        }
        Watch { database }
    }

    /// Gives PostgreSQL a past, and the statistics that it would gather by itself at some time; SQLite plans without.
    pub fn settle(&self) {
        if let Database::Postgres { .. } = self.database {
            let mut connection = self.database.postgres_connection();
            connection.batch_execute(include_str!("past.sql")).expect("the past fits the schema");
            // of all rows: from a sample, which another time is another one, a plan that costs nearly the same may win
            connection
                .batch_execute("SET default_statistics_target = 2000")
                .expect("a setting of the session");
            connection.batch_execute("VACUUM ANALYZE").expect("the database answers");
        }
    }

    /// How much has been logged.
    pub fn position(&self, server: &Server) -> usize {
        match self.database {
            Database::Sqlite { .. } => server.log().len(),
            Database::Postgres { .. } => self.database.cluster().log().len(),
        }
    }

    /// What was sent since then to large tables, each kind of statement once.
    pub fn sent_since(&self, server: &Server, position: usize) -> Vec<Sent> {
        let mut found = match self.database {
            Database::Sqlite { .. } => self.sent_to_sqlite(&server.log()[position..]),
            Database::Postgres { .. } => {
                self.wait_for_the_ends();
                // an empty month is read in whichever way, and costs nothing
                let empty = "SELECT relname::text AS line FROM pg_class WHERE relkind = 'r' AND relpages = 0";
                carried_out_by_postgres(
                    &self.database.cluster().log()[position..],
                    &self.database.lines(empty),
                )
            }
        };
        found.retain(|sent| !sent.ways.is_empty());
        found.sort_by(|a, b| (&a.name, &a.ways).cmp(&(&b.name, &b.ways)));
        found.dedup_by(|a, b| (&a.name, &a.ways) == (&b.name, &b.ways));
        found
    }

    /// PostgreSQL writes the last plan of a transaction down when that ends, which may be after the answer.
    fn wait_for_the_ends(&self) {
        let busy = "SELECT pid::text AS line FROM pg_stat_activity WHERE datname = current_database()
                    AND backend_type = 'client backend' AND pid <> pg_backend_pid() AND state <> 'idle'";
        for _ in 0..500 {
            if self.database.lines(busy).is_empty() {
                return;
            }
            std::thread::sleep(Duration::from_millis(10));
        }
        panic!("a transaction does not end");
    }

    fn sent_to_sqlite(&self, lines: &[String]) -> Vec<Sent> {
        let mut connection = self.database.sqlite_connection();
        register(&mut connection);
        let lines = lines.iter().filter_map(|line| serde_json::from_str::<Value>(line).ok());
        let texts: BTreeSet<String> = lines
            .filter(|line| line["target"] == "open_spanner::sql")
            .filter_map(|line| line["message"].as_str().map(str::to_string))
            .filter(|text| !["BEGIN", "COMMIT", "ROLLBACK"].iter().any(|word| text.starts_with(word)))
            .collect();
        let plan =
            |text: String| Sent { name: name_of(&text), ways: sqlite_steps(&mut connection, &text), text };
        texts.into_iter().map(plan).collect()
    }
}

#[derive(QueryableByName)]
struct Step {
    #[diesel(sql_type = Integer)]
    parent: i32,
    #[diesel(sql_type = Text)]
    detail: String,
}

fn sqlite_steps(connection: &mut SqliteConnection, text: &str) -> Vec<Way> {
    let steps: Vec<Step> = sql_query(format!("EXPLAIN QUERY PLAN {text}")).load(connection).expect(text);
    // a part of a statement may go by the same name as a table
    let made: Vec<(i32, &str)> = steps
        .iter()
        .filter_map(|step| {
            Some((
                step.parent,
                step.detail.strip_prefix("CO-ROUTINE ").or(step.detail.strip_prefix("MATERIALIZE "))?,
            ))
        })
        .collect();
    let mut ways = BTreeSet::new();
    for Step { parent, detail } in &steps {
        let Some((verb, rest)) = detail.split_once(' ') else { continue };
        let alias = rest.split(' ').next().unwrap_or_default();
        if !["SCAN", "SEARCH"].contains(&verb) || made.contains(&(*parent, alias)) {
            continue;
        }
        let Some(table) = table_of(text, alias) else { continue };
        let way = rest[alias.len()..].trim();
        ways.insert(Way { text: format!("{table} {way}").trim_end().to_string(), is_scan: verb == "SCAN" });
    }
    ways.into_iter().collect()
}

/// The large table that goes by this name in a statement.
fn table_of(text: &str, alias: &str) -> Option<&'static str> {
    let words: Vec<&str> =
        text.split(|c: char| !c.is_alphanumeric() && c != '_').filter(|w| !w.is_empty()).collect();
    LARGE.into_iter().find(|table| {
        *table == alias
            || words.windows(2).any(|pair| pair == [*table, alias])
            || words.windows(3).any(|three| three[0] == *table && three[1] == "AS" && three[2] == alias)
    })
}

/// What `store::…` calls it, else its first word.
fn name_of(text: &str) -> String {
    let mut words = text.trim_start_matches(['-', ' ', '\n']).split_whitespace();
    words.next().unwrap_or_default().to_string()
}

mod functions {
    //! What the server adds to SQLite; a plan needs only their names.
    use diesel::sql_types::Binary;

    #[diesel::declare_sql_function]
    extern "SQL" {
        #[aggregate]
        fn quantity_total(x: Binary) -> Binary;
        fn quantity_add(a: Binary, b: Binary) -> Binary;
        fn quantity_text(x: Binary) -> diesel::sql_types::Text;
    }
}

#[derive(Default)]
struct NoTotal;

impl diesel::sqlite::SqliteAggregateFunction<Vec<u8>> for NoTotal {
    type Output = Vec<u8>;

    fn step(&mut self, _: Vec<u8>) {}

    fn finalize(_: Option<Self>) -> Vec<u8> {
        Vec::new()
    }
}

fn register(connection: &mut SqliteConnection) {
    functions::quantity_total_utils::register_impl::<NoTotal, _>(connection).expect("a name");
    functions::quantity_add_utils::register_impl(connection, |a: Vec<u8>, _: Vec<u8>| a).expect("a name");
    functions::quantity_text_utils::register_impl(connection, |_: Vec<u8>| String::new()).expect("a name");
}

/// The plans in a piece of PostgreSQL's log: each is a JSON document, indented by tabs after the line that says so.
fn carried_out_by_postgres(log: &str, empty: &[String]) -> Vec<Sent> {
    let mut found = Vec::new();
    let mut lines = log.lines().peekable();
    while let Some(line) = lines.next() {
        if !line.ends_with(" plan:") {
            continue;
        }
        let mut document = String::new();
        while let Some(part) = lines.next_if(|line| line.starts_with('\t')) {
            document.push_str(part.trim_start_matches('\t'));
        }
        let plan: Value = serde_json::from_str(&document).expect("auto_explain writes JSON");
        let mut ways = BTreeSet::new();
        walk(&plan["Plan"], None, empty, &mut ways);
        let text = plan["Query Text"].as_str().unwrap_or_default().to_string();
        found.push(Sent { name: name_of(&text), ways: ways.into_iter().collect(), text });
    }
    found
}

/// A bitmap scan names its table in one node and its indexes in those below.
fn walk(node: &Value, above: Option<&'static str>, empty: &[String], ways: &mut BTreeSet<Way>) {
    let relation = node["Relation Name"].as_str();
    if relation.is_some_and(|name| empty.iter().any(|other| other == name)) {
        return;
    }
    let is_month = |name: &str| name.starts_with("events_");
    let large = |name: &str| {
        if is_month(name) { Some("events") } else { LARGE.into_iter().find(|table| *table == name) }
    };
    let table = relation.map_or(above, large);
    if let Some(table) = table {
        if node["Node Type"] == "Seq Scan" {
            ways.insert(Way { text: format!("{table} whole"), is_scan: true });
        } else if let Some(index) = node["Index Name"].as_str() {
            let index = match index.strip_prefix("events_") {
                Some(rest) if rest.ends_with("pkey") => "events_pkey",
                Some(_) => "events_meter_time",
                None => index,
            };
            ways.insert(Way { text: format!("{table} by {index}"), is_scan: false });
        }
    }
    for below in node["Plans"].as_array().into_iter().flatten() {
        walk(below, if relation.is_some() { table } else { None }, empty, ways);
    }
}
