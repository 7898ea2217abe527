//! `serve --demo`: a workspace of its own with three weeks of usage, plans and alerts, so that every page shows
//! something. Filled over REST, like any client would, so that it is as real as the rest; but plans are in force since
//! before the first event, which no client can say, because events count for the plan that was in force at their time.

use std::net::SocketAddr;
use std::time::Duration;

use serde_json::{Value, json};

use crate::auth::Auth;
use crate::db::identity::Clock;
use crate::db::{Conn, Store, audit};
use crate::entitlements::sql::assignments::{self, Wish};
use crate::error::{Error, Result};
use crate::metering::time::{DAY, HOUR, SECOND, Timestamp};
use crate::output::print_line;

const EMAIL: &str = "demo@example.com";
const DAYS: i64 = 21;
const BATCH: usize = 500;
/// Of either plan.
const LIMITS: usize = 2;
/// How often and how long it is looked whether limits are evaluated.
const EVALUATION_LOOK: Duration = Duration::from_millis(250);
const EVALUATION_LOOKS: usize = 160;

/// Customers of the demonstration and how much they use, the smallest 1.
const CUSTOMERS: [(&str, i64); 10] = [
    ("acme", 9),
    ("blue-harbour", 7),
    ("cobalt-labs", 6),
    ("dune-analytics", 5),
    ("ember", 4),
    ("fjord-travel", 3),
    ("granite", 2),
    ("helio", 2),
    ("ivy-bank", 1),
    ("juniper", 1),
];
const MODELS: [&str; 3] = ["small", "medium", "large"];
const REGIONS: [&str; 2] = ["eu-west", "us-east"];
const ROUTES: [&str; 4] = ["/v1/chat", "/v1/embed", "/v1/search", "/v1/files"];

/// Fills the workspace of the demonstration and prints how to get in; once: it is left alone when it is there.
pub async fn fill(address: SocketAddr, auth: Auth, store: Store) {
    let host = if address.ip().is_unspecified() { "127.0.0.1".to_owned() } else { address.ip().to_string() };
    let base = match address {
        SocketAddr::V6(_) if !address.ip().is_unspecified() => format!("http://[{host}]:{}", address.port()),
        _ => format!("http://{host}:{}", address.port()),
    };
    match Demo::open(&base).await {
        Ok(Some((demo, password))) => match demo.fill(&auth, &store).await {
            Ok(events) => {
                print_line!(
                    "demo: {events} events in a workspace of its own\n  sign in   {base}/ as {EMAIL}, password \
                     {password}\n  API key   {}",
                    demo.key
                );
                log::info!(events; "the demo is filled");
            }
            Err(error) => log::warn!(error:% = error; "the demo was not filled"),
        },
        Ok(None) => log::info!("the demo is there already"),
        Err(error) => log::warn!(error:% = error; "the demo was not made"),
    }
}

struct Demo {
    http: reqwest::Client,
    base: String,
    key: String,
}

impl Demo {
    /// A user, a session for a moment, and a key; none when the user is there already.
    async fn open(base: &str) -> Result<Option<(Demo, String)>> {
        // an error means that there is one already
        let _ = rustls::crypto::ring::default_provider().install_default();
        let http = reqwest::Client::builder().no_proxy().timeout(Duration::from_secs(60)).build();
        let mut demo =
            Demo { http: http.map_err(Error::internal)?, base: base.to_owned(), key: String::new() };
        let password = crate::chance::name().simple().to_string();
        let credentials = json!({"email": EMAIL, "password": password});
        match demo.send("POST", "/v1/auth/users", &credentials, "").await? {
            (409, ..) => return Ok(None),
            (201, ..) => {}
            (status, text, _) => return Err(refused("/v1/auth/users", status, &text)),
        }
        let (status, text, cookies) = demo.send("POST", "/v1/auth/sessions", &credentials, "").await?;
        if status != 201 {
            return Err(refused("/v1/auth/sessions", status, &text));
        }
        let wish = json!({"name": "demo", "scopes": ["*"]});
        let (status, text, _) = demo.send("POST", "/v1/auth/api-keys", &wish, &cookies).await?;
        let made: Value = serde_json::from_str(&text).unwrap_or_default();
        match made["key"].as_str() {
            Some(key) if status == 201 => demo.key = key.to_owned(),
            _ => return Err(refused("/v1/auth/api-keys", status, "no key")),
        }
        Ok(Some((demo, password)))
    }

