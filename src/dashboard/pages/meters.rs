//! `/meters`: what is measured. List, one meter, the forms that make and change it, deletion.

use std::collections::HashMap;

use actix_web::{HttpResponse, web};
use askama::Template;

use crate::alerts::sql::rules;
use crate::app::App;
use crate::auth::Caller;
use crate::chance;
use crate::dashboard::ask;
use crate::dashboard::chart::{self, Chart, Kind, Svg, share_bar};
use crate::dashboard::confirm::{COUNTED_MAX, Confirm};
use crate::dashboard::foot::{Cell, Foot, Portion};
use crate::dashboard::form::{Complaint, Fields, Form};
use crate::dashboard::sorting::{Heading, Orders, Sort};
use crate::dashboard::view::{self, Link};
use crate::dashboard::visit::{Shell, Visit, ok, rejected};
use crate::dashboard::{grammar, snippets};
use crate::db::{Conn, DbError};
use crate::entitlements::sql::plans::{self, Limiting};
use crate::error::{Error, Result};
use crate::http::extract::{Id, Params, decode_cursor, encode_cursor};
use crate::metering::calendar::{Calendar, Zone};
use crate::metering::event::InputQuantity;
use crate::metering::expression::Expression;
use crate::metering::meter::{Dimension, DimensionInput, Meter, MeterInput, QuantityIs};
use crate::metering::quantity::Quantity;
use crate::metering::stored::StoredEvent;
use crate::metering::time::{BucketSize, DAY, Timestamp, Window};
use crate::usage::aggregate::Known;
use crate::usage::events::{self as event_list, Listed};
use crate::usage::query::{BreakdownItem, Bucket, GroupField, Query};
use crate::usage::subjects::{self, MeterStats};

const LISTED: usize = 100;
/// Of the line of each meter in the list.
const DAYS_DRAWN: i64 = 28;

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
    /// Of the last days, in UTC; known of rows that are shown.
    days: Vec<f64>,
    /// What uses it, as far as that is known.
    plans: i64,
    rules: i64,
}

impl Row {
    fn of(meter: Meter, stats: Option<&MeterStats>) -> Row {
        Row {
            events: stats.map_or(0, |stats| stats.usage_events),
            last: stats.and_then(|stats| stats.last_event_at),
            meter,
            days: Vec::new(),
            plans: 0,
            rules: 0,
        }
    }

    fn spark(&self) -> Svg {
        let words = format!("Events of {} per day of UTC, last {DAYS_DRAWN} days", self.meter.name);
        chart::sparkline(&self.days, &words)
    }

    /// What uses it, in words; blank for nothing.
    fn uses(&self) -> String {
        let counted = [(self.plans, "plan", "plans"), (self.rules, "alert rule", "alert rules")];
        let used = counted.into_iter().filter(|(number, ..)| *number > 0);
        used.map(|(number, one, many)| view::counted(number, one, many)).collect::<Vec<_>>().join(", ")
    }
}

/// What is told of the meters that are shown, and of no others.
async fn describe(app: &App, caller: &Caller, rows: &mut [Row]) -> Result<()> {
    let (workspace_id, window) =
        (caller.workspace_id, ask::last_days(DAYS_DRAWN, Timestamp::now(), &Zone::UTC));
    let ids: Vec<i64> = rows.iter().map(|row| row.meter.id).collect();
    let read = move |conn: &mut Conn| {
        let days = subjects::days_of_meters(conn, &ids, window)?;
        let plans = plans::count_limiting(conn, workspace_id)?;
        Ok((days, plans, rules::count_on_meters(conn, workspace_id)?))
    };
    let (days, plans, rules) = app.store.read("meters::describe", read).await?;
    for row in rows.iter_mut() {
        row.days = vec![0.0; DAYS_DRAWN as usize];
        row.plans = plans.get(&row.meter.id).copied().unwrap_or_default();
        row.rules = rules.get(&row.meter.id).copied().unwrap_or_default();
        for day in days.iter().filter(|day| day.meter_id == row.meter.id) {
            let place = usize::try_from((day.start - window.from.0) / DAY).ok();
            if let Some(value) = place.and_then(|place| row.days.get_mut(place)) {
                *value = day.events as f64;
            }
        }
    }
    Ok(())
}

