//! The one set of table definitions, for both databases. Columns that only hand-written SQL touches are here too,
//! so that a test can hold this file against the migrated databases.

use diesel::{allow_tables_to_appear_in_same_query, table};

/// An exact decimal: NUMERIC on PostgreSQL, sortable bytes on SQLite (`crate::metering::quantity`).
#[derive(Clone, Copy, Debug, Default, diesel::sql_types::SqlType, diesel::query_builder::QueryId)]
#[diesel(postgres_type(oid = 1700, array_oid = 1231))]
#[diesel(sqlite_type(name = "Binary"))]
pub struct ExactDecimal;

table! {
    installation (id) {
        id -> Text,
        epoch -> BigInt,
        timeline -> Text,
    }
}

table! {
    workspaces (id) {
        id -> BigInt,
        public_id -> Text,
        name -> Text,
        time_zone -> Text,
        assignment_version -> BigInt,
        key_conflicts -> Text,
        created_at -> BigInt,
    }
}

table! {
    users (id) {
        id -> BigInt,
        public_id -> Text,
        email -> Text,
        password_hash -> Text,
        created_at -> BigInt,
        email_verified_at -> Nullable<BigInt>,
        disabled_at -> Nullable<BigInt>,
        unlocked_at -> Nullable<BigInt>,
    }
}

table! {
    memberships (workspace_id, user_id) {
        workspace_id -> BigInt,
        user_id -> BigInt,
        role -> Text,
        created_at -> BigInt,
    }
}

table! {
    sessions (token_hash) {
        token_hash -> Binary,
        kind -> Text,
        login_id -> Text,
        form_key -> Binary,
        user_id -> BigInt,
        workspace_id -> BigInt,
        expires_at -> BigInt,
        created_at -> BigInt,
        used_at -> Nullable<BigInt>,
    }
}

table! {
    sign_ins (login_id) {
        login_id -> Text,
        user_id -> BigInt,
        workspace_id -> BigInt,
        address -> Text,
        user_agent -> Text,
        created_at -> BigInt,
        seen_at -> BigInt,
        ends_at -> BigInt,
    }
}

table! {
    password_resets (token_hash) {
        token_hash -> Binary,
        user_id -> BigInt,
        expires_at -> BigInt,
        by_mail -> Bool,
    }
}

table! {
    identities (id) {
        id -> BigInt,
        public_id -> Text,
        user_id -> BigInt,
        provider -> Text,
        issuer -> Text,
        subject -> Text,
        email -> Text,
        created_at -> BigInt,
    }
}

table! {
    provider_flows (state_hash) {
        state_hash -> Binary,
        provider -> Text,
        nonce -> Text,
        verifier -> Text,
        redirect_url -> Text,
        next -> Text,
        user_id -> Nullable<BigInt>,
        expires_at -> BigInt,
    }
}

table! {
    known_devices (token_hash) {
        token_hash -> Binary,
        user_id -> BigInt,
        seen_at -> BigInt,
    }
}

table! {
    user_preferences (user_id) {
        user_id -> BigInt,
        time_zone -> Nullable<Text>,
        week_start -> Nullable<Text>,
        theme -> Nullable<Text>,
        density -> Nullable<Text>,
        default_range -> Nullable<Text>,
        shortcuts -> Nullable<Text>,
        updated_at -> BigInt,
    }
}

table! {
    api_keys (id) {
        id -> BigInt,
        public_id -> Text,
        workspace_id -> BigInt,
        user_id -> BigInt,
        name -> Text,
        token_hash -> Binary,
        prefix -> Text,
        scopes -> Text,
        allowed_meters -> Text,
        allowed_networks -> Text,
        expires_at -> Nullable<BigInt>,
        revoked_at -> Nullable<BigInt>,
        created_at -> BigInt,
        last_used_at -> Nullable<BigInt>,
    }
}

table! {
    api_key_events (id) {
        id -> Text,
        workspace_id -> BigInt,
        user_id -> BigInt,
        api_key_id -> Text,
        key_name -> Text,
        key_prefix -> Text,
        event_type -> Text,
        related_api_key_id -> Nullable<Text>,
        effective_at -> Nullable<BigInt>,
        created_at -> BigInt,
    }
}

