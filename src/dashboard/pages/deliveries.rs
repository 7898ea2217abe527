//! `/deliveries`: every webhook that was or is to be sent, and what is sent once more: one, those that are picked, or
//! all that match.

use actix_web::{HttpResponse, web};
use askama::Template;

use crate::alerts::sql::deliveries::{self, Filter, Listed};
use crate::alerts::sql::destinations::{self, Destination};
use crate::alerts::sql::rules::{self, Rule};
use crate::app::App;
use crate::auth::Caller;
use crate::dashboard::confirm::{COUNTED_MAX, Confirm};
use crate::dashboard::foot::{Cell, Foot, Portion};
use crate::dashboard::form::{Complaint, Form};
use crate::dashboard::grammar;
use crate::dashboard::view::{self, Link};
use crate::dashboard::visit::{Shell, Visit, ok, rejected};
use crate::db::Conn;
use crate::db::limits::Kind;
use crate::error::{Error, Result};
use crate::http::extract::{Params, decode_cursor, encode_cursor};
use crate::metering::calendar::Zone;
use crate::metering::time::{Timestamp, Window};
use crate::operations::deliveries::{CALL_MAX, replay_all, replay_picked};

const LISTED: usize = 50;
/// Rules and destinations that can be chosen.
const CHOICES: i64 = 500;
const PICKED_MAX: usize = 500;
const FILTERS: [&str; 5] = ["status", "rule", "destination", "from", "to"];
const STATES: [&str; 4] = ["", "pending", "delivered", "dead_letter"];

/// What the address asks for, in words.
#[derive(Clone, Default)]
struct Asked {
    status: String,
    rule: String,
    destination: String,
    from: Option<Timestamp>,
    to: Option<Timestamp>,
}

impl Asked {
    /// `get` tells what a parameter or a field holds; times are read as the viewer's clock shows them.
    fn read<'a>(get: impl Fn(&str) -> &'a str, zone: &Zone) -> Result<Asked> {
        let now = Timestamp::now();
        let time = |name: &str| match get(name).trim() {
            "" => Ok(None),
            text => grammar::instant(text, name, now, zone).map(Some),
        };
        let (from, to) = (time("from")?, time("to")?);
        if let (Some(from), Some(to)) = (from, to) {
            Window::new(from, to)?;
        }
        let status = get("status").trim();
        if !STATES.contains(&status) {
            return Err(Error::invalid("status must be pending, delivered or dead_letter"));
        }
        let text = |name: &str| get(name).trim().to_owned();
        Ok(Asked {
            status: status.to_owned(),
            rule: text("rule"),
            destination: text("destination"),
            from,
            to,
        })
    }

    /// The same as parameters that mean the same tomorrow.
    fn pairs(&self) -> [(&'static str, String); 5] {
        let time = |at: Option<Timestamp>| at.map(|at| at.to_exact_text()).unwrap_or_default();
        [
            ("status", self.status.clone()),
            ("rule", self.rule.clone()),
            ("destination", self.destination.clone()),
            ("from", time(self.from)),
            ("to", time(self.to)),
        ]
    }

    fn link(&self, path: &str) -> Link {
        self.pairs().iter().fold(Link::to(path), |link, (name, value)| link.with(name, value))
    }

    /// A rule that there is not matches nothing.
    fn filter(&self, conn: &mut Conn, workspace_id: i64) -> Result<Filter, crate::db::DbError> {
        let some = |text: &String| Some(text.clone()).filter(|text| !text.is_empty());
        let rule_id = match self.rule.as_str() {
            "" => None,
            rule => Some(rules::id_of(conn, workspace_id, rule)?.unwrap_or(-1)),
        };
        Ok(Filter {
            status: some(&self.status),
            rule_id,
            destination_id: some(&self.destination),
            from: self.from,
            to: self.to,
            before: None,
        })
    }
}

#[derive(Template)]
#[template(path = "alerts/deliveries.html")]
struct ListPage {
    shell: Shell,
    deliveries: Vec<Listed>,
    rules: Vec<Rule>,
    destinations: Vec<Destination>,
    params: Params,
    complaint: Complaint,
    next: Option<String>,
    /// The page that asks before all that match are sent again.
    replay: String,
    foot: Foot,
}