/// What the list can be sorted by; the name is the order that costs nothing.
static ORDERS: Orders = Orders { columns: &["name", "-events", "-last"], default: "name" };
/// As many as a workspace may have: who sorts by numbers compares all of them.
const SORTED_MAX: i64 = 10_000;

#[derive(Template)]
#[template(path = "meters/list.html")]
struct ListPage {
    shell: Shell,
    rows: Vec<Row>,
    next: Option<String>,
    sort: Sort,
    portion: Portion,
    foot: Foot,
}

impl ListPage {
    fn heading(&self, column: &'static str, words: &'static str) -> Heading {
        self.sort.heading(self.portion.on(Link::to("/meters")), (column, words))
    }
}

const COLUMNS: [&str; 9] = [
    "meter",
    "aggregation",
    "unit",
    "events",
    "last_event_at",
    "retention_days",
    "dimensions",
    "plans",
    "alert_rules",
];

fn cells(row: &Row) -> Vec<Cell> {
    let dimensions: Vec<&str> =
        row.meter.dimensions.iter().map(|dimension| dimension.name.as_str()).collect();
    vec![
        (&row.meter.name).into(),
        row.meter.aggregation.as_str().into(),
        (&row.meter.unit).into(),
        row.events.into(),
        row.last.map(Timestamp).into(),
        i64::from(row.meter.event_retention_days).into(),
        dimensions.join(" ").into(),
        row.plans.into(),
        row.rules.into(),
    ]
}

pub async fn list(app: web::Data<App>, caller: Caller, visit: Visit, params: Params) -> Result<HttpResponse> {
    let sort = Sort::parse(params.get("sort"), &ORDERS)?;
    let portion = Portion::parse(&params, LISTED)?;
    let (mut rows, next) = match sort.is_default() {
        true => by_name(&app, &caller, (params.get("after"), portion)).await?,
        false => sorted(&app, &caller, sort, (params.get("cursor"), portion)).await?,
    };
    describe(&app, &caller, &mut rows).await?;
    if let Some(file) = portion.file("meters", &COLUMNS, rows.iter().map(cells))? {
        return Ok(file);
    }
    let here = Link::to("/meters").with("sort", &sort.word());
    let here = here.with("after", params.get("after")).with("cursor", params.get("cursor"));
    let call = Link::to("/v1/meters").with("limit", &portion.rows().to_string());
    let foot = portion.foot(&here).with_call(&visit.origin, &call);
    ok(&ListPage { shell: visit.shell("meters", "Meter definitions"), rows, next, sort, portion, foot })
}

async fn rows(app: &App, caller: &Caller, after: String, limit: i64) -> Result<Vec<Row>> {
    let workspace_id = caller.workspace_id;
    let read = move |conn: &mut Conn| {
        let after_name = Some(after.as_str()).filter(|after| !after.is_empty());
        let meters = crate::meters::sql::list(conn, workspace_id, None, after_name, limit)?;
        Ok((meters, subjects::meter_stats(conn, workspace_id, &after, limit)?))
    };
    let (meters, stats) = app.store.read("meters::list", read).await?;
    let stats: HashMap<&str, &MeterStats> = stats.iter().map(|stats| (stats.meter.as_str(), stats)).collect();
    let of = |meter: Meter| {
        let found = stats.get(meter.name.as_str()).copied();
        Row::of(meter, found)
    };
    Ok(meters.into_iter().map(of).collect())
}

async fn by_name(
    app: &App,
    caller: &Caller,
    (after, portion): (&str, Portion),
) -> Result<(Vec<Row>, Option<String>)> {
    let mut rows = rows(app, caller, after.to_owned(), portion.rows() as i64 + 1).await?;
    let has_more = rows.len() > portion.rows();
    rows.truncate(portion.rows());
    let last = rows.last().map(|row| row.meter.name.clone()).unwrap_or_default();
    let next = || portion.on(Link::to("/meters").with("after", &last)).to_string();
    Ok((rows, has_more.then(next)))
}

/// Where a row stands: what it is sorted by, then its name, so that no two stand at one place.
type Place = (i64, String);

impl Row {
    fn place(&self, sort: Sort) -> Place {
        let number = match sort.column {
            "events" => self.events,
            "last" => self.last.unwrap_or(i64::MIN),
            _ => 0,
        };
        (number, self.meter.name.clone())
    }
}

