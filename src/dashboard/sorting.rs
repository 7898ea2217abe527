//! The order of a table, in its address: `sort=-events` is by events, the most first. What is sorted is what is shown, or
//! all that there is; a page that shows less says so.

use std::cmp::Reverse;

use crate::dashboard::view::Link;
use crate::error::{Error, Result};

/// What a table can be sorted by.
#[derive(Debug)]
pub struct Orders {
    /// As a first press sorts by them: behind `-` those whose largest or latest comes first.
    pub columns: &'static [&'static str],
    /// The order that needs no word.
    pub default: &'static str,
}

#[derive(Clone, Copy, Debug)]
pub struct Sort {
    pub column: &'static str,
    pub is_descending: bool,
    orders: &'static Orders,
}

/// What stands above a column that a table can be sorted by.
pub struct Heading {
    pub words: &'static str,
    pub link: String,
    /// `ascending` or `descending` where the table is sorted by it, else empty.
    pub order: &'static str,
}

/// The name of a column, and whether its largest comes first.
fn split(word: &str) -> (&str, bool) {
    word.strip_prefix('-').map_or((word, false), |name| (name, true))
}

impl Sort {
    pub fn parse(word: &str, orders: &'static Orders) -> Result<Sort> {
        let (name, is_descending) = split(if word.is_empty() { orders.default } else { word });
        let names: Vec<&'static str> = orders.columns.iter().map(|column| split(column).0).collect();
        let column = names.iter().find(|known| **known == name).copied().ok_or_else(|| {
            Error::invalid(format!(
                "sort must be one of {}, with - before it for the other way",
                names.join(", ")
            ))
        })?;
        Ok(Sort { column, is_descending, orders })
    }

    /// As in the address; empty for the order that needs no word.
    pub fn word(&self) -> String {
        let word = match self.is_descending {
            false => self.column.to_owned(),
            true => format!("-{}", self.column),
        };
        if word == self.orders.default { String::new() } else { word }
    }

    pub fn is_default(&self) -> bool {
        self.word().is_empty()
    }

    /// A press sorts by the column; another press turns it round.
    pub fn heading(&self, base: Link, (column, words): (&'static str, &'static str)) -> Heading {
        let is_current = self.column == column;
        let first_press = || self.orders.columns.contains(&format!("-{column}").as_str());
        let is_descending = if is_current { !self.is_descending } else { first_press() };
        let order = match (is_current, self.is_descending) {
            (false, _) => "",
            (true, false) => "ascending",
            (true, true) => "descending",
        };
        let next = Sort { column, is_descending, orders: self.orders }.word();
        Heading { words, link: base.with("sort", &next).to_string(), order }
    }

    /// Puts rows in the order of a key; those with the same stay as they are.
    pub fn arrange<T, K: Ord>(&self, rows: &mut [T], key: impl Fn(&T) -> K) {
        match self.is_descending {
            false => rows.sort_by_cached_key(key),
            true => rows.sort_by_cached_key(|row| Reverse(key(row))),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    static ORDERS: Orders = Orders { columns: &["name", "-events"], default: "name" };
    static LATEST: Orders = Orders { columns: &["name", "-last"], default: "-last" };

    #[test]
    fn orders_are_words_of_the_address() {
        for word in ["", "-name", "events", "-events"] {
            assert_eq!(Sort::parse(word, &ORDERS).expect(word).word(), word);
        }
        for word in ["size", "-", "--name", "name,events"] {
            assert!(Sort::parse(word, &ORDERS).is_err(), "{word}");
        }
        let sort = Sort::parse("-events", &ORDERS).expect("known");
        let heading = |column| sort.heading(Link::to("/meters"), (column, "W"));
        assert_eq!(
            (heading("events").link.as_str(), heading("events").order),
            ("/meters?sort=events", "descending")
        );
        assert_eq!((heading("name").link.as_str(), heading("name").order), ("/meters", ""));
        let latest = Sort::parse("", &LATEST).expect("known");
        assert!(latest.is_default() && latest.is_descending);
        assert_eq!(latest.heading(Link::to("/x"), ("last", "W")).link, "/x?sort=last");
        assert_eq!(
            Sort::parse("last", &LATEST).expect("known").heading(Link::to("/x"), ("last", "W")).link,
            "/x"
        );
    }

    #[test]
    fn rows_of_one_rank_stay_as_they_are() {
        let arranged = |word: &str| {
            let mut rows = [(1, 'a'), (2, 'b'), (1, 'c')];
            Sort::parse(word, &ORDERS).expect("known").arrange(&mut rows, |(rank, _)| *rank);
            rows.map(|(_, name)| name)
        };
        assert_eq!(arranged("events"), ['a', 'c', 'b']);
        assert_eq!(arranged("-events"), ['b', 'a', 'c']);
    }
}
