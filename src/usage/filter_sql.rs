//! What of a filter the database can check before rows leave it. The text is a condition that every matching event
//! `e` meets, and maybe others: `Filter::matches` has the last word. So a condition may be left out wherever the
//! database's idea of it could be narrower.

use crate::db::statement::Statement;
use crate::metering::event::ledger_key;
use crate::metering::filter::{Field, Filter, Literal, Order, Test};

/// The condition in SQL; `None` when nothing of it can be said.
pub fn prefilter(filter: &Filter, workspace_id: i64, statement: &mut Statement) -> Option<String> {
    match filter {
        Filter::All(rules) => {
            let parts: Vec<String> =
                rules.iter().filter_map(|rule| prefilter(rule, workspace_id, statement)).collect();
            (!parts.is_empty()).then(|| balanced(&parts, " AND "))
        }
        Filter::Any(rules) => {
            // checked first, so that no bind is left without its place
            if !rules.iter().all(is_known) {
                return None;
            }
            let parts: Vec<String> =
                rules.iter().filter_map(|rule| prefilter(rule, workspace_id, statement)).collect();
            (parts.len() == rules.len()).then(|| any(&parts))
        }
        Filter::Condition(field, test) if is_known(filter) => condition(field, test, workspace_id, statement),
        Filter::Condition(..) => None,
    }
}

/// One of these conditions. `IS TRUE` keeps PostgreSQL's planner from trying every way through nested groups, which
/// takes it minutes; no index answers such a group anyway.
fn any(parts: &[String]) -> String {
    format!("({} IS TRUE)", balanced(parts, " OR "))
}

/// Joins conditions as a balanced tree: SQLite refuses trees of more than a thousand levels.
fn balanced(parts: &[String], word: &str) -> String {
    match parts {
        [] => "(1 = 1)".to_owned(),
        [one] => one.clone(),
        _ => {
            let (left, right) = parts.split_at(parts.len() / 2);
            format!("({}{word}{})", balanced(left, word), balanced(right, word))
        }
    }
}

/// The filter as a condition that the matching events meet and no others, so that the database may add them up.
/// `None` where its idea of equality could differ from `Filter::matches`: then rows are looked at one by one.
pub fn exact(filter: &Filter, workspace_id: i64, statement: &mut Statement) -> Option<String> {
    if !is_exact(filter) {
        return None;
    }
    let mut parts = |rules: &[Filter]| {
        let parts: Option<Vec<String>> =
            rules.iter().map(|rule| exact(rule, workspace_id, statement)).collect();
        parts.filter(|parts| !parts.is_empty())
    };
    match filter {
        Filter::All(rules) => parts(rules).map(|parts| balanced(&parts, " AND ")),
        Filter::Any(rules) => parts(rules).map(|parts| any(&parts)),
        Filter::Condition(Field::Metadata(path), test) if !statement.is_postgres => {
            let written = written(path, test, statement)?;
            let at = format!("'$.\"{}\"'", path.replace('.', "\".\""));
            let texts = match test {
                Test::Text(text) => statement.text(text.as_str()),
                Test::In(literals) => texts(literals, |text, statement| statement.text(text), statement)?,
                _ => return None,
            };
            Some(format!(
                "({written} AND json_type(e.metadata, {at}) = 'text' AND json_extract(e.metadata, {at}) IN ({texts}))"
            ))
        }
        Filter::Condition(field, test) => condition(field, test, workspace_id, statement),
    }
}

fn is_exact(filter: &Filter) -> bool {
    let (field, test) = match filter {
        Filter::All(rules) | Filter::Any(rules) => return !rules.is_empty() && rules.iter().all(is_exact),
        Filter::Condition(field, test) => (field, test),
    };
    match (field, test) {
        // a number as a step would go into lists on PostgreSQL
        (Field::Metadata(path), _) if path.split('.').any(|step| step.parse::<i64>().is_ok()) => false,
        (Field::Metadata(_), Test::Text(text)) => is_only_text(text),
        (Field::Metadata(_), Test::In(literals)) => {
            !literals.is_empty() && literals.iter().all(|literal| matches!(literal, Literal::Text(_)))
        }
        (Field::Metadata(_), _) => false,
        _ => is_known(filter),
    }
}

/// Whether only a string has this text form: it cannot be how a number, a flag, a list or an object is written.
fn is_only_text(text: &str) -> bool {
    serde_json::from_str::<serde::de::IgnoredAny>(text).is_err()
}

/// Whether [`prefilter`] has something to say.
fn is_known(filter: &Filter) -> bool {
    let (field, test) = match filter {
        Filter::All(rules) => return rules.iter().any(is_known),
        Filter::Any(rules) => return rules.iter().all(is_known),
        Filter::Condition(field, test) => (field, test),
    };
    match (field, test) {
        (Field::Subject | Field::IdempotencyKey, Test::In(_)) => true,
        (Field::Quantity | Field::EventTime | Field::ReceivedAt, Test::In(_) | Test::Compare(..)) => true,
        (Field::Metadata(_), Test::In(literals)) => {
            literals.iter().all(|literal| !matches!(literal, Literal::List(_)))
        }
        (Field::Metadata(_), Test::Not(_)) => false,
        (Field::Metadata(_), _) => true,
        _ => false,
    }
}

