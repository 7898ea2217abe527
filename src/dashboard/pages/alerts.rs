//! `/alerts`: rules with their states, what they noticed, and the forms that make and change them.

use std::collections::HashMap;
use std::sync::Arc;

use actix_web::{HttpResponse, web};
use askama::Template;

use crate::alerts::backtest::Backtest;
use crate::alerts::evaluate::{evaluate, evaluate_disabled};
use crate::alerts::rule::{RuleInput, RuleSpec};
use crate::alerts::sql::destinations::{self, Destination};
use crate::alerts::sql::events::{self, Attempt, Event};
use crate::alerts::sql::rules::{self, Change, NewRule, Rule};
use crate::alerts::sql::states;
use crate::alerts::state::{State, Status};
use crate::app::App;
use crate::auth::Caller;
use crate::dashboard::ask;
use crate::dashboard::chart::{self, Chart, Kind, Series};
use crate::dashboard::confirm::Confirm;
use crate::dashboard::foot::{Cell, Foot, Portion};
use crate::dashboard::form::{Complaint, Fields, Form};
use crate::dashboard::sorting::{Heading, Orders, Sort};
use crate::dashboard::view::{self, Link};
use crate::dashboard::visit::{Shell, Visit, ok, rejected};
use crate::db::{Conn, DbError};
use crate::entitlements::period::{Period, WindowInput};
use crate::error::{Error, Result};
use crate::http::extract::{Id, Params};
use crate::metering::event::InputQuantity;
use crate::metering::meter::Meter;
use crate::metering::quantity::Quantity;
use crate::metering::time::{BucketSize, Timestamp};
use crate::usage::query::Query;

const LISTED: i64 = 500;
const EVENTS_LISTED: i64 = 25;
const WINDOWS: [(&str, &str); 6] = [
    ("300", "5 minutes"),
    ("900", "15 minutes"),
    ("3600", "1 hour"),
    ("86400", "1 day"),
    ("604800", "7 days"),
    ("2592000", "30 days"),
];
const INTERVALS: [(&str, &str); 4] =
    [("30", "30 seconds"), ("60", "1 minute"), ("300", "5 minutes"), ("900", "15 minutes")];
const SNOOZES: [(&str, &str); 5] = [
    ("3600", "1 hour"),
    ("28800", "8 hours"),
    ("86400", "1 day"),
    ("604800", "7 days"),
    ("2592000", "30 days"),
];
const COMPARATORS: [(&str, &str); 6] =
    [("gte", "≥"), ("gt", ">"), ("lte", "≤"), ("lt", "<"), ("eq", "="), ("neq", "≠")];

/// A rule with the states of its groups, those that stand for it first.
struct Row {
    rule: Rule,
    /// At most [`STATES_SHOWN`] of `groups`.
    states: Vec<State>,
    groups: i64,
    alerting: i64,
}

/// A rule may have 100,000 groups.
const STATES_SHOWN: usize = 200;

impl Row {
    /// The state that matters most.
    fn worst(&self) -> &'static str {
        match self.states.first() {
            _ if !self.rule.terms.enabled => "disabled",
            Some(state) => state.status.as_str(),
            None => "not evaluated yet",
        }
    }

    fn condition(&self) -> String {
        condition(&self.rule)
    }

    /// Until when nobody is told what happens.
    fn snoozed(&self) -> Option<Timestamp> {
        self.rule.snoozed_until.filter(|until| Timestamp::now() < *until)
    }
}

fn condition(rule: &Rule) -> String {
    let terms = &rule.terms;
    let sign =
        COMPARATORS.iter().find(|(word, _)| *word == terms.comparator.as_str()).map_or("", |(_, sign)| sign);
    let per = terms.group_by.as_deref().map(|field| format!(" per {field}")).unwrap_or_default();
    let of = terms.subject.as_deref().map(|subject| format!(" of {subject}")).unwrap_or_default();
    let window = match &terms.period {
        Some(period) => format!("in a {period}"),
        None => format!("over {}", view::seconds(terms.window_seconds)),
    };
    format!("{}{of}{per} {window} {sign} {}", rule.meter, view::number(&terms.threshold))
}

#[derive(Template)]
#[template(path = "alerts/list.html")]
struct ListPage {
    shell: Shell,
    rows: Vec<Row>,
    destinations: Vec<Destination>,
    events: Vec<(Event, Option<Attempt>)>,
    sort: Sort,
    foot: Foot,
}

