//! Claims, leases and turns, on SQLite: PostgreSQL is in `tests/it`.

use super::*;
use crate::config::{Driver, Synchronous};
use crate::db::{migrations, open};
use crate::jobs::dead_letters;

fn database() -> (tempfile::TempDir, Conn) {
    let folder = tempfile::tempdir().expect("a temporary folder");
    let path = folder.path().join("jobs.db").to_string_lossy().into_owned();
    let driver = Driver::Sqlite { path, synchronous: Synchronous::Normal };
    migrations::run(&driver).expect("migrated");
    let conn = open(&driver).expect("opened");
    (folder, conn)
}

fn job(key: &str, run_after: i64) -> NewJob {
    NewJob::new("q", key, 1, &key, Timestamp(run_after)).expect("a job")
}

const TOKEN: LeaseToken = [1; 16];
const OTHER: LeaseToken = [2; 16];

fn claim_at(conn: &mut Conn, token: &LeaseToken, now: i64) -> Vec<Job> {
    claim_some(conn, token, now, 10, None)
}

fn claim_some(
    conn: &mut Conn,
    token: &LeaseToken,
    now: i64,
    limit: i64,
    per_workspace: Option<i64>,
) -> Vec<Job> {
    let (now, until) = (Timestamp(now), Timestamp(now + 10));
    let only_unleased = false;
    claim(conn, &Claim { queue: "q", token, now, until, limit, per_workspace, only_unleased })
        .expect("claimed")
}

#[test]
fn times_that_were_chosen_in_the_future_count_from_now_on() {
    let (_folder, mut conn) = database();
    let (hour, ahead) = (crate::metering::time::HOUR, 1_000);
    enqueue(&mut conn, vec![job("waits", hour + 30)], Timestamp(hour)).expect("enqueued");
    enqueue(&mut conn, vec![job("runs", hour)], Timestamp(hour)).expect("enqueued");
    assert_eq!(claim_some(&mut conn, &TOKEN, hour, 9, None).len(), 1);
    enqueue(&mut conn, vec![job("later", 9 * hour)], Timestamp(ahead)).expect("enqueued");
    // the clock is set back to where it was
    assert_eq!(rebase(&mut conn, "q", Timestamp(ahead)).expect("rebased"), 3);
    assert_eq!(rebase(&mut conn, "q", Timestamp(ahead)).expect("rebased"), 0, "once");
    let keys = |jobs: Vec<Job>| jobs.into_iter().map(|job| job.key).collect::<Vec<_>>();
    assert!(claim_at(&mut conn, &OTHER, ahead + 10).is_empty(), "leased for ten");
    assert_eq!(keys(claim_at(&mut conn, &OTHER, ahead + 11)), ["runs"]);
    assert!(claim_at(&mut conn, &OTHER, ahead + 12).is_empty());
    assert_eq!(keys(claim_some(&mut conn, &OTHER, ahead + 30, 1, None)), ["runs"]);
}

#[test]
fn workspaces_take_turns() {
    let (_folder, mut conn) = database();
    let of = |workspace_id: i64, number: i64| NewJob {
        workspace_id,
        ..job(&format!("{workspace_id}-{number}"), 100 * workspace_id + number)
    };
    // the first workspace was long before all others
    let mut new: Vec<NewJob> = (0..9).map(|number| of(1, number)).collect();
    new.extend([of(2, 0), of(2, 1), of(3, 0)]);
    enqueue(&mut conn, new, Timestamp(0)).expect("enqueued");
    let keys = |jobs: Vec<Job>| {
        let mut keys: Vec<String> = jobs.into_iter().map(|job| job.key).collect();
        keys.sort();
        keys
    };
    let first = keys(claim_some(&mut conn, &TOKEN, 1_000, 4, Some(3)));
    assert_eq!(first, ["1-0", "1-1", "2-0", "3-0"]);
    // what is running counts: two of the first, one of the second
    assert_eq!(keys(claim_some(&mut conn, &TOKEN, 1_000, 1, Some(3))), ["2-1"]);
    assert_eq!(keys(claim_some(&mut conn, &OTHER, 1_000, 9, Some(3))), ["1-2"], "three at most");
    assert!(claim_some(&mut conn, &OTHER, 1_000, 9, Some(3)).is_empty());
    assert_eq!(claim_some(&mut conn, &OTHER, 1_000, 9, None).len(), 6, "by age nothing is held back");
}

