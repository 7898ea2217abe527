//! Open Spanner: usage metering that is exact and immediate. The rooms, in the order data flows:
//!
//! - [`config`] every setting, the only reader of the environment; [`logging`]; [`metrics`]
//! - [`serve`], [`migrate`], [`export_worker`], [`alert_worker`], [`entitlement_worker`]: one file per role; [`worker`],
//!   [`worker_role`]: how background work is done
//! - [`http`] and [`grpc`]: the doors; parse, ask for permission, call, answer
//! - [`auth`]: who is calling and what they may do
//! - [`json`], [`meter`], [`event`], [`quantity`], [`window`], [`rollup`], [`plan`], [`usage`], [`export_job`]: rules without I/O;
//!   [`error`]: what callers are told
//! - [`ingest`]: admission, queue, group commit; [`retention`]: what old rows come to
//! - [`store`]: the only room that knows SQL
#![forbid(unsafe_code)]

pub mod alert;
pub mod alert_worker;
pub mod app;
pub mod auth;
pub mod config;
pub mod entitlement_worker;
pub mod error;
pub mod event;
pub mod export;
pub mod export_job;
pub mod export_storage;
pub mod export_worker;
pub mod filter;
pub mod grpc;
pub mod http;
pub mod ingest;
pub mod json;
pub mod logging;
pub mod meter;
pub mod metrics;
pub mod migrate;
pub mod plan;
pub mod quantity;
pub mod retention;
pub mod rollup;
pub mod serve;
pub mod store;
pub mod usage;
pub mod webhook;
pub mod window;
pub mod worker;
pub mod worker_role;
