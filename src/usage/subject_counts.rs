//! How many events of a subject are stored, per meter, and when the last one was. Commits leave counts with their deltas,
//! and pruning leaves negative ones; settling (`usage::settle`) adds them to the row of the subject. Both are read at one
//! instant, so a count is that of a recount, whatever history a subject has.

use std::collections::BTreeMap;

use diesel::prelude::*;
use diesel::sql_query;
use diesel::sql_types::{Array, BigInt, Binary, Nullable, Text};

use crate::db::columns::readable;
use crate::db::prepared::prepared;
use crate::db::schema::meters;
use crate::db::statement::integers;
use crate::db::{Conn, DbError, Trouble};
use crate::metering::delta::{self, Count, Counts};
use crate::metering::time::Timestamp;
use crate::usage::packed::unreadable;

/// What is needed of a workspace to count its subjects.
pub struct Activity {
    /// Its meters, and before what each is pruned.
    pub watermarks: BTreeMap<i64, Option<Timestamp>>,
    pub waiting: Waiting,
    /// Months that were taken out of `events` and are about to be dropped.
    detached: Vec<String>,
}

/// What waits to be settled: subject, meter and count, in the order of subjects. There may be tens of thousands, of which a
/// page needs a hundred: a list costs a tenth of maps of maps.
#[derive(Default)]
pub struct Waiting(Vec<(i64, i64, Count)>);

impl Activity {
    /// Each subject that something waits for, with the newest event that waits. `None` where events may be gone: only all
    /// counts of the subject tell when its last one was.
    pub fn newest(&self) -> impl Iterator<Item = (i64, Option<Timestamp>)> {
        let of_subjects = self.waiting.0.chunk_by(|(one, ..), (other, ..)| one == other);
        of_subjects.filter_map(move |of_subject| {
            let may_be_gone = |(_, meter_id, count): &(i64, i64, Count)| {
                let watermark = self.watermarks.get(meter_id).copied().flatten();
                count.events <= 0 || is_before(count, watermark)
            };
            let last = of_subject.iter().filter_map(|(.., count)| count.last_at).max();
            Some((of_subject.first()?.0, last.filter(|_| !of_subject.iter().any(may_be_gone))))
        })
    }
}

impl Waiting {
    /// Adds what waits for a subject to its counts by meter.
    pub fn add_to(&self, subject_id: i64, counts: &mut Counts) {
        let first = self.0.partition_point(|(id, ..)| *id < subject_id);
        for (_, meter_id, count) in self.0[first..].iter().take_while(|(id, ..)| *id == subject_id) {
            counts.entry(*meter_id).or_default().add(*count);
        }
    }
}

/// A subject with its settled counts by meter.
#[derive(Debug)]
pub struct Settled {
    pub subject_id: i64,
    pub name: String,
    /// As far as it was settled; never earlier than it says, but for what waits.
    pub last_event_at: Option<i64>,
    pub counts: Counts,
}

#[derive(QueryableByName)]
struct SubjectRow {
    #[diesel(sql_type = BigInt)]
    id: i64,
    #[diesel(sql_type = Text)]
    name: String,
    #[diesel(sql_type = Nullable<BigInt>)]
    last_event_at: Option<i64>,
    #[diesel(sql_type = Nullable<Binary>)]
    usage_counts: Option<Vec<u8>>,
}

impl SubjectRow {
    fn into_settled(self) -> Settled {
        let counts = match &self.usage_counts {
            Some(bytes) => readable("subjects", self.id, delta::unpack_counts(bytes).ok_or_else(unreadable))
                .unwrap_or_default(),
            None => Counts::new(),
        };
        Settled { subject_id: self.id, name: self.name, last_event_at: self.last_event_at, counts }
    }
}

#[derive(QueryableByName)]
struct MeterRow {
    #[diesel(sql_type = BigInt)]
    meter_id: i64,
    #[diesel(sql_type = Nullable<BigInt>)]
    pruned_before: Option<i64>,
    #[diesel(sql_type = BigInt)]
    id: i64,
    #[diesel(sql_type = Nullable<Binary>)]
    counts: Option<Vec<u8>>,
    #[diesel(sql_type = Nullable<Text>)]
    detached: Option<String>,
}

