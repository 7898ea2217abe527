//! Password rules and hashing (Argon2id, PHC strings; bcrypt of users that were brought in is only checked). Hashing is slow on purpose, so it runs on blocking threads, a
//! few at once, and refuses when too many wait. Never logs or keeps a password.

use std::sync::Arc;

use argon2::password_hash::phc::PasswordHash;
use argon2::password_hash::{PasswordHasher, PasswordVerifier};
use argon2::{Algorithm, Argon2, Params, Version};
use tokio::sync::{OwnedSemaphorePermit, Semaphore};

use crate::blocking;
use crate::error::{Error, Result};

const MIN_CHARACTERS: usize = 8;
pub const MAX_BYTES: usize = 1024;

/// OWASP's first choice of 2023: 19 MiB, two passes, one lane; about 20 ms.
const MEMORY_KIB: u32 = 19_456;
const PASSES: u32 = 2;
const STRIPES: u32 = 1;

/// What an unknown user is checked against, so that the time taken tells nothing. No password fits it.
const DUMMY: &str =
    "$argon2id$v=19$m=19456,t=2,p=1$AAAAAAAAAAAAAAAAAAAAAA$AAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAA";

/// People who wait for a thread at once, first come, first served, before others are sent away: as many as are hashed
/// within some twenty seconds.
const MAX_WAITING: usize = 1024;

/// The rules for a new password.
pub fn check(password: &str) -> Result<()> {
    if password.chars().count() < MIN_CHARACTERS {
        return Err(Error::invalid(format_args!("password must have at least {MIN_CHARACTERS} characters")));
    }
    if password.len() > MAX_BYTES {
        return Err(Error::invalid(format_args!("password must have at most {MAX_BYTES} bytes")));
    }
    Ok(())
}

/// Whether this is a hash of the reference server (bcrypt), to be replaced when its user next signs in.
pub fn is_outdated(stored: &str) -> bool {
    stored.starts_with("$2")
}

/// The threads that hash. Cheap to clone.
#[derive(Clone)]
pub struct Hasher {
    /// One permit for everyone who hashes or waits to.
    queue: Arc<Semaphore>,
    /// One permit for everyone who hashes.
    threads: Arc<Semaphore>,
    runtime: tokio::runtime::Handle,
}

/// A thread reserved for one hash.
pub struct Turn {
    permits: (OwnedSemaphorePermit, OwnedSemaphorePermit),
    runtime: tokio::runtime::Handle,
}

impl Hasher {
    /// Must be called inside the runtime whose blocking threads it will use.
    pub fn new() -> Self {
        // half the processors, so that a flood of sign-ins leaves the other half to everybody else
        let threads = std::thread::available_parallelism().map_or(1, |count| (count.get() / 2).max(1));
        Hasher {
            queue: Arc::new(Semaphore::new(threads + MAX_WAITING)),
            threads: Arc::new(Semaphore::new(threads)),
            runtime: tokio::runtime::Handle::current(),
        }
    }

    /// Waits for a thread; 503 when too many wait already.
    pub async fn turn(&self) -> Result<Turn> {
        let busy = || Error::unavailable("too many sign-ins at once");
        let place = self.queue.clone().try_acquire_owned().map_err(|_| busy())?;
        let thread = self.threads.clone().acquire_owned().await.map_err(|_| busy())?;
        Ok(Turn { permits: (place, thread), runtime: self.runtime.clone() })
    }
}

impl Default for Hasher {
    fn default() -> Self {
        Hasher::new()
    }
}

impl Turn {
    /// The PHC string to store.
    pub async fn hash(self, password: String) -> Result<String> {
        self.run(move || {
            let made: PasswordHash = argon2()?.hash_password(password.as_bytes()).map_err(Error::internal)?;
            Ok(made.to_string())
        })
        .await
    }

    /// Whether the password fits the stored hash. Without one (unknown user, or no password set) the answer is no,
    /// and takes as long.
    pub async fn verify(self, password: String, stored: Option<String>) -> Result<bool> {
        self.run(move || {
            if let Some(stored) = stored.as_deref().filter(|stored| is_outdated(stored)) {
                return Ok(bcrypt::verify(password, stored).unwrap_or(false));
            }
            let parsed = stored.as_deref().and_then(|stored| PasswordHash::new(stored).ok());
            if stored.is_some() && parsed.is_none() {
                log::error!("a stored password hash cannot be read: its user cannot sign in");
            }
            let is_known = parsed.is_some();
            let dummy = || PasswordHash::new(DUMMY).map_err(|_| Error::internal("unreadable password hash"));
            let hash = parsed.map_or_else(dummy, Ok)?;
            Ok(argon2()?.verify_password(password.as_bytes(), &hash).is_ok() && is_known)
        })
        .await
    }

