//! The trail of changes: one row per change, written in the transaction that makes it, so that there is none without the
//! other. Rows of a workspace are a chain: each holds the hash of the one before. Which operations are changes is the
//! table below; every door, worker and command that runs one of them leaves a row, without knowing of it. Reading,
//! checking and pruning the trail is `crate::audit`'s.

use std::cell::RefCell;
use std::future::Future;
use std::sync::Arc;

use diesel::prelude::*;
use diesel::sql_query;
use diesel::sql_types::{BigInt, Binary, Text};
use ring::digest;
/// What a thing was or is, to be written down.
pub use serde_json::Value as Shown;

use crate::chance;
use crate::db::{Conn, DbError};
use crate::metering::time::Timestamp;

/// Operation, what the trail calls it, and what kind of thing it is about.
pub const CHANGES: &[(&str, &str, &str)] = &[
    ("alerts::add", "alert.created", "alert"),
    ("alerts::delete", "alert.deleted", "alert"),
    ("alerts::snooze", "alert.snoozed", "alert"),
    ("alerts::update", "alert.updated", "alert"),
    ("assignments::assign", "plan.assigned", "subject"),
    ("assignments::unassign", "plan.unassigned", "subject"),
    ("audit::prune", "audit.pruned", "audit"),
    ("deliveries::redeliver", "delivery.repeated", "delivery"),
    ("deliveries::replay", "deliveries.repeated", "delivery"),
    ("deliveries::retry", "delivery.retried", "delivery"),
    ("destinations::add", "destination.created", "destination"),
    ("destinations::delete", "destination.deleted", "destination"),
    ("destinations::disable", "destination.disabled", "destination"),
    ("destinations::rotate", "destination.secret_rotated", "destination"),
    ("destinations::update", "destination.updated", "destination"),
    ("exports::add", "export.created", "export"),
    ("exports::cancel", "export.canceled", "export"),
    ("exports::retry", "export.retried", "export"),
    ("identities::add", "identity.connected", "identity"),
    ("identities::remove", "identity.disconnected", "identity"),
    ("import::workspace", "workspace.imported", "workspace"),
    ("invitations::accept", "invitation.accepted", "invitation"),
    ("invitations::create", "invitation.created", "invitation"),
    ("invitations::revoke", "invitation.revoked", "invitation"),
    ("jobs::requeue", "dead_letter.requeued", "dead_letter"),
    ("jobs::requeue_all", "dead_letters.requeued", "dead_letter"),
    ("key_ring::rotate", "key_ring.rotated", "key_ring"),
    ("keys::create", "api_key.created", "api_key"),
    ("keys::revoke", "api_key.revoked", "api_key"),
    ("keys::rotate", "api_key.rotated", "api_key"),
    ("links::create", "subject_link.created", "subject_link"),
    ("links::revoke", "subject_link.revoked", "subject_link"),
    ("members::by_group", "member.role_changed", "member"),
    ("members::hand_over", "workspace.handed_over", "member"),
    ("members::leave", "member.left", "member"),
    ("members::remove", "member.removed", "member"),
    ("members::set_role", "member.role_changed", "member"),
    ("meters::add", "meter.created", "meter"),
    ("meters::delete", "meter.deleted", "meter"),
    ("meters::update", "meter.updated", "meter"),
    ("operator::create_user", "user.created", "user"),
    ("operator::disable_user", "user.disabled", "user"),
    ("operator::enable_user", "user.enabled", "user"),
    ("operator::end_sign_ins", "session.ended", "user"),
    ("operator::reset_password", "operator.password_reset", "user"),
    ("operator::unlock_user", "user.unlocked", "user"),
    ("passwords::change", "user.password_changed", "user"),
    ("passwords::refuse", "user.password_refused", "user"),
    ("passwords::request_reset", "user.password_reset_requested", "user"),
    ("passwords::reset", "user.password_reset", "user"),
    ("plans::add", "plan.created", "plan"),
    ("plans::delete", "plan.deleted", "plan"),
    ("plans::update", "plan.updated", "plan"),
    ("preferences::change", "user.preferences_changed", "user"),
    ("retention::add_run", "prune.run", "prune_run"),
    ("saved_queries::add", "saved_query.created", "saved_query"),
    ("saved_queries::delete", "saved_query.deleted", "saved_query"),
    ("saved_queries::unshare", "saved_query.unshared", "saved_query"),
    ("saved_queries::update", "saved_query.updated", "saved_query"),
    ("sessions::close", "session.ended", "session"),
    ("sessions::fail", "session.failed", "user"),
    ("sessions::open", "session.created", "user"),
    ("sessions::reuse", "session.reused", "user"),
    ("sessions::switch", "session.moved", "workspace"),
    ("sign_ins::end", "session.ended", "user"),
    ("tenant::export", "workspace.exported", "workspace"),
    ("tenant::import", "workspace.imported", "workspace"),
    ("users::register", "user.registered", "user"),
    ("workspaces::create", "workspace.created", "workspace"),
    ("workspaces::rename", "workspace.renamed", "workspace"),
    ("workspaces::set_key_conflicts", "workspace.key_conflicts_changed", "workspace"),
    ("workspaces::set_time_zone", "workspace.time_zone_changed", "workspace"),
];

