//! Raw events: pages that hold still while others write, cursors, and the bytes of CSV downloads.

use std::collections::BTreeSet;

use serde_json::{Value, json};

use crate::support::{Client, Database, Server, on_both_databases};

on_both_databases!(
    pages_hold_still_under_writes,
    cursors_are_checked,
    the_largest_page_is_not_the_last,
    csv_is_byte_for_byte,
    large_downloads_come_whole,
    keys_with_meters_see_only_those
);

fn at(second: usize) -> String {
    format!("2026-06-01T{:02}:{:02}:{:02}Z", second / 3600, second / 60 % 60, second % 60)
}

async fn record(client: &Client, meter: &str, seconds: impl Iterator<Item = usize>) {
    let event = |second| json!({"meter": meter, "subject": "s", "quantity": 1, "timestamp": at(second)});
    let events: Vec<Value> = seconds.map(event).collect();
    for events in events.chunks(1000) {
        client.post("/v1/usages/bulk", &json!(events)).await.expect(201);
    }
}

/// All pages of a list, with something done between two of them.
async fn pages(client: &Client, query: &str, between: impl AsyncFn(usize)) -> Vec<Vec<Value>> {
    let (mut pages, mut cursor) = (Vec::new(), String::new());
    loop {
        let answer = client.get(&format!("/v1/usageevents?{query}&cursor={cursor}")).await.json(200);
        pages.push(answer["items"].as_array().expect("items").clone());
        match answer["next_cursor"].as_str() {
            Some(next) => cursor = next.to_string(),
            None => return pages,
        }
        between(pages.len()).await;
    }
}

async fn pages_hold_still_under_writes(database: Database) {
    let server = Server::start(&database);
    let workspace = server.workspace().await;
    for meter in ["a", "b", "c"] {
        workspace.meter(meter, "sum").await;
        // three of each second: the id settles their order
        record(&workspace, meter, (1000..1050).flat_map(|second| [second; 3])).await;
    }
    let before = workspace.get("/v1/usageevents?limit=1000").await.json(200);
    let before: Vec<Value> = before["items"].as_array().expect("items").clone();
    assert_eq!(before.len(), 450);
    for query in ["limit=7", "limit=7&subject=s", "limit=7&meter=b"] {
        let write = async |page: usize| {
            // before, inside and after what was read so far
            record(&workspace, "b", [10 + page, 1020, 5000 + page].into_iter()).await;
        };
        let pages = pages(&workspace, query, write).await;
        let read: Vec<&Value> = pages.iter().flatten().collect();
        let ids: BTreeSet<String> = read.iter().map(|event| event["id"].to_string()).collect();
        assert_eq!(ids.len(), read.len(), "{query}: an event came twice");
        let known: Vec<&Value> = read.into_iter().filter(|event| before.contains(event)).collect();
        let wanted: Vec<&Value> =
            before.iter().filter(|event| !query.contains("meter=b") || event["meter"] == "b").collect();
        assert_eq!(known, wanted, "{query}: an event was lost or moved");
        assert!(pages.split_last().expect("a page").1.iter().all(|page| page.len() == 7));
    }
}

