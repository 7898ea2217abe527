//! Every metric there is, with what it counts. `docs/metrics.md` is made from this table, and a test compares it with
//! the source: a metric that is not here is not recorded.

/// How a metric moves.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// Only grows, from zero at the start of the process.
    Counter,
    Gauge,
    Histogram,
}

impl Kind {
    pub fn name(self) -> &'static str {
        match self {
            Kind::Counter => "counter",
            Kind::Gauge => "gauge",
            Kind::Histogram => "histogram",
        }
    }
}

/// Values of labels that are there from the start.
pub type Series = &'static [(&'static str, &'static str)];

#[derive(Clone, Copy, Debug)]
pub struct Metric {
    pub name: &'static str,
    pub kind: Kind,
    pub labels: &'static [&'static str],
    pub help: &'static str,
    /// What is 0 before anything happens. Empty where values of labels are known only when they come.
    pub zeroes: &'static [Series],
}

const fn plain(name: &'static str, kind: Kind, help: &'static str) -> Metric {
    // a histogram without values has no sum and no buckets to show
    let zeroes: &[Series] = if matches!(kind, Kind::Histogram) { &[] } else { &[&[]] };
    Metric { name, kind, labels: &[], help, zeroes }
}

const fn labelled(
    name: &'static str,
    kind: Kind,
    labels: &'static [&'static str],
    help: &'static str,
    zeroes: &'static [Series],
) -> Metric {
    Metric { name, kind, labels, help, zeroes }
}

use Kind::{Counter, Gauge, Histogram};

