//! A shell as a client: events of files are stored exactly once, also when it is cut off; what fails is told line by
//! line; digits stay.

use std::path::Path;

use serde_json::{Value, json};

use crate::support::program::{self, Run};
use crate::support::{Database, Server, Workspace, on_both_databases};

on_both_databases!(files_are_imported_exactly_once, lines_that_fail_are_told, usage_is_printed);

fn with(server: &Server, workspace: &Workspace, folder: &Path, arguments: &[&str]) -> Run {
    let bearer = workspace.header("authorization");
    let key = bearer.trim_start_matches("Bearer ").to_owned();
    let settings = [("OPEN_SPANNER_URL", server.url()), ("OPEN_SPANNER_API_KEY", key)];
    let settings: Vec<(&str, &str)> = settings.iter().map(|(name, value)| (*name, value.as_str())).collect();
    program::run(arguments, &settings, folder)
}

fn json(run: &Run) -> Value {
    serde_json::from_str(&run.stdout).unwrap_or_else(|error| panic!("{error}: {run:#?}"))
}

async fn files_are_imported_exactly_once(database: Database) {
    let server = Server::start(&database);
    let workspace = server.workspace().await;
    workspace.meter("calls", "sum").await;
    let folder = tempfile::tempdir().expect("a directory");
    let run = |arguments: &[&str]| with(&server, &workspace, folder.path(), arguments);
    let lines: Vec<String> = (0..1_234)
        .map(|number| {
            format!(r#"{{"subject":"s{}","quantity":0.001,"timestamp":"2026-06-15T12:00:00Z"}}"#, number % 9)
        })
        .collect();
    std::fs::write(folder.path().join("june.ndjson"), lines.join("\n")).expect("written");
    let import = ["events", "import", "june.ndjson", "--meter", "calls", "--json"];
    let tried = run(&[&import[..], &["--dry-run"]].concat()).succeeded();
    assert_eq!((&json(&tried)["accepted"], database.count("events")), (&json!(1_234), 0));
    let done = run(&import).succeeded();
    assert_eq!((&json(&done)["accepted"], &json(&done)["failed"]), (&json!(1_234), &json!(0)));
    assert_eq!(workspace.total("calls").await, "1.234");
    assert!(!folder.path().join("june.ndjson.progress.json").exists(), "it is done");
    let again = run(&import).succeeded();
    assert_eq!((&json(&again)["accepted"], &json(&again)["duplicates"]), (&json!(0), &json!(1_234)));

    // cut off in the middle of another file: what was noted is not sent again, the rest is
    let csv: String = (0..10).map(|number| format!("s{number},1,calls\n")).collect();
    std::fs::write(folder.path().join("more.csv"), format!("subject,quantity,meter\n{csv}"))
        .expect("written");
    let first = run(&["events", "import", "more.csv", "--batch", "4", "--json"]).succeeded();
    assert_eq!(json(&first)["accepted"], 10);
    let sha256 = sha256(&folder.path().join("more.csv"));
    let noted = json!({"sha256": sha256, "url": server.url(), "lines": 9, "accepted": 8, "duplicates": 0, "failed": 0});
    std::fs::write(folder.path().join("more.csv.progress.json"), noted.to_string()).expect("written");
    let rest = run(&["events", "import", "more.csv", "--json"]).succeeded();
    assert_eq!((&json(&rest)["accepted"], &json(&rest)["duplicates"]), (&json!(8), &json!(2)));
    assert_eq!(database.count("events"), 1_244);
}

fn sha256(file: &Path) -> String {
    let bytes = std::fs::read(file).expect("there");
    let digest = ring::digest::digest(&ring::digest::SHA256, &bytes);
    digest.as_ref().iter().map(|byte| format!("{byte:02x}")).collect()
}

async fn lines_that_fail_are_told(database: Database) {
    let server = Server::start(&database);
    let workspace = server.workspace().await;
    workspace.meter("calls", "sum").await;
    let folder = tempfile::tempdir().expect("a directory");
    let run = |arguments: &[&str]| with(&server, &workspace, folder.path(), arguments);
    let text = "{\"meter\":\"calls\",\"subject\":\"s\",\"quantity\":1}\n\
                nonsense\n\
                {\"meter\":\"ghost\",\"subject\":\"s\",\"quantity\":1}\n\
                \n\
                {\"meter\":\"calls\",\"subject\":7,\"quantity\":1}\n\
                {\"meter\":\"calls\",\"subject\":\"s\",\"quantity\":-1}\n\
                {\"meter\":\"calls\",\"subject\":\"s\",\"quantity\":2}\n";
    std::fs::write(folder.path().join("odd.ndjson"), text).expect("written");
    let done = run(&["events", "import", "odd.ndjson", "--json"]);
    assert_eq!(done.code, Some(3), "{done:#?}");
    assert_eq!((&json(&done)["accepted"], &json(&done)["failed"]), (&json!(2), &json!(4)));
    let errors = std::fs::read_to_string(folder.path().join("odd.ndjson.errors.ndjson")).expect("written");
    let mut numbers: Vec<u64> = errors
        .lines()
        .map(|line| serde_json::from_str::<Value>(line).expect("JSON")["line"].as_u64().expect("a number"))
        .collect();
    numbers.sort_unstable();
    assert_eq!(numbers, [2, 3, 5, 6], "{errors}");
    assert!(errors.contains("not_found") && errors.contains("nonsense"), "{errors}");

    // what no line can help
    let missing = run(&["events", "import", "nosuch.csv"]);
    assert_eq!(missing.code, Some(1), "{missing:#?}");
    std::fs::write(folder.path().join("bad.csv"), "a,b\n1,2\n").expect("written");
    assert_eq!(run(&["events", "import", "bad.csv"]).code, Some(2));
    let other = [("OPEN_SPANNER_URL", server.url()), ("OPEN_SPANNER_API_KEY", "osp_sk_wrong".to_owned())];
    let other: Vec<(&str, &str)> = other.iter().map(|(name, value)| (*name, value.as_str())).collect();
    let refused = program::run(&["events", "import", "odd.ndjson"], &other, folder.path());
    assert!(refused.code == Some(1) && refused.stderr.contains("unauthorized"), "{refused:#?}");
    let keyless = program::run(&["usage", "query", "calls"], &[], folder.path());
    assert!(keyless.code == Some(2) && keyless.stderr.contains("OPEN_SPANNER_API_KEY"), "{keyless:#?}");
}

async fn usage_is_printed(database: Database) {
    let server = Server::start(&database);
    let workspace = server.workspace().await;
    workspace.meter("calls", "sum").await;
    let folder = tempfile::tempdir().expect("a directory");
    let run = |arguments: &[&str]| with(&server, &workspace, folder.path(), arguments).succeeded().stdout;
    let digits = "0.1000000000000000000000000001";
    let text = format!(
        "{{\"meter\":\"calls\",\"subject\":\"s\",\"quantity\":{digits},\"timestamp\":\"2026-06-15T12:00:00Z\"}}\n"
    );
    std::fs::write(folder.path().join("one.ndjson"), text).expect("written");
    run(&["events", "import", "one.ndjson"]);
    let window = ["--from", "2026-06-01T00:00:00Z", "--to", "2026-07-01T00:00:00Z"];
    let query = ["usage", "query", "calls", "--bucket", "month", "--group-by", "subject"];
    let printed = run(&[&query[..], &window].concat());
    assert!(printed.contains(digits) && printed.contains("subject=s"), "{printed}");
    let rows = run(&[&query[..], &window, &["--json"]].concat());
    assert!(rows.contains(&format!("\"quantity\":{digits}")), "{rows}");
    let tail = run(&["events", "tail", "--all", "--count", "1"]);
    assert!(tail.contains(digits) && tail.ends_with("}\n"), "{tail}");
}
