//! `doctor`: looks at everything an operator would look at, and says what is wrong. Changes nothing.

use std::path::Path;

use serde::Serialize;

use crate::cli::{Outcome, keys, print_json, table};
use crate::config::{Config, Driver, ExportStorage};
use crate::db::{self, Conn, DbError, migrations};
use crate::error::Result;
use crate::jobs::instances::{self, Instance};
use crate::jobs::sql::{self, Chore, Standing};
use crate::metering::time::{HOUR, SECOND, Timestamp};
use crate::output::print;
use crate::vault;

/// With less room than this on a disk something will stop soon.
const ROOM_LOW: u64 = 1 << 30;
const ROOM_OUT: u64 = 64 << 20;
/// A worker that is silent for longer than this is gone.
const SILENT_AFTER: i64 = 30 * SECOND;
/// Work that waits for longer than this waits too long.
const LATE_AFTER: i64 = 300 * SECOND;
/// A nightly backup that is older than this was left out.
const BACKUP_OLD_AFTER: i64 = 36 * HOUR;

#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize)]
#[serde(rename_all = "lowercase")]
enum Verdict {
    Ok,
    Warn,
    Fail,
}

#[derive(Debug, Serialize)]
struct Finding {
    verdict: Verdict,
    what: &'static str,
    message: String,
}

fn finding(verdict: Verdict, what: &'static str, message: impl Into<String>) -> Finding {
    Finding { verdict, what, message: message.into() }
}

use Verdict::{Fail, Ok as Good, Warn};

pub fn run(config: &Config, as_json: bool) -> Result<Outcome> {
    let mut findings = vec![listeners(config)];
    findings.extend(disks(config));
    findings.extend(database(config));
    let worst = findings.iter().map(|finding| finding.verdict).max();
    if as_json {
        print_json(&findings)?;
    } else {
        let rows = findings.into_iter().map(|found| {
            let verdict = match found.verdict {
                Good => "ok",
                Warn => "warn",
                Fail => "FAIL",
            };
            [verdict.to_owned(), found.what.to_owned(), found.message]
        });
        print(&table(["", "WHAT", "FOUND"], &rows.collect::<Vec<_>>()));
    }
    Ok(if worst >= Some(Warn) { Outcome::Findings } else { Outcome::Done })
}

fn listeners(config: &Config) -> Finding {
    let is_public = config
        .http
        .addr
        .socket_addrs()
        .is_ok_and(|addresses| addresses.iter().any(|address| !address.ip().is_loopback()));
    if is_public && config.auth.registration_enabled {
        let message = format!(
            "anybody who reaches {} may register: set OPEN_SPANNER_REGISTRATION=invite, or closed, once you are in",
            config.http.addr
        );
        return finding(Warn, "listeners", message);
    }
    finding(Good, "listeners", format!("http {}", config.http.addr))
}

fn disks(config: &Config) -> Vec<Finding> {
    let mut found = Vec::new();
    if let Driver::Sqlite { path, .. } = &config.db.driver
        && let Some(folder) =
            migrations::lock_path(path, "use.lock").and_then(|lock| lock.parent().map(Path::to_owned))
    {
        found.push(room("disk of the database", &folder));
    }
    if let ExportStorage::Filesystem { path } = &config.exports.storage {
        match path.exists() {
            true => found.push(room("disk of exports", path)),
            false => found.push(finding(
                Good,
                "disk of exports",
                format!("{} is made with the first export", path.display()),
            )),
        }
    }
    found
}

fn room(what: &'static str, folder: &Path) -> Finding {
    let folder = if folder.as_os_str().is_empty() { Path::new(".") } else { folder };
    let Some(free) = db::readiness::free_bytes(folder) else {
        return finding(Fail, what, format!("{} cannot be looked at", folder.display()));
    };
    let message = format!("{} MiB free at {}", free >> 20, folder.display());
    let verdict = match free {
        ..ROOM_OUT => Fail,
        ROOM_OUT..ROOM_LOW => Warn,
        _ => Good,
    };
    finding(verdict, what, message)
}

fn database(config: &Config) -> Vec<Finding> {
    let driver = &config.db.driver;
    let steps = match migrations::status(driver) {
        Err(error) => return vec![finding(Fail, "database", error.message)],
        Ok((_, unknown)) if !unknown.is_empty() => {
            return vec![finding(
                Fail,
                "schema",
                format!("made by a newer version or another program: {}", unknown.join(", ")),
            )];
        }
        Ok((steps, _)) => steps,
    };
    let mut found = vec![finding(Good, "database", format!("{} {}", driver.name(), driver.target()))];
    let pending: Vec<&str> =
        steps.iter().filter(|step| !step.applied).map(|step| step.name.as_str()).collect();
    if !pending.is_empty() {
        found.push(finding(
            Warn,
            "schema",
            format!("pending: {}: run open-spanner migrate", pending.join(", ")),
        ));
        return found;
    }
    found.push(finding(Good, "schema", "up to date"));
    found.push(secrets(driver));
    let now = Timestamp::now();
    let look = |conn: &mut Conn| -> Result<_, DbError> {
        Ok((instances::list(conn)?, sql::standings(conn, now)?, sql::chores(conn)?))
    };
    match db::once(driver, look) {
        Ok((instances, queues, chores)) => {
            found.push(workers(config, &instances, now));
            found.push(backups(&chores, now));
            found.extend(self_check(&chores));
            found.extend(queues.iter().map(|queue| standing(queue, now)));
        }
        Err(error) => found.push(finding(Fail, "database", error.message)),
    }
    found
}

