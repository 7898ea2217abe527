//! Secrets at rest: sealed with AES-256-GCM under a key of the ring in `OPEN_SPANNER_ENCRYPTION_KEYS`, bound to table,
//! column, row and workspace, so that a sealed text is worth nothing in another place. The first key of the ring seals, all
//! of them open. Where nobody gave a key, one is made in a file beside the SQLite database; on PostgreSQL, where processes on
//! several machines would each have another one, secrets lie in clear text unless the settings refuse that. Never logs a key
//! or what was sealed.

pub mod file;

use std::fmt;
use std::path::{Path, PathBuf};
use std::sync::{Arc, PoisonError, RwLock};

use base64::Engine;
use base64::engine::general_purpose::{STANDARD, URL_SAFE_NO_PAD};
use ring::aead::{AES_256_GCM, Aad, LessSafeKey, NONCE_LEN, Nonce, UnboundKey};

use crate::chance;
use crate::error::{Code, Error, Result};

/// What a sealed text begins with; the id of its key follows. No secret that this program makes begins so.
const SEALED: &str = "sealed:1:";
const KEY_BYTES: usize = 32;
const ID_CHARACTERS_MAX: usize = 32;

/// The place of a secret, to which it is bound.
#[derive(Clone, Copy, Debug)]
pub struct Place<'a> {
    pub table: &'a str,
    pub column: &'a str,
    pub row: &'a str,
    pub workspace_id: i64,
}

impl Place<'_> {
    fn bytes(&self) -> Vec<u8> {
        let mut bytes = self.workspace_id.to_be_bytes().to_vec();
        for text in [self.table, self.column, self.row] {
            bytes.extend((text.len() as u64).to_be_bytes());
            bytes.extend(text.as_bytes());
        }
        bytes
    }
}

/// Keys by their ids, the one that seals first. Empty: secrets are kept as they are.
#[derive(Clone, Default)]
pub struct KeyRing(Vec<(String, Arc<LessSafeKey>)>);

impl fmt::Debug for KeyRing {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_list().entries(self.ids()).finish()
    }
}

const SETTING: &str = "OPEN_SPANNER_ENCRYPTION_KEYS";

impl KeyRing {
    /// `k2:BASE64,k1:BASE64`: ids and keys of 32 bytes, the one that seals first. The words of a refusal hold no key.
    pub fn parse(text: &str) -> Result<KeyRing> {
        KeyRing::parse_from(SETTING, text)
    }

    /// As [`KeyRing::parse`]; a refusal names the place where the text stands.
    fn parse_from(source: &str, text: &str) -> Result<KeyRing> {
        let unusable = |detail: &dyn fmt::Display| Error::new(Code::Unusable, format!("{source}: {detail}"));
        let mut keys: Vec<(String, Arc<LessSafeKey>)> = Vec::new();
        for part in text.split([',', '\n']).map(str::trim).filter(|part| !part.is_empty()) {
            let (id, key) = part.split_once(':').ok_or_else(|| unusable(&"must be like k1:BASE64"))?;
            let is_id = !id.is_empty()
                && id.len() <= ID_CHARACTERS_MAX
                && id.chars().all(|c| c.is_ascii_alphanumeric() || matches!(c, '-' | '_' | '.'));
            if !is_id {
                return Err(unusable(&"ids are 1 to 32 letters, digits, dots, dashes and underscores"));
            }
            if keys.iter().any(|(known, _)| known == id) {
                return Err(unusable(&format_args!("two keys are called {id}")));
            }
            let bytes = STANDARD.decode(key.trim()).or_else(|_| URL_SAFE_NO_PAD.decode(key.trim()));
            let bytes = bytes.ok().filter(|bytes| bytes.len() == KEY_BYTES);
            let bytes = bytes.ok_or_else(|| unusable(&format_args!("key {id} is not 32 bytes in Base64")))?;
            let key = UnboundKey::new(&AES_256_GCM, &bytes).map_err(|_| unusable(&"a key was not taken"))?;
            keys.push((id.to_owned(), Arc::new(LessSafeKey::new(key))));
        }
        Ok(KeyRing(keys))
    }

    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// These keys, and behind them those of another ring whose names are not taken.
    fn and(&self, other: KeyRing) -> KeyRing {
        let more = other.0.into_iter().filter(|(id, _)| !self.has(id));
        KeyRing(self.0.iter().cloned().chain(more).collect())
    }

