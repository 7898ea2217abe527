//! Settles what was added to subjects of a meter: into runs of each subject and period, and into how many events each has.
//! Small runs are put together with the next larger one, so that a subject has few of them and each of its sums is
//! written few times. As with folding (`usage::fold`), a transaction moves sums, and nobody waits for it.

use std::collections::BTreeMap;

use diesel::prelude::*;
use diesel::sql_query;
use diesel::sql_types::{Array, BigInt, Binary, Nullable, Text};

use crate::db::columns::readable;
use crate::db::identity::{made_at, new_id};
use crate::db::prepared::prepared;
use crate::db::statement::integers;
use crate::db::{Conn, DbError};
use crate::error::Error;
use crate::metering::day_sums::{self, DaySums};
use crate::metering::delta::{self, Counts};
use crate::metering::facet::{self, Cells, QUARTER};
use crate::metering::meter::Meter;
use crate::metering::rollup::Series;
use crate::metering::time::Timestamp;
use crate::meters;
use crate::usage::fold::DeltaSize;
use crate::usage::packed::unreadable;
use crate::usage::runs::PERIOD;
use crate::usage::{fold, subject_counts};

/// So much waits at most for a query to step through, per meter.
const BYTES_DUE: i64 = 2 << 20;
const ROWS_DUE: i64 = 256;
/// And so many bytes of counts, of all meters of a workspace, for the page of its subjects: about 30,000.
const COUNTS_DUE: i64 = 512 << 10;
/// Subjects and periods that are written in one transaction, about, and sums that are added to them.
const KEYS_AT_ONCE: usize = 4_096;
const CELLS_AT_ONCE: usize = 65_536;
/// Sums of a period that are read and written again in one transaction, the shortest runs first: all subjects of a busy meter
/// would else have their longest runs put together at the same moment.
const MERGED_CELLS_MAX: i64 = 262_144;
/// And so many bytes of all periods, the newest first: callers choose how long the values of dimensions are, and how old events.
const MERGED_BYTES_MAX: i64 = 32 << 20;
const ROWS_AT_ONCE: i64 = 512;
/// Packed; what is settled in one go is about a third of it.
const BYTES_AT_ONCE: i64 = 4 << 20;
/// Runs of so many sums are put together with no other; longer ones are cut by days.
const RUN_CELLS_MAX: i64 = 16_384;

#[derive(QueryableByName)]
struct Waiting {
    #[diesel(sql_type = BigInt)]
    waiting: i64,
    #[diesel(sql_type = BigInt)]
    bytes: i64,
    #[diesel(sql_type = BigInt)]
    counts: i64,
    #[diesel(sql_type = BigInt)]
    oldest: i64,
}

/// Whether enough waits to be settled, or for so many microseconds.
pub fn is_due(conn: &mut Conn, meter_id: i64, settle_after: i64) -> Result<bool, DbError> {
    let text = "SELECT COUNT(*) AS waiting, CAST(COALESCE(SUM(length(subjects) + length(counts)), 0) AS BIGINT) AS bytes,
                       COALESCE(MIN(id), 0) AS oldest,
                       (SELECT CAST(COALESCE(SUM(length(d.counts)), 0) AS BIGINT) FROM rollup_deltas d JOIN meters m ON m.id = d.meter_id
                        WHERE m.workspace_id = (SELECT workspace_id FROM meters WHERE id = $1)) AS counts
                FROM rollup_deltas WHERE meter_id = $1 AND cells IS NULL";
    let found: Waiting = sql_query(text).bind::<BigInt, _>(meter_id).get_result(conn)?;
    let is_old = || made_at(found.oldest).plus(settle_after) <= Timestamp::now();
    let is_much = found.bytes >= BYTES_DUE || found.waiting >= ROWS_DUE || found.counts >= COUNTS_DUE;
    Ok(found.waiting > 0 && (is_much || is_old()))
}

#[derive(QueryableByName)]
struct UnsettledRow {
    #[diesel(sql_type = BigInt)]
    id: i64,
    #[diesel(sql_type = Binary)]
    subjects: Vec<u8>,
    #[diesel(sql_type = Binary)]
    counts: Vec<u8>,
}

#[derive(QueryableByName)]
struct RunSize {
    #[diesel(sql_type = BigInt)]
    subject_id: i64,
    #[diesel(sql_type = BigInt)]
    id: i64,
    #[diesel(sql_type = BigInt)]
    cell_count: i64,
    #[diesel(sql_type = BigInt)]
    bytes: i64,
}

