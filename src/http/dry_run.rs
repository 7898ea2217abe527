//! `?dry_run=true` on writes: what the call would do, and nothing of it done (rest.md 12.4).

use actix_web::HttpResponse;
use serde::Serialize;
use utoipa::ToSchema;

use crate::app::App;
use crate::auth::Caller;
use crate::error::{Error, Result};
use crate::http::extract::Params;
use crate::http::openapi::Doc;
use crate::http::respond;
use crate::ingest::preview::{Fate, Preview, PreviewItem};
use crate::ingest::{Door, Origin, Rehearsed};
use crate::metering::event::Input;

/// What a dry run answers, with status 200; fields in wire order.
#[derive(Serialize, ToSchema)]
pub struct DryRun {
    /// Always true: nothing was stored.
    pub dry_run: bool,
    /// The status that the call would have.
    pub status: u16,
    /// The call's own `Idempotency-Key` was used before: its answer would be given again.
    #[serde(skip_serializing_if = "std::ops::Not::not")]
    #[schema(required = false)]
    pub replayed: bool,
    pub accepted: usize,
    pub duplicates: usize,
    pub conflicts: usize,
    pub rejected: usize,
    pub items: Vec<PreviewItem>,
}

impl DryRun {
    pub fn of(preview: Preview, status: u16) -> DryRun {
        DryRun {
            dry_run: true,
            status,
            replayed: preview.is_replay,
            accepted: preview.count(Fate::Accepted),
            duplicates: preview.count(Fate::Duplicate),
            conflicts: preview.count(Fate::Conflict),
            rejected: preview.count(Fate::Rejected),
            items: preview.items,
        }
    }
}

pub fn is_asked(params: &Params) -> Result<bool> {
    Ok(params.boolean("dry_run", "invalid_dry_run")?.unwrap_or(false))
}

/// For doors that cannot: whoever asks for a dry run must not have stored something instead.
pub fn refuse(params: &Params) -> Result<()> {
    match is_asked(params)? {
        true => {
            Err(Error::invalid("dry_run is not available here: send JSON to /v1/usages or /v1/usages/bulk"))
        }
        false => Ok(()),
    }
}

/// The parameter, and what is answered with it.
pub fn described(doc: Doc) -> Doc {
    doc.flag("dry_run", "Answer what the call would do, and store nothing.")
}

/// Of one event.
pub async fn one(app: &App, caller: &Caller, input: Input) -> Result<HttpResponse> {
    let preview = preview(app, caller, vec![input], None).await?;
    let status = preview.items.first().map_or(201, |item| item.status);
    respond::ok(&DryRun::of(preview, status))
}

/// Of a list.
pub async fn many(
    app: &App,
    caller: &Caller,
    inputs: Vec<Input>,
    key: Option<String>,
) -> Result<HttpResponse> {
    let preview = preview(app, caller, inputs, key).await?;
    // conflicts are among them where the workspace wants them refused
    let failed = preview.items.iter().filter(|item| item.status >= 400).count();
    let status = match preview.is_replay {
        true if failed > 0 => 409,
        false if failed == preview.items.len() => 400,
        _ => 201,
    };
    respond::ok(&DryRun::of(preview, status))
}

async fn preview(app: &App, caller: &Caller, inputs: Vec<Input>, key: Option<String>) -> Result<Preview> {
    let (preview, _) =
        app.ingest.rehearse(Origin::of(caller, Door::Rest), Rehearsed::Write, inputs, key).await?;
    Ok(preview.confined(|meter| caller.ensure_meter_allowed(meter)))
}
