//! Links to the usage of one subject, known by the hash of their token; those of a workspace, but for the look-up.

use diesel::prelude::*;

use crate::auth::sql::keys::{Owner, Words};
use crate::auth::token::TokenHash;
use crate::chance;
use crate::db::identity::new_id;
use crate::db::schema::subject_links;
use crate::db::{Conn, DbError, audit, limits};
use crate::metering::time::Timestamp;

#[derive(Clone, Debug, Queryable)]
pub struct SubjectLink {
    pub id: i64,
    pub public_id: String,
    pub workspace_id: i64,
    pub subject: String,
    /// Empty: every meter.
    #[diesel(deserialize_as = String)]
    pub meters: Words,
    /// Whose pages may show it in a frame; empty: nobody's.
    #[diesel(deserialize_as = String)]
    pub origins: Words,
    pub expires_at: i64,
    pub revoked_at: Option<i64>,
    pub created_at: i64,
    pub last_used_at: Option<i64>,
}

type Columns = (
    subject_links::id,
    subject_links::public_id,
    subject_links::workspace_id,
    subject_links::subject,
    subject_links::meters,
    subject_links::origins,
    subject_links::expires_at,
    subject_links::revoked_at,
    subject_links::created_at,
    subject_links::last_used_at,
);
const COLUMNS: Columns = (
    subject_links::id,
    subject_links::public_id,
    subject_links::workspace_id,
    subject_links::subject,
    subject_links::meters,
    subject_links::origins,
    subject_links::expires_at,
    subject_links::revoked_at,
    subject_links::created_at,
    subject_links::last_used_at,
);

/// What a link is made of, besides its secret.
#[derive(Clone, Debug)]
pub struct LinkTerms {
    pub subject: String,
    pub meters: Words,
    pub origins: Words,
    pub expires_at: Timestamp,
}

#[derive(Insertable)]
#[diesel(table_name = subject_links, treat_none_as_default_value = false)]
struct Row<'a> {
    id: i64,
    public_id: String,
    workspace_id: i64,
    subject: &'a str,
    meters: String,
    origins: String,
    token_hash: &'a [u8],
    created_by: i64,
    expires_at: i64,
    created_at: i64,
}

pub fn create(
    conn: &mut Conn,
    workspace_id: i64,
    created_by: i64,
    terms: &LinkTerms,
    hash: &TokenHash,
    now: Timestamp,
) -> Result<SubjectLink, DbError> {
    limits::check(conn, limits::Kind::SubjectLink, workspace_id)?;
    let row = Row {
        id: new_id(),
        public_id: chance::id().to_string(),
        workspace_id,
        subject: &terms.subject,
        meters: terms.meters.to_json(),
        origins: terms.origins.to_json(),
        token_hash: hash,
        created_by,
        expires_at: terms.expires_at.0,
        created_at: now.0,
    };
    let link: SubjectLink =
        diesel::insert_into(subject_links::table).values(row).returning(COLUMNS).get_result(conn)?;
    audit::about(&link.public_id, &link.subject);
    audit::states(None, Some(shown(&link)));
    Ok(link)
}

/// What the audit trail keeps of a link.
fn shown(link: &SubjectLink) -> audit::Shown {
    serde_json::json!({"meters": link.meters.0, "origins": link.origins.0,
                       "expires_at": Timestamp(link.expires_at)})
}

/// The newest links of a subject, newest first, ended ones too.
pub fn list(
    conn: &mut Conn,
    workspace_id: i64,
    subject: &str,
    limit: i64,
) -> Result<Vec<SubjectLink>, DbError> {
    let links = subject_links::table
        .filter(subject_links::workspace_id.eq(workspace_id))
        .filter(subject_links::subject.eq(subject))
        .order((subject_links::created_at.desc(), subject_links::id.desc()))
        .limit(limit)
        .select(COLUMNS)
        .load(conn)?;
    Ok(links)
}

pub fn by_token(conn: &mut Conn, hash: &TokenHash) -> Result<Option<SubjectLink>, DbError> {
    let found = subject_links::table
        .filter(subject_links::token_hash.eq(hash.as_slice()))
        .select(COLUMNS)
        .first(conn);
    Ok(found.optional()?)
}

/// Ends a link of a subject now; answers whether there is such a link. Ending it again changes nothing.
pub fn revoke(
    conn: &mut Conn,
    workspace_id: i64,
    subject: &str,
    public_id: &str,
    now: Timestamp,
) -> Result<bool, DbError> {
    let found: Option<SubjectLink> = subject_links::table
        .filter(subject_links::workspace_id.eq(workspace_id))
        .filter(subject_links::subject.eq(subject))
        .filter(subject_links::public_id.eq(public_id))
        .select(COLUMNS)
        .first(conn)
        .optional()?;
    let Some(link) = found else { return Ok(false) };
    audit::about(&link.public_id, &link.subject);
    audit::states(Some(shown(&link)), None);
    let revoked = diesel::update(subject_links::table.find(link.id))
        .filter(subject_links::revoked_at.is_null())
        .set(subject_links::revoked_at.eq(now.0))
        .execute(conn)?;
    if revoked == 0 {
        audit::nothing_changed();
    }
    Ok(true)
}

/// How many links that a member made still open something.
pub fn count_open(conn: &mut Conn, member: Owner, now: Timestamp) -> Result<i64, DbError> {
    let links = subject_links::table
        .filter(subject_links::workspace_id.eq(member.workspace_id))
        .filter(subject_links::created_by.eq(member.user_id))
        .filter(subject_links::revoked_at.is_null().and(subject_links::expires_at.gt(now.0)))
        .count()
        .get_result(conn)?;
    Ok(links)
}

/// Of a member who goes: the links are the heir's from now on, or end now.
pub fn pass_on(conn: &mut Conn, member: Owner, heir: Option<i64>, now: Timestamp) -> Result<(), DbError> {
    let own = subject_links::table
        .filter(subject_links::workspace_id.eq(member.workspace_id))
        .filter(subject_links::created_by.eq(member.user_id))
        .filter(subject_links::revoked_at.is_null());
    match heir {
        Some(heir) => diesel::update(own).set(subject_links::created_by.eq(heir)).execute(conn)?,
        None => diesel::update(own).set(subject_links::revoked_at.eq(now.0)).execute(conn)?,
    };
    Ok(())
}

/// Ends the links that a user made, in every workspace; answers how many there were.
pub fn revoke_everywhere(conn: &mut Conn, user_id: i64, now: Timestamp) -> Result<usize, DbError> {
    let living = subject_links::table
        .filter(subject_links::created_by.eq(user_id))
        .filter(subject_links::revoked_at.is_null());
    Ok(diesel::update(living).set(subject_links::revoked_at.eq(now.0)).execute(conn)?)
}

/// Notes when a link was last used, unless that was noted after `unless_since`.
pub fn note_use(conn: &mut Conn, id: i64, now: Timestamp, unless_since: Timestamp) -> Result<(), DbError> {
    diesel::update(subject_links::table.find(id))
        .filter(subject_links::last_used_at.is_null().or(subject_links::last_used_at.lt(unless_since.0)))
        .set(subject_links::last_used_at.eq(now.0))
        .execute(conn)?;
    Ok(())
}
