//! `/live`: tells open pages which of their topics changed, as a stream of server-sent events. It names topics only;
//! what changed a page asks for itself, by its own address and with its own rights.

use std::collections::HashMap;
use std::convert::Infallible;
use std::sync::{Arc, LazyLock, Mutex, PoisonError};
use std::time::Duration;

use actix_web::http::header;
use actix_web::{HttpResponse, web};
use bytes::Bytes;
use futures_util::stream;
use tokio::sync::watch;
use tokio::time::Instant;

use crate::app::App;
use crate::app::changes::{Marks, changed};
use crate::auth::{Caller, Credential};
use crate::clock;
use crate::error::Result;
use crate::http::respond;
use crate::metering::time::{SECOND, Timestamp};

/// Streams of one user at once; a browser needs one.
const STREAMS_MAX: usize = 4;
/// At each of these the session is looked at again.
const HEARTBEAT: Duration = Duration::from_secs(15);
const BEAT: &str = "event: beat\ndata:\n\n";
/// A stream ends after this long and is opened anew.
const LENGTH_MAX: Duration = Duration::from_secs(600);

/// How many streams each user of this server holds.
static HELD: LazyLock<Mutex<HashMap<i64, usize>>> = LazyLock::new(Mutex::default);

/// One place among the streams of a user, given back when it is dropped.
struct Place(i64);

impl Place {
    fn take(user_id: i64) -> Option<Place> {
        let mut held = HELD.lock().unwrap_or_else(PoisonError::into_inner);
        let count = held.entry(user_id).or_default();
        if *count >= STREAMS_MAX {
            return None;
        }
        *count += 1;
        Some(Place(user_id))
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        let mut held = HELD.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(count) = held.get_mut(&self.0) {
            *count -= 1;
            if *count == 0 {
                held.remove(&self.0);
            }
        }
    }
}

/// A stream under way.
struct Live {
    caller: Caller,
    marks: watch::Receiver<Marks>,
    told: Marks,
    ends: Instant,
    beats: Instant,
    has_begun: bool,
    app: Arc<App>,
    _place: Place,
}

pub async fn stream(app: web::Data<App>, caller: Caller) -> Result<HttpResponse> {
    // a browser takes 204 as: do not come back
    let Some(place) = Place::take(caller.user_id) else { return Ok(HttpResponse::NoContent().finish()) };
    let left = match &caller.credential {
        Credential::Session { expires_at, .. } => expires_at.0 - Timestamp::now().0,
        Credential::Key { .. } => 0,
    };
    let length = Duration::from_secs(u64::try_from(left / SECOND).unwrap_or(0)).min(LENGTH_MAX);
    let now = Instant::from_std(clock::moment());
    let live = Live {
        marks: app.changes.watch(caller.workspace_id),
        caller,
        told: Marks::default(),
        ends: now + length,
        beats: now + HEARTBEAT,
        has_begun: false,
        app: app.into_inner(),
        _place: place,
    };
    let events = stream::unfold(live, |mut live| async move {
        let text = live.next().await?;
        Some((Ok::<_, Infallible>(Bytes::from(text)), live))
    });
    Ok(HttpResponse::Ok()
        .content_type("text/event-stream")
        .insert_header((header::CONTENT_ENCODING, respond::UNCOMPRESSED))
        .insert_header((header::CACHE_CONTROL, "no-cache"))
        .insert_header(("x-accel-buffering", "no"))
        .streaming(events))
}

impl Live {
    /// The next words of the stream; none when it is over.
    async fn next(&mut self) -> Option<String> {
        if !self.has_begun {
            self.has_begun = true;
            self.told = *self.marks.borrow_and_update();
            return Some("retry: 3000\n\n".to_owned());
        }
        let draining = self.app.phase.draining();
        loop {
            tokio::select! {
                () = draining.cancelled() => return None,
                () = tokio::time::sleep_until(self.ends) => return None,
                // however much changes in between
                () = tokio::time::sleep_until(self.beats) => return self.beat().await,
                changed = self.marks.changed() => changed.ok()?,
            }
            if let Some(text) = self.tell() {
                return Some(text);
            }
        }
    }

    /// A sign of life, unless the session has ended meanwhile: then so does the stream. A database that is away ends none.
    async fn beat(&mut self) -> Option<String> {
        self.beats = Instant::from_std(clock::moment()) + HEARTBEAT;
        let is_in = self.app.auth.is_signed_in(&self.caller).await.unwrap_or(true);
        is_in.then(|| BEAT.to_owned())
    }

    fn tell(&mut self) -> Option<String> {
        let now = *self.marks.borrow_and_update();
        let before = std::mem::replace(&mut self.told, now);
        // the first look is what the page shows already
        if before == Marks::default() {
            return Some(BEAT.to_owned());
        }
        let topics = changed(&before, &now);
        (!topics.is_empty()).then(|| format!("event: change\ndata: {}\n\n", topics.join(" ")))
    }
}
