//! Counters, progress, states and snapshots against a slow model that recounts every event, over random plans,
//! versions, assignments, late and future events and month ends, for windows of every kind: counted from the assignment, as
//! a calendar has them, from an instant, and sliding. Time is made up, so the store is called directly.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use diesel::RunQueryDsl;
use diesel::connection::SimpleConnection;
use jiff::ToSpan;
use jiff::civil::DateTime;
use jiff::tz::TimeZone;
use open_spanner::db::identity::Clock;
use open_spanner::db::{self, Conn, migrations, open};
use open_spanner::entitlements::evaluate;
use open_spanner::entitlements::jobs::{self, Evaluation};
use open_spanner::entitlements::period::Period;
use open_spanner::entitlements::plan::{Draft, Plan};
use open_spanner::entitlements::progress;
use open_spanner::entitlements::quota::QuotaUsage;
use open_spanner::entitlements::sql::assignments::Wish;
use open_spanner::entitlements::sql::listing::{self, Filter};
use open_spanner::entitlements::sql::{assignments, plans};
use open_spanner::ingest::Origin;
use open_spanner::ingest::insert::{self, Batch, Kind, WriteCache};
use open_spanner::jobs::queue::{self, Claim};
use open_spanner::metering::calendar::Zone;
use open_spanner::metering::event::{self, Input, InputQuantity};
use open_spanner::metering::meter::{Aggregation, Meter};
use open_spanner::metering::quantity::Quantity;
use open_spanner::metering::time::{DAY, HOUR, SECOND, Timestamp};
use open_spanner::{config, meters};
use rand::rngs::StdRng;
use rand::seq::IndexedRandom;
use rand::{Rng, SeedableRng};

use crate::support::{Database, on_both_databases};

on_both_databases!(quotas_equal_a_recount);

