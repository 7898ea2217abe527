//! Files of any make, by a mapping: which column is what, and what the key is made of.

use std::path::Path;

use serde_json::json;

use super::{counts, importing, killed, run};
use crate::support::{Database, Server, Workspace, on_both_databases};

on_both_databases!(
    a_table_comes_in_by_a_mapping,
    lines_of_json_come_in_by_a_mapping,
    a_mapping_that_does_not_fit_stores_nothing,
    a_killed_import_goes_on,
    long_events_are_stored_before_they_fill_the_memory,
);

const MAPPING: &str = r#"
key = "{order}-{position}"
time_zone = "Europe/Berlin"
time_format = "%d.%m.%Y %H:%M"
delimiter = ";"
decimal_comma = true
[columns]
subject = "customer"
quantity = "amount"
timestamp = "booked at"
metadata = { region = "area", seats = "seats" }
[constants]
meter = "calls"
quantity = 1
metadata = { origin = "billing" }
"#;

const TABLE: &str = "order;position;customer;amount;booked at;area;seats
7;1;acme;0,25;01.07.2026 00:30;eu;5
7;2;acme;0,5;01.07.2026 12:00;us;6
7;3;acme;;01.07.2026 12:00;us;6
7;1;acme;0,25;01.07.2026 00:30;eu;5
;4;acme;1;01.07.2026 12:00;eu;5
8;1;acme;1;29.03.2026 02:30;eu;5
8;2;acme;1.000,5;01.07.2026 12:00;eu;5
8;3;acme;1;01.07.2026 12:00;eu;many
8;4;acme;one;01.07.2026 12:00;eu;5
8;5;acme;1;01.07.2026 12:00;eu;5;more
8;6;acme;1;01.07.2026 12:00;eu
";

/// A workspace whose meter `calls` sums by region and seats; the server is gone again.
async fn prepared(ours: &Database) -> (Workspace, tempfile::TempDir) {
    let mut server = Server::start(ours);
    let workspace = Workspace::create(&server.client()).await;
    let meter = json!({"name": "calls", "unit": "unit", "aggregation": "sum", "dimensions": [
        {"name": "region", "type": "string", "required": false}, {"name": "seats", "type": "number", "required": false}]});
    workspace.session.post("/v1/meters", &meter).await.expect(201);
    server.terminate();
    (workspace, tempfile::tempdir().expect("a directory"))
}

fn write(directory: &Path, name: &str, text: &str) {
    std::fs::write(directory.join(name), text).expect("a file");
}

