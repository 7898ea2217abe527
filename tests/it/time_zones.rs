//! Calendars of queries: a slow model of when buckets begin, which `usage` compares answers with, and what cannot be seen by
//! comparing: errors, the zone of a workspace, pruned hours, and that nothing changes for whoever asks for no zone.

use jiff::civil::{Date, DateTime, Time, date};
use jiff::tz::TimeZone;
use jiff::{Timestamp, ToSpan};
use rand::Rng;
use rand::rngs::StdRng;
use rand::seq::IndexedRandom;
use serde_json::{Value, json};

use crate::support::{Database, Server, Worker, Workspace, on_both_databases};

on_both_databases!(
    buckets_follow_the_zone_that_is_asked_for,
    the_zone_of_a_workspace_is_the_default,
    wrong_calendars_are_refused,
    exports_and_saved_queries_have_calendars,
    minutes_of_pruned_hours_are_refused
);

const SECOND: i64 = 1_000_000;
const MINUTE: i64 = 60 * SECOND;
const HOUR: i64 = 60 * MINUTE;

/// What a question says of its buckets.
pub struct Calendar {
    pub size: &'static str,
    zone: Option<&'static str>,
    anchor: Option<i64>,
    is_sunday: bool,
    clock: TimeZone,
}

const ZONES: [&str; 10] = [
    "Asia/Kolkata",
    "Asia/Kathmandu",
    "Europe/Berlin",
    "America/New_York",
    "America/St_Johns",
    "America/Santiago",
    "Australia/Lord_Howe",
    "Pacific/Chatham",
    "Pacific/Kiritimati",
    "UTC",
];
/// Sizes, and the days of the longest window.
const SIZES: [(&str, i64); 14] = [
    ("minute", 1),
    ("5m", 5),
    ("15m", 15),
    ("hour", 31),
    ("2h", 62),
    ("6h", 186),
    ("day", 366),
    ("10d", 3_660),
    ("week", 1_800),
    ("2w", 1_800),
    ("month", 1_800),
    ("2m", 3_600),
    ("quarter", 1_800),
    ("year", 18_000),
];

impl Calendar {
    /// UTC, and what answers said before there were zones.
    pub fn plain(size: &'static str) -> Calendar {
        Calendar { size, zone: None, anchor: None, is_sunday: false, clock: TimeZone::UTC }
    }

    /// One that a window of this length may have.
    pub fn random(rng: &mut StdRng, length: i64, near: i64) -> Calendar {
        let sizes: Vec<&str> = SIZES
            .iter()
            .filter(|(size, days)| length <= days * 24 * HOUR && !(*size == "minute" && length > 24 * HOUR))
            .map(|(size, _)| *size)
            .collect();
        let zone = rng.random_bool(0.8).then(|| *ZONES.choose(rng).expect("some"));
        let anchor = rng.random_bool(0.3).then(|| near + rng.random_range(-90 * 24..90 * 24) * 20 * MINUTE);
        Calendar {
            size: sizes.choose(rng).expect("some"),
            zone,
            anchor,
            is_sunday: rng.random_bool(0.3),
            clock: TimeZone::get(zone.unwrap_or("UTC")).expect("a zone"),
        }
    }

    /// Writes it into a search.
    pub fn ask(&self, body: &mut Value) {
        body["bucket_size"] = json!(self.size);
        if let Some(zone) = self.zone {
            body["time_zone"] = json!(zone);
        }
        if let Some(anchor) = self.anchor {
            body["anchor"] = json!(at(anchor).to_string());
        }
        if self.is_sunday || self.size == "week" {
            body["week_start"] = json!(if self.is_sunday { "sunday" } else { "monday" });
        }
    }

    /// How answers write a beginning.
    pub fn text(&self, start: i64) -> String {
        match self.zone {
            None | Some("UTC") => at(start).strftime("%Y-%m-%dT%H:%M:%SZ").to_string(),
            Some(_) => at(start).to_zoned(self.clock.clone()).strftime("%Y-%m-%dT%H:%M:%S%:z").to_string(),
        }
    }

