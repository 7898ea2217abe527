//! Who gets a connection, and when. Connections are few and shared by all workspaces, so that one caller must not hold
//! them all: some are kept back for work that everybody depends on, and each workspace and each of its credentials has
//! a share of the others. Who is over the share waits for a moment and is then told so (429). No SQL here.

use std::collections::HashMap;
use std::future::Future;
use std::hash::Hash;
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use diesel::r2d2;
use tokio::sync::{OwnedSemaphorePermit, Semaphore};

use super::connection::{Connections, Gate, LogErrors, Manager};
use crate::clock;
use crate::config::Db;
use crate::error::{Error, Result};

/// What a connection is wanted for. Each class leaves connections to the ones before it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Class {
    /// Credentials and readiness: few and short statements that everything waits for.
    Vital,
    /// The way in for usage, with the meters and plans that it needs.
    Ingestion,
    Ordinary,
    /// What a caller reads.
    Query,
}

/// Of a pool of `size` connections, how many each class may hold together with those after it.
fn bounds(size: usize) -> [usize; 4] {
    let all_but_vital = (size - 1).max(1);
    let ordinary = (size - 1).saturating_sub(size / 5).max(1);
    [size, all_but_vital, ordinary, (size * 3).div_ceil(5).min(ordinary)]
}

pub(super) struct Pool {
    /// Units of work without a connection yet.
    waiting: Arc<AtomicUsize>,
    pub(super) connections: Connections,
    classes: [Arc<Semaphore>; 4],
    shares: Shares,
}

/// Held while a connection is in use.
pub(super) struct Permit {
    _share: Option<Seat>,
    _classes: Vec<OwnedSemaphorePermit>,
    _of_request: Option<Turn>,
}

impl Pool {
    pub(super) fn new(name: &'static str, db: &Db, size: u32, gate: &Arc<Gate>) -> Self {
        let pool = r2d2::Pool::builder()
            .max_size(size)
            .min_idle(Some(0))
            // a ping per checkout costs as much as a point read; broken connections are noticed on use
            .test_on_check_out(false)
            .connection_timeout(Duration::from_secs(2))
            .max_lifetime(db.conn_max_lifetime)
            .idle_timeout(db.conn_max_idle_time)
            .error_handler(Box::new(LogErrors::default()))
            .build_unchecked(Manager {
                driver: db.driver.clone(),
                gate: gate.clone(),
                statement_timeout: db.statement_timeout,
            });
        let connections = Connections { pool, gate: gate.clone() };
        let bounds = bounds(size as usize);
        let shares = Shares::new(bounds[Class::Query as usize], db.queries_per_workspace as usize);
        let waiting: Arc<AtomicUsize> = Arc::default();
        measure(name, connections.pool.clone(), waiting.clone());
        Pool { waiting, connections, classes: bounds.map(|bound| Arc::new(Semaphore::new(bound))), shares }
    }

    /// Waits for a connection to be free for this class.
    pub(super) async fn permit(&self, class: Class, patience: Duration) -> Result<Permit> {
        let _waits = Waits::begin(&self.waiting);
        let asking = READER.try_with(|asking| *asking).ok().filter(|_| class == Class::Query);
        let of_request = match asking {
            Some(asking) => Some(self.shares.turn_of_request(asking).await?),
            None => None,
        };
        let end = (clock::moment() + patience).into();
        let share = match asking {
            Some(asking) => Some(self.shares.seat(asking.reader, end).await?),
            None => None,
        };
        // from the last class to the first, so that nobody holds what others may have while it waits for its own
        let all = async {
            let mut permits = Vec::with_capacity(4);
            for semaphore in self.classes[..=class as usize].iter().rev() {
                permits.extend(semaphore.clone().acquire_owned().await);
            }
            permits
        };
        match tokio::time::timeout_at(end, all).await {
            Ok(permits) => Ok(Permit { _share: share, _classes: permits, _of_request: of_request }),
            Err(_) => Err(Error::unavailable("all database connections are busy")),
        }
    }
}

