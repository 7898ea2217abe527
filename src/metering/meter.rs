//! Meters and their dimensions: the rules of rest.md 12.3, and whether the metadata of an event fits (12.4).
//! Pure: no SQL, no clock.

use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

use crate::error::{Error, Result};
use crate::metering::event::InputQuantity;
use crate::metering::json::{Map, Value};
use crate::metering::quantity::Quantity;
use crate::metering::time::Timestamp;

mod options;
pub use options::{MeterOptions, QuantityIs};

pub const NAME_BYTES_MAX: usize = 200;
pub const TEXT_BYTES_MAX: usize = 4_096;
pub const DIMENSIONS_MAX: usize = 100;
/// Of a text in a declared dimension: rollups are kept, and read, by these.
pub const DIMENSION_VALUE_BYTES_MAX: usize = 256;
pub const RETENTION_DAYS_DEFAULT: i32 = 90;
pub const RETENTION_DAYS_MAX: i64 = 3_650;

#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "snake_case")]
pub enum Aggregation {
    Sum,
    Count,
    Avg,
    Min,
    Max,
    First,
    Last,
    Rate,
    UniqueCount,
    Percentile,
    WeightedSum,
    LatestSum,
    Stddev,
}

impl Aggregation {
    pub const ALL: [Aggregation; 13] = [
        Aggregation::Sum,
        Aggregation::Count,
        Aggregation::Avg,
        Aggregation::Min,
        Aggregation::Max,
        Aggregation::First,
        Aggregation::Last,
        Aggregation::Rate,
        Aggregation::UniqueCount,
        Aggregation::Percentile,
        Aggregation::WeightedSum,
        Aggregation::LatestSum,
        Aggregation::Stddev,
    ];

    pub fn as_str(self) -> &'static str {
        match self {
            Aggregation::Sum => "sum",
            Aggregation::Count => "count",
            Aggregation::Avg => "avg",
            Aggregation::Min => "min",
            Aggregation::Max => "max",
            Aggregation::First => "first",
            Aggregation::Last => "last",
            Aggregation::Rate => "rate",
            Aggregation::UniqueCount => "unique_count",
            Aggregation::Percentile => "percentile",
            Aggregation::WeightedSum => "weighted_sum",
            Aggregation::LatestSum => "latest_sum",
            Aggregation::Stddev => "stddev",
        }
    }

    /// Sums of events do not tell it: it is made of the events themselves, and retention leaves those alone.
    pub fn needs_events(self) -> bool {
        matches!(
            self,
            Aggregation::UniqueCount
                | Aggregation::Percentile
                | Aggregation::WeightedSum
                | Aggregation::LatestSum
                | Aggregation::Stddev
        )
    }

    /// Exact lower-case names only; empty means sum.
    pub fn parse(text: &str) -> Result<Self> {
        if text.is_empty() {
            return Ok(Aggregation::Sum);
        }
        Aggregation::ALL.into_iter().find(|aggregation| aggregation.as_str() == text).ok_or_else(|| {
            Error::invalid(
                "aggregation must be one of sum, count, avg, min, max, first, last, rate, unique_count, percentile, \
                 weighted_sum, latest_sum, stddev",
            )
        })
    }
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "snake_case")]
pub enum DimensionType {
    String,
    Number,
    Boolean,
}

impl DimensionType {
    fn parse(text: &str) -> Option<Self> {
        match text {
            "string" => Some(DimensionType::String),
            "number" => Some(DimensionType::Number),
            "boolean" => Some(DimensionType::Boolean),
            _ => None,
        }
    }

    fn holds(self, value: &Value) -> bool {
        match self {
            DimensionType::String => matches!(value, Value::String(_)),
            DimensionType::Number => matches!(value, Value::Number(_)),
            DimensionType::Boolean => matches!(value, Value::Bool(_)),
        }
    }

    pub fn as_str(self) -> &'static str {
        match self {
            DimensionType::String => "string",
            DimensionType::Number => "number",
            DimensionType::Boolean => "boolean",
        }
    }
}

/// A declared metadata field that usage can be grouped by.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Dimension {
    pub name: String,
    pub display_name: String,
    pub description: String,
    #[serde(rename = "type")]
    pub kind: DimensionType,
    pub required: bool,
    pub deprecated: bool,
    /// Version of the meter that first had it: rollups written before do not hold its values.
    pub since: i32,
}

