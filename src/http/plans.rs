//! `/v1/plans` (rest.md 12.10): plans and their versions, assignments, preview, progress.

use actix_web::{HttpResponse, web};
use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

use crate::app::App;
use crate::auth::Caller;
use crate::db::Conn;
use crate::db::identity::Clock;
use crate::entitlements::assignment::Status;
use crate::entitlements::period::{Period, WindowInput};
use crate::entitlements::plan::{Draft, Enforcement, FailurePolicy, Limit, Plan, PlanInput};
use crate::entitlements::progress::{self, Change, Item, Preview};
use crate::entitlements::quota::State;
use crate::entitlements::sql::assignments::{self, Assignment, Filter, Wish};
use crate::entitlements::sql::plans;
use crate::error::{Error, Result};
use crate::http::body::Json;
use crate::http::extract::{Id, Params, parse_time};
use crate::http::openapi::Doc;
use crate::http::respond::{self, Page};
use crate::metering::calendar::Zone;
use crate::metering::event::parse_subject;
use crate::metering::meter::Aggregation;
use crate::metering::quantity::Quantity;
use crate::metering::time::Timestamp;

/// A plan on the wire; fields in contract order.
#[derive(Serialize, ToSchema)]
#[schema(as = Plan)]
pub struct PlanView {
    id: String,
    name: String,
    description: String,
    version: i32,
    #[serde(skip_serializing_if = "Option::is_none")]
    parent_plan_id: Option<String>,
    is_current: bool,
    limits: Vec<LimitView>,
    created_at: Timestamp,
    updated_at: Timestamp,
}

#[derive(Serialize, ToSchema)]
#[schema(as = PlanLimit)]
pub struct LimitView {
    id: String,
    meter: String,
    period: Period,
    #[serde(skip_serializing_if = "Option::is_none")]
    window: Option<WindowInput>,
    limit: Quantity,
    warning_percent: Quantity,
    enforcement: Enforcement,
    failure_policy: FailurePolicy,
    created_at: Timestamp,
    updated_at: Timestamp,
}

impl From<Limit> for LimitView {
    fn from(limit: Limit) -> Self {
        LimitView {
            id: limit.public_id,
            meter: limit.meter,
            window: limit.period.described(),
            period: limit.period,
            limit: limit.quantity,
            warning_percent: limit.warning_percent,
            enforcement: limit.enforcement,
            failure_policy: limit.failure_policy,
            created_at: limit.created_at,
            updated_at: limit.created_at,
        }
    }
}

impl From<Plan> for PlanView {
    fn from(plan: Plan) -> Self {
        PlanView {
            id: plan.public_id,
            name: plan.name,
            description: plan.description,
            version: plan.version,
            parent_plan_id: plan.parent_id,
            is_current: plan.is_current,
            limits: plan.limits.into_iter().map(LimitView::from).collect(),
            created_at: plan.created_at,
            updated_at: plan.updated_at,
        }
    }
}

/// Every meter must be open to the caller; naming none is naming a blank one.
fn may_use_all<'a>(caller: &Caller, meters: impl Iterator<Item = &'a str>) -> Result<()> {
    let mut meters = meters.peekable();
    if meters.peek().is_none() {
        return caller.ensure_meter_allowed("");
    }
    meters.try_for_each(|meter| caller.ensure_meter_allowed(meter))
}

fn meters_of(plan: &Plan) -> impl Iterator<Item = &str> {
    plan.limits.iter().map(|limit| limit.meter.as_str())
}

pub fn describe_create() -> Doc {
    Doc::new("plans", "Define a plan")
        .body::<PlanInput>()
        .answer::<PlanView>(201, "Version 1 of the plan.")
        .errors(&[404, 409])
}

