//! What an address of `/usage` asks for, and the addresses and questions that follow from it. What is found lives in
//! `usage_results`, the page in `explore`.

use std::sync::Arc;

use crate::dashboard::ask;
use crate::dashboard::chart::{Kind, Series};
use crate::dashboard::grammar::{self, Condition, Range};
use crate::dashboard::sorting::{Orders, Sort};
use crate::dashboard::view::Link;
use crate::error::{Error, Result};
use crate::http::extract::Params;
use crate::metering::calendar::{Buckets, Calendar, Wish, Zone};
use crate::metering::meter::{Aggregation, Meter};
use crate::metering::time::{DAY, Timestamp, Unit, Window};
use crate::usage::query::{Query, parse_group_by, parse_subject_filter};

/// What the table of groups can be sorted by.
static ORDERS: Orders = Orders { columns: &["name", "-quantity"], default: "-quantity" };
const DEFAULT_RANGE: &str = "28d+today";
pub const COMPARISONS: [(&str, &str); 4] = [
    ("", "nothing"),
    ("prev", "the time before"),
    ("weekday", "the same weekdays before"),
    ("year", "a year before"),
];
pub const BUCKETS: [(&str, &str); 10] = [
    ("auto", "automatic"),
    ("minute", "minute"),
    ("5m", "5 minutes"),
    ("15m", "15 minutes"),
    ("hour", "hour"),
    ("day", "day"),
    ("week", "week"),
    ("month", "month"),
    ("quarter", "quarter"),
    ("year", "year"),
];
/// What is drawn and counted, with its words.
pub const METRICS: [(&str, &str); 5] = [
    ("", "quantity"),
    ("events", "number of events"),
    ("subjects", "number of subjects"),
    ("average", "average quantity"),
    ("peak", "largest quantity"),
];
/// Counted one event after the other.
const OF_SUBJECTS: &str = "subjects";
/// Another word for the box that adds up over time.
const CUMULATIVE: &str = "cumulative";
/// Groups that have a series of their own in a picture, at most.
pub const SERIES_DRAWN: usize = 8;
/// The series of what has none of its own, in an address.
const OTHER: &str = "Other";

/// What an address asks for.
#[derive(Clone)]
pub struct UsageView {
    /// With the aggregation and unit of what is asked for.
    pub meter: Meter,
    pub subject: String,
    pub range: Range,
    /// Of the buckets; its zone is that of the dates in the address too.
    pub calendar: Calendar,
    /// As in the address: empty is that of the workspace.
    pub time_zone: String,
    /// As in the address: empty is Monday.
    pub week_start: String,
    /// As in the address: `auto` is not yet decided.
    pub bucket: String,
    pub group: Vec<String>,
    pub conditions: Vec<Condition>,
    pub compare: String,
    /// The time that is compared with, where the address names it.
    pub other: Option<Window>,
    pub kind: Kind,
    pub is_cumulative: bool,
    /// Values of lines are marked.
    pub has_points: bool,
    pub show: String,
    /// As in the address: empty is what the meter makes of its quantities.
    pub metric: String,
    /// Groups that have a series of their own at most.
    pub top: usize,
    /// Of the table of groups.
    pub sort: Sort,
    /// Names of series that the picture does not show.
    pub hidden: Vec<String>,
}

