-- Times are microseconds since 1970-01-01 UTC. Ids on the wire are UUIDs; hot tables use the integer ids. Those that
-- servers remember are made by them and never given twice (src/db/identity.rs).

-- One row: which installation this is. Servers compare it with what they remember (src/db/identity.rs).
CREATE TABLE installation (
    id TEXT PRIMARY KEY,
    -- grows with every failover that a server noticed
    epoch BIGINT NOT NULL,
    -- cluster and timeline of the epoch; empty before the first server
    timeline TEXT NOT NULL
);
INSERT INTO installation VALUES (gen_random_uuid()::text, 1, '');

-- Changes with each restart and failover of PostgreSQL (its start), and with each restore, in place or elsewhere: the
-- restored row is another one. Of functions in SQL no plan is kept: each call is parsed and planned, which was half of what
-- hold_meters costs.
CREATE FUNCTION database_stamp() RETURNS BIGINT LANGUAGE plpgsql VOLATILE AS $$
BEGIN
    RETURN (SELECT (tableoid::bigint << 31) # xmin::text::bigint
                   # (extract(epoch FROM pg_postmaster_start_time()) * 1000000)::bigint
            FROM installation);
END
$$;

-- Who ---------------------------------------------------------------------------------------------

CREATE TABLE workspaces (
    id BIGINT PRIMARY KEY,
    public_id TEXT NOT NULL CONSTRAINT workspaces_public_id_key UNIQUE,
    name TEXT NOT NULL,
    -- of the IANA database: where days and months begin that nobody names a zone for
    time_zone TEXT NOT NULL DEFAULT 'UTC',
    -- grows with every assignment of a plan, so that writers know when to read them again
    assignment_version BIGINT NOT NULL DEFAULT 0,
    -- answer: with the event that first used the key; refuse: with an error
    key_conflicts TEXT NOT NULL DEFAULT 'answer'
        CONSTRAINT workspaces_key_conflicts_check CHECK (key_conflicts IN ('answer', 'refuse')),
    created_at BIGINT NOT NULL
);

CREATE TABLE users (
    id BIGINT PRIMARY KEY,
    public_id TEXT NOT NULL CONSTRAINT users_public_id_key UNIQUE,
    email TEXT NOT NULL CONSTRAINT users_email_key UNIQUE,
    -- empty for users who only sign in through a provider
    password_hash TEXT NOT NULL,
    created_at BIGINT NOT NULL,
    -- when the address was proven to be theirs, by mail or by a provider
    email_verified_at BIGINT,
    -- nobody comes in as them, and their keys open nothing
    disabled_at BIGINT,
    -- failed sign-ins from before this do not count any more
    unlocked_at BIGINT
);

CREATE TABLE memberships (
    workspace_id BIGINT NOT NULL REFERENCES workspaces (id) ON DELETE CASCADE,
    user_id BIGINT NOT NULL REFERENCES users (id) ON DELETE CASCADE,
    role TEXT NOT NULL CONSTRAINT memberships_role_check CHECK (role IN ('owner', 'admin', 'viewer')),
    created_at BIGINT NOT NULL,
    PRIMARY KEY (workspace_id, user_id)
);
CREATE INDEX memberships_user ON memberships (user_id);

CREATE TABLE sessions (
    token_hash BYTEA PRIMARY KEY,
    kind TEXT NOT NULL CONSTRAINT sessions_kind_check CHECK (kind IN ('access', 'refresh')),
    -- one sign-in and everything refreshed from it: ends as a whole
    login_id TEXT NOT NULL,
    -- signs the forms of the dashboard; the same for the whole sign-in
    form_key BYTEA NOT NULL,
    user_id BIGINT NOT NULL REFERENCES users (id) ON DELETE CASCADE,
    workspace_id BIGINT NOT NULL REFERENCES workspaces (id) ON DELETE CASCADE,
    expires_at BIGINT NOT NULL,
    created_at BIGINT NOT NULL,
    -- of a refresh token: when it was first used up
    used_at BIGINT
);
CREATE INDEX sessions_expiry ON sessions (expires_at);
CREATE INDEX sessions_login ON sessions (login_id);

-- One sign-in and everything refreshed from it. Texts are those of whoever signed in.
CREATE TABLE sign_ins (
    login_id TEXT NOT NULL PRIMARY KEY,
    user_id BIGINT NOT NULL REFERENCES users (id) ON DELETE CASCADE,
    workspace_id BIGINT NOT NULL REFERENCES workspaces (id) ON DELETE CASCADE,
    address TEXT NOT NULL,
    user_agent TEXT NOT NULL,
    created_at BIGINT NOT NULL,
    seen_at BIGINT NOT NULL,
    -- for good, however often it was refreshed
    ends_at BIGINT NOT NULL
);
CREATE INDEX sign_ins_user ON sign_ins (user_id);
CREATE INDEX sign_ins_end ON sign_ins (ends_at);

CREATE TABLE password_resets (
    token_hash BYTEA NOT NULL PRIMARY KEY,
    user_id BIGINT NOT NULL REFERENCES users (id) ON DELETE CASCADE,
    expires_at BIGINT NOT NULL,
    -- whoever shows it reads the mail of the user
    by_mail BOOLEAN NOT NULL DEFAULT false
);
CREATE INDEX password_resets_user ON password_resets (user_id);

CREATE TABLE identities (
    id BIGINT PRIMARY KEY,
    public_id TEXT NOT NULL CONSTRAINT identities_public_id_key UNIQUE,
    user_id BIGINT NOT NULL REFERENCES users (id) ON DELETE CASCADE,
    provider TEXT NOT NULL,
    issuer TEXT NOT NULL,
    subject TEXT NOT NULL,
    -- what the provider said when it was connected
    email TEXT NOT NULL,
    created_at BIGINT NOT NULL,
    CONSTRAINT identities_subject_key UNIQUE (issuer, subject)
);
CREATE INDEX identities_user ON identities (user_id);

