//! What a view of `/usage` finds: the series of its chart, the groups of its table, and the time it is compared with.

use std::collections::btree_map::Entry;
use std::collections::{BTreeMap, HashMap};

use futures_util::future::{try_join, try_join3};

use crate::app::App;
use crate::dashboard::ask;
use crate::dashboard::chart::{COMPARED, Chart, Kind, Series};
use crate::dashboard::grammar::Range;
use crate::dashboard::pages::breakdowns::{self, Breakdown};
use crate::dashboard::pages::groups::{self, GroupRow};
use crate::dashboard::pages::usage_view::UsageView;
use crate::dashboard::view;
use crate::error::Result;
use crate::metering::quantity::Quantity;
use crate::metering::time::{Timestamp, Window};
use crate::usage::aggregate::Known;
use crate::usage::query::Bucket;

/// Rows that one picture is made of at most.
pub const CELLS_MAX: usize = 10_000;
/// Values of one line that are marked; more would be a band.
const POINTED_MAX: usize = 200;
/// What was found.
pub struct Found {
    pub chart: Chart,
    pub total: Quantity,
    pub earlier: Option<(Quantity, String, String)>,
    pub groups: Vec<GroupRow>,
    pub breakdowns: Vec<Breakdown>,
    pub is_empty: bool,
    /// Groups that the chart does not show by themselves.
    pub left_out: usize,
    /// Groups that the table does not show.
    pub unlisted: usize,
    pub is_cut: bool,
    /// Of a time that holds nothing: the newest event beside it, and the view of its day.
    pub nearest: Option<(Timestamp, String)>,
}

impl Found {
    /// Whether groups are told beside what they were at another time.
    pub fn compares_groups(&self) -> bool {
        self.groups.iter().any(|row| row.change.is_some())
    }

    /// Whether groups are drawn together.
    pub fn has_other(&self) -> bool {
        self.chart.series.iter().any(|series| series.is_other)
    }
}

pub async fn find(app: &App, asked: &UsageView) -> Result<Found> {
    let window = asked.range.window;
    let query = asked.query(window, true, true)?;
    let fields: Vec<String> = query.group_by.iter().map(|field| field.name().to_owned()).collect();
    // what adds up need not be asked for
    let apart = async {
        match ask::is_additive(asked.meter.aggregation) {
            true => Ok(None),
            false => groups_of(app, asked, window).await.map(Some),
        }
    };
    let rows = ask::buckets(app, query, CELLS_MAX + 1);
    let (rows, apart, breakdowns) = try_join3(rows, apart, breakdowns::find(app, asked)).await?;
    let groups = ranked(match apart {
        Some(groups) => groups,
        None if rows.len() > CELLS_MAX => groups_of(app, asked, window).await?,
        None => added_up(&rows, &fields),
    });
    let total = match asked.group.is_empty() || ask::is_additive(asked.meter.aggregation) {
        true => sum(&groups),
        false => total(app, asked, window).await?,
    };
    let (earlier, before) = match asked.earlier() {
        Some(window) => {
            let both = try_join(earlier(app, asked, window), groups_before(app, asked, window));
            let (earlier, before) = both.await?;
            (Some((window, earlier)), Some(before))
        }
        None => (None, None),
    };
    let starts = ask::axis(window, &asked.calendar);
    let Drawn { mut series, left_out, courses, is_cut } = drawn(app, asked, &rows, &groups, &starts).await?;
    let mut compare =
        earlier.as_ref().map(|(window, (_, rows))| comparison(asked, *window, rows, starts.len()));
    if asked.is_cumulative {
        series.iter_mut().chain(compare.as_mut()).for_each(accumulate);
    }
    asked.hide(&mut series);
    let has_points = asked.has_points && starts.len() <= POINTED_MAX;
    series.iter_mut().for_each(|one| one.has_points = has_points);
    let chart = Chart {
        id: "usage".into(),
        title: format!(
            "{} of {}, {}",
            asked.meter.aggregation.as_str(),
            asked.meter.name,
            asked.range.words()
        ),
        unit: asked.meter.unit.clone(),
        zone: asked.calendar.zone.clone(),
        kind: if asked.is_cumulative && asked.kind != Kind::Table { Kind::Line } else { asked.kind },
        buckets: ask::chart_buckets(window, &asked.calendar, &asked.events()),
        series,
        compare,
        limits: Vec::new(),
        is_running: asked.range.is_running,
        adds_up: ask::is_additive(asked.meter.aggregation) && !asked.is_cumulative,
        pruned: ask::pruned(&asked.meter, &starts),
    };
    let earlier = earlier.map(|(window, (sum, _))| {
        let words = Range { window, ..asked.range.clone() }.words();
        (sum.clone(), words, view::change(&total, &sum))
    });
    let unlisted = if asked.group.is_empty() { 0 } else { groups.len().saturating_sub(groups::LISTED) };
    Ok(Found {
        is_empty: groups.is_empty(),
        groups: groups::rows(asked, &groups, &total, &courses, before.as_deref()),
        chart,
        total,
        earlier,
        breakdowns,
        left_out,
        unlisted,
        is_cut,
        nearest: None,
    })
}

/// All of the window in one row per group, of all groups, or the largest could be missing.
async fn groups_of(app: &App, asked: &UsageView, window: Window) -> Result<Vec<Bucket>> {
    ask::buckets(app, asked.query(window, false, true)?, usize::MAX).await
}

/// The groups of another time, if there is a table of them.
async fn groups_before(app: &App, asked: &UsageView, window: Window) -> Result<Vec<Bucket>> {
    if asked.group.is_empty() { Ok(Vec::new()) } else { groups_of(app, asked, window).await }
}

