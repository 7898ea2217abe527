//! How many rows of a kind one workspace may have: so many that nobody meets the limit by using the server, so few that
//! lists and caches stay bounded.

use diesel::prelude::*;
use diesel::sql_query;
use diesel::sql_types::BigInt;

use crate::db::{Conn, DbError};
use crate::error::Error;

/// A kind of row that callers make at will.
#[derive(Clone, Copy)]
pub enum Kind {
    Meter,
    /// Not counting revoked ones.
    ApiKey,
    /// Revoked ones too: they stay, so that none comes back by being moved in again.
    AnyApiKey,
    /// Not counting older versions.
    Plan,
    /// Of all plans, not counting older versions: one list shows all of them.
    PlanLimit,
    AlertRule,
    AlertDestination,
    /// Of a user.
    SavedQuery,
    /// Queued or running.
    Export,
    /// Neither accepted nor revoked.
    Invitation,
    /// Whatever became of them, until they are cleaned up.
    AnyInvitation,
    /// Of a workspace.
    Member,
    /// Those that have ended too, until they are cleaned up.
    SubjectLink,
    /// Views under a short address.
    StoredQuery,
}

impl Kind {
    pub const fn most(self) -> i64 {
        match self {
            Kind::Meter | Kind::ApiKey | Kind::Plan | Kind::AlertRule => 1_000,
            Kind::AlertDestination | Kind::SavedQuery | Kind::Export => 500,
            Kind::Invitation => 200,
            Kind::Member => 1_000,
            // whoever rotates a thousand keys each week gets there in two years
            Kind::SubjectLink | Kind::AnyApiKey => 100_000,
            Kind::StoredQuery | Kind::AnyInvitation => 10_000,
            Kind::PlanLimit => 20_000,
        }
    }

    /// The rows that count for the owner.
    fn rows(self) -> &'static str {
        match self {
            Kind::Meter => "meters WHERE workspace_id = $1",
            Kind::ApiKey => "api_keys WHERE workspace_id = $1 AND revoked_at IS NULL",
            Kind::AnyApiKey => "api_keys WHERE workspace_id = $1",
            Kind::Plan => "plans WHERE workspace_id = $1 AND is_current",
            Kind::PlanLimit => {
                "plan_limits l JOIN plans p ON p.id = l.plan_id WHERE p.workspace_id = $1 AND p.is_current"
            }
            Kind::AlertRule => "alert_rules WHERE workspace_id = $1",
            Kind::AlertDestination => "alert_destinations WHERE workspace_id = $1",
            Kind::SavedQuery => "saved_queries WHERE user_id = $1",
            Kind::Export => "export_jobs WHERE workspace_id = $1 AND status IN ('queued', 'running')",
            Kind::Invitation => {
                "invitations WHERE workspace_id = $1 AND accepted_at IS NULL AND revoked_at IS NULL"
            }
            Kind::AnyInvitation => "invitations WHERE workspace_id = $1",
            Kind::Member => "memberships WHERE workspace_id = $1",
            Kind::SubjectLink => "subject_links WHERE workspace_id = $1",
            Kind::StoredQuery => "stored_queries WHERE workspace_id = $1",
        }
    }

    fn words(self) -> &'static str {
        match self {
            Kind::Meter => "meters",
            Kind::ApiKey => "API keys that are not revoked",
            Kind::AnyApiKey => "API keys, revoked ones included",
            Kind::Plan => "plans",
            Kind::PlanLimit => "limits of plans",
            Kind::AlertRule => "alert rules",
            Kind::AlertDestination => "alert destinations",
            Kind::SavedQuery => "saved queries",
            Kind::Export => "exports that are queued or running",
            Kind::Invitation => "open invitations",
            Kind::AnyInvitation => "invitations, those of the last weeks included",
            Kind::Member => "members",
            Kind::SubjectLink => "links of subjects, those that ended lately included",
            Kind::StoredQuery => "short addresses of views",
        }
    }
}

#[derive(QueryableByName)]
struct Held {
    #[diesel(sql_type = BigInt)]
    count: i64,
}

/// 409 when the owner, a workspace or a user, has as many rows as may be. Creations at the same moment may overshoot
/// by their number; nothing depends on the exact count.
pub fn check(conn: &mut Conn, kind: Kind, owner: i64) -> Result<(), DbError> {
    match held(conn, kind, owner)? < kind.most() {
        true => Ok(()),
        false => Err(reached(kind)),
    }
}

/// As [`check`], of rows that this transaction has added already.
pub fn check_added(conn: &mut Conn, kind: Kind, owner: i64) -> Result<(), DbError> {
    match held(conn, kind, owner)? <= kind.most() {
        true => Ok(()),
        false => Err(reached(kind)),
    }
}

/// How many rows the owner has; of more than may be, one more.
fn held(conn: &mut Conn, kind: Kind, owner: i64) -> Result<i64, DbError> {
    let (rows, most) = (kind.rows(), kind.most() + 1);
    let sql = format!("SELECT COUNT(*) AS count FROM (SELECT 1 FROM {rows} LIMIT {most}) held");
    let held: Held = sql_query(sql).bind::<BigInt, _>(owner).get_result(conn)?;
    Ok(held.count)
}

fn reached(kind: Kind) -> DbError {
    Error::limit_reached(format!("there may be at most {} {}", kind.most(), kind.words())).into()
}