CREATE TABLE provider_flows (
    state_hash BYTEA NOT NULL PRIMARY KEY,
    provider TEXT NOT NULL,
    nonce TEXT NOT NULL,
    -- what proves to the provider that the code is ours (RFC 7636)
    verifier TEXT NOT NULL,
    redirect_url TEXT NOT NULL,
    -- where the browser goes in the end
    next TEXT NOT NULL,
    -- whose account it is connected to, when somebody who is signed in began it
    user_id BIGINT REFERENCES users (id) ON DELETE CASCADE,
    expires_at BIGINT NOT NULL
);
CREATE INDEX provider_flows_expiry ON provider_flows (expires_at);

CREATE TABLE known_devices (
    token_hash BYTEA NOT NULL PRIMARY KEY,
    user_id BIGINT NOT NULL REFERENCES users (id) ON DELETE CASCADE,
    seen_at BIGINT NOT NULL
);
CREATE INDEX known_devices_user ON known_devices (user_id, seen_at);
CREATE INDEX known_devices_seen ON known_devices (seen_at);

-- How somebody wants to see the pages; what is null is nobody's choice.
CREATE TABLE user_preferences (
    user_id BIGINT NOT NULL PRIMARY KEY REFERENCES users (id) ON DELETE CASCADE,
    time_zone TEXT,
    week_start TEXT CONSTRAINT user_preferences_week_start_check CHECK (week_start IN ('monday', 'sunday')),
    theme TEXT CONSTRAINT user_preferences_theme_check CHECK (theme IN ('system', 'light', 'dark')),
    density TEXT CONSTRAINT user_preferences_density_check CHECK (density IN ('comfortable', 'compact')),
    default_range TEXT,
    -- single keys on the keyboard
    shortcuts TEXT CONSTRAINT user_preferences_shortcuts_check CHECK (shortcuts IN ('on', 'off')),
    updated_at BIGINT NOT NULL
);

CREATE TABLE api_keys (
    id BIGINT PRIMARY KEY,
    public_id TEXT NOT NULL CONSTRAINT api_keys_public_id_key UNIQUE,
    workspace_id BIGINT NOT NULL REFERENCES workspaces (id) ON DELETE CASCADE,
    user_id BIGINT NOT NULL REFERENCES users (id) ON DELETE CASCADE,
    name TEXT NOT NULL,
    token_hash BYTEA NOT NULL CONSTRAINT api_keys_token_hash_key UNIQUE,
    prefix TEXT NOT NULL,
    -- JSON lists of strings
    scopes TEXT NOT NULL,
    allowed_meters TEXT NOT NULL,
    -- JSON list of networks; empty: from everywhere
    allowed_networks TEXT NOT NULL DEFAULT '[]',
    expires_at BIGINT,
    -- in the future while a rotated key is in its grace period
    revoked_at BIGINT,
    created_at BIGINT NOT NULL,
    last_used_at BIGINT
);
CREATE INDEX api_keys_owner ON api_keys (workspace_id, user_id);

CREATE TABLE api_key_events (
    id TEXT PRIMARY KEY,
    workspace_id BIGINT NOT NULL REFERENCES workspaces (id) ON DELETE CASCADE,
    user_id BIGINT NOT NULL REFERENCES users (id) ON DELETE CASCADE,
    api_key_id TEXT NOT NULL,
    key_name TEXT NOT NULL,
    key_prefix TEXT NOT NULL,
    event_type TEXT NOT NULL CONSTRAINT api_key_events_type_check CHECK (event_type IN ('created', 'rotated', 'revoked')),
    related_api_key_id TEXT,
    effective_at BIGINT,
    created_at BIGINT NOT NULL
);
CREATE INDEX api_key_events_owner ON api_key_events (workspace_id, user_id, created_at);

-- Who is asked to join a workspace. What became of it is told by its times, the first that holds: accepted, revoked,
-- expired.
CREATE TABLE invitations (
    id BIGINT PRIMARY KEY,
    public_id TEXT NOT NULL CONSTRAINT invitations_public_id_key UNIQUE,
    workspace_id BIGINT NOT NULL REFERENCES workspaces (id) ON DELETE CASCADE,
    email TEXT NOT NULL,
    role TEXT NOT NULL CONSTRAINT invitations_role_check CHECK (role IN ('admin', 'viewer')),
    token_hash BYTEA NOT NULL CONSTRAINT invitations_token_hash_key UNIQUE,
    invited_by BIGINT NOT NULL REFERENCES users (id) ON DELETE CASCADE,
    expires_at BIGINT NOT NULL,
    accepted_at BIGINT,
    revoked_at BIGINT,
    created_at BIGINT NOT NULL
);
CREATE INDEX invitations_workspace ON invitations (workspace_id, created_at);
CREATE INDEX invitations_expiry ON invitations (expires_at);
CREATE UNIQUE INDEX invitations_open ON invitations (workspace_id, email) WHERE accepted_at IS NULL AND revoked_at IS NULL;

-- Links with which a customer sees the usage of one subject.
CREATE TABLE subject_links (
    id BIGINT PRIMARY KEY,
    public_id TEXT NOT NULL CONSTRAINT subject_links_public_id_key UNIQUE,
    workspace_id BIGINT NOT NULL REFERENCES workspaces (id) ON DELETE CASCADE,
    subject TEXT NOT NULL,
    -- JSON lists of strings
    meters TEXT NOT NULL,
    origins TEXT NOT NULL,
    token_hash BYTEA NOT NULL CONSTRAINT subject_links_token_hash_key UNIQUE,
    created_by BIGINT NOT NULL REFERENCES users (id) ON DELETE CASCADE,
    expires_at BIGINT NOT NULL,
    revoked_at BIGINT,
    created_at BIGINT NOT NULL,
    last_used_at BIGINT
);
CREATE INDEX subject_links_subject ON subject_links (workspace_id, subject, created_at);
CREATE INDEX subject_links_expiry ON subject_links (expires_at);
CREATE INDEX subject_links_revoked ON subject_links (revoked_at) WHERE revoked_at IS NOT NULL;

