//! Charts as inline SVG: numbers in, text out. Pixels are floats, every printed number comes from its decimal. Text
//! stands beside the picture in boxes of its own, so that it keeps its size at every width. Never fetches anything,
//! never knows which page it is on.

mod frame;
mod small;

use std::borrow::Cow;
use std::fmt::{self, Write};

use askama::filters::HtmlSafe;

use crate::dashboard::view::{self, Link, number};
use crate::metering::calendar::Zone;
use crate::metering::quantity::Quantity;
pub use small::{quota, share_bar, sparkline};

/// Series with a colour of their own; what is more goes into "other" before it comes here.
pub const SERIES_MAX: usize = 8;
const WIDTH: f64 = 1000.0;
const HEIGHT: f64 = 200.0;
const LABELS_MAX: usize = 5;
/// Cells of the table that lead to their events; with more, the row does alone.
const CELL_LINKS_MAX: usize = 1_000;
/// Distance of the names beside the end of a picture.
const END_HEIGHT: f64 = 13.0;
const END_CHARACTERS: usize = 14;
/// How the name begins of what is compared with and not before.
pub const COMPARED: &str = "Compared";
/// Pixels are floats, and what is added up here must still be one.
const PLAIN_MAX: f64 = 1e300;

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    Bar,
    Stacked,
    Line,
    Area,
    /// Stacked bars of one height.
    Share,
    /// No picture, the numbers alone.
    Table,
}

impl Kind {
    pub const ALL: [(&'static str, &'static str); 6] = [
        ("bar", "Bars"),
        ("stacked", "Stacked bars"),
        ("line", "Lines"),
        ("area", "Filled area"),
        ("share", "Shares of 100 %"),
        ("table", "Numbers alone"),
    ];

    pub fn parse(word: &str) -> Option<Kind> {
        match word {
            "bar" => Some(Kind::Bar),
            "stacked" => Some(Kind::Stacked),
            "line" => Some(Kind::Line),
            "area" => Some(Kind::Area),
            "share" => Some(Kind::Share),
            "table" => Some(Kind::Table),
            _ => None,
        }
    }

    /// Whether heights stand on each other.
    pub fn adds_up(self) -> bool {
        matches!(self, Kind::Stacked | Kind::Area | Kind::Share)
    }

    /// Whether values are bars, which are told apart by their patterns; lines are by their dashes.
    fn has_bars(self) -> bool {
        !matches!(self, Kind::Line | Kind::Area)
    }

    pub fn word(self) -> &'static str {
        match self {
            Kind::Bar => "bar",
            Kind::Stacked => "stacked",
            Kind::Line => "line",
            Kind::Area => "area",
            Kind::Share => "share",
            Kind::Table => "table",
        }
    }
}

#[derive(Clone, Debug)]
pub struct Series {
    pub name: String,
    /// One per bucket; `None` where there is nothing to show, which is not zero.
    pub values: Vec<Option<Quantity>>,
    pub is_other: bool,
    /// What the events of this series have besides the time of a bucket, as parameters; `None` where no address says it.
    pub narrow: Option<Link>,
    /// It keeps its colour and its numbers, and is not drawn.
    pub is_hidden: bool,
    /// Where it is a line, its values are marked.
    pub has_points: bool,
    /// The same view with this series hidden, or shown again; blank where it cannot be.
    pub toggle: String,
}

/// An entry of the legend.
pub struct Key {
    pub swatch: Svg,
    pub name: String,
    pub is_hidden: bool,
    /// As [`Series::toggle`].
    pub toggle: String,
}

impl Series {
    /// Made of all events of its buckets.
    pub fn new(name: impl Into<String>, values: Vec<Option<Quantity>>) -> Series {
        let narrow = Some(Link::to(""));
        Series {
            name: name.into(),
            values,
            is_other: false,
            narrow,
            is_hidden: false,
            has_points: false,
            toggle: String::new(),
        }
    }

    pub fn narrowed(self, narrow: Option<Link>) -> Series {
        Series { narrow, ..self }
    }

    /// What is drawn grey: others together, or another time.
    pub fn other(name: impl Into<String>, values: Vec<Option<Quantity>>) -> Series {
        Series { is_other: true, narrow: None, ..Series::new(name, values) }
    }
}

#[derive(Clone, Debug)]
pub struct Bucket {
    /// Short, for the axis.
    pub label: String,
    /// Whole, for the table.
    pub name: String,
    /// What the bucket is made of.
    pub link: String,
}

