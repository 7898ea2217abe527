//! The parts of the configuration, by concern: what each holds, and right below it how it is read
//! from the checked settings. Rules between two settings of a part are here as well.
//!
//! A new setting is a row in `settings.rs`, and here a field and the line that reads it.

use std::path::PathBuf;
use std::time::Duration;

use ipnet::IpNet;

use crate::config::source::Values;
use crate::config::value::{ListenAddr, Secret, dsn_target};
use crate::config::{ConfigError, Role, fault};

/// Connections of a server whose operator did not choose a number.
const DEFAULT_CONNS: u32 = 10;
/// The same of a worker: four jobs that it evaluates at once, one for leases and readiness, and one kept back
/// (`db::pool`).
const DEFAULT_WORKER_CONNS: u32 = 6;

/// REST, dashboard and health.
#[derive(Clone, Debug)]
pub struct Http {
    pub addr: ListenAddr,
    /// Threads that serve requests, at least one.
    pub workers: usize,
    /// Where people find this server, without a slash at its end; `None`: as each request says.
    pub public_url: Option<String>,
    /// Proxies whose forwarding headers are believed.
    pub trusted_proxies: Vec<IpNet>,
    pub secure_cookies: SecureCookies,
    /// Connections at once; 0: as many as the process can afford.
    pub max_connections: usize,
    /// `/metrics` is answered here, too.
    pub metrics: bool,
    /// How long browsers are told to use https; `None`: they are not.
    pub hsts_max_age: Option<Duration>,
    pub log_requests: LogRequests,
}

impl Http {
    pub(super) fn read(v: &Values) -> Http {
        let workers = match v.integer("HTTP_WORKERS") {
            0 => std::thread::available_parallelism().map_or(1, usize::from),
            workers => workers,
        };
        let secure_cookies = match v.text("SECURE_COOKIES").as_str() {
            "always" => SecureCookies::Always,
            "never" => SecureCookies::Never,
            _ => SecureCookies::Auto,
        };
        let trusted_proxies = v.networks("TRUSTED_PROXIES");
        let log_requests = match v.text("LOG_REQUESTS").as_str() {
            "off" => LogRequests::Off,
            "all" => LogRequests::All,
            _ => LogRequests::Changes,
        };
        Http {
            addr: v.address("HTTP_ADDR"),
            workers,
            public_url: v.optional_text("PUBLIC_URL").map(|url| url.trim_end_matches('/').to_owned()),
            trusted_proxies,
            secure_cookies,
            max_connections: v.integer("HTTP_MAX_CONNECTIONS"),
            hsts_max_age: v.optional_duration("HSTS_MAX_AGE"),
            log_requests,
            metrics: v.boolean("HTTP_METRICS"),
        }
    }
}

/// Which requests that go well have a line in the log at its default level.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum LogRequests {
    Off,
    /// What changed something besides usage, and what was slow.
    Changes,
    All,
}

/// When cookies are marked `Secure`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum SecureCookies {
    /// When the request came by https.
    Auto,
    Always,
    Never,
}

/// The database and the connections to it.
#[derive(Clone, Debug)]
pub struct Db {
    pub driver: Driver,
    /// A standby that queries are answered from.
    pub read_dsn: Option<Secret>,
    /// Connections of this process, at least one.
    pub max_open_conns: u32,
    /// Those of a server, and of a worker, that have the settings of this process.
    pub server_open_conns: u32,
    pub worker_open_conns: u32,
    /// Connections kept while idle; `None`: as many as may be open.
    pub max_idle_conns: Option<u32>,
    /// Queries of one workspace at the same time; 0: a share of the connections.
    pub queries_per_workspace: u32,
    /// Longest wait for a free connection.
    pub acquire_timeout: Duration,
    /// Longest work of a call in the database.
    pub statement_timeout: Duration,
    /// Work that takes longer has a line in the log.
    pub slow_after: Option<Duration>,
    pub conn_max_lifetime: Option<Duration>,
    pub conn_max_idle_time: Option<Duration>,
}