    pub fn zone(&self) -> Option<&'static str> {
        self.zone
    }

    fn civil(&self, time: i64) -> DateTime {
        self.clock.to_datetime(at(time))
    }

    fn instant(&self, local: DateTime) -> i64 {
        self.clock.to_timestamp(local).expect("in range").as_microsecond()
    }

    /// Beginning and end of the bucket that holds an instant.
    pub fn bucket(&self, time: i64) -> (i64, i64) {
        let minutes = |minutes: i64| self.on_the_clock(time, minutes * MINUTE);
        match (self.size, self.anchor) {
            ("minute", None) => minutes(1),
            ("5m", None) => minutes(5),
            ("15m", None) => minutes(15),
            ("hour", None) => minutes(60),
            ("minute", Some(anchor)) => elapsed(time, anchor, MINUTE),
            ("5m", Some(anchor)) => elapsed(time, anchor, 5 * MINUTE),
            ("15m", Some(anchor)) => elapsed(time, anchor, 15 * MINUTE),
            ("hour", Some(anchor)) => elapsed(time, anchor, HOUR),
            ("2h", Some(anchor)) => elapsed(time, anchor, 2 * HOUR),
            ("6h", Some(anchor)) => elapsed(time, anchor, 6 * HOUR),
            _ => self.counted(time),
        }
    }

    fn on_the_clock(&self, time: i64, width: i64) -> (i64, i64) {
        let offset = i64::from(self.clock.to_offset(at(time)).seconds()) * SECOND;
        let start = (time + offset) - (time + offset).rem_euclid(width) - offset;
        // somebody may set the clock in between
        let set_before =
            self.clock.preceding(at(time + 1)).next().map(|set| set.timestamp().as_microsecond());
        let set_after = self.clock.following(at(time)).next().map(|set| set.timestamp().as_microsecond());
        (start.max(set_before.unwrap_or(start)), (start + width).min(set_after.unwrap_or(i64::MAX)))
    }

    /// From a beginning near the instant, step by step.
    fn counted(&self, time: i64) -> (i64, i64) {
        let local = self.civil(time);
        let midnight = |date: Date| date.to_datetime(Time::midnight());
        let weekday = match self.is_sunday {
            true => local.date().weekday().to_sunday_zero_offset(),
            false => local.date().weekday().to_monday_zero_offset(),
        };
        let week = local.date().checked_sub(i64::from(weekday).days()).expect("a date");
        let epoch = date(1970, 1, 1);
        let days = local.date().duration_since(epoch).as_hours() / 24;
        let week_of_epoch = date(1969, 12, if self.is_sunday { 28 } else { 29 });
        let weeks = week.duration_since(week_of_epoch).as_hours() / 24 / 7;
        let months = i64::from(local.year()) * 12 + i64::from(local.month()) - 1;
        let month = |month: i64| date((month / 12) as i16, (month % 12) as i8 + 1, 1);
        let near = match self.size {
            "2h" => midnight(local.date()),
            "6h" | "day" => midnight(local.date()),
            "10d" => midnight(epoch.checked_add((days / 10 * 10).days()).expect("a date")),
            "week" => midnight(week),
            "2w" => midnight(week_of_epoch.checked_add((weeks / 2 * 2).weeks()).expect("a date")),
            "month" => midnight(month(months)),
            "2m" => midnight(month(months / 2 * 2)),
            "quarter" => midnight(month(months / 3 * 3)),
            _ => midnight(month(months / 12 * 12)),
        };
        let from = self.anchor.map_or(near, |anchor| self.civil(anchor));
        let nth = |n: i64| {
            let span = match self.size {
                "2h" => (2 * n).hours(),
                "6h" => (6 * n).hours(),
                "day" => n.days(),
                "10d" => (10 * n).days(),
                "week" => n.weeks(),
                "2w" => (2 * n).weeks(),
                "month" => n.months(),
                "2m" => (2 * n).months(),
                "quarter" => (3 * n).months(),
                _ => n.years(),
            };
            self.instant(from.checked_add(span).expect("in range"))
        };
        let mut n = 0;
        while nth(n) > time {
            n -= 1;
        }
        while nth(n + 1) <= time {
            n += 1;
        }
        (nth(n), nth(n + 1))
    }
}

