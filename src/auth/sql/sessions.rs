//! Sign-ins: one row per token, known by its hash. Rows that share a `login_id` came from one sign-in and end
//! together. A session whose user left its workspace is not found.

use diesel::dsl::case_when;
use diesel::prelude::*;
use diesel::sql_types::{BigInt, Nullable};

use crate::auth::sql::preferences;
use crate::auth::sql::users::{self, MEMBER, Member};
use crate::auth::token::TokenHash;
use crate::db::schema::{memberships, sessions, user_preferences, workspaces};
use crate::db::{Conn, DbError, audit, schema};
use crate::metering::time::Timestamp;

/// The two kinds of token; neither is taken for the other.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    Access,
    Refresh,
}

impl Kind {
    fn as_str(self) -> &'static str {
        match self {
            Kind::Access => "access",
            Kind::Refresh => "refresh",
        }
    }
}

#[derive(Insertable)]
#[diesel(table_name = sessions, treat_none_as_default_value = false)]
struct NewSession<'a> {
    token_hash: &'a [u8],
    kind: &'static str,
    login_id: &'a str,
    form_key: &'a [u8],
    user_id: i64,
    workspace_id: i64,
    expires_at: i64,
    created_at: i64,
}

/// Whose session it is, across refreshes.
#[derive(Clone, Debug, Queryable)]
pub struct Login {
    pub login_id: String,
    /// Signs the forms of the dashboard.
    pub form_key: Vec<u8>,
    pub user_id: i64,
    pub workspace_id: i64,
}

/// The tokens of a session about to begin: hash and expiry of each. One without a refresh token is not renewed.
#[derive(Clone, Copy, Debug)]
pub struct Pair {
    pub access: (TokenHash, Timestamp),
    pub refresh: Option<(TokenHash, Timestamp)>,
}

impl Pair {
    /// Neither outlives the sign-in.
    pub fn within(mut self, ends_at: Timestamp) -> Pair {
        for (_, expires_at) in std::iter::once(&mut self.access).chain(&mut self.refresh) {
            expires_at.0 = expires_at.0.min(ends_at.0);
        }
        self
    }
}

/// Stores the tokens of a session.
pub fn open(conn: &mut Conn, login: &Login, pair: &Pair, now: Timestamp) -> Result<(), DbError> {
    let refresh = pair.refresh.iter().map(|token| (Kind::Refresh, token));
    for (kind, (hash, expires_at)) in std::iter::once((Kind::Access, &pair.access)).chain(refresh) {
        diesel::insert_into(sessions::table)
            .values(NewSession {
                token_hash: hash,
                kind: kind.as_str(),
                login_id: &login.login_id,
                form_key: &login.form_key,
                user_id: login.user_id,
                workspace_id: login.workspace_id,
                expires_at: expires_at.0,
                created_at: now.0,
            })
            .execute(conn)?;
    }
    Ok(())
}

/// An access token and who is behind it.
#[derive(Queryable)]
pub struct Found {
    pub member: Member,
    /// May be past.
    pub expires_at: i64,
    pub form_key: Vec<u8>,
    pub login_id: String,
    pub preferences: preferences::Row,
}

pub fn find(conn: &mut Conn, hash: &TokenHash) -> Result<Option<Found>, DbError> {
    let found = sessions::table
        .inner_join(schema::users::table.on(schema::users::id.eq(sessions::user_id)))
        .inner_join(workspaces::table.on(workspaces::id.eq(sessions::workspace_id)))
        .inner_join(
            memberships::table.on(memberships::workspace_id
                .eq(sessions::workspace_id)
                .and(memberships::user_id.eq(sessions::user_id))),
        )
        .left_join(user_preferences::table.on(user_preferences::user_id.eq(sessions::user_id)))
        .filter(sessions::token_hash.eq(hash.as_slice()))
        .filter(sessions::kind.eq(Kind::Access.as_str()))
        .filter(schema::users::disabled_at.is_null())
        .select((
            MEMBER,
            sessions::expires_at,
            sessions::form_key,
            sessions::login_id,
            (
                user_preferences::time_zone.nullable(),
                user_preferences::week_start.nullable(),
                user_preferences::theme.nullable(),
                user_preferences::density.nullable(),
                user_preferences::default_range.nullable(),
                user_preferences::shortcuts.nullable(),
            ),
        ))
        .first(conn);
    Ok(found.optional()?)
}

/// Whether a sign-in still opens something: a token of it lives, and its user is a member of its workspace whom nobody has
/// disabled.
pub fn is_open(conn: &mut Conn, login_id: &str, now: Timestamp) -> Result<bool, DbError> {
    let living: Option<i64> = sessions::table
        .inner_join(schema::users::table.on(schema::users::id.eq(sessions::user_id)))
        .inner_join(
            memberships::table.on(memberships::workspace_id
                .eq(sessions::workspace_id)
                .and(memberships::user_id.eq(sessions::user_id))),
        )
        .filter(sessions::login_id.eq(login_id).and(sessions::expires_at.gt(now.0)))
        .filter(schema::users::disabled_at.is_null())
        .select(sessions::user_id)
        .first(conn)
        .optional()?;
    Ok(living.is_some())
}

