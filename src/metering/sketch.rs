//! What grows with the values that it is told of, in bounded memory: the different values of a field, and how often each
//! quantity came. Every one is kept while they are few; beyond that a sketch, which says how far it may be off. Pure.

use std::collections::{BTreeMap, BTreeSet};

use datasketches::hll::{HllSketch, HllType, HllUnion};

use crate::metering::quantity::Quantity;

/// Values of one row of an answer that are told apart exactly, unless all are asked for.
pub const EXACT_MAX: usize = 8_192;

/// Fewer values take less room than a sketch of them.
const SHRUNK_FROM: usize = 256;

/// Of an entry, without its text.
pub(super) const ENTRY_BYTES: usize = 120;

/// 16,384 registers of a byte: 1.04 / 128 is the standard error (Flajolet et al. 2007, HyperLogLog).
const LG_REGISTERS: u8 = 14;

/// Three of its standard errors: 997 of 1,000 answers are nearer.
const DISTINCT_ERROR: (i64, i64) = (25, 3);

/// Digits of a quantity that are kept: half of the last one is at most 0.5 % of the quantity.
const DIGITS: u64 = 3;
const ROUNDED_ERROR: (i64, i64) = (5, 3);

/// Different values.
#[derive(Clone, Debug, PartialEq)]
pub struct Distinct {
    held: Values,
    /// How many are kept before they become a sketch.
    most: usize,
}

#[derive(Clone, Debug, PartialEq)]
enum Values {
    All(BTreeSet<String>),
    Sketch(Box<HllSketch>),
}

impl Distinct {
    pub fn of(value: String, most: usize) -> Distinct {
        Distinct { held: Values::All([value].into()), most }
    }

    /// In any order: what is left depends on the values only. Returns the bytes that it grew by, about, or shrank.
    pub fn merge(&mut self, other: &Distinct) -> isize {
        let more = match &other.held {
            Values::All(more) => more,
            Values::Sketch(more) => return self.merge_sketch(more),
        };
        let all = match &mut self.held {
            Values::All(all) => all,
            Values::Sketch(sketch) => {
                more.iter().for_each(|value| sketch.update(value));
                return 0;
            }
        };
        let mut grown = 0;
        for value in more {
            if !all.contains(value) {
                grown += ENTRY_BYTES + value.len();
                all.insert(value.clone());
            }
        }
        match all.len() > self.most {
            true => grown as isize + self.become_sketch(),
            false => grown as isize,
        }
    }

    fn merge_sketch(&mut self, more: &HllSketch) -> isize {
        let grown = self.become_sketch();
        if let Values::Sketch(sketch) = &mut self.held
            // refuses only numbers of registers that no sketch has
            && let Ok(mut union) = HllUnion::new(LG_REGISTERS)
        {
            union.update(sketch);
            union.update(more);
            **sketch = union.to_sketch(HllType::Hll8);
        }
        grown
    }

    /// Becomes a sketch where that takes less room and nobody asked for all values; returns the bytes that it grew by.
    pub fn shrink(&mut self) -> isize {
        match &self.held {
            Values::All(all) if self.most != usize::MAX && all.len() > SHRUNK_FROM => self.become_sketch(),
            _ => 0,
        }
    }

    fn become_sketch(&mut self) -> isize {
        let before = self.bytes() as isize;
        if let Values::All(all) = &self.held
            && let Ok(mut sketch) = HllSketch::new(LG_REGISTERS, HllType::Hll8)
        {
            all.iter().for_each(|value| sketch.update(value));
            self.held = Values::Sketch(Box::new(sketch));
        }
        self.bytes() as isize - before
    }

    pub fn count(&self) -> Quantity {
        match &self.held {
            Values::All(all) => Quantity::from(all.len() as i64),
            // the other estimate depends on the order of the values
            Values::Sketch(sketch) => Quantity::from(sketch.composite_estimate().round() as i64),
        }
    }

    pub fn error(&self) -> Option<Quantity> {
        let (digits, scale) = DISTINCT_ERROR;
        matches!(self.held, Values::Sketch(_)).then(|| Quantity::of_digits(digits, scale))
    }

    pub fn bytes(&self) -> usize {
        match &self.held {
            Values::All(all) => all.iter().map(|value| ENTRY_BYTES + value.len()).sum(),
            Values::Sketch(sketch) => sketch.estimated_size(),
        }
    }
}

/// How often each quantity came, and how many lie between bounds.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Spread {
    counts: BTreeMap<Quantity, u64>,
    /// How many are kept before they are rounded.
    most: usize,
    rounded: Option<Rounded>,
}

