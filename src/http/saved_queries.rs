//! `/v1/usage/saved-queries` (rest.md 12.13): sessions only, each user their own.

use actix_web::{HttpResponse, web};
use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

use crate::app::App;
use crate::auth::Caller;
use crate::chance;
use crate::db::columns::readable;
use crate::error::{Error, Result};
use crate::http::body::Json;
use crate::http::extract::{Id, Params};
use crate::http::openapi::{AnyObject, Doc};
use crate::http::respond::{self, Page};
use crate::metering::calendar::{Wish, Zone};
use crate::metering::json::Value;
use crate::metering::meter::NAME_BYTES_MAX;
use crate::metering::time::{BucketSize, Timestamp};
use crate::usage::query::GROUP_FIELDS_MAX;
use crate::usage::saved_queries::{self, SavedQuery};

const NAME_CHARACTERS_MAX: usize = 120;
const QUERY_BYTES_MAX: usize = 32_768;
const QUERY_DEPTH_MAX: usize = 60;

/// A saved query on the wire; fields in contract order.
#[derive(Serialize, ToSchema)]
#[schema(as = SavedQuery)]
pub struct View {
    id: String,
    name: String,
    #[schema(value_type = AnyObject)]
    query: Value,
    group_by: Vec<String>,
    bucket_size: String,
    limit: i64,
    pinned: bool,
    position: i64,
    created_at: Timestamp,
    updated_at: Timestamp,
    /// Told only of those that the members of this workspace see too.
    #[serde(skip_serializing_if = "std::ops::Not::not")]
    shared: bool,
}

impl View {
    fn of(saved: SavedQuery, workspace_id: i64) -> Result<View> {
        Ok(View {
            shared: saved.shared_in == Some(workspace_id),
            id: saved.id,
            name: saved.name,
            query: serde_json::from_str(&saved.query).map_err(Error::internal)?,
            group_by: serde_json::from_str(&saved.group_by).map_err(Error::internal)?,
            bucket_size: saved.bucket_size,
            limit: saved.row_limit,
            pinned: saved.pinned,
            position: saved.position,
            created_at: Timestamp(saved.created_at),
            updated_at: Timestamp(saved.updated_at),
        })
    }
}

/// Body of a saved query.
#[derive(Default, Deserialize, ToSchema)]
#[schema(as = SavedQueryInput)]
pub struct Input {
    #[schema(value_type = String, min_length = 1, max_length = 120)]
    name: Option<String>,
    /// At least one field, at most 32 KiB and 60 levels.
    #[schema(value_type = AnyObject)]
    query: Option<Value>,
    group_by: Option<Vec<String>>,
    /// As in a bucket query.
    bucket_size: Option<String>,
    limit: Option<i64>,
    pinned: Option<bool>,
    position: Option<i64>,
    /// Whether the members of this workspace see it too; absent keeps it as it is.
    shared: Option<bool>,
}

/// What a checked body comes to. Fields that may be absent on a change stay options.
#[derive(Clone)]
struct Checked {
    name: String,
    query: String,
    group_by: String,
    bucket_size: String,
    row_limit: i64,
    pinned: Option<bool>,
    position: Option<i64>,
    shared: Option<bool>,
}

impl Checked {
    fn of(input: Input) -> Result<Checked> {
        let name = input.name.unwrap_or_default().trim().to_owned();
        if name.is_empty() || name.chars().count() > NAME_CHARACTERS_MAX {
            return Err(Error::invalid(format!("name must have 1 to {NAME_CHARACTERS_MAX} characters")));
        }
        let query = match input.query {
            Some(query @ Value::Object(_)) if query.depth() > QUERY_DEPTH_MAX => {
                return Err(Error::invalid(format!(
                    "query must not be nested deeper than {QUERY_DEPTH_MAX} levels"
                )));
            }
            Some(Value::Object(query)) if !query.is_empty() => {
                let query = Value::Object(query);
                check_calendar(&query, input.bucket_size.as_deref().unwrap_or_default())?;
                query.to_string()
            }
            _ => return Err(Error::invalid("query must be a JSON object that is not empty")),
        };
        if query.len() > QUERY_BYTES_MAX {
            return Err(Error::invalid(format!("query must not be longer than {QUERY_BYTES_MAX} bytes")));
        }
        let size = input.bucket_size.unwrap_or_default();
        Ok(Checked {
            name,
            query,
            group_by: serde_json::to_string(&normalised(input.group_by.unwrap_or_default())?)
                .map_err(Error::internal)?,
            bucket_size: BucketSize::parse(&size)?.name().into_owned(),
            row_limit: input.limit.filter(|limit| *limit > 0).unwrap_or(500).min(1000),
            pinned: input.pinned,
            position: input.position.map(|position| position.max(0)),
            shared: input.shared,
        })
    }

    fn apply(self, saved: SavedQuery, workspace_id: i64) -> SavedQuery {
        let shared_in = match self.shared {
            Some(true) => Some(workspace_id),
            // another workspace keeps seeing what is shared with it
            Some(false) => saved.shared_in.filter(|other| *other != workspace_id),
            None => saved.shared_in,
        };
        SavedQuery {
            shared_in,
            name: self.name,
            query: self.query,
            group_by: self.group_by,
            bucket_size: self.bucket_size,
            row_limit: self.row_limit,
            pinned: self.pinned.unwrap_or(saved.pinned),
            position: self.position.unwrap_or(saved.position),
            updated_at: Timestamp::now().0,
            ..saved
        }
    }
}

