//! The picture above the list of events: how many came when, and what became of them. Each of its buckets leads to the
//! events that it is made of.

use std::collections::BTreeMap;

use crate::app::App;
use crate::auth::Caller;
use crate::dashboard::ask;
use crate::dashboard::chart::{Chart, Kind, Series};
use crate::dashboard::grammar::{self, Range};
use crate::dashboard::pages::events::EventsView;
use crate::dashboard::view::Link;
use crate::db::Conn;
use crate::error::Result;
use crate::http::extract::Params;
use crate::metering::calendar::{Buckets, Calendar, Zone};
use crate::metering::meter::{Aggregation, Meter};
use crate::metering::quantity::Quantity;
use crate::metering::time::{HOUR, Timestamp, Window};
use crate::usage::aggregate::Known;
use crate::usage::query::Query;
use crate::usage::refused;
use crate::usage::subjects;

const METERS_DRAWN: usize = 6;
/// What is drawn when no time is asked for.
const DEFAULT_RANGE: &str = "24h";

/// A picture, and how many events of its time were refused.
pub struct Counts {
    pub chart: Chart,
    pub refused: usize,
}

/// None where the time is too long to be drawn. `subject_id` is that of the subject that is asked for, where it is known.
pub async fn find(
    app: &App,
    caller: &Caller,
    (asked, subject_id): (&EventsView, Option<i64>),
    meters: &[Meter],
    home: &Zone,
) -> Result<Option<Counts>> {
    let range = match &asked.range {
        Some(range) => range.clone(),
        None => Range::parse_in(home, &Params::parse(""), DEFAULT_RANGE, Timestamp::now())?,
    };
    let window = range.window;
    let calendar = ask::calendar(grammar::bucket("auto", window)?, home);
    if Buckets::of(calendar.clone(), window).is_err() {
        return Ok(None);
    }
    let starts = ask::axis(window, &calendar);
    let is_everything = asked.meter.is_empty() && asked.subject.is_empty() && asked.conditions.is_empty();
    let (mut series, outcomes) = match is_everything && starts.iter().all(|start| start.floor(HOUR) == *start)
    {
        true => everything(app, caller, window, &starts).await?,
        false => {
            let drawn = drawn(app, caller, asked, meters).await?;
            counts(app, caller, (asked, subject_id), &drawn, (window, &calendar, &starts)).await?
        }
    };
    for (outcome, name) in [("rejected", "Rejected"), ("conflict", "Conflict")] {
        let times = outcomes.iter().filter(|(word, _)| word == outcome).map(|(_, at)| Timestamp(*at));
        let values = counted(times, &starts);
        if values.iter().any(|value| *value > 0) {
            let values = values.into_iter().map(|count| Some(Quantity::from(count))).collect();
            series.push(Series::new(name, values).narrowed(Some(Link::to("").with("outcome", outcome))));
        }
    }
    if !asked.outcome.is_empty() {
        // buckets lead to that outcome, and to no other
        series.iter_mut().for_each(|series| series.narrow = None);
    }
    let chart = Chart {
        id: "counts".into(),
        title: format!("Events, {}", range.words()),
        unit: "events".to_owned(),
        zone: home.clone(),
        kind: Kind::Stacked,
        buckets: ask::chart_buckets(window, &calendar, &asked.untimed_link()),
        series,
        compare: None,
        limits: Vec::new(),
        is_running: window.to >= Timestamp::now(),
        adds_up: true,
        pruned: 0,
    };
    Ok(Some(Counts { chart, refused: outcomes.len() }))
}

/// The meter that was asked for, or the largest.
async fn drawn(app: &App, caller: &Caller, asked: &EventsView, meters: &[Meter]) -> Result<Vec<Meter>> {
    if !asked.meter.is_empty() || meters.len() <= METERS_DRAWN {
        let is_asked = |meter: &&Meter| asked.meter.is_empty() || meter.name == asked.meter;
        return Ok(meters.iter().filter(is_asked).cloned().collect());
    }
    let workspace_id = caller.workspace_id;
    let sizes = move |conn: &mut Conn| subjects::meter_stats(conn, workspace_id, "", 500);
    let mut sizes = app.store.read("subjects::meter_stats", sizes).await?;
    sizes.sort_by_key(|stats| -stats.usage_events);
    let named = |name: &str| meters.iter().find(|meter| meter.name == name).cloned();
    Ok(sizes.iter().take(METERS_DRAWN).filter_map(|stats| named(&stats.meter)).collect())
}

