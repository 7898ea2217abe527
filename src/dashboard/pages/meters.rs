//! `/meters`: what is measured. List, one meter, the forms that make and change it, deletion.

use std::collections::HashMap;

use actix_web::{HttpResponse, web};
use askama::Template;
use futures_util::future::try_join;

use crate::alerts::sql::rules;
use crate::app::App;
use crate::auth::Caller;
use crate::chance;
use crate::dashboard::ask;
use crate::dashboard::chart::{Chart, Kind, Svg, share_bar};
use crate::dashboard::confirm::{COUNTED_MAX, Confirm};
use crate::dashboard::form::{Complaint, Fields, Form};
use crate::dashboard::snippets;
use crate::dashboard::view::{self, Link};
use crate::dashboard::visit::{Shell, Visit, ok, rejected};
use crate::db::Conn;
use crate::entitlements::sql::plans::{self, Limiting};
use crate::error::Result;
use crate::http::extract::{Id, Params};
use crate::metering::calendar::Calendar;
use crate::metering::event::InputQuantity;
use crate::metering::event::StoredEvent;
use crate::metering::expression::Expression;
use crate::metering::meter::{DimensionInput, Meter, MeterInput, QuantityIs};
use crate::metering::quantity::Quantity;
use crate::metering::time::{BucketSize, Timestamp, Window};
use crate::usage::query::{BreakdownItem, GroupField, Query};
use crate::usage::subjects::MeterStats;
use crate::usage::{events as event_list, subjects};

const LISTED: usize = 100;

/// What each aggregation makes of the same three events.
pub const AGGREGATIONS: [(&str, &str); 13] = [
    ("sum", "adds quantities: 2, 3 and 5 make 10"),
    ("count", "counts events: 3"),
    ("avg", "the average: 3.33…"),
    ("min", "the smallest: 2"),
    ("max", "the largest: 5"),
    ("first", "the earliest in time: 2"),
    ("last", "the latest in time: 5"),
    ("rate", "the sum per second of the bucket"),
    ("unique_count", "different values of a field, named below"),
    ("percentile", "what so many percent do not exceed"),
    ("weighted_sum", "the average of a level over time"),
    ("latest_sum", "the latest of each subject and dimensions, added up"),
    ("stddev", "how far quantities lie apart: 1.25"),
];

struct Row {
    meter: Meter,
    events: i64,
    last: Option<i64>,
}

impl Row {
    fn of(meter: Meter, stats: Option<&MeterStats>) -> Row {
        Row {
            events: stats.map_or(0, |stats| stats.usage_events),
            last: stats.and_then(|stats| stats.last_event_at),
            meter,
        }
    }
}

#[derive(Template)]
#[template(path = "meters/list.html")]
struct ListPage {
    shell: Shell,
    rows: Vec<Row>,
    next: Option<String>,
}

pub async fn list(app: web::Data<App>, caller: Caller, visit: Visit, params: Params) -> Result<HttpResponse> {
    let (workspace_id, after) = (caller.workspace_id, params.get("after").to_owned());
    let read = move |conn: &mut Conn| {
        let limit = LISTED as i64 + 1;
        let meters = crate::meters::sql::list(
            conn,
            workspace_id,
            None,
            Some(after.as_str()).filter(|a| !a.is_empty()),
            limit,
        )?;
        Ok((meters, subjects::meter_stats(conn, workspace_id, &after, limit)?))
    };
    let (mut meters, stats) = app.store.read("meters::list", read).await?;
    let has_more = meters.len() > LISTED;
    meters.truncate(LISTED);
    let last = meters.last().map(|meter| meter.name.clone()).unwrap_or_default();
    let stats: HashMap<&str, &MeterStats> = stats.iter().map(|stats| (stats.meter.as_str(), stats)).collect();
    let rows = meters.into_iter().map(|meter| {
        let found = stats.get(meter.name.as_str()).copied();
        Row::of(meter, found)
    });
    ok(&ListPage {
        shell: visit.shell("meters", "Meter definitions"),
        rows: rows.collect(),
        next: has_more.then(|| Link::to("/meters").with("after", &last).to_string()),
    })
}