const COLUMNS: [&str; 7] = ["id", "rule", "state", "meter", "condition", "destination", "evaluated_at"];

fn cells(row: &Row) -> Vec<Cell> {
    vec![
        (&row.rule.public_id).into(),
        (&row.rule.terms.name).into(),
        row.worst().into(),
        (&row.rule.meter).into(),
        row.condition().into(),
        (&row.rule.destination.name).into(),
        row.rule.evaluated_at.into(),
    ]
}

/// What rules can be sorted by; the one that was made last comes first.
static ORDERS: Orders =
    Orders { columns: &["name", "state", "destination", "-evaluated", "-made"], default: "-made" };

impl ListPage {
    fn heading(&self, column: &'static str, words: &'static str) -> Heading {
        self.sort.heading(Link::to("/alerts"), (column, words))
    }
}

fn arrange(rows: &mut [Row], sort: Sort) {
    // what stands for a rule, then those that nobody has looked at, then those that are off
    let state = |row: &Row| {
        (!row.rule.terms.enabled, row.states.first().map_or((true, Status::Ok), |s| (false, s.status)))
    };
    match sort.column {
        "name" => sort.arrange(rows, |row| row.rule.terms.name.clone()),
        "state" => sort.arrange(rows, state),
        "destination" => sort.arrange(rows, |row| row.rule.destination.name.clone()),
        "evaluated" => sort.arrange(rows, |row| row.rule.evaluated_at),
        _ => sort.arrange(rows, |row| row.rule.id),
    }
}

/// Each with the one state that stands for it.
fn with_worst(conn: &mut Conn, rules: Vec<Rule>) -> Result<Vec<Row>, DbError> {
    let ids: Vec<i64> = rules.iter().map(|rule| rule.id).collect();
    let mut states = states::first_of_rules(conn, &ids, 1)?;
    let row = |rule: Rule| Row {
        states: states.remove(&rule.id).unwrap_or_default(),
        rule,
        groups: 0,
        alerting: 0,
    };
    Ok(rules.into_iter().map(row).collect())
}

fn with_attempts(
    conn: &mut Conn,
    events: Vec<(i64, Event)>,
) -> Result<Vec<(Event, Option<Attempt>)>, DbError> {
    let ids: Vec<String> = events.iter().map(|(_, event)| event.public_id.clone()).collect();
    let mut attempts: HashMap<String, Attempt> = events::latest_attempts(conn, &ids)?;
    Ok(events
        .into_iter()
        .map(|(_, event)| {
            let attempt = attempts.remove(&event.public_id);
            (event, attempt)
        })
        .collect())
}

pub async fn list(app: web::Data<App>, caller: Caller, visit: Visit, params: Params) -> Result<HttpResponse> {
    let (workspace_id, sort) = (caller.workspace_id, Sort::parse(params.get("sort"), &ORDERS)?);
    let read = move |conn: &mut Conn| {
        let rules = rules::rules(conn, Some(workspace_id), &rules::Filter::default(), LISTED)?;
        let rows = with_worst(conn, rules)?;
        let destinations = destinations::list(conn, workspace_id, None, LISTED)?;
        let events = events::events(conn, workspace_id, None, None, EVENTS_LISTED)?;
        Ok((rows, destinations, with_attempts(conn, events)?))
    };
    let (mut rows, destinations, events) = app.store.read("alerts::list", read).await?;
    arrange(&mut rows, sort);
    let portion = Portion::whole(&params)?;
    if let Some(file) = portion.file("alert-rules", &COLUMNS, rows.iter().map(cells))? {
        return Ok(file);
    }
    let call = Link::to("/v1/alerts").with("limit", &LISTED.to_string());
    let foot = portion.foot(&Link::to("/alerts").with("sort", &sort.word())).with_call(&visit.origin, &call);
    ok(&ListPage { shell: visit.shell("alerts", "Alerts"), rows, destinations, events, sort, foot })
}

#[derive(Template)]
#[template(path = "alerts/form.html")]
struct FormPage {
    shell: Shell,
    rule: Option<Rule>,
    meters: Vec<Meter>,
    destinations: Vec<Destination>,
    fields: Fields,
    complaint: Complaint,
    tested: Option<Tested>,
}

/// What the rule would have done.
struct Tested {
    done: Backtest,
    chart: Option<Chart>,
}

