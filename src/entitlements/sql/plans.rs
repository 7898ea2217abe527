//! Plans and their versions. A stored version never changes, except that it stops being the current one; therefore
//! plans may be remembered by their id for as long as one likes.

use std::collections::HashMap;
use std::sync::Arc;
use std::time::Duration;

use diesel::prelude::*;
use diesel::sql_query;
use diesel::sql_types::{Array, BigInt, Integer, Text};
use moka::sync::Cache;

use crate::both;
use crate::chance;
use crate::db::changes::Change;
use crate::db::columns::{quantity_of, readable};
use crate::db::identity::{Clock, new_id};
use crate::db::row_cache::RowCache;
use crate::db::schema::{
    entitlement_events, entitlement_periods, entitlement_states, meters, plan_assignments, plan_limits, plans,
};
use crate::db::{Conn, DbError, Store, audit, limits};
use crate::entitlements::assignment::AssignmentPeriod;
use crate::entitlements::consume::UnreadableLimit;
use crate::entitlements::period::Period;
use crate::entitlements::plan::{Draft, Enforcement, FailurePolicy, Limit, Plan};
use crate::entitlements::sql::assignments;
use crate::error::{Error, Result};
use crate::metering::meter::Aggregation;
use crate::metering::time::Timestamp;
use crate::meters::sql::METER_LOCK;

#[derive(Queryable, Selectable)]
#[diesel(table_name = plans)]
struct PlanRow {
    id: i64,
    public_id: String,
    workspace_id: i64,
    name: String,
    description: String,
    version: i32,
    parent_id: Option<String>,
    is_current: bool,
    created_at: i64,
    updated_at: i64,
}

impl PlanRow {
    fn into_plan(self, limits: Vec<Limit>) -> Plan {
        Plan {
            id: self.id,
            public_id: self.public_id,
            workspace_id: self.workspace_id,
            name: self.name,
            description: self.description,
            version: self.version,
            parent_id: self.parent_id,
            is_current: self.is_current,
            limits,
            created_at: Timestamp(self.created_at),
            updated_at: Timestamp(self.updated_at),
        }
    }
}

#[derive(Insertable)]
#[diesel(table_name = plans, treat_none_as_default_value = false)]
struct NewPlan<'a> {
    id: i64,
    public_id: &'a str,
    workspace_id: i64,
    name: &'a str,
    description: &'a str,
    version: i32,
    parent_id: Option<&'a str>,
    is_current: bool,
    created_at: i64,
    updated_at: i64,
}

#[derive(Queryable, Selectable)]
#[diesel(table_name = plan_limits)]
struct LimitRow {
    public_id: String,
    plan_id: i64,
    meter_id: i64,
    period: String,
    quantity: String,
    warning_percent: String,
    enforcement: String,
    failure_policy: String,
    created_at: i64,
}

#[derive(Insertable)]
// also keeps diesel from opening a transaction of its own on SQLite
#[diesel(table_name = plan_limits, treat_none_as_default_value = false)]
struct NewLimit<'a> {
    public_id: &'a str,
    plan_id: i64,
    meter_id: i64,
    period: &'a str,
    quantity: String,
    warning_percent: String,
    enforcement: &'static str,
    failure_policy: &'static str,
    created_at: i64,
}

/// Reads a word that a CHECK guards.
pub fn word<T>(parsed: Option<T>, text: &str) -> Result<T, DbError> {
    parsed.ok_or_else(|| Error::internal(format!("unknown word {text:?} in the database")).into())
}

impl LimitRow {
    fn into_limit(self, meter: String) -> Result<Limit, DbError> {
        Ok(Limit {
            public_id: self.public_id,
            meter_id: self.meter_id,
            meter,
            period: word(Period::parse(&self.period), &self.period)?,
            quantity: quantity_of(&self.quantity)?,
            warning_percent: quantity_of(&self.warning_percent)?,
            enforcement: word(Enforcement::parse(&self.enforcement), &self.enforcement)?,
            failure_policy: word(FailurePolicy::parse(&self.failure_policy), &self.failure_policy)?,
            created_at: Timestamp(self.created_at),
        })
    }
}

