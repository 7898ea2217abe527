//! How packed sums (`metering::facet`) are read for a query: by bucket and group, wherever they are stored. Without SQL.

use std::collections::{BTreeMap, BTreeSet, HashMap};

use crate::db::DbError;
use crate::error::Error;
use crate::metering::facet::{self, Facet, PackedGroup};
use crate::metering::json;
use crate::metering::rollup::{Part, merge};
use crate::metering::short;
use crate::metering::time::{BucketSize, DAY, HOUR, Timestamp, Window};
use crate::usage::aggregate::pieces::Cover;
use crate::usage::query::{AggregatedRow, GroupedAggregates, Query};

/// What is asked of packed sums.
#[derive(Clone, Copy)]
pub struct Asked<'q> {
    pub query: &'q Query,
    /// The meter version from which sums know the dimensions of the query.
    pub since: i32,
    /// Raw events before it may be gone: then old sums must do.
    pub pruned_before: Timestamp,
    /// What begins in it counts.
    pub window: Window,
    /// Where buckets begin elsewhere than hours and days.
    pub cover: Option<&'q Cover>,
}

/// What packed sums say of a query.
#[derive(Default)]
pub struct Sums {
    pub parts: Vec<(Timestamp, Vec<String>, Part)>,
    /// Starts of sums that do not know a dimension of the query.
    too_old: Vec<Timestamp>,
}

pub fn unreadable() -> DbError {
    Error::internal("packed sums cannot be read").into()
}

impl Asked<'_> {
    pub fn is_inside(&self, start: Timestamp) -> bool {
        self.window.contains(start) && self.cover.is_none_or(|cover| !cover.is_cut(start))
    }

    /// Days of which quarters of an hour must be told apart.
    pub fn quarter_days(&self) -> BTreeSet<i64> {
        let ends = [self.window.from, self.window.to].into_iter().filter(|at| *at != at.floor(HOUR));
        let mut days: BTreeSet<i64> = ends.map(|at| at.floor(DAY).0).collect();
        days.extend(self.cover.iter().flat_map(|cover| cover.quarter_days()));
        days
    }

    /// By what the sums of whole days answer, if they do: no two instants of a day of UTC are told apart, and no more than one
    /// dimension is looked at. Days that lie only partly in the window are not looked at here.
    pub fn facet_of_days(&self) -> Option<Facet> {
        let is_hourly = match (&self.query.buckets, self.cover) {
            (None, _) => false,
            (Some(buckets), None) => !buckets.is_plain() || buckets.calendar.size == BucketSize::Hour,
            (Some(_), Some(cover)) => !cover.cut_days().is_empty(),
        };
        let dimensions: BTreeSet<String> = self.query.paths().into_iter().map(str::to_owned).collect();
        let is_answered = !is_hourly && dimensions.len() <= 1 && !self.needs_edges();
        is_answered.then_some(Facet::Of(dimensions))
    }

    pub fn needs_edges(&self) -> bool {
        facet::needs_edges(self.query.meter.aggregation)
    }

    /// The sums of one subject, or of all (then its name is empty), as far as they lie in the window and in wanted days.
    pub fn read(
        &self,
        bytes: &[u8],
        subject: &str,
        wants: impl Fn(Timestamp) -> bool,
    ) -> Result<Sums, DbError> {
        let mut found = Sums::default();
        // hundreds of dimension sets are of a few groups
        let mut by_group: HashMap<Vec<String>, short::Sums> = HashMap::new();
        let with_dimensions = !self.query.paths().is_empty();
        let nothing = json::Map::new();
        for packed in facet::groups(bytes).ok_or_else(unreadable)? {
            let dimensions = match with_dimensions {
                true => &json::parse_object(packed.values).ok_or_else(unreadable)?,
                false => &nothing,
            };
            let row = AggregatedRow { meter: &self.query.meter.name, subject, dimensions };
            let group = self.query.group(&row);
            let is_counted = group.is_some();
            let bucket = |start: Timestamp| {
                if !self.is_inside(start) || !wants(start.floor(DAY)) {
                    return None;
                }
                if packed.version < self.since && start >= self.pruned_before {
                    found.too_old.push(start);
                    return None;
                }
                is_counted.then(|| self.query.bucket(start))
            };
            match self.needs_edges() {
                true => found.parts.extend(with_edges(&packed, group, bucket)?),
                false => {
                    let sums = by_group.entry(group.unwrap_or_default()).or_default();
                    packed.add_to(sums, bucket).ok_or_else(unreadable)?;
                }
            }
        }
        for (group, sums) in by_group {
            found.parts.extend(sums.into_parts().map(|(bucket, part)| (bucket, group.clone(), part)));
        }
        Ok(found)
    }
}

/// The parts of one dimension set with their first and last events, by bucket.
fn with_edges(
    packed: &PackedGroup,
    group: Option<Vec<String>>,
    mut bucket: impl FnMut(Timestamp) -> Option<Timestamp>,
) -> Result<Vec<(Timestamp, Vec<String>, Part)>, DbError> {
    let mut buckets: BTreeMap<Timestamp, Part> = BTreeMap::new();
    for part in packed.parts(true) {
        let (start, part) = part.ok_or_else(unreadable)?;
        if let Some(bucket) = bucket(start) {
            merge(&mut buckets, bucket, &part);
        }
    }
    let group = group.unwrap_or_default();
    Ok(buckets.into_iter().map(|(bucket, part)| (bucket, group.clone(), part)).collect())
}

impl Sums {
    /// Adds them to an answer. Where some are too old to know a dimension, `left_out` grows: there the events must be
    /// read instead. A day at a time, for what was added up by the day begins anywhere in it.
    pub fn add_to(self, cells: &mut GroupedAggregates, left_out: &mut Option<Window>) -> Result<(), DbError> {
        for start in self.too_old {
            let span = Window { from: start, to: start.floor(DAY).plus(DAY).max(start.plus(HOUR)) };
            *left_out = Some(left_out.map_or(span, |other| other.hull(span)));
        }
        for (bucket, group, part) in self.parts {
            cells.add(bucket, group, &part)?;
        }
        Ok(())
    }
}