/// Claims one by one, and says whose job it was each time.
fn turns(conn: &mut Conn, behind: &mut i64, count: usize) -> Vec<i64> {
    let (now, until) = (Timestamp(1_000), Timestamp(2_000));
    let claim =
        Claim { queue: "q", token: &TOKEN, now, until, limit: 1, per_workspace: None, only_unleased: false };
    let mut one = || {
        let (jobs, last) = claim_in_turn(conn, &claim, *behind).expect("claimed");
        *behind = last;
        jobs.first().map(|job| job.workspace_id)
    };
    (0..count).map_while(|_| one()).collect()
}

#[test]
fn whoever_asks_for_much_waits_for_itself() {
    let (_folder, mut conn) = database();
    let of = |workspace_id: i64, number: i64| NewJob {
        workspace_id,
        ..job(&format!("{workspace_id}-{number}"), 100 * workspace_id + number)
    };
    // the first workspace was long before all others
    let mut new: Vec<NewJob> = (0..50).map(|number| of(1, number)).collect();
    new.extend([of(2, 0), of(2, 1), of(3, 0)]);
    enqueue(&mut conn, new, Timestamp(0)).expect("enqueued");
    let mut behind = i64::MIN;
    assert_eq!(turns(&mut conn, &mut behind, 7), [1, 2, 3, 1, 2, 1, 1]);
    // one that is alone has every place, the oldest first
    let (now, until) = (Timestamp(1_000), Timestamp(2_000));
    let claim =
        Claim { queue: "q", token: &TOKEN, now, until, limit: 9, per_workspace: None, only_unleased: false };
    let (jobs, _) = claim_in_turn(&mut conn, &claim, behind).expect("claimed");
    let keys: Vec<String> = jobs.into_iter().map(|job| job.key).collect();
    assert_eq!(keys.len(), 9);
    assert!((4..13).all(|number| keys.contains(&format!("1-{number}"))), "{keys:?}");
    assert_eq!(turns(&mut conn, &mut behind, 100).len(), 50 - 13, "and nothing is left");
}

#[test]
fn a_turn_comes_whoever_has_nothing_to_do() {
    let (_folder, mut conn) = database();
    let of = |workspace_id: i64, key: String, run_after: i64| NewJob { workspace_id, ..job(&key, run_after) };
    let mut new: Vec<NewJob> = (0..50).map(|n| of(1, format!("busy-{n}"), n)).collect();
    // what they have is due some day
    new.extend((2..300).map(|id| of(id, format!("quiet-{id}"), 1_000_000)));
    new.push(of(300, "waits".to_owned(), 900));
    enqueue(&mut conn, new, Timestamp(0)).expect("enqueued");
    let mut behind = i64::MIN;
    let whose = turns(&mut conn, &mut behind, 50);
    let place = whose.iter().position(|id| *id == 300).expect("it has a turn");
    assert!(place as i64 <= 300 / TURNS + 1, "{place}");
}

