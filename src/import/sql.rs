//! The SQL of imports: rows of another program's database, read whatever is in them, and rows of ours, written whether
//! they are there or not. What the rows mean stands beside this folder.

pub mod foreign;
pub mod ours;
pub mod totals;
