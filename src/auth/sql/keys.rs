//! API keys, known by the hash of their text, and the history of what happened to them. Every statement but the
//! look-up by hash is confined to one user's keys in one workspace.

use diesel::prelude::*;
use diesel::sql_types::BigInt;
use serde_json::json;

use crate::auth::sql::users::{MEMBER, Member};
use crate::auth::token::TokenHash;
use crate::chance;
use crate::db::columns::readable;
use crate::db::identity::new_id;
use crate::db::schema::{api_key_events, api_keys, memberships, users, workspaces};
use crate::db::{Conn, DbError, audit, limits};
use crate::error::Error;
use crate::metering::time::Timestamp;

/// Whose keys: those one user made in one workspace.
#[derive(Clone, Copy, Debug)]
pub struct Owner {
    pub workspace_id: i64,
    pub user_id: i64,
}

/// A JSON list of strings in a text column.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Words(pub Vec<String>);

/// No meter and no scope is called so: a list that cannot be read allows nothing, and the key stays in lists.
const UNREADABLE: &str = "\0";

impl From<String> for Words {
    fn from(text: String) -> Words {
        let words = readable("api_keys", "a list of words", serde_json::from_str(&text));
        Words(words.unwrap_or_else(|| vec![UNREADABLE.to_owned()]))
    }
}

impl Words {
    pub(super) fn to_json(&self) -> String {
        serde_json::to_string(&self.0).unwrap_or_default()
    }
}

#[derive(Clone, Debug, Queryable)]
pub struct ApiKey {
    pub id: i64,
    pub public_id: String,
    pub name: String,
    pub prefix: String,
    #[diesel(deserialize_as = String)]
    pub scopes: Words,
    #[diesel(deserialize_as = String)]
    pub allowed_meters: Words,
    #[diesel(deserialize_as = String)]
    pub allowed_networks: Words,
    pub expires_at: Option<i64>,
    pub revoked_at: Option<i64>,
    pub created_at: i64,
    pub last_used_at: Option<i64>,
}

type KeyColumns = (
    api_keys::id,
    api_keys::public_id,
    api_keys::name,
    api_keys::prefix,
    api_keys::scopes,
    api_keys::allowed_meters,
    api_keys::allowed_networks,
    api_keys::expires_at,
    api_keys::revoked_at,
    api_keys::created_at,
    api_keys::last_used_at,
);
const KEY: KeyColumns = (
    api_keys::id,
    api_keys::public_id,
    api_keys::name,
    api_keys::prefix,
    api_keys::scopes,
    api_keys::allowed_meters,
    api_keys::allowed_networks,
    api_keys::expires_at,
    api_keys::revoked_at,
    api_keys::created_at,
    api_keys::last_used_at,
);

/// What a key is made of, besides its secret.
#[derive(Clone, Debug)]
pub struct KeyTerms {
    pub name: String,
    pub scopes: Words,
    pub allowed_meters: Words,
    pub allowed_networks: Words,
    pub expires_at: Option<i64>,
}

/// What is kept of a key's text.
#[derive(Clone, Debug)]
pub struct KeySecret {
    pub hash: TokenHash,
    pub prefix: String,
}

#[derive(Insertable)]
#[diesel(table_name = api_keys, treat_none_as_default_value = false)]
struct NewKey<'a> {
    id: i64,
    public_id: &'a str,
    workspace_id: i64,
    user_id: i64,
    name: &'a str,
    token_hash: &'a [u8],
    prefix: &'a str,
    scopes: String,
    allowed_meters: String,
    allowed_networks: String,
    expires_at: Option<i64>,
    created_at: i64,
}

#[derive(Insertable)]
#[diesel(table_name = api_key_events, treat_none_as_default_value = false)]
struct NewEvent<'a> {
    id: String,
    workspace_id: i64,
    user_id: i64,
    api_key_id: &'a str,
    key_name: &'a str,
    key_prefix: &'a str,
    event_type: &'static str,
    related_api_key_id: Option<&'a str>,
    effective_at: Option<i64>,
    created_at: i64,
}

/// Something that happened to a key.
#[derive(Clone, Debug, Queryable)]
pub struct KeyEvent {
    pub id: String,
    pub api_key_id: String,
    pub key_name: String,
    pub key_prefix: String,
    pub event_type: String,
    pub related_api_key_id: Option<String>,
    pub effective_at: Option<i64>,
    pub created_at: i64,
}

