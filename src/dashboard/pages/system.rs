//! `/system`: is the workspace healthy; `/jobs`: what the workers do, and what they gave up.

use actix_web::{HttpResponse, web};
use askama::Template;

use crate::alerts::sql::deliveries;
use crate::app::App;
use crate::auth::Caller;
use crate::dashboard::form::Form;
use crate::dashboard::view;
use crate::dashboard::visit::{Shell, Visit, ok};
use crate::db::Conn;
use crate::error::{Error, Result};
use crate::http::dead_letters::what_is_gone;
use crate::http::extract::{Id, Params};
use crate::http::stats::{self, SystemStats};
use crate::jobs::health::WorkerHealth;
use crate::jobs::queue::{self, DeadLetter};
use crate::metering::json::Value;
use crate::metering::time::Timestamp;
use crate::retention;
use crate::retention::sql::{self as prunes, PruneRun};

const LETTERS_LISTED: i64 = 200;

#[derive(Template)]
#[template(path = "system/system.html")]
struct SystemPage {
    shell: Shell,
    stats: SystemStats,
    prunes: Vec<PruneRun>,
    is_ready: bool,
    version: &'static str,
    database: &'static str,
    now: Timestamp,
}

impl SystemPage {
    fn is_healthy(&self, worker: &WorkerHealth) -> &'static str {
        worker.status.as_str()
    }
}

pub async fn show(app: web::Data<App>, caller: Caller, visit: Visit) -> Result<HttpResponse> {
    let (workspace_id, prunes_enabled, now) =
        (caller.workspace_id, app.config.retention.prune_enabled, Timestamp::now());
    let read = move |conn: &mut Conn| {
        Ok((
            stats::load(conn, workspace_id, prunes_enabled, now)?,
            prunes::runs(conn, workspace_id, None, 10)?,
        ))
    };
    let (stats, prunes) = app.store.read("stats::load", read).await?;
    ok(&SystemPage {
        shell: visit.shell("system", "System"),
        stats,
        prunes,
        is_ready: app.phase.is_serving(),
        version: env!("CARGO_PKG_VERSION"),
        database: app.config.db.driver.name(),
        now,
    })
}

/// Counts what would be pruned, or prunes.
pub async fn prune(app: web::Data<App>, caller: Caller, visit: Visit, form: Form) -> Result<HttpResponse> {
    let Form(fields) = form;
    let run = match fields.get("do") {
        "prune" => retention::prune(&app, caller.workspace_id).await?,
        _ => retention::dry_run(&app.store, caller.workspace_id).await?,
    };
    let events = view::counted(run.deleted, "event", "events");
    let done = if run.dry_run {
        format!("{events} would be pruned. Nothing was deleted.")
    } else {
        format!("{events} pruned.")
    };
    Ok(visit.go("/system", &done))
}

#[derive(Template)]
#[template(path = "system/jobs.html")]
struct JobsPage {
    shell: Shell,
    workers: Vec<WorkerHealth>,
    letters: Vec<DeadLetter>,
    queue: String,
    now: Timestamp,
}

pub async fn jobs(app: web::Data<App>, caller: Caller, visit: Visit, params: Params) -> Result<HttpResponse> {
    let (workspace_id, prunes_enabled, now) =
        (caller.workspace_id, app.config.retention.prune_enabled, Timestamp::now());
    let read = move |conn: &mut Conn| {
        let owed = deliveries::owed(conn, Some(workspace_id))?;
        let workers = stats::worker_health(conn, workspace_id, prunes_enabled, (&owed, now))?;
        Ok((workers, queue::dead_letters(conn, workspace_id, LETTERS_LISTED)?))
    };
    let (workers, mut letters) = app.store.read("jobs::overview", read).await?;
    let queue = params.get("queue").to_owned();
    letters.retain(|letter| queue.is_empty() || letter.queue == queue);
    ok(&JobsPage { shell: visit.shell("jobs", "Jobs"), workers, letters, queue, now })
}

#[derive(Template)]
#[template(path = "system/letter.html")]
struct LetterPage {
    shell: Shell,
    letter: DeadLetter,
    payload: String,
}

pub async fn letter(app: web::Data<App>, caller: Caller, visit: Visit, Id(id): Id) -> Result<HttpResponse> {
    let workspace_id = caller.workspace_id;
    let read = move |conn: &mut Conn| queue::dead_letter(conn, workspace_id, &id);
    let letter = app.store.read("jobs::dead_letter", read).await?;
    let payload = Value::parse(&letter.payload).unwrap_or_default();
    let payload = serde_json::to_string_pretty(&payload).map_err(Error::internal)?;
    ok(&LetterPage { shell: visit.shell("jobs", "Dead letter"), letter, payload })
}

/// Queues one dead letter again, or all of a queue.
pub async fn requeue(app: web::Data<App>, caller: Caller, visit: Visit, form: Form) -> Result<HttpResponse> {
    let Form(fields) = form;
    let (workspace_id, id, queue) = (caller.workspace_id, fields.some("id"), fields.get("queue").to_owned());
    let requeue = move |conn: &mut Conn| {
        let letters = match &id {
            Some(id) => vec![queue::dead_letter(conn, workspace_id, id)?],
            None => queue::dead_letters(conn, workspace_id, LETTERS_LISTED)?,
        };
        let (mut queued, mut gone) = (0, 0);
        let wanted = |letter: &&DeadLetter| {
            letter.requeued_at.is_none() && (queue.is_empty() || letter.queue == queue)
        };
        for letter in letters.iter().filter(wanted) {
            match what_is_gone(conn, letter)? {
                Some(_) => gone += 1,
                None => {
                    queue::requeue(conn, letter, Timestamp::now())?;
                    queued += 1;
                }
            }
        }
        Ok((queued, gone))
    };
    let (queued, gone) = app.store.write("jobs::requeue", requeue).await?;
    app.wake.notify();
    let mut done = format!("{} queued again.", view::counted(queued, "job is", "jobs are"));
    if gone > 0 {
        done = format!(
            "{done} {} about something that no longer exists.",
            view::counted(gone, "other is", "others are")
        );
    }
    Ok(visit.go("/jobs", &done))
}
