//! The picture while it is drawn: lines of the scale, bars or lines, what is not over, what is pruned, and a field per
//! bucket that tells its numbers.

use std::fmt::Write;

use super::{Chart, HEIGHT, Kind, WIDTH, class_of, escape, plain, y_of};

/// Numbers that are told where a pointer rests; with more, the total of a bucket is told alone.
const WORDS_MAX: usize = 2_000;

/// What tells series apart that have no colours: by class, drawn on a tile of eight by eight. One and "other" are plain.
const PATTERNS: [(usize, &str); 7] = [
    (2, "M-2 2L2 -2M0 8L8 0M6 10L10 6"),
    (3, "M1 2H3M5 6H7"),
    (4, "M0 2H8M0 6H8"),
    (5, "M-2 6L2 10M0 0L8 8M6 -2L10 2"),
    (6, "M2 0V8M6 0V8"),
    (7, "M0 4H8M4 0V8"),
    (8, "M0 0L8 8M0 8L8 0"),
];

/// The fill of a series: its colour, with its pattern where there are several.
pub fn fill(chart: &Chart, class: usize) -> String {
    match is_patterned(chart) && PATTERNS.iter().any(|(known, _)| *known == class) {
        true => format!("fill=\"url(#{}-p{class})\"", chart.id),
        false => format!("class=\"f{class}\""),
    }
}

/// Areas and lines are told apart by their dashes.
fn is_patterned(chart: &Chart) -> bool {
    chart.series.len() > 1 && chart.kind.has_bars()
}

pub struct Frame<'a> {
    chart: &'a Chart,
    bottom: f64,
    top: f64,
    slot: f64,
    text: String,
}

impl<'a> Frame<'a> {
    pub fn draw(chart: &'a Chart) -> String {
        let mut frame = Frame::new(chart);
        frame.patterns();
        frame.pruned();
        frame.grid();
        match chart.kind.has_bars() {
            true => {
                frame.bars();
                frame.running();
            }
            false => {
                frame.running();
                frame.lines();
            }
        }
        frame.compare();
        frame.limits();
        frame.hits();
        frame.text
    }

    fn new(chart: &'a Chart) -> Self {
        let (bottom, top, _) = chart.scale();
        let slot = WIDTH / chart.buckets.len().max(1) as f64;
        let mut text = format!(
            "<svg class=\"plot\" viewBox=\"0 0 {WIDTH} {HEIGHT}\" preserveAspectRatio=\"none\"><g role=\"img\" aria-labelledby=\"{0}-title {0}-desc\">",
            chart.id
        );
        let _ = write!(text, "<title id=\"{}-title\">{}</title>", chart.id, escape(&chart.title));
        let _ = write!(text, "<desc id=\"{}-desc\">{}</desc>", chart.id, escape(&chart.description()));
        Frame { chart, bottom, top, slot, text }
    }

    fn y(&self, value: f64) -> f64 {
        y_of(value, self.bottom, self.top)
    }

    fn patterns(&mut self) {
        let id = &self.chart.id;
        let used = |class: usize| {
            let mut all = self.chart.series.iter().enumerate();
            is_patterned(self.chart) && all.any(|(at, series)| class_of(at, series.is_other) == class)
        };
        // twice as wide as high: the picture is narrower than it is drawn, on a telephone by four times
        let tile = "patternUnits=\"userSpaceOnUse\" width=\"16\" height=\"8\" viewBox=\"0 0 8 8\" preserveAspectRatio=\"none\"";
        for (class, path) in PATTERNS.into_iter().filter(|(class, _)| used(*class)) {
            let _ = write!(
                self.text,
                "<pattern id=\"{id}-p{class}\" {tile}><rect width=\"8\" height=\"8\" class=\"f{class}\"/><path class=\"ink\" d=\"{path}\"/></pattern>"
            );
        }
        if self.chart.is_running {
            let ink = if self.chart.kind.has_bars() { "ink wide" } else { "rule" };
            let _ = write!(
                self.text,
                "<pattern id=\"{id}-run\" {tile}><path class=\"{ink}\" d=\"M-2 6L2 10M0 0L8 8M6 -2L10 2\"/></pattern>"
            );
        }
    }

    /// Time whose single events are gone.
    fn pruned(&mut self) {
        let width = self.chart.pruned.min(self.chart.buckets.len()) as f64 * self.slot;
        if width > 0.0 {
            let _ = write!(self.text, "<rect class=\"pruned\" width=\"{width:.1}\" height=\"{HEIGHT}\"/>");
        }
    }

    /// The last bucket is hatched while it is not over.
    fn running(&mut self) {
        if self.chart.is_running && !self.chart.buckets.is_empty() {
            let _ = write!(
                self.text,
                "<rect fill=\"url(#{}-run)\" x=\"{:.1}\" width=\"{:.1}\" height=\"{HEIGHT}\"/>",
                self.chart.id,
                WIDTH - self.slot,
                self.slot
            );
        }
    }

    fn grid(&mut self) {
        for value in self.chart.steps() {
            let y = self.y(value);
            let _ = write!(self.text, "<path class=\"grid-line\" d=\"M0 {y:.1}H{WIDTH}\"/>");
        }
        let zero = self.y(0.0);
        let _ = write!(self.text, "<path class=\"axis\" d=\"M0 {zero:.1}H{WIDTH}\"/>");
    }

