//! The files: copied from a database and brought back into one. PostgreSQL's own tools do it for PostgreSQL.

use std::os::unix::fs::{OpenOptionsExt, PermissionsExt};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use crate::backup::manifest::Contents;
use crate::backup::{cannot, contents_of, sql};
use crate::config::{Driver, Secret, Synchronous, without_password};
use crate::db::{self, cluster, migrations};
use crate::error::{Code, Error, Result};

pub fn sqlite_at(file: &Path) -> Driver {
    Driver::Sqlite { path: file.display().to_string(), synchronous: Synchronous::Full }
}

fn open(driver: &Driver) -> Result<db::Conn> {
    db::open(driver).map_err(|error| {
        Error::unavailable(format_args!("cannot open the database {}: {error}", driver.target()))
    })
}

/// A file beside another, by what SQLite puts at the end of its name.
fn with_end(file: &Path, end: &str) -> PathBuf {
    let mut name = file.as_os_str().to_owned();
    name.push(end);
    name.into()
}

/// Removes a file, and what SQLite leaves beside one.
pub fn remove(file: &Path) {
    for end in ["", "-wal", "-shm", "-journal"] {
        let _ = std::fs::remove_file(with_end(file, end));
    }
}

pub fn copy_sqlite(driver: &Driver, to: &Path) -> Result<()> {
    let file = to.to_str().ok_or_else(|| Error::invalid("the name of the file is no UTF-8"))?;
    let mut conn = open(driver)?;
    make_for_owner(to)?;
    sql::copy_into(&mut conn, file).map_err(|fault| fault.into_error("backup::copy"))
}

/// An empty file for no eyes but the owner's, from its first byte; what an earlier try left there goes.
fn make_for_owner(file: &Path) -> Result<()> {
    remove(file);
    let made = std::fs::OpenOptions::new().write(true).create_new(true).mode(0o600).open(file);
    made.map(drop).map_err(|error| cannot("write", file, &error))
}

/// Puts a backup where no database is, once `settle` is done with a copy of it: whatever ends it before leaves no database.
pub fn place_sqlite<T>(driver: &Driver, file: &Path, settle: impl FnOnce(&Driver) -> Result<T>) -> Result<T> {
    let Some(target) = db::file_of(driver) else {
        return Err(Error::invalid("OPEN_SPANNER_SQLITE_PATH names no file"));
    };
    // a server or worker that starts meanwhile finds no file, or the whole one
    let alone = ["serve.lock", "use.lock"].map(|name| {
        let lock = migrations::lock_path(&driver.target(), name);
        lock.map(|lock| migrations::take_lock(&lock, false)).transpose()
    });
    if alone.iter().any(|taken| taken.is_err()) {
        return Err(Error::conflict("the database is in use: stop every server and worker first"));
    }
    // SQLite would play a log that was left behind into what is restored, whatever file it belonged to
    let beside = ["", "-wal", "-journal"].map(|end| with_end(&target, end));
    if let Some(left) = beside.iter().find(|file| file.exists()) {
        return Err(Error::conflict(format_args!("{} is there already: move it away first", left.display())));
    }
    let part = super::part_of(&target);
    // an earlier try may have left one, with a log
    remove(&part);
    let placed = place(file, &part, &target, settle);
    if placed.is_err() {
        remove(&part);
    }
    placed
}

fn place<T>(file: &Path, part: &Path, target: &Path, settle: impl FnOnce(&Driver) -> Result<T>) -> Result<T> {
    let failed = |error: std::io::Error| cannot("restore", target, &error);
    std::fs::copy(file, part).map_err(failed)?;
    std::fs::set_permissions(part, std::fs::Permissions::from_mode(0o600)).map_err(failed)?;
    let settled = settle(&sqlite_at(part))?;
    // the last one who closes a file puts its log into it
    if with_end(part, "-wal").exists() {
        let message = format!("cannot restore {}: its log was not written into it", target.display());
        return Err(Error::new(Code::Internal, message));
    }
    std::fs::File::open(part).and_then(|part| part.sync_all()).map_err(failed)?;
    std::fs::rename(part, target).map_err(failed)?;
    Ok(settled)
}