/// A plan by the id that callers know, as far as it can be read.
type ReadPlan = (String, Result<Plan, DbError>);

/// Gives plan rows their limits, by meter and period; an error for a plan of which one cannot be read.
fn each_with_limits(conn: &mut Conn, rows: Vec<PlanRow>) -> Result<Vec<ReadPlan>, DbError> {
    let ids: Vec<i64> = rows.iter().map(|row| row.id).collect();
    let limits: Vec<(LimitRow, String)> = plan_limits::table
        .inner_join(meters::table.on(meters::id.eq(plan_limits::meter_id)))
        .filter(plan_limits::plan_id.eq_any(&ids))
        .order((meters::name, plan_limits::period))
        .select((LimitRow::as_select(), meters::name))
        .load(conn)?;
    let mut by_plan: HashMap<i64, Vec<Result<Limit, DbError>>> = HashMap::new();
    for (row, meter) in limits {
        by_plan.entry(row.plan_id).or_default().push(row.into_limit(meter));
    }
    let plans = rows.into_iter().map(|row| {
        let limits = by_plan.remove(&row.id).unwrap_or_default().into_iter().collect::<Result<_, _>>();
        (row.public_id.clone(), limits.map(|limits| row.into_plan(limits)))
    });
    Ok(plans.collect())
}

/// Gives plan rows their limits; all of them, or none.
fn with_limits(conn: &mut Conn, rows: Vec<PlanRow>) -> Result<Vec<Plan>, DbError> {
    each_with_limits(conn, rows)?.into_iter().map(|(_, plan)| plan).collect()
}

/// Any version.
pub fn by_public_id(conn: &mut Conn, workspace_id: i64, public_id: &str) -> Result<Option<Plan>, DbError> {
    let row: Option<PlanRow> = plans::table
        .filter(plans::workspace_id.eq(workspace_id).and(plans::public_id.eq(public_id)))
        .select(PlanRow::as_select())
        .first(conn)
        .optional()?;
    Ok(with_limits(conn, row.into_iter().collect())?.pop())
}

/// As [`by_public_id`]; 404 when there is none.
pub fn get(conn: &mut Conn, workspace_id: i64, public_id: &str) -> Result<Plan, DbError> {
    by_public_id(conn, workspace_id, public_id)?.ok_or_else(|| Error::not_found("plan").into())
}

/// As [`get`]; 409 when it is not the current version.
pub fn get_current(conn: &mut Conn, workspace_id: i64, public_id: &str) -> Result<Plan, DbError> {
    let plan = get(conn, workspace_id, public_id)?;
    if !plan.is_current {
        let (name, version) = (&plan.name, plan.version);
        return Err(
            Error::conflict(format!("version {version} of plan {name:?} is not the current one")).into()
        );
    }
    Ok(plan)
}

pub fn find_by_ids(conn: &mut Conn, ids: &[i64]) -> Result<HashMap<i64, Arc<Plan>>, DbError> {
    if ids.is_empty() {
        return Ok(HashMap::new());
    }
    let rows: Vec<PlanRow> =
        plans::table.filter(plans::id.eq_any(ids)).select(PlanRow::as_select()).load(conn)?;
    Ok(with_limits(conn, rows)?.into_iter().map(|plan| (plan.id, Arc::new(plan))).collect())
}

/// Plans by their ids, and those of which limits cannot be read.
pub type Found = (HashMap<i64, Arc<Plan>>, HashMap<i64, Vec<(i64, UnreadableLimit)>>);

