//! The integration tests, in one binary: each starts the real program on a fresh SQLite file or a fresh PostgreSQL
//! database and talks to it over the wire. `scripts/test` installs what they need; `scripts/test it::NAME` runs some.

mod support;

mod alerts;
mod architecture;
mod bad_input;
mod conformance;
mod consume;
mod crash;
mod dashboard;
mod database_language;
mod dead_letters;
mod decimal_exactness;
mod destinations;
mod entitlements;
mod events;
mod exactly_once;
mod exports;
mod failover;
mod filter;
mod grpc;
mod history;
mod hostile_connections;
mod inert;
mod keys;
mod lifecycle;
mod meters;
mod migrations;
mod outages;
mod plans;
mod quota_model;
mod readme;
mod repository;
mod retention;
mod saved_queries;
mod sdk;
mod sessions;
mod sql_parameter_order;
mod statements;
mod stats;
mod subjects;
mod system;
mod transport;
mod usage;
mod webhooks;
