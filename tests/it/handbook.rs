//! The handbook's commands do what it says: on each page below, every fenced block after a line `<!-- checked -->` is run
//! against a server, and what it prints must be the block that follows it, or nothing after `<!-- checked: prints nothing -->`.
//! Blocks in other languages than `sh` are run
//! where the language is on the machine. Also: its pages are all in the table of contents, and its links lead somewhere.

use std::collections::BTreeSet;
use std::fmt::Write as _;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use crate::support::{Database, Server, env, on_both_databases, program, skip};

on_both_databases!(
    readme_prints_what_it_says,
    quick_start_prints_what_it_says,
    sending_events_prints_what_it_says,
    aggregations_print_what_they_say,
    quotas_print_what_they_say,
    alerts_print_what_they_say,
    time_zones_print_what_they_say,
    exports_print_what_they_say
);

/// Printed between the outputs of two blocks.
const MARK: &str = "----8<----";
/// Printed instead of an output where a language is missing.
const MISSING: &str = "there is no such language here";

struct Block {
    language: String,
    text: String,
    answer: String,
}

fn root() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR"))
}

fn read(path: impl AsRef<Path>) -> String {
    let path = root().join(path);
    fs::read_to_string(&path).unwrap_or_else(|error| panic!("{}: {error}", path.display()))
}

fn checked_blocks(page: &str) -> Vec<Block> {
    let mut blocks = Vec::new();
    for part in page.split("<!-- checked").skip(1) {
        let (mark, part) = part.split_once("-->\n").expect("a mark ends its line");
        let mut fences = part.split("```");
        let block = fences.nth(1).and_then(|block| block.split_once('\n'));
        let (language, text) = block.expect("a checked block is fenced and names its language");
        let answer = match mark.trim() {
            ": prints nothing" => "",
            _ => fences.nth(1).and_then(|block| block.split_once('\n')).map_or("", |(_, text)| text),
        };
        blocks.push(Block {
            language: language.to_owned(),
            text: text.to_owned(),
            answer: answer.to_owned(),
        });
    }
    blocks
}

/// What runs a block that was written to `file`, if anything here does.
fn command(language: &str, file: &Path) -> String {
    let file = file.display();
    match language {
        "python" => format!("{} {file}", crate::sdk::python().display()),
        "js" => format!("node {file}"),
        "go" => format!("go run {file}"),
        other => panic!("nothing runs {other}"),
    }
}

/// One shell script of all blocks, so that variables of one are known to the next.
fn script(blocks: &[Block], directory: &Path) -> String {
    let mut script = "set -eu\n".to_owned();
    for (at, block) in blocks.iter().enumerate() {
        if block.language == "sh" {
            let _ = writeln!(script, "{}", block.text);
        } else {
            let end = if block.language == "js" { "mjs" } else { block.language.as_str() };
            let file = directory.join(format!("block{at}.{end}"));
            fs::write(&file, &block.text).expect("a file can be written");
            let run = command(&block.language, &file);
            let name = run.split(' ').next().unwrap_or_default();
            let _ =
                writeln!(script, "if command -v {name} >/dev/null; then {run}; else echo '{MISSING}'; fi");
        }
        let _ = writeln!(script, "\necho; echo '{MARK}'");
    }
    script
}

/// What a page takes as given: a server, and a key made as the quick start says.
const QUICK_START: &str = "docs/quick-start.md";

fn check_page(name: &str, database: &Database, blocks_min: usize) {
    let server = Server::start_with(database, &[("OPEN_SPANNER_SERVE_WORKERS", "on")]);
    let directory = tempfile::tempdir().expect("a directory");
    let mut blocks = checked_blocks(&read(name));
    assert!(blocks.len() >= blocks_min, "{name} has {} checked blocks", blocks.len());
    if !["README.md", QUICK_START].contains(&name) {
        let mut before = checked_blocks(&read(QUICK_START));
        before.truncate(1);
        blocks.splice(0..0, before);
    }
    let script = script(&blocks, directory.path()).replace("http://127.0.0.1:18081", &server.url());
    let mut command = Command::new("bash");
    command.args(["-c", &script]).current_dir(directory.path());
    command.env("GRPC", server.grpc()).env("HOME", directory.path()).envs(database.settings());
    // what Go compiles of its own library is kept from run to run
    command.env("GOCACHE", concat!(env!("CARGO_TARGET_TMPDIR"), "/go"));
    let own = Path::new(env!("CARGO_BIN_EXE_open-spanner")).parent().expect("a directory");
    command.env("PATH", format!("{}:{}", own.display(), env("PATH").unwrap_or_default()));
    let run = program::finish(command, Duration::from_secs(120)).succeeded();
    let printed: Vec<&str> = run.stdout.split(MARK).collect();
    for (Block { language, text, answer }, printed) in blocks.iter().zip(printed) {
        if printed.trim() == MISSING {
            skip(name, &format!("there is no {language} on this machine"));
            continue;
        }
        assert!(
            matches(answer, printed),
            "{name}:\n{text}\nshould print\n{answer}\nbut prints\n{printed}\n{}",
            run.stderr
        );
    }
}

