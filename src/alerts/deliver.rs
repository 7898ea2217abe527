//! Sends the webhooks that a rule owes. Order is kept per group: the oldest delivery of each group is its head, only heads are
//! sent, and one that fails or hangs holds up its own group and no other. What the calls and the rows are, [`super::webhook`]
//! and [`super::sql::deliveries`] know.

use std::collections::BTreeSet;
use std::sync::Arc;
use std::time::Duration;

use futures_util::StreamExt;
use futures_util::stream::FuturesUnordered;
use tokio::sync::Semaphore;

use crate::alerts::sql::deliveries::{self, Delivery, Patience};
use crate::alerts::sql::destinations::{self, Destination};
use crate::alerts::webhook::client::{Client, WebhookRequest, WebhookResponse};
use crate::clock;
use crate::db::{Conn, Store};
use crate::error::{Code, Error, Result};
use crate::jobs::queue::{Job, LeaseToken};
use crate::jobs::worker::Done;
use crate::logging::FoldedKinds;
use crate::metering::time::Timestamp;

/// Groups of one rule that are called at once.
const CALLS_PER_RULE: usize = 8;
/// Calls of this process that are under way at once; a receiver that hangs keeps each for ten seconds.
const CALLS_MAX: usize = 256;
/// How soon a delivery that became due while others of its rule are under way is seen.
const LOOK_PAUSE: Duration = Duration::from_millis(250);

/// Cheap to clone.
#[derive(Clone)]
pub struct Sender {
    store: Store,
    client: Client,
    /// After this a rule begins no further call, so that rules take turns.
    turn: Duration,
    calls: Arc<Semaphore>,
}

impl Sender {
    pub fn new(store: &Store, client: &Client, turn: Duration) -> Self {
        let calls = Arc::new(Semaphore::new(CALLS_MAX));
        Sender { store: store.clone(), client: client.clone(), turn, calls }
    }

    /// Sends what a rule owes and is due, until nothing is or its turn is over.
    pub async fn deliver(self, job: Job, token: LeaseToken) -> Result<Done> {
        let rule_id: i64 = job.payload()?;
        let started = clock::moment();
        let mut under_way = FuturesUnordered::new();
        let mut busy: BTreeSet<i64> = BTreeSet::new();
        let mut failure = None;
        loop {
            let is_over = failure.is_some() || clock::since(started) > self.turn;
            let room = if is_over { 0 } else { CALLS_PER_RULE - busy.len() };
            let mut next_at = Some(Timestamp::now());
            if room > 0 {
                let found = self.due_heads(rule_id, &busy, room).await?;
                next_at = found.next_at;
                for head in found.heads {
                    busy.insert(head.0.id);
                    under_way.push(self.send(&job, token, head));
                }
            }
            if under_way.is_empty() {
                return match (failure, next_at) {
                    (Some(error), _) => Err(error),
                    (None, None) => Ok(Done::Finished),
                    (None, Some(at)) => Ok(Done::Reschedule(at)),
                };
            }
            tokio::select! {
                Some((id, recorded)) = under_way.next() => {
                    busy.remove(&id);
                    // calls that are under way are not cut off: receivers would get them twice
                    failure = failure.or(recorded.err());
                }
                () = tokio::time::sleep(LOOK_PAUSE), if busy.len() < CALLS_PER_RULE && !is_over => {}
            }
        }
    }

    async fn due_heads(&self, rule_id: i64, busy: &BTreeSet<i64>, room: usize) -> Result<deliveries::Due> {
        let busy = busy.clone();
        let look = move |conn: &mut Conn| deliveries::due_heads(conn, rule_id, &busy, Timestamp::now(), room);
        self.store.read("deliveries::due_heads", look).await
    }

    /// Makes one call and writes down what came of it.
    async fn send(
        &self,
        job: &Job,
        token: LeaseToken,
        (delivery, destination): (Delivery, Option<Destination>),
    ) -> (i64, Result<()>) {
        let id = delivery.id;
        let Ok(_call) = self.calls.acquire().await else {
            return (id, Err(Error::internal("the calls are counted by a semaphore that is closed")));
        };
        let at = Timestamp::now();
        let began = clock::moment();
        let (answer, patience) = self.call(&delivery, destination.as_ref(), at).await;
        // nobody was called, so there was no attempt
        if patience != Patience::Wait {
            metrics::histogram!("open_spanner_webhook_attempt_duration_seconds")
                .record(clock::since(began).as_secs_f64());
            let outcome = if answer.is_delivered() { "delivered" } else { "failed" };
            metrics::counter!("open_spanner_webhook_deliveries_total", "outcome" => outcome).increment(1);
        }
        let gone = destination.filter(|to| to.enabled && answer.status_code == Some(410)).map(|to| to.id);
        (id, self.record((job.clone(), token), delivery, (answer, patience, at), gone).await)
    }

    async fn call(
        &self,
        delivery: &Delivery,
        destination: Option<&Destination>,
        at: Timestamp,
    ) -> (WebhookResponse, Patience) {
        let to = match destination {
            None => return (WebhookResponse::unsent("the destination was deleted"), Patience::GiveUp),
            Some(to) if !to.enabled => {
                return (WebhookResponse::unsent("the destination is disabled"), Patience::Retry);
            }
            Some(to) => to,
        };
        let secrets = to.secret().and_then(|secret| Ok((secret, to.overlapping_secret(at)?)));
        let (secret, previous_secret) = match secrets {
            Ok(secrets) => secrets,
            // this process lacks the key; another one may have it, and this one will when it is restarted
            Err(error) if error.code == Code::Unavailable => {
                static KEYLESS: FoldedKinds<()> = FoldedKinds::new();
                KEYLESS.say((), |repeats| {
                    log::error!(reason = error.message.as_str(), repeats; "webhooks wait: they cannot be signed here");
                });
                return (WebhookResponse::unsent(&error.message), Patience::Wait);
            }
            Err(_) => {
                return (WebhookResponse::unsent("the signing secret cannot be opened"), Patience::Retry);
            }
        };
        let letter = WebhookRequest {
            url: to.webhook_url.clone(),
            id: delivery.event_id.clone(),
            secret,
            previous_secret,
            body: delivery.payload.clone(),
        };
        let answer = self.client.send(&letter).await;
        let is_gone = answer.status_code == Some(410);
        (answer, if is_gone { Patience::GiveUp } else { Patience::Retry })
    }

    async fn record(
        &self,
        (job, token): (Job, LeaseToken),
        delivery: Delivery,
        (answer, patience, at): (WebhookResponse, Patience, Timestamp),
        gone: Option<i64>,
    ) -> Result<()> {
        let record =
            move |conn: &mut Conn| deliveries::record(conn, (&job, &token), &delivery, &answer, patience, at);
        if !self.store.write("deliveries::record", record).await? {
            return Err(Error::unavailable("another worker has the job"));
        }
        if let Some(id) = gone {
            log::warn!(destination = id; "the receiver is gone: destination disabled");
            let disable = move |conn: &mut Conn| destinations::disable(conn, id, Timestamp::now());
            self.store.write("destinations::disable", disable).await?;
        }
        Ok(())
    }
}