/// One picture and the numbers it is made of.
#[derive(Clone, Debug)]
pub struct Chart {
    /// Tells charts of one page apart.
    pub id: Cow<'static, str>,
    pub title: String,
    pub unit: String,
    /// In which buckets begin.
    pub zone: Zone,
    pub kind: Kind,
    pub buckets: Vec<Bucket>,
    pub series: Vec<Series>,
    /// The same length of an earlier time.
    pub compare: Option<Series>,
    /// A line to stay below, and what it is called.
    pub limits: Vec<(Quantity, String)>,
    /// The last bucket is not over.
    pub is_running: bool,
    /// Values of different buckets and series may be added.
    pub adds_up: bool,
    /// So many buckets at the beginning have lost single events.
    pub pruned: usize,
}

impl Chart {
    pub fn is_empty(&self) -> bool {
        self.series.iter().all(|series| series.values.iter().all(Option::is_none))
    }

    /// What is drawn, each with its place among all.
    fn drawn(&self) -> impl Iterator<Item = (usize, &Series)> {
        self.series.iter().enumerate().filter(|(_, series)| !series.is_hidden)
    }

    /// Whether there is more to see than the numbers.
    pub fn has_picture(&self) -> bool {
        self.kind != Kind::Table
    }

    /// Another time that is drawn too: it has no part in the shares of this one.
    fn drawn_compare(&self) -> Option<&Series> {
        self.compare.as_ref().filter(|_| self.kind != Kind::Share)
    }

    /// How high a value is drawn: as it is, or as its share of all that its bucket holds, in percent. What is taken back has
    /// no share.
    fn height(&self, series: &Series, at: usize) -> Option<f64> {
        let of = |series: &Series| series.values.get(at).and_then(Option::as_ref).map(plain);
        let value = of(series)?;
        if self.kind != Kind::Share {
            return Some(value);
        }
        let all: f64 = self.series.iter().filter_map(of).map(|value| value.max(0.0)).sum();
        (all > 0.0).then(|| value.max(0.0) / all * 100.0)
    }

    /// How many series are not drawn.
    pub fn hidden(&self) -> usize {
        self.series.iter().filter(|series| series.is_hidden).count()
    }

    /// One sentence for those who do not see the picture: what it adds up to, its ends, and how it changed. And another
    /// where the picture shows less than that.
    pub fn description(&self) -> String {
        match self.hidden() {
            0 => self.sentence(),
            hidden => {
                let shown = self.series.len() - hidden;
                format!("{} The picture shows {shown} of {} series.", self.sentence(), self.series.len())
            }
        }
    }

    fn sentence(&self) -> String {
        let with_unit = |value: &Quantity| format!("{} {}", number(value), self.unit).trim_end().to_owned();
        let Some(columns) = self.columns() else { return self.extremes_of_each(&with_unit) };
        let mut sentence = match self.adds_up {
            true => {
                let total = columns.iter().flatten().fold(Quantity::zero(), |sum, value| &sum + value);
                format!("Total {} in {}", with_unit(&total), self.bucket_count())
            }
            false => self.bucket_count(),
        };
        // what is not over is no minimum, and no end to compare with
        let over = columns.len() - usize::from(self.is_running && columns.len() > 1);
        let values =
            |most: usize| columns.iter().take(most).enumerate().filter_map(|(at, v)| Some((v.as_ref()?, at)));
        let Some((highest, at)) = values(columns.len()).max_by(|a, b| a.0.cmp(b.0).then(b.1.cmp(&a.1)))
        else {
            return "No values.".to_owned();
        };
        let _ = write!(sentence, "; highest {} at {}", with_unit(highest), self.name_of(at));
        if let Some((lowest, at)) = values(over).min() {
            let _ = write!(sentence, ", lowest {} at {}", with_unit(lowest), self.name_of(at));
        }
        if let (Some((first, from)), Some((last, to))) = (values(over).next(), values(over).next_back())
            && from < to
        {
            let change = view::change(last, first);
            let _ = write!(sentence, "; first {}, last whole one {} ({change})", number(first), number(last));
        }
        sentence + "."
    }

