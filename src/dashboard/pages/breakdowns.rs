//! The cards beside a query: the largest values of what it does not group by, each one click away from being a filter.

use futures_util::future::try_join;

use crate::app::App;
use crate::dashboard::ask;
use crate::dashboard::chart::{Svg, share_bar};
use crate::dashboard::pages::usage_view::UsageView;
use crate::error::Result;
use crate::metering::quantity::Quantity;
use crate::usage::query::{BreakdownItem, GroupField, Query};

/// Fields that have a card, and values on one.
const CARDS: usize = 4;
const VALUES: usize = 5;

/// The largest values of one field.
pub struct Breakdown {
    pub title: String,
    pub rows: Vec<Row>,
}

pub struct Row {
    pub value: String,
    pub quantity: Quantity,
    pub events: i64,
    pub bar: Svg,
    /// The view with this value as a filter.
    pub link: String,
}

/// One card for each field that neither the groups nor a filter name, the subject first.
pub async fn find(app: &App, asked: &UsageView) -> Result<Vec<Breakdown>> {
    let is_open = |field: &str| {
        !asked.group.iter().any(|name| name == field)
            && !asked.conditions.iter().any(|c| is_about(&c.field, field))
    };
    let mut fields: Vec<(GroupField, String)> = Vec::new();
    if asked.subject.is_empty() && is_open("subject") {
        fields.push((GroupField::Subject, "Subject".to_owned()));
    }
    let active = asked.meter.dimensions.iter().filter(|d| !d.deprecated && is_open(&d.name));
    fields.extend(active.map(|d| (GroupField::Dimension(d.name.clone()), d.display_name.clone())));
    fields.truncate(CARDS);
    let whole = asked.query(asked.range.window, false, false)?;
    let query =
        |field: &GroupField| Query { group_by: vec![field.clone()], skip_missing: true, ..whole.clone() };
    // those by dimension are small and read together, that by subject goes through all of them
    let (by_subject, others): (Vec<Query>, Vec<Query>) = fields
        .iter()
        .map(|(field, _)| query(field))
        .partition(|query| query.group_by == [GroupField::Subject]);
    let (by_subject, others) =
        try_join(ask::breakdowns(app, by_subject, VALUES), ask::breakdowns(app, others, VALUES)).await?;
    let found = by_subject.into_iter().chain(others);
    let cards =
        fields.into_iter().zip(found).map(|((field, title), found)| card(asked, &field, title, found));
    Ok(cards.filter(|card| !card.rows.is_empty()).collect())
}

fn is_about(condition: &str, field: &str) -> bool {
    condition.strip_prefix("metadata.").unwrap_or(condition) == field
}

fn card(asked: &UsageView, field: &GroupField, title: String, found: Vec<BreakdownItem>) -> Breakdown {
    let name = match field {
        GroupField::Subject => "subject".to_owned(),
        GroupField::Dimension(name) => format!("metadata.{name}"),
    };
    let largest = found.first().map_or(1.0, |item| item.quantity.to_f64()).max(f64::MIN_POSITIVE);
    let row = |item: BreakdownItem| Row {
        bar: share_bar(item.quantity.to_f64() / largest),
        link: asked
            .with_values(&[(name.clone(), item.value.as_str())], "eq", asked.group.clone())
            .link("/usage")
            .to_string(),
        value: item.value,
        quantity: item.quantity,
        events: item.events,
    };
    Breakdown { rows: found.into_iter().map(row).collect(), title }
}