/// The member behind a key and the key itself, dead or alive; nobody when the user left the workspace.
pub fn find(conn: &mut Conn, hash: &TokenHash) -> Result<Option<(Member, ApiKey)>, DbError> {
    let found = api_keys::table
        .inner_join(users::table.on(users::id.eq(api_keys::user_id)))
        .inner_join(workspaces::table.on(workspaces::id.eq(api_keys::workspace_id)))
        .inner_join(
            memberships::table.on(memberships::workspace_id
                .eq(api_keys::workspace_id)
                .and(memberships::user_id.eq(api_keys::user_id))),
        )
        .filter(api_keys::token_hash.eq(hash.as_slice()))
        .filter(users::disabled_at.is_null())
        .select((MEMBER, KEY))
        .first(conn);
    Ok(found.optional()?)
}

/// Whether a key can still be used.
pub fn is_living(conn: &mut Conn, id: i64, now: Timestamp) -> Result<bool, DbError> {
    let living: Option<i64> = api_keys::table
        .find(id)
        .filter(api_keys::revoked_at.is_null().or(api_keys::revoked_at.gt(now.0)))
        .filter(api_keys::expires_at.is_null().or(api_keys::expires_at.gt(now.0)))
        .select(api_keys::id)
        .first(conn)
        .optional()?;
    Ok(living.is_some())
}

/// Newest first.
pub fn list(conn: &mut Conn, owner: Owner) -> Result<Vec<ApiKey>, DbError> {
    let keys = api_keys::table
        .filter(api_keys::workspace_id.eq(owner.workspace_id))
        .filter(api_keys::user_id.eq(owner.user_id))
        .order((api_keys::created_at.desc(), api_keys::id.desc()))
        .select(KEY)
        .load(conn)?;
    Ok(keys)
}

/// The name of a key of anybody in a workspace, by the id that callers know.
pub fn name_of(conn: &mut Conn, workspace_id: i64, public_id: &str) -> Result<Option<String>, DbError> {
    let name = api_keys::table
        .filter(api_keys::workspace_id.eq(workspace_id).and(api_keys::public_id.eq(public_id)))
        .select(api_keys::name)
        .first(conn);
    Ok(name.optional()?)
}

/// A key of anybody in a workspace, with the address of whoever made it.
pub type OfSomebody = (ApiKey, String);

/// Every key of a workspace that can still be used, the one that was idle for longest first.
pub fn living(
    conn: &mut Conn,
    workspace_id: i64,
    now: Timestamp,
    limit: i64,
) -> Result<Vec<OfSomebody>, DbError> {
    let keys = api_keys::table
        .inner_join(users::table.on(users::id.eq(api_keys::user_id)))
        .filter(api_keys::workspace_id.eq(workspace_id))
        .filter(api_keys::revoked_at.is_null().or(api_keys::revoked_at.gt(now.0)))
        .filter(api_keys::expires_at.is_null().or(api_keys::expires_at.gt(now.0)))
        .order((api_keys::created_at.desc(), api_keys::id.desc()))
        .limit(limit)
        .select((KEY, users::email))
        .load(conn)?;
    Ok(keys)
}

/// A key of a workspace, whoever made it and whether it can be used or not; 404 when there is none with this id.
pub fn of_somebody(conn: &mut Conn, workspace_id: i64, public_id: &str) -> Result<OfSomebody, DbError> {
    let found = api_keys::table
        .inner_join(users::table.on(users::id.eq(api_keys::user_id)))
        .filter(api_keys::workspace_id.eq(workspace_id).and(api_keys::public_id.eq(public_id)))
        .select((KEY, users::email))
        .first(conn)
        .optional()?;
    found.ok_or_else(no_such_key)
}

/// How many keys of the owner can be used.
pub fn count_living(conn: &mut Conn, owner: Owner, now: Timestamp) -> Result<i64, DbError> {
    let keys = api_keys::table
        .filter(api_keys::workspace_id.eq(owner.workspace_id))
        .filter(api_keys::user_id.eq(owner.user_id))
        .filter(api_keys::revoked_at.is_null().or(api_keys::revoked_at.gt(now.0)))
        .filter(api_keys::expires_at.is_null().or(api_keys::expires_at.gt(now.0)))
        .count()
        .get_result(conn)?;
    Ok(keys)
}