/// Operations that change nothing that somebody decided: what is measured, what follows from a decision by itself, and
/// what processes note about themselves.
pub const NO_CHANGES: &[&str] = &[
    "alerts::come_again",
    "alerts::evaluate_disabled",
    "alerts::revive",
    "alerts::settle",
    "chores::note",
    "decisions::add_prune_run",
    "decisions::prune",
    "deliveries::record",
    "deliveries::sweep",
    "entitlements::evaluate",
    "events::insert",
    "events::sweep_replays",
    "exports::advance",
    "exports::complete",
    "exports::expire",
    "exports::fail",
    "exports::fail_abandoned",
    "exports::start",
    "fold::apply",
    "fold::fold",
    "history::add_refused",
    "history::delete_past",
    "jobs::bury",
    "jobs::claim",
    "jobs::finish",
    "jobs::heartbeat",
    "jobs::leave",
    "jobs::rebase",
    "jobs::release",
    "jobs::renew",
    "jobs::retry",
    "keys::expire",
    "keys::note_use",
    "known_devices::add",
    "known_devices::see",
    "leases::release",
    "leases::renew",
    "leases::take",
    "links::note_use",
    "partitions::attach",
    "partitions::detach",
    "partitions::drop",
    "provider_flows::begin",
    "provider_flows::finish",
    "refused::add",
    "refused::expire",
    "retention::delete_step",
    "retention::dry_run",
    "sessions::refresh",
    "sessions::sweep",
    "settle::apply",
    "settle::settle",
    "sign_ins::sweep",
    "stored_queries::expire",
    "stored_queries::put",
    "stored_queries::touch",
    "users::replace_hash",
];

/// The chain of what belongs to no workspace.
pub const SERVER: i64 = 0;

/// Who does something.
#[derive(Clone, Debug)]
pub struct Actor {
    pub kind: &'static str,
    pub id: String,
    pub name: String,
}

impl Actor {
    /// What happens by itself.
    pub fn system() -> Actor {
        Actor { kind: "system", id: String::new(), name: String::new() }
    }

    /// Whoever runs commands on the machine.
    pub fn operator() -> Actor {
        Actor { kind: "operator", ..Actor::system() }
    }

    /// Somebody who has not said who they are.
    pub fn nobody() -> Actor {
        Actor { kind: "anonymous", ..Actor::system() }
    }
}

/// Who is at work, and from where: the same for all that one call changes.
#[derive(Clone, Debug)]
pub struct Scene {
    pub workspace_id: i64,
    pub actor: Actor,
    pub address: String,
    pub user_agent: String,
    pub request_id: String,
    /// The last id of the path, for changes that do not say what they are about.
    pub target: String,
}