const STEPS: usize = 150;
const SEEDS: [u64; 2] = [1, 20_260_131];
const SUBJECTS: [&str; 3] = ["a", "b", "c"];
/// What limits are per, and their windows, as a client says it.
const PERIODS: [(&str, &str); 15] = [
    ("day", "null"),
    ("week", "null"),
    ("month", "null"),
    ("year", "null"),
    ("month", r#"{"kind":"calendar","time_zone":"Europe/Berlin"}"#),
    ("week", r#"{"kind":"calendar","time_zone":"America/New_York","week_start":"sunday"}"#),
    ("week", r#"{"kind":"calendar","time_zone":"America/New_York"}"#),
    ("day", r#"{"kind":"calendar"}"#),
    ("quarter", r#"{"kind":"calendar","time_zone":"Asia/Kolkata"}"#),
    ("15m", r#"{"kind":"calendar"}"#),
    ("month", r#"{"kind":"anchored","anchor":"2027-08-31T00:00:00+02:00","time_zone":"Europe/Berlin"}"#),
    ("month", r#"{"kind":"anchored","anchor":"2027-01-30T17:45:30Z","time_zone":"UTC"}"#),
    ("minute", r#"{"kind":"sliding"}"#),
    ("90min", r#"{"kind":"sliding"}"#),
    ("2d", r#"{"kind":"sliding"}"#),
];
const ZONES: [&str; 3] = ["UTC", "Asia/Kathmandu", "America/New_York"];

/// Meters and periods that a plan version limits.
type Limited = BTreeSet<(String, String)>;

/// An assignment as the model remembers it.
#[derive(Clone, Debug)]
struct Held {
    plan: usize,
    from: i64,
    to: Option<i64>,
    anchor: i64,
    zone: &'static str,
}

impl Held {
    fn is_void(&self) -> bool {
        self.to.is_some_and(|end| end <= self.from)
    }
}

/// An event that counts, and for which anchor.
#[derive(Clone, Debug)]
struct Counted {
    at: i64,
    id: uuid::Uuid,
    quantity: Quantity,
    anchor: i64,
    /// In which ways: a limit that comes later, with windows of another kind, begins with nothing.
    series: BTreeSet<String>,
}

struct World {
    conn: Conn,
    rng: StdRng,
    now: Timestamp,
    workspace_id: i64,
    meters: Vec<Arc<Meter>>,
    known: WriteCache,
    /// Current versions by lineage.
    plans: Vec<Plan>,
    /// What each lineage limited, and since when.
    limited: Vec<Vec<(i64, Limited)>>,
    held: BTreeMap<&'static str, Vec<Held>>,
    counted: BTreeMap<(&'static str, i64), Vec<Counted>>,
}

async fn quotas_equal_a_recount(database: Database) {
    let settings = database.settings();
    let settings: Vec<(String, String)> =
        settings.into_iter().map(|(name, value)| (name.to_owned(), value)).collect();
    let settings: Vec<(&str, &str)> = settings.iter().map(|(a, b)| (a.as_str(), b.as_str())).collect();
    let driver = config::load_from(&["open-spanner", "serve"], &settings).expect("settings").config.db.driver;
    let work = move || {
        migrations::run(&driver).expect("migrated");
        for (at, seed) in SEEDS.into_iter().enumerate() {
            let mut world = World::new(open(&driver).expect("connected"), at as i64 + 1, seed);
            (0..STEPS).for_each(|_| world.step());
        }
    };
    tokio::task::spawn_blocking(work).await.expect("no panic");
}

fn at(text: &str) -> Timestamp {
    Timestamp::parse(text).expect(text)
}

impl World {
    fn new(mut conn: Conn, workspace_id: i64, seed: u64) -> World {
        let text = format!(
            "INSERT INTO workspaces (id, public_id, name, created_at) VALUES ({workspace_id}, 'w{workspace_id}', 'w', 0)"
        );
        diesel::sql_query(text).execute(&mut conn).expect("a workspace");
        let now = at("2027-12-30T21:47:11.25Z");
        let limited = Aggregation::ALL.into_iter().filter(|aggregation| !aggregation.needs_events());
        let meters = limited.map(|aggregation| {
            let meter = Meter {
                id: 0,
                public_id: uuid::Uuid::now_v7().to_string(),
                workspace_id,
                name: aggregation.as_str().to_owned(),
                description: String::new(),
                unit: "u".into(),
                aggregation,
                dimensions: Vec::new(),
                options: Default::default(),
                version: 1,
                event_retention_days: 90,
                pruned_before: None,
                created_at: now,
            };
            Arc::new(meters::sql::add(&mut conn, &meter).expect("a meter"))
        });
        let meters: Vec<Arc<Meter>> = meters.collect();
        let (rng, known) = (StdRng::seed_from_u64(seed), WriteCache::default());
        let mut world = World {
            conn,
            rng,
            now,
            workspace_id,
            meters: meters.to_vec(),
            known,
            plans: Vec::new(),
            limited: Vec::new(),
            held: SUBJECTS.map(|subject| (subject, Vec::new())).into(),
            counted: BTreeMap::new(),
        };
        for name in ["gold", "silver"] {
            let draft = world.draft(name);
            let plan = plans::add(&mut world.conn, workspace_id, &draft, now).expect("a plan");
            world.limited.push(vec![(0, limits_of(&plan))]);
            world.plans.push(plan);
        }
        world
    }

    fn draft(&mut self, name: &str) -> Draft {
        let mut limits = Vec::new();
        for meter in &self.meters {
            for (period, window) in PERIODS {
                if self.rng.random_bool(0.4) {
                    let limit = self.rng.random_range(1..400);
                    let window: serde_json::Value = serde_json::from_str(window).expect("JSON");
                    limits.push(serde_json::json!({"meter": meter.name, "period": period, "window": window,
                        "limit": limit}));
                }
            }
        }
        let body = serde_json::json!({"name": name, "limits": limits});
        Draft::parse(serde_json::from_str(&body.to_string()).expect("input")).expect("a draft")
    }

    fn subject(&mut self) -> &'static str {
        SUBJECTS.choose(&mut self.rng).copied().expect("some")
    }

    fn step(&mut self) {
        let pause =
            *[SECOND / 3, 40 * SECOND, HOUR, 7 * HOUR, DAY, 9 * DAY].choose(&mut self.rng).expect("some");
        self.now = Timestamp(self.now.0 + self.rng.random_range(1..=pause));
        match self.rng.random_range(0..20) {
            0 => self.assign(),
            1 if self.rng.random_bool(0.5) => self.unassign(),
            2 => self.update_plan(),
            _ => self.write(),
        }
        self.work();
        self.compare();
    }

    fn assign(&mut self) {
        let (subject, plan) = (self.subject(), self.rng.random_range(0..self.plans.len()));
        let later = self.rng.random_bool(0.3).then(|| self.now.plus(self.rng.random_range(1..20 * DAY)));
        let (plan_id, now) = (self.plans[plan].public_id.clone(), self.now.0);
        let zone = self.rng.random_bool(0.5).then(|| *ZONES.choose(&mut self.rng).expect("some"));
        let wish =
            Wish { plan_id, effective_at: later, zone: zone.map(|name| Zone::parse(name).expect("a zone")) };
        assignments::assign(&mut self.conn, self.workspace_id, subject, &wish, Clock::At(self.now))
            .expect("assigned");
        let from = later.map_or(now, |later| later.0);
        let held = self.held.get_mut(subject).expect("known");
        let running = held.iter().find(|held| held.from <= now && held.to.is_none_or(|to| to > now));
        let zone = zone.or(running.map(|held| held.zone)).unwrap_or("UTC");
        let mut anchor = running.map_or(from - from.rem_euclid(SECOND), |held| held.anchor);
        while running.is_none() && held.iter().any(|held| held.anchor == anchor) {
            anchor += SECOND;
        }
        for held in held.iter_mut().filter(|held| held.to.is_none_or(|to| to > now)) {
            held.to = Some(if held.from > now { now } else { from });
        }
        held.push(Held { plan, from, to: None, anchor, zone });
    }

    fn unassign(&mut self) {
        let (subject, now) = (self.subject(), self.now.0);
        let held = self.held.get_mut(subject).expect("known");
        let any = held.iter().any(|held| held.to.is_none_or(|to| to > now));
        let done = assignments::unassign(&mut self.conn, self.workspace_id, subject, Clock::At(self.now));
        assert_eq!(done.is_ok(), any, "{subject}");
        held.iter_mut().filter(|held| held.to.is_none_or(|to| to > now)).for_each(|held| held.to = Some(now));
    }

    fn update_plan(&mut self) {
        let plan = self.rng.random_range(0..self.plans.len());
        let (name, id) = (self.plans[plan].name.clone(), self.plans[plan].public_id.clone());
        let draft = self.draft(&name);
        // the model's assignments name lineages, and the current version of a lineage is in force
        self.plans[plan] = plans::update(&mut self.conn, self.workspace_id, &id, &draft, Clock::At(self.now))
            .expect("updated");
        self.limited[plan].push((self.now.0, limits_of(&self.plans[plan])));
    }

    fn write(&mut self) {
        let mut batch = Vec::new();
        for _ in 0..self.rng.random_range(1..6) {
            let meter = self.meters.choose(&mut self.rng).expect("some").clone();
            let offset = match self.rng.random_range(0..6) {
                0 => -self.rng.random_range(0..45 * DAY),
                1 => self.rng.random_range(0..15 * DAY),
                2 => -(self.now.0.rem_euclid(SECOND)),
                _ => 0,
            };
            let quantity = format!("{}.{}", self.rng.random_range(0..60), self.rng.random_range(1..1000));
            let input = Input {
                subject: Some(self.subject().to_owned()),
                meter: Some(meter.name.clone()),
                quantity: Some(InputQuantity(Quantity::parse(&quantity))),
                time: Some(self.now.plus(offset)),
                ..Input::default()
            };
            batch.push(event::validate(&meter, input, self.now, uuid::Uuid::now_v7()).expect("a good event"));
        }
        for event in &batch {
            let subject = SUBJECTS.into_iter().find(|subject| *subject == event.subject).expect("known");
            let second = |at: i64| at - at.rem_euclid(SECOND);
            let counts = |held: &&Held| {
                !held.is_void()
                    && second(held.from) <= event.time.0
                    && held.to.is_none_or(|to| to > event.time.0)
            };
            let held = self.held[subject].iter().filter(counts).max_by_key(|held| held.from);
            if let Some(held) = held {
                let counted = Counted {
                    at: event.time.0,
                    id: event.id,
                    quantity: event.quantity.clone(),
                    anchor: held.anchor,
                    series: self.series(subject, &event.meter.name, held.anchor),
                };
                self.counted.entry((subject, event.meter.id)).or_default().push(counted);
            }
        }
        let batch = Batch {
            origin: Origin::without_call(self.workspace_id, uuid::Uuid::now_v7()),
            kind: Kind::Bulk,
            events: batch,
            failed: 0,
            replay_key: None,
            received_at: self.now,
            consumes: None,
        };
        // as the store does: it needs a transaction around it
        let link = db::link(&mut self.conn);
        self.conn.batch_execute("BEGIN").expect("begun");
        let (_, learned) =
            insert::insert(&mut self.conn, link, &[Arc::new(batch)], 0, &self.known).expect("stored");
        self.conn.batch_execute("COMMIT").expect("committed");
        self.known.remember(learned);
    }

    /// What the worker does, at the model's time.
    fn work(&mut self) {
        let (token, now, until) = ([7; 16], self.now, self.now.plus(HOUR));
        let claim = Claim {
            queue: jobs::QUEUE,
            token: &token,
            now,
            until,
            limit: 100,
            per_workspace: None,
            only_unleased: false,
        };
        loop {
            let due = queue::claim(&mut self.conn, &claim).expect("claimed");
            if due.is_empty() {
                return;
            }
            for job in due {
                let evaluation: Evaluation = job.payload().expect("ours");
                let next = evaluate::evaluate(&mut self.conn, job.workspace_id, &evaluation, self.now);
                queue::finish(&mut self.conn, &job, &token, next.expect("evaluated")).expect("finished");
            }
        }
    }

    /// The ways in which an event counts: those of all limits that the subject has or had since the anchor, or will have.
    fn series(&self, subject: &str, meter: &str, anchor: i64) -> BTreeSet<String> {
        let mut series = BTreeSet::from([String::new()]);
        for held in self.held[subject].iter().filter(|held| held.anchor == anchor && !held.is_void()) {
            let versions = &self.limited[held.plan];
            for (at, (since, limits)) in versions.iter().enumerate() {
                let until = versions.get(at + 1).map_or(i64::MAX, |(next, _)| *next);
                if *since < held.to.unwrap_or(i64::MAX) && until > held.from {
                    let own = limits.iter().filter(|(name, _)| name == meter);
                    series.extend(own.map(|(_, key)| series_of(&in_zone(key, held.zone))));
                }
            }
        }
        series
    }

    /// The recount: how many events, and the value.
    fn recount(
        &self,
        subject: &str,
        meter: &Meter,
        key: &str,
        anchor: i64,
        (from, to): (i64, i64),
    ) -> (i64, Quantity) {
        let series = series_of(key);
        let all = self.counted.iter().find(|((name, id), _)| *name == subject && *id == meter.id);
        // an event of the second in which the plan was given
        let first = from == anchor && series.is_empty();
        let mut inside: Vec<&Counted> = all
            .map(|(_, counted)| counted.as_slice())
            .unwrap_or_default()
            .iter()
            .filter(|counted| counted.anchor == anchor && counted.series.contains(&series))
            .filter(|counted| counted.at < to && (counted.at >= from || first))
            .collect();
        inside.sort_by_key(|counted| (counted.at, counted.id));
        let count = inside.len() as i64;
        let (Some(earliest), Some(latest)) = (inside.first(), inside.last()) else {
            return (0, Quantity::zero());
        };
        let mut sum = Quantity::zero();
        inside.iter().for_each(|counted| sum += &counted.quantity);
        let quantities = || inside.iter().map(|counted| &counted.quantity);
        let value = match meter.aggregation {
            Aggregation::Sum => sum,
            Aggregation::Count => Quantity::from(count),
            Aggregation::Avg => sum.divide(&Quantity::from(count)),
            Aggregation::Min => quantities().min().expect("some").clone(),
            Aggregation::Max => quantities().max().expect("some").clone(),
            Aggregation::First => earliest.quantity.clone(),
            Aggregation::Last => latest.quantity.clone(),
            Aggregation::Rate => Quantity::from(count).divide(&Quantity::from((to - from) / SECOND)),
            _ => unreachable!("no plan limits a meter that is made of its events"),
        };
        (count, value)
    }

    fn compare(&mut self) {
        for subject in SUBJECTS {
            let found =
                progress::of_subject(&mut self.conn, self.workspace_id, subject, self.now).expect("read");
            let now = self.now.0;
            let held =
                self.held[subject].iter().find(|h| h.from <= now && h.to.is_none_or(|to| to > now)).cloned();
            assert_eq!(found.is_some(), held.is_some(), "{subject} at {}", self.now);
            let states = self.listed(listing::states, subject);
            let Some(((plan, items), held)) = found.zip(held) else {
                assert!(states.is_empty(), "no plan, no states: {states:?}");
                continue;
            };
            assert_eq!(plan.public_id, self.plans[held.plan].public_id);
            assert_eq!(states.len(), items.len(), "{subject} at {}", self.now);
            for item in items {
                let key = item.limit.period.as_str();
                let (from, to) = window(key, held.anchor, now);
                assert_eq!((item.window.from.0, item.window.to.0), (from, to), "{key} at {}", self.now);
                let (count, value) = self.recount(subject, &item.meter, key, held.anchor, (from, to));
                let what = format!("{subject} {} {:?} at {}", item.meter.name, item.limit.period, self.now);
                assert_eq!((item.event_count, &item.measure.current), (count, &value), "{what}");
                let state = states
                    .iter()
                    .find(|s| s.meter == item.meter.name && s.period == key)
                    .unwrap_or_else(|| panic!("no state of {what}"));
                // what slides is looked at now and then
                let (value, state_then) = match (key.starts_with("sliding"), state.at == now) {
                    (true, false) => {
                        let then = window(key, held.anchor, state.at);
                        let (_, before) = self.recount(subject, &item.meter, key, held.anchor, then);
                        assert!(before == value || now - state.at <= (to - from) / 60 + SECOND, "{what}");
                        let measure = QuotaUsage::against(&item.limit, before.clone());
                        (before, measure.state)
                    }
                    _ => (value, item.measure.state),
                };
                let stored = (state.current_value.as_str(), state.state.as_str());
                assert_eq!(stored, (value.to_json().as_str(), state_then.as_str()), "state of {what}");
            }
        }
        self.compare_snapshots();
    }

    fn compare_snapshots(&mut self) {
        for subject in SUBJECTS {
            for snapshot in self.listed(listing::periods, subject) {
                let meter =
                    self.meters.iter().find(|meter| meter.name == snapshot.meter).expect("known").clone();
                let (from, to) = (snapshot.starts_at, snapshot.ends_at);
                let period = Period::parse(&snapshot.period).expect("a period");
                let key = period.as_str();
                // anchors may share a window start; one of them must explain the row
                let anchors: BTreeSet<i64> = self.held[subject].iter().map(|held| held.anchor).collect();
                let recounts: Vec<(i64, String)> = anchors
                    .into_iter()
                    .filter(|anchor| window(key, *anchor, from.max(*anchor)) == (from, to))
                    .filter(|anchor| self.is_limited(subject, &meter, key, *anchor, from, to))
                    .map(|anchor| self.recount(subject, &meter, key, anchor, (from, to)))
                    .map(|(count, value)| (count, value.to_json()))
                    .collect();
                // a limit that was dropped in the middle of a window leaves its snapshot as it was
                if recounts.is_empty() {
                    continue;
                }
                let row = (snapshot.event_count, snapshot.current_value.clone());
                assert!(recounts.contains(&row), "{subject} {snapshot:?} at {}: {recounts:?}", self.now);
            }
        }
    }

    /// Whether the plan that was in force last in a window limits the meter for the period.
    fn is_limited(&self, subject: &str, meter: &Meter, key: &str, anchor: i64, from: i64, to: i64) -> bool {
        let now = self.now.0;
        let inside = |held: &&Held| {
            !held.is_void()
                && held.anchor == anchor
                && held.from < to
                && held.from <= now
                && held.to.is_none_or(|end| end > from)
        };
        let Some(held) = self.held[subject].iter().filter(inside).max_by_key(|held| held.from) else {
            return false;
        };
        let end = to.min(now + 1).min(held.to.unwrap_or(i64::MAX));
        let version = self.limited[held.plan].iter().rev().find(|(since, _)| *since < end);
        let is_own = |(name, own): &(String, String)| *name == meter.name && in_zone(own, held.zone) == key;
        version.is_some_and(|(_, limits)| limits.iter().any(is_own))
    }

    fn listed(&mut self, list: List, subject: &str) -> Vec<listing::Entry> {
        let filter = Filter { subject: subject.to_owned(), ..Filter::default() };
        list(&mut self.conn, self.workspace_id, &filter, 100_000).expect("listed")
    }
}

fn limits_of(plan: &Plan) -> Limited {
    plan.limits.iter().map(|limit| (limit.meter.clone(), limit.period.to_string())).collect()
}

type List = fn(&mut Conn, i64, &Filter, i64) -> Result<Vec<listing::Entry>, open_spanner::db::DbError>;

/// A limit with a calendar that names no zone has that of the subject.
fn in_zone(key: &str, zone: &str) -> String {
    match key {
        "calendar day" | "calendar 15m" => format!("{key} {zone}"),
        _ => key.to_owned(),
    }
}

/// What counts together: days of one zone that begin at one time, or the steps of windows that slide.
fn series_of(key: &str) -> String {
    match key.split(' ').collect::<Vec<_>>()[..] {
        [_] => String::new(),
        ["sliding", "minute"] => "by the second".to_owned(),
        ["sliding", _] => "by the minute".to_owned(),
        ["calendar", "15m", zone] => format!("15m {zone}"),
        ["calendar", _, zone, ..] | ["month", "from", "2027-08-30T22:00:00Z", zone] => format!("days {zone}"),
        _ => key.to_owned(),
    }
}

/// The window that holds an instant, with calendars of its own.
fn window(key: &str, anchor: i64, instant: i64) -> (i64, i64) {
    match key.split(' ').collect::<Vec<_>>()[..] {
        [word] => since_anchor(word, anchor, instant),
        ["sliding", size] => {
            let (width, step) = match size {
                "minute" => (60 * SECOND, SECOND),
                "90min" => (90 * 60 * SECOND, 60 * SECOND),
                _ => (2 * DAY, 60 * SECOND),
            };
            let to = instant - instant.rem_euclid(step) + step;
            (to - width, to)
        }
        ["calendar", size, zone, ..] => on_the_wall(size, key.ends_with("sunday"), zone, instant),
        [_, "from", since, zone] => {
            let zone = TimeZone::get(zone).expect("a zone");
            let local = zone.to_datetime(stamp(at(since).0));
            let start = |n: i32| micros(local.checked_add(n.months()).expect("in time"), &zone);
            let mut n = 0;
            while start(n) > instant {
                n -= 1;
            }
            while start(n + 1) <= instant {
                n += 1;
            }
            (start(n), start(n + 1))
        }
        _ => panic!("{key}"),
    }
}

fn stamp(instant: i64) -> jiff::Timestamp {
    jiff::Timestamp::from_microsecond(instant).expect("in time")
}

fn micros(local: DateTime, zone: &TimeZone) -> i64 {
    zone.to_timestamp(local).expect("in time").as_microsecond()
}

fn on_the_wall(size: &str, sunday: bool, zone: &str, instant: i64) -> (i64, i64) {
    let zone = TimeZone::get(zone).expect("a zone");
    if size == "15m" {
        let offset = i64::from(zone.to_offset(stamp(instant)).seconds()) * SECOND;
        let width = 15 * 60 * SECOND;
        let from = instant - (instant + offset).rem_euclid(width);
        return (from, from + width);
    }
    let date = zone.to_datetime(stamp(instant)).date();
    let (from, to) = match size {
        "day" => (date, date + 1.day()),
        "week" => {
            let weekday = date.weekday();
            let since =
                if sunday { weekday.to_sunday_zero_offset() } else { weekday.to_monday_zero_offset() };
            let from = date - i32::from(since).days();
            (from, from + 7.days())
        }
        "month" => (date.first_of_month(), date.first_of_month() + 1.month()),
        "quarter" => {
            let from = date.first_of_month() - i32::from((date.month() - 1) % 3).months();
            (from, from + 3.months())
        }
        _ => panic!("{size}"),
    };
    (micros(from.at(0, 0, 0, 0), &zone), micros(to.at(0, 0, 0, 0), &zone))
}

/// Found by walking from the anchor.
fn since_anchor(word: &str, anchor: i64, instant: i64) -> (i64, i64) {
    let start = |n: i64| match word {
        "day" => anchor + n * DAY,
        "week" => anchor + n * 7 * DAY,
        "month" => months_after(anchor, n),
        _ => months_after(anchor, 12 * n),
    };
    let mut n = 0;
    while start(n + 1) <= instant {
        n += 1;
    }
    (start(n), start(n + 1))
}

fn months_after(anchor: i64, months: i64) -> i64 {
    let (days, time) = (anchor.div_euclid(DAY), anchor.rem_euclid(DAY));
    // the civil date of a count of days, the slow way
    let (mut year, mut month, mut left) = (1970, 0, days);
    while left >= length(year, month) {
        left -= length(year, month);
        (year, month) = if month == 11 { (year + 1, 0) } else { (year, month + 1) };
    }
    let wanted = year * 12 + month + months;
    let (to_year, to_month) = (wanted / 12, wanted % 12);
    let mut total = 0;
    for y in 1970..to_year {
        total += (0..12).map(|m| length(y, m)).sum::<i64>();
    }
    total += (0..to_month).map(|m| length(to_year, m)).sum::<i64>();
    (total + left.min(length(to_year, to_month) - 1)) * DAY + time
}

fn length(year: i64, month: i64) -> i64 {
    let leap = year % 4 == 0 && (year % 100 != 0 || year % 400 == 0);
    match month {
        1 if leap => 29,
        1 => 28,
        3 | 5 | 8 | 10 => 30,
        _ => 31,
    }
}
