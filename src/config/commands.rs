//! The commands of operators and clients, as the command line has them: everything but the roles. What they do stands
//! in `crate::cli`.

use std::path::PathBuf;

use clap::{Args, Subcommand, ValueEnum};

pub use clap_complete::Shell;

use crate::config::import::Import;
use crate::config::tenant::Tenant;

#[derive(Clone, Debug, Subcommand)]
pub enum Command {
    /// Ask a running process whether it lives, or is ready: for health checks
    Probe(Probe),
    /// Look for what is wrong with settings, database, disks, workers and queues
    Doctor(Json),
    /// What an operator does to users' things, with the server stopped or running
    #[command(subcommand)]
    Admin(Admin),
    /// The keys that seal stored secrets
    #[command(subcommand)]
    Keys(Keys),
    /// The audit trail
    #[command(subcommand)]
    Audit(Audit),
    /// Write a backup of the database while it is in use, or verify one
    Backup(Backup),
    /// Bring a backup back into an empty database
    Restore(Restore),
    /// Send events to a server, or watch them come
    #[command(subcommand)]
    Events(Events),
    /// Ask a server what was used
    #[command(subcommand)]
    Usage(Usage),
    /// Bring in what other programs hold
    #[command(subcommand)]
    Import(Import),
    /// One workspace with everything, out of this installation and into another
    #[command(subcommand)]
    Tenant(Tenant),
    /// Print the completions of a shell
    #[command(after_help = "Example:\n  open-spanner completions bash > /etc/bash_completion.d/open-spanner")]
    Completions { shell: Shell },
    /// Print a manual page
    #[command(after_help = "Example:\n  open-spanner man > open-spanner.1")]
    Man {
        /// Of this command; without it, of the program
        command: Option<String>,
    },
}

#[derive(Clone, Copy, Debug, Args)]
pub struct Json {
    /// Print JSON
    #[arg(long)]
    pub json: bool,
}

#[derive(Clone, Debug, Args)]
#[command(after_help = "\
The address comes from the settings of the process that is asked, so that a probe needs none of its own.

Examples:
  open-spanner probe                             # lives: for HEALTHCHECK and liveness
  open-spanner probe --ready                     # takes traffic
  open-spanner probe --role alert-worker --ready")]