#[test]
fn what_was_asked_for_meanwhile_does_not_wait_for_the_retry() {
    let (_folder, mut conn) = database();
    let attempt = |conn: &mut Conn, asked_for: Option<i64>, retry_at: i64| {
        enqueue(conn, vec![job("a", 0)], Timestamp(0)).expect("enqueued");
        let claimed = claim_at(conn, &TOKEN, 5);
        let again: Vec<NewJob> = asked_for.map(|at| job("a", at)).into_iter().collect();
        enqueue(conn, again, Timestamp(6)).expect("enqueued");
        retry(conn, &claimed[0], &TOKEN, Timestamp(retry_at), "no").expect("given back");
        let due = next_due(conn, "q", Timestamp(7), false).expect("asked").expect("it waits");
        diesel::delete(jobs::table).execute(conn).expect("deleted");
        due.0
    };
    assert_eq!(attempt(&mut conn, None, 60), 60);
    assert_eq!(attempt(&mut conn, Some(8), 60), 8, "what is new is due");
    assert_eq!(attempt(&mut conn, Some(90), 60), 60);
}

#[test]
fn a_job_is_claimed_once_and_again_when_the_lease_ends() {
    let (_folder, mut conn) = database();
    enqueue(&mut conn, vec![job("a", 5), job("b", 50)], Timestamp(0)).expect("enqueued");
    assert!(claim_at(&mut conn, &TOKEN, 4).is_empty(), "not due");
    let claimed = claim_at(&mut conn, &TOKEN, 5);
    assert_eq!(claimed.len(), 1);
    assert!(claim_at(&mut conn, &OTHER, 15).is_empty(), "leased");
    let second = claim_at(&mut conn, &OTHER, 16);
    assert_eq!((second.len(), second[0].attempts), (1, 2));
    assert!(!claimed[0].taken_over && second[0].taken_over, "its first holder did not end it");
    finish(&mut conn, &claimed[0], &TOKEN, None).expect("ignored");
    assert!(!holds(&mut conn, &claimed[0], &TOKEN).expect("asked"));
    assert!(holds(&mut conn, &second[0], &OTHER).expect("asked"), "a late finish changes nothing");
    finish(&mut conn, &second[0], &OTHER, None).expect("finished");
    assert!(claim_at(&mut conn, &TOKEN, 40).is_empty());
}

#[test]
fn a_job_asked_for_while_it_runs_runs_again() {
    let (_folder, mut conn) = database();
    enqueue(&mut conn, vec![job("a", 5)], Timestamp(0)).expect("enqueued");
    let first = claim_at(&mut conn, &TOKEN, 5);
    enqueue(&mut conn, vec![job("a", 6)], Timestamp(6)).expect("enqueued");
    finish(&mut conn, &first[0], &TOKEN, Some(Timestamp(1_000))).expect("finished");
    let second = claim_at(&mut conn, &OTHER, 7);
    assert_eq!((second.len(), second[0].attempts), (1, 1));
    finish(&mut conn, &second[0], &OTHER, Some(Timestamp(1_000))).expect("finished");
    assert!(claim_at(&mut conn, &TOKEN, 999).is_empty());
    let third = claim_at(&mut conn, &TOKEN, 1_000);
    assert!(third.len() == 1 && !third[0].taken_over, "given back");
}

#[test]
fn a_running_job_is_run_again_when_asked_not_at_once() {
    let (_folder, mut conn) = database();
    enqueue(&mut conn, vec![job("a", 5)], Timestamp(0)).expect("enqueued");
    assert_eq!(next_due(&mut conn, "q", Timestamp(0), false).expect("looked"), Some(Timestamp(5)));
    let first = claim_at(&mut conn, &TOKEN, 5);
    assert_eq!(next_due(&mut conn, "q", Timestamp(6), false).expect("looked"), None, "somebody has it");
    enqueue(&mut conn, vec![job("a", 50)], Timestamp(6)).expect("enqueued");
    finish(&mut conn, &first[0], &TOKEN, None).expect("finished");
    assert!(claim_at(&mut conn, &OTHER, 49).is_empty(), "gathers more first");
    enqueue(&mut conn, vec![job("a", 90)], Timestamp(40)).expect("enqueued");
    assert_eq!(
        next_due(&mut conn, "q", Timestamp(49), false).expect("looked"),
        Some(Timestamp(50)),
        "never later"
    );
    assert_eq!(claim_at(&mut conn, &OTHER, 50).len(), 1);
}

