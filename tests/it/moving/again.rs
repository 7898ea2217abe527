//! An import that is run again does not undo what was ended or made here meanwhile.

use serde_json::json;

use super::{KEY, OTHER_KEY, PASSWORD, import, place, theirs};
use crate::support::{Client, Database, Server, on_both_databases};

on_both_databases!(keys_that_are_revoked_here_stay_so, a_destination_without_a_secret_gets_one_that_stays);

async fn as_ada(server: &Server) -> Client {
    let body = json!({"email": "ada@example.com", "password": PASSWORD});
    let signed_in = server.client().post("/v1/auth/sessions", &body).await.expect(201);
    let access = signed_in.cookie("open_spanner_access").expect("a cookie");
    server.client().with("cookie", format!("open_spanner_access={access}"))
}

/// Whether the key opens anything.
async fn works(server: &Server, key: &str) -> bool {
    server.client().with_key(key).get("/v1/meters").await.status == 200
}

async fn keys_that_are_revoked_here_stay_so(ours: Database) {
    let [theirs, _] = theirs();
    import(&ours, &place(&theirs), &[]).run.succeeded();
    let mut server = Server::start(&ours);
    assert!(works(&server, KEY).await && works(&server, OTHER_KEY).await);
    let ada = as_ada(&server).await;
    ada.delete("/v1/auth/api-keys/aaaaaaaa-0000-4000-8000-000000000001").await.expect(204);
    assert!(!works(&server, KEY).await);
    server.terminate();
    // as it is there, and in the time of grace after a rotation there
    for change in ["last_used_at = '2026-02-01T00:00:00Z'", "revoked_at = '2099-01-01T00:00:00Z'"] {
        theirs.execute(&format!("UPDATE auth_api_keys SET {change}"));
        import(&ours, &place(&theirs), &[]).run.succeeded();
        let mut server = Server::start(&ours);
        assert!(!works(&server, KEY).await, "{change}");
        assert!(works(&server, OTHER_KEY).await, "{change}");
        server.terminate();
    }
    // the time of grace ends sooner there
    theirs.execute("UPDATE auth_api_keys SET revoked_at = '2026-02-01T00:00:00Z'");
    import(&ours, &place(&theirs), &[]).run.succeeded();
    let server = Server::start(&ours);
    assert!(!works(&server, KEY).await && !works(&server, OTHER_KEY).await);
}

async fn a_destination_without_a_secret_gets_one_that_stays(ours: Database) {
    let [theirs, _] = theirs();
    let stored = || ours.lines("SELECT secret AS line FROM alert_destinations");
    theirs.execute("UPDATE alert_destinations SET webhook_secret = ''");
    import(&ours, &place(&theirs), &[]).run.succeeded();
    let made = stored();
    let start = match &ours {
        Database::Sqlite { .. } => "sealed:",
        Database::Postgres { .. } => "osp_whsec_",
    };
    assert!(made.len() == 1 && made[0].starts_with(start), "{made:?}");
    import(&ours, &place(&theirs), &[]).run.succeeded();
    assert_eq!(stored(), made);
    // one that was made there is used from then on
    theirs.execute("UPDATE alert_destinations SET webhook_secret = 'osp_whsec_theirs'");
    import(&ours, &place(&theirs), &[]).run.succeeded();
    assert_ne!(stored(), made);
}
