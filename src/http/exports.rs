//! `/v1/exports` (rest.md 12.8, jobs.md 2).

use std::time::{Duration, UNIX_EPOCH};

use actix_web::body::SizedStream;
use actix_web::http::{Method, StatusCode, header};
use actix_web::{HttpRequest, HttpResponse, web};
use bytes::Bytes;
use futures_util::Stream;
use serde::{Deserialize, Serialize};
use serde_json::value::RawValue;
use utoipa::ToSchema;

use crate::app::App;
use crate::auth::Caller;
use crate::blocking;
use crate::error::{Error, Result};
use crate::exports;
use crate::exports::job::{Export, ExportQuery, Input, Kind, Part, part};
use crate::exports::storage::{Reader, Storage};
use crate::http::body::Json;
use crate::http::extract::{CursorTime, Id, Params, encode_cursor};
use crate::http::openapi::Doc;
use crate::http::respond::{self, Page};
use crate::metering::time::Timestamp;

/// A job on the wire; fields in contract order, what was added to it last.
#[derive(Serialize, ToSchema)]
#[schema(as = ExportJob)]
pub struct View<'a> {
    id: &'a str,
    kind: &'static str,
    status: &'static str,
    format: &'static str,
    query: &'a ExportQuery,
    #[serde(skip_serializing_if = "Option::is_none")]
    error: Option<&'a str>,
    #[serde(skip_serializing_if = "Option::is_none")]
    artifact_size: Option<i64>,
    /// SHA-256 of the file in hexadecimal, also its ETag.
    #[serde(skip_serializing_if = "Option::is_none")]
    artifact_sha256: Option<&'a str>,
    #[serde(skip_serializing_if = "Option::is_none")]
    download_url: Option<String>,
    /// Rows written so far, without the header.
    row_count: i64,
    created_at: Timestamp,
    updated_at: Timestamp,
    #[serde(skip_serializing_if = "Option::is_none")]
    completed_at: Option<Timestamp>,
    /// When the file was removed because its time was over.
    #[serde(skip_serializing_if = "Option::is_none")]
    expired_at: Option<Timestamp>,
}

impl<'a> View<'a> {
    fn of(export: &'a Export) -> Self {
        View {
            id: &export.id,
            kind: export.kind.as_str(),
            status: export.status.as_str(),
            format: "csv",
            query: &export.asked,
            error: export.error.as_deref(),
            artifact_size: export.artifact.as_ref().map(|artifact| artifact.size_bytes),
            artifact_sha256: export.artifact.as_ref().map(|artifact| artifact.hash.as_str()),
            download_url: export.downloadable().map(|_| format!("/v1/exports/{}/download", export.id)),
            row_count: export.row_count,
            created_at: export.created_at,
            updated_at: export.updated_at,
            completed_at: export.completed_at,
            expired_at: export.expired_at,
        }
    }
}

#[derive(Default, Deserialize, ToSchema)]
#[schema(as = ExportInput)]
pub struct CreateInput {
    /// `usage_buckets`, which it is unless told, or `usage_events`.
    kind: Option<String>,
    /// `csv`
    format: Option<String>,
    #[schema(value_type = Input)]
    query: Option<Box<RawValue>>,
}

pub fn describe_create() -> Doc {
    Doc::new("exports", "Queue an export")
        .body::<CreateInput>()
        .answer::<View>(202, "The job. It fails later when the meter turns out not to fit. At most 500 wait.")
        .errors(&[409])
}

pub async fn create(app: web::Data<App>, caller: Caller, body: Json<CreateInput>) -> Result<HttpResponse> {
    let Json(input) = body;
    let query = input.query.ok_or_else(|| Error::parameter("invalid_query", "query is required"))?;
    let query = Input::read(&query)?;
    caller.ensure_meter_allowed(query.meter())?;
    let kind = Kind::parse(input.kind.as_deref().unwrap_or_default())?;
    if !matches!(input.format.as_deref().unwrap_or_default(), "" | "csv") {
        return Err(Error::invalid("format must be csv"));
    }
    let home = app.zones.get(caller.workspace_id).await?;
    let export =
        Export::queued(caller.workspace_id, kind, ExportQuery::parse(kind, query, &home)?, Timestamp::now());
    let export = app
        .store
        .write("exports::add", move |conn| exports::sql::add(conn, &export).map(|()| export.clone()))
        .await?;
    app.wake.notify();
    respond::json(StatusCode::ACCEPTED, &View::of(&export))
}

