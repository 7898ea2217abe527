//! Who may call what: each route of the table × each kind of caller, and each id of one workspace tried by another. The
//! routes come from the document that is made from the table, so that a new one is tried by itself.

use reqwest::Method;
use serde_json::{Value, json};

use crate::dashboard::token_of;
use crate::support::client::{sign_in, sign_up};
use crate::support::{Client, Database, Server, Workspace, on_both_databases, tell};

on_both_databases!(
    each_route_takes_those_it_names,
    each_page_takes_those_it_names,
    each_call_takes_those_it_names,
    nothing_of_another_workspace_is_there,
    a_viewer_changes_nothing_by_a_form,
);

/// What the table demands of a route.
struct Route {
    method: Method,
    path: String,
    role: String,
    scopes: Vec<String>,
    takes_keys: bool,
    is_public: bool,
}

const SCOPES: [&str; 14] = [
    "usage:read",
    "usage:write",
    "meters:read",
    "meters:write",
    "alerts:read",
    "alerts:write",
    "exports:read",
    "exports:write",
    "plans:read",
    "plans:write",
    "system:read",
    "system:write",
    "audit:read",
    "links:write",
];

fn routes() -> Vec<Route> {
    use open_spanner::auth::permission::Access;
    let mut routes = Vec::new();
    for endpoint in open_spanner::http::endpoints() {
        let (role, scopes, takes_keys, is_public) = match endpoint.access {
            Access::Public => (String::new(), Vec::new(), false, true),
            Access::Session(role) => (role.to_string(), Vec::new(), false, false),
            Access::Key(scopes, role) => {
                (role.to_string(), scopes.iter().map(ToString::to_string).collect(), true, false)
            }
        };
        let method = Method::from_bytes(endpoint.method.as_str().as_bytes()).expect("a method");
        let path = endpoint.path.to_owned();
        routes.push(Route { method, path, role, scopes, takes_keys, is_public });
    }
    routes
}

/// An address of the route whose ids exist nowhere.
fn address(path: &str) -> String {
    let segments = path.split('/').map(|segment| match segment.starts_with('{') {
        true => "00000000-0000-7000-8000-000000000000",
        false => segment,
    });
    segments.collect::<Vec<_>>().join("/")
}

/// Routes that would end the credential they are tried with: only those are tried there who must be refused.
const ENDING: [&str; 5] = [
    "/v1/auth/workspace/leave",
    "/v1/auth/sessions",
    "/v1/auth/session/workspace",
    "/v1/auth/workspace/owner",
    "/v1/auth/password",
];

async fn status(client: &Client, route: &Route) -> (u16, String) {
    let body = (route.method != Method::GET).then(|| "{".to_owned());
    let answer = client.send(route.method.clone(), &address(&route.path), body).await.expect("an answer");
    (answer.status, answer.text)
}

/// A member of the host's workspace with this role.
pub async fn member(server: &Server, host: &Client, role: &str) -> Client {
    let email = sign_up(&server.client()).await;
    let session = sign_in(&server.client(), &email).await;
    let body = json!({"email": email, "role": role});
    let made = host.post("/v1/auth/workspace/invitations", &body).await.json(201);
    let path = format!("/v1/auth/workspace-invitations/{}/accept", made["token"].as_str().expect("a token"));
    let joined = session.post_text(&path, "").await.expect(200);
    let access = joined.cookie("open_spanner_access").expect("a cookie");
    server.client().with("cookie", format!("open_spanner_access={access}"))
}

async fn key(server: &Server, session: &Client, scopes: Value, meters: Value) -> Client {
    let body = json!({"name": "k", "scopes": scopes, "allowed_meters": meters});
    let made = session.post("/v1/auth/api-keys", &body).await.json(201);
    server.client().with_key(made["key"].as_str().expect("a secret"))
}

