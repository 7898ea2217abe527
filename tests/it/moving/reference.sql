-- The tables of the Go server 0.1.12, as far as its data goes; for SQLite and PostgreSQL alike. Column types bind
-- nobody on SQLite, as there.
CREATE TABLE schema_migrations (version BIGINT NOT NULL, dirty BOOLEAN NOT NULL);
INSERT INTO schema_migrations VALUES (1, false);
CREATE TABLE auth_workspaces (id TEXT PRIMARY KEY, name TEXT NOT NULL, created_at TEXT NOT NULL);
CREATE TABLE auth_users (id TEXT PRIMARY KEY, email TEXT NOT NULL UNIQUE, password_hash TEXT NOT NULL, created_at TEXT NOT NULL);
CREATE TABLE auth_workspace_memberships (workspace_id TEXT NOT NULL, user_id TEXT NOT NULL, role TEXT NOT NULL, created_at TEXT NOT NULL);
CREATE TABLE auth_identities (id TEXT PRIMARY KEY, user_id TEXT NOT NULL, provider TEXT NOT NULL, subject TEXT NOT NULL,
    email TEXT NOT NULL, email_verified BOOLEAN NOT NULL, created_at TEXT NOT NULL, updated_at TEXT NOT NULL);
CREATE TABLE auth_sessions (id TEXT PRIMARY KEY, user_id TEXT NOT NULL, workspace_id TEXT NOT NULL, token_hash TEXT NOT NULL,
    kind TEXT NOT NULL, expires_at TEXT NOT NULL, created_at TEXT NOT NULL);
CREATE TABLE auth_api_keys (id TEXT PRIMARY KEY, user_id TEXT NOT NULL, workspace_id TEXT NOT NULL, name TEXT NOT NULL,
    token_hash TEXT NOT NULL, prefix TEXT NOT NULL, scopes TEXT NOT NULL, allowed_meters TEXT NOT NULL, expires_at TEXT,
    revoked_at TEXT, created_at TEXT NOT NULL, last_used_at TEXT);
CREATE TABLE meters (id TEXT PRIMARY KEY, workspace_id TEXT NOT NULL, name TEXT NOT NULL, description TEXT NOT NULL,
    unit TEXT NOT NULL, aggregation TEXT NOT NULL, dimensions TEXT NOT NULL, event_retention_days INTEGER NOT NULL,
    created_at TEXT NOT NULL, colour_of_a_newer_version TEXT);
CREATE TABLE usage_events (id TEXT PRIMARY KEY, workspace_id TEXT NOT NULL, idempotency_key TEXT, subject TEXT NOT NULL,
    meter_name TEXT NOT NULL, quantity DOUBLE PRECISION NOT NULL, event_time TEXT NOT NULL, received_at TEXT NOT NULL,
    metadata TEXT NOT NULL);
CREATE TABLE bulk_usage_ingestions (workspace_id TEXT NOT NULL, idempotency_key TEXT NOT NULL, response TEXT NOT NULL, created_at TEXT NOT NULL);
CREATE TABLE usage_ingestions (id TEXT PRIMARY KEY, workspace_id TEXT NOT NULL, kind TEXT NOT NULL, accepted INTEGER NOT NULL,
    duplicates INTEGER NOT NULL, failed INTEGER NOT NULL, created_at TEXT NOT NULL);
CREATE TABLE usage_prune_runs (id TEXT PRIMARY KEY, workspace_id TEXT NOT NULL, dry_run INTEGER NOT NULL, deleted INTEGER NOT NULL,
    meters TEXT NOT NULL, created_at TEXT NOT NULL);
CREATE TABLE plans (id TEXT PRIMARY KEY, workspace_id TEXT NOT NULL, name TEXT NOT NULL, description TEXT NOT NULL,
    version INTEGER NOT NULL, parent_plan_id TEXT, is_current BOOLEAN NOT NULL, created_at TEXT NOT NULL, updated_at TEXT NOT NULL);
CREATE TABLE plan_limits (id TEXT PRIMARY KEY, workspace_id TEXT NOT NULL, plan_id TEXT NOT NULL, meter_name TEXT NOT NULL,
    period TEXT NOT NULL, limit_value DOUBLE PRECISION NOT NULL, warning_percent DOUBLE PRECISION NOT NULL,
    created_at TEXT NOT NULL, updated_at TEXT NOT NULL);