    /// The keys of a text, and behind them those of this ring: what is taken out opens until the process is started again,
    /// so that one that is taken out too early keeps no webhook from being signed. A name keeps its key.
    fn renewed(&self, text: &str) -> Result<KeyRing> {
        const PROBE: Place<'_> = Place { table: "", column: "", row: "", workspace_id: 0 };
        let new = KeyRing::parse(text)?;
        if new.is_empty() && !self.is_empty() {
            return Err(Error::new(
                Code::Unusable,
                format!("{SETTING}: all keys are taken away by a restart only"),
            ));
        }
        for (id, key) in self.0.iter().filter(|(id, _)| new.has(id)) {
            let sealed = KeyRing(vec![(id.clone(), key.clone())]).seal(PROBE, "")?;
            if new.try_open(PROBE, &sealed).is_err() {
                let problem =
                    format!("{SETTING}: key {id} has other bytes than before: a new key needs a new name");
                return Err(Error::new(Code::Unusable, problem));
            }
        }
        Ok(new.and(self.clone()))
    }

    /// The id of the key that seals.
    pub fn current(&self) -> Option<&str> {
        self.0.first().map(|(id, _)| id.as_str())
    }

    pub fn ids(&self) -> impl Iterator<Item = &str> {
        self.0.iter().map(|(id, _)| id.as_str())
    }

    pub fn has(&self, id: &str) -> bool {
        self.ids().any(|known| known == id)
    }

    /// What is stored of a secret.
    pub fn seal(&self, place: Place<'_>, secret: &str) -> Result<String> {
        let Some((id, key)) = self.0.first() else { return Ok(secret.to_owned()) };
        let nonce = chance::secret::<NONCE_LEN>()?;
        let mut bytes = secret.as_bytes().to_vec();
        let aad = Aad::from(place.bytes());
        key.seal_in_place_append_tag(Nonce::assume_unique_for_key(nonce), aad, &mut bytes)
            .map_err(|_| Error::internal("a secret was not sealed"))?;
        let sealed: Vec<u8> = nonce.into_iter().chain(bytes).collect();
        Ok(format!("{SEALED}{id}:{}", URL_SAFE_NO_PAD.encode(sealed)))
    }

    /// The secret behind what is stored; what was stored before there was a key is the secret itself. 503 where this process
    /// lacks the key: with it, it can go on.
    pub fn open(&self, place: Place<'_>, stored: &str) -> Result<String> {
        self.try_open(place, stored).map_err(|unopened| match unopened {
            Unopened::NoKey(id) => Error::unavailable(format_args!(
                "a stored secret is sealed with key {id}, which this process does not have: give it all keys in \
                 OPEN_SPANNER_ENCRYPTION_KEYS and restart it"
            )),
            Unopened::Refused | Unopened::Damaged => {
                Error::internal(format_args!("the secret of {} {} cannot be opened", place.table, place.row))
            }
        })
    }

    /// Like [`KeyRing::open`], and says why not.
    pub fn try_open(&self, place: Place<'_>, stored: &str) -> Result<String, Unopened> {
        let Some(id) = key_id(stored) else { return Ok(stored.to_owned()) };
        let Some((_, key)) = self.0.iter().find(|(known, _)| known == id) else {
            return Err(Unopened::NoKey(id.to_owned()));
        };
        let text = stored[SEALED.len() + id.len()..].strip_prefix(':').ok_or(Unopened::Damaged)?;
        let mut bytes = URL_SAFE_NO_PAD.decode(text).map_err(|_| Unopened::Damaged)?;
        let mut sealed = bytes.split_off(NONCE_LEN.min(bytes.len()));
        let nonce = Nonce::try_assume_unique_for_key(&bytes).map_err(|_| Unopened::Damaged)?;
        if sealed.len() < AES_256_GCM.tag_len() {
            return Err(Unopened::Damaged);
        }
        let opened =
            key.open_in_place(nonce, Aad::from(place.bytes()), &mut sealed).map_err(|_| Unopened::Refused)?;
        String::from_utf8(opened.to_vec()).map_err(|_| Unopened::Damaged)
    }
}

