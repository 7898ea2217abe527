//! What was measured, as a table for people and as JSON for programs.

use std::fmt::Write;
use std::path::Path;

use serde_json::{Value, json};

use crate::Outcome;

/// One line of the table.
#[derive(Clone, Debug, Default)]
pub struct Row {
    pub database: &'static str,
    pub path: String,
    /// Per second.
    pub rate: f64,
    pub unit: &'static str,
    /// Milliseconds.
    pub p50: f64,
    pub p99: f64,
    /// Microseconds of processor time per event or request.
    pub client: f64,
    pub server: f64,
    pub db: f64,
    /// Bytes of the server, at most.
    pub peak: u64,
    /// The bare loop, where there is one to compare with: its rate, and its processor time per event with that of
    /// the database.
    pub ceiling: Option<(f64, f64)>,
    /// Median time of a durable write of 8 kB beside the load, microseconds.
    pub sync: f64,
    /// Share of the machine that neither client, server nor database used.
    pub others: f64,
    pub note: String,
}

impl Row {
    fn ratio(&self) -> Option<f64> {
        self.ceiling.map(|(rate, _)| self.rate / rate)
    }

    /// The same comparison by processor time: other programs on the machine disturb it far less.
    fn cpu_ratio(&self) -> Option<f64> {
        let spent = self.server + self.db;
        self.ceiling.filter(|(_, cpu)| *cpu > 0.0 && spent > 0.0).map(|(_, cpu)| cpu / spent)
    }

    fn to_json(&self) -> Value {
        json!({
            "database": self.database, "path": self.path, "rate": self.rate, "unit": self.unit,
            "p50_ms": self.p50, "p99_ms": self.p99,
            "cpu_us": {"client": self.client, "server": self.server, "database": self.db},
            "peak_rss_bytes": self.peak, "ceiling": self.ceiling.map(|(rate, _)| rate),
            "ratio": self.ratio(), "cpu_ratio": self.cpu_ratio(), "sync_us": self.sync,
            "other_load": self.others, "note": self.note,
        })
    }
}

#[derive(Default)]
pub struct Report {
    pub rows: Vec<Row>,
    /// Conditions of the run, in the order they became known.
    pub facts: Vec<(String, String)>,
}

const HEAD: [&str; 16] = [
    "database",
    "path",
    "rate",
    "",
    "p50 ms",
    "p99 ms",
    "client µs",
    "server µs",
    "db µs",
    "peak MB",
    "ceiling",
    "ratio",
    "CPU ratio",
    "sync ms",
    "others",
    "note",
];

impl Report {
    pub fn fact(&mut self, name: impl Into<String>, value: impl Into<String>) {
        let (name, value) = (name.into(), value.into());
        if self.facts.iter().any(|(known, same)| (known, same) == (&name, &value)) {
            return;
        }
        eprintln!("  {name}: {value}");
        self.facts.push((name, value));
    }

    pub fn row(&mut self, row: Row) {
        let ratio = row.ratio().map_or(String::new(), |ratio| format!(", {ratio:.2} of the ceiling"));
        eprintln!("  {} {}: {} {}/s{ratio} {}", row.database, row.path, short(row.rate), row.unit, row.note);
        self.rows.push(row);
    }

    /// Markdown, aligned, so that it reads on a terminal and in a document.
    pub fn table(&self) -> String {
        let cells: Vec<[String; 16]> = self.rows.iter().map(cells_of).collect();
        let width = |column: usize| {
            let longest = cells.iter().map(|row| row[column].chars().count()).max().unwrap_or(0);
            longest.max(HEAD[column].chars().count())
        };
        let widths: Vec<usize> = (0..HEAD.len()).map(width).collect();
        let mut text = String::new();
        line(&mut text, &HEAD.map(str::to_owned), &widths);
        line(&mut text, &std::array::from_fn(|column| rule(column, widths[column])), &widths);
        for row in &cells {
            line(&mut text, row, &widths);
        }
        for (name, value) in &self.facts {
            let _ = write!(text, "\n- {name}: {value}");
        }
        text.push('\n');
        text
    }

    pub fn save(&self, path: &Path) -> Outcome<()> {
        let facts: serde_json::Map<String, Value> =
            self.facts.iter().map(|(name, value)| (name.clone(), Value::from(value.as_str()))).collect();
        let rows: Vec<Value> = self.rows.iter().map(Row::to_json).collect();
        let text = serde_json::to_string_pretty(&json!({"facts": facts, "rows": rows}))?;
        Ok(std::fs::write(path, text + "\n")?)
    }
}

fn cells_of(row: &Row) -> [String; 16] {
    let some = |value: f64, digits: usize| {
        if value > 0.0 { format!("{value:.digits$}") } else { String::new() }
    };
    [
        row.database.to_owned(),
        row.path.clone(),
        if row.rate > 0.0 { short(row.rate) } else { String::new() },
        if row.unit.is_empty() { String::new() } else { format!("{}/s", row.unit) },
        some(row.p50, 2),
        some(row.p99, 2),
        some(row.client, 1),
        some(row.server, 1),
        some(row.db, 1),
        some(row.peak as f64 / 1e6, 0),
        row.ceiling.map_or(String::new(), |(rate, _)| short(rate)),
        row.ratio().map_or(String::new(), |ratio| format!("{ratio:.2}")),
        row.cpu_ratio().map_or(String::new(), |ratio| format!("{ratio:.2}")),
        some(row.sync / 1e3, 2),
        if row.sync > 0.0 { format!("{:.0} %", row.others * 100.0) } else { String::new() },
        row.note.clone(),
    ]
}

/// Columns of text are on the left, numbers on the right.
fn is_text(column: usize) -> bool {
    matches!(column, 0 | 1 | 3 | 15)
}

fn rule(column: usize, width: usize) -> String {
    let dashes = "-".repeat(width.saturating_sub(1));
    if is_text(column) { format!("{dashes}-") } else { format!("{dashes}:") }
}

fn line(text: &mut String, cells: &[String; 16], widths: &[usize]) {
    for (column, (cell, width)) in cells.iter().zip(widths).enumerate() {
        let _ = if is_text(column) {
            write!(text, "| {cell:<width$} ")
        } else {
            write!(text, "| {cell:>width$} ")
        };
    }
    text.push_str("|\n");
}

/// Three digits that matter, thousands apart.
pub fn short(value: f64) -> String {
    if value > 0.0 && value < 100.0 {
        return format!("{value:.1}");
    }
    let digits = format!("{:.0}", value);
    let mut text = String::new();
    for (at, digit) in digits.chars().enumerate() {
        if at > 0 && (digits.len() - at) % 3 == 0 {
            text.push(',');
        }
        text.push(digit);
    }
    text
}

/// Sorts the values; 0 when there are none.
pub fn percentile(values: &mut [u32], percent: f64) -> f64 {
    values.sort_unstable();
    let at = (values.len() as f64 * percent / 100.0) as usize;
    values.get(at.min(values.len().saturating_sub(1))).copied().map_or(0.0, f64::from)
}
