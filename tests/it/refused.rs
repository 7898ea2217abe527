//! Events that were refused: what is kept of them by each door, how they are listed, and that every code of the
//! interface can be met and is explained to people.

use std::collections::BTreeSet;
use std::time::Duration;

use open_spanner::error::Code;
use open_spanner::grpc::pb::v1;
use open_spanner::grpc::pb::v1::usage_service_client::UsageServiceClient;
use serde_json::{Value, json};

use crate::dashboard::{Browser, furnished};
use crate::pages::session_of;
use crate::support::client::NOON;
use crate::support::{Client, Database, Server, Workspace, on_both_databases};

on_both_databases!(
    each_door_tells_what_it_refused,
    keys_are_not_told_of_events_of_other_meters,
    payloads_are_cut_and_inert,
    payloads_can_be_left_out,
    refused_events_are_paged_and_filtered,
    every_code_is_met_and_explained,
);

/// The refused events of a workspace, oldest first, when there are so many.
async fn refused(client: &Client, count: usize) -> Vec<Value> {
    let mut items = Vec::new();
    for _ in 0..100 {
        items = client.get("/v1/events/refused?limit=200").await.json(200)["items"]
            .as_array()
            .expect("items")
            .clone();
        if items.len() >= count {
            break;
        }
        tokio::time::sleep(Duration::from_millis(100)).await;
    }
    assert_eq!(items.len(), count, "{items:#?}");
    items.reverse();
    items
}

async fn metered(server: &Server) -> Workspace {
    let workspace = server.workspace().await;
    let meter = json!({"name": "tokens", "unit": "token", "aggregation": "sum",
        "dimensions": [{"name": "model", "type": "string", "required": true}]});
    workspace.post("/v1/meters", &meter).await.expect(201);
    workspace
}

fn event(key: &str) -> Value {
    json!({"idempotency_key": key, "meter": "tokens", "subject": "acme", "quantity": 1, "timestamp": NOON,
        "metadata": {"model": "small"}})
}

fn with(key: &str, field: &str, value: Value) -> Value {
    let mut event = event(key);
    event[field] = value;
    event
}

async fn post_as(client: &Client, content_type: &str, path: &str, body: String) {
    client.with("content-type", content_type).post_bytes(path, body.into_bytes()).await;
}