CREATE TABLE plan_subject_assignments (id TEXT PRIMARY KEY, workspace_id TEXT NOT NULL, subject TEXT NOT NULL, plan_id TEXT NOT NULL,
    assigned_at TEXT NOT NULL, period_anchor_at TEXT NOT NULL, unassigned_at TEXT, updated_at TEXT NOT NULL);
CREATE TABLE alert_destinations (id TEXT PRIMARY KEY, workspace_id TEXT NOT NULL, name TEXT NOT NULL, type TEXT NOT NULL,
    enabled BOOLEAN NOT NULL, webhook_url TEXT NOT NULL, webhook_secret TEXT NOT NULL, created_at TEXT NOT NULL, updated_at TEXT NOT NULL);
CREATE TABLE alert_rules (id TEXT PRIMARY KEY, workspace_id TEXT NOT NULL, name TEXT NOT NULL, meter_name TEXT NOT NULL,
    enabled BOOLEAN NOT NULL, subject TEXT NOT NULL, metadata TEXT NOT NULL, window_seconds INTEGER NOT NULL,
    comparator TEXT NOT NULL, threshold DOUBLE PRECISION NOT NULL, evaluation_interval_seconds INTEGER NOT NULL,
    group_by TEXT NOT NULL, destination_id TEXT NOT NULL, next_evaluate_at TEXT NOT NULL, created_at TEXT NOT NULL, updated_at TEXT NOT NULL);
INSERT INTO auth_workspaces VALUES ('11111111-0000-4000-8000-000000000001', 'ada''s workspace', '2026-01-01T00:00:00.5Z');
INSERT INTO auth_workspace_memberships VALUES
    ('11111111-0000-4000-8000-000000000001', '22222222-0000-4000-8000-000000000001', 'owner', '2026-01-01T00:00:00Z'),
    ('11111111-0000-4000-8000-000000000001', '22222222-0000-4000-8000-000000000001', 'superuser', '2026-01-01T00:00:00Z');
INSERT INTO auth_identities VALUES ('22222222-0000-4000-8000-000000000009', '22222222-0000-4000-8000-000000000001', 'github', '583231',
    'ada@example.com', true, '2026-01-01T00:00:00Z', '2026-01-01T00:00:00Z'),
    ('22222222-0000-4000-8000-000000000010', '22222222-0000-4000-8000-000000000001', 'gitlab', '1', 'ada@example.com', true,
    '2026-01-01T00:00:00Z', '2026-01-01T00:00:00Z');
INSERT INTO meters VALUES
    ('33333333-0000-4000-8000-000000000001', '11111111-0000-4000-8000-000000000001', 'calls', '', 'unit', 'sum',
     '[{"name":"region","display_name":"Region","type":"string","required":true}]', 3650, '2026-01-01T00:00:00Z', 'red'),
    ('33333333-0000-4000-8000-000000000002', '11111111-0000-4000-8000-000000000001', 'median', '', 'unit', 'median', '[]', 90,
     '2026-01-01T00:00:00Z', NULL);
INSERT INTO plans VALUES ('44444444-0000-4000-8000-000000000001', '11111111-0000-4000-8000-000000000001', 'Starter', '', 1, NULL, true,
    '2026-01-01T00:00:00Z', '2026-01-01T00:00:00Z');
INSERT INTO plan_limits VALUES
    ('44444444-0000-4000-8000-000000000011', '11111111-0000-4000-8000-000000000001', '44444444-0000-4000-8000-000000000001', 'calls', 'month',
     1000.5, 80, '2026-01-01T00:00:00Z', '2026-01-01T00:00:00Z'),
    ('44444444-0000-4000-8000-000000000012', '11111111-0000-4000-8000-000000000001', '44444444-0000-4000-8000-000000000001', 'calls', 'decade',
     1, 80, '2026-01-01T00:00:00Z', '2026-01-01T00:00:00Z');
-- two in force at once, and one that was canceled before it began
INSERT INTO plan_subject_assignments VALUES
    ('55555555-0000-4000-8000-000000000001', '11111111-0000-4000-8000-000000000001', 'acme', '44444444-0000-4000-8000-000000000001',
     '2026-01-01T00:00:00.25Z', '2026-01-01T00:00:00Z', NULL, '2026-01-01T00:00:00.25Z'),
    ('55555555-0000-4000-8000-000000000002', '11111111-0000-4000-8000-000000000001', 'acme', '44444444-0000-4000-8000-000000000001',
     '2026-02-01T00:00:00Z', '2026-01-01T00:00:00Z', NULL, '2026-02-01T00:00:00Z'),
    ('55555555-0000-4000-8000-000000000003', '11111111-0000-4000-8000-000000000001', 'acme', '44444444-0000-4000-8000-000000000001',
     '2099-01-01T00:00:00Z', '2099-01-01T00:00:00Z', '2099-01-01T00:00:00.000000001Z', '2099-01-01T00:00:00.000000001Z');