impl Dimension {
    /// A deprecated dimension is never demanded.
    pub fn is_demanded(&self) -> bool {
        self.required && !self.deprecated
    }
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Meter {
    pub id: i64,
    pub public_id: String,
    pub workspace_id: i64,
    pub name: String,
    pub description: String,
    pub unit: String,
    pub aggregation: Aggregation,
    pub dimensions: Vec<Dimension>,
    pub options: MeterOptions,
    /// Grows with every change that events in flight must not miss.
    pub version: i32,
    pub event_retention_days: i32,
    /// Raw events before this instant were pruned; rollups still hold their sums.
    pub pruned_before: Option<Timestamp>,
    pub created_at: Timestamp,
}

/// Where an event of a meter with an expression keeps the quantity that was sent.
pub const SENT_QUANTITY: &str = "quantity_sent";

/// A dimension as a client describes it.
#[derive(Clone, Debug, Default, Deserialize, ToSchema)]
pub struct DimensionInput {
    #[schema(value_type = String, pattern = r"^[A-Za-z0-9_-]+(\.[A-Za-z0-9_-]+)*$")]
    pub name: Option<String>,
    pub display_name: Option<String>,
    pub description: Option<String>,
    #[serde(rename = "type")]
    #[schema(value_type = DimensionType)]
    pub kind: Option<String>,
    pub required: Option<bool>,
    pub deprecated: Option<bool>,
}

pub fn parse_name(text: &str) -> Result<String> {
    let name = text.trim();
    if name.is_empty() {
        return Err(Error::invalid("name is required"));
    }
    if name.len() > NAME_BYTES_MAX {
        return Err(Error::invalid(format!("name must not be longer than {NAME_BYTES_MAX} bytes")));
    }
    Ok(name.to_owned())
}

pub fn parse_unit(text: &str) -> Result<String> {
    let unit = text.trim();
    if unit.is_empty() {
        return Err(Error::invalid("unit is required"));
    }
    if unit.len() > NAME_BYTES_MAX {
        return Err(Error::invalid(format!("unit must not be longer than {NAME_BYTES_MAX} bytes")));
    }
    Ok(unit.to_owned())
}

pub fn parse_description(text: &str) -> Result<String> {
    let description = text.trim();
    if description.len() > TEXT_BYTES_MAX {
        return Err(Error::invalid(format!("description must not be longer than {TEXT_BYTES_MAX} bytes")));
    }
    Ok(description.to_owned())
}

pub fn parse_retention_days(days: i64) -> Result<i32> {
    match days {
        0 => Ok(RETENTION_DAYS_DEFAULT),
        1..=RETENTION_DAYS_MAX => Ok(days as i32),
        _ => Err(Error::invalid(format!("event_retention_days must be between 1 and {RETENTION_DAYS_MAX}"))),
    }
}

/// A meter as it is asked for; of a change, what is absent or `null` stays.
#[derive(Clone, Debug, Default, Deserialize, ToSchema)]
pub struct MeterInput {
    pub name: Option<String>,
    pub description: Option<String>,
    pub unit: Option<String>,
    #[schema(value_type = Option<Aggregation>)]
    pub aggregation: Option<String>,
    pub dimensions: Option<Vec<DimensionInput>>,
    pub event_retention_days: Option<i64>,
    /// Makes the quantity of what is sent, such as `metadata.input + 4 * metadata.output`; empty for none.
    #[schema(max_length = 2000)]
    pub value_expression: Option<String>,
    /// For `unique_count`: `subject`, or a path into the metadata whose different values are counted.
    pub aggregation_field: Option<String>,
    /// For `percentile`: more than 0, at most 100; 50, 90, 95 and 99 unless told.
    #[schema(value_type = Option<Vec<Quantity>>)]
    pub percentiles: Option<Vec<InputQuantity>>,
    /// For `percentile`: up to 100 ascending numbers between which rows count events; none unless told.
    #[schema(value_type = Option<Vec<Quantity>>)]
    pub histogram_bounds: Option<Vec<InputQuantity>>,
    /// For `weighted_sum`: `level`, the default, or `change`.
    #[schema(value_type = Option<QuantityIs>)]
    pub quantity_is: Option<String>,
}

impl MeterInput {
    /// A new meter.
    pub fn into_meter(self, public_id: String, workspace_id: i64, now: Timestamp) -> Result<Meter> {
        let aggregation = Aggregation::parse(self.aggregation.as_deref().unwrap_or_default())?;
        let options = MeterOptions::default().changed(&self, aggregation)?;
        Ok(Meter {
            id: 0,
            public_id,
            workspace_id,
            name: parse_name(&self.name.unwrap_or_default())?,
            description: parse_description(&self.description.unwrap_or_default())?,
            unit: parse_unit(&self.unit.unwrap_or_default())?,
            aggregation,
            dimensions: parse_dimensions(self.dimensions.unwrap_or_default(), 1)?,
            options,
            version: 1,
            event_retention_days: parse_retention_days(self.event_retention_days.unwrap_or_default())?,
            pruned_before: None,
            created_at: now,
        })
    }
}

impl Meter {
    /// The meter with a change made to it.
    pub fn changed(mut self, input: &MeterInput, has_events: bool) -> Result<Meter> {
        self.version += 1;
        if let Some(description) = &input.description {
            self.description = parse_description(description)?;
        }
        if let Some(unit) = &input.unit {
            self.unit = parse_unit(unit)?;
        }
        if let Some(aggregation) = &input.aggregation {
            self.aggregation = Aggregation::parse(aggregation)?;
        }
        self.options = self.options.changed(input, self.aggregation)?;
        if self.aggregation.needs_events() && self.pruned_before.is_some() {
            return Err(Error::conflict(format!(
                "aggregation {} is made of the events themselves, and events of the meter were pruned",
                self.aggregation.as_str()
            )));
        }
        if let Some(days) = input.event_retention_days {
            self.event_retention_days = parse_retention_days(days)?;
        }
        if let Some(dimensions) = &input.dimensions {
            let dimensions = parse_dimensions(dimensions.clone(), self.version)?;
            self.dimensions = change_dimensions(&self.dimensions, dimensions, self.version, has_events)?;
        }
        Ok(self)
    }
}

/// Segments of letters, digits, `_` and `-`, joined by single dots.
pub fn is_dimension_path(name: &str) -> bool {
    name.len() <= NAME_BYTES_MAX
        && name.split('.').all(|segment| {
            !segment.is_empty()
                && segment.bytes().all(|b| b.is_ascii_alphanumeric() || b == b'_' || b == b'-')
        })
}

/// Checks a list of dimensions; `since` is the meter version they will belong to.
pub fn parse_dimensions(inputs: Vec<DimensionInput>, since: i32) -> Result<Vec<Dimension>> {
    if inputs.len() > DIMENSIONS_MAX {
        return Err(Error::invalid(format!("a meter must not have more than {DIMENSIONS_MAX} dimensions")));
    }
    let mut dimensions: Vec<Dimension> = Vec::with_capacity(inputs.len());
    for input in inputs {
        let dimension = parse_dimension(input, since)?;
        if dimensions.iter().any(|other| other.name == dimension.name) {
            return Err(Error::invalid(format!("dimension {:?} is listed twice", dimension.name)));
        }
        dimensions.push(dimension);
    }
    Ok(dimensions)
}

fn parse_dimension(input: DimensionInput, since: i32) -> Result<Dimension> {
    let name = input.name.unwrap_or_default().trim().to_owned();
    if name.is_empty() {
        return Err(Error::invalid("dimension name is required"));
    }
    if !is_dimension_path(&name) || name == "subject" {
        return Err(Error::invalid(format!(
            "dimension name {name:?} must be letters, digits, _ and - in segments joined by dots, and not subject"
        )));
    }
    let kind = DimensionType::parse(&input.kind.unwrap_or_default()).ok_or_else(|| {
        Error::invalid(format!("type of dimension {name:?} must be string, number or boolean"))
    })?;
    let display_name = input.display_name.unwrap_or_default().trim().to_owned();
    let display_name = if display_name.is_empty() { title_of(&name) } else { display_name };
    if display_name.len() > NAME_BYTES_MAX {
        return Err(Error::invalid(format!("display_name of dimension {name:?} is too long")));
    }
    Ok(Dimension {
        display_name,
        description: parse_description(&input.description.unwrap_or_default())?,
        kind,
        required: input.required.unwrap_or(true),
        deprecated: input.deprecated.unwrap_or(false),
        since,
        name,
    })
}

/// `region-name` becomes `Region Name`.
fn title_of(name: &str) -> String {
    let words = name.split(['.', '_', '-']).filter(|word| !word.is_empty()).map(|word| {
        let (head, tail) = word.split_at(1);
        head.to_ascii_uppercase() + tail
    });
    words.collect::<Vec<_>>().join(" ")
}

/// The dimensions of a changed meter: known ones keep their `since`, new ones get `version`. Once events are stored
/// a change must not strand them (rest.md 12.3, `PUT /v1/meters/{id}`).
pub fn change_dimensions(
    old: &[Dimension],
    mut new: Vec<Dimension>,
    version: i32,
    has_events: bool,
) -> Result<Vec<Dimension>> {
    for dimension in &mut new {
        let before = old.iter().find(|other| other.name == dimension.name);
        dimension.since = match before {
            Some(before) if before.kind == dimension.kind => before.since,
            _ => version,
        };
        let refused = match before {
            None if dimension.is_demanded() => "cannot be added as required",
            Some(before) if before.kind != dimension.kind => "cannot change its type",
            Some(before) if dimension.is_demanded() && !before.is_demanded() => "cannot become required",
            _ => continue,
        };
        if has_events {
            return Err(Error::conflict(format!(
                "dimension {:?} {refused}: the meter has events",
                dimension.name
            )));
        }
    }
    let removed = old.iter().find(|before| new.iter().all(|dimension| dimension.name != before.name));
    if let Some(removed) = removed.filter(|_| has_events) {
        return Err(Error::conflict(format!(
            "dimension {:?} cannot be removed: the meter has events",
            removed.name
        )));
    }
    Ok(new)
}

impl Meter {
    /// The newest version of the meter that declared a dimension. A set of values written now holds every declared
    /// dimension up to this version; one written before a dimension was declared has an older version than it.
    pub fn dimensions_version(&self) -> i32 {
        self.dimensions.iter().map(|dimension| dimension.since).max().unwrap_or_default()
    }

