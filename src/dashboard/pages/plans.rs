//! `/plans`: limits on meters per period, in versions; who has which; what an edit would mean.

use actix_web::{HttpResponse, web};
use askama::Template;

use crate::app::App;
use crate::auth::Caller;
use crate::dashboard::ask;
use crate::dashboard::confirm::{COUNTED_MAX, Confirm};
use crate::dashboard::foot::{Cell, Foot, Portion};
use crate::dashboard::form::{Complaint, Fields, Form};
use crate::dashboard::pages::subjects::assign;
use crate::dashboard::sorting::{Heading, Orders, Sort};
use crate::dashboard::view::{self, Link};
use crate::dashboard::visit::{Shell, Visit, ok, rejected};
use crate::db::Conn;
use crate::db::identity::Clock;
use crate::entitlements::period::WindowInput;
use crate::entitlements::plan::{Draft, LimitInput, Plan, PlanInput};
use crate::entitlements::progress::{self, Preview};
use crate::entitlements::quota::State;
use crate::entitlements::sql::assignments::{self, Assignment};
use crate::entitlements::sql::listing::{self, Entry};
use crate::entitlements::sql::plans;
use crate::error::Result;
use crate::http::extract::{Id, Params};
use crate::metering::event::{InputQuantity, parse_subject};
use crate::metering::meter::Meter;
use crate::metering::quantity::Quantity;
use crate::metering::time::Timestamp;

const LISTED: i64 = 500;
/// Choices of meters in all rows of a form together.
const LISTED_METERS_MAX: usize = 5_000;

#[derive(Template)]
#[template(path = "plans/list.html")]
struct ListPage {
    shell: Shell,
    plans: Vec<Listed>,
    has_meters: bool,
    sort: Sort,
    foot: Foot,
}

/// What plans can be sorted by: `near` are those with limits that are exceeded, then warned.
static ORDERS: Orders = Orders { columns: &["name", "-subjects", "-near", "-updated"], default: "name" };

impl ListPage {
    fn heading(&self, column: &'static str, words: &'static str) -> Heading {
        self.sort.heading(Link::to("/plans"), (column, words))
    }
}

fn arrange(plans: &mut [Listed], sort: Sort) {
    match sort.column {
        "subjects" => sort.arrange(plans, |listed| listed.subjects),
        "near" => sort.arrange(plans, |listed| (listed.exceeded, listed.warned)),
        "updated" => sort.arrange(plans, |listed| listed.plan.updated_at),
        _ => sort.arrange(plans, |listed| listed.plan.name.clone()),
    }
}

const COLUMNS: [&str; 8] =
    ["id", "plan", "version", "limits", "subjects", "exceeded", "warning", "updated_at"];

fn cells(listed: &Listed) -> Vec<Cell> {
    let plan = &listed.plan;
    vec![
        (&plan.public_id).into(),
        (&plan.name).into(),
        i64::from(plan.version).into(),
        (plan.limits.len() as i64).into(),
        listed.subjects.into(),
        listed.exceeded.into(),
        listed.warned.into(),
        plan.updated_at.into(),
    ]
}

/// A plan and how it stands.
struct Listed {
    plan: Plan,
    subjects: i64,
    exceeded: i64,
    warned: i64,
}

pub async fn list(app: web::Data<App>, caller: Caller, visit: Visit, params: Params) -> Result<HttpResponse> {
    let (workspace_id, now) = (caller.workspace_id, Timestamp::now());
    let sort = Sort::parse(params.get("sort"), &ORDERS)?;
    let read = move |conn: &mut Conn| {
        Ok((
            plans::list(conn, workspace_id, LISTED)?,
            assignments::subjects_of_plans(conn, workspace_id, now)?,
            listing::count_states(conn, workspace_id)?,
        ))
    };
    let (plans, held, states) = app.store.read("plans::list", read).await?;
    let has_meters = !ask::meters(&app, &caller).await?.is_empty();
    let listed = |plan: Plan| {
        let of_plan = states.iter().filter(|count| count.plan_id == plan.id);
        let in_state = |state: State| {
            of_plan.clone().filter(|count| count.state == state.as_str()).map(|count| count.limits).sum()
        };
        let subjects = held.iter().find(|count| count.plan_id == plan.id).map_or(0, |count| count.subjects);
        let (exceeded, warned) = (in_state(State::Exceeded), in_state(State::Warning));
        Listed { plan, subjects, exceeded, warned }
    };
    let mut plans: Vec<Listed> = plans.into_iter().map(listed).collect();
    if !sort.is_default() {
        arrange(&mut plans, sort);
    }
    let portion = Portion::whole(&params)?;
    if let Some(file) = portion.file("plans", &COLUMNS, plans.iter().map(cells))? {
        return Ok(file);
    }
    let call = Link::to("/v1/plans").with("limit", &LISTED.to_string());
    let foot = portion.foot(&Link::to("/plans").with("sort", &sort.word())).with_call(&visit.origin, &call);
    ok(&ListPage { shell: visit.shell("plans", "Plans"), plans, has_meters, sort, foot })
}

