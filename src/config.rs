//! The configuration: the command line and the settings, read once at the start, checked as a
//! whole, and never changed afterwards.
//!
//! This file is the only reader of the process environment. `config/settings.rs` is the table of
//! all settings, `config/cli.rs` the command line, `config/source.rs` decides which place wins,
//! `config/value.rs` reads each kind of value. What no other process may see, a secret, is a
//! `Secret` from here on.

use std::collections::BTreeMap;
use std::ffi::OsString;
use std::fmt;
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::time::Duration;

use ipnet::IpNet;

mod cli;
pub mod commands;
pub mod import;
mod otlp;
mod sections;
mod settings;
mod source;
pub mod tenant;
#[cfg(test)]
mod tests;
mod value;

pub use cli::{VERSION, command_line};
pub use sections::{
    Auth, Client, Db, Driver, ExportStorage, ExportWorker, Exports, History, Http, Ingest, LogRequests, Mail,
    OAuth, OAuthClient, Oidc, Reconciliation, Retention, S3, S3Keys, SecureCookies, Synchronous, Worker,
    Workers,
};
use source::{Source, Values};
pub use value::{ListenAddr, Secret, without_password};

/// Everything a role needs to know, fixed for the life of the process.
#[derive(Clone, Debug)]
pub struct Config {
    pub role: Role,
    /// Whether a workspace is filled with something to look at.
    pub demo: bool,
    /// Whether a server or worker applies pending migrations at its start.
    pub migrate: bool,
    /// Whether a schema that a newer version made will do.
    pub accept_newer_schema: bool,
    /// The role that `migrate` lets use the tables.
    pub grant_to: Option<String>,
    /// The database that `migrate` may delete data of.
    pub deletes_data_of: Option<String>,
    pub http: Http,
    /// Where gRPC listens, if it does.
    pub grpc_addr: Option<ListenAddr>,
    /// gRPC connections at once; 0: as many as the process can afford.
    pub grpc_max_connections: usize,
    /// Connections of one address to one port; 0: half of the port's.
    pub max_connections_per_address: usize,
    /// Private listener for Prometheus, if there is one.
    pub metrics_addr: Option<ListenAddr>,
    pub db: Db,
    pub ingest: Ingest,
    pub auth: Auth,
    /// How mail is sent, if it is.
    pub mail: Option<Mail>,
    pub exports: Exports,
    pub workers: Workers,
    pub retention: Retention,
    pub history: History,
    pub reconciliation: Reconciliation,
    /// Private networks that webhooks may reach.
    pub webhook_allowed_networks: Vec<IpNet>,
    /// Plain http is refused.
    pub webhook_https_only: bool,
    /// How long keys, meters and plans may be served from memory.
    pub cache_ttl: Duration,
    /// Keys that seal stored secrets, as `vault` reads them.
    pub encryption_keys: Option<Secret>,
    /// A folder of an image that must be a volume.
    pub data_volume: Option<PathBuf>,
    /// Where there is no key and none is made: whether secrets are stored as they are, or not at all.
    pub clear_secrets: bool,
    /// Time to finish accepted work after a signal to stop.
    pub shutdown_timeout: Duration,
    pub log_format: LogFormat,
    /// Whether spans are sent by OTLP: its variables name an endpoint, and this program can.
    pub otlp: bool,
    /// What commands that are clients talk to.
    pub client: Client,
}

/// What this process does.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Role {
    /// REST, dashboard and gRPC.
    Serve,
    Migrate(MigrateAction),
    ExportWorker,
    AlertWorker,
    EntitlementWorker,
    UsageWorker,
    /// Something else that ends by itself, by its name; [`Loaded::command`] has the rest.
    Command(&'static str),
}

impl Role {
    /// The subcommand.
    pub fn name(self) -> &'static str {
        match self {
            Role::Serve => "serve",
            Role::Migrate(_) => "migrate",
            Role::ExportWorker => "export-worker",
            Role::AlertWorker => "alert-worker",
            Role::EntitlementWorker => "entitlement-worker",
            Role::UsageWorker => "usage-worker",
            Role::Command(name) => name,
        }
    }
}

impl Role {
    /// Whether it does background work and nothing else.
    pub fn is_worker(self) -> bool {
        matches!(self, Role::ExportWorker | Role::AlertWorker | Role::EntitlementWorker | Role::UsageWorker)
    }
}

/// What `migrate` does to the schema.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum MigrateAction {
    /// Run what has not run yet, and lay the tables out over the nodes of a cluster if that is wished.
    Up { distribute: bool },
    /// Only show what has run.
    Status { json: bool },
    /// Undo this many, the newest first.
    Revert(u32),
}

