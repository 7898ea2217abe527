//! `admin user` and `audit`: people who cannot get in, and the check of the audit trail.

use serde_json::json;

use crate::audit;
use crate::auth::account::{begin_reset, end_all, reset_token};
use crate::auth::sql::operator;
use crate::cli::{Outcome, print, print_json, table};
use crate::config::Driver;
use crate::config::commands::{Audit, Json, User, UserLink};
use crate::db;
use crate::error::Result;
use crate::metering::time::Timestamp;

pub fn user(driver: &Driver, user: &User) -> Result<()> {
    match user {
        User::Create(wish) => link(driver, wish, true),
        User::ResetPassword(wish) => link(driver, wish, false),
        User::List(json) => list(driver, *json),
        User::EndSessions { email } => {
            let ended = db::once_as_operator(driver, "operator::end_sign_ins", |conn| end_all(conn, email))?;
            print(&format!("ended {ended}\n"));
            Ok(())
        }
    }
}

/// A link with which a user sets their own password: no password is typed here, or in any list of processes.
fn link(driver: &Driver, wish: &UserLink, create: bool) -> Result<()> {
    let (token, now) = (reset_token()?, Timestamp::now());
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
    if wish.json.json {
        return print_json(&json!({"path": path, "token": token.expose(), "expires_at": expires_at}));
    }
    eprintln!("open this path on the server before {expires_at}; it works once:");
    print(&format!("{path}\n"));
    Ok(())
}

fn list(driver: &Driver, as_json: Json) -> Result<()> {
    let users = db::once(driver, operator::users)?;
    if as_json.json {
        let items = users.iter().map(|user| {
            json!({"id": user.public_id, "email": user.email, "created_at": Timestamp(user.created_at),
                   "has_password": user.has_password, "workspaces": user.workspaces})
        });
        return print_json(&items.collect::<Vec<_>>());
    }
    let rows = users.into_iter().map(|user| {
        let password = if user.has_password { "set" } else { "none" };
        [user.public_id, password.to_owned(), user.workspaces.to_string(), user.email]
    });
    print(&table(["ID", "PASSWORD", "WORKSPACES", "EMAIL"], &rows.collect::<Vec<_>>()));
    Ok(())
}

/// Computes the hashes of the whole trail anew.
pub fn audit(driver: &Driver, asked: &Audit) -> Result<Outcome> {
    let Audit::Verify(as_json) = asked;
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