-- Who changed what: one row per change, never changed; a chain of hashes per workspace, 0 for what belongs to none.
-- Rows outlive what they tell of.
CREATE TABLE audit_heads (
    workspace_id BIGINT PRIMARY KEY,
    sequence BIGINT NOT NULL,
    hash BYTEA NOT NULL,
    -- the newest row that was pruned: the chain begins behind it
    pruned_sequence BIGINT NOT NULL,
    pruned_hash BYTEA NOT NULL
);
CREATE TABLE audit_events (
    workspace_id BIGINT NOT NULL,
    sequence BIGINT NOT NULL,
    id TEXT NOT NULL,
    time BIGINT NOT NULL,
    actor_kind TEXT NOT NULL,
    actor_id TEXT NOT NULL,
    actor_name TEXT NOT NULL,
    action TEXT NOT NULL,
    target_kind TEXT NOT NULL,
    target_id TEXT NOT NULL,
    target_name TEXT NOT NULL,
    -- JSON, or empty
    state_before TEXT NOT NULL,
    state_after TEXT NOT NULL,
    address TEXT NOT NULL,
    user_agent TEXT NOT NULL,
    request_id TEXT NOT NULL,
    hash BYTEA NOT NULL,
    PRIMARY KEY (workspace_id, sequence)
);
CREATE FUNCTION keep_audit_event() RETURNS TRIGGER LANGUAGE plpgsql AS $$
BEGIN
    IF TG_OP = 'UPDATE' THEN
        RAISE EXCEPTION 'audit events are never changed';
    END IF;
    IF OLD.sequence > COALESCE((SELECT pruned_sequence FROM audit_heads WHERE workspace_id = OLD.workspace_id), 0) THEN
        RAISE EXCEPTION 'audit events are pruned, never deleted';
    END IF;
    RETURN OLD;
END $$;
CREATE TRIGGER audit_events_keep BEFORE UPDATE OR DELETE ON audit_events FOR EACH ROW EXECUTE FUNCTION keep_audit_event();

-- What is measured --------------------------------------------------------------------------------

CREATE TABLE meters (
    id BIGINT PRIMARY KEY,
    public_id TEXT NOT NULL CONSTRAINT meters_public_id_key UNIQUE,
    workspace_id BIGINT NOT NULL REFERENCES workspaces (id) ON DELETE CASCADE,
    name TEXT COLLATE "C" NOT NULL,
    description TEXT NOT NULL,
    unit TEXT NOT NULL,
    aggregation TEXT NOT NULL,
    -- JSON list, in the order given
    dimensions TEXT NOT NULL,
    -- JSON object: what only some meters have
    options TEXT NOT NULL DEFAULT '{}',
    -- grows with every change that events in flight must not miss
    version INTEGER NOT NULL,
    event_retention_days INTEGER NOT NULL,
    -- raw events before this instant were pruned
    pruned_before BIGINT,
    -- an enabled alert rule watches it: writers ask for its evaluation
    has_alerts BOOLEAN NOT NULL DEFAULT false,
    created_at BIGINT NOT NULL,
    CONSTRAINT meters_workspace_name_key UNIQUE (workspace_id, name)
);

-- The id is computed from workspace and name (src/usage/subject_ids.rs): no server has to ask for it, and it cannot
-- become another subject's, whatever a failover loses. It alone keeps names apart.
CREATE TABLE subjects (
    id BIGINT PRIMARY KEY,
    workspace_id BIGINT NOT NULL,
    name TEXT COLLATE "C" NOT NULL,
    -- of its stored events, as far as they are settled (rollup_deltas): when the last one was, and packed by meter how
    -- many there are and when the last one was
    last_event_at BIGINT,
    usage_counts BYTEA
);
CREATE INDEX subjects_name ON subjects (workspace_id, name);
CREATE INDEX subjects_recent ON subjects (workspace_id, last_event_at DESC, name) WHERE last_event_at IS NOT NULL;

-- One row per distinct combination of declared dimension values of a meter; rollups name it by its hash.
CREATE TABLE dimension_sets (
    meter_id BIGINT NOT NULL,
    hash BYTEA NOT NULL,
    -- newest version of the meter that declared a dimension of it: dimensions declared later are not in it
    version INTEGER NOT NULL,
    -- canonical JSON object
    dimensions TEXT NOT NULL,
    PRIMARY KEY (meter_id, hash)
);

-- What was consumed -------------------------------------------------------------------------------

-- The key ledger: unique here, not in events, so that it outlives retention.
CREATE TABLE idempotency_keys (
    workspace_id BIGINT NOT NULL,
    -- the key itself when short (its order keeps inserts local), the number of a UUID, else a prefix and a hash
    key BYTEA NOT NULL,
    event_id BYTEA NOT NULL,
    subject_id BIGINT NOT NULL,
    event_time BIGINT NOT NULL,
    -- of the payload, to notice a key used again for something else
    fingerprint BIGINT NOT NULL,
    PRIMARY KEY (workspace_id, key)
);

CREATE TABLE events (
    id BYTEA NOT NULL,
    workspace_id BIGINT NOT NULL,
    meter_id BIGINT NOT NULL,
    subject_id BIGINT NOT NULL,
    event_time BIGINT NOT NULL,
    received_at BIGINT NOT NULL,
    meter_version INTEGER NOT NULL,
    quantity NUMERIC NOT NULL,
    idempotency_key TEXT,
    metadata JSONB,
    PRIMARY KEY (subject_id, event_time, id)
) PARTITION BY RANGE (event_time);
CREATE INDEX events_meter_time ON events (meter_id, event_time, id);
-- Months are attached ahead of time by the server; whatever falls outside lands here.
CREATE TABLE events_default PARTITION OF events DEFAULT;

