//! How a person wants to see the pages: stored with them, the same in each of their browsers and workspaces, changed by
//! pages and by programs alike, and nobody else's.

use reqwest::Method;
use serde_json::{Value, json};

use crate::dashboard::{Browser, furnished};
use crate::pages::{joined, session_of};
use crate::support::client::PASSWORD;
use crate::support::{Database, Server, on_both_databases};

on_both_databases!(
    pages_are_as_their_viewer_chose,
    preferences_are_read_and_set_by_programs,
    an_address_wins_over_what_somebody_chose,
    weeks_begin_on_the_day_that_somebody_chose,
);

const PREFERENCES: &str = "/v1/auth/preferences";

/// Another browser of the person with this address.
async fn signed_in(server: &Server, email: &str) -> Browser {
    let mut browser = Browser::new(server);
    let form = format!("email={}&password={}", email.replace('@', "%40"), PASSWORD.replace(' ', "+"));
    browser.send(Method::POST, "/login", Some(form)).await.expect(303);
    browser
}

async fn address_of(server: &Server, browser: &Browser) -> String {
    let me = session_of(server, browser).get("/v1/auth/session").await.json(200);
    me["user"]["email"].as_str().expect("an address").to_owned()
}

async fn pages_are_as_their_viewer_chose(database: Database) {
    let server = Server::start(&database);
    let mut browser = furnished(&server).await;
    let mut viewer = joined(&server, &mut browser, "viewer").await;
    for (path, fields) in [
        ("/settings/theme", vec![("theme", "dark"), ("next", "/settings")]),
        ("/settings/zone", vec![("zone", "asia/kolkata")]),
        ("/settings/keys", vec![("keys", "off")]),
        ("/settings/preferences", vec![("density", "compact"), ("default_range", "7d")]),
    ] {
        viewer.post(path, &fields).await.expect(303);
    }
    let email = address_of(&server, &viewer).await;
    let mut elsewhere = signed_in(&server, &email).await;
    assert!(elsewhere.cookies.iter().all(|(name, _)| !name.ends_with("_theme") && !name.ends_with("_zone")));
    for browser in [&mut viewer, &mut elsewhere] {
        let page = browser.get("/settings").await.expect(200).text;
        for part in [
            "data-theme=\"dark\" data-density=\"compact\"",
            "data-keys=\"off\"",
            "id=\"density-compact\" name=\"density\" value=\"compact\" checked",
            "<option value=\"7d\" selected>",
            "value=\"Asia/Kolkata\"",
        ] {
            assert!(page.contains(part), "{part}: {page}");
        }
    }
    // what a page offers is refused where it is not what it offers
    viewer.post("/settings/preferences", &[("density", "tight")]).await.expect(400);
    viewer.post("/settings/preferences", &[("default_range", "all")]).await.expect(400);
    let others = browser.get("/settings").await.expect(200).text;
    assert!(others.contains("data-theme=\"system\" data-density=\"comfortable\""), "{others}");
}

async fn preferences_are_read_and_set_by_programs(database: Database) {
    let server = Server::start(&database);
    let mut browser = furnished(&server).await;
    let session = session_of(&server, &browser);
    let nothing = json!({"time_zone": null, "week_start": null, "theme": null, "density": null, "default_range": null, "shortcuts": null});
    assert_eq!(session.get(PREFERENCES).await.json(200), nothing);
    let wanted = json!({"time_zone": "europe/berlin", "week_start": "sunday", "theme": "light", "density": "compact",
                        "default_range": "90d+today", "shortcuts": false});
    let chosen = json!({"time_zone": "Europe/Berlin", "week_start": "sunday", "theme": "light", "density": "compact",
                        "default_range": "90d+today", "shortcuts": false});
    assert_eq!(session.put(PREFERENCES, &wanted).await.json(200), chosen);
    assert_eq!(session.get(PREFERENCES).await.json(200), chosen);
    // the session is remembered for a moment, and not with what was chosen before
    let page = browser.get("/events").await.expect(200).text;
    assert!(page.contains("data-theme=\"light\" data-density=\"compact\""), "{page}");
    assert!(page.contains("Time (Europe/Berlin)"), "{page}");
    // one button changes one thing
    browser.post("/settings/theme", &[("theme", "dark"), ("next", "/settings")]).await.expect(303);
    let held = session.get(PREFERENCES).await.json(200);
    assert_eq!((&held["theme"], &held["density"]), (&json!("dark"), &json!("compact")));
    for (field, value) in [
        ("time_zone", json!("Mars/Base")),
        ("week_start", json!("friday")),
        ("theme", json!("pink")),
        ("density", json!("tight")),
        ("default_range", json!("all")),
    ] {
        let mut wrong = serde_json::Map::new();
        wrong.insert(field.to_owned(), value);
        let refused = session.put(PREFERENCES, &Value::Object(wrong)).await.error(400, "invalid_input");
        assert!(refused.contains(&format!("{field} must be")), "{refused}");
    }
    // what is told twice changes once; each change is in the trail as it was and as it is
    let told = held.clone();
    assert_eq!(session.put(PREFERENCES, &told).await.json(200), held);
    let trail = session.get("/v1/audit-events?action=user.preferences_changed").await.json(200);
    let trail = trail["items"].as_array().expect("a list");
    assert_eq!(trail.len(), 2, "{trail:#?}");
    assert_eq!(
        (&trail[0]["before"]["theme"], &trail[0]["after"]["theme"]),
        (&json!("light"), &json!("dark"))
    );
    assert_eq!(session.put(PREFERENCES, &json!({})).await.json(200), nothing);
    // a key is no person
    let made = session.post("/v1/auth/api-keys", &json!({"name": "k", "scopes": ["*"]})).await.json(201);
    let key = server.client().with_key(made["key"].as_str().expect("a secret"));
    key.get(PREFERENCES).await.error(401, "unauthorized");
}