impl FormPage {
    fn windows(&self) -> &'static [(&'static str, &'static str)] {
        &WINDOWS
    }

    fn intervals(&self) -> &'static [(&'static str, &'static str)] {
        &INTERVALS
    }

    fn comparators(&self) -> &'static [(&'static str, &'static str)] {
        &COMPARATORS
    }

    /// A length that a program chose and no select offers.
    fn odd(&self, name: &str, known: &[(&str, &str)]) -> Option<(String, String)> {
        let text = self.fields.get(name);
        let seconds: i64 = text.parse().ok()?;
        (!known.iter().any(|(value, _)| *value == text)).then(|| (text.to_owned(), view::seconds(seconds)))
    }

    fn groups(&self) -> Vec<String> {
        let mut names: Vec<String> = vec!["subject".to_owned()];
        for meter in &self.meters {
            for dimension in &meter.dimensions {
                if !names.contains(&dimension.name) {
                    names.push(dimension.name.clone());
                }
            }
        }
        names
    }
}

const FIELDS: [&str; 8] =
    ["name", "meter", "threshold", "destination", "subject", "window_seconds", "group_by", "metadata"];

async fn form_page(
    app: &App,
    caller: &Caller,
    visit: &Visit,
    rule: Option<Rule>,
    fields: Fields,
    complaint: Complaint,
) -> Result<FormPage> {
    let workspace_id = caller.workspace_id;
    let list = move |conn: &mut Conn| destinations::list(conn, workspace_id, None, LISTED);
    let destinations = app.store.read("destinations::list", list).await?;
    let title =
        rule.as_ref().map_or_else(|| "New alert".to_owned(), |rule| format!("Edit {}", rule.terms.name));
    let meters = ask::meters(app, caller).await?;
    let shell = visit.shell("alerts", title);
    Ok(FormPage { shell, rule, meters, destinations, fields, complaint, tested: None })
}

pub async fn new(app: web::Data<App>, caller: Caller, visit: Visit, params: Params) -> Result<HttpResponse> {
    let fields = Fields::of([
        ("meter", params.get("meter")),
        ("subject", params.get("subject")),
        ("comparator", "gte"),
        ("window_seconds", "3600"),
        ("evaluation_interval_seconds", "60"),
        ("enabled", "on"),
    ]);
    ok(&form_page(&app, &caller, &visit, None, fields, Complaint::none()).await?)
}

/// Stands for windows that the form has no words for.
const AS_IT_IS: &str = "as it is";
const PERIODS: [&str; 6] = ["hour", "day", "week", "month", "quarter", "year"];

fn period(fields: &Fields) -> (Option<String>, Option<WindowInput>) {
    match fields.get("period") {
        AS_IT_IS => (None, None),
        "" => (Some(String::new()), None),
        word => {
            let time_zone = fields.get("time_zone").to_owned();
            (Some(word.to_owned()), Some(WindowInput { time_zone, ..WindowInput::default() }))
        }
    }
}

/// The fields for a period: its word, and its zone.
fn period_fields(period: Option<&Period>) -> (String, String) {
    let Some(period) = period else { return (String::new(), String::new()) };
    let said = period.described().unwrap_or_default();
    let is_known = PERIODS.contains(&period.word().as_ref());
    match is_known && said.anchor.is_empty() && said.week_start.is_empty() {
        true => (period.word().into_owned(), said.time_zone),
        false => (AS_IT_IS.to_owned(), String::new()),
    }
}

/// What the form asks for.
fn input(fields: &Fields) -> Result<RuleInput> {
    let metadata = fields.raw("metadata").lines().filter_map(|line| line.split_once('='));
    let metadata = metadata.map(|(path, text)| (path.trim().to_owned(), text.trim().to_owned()));
    let threshold =
        fields.some("threshold").map(|text| InputQuantity(Quantity::parse(&text.replace([',', ' '], ""))));
    let (period, window) = period(fields);
    Ok(RuleInput {
        name: Some(fields.get("name").to_owned()),
        meter: Some(fields.get("meter").to_owned()),
        enabled: Some(!fields.get("enabled").is_empty()),
        subject: Some(fields.get("subject").to_owned()),
        metadata: Some(metadata.collect()),
        window_seconds: fields.integer("window_seconds")?,
        period,
        window,
        comparator: fields.some("comparator"),
        threshold,
        evaluation_interval_seconds: fields.integer("evaluation_interval_seconds")?,
        group_by: Some(fields.get("group_by").to_owned()),
        destination_id: Some(fields.get("destination_id").to_owned()),
    })
}

