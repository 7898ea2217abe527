//! Throw-away PostgreSQL clusters: one shared and fast for all tests, private and durable ones for crash tests.
//! The PostgreSQL programs refuse to run as root; root runs them as `nobody`.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::{Mutex, OnceLock};
use std::time::{Duration, Instant};

use diesel::connection::SimpleConnection;
use diesel::{Connection, PgConnection, RunQueryDsl, sql_query};

use super::{guard, is_root, program, stable_port, unique};

/// `nobody` and `nogroup` on Debian.
const NOBODY: u32 = 65534;
const STARTING: Duration = Duration::from_secs(60);

pub struct Cluster {
    directory: PathBuf,
    port: u16,
    /// Whether a commit survives a killed server; costs a disk sync per commit.
    durable: bool,
    /// The locale of its messages; none: English.
    language: Option<String>,
    /// Where the programs of its PostgreSQL are.
    programs: PathBuf,
    /// Settings that only some clusters have.
    more: &'static [&'static str],
    server: Mutex<Option<Child>>,
}

/// What a server of a Citus cluster needs. A commit over several nodes is prepared on each.
const CITUS: &[&str] = &[
    "shared_preload_libraries=citus",
    "wal_level=logical",
    "max_prepared_transactions=300",
    "max_worker_processes=64",
    "citus.shard_count=8",
    "citus.recover_2pc_interval=1000",
];

/// What `localedef` makes a locale of; not every system has them.
const LOCALE_SOURCES: &str = "/usr/share/i18n/locales";