/// Counts one who waits, until it is dropped.
struct Waits<'a>(&'a AtomicUsize);

impl<'a> Waits<'a> {
    fn begin(waiting: &'a AtomicUsize) -> Self {
        waiting.fetch_add(1, Ordering::Relaxed);
        Waits(waiting)
    }
}

impl Drop for Waits<'_> {
    fn drop(&mut self) {
        self.0.fetch_sub(1, Ordering::Relaxed);
    }
}

/// Shows how a pool stands whenever somebody asks.
fn measure(name: &'static str, pool: r2d2::Pool<Manager>, waiting: Arc<AtomicUsize>) {
    crate::metrics::at_every_look(move || {
        let state = pool.state();
        let counts = [
            ("in_use", state.connections.saturating_sub(state.idle_connections)),
            ("idle", state.idle_connections),
            ("max", pool.max_size()),
        ];
        for (state, count) in counts {
            metrics::gauge!("open_spanner_db_pool_connections", "pool" => name, "state" => state).set(count);
        }
        metrics::gauge!("open_spanner_db_pool_waiting", "pool" => name)
            .set(waiting.load(Ordering::Relaxed) as f64);
    });
}

/// Who reads: the workspace, and which credential of it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Reader {
    pub workspace_id: i64,
    pub credential: Credential,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Credential {
    Key(i64),
    User(i64),
    /// Whoever holds a link for a customer.
    Link(i64),
}

/// One request of a reader, by a number of its own.
#[derive(Clone, Copy)]
struct Asking {
    reader: Reader,
    request: u64,
}

tokio::task_local! {
    static READER: Asking;
}

/// What `answer` reads comes out of the reader's share.
pub async fn read_by<F: Future>(reader: Option<Reader>, answer: F) -> F::Output {
    static REQUESTS: AtomicU64 = AtomicU64::new(0);
    match reader {
        Some(reader) => {
            let request = REQUESTS.fetch_add(1, Ordering::Relaxed);
            READER.scope(Asking { reader, request }, answer).await
        }
        None => answer.await,
    }
}

/// [`Class::Query`] while a caller is answered; work of the server itself has no share.
pub(super) fn class_of_read() -> Class {
    READER.try_with(|_| Class::Query).unwrap_or(Class::Ordinary)
}

/// Reads of one workspace or credential that may wait for their turn. More would only fail later.
const WAITING_MAX: usize = 64;

#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
enum Holder {
    Workspace(i64),
    /// All links for customers of a workspace.
    Links(i64),
    Credential(Credential),
    Request(u64),
}

/// How many queries each workspace and each credential has under way. Only who has any is remembered.
struct Shares {
    workspace_max: usize,
    credential_max: usize,
    turns: Arc<Mutex<HashMap<Holder, Turns>>>,
}

struct Turns {
    free: Arc<Semaphore>,
    /// Seats taken and waited for.
    users: usize,
}

/// A query under way.
struct Seat {
    _turns: Vec<Turn>,
}

/// One of those that a holder may have at a time; given back before its place, with which the holder may be forgotten.
struct Turn {
    _permit: OwnedSemaphorePermit,
    _place: Place,
}

/// Among those who have a turn or wait for one.
struct Place {
    holder: Holder,
    turns: Arc<Mutex<HashMap<Holder, Turns>>>,
}

fn locked(turns: &Mutex<HashMap<Holder, Turns>>) -> MutexGuard<'_, HashMap<Holder, Turns>> {
    turns.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Drop for Place {
    fn drop(&mut self) {
        let mut turns = locked(&self.turns);
        if let Some(own) = turns.get_mut(&self.holder) {
            own.users -= 1;
            if own.users == 0 {
                turns.remove(&self.holder);
            }
        }
    }
}

impl Shares {
    /// A workspace leaves some of the connections for queries to others, a credential some of its workspace's.
    fn new(queries: usize, per_workspace: usize) -> Self {
        let workspace_max = match per_workspace {
            0 => (queries * 3 / 4).max(1),
            set => set,
        };
        let credential_max = (workspace_max - 1).max(1);
        Shares { workspace_max, credential_max, turns: Arc::default() }
    }

