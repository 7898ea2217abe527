//! One entry per operation: what it takes, what it answers. Nothing about access: that is in the route table.

use actix_web::http::Method;

use utoipa::openapi::Required;

use crate::alerts::rule::RuleInput;
use crate::auth::User;
use crate::entitlements::plan::PlanInput;
use crate::entitlements::quota::Check;
use crate::http::openapi::Doc;
use crate::http::{
    alerts, dead_letters, destinations, entitlements, exports, history, keys, meters, plans, saved_queries,
    session, stats, subjects, usage as usages, usage_events,
};
use crate::metering::event;
use crate::usage::query as rows;

/// The description of a route, or `None` when nobody wrote one.
pub fn describe(method: &Method, path: &str) -> Option<Doc> {
    let doc = match (method.as_str(), path) {
        ("GET", "/") => Doc::new("health", "Front page").html("A page with links."),
        ("GET", "/health") => Doc::new("health", "The process lives").empty(204, "Always."),
        ("GET", "/ready") => Doc::new("health", "The server can do its work")
            .empty(204, "Ready.")
            .empty(503, "Not now; the log says why."),
        (_, path) if path.starts_with("/v1/auth") => return auth(method, path),
        (_, path) if path.starts_with("/v1/exports") => return export(method, path),
        (_, path) if path.starts_with("/v1/meters") => return meter(method, path),
        (_, path) if path.starts_with("/v1/usages") => return usage(method, path),
        (_, path) if path.starts_with("/v1/plans") => return plan(method, path),
        (_, path) if path.starts_with("/v1/entitlements") => return entitlement(method, path),
        ("GET", "/v1/usageevents") => event_query("List raw events")
            .limit(100, 1000)
            .cursor()
            .page::<event::StoredEvent>("Newest first."),
        ("POST", "/v1/usageevents/search") => Doc::new("usage events", "List raw events, with a filter")
            .body::<usage_events::Search>()
            .page::<event::StoredEvent>("Newest first."),
        ("GET", "/v1/usageevents/export") => event_query("Download raw events")
            .limit(100, 1000)
            .flag("formula_guard", GUARD)
            .csv("Newest first."),
        ("POST", "/v1/usageevents/export") => Doc::new("usage events", "Download raw events, with a filter")
            .body::<usage_events::Search>()
            .csv("Newest first."),
        (_, path) if path.starts_with("/v1/usage/saved-queries") => return saved_query(method, path),
        (_, path) if path.starts_with("/v1/alerts/d") => return delivery(method, path),
        (_, path) if path.starts_with("/v1/alerts") => return alert(method, path),
        (_, path) if path.starts_with("/v1/system/workers") => return dead_letter(method, path),
        _ => return past(method, path),
    };
    Some(doc)
}