impl Scene {
    /// Without a request.
    pub fn of(actor: Actor) -> Scene {
        let nothing = String::new;
        Scene {
            workspace_id: SERVER,
            actor,
            address: nothing(),
            user_agent: nothing(),
            request_id: nothing(),
            target: nothing(),
        }
    }
}

tokio::task_local! {
    static SCENE: Arc<Scene>;
}

/// Does the work of a call; its changes are put down to whoever is in the scene.
pub async fn within<F: Future>(scene: Scene, work: F) -> F::Output {
    SCENE.scope(Arc::new(scene), work).await
}

/// Work of this task that goes on when its call is answered, put down to the same scene.
pub fn carried_on<F: Future>(work: F) -> impl Future<Output = F::Output> {
    let scene = scene();
    async move {
        match scene {
            Some(scene) => SCENE.scope(scene, work).await,
            None => work.await,
        }
    }
}

/// Where the call of this task comes from: address and program.
pub fn origin() -> (String, String) {
    scene().map(|scene| (cut(&scene.address), cut(&scene.user_agent))).unwrap_or_default()
}

/// The scene of this task; what happens without one happens by itself.
pub(super) fn scene() -> Option<Arc<Scene>> {
    SCENE.try_with(Arc::clone).ok()
}

/// What a change says about itself while it is being made.
#[derive(Default)]
struct Notes {
    workspace_id: Option<i64>,
    actor: Option<Actor>,
    target: Option<(String, String)>,
    before: String,
    after: String,
    nothing_changed: bool,
}

thread_local! {
    static NOTES: RefCell<Option<Notes>> = const { RefCell::new(None) };
}

fn note(write: impl FnOnce(&mut Notes)) {
    NOTES.with_borrow_mut(|notes| {
        if let Some(notes) = notes {
            write(notes);
        }
    });
}

/// Inside of a transaction: which thing is changed, by the id that callers know and by its name of now.
pub fn about(id: &str, name: &str) {
    note(|notes| notes.target = Some((id.to_owned(), name.to_owned())));
}

/// Inside of a transaction: the thing as it was and as it is; never with a secret.
pub fn states(before: Option<Shown>, after: Option<Shown>) {
    let text = |value: Option<Shown>| value.map(|value| value.to_string()).unwrap_or_default();
    note(|notes| (notes.before, notes.after) = (text(before), text(after)));
}

/// Inside of a transaction: whose trail it belongs to, where the call itself does not tell.
pub fn in_workspace(id: i64) {
    note(|notes| notes.workspace_id = Some(id));
}

/// Inside of a transaction: who it was, where the call itself does not tell.
pub fn by(actor: Actor) {
    note(|notes| notes.actor = Some(actor));
}

/// Inside of a transaction: what was said before about one of its steps does not hold for all of it.
pub fn something_changed() {
    note(|notes| notes.nothing_changed = false);
}

/// Inside of a transaction: it was so already.
pub fn nothing_changed() {
    note(|notes| notes.nothing_changed = true);
}

/// The action and the kind of its target, if the operation is a change.
fn change_of(operation: &str) -> Option<(&'static str, &'static str)> {
    CHANGES.iter().find(|(name, ..)| *name == operation).map(|(_, action, kind)| (*action, *kind))
}

/// Runs the work of a transaction, and adds its row to the trail when it is a change.
pub(super) fn witnessed<T>(
    conn: &mut Conn,
    operation: &'static str,
    scene: Option<&Scene>,
    work: impl FnOnce(&mut Conn) -> Result<T, DbError>,
) -> Result<T, DbError> {
    let Some(change) = change_of(operation) else { return work(conn) };
    NOTES.replace(Some(Notes::default()));
    let done = work(conn);
    let notes = NOTES.take().unwrap_or_default();
    let value = done?;
    note_down(conn, change, scene, notes)?;
    Ok(value)
}

