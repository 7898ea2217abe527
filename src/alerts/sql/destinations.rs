//! Where alerts are sent, with the secrets that sign them.

use diesel::prelude::*;

use crate::chance;
use crate::db::schema::{alert_destinations, alert_rules};
use crate::db::{Conn, DbError, audit, limits};
use crate::error::Error;
use crate::metering::time::Timestamp;
use crate::vault::{self, Place};

#[derive(Clone, Debug, Queryable, Selectable)]
#[diesel(table_name = alert_destinations)]
pub struct Destination {
    pub id: i64,
    pub public_id: String,
    pub workspace_id: i64,
    pub name: String,
    pub enabled: bool,
    pub webhook_url: String,
    /// As they are stored: opened by whoever needs them.
    secret: String,
    previous_secret: Option<String>,
    pub previous_until: Option<i64>,
    pub created_at: i64,
    pub updated_at: i64,
}

impl Destination {
    pub fn has_secret(&self) -> bool {
        !self.secret.is_empty()
    }

    /// What signs.
    pub fn secret(&self) -> Result<String, Error> {
        vault::ring().open(place("secret", &self.public_id, self.workspace_id), &self.secret)
    }

    /// The replaced secret, while it still signs.
    pub fn overlapping_secret(&self, now: Timestamp) -> Result<Option<String>, Error> {
        let still = self.previous_until.is_some_and(|until| now.0 < until);
        let place = place("previous_secret", &self.public_id, self.workspace_id);
        let stored = self.previous_secret.as_deref().filter(|_| still);
        stored.map(|stored| vault::ring().open(place, stored)).transpose()
    }
}

/// What a secret of a destination is bound to.
fn place<'a>(column: &'static str, public_id: &'a str, workspace_id: i64) -> Place<'a> {
    Place { table: "alert_destinations", column, row: public_id, workspace_id }
}

/// The secrets of a destination as they are stored, for sealing them anew.
#[derive(Clone, Debug, Queryable)]
pub struct StoredSecrets {
    pub id: i64,
    pub public_id: String,
    pub workspace_id: i64,
    pub secret: String,
    pub previous_secret: Option<String>,
}

impl StoredSecrets {
    /// Each of them with what it is bound to.
    pub fn each(&self) -> impl Iterator<Item = (Place<'_>, &str)> {
        let bound = |column, stored| (place(column, &self.public_id, self.workspace_id), stored);
        let previous = self.previous_secret.as_deref().map(move |stored| bound("previous_secret", stored));
        std::iter::once(bound("secret", self.secret.as_str())).chain(previous)
    }

    /// Another secret, sealed for this row.
    pub fn sealed(&self, secret: &str) -> Result<String, Error> {
        vault::sealing()?.seal(place("secret", &self.public_id, self.workspace_id), secret)
    }

    /// Both as the key that seals now seals them.
    pub fn sealed_anew(&self) -> Result<(String, Option<String>), Error> {
        let anew = |column: &'static str, stored: &str| {
            let place = place(column, &self.public_id, self.workspace_id);
            if vault::key_id(stored) == vault::ring().current() {
                return Ok(stored.to_owned());
            }
            vault::ring().seal(place, &vault::ring().open(place, stored)?)
        };
        let previous = self.previous_secret.as_deref().map(|stored| anew("previous_secret", stored));
        Ok((anew("secret", &self.secret)?, previous.transpose()?))
    }
}

/// The secrets behind this place, in order.
pub fn stored_secrets(conn: &mut Conn, after: i64, limit: i64) -> Result<Vec<StoredSecrets>, DbError> {
    let rows = alert_destinations::table
        .filter(alert_destinations::id.gt(after))
        .order(alert_destinations::id)
        .limit(limit)
        .select((
            alert_destinations::id,
            alert_destinations::public_id,
            alert_destinations::workspace_id,
            alert_destinations::secret,
            alert_destinations::previous_secret,
        ))
        .load(conn)?;
    Ok(rows)
}

