//! The command line of `open-spanner tenant`. What it does stands in `crate::tenant`.

use std::path::PathBuf;

use clap::{Args, Subcommand};

#[derive(Clone, Debug, Subcommand)]
pub enum Tenant {
    /// Write one workspace with everything to a file
    Export(Export),
    /// Bring a workspace in from such a file
    Import(Import),
}

#[derive(Clone, Debug, Args)]
#[command(after_help = "\
Servers may run meanwhile: the file holds one instant. It holds hashes of passwords and keys; only its owner may read it.
Sessions, waiting jobs and files of exports are not in it. Secrets of webhooks are in it only with --secrets-key, sealed.

Examples:
  open-spanner tenant export 0198… acme.tenant
  head -c 32 /dev/urandom | base64 > key && open-spanner tenant export 0198… acme.tenant --secrets-key key")]
pub struct Export {
    /// The id of the workspace, as `admin workspace list` shows it
    pub workspace: String,
    /// Where to write it; nothing is overwritten
    pub file: PathBuf,
    #[command(flatten)]
    pub secrets: SecretsKey,
}

#[derive(Clone, Debug, Args)]
#[command(after_help = "\
All of it or nothing: at the end rows and totals are counted and compared with what the file says. A file that is cut
off, changed, or written by a newer version is refused, and a workspace that is there already. People who have an account
here keep it as it is, and become members. A SQLite file must not be in use by a server meanwhile.

Example:
  open-spanner tenant import acme.tenant --secrets-key key --dry-run")]
pub struct Import {
    /// What `tenant export` wrote
    pub file: PathBuf,
    #[command(flatten)]
    pub secrets: SecretsKey,
    /// Do everything and take it back: nothing is stored
    #[arg(long)]
    pub dry_run: bool,
}

#[derive(Clone, Debug, Args)]
pub struct SecretsKey {
    /// A file with 32 bytes in Base64 that seal the secrets of webhooks on their way; without it they are left out, and
    /// new ones made at the other end
    #[arg(long, value_name = "FILE")]
    pub secrets_key: Option<PathBuf>,
}
