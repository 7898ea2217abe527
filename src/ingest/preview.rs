//! What a dry run answers: of each event what would become of it, and what would move. Pure.

use serde::Serialize;
use serde_json::value::RawValue;
use utoipa::ToSchema;

use crate::entitlements::period::{Period, WindowInput};
use crate::entitlements::plan::{Enforcement, Limit, Plan};
use crate::entitlements::quota::{QuotaUsage, State, value};
use crate::error::{Error, Result};
use crate::metering::meter::Aggregation;
use crate::metering::quantity::Quantity;
use crate::metering::rollup::Part;
use crate::metering::stored::StoredEvent;
use crate::metering::time::{Timestamp, Window};

/// A call that was rehearsed.
#[derive(Debug)]
pub struct Preview {
    pub items: Vec<PreviewItem>,
    /// The call's own key was used before: its answer would be given again.
    pub is_replay: bool,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, ToSchema)]
#[serde(rename_all = "snake_case")]
pub enum Fate {
    Accepted,
    /// The key stands for the same event.
    Duplicate,
    /// The key stands for another event.
    Conflict,
    Rejected,
}

/// What would become of one event; fields in wire order.
#[derive(Clone, Debug, Serialize, ToSchema)]
pub struct PreviewItem {
    /// Position in the request, from 0.
    pub index: usize,
    pub outcome: Fate,
    /// Why it is rejected, or would be answered with an error.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub code: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub message: Option<String>,
    /// The event as it would be stored (its id would be another one), or the one that first used the key.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub event: Option<StoredEvent>,
    /// Of a conflict: what differs from the event that first used the key.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    #[schema(required = false)]
    pub conflict_fields: Vec<&'static str>,
    /// The values under the declared dimensions.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schema(value_type = Option<Object>)]
    pub dimension_set: Option<Box<RawValue>>,
    /// The subject's hour, day and month with this meter; of a call that touches very many, those of the first events.
    pub windows: Vec<WindowMove>,
    /// The limits that the event counts against; of a call that touches very many, those of the first events.
    pub quotas: Vec<QuotaMove>,
    /// The status that a call of this one event would have.
    #[serde(skip)]
    pub status: u16,
}

impl PreviewItem {
    pub fn new(index: usize, outcome: Fate) -> Self {
        PreviewItem {
            index,
            outcome,
            code: None,
            message: None,
            event: None,
            conflict_fields: Vec::new(),
            dimension_set: None,
            windows: Vec::new(),
            quotas: Vec::new(),
            status: 201,
        }
    }

    pub fn rejected(index: usize, error: &Error) -> Self {
        PreviewItem {
            code: Some(error.code.as_str().to_owned()),
            message: Some(error.message.clone()),
            status: error.code.http_status(),
            ..PreviewItem::new(index, Fate::Rejected)
        }
    }
}

impl Preview {
    pub fn count(&self, outcome: Fate) -> usize {
        self.items.iter().filter(|item| item.outcome == outcome).count()
    }

    /// The workspace wants keys that are used for something else to be refused.
    pub fn refuse_conflicts(&mut self) {
        for item in self.items.iter_mut().filter(|item| item.outcome == Fate::Conflict) {
            let error = key_conflict(&item.conflict_fields);
            item.code = Some(error.code.as_str().to_owned());
            item.status = error.code.http_status();
            item.message = Some(error.message);
        }
    }

    /// Takes out what a caller may not see, as the write itself would.
    pub fn confined(mut self, may_use: impl Fn(&str) -> Result<()>) -> Preview {
        let forbidden =
            Error::forbidden("the idempotency key belongs to an event that the API key may not read");
        for item in &mut self.items {
            let hidden = item.event.as_ref().is_some_and(|event| may_use(&event.meter).is_err());
            if hidden {
                *item = PreviewItem::rejected(item.index, &forbidden);
            }
        }
        self
    }
}

/// The refusal of an event whose key stands for another one.
pub fn key_conflict(differing: &[&str]) -> Error {
    match differing.is_empty() {
        true => Error::conflict("the idempotency key was used with another payload"),
        false => {
            let (fields, differ) =
                (differing.join(", "), if differing.len() == 1 { "differs" } else { "differ" });
            Error::conflict(format_args!("the idempotency key stands for another event: {fields} {differ}"))
        }
    }
}

/// A window of usage before the event and after it; without a value while it holds nothing.
#[derive(Clone, Debug, Serialize, ToSchema)]
pub struct WindowMove {
    pub bucket_size: &'static str,
    pub from: Timestamp,
    pub to: Timestamp,
    pub before: Option<Quantity>,
    pub after: Option<Quantity>,
}

/// A limit before the event and after it.
#[derive(Clone, Debug, Serialize, ToSchema)]
pub struct QuotaMove {
    pub plan_id: String,
    pub plan_name: String,
    pub period: Period,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub window: Option<WindowInput>,
    pub from: Timestamp,
    pub to: Timestamp,
    pub enforcement: Enforcement,
    pub limit: Quantity,
    pub before: Quantity,
    pub after: Quantity,
    /// `ok`, `warning` or `exceeded`.
    #[schema(value_type = String)]
    pub state_before: State,
    #[schema(value_type = String)]
    pub state_after: State,
    #[serde(skip)]
    warning_percent: Quantity,
}

impl QuotaMove {
    pub fn of(plan: &Plan, limit: &Limit, period: Period, window: Window) -> Self {
        QuotaMove {
            plan_id: plan.public_id.clone(),
            plan_name: plan.name.clone(),
            window: period.described(),
            period,
            from: window.from,
            to: window.to,
            enforcement: limit.enforcement,
            limit: limit.quantity.clone(),
            before: Quantity::zero(),
            after: Quantity::zero(),
            state_before: State::Ok,
            state_after: State::Ok,
            warning_percent: limit.warning_percent.clone(),
        }
    }

    pub fn between(self, aggregation: Aggregation, before: Option<&Part>, after: Option<&Part>) -> Self {
        let window = Window { from: self.from, to: self.to };
        let measure = |part| {
            let current = value(part, aggregation, window);
            QuotaUsage::of(current, &self.limit, &self.warning_percent)
        };
        let (before, after) = (measure(before), measure(after));
        QuotaMove {
            before: before.current,
            after: after.current,
            state_before: before.state,
            state_after: after.state,
            ..self
        }
    }
}