    /// Status, body, and the cookies that were set, as they are sent back.
    async fn send(
        &self,
        method: &str,
        path: &str,
        body: &Value,
        cookies: &str,
    ) -> Result<(u16, String, String)> {
        let method = reqwest::Method::from_bytes(method.as_bytes()).map_err(Error::internal)?;
        let mut request = self.http.request(method, format!("{}{path}", self.base));
        if !body.is_null() {
            request = request.header("content-type", "application/json").body(body.to_string());
        }
        if !self.key.is_empty() {
            request = request.bearer_auth(&self.key);
        }
        if !cookies.is_empty() {
            request = request.header("cookie", cookies);
        }
        let response = request.send().await.map_err(Error::unavailable)?;
        let set = response.headers().get_all("set-cookie").iter().filter_map(|value| value.to_str().ok());
        let cookies: Vec<&str> = set.filter_map(|line| line.split(';').next()).collect();
        let (status, cookies) = (response.status().as_u16(), cookies.join("; "));
        Ok((status, response.text().await.map_err(Error::unavailable)?, cookies))
    }

    async fn done(&self, method: &str, path: &str, body: &Value) -> Result<Value> {
        let (status, text, _) = self.send(method, path, body, "").await?;
        if !(200..300).contains(&status) {
            return Err(refused(path, status, &text));
        }
        serde_json::from_str(&text).map_err(Error::internal)
    }

    async fn fill(&self, auth: &Auth, store: &Store) -> Result<usize> {
        let now = Timestamp::now();
        self.meters().await?;
        let workspace_id = auth.by_key(&self.key).await?.workspace_id;
        // half a day earlier: a day of the plan is half over, and not just begun
        assign(store, workspace_id, &self.plans().await?, now.plus(-DAYS * DAY - DAY / 2)).await?;
        let events = events(now);
        for batch in events.chunks(BATCH) {
            self.done("POST", "/v1/usages/bulk", &Value::from(batch)).await?;
        }
        self.alerts().await?;
        self.evaluated(&events).await;
        Ok(events.len())
    }

    /// Waits until the limits are evaluated with all of the history: nobody is to meet a page of quotas that are zero. Not for
    /// ever, for the workers may run elsewhere, or nowhere.
    async fn evaluated(&self, events: &[Value]) {
        for _ in 0..EVALUATION_LOOKS {
            let found = self.done("GET", "/v1/entitlements/states?limit=1000", &Value::Null).await;
            let found = found.unwrap_or_default();
            let states = found["items"].as_array().map(Vec::as_slice).unwrap_or_default();
            // the month of a plan began with the history
            let is_counted = |(subject, _): &(&str, i64)| {
                let is_its = |one: &&Value| one["meter"] == "tokens" && one["subject"] == *subject;
                let used: i64 =
                    events.iter().filter(is_its).filter_map(|event| event["quantity"].as_i64()).sum();
                states.iter().filter(is_its).any(|state| state["current"].as_f64() == Some(used as f64))
            };
            let is_whole = states.len() >= CUSTOMERS.len() * LIMITS && CUSTOMERS.iter().all(is_counted);
            if is_whole && self.is_idle().await {
                return;
            }
            tokio::time::sleep(EVALUATION_LOOK).await;
        }
        log::info!("the limits of the demo are not evaluated yet");
    }

    /// Nothing waits to be evaluated.
    async fn is_idle(&self) -> bool {
        let stats = self.done("GET", "/v1/system/stats", &Value::Null).await.unwrap_or_default();
        let workers = stats["worker_health"].as_array().map(Vec::as_slice).unwrap_or_default();
        let is_idle = |one: &Value| one["pending_jobs"] == 0 && one["running_jobs"] == 0;
        workers.iter().any(|one| one["name"] == "entitlement" && is_idle(one))
    }

    async fn meters(&self) -> Result<()> {
        let dimension = |name: &str| json!({"name": name, "type": "string"});
        for meter in [
            json!({"name": "tokens", "unit": "token", "aggregation": "sum", "description": "Tokens of the models",
                   "dimensions": [dimension("model"), dimension("region")]}),
            json!({"name": "api_calls", "unit": "call", "aggregation": "count", "description": "Calls of the interface",
                   "dimensions": [dimension("route")]}),
            json!({"name": "storage", "unit": "GB", "aggregation": "max", "description": "Most storage in use"}),
        ] {
            self.done("POST", "/v1/meters", &meter).await?;
        }
        Ok(())
    }

    /// Ids of the plan of small customers and of the others.
    async fn plans(&self) -> Result<[String; 2]> {
        let limit =
            |meter: &str, period: &str, most: i64| json!({"meter": meter, "period": period, "limit": most});
        let free = json!({"name": "free", "limits": [limit("tokens", "month", 150_000), limit("api_calls", "day", 40)]});
        // the largest customers are near it, whenever this is run
        let storage = json!({"meter": "storage", "period": "month", "limit": 270, "warning_percent": 75});
        let team = json!({"name": "team", "limits": [limit("tokens", "month", 2_000_000), storage]});
        let mut ids = [String::new(), String::new()];
        for (id, plan) in ids.iter_mut().zip([free, team]) {
            let made = self.done("POST", "/v1/plans", &plan).await?;
            *id = made["id"].as_str().unwrap_or_default().to_owned();
        }
        Ok(ids)
    }

