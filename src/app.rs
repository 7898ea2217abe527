//! What every door is handed: settings, store, callers, meters, the way in. Put together once by the serve role.

use std::sync::Arc;
use std::sync::atomic::{AtomicU8, Ordering};

use tokio_util::sync::CancellationToken;

use crate::alerts::webhook;
use crate::auth::Auth;
use crate::config::Config;
use crate::db::Store;
use crate::entitlements::counter_reader;
use crate::entitlements::sql::plans::PlanCache;
use crate::ingest::Ingest;
use crate::jobs::worker::Wake;
use crate::meters::sql::MeterCache;

/// Cheap to clone.
#[derive(Clone)]
pub struct App {
    pub config: Arc<Config>,
    pub store: Store,
    pub auth: Auth,
    pub meters: MeterCache,
    pub plans: PlanCache,
    pub counters: counter_reader::Reader,
    pub ingest: Ingest,
    pub phase: Arc<Phase>,
    /// Ring after a commit that enqueued background work.
    pub wake: Wake,
    pub webhooks: webhook::client::Client,
}

/// Where the server is in its life; decides what `/ready` says.
pub struct Phase {
    state: AtomicU8,
    draining: CancellationToken,
}

const STARTING: u8 = 0;
const SERVING: u8 = 1;
const DRAINING: u8 = 2;

impl Default for Phase {
    fn default() -> Self {
        Phase { state: AtomicU8::new(STARTING), draining: CancellationToken::new() }
    }
}

impl Phase {
    pub fn serve(&self) {
        self.state.store(SERVING, Ordering::Release);
    }

    pub fn drain(&self) {
        self.state.store(DRAINING, Ordering::Release);
        self.draining.cancel();
    }

    /// Cancelled when the server begins to drain: long work ends at its next good moment.
    pub fn draining(&self) -> CancellationToken {
        self.draining.clone()
    }

    /// Migrations are not done yet: no request but health checks makes sense.
    pub fn is_starting(&self) -> bool {
        self.state.load(Ordering::Acquire) == STARTING
    }

    pub fn is_serving(&self) -> bool {
        self.state.load(Ordering::Acquire) == SERVING
    }
}