async fn each_route_takes_those_it_names(database: Database) {
    let server = Server::start(&database);
    let host = server.workspace().await;
    let admin = member(&server, &host.session, "admin").await;
    let viewer = member(&server, &host.session, "viewer").await;
    // a viewer's key was made while they were more than that
    let demoted = member(&server, &host.session, "admin").await;
    let viewers_key = key(&server, &demoted, json!(["*"]), json!([])).await;
    let me = demoted.get("/v1/auth/session").await.json(200)["user"]["id"].clone();
    let path = format!("/v1/auth/workspace/members/{}", me.as_str().expect("an id"));
    host.session.patch(&path, &json!({"role": "viewer"})).await.expect(204);
    let mut keys = Vec::new();
    for scope in SCOPES {
        keys.push((scope, key(&server, &host.session, json!([scope]), json!([])).await));
    }
    let confined = key(&server, &host.session, json!(["*"]), json!(["elsewhere"])).await;
    let link = host.post("/v1/subjects/s/links", &json!({})).await.json(201);
    let link = server.client().with_key(link["token"].as_str().expect("a token"));
    let (mut tried, mut wrong) = (0, Vec::new());
    let mut judge = |who: &str, route: &Route, (status, text): (u16, String), wanted: Option<u16>| {
        tried += 1;
        let is_right = match wanted {
            Some(wanted) => status == wanted,
            None => status != 401 && status != 403,
        };
        if !is_right {
            wrong.push(format!("{who}: {} {} answers {status} {}", route.method, route.path, text.trim()));
        }
    };
    for route in routes().into_iter().filter(|route| !route.is_public) {
        let is_tried = |wanted: Option<u16>| wanted.is_some() || !ENDING.contains(&route.path.as_str());
        judge("nobody", &route, status(&server.client(), &route).await, Some(401));
        let made_up = server.client().with_key("osp_sk_x");
        judge("a made-up key", &route, status(&made_up, &route).await, Some(401));
        judge("a link for a customer", &route, status(&link, &route).await, Some(401));
        for (role, client) in [("viewer", &viewer), ("admin", &admin), ("owner", &host.session)] {
            let rank = |role: &str| ["viewer", "admin", "owner"].iter().position(|known| *known == role);
            let refused = (rank(role) < rank(&route.role)).then_some(403);
            if is_tried(refused) {
                judge(role, &route, status(client, &route).await, refused);
            }
        }
        let of_viewer = match (route.takes_keys, route.role.as_str()) {
            (false, _) => Some(401),
            (true, "viewer") => None,
            (true, _) => Some(403),
        };
        judge("a viewer's key", &route, status(&viewers_key, &route).await, of_viewer);
        for (scope, client) in &keys {
            let suffices = route.scopes.iter().all(|needed| needed == scope);
            let wanted = match (route.takes_keys, suffices) {
                (false, _) => Some(401),
                (true, true) => None,
                (true, false) => Some(403),
            };
            judge(scope, &route, status(client, &route).await, wanted);
        }
    }
    // a key that is confined to a meter which is not there gets nothing done
    let mut confined_tried = 0;
    for route in routes().into_iter().filter(|route| route.takes_keys) {
        let (status, text) = status(&confined, &route).await;
        confined_tried += 1;
        if status == 401 || !(400..500).contains(&status) {
            wrong.push(format!(
                "a confined key: {} {} answers {status} {}",
                route.method,
                route.path,
                text.trim()
            ));
        }
    }
    assert!(wrong.is_empty(), "{} of {tried}:\n{}", wrong.len(), wrong.join("\n"));
    assert!(tried > 1_500, "{tried} cells");
    let routes = routes().len();
    tell(&format!(
        "REST: {routes} routes, {tried} cells of callers and {confined_tried} of a confined key, 0 wrong"
    ));
}

