//! The pages, one file per group.

pub mod account;
pub mod alerts;
pub mod audit;
pub mod breakdowns;
pub mod destinations;
pub mod events;
pub mod explain;
pub mod explore;
pub mod exports;
pub mod home;
pub mod keys;
pub mod links;
pub mod live;
pub mod members;
pub mod meters;
pub mod overview;
pub mod plans;
pub mod quota;
pub mod refused;
pub mod saved;
pub mod settings;
pub mod share;
pub mod sign_in;
pub mod subjects;
pub mod system;
pub mod welcome;
