//! What people gave names to beside meters and subjects: plans, rules and destinations, for whoever looks for one of them.

use diesel::prelude::*;
use diesel::sql_query;
use diesel::sql_types::{BigInt, Text};

use crate::db::{Conn, DbError};

/// Far more than a workspace may have.
const READ_MAX: i64 = 10_000;

pub const PLAN: &str = "plan";
pub const RULE: &str = "rule";
pub const DESTINATION: &str = "destination";

#[derive(Debug, QueryableByName)]
pub struct Named {
    /// One of the words above.
    #[diesel(sql_type = Text)]
    pub kind: String,
    #[diesel(sql_type = Text)]
    pub public_id: String,
    #[diesel(sql_type = Text)]
    pub name: String,
    /// Of a plan.
    #[diesel(sql_type = BigInt)]
    pub version: i64,
}

/// All of a workspace, in one statement.
pub fn all(conn: &mut Conn, workspace_id: i64) -> Result<Vec<Named>, DbError> {
    let text = format!(
        "-- alerts::named
         SELECT kind, public_id, name, version FROM (
             SELECT '{PLAN}' AS kind, public_id, name, CAST(version AS BIGINT) AS version
             FROM plans WHERE workspace_id = $1 AND is_current
             UNION ALL SELECT '{RULE}', public_id, name, CAST(0 AS BIGINT) FROM alert_rules WHERE workspace_id = $1
             UNION ALL SELECT '{DESTINATION}', public_id, name, CAST(0 AS BIGINT)
             FROM alert_destinations WHERE workspace_id = $1
         ) AS named ORDER BY name, public_id LIMIT $2"
    );
    let query = sql_query(text).bind::<BigInt, _>(workspace_id).bind::<BigInt, _>(READ_MAX);
    Ok(query.load(conn)?)
}
