//! Jobs that used up their attempts: kept where an operator sees them and can queue them anew. How a job gets here
//! stands in `queue`.

use std::collections::HashMap;

use diesel::prelude::*;
use diesel::sql_query;
use diesel::sql_types::{BigInt, Text};
use serde::de::DeserializeOwned;

use crate::db::schema::dead_letters;
use crate::db::{Conn, DbError};
use crate::error::{Error, Result};
use crate::metering::time::Timestamp;

#[derive(Clone, Debug, Queryable, Selectable, Insertable)]
#[diesel(table_name = dead_letters, treat_none_as_default_value = false)]
pub struct DeadLetter {
    pub id: String,
    pub workspace_id: i64,
    pub queue: String,
    pub key: String,
    pub payload: String,
    pub attempts: i32,
    pub last_error: String,
    pub created_at: i64,
    pub requeued_at: Option<i64>,
}

impl DeadLetter {
    pub fn payload<P: DeserializeOwned>(&self) -> Result<P> {
        serde_json::from_str(&self.payload).map_err(Error::internal)
    }
}

/// Where a list of dead letters goes on.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Position {
    pub created_at: i64,
    pub id: String,
}

impl DeadLetter {
    pub fn position(&self) -> Position {
        Position { created_at: self.created_at, id: self.id.clone() }
    }
}

/// Which dead letters are meant; all of the workspace by default.
#[derive(Clone, Copy, Default)]
pub struct Filter<'a> {
    pub queue: Option<&'a str>,
    /// Only those that nobody requeued.
    pub is_open: bool,
    pub after: Option<&'a Position>,
}

/// Dead letters of a workspace, newest first.
pub fn list(
    conn: &mut Conn,
    workspace_id: i64,
    filter: Filter<'_>,
    limit: i64,
) -> Result<Vec<DeadLetter>, DbError> {
    let mut query = dead_letters::table.filter(dead_letters::workspace_id.eq(workspace_id)).into_boxed();
    if let Some(queue) = filter.queue {
        query = query.filter(dead_letters::queue.eq(queue.to_owned()));
    }
    if filter.is_open {
        query = query.filter(dead_letters::requeued_at.is_null());
    }
    if let Some(Position { created_at, id }) = filter.after.cloned() {
        let same = dead_letters::created_at.eq(created_at).and(dead_letters::id.lt(id));
        query = query.filter(dead_letters::created_at.lt(created_at).or(same));
    }
    Ok(query
        .order((dead_letters::created_at.desc(), dead_letters::id.desc()))
        .limit(limit)
        .select(DeadLetter::as_select())
        .load(conn)?)
}

/// How many dead letters of a workspace nobody requeued, by queue.
pub fn count(conn: &mut Conn, workspace_id: i64) -> Result<HashMap<String, i64>, DbError> {
    let rows: Vec<(String, i64)> = dead_letters::table
        .filter(dead_letters::workspace_id.eq(workspace_id).and(dead_letters::requeued_at.is_null()))
        .group_by(dead_letters::queue)
        .select((dead_letters::queue, diesel::dsl::count_star()))
        .load(conn)?;
    Ok(rows.into_iter().collect())
}

/// One dead letter; 404 when it is unknown.
pub fn get(conn: &mut Conn, workspace_id: i64, id: &str) -> Result<DeadLetter, DbError> {
    dead_letters::table
        .filter(dead_letters::id.eq(id).and(dead_letters::workspace_id.eq(workspace_id)))
        .select(DeadLetter::as_select())
        .first(conn)
        .optional()?
        .ok_or_else(|| Error::not_found("dead letter").into())
}

/// Those of these that nobody queued yet, the newest first.
pub fn open_of(conn: &mut Conn, workspace_id: i64, ids: &[String]) -> Result<Vec<DeadLetter>, DbError> {
    Ok(dead_letters::table
        .filter(dead_letters::id.eq_any(ids))
        .filter(dead_letters::workspace_id.eq(workspace_id))
        .filter(dead_letters::requeued_at.is_null())
        .order(dead_letters::id.desc())
        .select(DeadLetter::as_select())
        .load(conn)?)
}

/// Queues a dead letter anew and keeps the record; 409 already requeued.
pub fn requeue(conn: &mut Conn, letter: &DeadLetter, now: Timestamp) -> Result<(), DbError> {
    let marked =
        diesel::update(dead_letters::table.find(&letter.id).filter(dead_letters::requeued_at.is_null()))
            .set(dead_letters::requeued_at.eq(now.0))
            .execute(conn)?;
    if marked == 0 {
        return Err(Error::conflict("the dead letter was requeued already").into());
    }
    let text =
        "INSERT INTO jobs (queue, key, workspace_id, payload, run_after, created_at, scheduled_at, generation, attempts)
                VALUES ($1, $2, $3, $4, $5, $5, $5, 0, 0)
                ON CONFLICT (queue, key) DO UPDATE SET generation = jobs.generation + 1";
    sql_query(text)
        .bind::<Text, _>(&letter.queue)
        .bind::<Text, _>(&letter.key)
        .bind::<BigInt, _>(letter.workspace_id)
        .bind::<Text, _>(&letter.payload)
        .bind::<BigInt, _>(now.0)
        .execute(conn)?;
    Ok(())
}
