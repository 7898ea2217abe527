//! What the repository says about itself is so: each table of the schema is described, each setting and endpoint is listed,
//! and each mention of the wire contract points at a page and a section that exist.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::path::{Path, PathBuf};

use crate::support::{env, program};

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

const PAGES: [&str; 6] = ["rest", "auth", "grpc", "jobs", "config", "dashboard"];

/// The numbers of the headings of each page of the contract.
fn sections() -> BTreeMap<&'static str, BTreeSet<String>> {
    let of = |page: &str| -> BTreeSet<String> {
        let text = read(&root().join(format!("docs/contract/{page}.md")));
        let headings = text.lines().filter_map(|line| line.strip_prefix("## ").or(line.strip_prefix("### ")));
        let numbers = headings.filter_map(|heading| heading.split(' ').next());
        numbers.map(|number| number.trim_end_matches('.').to_owned()).collect()
    };
    PAGES.into_iter().map(|page| (page, of(page))).collect()
}

/// What a text refers to: pages of the contract, each with the numbers that follow its name ("rest.md 2, 6 and 9.1").
fn references(text: &str) -> Vec<(String, Vec<String>)> {
    let plain = text.replace("\n///", "").replace("\n//!", "").replace("\n--", "").replace('\n', " ");
    let mut found = Vec::new();
    for (at, _) in plain.match_indices(".md") {
        let start = plain[..at]
            .rfind(|c: char| !c.is_ascii_alphanumeric() && !"_-/.".contains(c))
            .map_or(0, |at| at + 1);
        let words = plain[at + 3..].split([' ', ',']).filter(|word| !word.is_empty());
        let numbers = words
            .take_while(|word| ["and", "to"].contains(word) || word.starts_with(|c: char| c.is_ascii_digit()))
            .filter(|word| word.starts_with(|c: char| c.is_ascii_digit()))
            .map(|word| word.split(|c: char| !c.is_ascii_digit() && c != '.').next().unwrap_or_default())
            .map(|number| number.trim_end_matches('.').to_owned());
        found.push((plain[start..at].to_owned(), numbers.collect()));
    }
    found
}

#[test]
fn references_are_read_as_they_are_written() {
    let text = "(rest.md 2, 6 and 9.1). See grpc.md 5\n//! to 7: jobs.md, 4 things; docs/contract/auth.md; `next.md` 2";
    let of = |page: &str, numbers: &[&str]| {
        (page.to_owned(), numbers.iter().map(|number| (*number).to_owned()).collect::<Vec<_>>())
    };
    let wanted = [
        of("rest", &["2", "6", "9.1"]),
        of("grpc", &["5", "7"]),
        of("jobs", &["4"]),
        of("docs/contract/auth", &[]),
        of("next", &[]),
    ];
    assert_eq!(references(text), wanted);
}

#[test]
fn references_to_the_contract_resolve() {
    let sections = sections();
    let places = [
        files("src", &["rs"]),
        files("tests", &["rs", "py", "md"]),
        files("migrations", &["sql", "md"]),
        files("benches", &["rs"]),
        files("proto", &["proto"]),
        files("docs", &["md"]),
        ["README.md", "CONTRIBUTING.md", "CHANGELOG.md", "SECURITY.md"]
            .map(|name| root().join(name))
            .to_vec(),
    ];
    let own = Path::new(file!()).file_name();
    let mut wrong = Vec::new();
    for path in places.concat().iter().filter(|path| path.file_name() != own) {
        for (name, numbers) in references(&read(path)) {
            // a path from the file, as links have it, or from the root, or a page of the contract by its name
            let folders =
                [path.parent().unwrap_or(root()).to_owned(), root().to_owned(), root().join("docs")];
            let is_file = folders.iter().any(|folder| folder.join(format!("{name}.md")).exists());
            let Some(known) = sections.get(name.as_str()) else {
                if !is_file {
                    wrong.push(format!("{}: there is no {name}.md", path.display()));
                }
                continue;
            };
            let missing = numbers.iter().filter(|number| !known.contains(*number));
            wrong.extend(
                missing.map(|number| format!("{}: {name}.md has no section {number}", path.display())),
            );
        }
    }
    assert!(wrong.is_empty(), "docs/contract is referred to wrongly:\n{}", wrong.join("\n"));
}

#[test]
fn each_endpoint_is_listed() {
    let document: serde_json::Value =
        serde_json::from_str(&read(&root().join("docs/openapi.json"))).expect("JSON");
    let index = read(&root().join("docs/contract/rest.md"));
    let paths = document["paths"].as_object().expect("an object").iter();
    let calls = paths.filter(|(path, _)| path.starts_with("/v1/")).flat_map(|(path, methods)| {
        let methods = methods.as_object().expect("an object").keys();
        methods.map(move |method| format!("| `{} {path}` |", method.to_uppercase()))
    });
    let missing: Vec<String> = calls.filter(|call| !index.contains(call)).collect();
    assert!(missing.is_empty(), "docs/contract/rest.md 11 does not list {missing:#?}");
}

/// The settings as `--help` lists them, one row each.
fn settings() -> String {
    let directory = tempfile::tempdir().expect("a directory");
    let help = program::run(&["--help"], &[], directory.path()).succeeded().stdout;
    let mut table = String::from("\n| variable | default | effect |\n|---|---|---|\n");
    for line in help.lines() {
        if let Some(title) = line.strip_suffix(':').filter(|title| !title.starts_with(' ')) {
            if !["Commands", "Options"].contains(&title) {
                table += &format!("| **{title}** | | |\n");
            }
            continue;
        }
        let setting = line.trim().strip_suffix(']').and_then(|line| line.rsplit_once(" ["));
        let Some((effect, variable)) = setting else { continue };
        let effect = effect.rsplit_once(">  ").map_or(effect, |(_, effect)| effect).trim();
        let (name, default) = variable.split_once(", default ").unwrap_or((variable, ""));
        let name = name.split(' ').next().unwrap_or_default();
        if !name.starts_with("OPEN_SPANNER_") && name != "RUST_LOG" {
            continue;
        }
        let default = if default.is_empty() { "–".to_owned() } else { format!("`{default}`") };
        table += &format!("| `{name}` | {default} | {} |\n", effect.replace('|', "\\|"));
    }
    table + "\n"
}

#[test]
fn each_setting_is_listed() {
    let path = root().join("docs/contract/config.md");
    let text = read(&path);
    let begin =
        text.find("<!-- settings").and_then(|at| Some(at + text[at..].find('\n')? + 1)).expect("a mark");
    let end = text.find("<!-- end of settings -->").expect("a mark");
    let wanted = settings();
    assert!(wanted.lines().count() > 60, "{wanted}");
    if env("OPEN_SPANNER_REGENERATE").as_deref() == Some("1") {
        fs::write(&path, format!("{}{wanted}{}", &text[..begin], &text[end..])).expect("it can be written");
        return;
    }
    assert!(
        text[begin..end] == wanted,
        "the settings in docs/contract/config.md are out of date: OPEN_SPANNER_REGENERATE=1 cargo test --test it repository::"
    );
}