impl Cluster {
    /// The cluster of this test run: started by the first test that asks, stopped by the guard.
    pub fn shared() -> &'static Cluster {
        static SHARED: OnceLock<Cluster> = OnceLock::new();
        SHARED.get_or_init(|| Cluster::create(false, super::env("OPEN_SPANNER_TEST_LANGUAGE")))
    }

    /// One whose messages are in another language, like `de_DE`.
    pub fn speaking(language: &str) -> Cluster {
        Cluster::create(false, Some(language.to_string()))
    }

    /// A cluster of one test, with `fsync` on, that may be killed.
    pub fn private() -> Cluster {
        Cluster::create(true, super::env("OPEN_SPANNER_TEST_LANGUAGE"))
    }

    /// A server of a Citus cluster, which may be killed, of a PostgreSQL that has the extension.
    pub fn of_citus(programs: PathBuf) -> Cluster {
        Cluster::with(false, None, programs, CITUS)
    }

    /// A copy of a cluster that follows it, until [`Cluster::stop_following`].
    pub fn standby_of(primary: &Cluster) -> Cluster {
        let directory = own_directory();
        let mut backup = primary.program_in("pg_basebackup", &directory);
        let from = primary.dsn("postgres");
        backup.args(["-d", &from, "-R", "-X", "stream", "-c", "fast", "--no-sync", "-D"]);
        backup.arg(directory.join("data"));
        program::finish(backup, STARTING).succeeded();
        let standby = Cluster {
            directory,
            port: stable_port(),
            durable: true,
            language: None,
            programs: primary.programs.clone(),
            more: primary.more,
            server: Mutex::new(None),
        };
        standby.start();
        standby
    }

    /// Waits until this standby has everything that the primary has committed.
    pub fn catch_up_with(&self, primary: &Cluster) {
        let at = primary.text("SELECT pg_current_wal_lsn()::text AS line");
        self.wait_for(&format!("SELECT (pg_last_wal_replay_lsn() >= '{at}')::text AS line"), "true");
    }

    /// From here on the standby lags.
    pub fn stop_following(&self) {
        self.execute("ALTER SYSTEM SET primary_conninfo = ''");
        self.execute("SELECT pg_reload_conf()");
        self.wait_for("SELECT count(*)::text AS line FROM pg_stat_wal_receiver", "0");
    }

    pub fn promote(&self) {
        assert_eq!(self.text("SELECT pg_promote(true, 60)::text AS line"), "true");
    }

    fn wait_for(&self, sql: &str, value: &str) {
        let end = Instant::now() + STARTING;
        while self.text(sql) != value {
            assert!(Instant::now() < end, "{sql} is not {value}");
            std::thread::sleep(Duration::from_millis(20));
        }
    }

    /// The rows of a query with one text column called `line`.
    pub fn lines(&self, database: &str, sql: &str) -> Vec<String> {
        let mut connection = PgConnection::establish(&self.dsn(database)).expect("the cluster runs");
        let rows: Vec<super::database::Line> =
            sql_query(sql).load(&mut connection).unwrap_or_else(|error| panic!("{sql}: {error}"));
        rows.into_iter().map(|row| row.line).collect()
    }

    /// The one row of such a query.
    fn text(&self, sql: &str) -> String {
        self.lines("postgres", sql).remove(0)
    }

    /// `host:port`.
    pub fn address(&self) -> String {
        format!("127.0.0.1:{}", self.port)
    }

    /// Writes a database to a file, or puts it back over what is there now.
    pub fn dump(&self, database: &str, file: &Path) {
        let mut dump = self.program("pg_dump");
        dump.args(["-Fc", "-d", &self.dsn(database)]).stdin(Stdio::null()).stdout(Stdio::piped());
        let dump = dump.output().expect("pg_dump runs");
        assert!(dump.status.success(), "{}", String::from_utf8_lossy(&dump.stderr));
        fs::write(file, dump.stdout).expect("the file is written");
    }

    /// Errors about constraints that partitions inherit are expected: pg_restore goes on.
    pub fn restore(&self, database: &str, file: &Path) {
        let mut restore = self.program("pg_restore");
        restore.args(["--clean", "--if-exists", "-d", &self.dsn(database)]).arg(file);
        let run = program::finish(restore, STARTING);
        assert!(run.code.is_some(), "{run:#?}");
    }

    fn create(durable: bool, language: Option<String>) -> Cluster {
        Cluster::with(durable, language, programs().to_owned(), &[])
    }

    fn with(
        durable: bool,
        language: Option<String>,
        programs: PathBuf,
        more: &'static [&'static str],
    ) -> Cluster {
        let directory = own_directory();
        let data = directory.join("data");
        let mut initdb = postgres_program(&programs.join("initdb"), &directory);
        initdb
            .args(["-U", "postgres", "-A", "trust", "-E", "UTF8", "--locale=C.UTF-8", "--no-sync", "-D"])
            .arg(data);
        program::finish(initdb, STARTING).succeeded();
        if let Some(language) = &language {
            make_locale(&directory, language);
        }
        let port = stable_port();
        let cluster =
            Cluster { directory, port, durable, language, programs, more, server: Mutex::new(None) };
        cluster.start();
        cluster
    }

    fn program(&self, name: &str) -> Command {
        self.program_in(name, &self.directory)
    }

    fn program_in(&self, name: &str, home: &Path) -> Command {
        postgres_program(&self.programs.join(name), home)
    }

    /// Starts the server (again) on the same data and port, and waits until it answers.
    pub fn start(&self) {
        let log = fs::File::create(self.log_path()).expect("a log file");
        let mut command = self.program("postgres");
        command.arg("-D").arg(self.directory.join("data"));
        for setting in self.settings() {
            command.args(["-c", &setting]);
        }
        if self.language.is_some() {
            command.env("LOCPATH", &self.directory);
        }
        command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(log);
        let mut child = command.spawn().expect("postgres starts");
        guard::will_end(child.id(), "QUIT");
        self.wait_until_up(&mut child);
        *self.server.lock().expect("no holder panics") = Some(child);
    }

    fn settings(&self) -> Vec<String> {
        let mut settings = vec![
            "listen_addresses=127.0.0.1".to_string(),
            "unix_socket_directories=".to_string(),
            format!("port={}", self.port),
            "max_connections=300".to_string(),
            "shared_buffers=64MB".to_string(),
            // tests that look at plans gather statistics themselves
            "autovacuum=off".to_string(),
        ];
        settings.extend(self.language.iter().map(|language| format!("lc_messages={language}.UTF-8")));
        settings.extend(self.more.iter().map(|setting| (*setting).to_string()));
        if !self.durable {
            settings
                .extend(["fsync=off", "synchronous_commit=off", "full_page_writes=off"].map(String::from));
        }
        settings
    }

    fn wait_until_up(&self, child: &mut Child) {
        let end = Instant::now() + STARTING;
        while PgConnection::establish(&self.dsn("postgres")).is_err() {
            let ended = child.try_wait().expect("our own child can be waited for");
            let log = || fs::read_to_string(self.log_path()).unwrap_or_default();
            assert!(ended.is_none(), "postgres ended: {}", log());
            assert!(Instant::now() < end, "postgres does not answer: {}", log());
            std::thread::sleep(Duration::from_millis(20));
        }
    }

    /// What the server has written since it was started.
    pub fn log(&self) -> String {
        String::from_utf8_lossy(&fs::read(self.log_path()).expect("a log file")).into_owned()
    }

    /// Where the server keeps a file that `pg_relation_filepath` names.
    pub fn data_file(&self, path: &str) -> PathBuf {
        self.directory.join("data").join(path)
    }

    fn log_path(&self) -> PathBuf {
        self.directory.join("log")
    }

    /// `kill -9` of every process of the server at once, as when the machine goes away.
    pub fn kill(&self) {
        let Some(mut child) = self.server.lock().expect("no holder panics").take() else { return };
        let children = children_of(child.id());
        child.kill().expect("our own child can be killed");
        for pid in children {
            guard::signal("KILL", pid);
        }
        child.wait().expect("our own child can be waited for");
        guard::has_ended(child.id(), "QUIT");
    }

    /// Sends a signal to every process of the server: `STOP` freezes it, `CONT` lets it go on.
    pub fn signal_all(&self, name: &str) {
        let server = self.server.lock().expect("no holder panics");
        let child = server.as_ref().expect("the server runs");
        // the one that starts the others comes first
        assert!(guard::signal(name, child.id()), "the server is there");
        for pid in children_of(child.id()) {
            guard::signal(name, pid);
        }
    }

    pub fn dsn(&self, database: &str) -> String {
        format!("postgres://postgres@127.0.0.1:{}/{database}", self.port)
    }

    /// A fresh, empty database; returns its name.
    pub fn create_database(&self) -> String {
        let name = unique("test");
        self.execute(&format!("CREATE DATABASE {name} TEMPLATE template0"));
        name
    }

    /// The same with its tables, but not the log of the cluster, in a directory.
    pub fn create_database_in(&self, directory: &Path) -> String {
        let tables = directory.join("tables");
        fs::create_dir(&tables).expect("a directory");
        if is_root() {
            std::os::unix::fs::chown(&tables, Some(NOBODY), Some(NOBODY)).expect("root may chown");
        }
        let name = unique("test");
        self.execute(&format!("CREATE TABLESPACE {name} LOCATION '{}'", tables.display()));
        self.execute(&format!("CREATE DATABASE {name} TEMPLATE template0 TABLESPACE {name}"));
        name
    }

    fn execute(&self, sql: &str) {
        self.execute_in("postgres", sql);
    }

    pub fn execute_in(&self, database: &str, sql: &str) {
        let mut connection = PgConnection::establish(&self.dsn(database)).expect("the cluster runs");
        connection.batch_execute(sql).unwrap_or_else(|error| panic!("{sql}: {error}"));
    }

    /// The schema of a database as SQL.
    pub fn dump_schema(&self, database: &str) -> String {
        let mut command = self.program("pg_dump");
        command.args(["--schema-only", "--no-owner", "--dbname", &self.dsn(database)]);
        let dump = program::finish(command, STARTING).succeeded().stdout;
        // newer versions put a random word around the dump
        let is_stable = |line: &&str| !line.starts_with("\\restrict") && !line.starts_with("\\unrestrict");
        dump.lines().filter(is_stable).collect::<Vec<_>>().join("\n")
    }
}

