//! Meters as rows, and the memory of them that every door shares.

pub mod sql;
