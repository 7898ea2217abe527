//! `/audit`: who changed what in the workspace.

use actix_web::{HttpResponse, web};
use askama::Template;

use crate::app::App;
use crate::audit::sql::{AuditEvent, Query};
use crate::auth::Caller;
use crate::dashboard::foot::{Foot, Portion};
use crate::dashboard::form::Complaint;
use crate::dashboard::grammar;
use crate::dashboard::view::Link;
use crate::dashboard::visit::{Shell, Visit, ok, rejected};
use crate::db::audit::CHANGES;
use crate::error::Result;
use crate::http::audit::{page, query_between};
use crate::http::extract::Params;
use crate::metering::calendar::Zone;
use crate::metering::time::{Timestamp, Window};

const LISTED: usize = 50;

#[derive(Template)]
#[template(path = "audit.html")]
struct AuditPage {
    shell: Shell,
    rows: Vec<AuditEvent>,
    actions: Vec<&'static str>,
    params: Params,
    complaint: Complaint,
    export: Link,
    next: Option<Link>,
    foot: Foot,
}

impl AuditPage {
    /// A field of the form as it was sent.
    fn typed(&self, name: &str) -> &str {
        self.params.get(name).trim()
    }
}

pub async fn show(app: web::Data<App>, caller: Caller, visit: Visit, params: Params) -> Result<HttpResponse> {
    let mut actions: Vec<&str> = CHANGES.iter().map(|(_, action, _)| *action).collect();
    actions.sort_unstable();
    actions.dedup();
    let shell = visit.shell("audit", "Audit");
    let asked = between(&params, &shell.zone, Timestamp::now());
    let asked = asked.and_then(|times| {
        let portion = Portion::of_pages(&params, LISTED)?;
        Ok((query_between(&caller, &params, times, portion.rows() as i64)?, portion))
    });
    let empty = AuditPage {
        shell,
        rows: Vec::new(),
        actions,
        params,
        complaint: Complaint::none(),
        export: Link::to("/v1/audit-events/export"),
        next: None,
        foot: Foot::default(),
    };
    let (query, portion) = match asked {
        Ok(asked) => asked,
        Err(error) => {
            return rejected(&AuditPage { complaint: Complaint::of(error, &["from", "to"])?, ..empty });
        }
    };
    let (here, export) = (kept(Link::to("/audit"), &query), kept(empty.export, &query));
    let call = kept(Link::to("/v1/audit-events"), &query).with("limit", &portion.rows().to_string());
    let (rows, cursor) = page(&app, query).await?;
    // all of it, and not a page alone, is had as lines of JSON
    let foot = portion.foot(&here.clone().with("cursor", empty.params.get("cursor"))).without_files();
    let next = cursor.map(|cursor| portion.on(here).with("cursor", &cursor));
    ok(&AuditPage { rows, export, next, foot: foot.with_call(&visit.origin, &call), ..empty })
}

/// Two times as they were typed, dates as the viewer's calendar has them; either may be absent.
fn between(params: &Params, zone: &Zone, now: Timestamp) -> Result<(Option<Timestamp>, Option<Timestamp>)> {
    let read = |name: &str| match params.get(name).trim() {
        "" => Ok(None),
        text => grammar::instant(text, name, now, zone).map(Some),
    };
    let (from, to) = (read("from")?, read("to")?);
    if let (Some(from), Some(to)) = (from, to) {
        Window::new(from, to)?;
    }
    Ok((from, to))
}

/// What is asked for as parameters of an address, which mean the same tomorrow.
fn kept(link: Link, query: &Query) -> Link {
    let text = |at: Option<Timestamp>| at.map(|at| at.to_exact_text()).unwrap_or_default();
    let link = link.with("action", &query.action).with("actor", &query.actor).with("target", &query.target);
    link.with("from", &text(query.from)).with("to", &text(query.to))
}
