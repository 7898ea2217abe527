//! Which layout a database of the Go server has. The number of its version does not tell, since it was begun anew twice, so
//! tables and columns are looked at. What is not there, and what is there and not read, is said.

use super::events::derived_id;
use super::tables::{Fate, TABLES};
use super::{Import, plans, who};
use crate::error::{Code, Error, Result};
use crate::import::sql::foreign::{Kind, Table};
use crate::metering::meter::RETENTION_DAYS_MAX;
use crate::metering::time::Timestamp;

/// In the order in which people came.
const FIRST_USER: Table =
    Table { name: who::USERS.name, columns: &[("id", Kind::Text)], order: "created_at || id" };

fn unusable(message: impl Into<String>) -> Error {
    Error::new(Code::Unusable, message.into())
}

impl Import {
    /// Refuses what is no database of the reference, or not whole.
    pub(super) fn recognise(&mut self) -> Result<()> {
        let has = |table: &str| self.theirs.has_table(table);
        if !["usage_events", "meters", "schema_migrations"].iter().all(|table| has(table)) {
            return Err(unusable(
                "this is no database of the Go server: usage_events, meters or schema_migrations is missing",
            ));
        }
        let missing = [plans::LIMITS.name, plans::ASSIGNMENTS.name].into_iter().find(|table| !has(table));
        if let Some(table) = missing.filter(|_| has(plans::PLANS.name)) {
            return Err(unusable(format!("the table {table} is missing: this database is not whole")));
        }
        if let Some((version, true)) = self.theirs.version()? {
            return Err(unusable(format!(
                "a migration of this database broke off (version {version}, dirty): let the Go server mend it first"
            )));
        }
        let has_workspaces = self.theirs.has_table(who::WORKSPACES.name);
        match (has_workspaces, self.theirs.has_column("usage_events", "workspace_id")) {
            (true, true) => Ok(()),
            (false, false) => self.make_one_workspace(),
            _ => Err(unusable(
                "only some tables of this database know workspaces: a migration of the Go server to 0.1.10 broke off",
            )),
        }
    }

    /// Before 0.1.10 everybody saw everything: all of it comes into one workspace, which all users own. Its id follows from
    /// the first user, so that the next run finds it. An API key could do everything; nothing was pruned before meters
    /// said for how long they keep events.
    fn make_one_workspace(&mut self) -> Result<()> {
        let mut first = None;
        self.theirs.each(&FIRST_USER, 1, |rows| {
            first = first.take().or_else(|| rows.first()?.text("id").ok());
            Ok(())
        })?;
        let first = first
            .ok_or_else(|| unusable("this database has neither workspaces nor users, who could own one"))?;
        let id = derived_id(Timestamp(0), &[b"workspace", first.as_bytes()]);
        let users = who::USERS.name;
        self.theirs.stand_in_for_table(
            &who::WORKSPACES,
            format!("SELECT '{id}' AS id, 'Imported' AS name, min(created_at) AS created_at FROM {users}"),
        );
        self.theirs.stand_in_for_table(
            &who::MEMBERSHIPS,
            format!("SELECT '{id}' AS workspace_id, id AS user_id, 'owner' AS role, created_at FROM {users}"),
        );
        self.theirs.stand_in_for_column("workspace_id", format!("'{id}'"));
        self.theirs.stand_in_for_column("scopes", "'[\"*\"]'".to_owned());
        self.theirs.stand_in_for_column("event_retention_days", RETENTION_DAYS_MAX.to_string());
        self.report.note(
            "this database is from before 0.1.10 and has no workspaces: all of it comes into one, which every user owns",
        );
        Ok(())
    }

    /// Tables that are there and not read, or would be read and are not there.
    pub(super) fn note_tables(&mut self) -> Result<()> {
        for name in self.theirs.tables() {
            let about = TABLES.iter().find(|(table, ..)| *table == name);
            let why = match about {
                None => "the table is not known",
                Some((_, Fate::Left, why)) => *why,
                Some(_) => continue,
            };
            let count = self.theirs.count(&name)?;
            if count > 0 {
                self.report.note(format!("{count} rows of {name} are not read: {why}"));
            }
        }
        let is_absent =
            |(name, fate, _): &&(&str, Fate, &str)| *fate == Fate::Taken && !self.theirs.has_table(name);
        let absent: Vec<&str> = TABLES.iter().filter(is_absent).map(|(name, ..)| *name).collect();
        if !absent.is_empty() {
            self.report.note(format!("tables of other versions that are not there: {}", absent.join(", ")));
        }
        Ok(())
    }

    pub(super) fn note_columns(&mut self, table: &Table) {
        let unread: Vec<&str> = self.theirs.unread(table).collect();
        if !unread.is_empty() {
            self.report.note(format!("{} has columns that are not read: {}", table.name, unread.join(", ")));
        }
        let lacking = self.theirs.lacking(table);
        if self.theirs.has_table(table.name) && !lacking.is_empty() {
            self.report.note(format!(
                "{} lacks columns of newer versions: {}",
                table.name,
                lacking.join(", ")
            ));
        }
    }
}