/// Puts secrets in the place of those that were read, unless somebody changed them meanwhile; answers whether.
pub fn replace_secrets(
    conn: &mut Conn,
    read: &StoredSecrets,
    (secret, previous): &(String, Option<String>),
) -> Result<bool, DbError> {
    let mut row = diesel::update(alert_destinations::table.find(read.id))
        .set((
            alert_destinations::secret.eq(secret),
            alert_destinations::previous_secret.eq(previous.as_deref()),
        ))
        .filter(alert_destinations::secret.eq(&read.secret))
        .into_boxed();
    row = match &read.previous_secret {
        Some(previous) => row.filter(alert_destinations::previous_secret.eq(previous)),
        None => row.filter(alert_destinations::previous_secret.is_null()),
    };
    Ok(row.execute(conn)? > 0)
}

#[derive(Insertable)]
#[diesel(table_name = alert_destinations, treat_none_as_default_value = false)]
struct NewRow<'a> {
    public_id: String,
    workspace_id: i64,
    name: &'a str,
    enabled: bool,
    webhook_url: &'a str,
    secret: &'a str,
    created_at: i64,
    updated_at: i64,
}

/// Name, address and whether it is used at all.
#[derive(Clone, Debug)]
pub struct DestinationSpec {
    pub name: String,
    pub enabled: bool,
    pub webhook_url: String,
}

pub fn add(
    conn: &mut Conn,
    workspace_id: i64,
    terms: &DestinationSpec,
    secret: &str,
    now: Timestamp,
) -> Result<Destination, DbError> {
    limits::check(conn, limits::Kind::AlertDestination, workspace_id)?;
    let public_id = chance::id().to_string();
    let sealed = vault::sealing()?.seal(place("secret", &public_id, workspace_id), secret)?;
    let row = NewRow {
        public_id,
        workspace_id,
        name: &terms.name,
        enabled: terms.enabled,
        webhook_url: &terms.webhook_url,
        secret: &sealed,
        created_at: now.0,
        updated_at: now.0,
    };
    diesel::insert_into(alert_destinations::table).values(&row).execute(conn)?;
    audit::about(&row.public_id, &terms.name);
    audit::states(None, Some(shown(terms)));
    get(conn, workspace_id, &row.public_id)
}

impl Destination {
    fn spec(&self) -> DestinationSpec {
        let Destination { name, enabled, webhook_url, .. } = self;
        DestinationSpec { name: name.clone(), enabled: *enabled, webhook_url: webhook_url.clone() }
    }
}

/// What the audit trail keeps of a destination: not the path of its address, which may be a secret.
fn shown(terms: &DestinationSpec) -> audit::Shown {
    let host = url::Url::parse(&terms.webhook_url).ok().and_then(|url| url.host_str().map(str::to_owned));
    serde_json::json!({"name": terms.name, "enabled": terms.enabled, "host": host})
}

/// Newest first.
pub fn list(
    conn: &mut Conn,
    workspace_id: i64,
    enabled: Option<bool>,
    limit: i64,
) -> Result<Vec<Destination>, DbError> {
    let mut query = alert_destinations::table
        .filter(alert_destinations::workspace_id.eq(workspace_id))
        .order(alert_destinations::id.desc())
        .limit(limit)
        .select(Destination::as_select())
        .into_boxed();
    if let Some(enabled) = enabled {
        query = query.filter(alert_destinations::enabled.eq(enabled));
    }
    Ok(query.load(conn)?)
}

pub fn find(conn: &mut Conn, workspace_id: i64, public_id: &str) -> Result<Option<Destination>, DbError> {
    Ok(alert_destinations::table
        .filter(alert_destinations::workspace_id.eq(workspace_id))
        .filter(alert_destinations::public_id.eq(public_id))
        .select(Destination::as_select())
        .first(conn)
        .optional()?)
}