/// Whose key that is in this workspace; 404 when it has none with this id.
pub fn owner(conn: &mut Conn, workspace_id: i64, public_id: &str) -> Result<Owner, DbError> {
    let user_id: Option<i64> = api_keys::table
        .filter(api_keys::workspace_id.eq(workspace_id).and(api_keys::public_id.eq(public_id)))
        .select(api_keys::user_id)
        .first(conn)
        .optional()?;
    Ok(Owner { workspace_id, user_id: user_id.ok_or_else(no_such_key)? })
}

/// How many keys can be used, how many of them end before `soon`, and how many were last used before `long_ago`.
#[derive(Clone, Copy, Debug, QueryableByName)]
pub struct Census {
    #[diesel(sql_type = BigInt)]
    pub living: i64,
    #[diesel(sql_type = BigInt)]
    pub expiring: i64,
    #[diesel(sql_type = BigInt)]
    pub unused: i64,
}

pub fn census(
    conn: &mut Conn,
    now: Timestamp,
    soon: Timestamp,
    long_ago: Timestamp,
) -> Result<Census, DbError> {
    let text = "-- auth::keys::census
        SELECT count(*) AS living,
               count(CASE WHEN expires_at <= $1 THEN 1 END) AS expiring,
               count(CASE WHEN coalesce(last_used_at, created_at) < $2 THEN 1 END) AS unused
          FROM api_keys
         WHERE (revoked_at IS NULL OR revoked_at > $3) AND (expires_at IS NULL OR expires_at > $3)";
    let census = diesel::sql_query(text)
        .bind::<BigInt, _>(soon.0)
        .bind::<BigInt, _>(long_ago.0)
        .bind::<BigInt, _>(now.0)
        .get_result(conn)?;
    Ok(census)
}

/// A key that ends soon.
#[derive(Queryable)]
pub struct Expiring {
    pub name: String,
    /// Of whoever made it.
    pub email: String,
    pub workspace: String,
    pub expires_at: i64,
}

/// Keys that end before `until`, the next first.
pub fn expiring(
    conn: &mut Conn,
    now: Timestamp,
    until: Timestamp,
    limit: i64,
) -> Result<Vec<Expiring>, DbError> {
    let found = api_keys::table
        .inner_join(users::table.on(users::id.eq(api_keys::user_id)))
        .inner_join(workspaces::table.on(workspaces::id.eq(api_keys::workspace_id)))
        .filter(api_keys::revoked_at.is_null())
        .filter(api_keys::expires_at.gt(now.0).and(api_keys::expires_at.le(until.0)))
        .order(api_keys::expires_at)
        .limit(limit)
        .select((api_keys::name, users::email, workspaces::public_id, api_keys::expires_at.assume_not_null()))
        .load(conn)?;
    Ok(found)
}

pub fn create(
    conn: &mut Conn,
    owner: Owner,
    terms: &KeyTerms,
    secret: &KeySecret,
    now: Timestamp,
) -> Result<ApiKey, DbError> {
    limits::check(conn, limits::Kind::ApiKey, owner.workspace_id)?;
    limits::check(conn, limits::Kind::AnyApiKey, owner.workspace_id)?;
    let public_id = chance::id().to_string();
    let key = insert(conn, owner, &public_id, terms, secret, now)?;
    record(conn, owner, &key, "created", None, None, now)?;
    audit::in_workspace(owner.workspace_id);
    audit::about(&key.public_id, &key.name);
    audit::states(None, Some(terms_shown(&key)));
    Ok(key)
}

fn insert(
    conn: &mut Conn,
    owner: Owner,
    public_id: &str,
    terms: &KeyTerms,
    secret: &KeySecret,
    now: Timestamp,
) -> Result<ApiKey, DbError> {
    let key = diesel::insert_into(api_keys::table)
        .values(NewKey {
            id: new_id(),
            public_id,
            workspace_id: owner.workspace_id,
            user_id: owner.user_id,
            name: &terms.name,
            token_hash: &secret.hash,
            prefix: &secret.prefix,
            scopes: terms.scopes.to_json(),
            allowed_meters: terms.allowed_meters.to_json(),
            allowed_networks: terms.allowed_networks.to_json(),
            expires_at: terms.expires_at,
            created_at: now.0,
        })
        .returning(KEY)
        .get_result(conn)?;
    Ok(key)
}

