-- Times are microseconds since 1970-01-01 UTC. Quantities are blobs that sort like the numbers they hold
-- (src/quantity.rs). Ids on the wire are UUIDs; hot tables use the integer ids.

-- One row: which installation this is.
CREATE TABLE installation (
    id TEXT NOT NULL PRIMARY KEY,
    epoch INTEGER NOT NULL,
    -- PostgreSQL's; empty here
    timeline TEXT NOT NULL
) STRICT;
INSERT INTO installation VALUES (lower(hex(randomblob(16))), 1, '');

-- Who ---------------------------------------------------------------------------------------------

CREATE TABLE workspaces (
    id INTEGER PRIMARY KEY,
    public_id TEXT NOT NULL CONSTRAINT workspaces_public_id_key UNIQUE,
    name TEXT NOT NULL,
    -- of the IANA database: where days and months begin that nobody names a zone for
    time_zone TEXT NOT NULL DEFAULT 'UTC',
    -- grows with every assignment of a plan, so that writers know when to read them again
    assignment_version INTEGER NOT NULL DEFAULT 0,
    -- answer: with the event that first used the key; refuse: with an error
    key_conflicts TEXT NOT NULL DEFAULT 'answer'
        CONSTRAINT workspaces_key_conflicts_check CHECK (key_conflicts IN ('answer', 'refuse')),
    created_at INTEGER NOT NULL
) STRICT;

CREATE TABLE users (
    id INTEGER PRIMARY KEY,
    public_id TEXT NOT NULL CONSTRAINT users_public_id_key UNIQUE,
    email TEXT NOT NULL CONSTRAINT users_email_key UNIQUE,
    -- empty for users who only sign in through a provider
    password_hash TEXT NOT NULL,
    created_at INTEGER NOT NULL,
    -- when the address was proven to be theirs, by mail or by a provider
    email_verified_at INTEGER,
    -- nobody comes in as them, and their keys open nothing
    disabled_at INTEGER,
    -- failed sign-ins from before this do not count any more
    unlocked_at INTEGER
) STRICT;

CREATE TABLE memberships (
    workspace_id INTEGER NOT NULL REFERENCES workspaces (id) ON DELETE CASCADE,
    user_id INTEGER NOT NULL REFERENCES users (id) ON DELETE CASCADE,
    role TEXT NOT NULL CONSTRAINT memberships_role_check CHECK (role IN ('owner', 'admin', 'viewer')),
    created_at INTEGER NOT NULL,
    PRIMARY KEY (workspace_id, user_id)
) STRICT, WITHOUT ROWID;
CREATE INDEX memberships_user ON memberships (user_id);

CREATE TABLE sessions (
    token_hash BLOB PRIMARY KEY,
    kind TEXT NOT NULL CONSTRAINT sessions_kind_check CHECK (kind IN ('access', 'refresh')),
    -- one sign-in and everything refreshed from it: ends as a whole
    login_id TEXT NOT NULL,
    -- signs the forms of the dashboard; the same for the whole sign-in
    form_key BLOB NOT NULL,
    user_id INTEGER NOT NULL REFERENCES users (id) ON DELETE CASCADE,
    workspace_id INTEGER NOT NULL REFERENCES workspaces (id) ON DELETE CASCADE,
    expires_at INTEGER NOT NULL,
    created_at INTEGER NOT NULL,
    -- of a refresh token: when it was first used up
    used_at INTEGER
) STRICT, WITHOUT ROWID;
CREATE INDEX sessions_expiry ON sessions (expires_at);
CREATE INDEX sessions_login ON sessions (login_id);

-- One sign-in and everything refreshed from it. Texts are those of whoever signed in.
CREATE TABLE sign_ins (
    login_id TEXT NOT NULL PRIMARY KEY,
    user_id INTEGER NOT NULL REFERENCES users (id) ON DELETE CASCADE,
    workspace_id INTEGER NOT NULL REFERENCES workspaces (id) ON DELETE CASCADE,
    address TEXT NOT NULL,
    user_agent TEXT NOT NULL,
    created_at INTEGER NOT NULL,
    seen_at INTEGER NOT NULL,
    -- for good, however often it was refreshed
    ends_at INTEGER NOT NULL
) STRICT;
CREATE INDEX sign_ins_user ON sign_ins (user_id);
CREATE INDEX sign_ins_end ON sign_ins (ends_at);

CREATE TABLE password_resets (
    token_hash BLOB NOT NULL PRIMARY KEY,
    user_id INTEGER NOT NULL REFERENCES users (id) ON DELETE CASCADE,
    expires_at INTEGER NOT NULL,
    -- whoever shows it reads the mail of the user
    by_mail INTEGER NOT NULL DEFAULT 0
) STRICT;
CREATE INDEX password_resets_user ON password_resets (user_id);

CREATE TABLE identities (
    id INTEGER PRIMARY KEY,
    public_id TEXT NOT NULL CONSTRAINT identities_public_id_key UNIQUE,
    user_id INTEGER NOT NULL REFERENCES users (id) ON DELETE CASCADE,
    provider TEXT NOT NULL,
    issuer TEXT NOT NULL,
    subject TEXT NOT NULL,
    -- what the provider said when it was connected
    email TEXT NOT NULL,
    created_at INTEGER NOT NULL,
    CONSTRAINT identities_subject_key UNIQUE (issuer, subject)
) STRICT;
CREATE INDEX identities_user ON identities (user_id);

CREATE TABLE provider_flows (
    state_hash BLOB NOT NULL PRIMARY KEY,
    provider TEXT NOT NULL,
    nonce TEXT NOT NULL,
    -- what proves to the provider that the code is ours (RFC 7636)
    verifier TEXT NOT NULL,
    redirect_url TEXT NOT NULL,
    -- where the browser goes in the end
    next TEXT NOT NULL,
    -- whose account it is connected to, when somebody who is signed in began it
    user_id INTEGER REFERENCES users (id) ON DELETE CASCADE,
    expires_at INTEGER NOT NULL
) STRICT;
CREATE INDEX provider_flows_expiry ON provider_flows (expires_at);

