//! The table of `/usage`: one row per group, with what narrows the view to it. All groups are sorted, not those that are
//! listed.

use std::collections::{BTreeMap, HashMap};

use crate::dashboard::ask;
use crate::dashboard::chart::{self, Svg, share_bar};
use crate::dashboard::pages::usage_view::UsageView;
use crate::dashboard::view;
use crate::metering::quantity::Quantity;
use crate::metering::time::Timestamp;
use crate::usage::query::Bucket;

/// Rows of the table; the CSV has all of them.
pub const LISTED: usize = 100;

/// One row of the table of groups.
pub struct GroupRow {
    pub name: String,
    pub quantity: Quantity,
    pub share: Option<String>,
    /// Against the time that the view is compared with.
    pub change: Option<String>,
    pub bar: Svg,
    pub spark: Svg,
    pub only: String,
    pub exclude: String,
}

/// All groups, the largest first, in the order that was asked for.
fn sorted<'a>(asked: &UsageView, groups: &'a [Bucket]) -> Vec<&'a Bucket> {
    let mut sorted: Vec<&Bucket> = groups.iter().collect();
    match asked.sort.column {
        _ if asked.sort.is_default() => {}
        "name" => asked.sort.arrange(&mut sorted, |bucket| ask::group_name(bucket, asked.by_subject())),
        _ => asked.sort.arrange(&mut sorted, |bucket| bucket.quantity.clone()),
    }
    sorted
}

/// What each group did over time: one value per bucket, by the name of the group.
pub fn courses(rows: &[Bucket], starts: &[Timestamp], by_subject: bool) -> HashMap<String, Vec<f64>> {
    let mut courses: HashMap<String, Vec<f64>> = HashMap::new();
    for row in rows {
        let Ok(place) = starts.binary_search(&row.bucket_start.at) else { continue };
        let name = ask::group_name(row, by_subject);
        courses.entry(name).or_insert_with(|| vec![0.0; starts.len()])[place] = row.quantity.to_f64();
    }
    courses
}

pub fn rows(
    asked: &UsageView,
    groups: &[Bucket],
    total: &Quantity,
    courses: &HashMap<String, Vec<f64>>,
    before: Option<&[Bucket]>,
) -> Vec<GroupRow> {
    let by_subject = asked.by_subject();
    // by their values: two groups may be called the same
    let before: Option<HashMap<&BTreeMap<String, String>, &Quantity>> =
        before.map(|groups| groups.iter().map(|bucket| (&bucket.group, &bucket.quantity)).collect());
    let nothing = Quantity::zero();
    let change = |bucket: &Bucket| {
        let before = before.as_ref()?.get(&bucket.group).copied().unwrap_or(&nothing);
        Some(view::change(&bucket.quantity, before))
    };
    let largest = groups.first().map_or(1.0, |row| row.quantity.to_f64()).max(f64::MIN_POSITIVE);
    let has_shares = ask::is_additive(asked.meter.aggregation) && total.is_positive();
    let spark = |name: &str| {
        let values = courses.get(name).map(Vec::as_slice).unwrap_or_default();
        chart::sparkline(values, &format!("{name} over time"))
    };
    let row = |bucket: &Bucket| GroupRow {
        spark: spark(&ask::group_name(bucket, by_subject)),
        name: ask::group_name(bucket, by_subject),
        share: has_shares
            .then(|| format!("{:.1} %", (&bucket.quantity * &Quantity::from(100)).divide(total).to_f64())),
        change: change(bucket),
        bar: share_bar(bucket.quantity.to_f64() / largest),
        only: narrowed(asked, bucket, "eq"),
        exclude: if asked.group.len() == 1 { narrowed(asked, bucket, "neq") } else { String::new() },
        quantity: bucket.quantity.clone(),
    };
    match asked.group.is_empty() {
        true => Vec::new(),
        false => sorted(asked, groups).into_iter().take(LISTED).map(row).collect(),
    }
}

/// The fields of a group with their values; `None` where a value is missing, which no condition says.
pub fn values_of<'a>(asked: &UsageView, bucket: &'a Bucket) -> Option<Vec<(String, &'a str)>> {
    let mut values: Vec<(String, &str)> = Vec::with_capacity(asked.group.len());
    for field in &asked.group {
        let is_subject = field == "subject";
        let value = if is_subject { Some(&bucket.subject) } else { bucket.group.get(field) };
        let value = value.filter(|value| *value != "<nil>")?;
        values.push((if is_subject { field.clone() } else { format!("metadata.{field}") }, value));
    }
    Some(values)
}

/// The address with the values of a group as conditions, if all are there.
fn narrowed(asked: &UsageView, bucket: &Bucket, op: &str) -> String {
    let Some(values) = values_of(asked, bucket) else { return String::new() };
    // one group alone needs no grouping
    let group = if op == "eq" { Vec::new() } else { asked.group.clone() };
    asked.with_values(&values, op, group).link("/usage").to_string()
}
