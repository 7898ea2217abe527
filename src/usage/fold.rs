//! Folds what commits added to a meter into its rows per day and facet. A transaction moves sums from one table to the
//! other, so whoever reads both at one instant finds everything once, folded or not; nobody waits for it.

use std::collections::BTreeMap;

use diesel::prelude::*;
use diesel::sql_query;
use diesel::sql_types::{Array, BigInt, Binary, Bool, Integer, Nullable, Text};

use crate::db::columns::readable;
use crate::db::prepared::prepared;
use crate::db::statement::{Statement, integers};
use crate::db::{Conn, DbError};
use crate::error::Error;
use crate::metering::facet::{self, CELLS_MAX, Cells, Facet};
use crate::metering::time::{DAY, HOUR, Timestamp};
use crate::meters;

/// Commits that are folded in one go.
const DELTAS_AT_ONCE: i64 = 256;
/// First half of the PostgreSQL advisory lock of whoever folds a meter; the second half is made of its id.
const FOLD_LOCK: i32 = 0x666F_6C00;

#[derive(QueryableByName)]
struct Lock {
    #[diesel(sql_type = Bool)]
    taken: bool,
}

#[derive(QueryableByName)]
struct DeltaRow {
    #[diesel(sql_type = BigInt)]
    id: i64,
    #[diesel(sql_type = Binary)]
    cells: Vec<u8>,
}

#[derive(QueryableByName)]
struct FacetRow {
    #[diesel(sql_type = Text)]
    facet: String,
    #[diesel(sql_type = Nullable<Binary>)]
    day_cells: Option<Vec<u8>>,
    #[diesel(sql_type = Nullable<Binary>)]
    hour_cells: Option<Vec<u8>>,
}

#[derive(QueryableByName)]
struct MeterRow {
    #[diesel(sql_type = BigInt)]
    meter_id: i64,
}

prepared!(
    PutFacets for diesel::PgConnection,
    (meter_id: BigInt = i64, day: BigInt = i64, facets: Array<Text> = Vec<&'a str>,
     day_cells: Array<Nullable<Binary>> = Vec<Option<Vec<u8>>>, hour_cells: Array<Nullable<Binary>> = Vec<Option<Vec<u8>>>),
    "INSERT INTO rollup_facets (meter_id, day, facet, day_cells, hour_cells)
     SELECT ?, ?, facet, day_cells, hour_cells FROM unnest(?, ?, ?) AS new (facet, day_cells, hour_cells)
     ON CONFLICT (meter_id, facet, day) DO UPDATE SET day_cells = excluded.day_cells, hour_cells = excluded.hour_cells"
);
prepared!(
    PutFacet for diesel::SqliteConnection,
    (meter_id: BigInt = i64, day: BigInt = i64, facet: Text = &'a str, day_cells: Nullable<Binary> = Option<Vec<u8>>,
     hour_cells: Nullable<Binary> = Option<Vec<u8>>),
    "INSERT INTO rollup_facets (meter_id, day, facet, day_cells, hour_cells) VALUES (?, ?, ?, ?, ?)
     ON CONFLICT (meter_id, facet, day) DO UPDATE SET day_cells = excluded.day_cells, hour_cells = excluded.hour_cells"
);

/// Meters with something to fold.
pub fn waiting(conn: &mut Conn) -> Result<Vec<i64>, DbError> {
    let rows: Vec<MeterRow> = sql_query("SELECT DISTINCT meter_id FROM rollup_deltas").load(conn)?;
    Ok(rows.into_iter().map(|row| row.meter_id).collect())
}

/// Folds the oldest commits of a meter; whether there may be more. Somebody else at it counts as done.
pub fn fold(conn: &mut Conn, meter_id: i64) -> Result<bool, DbError> {
    if !lock(conn, meter_id)? {
        return Ok(false);
    }
    let Some(meter) = meters::sql::find_by_id(conn, meter_id)? else {
        sql_query("DELETE FROM rollup_deltas WHERE meter_id = $1")
            .bind::<BigInt, _>(meter_id)
            .execute(conn)?;
        return Ok(false);
    };
    let text = "SELECT id, cells FROM rollup_deltas WHERE meter_id = $1 ORDER BY id LIMIT $2";
    let query = sql_query(text).bind::<BigInt, _>(meter_id);
    let deltas: Vec<DeltaRow> = query.bind::<BigInt, _>(DELTAS_AT_ONCE).load(conn)?;
    let mut added = Cells::new();
    let mut folded = Vec::with_capacity(deltas.len());
    for delta in &deltas {
        // what cannot be read stays where it is, to be named by whoever reads it
        if let Some(cells) = readable("rollup_deltas", delta.id, unpacked(&delta.cells)) {
            facet::add_all(&mut added, &cells, HOUR);
            folded.push(delta.id);
        }
    }
    if folded.is_empty() {
        return Ok(false);
    }
    let kept = Facet::kept(&meter);
    for (day, cells) in facet::by_day(added) {
        fold_day(conn, meter_id, day, &kept, &cells)?;
    }
    let delete = format!("DELETE FROM rollup_deltas WHERE meter_id = $1 AND id IN ({})", integers(&folded));
    sql_query(delete).bind::<BigInt, _>(meter_id).execute(conn)?;
    Ok(deltas.len() as i64 == DELTAS_AT_ONCE)
}

