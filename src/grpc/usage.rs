//! `open_spanner.v1.UsageService` (grpc.md 5 to 7).

use std::time::Duration;

use prost::Message;
use tonic::metadata::{MetadataMap, MetadataValue};
use tonic::{Request, Response, Status, Streaming};

use crate::auth::Caller;
use crate::error::{Code, Error, Result};
use crate::grpc::admission::Admitted;
use crate::grpc::messages::{self, Messages};
use crate::grpc::parts::{Item, ItemOutcome, ItemResult, Step, StreamBatcher};
use crate::grpc::pb::v1;
use crate::grpc::{UsageServer, convert, status, stopping};
use crate::ingest::{About, Door, Failure, Ingest, Kind, Origin, Recorded};
use crate::metering::event::{Input, parse_key};
use crate::metering::stored::StoredEvent;

/// Streams of up to so many events are answered in full, and can be made repeatable as a whole. Among the first so
/// many messages an impossible one ends the stream (grpc.md 7).
const SMALL_STREAM: u64 = 1000;
/// What a repeatable stream may hold back.
const BYTES_MAX: usize = 4 * 1024 * 1024;
/// Metadata that the lists of an answer repeat: clients take 4 MiB, and a thousand events without metadata fit beside.
const ECHO_BYTES_MAX: usize = 2 * 1024 * 1024;
const LINGER: Duration = Duration::from_millis(200);

#[tonic::async_trait]
impl v1::usage_service_server::UsageService for UsageServer {
    async fn create_usage(
        &self,
        request: Request<v1::CreateUsageRequest>,
    ) -> Result<Response<v1::CreateUsageResponse>, Status> {
        let (event, key) = self.create(request).await.map_err(status)?;
        Ok(key.respond(v1::CreateUsageResponse { event: Some(convert::event(event)) }))
    }

    async fn create_usage_bulk(
        &self,
        request: Request<v1::CreateUsageBulkRequest>,
    ) -> Result<Response<v1::CreateUsageBulkResponse>, Status> {
        let answer = Answer::of(self.create_bulk(request).await.map_err(status)?);
        Ok(answer.key.respond(v1::CreateUsageBulkResponse {
            accepted_count: convert::count(answer.accepted_count),
            duplicate_count: convert::count(answer.duplicate_count),
            failed_count: convert::count(answer.failed_count),
            accepted: answer.accepted,
            duplicates: answer.duplicates,
            failed: answer.failed,
        }))
    }

    async fn stream_usage(
        &self,
        request: Request<Streaming<v1::StreamUsageRequest>>,
    ) -> Result<Response<v1::StreamUsageResponse>, Status> {
        let Admitted { pass, caller } = Admitted::of(&request).map_err(status)?;
        let key = stream_key(request.metadata()).map_err(status)?;
        let messages = messages::of(&request).map_err(status)?;
        let parts = StreamBatcher::open(pass, &caller, LINGER).await.map_err(status)?;
        let stream = Stream { door: self, caller, messages, parts, received: 0, answer: Answer::default() };
        let answer = match key {
            Some(key) => stream.store_at_once(key).await?,
            None => stream.store_in_parts(false).await?,
        };
        Ok(answer.key.respond(v1::StreamUsageResponse {
            accepted_count: convert::count(answer.accepted_count),
            duplicate_count: convert::count(answer.duplicate_count),
            failed_count: convert::count(answer.failed_count),
            accepted: answer.accepted,
            duplicates: answer.duplicates,
            failed: answer.failed,
        }))
    }
}

