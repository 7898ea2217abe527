//! Writes rows of ours that came from elsewhere, and asks what is there. Each row is found by its public id, so that
//! writing it twice changes nothing.

use std::collections::HashSet;

use diesel::sql_types::{BigInt, Binary, Bool, Nullable, Text};
use diesel::{OptionalExtension, RunQueryDsl, sql_query};

use crate::both;
use crate::db::identity::new_id;
use crate::db::{Conn, DbError};
use crate::metering::time::Timestamp;

#[derive(Clone, Debug)]
pub enum Value {
    Int(i64),
    OptInt(Option<i64>),
    Text(String),
    OptText(Option<String>),
    Blob(Vec<u8>),
    Bool(bool),
}

impl From<i64> for Value {
    fn from(value: i64) -> Value {
        Value::Int(value)
    }
}

impl From<Option<i64>> for Value {
    fn from(value: Option<i64>) -> Value {
        Value::OptInt(value)
    }
}

impl From<String> for Value {
    fn from(value: String) -> Value {
        Value::Text(value)
    }
}

impl From<&str> for Value {
    fn from(value: &str) -> Value {
        Value::Text(value.to_owned())
    }
}

impl From<Option<String>> for Value {
    fn from(value: Option<String>) -> Value {
        Value::OptText(value)
    }
}

impl From<Vec<u8>> for Value {
    fn from(value: Vec<u8>) -> Value {
        Value::Blob(value)
    }
}

impl From<bool> for Value {
    fn from(value: bool) -> Value {
        Value::Bool(value)
    }
}

/// Names and values of a row.
pub type Columns = Vec<(&'static str, Value)>;

/// What became of a row.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Put {
    New,
    /// It was there and is what it should be now.
    Known,
    /// Another row has what only one may have.
    Taken,
}

#[derive(diesel::QueryableByName)]
struct Number {
    #[diesel(sql_type = BigInt)]
    value: i64,
}

/// Runs a statement whose placeholders are `$1` and so on, in order.
pub fn execute(conn: &mut Conn, text: String, values: &[Value]) -> Result<usize, DbError> {
    Ok(both!(conn, c => {
        let mut query = sql_query(text).into_boxed();
        for value in values.iter().cloned() {
            query = match value {
                Value::Int(value) => query.bind::<BigInt, _>(value),
                Value::OptInt(value) => query.bind::<Nullable<BigInt>, _>(value),
                Value::Text(value) => query.bind::<Text, _>(value),
                Value::OptText(value) => query.bind::<Nullable<Text>, _>(value),
                Value::Blob(value) => query.bind::<Binary, _>(value),
                Value::Bool(value) => query.bind::<Bool, _>(value),
            };
        }
        query.execute(c)?
    }))
}

/// The number of the row with this public id.
pub fn find(conn: &mut Conn, table: &str, public_id: &str) -> Result<Option<i64>, DbError> {
    let text = format!("SELECT id AS value FROM {table} WHERE public_id = $1");
    let found: Option<Number> =
        both!(conn, c => sql_query(text).bind::<Text, _>(public_id).get_result(c).optional()?);
    Ok(found.map(|number| number.value))
}

/// Adds a row, unless it or another with the same key is there.
pub fn add(conn: &mut Conn, table: &str, row: &Columns) -> Result<bool, DbError> {
    upsert(conn, table, row, "DO NOTHING")
}

/// Adds a row or does what `on_conflict` says.
pub fn upsert(conn: &mut Conn, table: &str, row: &Columns, on_conflict: &str) -> Result<bool, DbError> {
    let names: Vec<&str> = row.iter().map(|(name, _)| *name).collect();
    let places: Vec<String> = (1..=row.len()).map(|at| format!("${at}")).collect();
    let text = format!(
        "INSERT INTO {table} ({}) VALUES ({}) ON CONFLICT {on_conflict}",
        names.join(", "),
        places.join(", ")
    );
    let values: Vec<Value> = row.iter().map(|(_, value)| value.clone()).collect();
    Ok(execute(conn, text, &values)? > 0)
}

/// A row that others refer to by a number of ours: adds it, or brings `changing` of its columns up to date.
pub fn put(
    conn: &mut Conn,
    table: &str,
    public_id: &str,
    row: &Columns,
    changing: &[&str],
    makes_id: bool,
) -> Result<(Put, i64), DbError> {
    if let Some(id) = find(conn, table, public_id)? {
        let changed: Vec<&(&str, Value)> = row.iter().filter(|(name, _)| changing.contains(name)).collect();
        if !changed.is_empty() {
            let sets: Vec<String> =
                changed.iter().enumerate().map(|(at, (name, _))| format!("{name} = ${}", at + 1)).collect();
            let mut values: Vec<Value> = changed.iter().map(|(_, value)| value.clone()).collect();
            values.push(id.into());
            let text = format!("UPDATE {table} SET {} WHERE id = ${}", sets.join(", "), values.len());
            execute(conn, text, &values)?;
        }
        return Ok((Put::Known, id));
    }
    let mut full: Columns = vec![("public_id", public_id.into())];
    if makes_id {
        full.push(("id", new_id().into()));
    }
    full.extend(row.iter().cloned());
    if !add(conn, table, &full)? {
        return Ok((Put::Taken, 0));
    }
    let id = find(conn, table, public_id)?;
    Ok((Put::New, id.ok_or(DbError::Retry)?))
}

