//! `keys`: which key seals the stored secrets, and sealing them anew. A rotation can be stopped anywhere and begun again,
//! and two at once do no harm: each row is replaced only while it is the one that was read, and what another one did
//! meanwhile is looked at again until nothing is left.

use std::collections::BTreeMap;

use serde_json::json;

use crate::alerts::sealed::Sealed;
use crate::alerts::sql::destinations::{self, StoredSecrets};
use crate::alerts::webhook::SECRET_PREFIX;
use crate::auth::token::Token;
use crate::cli::{Outcome, print_json};
use crate::config::Driver;
use crate::config::commands::Keys;
use crate::db::{self, audit};
use crate::error::{Code, Error, Result};
use crate::output::print;
use crate::vault::{self, Unopened};

/// Rows per transaction that reads, and per line of progress.
const BATCH: i64 = 100;
/// What is not sealed, in the words of `status`.
const CLEAR: &str = "(clear text)";

pub fn run(driver: &Driver, asked: &Keys) -> Result<Outcome> {
    match asked {
        Keys::Status(as_json) => status(driver, as_json.json),
        Keys::Rotate { replace_lost } => rotate(driver, *replace_lost),
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
        let whose = vault::own_file().filter(|file| file.exists());
        let whose = whose.map(|file| format!(", and {} is read", file.display())).unwrap_or_default();
        print(&format!("sealing with {}{whose}\n", ring.current().unwrap_or("no key")));
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

/// What a rotation did so far.
#[derive(Default)]
struct Done {
    sealed: u64,
    /// Destinations that have another secret now.
    replaced: Vec<String>,
}

/// A row that cannot be sealed anew.
struct Stuck {
    public_id: String,
    why: String,
}

fn rotate(driver: &Driver, replace_lost: bool) -> Result<Outcome> {
    let Some(current) = vault::sealing()?.current() else {
        return Err(Error::new(Code::Unusable, "OPEN_SPANNER_ENCRYPTION_KEYS has no key to seal with"));
    };
    let (mut done, mut left, mut stuck) = (Done::default(), 0, None);
    for _ in 0..PASSES_MAX {
        let pass = seal_all(driver, replace_lost, &mut done)?;
        (left, stuck) = pass;
        if left == 0 || stuck.is_some() {
            break;
        }
    }
    if stuck.is_some() {
        left = rows_left(driver, current)?;
    }
    tell(driver, current, &done, left, stuck.as_ref())?;
    let Done { sealed, replaced } = done;
    replaced.iter().for_each(|id| print(&format!("alert destination {id} has a new secret\n")));
    if let Some(Stuck { public_id, why }) = stuck {
        let problem = format!("the secrets of alert destination {public_id} cannot be opened: {why}");
        return Err(Error::new(Code::Unusable, format!("{problem}; {sealed} sealed before it, {left} left")));
    }
    print(&format!("{sealed} sealed with {current}, {left} left\n"));
    Ok(if left == 0 { Outcome::Done } else { Outcome::Findings })
}

/// One row in the trail for a rotation that did something or stopped.
fn tell(driver: &Driver, current: &str, done: &Done, left: u64, stuck: Option<&Stuck>) -> Result<()> {
    if done.sealed == 0 && stuck.is_none() {
        return Ok(());
    }
    db::once_as_operator(driver, "key_ring::rotate", |_| {
        audit::about(current, "");
        let mut states = json!({"rows": done.sealed, "left": left});
        if let Some(stuck) = stuck {
            states["stopped_at"] = json!({"alert_destination": stuck.public_id, "why": stuck.why});
        }
        if !done.replaced.is_empty() {
            states["replaced"] = json!(done.replaced);
        }
        audit::states(None, Some(states));
        Ok(())
    })
}

/// How many rows are not sealed with this key, or not yet.
fn rows_left(driver: &Driver, current: &str) -> Result<u64> {
    let mut left = 0;
    each_row(driver, |row| {
        left += u64::from(row.each().any(|(place, stored)| {
            vault::key_id(stored) != Some(current) || vault::ring().try_open(place, stored).is_err()
        }));
        Ok(())
    })?;
    Ok(left)
}

/// One look at every row, up to one that cannot be opened; answers how many were changed by somebody else between reading
/// and writing: by a server, or by another rotation, which has sealed them already.
fn seal_all(driver: &Driver, replace_lost: bool, done: &mut Done) -> Result<(u64, Option<Stuck>)> {
    let (mut raced, mut stuck) = (0, None);
    each_row(driver, |row| {
        if stuck.is_some() {
            return Ok(());
        }
        let (anew, is_new) = match anew(&row, replace_lost)? {
            Ok(anew) => anew,
            Err(why) => {
                stuck = Some(Stuck { public_id: row.public_id, why });
                return Ok(());
            }
        };
        if anew.0 == row.secret && anew.1 == row.previous_secret {
            return Ok(());
        }
        match db::once(driver, |conn| destinations::replace_secrets(conn, &row, &anew))? {
            true => {
                done.sealed += 1;
                done.replaced.extend(is_new.then_some(row.public_id));
            }
            false => raced += 1,
        }
        Ok(())
    })?;
    Ok((raced, stuck))
}

type Anew = ((String, Option<String>), bool);

/// What takes the place of the secrets of a row, and whether it is another secret; or why there is nothing.
fn anew(row: &StoredSecrets, replace_lost: bool) -> Result<Result<Anew, String>> {
    let fault = row.each().find_map(|(place, stored)| vault::ring().try_open(place, stored).err());
    Ok(match fault {
        None => Ok((row.sealed_anew()?, false)),
        Some(Unopened::NoKey(_)) if replace_lost => {
            let opened = row.each().next().map(|(place, stored)| vault::ring().try_open(place, stored));
            match opened {
                // an older one beside it is lost, which only signed on
                Some(Ok(_)) => {
                    Ok((StoredSecrets { previous_secret: None, ..row.clone() }.sealed_anew()?, false))
                }
                _ => Ok(((row.sealed(Token::new(SECRET_PREFIX)?.expose())?, None), true)),
            }
        }
        Some(Unopened::NoKey(id)) => Err(format!("key {id} is not in the ring")),
        Some(Unopened::Refused) => Err("its key has other bytes, or it was changed or moved".to_owned()),
        Some(Unopened::Damaged) => Err("it is damaged".to_owned()),
    })
}
