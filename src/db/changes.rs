//! What one server changed that others remember, told through PostgreSQL so that they forget it at once. Told after the
//! commit and never waited for: what is lost on the way is made up for by the lifetime of what is remembered.

use std::time::Duration;

use diesel::connection::SimpleConnection;
use diesel::sql_types::Text;
use diesel::{RunQueryDsl, sql_query};
use tokio::sync::{Mutex, mpsc};
use tokio_util::sync::CancellationToken;

use crate::blocking;
use crate::config::Driver;
use crate::db::{Conn, Store, open};

/// Rows that servers remember.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Change {
    /// Meters of a workspace.
    Meters(i64),
    /// Assignments of plans in a workspace.
    Plans(i64),
    /// How a workspace is set up.
    Workspace(i64),
    /// A key, by the hash of its secret.
    Key(Vec<u8>),
    /// An access token, by its hash.
    Session(Vec<u8>),
    /// Whatever it was: somebody did not listen for a while.
    Anything,
}

impl Change {
    fn text(&self) -> String {
        match self {
            Change::Meters(workspace_id) => format!("meters {workspace_id}"),
            Change::Plans(workspace_id) => format!("plans {workspace_id}"),
            Change::Workspace(workspace_id) => format!("workspace {workspace_id}"),
            Change::Key(hash) => format!("key {}", hex(hash)),
            Change::Session(hash) => format!("session {}", hex(hash)),
            Change::Anything => "anything".to_owned(),
        }
    }

    /// What is not understood comes from another version, and may be anything.
    fn parse(text: &str) -> Change {
        let change = match text.split_once(' ') {
            Some(("meters", id)) => id.parse().ok().map(Change::Meters),
            Some(("plans", id)) => id.parse().ok().map(Change::Plans),
            Some(("workspace", id)) => id.parse().ok().map(Change::Workspace),
            Some(("key", hash)) => unhex(hash).map(Change::Key),
            Some(("session", hash)) => unhex(hash).map(Change::Session),
            _ => None,
        };
        change.unwrap_or(Change::Anything)
    }
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

fn unhex(text: &str) -> Option<Vec<u8>> {
    if !text.is_ascii() || !text.len().is_multiple_of(2) {
        return None;
    }
    (0..text.len()).step_by(2).map(|at| u8::from_str_radix(&text[at..at + 2], 16).ok()).collect()
}

const CHANNEL: &str = "open_spanner_changes";
/// Changes that wait to be told; more are left to the lifetime of what is remembered.
const WAITING_MAX: usize = 1_000;
/// How often the listening connection is looked at; costs one system call.
const LISTEN_PAUSE: Duration = Duration::from_millis(20);
const RECONNECT_PAUSE: Duration = Duration::from_secs(1);

/// Tells other servers.
pub struct Changes {
    waiting: mpsc::Sender<Change>,
    /// Taken by whoever relays.
    taken: Mutex<mpsc::Receiver<Change>>,
}

impl Default for Changes {
    fn default() -> Self {
        let (waiting, taken) = mpsc::channel(WAITING_MAX);
        Changes { waiting, taken: Mutex::new(taken) }
    }
}

impl Changes {
    /// To be called after the commit.
    pub fn tell(&self, change: Change) {
        let _ = self.waiting.try_send(change);
    }
}

/// Passes on what is told in this process, until told to stop; only PostgreSQL can.
pub fn relay(store: Store, stop: CancellationToken) {
    if !store.is_postgres() {
        return;
    }
    tokio::spawn(async move {
        let changes = store.changes().clone();
        let mut taken = changes.taken.lock().await;
        while let Some(change) =
            tokio::select! { change = taken.recv() => change, () = stop.cancelled() => None }
        {
            let notify = move |conn: &mut Conn| {
                let text = sql_query("SELECT pg_notify($1, $2)");
                Ok(text.bind::<Text, _>(CHANNEL).bind::<Text, _>(change.text()).execute(conn)?)
            };
            if let Err(error) = store.read("changes::notify", notify).await {
                log::debug!(error:% = error; "a change was not told to other servers");
            }
        }
    });
}

/// Hears of changes elsewhere, on a connection of its own, until told to stop.
pub fn listen(
    driver: Driver,
    stop: CancellationToken,
    forget: impl Fn(Change) + Send + 'static,
) -> crate::error::Result<()> {
    if !matches!(driver, Driver::Postgres { .. }) {
        return Ok(());
    }
    blocking::thread("changes", move || {
        while !stop.is_cancelled() {
            if let Err(error) = hear(&driver, &stop, &forget) {
                log::warn!(error = error.as_str(); "cannot listen for changes: they are noticed after CACHE_TTL");
            }
            blocking::pause(RECONNECT_PAUSE);
        }
    })
}

fn hear(driver: &Driver, stop: &CancellationToken, forget: &impl Fn(Change)) -> Result<(), String> {
    let mut conn = open(driver).map_err(|error| error.to_string())?;
    conn.batch_execute(&format!("LISTEN {CHANNEL}")).map_err(|error| error.to_string())?;
    let Conn::Postgres(conn) = &mut conn else { return Ok(()) };
    // what was told before is not heard any more
    forget(Change::Anything);
    while !stop.is_cancelled() {
        for notification in conn.notifications_iter() {
            forget(Change::parse(&notification.map_err(|error| error.to_string())?.payload));
        }
        blocking::pause(LISTEN_PAUSE);
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn changes_are_read_as_they_are_told() {
        let all = [
            Change::Meters(7),
            Change::Plans(i64::MAX),
            Change::Workspace(8),
            Change::Key(vec![0, 255, 16]),
            Change::Session(vec![1; 32]),
            Change::Anything,
        ];
        for change in all {
            assert_eq!(Change::parse(&change.text()), change);
        }
        for odd in ["", "meters", "meters x", "key 0", "key é", "news 1"] {
            assert_eq!(Change::parse(odd), Change::Anything, "{odd}");
        }
    }
}
