//! Where a write call comes from: what its run and its refusals say about it besides what became of its events.

use std::time::Instant;

use uuid::Uuid;

use crate::auth::{Caller, Credential};
use crate::logging::{self, Request};
use crate::{chance, clock};

/// A write call, or a stream with all its parts.
#[derive(Clone, Debug)]
pub struct Origin {
    pub workspace_id: i64,
    /// The ingestion run this is written down as; the parts of one stream share it and are added up.
    pub run_id: Uuid,
    /// The key it was sent with, by the id that callers know; `None` for a person, or a command.
    pub api_key_id: Option<String>,
    /// The sender's own id of the request. One that this server gave is that of the run.
    pub request_id: Option<String>,
    began: Instant,
}

impl Origin {
    /// The request that is being answered.
    pub fn of(caller: &Caller) -> Origin {
        let request = logging::current_request();
        let given = request.as_ref().and_then(Request::given);
        let api_key_id = match &caller.credential {
            Credential::Key { public_id, .. } => Some(public_id.clone()),
            Credential::Session { .. } => None,
        };
        Origin {
            workspace_id: caller.workspace_id,
            run_id: given.unwrap_or_else(chance::id),
            api_key_id,
            request_id: request.filter(|_| given.is_none()).map(|request| request.id().to_owned()),
            began: clock::moment(),
        }
    }

    /// Events that no call brings: a history that is moved in.
    pub fn without_call(workspace_id: i64, run_id: Uuid) -> Origin {
        Origin { workspace_id, run_id, api_key_id: None, request_id: None, began: clock::moment() }
    }

    /// Microseconds since its events were read.
    pub fn duration(&self) -> i64 {
        clock::since(self.began).as_micros().try_into().unwrap_or(i64::MAX)
    }
}
