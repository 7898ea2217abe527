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

use crate::config::{Config, ListenAddr};
use crate::db::{Conn, Store};
use crate::error::{Code, Error, Result};
use crate::jobs::worker::{self, Queue, Wake};
use crate::net::{self, Limits, Patience, Port};
use crate::roles::serve::{Stop, prepare_database};

/// Something that runs beside the queues until it is told to stop.
pub type Chore = Pin<Box<dyn Future<Output = ()> + Send>>;

/// What a process works on.
pub struct Duties {
    pub queues: Vec<Queue>,
    pub chores: Vec<Chore>,
}

impl Duties {
    /// Starts all of it in this process; the tasks end when told to stop.
    pub fn start(self, store: &Store, wake: &Wake, stop: &CancellationToken) -> Vec<JoinHandle<()>> {
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

/// Runs until SIGTERM or SIGINT; what is being worked on is given back within `shutdown_timeout`.
pub async fn run(
    config: Config,
    health_addr: ListenAddr,
    duties: impl FnOnce(&Store, &Arc<Config>, &Wake) -> Result<Duties>,
) -> Result<()> {
    let config = Arc::new(config);
    let mut signals = Stop::listen()?;
    let stop = CancellationToken::new();
    let store = Store::new(&config.db);
    let wake = Wake::default();
    let duties = duties(&store, &config, &wake)?;
    let metrics = crate::metrics::install()?;
    let limits = Limits::of(&config, net::limits::raise_file_limit());
    if let Some(addr) = &config.metrics_addr {
        crate::roles::serve::listen_metrics(addr, &limits, metrics)?;
    }

    let listener = health_addr
        .bind()
        .map_err(|error| Error::new(Code::Unavailable, format!("cannot listen on {health_addr}: {error}")))?;
    let health = serve_health(listener, &limits, store.clone(), stop.clone())?;
    let prepared = tokio::select! {
        prepared = prepare_database(&config, true) => prepared.map(|()| true),
        () = signals.requested() => Ok(false),
    };
    if matches!(prepared, Ok(true)) {
        wake.relay(store.clone(), stop.clone());
        wake.listen(config.db.driver.clone(), stop.clone());
        let tasks = duties.start(&store, &wake, &stop);
        signals.requested().await;
        log::info!("stopping");
        stop.cancel();
        let ended = futures_util::future::join_all(tasks);
        if tokio::time::timeout(config.shutdown_timeout, ended).await.is_err() {
            log::warn!("stopped before everything was given back");
        }
    }
    health.stop(false).await;
    log::info!("stopped");
    prepared.map(drop)
}

const PING_TIMEOUT: Duration = Duration::from_secs(2);

/// `GET /health`: the process lives. `GET /ready`: the database answers and the process is not on its way out.
fn serve_health(
    listener: TcpListener,
    limits: &Limits,
    store: Store,
    stop: CancellationToken,
) -> Result<net::http::Server> {
    if let Ok(address) = listener.local_addr() {
        log::info!(health = address.to_string(); "health listening");
    }
    let ready = move || {
        let (store, stop) = (store.clone(), stop.clone());
        async move {
            let ping = |conn: &mut Conn| {
                use diesel::connection::SimpleConnection;
                Ok(conn.batch_execute("SELECT 1")?)
            };
            let answers = tokio::time::timeout(PING_TIMEOUT, store.read("worker_role::ready", ping)).await;
            match answers {
                Ok(Ok(())) if !stop.is_cancelled() => HttpResponse::NoContent().finish(),
                _ => HttpResponse::ServiceUnavailable().finish(),
            }
        }
    };
    let application = move || {
        App::new()
            .route("/health", web::get().to(|| async { HttpResponse::NoContent().finish() }))
            .route("/ready", web::get().to(ready.clone()))
    };
    let capacity = limits.auxiliary;
    let port = Port::new("health", capacity, limits.per_address(capacity), &[], Patience::default());
    net::http::serve(application, listener, port, 1, Duration::ZERO).map_err(Error::internal)
}
