//! What the stored secrets are sealed with, and whether a ring of keys opens them: asked when a process that signs webhooks
//! starts, and by `keys status` and `doctor`. A key of the right name and the wrong bytes is noticed by trying it.

use std::collections::BTreeMap;

use crate::alerts::sql::destinations::StoredSecrets;
use crate::vault::{self, KeyRing, Unopened};

/// Secrets by the key that sealed them.
#[derive(Debug, Default)]
pub struct Sealed {
    /// That are not sealed.
    pub clear: u64,
    keys: BTreeMap<String, Tally>,
}

#[derive(Debug, Default)]
struct Tally {
    secrets: u64,
    is_missing: bool,
    /// One of them was opened: the key is the right one, and the others are not tried.
    is_right: bool,
    refused: u64,
}

impl Sealed {
    pub fn add(&mut self, ring: &KeyRing, row: &StoredSecrets) {
        for (place, stored) in row.each() {
            let Some(id) = vault::key_id(stored) else {
                self.clear += 1;
                continue;
            };
            let tally = self.keys.entry(id.to_owned()).or_default();
            tally.secrets += 1;
            if tally.is_right || tally.is_missing {
                continue;
            }
            match ring.try_open(place, stored) {
                Ok(_) => tally.is_right = true,
                Err(Unopened::NoKey(_)) => tally.is_missing = true,
                Err(Unopened::Refused) => tally.refused += 1,
                // says nothing about the key; a rotation stops at it and names it
                Err(Unopened::Damaged) => {}
            }
        }
    }

    /// Key ids, and how many secrets each sealed.
    pub fn counts(&self) -> impl Iterator<Item = (&str, u64)> {
        self.keys.iter().map(|(id, tally)| (id.as_str(), tally.secrets))
    }

    /// Keys that the ring does not have.
    pub fn missing(&self) -> Vec<&str> {
        self.ids(|tally| tally.is_missing)
    }

    /// Keys that the ring has under this name, and that open nothing of what was sealed under it.
    pub fn wrong(&self) -> Vec<&str> {
        self.ids(|tally| !tally.is_right && tally.refused > 0)
    }

    fn ids(&self, is_it: impl Fn(&Tally) -> bool) -> Vec<&str> {
        self.keys.iter().filter(|(_, tally)| is_it(tally)).map(|(id, _)| id.as_str()).collect()
    }

    /// Why webhooks could not be signed, for an operator.
    pub fn problem(&self) -> Option<String> {
        if let Some(id) = self.missing().first() {
            let file = vault::own_file().map_or_else(String::new, |file| match file.exists() {
                true => format!(", and neither does {}", file.display()),
                false => format!(", and {} is not there: it is in no backup, put it back", file.display()),
            });
            return Some(format!(
                "stored secrets are sealed with a key that OPEN_SPANNER_ENCRYPTION_KEYS does not have: {id}{file}; if it is \
                 gone for good, `open-spanner keys rotate --replace-lost` makes new secrets"
            ));
        }
        let id = *self.wrong().first()?;
        Some(format!(
            "key {id} in OPEN_SPANNER_ENCRYPTION_KEYS does not open what was sealed with a key of that name: its bytes \
             are others, put the old ones back"
        ))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::vault::Place;

    const RIGHT: &str = "k1:AAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAA=";
    const WRONG: &str = "k1:AQEBAQEBAQEBAQEBAQEBAQEBAQEBAQEBAQEBAQEBAQE=";

    fn row(ring: &KeyRing, id: i64) -> StoredSecrets {
        let public_id = id.to_string();
        let place = Place { table: "alert_destinations", column: "secret", row: &public_id, workspace_id: 7 };
        let secret = ring.seal(place, "osp_whsec_x").expect("sealed");
        StoredSecrets { id, public_id, workspace_id: 7, secret, previous_secret: None }
    }

    fn seen(ring: &str, rows: &[StoredSecrets]) -> (Vec<String>, Vec<String>, Option<String>) {
        let ring = KeyRing::parse(ring).expect("a ring");
        let mut sealed = Sealed::default();
        rows.iter().for_each(|row| sealed.add(&ring, row));
        let owned = |ids: Vec<&str>| ids.into_iter().map(str::to_owned).collect();
        (owned(sealed.missing()), owned(sealed.wrong()), sealed.problem())
    }

    #[test]
    fn the_name_of_a_key_is_not_enough() {
        let ring = KeyRing::parse(RIGHT).expect("a ring");
        let rows = [row(&ring, 1), row(&ring, 2)];
        assert_eq!(seen(RIGHT, &rows), (vec![], vec![], None));
        let (missing, wrong, problem) = seen(WRONG, &rows);
        assert_eq!((missing, wrong), (vec![], vec!["k1".to_owned()]));
        assert!(problem.is_some_and(|words| words.contains("k1") && words.contains("bytes")));
        assert_eq!(seen("", &rows).0, ["k1"]);
        // one damaged row is no reason to doubt the key
        let mut damaged = rows.clone();
        damaged[0].secret = "sealed:1:k1:AAAA".to_owned();
        assert_eq!(seen(RIGHT, &damaged), (vec![], vec![], None));
        damaged[0].secret.clone_from(&rows[1].secret);
        assert_eq!(seen(RIGHT, &damaged), (vec![], vec![], None), "nor is one that was moved");
    }
}
