//! `/deliveries`: webhooks are found by what they have in common, page by page, and sent once more: one, those that are
//! picked, or all that match.

use std::collections::BTreeSet;

use open_spanner::metering::time::{DAY, Timestamp};

use crate::dashboard::{Browser, furnished, links_of};
use crate::support::{Database, Server, on_both_databases};

on_both_databases!(deliveries_are_found_and_sent_again, a_destination_says_how_its_receiver_answers,);

const MINUTE: i64 = 60_000_000;
const NOON: i64 = 1_781_524_800_000_000;

/// A minute apart each, of the one rule that there is.
fn insert(database: &Database, count: i64, status: &str, destination: &str, from: i64) {
    for n in 0..count {
        let (id, at) = (format!("{status}-{n}-{from}"), from + n * MINUTE);
        let delivered = if status == "delivered" { at.to_string() } else { "NULL".to_owned() };
        database.execute(&format!(
            "INSERT INTO alert_deliveries (public_id, workspace_id, rule_id, event_id, destination_id, ordering_key, payload,
                 status, attempts, next_attempt_at, created_at, updated_at, delivered_at)
             SELECT '{id}', workspace_id, id, 'event-{id}', '{destination}', '', '{{}}', '{status}', 3, {at}, {at}, {at}, {delivered}
             FROM alert_rules"
        ));
    }
}

/// The deliveries of all pages of a list.
async fn listed(browser: &mut Browser, path: &str) -> Vec<String> {
    let (mut found, mut next) = (Vec::new(), Some(path.to_owned()));
    while let Some(path) = next {
        let page = browser.get(&path).await.expect(200).text;
        let values = page.split("name=\"pick\" value=\"").skip(1).filter_map(|rest| rest.split('"').next());
        found.extend(values.map(str::to_owned));
        next = page.contains("rel=\"next\"").then(|| {
            let (_, rest) = page.split_once("rel=\"next\" href=\"").expect("a link");
            rest.split('"').next().expect("a link").replace("&#38;", "&").replace("&amp;", "&")
        });
    }
    found
}

fn count(database: &Database, condition: &str) -> usize {
    database.lines(&format!("SELECT public_id AS line FROM alert_deliveries WHERE {condition}")).len()
}