table! {
    invitations (id) {
        id -> BigInt,
        public_id -> Text,
        workspace_id -> BigInt,
        email -> Text,
        role -> Text,
        token_hash -> Binary,
        invited_by -> BigInt,
        expires_at -> BigInt,
        accepted_at -> Nullable<BigInt>,
        revoked_at -> Nullable<BigInt>,
        created_at -> BigInt,
    }
}

table! {
    subject_links (id) {
        id -> BigInt,
        public_id -> Text,
        workspace_id -> BigInt,
        subject -> Text,
        meters -> Text,
        origins -> Text,
        token_hash -> Binary,
        created_by -> BigInt,
        expires_at -> BigInt,
        revoked_at -> Nullable<BigInt>,
        created_at -> BigInt,
        last_used_at -> Nullable<BigInt>,
    }
}

table! {
    audit_heads (workspace_id) {
        workspace_id -> BigInt,
        sequence -> BigInt,
        hash -> Binary,
        pruned_sequence -> BigInt,
        pruned_hash -> Binary,
    }
}

table! {
    audit_events (workspace_id, sequence) {
        workspace_id -> BigInt,
        sequence -> BigInt,
        id -> Text,
        time -> BigInt,
        actor_kind -> Text,
        actor_id -> Text,
        actor_name -> Text,
        action -> Text,
        target_kind -> Text,
        target_id -> Text,
        target_name -> Text,
        state_before -> Text,
        state_after -> Text,
        address -> Text,
        user_agent -> Text,
        request_id -> Text,
        hash -> Binary,
    }
}

table! {
    meters (id) {
        id -> BigInt,
        public_id -> Text,
        workspace_id -> BigInt,
        name -> Text,
        description -> Text,
        unit -> Text,
        aggregation -> Text,
        dimensions -> Text,
        options -> Text,
        version -> Integer,
        event_retention_days -> Integer,
        pruned_before -> Nullable<BigInt>,
        has_alerts -> Bool,
        created_at -> BigInt,
    }
}

table! {
    subjects (id) {
        id -> BigInt,
        workspace_id -> BigInt,
        name -> Text,
        last_event_at -> Nullable<BigInt>,
        usage_counts -> Nullable<Binary>,
    }
}

table! {
    dimension_sets (meter_id, hash) {
        meter_id -> BigInt,
        hash -> Binary,
        version -> Integer,
        dimensions -> Text,
    }
}

table! {
    idempotency_keys (workspace_id, key) {
        workspace_id -> BigInt,
        key -> Binary,
        event_id -> Binary,
        subject_id -> BigInt,
        event_time -> BigInt,
        fingerprint -> BigInt,
    }
}

table! {
    use diesel::sql_types::*;
    use crate::db::schema::ExactDecimal;
    events (subject_id, event_time, id) {
        id -> Binary,
        workspace_id -> BigInt,
        meter_id -> BigInt,
        subject_id -> BigInt,
        event_time -> BigInt,
        received_at -> BigInt,
        meter_version -> Integer,
        quantity -> ExactDecimal,
        idempotency_key -> Nullable<Text>,
        metadata -> Nullable<Text>,
    }
}

table! {
    use diesel::sql_types::*;
    use crate::db::schema::ExactDecimal;
    rollups (meter_id, grain, start, lane) {
        meter_id -> BigInt,
        grain -> SmallInt,
        start -> BigInt,
        lane -> SmallInt,
        event_count -> BigInt,
        quantity_sum -> ExactDecimal,
        quantity_min -> ExactDecimal,
        quantity_max -> ExactDecimal,
        first_at -> BigInt,
        first_id -> Binary,
        first_quantity -> ExactDecimal,
        last_at -> BigInt,
        last_id -> Binary,
        last_quantity -> ExactDecimal,
    }
}

table! {
    rollup_deltas (meter_id, id) {
        meter_id -> BigInt,
        id -> BigInt,
        cells -> Nullable<Binary>,
        subjects -> Binary,
        counts -> Binary,
    }
}

