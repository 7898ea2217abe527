//! Databases to measure on: SQLite files, and a throw-away PostgreSQL cluster with `fsync` on.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use diesel::connection::SimpleConnection;
use open_spanner::config::{Driver, Secret, Synchronous};
use open_spanner::db::{Conn, migrations, open};

use crate::{Outcome, machine};

/// A place where databases are made. What it holds is removed with it.
pub enum Place {
    Sqlite(tempfile::TempDir),
    Postgres(Cluster),
}

impl Place {
    pub fn sqlite(parent: &Path) -> Outcome<Place> {
        Ok(Place::Sqlite(tempfile::Builder::new().prefix("load-sqlite-").tempdir_in(parent)?))
    }

    pub fn postgres(parent: &Path) -> Outcome<Place> {
        Cluster::start(parent).map(Place::Postgres)
    }

    pub fn name(&self) -> &'static str {
        match self {
            Place::Sqlite(_) => "sqlite",
            Place::Postgres(_) => "postgres",
        }
    }

    pub fn dir(&self) -> &Path {
        match self {
            Place::Sqlite(dir) => dir.path(),
            Place::Postgres(cluster) => cluster.dir.path(),
        }
    }

    /// Where the database of this name is, whether it exists or not.
    pub fn driver(&self, name: &str) -> Driver {
        match self {
            Place::Sqlite(dir) => Driver::Sqlite {
                path: dir.path().join(format!("{name}.db")).display().to_string(),
                synchronous: Synchronous::Full,
            },
            Place::Postgres(cluster) => Driver::Postgres { dsn: Secret::new(cluster.dsn(name)) },
        }
    }

    /// Makes an empty database.
    pub fn create(&self, name: &str) -> Outcome<Driver> {
        if let Place::Postgres(_) = self {
            let mut conn = open(&self.driver("postgres"))?;
            conn.batch_execute(&format!("CREATE DATABASE {name} TEMPLATE template0"))?;
        }
        Ok(self.driver(name))
    }

    /// Makes an empty database with the schema, for SQL without a server.
    pub fn create_migrated(&self, name: &str) -> Outcome<(Driver, Conn)> {
        let driver = self.create(name)?;
        migrations::run(&driver).map_err(|error| error.message)?;
        let conn = open(&driver)?;
        Ok((driver, conn))
    }

    /// Removes a database that nobody uses any more.
    pub fn remove(&self, name: &str) -> Outcome<()> {
        match self {
            Place::Sqlite(dir) => {
                for suffix in ["", "-wal", "-shm"] {
                    // only the file itself is always there
                    let _ = fs::remove_file(dir.path().join(format!("{name}.db{suffix}")));
                }
            }
            Place::Postgres(_) => {
                open(&self.driver("postgres"))?
                    .batch_execute(&format!("DROP DATABASE {name} WITH (FORCE)"))?;
            }
        }
        Ok(())
    }

    /// Writes what is cached to disk, so that one measurement does not pay for the one before it.
    pub fn settle(&self) -> Outcome<()> {
        if let Place::Postgres(_) = self {
            open(&self.driver("postgres"))?.batch_execute("CHECKPOINT")?;
        }
        Ok(())
    }

    /// Rows that hold aggregates, in a database of this place.
    pub fn rollup_rows(&self, name: &str) -> Outcome<i64> {
        #[derive(diesel::QueryableByName)]
        struct Count {
            #[diesel(sql_type = diesel::sql_types::BigInt)]
            rows: i64,
        }
        let text = "SELECT (SELECT COUNT(*) FROM rollups) + (SELECT COUNT(*) FROM rollup_deltas)
                         + (SELECT COUNT(*) FROM rollup_facets) + (SELECT COUNT(*) FROM rollup_subjects) AS rows";
        let count: Count =
            diesel::RunQueryDsl::get_result(diesel::sql_query(text), &mut open(&self.driver(name))?)?;
        Ok(count.rows)
    }

    /// Processor time of the database's own processes; SQLite has none.
    pub fn cpu(&self) -> u64 {
        match self {
            Place::Sqlite(_) => 0,
            Place::Postgres(cluster) => machine::cpu_of_family(cluster.postmaster.id()),
        }
    }

    /// Version and settings that matter.
    pub fn describe(&self) -> String {
        match self {
            Place::Sqlite(_) => "WAL, synchronous=FULL".to_owned(),
            Place::Postgres(cluster) => format!("{}, {}", cluster.version, SETTINGS.join(", ")),
        }
    }
}

