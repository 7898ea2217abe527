//! `/share/{token}`: what a link for a customer opens, until when, in whose frames, and that it opens nothing else.

use serde_json::{Value, json};

use crate::support::{Database, Server, Workspace, on_both_databases};

on_both_databases!(
    a_link_shows_one_subject_and_nothing_else,
    a_link_is_taken_back_at_once_and_ends_by_itself,
    a_link_is_framed_by_its_own_sites_alone,
    a_link_is_used_sixty_times_a_minute
);

async fn furnished(server: &Server) -> Workspace {
    let workspace = server.workspace().await;
    for meter in ["tokens", "secret_meter"] {
        workspace.meter(meter, "sum").await;
        for (n, subject) in ["acme", "rival"].into_iter().enumerate() {
            let event = json!({"idempotency_key": format!("{meter}-{n}"), "meter": meter, "subject": subject,
                "quantity": 7 + n, "metadata": {"card": "4111"}});
            workspace.post("/v1/usages", &event).await.expect(201);
        }
    }
    let plan = json!({"name": "Inner name", "limits": [{"meter": "tokens", "limit": 100}, {"meter": "secret_meter", "limit": 5}]});
    let plan = workspace.post("/v1/plans", &plan).await.json(201);
    workspace.put("/v1/plans/subjects/acme", &json!({"plan_id": plan["id"]})).await.expect(200);
    workspace
}

async fn made(workspace: &Workspace, wish: Value) -> Value {
    workspace.post("/v1/subjects/acme/links", &wish).await.json(201)
}

fn page_of(link: &Value) -> String {
    format!("/share/{}", link["token"].as_str().expect("a token"))
}

async fn a_link_shows_one_subject_and_nothing_else(database: Database) {
    let server = Server::start(&database);
    let workspace = furnished(&server).await;
    let link = made(&workspace, json!({"meters": ["tokens"]})).await;
    assert!(link["token"].as_str().expect("a token").starts_with("osp_share_"), "{link}");
    assert!(link["url"].as_str().expect("an address").ends_with(&page_of(&link)), "{link}");
    let stranger = server.client();
    let page = stranger.get(&page_of(&link)).await.expect(200);
    assert!(page.text.contains("Usage of acme") && page.text.contains("tokens per month"), "{}", page.text);
    for hidden in ["rival", "secret_meter", "Inner name", "4111", "/overview", "/subjects", "tokens-0"] {
        assert!(!page.text.contains(hidden), "the page tells {hidden}: {}", page.text);
    }
    assert!(page.headers.get("set-cookie").is_none(), "{:?}", page.headers);
    // nor in the browser of somebody whom a page of ours has something to tell
    let told = stranger.with("cookie", "open_spanner_flash=Saved").get(&page_of(&link)).await.expect(200);
    assert!(told.headers.get("set-cookie").is_none(), "{:?}", told.headers);
    let csv = stranger.get(&format!("{}/usage.csv", page_of(&link))).await.expect(200).text;
    assert!(csv.contains("acme,tokens") && csv.contains(",7") && !csv.contains("secret_meter"), "{csv}");
    // the days of the page, and of all meters where none are named
    stranger
        .get(&format!("{}?days=90&embed=1&theme=dark&zone=Asia/Kolkata", page_of(&link)))
        .await
        .expect(200);
    let all = stranger.get(&page_of(&made(&workspace, json!({})).await)).await.expect(200).text;
    assert!(all.contains("secret_meter") && !all.contains("rival"), "{all}");
    each_picture_has_its_own_label(&all);
    // it is no credential anywhere else
    let token = link["token"].as_str().expect("a token");
    server.client().with_key(token).get("/v1/subjects").await.expect(401);
    for wrong in ["/share/osp_share_nosuch", "/share/x", &format!("/share/{token}x")] {
        stranger.get(wrong).await.expect(404);
    }
    // lists never tell the token again
    let listed = workspace.get("/v1/subjects/acme/links").await.json(200);
    assert_eq!(listed["items"].as_array().expect("a list").len(), 2, "{listed}");
    assert!(listed["items"][1]["last_used_at"].is_string() && !listed.to_string().contains("osp_share_"));
}

