//! Meter definitions and the memory of them. Definitions change rarely and are needed by every write, so they are
//! cached for a moment; a write checks their version again inside its transaction.

use std::sync::Arc;
use std::time::Duration;

use diesel::prelude::*;
use diesel::sql_types::{BigInt, Integer, Text};

use crate::both;
use crate::db::changes::Change;
use crate::db::columns::readable;
use crate::db::identity::new_id;
use crate::db::row_cache::RowCache;
use crate::db::schema::{
    dimension_sets, events, meters, rollup_deltas, rollup_facets, rollup_subjects, rollups,
};
use crate::db::{Conn, DbError, Store, audit, limits};
use crate::error::{Error, Result};
use crate::metering::meter::{Aggregation, Dimension, Meter, MeterOptions};
use crate::metering::time::Timestamp;

/// First half of the PostgreSQL advisory lock on a meter; the second half is made of its id. Writers share it until they
/// commit, whoever changes or deletes the meter holds it alone.
pub const METER_LOCK: i32 = 0x6D74_7200;

#[derive(Queryable, QueryableByName, Selectable)]
#[diesel(table_name = meters)]
struct Row {
    id: i64,
    public_id: String,
    workspace_id: i64,
    name: String,
    description: String,
    unit: String,
    aggregation: String,
    dimensions: String,
    options: String,
    version: i32,
    event_retention_days: i32,
    pruned_before: Option<i64>,
    created_at: i64,
}

impl Row {
    fn into_meter(self) -> Result<Meter, DbError> {
        let dimensions: Vec<Dimension> = serde_json::from_str(&self.dimensions).map_err(Error::internal)?;
        Ok(Meter {
            id: self.id,
            public_id: self.public_id,
            workspace_id: self.workspace_id,
            name: self.name,
            description: self.description,
            unit: self.unit,
            aggregation: Aggregation::parse(&self.aggregation)?,
            dimensions,
            options: serde_json::from_str(&self.options).map_err(Error::internal)?,
            version: self.version,
            event_retention_days: self.event_retention_days,
            pruned_before: self.pruned_before.map(Timestamp),
            created_at: Timestamp(self.created_at),
        })
    }
}

#[derive(Insertable)]
#[diesel(table_name = meters, treat_none_as_default_value = false)]
struct NewRow<'a> {
    id: i64,
    public_id: &'a str,
    workspace_id: i64,
    name: &'a str,
    description: &'a str,
    unit: &'a str,
    aggregation: &'static str,
    dimensions: String,
    options: String,
    version: i32,
    event_retention_days: i32,
    created_at: i64,
}

fn dimensions_text(dimensions: &[Dimension]) -> Result<String, DbError> {
    serde_json::to_string(dimensions).map_err(|error| Error::internal(error).into())
}

fn options_text(options: &MeterOptions) -> Result<String, DbError> {
    serde_json::to_string(options).map_err(|error| Error::internal(error).into())
}

/// What the audit trail keeps of a meter.
fn shown(meter: &Meter) -> audit::Shown {
    serde_json::json!({"name": meter.name, "description": meter.description, "unit": meter.unit,
        "aggregation": meter.aggregation, "dimensions": meter.dimensions, "options": meter.options,
        "event_retention_days": meter.event_retention_days})
}

/// Stores a new meter (its `id` is ignored) and returns it with its id; 409 when the name is taken.
pub fn add(conn: &mut Conn, meter: &Meter) -> Result<Meter, DbError> {
    limits::check(conn, limits::Kind::Meter, meter.workspace_id)?;
    let row = NewRow {
        id: new_id(),
        public_id: &meter.public_id,
        workspace_id: meter.workspace_id,
        name: &meter.name,
        description: &meter.description,
        unit: &meter.unit,
        aggregation: meter.aggregation.as_str(),
        dimensions: dimensions_text(&meter.dimensions)?,
        options: options_text(&meter.options)?,
        version: meter.version,
        event_retention_days: meter.event_retention_days,
        created_at: meter.created_at.0,
    };
    let added: Result<i64, DbError> = diesel::insert_into(meters::table)
        .values(&row)
        .returning(meters::id)
        .get_result(conn)
        .map_err(DbError::from);
    match added {
        Ok(id) => {
            audit::about(&meter.public_id, &meter.name);
            audit::states(None, Some(shown(meter)));
            Ok(Meter { id, ..meter.clone() })
        }
        Err(fault) if fault.violates("meters_workspace_name_key") => {
            Err(Error::conflict(format!("a meter named {:?} exists", meter.name)).into())
        }
        Err(fault) => Err(fault),
    }
}

pub fn find_by_name(conn: &mut Conn, workspace_id: i64, name: &str) -> Result<Option<Meter>, DbError> {
    let row: Option<Row> = meters::table
        .filter(meters::workspace_id.eq(workspace_id).and(meters::name.eq(name)))
        .select(Row::as_select())
        .first(conn)
        .optional()?;
    row.map(Row::into_meter).transpose()
}