/// In one statement.
pub fn activity(conn: &mut Conn, workspace_id: i64) -> Result<Activity, DbError> {
    let detached = match conn.is_postgres() {
        true => {
            "(SELECT string_agg(c.relname, ',') FROM pg_class parent JOIN pg_class c ON c.relnamespace = parent.relnamespace
              WHERE parent.oid = 'events'::regclass AND c.relkind = 'r' AND c.relname ~ '^events_[0-9]{6}$'
                AND NOT EXISTS (SELECT 1 FROM pg_inherits i WHERE i.inhrelid = c.oid AND i.inhparent = parent.oid))"
        }
        false => "NULL",
    };
    let rows: Vec<MeterRow> = sql_query(format!(
        "-- usage::subject_counts::activity
         SELECT m.id AS meter_id, m.pruned_before, COALESCE(d.id, 0) AS id, d.counts, {detached} AS detached
         FROM meters m LEFT JOIN rollup_deltas d ON d.meter_id = m.id WHERE m.workspace_id = $1"
    ))
    .bind::<BigInt, _>(workspace_id)
    .load(conn)?;
    let names = rows.first().and_then(|row| row.detached.as_deref()).unwrap_or_default();
    let detached = names.split(',').filter(|name| !name.is_empty()).map(str::to_owned).collect();
    let mut found = Activity { watermarks: BTreeMap::new(), waiting: Waiting::default(), detached };
    for row in rows {
        found.watermarks.insert(row.meter_id, row.pruned_before.map(Timestamp));
        let Some(counts) = &row.counts else { continue };
        // all of a row or nothing
        let counts: Option<Vec<(i64, Count)>> = delta::each_count(counts).collect();
        let counts = readable("rollup_deltas", row.id, counts.ok_or_else(unreadable)).unwrap_or_default();
        let counts = counts.into_iter().map(|(subject_id, count)| (subject_id, row.meter_id, count));
        found.waiting.0.extend(counts);
    }
    found.waiting.0.sort_unstable_by_key(|(subject_id, ..)| *subject_id);
    Ok(found)
}

/// Where a page of subjects starts: those with a later last event, or the same and a name up to this one, are before it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SubjectPosition {
    pub last_event_at: Timestamp,
    pub subject: String,
}

fn recent_sql(limit: i64) -> String {
    format!(
        "SELECT id, name, last_event_at, usage_counts FROM subjects
         WHERE workspace_id = $1 AND last_event_at IS NOT NULL AND last_event_at <= $2
           AND (last_event_at < $2 OR name > $3)
         ORDER BY last_event_at DESC, name LIMIT {limit}"
    )
}

/// Subjects after a position by what is settled of their last event, newest first, then by name.
pub fn recent(
    conn: &mut Conn,
    workspace_id: i64,
    after: Option<&SubjectPosition>,
    limit: i64,
) -> Result<Vec<Settled>, DbError> {
    let text = format!("-- usage::subject_counts::recent\n{}", recent_sql(limit));
    let (at, name) = after.map_or((i64::MAX, ""), |after| (after.last_event_at.0, after.subject.as_str()));
    let query = sql_query(text).bind::<BigInt, _>(workspace_id).bind::<BigInt, _>(at).bind::<Text, _>(name);
    let rows: Vec<SubjectRow> = query.load(conn)?;
    Ok(rows.into_iter().map(SubjectRow::into_settled).collect())
}

#[derive(QueryableByName)]
struct FoundRow {
    #[diesel(embed)]
    subject: SubjectRow,
    #[diesel(sql_type = BigInt)]
    is_wanted: i64,
}

/// In one statement these subjects, in no order, and what [`recent`] finds.
pub fn of_and_recent(
    conn: &mut Conn,
    subject_ids: &[i64],
    workspace_id: i64,
    after: Option<&SubjectPosition>,
    limit: i64,
) -> Result<(Vec<Settled>, Vec<Settled>), DbError> {
    if subject_ids.is_empty() {
        return Ok((Vec::new(), recent(conn, workspace_id, after, limit)?));
    }
    let text = format!(
        "-- usage::subject_counts::of_and_recent
         SELECT r.id, r.name, r.last_event_at, r.usage_counts, CAST(0 AS BIGINT) AS is_wanted FROM ({}) AS r
         UNION ALL
         SELECT id, name, last_event_at, usage_counts, CAST(1 AS BIGINT) FROM subjects WHERE id IN ({})",
        recent_sql(limit),
        integers(subject_ids)
    );
    let (at, name) = after.map_or((i64::MAX, ""), |after| (after.last_event_at.0, after.subject.as_str()));
    let query = sql_query(text).bind::<BigInt, _>(workspace_id).bind::<BigInt, _>(at).bind::<Text, _>(name);
    let rows: Vec<FoundRow> = query.load(conn)?;
    let (wanted, recent): (Vec<FoundRow>, _) = rows.into_iter().partition(|row| row.is_wanted > 0);
    let settled = |rows: Vec<FoundRow>| -> Vec<Settled> {
        rows.into_iter().map(|row| row.subject.into_settled()).collect()
    };
    let mut recent = settled(recent);
    // a union has no order
    recent.sort_by(|a, b| b.last_event_at.cmp(&a.last_event_at).then_with(|| a.name.cmp(&b.name)));
    Ok((settled(wanted), recent))
}