    fn bars(&mut self) {
        let (count, stacks) = (self.chart.drawn().count().max(1) as f64, self.chart.stacks());
        let gap = (self.slot * 0.18).min(12.0);
        let width = if stacks { self.slot - gap } else { (self.slot - gap) / count };
        let mut heights = vec![0.0f64; self.chart.buckets.len()];
        for (place, (index, series)) in self.chart.drawn().enumerate() {
            let mut path = String::new();
            for (at, height) in heights.iter_mut().enumerate() {
                let value = self.chart.height(series, at).filter(|value| *value != 0.0);
                let Some(value) = value else { continue };
                let x = at as f64 * self.slot + gap / 2.0 + if stacks { 0.0 } else { place as f64 * width };
                let from = if stacks { *height } else { 0.0 };
                *height += value;
                let (a, b) = (self.y(from), self.y(from + value));
                let end = (x + width.max(0.5)).min(WIDTH);
                let _ = write!(path, "M{x:.1} {a:.1}V{b:.1}H{end:.1}V{a:.1}Z");
            }
            if !path.is_empty() {
                let fill = fill(self.chart, class_of(index, series.is_other));
                let _ = write!(self.text, "<path {fill} d=\"{path}\"/>");
            }
        }
    }

    fn lines(&mut self) {
        let stacks = self.chart.stacks();
        let mut base = vec![0.0f64; self.chart.buckets.len()];
        for (index, series) in self.chart.drawn() {
            let class = class_of(index, series.is_other);
            let mut tops = base.clone();
            for (at, top) in tops.iter_mut().enumerate() {
                let value = self.chart.height(series, at);
                *top = if stacks { *top + value.unwrap_or(0.0) } else { value.unwrap_or(f64::NAN) };
            }
            if self.chart.kind == Kind::Area {
                let area = self.area(&tops, &base);
                let _ = write!(self.text, "<path class=\"area f{class}\" d=\"{area}\"/>");
            }
            let line = self.line(&tops);
            let _ = write!(self.text, "<path class=\"line l{class} d{class}\" d=\"{line}\"/>");
            if series.has_points {
                let points = self.points(&tops);
                let _ = write!(self.text, "<path class=\"points l{class}\" d=\"{points}\"/>");
            }
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
                (false, true) => {
                    write!(path, "M{:.1} {y:.1}H{:.1}", (x - 3.0).max(0.0), (x + 3.0).min(WIDTH))
                }
                (false, false) => write!(path, "M{x:.1} {y:.1}"),
            };
            is_open = true;
        }
        path
    }

    /// A stroke of no length at each value: with round ends it is a dot, however wide the picture is drawn.
    fn points(&self, values: &[f64]) -> String {
        let mut path = String::new();
        for (at, value) in values.iter().enumerate().filter(|(_, value)| !value.is_nan()) {
            let _ = write!(path, "M{:.1} {:.1}h0", self.x(at), self.y(*value));
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
        let Some(series) = self.chart.drawn_compare() else { return };
        let count = self.chart.buckets.len();
        let values: Vec<f64> =
            (0..count).map(|at| self.chart.height(series, at).unwrap_or(f64::NAN)).collect();
        let line = self.line(&values);
        let _ = write!(self.text, "<path class=\"compare\" d=\"{line}\"/>");
    }

    fn limits(&mut self) {
        for (limit, _) in &self.chart.limits {
            let y = self.y(plain(limit));
            let _ = write!(self.text, "<path class=\"limit\" d=\"M0 {y:.1}H{WIDTH}\"/>");
        }
    }

    /// What a bucket says where a pointer rests on it, or the keys walk to it.
    fn words(&self, at: usize) -> String {
        let chart = self.chart;
        let mut words = chart.buckets.get(at).map_or_else(String::new, |bucket| bucket.name.clone());
        if chart.is_running && at + 1 == chart.buckets.len() {
            words.push_str(" (not over yet)");
        }
        let say = |name: &str, value: String| match value.as_str() {
            "–" => format!("\n{name}: –"),
            value => format!("\n{name}: {value} {}", chart.unit).trim_end().to_owned(),
        };
        if chart.buckets.len() * chart.series.len() > WORDS_MAX {
            let total = chart.columns().and_then(|columns| columns.get(at)?.clone());
            return total.map_or(words.clone(), |total| words + &say("Total", super::number(&total)));
        }
        for series in chart.series.iter().chain(&chart.compare) {
            words.push_str(&say(&series.name, chart.cell(series, &at)));
        }
        words
    }

    /// One transparent field per bucket: it tells the numbers, and leads to what they are made of.
    fn hits(&mut self) {
        self.text.push_str("</g>");
        for (at, bucket) in self.chart.buckets.iter().enumerate() {
            let rect = format!(
                "<rect class=\"hit\" x=\"{:.1}\" y=\"0\" width=\"{:.1}\" height=\"{HEIGHT}\"><title>{}</title></rect>",
                at as f64 * self.slot,
                self.slot,
                escape(&self.words(at))
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