pub fn find_by_public_id(
    conn: &mut Conn,
    workspace_id: i64,
    public_id: &str,
) -> Result<Option<Meter>, DbError> {
    let row: Option<Row> = meters::table
        .filter(meters::workspace_id.eq(workspace_id).and(meters::public_id.eq(public_id)))
        .select(Row::as_select())
        .first(conn)
        .optional()?;
    row.map(Row::into_meter).transpose()
}

/// By its id or, where no meter has it, by its name.
pub fn find_by_word(conn: &mut Conn, workspace_id: i64, word: &str) -> Result<Option<Meter>, DbError> {
    // two look-ups in one statement; with OR, all meters of the workspace may be looked at
    let text = "-- meters::find_by_word
        SELECT * FROM meters WHERE workspace_id = $1 AND public_id = $2
        UNION ALL SELECT * FROM meters WHERE workspace_id = $1 AND name = $2";
    let rows: Vec<Row> =
        diesel::sql_query(text).bind::<BigInt, _>(workspace_id).bind::<Text, _>(word).load(conn)?;
    // a meter may be called like the id of another
    let (with_id, with_name): (Vec<Row>, _) = rows.into_iter().partition(|row| row.public_id == word);
    with_id.into_iter().chain(with_name).next().map(Row::into_meter).transpose()
}

/// By the keys that rows of other tables hold, all of one workspace. One that cannot be read is left out like one that is
/// gone.
pub fn find_by_ids(conn: &mut Conn, workspace_id: i64, ids: &[i64]) -> Result<Vec<Meter>, DbError> {
    let rows: Vec<Row> = meters::table
        .filter(meters::workspace_id.eq(workspace_id).and(meters::id.eq_any(ids)))
        .select(Row::as_select())
        .load(conn)?;
    Ok(rows
        .into_iter()
        .filter_map(|row| readable("meters", row.public_id.clone(), row.into_meter()))
        .collect())
}

/// By the key that rows of other tables hold.
pub fn find_by_id(conn: &mut Conn, id: i64) -> Result<Option<Meter>, DbError> {
    let row: Option<Row> = meters::table.find(id).select(Row::as_select()).first(conn).optional()?;
    row.map(Row::into_meter).transpose()
}

/// Meters by name, bytewise ascending, after `after`, at most `limit`.
pub fn list(
    conn: &mut Conn,
    workspace_id: i64,
    name: Option<&str>,
    after: Option<&str>,
    limit: i64,
) -> Result<Vec<Meter>, DbError> {
    let (mut found, mut after) = (Vec::new(), after.map(str::to_owned));
    loop {
        let wanted = limit - found.len() as i64;
        let rows = page(conn, workspace_id, name, after.as_deref(), wanted)?;
        let is_last = (rows.len() as i64) < wanted;
        after = rows.last().map(|row| row.name.clone());
        found.extend(
            rows.into_iter().filter_map(|row| readable("meters", row.public_id.clone(), row.into_meter())),
        );
        if is_last || found.len() as i64 >= limit {
            return Ok(found);
        }
    }
}

fn page(
    conn: &mut Conn,
    workspace_id: i64,
    name: Option<&str>,
    after: Option<&str>,
    limit: i64,
) -> Result<Vec<Row>, DbError> {
    let mut query = meters::table
        .filter(meters::workspace_id.eq(workspace_id))
        .order(meters::name)
        .limit(limit)
        .select(Row::as_select())
        .into_boxed();
    if let Some(name) = name {
        query = query.filter(meters::name.eq(name));
    }
    if let Some(after) = after {
        query = query.filter(meters::name.gt(after));
    }
    Ok(query.load(conn)?)
}

/// What the first meters of a workspace are called, by name.
pub fn names(conn: &mut Conn, workspace_id: i64, limit: i64) -> Result<Vec<String>, DbError> {
    Ok(meters::table
        .filter(meters::workspace_id.eq(workspace_id))
        .order(meters::name)
        .limit(limit)
        .select(meters::name)
        .load(conn)?)
}

/// Keeps writers of this meter out until the transaction ends; SQLite has one writer anyway.
pub fn lock(conn: &mut Conn, meter_id: i64) -> Result<(), DbError> {
    if conn.is_postgres() {
        diesel::sql_query("SELECT pg_advisory_xact_lock($1, ($2 % 2147483647)::int)")
            .bind::<Integer, _>(METER_LOCK)
            .bind::<BigInt, _>(meter_id)
            .execute(conn)?;
    }
    Ok(())
}

fn has_events(conn: &mut Conn, meter_id: i64) -> Result<bool, DbError> {
    let any: Option<i64> = events::table
        .filter(events::meter_id.eq(meter_id))
        .select(events::event_time)
        .first(conn)
        .optional()?;
    Ok(any.is_some())
}

/// A meter before and after a change.
pub struct Changed {
    pub before: Meter,
    pub after: Meter,
}

