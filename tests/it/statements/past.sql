-- What lies behind a server that has run for long, for PostgreSQL to plan with: earlier months of the same meters, and
-- the rows of other workspaces. Nothing of it is asked for.

INSERT INTO events
SELECT decode(md5(encode(id, 'hex') || month), 'hex'), workspace_id, meter_id, subject_id, event_time - month * 2678400000000,
       received_at, meter_version, quantity, NULL, metadata
FROM events, generate_series(1, 12) AS month;

INSERT INTO rollups
SELECT meter_id, grain, start - month * 2678400000000, lane, event_count, quantity_sum,
       quantity_min, quantity_max, first_at - month * 2678400000000, first_id, first_quantity,
       last_at - month * 2678400000000, last_id, last_quantity
FROM rollups, generate_series(1, 48) AS month;

INSERT INTO subjects (id, workspace_id, name)
SELECT n, 1000000 + n % 20, 'other' || n FROM generate_series(1, 300000) AS n;

INSERT INTO rollup_subjects
SELECT 1000000 + s.id % 20, 1778976000000000 - period * 2592000000000, s.id, s.id, 0, 0, 1, NULL, NULL, NULL, '\x00'
FROM subjects AS s, generate_series(1, 3) AS period WHERE s.workspace_id BETWEEN 1000000 AND 1000019 AND s.id % 5 = 0;

UPDATE subjects SET last_event_at = 1780000000000000 - id * 3600000000
WHERE workspace_id BETWEEN 1000000 AND 1000019 AND id % 5 = 0;

INSERT INTO quota_counters
SELECT s.id, 1000000, 0, '', day * 86400000000, 1, 1, 1, 1, 0, '', 1, 0, '', 1
FROM subjects AS s, generate_series(1, 2) AS day WHERE s.workspace_id BETWEEN 1000000 AND 1000019 AND s.id % 5 = 0;

INSERT INTO consumption_decisions
SELECT 1000000 + n % 20, decode(md5(n::text), 'hex'), 'key' || n, 's', 'm', true, false, 'hard', 'ok', NULL, '{}', n
FROM generate_series(1, 50000) AS n;

INSERT INTO ingestion_runs
SELECT 1000000 + n % 20, decode(md5(n::text), 'hex'), 'single', 1, 0, 0, n FROM generate_series(1, 50000) AS n;
