//! The table of settings: one row per variable with its default, what it may hold and one line of
//! help. The command line, `--help`, `--print-config`, the checks and the tests all come from it.
//!
//! A new setting is a row here and a field in `config.rs` that reads the row by its name.
//! Nothing here looks at the environment, and nothing here knows what a setting is used for.

use Kind::*;

/// What every variable but `RUST_LOG` starts with.
pub const PREFIX: &str = "OPEN_SPANNER_";

/// An integer without an upper limit; it fits every integer column.
pub const ANY: u64 = i64::MAX as u64;

/// What a setting may hold, hence how its text is read.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Kind {
    /// Any text that is not blank; the word stands for it in `--help`.
    Text(&'static str),
    /// As text, but never shown; also read from the file that `NAME_FILE` names.
    Secret,
    /// An absolute `http` or `https` URL.
    Url,
    /// One of these words, in any case.
    OneOf(&'static [&'static str]),
    /// The words of the Go language.
    Bool,
    /// First and last value allowed.
    Integer(u64, u64),
    /// Above zero.
    Duration,
    /// Zero stands for "no limit".
    DurationOrZero,
    /// Above zero, at most this many seconds.
    DurationUpTo(u64),
    /// An address to listen on.
    Address,
    /// An address to listen on; a variable that is set but empty means "do not listen".
    AddressOrOff,
    /// Networks or single addresses, separated by commas.
    Networks,
}

/// One row of the table.
#[derive(Clone, Copy, Debug)]
pub struct Setting {
    pub name: &'static str,
    /// Read like a value somebody gave; empty means the setting starts out unset.
    pub default: &'static str,
    pub kind: Kind,
    pub help: &'static str,
}

/// Rows that `--help` shows under one heading.
pub struct Group {
    pub title: &'static str,
    pub rows: &'static [Setting],
}

impl Setting {
    /// The environment variable.
    pub fn variable(&self) -> String {
        match self.name {
            "RUST_LOG" => self.name.to_owned(),
            name => format!("{PREFIX}{name}"),
        }
    }

    /// The variable that names a file holding the value, for secrets.
    pub fn file_variable(&self) -> Option<String> {
        self.is_secret().then(|| format!("{}_FILE", self.variable()))
    }

    /// The variable that the flag stands for: arguments are visible to every user of the machine,
    /// so a secret has a flag for its file only.
    pub fn flag_variable(&self) -> String {
        self.file_variable().unwrap_or_else(|| self.variable())
    }

    /// The long flag, without its dashes.
    pub fn flag(&self) -> String {
        let variable = self.flag_variable();
        variable.strip_prefix(PREFIX).unwrap_or(&variable).to_lowercase().replace('_', "-")
    }

    pub fn is_secret(&self) -> bool {
        self.kind == Secret
    }
}

/// All rows, in the order of the table.
pub fn all() -> impl Iterator<Item = &'static Setting> {
    TABLE.iter().flat_map(|group| group.rows)
}

const fn group(title: &'static str, rows: &'static [Setting]) -> Group {
    Group { title, rows }
}

const fn row(name: &'static str, default: &'static str, kind: Kind, help: &'static str) -> Setting {
    Setting { name, default, kind, help }
}

const PATH: Kind = Text("PATH");

