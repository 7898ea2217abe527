//! The real server: `open-spanner serve` as a child process on free ports, its log kept for the test to look at.

use std::io::{BufRead, BufReader, Read};
use std::process::{Child, ExitStatus};
use std::sync::{Arc, Condvar, Mutex, PoisonError};
use std::time::{Duration, Instant};

use serde_json::Value;
use tempfile::TempDir;

use super::{Answer, Client, Database, Workspace, guard, program, stable_port};

const STARTING: Duration = Duration::from_secs(30);
const STOPPING: Duration = Duration::from_secs(30);

pub struct Server {
    child: Option<Child>,
    settings: Vec<(String, String)>,
    /// The working directory: empty at first, so that no stray `.env` is read.
    directory: TempDir,
    log: Arc<Log>,
    http: String,
    /// Hard limit of open files, if it is not that of the tests.
    open_files: Option<u32>,
}

/// Lines of standard error, as they come.
#[derive(Default)]
struct Log {
    lines: Mutex<Vec<String>>,
    changed: Condvar,
}

impl Server {
    pub fn start(database: &Database) -> Server {
        Server::start_with(database, &[])
    }

    /// Starts with more settings; they win over the defaults of the tests.
    pub fn start_with(database: &Database, more: &[(&str, &str)]) -> Server {
        let mut server = Server::start_unready(database, more);
        server.announced("ready", "version");
        server
    }

    /// Waits only until the server listens, which it does before its database is in place.
    pub fn start_unready(database: &Database, more: &[(&str, &str)]) -> Server {
        Server::start_limited(database, more, None)
    }

    /// Starts a server that may open so few files.
    pub fn start_with_open_files(database: &Database, more: &[(&str, &str)], open_files: u32) -> Server {
        let mut server = Server::start_limited(database, more, Some(open_files));
        server.announced("ready", "version");
        server
    }

    fn start_limited(database: &Database, more: &[(&str, &str)], open_files: Option<u32>) -> Server {
        let mut settings = vec![("RUST_LOG".to_string(), "info".to_string())];
        settings.push(("OPEN_SPANNER_HTTP_ADDR".into(), "127.0.0.1:0".into()));
        settings.push(("OPEN_SPANNER_GRPC_ADDR".into(), "127.0.0.1:0".into()));
        settings.extend(database.settings().into_iter().map(|(name, value)| (name.to_string(), value)));
        settings.extend(more.iter().map(|(name, value)| (name.to_string(), value.to_string())));
        let directory = tempfile::Builder::new().prefix("open-spanner-").tempdir().expect("a directory");
        let log = Arc::new(Log::default());
        let mut server = Server { child: None, settings, directory, log, http: String::new(), open_files };
        server.spawn();
        server
    }

    /// Starts on ports that nobody takes while the server is down.
    pub fn start_to_be_restarted(database: &Database) -> Server {
        let http = format!("127.0.0.1:{}", stable_port());
        let grpc = format!("127.0.0.1:{}", stable_port());
        Server::start_with(database, &[("OPEN_SPANNER_HTTP_ADDR", &http), ("OPEN_SPANNER_GRPC_ADDR", &grpc)])
    }

    fn spawn(&mut self) {
        self.log.lines.lock().expect("no holder panics").clear();
        let settings: Vec<(&str, &str)> =
            self.settings.iter().map(|(n, v)| (n.as_str(), v.as_str())).collect();
        let mut command = program::command(&["serve"], &settings, self.directory.path());
        if let Some(open_files) = self.open_files {
            command = program::with_open_files(command, open_files);
        }
        let mut child = command.spawn().expect("it starts");
        guard::will_end(child.id(), "KILL");
        let stderr = child.stderr.take().expect("stderr is piped");
        let stdout = child.stdout.take().expect("stdout is piped");
        keep(stderr, self.log.clone());
        keep(stdout, Arc::default());
        self.child = Some(child);
        self.http = self.announced("listening", "http");
    }

    /// Waits for the log line with this message and returns one of its values.
    fn announced(&mut self, message: &str, key: &str) -> String {
        let end = Instant::now() + STARTING;
        let mut lines = self.log.lines.lock().expect("no holder panics");
        loop {
            let found =
                lines.iter().filter_map(|line| serde_json::from_str::<Value>(line).ok()).find_map(|line| {
                    let is_it = line["message"] == message;
                    line[key].as_str().filter(|_| is_it).map(str::to_string)
                });
            if let Some(value) = found {
                return value;
            }
            let child = self.child.as_mut().expect("just spawned");
            let ended = child.try_wait().expect("our own child can be waited for");
            assert!(ended.is_none(), "the server ended with {ended:?}:\n{}", lines.join("\n"));
            assert!(Instant::now() < end, "no log line {message:?} with {key:?}:\n{}", lines.join("\n"));
            lines =
                self.log.changed.wait_timeout(lines, Duration::from_millis(50)).expect("no holder panics").0;
        }
    }