/// What the audit trail keeps of a key.
fn terms_shown(key: &ApiKey) -> audit::Shown {
    json!({"prefix": key.prefix, "scopes": key.scopes.0, "allowed_meters": key.allowed_meters.0,
           "allowed_networks": key.allowed_networks.0, "expires_at": key.expires_at.map(Timestamp)})
}

/// Ends a key now; answers the hash under which others may remember it. Ending it again changes nothing; 404 when
/// it is not the owner's.
pub fn revoke(conn: &mut Conn, owner: Owner, public_id: &str, now: Timestamp) -> Result<Vec<u8>, DbError> {
    let Some((hash, key)) = lock(conn, owner, public_id)? else { return Err(no_such_key()) };
    audit::in_workspace(owner.workspace_id);
    audit::about(&key.public_id, &key.name);
    audit::states(Some(terms_shown(&key)), None);
    if key.revoked_at.is_some_and(|at| at <= now.0) {
        audit::nothing_changed();
    } else {
        set_revoked(conn, key.id, now)?;
        record(conn, owner, &key, "revoked", None, Some(now), now)?;
    }
    Ok(hash)
}

/// Ends all keys of the owner now; answers the hashes of those that could still be used.
pub fn revoke_all(conn: &mut Conn, owner: Owner, now: Timestamp) -> Result<Vec<Vec<u8>>, DbError> {
    let is_live = api_keys::revoked_at.is_null().or(api_keys::revoked_at.gt(now.0));
    let ended: Vec<(Vec<u8>, ApiKey)> = diesel::update(api_keys::table)
        .filter(api_keys::workspace_id.eq(owner.workspace_id))
        .filter(api_keys::user_id.eq(owner.user_id))
        .filter(is_live)
        .set(api_keys::revoked_at.eq(now.0))
        .returning((api_keys::token_hash, KEY))
        .get_results(conn)?;
    for (_, key) in &ended {
        record(conn, owner, key, "revoked", None, Some(now), now)?;
    }
    Ok(ended.into_iter().map(|(hash, _)| hash).collect())
}

/// Ends all keys of a user now, in every workspace; answers the hashes of those that could still be used.
pub fn revoke_everywhere(conn: &mut Conn, user_id: i64, now: Timestamp) -> Result<Vec<Vec<u8>>, DbError> {
    let workspaces: Vec<i64> = api_keys::table
        .filter(api_keys::user_id.eq(user_id))
        .select(api_keys::workspace_id)
        .distinct()
        .load(conn)?;
    let mut hashes = Vec::new();
    for workspace_id in workspaces {
        hashes.extend(revoke_all(conn, Owner { workspace_id, user_id }, now)?);
    }
    Ok(hashes)
}

/// Hands all keys of the owner to another member, with their history; answers their hashes.
pub fn give(conn: &mut Conn, owner: Owner, heir: i64) -> Result<Vec<Vec<u8>>, DbError> {
    diesel::update(api_key_events::table)
        .filter(api_key_events::workspace_id.eq(owner.workspace_id))
        .filter(api_key_events::user_id.eq(owner.user_id))
        .set(api_key_events::user_id.eq(heir))
        .execute(conn)?;
    let hashes = diesel::update(api_keys::table)
        .filter(api_keys::workspace_id.eq(owner.workspace_id))
        .filter(api_keys::user_id.eq(owner.user_id))
        .set(api_keys::user_id.eq(heir))
        .returning(api_keys::token_hash)
        .get_results(conn)?;
    Ok(hashes)
}