/// How log lines look.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum LogFormat {
    /// Text on a terminal, JSON otherwise.
    Auto,
    Text,
    Json,
}

/// The configuration, and what start-up needs besides.
#[derive(Clone, Debug)]
pub struct Loaded {
    pub config: Config,
    /// What to do when the role is [`Role::Command`].
    pub command: Option<commands::Command>,
    /// What to log, in the syntax of `RUST_LOG`.
    pub log_filter: String,
    /// Worth a line in the log: variables nobody reads, settings without effect.
    pub warnings: Vec<String>,
    /// The settings that are not as they are by default, for the first line of the log. Secrets are only said to be set.
    pub chosen: String,
    /// What each setting says, by its variable. Never shown.
    pub texts: BTreeMap<String, Secret>,
}

/// A setting that cannot be used, as one line that names its variable.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ConfigError {
    pub variable: String,
    pub problem: String,
    pub expected: String,
}

impl fmt::Display for ConfigError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let ConfigError { variable, problem, expected } = self;
        write!(f, "invalid config: {variable}: {problem}, expected {expected}")
    }
}

impl std::error::Error for ConfigError {}

/// The process ends before it did anything: help was asked for, or something is wrong.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Exit {
    /// 0 after help, version and `--print-config`; 2 after a mistake.
    pub code: u8,
    /// Complete lines.
    pub text: String,
}

impl Exit {
    /// Prints the text where it belongs; the code is for `main` to return.
    pub fn print(&self) -> ExitCode {
        use std::io::Write;
        // a reader that went away, like `head`, is no reason to panic
        let _ = match self.code {
            0 => std::io::stdout().write_all(self.text.as_bytes()),
            _ => std::io::stderr().write_all(self.text.as_bytes()),
        };
        ExitCode::from(self.code)
    }
}

impl From<ConfigError> for Exit {
    fn from(error: ConfigError) -> Exit {
        Exit { code: 2, text: format!("{error}\n") }
    }
}

impl From<clap::Error> for Exit {
    fn from(error: clap::Error) -> Exit {
        let code = if error.use_stderr() { 2 } else { 0 };
        Exit { code, text: error.render().to_string() }
    }
}

/// Reads the arguments and the environment of this process, and `.env` in its working directory;
/// again, if wanted, for the secrets in files and the log filter may have changed meanwhile.
pub fn load() -> Result<Loaded, Exit> {
    // first of all, so that --help works next to a broken .env
    let cli = cli::parse(std::env::args_os())?;
    if let Some(commands::Command::Completions { .. } | commands::Command::Man { .. }) = cli.command {
        // about the program and not about this machine
        return resolve(cli, BTreeMap::new(), BTreeMap::new());
    }
    let environment = utf8(std::env::vars_os())?;
    let dotenv = source::read_dotenv(Path::new(".env"))?;
    resolve(cli, environment, dotenv)
}

/// As `load`, from arguments (the program name first) and variables that are passed in.
pub fn load_from(argv: &[&str], variables: &[(&str, &str)]) -> Result<Loaded, Exit> {
    let cli = cli::parse(argv.iter().map(OsString::from))?;
    let owned = |(name, text): &(&str, &str)| ((*name).to_owned(), (*text).to_owned());
    resolve(cli, variables.iter().map(owned).collect(), BTreeMap::new())
}

/// The variables of the process that concern us, as text.
fn utf8(
    variables: impl Iterator<Item = (OsString, OsString)>,
) -> Result<BTreeMap<String, String>, ConfigError> {
    let ours = variables.filter_map(|(name, text)| match name.into_string() {
        Ok(name) if name.starts_with(settings::PREFIX) || name == "RUST_LOG" || otlp::is_read(&name) => {
            Some((name, text))
        }
        _ => None,
    });
    ours.map(|(variable, text)| match text.into_string() {
        Ok(text) => Ok((variable, text)),
        Err(_) => Err(ConfigError { variable, problem: "is not text".into(), expected: "UTF-8".into() }),
    })
    .collect()
}

fn resolve(
    cli: cli::Cli,
    environment: BTreeMap<String, String>,
    dotenv: BTreeMap<String, String>,
) -> Result<Loaded, Exit> {
    let source = Source { flags: cli.flags.clone(), environment, dotenv };
    let values = source.values()?;
    let config = Config::read(&cli, &values);
    let (mut warnings, log_filter) = (source.unknown(), values.text("RUST_LOG"));
    warnings.extend(without_effect(&values));
    values.agree()?;
    let (otlp, said_of_otlp) = otlp::read(cli.role, &source.environment, &source.dotenv);
    let config = Config { otlp, ..config? };
    warnings.extend(said_of_otlp);
    if cli.print_config {
        let warnings = warnings.iter().map(|warning| format!("# warning: {warning}\n"));
        let role = cli.role.name();
        let text = format!("# role: {role}\n{}{}", String::from_iter(warnings), values.print());
        return Err(Exit { code: 0, text });
    }
    let chosen = chosen(&values.print());
    Ok(Loaded { config, command: cli.command, log_filter, warnings, chosen, texts: values.texts() })
}

