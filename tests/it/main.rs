//! The integration tests, in one binary: each starts the real program on a fresh SQLite file or a fresh PostgreSQL
//! database and talks to it over the wire. `scripts/test` installs what they need; `scripts/test it::NAME` runs some.

#![expect(clippy::disallowed_methods, reason = "tests ask clocks, dice and databases as they like")]

mod support;

mod account;
mod alerts;
mod architecture;
mod audit;
mod backups;
mod bad_input;
mod clocks;
mod commands;
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
mod facets;
mod failover;
mod fairness;
mod filter;
mod grpc;
mod handbook;
mod history;
mod hostile_connections;
mod inert;
mod keys;
mod lifecycle;
mod links;
mod members;
mod meters;
mod migrations;
mod observed;
mod outages;
mod permissions;
mod plans;
mod pooler;
mod quota_model;
mod readiness;
mod replicas;
mod repository;
mod retention;
mod saved_queries;
mod sdk;
mod sessions;
mod share;
mod shell_client;
mod sql_parameter_order;
mod startup;
mod statements;
mod stats;
mod subjects;
mod system;
mod transport;
mod usage;
mod vault;
mod webhooks;