#[derive(QueryableByName)]
struct LastRow {
    #[diesel(sql_type = BigInt)]
    meter_id: i64,
    #[diesel(sql_type = BigInt)]
    subject_id: i64,
    #[diesel(sql_type = BigInt)]
    last_at: i64,
}

/// Whether the last event lies before the watermark of its meter.
fn is_before(count: &Count, watermark: Option<Timestamp>) -> bool {
    watermark.is_some_and(|watermark| count.last_at.is_none_or(|at| at < watermark))
}

/// Meters that one statement asks about.
const METERS_AT_ONCE: usize = 50;

/// A last event before the watermark of its meter may be gone: the last of those that came late is looked up. `counts` has
/// those of subjects by meter.
pub fn correct_last(
    conn: &mut Conn,
    watermarks: &BTreeMap<i64, Option<Timestamp>>,
    counts: &mut BTreeMap<i64, Counts>,
) -> Result<(), DbError> {
    let mut unsure: BTreeMap<(i64, Timestamp), Vec<i64>> = BTreeMap::new();
    for (subject_id, of_subject) in counts.iter() {
        for (meter_id, count) in of_subject.iter().filter(|(_, count)| count.events > 0) {
            let watermark = watermarks.get(meter_id).copied().flatten();
            if let Some(watermark) = watermark.filter(|_| is_before(count, watermark)) {
                unsure.entry((*meter_id, watermark)).or_default().push(*subject_id);
            }
        }
    }
    let unsure: Vec<((i64, Timestamp), Vec<i64>)> = unsure.into_iter().collect();
    for some in unsure.chunks(METERS_AT_ONCE) {
        let last = |((meter_id, watermark), subject_ids): &((i64, Timestamp), Vec<i64>)| {
            format!(
                "SELECT meter_id, subject_id, MAX(event_time) AS last_at FROM events
                 WHERE meter_id = {meter_id} AND event_time < {} AND subject_id IN ({}) GROUP BY meter_id, subject_id",
                watermark.0,
                integers(subject_ids)
            )
        };
        let parts: Vec<String> = some.iter().map(last).collect();
        let text = format!("-- usage::subject_counts::correct_last\n{}", parts.join(" UNION ALL "));
        let rows: Vec<LastRow> = sql_query(text).load(conn)?;
        for row in rows {
            let of_subject = counts.get_mut(&row.subject_id);
            if let Some(count) = of_subject.and_then(|of_subject| of_subject.get_mut(&row.meter_id)) {
                count.last_at = Some(Timestamp(row.last_at));
            }
        }
    }
    Ok(())
}

prepared!(
    HoldSubjects for diesel::PgConnection,
    (ids: Array<BigInt> = Vec<i64>) -> (BigInt, Nullable<Binary>),
    "SELECT id, usage_counts FROM subjects WHERE id = ANY(?) ORDER BY id FOR NO KEY UPDATE"
);
prepared!(
    PutMany for diesel::PgConnection,
    (ids: Array<BigInt> = Vec<i64>, last_event_ats: Array<Nullable<BigInt>> = Vec<Option<i64>>,
     usage_counts: Array<Binary> = Vec<Vec<u8>>),
    "UPDATE subjects s SET last_event_at = new.last_event_at, usage_counts = new.usage_counts
     FROM unnest(?, ?, ?) AS new (id, last_event_at, usage_counts) WHERE s.id = new.id"
);
prepared!(
    FindSubject for diesel::SqliteConnection,
    (id: BigInt = i64) -> (BigInt, Nullable<Binary>),
    "SELECT id, usage_counts FROM subjects WHERE id = ?"
);
prepared!(
    PutSubject for diesel::SqliteConnection,
    (last_event_at: Nullable<BigInt> = Option<i64>, usage_counts: Binary = Vec<u8>, id: BigInt = i64),
    "UPDATE subjects SET last_event_at = ?, usage_counts = ? WHERE id = ?"
);

