//! `/usage/saved`: saved queries, made from the address of a view, so that relative ranges stay relative.

use actix_web::{HttpResponse, web};
use askama::Template;
use serde_json::json;

use crate::app::App;
use crate::auth::Caller;
use crate::chance;
use crate::dashboard::form::Form;
use crate::dashboard::pages::explore::saved;
use crate::dashboard::visit::{Shell, Visit, ok};
use crate::error::{Error, Result};
use crate::http::extract::Params;
use crate::metering::time::{BucketSize, Timestamp};
use crate::usage::saved_queries::{self, SavedQuery};

const NAME_CHARACTERS_MAX: usize = 120;
const QUERY_BYTES_MAX: usize = 4_096;

#[derive(Template)]
#[template(path = "usage/saved.html")]
struct SavedPage {
    shell: Shell,
    saved: Vec<(SavedQuery, String)>,
}

pub async fn list(app: web::Data<App>, caller: Caller, visit: Visit) -> Result<HttpResponse> {
    ok(&SavedPage { shell: visit.shell("usage", "Saved queries"), saved: saved(&app, &caller).await? })
}

pub async fn create(app: web::Data<App>, caller: Caller, visit: Visit, form: Form) -> Result<HttpResponse> {
    let Form(fields) = form;
    let (name, query) = (fields.get("name").to_owned(), fields.get("query").to_owned());
    if name.is_empty() || name.chars().count() > NAME_CHARACTERS_MAX {
        return Err(Error::invalid(format!(
            "a saved query needs a name of at most {NAME_CHARACTERS_MAX} characters"
        )));
    }
    if query.len() > QUERY_BYTES_MAX {
        return Err(Error::invalid("the query is too long to be saved"));
    }
    let params = Params::parse(&query);
    let bucket = Some(params.get("bucket"))
        .filter(|word| BucketSize::parse(word).is_ok_and(|size| size.name() == *word));
    let group: Vec<&str> = params.get("group").split(',').filter(|name| !name.is_empty()).take(5).collect();
    let now = Timestamp::now().0;
    let row = SavedQuery {
        id: chance::id().to_string(),
        user_id: caller.user_id,
        name: name.clone(),
        query: json!({"explore": query, "meter": params.get("meter")}).to_string(),
        group_by: json!(group).to_string(),
        bucket_size: bucket.unwrap_or("day").to_owned(),
        row_limit: 500,
        pinned: !fields.get("pinned").is_empty(),
        position: 0,
        created_at: now,
        updated_at: now,
    };
    app.store.write("saved_queries::add", move |conn| saved_queries::add(conn, &row)).await?;
    Ok(visit.go(&format!("/usage?{query}"), &format!("Saved as {name}.")))
}

/// Pins or unpins, or deletes.
pub async fn change(app: web::Data<App>, caller: Caller, visit: Visit, form: Form) -> Result<HttpResponse> {
    let Form(fields) = form;
    let (user_id, id, pinned) = (caller.user_id, fields.get("id").to_owned(), fields.get("do") == "pin");
    let missing = || Error::not_found("saved query");
    match fields.get("do") {
        "delete" => {
            let delete = move |conn: &mut _| saved_queries::delete(conn, user_id, &id);
            app.store.write("saved_queries::delete", delete).await?.then_some(()).ok_or_else(missing)?;
            Ok(visit.go("/usage/saved", "Deleted."))
        }
        "pin" | "unpin" => {
            let change =
                move |saved: SavedQuery| SavedQuery { pinned, updated_at: Timestamp::now().0, ..saved };
            let update = move |conn: &mut _| saved_queries::update(conn, user_id, &id, change);
            app.store.write("saved_queries::update", update).await?.ok_or_else(missing)?;
            Ok(visit.go("/usage/saved", if pinned { "Pinned to the overview." } else { "Unpinned." }))
        }
        _ => Err(Error::invalid("do must be pin, unpin or delete")),
    }
}
