//! The schema on both databases: applied under a lock, shown, reverted, and the same as `src/db/schema.rs`.

use std::collections::{BTreeMap, BTreeSet};

use crate::support::program::{self, Run};
use crate::support::{Database, on_both_databases};

on_both_databases!(
    four_migrate_at_once,
    status_tells_pending_from_applied,
    up_down_up_is_the_same,
    matches_schema_rs
);

fn migrate(database: &Database, arguments: &[&str]) -> Run {
    let directory = tempfile::tempdir().expect("a directory");
    let settings = database.settings();
    let settings: Vec<(&str, &str)> = settings.iter().map(|(name, value)| (*name, value.as_str())).collect();
    let arguments = [&["migrate"], arguments].concat();
    program::run(&arguments, &settings, directory.path())
}

async fn four_migrate_at_once(database: Database) {
    let started = std::sync::Barrier::new(4);
    std::thread::scope(|scope| {
        for _ in 0..4 {
            scope.spawn(|| {
                started.wait();
                migrate(&database, &[]).succeeded();
            });
        }
    });
    assert_eq!(database.count("events"), 0);
    migrate(&database, &[]).succeeded();
}

async fn status_tells_pending_from_applied(database: Database) {
    let before = migrate(&database, &["--status"]).succeeded();
    assert!(before.stdout.contains("pending"), "{before:#?}");
    assert!(before.stdout.contains("keeps waiting nobody"), "{before:#?}");
    let told = migrate(&database, &["--status", "--json"]).succeeded();
    let told: serde_json::Value = serde_json::from_str(&told.stdout).expect("JSON");
    assert_eq!(told["pending"], told["irreversible"], "the first one drops everything: {told}");
    let first = &told["migrations"][0];
    assert_eq!((&first["applied"], first["takes"].is_string()), (&serde_json::json!(false), true), "{told}");
    migrate(&database, &[]).succeeded();
    let after = migrate(&database, &["--status"]).succeeded();
    assert!(after.stdout.contains("applied") && !after.stdout.contains("pending"), "{after:#?}");
    for line in
        std::fs::read_dir(concat!(env!("CARGO_MANIFEST_DIR"), "/migrations/sqlite")).expect("migrations")
    {
        let name = line.expect("an entry").file_name().into_string().expect("UTF-8");
        assert!(after.stdout.contains(&name), "{name} is listed: {after:#?}");
    }
}

/// What the version before would stumble over while it still runs, unless a line `-- contract: why not` stands above it.
fn too_early(sql: &str) -> Vec<&str> {
    const TAKEN_AWAY: [&str; 7] = [
        "DROP TABLE",
        "DROP COLUMN",
        "RENAME ",
        "SET NOT NULL",
        "ALTER COLUMN",
        "CREATE INDEX CONCURRENTLY",
        "VACUUM",
    ];
    let mut before = "";
    let mut found = Vec::new();
    for line in sql.lines().map(str::trim).filter(|line| !line.is_empty()) {
        let upper = line.to_uppercase();
        let is_column = upper.contains("ADD COLUMN");
        let is_needed = is_column && upper.contains("NOT NULL") && !upper.contains("DEFAULT");
        let is_text = line.starts_with("--");
        if !is_text
            && !before.starts_with("-- contract: ")
            && (is_needed || TAKEN_AWAY.iter().any(|words| upper.contains(words)))
        {
            found.push(line);
        }
        before = line;
    }
    found
}

#[test]
fn later_migrations_leave_the_version_before_at_work() {
    for (sql, wanted) in [
        ("ALTER TABLE meters ADD COLUMN hue TEXT;", 0),
        ("ALTER TABLE meters ADD COLUMN hue TEXT NOT NULL DEFAULT '';", 0),
        ("ALTER TABLE meters ADD COLUMN hue TEXT NOT NULL;", 1),
        ("-- nothing reads it since 0.3\nalter table meters drop column hue;", 1),
        ("-- contract: nothing reads it since 0.3\nALTER TABLE meters DROP COLUMN hue;", 0),
        ("ALTER TABLE meters RENAME TO gauges;\nCREATE TABLE x (id BIGINT);", 1),
    ] {
        assert_eq!(too_early(sql).len(), wanted, "{sql}");
    }
    for kind in ["sqlite", "postgres"] {
        let folder = format!("{}/migrations/{kind}", env!("CARGO_MANIFEST_DIR"));
        for entry in std::fs::read_dir(folder).expect("migrations").flatten() {
            // the first makes everything
            if entry.file_name().to_string_lossy().starts_with("0001_") {
                continue;
            }
            let file = entry.path().join("up.sql");
            let sql = std::fs::read_to_string(&file).expect("it can be read");
            assert_eq!(too_early(&sql), Vec::<&str>::new(), "{}", file.display());
        }
    }
}

async fn up_down_up_is_the_same(database: Database) {
    migrate(&database, &[]).succeeded();
    let first = database.schema();
    assert!(first.contains("idempotency_keys"), "the dump holds the schema: {first}");
    let count =
        std::fs::read_dir(concat!(env!("CARGO_MANIFEST_DIR"), "/migrations/sqlite")).expect("there").count();
    migrate(&database, &["--revert", &count.to_string(), "--yes-delete-data", &database.called()])
        .succeeded();
    let tables = tables(&database);
    assert!(tables.is_empty(), "left behind: {tables:?}");
    migrate(&database, &[]).succeeded();
    let second = database.schema();
    assert_eq!(first, second);
}

