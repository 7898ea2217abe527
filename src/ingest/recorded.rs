//! What became of a call, as every door answers it. What a caller may see of it is decided here and nowhere else.

use serde::Serialize;
use serde::ser::SerializeStruct;

use crate::error::{Error, Result};
use crate::ingest::preview;
use crate::metering::stored::StoredEvent;

/// An item that was not stored, by its position in the request.
#[derive(Clone, Debug)]
pub struct Failure {
    pub index: usize,
    pub error: Error,
}

impl Serialize for Failure {
    fn serialize<S: serde::Serializer>(&self, serializer: S) -> std::result::Result<S::Ok, S::Error> {
        let mut failure = serializer.serialize_struct("Failure", 3)?;
        failure.serialize_field("index", &self.index)?;
        failure.serialize_field("code", self.error.code.as_str())?;
        failure.serialize_field("message", &self.error.message)?;
        failure.end()
    }
}

/// What became of a call.
#[derive(Debug)]
pub struct Recorded {
    pub accepted: Vec<StoredEvent>,
    pub duplicates: Vec<StoredEvent>,
    pub failed: Vec<Failure>,
    /// Position in the call, of each accepted event; of a replay not known.
    pub accepted_places: Vec<usize>,
    /// Position in the call, of each duplicate.
    pub duplicate_places: Vec<usize>,
    /// Positions in the call of those whose key was used with another payload.
    pub conflict_places: Vec<usize>,
    /// The call's own key was used before: accepted and duplicates are the lists answered then.
    pub is_replay: bool,
    /// It was used for other events.
    pub is_conflict: bool,
    /// The workspace wants to be told of conflicts with an error.
    pub(super) refuses_conflicts: bool,
}

impl Recorded {
    /// A used key must not be said to be new, nor for the same thing when it is not.
    pub fn has_conflict(&self) -> bool {
        self.is_conflict || !self.conflict_places.is_empty()
    }

    /// Of a call without anything that could be stored.
    pub fn nothing() -> Recorded {
        Recorded {
            accepted: Vec::new(),
            duplicates: Vec::new(),
            failed: Vec::new(),
            accepted_places: Vec::new(),
            duplicate_places: Vec::new(),
            conflict_places: Vec::new(),
            is_replay: false,
            is_conflict: false,
            refuses_conflicts: false,
        }
    }

    /// In the positions of the door, which sent on only some items, and refused `more`.
    pub fn moved(mut self, places: &[usize], more: Vec<Failure>) -> Recorded {
        let moved = |place: &usize| places.get(*place).copied().unwrap_or(*place);
        for list in [&mut self.accepted_places, &mut self.duplicate_places, &mut self.conflict_places] {
            list.iter_mut().for_each(|place| *place = moved(place));
        }
        self.failed.iter_mut().for_each(|failure| failure.index = moved(&failure.index));
        self.failed.extend(more);
        self.failed.sort_by_key(|failure| failure.index);
        self
    }

    /// Takes out what a caller may not see: a used key leads to the event that used it, whatever its meter. Then what
    /// the workspace does not want answered.
    pub fn confined(self, may_use: impl Fn(&str) -> Result<()>) -> Result<Recorded> {
        let seen = self.shown(may_use)?;
        if seen.refuses_conflicts { seen.without_conflicts() } else { Ok(seen) }
    }

    /// Fails each event whose key stands for another one.
    fn without_conflicts(mut self) -> Result<Recorded> {
        if self.is_conflict {
            return Err(preview::key_conflict(&[]));
        }
        let places = std::mem::take(&mut self.duplicate_places);
        for (index, event) in places.into_iter().zip(std::mem::take(&mut self.duplicates)) {
            if event.conflict {
                self.failed.push(Failure { index, error: preview::key_conflict(&event.conflict_fields) });
            } else {
                self.duplicates.push(event);
                self.duplicate_places.push(index);
            }
        }
        self.failed.sort_by_key(|failure| failure.index);
        self.conflict_places.clear();
        Ok(self)
    }

    fn shown(mut self, may_use: impl Fn(&str) -> Result<()>) -> Result<Recorded> {
        let forbidden =
            || Error::forbidden("the idempotency key belongs to an event that the API key may not read");
        if self.is_replay {
            let mut all = self.accepted.iter().chain(&self.duplicates);
            return if all.all(|event| may_use(&event.meter).is_ok()) { Ok(self) } else { Err(forbidden()) };
        }
        let places = std::mem::take(&mut self.duplicate_places);
        for (index, event) in places.into_iter().zip(std::mem::take(&mut self.duplicates)) {
            if may_use(&event.meter).is_ok() {
                self.duplicates.push(event);
                self.duplicate_places.push(index);
            } else {
                self.failed.push(Failure { index, error: forbidden() });
            }
        }
        self.failed.sort_by_key(|failure| failure.index);
        self.conflict_places.retain(|place| self.duplicate_places.contains(place));
        Ok(self)
    }
}
