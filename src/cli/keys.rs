//! `keys`: which key seals the stored secrets, and sealing them anew. A rotation can be stopped anywhere and begun again,
//! and two at once do no harm: each row is replaced only while it is the one that was read, and what another one did
//! meanwhile is looked at again until nothing is left.

use std::collections::BTreeMap;

use serde_json::json;

use crate::alerts::sealed::Sealed;
use crate::alerts::sql::destinations::{self, StoredSecrets};
use crate::cli::{Outcome, print_json};
use crate::config::Driver;
use crate::config::commands::Keys;
use crate::db::{self, audit};
use crate::error::{Code, Error, Result};
use crate::output::print;
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

/// What all stored secrets are sealed with, and whether the keys of this process open them.
pub fn look(driver: &Driver) -> Result<Sealed> {
    let mut sealed = Sealed::default();
    each_row(driver, |row| {
        sealed.add(vault::ring(), &row);
        Ok(())
    })?;
    Ok(sealed)
}

fn status(driver: &Driver, as_json: bool) -> Result<Outcome> {
    let (sealed, ring) = (look(driver)?, vault::ring());
    let (missing, wrong) = (sealed.missing(), sealed.wrong());
    let clear = (sealed.clear > 0).then_some((CLEAR, sealed.clear));
    let counts: BTreeMap<&str, u64> = clear.into_iter().chain(sealed.counts()).collect();
    if as_json {
        print_json(&json!({"seals": ring.current(), "known": ring.ids().collect::<Vec<_>>(),
                           "secrets": counts, "missing": missing, "wrong": wrong}))?;
    } else {
        print(&format!("sealing with {}\n", ring.current().unwrap_or("no key")));
        for (id, count) in &counts {
            let note = if missing.contains(id) {
                ", which is not in the ring"
            } else if wrong.contains(id) {
                ", which the key of that name in the ring does not open"
            } else {
                ""
            };
            print(&format!("{count} under {id}{note}\n"));
        }
    }
    Ok(if missing.is_empty() && wrong.is_empty() { Outcome::Done } else { Outcome::Findings })
}

/// A row that others change each time it is read is left to the next rotation after so many looks.
const PASSES_MAX: usize = 20;

fn rotate(driver: &Driver) -> Result<Outcome> {
    let Some(current) = vault::ring().current() else {
        return Err(Error::new(Code::Unusable, "OPEN_SPANNER_ENCRYPTION_KEYS has no key to seal with"));
    };
    let (mut sealed, mut left) = (0, 0);
    for _ in 0..PASSES_MAX {
        left = seal_all(driver, &mut sealed)?;
        if left == 0 {
            break;
        }
    }
    if sealed > 0 {
        db::once_as_operator(driver, "key_ring::rotate", |_| {
            audit::about(current, "");
            audit::states(None, Some(json!({"rows": sealed})));
            Ok(())
        })?;
    }
    print(&format!("{sealed} sealed with {current}, {left} left\n"));
    Ok(if left == 0 { Outcome::Done } else { Outcome::Findings })
}

/// One look at every row; answers how many were changed by somebody else between reading and writing: by a server, or by
/// another rotation, which has sealed them already.
fn seal_all(driver: &Driver, sealed: &mut u64) -> Result<u64> {
    let mut raced = 0;
    each_row(driver, |row| {
        let anew = row.sealed_anew().map_err(|_| {
            let problem = format!("the secrets of alert destination {} cannot be opened", row.public_id);
            Error::new(Code::Unusable, format!("{problem}; {sealed} were sealed before it"))
        })?;
        if anew.0 == row.secret && anew.1 == row.previous_secret {
            return Ok(());
        }
        match db::once(driver, |conn| destinations::replace_secrets(conn, &row, &anew))? {
            true => *sealed += 1,
            false => raced += 1,
        }
        Ok(())
    })?;
    Ok(raced)
}
