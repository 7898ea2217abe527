//! `admin`: keys and queues, by whoever has the database. Works with the server stopped or running.

use std::sync::atomic::AtomicBool;

use serde_json::json;

use crate::auth::key::{self, NewKeyRequest, Status};
use crate::auth::session::normal_email;
use crate::auth::sql::users::Member;
use crate::auth::sql::{keys, operator};
use crate::cli::{Outcome, people, print_json, table, workspaces};
use crate::config::commands::{Admin, Json, Key, KeyCreate, Of, Queue};
use crate::config::{Config, Driver};
use crate::db::migrations::{self, Wanted};
use crate::db::{self, Conn, DbError, audit};
use crate::error::{Error, Result};
use crate::jobs::dead_letters::{self, DeadLetter};
use crate::jobs::sql;
use crate::metering::time::Timestamp;
use crate::operations::dead_letters::what_is_gone;
use crate::output::print;

pub fn run(config: &Config, admin: &Admin) -> Result<Outcome> {
    let driver = &config.db.driver;
    prepare(config)?;
    match admin {
        Admin::User(asked) => people::user(config, asked),
        Admin::Key(Key::Create(wish)) => create_key(driver, wish),
        Admin::Key(Key::List { of, json }) => list_keys(driver, of, *json),
        Admin::Key(Key::Revoke { id }) => revoke_key(driver, id),
        Admin::Workspace(asked) => workspaces::run(driver, asked),
        Admin::Member(asked) => workspaces::members(driver, asked),
        Admin::Queue(Queue::List(json)) => list_queues(driver, *json),
        Admin::Queue(Queue::Retry { id }) => retry(driver, id),
    }?;
    Ok(Outcome::Done)
}

/// A new database gets its schema; one that is in use is left at the version that its servers have.
fn prepare(config: &Config) -> Result<()> {
    let driver = &config.db.driver;
    let (steps, _) = migrations::status(driver)?;
    let migrate = steps.iter().all(|step| !step.applied);
    let wanted = Wanted { migrate, accept_newer: config.accept_newer_schema };
    migrations::prepare(driver, wanted, &AtomicBool::new(false)).map(drop)
}

fn member(conn: &mut Conn, of: &Of) -> Result<Member, DbError> {
    let email = of.email.as_deref().map(normal_email).transpose()?;
    if !operator::has_users(conn)? {
        let Some(email) = email else {
            return Err(Error::invalid("there is no user yet: name the first one with --email").into());
        };
        return operator::first_user(conn, &email, Timestamp::now());
    }
    operator::member(conn, of.workspace.as_deref(), email.as_deref())
}

fn create_key(driver: &Driver, wish: &KeyCreate) -> Result<()> {
    let request = NewKeyRequest {
        name: wish.name.clone(),
        scopes: wish.scopes.clone(),
        allowed_meters: wish.meters.clone(),
        allowed_networks: wish.networks.clone(),
        expires_at: wish.expires.clone(),
    };
    let (member, key, secret) = db::once_as_operator(driver, "keys::create", |conn| {
        let member = member(conn, &wish.of)?;
        let owner = keys::Owner { workspace_id: member.workspace_id, user_id: member.user_id };
        let (key, secret) = key::make(conn, owner, &request, Timestamp::now())?;
        audit::by(audit::Actor::operator());
        Ok((member, key, secret))
    })?;
    if !wish.json.json {
        eprintln!("key {} of {} in workspace {}", key.public_id, member.email, member.workspace_name);
        print(&format!("{}\n", secret.expose()));
        return Ok(());
    }
    print_json(&json!({
        "id": key.public_id, "key": secret.expose(), "name": key.name, "scopes": key.scopes.0,
        "workspace_id": member.workspace_public_id, "email": member.email,
    }))
}

