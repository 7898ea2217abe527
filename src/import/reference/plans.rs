//! Plans, who has them, and where subjects stood with their limits. Counters are not read: they are made of the events.

use super::who::{new_or_known, uuid_text};
use super::{Ids, Import, PlanOf, Refusal};
use crate::db::Conn;
use crate::db::identity::new_id;
use crate::entitlements::period::Every;
use crate::entitlements::quota::State;
use crate::error::Result;
use crate::import::sql::foreign::Kind::{Int, Real, Text};
use crate::import::sql::foreign::{Odd, Row, Table};
use crate::import::sql::ours::{self, Columns, Put, Value};
use crate::metering::event::parse_subject;
use crate::usage::subject_ids;

pub const PLANS: Table = Table {
    name: "plans",
    columns: &[
        ("id", Text),
        ("workspace_id", Text),
        ("name", Text),
        ("description", Text),
        ("version", Int),
        ("parent_plan_id", Text),
        ("is_current", Int),
        ("created_at", Text),
        ("updated_at", Text),
    ],
    // only one version may be current: those that no longer are come first
    order: "CASE WHEN CAST(is_current AS TEXT) IN ('1', 'true') THEN '1' ELSE '0' END",
};

pub fn plan(conn: &mut Conn, ids: &mut Ids, row: &Row) -> Result<Put, Refusal> {
    let (public_id, is_current) = (uuid_text(row, "id")?, row.flag("is_current")?);
    let columns: Columns = vec![
        ("workspace_id", ids.workspace(row)?.into()),
        ("name", row.text("name")?.into()),
        ("description", row.text("description")?.into()),
        ("version", row.int("version")?.into()),
        ("parent_id", row.filled("parent_plan_id")?.into()),
        ("is_current", is_current.into()),
        ("created_at", row.time("created_at")?.0.into()),
        ("updated_at", row.time("updated_at")?.0.into()),
    ];
    let (put, id) = ours::put(conn, "plans", &public_id, &columns, &["is_current", "updated_at"], true)?;
    if put != Put::Taken {
        ids.plans.insert(public_id, PlanOf { id, is_current });
    }
    Ok(put)
}

pub const LIMITS: Table = Table {
    name: "plan_limits",
    columns: &[
        ("id", Text),
        ("workspace_id", Text),
        ("plan_id", Text),
        ("meter_name", Text),
        ("period", Text),
        ("limit_value", Real),
        ("warning_percent", Real),
        ("enforcement", Text),
        ("failure_policy", Text),
        ("created_at", Text),
        // ours never change
        ("updated_at", Text),
    ],
    order: "",
};

/// There are four periods and one limit of each, so a meter never has more than a plan of ours may say.
pub fn limit(conn: &mut Conn, ids: &mut Ids, row: &Row) -> Result<Put, Refusal> {
    let meter = ids.meter(ids.workspace(row)?, row)?;
    let (quantity, percent) = (row.quantity("limit_value")?, row.quantity("warning_percent")?);
    if !quantity.is_positive() || !percent.is_positive() || percent > 100.into() {
        return Err("a limit must be greater than 0, and its warning at most 100 percent".into());
    }
    let word = |name: &str, usual: &str, other: &str| match row.filled(name)? {
        Some(word) if word == other || word == usual => Ok(word),
        Some(word) => Err(format!("{name} is unknown: {word}")),
        None => Ok(usual.to_owned()),
    };
    let columns: Columns = vec![
        ("public_id", uuid_text(row, "id")?.into()),
        ("plan_id", ids.plan(row)?.id.into()),
        ("meter_id", meter.id.into()),
        ("period", period(row)?.as_str().into()),
        ("quantity", quantity.to_json().into()),
        ("warning_percent", percent.to_json().into()),
        ("enforcement", word("enforcement", "advisory", "hard")?.into()),
        ("failure_policy", word("failure_policy", "fail_open", "fail_closed")?.into()),
        ("created_at", row.time("created_at")?.0.into()),
    ];
    Ok(new_or_known(ours::add(conn, "plan_limits", &columns)?))
}

pub(super) fn period(row: &Row) -> Result<Every, Odd> {
    let text = row.text("period")?;
    Every::parse(&text).ok_or_else(|| format!("there is no such period: {text}"))
}

pub const ASSIGNMENTS: Table = Table {
    name: "plan_subject_assignments",
    columns: &[
        ("id", Text),
        ("workspace_id", Text),
        ("subject", Text),
        ("plan_id", Text),
        ("assigned_at", Text),
        ("period_anchor_at", Text),
        ("unassigned_at", Text),
        ("updated_at", Text),
    ],
    order: "replace(assigned_at, 'Z', '')",
};

