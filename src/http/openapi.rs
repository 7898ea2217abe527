//! The OpenAPI document, made by a test from the route table and the types that handlers read and write; servers send the
//! text that is kept in docs/. What an operation does is described beside its handler; who may call it, and which errors
//! follow from that, comes from the table; examples are what a server said to a test (`tests/it/examples.rs`).

mod viewer;

use std::collections::BTreeMap;

use actix_web::http::Method;
use utoipa::openapi::example::Example;
use utoipa::openapi::path::{OperationBuilder, Parameter, ParameterBuilder, ParameterIn};
use utoipa::openapi::request_body::RequestBodyBuilder;
use utoipa::openapi::schema::{
    AdditionalProperties, ArrayBuilder, KnownFormat, Object, ObjectBuilder, OneOfBuilder, SchemaFormat, Type,
};
use utoipa::openapi::security::{
    ApiKey, ApiKeyValue, HttpAuthScheme, HttpBuilder, SecurityRequirement, SecurityScheme,
};
use utoipa::openapi::{
    ComponentsBuilder, Content, ContentBuilder, HttpMethod, InfoBuilder, LicenseBuilder, OpenApi,
    OpenApiBuilder, Paths, Ref, RefOr, Required, ResponseBuilder, Schema,
};
use utoipa::{PartialSchema, ToSchema};

use crate::auth::permission::Access;
use crate::auth::session::{ACCESS_COOKIE, REFRESH_COOKIE};
use crate::error::{Error, Result};
use crate::http::respond::Envelope;
use crate::http::routes::Described;
use crate::http::usage::BulkResult;
use crate::metering::quantity::Quantity;
use crate::metering::time::Timestamp;

pub use viewer::{PATTERNS, viewer};

type Component = (String, RefOr<Schema>);

/// A schema and the components it refers to.
#[derive(Clone)]
struct Shape {
    schema: RefOr<Schema>,
    components: Vec<Component>,
}

impl Shape {
    fn of<T: ToSchema>() -> Self {
        let mut components = vec![(T::name().into_owned(), T::schema())];
        T::schemas(&mut components);
        Shape { schema: Ref::from_schema_name(T::name()).into(), components }
    }

    fn list_of<T: ToSchema>() -> Self {
        let shape = Shape::of::<T>();
        Shape { schema: ArrayBuilder::new().items(shape.schema).into(), ..shape }
    }

    /// `{"items": […], "next_cursor"?}`
    fn page_of<T: ToSchema>() -> Self {
        let list = Shape::list_of::<T>();
        let page = ObjectBuilder::new()
            .property("items", list.schema)
            .required("items")
            .property("next_cursor", ObjectBuilder::new().schema_type(Type::String));
        Shape { schema: page.into(), components: list.components }
    }
}

/// Status, words, content type and shape of an answer.
type Answer = (u16, &'static str, Option<(&'static str, Shape)>);

/// What the document says of an operation beyond the route table.
pub struct Doc {
    tag: &'static str,
    summary: &'static str,
    parameters: Vec<Parameter>,
    body: Option<Shape>,
    /// Those that are no error.
    answers: Vec<Answer>,
    /// Statuses of the error envelope beyond those that every operation of its kind has.
    errors: Vec<u16>,
}

const JSON: &str = "application/json";

/// What was sent and answered: by operation, then `request` or the status.
struct Examples(BTreeMap<String, BTreeMap<String, Example>>);

impl Examples {
    /// Of refusals, which look alike everywhere.
    const REFUSALS: &str = "refusals";

    fn read() -> Result<Self> {
        serde_json::from_str(include_str!("openapi/examples.json")).map(Examples).map_err(Error::internal)
    }

    /// A body with its example, if there is one.
    fn show(&self, content: ContentBuilder, operation: &str, what: &str) -> Content {
        let example = self.0.get(operation).and_then(|of| of.get(what)).and_then(|one| one.value.clone());
        content.example(example).build()
    }
}

/// What `formula_guard` does.
pub const FORMULA_GUARD: &str = "An apostrophe before cells that a spreadsheet would run as a formula.";

impl Doc {
    pub fn new(tag: &'static str, summary: &'static str) -> Self {
        Doc { tag, summary, parameters: Vec::new(), body: None, answers: Vec::new(), errors: Vec::new() }
    }

    pub fn body<T: ToSchema>(mut self) -> Self {
        self.body = Some(Shape::of::<T>());
        self
    }

