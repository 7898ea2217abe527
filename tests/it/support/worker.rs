//! A worker as a process of its own, to be killed and started again.

use std::process::{Child, Stdio};

use tempfile::TempDir;

use super::{Database, guard, program};

pub struct Worker {
    child: Child,
    _directory: TempDir,
}

impl Worker {
    pub fn start(role: &str, database: &Database, more: &[(&str, &str)]) -> Worker {
        let directory = tempfile::Builder::new().prefix("open-spanner-").tempdir().expect("a directory");
        let own = database.settings();
        let mut settings: Vec<(&str, &str)> =
            own.iter().map(|(name, value)| (*name, value.as_str())).collect();
        settings.push(("RUST_LOG", "warn"));
        settings.push(("OPEN_SPANNER_ALERT_WORKER_HEALTH_ADDR", "127.0.0.1:0"));
        settings.extend(more);
        let mut command = program::command(&[role], &settings, directory.path());
        let child = command.stdout(Stdio::null()).stderr(Stdio::inherit()).spawn().expect("it starts");
        guard::will_end(child.id(), "KILL");
        Worker { child, _directory: directory }
    }
}

impl Drop for Worker {
    /// `kill -9`.
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
        guard::has_ended(self.child.id(), "KILL");
    }
}