pub fn assignment(conn: &mut Conn, ids: &mut Ids, row: &Row) -> Result<Put, Refusal> {
    let (public_id, workspace_id) = (uuid_text(row, "id")?, ids.workspace(row)?);
    let columns: Columns = vec![
        ("workspace_id", workspace_id.into()),
        ("plan_id", ids.plan(row)?.id.into()),
        ("starts_at", row.time("assigned_at")?.0.into()),
        ("ends_at", row.optional_time("unassigned_at")?.map(|at| at.0).into()),
        ("anchor", row.time("period_anchor_at")?.0.into()),
        // of scheduled ones it lies ahead
        ("updated_at", row.time("updated_at")?.min(ids.now).0.into()),
        ("subject_id", subject_id(conn, workspace_id, row)?.into()),
    ];
    // tells writers to look again
    let text = "UPDATE workspaces SET assignment_version = assignment_version + 1 WHERE id = $1".to_owned();
    ours::execute(conn, text, &[workspace_id.into()])?;
    // found by the subject, which leads the keys of that table
    let text =
        "UPDATE plan_assignments SET ends_at = $1, updated_at = $2 WHERE subject_id = $3 AND public_id = $4";
    let values: Vec<Value> = ["ends_at", "updated_at", "subject_id"]
        .into_iter()
        .filter_map(|name| columns.iter().find(|(column, _)| *column == name).map(|(_, value)| value.clone()))
        .chain([public_id.clone().into()])
        .collect();
    if ours::execute(conn, text.to_owned(), &values)? > 0 {
        return Ok(Put::Known);
    }
    let mut row: Columns = vec![("id", new_id().into()), ("public_id", public_id.into())];
    row.extend(columns);
    Ok(new_or_known(ours::add(conn, "plan_assignments", &row)?))
}

pub(super) fn subject_id(conn: &mut Conn, workspace_id: i64, row: &Row) -> Result<i64, Refusal> {
    let subject = row.text("subject")?;
    if parse_subject(&subject)? != subject {
        return Err("subject has blanks around it".into());
    }
    let found = subject_ids::find_or_add(conn, &[(workspace_id, subject)])?;
    Ok(found.first().map(|(_, id)| *id).ok_or("its subject has no number")?)
}

impl Import {
    /// Of two that are in force at once the later one counts: the earlier ends where that begins.
    pub(super) fn end_overlaps(&mut self) -> Result<()> {
        const LATER: &str = "FROM plan_assignments b
            WHERE b.subject_id = plan_assignments.subject_id AND (b.ends_at IS NULL OR b.ends_at > b.starts_at)
              AND (b.starts_at > plan_assignments.starts_at
                   OR (b.starts_at = plan_assignments.starts_at AND b.id > plan_assignments.id))";
        let text = format!(
            "UPDATE plan_assignments SET ends_at = (SELECT MIN(b.starts_at) {LATER})
             WHERE ends_at IS NULL AND workspace_id = $1 AND EXISTS (SELECT 1 {LATER})"
        );
        let workspaces: Vec<i64> = self.ids.workspaces.values().copied().collect();
        for id in workspaces {
            let ended = self.ours.write(|conn| ours::execute(conn, text.clone(), &[id.into()]))?;
            if ended > 0 {
                self.report
                    .note(format!("{ended} assignments had no end and now end where the next one begins"));
            }
        }
        Ok(())
    }
}

pub const STATES: Table = Table {
    name: "entitlement_states",
    columns: &[
        ("workspace_id", Text),
        ("subject", Text),
        ("meter_name", Text),
        ("plan_id", Text),
        ("plan_name", Text),
        ("period", Text),
        ("state", Text),
        ("current_value", Real),
        ("limit_value", Real),
        ("remaining_value", Real),
        ("warning_percent", Real),
        ("message", Text),
        ("evaluated_at", Text),
        ("updated_at", Text),
    ],
    order: "replace(evaluated_at, 'Z', '')",
};

/// What states, events and snapshots have in common.
fn standing(conn: &mut Conn, ids: &Ids, row: &Row) -> Result<Columns, Refusal> {
    let workspace_id = ids.workspace(row)?;
    let state = row.text("state")?;
    let state = State::parse(&state).ok_or_else(|| format!("there is no such state: {state}"))?;
    Ok(vec![
        ("workspace_id", workspace_id.into()),
        ("meter_id", ids.meter(workspace_id, row)?.id.into()),
        ("plan_id", ids.plan(row)?.id.into()),
        ("period", period(row)?.as_str().into()),
        ("state", state.as_str().into()),
        ("current_value", row.quantity("current_value")?.to_json().into()),
        ("limit_value", row.quantity("limit_value")?.to_json().into()),
        ("warning_percent", row.quantity("warning_percent")?.to_json().into()),
        ("subject_id", subject_id(conn, workspace_id, row)?.into()),
    ])
}