/// A position in the list, newest first.
#[derive(Serialize, Deserialize)]
struct After {
    time: Option<CursorTime>,
    id: Option<String>,
}

impl After {
    /// One that lacks a part is none.
    fn position(self) -> Option<(Timestamp, String)> {
        let (CursorTime(time), id) = self.time.zip(self.id)?;
        Some((time, id))
    }
}

pub fn describe_list() -> Doc {
    Doc::new("exports", "List export jobs").limit(100, 1000).cursor().page::<View>("Newest first.")
}

pub async fn list(app: web::Data<App>, caller: Caller, params: Params) -> Result<HttpResponse> {
    caller.ensure_meter_allowed("")?;
    let limit = params.limit(100, 1000)?;
    let after = params.cursor::<After>()?.and_then(After::position);
    let workspace_id = caller.workspace_id;
    let read = move |conn: &mut _| exports::sql::list(conn, workspace_id, None, after.as_ref(), limit);
    let (exports, has_more) = app.store.read("exports::list", read).await?;
    let position =
        |export: &Export| After { time: Some(CursorTime(export.created_at)), id: Some(export.id.clone()) };
    let last = exports.last().filter(|_| has_more).map(position);
    let next_cursor = last.as_ref().map(encode_cursor).transpose()?;
    respond::ok(&Page { items: exports.iter().map(View::of).collect(), next_cursor })
}

async fn find(app: &App, caller: &Caller, id: String) -> Result<Export> {
    let workspace_id = caller.workspace_id;
    let found = app
        .store
        .read("exports::by_id", move |conn| exports::sql::find_by_public_id(conn, workspace_id, &id))
        .await?;
    let export = found.ok_or_else(|| Error::not_found("export"))?;
    caller.ensure_meter_allowed(&export.asked.meter)?;
    Ok(export)
}

pub fn describe_get() -> Doc {
    Doc::new("exports", "Read an export job").answer::<View>(200, "The job.")
}

pub async fn get(app: web::Data<App>, caller: Caller, Id(id): Id) -> Result<HttpResponse> {
    respond::ok(&View::of(&find(&app, &caller, id).await?))
}

pub fn describe_cancel() -> Doc {
    Doc::new("exports", "Cancel an export")
        .answer::<View>(200, "The job, canceled; its work stops within a second.")
        .errors(&[409])
}

pub async fn cancel(app: web::Data<App>, caller: Caller, Id(id): Id) -> Result<HttpResponse> {
    let Export { id, workspace_id, .. } = find(&app, &caller, id).await?;
    let cancel = move |conn: &mut _| exports::sql::cancel(conn, workspace_id, &id, Timestamp::now());
    respond::ok(&View::of(&app.store.write("exports::cancel", cancel).await?))
}

pub fn describe_retry() -> Doc {
    Doc::new("exports", "Queue a failed or canceled export anew")
        .answer::<View>(200, "The job, queued.")
        .errors(&[409])
}

pub async fn retry(app: web::Data<App>, caller: Caller, Id(id): Id) -> Result<HttpResponse> {
    let Export { id, workspace_id, .. } = find(&app, &caller, id).await?;
    let retry = move |conn: &mut _| exports::sql::retry(conn, workspace_id, &id, Timestamp::now());
    let export = app.store.write("exports::retry", retry).await?;
    app.wake.notify();
    respond::ok(&View::of(&export))
}

pub fn describe_download() -> Doc {
    Doc::new("exports", "Download a completed export")
        .csv("The file, or with `Range: bytes=…` one part of it (206).")
        .errors(&[409])
}