/// Of the page of `--print-config` what is not as it is by default, on one line.
fn chosen(page: &str) -> String {
    let settings = page.lines().filter_map(|line| line.rsplit_once("  # "));
    let chosen = settings.filter(|(_, origin)| *origin != "default").map(|(setting, _)| setting);
    chosen.collect::<Vec<_>>().join(" ")
}

/// Settings that are half of a pair, or ask for what this version does not have, which leaves something off that was
/// probably meant to be on.
fn without_effect(v: &Values) -> Vec<String> {
    let pairs = [
        ("GITHUB_OAUTH_CLIENT_ID", "GITHUB_OAUTH_CLIENT_SECRET"),
        ("GOOGLE_OAUTH_CLIENT_ID", "GOOGLE_OAUTH_CLIENT_SECRET"),
        ("OIDC_ISSUER", "OIDC_CLIENT_ID"),
        ("SMTP_URL", "MAIL_FROM"),
        ("SMTP_URL", "PUBLIC_URL"),
        ("RECONCILIATION_WEBHOOK_URL", "RECONCILIATION_WEBHOOK_SECRET"),
    ];
    let halves = pairs.into_iter().filter_map(|(a, b)| match (v.has(a), v.has(b)) {
        // a webhook without a secret is merely unsigned
        (true, false) if a != "RECONCILIATION_WEBHOOK_URL" => Some((a, b)),
        // links elsewhere are made of it as well
        (false, true) if b != "PUBLIC_URL" => Some((b, a)),
        _ => None,
    });
    let prefix = settings::PREFIX;
    let halves = halves.map(|(set, unset)| format!("{prefix}{set} has no effect without {prefix}{unset}"));
    // the Go server would begin to compare
    let absent = v
        .boolean("RECONCILIATION_ENABLED")
        .then(|| format!("{prefix}RECONCILIATION_ENABLED has no effect: this version has no reconciliation"));
    halves.chain(absent).collect()
}

/// An error about the setting of this name.
fn fault(name: &str, problem: &str, expected: &str) -> ConfigError {
    let variable = format!("{}{name}", settings::PREFIX);
    ConfigError { variable, problem: problem.to_owned(), expected: expected.to_owned() }
}

impl Config {
    fn read(cli: &cli::Cli, v: &Values) -> Result<Config, ConfigError> {
        let db = Db::read(v, cli.role)?;
        let workers = Workers::read(v, &db.driver);
        let http = Http::read(v);
        Ok(Config {
            role: cli.role,
            demo: cli.demo,
            migrate: cli.migrate,
            accept_newer_schema: cli.accept_newer_schema || v.text("NEWER_SCHEMA") == "accept",
            grant_to: cli.grant_to.clone(),
            deletes_data_of: cli.deletes_data_of.clone(),
            mail: Mail::read(v, &http),
            http,
            grpc_addr: v.optional_address("GRPC_ADDR"),
            grpc_max_connections: v.integer("GRPC_MAX_CONNECTIONS"),
            max_connections_per_address: v.integer("MAX_CONNECTIONS_PER_ADDRESS"),
            metrics_addr: v.optional_address("METRICS_ADDR"),
            db,
            ingest: Ingest::read(v),
            auth: Auth::read(v)?,
            exports: Exports::read(v)?,
            workers,
            retention: Retention::read(v)?,
            history: History::read(v),
            reconciliation: Reconciliation::read(v),
            webhook_allowed_networks: v.networks("WEBHOOK_ALLOWED_NETWORKS"),
            webhook_https_only: v.boolean("WEBHOOK_HTTPS_ONLY"),
            cache_ttl: v.duration("CACHE_TTL"),
            encryption_keys: v.secret("ENCRYPTION_KEYS"),
            data_volume: v.optional_text("DATA_VOLUME").map(PathBuf::from),
            clear_secrets: v.boolean("CLEAR_SECRETS"),
            shutdown_timeout: v.duration("SHUTDOWN_TIMEOUT"),
            log_format: match v.text("LOG_FORMAT").as_str() {
                "text" => LogFormat::Text,
                "json" => LogFormat::Json,
                _ => LogFormat::Auto,
            },
            otlp: false,
            client: Client::read(v),
        })
    }
}
