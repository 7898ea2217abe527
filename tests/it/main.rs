//! The integration tests, in one binary: each starts the real program on a fresh SQLite file or a fresh PostgreSQL
//! database and talks to it over the wire. `scripts/test` installs what they need; `scripts/test it::NAME` runs some.

mod support;

mod bad_days;
mod bad_input;
mod conformance;
mod crash;
mod exactly_once;
mod exactness;
mod lifecycle;
mod migrations;
mod readme;
mod sdk;
