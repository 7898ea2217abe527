//! Whom failed sign-ins slow down. Who guesses at an account locks it for their own address, and many addresses together
//! for other strangers, but not for its owner: a browser that its owner signed in with before has a count of its own. What a browser is known by opens nothing.

use std::net::IpAddr;

use crate::auth::Auth;
use crate::auth::sql::{devices, users};
use crate::auth::token::{self, DEVICE_PREFIX, Token, TokenHash};
use crate::db::Conn;
use crate::error::Result;
use crate::metering::time::{DAY, Timestamp};

pub const DEVICE_COOKIE: &str = "open_spanner_device";
/// One that is not seen for this long is forgotten.
pub const DEVICE_LIFETIME: i64 = 180 * DAY;
const DEVICES_PER_USER: i64 = 20;

/// Where an attempt to sign in comes from.
#[derive(Clone, Copy, Debug)]
pub struct Attempt {
    pub address: IpAddr,
    /// A browser that this account has signed in with.
    device: Option<TokenHash>,
}

impl Attempt {
    /// From nowhere known.
    pub fn from(address: IpAddr) -> Attempt {
        Attempt { address, device: None }
    }

    /// Of somebody who is signed in already, told apart from strangers by that. One count for all of their sign-ins: whoever
    /// has one makes another by changing the workspace.
    pub(super) fn within(address: IpAddr, user_id: i64) -> Attempt {
        Attempt { address, device: Some(token::hash(&format!("user {user_id}"))) }
    }
}

/// What a browser or program calls itself, in words that its owner knows it by. Empty for nothing known.
pub fn words(user_agent: &str) -> String {
    let first = |known: &[(&'static str, &'static str)]| {
        known.iter().find(|(part, _)| user_agent.contains(part)).map(|(_, name)| *name)
    };
    // the more particular ones first: all of them claim to be the others, too
    let program = first(&[
        ("Edg/", "Edge"),
        ("OPR/", "Opera"),
        ("Firefox/", "Firefox"),
        ("Chrome/", "Chrome"),
        ("Safari/", "Safari"),
        ("curl/", "curl"),
        ("python", "Python"),
    ]);
    let system = first(&[
        ("iPhone", "iPhone"),
        ("iPad", "iPad"),
        ("Android", "Android"),
        ("Windows", "Windows"),
        ("Mac OS X", "macOS"),
        ("CrOS", "ChromeOS"),
        ("Linux", "Linux"),
    ]);
    match (program, system) {
        (Some(program), Some(system)) => format!("{program} on {system}"),
        (Some(name), None) | (None, Some(name)) => name.to_owned(),
        (None, None) => user_agent.to_owned(),
    }
}

impl Auth {
    /// Where an attempt to sign in with this address comes from. `shown`: the cookie of the browser.
    pub(super) async fn attempt(&self, email: &str, address: IpAddr, shown: Option<&str>) -> Result<Attempt> {
        let Some(hash) = shown.filter(|text| text.starts_with(DEVICE_PREFIX)).map(token::hash) else {
            return Ok(Attempt::from(address));
        };
        let email = email.to_owned();
        let find = move |conn: &mut Conn| devices::is_known(conn, &email, &hash);
        let is_known = self.0.store.vital().read("known_devices::find", find).await?;
        Ok(Attempt { address, device: is_known.then_some(hash) })
    }

    /// 429 while too many attempts lie behind the account, the address or the known browser. An operator may have said
    /// meanwhile that those of the account do not count.
    pub(super) async fn check_attempt(&self, email: &str, attempt: Attempt) -> Result<()> {
        let (throttle, now) = (&self.0.throttle, Timestamp::now());
        if let Some(device) = &attempt.device {
            return throttle.check_device(device, now);
        }
        let refusal = match throttle.check_login(email, attempt.address, now) {
            Ok(()) => return Ok(()),
            Err(refusal) => refusal,
        };
        let (Some(since), email_of) = (throttle.locked_since(email, attempt.address, now), email.to_owned())
        else {
            return Err(refusal);
        };
        let find = move |conn: &mut Conn| users::unlocked_at(conn, &email_of);
        match self.0.store.vital().read("users::unlocked_at", find).await? {
            Some(at) if at >= since.0 => {
                throttle.unlock(email, attempt.address);
                throttle.check_login(email, attempt.address, now)
            }
            _ => Err(refusal),
        }
    }

    pub(super) fn attempt_failed(&self, email: Option<&str>, attempt: Attempt) {
        let now = Timestamp::now();
        match &attempt.device {
            Some(device) => self.0.throttle.device_failed(device, now),
            None => self.0.throttle.login_failed(email, attempt.address, now),
        }
    }

    /// A right password clears the count of where it came from. Strangers elsewhere keep theirs: the owner comes in every
    /// day, and each time they would have had ten guesses more.
    pub(super) fn attempt_succeeded(&self, email: &str, attempt: Attempt) {
        match &attempt.device {
            Some(device) => self.0.throttle.device_succeeded(device),
            None => self.0.throttle.login_succeeded(email, attempt.address),
        }
    }

    /// Remembers the browser of whoever just signed in; answers what it is to be known by, when that is new.
    pub async fn remember_device(&self, email: &str, shown: Option<&str>) -> Result<Option<Token>> {
        let known = shown.filter(|text| text.starts_with(DEVICE_PREFIX)).map(token::hash);
        let (email_of, now) = (email.to_owned(), Timestamp::now());
        if let Some(hash) = known {
            let address = email_of.clone();
            let work = move |conn: &mut Conn| {
                let is_known = devices::is_known(conn, &address, &hash)?;
                if is_known {
                    devices::remember(conn, &address, &hash, now, DEVICES_PER_USER)?;
                }
                Ok(is_known)
            };
            if self.0.store.write("known_devices::see", work).await? {
                return Ok(None);
            }
        }
        let token = Token::new(DEVICE_PREFIX)?;
        let hash = token.hash();
        let work = move |conn: &mut Conn| devices::remember(conn, &email_of, &hash, now, DEVICES_PER_USER);
        self.0.store.write("known_devices::add", work).await?;
        Ok(Some(token))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn people_know_their_devices_by_these_words() {
        let chrome = "Mozilla/5.0 (X11; Linux x86_64) AppleWebKit/537.36 (KHTML, like Gecko) Chrome/156.0.0.0 Safari/537.36";
        let safari = "Mozilla/5.0 (iPhone; CPU iPhone OS 18_0 like Mac OS X) AppleWebKit/605.1.15 Version/18.0 Safari/604.1";
        let edge = "Mozilla/5.0 (Windows NT 10.0; Win64; x64) Chrome/130.0.0.0 Safari/537.36 Edg/130.0.0.0";
        let firefox = "Mozilla/5.0 (Macintosh; Intel Mac OS X 10.15; rv:130.0) Gecko/20100101 Firefox/130.0";
        for (agent, known) in [
            (chrome, "Chrome on Linux"),
            (safari, "Safari on iPhone"),
            (edge, "Edge on Windows"),
            (firefox, "Firefox on macOS"),
            ("curl/8.0", "curl"),
            ("Laptop", "Laptop"),
            ("", ""),
        ] {
            assert_eq!(words(agent), known);
        }
    }
}