fn auth(method: &Method, path: &str) -> Option<Doc> {
    let doc = match (method.as_str(), path) {
        ("POST", "/v1/auth/users") => Doc::new("auth", "Register")
            .body::<session::CredentialsInput>()
            .answer::<User>(201, "The user, with a workspace of their own.")
            .errors(&[403, 409, 429]),
        ("POST", "/v1/auth/sessions") => Doc::new("auth", "Sign in")
            .body::<session::CredentialsInput>()
            .answer::<session::SessionView>(201, "Signed in; the tokens are in two cookies.")
            .errors(&[401, 429]),
        ("GET", "/v1/auth/session") => {
            Doc::new("auth", "Who is signed in").answer::<session::CurrentView>(200, "The user.")
        }
        ("DELETE", "/v1/auth/session") => {
            Doc::new("auth", "Sign out").empty(204, "Signed out, cookies cleared.")
        }
        ("POST", "/v1/auth/session/refresh") => Doc::new("auth", "Renew the session")
            .answer::<session::SessionView>(200, "Two new cookies.")
            .errors(&[401]),
        ("GET", "/v1/auth/providers") => Doc::new("auth", "Sign-in providers")
            .answer::<session::ProvidersView>(200, "All known providers."),
        ("GET", "/v1/auth/oauth/{provider}") => {
            Doc::new("auth", "Start a sign-in with a provider").empty(302, "To the provider.")
        }
        ("GET", "/v1/auth/oauth/{provider}/callback") => Doc::new("auth", "Return from a provider")
            .empty(302, "To the overview, or to the login page on any failure."),
        ("GET", "/v1/auth/api-keys") => {
            Doc::new("api keys", "Own API keys").page::<keys::KeyView>("Newest first.")
        }
        ("POST", "/v1/auth/api-keys") => Doc::new("api keys", "Create an API key")
            .body::<keys::KeyInput>()
            .answer::<keys::KeyView>(
                201,
                "The key; its secret is shown only here. At most 1,000 that are not revoked.",
            )
            .errors(&[409]),
        ("DELETE", "/v1/auth/api-keys/{id}") => {
            Doc::new("api keys", "Revoke an API key").empty(204, "Revoked.")
        }
        ("POST", "/v1/auth/api-keys/{id}/rotate") => Doc::new("api keys", "Replace an API key")
            .body::<keys::RotateInput>()
            .answer::<keys::KeyView>(201, "The new key; the old one ends after the grace period.")
            .errors(&[409]),
        ("GET", "/v1/auth/api-key-events") => {
            Doc::new("api keys", "History of own API keys").page::<keys::EventView>("The newest 50.")
        }
        _ => return None,
    };
    Some(doc)
}

fn meter(method: &Method, path: &str) -> Option<Doc> {
    let doc = match (method.as_str(), path) {
        ("POST", "/v1/meters") => Doc::new("meters", "Define a meter")
            .body::<meters::MeterInput>()
            .needs(&["name", "unit"])
            .answer::<meters::MeterView>(201, "The meter. At most 1,000 in a workspace.")
            .errors(&[409]),
        ("GET", "/v1/meters") => Doc::new("meters", "List meters")
            .text("name", "Exact name.")
            .limit(50, 500)
            .cursor()
            .page::<meters::MeterView>("By name."),
        ("GET", "/v1/meters/stats") => Doc::new("meters", "Stored events per meter")
            .limit(50, 500)
            .cursor()
            .page::<history::MeterStatsView>("By name."),
        ("GET", "/v1/meters/{id}") => {
            Doc::new("meters", "Read a meter").answer::<meters::MeterView>(200, "The meter.")
        }
        ("PUT", "/v1/meters/{id}") => Doc::new("meters", "Change a meter")
            .body::<meters::MeterInput>()
            .answer::<meters::MeterView>(200, "The meter as it is now.")
            .errors(&[409]),
        ("DELETE", "/v1/meters/{id}") => {
            Doc::new("meters", "Delete a meter without events").empty(204, "Deleted.").errors(&[409])
        }
        _ => return None,
    };
    Some(doc)
}