fn list_keys(driver: &Driver, of: &Of, as_json: Json) -> Result<()> {
    let keys = db::once(driver, |conn| {
        let email = of.email.as_deref().map(normal_email).transpose()?;
        let member = operator::member(conn, of.workspace.as_deref(), email.as_deref())?;
        keys::list(conn, keys::Owner { workspace_id: member.workspace_id, user_id: member.user_id })
    })?;
    let now = Timestamp::now();
    if as_json.json {
        let items = keys.iter().map(|key| {
            json!({
                "id": key.public_id, "name": key.name, "prefix": key.prefix, "status": Status::of(key, now),
                "scopes": key.scopes.0, "allowed_meters": key.allowed_meters.0,
                "created_at": Timestamp(key.created_at), "last_used_at": key.last_used_at.map(Timestamp),
            })
        });
        return print_json(&items.collect::<Vec<_>>());
    }
    let rows = keys.iter().map(|key| {
        let status = format!("{:?}", Status::of(key, now)).to_lowercase();
        let used = key.last_used_at.map_or("never".to_owned(), |at| Timestamp(at).to_string());
        [key.public_id.clone(), key.prefix.clone(), status, used, key.name.clone()]
    });
    print(&table(["ID", "PREFIX", "STATUS", "LAST USED", "NAME"], &rows.collect::<Vec<_>>()));
    Ok(())
}

fn revoke_key(driver: &Driver, id: &str) -> Result<()> {
    db::once_as_operator(driver, "keys::revoke", |conn| {
        let owner = operator::key_owner(conn, id)?;
        keys::revoke(conn, owner, id, Timestamp::now()).map(drop)
    })?;
    print(&format!("revoked {id}\n"));
    Ok(())
}

/// Of the jobs that were given up, so many are shown.
const SHOWN: i64 = 50;

fn list_queues(driver: &Driver, as_json: Json) -> Result<()> {
    let now = Timestamp::now();
    let (queues, dead) =
        db::once(driver, |conn| Ok((sql::standings(conn, now)?, sql::dead_letters(conn, SHOWN)?)))?;
    let age = |at: i64| (now.0 - at).max(0) / crate::metering::time::SECOND;
    if as_json.json {
        let queues = queues.iter().map(|queue| {
            json!({
                "queue": queue.queue, "due": queue.due, "running": queue.running, "failed": queue.failed,
                "later": queue.later, "dead": queue.dead, "oldest_due_seconds": queue.oldest_due_at.map(age),
            })
        });
        let dead = dead.iter().map(|letter| {
            json!({
                "id": letter.id, "queue": letter.queue, "key": letter.key, "attempts": letter.attempts,
                "last_error": letter.last_error, "created_at": Timestamp(letter.created_at),
            })
        });
        let (queues, dead) = (queues.collect::<Vec<_>>(), dead.collect::<Vec<_>>());
        return print_json(&json!({"queues": queues, "dead_letters": dead}));
    }
    let rows = queues.iter().map(|queue| {
        let [due, running, failed, later, dead] =
            [queue.due, queue.running, queue.failed, queue.later, queue.dead].map(|count| count.to_string());
        let oldest = queue.oldest_due_at.map_or("-".to_owned(), |at| format!("{}s", age(at)));
        [queue.queue.clone(), due, oldest, running, failed, later, dead]
    });
    let titles = ["QUEUE", "DUE", "OLDEST", "RUNNING", "FAILED", "LATER", "DEAD"];
    print(&table(titles, &rows.collect::<Vec<_>>()));
    if !dead.is_empty() {
        let row = |letter: DeadLetter| {
            let at = Timestamp(letter.created_at).to_string();
            [letter.id, letter.queue, at, letter.last_error.escape_debug().to_string()]
        };
        let rows: Vec<_> = dead.into_iter().map(row).collect();
        print(&format!("\n{}", table(["GIVEN UP", "QUEUE", "AT", "LAST ERROR"], &rows)));
    }
    Ok(())
}

fn retry(driver: &Driver, id: &str) -> Result<()> {
    db::once_as_operator(driver, "jobs::requeue", |conn| {
        let letter = sql::dead_letter(conn, id)?;
        audit::in_workspace(letter.workspace_id);
        audit::about(&letter.id, "");
        if let Some(gone) = what_is_gone(conn, &letter)? {
            return Err(Error::conflict(format!("{gone}: there is nothing left to do")).into());
        }
        dead_letters::requeue(conn, &letter, Timestamp::now())
    })?;
    print(&format!("queued {id}\n"));
    Ok(())
}
