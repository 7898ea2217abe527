//! The walls of the house, read from the source: who may import whom, and where SQL may stand. `docs/architecture.md`
//! has the picture; the order below is the rule.

use std::fs;
use std::path::{Path, PathBuf};

/// From the ground up: a folder (or the file that stands for it) may use what is named before it and nothing after.
const FLOORS: &[&str] = &[
    "error",
    "string_enum",
    "metering",
    "clock",
    "chance",
    "blocking",
    "output",
    "vault",
    "config",
    "logging",
    "net",
    "mail",
    "metrics",
    "db",
    "backup",
    "audit",
    "jobs",
    "auth",
    "meters",
    "usage",
    "entitlements",
    "exports",
    "alerts",
    "ingest",
    "app",
    "retention",
    "operations",
    "grpc",
    "http",
    "dashboard",
    "roles",
    "import",
    "tenant",
    "cli",
];

/// What stands at the door, or tests what stands everywhere, and may use everything.
const ENTRANCES: &[&str] = &["lib", "main", "fuzz"];

/// Where SQL text and diesel may stand.
const SQL_PLACES: &[&str] = &[
    "db.rs",
    "db/",
    "/sql.rs",
    "/sql/",
    "jobs/dead_letters.rs",
    "jobs/instances.rs",
    "jobs/queue.rs",
    "jobs/worker.rs",
    "ingest/insert",
    "usage/",
    "retention/",
    "import/reference/",
];

struct Source {
    /// Below `src/`.
    path: String,
    /// Without tests: they may know everybody.
    text: String,
}

fn sources() -> Vec<Source> {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("src");
    let (mut folders, mut sources) = (vec![root.clone()], Vec::new());
    while let Some(folder) = folders.pop() {
        for entry in fs::read_dir(folder).expect("a folder") {
            let path: PathBuf = entry.expect("an entry").path();
            let name = path.strip_prefix(&root).expect("below src").display().to_string();
            if path.is_dir() {
                folders.push(path);
            } else if name.ends_with(".rs") && !name.ends_with("tests.rs") && !name.contains("/pb/") {
                let text = fs::read_to_string(&path).expect("a source file");
                let code = text.split("#[cfg(test)]\nmod ").next().unwrap_or_default();
                let is_comment = |line: &&str| line.trim_start().starts_with("//");
                let lines: Vec<&str> = code.lines().filter(|line| !is_comment(line)).collect();
                let text = lines.join("\n");
                sources.push(Source { path: name, text });
            }
        }
    }
    sources
}

fn room(path: &str) -> &str {
    path.split('/').next().unwrap_or(path).trim_end_matches(".rs")
}

fn floor(room: &str) -> Option<usize> {
    FLOORS.iter().position(|name| *name == room)
}

/// The rooms named behind `crate::`, also in `crate::{a, b::c}`.
fn imports(text: &str) -> Vec<&str> {
    let is_name = |c: char| c.is_ascii_lowercase() || c == '_';
    let mut found = Vec::new();
    for (at, _) in text.match_indices("crate::") {
        let rest = &text[at + "crate::".len()..];
        match rest.strip_prefix('{') {
            Some(list) => {
                let list = list.split_once("};").map_or(list, |(list, _)| list);
                found.extend(
                    list.split(',').map(|part| part.trim().split(|c| !is_name(c)).next().unwrap_or("")),
                );
            }
            None => found.push(rest.split(|c| !is_name(c)).next().unwrap_or("")),
        }
    }
    found
}

#[test]
fn imports_run_downwards() {
    let mut wrong = Vec::new();
    for source in sources() {
        let from = room(&source.path);
        if ENTRANCES.contains(&from) {
            continue;
        }
        let Some(own) = floor(from) else {
            wrong.push(format!(
                "{}: a room without a floor: add `{from}` to FLOORS and docs/architecture.md",
                source.path
            ));
            continue;
        };
        for to in imports(&source.text) {
            if floor(to).is_some_and(|other| other > own) {
                wrong.push(format!(
                    "{}: `{from}` uses `{to}`, which stands above it: move what it needs down to `{from}` or below, \
                     or hand it in from above",
                    source.path
                ));
            }
        }
    }
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
}

#[test]
fn metering_is_pure() {
    for source in sources().iter().filter(|source| room(&source.path) == "metering") {
        for to in imports(&source.text) {
            assert!(
                ["metering", "error", "string_enum", ""].contains(&to),
                "{}: the rules know no `{to}`: no I/O, no SQL, no settings",
                source.path
            );
        }
        assert!(!source.text.contains("diesel"), "{}: the rules know no SQL", source.path);
    }
}

#[test]
fn sql_stands_in_its_places() {
    let speaks_sql = |text: &str| {
        ["diesel::", "sql_query", "\"SELECT ", "\"INSERT INTO ", "\"UPDATE ", "\"DELETE FROM "]
            .iter()
            .any(|word| text.contains(word))
    };
    let wrong: Vec<_> = sources()
        .into_iter()
        .filter(|source| {
            let path = format!("/{}", source.path);
            let is_place = |place: &&str| {
                source.path.starts_with(*place) || (place.starts_with('/') && path.contains(*place))
            };
            !SQL_PLACES.iter().any(is_place) && speaks_sql(&source.text)
        })
        .map(|source| format!("{}: SQL belongs to the `sql` of its domain", source.path))
        .collect();
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
}

