//! Counters of quotas at the Go server know of events that were pruned: of the periods that run now that is counted here, too,
//! once.

use open_spanner::metering::time::{DAY, Timestamp};
use serde_json::json;

use super::{Imported, KEY, WORKSPACE, counts, import, ours_again, place, theirs};
use crate::support::{Client, Server, on_both_databases};

on_both_databases!(what_counters_know_of_pruned_events_counts);

const TABLE: &str = "CREATE TABLE entitlement_usage_counters (workspace_id TEXT NOT NULL, subject TEXT NOT NULL, meter_name TEXT NOT NULL,
    period TEXT NOT NULL, period_start TEXT NOT NULL, period_end TEXT NOT NULL, event_count INTEGER NOT NULL,
    quantity_sum DOUBLE PRECISION NOT NULL, quantity_min DOUBLE PRECISION NOT NULL, quantity_max DOUBLE PRECISION NOT NULL,
    first_quantity DOUBLE PRECISION NOT NULL, first_event_time TEXT NOT NULL, last_quantity DOUBLE PRECISION NOT NULL,
    last_event_time TEXT NOT NULL, updated_at TEXT NOT NULL)";

struct Counter {
    subject: &'static str,
    meter: &'static str,
    period: &'static str,
    from: Timestamp,
    to: Timestamp,
    events: u32,
    sum: &'static str,
}

impl Counter {
    fn row(&self, now: Timestamp) -> String {
        let Counter { subject, meter, period, from, to, events, sum } = self;
        let [from, to, now] = [from, to, &now].map(|at| at.to_exact_text());
        format!(
            "('{WORKSPACE}', '{subject}', '{meter}', '{period}', '{from}', '{to}', {events}, {sum}, 0.5, 5, 2.5, '{from}', 0.5, '{now}', '{now}')"
        )
    }
}

async fn used(client: &Client) -> String {
    let check = client.post("/v1/entitlements/check", &json!({"subject": "acme", "meter": "calls"})).await;
    check.json(200)["current"].to_string()
}

async fn what_counters_know_of_pruned_events_counts(ours: crate::support::Database) {
    for theirs in theirs() {
        let ours = ours_again(&ours);
        let now = Timestamp::now();
        let (day, month) = (now.floor(DAY), now.month_start());
        let counter = |period, from, to, events, sum| Counter {
            subject: "acme",
            meter: "calls",
            period,
            from,
            to,
            events,
            sum,
        };
        let rows = [
            // one event is left, of 0.5: one of today was pruned, and one more of this month
            counter("month", month, month.plus_months(1), 3, "8"),
            counter("day", day, day.plus(DAY), 2, "3"),
            // of the past: nothing is asked of it any more
            counter("week", month.plus(-21 * DAY), month.plus(-14 * DAY), 99, "99"),
            // periods that begin otherwise than here
            counter("year", now.plus(-40 * DAY), now.plus(300 * DAY), 99, "99"),
            Counter { subject: "nobody", ..counter("month", month, month.plus_months(1), 3, "8") },
            Counter { meter: "gone", ..counter("month", month, month.plus_months(1), 3, "8") },
        ];
        let rows: Vec<String> = rows.iter().map(|row| row.row(now)).collect();
        theirs.make(&format!(
            "{TABLE}; INSERT INTO entitlement_usage_counters VALUES {};
             INSERT INTO usage_events VALUES ('88888888-0000-4000-8000-0000000000c1', '{WORKSPACE}', NULL, 'acme', 'calls', 0.5, '{now}',
                 '{now}', '{{}}')",
            rows.join(", "),
            now = now.to_exact_text()
        ));
        let Imported { run, left_out } = import(&ours, &place(&theirs), &[]);
        assert_eq!(counts(&run.succeeded(), "entitlement_usage_counters"), [2, 2, 2], "{left_out:#?}");
        for why in ["begins otherwise", "its meter is not there"] {
            let of_counter = |line: &&serde_json::Value| line["table"] == "entitlement_usage_counters";
            let mut reasons = left_out.iter().filter(of_counter).map(|line| line["reason"].to_string());
            assert!(reasons.any(|reason| reason.contains(why)), "{why}: {left_out:#?}");
        }
        let mut server = Server::start(&ours);
        assert_eq!(used(&server.client().with_key(KEY)).await, "8");
        server.terminate();
        let run = import(&ours, &place(&theirs), &[]).run.succeeded();
        assert_eq!(counts(&run, "entitlement_usage_counters"), [0, 4, 2], "{}", run.stdout);
        let server = Server::start(&ours);
        let key = server.client().with_key(KEY);
        let event = json!({"meter": "calls", "subject": "acme", "quantity": 1, "metadata": {"region": "eu"}});
        key.post("/v1/usages", &event).await.expect(201);
        assert_eq!(used(&key).await, "9");
    }
}