CREATE TABLE known_devices (
    token_hash BLOB NOT NULL PRIMARY KEY,
    user_id INTEGER NOT NULL REFERENCES users (id) ON DELETE CASCADE,
    seen_at INTEGER NOT NULL
) STRICT;
CREATE INDEX known_devices_user ON known_devices (user_id, seen_at);
CREATE INDEX known_devices_seen ON known_devices (seen_at);

-- How somebody wants to see the pages; what is null is nobody's choice.
CREATE TABLE user_preferences (
    user_id INTEGER NOT NULL PRIMARY KEY REFERENCES users (id) ON DELETE CASCADE,
    time_zone TEXT,
    week_start TEXT CONSTRAINT user_preferences_week_start_check CHECK (week_start IN ('monday', 'sunday')),
    theme TEXT CONSTRAINT user_preferences_theme_check CHECK (theme IN ('system', 'light', 'dark')),
    density TEXT CONSTRAINT user_preferences_density_check CHECK (density IN ('comfortable', 'compact')),
    default_range TEXT,
    -- single keys on the keyboard
    shortcuts TEXT CONSTRAINT user_preferences_shortcuts_check CHECK (shortcuts IN ('on', 'off')),
    updated_at INTEGER NOT NULL
) STRICT;

CREATE TABLE api_keys (
    id INTEGER PRIMARY KEY,
    public_id TEXT NOT NULL CONSTRAINT api_keys_public_id_key UNIQUE,
    workspace_id INTEGER NOT NULL REFERENCES workspaces (id) ON DELETE CASCADE,
    user_id INTEGER NOT NULL REFERENCES users (id) ON DELETE CASCADE,
    name TEXT NOT NULL,
    token_hash BLOB NOT NULL CONSTRAINT api_keys_token_hash_key UNIQUE,
    prefix TEXT NOT NULL,
    -- JSON lists of strings
    scopes TEXT NOT NULL,
    allowed_meters TEXT NOT NULL,
    -- JSON list of networks; empty: from everywhere
    allowed_networks TEXT NOT NULL DEFAULT '[]',
    expires_at INTEGER,
    -- in the future while a rotated key is in its grace period
    revoked_at INTEGER,
    created_at INTEGER NOT NULL,
    last_used_at INTEGER
) STRICT;
CREATE INDEX api_keys_owner ON api_keys (workspace_id, user_id);

CREATE TABLE api_key_events (
    id TEXT PRIMARY KEY,
    workspace_id INTEGER NOT NULL REFERENCES workspaces (id) ON DELETE CASCADE,
    user_id INTEGER NOT NULL REFERENCES users (id) ON DELETE CASCADE,
    api_key_id TEXT NOT NULL,
    key_name TEXT NOT NULL,
    key_prefix TEXT NOT NULL,
    event_type TEXT NOT NULL CONSTRAINT api_key_events_type_check CHECK (event_type IN ('created', 'rotated', 'revoked')),
    related_api_key_id TEXT,
    effective_at INTEGER,
    created_at INTEGER NOT NULL
) STRICT;
CREATE INDEX api_key_events_owner ON api_key_events (workspace_id, user_id, created_at);

-- Who is asked to join a workspace. What became of it is told by its times, the first that holds: accepted, revoked,
-- expired.
CREATE TABLE invitations (
    id INTEGER PRIMARY KEY,
    public_id TEXT NOT NULL CONSTRAINT invitations_public_id_key UNIQUE,
    workspace_id INTEGER NOT NULL REFERENCES workspaces (id) ON DELETE CASCADE,
    email TEXT NOT NULL,
    role TEXT NOT NULL CONSTRAINT invitations_role_check CHECK (role IN ('admin', 'viewer')),
    token_hash BLOB NOT NULL CONSTRAINT invitations_token_hash_key UNIQUE,
    invited_by INTEGER NOT NULL REFERENCES users (id) ON DELETE CASCADE,
    expires_at INTEGER NOT NULL,
    accepted_at INTEGER,
    revoked_at INTEGER,
    created_at INTEGER NOT NULL
) STRICT;
CREATE INDEX invitations_workspace ON invitations (workspace_id, created_at);
CREATE INDEX invitations_expiry ON invitations (expires_at);
CREATE UNIQUE INDEX invitations_open ON invitations (workspace_id, email) WHERE accepted_at IS NULL AND revoked_at IS NULL;

-- Links with which a customer sees the usage of one subject.
CREATE TABLE subject_links (
    id INTEGER PRIMARY KEY,
    public_id TEXT NOT NULL CONSTRAINT subject_links_public_id_key UNIQUE,
    workspace_id INTEGER NOT NULL REFERENCES workspaces (id) ON DELETE CASCADE,
    subject TEXT NOT NULL,
    -- JSON lists of strings
    meters TEXT NOT NULL,
    origins TEXT NOT NULL,
    token_hash BLOB NOT NULL CONSTRAINT subject_links_token_hash_key UNIQUE,
    created_by INTEGER NOT NULL REFERENCES users (id) ON DELETE CASCADE,
    expires_at INTEGER NOT NULL,
    revoked_at INTEGER,
    created_at INTEGER NOT NULL,
    last_used_at INTEGER
) STRICT;
CREATE INDEX subject_links_subject ON subject_links (workspace_id, subject, created_at);
CREATE INDEX subject_links_expiry ON subject_links (expires_at);
CREATE INDEX subject_links_revoked ON subject_links (revoked_at) WHERE revoked_at IS NOT NULL;