/// The same from rows over time: right where values of different times may be added.
fn added_up(rows: &[Bucket], fields: &[String]) -> Vec<Bucket> {
    let mut groups: BTreeMap<Vec<&str>, Bucket> = BTreeMap::new();
    for row in rows {
        let values = fields.iter().map(|field| row.group.get(field).map_or("", String::as_str)).collect();
        match groups.entry(values) {
            Entry::Occupied(mut group) => {
                let sum = &group.get().quantity + &row.quantity;
                group.get_mut().quantity = sum;
            }
            Entry::Vacant(free) => drop(free.insert(row.clone())),
        }
    }
    groups.into_values().collect()
}

/// The largest first.
fn ranked(mut groups: Vec<Bucket>) -> Vec<Bucket> {
    groups.sort_by(|a, b| b.quantity.cmp(&a.quantity));
    groups
}

/// The series of a chart.
struct Drawn {
    series: Vec<Series>,
    /// Groups that are added up in one series, or not drawn.
    left_out: usize,
    /// What groups did over time, by their names.
    courses: HashMap<String, Vec<f64>>,
    /// There are more cells than one picture may be made of.
    is_cut: bool,
}

/// The largest groups over time, and the rest in one series where adding is right. Where there are too many cells, the
/// largest groups are asked for one by one, and all events at once.
async fn drawn(
    app: &App,
    asked: &UsageView,
    rows: &[Bucket],
    groups: &[Bucket],
    starts: &[Timestamp],
) -> Result<Drawn> {
    let (window, aggregation) = (asked.range.window, asked.meter.aggregation);
    let by_subject = asked.by_subject();
    if rows.len() <= CELLS_MAX {
        let (series, left_out) = ask::series(rows, starts, aggregation, by_subject, asked.top);
        let courses = groups::courses(rows, starts, by_subject);
        return Ok(Drawn { series, left_out, courses, is_cut: false });
    }
    let (mut names, mut queries) = (Vec::new(), vec![asked.query(window, true, false)?]);
    for group in groups.iter().take(asked.top) {
        let Some(values) = groups::values_of(asked, group) else { continue };
        queries.push(asked.with_values(&values, "eq", Vec::new()).query(window, true, false)?);
        names.push((ask::group_name(group, by_subject), ask::narrowing(group, by_subject)));
    }
    let (each, ()) = ask::buckets_of_each(app, queries, CELLS_MAX, Known::default(), |_| Ok(())).await?;
    let mut each = each.iter().map(|rows| ask::series(rows, starts, aggregation, false, 1).0.pop());
    let nothing = || vec![ask::is_additive(aggregation).then(Quantity::zero); starts.len()];
    let mut rest = each.next().flatten().map_or_else(nothing, |all| all.values);
    let mut series: Vec<Series> = Vec::with_capacity(names.len() + 1);
    for ((name, narrow), one) in names.into_iter().zip(each) {
        let values = one.map_or_else(nothing, |one| one.values);
        for (rest, value) in rest.iter_mut().zip(&values) {
            if let (Some(rest), Some(value)) = (rest.as_mut(), value) {
                *rest = &*rest - value;
            }
        }
        series.push(Series::new(name, values).narrowed(narrow));
    }
    let plain = |values: &[Option<Quantity>]| {
        values.iter().map(|value| value.as_ref().map_or(0.0, Quantity::to_f64)).collect()
    };
    let courses = series.iter().map(|series| (series.name.clone(), plain(&series.values))).collect();
    let left_out = groups.len() - series.len();
    if ask::is_additive(aggregation) {
        series.push(Series::other(format!("Other ({left_out})"), rest));
    }
    Ok(Drawn { series, left_out, courses, is_cut: true })
}

fn sum(rows: &[Bucket]) -> Quantity {
    rows.iter().fold(Quantity::zero(), |sum, row| &sum + &row.quantity)
}

async fn total(app: &App, asked: &UsageView, window: Window) -> Result<Quantity> {
    let rows = ask::buckets(app, asked.query(window, false, false)?, 1).await?;
    Ok(rows.into_iter().next().map_or_else(Quantity::zero, |row| row.quantity))
}

async fn earlier(app: &App, asked: &UsageView, window: Window) -> Result<(Quantity, Vec<Bucket>)> {
    let rows = ask::buckets(app, asked.query(window, true, false)?, CELLS_MAX).await?;
    let total = match ask::is_additive(asked.meter.aggregation) && rows.len() < CELLS_MAX {
        true => sum(&rows),
        false => total(app, asked, window).await?,
    };
    Ok((total, rows))
}

/// The earlier values, bucket by bucket beside the later ones.
fn comparison(asked: &UsageView, window: Window, rows: &[Bucket], count: usize) -> Series {
    let starts = ask::axis(window, &asked.calendar);
    let (mut series, _) = ask::series(rows, &starts, asked.meter.aggregation, false, 1);
    let mut values = series.pop().map(|series| series.values).unwrap_or_default();
    values.resize(count, None);
    let words = Range { window, ..asked.range.clone() }.words();
    let word = if asked.other.is_some() { COMPARED } else { "Before" };
    Series::other(format!("{word}: {words}"), values)
}

fn accumulate(series: &mut Series) {
    // what adds up to a value is not the events of its bucket alone
    series.narrow = None;
    let mut sum = Quantity::zero();
    for value in series.values.iter_mut().flatten() {
        sum += &*value;
        *value = sum.clone();
    }
}