impl Drop for Cluster {
    fn drop(&mut self) {
        self.kill();
        let _ = fs::remove_dir_all(&self.directory);
    }
}

/// Of the user that runs PostgreSQL, removed at the end.
fn own_directory() -> PathBuf {
    let directory =
        tempfile::Builder::new().prefix("open-spanner-pg-").tempdir().expect("a directory").keep();
    guard::will_remove(&directory);
    if is_root() {
        std::os::unix::fs::chown(&directory, Some(NOBODY), Some(NOBODY)).expect("root may chown");
    }
    directory
}

/// Compiles a locale into the directory of a cluster: the system need not have it installed.
fn make_locale(directory: &Path, language: &str) {
    assert!(Path::new(LOCALE_SOURCES).join(language).exists(), "scripts/test installs the package locales");
    let mut localedef = Command::new("localedef");
    localedef.args(["-i", language, "-f", "UTF-8"]).arg(directory.join(format!("{language}.UTF-8")));
    program::finish(localedef, STARTING).succeeded();
}

/// One of the PostgreSQL programs, as a user it accepts.
fn postgres_program(path: &Path, home: &Path) -> Command {
    let mut command = if is_root() {
        let mut command = Command::new("setpriv");
        command.args(["--reuid=65534", "--regid=65534", "--clear-groups", "--"]).arg(path);
        command
    } else {
        Command::new(path)
    };
    command.env("HOME", home).current_dir(home);
    command
}

/// Where the newest installed PostgreSQL keeps its programs.
fn programs() -> &'static Path {
    static PROGRAMS: OnceLock<PathBuf> = OnceLock::new();
    PROGRAMS.get_or_init(|| {
        let versions = fs::read_dir("/usr/lib/postgresql").into_iter().flatten().flatten();
        let newest = versions
            .filter_map(|entry| {
                Some((entry.file_name().to_str()?.parse::<u32>().ok()?, entry.path().join("bin")))
            })
            .filter(|(_, path)| path.join("initdb").exists())
            .max();
        let on_path = || {
            let path = super::env("PATH").unwrap_or_default();
            path.split(':').map(PathBuf::from).find(|directory| directory.join("initdb").exists())
        };
        newest
            .map(|(_, path)| path)
            .or_else(on_path)
            .expect("PostgreSQL is installed (scripts/test installs it)")
    })
}

/// The direct children of a process. PostgreSQL gives each a session of its own, so there is no group to signal.
fn children_of(parent: u32) -> Vec<u32> {
    let processes = fs::read_dir("/proc").expect("Linux").flatten();
    let is_child = |pid: &u32| {
        let stat = fs::read_to_string(format!("/proc/{pid}/stat")).unwrap_or_default();
        // "pid (name) state ppid ..."; a name may hold spaces and parentheses
        let after_name = stat.rsplit(')').next().unwrap_or_default();
        after_name.split_whitespace().nth(1) == Some(&parent.to_string())
    };
    processes.filter_map(|entry| entry.file_name().to_str()?.parse().ok()).filter(is_child).collect()
}
