//! On which node of a cluster (`cluster`) a row lies, as the coordinator decides it: by a hash of the column by which its table
//! is laid out. Known here so that calls that need a node which is away can be told before anything waits for it. A guess
//! that is wrong costs time and no more: shards may have moved since they were read.

use diesel::sql_types::{BigInt, Text};
use diesel::{QueryableByName, RunQueryDsl, sql_query};

use super::{Conn, DbError};

/// The number of a group of Citus: a standby that takes over has that of its node.
pub type Node = i64;

/// The least hash of each shard and where it lies, in the order of hashes.
type Shards = Vec<(i64, Node)>;

#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Placement {
    events: Shards,
    keys: Shards,
}

#[derive(QueryableByName)]
struct ShardRow {
    #[diesel(sql_type = Text)]
    name: String,
    #[diesel(sql_type = BigInt)]
    least: i64,
    #[diesel(sql_type = BigInt)]
    node: i64,
}

impl Placement {
    /// Of a database that lies on nodes; of any other, nothing.
    pub fn load(conn: &mut Conn) -> Result<Placement, DbError> {
        let mut placement = Placement::default();
        if !conn.is_distributed() {
            return Ok(placement);
        }
        let rows: Vec<ShardRow> = sql_query(
            "SELECT s.logicalrelid::text AS name, s.shardminvalue::bigint AS least, p.groupid::bigint AS node
             FROM pg_dist_shard s JOIN pg_dist_placement p ON p.shardid = s.shardid
             WHERE s.logicalrelid IN ('events'::regclass, 'idempotency_keys'::regclass)
             ORDER BY s.shardminvalue::bigint",
        )
        .load(conn)?;
        for ShardRow { name, least, node } in rows {
            let shards = if name == "events" { &mut placement.events } else { &mut placement.keys };
            shards.push((least, node));
        }
        Ok(placement)
    }

    pub fn of_subject(&self, id: i64) -> Option<Node> {
        node_of(&self.events, hash_of_number(id))
    }

    /// Of a key of the ledger, and of what else is known by it.
    pub fn of_key(&self, key: &[u8]) -> Option<Node> {
        node_of(&self.keys, hash_of_bytes(key))
    }
}

fn node_of(shards: &[(i64, Node)], hash: i32) -> Option<Node> {
    let behind = shards.partition_point(|(least, _)| *least <= i64::from(hash));
    shards.get(behind.checked_sub(1)?).map(|(_, node)| *node)
}

/// `hashint8` of PostgreSQL.
pub fn hash_of_number(number: i64) -> i32 {
    let (low, high) = (number as u32, (number >> 32) as u32);
    let folded = low ^ if number >= 0 { high } else { !high };
    let start = start(4);
    last(start.wrapping_add(folded), start, start)
}

/// `hash_any` of PostgreSQL (Jenkins' lookup3), which is that of a `bytea`.
pub fn hash_of_bytes(bytes: &[u8]) -> i32 {
    let start = start(bytes.len() as u32);
    let (mut a, mut b, mut c) = (start, start, start);
    let mut blocks = bytes.chunks_exact(12);
    for block in &mut blocks {
        let [x, y, z] = [0, 4, 8].map(|at| word(&block[at..at + 4]));
        (a, b, c) = mixed(a.wrapping_add(x), b.wrapping_add(y), c.wrapping_add(z));
    }
    let rest = blocks.remainder();
    let part = |from: usize| word(&rest[from.min(rest.len())..(from + 4).min(rest.len())]);
    // the lowest byte of c is the length's
    last(a.wrapping_add(part(0)), b.wrapping_add(part(4)), c.wrapping_add(part(8) << 8))
}

fn start(length: u32) -> u32 {
    0x9e37_79b9_u32.wrapping_add(length).wrapping_add(3_923_095)
}

/// Up to four bytes, the least significant one first.
fn word(bytes: &[u8]) -> u32 {
    bytes.iter().rev().fold(0, |word, byte| (word << 8) | u32::from(*byte))
}

fn mixed(mut a: u32, mut b: u32, mut c: u32) -> (u32, u32, u32) {
    for [first, second, third] in [[4, 6, 8], [16, 19, 4]] {
        a = a.wrapping_sub(c) ^ c.rotate_left(first);
        c = c.wrapping_add(b);
        b = b.wrapping_sub(a) ^ a.rotate_left(second);
        a = a.wrapping_add(c);
        c = c.wrapping_sub(b) ^ b.rotate_left(third);
        b = b.wrapping_add(a);
    }
    (a, b, c)
}

fn last(mut a: u32, mut b: u32, mut c: u32) -> i32 {
    c = (c ^ b).wrapping_sub(b.rotate_left(14));
    a = (a ^ c).wrapping_sub(c.rotate_left(11));
    b = (b ^ a).wrapping_sub(a.rotate_left(25));
    c = (c ^ b).wrapping_sub(b.rotate_left(16));
    a = (a ^ c).wrapping_sub(c.rotate_left(4));
    b = (b ^ a).wrapping_sub(a.rotate_left(14));
    c = (c ^ b).wrapping_sub(b.rotate_left(24));
    c as i32
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn hashes_are_those_of_postgresql() {
        for (number, hash) in [
            (0, -272_711_505),
            (1, -1_905_060_026),
            (42, 1_509_752_520),
            (-1, 385_747_274),
            (1 << 32, -1_905_060_026),
            (i64::MAX, -1_524_351_049),
            (1_234_567_890_123_456_789, 804_253_767),
        ] {
            assert_eq!(hash_of_number(number), hash, "{number}");
        }
        for (text, hash) in [
            ("", -1_477_818_771),
            ("a", 1_075_015_857),
            ("key-1", -497_482_992),
            ("abcdefghijk", -1_483_803_693),
            ("abcdefghijkl", -1_586_087_212),
            ("abcdefghijklm", 405_849_808),
            ("z000000001-with-more-than-two-blocks-of-it", 1_875_235_872),
        ] {
            assert_eq!(hash_of_bytes(text.as_bytes()), hash, "{text}");
        }
    }

    #[test]
    fn a_hash_lies_in_the_shard_that_begins_at_or_before_it() {
        let shards = vec![(i64::from(i32::MIN), 1), (0, 2)];
        let nodes = [i32::MIN, -1, 0, i32::MAX].map(|hash| node_of(&shards, hash));
        assert_eq!(nodes, [Some(1), Some(1), Some(2), Some(2)]);
        assert_eq!(node_of(&[], 0), None);
    }
}