/// Dumps one instant, and counts in the same.
pub fn dump_postgres(driver: &Driver, dsn: &str, to: &Path) -> Result<Contents> {
    let mut conn = open(driver)?;
    cluster::hold_still(driver, &mut conn)?;
    make_for_owner(to)?;
    let instant = sql::share_instant(&mut conn).map_err(|fault| fault.into_error("backup::instant"))?;
    let mut command = tool("pg_dump", dsn);
    command
        .args(["--format=custom", "--no-owner", "--no-privileges", "--snapshot", &instant, "--file"])
        .arg(to);
    run(command, "pg_dump")?;
    contents_of(&mut conn)
}

pub fn load_postgres(dsn: &str, file: &Path) -> Result<()> {
    let mut command = tool("pg_restore", dsn);
    command.args(["--no-owner", "--no-privileges", "--exit-on-error", "--single-transaction"]).arg(file);
    run(command, "pg_restore")
}

/// Restores a dump into a database of its own, looks at it, and drops it.
pub fn in_throw_away_database<T>(
    driver: &Driver,
    file: &Path,
    look: impl FnOnce(&Driver) -> Result<T>,
) -> Result<T> {
    let Driver::Postgres { dsn } = driver else {
        return Err(Error::invalid(
            "a backup of PostgreSQL is verified on a PostgreSQL server: set OPEN_SPANNER_DB_DRIVER and the DSN",
        ));
    };
    let name = format!("open_spanner_verify_{}", crate::chance::name().simple());
    let mut conn = open(driver)?;
    if !sql::may_create_databases(&mut conn).map_err(|fault| fault.into_error("backup::create_database"))? {
        return Err(Error::new(
            Code::Unusable,
            "a backup is verified by restoring it into a database that is thrown away, and this role may not make one: say \
             ALTER ROLE … CREATEDB, or set the DSN of a role that may, on any PostgreSQL server",
        ));
    }
    sql::create_database(&mut conn, &name).map_err(|fault| fault.into_error("backup::create_database"))?;
    let other = format!("{}{}dbname={name}", dsn.expose(), separator(dsn.expose()));
    let loaded = load_postgres(&other, file);
    let found = loaded.and_then(|()| look(&Driver::Postgres { dsn: Secret::new(other) }));
    if let Err(fault) = sql::drop_database(&mut conn, &name) {
        let error = fault.into_error("backup::drop_database");
        log::warn!(database = name.as_str(), error:% = error; "the throw-away database was not dropped");
    }
    found
}

/// What stands before another parameter of a connection string; the last one of a name wins.
fn separator(dsn: &str) -> &'static str {
    match (dsn.contains("://"), dsn.contains('?')) {
        (true, true) => "&",
        (true, false) => "?",
        (false, _) => " ",
    }
}

/// A program of PostgreSQL's; the password goes through the environment, where other users of the machine do not see it.
fn tool(program: &str, dsn: &str) -> Command {
    let (dsn, password) = without_password(dsn);
    let mut command = Command::new(program);
    command.arg("--dbname").arg(dsn);
    if let Some(password) = password {
        command.env("PGPASSWORD", password.expose());
    }
    command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::piped());
    command
}

fn run(mut command: Command, name: &str) -> Result<()> {
    let output = command.output().map_err(|error| match error.kind() {
        std::io::ErrorKind::NotFound => Error::new(
            Code::Unusable,
            format!("{name} is not installed: it comes with the client programs of PostgreSQL"),
        ),
        _ => Error::new(Code::Internal, format!("{name} cannot be started: {error}")),
    })?;
    if output.status.success() {
        return Ok(());
    }
    let said = String::from_utf8_lossy(&output.stderr);
    Err(Error::new(Code::Internal, format!("{name} failed: {}", said.trim())))
}