-- Who changed what: one row per change, never changed; a chain of hashes per workspace, 0 for what belongs to none.
-- Rows outlive what they tell of.
CREATE TABLE audit_heads (
    workspace_id INTEGER PRIMARY KEY,
    sequence INTEGER NOT NULL,
    hash BLOB NOT NULL,
    -- the newest row that was pruned: the chain begins behind it
    pruned_sequence INTEGER NOT NULL,
    pruned_hash BLOB NOT NULL
) STRICT;
CREATE TABLE audit_events (
    workspace_id INTEGER NOT NULL,
    sequence INTEGER NOT NULL,
    id TEXT NOT NULL,
    time INTEGER NOT NULL,
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
    hash BLOB NOT NULL,
    PRIMARY KEY (workspace_id, sequence)
) STRICT;
CREATE TRIGGER audit_events_change BEFORE UPDATE ON audit_events
BEGIN SELECT RAISE(ABORT, 'audit events are never changed'); END;
CREATE TRIGGER audit_events_delete BEFORE DELETE ON audit_events
WHEN OLD.sequence > COALESCE((SELECT pruned_sequence FROM audit_heads WHERE workspace_id = OLD.workspace_id), 0)
BEGIN SELECT RAISE(ABORT, 'audit events are pruned, never deleted'); END;

-- What is measured --------------------------------------------------------------------------------

CREATE TABLE meters (
    id INTEGER PRIMARY KEY,
    public_id TEXT NOT NULL CONSTRAINT meters_public_id_key UNIQUE,
    workspace_id INTEGER NOT NULL REFERENCES workspaces (id) ON DELETE CASCADE,
    name TEXT NOT NULL,
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
    pruned_before INTEGER,
    -- an enabled alert rule watches it: writers ask for its evaluation
    has_alerts INTEGER NOT NULL DEFAULT 0,
    created_at INTEGER NOT NULL,
    CONSTRAINT meters_workspace_name_key UNIQUE (workspace_id, name)
) STRICT;

-- The id is computed from workspace and name (src/usage/subject_ids.rs): no server has to ask for it, and it cannot
-- become another subject's, whatever a failover loses. It alone keeps names apart.
CREATE TABLE subjects (
    id INTEGER PRIMARY KEY,
    workspace_id INTEGER NOT NULL,
    name TEXT NOT NULL,
    -- of its stored events, as far as they are settled (rollup_deltas): when the last one was, and packed by meter how
    -- many there are and when the last one was
    last_event_at INTEGER,
    usage_counts BLOB
) STRICT;
CREATE INDEX subjects_name ON subjects (workspace_id, name);
CREATE INDEX subjects_recent ON subjects (workspace_id, last_event_at DESC, name) WHERE last_event_at IS NOT NULL;

-- One row per distinct combination of declared dimension values of a meter; rollups name it by its hash.
CREATE TABLE dimension_sets (
    meter_id INTEGER NOT NULL,
    hash BLOB NOT NULL,
    -- newest version of the meter that declared a dimension of it: dimensions declared later are not in it
    version INTEGER NOT NULL,
    -- canonical JSON object
    dimensions TEXT NOT NULL,
    PRIMARY KEY (meter_id, hash)
) STRICT, WITHOUT ROWID;

-- What was consumed -------------------------------------------------------------------------------

-- The key ledger: unique here, not in events, so that it outlives retention. Two tables, because in the order of keys
-- each random key changes a page of its own (src/ingest/insert/sqlite/key_ledger.rs).
CREATE TABLE settled_keys (
    workspace_id INTEGER NOT NULL,
    -- the key itself when short (its order keeps inserts local), the number of a UUID, else a prefix and a hash
    key BLOB NOT NULL,
    event_id BLOB NOT NULL,
    subject_id INTEGER NOT NULL,
    event_time INTEGER NOT NULL,
    -- of the payload, to notice a key used again for something else
    fingerprint INTEGER NOT NULL,
    PRIMARY KEY (workspace_id, key)
) STRICT, WITHOUT ROWID;
-- Keys not settled yet, and for a while some that are.
CREATE TABLE recent_keys (
    number INTEGER PRIMARY KEY,
    workspace_id INTEGER NOT NULL,
    key BLOB NOT NULL,
    event_id BLOB NOT NULL,
    subject_id INTEGER NOT NULL,
    event_time INTEGER NOT NULL,
    fingerprint INTEGER NOT NULL
) STRICT;
-- To look for a key here reads all recent ones.
CREATE VIEW idempotency_keys AS
SELECT workspace_id, key, event_id, subject_id, event_time, fingerprint FROM settled_keys
UNION ALL
SELECT workspace_id, key, event_id, subject_id, event_time, fingerprint FROM recent_keys r
WHERE NOT EXISTS (SELECT 1 FROM settled_keys s WHERE s.workspace_id = r.workspace_id AND s.key = r.key);

CREATE TABLE events (
    id BLOB NOT NULL,
    workspace_id INTEGER NOT NULL,
    meter_id INTEGER NOT NULL,
    subject_id INTEGER NOT NULL,
    event_time INTEGER NOT NULL,
    received_at INTEGER NOT NULL,
    meter_version INTEGER NOT NULL,
    quantity BLOB NOT NULL,
    idempotency_key TEXT,
    metadata TEXT,
    -- the UTC hour it is in: ordered by it, events of one time land beside each other, whoever they are of
    hour INTEGER NOT NULL GENERATED ALWAYS AS (event_time - ((event_time % 3600000000) + 3600000000) % 3600000000) VIRTUAL
) STRICT;
CREATE UNIQUE INDEX events_subject_time ON events (hour, subject_id, event_time, id);
CREATE INDEX events_meter_time ON events (meter_id, event_time, id);

