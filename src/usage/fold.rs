//! Folds what commits added to a meter into its rows per day and facet, and puts what they added to subjects together in
//! fewer rows, to be settled (`usage::settle`). A transaction moves sums from one table to the other, so whoever reads both
//! at one instant finds everything once, folded or not; nobody waits for it.

use std::collections::BTreeMap;

use diesel::prelude::*;
use diesel::sql_query;
use diesel::sql_types::{Array, BigInt, Binary, Bool, Integer, Nullable, Text};

use crate::db::columns::readable;
use crate::db::identity::new_id;
use crate::db::prepared::prepared;
use crate::db::schema::rollup_deltas;
use crate::db::statement::{Statement, integers};
use crate::db::{Conn, DbError};
use crate::error::Error;
use crate::metering::delta::{self, Counts, SubjectCells};
use crate::metering::facet::{self, CELLS_MAX, Cells, Facet, Projected, QUARTER, QUARTER_CELLS_MAX};
use crate::metering::time::{DAY, HOUR, Timestamp};
use crate::meters;

/// Commits, and cells of them, that are folded in one go: each may touch rows of a day of its own.
const DELTAS_AT_ONCE: i64 = 256;
const CELLS_AT_ONCE: usize = 65_536;
/// Packed, of commits: callers choose how long the values of dimensions are.
const BYTES_AT_ONCE: i64 = 16 << 20;
/// Of one row of packed cells; with more it is given up as if it had too many.
const PACKED_BYTES_MAX: usize = 1 << 20;
/// A day with fewer cells is kept by all dimensions only: projecting them while reading costs no more than finding a
/// smaller row, and rows of few cells do not pay.
const CELLS_OF_A_LONE_DAY: usize = 64;
/// First half of the PostgreSQL advisory lock of whoever folds a meter; the second half is made of its id.
const FOLD_LOCK: i32 = 0x666F_6C00;

#[derive(QueryableByName)]
struct Lock {
    #[diesel(sql_type = Bool)]
    taken: bool,
}

#[derive(QueryableByName)]
pub(super) struct DeltaSize {
    #[diesel(sql_type = BigInt)]
    id: i64,
    #[diesel(sql_type = BigInt)]
    bytes: i64,
}

#[derive(QueryableByName)]
struct DeltaRow {
    #[diesel(sql_type = BigInt)]
    id: i64,
    #[diesel(sql_type = Binary)]
    cells: Vec<u8>,
    #[diesel(sql_type = Binary)]
    subjects: Vec<u8>,
    #[diesel(sql_type = Binary)]
    counts: Vec<u8>,
}

#[derive(QueryableByName)]
struct FacetRow {
    #[diesel(sql_type = Text)]
    facet: String,
    #[diesel(sql_type = Nullable<Binary>)]
    day_cells: Option<Vec<u8>>,
    #[diesel(sql_type = Nullable<Binary>)]
    hour_cells: Option<Vec<u8>>,
    #[diesel(sql_type = Nullable<Binary>)]
    quarter_cells: Option<Vec<u8>>,
}

#[derive(QueryableByName)]
struct MeterRow {
    #[diesel(sql_type = BigInt)]
    meter_id: i64,
}