impl Db {
    pub(super) fn read(v: &Values, role: Role) -> Result<Db, ConfigError> {
        let max_open: u32 = v.integer("DB_MAX_OPEN_CONNS");
        let of_worker: u32 = v.integer("DB_WORKER_MAX_OPEN_CONNS");
        let chosen = |numbers: [u32; 3]| numbers.into_iter().find(|number| *number > 0).unwrap_or(1);
        let server_open_conns = chosen([max_open, DEFAULT_CONNS, 0]);
        let worker_open_conns = chosen([of_worker, max_open, DEFAULT_WORKER_CONNS]);
        let max_idle: u32 = v.integer("DB_MAX_IDLE_CONNS");
        if max_open > 0 && max_idle > max_open {
            let problem = format!("{max_idle} is above OPEN_SPANNER_DB_MAX_OPEN_CONNS");
            let expected = format!("an integer from 0 to {max_open}");
            return Err(fault("DB_MAX_IDLE_CONNS", &problem, &expected));
        }
        Ok(Db {
            driver: Driver::read(v)?,
            read_dsn: v.secret("POSTGRES_READ_DSN").filter(|_| v.text("DB_DRIVER") == "postgres"),
            max_open_conns: if role.is_worker() { worker_open_conns } else { server_open_conns },
            server_open_conns,
            worker_open_conns,
            max_idle_conns: (max_idle > 0).then_some(max_idle),
            queries_per_workspace: v.integer("DB_QUERIES_PER_WORKSPACE"),
            acquire_timeout: v.duration("DB_ACQUIRE_TIMEOUT"),
            statement_timeout: v.duration("DB_STATEMENT_TIMEOUT"),
            slow_after: v.optional_duration("LOG_SLOW_DATABASE"),
            conn_max_lifetime: v.optional_duration("DB_CONN_MAX_LIFETIME"),
            conn_max_idle_time: v.optional_duration("DB_CONN_MAX_IDLE_TIME"),
        })
    }

    /// The same for the standby, if there is one.
    pub fn of_replica(&self) -> Option<Db> {
        let dsn = self.read_dsn.clone()?;
        Some(Db { driver: Driver::Postgres { dsn }, read_dsn: None, ..self.clone() })
    }
}

/// Which database, and where.
#[derive(Clone, Debug)]
pub enum Driver {
    Sqlite {
        /// A file, a `file:` URI or `:memory:`.
        path: String,
        synchronous: Synchronous,
    },
    Postgres {
        /// Handed to libpq as it is.
        dsn: Secret,
    },
}

impl Driver {
    pub(super) fn read(v: &Values) -> Result<Driver, ConfigError> {
        if v.text("DB_DRIVER") == "postgres" {
            let problem = "is not set while OPEN_SPANNER_DB_DRIVER is postgres";
            let expected = "a connection string like postgres://user:password@host/database";
            return match v.secret("POSTGRES_DSN") {
                Some(dsn) => Ok(Driver::Postgres { dsn }),
                None => Err(fault("POSTGRES_DSN", problem, expected)),
            };
        }
        let synchronous = match v.text("SQLITE_SYNCHRONOUS").as_str() {
            "normal" => Synchronous::Normal,
            _ => Synchronous::Full,
        };
        Ok(Driver::Sqlite { path: v.text("SQLITE_PATH"), synchronous })
    }

    /// `sqlite` or `postgres`.
    pub fn name(&self) -> &'static str {
        match self {
            Driver::Sqlite { .. } => "sqlite",
            Driver::Postgres { .. } => "postgres",
        }
    }

    /// Which database that is, without anything secret, for the log.
    pub fn target(&self) -> String {
        match self {
            Driver::Sqlite { path, .. } => path.clone(),
            Driver::Postgres { dsn } => dsn_target(dsn.expose()).unwrap_or_default(),
        }
    }
}

/// What SQLite waits for before a write counts as done.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Synchronous {
    /// The disk: what was acknowledged survives a power cut.
    Full,
    /// The operating system: faster, and survives a crash of the process only.
    Normal,
}

