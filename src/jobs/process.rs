//! What every worker process does around its queues: waits for the database and its schema, answers health checks,
//! hears of new work, and gives back what it holds on the way out.

use std::future::Future;
use std::net::TcpListener;
use std::pin::Pin;
use std::sync::Arc;
use std::time::Duration;

use actix_web::{App, HttpResponse, web};
use tokio::task::JoinHandle;
use tokio_util::sync::CancellationToken;

use crate::clock;
use crate::config::{Config, ListenAddr};
use crate::db::readiness::{Check, Readiness};
use crate::db::{Store, migrations};
use crate::error::{Code, Error, Result};
use crate::jobs::lifecycle::{self, Stop, prepare_database};
use crate::jobs::measure;
use crate::jobs::supervisor;
use crate::jobs::worker::{self, JobNotifier, Queue};
use crate::logging::spans;
use crate::net::{self, Limits, Patience, Port};

/// Something that runs beside the queues until it is told to stop.
pub type BackgroundTask = Pin<Box<dyn Future<Output = ()> + Send>>;

/// What a process works on.
pub struct WorkerTasks {
    pub queues: Vec<Queue>,
    pub chores: Vec<BackgroundTask>,
    /// What is looked at in the database before any of it begins; a failure ends the process.
    pub inspection: Option<Inspection>,
}

pub type Inspection = Pin<Box<dyn Future<Output = Result<()>> + Send>>;

impl WorkerTasks {
    /// Starts all of it in this process; the tasks end when told to stop.
    pub fn start(self, store: &Store, wake: &JobNotifier, stop: &CancellationToken) -> Vec<JoinHandle<()>> {
        let queues = self
            .queues
            .into_iter()
            .map(|queue| tokio::spawn(worker::run(store.clone(), queue, wake.clone(), stop.clone())));
        let chores = self.chores.into_iter().map(|chore| {
            let stop = stop.clone();
            tokio::spawn(async move {
                tokio::select! { () = chore => {} () = stop.cancelled() => {} }
            })
        });
        queues.chain(chores).collect()
    }
}

/// Runs until SIGTERM or SIGINT; what is being worked on is given back within `shutdown_timeout`. `check` looks at what
/// the process needs beside the database.
pub async fn run(
    config: Config,
    health_addr: ListenAddr,
    check: Option<Check>,
    duties: impl FnOnce(&Store, &Arc<Config>, &JobNotifier) -> Result<WorkerTasks>,
) -> Result<()> {
    let config = Arc::new(config);
    migrations::refuse_foreign(&config.db.driver, config.accept_newer_schema)?;
    let mut signals = Stop::listen()?;
    let stop = CancellationToken::new();
    let store = Store::new(&config.db);
    let wake = JobNotifier::default();
    let mut duties = duties(&store, &config, &wake)?;
    crate::metrics::install(config.role)?;
    spans::start(config.otlp, config.role.name());
    let readiness = Readiness::default();
    let limits = Limits::of(&config, net::limits::raise_file_limit());
    if let Some(addr) = &config.metrics_addr
        && let Err(error) = lifecycle::listen_metrics(addr, &limits, &readiness)
    {
        // one environment may serve all roles of a host; the health port has the same numbers
        log::warn!(error = error.message.as_str(); "metrics are on the health port only");
    }

    let listener = health_addr
        .bind()
        .map_err(|error| Error::new(Code::Unavailable, format!("cannot listen on {health_addr}: {error}")))?;
    let health = serve_health(listener, &limits, &readiness)?;
    let prepared = prepare_database(&config, &store, &readiness, check, &mut signals).await;
    if let (Ok(true), Some(inspection)) = (&prepared, duties.inspection.take())
        && let Err(error) = inspection.await
    {
        health.stop(false).await;
        return Err(error);
    }
    if matches!(prepared, Ok(true)) {
        log::info!(role = config.role.name(), version = env!("CARGO_PKG_VERSION"); "ready");
        measure::start(&store, &config, &stop);
        wake.relay(store.clone(), stop.clone());
        wake.listen(config.db.driver.clone(), stop.clone())?;
        let tasks = duties.start(&store, &wake, &stop);
        supervisor::ready();
        signals.requested().await;
        log::info!("stopping");
        supervisor::stopping();
        readiness.drain();
        stop.cancel();
        let began = clock::moment();
        let ended = futures_util::future::join_all(tasks);
        if tokio::time::timeout(config.shutdown_timeout, ended).await.is_err() {
            log::warn!("stopped before everything was given back");
        }
        spans::flush(config.shutdown_timeout.saturating_sub(clock::since(began))).await;
    }
    health.stop(false).await;
    log::info!("stopped");
    prepared.map(drop)
}

/// `GET /health`: the process lives. `GET /ready`: 204, or 503 with what is in the way. For listeners that only
/// operators reach.
pub fn probes(readiness: Readiness) -> impl Fn(&mut web::ServiceConfig) + Clone + Send + 'static {
    let ready = move || {
        let readiness = readiness.clone();
        async move {
            match readiness.obstacle().await {
                None => HttpResponse::NoContent().finish(),
                Some(obstacle) => {
                    let reasons = serde_json::json!({"status": "not ready", "reasons": [obstacle]});
                    HttpResponse::ServiceUnavailable().json(reasons)
                }
            }
        }
    };
    move |routes| {
        routes
            .route("/health", web::get().to(|| async { HttpResponse::NoContent().finish() }))
            .route("/ready", web::get().to(ready.clone()));
    }
}

fn serve_health(listener: TcpListener, limits: &Limits, readiness: &Readiness) -> Result<net::http::Server> {
    if let Ok(address) = listener.local_addr() {
        log::info!(health = address.to_string(); "health listening");
    }
    let probes = probes(readiness.clone());
    let numbers = || async {
        let text = crate::metrics::text().unwrap_or_default();
        HttpResponse::Ok().content_type(crate::metrics::CONTENT_TYPE).body(text)
    };
    let application = move || App::new().configure(probes.clone()).route("/metrics", web::get().to(numbers));
    let capacity = limits.auxiliary;
    let port = Port::new("health", capacity, limits.per_address(capacity), &[], Patience::default());
    net::http::serve(application, listener, port, 1, Duration::ZERO).map_err(Error::internal)
}
