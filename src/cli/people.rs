//! `admin user` and `audit`: people who cannot get in, and the check of the audit trail.

use std::time::Duration;

use serde_json::json;

use crate::audit;
use crate::auth::account::{begin_reset, disable, enable, end_all, reset_token, unlock};
use crate::auth::sql::operator;
use crate::cli::{Outcome, print_json, table};
use crate::config::commands::{Audit, Json, User, UserLink};
use crate::config::{Config, Driver};
use crate::db;
use crate::error::{Error, Result};
use crate::metering::time::Timestamp;
use crate::output::print;

pub fn user(config: &Config, user: &User) -> Result<()> {
    let driver = &config.db.driver;
    match user {
        User::Create(wish) => link(config, wish, true),
        User::ResetPassword(wish) => link(config, wish, false),
        User::List(json) => list(driver, *json),
        User::Disable(who) => {
            let ended =
                db::once_as_operator(driver, "operator::disable_user", |conn| disable(conn, &who.email))?;
            print(&format!("disabled, {ended} sessions ended\n"));
            Ok(())
        }
        User::Enable(who) => {
            db::once_as_operator(driver, "operator::enable_user", |conn| enable(conn, &who.email))?;
            print("enabled\n");
            Ok(())
        }
        User::Unlock(who) => {
            db::once_as_operator(driver, "operator::unlock_user", |conn| unlock(conn, &who.email))?;
            print("unlocked\n");
            Ok(())
        }
        User::EndSessions { email } => {
            let ended = db::once_as_operator(driver, "operator::end_sign_ins", |conn| end_all(conn, email))?;
            print(&format!("ended {ended}\n"));
            Ok(())
        }
    }
}

/// A link with which a user sets their own password: no password is typed here, or in any list of processes.
fn link(config: &Config, wish: &UserLink, create: bool) -> Result<()> {
    let (driver, token, now) = (&config.db.driver, reset_token()?, Timestamp::now());
    let hash = token.hash();
    let expires_at = match create {
        true => db::once_as_operator(driver, "operator::create_user", |conn| {
            begin_reset(conn, &wish.email, true, &hash, now)
        }),
        false => db::once_as_operator(driver, "operator::reset_password", |conn| {
            begin_reset(conn, &wish.email, false, &hash, now)
        }),
    }?;
    let path = format!("/reset/{}", token.expose());
    let url = config.http.public_url.as_ref().map(|server| format!("{server}{path}"));
    if wish.json.json {
        let link = json!({"path": path, "url": url, "token": token.expose(), "expires_at": expires_at});
        return print_json(&link);
    }
    match &url {
        Some(_) => eprintln!("open this link before {expires_at}; it works once:"),
        None => eprintln!(
            "open this path on the server before {expires_at}; it works once (with OPEN_SPANNER_PUBLIC_URL the whole link is here):"
        ),
    }
    print(&format!("{}\n", url.unwrap_or(path)));
    Ok(())
}

fn list(driver: &Driver, as_json: Json) -> Result<()> {
    let users = db::once(driver, operator::users)?;
    if as_json.json {
        let items = users.iter().map(|user| {
            json!({"id": user.public_id, "email": user.email, "created_at": Timestamp(user.created_at),
                   "has_password": user.has_password, "workspaces": user.workspaces,
                   "disabled": user.is_disabled})
        });
        return print_json(&items.collect::<Vec<_>>());
    }
    let rows = users.into_iter().map(|user| {
        let password = match (user.is_disabled, user.has_password) {
            (true, _) => "disabled",
            (false, true) => "set",
            (false, false) => "none",
        };
        [user.public_id, password.to_owned(), user.workspaces.to_string(), user.email]
    });
    print(&table(["ID", "PASSWORD", "WORKSPACES", "EMAIL"], &rows.collect::<Vec<_>>()));
    Ok(())
}

pub fn audit(config: &Config, asked: &Audit) -> Result<Outcome> {
    match asked {
        Audit::Verify(as_json) => verify(&config.db.driver, *as_json),
        Audit::Prune { older_than_days, json } => prune(config, *older_than_days, *json),
    }
}

/// Deletes the oldest rows of the trail, and leaves a row that says so.
fn prune(config: &Config, older_than_days: Option<u32>, as_json: Json) -> Result<Outcome> {
    let days = older_than_days.map(|days| Duration::from_secs(u64::from(days) * 86_400));
    let Some(lifetime) = days.or(config.retention.audit) else {
        return Err(Error::invalid(
            "OPEN_SPANNER_AUDIT_RETENTION keeps everything: name an age with --older-than-days",
        ));
    };
    let rows = audit::prune_as_operator(&config.db.driver, lifetime)?;
    match as_json.json {
        true => print_json(&json!({"pruned": rows}))?,
        false => print(&format!("{rows} rows pruned\n")),
    }
    Ok(Outcome::Done)
}

/// Computes the hashes of the whole trail anew.
fn verify(driver: &Driver, as_json: Json) -> Result<Outcome> {
    let verdict = audit::verify(driver)?;
    if as_json.json {
        let broken = verdict.broken.iter().map(|broken| {
            json!({"workspace": broken.workspace_id.to_string(), "sequence": broken.sequence, "why": broken.why})
        });
        let broken: Vec<_> = broken.collect();
        print_json(&json!({"chains": verdict.workspaces, "rows": verdict.rows, "broken": broken}))?;
    } else {
        print(&format!("{} rows in {} chains\n", verdict.rows, verdict.workspaces));
        for broken in &verdict.broken {
            print(&format!(
                "broken: chain {}, row {}: {}\n",
                broken.workspace_id, broken.sequence, broken.why
            ));
        }
    }
    Ok(if verdict.broken.is_empty() { Outcome::Done } else { Outcome::Findings })
}
