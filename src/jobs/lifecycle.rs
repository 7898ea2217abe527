//! What every process does around its work, whatever its role: hears signals, waits for its database and the schema,
//! opens the port for operators.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use tokio::signal::unix::{SignalKind, signal};

use crate::blocking;
use crate::clock;
use crate::config::{self, Config, ListenAddr};
use crate::db::readiness::{Check, Readiness};
use crate::db::{self, Store, Wanted, migrations};
use crate::error::{Code, Error, Result};
use crate::jobs::{process, supervisor};
use crate::net::{Limits, Patience, Port};

const DATABASE_RETRY: Duration = Duration::from_secs(1);
/// How long a migration that is under way is waited for on the way out.
const MIGRATION_GRACE: Duration = Duration::from_secs(1);

/// Waits for the database, brings it to the schema that is needed, and begins to watch it; false when the process was
/// told to stop meanwhile. Only what mends itself is waited for.
pub async fn prepare_database(
    config: &Config,
    store: &Store,
    readiness: &Readiness,
    check: Option<Check>,
    stop: &mut Stop,
) -> Result<bool> {
    let mut said: Option<(String, Instant)> = None;
    loop {
        let watch = {
            let (readiness, store, check) = (readiness.clone(), store.clone(), check.clone());
            let driver = config.db.driver.clone();
            move || readiness.watch(&store, &driver, check)
        };
        let Some(result) = prepare_once(config, watch, stop).await? else { return Ok(false) };
        match result {
            Ok(()) => return Ok(true),
            Err(error) if error.code == Code::Unavailable => {
                readiness.waits(&error.message);
                let is_known =
                    |(text, at): &(String, Instant)| *text == error.message && clock::since(*at) < WORD_EVERY;
                if !said.as_ref().is_some_and(is_known) {
                    log::warn!(error = error.message.as_str(); "waiting for the database");
                    supervisor::waiting(&error.message);
                    said = Some((error.message, clock::moment()));
                }
            }
            Err(error) => return Err(error),
        }
        tokio::select! {
            () = tokio::time::sleep(DATABASE_RETRY) => {}
            () = stop.requested() => return Ok(false),
        }
    }
}

/// How often the same reason for waiting is told again.
const WORD_EVERY: Duration = Duration::from_secs(10);

/// One try; none when the process was told to stop.
async fn prepare_once(
    config: &Config,
    watch: impl FnOnce() -> Result<()> + Send + 'static,
    stop: &mut Stop,
) -> Result<Option<Result<()>>> {
    let stopped = Arc::new(AtomicBool::new(false));
    let wanted = Wanted { migrate: config.migrate, accept_newer: config.accept_newer_schema };
    let (db, seen) = (config.db.clone(), stopped.clone());
    let mut task = blocking::begin(move || {
        migrations::prepare(&db.driver, wanted, &seen)?;
        db::describe(&db);
        watch()
    });
    tokio::select! {
        done = &mut task => done.map(Some).map_err(Error::internal),
        () = stop.requested() => {
            log::info!("stopping before the database was ready");
            stopped.store(true, Ordering::Relaxed);
            if tokio::time::timeout(MIGRATION_GRACE, task).await.is_err() {
                log::warn!("what was under way is cut off; the database takes a migration back that is not whole");
            }
            Ok(None)
        }
    }
}

pub fn listen_metrics(addr: &ListenAddr, limits: &Limits, readiness: &Readiness) -> Result<()> {
    let listener = addr.bind().map_err(|error| cannot_listen(addr, error))?;
    let capacity = limits.auxiliary;
    let port = Port::new("metrics", capacity, limits.per_address(capacity), &[], Patience::default());
    let probes = process::probes(readiness.clone());
    crate::metrics::listen(listener, port, probes).map_err(|error| cannot_listen(addr, error))
}

pub fn cannot_listen(address: &impl std::fmt::Display, error: std::io::Error) -> Error {
    Error::new(Code::Unavailable, format!("cannot listen on {address}: {error}"))
}

/// Reads the settings again for what is taken from them at any time: what is logged, and how.
fn reload() {
    match config::load() {
        Ok(loaded) => {
            crate::logging::init(loaded.config.log_format, &loaded.log_filter);
            log::info!(filter = loaded.log_filter; "SIGHUP: the log filter was read again, other settings need a restart");
        }
        Err(exit) => log::warn!(error = exit.text.trim(); "SIGHUP: the settings were not read again"),
    }
}

/// SIGTERM or SIGINT. From when it listens SIGHUP does not end the process either: settings that can change while it
/// runs are read again.
pub struct Stop {
    terminate: tokio::signal::unix::Signal,
    interrupt: tokio::signal::unix::Signal,
}

impl Stop {
    pub fn listen() -> Result<Self> {
        let mut hangup = signal(SignalKind::hangup()).map_err(Error::internal)?;
        tokio::spawn(async move {
            while hangup.recv().await.is_some() {
                reload();
            }
        });
        Ok(Stop {
            terminate: signal(SignalKind::terminate()).map_err(Error::internal)?,
            interrupt: signal(SignalKind::interrupt()).map_err(Error::internal)?,
        })
    }

    pub async fn requested(&mut self) {
        tokio::select! {
            _ = self.terminate.recv() => {}
            _ = self.interrupt.recv() => {}
        }
    }
}