async fn each_door_tells_what_it_refused(database: Database) {
    let server = Server::start(&database);
    let workspace = metered(&server).await;
    let made =
        workspace.session.post("/v1/auth/api-keys", &json!({"name": "k", "scopes": ["*"]})).await.json(201);
    let secret = made["key"].as_str().expect("a secret").to_owned();
    let key = server.client().with_key(&secret);
    key.post("/v1/usages", &with("k1", "metadata", json!({}))).await.error(400, "invalid_input");
    key.post("/v1/usages/bulk", &json!([event("k2"), with("k3", "subject", json!("a b"))])).await.expect(201);
    let lines = format!("{}\n{{broken\n{}", event("k4"), with("k5", "quantity", json!(0)));
    post_as(&key, "application/x-ndjson", "/v1/usages/bulk", lines).await;
    let cloud = json!({"specversion": "1.0", "source": "s", "type": "tokens", "subject": "acme"});
    post_as(&key, "application/cloudevents+json", "/v1/cloudevents", cloud.to_string()).await;
    let open = json!({"id": "o", "source": "s", "type": "nosuch", "subject": "acme"});
    key.post_text("/api/v1/events", open.to_string()).await.expect(400);
    key.post("/v1/entitlements/consume", &with("k6", "timestamp", json!("noon")))
        .await
        .error(400, "invalid_timestamp");
    let channel =
        tonic::transport::Channel::from_shared(format!("http://{}", server.grpc())).expect("an address");
    let mut grpc = UsageServiceClient::new(channel.connect().await.expect("it listens"));
    let wrong_time = prost_types::Timestamp { seconds: i64::MAX, nanos: 0 };
    for timestamp in [None, Some(wrong_time)] {
        let event = v1::UsageEventInput {
            idempotency_key: "k7".to_owned(),
            subject: "acme".to_owned(),
            meter: "tokens".to_owned(),
            quantity: if timestamp.is_some() { 1.0 } else { -1.0 },
            metadata: [(
                "model".to_owned(),
                prost_types::Value { kind: Some(prost_types::value::Kind::StringValue("small".to_owned())) },
            )]
            .into(),
            timestamp,
        };
        let mut request = tonic::Request::new(v1::CreateUsageRequest { event: Some(event) });
        request.metadata_mut().insert("authorization", format!("Bearer {secret}").parse().expect("a value"));
        grpc.create_usage(request).await.expect_err("it is refused");
    }
    // the same key for something else, and a dry run, of which nothing is kept
    key.post("/v1/usages", &with("k2", "quantity", json!(2))).await.expect(201);
    key.post("/v1/usages?dry_run=true", &with("dry", "quantity", json!(0))).await.expect(200);

    let told = refused(&workspace.key, 10).await;
    let text = |event: &Value, name: &str| event[name].as_str().unwrap_or("-").to_owned();
    let found: Vec<[String; 5]> = told
        .iter()
        .map(|event| ["door", "code", "field", "idempotency_key", "meter"].map(|name| text(event, name)))
        .collect();
    let mut expected = [
        ["rest", "invalid_input", "metadata.model", "k1", "tokens"],
        ["bulk", "invalid_input", "subject", "k3", "tokens"],
        ["ndjson", "invalid_json", "-", "-", ""],
        ["ndjson", "invalid_input", "quantity", "k5", "tokens"],
        ["cloudevents", "invalid_input", "id", "-", "tokens"],
        ["openmeter", "not_found", "meter", "s o", "nosuch"],
        ["consume", "invalid_timestamp", "timestamp", "k6", "tokens"],
        ["grpc", "invalid_input", "quantity", "k7", "tokens"],
        ["grpc", "invalid_input", "timestamp", "k7", "tokens"],
        ["rest", "conflict", "quantity", "k2", "tokens"],
    ]
    .map(|row| row.map(str::to_owned))
    .to_vec();
    let mut found_sorted = found.clone();
    found_sorted.sort();
    expected.sort();
    assert_eq!(found_sorted, expected);
    assert!(told.iter().all(|event| event["api_key_id"] == made["id"]), "{told:#?}");
    let of = |door: &str, field: &str| {
        told.iter().find(|event| event["door"] == door && event["field"] == field).expect("one").clone()
    };
    let sent = |event: &Value| -> Value {
        serde_json::from_str(event["payload"].as_str().expect("a payload")).expect("JSON")
    };
    assert_eq!(sent(&of("rest", "metadata.model")), with("k1", "metadata", json!({})));
    assert_eq!(sent(&of("cloudevents", "id")), cloud);
    assert_eq!(sent(&of("grpc", "quantity"))["metadata"]["model"], "small");
    let broken = told.iter().find(|event| event["code"] == "invalid_json").expect("one");
    assert_eq!(broken["payload"], "{broken");
    let conflict = of("rest", "quantity");
    assert_eq!((&conflict["sent"]["quantity"], &conflict["stored"]["quantity"]), (&json!(2), &json!(1)));
    assert!(
        conflict["message"].as_str().expect("words").ends_with("another event: quantity differs"),
        "{conflict}"
    );
    for one in &told {
        let path = format!("/v1/events/refused/{}", one["id"].as_str().expect("an id"));
        assert_eq!(&workspace.get(&path).await.json(200), one);
    }
}

/// A key of somebody else's event that is used again leads to that event, in the list of conflicts too.
async fn keys_are_not_told_of_events_of_other_meters(database: Database) {
    let server = Server::start(&database);
    let workspace = metered(&server).await;
    workspace.meter("mine", "sum").await;
    let wish = json!({"name": "narrow", "scopes": ["*"], "allowed_meters": ["mine"]});
    let made = workspace.session.post("/v1/auth/api-keys", &wish).await.json(201);
    let narrow = server.client().with_key(made["key"].as_str().expect("a secret"));
    let mine = |key: &str, quantity: u32| json!({"idempotency_key": key, "meter": "mine", "subject": "s", "quantity": quantity, "timestamp": NOON});
    workspace.post("/v1/usages", &with("theirs", "quantity", json!(42))).await.expect(201);
    narrow.post("/v1/usages", &mine("theirs", 1)).await.error(403, "forbidden");
    narrow.post("/v1/usages", &mine("own", 1)).await.expect(201);
    narrow.post("/v1/usages", &mine("own", 2)).await.expect(201);
    let all = refused(&workspace.key, 2).await;
    let stored = |events: &[Value]| -> Vec<Value> {
        events.iter().map(|event| event["stored"]["quantity"].clone()).collect()
    };
    assert_eq!(stored(&all), [json!(42), json!(1)], "{all:#?}");
    let seen = narrow.get("/v1/events/refused?meter=mine").await.json(200);
    let mut seen = seen["items"].as_array().expect("items").clone();
    seen.reverse();
    assert_eq!(stored(&seen), [Value::Null, json!(1)], "{seen:#?}");
    let path = format!("/v1/events/refused/{}", all[0]["id"].as_str().expect("an id"));
    let one = narrow.get(&path).await.json(200);
    assert_eq!((&one["sent"]["quantity"], &one["stored"]), (&json!(1), &Value::Null), "{one:#?}");
}

