//! `/usage/saved`: saved queries, made from the address of a view, so that relative ranges stay relative. Each is its
//! user's; one that is shared is seen by everybody in the workspace.

use actix_web::{HttpResponse, web};
use askama::Template;
use serde_json::json;

use crate::app::App;
use crate::auth::Caller;
use crate::chance;
use crate::dashboard::confirm::Confirm;
use crate::dashboard::form::{Complaint, Fields, Form};
use crate::dashboard::grammar;
use crate::dashboard::pages::explore::{self, Unsaved};
use crate::dashboard::view::Link;
use crate::dashboard::visit::{Shell, Visit, ok};
use crate::db::Conn;
use crate::error::{Error, Result};
use crate::http::extract::{Id, Params};
use crate::metering::json::Value;
use crate::metering::time::{BucketSize, Timestamp};
use crate::usage::saved_queries::{self, SavedQuery};

const NAME_CHARACTERS_MAX: usize = 120;
const QUERY_BYTES_MAX: usize = 4_096;

/// A saved query, and where it leads.
pub struct Kept {
    pub query: SavedQuery,
    pub link: String,
    /// Nothing of it is missing there.
    pub is_whole: bool,
    /// Who shares it; empty for the caller's own.
    pub by: String,
    pub is_shared: bool,
}

impl Kept {
    fn of(query: SavedQuery, by: String, workspace_id: i64) -> Kept {
        let (link, is_whole) = link(&query);
        Kept { link, is_whole, is_shared: query.shared_in == Some(workspace_id), query, by }
    }

    pub fn is_own(&self) -> bool {
        self.by.is_empty()
    }

    /// What is kept of the address.
    pub fn parameters(&self) -> String {
        let query = Value::parse(&self.query.query).unwrap_or_default();
        query["explore"].as_str().unwrap_or_default().to_owned()
    }
}

/// Where a saved query leads, and whether all of it could be said there. One of our own is an address; others are read as
/// programs send a query, or as the old dashboard kept the tree of its builder.
fn link(saved: &SavedQuery) -> (String, bool) {
    let query = Value::parse(&saved.query).unwrap_or_default();
    let link = Link::to("/usage").with("saved", &saved.id);
    if let Some(explore) = query["explore"].as_str() {
        return (format!("{link}&{explore}"), true);
    }
    let group = Value::parse(&saved.group_by).unwrap_or_default();
    let names = group.as_array().unwrap_or_default().iter().filter_map(Value::as_str).collect::<Vec<_>>();
    let scope = ["meter", "subject", "from", "to"];
    let link =
        scope.iter().fold(link, |link, name| link.with(name, query[*name].as_str().unwrap_or_default()));
    let link = link.with("bucket", &saved.bucket_size).with("group", &names.join(","));
    let node = if query["rules"].is_null() { &query["filter"] } else { &query };
    let rules = match (node["op"].as_str().or(node["combinator"].as_str()), node["rules"].as_array()) {
        (Some("or"), Some(_)) => std::slice::from_ref(node),
        (_, rules) => rules.unwrap_or_default(),
    };
    let (link, is_whole) = rules.iter().fold((link, true), |(link, is_whole), rule| {
        match (scoped(rule), grammar::of_filter(rule)) {
            (Some((name, value)), _) => (link.with(name, value), is_whole),
            (None, Some(condition)) => (link.with(condition.parameter(), &condition.text()), is_whole),
            (None, None) => (link, false),
        }
    });
    (link.to_string(), is_whole)
}

/// A rule of the old builder that is a field of ours: meter, subject, or an end of the window.
fn scoped(rule: &Value) -> Option<(&'static str, &str)> {
    let (field, op, value) = (rule["field"].as_str()?, rule["operator"].as_str()?, rule["value"].as_str()?);
    match (field, op) {
        ("meter", "=" | "eq" | "equals") => Some(("meter", value)),
        ("subject", "=" | "eq" | "equals") => Some(("subject", value)),
        ("timestamp", ">" | ">=" | "gt" | "gte") => Some(("from", value)),
        ("timestamp", "<" | "<=" | "lt" | "lte") => Some(("to", value)),
        _ => None,
    }
}

/// The saved queries of the caller, then what others share with the workspace.
pub async fn saved(app: &App, caller: &Caller) -> Result<Vec<Kept>> {
    let (workspace_id, user_id) = (caller.workspace_id, caller.user_id);
    let read = move |conn: &mut Conn| saved_queries::seen(conn, workspace_id, user_id);
    let seen = app.store.read("saved_queries::list", read).await?;
    Ok(seen.into_iter().map(|(query, by)| Kept::of(query, by, workspace_id)).collect())
}

#[derive(Template)]
#[template(path = "usage/saved.html")]
struct SavedPage {
    shell: Shell,
    saved: Vec<Kept>,
}