    /// Rules whose webhooks go nowhere.
    async fn alerts(&self) -> Result<()> {
        let nowhere = json!({"name": "nowhere", "enabled": false, "webhook_url": "https://example.com/demo"});
        let destination = self.done("POST", "/v1/alerts/destinations", &nowhere).await?;
        for (name, meter, threshold) in
            [("tokens of a day", "tokens", 100_000), ("storage is filling", "storage", 300)]
        {
            let rule = json!({"name": name, "meter": meter, "threshold": threshold, "destination_id": destination["id"], "window_seconds": 86_400});
            self.done("POST", "/v1/alerts", &rule).await?;
        }
        Ok(())
    }
}

/// Each customer gets its plan as if that had been done then.
async fn assign(store: &Store, workspace_id: i64, plans: &[String; 2], then: Timestamp) -> Result<()> {
    for (subject, weight) in CUSTOMERS {
        let plan_id = plans[usize::from(weight > 2)].clone();
        let wish = Wish { plan_id, ..Wish::default() };
        let assign = move |conn: &mut Conn| {
            assignments::assign(conn, workspace_id, subject, &wish, Clock::At(then))?;
            audit::in_workspace(workspace_id);
            Ok(())
        };
        store.write("assignments::assign", assign).await?;
    }
    Ok(())
}

fn refused(path: &str, status: u16, text: &str) -> Error {
    Error::unavailable(format_args!("{path} answered {status} {text}"))
}

/// Numbers that look like chance and are the same every time.
struct Dice(u64);

impl Dice {
    fn roll(&mut self, sides: i64) -> i64 {
        self.0 = self.0.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        ((self.0 >> 33) % sides.unsigned_abs().max(1)) as i64
    }

    fn pick<T: Copy>(&mut self, of: &[T]) -> T {
        of[self.roll(of.len() as i64) as usize]
    }
}

/// Three weeks up to now: busy by day, quiet by night and at weekends, growing a little.
fn events(now: Timestamp) -> Vec<Value> {
    let (mut dice, mut events) = (Dice(7), Vec::new());
    for hour in 0..DAYS * 24 {
        let start = Timestamp(now.0 - DAYS * DAY + hour * HOUR);
        let of_day = start.0.rem_euclid(DAY) / HOUR;
        // the first day of 1970 was a Thursday
        let is_weekend = matches!(start.0.div_euclid(DAY).rem_euclid(7), 2 | 3);
        let busy = if (8..20).contains(&of_day) && !is_weekend { 6 } else { 2 };
        for (subject, weight) in CUSTOMERS {
            // of ten dice
            if dice.roll(10) >= busy.min(weight + 2) {
                continue;
            }
            let at = start.plus(dice.roll(59) * 60 * SECOND).to_string();
            let tokens = weight * (100 + dice.roll(900)) * (DAYS * 24 + hour) / (DAYS * 24);
            let mut push = |meter: &str, quantity: i64, metadata: Value| {
                let key = format!("demo-{}", events.len());
                events.push(
                    json!({"idempotency_key": key, "meter": meter, "subject": subject, "quantity": quantity,
                                   "timestamp": at, "metadata": metadata}),
                );
            };
            push("tokens", tokens, json!({"model": dice.pick(&MODELS), "region": dice.pick(&REGIONS)}));
            push("api_calls", 1, json!({"route": dice.pick(&ROUTES)}));
            if of_day == 12 {
                push("storage", weight * 20 + hour / 6 + dice.roll(9), json!({}));
            }
        }
    }
    events
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn three_weeks_are_believable() {
        let now = Timestamp::parse("2026-06-30T12:00:00Z").expect("a time");
        let made = events(now);
        assert!((2_000..20_000).contains(&made.len()), "{}", made.len());
        assert_eq!(made, events(now), "the same every time");
        let of = |meter: &str| made.iter().filter(|event| event["meter"] == meter).count();
        assert!(of("tokens") > 500 && of("api_calls") > 500 && of("storage") > 50);
        assert!(made.iter().all(|event| event["quantity"].as_i64().is_some_and(|quantity| quantity > 0)));
        let last = made.iter().filter_map(|event| event["timestamp"].as_str()).max().expect("some");
        assert!(last <= "2026-06-30T12:00:00Z", "{last}");
    }
}