/// PostgreSQL as it comes, durable, with memory and log space for a small machine.
const SETTINGS: [&str; 3] = ["fsync=on", "shared_buffers=256MB", "max_wal_size=4GB"];
/// `nobody`, on every distribution.
const NOBODY: u32 = 65534;

pub struct Cluster {
    dir: tempfile::TempDir,
    postmaster: Child,
    port: u16,
    version: String,
}

impl Cluster {
    fn start(parent: &Path) -> Outcome<Cluster> {
        let dir = tempfile::Builder::new().prefix("load-postgres-").tempdir_in(parent)?;
        if is_root() {
            std::os::unix::fs::chown(dir.path(), Some(NOBODY), Some(NOBODY))?;
        }
        let version = program("postgres", dir.path()).arg("--version").output()?;
        let version = String::from_utf8_lossy(&version.stdout).trim().to_owned();
        let made = program("initdb", dir.path())
            .args(["-U", "postgres", "-A", "trust", "-E", "UTF8", "--locale=C", "-D", "data"])
            .output()?;
        if !made.status.success() {
            return Err(String::from_utf8_lossy(&made.stderr).into_owned().into());
        }
        // free a moment ago, and nobody else starts servers on such ports
        let port = std::net::TcpListener::bind("127.0.0.1:0")?.local_addr()?.port();
        let mut command = program("postgres", dir.path());
        command.args(["-D", "data", "-k", "", "-h", "127.0.0.1", "-p", &port.to_string()]);
        for setting in SETTINGS {
            command.args(["-c", setting]);
        }
        let log = fs::File::create(dir.path().join("log"))?;
        let postmaster = command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(log).spawn()?;
        let mut cluster = Cluster { dir, postmaster, port, version };
        cluster.wait_until_up()?;
        Ok(cluster)
    }

    fn wait_until_up(&mut self) -> Outcome<()> {
        let end = Instant::now() + Duration::from_secs(30);
        let driver = Driver::Postgres { dsn: Secret::new(self.dsn("postgres")) };
        while let Err(error) = open(&driver) {
            if Instant::now() > end || self.postmaster.try_wait()?.is_some() {
                let log = fs::read_to_string(self.dir.path().join("log")).unwrap_or_default();
                return Err(format!("PostgreSQL does not start: {error}\n{log}").into());
            }
            std::thread::sleep(Duration::from_millis(20));
        }
        Ok(())
    }

    fn dsn(&self, database: &str) -> String {
        format!("postgres://postgres@127.0.0.1:{}/{database}", self.port)
    }
}

impl Drop for Cluster {
    fn drop(&mut self) {
        // immediate shutdown: the postmaster ends its children, which a kill would leave behind
        let pid = self.postmaster.id().to_string();
        let asked = Command::new("kill").args(["-QUIT", &pid]).status();
        if !asked.is_ok_and(|status| status.success()) {
            let _ = self.postmaster.kill();
        }
        let _ = self.postmaster.wait();
    }
}

fn is_root() -> bool {
    use std::os::unix::fs::MetadataExt;
    fs::metadata("/proc/self").is_ok_and(|own| own.uid() == 0)
}

/// A PostgreSQL program in `dir`, as a user it accepts: none of them runs as root.
fn program(name: &str, dir: &Path) -> Command {
    let path = newest_installation().map_or(PathBuf::from(name), |bin| bin.join(name));
    let mut command = match is_root() {
        true => {
            let mut command = Command::new("setpriv");
            command.args(["--reuid=65534", "--regid=65534", "--clear-groups", "--"]).arg(path);
            command
        }
        false => Command::new(path),
    };
    command.current_dir(dir).env("HOME", dir);
    command
}

/// Where Debian keeps PostgreSQL; elsewhere the programs are on the path.
fn newest_installation() -> Option<PathBuf> {
    let versions = fs::read_dir("/usr/lib/postgresql").ok()?.flatten();
    let number = |entry: &fs::DirEntry| entry.file_name().to_str()?.parse::<u32>().ok();
    let newest = versions.filter_map(|entry| Some((number(&entry)?, entry.path().join("bin")))).max();
    newest.map(|(_, bin)| bin).filter(|bin| bin.join("initdb").exists())
}
