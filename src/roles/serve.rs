//! The serve role: REST and gRPC over one store. Owns start-up, timers and the way down.

use std::net::TcpListener;
use std::sync::Arc;
use std::time::Duration;

use actix_web::middleware::{Compress, from_fn};
use actix_web::{App as HttpApp, web};
use tokio::task::JoinHandle;

use crate::alerts::webhook::client::Client;
use crate::app::changes::Changes;
use crate::app::{App, Phase};
use crate::auth::key::Flush;
use crate::auth::mail::Mail;
use crate::auth::providers::Providers;
use crate::auth::{Auth, Outside};
use crate::blocking;
use crate::clock;
use crate::config::{self, Config, Driver, ListenAddr};
use crate::dashboard;
use crate::db::changes::{self, Change};
use crate::db::readiness::Readiness;
use crate::db::{Store, migrations, wal};
use crate::entitlements::sql::plans::PlanCache;
use crate::entitlements::{self, counter_reader};
use crate::error::{Code, Error, Result};
use crate::ingest::Ingest;
use crate::jobs::lifecycle::{Stop, at_reload, cannot_listen, listen_metrics, prepare_database};
use crate::jobs::measure;
use crate::jobs::supervisor;
use crate::jobs::worker::JobNotifier;
use crate::logging::spans;
use crate::mail::Mailer;
use crate::meters::sql::MeterCache;
use crate::net::budget::Budget;
use crate::net::{self, Limits, Patience, Port};
use crate::roles::demo;
use crate::usage::home_zone::HomeZones;
use crate::{alerts, exports, grpc, http, operations, retention};

/// Runs until SIGTERM or SIGINT, then drains within `shutdown_timeout`.
pub async fn run(config: Config) -> Result<()> {
    let config = Arc::new(config);
    // downloads would be of no use
    exports::storage::Storage::of(&config.exports.storage)?;
    // before anything is made beside the file
    migrations::refuse_foreign(&config.db.driver, config.accept_newer_schema)?;
    let _only_server = lock_database(&config.db.driver)?;
    crate::metrics::install(config.role)?;
    spans::start(config.otlp, config.role.name());
    let mut stop = Stop::listen()?;
    let limits = Limits::of(&config, net::limits::raise_file_limit());

    let store = Store::new(&config.db);
    let meters = MeterCache::new(store.clone(), config.cache_ttl);
    let plans = PlanCache::new(store.clone(), config.cache_ttl);
    let counters = counter_reader::Reader::start(&store)?;
    let wake = JobNotifier::default();
    let (ingest, writers) = Ingest::start(store.clone(), meters.clone(), &config.ingest, &wake);
    let auth = Auth::with(store.clone(), auth_options(&config), outside(&config)?);
    let renewed = auth.clone();
    at_reload(move |config| renewed.renew(config));
    let phase = Arc::new(Phase::default());
    let readiness = Readiness::default();
    let webhooks = Client::new(&config.webhook_allowed_networks, config.webhook_https_only)?;
    let bodies = Budget::new(config.ingest.bodies_bytes);
    let streams = Budget::new(config.ingest.streams_bytes);
    let zones = HomeZones::new(store.clone(), config.cache_ttl);
    let app = App {
        config: config.clone(),
        changes: Changes::new(store.clone()),
        store,
        auth,
        meters,
        plans,
        zones,
        counters,
        ingest,
        phase,
        readiness,
        wake,
        webhooks,
        bodies,
        streams,
        answers: Budget::new(ANSWERS_BYTES),
    };

    let listener = config.http.addr.bind().map_err(|error| cannot_listen(&config.http.addr, error))?;
    announce("http", &listener);
    warn_of_plain_http(&config.http, &listener);
    let address = listener.local_addr().map_err(Error::internal)?;
    let server = http_server(&app, &limits, listener)?;
    let grpc_listener = config.grpc_addr.as_ref().map(listen_grpc).transpose()?;
    if let Some(addr) = &config.metrics_addr {
        listen_metrics(addr, &limits, &app.readiness)?;
    }

    match prepare_database(&config, &app.store, &app.readiness, None, &mut stop).await {
        Ok(true) => {}
        ended => {
            server.stop(false).await;
            return ended.map(drop);
        }
    }
    if let Err(error) = alerts::worker::check_keys(&app.store).await {
        server.stop(false).await;
        return Err(error);
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
    if app.config.demo {
        timers.cut.push(tokio::spawn(demo::fill(address, app.auth.clone(), app.store.clone())));
    }
    supervisor::ready();

    stop.requested().await;
    log::info!("stopping");
    supervisor::stopping();
    app.phase.drain();
    app.readiness.drain();
    let began = clock::moment();
    let drain = drain(app, server, grpc, writers, timers);
    let drained = tokio::time::timeout(config.shutdown_timeout, drain).await;
    if drained.is_err() {
        log::warn!("stopped before everything was drained");
    }
    spans::flush(config.shutdown_timeout.saturating_sub(clock::since(began))).await;
    log::info!("stopped");
    Ok(())
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
        invited_may_register: config.auth.invited_may_register,
        password_sign_in: config.auth.password_sign_in,
        session_max_age: config.auth.session_max_age,
    }
}