/// As [`find_by_ids`]; one that cannot be read is named, and found as far as it can be.
pub fn find_readable(conn: &mut Conn, ids: &[i64]) -> Result<Found, DbError> {
    let (mut found, mut unread) = (HashMap::new(), HashMap::new());
    if ids.is_empty() {
        return Ok((found, unread));
    }
    let rows: Vec<PlanRow> =
        plans::table.filter(plans::id.eq_any(ids)).select(PlanRow::as_select()).load(conn)?;
    let ids: Vec<i64> = rows.iter().map(|row| row.id).collect();
    for (id, (public_id, plan)) in ids.into_iter().zip(each_with_limits(conn, rows)?) {
        let plan = match readable("plans", public_id, plan) {
            Some(plan) => Some(plan),
            None => {
                let damaged = damaged(conn, id)?;
                unread.insert(id, damaged.unread);
                damaged.plan
            }
        };
        found.extend(plan.map(|plan| (id, Arc::new(plan))));
    }
    Ok((found, unread))
}

/// A plan that cannot be read as a whole, as far as it can.
pub struct Damaged {
    /// With the limits that can be read; `None` when the plan itself is missing.
    pub plan: Option<Plan>,
    /// The other limits, each by its meter.
    pub unread: Vec<(i64, UnreadableLimit)>,
}

/// Reads limit by limit what [`find_by_ids`] could not.
pub fn damaged(conn: &mut Conn, id: i64) -> Result<Damaged, DbError> {
    let row: Option<PlanRow> = plans::table.find(id).select(PlanRow::as_select()).first(conn).optional()?;
    let limits: Vec<(LimitRow, String)> = plan_limits::table
        .inner_join(meters::table.on(meters::id.eq(plan_limits::meter_id)))
        .filter(plan_limits::plan_id.eq(id))
        .order((meters::name, plan_limits::period))
        .select((LimitRow::as_select(), meters::name))
        .load(conn)?;
    let (mut limits_read, mut unread) = (Vec::new(), Vec::new());
    for (limit, meter) in limits {
        let known = UnreadableLimit {
            enforcement: Enforcement::parse(&limit.enforcement)
                .unwrap_or(UnreadableLimit::UNKNOWN.enforcement),
            failure_policy: FailurePolicy::parse(&limit.failure_policy)
                .unwrap_or(UnreadableLimit::UNKNOWN.failure_policy),
        };
        let meter_id = limit.meter_id;
        match limit.into_limit(meter) {
            Ok(limit) if row.is_some() => limits_read.push(limit),
            _ => unread.push((meter_id, known)),
        }
    }
    Ok(Damaged { plan: row.map(|row| row.into_plan(limits_read)), unread })
}

/// The meters that these plans limit, whether the limits can be read or not.
pub fn limited_meters(conn: &mut Conn, ids: &[i64]) -> Result<Vec<i64>, DbError> {
    let meters = plan_limits::table.filter(plan_limits::plan_id.eq_any(ids));
    Ok(meters.select(plan_limits::meter_id).distinct().load(conn)?)
}

/// Whether some subject still has, or had, this plan.
pub fn is_assigned(conn: &mut Conn, id: i64) -> Result<bool, DbError> {
    let found = plan_assignments::table
        .filter(plan_assignments::plan_id.eq(id))
        .select(plan_assignments::id)
        .first::<i64>(conn)
        .optional()?;
    Ok(found.is_some())
}

/// Current versions, by name. One that cannot be read is named, counted and left out.
pub fn list(conn: &mut Conn, workspace_id: i64, limit: i64) -> Result<Vec<Plan>, DbError> {
    let rows: Vec<PlanRow> = plans::table
        .filter(plans::workspace_id.eq(workspace_id).and(plans::is_current.eq(true)))
        .order(plans::name)
        .limit(limit)
        .select(PlanRow::as_select())
        .load(conn)?;
    let plans = each_with_limits(conn, rows)?.into_iter();
    Ok(plans.filter_map(|(id, plan)| readable("plans", id, plan)).collect())
}