fn elapsed(time: i64, anchor: i64, width: i64) -> (i64, i64) {
    let start = time - (time - anchor).rem_euclid(width);
    (start, start + width)
}

fn at(micros: i64) -> Timestamp {
    Timestamp::from_microsecond(micros).expect("in range")
}

async fn recorded(workspace: &Workspace, times: &[&str]) {
    workspace.meter("m", "sum").await;
    let events: Vec<Value> = times
        .iter()
        .map(|time| json!({"meter": "m", "subject": "s", "quantity": 1, "timestamp": time}))
        .collect();
    workspace.post("/v1/usages/bulk", &json!(events)).await.expect(201);
}

fn starts(answer: &Value) -> Vec<(String, String)> {
    let text = |value: &Value| value.as_str().map_or_else(|| value.to_string(), str::to_owned);
    let rows = answer.as_array().expect("a list").iter();
    rows.map(|row| (text(&row["bucket_start"]), text(&row["quantity"]))).collect()
}

fn pairs(rows: &[(&str, &str)]) -> Vec<(String, String)> {
    rows.iter().map(|(a, b)| ((*a).to_owned(), (*b).to_owned())).collect()
}

async fn buckets_follow_the_zone_that_is_asked_for(database: Database) {
    let server = Server::start(&database);
    let workspace = server.workspace().await;
    let times = [
        "2026-03-28T23:30:00Z",
        "2026-03-29T21:59:59.999999Z",
        "2026-03-29T22:00:00Z",
        "2026-06-01T00:00:00Z",
    ];
    recorded(&workspace, &times).await;
    let window = "from=2026-03-28T00:00:00Z&to=2026-06-02T00:00:00Z";
    let plain = workspace.get(&format!("/v1/usages?meter=m&{window}")).await.expect(200).text;
    assert!(!plain.contains("time_zone") && plain.contains("2026-03-28T00:00:00Z"), "{plain}");
    let berlin = format!("/v1/usages?meter=m&{window}&time_zone=europe/berlin");
    let days = workspace.get(&berlin).await.json(200);
    let wanted = [
        ("2026-03-29T00:00:00+01:00", "2"),
        ("2026-03-30T00:00:00+02:00", "1"),
        ("2026-06-01T00:00:00+02:00", "1"),
    ];
    assert_eq!(starts(&days), pairs(&wanted));
    assert_eq!((&days[0]["time_zone"], &days[0]["bucket_size"]), (&json!("Europe/Berlin"), &json!("day")));
    let months =
        workspace.get(&format!("{berlin}&bucket_size=2m&anchor=2026-01-31T00:00:00%2B01:00")).await.json(200);
    assert_eq!(
        starts(&months),
        pairs(&[("2026-01-31T00:00:00+01:00", "3"), ("2026-05-31T00:00:00+02:00", "1")])
    );
    assert_eq!(months[0]["bucket_size"], "2m");
    let weeks = workspace.get(&format!("{berlin}&bucket_size=week&week_start=sunday")).await.json(200);
    assert_eq!(starts(&weeks)[0], ("2026-03-29T00:00:00+01:00".into(), "3".into()));
    // UTC that was asked for is named
    let utc = workspace.get(&format!("/v1/usages?meter=m&{window}&time_zone=UTC")).await.json(200);
    assert_eq!(
        (&utc[0]["time_zone"], &utc[0]["bucket_start"]),
        (&json!("UTC"), &json!("2026-03-28T00:00:00Z"))
    );
    let csv = workspace.get(&berlin.replace("usages?", "usages/export?")).await.expect(200).text;
    assert!(
        csv.starts_with("bucket_start,subject,meter,bucket_size,aggregation,unit,quantity,time_zone\n"),
        "{csv}"
    );
    assert!(csv.contains("2026-03-29T00:00:00+01:00,,m,day,sum,unit,2,Europe/Berlin\n"), "{csv}");
}