async fn payloads_are_cut_and_inert(database: Database) {
    let server = Server::start(&database);
    let workspace = metered(&server).await;
    let long = with("long", "metadata", json!({"model": 1, "note": "é".repeat(5_000)}));
    workspace.post("/v1/usages", &long).await.error(400, "invalid_input");
    let nul = with("nul", "metadata", json!({"model": "a\u{0}b"}));
    workspace.post("/v1/usages/bulk", &json!([nul])).await.expect(400);
    let raw = "{\"meter\":\"a\0b\"";
    workspace.post_text("/v1/usages", raw).await.error(400, "invalid_json");
    let secret = workspace.header("authorization").replace("Bearer ", "");
    workspace
        .post("/v1/usages", &with("leak", "metadata", json!({"auth": secret})))
        .await
        .error(400, "invalid_input");
    let script = "<script>alert(1)</script>";
    workspace.post("/v1/usages", &with(script, "meter", json!(script))).await.error(404, "not_found");
    let told = refused(&workspace.key, 5).await;
    let payload = |at: usize| told[at]["payload"].as_str().expect("a payload");
    assert!((4_090..=4_096).contains(&payload(0).len()) && payload(0).ends_with('é'), "{}", payload(0).len());
    assert_eq!(payload(2), "{\"meter\":\"ab\"");
    assert!(payload(3).contains("osp_sk_…") && !payload(3).contains(&secret), "{}", payload(3));

    let mut browser = Browser::new(&server);
    let access = workspace.session.header("cookie").replace("open_spanner_access=", "");
    browser.cookies.push(("open_spanner_access".to_owned(), access));
    for one in &told {
        let path = format!("/events/refused/{}", one["id"].as_str().expect("an id"));
        let page = browser.get(&path).await.expect(200).text;
        assert!(page.contains("What was sent") && !page.contains(script), "{page}");
    }
    let page = browser.get(&format!("/events/refused/{}", told[3]["id"].as_str().expect("an id"))).await.text;
    assert!(
        page.contains("metadata.model") && page.contains("not sent") && page.contains("Came in by"),
        "{page}"
    );
}

async fn payloads_can_be_left_out(database: Database) {
    let server = Server::start_with(&database, &[("OPEN_SPANNER_REFUSED_EVENT_PAYLOADS", "false")]);
    let workspace = metered(&server).await;
    workspace.post("/v1/usages", &event("a")).await.expect(201);
    workspace.post("/v1/usages", &with("a", "quantity", json!(2))).await.expect(201);
    workspace.post("/v1/usages", &with("b", "quantity", json!(0))).await.error(400, "invalid_input");
    for one in refused(&workspace.key, 2).await {
        assert!(
            one.get("payload").is_none() && one.get("sent").is_none() && one.get("stored").is_none(),
            "{one}"
        );
        assert_eq!(one["field"], "quantity");
    }
}

