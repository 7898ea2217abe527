//! `/subjects`: the customers of the workspace, and everything about one of them.

use std::collections::HashMap;
use std::sync::Arc;

use actix_web::http::header;
use actix_web::{HttpResponse, web};
use askama::Template;

use crate::app::App;
use crate::auth::Caller;
use crate::dashboard::ask;
use crate::dashboard::chart::{self, Chart, Kind, Series, Svg};
use crate::dashboard::confirm::Confirm;
use crate::dashboard::foot::{Cell, Foot, Portion};
use crate::dashboard::form::{Complaint, Fields, Form};
use crate::dashboard::pace::Pace;
use crate::dashboard::sorting::{Heading, Orders, Sort};
use crate::dashboard::view::{self, Link, segment};
use crate::dashboard::visit::{Shell, Visit, ok, rejected};
use crate::db::identity::Clock;
use crate::db::{Conn, DbError};
use crate::entitlements::assignment::{AssignmentPeriod, effective, not_before};
use crate::entitlements::plan::{Enforcement, Plan};
use crate::entitlements::progress::{self, Item};
use crate::entitlements::quota::State;
use crate::entitlements::sql::assignments::{self, Assignment, Wish};
use crate::entitlements::sql::listing::{self, Entry, SubjectPlan};
use crate::entitlements::sql::plans;
use crate::error::{Error, Result};
use crate::http::extract::{Id, Params, decode_cursor, encode_cursor, parse_time};
use crate::metering::event::parse_subject;
use crate::metering::quantity::Quantity;
use crate::metering::stored::StoredEvent;
use crate::metering::time::{BucketSize, DAY, Timestamp};
use crate::usage::aggregate::Known;
use crate::usage::query::Query;
use crate::usage::subjects::{self, SubjectPosition, SubjectStats};

const LISTED: usize = 50;
/// Of one subject.
const EVENTS_LISTED: i64 = 25;
const CHANGES_LISTED: i64 = 10;
const PERIODS_LISTED: i64 = 12;
const ASSIGNMENTS_LISTED: usize = 10;
/// What a page of subjects can be sorted by. Which subjects it holds is decided by their last event, whatever its order.
static ORDERS: Orders = Orders { columns: &["subject", "-events", "-meters", "-last"], default: "-last" };
/// One in force, and what is planned.
const ASSIGNMENTS_ENDED: i64 = 10;

#[derive(Template)]
#[template(path = "subjects/list.html")]
struct ListPage {
    shell: Shell,
    subjects: Vec<SubjectStats>,
    /// By subject.
    plans: HashMap<String, SubjectPlan>,
    /// Names that begin with what was searched for.
    matches: Vec<String>,
    wanted: String,
    next: Option<String>,
    sort: Sort,
    /// As in the address: after which subject the page begins.
    cursor: String,
    portion: Portion,
    foot: Foot,
}

impl ListPage {
    fn heading(&self, column: &'static str, words: &'static str) -> Heading {
        self.sort.heading(self.portion.on(view::link("/subjects", "cursor", &self.cursor)), (column, words))
    }

    fn plan_of(&self, row: &SubjectStats) -> Option<&SubjectPlan> {
        self.plans.get(&row.subject)
    }

    /// Whether there are subjects on other pages.
    fn is_part(&self) -> bool {
        self.next.is_some() || !self.cursor.is_empty()
    }
}

fn arrange(rows: &mut [SubjectStats], sort: Sort) {
    match sort.column {
        "subject" => sort.arrange(rows, |row| row.subject.clone()),
        "events" => sort.arrange(rows, |row| row.usage_events),
        "meters" => sort.arrange(rows, |row| row.meters),
        _ => sort.arrange(rows, |row| row.last_event_at),
    }
}

