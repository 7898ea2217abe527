//! What every door is handed: settings, store, callers, meters, the way in. Put together once by the serve role.

pub mod changes;
pub mod check;

use std::sync::Arc;
use std::sync::atomic::{AtomicU8, Ordering};

use tokio_util::sync::CancellationToken;

use crate::alerts::backtest::{self, Backtest};
use crate::alerts::rule::{RuleSpec, SNOOZE_SECONDS_MAX};
use crate::alerts::sql::rules::{self, Rule};
use crate::alerts::webhook;
use crate::auth::Auth;
use crate::config::Config;
use crate::db::readiness::Readiness;
use crate::db::{Conn, Store};
use crate::entitlements::counter_reader;
use crate::entitlements::sql::plans::{self, PlanCache};
use crate::entitlements::sql::states;
use crate::error::{Error, Result};
use crate::ingest::Ingest;
use crate::jobs::worker::JobNotifier;
use crate::metering::meter::{Meter, MeterInput};
use crate::metering::time::{SECOND, Timestamp};
use crate::meters;
use crate::meters::sql::{Changed, MeterCache};
use crate::net::budget::Budget;
use crate::usage::home_zone::HomeZones;

/// Cheap to clone.
#[derive(Clone)]
pub struct App {
    pub config: Arc<Config>,
    pub store: Store,
    pub auth: Auth,
    pub meters: MeterCache,
    pub plans: PlanCache,
    pub zones: HomeZones,
    pub counters: counter_reader::Reader,
    pub ingest: Ingest,
    pub phase: Arc<Phase>,
    pub readiness: Readiness,
    /// Ring after a commit that enqueued background work.
    pub wake: JobNotifier,
    /// What open pages are told about.
    pub changes: changes::Changes,
    pub webhooks: webhook::client::Client,
    /// Room for request bodies and messages that arrive.
    pub bodies: Budget,
    /// Room for events of streams, from when they are read until they are stored.
    pub streams: Budget,
    /// Room for answers that their callers have not read yet.
    pub answers: Budget,
}

impl App {
    /// Changes a meter; where the same events come to another value by it, what was judged by them is judged anew.
    pub async fn change_meter(
        &self,
        workspace_id: i64,
        public_id: String,
        input: MeterInput,
    ) -> Result<Meter> {
        let update = move |conn: &mut Conn| {
            let change = |meter: Meter, has_events| meter.changed(&input, has_events);
            let changed = meters::sql::update(conn, workspace_id, &public_id, change)?;
            if let Some(Changed { before, after }) = &changed
                && before.aggregation != after.aggregation
            {
                if after.aggregation.needs_events() {
                    plans::refuse_while_limited(conn, after.id, &after.name)?;
                }
                states::enqueue_meter(conn, after, Timestamp::now())?;
                rules::enqueue_meter(conn, after, Timestamp::now())?;
            }
            Ok(changed)
        };
        let changed = self.store.write("meters::update", update).await?;
        let Changed { before, after } = changed.ok_or_else(|| Error::not_found("meter"))?;
        self.meters.changed(after.workspace_id, &after.name);
        if before.aggregation != after.aggregation {
            self.wake.notify();
        }
        Ok(after)
    }

    /// What a rule would have done; 404 for an unknown meter.
    pub async fn backtest(&self, workspace_id: i64, meter: &str, terms: RuleSpec) -> Result<Backtest> {
        let meter = self.meters.get(workspace_id, meter).await?;
        let meter = meter.ok_or_else(|| Error::not_found("meter"))?;
        let run = move |conn: &mut Conn| backtest::run(conn, meter.clone(), &terms, Timestamp::now());
        self.store.view("alerts::backtest", true, run).await
    }

    /// Keeps a rule quiet for so many seconds; none let it tell again. 404 for an unknown rule.
    pub async fn snooze_rule(&self, workspace_id: i64, public_id: String, seconds: i64) -> Result<Rule> {
        if !(0..=SNOOZE_SECONDS_MAX).contains(&seconds) {
            return Err(Error::invalid(format!("seconds must be 0 to {SNOOZE_SECONDS_MAX}")));
        }
        let now = Timestamp::now();
        let until = (seconds > 0).then(|| now.plus(seconds * SECOND));
        let snooze = move |conn: &mut Conn| rules::snooze(conn, workspace_id, &public_id, until, now);
        self.store.write("alerts::snooze", snooze).await
    }

    /// Deletes a meter that holds no event and that nothing refers to; 404 and 409 otherwise.
    pub async fn delete_meter(&self, workspace_id: i64, public_id: String) -> Result<()> {
        let delete = move |conn: &mut _| {
            meters::sql::delete(conn, workspace_id, &public_id, |conn, meter| {
                plans::refuse_while_limited(conn, meter.id, &meter.name)?;
                rules::refuse_while_watched(conn, meter)
            })
        };
        let deleted = self.store.write("meters::delete", delete).await?;
        let meter = deleted.ok_or_else(|| Error::not_found("meter"))?;
        self.meters.changed(meter.workspace_id, &meter.name);
        self.ingest.forget_meter(meter.id);
        Ok(())
    }
}

/// Where the server is in its life; decides what `/ready` says.
pub struct Phase {
    state: AtomicU8,
    draining: CancellationToken,
    started_at: Timestamp,
}

const STARTING: u8 = 0;
const SERVING: u8 = 1;
const DRAINING: u8 = 2;

impl Default for Phase {
    fn default() -> Self {
        let (state, draining) = (AtomicU8::new(STARTING), CancellationToken::new());
        Phase { state, draining, started_at: Timestamp::now() }
    }
}

impl Phase {
    pub fn serve(&self) {
        self.state.store(SERVING, Ordering::Release);
    }

    pub fn started_at(&self) -> Timestamp {
        self.started_at
    }

    pub fn drain(&self) {
        self.state.store(DRAINING, Ordering::Release);
        self.draining.cancel();
    }

    /// Cancelled when the server begins to drain: long work ends at its next good moment.
    pub fn draining(&self) -> CancellationToken {
        self.draining.clone()
    }

    /// Migrations are not done yet: no request but health checks makes sense.
    pub fn is_starting(&self) -> bool {
        self.state.load(Ordering::Acquire) == STARTING
    }

    pub fn is_serving(&self) -> bool {
        self.state.load(Ordering::Acquire) == SERVING
    }
}