/// The finished file, whole or one range of it.
pub async fn download(
    app: web::Data<App>,
    caller: Caller,
    request: HttpRequest,
    Id(id): Id,
) -> Result<HttpResponse> {
    let export = find(&app, &caller, id).await?;
    export.status.check_download()?;
    let gone = || Error::not_found("the artifact of this export is gone");
    let artifact = export.downloadable().ok_or_else(gone)?;
    let storage = Storage::of(&app.config.exports.storage)?;
    let job_id = export.id.clone();
    let opened = blocking::begin(move || storage.open(&job_id)).await.map_err(Error::internal)?;
    // of another length it is not the file that was finished
    let reader = opened?.filter(|reader| reader.size == artifact.size_bytes as u64).ok_or_else(gone)?;

    let tag = format!("\"{}\"", artifact.hash);
    let asked = |name: header::HeaderName| request.headers().get(name).and_then(|value| value.to_str().ok());
    let modified = http_date(export.completed_at.unwrap_or(export.updated_at));
    let range_holds = asked(header::IF_RANGE).is_none_or(|known| known == tag || known == modified);
    let part = match part(asked(header::RANGE), reader.size) {
        part if range_holds => part,
        _ => Part::Whole,
    };
    let mut response = head(&export, &tag, &modified);
    if asked(header::IF_NONE_MATCH).is_some_and(|known| known.split(',').any(|one| one.trim() == tag)) {
        return Ok(response.status(StatusCode::NOT_MODIFIED).finish());
    }
    let size = reader.size;
    let (from, to) = match part {
        Part::Whole => (0, size),
        Part::Range(from, to) => {
            let range = format!("bytes {from}-{}/{size}", to - 1);
            response.status(StatusCode::PARTIAL_CONTENT).insert_header((header::CONTENT_RANGE, range));
            (from, to)
        }
        Part::Unsatisfiable => {
            let mut refused = HttpResponse::build(StatusCode::RANGE_NOT_SATISFIABLE);
            return Ok(refused.insert_header((header::CONTENT_RANGE, format!("bytes */{size}"))).finish());
        }
    };
    if request.method() == Method::HEAD {
        // announces the length, reads nothing
        let nothing = futures_util::stream::empty::<std::io::Result<Bytes>>();
        return Ok(response.body(SizedStream::new(to - from, nothing)));
    }
    Ok(response.body(SizedStream::new(to - from, chunks(reader, from, to))))
}

fn head(export: &Export, tag: &str, modified: &str) -> actix_web::HttpResponseBuilder {
    let file = format!("attachment; filename=\"open-spanner-export-{}.csv\"", export.id);
    let mut response = HttpResponse::Ok();
    response
        .insert_header((header::CONTENT_TYPE, "text/csv; charset=utf-8"))
        .insert_header((header::CONTENT_DISPOSITION, file))
        .insert_header((header::ACCEPT_RANGES, "bytes"))
        .insert_header((header::LAST_MODIFIED, modified))
        .insert_header((header::ETAG, tag))
        // compressed on the way it would have another length and other ranges
        .insert_header((header::CONTENT_ENCODING, respond::UNCOMPRESSED));
    response
}

fn http_date(at: Timestamp) -> String {
    let since = Duration::from_secs(at.0.max(0).unsigned_abs() / 1_000_000);
    header::HttpDate::from(UNIX_EPOCH + since).to_string()
}

const CHUNK_BYTES: usize = 256 * 1024;

/// Part of a file, read piece by piece on blocking threads, as fast as the client takes it.
fn chunks(reader: Reader, from: u64, to: u64) -> impl Stream<Item = std::io::Result<Bytes>> {
    futures_util::stream::try_unfold((reader, from), move |(mut reader, at)| async move {
        if at >= to {
            return Ok(None);
        }
        let length = CHUNK_BYTES.min((to - at) as usize);
        let read = move || reader.read(at, length).map(|bytes| (reader, bytes));
        let (reader, bytes) = blocking::begin(read).await.map_err(std::io::Error::other)??;
        if bytes.len() < length {
            return Err(std::io::Error::from(std::io::ErrorKind::UnexpectedEof));
        }
        Ok(Some((Bytes::from(bytes), (reader, at + length as u64))))
    })
}
