//! Open Spanner.
#![forbid(unsafe_code)]
pub mod auth;
pub mod config;
pub mod error;
pub mod quantity;
pub mod store;
pub mod window;