/// The rows behind a place, and whether there are more.
fn page_of<T>(
    rows: Vec<T>,
    place: impl Fn(&T) -> Place,
    is_descending: bool,
    after: Option<Place>,
    most: usize,
) -> (Vec<T>, bool) {
    let mut placed: Vec<(Place, T)> = rows.into_iter().map(|row| (place(&row), row)).collect();
    placed.sort_by(|(a, _), (b, _)| if is_descending { b.cmp(a) } else { a.cmp(b) });
    let is_behind = |place: &Place| {
        after.as_ref().is_none_or(|after| if is_descending { place < after } else { place > after })
    };
    placed.retain(|(place, _)| is_behind(place));
    let has_more = placed.len() > most;
    (placed.into_iter().take(most).map(|(_, row)| row).collect(), has_more)
}

async fn sorted(
    app: &App,
    caller: &Caller,
    sort: Sort,
    (cursor, portion): (&str, Portion),
) -> Result<(Vec<Row>, Option<String>)> {
    let after = decode_cursor::<Place>(cursor)?;
    let all = rows(app, caller, String::new(), SORTED_MAX).await?;
    let (rows, has_more) = page_of(all, |row| row.place(sort), sort.is_descending, after, portion.rows());
    let next = match rows.last().filter(|_| has_more) {
        Some(last) => {
            let link = portion.on(Link::to("/meters").with("sort", &sort.word()));
            Some(link.with("cursor", &encode_cursor(&last.place(sort))?).to_string())
        }
        None => None,
    };
    Ok((rows, next))
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

fn stats_of(conn: &mut Conn, meter: &Meter) -> Result<MeterStats, DbError> {
    let stats = subjects::stats_of_meter(conn, meter.workspace_id, &meter.name)?;
    let nothing =
        || MeterStats { meter: meter.name.clone(), usage_events: 0, last_event_at: None, retention_days: 0 };
    Ok(stats.unwrap_or_else(nothing))
}

/// The meter with the number of its events.
async fn with_events(app: &App, caller: &Caller, word: &str) -> Result<(Meter, MeterStats)> {
    let meter = ask::meter(app, caller, word).await?;
    let wanted = meter.clone();
    let stats = move |conn: &mut Conn| stats_of(conn, &wanted);
    let stats = app.store.read("subjects::stats_of_meter", stats).await?;
    Ok((meter, stats))
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
const EVENTS_LISTED: usize = 10;
/// More than a picture of four weeks has.
const DAYS_MAX: usize = 100;

/// What is read of a meter at one instant.
struct Facts {
    meter: Meter,
    stats: MeterStats,
    days: Vec<Bucket>,
    /// Of each dimension whose largest values are shown.
    shares: Vec<Vec<BreakdownItem>>,
    events: Vec<Listed>,
    /// By id and name.
    rules: Vec<(String, String)>,
    plans: Vec<Limiting>,
}

/// None when there is no such meter.
fn facts(
    conn: &mut Conn,
    (workspace_id, word): (i64, &str),
    (month, calendar): (Window, &Calendar),
) -> Result<Option<Facts>, DbError> {
    let Some(meter) = crate::meters::sql::find_by_word(conn, workspace_id, word)? else { return Ok(None) };
    let known = Known { meter_of_now: true, ..Known::default() };
    let days = ask::rows(conn, &ask::whole(meter.clone(), month, calendar)?, DAYS_MAX, known)?;
    let queries = top_queries(&meter, month)?;
    let shares = queries.iter().map(|query| ask::shares(conn, query, TOP_VALUES, known));
    let shares = shares.collect::<Result<_, DbError>>()?;
    let search =
        event_list::Search { workspace_id, meter: Some(meter.name.clone()), ..event_list::Search::default() };
    let searched = event_list::Known { meter: Some(&meter), subject_id: None };
    let events = event_list::page_knowing(conn, &search, searched, None, EVENTS_LISTED)?;
    Ok(Some(Facts {
        stats: stats_of(conn, &meter)?,
        days,
        shares,
        events,
        rules: rules::on_meter(conn, meter.id)?,
        plans: plans::limiting_now(conn, meter.id, 100)?,
        meter,
    }))
}

pub async fn show(app: web::Data<App>, caller: Caller, visit: Visit, Id(word): Id) -> Result<HttpResponse> {
    let home = ask::home(&app, &caller).await?;
    let month = ask::last_days(28, Timestamp::now(), &home);
    let calendar = ask::calendar(BucketSize::Day, &home);
    let (workspace_id, wanted, days) = (caller.workspace_id, word.clone(), calendar.clone());
    let read = move |conn: &mut Conn| facts(conn, (workspace_id, wanted.as_str()), (month, &days));
    let facts = app.store.view("meters::show", true, read).await?;
    let Facts { meter, stats, days, shares, events, rules, plans } =
        facts.ok_or_else(|| Error::not_found(format!("meter {word:?}")))?;
    let (chart, tops) = (picture(&meter, &days, month, &calendar), tops(&meter, shares));
    ok(&ShowPage {
        shell: visit.shell("meters", meter.name.clone()),
        call: snippets::curl(&visit.origin, "$OPEN_SPANNER_KEY", &snippets::event(&meter)),
        chart,
        tops,
        events: events.into_iter().map(|listed| listed.event).collect(),
        rules,
        plans: plans
            .into_iter()
            .map(|plan| (plan.public_id, format!("{} v{}", plan.name, plan.version)))
            .collect(),
        meter,
        stats,
    })
}

/// A meter, day by day.
fn picture(meter: &Meter, rows: &[Bucket], window: Window, calendar: &Calendar) -> Chart {
    let starts = ask::axis(window, calendar);
    let (series, _) = ask::series(rows, &starts, meter.aggregation, false, 1);
    let events = Link::to("/events").with("meter", &meter.name);
    Chart {
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
    }
}

/// The dimensions whose largest values are shown.
fn top_dimensions(meter: &Meter) -> impl Iterator<Item = &Dimension> {
    meter.dimensions.iter().filter(|dimension| !dimension.deprecated).take(TOP_DIMENSIONS)
}

fn top_queries(meter: &Meter, window: Window) -> Result<Vec<Query>> {
    let of = |dimension: &Dimension| {
        Ok(Query {
            group_by: vec![GroupField::Dimension(dimension.name.clone())],
            buckets: None,
            skip_missing: true,
            exact: true,
            ..ask::whole(meter.clone(), window, &Calendar::utc(BucketSize::Day))?
        })
    };
    top_dimensions(meter).map(of).collect()
}

/// The largest values of the first dimensions.
fn tops(meter: &Meter, shares: Vec<Vec<BreakdownItem>>) -> Vec<Top> {
    let of = |(dimension, shares): (&Dimension, Vec<BreakdownItem>)| {
        let largest = shares.first().map_or(1.0, |share| share.quantity.to_f64()).max(f64::MIN_POSITIVE);
        let row = |share: BreakdownItem| {
            let condition = grammar::equals(&format!("metadata.{}", dimension.name), &share.value);
            let link =
                Link::to("/usage").with("meter", &meter.name).with("range", "28d").with("f", &condition);
            let bar = share_bar(share.quantity.to_f64() / largest);
            (share, bar, link.to_string())
        };
        (dimension.display_name.clone(), shares.into_iter().map(row).collect())
    };
    top_dimensions(meter).zip(shares).map(of).collect()
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

#[cfg(test)]
mod tests {
    use super::*;

    /// Every row once, in the order that was asked for, also where many are equal and whatever size a page has.
    #[test]
    fn pages_of_a_sorted_list_hold_every_row_once() {
        let rows: Vec<Place> = (0..50i64).map(|n| (n % 4, format!("m{:02}", n * 7 % 50))).collect();
        for is_descending in [false, true] {
            for most in [1, 7, 50, 60] {
                let (mut seen, mut after) = (Vec::new(), None);
                loop {
                    let (page, has_more) = page_of(rows.clone(), Clone::clone, is_descending, after, most);
                    after = page.last().cloned();
                    seen.extend(page);
                    if !has_more {
                        break;
                    }
                }
                let mut wanted = rows.clone();
                wanted.sort();
                if is_descending {
                    wanted.reverse();
                }
                assert_eq!(seen, wanted, "{most} {is_descending}");
            }
        }
    }
}
