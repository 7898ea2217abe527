//! The rows of callers: users and memberships, invitations, sessions, API keys. No rules.

pub mod invitations;
pub mod keys;
pub mod links;
pub mod members;
pub mod operator;
pub mod resets;
pub mod sessions;
pub mod sign_ins;
pub mod users;