pub struct Probe {
    /// What the process was started as
    #[arg(long, value_enum, default_value = "serve")]
    pub role: ProbedRole,
    /// Ask whether it can do its work, not only whether it lives
    #[arg(long)]
    pub ready: bool,
    /// Longest wait for the answer, in seconds
    #[arg(long, value_name = "SECONDS", default_value = "5", value_parser = clap::value_parser!(u64).range(1..=600))]
    pub timeout: u64,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum ProbedRole {
    Serve,
    ExportWorker,
    AlertWorker,
    EntitlementWorker,
    UsageWorker,
}

#[derive(Clone, Debug, Subcommand)]
pub enum Admin {
    /// People: who cannot get in, and who should not be in any more
    #[command(subcommand)]
    User(User),
    /// API keys
    #[command(subcommand)]
    Key(Key),
    /// Workspaces
    #[command(subcommand)]
    Workspace(Workspace),
    /// Who belongs to a workspace, and with which role
    #[command(subcommand)]
    Member(Member),
    /// Background work
    #[command(subcommand)]
    Queue(Queue),
}

#[derive(Clone, Debug, Subcommand)]
pub enum Keys {
    /// How many secrets lie under which key; ends with 3 when a key is missing
    Status(Json),
    /// Seal every secret with the first key of OPEN_SPANNER_ENCRYPTION_KEYS, also those that lie in clear text
    Rotate {
        /// Put new secrets in the place of those whose key is gone for good: receivers have to be told
        #[arg(long)]
        replace_lost: bool,
    },
}

#[derive(Clone, Debug, Subcommand)]
pub enum Audit {
    /// Compute every hash anew; ends with 3 when a row was changed or is missing
    Verify(Json),
    /// Delete what is older than OPEN_SPANNER_AUDIT_RETENTION, as the owner of the schema, where the role of the server may not
    Prune {
        /// Another age, in days
        #[arg(long, value_name = "DAYS", value_parser = clap::value_parser!(u32).range(1..))]
        older_than_days: Option<u32>,
        #[command(flatten)]
        json: Json,
    },
}

#[derive(Clone, Debug, Subcommand)]
pub enum User {
    /// Make a user with a workspace of their own, and print a link with which they set their password
    Create(UserLink),
    /// Print a link with which a user sets another password; using it ends their sessions
    ResetPassword(UserLink),
    /// Everybody
    List(Json),
    /// Nobody comes in as them any more, their sessions end, and their keys open nothing
    Disable(UserAddress),
    /// Take that back
    Enable(UserAddress),
    /// Let a user sign in whom failed attempts have locked out
    Unlock(UserAddress),
    /// End every session of a user; running servers notice within the time of OPEN_SPANNER_CACHE_TTL
    EndSessions {
        /// Their address
        #[arg(long)]
        email: String,
    },
}

#[derive(Clone, Debug, Args)]
pub struct UserAddress {
    /// Their address
    #[arg(long)]
    pub email: String,
}

#[derive(Clone, Debug, Args)]
pub struct UserLink {
    /// Their address
    #[arg(long)]
    pub email: String,
    #[command(flatten)]
    pub json: Json,
}

#[derive(Clone, Debug, Subcommand)]
pub enum Key {
    /// Make an API key and print it; it is shown only here
    Create(KeyCreate),
    /// The keys of a workspace
    List {
        #[command(flatten)]
        of: Of,
        #[command(flatten)]
        json: Json,
    },
    /// End a key; running servers notice within the time of OPEN_SPANNER_CACHE_TTL
    Revoke {
        /// Its id, as `list` shows it
        id: String,
    },
}

/// Whose things are meant.
#[derive(Clone, Debug, Default, Args)]
pub struct Of {
    /// The workspace with this id; without it, the only one there is
    #[arg(long, value_name = "ID")]
    pub workspace: Option<String>,
    /// The user with this address
    #[arg(long, value_name = "EMAIL")]
    pub email: Option<String>,
}

#[derive(Clone, Debug, Args)]
#[command(after_help = "\
In a database without users, --email makes the first one, who has no password.

Examples:
  KEY=$(open-spanner admin key create --email me@example.com)
  open-spanner admin key create --workspace 0198… --name reader --scope usage:read --json")]
pub struct KeyCreate {
    #[command(flatten)]
    pub of: Of,
    /// What it is called in lists
    #[arg(long, default_value = "command line")]
    pub name: String,
    /// What it may do; can be repeated; without it, what a key may do by default
    #[arg(long = "scope", value_name = "SCOPE")]
    pub scopes: Vec<String>,
    /// A meter it is confined to; can be repeated
    #[arg(long = "meter", value_name = "NAME")]
    pub meters: Vec<String>,
    /// A network it may be used from, like 192.0.2.0/24; can be repeated
    #[arg(long = "from", value_name = "NETWORK")]
    pub networks: Vec<String>,
    /// When it ends, like 2027-01-01T00:00:00Z
    #[arg(long, value_name = "TIME", default_value = "", hide_default_value = true)]
    pub expires: String,
    #[command(flatten)]
    pub json: Json,
}

#[derive(Clone, Debug, Subcommand)]
pub enum Workspace {
    /// All workspaces and who owns them
    List(Json),
    /// Make a workspace, of a user who is there, and print its id
    Create {
        /// What it is called
        #[arg(long)]
        name: String,
        /// The address of its owner
        #[arg(long)]
        owner: String,
        #[command(flatten)]
        json: Json,
    },
    /// Give a workspace another name
    Rename { id: String, name: String },
}

#[derive(Clone, Debug, Subcommand)]
pub enum Member {
    /// Who belongs to a workspace, the oldest first
    List {
        /// Its id, as `workspace list` shows it
        #[arg(long, value_name = "ID")]
        workspace: String,
        #[command(flatten)]
        json: Json,
    },
    /// Give a user a role in a workspace, or take them in with it; running servers notice within the time of OPEN_SPANNER_CACHE_TTL
    SetRole {
        /// Its id, as `workspace list` shows it
        #[arg(long, value_name = "ID")]
        workspace: String,
        /// The address of the user
        #[arg(long)]
        email: String,
        /// owner, admin or viewer
        #[arg(long)]
        role: String,
    },
}

#[derive(Clone, Debug, Subcommand)]
pub enum Queue {
    /// What waits, runs and failed in each queue, and the newest jobs that were given up
    List(Json),
    /// Queue a job anew that was given up
    Retry {
        /// Its id, as `list` shows it
        id: String,
    },
}

#[derive(Clone, Debug, Args)]
#[command(
    args_conflicts_with_subcommands = true,
    arg_required_else_help = true,
    after_help = "\
Beside FILE stands FILE.manifest.json: rows of each table, events and exact sums per meter and month, a checksum.
On SQLite FILE is a SQLite database; on PostgreSQL it is made by pg_dump, which must be installed. Files of exports are
not in it.

Examples:
  open-spanner backup /backups/monday
  open-spanner backup verify /backups/monday      # restores it into a database that is thrown away
  open-spanner backup - --manifest /backups/monday.manifest.json | ssh backups 'cat > monday'
  open-spanner restore /backups/monday"
)]
pub struct Backup {
    /// Where to write it; nothing is overwritten. With - it goes to standard output, once it is whole
    pub file: Option<PathBuf>,
    /// With -: where to write the manifest
    #[arg(long, value_name = "FILE")]
    pub manifest: Option<PathBuf>,
    #[command(flatten)]
    pub json: Json,
    #[command(subcommand)]
    pub action: Option<BackupAction>,
}

