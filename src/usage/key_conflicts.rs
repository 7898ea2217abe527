//! What a workspace wants to happen to an event whose idempotency key stands for another event: the first event is the
//! answer, or the second one is refused. Nothing is remembered: it is asked only when it happens.

use diesel::prelude::*;
use serde_json::json;

use crate::db::schema::workspaces;
use crate::db::{Conn, DbError, Store, audit};
use crate::error::{Error, Result};
use crate::string_enum::string_enum;

string_enum!(KeyConflicts { Answer = "answer", Refuse = "refuse" });

impl KeyConflicts {
    pub fn read(text: &str) -> Result<Self> {
        KeyConflicts::parse(text).ok_or_else(|| Error::invalid("key_conflicts must be answer or refuse"))
    }
}

pub fn find(conn: &mut Conn, workspace_id: i64) -> Result<KeyConflicts, DbError> {
    let word: Option<String> =
        workspaces::table.find(workspace_id).select(workspaces::key_conflicts).first(conn).optional()?;
    Ok(word.and_then(|word| KeyConflicts::parse(&word)).unwrap_or(KeyConflicts::Answer))
}

/// Changes it; from then on every server does so.
pub async fn set(store: &Store, workspace_id: i64, wanted: KeyConflicts) -> Result<()> {
    let state = |setting: KeyConflicts| json!({"key_conflicts": setting});
    let work = move |conn: &mut Conn| {
        let before = find(conn, workspace_id)?;
        audit::about("", wanted.as_str());
        audit::states(Some(state(before)), Some(state(wanted)));
        diesel::update(workspaces::table.find(workspace_id))
            .set(workspaces::key_conflicts.eq(wanted.as_str()))
            .execute(conn)?;
        Ok(())
    };
    store.write("workspaces::set_key_conflicts", work).await
}
