//! Alert rules: what they ask for, how a rule's state moves, and the webhooks that tell of it.

pub mod backtest;
pub mod deliver;
pub mod evaluate;
pub mod jobs;
pub mod rule;
pub mod sealed;
pub mod sql;
pub mod state;
pub mod webhook;
pub mod worker;