-- Sums of all events of a meter per hour and day.
CREATE TABLE rollups (
    meter_id INTEGER NOT NULL,
    -- 1 = UTC hour, 2 = UTC day
    grain INTEGER NOT NULL,
    start INTEGER NOT NULL,
    -- writers that share a row would wait for each other's commit: each has its own; readers add them up
    lane INTEGER NOT NULL,
    event_count INTEGER NOT NULL,
    quantity_sum BLOB NOT NULL,
    quantity_min BLOB NOT NULL,
    quantity_max BLOB NOT NULL,
    first_at INTEGER NOT NULL,
    first_id BLOB NOT NULL,
    first_quantity BLOB NOT NULL,
    last_at INTEGER NOT NULL,
    last_id BLOB NOT NULL,
    last_quantity BLOB NOT NULL,
    PRIMARY KEY (meter_id, grain, start, lane)
) STRICT, WITHOUT ROWID;

-- Rows of this table and the next two are large: WITHOUT ROWID, a search would read every row that it compares as a whole.
-- What each commit added to a meter, packed (src/metering/delta.rs). Folding puts cells into rollup_facets and leaves one
-- row for many; settling puts the rest into rollup_subjects and subjects, and deletes the row. Readers add all up.
CREATE TABLE rollup_deltas (
    meter_id INTEGER NOT NULL,
    id INTEGER NOT NULL,
    -- per quarter of an hour and dimension set; absent once they are folded
    cells BLOB,
    -- per subject, quarter of an hour and dimension set
    subjects BLOB NOT NULL,
    -- events of each subject; negative for events that were pruned
    counts BLOB NOT NULL,
    PRIMARY KEY (meter_id, id)
) STRICT;

-- Sums of all events of a meter and UTC day by some of its dimensions, packed the same way.
CREATE TABLE rollup_facets (
    meter_id INTEGER NOT NULL,
    -- the dimensions, joined by commas; * stands for all, nothing for none
    facet TEXT NOT NULL,
    day INTEGER NOT NULL,
    -- of *: the day has so few sums that it has no other row
    is_alone INTEGER NOT NULL,
    -- the sums of the whole day, of its hours and of their quarters; absent where there are too many to keep
    day_cells BLOB,
    hour_cells BLOB,
    quarter_cells BLOB,
    PRIMARY KEY (meter_id, facet, day)
) STRICT;

-- What a subject used of a meter in a period of thirty days, packed by quarter of an hour and dimension set. Several rows
-- of one key but for the last column are added up; settling keeps them few by putting small ones together.
CREATE TABLE rollup_subjects (
    meter_id INTEGER NOT NULL,
    period INTEGER NOT NULL,
    subject_id INTEGER NOT NULL,
    id INTEGER NOT NULL,
    -- of the first and the last of its sums
    first_start INTEGER NOT NULL,
    last_start INTEGER NOT NULL,
    cell_count INTEGER NOT NULL,
    -- the same by day, where that is much less, and by day and each of those dimensions where it is: ";region;" is by region;
    -- the shortest first: the pages of what comes behind need not be read
    days BLOB,
    day_facets TEXT,
    facet_days BLOB,
    cells BLOB NOT NULL,
    PRIMARY KEY (meter_id, period, subject_id, id)
) STRICT;

-- The days on which a subject used any meter: its events are in their hours. Written when a subject enters a
-- day, not with every event. The day comes first, so that what is written at one time lies together.
CREATE TABLE subject_days (
    day INTEGER NOT NULL,
    subject_id INTEGER NOT NULL,
    PRIMARY KEY (day, subject_id)
) STRICT, WITHOUT ROWID;
-- The days on which a workspace has anything there, to look up a subject on each.
CREATE TABLE event_days (
    workspace_id INTEGER NOT NULL,
    day INTEGER NOT NULL,
    PRIMARY KEY (workspace_id, day)
) STRICT, WITHOUT ROWID;
-- The hours of any day, to go from a day to its hours; never changes.
CREATE TABLE day_hours (
    since_midnight INTEGER PRIMARY KEY
) STRICT;
INSERT INTO day_hours
WITH RECURSIVE hours (since_midnight) AS (
    VALUES (0) UNION ALL SELECT since_midnight + 3600000000 FROM hours WHERE since_midnight < 82800000000
)
SELECT since_midnight FROM hours;

-- What was answered to a bulk call with an Idempotency-Key header.
CREATE TABLE bulk_replays (
    workspace_id INTEGER NOT NULL,
    key BLOB NOT NULL,
    -- JSON: the accepted and duplicate items as they were answered
    accepted TEXT NOT NULL,
    duplicates TEXT NOT NULL,
    -- a hash of the events, to notice a key used again for others
    payload INTEGER NOT NULL,
    created_at INTEGER NOT NULL,
    PRIMARY KEY (workspace_id, key)
) STRICT;
CREATE INDEX bulk_replays_age ON bulk_replays (created_at);

CREATE TABLE ingestion_runs (
    workspace_id INTEGER NOT NULL,
    -- UUIDv7: newest last
    id BLOB NOT NULL,
    kind TEXT NOT NULL CONSTRAINT ingestion_runs_kind_check CHECK (kind IN ('single', 'bulk', 'stream')),
    accepted INTEGER NOT NULL,
    duplicates INTEGER NOT NULL,
    failed INTEGER NOT NULL,
    created_at INTEGER NOT NULL,
    -- what the sender called the request; NULL where the server did, by the id of the run
    request_id TEXT,
    api_key_id TEXT,
    -- from reading the events to writing them, or those of the last part of a stream
    duration INTEGER,
    PRIMARY KEY (workspace_id, id)
) STRICT, WITHOUT ROWID;

-- What may be consumed ----------------------------------------------------------------------------