-- Holds meters against change and deletion until the commit, and reads them as they are then: what was committed
-- while waiting for the lock is seen, because each statement of a volatile function sees the database anew.
CREATE FUNCTION hold_meters(class INTEGER, ids BIGINT[])
RETURNS TABLE (stamp BIGINT, now BIGINT, id BIGINT, public_id TEXT, version INTEGER, has_alerts BOOLEAN, workspace_id BIGINT,
               assignment_version BIGINT)
LANGUAGE plpgsql VOLATILE AS $$
DECLARE
    wanted BIGINT;
    here BIGINT := database_stamp();
BEGIN
    FOREACH wanted IN ARRAY ids LOOP
        PERFORM pg_advisory_xact_lock_shared(class, (wanted % 2147483647)::int);
    END LOOP;
    -- one by one, because a statement about all of them is planned anew each time: a tenth of a small commit;
    -- the database's clock, because the time of a decision is the time after the wait for the meter
    FOREACH wanted IN ARRAY ids LOOP
        RETURN QUERY SELECT here, (extract(epoch FROM clock_timestamp()) * 1000000)::bigint, m.id, m.public_id, m.version, m.has_alerts, w.id, w.assignment_version
                     FROM meters m JOIN workspaces w ON w.id = m.workspace_id WHERE m.id = wanted;
    END LOOP;
END
$$;

-- Sums of all events of a meter per hour and day.
CREATE TABLE rollups (
    meter_id BIGINT NOT NULL,
    -- 1 = UTC hour, 2 = UTC day
    grain SMALLINT NOT NULL,
    start BIGINT NOT NULL,
    -- writers that share a row would wait for each other's commit: each has its own; readers add them up
    lane SMALLINT NOT NULL,
    event_count BIGINT NOT NULL,
    quantity_sum NUMERIC NOT NULL,
    quantity_min NUMERIC NOT NULL,
    quantity_max NUMERIC NOT NULL,
    first_at BIGINT NOT NULL,
    first_id BYTEA NOT NULL,
    first_quantity NUMERIC NOT NULL,
    last_at BIGINT NOT NULL,
    last_id BYTEA NOT NULL,
    last_quantity NUMERIC NOT NULL,
    PRIMARY KEY (meter_id, grain, start, lane)
) WITH (fillfactor = 80);

-- What each commit added to a meter, packed (src/metering/delta.rs). Folding puts cells into rollup_facets and leaves one
-- row for many; settling puts the rest into rollup_subjects and subjects, and deletes the row. Readers add all up.
CREATE TABLE rollup_deltas (
    meter_id BIGINT NOT NULL,
    id BIGINT NOT NULL,
    -- per quarter of an hour and dimension set; absent once they are folded
    cells BYTEA,
    -- per subject, quarter of an hour and dimension set
    subjects BYTEA NOT NULL,
    -- events of each subject; negative for events that were pruned
    counts BYTEA NOT NULL,
    PRIMARY KEY (meter_id, id)
);
-- they live for a minute: compressing them costs more than their bytes
ALTER TABLE rollup_deltas ALTER COLUMN cells SET STORAGE EXTERNAL, ALTER COLUMN subjects SET STORAGE EXTERNAL,
    ALTER COLUMN counts SET STORAGE EXTERNAL;

-- Sums of all events of a meter and UTC day by some of its dimensions, packed the same way.
CREATE TABLE rollup_facets (
    meter_id BIGINT NOT NULL,
    -- the dimensions, joined by commas; * stands for all, nothing for none
    facet TEXT COLLATE "C" NOT NULL,
    day BIGINT NOT NULL,
    -- of *: the day has so few sums that it has no other row
    is_alone BOOLEAN NOT NULL,
    -- the sums of the whole day, of its hours and of their quarters; absent where there are too many to keep
    day_cells BYTEA,
    hour_cells BYTEA,
    quarter_cells BYTEA,
    PRIMARY KEY (meter_id, facet, day)
);

-- What a subject used of a meter in a period of thirty days, packed by quarter of an hour and dimension set. Several rows
-- of one key but for the last column are added up; settling keeps them few by putting small ones together.
CREATE TABLE rollup_subjects (
    meter_id BIGINT NOT NULL,
    period BIGINT NOT NULL,
    subject_id BIGINT NOT NULL,
    id BIGINT NOT NULL,
    -- of the first and the last of its sums
    first_start BIGINT NOT NULL,
    last_start BIGINT NOT NULL,
    cell_count BIGINT NOT NULL,
    -- the same by day, where that is much less, and by day and each of those dimensions where it is: ";region;" is by region
    days BYTEA,
    day_facets TEXT,
    facet_days BYTEA,
    cells BYTEA NOT NULL,
    PRIMARY KEY (meter_id, period, subject_id, id)
);

-- What was answered to a bulk call with an Idempotency-Key header.
CREATE TABLE bulk_replays (
    workspace_id BIGINT NOT NULL,
    key BYTEA NOT NULL,
    -- JSON: the accepted and duplicate items as they were answered
    accepted TEXT NOT NULL,
    duplicates TEXT NOT NULL,
    -- a hash of the events, to notice a key used again for others
    payload BIGINT NOT NULL,
    created_at BIGINT NOT NULL,
    PRIMARY KEY (workspace_id, key)
);
CREATE INDEX bulk_replays_age ON bulk_replays (created_at);

CREATE TABLE ingestion_runs (
    workspace_id BIGINT NOT NULL,
    -- UUIDv7: newest last
    id BYTEA NOT NULL,
    kind TEXT NOT NULL CONSTRAINT ingestion_runs_kind_check CHECK (kind IN ('single', 'bulk', 'stream')),
    accepted BIGINT NOT NULL,
    duplicates BIGINT NOT NULL,
    failed BIGINT NOT NULL,
    created_at BIGINT NOT NULL,
    -- what the sender called the request; NULL where the server did, by the id of the run
    request_id TEXT,
    api_key_id TEXT,
    -- from reading the events to writing them, or those of the last part of a stream
    duration BIGINT,
    PRIMARY KEY (workspace_id, id)
);

