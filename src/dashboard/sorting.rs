//! The order of a table, in its address: `sort=-events` is by events, the most first. The order that needs no word is that
//! of the first column.

use crate::dashboard::view::Link;
use crate::error::{Error, Result};

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Sort {
    pub column: &'static str,
    pub is_descending: bool,
}

/// What stands above a column that a table can be sorted by.
pub struct Heading {
    pub words: &'static str,
    pub link: String,
    /// `ascending` or `descending` where the table is sorted by it, else empty.
    pub order: &'static str,
}

impl Sort {
    pub fn parse(word: &str, columns: &[&'static str]) -> Result<Sort> {
        let (name, is_descending) = word.strip_prefix('-').map_or((word, false), |name| (name, true));
        let found = columns
            .iter()
            .find(|column| **column == name || (word.is_empty() && columns.first() == Some(*column)));
        let column = found.ok_or_else(|| {
            Error::invalid(format!(
                "sort must be one of {}, with - before it for the other way",
                columns.join(", ")
            ))
        })?;
        Ok(Sort { column, is_descending })
    }

    /// As in the address; empty for the order that needs no word.
    pub fn word(&self, columns: &[&str]) -> String {
        match (self.is_descending, columns.first() == Some(&self.column)) {
            (false, true) => String::new(),
            (false, false) => self.column.to_owned(),
            (true, _) => format!("-{}", self.column),
        }
    }

    /// A press sorts by the column, numbers and times from the top; another press turns it round.
    pub fn heading(
        &self,
        base: Link,
        columns: &[&'static str],
        (column, words): (&'static str, &'static str),
    ) -> Heading {
        let is_current = self.column == column;
        let is_text = columns.first() == Some(&column);
        let is_descending = if is_current { !self.is_descending } else { !is_text };
        let order = match (is_current, self.is_descending) {
            (false, _) => "",
            (true, false) => "ascending",
            (true, true) => "descending",
        };
        let next = Sort { column, is_descending }.word(columns);
        Heading { words, link: base.with("sort", &next).to_string(), order }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn orders_are_words_of_the_address() {
        const COLUMNS: [&str; 2] = ["name", "events"];
        for word in ["", "-name", "events", "-events"] {
            assert_eq!(Sort::parse(word, &COLUMNS).expect(word).word(&COLUMNS), word);
        }
        for word in ["size", "-", "--name", "name,events"] {
            assert!(Sort::parse(word, &COLUMNS).is_err(), "{word}");
        }
        let sort = Sort::parse("-events", &COLUMNS).expect("known");
        let heading = |column| sort.heading(Link::to("/meters"), &COLUMNS, (column, "W"));
        assert_eq!(
            (heading("events").link.as_str(), heading("events").order),
            ("/meters?sort=events", "descending")
        );
        assert_eq!((heading("name").link.as_str(), heading("name").order), ("/meters", ""));
    }
}