-- One row per version of a plan; a version never changes but for losing is_current. Limits and percentages here and
-- in the tables about entitlements are exact decimals as text: nothing computes with them in SQL.
CREATE TABLE plans (
    id INTEGER PRIMARY KEY,
    public_id TEXT NOT NULL CONSTRAINT plans_public_id_key UNIQUE,
    workspace_id INTEGER NOT NULL REFERENCES workspaces (id) ON DELETE CASCADE,
    name TEXT NOT NULL,
    description TEXT NOT NULL,
    version INTEGER NOT NULL,
    -- public id of the version before
    parent_id TEXT,
    is_current INTEGER NOT NULL,
    created_at INTEGER NOT NULL,
    updated_at INTEGER NOT NULL
) STRICT;
CREATE UNIQUE INDEX plans_current_name_key ON plans (workspace_id, name) WHERE is_current;

CREATE TABLE plan_limits (
    public_id TEXT PRIMARY KEY,
    plan_id INTEGER NOT NULL REFERENCES plans (id) ON DELETE CASCADE,
    meter_id INTEGER NOT NULL REFERENCES meters (id),
    -- in words: month, calendar week Europe/Berlin sunday, month from 2026-01-31T00:00:00Z, sliding 1h
    period TEXT NOT NULL CONSTRAINT plan_limits_period_check CHECK (length(period) BETWEEN 3 AND 160),
    quantity TEXT NOT NULL,
    warning_percent TEXT NOT NULL,
    enforcement TEXT NOT NULL CONSTRAINT plan_limits_enforcement_check CHECK (enforcement IN ('advisory', 'hard')),
    failure_policy TEXT NOT NULL CONSTRAINT plan_limits_failure_policy_check CHECK (failure_policy IN ('fail_open', 'fail_closed')),
    created_at INTEGER NOT NULL,
    CONSTRAINT plan_limits_plan_meter_period_key UNIQUE (plan_id, meter_id, period)
) STRICT;
CREATE INDEX plan_limits_meter ON plan_limits (meter_id);

-- Which plan a subject has, and when. Every change grows workspaces.assignment_version.
CREATE TABLE plan_assignments (
    id INTEGER NOT NULL,
    public_id TEXT NOT NULL,
    workspace_id INTEGER NOT NULL REFERENCES workspaces (id) ON DELETE CASCADE,
    subject_id INTEGER NOT NULL,
    plan_id INTEGER NOT NULL,
    starts_at INTEGER NOT NULL,
    -- not after starts_at when it was canceled before it began
    ends_at INTEGER,
    -- periods are counted from here
    anchor INTEGER NOT NULL,
    -- where days begin for limits with a calendar that names no zone
    time_zone TEXT NOT NULL DEFAULT 'UTC',
    updated_at INTEGER NOT NULL,
    PRIMARY KEY (subject_id, id)
) STRICT;
CREATE INDEX plan_assignments_subject ON plan_assignments (subject_id, starts_at);
CREATE INDEX plan_assignments_recent ON plan_assignments (workspace_id, updated_at);
CREATE INDEX plan_assignments_plan ON plan_assignments (plan_id, id);

-- Sums of the events of an assigned subject per day since its anchor, for the periods that are a whole number of such days,
-- and per cell of another series, for limits with a calendar and those that slide. Two series are never added up.
CREATE TABLE quota_counters (
    subject_id INTEGER NOT NULL,
    meter_id INTEGER NOT NULL,
    anchor INTEGER NOT NULL,
    -- empty: days since the anchor
    series TEXT NOT NULL,
    day_start INTEGER NOT NULL,
    event_count INTEGER NOT NULL,
    quantity_sum BLOB NOT NULL,
    quantity_min BLOB NOT NULL,
    quantity_max BLOB NOT NULL,
    first_at INTEGER NOT NULL,
    first_id BLOB NOT NULL,
    first_quantity BLOB NOT NULL,
    last_at INTEGER NOT NULL,
    last_id BLOB NOT NULL,
    last_quantity BLOB NOT NULL,
    PRIMARY KEY (subject_id, meter_id, anchor, series, day_start)
) STRICT, WITHOUT ROWID;

-- Where a subject stands with a limit, as last evaluated; outlives plan versions, so that they repeat no events.
CREATE TABLE entitlement_states (
    subject_id INTEGER NOT NULL,
    meter_id INTEGER NOT NULL,
    period TEXT NOT NULL,
    workspace_id INTEGER NOT NULL,
    plan_id INTEGER NOT NULL,
    state TEXT NOT NULL,
    current_value TEXT NOT NULL,
    limit_value TEXT NOT NULL,
    warning_percent TEXT NOT NULL,
    evaluated_at INTEGER NOT NULL,
    updated_at INTEGER NOT NULL,
    PRIMARY KEY (subject_id, meter_id, period)
) STRICT, WITHOUT ROWID;
CREATE INDEX entitlement_states_recent ON entitlement_states (workspace_id, updated_at);
CREATE INDEX entitlement_states_plan ON entitlement_states (plan_id);
-- counted for pages without a look at the rows
CREATE INDEX entitlement_states_counted ON entitlement_states (workspace_id, plan_id, state);

CREATE TABLE entitlement_events (
    id TEXT NOT NULL,
    workspace_id INTEGER NOT NULL,
    subject_id INTEGER NOT NULL,
    meter_id INTEGER NOT NULL,
    plan_id INTEGER NOT NULL,
    period TEXT NOT NULL,
    previous_state TEXT,
    state TEXT NOT NULL,
    kind TEXT NOT NULL,
    current_value TEXT NOT NULL,
    limit_value TEXT NOT NULL,
    warning_percent TEXT NOT NULL,
    created_at INTEGER NOT NULL,
    PRIMARY KEY (subject_id, id)
) STRICT;
CREATE INDEX entitlement_events_recent ON entitlement_events (workspace_id, created_at, id);
CREATE INDEX entitlement_events_plan ON entitlement_events (plan_id);