/// Limits and batches on the way in.
#[derive(Clone, Debug)]
pub struct Ingest {
    pub max_body_bytes: usize,
    /// Request bodies and messages on their way in, over all callers.
    pub bodies_bytes: usize,
    /// Events of open streams, over all callers.
    pub streams_bytes: usize,
    pub max_bulk_events: usize,
    /// Events in one gRPC stream; 0: no limit.
    pub max_stream_events: u64,
    /// Events per workspace and window; 0: no limit.
    pub rate_limit_events: u64,
    pub rate_limit_window: Duration,
    /// Events that may wait to be written.
    pub queue_events: usize,
    /// Events in one write.
    pub batch_events: usize,
    /// Concurrent writers on PostgreSQL.
    pub writers: usize,
    /// What subjects used waits at most so long to be settled.
    pub settle_after: Duration,
    pub bulk_replay_retention: Duration,
    /// The timestamp of a consumption decides which plan and period it counts for, not the time it is made.
    pub consumption_by_timestamp: bool,
    /// What refused events said is kept with the reason.
    pub keeps_refused_payloads: bool,
}

impl Ingest {
    pub(super) fn read(v: &Values) -> Ingest {
        Ingest {
            max_body_bytes: v.integer("INGESTION_MAX_BODY_BYTES"),
            bodies_bytes: v.integer("BODIES_MAX_BYTES"),
            streams_bytes: v.integer("STREAMS_MAX_BYTES"),
            max_bulk_events: v.integer("INGESTION_MAX_BULK_EVENTS"),
            max_stream_events: v.integer("INGESTION_MAX_STREAM_EVENTS"),
            rate_limit_events: v.integer("INGESTION_RATE_LIMIT_EVENTS"),
            rate_limit_window: v.duration("INGESTION_RATE_LIMIT_WINDOW"),
            queue_events: v.integer("INGEST_QUEUE_EVENTS"),
            batch_events: v.integer("INGEST_BATCH_EVENTS"),
            writers: v.integer("INGEST_WRITERS"),
            settle_after: v.duration("INGEST_SETTLE_AFTER"),
            bulk_replay_retention: v.duration("BULK_REPLAY_RETENTION"),
            consumption_by_timestamp: v.text("CONSUMPTION_TIME") == "event",
            keeps_refused_payloads: v.boolean("REFUSED_EVENT_PAYLOADS"),
        }
    }
}

/// Who may sign in, and how.
#[derive(Clone, Debug)]
pub struct Auth {
    /// Anybody may register.
    pub registration_enabled: bool,
    /// Whoever has an invitation may register.
    pub invited_may_register: bool,
    pub password_sign_in: bool,
    pub session_max_age: Duration,
    pub oauth: OAuth,
}

impl Auth {
    pub(super) fn read(v: &Values) -> Result<Auth, ConfigError> {
        let oauth = OAuth::read(v)?;
        let password_sign_in = v.boolean("PASSWORD_SIGN_IN");
        if !password_sign_in && oauth.is_empty() {
            let problem = "is false while no provider is set up, so that nobody could sign in";
            return Err(fault("PASSWORD_SIGN_IN", problem, "a provider beside it, or true"));
        }
        Ok(Auth {
            registration_enabled: v.boolean("REGISTRATION_ENABLED") && v.text("REGISTRATION") == "open",
            invited_may_register: v.text("REGISTRATION") == "invite",
            password_sign_in,
            session_max_age: v.duration("SESSION_MAX_AGE"),
            oauth,
        })
    }
}

/// The sign-in providers; one that is off is not there.
#[derive(Clone, Debug)]
pub struct OAuth {
    pub github: Option<OAuthClient>,
    /// GitHub itself, or an Enterprise server.
    pub github_url: String,
    pub google: Option<OAuthClient>,
    pub oidc: Option<Oidc>,
    /// Whose addresses may sign in with any of them, in lower case; empty: everybody's.
    pub domains: Vec<String>,
    /// Where a provider may send people besides to this server.
    pub redirect_origins: Vec<String>,
}