#[derive(Template)]
#[template(path = "plans/form.html")]
struct FormPage {
    shell: Shell,
    /// Present when a new version is made.
    plan: Option<Plan>,
    meters: Vec<Meter>,
    fields: Fields,
    complaint: Complaint,
    preview: Option<Preview>,
}

impl FormPage {
    fn value(&self, row: &usize, field: &str) -> &str {
        self.fields.raw(&format!("limit.{row}.{field}"))
    }

    /// Each row has a list of all meters of its own, as long as that does not make the page a book.
    fn lists_meters(&self) -> bool {
        self.fields.rows("limit").len() * self.meters.len() <= LISTED_METERS_MAX
    }

    fn is(&self, row: &usize, field: &str, value: &str) -> bool {
        self.value(row, field).trim() == value
    }
}

const FIELDS: [&str; 3] = ["name", "description", "limit"];

async fn form_page(
    app: &App,
    caller: &Caller,
    visit: &Visit,
    plan: Option<Plan>,
    fields: Fields,
    complaint: Complaint,
) -> Result<FormPage> {
    let meters = ask::meters(app, caller).await?;
    let title = plan.as_ref().map_or_else(|| "New plan".to_owned(), |plan| format!("Edit {}", plan.name));
    Ok(FormPage { shell: visit.shell("plans", title), plan, meters, fields, complaint, preview: None })
}

pub async fn new(app: web::Data<App>, caller: Caller, visit: Visit) -> Result<HttpResponse> {
    let fields =
        Fields::of([("limit.0.period", "month"), ("limit.0.warning_percent", "80"), ("limit.0.limit", "")]);
    ok(&form_page(&app, &caller, &visit, None, fields, Complaint::none()).await?)
}

/// What is said of the windows of a limit. Fields that do not go with the kind are left out, as the form shows them all.
fn window(text: impl Fn(&str) -> String) -> Option<WindowInput> {
    let kind = text("kind");
    let of = |kinds: &[&str], name: &str| {
        if kinds.contains(&kind.as_str()) { text(name) } else { String::new() }
    };
    let (time_zone, anchor) = (of(&["calendar", "anchored"], "time_zone"), of(&["anchored"], "anchor"));
    let week_start = of(&["calendar"], "week_start");
    (!kind.is_empty()).then_some(WindowInput { kind, time_zone, week_start, anchor })
}

/// What the form asks for.
fn input(fields: &Fields) -> Result<PlanInput> {
    let limits = fields.rows("limit").into_iter().map(|row| {
        let text = |name: &str| fields.some(&format!("limit.{row}.{name}"));
        let quantity =
            |name: &str| text(name).map(|text| InputQuantity(Quantity::parse(&text.replace([',', ' '], ""))));
        LimitInput {
            meter: text("meter"),
            period: text("period"),
            window: window(|name| text(name).unwrap_or_default()),
            limit: quantity("limit"),
            warning_percent: quantity("warning_percent"),
            enforcement: text("enforcement"),
            failure_policy: text("failure_policy"),
        }
    });
    Ok(PlanInput {
        name: fields.some("name"),
        description: fields.some("description"),
        limits: Some(limits.collect()),
    })
}

pub async fn create(app: web::Data<App>, caller: Caller, visit: Visit, form: Form) -> Result<HttpResponse> {
    let Form(mut fields) = form;
    if fields.change_rows("limit", "meter") {
        return ok(&form_page(&app, &caller, &visit, None, fields, Complaint::none()).await?);
    }
    match add(&app, &caller, &fields).await {
        Ok(plan) => Ok(visit
            .go(&format!("/plans/{}", plan.public_id), "The plan is there. Assign it to a subject next.")),
        Err(error) => {
            let complaint = Complaint::of(error, &FIELDS)?;
            rejected(&form_page(&app, &caller, &visit, None, fields, complaint).await?)
        }
    }
}

async fn add(app: &App, caller: &Caller, fields: &Fields) -> Result<Plan> {
    let (draft, workspace_id) = (Draft::parse(input(fields)?)?, caller.workspace_id);
    let add = move |conn: &mut Conn| plans::add(conn, workspace_id, &draft, Timestamp::now());
    app.store.write("plans::add", add).await
}

