//! Users, workspaces and what opens them: memberships, sessions, API keys.

use base64::Engine;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;

use super::{Ids, Refusal};
use crate::auth::permission::{Role, normal_scopes};
use crate::chance;
use crate::db::Conn;
use crate::import::sql::foreign::Kind::{Int, Text};
use crate::import::sql::foreign::{Odd, Row, Table};
use crate::import::sql::ours::{self, Columns, Put};

pub const WORKSPACES: Table = Table {
    name: "auth_workspaces",
    columns: &[("id", Text), ("name", Text), ("created_at", Text)],
    order: "",
};

pub fn workspace(conn: &mut Conn, ids: &mut Ids, row: &Row) -> Result<Put, Refusal> {
    let (public_id, name) = (uuid_text(row, "id")?, row.text("name")?);
    let columns: Columns = vec![("name", name.into()), ("created_at", row.time("created_at")?.0.into())];
    let (put, id) = ours::put(conn, "workspaces", &public_id, &columns, &[], true)?;
    ids.workspaces.insert(row.text("id")?, id);
    Ok(put)
}

pub const USERS: Table = Table {
    name: "auth_users",
    columns: &[("id", Text), ("email", Text), ("password_hash", Text), ("created_at", Text)],
    order: "created_at",
};

pub fn user(conn: &mut Conn, ids: &mut Ids, row: &Row) -> Result<Put, Refusal> {
    let (public_id, email) = (uuid_text(row, "id")?, row.text("email")?);
    if email != email.trim().to_lowercase() {
        return Err(format!("its address is not in lower case, nobody can sign in with it: {email}").into());
    }
    let columns: Columns = vec![
        ("email", email.into()),
        ("password_hash", row.text("password_hash")?.into()),
        ("created_at", row.time("created_at")?.0.into()),
    ];
    let (put, id) = ours::put(conn, "users", &public_id, &columns, &[], true)?;
    if put != Put::Taken {
        ids.users.insert(row.text("id")?, id);
    }
    Ok(put)
}

pub const MEMBERSHIPS: Table = Table {
    name: "auth_workspace_memberships",
    columns: &[("workspace_id", Text), ("user_id", Text), ("role", Text), ("created_at", Text)],
    order: "",
};

pub fn membership(conn: &mut Conn, ids: &mut Ids, row: &Row) -> Result<Put, Refusal> {
    let role = row.text("role")?;
    let role = Role::parse(&role).ok_or_else(|| format!("there is no such role: {role}"))?;
    let columns: Columns = vec![
        ("workspace_id", ids.workspace(row)?.into()),
        ("user_id", ids.user(row)?.into()),
        ("role", role.as_str().into()),
        ("created_at", row.time("created_at")?.0.into()),
    ];
    Ok(new_or_known(ours::add(conn, "memberships", &columns)?))
}

pub const IDENTITIES: Table = Table {
    name: "auth_identities",
    columns: &[
        ("id", Text),
        ("user_id", Text),
        ("provider", Text),
        ("subject", Text),
        ("email", Text),
        ("email_verified", Int),
        ("created_at", Text),
        ("updated_at", Text),
    ],
    order: "",
};

/// What the provider calls the person is what this server finds them by, too.
pub fn identity(conn: &mut Conn, ids: &mut Ids, row: &Row) -> Result<Put, Refusal> {
    let (public_id, provider) = (uuid_text(row, "id")?, row.text("provider")?);
    let issuer = match provider.as_str() {
        "google" => "https://accounts.google.com",
        "github" => "https://github.com",
        other => return Err(format!("there is no such provider: {other}").into()),
    };
    let columns: Columns = vec![
        ("user_id", ids.user(row)?.into()),
        ("provider", provider.into()),
        ("issuer", issuer.into()),
        ("subject", row.text("subject")?.into()),
        ("email", row.text("email")?.into()),
        ("created_at", row.time("created_at")?.0.into()),
    ];
    Ok(ours::put(conn, "identities", &public_id, &columns, &[], true)?.0)
}

pub const SESSIONS: Table = Table {
    name: "auth_sessions",
    columns: &[
        ("id", Text),
        ("user_id", Text),
        ("workspace_id", Text),
        ("token_hash", Text),
        ("kind", Text),
        ("expires_at", Text),
        ("created_at", Text),
    ],
    order: "",
};

/// Nothing ties an access token to its refresh token: each is a sign-in of its own.
pub fn session(conn: &mut Conn, ids: &mut Ids, row: &Row) -> Result<Put, Refusal> {
    let (kind, expires_at) = (row.text("kind")?, row.time("expires_at")?);
    if !["access", "refresh"].contains(&kind.as_str()) {
        return Err(format!("there is no such session: {kind}").into());
    }
    if expires_at <= ids.now {
        return Err("it has expired".to_owned().into());
    }
    let columns: Columns = vec![
        ("token_hash", token_hash(row)?.into()),
        ("kind", kind.into()),
        ("login_id", row.text("id")?.into()),
        ("form_key", chance::secret::<16>()?.to_vec().into()),
        ("user_id", ids.user(row)?.into()),
        ("workspace_id", ids.workspace(row)?.into()),
        ("expires_at", expires_at.0.into()),
        ("created_at", row.time("created_at")?.0.into()),
    ];
    Ok(new_or_known(ours::add(conn, "sessions", &columns)?))
}

