//! `keys`: which key seals the stored secrets, and sealing them anew. A rotation can be stopped anywhere and begun again,
//! and two at once do no harm: each row is replaced only while it is the one that was read.

use std::collections::BTreeMap;

use serde_json::json;

use crate::alerts::sql::destinations::{self, StoredSecrets};
use crate::cli::{Outcome, print, print_json};
use crate::config::Driver;
use crate::config::commands::Keys;
use crate::db::{self, audit};
use crate::error::{Code, Error, Result};
use crate::vault;

/// Rows per transaction that reads, and per line of progress.
const BATCH: i64 = 100;
/// What is not sealed, in the words of `status`.
const CLEAR: &str = "(clear text)";

pub fn run(driver: &Driver, asked: &Keys) -> Result<Outcome> {
    match asked {
        Keys::Status(as_json) => status(driver, as_json.json),
        Keys::Rotate => rotate(driver),
    }
}

/// Calls `each` with every row that holds secrets.
fn each_row(driver: &Driver, mut each: impl FnMut(StoredSecrets) -> Result<()>) -> Result<()> {
    let mut after = i64::MIN;
    loop {
        let page = db::once(driver, |conn| destinations::stored_secrets(conn, after, BATCH))?;
        let Some(last) = page.last() else { return Ok(()) };
        after = last.id;
        page.into_iter().try_for_each(&mut each)?;
    }
}

fn key_of(stored: &str) -> &str {
    vault::key_id(stored).unwrap_or(CLEAR)
}

fn status(driver: &Driver, as_json: bool) -> Result<Outcome> {
    let mut counts: BTreeMap<String, u64> = BTreeMap::new();
    each_row(driver, |row| {
        for stored in [Some(&row.secret), row.previous_secret.as_ref()].into_iter().flatten() {
            *counts.entry(key_of(stored).to_owned()).or_default() += 1;
        }
        Ok(())
    })?;
    let ring = vault::ring();
    let missing: Vec<&String> = counts.keys().filter(|id| *id != CLEAR && !ring.has(id)).collect();
    if as_json {
        print_json(&json!({"seals": ring.current(), "known": ring.ids().collect::<Vec<_>>(),
                           "secrets": counts, "missing": missing}))?;
    } else {
        print(&format!("sealing with {}\n", ring.current().unwrap_or("no key")));
        for (id, count) in &counts {
            let unknown = if missing.contains(&id) { ", which is not in the ring" } else { "" };
            print(&format!("{count} under {id}{unknown}\n"));
        }
    }
    Ok(if missing.is_empty() { Outcome::Done } else { Outcome::Findings })
}

fn rotate(driver: &Driver) -> Result<Outcome> {
    let Some(current) = vault::ring().current() else {
        return Err(Error::new(Code::Unusable, "OPEN_SPANNER_ENCRYPTION_KEYS has no key to seal with"));
    };
    let (mut sealed, mut raced) = (0, 0);
    each_row(driver, |row| {
        let anew = row.sealed_anew().map_err(|_| {
            let problem = format!("the secrets of alert destination {} cannot be opened", row.public_id);
            Error::new(Code::Unusable, format!("{problem}; {sealed} were sealed before it"))
        })?;
        if anew.0 == row.secret && anew.1 == row.previous_secret {
            return Ok(());
        }
        match db::once(driver, |conn| destinations::replace_secrets(conn, &row, &anew))? {
            true => sealed += 1,
            false => raced += 1,
        }
        Ok(())
    })?;
    if sealed > 0 {
        db::once_as_operator(driver, "key_ring::rotate", |_| {
            audit::about(current, "");
            audit::states(None, Some(json!({"rows": sealed})));
            Ok(())
        })?;
    }
    print(&format!("{sealed} sealed with {current}, {raced} changed meanwhile\n"));
    Ok(if raced == 0 { Outcome::Done } else { Outcome::Findings })
}
