//! How operators see that a worker lives: a row that is renewed while it does, and goes when it stops. One that was
//! killed leaves its row behind, which then is stale.

use std::sync::Arc;
use std::sync::atomic::{AtomicI64, Ordering};
use std::time::Duration;

use tokio::task::JoinHandle;

use crate::chance;
use crate::db::{Conn, Store};
use crate::jobs::instances::{self, Instance};
use crate::metering::time::Timestamp;

const INTERVAL: Duration = Duration::from_secs(10);

/// Where the process runs and what it is, for people; the rest makes it unique.
fn instance_id() -> String {
    let host = rustix::system::uname().nodename().to_string_lossy().into_owned();
    let unique = chance::name().simple().to_string();
    format!("{host}/{}/{}-{}", env!("CARGO_PKG_VERSION"), std::process::id(), &unique[..12])
}

pub struct Heartbeat {
    store: Store,
    worker: &'static str,
    instance_id: String,
    started_at: Timestamp,
    last_success_at: AtomicI64,
    last_failure_at: AtomicI64,
}

impl Heartbeat {
    pub fn new(store: Store, worker: &'static str) -> Arc<Heartbeat> {
        Arc::new(Heartbeat {
            store,
            worker,
            instance_id: instance_id(),
            started_at: Timestamp::now(),
            last_success_at: AtomicI64::new(0),
            last_failure_at: AtomicI64::new(0),
        })
    }

    /// Beats until [`Heartbeat::stop`] ends it.
    pub fn start(self: &Arc<Self>) -> JoinHandle<()> {
        let heart = self.clone();
        tokio::spawn(async move {
            let mut beats = tokio::time::interval(INTERVAL);
            loop {
                beats.tick().await;
                heart.beat().await;
            }
        })
    }

    pub fn note(&self, is_success: bool) {
        let last = if is_success { &self.last_success_at } else { &self.last_failure_at };
        last.store(Timestamp::now().0, Ordering::Relaxed);
    }

    async fn beat(&self) {
        let at = |atomic: &AtomicI64| Some(atomic.load(Ordering::Relaxed)).filter(|at| *at > 0);
        let instance = Instance {
            instance_id: self.instance_id.clone(),
            worker: self.worker.to_owned(),
            started_at: self.started_at.0,
            last_heartbeat_at: 0,
            last_success_at: at(&self.last_success_at),
            last_failure_at: at(&self.last_failure_at),
        };
        let beat = move |conn: &mut Conn| instances::heartbeat(conn, &instance, Timestamp::now());
        if let Err(error) = self.store.write("jobs::heartbeat", beat).await {
            log::warn!(worker = self.worker, error:% = error; "heartbeat failed");
        }
    }

    pub async fn stop(&self, beats: JoinHandle<()>) {
        beats.abort();
        // a beat that was under way would bring the row back
        let _ = beats.await;
        let (worker, instance_id) = (self.worker, self.instance_id.clone());
        let leave = move |conn: &mut Conn| instances::leave(conn, worker, &instance_id);
        if let Err(error) = self.store.write("jobs::leave", leave).await {
            log::warn!(worker = self.worker, error:% = error; "the last heartbeat stays until it is old");
        }
    }
}