#[derive(Template)]
#[template(path = "meters/form.html")]
struct FormPage {
    shell: Shell,
    /// Present when an existing meter is changed.
    meter: Option<Meter>,
    events: i64,
    fields: Fields,
    complaint: Complaint,
    aggregations: [(&'static str, &'static str); 13],
}

impl FormPage {
    fn new(visit: &Visit, meter: Option<(Meter, i64)>, fields: Fields, complaint: Complaint) -> FormPage {
        let title = meter
            .as_ref()
            .map_or_else(|| "New meter".to_owned(), |(meter, _)| format!("Edit {}", meter.name));
        let (meter, events) = meter.map_or((None, 0), |(meter, events)| (Some(meter), events));
        FormPage {
            shell: visit.shell("meters", title),
            meter,
            events,
            fields,
            complaint,
            aggregations: AGGREGATIONS,
        }
    }

    /// Something is typed, or wrong, that most meters do without.
    fn is_special(&self) -> bool {
        let special =
            ["aggregation_field", "percentiles", "histogram_bounds", "quantity_is", "value_expression"];
        special.iter().any(|name| !self.fields.get(name).is_empty() || self.complaint.at(name))
    }

    fn value(&self, row: &usize, field: &str) -> &str {
        self.fields.raw(&format!("dim.{row}.{field}"))
    }

    fn ticked(&self, row: &usize, field: &str) -> bool {
        !self.value(row, field).is_empty()
    }

    fn is(&self, row: &usize, field: &str, value: &str) -> bool {
        self.value(row, field) == value
    }
}

/// The fields that a complaint can be about.
const FIELDS: [&str; 10] = [
    "name",
    "unit",
    "aggregation_field",
    "aggregation",
    "percentiles",
    "histogram_bounds",
    "quantity_is",
    "event_retention_days",
    "description",
    "value_expression",
];

pub async fn new(visit: Visit) -> Result<HttpResponse> {
    let fields = Fields::of([("aggregation", "sum"), ("event_retention_days", "90")]);
    ok(&FormPage::new(&visit, None, fields, Complaint::none()))
}

/// What the form asks for. Rows of dimensions without a name are not there.
fn input(fields: &Fields) -> Result<MeterInput> {
    let text = |row: usize, name: &str| fields.get(&format!("dim.{row}.{name}")).to_owned();
    let dimensions = fields.rows("dim").into_iter().filter(|row| !text(*row, "name").is_empty());
    let dimensions = dimensions.map(|row| DimensionInput {
        name: Some(text(row, "name")),
        display_name: Some(text(row, "display_name")),
        description: Some(text(row, "description")),
        kind: Some(text(row, "type")),
        required: Some(!text(row, "required").is_empty()),
        deprecated: Some(!text(row, "deprecated").is_empty()),
    });
    Ok(MeterInput {
        name: Some(fields.get("name").to_owned()),
        description: Some(fields.get("description").to_owned()),
        unit: Some(fields.get("unit").to_owned()),
        aggregation: Some(fields.get("aggregation").to_owned()),
        dimensions: Some(dimensions.collect()),
        event_retention_days: fields.integer("event_retention_days")?,
        value_expression: Some(fields.get("value_expression").to_owned()),
        aggregation_field: Some(fields.get("aggregation_field").to_owned()),
        percentiles: Some(numbers(fields.get("percentiles"))).filter(|list| !list.is_empty()),
        histogram_bounds: Some(numbers(fields.get("histogram_bounds"))),
        quantity_is: Some(fields.get("quantity_is").to_owned()),
    })
}

/// Numbers with commas between them.
fn numbers(text: &str) -> Vec<InputQuantity> {
    let words = text.split(',').map(str::trim).filter(|word| !word.is_empty());
    words.map(|word| InputQuantity(Quantity::parse(word))).collect()
}

pub async fn create(app: web::Data<App>, caller: Caller, visit: Visit, form: Form) -> Result<HttpResponse> {
    let Form(mut fields) = form;
    if fields.change_rows("dim", "name") {
        return ok(&FormPage::new(&visit, None, fields, Complaint::none()));
    }
    match add(&app, &caller, &fields).await {
        Ok(meter) => Ok(visit.go(
            &format!("/meters/{}", meter.public_id),
            &format!("Meter {} is there. Events for it count from now on.", meter.name),
        )),
        Err(error) => rejected(&FormPage::new(&visit, None, fields, Complaint::of(error, &FIELDS)?)),
    }
}