/// A query that names a zone, an anchor or the start of weeks names one that there is, and its weeks have one.
fn check_calendar(query: &Value, bucket_size: &str) -> Result<()> {
    let word = |name: &str| query[name].as_str().unwrap_or_default();
    let wish = Wish {
        bucket_size,
        time_zone: word("time_zone"),
        anchor: word("anchor"),
        week_start: word("week_start"),
    };
    wish.calendar(&Zone::UTC).map(drop)
}

/// Split at commas, trimmed, without repetitions. Not checked against a meter: none is named.
fn normalised(fields: Vec<String>) -> Result<Vec<String>> {
    let mut kept: Vec<String> = Vec::new();
    for name in fields.iter().flat_map(|text| text.split(',')).map(str::trim).filter(|name| !name.is_empty())
    {
        if kept.iter().all(|other| other != name) {
            kept.push(name.to_owned());
        }
    }
    if kept.iter().any(|name| name.len() > NAME_BYTES_MAX) {
        return Err(Error::invalid(format!(
            "a field of group_by must not be longer than {NAME_BYTES_MAX} bytes"
        )));
    }
    if kept.len() > GROUP_FIELDS_MAX {
        return Err(Error::invalid(format!("group_by must not have more than {GROUP_FIELDS_MAX} fields")));
    }
    Ok(kept)
}

pub fn describe_list() -> Doc {
    Doc::new("saved queries", "Own saved queries")
        .flag("shared", "Those that others share with this workspace, by name, instead of own ones.")
        .page::<View>("Pinned first, then by position, then the newest change.")
}

pub async fn list(app: web::Data<App>, caller: Caller, params: Params) -> Result<HttpResponse> {
    let (user_id, workspace_id, wants_shared) =
        (caller.user_id, caller.workspace_id, params.get("shared") == "true");
    let read = move |conn: &mut _| match wants_shared {
        true => {
            let shared = saved_queries::shared(conn, workspace_id, user_id)?;
            Ok(shared.into_iter().map(|(query, _)| query).collect())
        }
        false => saved_queries::list(conn, user_id),
    };
    let rows: Vec<SavedQuery> = app.store.read("saved_queries::list", read).await?;
    let items: Vec<View> = rows
        .into_iter()
        .filter_map(|row| readable("saved_queries", row.id.clone(), View::of(row, workspace_id)))
        .collect();
    respond::ok(&Page { items, next_cursor: None })
}

pub fn describe_create() -> Doc {
    Doc::new("saved queries", "Save a query")
        .body::<Input>()
        .answer::<View>(201, "The saved query.")
        .errors(&[409])
}

pub async fn create(app: web::Data<App>, caller: Caller, body: Json<Input>) -> Result<HttpResponse> {
    let Json(input) = body;
    let now = Timestamp::now().0;
    let blank = SavedQuery {
        id: chance::id().to_string(),
        user_id: caller.user_id,
        name: String::new(),
        query: String::new(),
        group_by: String::new(),
        bucket_size: String::new(),
        row_limit: 0,
        pinned: false,
        position: 0,
        created_at: now,
        updated_at: now,
        shared_in: None,
    };
    let saved = SavedQuery { updated_at: now, ..Checked::of(input)?.apply(blank, caller.workspace_id) };
    let row = saved.clone();
    app.store.write("saved_queries::add", move |conn| saved_queries::add(conn, &row)).await?;
    respond::created(&View::of(saved, caller.workspace_id)?)
}

pub fn describe_update() -> Doc {
    Doc::new("saved queries", "Replace a saved query")
        .body::<Input>()
        .answer::<View>(200, "The saved query as it is now.")
        .errors(&[409])
}

pub async fn update(
    app: web::Data<App>,
    caller: Caller,
    Id(id): Id,
    body: Json<Input>,
) -> Result<HttpResponse> {
    let Json(input) = body;
    let (user_id, workspace_id, checked) = (caller.user_id, caller.workspace_id, Checked::of(input)?);
    let update = move |conn: &mut _| {
        saved_queries::update(conn, user_id, &id, |saved| checked.clone().apply(saved, workspace_id))
    };
    let saved = app.store.write("saved_queries::update", update).await?;
    respond::ok(&View::of(saved.ok_or_else(|| Error::not_found("saved query"))?, workspace_id)?)
}

pub fn describe_delete() -> Doc {
    Doc::new("saved queries", "Delete a saved query").empty(204, "Deleted.")
}

pub async fn delete(app: web::Data<App>, caller: Caller, Id(id): Id) -> Result<HttpResponse> {
    let user_id = caller.user_id;
    let delete = move |conn: &mut _| saved_queries::delete(conn, user_id, &id);
    match app.store.write("saved_queries::delete", delete).await? {
        true => Ok(respond::no_content()),
        false => Err(Error::not_found("saved query")),
    }
}
