//! The serve role: REST and gRPC over one store. Owns start-up, timers and the way down.

use std::net::TcpListener;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use actix_web::middleware::{Compress, from_fn};
use actix_web::{App as HttpApp, web};
use metrics_exporter_prometheus::PrometheusHandle;
use tokio::signal::unix::{SignalKind, signal};
use tokio::task::JoinHandle;

use crate::alerts::webhook::client::Client;
use crate::app::{App, Phase};
use crate::auth::Auth;
use crate::auth::key::Flush;
use crate::config::{self, Config, Driver, ListenAddr};
use crate::dashboard;
use crate::db::changes::{self, Change};
use crate::db::readiness::{Check, Readiness};
use crate::db::{self, Store, Wanted, migrations, wal};
use crate::entitlements::sql::plans::PlanCache;
use crate::entitlements::{self, counter_reader};
use crate::error::{Code, Error, Result};
use crate::ingest::Ingest;
use crate::jobs::worker::Wake;
use crate::meters::sql::MeterCache;
use crate::net::budget::Budget;
use crate::net::{self, Limits, Patience, Port};
use crate::{alerts, exports, grpc, http, retention};

/// Runs until SIGTERM or SIGINT, then drains within `shutdown_timeout`.
pub async fn run(config: Config) -> Result<()> {
    let config = Arc::new(config);
    // before anything is made beside the file
    migrations::refuse_foreign(&config.db.driver, config.accept_newer_schema)?;
    let _only_server = lock_database(&config.db.driver)?;
    let metrics = crate::metrics::install()?;
    let mut stop = Stop::listen()?;
    let limits = Limits::of(&config, net::limits::raise_file_limit());

    let store = Store::new(&config.db);
    let meters = MeterCache::new(store.clone(), config.cache_ttl);
    let plans = PlanCache::new(store.clone(), config.cache_ttl);
    let counters = counter_reader::Reader::start(&store)?;
    let wake = Wake::default();
    let (ingest, writers) = Ingest::start(store.clone(), meters.clone(), &config.ingest, &wake);
    let auth = Auth::new(store.clone(), auth_options(&config));
    let phase = Arc::new(Phase::default());
    let readiness = Readiness::default();
    let webhooks = Client::new(&config.webhook_allowed_networks)?;
    let bodies = Budget::new(config.ingest.bodies_bytes);
    let streams = Budget::new(config.ingest.streams_bytes);
    let app = App {
        config: config.clone(),
        store,
        auth,
        meters,
        plans,
        counters,
        ingest,
        phase,
        readiness,
        wake,
        webhooks,
        bodies,
        streams,
    };

    if config.auth.oauth.github.is_some() || config.auth.oauth.google.is_some() {
        log::warn!("sign-in providers are configured, but this version has none");
    }
    let listener = config.http.addr.bind().map_err(|error| cannot_listen(&config.http.addr, error))?;
    announce("http", &listener);
    let server = http_server(&app, &limits, listener)?;
    let grpc_listener = config.grpc_addr.as_ref().map(listen_grpc).transpose()?;
    if let Some(addr) = &config.metrics_addr {
        listen_metrics(addr, &limits, metrics, &app.readiness)?;
    }

    match prepare_database(&config, &app.store, &app.readiness, None, &mut stop).await {
        Ok(true) => {}
        ended => {
            server.stop(false).await;
            return ended.map(drop);
        }
    }
    if let Err(error) = retention::attach_months(&app.store).await {
        log::warn!(error:% = error; "months were not attached");
    }
    let grpc =
        grpc_listener.map(|listener| grpc::serve(&app, grpc_port(&config, &limits), listener)).transpose()?;
    app.phase.serve();
    log::info!(driver = config.db.driver.name(), version = env!("CARGO_PKG_VERSION"); "ready");
    let mut timers = Timers { cut: start_timers(&app), ending: retention::start(&app) };
    timers.ending.extend(start_workers(&app)?);

    stop.requested().await;
    log::info!("stopping");
    app.phase.drain();
    app.readiness.drain();
    let drain = drain(app, server, grpc, writers, timers);
    let drained = tokio::time::timeout(config.shutdown_timeout, drain).await;
    if drained.is_err() {
        log::warn!("stopped before everything was drained");
    }
    log::info!("stopped");
    Ok(())
}

pub(crate) fn listen_metrics(
    addr: &ListenAddr,
    limits: &Limits,
    metrics: PrometheusHandle,
    readiness: &Readiness,
) -> Result<()> {
    let listener = addr.bind().map_err(|error| cannot_listen(addr, error))?;
    let capacity = limits.auxiliary;
    let port = Port::new("metrics", capacity, limits.per_address(capacity), &[], Patience::default());
    let probes = crate::jobs::process::probes(readiness.clone());
    crate::metrics::listen(listener, port, metrics, probes).map_err(|error| cannot_listen(addr, error))
}