    /// Texts of the body that this operation needs, where others that take the same body do not.
    pub fn needs(mut self, names: &[&str]) -> Self {
        self.body = self.body.map(|Shape { schema, components }| {
            let text = || ObjectBuilder::new().schema_type(Type::String).min_length(Some(1)).build();
            let Some(mut object) = components.first().and_then(|(_, schema)| object_of(schema)) else {
                return Shape { schema, components };
            };
            // one flat object: generators make no client of two parts that differ about a field
            for name in names {
                object.properties.insert((*name).to_owned(), RefOr::T(Schema::Object(text())));
                object.required.push((*name).to_owned());
            }
            Shape { schema: RefOr::T(Schema::Object(object)), components }
        });
        self
    }

    pub fn body_list<T: ToSchema>(mut self) -> Self {
        self.body = Some(Shape::list_of::<T>());
        self
    }

    pub fn answer<T: ToSchema>(mut self, status: u16, words: &'static str) -> Self {
        self.answers.push((status, words, Some((JSON, Shape::of::<T>()))));
        self
    }

    pub fn list<T: ToSchema>(mut self, words: &'static str) -> Self {
        self.answers.push((200, words, Some((JSON, Shape::list_of::<T>()))));
        self
    }

    pub fn page<T: ToSchema>(mut self, words: &'static str) -> Self {
        self.answers.push((200, words, Some((JSON, Shape::page_of::<T>()))));
        self
    }

    pub fn csv(mut self, words: &'static str) -> Self {
        let text =
            Shape { schema: ObjectBuilder::new().schema_type(Type::String).into(), components: Vec::new() };
        self.answers.push((200, words, Some(("text/csv; charset=utf-8", text))));
        self
    }

    pub fn empty(mut self, status: u16, words: &'static str) -> Self {
        self.answers.push((status, words, None));
        self
    }

    pub fn errors(mut self, statuses: &[u16]) -> Self {
        self.errors.extend_from_slice(statuses);
        self
    }

    pub fn parameter(mut self, parameter: Parameter) -> Self {
        self.parameters.push(parameter);
        self
    }

    pub fn text(self, name: &str, words: &str) -> Self {
        self.parameter(query(
            name,
            words,
            ObjectBuilder::new().schema_type(Type::String).into(),
            Required::False,
        ))
    }

    pub fn required_text(self, name: &str, words: &str) -> Self {
        self.parameter(query(
            name,
            words,
            ObjectBuilder::new().schema_type(Type::String).into(),
            Required::True,
        ))
    }

    pub fn time(self, name: &str, words: &str, required: Required) -> Self {
        self.parameter(query(name, words, Timestamp::schema(), required))
    }

    pub fn repeated(self, name: &str, words: &str) -> Self {
        let list = ArrayBuilder::new().items(ObjectBuilder::new().schema_type(Type::String));
        self.parameter(query(name, words, list.into(), Required::False))
    }

    pub fn flag(self, name: &str, words: &str) -> Self {
        self.parameter(query(
            name,
            words,
            ObjectBuilder::new().schema_type(Type::Boolean).into(),
            Required::False,
        ))
    }

    pub fn limit(self, default: i64, max: i64) -> Self {
        let schema = ObjectBuilder::new().schema_type(Type::Integer).minimum(Some(1));
        let words = format!("How many rows, {default} unless told, at most {max}.");
        self.parameter(query("limit", &words, schema.into(), Required::False))
    }

    pub fn cursor(self) -> Self {
        self.text("cursor", "`next_cursor` of the page before.")
    }
}

pub fn query(name: &str, words: &str, schema: RefOr<Schema>, required: Required) -> Parameter {
    ParameterBuilder::new()
        .name(name)
        .parameter_in(ParameterIn::Query)
        .required(required)
        .description(Some(words))
        .schema(Some(schema))
        .build()
}

fn path_parameters(path: &str) -> Vec<Parameter> {
    let names = path.split('{').skip(1).filter_map(|rest| rest.split('}').next());
    names
        .map(|name| {
            ParameterBuilder::new()
                .name(name)
                .parameter_in(ParameterIn::Path)
                .required(Required::True)
                .schema(Some(ObjectBuilder::new().schema_type(Type::String)))
                .build()
        })
        .collect()
}

impl PartialSchema for Timestamp {
    fn schema() -> RefOr<Schema> {
        ObjectBuilder::new()
            .schema_type(Type::String)
            .format(Some(SchemaFormat::KnownFormat(KnownFormat::DateTime)))
            .into()
    }
}

impl ToSchema for Timestamp {}