impl OAuth {
    fn read(v: &Values) -> Result<OAuth, ConfigError> {
        Ok(OAuth {
            github: OAuthClient::read(v, "GITHUB"),
            github_url: v.text("GITHUB_URL").trim_end_matches('/').to_owned(),
            google: OAuthClient::read(v, "GOOGLE"),
            oidc: Oidc::read(v)?,
            domains: words(v, "SIGN_IN_DOMAINS", ',').map(|domain| domain.to_lowercase()).collect(),
            redirect_origins: words(v, "OAUTH_REDIRECT_ORIGINS", ',').collect(),
        })
    }

    pub fn is_empty(&self) -> bool {
        self.github.is_none() && self.google.is_none() && self.oidc.is_none()
    }
}

/// The parts of a list that are not blank.
fn words(v: &Values, name: &str, separator: char) -> impl Iterator<Item = String> {
    let text = v.optional_text(name).unwrap_or_default();
    let words = text.split(separator).map(|word| word.trim().to_owned()).filter(|word| !word.is_empty());
    words.collect::<Vec<_>>().into_iter()
}

/// A provider that is found by its issuer.
#[derive(Clone, Debug)]
pub struct Oidc {
    pub issuer: String,
    pub name: String,
    pub client: OAuthClient,
    pub scopes: String,
    /// Whose addresses count as verified where the provider does not say whether they are, in lower case.
    pub verified_domains: Vec<String>,
    pub groups_claim: String,
    /// Which group gives which role, in the words of the settings; they are checked.
    pub roles: Vec<(String, String)>,
    /// The public id of the workspace of these roles.
    pub workspace: Option<String>,
}

impl Oidc {
    fn read(v: &Values) -> Result<Option<Oidc>, ConfigError> {
        let (Some(issuer), Some(client_id)) =
            (v.optional_text("OIDC_ISSUER"), v.optional_text("OIDC_CLIENT_ID"))
        else {
            return Ok(None);
        };
        let expected = "GROUP=ROLE with a role of owner, admin or viewer, separated by commas";
        let pair = |text: String| {
            let (group, role) = text.rsplit_once('=')?;
            let role = role.trim().to_lowercase();
            let is_role = matches!(role.as_str(), "owner" | "admin" | "viewer");
            is_role.then(|| (group.trim().to_owned(), role))
        };
        let roles: Option<Vec<_>> = words(v, "OIDC_ROLES", ',').map(pair).collect();
        let roles = roles.ok_or_else(|| fault("OIDC_ROLES", "has a part that is no pair", expected))?;
        let verified_domains: Vec<String> =
            words(v, "OIDC_VERIFIED_DOMAINS", ',').map(|domain| domain.to_lowercase()).collect();
        let is_domain = |text: &String| {
            let is_plain = text.chars().all(|c| c.is_alphanumeric() || matches!(c, '.' | '-'));
            is_plain && text.split('.').all(|label| !label.is_empty())
        };
        if !verified_domains.iter().all(is_domain) {
            let problem = "has a part that is no domain";
            return Err(fault("OIDC_VERIFIED_DOMAINS", problem, "domains such as example.com, each by name"));
        }
        let workspace = v.optional_text("OIDC_WORKSPACE");
        if !roles.is_empty() && workspace.is_none() {
            let problem = "is not set while OPEN_SPANNER_OIDC_ROLES is";
            return Err(fault("OIDC_WORKSPACE", problem, "the id of a workspace"));
        }
        Ok(Some(Oidc {
            issuer,
            name: v.text("OIDC_NAME"),
            client: OAuthClient {
                client_id,
                client_secret: v.secret("OIDC_CLIENT_SECRET"),
                redirect_url: v.optional_text("OIDC_REDIRECT_URL"),
            },
            scopes: v.text("OIDC_SCOPES"),
            verified_domains,
            groups_claim: v.text("OIDC_GROUPS_CLAIM"),
            roles,
            workspace,
        }))
    }
}

/// Our registration at an OAuth provider.
#[derive(Clone, Debug)]
pub struct OAuthClient {
    pub client_id: String,
    /// `None`: a public client.
    pub client_secret: Option<Secret>,
    /// Fixed callback URL, instead of one made from the request.
    pub redirect_url: Option<String>,
}

