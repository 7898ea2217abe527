//! The walls of the house, read from the source: who may import whom, and where SQL may stand. `docs/architecture.md`
//! has the picture; the order below is the rule.

use std::fs;
use std::path::{Path, PathBuf};

/// From the ground up: a folder (or the file that stands for it) may use what is named before it and nothing after.
const FLOORS: &[&str] = &[
    "error",
    "string_enum",
    "config",
    "logging",
    "net",
    "metrics",
    "metering",
    "clock",
    "db",
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
    "grpc",
    "http",
    "dashboard",
    "roles",
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
    "jobs/queue.rs",
    "jobs/worker.rs",
    "ingest/insert",
    "usage/",
    "retention/",
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
    for call in [".write(", ".write_before(", ".move_session("] {
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
