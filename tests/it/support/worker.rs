//! A worker as a process of its own: `open-spanner <role>` on a database that a server uses as well.

use std::path::Path;
use std::process::{Child, ExitStatus, Stdio};
use std::time::Duration;

use super::{Database, guard, program};

/// So that many workers can run on one machine.
const HEALTH_ADDRS: [&str; 4] = [
    "OPEN_SPANNER_EXPORT_WORKER_HEALTH_ADDR",
    "OPEN_SPANNER_ALERT_WORKER_HEALTH_ADDR",
    "OPEN_SPANNER_ENTITLEMENT_WORKER_HEALTH_ADDR",
    "OPEN_SPANNER_USAGE_WORKER_HEALTH_ADDR",
];

pub struct Worker {
    child: Child,
}

impl Worker {
    /// Starts a role in this directory, where it also writes its log.
    pub fn start(role: &str, database: &Database, directory: &Path, more: &[(&str, &str)]) -> Worker {
        let own = database.settings();
        let mut settings: Vec<(&str, &str)> = own.iter().map(|(n, v)| (*n, v.as_str())).collect();
        settings.extend(HEALTH_ADDRS.map(|variable| (variable, "127.0.0.1:0")));
        settings.extend_from_slice(more);
        let log = std::fs::File::options().create(true).append(true).open(directory.join("worker.log"));
        let mut command = program::command(&[role], &settings, directory);
        command.stdout(Stdio::null()).stderr(log.expect("a log file"));
        let child = command.spawn().expect("it starts");
        guard::will_end(child.id(), "KILL");
        Worker { child }
    }

    /// A line of `/proc/<pid>/status`, in KiB.
    pub fn memory_kib(&self, line: &str) -> u64 {
        let status = std::fs::read_to_string(format!("/proc/{}/status", self.child.id())).expect("it runs");
        let found = status.lines().find_map(|text| text.strip_prefix(line)).expect("the kernel knows it");
        found.trim_matches([':', ' ', '\t', 'k', 'B']).parse().expect("a number")
    }

    /// `kill -9`.
    pub fn kill(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
        guard::has_ended(self.child.id(), "KILL");
    }

    /// SIGTERM, and the end it leads to.
    pub fn terminate(&mut self) -> ExitStatus {
        assert!(guard::signal("TERM", self.child.id()), "the worker is there");
        program::wait(&mut self.child, Duration::from_secs(30)).expect("the worker ends")
    }
}

impl Drop for Worker {
    fn drop(&mut self) {
        self.kill();
    }
}
