//! The time zone of a workspace: the calendar of every query, page and plan that names none. Remembered for a few seconds at
//! most.

use std::sync::Arc;
use std::time::Duration;

use diesel::prelude::*;

use crate::db::row_cache::RowCache;
use crate::db::schema::workspaces;
use crate::db::{Conn, DbError, Store, audit, changes::Change};
use crate::error::Result;
use crate::metering::calendar::Zone;

/// The zone as it is stored; UTC where the database of this program does not know it any more.
pub fn find(conn: &mut Conn, workspace_id: i64) -> Result<Zone, DbError> {
    let name: Option<String> =
        workspaces::table.find(workspace_id).select(workspaces::time_zone).first(conn).optional()?;
    let name = name.unwrap_or_default();
    Ok(Zone::parse(&name).unwrap_or_else(|| {
        if !name.is_empty() {
            log::error!(workspace_id, zone = name.as_str(); "the zone of a workspace is not known: UTC is used");
        }
        Zone::UTC
    }))
}

fn set(conn: &mut Conn, workspace_id: i64, zone: &Zone) -> Result<(), DbError> {
    let before = find(conn, workspace_id)?;
    let state = |zone: &Zone| serde_json::json!({"time_zone": zone.name()});
    audit::about("", zone.name());
    audit::states(Some(state(&before)), Some(state(zone)));
    diesel::update(workspaces::table.find(workspace_id))
        .set(workspaces::time_zone.eq(zone.name()))
        .execute(conn)?;
    Ok(())
}

/// Cheap to clone.
#[derive(Clone)]
pub struct HomeZones {
    store: Store,
    zones: Arc<RowCache<i64, Zone>>,
}

const CACHED_WORKSPACES_MAX: u64 = 50_000;

impl HomeZones {
    pub fn new(store: Store, lifetime: Duration) -> Self {
        let zones = RowCache::new(store.epochs(), CACHED_WORKSPACES_MAX, lifetime);
        HomeZones { store, zones: Arc::new(zones) }
    }

    pub async fn get(&self, workspace_id: i64) -> Result<Zone> {
        if let Some(zone) = self.zones.get(&workspace_id) {
            return Ok(zone);
        }
        let reading = self.zones.begin();
        let zone = self.store.read("workspaces::time_zone", move |conn| find(conn, workspace_id)).await?;
        self.zones.insert(reading, workspace_id, zone.clone());
        Ok(zone)
    }

    /// Changes it, here at once and on other servers a moment later.
    pub async fn change(&self, workspace_id: i64, zone: Zone) -> Result<()> {
        let work = move |conn: &mut Conn| set(conn, workspace_id, &zone);
        self.store.write("workspaces::set_time_zone", work).await?;
        self.forget(workspace_id);
        self.store.changes().tell(Change::Workspace(workspace_id));
        Ok(())
    }

    pub fn forget(&self, workspace_id: i64) {
        self.zones.forget([&workspace_id]);
    }

    pub fn forget_all(&self) {
        self.zones.forget_all();
    }
}