/// They have one per version of a plan, we have one: that of a plan in force, else the newest. They come by age.
pub fn state(conn: &mut Conn, ids: &mut Ids, row: &Row) -> Result<Put, Refusal> {
    let mut columns = standing(conn, ids, row)?;
    columns.push(("evaluated_at", row.time("evaluated_at")?.0.into()));
    columns.push(("updated_at", row.time("updated_at")?.0.into()));
    let is_better = match ids.plan(row)?.is_current {
        true => "true",
        false => {
            "entitlement_states.plan_id = excluded.plan_id OR NOT EXISTS (SELECT 1 FROM plans p WHERE p.id = entitlement_states.plan_id AND p.is_current)"
        }
    };
    let on_conflict = format!(
        "(subject_id, meter_id, period) DO UPDATE SET plan_id = excluded.plan_id, state = excluded.state,
             current_value = excluded.current_value, limit_value = excluded.limit_value,
             warning_percent = excluded.warning_percent, evaluated_at = excluded.evaluated_at,
             updated_at = excluded.updated_at
         WHERE (entitlement_states.evaluated_at < excluded.evaluated_at
                OR (entitlement_states.evaluated_at = excluded.evaluated_at AND entitlement_states.plan_id <> excluded.plan_id))
           AND ({is_better})"
    );
    Ok(new_or_known(ours::upsert(conn, "entitlement_states", &columns, &on_conflict)?))
}

pub const EVENTS: Table = Table {
    name: "entitlement_events",
    columns: &[
        ("id", Text),
        ("workspace_id", Text),
        ("subject", Text),
        ("meter_name", Text),
        ("plan_id", Text),
        ("plan_name", Text),
        ("period", Text),
        ("previous_state", Text),
        ("state", Text),
        ("type", Text),
        ("current_value", Real),
        ("limit_value", Real),
        ("remaining_value", Real),
        ("warning_percent", Real),
        ("message", Text),
        ("created_at", Text),
    ],
    order: "",
};

pub fn event(conn: &mut Conn, ids: &mut Ids, row: &Row) -> Result<Put, Refusal> {
    let mut columns = standing(conn, ids, row)?;
    columns.push(("id", uuid_text(row, "id")?.into()));
    columns.push(("previous_state", row.filled("previous_state")?.into()));
    columns.push(("kind", row.text("type")?.into()));
    columns.push(("created_at", row.time("created_at")?.0.into()));
    Ok(new_or_known(ours::add(conn, "entitlement_events", &columns)?))
}

pub const SNAPSHOTS: Table = Table {
    name: "entitlement_period_snapshots",
    columns: &[
        ("workspace_id", Text),
        ("subject", Text),
        ("meter_name", Text),
        ("plan_id", Text),
        ("plan_name", Text),
        ("plan_version", Int),
        ("period", Text),
        ("period_start", Text),
        ("period_end", Text),
        ("state", Text),
        ("current_value", Real),
        ("limit_value", Real),
        ("included_value", Real),
        ("overage_value", Real),
        ("remaining_value", Real),
        ("warning_percent", Real),
        ("event_count", Int),
        ("updated_at", Text),
    ],
    order: "replace(updated_at, 'Z', '')",
};

pub fn snapshot(conn: &mut Conn, ids: &mut Ids, row: &Row) -> Result<Put, Refusal> {
    let mut columns = standing(conn, ids, row)?;
    columns.push(("starts_at", row.time("period_start")?.0.into()));
    columns.push(("ends_at", row.time("period_end")?.0.into()));
    columns.push(("event_count", row.int("event_count")?.into()));
    columns.push(("updated_at", row.time("updated_at")?.0.into()));
    let on_conflict = "(subject_id, meter_id, period, starts_at) DO UPDATE SET plan_id = excluded.plan_id,
             ends_at = excluded.ends_at, state = excluded.state, current_value = excluded.current_value,
             limit_value = excluded.limit_value, warning_percent = excluded.warning_percent,
             event_count = excluded.event_count, updated_at = excluded.updated_at
         WHERE entitlement_periods.updated_at < excluded.updated_at";
    Ok(new_or_known(ours::upsert(conn, "entitlement_periods", &columns, on_conflict)?))
}
