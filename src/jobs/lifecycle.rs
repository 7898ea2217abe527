//! What every process does around its work, whatever its role: hears signals, waits for its database and the schema,
//! opens the port for operators.

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use tokio::signal::unix::{SignalKind, signal};

use crate::blocking;
use crate::clock;
use crate::config::{self, Config, ListenAddr, Loaded, Secret};
use crate::db::readiness::{Check, Readiness};
use crate::db::{self, Store, Wanted, migrations};
use crate::error::{Code, Error, Result};
use crate::jobs::{process, supervisor};
use crate::net::{Limits, Patience, Port};
use crate::vault;

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
        migrations::ensure_shared(&db.driver)?;
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

/// Takes over what changed; answers the variables whose value of now is in use.
type Renewal = Box<dyn Fn(&Config) -> Vec<&'static str> + Send>;

fn renewals() -> MutexGuard<'static, Vec<Renewal>> {
    static RENEWALS: Mutex<Vec<Renewal>> = Mutex::new(Vec::new());
    RENEWALS.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Asked after each SIGHUP. Must not wait for anything.
pub fn at_reload(renew: impl Fn(&Config) -> Vec<&'static str> + Send + 'static) {
    renewals().push(Box::new(renew));
}

const KEYS: &str = "OPEN_SPANNER_ENCRYPTION_KEYS";

/// Reads the settings and the files of secrets again, for what can change while the process works; says what else changed.
/// `known`: what is in use.
fn reload(known: &mut BTreeMap<String, Secret>) {
    let loaded = match config::load() {
        Ok(loaded) => loaded,
        Err(exit) => return log::warn!(error = exit.text.trim(); "SIGHUP: the settings were not read again"),
    };
    let Loaded { config, log_filter, texts, .. } = loaded;
    crate::logging::init(config.log_format, &log_filter);
    let changed: Vec<&String> =
        texts.iter().filter(|(name, text)| known.get(*name) != Some(*text)).map(|(name, _)| name).collect();
    let mut in_use = vec!["RUST_LOG", "OPEN_SPANNER_LOG_FORMAT"];
    if changed.iter().any(|name| *name == KEYS) {
        match vault::renew(config.encryption_keys.as_ref().map(Secret::expose)) {
            Ok(()) => in_use.push(KEYS),
            Err(error) => log::error!("{}", error.message),
        }
    }
    for renew in renewals().iter() {
        in_use.extend(renew(&config));
    }
    let is_taken = |name: &&String| in_use.contains(&name.as_str());
    let (taken, waiting): (Vec<&String>, Vec<&String>) = changed.into_iter().partition(is_taken);
    let listed = |names: &[&String]| names.iter().map(|name| name.as_str()).collect::<Vec<_>>().join(" ");
    log::info!(filter = log_filter, changed = listed(&taken); "SIGHUP: the settings and the files of secrets were read again");
    if !waiting.is_empty() {
        log::warn!(changed = listed(&waiting); "SIGHUP: what else changed needs a restart");
    }
    known.extend(
        texts
            .iter()
            .filter(|(name, _)| taken.contains(name))
            .map(|(name, text)| (name.clone(), text.clone())),
    );
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
        // they were read a moment ago, and are compared with what is read later
        let mut known = config::load().map(|loaded| loaded.texts).unwrap_or_default();
        tokio::spawn(async move {
            while hangup.recv().await.is_some() {
                reload(&mut known);
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