pub async fn create(app: web::Data<App>, caller: Caller, body: Json<PlanInput>) -> Result<HttpResponse> {
    let (Json(input), workspace_id) = (body, caller.workspace_id);
    may_use_all(&caller, input.meters())?;
    let draft = Draft::parse(input)?;
    let add = move |conn: &mut Conn| plans::add(conn, workspace_id, &draft, Timestamp::now());
    respond::created(&PlanView::from(app.store.write("plans::add", add).await?))
}

pub fn describe_list() -> Doc {
    Doc::new("plans", "List plans").limit(100, 1000).page::<PlanView>("Current versions, by name.")
}

pub async fn list(app: web::Data<App>, caller: Caller, params: Params) -> Result<HttpResponse> {
    caller.ensure_meter_allowed("")?;
    let (limit, workspace_id) = (params.limit(100, 1000)?, caller.workspace_id);
    let list = move |conn: &mut Conn| plans::list(conn, workspace_id, limit);
    let items = app.store.read("plans::list", list).await?.into_iter().map(PlanView::from).collect();
    respond::ok(&Page { items, next_cursor: None })
}

async fn find(app: &App, caller: &Caller, id: &str) -> Result<Plan> {
    let (workspace_id, id) = (caller.workspace_id, id.to_owned());
    let plan = app.store.read("plans::get", move |conn| plans::get(conn, workspace_id, &id)).await?;
    may_use_all(caller, meters_of(&plan))?;
    Ok(plan)
}

pub fn describe_get() -> Doc {
    Doc::new("plans", "Read a plan version").answer::<PlanView>(200, "The plan.")
}

pub async fn get(app: web::Data<App>, caller: Caller, Id(id): Id) -> Result<HttpResponse> {
    respond::ok(&PlanView::from(find(&app, &caller, &id).await?))
}

pub fn describe_update() -> Doc {
    Doc::new("plans", "Make the next version of a plan")
        .body::<PlanInput>()
        .answer::<PlanView>(200, "The new version; its subjects moved along.")
        .errors(&[409])
}

pub async fn update(
    app: web::Data<App>,
    caller: Caller,
    Id(id): Id,
    body: Json<PlanInput>,
) -> Result<HttpResponse> {
    let (Json(input), workspace_id) = (body, caller.workspace_id);
    find(&app, &caller, &id).await?;
    may_use_all(&caller, input.meters())?;
    let draft = Draft::parse(input)?;
    let update = move |conn: &mut Conn| plans::update(conn, workspace_id, &id, &draft, Clock::Database);
    let plan = app.store.write("plans::update", update).await?;
    app.plans.changed(workspace_id);
    app.wake.notify();
    respond::ok(&PlanView::from(plan))
}

pub fn describe_delete() -> Doc {
    Doc::new("plans", "Delete a plan version nobody has").empty(204, "Deleted.").errors(&[409])
}

pub async fn delete(app: web::Data<App>, caller: Caller, Id(id): Id) -> Result<HttpResponse> {
    find(&app, &caller, &id).await?;
    let workspace_id = caller.workspace_id;
    let delete = move |conn: &mut Conn| plans::delete(conn, workspace_id, &id, Clock::Database);
    app.store.write("plans::delete", delete).await?;
    app.plans.changed(workspace_id);
    Ok(respond::no_content())
}

/// What a changed plan would mean for its subjects.
#[derive(Serialize, ToSchema)]
#[schema(as = PlanPreview)]
pub struct PreviewView {
    current: PlanView,
    proposed: PlanView,
    summary: SummaryView,
    subjects: Vec<ImpactView>,
}

#[derive(Serialize, ToSchema)]
#[schema(as = PlanPreviewSummary)]
pub struct SummaryView {
    subjects: usize,
    ok: usize,
    warning: usize,
    exceeded: usize,
    removed_limits: usize,
}

#[derive(Serialize, ToSchema)]
#[schema(as = PlanPreviewSubject)]
pub struct ImpactView {
    subject: String,
    assignment_id: String,
    assignment_status: Status,
    current_plan_id: String,
    current_plan_version: i32,
    proposed_plan_id: String,
    proposed_plan_version: i32,
    items: Vec<ChangeView>,
}