table! {
    rollup_facets (meter_id, facet, day) {
        meter_id -> BigInt,
        facet -> Text,
        day -> BigInt,
        is_alone -> Bool,
        day_cells -> Nullable<Binary>,
        hour_cells -> Nullable<Binary>,
        quarter_cells -> Nullable<Binary>,
    }
}

table! {
    rollup_subjects (meter_id, period, subject_id, id) {
        meter_id -> BigInt,
        period -> BigInt,
        subject_id -> BigInt,
        id -> BigInt,
        first_start -> BigInt,
        last_start -> BigInt,
        cell_count -> BigInt,
        days -> Nullable<Binary>,
        day_facets -> Nullable<Text>,
        facet_days -> Nullable<Binary>,
        cells -> Binary,
    }
}

table! {
    subject_days (day, subject_id) {
        day -> BigInt,
        subject_id -> BigInt,
    }
}

table! {
    event_days (workspace_id, day) {
        workspace_id -> BigInt,
        day -> BigInt,
    }
}

table! {
    day_hours (since_midnight) {
        since_midnight -> BigInt,
    }
}

table! {
    bulk_replays (workspace_id, key) {
        workspace_id -> BigInt,
        key -> Binary,
        accepted -> Text,
        duplicates -> Text,
        payload -> BigInt,
        created_at -> BigInt,
    }
}

table! {
    ingestion_runs (workspace_id, id) {
        workspace_id -> BigInt,
        id -> Binary,
        kind -> Text,
        accepted -> BigInt,
        duplicates -> BigInt,
        failed -> BigInt,
        created_at -> BigInt,
        request_id -> Nullable<Text>,
        api_key_id -> Nullable<Text>,
        duration -> Nullable<BigInt>,
    }
}

table! {
    prune_runs (workspace_id, id) {
        workspace_id -> BigInt,
        id -> Binary,
        deleted -> BigInt,
        dry_run -> Bool,
        meters -> Text,
        created_at -> BigInt,
    }
}

table! {
    chores (name) {
        name -> Text,
        done_at -> BigInt,
        findings -> BigInt,
    }
}

table! {
    leases (name) {
        name -> Text,
        holder -> Text,
        expires_at -> BigInt,
    }
}

table! {
    saved_queries (id) {
        id -> Text,
        user_id -> BigInt,
        name -> Text,
        query -> Text,
        group_by -> Text,
        bucket_size -> Text,
        row_limit -> BigInt,
        pinned -> Bool,
        position -> BigInt,
        created_at -> BigInt,
        updated_at -> BigInt,
        shared_in -> Nullable<BigInt>,
    }
}

table! {
    stored_queries (workspace_id, hash) {
        workspace_id -> BigInt,
        hash -> Text,
        query -> Text,
        created_at -> BigInt,
        used_at -> BigInt,
    }
}

table! {
    plans (id) {
        id -> BigInt,
        public_id -> Text,
        workspace_id -> BigInt,
        name -> Text,
        description -> Text,
        version -> Integer,
        parent_id -> Nullable<Text>,
        is_current -> Bool,
        created_at -> BigInt,
        updated_at -> BigInt,
    }
}

table! {
    plan_limits (public_id) {
        public_id -> Text,
        plan_id -> BigInt,
        meter_id -> BigInt,
        period -> Text,
        quantity -> Text,
        warning_percent -> Text,
        enforcement -> Text,
        failure_policy -> Text,
        created_at -> BigInt,
    }
}

table! {
    plan_assignments (subject_id, id) {
        id -> BigInt,
        public_id -> Text,
        workspace_id -> BigInt,
        subject_id -> BigInt,
        plan_id -> BigInt,
        starts_at -> BigInt,
        ends_at -> Nullable<BigInt>,
        anchor -> BigInt,
        time_zone -> Text,
        updated_at -> BigInt,
    }
}

table! {
    use diesel::sql_types::*;
    use crate::db::schema::ExactDecimal;
    quota_counters (subject_id, meter_id, anchor, series, day_start) {
        subject_id -> BigInt,
        meter_id -> BigInt,
        anchor -> BigInt,
        series -> Text,
        day_start -> BigInt,
        event_count -> BigInt,
        quantity_sum -> ExactDecimal,
        quantity_min -> ExactDecimal,
        quantity_max -> ExactDecimal,
        first_at -> BigInt,
        first_id -> Binary,
        first_quantity -> ExactDecimal,
        last_at -> BigInt,
        last_id -> Binary,
        last_quantity -> ExactDecimal,
    }
}