async fn deliveries_are_found_and_sent_again(database: Database) {
    let server = Server::start_with(&database, &[("OPEN_SPANNER_SERVE_WORKERS", "off")]);
    let mut browser = furnished(&server).await;
    let destination = database.lines("SELECT public_id AS line FROM alert_destinations").remove(0);
    let rule = database.lines("SELECT public_id AS line FROM alert_rules").remove(0);
    insert(&database, 70, "delivered", &destination, NOON);
    insert(&database, 60, "dead_letter", &destination, NOON + 100 * MINUTE);
    insert(&database, 5, "dead_letter", "gone", NOON + 200 * MINUTE);
    insert(&database, 3, "pending", &destination, NOON + 300 * MINUTE);

    let all = listed(&mut browser, "/deliveries").await;
    assert_eq!(all.len(), 138);
    assert_eq!(all.iter().collect::<BTreeSet<_>>().len(), 138, "each once");
    assert!(all[0].starts_with("pending-2") && all[137].starts_with("delivered-0"), "newest first");
    assert_eq!(listed(&mut browser, "/deliveries?status=delivered").await.len(), 70);
    assert_eq!(listed(&mut browser, "/deliveries?status=dead_letter&destination=gone").await.len(), 5);
    assert_eq!(listed(&mut browser, &format!("/deliveries?rule={rule}")).await.len(), 138);
    assert_eq!(listed(&mut browser, "/deliveries?rule=nosuch").await.len(), 0);
    // noon is 12:00 of the 15th of June 2026
    let between = "from=2026-06-15T12:10:00Z&to=2026-06-15T12:30:00Z";
    assert_eq!(listed(&mut browser, &format!("/deliveries?{between}")).await.len(), 20);
    let wrong = browser.get("/deliveries?from=yesterweek").await.expect(422).text;
    assert!(wrong.contains("yesterweek") && wrong.contains("role=\"alert\""), "{wrong}");
    browser.get("/deliveries?status=lost").await.expect(422);

    // those that are picked, of which one waits already
    let picked = [("pick", all[0].as_str()), ("pick", "delivered-1-1781524800000000"), ("pick", "nosuch")];
    browser.post("/deliveries", &picked).await.expect(303);
    assert_eq!((count(&database, "status = 'pending'"), count(&database, "status = 'delivered'")), (4, 69));

    // all that match, after a page that says how many
    let asks = browser.get(&format!("/deliveries/replay?status=delivered&{between}")).await.expect(200).text;
    assert!(asks.contains("Send 20 webhooks again") && asks.contains("20 delivered"), "{asks}");
    let fields = [
        ("do", "all"),
        ("status", "dead_letter"),
        ("destination", destination.as_str()),
        ("from", "2026-06-15T13:45"),
    ];
    browser.post("/deliveries", &fields).await.expect(303);
    assert_eq!(count(&database, "status = 'dead_letter'"), 10, "five before, five of another destination");
    assert_eq!(count(&database, "status = 'pending' AND attempts = 0"), 56);
    let done = browser.post("/deliveries", &[("do", "all")]).await.expect(303);
    assert!(browser.get(&done.header("location")).await.text.contains("79 webhooks are sent again"));
    assert_eq!(count(&database, "status = 'pending'"), 138);
    let told = database.lines("SELECT action AS line FROM audit_events WHERE action = 'deliveries.repeated'");
    assert_eq!(told.len(), 3);

    let mut neighbour = Browser::register(&server, "deliveries-neighbour@example.com").await;
    assert_eq!(listed(&mut neighbour, "/deliveries").await.len(), 0);
    neighbour.post("/deliveries", &[("pick", all[0].as_str())]).await.expect(303);
    assert!(
        links_of(&neighbour.get("/deliveries").await.text).iter().all(|link| !link.contains(&destination))
    );
}

/// Of the last day alone, and of no other destination.
async fn a_destination_says_how_its_receiver_answers(database: Database) {
    let server = Server::start_with(&database, &[("OPEN_SPANNER_SERVE_WORKERS", "off")]);
    let mut browser = furnished(&server).await;
    let destination = database.lines("SELECT public_id AS line FROM alert_destinations").remove(0);
    let page = format!("/destinations/{destination}");
    assert!(browser.get(&page).await.expect(200).text.contains("nothing was sent"));
    insert(&database, 4, "delivered", &destination, NOON);
    insert(&database, 1, "dead_letter", "gone", NOON);
    let now = Timestamp::now();
    for (n, (delivery, status, took, at)) in [
        (format!("delivered-0-{NOON}"), "delivered", 100, now),
        (format!("delivered-1-{NOON}"), "failed", 9_000, now),
        (format!("delivered-2-{NOON}"), "delivered", 300, now.plus(-DAY / 2)),
        (format!("delivered-3-{NOON}"), "failed", 1, now.plus(-2 * DAY)),
        (format!("dead_letter-0-{NOON}"), "failed", 1, now),
    ]
    .into_iter()
    .enumerate()
    {
        database.execute(&format!(
            "INSERT INTO alert_attempts (public_id, delivery_id, event_id, status, duration_ms, attempted_at)
             SELECT 'try-{n}', id, event_id, '{status}', {took}, {} FROM alert_deliveries WHERE public_id = '{delivery}'",
            at.0
        ));
    }
    let told = browser.get(&page).await.expect(200).text;
    let words = "2 of 3 attempts delivered (66.7 %), 95 % of them took 9,000 ms at most";
    assert!(told.contains(words), "{told}");
    let all = links_of(&told).into_iter().find(|link| link.starts_with("/deliveries?destination="));
    assert_eq!(listed(&mut browser, &all.expect("a way to all of them")).await.len(), 4);
}
