//! Bucket queries: what a caller may ask, and how parts of rollups and raw events become the rows of an answer
//! (rest.md sections 9 and 12.5). Pure: no SQL.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use serde::Serialize;
use serde_json::{Map, Value};
use utoipa::ToSchema;

use crate::error::{Error, Result};
use crate::event::parse_subject;
use crate::meter::{Meter, is_dimension_path, value_at};
use crate::quantity::Quantity;
use crate::rollup::Part;
use crate::window::{BucketSize, Micros, SECOND, Window};

pub const GROUP_FIELDS_MAX: usize = 5;
/// What a group is called whose events lack the dimension; clients have stored it.
const LACKING: &str = "<nil>";

/// A field rows are grouped by.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum GroupField {
    Subject,
    Dimension(String),
}

impl GroupField {
    pub fn name(&self) -> &str {
        match self {
            GroupField::Subject => "subject",
            GroupField::Dimension(name) => name,
        }
    }
}

/// `metadata.<path>=<text>`: the value at the path has this text form.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct MetadataCondition {
    pub path: String,
    pub text: String,
}

impl MetadataCondition {
    pub fn new(path: &str, text: &str) -> Result<Self> {
        let (path, text) = (path.trim(), text.trim());
        if path.is_empty() || text.is_empty() {
            return Err(Error::invalid("a metadata parameter needs a name and a value"));
        }
        if !is_dimension_path(path) {
            return Err(Error::invalid(format!("metadata.{path} is not a metadata path")));
        }
        Ok(MetadataCondition { path: path.to_owned(), text: text.to_owned() })
    }
}

/// A checked query over the events of one meter.
#[derive(Clone, Debug)]
pub struct Query {
    pub meter: Arc<Meter>,
    pub window: Window,
    pub subject: Option<String>,
    pub group_by: Vec<GroupField>,
    pub conditions: Vec<MetadataCondition>,
    /// How instants are put together: into buckets, or all into one.
    pub bucket_size: Option<BucketSize>,
}

impl Query {
    /// The start of the row an instant belongs to.
    pub fn bucket(&self, at: Micros) -> Micros {
        self.bucket_size.map_or(self.window.from, |size| size.start(at))
    }

    pub fn groups_by_subject(&self) -> bool {
        self.group_by.contains(&GroupField::Subject)
    }

    /// Metadata paths that decide about groups or conditions.
    pub fn paths(&self) -> BTreeSet<&str> {
        let grouped = self.group_by.iter().filter_map(|field| match field {
            GroupField::Subject => None,
            GroupField::Dimension(name) => Some(name.as_str()),
        });
        grouped.chain(self.conditions.iter().map(|condition| condition.path.as_str())).collect()
    }

    /// The meter version from which rollups hold every path of this query; `None` when some path is no declared
    /// dimension and only raw events can tell.
    pub fn rollups_since(&self) -> Option<i32> {
        let since = |path| self.meter.dimension(path).map(|dimension| dimension.since);
        self.paths().into_iter().map(since).try_fold(0, |newest, since| Some(newest.max(since?)))
    }

    /// Whether metadata meets all conditions; `value` finds the value at a path.
    fn keeps<'v>(&self, value: impl Fn(&str) -> Option<&'v Value>) -> bool {
        self.conditions
            .iter()
            .all(|condition| value(&condition.path).is_some_and(|v| text_of(v) == condition.text))
    }

    /// The group an event belongs to, or `None` when a condition leaves it out. `value` finds the value at a path.
    fn group<'v>(
        &self,
        subject: Option<&str>,
        value: impl Fn(&str) -> Option<&'v Value>,
    ) -> Option<Vec<String>> {
        if !self.keeps(&value) {
            return None;
        }
        let texts = self.group_by.iter().map(|field| match field {
            GroupField::Subject => subject.unwrap_or_default().to_owned(),
            GroupField::Dimension(name) => {
                value(name).filter(|v| !v.is_null()).map_or(LACKING.to_owned(), text_of)
            }
        });
        Some(texts.collect())
    }

    /// The group of a raw event.
    pub fn group_of_event(
        &self,
        subject: Option<&str>,
        metadata: &Map<String, Value>,
    ) -> Option<Vec<String>> {
        self.group(subject, |path| value_at(metadata, path))
    }

    /// The group of a rollup, whose dimension values are kept by their full name.
    pub fn group_of_set(
        &self,
        subject: Option<&str>,
        dimensions: &Map<String, Value>,
    ) -> Option<Vec<String>> {
        self.group(subject, |path| dimensions.get(path))
    }
}

/// Strings as they are, everything else as JSON.
pub fn text_of(value: &Value) -> String {
    match value {
        Value::String(text) => text.clone(),
        other => other.to_string(),
    }
}

/// Trims, splits at commas and de-duplicates `group_by`; each must be `subject` or a declared dimension.
pub fn parse_group_by<'a>(meter: &Meter, fields: impl Iterator<Item = &'a str>) -> Result<Vec<GroupField>> {
    let mut parsed: Vec<GroupField> = Vec::new();
    for name in fields.flat_map(|text| text.split(',')).map(str::trim).filter(|name| !name.is_empty()) {
        let field = match name {
            "subject" => GroupField::Subject,
            name if meter.dimension(name).is_some() => GroupField::Dimension(name.to_owned()),
            name => {
                return Err(Error::invalid(format!(
                    "group_by {name:?} is not subject or a declared dimension"
                )));
            }
        };
        if !parsed.contains(&field) {
            parsed.push(field);
        }
    }
    if parsed.len() > GROUP_FIELDS_MAX {
        return Err(Error::invalid(format!("group_by must not have more than {GROUP_FIELDS_MAX} fields")));
    }
    Ok(parsed)
}

/// Trims a subject filter; empty means none.
pub fn parse_subject_filter(text: &str) -> Result<Option<String>> {
    match text.trim() {
        "" => Ok(None),
        subject => parse_subject(subject).map(|subject| Some(subject.to_owned())),
    }
}

/// Where parts are added up: bucket start, then group values in `group_by` order.
pub type Cells = BTreeMap<(Micros, Vec<String>), Part>;

/// One row of a bucket answer; fields in wire order.
#[derive(Clone, Debug, Serialize, ToSchema)]
#[schema(as = UsageBucket)]
pub struct Bucket {
    pub subject: String,
    pub meter: String,
    pub bucket_size: &'static str,
    pub bucket_start: Micros,
    pub aggregation: &'static str,
    pub unit: String,
    pub quantity: Quantity,
    #[serde(skip_serializing_if = "BTreeMap::is_empty")]
    pub group: BTreeMap<String, String>,
}

/// The first `limit` rows, by bucket start, then group values bytewise.
pub fn buckets(query: &Query, cells: Cells, limit: usize) -> Vec<Bucket> {
    let size = query.bucket_size.unwrap_or(BucketSize::Day);
    let row = |((start, values), part): ((Micros, Vec<String>), Part)| {
        let names = query.group_by.iter().map(|field| field.name().to_owned());
        let group: BTreeMap<String, String> = names.zip(values).collect();
        let grouped_subject = group.get("subject").filter(|_| query.groups_by_subject());
        Bucket {
            subject: query.subject.clone().or_else(|| grouped_subject.cloned()).unwrap_or_default(),
            meter: query.meter.name.clone(),
            bucket_size: size.as_str(),
            bucket_start: start,
            aggregation: query.meter.aggregation.as_str(),
            unit: query.meter.unit.clone(),
            quantity: part.value(query.meter.aggregation, size.seconds(start) * SECOND),
            group,
        }
    };
    cells.into_iter().take(limit).map(row).collect()
}