    /// Of series that cannot be added up.
    fn extremes_of_each(&self, with_unit: &dyn Fn(&Quantity) -> String) -> String {
        let cells = self.series.iter().flat_map(|series| {
            let cell = move |(at, value): (usize, &Option<Quantity>)| {
                value.clone().map(|value| (value, at, &series.name))
            };
            series.values.iter().enumerate().filter_map(cell)
        });
        let say = |(value, at, name): &(Quantity, usize, &String)| {
            format!("{} at {} ({name})", with_unit(value), self.name_of(*at))
        };
        let mut cells: Vec<_> = cells.collect();
        cells.sort();
        match (cells.last(), cells.first()) {
            (Some(highest), Some(lowest)) => format!(
                "{} series in {}; highest {}, lowest {}.",
                self.series.len(),
                self.bucket_count(),
                say(highest),
                say(lowest)
            ),
            _ => "No values.".to_owned(),
        }
    }

    fn bucket_count(&self) -> String {
        view::counted(self.buckets.len(), "bucket", "buckets")
    }

    fn name_of(&self, at: usize) -> &str {
        self.buckets.get(at).map_or("", |bucket| &bucket.name)
    }

    /// The value of each bucket, where all series together have one.
    fn columns(&self) -> Option<Vec<Option<Quantity>>> {
        let at = |at: usize| self.series.iter().filter_map(move |series| series.values.get(at)?.as_ref());
        let buckets = 0..self.buckets.len();
        match self.adds_up {
            true => {
                let sum = |values: &mut dyn Iterator<Item = &Quantity>| {
                    values.fold(None, |sum: Option<Quantity>, value| {
                        Some(sum.map_or_else(|| value.clone(), |sum| &sum + value))
                    })
                };
                Some(buckets.map(|bucket| sum(&mut at(bucket))).collect())
            }
            false if self.series.len() == 1 => {
                Some(buckets.map(|bucket| at(bucket).next().cloned()).collect())
            }
            false => None,
        }
    }

    fn stacks(&self) -> bool {
        self.kind == Kind::Share || (self.kind.adds_up() && self.series.len() > 1)
    }

    /// Bottom and top of the scale, and the distance of its lines.
    fn scale(&self) -> (f64, f64, f64) {
        if self.kind == Kind::Share {
            return (0.0, 100.0, 25.0);
        }
        let of =
            |series: &Series, at: usize| series.values.get(at).and_then(Option::as_ref).map_or(0.0, plain);
        let (mut least, mut most) = (0.0f64, 0.0f64);
        for at in 0..self.buckets.len() {
            let values: Vec<f64> = self.drawn().map(|(_, series)| of(series, at)).collect();
            let (above, below): (Vec<f64>, Vec<f64>) = values.iter().partition(|value| **value > 0.0);
            let stacked = self.stacks();
            let highest = if stacked { above.iter().sum() } else { above.into_iter().fold(0.0, f64::max) };
            let lowest = if stacked { below.iter().sum() } else { below.into_iter().fold(0.0, f64::min) };
            let earlier = self.compare.as_ref().map_or(0.0, |series| of(series, at));
            (least, most) = (least.min(lowest).min(earlier), most.max(highest).max(earlier));
        }
        for (limit, _) in &self.limits {
            most = most.max(plain(limit));
        }
        let step = nice((most - least) / 4.0);
        let top = (most / step).ceil().max(if least < 0.0 { 0.0 } else { 1.0 }) * step;
        ((least / step).floor() * step, top, step)
    }

    /// Where the scale has a line.
    fn steps(&self) -> impl Iterator<Item = f64> {
        let (bottom, top, step) = self.scale();
        (0..=12)
            .map(move |n| bottom + f64::from(n) * step)
            .take_while(move |value| *value <= top + step / 2.0)
    }

    pub fn plot(&self) -> Svg {
        Svg(frame::Frame::draw(self))
    }

    /// The numbers of the scale.
    pub fn y_axis(&self) -> Svg {
        let (bottom, top, _) = self.scale();
        let percent = if self.kind == Kind::Share { " %" } else { "" };
        let label = |value: f64| format!("{}{percent}", compact(value));
        let labels: Vec<(String, f64)> =
            self.steps().map(|value| (label(value), y_of(value, bottom, top))).collect();
        let width = labels.iter().map(|(label, _)| label.len()).max().unwrap_or(1) * 7 + 8;
        let mut text =
            format!("<svg class=\"y\" width=\"{width}\" height=\"{}\" aria-hidden=\"true\">", HEIGHT + 12.0);
        for (label, y) in labels {
            let _ = write!(
                text,
                "<text x=\"{}\" y=\"{:.1}\" text-anchor=\"end\">{label}</text>",
                width - 6,
                y + 10.0
            );
        }
        text.push_str("</svg>");
        Svg(text)
    }

