//! What several pages ask of the domains, and how rows of an answer become the series of a chart.

use std::collections::BTreeMap;
use std::sync::Arc;

use jiff::ToSpan;

use crate::app::App;
use crate::auth::Caller;
use crate::dashboard::chart::{self, SERIES_MAX, Series};
use crate::dashboard::grammar;
use crate::dashboard::view::Link;
use crate::db::{Conn, DbError};
use crate::error::{Error, Result};
use crate::metering::calendar::{Buckets, Calendar, Zone};
use crate::metering::meter::{Aggregation, Meter};
use crate::metering::quantity::Quantity;
use crate::metering::time::{BucketSize, Timestamp, Unit, Window};
use crate::usage::aggregate::{Known, cells_knowing, needs_snapshot, of_now};
use crate::usage::events::{self as event_list, Search};
use crate::usage::query::{self as usage, BreakdownItem, Bucket, Query};

/// Meters that lists to choose from hold at most.
const METERS_MAX: i64 = 500;

/// Newest events that are looked at for a hint where a filter decides, about.
const HINTED_MAX: usize = 1_000;

/// All meters of the workspace, by name.
pub async fn meters(app: &App, caller: &Caller) -> Result<Vec<Meter>> {
    let workspace_id = caller.workspace_id;
    app.store
        .read("meters::list", move |conn| {
            crate::meters::sql::list(conn, workspace_id, None, None, METERS_MAX)
        })
        .await
}

/// A meter by its id or by its name.
pub async fn meter(app: &App, caller: &Caller, word: &str) -> Result<Meter> {
    let (workspace_id, wanted) = (caller.workspace_id, word.to_owned());
    let find = move |conn: &mut _| crate::meters::sql::find_by_word(conn, workspace_id, &wanted);
    let found = app.store.read("meters::by_id", find).await?;
    found.ok_or_else(|| Error::not_found(format!("meter {word:?}")))
}

/// As [`meter`], of those that [`meters`] has found.
pub async fn meter_among(app: &App, caller: &Caller, listed: &[Meter], word: &str) -> Result<Meter> {
    let with_id = listed.iter().find(|meter| meter.public_id == word);
    let found = with_id.or_else(|| listed.iter().find(|meter| meter.name == word));
    match found.filter(|_| (listed.len() as i64) < METERS_MAX) {
        Some(found) => Ok(found.clone()),
        None => meter(app, caller, word).await,
    }
}

/// The rows of a query with buckets, at most this many.
pub async fn buckets(app: &App, query: Query, most: usize) -> Result<Vec<Bucket>> {
    buckets_knowing(app, query, most, Known::default()).await
}

/// As [`buckets`].
pub async fn buckets_knowing(app: &App, query: Query, most: usize, known: Known) -> Result<Vec<Bucket>> {
    let is_snapshot = needs_snapshot(&query);
    let read = move |conn: &mut Conn| rows(conn, &query, most, known);
    app.store.view("usage::cells", is_snapshot, read).await
}

/// The rows of a query with buckets, inside of whatever else is read.
pub fn rows(conn: &mut Conn, query: &Query, most: usize, known: Known) -> Result<Vec<Bucket>, DbError> {
    Ok(usage::buckets(query, cells_knowing(conn, query, most, known)?))
}

/// The largest values of the one field that a query groups by, inside of whatever else is read.
pub fn shares(
    conn: &mut Conn,
    query: &Query,
    most: usize,
    known: Known,
) -> Result<Vec<BreakdownItem>, DbError> {
    Ok(usage::breakdown(query, cells_knowing(conn, query, usize::MAX, known)?, most))
}

/// The rows of several queries, and something else that is read, of one instant.
pub async fn buckets_of_each<T: Send + 'static>(
    app: &App,
    queries: Vec<Query>,
    most: usize,
    known: Known,
    also: impl Fn(&mut Conn) -> Result<T, DbError> + Send + Sync + 'static,
) -> Result<(Vec<Vec<Bucket>>, T)> {
    let read = move |conn: &mut Conn| {
        let (queries, known) = (of_now(conn, &queries)?, Known { meter_of_now: true, ..known });
        let each = queries.iter().map(|query| rows(conn, query, most, known));
        let each = each.collect::<Result<_, DbError>>()?;
        Ok((each, also(conn)?))
    };
    app.store.view("usage::counts", true, read).await
}

/// When the newest event is that matches, whatever its time. None where there is none, and where looking for it fails: it is a
/// hint, and no answer. So it is not looked for in all of the history where a filter reads each event.
pub async fn newest(app: &App, search: Search) -> Option<Timestamp> {
    let search = Search { from: None, to: None, ..search };
    let read = move |conn: &mut Conn| match search.filter {
        None => event_list::page(conn, &search, None, 1),
        Some(_) => event_list::step(conn, &search, None, HINTED_MAX).map(|(listed, _)| listed),
    };
    let found = app.store.view("event_list::newest", false, read).await.ok()?;
    found.first().map(|listed| listed.position.time)
}