impl PartialSchema for Quantity {
    fn schema() -> RefOr<Schema> {
        ObjectBuilder::new().schema_type(Type::Number).description(Some("Exact decimal.")).into()
    }
}

impl ToSchema for Quantity {}

/// Any JSON object, such as event metadata.
pub struct AnyObject;

impl PartialSchema for AnyObject {
    fn schema() -> RefOr<Schema> {
        ObjectBuilder::new().additional_properties(Some(AdditionalProperties::FreeForm(true))).into()
    }
}

impl ToSchema for AnyObject {}

/// A 400 of the bulk write: every item failed, or the call itself did.
pub struct BulkOrError;

impl PartialSchema for BulkOrError {
    fn schema() -> RefOr<Schema> {
        let either = [Ref::from_schema_name(BulkResult::name()), Ref::from_schema_name(Envelope::name())];
        either.into_iter().fold(OneOfBuilder::new(), |all, one| all.item(one)).into()
    }
}

impl ToSchema for BulkOrError {}

/// The whole document; fails when two types go by one name.
pub fn document() -> Result<OpenApi> {
    let mut components: BTreeMap<String, RefOr<Schema>> = BTreeMap::new();
    components.extend(Shape::of::<Envelope>().components);
    let (mut paths, examples) = (Paths::new(), Examples::read()?);
    for described in super::routes::described() {
        let (path, methods) = (described.path, vec![method(&described.method)]);
        let operation = operation(described, &mut components, &examples)?;
        paths.add_path_operation(path, methods, operation);
    }
    let components = components
        .into_iter()
        .fold(ComponentsBuilder::new(), |all, (name, schema)| all.schema(name, schema))
        .security_scheme(
            "api_key",
            SecurityScheme::Http(HttpBuilder::new().scheme(HttpAuthScheme::Bearer).build()),
        )
        .security_scheme("session", cookie_scheme(ACCESS_COOKIE))
        .security_scheme("refresh", cookie_scheme(REFRESH_COOKIE))
        .build();
    let info = InfoBuilder::new()
        .title("Open Spanner")
        .version(env!("CARGO_PKG_VERSION"))
        .description(Some("Usage metering: exact, immediate."))
        .license(Some(LicenseBuilder::new().name("MIT").identifier(Some("MIT")).build()))
        .build();
    Ok(OpenApiBuilder::new().info(info).paths(paths).components(Some(components)).build())
}

fn cookie_scheme(name: &str) -> SecurityScheme {
    SecurityScheme::ApiKey(ApiKey::Cookie(ApiKeyValue::new(name)))
}

fn method(method: &Method) -> HttpMethod {
    match *method {
        Method::POST => HttpMethod::Post,
        Method::PUT => HttpMethod::Put,
        Method::PATCH => HttpMethod::Patch,
        Method::DELETE => HttpMethod::Delete,
        _ => HttpMethod::Get,
    }
}

fn operation(
    described: Described,
    components: &mut BTreeMap<String, RefOr<Schema>>,
    examples: &Examples,
) -> Result<utoipa::openapi::path::Operation> {
    let statuses = error_statuses(&described);
    let Described { method, path, access, doc } = described;
    let name = format!("{method} {path}");
    let mut operation = OperationBuilder::new()
        .operation_id(Some(operation_id(&method, path)))
        .summary(Some(doc.summary))
        .tag(doc.tag)
        .description(access_words(&access))
        .parameters(Some(path_parameters(path).into_iter().chain(doc.parameters)));
    for (status, words, content) in doc.answers {
        let mut response = ResponseBuilder::new().description(words);
        if let Some((kind, shape)) = content {
            add(components, shape.components)?;
            let content = ContentBuilder::new().schema(Some(shape.schema));
            response = response.content(kind, examples.show(content, &name, &status.to_string()));
        }
        operation = operation.response(status.to_string(), response.build());
    }
    if let Some(shape) = doc.body {
        add(components, shape.components)?;
        let content = ContentBuilder::new().schema(Some(shape.schema));
        let body = RequestBodyBuilder::new()
            .content(JSON, examples.show(content, &name, "request"))
            .required(Some(Required::True));
        operation = operation.request_body(Some(body.build()));
    }
    for (status, words) in statuses {
        let schema = Ref::from_schema_name(Envelope::name());
        let content = ContentBuilder::new().schema(Some(schema));
        let content = examples.show(content, Examples::REFUSALS, &status.to_string());
        let response = ResponseBuilder::new().description(words).content(JSON, content).build();
        operation = operation.response(status.to_string(), response);
    }
    for name in schemes(&access) {
        operation = operation.security(SecurityRequirement::new(*name, Vec::<String>::new()));
    }
    Ok(operation.build())
}