#[rustfmt::skip]
pub const TABLE: &[Metric] = &[
    labelled("open_spanner_build_info", Gauge, &["version", "commit", "role"], "1; what this process is", &[]),

    labelled("open_spanner_http_server_request_duration_seconds", Histogram, &["method", "route", "status"], "Time of a request until its answer is ready", &[]),
    plain("open_spanner_http_requests_in_flight", Gauge, "Requests that are being answered"),
    labelled("open_spanner_grpc_server_request_duration_seconds", Histogram, &["method", "status"], "Time of a call until its answer begins; status is the number of the gRPC code", &[]),
    plain("open_spanner_grpc_calls_open", Gauge, "Calls and streams that are open"),
    labelled("open_spanner_connections", Gauge, &["port"], "Connections that are open", &[&[("port", "http")], &[("port", "grpc")]]),
    labelled("open_spanner_connections_turned_away_total", Counter, &["port", "limit", "outcome"], "Connections over a limit: refused, or another one made room (replaced)", &[]),
    plain("open_spanner_bodies_refused_total", Counter, "Calls that found no room for their body (503)"),

    labelled("open_spanner_ingestion_events_total", Counter, &["kind", "outcome"], "Events by the way they came (single, bulk, stream) and what became of them", &[]),
    plain("open_spanner_ingest_batch_events", Histogram, "Events in one transaction"),
    plain("open_spanner_ingest_queue_events", Gauge, "Units that wait to be written; an event is one, a large one several"),
    plain("open_spanner_ingest_queue_limit", Gauge, "Units that may wait"),
    plain("open_spanner_ingest_queue_full_total", Counter, "Calls that found no room in the queue (503)"),
    labelled("open_spanner_idempotency_conflicts_total", Counter, &["kind"], "Keys that were used before with another payload", &[]),
    labelled("open_spanner_consumption_decisions_total", Counter, &["outcome"], "Consumptions by their decision", &[]),

    plain("open_spanner_db_pool_wait_seconds", Histogram, "Wait for a connection to the database"),
    labelled("open_spanner_db_pool_connections", Gauge, &["pool", "state"], "Connections: in use, idle, and how many there may be (max)", &[]),
    labelled("open_spanner_db_pool_waiting", Gauge, &["pool"], "Units of work that wait for a connection", &[]),
    labelled("open_spanner_db_query_duration_seconds", Histogram, &["operation"], "Time of a unit of work in the database", &[]),
    labelled("open_spanner_db_statements_total", Counter, &["operation"], "SQL statements", &[]),
    labelled("open_spanner_db_errors_total", Counter, &["operation", "kind"], "Units of work that the database did not do, and why: disconnected, away, read-only, full, locked, slow, conflict, schema, other", &[]),
    labelled("open_spanner_db_views_total", Counter, &["from"], "Reads of usage, by what answered: the primary or a standby", &[&[("from", "primary")], &[("from", "replica")]]),
    plain("open_spanner_db_queries_refused_total", Counter, "Queries over the share of their workspace or key (429)"),
    labelled("open_spanner_unreadable_rows_total", Counter, &["table"], "Rows that hold what this version cannot read", &[]),

    labelled("open_spanner_jobs", Gauge, &["queue", "state"], "Background jobs of the whole installation: due, running, failed (to be tried again), later, dead (given up)", JOBS),
    labelled("open_spanner_jobs_oldest_due_seconds", Gauge, &["queue"], "How long the job that is due for longest has waited", JOB_QUEUES),
    labelled("open_spanner_leases_expired_total", Counter, &["queue"], "Jobs that were taken from a process that neither ended them nor gave them back in time", JOB_QUEUES),
    plain("open_spanner_evaluation_lag_seconds", Gauge, "How long the oldest usage waits that alert rules or limits have not looked at to the end; since the last try where that failed"),
    labelled("open_spanner_worker_job_duration_seconds", Histogram, &["queue", "outcome"], "Time of one try of a job", &[]),
    labelled("open_spanner_worker_heartbeat_timestamp_seconds", Gauge, &["worker"], "When a process of this worker last said that it lives, in Unix time", &[]),
    labelled("open_spanner_webhook_deliveries_total", Counter, &["outcome"], "Attempts to deliver a webhook", &[&[("outcome", "delivered")], &[("outcome", "failed")]]),
    labelled("open_spanner_api_keys", Gauge, &["state"], "API keys of all workspaces: that can be used; of these, that end within 14 days, and that were not used for 90 days", &[&[("state", "usable")], &[("state", "expiring")], &[("state", "unused")]]),
    labelled("open_spanner_mails_total", Counter, &["outcome"], "Mails, when it is known what became of them", &[&[("outcome", "sent")], &[("outcome", "failed")], &[("outcome", "dropped")]]),
    plain("open_spanner_webhook_attempt_duration_seconds", Histogram, "Time of an attempt to deliver a webhook"),
    labelled("open_spanner_webhooks_owed", Gauge, &["state"], "Webhooks that receivers still wait for; of processes that deliver", &[&[("state", "pending")], &[("state", "failing")], &[("state", "dead_letter")]]),
    plain("open_spanner_webhooks_oldest_owed_seconds", Gauge, "How long the oldest of them has waited"),

    plain("open_spanner_backup_last_success_timestamp_seconds", Gauge, "When `open-spanner backup` last ended well, in Unix time; 0: it never did"),
    plain("open_spanner_self_check_timestamp_seconds", Gauge, "When totals were last compared with the events that they are made of, in Unix time"),
    plain("open_spanner_self_check_differences", Gauge, "Meters for which that found a difference, in the hour that was looked at"),
    labelled("open_spanner_key_ring_rows", Gauge, &["key_id"], "Stored secrets by the key that seals them; of servers, every five minutes", &[]),

    plain("open_spanner_retention_oldest_event_seconds", Gauge, "Age of the oldest event that is stored; of servers, every five minutes"),
    labelled("open_spanner_partitions", Gauge, &["state"], "Months of events that are attached, and rows that lie outside of them (default_rows, counted to 100000); of servers on PostgreSQL, every five minutes", &[&[("state", "attached")], &[("state", "default_rows")]]),
    plain("open_spanner_ledger_expired_keys_total", Counter, "Idempotency keys that were forgotten"),
    plain("open_spanner_retention_deleted_events_total", Counter, "Events that were pruned"),
    labelled("open_spanner_operational_history_cleanup_deleted_total", Counter, &["kind"], "Rows of history that were deleted", &[]),

    plain("open_spanner_database_bytes", Gauge, "Size of the database: the SQLite file, or what PostgreSQL says of it"),
    plain("open_spanner_sqlite_wal_bytes", Gauge, "Size of SQLite's write-ahead log"),
    labelled("open_spanner_storage_free_bytes", Gauge, &["path"], "Room left on the disk of the SQLite file (database) and of exports", &[]),

    labelled("open_spanner_spans_total", Counter, &["outcome"], "Spans of builds that send them by OTLP: sent, failed (the collector did not take them), dropped (more than are sent in time)", &[&[("outcome", "sent")], &[("outcome", "failed")], &[("outcome", "dropped")]]),

    plain("process_resident_memory_bytes", Gauge, "Memory of this process that is not swapped out"),
    plain("process_virtual_memory_bytes", Gauge, "Address space of this process"),
    plain("process_virtual_memory_max_bytes", Gauge, "How much address space it may have; -1: as much as it likes"),
    plain("process_cpu_seconds_total", Counter, "Processor time of this process"),
    plain("process_open_fds", Gauge, "Files and sockets that this process has open"),
    plain("process_max_fds", Gauge, "How many it may open"),
    plain("process_start_time_seconds", Gauge, "When this process began, in Unix time"),
    plain("process_threads", Gauge, "Threads of this process"),
];