fn note_down(
    conn: &mut Conn,
    (action, kind): (&'static str, &'static str),
    scene: Option<&Scene>,
    notes: Notes,
) -> Result<(), DbError> {
    if notes.nothing_changed {
        return Ok(());
    }
    let system = Scene::of(Actor::system());
    append(conn, &Entry::new(action, kind, scene.unwrap_or(&system), notes))
}

/// For commands of operators, inside of a transaction that does more: what happened to a workspace, by its number, and by the
/// id and the name that people know.
pub fn put_down(
    conn: &mut Conn,
    operation: &'static str,
    workspace_id: i64,
    [id, name]: [&str; 2],
    after: Option<Shown>,
) -> Result<(), DbError> {
    let scene = Scene::of(Actor::operator());
    witnessed(conn, operation, Some(&scene), |_| {
        in_workspace(workspace_id);
        about(id, name);
        states(None, after);
        Ok(())
    })
}

/// A row of the trail without its place in the chain.
#[derive(Debug)]
pub struct Entry {
    pub workspace_id: i64,
    pub id: String,
    pub time: i64,
    pub actor: [String; 3],
    pub action: String,
    pub target: [String; 3],
    pub before: String,
    pub after: String,
    pub address: String,
    pub user_agent: String,
    pub request_id: String,
}

/// Longer texts of a caller are cut: the trail keeps who and what, not everything a client can send.
const TEXT_CHARACTERS_MAX: usize = 300;
const STATE_BYTES_MAX: usize = 64 * 1024;

fn cut(text: &str) -> String {
    text.chars().filter(|c| !c.is_control()).take(TEXT_CHARACTERS_MAX).collect()
}

fn state(text: String) -> String {
    if text.len() > STATE_BYTES_MAX { "\"too long to be kept here\"".to_owned() } else { text }
}

impl Entry {
    fn new(action: &str, kind: &str, scene: &Scene, notes: Notes) -> Entry {
        let actor = notes.actor.unwrap_or_else(|| scene.actor.clone());
        let (id, name) = notes.target.unwrap_or_else(|| (scene.target.clone(), String::new()));
        Entry {
            workspace_id: notes.workspace_id.unwrap_or(scene.workspace_id),
            id: chance::id().to_string(),
            time: Timestamp::now().0,
            actor: [actor.kind.to_owned(), cut(&actor.id), cut(&actor.name)],
            action: action.to_owned(),
            target: [kind.to_owned(), cut(&id), cut(&name)],
            before: state(notes.before),
            after: state(notes.after),
            address: cut(&scene.address),
            user_agent: cut(&scene.user_agent),
            request_id: cut(&scene.request_id),
        }
    }

    /// The hash of the row behind this one. Every field has its length in front, so that no two rows look alike.
    pub fn hash(&self, sequence: i64, previous: &[u8]) -> Vec<u8> {
        let mut context = digest::Context::new(&digest::SHA256);
        context.update(previous);
        for number in [self.workspace_id, sequence, self.time] {
            context.update(&number.to_be_bytes());
        }
        let texts = [&self.id, &self.action, &self.before, &self.after, &self.address, &self.user_agent];
        let texts = texts.into_iter().chain([&self.request_id]).chain(&self.actor).chain(&self.target);
        for text in texts {
            context.update(&(text.len() as u64).to_be_bytes());
            context.update(text.as_bytes());
        }
        context.finish().as_ref().to_vec()
    }
}

#[derive(QueryableByName)]
struct Head {
    #[diesel(sql_type = BigInt)]
    sequence: i64,
    #[diesel(sql_type = Binary)]
    hash: Vec<u8>,
}