async fn refused_events_are_paged_and_filtered(database: Database) {
    let server = Server::start(&database);
    let workspace = metered(&server).await;
    let many: Vec<Value> = (0..160)
        .map(|n| {
            let mut event =
                with(&format!("k{n}"), "metadata", json!({"model": "m", "note": "x".repeat(4_000)}));
            if n % 2 == 0 {
                event["metadata"]["model"] = json!(1);
            } else {
                event["subject"] = json!("a b");
            }
            event
        })
        .collect();
    workspace.post("/v1/usages/bulk", &json!(many)).await.expect(400);
    workspace.post("/v1/usages", &with("other", "meter", json!("nosuch"))).await.error(404, "not_found");
    for _ in 0..100 {
        if database.count("refused_events") >= 161 {
            break;
        }
        tokio::time::sleep(Duration::from_millis(100)).await;
    }
    for limit in [7, 200] {
        let (mut ids, mut cursor, mut pages) = (Vec::new(), String::new(), 0);
        loop {
            let answer = workspace.get(&format!("/v1/events/refused?limit={limit}&cursor={cursor}")).await;
            let page = answer.expect(200);
            assert!(page.text.len() < 600 * 1024, "{} bytes", page.text.len());
            let page = page.json(200);
            let items = page["items"].as_array().expect("items");
            assert!(!items.is_empty() && items.len() <= limit);
            ids.extend(items.iter().map(|one| one["id"].as_str().expect("an id").to_owned()));
            pages += 1;
            match page["next_cursor"].as_str() {
                Some(next) => next.clone_into(&mut cursor),
                None => break,
            }
        }
        assert_eq!(ids.iter().collect::<BTreeSet<_>>().len(), 161);
        assert!(ids.is_sorted_by(|a, b| a > b), "newest first");
        // long events make pages shorter than they may be
        assert!(if limit == 7 { pages == 23 } else { (2..10).contains(&pages) }, "{pages} pages");
    }
    let count = async |query: &str| {
        let page = workspace.get(&format!("/v1/events/refused?limit=200&{query}")).await.json(200);
        page["items"].as_array().expect("items").len()
    };
    assert_eq!(count("code=not_found").await, 1);
    assert_eq!(count("meter=nosuch&outcome=rejected").await, 1);
    assert_eq!(count("idempotency_key=k3").await, 1);
    assert_eq!(count("subject=a%20b").await, 80);
    assert_eq!(count("outcome=conflict").await, 0);
    assert_eq!(count("api_key_id=nosuch").await, 0);
    workspace.get("/v1/events/refused?outcome=wrong").await.error(400, "invalid_input");
    workspace.get("/v1/events/refused?cursor=wrong").await.error(400, "invalid_input");
    workspace.get("/v1/events/refused/nosuch").await.error(404, "not_found");
    // a key that is confined to a meter sees the refusals of that meter
    let confined = json!({"name": "c", "scopes": ["usage:read"], "allowed_meters": ["tokens"]});
    let made = workspace.session.post("/v1/auth/api-keys", &confined).await.json(201);
    let confined = server.client().with_key(made["key"].as_str().expect("a secret"));
    confined.get("/v1/events/refused").await.error(403, "forbidden");
    confined.get("/v1/events/refused?meter=tokens").await.expect(200);
    let other = workspace.get("/v1/events/refused?code=not_found").await.json(200)["items"][0]["id"].clone();
    let path = format!("/v1/events/refused/{}", other.as_str().expect("an id"));
    confined.get(&path).await.error(403, "forbidden");
    server.workspace().await.get(&path).await.error(404, "not_found");
}