prepared!(
    PutFacets for diesel::PgConnection,
    (meter_id: BigInt = i64, day: BigInt = i64, is_alone: Bool = bool, facets: Array<Text> = Vec<&'a str>,
     day_cells: Array<Nullable<Binary>> = Vec<Option<&'a [u8]>>, hour_cells: Array<Nullable<Binary>> = Vec<Option<&'a [u8]>>,
     quarter_cells: Array<Nullable<Binary>> = Vec<Option<&'a [u8]>>),
    "INSERT INTO rollup_facets (meter_id, day, is_alone, facet, day_cells, hour_cells, quarter_cells)
     SELECT ?, ?, ?, facet, day_cells, hour_cells, quarter_cells
     FROM unnest(?, ?, ?, ?) AS new (facet, day_cells, hour_cells, quarter_cells)
     ON CONFLICT (meter_id, facet, day) DO UPDATE SET is_alone = excluded.is_alone,
         day_cells = excluded.day_cells, hour_cells = excluded.hour_cells, quarter_cells = excluded.quarter_cells"
);
prepared!(
    PutFacet for diesel::SqliteConnection,
    (meter_id: BigInt = i64, day: BigInt = i64, is_alone: Bool = bool, facet: Text = String, day_cells: Nullable<Binary> = Option<Vec<u8>>,
     hour_cells: Nullable<Binary> = Option<Vec<u8>>, quarter_cells: Nullable<Binary> = Option<Vec<u8>>),
    "INSERT INTO rollup_facets (meter_id, day, is_alone, facet, day_cells, hour_cells, quarter_cells)
     VALUES (?, ?, ?, ?, ?, ?, ?)
     ON CONFLICT (meter_id, facet, day) DO UPDATE SET is_alone = excluded.is_alone,
         day_cells = excluded.day_cells, hour_cells = excluded.hour_cells, quarter_cells = excluded.quarter_cells"
);

/// Meters with something to fold or to settle.
pub fn waiting(conn: &mut Conn) -> Result<Vec<i64>, DbError> {
    let rows: Vec<MeterRow> = sql_query("SELECT DISTINCT meter_id FROM rollup_deltas").load(conn)?;
    Ok(rows.into_iter().map(|row| row.meter_id).collect())
}

/// What folding the oldest commits of a meter comes to.
pub struct Folded {
    meter_id: i64,
    deltas: Vec<i64>,
    days: Vec<Day>,
    unsettled: Vec<Unsettled>,
    /// There may be more.
    pub is_part: bool,
}

/// The rows of one day as they will be.
struct Day {
    start: Timestamp,
    is_alone: bool,
    rows: Vec<(String, Packed)>,
}

struct Packed {
    day_cells: Option<Vec<u8>>,
    hour_cells: Option<Vec<u8>>,
    quarter_cells: Option<Vec<u8>>,
}

/// Folds the oldest commits of a meter in one transaction; whether there may be more. Somebody else at it counts as
/// done. For PostgreSQL: on SQLite the others would wait while sums are added up.
pub fn fold(conn: &mut Conn, meter_id: i64) -> Result<bool, DbError> {
    if !lock(conn, meter_id)? {
        return Ok(false);
    }
    match prepare(conn, meter_id)? {
        Some(folded) => apply(conn, &folded).map(|()| folded.is_part),
        None => Ok(false),
    }
}

/// Adds up; `None` when there is nothing to fold. Whoever applies it must be the only one who folds this meter.
pub fn prepare(conn: &mut Conn, meter_id: i64) -> Result<Option<Folded>, DbError> {
    let Some(meter) = meters::sql::find_by_id(conn, meter_id)? else { return Ok(None) };
    let (deltas, has_more) = oldest_deltas(conn, meter_id)?;
    let (mut added, mut count) = (Cells::new(), 0);
    let (mut folded, mut unsettled) = (Vec::with_capacity(deltas.len()), Pieces::default());
    for delta in &deltas {
        // what cannot be read stays where it is, to be named by whoever reads it
        if let Some((cells, counts)) = readable("rollup_deltas", delta.id, unpacked_delta(delta)) {
            facet::add_all(&mut added, &cells, QUARTER);
            count += facet::count(&cells);
            folded.push(delta.id);
            unsettled.add(&delta.subjects, &counts);
        }
        if count > CELLS_AT_ONCE {
            break;
        }
    }
    if folded.is_empty() {
        return Ok(None);
    }
    let kept = Facet::kept(&meter);
    let days = facet::by_day(added).into_iter();
    let mut known = Projected::by(&kept);
    let days = days.map(|(day, cells)| fold_day(conn, meter_id, day, &kept, &cells, &mut known));
    let days = days.collect::<Result<Vec<Day>, DbError>>()?;
    let is_part = count > CELLS_AT_ONCE || has_more;
    Ok(Some(Folded { meter_id, deltas: folded, days, unsettled: unsettled.into_rows(), is_part }))
}

fn unpacked_delta(delta: &DeltaRow) -> Result<(Cells, Counts), DbError> {
    let unreadable = || DbError::from(Error::internal("packed counts cannot be read"));
    if SubjectCells::each(&delta.subjects).any(|entry| entry.is_none()) {
        return Err(unreadable());
    }
    Ok((unpacked(&delta.cells)?, delta::unpack_counts(&delta.counts).ok_or_else(unreadable)?))
}

/// What commits added to subjects, in a row that takes the place of many.
struct Unsettled {
    id: i64,
    subjects: Vec<u8>,
    counts: Vec<u8>,
}

/// Rows of so many bytes are settled one by one.
const UNSETTLED_BYTES: usize = 256 << 10;

#[derive(Default)]
struct Pieces {
    full: Vec<Vec<u8>>,
    last: Vec<u8>,
    counts: Counts,
}

impl Pieces {
    fn add(&mut self, subjects: &[u8], counts: &Counts) {
        self.last.extend_from_slice(subjects);
        if self.last.len() >= UNSETTLED_BYTES {
            self.full.push(std::mem::take(&mut self.last));
        }
        delta::add_counts(&mut self.counts, counts);
    }

    /// All counts go with the first.
    fn into_rows(mut self) -> Vec<Unsettled> {
        self.full.push(self.last);
        let mut counts = delta::pack_counts(&self.counts);
        let row = |subjects| Unsettled { id: new_id(), subjects, counts: std::mem::take(&mut counts) };
        self.full
            .into_iter()
            .map(row)
            .filter(|row| !row.subjects.is_empty() || !row.counts.is_empty())
            .collect()
    }
}

/// As many commits as are folded in one go, and whether there are more.
fn oldest_deltas(conn: &mut Conn, meter_id: i64) -> Result<(Vec<DeltaRow>, bool), DbError> {
    let text = "SELECT id, CAST(length(cells) AS BIGINT) AS bytes FROM rollup_deltas
                WHERE meter_id = $1 AND cells IS NOT NULL ORDER BY id LIMIT $2";
    let query = sql_query(text).bind::<BigInt, _>(meter_id);
    let found: Vec<DeltaSize> = query.bind::<BigInt, _>(DELTAS_AT_ONCE).load(conn)?;
    let ids = fitting(&found, BYTES_AT_ONCE);
    if ids.is_empty() {
        return Ok((Vec::new(), false));
    }
    let has_more = ids.len() < found.len() || found.len() as i64 == DELTAS_AT_ONCE;
    let ids = integers(&ids);
    let text = format!(
        "SELECT id, cells, subjects, counts FROM rollup_deltas WHERE meter_id = $1 AND id IN ({ids}) ORDER BY id"
    );
    Ok((sql_query(text).bind::<BigInt, _>(meter_id).load(conn)?, has_more))
}

/// The first of them that have so many bytes together.
pub(super) fn fitting(found: &[DeltaSize], most: i64) -> Vec<i64> {
    let mut bytes = 0;
    let mut fits = |delta: &&DeltaSize| {
        // the first always, however large
        let fits = bytes == 0 || bytes + delta.bytes <= most;
        bytes += delta.bytes;
        fits
    };
    found.iter().take_while(&mut fits).map(|delta| delta.id).collect()
}

/// Moves the sums; nothing at all when their commits are gone with their meter. When only some are, another state of
/// the database was put back since they were added up, and nothing is changed.
pub fn apply(conn: &mut Conn, folded: &Folded) -> Result<(), DbError> {
    let ids = integers(&folded.deltas);
    let delete = format!("DELETE FROM rollup_deltas WHERE meter_id = $1 AND id IN ({ids})");
    let gone = sql_query(delete).bind::<BigInt, _>(folded.meter_id).execute(conn)?;
    match gone {
        0 => Ok(()),
        all if all == folded.deltas.len() => {
            folded.days.iter().try_for_each(|day| put(conn, folded.meter_id, day))?;
            add_unsettled(conn, folded.meter_id, &folded.unsettled)
        }
        _ => Err(Error::unavailable("the sums to fold are others than before").into()),
    }
}

fn add_unsettled(conn: &mut Conn, meter_id: i64, rows: &[Unsettled]) -> Result<(), DbError> {
    for Unsettled { id, subjects, counts } in rows {
        let row = (
            rollup_deltas::meter_id.eq(meter_id),
            rollup_deltas::id.eq(id),
            rollup_deltas::subjects.eq(subjects),
            rollup_deltas::counts.eq(counts),
        );
        crate::both!(conn, c => diesel::insert_into(rollup_deltas::table).values(row).execute(c)?);
    }
    Ok(())
}

/// Of events that were pruned: what is kept of their subjects says how many are stored. In the transaction that deletes
/// them.
pub fn uncount(conn: &mut Conn, meter_id: i64, pruned: &Counts) -> Result<(), DbError> {
    let counts = delta::pack_counts(pruned);
    add_unsettled(conn, meter_id, &[Unsettled { id: new_id(), subjects: Vec::new(), counts }])
}

/// One at a time per meter; and nobody deletes the meter meanwhile. SQLite has one writer anyway.
pub(super) fn lock(conn: &mut Conn, meter_id: i64) -> Result<bool, DbError> {
    if !conn.is_postgres() {
        return Ok(true);
    }
    let text =
        "SELECT pg_try_advisory_xact_lock($1, half) AND pg_try_advisory_xact_lock_shared($2, half) AS taken
                FROM (SELECT ($3 % 2147483647)::int AS half) AS halves";
    let query = sql_query(text).bind::<Integer, _>(FOLD_LOCK).bind::<Integer, _>(meters::sql::METER_LOCK);
    Ok(query.bind::<BigInt, _>(meter_id).get_result::<Lock>(conn)?.taken)
}

fn unpacked(bytes: &[u8]) -> Result<Cells, DbError> {
    facet::unpack(bytes).ok_or_else(|| Error::internal("packed sums cannot be read").into())
}

/// Sums of a day by one facet; `None` where there are too many to keep.
#[derive(Clone)]
struct Sums {
    by_day: Option<Cells>,
    by_hour: Option<Cells>,
    by_quarter: Option<Cells>,
}

impl Sums {
    fn nothing() -> Sums {
        let empty = || Some(Cells::new());
        Sums { by_day: empty(), by_hour: empty(), by_quarter: empty() }
    }

    /// What cannot be read is given up: the rows of every subject answer instead.
    fn of(row: &FacetRow, day: Timestamp) -> Sums {
        let cells = |bytes: &Option<Vec<u8>>| readable("rollup_facets", day.0, unpacked(bytes.as_deref()?));
        Sums {
            by_day: cells(&row.day_cells),
            by_hour: cells(&row.hour_cells),
            by_quarter: cells(&row.quarter_cells),
        }
    }

    fn add(&mut self, more: &Cells) {
        let kept = [
            (&mut self.by_day, DAY, CELLS_MAX),
            (&mut self.by_hour, HOUR, CELLS_MAX),
            (&mut self.by_quarter, QUARTER, QUARTER_CELLS_MAX),
        ];
        for (cells, width, most) in kept {
            if let Some(sums) = cells {
                facet::add_all(sums, more, width);
                if facet::count(sums) > most {
                    *cells = None;
                }
            }
        }
    }

    fn packed(&self) -> Packed {
        let packed = |cells: &Option<Cells>| {
            cells.as_ref().map(facet::pack).filter(|bytes| bytes.len() <= PACKED_BYTES_MAX)
        };
        Packed {
            day_cells: packed(&self.by_day),
            hour_cells: packed(&self.by_hour),
            quarter_cells: packed(&self.by_quarter),
        }
    }

    fn project(&self, facet: &Facet, known: &mut Projected) -> Sums {
        let mut project = |cells: &Option<Cells>| facet::project(cells.as_ref()?, facet, known);
        Sums {
            by_day: project(&self.by_day),
            by_hour: project(&self.by_hour),
            by_quarter: project(&self.by_quarter),
        }
    }
}

/// Adds to every facet that the day has, also to those that are no longer kept: a dimension may come back. One that is
/// new begins with what the day has by all dimensions.
fn fold_day(
    conn: &mut Conn,
    meter_id: i64,
    day: Timestamp,
    kept: &[Facet],
    added: &Cells,
    known: &mut Projected,
) -> Result<Day, DbError> {
    let mut statement = Statement::new(conn);
    let (meter, start) = (statement.int(meter_id), statement.int(day.0));
    let sql = format!(
        "SELECT facet, day_cells, hour_cells, quarter_cells FROM rollup_facets
         WHERE meter_id = {meter} AND day = {start}"
    );
    let rows: Vec<FacetRow> = statement.load(conn, &sql)?;
    let mut sums: BTreeMap<String, Sums> = BTreeMap::new();
    for row in &rows {
        sums.insert(row.facet.clone(), Sums::of(row, day));
    }
    let all = Facet::All.name();
    if rows.iter().all(|row| row.facet == all)
        && let Some(alone) = lone_day(sums.get(&all), added)
    {
        return Ok(Day { start: day, is_alone: true, rows: vec![(all, alone.packed())] });
    }
    let mut facets: Vec<Facet> = rows.iter().map(|row| Facet::named(&row.facet)).collect();
    for facet in kept {
        let name = facet.name();
        if !sums.contains_key(&name) {
            let begun = match sums.get(&all) {
                Some(before) => before.project(facet, known),
                None => Sums::nothing(),
            };
            // never the sums that this fold adds: `All` is added to last
            sums.insert(name, begun);
            facets.push(facet.clone());
        }
    }
    for facet in &facets {
        let Some(sums) = sums.get_mut(&facet.name()) else { continue };
        match facet::project(added, facet, known) {
            Some(more) => sums.add(&more),
            None => *sums = Sums { by_day: None, by_hour: None, by_quarter: None },
        }
    }
    let rows = sums.into_iter().map(|(facet, sums)| (facet, sums.packed())).collect();
    Ok(Day { start: day, is_alone: false, rows })
}

/// The sums of a day by all dimensions, when that is all that it has and they stay few.
fn lone_day(before: Option<&Sums>, added: &Cells) -> Option<Sums> {
    let mut sums = before.map_or_else(Sums::nothing, Sums::clone);
    sums.add(added);
    let is_small = sums.by_hour.as_ref().is_some_and(|cells| facet::count(cells) <= CELLS_OF_A_LONE_DAY);
    is_small.then_some(sums)
}

fn put(conn: &mut Conn, meter_id: i64, day: &Day) -> Result<(), DbError> {
    let Day { start: Timestamp(start), is_alone, rows } = day;
    match conn {
        Conn::Postgres(c) => {
            PutFacets {
                meter_id: &meter_id,
                day: start,
                is_alone,
                facets: &rows.iter().map(|(facet, _)| facet.as_str()).collect(),
                day_cells: &rows.iter().map(|(_, packed)| packed.day_cells.as_deref()).collect(),
                hour_cells: &rows.iter().map(|(_, packed)| packed.hour_cells.as_deref()).collect(),
                quarter_cells: &rows.iter().map(|(_, packed)| packed.quarter_cells.as_deref()).collect(),
            }
            .execute(c)?;
        }
        Conn::Sqlite(c) => {
            for (facet, Packed { day_cells, hour_cells, quarter_cells }) in rows {
                let meter_id = &meter_id;
                PutFacet { meter_id, day: start, is_alone, facet, day_cells, hour_cells, quarter_cells }
                    .execute(c)?;
            }
        }
    }
    Ok(())
}
