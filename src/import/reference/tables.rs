//! What becomes of each table of the Go server, in every layout that is known of it. The page about moving has this list,
//! a test compares them. Pure.

/// What an import does with the rows of a table.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Fate {
    /// Row by row.
    Taken,
    /// It follows from what is taken.
    Made,
    /// Not at all.
    Left,
}

/// Table, what becomes of it, and as what, from what, or why not.
pub const TABLES: &[(&str, Fate, &str)] = &[
    ("alert_deliveries", Fate::Taken, "deliveries and their attempts; what failed there is a dead letter"),
    (
        "alert_delivery_jobs",
        Fate::Taken,
        "deliveries with their bodies; what was still to be sent is a dead letter",
    ),
    ("alert_destinations", Fate::Taken, "destinations with their secrets"),
    ("alert_evaluation_jobs", Fate::Made, "work is asked for anew"),
    ("alert_events", Fate::Taken, "alert events, numbered in the order of their times"),
    ("alert_rules", Fate::Taken, "alert rules; those without a destination are left out"),
    ("alert_states", Fate::Taken, "alert states"),
    ("auth_api_key_events", Fate::Taken, "what happened to API keys"),
    ("auth_api_keys", Fate::Taken, "API keys; one that is gone there is revoked"),
    ("auth_identities", Fate::Taken, "identities of Google and GitHub; of other providers they are left out"),
    ("auth_sessions", Fate::Taken, "sessions that have not expired; one that is gone there is ended"),
    ("auth_users", Fate::Taken, "users with their password hashes"),
    ("auth_workspace_invitations", Fate::Taken, "invitations: links that were sent go on working"),
    (
        "auth_workspace_memberships",
        Fate::Taken,
        "memberships with their roles; one that is gone there is taken away",
    ),
    ("auth_workspaces", Fate::Taken, "workspaces"),
    ("bulk_usage_ingestions", Fate::Taken, "answers to bulk calls"),
    ("consumption_decision_prune_runs", Fate::Taken, "prunes of decisions, not the dry ones"),
    ("consumption_decisions", Fate::Taken, "decisions: a retry is answered as before"),
    ("entitlement_check_jobs", Fate::Made, "work is asked for anew"),
    ("entitlement_events", Fate::Taken, "entitlement events"),
    ("entitlement_period_snapshots", Fate::Taken, "past periods, the latest version of a plan counts"),
    ("entitlement_states", Fate::Taken, "states, that of the plan in force"),
    (
        "entitlement_usage_counters",
        Fate::Taken,
        "counters are made of events; of current periods what they know of pruned events is added",
    ),
    ("ingestion_rate_windows", Fate::Left, "limits count anew"),
    ("meters", Fate::Taken, "meters with their dimensions"),
    ("plan_limits", Fate::Taken, "limits"),
    ("plan_subject_assignments", Fate::Taken, "assignments with their anchors"),
    ("plans", Fate::Taken, "plans, all versions"),
    ("quota_counter_repair_runs", Fate::Left, "counters here are written with the events and need no repair"),
    ("reconciliation_notification_attempts", Fate::Left, "there is no reconciliation here"),
    ("reconciliation_notifications", Fate::Left, "there is no reconciliation here"),
    ("reconciliation_runs", Fate::Left, "there is no reconciliation here"),
    ("reconciliation_schedules", Fate::Left, "there is no reconciliation here"),
    ("schema_migrations", Fate::Made, "tells whether the database is whole"),
    ("system_maintenance_leases", Fate::Left, "processes of the old server"),
    ("system_worker_dead_letters", Fate::Left, "work is asked for anew"),
    ("system_worker_heartbeats", Fate::Left, "processes of the old server"),
    ("usage_event_outbox", Fate::Made, "subjects are evaluated as their events come in"),
    ("usage_events", Fate::Taken, "events with their ids and keys"),
    ("usage_export_cleanup_runs", Fate::Left, "files stay where they are"),
    (
        "usage_export_jobs",
        Fate::Taken,
        "exports as history: completed ones have expired, waiting ones are canceled",
    ),
    (
        "usage_hourly_rollups",
        Fate::Taken,
        "sums of pruned events, marked as inexact: they were added as floats",
    ),
    ("usage_ingestions", Fate::Taken, "ingestion runs"),
    ("usage_prune_runs", Fate::Taken, "prune runs"),
    ("usage_rollup_runs", Fate::Left, "the sums themselves are taken"),
    ("usage_saved_queries", Fate::Taken, "saved queries"),
    ("workspace_stats", Fate::Made, "counted anew"),
];

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_page_about_moving_has_every_table() {
        assert!(TABLES.is_sorted_by_key(|(name, ..)| *name), "in the order of the alphabet");
        let page = include_str!("../../../docs/moving.md");
        for (name, fate, why) in TABLES {
            let fate = match fate {
                Fate::Taken => "taken",
                Fate::Made => "made anew",
                Fate::Left => "not taken",
            };
            let line = format!("| `{name}` | {fate} | {why} |");
            assert!(page.contains(&line), "docs/moving.md lacks: {line}");
        }
        let rows = page.lines().filter(|line| line.starts_with("| `") && line.matches(" | ").count() == 2);
        assert_eq!(rows.count(), TABLES.len(), "no other tables");
    }
}