pub async fn create(app: web::Data<App>, caller: Caller, visit: Visit, form: Form) -> Result<HttpResponse> {
    let Form(fields) = form;
    if fields.is("do", "test") {
        return test(&app, &caller, &visit, None, fields).await;
    }
    match add(&app, &caller, &fields).await {
        Ok(rule) => Ok(visit
            .go(&format!("/alerts/{}", rule.public_id), "The alert is on. It is evaluated within seconds.")),
        Err(error) => {
            let complaint = Complaint::of(error, &FIELDS)?;
            rejected(&form_page(&app, &caller, &visit, None, fields, complaint).await?)
        }
    }
}

/// Shows what the rule of the form would have done in the last weeks; nothing is stored.
async fn test(
    app: &App,
    caller: &Caller,
    visit: &Visit,
    rule: Option<Rule>,
    fields: Fields,
) -> Result<HttpResponse> {
    let tested = tested(app, caller, &fields).await;
    let mut page = form_page(app, caller, visit, rule, fields, Complaint::none()).await?;
    match tested {
        Ok(tested) => {
            page.tested = Some(tested);
            ok(&page)
        }
        Err(error) => {
            page.complaint = Complaint::of(error, &FIELDS)?;
            rejected(&page)
        }
    }
}

async fn tested(app: &App, caller: &Caller, fields: &Fields) -> Result<Tested> {
    let mut input = input(fields)?;
    // a rule is often tried before it is named
    input.name = input.name.filter(|name| !name.is_empty()).or_else(|| Some("test".to_owned()));
    let terms = RuleSpec::new(&input)?;
    let meter = ask::meter(app, caller, fields.get("meter")).await?;
    let threshold = terms.threshold.clone();
    let done = app.backtest(caller.workspace_id, &meter.name, terms).await?;
    // midnights of UTC are hours elsewhere
    let zone = ask::home(app, caller).await?;
    let is_daily = done.step_seconds > 3_600 && zone.is_utc();
    let calendar = ask::calendar(if is_daily { BucketSize::Day } else { BucketSize::Hour }, &zone);
    let bucket = |(at, _): &(Timestamp, Option<Quantity>)| chart::Bucket {
        label: zone.text(*at)[5..10].to_owned(),
        name: ask::bucket_name(*at, &calendar),
        link: String::new(),
    };
    let values = done.values.iter().map(|(_, value)| value.clone()).collect();
    let chart = (!done.values.is_empty()).then(|| Chart {
        id: "backtest".into(),
        title: format!("What the rule would have seen of {}", meter.name),
        unit: meter.unit.clone(),
        zone: calendar.zone.clone(),
        kind: Kind::Line,
        buckets: done.values.iter().map(bucket).collect(),
        series: vec![Series::new("Value at each look", values)],
        compare: None,
        limits: vec![(threshold, "Threshold".to_owned())],
        is_running: false,
        adds_up: false,
        pruned: 0,
    });
    Ok(Tested { done, chart })
}

async fn add(app: &App, caller: &Caller, fields: &Fields) -> Result<Rule> {
    let input = input(fields)?;
    if fields.get("destination_id").is_empty() {
        return Err(Error::invalid("choose a destination: where the alert is sent"));
    }
    let new = NewRule {
        workspace_id: caller.workspace_id,
        terms: RuleSpec::new(&input)?,
        meter: fields.get("meter").to_owned(),
        destination_id: fields.get("destination_id").to_owned(),
    };
    let rule = app.store.write("alerts::add", move |conn| rules::add(conn, &new, Timestamp::now())).await?;
    app.wake.notify();
    Ok(rule)
}

async fn find(app: &App, caller: &Caller, id: &str) -> Result<Row> {
    let (workspace_id, wanted) = (caller.workspace_id, id.to_owned());
    let read = move |conn: &mut Conn| {
        let Some(rule) = rules::rule(conn, workspace_id, &wanted)? else { return Ok(None) };
        let states = states::first_of_rules(conn, &[rule.id], STATES_SHOWN)?.remove(&rule.id);
        let (groups, alerting) = states::counts(conn, rule.id)?;
        Ok(Some(Row { states: states.unwrap_or_default(), rule, groups, alerting }))
    };
    let found = app.store.read("alerts::get", read).await?;
    found.ok_or_else(|| Error::not_found(format!("alert rule {id:?}")))
}

