//! Plans, who has which, how much of it is used, and what may still be consumed.

pub mod assignment;
pub mod consume;
pub mod counter_reader;
pub mod counting;
pub mod evaluate;
pub mod jobs;
pub mod period;
pub mod plan;
pub mod progress;
pub mod quota;
pub mod sql;
pub mod worker;