async fn the_zone_of_a_workspace_is_the_default(database: Database) {
    let server = Server::start(&database);
    let workspace = server.workspace().await;
    recorded(&workspace, &["2026-06-01T18:30:00Z", "2026-06-01T18:29:59Z"]).await;
    let query = "/v1/usages?meter=m&from=2026-06-01T00:00:00Z&to=2026-06-03T00:00:00Z";
    let plain = workspace.get(query).await.expect(200).text;
    let places = workspace.session.get("/v1/auth/workspaces").await.json(200);
    assert_eq!(places["items"][0]["time_zone"], "UTC", "{places}");
    workspace.session.patch("/v1/auth/workspace", &json!({"time_zone": "Mars/Base"})).await.expect(400);
    workspace.session.patch("/v1/auth/workspace", &json!({"time_zone": "asia/kolkata"})).await.expect(204);
    let places = workspace.session.get("/v1/auth/workspaces").await.json(200);
    assert_eq!(places["items"][0]["time_zone"], "Asia/Kolkata", "{places}");
    let days = workspace.get(query).await.json(200);
    let wanted = [("2026-06-01T00:00:00+05:30", "1"), ("2026-06-02T00:00:00+05:30", "1")];
    assert_eq!(starts(&days), pairs(&wanted));
    let trail = workspace.session.get("/v1/audit-events?limit=5").await.expect(200).text;
    assert!(trail.contains("workspace.time_zone_changed") && trail.contains("Asia/Kolkata"), "{trail}");
    // somebody who says which zone is heard
    let utc = workspace.get(&format!("{query}&time_zone=UTC")).await.json(200);
    assert_eq!(starts(&utc), pairs(&[("2026-06-01T00:00:00Z", "2")]));
    workspace.session.patch("/v1/auth/workspace", &json!({"time_zone": "UTC"})).await.expect(204);
    assert_eq!(
        workspace.get(query).await.expect(200).text,
        plain,
        "the answer without a zone is what it was"
    );
}

async fn wrong_calendars_are_refused(database: Database) {
    let server = Server::start(&database);
    let workspace = server.workspace().await;
    workspace.meter("m", "sum").await;
    let query = "/v1/usages?meter=m&from=2026-06-01T00:00:00Z&to=2026-06-30T00:00:00Z";
    for (more, code, word) in [
        ("time_zone=Mars/Base", "invalid_input", "time_zone"),
        ("time_zone=CET-1CEST", "invalid_input", "time_zone"),
        ("anchor=2026-01-31", "invalid_anchor", "anchor"),
        ("week_start=friday", "invalid_input", "week_start"),
        ("bucket_size=fortnight", "invalid_input", "bucket_size"),
        ("bucket_size=0d", "invalid_input", "bucket_size"),
        ("bucket_size=minute", "invalid_input", "1 day"),
        ("bucket_size=5m&time_zone=Asia/Kolkata", "invalid_input", "5 days"),
    ] {
        let answer = workspace.get(&format!("{query}&{more}")).await.json(400);
        assert_eq!(answer["error"]["code"], code, "{more}");
        assert!(answer["error"]["message"].as_str().expect("text").contains(word), "{more}: {answer}");
    }
    for size in ["15m", "week", "quarter", "year", "30min", "2w", "3m", "2y"] {
        let to = if size == "15m" { "&to=2026-06-10T00:00:00Z" } else { "" };
        let query =
            if to.is_empty() { query.to_owned() } else { query.replace("&to=2026-06-30T00:00:00Z", to) };
        let week_start = if size == "week" { "&week_start=monday" } else { "" };
        workspace.get(&format!("{query}&bucket_size={size}{week_start}")).await.expect(200);
    }
}

