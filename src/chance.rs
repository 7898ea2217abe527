//! Chance, asked for here and nowhere else: ids, secrets, dice. A simulator that hands out its own numbers here meets the
//! same events again and again.
//!
//! What a number is good for is decided by who asks: how long a pause is, how many characters a secret has.

use std::hash::RandomState;
use std::ops::Range;

use rand::distr::uniform::SampleUniform;
use ring::rand::{SecureRandom, SystemRandom};
use uuid::Uuid;

use crate::error::{Error, Result};

/// An id of a row: those made later come later in an index.
#[expect(clippy::disallowed_methods, reason = "the one place that makes ids")]
pub fn id() -> Uuid {
    Uuid::now_v7()
}

/// A name that nobody else has, without an order: holders of leases, temporary files.
#[expect(clippy::disallowed_methods, reason = "the one place that makes names")]
pub fn name() -> Uuid {
    Uuid::new_v4()
}

/// Bytes that nobody can guess.
pub fn secret<const N: usize>() -> Result<[u8; N]> {
    let mut bytes = [0; N];
    SystemRandom::new().fill(&mut bytes).map_err(|_| Error::internal("the system has no random bytes"))?;
    Ok(bytes)
}

/// Dice: for spreading what would otherwise happen at once, never for secrets.
#[expect(clippy::disallowed_methods, reason = "the one place that throws dice")]
pub fn within<T: SampleUniform + PartialOrd>(range: Range<T>) -> T {
    rand::random_range(range)
}

/// The key of a hash table whose places a stranger must not be able to choose.
#[expect(clippy::disallowed_methods, reason = "the one place that keys hashes")]
pub fn hash_key() -> RandomState {
    RandomState::new()
}
