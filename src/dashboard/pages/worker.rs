//! `/jobs/workers/{name}`: one worker: its processes, and what it has to do in this workspace.

use actix_web::{HttpResponse, web};
use askama::Template;

use crate::alerts::sql::deliveries;
use crate::app::App;
use crate::auth::Caller;
use crate::dashboard::view;
use crate::dashboard::visit::{Shell, Visit, ok};
use crate::db::Conn;
use crate::error::{Error, Result};
use crate::http::extract::Id;
use crate::jobs::health::WorkerHealth;
use crate::jobs::queue::{self, Waiting};
use crate::metering::time::Timestamp;
use crate::operations::stats::{self, WORKERS};

const JOBS_LISTED: i64 = 50;

#[derive(Template)]
#[template(path = "system/worker.html")]
struct WorkerPage {
    shell: Shell,
    worker: WorkerHealth,
    /// Empty for one that works by the clock.
    queue: &'static str,
    jobs: Vec<Waiting>,
    now: Timestamp,
}

impl WorkerPage {
    fn state(&self, job: &Waiting) -> &'static str {
        match job.leased_until {
            Some(until) if until > self.now.0 => "running",
            _ if job.last_error.is_some() => "failed",
            _ if job.run_after > self.now.0 => "scheduled",
            _ => "pending",
        }
    }
}

/// What a worker is for, in a sentence.
fn purpose(name: &str) -> &'static str {
    match name {
        "export" => "Writes the files of exports, and removes those that expired.",
        "alert" => "Looks at alert rules when usage comes and when their time is up.",
        "entitlement" => "Measures subjects against the limits of their plans.",
        "retention" => "Prunes events that are older than their meter keeps them.",
        "reconciliation" => "Counts again what was counted, and compares.",
        "webhook" => "Sends what alerts noticed to their destinations.",
        "history" => "Removes history that is older than its lifetime.",
        _ => "",
    }
}

pub async fn show(app: web::Data<App>, caller: Caller, visit: Visit, Id(name): Id) -> Result<HttpResponse> {
    let missing = || Error::not_found(format!("worker {name:?}"));
    let (_, queue) = WORKERS.into_iter().find(|(known, _)| *known == name).ok_or_else(missing)?;
    let (workspace_id, prunes, now) =
        (caller.workspace_id, app.config.retention.prune_enabled, Timestamp::now());
    let read = move |conn: &mut Conn| {
        let owed = deliveries::owed(conn, Some(workspace_id))?;
        let health = stats::work(conn, workspace_id, prunes, (&owed, now))?.workers;
        let jobs = match queue {
            Some(queue) => queue::waiting(conn, queue, workspace_id, JOBS_LISTED)?,
            None => Vec::new(),
        };
        Ok((health, jobs))
    };
    let (health, jobs) = app.store.read("jobs::worker", read).await?;
    let worker = health.into_iter().find(|worker| worker.name == name).ok_or_else(missing)?;
    let shell = visit.shell("jobs", format!("The {name} worker"));
    ok(&WorkerPage { shell, worker, queue: queue.unwrap_or_default(), jobs, now })
}
