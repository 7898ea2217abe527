//! From a database of the Go server: what its tables mean, in the order in which rows refer to each other. Rows keep
//! their ids; each is written so that the next run finds it. A row that cannot be taken is listed, and the rest goes on.

mod alerts;
mod compare;
mod counters;
mod decisions;
mod events;
mod history;
mod layout;
mod meters;
mod plans;
mod sums;
mod tables;
mod who;

use std::collections::{BTreeSet, HashMap, HashSet};
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use self::compare::Tally;
use self::sums::Rolled;
use crate::config::import::{Reference, driver_of};
use crate::db::session::Session;
use crate::db::{Conn, DbError};
use crate::error::{Error, Result};
use crate::import::progress::Progress;
use crate::import::report::Report;
use crate::import::sql::foreign::{Foreign, Odd, Row, Table};
use crate::import::sql::ours::Put;
use crate::metering::meter::Meter;
use crate::metering::time::Timestamp;
use crate::output::{print, print_line};

/// Why a row is not taken over, or why nothing can be.
enum Refusal {
    Odd(Odd),
    Db(DbError),
}

impl From<Odd> for Refusal {
    fn from(odd: Odd) -> Refusal {
        Refusal::Odd(odd)
    }
}

impl From<DbError> for Refusal {
    fn from(fault: DbError) -> Refusal {
        Refusal::Db(fault)
    }
}

impl From<Error> for Refusal {
    /// A rule of ours that the row breaks.
    fn from(error: Error) -> Refusal {
        Refusal::Odd(error.message.strip_prefix("invalid input: ").unwrap_or(&error.message).to_owned())
    }
}

/// What one row comes to.
type Step = fn(&mut Conn, &mut Ids, &Row) -> Result<Put, Refusal>;

/// A plan, of which states and assignments speak.
struct PlanOf {
    id: i64,
    is_current: bool,
}

/// What the numbers of ours are, by the ids of theirs. As large as the catalogue, not as the history.
struct Ids {
    now: Timestamp,
    workspaces: HashMap<String, i64>,
    users: HashMap<String, i64>,
    /// Users who have an account here that takes the place of theirs.
    guests: HashSet<String>,
    members: HashSet<(i64, i64)>,
    /// Sign-ins that are there, and the hashes of their tokens.
    sign_ins: HashSet<String>,
    tokens: HashSet<Vec<u8>>,
    /// How long a sign-in lasts here.
    session_max_age: i64,
    /// By workspace and name.
    meters: HashMap<(i64, String), Arc<Meter>>,
    plans: HashMap<String, PlanOf>,
    destinations: HashMap<String, i64>,
    rules: BTreeSet<String>,
    keys: BTreeSet<String>,
    notes: BTreeSet<String>,
}

impl Ids {
    fn new(session_max_age: Duration) -> Ids {
        Ids {
            now: Timestamp::now(),
            workspaces: HashMap::new(),
            users: HashMap::new(),
            guests: HashSet::new(),
            members: HashSet::new(),
            sign_ins: HashSet::new(),
            tokens: HashSet::new(),
            session_max_age: session_max_age.as_micros().min(i64::MAX as u128 / 4) as i64,
            meters: HashMap::new(),
            plans: HashMap::new(),
            destinations: HashMap::new(),
            rules: BTreeSet::new(),
            keys: BTreeSet::new(),
            notes: BTreeSet::new(),
        }
    }

    /// A transaction may be tried twice: what is noted again is noted once.
    fn note(&mut self, note: String) {
        self.notes.insert(note);
    }

    fn workspace(&self, row: &Row) -> Result<i64, Odd> {
        let id = row.text("workspace_id")?;
        self.workspaces.get(&id).copied().ok_or_else(|| "its workspace is not there".to_owned())
    }

    fn user(&self, row: &Row) -> Result<i64, Odd> {
        let id = row.text("user_id")?;
        self.users.get(&id).copied().ok_or_else(|| "its user is not there".to_owned())
    }

    fn meter(&self, workspace_id: i64, row: &Row) -> Result<Arc<Meter>, Odd> {
        let name = row.text("meter_name")?;
        let key = (workspace_id, name);
        self.meters.get(&key).cloned().ok_or_else(|| format!("its meter is not there: {:?}", key.1))
    }

    fn plan(&self, row: &Row) -> Result<&PlanOf, Odd> {
        let id = row.text("plan_id")?;
        self.plans.get(&id).ok_or_else(|| "its plan is not there".to_owned())
    }
}

struct Import {
    theirs: Foreign,
    ours: Session,
    report: Report,
    ids: Ids,
    tally: Tally,
    rolled: Rolled,
}

/// Rows of the catalogue that are written in one transaction.
const ROWS_AT_ONCE: usize = 500;
/// So many take long enough for somebody to wonder.
const MANY_ROWS: u64 = 5_000;