async fn an_address_wins_over_what_somebody_chose(database: Database) {
    let server = Server::start(&database);
    let mut browser = furnished(&server).await;
    let shows = |page: &str, range: &str| page.contains(&format!("<option value=\"{range}\" selected>"));
    let page = browser.get("/usage?meter=tokens").await.expect(200).text;
    assert!(shows(&page, "28d+today"), "{page}");
    let kept = [("name", "As it was"), ("query", "meter=tokens")];
    let saved = browser.make("/usage/saved/new", &kept).await.text;
    browser
        .post("/settings/preferences", &[("density", "comfortable"), ("default_range", "24h")])
        .await
        .expect(303);
    let page = browser.get("/usage?meter=tokens").await.expect(200).text;
    assert!(shows(&page, "24h") && page.contains("range=24h"), "{page}");
    let page = browser.get("/usage?meter=tokens&range=90d%2Btoday").await.expect(200).text;
    assert!(shows(&page, "90d+today"), "{page}");
    // a saved query is the same for whoever opens it
    let link = crate::dashboard::links_of(&saved).into_iter().find(|link| link.contains("saved="));
    let link = link.expect("the saved query");
    let page = browser.get(&link).await.expect(200).text;
    assert!(shows(&page, "28d+today"), "{link}: {page}");
}

async fn weeks_begin_on_the_day_that_somebody_chose(database: Database) {
    let server = Server::start(&database);
    let mut browser = furnished(&server).await;
    let view = "/usage?meter=tokens&range=28d%2Btoday&bucket=week";
    let shows = |page: &str, day: &str| page.contains(&format!("<option value=\"{day}\" selected>"));
    let page = browser.get(view).await.expect(200).text;
    assert!(shows(&page, "monday"), "{page}");
    // programs and files have to be told
    let curl = page.split_once("id=\"curl\">").expect("a call").1.split("</pre>").next().expect("an end");
    assert!(curl.contains("week_start") && curl.contains("monday"), "{curl}");
    let weekly = [("kind", "usage_buckets"), ("meter", "tokens"), ("range", "28d"), ("bucket", "week")];
    browser.post("/exports/new", &weekly).await.expect(303);
    let chosen = [("density", "comfortable"), ("week_start", "sunday")];
    browser.post("/settings/preferences", &chosen).await.expect(303);
    let page = browser.get(view).await.expect(200).text;
    assert!(shows(&page, "sunday"), "{page}");
    let links = crate::dashboard::links_of(&page);
    for path in ["/usage?", "/exports/new?"] {
        let told = links.iter().any(|link| link.starts_with(path) && link.contains("week_start=sunday"));
        assert!(told, "{path}: {links:?}");
    }
    let page = browser.get(&format!("{view}&week_start=monday")).await.expect(200).text;
    assert!(shows(&page, "monday"), "{page}");
    browser.get(&format!("{view}&week_start=friday")).await.expect(422);
    browser.post("/exports/new", &[&weekly[..], &[("week_start", "sunday")]].concat()).await.expect(303);
}