impl UsageView {
    /// `home` is the zone of the workspace.
    pub fn parse(meter: Meter, params: &Params, home: &Zone) -> Result<UsageView> {
        let week_start = params.get("week_start");
        let wish = Wish { time_zone: params.get("time_zone"), week_start, ..Wish::default() };
        let calendar = wish.calendar(home)?;
        let range = Range::parse_in(&calendar.zone, params, DEFAULT_RANGE, Timestamp::now())?;
        let size = grammar::bucket(params.get("bucket"), range.window)?;
        let calendar = Calendar { size, ..calendar };
        Buckets::of(calendar.clone(), range.window)?;
        let group: Vec<String> = params
            .all("group")
            .flat_map(|list| list.split(','))
            .filter(|name| !name.is_empty())
            .map(str::to_owned)
            .collect();
        let (compare, other) = compared(params, &calendar)?;
        let (meter, metric) = measured(meter, params.get("metric").trim())?;
        let show = match params.get("show").trim() {
            // a box of the form stacks bars
            "" | "bar" if !params.get("stack").is_empty() && ask::is_additive(meter.aggregation) => {
                Kind::Stacked.word()
            }
            show => show,
        };
        if !["", CUMULATIVE].contains(&show) && Kind::parse(show).is_none() {
            let known = Kind::ALL.map(|(word, _)| word).join(", ");
            return Err(Error::invalid(format!("show must be one of {known}, {CUMULATIVE}")));
        }
        let drawn = if ask::is_additive(meter.aggregation) { Kind::Stacked } else { Kind::Line };
        Ok(UsageView {
            subject: parse_subject_filter(params.get("subject"))?.unwrap_or_default(),
            conditions: grammar::conditions(params)?,
            // heights that stand on each other are a sum
            kind: Kind::parse(show).filter(|kind| drawn == Kind::Stacked || !kind.adds_up()).unwrap_or(drawn),
            is_cumulative: (!params.get("cum").is_empty() || show == CUMULATIVE)
                && ask::is_additive(meter.aggregation),
            has_points: !params.get("points").is_empty(),
            bucket: params.get("bucket").to_owned(),
            meter,
            range,
            calendar,
            time_zone: params.get("time_zone").to_owned(),
            week_start: week_start.to_owned(),
            group,
            compare,
            other,
            show: if show == CUMULATIVE { String::new() } else { show.to_owned() },
            metric,
            top: top(params.get("top").trim())?,
            sort: Sort::parse(params.get("sort"), &ORDERS)?,
            hidden: params.all("hide").take(SERIES_DRAWN + 1).map(str::to_owned).collect(),
        })
    }

    /// The address of this view.
    pub fn link(&self, path: &str) -> Link {
        self.unsorted(path).with("sort", &self.sort.word())
    }

    /// With the groups in the order that needs no word.
    pub fn unsorted(&self, path: &str) -> Link {
        let link = self.scope(path).with("cmp", &self.compare).with("show", &self.show);
        let link = link.with("cum", if self.is_cumulative { "1" } else { "" }).with("metric", &self.metric);
        let link = link.with("points", if self.has_points { "1" } else { "" });
        let link = match self.top {
            SERIES_DRAWN => link,
            most => link.with("top", &most.to_string()),
        };
        self.hidden.iter().fold(link, |link, name| link.with("hide", name))
    }

    /// The address of the view with one series more hidden, or shown again.
    fn toggled(&self, name: &str) -> String {
        let mut next = self.clone();
        match next.hidden.iter().position(|hidden| hidden == name) {
            Some(at) => drop(next.hidden.remove(at)),
            None => next.hidden.push(name.to_owned()),
        }
        next.link("/usage").to_string()
    }

    /// Says which series of a picture are drawn; one alone always is.
    pub fn hide(&self, series: &mut [Series]) {
        if series.len() < 2 {
            return;
        }
        for one in series {
            // how many are together changes from day to day
            let name = if one.is_other { OTHER } else { one.name.as_str() };
            (one.is_hidden, one.toggle) =
                (self.hidden.iter().any(|hidden| hidden == name), self.toggled(name));
        }
    }

    /// Meter, subject, range, bucket, groups and filters.
    pub fn scope(&self, path: &str) -> Link {
        let link =
            self.range.on(Link::to(path).with("meter", &self.meter.name).with("subject", &self.subject));
        let link = link.with("bucket", &self.bucket).with("time_zone", &self.time_zone);
        let link = link.with("week_start", &self.week_start);
        let link = link.with("group", &self.group.join(","));
        self.conditions
            .iter()
            .fold(link, |link, condition| link.with(condition.parameter(), &condition.text()))
    }

    /// The events that the view is made of, without their time.
    pub fn events(&self) -> Link {
        let link = Link::to("/events").with("meter", &self.meter.name).with("subject", &self.subject);
        self.conditions
            .iter()
            .fold(link, |link, condition| link.with(condition.parameter(), &condition.text()))
    }