-- What each period came to, under the plan that was in force last in it.
CREATE TABLE entitlement_periods (
    subject_id INTEGER NOT NULL,
    meter_id INTEGER NOT NULL,
    period TEXT NOT NULL,
    starts_at INTEGER NOT NULL,
    ends_at INTEGER NOT NULL,
    workspace_id INTEGER NOT NULL,
    plan_id INTEGER NOT NULL,
    state TEXT NOT NULL,
    current_value TEXT NOT NULL,
    limit_value TEXT NOT NULL,
    warning_percent TEXT NOT NULL,
    event_count INTEGER NOT NULL,
    updated_at INTEGER NOT NULL,
    PRIMARY KEY (subject_id, meter_id, period, starts_at)
) STRICT, WITHOUT ROWID;
CREATE INDEX entitlement_periods_recent ON entitlement_periods (workspace_id, starts_at);
CREATE INDEX entitlement_periods_plan ON entitlement_periods (plan_id);

-- What was answered to POST /v1/entitlements/consume, to be answered again.
CREATE TABLE consumption_decisions (
    workspace_id INTEGER NOT NULL,
    -- as in idempotency_keys
    key BLOB NOT NULL,
    idempotency_key TEXT NOT NULL,
    subject TEXT NOT NULL,
    meter TEXT NOT NULL,
    accepted INTEGER NOT NULL,
    evaluation_failed INTEGER NOT NULL,
    enforcement TEXT NOT NULL,
    state TEXT NOT NULL,
    event_id BLOB,
    -- JSON object
    quota TEXT NOT NULL,
    created_at INTEGER NOT NULL,
    -- of the event, canonical JSON object; absent when nothing was stored for this call
    metadata TEXT,
    PRIMARY KEY (workspace_id, key)
) STRICT;
CREATE INDEX consumption_decisions_recent ON consumption_decisions (workspace_id, created_at, idempotency_key);

-- What was done about it --------------------------------------------------------------------------

CREATE TABLE prune_runs (
    workspace_id INTEGER NOT NULL REFERENCES workspaces (id) ON DELETE CASCADE,
    -- UUIDv7: newest last
    id BLOB NOT NULL,
    deleted INTEGER NOT NULL,
    dry_run INTEGER NOT NULL,
    -- JSON list: meter, cut-off, events deleted
    meters TEXT NOT NULL,
    created_at INTEGER NOT NULL,
    PRIMARY KEY (workspace_id, id)
) STRICT;

-- One row per workspace whose outdated consumption decisions were deleted in one go.
CREATE TABLE decision_prune_runs (
    id TEXT PRIMARY KEY,
    workspace_id INTEGER NOT NULL REFERENCES workspaces (id) ON DELETE CASCADE,
    decided_before INTEGER NOT NULL,
    deleted INTEGER NOT NULL,
    created_at INTEGER NOT NULL
) STRICT;
CREATE INDEX decision_prune_runs_workspace ON decision_prune_runs (workspace_id, created_at);

-- Events that were turned away so far; servers add to it every few seconds.
CREATE TABLE ingestion_refusals (
    workspace_id INTEGER PRIMARY KEY REFERENCES workspaces (id) ON DELETE CASCADE,
    rejected_events INTEGER NOT NULL,
    throttled_events INTEGER NOT NULL
) STRICT;

-- Events that were refused, and keys used again for something else: what a person asks about. Few per workspace, and for
-- days only; written beside the events, so that a killed server may lose the last seconds.
CREATE TABLE refused_events (
    workspace_id INTEGER NOT NULL REFERENCES workspaces (id) ON DELETE CASCADE,
    -- UUIDv7: newest last
    id BLOB NOT NULL,
    outcome TEXT NOT NULL CONSTRAINT refused_events_outcome_check CHECK (outcome IN ('rejected', 'conflict')),
    code TEXT NOT NULL,
    message TEXT NOT NULL,
    subject TEXT NOT NULL,
    meter TEXT NOT NULL,
    idempotency_key TEXT,
    -- the write call that it came with
    run_id BLOB NOT NULL,
    -- of a conflict: what was sent and what was stored under the key, JSON
    sent TEXT,
    stored TEXT,
    created_at INTEGER NOT NULL,
    request_id TEXT,
    api_key_id TEXT,
    field TEXT,
    door TEXT NOT NULL,
    -- what was sent, cut
    payload TEXT,
    PRIMARY KEY (workspace_id, id)
) STRICT;
CREATE INDEX refused_events_time ON refused_events (created_at);

-- Work that one process does at a time; whoever finds a lease expired takes it over.
CREATE TABLE leases (
    name TEXT PRIMARY KEY,
    holder TEXT NOT NULL,
    expires_at INTEGER NOT NULL
) STRICT, WITHOUT ROWID;

-- What an operator relies on: when it ended well last, and what it found (src/jobs/sql.rs).
CREATE TABLE chores (
    -- backup, self_check
    name TEXT PRIMARY KEY,
    done_at INTEGER NOT NULL,
    -- differences of a check; 0 where there is nothing to find
    findings INTEGER NOT NULL
) STRICT, WITHOUT ROWID;

-- What people keep --------------------------------------------------------------------------------

CREATE TABLE saved_queries (
    id TEXT PRIMARY KEY,
    user_id INTEGER NOT NULL REFERENCES users (id) ON DELETE CASCADE,
    name TEXT NOT NULL,
    -- JSON object
    query TEXT NOT NULL,
    -- JSON list of strings
    group_by TEXT NOT NULL,
    bucket_size TEXT NOT NULL,
    row_limit INTEGER NOT NULL,
    pinned INTEGER NOT NULL,
    position INTEGER NOT NULL,
    created_at INTEGER NOT NULL,
    updated_at INTEGER NOT NULL,
    -- the workspace whose members see it too; its number alone, because the query is its user's
    shared_in INTEGER,
    CONSTRAINT saved_queries_user_name_key UNIQUE (user_id, name)
) STRICT;
CREATE INDEX saved_queries_shared ON saved_queries (shared_in) WHERE shared_in IS NOT NULL;

