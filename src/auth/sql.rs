//! The rows of callers: users and memberships, identities at providers, invitations, sessions, API keys. No rules.

pub mod devices;
pub mod identities;
pub mod invitations;
pub mod keys;
pub mod links;
pub mod members;
pub mod operator;
pub mod preferences;
pub mod resets;
pub mod sessions;
pub mod sign_ins;
pub mod users;
pub mod ways_in;