INSERT INTO alert_destinations VALUES ('66666666-0000-4000-8000-000000000001', '11111111-0000-4000-8000-000000000001', 'pager', 'webhook',
    true, 'https://example.com/hook', 'osp_whsec_AAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAA', '2026-01-01T00:00:00Z', '2026-01-01T00:00:00Z');
INSERT INTO alert_rules VALUES
    ('66666666-0000-4000-8000-000000000011', '11111111-0000-4000-8000-000000000001', 'high', 'calls', false, '', '{}', 3600, 'gt', 1e21, 60, '',
     '66666666-0000-4000-8000-000000000001', '2026-01-01T00:00:00Z', '2026-01-01T00:00:00Z', '2026-01-01T00:00:00Z'),
    ('66666666-0000-4000-8000-000000000012', '11111111-0000-4000-8000-000000000001', 'lost', 'calls', true, '', '{}', 3600, 'gt', 1, 60, '',
     '', '2026-01-01T00:00:00Z', '2026-01-01T00:00:00Z', '2026-01-01T00:00:00Z');
INSERT INTO usage_ingestions VALUES ('77777777-0000-4000-8000-000000000001', '11111111-0000-4000-8000-000000000001', 'bulk', 3, 1, 0,
    '2026-01-05T00:00:00.5Z');
INSERT INTO bulk_usage_ingestions VALUES ('11111111-0000-4000-8000-000000000001', 'call-1',
    '{"accepted":[{"id":"88888888-0000-4000-8000-000000000001","idempotency_key":"k-1","subject":"acme","meter_name":"calls","quantity":0.1,"event_time":"2026-01-05T00:00:00.5Z","received_at":"2026-01-05T00:00:01Z","metadata":{"region":"eu"}}],"duplicates":null}',
    '2026-01-05T00:00:00.5Z');
-- an event without the dimension that was demanded only later, one without a key, and what cannot be taken over
INSERT INTO usage_events VALUES
    ('88888888-0000-4000-8000-000000000001', '11111111-0000-4000-8000-000000000001', 'k-1', 'acme', 'calls', 0.1, '2026-01-05T00:00:00.5Z', '2026-01-05T00:00:01.123456789Z', '{"region":"eu"}'),
    ('88888888-0000-4000-8000-000000000002', '11111111-0000-4000-8000-000000000001', NULL, 'acme', 'calls', 0.2, '2026-01-31T23:59:59.999999999Z', '2026-02-01T00:00:00Z', '{}'),
    ('88888888-0000-4000-8000-000000000003', '11111111-0000-4000-8000-000000000001', 'k-3', 'other', 'calls', 1e21, '2026-02-01T00:00:00Z', '2026-02-01T00:00:00Z', '{"region":"us","undeclared":{"a":[1,null]}}'),
    ('99999999-0000-4000-8000-000000000001', '11111111-0000-4000-8000-000000000001', NULL, 'acme', 'gone', 1, '2026-01-05T00:00:00Z', '2026-01-05T00:00:00Z', '{}'),
    ('99999999-0000-4000-8000-000000000002', '11111111-0000-4000-8000-000000000001', NULL, 'acme', 'calls', 1, '10000-01-01T22:59:59Z', '2026-01-05T00:00:00Z', '{}'),
    ('99999999-0000-4000-8000-000000000003', '11111111-0000-4000-8000-000000000001', NULL, 'not a subject', 'calls', 1, '2026-01-05T00:00:00Z', '2026-01-05T00:00:00Z', '{}'),
    ('99999999-0000-4000-8000-000000000004', '11111111-0000-4000-8000-000000000001', NULL, 'acme', 'calls', -1, '2026-01-05T00:00:00Z', '2026-01-05T00:00:00Z', '{}'),
    ('99999999-0000-4000-8000-000000000005', '11111111-0000-4000-8000-000000000001', NULL, 'acme', 'calls', 1, '2026-01-05T00:00:00Z', '2026-01-05T00:00:00Z', '{"a":"\u0000"}'),
    ('99999999-0000-4000-8000-000000000006', '11111111-0000-4000-8000-000000000001', NULL, 'acme', 'median', 1, '2026-01-05T00:00:00Z', '2026-01-05T00:00:00Z', '{}');