/// Methods of gRPC stand in no table: whoever adds one tries it below, and in `write_by_each_method`.
#[test]
fn each_method_of_grpc_is_tried() {
    let files = [
        include_str!("../../proto/open_spanner/v1/usage.proto"),
        include_str!("../../proto/open_spanner/v2/usage_stream.proto"),
    ];
    let methods = files.iter().flat_map(|file| file.lines());
    let methods = methods.filter_map(|line| line.trim().strip_prefix("rpc ")?.split('(').next());
    assert_eq!(methods.collect::<Vec<_>>(), ["CreateUsage", "CreateUsageBulk", "StreamUsage", "Ingest"]);
    let proto = std::path::Path::new(env!("CARGO_MANIFEST_DIR")).join("proto/open_spanner");
    let versions = std::fs::read_dir(proto).expect("a folder").count();
    assert_eq!(versions, files.len(), "a version whose methods nobody tries");
}

/// What a page demands, and an address of it whose ids exist nowhere.
fn pages() -> Vec<Route> {
    use open_spanner::auth::permission::Access;
    let pages = open_spanner::dashboard::endpoints().into_iter().filter_map(|page| {
        let Access::Session(role) = page.access else { return None };
        let method = Method::from_bytes(page.method.as_str().as_bytes()).expect("a method");
        let path = page.path.to_owned();
        let (scopes, takes_keys, is_public) = (Vec::new(), false, false);
        Some(Route { method, path, role: role.to_string(), scopes, takes_keys, is_public })
    });
    pages.collect()
}

async fn page(client: &Client, route: &Route) -> (u16, String) {
    let form = (route.method != Method::GET).then(String::new);
    let client = client.with("sec-fetch-site", "same-origin");
    let answer = client.send_form(route.method.clone(), &address(&route.path), form).await;
    (answer.status, answer.header("location"))
}

async fn each_page_takes_those_it_names(database: Database) {
    let server = Server::start(&database);
    let host = server.workspace().await;
    let admin = member(&server, &host.session, "admin").await;
    let viewer = member(&server, &host.session, "viewer").await;
    let link = host.post("/v1/subjects/s/links", &json!({})).await.json(201);
    let link = server.client().with_key(link["token"].as_str().expect("a token"));
    let (mut tried, mut wrong) = (0, Vec::new());
    for route in pages() {
        let mut judge = |who: &str, (status, location): (u16, String), is_right: bool| {
            tried += 1;
            if !is_right {
                wrong.push(format!("{who}: {} {} answers {status} {location}", route.method, route.path));
            }
        };
        // keys are for programs: to pages whoever shows one is nobody
        for (who, client) in [("nobody", &server.client()), ("a key", &host.key), ("a link", &link)] {
            let answer = page(client, &route).await;
            let is_right = answer.0 == 303 && answer.1.starts_with("/login");
            judge(who, answer, is_right);
        }
        for (role, client) in [("viewer", &viewer), ("admin", &admin), ("owner", &host.session)] {
            let rank = |role: &str| ["viewer", "admin", "owner"].iter().position(|known| *known == role);
            let may = rank(role) >= rank(&route.role);
            // a stream of changes, which has no end
            if route.path == "/live" {
                continue;
            }
            let answer = page(client, &route).await;
            let is_right = match (may, &route.method) {
                (false, _) => answer.0 == 403,
                (true, &Method::GET) => answer.0 != 403 && answer.0 < 500 && !answer.1.starts_with("/login"),
                // the form has no token: nothing is done, whoever sends it
                (true, _) => (400..500).contains(&answer.0),
            };
            judge(role, answer, is_right);
        }
    }
    assert!(wrong.is_empty(), "{} of {tried}:\n{}", wrong.len(), wrong.join("\n"));
    assert!(tried > 300, "{tried} cells");
    tell(&format!("pages: {} of them, {tried} cells, 0 wrong", pages().len()));
}