async fn find(app: &App, caller: &Caller, id: &str) -> Result<Plan> {
    let (workspace_id, id) = (caller.workspace_id, id.to_owned());
    app.store.read("plans::get", move |conn| plans::get(conn, workspace_id, &id)).await
}

fn fields_of(plan: &Plan) -> Fields {
    let mut pairs =
        vec![("name".to_owned(), plan.name.clone()), ("description".to_owned(), plan.description.clone())];
    for (row, limit) in plan.limits.iter().enumerate() {
        let mut put = |name: &str, value: String| pairs.push((format!("limit.{row}.{name}"), value));
        put("meter", limit.meter.clone());
        put("period", limit.period.word().into_owned());
        let WindowInput { kind, time_zone, week_start, anchor } =
            limit.period.described().unwrap_or_default();
        put("kind", kind);
        put("time_zone", time_zone);
        put("week_start", week_start);
        put("anchor", anchor);
        put("limit", limit.quantity.to_plain());
        put("warning_percent", limit.warning_percent.to_plain());
        put("enforcement", limit.enforcement.as_str().to_owned());
        put("failure_policy", limit.failure_policy.as_str().to_owned());
    }
    Fields::of(pairs)
}

pub async fn edit(app: web::Data<App>, caller: Caller, visit: Visit, Id(id): Id) -> Result<HttpResponse> {
    let plan = find(&app, &caller, &id).await?;
    let fields = fields_of(&plan);
    ok(&form_page(&app, &caller, &visit, Some(plan), fields, Complaint::none()).await?)
}

/// What became of an edit.
enum Done {
    Seen(Box<Preview>),
    Replaced(Plan),
}

/// Adds or removes a row, previews, or makes the new version.
pub async fn update(
    app: web::Data<App>,
    caller: Caller,
    visit: Visit,
    Id(id): Id,
    form: Form,
) -> Result<HttpResponse> {
    let Form(mut fields) = form;
    let plan = find(&app, &caller, &id).await?;
    if fields.change_rows("limit", "meter") {
        return ok(&form_page(&app, &caller, &visit, Some(plan), fields, Complaint::none()).await?);
    }
    let done = match fields.get("do") {
        "preview" => preview(&app, &caller, &id, &fields).await.map(|seen| Done::Seen(Box::new(seen))),
        _ => replace(&app, &caller, &id, &fields).await.map(Done::Replaced),
    };
    match done {
        Ok(Done::Seen(preview)) => {
            let page = form_page(&app, &caller, &visit, Some(plan), fields, Complaint::none()).await?;
            ok(&FormPage { preview: Some(*preview), ..page })
        }
        Ok(Done::Replaced(plan)) => Ok(visit
            .go(&format!("/plans/{}", plan.public_id), &format!("Version {} is in force.", plan.version))),
        Err(error) => {
            let complaint = Complaint::of(error, &FIELDS)?;
            rejected(&form_page(&app, &caller, &visit, Some(plan), fields, complaint).await?)
        }
    }
}

async fn replace(app: &App, caller: &Caller, id: &str, fields: &Fields) -> Result<Plan> {
    let (draft, workspace_id, id) = (Draft::parse(input(fields)?)?, caller.workspace_id, id.to_owned());
    let update = move |conn: &mut Conn| plans::update(conn, workspace_id, &id, &draft, Clock::Database);
    let plan = app.store.write("plans::update", update).await?;
    app.plans.changed(caller.workspace_id);
    app.wake.notify();
    Ok(plan)
}

async fn preview(app: &App, caller: &Caller, id: &str, fields: &Fields) -> Result<Preview> {
    let (draft, workspace_id, id) = (Draft::parse(input(fields)?)?, caller.workspace_id, id.to_owned());
    let now = Timestamp::now();
    let preview = move |conn: &mut Conn| {
        let current = plans::get_current(conn, workspace_id, &id)?;
        let proposed = plans::resolve(conn, workspace_id, &draft, Some(&current), now)?;
        progress::preview(conn, current, proposed, now)
    };
    app.store.read_snapshot("plans::preview", preview).await
}

#[derive(Template)]
#[template(path = "plans/show.html")]
struct ShowPage {
    shell: Shell,
    plan: Plan,
    assignments: Vec<Assignment>,
    states: Vec<Entry>,
    changes: Vec<Entry>,
    periods: Vec<Entry>,
    fields: Fields,
    complaint: Complaint,
    now: Timestamp,
}