/// Whether this is a refresh token of the sign-in that would be taken now, without using it up.
pub fn is_refresh_of(
    conn: &mut Conn,
    login_id: &str,
    hash: &TokenHash,
    now: Timestamp,
    grace: i64,
) -> Result<bool, DbError> {
    let found: Option<Option<i64>> = sessions::table
        .find(hash.as_slice())
        .filter(sessions::kind.eq(Kind::Refresh.as_str()).and(sessions::login_id.eq(login_id)))
        .filter(sessions::expires_at.gt(now.0))
        .select(sessions::used_at)
        .first(conn)
        .optional()?;
    Ok(found.is_some_and(|used_at| used_at.is_none_or(|at| at + grace > now.0)))
}

/// What came of showing a refresh token.
#[derive(Debug)]
pub enum Shown {
    /// It is good, or was used up a moment ago by a second browser tab.
    Good(Login),
    /// It was used up before: whoever shows it now, or whoever did then, has stolen it.
    Again(Login),
    Unknown,
}

/// Uses a refresh token up, in one statement. It works again until the grace is over, and is known for a day, so that a
/// thief is noticed.
pub fn use_up(
    conn: &mut Conn,
    hash: &TokenHash,
    now: Timestamp,
    grace: i64,
    remembered: i64,
) -> Result<Shown, DbError> {
    let until = now.plus(remembered).0;
    let sooner =
        case_when(sessions::expires_at.gt(until), until.into_sql::<BigInt>()).otherwise(sessions::expires_at);
    let first = case_when(sessions::used_at.is_null(), now.0.into_sql::<Nullable<BigInt>>())
        .otherwise(sessions::used_at);
    let used = diesel::update(sessions::table)
        .filter(sessions::token_hash.eq(hash.as_slice()))
        .filter(sessions::kind.eq(Kind::Refresh.as_str()))
        .filter(sessions::expires_at.gt(now.0))
        .set((sessions::expires_at.eq(sooner), sessions::used_at.eq(first)))
        .returning((
            (sessions::login_id, sessions::form_key, sessions::user_id, sessions::workspace_id),
            sessions::used_at,
        ))
        .get_result(conn)
        .optional()?;
    let used: Option<(Login, Option<i64>)> = used;
    Ok(match used {
        Some((login, used_at)) if used_at.is_some_and(|at| at + grace <= now.0) => Shown::Again(login),
        Some((login, _)) => Shown::Good(login),
        None => Shown::Unknown,
    })
}

/// Ends the sign-ins that the tokens belong to; answers the hashes of every token that died.
pub fn close(conn: &mut Conn, hashes: &[TokenHash]) -> Result<Vec<Vec<u8>>, DbError> {
    let mut ended = Vec::new();
    for hash in hashes {
        let login: Option<Login> = sessions::table
            .find(hash.as_slice())
            .select((sessions::login_id, sessions::form_key, sessions::user_id, sessions::workspace_id))
            .first(conn)
            .optional()?;
        let Some(Login { login_id, user_id, workspace_id, .. }) = login else { continue };
        if let Some(member) = users::member(conn, user_id, workspace_id)? {
            users::tell(&member);
        }
        end_login(conn, &login_id, &mut ended)?;
    }
    if ended.is_empty() {
        audit::nothing_changed();
    }
    Ok(ended)
}

/// Ends one sign-in, and adds the hashes of its tokens to `ended`; answers when it would have ended for good, nothing when
/// it was gone.
pub fn end_login(
    conn: &mut Conn,
    login_id: &str,
    ended: &mut Vec<Vec<u8>>,
) -> Result<Option<Timestamp>, DbError> {
    let mut ends_at: Option<i64> = None;
    // more than once: a refresh that was under way adds tokens which the first statement did not see
    loop {
        let dead: Vec<Vec<u8>> = diesel::delete(sessions::table)
            .filter(sessions::login_id.eq(login_id))
            .returning(sessions::token_hash)
            .get_results(conn)?;
        let gone = diesel::delete(schema::sign_ins::table.find(login_id))
            .returning(schema::sign_ins::ends_at)
            .get_result(conn)
            .optional()?;
        ends_at = ends_at.or(gone);
        if dead.is_empty() {
            return Ok(ends_at.map(Timestamp));
        }
        ended.extend(dead);
    }
}

/// Deletes at most `limit` expired tokens, the oldest first; answers how many.
pub fn sweep(conn: &mut Conn, now: Timestamp, limit: i64) -> Result<usize, DbError> {
    let text = "-- auth::sessions::sweep
        DELETE FROM sessions WHERE token_hash IN
            (SELECT token_hash FROM sessions WHERE expires_at <= $1 ORDER BY expires_at LIMIT $2)";
    Ok(diesel::sql_query(text).bind::<BigInt, _>(now.0).bind::<BigInt, _>(limit).execute(conn)?)
}
