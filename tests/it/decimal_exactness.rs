//! Numbers to the last digit and times to the last fraction, read in the raw text of the answers.

use serde_json::json;

use crate::support::{Client, Database, Server, on_both_databases};

on_both_databases!(
    tenths_make_one,
    many_digits_survive,
    half_a_second_is_inside_its_window,
    every_aggregation_is_exact
);

const HOUR: (&str, &str) = ("2026-06-01T00:00:00Z", "2026-06-01T01:00:00Z");

/// The raw text of a bucket query over one window.
async fn buckets(client: &Client, meter: &str, (from, to): (&str, &str)) -> String {
    let path = format!("/v1/usages?meter={meter}&bucket_size=hour&from={from}&to={to}");
    client.get(&path).await.expect(200).text
}

/// The number after `"quantity":` in a text with one bucket.
#[track_caller]
fn quantity(text: &str) -> &str {
    let (_, rest) = text.split_once("\"quantity\":").unwrap_or_else(|| panic!("no bucket in {text}"));
    assert!(!rest.contains("\"quantity\":"), "one bucket: {text}");
    rest.split([',', '}']).next().expect("split gives one part")
}

async fn record(client: &Client, meter: &str, quantity: &str, time: &str) -> String {
    let event = format!(r#"{{"meter":"{meter}","subject":"s","quantity":{quantity},"timestamp":"{time}"}}"#);
    client.post_text("/v1/usages", event).await.expect(201).text
}

async fn tenths_make_one(database: Database) {
    let server = Server::start(&database);
    let workspace = server.workspace().await;
    workspace.meter("tenths", "sum").await;
    for _ in 0..5 {
        record(&workspace, "tenths", "0.1", "2026-06-01T00:10:00Z").await;
    }
    let tenth =
        json!({"meter": "tenths", "subject": "s", "quantity": 0.1, "timestamp": "2026-06-01T00:20:00Z"});
    workspace.post("/v1/usages/bulk", &json!(vec![tenth; 5])).await.expect(201);
    assert_eq!(quantity(&buckets(&workspace, "tenths", HOUR).await), "1");
}

async fn many_digits_survive(database: Database) {
    let server = Server::start(&database);
    let workspace = server.workspace().await;
    workspace.meter("digits", "sum").await;
    let (a, b, sum) =
        ("1234567890123456789.123456789", "8765432109876543210.876543211", "10000000000000000000");
    let answer = record(&workspace, "digits", a, "2026-06-01T00:10:00Z").await;
    assert!(answer.contains(&format!("\"quantity\":{a},")), "{answer}");
    assert_eq!(quantity(&buckets(&workspace, "digits", HOUR).await), a);
    let answer = record(&workspace, "digits", b, "2026-06-01T00:20:00Z").await;
    assert!(answer.contains(&format!("\"quantity\":{b},")), "{answer}");
    assert_eq!(quantity(&buckets(&workspace, "digits", HOUR).await), sum);
    // a window that cuts the hour is answered from raw events
    let cut = ("2026-06-01T00:15:00Z", "2026-06-01T01:00:00Z");
    assert_eq!(quantity(&buckets(&workspace, "digits", cut).await), b);
}

async fn half_a_second_is_inside_its_window(database: Database) {
    let server = Server::start(&database);
    let workspace = server.workspace().await;
    workspace.meter("halves", "sum").await;
    record(&workspace, "halves", "3", "2026-06-01T00:00:00.5Z").await;
    assert_eq!(quantity(&buckets(&workspace, "halves", HOUR).await), "3");
    let before = ("2026-05-31T23:00:00Z", "2026-06-01T00:00:00Z");
    assert_eq!(buckets(&workspace, "halves", before).await.trim(), "[]");
    let from_half = ("2026-06-01T00:00:00.5Z", "2026-06-01T00:00:01Z");
    assert_eq!(quantity(&buckets(&workspace, "halves", from_half).await), "3", "from is inclusive");
    let to_half = ("2026-06-01T00:00:00Z", "2026-06-01T00:00:00.5Z");
    assert_eq!(buckets(&workspace, "halves", to_half).await.trim(), "[]", "to is exclusive");
}

async fn every_aggregation_is_exact(database: Database) {
    let server = Server::start(&database);
    let workspace = server.workspace().await;
    let wanted = [
        ("sum", "0.6"),
        ("count", "3"),
        ("avg", "0.2"),
        ("min", "0.1"),
        ("max", "0.3"),
        ("first", "0.3"),
        ("last", "0.1"),
    ];
    for (aggregation, wanted) in wanted {
        workspace.meter(aggregation, aggregation).await;
        // 0.1 + 0.2 + 0.3 is 0.6000000000000001 in floats; the last to arrive is the first to have happened
        record(&workspace, aggregation, "0.1", "2026-06-01T00:30:00Z").await;
        record(&workspace, aggregation, "0.2", "2026-06-01T00:20:00Z").await;
        record(&workspace, aggregation, "0.3", "2026-06-01T00:10:00.25Z").await;
        let text = buckets(&workspace, aggregation, HOUR).await;
        assert_eq!(quantity(&text), wanted, "{aggregation}: {text}");
        // the same from raw events: the window cuts the hour on both sides, around all three
        let cut = ("2026-06-01T00:10:00.25Z", "2026-06-01T00:30:00.000001Z");
        let text = buckets(&workspace, aggregation, cut).await;
        assert_eq!(quantity(&text), wanted, "{aggregation}, raw: {text}");
    }
}
