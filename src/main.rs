//! Reads the command line and the settings, starts logging, runs one role.

use std::process::ExitCode;
use std::time::Duration;

use open_spanner::config::{self, MigrateAction, Role};
use open_spanner::error::{Error, Result};
use open_spanner::roles::{migrate, serve};
use open_spanner::{alerts, cli, db, entitlements, exports, logging, vault};

/// Gives memory back by itself, where the system's keeps each thread's peak. For Rust only: in the place of libc's
/// malloc it would hang under tools that are loaded before it and ask for the time, such as libfaketime.
#[global_allocator]
static ALLOCATOR: tikv_jemallocator::Jemalloc = tikv_jemallocator::Jemalloc;

/// For blocking work that the role did not wait for.
const LAST_THREADS: Duration = Duration::from_secs(1);

fn main() -> ExitCode {
    let loaded = match config::load() {
        Ok(loaded) => loaded,
        Err(exit) => return exit.print(),
    };
    logging::init(loaded.config.log_format, &loaded.log_filter);
    for warning in &loaded.warnings {
        log::warn!("{warning}");
    }
    let mut config = loaded.config;
    let passing = match loaded.command {
        None => db::memory::place(&mut config.db.driver),
        Some(_) => Ok(None),
    };
    // goes when this function does
    let _passing = match passing {
        Ok(folder) => folder,
        Err(error) => return ended(Err(error)),
    };
    let (keys, own) = (config.encryption_keys.as_ref(), db::file_of(&config.db.driver));
    let own = own.map(|database| vault::file::beside(&database));
    if let Err(error) = vault::install(keys.map(|keys| keys.expose()), own, config.clear_secrets) {
        return ended(Err(error));
    }
    db::call_process(config.role.name());
    if let Some(command) = loaded.command {
        return ended(cli::run(&config, command));
    }
    // a look at the schema keeps nothing
    let keeps_data = !matches!(config.role, Role::Migrate(MigrateAction::Status { .. }));
    if let Some(volume) = config.data_volume.as_deref().filter(|_| keeps_data)
        && let Err(error) = db::volume::refuse_lost_data(&config.db.driver, volume)
    {
        return ended(Err(error));
    }
    if !matches!(config.role, Role::Migrate(_)) {
        introduce(config.role, &loaded.chosen);
    }
    let result = match config.role {
        Role::Migrate(action) => migrate::run(&config, action),
        Role::Serve => block_on(serve::run(config)),
        Role::ExportWorker => block_on(exports::worker::run(config)),
        Role::AlertWorker => block_on(alerts::worker::run(config)),
        Role::EntitlementWorker => block_on(entitlements::worker::run(config)),
        Role::UsageWorker => block_on(alerts::worker::run_idle(config)),
        // there is no role without something to do
        Role::Command(_) => Ok(()),
    };
    ended(result.map(|()| cli::Outcome::Done))
}

/// The first line of a process that stays: which program this is, where, and what it was told.
fn introduce(role: Role, settings: &str) {
    let host = rustix::system::uname().nodename().to_string_lossy().into_owned();
    let process = std::process::id();
    logging::introduce(role.name(), &host, process);
    log::info!(role = role.name(), version = config::VERSION, host = host.as_str(), process, settings; "starting");
}

fn ended(result: Result<cli::Outcome>) -> ExitCode {
    match result {
        Ok(outcome) => outcome.into(),
        Err(error) => {
            eprintln!("open-spanner: {}", error.message);
            ExitCode::from(error.code.exit_code())
        }
    }
}

fn block_on(role: impl Future<Output = Result<()>>) -> Result<()> {
    let runtime = tokio::runtime::Runtime::new().map_err(Error::internal)?;
    let result = runtime.block_on(role);
    // everything that matters was waited for; a thread whose database is frozen would be waited for without end
    runtime.shutdown_timeout(LAST_THREADS);
    result
}