/// How a code is met.
enum Met {
    /// By an event, or a call with events: it stands in the list of refused events.
    OfEvent,
    /// By another call.
    Otherwise,
    /// With a server that is short of something: by the test of that file.
    By(&'static str),
    /// Only with a fault of the server.
    Never,
}

/// Does not build with a code that nobody has thought of here.
fn how(code: Code) -> Met {
    match code {
        Code::InvalidJson
        | Code::InvalidInput
        | Code::InvalidParameter(_)
        | Code::RequestTooLarge
        | Code::UnsupportedEncoding
        | Code::RateLimited
        | Code::Forbidden
        | Code::NotFound
        | Code::Conflict => Met::OfEvent,
        Code::Unauthorized
        | Code::RegistrationDisabled
        | Code::UnsupportedContentType
        | Code::LimitReached => Met::Otherwise,
        Code::TooManyQueries | Code::QueryTimeout => Met::By("fairness.rs"),
        Code::Unavailable | Code::QueueFull => Met::By("readiness.rs"),
        Code::Internal | Code::Unusable => Met::Never,
    }
}

/// Sends what is refused with this code.
async fn provoke(code: Code, server: &Server, api: &Client, session: &Client) {
    match code {
        Code::InvalidJson => drop(api.post_text("/v1/usages", "{\"meter\":").await.error(400, code.as_str())),
        Code::InvalidInput => {
            api.post("/v1/usages", &with("c-input", "quantity", json!(0))).await.error(400, code.as_str());
        }
        Code::InvalidParameter(word) => {
            api.post("/v1/usages", &with("c-time", "timestamp", json!("noon"))).await.error(400, word);
        }
        Code::RequestTooLarge => {
            let long = with("c-long", "metadata", json!({"note": "x".repeat(2 << 20)}));
            api.post("/v1/usages", &long).await.error(413, code.as_str());
        }
        Code::UnsupportedEncoding => {
            let packed = api.with("content-encoding", "br");
            packed.post("/v1/usages", &event("c-packed")).await.error(415, code.as_str());
        }
        Code::RateLimited => {
            // one call may take more than there is; the next ones wait
            let many: Vec<Value> = (0..500).map(|n| event(&format!("c-rate-{n}"))).collect();
            api.post("/v1/usages/bulk", &json!(many)).await.expect(201);
            api.post("/v1/usages", &event("c-rate")).await.error(429, code.as_str());
        }
        Code::Forbidden => {
            let made = session
                .post("/v1/auth/api-keys", &json!({"name": "r", "scopes": ["usage:read"]}))
                .await
                .json(201);
            let reader = server.client().with_key(made["key"].as_str().expect("a secret"));
            reader.post("/v1/usages", &event("c-scope")).await.error(403, code.as_str());
        }
        Code::NotFound => {
            api.post("/v1/usages", &with("c-meter", "meter", json!("nosuch")))
                .await
                .error(404, code.as_str());
        }
        Code::Conflict => {
            // a key that is known costs nothing of the rate
            let other = with("k0", "quantity", json!(999));
            api.post("/v1/usages", &other).await.error(409, code.as_str());
        }
        Code::Unauthorized => drop(server.client().get("/v1/meters").await.error(401, code.as_str())),
        Code::RegistrationDisabled => {
            let body = json!({"email": "late@example.com", "password": "a long password"});
            server.client().post("/v1/auth/users", &body).await.error(403, code.as_str());
        }
        Code::UnsupportedContentType => {
            let browser = session.with("sec-fetch-site", "none").with("content-type", "text/plain");
            browser.post_bytes("/v1/meters", b"{}".to_vec()).await.error(415, code.as_str());
        }
        Code::LimitReached => {
            for n in 0..1_000 {
                let name = json!({"name": format!("q{n}"), "query": {"meter": "tokens"}});
                let answer = session.post("/v1/usage/saved-queries", &name).await;
                if answer.status == 409 {
                    answer.error(409, code.as_str());
                    return;
                }
            }
            panic!("saved queries without end");
        }
        Code::TooManyQueries | Code::QueryTimeout | Code::Unavailable | Code::QueueFull => {}
        Code::Internal | Code::Unusable => {}
    }
}

async fn every_code_is_met_and_explained(database: Database) {
    let settings = [
        ("OPEN_SPANNER_INGESTION_RATE_LIMIT_EVENTS", "100"),
        ("OPEN_SPANNER_INGESTION_RATE_LIMIT_WINDOW", "1h"),
    ];
    let mut server = Server::start_with(&database, &settings);
    let mut browser = furnished(&server).await;
    let session = session_of(&server, &browser);
    browser.post("/settings/key-conflicts", &[("key_conflicts", "refuse")]).await.expect(303);
    let made = session.post("/v1/auth/api-keys", &json!({"name": "k", "scopes": ["*"]})).await.json(201);
    let secret = made["key"].as_str().expect("a secret").to_owned();
    server.kill();
    let closed = [settings[0], settings[1], ("OPEN_SPANNER_REGISTRATION_ENABLED", "false")];
    drop(server);
    let server = Server::start_with(&database, &closed);
    browser = Browser { cookies: browser.cookies, ..Browser::new(&server) };
    let session = session_of(&server, &browser);
    let api = server.client().with_key(&secret);
    for code in Code::ALL {
        provoke(code, &server, &api, &session).await;
    }
    for code in Code::ALL {
        let word = code.as_str();
        let told = browser.get(&format!("/explain?q={word}")).await.expect(200).text;
        assert!(told.contains(word) && told.contains(&code.http_status().to_string()), "{word}: {told}");
        assert!(!told.contains("never seen"), "{word}");
        match how(code) {
            Met::Otherwise | Met::Never => {}
            Met::By(file) => {
                let path = format!("{}/tests/it/{file}", env!("CARGO_MANIFEST_DIR"));
                let tests = std::fs::read_to_string(path).expect("the file of a test");
                assert!(tests.contains(&format!("\"{word}\"")), "{file} does not meet {word}");
            }
            Met::OfEvent => is_listed(&mut browser, &api, word).await,
        }
    }
}

/// The refusal stands in the list, on a page of its own and in what is explained of its request.
async fn is_listed(browser: &mut Browser, api: &Client, word: &str) {
    let mut found = Value::Null;
    for _ in 0..100 {
        let page = api.get(&format!("/v1/events/refused?code={word}")).await.json(200);
        found = page["items"][0].clone();
        if found != Value::Null {
            break;
        }
        tokio::time::sleep(Duration::from_millis(100)).await;
    }
    let id = found["id"].as_str().unwrap_or_else(|| panic!("{word} is not in the list"));
    let list = browser.get(&format!("/events/refused?code={word}")).await.expect(200).text;
    assert!(list.contains(id), "{word}: {list}");
    let page = browser.get(&format!("/events/refused/{id}")).await.expect(200).text;
    assert!(page.contains(word) && page.contains("Came in by"), "{word}: {page}");
    let request = found["request_id"].as_str().expect("an id");
    let told = browser.get(&format!("/explain?q={request}")).await.expect(200).text;
    assert!(told.contains(word) && told.contains("Refused"), "{word}: {told}");
}