fn fields_of(rule: &Rule) -> Fields {
    let terms = &rule.terms;
    let metadata: Vec<String> = terms.metadata.iter().map(|(path, text)| format!("{path}={text}")).collect();
    let (period, time_zone) = period_fields(terms.period.as_ref());
    Fields::of([
        ("period", period),
        ("time_zone", time_zone),
        ("name", terms.name.clone()),
        ("meter", rule.meter.clone()),
        ("enabled", if terms.enabled { "on" } else { "" }.to_owned()),
        ("subject", terms.subject.clone().unwrap_or_default()),
        ("metadata", metadata.join("\n")),
        ("window_seconds", terms.window_seconds.to_string()),
        ("comparator", terms.comparator.as_str().to_owned()),
        ("threshold", terms.threshold.to_plain()),
        ("evaluation_interval_seconds", terms.evaluation_interval_seconds.to_string()),
        ("group_by", terms.group_by.clone().unwrap_or_default()),
        ("destination_id", rule.destination.public_id.clone()),
    ])
}

pub async fn edit(app: web::Data<App>, caller: Caller, visit: Visit, Id(id): Id) -> Result<HttpResponse> {
    let rule = find(&app, &caller, &id).await?.rule;
    let fields = fields_of(&rule);
    ok(&form_page(&app, &caller, &visit, Some(rule), fields, Complaint::none()).await?)
}

pub async fn update(
    app: web::Data<App>,
    caller: Caller,
    visit: Visit,
    Id(id): Id,
    form: Form,
) -> Result<HttpResponse> {
    let Form(fields) = form;
    let rule = find(&app, &caller, &id).await?.rule;
    if fields.is("do", "test") {
        return test(&app, &caller, &visit, Some(rule), fields).await;
    }
    match replace(&app, &caller, &id, &fields).await {
        Ok(()) => Ok(visit.go(&format!("/alerts/{id}"), "Saved.")),
        Err(error) => {
            let complaint = Complaint::of(error, &FIELDS)?;
            rejected(&form_page(&app, &caller, &visit, Some(rule), fields, complaint).await?)
        }
    }
}

async fn replace(app: &App, caller: &Caller, id: &str, fields: &Fields) -> Result<()> {
    let (input, workspace_id, id) = (input(fields)?, caller.workspace_id, id.to_owned());
    let update = move |conn: &mut Conn| {
        let change = |rule: &Rule| {
            let (meter, destination_id) = (input.meter.clone(), input.destination_id.clone());
            Ok(Change { terms: rule.terms.changed(&input)?, meter, destination_id })
        };
        rules::update(conn, workspace_id, &id, change, Timestamp::now())
    };
    app.store.write("alerts::update", update).await?;
    app.wake.notify();
    Ok(())
}

#[derive(Template)]
#[template(path = "alerts/show.html")]
struct ShowPage {
    shell: Shell,
    row: Row,
    chart: Option<Chart>,
    events: Vec<(Event, Option<Attempt>)>,
    next: Option<String>,
}

impl ShowPage {
    fn snoozes(&self) -> &'static [(&'static str, &'static str)] {
        &SNOOZES
    }
}

pub async fn show(
    app: web::Data<App>,
    caller: Caller,
    visit: Visit,
    Id(id): Id,
    params: Params,
) -> Result<HttpResponse> {
    let row = find(&app, &caller, &id).await?;
    let (workspace_id, rule_id, before) =
        (caller.workspace_id, row.rule.id, params.get("before").parse().ok());
    let read = move |conn: &mut Conn| {
        let mut events = events::events(conn, workspace_id, Some(rule_id), before, EVENTS_LISTED + 1)?;
        let has_more = events.len() as i64 > EVENTS_LISTED;
        events.truncate(EVENTS_LISTED as usize);
        let last = events.last().map(|(position, _)| *position).filter(|_| has_more);
        Ok((with_attempts(conn, events)?, last))
    };
    let (events, last) = app.store.read("alerts::events", read).await?;
    let chart = history(&app, &caller, &row.rule).await?;
    let next =
        last.map(|before| Link::to(format!("/alerts/{id}")).with("before", &before.to_string()).to_string());
    ok(&ShowPage { shell: visit.shell("alerts", row.rule.terms.name.clone()), row, chart, events, next })
}