table! {
    entitlement_states (subject_id, meter_id, period) {
        subject_id -> BigInt,
        meter_id -> BigInt,
        period -> Text,
        workspace_id -> BigInt,
        plan_id -> BigInt,
        state -> Text,
        current_value -> Text,
        limit_value -> Text,
        warning_percent -> Text,
        evaluated_at -> BigInt,
        updated_at -> BigInt,
    }
}

table! {
    entitlement_events (subject_id, id) {
        id -> Text,
        workspace_id -> BigInt,
        subject_id -> BigInt,
        meter_id -> BigInt,
        plan_id -> BigInt,
        period -> Text,
        previous_state -> Nullable<Text>,
        state -> Text,
        kind -> Text,
        current_value -> Text,
        limit_value -> Text,
        warning_percent -> Text,
        created_at -> BigInt,
    }
}

table! {
    entitlement_periods (subject_id, meter_id, period, starts_at) {
        subject_id -> BigInt,
        meter_id -> BigInt,
        period -> Text,
        starts_at -> BigInt,
        ends_at -> BigInt,
        workspace_id -> BigInt,
        plan_id -> BigInt,
        state -> Text,
        current_value -> Text,
        limit_value -> Text,
        warning_percent -> Text,
        event_count -> BigInt,
        updated_at -> BigInt,
    }
}

table! {
    consumption_decisions (workspace_id, key) {
        workspace_id -> BigInt,
        key -> Binary,
        idempotency_key -> Text,
        subject -> Text,
        meter -> Text,
        accepted -> Bool,
        evaluation_failed -> Bool,
        enforcement -> Text,
        state -> Text,
        event_id -> Nullable<Binary>,
        quota -> Text,
        created_at -> BigInt,
        metadata -> Nullable<Text>,
    }
}

table! {
    jobs (queue, key) {
        queue -> Text,
        key -> Text,
        workspace_id -> BigInt,
        payload -> Text,
        generation -> BigInt,
        run_after -> BigInt,
        scheduled_at -> BigInt,
        attempts -> Integer,
        lease_token -> Nullable<Binary>,
        leased_at -> Nullable<BigInt>,
        leased_until -> Nullable<BigInt>,
        taken_over -> Bool,
        last_error -> Nullable<Text>,
        created_at -> BigInt,
    }
}

table! {
    dead_letters (id) {
        id -> Text,
        workspace_id -> BigInt,
        queue -> Text,
        key -> Text,
        payload -> Text,
        attempts -> Integer,
        last_error -> Text,
        created_at -> BigInt,
        requeued_at -> Nullable<BigInt>,
    }
}

table! {
    decision_prune_runs (id) {
        id -> Text,
        workspace_id -> BigInt,
        decided_before -> BigInt,
        deleted -> BigInt,
        created_at -> BigInt,
    }
}

table! {
    ingestion_refusals (workspace_id) {
        workspace_id -> BigInt,
        rejected_events -> BigInt,
        throttled_events -> BigInt,
    }
}

table! {
    refused_events (workspace_id, id) {
        workspace_id -> BigInt,
        id -> Binary,
        outcome -> Text,
        code -> Text,
        message -> Text,
        subject -> Text,
        meter -> Text,
        idempotency_key -> Nullable<Text>,
        run_id -> Binary,
        sent -> Nullable<Text>,
        stored -> Nullable<Text>,
        created_at -> BigInt,
        request_id -> Nullable<Text>,
        api_key_id -> Nullable<Text>,
        field -> Nullable<Text>,
        door -> Text,
        payload -> Nullable<Text>,
    }
}

table! {
    worker_instances (worker, instance_id) {
        instance_id -> Text,
        worker -> Text,
        started_at -> BigInt,
        last_heartbeat_at -> BigInt,
        last_success_at -> Nullable<BigInt>,
        last_failure_at -> Nullable<BigInt>,
    }
}