/// What stays exact of quantities that were rounded.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Rounded {
    min: Quantity,
    max: Quantity,
    /// As [`histogram`] has them.
    between: Vec<u64>,
}

impl Rounded {
    fn add(&mut self, other: &Spread, bounds: &[Quantity]) {
        let keys = &other.counts;
        let (min, max) = match &other.rounded {
            Some(kept) => (Some(&kept.min), Some(&kept.max)),
            None => (keys.keys().next(), keys.keys().next_back()),
        };
        if let Some(min) = min.filter(|min| **min < self.min) {
            self.min = min.clone();
        }
        if let Some(max) = max.filter(|max| **max > self.max) {
            self.max = max.clone();
        }
        self.between.iter_mut().zip(other.between(bounds)).for_each(|(own, more)| *own += more);
    }
}

impl Spread {
    pub fn of(quantity: Quantity, most: usize) -> Spread {
        Spread { counts: BTreeMap::from([(quantity, 1)]), most, rounded: None }
    }

    /// In any order; `bounds` are those of the meter, the same each time. Returns the bytes that it grew by, or shrank.
    pub fn merge(&mut self, other: &Spread, bounds: &[Quantity]) -> isize {
        let before = self.bytes() as isize;
        if self.rounded.is_none() && (other.rounded.is_some() || self.would_exceed(other)) {
            self.round(bounds);
        }
        if let Some(kept) = &mut self.rounded {
            kept.add(other, bounds);
        }
        for (quantity, count) in &other.counts {
            let quantity = if self.rounded.is_some() { quantity.to_digits(DIGITS) } else { quantity.clone() };
            *self.counts.entry(quantity).or_default() += count;
        }
        self.bytes() as isize - before
    }

    /// As [`Distinct::shrink`].
    pub fn shrink(&mut self, bounds: &[Quantity]) -> isize {
        if self.rounded.is_some() || self.most == usize::MAX || self.counts.len() <= SHRUNK_FROM {
            return 0;
        }
        let before = self.bytes() as isize;
        self.round(bounds);
        self.bytes() as isize - before
    }

    fn would_exceed(&self, other: &Spread) -> bool {
        if self.counts.len() + other.counts.len() <= self.most {
            return false;
        }
        let new = other.counts.keys().filter(|quantity| !self.counts.contains_key(quantity)).count();
        self.counts.len() + new > self.most
    }

    fn round(&mut self, bounds: &[Quantity]) {
        let (Some(min), Some(max)) = (self.counts.keys().next(), self.counts.keys().next_back()) else {
            return;
        };
        let between = histogram(&self.counts, bounds);
        self.rounded = Some(Rounded { min: min.clone(), max: max.clone(), between });
        let mut counts = BTreeMap::new();
        for (quantity, count) in std::mem::take(&mut self.counts) {
            *counts.entry(quantity.to_digits(DIGITS)).or_default() += count;
        }
        self.counts = counts;
    }

    /// The smallest quantity that at least so many percent of the events do not exceed (nearest rank): while all are
    /// kept, always one that came.
    pub fn percentile(&self, percent: &Quantity) -> Quantity {
        let total: u64 = self.counts.values().sum();
        let wanted = percent * &Quantity::from(total as i64);
        let mut seen = 0;
        for (quantity, count) in &self.counts {
            seen += count;
            if &Quantity::from(seen as i64) * &Quantity::from(100) >= wanted {
                let Some(kept) = &self.rounded else { return quantity.clone() };
                return match wanted >= Quantity::from(total as i64 * 100) {
                    true => kept.max.clone(),
                    false => quantity.clone().clamp(kept.min.clone(), kept.max.clone()),
                };
            }
        }
        Quantity::zero()
    }

    /// Exact, rounded or not. One more than bounds; a bound belongs to what lies below it.
    pub fn between(&self, bounds: &[Quantity]) -> Vec<u64> {
        self.rounded.as_ref().map_or_else(|| histogram(&self.counts, bounds), |kept| kept.between.clone())
    }

    pub fn error(&self) -> Option<Quantity> {
        let (digits, scale) = ROUNDED_ERROR;
        self.rounded.as_ref().map(|_| Quantity::of_digits(digits, scale))
    }

    pub fn bytes(&self) -> usize {
        self.counts.len() * ENTRY_BYTES
    }
}