async fn each_call_takes_those_it_names(database: Database) {
    use open_spanner::grpc::pb::v1;
    use open_spanner::grpc::pb::v1::usage_service_client::UsageServiceClient;
    use open_spanner::grpc::pb::v2::{IngestRequest, usage_stream_service_client::UsageStreamServiceClient};
    use tonic::{Code, Request};

    let server = Server::start(&database);
    let host = server.workspace().await;
    let secret = async |session: &Client, scopes: Value, meters: Value| {
        let body = json!({"name": "k", "scopes": scopes, "allowed_meters": meters});
        session.post("/v1/auth/api-keys", &body).await.json(201)["key"].as_str().expect("a key").to_owned()
    };
    let demoted = member(&server, &host.session, "admin").await;
    let viewers = secret(&demoted, json!(["*"]), json!([])).await;
    let me = demoted.get("/v1/auth/session").await.json(200)["user"]["id"].clone();
    let path = format!("/v1/auth/workspace/members/{}", me.as_str().expect("an id"));
    host.session.patch(&path, &json!({"role": "viewer"})).await.expect(204);
    let link = host.post("/v1/subjects/s/links", &json!({})).await.json(201)["token"].clone();
    let session = host.session.header("cookie").replace("open_spanner_access=", "");
    let mut callers = vec![
        ("nobody".to_owned(), String::new(), Code::Unauthenticated),
        ("a made-up key".to_owned(), "osp_sk_x".to_owned(), Code::Unauthenticated),
        ("a session".to_owned(), session, Code::Unauthenticated),
        ("a link".to_owned(), link.as_str().expect("a token").to_owned(), Code::Unauthenticated),
        ("a viewer's key".to_owned(), viewers, Code::PermissionDenied),
    ];
    let confined = secret(&host.session, json!(["*"]), json!(["elsewhere"])).await;
    for scope in SCOPES {
        let code = if scope == "usage:write" { Code::Ok } else { Code::PermissionDenied };
        callers.push((scope.to_owned(), secret(&host.session, json!([scope]), json!([])).await, code));
    }
    let channel = tonic::transport::Channel::from_shared(format!("http://{}", server.grpc()));
    let channel = channel.expect("an address").connect().await.expect("it listens");
    let (mut tried, mut wrong) = (0, Vec::new());
    for (who, key, wanted) in &callers {
        let (mut v1s, mut v2s) =
            (UsageServiceClient::new(channel.clone()), UsageStreamServiceClient::new(channel.clone()));
        fn with<T>(key: &str, message: T) -> Request<T> {
            let mut request = Request::new(message);
            if !key.is_empty() {
                let value = format!("Bearer {key}").parse().expect("a header value");
                request.metadata_mut().insert("authorization", value);
            }
            request
        }
        let code = |status: tonic::Status| status.code();
        let found = [
            (
                "CreateUsage",
                v1s.create_usage(with(key, v1::CreateUsageRequest::default())).await.err().map(code),
            ),
            (
                "CreateUsageBulk",
                v1s.create_usage_bulk(with(key, v1::CreateUsageBulkRequest::default())).await.err().map(code),
            ),
            ("StreamUsage", v1s.stream_usage(with(key, tokio_stream::empty())).await.err().map(code)),
            ("Ingest", v2s.ingest(with(key, tokio_stream::empty::<IngestRequest>())).await.err().map(code)),
        ];
        for (method, found) in found {
            tried += 1;
            // whoever may call is told what is wrong with an empty message
            let is_right = match wanted {
                Code::Ok => !matches!(found, Some(Code::Unauthenticated | Code::PermissionDenied)),
                wanted => found == Some(*wanted),
            };
            if !is_right {
                wrong.push(format!("{who}: {method} answers {found:?}"));
            }
        }
    }
    // a key that is confined to a meter writes no other, by any of the methods
    host.meter("m", "sum").await;
    let before = database.count("events");
    for (method, told) in write_by_each_method(&channel, &confined, &usage_of("m", "s", "k")).await {
        tried += 1;
        if !told.contains("PermissionDenied") && !told.contains("forbidden") {
            wrong.push(format!("a confined key: {method} answers {told}"));
        }
    }
    assert_eq!(database.count("events"), before, "a confined key has written");
    assert!(wrong.is_empty(), "{} of {tried}:\n{}", wrong.len(), wrong.join("\n"));
    tell(&format!("gRPC: 4 methods, {tried} cells, 0 wrong"));
}