/// One at a time per meter; and nobody deletes the meter meanwhile. SQLite has one writer anyway.
fn lock(conn: &mut Conn, meter_id: i64) -> Result<bool, DbError> {
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
struct Sums {
    by_day: Option<Cells>,
    by_hour: Option<Cells>,
}

impl Sums {
    /// What cannot be read is given up: the rows of every subject answer instead.
    fn of(row: &FacetRow, day: Timestamp) -> Sums {
        let cells = |bytes: &Option<Vec<u8>>| readable("rollup_facets", day.0, unpacked(bytes.as_deref()?));
        Sums { by_day: cells(&row.day_cells), by_hour: cells(&row.hour_cells) }
    }

    fn add(&mut self, more: &Cells) {
        for (cells, width) in [(&mut self.by_day, DAY), (&mut self.by_hour, HOUR)] {
            if let Some(sums) = cells {
                facet::add_all(sums, more, width);
                if facet::count(sums) > CELLS_MAX {
                    *cells = None;
                }
            }
        }
    }

    fn project(&self, facet: &Facet) -> Sums {
        let project = |cells: &Option<Cells>| facet::project(cells.as_ref()?, facet);
        Sums { by_day: project(&self.by_day), by_hour: project(&self.by_hour) }
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
) -> Result<(), DbError> {
    let mut statement = Statement::new(conn);
    let (meter, start) = (statement.int(meter_id), statement.int(day.0));
    let sql = format!(
        "SELECT facet, day_cells, hour_cells FROM rollup_facets WHERE meter_id = {meter} AND day = {start}"
    );
    let rows: Vec<FacetRow> = statement.load(conn, &sql)?;
    let mut sums: BTreeMap<String, Sums> = BTreeMap::new();
    for row in &rows {
        sums.insert(row.facet.clone(), Sums::of(row, day));
    }
    let all = Facet::All.name();
    let mut facets: Vec<Facet> = rows.iter().map(|row| Facet::named(&row.facet)).collect();
    for facet in kept {
        let name = facet.name();
        if !sums.contains_key(&name) {
            let begun = match sums.get(&all) {
                Some(before) => before.project(facet),
                None => Sums { by_day: Some(Cells::new()), by_hour: Some(Cells::new()) },
            };
            // never the sums that this fold adds: `All` is added to last
            sums.insert(name, begun);
            facets.push(facet.clone());
        }
    }
    for facet in &facets {
        let Some(sums) = sums.get_mut(&facet.name()) else { continue };
        match facet::project(added, facet) {
            Some(more) => sums.add(&more),
            None => *sums = Sums { by_day: None, by_hour: None },
        }
    }
    put(conn, meter_id, day, &sums)
}

fn put(conn: &mut Conn, meter_id: i64, day: Timestamp, sums: &BTreeMap<String, Sums>) -> Result<(), DbError> {
    let packed = |cells: &Option<Cells>| cells.as_ref().map(facet::pack);
    match conn {
        Conn::Postgres(c) => {
            PutFacets {
                meter_id: &meter_id,
                day: &day.0,
                facets: &sums.keys().map(String::as_str).collect(),
                day_cells: &sums.values().map(|sums| packed(&sums.by_day)).collect(),
                hour_cells: &sums.values().map(|sums| packed(&sums.by_hour)).collect(),
            }
            .execute(c)?;
        }
        Conn::Sqlite(c) => {
            for (facet, sums) in sums {
                PutFacet {
                    meter_id: &meter_id,
                    day: &day.0,
                    facet: &facet.as_str(),
                    day_cells: &packed(&sums.by_day),
                    hour_cells: &packed(&sums.by_hour),
                }
                .execute(c)?;
            }
        }
    }
    Ok(())
}