pub async fn list(app: web::Data<App>, caller: Caller, visit: Visit) -> Result<HttpResponse> {
    ok(&SavedPage { shell: visit.shell("usage", "Saved queries"), saved: saved(&app, &caller).await? })
}

/// What a form says of a view.
#[derive(Clone)]
struct Said {
    name: String,
    query: String,
    group_by: String,
    bucket_size: String,
}

impl Said {
    fn of(fields: &Fields) -> Result<Said> {
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
        let is_size = |word: &&str| BucketSize::parse(word).is_ok_and(|size| size.name() == *word);
        let bucket_size = Some(params.get("bucket")).filter(is_size).unwrap_or("day").to_owned();
        let group: Vec<&str> =
            params.get("group").split(',').filter(|name| !name.is_empty()).take(5).collect();
        let kept = json!({"explore": query, "meter": params.get("meter")}).to_string();
        Ok(Said { name, group_by: json!(group).to_string(), bucket_size, query: kept })
    }

    fn apply(self, saved: SavedQuery) -> SavedQuery {
        let Said { name, query, group_by, bucket_size } = self;
        SavedQuery { name, query, group_by, bucket_size, updated_at: Timestamp::now().0, ..saved }
    }
}

/// Saves a view; where that cannot be, the view is shown again with what was typed.
pub async fn create(app: web::Data<App>, caller: Caller, visit: Visit, form: Form) -> Result<HttpResponse> {
    let Form(fields) = form;
    let error = match add(&app, &caller, &fields).await {
        Ok(kept) => return Ok(visit.go(&kept.link, &format!("Saved as {}.", kept.query.name))),
        Err(error) => error,
    };
    let unsaved = Unsaved {
        name: fields.get("name").to_owned(),
        is_pinned: !fields.get("pinned").is_empty(),
        is_shared: !fields.get("shared").is_empty(),
        complaint: Complaint::of(error, &["name"])?,
    };
    let mut visit = visit;
    visit.here = format!("/usage?{}", fields.get("query"));
    explore::page_with(&app, &caller, &visit, Params::parse(fields.get("query")), unsaved).await
}

async fn add(app: &App, caller: &Caller, fields: &Fields) -> Result<Kept> {
    let now = Timestamp::now().0;
    let row = Said::of(fields)?.apply(SavedQuery {
        id: chance::id().to_string(),
        user_id: caller.user_id,
        name: String::new(),
        query: String::new(),
        group_by: String::new(),
        bucket_size: String::new(),
        row_limit: 500,
        pinned: !fields.get("pinned").is_empty(),
        position: 0,
        created_at: now,
        updated_at: now,
        shared_in: Some(caller.workspace_id).filter(|_| !fields.get("shared").is_empty()),
    });
    let kept = Kept::of(row.clone(), String::new(), caller.workspace_id);
    app.store.write("saved_queries::add", move |conn| saved_queries::add(conn, &row)).await?;
    Ok(kept)
}

/// What goes with a saved query of the caller.
pub async fn confirm_delete(
    app: web::Data<App>,
    caller: Caller,
    visit: Visit,
    Id(id): Id,
) -> Result<HttpResponse> {
    let mut own = saved(&app, &caller).await?.into_iter().filter(Kept::is_own);
    let kept = own.find(|kept| kept.query.id == id).ok_or_else(|| Error::not_found("saved query"))?;
    let seen = match (kept.is_shared, kept.query.pinned) {
        (true, true) => "Everybody in the workspace sees it, and it is a tile on every overview.",
        (true, false) => "Everybody in the workspace sees it.",
        (false, true) => "Only you see it. It is a tile on your overview.",
        (false, false) => "Only you see it.",
    };
    let title = format!("Delete {}", kept.query.name);
    ok(&Confirm {
        sentences: vec![
            seen.to_owned(),
            "The view goes on working at its address; its name and its tile are deleted.".to_owned(),
        ],
        uses: vec![("The view".to_owned(), kept.link)],
        action: "/usage/saved".to_owned(),
        fields: vec![("id", id), ("do", "delete".to_owned())],
        button: "Delete saved query".to_owned(),
        ..Confirm::below(visit.shell("usage", title), [("Explore", "/usage"), ("Saved", "/usage/saved")])
    })
}

