//! The cards beside a query: the largest values of what it does not group by, each one click away from being a filter.

use futures_util::future::try_join_all;

use crate::app::App;
use crate::dashboard::ask;
use crate::dashboard::chart::{Svg, share_bar};
use crate::dashboard::pages::explore::ExportQuery;
use crate::error::Result;
use crate::metering::quantity::Quantity;
use crate::usage::query::{GroupField, Query};

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
pub async fn find(app: &App, asked: &ExportQuery) -> Result<Vec<Breakdown>> {
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
    let cards = try_join_all(fields.into_iter().map(|(field, title)| card(app, asked, field, title))).await?;
    Ok(cards.into_iter().filter(|card| !card.rows.is_empty()).collect())
}

fn is_about(condition: &str, field: &str) -> bool {
    condition.strip_prefix("metadata.").unwrap_or(condition) == field
}

async fn card(app: &App, asked: &ExportQuery, field: GroupField, title: String) -> Result<Breakdown> {
    let name = match &field {
        GroupField::Subject => "subject".to_owned(),
        GroupField::Dimension(name) => format!("metadata.{name}"),
    };
    let whole = asked.query(asked.range.window, false, false)?;
    let query = Query { group_by: vec![field], skip_missing: true, ..whole };
    let found = ask::breakdown(app, query, VALUES).await?;
    let largest = found.first().map_or(1.0, |item| item.quantity.to_f64()).max(f64::MIN_POSITIVE);
    let row = |item: crate::usage::query::BreakdownItem| Row {
        bar: share_bar(item.quantity.to_f64() / largest),
        link: asked
            .with_values(&[(name.clone(), item.value.as_str())], "eq", asked.group.clone())
            .link("/usage")
            .to_string(),
        value: item.value,
        quantity: item.quantity,
        events: item.events,
    };
    Ok(Breakdown { rows: found.into_iter().map(row).collect(), title })
}