    /// A turn of the credential first: who waits for that takes no place among those who wait for one of the workspace,
    /// and so no credential fills that queue for the others. Nor do links, however many: all together they are one.
    async fn seat(&self, reader: Reader, end: tokio::time::Instant) -> Result<Seat> {
        let own = Holder::Credential(reader.credential);
        let mut turns = vec![self.turn(own, self.own_max(reader), end).await?];
        if matches!(reader.credential, Credential::Link(_)) {
            let links = Holder::Links(reader.workspace_id);
            turns.push(self.turn(links, self.credential_max, end).await?);
        }
        let all = Holder::Workspace(reader.workspace_id);
        turns.push(self.turn(all, self.workspace_max, end).await?);
        Ok(Seat { _turns: turns })
    }

    /// What one request reads waits for its own reads as long as those take: a page that looks up several things that take
    /// long is not refused for what it does itself.
    async fn turn_of_request(&self, asking: Asking) -> Result<Turn> {
        let holder = Holder::Request(asking.request);
        let (free, place) = self.place(holder, self.own_max(asking.reader))?;
        let permit = free.acquire_owned().await.map_err(|_| self.refused())?;
        Ok(Turn { _permit: permit, _place: place })
    }

    /// What one credential may have. A link leaves some to the other links.
    fn own_max(&self, reader: Reader) -> usize {
        match reader.credential {
            Credential::Link(_) => (self.credential_max - 1).max(1),
            Credential::Key(_) | Credential::User(_) => self.credential_max,
        }
    }

    async fn turn(&self, holder: Holder, turns_max: usize, end: tokio::time::Instant) -> Result<Turn> {
        let (free, place) = self.place(holder, turns_max)?;
        match tokio::time::timeout_at(end, free.acquire_owned()).await {
            Ok(Ok(permit)) => Ok(Turn { _permit: permit, _place: place }),
            _ => Err(self.refused()),
        }
    }

    fn place(&self, holder: Holder, turns_max: usize) -> Result<(Arc<Semaphore>, Place)> {
        let mut turns = locked(&self.turns);
        let own = turns
            .entry(holder)
            .or_insert_with(|| Turns { free: Arc::new(Semaphore::new(turns_max)), users: 0 });
        if own.users >= turns_max + WAITING_MAX {
            return Err(self.refused());
        }
        own.users += 1;
        Ok((own.free.clone(), Place { holder, turns: self.turns.clone() }))
    }

    fn refused(&self) -> Error {
        metrics::counter!("open_spanner_db_queries_refused_total").increment(1);
        Error::too_many_queries(self.workspace_max, self.credential_max)
    }
}

#[cfg(test)]
mod tests {
    use futures_util::FutureExt;

    use super::*;
    use crate::db::readiness::Signs;

    #[test]
    fn every_class_has_a_connection_and_leaves_some_to_the_ones_before() {
        assert_eq!(bounds(10), [10, 9, 7, 6]);
        assert_eq!(bounds(6), [6, 5, 4, 4]);
        for size in 1..200 {
            let bounds = bounds(size);
            assert!(bounds.is_sorted_by(|a, b| a >= b) && bounds[3] >= 1, "{bounds:?}");
            assert!(size < 3 || bounds[1] < bounds[0], "{bounds:?}");
        }
    }

    #[tokio::test]
    async fn a_workspace_and_a_credential_have_their_share_and_no_more() {
        let shares = Shares::new(6, 0);
        let reader = |workspace_id, key| Reader { workspace_id, credential: Credential::Key(key) };
        let soon = || tokio::time::Instant::now() + Duration::from_millis(20);
        let mut seats = Vec::new();
        for _ in 0..3 {
            seats.push(shares.seat(reader(1, 1), soon()).await.expect("of its share"));
        }
        let refused = shares.seat(reader(1, 1), soon()).await.err().expect("over its share");
        assert_eq!((refused.code.as_str(), refused.code.http_status()), ("too_many_queries", 429));
        seats.push(shares.seat(reader(1, 2), soon()).await.expect("another key"));
        assert!(shares.seat(reader(1, 3), soon()).await.is_err(), "the workspace has no more");
        seats.push(shares.seat(reader(2, 4), soon()).await.expect("another workspace"));
        let waiting = shares.seat(reader(1, 1), soon());
        drop(seats);
        waiting.await.expect("a seat became free");
        assert!(locked(&shares.turns).is_empty(), "nobody is remembered");
    }

