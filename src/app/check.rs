//! May a subject use more? Asked by programs and by the page that tries it. Stores and reserves nothing.

use crate::app::App;
use crate::entitlements::assignment::{effective, not_before};
use crate::entitlements::plan::Plan;
use crate::entitlements::quota::{Candidate, Check};
use crate::entitlements::sql::counters::Range;
use crate::entitlements::sql::plans::Assigned;
use crate::error::{Error, Result};
use crate::metering::event::{InputQuantity, parse_subject};
use crate::metering::quantity::Quantity;
use crate::metering::time::Timestamp;

/// A question whether more may be used.
pub struct Asked {
    workspace_id: i64,
    subject: String,
    meter: String,
    quantity: Quantity,
    now: Timestamp,
}

impl Asked {
    pub fn new(
        workspace_id: i64,
        subject: &str,
        meter: &str,
        quantity: Option<InputQuantity>,
    ) -> Result<Asked> {
        let (subject, meter) = (parse_subject(subject)?.to_owned(), meter.trim().to_owned());
        if meter.is_empty() {
            return Err(Error::invalid("meter is required"));
        }
        let quantity = quantity_of(quantity)?;
        Ok(Asked { workspace_id, subject, meter, quantity, now: Timestamp::now() })
    }
}

/// 0 and absent mean 1.
fn quantity_of(input: Option<InputQuantity>) -> Result<Quantity> {
    let quantity = match input {
        None => return Ok(Quantity::from(1)),
        Some(InputQuantity(parsed)) => {
            parsed.map_err(|reject| Error::invalid(format!("quantity {reject}")))?
        }
    };
    if quantity.is_zero() {
        return Ok(Quantity::from(1));
    }
    if !quantity.is_positive() {
        return Err(Error::invalid("quantity must not be negative"));
    }
    Ok(quantity)
}

impl App {
    /// Says whether a quantity would fit. Plan and assignment come from memory, the counters from one indexed read.
    pub async fn check(&self, asked: &Asked) -> Result<Check> {
        let assigned = self.plans.subject(asked.workspace_id, &asked.subject).await?;
        let answer = self.assess(asked, &assigned).await?;
        if answer.allowed {
            return Ok(answer);
        }
        // nobody is refused for what was changed on another server a moment ago
        let fresh = self.plans.read_subject(asked.workspace_id, &asked.subject).await?;
        if fresh == assigned { Ok(answer) } else { self.assess(asked, &fresh).await }
    }

    async fn assess(&self, asked: &Asked, assigned: &Assigned) -> Result<Check> {
        let Asked { workspace_id, subject, meter, quantity, now } = asked;
        let without_limit = |plan: Option<&Plan>| {
            Check::without_limit(subject.clone(), meter.clone(), quantity.clone(), plan)
        };
        let now = &not_before(&assigned.history, *now);
        let plan = match effective(&assigned.history, *now) {
            Some(span) => self.plans.plan(span.plan_id).await?.map(|plan| (span, plan)),
            None => None,
        };
        let Some((span, plan)) = plan else { return Ok(without_limit(None)) };
        let Some(found) = self.meters.get(*workspace_id, meter).await? else {
            return Ok(without_limit(Some(&plan)));
        };
        let ranges: Vec<Range> = plan
            .limits_of(found.id)
            .map(|limit| {
                let who = (assigned.subject_id, found.id);
                Range::at(who, &limit.period, span.anchor, &span.zone, *now)
            })
            .collect();
        let counted = self.counters.load(ranges.clone()).await?;
        let candidates: Vec<Candidate> = plan
            .limits_of(found.id)
            .zip(ranges)
            .zip(counted)
            .map(|((limit, range), counted)| {
                let period = limit.period.in_zone(&span.zone);
                Candidate { limit, period, window: range.window, counted }
            })
            .collect();
        let (subject, meter, quantity) = (subject.clone(), meter.clone(), quantity.clone());
        Ok(Check::of(subject, meter, quantity, &plan, found.aggregation, &candidates, *now))
    }
}
