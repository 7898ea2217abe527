//! What is a tenant's: the tables, in the order in which their rows refer to each other, and what is done with each.
//! Every table of the schema is here or in the list below of what is not. Pure.

/// A condition that takes the number of the workspace in the place of `{w}`, about rows called `t`.
const OF_WORKSPACE: &str = "t.workspace_id = {w}";
const OF_METERS: &str = "t.meter_id IN (SELECT m.id FROM meters m WHERE m.workspace_id = {w})";
const OF_RULES: &str = "t.rule_id IN (SELECT r.id FROM alert_rules r WHERE r.workspace_id = {w})";

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum How {
    /// Ids stay what they are: no two servers ever give the same one.
    Copy,
    /// Whoever is there already stays as they are.
    Users,
    /// A row that is there already stays.
    UnlessThere,
    /// The same; and nothing is added to an account that was there already: it would open it.
    OfNewUsers,
    /// The database numbers the rows, in their order; those with a public id are referred to by that number.
    Numbered,
    NumberedUnnamed,
}

/// A table of the file, which is one of the database.
#[derive(Debug)]
pub struct Table {
    pub name: &'static str,
    /// Which rows are the workspace's.
    pub of: &'static str,
    pub order: &'static str,
    pub how: How,
    /// Columns that hold numbers of rows that may get another one, and their table.
    pub refers: &'static [(&'static str, &'static str)],
    /// Columns that are made anew.
    pub without: &'static [&'static str],
    /// Columns, and the SQL of what is written instead.
    pub instead: &'static [(&'static str, &'static str)],
}

const PLAIN: Table =
    Table { name: "", of: OF_WORKSPACE, order: "", how: How::Copy, refers: &[], without: &[], instead: &[] };

/// Who, and what is measured.
pub const BEFORE_EVENTS: &[Table] = &[
    Table { name: "workspaces", of: "t.id = {w}", ..PLAIN },
    Table {
        name: "users",
        of: "t.id IN (SELECT user_id FROM memberships WHERE workspace_id = {w}
                      UNION SELECT user_id FROM api_keys WHERE workspace_id = {w}
                      UNION SELECT user_id FROM api_key_events WHERE workspace_id = {w}
                      UNION SELECT invited_by FROM invitations WHERE workspace_id = {w}
                      UNION SELECT created_by FROM subject_links WHERE workspace_id = {w})",
        how: How::Users,
        ..PLAIN
    },
    Table {
        name: "identities",
        of: "t.user_id IN (SELECT user_id FROM memberships WHERE workspace_id = {w})",
        how: How::OfNewUsers,
        refers: &[("user_id", "users")],
        ..PLAIN
    },
    Table {
        name: "user_preferences",
        of: "t.user_id IN (SELECT user_id FROM memberships WHERE workspace_id = {w})",
        how: How::OfNewUsers,
        refers: &[("user_id", "users")],
        ..PLAIN
    },
    Table { name: "memberships", order: "t.user_id", refers: &[("user_id", "users")], ..PLAIN },
    Table { name: "api_keys", refers: &[("user_id", "users")], ..PLAIN },
    Table { name: "api_key_events", refers: &[("user_id", "users")], ..PLAIN },
    Table { name: "invitations", refers: &[("invited_by", "users")], ..PLAIN },
    Table { name: "subject_links", refers: &[("created_by", "users")], ..PLAIN },
    Table {
        name: "saved_queries",
        // what a member shares with another workspace is that one's business
        of: "t.user_id IN (SELECT user_id FROM memberships WHERE workspace_id = {w})
             AND (t.shared_in IS NULL OR t.shared_in = {w})",
        how: How::UnlessThere,
        refers: &[("user_id", "users")],
        ..PLAIN
    },
    Table { name: "stored_queries", ..PLAIN },
    Table { name: "meters", ..PLAIN },
    // what is counted of them is counted anew
    Table { name: "subjects", without: &["last_event_at", "usage_counts"], ..PLAIN },
];