    /// The names beside the last values, where there are several things to tell apart.
    pub fn ends(&self) -> Option<Svg> {
        let names = self.end_labels();
        if names.is_empty() {
            return None;
        }
        let width = names.iter().map(|(.., name)| name.chars().count()).max().unwrap_or(1) * 7 + 18;
        let height = HEIGHT + 12.0;
        let mut text =
            format!("<svg class=\"ends\" width=\"{width}\" height=\"{height}\" aria-hidden=\"true\">");
        for (y, class, name) in names {
            let _ = write!(
                text,
                "<path class=\"{class}\" d=\"M2 {0:.1}H12\"/><text x=\"16\" y=\"{1:.1}\">{2}</text>",
                y + 6.0,
                y + 10.0,
                escape(&name)
            );
        }
        text.push_str("</svg>");
        Some(Svg(text))
    }

    /// Height, class of the line and name, from top to bottom and never one over another.
    fn end_labels(&self) -> Vec<(f64, String, String)> {
        let (bottom, top, _) = self.scale();
        // a bucket that is not over ends near the ground
        let last =
            self.buckets.len().saturating_sub(1 + usize::from(self.is_running && self.buckets.len() > 1));
        let at = |series: &Series| (0..=last).rev().find_map(|at| self.height(series, at));
        let (mut labels, mut height) = (Vec::new(), 0.0);
        let mut add = |y: f64, class: String, name: &str| {
            labels.push((y_of(y, bottom, top), class, view::short(name, END_CHARACTERS)));
        };
        if self.series.len() > 1 {
            for (index, series) in self.drawn() {
                let (Some(value), class) = (at(series), class_of(index, series.is_other)) else { continue };
                let middle = if self.stacks() { height + value / 2.0 } else { value };
                height += value;
                add(middle, format!("line l{class} d{class}"), &series.name);
            }
        }
        if let Some((series, value)) = self.drawn_compare().and_then(|series| Some((series, at(series)?))) {
            let is_before = !series.name.starts_with(COMPARED);
            add(value, "compare".to_owned(), if is_before { "Before" } else { COMPARED });
        }
        for (limit, name) in &self.limits {
            add(plain(limit), "limit".to_owned(), name);
        }
        spread(&mut labels);
        labels
    }

    pub fn x_axis(&self) -> Svg {
        let mut text = "<svg class=\"x\" width=\"100%\" height=\"18\" aria-hidden=\"true\">".to_owned();
        let count = self.buckets.len().max(1);
        let every = count.div_ceil(LABELS_MAX);
        for (at, bucket) in self.buckets.iter().enumerate().step_by(every) {
            let middle = (at as f64 + 0.5) / count as f64 * 100.0;
            let (x, anchor) = match middle {
                middle if middle < 4.0 => (0.0, "start"),
                middle if middle > 94.0 => (100.0, "end"),
                middle => (middle, "middle"),
            };
            let _ = write!(
                text,
                "<text x=\"{x:.2}%\" y=\"12\" text-anchor=\"{anchor}\">{}</text>",
                escape(&bucket.label)
            );
        }
        text.push_str("</svg>");
        Svg(text)
    }

    /// Name and swatch of each series, and of what else is drawn.
    pub fn legend(&self) -> Vec<Key> {
        let swatch =
            |inner: String| Svg(format!("<svg viewBox=\"0 0 10 10\" aria-hidden=\"true\">{inner}</svg>"));
        let square = |fill: &str| format!("<rect width=\"10\" height=\"10\" rx=\"2\" {fill}/>");
        let dash = |class: &str| format!("<path d=\"M0 5H10\" class=\"{class}\"/>");
        let entry = |swatch: Svg, name: String| Key { swatch, name, is_hidden: false, toggle: String::new() };
        let mut legend = Vec::new();
        if self.series.len() > 1 || self.drawn_compare().is_some() || !self.limits.is_empty() {
            for (at, series) in self.series.iter().enumerate() {
                let class = class_of(at, series.is_other);
                let inner = match self.kind {
                    Kind::Line => dash(&format!("line l{class} d{class}")),
                    _ => square(&frame::fill(self, class)),
                };
                let (is_hidden, toggle) = (series.is_hidden, series.toggle.clone());
                legend.push(Key { is_hidden, toggle, ..entry(swatch(inner), series.name.clone()) });
            }
        }
        if let Some(compare) = self.drawn_compare() {
            legend.push(entry(swatch(dash("compare")), compare.name.clone()));
        }
        for (limit, name) in &self.limits {
            legend.push(entry(swatch(dash("limit")), format!("{name}: {}", number(limit))));
        }
        if self.is_running && !self.buckets.is_empty() {
            let hatch = square(&format!("fill=\"url(#{}-run)\"", self.id));
            legend.push(entry(swatch(square("class=\"f0\"") + &hatch), "Not over yet".to_owned()));
        }
        if self.pruned > 0 {
            let words = "Single events pruned, totals stand".to_owned();
            legend.push(entry(swatch(square("class=\"pruned\"")), words));
        }
        legend
    }