/// Why a sealed text was not opened.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Unopened {
    /// The ring has no key of this id.
    NoKey(String),
    /// The key is not the one that sealed it, or the text was changed or moved.
    Refused,
    /// It is no sealed text.
    Damaged,
}

/// The id of the key that sealed what is stored; none when it is not sealed.
pub fn key_id(stored: &str) -> Option<&str> {
    Some(stored.strip_prefix(SEALED)?.split(':').next().unwrap_or_default())
}

/// What this process was told of keys.
#[derive(Default)]
struct Told {
    ring: KeyRing,
    /// Where a key of our own is, or may be made.
    own: Option<PathBuf>,
    may_be_clear: bool,
}

/// What is known by now. What is replaced stays in memory: somebody may be sealing with it.
#[derive(Clone, Copy)]
struct Known {
    told: Option<&'static Told>,
    /// With the keys of the file, once that was found.
    ring: Option<&'static KeyRing>,
}

static KNOWN: RwLock<Known> = RwLock::new(Known { told: None, ring: None });
static NONE: KeyRing = KeyRing(Vec::new());

fn known() -> Known {
    *KNOWN.read().unwrap_or_else(PoisonError::into_inner)
}

fn tell(told: Told) {
    let told: &'static Told = Box::leak(Box::new(told));
    *KNOWN.write().unwrap_or_else(PoisonError::into_inner) = Known { told: Some(told), ring: None };
}

/// Tells this process its keys, once, before any work: those of the settings, the file where it may have one of its own, and
/// whether secrets may lie in clear text where there is neither.
pub fn install(keys: Option<&str>, own: Option<PathBuf>, may_be_clear: bool) -> Result<()> {
    let ring = KeyRing::parse(keys.unwrap_or_default())?;
    tell(Told { ring, own, may_be_clear });
    Ok(())
}

/// Other keys in the settings, while this process works.
pub fn renew(keys: Option<&str>) -> Result<()> {
    let Some(Told { ring, own, may_be_clear }) = known().told else { return Ok(()) };
    let ring = ring.renewed(keys.unwrap_or_default())?;
    tell(Told { ring, own: own.clone(), may_be_clear: *may_be_clear });
    Ok(())
}

/// The file of this process for a key of its own, if it may have one.
pub fn own_file() -> Option<&'static Path> {
    known().told?.own.as_deref()
}

/// The keys of this process: those of the settings, then those in its file, which another process may have made since this
/// one looked last.
pub fn ring() -> &'static KeyRing {
    let Known { told, ring } = known();
    if let Some(ring) = ring {
        return ring;
    }
    let Some(told) = told else { return &NONE };
    let found = told.own.as_deref().map(file::read).transpose();
    match found.map(Option::flatten) {
        Ok(Some(own)) => keep(told, told.ring.and(own)),
        Ok(None) => &told.ring,
        Err(error) => {
            log::error!("{}", error.message);
            &told.ring
        }
    }
}