table! {
    export_jobs (id) {
        id -> Text,
        workspace_id -> BigInt,
        kind -> Text,
        status -> Text,
        query -> Text,
        error -> Nullable<Text>,
        row_count -> BigInt,
        artifact_size -> Nullable<BigInt>,
        artifact_hash -> Nullable<Text>,
        created_at -> BigInt,
        updated_at -> BigInt,
        completed_at -> Nullable<BigInt>,
        expired_at -> Nullable<BigInt>,
    }
}

table! {
    export_cleanup_runs (id) {
        id -> Text,
        workspace_id -> BigInt,
        expired_before -> BigInt,
        files_deleted -> BigInt,
        bytes_reclaimed -> BigInt,
        failures -> BigInt,
        created_at -> BigInt,
    }
}

table! {
    alert_destinations (id) {
        id -> BigInt,
        public_id -> Text,
        workspace_id -> BigInt,
        name -> Text,
        enabled -> Bool,
        webhook_url -> Text,
        secret -> Text,
        previous_secret -> Nullable<Text>,
        previous_until -> Nullable<BigInt>,
        created_at -> BigInt,
        updated_at -> BigInt,
    }
}

table! {
    alert_rules (id) {
        id -> BigInt,
        public_id -> Text,
        workspace_id -> BigInt,
        meter_id -> BigInt,
        destination_id -> BigInt,
        name -> Text,
        enabled -> Bool,
        subject -> Nullable<Text>,
        metadata -> Text,
        window_seconds -> BigInt,
        period -> Nullable<Text>,
        comparator -> Text,
        threshold -> Text,
        evaluation_interval_seconds -> BigInt,
        group_by -> Nullable<Text>,
        next_evaluate_at -> BigInt,
        evaluated_at -> Nullable<BigInt>,
        snoozed_until -> Nullable<BigInt>,
        revision -> BigInt,
        created_at -> BigInt,
        updated_at -> BigInt,
    }
}

table! {
    alert_states (rule_id, group_key, group_value) {
        rule_id -> BigInt,
        group_key -> Text,
        group_value -> Text,
        status -> Text,
        firing -> Bool,
        value -> Text,
        message -> Text,
        updated_at -> BigInt,
    }
}

table! {
    alert_events (id) {
        id -> BigInt,
        public_id -> Text,
        workspace_id -> BigInt,
        rule_id -> BigInt,
        rule_public_id -> Text,
        group_key -> Text,
        group_value -> Text,
        kind -> Text,
        value -> Text,
        message -> Text,
        created_at -> BigInt,
    }
}

table! {
    alert_deliveries (id) {
        id -> BigInt,
        public_id -> Text,
        workspace_id -> BigInt,
        rule_id -> BigInt,
        event_id -> Text,
        destination_id -> Text,
        ordering_key -> Text,
        payload -> Text,
        status -> Text,
        attempts -> Integer,
        next_attempt_at -> BigInt,
        last_error -> Nullable<Text>,
        created_at -> BigInt,
        updated_at -> BigInt,
        delivered_at -> Nullable<BigInt>,
    }
}

table! {
    alert_attempts (id) {
        id -> BigInt,
        public_id -> Text,
        delivery_id -> BigInt,
        event_id -> Text,
        status -> Text,
        status_code -> Nullable<Integer>,
        error -> Nullable<Text>,
        response -> Nullable<Text>,
        duration_ms -> BigInt,
        attempted_at -> BigInt,
    }
}

allow_tables_to_appear_in_same_query!(
    users,
    memberships,
    workspaces,
    sessions,
    api_keys,
    invitations,
    sign_ins,
    known_devices,
    user_preferences,
    saved_queries
);
allow_tables_to_appear_in_same_query!(meters, subjects, dimension_sets);
allow_tables_to_appear_in_same_query!(export_jobs, jobs);
allow_tables_to_appear_in_same_query!(meters, alert_rules, alert_destinations);
allow_tables_to_appear_in_same_query!(plans, plan_limits, plan_assignments);
allow_tables_to_appear_in_same_query!(meters, plan_limits);