#[derive(Serialize, ToSchema)]
#[schema(as = PlanPreviewItem)]
pub struct ChangeView {
    meter: String,
    period: Period,
    #[serde(skip_serializing_if = "Option::is_none")]
    window: Option<WindowInput>,
    current: Quantity,
    current_limit: Quantity,
    proposed_limit: Quantity,
    current_state: State,
    proposed_state: State,
    remaining: Quantity,
    overage: Quantity,
    percent: Quantity,
    warning_percent: Quantity,
    from: Timestamp,
    to: Timestamp,
    period_reset_at: Timestamp,
    unit: String,
    aggregation: Aggregation,
    event_count: i64,
    removed: bool,
    existing_limit_found: bool,
}

impl From<Change> for ChangeView {
    fn from(change: Change) -> Self {
        let Change { item, existing, removed } = change;
        let zero = Quantity::zero;
        let existing_limit_found = existing.is_some();
        let (current_limit, current_state) =
            existing.map_or_else(|| (zero(), State::NotInPlan), |(limit, state)| (limit.quantity, state));
        ChangeView {
            meter: item.limit.meter,
            window: item.limit.period.described(),
            period: item.limit.period,
            current: item.measure.current,
            current_limit,
            proposed_limit: if removed { zero() } else { item.limit.quantity },
            current_state,
            proposed_state: if removed { State::NotInPlan } else { item.measure.state },
            remaining: item.measure.remaining,
            overage: item.measure.overage,
            percent: item.measure.percent,
            warning_percent: if removed { zero() } else { item.limit.warning_percent },
            from: item.window.from,
            to: item.window.to,
            period_reset_at: item.reset_at,
            unit: item.meter.unit.clone(),
            aggregation: item.meter.aggregation,
            event_count: item.event_count,
            removed,
            existing_limit_found,
        }
    }
}

impl PreviewView {
    fn of(preview: Preview, now: Timestamp) -> Self {
        let (current, proposed) = (&preview.current, &preview.proposed);
        let subjects = preview.impacts.into_iter().map(|impact| ImpactView {
            assignment_status: impact.assignment.status(now),
            subject: impact.assignment.subject,
            assignment_id: impact.assignment.public_id,
            current_plan_id: current.public_id.clone(),
            current_plan_version: current.version,
            proposed_plan_id: proposed.public_id.clone(),
            proposed_plan_version: proposed.version,
            items: impact.changes.into_iter().map(ChangeView::from).collect(),
        });
        let [ok, warning, exceeded] = preview.states;
        let (subjects, removed_limits) = (subjects.collect(), preview.removed_limits);
        let summary = SummaryView { subjects: preview.subjects, ok, warning, exceeded, removed_limits };
        PreviewView { current: preview.current.into(), proposed: preview.proposed.into(), summary, subjects }
    }
}

pub fn describe_preview() -> Doc {
    Doc::new("plans", "What a change would mean")
        .body::<PlanInput>()
        .answer::<PreviewView>(
            200,
            "The impact per subject; nothing is stored. At most 1,000 subjects and 20,000 items are listed, the summary counts all.",
        )
        .errors(&[409])
}

pub async fn preview(
    app: web::Data<App>,
    caller: Caller,
    Id(id): Id,
    body: Json<PlanInput>,
) -> Result<HttpResponse> {
    let (Json(input), workspace_id) = (body, caller.workspace_id);
    find(&app, &caller, &id).await?;
    may_use_all(&caller, input.meters())?;
    let (draft, now) = (Draft::parse(input)?, Timestamp::now());
    let preview = move |conn: &mut Conn| {
        let current = plans::get_current(conn, workspace_id, &id)?;
        let proposed = plans::resolve(conn, workspace_id, &draft, Some(&current), now)?;
        progress::preview(conn, current, proposed, now)
    };
    let preview = app.store.read_snapshot("plans::preview", preview).await?;
    respond::ok(&PreviewView::of(preview, now))
}

