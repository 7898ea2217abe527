//! What only some meters have: an expression, and what some aggregations must be told. Checked against the aggregation.

use serde::{Deserialize, Serialize};

use super::{Aggregation, MeterInput, is_dimension_path};
use crate::error::{Error, Result};
use crate::metering::event::InputQuantity;
use crate::metering::expression::Expression;
use crate::metering::quantity::Quantity;
use crate::string_enum::string_enum;

/// What a meter may have besides; as it is stored. New fields have defaults, so that old rows can be read.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct MeterOptions {
    /// Makes the quantity of an event of what was sent.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub value_expression: Option<Expression>,
    /// Of `unique_count`: whose different values are counted: `subject`, or a path into the metadata.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub aggregation_field: Option<String>,
    /// Of `percentile`, more than 0, at most 100.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub percentiles: Vec<Quantity>,
    /// Of `percentile`, ascending: between them events are counted.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub histogram_bounds: Vec<Quantity>,
    /// Of `weighted_sum`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub quantity_is: Option<QuantityIs>,
}

string_enum!(
    /// What a quantity is that lasts: the level from then on, or how much the level moves.
    QuantityIs { Level = "level", Change = "change" }
);

impl<'de> Deserialize<'de> for QuantityIs {
    fn deserialize<D: serde::Deserializer<'de>>(deserializer: D) -> std::result::Result<Self, D::Error> {
        let word = String::deserialize(deserializer)?;
        QuantityIs::parse(&word).ok_or_else(|| serde::de::Error::custom("level or change"))
    }
}

const PERCENTILES_MAX: usize = 20;
const BOUNDS_MAX: usize = 100;
const PERCENTILES: [i64; 4] = [50, 90, 95, 99];

impl MeterOptions {
    /// Takes over what is asked for, and checks it against the aggregation: nothing is said that has no meaning.
    pub(super) fn changed(mut self, input: &MeterInput, aggregation: Aggregation) -> Result<MeterOptions> {
        if let Some(text) = &input.value_expression {
            self.value_expression = parse_expression(text)?;
        }
        if let Some(field) = &input.aggregation_field {
            self.aggregation_field = Some(field.trim().to_owned()).filter(|field| !field.is_empty());
        }
        if let Some(percentiles) = &input.percentiles {
            self.percentiles = parse_percentiles(percentiles)?;
        }
        if let Some(bounds) = &input.histogram_bounds {
            self.histogram_bounds = parse_bounds(bounds)?;
        }
        if let Some(word) = input.quantity_is.as_deref().filter(|word| !word.is_empty()) {
            let wrong = || Error::invalid("quantity_is must be level or change");
            self.quantity_is = Some(QuantityIs::parse(word).ok_or_else(wrong)?);
        }
        self.for_aggregation(input, aggregation)
    }

    fn for_aggregation(mut self, input: &MeterInput, aggregation: Aggregation) -> Result<MeterOptions> {
        let is_said = |text: &Option<String>| text.as_deref().is_some_and(|text| !text.trim().is_empty());
        let is_listed =
            |list: &Option<Vec<InputQuantity>>| list.as_ref().is_some_and(|list| !list.is_empty());
        let only =
            |field: &str, of: &str| Err(Error::invalid(format!("{field} is only for aggregation {of}")));
        match aggregation {
            Aggregation::UniqueCount => {
                let field = self.aggregation_field.as_deref().unwrap_or_default();
                if !is_dimension_path(field) {
                    return Err(Error::invalid(
                        "aggregation_field is required for unique_count: subject, or a path into the metadata",
                    ));
                }
            }
            _ if is_said(&input.aggregation_field) => return only("aggregation_field", "unique_count"),
            _ => self.aggregation_field = None,
        }
        match aggregation {
            Aggregation::Percentile if self.percentiles.is_empty() => {
                self.percentiles = PERCENTILES.map(Quantity::from).to_vec();
            }
            Aggregation::Percentile => {}
            _ if is_listed(&input.percentiles) => return only("percentiles", "percentile"),
            _ if is_listed(&input.histogram_bounds) => return only("histogram_bounds", "percentile"),
            _ => (self.percentiles, self.histogram_bounds) = (Vec::new(), Vec::new()),
        }
        match aggregation {
            Aggregation::WeightedSum => self.quantity_is = self.quantity_is.or(Some(QuantityIs::Level)),
            _ if is_said(&input.quantity_is) => return only("quantity_is", "weighted_sum"),
            _ => self.quantity_is = None,
        }
        Ok(self)
    }
}

fn parse_percentiles(list: &[InputQuantity]) -> Result<Vec<Quantity>> {
    let wrong = || {
        Error::invalid(format!(
            "percentiles must be up to {PERCENTILES_MAX} different numbers, more than 0 and at most 100"
        ))
    };
    let mut percentiles: Vec<Quantity> = Vec::with_capacity(list.len().min(PERCENTILES_MAX));
    for InputQuantity(number) in list {
        let number = number.clone().map_err(|_| wrong())?;
        let fits = number.is_positive() && number <= Quantity::from(100) && !percentiles.contains(&number);
        if !fits || percentiles.len() == PERCENTILES_MAX {
            return Err(wrong());
        }
        percentiles.push(number);
    }
    Ok(percentiles)
}

fn parse_bounds(list: &[InputQuantity]) -> Result<Vec<Quantity>> {
    let wrong = || {
        Error::invalid(format!(
            "histogram_bounds must be up to {BOUNDS_MAX} numbers, each more than the one before"
        ))
    };
    let mut bounds: Vec<Quantity> = Vec::with_capacity(list.len().min(BOUNDS_MAX));
    for InputQuantity(number) in list {
        let number = number.clone().map_err(|_| wrong())?;
        if bounds.len() == BOUNDS_MAX || bounds.last().is_some_and(|last| *last >= number) {
            return Err(wrong());
        }
        bounds.push(number);
    }
    Ok(bounds)
}

/// Empty means none.
fn parse_expression(text: &str) -> Result<Option<Expression>> {
    match text.trim() {
        "" => Ok(None),
        text => Expression::parse(text).map(Some),
    }
}