async fn add(app: &App, caller: &Caller, fields: &Fields) -> Result<Meter> {
    let meter = input(fields)?.into_meter(chance::id().to_string(), caller.workspace_id, Timestamp::now())?;
    let meter = app.store.write("meters::add", move |conn| crate::meters::sql::add(conn, &meter)).await?;
    app.meters.changed(meter.workspace_id, &meter.name);
    Ok(meter)
}

/// The meter with the number of its events.
async fn with_events(app: &App, caller: &Caller, word: &str) -> Result<(Meter, MeterStats)> {
    let meter = ask::meter(app, caller, word).await?;
    let (workspace_id, name) = (caller.workspace_id, meter.name.clone());
    let stats = move |conn: &mut Conn| subjects::stats_of_meter(conn, workspace_id, &name);
    let stats = app.store.read("subjects::stats_of_meter", stats).await?;
    let nothing =
        MeterStats { meter: meter.name.clone(), usage_events: 0, last_event_at: None, retention_days: 0 };
    Ok((meter, stats.unwrap_or(nothing)))
}

fn listed(numbers: &[Quantity]) -> String {
    numbers.iter().map(Quantity::to_plain).collect::<Vec<_>>().join(", ")
}

fn fields_of(meter: &Meter) -> Fields {
    let mut pairs = vec![
        ("name".to_owned(), meter.name.clone()),
        ("unit".to_owned(), meter.unit.clone()),
        ("aggregation".to_owned(), meter.aggregation.as_str().to_owned()),
        ("event_retention_days".to_owned(), meter.event_retention_days.to_string()),
        ("description".to_owned(), meter.description.clone()),
        (
            "value_expression".to_owned(),
            meter.options.value_expression.as_ref().map_or("", Expression::text).to_owned(),
        ),
        ("aggregation_field".to_owned(), meter.options.aggregation_field.clone().unwrap_or_default()),
        ("percentiles".to_owned(), listed(&meter.options.percentiles)),
        ("histogram_bounds".to_owned(), listed(&meter.options.histogram_bounds)),
        ("quantity_is".to_owned(), meter.options.quantity_is.map_or("", QuantityIs::as_str).to_owned()),
    ];
    for (row, dimension) in meter.dimensions.iter().enumerate() {
        let mut put = |name: &str, value: String| pairs.push((format!("dim.{row}.{name}"), value));
        put("name", dimension.name.clone());
        put("display_name", dimension.display_name.clone());
        put("description", dimension.description.clone());
        put("type", dimension.kind.as_str().to_owned());
        put("required", if dimension.required { "on" } else { "" }.to_owned());
        put("deprecated", if dimension.deprecated { "on" } else { "" }.to_owned());
    }
    Fields::of(pairs)
}

pub async fn edit(app: web::Data<App>, caller: Caller, visit: Visit, Id(word): Id) -> Result<HttpResponse> {
    let (meter, stats) = with_events(&app, &caller, &word).await?;
    let fields = fields_of(&meter);
    ok(&FormPage::new(&visit, Some((meter, stats.usage_events)), fields, Complaint::none()))
}

pub async fn update(
    app: web::Data<App>,
    caller: Caller,
    visit: Visit,
    Id(word): Id,
    form: Form,
) -> Result<HttpResponse> {
    let Form(mut fields) = form;
    let (meter, stats) = with_events(&app, &caller, &word).await?;
    if fields.change_rows("dim", "name") {
        return ok(&FormPage::new(&visit, Some((meter, stats.usage_events)), fields, Complaint::none()));
    }
    let changed = match input(&fields) {
        Ok(input) => app.change_meter(caller.workspace_id, meter.public_id.clone(), input).await,
        Err(error) => Err(error),
    };
    match changed {
        Ok(_) => Ok(visit.go(&format!("/meters/{}", meter.public_id), "Saved.")),
        Err(error) => {
            let complaint = Complaint::of(error, &FIELDS)?;
            rejected(&FormPage::new(&visit, Some((meter, stats.usage_events)), fields, complaint))
        }
    }
}

