//! The rows of callers: users and memberships, sessions, API keys. No rules.

pub mod keys;
pub mod sessions;
pub mod users;
