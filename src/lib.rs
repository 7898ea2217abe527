//! Open Spanner: usage metering that is exact and immediate. The rooms, from the ground up; each imports only rooms
//! above it in this list, and `docs/architecture.md` has the picture:
//!
//! - [`error`]: what callers are told; [`metering`]: the rules, without I/O
//! - [`clock`]: what time it is; [`chance`]: ids and dice; [`blocking`]: work that blocks
//! - [`config`]: every setting, the only reader of the environment; [`logging`]; [`output`]: what commands print;
//!   [`net`]: connections and bodies of callers, how many and for how long; [`metrics`]
//! - [`db`]: the engine of both databases; [`backup`]: all of it in a file, and back
//! - [`audit`]: who changed what; [`jobs`]: how background work is done; [`auth`]: who is calling and what they may do; [`meters`]; [`usage`]: reading
//! - [`entitlements`], [`exports`], [`alerts`]: a domain holds its rules, its work and its SQL
//! - [`ingest`]: the way in: admission, queue, group commit
//! - [`app`]: what every door is handed; [`retention`]: what old rows come to; [`operations`]: what an operator looks at
//! - [`http`] and [`grpc`]: the doors for programs; [`dashboard`]: the one for people
//! - [`import`]: what other programs hold, brought in; [`tenant`]: one workspace, out and in
//! - [`roles`]: what the program can be started as; [`cli`]: commands that end by themselves
// two files have to call C: db/sqlstate.rs asks libpq for what diesel does not tell, db/interrupt.rs limits SQLite's time
#![deny(unsafe_code)]
// `print!` panics when its reader went away: see output.rs
#![cfg_attr(not(test), deny(clippy::print_stdout))]
#![cfg_attr(
    test,
    expect(clippy::disallowed_methods, reason = "tests ask clocks, dice and databases as they like")
)]

pub mod alerts;
pub mod app;
pub mod audit;
pub mod auth;
pub mod backup;
pub mod blocking;
pub mod chance;
pub mod cli;
pub mod clock;
pub mod config;
pub mod dashboard;
pub mod db;
pub mod entitlements;
pub mod error;
pub mod exports;
#[cfg(test)]
mod fuzz;
pub mod grpc;
pub mod http;
pub mod import;
pub mod ingest;
pub mod jobs;
pub mod logging;
pub mod mail;
pub mod metering;
pub mod meters;
pub mod metrics;
pub mod net;
pub mod operations;
pub mod output;
pub mod retention;
pub mod roles;
mod string_enum;
pub mod tenant;
pub mod usage;
pub mod vault;