/// A dimension with its largest values: value and quantity, bar, link.
type Top = (String, Vec<(BreakdownItem, Svg, String)>);

#[derive(Template)]
#[template(path = "meters/show.html")]
struct ShowPage {
    shell: Shell,
    meter: Meter,
    stats: MeterStats,
    chart: Chart,
    tops: Vec<Top>,
    events: Vec<StoredEvent>,
    rules: Vec<(String, String)>,
    plans: Vec<(String, String)>,
    call: String,
}

const TOP_DIMENSIONS: usize = 3;
const TOP_VALUES: usize = 5;

pub async fn show(app: web::Data<App>, caller: Caller, visit: Visit, Id(word): Id) -> Result<HttpResponse> {
    let (meter, stats) = with_events(&app, &caller, &word).await?;
    let home = ask::home(&app, &caller).await?;
    let month = ask::last_days(28, Timestamp::now(), &home);
    let calendar = ask::calendar(BucketSize::Day, &home);
    let (chart, tops) = try_join(picture(&app, &meter, month, &calendar), tops(&app, &meter, month)).await?;
    let (workspace_id, name) = (caller.workspace_id, meter.name.clone());
    let around = move |conn: &mut Conn| {
        let search =
            event_list::Search { workspace_id, meter: Some(name.clone()), ..event_list::Search::default() };
        let events = event_list::page(conn, &search, None, 10)?;
        let filter = rules::Filter { meter: Some(name.clone()), ..rules::Filter::default() };
        let rules = rules::rules(conn, Some(workspace_id), &filter, 100)?;
        let plans = plans::list(conn, workspace_id, 100)?;
        Ok((events, rules, plans))
    };
    let (events, rules, plans) = app.store.read("meters::around", around).await?;
    let plans = plans.into_iter().filter(|plan| plan.limits.iter().any(|limit| limit.meter == meter.name));
    ok(&ShowPage {
        shell: visit.shell("meters", meter.name.clone()),
        call: snippets::curl(&visit.origin, "$OPEN_SPANNER_KEY", &snippets::event(&meter)),
        chart,
        tops,
        events: events.into_iter().map(|listed| listed.event).collect(),
        rules: rules.into_iter().map(|rule| (rule.public_id, rule.terms.name)).collect(),
        plans: plans.map(|plan| (plan.public_id, format!("{} v{}", plan.name, plan.version))).collect(),
        meter,
        stats,
    })
}

/// A meter, day by day.
async fn picture(app: &App, meter: &Meter, window: Window, calendar: &Calendar) -> Result<Chart> {
    let starts = ask::axis(window, calendar);
    let rows = ask::buckets(app, ask::whole(meter.clone(), window, calendar)?, starts.len()).await?;
    let (series, _) = ask::series(&rows, &starts, meter.aggregation, false, 1);
    let events = Link::to("/events").with("meter", &meter.name);
    Ok(Chart {
        id: "month".into(),
        title: format!("{} of {}, last 28 days", meter.aggregation.as_str(), meter.name),
        unit: meter.unit.clone(),
        zone: calendar.zone.clone(),
        kind: if ask::is_additive(meter.aggregation) { Kind::Bar } else { Kind::Line },
        buckets: ask::chart_buckets(window, calendar, &events),
        series,
        compare: None,
        limits: Vec::new(),
        is_running: true,
        adds_up: ask::is_additive(meter.aggregation),
        pruned: ask::pruned(meter, &starts),
    })
}