/// The names of the transactions in a text: what stands behind `.write(` and its like.
fn operations(text: &str) -> Vec<&str> {
    let mut found = Vec::new();
    for call in [".write(", ".write_before(", ".move_session(", "once_as_operator(", "put_down("] {
        for (at, _) in text.match_indices(call) {
            let arguments = &text[at + call.len()..];
            let name = arguments.split('"').nth(1).filter(|name| name.contains("::"));
            let is_near = arguments.find('"').is_some_and(|quote| quote < 40);
            found.extend(name.filter(|_| is_near));
        }
    }
    found
}

#[test]
fn each_transaction_is_a_change_or_is_none() {
    use open_spanner::db::audit::{CHANGES, NO_CHANGES};
    let sources = sources();
    let found: std::collections::BTreeSet<&str> =
        sources.iter().flat_map(|source| operations(&source.text)).collect();
    let is_known =
        |name: &&&str| CHANGES.iter().any(|(known, ..)| known == *name) || NO_CHANGES.contains(*name);
    let unknown: Vec<&&str> = found.iter().filter(|name| !is_known(name)).collect();
    assert!(unknown.is_empty(), "in neither list of src/db/audit.rs: {unknown:?}");
    assert!(found.len() > 50, "the sources are understood: {found:?}");
    let gone: Vec<&str> =
        CHANGES.iter().map(|(name, ..)| *name).filter(|name| !found.contains(name)).collect();
    assert!(gone.is_empty(), "no transaction is called so: {gone:?}");
}

/// What a simulator has to choose, and the one place that asks the world for it.
const SEAMS: &[(&str, &[&str], &[&str])] = &[
    (
        "the time",
        &["clock.rs"],
        &["Instant::now", "SystemTime::now", ".elapsed()", "jiff::Timestamp::now", "Zoned::now"],
    ),
    (
        "chance",
        &["chance.rs"],
        &["now_v7()", "new_v4()", "rand::r", "rand::rng", "RandomState::new", "SystemRandom", "getrandom"],
    ),
    (
        "threads and work that blocks",
        &["blocking.rs"],
        &[
            "spawn_blocking",
            "block_in_place",
            "web::block(",
            "thread::spawn",
            "thread::Builder",
            "thread::sleep",
        ],
    ),
    (
        "a connection to the database",
        &["db/sqlite.rs", "db/postgres.rs", "db/sqlstate.rs"],
        &["::establish(", "PQconnect"],
    ),
];

#[test]
fn the_world_is_asked_in_one_place_each() {
    let mut wrong = Vec::new();
    for source in sources() {
        for (what, places, words) in SEAMS {
            if places.contains(&source.path.as_str()) || source.path == "fuzz.rs" {
                continue;
            }
            for word in words.iter().filter(|word| source.text.contains(**word)) {
                wrong.push(format!("{}: `{word}`: ask {} for {what}", source.path, places[0]));
            }
        }
    }
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
}

/// How SQL asks the database what time it is.
const DATABASE_CLOCKS: &[&str] = &[
    "now()",
    "clock_timestamp",
    "statement_timestamp",
    "transaction_timestamp",
    "current_timestamp",
    "current_date",
    "localtimestamp",
    "unixepoch(",
    "julianday(",
    "datetime('",
    "strftime('",
];

/// Rust files with their comments, and the migrations.
fn texts_with_comments() -> Vec<(String, String)> {
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    let mut folders = vec![root.join("src"), root.join("migrations")];
    let mut found = Vec::new();
    while let Some(folder) = folders.pop() {
        for entry in fs::read_dir(folder).expect("a folder") {
            let path = entry.expect("an entry").path();
            if path.is_dir() {
                folders.push(path);
            } else if path.extension().is_some_and(|end| end == "rs" || end == "sql") {
                let name = path.strip_prefix(root).expect("below the root").display().to_string();
                found.push((name, fs::read_to_string(&path).expect("a text")));
            }
        }
    }
    found
}

#[test]
fn sql_asks_the_databases_clock_only_where_a_comment_says_why() {
    let is_comment = |line: &str| ["//", "--"].iter().any(|mark| line.trim_start().starts_with(mark));
    let mut wrong = Vec::new();
    for (name, text) in texts_with_comments() {
        let lines: Vec<&str> = text.lines().collect();
        for (at, line) in lines.iter().enumerate() {
            // `Timestamp::now()` and its like are Rust
            let sql = ["::now()", "fn now()", "_now()"]
                .iter()
                .fold(line.to_lowercase(), |line, rust| line.replace(rust, ""));
            let asks = DATABASE_CLOCKS.iter().any(|clock| sql.contains(clock));
            let says_why = (at.saturating_sub(3)..at)
                .any(|above| is_comment(lines[above]) && lines[above].contains("database's clock"));
            if asks && !is_comment(line) && !says_why {
                wrong.push(format!(
                    "{name}:{}: `{}`: bind a time of clock.rs, or say in a comment of at most three lines above why \
                     it is the database's clock",
                    at + 1,
                    line.trim()
                ));
            }
        }
    }
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
}