#[derive(Clone, Debug, Subcommand)]
pub enum BackupAction {
    /// Restore a backup into a database that is thrown away, and compare all numbers with the manifest
    Verify {
        file: PathBuf,
        #[command(flatten)]
        json: Json,
    },
}

#[derive(Clone, Debug, Subcommand)]
pub enum Events {
    /// Store the events of a file, exactly once
    Import(EventsImport),
    /// Print events as they come, one JSON object per line
    Tail(EventsTail),
}

#[derive(Clone, Debug, Args)]
#[command(after_help = "\
NDJSON: an event per line, as POST /v1/usages takes it. CSV: the first row names the columns meter, subject, quantity,
timestamp, idempotency_key; any other column is metadata. An event without a key gets one made of the file's content and
its line, so that a file that is sent again counts once; a file with one more line is another file.

An import that was cut off goes on where it was (FILE.progress.json). Lines that are refused are written to
FILE.errors.ndjson with the reason; the others are stored, and the exit code is 3.

Examples:
  open-spanner events import june.csv --meter tokens --dry-run
  open-spanner events import june.ndjson --url https://usage.example.com --api-key-file key")]
pub struct EventsImport {
    pub file: PathBuf,
    /// What the file is; without it, by its name
    #[arg(long, value_enum)]
    pub format: Option<EventsFormat>,
    /// The meter of lines that name none
    #[arg(long, value_name = "NAME")]
    pub meter: Option<String>,
    /// Events of one call
    #[arg(long, value_name = "EVENTS", default_value = "500", value_parser = batch)]
    pub batch: usize,
    /// Look at every line, send nothing
    #[arg(long)]
    pub dry_run: bool,
    /// Begin anew where an import was cut off
    #[arg(long)]
    pub restart: bool,
    /// Where refused lines are written
    #[arg(long, value_name = "FILE")]
    pub errors: Option<PathBuf>,
    #[command(flatten)]
    pub json: Json,
}