    pub fn dimension(&self, name: &str) -> Option<&Dimension> {
        self.dimensions.iter().find(|dimension| dimension.name == name)
    }

    /// Whether a quantity may be 0, or less: where it is a level, or moves one.
    pub fn takes(&self, quantity: &Quantity) -> bool {
        match self.options.quantity_is {
            None => quantity.is_positive(),
            Some(QuantityIs::Level) => *quantity >= Quantity::zero(),
            Some(QuantityIs::Change) => true,
        }
    }

    /// Checks metadata against the declared dimensions, in order, and moves flat dotted keys to their nested place.
    pub fn fit_metadata(&self, metadata: &mut Map) -> Result<()> {
        for dimension in &self.dimensions {
            let name = dimension.name.as_str();
            let found = metadata.get(name).or_else(|| value_at(metadata, name));
            let Some(value) = found else {
                if dimension.is_demanded() {
                    return Err(wrong_dimension(name, "is required"));
                }
                continue;
            };
            if !dimension.kind.holds(value) {
                return Err(wrong_dimension(name, &format!("must be a {}", dimension.kind.as_str())));
            }
            if value.as_str().is_some_and(|text| text.len() > DIMENSION_VALUE_BYTES_MAX) {
                let words = format!("must not be longer than {DIMENSION_VALUE_BYTES_MAX} bytes");
                return Err(wrong_dimension(name, &words));
            }
            if name.contains('.')
                && let Some(flat) = metadata.remove(name)
            {
                nest(metadata, name, flat)?;
            }
        }
        Ok(())
    }
}

fn wrong_dimension(name: &str, words: &str) -> Error {
    let field = format!("metadata.{name}");
    Error::invalid(format_args!("{field} {words}")).at(&field)
}

/// The value at a dotted path, through objects only.
pub fn value_at<'a>(metadata: &'a Map, path: &str) -> Option<&'a Value> {
    let mut segments = path.split('.');
    let mut value = metadata.get(segments.next()?)?;
    for segment in segments {
        value = value.as_object()?.get(segment)?;
    }
    Some(value)
}