-- What may be consumed ----------------------------------------------------------------------------

-- One row per version of a plan; a version never changes but for losing is_current. Limits and percentages here and
-- in the tables about entitlements are exact decimals as text: nothing computes with them in SQL.
CREATE TABLE plans (
    id BIGINT PRIMARY KEY,
    public_id TEXT NOT NULL CONSTRAINT plans_public_id_key UNIQUE,
    workspace_id BIGINT NOT NULL REFERENCES workspaces (id) ON DELETE CASCADE,
    name TEXT COLLATE "C" NOT NULL,
    description TEXT NOT NULL,
    version INTEGER NOT NULL,
    -- public id of the version before
    parent_id TEXT,
    is_current BOOLEAN NOT NULL,
    created_at BIGINT NOT NULL,
    updated_at BIGINT NOT NULL
);
CREATE UNIQUE INDEX plans_current_name_key ON plans (workspace_id, name) WHERE is_current;

CREATE TABLE plan_limits (
    public_id TEXT PRIMARY KEY,
    plan_id BIGINT NOT NULL REFERENCES plans (id) ON DELETE CASCADE,
    meter_id BIGINT NOT NULL REFERENCES meters (id),
    -- in words: month, calendar week Europe/Berlin sunday, month from 2026-01-31T00:00:00Z, sliding 1h
    period TEXT NOT NULL CONSTRAINT plan_limits_period_check CHECK (length(period) BETWEEN 3 AND 160),
    quantity TEXT NOT NULL,
    warning_percent TEXT NOT NULL,
    enforcement TEXT NOT NULL CONSTRAINT plan_limits_enforcement_check CHECK (enforcement IN ('advisory', 'hard')),
    failure_policy TEXT NOT NULL CONSTRAINT plan_limits_failure_policy_check CHECK (failure_policy IN ('fail_open', 'fail_closed')),
    created_at BIGINT NOT NULL,
    CONSTRAINT plan_limits_plan_meter_period_key UNIQUE (plan_id, meter_id, period)
);
CREATE INDEX plan_limits_meter ON plan_limits (meter_id);

-- Which plan a subject has, and when. Every change grows workspaces.assignment_version.
CREATE TABLE plan_assignments (
    id BIGINT NOT NULL,
    public_id TEXT NOT NULL,
    workspace_id BIGINT NOT NULL REFERENCES workspaces (id) ON DELETE CASCADE,
    subject_id BIGINT NOT NULL,
    plan_id BIGINT NOT NULL,
    starts_at BIGINT NOT NULL,
    -- not after starts_at when it was canceled before it began
    ends_at BIGINT,
    -- periods are counted from here
    anchor BIGINT NOT NULL,
    -- where days begin for limits with a calendar that names no zone
    time_zone TEXT NOT NULL DEFAULT 'UTC',
    updated_at BIGINT NOT NULL,
    PRIMARY KEY (subject_id, id)
);
CREATE INDEX plan_assignments_subject ON plan_assignments (subject_id, starts_at);
CREATE INDEX plan_assignments_recent ON plan_assignments (workspace_id, updated_at);
CREATE INDEX plan_assignments_plan ON plan_assignments (plan_id, id);

-- Sums of the events of an assigned subject per day since its anchor, for the periods that are a whole number of such days,
-- and per cell of another series, for limits with a calendar and those that slide. Two series are never added up.
CREATE TABLE quota_counters (
    subject_id BIGINT NOT NULL,
    meter_id BIGINT NOT NULL,
    anchor BIGINT NOT NULL,
    -- empty: days since the anchor
    series TEXT COLLATE "C" NOT NULL,
    day_start BIGINT NOT NULL,
    event_count BIGINT NOT NULL,
    quantity_sum NUMERIC NOT NULL,
    quantity_min NUMERIC NOT NULL,
    quantity_max NUMERIC NOT NULL,
    first_at BIGINT NOT NULL,
    first_id BYTEA NOT NULL,
    first_quantity NUMERIC NOT NULL,
    last_at BIGINT NOT NULL,
    last_id BYTEA NOT NULL,
    last_quantity NUMERIC NOT NULL,
    PRIMARY KEY (subject_id, meter_id, anchor, series, day_start)
) WITH (fillfactor = 80);

-- Where a subject stands with a limit, as last evaluated; outlives plan versions, so that they repeat no events.
CREATE TABLE entitlement_states (
    subject_id BIGINT NOT NULL,
    meter_id BIGINT NOT NULL,
    period TEXT NOT NULL,
    workspace_id BIGINT NOT NULL,
    plan_id BIGINT NOT NULL,
    state TEXT NOT NULL,
    current_value TEXT NOT NULL,
    limit_value TEXT NOT NULL,
    warning_percent TEXT NOT NULL,
    evaluated_at BIGINT NOT NULL,
    updated_at BIGINT NOT NULL,
    PRIMARY KEY (subject_id, meter_id, period)
);
CREATE INDEX entitlement_states_recent ON entitlement_states (workspace_id, updated_at);
CREATE INDEX entitlement_states_plan ON entitlement_states (plan_id);
-- counted for pages without a look at the rows
CREATE INDEX entitlement_states_counted ON entitlement_states (workspace_id, plan_id, state);

CREATE TABLE entitlement_events (
    id TEXT NOT NULL,
    workspace_id BIGINT NOT NULL,
    subject_id BIGINT NOT NULL,
    meter_id BIGINT NOT NULL,
    plan_id BIGINT NOT NULL,
    period TEXT NOT NULL,
    previous_state TEXT,
    state TEXT NOT NULL,
    kind TEXT NOT NULL,
    current_value TEXT NOT NULL,
    limit_value TEXT NOT NULL,
    warning_percent TEXT NOT NULL,
    created_at BIGINT NOT NULL,
    PRIMARY KEY (subject_id, id)
);
CREATE INDEX entitlement_events_recent ON entitlement_events (workspace_id, created_at, id);
CREATE INDEX entitlement_events_plan ON entitlement_events (plan_id);

