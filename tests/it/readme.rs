//! The README's commands do what it says: every fenced block after a line `<!-- checked -->` is run in one shell,
//! and what it prints must be the block that follows it.

use std::process::Command;
use std::time::Duration;

use crate::support::{Database, Server, on_both_databases, program};

on_both_databases!(quick_start_prints_what_it_says);

const README: &str = include_str!("../../README.md");
/// Printed between the outputs of two blocks.
const MARK: &str = "----8<----";

/// The checked `sh` blocks, each with the block of its answer.
fn checked_blocks() -> Vec<(String, String)> {
    let mut blocks = Vec::new();
    for part in README.split("<!-- checked -->\n").skip(1) {
        let mut fences = part.split("```");
        let commands = fences.nth(1).and_then(|block| block.strip_prefix("sh\n"));
        let commands = commands.expect("a checked block is a fenced sh block").to_string();
        let answer = fences.nth(1).and_then(|block| block.split_once('\n')).map_or("", |(_, text)| text);
        blocks.push((commands, answer.to_string()));
    }
    blocks
}

async fn quick_start_prints_what_it_says(database: Database) {
    let blocks = checked_blocks();
    assert!(blocks.len() == 4, "the README has a quick start: {blocks:#?}");
    let server = Server::start(&database);
    let mut script = "set -eu\n".to_string();
    for (commands, _) in &blocks {
        script += &commands.replace("http://127.0.0.1:18081", &server.url());
        script += &format!("\necho; echo '{MARK}'\n");
    }
    let directory = tempfile::tempdir().expect("a directory");
    let mut command = Command::new("sh");
    command.args(["-c", &script]).current_dir(directory.path()).envs(database.settings());
    let program = std::path::Path::new(env!("CARGO_BIN_EXE_open-spanner")).parent().expect("a directory");
    let path = crate::support::env("PATH").unwrap_or_default();
    command.env("PATH", format!("{}:{path}", program.display()));
    let run = program::finish(command, Duration::from_secs(60)).succeeded();
    let printed: Vec<&str> = run.stdout.split(MARK).collect();
    for ((commands, wanted), printed) in blocks.iter().zip(printed) {
        assert!(matches(wanted, printed), "{commands}\nshould print\n{wanted}\nbut prints\n{printed}");
    }
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