#[derive(QueryableByName)]
struct RunCells {
    #[diesel(sql_type = BigInt)]
    subject_id: i64,
    #[diesel(sql_type = BigInt)]
    id: i64,
    #[diesel(sql_type = Binary)]
    cells: Vec<u8>,
}

/// Period and subject.
type Owner = (i64, i64);

/// What settling the oldest of a meter comes to.
pub struct Settled {
    meter_id: i64,
    deltas: Vec<i64>,
    replaced: Vec<(Owner, i64)>,
    runs: Vec<Run>,
    counts: Counts,
    /// There may be more.
    pub is_part: bool,
}

struct Run {
    owner: Owner,
    id: i64,
    first_start: i64,
    last_start: i64,
    cell_count: i64,
    days: Option<DaySums>,
    cells: Vec<u8>,
}

impl Run {
    fn of(owner: Owner, cells: &Cells, meter: &Meter) -> Run {
        let starts = || cells.values().flat_map(Series::starts).map(|start| start.0);
        let packed = facet::pack(cells);
        Run {
            owner,
            id: new_id(),
            first_start: starts().min().unwrap_or_default(),
            last_start: starts().max().unwrap_or_default(),
            cell_count: facet::count(cells) as i64,
            days: day_sums::of_cells(&packed, meter),
            cells: packed,
        }
    }

    fn day_facets(&self) -> Option<&str> {
        self.days.as_ref().map(|days| days.facets.as_str())
    }

    fn packed_days(&self) -> Option<&[u8]> {
        self.days.as_ref().map(|days| days.days.as_slice())
    }

    fn packed_facet_days(&self) -> Option<&[u8]> {
        self.days.as_ref().map(|days| days.packed.as_slice())
    }
}

/// Settles the oldest of a meter in one transaction; whether there may be more. For PostgreSQL, as [`fold::fold`].
pub fn settle(conn: &mut Conn, meter_id: i64) -> Result<bool, DbError> {
    if !fold::lock(conn, meter_id)? {
        return Ok(false);
    }
    match prepare(conn, meter_id)? {
        Some(settled) => apply(conn, &settled).map(|()| settled.is_part),
        None => Ok(false),
    }
}

/// Adds up; `None` when there is nothing to settle. Whoever applies it must be the only one who does.
pub fn prepare(conn: &mut Conn, meter_id: i64) -> Result<Option<Settled>, DbError> {
    let (rows, has_more) = oldest(conn, meter_id)?;
    let (mut added, mut cell_count) = (BTreeMap::<Owner, Cells>::new(), 0);
    let (mut deltas, mut counts) = (Vec::new(), Counts::new());
    for row in &rows {
        // what cannot be read stays where it is, to be named by whoever reads it
        if let Some((subjects, more)) = readable("rollup_deltas", row.id, unpacked(row)) {
            for (subject_id, cells) in subjects {
                cell_count += facet::count(&cells);
                spread(&mut added, subject_id, &cells);
            }
            delta::add_counts(&mut counts, &more);
            deltas.push(row.id);
        }
        if added.len() >= KEYS_AT_ONCE || cell_count >= CELLS_AT_ONCE {
            break;
        }
    }
    if deltas.is_empty() {
        return Ok(None);
    }
    let Some(meter) = meters::sql::find_by_id(conn, meter_id)? else { return Ok(None) };
    let is_part = deltas.len() < rows.len() || has_more;
    let mut settled = Settled { meter_id, deltas, replaced: Vec::new(), runs: Vec::new(), counts, is_part };
    let mut periods: BTreeMap<i64, BTreeMap<i64, Cells>> = BTreeMap::new();
    for ((period, subject_id), cells) in added {
        periods.entry(period).or_default().insert(subject_id, cells);
    }
    let mut bytes_left = MERGED_BYTES_MAX;
    for (period, subjects) in periods.into_iter().rev() {
        settled.add_period(conn, period, subjects, &meter, &mut bytes_left)?;
    }
    Ok(Some(settled))
}

