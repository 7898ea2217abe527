//! What every test stands on: the real program on a real database, and a client that talks to it over HTTP.
//! Nothing here knows how the server is built; a test that must look into the database asks [`Database`].

pub mod client;
pub mod database;
pub mod guard;
pub mod mailbox;
pub mod nodes;
pub mod postgres;
pub mod program;
pub mod provider;
pub mod receiver;
pub mod server;
pub mod worker;

use std::future::Future;
use std::io::Write;
use std::sync::atomic::{AtomicU16, AtomicU64, Ordering};

pub use client::{Answer, Client, Workspace};
pub use database::Database;
pub use receiver::Receiver;
pub use server::Server;
pub use worker::Worker;

/// Makes two tests of each async function: `name::sqlite` and `name::postgres`.
macro_rules! on_both_databases {
    ($($name:ident),+ $(,)?) => { $(
        mod $name {
            #[test]
            fn sqlite() {
                $crate::support::run(super::$name($crate::support::Database::sqlite()));
            }

            #[test]
            fn postgres() {
                $crate::support::run(super::$name($crate::support::Database::of_both()));
            }
        }
    )+ };
}
pub(crate) use on_both_databases;

/// Runs one async test. Spawned tasks have threads of their own, so a test may block while its writers go on.
pub fn run<T>(body: impl Future<Output = T>) -> T {
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build();
    runtime.expect("a tokio runtime starts").block_on(body)
}

/// A name that no other test of this run uses.
pub fn unique(prefix: &str) -> String {
    static NEXT: AtomicU64 = AtomicU64::new(1);
    format!("{prefix}_{}", NEXT.fetch_add(1, Ordering::Relaxed))
}

/// Says on the real standard error that a test was not run: output of passing tests is not shown.
pub fn skip(test: &str, reason: &str) {
    let _ = writeln!(std::io::stderr(), "SKIPPED {test}: {reason}");
}

/// Says on the real standard error what a test has found, for whoever wants the figures.
pub fn tell(text: &str) {
    let _ = writeln!(std::io::stderr(), "{text}");
}

/// A port that stays free while nothing listens on it: below the range from which the system hands out ports, so
/// that no outgoing connection takes it while a server is down.
pub fn stable_port() -> u16 {
    static NEXT: AtomicU16 = AtomicU16::new(0);
    for _ in 0..10_000 {
        let step = NEXT.fetch_add(1, Ordering::Relaxed);
        let port = 20_000 + (std::process::id() as u16).wrapping_mul(17).wrapping_add(step) % 12_000;
        if std::net::TcpListener::bind(("127.0.0.1", port)).is_ok() {
            return port;
        }
    }
    panic!("no free port between 20000 and 32000")
}

/// A variable of the test run; the server under test never sees the environment of the tests.
#[expect(clippy::disallowed_methods, reason = "the tests have settings of their own")]
pub fn env(name: &str) -> Option<String> {
    std::env::var(name).ok().filter(|value| !value.is_empty())
}

pub fn is_root() -> bool {
    use std::os::unix::fs::MetadataExt;
    std::fs::metadata("/proc/self").is_ok_and(|own| own.uid() == 0)
}