/// The plan a draft describes, in the order of its limits, not stored yet: version 1, or the one after `old`.
pub fn resolve(
    conn: &mut Conn,
    workspace_id: i64,
    draft: &Draft,
    old: Option<&Plan>,
    now: Timestamp,
) -> Result<Plan, DbError> {
    let names: Vec<&str> = draft.limits.iter().map(|limit| limit.meter.as_str()).collect();
    let found: Vec<(String, i64, String)> = meters::table
        .filter(meters::workspace_id.eq(workspace_id).and(meters::name.eq_any(&names)))
        .select((meters::name, meters::id, meters::aggregation))
        .load(conn)?;
    for (name, _, aggregation) in &found {
        if Aggregation::parse(aggregation)?.needs_events() {
            let detail =
                format!("meter {name:?} cannot be limited: {aggregation} cannot be counted as events come");
            return Err(Error::invalid(detail).into());
        }
    }
    let ids: HashMap<String, i64> = found.into_iter().map(|(name, id, _)| (name, id)).collect();
    let mut limits = Vec::with_capacity(draft.limits.len());
    for limit in &draft.limits {
        let meter_id =
            *ids.get(&limit.meter).ok_or_else(|| Error::not_found(format!("meter {:?}", limit.meter)))?;
        limits.push(Limit {
            public_id: chance::id().to_string(),
            meter_id,
            meter: limit.meter.clone(),
            period: limit.period.clone(),
            quantity: limit.quantity.clone(),
            warning_percent: limit.warning_percent.clone(),
            enforcement: limit.enforcement,
            failure_policy: limit.failure_policy,
            created_at: now,
        });
    }
    Ok(Plan {
        id: 0,
        public_id: chance::id().to_string(),
        workspace_id,
        name: draft.name.clone(),
        description: draft.description.clone(),
        version: old.map_or(1, |plan| plan.version + 1),
        parent_id: old.map(|plan| plan.public_id.clone()),
        is_current: true,
        limits,
        created_at: now,
        updated_at: now,
    })
}

/// Keeps the meters of the limits from being deleted until the transaction ends.
fn hold_meters(conn: &mut Conn, plan: &Plan) -> Result<(), DbError> {
    if let Conn::Postgres(c) = conn {
        let mut ids: Vec<i64> = plan.limits.iter().map(|limit| limit.meter_id).collect();
        ids.sort_unstable();
        sql_query("SELECT pg_advisory_xact_lock_shared($1, (id % 2147483647)::int) FROM unnest($2) AS id")
            .bind::<Integer, _>(METER_LOCK)
            .bind::<Array<BigInt>, _>(ids)
            .execute(c)?;
    }
    Ok(())
}

fn store(conn: &mut Conn, mut plan: Plan) -> Result<Plan, DbError> {
    let row = NewPlan {
        id: new_id(),
        public_id: &plan.public_id,
        workspace_id: plan.workspace_id,
        name: &plan.name,
        description: &plan.description,
        version: plan.version,
        parent_id: plan.parent_id.as_deref(),
        is_current: true,
        created_at: plan.created_at.0,
        updated_at: plan.updated_at.0,
    };
    let added: Result<i64, DbError> = diesel::insert_into(plans::table)
        .values(&row)
        .returning(plans::id)
        .get_result(conn)
        .map_err(DbError::from);
    plan.id = match added {
        Ok(id) => id,
        Err(fault) if fault.violates("plans_current_name_key") => {
            return Err(Error::conflict(format!("a plan named {:?} exists", plan.name)).into());
        }
        Err(fault) => return Err(fault),
    };
    let limits: Vec<NewLimit> = plan
        .limits
        .iter()
        .map(|limit| NewLimit {
            public_id: &limit.public_id,
            plan_id: plan.id,
            meter_id: limit.meter_id,
            period: limit.period.as_str(),
            quantity: limit.quantity.to_json(),
            warning_percent: limit.warning_percent.to_json(),
            enforcement: limit.enforcement.as_str(),
            failure_policy: limit.failure_policy.as_str(),
            created_at: limit.created_at.0,
        })
        .collect();
    both!(conn, c => diesel::insert_into(plan_limits::table).values(&limits).execute(c)?);
    Ok(plan)
}