-- Views of the dashboard whose addresses are too long to be handed on, by the hash of their parameters.
CREATE TABLE stored_queries (
    workspace_id INTEGER NOT NULL REFERENCES workspaces (id) ON DELETE CASCADE,
    hash TEXT NOT NULL,
    -- as in the address
    query TEXT NOT NULL,
    created_at INTEGER NOT NULL,
    -- to the day
    used_at INTEGER NOT NULL,
    PRIMARY KEY (workspace_id, hash)
) STRICT;
CREATE INDEX stored_queries_used ON stored_queries (used_at);

-- Background work ---------------------------------------------------------------------------------

-- What is to be done, at most one row per queue and key. Claimed with a lease; deleted when done.
CREATE TABLE jobs (
    queue TEXT NOT NULL,
    key TEXT NOT NULL,
    workspace_id INTEGER NOT NULL,
    -- JSON, as the queue's worker understands it
    payload TEXT NOT NULL,
    -- grows with every enqueue: a job that was asked for again while it ran is run again
    generation INTEGER NOT NULL,
    run_after INTEGER NOT NULL,
    -- when run_after was chosen: a time ahead means that the clock was set back since
    scheduled_at INTEGER NOT NULL DEFAULT 0,
    attempts INTEGER NOT NULL,
    lease_token BLOB,
    -- the same of leased_until
    leased_at INTEGER,
    leased_until INTEGER,
    -- its lease was taken from a holder whose time had ended, for the metrics
    taken_over INTEGER NOT NULL DEFAULT 0,
    last_error TEXT,
    created_at INTEGER NOT NULL,
    PRIMARY KEY (queue, key)
) STRICT;
CREATE INDEX jobs_due ON jobs (queue, run_after);
-- for workspaces that take turns
CREATE INDEX jobs_turns ON jobs (queue, workspace_id, run_after);

-- Jobs that used up their attempts.
CREATE TABLE dead_letters (
    id TEXT PRIMARY KEY,
    workspace_id INTEGER NOT NULL,
    queue TEXT NOT NULL,
    key TEXT NOT NULL,
    payload TEXT NOT NULL,
    attempts INTEGER NOT NULL,
    last_error TEXT NOT NULL,
    created_at INTEGER NOT NULL,
    requeued_at INTEGER
) STRICT;
CREATE INDEX dead_letters_workspace ON dead_letters (workspace_id, created_at);

-- One row per running worker, renewed every few seconds.
CREATE TABLE worker_instances (
    instance_id TEXT NOT NULL,
    worker TEXT NOT NULL,
    started_at INTEGER NOT NULL,
    last_heartbeat_at INTEGER NOT NULL,
    last_success_at INTEGER,
    last_failure_at INTEGER,
    PRIMARY KEY (worker, instance_id)
) STRICT;

-- Queued exports: what was asked, how far it is, and what came of it. The work itself is a row in jobs.
CREATE TABLE export_jobs (
    id TEXT PRIMARY KEY,
    workspace_id INTEGER NOT NULL REFERENCES workspaces (id) ON DELETE CASCADE,
    kind TEXT NOT NULL CONSTRAINT export_jobs_kind_check CHECK (kind IN ('usage_buckets', 'usage_events')),
    status TEXT NOT NULL CONSTRAINT export_jobs_status_check
        CHECK (status IN ('queued', 'running', 'completed', 'failed', 'canceled')),
    -- JSON, as it was asked
    query TEXT NOT NULL,
    error TEXT,
    -- written so far, without the header
    row_count INTEGER NOT NULL,
    artifact_size INTEGER,
    -- SHA-256 in hexadecimal
    artifact_hash TEXT,
    created_at INTEGER NOT NULL,
    updated_at INTEGER NOT NULL,
    completed_at INTEGER,
    -- when the artifact was removed
    expired_at INTEGER
) STRICT;
CREATE INDEX export_jobs_workspace ON export_jobs (workspace_id, created_at, id);
CREATE INDEX export_jobs_expiry ON export_jobs (completed_at) WHERE status = 'completed' AND expired_at IS NULL;
CREATE INDEX export_jobs_expired ON export_jobs (expired_at) WHERE status = 'completed' AND expired_at IS NOT NULL;

-- One row per workspace whose expired exports were removed in one go.
CREATE TABLE export_cleanup_runs (
    id TEXT PRIMARY KEY,
    workspace_id INTEGER NOT NULL REFERENCES workspaces (id) ON DELETE CASCADE,
    expired_before INTEGER NOT NULL,
    files_deleted INTEGER NOT NULL,
    bytes_reclaimed INTEGER NOT NULL,
    failures INTEGER NOT NULL,
    created_at INTEGER NOT NULL
) STRICT;
CREATE INDEX export_cleanup_runs_workspace ON export_cleanup_runs (workspace_id, created_at);
-- Alerts and webhooks -----------------------------------------------------------------------------

CREATE TABLE alert_destinations (
    id INTEGER PRIMARY KEY AUTOINCREMENT,
    public_id TEXT NOT NULL CONSTRAINT alert_destinations_public_id_key UNIQUE,
    workspace_id INTEGER NOT NULL REFERENCES workspaces (id) ON DELETE CASCADE,
    name TEXT NOT NULL,
    enabled INTEGER NOT NULL,
    webhook_url TEXT NOT NULL,
    secret TEXT NOT NULL,
    -- after a rotation both secrets sign until this instant
    previous_secret TEXT,
    previous_until INTEGER,
    created_at INTEGER NOT NULL,
    updated_at INTEGER NOT NULL
) STRICT;
CREATE INDEX alert_destinations_workspace ON alert_destinations (workspace_id, id);

