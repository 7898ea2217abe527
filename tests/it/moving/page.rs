//! The page about moving, followed literally: its commands in their order, in a shell.

use std::path::Path;
use std::time::Duration;

use super::{KEY, WORKSPACE, months, theirs};
use crate::support::program::{self, Run};
use crate::support::{Database, Server, on_both_databases};

on_both_databases!(the_page_can_be_followed);

/// What a block of the page does, in a shell that finds the program.
fn shell(script: &str, settings: &[(&str, &str)], directory: &Path) -> Run {
    let program = Path::new(env!("CARGO_BIN_EXE_open-spanner")).parent().expect("a directory");
    let mut command = std::process::Command::new("sh");
    command.args(["-euc", script]).env_clear().envs(settings.iter().copied()).current_dir(directory);
    command.env("PATH", format!("{}:{}", program.display(), std::env::var("PATH").expect("a path")));
    program::finish(command, Duration::from_secs(120))
}

/// The old server writes on until it is stopped before the third command.
async fn the_page_can_be_followed(ours: Database) {
    let [theirs, _] = theirs();
    let Database::Sqlite { path, .. } = &theirs else { panic!("the first is SQLite") };
    let directory = path.parent().expect("a directory").to_path_buf();
    std::fs::rename(path, directory.join("old.db")).expect("another name");
    std::os::unix::fs::symlink(directory.join("old.db"), path).expect("its old name leads there");
    let page = include_str!("../../../docs/moving.md").split("## What comes over").next().expect("a page");
    let blocks: Vec<String> = page
        .split("```sh\n")
        .skip(1)
        .map(|block| {
            block.split("```").next().expect("a block").lines().map(str::trim).collect::<Vec<_>>().join("\n")
        })
        .collect();
    assert_eq!(blocks.len(), 6, "{blocks:?}");
    let settings = ours.settings();
    let settings: Vec<(&str, &str)> = settings.iter().map(|(name, value)| (*name, value.as_str())).collect();
    for (at, block) in blocks[..4].iter().enumerate() {
        if at == 2 {
            theirs.execute(&format!(
                "INSERT INTO usage_events VALUES ('88888888-0000-4000-8000-000000000004', '{WORKSPACE}', NULL, 'acme', 'calls', 0.7,
                     '2026-01-05T00:00:00Z', '2026-03-01T00:00:00Z', '{{}}')"
            ));
            // not all is there before the last run
            let early = shell(&blocks[3], &settings, &directory);
            assert_eq!(early.code, Some(1), "{early:#?}");
        }
        let run = shell(block, &settings, &directory).succeeded();
        assert!(
            run.stdout.contains("equal on both sides") && !run.stdout.contains("differs"),
            "{}",
            run.stdout
        );
        assert_eq!(run.stdout.contains("nothing is missing here"), at == 3, "{}", run.stdout);
        assert_eq!(run.stdout.contains("nothing was stored"), at == 0, "{}", run.stdout);
        let listed = std::fs::read_to_string(directory.join("import-rejected.jsonl")).expect("the list");
        assert!(listed.contains("99999999-0000-4000-8000-000000000001"), "{listed}");
    }
    assert_eq!(blocks[4].trim(), "open-spanner serve");
    let server = Server::start(&ours);
    assert_eq!(months(&server.client().with_key(KEY)).await[0], ("2026-01".into(), "1".into()));
    shell(&blocks[5], &settings, &directory).succeeded();
    let left = |name: &str| directory.join(name).exists();
    assert!(!left("old.db") && !left("old.db-wal") && left("old.db.gz"));
    assert_eq!(months(&server.client().with_key(KEY)).await[0], ("2026-01".into(), "1".into()));
}