fn usage(method: &Method, path: &str) -> Option<Doc> {
    let doc = match (method.as_str(), path) {
        ("POST", "/v1/usages") => Doc::new("usage", "Record an event")
            .body::<event::Input>()
            .answer::<event::StoredEvent>(
                201,
                "The stored event, or the one that first had the idempotency key.",
            )
            .errors(&[404, 429]),
        ("POST", "/v1/usages/bulk") => Doc::new("usage", "Record up to 1000 events")
            .body_list::<event::Input>()
            .answer::<usages::BulkResult>(201, "At least one item is stored.")
            .answer::<super::BulkOrError>(
                400,
                "Every item failed (a bulk result), or the call itself (an error).",
            )
            .errors(&[429]),
        ("GET", "/v1/usages") => bucket_query("Aggregates over time")
            .limit(100, 1000)
            .list::<rows::Bucket>("By bucket, then group. `metadata.<path>=<value>` parameters filter.")
            .errors(&[404]),
        ("POST", "/v1/usages/search") => Doc::new("usage", "Aggregates over time, with a filter")
            .body::<usages::Search>()
            .list::<rows::Bucket>("By bucket, then group.")
            .errors(&[404]),
        ("GET", "/v1/usages/export") => bucket_query("Download aggregates over time")
            .limit(100, 1000)
            .flag("formula_guard", GUARD)
            .csv("By bucket, then group.")
            .errors(&[404]),
        ("POST", "/v1/usages/export") => Doc::new("usage", "Download aggregates over time, with a filter")
            .body::<usages::Search>()
            .csv("By bucket, then group.")
            .errors(&[404]),
        ("POST", "/v1/usages/breakdowns/search") => Doc::new("usage", "Largest values of a field")
            .body::<usages::BreakdownSearch>()
            .page::<rows::Share>("By quantity, then value.")
            .errors(&[404]),
        ("GET", "/v1/usages/dimensions") => Doc::new("usage", "Values that a dimension has taken")
            .required_text("meter", "Name of the meter.")
            .required_text("field", "A declared dimension.")
            .text("subject", "One subject only.")
            .time("from", "Start, inclusive.", Required::False)
            .time("to", "End, exclusive.", Required::False)
            .limit(100, 1000)
            .page::<rows::Taken>("By number of events, then value.")
            .errors(&[404]),
        _ => return None,
    };
    Some(doc)
}

const GUARD: &str = "An apostrophe before cells that a spreadsheet would run as a formula.";

fn bucket_query(summary: &'static str) -> Doc {
    Doc::new("usage", summary)
        .required_text("meter", "Name of the meter.")
        .time("from", "Start, inclusive.", Required::True)
        .time("to", "End, exclusive.", Required::True)
        .text("subject", "One subject only.")
        .text("bucket_size", "`hour`, `day` or `month`; `day` unless told.")
        .repeated("group_by", "`subject` or declared dimensions, up to five.")
}

fn event_query(summary: &'static str) -> Doc {
    Doc::new("usage events", summary)
        .text("meter", "Name of a meter.")
        .text("subject", "One subject only.")
        .time("from", "Start, inclusive.", Required::False)
        .time("to", "End, exclusive.", Required::False)
}

fn export(method: &Method, path: &str) -> Option<Doc> {
    let doc = match (method.as_str(), path) {
        ("POST", "/v1/exports") => Doc::new("exports", "Queue an export")
            .body::<exports::CreateInput>()
            .errors(&[409])
            .answer::<exports::View>(202, "The job. It fails later when the meter turns out not to fit."),
        ("GET", "/v1/exports") => Doc::new("exports", "List export jobs")
            .limit(100, 1000)
            .cursor()
            .page::<exports::View>("Newest first."),
        ("GET", "/v1/exports/{id}") => {
            Doc::new("exports", "Read an export job").answer::<exports::View>(200, "The job.")
        }
        ("POST", "/v1/exports/{id}/cancel") => Doc::new("exports", "Cancel an export")
            .answer::<exports::View>(200, "The job, canceled; its work stops within a second.")
            .errors(&[409]),
        ("POST", "/v1/exports/{id}/retry") => Doc::new("exports", "Queue a failed or canceled export anew")
            .answer::<exports::View>(200, "The job, queued.")
            .errors(&[409]),
        ("GET", "/v1/exports/{id}/download") => Doc::new("exports", "Download a completed export")
            .csv("The file, or with `Range: bytes=…` one part of it (206).")
            .errors(&[409]),
        _ => return None,
    };
    Some(doc)
}

