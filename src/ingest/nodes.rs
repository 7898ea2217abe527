//! Nodes of a cluster that are away, as far as calls tell: of the nodes that a call needs which could not be stored by itself
//! one is away, and those on which others are stored are not it. From then on calls that need this node are refused at
//! once, but for one now and then that finds out whether it is back, and the others are committed together as ever,
//! instead of failing with them. Nothing is lost by a wrong guess: who is refused comes again.

use std::collections::{BTreeSet, HashMap, VecDeque};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use crate::clock;
use crate::db::Store;
use crate::db::placement::{Node, Placement};
use crate::ingest::insert::Batch;
use crate::metering::event;
use crate::usage::subject_ids;

/// A node that is away is tried again after this.
const TRIED_EVERY: Duration = Duration::from_secs(1);
/// A failure that nothing has explained by then is forgotten.
const DOUBT_AGE: Duration = Duration::from_secs(5);
const DOUBTS_MAX: usize = 64;
/// Shards seldom move.
const PLACEMENT_AGE: Duration = Duration::from_secs(60);

/// What may become of a call.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Way {
    Together,
    /// It finds out about a node that was away.
    Alone,
    Refused,
}

#[derive(Default)]
pub struct Nodes {
    placement: Mutex<Option<(Instant, Arc<Placement>)>>,
    known: Mutex<Known>,
}

#[derive(Default)]
struct Known {
    nodes: HashMap<Node, Seen>,
    /// Of each failure that is not explained: when it was, and the nodes of which one was away.
    doubts: VecDeque<(Instant, BTreeSet<Node>)>,
}

#[derive(Clone, Copy, Default)]
struct Seen {
    /// When a call that needed it was last stored.
    stored_at: Option<Instant>,
    /// It is away, and is tried when this is over.
    away_until: Option<Instant>,
}

impl Nodes {
    /// Where rows lie, as of a minute ago at most if the database answers.
    pub async fn placement(&self, store: &Store) -> Arc<Placement> {
        let known = self.placement.lock().unwrap_or_else(PoisonError::into_inner).clone();
        if let Some((at, placement)) = &known
            && clock::since(*at) < PLACEMENT_AGE
        {
            return placement.clone();
        }
        let placement = match store.ingestion().read("cluster::placement", Placement::load).await {
            Ok(placement) => Arc::new(placement),
            Err(error) => {
                log::debug!(error:% = error; "where shards lie was not read");
                known.map(|(_, placement)| placement).unwrap_or_default()
            }
        };
        let read = (clock::moment(), placement.clone());
        *self.placement.lock().unwrap_or_else(PoisonError::into_inner) = Some(read);
        placement
    }

    /// How a call that needs these nodes goes now.
    pub fn way(&self, needs: &BTreeSet<Node>, now: Instant) -> Way {
        let mut known = self.known();
        if needs.iter().filter_map(|node| known.away_until(node)).any(|until| now < until) {
            return Way::Refused;
        }
        let mut way = Way::Together;
        for node in needs {
            if known.away_until(node).is_some() {
                known.note_away(*node, now);
                way = Way::Alone;
            }
        }
        way
    }

    /// Calls that needed these nodes were stored.
    pub fn stored(&self, needs: &BTreeSet<Node>, now: Instant) {
        let mut known = self.known();
        for node in needs {
            let before = known.nodes.insert(*node, Seen { stored_at: Some(now), away_until: None });
            if before.is_some_and(|before| before.away_until.is_some()) {
                log::info!(node; "a node of the cluster is back");
            }
        }
        for (at, mut doubt) in std::mem::take(&mut known.doubts) {
            doubt.retain(|node| !needs.contains(node));
            if now.duration_since(at) < DOUBT_AGE {
                known.suspect(doubt, at, now);
            }
        }
    }

    /// One call, begun then, was not stored because a node is away.
    pub fn failed(&self, needs: &BTreeSet<Node>, began: Instant, now: Instant) {
        let mut known = self.known();
        let is_fine =
            |node: &Node| known.nodes.get(node).and_then(|seen| seen.stored_at).is_some_and(|at| at >= began);
        let suspects: BTreeSet<Node> = needs.iter().copied().filter(|node| !is_fine(node)).collect();
        let explained: Vec<Node> =
            suspects.iter().copied().filter(|node| known.away_until(node).is_some()).collect();
        if explained.is_empty() {
            known.suspect(suspects, now, now);
        }
        explained.into_iter().for_each(|node| known.note_away(node, now));
    }