async fn exports_and_saved_queries_have_calendars(database: Database) {
    let folder = tempfile::tempdir().expect("a directory");
    let storage = folder.path().join("exports").display().to_string();
    let settings = [
        ("OPEN_SPANNER_EXPORT_STORAGE_PATH", storage.as_str()),
        ("OPEN_SPANNER_EXPORT_WORKER_HEALTH_ADDR", "127.0.0.1:0"),
    ];
    let server = Server::start_with(&database, &settings);
    // on SQLite it is inside the server
    let _worker = matches!(database, Database::Postgres { .. })
        .then(|| Worker::start("export-worker", &database, folder.path(), &settings));
    let workspace = server.workspace().await;
    recorded(&workspace, &["2026-06-01T18:30:00Z", "2026-06-01T18:29:59Z"]).await;
    let mut query = json!({"meter": "m", "from": "2026-06-01T00:00:00Z", "to": "2026-06-03T00:00:00Z",
        "bucket_size": "week", "time_zone": "Asia/Kolkata", "week_start": "sunday"});
    let made = workspace.post("/v1/exports", &json!({"query": query})).await.json(202);
    assert_eq!(made["query"]["time_zone"], "Asia/Kolkata", "{made}");
    let csv = finished(&workspace, &made).await;
    assert!(csv.contains("2026-05-31T00:00:00+05:30,,m,week,sum,unit,2,Asia/Kolkata\n"), "{csv}");
    query["time_zone"] = json!("Nowhere");
    workspace.post("/v1/exports", &json!({"query": query})).await.expect(400);
    // the zone of the workspace is that of when the job was made
    workspace.session.patch("/v1/auth/workspace", &json!({"time_zone": "Asia/Kolkata"})).await.expect(204);
    let object = query.as_object_mut().expect("an object");
    object.remove("time_zone");
    query["bucket_size"] = json!("day");
    let made = workspace.post("/v1/exports", &json!({"query": query})).await.json(202);
    assert_eq!(made["query"]["time_zone"], "Asia/Kolkata", "{made}");
    let csv = finished(&workspace, &made).await;
    assert!(csv.contains("2026-06-02T00:00:00+05:30,,m,day,sum,unit,1,Asia/Kolkata\n"), "{csv}");
    let saved = json!({"name": "q", "query": {"time_zone": "Asia/Kolkata"}, "bucket_size": "2w"});
    let made = workspace.session.post("/v1/usage/saved-queries", &saved).await.json(201);
    assert_eq!(made["bucket_size"], "2w");
    let saved = json!({"name": "r", "query": {"time_zone": "Nowhere"}});
    workspace.session.post("/v1/usage/saved-queries", &saved).await.expect(400);
}

async fn finished(workspace: &Workspace, job: &Value) -> String {
    let path = format!("/v1/exports/{}", job["id"].as_str().expect("an id"));
    for _ in 0..300 {
        let now = workspace.get(&path).await.json(200);
        match now["status"].as_str() {
            Some("completed") => return workspace.get(&format!("{path}/download")).await.expect(200).text,
            Some("failed") => panic!("{now}"),
            _ => tokio::time::sleep(std::time::Duration::from_millis(50)).await,
        }
    }
    panic!("the export does not end");
}

async fn minutes_of_pruned_hours_are_refused(database: Database) {
    let server = Server::start(&database);
    let workspace = server.workspace().await;
    let made = json!({"name": "m", "unit": "u", "event_retention_days": 1});
    workspace.post("/v1/meters", &made).await.expect(201);
    let now = Timestamp::now().as_microsecond();
    let old = now - 72 * HOUR;
    let text = |micros: i64| at(micros).strftime("%Y-%m-%dT%H:%M:%SZ").to_string();
    let events: Vec<Value> = [old, now - 2 * HOUR]
        .iter()
        .map(|time| json!({"meter": "m", "subject": "s", "quantity": 1, "timestamp": text(*time)}))
        .collect();
    workspace.post("/v1/usages/bulk", &json!(events)).await.expect(201);
    workspace.post("/v1/usageevents/prune", &json!({})).await.expect(200);
    let query = |from: i64, to: i64, more: &str| {
        format!("/v1/usages?meter=m&from={}&to={}&{more}", text(from), text(to))
    };
    let refused = workspace.get(&query(old - HOUR, old + HOUR, "bucket_size=5m")).await.json(400);
    assert!(
        refused["error"]["message"].as_str().expect("text").contains("from must not be before"),
        "{refused}"
    );
    let young = workspace.get(&query(now - 3 * HOUR, now, "bucket_size=5m")).await.json(200);
    assert_eq!(young.as_array().expect("a list").len(), 1);
    // totals stand in every zone: an hour whose events are gone is in the bucket that it begins in
    let days = query(old - 48 * HOUR, now, "time_zone=Asia/Kolkata");
    let total: usize = starts(&workspace.get(&days).await.json(200))
        .iter()
        .map(|(_, q)| q.parse::<usize>().expect("a number"))
        .sum();
    assert_eq!(total, 2);
}