const COLUMNS: [&str; 9] = [
    "id",
    "created_at",
    "status",
    "rule",
    "destination",
    "attempts",
    "next_attempt_at",
    "delivered_at",
    "last_error",
];

impl ListPage {
    fn typed(&self, name: &str) -> &str {
        self.params.get(name).trim()
    }

    fn cells(&self, listed: &Listed) -> Vec<Cell> {
        let one = &listed.delivery;
        vec![
            (&one.public_id).into(),
            Timestamp(one.created_at).into(),
            (&one.status).into(),
            self.rule_of(listed).map(|rule| rule.terms.name.as_str()).into(),
            self.destination_of(listed).map(|to| to.name.as_str()).into(),
            i64::from(one.attempts).into(),
            // what was delivered is not tried again
            one.delivered_at.is_none().then_some(Timestamp(one.next_attempt_at)).into(),
            one.delivered_at.map(Timestamp).into(),
            one.last_error.as_deref().into(),
        ]
    }

    fn states(&self) -> &'static [&'static str] {
        &STATES
    }

    fn filters(&self) -> &'static [&'static str] {
        &FILTERS
    }

    fn is_narrowed(&self) -> bool {
        FILTERS.iter().any(|name| !self.typed(name).is_empty())
    }

    fn rule_of(&self, listed: &Listed) -> Option<&Rule> {
        self.rules.iter().find(|rule| rule.id == listed.delivery.rule_id)
    }

    fn destination_of(&self, listed: &Listed) -> Option<&Destination> {
        self.destinations.iter().find(|one| one.public_id == listed.delivery.destination_id)
    }
}

pub async fn list(app: web::Data<App>, caller: Caller, visit: Visit, params: Params) -> Result<HttpResponse> {
    let shell = visit.shell("deliveries", "Deliveries");
    let asked = Asked::read(|name| params.get(name), &shell.zone)
        .and_then(|asked| Ok((asked, Portion::parse(&params, LISTED)?)));
    let before = decode_cursor::<i64>(params.get("cursor"))?;
    let workspace_id = caller.workspace_id;
    let wanted = asked.as_ref().ok().cloned();
    let read = move |conn: &mut Conn| {
        let rules = rules::rules(conn, Some(workspace_id), &rules::Filter::default(), CHOICES)?;
        let most = Kind::AlertDestination.most();
        let destinations = destinations::list(conn, workspace_id, None, most)?;
        let listed = match &wanted {
            None => Vec::new(),
            Some((asked, portion)) => {
                let filter = Filter { before, ..asked.filter(conn, workspace_id)? };
                deliveries::page(conn, workspace_id, &filter, portion.rows() as i64 + 1)?
            }
        };
        Ok((rules, destinations, listed))
    };
    let (rules, destinations, listed) = app.store.read("deliveries::page", read).await?;
    let mut page = ListPage {
        shell,
        deliveries: listed,
        rules,
        destinations,
        params,
        complaint: Complaint::none(),
        next: None,
        replay: String::new(),
        foot: Foot::default(),
    };
    let (asked, portion) = match asked {
        Ok(asked) => asked,
        Err(error) => {
            page.complaint = Complaint::of(error, &FILTERS)?;
            return rejected(&page);
        }
    };
    let has_more = page.deliveries.len() > portion.rows();
    page.deliveries.truncate(portion.rows());
    let cells = page.deliveries.iter().map(|listed| page.cells(listed));
    if let Some(file) = portion.file("deliveries", &COLUMNS, cells)? {
        return Ok(file);
    }
    let here = asked.link("/deliveries");
    if let Some(last) = page.deliveries.last().filter(|_| has_more) {
        let cursor = encode_cursor(&last.delivery.id)?;
        page.next = Some(portion.on(here.clone()).with("cursor", &cursor).to_string());
    }
    let call = Link::to("/v1/alerts/delivery-jobs").with("status", &asked.status);
    let call = call.with("limit", &portion.rows().to_string());
    let foot = portion.foot(&here.with("cursor", page.params.get("cursor")));
    // programs narrow them by nothing else
    let is_same = asked.pairs().iter().all(|(name, value)| *name == "status" || value.is_empty());
    page.foot = foot.with_call_if(is_same, &visit.origin, &call);
    page.replay = asked.link("/deliveries/replay").to_string();
    ok(&page)
}

