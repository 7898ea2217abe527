//! Who may call what: each route of the table × each kind of caller, and each id of one workspace tried by another. The
//! routes come from the document that is made from the table, so that a new one is tried by itself.

use reqwest::Method;
use serde_json::{Value, json};

use crate::support::client::{sign_in, sign_up};
use crate::support::{Client, Database, Server, on_both_databases};

on_both_databases!(each_route_takes_those_it_names, nothing_of_another_workspace_is_there);

/// What the table demands of a route.
struct Route {
    method: Method,
    path: String,
    role: String,
    scopes: Vec<String>,
    takes_keys: bool,
    is_public: bool,
}

const SCOPES: [&str; 13] = [
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

/// Routes that would end the credential they are tried with.
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
async fn member(server: &Server, host: &Client, role: &str) -> Client {
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
    for route in routes().into_iter().filter(|route| !ENDING.contains(&route.path.as_str())) {
        if route.is_public {
            continue;
        }
        judge("nobody", &route, status(&server.client(), &route).await, Some(401));
        judge(
            "a made-up key",
            &route,
            status(&server.client().with_key("osp_sk_x"), &route).await,
            Some(401),
        );
        for (role, client) in [("viewer", &viewer), ("admin", &admin), ("owner", &host.session)] {
            let rank = |role: &str| ["viewer", "admin", "owner"].iter().position(|known| *known == role);
            let refused = (rank(role) < rank(&route.role)).then_some(403);
            judge(role, &route, status(client, &route).await, refused);
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
    assert!(wrong.is_empty(), "{} of {tried}:\n{}", wrong.len(), wrong.join("\n"));
    assert!(tried > 1_500, "{tried} cells");
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

async fn nothing_of_another_workspace_is_there(database: Database) {
    let server = Server::start(&database);
    let (ours, theirs) = (server.workspace().await, server.workspace().await);
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
    let mut wrong = Vec::new();
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
            if real != made_up {
                wrong.push(format!(
                    "{} {} tells {id} from {nowhere}: {real:?} {made_up:?}",
                    route.method, route.path
                ));
            }
        }
    }
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
}