/// What happened so far, and what is to go.
fn past(method: &Method, path: &str) -> Option<Doc> {
    let doc = match (method.as_str(), path) {
        ("POST", "/v1/usageevents/prune") => Doc::new("retention", "Delete events past their retention")
            .parameter(super::query(
                "dry_run",
                "Only count.",
                super::ObjectBuilder::new().schema_type(super::Type::Boolean).into(),
                Required::False,
            ))
            .answer::<history::PruneRunView>(200, "What was deleted, or would be.")
            .errors(&[409]),
        ("GET", "/v1/usageevents/prunes") => Doc::new("retention", "Prunes so far")
            .limit(100, 1000)
            .cursor()
            .page::<history::PruneRunView>("Newest first, dry runs included."),
        ("GET", "/v1/usageingestions") => Doc::new("usage", "Write calls so far")
            .limit(100, 1000)
            .cursor()
            .page::<history::IngestionRunView>("Newest first."),
        ("GET", "/v1/subjects") => Doc::new("subjects", "Subjects with stored events")
            .limit(100, 1000)
            .cursor()
            .page::<subjects::SubjectView>("By their last event, newest first."),
        ("GET", "/v1/subjects/{subject}/usageevents") => Doc::new("subjects", "Newest events of a subject")
            .limit(100, 1000)
            .list::<event::StoredEvent>("Newest first; empty for an unknown subject."),
        ("GET", "/v1/system/stats") => {
            Doc::new("system", "Totals of the workspace and the health of the workers")
                .answer::<stats::SystemStats>(200, "Totals of the workspace, workers of the installation.")
        }
        _ => return None,
    };
    Some(doc)
}

fn saved_query(method: &Method, path: &str) -> Option<Doc> {
    let doc = match (method.as_str(), path) {
        ("GET", "/v1/usage/saved-queries") => {
            Doc::new("saved queries", "Own saved queries")
                .page::<saved_queries::View>("Pinned first, then by position, then the newest change.")
        }
        ("POST", "/v1/usage/saved-queries") => Doc::new("saved queries", "Save a query")
            .body::<saved_queries::Input>()
            .answer::<saved_queries::View>(201, "The saved query.")
            .errors(&[409]),
        ("PUT", "/v1/usage/saved-queries/{id}") => Doc::new("saved queries", "Replace a saved query")
            .body::<saved_queries::Input>()
            .answer::<saved_queries::View>(200, "The saved query as it is now.")
            .errors(&[409]),
        ("DELETE", "/v1/usage/saved-queries/{id}") => {
            Doc::new("saved queries", "Delete a saved query").empty(204, "Deleted.")
        }
        _ => return None,
    };
    Some(doc)
}

fn plan(method: &Method, path: &str) -> Option<Doc> {
    let doc = match (method.as_str(), path) {
        ("GET", "/v1/plans") => Doc::new("plans", "List plans")
            .limit(100, 1000)
            .page::<plans::PlanView>("Current versions, by name."),
        ("POST", "/v1/plans") => Doc::new("plans", "Define a plan")
            .body::<PlanInput>()
            .answer::<plans::PlanView>(201, "Version 1 of the plan.")
            .errors(&[404, 409]),
        ("GET", "/v1/plans/assignments") => Doc::new("plans", "List assignments")
            .text("subject", "One subject only.")
            .text("plan_id", "One plan version only.")
            .text("include_history", "`true`: ended ones too.")
            .limit(100, 1000)
            .page::<plans::AssignmentView>("The latest changed first."),
        ("PUT", "/v1/plans/subjects/{subject}") => Doc::new("plans", "Assign a plan to a subject")
            .body::<plans::AssignInput>()
            .answer::<plans::AssignmentView>(200, "The assignment, active or scheduled.")
            .errors(&[409]),
        ("DELETE", "/v1/plans/subjects/{subject}") => {
            Doc::new("plans", "Take the plan from a subject").empty(204, "Ended.")
        }
        ("GET", "/v1/plans/subjects/{subject}/progress") => {
            Doc::new("plans", "Where a subject stands")
                .answer::<plans::ProgressView>(200, "The plan in force and one item per limit.")
        }
        ("GET", "/v1/plans/{id}") => {
            Doc::new("plans", "Read a plan version").answer::<plans::PlanView>(200, "The plan.")
        }
        ("PUT", "/v1/plans/{id}") => Doc::new("plans", "Make the next version of a plan")
            .body::<PlanInput>()
            .answer::<plans::PlanView>(200, "The new version; its subjects moved along.")
            .errors(&[409]),
        ("DELETE", "/v1/plans/{id}") => {
            Doc::new("plans", "Delete a plan version nobody has").empty(204, "Deleted.").errors(&[409])
        }
        ("POST", "/v1/plans/{id}/preview") => Doc::new("plans", "What a change would mean")
            .body::<PlanInput>()
            .answer::<plans::PreviewView>(200, "The impact per subject; nothing is stored.")
            .errors(&[409]),
        _ => return None,
    };
    Some(doc)
}

