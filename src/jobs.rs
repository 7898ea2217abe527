//! Background work: the queue, the loop that takes jobs from it, heartbeats, health, the process around a worker.
//! What the work is, the domains know.

pub mod dead_letters;
pub mod health;
pub mod heartbeat;
pub mod instances;
pub mod lifecycle;
pub mod measure;
pub mod process;
pub mod queue;
pub mod sql;
pub mod supervisor;
pub mod worker;
