//! The columns of a stored partial aggregate, of which `rollups` and `quota_counters` have the same ten: listed here once,
//! with how they are bound, added to and read on each database. What the numbers mean is `metering::rollup::Part`.

use std::str::Split;

use bigdecimal::BigDecimal;
use diesel::QueryResult;
use diesel::pg::Pg;
use diesel::query_builder::AstPass;
use diesel::sql_types::{Array, BigInt, Binary, Nullable, Numeric, Text};
use diesel::sqlite::Sqlite;

use crate::db::DbError;
use crate::db::columns::{quantity_of, uuid_of};
use crate::metering::rollup::{Edge, Part};
use crate::metering::time::Timestamp;

/// Names, for INSERT, in the order in which [`PartArrays`] and [`PartValues`] are bound.
macro_rules! part_columns {
    () => {
        "event_count, quantity_sum, quantity_min, quantity_max, first_at, first_id, first_quantity, last_at, last_id, last_quantity"
    };
}

/// A place for each.
macro_rules! part_places {
    () => {
        "?, ?, ?, ?, ?, ?, ?, ?, ?, ?"
    };
}

/// For DO UPDATE SET, where the stored row is `r`: adds the new part to it. Edges go by time, then by id.
macro_rules! part_sums {
    ($add:literal, $least:literal, $greatest:literal) => {
        concat!(
            "event_count = r.event_count + excluded.event_count, quantity_sum = ",
            $add,
            ", quantity_min = ",
            $least,
            "(r.quantity_min, excluded.quantity_min), quantity_max = ",
            $greatest,
            "(r.quantity_max, excluded.quantity_max), first_at = ",
            $least,
            "(r.first_at, excluded.first_at),
             first_id = CASE WHEN (excluded.first_at, excluded.first_id) < (r.first_at, r.first_id)
                             THEN excluded.first_id ELSE r.first_id END,
             first_quantity = CASE WHEN (excluded.first_at, excluded.first_id) < (r.first_at, r.first_id)
                                   THEN excluded.first_quantity ELSE r.first_quantity END, last_at = ",
            $greatest,
            "(r.last_at, excluded.last_at),
             last_id = CASE WHEN (excluded.last_at, excluded.last_id) > (r.last_at, r.last_id)
                            THEN excluded.last_id ELSE r.last_id END,
             last_quantity = CASE WHEN (excluded.last_at, excluded.last_id) > (r.last_at, r.last_id)
                                  THEN excluded.last_quantity ELSE r.last_quantity END"
        )
    };
    (postgres) => {
        part_sums!("r.quantity_sum + excluded.quantity_sum", "least", "greatest")
    };
    (sqlite) => {
        part_sums!("quantity_add(r.quantity_sum, excluded.quantity_sum)", "min", "max")
    };
}

/// For SELECT, in the order of [`PartRow`]: quantities as text.
macro_rules! part_texts {
    (postgres) => {
        "event_count, quantity_sum::text, quantity_min::text, quantity_max::text,
         first_at, first_id, first_quantity::text, last_at, last_id, last_quantity::text"
    };
    (sqlite) => {
        "event_count, quantity_text(quantity_sum), quantity_text(quantity_min), quantity_text(quantity_max),
         first_at, first_id, quantity_text(first_quantity), last_at, last_id, quantity_text(last_quantity)"
    };
}

pub(crate) use {part_columns, part_places, part_sums, part_texts};

/// Many parts for PostgreSQL, an array for each column.
#[derive(Default)]
pub struct PartArrays<'a> {
    counts: Vec<i64>,
    sums: Vec<&'a BigDecimal>,
    mins: Vec<&'a BigDecimal>,
    maxs: Vec<&'a BigDecimal>,
    firsts: EdgeArrays<'a>,
    lasts: EdgeArrays<'a>,
}

#[derive(Default)]
struct EdgeArrays<'a> {
    ats: Vec<i64>,
    ids: Vec<&'a [u8]>,
    quantities: Vec<&'a BigDecimal>,
}

impl<'a> EdgeArrays<'a> {
    fn push(&mut self, edge: &'a Edge) {
        self.ats.push(edge.at.0);
        self.ids.push(edge.id.as_bytes());
        self.quantities.push(edge.quantity.decimal());
    }

    fn bind<'b>(&'b self, text: &mut Split<char>, out: &mut AstPass<'_, 'b, Pg>) -> QueryResult<()> {
        bind::<Array<BigInt>, _>(text, out, &self.ats)?;
        bind::<Array<Binary>, _>(text, out, &self.ids)?;
        bind::<Array<Numeric>, _>(text, out, &self.quantities)
    }
}

/// The text up to a place, and what goes there.
fn bind<'b, S, T>(text: &mut Split<char>, out: &mut AstPass<'_, 'b, Pg>, value: &'b T) -> QueryResult<()>
where
    Pg: diesel::sql_types::HasSqlType<S>,
    T: diesel::serialize::ToSql<S, Pg>,
{
    out.push_sql(text.next().unwrap_or_default());
    out.push_bind_param::<S, T>(value)
}