/// As many as are settled in one go, and whether there are more.
fn oldest(conn: &mut Conn, meter_id: i64) -> Result<(Vec<UnsettledRow>, bool), DbError> {
    let text = "SELECT id, CAST(length(subjects) + length(counts) AS BIGINT) AS bytes FROM rollup_deltas
                WHERE meter_id = $1 AND cells IS NULL ORDER BY id LIMIT $2";
    let query = sql_query(text).bind::<BigInt, _>(meter_id);
    let found: Vec<DeltaSize> = query.bind::<BigInt, _>(ROWS_AT_ONCE).load(conn)?;
    let ids = fold::fitting(&found, BYTES_AT_ONCE);
    if ids.is_empty() {
        return Ok((Vec::new(), false));
    }
    let has_more = ids.len() < found.len() || found.len() as i64 == ROWS_AT_ONCE;
    let ids = integers(&ids);
    let text = format!(
        "SELECT id, subjects, counts FROM rollup_deltas WHERE meter_id = $1 AND id IN ({ids}) ORDER BY id"
    );
    Ok((sql_query(text).bind::<BigInt, _>(meter_id).load(conn)?, has_more))
}

fn unpacked(row: &UnsettledRow) -> Result<(BTreeMap<i64, Cells>, Counts), DbError> {
    let subjects = delta::unpack_subjects(&row.subjects).ok_or_else(unreadable)?;
    Ok((subjects, delta::unpack_counts(&row.counts).ok_or_else(unreadable)?))
}

fn spread(added: &mut BTreeMap<Owner, Cells>, subject_id: i64, cells: &Cells) {
    for (group, parts) in cells {
        for (start, part) in parts.iter() {
            let sums = added.entry((start.floor(PERIOD).0, subject_id)).or_default();
            match sums.get_mut(group) {
                Some(sums) => sums.add(start, part),
                None => drop(sums.insert(group.clone(), Series::from_iter([(start, part.clone())]))),
            }
        }
    }
}

impl Settled {
    fn add_period(
        &mut self,
        conn: &mut Conn,
        period: i64,
        subjects: BTreeMap<i64, Cells>,
        meter: &Meter,
        bytes_left: &mut i64,
    ) -> Result<(), DbError> {
        let mut merged = self.to_merge(conn, period, &subjects, bytes_left)?;
        // unpacked, sums take many times as much room: one subject at a time
        for (subject_id, mut cells) in subjects {
            for RunCells { id, cells: packed, .. } in merged.remove(&subject_id).unwrap_or_default() {
                // one that cannot be read is left alone
                let more = readable("rollup_subjects", id, facet::unpack(&packed).ok_or_else(unreadable));
                if let Some(more) = more {
                    facet::add_all(&mut cells, &more, QUARTER);
                    self.replaced.push(((period, subject_id), id));
                }
            }
            let pieces = pieces(cells);
            let runs = pieces.iter().map(|cells| Run::of((period, subject_id), cells, meter));
            self.runs.extend(runs);
        }
        Ok(())
    }

    /// Runs that are at most twice as long as what is put together before them: their lengths then at least double, and
    /// of a million sums there are some ten. By subject, each with its id.
    fn to_merge(
        &self,
        conn: &mut Conn,
        period: i64,
        subjects: &BTreeMap<i64, Cells>,
        bytes_left: &mut i64,
    ) -> Result<BTreeMap<i64, Vec<RunCells>>, DbError> {
        let of_period = runs_of_period(&subjects.keys().copied().collect::<Vec<_>>());
        let sizes = format!(
            "SELECT subject_id, id, cell_count, CAST(length(cells) AS BIGINT) AS bytes {of_period} ORDER BY cell_count"
        );
        let sizes = sql_query(sizes).bind::<BigInt, _>(self.meter_id).bind::<BigInt, _>(period);
        let mut lengths: BTreeMap<i64, i64> =
            subjects.iter().map(|(subject_id, cells)| (*subject_id, facet::count(cells) as i64)).collect();
        let (mut chosen, mut left) = (Vec::new(), MERGED_CELLS_MAX);
        for run in sizes.load::<RunSize>(conn)? {
            let Some(length) = lengths.get_mut(&run.subject_id) else { continue };
            let is_room = run.cell_count <= left && run.bytes <= *bytes_left;
            let fits = *length + run.cell_count <= RUN_CELLS_MAX && is_room;
            if run.cell_count <= *length * 2 && fits {
                *length += run.cell_count;
                left -= run.cell_count;
                *bytes_left -= run.bytes;
                chosen.push(run.id);
            }
        }
        if chosen.is_empty() {
            return Ok(BTreeMap::new());
        }
        let text = runs_with_cells(&of_period, &chosen);
        let query = sql_query(text).bind::<BigInt, _>(self.meter_id).bind::<BigInt, _>(period);
        let mut merged: BTreeMap<i64, Vec<RunCells>> = BTreeMap::new();
        for run in query.load::<RunCells>(conn)? {
            merged.entry(run.subject_id).or_default().push(run);
        }
        Ok(merged)
    }
}

