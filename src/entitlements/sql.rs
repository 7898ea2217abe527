//! The rows of entitlements: plans, assignments, quota counters, decisions, states. No rules.

pub mod assignments;
pub mod counters;
pub mod decisions;
pub mod listing;
pub mod plans;
pub mod states;