/// Stores version 1 of a new plan; 404 for an unknown meter, 409 when the name is taken.
pub fn add(conn: &mut Conn, workspace_id: i64, draft: &Draft, now: Timestamp) -> Result<Plan, DbError> {
    limits::check(conn, limits::Kind::Plan, workspace_id)?;
    let plan = resolve(conn, workspace_id, draft, None, now)?;
    hold_meters(conn, &plan)?;
    // again, now that they cannot go away
    let plan = Plan { public_id: plan.public_id, ..resolve(conn, workspace_id, draft, None, now)? };
    let plan = store(conn, plan)?;
    limits::check_added(conn, limits::Kind::PlanLimit, workspace_id)?;
    audit::about(&plan.public_id, &plan.name);
    audit::states(None, Some(shown(&plan)));
    Ok(plan)
}

/// What the audit trail keeps of a plan.
fn shown(plan: &Plan) -> audit::Shown {
    let limits: Vec<_> = plan
        .limits
        .iter()
        .map(|limit| {
            serde_json::json!({"meter": limit.meter, "period": limit.period.as_str(), "limit": limit.quantity})
        })
        .collect();
    serde_json::json!({"name": plan.name, "version": plan.version, "limits": limits})
}

/// Each is a stretch in the history of every subject that goes along, which writes of a subject load: 10,000 rows with
/// those that are assigned take some 10 ms.
const VERSIONS_MAX: i32 = 5_000;

/// Stores the next version and takes the subjects along. Returns it with the version before.
pub fn update(
    conn: &mut Conn,
    workspace_id: i64,
    public_id: &str,
    draft: &Draft,
    clock: Clock,
) -> Result<Plan, DbError> {
    let now = assignments::begin_change(conn, workspace_id, clock)?;
    let old = get_current(conn, workspace_id, public_id)?;
    if old.version >= VERSIONS_MAX {
        let detail = format!("plan {:?} may have at most {VERSIONS_MAX} versions", old.name);
        return Err(Error::limit_reached(detail).into());
    }
    let proposed = resolve(conn, workspace_id, draft, Some(&old), now)?;
    hold_meters(conn, &proposed)?;
    let proposed = resolve(conn, workspace_id, draft, Some(&old), now)?;
    diesel::update(plans::table.find(old.id))
        .set((plans::is_current.eq(false), plans::updated_at.eq(now.0)))
        .execute(conn)?;
    let new = store(conn, proposed)?;
    // whoever has more, from an import, may go on with less
    if new.limits.len() > old.limits.len() {
        limits::check_added(conn, limits::Kind::PlanLimit, workspace_id)?;
    }
    assignments::move_to_version(conn, &old, &new, now)?;
    audit::about(&new.public_id, &new.name);
    audit::states(Some(shown(&old)), Some(shown(&new)));
    Ok(new)
}

/// Deletes one version with its limits, ended assignments, states, events and snapshots; 409 while a subject has it.
pub fn delete(conn: &mut Conn, workspace_id: i64, public_id: &str, clock: Clock) -> Result<(), DbError> {
    let now = assignments::begin_change(conn, workspace_id, clock)?;
    let plan = get(conn, workspace_id, public_id)?;
    let in_use: Option<i64> = plan_assignments::table
        .filter(plan_assignments::plan_id.eq(plan.id))
        .filter(plan_assignments::ends_at.is_null().or(plan_assignments::ends_at.gt(now.0)))
        .select(plan_assignments::id)
        .first(conn)
        .optional()?;
    if in_use.is_some() {
        return Err(Error::conflict(format!("plan {:?} is assigned to subjects", plan.name)).into());
    }
    both!(conn, c => {
        diesel::delete(entitlement_states::table.filter(entitlement_states::plan_id.eq(plan.id))).execute(c)?;
        diesel::delete(entitlement_events::table.filter(entitlement_events::plan_id.eq(plan.id))).execute(c)?;
        diesel::delete(entitlement_periods::table.filter(entitlement_periods::plan_id.eq(plan.id))).execute(c)?;
        diesel::delete(plan_assignments::table.filter(plan_assignments::plan_id.eq(plan.id))).execute(c)?;
        diesel::delete(plans::table.find(plan.id)).execute(c)?
    });
    audit::about(&plan.public_id, &plan.name);
    audit::states(Some(shown(&plan)), None);
    Ok(())
}