/// Two meters are two pictures: no id is there twice, and each picture is labelled by a title of its own.
fn each_picture_has_its_own_label(page: &str) {
    let of = |name: &str| -> Vec<&str> {
        let start = format!(" {name}=\"");
        let parts = page.split(start.as_str()).skip(1);
        parts.filter_map(|rest| rest.split('"').next()).collect()
    };
    let ids = of("id");
    assert_eq!(
        ids.iter().collect::<std::collections::BTreeSet<_>>().len(),
        ids.len(),
        "an id twice: {ids:?}"
    );
    let labels: Vec<&str> = of("aria-labelledby").into_iter().flat_map(str::split_whitespace).collect();
    assert!(labels.iter().all(|label| ids.contains(label)), "{labels:?} {ids:?}");
    for meter in ["tokens", "secret_meter"] {
        let title = page.split_once(&format!("\">{meter} per day</title>")).expect("a title").0;
        let id = title.rsplit_once("<title id=\"").expect("an id").1;
        assert_eq!(labels.iter().filter(|label| **label == id).count(), 1, "{meter}: {labels:?}");
    }
}

async fn a_link_is_taken_back_at_once_and_ends_by_itself(database: Database) {
    let server = Server::start(&database);
    let workspace = furnished(&server).await;
    let (link, other) = (made(&workspace, json!({})).await, made(&workspace, json!({})).await);
    let path = format!("/v1/subjects/acme/links/{}", link["id"].as_str().expect("an id"));
    let stranger = server.workspace().await;
    stranger.delete(&path).await.error(404, "not_found");
    workspace.delete(&path.replace("acme", "rival")).await.error(404, "not_found");
    server.client().get(&page_of(&link)).await.expect(200);
    workspace.delete(&path).await.expect(204);
    server.client().get(&page_of(&link)).await.expect(404);
    workspace.delete(&path).await.expect(204);
    server.client().get(&page_of(&other)).await.expect(200);
    database.execute("UPDATE subject_links SET expires_at = 1 WHERE revoked_at IS NULL");
    server.client().get(&page_of(&other)).await.expect(404);
}

async fn a_link_is_framed_by_its_own_sites_alone(database: Database) {
    let server = Server::start(&database);
    let workspace = furnished(&server).await;
    let policy = async |wish: Value| {
        let link = made(&workspace, wish).await;
        let page = server.client().get(&page_of(&link)).await.expect(200);
        assert_eq!(page.header("referrer-policy"), "no-referrer");
        assert_eq!(page.header("cache-control"), "no-store");
        assert!(page.header("x-robots-tag").contains("noindex"));
        page.header("content-security-policy").to_string()
    };
    assert!(policy(json!({})).await.contains("frame-ancestors 'none'"));
    let framed = policy(json!({"origins": ["https://App.example.com/", "http://localhost:3000"]})).await;
    assert!(framed.contains("frame-ancestors https://app.example.com http://localhost:3000;"), "{framed}");
    assert!(framed.contains("default-src 'none'"), "{framed}");
    for origin in ["*", "https://a.example/path", "javascript:x", "https://a.example; script-src *"] {
        let wish = json!({"origins": [origin]});
        workspace.post("/v1/subjects/acme/links", &wish).await.error(400, "invalid_input");
    }
}

async fn a_link_is_used_sixty_times_a_minute(database: Database) {
    let server = Server::start(&database);
    let workspace = furnished(&server).await;
    let (link, other) = (made(&workspace, json!({})).await, made(&workspace, json!({})).await);
    let page = format!("{}/usage.csv", page_of(&link));
    for _ in 0..60 {
        server.client().get(&page).await.expect(200);
    }
    let refused = server.client().get(&page).await.expect(429);
    assert!(refused.header("retry-after").parse::<u32>().is_ok_and(|seconds| seconds <= 60));
    server.client().get(&page_of(&other)).await.expect(200);
}