impl UsageServer {
    async fn create(&self, request: Request<v1::CreateUsageRequest>) -> Result<(StoredEvent, UsedKey)> {
        let Admitted { caller, .. } = Admitted::of(&request)?;
        let (ingest, origin) = (&self.app.ingest, Origin::of(&caller, Door::Grpc));
        let input = convert::permitted(request.into_inner().event, &caller);
        let input = input.map_err(|refused| told(ingest, &origin, *refused))?;
        let recorded = ingest.record(origin, Kind::Single, vec![input], None).await?;
        let recorded = recorded.confined(|meter| caller.ensure_meter_allowed(meter))?;
        let key = UsedKey { replayed: !recorded.duplicates.is_empty(), conflict: recorded.has_conflict() };
        if let Some(failure) = recorded.failed.into_iter().next() {
            return Err(failure.error);
        }
        let stored = recorded.accepted.into_iter().chain(recorded.duplicates).next();
        stored.map(|event| (event, key)).ok_or_else(|| Error::internal("a write without an outcome"))
    }

    async fn create_bulk(&self, request: Request<v1::CreateUsageBulkRequest>) -> Result<Recorded> {
        let Admitted { caller, .. } = Admitted::of(&request)?;
        let v1::CreateUsageBulkRequest { idempotency_key, events } = request.into_inner();
        let origin = Origin::of(&caller, Door::Grpc);
        let most = self.app.config.ingest.max_bulk_events;
        if events.is_empty() {
            return Err(Error::invalid("at least one event is required"));
        }
        if events.len() > most {
            return Err(Error::invalid(format_args!("at most {most} events may be sent in one call")));
        }
        let mut inputs = Vec::with_capacity(events.len());
        for (index, event) in events.into_iter().enumerate() {
            let input = convert::permitted(Some(event), &caller).map_err(|refused| {
                let is_forbidden = refused.1.code == Code::Forbidden;
                let error = told(&self.app.ingest, &origin, *refused);
                if is_forbidden { error } else { at(index as u64, error) }
            })?;
            inputs.push(input);
        }
        let key = parse_key(Some(&idempotency_key))?;
        let recorded = self.app.ingest.record(origin, Kind::Bulk, inputs, key).await?;
        recorded.confined(|meter| caller.ensure_meter_allowed(meter))
    }
}

/// What an answer tells of an idempotency key that was used before, in its metadata.
#[derive(Clone, Copy, Default)]
struct UsedKey {
    replayed: bool,
    conflict: bool,
}

impl UsedKey {
    fn respond<T>(self, answer: T) -> Response<T> {
        let mut response = Response::new(answer);
        for (name, is_so) in
            [("idempotency-replayed", self.replayed), ("idempotency-conflict", self.conflict)]
        {
            if is_so {
                response.metadata_mut().insert(name, MetadataValue::from_static("true"));
            }
        }
        response
    }
}

/// A key that cannot be read is refused: ignored, it would let a retry count twice.
fn stream_key(metadata: &MetadataMap) -> Result<Option<String>> {
    let named = |name: &'static str| {
        let all = metadata.get_all(name);
        let mut values = all.iter();
        let Some(value) = values.next() else { return Ok(None) };
        if values.next().is_some() {
            return Err(Error::invalid(format_args!("{name} is given more than once")));
        }
        let text = std::str::from_utf8(value.as_bytes());
        let text = text.map_err(|_| Error::invalid(format_args!("{name} must be UTF-8")))?;
        Ok::<_, Error>(Some(text).filter(|text| !text.trim().is_empty()))
    };
    let key = match named("idempotency-key")? {
        None => named("x-open-spanner-idempotency-key")?,
        key => key,
    };
    parse_key(key)
}

/// Tells of an event that this door refuses itself.
fn told(ingest: &Ingest, origin: &Origin, (about, error): (About, Error)) -> Error {
    ingest.refuse(origin, about, error)
}

/// The same error, with the position of its event.
fn at(index: u64, error: Error) -> Error {
    Error { message: format!("{} (event {index})", error.message), ..error }
}

/// One open `StreamUsage` call.
struct Stream<'a> {
    door: &'a UsageServer,
    caller: Caller,
    messages: Messages,
    parts: StreamBatcher,
    received: u64,
    answer: Answer,
}

