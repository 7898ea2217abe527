//! What SQLite needs beyond SQL: how a file is opened, and exact decimal functions on the bytes of
//! `crate::metering::quantity` (its own numbers are floats).

use diesel::connection::SimpleConnection;
use diesel::result::ConnectionError;
use diesel::sqlite::SqliteAggregateFunction;
use diesel::{Connection, SqliteConnection};

use crate::config::Synchronous;
use crate::metering::quantity::Quantity;

#[diesel::declare_sql_function]
extern "SQL" {
    /// Exact sum of sortable quantities.
    #[aggregate]
    fn quantity_total(x: diesel::sql_types::Binary) -> diesel::sql_types::Binary;
    /// Exact sum of two sortable quantities.
    fn quantity_add(a: diesel::sql_types::Binary, b: diesel::sql_types::Binary) -> diesel::sql_types::Binary;
    /// The decimal text of a sortable quantity.
    fn quantity_text(x: diesel::sql_types::Binary) -> diesel::sql_types::Text;
}

pub fn open(path: &str, synchronous: Synchronous) -> Result<SqliteConnection, ConnectionError> {
    let mut conn = SqliteConnection::establish(path)?;
    let synchronous = match synchronous {
        Synchronous::Full => "FULL",
        Synchronous::Normal => "NORMAL",
    };
    // Of the pages in the log most are the same few thousand, written by every commit: copied to the file every 64 MB
    // instead of every 4 MB they are written a sixteenth as often.
    // busy_timeout first: switching to WAL needs a lock that another process may hold for a moment
    let pragmas = format!(
        "PRAGMA busy_timeout = 10000; PRAGMA journal_mode = WAL; PRAGMA synchronous = {synchronous};
         PRAGMA foreign_keys = ON; PRAGMA temp_store = MEMORY; PRAGMA cache_size = -32768;
         PRAGMA wal_autocheckpoint = 16000;"
    );
    conn.batch_execute(&pragmas).map_err(ConnectionError::CouldntSetupConfiguration)?;
    register(&mut conn).map_err(ConnectionError::CouldntSetupConfiguration)?;
    Ok(conn)
}

fn register(conn: &mut SqliteConnection) -> diesel::QueryResult<()> {
    quantity_total_utils::register_impl::<Total, _>(conn)?;
    quantity_add_utils::register_impl(conn, |a: Vec<u8>, b: Vec<u8>| write(add(&a, &b)))?;
    quantity_text_utils::register_impl(conn, |x: Vec<u8>| {
        read(&x).map_or(NOT_A_NUMBER.into(), |x| x.to_plain())
    })
}

/// What bytes that no [`Quantity`] made are read as, here and by PostgreSQL: a sum with one of them in it is none
/// either, and whoever reads it gets an error. Damage must not pass for 0.
const NOT_A_NUMBER: &str = "NaN";

fn read(bytes: &[u8]) -> Option<Quantity> {
    Quantity::from_sortable(bytes)
}

fn write(sum: Option<Quantity>) -> Vec<u8> {
    sum.map(|sum| sum.to_sortable()).unwrap_or_default()
}

fn add(a: &[u8], b: &[u8]) -> Option<Quantity> {
    Some(&read(a)? + &read(b)?)
}

struct Total(Option<Quantity>);

impl Default for Total {
    fn default() -> Self {
        Total(Some(Quantity::zero()))
    }
}

impl SqliteAggregateFunction<Vec<u8>> for Total {
    type Output = Vec<u8>;

    fn step(&mut self, x: Vec<u8>) {
        match (&mut self.0, read(&x)) {
            (Some(sum), Some(x)) => *sum += &x,
            (sum, _) => *sum = None,
        }
    }

    fn finalize(aggregator: Option<Self>) -> Vec<u8> {
        write(aggregator.unwrap_or_default().0)
    }
}
