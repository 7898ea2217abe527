//! What subjects used of a meter, as it is stored: packed runs of each subject and period, and what recent commits added
//! and nobody has settled yet (`usage::settle`). One statement reads both, so it finds each event once.

use std::collections::{BTreeSet, HashMap};

use diesel::prelude::*;
use diesel::sql_types::{BigInt, Binary, Bool, Nullable, Text};

use crate::db::columns::readable;
use crate::db::schema::subjects;
use crate::db::statement::{Statement, integers};
use crate::db::{Conn, DbError};
use crate::metering::day_sums;
use crate::metering::delta::SubjectCells;
use crate::metering::facet::Facet;
use crate::metering::time::{DAY, Timestamp, Window};
use crate::usage::packed::{Asked, unreadable};
use crate::usage::query::GroupedAggregates;

/// A row of `rollup_subjects` is of so long a time: few rows for a subject in a month, and seldom an old one that must be
/// read for some days.
pub const PERIOD: i64 = 30 * DAY;

/// Names that are looked up in one statement.
const NAMES_AT_ONCE: usize = 1_000;

/// What is read, and where it is added up.
pub struct Runs<'a> {
    pub asked: Asked<'a>,
    /// Only of these; `None`: of every subject.
    pub subject_ids: Option<&'a [i64]>,
    /// Only what begins on these days; `None`: on every day of the window.
    pub days: Option<&'a BTreeSet<i64>>,
    /// By what the sums of whole days answer, if they do ([`Asked::facet_of_days`]).
    pub by_day: Option<Facet>,
    /// The answer tells subjects apart, or asks for their names.
    pub with_names: bool,
    pub cells: &'a mut GroupedAggregates,
    /// Where sums are too old to know a dimension.
    pub left_out: &'a mut Option<Window>,
}

#[derive(diesel::QueryableByName)]
struct RunRow {
    #[diesel(sql_type = BigInt)]
    id: i64,
    /// Whose it is, where that is asked for.
    #[diesel(sql_type = Nullable<Text>)]
    subject: Option<String>,
    #[diesel(sql_type = Bool)]
    is_delta: bool,
    #[diesel(sql_type = Binary)]
    cells: Vec<u8>,
}