/// From when the periods of a subject are counted now; none without a plan.
pub fn anchor(conn: &mut Conn, subject_id: i64, now: Timestamp) -> Result<Option<Timestamp>, DbError> {
    let text = "SELECT anchor AS value FROM plan_assignments
                WHERE subject_id = $1 AND starts_at <= $2 AND (ends_at IS NULL OR ends_at > $3)
                ORDER BY starts_at DESC, id DESC LIMIT 1";
    let found: Option<Number> = both!(conn, c => sql_query(text)
        .bind::<BigInt, _>(subject_id)
        .bind::<BigInt, _>(now.0)
        .bind::<BigInt, _>(now.0)
        .get_result(c)
        .optional()?);
    Ok(found.map(|number| Timestamp(number.value)))
}

/// Replaces a hash that came from there, unless it was replaced here already.
pub fn keep_password(conn: &mut Conn, user_id: i64, hash: &str) -> Result<(), DbError> {
    // bcrypt's begin with $2; people without a password have none
    let text = "UPDATE users SET password_hash = $1
                WHERE id = $2 AND password_hash <> $1 AND (password_hash = '' OR substr(password_hash, 2, 1) = '2')";
    execute(conn, text.to_owned(), &[hash.into(), user_id.into()])?;
    Ok(())
}

/// Brings a key up to date: of two times at which it is revoked the earlier counts, so that what was revoked here stays so
/// while it is in the time of grace of a rotation there.
pub fn follow_key(
    conn: &mut Conn,
    id: i64,
    revoked_at: Option<Timestamp>,
    used_at: Option<Timestamp>,
) -> Result<(), DbError> {
    for (column, sooner, at) in [("revoked_at", ">", revoked_at), ("last_used_at", "<", used_at)] {
        let Some(at) = at else { continue };
        let text = format!(
            "UPDATE api_keys SET {column} = $1 WHERE id = $2 AND ({column} IS NULL OR {column} {sooner} $1)"
        );
        execute(conn, text, &[at.0.into(), id.into()])?;
    }
    Ok(())
}

/// The account with this address, if somebody has shown that it is theirs.
pub fn verified_user(conn: &mut Conn, email: &str) -> Result<Option<i64>, DbError> {
    let text = "SELECT id AS value FROM users WHERE email = $1 AND email_verified_at IS NOT NULL";
    let found: Option<Number> =
        both!(conn, c => sql_query(text).bind::<Text, _>(email).get_result(c).optional()?);
    Ok(found.map(|number| number.value))
}

#[derive(diesel::QueryableByName)]
struct Pair {
    #[diesel(sql_type = BigInt)]
    workspace_id: i64,
    #[diesel(sql_type = BigInt)]
    user_id: i64,
}

/// Takes away memberships of a workspace that came from there and are gone there; not those of people who were invited
/// here. Ids made there are of version 4.
pub fn end_memberships(
    conn: &mut Conn,
    workspace_id: i64,
    present: &HashSet<(i64, i64)>,
) -> Result<usize, DbError> {
    let text = "SELECT m.workspace_id, m.user_id FROM memberships m JOIN users u ON u.id = m.user_id
                WHERE m.workspace_id = $1 AND substr(u.public_id, 15, 1) = '4' AND NOT EXISTS (
                    SELECT 1 FROM invitations i WHERE i.workspace_id = m.workspace_id AND i.email = u.email
                        AND i.accepted_at IS NOT NULL AND substr(i.public_id, 15, 1) <> '4')";
    let rows: Vec<Pair> = both!(conn, c => sql_query(text).bind::<BigInt, _>(workspace_id).load(c)?);
    let mut ended = 0;
    for Pair { workspace_id, user_id } in rows {
        if !present.contains(&(workspace_id, user_id)) {
            let text = "DELETE FROM memberships WHERE workspace_id = $1 AND user_id = $2".to_owned();
            ended += execute(conn, text, &[workspace_id.into(), user_id.into()])?;
        }
    }
    Ok(ended)
}

/// A sign-in that began there.
pub struct SignIn<'a> {
    pub login_id: &'a str,
    pub user_id: i64,
    pub workspace_id: i64,
    pub created_at: Timestamp,
    pub ends_at: Timestamp,
}

