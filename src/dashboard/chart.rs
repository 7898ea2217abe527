//! Charts as inline SVG: numbers in, text out. Pixels are floats, every printed number comes from its decimal. Text
//! stands beside the picture in boxes of its own, so that it keeps its size at every width. Never fetches anything,
//! never knows which page it is on.

use std::borrow::Cow;
use std::fmt::{self, Write};

use askama::filters::HtmlSafe;

use crate::dashboard::view::number;
use crate::metering::calendar::Zone;
use crate::metering::quantity::Quantity;

/// Series with a colour of their own; what is more goes into "other" before it comes here.
pub const SERIES_MAX: usize = 8;
const WIDTH: f64 = 1000.0;
const HEIGHT: f64 = 200.0;
const LABELS_MAX: usize = 5;

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    Bar,
    Stacked,
    Line,
    Area,
}

impl Kind {
    pub const ALL: [(&'static str, &'static str); 4] =
        [("bar", "Bars"), ("stacked", "Stacked bars"), ("line", "Lines"), ("area", "Filled area")];

    pub fn parse(word: &str) -> Option<Kind> {
        match word {
            "bar" => Some(Kind::Bar),
            "stacked" => Some(Kind::Stacked),
            "line" => Some(Kind::Line),
            "area" => Some(Kind::Area),
            _ => None,
        }
    }

    /// Whether heights stand on each other.
    pub fn adds_up(self) -> bool {
        matches!(self, Kind::Stacked | Kind::Area)
    }

    pub fn word(self) -> &'static str {
        match self {
            Kind::Bar => "bar",
            Kind::Stacked => "stacked",
            Kind::Line => "line",
            Kind::Area => "area",
        }
    }
}

#[derive(Clone, Debug)]
pub struct Series {
    pub name: String,
    /// One per bucket; `None` where there is nothing to show, which is not zero.
    pub values: Vec<Option<Quantity>>,
    pub is_other: bool,
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
}

impl Chart {
    pub fn is_empty(&self) -> bool {
        self.series.iter().all(|series| series.values.iter().all(Option::is_none))
    }

    /// One sentence for those who do not see the picture.
    pub fn description(&self) -> String {
        let values = self.series.iter().flat_map(|series| series.values.iter().enumerate());
        let highest = values.filter_map(|(at, value)| value.as_ref().map(|value| (value, at))).max();
        match highest {
            Some((value, at)) => format!(
                "{} buckets, {} series. Highest: {} {} at {}.",
                self.buckets.len(),
                self.series.len(),
                number(value),
                self.unit,
                self.buckets.get(at).map_or("", |bucket| &bucket.name)
            ),
            None => "No values.".to_owned(),
        }
    }

    fn stacks(&self) -> bool {
        matches!(self.kind, Kind::Stacked | Kind::Area) && self.series.len() > 1
    }

    /// Bottom and top of the scale, and the distance of its lines.
    fn scale(&self) -> (f64, f64, f64) {
        let of = |series: &Series, at: usize| {
            series.values.get(at).and_then(Option::as_ref).map_or(0.0, Quantity::to_f64)
        };
        let (mut least, mut most) = (0.0f64, 0.0f64);
        for at in 0..self.buckets.len() {
            let values: Vec<f64> = self.series.iter().map(|series| of(series, at)).collect();
            let (above, below): (Vec<f64>, Vec<f64>) = values.iter().partition(|value| **value > 0.0);
            let stacked = self.stacks();
            let highest = if stacked { above.iter().sum() } else { above.into_iter().fold(0.0, f64::max) };
            let lowest = if stacked { below.iter().sum() } else { below.into_iter().fold(0.0, f64::min) };
            let earlier = self.compare.as_ref().map_or(0.0, |series| of(series, at));
            (least, most) = (least.min(lowest).min(earlier), most.max(highest).max(earlier));
        }
        for (limit, _) in &self.limits {
            most = most.max(limit.to_f64());
        }
        let step = nice((most - least) / 4.0);
        let top = (most / step).ceil().max(if least < 0.0 { 0.0 } else { 1.0 }) * step;
        ((least / step).floor() * step, top, step)
    }