fn nest(metadata: &mut Map, path: &str, value: Value) -> Result<()> {
    let mut segments: Vec<&str> = path.split('.').collect();
    let last = segments.pop().unwrap_or(path);
    let mut object = metadata;
    for segment in segments {
        let next = object.entry(segment.to_owned()).or_insert_with(|| Value::Object(Map::new()));
        let Value::Object(inner) = next else {
            let words = format!("cannot be stored: metadata has a plain value at {segment:?}");
            return Err(wrong_dimension(path, &words));
        };
        object = inner;
    }
    object.insert(last.to_owned(), value);
    Ok(())
}

#[cfg(test)]
impl Meter {
    /// For tests.
    pub fn with(dimensions: Vec<DimensionInput>) -> Meter {
        Meter {
            id: 1,
            public_id: String::new(),
            workspace_id: 1,
            name: "m".into(),
            description: String::new(),
            unit: "u".into(),
            aggregation: Aggregation::Sum,
            dimensions: parse_dimensions(dimensions, 1).expect("dimensions"),
            options: MeterOptions::default(),
            version: 1,
            event_retention_days: 90,
            pruned_before: None,
            created_at: Timestamp(0),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn dimension(name: &str, kind: &str, required: bool) -> DimensionInput {
        DimensionInput {
            name: Some(name.to_owned()),
            kind: Some(kind.to_owned()),
            required: Some(required),
            ..Default::default()
        }
    }

    fn meter(dimensions: Vec<DimensionInput>) -> Meter {
        Meter::with(dimensions)
    }

    fn fit(meter: &Meter, metadata: serde_json::Value) -> Result<Value> {
        let Value::Object(mut map) = metadata.into() else { panic!("not an object") };
        meter.fit_metadata(&mut map).map(|()| Value::Object(map))
    }

    #[test]
    fn dimension_names() {
        for good in ["region", "a.b", "x-y_z.1"] {
            assert!(is_dimension_path(good), "{good}");
        }
        for bad in ["", ".", "a.", ".a", "a..b", "a b", "ä"] {
            assert!(!is_dimension_path(bad), "{bad}");
        }
        assert_eq!(title_of("region-name"), "Region Name");
        assert!(parse_dimensions(vec![dimension("subject", "string", true)], 1).is_err());
        assert!(
            parse_dimensions(vec![dimension("a", "string", true), dimension("a", "number", true)], 1)
                .is_err()
        );
    }

    #[test]
    fn metadata_must_fit() {
        let m = meter(vec![dimension("n", "number", true), dimension("a.b", "string", false)]);
        assert!(fit(&m, json!({})).is_err());
        assert!(fit(&m, json!({"n": "5"})).is_err());
        assert!(fit(&m, json!({"n": null})).is_err());
        assert!(fit(&m, json!({"n": 5, "a.b": 1})).is_err());
        assert!(fit(&m, json!({"n": 5, "a": 1, "a.b": "x"})).is_err());
        assert_eq!(fit(&m, json!({"n": 5, "z": [1]})).ok(), Some(json!({"n": 5, "z": [1]}).into()));
        let nested = json!({"n": 5, "a": {"b": "x", "c": 1}});
        assert_eq!(fit(&m, json!({"n": 5, "a": {"b": "old", "c": 1}, "a.b": "x"})).ok(), Some(nested.into()));
    }

    #[test]
    fn deprecated_dimensions_are_not_demanded() {
        let mut input = dimension("n", "number", true);
        input.deprecated = Some(true);
        assert!(fit(&meter(vec![input]), json!({})).is_ok());
    }

    #[test]
    fn changes_that_would_strand_events() {
        let parse = |inputs| parse_dimensions(inputs, 1).expect("dimensions");
        let old = parse(vec![dimension("a", "string", false)]);
        let change = |inputs, has_events| change_dimensions(&old, parse(inputs), 2, has_events);
        assert!(change(vec![], true).is_err());
        assert!(change(vec![dimension("a", "number", false)], true).is_err());
        assert!(change(vec![dimension("a", "string", true)], true).is_err());
        assert!(change(vec![dimension("a", "string", false), dimension("b", "string", true)], true).is_err());
        let grown = change(vec![dimension("a", "string", false), dimension("b", "string", false)], true);
        assert_eq!(grown.map(|d| d.iter().map(|d| d.since).collect::<Vec<_>>()).ok(), Some(vec![1, 2]));
        assert!(change(vec![], false).is_ok());
        assert_eq!(change(vec![dimension("a", "number", true)], false).map(|d| d[0].since).ok(), Some(2));
    }
}