/// Providers and the mail server; nobody is called yet.
fn outside(config: &Config) -> Result<Outside> {
    let mail = |settings: &config::Mail| {
        let public_url = settings.public_url.clone();
        Mailer::new(settings).map(|mailer| Mail { mailer, public_url })
    };
    Ok(Outside {
        providers: Providers::new(&config.auth.oauth)?,
        mail: config.mail.as_ref().map(mail).transpose()?,
    })
}

/// Passwords, cookies and keys pass here as they are: others on the way read them unless a proxy adds TLS.
fn warn_of_plain_http(http: &config::Http, listener: &TcpListener) {
    let is_public = listener.local_addr().is_ok_and(|address| !address.ip().is_loopback());
    let is_behind_tls = !http.trusted_proxies.is_empty()
        || matches!(http.secure_cookies, config::SecureCookies::Always)
        || http.public_url.as_ref().is_some_and(|url| url.starts_with("https://"));
    if is_public && !is_behind_tls {
        log::warn!(
            "plain http on an address that others reach: put a proxy with TLS in front, and name it in OPEN_SPANNER_TRUSTED_PROXIES"
        );
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

/// Answers that their callers have not read yet, over all of them; one workspace may have half.
const ANSWERS_BYTES: usize = 256 << 20;

/// Starts accepting at once, before the database is ready: until then all but health checks get 503.
fn http_server(app: &App, limits: &Limits, listener: TcpListener) -> Result<net::http::Server> {
    let data = web::Data::new(app.clone());
    let demands = web::Data::new(http::RoutePolicies::with(dashboard::endpoints()));
    let application = move || {
        HttpApp::new()
            .app_data(data.clone())
            .app_data(demands.clone())
            .wrap(from_fn(http::count_unread))
            .wrap(Compress::default())
            .wrap(from_fn(http::gate))
            .configure(|config| http::routes(config, dashboard::endpoints()))
            // last: its empty prefix matches every path, and the gate asks for the first pattern that does
            .service(http::openapi::viewer())
    };
    let proxies = &app.config.http.trusted_proxies;
    let port = Port::new("http", limits.http, limits.per_address(limits.http), proxies, Patience::default());
    let (threads, shutdown_timeout) = (app.config.http.workers, app.config.shutdown_timeout);
    net::http::serve(application, listener, port, threads, shutdown_timeout).map_err(Error::internal)
}

/// For how long people can ask about a refused event.
const REFUSED_LIFETIME: Duration = Duration::from_secs(7 * 86_400);

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
    let (counter, warner) = (app.auth.clone(), app.auth.clone());
    timers.push(tokio::spawn(every(Duration::from_secs(300), move || {
        let auth = counter.clone();
        async move { auth.count_keys().await }
    })));
    timers.push(tokio::spawn(every(Duration::from_secs(86_400), move || {
        let auth = warner.clone();
        async move { auth.warn_of_expiry().await }
    })));
    timers.push(tokio::spawn(app.ingest.fold()));
    if let Some(lifetime) = app.config.retention.audit {
        let store = app.store.clone();
        timers.push(tokio::spawn(every(Duration::from_secs(3600), move || {
            let store = store.clone();
            async move { crate::audit::prune(&store, lifetime).await.map(drop) }
        })));
    }
    if let Some(log) = wal::path(&app.config.db.driver) {
        let driver = app.config.db.driver.clone();
        timers.push(tokio::spawn(every(Duration::from_secs(10), move || {
            let (driver, log) = (driver.clone(), log.clone());
            async move { blocking::begin(move || wal::watch(&driver, &log)).await.map_err(Error::internal) }
        })));
        let store = app.store.clone();
        timers.push(tokio::spawn(every(Duration::from_secs(20), move || {
            let store = store.clone();
            async move { blocking::begin(move || store.release_memory()).await.map_err(Error::internal) }
        })));
    }
    timers
}

/// Forgets what another server changed. Holds no more of the app than that takes: the writers end when the last `Ingest`
/// is dropped, and a thread that listens ends when it comes to it.
fn forgetful(app: &App) -> impl Fn(Change) + Send + use<> {
    let (meters, plans, auth) = (app.meters.clone(), app.plans.clone(), app.auth.clone());
    let zones = app.zones.clone();
    move |change| {
        auth.forget(&change);
        match change {
            Change::Meters(workspace_id) => meters.forget_workspace(workspace_id),
            Change::Plans(workspace_id) => plans.forget_workspace(workspace_id),
            Change::Workspace(workspace_id) => zones.forget(workspace_id),
            Change::Anything => {
                meters.forget_all();
                plans.forget_all();
                zones.forget_all();
            }
            Change::Key(_) | Change::Session(_) => {}
        }
    }
}

/// Background work as far as it is done in this process; others are told of new work in any case.
fn start_workers(app: &App) -> Result<Vec<JoinHandle<()>>> {
    let stop = app.phase.draining();
    measure::start(&app.store, &app.config, &stop);
    operations::measure::start(app);
    changes::relay(app.store.clone(), stop.clone());
    changes::listen(app.config.db.driver.clone(), stop.clone(), forgetful(app))?;
    app.wake.relay(app.store.clone(), stop.clone());
    if !app.config.workers.in_serve {
        return Ok(Vec::new());
    }
    app.wake.listen(app.config.db.driver.clone(), stop.clone())?;
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