#[derive(diesel::QueryableByName)]
struct FormKey {
    #[diesel(sql_type = Binary)]
    form_key: Vec<u8>,
}

/// What stands for the browser of a sign-in that began there: nobody wrote it down.
const BROWSER: &str = "signed in before the move";

/// Adds a sign-in, or lets one that is here last until the later end; answers what signs its forms, when it has tokens.
pub fn put_sign_in(conn: &mut Conn, sign_in: &SignIn<'_>) -> Result<Option<Vec<u8>>, DbError> {
    let (login_id, created_at) = (sign_in.login_id, sign_in.created_at.0);
    let columns: Columns = vec![
        ("login_id", login_id.into()),
        ("user_id", sign_in.user_id.into()),
        ("workspace_id", sign_in.workspace_id.into()),
        ("address", "".into()),
        ("user_agent", BROWSER.into()),
        ("created_at", created_at.into()),
        ("seen_at", created_at.into()),
        ("ends_at", sign_in.ends_at.0.into()),
    ];
    let later =
        "(login_id) DO UPDATE SET ends_at = excluded.ends_at WHERE excluded.ends_at > sign_ins.ends_at";
    upsert(conn, "sign_ins", &columns, later)?;
    let text = "SELECT form_key FROM sessions WHERE login_id = $1 LIMIT 1";
    let found: Option<FormKey> =
        both!(conn, c => sql_query(text).bind::<Text, _>(login_id).get_result(c).optional()?);
    Ok(found.map(|row| row.form_key))
}

#[derive(diesel::QueryableByName)]
struct TokenOfSignIn {
    #[diesel(sql_type = Text)]
    login_id: String,
    #[diesel(sql_type = Nullable<Binary>)]
    token_hash: Option<Vec<u8>>,
}

/// Ends sign-ins of a workspace that came from there and are gone there, and tokens of the others that are gone there: used
/// up, or ended. What was made here of a sign-in that is still there goes on.
pub fn end_sessions(
    conn: &mut Conn,
    workspace_id: i64,
    sign_ins: &HashSet<String>,
    tokens: &HashSet<Vec<u8>>,
) -> Result<usize, DbError> {
    let text = "SELECT i.login_id, s.token_hash FROM sign_ins i
                LEFT JOIN sessions s ON s.login_id = i.login_id AND s.created_at = i.created_at
                WHERE i.workspace_id = $1 AND substr(i.login_id, 15, 1) = '4'";
    let rows: Vec<TokenOfSignIn> = both!(conn, c => sql_query(text).bind::<BigInt, _>(workspace_id).load(c)?);
    let mut ended = 0;
    for TokenOfSignIn { login_id, token_hash } in rows {
        if !sign_ins.contains(&login_id) {
            let id = [Value::from(login_id)];
            ended += execute(conn, "DELETE FROM sessions WHERE login_id = $1".to_owned(), &id)?;
            execute(conn, "DELETE FROM sign_ins WHERE login_id = $1".to_owned(), &id)?;
        } else if let Some(hash) = token_hash.filter(|hash| !tokens.contains(hash)) {
            ended += execute(conn, "DELETE FROM sessions WHERE token_hash = $1".to_owned(), &[hash.into()])?;
        }
    }
    Ok(ended)
}

#[derive(diesel::QueryableByName)]
struct PublicId {
    #[diesel(sql_type = Text)]
    public_id: String,
}

/// Does `change` to rows of a workspace that came from there and are gone there. Ids made here are of version 7, theirs
/// of version 4.
pub fn end_missing(
    conn: &mut Conn,
    table: &str,
    change: &str,
    value: Value,
    workspace_id: i64,
    present: &std::collections::BTreeSet<String>,
) -> Result<usize, DbError> {
    let column = change.split(' ').next().unwrap_or_default();
    let still = if column == "enabled" { "enabled" } else { "revoked_at IS NULL" };
    let text = format!(
        "SELECT public_id FROM {table} WHERE workspace_id = $1 AND {still} AND substr(public_id, 15, 1) = '4'"
    );
    let rows: Vec<PublicId> = both!(conn, c => sql_query(text).bind::<BigInt, _>(workspace_id).load(c)?);
    let mut ended = 0;
    for row in rows.into_iter().filter(|row| !present.contains(&row.public_id)) {
        let text = format!("UPDATE {table} SET {change} WHERE public_id = $2");
        ended += execute(conn, text, &[value.clone(), row.public_id.into()])?;
    }
    Ok(ended)
}

/// The number of the only workspace; none when there are several, or none.
pub fn only_workspace(conn: &mut Conn) -> Result<Option<i64>, DbError> {
    let rows: Vec<Number> =
        both!(conn, c => sql_query("SELECT id AS value FROM workspaces LIMIT 2").load(c)?);
    Ok(if let [one] = rows.as_slice() { Some(one.value) } else { None })
}