fn secrets(driver: &Driver) -> Finding {
    let sealed = match keys::look(driver) {
        Ok(sealed) => sealed,
        Err(error) => return finding(Fail, "secrets", error.message),
    };
    let count: u64 = sealed.counts().map(|(_, count)| count).sum();
    let ring = vault::ring();
    let own = vault::own_file().filter(|file| file.exists());
    let own = own.map(|file| format!("; keep {} as well as backups, and apart from them", file.display()));
    let own = own.unwrap_or_default();
    match (sealed.problem(), sealed.clear) {
        (Some(problem), _) => finding(Fail, "secrets", problem),
        (None, 0) if ring.is_empty() && vault::own_file().is_none() => {
            let advice = "a secret made now has no key to be sealed with: set OPEN_SPANNER_ENCRYPTION_KEYS";
            finding(Good, "secrets", format!("none is stored; {advice}"))
        }
        (None, 0) => finding(Good, "secrets", format!("{count} sealed, all with keys of the ring{own}")),
        (None, clear) => {
            let advice = match ring.is_empty() {
                true => "set OPEN_SPANNER_ENCRYPTION_KEYS, then open-spanner keys rotate",
                false => "run open-spanner keys rotate",
            };
            finding(Warn, "secrets", format!("{clear} lie in clear text: {advice}"))
        }
    }
}

fn workers(config: &Config, instances: &[Instance], now: Timestamp) -> Finding {
    let (alive, silent): (Vec<&Instance>, Vec<&Instance>) =
        instances.iter().partition(|instance| (now.0 - instance.last_heartbeat_at).abs() <= SILENT_AFTER);
    if let Some(gone) = silent.iter().find(|gone| !alive.iter().any(|other| other.worker == gone.worker)) {
        let at = Timestamp(gone.last_heartbeat_at);
        return finding(
            Fail,
            "workers",
            format!("no {} worker lives; {} was seen last at {at}", gone.worker, gone.instance_id),
        );
    }
    // host/version/process
    let mut versions: Vec<&str> =
        alive.iter().filter_map(|instance| instance.instance_id.split('/').nth(1)).collect();
    versions.sort_unstable();
    versions.dedup();
    match (alive.len(), versions.len()) {
        (0, _) if config.workers.in_serve => {
            finding(Good, "workers", "none beats: they run inside serve, which is stopped")
        }
        (0, _) => finding(Warn, "workers", "none lives: alerts, entitlement states and exports wait"),
        (_, 2..) => finding(Warn, "workers", format!("versions {} work side by side", versions.join(", "))),
        (count, _) => finding(Good, "workers", format!("{count} beat")),
    }
}

fn named<'a>(chores: &'a [Chore], name: &str) -> Option<&'a Chore> {
    chores.iter().find(|chore| chore.name == name)
}

fn backups(chores: &[Chore], now: Timestamp) -> Finding {
    let Some(last) = named(chores, sql::BACKUP) else {
        // there are other ways: base backups with archived logs, copies of the disk
        return finding(Good, "backup", "none was made with `open-spanner backup`");
    };
    let verdict = if now.0 - last.done_at > BACKUP_OLD_AFTER { Warn } else { Good };
    finding(verdict, "backup", format!("the last one was made at {}", Timestamp(last.done_at)))
}

fn self_check(chores: &[Chore]) -> Option<Finding> {
    let last = named(chores, sql::SELF_CHECK)?;
    let at = Timestamp(last.done_at);
    Some(match last.findings {
        0 => finding(Good, "totals", format!("agreed with the events at {at}")),
        count => finding(
            Fail,
            "totals",
            format!("differed from the events for {count} meters at {at}: see the log"),
        ),
    })
}

fn standing(queue: &Standing, now: Timestamp) -> Finding {
    let waits = queue.oldest_due_at.map_or(0, |at| now.0 - at);
    let message = format!(
        "{}: {} due, {} running, {} failed, {} given up, oldest waits {} s",
        queue.queue,
        queue.due,
        queue.running,
        queue.failed,
        queue.dead,
        waits.max(0) / SECOND
    );
    let verdict = if queue.dead > 0 || queue.failed > 0 || waits > LATE_AFTER { Warn } else { Good };
    finding(verdict, "queue", message)
}