/// How many webhooks would be sent again.
pub async fn confirm_replay(
    app: web::Data<App>,
    caller: Caller,
    visit: Visit,
    params: Params,
) -> Result<HttpResponse> {
    let shell = visit.shell("deliveries", "Send again all that match");
    let asked = Asked::read(|name| params.get(name), &shell.zone)?;
    let (workspace_id, wanted) = (caller.workspace_id, asked.clone());
    let count = move |conn: &mut Conn| {
        let filter = wanted.filter(conn, workspace_id)?;
        deliveries::settled(conn, workspace_id, &filter, COUNTED_MAX + 1)
    };
    let (delivered, dead) = app.store.read("deliveries::settled", count).await?;
    let all = view::counted_to(COUNTED_MAX, (delivered + dead) as i64, "webhook", "webhooks");
    let mut sentences = vec![match delivered + dead {
        0 => "None of those that match can be sent again: what is pending waits already.".to_owned(),
        _ => format!(
            "{all} of those that match: {} given up, {} delivered, which arrive once more. What is pending waits already, \
             and is left alone.",
            view::count(dead),
            view::count(delivered)
        ),
    }];
    if delivered + dead > 0 {
        sentences.push(
            "Each keeps the id of its event, so that a receiver can tell that it has it, is signed with the present secret, \
             and gets all of its attempts anew. Those of one group go out in order, one after the other."
                .to_owned(),
        );
    }
    if delivered + dead > CALL_MAX {
        sentences.push(format!("At most {} are sent in one go.", view::count(CALL_MAX)));
    }
    let list = asked.link("/deliveries").to_string();
    let mut fields = vec![("do", "all".to_owned())];
    fields.extend(asked.pairs());
    ok(&Confirm {
        sentences,
        action: "/deliveries".to_owned(),
        fields,
        button: if delivered + dead == 0 { String::new() } else { format!("Send {all} again") },
        is_harmless: true,
        ..Confirm::below(shell, [("Deliveries", list)])
    })
}

/// Sends again: one that was given up at once, one that arrived once more under its own id; those that are picked, or
/// all that match.
pub async fn replay(app: web::Data<App>, caller: Caller, visit: Visit, form: Form) -> Result<HttpResponse> {
    let Form(fields) = form;
    let (workspace_id, now) = (caller.workspace_id, Timestamp::now());
    if let Some(id) = fields.some("delivery") {
        let retry = move |conn: &mut Conn| deliveries::retry(conn, workspace_id, &id, now);
        app.store.write("deliveries::retry", retry).await?;
    } else if let Some(event) = fields.some("event") {
        let again = move |conn: &mut Conn| deliveries::redeliver(conn, workspace_id, &event, now);
        app.store.write("deliveries::redeliver", again).await?;
    } else {
        let shell = visit.shell("deliveries", "Deliveries");
        let asked = Asked::read(|name| fields.get(name), &shell.zone)?;
        let done = match fields.get("do") {
            "all" => all(&app, workspace_id, &asked).await?,
            _ => picked(&app, workspace_id, fields.all("pick").map(str::to_owned).collect()).await?,
        };
        return Ok(visit.go(&asked.link("/deliveries").to_string(), &done));
    }
    app.wake.notify();
    Ok(visit.go("/deliveries", "It is sent again now."))
}

async fn picked(app: &App, workspace_id: i64, mut ids: Vec<String>) -> Result<String> {
    ids.truncate(PICKED_MAX);
    if ids.is_empty() {
        return Ok("Nothing was picked.".to_owned());
    }
    let waiting = ids.len();
    let count = replay_picked(app, workspace_id, ids).await?;
    let mut done = format!("{} sent again now.", view::counted(count, "webhook is", "webhooks are"));
    if count < waiting {
        done.push_str(" The others wait already.");
    }
    Ok(done)
}

async fn all(app: &App, workspace_id: i64, asked: &Asked) -> Result<String> {
    let wanted = asked.clone();
    let read = move |conn: &mut Conn| wanted.filter(conn, workspace_id);
    let filter = app.store.read("deliveries::filter", read).await?;
    let replayed = replay_all(app, workspace_id, filter).await?;
    let mut done = format!("{} sent again now.", view::counted(replayed.count, "webhook is", "webhooks are"));
    if replayed.has_more {
        done.push_str(" There are more: send them the same way.");
    }
    Ok(done)
}