fn usage_of(meter: &str, subject: &str, key: &str) -> open_spanner::grpc::pb::v1::UsageEventInput {
    open_spanner::grpc::pb::v1::UsageEventInput {
        meter: meter.to_owned(),
        subject: subject.to_owned(),
        idempotency_key: key.to_owned(),
        quantity: 1.0,
        ..Default::default()
    }
}

/// What each method of gRPC says to one event, ids of events and times left out.
async fn write_by_each_method(
    channel: &tonic::transport::Channel,
    key: &str,
    event: &open_spanner::grpc::pb::v1::UsageEventInput,
) -> Vec<(&'static str, String)> {
    use open_spanner::grpc::pb::v1::{self, usage_service_client::UsageServiceClient};
    use open_spanner::grpc::pb::v2::{IngestRequest, usage_stream_service_client::UsageStreamServiceClient};
    fn with<T>(key: &str, message: T) -> tonic::Request<T> {
        let mut request = tonic::Request::new(message);
        request.metadata_mut().insert("authorization", format!("Bearer {key}").parse().expect("a header"));
        request
    }
    let refused = |status: tonic::Status| format!("{:?} {}", status.code(), status.message());
    let (mut v1s, mut v2s) =
        (UsageServiceClient::new(channel.clone()), UsageStreamServiceClient::new(channel.clone()));
    let event = Some(event.clone());
    let single = v1s.create_usage(with(key, v1::CreateUsageRequest { event: event.clone() })).await;
    let events: Vec<_> = event.iter().cloned().collect();
    let bulk = v1::CreateUsageBulkRequest { idempotency_key: String::new(), events };
    let bulk = v1s.create_usage_bulk(with(key, bulk)).await;
    let one = v1::StreamUsageRequest { event: event.clone() };
    let stream = v1s.stream_usage(with(key, tokio_stream::iter([one]))).await;
    let ingest = IngestRequest { sequence: 1, event, dry_run: false };
    let ingested = match v2s.ingest(with(key, tokio_stream::iter([ingest]))).await {
        Ok(answer) => match answer.into_inner().message().await {
            Ok(ack) => {
                let outcomes = ack.map(|ack| ack.outcomes).unwrap_or_default();
                let told = outcomes.iter().map(|one| format!("{} {} {}", one.result, one.code, one.message));
                told.collect::<Vec<_>>().join(", ")
            }
            Err(status) => refused(status),
        },
        Err(status) => refused(status),
    };
    let counts = |accepted: i32, duplicates: i32, failed: String| format!("{accepted} {duplicates} {failed}");
    vec![
        ("CreateUsage", single.map_or_else(refused, |_| "stored".to_owned())),
        (
            "CreateUsageBulk",
            bulk.map_or_else(refused, |answer| {
                let answer = answer.into_inner();
                let failed = format!("{:?}", answer.failed);
                counts(answer.accepted_count, answer.duplicate_count, failed)
            }),
        ),
        (
            "StreamUsage",
            stream.map_or_else(refused, |answer| {
                let answer = answer.into_inner();
                let failed = format!("{:?}", answer.failed);
                counts(answer.accepted_count, answer.duplicate_count, failed)
            }),
        ),
        ("Ingest", ingested),
    ]
}

