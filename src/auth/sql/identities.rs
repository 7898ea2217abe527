//! Who users are at sign-in providers, and sign-ins with them that are under way.

use diesel::prelude::*;
use diesel::sql_query;
use diesel::sql_types::BigInt;

use crate::auth::token::TokenHash;
use crate::chance;
use crate::db::identity::new_id;
use crate::db::schema::{identities, provider_flows, users, workspaces};
use crate::db::{Conn, DbError};
use crate::error::Error;
use crate::metering::time::Timestamp;

/// An identity as its user sees it.
#[derive(Clone, Debug, Queryable)]
pub struct Identity {
    pub public_id: String,
    pub provider: String,
    pub email: String,
    pub created_at: i64,
}

/// Somebody at a provider.
#[derive(Clone, Debug)]
pub struct Subject {
    pub provider: &'static str,
    pub issuer: String,
    pub subject: String,
    pub email: String,
}

#[derive(Insertable)]
#[diesel(table_name = identities, treat_none_as_default_value = false)]
struct NewIdentity<'a> {
    id: i64,
    public_id: String,
    user_id: i64,
    provider: &'a str,
    issuer: &'a str,
    subject: &'a str,
    email: &'a str,
    created_at: i64,
}

pub fn user_of(conn: &mut Conn, issuer: &str, subject: &str) -> Result<Option<i64>, DbError> {
    let found = identities::table
        .filter(identities::issuer.eq(issuer).and(identities::subject.eq(subject)))
        .select(identities::user_id)
        .first(conn);
    Ok(found.optional()?)
}

/// Connects somebody at a provider with a user; 409 when they are connected with one.
pub fn add(conn: &mut Conn, user_id: i64, who: &Subject, now: Timestamp) -> Result<String, DbError> {
    let public_id = chance::id().to_string();
    let row = NewIdentity {
        id: new_id(),
        public_id: public_id.clone(),
        user_id,
        provider: who.provider,
        issuer: &who.issuer,
        subject: &who.subject,
        email: &who.email,
        created_at: now.0,
    };
    diesel::insert_into(identities::table).values(row).execute(conn).map_err(|error| match DbError::from(
        error,
    ) {
        fault if fault.violates("identities_subject_key") => {
            Error::conflict("this account of the provider is connected already").into()
        }
        fault => fault,
    })?;
    Ok(public_id)
}

/// Those of a user, the oldest first.
pub fn list(conn: &mut Conn, user_id: i64) -> Result<Vec<Identity>, DbError> {
    let found = identities::table
        .filter(identities::user_id.eq(user_id))
        .order((identities::created_at, identities::id))
        .select((identities::public_id, identities::provider, identities::email, identities::created_at))
        .load(conn)?;
    Ok(found)
}

/// Disconnects one; answers which it was.
pub fn remove(conn: &mut Conn, user_id: i64, public_id: &str) -> Result<Option<Identity>, DbError> {
    let gone = diesel::delete(identities::table)
        .filter(identities::user_id.eq(user_id).and(identities::public_id.eq(public_id)))
        .returning((identities::public_id, identities::provider, identities::email, identities::created_at))
        .get_result(conn)
        .optional()?;
    Ok(gone)
}

/// Disconnects all of a user; answers how many there were.
pub fn remove_all(conn: &mut Conn, user_id: i64) -> Result<usize, DbError> {
    Ok(diesel::delete(identities::table).filter(identities::user_id.eq(user_id)).execute(conn)?)
}

/// Whether a user has a password.
pub fn has_password(conn: &mut Conn, user_id: i64) -> Result<bool, DbError> {
    let hash: String = users::table.find(user_id).select(users::password_hash).first(conn)?;
    Ok(!hash.is_empty())
}

/// The address of the user is proven to be theirs; remembered from the first time on.
pub fn verify_email(conn: &mut Conn, user_id: i64, now: Timestamp) -> Result<(), DbError> {
    diesel::update(users::table.find(user_id))
        .filter(users::email_verified_at.is_null())
        .set(users::email_verified_at.eq(now.0))
        .execute(conn)?;
    Ok(())
}

pub fn workspace_id(conn: &mut Conn, public_id: &str) -> Result<Option<i64>, DbError> {
    let found =
        workspaces::table.filter(workspaces::public_id.eq(public_id)).select(workspaces::id).first(conn);
    Ok(found.optional()?)
}

// Under way ---------------------------------------------------------------------------------------

/// A sign-in that began here and goes on at the provider.
#[derive(Clone, Debug, Queryable)]
pub struct Flow {
    pub nonce: String,
    pub verifier: String,
    pub redirect_url: String,
    pub next: String,
    pub user_id: Option<i64>,
}

#[derive(Insertable)]
#[diesel(table_name = provider_flows, treat_none_as_default_value = false)]
struct NewFlow<'a> {
    state_hash: &'a [u8],
    provider: &'a str,
    nonce: &'a str,
    verifier: &'a str,
    redirect_url: &'a str,
    next: &'a str,
    user_id: Option<i64>,
    expires_at: i64,
}

pub fn begin(
    conn: &mut Conn,
    state: &TokenHash,
    provider: &str,
    flow: &Flow,
    expires_at: Timestamp,
) -> Result<(), DbError> {
    let row = NewFlow {
        state_hash: state,
        provider,
        nonce: &flow.nonce,
        verifier: &flow.verifier,
        redirect_url: &flow.redirect_url,
        next: &flow.next,
        user_id: flow.user_id,
        expires_at: expires_at.0,
    };
    diesel::insert_into(provider_flows::table).values(row).execute(conn)?;
    Ok(())
}

/// Forgets those under way beyond `most`, the oldest first.
pub fn forget_flows(conn: &mut Conn, most: i64) -> Result<(), DbError> {
    let text = "-- auth::identities::forget_flows
        DELETE FROM provider_flows WHERE expires_at <=
            (SELECT expires_at FROM provider_flows ORDER BY expires_at DESC LIMIT 1 OFFSET $1)";
    sql_query(text).bind::<BigInt, _>(most).execute(conn)?;
    Ok(())
}

/// Takes one out, in one statement: a state is good once, and for the provider that it was made for.
pub fn finish(
    conn: &mut Conn,
    state: &TokenHash,
    provider: &str,
    now: Timestamp,
) -> Result<Option<Flow>, DbError> {
    let flow = diesel::delete(provider_flows::table.find(state.as_slice()))
        .filter(provider_flows::provider.eq(provider).and(provider_flows::expires_at.gt(now.0)))
        .returning((
            provider_flows::nonce,
            provider_flows::verifier,
            provider_flows::redirect_url,
            provider_flows::next,
            provider_flows::user_id,
        ))
        .get_result(conn)
        .optional()?;
    Ok(flow)
}

pub fn sweep(conn: &mut Conn, now: Timestamp) -> Result<usize, DbError> {
    Ok(diesel::delete(provider_flows::table).filter(provider_flows::expires_at.le(now.0)).execute(conn)?)
}