pub async fn list(app: web::Data<App>, caller: Caller, visit: Visit, params: Params) -> Result<HttpResponse> {
    let (workspace_id, wanted) = (caller.workspace_id, params.get("q").trim().to_owned());
    let (sort, cursor) = (Sort::parse(params.get("sort"), &ORDERS)?, params.get("cursor").to_owned());
    let portion = Portion::parse(&params, LISTED)?;
    if !wanted.is_empty() {
        let prefix = wanted.clone();
        let find = move |conn: &mut Conn| subjects::with_prefix(conn, workspace_id, &prefix, LISTED as i64);
        let matches = app.store.read("subjects::with_prefix", find).await?;
        if matches.len() == 1 {
            let target = format!("/subjects/{}", segment(&matches[0]));
            return Ok(HttpResponse::SeeOther().insert_header((header::LOCATION, target)).finish());
        }
        let shell = visit.shell("subjects", "Subjects");
        let (subjects, plans, foot) = (Vec::new(), HashMap::new(), Foot::default());
        let next = None;
        return ok(&ListPage { shell, subjects, plans, matches, wanted, next, sort, cursor, portion, foot });
    }
    let after = decode_cursor::<(i64, String)>(&cursor)?
        .map(|(at, subject)| SubjectPosition { last_event_at: Timestamp(at), subject });
    let most = portion.rows() as i64 + 1;
    let read = move |conn: &mut Conn| subjects::list(conn, workspace_id, after.as_ref(), most);
    let mut rows = app.store.view("subjects::list", true, read).await?;
    let has_more = rows.len() > portion.rows();
    rows.truncate(portion.rows());
    let next = match rows.last().filter(|_| has_more) {
        Some(last) => {
            let cursor = encode_cursor(&(last.last_event_at, last.subject.clone()))?;
            Some(
                portion.on(view::link("/subjects", "cursor", &cursor)).with("sort", &sort.word()).to_string(),
            )
        }
        None => None,
    };
    if !sort.is_default() {
        arrange(&mut rows, sort);
    }
    let (names, now) =
        (rows.iter().map(|row| row.subject.clone()).collect::<Vec<String>>(), Timestamp::now());
    let read = move |conn: &mut Conn| listing::of_subjects(conn, workspace_id, &names, now);
    let plans = app.store.read("entitlements::of_subjects", read).await?;
    if let Some(file) =
        portion.file("subjects", &COLUMNS, rows.iter().map(|row| cells(row, plans.get(&row.subject))))?
    {
        return Ok(file);
    }
    let foot = portion.foot(&view::link("/subjects", "cursor", &cursor).with("sort", &sort.word()));
    let call = Link::to("/v1/subjects").with("limit", &portion.rows().to_string());
    let foot = foot.with_call(&visit.origin, &call);
    ok(&ListPage {
        shell: visit.shell("subjects", "Subjects"),
        subjects: rows,
        plans,
        matches: Vec::new(),
        wanted,
        next,
        sort,
        cursor,
        portion,
        foot,
    })
}

const COLUMNS: [&str; 6] = ["subject", "events", "meters", "last_event_at", "plan", "state"];

fn cells(row: &SubjectStats, plan: Option<&SubjectPlan>) -> Vec<Cell> {
    vec![
        (&row.subject).into(),
        row.usage_events.into(),
        row.meters.into(),
        Timestamp(row.last_event_at).into(),
        plan.and_then(|plan| plan.plan_name.as_ref()).into(),
        plan.and_then(SubjectPlan::state).map(State::as_str).into(),
    ]
}

/// One limit of the plan, as a bar.
struct LimitRow {
    item: Item,
    bar: Svg,
    pace: Pace,
    resets: Timestamp,
}

impl LimitRow {
    fn of(item: Item, now: Timestamp) -> LimitRow {
        let pace =
            Pace::of(&item.measure.current, &item.limit.quantity, item.meter.aggregation, item.window, now);
        let bar = chart::quota(
            item.measure.percent.to_f64(),
            item.limit.warning_percent.to_f64(),
            Some(pace.elapsed_percent),
            item.measure.state.as_str(),
        );
        LimitRow { resets: item.reset_at, item, bar, pace }
    }
}

#[derive(Template)]
#[template(path = "subjects/show.html")]
struct ShowPage {
    shell: Shell,
    subject: String,
    plan: Option<Arc<Plan>>,
    limits: Vec<LimitRow>,
    chart: Option<Chart>,
    events: Vec<StoredEvent>,
    /// Of the recent events: meter, number, sum.
    activity: Vec<(String, usize)>,
    changes: Vec<Entry>,
    periods: Vec<Entry>,
    assignments: Vec<Assignment>,
    now: Timestamp,
}