async fn show_page(
    app: &App,
    caller: &Caller,
    visit: &Visit,
    id: &str,
    fields: Fields,
    complaint: Complaint,
) -> Result<ShowPage> {
    let (workspace_id, id, now) = (caller.workspace_id, id.to_owned(), Timestamp::now());
    let read = move |conn: &mut Conn| {
        let plan = plans::get(conn, workspace_id, &id)?;
        let held = assignments::Filter { subject: String::new(), plan_id: id.clone(), include_history: true };
        let filter = listing::Filter { plan_id: id.clone(), ..listing::Filter::default() };
        Ok((
            plan,
            assignments::list(conn, workspace_id, &held, now, 100)?,
            listing::states(conn, workspace_id, &filter, 100)?,
            listing::events(conn, workspace_id, &filter, 20)?,
            listing::periods(conn, workspace_id, &filter, 20)?,
        ))
    };
    let (plan, assignments, states, changes, periods) = app.store.read("plans::show", read).await?;
    let shell = visit.shell("plans", plan.name.clone());
    Ok(ShowPage { shell, plan, assignments, states, changes, periods, fields, complaint, now })
}

pub async fn show(app: web::Data<App>, caller: Caller, visit: Visit, Id(id): Id) -> Result<HttpResponse> {
    ok(&show_page(&app, &caller, &visit, &id, Fields::default(), Complaint::none()).await?)
}

/// Gives the plan to a subject.
pub async fn assign_subject(
    app: web::Data<App>,
    caller: Caller,
    visit: Visit,
    Id(id): Id,
    form: Form,
) -> Result<HttpResponse> {
    let Form(fields) = form;
    let assigned = match parse_subject(fields.get("subject")) {
        Ok(subject) => assign(&app, &caller, subject, &id, fields.get("effective_at")).await,
        Err(error) => Err(error),
    };
    match assigned {
        Ok(done) => Ok(visit.go(&format!("/plans/{id}"), &done)),
        Err(error) => {
            let complaint = Complaint::of(error, &["subject", "effective_at"])?;
            rejected(&show_page(&app, &caller, &visit, &id, fields, complaint).await?)
        }
    }
}

/// Who has a version of a plan, and what goes with it.
async fn delete_page(app: &App, visit: &Visit, plan: &Plan, complaint: Complaint) -> Result<Confirm> {
    let (plan_id, now) = (plan.id, Timestamp::now());
    let count = move |conn: &mut Conn| assignments::count_subjects(conn, plan_id, now, COUNTED_MAX + 1);
    let subjects = app.store.read("assignments::count_subjects", count).await?;
    let (name, version) = (&plan.name, plan.version);
    let limits = view::counted(plan.limits.len(), "limit", "limits");
    let (sentence, button) = match subjects {
        0 => (
            format!(
                "No subject has {name} v{version}. Its {limits} are deleted, with the periods and changes of subjects \
                 that had it."
            ),
            "Delete plan",
        ),
        held => (
            format!(
                "{} {name} v{version}, or will have it: it cannot be deleted before they have another plan, or none.",
                view::counted_to(COUNTED_MAX, held, "subject has", "subjects have")
            ),
            "",
        ),
    };
    let page = format!("/plans/{}", plan.public_id);
    Ok(Confirm {
        sentences: vec![sentence],
        action: format!("{page}/delete"),
        button: button.to_owned(),
        complaint,
        ..Confirm::below(
            visit.shell("plans", format!("Delete {name}")),
            [("Plans", "/plans"), (name.as_str(), page.as_str())],
        )
    })
}

pub async fn confirm_delete(
    app: web::Data<App>,
    caller: Caller,
    visit: Visit,
    Id(id): Id,
) -> Result<HttpResponse> {
    let plan = find(&app, &caller, &id).await?;
    ok(&delete_page(&app, &visit, &plan, Complaint::none()).await?)
}

pub async fn delete(
    app: web::Data<App>,
    caller: Caller,
    visit: Visit,
    Id(id): Id,
    _form: Form,
) -> Result<HttpResponse> {
    let plan = find(&app, &caller, &id).await?;
    let workspace_id = caller.workspace_id;
    let delete = move |conn: &mut Conn| plans::delete(conn, workspace_id, &id, Clock::Database);
    match app.store.write("plans::delete", delete).await {
        Ok(()) => {
            app.plans.changed(caller.workspace_id);
            Ok(visit.go("/plans", &format!("The plan {} is deleted.", plan.name)))
        }
        Err(error) => rejected(&delete_page(&app, &visit, &plan, Complaint::of(error, &[])?).await?),
    }
}