    /// `host:port` of the HTTP listener.
    pub fn http(&self) -> &str {
        &self.http
    }

    /// `host:port` of the gRPC listener, once the server is ready.
    pub fn grpc(&self) -> String {
        let lines = self.log().into_iter().filter_map(|line| serde_json::from_str::<Value>(&line).ok());
        let address = |line: Value| line["grpc"].as_str().map(str::to_string);
        lines.filter_map(address).next().expect("the server announces its gRPC listener")
    }

    /// The number in a line of `/proc/<pid>/status`; memory is in KiB.
    pub fn process_status(&self, name: &str) -> u64 {
        let pid = self.child.as_ref().expect("the server runs").id();
        let status = std::fs::read_to_string(format!("/proc/{pid}/status")).expect("it runs");
        let line = status.lines().find_map(|line| line.strip_prefix(name)).expect("such a line");
        line.chars().filter(char::is_ascii_digit).collect::<String>().parse().expect("a number")
    }

    /// How many files, sockets among them, the server has open.
    pub fn open_descriptors(&self) -> usize {
        let pid = self.child.as_ref().expect("the server runs").id();
        std::fs::read_dir(format!("/proc/{pid}/fd")).expect("it runs").count()
    }

    pub fn url(&self) -> String {
        format!("http://{}", self.http)
    }

    /// A client without credentials.
    pub fn client(&self) -> Client {
        Client::new(&self.url())
    }

    /// A fresh user with a workspace, a session and an API key that may do everything.
    pub async fn workspace(&self) -> Workspace {
        Workspace::create(&self.client()).await
    }

    /// Standard error since the last start.
    pub fn log(&self) -> Vec<String> {
        // also while a failed wait for a line unwinds, which holds the lock
        self.log.lines.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// The log line about a request, once it has come through the pipe; needs `open_spanner::http=debug`. Whatever
    /// the request logged stands before it.
    pub fn logged(&self, answer: &Answer) -> Value {
        let id = answer.header("x-request-id");
        let end = Instant::now() + STARTING;
        let mut lines = self.log.lines.lock().expect("no holder panics");
        loop {
            let lines_of_it = lines.iter().rev().filter(|line| line.contains(&id));
            let parsed = lines_of_it.filter_map(|line| serde_json::from_str::<Value>(line).ok());
            if let Some(line) = parsed.into_iter().find(|line| line["request_id"] == id) {
                return line;
            }
            assert!(Instant::now() < end, "no log line about {}:\n{}", answer.request, lines.join("\n"));
            lines =
                self.log.changed.wait_timeout(lines, Duration::from_millis(50)).expect("no holder panics").0;
        }
    }

    /// Sends a signal by its name, such as `HUP`.
    pub fn signal(&self, name: &str) {
        let child = self.child.as_ref().expect("the server runs");
        assert!(guard::signal(name, child.id()), "the server is there");
    }

    /// Asks the server to stop (SIGTERM) without waiting for it.
    pub fn ask_to_stop(&self) {
        self.signal("TERM");
    }

    /// Waits until the server has stopped by itself.
    pub fn stopped(&mut self) -> ExitStatus {
        let child = self.child.as_mut().expect("the server runs");
        let status = program::wait(child, STOPPING);
        let status = status.unwrap_or_else(|| panic!("no end within {STOPPING:?}: {:#?}", self.log()));
        self.forget();
        status
    }

    /// SIGTERM, and the end it leads to.
    pub fn terminate(&mut self) -> ExitStatus {
        self.ask_to_stop();
        self.stopped()
    }

    /// `kill -9`.
    pub fn kill(&mut self) {
        let Some(child) = &mut self.child else { return };
        let _ = child.kill();
        let _ = child.wait();
        self.forget();
    }

    /// Starts again with the same settings: same database, and same ports if they were chosen by the test.
    pub fn restart(&mut self) {
        self.kill();
        self.spawn();
        self.announced("ready", "version");
    }

    fn forget(&mut self) {
        if let Some(child) = self.child.take() {
            guard::has_ended(child.id(), "KILL");
        }
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        self.kill();
        if std::thread::panicking() {
            eprintln!("server log:\n{}", self.log().join("\n"));
        }
    }
}

/// Reads a pipe to its end, so that the server never blocks on it.
fn keep(pipe: impl Read + Send + 'static, log: Arc<Log>) {
    std::thread::spawn(move || {
        for line in BufReader::new(pipe).lines().map_while(Result::ok) {
            log.lines.lock().expect("no holder panics").push(line);
            log.changed.notify_all();
        }
    });
}
