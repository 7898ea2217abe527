//! Users, workspaces and what opens them: memberships, sessions, API keys.

use base64::Engine;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use ring::digest;

use super::{Ids, Refusal};
use crate::auth::permission::{Role, normal_scopes};
use crate::chance;
use crate::db::{Conn, audit};
use crate::import::sql::foreign::Kind::{Int, Text};
use crate::import::sql::foreign::{Odd, Row, Table};
use crate::import::sql::ours::{self, Columns, Put, Value};

pub const WORKSPACES: Table = Table {
    name: "auth_workspaces",
    columns: &[("id", Text), ("name", Text), ("created_at", Text)],
    order: "",
};

pub fn workspace(conn: &mut Conn, ids: &mut Ids, row: &Row) -> Result<Put, Refusal> {
    let (public_id, name) = (uuid_text(row, "id")?, row.text("name")?);
    let columns: Columns =
        vec![("name", name.clone().into()), ("created_at", row.time("created_at")?.0.into())];
    let (put, id) = ours::put(conn, "workspaces", &public_id, &columns, &["name"], true)?;
    if put == Put::New {
        audit::put_down(conn, "import::workspace", id, [&public_id, &name], None)?;
    }
    ids.workspaces.insert(public_id, id);
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
    let password_hash = row.text("password_hash")?;
    let columns: Columns = vec![
        ("email", email.clone().into()),
        ("password_hash", password_hash.clone().into()),
        ("created_at", row.time("created_at")?.0.into()),
    ];
    let (put, id) = ours::put(conn, "users", &public_id, &columns, &[], true)?;
    match put {
        Put::New => {}
        // a password that was changed there counts, until this server has made a hash of its own
        Put::Known => ours::keep_password(conn, id, &password_hash)?,
        Put::Taken => return guest(conn, ids, public_id, &email),
    }
    ids.users.insert(public_id, id);
    Ok(put)
}

/// Somebody has this address here already. Who has shown that it is theirs takes the place of the one there, and keeps
/// the account as it is: nothing is added that would open it.
fn guest(conn: &mut Conn, ids: &mut Ids, public_id: String, email: &str) -> Result<Put, Refusal> {
    let Some(id) = ours::verified_user(conn, email)? else {
        return Err("an account with its address is here, and nobody has shown whose it is".into());
    };
    ids.note(format!("{email:?} has an account here, which takes the place of the one there"));
    ids.users.insert(public_id.clone(), id);
    ids.guests.insert(public_id);
    Ok(Put::Known)
}

/// Of somebody who has an account here.
fn opens_nothing(ids: &Ids, row: &Row) -> Result<(), Odd> {
    match ids.guests.contains(&row.text("user_id")?) {
        true => Err("its user has an account here, which it does not open".to_owned()),
        false => Ok(()),
    }
}

pub const MEMBERSHIPS: Table = Table {
    name: "auth_workspace_memberships",
    columns: &[("workspace_id", Text), ("user_id", Text), ("role", Text), ("created_at", Text)],
    order: "",
};