fn grpc_port(config: &Config, limits: &Limits) -> Port {
    let per_address = limits.per_address(limits.grpc);
    Port::new("grpc", limits.grpc, per_address, &config.http.trusted_proxies, net::grpc::PATIENCE)
}

/// Takes the port at once, so that a port that is taken ends the start; calls are answered once the server is ready.
fn listen_grpc(addr: &ListenAddr) -> Result<TcpListener> {
    let listener = addr.bind().map_err(|error| cannot_listen(addr, error))?;
    announce("grpc", &listener);
    Ok(listener)
}

fn cannot_listen(address: &impl std::fmt::Display, error: std::io::Error) -> Error {
    Error::new(Code::Unavailable, format!("cannot listen on {address}: {error}"))
}

/// One server per SQLite file: caches and group commit expect to be alone. Workers may share the file.
fn lock_database(driver: &Driver) -> Result<Option<std::fs::File>> {
    let Driver::Sqlite { path, .. } = driver else { return Ok(None) };
    let Some(lock) = migrations::lock_path(path, "serve.lock") else { return Ok(None) };
    match migrations::take_lock(&lock, false) {
        Ok(file) => Ok(Some(file)),
        Err(error) if error.code == Code::Conflict => {
            Err(Error::conflict(format!("another open-spanner serve uses the database {path}")))
        }
        Err(error) => Err(error),
    }
}

fn auth_options(config: &Config) -> crate::auth::Options {
    crate::auth::Options {
        cache_ttl: config.cache_ttl,
        registration_enabled: config.auth.registration_enabled,
    }
}

/// Tells where a listener ended up, which matters for port 0.
fn announce(kind: &'static str, listener: &TcpListener) {
    let address = listener.local_addr().map(|address| address.to_string()).unwrap_or_default();
    match kind {
        "http" => log::info!(http = address; "listening"),
        _ => log::info!(grpc = address; "grpc listening"),
    }
}

/// Starts accepting at once, before the database is ready: until then all but health checks get 503.
fn http_server(app: &App, limits: &Limits, listener: TcpListener) -> Result<net::http::Server> {
    let data = web::Data::new(app.clone());
    let demands = web::Data::new(http::Demands::with(dashboard::endpoints()));
    let document = http::openapi::document_text()?;
    let application = move || {
        HttpApp::new()
            .app_data(data.clone())
            .app_data(demands.clone())
            .wrap(Compress::default())
            .wrap(from_fn(http::gate))
            .configure(|config| http::routes(config, dashboard::endpoints()))
            // last: its empty prefix matches every path, and the gate asks for the first pattern that does
            .service(http::openapi::viewer(document.clone()))
    };
    let proxies = &app.config.http.trusted_proxies;
    let port = Port::new("http", limits.http, limits.per_address(limits.http), proxies, Patience::default());
    let (threads, shutdown_timeout) = (app.config.http.workers, app.config.shutdown_timeout);
    net::http::serve(application, listener, port, threads, shutdown_timeout).map_err(Error::internal)
}

/// For how long people can ask about a refused event.
const REFUSED_LIFETIME: Duration = Duration::from_secs(7 * 86_400);
const DATABASE_RETRY: Duration = Duration::from_secs(1);
/// How long a migration that is under way is waited for on the way out.
const MIGRATION_GRACE: Duration = Duration::from_secs(1);

