//! `/v1/meters` (rest.md 12.3).

use actix_web::{HttpResponse, web};
use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

use crate::app::App;
use crate::auth::Caller;
use crate::chance;
use crate::error::{Error, Result};
use crate::http::body::Json;
use crate::http::extract::{Id, Params, paginate};
use crate::http::openapi::Doc;
use crate::http::respond::{self, Page};
use crate::metering::expression::Expression;
use crate::metering::meter::{Aggregation, DimensionType, Meter, MeterInput, QuantityIs};
use crate::metering::quantity::Quantity;
use crate::metering::time::Timestamp;
use crate::meters;

/// A meter on the wire; fields in contract order.
#[derive(Serialize, ToSchema)]
#[schema(as = Meter)]
pub struct MeterView<'a> {
    id: &'a str,
    name: &'a str,
    description: &'a str,
    unit: &'a str,
    aggregation: Aggregation,
    dimensions: Vec<DimensionView<'a>>,
    event_retention_days: i32,
    created_at: Timestamp,
    #[serde(skip_serializing_if = "Option::is_none")]
    value_expression: Option<&'a str>,
    #[serde(skip_serializing_if = "Option::is_none")]
    aggregation_field: Option<&'a str>,
    #[serde(skip_serializing_if = "<[_]>::is_empty")]
    #[schema(required = false)]
    percentiles: &'a [Quantity],
    #[serde(skip_serializing_if = "<[_]>::is_empty")]
    #[schema(required = false)]
    histogram_bounds: &'a [Quantity],
    #[serde(skip_serializing_if = "Option::is_none")]
    quantity_is: Option<QuantityIs>,
}

#[derive(Serialize, ToSchema)]
#[schema(as = Dimension)]
pub struct DimensionView<'a> {
    name: &'a str,
    display_name: &'a str,
    description: &'a str,
    #[serde(rename = "type")]
    kind: DimensionType,
    required: bool,
    deprecated: bool,
}

impl<'a> MeterView<'a> {
    fn of(meter: &'a Meter) -> Self {
        let dimensions = meter.dimensions.iter().map(|dimension| DimensionView {
            name: &dimension.name,
            display_name: &dimension.display_name,
            description: &dimension.description,
            kind: dimension.kind,
            required: dimension.required,
            deprecated: dimension.deprecated,
        });
        MeterView {
            id: &meter.public_id,
            name: &meter.name,
            description: &meter.description,
            unit: &meter.unit,
            aggregation: meter.aggregation,
            dimensions: dimensions.collect(),
            event_retention_days: meter.event_retention_days,
            created_at: meter.created_at,
            value_expression: meter.options.value_expression.as_ref().map(Expression::text),
            aggregation_field: meter.options.aggregation_field.as_deref(),
            percentiles: &meter.options.percentiles,
            histogram_bounds: &meter.options.histogram_bounds,
            quantity_is: meter.options.quantity_is,
        }
    }
}

pub fn describe_create() -> Doc {
    Doc::new("meters", "Define a meter")
        .body::<MeterInput>()
        .needs(&["name", "unit"])
        .answer::<MeterView>(201, "The meter. At most 1,000 in a workspace.")
        .errors(&[409])
}

pub async fn create(app: web::Data<App>, caller: Caller, body: Json<MeterInput>) -> Result<HttpResponse> {
    let Json(input) = body;
    caller.ensure_meter_allowed(input.name.as_deref().unwrap_or_default())?;
    let id = chance::id().to_string();
    let meter = input.into_meter(id, caller.workspace_id, Timestamp::now())?;
    let meter = app.store.write("meters::add", move |conn| meters::sql::add(conn, &meter)).await?;
    app.meters.changed(meter.workspace_id, &meter.name);
    respond::created(&MeterView::of(&meter))
}

#[derive(Serialize, Deserialize)]
struct ByName {
    name: Option<String>,
}

pub fn describe_list() -> Doc {
    Doc::new("meters", "List meters")
        .text("name", "Exact name.")
        .limit(50, 500)
        .cursor()
        .page::<MeterView>("By name.")
}

pub async fn list(app: web::Data<App>, caller: Caller, params: Params) -> Result<HttpResponse> {
    let name = params.get("name").to_owned();
    caller.ensure_meter_allowed(&name)?;
    let limit = params.limit(50, 500)?;
    let after = params.cursor::<ByName>()?.and_then(|cursor| cursor.name);
    let workspace_id = caller.workspace_id;
    let rows = app
        .store
        .read("meters::list", move |conn| {
            let name = Some(name.as_str()).filter(|name| !name.is_empty());
            meters::sql::list(conn, workspace_id, name, after.as_deref(), limit + 1)
        })
        .await?;
    let (meters, next_cursor) = paginate(rows, limit, |meter| ByName { name: Some(meter.name.clone()) })?;
    respond::ok(&Page { items: meters.iter().map(MeterView::of).collect(), next_cursor })
}

async fn find(app: &App, caller: &Caller, id: String) -> Result<Meter> {
    let workspace_id = caller.workspace_id;
    let found = app
        .store
        .read("meters::by_id", move |conn| meters::sql::find_by_public_id(conn, workspace_id, &id))
        .await?;
    let meter = found.ok_or_else(|| Error::not_found("meter"))?;
    caller.ensure_meter_allowed(&meter.name)?;
    Ok(meter)
}

pub fn describe_get() -> Doc {
    Doc::new("meters", "Read a meter").answer::<MeterView>(200, "The meter.")
}

pub async fn get(app: web::Data<App>, caller: Caller, Id(id): Id) -> Result<HttpResponse> {
    respond::ok(&MeterView::of(&find(&app, &caller, id).await?))
}

pub fn describe_update() -> Doc {
    Doc::new("meters", "Change a meter")
        .body::<MeterInput>()
        .answer::<MeterView>(200, "The meter as it is now.")
        .errors(&[409])
}

pub async fn update(
    app: web::Data<App>,
    caller: Caller,
    Id(id): Id,
    body: Json<MeterInput>,
) -> Result<HttpResponse> {
    find(&app, &caller, id.clone()).await?;
    let Json(input) = body;
    let meter = app.change_meter(caller.workspace_id, id, input).await?;
    respond::ok(&MeterView::of(&meter))
}

pub fn describe_delete() -> Doc {
    Doc::new("meters", "Delete a meter without events").empty(204, "Deleted.").errors(&[409])
}

pub async fn delete(app: web::Data<App>, caller: Caller, Id(id): Id) -> Result<HttpResponse> {
    find(&app, &caller, id.clone()).await?;
    app.delete_meter(caller.workspace_id, id).await?;
    Ok(respond::no_content())
}