/// Changes a meter under its lock: `change` gets the current definition and whether events are stored, and returns
/// the new one. `None` when there is no such meter.
pub fn update(
    conn: &mut Conn,
    workspace_id: i64,
    public_id: &str,
    change: impl FnOnce(Meter, bool) -> Result<Meter>,
) -> Result<Option<Changed>, DbError> {
    let Some(found) = find_by_public_id(conn, workspace_id, public_id)? else { return Ok(None) };
    lock(conn, found.id)?;
    // read again: another change may have come between
    let Some(current) = find_by_public_id(conn, workspace_id, public_id)? else { return Ok(None) };
    let has_events = has_events(conn, current.id)?;
    let changed = change(current.clone(), has_events)?;
    diesel::update(meters::table.find(changed.id))
        .set((
            meters::description.eq(&changed.description),
            meters::unit.eq(&changed.unit),
            meters::aggregation.eq(changed.aggregation.as_str()),
            meters::dimensions.eq(dimensions_text(&changed.dimensions)?),
            meters::options.eq(options_text(&changed.options)?),
            meters::version.eq(changed.version),
            meters::event_retention_days.eq(changed.event_retention_days),
        ))
        .execute(conn)?;
    audit::about(&changed.public_id, &changed.name);
    audit::states(Some(shown(&current)), Some(shown(&changed)));
    Ok(Some(Changed { before: current, after: changed }))
}

/// Deletes a meter without events, with its rollups of pruned ones; 409 while events are stored. `refuse_while_used`
/// speaks for those who refer to meters and are not known here; it is asked while nobody can begin to.
/// Its quota counters stay behind: numbers of meters are never used again.
pub fn delete(
    conn: &mut Conn,
    workspace_id: i64,
    public_id: &str,
    refuse_while_used: impl FnOnce(&mut Conn, &Meter) -> Result<(), DbError>,
) -> Result<Option<Meter>, DbError> {
    let Some(meter) = find_by_public_id(conn, workspace_id, public_id)? else { return Ok(None) };
    lock(conn, meter.id)?;
    if has_events(conn, meter.id)? {
        return Err(Error::conflict(format!("meter {:?} has stored events", meter.name)).into());
    }
    refuse_while_used(conn, &meter)?;
    audit::about(&meter.public_id, &meter.name);
    audit::states(Some(shown(&meter)), None);
    both!(conn, c => {
        diesel::delete(rollups::table.filter(rollups::meter_id.eq(meter.id))).execute(c)?;
        diesel::delete(rollup_deltas::table.filter(rollup_deltas::meter_id.eq(meter.id))).execute(c)?;
        diesel::delete(rollup_facets::table.filter(rollup_facets::meter_id.eq(meter.id))).execute(c)?;
        diesel::delete(rollup_subjects::table.filter(rollup_subjects::meter_id.eq(meter.id))).execute(c)?;
        diesel::delete(dimension_sets::table.filter(dimension_sets::meter_id.eq(meter.id))).execute(c)?;
        diesel::delete(meters::table.find(meter.id)).execute(c)?
    });
    Ok(Some(meter))
}

/// Meters by (workspace, name), remembered for a few seconds at most.
#[derive(Clone)]
pub struct MeterCache {
    store: Store,
    meters: Arc<RowCache<(i64, String), Arc<Meter>>>,
}

const CACHED_METERS_MAX: u64 = 50_000;

impl MeterCache {
    pub fn new(store: Store, lifetime: Duration) -> Self {
        let meters = RowCache::new(store.epochs(), CACHED_METERS_MAX, lifetime);
        MeterCache { store, meters: Arc::new(meters) }
    }

    pub async fn get(&self, workspace_id: i64, name: &str) -> Result<Option<Arc<Meter>>> {
        let key = (workspace_id, name.to_owned());
        if let Some(meter) = self.meters.get(&key) {
            return Ok(Some(meter));
        }
        let reading = self.meters.begin();
        let wanted = name.to_owned();
        let found = self
            .store
            .ingestion()
            .read("meters::by_name", move |conn| find_by_name(conn, workspace_id, &wanted))
            .await?;
        Ok(found.map(|meter| {
            let meter = Arc::new(meter);
            self.meters.insert(reading, key, meter.clone());
            meter
        }))
    }

    pub fn forget(&self, workspace_id: i64, name: &str) {
        self.meters.forget([&(workspace_id, name.to_owned())]);
    }

    /// A meter was changed here: other servers forget it too.
    pub fn changed(&self, workspace_id: i64, name: &str) {
        self.forget(workspace_id, name);
        self.store.changes().tell(Change::Meters(workspace_id));
    }

    /// Something changed on another server.
    pub fn forget_workspace(&self, workspace_id: i64) {
        self.meters.forget_those(|(id, _)| *id == workspace_id);
    }

    pub fn forget_all(&self) {
        self.meters.forget_all();
    }
}