/// Which plan a subject has.
#[derive(Serialize, ToSchema)]
#[schema(as = PlanAssignment)]
pub struct AssignmentView {
    id: String,
    subject: String,
    plan_id: String,
    plan_name: String,
    plan_version: i32,
    status: Status,
    active: bool,
    assigned_at: Timestamp,
    period_anchor_at: Timestamp,
    /// Where the subject's days begin; absent for UTC.
    #[serde(skip_serializing_if = "Option::is_none")]
    time_zone: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    unassigned_at: Option<Timestamp>,
    updated_at: Timestamp,
}

impl AssignmentView {
    fn of(assignment: Assignment, now: Timestamp) -> Self {
        let status = assignment.status(now);
        AssignmentView {
            id: assignment.public_id,
            subject: assignment.subject,
            plan_id: assignment.plan_public_id,
            plan_name: assignment.plan_name,
            plan_version: assignment.plan_version,
            status,
            active: status == Status::Active,
            assigned_at: assignment.starts_at,
            period_anchor_at: assignment.anchor,
            time_zone: (!assignment.zone.is_utc()).then(|| assignment.zone.name().to_owned()),
            unassigned_at: assignment.ends_at,
            updated_at: assignment.updated_at,
        }
    }
}

#[derive(Default, Deserialize, ToSchema)]
pub struct AssignInput {
    #[schema(value_type = String, min_length = 1)]
    plan_id: Option<String>,
    #[schema(value_type = Option<Timestamp>)]
    effective_at: Option<String>,
    /// Where the subject's days begin, for limits with a calendar that name no zone.
    time_zone: Option<String>,
}

pub fn describe_assign() -> Doc {
    Doc::new("plans", "Assign a plan to a subject")
        .body::<AssignInput>()
        .answer::<AssignmentView>(200, "The assignment, active or scheduled.")
        .errors(&[409])
}

pub async fn assign(
    app: web::Data<App>,
    caller: Caller,
    Id(subject): Id,
    body: Json<AssignInput>,
) -> Result<HttpResponse> {
    let (Json(input), workspace_id) = (body, caller.workspace_id);
    caller.ensure_meter_allowed("")?;
    let subject = parse_subject(&subject)?.to_owned();
    let plan_id = input.plan_id.unwrap_or_default().trim().to_owned();
    if plan_id.is_empty() {
        return Err(Error::invalid("plan_id is required"));
    }
    let effective_at = input.effective_at.unwrap_or_default();
    let effective_at = parse_time(&effective_at, "effective_at", "invalid_effective_at")?;
    let zone = match input.time_zone.unwrap_or_default().trim() {
        "" => None,
        name => Some(Zone::named(name, "time_zone")?),
    };
    let (name, wish) = (subject.clone(), Wish { plan_id, effective_at, zone });
    let assign =
        move |conn: &mut Conn| assignments::assign(conn, workspace_id, &name, &wish, Clock::Database);
    let assignment = app.store.write("assignments::assign", assign).await?;
    app.plans.forget_assignment(workspace_id, &subject);
    app.wake.notify();
    let now = assignment.updated_at;
    respond::ok(&AssignmentView::of(assignment, now))
}

pub fn describe_unassign() -> Doc {
    Doc::new("plans", "Take the plan from a subject").empty(204, "Ended.")
}

pub async fn unassign(app: web::Data<App>, caller: Caller, Id(subject): Id) -> Result<HttpResponse> {
    caller.ensure_meter_allowed("")?;
    let (subject, workspace_id) = (parse_subject(&subject)?.to_owned(), caller.workspace_id);
    let name = subject.clone();
    let unassign = move |conn: &mut Conn| assignments::unassign(conn, workspace_id, &name, Clock::Database);
    app.store.write("assignments::unassign", unassign).await?;
    app.plans.forget_assignment(workspace_id, &subject);
    app.wake.notify();
    Ok(respond::no_content())
}

