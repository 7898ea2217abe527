//! The rows of alerts: rules with their states and events, destinations, deliveries. No rules.

pub mod deliveries;
pub mod destinations;
pub mod events;
pub mod named;
pub mod rules;
pub mod states;
