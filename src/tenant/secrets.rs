//! Secrets of webhooks on their way: opened with the keys of one installation, sealed with a key that both sides know, and
//! at the other end the other way round.

use std::path::Path;

use super::archive::{Kind, Row};
use super::unusable;
use crate::alerts::webhook::SECRET_PREFIX;
use crate::auth::token::Token;
use crate::error::Result;
use crate::vault::{self, KeyRing, Place};

pub const TABLE: &str = "alert_destinations";
const COLUMNS: [&str; 2] = ["secret", "previous_secret"];

/// The key in a file; none without a file.
pub fn read_key(file: Option<&Path>) -> Result<Option<KeyRing>> {
    let Some(file) = file else { return Ok(None) };
    let text = std::fs::read_to_string(file)
        .map_err(|error| unusable(format!("cannot read {}: {error}", file.display())))?;
    KeyRing::parse(&format!("transport:{}", text.trim()))
        .map(Some)
        .map_err(|_| unusable(format!("{} is not 32 bytes in Base64", file.display())))
}

fn at(columns: &[(String, Kind)], name: &str) -> Option<usize> {
    columns.iter().position(|(column, _)| column == name)
}

/// Opens what a row holds with one ring and seals it with the other.
fn reseal(
    columns: &[(String, Kind)],
    row: &mut Row,
    workspace_id: i64,
    [from, to]: [&KeyRing; 2],
) -> Result<()> {
    let id = at(columns, "public_id").and_then(|at| row[at].clone()).unwrap_or_default();
    for column in COLUMNS {
        let Some(value) = at(columns, column).and_then(|at| row[at].as_mut()) else { continue };
        let place = Place { table: TABLE, column, row: &id, workspace_id };
        *value = to.seal(place, &from.open(place, value)?)?;
    }
    Ok(())
}

/// For the file.
pub fn pack(
    columns: &[(String, Kind)],
    row: &mut Row,
    workspace_id: i64,
    key: Option<&KeyRing>,
) -> Result<()> {
    let Some(key) = key else {
        for at in COLUMNS.iter().filter_map(|column| at(columns, column)) {
            row[at] = None;
        }
        return Ok(());
    };
    reseal(columns, row, workspace_id, [vault::ring(), key])
}

/// From the file: what is not in it is made anew.
pub fn unpack(
    columns: &[(String, Kind)],
    row: &mut Row,
    workspace_id: i64,
    key: Option<&KeyRing>,
) -> Result<()> {
    match (at(columns, COLUMNS[0]), key) {
        (Some(secret), None) if row[secret].is_none() => {
            row[secret] = Some(Token::new(SECRET_PREFIX)?.expose().to_owned());
            let nothing = KeyRing::default();
            reseal(columns, row, workspace_id, [&nothing, vault::sealing()?])
        }
        (_, Some(key)) => reseal(columns, row, workspace_id, [key, vault::sealing()?]),
        _ => Ok(()),
    }
}