/// What refers to usage.
pub const AFTER_EVENTS: &[Table] = &[
    Table { name: "plans", ..PLAIN },
    Table {
        name: "plan_limits",
        of: "t.plan_id IN (SELECT p.id FROM plans p WHERE p.workspace_id = {w})",
        ..PLAIN
    },
    Table { name: "plan_assignments", ..PLAIN },
    Table {
        name: "quota_counters",
        of: OF_METERS,
        order: "t.subject_id, t.meter_id, t.anchor, t.series, t.day_start",
        ..PLAIN
    },
    Table { name: "entitlement_states", ..PLAIN },
    Table { name: "entitlement_events", ..PLAIN },
    Table { name: "entitlement_periods", ..PLAIN },
    Table { name: "consumption_decisions", ..PLAIN },
    Table { name: "bulk_replays", ..PLAIN },
    Table { name: "ingestion_runs", ..PLAIN },
    Table { name: "ingestion_refusals", ..PLAIN },
    Table { name: "refused_events", ..PLAIN },
    Table { name: "prune_runs", ..PLAIN },
    Table { name: "decision_prune_runs", ..PLAIN },
    // files stay where they are, and so does the work
    Table {
        name: "export_jobs",
        instead: &[
            ("status", "CASE WHEN t.status IN ('queued', 'running') THEN 'canceled' ELSE t.status END"),
            ("completed_at", "COALESCE(t.completed_at, t.updated_at)"),
            (
                "expired_at",
                "CASE WHEN t.status = 'completed' THEN COALESCE(t.expired_at, t.completed_at) END",
            ),
        ],
        ..PLAIN
    },
    Table { name: "export_cleanup_runs", ..PLAIN },
    Table { name: "alert_destinations", order: "t.id", how: How::Numbered, ..PLAIN },
    Table {
        name: "alert_rules",
        order: "t.id",
        how: How::Numbered,
        refers: &[("destination_id", "alert_destinations")],
        ..PLAIN
    },
    Table { name: "alert_states", of: OF_RULES, refers: &[("rule_id", "alert_rules")], ..PLAIN },
    Table {
        name: "alert_events",
        order: "t.id",
        how: How::Numbered,
        refers: &[("rule_id", "alert_rules")],
        ..PLAIN
    },
    // two servers would send what is under way twice: an operator can have it sent here
    Table {
        name: "alert_deliveries",
        order: "t.id",
        how: How::Numbered,
        refers: &[("rule_id", "alert_rules")],
        instead: &[
            ("status", "CASE WHEN t.status = 'pending' THEN 'dead_letter' ELSE t.status END"),
            (
                "last_error",
                "CASE WHEN t.status = 'pending' THEN 'the workspace was moved before it was sent' ELSE t.last_error END",
            ),
        ],
        ..PLAIN
    },
    Table {
        name: "alert_attempts",
        of: "t.delivery_id IN (SELECT d.id FROM alert_deliveries d WHERE d.workspace_id = {w})",
        order: "t.id",
        how: How::NumberedUnnamed,
        refers: &[("delivery_id", "alert_deliveries")],
        ..PLAIN
    },
    Table { name: "dead_letters", ..PLAIN },
    Table { name: "audit_heads", order: "t.workspace_id", ..PLAIN },
    Table { name: "audit_events", order: "t.sequence", ..PLAIN },
];

/// The file's own tables: in neutral form, because each database keeps them in its own.
pub const FINGERPRINTS: &str = "fingerprints";
pub const EVENTS: &str = "events";
pub const KEYS: &str = "idempotency_keys";
pub const SUMS: &str = "pruned_sums";

#[cfg(test)]
/// Tables that travel in another form or not at all, and why.
pub const ELSEWHERE: &[(&str, &str)] = &[
    ("chores", "the installation's"),
    ("day_hours", "always the same"),
    ("dimension_sets", "made anew from events and sums"),
    ("event_days", "made anew from events and sums"),
    ("events", "in neutral form"),
    ("idempotency_keys", "in neutral form, unless an event tells it"),
    ("installation", "the installation's"),
    ("jobs", "work is asked for anew"),
    ("known_devices", "people sign in again"),
    ("leases", "the installation's"),
    ("password_resets", "whoever has one asks again"),
    ("provider_flows", "people sign in again"),
    ("recent_keys", "as idempotency_keys"),
    ("rollup_deltas", "made anew from events and sums"),
    ("rollup_facets", "made anew from events and sums"),
    ("rollup_subjects", "made anew from events and sums"),
    ("rollups", "made anew from events and sums"),
    ("sessions", "people sign in again"),
    ("settled_keys", "as idempotency_keys"),
    ("sign_ins", "people sign in again"),
    ("subject_days", "made anew from events and sums"),
    ("worker_instances", "the installation's"),
];

pub fn all() -> impl Iterator<Item = &'static Table> {
    BEFORE_EVENTS.iter().chain(AFTER_EVENTS)
}

pub fn named(name: &str) -> Option<&'static Table> {
    all().find(|table| table.name == name)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A new table is a tenant's or not: somebody has to say.
    #[test]
    fn every_table_of_the_schema_has_its_place() {
        let schema = concat!(
            include_str!("../../migrations/sqlite/0001_initial/up.sql"),
            include_str!("../../migrations/postgres/0001_initial/up.sql")
        );
        let made = schema.split("CREATE TABLE ").skip(1).filter(|text| !text.contains("PARTITION OF"));
        for name in made.filter_map(|text| text.split([' ', '(']).next()) {
            let is_elsewhere = ELSEWHERE.iter().any(|(other, _)| *other == name);
            assert!(named(name).is_some() != is_elsewhere, "{name}: in one of the lists of this file");
        }
    }
}