pub async fn show(
    app: web::Data<App>,
    caller: Caller,
    visit: Visit,
    Id(subject): Id,
) -> Result<HttpResponse> {
    let subject =
        parse_subject(&subject).map_err(|_| Error::not_found(format!("subject {subject:?}")))?.to_owned();
    let (workspace_id, name, now) = (caller.workspace_id, subject.clone(), Timestamp::now());
    let find = move |conn: &mut Conn| assignments::of_subject(conn, workspace_id, &name);
    let found = app.store.read("assignments::of_subject", find).await?;
    let (subject_id, assignments) = found.ok_or_else(|| Error::not_found(format!("subject {subject:?}")))?;
    let history: Vec<AssignmentPeriod> = assignments.iter().filter_map(Assignment::period).collect();
    let at = not_before(&history, now);
    let held = match effective(&history, at) {
        Some(span) => app.plans.plan(span.plan_id).await?.map(|plan| (plan, span.clone())),
        None => None,
    };
    let plan = held.as_ref().map(|(plan, _)| plan.clone());
    let read = move |conn: &mut Conn| {
        let items = match &held {
            Some((plan, span)) => progress::of_plan(conn, subject_id, span, plan, at)?,
            None => Vec::new(),
        };
        let events = subjects::newest_events_of(conn, subject_id, EVENTS_LISTED)?;
        Ok((items, events, listing::of_subject(conn, subject_id, CHANGES_LISTED, PERIODS_LISTED)?))
    };
    let (items, events, (changes, periods)) = app.store.read("subjects::show", read).await?;
    let limits: Vec<LimitRow> = items.into_iter().map(|item| LimitRow::of(item, now)).collect();
    let chart = picture(&app, &caller, (subject.as_str(), subject_id), &limits, &events).await?;
    ok(&ShowPage {
        shell: visit.shell("subjects", subject.clone()),
        activity: activity(&events),
        subject,
        plan,
        limits,
        chart,
        events,
        changes,
        periods,
        assignments: changed_last(assignments),
        now,
    })
}

/// The first of the assignments of a subject, the latest changed before others.
fn changed_last(mut assignments: Vec<Assignment>) -> Vec<Assignment> {
    assignments.sort_by_key(|one| std::cmp::Reverse((one.updated_at, one.starts_at)));
    assignments.truncate(ASSIGNMENTS_LISTED);
    assignments
}

/// How many of these events each meter has. Their quantities are not added up: not every meter's may be.
fn activity(events: &[StoredEvent]) -> Vec<(String, usize)> {
    let mut counts: Vec<(String, usize)> = Vec::new();
    for event in events {
        match counts.iter_mut().find(|(meter, _)| *meter == event.meter) {
            Some((_, count)) => *count += 1,
            None => counts.push((event.meter.clone(), 1)),
        }
    }
    counts.sort_by_key(|(_, count)| std::cmp::Reverse(*count));
    counts
}

