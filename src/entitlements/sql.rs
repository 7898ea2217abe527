//! The rows of entitlements: plans, assignments, quota counters, decisions. No rules.

pub mod assignments;
pub mod counters;
pub mod decisions;
pub mod plans;
