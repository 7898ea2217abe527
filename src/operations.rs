//! What an operator of a workspace looks at and presses: its numbers, its workers, and the jobs that were given up.
//! Reads all domains; knows no door.

pub mod dead_letters;
pub mod deliveries;
pub mod installation;
pub mod measure;
pub mod stats;
