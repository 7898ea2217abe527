//! Dry runs: the same admission and the same steps as a write, taken back before anybody else sees them. They go past
//! the queue and the rate limiter, and leave no counts, no refused events and no ingestion run.

use std::sync::Arc;

use serde::Deserialize;
use serde_json::value::RawValue;

use crate::db::identity::Link;
use crate::entitlements::sql::decisions::Decided;
use crate::error::{Error, Result};
use crate::ingest::insert::{self, Batch, Outcome, Seen, Windows};
use crate::ingest::preview::{Fate, Preview, PreviewItem};
use crate::ingest::{Admitted, Call, Ingest, Kind, Origin, STALE_TRIES};
use crate::metering::event::{Event, Input};
use crate::metering::stored::{Original, StoredEvent};

/// What is rehearsed: a write, or a consumption with its decision.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Rehearsed {
    Write,
    Consumption,
}

impl Ingest {
    /// What would become of a call, decided by what decides about it, with nothing stored.
    pub async fn rehearse(
        &self,
        origin: Origin,
        what: Rehearsed,
        inputs: Vec<Input>,
        replay_key: Option<String>,
    ) -> Result<(Preview, Option<Box<Decided>>)> {
        let consumes = (what == Rehearsed::Consumption).then_some(self.decided_at);
        let workspace_id = origin.workspace_id;
        let call = Call { replay_key, consumes, is_rehearsal: true, ..Call::new(origin, Kind::Single) };
        let mut admitted = self.admit(call, inputs).await?;
        for _ in 0..STALE_TRIES {
            let seen = match admitted.batch.events.is_empty() {
                true => {
                    Seen { outcome: Outcome::Stored(Vec::new()), windows: Vec::new(), quotas: Vec::new() }
                }
                false => self.rehearse_batch(&admitted.batch).await?,
            };
            match seen.outcome {
                Outcome::Retry => {}
                Outcome::Stale => admitted = self.admit_again(admitted).await?,
                _ => {
                    let (mut preview, decided) = preview(admitted, seen)?;
                    if preview.count(Fate::Conflict) > 0 && self.refuses_conflicts(workspace_id).await? {
                        preview.refuse_conflicts();
                    }
                    return Ok((preview, decided));
                }
            }
        }
        Err(Error::unavailable("the meter is being changed"))
    }

    async fn rehearse_batch(&self, batch: &Arc<Batch>) -> Result<Seen> {
        let (read, batch, known) = (batch.clone(), batch.clone(), self.known.clone());
        let windows = self.store.read("events::windows", move |conn| Windows::read(conn, &read)).await?;
        let rehearse = move |conn: &mut _, link: Link| {
            insert::rehearse(conn, link, &batch, &known.of(link.epoch), windows.clone())
        };
        self.store.rehearse("events::rehearse", rehearse).await
    }
}

/// Puts together what each item of the request came to, in the order of the request.
fn preview(admitted: Admitted, seen: Seen) -> Result<(Preview, Option<Box<Decided>>)> {
    let Admitted { batch, places, failed, .. } = admitted;
    let mut items: Vec<PreviewItem> =
        failed.iter().map(|failure| PreviewItem::rejected(failure.index, &failure.error)).collect();
    let Seen { outcome, windows, quotas } = seen;
    let fates = fates(&outcome, &batch.events)?;
    let moves = windows.into_iter().zip(quotas);
    for (((event, index), fate), (windows, quotas)) in batch.events.iter().zip(places).zip(fates).zip(moves) {
        let dimension_set = RawValue::from_string(event.dimension_set.json.clone()).ok();
        items.push(PreviewItem { index, dimension_set, windows, quotas, ..fate });
    }
    items.sort_by_key(|item| item.index);
    let is_replay = matches!(outcome, Outcome::Replayed { .. });
    let decided = match outcome {
        Outcome::Decided(decided) => Some(decided),
        _ => None,
    };
    Ok((Preview { items, is_replay }, decided))
}

fn fates(outcome: &Outcome, events: &[Event]) -> Result<Vec<PreviewItem>> {
    let new = |fate| PreviewItem::new(0, fate);
    Ok(match outcome {
        Outcome::Stored(originals) => {
            events.iter().zip(originals).map(|(event, original)| of_event(event, original.as_ref())).collect()
        }
        Outcome::Replayed { conflict: true, .. } => events.iter().map(|_| new(Fate::Conflict)).collect(),
        Outcome::Replayed { .. } => events.iter().map(|_| new(Fate::Duplicate)).collect(),
        Outcome::Decided(decided) => {
            events.iter().take(1).map(|event| of_decision(event, decided)).collect::<Result<_>>()?
        }
        Outcome::Stale | Outcome::Retry => Vec::new(),
    })
}

fn of_event(event: &Event, original: Option<&Original>) -> PreviewItem {
    let Some(Original { event: stored, conflict }) = original else {
        return PreviewItem { event: Some(StoredEvent::of(event)), ..PreviewItem::new(0, Fate::Accepted) };
    };
    if !conflict {
        return PreviewItem { event: Some(stored.clone()), ..PreviewItem::new(0, Fate::Duplicate) };
    }
    let stored = stored.clone().in_conflict_with(event);
    let conflict_fields = stored.conflict_fields.clone();
    PreviewItem { conflict_fields, event: Some(stored), ..PreviewItem::new(0, Fate::Conflict) }
}

/// What a refused decision says in words.
#[derive(Deserialize)]
struct Said {
    message: String,
}

fn of_decision(event: &Event, decided: &Decided) -> Result<PreviewItem> {
    // a refused consumption left no event to compare with
    if decided.conflict && decided.event.is_none() {
        return Ok(PreviewItem::new(0, Fate::Conflict));
    }
    if !decided.decision.accepted {
        let said: Said = serde_json::from_str(&decided.decision.quota).map_err(Error::internal)?;
        let (code, message) = (Some("quota_exceeded".to_owned()), Some(said.message));
        return Ok(PreviewItem { code, message, status: 429, ..PreviewItem::new(0, Fate::Rejected) });
    }
    let is_new = !decided.replayed && decided.event.as_ref().is_some_and(|e| e.id == event.id.to_string());
    let original = decided.event.clone().filter(|_| !is_new);
    let original = original.map(|event| Original { event, conflict: decided.conflict });
    Ok(of_event(event, original.as_ref()))
}
