//! `admin workspace` and `admin member`: which workspaces there are and who belongs to them, by whoever has the database.

use serde_json::json;

use crate::auth::members;
use crate::auth::session::normal_email;
use crate::auth::sql::operator;
use crate::auth::sql::users::Member as Owner;
use crate::cli::{print_json, table};
use crate::config::Driver;
use crate::config::commands::{Json, Member, Workspace};
use crate::db;
use crate::error::Result;
use crate::metering::time::Timestamp;
use crate::output::print;

pub fn run(driver: &Driver, asked: &Workspace) -> Result<()> {
    match asked {
        Workspace::List(json) => list(driver, *json),
        Workspace::Create { name, owner, json } => create(driver, name, owner, *json),
        Workspace::Rename { id, name } => rename(driver, id, name),
    }
}

fn list(driver: &Driver, as_json: Json) -> Result<()> {
    let owners = db::once(driver, operator::owners)?;
    if as_json.json {
        let items = owners.iter().map(|owner| {
            json!({"id": owner.workspace_public_id, "name": owner.workspace_name, "owner": owner.email})
        });
        return print_json(&items.collect::<Vec<_>>());
    }
    let row = |owner: Owner| [owner.workspace_public_id, owner.email, owner.workspace_name];
    print(&table(["ID", "OWNER", "NAME"], &owners.into_iter().map(row).collect::<Vec<_>>()));
    Ok(())
}

fn create(driver: &Driver, name: &str, owner: &str, as_json: Json) -> Result<()> {
    let (name, email) = (members::workspace_name(name)?, normal_email(owner)?);
    let made = db::once_as_operator(driver, "workspaces::create", |conn| {
        operator::create_workspace(conn, &name, &email, Timestamp::now())
    })?;
    if as_json.json {
        return print_json(
            &json!({"id": made.workspace_public_id, "name": made.workspace_name, "owner": made.email}),
        );
    }
    print(&format!("{}\n", made.workspace_public_id));
    Ok(())
}

fn rename(driver: &Driver, id: &str, name: &str) -> Result<()> {
    let name = members::workspace_name(name)?;
    db::once_as_operator(driver, "workspaces::rename", |conn| operator::rename_workspace(conn, id, &name))?;
    print(&format!("renamed {id}\n"));
    Ok(())
}

pub fn members(driver: &Driver, asked: &Member) -> Result<()> {
    match asked {
        Member::List { workspace, json } => list_members(driver, workspace, *json),
        Member::SetRole { workspace, email, role } => {
            let email = normal_email(email)?;
            db::once_as_operator(driver, "members::set_role", |conn| {
                let workspace_id = operator::workspace(conn, workspace)?;
                members::put_role(conn, workspace_id, &email, role, Timestamp::now())
            })?;
            print(&format!("{email} is {role}\n"));
            Ok(())
        }
    }
}

fn list_members(driver: &Driver, workspace: &str, as_json: Json) -> Result<()> {
    let members = db::once(driver, |conn| {
        let workspace_id = operator::workspace(conn, workspace)?;
        crate::auth::sql::members::list(conn, workspace_id)
    })?;
    if as_json.json {
        let items = members.iter().map(|member| {
            json!({"id": member.public_id, "email": member.email, "role": member.role,
                   "since": Timestamp(member.joined_at)})
        });
        return print_json(&items.collect::<Vec<_>>());
    }
    let rows = members.into_iter().map(|member| {
        let since = Timestamp(member.joined_at).to_string();
        [member.public_id, member.role.as_str().to_owned(), since, member.email]
    });
    print(&table(["ID", "ROLE", "SINCE", "EMAIL"], &rows.collect::<Vec<_>>()));
    Ok(())
}