impl OAuthClient {
    pub(super) fn read(v: &Values, provider: &str) -> Option<OAuthClient> {
        let client = OAuthClient {
            client_id: v.optional_text(&format!("{provider}_OAUTH_CLIENT_ID"))?,
            client_secret: Some(v.secret(&format!("{provider}_OAUTH_CLIENT_SECRET"))?),
            redirect_url: v.optional_text(&format!("{provider}_OAUTH_REDIRECT_URL")),
        };
        v.boolean(&format!("{provider}_OAUTH_ENABLED")).then_some(client)
    }
}

/// How mail leaves this server.
#[derive(Clone, Debug)]
pub struct Mail {
    pub smtp_url: Secret,
    pub from: String,
    /// What links in mails begin with.
    pub public_url: String,
}

impl Mail {
    /// All three settings, or no mail.
    pub(super) fn read(v: &Values, http: &Http) -> Option<Mail> {
        let (smtp_url, from) = (v.secret("SMTP_URL")?, v.optional_text("MAIL_FROM")?);
        Some(Mail { smtp_url, from, public_url: http.public_url.clone()? })
    }
}

/// Finished exports.
#[derive(Clone, Debug)]
pub struct Exports {
    pub storage: ExportStorage,
    /// How long a finished export can be downloaded.
    pub retention: Duration,
    pub cleanup_interval: Duration,
    pub cleanup_batch_size: usize,
}

impl Exports {
    pub(super) fn read(v: &Values) -> Result<Exports, ConfigError> {
        let keys = S3Keys::read(v)?;
        let storage = match v.text("EXPORT_STORAGE_DRIVER").as_str() {
            "s3" => ExportStorage::S3(S3::read(v, keys)?),
            _ => ExportStorage::Filesystem { path: v.text("EXPORT_STORAGE_PATH").into() },
        };
        Ok(Exports {
            storage,
            retention: v.duration("EXPORT_RETENTION"),
            cleanup_interval: v.duration("EXPORT_CLEANUP_INTERVAL"),
            cleanup_batch_size: v.integer("EXPORT_CLEANUP_BATCH_SIZE"),
        })
    }
}

/// Where finished exports are kept.
#[derive(Clone, Debug)]
pub enum ExportStorage {
    Filesystem { path: PathBuf },
    S3(S3),
}

/// An S3 bucket, at AWS or at a compatible server.
#[derive(Clone, Debug)]
pub struct S3 {
    pub bucket: String,
    pub region: String,
    /// The server; `None`: AWS.
    pub endpoint: Option<String>,
    /// `None`: the cloud's own credentials.
    pub keys: Option<S3Keys>,
    /// In front of every object name, without slashes at its ends.
    pub prefix: String,
    /// Whether the bucket is named in the path instead of the host.
    pub force_path_style: bool,
}

impl S3 {
    pub(super) fn read(v: &Values, keys: Option<S3Keys>) -> Result<S3, ConfigError> {
        let problem = "is not set while OPEN_SPANNER_EXPORT_STORAGE_DRIVER is s3";
        let bucket = v.optional_text("EXPORT_S3_BUCKET");
        let endpoint = v.optional_text("EXPORT_S3_ENDPOINT");
        let prefix = v.optional_text("EXPORT_S3_PREFIX").unwrap_or_default();
        let force_path_style = v.optional_boolean("EXPORT_S3_FORCE_PATH_STYLE");
        Ok(S3 {
            bucket: bucket.ok_or_else(|| fault("EXPORT_S3_BUCKET", problem, "a bucket name"))?,
            region: v.text("EXPORT_S3_REGION"),
            force_path_style: force_path_style.unwrap_or(endpoint.is_some()),
            endpoint,
            keys,
            prefix: prefix.trim_matches('/').to_owned(),
        })
    }
}

/// Credentials for S3.
#[derive(Clone, Debug)]
pub struct S3Keys {
    pub access_key_id: String,
    pub secret_access_key: Secret,
    pub session_token: Option<Secret>,
}

