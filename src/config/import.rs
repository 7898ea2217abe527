//! The command line of `open-spanner import`. What it does stands in `crate::import`.

use std::path::PathBuf;

use clap::{Args, Subcommand};

use crate::config::{Driver, Secret, Synchronous};

#[derive(Clone, Debug, Subcommand)]
pub enum Import {
    /// Bring over everything from a database of the Go server that open-spanner replaces
    Reference(Reference),
    /// Bring in events of OpenMeter: CloudEvents, one a line, or a CSV with their attributes
    Openmeter(Files),
    /// Bring in events of Lago: JSON, one a line, or a CSV
    Lago(Files),
    /// Bring in billing meter events of Stripe: JSON, one a line
    Stripe(Files),
    /// Bring in the rows of any table, by a mapping
    Csv(Mapped),
    /// Bring in any JSON objects, one a line, by a mapping
    Ndjson(Mapped),
}

#[derive(Clone, Debug, Args)]
#[command(after_help = "\
The old server may go on meanwhile: its database is only read. Every run brings what is new since the last one, so
run it once at leisure, stop the old server, run it again, and let clients talk to the new one.

Examples:
  open-spanner import reference --from old.db --dry-run
  open-spanner import reference --from postgres://old@db/spanner --rejected left-out.jsonl")]
pub struct Reference {
    /// A SQLite file, or postgres://…; libpq's variables and password file are read, too
    #[arg(long, value_name = "FILE|DSN")]
    pub from: String,
    /// Bring nothing: say whether anything is missing here, with exit code 1 when something is
    #[arg(long)]
    pub compare: bool,
    #[command(flatten)]
    pub how: How,
}

#[derive(Clone, Debug, Args)]
#[command(after_help = "\
The meter is found by its name: OpenMeter's type, Lago's code, Stripe's event_name. The other side's id is the idempotency
key, so a file can be brought in twice. A file that ends in .csv is a table with a head, any other has one JSON object a line.")]
pub struct Files {
    #[arg(required = true, value_name = "FILE")]
    pub files: Vec<PathBuf>,
    /// The workspace with this id; without it, the only one there is
    #[arg(long, value_name = "ID")]
    pub workspace: Option<String>,
    #[command(flatten)]
    pub how: How,
}

#[derive(Clone, Debug, Args)]
#[command(after_help = "\
The mapping says which column is what, what is the same for every event, and what the key is made of:

  key = \"{order}-{position}\"        # {@line} and {@file} are known, too
  time_zone = \"Europe/Berlin\"       # of times that name none
  [columns]
  subject = \"customer\"
  quantity = \"amount\"
  timestamp = \"booked at\"
  metadata.region = \"area\"
  [constants]
  meter = \"calls\"

Events are found by their keys, so that a file can be brought in twice, and again after it was cut off.

Examples:
  open-spanner import csv june.csv --map mapping.toml --dry-run
  open-spanner import ndjson june.ndjson --map mapping.toml --rejected left-out.jsonl")]
pub struct Mapped {
    #[command(flatten)]
    pub files: Files,
    /// What is what: docs/moving.md has everything that it may hold
    #[arg(long, value_name = "FILE")]
    pub map: PathBuf,
}

#[derive(Clone, Debug, Args)]
pub struct How {
    /// Do everything and take it back: nothing is stored
    #[arg(long)]
    pub dry_run: bool,
    /// Where to list what is left out, one JSON object a line
    #[arg(long, value_name = "FILE", default_value = "import-rejected.jsonl")]
    pub rejected: PathBuf,
}

/// The database that a text names: a connection string of PostgreSQL, else a file.
pub fn driver_of(from: &str) -> Driver {
    let is_dsn = ["postgres://", "postgresql://"].iter().any(|scheme| from.starts_with(scheme));
    match is_dsn {
        true => Driver::Postgres { dsn: Secret::new(from) },
        false => Driver::Sqlite { path: from.to_owned(), synchronous: Synchronous::Full },
    }
}
