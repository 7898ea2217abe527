//! `/ingestion`: the write calls, and one of them with what it was refused.

use actix_web::{HttpResponse, web};
use askama::Template;
use uuid::Uuid;

use crate::app::App;
use crate::auth::Caller;
use crate::auth::sql::keys;
use crate::dashboard::foot::{Cell, Foot, Portion};
use crate::dashboard::view::{self, Link};
use crate::dashboard::visit::{Shell, Visit, ok};
use crate::db::Conn;
use crate::error::{Error, Result};
use crate::http::extract::{Id, Params};
use crate::usage::ingestion_runs::{self, IngestionRun};
use crate::usage::refused::{self, Filter, RefusedEvent};

const LISTED: usize = 50;
/// Refused items of one call that are shown.
const REFUSED_LISTED: i64 = 100;

#[derive(Template)]
#[template(path = "events/ingestion.html")]
struct IngestionPage {
    shell: Shell,
    runs: Vec<IngestionRun>,
    next: Option<String>,
    foot: Foot,
}

impl IngestionPage {
    fn took(&self, run: &IngestionRun) -> String {
        took(run)
    }
}

/// How long a call took; blank where that was not noted.
fn took(run: &IngestionRun) -> String {
    run.duration.map(|micros| format!("{:.1} ms", micros as f64 / 1_000.0)).unwrap_or_default()
}

const COLUMNS: [&str; 9] = [
    "id",
    "created_at",
    "kind",
    "accepted",
    "duplicates",
    "failed",
    "request_id",
    "api_key_id",
    "duration_microseconds",
];

fn cells(run: &IngestionRun) -> Vec<Cell> {
    vec![
        run.id.to_string().into(),
        run.created_at.into(),
        (&run.kind).into(),
        run.accepted.into(),
        run.duplicates.into(),
        run.failed.into(),
        run.request_id.as_deref().into(),
        run.api_key_id.as_deref().into(),
        run.duration.into(),
    ]
}

pub async fn list(app: web::Data<App>, caller: Caller, visit: Visit, params: Params) -> Result<HttpResponse> {
    let (workspace_id, portion) = (caller.workspace_id, Portion::parse(&params, LISTED)?);
    let before = match params.get("before") {
        "" => None,
        text => Some(Uuid::parse_str(text).map_err(|_| Error::invalid("before is not one of ours"))?),
    };
    let most = portion.rows() as i64 + 1;
    let read = move |conn: &mut Conn| ingestion_runs::runs(conn, workspace_id, before, most);
    let mut runs = app.store.read("ingestion_runs::runs", read).await?;
    let has_more = runs.len() > portion.rows();
    runs.truncate(portion.rows());
    if let Some(file) = portion.file("write-calls", &COLUMNS, runs.iter().map(cells))? {
        return Ok(file);
    }
    let next = runs
        .last()
        .filter(|_| has_more)
        .map(|last| portion.on(view::link("/ingestion", "before", &last.id.to_string())).to_string());
    let call = Link::to("/v1/usageingestions").with("limit", &portion.rows().to_string());
    let foot = portion.foot(&view::link("/ingestion", "before", params.get("before")));
    let foot = foot.with_call(&visit.origin, &call);
    ok(&IngestionPage { shell: visit.shell("events", "Write calls"), runs, next, foot })
}

#[derive(Template)]
#[template(path = "events/run.html")]
struct RunPage {
    shell: Shell,
    id: String,
    run: Option<IngestionRun>,
    refused: Vec<RefusedEvent>,
    /// Name of the key it was sent with; blank where it was none or is gone.
    key: String,
}

impl RunPage {
    /// What its sender called the request, or else the server.
    fn request_id(&self) -> &str {
        let of_run = self.run.as_ref().and_then(|run| run.request_id.as_deref());
        let of_refusal = || self.refused.first().and_then(|event| event.request_id.as_deref());
        of_run.or_else(of_refusal).unwrap_or(&self.id)
    }

    /// How long it took; blank where that was not noted.
    fn took(&self) -> String {
        self.run.as_ref().map(took).unwrap_or_default()
    }
}

/// One call. A single event that was refused left nothing but the refusal.
pub async fn show(app: web::Data<App>, caller: Caller, visit: Visit, Id(id): Id) -> Result<HttpResponse> {
    let missing = || Error::not_found(format!("write call {id:?}"));
    let (workspace_id, wanted) = (caller.workspace_id, Uuid::parse_str(&id).map_err(|_| missing())?);
    let read = move |conn: &mut Conn| {
        let filter = Filter { run: Some(wanted), ..Filter::default() };
        let refused = refused::list(conn, workspace_id, &filter, REFUSED_LISTED)?;
        let run = ingestion_runs::run(conn, workspace_id, wanted)?;
        let of_run = run.as_ref().and_then(|run| run.api_key_id.as_deref());
        let key_id = of_run.or_else(|| refused.first().and_then(|event| event.api_key_id.as_deref()));
        let key = key_id.map(|key_id| keys::name_of(conn, workspace_id, key_id)).transpose()?;
        Ok((run, refused, key.flatten().unwrap_or_default()))
    };
    let (run, refused, key) = app.store.read("ingestion_runs::run", read).await?;
    if run.is_none() && refused.is_empty() {
        return Err(missing());
    }
    ok(&RunPage { shell: visit.shell("events", "Write call"), id, run, refused, key })
}