/// The same over gRPC: an id, a name or a key of ours says nothing to theirs, in any field of an event.
async fn nothing_is_told_over_grpc(server: &Server, theirs: &str, ids: &[String]) -> (usize, Vec<String>) {
    let channel = tonic::transport::Channel::from_shared(format!("http://{}", server.grpc()));
    let channel = channel.expect("an address").connect().await.expect("it listens");
    let (mut tried, mut wrong) = (0, Vec::new());
    for (n, id) in ids.iter().enumerate() {
        let nowhere = if uuid::Uuid::parse_str(id).is_ok() { NOWHERE } else { "nosuch" };
        // the key of an event and its subject are the sender's to choose: the meter is theirs, the rest is ours
        for field in ["meter", "subject", "key"] {
            let of = |word: &str, fresh: &str| match field {
                "meter" => usage_of(word, "s", ""),
                "subject" => usage_of("own", word, ""),
                _ => usage_of("own", "s", &format!("{word}{fresh}")),
            };
            // a key that was sent once is known, so the one that is nowhere is another each time
            let real = write_by_each_method(&channel, theirs, &of(id, "")).await;
            let made_up = write_by_each_method(&channel, theirs, &of(nowhere, &n.to_string())).await;
            for ((method, real), (_, made_up)) in real.into_iter().zip(made_up) {
                tried += 1;
                let (real, made_up) = (real.replace(id.as_str(), "ID"), made_up.replace(nowhere, "ID"));
                let (real, made_up) = (without_ids(&real), without_ids(&made_up));
                if real != made_up.replace(&format!("ID{n}"), "ID") {
                    wrong.push(format!("{method} tells {field} {id} from {nowhere}: {real} {made_up}"));
                }
            }
        }
    }
    (tried, wrong)
}

/// Every id in an answer, wherever it stands.
fn ids_in(value: &Value, found: &mut Vec<String>) {
    match value {
        Value::Object(fields) => {
            for (name, value) in fields {
                if let Some(text) = value.as_str().filter(|_| name == "id" || name.ends_with("_id")) {
                    found.push(text.to_owned());
                }
                ids_in(value, found);
            }
        }
        Value::Array(items) => items.iter().for_each(|item| ids_in(item, found)),
        _ => {}
    }
}

/// A subject need not exist to be given a link: the answer is new every time.
fn makes_links(route: &Route) -> bool {
    route.method == Method::POST && route.path.ends_with("/links")
}

/// A workspace with something of everything; the ids in it.
async fn furnished(ours: &Workspace) -> Vec<String> {
    ours.meter("m", "sum").await;
    let plan = json!({"name": "p", "limits": [{"meter": "m", "limit": 10}]});
    let plan = ours.post("/v1/plans", &plan).await.json(201);
    ours.put("/v1/plans/subjects/subject-of-ours", &json!({"plan_id": plan["id"]})).await.expect(200);
    let to = json!({"name": "d", "webhook_url": "https://example.com/hook"});
    let to = ours.post("/v1/alerts/destinations", &to).await.json(201);
    let rule = json!({"name": "r", "meter": "m", "destination_id": to["id"], "threshold": 1});
    ours.post("/v1/alerts", &rule).await.expect(201);
    let query =
        json!({"query": {"meter": "m", "from": "2026-06-01T00:00:00Z", "to": "2026-07-01T00:00:00Z"}});
    ours.post("/v1/exports", &query).await.expect(202);
    let event =
        json!({"meter": "m", "subject": "subject-of-ours", "quantity": 1, "idempotency_key": "key-of-ours"});
    ours.post("/v1/entitlements/consume", &event).await.expect(201);
    ours.post("/v1/subjects/subject-of-ours/links", &json!({})).await.expect(201);
    ours.session
        .post("/v1/usage/saved-queries", &json!({"name": "q", "query": {"meter": "m"}}))
        .await
        .expect(201);
    let invitation = json!({"email": "x@example.com", "role": "viewer"});
    ours.session.post("/v1/auth/workspace/invitations", &invitation).await.expect(201);
    let mut ids = vec!["subject-of-ours".to_owned(), "key-of-ours".to_owned()];
    for route in routes().iter().filter(|route| route.method == Method::GET && !route.path.contains('{')) {
        let client = if route.takes_keys { &ours.key } else { &ours.session };
        let answer = client.get(&route.path).await;
        if let Ok(value) = serde_json::from_str(&answer.text) {
            ids_in(&value, &mut ids);
        }
    }
    // ids of processes and of requests are no rows, and some have slashes
    ids.retain(|id| id.len() > 5 && !id.contains('/'));
    ids.sort();
    ids.dedup();
    assert!(ids.len() > 15, "{ids:?}");
    ids
}

