//! What an error of PostgreSQL means is told by its code: the same on a cluster that speaks German, and for errors
//! whose words nobody here has ever read.

use diesel::connection::SimpleConnection;
use serde_json::{Value, json};

use crate::support::client::NOON;
use crate::support::{Answer, Database, Server, Workspace, on_both_databases, run};

fn event(key: &str) -> Value {
    json!({"meter": "calls", "subject": "s", "quantity": 1, "timestamp": NOON, "idempotency_key": key})
}

fn german() -> Database {
    Database::postgres_speaking("de_DE")
}

#[test]
fn lock_is_an_answer() {
    run(async {
        let database = german();
        let server = Server::start_with(&database, &[("OPEN_SPANNER_DB_STATEMENT_TIMEOUT", "2s")]);
        let workspace = server.workspace().await;
        workspace.meter("calls", "count").await;
        let mut holder = database.postgres_connection();
        holder.batch_execute("BEGIN; LOCK TABLE events IN ACCESS EXCLUSIVE MODE").expect("the lock is free");
        let (single, bulk) = (event("a"), json!([event("b")]));
        let (write, batch, list) = tokio::join!(
            workspace.post("/v1/usages", &single),
            workspace.post("/v1/usages/bulk", &bulk),
            workspace.get("/v1/usageevents"),
        );
        for answer in [write, batch, list] {
            answer.try_again();
        }
        holder
            .batch_execute("ROLLBACK; BEGIN; LOCK TABLE meters IN ACCESS EXCLUSIVE MODE")
            .expect("the lock is free");
        workspace.post("/v1/meters", &json!({"name": "m", "unit": "u"})).await.try_again();
        holder.batch_execute("ROLLBACK").expect("the lock is ours");
        workspace.post("/v1/usages", &event("a")).await.expect(201);
        assert!(database.cluster().log().contains("storniere Anfrage"), "it speaks German");
    });
}

/// Makes the next insertions of a meter fail with this code, and words that mean nothing.
fn fail(database: &Database, code: &str, times: u32) {
    database
        .postgres_connection()
        .batch_execute(&format!(
            "DROP SEQUENCE IF EXISTS failures; CREATE SEQUENCE failures;
             CREATE OR REPLACE FUNCTION fail() RETURNS trigger LANGUAGE plpgsql AS $$
             BEGIN
                 IF nextval('failures') <= {times} THEN
                     RAISE EXCEPTION 'Kartoffelsalat' USING ERRCODE = '{code}';
                 END IF;
                 RETURN NEW;
             END $$;
             CREATE OR REPLACE TRIGGER fail BEFORE INSERT ON meters FOR EACH ROW EXECUTE FUNCTION fail()"
        ))
        .expect("a trigger is made");
}

async fn create(workspace: &Workspace, name: &str) -> Answer {
    workspace.post("/v1/meters", &json!({"name": name, "unit": "u"})).await
}

#[test]
fn codes_decide() {
    run(async {
        let database = german();
        let server = Server::start(&database);
        let workspace = server.workspace().await;
        for code in ["40P01", "40001"] {
            fail(&database, code, 2);
            create(&workspace, &format!("repeated-{code}")).await.expect(201);
            fail(&database, code, 1_000);
            create(&workspace, &format!("given-up-{code}")).await.try_again();
        }
        for (code, words) in [
            ("53100", "full"),
            ("55P03", "locked"),
            ("25006", "read-only"),
            ("53300", "does not answer"),
            ("57P03", "does not answer"),
            ("57014", "in time"),
            ("08006", "does not answer"),
        ] {
            fail(&database, code, 1_000);
            let message = create(&workspace, "refused").await.error(503, "unavailable");
            assert!(message.contains(words), "{code}: {message}");
        }
        // the same every time: no reason to come back
        for code in ["22003", "22021", "XX000"] {
            fail(&database, code, 1_000);
            create(&workspace, "broken").await.error(500, "internal_error");
        }
        fail(&database, "22003", 0);
        create(&workspace, "refused").await.expect(201);
    });
}

/// Citus puts the number of a shard behind the name of each constraint.
#[test]
fn constraints_of_shards_are_known() {
    run(async {
        let database = german();
        let server = Server::start(&database);
        let workspace = server.workspace().await;
        create(&workspace, "twice").await.expect(201);
        let rename = "DO $$ DECLARE c record; BEGIN
            FOR c IN SELECT conrelid::regclass AS tab, conname FROM pg_constraint
                     WHERE contype = 'u' AND connamespace = 'public'::regnamespace AND conparentid = 0 LOOP
                EXECUTE format('ALTER TABLE %s RENAME CONSTRAINT %I TO %I', c.tab, c.conname, c.conname || '_102010');
            END LOOP; END $$";
        database.postgres_connection().batch_execute(rename).expect("constraints have names");
        create(&workspace, "twice").await.error(409, "conflict");
        let email = crate::support::client::sign_up(&server.client()).await;
        let again = json!({"email": email, "password": crate::support::client::PASSWORD});
        server.client().post("/v1/auth/users", &again).await.error(409, "conflict");
    });
}

on_both_databases!(default_isolation_does_not_leak_in);

async fn default_isolation_does_not_leak_in(database: Database) {
    if let Database::Postgres { name, .. } = &database {
        let default = format!("ALTER DATABASE {name} SET default_transaction_isolation = 'serializable'");
        database.postgres_connection().batch_execute(&default).expect("an owner may");
    }
    let server = Server::start(&database);
    let workspace = server.workspace().await;
    workspace.meter("calls", "count").await;
    let events: Vec<Value> = (0..200).map(|n| event(&format!("k{n}"))).collect();
    let writes = events.iter().map(|event| workspace.post("/v1/usages", event));
    for answer in futures_util::future::join_all(writes).await {
        answer.expect(201);
    }
    assert_eq!(workspace.total("calls").await, "200");
}