fn histogram(all: &BTreeMap<Quantity, u64>, bounds: &[Quantity]) -> Vec<u64> {
    let mut counts = vec![0; bounds.len() + 1];
    for (quantity, count) in all {
        counts[bounds.partition_point(|bound| bound < quantity)] += count;
    }
    counts
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn q(n: i64) -> Quantity {
        Quantity::from(n)
    }

    fn spread(quantities: &[i64], most: usize, bounds: &[Quantity]) -> Spread {
        let mut parts = quantities.iter().map(|n| Spread::of(q(*n), most));
        let first = parts.next().expect("one at least");
        parts.fold(first, |mut all, part| {
            all.merge(&part, bounds);
            all
        })
    }

    #[test]
    fn percentiles_are_values_that_came() {
        let all = spread(&[1, 2, 3, 4], EXACT_MAX, &[]);
        for (percent, expected) in [(1, 1), (25, 1), (26, 2), (50, 2), (75, 3), (76, 4), (100, 4)] {
            assert_eq!(all.percentile(&q(percent)), q(expected), "{percent}");
        }
    }

    #[test]
    fn a_bound_belongs_to_what_lies_below_it() {
        let quantities = [1, 1, 2, 3, 3, 3, 3, 3, 10, 10, 10, 10];
        for (bounds, expected) in
            [(vec![2, 5, 20], vec![3, 5, 4, 0]), (vec![0], vec![0, 12]), (vec![10], vec![12, 0])]
        {
            let bounds: Vec<Quantity> = bounds.into_iter().map(q).collect();
            for most in [2, EXACT_MAX] {
                assert_eq!(
                    spread(&quantities, most, &bounds).between(&bounds),
                    expected,
                    "{bounds:?}, {most}"
                );
            }
        }
    }

    /// Known numbers of different values, each told as often as it likes, cut anywhere.
    #[test]
    fn different_values_are_counted_to_the_error_that_is_said() {
        for (count, most) in [
            (1, 10),
            (10, 10),
            (8_192, EXACT_MAX),
            (8_193, EXACT_MAX),
            (20_000, EXACT_MAX),
            (300_000, EXACT_MAX),
        ] {
            let mut halves = [0, 1].map(|odd| {
                let mut all = Distinct::of(format!("user-{odd}"), most);
                (0..count).filter(|n| n % 2 == odd || n % 7 == 0).for_each(|n| {
                    all.merge(&Distinct::of(format!("user-{n}"), most));
                });
                all
            });
            let (left, right) = halves.split_at_mut(1);
            left[0].merge(&right[0]);
            let all = &left[0];
            match all.error() {
                None => assert_eq!(all.count(), q(count.max(2))),
                Some(error) => {
                    assert!(count as usize > most);
                    let off = (all.count().to_f64() - count as f64).abs() / count as f64;
                    assert!(off <= error.to_f64(), "{count}: {} is {off} off", all.count());
                    assert!(all.bytes() < 20_000);
                }
            }
        }
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(if cfg!(debug_assertions) { 200 } else { 2000 }))]

        /// Rounded or not, cut anywhere and merged in any order: as near to the percentile of all as is said, and the
        /// histogram of all.
        #[test]
        fn percentiles_are_as_near_as_is_said(
            quantities in proptest::collection::vec(-100_000i64..3_000_000, 1..120),
            most in 1usize..60,
            cut in 0usize..120,
            percent in 0i64..=100,
            bound in -100i64..2_000_000,
        ) {
            let bounds = [q(bound), q(bound + 7)];
            let whole = spread(&quantities, most, &bounds);
            let (left, right) = quantities.split_at(cut.min(quantities.len()));
            let merged = match (left.is_empty(), right.is_empty()) {
                (false, false) => {
                    let (left, mut right) = (spread(left, most, &bounds), spread(right, most, &bounds));
                    right.merge(&left, &bounds);
                    right
                }
                _ => whole.clone(),
            };
            let exact = spread(&quantities, usize::MAX, &bounds);
            prop_assert_eq!(exact.error(), None);
            let kinds = quantities.iter().collect::<BTreeSet<_>>().len();
            prop_assert_eq!(whole.error().is_some(), kinds > most);
            for tried in [&whole, &merged] {
                let (found, right) = (tried.percentile(&q(percent)).to_f64(), exact.percentile(&q(percent)).to_f64());
                let error = tried.error().map_or(0.0, |error| error.to_f64());
                prop_assert!((found - right).abs() <= error * right.abs() * 1.000_001, "{found}, {right}");
                prop_assert_eq!(tried.between(&bounds), exact.between(&bounds));
            }
            prop_assert_eq!(whole.percentile(&q(100)), exact.percentile(&q(100)));
        }
    }
}