async fn readme_prints_what_it_says(database: Database) {
    check_page("README.md", &database, 4);
}

async fn quick_start_prints_what_it_says(database: Database) {
    check_page(QUICK_START, &database, 4);
}

async fn sending_events_prints_what_it_says(database: Database) {
    check_page("docs/sending-events.md", &database, 7);
}

async fn aggregations_print_what_they_say(database: Database) {
    check_page("docs/aggregations.md", &database, 5);
}

async fn quotas_print_what_they_say(database: Database) {
    check_page("docs/quotas.md", &database, 4);
}

async fn alerts_print_what_they_say(database: Database) {
    check_page("docs/alerts.md", &database, 5);
}

async fn time_zones_print_what_they_say(database: Database) {
    check_page("docs/time-zones.md", &database, 1);
}

async fn exports_print_what_they_say(database: Database) {
    check_page("docs/exports.md", &database, 4);
}

/// White space aside, the texts are the same, where `...` stands for anything.
fn matches(wanted: &str, printed: &str) -> bool {
    let squeeze = |text: &str| text.split_whitespace().collect::<String>();
    let (wanted, printed) = (squeeze(wanted), squeeze(printed));
    let parts: Vec<&str> = wanted.split("...").collect();
    let [first, middle @ .., last] = parts.as_slice() else { return wanted == printed };
    let Some(mut rest) = printed.strip_prefix(first) else { return false };
    for part in middle {
        let Some((_, after)) = rest.split_once(part) else { return false };
        rest = after;
    }
    rest.ends_with(last)
}

#[test]
fn dots_stand_for_anything() {
    for (wanted, printed, is_match) in [
        ("{\"id\": \"...\", \"n\": 1}", "{\"id\":\"abc\",\"n\":1}\n", true),
        ("{\"id\": \"...\", \"n\": 1}", "{\"id\":\"abc\",\"n\":12}", false),
        ("a...b...c", "a1b2c", true),
        ("a...b...c", "a1c2b", false),
        ("", "\n", true),
        ("", "x", false),
        ("same", "same", true),
        ("same", "other", false),
    ] {
        assert_eq!(matches(wanted, printed), is_match, "{wanted} {printed}");
    }
}

/// Every page below docs/, by its path from there.
fn pages() -> BTreeSet<String> {
    let mut found = BTreeSet::new();
    let docs = root().join("docs");
    let mut ahead = vec![docs.clone()];
    while let Some(directory) = ahead.pop() {
        for entry in fs::read_dir(directory).expect("a directory").flatten() {
            let path = entry.path();
            if path.is_dir() {
                ahead.push(path);
            } else if path.extension().is_some_and(|end| end == "md") {
                found.insert(path.strip_prefix(&docs).expect("below docs").display().to_string());
            }
        }
    }
    found.remove("SUMMARY.md");
    found
}

/// The targets of the links of a page, code left out.
fn links(text: &str) -> Vec<String> {
    let prose: String = text.split("```").step_by(2).collect();
    let spans: String = prose.split('`').step_by(2).collect();
    spans
        .split("](")
        .skip(1)
        .filter_map(|rest| rest.split_once(')'))
        .map(|(target, _)| target.to_owned())
        .collect()
}

/// The names by which headings are linked to.
fn anchors(text: &str) -> BTreeSet<String> {
    let prose: String = text.split("```").step_by(2).collect();
    let headings = prose.lines().filter(|line| line.starts_with('#'));
    headings.map(|line| anchor(line.trim_start_matches('#').trim())).collect()
}

fn anchor(heading: &str) -> String {
    let kept = heading
        .to_lowercase()
        .chars()
        .filter(|c| c.is_alphanumeric() || " -_".contains(*c))
        .collect::<String>();
    kept.replace(' ', "-")
}

#[test]
fn each_page_is_in_the_table_of_contents() {
    let listed: BTreeSet<String> = links(&read("docs/SUMMARY.md")).into_iter().collect();
    assert_eq!(listed, pages());
}

