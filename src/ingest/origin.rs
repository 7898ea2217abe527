//! Where a write call comes from: what its run and its refusals say about it besides what became of its events.

use std::time::Instant;

use uuid::Uuid;

use crate::auth::{Caller, Credential};
use crate::logging::{self, Request};
use crate::string_enum::string_enum;
use crate::{chance, clock};

string_enum! {
    /// Where events come in.
    Door {
        Rest = "rest",
        Bulk = "bulk",
        Ndjson = "ndjson",
        CloudEvents = "cloudevents",
        OpenMeter = "openmeter",
        Consume = "consume",
        Grpc = "grpc",
        Page = "dashboard",
        Import = "import",
    }
}

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
    pub door: Door,
    began: Instant,
}

impl Origin {
    /// The request that is being answered.
    pub fn of(caller: &Caller, door: Door) -> Origin {
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
            door,
            began: clock::moment(),
        }
    }

    /// Events that no call brings: a history that is moved in.
    pub fn without_call(workspace_id: i64, run_id: Uuid) -> Origin {
        let (api_key_id, request_id) = (None, None);
        Origin { workspace_id, run_id, api_key_id, request_id, door: Door::Import, began: clock::moment() }
    }

    /// Microseconds since its events were read.
    pub fn duration(&self) -> i64 {
        clock::since(self.began).as_micros().try_into().unwrap_or(i64::MAX)
    }
}