    /// The events that a cell of the table is made of; blank where no address says it, or there are too many cells.
    pub fn cell_link(&self, series: &Series, at: &usize) -> String {
        let has_events =
            series.values.get(*at).and_then(Option::as_ref).is_some_and(|value| !value.is_zero());
        let few = self.buckets.len() * self.series.len() <= CELL_LINKS_MAX;
        match (self.buckets.get(*at), &series.narrow) {
            (Some(bucket), Some(narrow)) if has_events && few && !bucket.link.is_empty() => {
                bucket.link.clone() + &narrow.to_string().replacen('?', "&", 1)
            }
            _ => String::new(),
        }
    }

    /// A cell of the table.
    pub fn cell(&self, series: &Series, at: &usize) -> String {
        series.values.get(*at).and_then(Option::as_ref).map_or_else(|| "–".to_owned(), number)
    }
}

fn class_of(at: usize, is_other: bool) -> usize {
    if is_other { 0 } else { at % SERIES_MAX + 1 }
}

fn y_of(value: f64, bottom: f64, top: f64) -> f64 {
    let share = (value - bottom) / (top - bottom).max(f64::MIN_POSITIVE);
    let y = HEIGHT * (1.0 - share);
    if y.is_finite() { y.clamp(0.0, HEIGHT) } else { HEIGHT }
}

/// As a number of the picture.
fn plain(value: &Quantity) -> f64 {
    value.to_f64().clamp(-PLAIN_MAX, PLAIN_MAX)
}

/// Moves names apart that would stand on each other.
fn spread(labels: &mut [(f64, String, String)]) {
    labels.sort_by(|(a, ..), (b, ..)| a.total_cmp(b));
    let mut least = 0.0;
    for (y, ..) in labels.iter_mut() {
        *y = y.max(least);
        least = *y + END_HEIGHT;
    }
    let mut most = HEIGHT;
    for (y, ..) in labels.iter_mut().rev() {
        *y = y.min(most);
        most = *y - END_HEIGHT;
    }
}

/// 1, 2 or 5 times a power of ten, at least this much.
fn nice(least: f64) -> f64 {
    if !least.is_finite() || least < 1e-290 {
        return 1.0;
    }
    let power = 10f64.powf(least.log10().floor());
    let factor =
        [1.0, 2.0, 5.0, 10.0].into_iter().find(|factor| factor * power >= least * 0.999_999).unwrap_or(10.0);
    factor * power
}

/// A number for an axis, three digits or so: `1.5M`.
pub fn compact(value: f64) -> String {
    let units = [(1e15, ""), (1e12, "T"), (1e9, "G"), (1e6, "M"), (1e3, "k"), (1.0, "")];
    let size = value.abs();
    if size == 0.0 {
        return "0".to_owned();
    }
    if !(1e-4..1e15).contains(&size) {
        return format!("{value:.1e}");
    }
    let (unit, name) = units.into_iter().find(|(unit, _)| size >= *unit).unwrap_or((1.0, ""));
    let text = format!("{:.5}", value / unit);
    let text = text.trim_end_matches('0').trim_end_matches('.');
    format!("{text}{name}")
}

fn escape(text: &str) -> String {
    text.replace('&', "&amp;").replace('<', "&lt;").replace('>', "&gt;").replace('"', "&quot;")
}

/// Markup that this file made, with every text in it escaped.
#[derive(Clone, Debug)]
pub struct Svg(String);

impl fmt::Display for Svg {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl HtmlSafe for Svg {}

#[cfg(test)]
mod tests;
