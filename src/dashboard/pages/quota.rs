//! `/quota`: who is over a limit, near it, or about to be; the most urgent first. `/decisions`: what was let in.

use actix_web::{HttpResponse, web};
use askama::Template;

use crate::app::App;
use crate::app::check::Asked;
use crate::auth::Caller;
use crate::dashboard::ask;
use crate::dashboard::chart::{self, Svg};
use crate::dashboard::foot::{Cell, Foot, Portion};
use crate::dashboard::form::Complaint;
use crate::dashboard::pace::Pace;
use crate::dashboard::sorting::{Heading, Orders, Sort};
use crate::dashboard::view::{self, Link};
use crate::dashboard::visit::{Shell, Visit, ok, rejected};
use crate::db::{Conn, DbError, columns};
use crate::entitlements::plan::Enforcement;
use crate::entitlements::quota::{Check, QuotaUsage, State};
use crate::entitlements::sql::decisions::{self, Decision};
use crate::entitlements::sql::listing::{self, Entry, Standing};
use crate::error::{Error, Result};
use crate::http::extract::{Id, Params, decode_cursor, encode_cursor};
use crate::metering::event::{InputQuantity, parse_key};
use crate::metering::json::Value;
use crate::metering::meter::{Aggregation, Meter};
use crate::metering::quantity::Quantity;
use crate::metering::time::Timestamp;

/// Limits of subjects that are looked at of each state, the latest evaluated.
const STATES_MAX: i64 = 1_000;
const LISTED: usize = 50;
/// Rows of a page of limits.
const LIMITS_LISTED: usize = 200;

/// What the list of limits can be sorted by; the state is the order of urgency.
static ORDERS: Orders = Orders { columns: &["state", "subject", "-percent", "resets"], default: "state" };

/// A subject and one of its limits.
struct Row {
    entry: Entry,
    limit: Quantity,
    measure: QuotaUsage,
    unit: String,
    /// What happens beyond it; blank where its plan is not in force any more.
    enforcement: &'static str,
    bar: Svg,
    pace: Option<Pace>,
    /// The end of the period that the value is of, while that runs.
    resets: Option<Timestamp>,
}

impl Row {
    fn of(standing: Standing, meters: &[Meter], now: Timestamp) -> Result<Row> {
        let Standing { entry, window, enforcement, .. } = standing;
        let failed = |fault: crate::db::DbError| fault.into_error("quota::row");
        let measure = entry.measure().map_err(failed)?;
        let limit = columns::quantity_of(&entry.limit_value).map_err(failed)?;
        let warning = columns::quantity_of(&entry.warning_percent).map_err(failed)?;
        let meter = meters.iter().find(|meter| meter.name == entry.meter);
        let aggregation = meter.map_or(Aggregation::Max, |meter| meter.aggregation);
        let pace = window.map(|window| Pace::of(&measure.current, &limit, aggregation, window, now));
        let elapsed = pace.as_ref().map(|pace| pace.elapsed_percent);
        Ok(Row {
            bar: chart::quota(measure.percent.to_f64(), warning.to_f64(), elapsed, &entry.state),
            unit: meter.map(|meter| meter.unit.clone()).unwrap_or_default(),
            resets: window.map(|window| window.to),
            enforcement: enforcement.map_or("", Enforcement::as_str),
            entry,
            limit,
            measure,
            pace,
        })
    }

    fn forecast(&self) -> Option<&(Quantity, Option<Timestamp>)> {
        self.pace.as_ref().and_then(|pace| pace.forecast.as_ref())
    }

    /// Exceeded, then running out, then warned, then the rest; the fullest first.
    fn urgency(&self) -> (u8, Quantity) {
        let runs_out = self.forecast().is_some_and(|(_, reached)| reached.is_some());
        let class = match (self.entry.state.as_str(), runs_out) {
            ("exceeded", _) => 0,
            (_, true) => 1,
            ("warning", _) => 2,
            _ => 3,
        };
        (class, &Quantity::zero() - &self.measure.percent)
    }
}