-- What each period came to, under the plan that was in force last in it.
CREATE TABLE entitlement_periods (
    subject_id BIGINT NOT NULL,
    meter_id BIGINT NOT NULL,
    period TEXT NOT NULL,
    starts_at BIGINT NOT NULL,
    ends_at BIGINT NOT NULL,
    workspace_id BIGINT NOT NULL,
    plan_id BIGINT NOT NULL,
    state TEXT NOT NULL,
    current_value TEXT NOT NULL,
    limit_value TEXT NOT NULL,
    warning_percent TEXT NOT NULL,
    event_count BIGINT NOT NULL,
    updated_at BIGINT NOT NULL,
    PRIMARY KEY (subject_id, meter_id, period, starts_at)
);
CREATE INDEX entitlement_periods_recent ON entitlement_periods (workspace_id, starts_at);
CREATE INDEX entitlement_periods_plan ON entitlement_periods (plan_id);

-- What was answered to POST /v1/entitlements/consume, to be answered again.
CREATE TABLE consumption_decisions (
    workspace_id BIGINT NOT NULL,
    -- as in idempotency_keys
    key BYTEA NOT NULL,
    idempotency_key TEXT COLLATE "C" NOT NULL,
    subject TEXT NOT NULL,
    meter TEXT NOT NULL,
    accepted BOOLEAN NOT NULL,
    evaluation_failed BOOLEAN NOT NULL,
    enforcement TEXT NOT NULL,
    state TEXT NOT NULL,
    event_id BYTEA,
    -- JSON object
    quota TEXT NOT NULL,
    created_at BIGINT NOT NULL,
    -- of the event, canonical JSON object; absent when nothing was stored for this call
    metadata TEXT,
    PRIMARY KEY (workspace_id, key)
);
CREATE INDEX consumption_decisions_recent ON consumption_decisions (workspace_id, created_at, idempotency_key);

-- What was done about it --------------------------------------------------------------------------

CREATE TABLE prune_runs (
    workspace_id BIGINT NOT NULL REFERENCES workspaces (id) ON DELETE CASCADE,
    -- UUIDv7: newest last
    id BYTEA NOT NULL,
    deleted BIGINT NOT NULL,
    dry_run BOOLEAN NOT NULL,
    -- JSON list: meter, cut-off, events deleted
    meters TEXT NOT NULL,
    created_at BIGINT NOT NULL,
    PRIMARY KEY (workspace_id, id)
);

-- One row per workspace whose outdated consumption decisions were deleted in one go.
CREATE TABLE decision_prune_runs (
    id TEXT PRIMARY KEY,
    workspace_id BIGINT NOT NULL REFERENCES workspaces (id) ON DELETE CASCADE,
    decided_before BIGINT NOT NULL,
    deleted BIGINT NOT NULL,
    created_at BIGINT NOT NULL
);
CREATE INDEX decision_prune_runs_workspace ON decision_prune_runs (workspace_id, created_at);

-- Events that were turned away so far; servers add to it every few seconds.
CREATE TABLE ingestion_refusals (
    workspace_id BIGINT PRIMARY KEY REFERENCES workspaces (id) ON DELETE CASCADE,
    rejected_events BIGINT NOT NULL,
    throttled_events BIGINT NOT NULL
);

-- Events that were refused, and keys used again for something else: what a person asks about. Few per workspace, and for
-- days only; written beside the events, so that a killed server may lose the last seconds.
CREATE TABLE refused_events (
    workspace_id BIGINT NOT NULL REFERENCES workspaces (id) ON DELETE CASCADE,
    -- UUIDv7: newest last
    id BYTEA NOT NULL,
    outcome TEXT NOT NULL CONSTRAINT refused_events_outcome_check CHECK (outcome IN ('rejected', 'conflict')),
    code TEXT NOT NULL,
    message TEXT NOT NULL,
    subject TEXT NOT NULL,
    meter TEXT NOT NULL,
    idempotency_key TEXT,
    -- the write call that it came with
    run_id BYTEA NOT NULL,
    -- of a conflict: what was sent and what was stored under the key, JSON
    sent TEXT,
    stored TEXT,
    created_at BIGINT NOT NULL,
    request_id TEXT,
    api_key_id TEXT,
    field TEXT,
    door TEXT NOT NULL,
    -- what was sent, cut
    payload TEXT,
    PRIMARY KEY (workspace_id, id)
);
CREATE INDEX refused_events_time ON refused_events (created_at);

-- Work that one process does at a time; whoever finds a lease expired takes it over.
CREATE TABLE leases (
    name TEXT PRIMARY KEY,
    holder TEXT NOT NULL,
    expires_at BIGINT NOT NULL
);

-- What an operator relies on: when it ended well last, and what it found (src/jobs/sql.rs).
CREATE TABLE chores (
    -- backup, self_check
    name TEXT PRIMARY KEY,
    done_at BIGINT NOT NULL,
    -- differences of a check; 0 where there is nothing to find
    findings BIGINT NOT NULL
);

-- What people keep --------------------------------------------------------------------------------

CREATE TABLE saved_queries (
    id TEXT PRIMARY KEY,
    user_id BIGINT NOT NULL REFERENCES users (id) ON DELETE CASCADE,
    name TEXT NOT NULL,
    -- JSON object
    query TEXT NOT NULL,
    -- JSON list of strings
    group_by TEXT NOT NULL,
    bucket_size TEXT NOT NULL,
    row_limit BIGINT NOT NULL,
    pinned BOOLEAN NOT NULL,
    position BIGINT NOT NULL,
    created_at BIGINT NOT NULL,
    updated_at BIGINT NOT NULL,
    -- the workspace whose members see it too; its number alone, because the query is its user's
    shared_in BIGINT,
    CONSTRAINT saved_queries_user_name_key UNIQUE (user_id, name)
);
CREATE INDEX saved_queries_shared ON saved_queries (shared_in) WHERE shared_in IS NOT NULL;