    pub fn plot(&self) -> Svg {
        let mut frame = Frame::new(self);
        frame.grid();
        match self.kind {
            Kind::Bar | Kind::Stacked => frame.bars(),
            Kind::Line | Kind::Area => frame.lines(),
        }
        frame.compare();
        frame.limits();
        frame.hits();
        Svg(frame.text)
    }

    /// The numbers of the scale.
    pub fn y_axis(&self) -> Svg {
        let (bottom, top, step) = self.scale();
        let mut labels = Vec::new();
        let mut value = bottom;
        while value <= top + step / 2.0 {
            labels.push((compact(value), y_of(value, bottom, top)));
            value += step;
        }
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

    /// Name and swatch of each series.
    pub fn legend(&self) -> Vec<(Svg, String)> {
        let of = |(at, series): (usize, &Series)| {
            let class = class_of(at, series.is_other);
            (
                Svg(format!(
                    "<svg viewBox=\"0 0 10 10\" aria-hidden=\"true\"><rect width=\"10\" height=\"10\" rx=\"2\" class=\"f{class}\"/></svg>"
                )),
                series.name.clone(),
            )
        };
        let mut legend: Vec<_> = self.series.iter().enumerate().map(of).collect();
        if let Some(compare) = &self.compare {
            let dash = "<svg viewBox=\"0 0 10 10\" aria-hidden=\"true\"><path d=\"M0 5H10\" class=\"compare\"/></svg>";
            legend.push((Svg(dash.to_owned()), compare.name.clone()));
        }
        for (limit, name) in &self.limits {
            let dash =
                "<svg viewBox=\"0 0 10 10\" aria-hidden=\"true\"><path d=\"M0 5H10\" class=\"limit\"/></svg>";
            legend.push((Svg(dash.to_owned()), format!("{name}: {}", number(limit))));
        }
        legend
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
    (HEIGHT * (1.0 - share)).clamp(0.0, HEIGHT)
}

/// The picture while it is drawn.
struct Frame<'a> {
    chart: &'a Chart,
    bottom: f64,
    top: f64,
    step: f64,
    slot: f64,
    text: String,
}

impl<'a> Frame<'a> {
    fn new(chart: &'a Chart) -> Self {
        let (bottom, top, step) = chart.scale();
        let slot = WIDTH / chart.buckets.len().max(1) as f64;
        let mut text = format!(
            "<svg class=\"plot\" viewBox=\"0 0 {WIDTH} {HEIGHT}\" preserveAspectRatio=\"none\"><g role=\"img\" aria-labelledby=\"{0}-title {0}-desc\">",
            chart.id
        );
        let _ = write!(text, "<title id=\"{}-title\">{}</title>", chart.id, escape(&chart.title));
        let _ = write!(text, "<desc id=\"{}-desc\">{}</desc>", chart.id, escape(&chart.description()));
        Frame { chart, bottom, top, step, slot, text }
    }

    fn y(&self, value: f64) -> f64 {
        y_of(value, self.bottom, self.top)
    }

    fn value(series: &Series, at: usize) -> Option<f64> {
        series.values.get(at).and_then(Option::as_ref).map(Quantity::to_f64)
    }

    fn grid(&mut self) {
        let mut value = self.bottom;
        while value <= self.top + self.step / 2.0 {
            let y = self.y(value);
            let _ = write!(self.text, "<path class=\"grid-line\" d=\"M0 {y:.1}H{WIDTH}\"/>");
            value += self.step;
        }
        let zero = self.y(0.0);
        let _ = write!(self.text, "<path class=\"axis\" d=\"M0 {zero:.1}H{WIDTH}\"/>");
    }