#[derive(Template)]
#[template(path = "quota/quota.html")]
struct QuotaPage {
    shell: Shell,
    rows: Vec<Row>,
    meters: Vec<Meter>,
    params: Params,
    /// Before the first row that is shown, and where the next page begins.
    before: usize,
    next: Option<String>,
    is_cut: bool,
    sort: Sort,
    foot: Foot,
}

impl QuotaPage {
    fn heading(&self, column: &'static str, words: &'static str) -> Heading {
        let size = self.params.get("limit");
        self.sort.heading(filtered(&self.params).with("limit", size), (column, words))
    }

    /// The list from its first row on.
    fn first(&self) -> Link {
        filtered(&self.params).with("sort", &self.sort.word()).with("limit", self.params.get("limit"))
    }

    fn is(&self, name: &str, value: &str) -> bool {
        self.params.get(name) == value
    }

    fn lists_meter(&self) -> bool {
        self.meters.iter().any(|meter| meter.name == self.params.get("meter"))
    }

    fn is_narrowed(&self) -> bool {
        FILTERS.iter().any(|name| !self.params.get(name).trim().is_empty())
    }
}

const FILTERS: [&str; 5] = ["meter", "state", "subject", "plan", "enforcement"];

/// The list with its filters, in the order that needs no word.
fn filtered(params: &Params) -> Link {
    FILTERS.iter().fold(Link::to("/quota"), |link, name| link.with(name, params.get(name)))
}

/// What the address narrows the list to, and to limits of which kind.
fn asked(params: &Params) -> Result<(listing::Filter, Option<Enforcement>)> {
    let word = |name: &str| params.get(name).trim().to_owned();
    let filter = listing::Filter {
        subject: word("subject"),
        meter: word("meter"),
        state: word("state"),
        plan_id: word("plan"),
        ..listing::Filter::default()
    };
    if !["", "exceeded", "warning", "ok"].contains(&filter.state.as_str()) {
        return Err(Error::invalid("state must be exceeded, warning or ok"));
    }
    let enforcement = match params.get("enforcement").trim() {
        "" => None,
        word => Some(
            Enforcement::parse(word).ok_or_else(|| Error::invalid("enforcement must be advisory or hard"))?,
        ),
    };
    Ok((filter, enforcement))
}

fn arrange(rows: &mut [Row], sort: Sort) {
    match sort.column {
        "subject" => sort.arrange(rows, |row| row.entry.subject.clone()),
        "percent" => sort.arrange(rows, |row| row.measure.percent.clone()),
        // what is never over comes last
        "resets" => sort.arrange(rows, |row| row.resets.map_or(i64::MAX, |at| at.0)),
        _ => sort.arrange(rows, Row::urgency),
    }
}

pub async fn show(app: web::Data<App>, caller: Caller, visit: Visit, params: Params) -> Result<HttpResponse> {
    let (workspace_id, sort) = (caller.workspace_id, Sort::parse(params.get("sort"), &ORDERS)?);
    let (filter, enforcement) = asked(&params)?;
    let now = Timestamp::now();
    let read = move |conn: &mut Conn| states(conn, workspace_id, &filter, now);
    let (mut limits, is_cut) = app.store.read("entitlements::states", read).await?;
    limits.retain(|one| enforcement.is_none() || one.enforcement == enforcement);
    let meters = ask::meters(&app, &caller).await?;
    let rows = limits.into_iter().map(|one| Row::of(one, &meters, now));
    let mut rows = rows.collect::<Result<Vec<Row>>>()?;
    arrange(&mut rows, sort);
    let portion = Portion::parse(&params, LIMITS_LISTED)?;
    if is_cut && !matches!(params.get("format"), "" | "html") {
        // a file holds all rows, not those of a page alone, or is not made
        return Err(Error::invalid(format_args!(
            "more than {STATES_MAX} limits of a state: choose a meter or a subject"
        )));
    }
    if let Some(file) = portion.file("quota", &COLUMNS, rows.iter().map(cells))? {
        return Ok(file);
    }
    let before = params.get("after").parse().unwrap_or(0).min(rows.len());
    let mut rows = rows.split_off(before);
    let link = filtered(&params).with("sort", &sort.word());
    let next = (rows.len() > portion.rows()).then(|| {
        let after = (before + portion.rows()).to_string();
        portion.on(link.clone()).with("after", &after).to_string()
    });
    rows.truncate(portion.rows());
    let call = ["meter", "state", "subject"]
        .iter()
        .fold(Link::to("/v1/entitlements/states"), |call, name| call.with(name, params.get(name)));
    let call = call.with("limit", &portion.rows().to_string());
    let foot = portion.foot(&link.with("after", params.get("after")));
    // states are narrowed by neither
    let is_same = ["plan", "enforcement"].iter().all(|name| params.get(name).trim().is_empty());
    let foot = foot.with_call_if(is_same, &visit.origin, &call);
    let shell = visit.shell("quota", "Quota");
    ok(&QuotaPage { shell, rows, meters, params, before, next, is_cut, sort, foot })
}