impl Runs<'_> {
    /// Adds everything of these subjects in the window.
    pub fn add_up(mut self, conn: &mut Conn) -> Result<(), DbError> {
        let only: Option<BTreeSet<i64>> = self.subject_ids.map(|ids| ids.iter().copied().collect());
        let is_wanted = |subject_id: i64| only.as_ref().is_none_or(|only| only.contains(&subject_id));
        let mut statement = Statement::new(conn);
        let (runs, deltas) = (self.runs_sql(&mut statement), self.deltas_sql(&mut statement));
        let mut nameless = Vec::new();
        statement.each(conn, &format!("{runs} UNION ALL {deltas}"), |row: RunRow| {
            match (row.is_delta, self.with_names) {
                (false, _) => self.add(row.subject.as_deref().unwrap_or_default(), row.id, &row.cells),
                (true, true) => {
                    nameless.push(row);
                    Ok(())
                }
                (true, false) => each_of(&row, |subject_id, cells| match is_wanted(subject_id) {
                    true => self.add("", row.id, cells),
                    false => Ok(()),
                }),
            }
        })?;
        // names never change: that they are read later makes no difference
        let names = names_in(conn, &nameless, is_wanted)?;
        for row in &nameless {
            each_of(row, |subject_id, cells| match names.get(&subject_id) {
                Some(name) => self.add(name, row.id, cells),
                None => Ok(()),
            })?;
        }
        Ok(())
    }

    fn add(&mut self, subject: &str, id: i64, cells: &[u8]) -> Result<(), DbError> {
        let days = self.days;
        let wants = |day: Timestamp| days.is_none_or(|days| days.contains(&day.0));
        let cells = match &self.by_day {
            Some(facet) => day_sums::cells_of(cells, facet),
            None => Some(cells),
        };
        let sums = cells.ok_or_else(unreadable).and_then(|cells| self.asked.read(cells, subject, wants));
        match readable("rollup_subjects", id, sums) {
            Some(sums) => sums.add_to(self.cells, self.left_out),
            None => Ok(()),
        }
    }

    fn runs_sql(&self, statement: &mut Statement) -> String {
        let Window { from, to } = self.asked.window;
        let meter_id = statement.int(self.asked.query.meter.id);
        // as many lookups as there are periods: a range would step over every subject in between
        let periods = match self.subject_ids {
            Some(ids) if spans(self.asked.window) <= PERIODS_MAX => {
                let periods: Vec<i64> = periods(self.asked.window).collect();
                format!("r.period IN ({}) AND r.subject_id IN ({})", integers(&periods), integers(ids))
            }
            _ => {
                let (first, last) = (statement.int(from.floor(PERIOD).0), statement.int(to.0));
                let only = self.subject_ids.map(|ids| format!(" AND r.subject_id IN ({})", integers(ids)));
                format!("r.period >= {first} AND r.period < {last}{}", only.unwrap_or_default())
            }
        };
        let (low, high) = (statement.int(from.0), statement.int(to.0));
        let cells = self.cells_sql(statement);
        let (name, join) = match self.with_names {
            true => ("s.name", "JOIN subjects s ON s.id = r.subject_id"),
            false => ("NULL", ""),
        };
        format!(
            "SELECT r.id, {name} AS subject, {} AS is_delta, {cells} AS cells FROM rollup_subjects r {join}
             WHERE r.meter_id = {meter_id} AND {periods} AND r.last_start >= {low} AND r.first_start < {high}",
            boolean(statement, false),
        )
    }

    /// The sums of the days of a run instead of all its cells, where it has those that answer. A day that a bound of the
    /// window cuts is whole in the window if the run has nothing on the other side of it: what began within a day is asked
    /// of its cells.
    fn cells_sql(&self, statement: &mut Statement) -> String {
        let Some(facet) = &self.by_day else { return "r.cells".to_owned() };
        let Window { from, to } = self.asked.window;
        let (days, is_kept) = match (facet.name().is_empty(), statement.is_postgres) {
            (true, _) => ("r.days", "r.days IS NOT NULL".to_owned()),
            (false, is_postgres) => {
                let position = if is_postgres { "strpos" } else { "instr" };
                let entry = statement.text(day_sums::entry(facet));
                ("r.facet_days", format!("{position}(r.day_facets, {entry}) > 0"))
            }
        };
        let mut whole = vec![is_kept];
        if from != from.floor(DAY) {
            whole.push(format!("r.first_start >= {}", statement.int(from.ceil(DAY).0)));
        }
        if to != to.floor(DAY) {
            whole.push(format!("r.last_start < {}", statement.int(to.0)));
        }
        whole.extend(self.pruned_sql(statement));
        format!("CASE WHEN {} THEN {days} ELSE r.cells END", whole.join(" AND "))
    }

    /// Of a day that is pruned in part, sums that do not know a dimension answer for the part whose events are gone, and
    /// events for the rest: the sum of such a day says nothing of either.
    fn pruned_sql(&self, statement: &mut Statement) -> Option<String> {
        let (Window { from, to }, pruned) = (self.asked.window, self.asked.pruned_before);
        let is_in_part = self.asked.since > 0 && from < pruned && pruned < to && pruned != pruned.floor(DAY);
        is_in_part.then(|| {
            let (gone, stored) = (statement.int(pruned.0), statement.int(pruned.ceil(DAY).0));
            format!("(r.last_start < {gone} OR r.first_start >= {stored})")
        })
    }

    fn deltas_sql(&self, statement: &mut Statement) -> String {
        let (meter_id, is_delta) = (statement.int(self.asked.query.meter.id), boolean(statement, true));
        format!(
            "SELECT d.id, NULL AS subject, {is_delta} AS is_delta, d.subjects AS cells FROM rollup_deltas d
             WHERE d.meter_id = {meter_id}"
        )
    }
}