fn condition(field: &Field, test: &Test, workspace_id: i64, statement: &mut Statement) -> Option<String> {
    match (field, test) {
        (Field::Subject, Test::In(literals)) => {
            let names = texts(literals, |name, statement| statement.text(name), statement)?;
            Some(format!(
                "e.subject_id IN (SELECT id FROM subjects WHERE workspace_id = {workspace_id} AND name IN ({names}))"
            ))
        }
        // every stored key is in the ledger, which knows where its event is
        (Field::IdempotencyKey, Test::In(literals)) => {
            let keys = texts(literals, |key, statement| statement.bytes(ledger_key(key)), statement)?;
            Some(format!(
                "(e.subject_id, e.event_time, e.id) IN (SELECT subject_id, event_time, event_id
                 FROM idempotency_keys WHERE workspace_id = {workspace_id} AND key IN ({keys}))"
            ))
        }
        (Field::Quantity | Field::EventTime | Field::ReceivedAt, Test::In(literals)) => {
            let values: Option<Vec<String>> =
                literals.iter().map(|literal| fixed(literal, statement)).collect();
            Some(format!("{} IN ({})", column(field), values?.join(", ")))
        }
        (Field::Quantity | Field::EventTime | Field::ReceivedAt, Test::Compare(order, literal)) => {
            let value = fixed(literal, statement)?;
            Some(format!("{} {} {value}", column(field), order.sql()))
        }
        (Field::Metadata(path), test) if statement.is_postgres => metadata(path, test, statement),
        (Field::Metadata(path), test) => written(path, test, statement),
        _ => None,
    }
}

fn texts(
    literals: &[Literal],
    mut bind: impl FnMut(&str, &mut Statement) -> String,
    statement: &mut Statement,
) -> Option<String> {
    let one = |literal: &Literal| match literal {
        Literal::Text(text) => Some(bind(text, statement)),
        _ => None,
    };
    Some(literals.iter().map(one).collect::<Option<Vec<_>>>()?.join(", "))
}

fn column(field: &Field) -> &'static str {
    match field {
        Field::Quantity => "e.quantity",
        Field::ReceivedAt => "e.received_at",
        _ => "e.event_time",
    }
}

fn fixed(literal: &Literal, statement: &mut Statement) -> Option<String> {
    match literal {
        Literal::Number(number) if statement.is_postgres => {
            Some(format!("{}::numeric", statement.text(number.to_plain())))
        }
        Literal::Number(number) => Some(statement.bytes(number.to_sortable())),
        Literal::Time(time) => Some(statement.int(time.0)),
        _ => None,
    }
}

/// SQLite only. Metadata is stored as `event::validate` writes it: compact, one spelling of each value. So text can be
/// looked for instead of parsing JSON, in a tenth of the time; it may also stand elsewhere in the object. The quote that the
/// name begins with is left out: SQLite compares the rest wherever the first letter stands, and quotes are everywhere.
fn written(path: &str, test: &Test, statement: &mut Statement) -> Option<String> {
    let name = path.rsplit('.').next()?;
    let values = match test {
        // looking for each of many texts takes longer than reading the JSON
        Test::In(literals) if literals.len() > WRITTEN_MAX => vec![String::new()],
        Test::In(literals) => literals.iter().map(json_text).collect::<Option<Vec<_>>>()?,
        Test::Text(text) if is_only_text(text) => vec![serde_json::to_string(text).ok()?],
        Test::Text(text) => vec![serde_json::to_string(text).ok()?, text.clone()],
        _ => vec![String::new()],
    };
    let places = values.iter().map(|value| stands_in("e.metadata", &format!("{name}\":{value}"), statement));
    let places: Vec<String> = places.collect();
    (!places.is_empty()).then(|| balanced(&places, " OR "))
}

/// Texts that are looked for one by one.
const WRITTEN_MAX: usize = 16;

/// SQLite refuses patterns of more than 50,000 bytes, and a character may take three.
const PATTERN_MAX: usize = 10_000;

/// SQLite only. Whether a text has this part. GLOB has the C library find the first letter, many bytes at once; `instr` looks
/// at one character after the other, which costs as much as reading the row.
fn stands_in(column: &str, part: &str, statement: &mut Statement) -> String {
    if part.len() > PATTERN_MAX {
        return format!("instr({column}, {}) > 0", statement.text(part));
    }
    let mut pattern = "*".to_owned();
    for letter in part.chars() {
        match letter {
            '*' | '?' | '[' => pattern.extend(['[', letter, ']']),
            letter => pattern.push(letter),
        }
    }
    pattern.push('*');
    format!("{column} GLOB {}", statement.text(pattern))
}

