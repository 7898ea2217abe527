//! How slowly a body may arrive. A client that sends less is not waited for, so that what is held for it is held for
//! a bounded time.

use std::time::{Duration, Instant};

use crate::clock;

/// Networks hesitate.
const GRACE: Duration = Duration::from_secs(5);
const BYTES_PER_SECOND: usize = 4096;
/// No body takes longer, whatever its size.
const LONGEST: Duration = Duration::from_secs(30);

/// A body on its way in.
pub struct Upload {
    started: Instant,
    received: usize,
}

impl Default for Upload {
    fn default() -> Self {
        Upload { started: clock::moment(), received: 0 }
    }
}

impl Upload {
    /// Waits for the next piece, as long as the pieces before it have earned.
    pub async fn wait_for<T>(&self, piece: impl Future<Output = T>) -> Option<T> {
        tokio::time::timeout_at(self.due().into(), piece).await.ok()
    }

    pub fn note(&mut self, bytes: usize) {
        self.received = self.received.saturating_add(bytes);
    }

    fn due(&self) -> Instant {
        let earned = Duration::from_millis((self.received / (BYTES_PER_SECOND / 1000).max(1)) as u64);
        self.started + (GRACE + earned).min(LONGEST)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn bytes_earn_time_up_to_a_bound() {
        let mut upload = Upload::default();
        let allowed = |upload: &Upload| upload.due() - upload.started;
        assert_eq!(allowed(&upload), GRACE);
        upload.note(8192);
        assert!((Duration::from_secs(7)..Duration::from_secs(8)).contains(&allowed(&upload)));
        upload.note(8_000_000);
        assert_eq!(allowed(&upload), LONGEST);
    }
}
