//! Sums of numbers that fit into machine words. Most do, and thousands of packed ones make one row of an answer: they are
//! added up as integers, and become decimals once. Whatever does not fit is `None`, and added up as decimals. Pure.

use std::cmp::Ordering;
use std::collections::BTreeMap;
use std::collections::btree_map::Entry;

use crate::metering::quantity::Quantity;
use crate::metering::rollup::Part;
use crate::metering::time::Timestamp;

/// `digits / 10^scale`.
#[derive(Clone, Copy, Debug)]
pub struct Short {
    pub digits: i128,
    pub scale: i64,
}

impl Short {
    /// The digits of both at the finer scale.
    fn aligned(self, other: Short) -> Option<(i128, i128, i64)> {
        let scale = self.scale.max(other.scale);
        let at_scale = |number: Short| {
            let power = u32::try_from(scale - number.scale).ok()?;
            number.digits.checked_mul(10_i128.checked_pow(power)?)
        };
        Some((at_scale(self)?, at_scale(other)?, scale))
    }

    fn plus(self, other: Short) -> Option<Short> {
        let (own, more, scale) = self.aligned(other)?;
        Some(Short { digits: own.checked_add(more)?, scale })
    }

    pub fn times(self, count: i64) -> Option<Short> {
        Some(Short { digits: self.digits.checked_mul(count.into())?, ..self })
    }

    /// The one of both that stands on this side.
    fn outer(self, other: Short, side: Ordering) -> Option<Short> {
        let (own, more, _) = self.aligned(other)?;
        Some(if more.cmp(&own) == side { other } else { self })
    }
}

/// What [`Part`] says without first and last events.
#[derive(Clone, Copy, Debug)]
pub struct ShortPart {
    pub count: i64,
    pub min: Short,
    pub max: Short,
    pub sum: Short,
}

impl ShortPart {
    /// Both together, or nothing where they do not fit.
    pub fn plus(&self, other: &ShortPart) -> Option<ShortPart> {
        Some(ShortPart {
            count: self.count.checked_add(other.count)?,
            min: self.min.outer(other.min, Ordering::Less)?,
            max: self.max.outer(other.max, Ordering::Greater)?,
            sum: self.sum.plus(other.sum)?,
        })
    }

    pub fn into_part(self) -> Part {
        let quantity = |number: Short| Quantity::of_long_digits(number.digits, number.scale);
        Part {
            count: self.count,
            sum: quantity(self.sum),
            min: quantity(self.min),
            max: quantity(self.max),
            edges: None,
            state: None,
        }
    }
}

/// A sum that grows: of machine words as long as they hold it.
#[derive(Clone, Debug)]
pub enum Sum {
    Short(ShortPart),
    Long(Box<Part>),
}

impl Sum {
    pub fn into_part(self) -> Part {
        match self {
            Sum::Short(sum) => sum.into_part(),
            Sum::Long(sum) => *sum,
        }
    }

    fn add(&mut self, more: Sum) {
        if let (Sum::Short(sum), Sum::Short(more)) = (&*self, &more)
            && let Some(together) = sum.plus(more)
        {
            *self = Sum::Short(together);
            return;
        }
        if let Sum::Short(sum) = self {
            *self = Sum::Long(Box::new(sum.into_part()));
        }
        if let Sum::Long(sum) = self {
            sum.add(&more.into_part());
        }
    }
}

/// Sums by the start of their bucket.
#[derive(Debug, Default)]
pub struct Sums(BTreeMap<Timestamp, Sum>);

impl Sums {
    pub fn add(&mut self, bucket: Timestamp, more: Sum) {
        match self.0.entry(bucket) {
            Entry::Vacant(free) => drop(free.insert(more)),
            Entry::Occupied(mut taken) => taken.get_mut().add(more),
        }
    }

    pub fn into_parts(self) -> impl Iterator<Item = (Timestamp, Part)> {
        self.0.into_iter().map(|(bucket, sum)| (bucket, sum.into_part()))
    }
}
