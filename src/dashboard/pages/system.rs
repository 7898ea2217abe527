//! `/system`: is the workspace healthy; `/jobs`: what the workers do, and what they gave up.

use actix_web::{HttpResponse, web};
use askama::Template;

use crate::alerts::sql::deliveries;
use crate::app::App;
use crate::auth::Caller;
use crate::dashboard::confirm::{COUNTED_MAX, Confirm};
use crate::dashboard::form::Form;
use crate::dashboard::view::{self, segment};
use crate::dashboard::visit::{Shell, Visit, ok};
use crate::db::Conn;
use crate::entitlements::sql::decisions;
use crate::error::{Error, Result};
use crate::exports::sql::{self as exports, CleanupRun};
use crate::http::extract::{Id, Params, decode_cursor, encode_cursor};
use crate::jobs::dead_letters::{self as letters, DeadLetter};
use crate::jobs::health::WorkerHealth;
use crate::jobs::sql as chores;
use crate::metering::json::Value;
use crate::metering::time::Timestamp;
use crate::operations::dead_letters::{self, Outlook, Requeued};
use crate::operations::stats;
use crate::retention;
use crate::retention::sql::{self as prunes, PruneRun};
use crate::usage::subjects::{self, Totals};

const LETTERS_LISTED: usize = 50;
const PICKED_MAX: usize = 500;

#[derive(Template)]
#[template(path = "system/system.html")]
struct SystemPage {
    shell: Shell,
    totals: Totals,
    kept: decisions::Kept,
    workers: Vec<WorkerHealth>,
    cleanup: Option<CleanupRun>,
    prunes: Vec<PruneRun>,
    /// When `open-spanner backup` ended well last.
    backup_at: Option<i64>,
    is_ready: bool,
    version: &'static str,
    database: &'static str,
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
        let owed = deliveries::owed(conn, Some(workspace_id))?;
        let work = stats::work(conn, workspace_id, prunes_enabled, (&owed, now))?;
        Ok((
            (subjects::totals(conn, workspace_id)?, decisions::kept(conn, workspace_id)?, work.workers),
            exports::last_cleanup_run(conn, workspace_id)?,
            prunes::runs(conn, workspace_id, None, 10)?,
            chores::chores(conn)?,
        ))
    };
    let ((totals, kept, workers), cleanup, prunes, done) = app.store.read("system::show", read).await?;
    ok(&SystemPage {
        shell: visit.shell("system", "System"),
        totals,
        kept,
        workers,
        cleanup,
        prunes,
        backup_at: done.iter().find(|chore| chore.name == chores::BACKUP).map(|chore| chore.done_at),
        is_ready: app.phase.is_serving(),
        version: env!("CARGO_PKG_VERSION"),
        database: app.config.db.driver.name(),
    })
}