/// Takes the next place in the chain; others of this workspace wait for it until the transaction ends, which it is about
/// to do.
fn next_place(conn: &mut Conn, workspace_id: i64) -> Result<Head, DbError> {
    let take = |conn: &mut Conn| {
        let text = "-- audit::next_place
            UPDATE audit_heads SET sequence = sequence + 1 WHERE workspace_id = $1 RETURNING sequence, hash";
        sql_query(text).bind::<BigInt, _>(workspace_id).get_result::<Head>(conn).optional()
    };
    if let Some(head) = take(conn)? {
        return Ok(head);
    }
    let begin = "INSERT INTO audit_heads (workspace_id, sequence, hash, pruned_sequence, pruned_hash)
                 VALUES ($1, 0, $2, 0, $3) ON CONFLICT DO NOTHING";
    let nothing: &[u8] = &[];
    sql_query(begin)
        .bind::<BigInt, _>(workspace_id)
        .bind::<Binary, _>(nothing)
        .bind::<Binary, _>(nothing)
        .execute(conn)?;
    take(conn)?.ok_or_else(|| crate::error::Error::internal("the trail of changes has no head").into())
}

/// Adds a row to the trail.
pub fn append(conn: &mut Conn, entry: &Entry) -> Result<(), DbError> {
    let head = next_place(conn, entry.workspace_id)?;
    let hash = entry.hash(head.sequence, &head.hash);
    let text = "-- audit::append
        INSERT INTO audit_events (workspace_id, sequence, id, time, actor_kind, actor_id, actor_name, action,
                                  target_kind, target_id, target_name, state_before, state_after, address, user_agent,
                                  request_id, hash)
        VALUES ($1, $2, $3, $4, $5, $6, $7, $8, $9, $10, $11, $12, $13, $14, $15, $16, $17)";
    sql_query(text)
        .bind::<BigInt, _>(entry.workspace_id)
        .bind::<BigInt, _>(head.sequence)
        .bind::<Text, _>(&entry.id)
        .bind::<BigInt, _>(entry.time)
        .bind::<Text, _>(&entry.actor[0])
        .bind::<Text, _>(&entry.actor[1])
        .bind::<Text, _>(&entry.actor[2])
        .bind::<Text, _>(&entry.action)
        .bind::<Text, _>(&entry.target[0])
        .bind::<Text, _>(&entry.target[1])
        .bind::<Text, _>(&entry.target[2])
        .bind::<Text, _>(&entry.before)
        .bind::<Text, _>(&entry.after)
        .bind::<Text, _>(&entry.address)
        .bind::<Text, _>(&entry.user_agent)
        .bind::<Text, _>(&entry.request_id)
        .bind::<Binary, _>(&hash)
        .execute(conn)?;
    sql_query("-- audit::move_head\nUPDATE audit_heads SET hash = $1 WHERE workspace_id = $2")
        .bind::<Binary, _>(&hash)
        .bind::<BigInt, _>(entry.workspace_id)
        .execute(conn)?;
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn no_operation_is_both_a_change_and_none() {
        let changes: Vec<&str> = CHANGES.iter().map(|(operation, ..)| *operation).collect();
        assert!(changes.is_sorted() && NO_CHANGES.is_sorted(), "in the order of the alphabet");
        assert!(!changes.iter().any(|operation| NO_CHANGES.contains(operation)));
    }

    #[test]
    fn the_hash_covers_every_field() {
        let notes = || Notes { target: Some(("i".into(), "n".into())), ..Notes::default() };
        let scene = Scene { address: "a".into(), ..Scene::of(Actor::operator()) };
        let mut entry = Entry::new("meter.created", "meter", &scene, notes());
        let whole = entry.hash(1, &[7]);
        assert_eq!(whole, entry.hash(1, &[7]));
        assert_ne!(whole, entry.hash(2, &[7]));
        assert_ne!(whole, entry.hash(1, &[8]));
        // moving a letter from one field to its neighbour is seen
        (entry.address, entry.user_agent) = (String::new(), "a".into());
        assert_ne!(whole, entry.hash(1, &[7]));
        (entry.address, entry.user_agent) = ("a".into(), String::new());
        entry.time += 1;
        assert_ne!(whole, entry.hash(1, &[7]));
    }
}
