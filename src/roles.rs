//! What the program can be started as: one file per role that is more than a worker.

mod demo;
pub mod migrate;
pub mod serve;