/// The runs of a meter ($1) and period ($2) of some subjects.
fn runs_of_period(subject_ids: &[i64]) -> String {
    format!(
        "FROM rollup_subjects WHERE meter_id = $1 AND period = $2 AND subject_id IN ({})",
        integers(subject_ids)
    )
}

/// The sign keeps the index to the subjects: with two lists it would be searched for each pair of both, and thousands of each
/// took longer than a statement may.
fn runs_with_cells(of_period: &str, ids: &[i64]) -> String {
    format!("SELECT subject_id, id, cells {of_period} AND +id IN ({})", integers(ids))
}

/// Cells that fit into one run, or one for each day.
fn pieces(cells: Cells) -> Vec<Cells> {
    match facet::count(&cells) as i64 <= RUN_CELLS_MAX {
        true => vec![cells],
        false => facet::by_day(cells).into_values().collect(),
    }
}

prepared!(
    AddRuns for diesel::PgConnection,
    (meter_id: BigInt = i64, periods: Array<BigInt> = Vec<i64>, subject_ids: Array<BigInt> = Vec<i64>, ids: Array<BigInt> = Vec<i64>,
     first_starts: Array<BigInt> = Vec<i64>, last_starts: Array<BigInt> = Vec<i64>, cell_counts: Array<BigInt> = Vec<i64>,
     days: Array<Nullable<Binary>> = Vec<Option<&'a [u8]>>, day_facets: Array<Nullable<Text>> = Vec<Option<&'a str>>,
     facet_days: Array<Nullable<Binary>> = Vec<Option<&'a [u8]>>, cells: Array<Binary> = Vec<&'a [u8]>),
    "INSERT INTO rollup_subjects (meter_id, period, subject_id, id, first_start, last_start, cell_count, days, day_facets,
         facet_days, cells)
     SELECT ?, new.* FROM unnest(?, ?, ?, ?, ?, ?, ?, ?, ?, ?) AS new"
);
prepared!(
    DeleteRuns for diesel::PgConnection,
    (meter_id: BigInt = i64, periods: Array<BigInt> = Vec<i64>, subject_ids: Array<BigInt> = Vec<i64>, ids: Array<BigInt> = Vec<i64>),
    "DELETE FROM rollup_subjects r USING (SELECT ?::bigint AS meter_id, o.* FROM unnest(?, ?, ?) AS o (period, subject_id, id)) AS old
     WHERE r.meter_id = old.meter_id AND r.period = old.period AND r.subject_id = old.subject_id AND r.id = old.id"
);
prepared!(
    AddRun for diesel::SqliteConnection,
    (meter_id: BigInt = i64, period: BigInt = i64, subject_id: BigInt = i64, id: BigInt = i64, first_start: BigInt = i64,
     last_start: BigInt = i64, cell_count: BigInt = i64, days: Nullable<Binary> = Option<&'a [u8]>,
     day_facets: Nullable<Text> = Option<&'a str>, facet_days: Nullable<Binary> = Option<&'a [u8]>, cells: Binary = Vec<u8>),
    "INSERT INTO rollup_subjects (meter_id, period, subject_id, id, first_start, last_start, cell_count, days, day_facets,
         facet_days, cells)
     VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?)"
);
prepared!(
    DeleteRun for diesel::SqliteConnection,
    (meter_id: BigInt = i64, period: BigInt = i64, subject_id: BigInt = i64, id: BigInt = i64),
    "DELETE FROM rollup_subjects WHERE meter_id = ? AND period = ? AND subject_id = ? AND id = ?"
);

/// Moves the sums; nothing at all when they are gone with their meter. When only some are, another state of the database
/// was put back since they were added up, and nothing is changed.
pub fn apply(conn: &mut Conn, settled: &Settled) -> Result<(), DbError> {
    let ids = integers(&settled.deltas);
    let delete = format!("DELETE FROM rollup_deltas WHERE meter_id = $1 AND id IN ({ids})");
    let gone = sql_query(delete).bind::<BigInt, _>(settled.meter_id).execute(conn)?;
    if gone == 0 {
        return Ok(());
    }
    if gone != settled.deltas.len() || delete_runs(conn, settled)? != settled.replaced.len() {
        return Err(Error::unavailable("the sums to settle are others than before").into());
    }
    add_runs(conn, settled)?;
    subject_counts::settle(conn, settled.meter_id, &settled.counts)
}