/// PostgreSQL only. A path is dot-separated words, so it needs no escaping inside the array literal. `#>` would also
/// step into lists, which finds more than is asked for, never less.
fn metadata(path: &str, test: &Test, statement: &mut Statement) -> Option<String> {
    if let Some(condition) = texts_of_field(path, test, statement) {
        return Some(condition);
    }
    let value = format!("(e.metadata #> {})", path_literal(path));
    let kind = format!("jsonb_typeof{value}");
    let text = format!("({value} #>> '{{}}')");
    match test {
        Test::Exists => Some(format!("{value} IS NOT NULL")),
        Test::In(literals) => {
            let values: Option<Vec<String>> = literals
                .iter()
                .map(|literal| json_text(literal).map(|json| format!("{}::jsonb", statement.text(json))))
                .collect();
            Some(format!("{value} IN ({})", values?.join(", ")))
        }
        Test::Compare(order, Literal::Number(number)) => {
            let number = statement.text(number.to_plain());
            Some(format!(
                "CASE WHEN {kind} = 'number' THEN {value}::numeric {} {number}::numeric ELSE false END",
                Order::sql(*order)
            ))
        }
        Test::Compare(order, Literal::Text(other)) => {
            let other = statement.text(other.as_str());
            Some(format!("({kind} = 'string' AND {text} COLLATE \"C\" {} {other})", order.sql()))
        }
        // PostgreSQL spells numbers and lists its own way
        Test::Contains(part) => {
            let part = statement.text(part.as_str());
            Some(format!("({kind} <> 'string' OR strpos({text}, {part}) > 0)"))
        }
        Test::Text(whole) if is_only_text(whole) => {
            Some(format!("e.metadata #>> {} = {}", path_literal(path), statement.text(whole.as_str())))
        }
        Test::Text(whole) => {
            let whole = statement.text(whole.as_str());
            Some(format!("({kind} <> 'string' OR {text} = {whole})"))
        }
        _ => None,
    }
}

/// PostgreSQL only. Whether a field of the object itself is one of some texts, as most filters ask. `->>` takes the field as
/// it is, where `#>>` takes an array apart for each row and a comparison as JSON copies the value first. What kind of value
/// it is is asked of the few rows that have the text.
fn texts_of_field(path: &str, test: &Test, statement: &mut Statement) -> Option<String> {
    if path.contains('.') {
        return None;
    }
    let text = format!("e.metadata ->> '{path}'");
    match test {
        Test::Text(whole) if is_only_text(whole) => {
            Some(format!("{text} = {}", statement.text(whole.as_str())))
        }
        Test::In(literals) if literals.iter().all(|literal| matches!(literal, Literal::Text(_))) => {
            let texts = texts(literals, |text, statement| statement.text(text), statement)?;
            Some(format!("({text} IN ({texts}) AND jsonb_typeof(e.metadata -> '{path}') = 'string')"))
        }
        _ => None,
    }
}

/// A path as an array of PostgreSQL. Its words need no escaping, but a bare `null` would be none.
fn path_literal(path: &str) -> String {
    format!("'{{\"{}\"}}'", path.replace('.', "\",\""))
}

fn json_text(literal: &Literal) -> Option<String> {
    match literal {
        Literal::Text(text) => serde_json::to_string(text).ok(),
        Literal::Number(number) => Some(number.to_json()),
        Literal::Bool(flag) => Some(flag.to_string()),
        Literal::Time(_) | Literal::List(_) => None,
    }
}

#[cfg(test)]
mod tests {
    use diesel::sql_types::BigInt;
    use proptest::prelude::*;

    use super::*;
    use crate::db::statement::plan;

    #[derive(diesel::QueryableByName)]
    struct Found {
        #[diesel(sql_type = BigInt)]
        found: i64,
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(1_000))]

        /// Whatever signs of a pattern are in it.
        #[test]
        fn a_part_is_found_where_it_stands(text in "[ab*?\\[\\]^é-]{0,12}", part in "[ab*?\\[\\]^é-]{0,4}", is_long: bool) {
            thread_local! {
                static DATABASE: std::cell::RefCell<(tempfile::TempDir, crate::db::Conn)> = plan::empty_database().into();
            }
            let (mut text, mut part) = (text, part);
            if is_long {
                let more = "*".repeat(PATTERN_MAX);
                (text, part) = (format!("{more}{text}"), format!("{more}{part}"));
            }
            DATABASE.with_borrow_mut(|(_, conn)| {
                let mut statement = Statement::new(conn);
                let column = format!("CAST({} AS TEXT)", statement.text(text.as_str()));
                let sql = format!("SELECT {} AS found", stands_in(&column, &part, &mut statement));
                let rows: Vec<Found> = statement.load(conn, &sql).expect("SQL");
                prop_assert_eq!(rows[0].found == 1, text.contains(&part), "{} in {}", part, text);
                Ok(())
            })?;
        }
    }
}
