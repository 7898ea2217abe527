//! Work that blocks, begun here and nowhere else: files, hashes, SQL and large bodies on the runtime's blocking threads,
//! and the few loops that have a thread of their own. A simulator runs the same work where it wants and when it wants.
//!
//! How many run at once is decided by who begins it (a pool's permits, a queue's places), never here.

use std::sync::mpsc;
use std::thread;
use std::time::Duration;

use tokio::runtime::Handle;
use tokio::task::JoinHandle;

use crate::error::{Code, Error, Result};

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

/// Makes values on a thread of its own while the caller works on those before; one waits in between. Whichever side fails
/// first ends both.
pub fn ahead<T: Send>(
    make: impl FnOnce(&mut dyn FnMut(T) -> Result<()>) -> Result<()> + Send,
    mut work: impl FnMut(T) -> Result<()>,
) -> Result<()> {
    let (sender, receiver) = mpsc::sync_channel(1);
    thread::scope(|scope| {
        let maker = scope.spawn(move || {
            // the other side tells why
            let ended = |_| Error::new(Code::Internal, "nobody works on it any more");
            make(&mut |made| sender.send(made).map_err(ended))
        });
        // with the iterator goes the receiver, and the maker fails at its next value
        let worked = receiver.into_iter().try_for_each(&mut work);
        let made = maker.join().unwrap_or_else(|_| Err(Error::internal("what made values has ended")));
        worked.and(made)
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_made_ahead_comes_in_order_and_either_side_ends_both() {
        let numbers =
            |until: u32| move |hand: &mut dyn FnMut(u32) -> Result<()>| (0..until).try_for_each(hand);
        let mut seen = Vec::new();
        ahead(numbers(5), |number| {
            seen.push(number);
            Ok(())
        })
        .expect("nobody fails");
        assert_eq!(seen, [0, 1, 2, 3, 4]);

        let worker = ahead(numbers(u32::MAX), |number| match number {
            3 => Err(Error::invalid("three")),
            _ => Ok(()),
        });
        assert!(worker.is_err_and(|error| error.message.contains("three")));
        let maker = |hand: &mut dyn FnMut(u32) -> Result<()>| {
            hand(1)?;
            Err(Error::invalid("no more"))
        };
        assert!(ahead(maker, |_| Ok(())).is_err_and(|error| error.message.contains("no more")));
    }
}