const COLUMNS: [&str; 11] = [
    "subject",
    "meter",
    "period",
    "plan",
    "state",
    "current",
    "limit",
    "unit",
    "percent",
    "enforcement",
    "resets_at",
];

fn cells(row: &Row) -> Vec<Cell> {
    vec![
        (&row.entry.subject).into(),
        (&row.entry.meter).into(),
        (&row.entry.period).into(),
        (&row.entry.plan_name).into(),
        (&row.entry.state).into(),
        (&row.measure.current).into(),
        (&row.limit).into(),
        (&row.unit).into(),
        (&row.measure.percent).into(),
        row.enforcement.into(),
        row.resets.map(Timestamp::to_seconds_text).into(),
    ]
}

/// The limits that a filter leaves, and whether some of a state were not looked at. Each state is asked for by itself: a
/// subject that exceeded its limit a while ago must not be hidden behind many that are well.
fn states(
    conn: &mut Conn,
    workspace_id: i64,
    filter: &listing::Filter,
    now: Timestamp,
) -> Result<(Vec<Standing>, bool), DbError> {
    let (mut found, mut is_cut) = (Vec::new(), false);
    for state in [State::Exceeded, State::Warning, State::Ok] {
        if filter.state.is_empty() || filter.state == state.as_str() {
            let of_state = listing::Filter { state: state.as_str().to_owned(), ..filter.clone() };
            let entries = listing::standing(conn, workspace_id, &of_state, now, STATES_MAX)?;
            is_cut |= entries.len() as i64 == STATES_MAX;
            found.extend(entries);
        }
    }
    listing::tell_enforcement(conn, &mut found)?;
    Ok((found, is_cut))
}

#[derive(Template)]
#[template(path = "quota/decisions.html")]
struct DecisionsPage {
    shell: Shell,
    decisions: Vec<Told>,
    meters: Vec<Meter>,
    /// What would be decided now, if that was asked.
    tried: Option<Tried>,
    complaint: Complaint,
    params: Params,
    next: Option<String>,
    foot: Foot,
}

const DECISION_COLUMNS: [&str; 8] =
    ["idempotency_key", "created_at", "outcome", "state", "enforcement", "subject", "meter", "why"];

fn decision_cells(told: &Told) -> Vec<Cell> {
    let decision = &told.decision;
    vec![
        (&decision.idempotency_key).into(),
        Timestamp(decision.created_at).into(),
        told.outcome().into(),
        (&decision.state).into(),
        (&decision.enforcement).into(),
        (&decision.subject).into(),
        (&decision.meter).into(),
        told.sentence().into(),
    ]
}

/// What decisions are narrowed to.
const DECISION_FILTERS: [&str; 6] = ["subject", "meter", "enforcement", "state", "outcome", "failed"];

impl DecisionsPage {
    fn is_narrowed(&self) -> bool {
        DECISION_FILTERS.iter().any(|name| !self.params.get(name).is_empty())
    }

    fn is(&self, name: &str, value: &str) -> bool {
        self.params.get(name) == value
    }
}

/// Words that decisions are narrowed by; others would find nothing, and say so as if there were nothing.
const DECISION_WORDS: [(&str, &[&str]); 3] = [
    ("outcome", &["accepted", "rejected"]),
    ("state", &["ok", "warning", "exceeded", "no_plan", "not_in_plan"]),
    ("enforcement", &["advisory", "hard"]),
];