/// What pruning now would delete.
pub async fn confirm_prune(app: web::Data<App>, caller: Caller, visit: Visit) -> Result<HttpResponse> {
    let workspace_id = caller.workspace_id;
    let past = move |conn: &mut Conn| prunes::past(conn, workspace_id, Timestamp::now(), COUNTED_MAX);
    let past = app.store.read("retention::past", past).await?;
    let page = Confirm::below(visit.shell("system", "Prune now"), [("System", "/system")]);
    if past.meters.is_empty() {
        let nothing = "No event is past the retention of its meter: there is nothing to prune.";
        return ok(&Confirm { sentences: vec![nothing.to_owned()], ..page });
    }
    let (events, meters) = (
        view::counted_to(COUNTED_MAX, past.events, "event", "events"),
        view::counted(past.meters.len(), "meter", "meters"),
    );
    ok(&Confirm {
        sentences: vec![
            format!("{events} of {meters} are past retention and are deleted for good."),
            "Totals stay, and so do quota and the idempotency keys that are known. What is deleted is in no list, no \
             export of events and no query by an undeclared field any more."
                .to_owned(),
        ],
        uses: past.meters.into_iter().map(|name| (name.clone(), format!("/meters/{}", segment(&name)))).collect(),
        action: "/system/prune".to_owned(),
        fields: vec![("do", "prune".to_owned())],
        button: "Prune now".to_owned(),
        ..page
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
    /// Those that nobody queued anew, in the queue that is shown or in all.
    open: i64,
    queue: String,
    next: Option<String>,
}

pub async fn jobs(app: web::Data<App>, caller: Caller, visit: Visit, params: Params) -> Result<HttpResponse> {
    let (workspace_id, prunes_enabled, now) =
        (caller.workspace_id, app.config.retention.prune_enabled, Timestamp::now());
    let queue = params.get("queue").to_owned();
    let wanted = Some(queue.clone()).filter(|queue| !queue.is_empty());
    let after = decode_cursor::<(i64, String)>(params.get("cursor"))?
        .map(|(created_at, id)| letters::Position { created_at, id });
    let read = move |conn: &mut Conn| {
        let owed = deliveries::owed(conn, Some(workspace_id))?;
        let work = stats::work(conn, workspace_id, prunes_enabled, (&owed, now))?;
        let filter = letters::Filter { queue: wanted.as_deref(), is_open: false, after: after.as_ref() };
        Ok((work, letters::list(conn, workspace_id, filter, LETTERS_LISTED as i64 + 1)?))
    };
    let (work, mut letters) = app.store.read("jobs::overview", read).await?;
    let has_more = letters.len() > LETTERS_LISTED;
    letters.truncate(LETTERS_LISTED);
    let next = match letters.last().filter(|_| has_more).map(DeadLetter::position) {
        Some(letters::Position { created_at, id }) => {
            let link = view::link("/jobs", "queue", &queue);
            Some(link.with("cursor", &encode_cursor(&(created_at, id))?).to_string())
        }
        None => None,
    };
    let open = match queue.as_str() {
        "" => work.dead_letters.values().sum(),
        queue => work.dead_letters.get(queue).copied().unwrap_or_default(),
    };
    ok(&JobsPage { shell: visit.shell("jobs", "Jobs"), workers: work.workers, letters, open, queue, next })
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
    let read = move |conn: &mut Conn| letters::get(conn, workspace_id, &id);
    let letter = app.store.read("jobs::dead_letter", read).await?;
    let payload = Value::parse(&letter.payload).unwrap_or_default();
    let payload = serde_json::to_string_pretty(&payload).map_err(Error::internal)?;
    ok(&LetterPage { shell: visit.shell("jobs", "Dead letter"), letter, payload })
}

/// What queueing all dead letters anew would come to.
pub async fn confirm_requeue(
    app: web::Data<App>,
    caller: Caller,
    visit: Visit,
    params: Params,
) -> Result<HttpResponse> {
    let (workspace_id, queue) = (caller.workspace_id, params.get("queue").to_owned());
    let wanted = Some(queue.clone()).filter(|queue| !queue.is_empty());
    let outlook = move |conn: &mut Conn| dead_letters::outlook(conn, workspace_id, wanted.as_deref());
    let outlook = app.store.read("jobs::outlook", outlook).await?;
    let jobs = view::counted(outlook.open.values().sum::<i64>(), "job", "jobs");
    let of = if queue.is_empty() { String::new() } else { format!(" of {queue}") };
    let title = format!("Requeue {jobs}{of}");
    let list = view::link("/jobs", "queue", &queue).to_string();
    ok(&Confirm {
        sentences: foretold(&outlook),
        action: "/jobs".to_owned(),
        fields: vec![("queue", queue)],
        button: if outlook.open.is_empty() { String::new() } else { title.clone() },
        is_harmless: true,
        ..Confirm::below(visit.shell("jobs", title), [("Jobs", list)])
    })
}

/// What the page says of dead letters before they are queued anew.
fn foretold(outlook: &Outlook) -> Vec<String> {
    if outlook.open.is_empty() {
        return vec!["No job is given up: there is nothing to queue again.".to_owned()];
    }
    let open: i64 = outlook.open.values().sum();
    let queues = outlook.open.iter().map(|(queue, count)| format!("{} in {queue}", view::count(count)));
    let queues = queues.collect::<Vec<_>>().join(", ");
    let looked_at = match outlook.looked_at as i64 == open {
        true => "these".to_owned(),
        false => format!("the newest {}", outlook.looked_at),
    };
    let gone: usize = outlook.gone.values().sum();
    let causes = outlook.gone.iter().map(|(cause, count)| format!("{cause}: {}", view::count(count)));
    let mut sentences = vec![
        format!(
            "They used up their attempts: {queues}. Each gets all of its attempts anew, and may fail again."
        ),
        match gone {
            0 => format!("What {looked_at} are about still exists."),
            gone => format!(
                "{} of {looked_at} cannot be done any more and stay as they are ({}).",
                view::count(gone),
                causes.collect::<Vec<_>>().join(", ")
            ),
        },
    ];
    if open > dead_letters::CALL_MAX as i64 {
        sentences.push(format!("At most {} are queued in one go.", view::count(dead_letters::CALL_MAX)));
    }
    sentences
}

/// Queues one dead letter again, those that are picked, or all that nobody queued yet, of one queue or of all.
pub async fn requeue(app: web::Data<App>, caller: Caller, visit: Visit, form: Form) -> Result<HttpResponse> {
    let Form(fields) = form;
    if let Some(id) = fields.some("id") {
        dead_letters::requeue(&app, caller.workspace_id, id).await?;
        return Ok(visit.go("/jobs", "1 job is queued again."));
    }
    let list = view::link("/jobs", "queue", fields.get("queue")).to_string();
    let picked: Vec<String> = fields.all("pick").take(PICKED_MAX).map(str::to_owned).collect();
    let requeued = match fields.get("do") {
        "picked" if picked.is_empty() => return Ok(visit.go(&list, "Nothing was picked.")),
        "picked" => dead_letters::requeue_picked(&app, caller.workspace_id, picked).await?,
        _ => dead_letters::requeue_all(&app, caller.workspace_id, fields.some("queue")).await?,
    };
    let Requeued { queued, gone, has_more } = requeued;
    let mut done = format!("{} queued again.", view::counted(queued, "job is", "jobs are"));
    if gone > 0 {
        let others = view::counted(gone, "other is", "others are");
        done = format!("{done} {others} about something that no longer exists.");
    }
    if has_more {
        done.push_str(" There are more: press again.");
    }
    Ok(visit.go(&list, &done))
}