/// Queues of the workers.
pub const QUEUES: [&str; 4] = ["alerts", "entitlements", "export", "webhooks"];
/// States of jobs.
pub const STATES: [&str; 5] = ["due", "running", "failed", "later", "dead"];

const JOB_QUEUES: &[Series] =
    &[&[("queue", "alerts")], &[("queue", "entitlements")], &[("queue", "export")], &[("queue", "webhooks")]];

macro_rules! states_of {
    ($($queue:literal),+) => { &[$(
        &[("queue", $queue), ("state", "due")],
        &[("queue", $queue), ("state", "running")],
        &[("queue", $queue), ("state", "failed")],
        &[("queue", $queue), ("state", "later")],
        &[("queue", $queue), ("state", "dead")],
    )+] };
}
const JOBS: &[Series] = states_of!("alerts", "entitlements", "export", "webhooks");

/// The table as a page of Markdown.
pub fn page() -> String {
    let mut page = String::from(HEAD);
    for metric in TABLE {
        let labels = metric.labels.iter().map(|label| format!("`{label}`")).collect::<Vec<_>>().join(", ");
        let from_start = if metric.zeroes.is_empty() { "" } else { "yes" };
        let (name, kind, help) = (metric.name, metric.kind.name(), metric.help);
        page += &format!("| `{name}` | {kind} | {labels} | {from_start} | {help} |\n");
    }
    page
}

const HEAD: &str = "\
# Metrics

Prometheus text on the private listener `OPEN_SPANNER_METRICS_ADDR` (`/metrics`), and on the port of REST where
`OPEN_SPANNER_HTTP_METRICS` is on. Every process has its own; gauges about the whole installation (jobs, heartbeats,
database) are the same in all of them and are looked up every 15 seconds. No workspace, subject, meter or key is ever a
label. \"From the start\" means that a series is there, at 0, before anything happened: others appear with the first
value of their labels.

<!-- made by OPEN_SPANNER_REGENERATE=1 cargo test --lib metrics:: -->

| metric | type | labels | from the start | what it tells |
|---|---|---|---|---|
";

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;
    use std::fs;
    use std::path::{Path, PathBuf};

    use super::*;

    fn root() -> &'static Path {
        Path::new(env!("CARGO_MANIFEST_DIR"))
    }

    #[test]
    fn the_page_is_the_table() {
        let path = root().join("docs/metrics.md");
        #[expect(clippy::disallowed_methods, reason = "a switch of the tests")]
        if std::env::var("OPEN_SPANNER_REGENERATE").is_ok_and(|value| value == "1") {
            fs::write(&path, page()).expect("it can be written");
        }
        let written = fs::read_to_string(&path).unwrap_or_default();
        assert!(written == page(), "docs/metrics.md: OPEN_SPANNER_REGENERATE=1 cargo test --lib metrics::");
    }

    /// Name and kind of every metric that the source records.
    fn recorded() -> BTreeMap<String, &'static str> {
        let (mut found, mut ahead): (_, Vec<PathBuf>) = (BTreeMap::new(), vec![root().join("src")]);
        while let Some(path) = ahead.pop() {
            if path.is_dir() {
                ahead.extend(
                    fs::read_dir(&path).expect("a folder").map(|entry| entry.expect("an entry").path()),
                );
                continue;
            }
            let text = fs::read_to_string(&path).unwrap_or_default();
            for kind in ["counter", "gauge", "histogram"] {
                for call in text.split(&format!("metrics::{kind}!(")).skip(1) {
                    let name = call.trim_start().strip_prefix('"').and_then(|rest| rest.split('"').next());
                    found.extend(name.map(|name| (name.to_owned(), kind)));
                }
            }
        }
        found
    }

    #[test]
    fn everything_recorded_is_in_the_table_and_the_other_way_round() {
        let recorded = recorded();
        let listed: BTreeMap<String, &str> = TABLE
            .iter()
            // a library measures the process
            .filter(|metric| !metric.name.starts_with("process_"))
            .map(|metric| (metric.name.to_owned(), metric.kind.name()))
            .collect();
        assert_eq!(recorded, listed);
    }

    #[test]
    fn series_have_the_labels_of_their_metric() {
        for metric in TABLE {
            for series in metric.zeroes {
                let names: Vec<&str> = series.iter().map(|(name, _)| *name).collect();
                assert_eq!(names, metric.labels, "{}", metric.name);
            }
        }
        assert_eq!(JOBS.len(), QUEUES.len() * STATES.len());
    }
}