    fn is_running(&self, at: usize) -> bool {
        self.chart.is_running && at + 1 == self.chart.buckets.len()
    }

    fn bars(&mut self) {
        let (count, stacks) = (self.chart.series.len().max(1) as f64, self.chart.stacks());
        let gap = (self.slot * 0.18).min(12.0);
        let width = if stacks { self.slot - gap } else { (self.slot - gap) / count };
        let mut heights = vec![0.0f64; self.chart.buckets.len()];
        for (index, series) in self.chart.series.iter().enumerate() {
            let class = class_of(index, series.is_other);
            let (mut whole, mut running) = (String::new(), String::new());
            for (at, height) in heights.iter_mut().enumerate() {
                let Some(value) = Self::value(series, at).filter(|value| *value != 0.0) else { continue };
                let x = at as f64 * self.slot + gap / 2.0 + if stacks { 0.0 } else { index as f64 * width };
                let from = if stacks { *height } else { 0.0 };
                *height += value;
                let (a, b) = (self.y(from), self.y(from + value));
                let path = if self.is_running(at) { &mut running } else { &mut whole };
                let _ = write!(path, "M{x:.1} {a:.1}V{b:.1}H{:.1}V{a:.1}Z", x + width.max(0.5));
            }
            for (path, more) in [(whole, ""), (running, " running")] {
                if !path.is_empty() {
                    let _ = write!(self.text, "<path class=\"f{class}{more}\" d=\"{path}\"/>");
                }
            }
        }
    }

    fn lines(&mut self) {
        let stacks = self.chart.stacks();
        let mut base = vec![0.0f64; self.chart.buckets.len()];
        for (index, series) in self.chart.series.iter().enumerate() {
            let class = class_of(index, series.is_other);
            let mut tops = base.clone();
            for (at, top) in tops.iter_mut().enumerate() {
                let value = Self::value(series, at);
                *top = if stacks { *top + value.unwrap_or(0.0) } else { value.unwrap_or(f64::NAN) };
            }
            if self.chart.kind == Kind::Area {
                let area = self.area(&tops, &base);
                let _ = write!(self.text, "<path class=\"area f{class}\" d=\"{area}\"/>");
            }
            let line = self.line(&tops);
            let _ = write!(self.text, "<path class=\"line l{class} d{class}\" d=\"{line}\"/>");
            if stacks {
                base = tops;
            }
        }
    }

    fn x(&self, at: usize) -> f64 {
        (at as f64 + 0.5) * self.slot
    }

    /// A line through the values, interrupted where there is none; a lonely value is a short dash.
    fn line(&self, values: &[f64]) -> String {
        let mut path = String::new();
        let mut is_open = false;
        for (at, value) in values.iter().enumerate() {
            if value.is_nan() {
                is_open = false;
                continue;
            }
            let (x, y) = (self.x(at), self.y(*value));
            let is_lonely = !is_open && values.get(at + 1).is_none_or(|next| next.is_nan());
            let _ = match (is_open, is_lonely) {
                (true, _) => write!(path, "L{x:.1} {y:.1}"),
                (false, true) => write!(path, "M{:.1} {y:.1}H{:.1}", x - 3.0, x + 3.0),
                (false, false) => write!(path, "M{x:.1} {y:.1}"),
            };
            is_open = true;
        }
        path
    }

    fn area(&self, tops: &[f64], base: &[f64]) -> String {
        let mut path = String::new();
        let drawn: Vec<usize> = (0..tops.len()).filter(|at| !tops[*at].is_nan()).collect();
        for at in &drawn {
            let sign = if path.is_empty() { "M" } else { "L" };
            let _ = write!(path, "{sign}{:.1} {:.1}", self.x(*at), self.y(tops[*at]));
        }
        for at in drawn.iter().rev() {
            let bottom = base.get(*at).copied().unwrap_or_default();
            let _ = write!(path, "L{:.1} {:.1}", self.x(*at), self.y(bottom));
        }
        if !path.is_empty() {
            path.push('Z');
        }
        path
    }