impl Stream<'_> {
    /// Holds a repeatable stream back until its end; one that grows too long for that goes on in parts.
    async fn store_at_once(mut self, key: String) -> Result<Answer, Status> {
        let mut held: Vec<Item> = Vec::new();
        let mut bytes = 0;
        while self.received < SMALL_STREAM && bytes < BYTES_MAX {
            let Some(message) = self.next_message().await? else {
                return self.store_held(held, key).await.map_err(status);
            };
            let item = self.accept(message).map_err(status)?;
            self.parts.hold(&item).await.map_err(status)?;
            bytes += item.bytes;
            held.push(item);
        }
        // full; an empty rest still makes it a small stream
        let Some(next) = self.next_message().await? else {
            return self.store_held(held, key).await.map_err(status);
        };
        held.push(self.accept(next).map_err(status)?);
        held.iter().try_for_each(needs_key).map_err(status)?;
        held.into_iter().for_each(|item| self.parts.add(item));
        self.store_in_parts(true).await
    }

    async fn next_message(&mut self) -> Result<Option<v1::StreamUsageRequest>, Status> {
        tokio::select! {
            message = self.messages.next() => message,
            () = self.door.cut.cancelled() => Err(status(stopping())),
        }
    }

    async fn store_held(self, held: Vec<Item>, key: String) -> Result<Answer> {
        if held.is_empty() {
            return Err(no_events());
        }
        let inputs = held.into_iter().map(|item| item.input).collect::<Result<Vec<Input>>>()?;
        let ingest = &self.door.app.ingest;
        let recorded =
            ingest.record(Origin::of(&self.caller, Door::Grpc), Kind::Stream, inputs, Some(key)).await?;
        Ok(Answer::of(recorded.confined(|meter| self.caller.ensure_meter_allowed(meter))?))
    }

    async fn store_in_parts(mut self, keys_needed: bool) -> Result<Answer, Status> {
        loop {
            let step = self.parts.step(&mut self.messages, &self.door.cut).await;
            match step {
                Ok(Step::Message(message)) => {
                    let item = self.accept(message).and_then(|item| {
                        if keys_needed { needs_key(&item).map(|()| item) } else { Ok(item) }
                    });
                    match item {
                        Ok(item) => self.parts.add(item),
                        Err(error) => return Err(self.end(status(error)).await),
                    }
                }
                Ok(Step::Stored(done)) => self.answer.add(done),
                Ok(Step::Closed) if self.received == 0 => return Err(status(no_events())),
                Ok(Step::Closed) => return self.finish().await,
                Ok(Step::Cut) => {
                    let failed = self.finish_parts().await;
                    return Err(failed.unwrap_or_else(|| self.answer.so_far(status(stopping()))));
                }
                Err(status) => return Err(self.end(status).await),
            }
        }
    }

    /// Checks a message and gives it its place in the stream.
    fn accept(&mut self, message: v1::StreamUsageRequest) -> Result<Item> {
        let (place, bytes) = (self.received, message.encoded_len());
        self.received += 1;
        let most = self.door.app.config.ingest.max_stream_events;
        if most > 0 && self.received > most {
            return Err(Error::invalid(format_args!("at most {most} events may be sent in one stream")));
        }
        let input =
            convert::permitted(message.event, &self.caller).map_err(|refused| self.parts.told(*refused));
        match input {
            Err(error) if error.code == Code::Forbidden => Err(error),
            Err(error) if place < SMALL_STREAM => Err(at(place, error)),
            input => Ok(Item::of(place, input, bytes)),
        }
    }

    async fn finish(mut self) -> Result<Answer, Status> {
        match self.finish_parts().await {
            Some(status) => Err(status),
            None => Ok(self.answer),
        }
    }

    /// Stores what is left, as far as it goes.
    async fn finish_parts(&mut self) -> Option<Status> {
        while let Some(done) = self.parts.finish_next().await {
            match done {
                Ok(done) => self.answer.add(done),
                Err(error) => return Some(self.answer.so_far(status(error))),
            }
        }
        None
    }

    /// Ends a stream that went wrong: what is being stored is waited for, what only waits is not stored.
    async fn end(&mut self, why: Status) -> Status {
        match self.parts.settle().await {
            Ok(done) => self.answer.add(done),
            Err(error) => log::debug!(error:% = error; "the last part of a broken stream was not stored"),
        }
        self.answer.so_far(why)
    }
}

