//! The bare loop on PostgreSQL: three prepared UNNEST statements and a commit.

use bigdecimal::BigDecimal;
use diesel::connection::SimpleConnection;
use diesel::pg::Pg;
use diesel::query_builder::{AstPass, QueryFragment, QueryId};
use diesel::sql_types::{Array, BigInt, Binary, Integer, Numeric, SmallInt, Text};
use diesel::{PgConnection, QueryResult, RunQueryDsl};
use open_spanner::config::Driver;
use open_spanner::db::{Conn, open};
use open_spanner::metering::quantity::Quantity;

use super::{Rows, WORKSPACE};
use crate::Outcome;

/// A statement with a type of its own stays prepared; diesel prepares plain SQL anew each time.
macro_rules! statement {
    ($name:ident, ($($field:ident: $sql:ty = $rust:ty),* $(,)?), $text:expr) => {
        #[derive(QueryId)]
        struct $name {
            $($field: Vec<$rust>,)*
        }

        impl QueryFragment<Pg> for $name {
            fn walk_ast<'b>(&'b self, mut out: AstPass<'_, 'b, Pg>) -> QueryResult<()> {
                let mut parts = $text.split('?');
                $(
                    out.push_sql(parts.next().unwrap_or_default());
                    out.push_bind_param::<Array<$sql>, Vec<$rust>>(&self.$field)?;
                )*
                out.push_sql(parts.next().unwrap_or_default());
                Ok(())
            }
        }

        impl RunQueryDsl<PgConnection> for $name {}
    };
}

statement!(
    AddKeys,
    (workspaces: BigInt = i64, keys: Binary = Vec<u8>, events: Binary = Vec<u8>, subjects: BigInt = i64,
     times: BigInt = i64, fingerprints: BigInt = i64),
    "INSERT INTO idempotency_keys (workspace_id, key, event_id, subject_id, event_time, fingerprint)
     SELECT * FROM unnest(?, ?, ?, ?, ?, ?) ON CONFLICT DO NOTHING"
);
statement!(
    AddEvents,
    (ids: Binary = Vec<u8>, workspaces: BigInt = i64, meters: BigInt = i64, subjects: BigInt = i64,
     times: BigInt = i64, received: BigInt = i64, versions: Integer = i32, quantities: Numeric = BigDecimal,
     keys: Text = String, metadatas: Text = String),
    "INSERT INTO events (id, workspace_id, meter_id, subject_id, event_time, received_at, meter_version, quantity,
                         idempotency_key, metadata)
     SELECT id, workspace_id, meter_id, subject_id, event_time, received_at, version, quantity, key, metadata::jsonb
     FROM unnest(?, ?, ?, ?, ?, ?, ?, ?, ?, ?) AS new (id, workspace_id, meter_id, subject_id, event_time, received_at,
                                                       version, quantity, key, metadata)"
);
statement!(
    AddRollups,
    (meters: BigInt = i64, grains: SmallInt = i16, starts: BigInt = i64, lanes: SmallInt = i16, counts: BigInt = i64, sums: Numeric = BigDecimal,
     mins: Numeric = BigDecimal, maxs: Numeric = BigDecimal, first_ats: BigInt = i64, first_ids: Binary = Vec<u8>,
     firsts: Numeric = BigDecimal, last_ats: BigInt = i64, last_ids: Binary = Vec<u8>, lasts: Numeric = BigDecimal),
    "INSERT INTO rollups AS r (meter_id, grain, start, lane, event_count, quantity_sum, quantity_min, quantity_max,
                               first_at, first_id, first_quantity, last_at, last_id, last_quantity)
     SELECT * FROM unnest(?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?)
     ON CONFLICT (meter_id, grain, start, lane) DO UPDATE SET
         event_count = r.event_count + excluded.event_count,
         quantity_sum = r.quantity_sum + excluded.quantity_sum,
         quantity_min = least(r.quantity_min, excluded.quantity_min),
         quantity_max = greatest(r.quantity_max, excluded.quantity_max),
         last_at = excluded.last_at, last_id = excluded.last_id, last_quantity = excluded.last_quantity"
);
statement!(
    AddDeltas,
    (meters: BigInt = i64, ids: BigInt = i64, cells: Binary = Vec<u8>, subjects: Binary = Vec<u8>, counts: Binary = Vec<u8>),
    "INSERT INTO rollup_deltas (meter_id, id, cells, subjects, counts) SELECT * FROM unnest(?, ?, ?, ?, ?)"
);