/// Stored events per bucket, one series per meter, or one of the meter that was asked for; and what was refused, and when.
/// All of one instant.
async fn counts(
    app: &App,
    caller: &Caller,
    (asked, subject_id): (&EventsView, Option<i64>),
    drawn: &[Meter],
    (window, calendar, starts): (Window, &Calendar, &[Timestamp]),
) -> Result<(Vec<Series>, Vec<(String, i64)>)> {
    let query = |meter: &Meter| {
        // counted, whatever the meter makes of its quantities
        let counted = Meter { aggregation: Aggregation::Count, ..meter.clone() };
        Ok(Query {
            filter: grammar::filter(&asked.conditions, Some(meter))?,
            subject: Some(asked.subject.clone()).filter(|subject| !subject.is_empty()),
            ..ask::whole(counted, window, calendar)?
        })
    };
    let queries = drawn.iter().map(query).collect::<Result<Vec<Query>>>()?;
    // refused events have no dimensions to filter by
    let filter = asked.conditions.is_empty().then(|| refused::Filter {
        meter: asked.meter.clone(),
        subject: asked.subject.clone(),
        ..refused::Filter::default()
    });
    let workspace_id = caller.workspace_id;
    let refused = move |conn: &mut Conn| match &filter {
        Some(filter) => refused::outcomes(conn, workspace_id, filter, window),
        None => Ok(Vec::new()),
    };
    let known = Known { subject_id, ..Known::default() };
    let (each, outcomes) = ask::buckets_of_each(app, queries, starts.len(), known, refused).await?;
    let mut series = Vec::with_capacity(drawn.len());
    for (meter, rows) in drawn.iter().zip(each) {
        let (found, _) = ask::series(&rows, starts, Aggregation::Count, false, 1);
        let Some(Series { values, .. }) = found.into_iter().next() else { continue };
        let name = if asked.meter.is_empty() { meter.name.clone() } else { "Accepted".to_owned() };
        let narrow = Link::to("").with("meter", if asked.meter.is_empty() { &meter.name } else { "" });
        series.push(Series::new(name, values).narrowed(Some(narrow)));
    }
    Ok((series, outcomes))
}

/// Of all meters: the largest have a series each, the others one together. One statement counts what is stored, another
/// what was refused, which is never part of it: the two need not be of one instant.
async fn everything(
    app: &App,
    caller: &Caller,
    window: Window,
    starts: &[Timestamp],
) -> Result<(Vec<Series>, Vec<(String, i64)>)> {
    let workspace_id = caller.workspace_id;
    let read = move |conn: &mut Conn| {
        let counts = subjects::events_by_hour(conn, workspace_id, window)?;
        Ok((counts, refused::outcomes(conn, workspace_id, &refused::Filter::default(), window)?))
    };
    let (counts, outcomes) = app.store.view("usage::events_by_hour", false, read).await?;
    let mut by_meter: BTreeMap<String, Vec<i64>> = BTreeMap::new();
    for count in counts {
        if let Some(place) = starts.partition_point(|start| *start <= count.start()).checked_sub(1) {
            by_meter.entry(count.meter).or_insert_with(|| vec![0; starts.len()])[place] += count.events;
        }
    }
    Ok((ask::largest(&by_meter, METERS_DRAWN), outcomes))
}

/// How many instants each bucket holds; the buckets are in order.
fn counted(times: impl Iterator<Item = Timestamp>, starts: &[Timestamp]) -> Vec<i64> {
    let mut counts = vec![0; starts.len()];
    for at in times {
        if let Some(place) = starts.partition_point(|start| *start <= at).checked_sub(1) {
            counts[place] += 1;
        }
    }
    counts
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn instants_fall_into_their_buckets() {
        let starts = [10, 20, 30].map(Timestamp);
        let counts = counted([9, 10, 19, 20, 45, 46].into_iter().map(Timestamp), &starts);
        assert_eq!(counts, [2, 1, 2]);
        assert!(counted([1].into_iter().map(Timestamp), &[]).is_empty());
    }
}