async fn nothing_of_another_workspace_is_there(database: Database) {
    let server = Server::start(&database);
    let (ours, theirs) = (server.workspace().await, server.workspace().await);
    let mut ids = furnished(&ours).await;
    let (mut wrong, mut tried) = (Vec::new(), 0);
    for route in routes()
        .iter()
        .filter(|route| route.path.contains('{') && !route.path.contains("{provider}") && !makes_links(route))
    {
        let client = if route.takes_keys { &theirs.key } else { &theirs.session };
        let body = (route.method != Method::GET).then(|| "{}".to_owned());
        let try_one = async |id: &str| {
            let mut path = address(&route.path);
            let hole = "00000000-0000-7000-8000-000000000000";
            path = path.replace(hole, id);
            let answer = client.send(route.method.clone(), &path, body.clone()).await.expect("an answer");
            (answer.status, answer.text.replace(id, "ID"))
        };
        for id in &ids {
            let nowhere = if uuid::Uuid::parse_str(id).is_ok() {
                "01900000-0000-7000-8000-000000000000"
            } else {
                "nosuch"
            };
            let (real, made_up) = (try_one(id).await, try_one(nowhere).await);
            tried += 1;
            if real != made_up {
                wrong.push(format!(
                    "{} {} tells {id} from {nowhere}: {real:?} {made_up:?}",
                    route.method, route.path
                ));
            }
        }
    }
    let pages = pages().into_iter().filter(|page| page.path.contains('{'));
    for route in pages.filter(|page| !makes_up_things(&page.path)) {
        for id in &ids {
            let nowhere = if uuid::Uuid::parse_str(id).is_ok() { NOWHERE } else { "nosuch" };
            let try_one = async |id: &str| {
                let path = address(&route.path).replace("00000000-0000-7000-8000-000000000000", id);
                let form = (route.method != Method::GET).then(String::new);
                let client = theirs.session.with("sec-fetch-site", "same-origin");
                let answer = client.send_form(route.method.clone(), &path, form).await;
                (answer.status, without_ids(&answer.text.replace(id, "ID")))
            };
            let (real, made_up) = (try_one(id).await, try_one(nowhere).await);
            tried += 1;
            if real != made_up {
                let (route, path) = (&route.method, &route.path);
                wrong.push(format!("{route} {path} tells {id} from {nowhere}: {} {}", real.0, made_up.0));
            }
        }
    }
    theirs.meter("own", "sum").await;
    let key = theirs.header("authorization").replace("Bearer ", "");
    ours.meter("meter-of-ours", "sum").await;
    ids.push("meter-of-ours".to_owned());
    let (over_grpc, told) = nothing_is_told_over_grpc(&server, &key, &ids).await;
    wrong.extend(told);
    assert!(wrong.is_empty(), "{} of {tried}: {}", wrong.len(), wrong.join("\n"));
    tell(&format!(
        "isolation: {} ids of another workspace, {tried} cells of REST and pages, {over_grpc} of gRPC, 0 told from ids that are nowhere",
        ids.len()
    ));
}

/// Every UUID of a page counts as the same: pages that refuse name the request.
fn without_ids(text: &str) -> String {
    let is_part = |c: char| c.is_ascii_hexdigit() || c == '-';
    let pieces = text.split_inclusive(|c: char| !is_part(c));
    let shown = |piece: &str| match piece.trim_end_matches(|c: char| !is_part(c)).len() {
        36 => "ID".to_owned(),
        _ => piece.to_owned(),
    };
    pieces.map(shown).collect()
}

const NOWHERE: &str = "01900000-0000-7000-8000-000000000000";

/// Pages about a subject show any name that is asked for, with nothing about it.
fn makes_up_things(path: &str) -> bool {
    path.contains("{hash}") || path.contains("{token}")
}