/// Remembers a ring for as long as what was told is the same.
fn keep(told: &'static Told, ring: KeyRing) -> &'static KeyRing {
    let ring: &'static KeyRing = Box::leak(Box::new(ring));
    let mut known = KNOWN.write().unwrap_or_else(PoisonError::into_inner);
    match known.told {
        Some(now) if std::ptr::eq(now, told) => known.ring.get_or_insert(ring),
        _ => ring,
    }
}

/// The keys for a secret that is about to be stored. Where nobody gave one, it is made; where it cannot be, and secrets may
/// not lie in clear text, 409.
pub fn sealing() -> Result<&'static KeyRing> {
    let ring_now = ring();
    let Some(told) = known().told.filter(|_| ring_now.is_empty()) else { return Ok(ring_now) };
    match &told.own {
        Some(own) => {
            file::make(own)?;
            file::read(own)?;
            let made = ring();
            match made.is_empty() {
                true => Err(Error::new(Code::Unusable, format!("{} holds no key", own.display()))),
                false => Ok(made),
            }
        }
        None if told.may_be_clear => Ok(ring_now),
        None => Err(Error::conflict(format_args!(
            "this server has no key to seal a secret with: whoever runs it sets {SETTING}, or allows clear text with \
             OPEN_SPANNER_CLEAR_SECRETS=true"
        ))),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const ONE: &str = "k1:AAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAA=";
    const TWO: &str = "k2:AQEBAQEBAQEBAQEBAQEBAQEBAQEBAQEBAQEBAQEBAQE=";
    const HERE: Place<'_> = Place { table: "t", column: "c", row: "r", workspace_id: 1 };

    #[test]
    fn a_secret_is_opened_only_in_its_place() {
        let ring = KeyRing::parse(ONE).expect("a ring");
        let stored = ring.seal(HERE, "osp_whsec_x").expect("sealed");
        assert!(stored.starts_with("sealed:1:k1:") && !stored.contains("whsec"), "{stored}");
        assert_ne!(stored, ring.seal(HERE, "osp_whsec_x").expect("sealed"), "the same text twice");
        assert_eq!(ring.open(HERE, &stored).expect("opened"), "osp_whsec_x");
        for elsewhere in [
            Place { table: "u", ..HERE },
            Place { column: "d", ..HERE },
            Place { row: "s", ..HERE },
            Place { workspace_id: 2, ..HERE },
        ] {
            assert!(ring.open(elsewhere, &stored).is_err());
        }
        let mut bent = stored.clone();
        bent.pop();
        for broken in [bent.as_str(), "sealed:1:k1:", "sealed:1:k1", "sealed:1:", "sealed:1:k1:!"] {
            assert!(ring.open(HERE, broken).is_err(), "{broken}");
        }
    }

    #[test]
    fn the_first_key_seals_and_all_open() {
        let old = KeyRing::parse(ONE).expect("a ring");
        let both = KeyRing::parse(&format!(" {TWO} ,\n{ONE}")).expect("a ring");
        let stored = old.seal(HERE, "s").expect("sealed");
        assert_eq!(both.open(HERE, &stored).expect("opened"), "s");
        assert_eq!(key_id(&both.seal(HERE, "s").expect("sealed")), Some("k2"));
        assert!(KeyRing::parse(TWO).expect("a ring").open(HERE, &stored).is_err());
        let missing = KeyRing::parse(TWO).expect("a ring").try_open(HERE, &stored);
        assert_eq!(missing, Err(Unopened::NoKey("k1".to_owned())));
        // the same name for other bytes
        let wrong = KeyRing::parse(&TWO.replace("k2", "k1")).expect("a ring");
        assert_eq!(wrong.try_open(HERE, &stored), Err(Unopened::Refused));
        assert_eq!(wrong.try_open(HERE, "sealed:1:k1:AAAA"), Err(Unopened::Damaged));
        let joined = KeyRing::parse(TWO).expect("a ring").and(old.clone()).and(wrong);
        assert_eq!(joined.ids().collect::<Vec<_>>(), ["k2", "k1"]);
        assert_eq!(joined.open(HERE, &stored).expect("the first of a name"), "s");
        let none = KeyRing::default();
        assert_eq!(none.seal(HERE, "s").expect("kept"), "s");
        assert_eq!(both.open(HERE, "osp_whsec_old").expect("opened"), "osp_whsec_old");
    }

    #[test]
    fn keys_are_renewed_and_names_keep_their_key() {
        let old = KeyRing::parse(ONE).expect("a ring");
        let stored = old.seal(HERE, "s").expect("sealed");
        let new = old.renewed(TWO).expect("renewed");
        assert_eq!((new.current(), new.ids().count()), (Some("k2"), 2));
        assert_eq!(new.open(HERE, &stored).expect("what was taken out still opens"), "s");
        let refused =
            old.renewed(&TWO.replace("k2", "k1")).expect_err("another key of the same name").message;
        assert!(refused.contains("key k1 has other bytes"), "{refused}");
        assert!(old.renewed(" ").is_err(), "it would go on sealing with a key that is given up");
        assert!(KeyRing::default().renewed("").expect("none before, none now").is_empty());
        assert_eq!(old.renewed(&format!("{TWO},{ONE}")).expect("renewed").ids().count(), 2);
    }

    #[test]
    fn bad_rings_are_refused_without_a_word_of_them() {
        for bad in ["x", "k1:short", "k 1:AAAA", ":AAAA", &format!("{ONE},{ONE}")] {
            let message = KeyRing::parse(bad).expect_err("refused").message;
            assert!(!message.contains("AAAA") && !message.contains("short"), "{message}");
        }
    }
}