/// The largest values of several queries that each group by one field, of one instant.
pub async fn breakdowns(app: &App, queries: Vec<Query>, most: usize) -> Result<Vec<Vec<BreakdownItem>>> {
    if queries.is_empty() {
        return Ok(Vec::new());
    }
    let is_snapshot = queries.iter().any(needs_snapshot);
    let read = move |conn: &mut Conn| {
        let (queries, known) = (of_now(conn, &queries)?, Known { meter_of_now: true, ..Known::default() });
        queries.iter().map(|query| shares(conn, query, most, known)).collect::<Result<Vec<_>, DbError>>()
    };
    app.store.view("usage::cells", is_snapshot, read).await
}

/// The zone of the workspace: where the days of its pages begin.
pub async fn home(app: &App, caller: &Caller) -> Result<Zone> {
    app.zones.get(caller.workspace_id).await
}

/// The buckets of a size in a zone.
pub fn calendar(size: BucketSize, zone: &Zone) -> Calendar {
    Calendar { zone: zone.clone(), is_zoned: !zone.is_utc(), ..Calendar::utc(size) }
}

/// The last days of a zone, today included, in whole days.
pub fn last_days(days: i64, now: Timestamp, zone: &Zone) -> Window {
    let today = zone.civil(now).date();
    let midnight = |n: i64| zone.first(today.saturating_add(n.days()).at(0, 0, 0, 0));
    Window { from: midnight(1 - days), to: midnight(1) }
}

/// A query over everything of a meter.
pub fn whole(meter: Meter, window: Window, calendar: &Calendar) -> Result<Query> {
    Ok(Query {
        meter: Arc::new(meter),
        window,
        subject: None,
        group_by: Vec::new(),
        filter: None,
        buckets: Some(Buckets::of(calendar.clone(), window)?),
        skip_missing: false,
        exact: true,
    })
}

/// The starts of the buckets that a window touches.
pub fn axis(window: Window, calendar: impl Into<Calendar>) -> Vec<Timestamp> {
    let calendar = calendar.into();
    let mut starts = vec![calendar.start(window.from)];
    while let Some(at) = starts.last().map(|last| calendar.around(*last).to).filter(|at| *at < window.to) {
        starts.push(at);
    }
    starts
}

pub fn bucket_label(at: Timestamp, calendar: impl Into<Calendar>) -> String {
    let calendar = calendar.into();
    let text = calendar.zone.text(at);
    match calendar.size.parts().0 {
        Unit::Minute | Unit::Hour if &text[11..16] == "00:00" => text[5..10].to_owned(),
        Unit::Minute | Unit::Hour => text[11..16].to_owned(),
        Unit::Day | Unit::Week => text[5..10].to_owned(),
        Unit::Month | Unit::Quarter | Unit::Year if calendar.anchor.is_some() => text[..10].to_owned(),
        Unit::Month | Unit::Quarter => text[..7].to_owned(),
        Unit::Year => text[..4].to_owned(),
    }
}

pub fn bucket_name(at: Timestamp, calendar: impl Into<Calendar>) -> String {
    let calendar = calendar.into();
    let text = calendar.zone.text(at);
    match calendar.size.parts().0 {
        Unit::Minute | Unit::Hour => format!("{} {}", &text[..10], &text[11..16]),
        Unit::Month | Unit::Quarter if calendar.anchor.is_none() => text[..7].to_owned(),
        Unit::Year if calendar.anchor.is_none() => text[..4].to_owned(),
        _ => text[..10].to_owned(),
    }
}

/// The buckets of a chart, each linked to its events.
pub fn chart_buckets(window: Window, calendar: impl Into<Calendar>, events: &Link) -> Vec<chart::Bucket> {
    let calendar = calendar.into();
    let starts = axis(window, &calendar);
    let ends = starts.iter().skip(1).copied().chain([window.to]);
    let of = |(at, end): (&Timestamp, Timestamp)| chart::Bucket {
        label: bucket_label(*at, &calendar),
        name: bucket_name(*at, &calendar),
        link: events
            .clone()
            .with("from", &(*at).max(window.from).to_exact_text())
            .with("to", &end.min(window.to).to_exact_text())
            .to_string(),
    };
    starts.iter().zip(ends).map(of).collect()
}

/// Whether values of different groups or times may be added.
pub fn is_additive(aggregation: Aggregation) -> bool {
    matches!(aggregation, Aggregation::Sum | Aggregation::Count)
}

/// The name of a row's group.
pub fn group_name(bucket: &Bucket, by_subject: bool) -> String {
    let mut parts: Vec<String> = Vec::new();
    if by_subject {
        parts.push(bucket.subject.clone());
    }
    // the subject is among the values of a group, too
    let values = bucket.group.iter().filter(|(field, _)| !by_subject || field.as_str() != "subject");
    parts.extend(values.map(|(_, value)| if value == "<nil>" { "(none)".to_owned() } else { value.clone() }));
    if parts.is_empty() { "Total".to_owned() } else { parts.join(" · ") }
}

