//! Hand-written statements that stay prepared. diesel never caches upserts, `sql_query` and batch inserts; a query
//! node with a type of its own is cached like any select.

/// Declares a statement for one database: `prepared!(Name for PgConnection, (field: SqlType = RustType, …), "SQL")`.
/// Each `?` of the text is one field, in order; `+ [parts: Type]` behind them takes the last ten, for a partial aggregate
/// (`db::partial`). With `-> (SqlTypes)` it returns rows, else it is executed.
macro_rules! prepared {
    ($(#[$doc:meta])* $name:ident for $conn:ty, ($($field:ident: $sql:ty = $rust:ty),* $(,)?)
     $(+ [$parts:ident: $values:ty])? $(-> $rows:ty)?, $text:expr) => {
        $(#[$doc])*
        pub(crate) struct $name<'a> {
            $(pub(crate) $field: &'a $rust,)*
            $(pub(crate) $parts: &'a $values,)?
        }

        impl<'a> diesel::query_builder::QueryId for $name<'a> {
            type QueryId = $name<'static>;
            const HAS_STATIC_QUERY_ID: bool = true;
        }

        impl<'a> diesel::query_builder::QueryFragment<<$conn as diesel::Connection>::Backend> for $name<'a> {
            fn walk_ast<'b>(
                &'b self,
                mut out: diesel::query_builder::AstPass<'_, 'b, <$conn as diesel::Connection>::Backend>,
            ) -> diesel::QueryResult<()> {
                let mut parts = $text.split('?');
                $(
                    out.push_sql(parts.next().unwrap_or_default());
                    out.push_bind_param::<$sql, $rust>(self.$field)?;
                )*
                $(self.$parts.bind_all(&mut parts, &mut out)?;)?
                out.push_sql(parts.next().unwrap_or_default());
                Ok(())
            }
        }

        impl diesel::RunQueryDsl<$conn> for $name<'_> {}

        $(
            impl diesel::query_builder::Query for $name<'_> {
                type SqlType = $rows;
            }
        )?
    };
}

pub(crate) use prepared;
