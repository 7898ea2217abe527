//! How many connections this process can afford: what the system lets it open, less what it needs itself.

use crate::config::{Config, Driver};

/// Fewer open files than this are worth a warning.
const FILES_WANTED: u64 = 4096;
/// Listeners, event loops, timers, logs, exports, webhooks.
const FILES_OF_ITS_OWN: u64 = 48;
/// A SQLite connection has the database, its log and the log's index open.
const FILES_PER_SQLITE_CONNECTION: u64 = 3;
/// More connections cost memory and help nobody.
const HTTP_MAX: u64 = 10_000;
const GRPC_MAX: u64 = 2_000;
const AUXILIARY_MAX: u64 = 100;

/// Connections per port. Together with the process's own files they stay below the limit of open files.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Limits {
    pub http: usize,
    pub grpc: usize,
    /// Metrics, and the health of a worker: each.
    pub auxiliary: usize,
    /// Share of one address in a port; 0: half.
    per_address: usize,
}

/// Raises the limit of open files as far as this process may, and says what it is then.
pub fn raise_file_limit() -> u64 {
    let files = rlimit::increase_nofile_limit(u64::MAX).unwrap_or_else(|error| {
        log::warn!(error:% = error; "the limit of open files was not raised");
        1024
    });
    if files < FILES_WANTED {
        log::warn!(open_files = files; "few files may be open: connections are limited accordingly");
    }
    files
}

impl Limits {
    pub fn of(config: &Config, open_files: u64) -> Self {
        let connections = u64::from(config.db.max_open_conns) + 3;
        let for_database = match config.db.driver {
            Driver::Sqlite { .. } => connections * FILES_PER_SQLITE_CONNECTION,
            Driver::Postgres { .. } => connections,
        };
        // at least a third of what there is, however small: one port too few is worse than an error now and then
        let room = open_files.saturating_sub(FILES_OF_ITS_OWN + for_database).max(open_files / 3).max(16);
        let chosen = |set: usize, share: u64, most: u64| {
            let affordable = (room * share / 100).max(4);
            match set as u64 {
                0 => affordable.min(most) as usize,
                set => affordable.min(set) as usize,
            }
        };
        Limits {
            http: chosen(config.http.max_connections, 50, HTTP_MAX),
            grpc: chosen(config.grpc_max_connections, 35, GRPC_MAX),
            auxiliary: chosen(0, 5, AUXILIARY_MAX),
            per_address: config.max_connections_per_address,
        }
    }

    /// How many connections one address may have, of so many.
    pub fn per_address(&self, capacity: usize) -> usize {
        let half = capacity.div_ceil(2);
        if self.per_address == 0 { half } else { self.per_address.min(capacity) }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config;

    fn limits(variables: &[(&str, &str)], files: u64) -> Limits {
        let config = config::load_from(&["open-spanner"], variables).expect("good settings").config;
        Limits::of(&config, files)
    }

    #[test]
    fn ports_together_stay_below_the_limit_of_files() {
        for files in [64, 128, 256, 1024, 4096, 1_000_000] {
            let limits = limits(&[], files);
            let all = limits.http + limits.grpc + 2 * limits.auxiliary;
            assert!((all as u64) < files, "{files}: {limits:?}");
            assert!(limits.http >= 4 && limits.grpc >= 4 && limits.auxiliary >= 2, "{files}: {limits:?}");
        }
        let many = limits(&[], 1_000_000);
        assert_eq!((many.http, many.grpc, many.auxiliary), (10_000, 2_000, 100));
    }

    #[test]
    fn settings_lower_a_limit_but_do_not_break_the_bound() {
        let set =
            [("OPEN_SPANNER_HTTP_MAX_CONNECTIONS", "20"), ("OPEN_SPANNER_GRPC_MAX_CONNECTIONS", "100000")];
        let found = limits(&set, 1024);
        assert_eq!(found.http, 20);
        assert!(found.grpc < 400, "{found:?}");
        assert_eq!(found.per_address(20), 10);
        let one = limits(&[("OPEN_SPANNER_MAX_CONNECTIONS_PER_ADDRESS", "7")], 1024);
        assert_eq!((one.per_address(20), one.per_address(5)), (7, 5));
    }
}