async fn a_table_comes_in_by_a_mapping(ours: Database) {
    let (workspace, directory) = prepared(&ours).await;
    let directory = directory.path();
    write(directory, "mapping.toml", MAPPING);
    write(directory, "june.csv", TABLE);
    let arguments = ["csv", "june.csv", "--map", "mapping.toml", "--rejected", "left-out.jsonl"];
    let dry = run(&ours, &[&arguments[..], &["--dry-run"]].concat(), directory).succeeded();
    assert_eq!((counts(&dry, "events"), ours.count("events")), ([3, 1, 7], 0), "{}", dry.stdout);
    let first = run(&ours, &arguments, directory).succeeded();
    assert_eq!(counts(&first, "events"), [3, 1, 7], "{}", first.stdout);
    let second = run(&ours, &arguments, directory).succeeded();
    assert_eq!(counts(&second, "events"), [0, 4, 7], "{}", second.stdout);
    let listed = std::fs::read_to_string(directory.join("left-out.jsonl")).expect("the list");
    for (line, word) in [
        (6, "order"),
        (7, "forward"),
        (8, "comma"),
        (9, "seats"),
        (10, "quantity"),
        (11, "has 8 cells, the head has 7"),
        (12, "has 6 cells, the head has 7"),
    ] {
        let place = format!("\"june.csv:{line}\"");
        let found = listed.lines().find(|listed| listed.contains(&place));
        assert!(found.is_some_and(|found| found.contains(word)), "{line}: {listed}");
    }
    let server = Server::start(&ours);
    let key = workspace.at(&server.url());
    // half an hour after midnight in Berlin is the day before
    let path = "/v1/usages?meter=calls&bucket_size=day&from=2026-06-30T00:00:00Z&to=2026-07-02T00:00:00Z&group_by=region";
    let rows = key.get(path).await.json(200);
    let of = |at: usize| (rows[at]["bucket_start"].to_string(), rows[at]["quantity"].to_string());
    assert_eq!(
        [of(0), of(1)],
        [
            ("\"2026-06-30T00:00:00Z\"".to_owned(), "0.25".to_owned()),
            ("\"2026-07-01T00:00:00Z\"".to_owned(), "1.5".to_owned())
        ]
    );
    let events = key.get("/v1/usageevents?meter=calls").await.expect(200).text;
    assert!(events.contains(r#""seats":5"#) && events.contains("billing"), "{events}");
}

async fn lines_of_json_come_in_by_a_mapping(ours: Database) {
    let (workspace, directory) = prepared(&ours).await;
    let directory = directory.path();
    let mapping = "key = \"{@file}:{@line}\"\ntime_format = \"milliseconds\"\n[columns]\nmeter = \"what\"
        subject = \"who.id\"\nquantity = \"n\"\ntimestamp = \"at\"\nmetadata.region = \"data.region\"";
    write(directory, "mapping.toml", mapping);
    let lines = [
        r#"{"what":"calls","who":{"id":"acme"},"n":0.1,"at":1781524800000,"data":{"region":"eu"}}"#,
        r#"{"what":"calls","who":{"id":"acme"},"n":"0.2","at":1781524800000}"#,
        "",
        r#"{"what":"unknown","who":{"id":"acme"},"n":1,"at":1781524800000}"#,
        "no JSON",
        r#"{"what":"calls","who":{"id":"acme"},"n":1e400,"at":1781524800000}"#,
    ];
    write(directory, "june.ndjson", &format!("\u{feff}{}", lines.join("\n")));
    // a file is what it holds: not the way to it, and not its name
    std::fs::create_dir(directory.join("other")).expect("a directory");
    write(directory, "other/june.ndjson", &lines[0].replace("0.1", "0.4"));
    for (file, expected) in
        [("june.ndjson", [2, 0, 3]), ("./june.ndjson", [0, 2, 3]), ("other/june.ndjson", [1, 0, 0])]
    {
        let run = run(&ours, &["ndjson", file, "--map", "mapping.toml"], directory).succeeded();
        assert_eq!(counts(&run, "events"), expected, "{file}: {}", run.stdout);
    }
    let pipe = run(&ours, &["ndjson", "/dev/null", "--map", "mapping.toml"], directory);
    assert!(pipe.code == Some(2) && pipe.stderr.contains("{@file}"), "{pipe:#?}");
    let server = Server::start(&ours);
    assert_eq!(workspace.at(&server.url()).total("calls").await, "0.7");
}

async fn a_mapping_that_does_not_fit_stores_nothing(ours: Database) {
    let (_, directory) = prepared(&ours).await;
    let directory = directory.path();
    write(directory, "june.csv", TABLE);
    for (mapping, word) in [
        (MAPPING.replace("\"customer\"", "\"client\""), "\"client\""),
        (MAPPING.replace("meter = \"calls\"", ""), "meter has neither"),
        (MAPPING.replace("key = ", "keys = "), "key"),
        (MAPPING.replace("{order}-{position}", "always"), "same for every event"),
        (MAPPING.replace("{order}", "{@row}"), "@row"),
        (MAPPING.replace("{order}", "{order"), "brace"),
        (MAPPING.replace("Europe/Berlin", "Europe/Atlantis"), "Atlantis"),
        (MAPPING.replace("delimiter = \";\"", "delimiter = '\"'"), "delimiter"),
        (MAPPING.replace("quantity = 1", "quantity = 0.1"), "written as a text"),
        (MAPPING.replace("%d.%m.%Y %H:%M", "days"), "time_format"),
        ("not TOML".to_owned(), "mapping.toml"),
    ] {
        write(directory, "mapping.toml", &mapping);
        let run = run(&ours, &["csv", "june.csv", "--map", "mapping.toml"], directory);
        assert!(run.code == Some(2) && run.stderr.contains(word), "{word}: {run:#?}");
    }
    write(directory, "mapping.toml", MAPPING);
    write(directory, "june.csv", &TABLE.replace("area;", "amount;"));
    let twice = run(&ours, &["csv", "june.csv", "--map", "mapping.toml"], directory);
    assert!(twice.code == Some(2) && twice.stderr.contains("several columns \"amount\""), "{twice:#?}");
    // the second file is looked at before the first is begun
    write(directory, "june.csv", TABLE);
    for (second, word) in [("july.csv", "july.csv"), ("mapping.toml", "no column")] {
        let two = run(&ours, &["csv", "june.csv", second, "--map", "mapping.toml"], directory);
        assert!(two.code == Some(2) && two.stderr.contains(word), "{two:#?}");
    }
    // a quote without an end takes everything behind it for one cell
    write(
        directory,
        "june.csv",
        &format!("{TABLE}\"{}", "9;9;acme;1;01.07.2026 12:00;eu;5\n".repeat(600_000)),
    );
    let endless = run(&ours, &["csv", "june.csv", "--map", "mapping.toml"], directory);
    assert!(endless.code == Some(1) && endless.stderr.contains("quoted cell"), "{endless:#?}");
    assert_eq!(ours.count("events"), 0);
}

async fn a_killed_import_goes_on(ours: Database) {
    let (workspace, directory) = prepared(&ours).await;
    let directory = directory.path();
    write(directory, "mapping.toml", MAPPING);
    let mut table = "order;position;customer;amount;booked at;area;seats\n".to_owned();
    for at in 0..20_000 {
        table.push_str(&format!("{at};1;s-{};0,1;{:02}.06.2026 12:00;eu;5\n", at % 40, 1 + at % 28));
    }
    write(directory, "june.csv", &table);
    let arguments = ["csv", "june.csv", "--map", "mapping.toml"];
    for more_than in [0, 4_000] {
        killed(importing(&ours, &arguments, directory), &ours, more_than).await;
    }
    let run = run(&ours, &arguments, directory).succeeded();
    let [new, known, left_out] = counts(&run, "events");
    assert!(new + known == 20_000 && known > 4_000 && left_out == 0, "{}", run.stdout);
    let server = Server::start(&ours);
    assert_eq!(workspace.at(&server.url()).total("calls").await, "2000");
}

/// Far fewer than usual are held at a time: a file that cannot be read to its end shows how many were stored.
async fn long_events_are_stored_before_they_fill_the_memory(ours: Database) {
    let (_, directory) = prepared(&ours).await;
    let directory = directory.path();
    write(directory, "mapping.toml", &MAPPING.replace("seats = \"seats\"", "notes = \"notes\""));
    let mut table = "order;position;customer;amount;booked at;area;notes\n".to_owned();
    let notes = "x".repeat(60_000);
    for at in 0..600 {
        table.push_str(&format!("{at};1;acme;0,1;01.06.2026 12:00;eu;{notes}\n"));
    }
    table.push('"');
    table.push_str(&"x".repeat(17 << 20));
    write(directory, "june.csv", &table);
    let run = run(&ours, &["csv", "june.csv", "--map", "mapping.toml"], directory);
    assert!(run.code == Some(1) && run.stderr.contains("quoted cell"), "{run:#?}");
    let stored = ours.count("events");
    assert!((500..600).contains(&stored), "{stored}");
}