/// What the rule would have seen: values per bucket near its window, with the threshold.
async fn history(app: &App, caller: &Caller, rule: &Rule) -> Result<Option<Chart>> {
    if !rule.terms.metadata.is_empty() || rule.terms.group_by.is_some() {
        return Ok(None);
    }
    let size = if rule.terms.window_seconds >= 86_400 { BucketSize::Day } else { BucketSize::Hour };
    let days = if size == BucketSize::Day { 28 } else { 3 };
    let calendar = ask::calendar(size, &ask::home(app, caller).await?);
    let window = ask::last_days(days, Timestamp::now(), &calendar.zone);
    let meter = ask::meter(app, caller, &rule.meter).await?;
    let query =
        Query { subject: rule.terms.subject.clone(), ..ask::whole(meter.clone(), window, &calendar)? };
    let starts = ask::axis(window, &calendar);
    let rows = ask::buckets(app, query, starts.len()).await?;
    let (series, _) = ask::series(&rows, &starts, meter.aggregation, false, 1);
    let link = Link::to("/events")
        .with("meter", &meter.name)
        .with("subject", rule.terms.subject.as_deref().unwrap_or_default());
    let threshold = (rule.terms.threshold.clone(), "Threshold".to_owned());
    Ok(Some(Chart {
        id: "history".into(),
        title: format!("{} per {}, with the threshold", meter.name, size.name()),
        unit: meter.unit.clone(),
        zone: calendar.zone.clone(),
        kind: Kind::Bar,
        buckets: ask::chart_buckets(window, &calendar, &link),
        series,
        compare: None,
        limits: vec![threshold],
        is_running: true,
        adds_up: ask::is_additive(meter.aggregation),
        pruned: ask::pruned(&meter, &starts),
    }))
}

/// Does now what the worker does at its time.
pub async fn evaluate_now(
    app: web::Data<App>,
    caller: Caller,
    visit: Visit,
    Id(id): Id,
    _form: Form,
) -> Result<HttpResponse> {
    let rule = find(&app, &caller, &id).await?.rule;
    if rule.terms.enabled {
        let filter = rules::Filter { public_id: Some(id.clone()), ..rules::Filter::default() };
        let outcome = evaluate(&app.store, Some(caller.workspace_id), filter).await?;
        if outcome.enqueued {
            app.wake.notify();
        }
    } else {
        let rule = Arc::new(rule);
        let write = move |conn: &mut Conn| evaluate_disabled(conn, &rule, Timestamp::now());
        app.store.write("alerts::evaluate_disabled", write).await?;
    }
    Ok(visit.go(&format!("/alerts/{id}"), "Evaluated just now."))
}

/// Keeps a rule quiet for a while, or lets it tell again.
pub async fn snooze(
    app: web::Data<App>,
    caller: Caller,
    visit: Visit,
    Id(id): Id,
    form: Form,
) -> Result<HttpResponse> {
    let Form(fields) = form;
    let seconds = fields.integer("seconds")?.unwrap_or_default();
    let rule = app.snooze_rule(caller.workspace_id, id.clone(), seconds).await?;
    let words = match rule.snoozed_until {
        Some(_) => format!("Nobody is told anything for {}.", view::seconds(seconds)),
        None => "Whatever happens is sent again.".to_owned(),
    };
    Ok(visit.go(&format!("/alerts/{id}"), &words))
}

pub async fn confirm_delete(
    app: web::Data<App>,
    caller: Caller,
    visit: Visit,
    Id(id): Id,
) -> Result<HttpResponse> {
    let row = find(&app, &caller, &id).await?;
    let (name, page) = (&row.rule.terms.name, format!("/alerts/{id}"));
    let open = match row.alerting {
        0 => "No alert of it is open.".to_owned(),
        open => format!(
            "{} resolved, and the destination {} is told.",
            view::counted(open, "open alert is", "open alerts are"),
            row.rule.destination.name
        ),
    };
    ok(&Confirm {
        sentences: vec![
            format!("{} is not watched by this rule any more.", row.rule.meter),
            open,
            "What happened before is deleted with the rule.".to_owned(),
        ],
        action: format!("{page}/delete"),
        button: "Delete alert".to_owned(),
        ..Confirm::below(
            visit.shell("alerts", format!("Delete {name}")),
            [("Alerts", "/alerts"), (name.as_str(), page.as_str())],
        )
    })
}

pub async fn delete(
    app: web::Data<App>,
    caller: Caller,
    visit: Visit,
    Id(id): Id,
    _form: Form,
) -> Result<HttpResponse> {
    let workspace_id = caller.workspace_id;
    let delete = move |conn: &mut Conn| rules::delete(conn, workspace_id, &id, Timestamp::now());
    app.store.write("alerts::delete", delete).await?;
    app.wake.notify();
    Ok(visit.go("/alerts", "The alert is deleted."))
}