impl S3Keys {
    pub(super) fn read(v: &Values) -> Result<Option<S3Keys>, ConfigError> {
        const ID: &str = "EXPORT_S3_ACCESS_KEY_ID";
        const SECRET: &str = "EXPORT_S3_SECRET_ACCESS_KEY";
        const TOKEN: &str = "EXPORT_S3_SESSION_TOKEN";
        let (id, secret) = (v.optional_text(ID), v.secret(SECRET));
        let session_token = v.secret(TOKEN);
        let both = "an access key id and its secret, or neither";
        match (id, secret) {
            (Some(access_key_id), Some(secret_access_key)) => {
                Ok(Some(S3Keys { access_key_id, secret_access_key, session_token }))
            }
            (Some(_), None) => Err(fault(SECRET, "is not set while the key id is", both)),
            (None, Some(_)) => Err(fault(ID, "is not set while its secret is", both)),
            (None, None) if session_token.is_some() => {
                Err(fault(TOKEN, "is set without a key", "an access key id and its secret as well"))
            }
            (None, None) => Ok(None),
        }
    }
}

/// The background work, whether in processes of their own or inside `serve`.
#[derive(Clone, Debug)]
pub struct Workers {
    /// Whether `serve` runs them itself.
    pub in_serve: bool,
    pub export: ExportWorker,
    pub alert: Worker,
    pub entitlement: Worker,
    pub usage: Worker,
}

impl Workers {
    pub(super) fn read(v: &Values, driver: &Driver) -> Workers {
        Workers {
            in_serve: match v.text("SERVE_WORKERS").as_str() {
                "on" => true,
                "off" => false,
                _ => matches!(driver, Driver::Sqlite { .. }),
            },
            export: ExportWorker {
                interval: v.duration("EXPORT_WORKER_INTERVAL"),
                lock_ttl: v.duration("EXPORT_WORKER_LOCK_TTL"),
                timeout: v.duration("EXPORT_WORKER_TIMEOUT"),
                max_attempts: v.integer("EXPORT_WORKER_MAX_ATTEMPTS"),
                health_addr: v.address("EXPORT_WORKER_HEALTH_ADDR"),
            },
            alert: Worker::read(v, "ALERT"),
            entitlement: Worker::read(v, "ENTITLEMENT"),
            usage: Worker::read(v, "USAGE"),
        }
    }
}

/// A worker that claims jobs in batches.
#[derive(Clone, Debug)]
pub struct Worker {
    /// Time between two looks for work.
    pub interval: Duration,
    /// Lease of a claimed job.
    pub lock_ttl: Duration,
    /// Longest run of one job.
    pub timeout: Duration,
    /// Wait after an error.
    pub retry_after: Duration,
    /// Tries before a job is dead.
    pub max_attempts: u32,
    /// Jobs claimed at a time.
    pub batch_size: usize,
    /// Health of the separate process.
    pub health_addr: ListenAddr,
}

impl Worker {
    pub(super) fn read(v: &Values, worker: &str) -> Worker {
        Worker {
            interval: v.duration(&format!("{worker}_WORKER_INTERVAL")),
            lock_ttl: v.duration(&format!("{worker}_WORKER_LOCK_TTL")),
            timeout: v.duration(&format!("{worker}_WORKER_TIMEOUT")),
            retry_after: v.duration(&format!("{worker}_WORKER_RETRY_AFTER")),
            max_attempts: v.integer(&format!("{worker}_WORKER_MAX_ATTEMPTS")),
            batch_size: v.integer(&format!("{worker}_WORKER_BATCH_SIZE")),
            health_addr: v.address(&format!("{worker}_WORKER_HEALTH_ADDR")),
        }
    }
}

/// The worker that writes exports, one job at a time.
#[derive(Clone, Debug)]
pub struct ExportWorker {
    pub interval: Duration,
    pub lock_ttl: Duration,
    pub timeout: Duration,
    pub max_attempts: u32,
    pub health_addr: ListenAddr,
}

