//! Queries that users keep for themselves, in whatever workspace they are, and may share with the members of one.

use diesel::prelude::*;
use diesel::sql_query;
use diesel::sql_types::{BigInt, Text};

use crate::both;
use crate::db::schema::{memberships, saved_queries, users};
use crate::db::{Conn, DbError, audit, limits};
use crate::error::Error;

/// A kept query; `query` is a JSON object and `group_by` a JSON list, both as text.
#[derive(Clone, Debug, Queryable, QueryableByName, Selectable, Insertable, AsChangeset)]
#[diesel(table_name = saved_queries, treat_none_as_default_value = false, treat_none_as_null = true)]
pub struct SavedQuery {
    pub id: String,
    pub user_id: i64,
    pub name: String,
    pub query: String,
    pub group_by: String,
    pub bucket_size: String,
    pub row_limit: i64,
    pub pinned: bool,
    pub position: i64,
    pub created_at: i64,
    pub updated_at: i64,
    /// The workspace whose members see it too.
    pub shared_in: Option<i64>,
}

fn name_taken(fault: DbError, name: &str) -> DbError {
    if fault.violates("saved_queries_user_name_key") {
        return Error::conflict(format!("a saved query named {name:?} exists")).into();
    }
    fault
}

/// All of a user's queries: pinned first, then by position, then the newest change.
pub fn list(conn: &mut Conn, user_id: i64) -> Result<Vec<SavedQuery>, DbError> {
    Ok(saved_queries::table
        .filter(saved_queries::user_id.eq(user_id))
        .order((
            saved_queries::pinned.desc(),
            saved_queries::position,
            saved_queries::updated_at.desc(),
            saved_queries::id.desc(),
        ))
        .select(SavedQuery::as_select())
        .load(conn)?)
}

/// What others share with the members of a workspace, with their addresses, by name. Whoever left shares nothing.
pub fn shared(
    conn: &mut Conn,
    workspace_id: i64,
    user_id: i64,
) -> Result<Vec<(SavedQuery, String)>, DbError> {
    let by_member =
        memberships::user_id.eq(saved_queries::user_id).and(memberships::workspace_id.eq(workspace_id));
    Ok(saved_queries::table
        .inner_join(memberships::table.on(by_member))
        .inner_join(users::table.on(users::id.eq(saved_queries::user_id)))
        .filter(saved_queries::shared_in.eq(workspace_id).and(saved_queries::user_id.ne(user_id)))
        .order((saved_queries::name, saved_queries::id))
        .select((SavedQuery::as_select(), users::email))
        .load(conn)?)
}

#[derive(QueryableByName)]
struct SeenRow {
    #[diesel(embed)]
    query: SavedQuery,
    #[diesel(sql_type = Text)]
    shared_by: String,
}

/// What a user sees in a workspace, in one statement: their own as in [`list`], with nobody's address, then those as in
/// [`shared`].
pub fn seen(conn: &mut Conn, workspace_id: i64, user_id: i64) -> Result<Vec<(SavedQuery, String)>, DbError> {
    let text = "-- usage::saved_queries::seen
        SELECT * FROM (
            SELECT q.*, '' AS shared_by, 0 AS place FROM saved_queries q WHERE q.user_id = $1
            UNION ALL
            SELECT q.*, u.email, 1 FROM saved_queries q
            JOIN memberships m ON m.user_id = q.user_id AND m.workspace_id = $2
            JOIN users u ON u.id = q.user_id
            WHERE q.shared_in = $2 AND q.user_id <> $1
        ) AS seen
        ORDER BY seen.place, CASE WHEN seen.place = 0 AND seen.pinned THEN 0 ELSE 1 END,
                 CASE WHEN seen.place = 0 THEN seen.position END, CASE WHEN seen.place = 0 THEN -seen.updated_at END,
                 CASE WHEN seen.place = 1 THEN seen.name END, CASE WHEN seen.place = 0 THEN seen.id END DESC, seen.id";
    let query = sql_query(text).bind::<BigInt, _>(user_id).bind::<BigInt, _>(workspace_id);
    let rows: Vec<SeenRow> = query.load(conn)?;
    Ok(rows.into_iter().map(|row| (row.query, row.shared_by)).collect())
}

/// Takes a query out of a workspace that somebody shared it with; false when there is none.
pub fn unshare(conn: &mut Conn, workspace_id: i64, id: &str) -> Result<bool, DbError> {
    let shared = saved_queries::table.find(id).filter(saved_queries::shared_in.eq(workspace_id));
    let is_done = diesel::update(shared).set(saved_queries::shared_in.eq(None::<i64>)).execute(conn)? > 0;
    if !is_done {
        audit::nothing_changed();
    }
    Ok(is_done)
}

/// Keeps a new query; 409 when the user has one of this name.
pub fn add(conn: &mut Conn, query: &SavedQuery) -> Result<(), DbError> {
    limits::check(conn, limits::Kind::SavedQuery, query.user_id)?;
    let added: Result<usize, DbError> = both!(conn, c => {
        diesel::insert_into(saved_queries::table).values(query).execute(c).map_err(DbError::from)
    });
    added.map(drop).map_err(|fault| name_taken(fault, &query.name))
}

/// Changes a query of a user: `change` gets the current one. `None` when there is none; 409 when the name is taken.
pub fn update(
    conn: &mut Conn,
    user_id: i64,
    id: &str,
    change: impl FnOnce(SavedQuery) -> SavedQuery,
) -> Result<Option<SavedQuery>, DbError> {
    let own = saved_queries::table.find(id).filter(saved_queries::user_id.eq(user_id));
    let found: Option<SavedQuery> = own.select(SavedQuery::as_select()).first(conn).optional()?;
    let Some(found) = found else { return Ok(None) };
    let changed = change(found);
    let updated: Result<usize, DbError> = both!(conn, c => {
        diesel::update(saved_queries::table.find(id)).set(&changed).execute(c).map_err(DbError::from)
    });
    updated.map_err(|fault| name_taken(fault, &changed.name))?;
    Ok(Some(changed))
}

/// Deletes a query of a user; false when there is none.
pub fn delete(conn: &mut Conn, user_id: i64, id: &str) -> Result<bool, DbError> {
    let own = saved_queries::table.find(id).filter(saved_queries::user_id.eq(user_id));
    let is_gone = diesel::delete(own).execute(conn)? > 0;
    if !is_gone {
        audit::nothing_changed();
    }
    Ok(is_gone)
}