pub const API_KEYS: Table = Table {
    name: "auth_api_keys",
    columns: &[
        ("id", Text),
        ("user_id", Text),
        ("workspace_id", Text),
        ("name", Text),
        ("token_hash", Text),
        ("prefix", Text),
        ("scopes", Text),
        ("allowed_meters", Text),
        ("expires_at", Text),
        ("revoked_at", Text),
        ("created_at", Text),
        ("last_used_at", Text),
    ],
    order: "",
};

pub fn api_key(conn: &mut Conn, ids: &mut Ids, row: &Row) -> Result<Put, Refusal> {
    let public_id = uuid_text(row, "id")?;
    let scopes = words(row, "scopes")?;
    if scopes.is_empty() {
        return Err("scopes is empty".to_owned().into());
    }
    let scopes = serde_json::to_string(&normal_scopes(&scopes)?).map_err(|error| error.to_string())?;
    let meters = serde_json::to_string(&words(row, "allowed_meters")?).map_err(|error| error.to_string())?;
    let columns: Columns = vec![
        ("workspace_id", ids.workspace(row)?.into()),
        ("user_id", ids.user(row)?.into()),
        ("name", row.text("name")?.into()),
        ("token_hash", token_hash(row)?.into()),
        ("prefix", row.text("prefix")?.into()),
        ("scopes", scopes.into()),
        ("allowed_meters", meters.into()),
        ("expires_at", row.optional_time("expires_at")?.map(|at| at.0).into()),
        ("revoked_at", row.optional_time("revoked_at")?.map(|at| at.0).into()),
        ("created_at", row.time("created_at")?.0.into()),
        ("last_used_at", row.optional_time("last_used_at")?.map(|at| at.0).into()),
    ];
    let changing = ["expires_at", "revoked_at", "last_used_at"];
    let (put, _) = ours::put(conn, "api_keys", &public_id, &columns, &changing, true)?;
    ids.keys.insert(public_id);
    Ok(put)
}

pub const API_KEY_EVENTS: Table = Table {
    name: "auth_api_key_events",
    columns: &[
        ("id", Text),
        ("workspace_id", Text),
        ("user_id", Text),
        ("api_key_id", Text),
        ("key_name", Text),
        ("key_prefix", Text),
        ("event_type", Text),
        ("related_api_key_id", Text),
        ("effective_at", Text),
        ("created_at", Text),
    ],
    order: "",
};

pub fn api_key_event(conn: &mut Conn, ids: &mut Ids, row: &Row) -> Result<Put, Refusal> {
    let kind = row.text("event_type")?;
    if !["created", "rotated", "revoked"].contains(&kind.as_str()) {
        return Err(format!("there is no such event: {kind}").into());
    }
    let columns: Columns = vec![
        ("id", row.text("id")?.into()),
        ("workspace_id", ids.workspace(row)?.into()),
        ("user_id", ids.user(row)?.into()),
        ("api_key_id", row.text("api_key_id")?.into()),
        ("key_name", row.text("key_name")?.into()),
        ("key_prefix", row.text("key_prefix")?.into()),
        ("event_type", kind.into()),
        ("related_api_key_id", row.filled("related_api_key_id")?.into()),
        ("effective_at", row.optional_time("effective_at")?.map(|at| at.0).into()),
        ("created_at", row.time("created_at")?.0.into()),
    ];
    Ok(new_or_known(ours::add(conn, "api_key_events", &columns)?))
}

pub const INVITATIONS: Table =
    Table { name: "auth_workspace_invitations", columns: &[("id", Text), ("email", Text)], order: "" };

pub fn invitation(_: &mut Conn, _: &mut Ids, _: &Row) -> Result<Put, Refusal> {
    Err("invitations are not taken over: invite again".to_owned().into())
}

pub fn new_or_known(is_new: bool) -> Put {
    if is_new { Put::New } else { Put::Known }
}

/// An id that stays on the wire, so it must be spelled as ours are.
pub fn uuid_text(row: &Row, name: &str) -> Result<String, Odd> {
    let text = row.text(name)?;
    match uuid::Uuid::try_parse(&text) {
        Ok(id) if id.hyphenated().to_string() == text => Ok(text),
        _ => Err(format!("{name} is no UUID in lower case")),
    }
}

fn token_hash(row: &Row) -> Result<Vec<u8>, Odd> {
    let hash = URL_SAFE_NO_PAD.decode(row.text("token_hash")?).unwrap_or_default();
    if hash.len() == 32 { Ok(hash) } else { Err("token_hash is no SHA-256 in base64".to_owned()) }
}

/// A JSON list of texts; null and nothing are an empty one.
fn words(row: &Row, name: &str) -> Result<Vec<String>, Odd> {
    let text = row.optional(name)?.filter(|text| !text.is_empty() && text != "null");
    let list = text.map_or(Ok(Vec::new()), |text| serde_json::from_str(&text));
    list.map_err(|_| format!("{name} is no list of texts"))
}