async fn cursors_are_checked(database: Database) {
    use base64::Engine;
    let server = Server::start(&database);
    let workspace = server.workspace().await;
    workspace.meter("m", "sum").await;
    record(&workspace, "m", 0..3).await;
    let cursor = |text: &str| base64::engine::general_purpose::URL_SAFE_NO_PAD.encode(text);
    for (text, status) in [
        ("{}", 200),
        (r#"{"time":"2026-06-01T00:00:01Z"}"#, 200),
        (r#"{"id":"0198c0de-0000-7000-8000-000000000000"}"#, 400),
        (r#"{"time":"2026-06-01T00:00:01Z","id":"nope"}"#, 400),
        (r#"{"time":"yesterday","id":"0198c0de-0000-7000-8000-000000000000"}"#, 400),
        (r#"{"time":5}"#, 400),
        ("[]", 400),
    ] {
        let answer = workspace.get(&format!("/v1/usageevents?cursor={}", cursor(text))).await;
        assert_eq!(answer.status, status, "{text}: {}", answer.text);
        let body = json!({"cursor": cursor(text)});
        assert_eq!(workspace.post("/v1/usageevents/search", &body).await.status, status, "{text}");
    }
    let exact =
        cursor(r#"{"time":"2026-06-01T00:00:01.000001Z","id":"00000000-0000-0000-0000-000000000000"}"#);
    let rest = workspace.get(&format!("/v1/usageevents?cursor={exact}")).await.json(200);
    assert_eq!(rest["items"].as_array().map(Vec::len), Some(2));
}

async fn the_largest_page_is_not_the_last(database: Database) {
    let server = Server::start(&database);
    let workspace = server.workspace().await;
    workspace.meter("m", "sum").await;
    record(&workspace, "m", 0..1500).await;
    let pages = pages(&workspace, "limit=5000", async |_| ()).await;
    assert_eq!(pages.iter().map(Vec::len).collect::<Vec<_>>(), [1000, 500]);
}

async fn csv_is_byte_for_byte(database: Database) {
    let server = Server::start(&database);
    let workspace = server.workspace().await;
    let dimensions = json!([{"name": "d", "type": "string", "required": false}]);
    let meter = json!({"name": "m", "unit": "GB, used", "dimensions": dimensions});
    workspace.post("/v1/meters", &meter).await.expect(201);
    let values = ["plain", "a,b", "say \"hi\"", " lead", "two\nlines", "\\.", "=1+1", "<&>", ""];
    for (n, value) in values.iter().enumerate() {
        let quantity = ["7", "0.5", "1e21", "0.0000001"][n % 4];
        let event = format!(
            r#"{{"meter":"m","subject":"s{n}","quantity":{quantity},"timestamp":"{}","metadata":{{"z":{n}.0,"d":{}}},"idempotency_key":"@k{n}"}}"#,
            at(n),
            json!(value)
        );
        workspace.post_text("/v1/usages", event).await.expect(201);
    }
    let window = "meter=m&from=2026-06-01T00:00:00Z&to=2026-07-01T00:00:00Z";
    let query = format!("{window}&bucket_size=month&group_by=%20d,subject,d");
    let query = format!("{query}&formula_guard=false");
    let answer = workspace.get(&format!("/v1/usages/export?{query}")).await.expect(200);
    let row = |subject: &str, quantity: &str, cell: &str| {
        format!("2026-06-01T00:00:00Z,{subject},m,month,sum,\"GB, used\",{quantity},{cell}\n")
    };
    let rows = [
        row("s8", "7", ""),
        row("s3", "0.0000001", "\" lead\""),
        row("s7", "0.0000001", "<&>"),
        row("s6", "1000000000000000000000", "=1+1"),
        row("s5", "0.5", "\"\\.\""),
        row("s1", "0.5", "\"a,b\""),
        row("s0", "7", "plain"),
        row("s2", "1000000000000000000000", "\"say \"\"hi\"\"\""),
        row("s4", "7", "\"two\nlines\""),
    ];
    let header = "bucket_start,subject,meter,bucket_size,aggregation,unit,quantity,d\n";
    assert_eq!(answer.text, format!("{header}{}", rows.concat()));
    assert_eq!(answer.header("content-type"), "text/csv; charset=utf-8");
    assert_eq!(answer.header("content-disposition"), "attachment; filename=\"usage-buckets.csv\"");

    let query = query.replace("&formula_guard=false", "");
    for query in [query.clone(), format!("{query}&formula_guard=true")] {
        let guarded = workspace.get(&format!("/v1/usages/export?{query}")).await.expect(200);
        assert_eq!(guarded.text, answer.text.replace("=1+1", "'=1+1"));
    }
    workspace
        .get(&format!("/v1/usages/export?{query}&formula_guard=x"))
        .await
        .error(400, "invalid_formula_guard");

    let event = workspace.get("/v1/usageevents?subject=s7").await.json(200)["items"][0].clone();
    let answer = workspace.get("/v1/usageevents/export?subject=s7&formula_guard=0").await.expect(200);
    let (received, id) =
        (event["received_at"].as_str().expect("a time"), event["id"].as_str().expect("an id"));
    let metadata = r#""{""d"":""\u003c\u0026\u003e"",""z"":7}""#;
    let wanted = format!(
        "timestamp,received_at,subject,meter,quantity,metadata,id,idempotency_key\n\
         2026-06-01T00:00:07Z,{received},s7,m,0.0000001,{metadata},{id},@k7\n"
    );
    assert_eq!(answer.text, wanted);
    assert_eq!(answer.header("content-disposition"), "attachment; filename=\"usage-events.csv\"");
    for body in [json!({"subject": "s7"}), json!({"subject": "s7", "formula_guard": true})] {
        let guarded = workspace.post("/v1/usageevents/export", &body).await.expect(200);
        assert_eq!(guarded.text, wanted.replace("@k7", "'@k7"));
    }
    for limit in [-1, 1001] {
        let body = json!({"meter": "m", "limit": limit});
        workspace.post("/v1/usageevents/export", &body).await.error(400, "invalid_limit");
    }
    workspace.get("/v1/usageevents/export?limit=1001").await.error(400, "invalid_limit");
}

async fn large_downloads_come_whole(database: Database) {
    let server = Server::start(&database);
    let workspace = server.workspace().await;
    workspace.meter("m", "sum").await;
    record(&workspace, "m", 0..1000).await;
    for (limit, lines) in [(1000, 1001), (400, 401), (399, 400), (401, 402)] {
        let answer = workspace.get(&format!("/v1/usageevents/export?limit={limit}")).await.expect(200);
        let found: Vec<&str> = answer.text.lines().collect();
        assert_eq!(found.len(), lines);
        let newest_first: Vec<String> = (0..1000).rev().take(limit).map(at).collect();
        let times: Vec<&str> = found[1..].iter().filter_map(|line| line.split(',').next()).collect();
        assert_eq!(times, newest_first);
    }
}

async fn keys_with_meters_see_only_those(database: Database) {
    let server = Server::start(&database);
    let workspace = server.workspace().await;
    for meter in ["mine", "theirs"] {
        workspace.meter(meter, "sum").await;
        record(&workspace, meter, 0..3).await;
    }
    let body = json!({"name": "fenced", "scopes": ["usage:read"], "allowed_meters": ["mine"]});
    let made = workspace.session.post("/v1/auth/api-keys", &body).await.json(201);
    let key = server.client().with_key(made["key"].as_str().expect("the secret"));
    let mine = key.get("/v1/usageevents?meter=mine").await.json(200);
    assert_eq!(mine["items"].as_array().map(Vec::len), Some(3));
    for path in ["/v1/usageevents", "/v1/usageevents?meter=theirs"] {
        key.get(path).await.error(403, "forbidden");
    }
    // a download needs a second scope
    key.get("/v1/usageevents/export?meter=mine").await.error(403, "forbidden");
    let filter = json!({"type": "condition", "field": "meter", "op": "eq", "value": "theirs"});
    let none =
        key.post("/v1/usageevents/search", &json!({"meter": "mine", "filter": filter})).await.json(200);
    assert_eq!(none["items"], json!([]));
}