fn depths(conn: &mut Conn, queues: &[&str], workspace_id: i64) -> HashMap<String, Depth> {
    background(conn, queues, workspace_id, Timestamp(30)).expect("counted").depths
}

#[test]
fn the_dead_are_kept_and_can_be_revived() {
    let (_folder, mut conn) = database();
    enqueue(&mut conn, vec![job("a", 5)], Timestamp(0)).expect("enqueued");
    let first = claim_at(&mut conn, &TOKEN, 5);
    retry(&mut conn, &first[0], &TOKEN, Timestamp(20), "broken").expect("freed");
    let found = depths(&mut conn, &["p", "q"], 1);
    let standing = crate::jobs::sql::standings(&mut conn, Timestamp(10)).expect("counted");
    assert!(standing[0].undone_since.is_some(), "not done, though not due for a while");
    let waiting = Depth { pending: 1, failed: 1, oldest_pending_at: Some(20), ..Depth::default() };
    assert_eq!(found, HashMap::from([("q".to_owned(), waiting)]));
    assert!(depths(&mut conn, &["q"], 2).is_empty(), "another workspace");
    let second = claim_at(&mut conn, &TOKEN, 20);
    bury(&mut conn, &second[0], &TOKEN, "broken", Timestamp(21)).expect("buried");
    assert!(claim_at(&mut conn, &TOKEN, 100).is_empty());
    let letters = dead_letters::list(&mut conn, 1, dead_letters::Filter::default(), 10).expect("listed");
    assert_eq!((letters.len(), letters[0].attempts), (1, 2));
    assert_eq!(dead_letters::count(&mut conn, 1).expect("counted"), HashMap::from([("q".to_owned(), 1)]));
    let dead = HashMap::from([("q".to_owned(), Depth { dead: 1, ..Depth::default() })]);
    assert_eq!(depths(&mut conn, &["p"], 1), dead, "of whatever queue");
    assert!(depths(&mut conn, &["q"], 2).is_empty(), "another workspace");
    assert!(dead_letters::get(&mut conn, 2, &letters[0].id).is_err(), "another workspace");
    let letter = dead_letters::get(&mut conn, 1, &letters[0].id).expect("found");
    dead_letters::requeue(&mut conn, &letter, Timestamp(100)).expect("requeued");
    assert!(dead_letters::requeue(&mut conn, &letter, Timestamp(100)).is_err(), "once only");
    assert!(dead_letters::count(&mut conn, 1).expect("counted").is_empty());
    assert!(depths(&mut conn, &["p"], 1).is_empty());
    assert_eq!(claim_at(&mut conn, &TOKEN, 100).len(), 1);
}

/// With what waits and was given up come the processes, whatever they are called.
#[test]
fn processes_are_told_apart_from_queues() {
    let (_folder, mut conn) = database();
    enqueue(&mut conn, vec![job("a", 5)], Timestamp(0)).expect("enqueued");
    for (instance_id, started_at) in [("late", 9), ("early", 3)] {
        let instance = Instance {
            instance_id: instance_id.to_owned(),
            worker: "q".to_owned(),
            started_at,
            last_heartbeat_at: 0,
            last_success_at: Some(started_at),
            last_failure_at: None,
        };
        crate::jobs::instances::heartbeat(&mut conn, &instance, Timestamp(20)).expect("beaten");
    }
    let found = background(&mut conn, &["q"], 1, Timestamp(30)).expect("read");
    let told =
        found.instances.iter().map(|one| (one.instance_id.as_str(), one.started_at, one.last_heartbeat_at));
    assert_eq!(told.collect::<Vec<_>>(), [("early", 3, 20), ("late", 9, 20)]);
    assert_eq!(found.instances[0].last_success_at, Some(3));
    assert_eq!((found.depths.len(), found.depths["q"].pending), (1, 1));
}
