//! Tells whoever watches how far a long step is: a line every few seconds, on standard error.

use std::time::{Duration, Instant};

use crate::clock;

const EVERY: Duration = Duration::from_secs(2);

pub struct Progress {
    what: &'static str,
    total: u64,
    done: u64,
    started: Instant,
    said: Instant,
}

impl Progress {
    pub fn new(what: &'static str, total: u64) -> Progress {
        let now = clock::moment();
        Progress { what, total, done: 0, started: now, said: now }
    }

    pub fn add(&mut self, count: usize) {
        self.done += count as u64;
        if clock::since(self.said) >= EVERY {
            self.said = clock::moment();
            eprintln!("{}", self.line());
        }
    }

    fn line(&self) -> String {
        let seconds = clock::since(self.started).as_secs_f64().max(0.001);
        let rate = (self.done as f64 / seconds).max(1.0);
        let total = self.total.max(self.done);
        let percent = self.done * 100 / total.max(1);
        let left = (total - self.done) as f64 / rate;
        format!("{}: {} of {total} ({percent} %), {rate:.0} a second, {left:.0} s left", self.what, self.done)
    }
}

impl Drop for Progress {
    fn drop(&mut self) {
        eprintln!("{}", self.line());
    }
}
