//! Export jobs: what may be asked for, the files they become, where those are kept.

pub mod csv;
pub mod job;
pub mod sql;
pub mod storage;
pub mod worker;