#[test]
fn links_lead_somewhere() {
    let mut wrong = Vec::new();
    let mut pages: Vec<PathBuf> = pages().iter().map(|page| Path::new("docs").join(page)).collect();
    pages.extend(
        ["README.md", "CONTRIBUTING.md", "SECURITY.md", "CHANGELOG.md", "docs/SUMMARY.md"].map(PathBuf::from),
    );
    for page in pages {
        let text = read(&page);
        for target in links(&text).iter().filter(|target| !target.contains("://")) {
            let (path, anchor) = target.split_once('#').unwrap_or((target, ""));
            let file = match path {
                "" => root().join(&page),
                path => root().join(page.parent().unwrap_or(Path::new(""))).join(path),
            };
            let is_there = file.exists()
                && (anchor.is_empty()
                    || fs::read_to_string(&file).is_ok_and(|text| anchors(&text).contains(anchor)));
            if !is_there {
                wrong.push(format!("{}: {target}", page.display()));
            }
        }
    }
    assert!(wrong.is_empty(), "links that lead nowhere:\n{}", wrong.join("\n"));
}

/// The arguments of each call of the program that stands in code, fenced or indented.
fn calls(text: &str) -> Vec<Vec<String>> {
    let mut is_fenced = false;
    let mut found = Vec::new();
    for line in text.lines() {
        if line.trim_start().starts_with("```") {
            is_fenced = !is_fenced;
        } else if is_fenced || line.starts_with("    ") {
            found.extend(line.split(['|', ';', '&', '(']).filter_map(call));
        }
    }
    found
}

fn call(part: &str) -> Option<Vec<String>> {
    let (before, rest) = part.rsplit_once("open-spanner ")?;
    let rest = rest.split([')', '`', '\\', '>', '#']).next()?;
    let words = rest.split_whitespace().map(|word| word.trim_matches(['\'', '"']).to_owned());
    let words: Vec<String> = words.collect();
    let is_program = before.is_empty() || before.ends_with([' ', '/']);
    // a container or a unit of that name is followed by an option, or by nothing
    let is_command = words.first().is_some_and(|word| word.starts_with(|c: char| c.is_ascii_lowercase()));
    (is_program && is_command).then_some(words)
}

#[test]
fn its_calls_are_those_of_the_program() {
    let directory = tempfile::tempdir().expect("a directory");
    let mut pages: Vec<PathBuf> = pages().iter().map(|page| Path::new("docs").join(page)).collect();
    pages.extend(["README.md", "SECURITY.md"].map(PathBuf::from));
    let mut count = 0;
    for page in pages {
        for call in calls(&read(&page)) {
            // what stands before it is read before help is printed
            let arguments: Vec<&str> = call.iter().map(String::as_str).chain(["-h"]).collect();
            let run = program::run(&arguments, &[], directory.path());
            assert_eq!(run.code, Some(0), "{}: {call:?}: {run:#?}", page.display());
            count += 1;
        }
    }
    assert!(count > 30, "{count} calls were found");
}

/// The codes that the source can answer: those of the table of codes, and parameters with a code of their own.
fn codes_in_source() -> BTreeSet<String> {
    let mut codes = BTreeSet::new();
    let mut ahead = vec![root().join("src")];
    while let Some(path) = ahead.pop() {
        if path.is_dir() {
            ahead.extend(fs::read_dir(&path).expect("a directory").flatten().map(|entry| entry.path()));
            continue;
        }
        let text = fs::read_to_string(&path).unwrap_or_default();
        let quoted: Vec<&str> = text.split('"').skip(1).step_by(1).collect();
        codes.extend(quoted.iter().filter(|word| is_parameter_code(word)).map(|word| (*word).to_owned()));
    }
    let table = read("src/error.rs");
    let names = table.split("fn as_str").nth(1).and_then(|rest| rest.split("fn http_status").next());
    let names = names.expect("the table of codes").split("=> \"").skip(1);
    codes.extend(names.filter_map(|rest| rest.split('"').next()).map(str::to_owned));
    codes
}

fn is_parameter_code(word: &str) -> bool {
    word.strip_prefix("invalid_")
        .is_some_and(|rest| !rest.is_empty() && rest.chars().all(|c| c.is_ascii_lowercase() || c == '_'))
        || word == "query_too_large"
}

#[test]
fn each_error_code_is_explained() {
    let page = read("docs/errors.md");
    let table = page.split("## gRPC").next().unwrap_or_default();
    let first_cells =
        table.lines().filter(|line| line.starts_with("| `")).filter_map(|line| line.split('|').nth(1));
    let explained: BTreeSet<String> = first_cells
        .flat_map(|cell| cell.split('`').skip(1).step_by(2).map(str::to_owned).collect::<Vec<_>>())
        .collect();
    let codes = codes_in_source();
    assert!(codes.len() > 20, "{codes:?}");
    let missing: Vec<_> = codes.difference(&explained).collect();
    let gone: Vec<_> = explained.difference(&codes).collect();
    assert!(
        missing.is_empty() && gone.is_empty(),
        "docs/errors.md lacks {missing:?} and explains {gone:?}, which nobody says"
    );
}