impl<'a> PartArrays<'a> {
    /// Of parts whose first and last event are known, which those of new events always are.
    pub fn of(parts: impl Iterator<Item = &'a Part>) -> Self {
        let mut arrays = PartArrays::default();
        for part in parts {
            let Some((first, last)) = &part.edges else { continue };
            arrays.counts.push(part.count);
            arrays.sums.push(part.sum.decimal());
            arrays.mins.push(part.min.decimal());
            arrays.maxs.push(part.max.decimal());
            arrays.firsts.push(first);
            arrays.lasts.push(last);
        }
        arrays
    }

    pub fn bind_all<'b>(&'b self, text: &mut Split<char>, out: &mut AstPass<'_, 'b, Pg>) -> QueryResult<()> {
        bind::<Array<BigInt>, _>(text, out, &self.counts)?;
        for numbers in [&self.sums, &self.mins, &self.maxs] {
            bind::<Array<Numeric>, _>(text, out, numbers)?;
        }
        self.firsts.bind(text, out)?;
        self.lasts.bind(text, out)
    }
}

/// One part for SQLite, quantities in bytes that sort.
pub struct PartValues {
    count: i64,
    numbers: [Vec<u8>; 3],
    edges: [EdgeValues; 2],
}

struct EdgeValues {
    at: i64,
    id: Vec<u8>,
    quantity: Vec<u8>,
}

impl PartValues {
    /// `None` where the first and last event are not known, which those of new events always are.
    pub fn of(part: &Part) -> Option<Self> {
        let (first, last) = part.edges.as_ref()?;
        let edge = |edge: &Edge| EdgeValues {
            at: edge.at.0,
            id: edge.id.as_bytes().to_vec(),
            quantity: edge.quantity.to_sortable(),
        };
        let numbers = [&part.sum, &part.min, &part.max].map(|number| number.to_sortable());
        Some(PartValues { count: part.count, numbers, edges: [edge(first), edge(last)] })
    }

    pub fn bind_all<'b>(
        &'b self,
        text: &mut Split<char>,
        out: &mut AstPass<'_, 'b, Sqlite>,
    ) -> QueryResult<()> {
        out.push_sql(text.next().unwrap_or_default());
        out.push_bind_param::<BigInt, _>(&self.count)?;
        for number in &self.numbers {
            out.push_sql(text.next().unwrap_or_default());
            out.push_bind_param::<Binary, _>(number)?;
        }
        for edge in &self.edges {
            out.push_sql(text.next().unwrap_or_default());
            out.push_bind_param::<BigInt, _>(&edge.at)?;
            for bytes in [&edge.id, &edge.quantity] {
                out.push_sql(text.next().unwrap_or_default());
                out.push_bind_param::<Binary, _>(bytes)?;
            }
        }
        Ok(())
    }
}

/// The SQL types of [`PartRow`].
pub type PartTypes = (
    BigInt,
    Text,
    Text,
    Text,
    Nullable<BigInt>,
    Nullable<Binary>,
    Nullable<Text>,
    Nullable<BigInt>,
    Nullable<Binary>,
    Nullable<Text>,
);

/// As it is read; without first and last event where a query did not ask for them.
#[derive(diesel::Queryable, diesel::QueryableByName)]
pub struct PartRow {
    #[diesel(sql_type = BigInt)]
    event_count: i64,
    #[diesel(sql_type = Text)]
    quantity_sum: String,
    #[diesel(sql_type = Text)]
    quantity_min: String,
    #[diesel(sql_type = Text)]
    quantity_max: String,
    #[diesel(sql_type = Nullable<BigInt>)]
    first_at: Option<i64>,
    #[diesel(sql_type = Nullable<Binary>)]
    first_id: Option<Vec<u8>>,
    #[diesel(sql_type = Nullable<Text>)]
    first_quantity: Option<String>,
    #[diesel(sql_type = Nullable<BigInt>)]
    last_at: Option<i64>,
    #[diesel(sql_type = Nullable<Binary>)]
    last_id: Option<Vec<u8>>,
    #[diesel(sql_type = Nullable<Text>)]
    last_quantity: Option<String>,
}

impl PartRow {
    pub fn into_part(self) -> Result<Part, DbError> {
        let edge = |at: Option<i64>, id: Option<Vec<u8>>, quantity: Option<String>| match (at, id, quantity) {
            (Some(at), Some(id), Some(quantity)) => Ok::<_, DbError>(Some(Edge {
                at: Timestamp(at),
                id: uuid_of(&id)?,
                quantity: quantity_of(&quantity)?,
            })),
            _ => Ok(None),
        };
        let first = edge(self.first_at, self.first_id, self.first_quantity)?;
        let last = edge(self.last_at, self.last_id, self.last_quantity)?;
        Ok(Part {
            count: self.event_count,
            sum: quantity_of(&self.quantity_sum)?,
            min: quantity_of(&self.quantity_min)?,
            max: quantity_of(&self.quantity_max)?,
            edges: first.zip(last),
            state: None,
        })
    }
}