/// `session_max_age`: how long a sign-in lasts here.
pub fn run(ours: Session, asked: &Reference, session_max_age: Duration) -> Result<()> {
    let how = &asked.how;
    let theirs = Foreign::open(&driver_of(&asked.from))?;
    let mut import = Import {
        theirs,
        ours,
        report: Report::new(&how.rejected, &[PathBuf::from(&asked.from)])?,
        ids: Ids::new(session_max_age),
        tally: Tally::default(),
        rolled: Rolled::default(),
    };
    import.recognise()?;
    import.note_tables()?;
    import.catalogue()?;
    import.note_sums()?;
    import.events()?;
    import.sums()?;
    import.past()?;
    import.settle()?;
    let (text, new) = import.finish()?;
    print(&text);
    print_line!("what is left out is listed in {}", how.rejected.display());
    match (asked.compare, new) {
        (false, _) if how.dry_run => print_line!("this was a dry run: nothing was stored"),
        (false, _) => {}
        (true, 0) => print_line!("nothing is missing here"),
        (true, new) => {
            return Err(Error::conflict(format!(
                "{new} rows are not here yet, or are other ones there by now: run the import again without --compare"
            )));
        }
    }
    Ok(())
}

impl Import {
    /// What events refer to.
    fn catalogue(&mut self) -> Result<()> {
        self.rows(&who::WORKSPACES, who::workspace)?;
        self.rows(&who::USERS, who::user)?;
        self.rows(&who::MEMBERSHIPS, who::membership)?;
        self.rows(&who::IDENTITIES, who::identity)?;
        self.rows(&who::SESSIONS, who::session)?;
        self.rows(&who::API_KEYS, who::api_key)?;
        self.rows(&who::API_KEY_EVENTS, who::api_key_event)?;
        self.rows(&who::INVITATIONS, who::invitation)?;
        self.rows(&meters::METERS, meters::meter)?;
        self.rows(&meters::SAVED_QUERIES, meters::saved_query)?;
        self.rows(&plans::PLANS, plans::plan)?;
        self.rows(&plans::LIMITS, plans::limit)?;
        self.rows(&plans::ASSIGNMENTS, plans::assignment)?;
        self.end_overlaps()
    }

    /// What refers to events, or is about them.
    fn past(&mut self) -> Result<()> {
        self.rows(&history::PRUNE_RUNS, history::prune_run)?;
        self.rows(&history::INGESTIONS, history::ingestion)?;
        self.rows(&history::BULK, history::bulk)?;
        self.rows(&history::EXPORTS, history::export)?;
        self.rows(&decisions::DECISIONS, decisions::decision)?;
        self.rows(&decisions::PRUNE_RUNS, decisions::prune_run)?;
        self.rows(&counters::COUNTERS, counters::counter)?;
        self.rows(&plans::STATES, plans::state)?;
        self.rows(&plans::EVENTS, plans::event)?;
        self.rows(&plans::SNAPSHOTS, plans::snapshot)?;
        self.rows(&alerts::DESTINATIONS, alerts::destination)?;
        self.rows(&alerts::RULES, alerts::rule)?;
        self.rows(&alerts::EVENTS, alerts::event)?;
        self.rows(&alerts::STATES, alerts::state)?;
        self.rows(&alerts::DELIVERIES, alerts::delivery)?;
        self.rows(&alerts::DELIVERY_JOBS, alerts::delivery_job)
    }

    /// Brings over a table, row by row.
    fn rows(&mut self, table: &'static Table, step: Step) -> Result<()> {
        self.note_columns(table);
        let count = if self.theirs.has_table(table.name) { self.theirs.count(table.name)? } else { 0 };
        let mut progress = (count > MANY_ROWS).then(|| Progress::new(table.name, count));
        let Import { theirs, ours, report, ids, .. } = self;
        theirs.each(table, ROWS_AT_ONCE, |rows| {
            if let Some(progress) = &mut progress {
                progress.add(rows.len());
            }
            let done = ours.write(|conn| {
                let mut done = Vec::with_capacity(rows.len());
                for row in &rows {
                    match step(conn, ids, row) {
                        Ok(put) => done.push(Ok(put)),
                        Err(Refusal::Odd(odd)) => done.push(Err(odd)),
                        Err(Refusal::Db(DbError::Rejected(error))) => done.push(Err(error.message)),
                        Err(Refusal::Db(fault)) => return Err(fault),
                    }
                }
                Ok(done)
            })?;
            for (row, done) in rows.iter().zip(done) {
                match done {
                    Ok(Put::Taken) => {
                        report.left_out(table.name, &id_of(table, row), "another row has its name")?
                    }
                    Ok(put) => report.taken(table.name, put, 1),
                    Err(odd) => report.left_out(table.name, &id_of(table, row), &odd)?,
                }
            }
            Ok(())
        })
    }

    /// Everything for people to read, and how many rows are new.
    fn finish(&mut self) -> Result<(String, u64)> {
        self.compare()?;
        for note in std::mem::take(&mut self.ids.notes) {
            self.report.note(note);
        }
        Ok((self.report.finish()?, self.report.new_rows()))
    }
}

/// What tells a row from the others of its table.
fn id_of(table: &Table, row: &Row) -> String {
    let has_id = table.columns.iter().any(|(name, _)| *name == "id");
    let names: Vec<&str> =
        if has_id { vec!["id"] } else { table.columns.iter().take(3).map(|(name, _)| *name).collect() };
    names.into_iter().map(|name| row.shown(name)).collect::<Vec<_>>().join("/")
}