pub fn describe_assignments() -> Doc {
    Doc::new("plans", "List assignments")
        .text("subject", "One subject only.")
        .text("plan_id", "One plan version only.")
        .text("include_history", "`true`: ended ones too.")
        .limit(100, 1000)
        .page::<AssignmentView>("The latest changed first.")
}

pub async fn assignments(app: web::Data<App>, caller: Caller, params: Params) -> Result<HttpResponse> {
    caller.ensure_meter_allowed("")?;
    let (now, limit, workspace_id) = (Timestamp::now(), params.limit(100, 1000)?, caller.workspace_id);
    let include_history = params.boolean("include_history", "invalid_include_history")?.unwrap_or(false);
    let filter = Filter {
        subject: crate::usage::query::parse_subject_filter(params.get("subject"))?.unwrap_or_default(),
        plan_id: params.get("plan_id").trim().to_owned(),
        include_history,
    };
    let list = move |conn: &mut Conn| assignments::list(conn, workspace_id, &filter, now, limit);
    let found = app.store.read("assignments::list", list).await?;
    let items = found.into_iter().map(|assignment| AssignmentView::of(assignment, now)).collect();
    respond::ok(&Page { items, next_cursor: None })
}

/// Where a subject stands with its plan.
#[derive(Serialize, ToSchema)]
#[schema(as = SubjectProgress)]
pub struct ProgressView {
    subject: String,
    plan: PlanView,
    items: Vec<ProgressItemView>,
}

#[derive(Serialize, ToSchema)]
#[schema(as = SubjectProgressItem)]
pub struct ProgressItemView {
    meter: String,
    period: Period,
    #[serde(skip_serializing_if = "Option::is_none")]
    window: Option<WindowInput>,
    state: State,
    current: Quantity,
    limit: Quantity,
    remaining: Quantity,
    overage: Quantity,
    percent: Quantity,
    warning_percent: Quantity,
    from: Timestamp,
    to: Timestamp,
    period_reset_at: Timestamp,
    unit: String,
    aggregation: Aggregation,
}

impl From<Item> for ProgressItemView {
    fn from(item: Item) -> Self {
        ProgressItemView {
            meter: item.limit.meter,
            window: item.limit.period.described(),
            period: item.limit.period,
            state: item.measure.state,
            current: item.measure.current,
            limit: item.limit.quantity,
            remaining: item.measure.remaining,
            overage: item.measure.overage,
            percent: item.measure.percent,
            warning_percent: item.limit.warning_percent,
            from: item.window.from,
            to: item.window.to,
            period_reset_at: item.reset_at,
            unit: item.meter.unit.clone(),
            aggregation: item.meter.aggregation,
        }
    }
}

pub fn describe_progress() -> Doc {
    Doc::new("plans", "Where a subject stands")
        .answer::<ProgressView>(200, "The plan in force and one item per limit.")
}

pub async fn progress(app: web::Data<App>, caller: Caller, Id(subject): Id) -> Result<HttpResponse> {
    caller.ensure_meter_allowed("")?;
    let (subject, workspace_id) = (parse_subject(&subject)?.to_owned(), caller.workspace_id);
    let name = subject.clone();
    let read = move |conn: &mut Conn| progress::of_subject(conn, workspace_id, &name, Timestamp::now());
    let found = app.store.read("progress::of_subject", read).await?;
    let (plan, items) =
        found.ok_or_else(|| Error::not_found(format!("active assignment of subject {subject:?}")))?;
    let items = items.into_iter().map(ProgressItemView::from).collect();
    respond::ok(&ProgressView { subject, plan: plan.into(), items })
}