/// Adds counts of subjects with a meter to their rows. These are held in the order of their ids: meters are settled at the
/// same time.
pub fn settle(conn: &mut Conn, meter_id: i64, added: &Counts) -> Result<(), DbError> {
    if added.is_empty() {
        return Ok(());
    }
    let mut held = hold(conn, &added.keys().copied().collect())?;
    for (subject_id, counts) in &mut held {
        let more = added.get(subject_id).copied().unwrap_or_default();
        counts.entry(meter_id).or_default().add(more);
    }
    let watermark: Option<Option<i64>> =
        meters::table.find(meter_id).select(meters::pruned_before).first(conn).optional()?;
    // of this meter only: what is known of others was settled with them
    let watermarks = BTreeMap::from([(meter_id, watermark.flatten().map(Timestamp))]);
    correct_last(conn, &watermarks, &mut held)?;
    for counts in held.values_mut() {
        counts.retain(|other, count| *other != meter_id || count.events != 0);
    }
    put(conn, &held)
}

fn hold(conn: &mut Conn, subject_ids: &Vec<i64>) -> Result<BTreeMap<i64, Counts>, DbError> {
    let rows: Vec<(i64, Option<Vec<u8>>)> = match conn {
        Conn::Postgres(c) => HoldSubjects { ids: subject_ids }.load(c)?,
        Conn::Sqlite(c) => {
            let mut rows = Vec::with_capacity(subject_ids.len());
            for id in subject_ids {
                rows.extend(FindSubject { id }.get_result(c).optional()?);
            }
            rows
        }
    };
    let counts = |(id, bytes): (i64, Option<Vec<u8>>)| {
        let counts = bytes.map(|bytes| delta::unpack_counts(&bytes).ok_or_else(unreadable));
        (id, counts.and_then(|counts| readable("subjects", id, counts)).unwrap_or_default())
    };
    Ok(rows.into_iter().map(counts).collect())
}

fn put(conn: &mut Conn, held: &BTreeMap<i64, Counts>) -> Result<(), DbError> {
    let last = |counts: &Counts| {
        counts.values().filter(|count| count.events > 0).filter_map(|count| count.last_at).max()
    };
    match conn {
        Conn::Postgres(c) => {
            PutMany {
                ids: &held.keys().copied().collect(),
                last_event_ats: &held.values().map(|counts| last(counts).map(|at| at.0)).collect(),
                usage_counts: &held.values().map(delta::pack_counts).collect(),
            }
            .execute(c)?;
        }
        Conn::Sqlite(c) => {
            for (id, counts) in held {
                let (last_event_at, usage_counts) = (last(counts).map(|at| at.0), delta::pack_counts(counts));
                PutSubject { last_event_at: &last_event_at, usage_counts: &usage_counts, id }.execute(c)?;
            }
        }
    }
    Ok(())
}

#[derive(QueryableByName)]
struct TakenOut {
    #[diesel(sql_type = BigInt)]
    subject_id: i64,
    #[diesel(sql_type = BigInt)]
    meter_id: i64,
    #[diesel(sql_type = BigInt)]
    events: i64,
}

/// Takes off what lies in months that were taken out of `events`: once they are dropped, counts say so themselves.
pub fn take_off_detached(
    conn: &mut Conn,
    activity: &Activity,
    counts: &mut BTreeMap<i64, Counts>,
) -> Result<(), DbError> {
    let ids = integers(&counts.keys().copied().collect::<Vec<_>>());
    for table in activity.detached.iter().filter(|_| !counts.is_empty()).cloned().collect::<Vec<_>>() {
        let rows = sql_query(format!(
            "SELECT subject_id, meter_id, COUNT(*) AS events FROM {table} WHERE subject_id IN ({ids}) GROUP BY 1, 2"
        ))
        .load(conn);
        let rows: Vec<TakenOut> = rows.map_err(DbError::from).map_err(|error| match error.trouble() {
            // it was dropped since it was seen: there is one less to look into now
            Some(Trouble::Schema) => DbError::Retry,
            _ => error,
        })?;
        for row in rows {
            let gone = Count { events: -row.events, last_at: None };
            counts.entry(row.subject_id).or_default().entry(row.meter_id).or_default().add(gone);
        }
    }
    Ok(())
}