/// One series per group, the largest first; what does not fit is added up where adding is right, else left out.
/// Answers also how many groups were left out or added up.
pub fn series(
    rows: &[Bucket],
    starts: &[Timestamp],
    aggregation: Aggregation,
    by_subject: bool,
    most: usize,
) -> (Vec<Series>, usize) {
    let places: BTreeMap<Timestamp, usize> =
        starts.iter().enumerate().map(|(at, start)| (*start, at)).collect();
    let nothing = is_additive(aggregation).then(Quantity::zero);
    let mut groups: BTreeMap<String, Group> = BTreeMap::new();
    for row in rows {
        let Some(place) = places.get(&row.bucket_start.at) else { continue };
        let group = groups.entry(group_name(row, by_subject)).or_insert_with(|| Group {
            total: Quantity::zero(),
            values: vec![nothing.clone(); starts.len()],
            narrow: narrowing(row, by_subject),
        });
        group.total += &row.quantity;
        group.values[*place] = Some(row.quantity.clone());
    }
    let mut ranked: Vec<_> = groups.into_iter().collect();
    ranked.sort_by(|(_, a), (_, b)| b.total.cmp(&a.total));
    let most = most.clamp(1, SERIES_MAX);
    let rest = ranked.split_off(ranked.len().min(most));
    let left_out = rest.len();
    let mut series: Vec<Series> = ranked
        .into_iter()
        .map(|(name, group)| Series::new(name, group.values).narrowed(group.narrow))
        .collect();
    if left_out > 0 && is_additive(aggregation) {
        let mut sums = vec![Quantity::zero(); starts.len()];
        for (_, group) in &rest {
            for (sum, value) in sums.iter_mut().zip(&group.values) {
                *sum = &*sum + value.as_ref().unwrap_or(&Quantity::zero());
            }
        }
        let values = sums.into_iter().map(Some).collect();
        series.push(Series::other(format!("Other ({left_out})"), values));
    }
    (series, left_out)
}

/// A series while it is read.
struct Group {
    total: Quantity,
    values: Vec<Option<Quantity>>,
    narrow: Option<Link>,
}

/// The parameters that only the events of a row's group have; `None` where a value is missing, which no condition says.
pub fn narrowing(row: &Bucket, by_subject: bool) -> Option<Link> {
    let mut link = Link::to("");
    if by_subject {
        link = link.with("f", &grammar::equals("subject", &row.subject));
    }
    for (name, value) in &row.group {
        if value == "<nil>" {
            return None;
        }
        link = link.with("f", &grammar::equals(&format!("metadata.{name}"), value));
    }
    Some(link)
}

/// How many buckets at the beginning have lost single events of a meter.
pub fn pruned(meter: &Meter, starts: &[Timestamp]) -> usize {
    meter.pruned_before.map_or(0, |before| starts.partition_point(|start| *start < before))
}

/// Counts by name, as series: the largest have one each, the others one together.
pub fn largest(counts: &BTreeMap<String, Vec<i64>>, most: usize) -> Vec<Series> {
    let mut ranked: Vec<(&String, &Vec<i64>)> = counts.iter().collect();
    ranked.sort_by_key(|(_, counts)| std::cmp::Reverse(counts.iter().sum::<i64>()));
    let rest = ranked.split_off(ranked.len().min(most));
    let values = |counts: &[i64]| counts.iter().map(|count| Some(Quantity::from(*count))).collect();
    let mut series: Vec<Series> = ranked
        .into_iter()
        .map(|(name, counts)| {
            Series::new(name, values(counts)).narrowed(Some(Link::to("").with("meter", name)))
        })
        .collect();
    if let Some((_, first)) = rest.first() {
        let together = |at: usize| rest.iter().map(|(_, counts)| counts[at]).sum();
        let sums: Vec<i64> = (0..first.len()).map(together).collect();
        let name = format!("Other ({})", rest.len());
        series.push(Series::other(name, values(&sums)));
    }
    series
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn days_are_those_of_the_zone() {
        let now = Timestamp::parse("2026-11-28T23:30:00Z").expect("a time");
        let days = |zone: &str| {
            let window = last_days(28, now, &Zone::parse(zone).expect(zone));
            (window.from.to_seconds_text(), window.to.to_seconds_text())
        };
        assert_eq!(days("UTC"), ("2026-11-01T00:00:00Z".into(), "2026-11-29T00:00:00Z".into()));
        // it is tomorrow there already
        assert_eq!(days("Europe/Berlin"), ("2026-11-01T23:00:00Z".into(), "2026-11-29T23:00:00Z".into()));
        // the clocks were set back on the first of the month
        assert_eq!(days("America/New_York"), ("2026-11-01T04:00:00Z".into(), "2026-11-29T05:00:00Z".into()));
        let calendar = calendar(BucketSize::Day, &Zone::parse("America/New_York").expect("a zone"));
        let window = last_days(28, now, &calendar.zone);
        assert_eq!(axis(window, &calendar).len(), 28);
    }
}
