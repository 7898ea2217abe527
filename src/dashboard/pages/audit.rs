//! `/audit`: who changed what in the workspace.

use actix_web::{HttpResponse, web};
use askama::Template;

use crate::app::App;
use crate::audit::sql::AuditEvent;
use crate::auth::Caller;
use crate::dashboard::view::Link;
use crate::dashboard::visit::{Shell, Visit, ok};
use crate::db::audit::CHANGES;
use crate::error::Result;
use crate::http::audit::{page, query_of};
use crate::http::extract::Params;

const ROWS: i64 = 50;

#[derive(Template)]
#[template(path = "audit.html")]
struct AuditPage {
    shell: Shell,
    rows: Vec<AuditEvent>,
    actions: Vec<&'static str>,
    action: String,
    actor: String,
    target: String,
    next: Option<Link>,
}

pub async fn show(app: web::Data<App>, caller: Caller, visit: Visit, params: Params) -> Result<HttpResponse> {
    let query = query_of(&caller, &params, ROWS)?;
    let (action, actor, target) = (query.action.clone(), query.actor.clone(), query.target.clone());
    let (rows, cursor) = page(&app, query).await?;
    let mut actions: Vec<&str> = CHANGES.iter().map(|(_, action, _)| *action).collect();
    actions.sort_unstable();
    actions.dedup();
    let next = cursor.map(|cursor| {
        let kept = [("action", &action), ("actor", &actor), ("target", &target), ("cursor", &cursor)];
        let kept = kept.into_iter().filter(|(_, value)| !value.is_empty());
        kept.fold(Link::to("/audit"), |link, (name, value)| link.with(name, value))
    });
    ok(&AuditPage { shell: visit.shell("audit", "Audit"), rows, actions, action, actor, target, next })
}