#[derive(QueryableByName)]
struct Using {
    #[diesel(sql_type = Text)]
    name: String,
    #[diesel(sql_type = Integer)]
    version: i32,
}

/// A version of a plan with limits on a meter.
#[derive(Clone, Debug, QueryableByName)]
pub struct Limiting {
    #[diesel(sql_type = Text)]
    pub public_id: String,
    #[diesel(sql_type = Text)]
    pub name: String,
    #[diesel(sql_type = Integer)]
    pub version: i32,
    /// How many there are.
    #[diesel(sql_type = BigInt)]
    pub limits: i64,
}

/// Versions of plans that limit a meter, old ones too, those in force first.
pub fn limiting(conn: &mut Conn, meter_id: i64, most: i64) -> Result<Vec<Limiting>, DbError> {
    let text = "-- entitlements::plans::limiting
        SELECT p.public_id, p.name, p.version, COUNT(*) AS limits
          FROM plan_limits l JOIN plans p ON p.id = l.plan_id
         WHERE l.meter_id = $1
         GROUP BY p.id, p.public_id, p.name, p.version, p.is_current
         ORDER BY p.is_current DESC, p.id DESC LIMIT $2";
    Ok(sql_query(text).bind::<BigInt, _>(meter_id).bind::<BigInt, _>(most).load(conn)?)
}

/// Current versions that limit a meter, by name.
pub fn limiting_now(conn: &mut Conn, meter_id: i64, most: i64) -> Result<Vec<Limiting>, DbError> {
    let text = "-- entitlements::plans::limiting_now
        SELECT p.public_id, p.name, p.version, COUNT(*) AS limits
          FROM plan_limits l JOIN plans p ON p.id = l.plan_id
         WHERE l.meter_id = $1 AND p.is_current
         GROUP BY p.id, p.public_id, p.name, p.version
         ORDER BY p.name LIMIT $2";
    Ok(sql_query(text).bind::<BigInt, _>(meter_id).bind::<BigInt, _>(most).load(conn)?)
}

#[derive(QueryableByName)]
struct Uses {
    #[diesel(sql_type = BigInt)]
    meter_id: i64,
    #[diesel(sql_type = BigInt)]
    plans: i64,
}

/// How many plans of a workspace limit each meter, in their current versions; those that none limits are not told.
pub fn count_limiting(conn: &mut Conn, workspace_id: i64) -> Result<HashMap<i64, i64>, DbError> {
    let text = "-- entitlements::plans::count_limiting
        SELECT l.meter_id, CAST(COUNT(DISTINCT p.id) AS BIGINT) AS plans
          FROM plans p JOIN plan_limits l ON l.plan_id = p.id
         WHERE p.workspace_id = $1 AND p.is_current
         GROUP BY l.meter_id";
    let rows: Vec<Uses> = sql_query(text).bind::<BigInt, _>(workspace_id).load(conn)?;
    Ok(rows.into_iter().map(|row| (row.meter_id, row.plans)).collect())
}