fn check_words(params: &Params) -> Result<()> {
    let is_wrong = |(name, words): &&(&str, &[&str])| {
        let word = params.get(name).trim();
        !word.is_empty() && !words.contains(&word)
    };
    match DECISION_WORDS.iter().find(is_wrong) {
        Some((name, words)) => Err(Error::invalid(format!("{name} must be one of {}", words.join(", ")))),
        None => Ok(()),
    }
}

/// A decision with what its answer said.
pub struct Told {
    pub decision: Decision,
    quota: Value,
    pub event: Option<String>,
}

impl Told {
    pub fn of(decision: Decision) -> Result<Told> {
        let event = decision.event_id.as_deref().map(columns::uuid_of).transpose();
        let event = event.map_err(|fault| fault.into_error("decisions::view"))?;
        let unreadable = || Error::internal("a decision that is no JSON");
        let quota = Value::parse(&decision.quota).ok_or_else(unreadable)?;
        Ok(Told { decision, quota, event: event.map(|id| id.to_string()) })
    }

    /// A number of the answer, with its digits grouped.
    pub fn number(&self, name: &str) -> String {
        let text = self.quota[name].to_string();
        Quantity::from_plain(&text).map_or(text, |quantity| view::number(&quantity))
    }

    pub fn word(&self, name: &str) -> &str {
        self.quota[name].as_str().unwrap_or_default()
    }

    /// The period of the limit, in words.
    fn period(&self) -> String {
        let window = &self.quota["window"];
        let said = |name: &str| window[name].as_str().unwrap_or_default();
        let words = [said("kind"), self.word("period"), said("time_zone")];
        words.into_iter().filter(|word| !word.is_empty()).collect::<Vec<_>>().join(" ")
    }

    pub fn outcome(&self) -> &'static str {
        if self.decision.accepted { "accepted" } else { "rejected" }
    }

    /// In numbers, why.
    pub fn sentence(&self) -> String {
        if self.decision.evaluation_failed {
            let policy = self.word("failure_policy");
            return format!(
                "The quota could not be computed, so the failure policy of the limit decided: {policy}."
            );
        }
        match self.word("state") {
            "no_plan" => "The subject has no plan, so nothing limits it.".to_owned(),
            "not_in_plan" => "The plan of the subject does not limit this meter.".to_owned(),
            _ => {
                let sign = if self.quota["allowed"].as_bool().unwrap_or_default() { "≤" } else { ">" };
                format!(
                    "current {} + requested {} = {} {sign} limit {} ({}, per {})",
                    self.number("current"),
                    self.number("quantity"),
                    self.number("projected"),
                    self.number("limit"),
                    self.word("enforcement"),
                    self.period(),
                )
            }
        }
    }
}