pub fn membership(conn: &mut Conn, ids: &mut Ids, row: &Row) -> Result<Put, Refusal> {
    let role = row.text("role")?;
    let role = Role::parse(&role).ok_or_else(|| format!("there is no such role: {role}"))?;
    let (workspace_id, user_id) = (ids.workspace(row)?, ids.user(row)?);
    if !ids.members.insert((workspace_id, user_id)) {
        return Err("its user is a member already".into());
    }
    let columns: Columns = vec![
        ("workspace_id", workspace_id.into()),
        ("user_id", user_id.into()),
        ("role", role.as_str().into()),
        ("created_at", row.time("created_at")?.0.into()),
    ];
    if ours::add(conn, "memberships", &columns)? {
        return Ok(Put::New);
    }
    let text = "UPDATE memberships SET role = $1 WHERE workspace_id = $2 AND user_id = $3 AND role <> $1";
    let values = [role.as_str().into(), workspace_id.into(), user_id.into()];
    ours::execute(conn, text.to_owned(), &values)?;
    Ok(Put::Known)
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
    opens_nothing(ids, row)?;
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

/// The two tokens of a sign-in were made at the same moment, which is all that ties them together. With a sign-in here they
/// are refreshed, listed, ended and moved like others.
pub fn session(conn: &mut Conn, ids: &mut Ids, row: &Row) -> Result<Put, Refusal> {
    let (kind, expires_at) = (row.text("kind")?, row.time("expires_at")?);
    if !["access", "refresh"].contains(&kind.as_str()) {
        return Err(format!("there is no such session: {kind}").into());
    }
    if expires_at <= ids.now {
        return Err("it has expired".to_owned().into());
    }
    opens_nothing(ids, row)?;
    uuid_text(row, "id")?;
    let (hash, created_at) = (token_hash(row)?, row.time("created_at")?);
    let (user_id, workspace_id) = (ids.user(row)?, ids.workspace(row)?);
    // an access token alone goes no further than itself
    let ends_at = match kind.as_str() {
        "refresh" => created_at.plus(ids.session_max_age),
        _ => expires_at,
    };
    let login_id = sign_in_id(row)?;
    let sign_in = ours::SignIn { login_id: &login_id, user_id, workspace_id, created_at, ends_at };
    let form_key = ours::put_sign_in(conn, &sign_in)?;
    let form_key = form_key.map_or_else(|| chance::secret::<16>().map(|key| key.to_vec()), Ok)?;
    let columns: Columns = vec![
        ("token_hash", hash.clone().into()),
        ("kind", kind.into()),
        ("login_id", login_id.clone().into()),
        ("form_key", form_key.into()),
        ("user_id", user_id.into()),
        ("workspace_id", workspace_id.into()),
        ("expires_at", expires_at.0.into()),
        ("created_at", created_at.0.into()),
    ];
    ids.sign_ins.insert(login_id);
    ids.tokens.insert(hash);
    Ok(new_or_known(ours::add(conn, "sessions", &columns)?))
}

/// The same for both tokens of a sign-in and at each import; of version 4 like all ids from there, by which it is known that
/// the sign-in came from there.
fn sign_in_id(row: &Row) -> Result<String, Odd> {
    let parts = [row.text("user_id")?, row.text("workspace_id")?, row.text("created_at")?];
    let hash = digest::digest(&digest::SHA256, parts.join("\n").as_bytes());
    let mut bytes = [0; 16];
    bytes.copy_from_slice(&hash.as_ref()[..16]);
    Ok(uuid::Builder::from_random_bytes(bytes).into_uuid().to_string())
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
    let changing =
        columns.iter().filter(|(name, value)| *name == "expires_at" && !matches!(value, Value::OptInt(None)));
    let changing: Vec<&str> = changing.map(|(name, _)| *name).collect();
    let (put, id) = ours::put(conn, "api_keys", &public_id, &columns, &changing, true)?;
    if put == Put::Known {
        let (revoked_at, used_at) = (row.optional_time("revoked_at")?, row.optional_time("last_used_at")?);
        ours::follow_key(conn, id, revoked_at, used_at)?;
    }
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
        ("id", uuid_text(row, "id")?.into()),
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

pub const INVITATIONS: Table = Table {
    name: "auth_workspace_invitations",
    columns: &[
        ("id", Text),
        ("workspace_id", Text),
        ("email", Text),
        ("role", Text),
        ("token_hash", Text),
        ("invited_by_user_id", Text),
        ("expires_at", Text),
        ("accepted_at", Text),
        // the membership says so
        ("accepted_by_user_id", Text),
        ("revoked_at", Text),
        ("created_at", Text),
    ],
    order: "replace(created_at, 'Z', '')",
};

/// The link that was sent goes on working; what became of it there counts here, too.
pub fn invitation(conn: &mut Conn, ids: &mut Ids, row: &Row) -> Result<Put, Refusal> {
    let (public_id, email, role) = (uuid_text(row, "id")?, row.text("email")?, row.text("role")?);
    if email != email.trim().to_lowercase() {
        return Err(format!("its address is not in lower case, nobody can accept it: {email}").into());
    }
    let role = Role::parse(&role).filter(|role| *role != Role::Owner);
    let role = role.ok_or("nobody can be invited to its role")?;
    let inviter = row.text("invited_by_user_id")?;
    let invited_by = ids.users.get(&inviter).ok_or("whoever invited is not there")?;
    let columns: Columns = vec![
        ("workspace_id", ids.workspace(row)?.into()),
        ("email", email.into()),
        ("role", role.as_str().into()),
        ("token_hash", token_hash(row)?.into()),
        ("invited_by", (*invited_by).into()),
        ("expires_at", row.time("expires_at")?.0.into()),
        ("accepted_at", row.optional_time("accepted_at")?.map(|at| at.0).into()),
        ("revoked_at", row.optional_time("revoked_at")?.map(|at| at.0).into()),
        ("created_at", row.time("created_at")?.0.into()),
    ];
    let changing = columns.iter().filter(|(name, value)| {
        ["accepted_at", "revoked_at"].contains(name) && !matches!(value, Value::OptInt(None))
    });
    let changing: Vec<&str> = changing.map(|(name, _)| *name).collect();
    Ok(ours::put(conn, "invitations", &public_id, &columns, &changing, true)?.0)
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