fn entitlement(method: &Method, path: &str) -> Option<Doc> {
    let narrowed = |doc: Doc| {
        doc.text("subject", "One subject only.")
            .text("meter", "One meter only.")
            .text("state", "One state only.")
    };
    let doc = match (method.as_str(), path) {
        ("POST", "/v1/entitlements/check") => Doc::new("entitlements", "May a subject use more?")
            .body::<entitlements::CheckInput>()
            .answer::<Check>(200, "Also for no; nothing is reserved."),
        ("POST", "/v1/entitlements/consume") => Doc::new("entitlements", "Decide and record in one step")
            .body::<event::Input>()
            .needs(&["idempotency_key"])
            .answer::<entitlements::ConsumptionView>(201, "Recorded.")
            .answer::<entitlements::ConsumptionView>(429, "Refused by a hard limit; nothing is recorded.")
            .errors(&[404]),
        ("GET", "/v1/entitlements/decisions") => narrowed(Doc::new("entitlements", "List decisions"))
            .text("enforcement", "`advisory` or `hard`.")
            .text("outcome", "`accepted`, `rejected` or `all`.")
            .text("evaluation_failed", "Only those whose quota could (not) be computed.")
            .limit(50, 200)
            .cursor()
            .page::<entitlements::DecisionView>("Newest first."),
        ("GET", "/v1/entitlements/decisions/{idempotency_key}") => {
            Doc::new("entitlements", "Read a decision")
                .answer::<entitlements::DecisionView>(200, "The decision.")
        }
        ("GET", "/v1/entitlements/states") => narrowed(Doc::new("entitlements", "Where subjects stand"))
            .limit(100, 1000)
            .page::<entitlements::StateView>("The latest evaluated first."),
        ("GET", "/v1/entitlements/events") => narrowed(Doc::new("entitlements", "Lines that were crossed"))
            .text("plan_id", "One plan version only.")
            .text("type", "`warning`, `exceeded` or `recovered`.")
            .limit(100, 1000)
            .cursor()
            .page::<entitlements::EventView>("Newest first."),
        ("GET", "/v1/entitlements/periods") => narrowed(Doc::new("entitlements", "What periods came to"))
            .text("plan_id", "One plan version only.")
            .limit(100, 1000)
            .page::<entitlements::PeriodView>("The latest period first."),
        _ => return None,
    };
    Some(doc)
}

