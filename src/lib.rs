//! Open Spanner: usage metering that is exact and immediate. The rooms, in the order data flows:
//!
//! - [`config`] every setting, the only reader of the environment; [`logging`]; [`metrics`]
//! - [`serve`], [`migrate`]: one file per role
//! - [`http`] and [`grpc`]: the doors; parse, ask for permission, call, answer
//! - [`auth`]: who is calling and what they may do
//! - [`meter`], [`event`], [`quantity`], [`window`], [`rollup`], [`usage`]: rules without I/O; [`error`]: what callers
//!   are told
//! - [`ingest`]: admission, queue, group commit
//! - [`store`]: the only room that knows SQL
#![forbid(unsafe_code)]

pub mod app;
pub mod auth;
pub mod config;
pub mod error;
pub mod event;
pub mod grpc;
pub mod http;
pub mod ingest;
pub mod logging;
pub mod meter;
pub mod metrics;
pub mod migrate;
pub mod quantity;
pub mod rollup;
pub mod serve;
pub mod store;
pub mod usage;
pub mod window;