pub struct Writer(PgConnection);

impl Writer {
    pub fn open(driver: &Driver) -> Outcome<Writer> {
        match open(driver)? {
            Conn::Postgres(conn) => Ok(Writer(conn)),
            Conn::Sqlite(_) => Err("not PostgreSQL".into()),
        }
    }

    pub fn write(&mut self, rows: &Rows, lane: i16) -> Outcome<()> {
        let conn = &mut self.0;
        conn.batch_execute("BEGIN")?;
        let ledger = || rows.ledger.iter().map(|(key, at)| (key, &rows.events[*at]));
        AddKeys {
            workspaces: vec![WORKSPACE; rows.ledger.len()],
            keys: ledger().map(|(key, _)| key.clone()).collect(),
            events: ledger().map(|(_, (event, _))| event.id.as_bytes().to_vec()).collect(),
            subjects: ledger().map(|(_, (_, subject))| *subject).collect(),
            times: ledger().map(|(_, (event, _))| event.time.0).collect(),
            fingerprints: ledger().map(|(_, (event, _))| event.fingerprint).collect(),
        }
        .execute(conn)?;
        let events = || rows.events.iter().map(|(event, _)| event);
        AddEvents {
            ids: events().map(|event| event.id.as_bytes().to_vec()).collect(),
            workspaces: vec![WORKSPACE; rows.events.len()],
            meters: events().map(|event| event.meter.id).collect(),
            subjects: rows.events.iter().map(|(_, subject)| *subject).collect(),
            times: events().map(|event| event.time.0).collect(),
            received: events().map(|event| event.received_at.0).collect(),
            versions: events().map(|event| event.meter.version).collect(),
            quantities: events().map(|event| number(&event.quantity)).collect(),
            keys: events().map(|event| event.key.clone().unwrap_or_default()).collect(),
            metadatas: events()
                .map(|event| event.metadata.as_deref().map_or_else(String::new, |text| text.get().to_owned()))
                .collect(),
        }
        .execute(conn)?;
        self.add_rollups(rows, lane)?;
        AddDeltas {
            meters: rows.deltas.iter().map(|(meter_id, ..)| *meter_id).collect(),
            ids: rows.deltas.iter().map(|(_, id, _)| *id).collect(),
            cells: rows.deltas.iter().map(|(.., delta)| delta.cells.clone()).collect(),
            subjects: rows.deltas.iter().map(|(.., delta)| delta.subjects.clone()).collect(),
            counts: rows.deltas.iter().map(|(.., delta)| delta.counts.clone()).collect(),
        }
        .execute(&mut self.0)?;
        Ok(self.0.batch_execute("COMMIT")?)
    }

    fn add_rollups(&mut self, rows: &Rows, lane: i16) -> Outcome<()> {
        let parts = || rows.rollups.iter().filter_map(|(key, part)| Some((key, part, part.edges.as_ref()?)));
        AddRollups {
            meters: parts().map(|(key, ..)| key.meter_id).collect(),
            grains: parts().map(|(key, ..)| key.grain as i16).collect(),
            starts: parts().map(|(key, ..)| key.start.0).collect(),
            lanes: parts().map(|_| lane).collect(),
            counts: parts().map(|(_, part, _)| part.count).collect(),
            sums: parts().map(|(_, part, _)| number(&part.sum)).collect(),
            mins: parts().map(|(_, part, _)| number(&part.min)).collect(),
            maxs: parts().map(|(_, part, _)| number(&part.max)).collect(),
            first_ats: parts().map(|(.., (first, _))| first.at.0).collect(),
            first_ids: parts().map(|(.., (first, _))| first.id.as_bytes().to_vec()).collect(),
            firsts: parts().map(|(.., (first, _))| number(&first.quantity)).collect(),
            last_ats: parts().map(|(.., (_, last))| last.at.0).collect(),
            last_ids: parts().map(|(.., (_, last))| last.id.as_bytes().to_vec()).collect(),
            lasts: parts().map(|(.., (_, last))| number(&last.quantity)).collect(),
        }
        .execute(&mut self.0)?;
        Ok(())
    }
}

fn number(quantity: &Quantity) -> BigDecimal {
    quantity.decimal().clone()
}