    fn compare(&mut self) {
        let Some(series) = &self.chart.compare else { return };
        let count = self.chart.buckets.len();
        let values: Vec<f64> = (0..count).map(|at| Self::value(series, at).unwrap_or(f64::NAN)).collect();
        let line = self.line(&values);
        let _ = write!(self.text, "<path class=\"compare\" d=\"{line}\"/>");
    }

    fn limits(&mut self) {
        for (limit, _) in &self.chart.limits {
            let y = self.y(limit.to_f64());
            let _ = write!(self.text, "<path class=\"limit\" d=\"M0 {y:.1}H{WIDTH}\"/>");
        }
    }

    /// One transparent field per bucket: it tells the numbers, and leads to what they are made of.
    fn hits(&mut self) {
        self.text.push_str("</g>");
        for (at, bucket) in self.chart.buckets.iter().enumerate() {
            let mut words = bucket.name.clone();
            for series in &self.chart.series {
                let _ =
                    write!(words, "\n{}: {} {}", series.name, self.chart.cell(series, &at), self.chart.unit);
            }
            let rect = format!(
                "<rect class=\"hit\" x=\"{:.1}\" y=\"0\" width=\"{:.1}\" height=\"{HEIGHT}\"><title>{}</title></rect>",
                at as f64 * self.slot,
                self.slot,
                escape(&words)
            );
            let _ = match bucket.link.is_empty() {
                true => write!(self.text, "{rect}"),
                // the table below has the same links for keys and screen readers
                false => write!(
                    self.text,
                    "<a href=\"{}\" tabindex=\"-1\" aria-hidden=\"true\">{rect}</a>",
                    escape(&bucket.link)
                ),
            };
        }
        self.text.push_str("</svg>");
    }
}

/// 1, 2 or 5 times a power of ten, at least this much.
fn nice(least: f64) -> f64 {
    if !least.is_finite() || least <= 0.0 {
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

/// A small picture of a run of values.
pub fn sparkline(values: &[f64], words: &str) -> Svg {
    let most = values.iter().copied().fold(0.0, f64::max).max(f64::MIN_POSITIVE);
    let slot = 100.0 / values.len().max(1) as f64;
    let mut path = String::new();
    for (at, value) in values.iter().enumerate().filter(|(_, value)| **value > 0.0) {
        let (x, height) = (at as f64 * slot, (value / most * 22.0).max(1.0));
        let _ = write!(path, "M{x:.1} 24V{:.1}H{:.1}V24Z", 24.0 - height, x + slot * 0.8);
    }
    Svg(format!(
        "<svg class=\"spark\" viewBox=\"0 0 100 24\" preserveAspectRatio=\"none\" role=\"img\" aria-label=\"{}\"><path class=\"f1\" d=\"{path}\"/><path class=\"axis\" d=\"M0 24H100\"/></svg>",
        escape(words)
    ))
}

/// How much of a limit is used: the bar goes past the limit when more is used than that.
pub fn quota(percent: f64, warning_percent: f64, pace_percent: Option<f64>, state: &str) -> Svg {
    let full = percent.max(100.0) * 1.02;
    let at = |value: f64| (value / full * 100.0).clamp(0.0, 100.0);
    let mut text = format!(
        "<svg class=\"quota\" viewBox=\"0 0 100 10\" preserveAspectRatio=\"none\" role=\"img\" aria-label=\"{percent:.0} % used\"><rect class=\"track\" width=\"{:.2}\" height=\"10\" rx=\"1\"/>",
        at(100.0)
    );
    let _ = write!(
        text,
        "<rect class=\"used {}\" width=\"{:.2}\" height=\"10\" rx=\"1\"/>",
        escape(state),
        at(percent)
    );
    let _ = write!(
        text,
        "<path class=\"mark\" vector-effect=\"non-scaling-stroke\" d=\"M{0:.2} 0V10\"/>",
        at(warning_percent)
    );
    if let Some(pace) = pace_percent {
        let _ = write!(
            text,
            "<path class=\"pace\" vector-effect=\"non-scaling-stroke\" d=\"M{0:.2} 0V10\"/>",
            at(pace)
        );
    }
    let _ = write!(text, "<path class=\"limit\" d=\"M{0:.2} 0V10\"/></svg>", at(100.0));
    Svg(text)
}

/// A horizontal bar, as long as its share of the largest.
pub fn share_bar(share: f64) -> Svg {
    Svg(format!(
        "<svg class=\"quota\" viewBox=\"0 0 100 10\" preserveAspectRatio=\"none\" aria-hidden=\"true\"><rect class=\"track\" width=\"100\" height=\"10\"/><rect class=\"f1\" width=\"{:.2}\" height=\"10\"/></svg>",
        (share * 100.0).clamp(0.5, 100.0)
    ))
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
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn chart(kind: Kind, values: &[Vec<Option<i64>>]) -> Chart {
        let buckets = values.first().map_or(0, Vec::len);
        Chart {
            id: "c".into(),
            title: "T <b>".into(),
            unit: "u".into(),
            zone: Zone::UTC,
            kind,
            buckets: (0..buckets)
                .map(|at| Bucket {
                    label: at.to_string(),
                    name: at.to_string(),
                    link: format!("/e?x=1&y={at}"),
                })
                .collect(),
            series: values
                .iter()
                .map(|row| Series {
                    name: "\"s\"".into(),
                    values: row.iter().map(|v| v.map(Quantity::from)).collect(),
                    is_other: false,
                })
                .collect(),
            compare: None,
            limits: vec![(Quantity::from(7), "limit".into())],
            is_running: true,
        }
    }

    #[test]
    fn text_is_escaped() {
        let svg = chart(Kind::Bar, &[vec![Some(1), Some(2)]]).plot().to_string();
        assert!(svg.contains("T &lt;b&gt;") && svg.contains("&quot;s&quot;") && svg.contains("x=1&amp;y=0"));
        assert!(!svg.contains("<b>"));
    }

    #[test]
    fn axis_numbers_are_short() {
        for (value, text) in
            [(0.0, "0"), (1500.0, "1.5k"), (2e6, "2M"), (0.25, "0.25"), (1e18, "1.0e18"), (-3000.0, "-3k")]
        {
            assert_eq!(compact(value), text);
        }
        assert_eq!([nice(0.0), nice(3.0), nice(20.0), nice(0.03)], [1.0, 5.0, 20.0, 0.05]);
    }

    proptest! {
        #[test]
        fn pictures_stay_in_their_box(
            rows in prop::collection::vec(prop::collection::vec(prop::option::of(-1_000_000i64..1_000_000_000), 1..40), 1..4),
            kind in prop::sample::select(vec![Kind::Bar, Kind::Stacked, Kind::Line, Kind::Area]),
        ) {
            let shortest = rows.iter().map(Vec::len).min().unwrap_or(0);
            let rows: Vec<_> = rows.into_iter().map(|row| row.into_iter().take(shortest).collect()).collect();
            let chart = chart(kind, &rows);
            let svg = chart.plot().to_string();
            prop_assert!(!svg.contains("NaN") && !svg.contains("inf"));
            for path in svg.split(" d=\"").skip(1).filter_map(|rest| rest.split('"').next()) {
                for number in path.split(|c: char| !(c.is_ascii_digit() || c == '.' || c == '-')).filter(|n| !n.is_empty()) {
                    let number: f64 = number.parse().expect("a number");
                    prop_assert!((-3.1..=WIDTH + 3.1).contains(&number), "{number} in {path}");
                }
            }
            let axis = chart.y_axis().to_string();
            prop_assert!(axis.matches("<text").count() <= 12, "{axis}");
        }
    }
}