/// The largest values of the first dimensions.
async fn tops(app: &App, meter: &Meter, window: Window) -> Result<Vec<Top>> {
    let mut tops = Vec::new();
    let active = meter.dimensions.iter().filter(|dimension| !dimension.deprecated);
    for dimension in active.take(TOP_DIMENSIONS) {
        let group_by = vec![GroupField::Dimension(dimension.name.clone())];
        let query = Query {
            group_by,
            buckets: None,
            skip_missing: true,
            exact: true,
            ..ask::whole(meter.clone(), window, &Calendar::utc(BucketSize::Day))?
        };
        let shares = ask::breakdown(app, query, TOP_VALUES).await?;
        let largest = shares.first().map_or(1.0, |share| share.quantity.to_f64()).max(f64::MIN_POSITIVE);
        let rows = shares.into_iter().map(|share| {
            let condition = format!(
                "metadata.{}:eq:{}",
                dimension.name,
                share.value.replace(':', "\\:").replace(',', "\\,")
            );
            let link = Link::to("/usage")
                .with("meter", &meter.name)
                .with("range", "28d")
                .with("f", &condition)
                .to_string();
            (share.clone(), share_bar(share.quantity.to_f64() / largest), link)
        });
        tops.push((dimension.display_name.clone(), rows.collect()));
    }
    Ok(tops)
}

/// What a meter holds and what names it: all of it refuses the deletion.
async fn delete_page(
    app: &App,
    visit: &Visit,
    (meter, stats): &(Meter, MeterStats),
    complaint: Complaint,
) -> Result<Confirm> {
    let meter_id = meter.id;
    let users = move |conn: &mut Conn| {
        Ok((rules::on_meter(conn, meter_id)?, plans::limiting(conn, meter_id, COUNTED_MAX + 1)?))
    };
    let (rules, plans) = app.store.read("meters::users", users).await?;
    let limits: i64 = plans.iter().map(|plan| plan.limits).sum();
    let rule = |(id, name): (String, String)| (format!("Alert rule {name}"), format!("/alerts/{id}"));
    let plan = |plan: Limiting| {
        (format!("Plan {} v{}", plan.name, plan.version), format!("/plans/{}", plan.public_id))
    };
    let mut sentences = vec![format!(
        "{}, {} and {} use this meter.",
        view::counted(rules.len(), "alert rule", "alert rules"),
        view::counted_to(COUNTED_MAX, limits, "plan limit", "plan limits"),
        view::counted(stats.usage_events, "stored event", "stored events"),
    )];
    let is_named = !rules.is_empty() || limits > 0;
    sentences.extend(refusals(stats.usage_events > 0, is_named).map(str::to_owned));
    let page = format!("/meters/{}", meter.public_id);
    let is_free = stats.usage_events == 0 && !is_named;
    Ok(Confirm {
        sentences,
        uses: rules.into_iter().map(rule).chain(plans.into_iter().map(plan)).collect(),
        action: format!("{page}/delete"),
        button: if is_free { "Delete meter".to_owned() } else { String::new() },
        complaint,
        ..Confirm::below(
            visit.shell("meters", format!("Delete {}", meter.name)),
            [("Meters", "/meters"), (meter.name.as_str(), page.as_str())],
        )
    })
}

/// Why a meter stays, or what goes with it.
fn refusals(has_events: bool, is_named: bool) -> impl Iterator<Item = &'static str> {
    let held = "It holds events, so it cannot be deleted: nothing that was counted is ever lost by a click. Mark its \
                dimensions deprecated, or stop sending to it.";
    let named =
        "It cannot be deleted while a rule or any version of a plan names it: change or delete those first.";
    let free = "It can be deleted. The totals of events that were pruned go with it, and events that are sent to it \
                afterwards are refused.";
    let told = [(has_events, held), (is_named, named), (!has_events && !is_named, free)];
    told.into_iter().filter(|(is_so, _)| *is_so).map(|(_, words)| words)
}

pub async fn confirm_delete(
    app: web::Data<App>,
    caller: Caller,
    visit: Visit,
    Id(word): Id,
) -> Result<HttpResponse> {
    let found = with_events(&app, &caller, &word).await?;
    ok(&delete_page(&app, &visit, &found, Complaint::none()).await?)
}

pub async fn delete(
    app: web::Data<App>,
    caller: Caller,
    visit: Visit,
    Id(word): Id,
    _form: Form,
) -> Result<HttpResponse> {
    let found = with_events(&app, &caller, &word).await?;
    match app.delete_meter(caller.workspace_id, found.0.public_id.clone()).await {
        Ok(()) => Ok(visit.go("/meters", &format!("Meter {} is deleted.", found.0.name))),
        Err(error) => rejected(&delete_page(&app, &visit, &found, Complaint::of(error, &[])?).await?),
    }
}