-- Views of the dashboard whose addresses are too long to be handed on, by the hash of their parameters.
CREATE TABLE stored_queries (
    workspace_id BIGINT NOT NULL REFERENCES workspaces (id) ON DELETE CASCADE,
    hash TEXT NOT NULL,
    -- as in the address
    query TEXT NOT NULL,
    created_at BIGINT NOT NULL,
    -- to the day
    used_at BIGINT NOT NULL,
    PRIMARY KEY (workspace_id, hash)
);
CREATE INDEX stored_queries_used ON stored_queries (used_at);

-- Background work ---------------------------------------------------------------------------------

-- What is to be done, at most one row per queue and key. Claimed with a lease; deleted when done.
CREATE TABLE jobs (
    queue TEXT NOT NULL,
    key TEXT NOT NULL,
    workspace_id BIGINT NOT NULL,
    -- JSON, as the queue's worker understands it
    payload TEXT NOT NULL,
    -- grows with every enqueue: a job that was asked for again while it ran is run again
    generation BIGINT NOT NULL,
    run_after BIGINT NOT NULL,
    -- when run_after was chosen: a time ahead means that the clock was set back since
    scheduled_at BIGINT NOT NULL DEFAULT 0,
    attempts INTEGER NOT NULL,
    lease_token BYTEA,
    -- the same of leased_until
    leased_at BIGINT,
    leased_until BIGINT,
    -- its lease was taken from a holder whose time had ended, for the metrics
    taken_over BOOLEAN NOT NULL DEFAULT false,
    last_error TEXT,
    created_at BIGINT NOT NULL,
    PRIMARY KEY (queue, key)
);
CREATE INDEX jobs_due ON jobs (queue, run_after);
-- for workspaces that take turns
CREATE INDEX jobs_turns ON jobs (queue, workspace_id, run_after);

-- Jobs that used up their attempts.
CREATE TABLE dead_letters (
    id TEXT PRIMARY KEY,
    workspace_id BIGINT NOT NULL,
    queue TEXT NOT NULL,
    key TEXT NOT NULL,
    payload TEXT NOT NULL,
    attempts INTEGER NOT NULL,
    last_error TEXT NOT NULL,
    created_at BIGINT NOT NULL,
    requeued_at BIGINT
);
CREATE INDEX dead_letters_workspace ON dead_letters (workspace_id, created_at);

-- One row per running worker, renewed every few seconds.
CREATE TABLE worker_instances (
    instance_id TEXT NOT NULL,
    worker TEXT NOT NULL,
    started_at BIGINT NOT NULL,
    last_heartbeat_at BIGINT NOT NULL,
    last_success_at BIGINT,
    last_failure_at BIGINT,
    PRIMARY KEY (worker, instance_id)
);

-- Queued exports: what was asked, how far it is, and what came of it. The work itself is a row in jobs.
CREATE TABLE export_jobs (
    id TEXT PRIMARY KEY,
    workspace_id BIGINT NOT NULL REFERENCES workspaces (id) ON DELETE CASCADE,
    kind TEXT NOT NULL CONSTRAINT export_jobs_kind_check CHECK (kind IN ('usage_buckets', 'usage_events')),
    status TEXT NOT NULL CONSTRAINT export_jobs_status_check
        CHECK (status IN ('queued', 'running', 'completed', 'failed', 'canceled')),
    -- JSON, as it was asked
    query TEXT NOT NULL,
    error TEXT,
    -- written so far, without the header
    row_count BIGINT NOT NULL,
    artifact_size BIGINT,
    -- SHA-256 in hexadecimal
    artifact_hash TEXT,
    created_at BIGINT NOT NULL,
    updated_at BIGINT NOT NULL,
    completed_at BIGINT,
    -- when the artifact was removed
    expired_at BIGINT
);
CREATE INDEX export_jobs_workspace ON export_jobs (workspace_id, created_at, id);
CREATE INDEX export_jobs_expiry ON export_jobs (completed_at) WHERE status = 'completed' AND expired_at IS NULL;
CREATE INDEX export_jobs_expired ON export_jobs (expired_at) WHERE status = 'completed' AND expired_at IS NOT NULL;

-- One row per workspace whose expired exports were removed in one go.
CREATE TABLE export_cleanup_runs (
    id TEXT PRIMARY KEY,
    workspace_id BIGINT NOT NULL REFERENCES workspaces (id) ON DELETE CASCADE,
    expired_before BIGINT NOT NULL,
    files_deleted BIGINT NOT NULL,
    bytes_reclaimed BIGINT NOT NULL,
    failures BIGINT NOT NULL,
    created_at BIGINT NOT NULL
);
CREATE INDEX export_cleanup_runs_workspace ON export_cleanup_runs (workspace_id, created_at);
-- Alerts and webhooks -----------------------------------------------------------------------------

CREATE TABLE alert_destinations (
    id BIGINT GENERATED BY DEFAULT AS IDENTITY PRIMARY KEY,
    public_id TEXT NOT NULL CONSTRAINT alert_destinations_public_id_key UNIQUE,
    workspace_id BIGINT NOT NULL REFERENCES workspaces (id) ON DELETE CASCADE,
    name TEXT NOT NULL,
    enabled BOOLEAN NOT NULL,
    webhook_url TEXT NOT NULL,
    secret TEXT NOT NULL,
    -- after a rotation both secrets sign until this instant
    previous_secret TEXT,
    previous_until BIGINT,
    created_at BIGINT NOT NULL,
    updated_at BIGINT NOT NULL
);
CREATE INDEX alert_destinations_workspace ON alert_destinations (workspace_id, id);