fn batch(text: &str) -> Result<usize, String> {
    text.parse()
        .ok()
        .filter(|count| (1..=1000).contains(count))
        .ok_or_else(|| "not from 1 to 1000".to_owned())
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum EventsFormat {
    Csv,
    Ndjson,
}

#[derive(Clone, Debug, Args)]
pub struct EventsTail {
    /// Of this meter
    #[arg(long, value_name = "NAME")]
    pub meter: Option<String>,
    /// Of this subject
    #[arg(long, value_name = "NAME")]
    pub subject: Option<String>,
    /// Begin with the newest 200 that are there already
    #[arg(long)]
    pub all: bool,
    /// End after so many
    #[arg(long, value_name = "EVENTS", value_parser = clap::value_parser!(u64).range(1..))]
    pub count: Option<u64>,
}

#[derive(Clone, Debug, Subcommand)]
pub enum Usage {
    /// Sums of a meter by hour, day, month or any other size, in any time zone
    Query(UsageQuery),
}

#[derive(Clone, Debug, Args)]
#[command(after_help = "\
Example:
  open-spanner usage query tokens --bucket month --group-by model --from 2026-01-01T00:00:00Z")]
pub struct UsageQuery {
    pub meter: String,
    /// Begin of the window; without it, 30 days ago
    #[arg(long, value_name = "TIME")]
    pub from: Option<String>,
    /// End of the window; without it, now
    #[arg(long, value_name = "TIME")]
    pub to: Option<String>,
    /// minute, 5m, 15m, hour, day, week, month, quarter, year, or so many: 6h, 10d, 3m
    #[arg(long, value_name = "SIZE", default_value = "day")]
    pub bucket: String,
    /// Where days begin, such as Europe/Berlin; without it, as the workspace has it
    #[arg(long, value_name = "ZONE")]
    pub time_zone: Option<String>,
    /// Buckets are counted from here
    #[arg(long, value_name = "TIME")]
    pub anchor: Option<String>,
    /// monday or sunday
    #[arg(long, value_name = "DAY")]
    pub week_start: Option<String>,
    /// Of this subject
    #[arg(long, value_name = "NAME")]
    pub subject: Option<String>,
    /// A dimension, or subject; can be repeated
    #[arg(long = "group-by", value_name = "FIELD")]
    pub group_by: Vec<String>,
    #[command(flatten)]
    pub json: Json,
}

#[derive(Clone, Debug, Args)]
#[command(after_help = "\
The database that the settings name must not exist yet (SQLite) or be empty (PostgreSQL, with pg_restore installed). The
restored one begins a new epoch: servers forget what they remember of another.

Example:
  open-spanner restore /backups/monday --sqlite-path /data/open-spanner.db")]
pub struct Restore {
    /// What `backup` wrote, with its manifest beside it
    pub file: PathBuf,
    /// Send the webhooks that were owed at the time of the backup, instead of holding them back: most have been sent since
    #[arg(long)]
    pub send_webhooks: bool,
    #[command(flatten)]
    pub json: Json,
}

impl Command {
    /// The name as it is typed.
    pub fn name(&self) -> &'static str {
        match self {
            Command::Probe(_) => "probe",
            Command::Doctor(_) => "doctor",
            Command::Admin(_) => "admin",
            Command::Keys(_) => "keys",
            Command::Audit(_) => "audit",
            Command::Backup(_) => "backup",
            Command::Restore(_) => "restore",
            Command::Events(_) => "events",
            Command::Usage(_) => "usage",
            Command::Import(_) => "import",
            Command::Tenant(_) => "tenant",
            Command::Completions { .. } => "completions",
            Command::Man { .. } => "man",
        }
    }
}