fn boolean(statement: &Statement, value: bool) -> &'static str {
    match (statement.is_postgres, value) {
        (true, false) => "false",
        (true, true) => "true",
        (false, false) => "0",
        (false, true) => "1",
    }
}

/// What a delta has of each subject; the rest of one that cannot be read is left out.
fn each_of(row: &RunRow, mut add: impl FnMut(i64, &[u8]) -> Result<(), DbError>) -> Result<(), DbError> {
    for entry in SubjectCells::each(&row.cells) {
        let Some((subject_id, cells)) = readable("rollup_deltas", row.id, entry.ok_or_else(unreadable))
        else {
            break;
        };
        add(subject_id, cells)?;
    }
    Ok(())
}

fn names_in(
    conn: &mut Conn,
    deltas: &[RunRow],
    is_wanted: impl Fn(i64) -> bool,
) -> Result<HashMap<i64, String>, DbError> {
    let entries = deltas.iter().flat_map(|row| SubjectCells::each(&row.cells).flatten());
    let found: BTreeSet<i64> =
        entries.map(|(subject_id, _)| subject_id).filter(|id| is_wanted(*id)).collect();
    let (found, mut names): (Vec<i64>, _) = (found.into_iter().collect(), HashMap::new());
    for some in found.chunks(NAMES_AT_ONCE) {
        let named = subjects::table.filter(subjects::id.eq_any(some)).select((subjects::id, subjects::name));
        names.extend(named.load::<(i64, String)>(conn)?);
    }
    Ok(names)
}

/// More are read as a range.
const PERIODS_MAX: i64 = 64;

fn spans(window: Window) -> i64 {
    window.to.0.saturating_sub(window.from.0) / PERIOD
}

fn periods(window: Window) -> impl Iterator<Item = i64> {
    let first = window.from.floor(PERIOD);
    (0..)
        .map(move |n| first.plus(n * PERIOD))
        .take_while(move |period| *period < window.to)
        .map(|at: Timestamp| at.0)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::db::statement::plan;
    use crate::metering::meter::Meter;
    use crate::usage::query::Query;

    fn plan_of(subject_ids: Option<&[i64]>, window: Window) -> String {
        let query = Query {
            meter: std::sync::Arc::new(Meter::with(Vec::new())),
            window,
            subject: None,
            group_by: Vec::new(),
            filter: None,
            buckets: None,
            skip_missing: false,
            exact: true,
        };
        let (_directory, mut conn) = plan::empty_database();
        let mut statement = Statement::new(&conn);
        let asked = Asked { query: &query, since: 0, pruned_before: Timestamp(0), window, cover: None };
        let (cells, left_out) = (&mut GroupedAggregates::first(9), &mut None);
        let by_day = asked.facet_of_days();
        let runs = Runs { asked, subject_ids, days: None, by_day, with_names: true, cells, left_out };
        let sql = runs.runs_sql(&mut statement);
        plan::of(statement, &mut conn, &sql)
    }

    /// A month of one subject is two lookups, of all subjects a range.
    #[test]
    fn runs_come_by_period_and_subject() {
        let month = Window { from: Timestamp(0), to: Timestamp(PERIOD + DAY) };
        let plan = plan_of(Some(&[5]), month);
        assert!(
            plan.contains("SEARCH r USING INDEX sqlite_autoindex_rollup_subjects_1 (meter_id=? AND period=? AND subject_id=?)"),
            "{plan}"
        );
        let plan = plan_of(None, month);
        assert!(plan.contains("SEARCH r USING INDEX sqlite_autoindex_rollup_subjects_1 (meter_id=? AND period>? AND period<?)"), "{plan}");
        assert_eq!(periods(month).collect::<Vec<_>>(), [0, PERIOD]);
    }
}
