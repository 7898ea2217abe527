//! The integration tests, in one binary: each starts the real program on a fresh SQLite file or a fresh PostgreSQL
//! database and talks to it over the wire. `scripts/test` installs what they need; `scripts/test it::NAME` runs some.

mod support;

mod alerts;
mod bad_days;
mod bad_input;
mod conformance;
mod consume;
mod crash;
mod entitlements;
mod events;
mod exactly_once;
mod exactness;
mod exports;
mod filter;
mod grpc;
mod history;
mod inert;
mod lifecycle;
mod migrations;
mod plans;
mod quota_model;
mod readme;
mod retention;
mod saved_queries;
mod sdk;
mod sql_text;
mod statements;
mod stats;
mod transport;
mod usage;
mod webhooks;
