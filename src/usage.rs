//! Reading usage: queries, the sums that answer them, events, subjects, ingestion runs, saved queries, views under short
//! addresses.

pub mod aggregate;
pub mod event_row;
pub mod events;
pub mod facets;
pub mod filter_sql;
pub mod fold;
pub mod home_zone;
pub mod ingestion_runs;
pub mod key_conflicts;
pub mod packed;
pub mod query;
pub mod refused;
pub mod runs;
pub mod saved_queries;
pub mod settle;
pub mod stored_queries;
pub mod subject_counts;
pub mod subject_days;
pub mod subject_ids;
pub mod subjects;
