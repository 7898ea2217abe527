//! What every door is handed: settings, store, callers, meters, the way in. Put together once by the serve role.

use std::sync::Arc;
use std::sync::atomic::{AtomicU8, Ordering};

use crate::auth::Auth;
use crate::config::Config;
use crate::ingest::Ingest;
use crate::store::Store;
use crate::store::meters::MeterCache;
use crate::store::plans::PlanCache;
use crate::worker::Wake;

/// Cheap to clone.
#[derive(Clone)]
pub struct App {
    pub config: Arc<Config>,
    pub store: Store,
    pub auth: Auth,
    pub meters: MeterCache,
    pub plans: PlanCache,
    pub ingest: Ingest,
    /// Rung after something was enqueued.
    pub wake: Wake,
    pub phase: Arc<Phase>,
}

/// Where the server is in its life; decides what `/ready` says.
pub struct Phase(AtomicU8);

const STARTING: u8 = 0;
const SERVING: u8 = 1;
const DRAINING: u8 = 2;

impl Default for Phase {
    fn default() -> Self {
        Phase(AtomicU8::new(STARTING))
    }
}

impl Phase {
    pub fn serve(&self) {
        self.0.store(SERVING, Ordering::Release);
    }

    pub fn drain(&self) {
        self.0.store(DRAINING, Ordering::Release);
    }

    /// Migrations are not done yet: no request but health checks makes sense.
    pub fn is_starting(&self) -> bool {
        self.0.load(Ordering::Acquire) == STARTING
    }

    pub fn is_serving(&self) -> bool {
        self.0.load(Ordering::Acquire) == SERVING
    }
}