fn alert(method: &Method, path: &str) -> Option<Doc> {
    let doc = match (method.as_str(), path) {
        ("GET", "/v1/alerts") => Doc::new("alerts", "List alert rules")
            .text("meter", "Rules of one meter.")
            .text("enabled", "`true` or `false`.")
            .limit(100, 1000)
            .page::<alerts::RuleView>("Newest first, with their states."),
        ("POST", "/v1/alerts") => Doc::new("alerts", "Create an alert rule")
            .body::<RuleInput>()
            .needs(&["name", "meter", "destination_id"])
            .answer::<alerts::RuleView>(
                201,
                "The rule; it is evaluated at once. At most 1,000 in a workspace.",
            )
            .errors(&[409])
            .errors(&[404]),
        ("GET", "/v1/alerts/{id}") => Doc::new("alerts", "Read an alert rule")
            .answer::<alerts::RuleView>(200, "The rule and its states."),
        ("PUT", "/v1/alerts/{id}") => Doc::new("alerts", "Change an alert rule")
            .body::<RuleInput>()
            .answer::<alerts::RuleView>(200, "The rule as it is now."),
        ("DELETE", "/v1/alerts/{id}") => {
            Doc::new("alerts", "Delete an alert rule").empty(204, "Deleted; what fired is resolved.")
        }
        ("POST", "/v1/alerts/{id}/evaluate") => {
            Doc::new("alerts", "Evaluate an alert rule now")
                .answer::<alerts::EvaluationView>(200, "The states, and what happened.")
        }
        ("GET", "/v1/alerts/events") => Doc::new("alerts", "What happened to rules")
            .text("rule_id", "Events of one rule.")
            .limit(100, 1000)
            .cursor()
            .page::<alerts::EventView>("Newest first, each with its latest delivery.")
            .errors(&[404]),
        ("POST", "/v1/alerts/events/{id}/redeliver") => {
            Doc::new("alerts", "Send an event again")
                .answer::<alerts::DeliveryView>(202, "Queued, under the same id.")
        }
        _ => return None,
    };
    Some(doc)
}

/// Destinations and delivery jobs.
fn delivery(method: &Method, path: &str) -> Option<Doc> {
    let doc = match (method.as_str(), path) {
        ("GET", "/v1/alerts/delivery-jobs") => Doc::new("alerts", "What is or was to be delivered")
            .text("status", "`pending`, `delivered` or `dead_letter`.")
            .limit(50, 200)
            .page::<alerts::DeliveryView>("Newest first."),
        ("POST", "/v1/alerts/delivery-jobs/{id}/retry") => {
            Doc::new("alerts", "Try a dead delivery again").empty(204, "Queued.").errors(&[409])
        }
        ("GET", "/v1/alerts/destinations") => Doc::new("alerts", "List destinations")
            .text("type", "`webhook`.")
            .text("enabled", "`true` or `false`.")
            .limit(100, 1000)
            .page::<destinations::DestinationView>("Newest first."),
        ("POST", "/v1/alerts/destinations") => Doc::new("alerts", "Create a destination")
            .body::<destinations::DestinationInput>()
            .needs(&["name", "webhook_url"])
            .answer::<destinations::DestinationView>(
                201,
                "The destination; its secret is shown only here. At most 500 in a workspace.",
            )
            .errors(&[409]),
        ("PUT", "/v1/alerts/destinations/{id}") => Doc::new("alerts", "Change a destination")
            .body::<destinations::DestinationInput>()
            .answer::<destinations::DestinationView>(200, "The destination as it is now."),
        ("DELETE", "/v1/alerts/destinations/{id}") => {
            Doc::new("alerts", "Delete a destination").empty(204, "Deleted.").errors(&[409])
        }
        ("POST", "/v1/alerts/destinations/{id}/webhook-secret/rotate") => {
            Doc::new("alerts", "Replace the signing secret")
                .answer::<destinations::DestinationView>(200, "The new secret, shown only here.")
        }
        ("POST", "/v1/alerts/destinations/{id}/test") => {
            Doc::new("alerts", "Send a test event")
                .answer::<destinations::TestView>(200, "What the receiver answered.")
        }
        _ => return None,
    };
    Some(doc)
}

fn dead_letter(method: &Method, path: &str) -> Option<Doc> {
    let doc = match (method.as_str(), path) {
        ("GET", "/v1/system/workers/dead-letters") => Doc::new("system", "Jobs that used up their attempts")
            .limit(50, 200)
            .page::<dead_letters::DeadLetterView>("Newest first."),
        ("POST", "/v1/system/workers/dead-letters/{id}/retry") => {
            Doc::new("system", "Queue a dead job anew").empty(204, "Queued.").errors(&[409])
        }
        _ => return None,
    };
    Some(doc)
}