    async fn run<T: Send + 'static>(self, work: impl FnOnce() -> Result<T> + Send + 'static) -> Result<T> {
        let permits = self.permits;
        let task = blocking::begin_on(&self.runtime, move || {
            // given back by the thread, not by the request, which may be gone before the work is done
            let _permits = permits;
            work()
        });
        task.await.unwrap_or_else(|panic| Err(Error::internal(panic)))
    }
}

fn argon2() -> Result<Argon2<'static>> {
    let params = Params::new(MEMORY_KIB, PASSES, STRIPES, None).map_err(Error::internal)?;
    Ok(Argon2::new(Algorithm::Argon2id, Version::V0x13, params))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::error::Code;

    #[test]
    fn length_is_counted_in_characters_and_bounded_in_bytes() {
        for good in ["12345678", "пароль12", "🔑🔑🔑🔑🔑🔑🔑🔑", "        ", "line\nfeed", &"x".repeat(1024)]
        {
            assert!(check(good).is_ok(), "{good:?}");
        }
        for bad in ["", "1234567", "пароль1", "🔑🔑🔑🔑🔑🔑🔑", &"x".repeat(1025)] {
            let error = check(bad).expect_err("refused");
            assert_eq!(error.code, Code::InvalidInput);
            assert!(error.message.contains("password"), "{}", error.message);
        }
    }

    #[tokio::test]
    async fn hashes_are_salted_and_checked() {
        let hasher = Hasher::new();
        let hash = async |password: &str| {
            hasher.turn().await.expect("turn").hash(password.to_string()).await.expect("hash")
        };
        let verify = async |password: &str, stored: Option<&str>| {
            let turn = hasher.turn().await.expect("turn");
            turn.verify(password.to_string(), stored.map(String::from)).await.expect("verify")
        };
        let one = hash("correct horse").await;
        assert!(one.starts_with("$argon2id$v=19$m=19456,t=2,p=1$"), "{one}");
        assert_ne!(one, hash("correct horse").await);
        assert!(verify("correct horse", Some(&one)).await);
        assert!(!verify("correct hors", Some(&one)).await);
        assert!(!verify("correct horse", None).await);
        let long = "x".repeat(1024);
        assert!(verify(&long, Some(&hash(&long).await)).await);
        assert!(!verify(&long[..1023], Some(&hash(&long).await)).await);
    }

    #[tokio::test]
    async fn hashes_of_the_reference_are_checked_and_outdated() {
        let hasher = Hasher::new();
        let verify = async |password: &str, stored: &str| {
            let turn = hasher.turn().await.expect("turn");
            turn.verify(password.to_string(), Some(stored.to_string())).await.expect("verify")
        };
        let stored = bcrypt::hash("correct horse battery 1", 4).expect("a hash");
        assert!(is_outdated(&stored) && !is_outdated(DUMMY));
        assert!(verify("correct horse battery 1", &stored).await);
        assert!(!verify("correct horse battery 2", &stored).await);
        for unreadable in ["$2a$10$short", "plain", "$argon2id$v=19$nonsense"] {
            assert!(!verify("plain", unreadable).await, "{unreadable}");
        }
    }

    #[test]
    fn the_dummy_costs_as_much_as_a_real_hash() {
        let dummy = PasswordHash::new(DUMMY).expect("a PHC string");
        let real: PasswordHash = argon2().expect("argon2").hash_password(b"x").expect("hash");
        assert_eq!(Params::try_from(&dummy).expect("params"), Params::try_from(&real).expect("params"));
        assert_eq!(dummy.salt.map(|salt| salt.len()), real.salt.map(|salt| salt.len()));
    }

    #[tokio::test]
    async fn a_crowd_is_sent_away() {
        let hasher = Hasher {
            queue: Arc::new(Semaphore::new(2)),
            threads: Arc::new(Semaphore::new(1)),
            runtime: tokio::runtime::Handle::current(),
        };
        let first = hasher.turn().await.expect("a thread");
        let waiting = tokio::spawn({
            let hasher = hasher.clone();
            async move { hasher.turn().await.map(drop) }
        });
        while hasher.queue.available_permits() > 0 {
            tokio::task::yield_now().await;
        }
        let refused = hasher.turn().await.err().expect("refused");
        assert_eq!((refused.code, refused.retry_after_seconds), (Code::Unavailable, Some(1)));
        drop(first);
        assert!(waiting.await.expect("task").is_ok());
    }
}