CREATE TABLE alert_rules (
    id BIGINT GENERATED BY DEFAULT AS IDENTITY PRIMARY KEY,
    public_id TEXT NOT NULL CONSTRAINT alert_rules_public_id_key UNIQUE,
    workspace_id BIGINT NOT NULL REFERENCES workspaces (id) ON DELETE CASCADE,
    meter_id BIGINT NOT NULL CONSTRAINT alert_rules_meter_fkey REFERENCES meters (id),
    destination_id BIGINT NOT NULL CONSTRAINT alert_rules_destination_fkey REFERENCES alert_destinations (id),
    name TEXT NOT NULL,
    enabled BOOLEAN NOT NULL,
    subject TEXT,
    -- JSON object of strings
    metadata TEXT NOT NULL,
    window_seconds BIGINT NOT NULL,
    -- windows of a calendar in words, as in plan_limits; instead of the last so many seconds
    period TEXT,
    comparator TEXT NOT NULL,
    -- decimal text
    threshold TEXT NOT NULL,
    evaluation_interval_seconds BIGINT NOT NULL,
    group_by TEXT,
    next_evaluate_at BIGINT NOT NULL,
    evaluated_at BIGINT,
    -- until then nobody is told what happens
    snoozed_until BIGINT,
    -- grows with every change and every evaluation: what was computed from an older one is not written
    revision BIGINT NOT NULL,
    created_at BIGINT NOT NULL,
    updated_at BIGINT NOT NULL
);
CREATE INDEX alert_rules_workspace ON alert_rules (workspace_id, id);
CREATE INDEX alert_rules_meter ON alert_rules (meter_id, id);
CREATE INDEX alert_rules_destination ON alert_rules (destination_id);

-- How a rule stands: one row, or one per group.
CREATE TABLE alert_states (
    rule_id BIGINT NOT NULL REFERENCES alert_rules (id) ON DELETE CASCADE,
    -- both empty without grouping
    group_key TEXT NOT NULL,
    group_value TEXT NOT NULL,
    status TEXT NOT NULL CONSTRAINT alert_states_status_check CHECK (status IN ('ok', 'alerting', 'no_data', 'error')),
    -- triggered and not yet resolved, also while evaluation fails
    firing BOOLEAN NOT NULL,
    value TEXT NOT NULL,
    message TEXT NOT NULL,
    updated_at BIGINT NOT NULL,
    PRIMARY KEY (rule_id, group_key, group_value)
);

CREATE TABLE alert_events (
    id BIGINT GENERATED BY DEFAULT AS IDENTITY PRIMARY KEY,
    public_id TEXT NOT NULL CONSTRAINT alert_events_public_id_key UNIQUE,
    workspace_id BIGINT NOT NULL,
    rule_id BIGINT NOT NULL REFERENCES alert_rules (id) ON DELETE CASCADE,
    rule_public_id TEXT NOT NULL,
    group_key TEXT NOT NULL,
    group_value TEXT NOT NULL,
    kind TEXT NOT NULL CONSTRAINT alert_events_kind_check CHECK (kind IN ('triggered', 'resolved', 'evaluation_failed')),
    value TEXT NOT NULL,
    message TEXT NOT NULL,
    created_at BIGINT NOT NULL
);
CREATE INDEX alert_events_workspace ON alert_events (workspace_id, id);
CREATE INDEX alert_events_rule ON alert_events (rule_id, id);

-- What is to be sent, written with the event. Outlives its rule, so that what was promised is still delivered.
CREATE TABLE alert_deliveries (
    id BIGINT GENERATED BY DEFAULT AS IDENTITY PRIMARY KEY,
    public_id TEXT NOT NULL CONSTRAINT alert_deliveries_public_id_key UNIQUE,
    workspace_id BIGINT NOT NULL,
    rule_id BIGINT NOT NULL,
    -- public ids, as clients and receivers know them
    event_id TEXT NOT NULL CONSTRAINT alert_deliveries_event_id_key UNIQUE,
    destination_id TEXT NOT NULL,
    -- the group of the rule that it tells of; deliveries with the same key are sent one after another
    ordering_key TEXT NOT NULL DEFAULT '',
    -- the body as it is sent
    payload TEXT NOT NULL,
    status TEXT NOT NULL CONSTRAINT alert_deliveries_status_check CHECK (status IN ('pending', 'delivered', 'dead_letter')),
    attempts INTEGER NOT NULL,
    next_attempt_at BIGINT NOT NULL,
    last_error TEXT,
    created_at BIGINT NOT NULL,
    updated_at BIGINT NOT NULL,
    delivered_at BIGINT
);
CREATE INDEX alert_deliveries_workspace ON alert_deliveries (workspace_id, id);
-- for the clean-up of history
CREATE INDEX alert_deliveries_delivered ON alert_deliveries (delivered_at) WHERE status = 'delivered';
CREATE INDEX alert_deliveries_pending ON alert_deliveries (rule_id, ordering_key, id) WHERE status = 'pending';
-- for what is owed
CREATE INDEX alert_deliveries_owed ON alert_deliveries (workspace_id, status, id) WHERE status <> 'delivered';

CREATE TABLE alert_attempts (
    id BIGINT GENERATED BY DEFAULT AS IDENTITY PRIMARY KEY,
    public_id TEXT NOT NULL,
    delivery_id BIGINT NOT NULL REFERENCES alert_deliveries (id) ON DELETE CASCADE,
    event_id TEXT NOT NULL,
    status TEXT NOT NULL CONSTRAINT alert_attempts_status_check CHECK (status IN ('delivered', 'failed')),
    status_code INTEGER,
    error TEXT,
    -- the beginning of what the receiver answered
    response TEXT,
    duration_ms BIGINT NOT NULL,
    attempted_at BIGINT NOT NULL
);
CREATE INDEX alert_attempts_event ON alert_attempts (event_id, id);
CREATE INDEX alert_attempts_delivery ON alert_attempts (delivery_id);
