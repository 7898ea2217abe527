//! The SQL of tenants: rows of any table as texts, in and out, and usage in neutral form.

pub mod rows;
pub mod usage;