/// 409 while any version of a plan limits the meter: versions stay readable.
pub fn refuse_while_limited(conn: &mut Conn, meter_id: i64, meter: &str) -> Result<(), DbError> {
    let using: Option<Using> = sql_query(
        "SELECT p.name, p.version FROM plan_limits l JOIN plans p ON p.id = l.plan_id
         WHERE l.meter_id = $1 ORDER BY p.is_current DESC, p.id DESC LIMIT 1",
    )
    .bind::<BigInt, _>(meter_id)
    .get_result(conn)
    .optional()?;
    match using {
        None => Ok(()),
        Some(Using { name, version }) => {
            let problem = format!("meter {meter:?} is limited by plan {name:?} (version {version})");
            Err(Error::conflict(problem).into())
        }
    }
}

/// What checks need, from memory: histories of subjects for a few seconds, plans for as long as they are used.
#[derive(Clone)]
pub struct PlanCache {
    store: Store,
    subjects: Arc<RowCache<(i64, String), Arc<Assigned>>>,
    /// Numbers of plans are never used again, so these need no epoch.
    plans: Cache<i64, Arc<Plan>>,
}

/// A subject as checks know it.
#[derive(Debug, Default, PartialEq, Eq)]
pub struct Assigned {
    /// 0 for a subject nobody has heard of.
    pub subject_id: i64,
    pub history: Vec<AssignmentPeriod>,
}

const CACHED_SUBJECTS_MAX: u64 = 200_000;
const CACHED_PLANS_MAX: u64 = 10_000;

impl PlanCache {
    pub fn new(store: Store, lifetime: Duration) -> Self {
        let subjects = RowCache::new(store.epochs(), CACHED_SUBJECTS_MAX, lifetime);
        PlanCache { store, subjects: Arc::new(subjects), plans: Cache::new(CACHED_PLANS_MAX) }
    }

    pub async fn subject(&self, workspace_id: i64, name: &str) -> Result<Arc<Assigned>> {
        let key = (workspace_id, name.to_owned());
        match self.subjects.get(&key) {
            Some(assigned) => Ok(assigned),
            None => self.read_subject(workspace_id, name).await,
        }
    }

    /// As it is in the database now: another server may have changed it a moment ago.
    pub async fn read_subject(&self, workspace_id: i64, name: &str) -> Result<Arc<Assigned>> {
        let key = (workspace_id, name.to_owned());
        let reading = self.subjects.begin();
        let wanted = name.to_owned();
        let read = move |conn: &mut Conn| match assignments::find_subject(conn, workspace_id, &wanted)? {
            None => Ok(Assigned::default()),
            Some(subject_id) => Ok(Assigned { subject_id, history: assignments::history(conn, subject_id)? }),
        };
        let assigned = Arc::new(self.store.ingestion().read("assignments::history", read).await?);
        self.subjects.insert(reading, key, assigned.clone());
        Ok(assigned)
    }

    /// `None` when it was deleted.
    pub async fn plan(&self, id: i64) -> Result<Option<Arc<Plan>>> {
        if let Some(plan) = self.plans.get(&id) {
            return Ok(Some(plan));
        }
        let found = self
            .store
            .ingestion()
            .read("plans::by_ids", move |conn| find_by_ids(conn, &[id]))
            .await?
            .remove(&id);
        if let Some(plan) = &found {
            self.plans.insert(id, plan.clone());
        }
        Ok(found)
    }

    /// Something was assigned, unassigned or moved here: other servers forget it too.
    pub fn changed(&self, workspace_id: i64) {
        self.forget_workspace(workspace_id);
        self.store.changes().tell(Change::Plans(workspace_id));
    }

    /// Something was assigned, unassigned or moved in this workspace.
    pub fn forget_workspace(&self, workspace_id: i64) {
        self.subjects.forget_those(|(id, _)| *id == workspace_id);
    }

    pub fn forget_all(&self) {
        self.subjects.forget_all();
    }

    pub fn forget_assignment(&self, workspace_id: i64, subject: &str) {
        self.subjects.forget([&(workspace_id, subject.to_owned())]);
        self.store.changes().tell(Change::Plans(workspace_id));
    }
}