CREATE TABLE alert_rules (
    id INTEGER PRIMARY KEY AUTOINCREMENT,
    public_id TEXT NOT NULL CONSTRAINT alert_rules_public_id_key UNIQUE,
    workspace_id INTEGER NOT NULL REFERENCES workspaces (id) ON DELETE CASCADE,
    meter_id INTEGER NOT NULL CONSTRAINT alert_rules_meter_fkey REFERENCES meters (id),
    destination_id INTEGER NOT NULL CONSTRAINT alert_rules_destination_fkey REFERENCES alert_destinations (id),
    name TEXT NOT NULL,
    enabled INTEGER NOT NULL,
    subject TEXT,
    -- JSON object of strings
    metadata TEXT NOT NULL,
    window_seconds INTEGER NOT NULL,
    -- windows of a calendar in words, as in plan_limits; instead of the last so many seconds
    period TEXT,
    comparator TEXT NOT NULL,
    -- decimal text
    threshold TEXT NOT NULL,
    evaluation_interval_seconds INTEGER NOT NULL,
    group_by TEXT,
    next_evaluate_at INTEGER NOT NULL,
    evaluated_at INTEGER,
    -- until then nobody is told what happens
    snoozed_until INTEGER,
    -- grows with every change and every evaluation: what was computed from an older one is not written
    revision INTEGER NOT NULL,
    created_at INTEGER NOT NULL,
    updated_at INTEGER NOT NULL
) STRICT;
CREATE INDEX alert_rules_workspace ON alert_rules (workspace_id, id);
CREATE INDEX alert_rules_meter ON alert_rules (meter_id, id);
CREATE INDEX alert_rules_destination ON alert_rules (destination_id);

-- How a rule stands: one row, or one per group.
CREATE TABLE alert_states (
    rule_id INTEGER NOT NULL REFERENCES alert_rules (id) ON DELETE CASCADE,
    -- both empty without grouping
    group_key TEXT NOT NULL,
    group_value TEXT NOT NULL,
    status TEXT NOT NULL CONSTRAINT alert_states_status_check CHECK (status IN ('ok', 'alerting', 'no_data', 'error')),
    -- triggered and not yet resolved, also while evaluation fails
    firing INTEGER NOT NULL,
    value TEXT NOT NULL,
    message TEXT NOT NULL,
    updated_at INTEGER NOT NULL,
    PRIMARY KEY (rule_id, group_key, group_value)
) STRICT;

CREATE TABLE alert_events (
    id INTEGER PRIMARY KEY AUTOINCREMENT,
    public_id TEXT NOT NULL CONSTRAINT alert_events_public_id_key UNIQUE,
    workspace_id INTEGER NOT NULL,
    rule_id INTEGER NOT NULL REFERENCES alert_rules (id) ON DELETE CASCADE,
    rule_public_id TEXT NOT NULL,
    group_key TEXT NOT NULL,
    group_value TEXT NOT NULL,
    kind TEXT NOT NULL CONSTRAINT alert_events_kind_check CHECK (kind IN ('triggered', 'resolved', 'evaluation_failed')),
    value TEXT NOT NULL,
    message TEXT NOT NULL,
    created_at INTEGER NOT NULL
) STRICT;
CREATE INDEX alert_events_workspace ON alert_events (workspace_id, id);
CREATE INDEX alert_events_rule ON alert_events (rule_id, id);

-- What is to be sent, written with the event. Outlives its rule, so that what was promised is still delivered.
CREATE TABLE alert_deliveries (
    id INTEGER PRIMARY KEY AUTOINCREMENT,
    public_id TEXT NOT NULL CONSTRAINT alert_deliveries_public_id_key UNIQUE,
    workspace_id INTEGER NOT NULL,
    rule_id INTEGER NOT NULL,
    -- public ids, as clients and receivers know them
    event_id TEXT NOT NULL CONSTRAINT alert_deliveries_event_id_key UNIQUE,
    destination_id TEXT NOT NULL,
    -- the group of the rule that it tells of; deliveries with the same key are sent one after another
    ordering_key TEXT NOT NULL DEFAULT '',
    -- the body as it is sent
    payload TEXT NOT NULL,
    status TEXT NOT NULL CONSTRAINT alert_deliveries_status_check CHECK (status IN ('pending', 'delivered', 'dead_letter')),
    attempts INTEGER NOT NULL,
    next_attempt_at INTEGER NOT NULL,
    last_error TEXT,
    created_at INTEGER NOT NULL,
    updated_at INTEGER NOT NULL,
    delivered_at INTEGER
) STRICT;
CREATE INDEX alert_deliveries_workspace ON alert_deliveries (workspace_id, id);
-- for the clean-up of history
CREATE INDEX alert_deliveries_delivered ON alert_deliveries (delivered_at) WHERE status = 'delivered';
CREATE INDEX alert_deliveries_pending ON alert_deliveries (rule_id, ordering_key, id) WHERE status = 'pending';
-- for what is owed
CREATE INDEX alert_deliveries_owed ON alert_deliveries (workspace_id, status, id) WHERE status <> 'delivered';

CREATE TABLE alert_attempts (
    id INTEGER PRIMARY KEY AUTOINCREMENT,
    public_id TEXT NOT NULL,
    delivery_id INTEGER NOT NULL REFERENCES alert_deliveries (id) ON DELETE CASCADE,
    event_id TEXT NOT NULL,
    status TEXT NOT NULL CONSTRAINT alert_attempts_status_check CHECK (status IN ('delivered', 'failed')),
    status_code INTEGER,
    error TEXT,
    -- the beginning of what the receiver answered
    response TEXT,
    duration_ms INTEGER NOT NULL,
    attempted_at INTEGER NOT NULL
) STRICT;
CREATE INDEX alert_attempts_event ON alert_attempts (event_id, id);
CREATE INDEX alert_attempts_delivery ON alert_attempts (delivery_id);
