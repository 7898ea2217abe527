//! What is noted of every statement that a pooled connection runs: how many there were, for the metrics, and their
//! text, in the log of `open_spanner::sql`, when that is asked for. Never their values: those are secrets and
//! customers' data.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};

use diesel::connection::{Instrumentation, InstrumentationEvent};

const TARGET: &str = "open_spanner::sql";

/// The statements of one connection since they were last asked for.
#[derive(Clone, Default)]
pub struct Statements(Arc<AtomicU64>, Arc<AtomicBool>);

impl Statements {
    /// What `work` runs belongs to no operation: it is neither counted nor logged.
    pub fn unseen<T>(&self, work: impl FnOnce() -> T) -> T {
        self.1.store(true, Ordering::Relaxed);
        let done = work();
        self.1.store(false, Ordering::Relaxed);
        done
    }

    /// How many there were since the last time of asking.
    pub fn take(&self) -> u64 {
        self.0.swap(0, Ordering::Relaxed)
    }
}

impl Instrumentation for Statements {
    fn on_connection_event(&mut self, event: InstrumentationEvent<'_>) {
        let InstrumentationEvent::StartQuery { query, .. } = event else { return };
        if self.1.load(Ordering::Relaxed) {
            return;
        }
        self.0.fetch_add(1, Ordering::Relaxed);
        if log::log_enabled!(target: TARGET, log::Level::Trace) {
            log::trace!(target: TARGET, "{}", without_values(&query.to_string()));
        }
    }
}

/// diesel prints the values behind the text.
fn without_values(statement: &str) -> &str {
    statement.split_once(" -- binds: ").map_or(statement, |(text, _)| text)
}

#[cfg(test)]
mod tests {
    use diesel::prelude::*;
    use diesel::sql_types::Text;

    use super::*;

    #[test]
    fn values_are_cut_off() {
        let query = diesel::sql_query("-- store::x::y\nSELECT $1").bind::<Text, _>("secret -- binds: [1]");
        let printed = diesel::debug_query::<diesel::sqlite::Sqlite, _>(&query).to_string();
        assert!(printed.contains("secret"), "{printed}");
        assert_eq!(without_values(&printed), "-- store::x::y\nSELECT $1");
        assert_eq!(without_values("COMMIT"), "COMMIT");
    }

    #[test]
    fn statements_are_counted() {
        let mut conn = SqliteConnection::establish(":memory:").expect("a database in memory");
        let statements = Statements::default();
        conn.set_instrumentation(statements.clone());
        diesel::sql_query("SELECT 1").execute(&mut conn).expect("valid");
        let _: i32 = diesel::select(diesel::dsl::sql::<diesel::sql_types::Integer>("2"))
            .get_result(&mut conn)
            .expect("valid");
        assert_eq!((statements.take(), statements.take()), (2, 0));
    }
}