/// The tables of the product: neither the migration table nor partitions nor what the database keeps for itself.
fn tables(database: &Database) -> BTreeSet<String> {
    let sql = match database {
        Database::Sqlite { .. } => {
            "SELECT name AS line FROM sqlite_master WHERE type = 'table' AND name NOT LIKE 'sqlite_%'"
        }
        Database::Postgres { .. } => {
            "SELECT relname::text AS line FROM pg_class
             WHERE relnamespace = 'public'::regnamespace AND relkind IN ('r', 'p') AND NOT relispartition"
        }
    };
    database.lines(sql).into_iter().filter(|name| name != "__diesel_schema_migrations").collect()
}

async fn matches_schema_rs(database: Database) {
    migrate(&database, &[]).succeeded();
    let wanted = tables_of_schema_rs();
    assert!(wanted.len() > 10, "schema.rs is understood: {wanted:?}");
    // what is one table on PostgreSQL
    let parts = |table: &str| match (&database, table) {
        (Database::Sqlite { .. }, "idempotency_keys") => {
            vec!["settled_keys".to_owned(), "recent_keys".to_owned()]
        }
        // PostgreSQL has an index of events by subject instead
        (Database::Postgres { .. }, "subject_days" | "event_days" | "day_hours") => Vec::new(),
        _ => vec![table.to_owned()],
    };
    let names: BTreeSet<String> = wanted.keys().flat_map(|table| parts(table)).collect();
    assert_eq!(tables(&database), names, "tables");
    for (table, columns) in &wanted {
        let wanted: BTreeSet<String> =
            columns.iter().map(|column| column.in_database(&database, table)).collect();
        for part in parts(table) {
            let mut found: BTreeSet<String> = columns_of(&database, &part).into_iter().collect();
            found.retain(|column| part != "recent_keys" || column != "number INTEGER");
            assert_eq!(found, wanted, "columns of {part}");
        }
    }
}

/// PostgreSQL keeps these as JSONB; the SQL that touches them is written by hand and sees text.
const JSON_COLUMNS: &[(&str, &str)] = &[("events", "metadata")];

/// One line per column: name, type, and whether it may be null.
fn columns_of(database: &Database, table: &str) -> Vec<String> {
    database.lines(&match database {
        Database::Sqlite { .. } => format!(
            "SELECT name || ' ' || type || iif(\"notnull\" OR pk > 0, '', ' null') AS line
             FROM pragma_table_info('{table}')"
        ),
        Database::Postgres { .. } => format!(
            "SELECT column_name || ' ' || data_type || CASE is_nullable WHEN 'YES' THEN ' null' ELSE '' END AS line
             FROM information_schema.columns WHERE table_schema = 'public' AND table_name = '{table}'"
        ),
    })
}

#[derive(Debug)]
struct Column {
    name: String,
    kind: String,
    is_nullable: bool,
}

impl Column {
    /// The column as `columns_of` would print it.
    fn in_database(&self, database: &Database, table: &str) -> String {
        let (sqlite, postgres) = match self.kind.as_str() {
            "BigInt" => ("INTEGER", "bigint"),
            "Integer" => ("INTEGER", "integer"),
            "SmallInt" => ("INTEGER", "smallint"),
            "Bool" => ("INTEGER", "boolean"),
            "Text" if JSON_COLUMNS.contains(&(table, &self.name)) => ("TEXT", "jsonb"),
            "Text" => ("TEXT", "text"),
            "Binary" => ("BLOB", "bytea"),
            "ExactDecimal" => ("BLOB", "numeric"),
            other => panic!("a type this test does not know: {other}"),
        };
        let kind = if matches!(database, Database::Sqlite { .. }) { sqlite } else { postgres };
        format!("{} {kind}{}", self.name, if self.is_nullable { " null" } else { "" })
    }
}

/// Reads the `table!` definitions as text; what it does not understand fails the comparison.
fn tables_of_schema_rs() -> BTreeMap<String, Vec<Column>> {
    let source = include_str!("../../src/db/schema.rs");
    let mut tables = BTreeMap::new();
    for definition in source.split("\ntable! {").skip(1) {
        let definition = definition.split("\n}").next().unwrap_or_default();
        let mut lines =
            definition.lines().map(str::trim).filter(|line| !line.is_empty() && !line.starts_with("use "));
        let head = lines.next().expect("a table has a name");
        let name = head.split_whitespace().next().expect("a table has a name");
        let columns =
            lines.filter_map(|line| line.strip_suffix(',')?.split_once(" -> ")).map(|(name, kind)| {
                let inner = kind.strip_prefix("Nullable<").and_then(|kind| kind.strip_suffix('>'));
                Column { name: name.into(), kind: inner.unwrap_or(kind).into(), is_nullable: inner.is_some() }
            });
        tables.insert(name.to_string(), columns.collect());
    }
    tables
}

/// The functions of the schema are called with every write: PostgreSQL keeps no plan of those in SQL.
#[test]
fn functions_keep_their_plans() {
    let database = Database::postgres();
    migrate(&database, &[]).succeeded();
    let planned_anew = database.lines(
        "SELECT p.proname::text AS line FROM pg_proc p JOIN pg_language l ON l.oid = p.prolang
         WHERE p.pronamespace = 'public'::regnamespace AND l.lanname = 'sql'",
    );
    assert_eq!(planned_anew, Vec::<String>::new());
}