/// The period so far against the first limit, or the last 28 days of the meter that was used last.
async fn picture(
    app: &App,
    caller: &Caller,
    (subject, subject_id): (&str, i64),
    limits: &[LimitRow],
    events: &[StoredEvent],
) -> Result<Option<Chart>> {
    let limit = limits.iter().find(|row| ask::is_additive(row.item.meter.aggregation));
    let (home, now) = (ask::home(app, caller).await?, Timestamp::now());
    let (meter, window) = match (limit, events.first()) {
        (Some(row), _) => ((*row.item.meter).clone(), row.item.window),
        (None, Some(event)) => (ask::meter(app, caller, &event.meter).await?, ask::last_days(28, now, &home)),
        (None, None) => return Ok(None),
    };
    let size = if window.length() <= 3 * DAY { BucketSize::Hour } else { BucketSize::Day };
    let calendar = ask::calendar(size, &home);
    // a period of years has more days than a picture
    let Ok(whole) = ask::whole(meter.clone(), window, &calendar) else { return Ok(None) };
    let query = Query { subject: Some(subject.to_owned()), ..whole };
    let starts = ask::axis(window, &calendar);
    let known = Known { subject_id: Some(subject_id), ..Known::default() };
    let rows = ask::buckets_knowing(app, query, starts.len(), known).await?;
    let (mut series, _) = ask::series(&rows, &starts, meter.aggregation, false, 1);
    if series.is_empty() && ask::is_additive(meter.aggregation) {
        // a period that nothing was used in yet is a line on the ground
        let values = vec![Some(Quantity::zero()); starts.len()];
        series.push(Series::new("Total", values));
    }
    if let (Some(_), Some(series)) = (limit, series.first_mut()) {
        let mut sum = Quantity::zero();
        for (value, start) in series.values.iter_mut().zip(&starts) {
            sum += value.as_ref().unwrap_or(&Quantity::zero());
            *value = (*start <= now).then(|| sum.clone());
        }
        series.name = "So far".to_owned();
        series.narrow = None;
    }
    let link = Link::to("/events").with("meter", &meter.name).with("subject", subject);
    Ok(Some(Chart {
        id: "period".into(),
        title: match limit {
            Some(row) => format!("{} this {}, against the limit", meter.name, row.item.limit.period.as_str()),
            None => format!("{} of {}, last 28 days", meter.aggregation.as_str(), meter.name),
        },
        unit: meter.unit.clone(),
        zone: calendar.zone.clone(),
        kind: if limit.is_some() { Kind::Area } else { Kind::Bar },
        buckets: ask::chart_buckets(window, &calendar, &link),
        series,
        compare: None,
        limits: limit.map(|row| (row.item.limit.quantity.clone(), "Limit".to_owned())).into_iter().collect(),
        is_running: limit.is_none(),
        adds_up: limit.is_none() && ask::is_additive(meter.aggregation),
        pruned: ask::pruned(&meter, &starts),
    }))
}

#[derive(Template)]
#[template(path = "subjects/plan.html")]
struct PlanPage {
    shell: Shell,
    subject: String,
    plans: Vec<Plan>,
    current: Option<Assignment>,
    fields: Fields,
    complaint: Complaint,
}

async fn plan_page(
    app: &App,
    caller: &Caller,
    visit: &Visit,
    subject: &str,
    fields: Fields,
    complaint: Complaint,
) -> Result<PlanPage> {
    let (workspace_id, name, now) = (caller.workspace_id, subject.to_owned(), Timestamp::now());
    let read = move |conn: &mut Conn| {
        let held =
            assignments::Filter { subject: name.clone(), plan_id: String::new(), include_history: false };
        Ok((plans::list(conn, workspace_id, 500)?, assignments::list(conn, workspace_id, &held, now, 1)?))
    };
    let (plans, mut current) = app.store.read("plans::list", read).await?;
    let shell = visit.shell("subjects", format!("Plan of {subject}"));
    Ok(PlanPage { shell, subject: subject.to_owned(), plans, current: current.pop(), fields, complaint })
}

pub async fn plan(
    app: web::Data<App>,
    caller: Caller,
    visit: Visit,
    Id(subject): Id,
) -> Result<HttpResponse> {
    let subject = parse_subject(&subject)?.to_owned();
    ok(&plan_page(&app, &caller, &visit, &subject, Fields::default(), Complaint::none()).await?)
}