    #[tokio::test]
    async fn a_request_is_not_refused_for_what_it_reads_itself() {
        let db = crate::config::load_from(&["open-spanner"], &[]).expect("defaults are good").config.db;
        let (epochs, signs, slow_after) = (Arc::default(), Signs::default(), None);
        let gate = Arc::new(Gate { epochs, file: None, is_replica: false, signs, slow_after });
        let pool = Pool::new("tested", &db, 6, &gate);
        let patience = Duration::from_millis(20);
        let read = || async {
            let permit = pool.permit(Class::Query, patience).await?;
            tokio::time::sleep(Duration::from_millis(200)).await;
            drop(permit);
            Ok::<_, Error>(())
        };
        let reader = Reader { workspace_id: 1, credential: Credential::User(1) };
        let page = futures_util::future::try_join_all((0..6).map(|_| read()));
        read_by(Some(reader), page).await.expect("each in its turn");
        assert!(locked(&pool.shares.turns).is_empty(), "nobody is remembered");
    }

    #[tokio::test]
    async fn links_for_customers_leave_a_seat_to_the_people_of_their_workspace() {
        let shares = Shares::new(6, 0);
        let reader = |credential| Reader { workspace_id: 1, credential };
        let soon = || tokio::time::Instant::now() + Duration::from_millis(20);
        let mut seats = Vec::new();
        for _ in 0..2 {
            seats.push(shares.seat(reader(Credential::Link(1)), soon()).await.expect("of its share"));
        }
        assert!(shares.seat(reader(Credential::Link(1)), soon()).await.is_err(), "one link has no more");
        seats.push(shares.seat(reader(Credential::Link(2)), soon()).await.expect("another link"));
        assert!(shares.seat(reader(Credential::Link(3)), soon()).await.is_err(), "links have no more");
        seats.push(shares.seat(reader(Credential::User(1)), soon()).await.expect("what links leave"));
        drop(seats);
        assert!(locked(&shares.turns).is_empty(), "nobody is remembered");
    }

    #[tokio::test]
    async fn who_floods_takes_no_place_among_those_who_wait_for_the_workspace() {
        let shares = Arc::new(Shares::new(6, 0));
        let reader = |key| Reader { workspace_id: 1, credential: Credential::Key(key) };
        let end = tokio::time::Instant::now() + Duration::from_secs(60);
        let mut seats = Vec::new();
        for _ in 0..3 {
            seats.push(shares.seat(reader(1), end).await.expect("of its share"));
        }
        let flood: Vec<_> = (0..WAITING_MAX)
            .map(|_| {
                let (shares, reader) = (shares.clone(), reader(1));
                tokio::spawn(async move { shares.seat(reader, end).await.map(drop) })
            })
            .collect();
        let own = Holder::Credential(Credential::Key(1));
        let waits = || locked(&shares.turns).get(&own).map_or(0, |turns| turns.users);
        while waits() < 3 + WAITING_MAX {
            tokio::task::yield_now().await;
        }
        assert!(shares.seat(reader(1), end).await.is_err(), "no more of it may wait");
        seats.push(shares.seat(reader(2), end).await.expect("what is left of the workspace's"));
        assert!(shares.seat(reader(2), end).now_or_never().is_none(), "another key may wait");
        drop(seats);
        for one in flood {
            one.await.expect("no panic").expect("its turn came");
        }
        assert!(locked(&shares.turns).is_empty(), "nobody is remembered");
    }
}