fn no_events() -> Error {
    Error::invalid("at least one event is required")
}

/// A long stream can only be sent again if each of its events can.
fn needs_key(item: &Item) -> Result<()> {
    let own = item.input.as_ref().ok().and_then(|input| input.idempotency_key.as_deref());
    if item.input.is_err() || own.is_some_and(|key| !key.trim().is_empty()) {
        return Ok(());
    }
    let message = "in a stream with an idempotency-key and more than 1000 events every event needs its own";
    Err(at(item.place, Error::invalid(message)))
}

/// The closing answer as it grows: exact counts, bounded lists.
#[derive(Default)]
struct Answer {
    accepted_count: u64,
    duplicate_count: u64,
    failed_count: u64,
    accepted: Vec<v1::UsageEvent>,
    duplicates: Vec<v1::UsageEvent>,
    failed: Vec<v1::BulkFailure>,
    bytes: usize,
    key: UsedKey,
}

impl Answer {
    /// Of a call that was stored at once: complete.
    fn of(recorded: Recorded) -> Answer {
        let key = UsedKey { replayed: recorded.is_replay, conflict: recorded.has_conflict() };
        let mut answer = Answer {
            key,
            accepted_count: recorded.accepted.len() as u64,
            duplicate_count: recorded.duplicates.len() as u64,
            failed_count: recorded.failed.len() as u64,
            failed: recorded.failed.into_iter().map(convert::failure).collect(),
            ..Answer::default()
        };
        answer.accepted = recorded.accepted.into_iter().map(|event| answer.echo(event)).collect();
        answer.duplicates = recorded.duplicates.into_iter().map(|event| answer.echo(event)).collect();
        answer
    }

    /// An event as it is answered: without its metadata when the answer would become larger than clients take.
    fn echo(&mut self, event: StoredEvent) -> v1::UsageEvent {
        let mut event = convert::event(event);
        let bytes = event.encoded_len();
        if self.bytes + bytes > ECHO_BYTES_MAX {
            event.metadata.clear();
        } else {
            self.bytes += bytes;
        }
        event
    }

    fn add(&mut self, done: Vec<ItemResult>) {
        for ItemResult { place, fate } in done {
            let listed = (self.accepted.len() + self.duplicates.len()) as u64;
            let has_room = listed < SMALL_STREAM;
            match fate {
                ItemOutcome::Accepted(event) => {
                    self.accepted_count += 1;
                    self.list(event, has_room, |answer| &mut answer.accepted);
                }
                ItemOutcome::Duplicate(event, conflict) => {
                    self.key.conflict |= conflict;
                    self.duplicate_count += 1;
                    self.list(event, has_room, |answer| &mut answer.duplicates);
                }
                // streams of v1 have no dry run
                ItemOutcome::Rehearsed(_) => {}
                ItemOutcome::Failed(error) => {
                    self.failed_count += 1;
                    if (self.failed.len() as u64) < SMALL_STREAM {
                        self.failed.push(convert::failure(Failure { index: place as usize, error }));
                    }
                }
            }
        }
    }

    fn list(
        &mut self,
        event: StoredEvent,
        has_room: bool,
        list: impl Fn(&mut Answer) -> &mut Vec<v1::UsageEvent>,
    ) {
        if has_room {
            let event = self.echo(event);
            list(self).push(event);
        }
    }

    /// The same status, saying how far the stream came.
    fn so_far(&self, why: Status) -> Status {
        let settled = self.accepted_count + self.duplicate_count + self.failed_count;
        if settled == 0 {
            return why;
        }
        let message = format!(
            "{}; of the stream's first {settled} events {} are stored",
            why.message(),
            self.accepted_count + self.duplicate_count,
        );
        Status::with_details(why.code(), message, why.details().to_vec().into())
    }
}