/// Pruning of usage and decisions.
#[derive(Clone, Debug)]
pub struct Retention {
    pub prune_enabled: bool,
    pub prune_interval: Duration,
    pub prune_timeout: Duration,
    /// Age at which consumption decisions are pruned.
    pub decisions: Duration,
    /// How long keys are known; none: for ever.
    pub keys: Option<Duration>,
    /// Age at which rows of the audit trail are pruned; none: never.
    pub audit: Option<Duration>,
}

/// Callers try again for so long at least.
const KEYS_KNOWN_AT_LEAST: Duration = Duration::from_secs(24 * 3600);

impl Retention {
    pub(super) fn read(v: &Values) -> Result<Retention, ConfigError> {
        let keys = v.optional_duration("IDEMPOTENCY_KEY_RETENTION");
        if keys.is_some_and(|keys| keys < KEYS_KNOWN_AT_LEAST) {
            let problem = "is so short that what is tried again would count twice";
            return Err(fault("IDEMPOTENCY_KEY_RETENTION", problem, "24h or more, or 0"));
        }
        Ok(Retention {
            prune_enabled: v.boolean("RETENTION_PRUNE_ENABLED"),
            prune_interval: v.duration("RETENTION_PRUNE_INTERVAL"),
            prune_timeout: v.duration("RETENTION_PRUNE_TIMEOUT"),
            decisions: v.duration("CONSUMPTION_DECISION_RETENTION"),
            keys,
            audit: v.optional_duration("AUDIT_RETENTION"),
        })
    }
}

/// Deletion of old runs, export jobs and deliveries.
#[derive(Clone, Debug)]
pub struct History {
    pub retention: Duration,
    pub interval: Duration,
    pub timeout: Duration,
    pub batch_size: usize,
}

impl History {
    pub(super) fn read(v: &Values) -> History {
        History {
            retention: v.duration("OPERATIONAL_HISTORY_RETENTION"),
            interval: v.duration("OPERATIONAL_HISTORY_INTERVAL"),
            timeout: v.duration("OPERATIONAL_HISTORY_TIMEOUT"),
            batch_size: v.integer("OPERATIONAL_HISTORY_BATCH_SIZE"),
        }
    }
}

/// Comparison of quota counters with the events.
#[derive(Clone, Debug)]
pub struct Reconciliation {
    pub enabled: bool,
    pub poll_interval: Duration,
    pub schedule: Duration,
    pub lock_ttl: Duration,
    pub timeout: Duration,
    pub retry_after: Duration,
    pub stale_after: Duration,
    pub limit: usize,
    pub lookback_hours: u32,
    pub max_attempts: u32,
    pub webhook_url: Option<String>,
    /// Signs the webhook; `None`: unsigned.
    pub webhook_secret: Option<Secret>,
}

impl Reconciliation {
    pub(super) fn read(v: &Values) -> Reconciliation {
        Reconciliation {
            enabled: v.boolean("RECONCILIATION_ENABLED"),
            poll_interval: v.duration("RECONCILIATION_POLL_INTERVAL"),
            schedule: v.duration("RECONCILIATION_SCHEDULE"),
            lock_ttl: v.duration("RECONCILIATION_LOCK_TTL"),
            timeout: v.duration("RECONCILIATION_TIMEOUT"),
            retry_after: v.duration("RECONCILIATION_RETRY_AFTER"),
            stale_after: v.duration("RECONCILIATION_STALE_AFTER"),
            limit: v.integer("RECONCILIATION_LIMIT"),
            lookback_hours: v.integer("RECONCILIATION_LOOKBACK_HOURS"),
            max_attempts: v.integer("RECONCILIATION_MAX_ATTEMPTS"),
            webhook_url: v.optional_text("RECONCILIATION_WEBHOOK_URL"),
            webhook_secret: v.secret("RECONCILIATION_WEBHOOK_SECRET"),
        }
    }
}

/// The server that commands such as `events import` talk to, and what they show it.
#[derive(Clone, Debug)]
pub struct Client {
    pub url: String,
    pub api_key: Option<Secret>,
}

impl Client {
    pub(super) fn read(v: &Values) -> Client {
        Client { url: v.text("URL"), api_key: v.secret("API_KEY") }
    }
}