/// What is no question of the table: all that may be sent by whoever only reads, or by anybody, and what becomes of it. Whatever
/// changes something of a workspace asks for more, and a new row that does not has to be put down here.
const SENT_BY_READERS: [&str; 39] = [
    "DELETE /v1/auth/identities/{id}",
    "DELETE /v1/auth/session",
    "DELETE /v1/auth/sessions",
    "DELETE /v1/auth/sessions/{id}",
    "POST /forgot",
    "POST /invitations/{token}",
    "POST /login",
    "POST /logout",
    "POST /members/leave",
    "POST /register",
    "POST /reset/{token}",
    "POST /settings/identities",
    "POST /settings/keys",
    "POST /settings/password",
    "POST /settings/preferences",
    "POST /settings/sessions",
    "POST /settings/theme",
    "POST /settings/zone",
    "POST /usage/q",
    "POST /v1/alerts/backtest",
    "POST /v1/auth/password-resets",
    "POST /v1/auth/password-resets/{token}",
    "POST /v1/auth/session/refresh",
    "POST /v1/auth/session/workspace",
    "POST /v1/auth/sessions",
    "POST /v1/auth/users",
    "POST /v1/auth/workspace-invitations/{token}/accept",
    "POST /v1/auth/workspace/leave",
    "POST /v1/entitlements/check",
    "POST /v1/plans/{id}/preview",
    "POST /v1/usage/short-links",
    "POST /v1/usageevents/export",
    "POST /v1/usageevents/search",
    "POST /v1/usages/breakdowns/search",
    "POST /v1/usages/export",
    "POST /v1/usages/search",
    "POST /workspaces",
    "PUT /v1/auth/password",
    "PUT /v1/auth/preferences",
];

#[test]
fn what_readers_may_send_is_known() {
    use open_spanner::auth::permission::{Access, Role};
    let all = open_spanner::http::endpoints().into_iter().chain(open_spanner::dashboard::endpoints());
    let mut found: Vec<String> = all
        .filter(|row| !matches!(row.method.as_str(), "GET" | "HEAD"))
        .filter(|row| {
            matches!(
                row.access,
                Access::Public | Access::Session(Role::Viewer) | Access::Key(_, Role::Viewer)
            )
        })
        .map(|row| format!("{} {}", row.method, row.path))
        .collect();
    found.sort();
    assert_eq!(found, SENT_BY_READERS);
}

/// With a form that is theirs, at every page and about everything that is there.
async fn a_viewer_changes_nothing_by_a_form(database: Database) {
    let server = Server::start(&database);
    let host = server.workspace().await;
    let ids = furnished(&host).await;
    let viewer = member(&server, &host.session, "viewer").await.with("sec-fetch-site", "same-origin");
    let token = token_of(&viewer.get("/settings").await.expect(200).text);
    assert!(!token.is_empty());
    let before = database.count("audit_events");
    let (mut tried, mut wrong) = (0, Vec::new());
    for route in pages().into_iter().filter(|page| page.method == Method::POST && page.role != "viewer") {
        // a page that is about nothing by its address is tried once
        let about = if route.path.contains('{') { ids.as_slice() } else { &ids[..1] };
        for id in about {
            let path = address(&route.path).replace("00000000-0000-7000-8000-000000000000", id);
            let form = format!("form_token={token}&name=x&do=role&role=owner&id={id}&revoke={id}");
            let answer = viewer.send_form(Method::POST, &path, Some(form)).await;
            tried += 1;
            if answer.status != 403 {
                wrong.push(format!("{path} answers {} {}", answer.status, answer.header("location")));
            }
        }
    }
    assert!(wrong.is_empty(), "{} of {tried}:\n{}", wrong.len(), wrong.join("\n"));
    assert_eq!(database.count("audit_events"), before, "something was changed");
    // what is their own is taken with the same token
    for (path, field) in [("/settings/theme", "theme=dark"), ("/settings/zone", "zone=UTC")] {
        let form = format!("form_token={token}&{field}");
        viewer.send_form(Method::POST, path, Some(form)).await.expect(303);
    }
    tell(&format!("viewers: {tried} forms with their own token, 0 taken"));
}