/// Changes one of the caller's own, deletes it, or takes somebody's out of the workspace.
pub async fn change(app: web::Data<App>, caller: Caller, visit: Visit, form: Form) -> Result<HttpResponse> {
    let Form(fields) = form;
    let id = fields.get("id").to_owned();
    let words = match fields.get("do") {
        "delete" => {
            let user_id = caller.user_id;
            let delete = move |conn: &mut Conn| saved_queries::delete(conn, user_id, &id);
            let is_done = app.store.write("saved_queries::delete", delete).await?;
            is_done.then_some("Deleted.")
        }
        "take-out" => {
            let workspace_id = caller.workspace_id;
            let unshare = move |conn: &mut Conn| saved_queries::unshare(conn, workspace_id, &id);
            let is_done = app.store.write("saved_queries::unshare", unshare).await?;
            is_done.then_some("It is its owner’s alone again.")
        }
        "pin" => alter(&app, &caller, id, |saved| SavedQuery { pinned: true, ..saved })
            .await?
            .then_some("Pinned to the overview."),
        "unpin" => alter(&app, &caller, id, |saved| SavedQuery { pinned: false, ..saved })
            .await?
            .then_some("Unpinned."),
        "share" => {
            let here = Some(caller.workspace_id);
            let share = move |saved| SavedQuery { shared_in: here, ..saved };
            alter(&app, &caller, id, share).await?.then_some("Everybody in the workspace sees it.")
        }
        "unshare" => alter(&app, &caller, id, |saved| SavedQuery { shared_in: None, ..saved })
            .await?
            .then_some("It is yours alone again."),
        "update" => {
            let said = Said::of(&fields)?;
            let is_done = alter(&app, &caller, id.clone(), move |saved| said.clone().apply(saved)).await?;
            let target = format!("/usage?saved={id}&{}", fields.get("query"));
            return match is_done {
                true => Ok(visit.go(&target, &format!("{} is now this view.", fields.get("name")))),
                false => Err(Error::not_found("saved query")),
            };
        }
        _ => return Err(Error::invalid("do must be pin, unpin, share, unshare, take-out, update or delete")),
    };
    let words = words.ok_or_else(|| Error::not_found("saved query"))?;
    Ok(visit.go("/usage/saved", words))
}

/// Changes a query of the caller; false when there is none.
async fn alter(
    app: &App,
    caller: &Caller,
    id: String,
    change: impl Fn(SavedQuery) -> SavedQuery + Send + 'static,
) -> Result<bool> {
    let user_id = caller.user_id;
    let update = move |conn: &mut Conn| {
        let change = |saved| SavedQuery { updated_at: Timestamp::now().0, ..change(saved) };
        saved_queries::update(conn, user_id, &id, change)
    };
    Ok(app.store.write("saved_queries::update", update).await?.is_some())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn saved(query: &str, group_by: &str) -> SavedQuery {
        SavedQuery {
            id: "7".to_owned(),
            user_id: 1,
            name: "n".to_owned(),
            query: query.to_owned(),
            group_by: group_by.to_owned(),
            bucket_size: "day".to_owned(),
            row_limit: 100,
            pinned: true,
            position: 0,
            created_at: 0,
            updated_at: 0,
            shared_in: None,
        }
    }

    fn parameters(query: &str, group_by: &str) -> (Vec<(String, String)>, bool) {
        let (link, is_whole) = link(&saved(query, group_by));
        let params = Params::parse(link.split_once('?').expect("parameters").1);
        let pairs = params.pairs().filter(|(name, _)| *name != "saved" && *name != "bucket");
        (pairs.map(|(name, value)| (name.to_owned(), value.to_owned())).collect(), is_whole)
    }

    #[test]
    fn queries_of_other_programs_keep_their_meaning() {
        let pairs = |pairs: &[(&str, &str)]| -> Vec<(String, String)> {
            pairs.iter().map(|(a, b)| ((*a).to_owned(), (*b).to_owned())).collect()
        };
        let of_program = r#"{"meter":"api","from":"2026-01-01T00:00:00Z","to":"2026-02-01T00:00:00Z","filter":
            {"type":"group","op":"and","rules":[{"type":"rule","field":"metadata.region","op":"eq","value":"a,b"}]}}"#;
        let wanted = pairs(&[
            ("meter", "api"),
            ("from", "2026-01-01T00:00:00Z"),
            ("to", "2026-02-01T00:00:00Z"),
            ("group", "region,status"),
            ("f", "metadata.region:eq:a\\,b"),
        ]);
        assert_eq!(parameters(of_program, r#"["region","status"]"#), (wanted, true));
        let of_builder = r#"{"combinator":"and","rules":[{"field":"meter","operator":"=","value":"api"},
            {"field":"timestamp","operator":">=","value":"2026-01-01T00:00"},
            {"field":"quantity","operator":">","value":5},
            {"combinator":"or","rules":[{"field":"metadata.x","operator":"in","value":"a, b"},
                {"field":"metadata.y","operator":"notNull","value":""}]}]}"#;
        let wanted = pairs(&[
            ("meter", "api"),
            ("from", "2026-01-01T00:00"),
            ("f", "quantity:gt:5"),
            ("q", "or(metadata.x:in:a\\,b,metadata.y:exists:)"),
        ]);
        assert_eq!(parameters(of_builder, "[]"), (wanted, true));
        let strange = r#"{"combinator":"and","rules":[{"field":"meter","operator":"=","value":"api"},
            {"field":"subject","operator":"beginsWith","value":"a"}]}"#;
        assert_eq!(parameters(strange, "[]"), (pairs(&[("meter", "api")]), false));
    }
}