/// Two types under one name would describe each other's answers.
fn add(components: &mut BTreeMap<String, RefOr<Schema>>, new: Vec<Component>) -> Result<()> {
    for (name, schema) in new {
        if let Some(other) = components.insert(name.clone(), schema.clone())
            && other != schema
        {
            return Err(Error::internal(format!("two schemas are named {name}")));
        }
    }
    Ok(())
}

fn schemes(access: &Access) -> &'static [&'static str] {
    match access {
        Access::Public => &[],
        Access::Session(_) => &["session"],
        Access::Key(..) => &["api_key", "session"],
    }
}

fn access_words(access: &Access) -> Option<String> {
    match access {
        Access::Public => None,
        Access::Session(role) => Some(format!("Session of a member with role {role} or above.")),
        Access::Key(scopes, role) => {
            let scopes: Vec<&str> = scopes.iter().map(|scope| scope.as_str()).collect();
            Some(format!("API key with scope {}, or session; role {role} or above.", scopes.join(" and ")))
        }
    }
}

fn object_of(schema: &RefOr<Schema>) -> Option<Object> {
    match schema {
        RefOr::T(Schema::Object(object)) => Some(object.clone()),
        _ => None,
    }
}

/// Errors of the envelope that an operation can answer with, without statuses its own answers use.
fn error_statuses(Described { path, access, doc, .. }: &Described) -> BTreeMap<u16, &'static str> {
    let mut statuses = doc.errors.clone();
    if path.starts_with("/v1") {
        statuses.extend([400, 500, 503]);
    }
    if !matches!(access, Access::Public) {
        statuses.extend([401, 403, 429]);
    }
    if path.contains('{') {
        statuses.push(404);
    }
    if doc.body.is_some() {
        statuses.extend([413, 415]);
    }
    let words = |status| match status {
        400 => "Malformed or against a rule; the message names the field.",
        401 => "No credentials, or bad ones.",
        403 => "Not allowed.",
        404 => "No such record in this workspace.",
        409 => "Clashes with what is stored, or as many exist as may exist (`limit_reached`).",
        413 => "The body is too large.",
        415 => {
            "The body is packed in a way that is not read, or comes with a cookie and is not said to be JSON."
        }
        429 => "Too much at once; see `Retry-After`.",
        503 => "Nothing was done; try again after `Retry-After`.",
        _ => "A fault of the server.",
    };
    let taken: Vec<u16> = doc.answers.iter().map(|(status, ..)| *status).collect();
    statuses
        .into_iter()
        .filter(|status| !taken.contains(status))
        .map(|status| (status, words(status)))
        .collect()
}

/// `GET /v1/meters/{id}` becomes `get_meters_by_id`.
fn operation_id(method: &Method, path: &str) -> String {
    let parts = path.trim_start_matches("/v1").split('/').filter(|part| !part.is_empty());
    let words = parts.map(|part| match part.strip_prefix('{') {
        Some(name) => format!("by_{}", name.trim_end_matches('}')),
        None => part.replace('-', "_"),
    });
    let words = words.collect::<Vec<_>>().join("_");
    let words = if words.is_empty() { "front_page" } else { &words };
    format!("{}_{words}", method.as_str().to_lowercase())
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The document in docs/ is what clients are generated from: a change of it is a change they must see in review.
    #[test]
    #[expect(clippy::disallowed_methods, reason = "asked for by hand only")]
    fn document_is_the_checked_in_one() {
        let path = concat!(env!("CARGO_MANIFEST_DIR"), "/docs/openapi.json");
        let fresh = document().expect("complete").to_pretty_json().expect("JSON") + "\n";
        if std::env::var("OPEN_SPANNER_REGENERATE").is_ok() {
            std::fs::write(path, &fresh).expect("written");
        }
        let kept = std::fs::read_to_string(path).unwrap_or_default();
        assert!(
            kept == fresh,
            "docs/openapi.json is out of date: OPEN_SPANNER_REGENERATE=1 cargo test --lib openapi"
        );
    }

    #[test]
    fn operation_ids_are_unique() {
        let ids: Vec<String> =
            crate::http::endpoints().iter().map(|e| operation_id(&e.method, e.path)).collect();
        let unique: std::collections::BTreeSet<&String> = ids.iter().collect();
        assert_eq!(unique.len(), ids.len());
    }
}