fn delete_runs(conn: &mut Conn, settled: &Settled) -> Result<usize, DbError> {
    let (meter_id, replaced) = (&settled.meter_id, &settled.replaced);
    Ok(match conn {
        Conn::Postgres(c) => DeleteRuns {
            meter_id,
            periods: &replaced.iter().map(|((period, _), _)| *period).collect(),
            subject_ids: &replaced.iter().map(|((_, subject_id), _)| *subject_id).collect(),
            ids: &replaced.iter().map(|(_, id)| *id).collect(),
        }
        .execute(c)?,
        Conn::Sqlite(c) => {
            let mut gone = 0;
            for ((period, subject_id), id) in replaced {
                gone += DeleteRun { meter_id, period, subject_id, id }.execute(c)?;
            }
            gone
        }
    })
}

fn add_runs(conn: &mut Conn, settled: &Settled) -> Result<(), DbError> {
    let (meter_id, runs) = (&settled.meter_id, &settled.runs);
    match conn {
        Conn::Postgres(c) => {
            AddRuns {
                meter_id,
                periods: &runs.iter().map(|run| run.owner.0).collect(),
                subject_ids: &runs.iter().map(|run| run.owner.1).collect(),
                ids: &runs.iter().map(|run| run.id).collect(),
                first_starts: &runs.iter().map(|run| run.first_start).collect(),
                last_starts: &runs.iter().map(|run| run.last_start).collect(),
                cell_counts: &runs.iter().map(|run| run.cell_count).collect(),
                days: &runs.iter().map(Run::packed_days).collect(),
                day_facets: &runs.iter().map(Run::day_facets).collect(),
                facet_days: &runs.iter().map(Run::packed_facet_days).collect(),
                cells: &runs.iter().map(|run| run.cells.as_slice()).collect(),
            }
            .execute(c)?;
        }
        Conn::Sqlite(c) => {
            for run in runs {
                let Run {
                    owner: (period, subject_id), id, first_start, last_start, cell_count, cells, ..
                } = run;
                let (days, day_facets) = (&run.packed_days(), &run.day_facets());
                let facet_days = &run.packed_facet_days();
                AddRun {
                    meter_id,
                    period,
                    subject_id,
                    id,
                    first_start,
                    last_start,
                    cell_count,
                    days,
                    day_facets,
                    facet_days,
                    cells,
                }
                .execute(c)?;
            }
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::db::statement::{Statement, plan};
    use crate::metering::facet::Group;
    use crate::metering::quantity::Quantity;
    use crate::metering::rollup::Part;

    /// Values of dimensions may be long.
    #[test]
    fn what_is_put_together_at_once_is_bounded_in_bytes() {
        let (_directory, mut conn) = plan::empty_database();
        let fill = format!(
            "INSERT INTO rollup_subjects (meter_id, period, subject_id, id, first_start, last_start, cell_count, cells)
             SELECT 1, 0, value, value, 0, 0, 1, zeroblob({}) FROM json_each('[3, 4, 5]')",
            MERGED_BYTES_MAX / 2
        );
        sql_query(fill).execute(&mut conn).expect("three runs");
        let part = Part::of(Timestamp(0), uuid::Uuid::nil(), &Quantity::from(1));
        let group = Group { version: 1, values: "{}".to_owned() };
        let cells = Cells::from([(group, Series::from_iter([(Timestamp(0), part)]))]);
        let subjects = BTreeMap::from([3, 4, 5].map(|subject_id| (subject_id, cells.clone())));
        let (deltas, replaced, runs) = (Vec::new(), Vec::new(), Vec::new());
        let settled = Settled { meter_id: 1, deltas, replaced, runs, counts: Counts::new(), is_part: false };
        let mut bytes_left = MERGED_BYTES_MAX;
        for found in [2, 0] {
            let merged = settled.to_merge(&mut conn, 0, &subjects, &mut bytes_left).expect("runs");
            assert_eq!(merged.values().map(Vec::len).sum::<usize>(), found);
        }
    }

    #[test]
    fn runs_are_searched_for_by_their_subjects_alone() {
        let (_directory, mut conn) = plan::empty_database();
        let mut statement = Statement::new(&conn);
        let _ = (statement.int(1), statement.int(2));
        let sql = runs_with_cells(&runs_of_period(&[3, 4]), &[5, 6]);
        let plan = plan::of(statement, &mut conn, &sql);
        assert!(plan.contains("(meter_id=? AND period=? AND subject_id=?)"), "{plan}");
    }
}