    fn known(&self) -> MutexGuard<'_, Known> {
        self.known.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Known {
    fn away_until(&self, node: &Node) -> Option<Instant> {
        self.nodes.get(node)?.away_until
    }

    fn note_away(&mut self, node: Node, now: Instant) {
        let seen = self.nodes.entry(node).or_default();
        if seen.away_until.replace(now + TRIED_EVERY).is_none() {
            log::warn!(node; "a node of the cluster is away");
        }
    }

    /// One of these was away at that time.
    fn suspect(&mut self, nodes: BTreeSet<Node>, at: Instant, now: Instant) {
        match nodes.first() {
            Some(node) if nodes.len() == 1 => self.note_away(*node, now),
            Some(_) => {
                self.doubts.truncate(DOUBTS_MAX);
                self.doubts.push_front((at, nodes));
            }
            None => {}
        }
    }
}

/// The nodes without which a call cannot be stored, as far as is known.
pub fn needs(placement: &Placement, batch: &Batch) -> BTreeSet<Node> {
    let workspace_id = batch.origin.workspace_id;
    let mut nodes = BTreeSet::new();
    nodes.extend(batch.replay_key.as_deref().and_then(|key| placement.of_key(&event::ledger_key(key))));
    for event in &batch.events {
        nodes.extend(placement.of_subject(subject_ids::usual(workspace_id, &event.subject)));
        nodes.extend(event.ledger_key().and_then(|key| placement.of_key(&key)));
    }
    nodes
}

#[cfg(test)]
mod tests {
    use super::*;

    fn set<const N: usize>(nodes: [Node; N]) -> BTreeSet<Node> {
        nodes.into()
    }

    #[test]
    fn only_calls_that_need_the_node_are_refused_and_one_a_second_is_tried() {
        let (nodes, start) = (Nodes::default(), clock::moment());
        let at = |millis| start + Duration::from_millis(millis);
        assert_eq!(nodes.way(&set([1, 2]), at(0)), Way::Together);
        // a call on 1 and 2 fails, while others are stored on 2
        nodes.stored(&set([2, 3]), at(1));
        nodes.failed(&set([1, 2]), at(0), at(2));
        assert_eq!(nodes.way(&set([2, 3]), at(3)), Way::Together);
        assert_eq!(nodes.way(&set([1]), at(3)), Way::Refused);
        assert_eq!(nodes.way(&set([1, 3]), at(1_002)), Way::Alone);
        assert_eq!(nodes.way(&set([1, 3]), at(1_003)), Way::Refused, "one is tried already");
        nodes.stored(&set([1, 3]), at(1_100));
        assert_eq!(nodes.way(&set([1, 2, 3]), at(1_101)), Way::Together);
    }

    #[test]
    fn of_two_nodes_nobody_is_refused_until_it_is_known_which() {
        let (nodes, start) = (Nodes::default(), clock::moment());
        let at = |millis| start + Duration::from_millis(millis);
        nodes.stored(&set([1, 2, 3]), at(0));
        nodes.failed(&set([1, 2, 3]), at(1), at(2));
        nodes.stored(&set([3]), at(3));
        assert_eq!(nodes.way(&set([1, 2]), at(4)), Way::Together);
        nodes.stored(&set([2]), at(5));
        assert_eq!(
            (nodes.way(&set([2, 3]), at(6)), nodes.way(&set([1]), at(6))),
            (Way::Together, Way::Refused)
        );
    }

    #[test]
    fn an_old_failure_accuses_nobody() {
        let (nodes, start) = (Nodes::default(), clock::moment());
        let at = |seconds| start + Duration::from_secs(seconds);
        nodes.failed(&set([1, 2]), at(0), at(1));
        nodes.stored(&set([2]), at(60));
        assert_eq!(nodes.way(&set([1]), at(60)), Way::Together);
    }
}