/// 404 when there is none.
pub fn get(conn: &mut Conn, workspace_id: i64, public_id: &str) -> Result<Destination, DbError> {
    find(conn, workspace_id, public_id)?.ok_or_else(|| Error::not_found("alert destination").into())
}

/// As [`get`], and nobody else changes or deletes it until the transaction ends.
pub fn lock(conn: &mut Conn, workspace_id: i64, public_id: &str) -> Result<Destination, DbError> {
    let found = get(conn, workspace_id, public_id)?;
    super::rules::lock_row(conn, "alert_destinations", found.id)?;
    get(conn, workspace_id, public_id)
}

pub fn update(
    conn: &mut Conn,
    workspace_id: i64,
    public_id: &str,
    change: impl Fn(&Destination) -> Result<DestinationSpec, Error>,
    now: Timestamp,
) -> Result<Destination, DbError> {
    let found = lock(conn, workspace_id, public_id)?;
    let terms = change(&found)?;
    diesel::update(alert_destinations::table.find(found.id))
        .set((
            alert_destinations::name.eq(&terms.name),
            alert_destinations::enabled.eq(terms.enabled),
            alert_destinations::webhook_url.eq(&terms.webhook_url),
            alert_destinations::updated_at.eq(now.0),
        ))
        .execute(conn)?;
    audit::about(public_id, &terms.name);
    audit::states(Some(shown(&found.spec())), Some(shown(&terms)));
    get(conn, workspace_id, public_id)
}

/// Signs with a new secret from now on, and with the old one as well until `until`.
pub fn rotate(
    conn: &mut Conn,
    workspace_id: i64,
    public_id: &str,
    secret: &str,
    until: Timestamp,
    now: Timestamp,
) -> Result<Destination, DbError> {
    let found = lock(conn, workspace_id, public_id)?;
    let ring = vault::sealing()?;
    let sealed = ring.seal(place("secret", public_id, workspace_id), secret)?;
    let previous = ring.seal(place("previous_secret", public_id, workspace_id), &found.secret()?)?;
    diesel::update(alert_destinations::table.find(found.id))
        .set((
            alert_destinations::secret.eq(sealed),
            alert_destinations::previous_secret.eq(Some(previous)),
            alert_destinations::previous_until.eq(Some(until.0)),
            alert_destinations::updated_at.eq(now.0),
        ))
        .execute(conn)?;
    audit::about(public_id, &found.name);
    get(conn, workspace_id, public_id)
}

/// 409 while a rule uses it.
pub fn delete(conn: &mut Conn, workspace_id: i64, public_id: &str) -> Result<(), DbError> {
    let found = lock(conn, workspace_id, public_id)?;
    let used: Option<i64> = alert_rules::table
        .filter(alert_rules::destination_id.eq(found.id))
        .select(alert_rules::id)
        .first(conn)
        .optional()?;
    if used.is_some() {
        return Err(Error::conflict("alert rules use this destination").into());
    }
    diesel::delete(alert_destinations::table.find(found.id)).execute(conn)?;
    audit::about(public_id, &found.name);
    audit::states(Some(shown(&found.spec())), None);
    Ok(())
}

/// The receiver said that it is gone.
pub fn disable(conn: &mut Conn, id: i64, now: Timestamp) -> Result<(), DbError> {
    let disabled: Option<(i64, String, String)> = diesel::update(alert_destinations::table.find(id))
        .set((alert_destinations::enabled.eq(false), alert_destinations::updated_at.eq(now.0)))
        .returning((
            alert_destinations::workspace_id,
            alert_destinations::public_id,
            alert_destinations::name,
        ))
        .get_result(conn)
        .optional()?;
    match disabled {
        Some((workspace_id, public_id, name)) => {
            audit::in_workspace(workspace_id);
            audit::about(&public_id, &name);
        }
        None => audit::nothing_changed(),
    }
    Ok(())
}