/// Makes a key on the same terms and lets the old one end at `until`. Answers the new key and the hash of the old
/// one; 409 when the old one is expired, revoked or already on its way out.
pub fn rotate(
    conn: &mut Conn,
    owner: Owner,
    public_id: &str,
    secret: &KeySecret,
    until: Timestamp,
    now: Timestamp,
) -> Result<(ApiKey, Vec<u8>), DbError> {
    let Some((old_hash, old)) = lock(conn, owner, public_id)? else { return Err(no_such_key()) };
    if old.revoked_at.is_some() {
        return Err(Error::conflict("the API key is revoked or already being rotated").into());
    }
    if old.expires_at.is_some_and(|at| at <= now.0) {
        return Err(Error::conflict("the API key has expired").into());
    }
    limits::check(conn, limits::Kind::AnyApiKey, owner.workspace_id)?;
    let new_id = chance::id().to_string();
    let terms = KeyTerms {
        name: old.name.clone(),
        scopes: old.scopes.clone(),
        allowed_meters: old.allowed_meters.clone(),
        allowed_networks: old.allowed_networks.clone(),
        expires_at: old.expires_at,
    };
    let key = insert(conn, owner, &new_id, &terms, secret, now)?;
    set_revoked(conn, old.id, until)?;
    record(conn, owner, &key, "created", Some(&old.public_id), None, now)?;
    record(conn, owner, &old, "rotated", Some(&new_id), Some(until), now)?;
    audit::about(&old.public_id, &old.name);
    audit::states(None, Some(json!({"new_key": new_id, "old_key_ends_at": until})));
    Ok((key, old_hash))
}

/// Reads a key and keeps others from changing it until the transaction ends: the update that changes nothing takes
/// the row's lock on PostgreSQL, and SQLite has one writer anyway.
fn lock(conn: &mut Conn, owner: Owner, public_id: &str) -> Result<Option<(Vec<u8>, ApiKey)>, DbError> {
    let locked = diesel::update(api_keys::table)
        .filter(api_keys::public_id.eq(public_id))
        .filter(api_keys::workspace_id.eq(owner.workspace_id))
        .filter(api_keys::user_id.eq(owner.user_id))
        .set(api_keys::name.eq(api_keys::name))
        .returning((api_keys::token_hash, KEY))
        .get_result(conn);
    Ok(locked.optional()?)
}

fn set_revoked(conn: &mut Conn, id: i64, at: Timestamp) -> Result<(), DbError> {
    diesel::update(api_keys::table.find(id)).set(api_keys::revoked_at.eq(at.0)).execute(conn)?;
    Ok(())
}

fn no_such_key() -> DbError {
    Error::not_found("API key").into()
}

fn record(
    conn: &mut Conn,
    owner: Owner,
    key: &ApiKey,
    event_type: &'static str,
    related_api_key_id: Option<&str>,
    effective_at: Option<Timestamp>,
    now: Timestamp,
) -> Result<(), DbError> {
    diesel::insert_into(api_key_events::table)
        .values(NewEvent {
            id: chance::id().to_string(),
            workspace_id: owner.workspace_id,
            user_id: owner.user_id,
            api_key_id: &key.public_id,
            key_name: &key.name,
            key_prefix: &key.prefix,
            event_type,
            related_api_key_id,
            effective_at: effective_at.map(|at| at.0),
            created_at: now.0,
        })
        .execute(conn)?;
    Ok(())
}

/// The newest `limit` events of the owner's keys, newest first.
pub fn events(conn: &mut Conn, owner: Owner, limit: i64) -> Result<Vec<KeyEvent>, DbError> {
    let events = api_key_events::table
        .filter(api_key_events::workspace_id.eq(owner.workspace_id))
        .filter(api_key_events::user_id.eq(owner.user_id))
        .order((api_key_events::created_at.desc(), api_key_events::id.desc()))
        .limit(limit)
        .select((
            api_key_events::id,
            api_key_events::api_key_id,
            api_key_events::key_name,
            api_key_events::key_prefix,
            api_key_events::event_type,
            api_key_events::related_api_key_id,
            api_key_events::effective_at,
            api_key_events::created_at,
        ))
        .load(conn)?;
    Ok(events)
}

/// Notes when keys were last used: pairs of key and time. Another server may have noted a later time already.
pub fn note_use(conn: &mut Conn, uses: &[(i64, Timestamp)]) -> Result<(), DbError> {
    for (id, at) in uses {
        diesel::update(api_keys::table.find(id))
            .filter(api_keys::last_used_at.is_null().or(api_keys::last_used_at.lt(at.0)))
            .set(api_keys::last_used_at.eq(at.0))
            .execute(conn)?;
    }
    Ok(())
}
