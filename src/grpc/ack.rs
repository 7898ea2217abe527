//! `open_spanner.v2.UsageStreamService`: a stream whose client knows at any instant what is durable.

use std::time::Duration;

use prost::Message;
use tokio::sync::mpsc;
use tokio_stream::wrappers::ReceiverStream;
use tonic::{Request, Response, Status, Streaming};

use crate::auth::Caller;
use crate::error::{Error, Result};
use crate::grpc::admission::Admitted;
use crate::grpc::messages::{self, Messages};
use crate::grpc::parts::{Item, ItemOutcome, ItemResult, Step, StreamBatcher};
use crate::grpc::pb::v2;
use crate::grpc::{UsageServer, convert, status, stopping};
use crate::ingest::preview::{Fate, PreviewItem};
use crate::logging::spans;

/// Enough for events that arrive together to be stored together; load makes parts larger by itself.
const LINGER: Duration = Duration::from_millis(2);
/// Acknowledgements that may wait for the client to read them.
const ACKS_WAITING: usize = 4;

type Acks = mpsc::Sender<Result<v2::IngestAck, Status>>;

#[tonic::async_trait]
impl v2::usage_stream_service_server::UsageStreamService for UsageServer {
    type IngestStream = ReceiverStream<Result<v2::IngestAck, Status>>;

    async fn ingest(
        &self,
        request: Request<Streaming<v2::IngestRequest>>,
    ) -> Result<Response<Self::IngestStream>, Status> {
        let Admitted { pass, caller } = Admitted::of(&request).map_err(status)?;
        let messages = messages::of(&request).map_err(status)?;
        let parts = StreamBatcher::open(pass, &caller, LINGER).await.map_err(status)?;
        let (acks, answers) = mpsc::channel(ACKS_WAITING);
        let stream = Stream { door: self.clone(), caller, messages, parts, sequence: 0, acks };
        tokio::spawn(spans::carried(stream.run()));
        Ok(Response::new(ReceiverStream::new(answers)))
    }
}

/// One open `Ingest` call.
struct Stream {
    door: UsageServer,
    caller: Caller,
    messages: Messages,
    parts: StreamBatcher,
    sequence: u64,
    acks: Acks,
}

/// The client does not read any more, or has gone.
struct Gone;

impl Stream {
    async fn run(mut self) {
        let acks = self.acks.clone();
        let end = tokio::select! {
            end = self.store() => end,
            // nobody is there to be told; what was handed to the database is stored all the same
            () = acks.closed() => return,
        };
        if let Ok(Some(status)) = end {
            let _ = self.send(Err(status)).await;
        }
    }

    /// Until the client closes its side (`None`) or something ends the stream.
    async fn store(&mut self) -> Result<Option<Status>, Gone> {
        loop {
            let stopping_token = &self.door.stopping;
            match self.parts.step(&mut self.messages, stopping_token).await {
                Ok(Step::Message(message)) => match self.accept(message) {
                    Ok(item) => self.parts.add(item),
                    Err(error) => return self.settle(status(error)).await,
                },
                Ok(Step::Stored(done)) => self.acknowledge(done).await?,
                Ok(Step::Closed) => return self.finish(None).await,
                Ok(Step::Cut) => return self.finish(Some(status(stopping()))).await,
                Err(status) => return self.settle(status).await,
            }
        }
    }

    /// Checks a request's sequence; everything else that is wrong with it is its own failure.
    fn accept(&mut self, request: v2::IngestRequest) -> Result<Item> {
        let (place, bytes) = (request.sequence, request.encoded_len());
        if place <= self.sequence {
            let detail = format_args!("sequence {place} does not come after {}", self.sequence).to_string();
            return Err(Error::invalid(detail));
        }
        if self.sequence == 0 {
            self.parts.is_rehearsal = request.dry_run;
        } else if self.parts.is_rehearsal != request.dry_run {
            return Err(Error::invalid("dry_run must be the same in all requests of a stream"));
        }
        self.sequence = place;
        let input = convert::permitted(request.event, &self.caller);
        let input = input.map_err(|refused| self.parts.told(*refused));
        Ok(Item::of(place, input, bytes))
    }

    async fn finish(&mut self, end: Option<Status>) -> Result<Option<Status>, Gone> {
        while let Some(done) = self.parts.finish_next().await {
            match done {
                Ok(done) => self.acknowledge(done).await?,
                Err(error) => return Ok(Some(status(error))),
            }
        }
        Ok(end)
    }

    /// Ends a stream that went wrong: what is being stored is waited for and acknowledged.
    async fn settle(&mut self, why: Status) -> Result<Option<Status>, Gone> {
        if let Ok(done) = self.parts.settle().await {
            self.acknowledge(done).await?;
        }
        Ok(Some(why))
    }

    async fn acknowledge(&mut self, done: Vec<ItemResult>) -> Result<(), Gone> {
        let Some(last) = done.last() else { return Ok(()) };
        let durable_sequence = last.place;
        let outcomes = done.into_iter().map(outcome).collect();
        self.send(Ok(v2::IngestAck { durable_sequence, outcomes })).await
    }

    /// Waits for a slow reader, but not beyond the end of the server.
    async fn send(&mut self, answer: Result<v2::IngestAck, Status>) -> Result<(), Gone> {
        tokio::select! {
            sent = self.acks.send(answer) => sent.map_err(|_| Gone),
            () = self.door.cut.cancelled() => Err(Gone),
        }
    }
}

fn outcome(done: ItemResult) -> v2::Outcome {
    use v2::outcome::Result as Word;
    let sequence = done.place;
    match done.fate {
        ItemOutcome::Accepted(event) => {
            v2::Outcome { sequence, result: Word::Accepted.into(), event_id: event.id, ..Default::default() }
        }
        ItemOutcome::Duplicate(event, conflict) => v2::Outcome {
            sequence,
            result: Word::Duplicate.into(),
            event_id: event.id,
            conflict,
            conflict_fields: event.conflict_fields.into_iter().map(str::to_owned).collect(),
            ..Default::default()
        },
        ItemOutcome::Rehearsed(item) => rehearsed(sequence, *item),
        ItemOutcome::Failed(error) => v2::Outcome {
            sequence,
            result: Word::Failed.into(),
            code: error.code.as_str().to_owned(),
            message: error.message,
            ..Default::default()
        },
    }
}

fn rehearsed(sequence: u64, item: PreviewItem) -> v2::Outcome {
    use v2::outcome::Result as Word;
    let (result, conflict) = match item.outcome {
        Fate::Accepted => (Word::Accepted, false),
        Fate::Duplicate => (Word::Duplicate, false),
        Fate::Conflict => (Word::Duplicate, true),
        Fate::Rejected => (Word::Failed, false),
    };
    let first = item.event.filter(|_| result == Word::Duplicate);
    let windows = item.windows.into_iter().map(convert::window_move);
    let changes = windows.chain(item.quotas.into_iter().map(convert::quota_move)).collect();
    let dimension_set = item.dimension_set.map(|set| set.get().to_owned()).unwrap_or_default();
    v2::Outcome {
        sequence,
        result: result.into(),
        event_id: first.map(|event| event.id).unwrap_or_default(),
        code: item.code.unwrap_or_default(),
        message: item.message.unwrap_or_default(),
        conflict,
        conflict_fields: item.conflict_fields.into_iter().map(str::to_owned).collect(),
        preview: Some(v2::Preview { dimension_set, changes }),
    }
}