/// What ends with the plan of a subject.
pub async fn confirm_unassign(
    app: web::Data<App>,
    caller: Caller,
    visit: Visit,
    Id(subject): Id,
) -> Result<HttpResponse> {
    let subject = parse_subject(&subject)?.to_owned();
    let (workspace_id, name, now) = (caller.workspace_id, subject.clone(), Timestamp::now());
    let read = move |conn: &mut Conn| {
        let held =
            assignments::Filter { subject: name.clone(), plan_id: String::new(), include_history: false };
        let held = assignments::list(conn, workspace_id, &held, now, ASSIGNMENTS_ENDED)?;
        let with_plan = |one: Assignment| Ok((plans::get(conn, workspace_id, &one.plan_public_id)?, one));
        held.into_iter().map(with_plan).collect::<Result<Vec<_>, DbError>>()
    };
    let held = app.store.read("assignments::ending", read).await?;
    if held.is_empty() {
        return Err(Error::not_found(format!("assignment of subject {subject:?}")));
    }
    let shell = visit.shell("subjects", format!("Remove the plan of {subject}"));
    let mut sentences: Vec<String> = held.iter().map(|(plan, one)| ending(&shell, plan, one, now)).collect();
    sentences.push(
        "Without a plan nothing is refused and nobody is warned: consumption is counted without a limit, and checks \
         answer no. Events, decisions and periods so far stay."
            .to_owned(),
    );
    let page = format!("/subjects/{}", segment(&subject));
    let list = format!("{page}/plan");
    ok(&Confirm {
        sentences,
        action: list.clone(),
        fields: vec![("do", "unassign".to_owned())],
        button: "Remove plan".to_owned(),
        ..Confirm::below(
            shell,
            [("Subjects", "/subjects"), (subject.as_str(), page.as_str()), ("Plan", list.as_str())],
        )
    })
}

/// One assignment that would end, in words.
fn ending(shell: &Shell, plan: &Plan, held: &Assignment, now: Timestamp) -> String {
    let (subject, name, version) = (&held.subject, &plan.name, plan.version);
    let from = shell.when(held.starts_at).words();
    if held.starts_at > now {
        return format!("{name} v{version}, which is planned from {from}, is cancelled.");
    }
    let hard = plan.limits.iter().filter(|limit| limit.enforcement == Enforcement::Hard).count();
    let limits = view::counted(plan.limits.len(), "limit", "limits");
    format!("{subject} has {name} v{version} since {from}, with {limits}, {hard} of them hard.")
}

/// Gives a plan to a subject, now or from a time on, or takes it away.
pub async fn change_plan(
    app: web::Data<App>,
    caller: Caller,
    visit: Visit,
    Id(subject): Id,
    form: Form,
) -> Result<HttpResponse> {
    let Form(fields) = form;
    let subject = parse_subject(&subject)?.to_owned();
    let changed = match fields.get("do") {
        "unassign" => unassign(&app, &caller, &subject).await,
        _ => assign(&app, &caller, &subject, fields.get("plan_id"), fields.get("effective_at")).await,
    };
    match changed {
        Ok(done) => Ok(visit.go(&format!("/subjects/{}", segment(&subject)), &done)),
        Err(error) => {
            let complaint = Complaint::of(error, &["plan_id", "effective_at"])?;
            rejected(&plan_page(&app, &caller, &visit, &subject, fields, complaint).await?)
        }
    }
}

/// Answers what was done.
pub async fn assign(
    app: &App,
    caller: &Caller,
    subject: &str,
    plan_id: &str,
    effective_at: &str,
) -> Result<String> {
    if plan_id.is_empty() {
        return Err(Error::invalid("choose a plan"));
    }
    let at = match effective_at.len() {
        0 => None,
        16 => parse_time(&format!("{effective_at}:00Z"), "effective_at", "invalid_effective_at")?,
        _ => parse_time(effective_at, "effective_at", "invalid_effective_at")?,
    };
    let (workspace_id, name) = (caller.workspace_id, subject.to_owned());
    let wish = Wish { plan_id: plan_id.to_owned(), effective_at: at, zone: None };
    let work = move |conn: &mut Conn| assignments::assign(conn, workspace_id, &name, &wish, Clock::Database);
    let assignment = app.store.write("assignments::assign", work).await?;
    app.plans.forget_assignment(workspace_id, subject);
    app.wake.notify();
    let from = if at.is_some() {
        format!(" from {} UTC", view::minute(assignment.starts_at))
    } else {
        String::new()
    };
    Ok(format!("{subject} has {} v{}{from}.", assignment.plan_name, assignment.plan_version))
}

async fn unassign(app: &App, caller: &Caller, subject: &str) -> Result<String> {
    let (workspace_id, name) = (caller.workspace_id, subject.to_owned());
    let work = move |conn: &mut Conn| assignments::unassign(conn, workspace_id, &name, Clock::Database);
    app.store.write("assignments::unassign", work).await?;
    app.plans.forget_assignment(workspace_id, subject);
    app.wake.notify();
    Ok(format!("{subject} has no plan any more."))
}