/// Waits for the database, brings it to the schema that is needed, and begins to watch it; false when the process was
/// told to stop meanwhile. Only what mends itself is waited for.
pub(crate) async fn prepare_database(
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
                    |(text, at): &(String, Instant)| *text == error.message && at.elapsed() < WORD_EVERY;
                if !said.as_ref().is_some_and(is_known) {
                    log::warn!(error = error.message.as_str(); "waiting for the database");
                    said = Some((error.message, Instant::now()));
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
    let mut task = tokio::task::spawn_blocking(move || {
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

/// What happens on its own: key use is written down, expired rows are swept.
fn start_timers(app: &App) -> Vec<JoinHandle<()>> {
    let (flusher, counter, sweeper) = (app.clone(), app.clone(), app.clone());
    let mut timers = vec![
        // writes each key at most once a minute, but a first use soon
        tokio::spawn(every(Duration::from_secs(5), move || {
            let app = flusher.clone();
            async move { app.auth.flush_last_used(Flush::Due).await.map(drop) }
        })),
        tokio::spawn(every(Duration::from_secs(1), move || {
            let app = counter.clone();
            async move { app.ingest.flush_refusals().await }
        })),
        tokio::spawn(every(Duration::from_secs(600), move || {
            let app = sweeper.clone();
            async move {
                app.auth.sweep().await?;
                app.ingest.sweep_refused(REFUSED_LIFETIME).await?;
                app.ingest.sweep_replays(app.config.ingest.bulk_replay_retention).await
            }
        })),
    ];
    if let Some(log) = wal::path(&app.config.db.driver) {
        let driver = app.config.db.driver.clone();
        timers.push(tokio::spawn(every(Duration::from_secs(10), move || {
            let (driver, log) = (driver.clone(), log.clone());
            async move {
                tokio::task::spawn_blocking(move || wal::watch(&driver, &log)).await.map_err(Error::internal)
            }
        })));
    }
    timers
}

/// Forgets what another server changed. Holds no more of the app than that takes: the writers end when the last `Ingest`
/// is dropped, and a thread that listens ends when it comes to it.
fn forgetful(app: &App) -> impl Fn(Change) + Send + use<> {
    let (meters, plans, auth) = (app.meters.clone(), app.plans.clone(), app.auth.clone());
    move |change| {
        auth.forget(&change);
        match change {
            Change::Meters(workspace_id) => meters.forget_workspace(workspace_id),
            Change::Plans(workspace_id) => plans.forget_workspace(workspace_id),
            Change::Anything => {
                meters.forget_all();
                plans.forget_all();
            }
            Change::Key(_) | Change::Session(_) => {}
        }
    }
}

/// Background work as far as it is done in this process; others are told of new work in any case.
fn start_workers(app: &App) -> Result<Vec<JoinHandle<()>>> {
    let stop = app.phase.draining();
    changes::relay(app.store.clone(), stop.clone());
    changes::listen(app.config.db.driver.clone(), stop.clone(), forgetful(app));
    app.wake.relay(app.store.clone(), stop.clone());
    if !app.config.workers.in_serve {
        return Ok(Vec::new());
    }
    app.wake.listen(app.config.db.driver.clone(), stop.clone());
    let all = [
        exports::worker::duties(&app.store, &app.config)?,
        alerts::worker::duties(&app.store, &app.config, &app.webhooks, &app.wake),
        entitlements::worker::duties(&app.store, &app.config),
    ];
    Ok(all.into_iter().flat_map(|duties| duties.start(&app.store, &app.wake, &stop)).collect())
}

async fn every<F: Future<Output = Result<()>>>(interval: Duration, mut work: impl FnMut() -> F) {
    let mut ticks = tokio::time::interval(interval);
    ticks.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
    // the first tick is at once
    ticks.tick().await;
    loop {
        ticks.tick().await;
        if let Err(error) = work().await {
            log::warn!(error:% = error; "housekeeping failed");
        }
    }
}

/// What runs on its own.
struct Timers {
    /// Can be cut off anywhere.
    cut: Vec<JoinHandle<()>>,
    /// Notice that the server drains and end by themselves.
    ending: Vec<JoinHandle<()>>,
}

/// Finishes what was accepted: requests, then writes, then notes.
async fn drain(
    app: App,
    server: net::http::Server,
    grpc: Option<grpc::Server>,
    writers: Vec<JoinHandle<()>>,
    timers: Timers,
) {
    let stop_grpc = async {
        if let Some(grpc) = grpc {
            grpc.stop(app.config.shutdown_timeout).await;
        }
    };
    tokio::join!(server.stop(true), stop_grpc);
    for timer in timers.cut {
        timer.abort();
    }
    for timer in timers.ending {
        let _ = timer.await;
    }
    if let Err(error) = app.auth.flush_last_used(Flush::All).await {
        log::warn!(error:% = error; "the last use of API keys was not written down");
    }
    if let Err(error) = app.ingest.flush_refusals().await {
        log::warn!(error:% = error; "the last refused events were not counted");
    }
    // the writers end when nobody can send to them any more
    drop(app);
    for writer in writers {
        let _ = writer.await;
    }
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
pub(crate) struct Stop {
    terminate: tokio::signal::unix::Signal,
    interrupt: tokio::signal::unix::Signal,
}

impl Stop {
    pub(crate) fn listen() -> Result<Self> {
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

    pub(crate) async fn requested(&mut self) {
        tokio::select! {
            _ = self.terminate.recv() => {}
            _ = self.interrupt.recv() => {}
        }
    }
}