pub async fn decisions(
    app: web::Data<App>,
    caller: Caller,
    visit: Visit,
    params: Params,
) -> Result<HttpResponse> {
    let workspace_id = caller.workspace_id;
    check_words(&params)?;
    let word = |name: &str| params.get(name).trim().to_owned();
    let accepted = match params.get("outcome").trim() {
        "accepted" => Some(true),
        "rejected" => Some(false),
        _ => None,
    };
    let after = decode_cursor::<(i64, String)>(params.get("cursor"))?;
    let portion = Portion::parse(&params, LISTED)?;
    let filter = decisions::Filter {
        subject: word("subject"),
        meter: word("meter"),
        enforcement: word("enforcement"),
        state: word("state"),
        accepted,
        evaluation_failed: (!params.get("failed").is_empty()).then_some(true),
        after: after.map(|(at, key)| (Timestamp(at), key)),
    };
    let most = portion.rows() as i64 + 1;
    let read = move |conn: &mut Conn| decisions::list(conn, workspace_id, &filter, most);
    let mut rows = app.store.read("decisions::list", read).await?;
    let has_more = rows.len() > portion.rows();
    rows.truncate(portion.rows());
    let here =
        DECISION_FILTERS.iter().fold(Link::to("/decisions"), |link, name| link.with(name, params.get(name)));
    let next = match rows.last().filter(|_| has_more) {
        Some(last) => {
            let cursor = encode_cursor(&(last.created_at, last.idempotency_key.clone()))?;
            Some(portion.on(here.clone()).with("cursor", &cursor).to_string())
        }
        None => None,
    };
    let decisions = rows.into_iter().map(Told::of).collect::<Result<Vec<Told>>>()?;
    if let Some(file) = portion.file("decisions", &DECISION_COLUMNS, decisions.iter().map(decision_cells))? {
        return Ok(file);
    }
    let mut page = DecisionsPage {
        shell: visit.shell("decisions", "Decisions"),
        foot: portion
            .foot(&here.with("cursor", params.get("cursor")))
            .with_call(&visit.origin, &decisions_call(&params, portion)),
        decisions,
        meters: ask::meters(&app, &caller).await?,
        tried: None,
        complaint: Complaint::none(),
        params,
        next,
    };
    match try_it(&app, &caller, &page.params).await {
        Ok(tried) => {
            page.tried = tried;
            ok(&page)
        }
        Err(error) => {
            page.complaint = Complaint::of(error, &["subject", "quantity", "meter"])?;
            rejected(&page)
        }
    }
}

/// The call that answers the same decisions.
fn decisions_call(params: &Params, portion: Portion) -> Link {
    let names = ["subject", "meter", "enforcement", "state", "outcome"];
    let call = Link::to("/v1/entitlements/decisions");
    let call = names.iter().fold(call, |call, name| call.with(name, params.get(name)));
    let call = call.with("evaluation_failed", if params.get("failed").is_empty() { "" } else { "true" });
    // programs are answered 200 at most
    call.with("limit", &portion.rows().min(200).to_string())
}

/// What a check answers, in words.
struct Tried {
    check: Check,
    outcome: &'static str,
    sentence: String,
}

/// Asks what would be decided; nothing is counted and nothing is kept.
async fn try_it(app: &App, caller: &Caller, params: &Params) -> Result<Option<Tried>> {
    let (subject, meter) = (params.get("try_subject").trim(), params.get("try_meter"));
    if subject.is_empty() {
        return Ok(None);
    }
    let quantity = match params.get("try_quantity").trim() {
        "" => None,
        text => Some(InputQuantity(Quantity::parse(&text.replace([',', ' '], "")))),
    };
    let check = app.check(&Asked::new(caller.workspace_id, subject, meter, quantity)?).await?;
    let outcome = if check.allowed { "accepted" } else { "rejected" };
    let sentence = match check.state {
        State::NoPlan => "The subject has no plan, so no limit can allow it.".to_owned(),
        State::NotInPlan => "The plan of the subject does not limit this meter.".to_owned(),
        _ => format!(
            "current {} + requested {} {} limit {} per {}",
            view::number(&check.current),
            view::number(&check.quantity),
            if check.allowed { "≤" } else { ">" },
            view::number(&check.limit),
            check.period.as_ref().map_or("period", |period| period.as_str()),
        ),
    };
    Ok(Some(Tried { check, outcome, sentence }))
}

#[derive(Template)]
#[template(path = "quota/decision.html")]
struct DecisionPage {
    shell: Shell,
    told: Told,
    json: String,
}

pub async fn decision(
    app: web::Data<App>,
    caller: Caller,
    visit: Visit,
    Id(key): Id,
) -> Result<HttpResponse> {
    let wanted = parse_key(Some(&key))?.ok_or_else(|| Error::not_found("decision"))?;
    let workspace_id = caller.workspace_id;
    let find = move |conn: &mut Conn| decisions::find(conn, workspace_id, &wanted);
    let found = app.store.read("decisions::find", find).await?;
    let told = Told::of(found.ok_or_else(|| Error::not_found(format!("decision {key:?}")))?)?;
    let json = serde_json::to_string_pretty(&told.quota).map_err(Error::internal)?;
    ok(&DecisionPage { shell: visit.shell("decisions", "Decision"), told, json })
}
