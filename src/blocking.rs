//! Work that blocks, begun here and nowhere else: files, hashes, SQL and large bodies on the runtime's blocking threads,
//! and the few loops that have a thread of their own. A simulator runs the same work where it wants and when it wants.
//!
//! How many run at once is decided by who begins it (a pool's permits, a queue's places), never here.

use std::thread;
use std::time::Duration;

use tokio::runtime::Handle;
use tokio::task::JoinHandle;

use crate::error::{Error, Result};

/// Begins work on a blocking thread of this runtime.
#[expect(clippy::disallowed_methods, reason = "the one place that begins it")]
pub fn begin<T: Send + 'static>(work: impl FnOnce() -> T + Send + 'static) -> JoinHandle<T> {
    tokio::task::spawn_blocking(work)
}

/// Begins work on a blocking thread of that runtime, from wherever.
#[expect(clippy::disallowed_methods, reason = "the one place that begins it")]
pub fn begin_on<T: Send + 'static>(
    runtime: &Handle,
    work: impl FnOnce() -> T + Send + 'static,
) -> JoinHandle<T> {
    runtime.spawn_blocking(work)
}

/// A loop with a thread of its own, until it ends by itself.
#[expect(clippy::disallowed_methods, reason = "the one place that begins it")]
pub fn thread(name: &str, work: impl FnOnce() + Send + 'static) -> Result<()> {
    thread::Builder::new().name(name.to_owned()).spawn(work).map(drop).map_err(Error::internal)
}

/// Holds this thread for a while; never one that answers callers.
#[expect(clippy::disallowed_methods, reason = "the one place that holds a thread")]
pub fn pause(time: Duration) {
    thread::sleep(time);
}