#[rustfmt::skip]
pub const TABLE: &[Group] = &[
    group("Process", &[
        row("SERVE_WORKERS",    "auto", OneOf(&["auto", "on", "off"]),    "run the workers inside serve; auto: on with SQLite"),
        row("SHUTDOWN_TIMEOUT", "30s",  Duration,                         "time to finish accepted work after SIGTERM"),
        row("CACHE_TTL",        "2s",   DurationUpTo(5),                  "how long keys, meters and plans are served from memory, at most 5s"),
        row("LOG_FORMAT",       "auto", OneOf(&["auto", "text", "json"]), "auto: text on a terminal, JSON otherwise"),
        row("LOG_REQUESTS",     "changes", OneOf(&["off", "changes", "all"]), "request lines at level info; changes: what changed something besides usage, and what took over 1s"),
        row("LOG_SLOW_DATABASE", "1s",  DurationOrZero,                   "work in the database that takes longer has a line at level info, by its name and without values; 0: none"),
        row("RUST_LOG",         "info", Text("FILTER"),                   "what to log, like info,open_spanner::store=debug"),
    ]),
    group("Listeners", &[
        row("HTTP_ADDR",       ":18081", Address,                            "REST, dashboard and health; no host means all interfaces"),
        row("HTTP_WORKERS",    "0",      Integer(0, 1024),                   "threads that serve HTTP; 0: one per core"),
        row("GRPC_ADDR",       ":18090", AddressOrOff,                       "gRPC; empty: off"),
        row("METRICS_ADDR",    "",       AddressOrOff,                       "Prometheus metrics, keep it private; empty: off"),
        row("HTTP_METRICS",    "false",  Bool,                               "metrics on the port of REST as well, without a key: /metrics"),
        row("PUBLIC_URL",      "",       Url,                                "where people find this server, for links in mails and for providers; empty: as each request says"),
        row("TRUSTED_PROXIES", "",       Networks,                           "proxies whose forwarding headers are believed"),
        row("SECURE_COOKIES",  "auto",   OneOf(&["auto", "always", "never"]), "mark cookies Secure; auto: when the request came by https"),
        row("HSTS_MAX_AGE",    "0",      DurationOrZero,                     "tell browsers to come by https only, for this long; 0: do not"),
        row("HTTP_MAX_CONNECTIONS",        "0", Integer(0, 1_000_000), "connections to HTTP_ADDR at once; 0: as the limit of open files allows, at most 10000"),
        row("GRPC_MAX_CONNECTIONS",        "0", Integer(0, 1_000_000), "connections to GRPC_ADDR at once; 0: as the limit of open files allows, at most 2000"),
        row("MAX_CONNECTIONS_PER_ADDRESS", "0", Integer(0, 1_000_000), "of these from one address, trusted proxies excepted; 0: half"),
    ]),
    group("Database", &[
        row("DB_DRIVER",             "sqlite",          OneOf(&["sqlite", "postgres"]), "where everything is stored"),
        row("SQLITE_PATH",           "open-spanner.db", PATH,                           "database file, or a file: URI"),
        row("SQLITE_SYNCHRONOUS",    "full",            OneOf(&["full", "normal"]),     "normal is faster; a power cut may then lose the last writes"),
        row("DATA_VOLUME",           "",                PATH,                           "folder that must be a volume with a name where the database file is in it; empty: not looked at"),
        row("POSTGRES_DSN",          "",                Secret,                         "connection string for postgres, as libpq takes it"),
        row("POSTGRES_READ_DSN",     "",                Secret,                         "connection string of a standby that answers queries, lists and exports; empty: the primary does"),
        row("ENCRYPTION_KEYS",       "",                Secret,                         "keys that seal stored secrets: k2:BASE64,k1:BASE64, 32 bytes each, the first one seals; empty: SQLite makes one in a file beside the database, PostgreSQL has none"),
        row("CLEAR_SECRETS",         "true",            Bool,                           "false: where there is no key, a secret cannot be made; true: it is stored as it is"),
        row("NEWER_SCHEMA",          "refuse",          OneOf(&["refuse", "accept"]),   "a schema that a newer version made; accept: work with it, for going back to this version"),
        row("DB_MAX_OPEN_CONNS",     "0",               Integer(0, 1000),               "connections of this process; 0: 10, of a worker 6"),
        row("DB_WORKER_MAX_OPEN_CONNS", "0",            Integer(0, 1000),               "the same of a process that is only a worker, where one environment serves all; 0: as above"),
        row("DB_MAX_IDLE_CONNS",     "0",               Integer(0, 1000),               "connections kept while idle; 0: as many as may be open"),
        row("DB_CONN_MAX_LIFETIME",  "0",               DurationOrZero,                 "replace a connection of this age; 0: never"),
        row("DB_CONN_MAX_IDLE_TIME", "0",               DurationOrZero,                 "close a connection idle for this long; 0: never"),
        row("DB_QUERIES_PER_WORKSPACE", "0",            Integer(0, 1000),               "queries of one workspace at a time, the others wait; 0: under half of the connections"),
        row("DB_ACQUIRE_TIMEOUT",    "5s",              Duration,                       "longest wait for a free connection"),
        row("DB_STATEMENT_TIMEOUT",  "15s",             Duration,                       "longest work of a call in the database before it gets 503"),
    ]),
    group("Sign-in", &[
        row("REGISTRATION",               "open", OneOf(&["open", "invite", "closed"]), "who may register: anybody, whoever has an invitation, nobody"),
        row("REGISTRATION_ENABLED",       "true", Bool,       "false: nobody registers, unless OPEN_SPANNER_REGISTRATION is invite"),
        row("PASSWORD_SIGN_IN",           "true", Bool,       "false: people sign in with a provider only"),
        row("SESSION_MAX_AGE",            "2160h", Duration,  "how long a sign-in lasts at most, however often it is refreshed"),
        row("SIGN_IN_DOMAINS",            "",     Text("DOMAINS"), "domains of addresses that may sign in with a provider, separated by commas; empty: all"),
        row("OAUTH_REDIRECT_ORIGINS",     "",     Text("ORIGINS"), "further origins that a provider may send people back to, separated by commas"),
        row("GITHUB_OAUTH_ENABLED",       "true", Bool,       "off switch for GitHub; it also needs the two settings below"),
        row("GITHUB_OAUTH_CLIENT_ID",     "",     Text("ID"), "client id at GitHub"),
        row("GITHUB_OAUTH_CLIENT_SECRET", "",     Secret,     "client secret at GitHub"),
        row("GITHUB_OAUTH_REDIRECT_URL",  "",     Url,        "fixed callback URL for GitHub"),
        row("GITHUB_URL",                 "https://github.com", Url, "GitHub itself, or a GitHub Enterprise server"),
        row("GOOGLE_OAUTH_ENABLED",       "true", Bool,       "off switch for Google; it also needs the two settings below"),
        row("GOOGLE_OAUTH_CLIENT_ID",     "",     Text("ID"), "client id at Google"),
        row("GOOGLE_OAUTH_CLIENT_SECRET", "",     Secret,     "client secret at Google"),
        row("GOOGLE_OAUTH_REDIRECT_URL",  "",     Url,        "fixed callback URL for Google"),
        row("OIDC_ISSUER",                "",     Url,        "issuer of any other OpenID Connect provider, as its discovery document has it"),
        row("OIDC_NAME",                  "single sign-on", Text("NAME"), "what people call it"),
        row("OIDC_CLIENT_ID",             "",     Text("ID"), "client id at that provider"),
        row("OIDC_CLIENT_SECRET",         "",     Secret,     "client secret there; empty: a public client, with PKCE alone"),
        row("OIDC_REDIRECT_URL",          "",     Url,        "fixed callback URL for that provider"),
        row("OIDC_SCOPES",                "openid email profile", Text("SCOPES"), "scopes to ask for, separated by spaces"),
        row("OIDC_VERIFIED_DOMAINS",      "",     Text("DOMAINS"), "domains of which that provider gives out the addresses, separated by commas: they count as verified where it does not say (no email_verified)"),
        row("OIDC_GROUPS_CLAIM",          "groups", Text("CLAIM"), "the claim that lists a person's groups"),
        row("OIDC_ROLES",                 "",     Text("GROUP=ROLE"), "roles of groups, separated by commas: admins=admin,staff=viewer"),
        row("OIDC_WORKSPACE",             "",     Text("ID"), "the workspace in which they have these roles"),
    ]),
    group("Mail", &[
        row("SMTP_URL",  "", Secret,          "mail server: smtps://USER:PASSWORD@HOST, or smtp://HOST:PORT?tls=required; empty: no mail is sent"),
        row("MAIL_FROM", "", Text("ADDRESS"), "who mails come from"),
    ]),
    group("Ingestion", &[
        row("INGESTION_MAX_BODY_BYTES",    "8388608", Integer(1024, 67_108_864), "largest request body and gRPC message"),
        row("BODIES_MAX_BYTES",            "67108864", Integer(1_048_576, ANY),   "request bodies in memory at once, over all callers; one workspace may have half"),
        row("STREAMS_MAX_BYTES",           "67108864", Integer(1_048_576, ANY),   "events of open gRPC streams in memory at once; one workspace may have half"),
        row("INGESTION_MAX_BULK_EVENTS",   "1000",    Integer(1, 1000),          "events in one bulk call"),
        row("INGESTION_MAX_STREAM_EVENTS", "0",       Integer(0, ANY),           "events in one gRPC stream; 0: no limit"),
        row("INGESTION_RATE_LIMIT_EVENTS", "0",       Integer(0, ANY),           "new events per workspace and window on average, in bursts up to twice as many; each server counts for itself; 0: no limit"),
        row("INGESTION_RATE_LIMIT_WINDOW", "1m",      Duration,                  "length of that window"),
        row("CONSUMPTION_TIME",            "server",  OneOf(&["server", "event"]), "what decides the plan and period of a consumption; event: its timestamp, as in the first server"),
        row("INGEST_QUEUE_EVENTS",         "30000",   Integer(1000, 1_000_000),  "events waiting to be written before calls get 503, two thirds of them of one workspace; larger ones count per KiB"),
        row("INGEST_BATCH_EVENTS",         "4000",    Integer(1, 10_000),        "events in one write"),
        row("INGEST_SETTLE_AFTER",         "1m",      Duration,                  "how long what subjects used may wait to be put together with what they used before, unless it is much; shorter: more rows are written"),
        row("INGEST_WRITERS",              "2",       Integer(1, 16),            "concurrent writers on PostgreSQL; SQLite has one"),
        row("REFUSED_EVENT_PAYLOADS",      "true",    Bool,                      "keep what refused events said beside the reason, up to 4 KB each, for a week"),
        row("BULK_REPLAY_RETENTION",       "168h",    Duration,                  "how long the answer to a bulk call can be replayed"),
    ]),
    group("Exports", &[
        row("EXPORT_STORAGE_DRIVER",       "filesystem",           OneOf(&["filesystem", "s3"]), "where finished exports are kept"),
        row("EXPORT_STORAGE_PATH",         "open-spanner-exports", PATH,                          "directory for filesystem"),
        row("EXPORT_S3_BUCKET",            "",                     Text("NAME"),                  "bucket for s3"),
        row("EXPORT_S3_REGION",            "us-east-1",            Text("NAME"),                  "region of the bucket"),
        row("EXPORT_S3_ENDPOINT",          "",                     Url,                           "S3-compatible server; empty: AWS"),
        row("EXPORT_S3_ACCESS_KEY_ID",     "",                     Text("ID"),                    "empty: the cloud's own credentials"),
        row("EXPORT_S3_SECRET_ACCESS_KEY", "",                     Secret,                        "secret of that key"),
        row("EXPORT_S3_SESSION_TOKEN",     "",                     Secret,                        "session token of that key"),
        row("EXPORT_S3_PREFIX",            "",                     Text("PREFIX"),                "put in front of every object name"),
        row("EXPORT_S3_FORCE_PATH_STYLE",  "",                     Bool,                          "bucket in the path; empty: when an endpoint is set"),
        row("EXPORT_RETENTION",            "168h",                 Duration,                      "how long a finished export can be downloaded"),
        row("EXPORT_CLEANUP_INTERVAL",     "1h",                   Duration,                      "time between two clean-ups"),
        row("EXPORT_CLEANUP_BATCH_SIZE",   "1000",                 Integer(1, 1000),              "exports removed at a time"),
    ]),
    group("Export worker", &[
        row("EXPORT_WORKER_INTERVAL",     "5s",     Duration,              "time between two looks for work"),
        row("EXPORT_WORKER_LOCK_TTL",     "5m",     Duration,              "lease of a claimed job"),
        row("EXPORT_WORKER_TIMEOUT",      "10m",    Duration,              "longest run of one job"),
        row("EXPORT_WORKER_MAX_ATTEMPTS", "3",      Integer(1, 1_000_000), "tries before a job has failed"),
        row("EXPORT_WORKER_HEALTH_ADDR",  ":18082", Address,               "health of the separate process"),
    ]),
    group("Alert worker", &[
        row("ALERT_WORKER_INTERVAL",     "5s",     Duration,              "time between two looks for work"),
        row("ALERT_WORKER_LOCK_TTL",     "5m",     Duration,              "lease of a claimed job"),
        row("ALERT_WORKER_TIMEOUT",      "1m",     Duration,              "longest evaluation, webhooks included"),
        row("ALERT_WORKER_RETRY_AFTER",  "30s",    Duration,              "wait after an error"),
        row("ALERT_WORKER_MAX_ATTEMPTS", "3",      Integer(1, 1_000_000), "tries before a job is dead"),
        row("ALERT_WORKER_BATCH_SIZE",   "100",    Integer(1, 1_000_000), "jobs claimed at a time"),
        row("ALERT_WORKER_HEALTH_ADDR",  ":18083", Address,               "health of the separate process"),
        row("WEBHOOK_ALLOWED_NETWORKS",  "",       Networks,              "private networks that webhooks may reach"),
        row("WEBHOOK_HTTPS_ONLY",        "false",  Bool,                  "refuse webhooks over plain http, new and old ones"),
    ]),
    group("Entitlement worker", &[
        row("ENTITLEMENT_WORKER_INTERVAL",     "5s",     Duration,              "time between two looks for work"),
        row("ENTITLEMENT_WORKER_LOCK_TTL",     "5m",     Duration,              "lease of a claimed job"),
        row("ENTITLEMENT_WORKER_TIMEOUT",      "1m",     Duration,              "longest evaluation"),
        row("ENTITLEMENT_WORKER_RETRY_AFTER",  "30s",    Duration,              "wait after an error"),
        row("ENTITLEMENT_WORKER_MAX_ATTEMPTS", "3",      Integer(1, 1_000_000), "tries before a job is dead"),
        row("ENTITLEMENT_WORKER_BATCH_SIZE",   "100",    Integer(1, 1_000_000), "jobs claimed at a time"),
        row("ENTITLEMENT_WORKER_HEALTH_ADDR",  ":18084", Address,               "health of the separate process"),
    ]),
    group("Usage worker", &[
        row("USAGE_WORKER_INTERVAL",     "1s",     Duration,              "time between two looks for work"),
        row("USAGE_WORKER_LOCK_TTL",     "1m",     Duration,              "lease of a claimed row"),
        row("USAGE_WORKER_TIMEOUT",      "30s",    Duration,              "longest hand-over"),
        row("USAGE_WORKER_RETRY_AFTER",  "5s",     Duration,              "wait after an error"),
        row("USAGE_WORKER_MAX_ATTEMPTS", "10",     Integer(1, 1_000_000), "tries before a row is dead"),
        row("USAGE_WORKER_BATCH_SIZE",   "100",    Integer(1, 1_000_000), "rows claimed at a time"),
        row("USAGE_WORKER_HEALTH_ADDR",  ":18085", Address,               "health of the separate process"),
    ]),
    group("Retention", &[
        row("RETENTION_PRUNE_ENABLED",        "false", Bool,               "delete usage older than its workspace keeps it"),
        row("RETENTION_PRUNE_INTERVAL",       "1h",    Duration,           "time between two runs"),
        row("RETENTION_PRUNE_TIMEOUT",        "30m",   Duration,           "longest run"),
        row("CONSUMPTION_DECISION_RETENTION", "720h",  Duration,           "age at which consumption decisions are deleted"),
        row("IDEMPOTENCY_KEY_RETENTION",      "0",     DurationOrZero,     "how long a key is known after its event came, a day at least; 0: for ever. What is sent again later counts again"),
        row("AUDIT_RETENTION",                "17520h", DurationOrZero,    "age at which rows of the audit trail are deleted; 0: never"),
        row("OPERATIONAL_HISTORY_RETENTION",  "720h",  Duration,           "age at which finished runs and deliveries, and exports, links and invitations that have ended are deleted"),
        row("OPERATIONAL_HISTORY_INTERVAL",   "1h",    Duration,           "time between two such deletions"),
        row("OPERATIONAL_HISTORY_TIMEOUT",    "5m",    Duration,           "longest such deletion"),
        row("OPERATIONAL_HISTORY_BATCH_SIZE", "1000",  Integer(1, 10_000), "rows deleted at a time"),
    ]),
    group("Reconciliation", &[
        row("RECONCILIATION_ENABLED",        "false", Bool,                  "compare quota counters with the events on a schedule"),
        row("RECONCILIATION_POLL_INTERVAL",  "5s",    Duration,              "time between two looks for work"),
        row("RECONCILIATION_SCHEDULE",       "15m",   Duration,              "time between two comparisons"),
        row("RECONCILIATION_LOCK_TTL",       "5m",    Duration,              "lease of a claimed comparison"),
        row("RECONCILIATION_TIMEOUT",        "2m",    Duration,              "longest comparison"),
        row("RECONCILIATION_RETRY_AFTER",    "1m",    Duration,              "wait after an error"),
        row("RECONCILIATION_STALE_AFTER",    "30m",   Duration,              "age at which a comparison counts as stale"),
        row("RECONCILIATION_LIMIT",          "100",   Integer(1, 500),       "counters in one comparison"),
        row("RECONCILIATION_LOOKBACK_HOURS", "24",    Integer(1, 720),       "how far back a comparison looks"),
        row("RECONCILIATION_MAX_ATTEMPTS",   "5",     Integer(1, 1_000_000), "tries before a comparison has failed"),
        row("RECONCILIATION_WEBHOOK_URL",    "",      Url,                   "told about differences"),
        row("RECONCILIATION_WEBHOOK_SECRET", "",      Secret,                "signs that webhook; empty: unsigned"),
    ]),
    group("Client commands", &[
        row("URL",     "http://127.0.0.1:18081", Url,    "server that commands such as usage query talk to"),
        row("API_KEY", "",                       Secret, "key that they show it"),
    ]),
];