    /// With buckets, or all of the window in one.
    pub fn query(&self, window: Window, in_buckets: bool, grouped: bool) -> Result<Query> {
        let buckets = match in_buckets {
            true => Some(Buckets::of(self.calendar.clone(), window)?),
            false => None,
        };
        let is_lost = self.meter.pruned_before.filter(|before| *before > window.from);
        if let (OF_SUBJECTS, Some(before)) = (self.metric.as_str(), is_lost) {
            return Err(Error::invalid(format!(
                "metric subjects looks at single events, and those before {} are pruned: choose a later time",
                before.to_seconds_text()
            )));
        }
        let group = if grouped { self.group.as_slice() } else { &[] };
        Ok(Query {
            group_by: parse_group_by(&self.meter, group.iter().map(String::as_str))?,
            meter: Arc::new(self.meter.clone()),
            window,
            subject: Some(self.subject.clone()).filter(|subject| !subject.is_empty()),
            filter: grammar::filter(&self.conditions, Some(&self.meter))?,
            buckets,
            skip_missing: false,
            exact: true,
        })
    }

    /// With these values as conditions too, and these groups.
    pub fn with_values(&self, values: &[(String, &str)], op: &str, group: Vec<String>) -> UsageView {
        let mut next = self.clone();
        next.conditions.extend(values.iter().map(|(field, value)| Condition {
            field: field.clone(),
            op: op.to_owned(),
            value: grammar::escape(value),
        }));
        next.group = group;
        next
    }

    pub fn by_subject(&self) -> bool {
        self.group.iter().any(|name| name == "subject")
    }

    /// The window that this one is compared with.
    pub fn earlier(&self) -> Option<Window> {
        let window = self.range.window;
        let shift = |by: i64| Window { from: window.from.plus(-by), to: window.to.plus(-by) };
        match self.compare.as_str() {
            "prev" => Some(shift(window.length())),
            "weekday" => Some(shift(Timestamp(window.length()).ceil(7 * DAY).0)),
            "year" => Some(Window { from: window.from.plus_months(-12), to: window.to.plus_months(-12) }),
            _ => self.other,
        }
    }
}

/// A meter that comes to what is asked for, and the word for that in an address.
fn measured(meter: Meter, metric: &str) -> Result<(Meter, String)> {
    let with = |meter: Meter, aggregation: Aggregation| Meter { aggregation, ..meter };
    let measured = match metric {
        "" | "quantity" => return Ok((meter, String::new())),
        "events" => Meter { unit: "events".to_owned(), ..with(meter, Aggregation::Count) },
        "average" => with(meter, Aggregation::Avg),
        "peak" => with(meter, Aggregation::Max),
        OF_SUBJECTS => {
            let mut counted = with(meter, Aggregation::UniqueCount);
            counted.options.aggregation_field = Some("subject".to_owned());
            Meter { unit: "subjects".to_owned(), ..counted }
        }
        _ => return Err(Error::invalid("metric must be quantity, events, subjects, average or peak")),
    };
    Ok((measured, metric.to_owned()))
}

/// How many groups have a series of their own.
fn top(text: &str) -> Result<usize> {
    match text {
        "" => Ok(SERIES_DRAWN),
        text => text
            .parse()
            .ok()
            .filter(|most| (1..=SERIES_DRAWN).contains(most))
            .ok_or_else(|| Error::invalid(format!("top must be a whole number, {SERIES_DRAWN} at most"))),
    }
}

/// What a view is compared with: a word, or `from..to`, which the form sends as two fields.
fn compared(params: &Params, calendar: &Calendar) -> Result<(String, Option<Window>)> {
    let word = match (params.get("cmp_from").trim(), params.get("cmp_to").trim()) {
        ("", "") => params.get("cmp").trim().to_owned(),
        (from, to) => format!("{from}..{to}"),
    };
    if COMPARISONS.iter().any(|(known, _)| *known == word) {
        return Ok((word, None));
    }
    let Some((from, to)) = word.split_once("..") else {
        return Err(Error::invalid("cmp must be prev, weekday, year or from..to"));
    };
    let at = |text: &str| grammar::instant(text, "cmp", Timestamp::now(), &calendar.zone);
    let window = Window { from: at(from)?, to: at(to)? };
    if window.from >= window.to {
        return Err(Error::invalid("cmp must begin before it ends"));
    }
    Buckets::of(calendar.clone(), window)?;
    Ok((word, Some(window)))
}

/// Buckets are weeks, which begin on a day that has to be told.
pub fn has_weeks(asked: &UsageView) -> bool {
    asked.calendar.size.parts().0 == Unit::Week
}
