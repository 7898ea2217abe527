//! How often one account and one address may fail to sign in, and how often one address may register. Counts live
//! in this process only, in bounded memory, and are forgotten by themselves. Pure but for the memory and one line of the
//! log: the time comes from the caller.

use std::collections::HashMap;
use std::collections::hash_map::RandomState;
use std::hash::BuildHasher;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Mutex, PoisonError};

use ipnet::IpNet;

use crate::chance;
use crate::error::{Error, Result};
use crate::metering::time::{DAY, HOUR, SECOND, Timestamp};

// What strangers can do to one account, in each process: 10 guesses per address and 50 from everywhere in five minutes, that
// is 288 windows x 50 = 14,400 guesses a day, whether they have five addresses or a million. To try the ten million commonest
// passwords takes them two years.
//
// What they cannot do is keep its owner out. A browser in which the owner signed in before has a count of its own (`device`).
// One that nobody knows, from a network that has hardly failed at this account today, has turns of its own once the others
// have used up theirs: so 40 of the 50 are for everybody, and 10 for newcomers. To take those as well, strangers need
// networks they have not used today: at three failures each, 10 / 3 x 288 = 960 networks (IPv4 /24, IPv6 /48) a day. Who is
// kept out even so waits until the window ends, five minutes at most, or has a link mailed: who sets a password with it is
// known in that browser from then on.

/// An account survives a forgetful person, not a dictionary: failures for one account from one address.
const FAILURES_PER_SOURCE: u32 = 10;
/// For one account from everywhere, so that many addresses do not guess without end. One of them alone never gets so far.
const FAILURES_PER_ACCOUNT: u32 = 40;
/// For one account beyond that, from networks that have failed less often than [`FAILURES_OF_NEWCOMER`].
const FAILURES_OF_NEWCOMERS: u32 = 10;
/// For one account from one network within a day: a person mistypes twice.
const FAILURES_OF_NEWCOMER: u32 = 3;
/// Many people may share one address, behind an office or a carrier.
const FAILURES_PER_ADDRESS: u32 = 300;
const FAILURE_WINDOW: i64 = 300 * SECOND;
const REGISTRATIONS_PER_ADDRESS: u32 = 1000;
const REGISTRATION_WINDOW: i64 = HOUR;
/// A page that refreshes itself, in a few browsers.
const USES_PER_LINK: u32 = 60;
const LINK_WINDOW: i64 = 60 * SECOND;
/// Sign-ins with a provider that one address may begin: each is a row.
const STARTS_PER_ADDRESS: u32 = 100;
const START_WINDOW: i64 = 600 * SECOND;

/// Mails with a link, to one account and asked for by one address.
const RESETS_PER_ACCOUNT: u32 = 3;
const RESETS_PER_ADDRESS: u32 = 30;
const RESET_WINDOW: i64 = HOUR;

/// Invitations that are mailed to one address by one workspace and by all of them, and by one workspace to anybody: they
/// hold words of whoever invites, and must be worth nothing to those who would send them to the world. Whoever uses up what
/// one workspace has for an address leaves the others theirs; a stranger who makes workspaces to use up all of it needs seven.
const INVITATIONS_PER_PAIR: u32 = 3;
const INVITATIONS_PER_RECIPIENT: u32 = 20;
const INVITATION_WINDOW_OF_RECIPIENT: i64 = DAY;
const INVITATIONS_PER_WORKSPACE: u32 = 50;
const INVITATION_WINDOW_OF_WORKSPACE: i64 = HOUR;

/// Names remembered at once, per counter: about 2 MB.
const CAPACITY: usize = 65_536;

pub struct Throttle {
    failures_by_source: Counter,
    failures_by_account: Counter,
    failures_by_newcomers: Counter,
    failures_by_network: Counter,
    failures_by_address: Counter,
    failures_by_device: Counter,
    registrations: Counter,
    link_uses: Counter,
    starts_by_address: Counter,
    resets_by_account: Counter,
    resets_by_address: Counter,
    invitations_by_pair: Counter,
    invitations_by_recipient: Counter,
    invitations_by_workspace: Counter,
}

impl Default for Throttle {
    fn default() -> Self {
        Throttle {
            failures_by_source: Counter::new(FAILURES_PER_SOURCE, FAILURE_WINDOW, CAPACITY),
            failures_by_account: Counter::new(FAILURES_PER_ACCOUNT, FAILURE_WINDOW, CAPACITY),
            failures_by_newcomers: Counter::new(FAILURES_OF_NEWCOMERS, FAILURE_WINDOW, CAPACITY),
            failures_by_network: Counter::new(FAILURES_OF_NEWCOMER, DAY, CAPACITY),
            failures_by_address: Counter::new(FAILURES_PER_ADDRESS, FAILURE_WINDOW, CAPACITY),
            failures_by_device: Counter::new(FAILURES_PER_SOURCE, FAILURE_WINDOW, CAPACITY),
            registrations: Counter::new(REGISTRATIONS_PER_ADDRESS, REGISTRATION_WINDOW, CAPACITY),
            link_uses: Counter::new(USES_PER_LINK, LINK_WINDOW, CAPACITY),
            starts_by_address: Counter::new(STARTS_PER_ADDRESS, START_WINDOW, CAPACITY),
            resets_by_account: Counter::new(RESETS_PER_ACCOUNT, RESET_WINDOW, CAPACITY),
            resets_by_address: Counter::new(RESETS_PER_ADDRESS, RESET_WINDOW, CAPACITY),
            invitations_by_pair: Counter::new(INVITATIONS_PER_PAIR, INVITATION_WINDOW_OF_RECIPIENT, CAPACITY),
            invitations_by_recipient: Counter::new(
                INVITATIONS_PER_RECIPIENT,
                INVITATION_WINDOW_OF_RECIPIENT,
                CAPACITY,
            ),
            invitations_by_workspace: Counter::new(
                INVITATIONS_PER_WORKSPACE,
                INVITATION_WINDOW_OF_WORKSPACE,
                CAPACITY,
            ),
        }
    }
}

impl Throttle {
    /// Refuses while the account has too many failures behind it, from this address or in all, or the address, whatever the
    /// password.
    pub fn check_login(&self, account: &str, address: IpAddr, now: Timestamp) -> Result<()> {
        self.failures_by_source.check(&source(account, address), now)?;
        self.failures_by_address.check(&network(address), now)?;
        let Err(refusal) = self.failures_by_account.check(account.as_bytes(), now) else { return Ok(()) };
        match self.failures_by_network.check(&wide_source(account, address), now) {
            Ok(()) => self.failures_by_newcomers.check(account.as_bytes(), now),
            Err(_) => Err(refusal),
        }
    }

    /// A sign-in failed; `account` is absent when the attempt could not have been right for anybody.
    pub fn login_failed(&self, account: Option<&str>, address: IpAddr, now: Timestamp) {
        if let Some(account) = account {
            self.failures_by_source.add(&source(account, address), now);
            self.failures_by_network.add(&wide_source(account, address), now);
            match self.failures_by_account.check(account.as_bytes(), now) {
                Ok(()) => self.failures_by_account.add(account.as_bytes(), now),
                Err(_) => self.failures_by_newcomers.add(account.as_bytes(), now),
            }
        }
        self.failures_by_address.add(&network(address), now);
    }

    /// A right password clears what its own address did to the account, and nothing that strangers did. The address keeps
    /// its count: its other guesses were at other accounts.
    pub fn login_succeeded(&self, account: &str, address: IpAddr) {
        self.failures_by_source.forget(&source(account, address));
        self.failures_by_network.forget(&wide_source(account, address));
    }

    /// An operator said that failures of the account do not count.
    pub fn unlock(&self, account: &str, address: IpAddr) {
        self.login_succeeded(account, address);
        self.failures_by_account.forget(account.as_bytes());
        self.failures_by_newcomers.forget(account.as_bytes());
    }

    /// Since when failures of the account count, where there are too many from this address or in all.
    pub fn locked_since(&self, account: &str, address: IpAddr, now: Timestamp) -> Option<Timestamp> {
        let here = self.failures_by_source.full_since(&source(account, address), now);
        let everywhere = self.failures_by_account.full_since(account.as_bytes(), now);
        here.max(everywhere)
    }

    /// Like [`Throttle::check_login`], for a browser that the account knows.
    pub fn check_device(&self, device: &[u8], now: Timestamp) -> Result<()> {
        self.failures_by_device.check(device, now)
    }

    pub fn device_failed(&self, device: &[u8], now: Timestamp) {
        self.failures_by_device.add(device, now);
    }

    pub fn device_succeeded(&self, device: &[u8]) {
        self.failures_by_device.forget(device);
    }

    /// A customer's link was opened.
    pub fn use_link(&self, link_id: i64, now: Timestamp) -> Result<()> {
        let name = link_id.to_be_bytes();
        self.link_uses.check(&name, now)?;
        self.link_uses.add(&name, now);
        Ok(())
    }

    /// Somebody wants a mail sent to an account, which may be none. False: it has had enough of them, which nobody is told.
    pub fn ask_for_reset(&self, account: &str, address: IpAddr, now: Timestamp) -> Result<bool> {
        let network = network(address);
        self.resets_by_address.check(&network, now)?;
        self.resets_by_address.add(&network, now);
        let may = self.resets_by_account.check(account.as_bytes(), now).is_ok();
        if may {
            self.resets_by_account.add(account.as_bytes(), now);
        }
        Ok(may)
    }

    /// A sign-in with a provider begins.
    pub fn start_with_provider(&self, address: IpAddr, now: Timestamp) -> Result<()> {
        let network = network(address);
        self.starts_by_address.check(&network, now)?;
        self.starts_by_address.add(&network, now);
        Ok(())
    }

    /// A workspace wants an invitation mailed to somebody.
    pub fn mail_invitation(&self, workspace_id: i64, recipient: &str, now: Timestamp) -> Result<()> {
        let (workspace, pair) = (workspace_id.to_be_bytes(), pair(workspace_id, recipient));
        self.invitations_by_workspace.check(&workspace, now)?;
        self.invitations_by_pair.check(&pair, now)?;
        self.invitations_by_recipient.check(recipient.as_bytes(), now)?;
        self.invitations_by_workspace.add(&workspace, now);
        self.invitations_by_pair.add(&pair, now);
        self.invitations_by_recipient.add(recipient.as_bytes(), now);
        Ok(())
    }

    /// Takes one back that was counted.
    pub fn invitation_was_not_mailed(&self, workspace_id: i64, recipient: &str) {
        self.invitations_by_workspace.take_back(&workspace_id.to_be_bytes());
        self.invitations_by_pair.take_back(&pair(workspace_id, recipient));
        self.invitations_by_recipient.take_back(recipient.as_bytes());
    }

    /// Every attempt counts, because every attempt costs a password hash.
    pub fn register(&self, address: IpAddr, now: Timestamp) -> Result<()> {
        let network = network(address);
        self.registrations.check(&network, now)?;
        self.registrations.add(&network, now);
        Ok(())
    }
}

/// Counts events per name in windows that begin with the first event.
struct Counter {
    limit: u32,
    window: i64,
    capacity: usize,
    hasher: RandomState,
    /// By keyed hash of the name, so that long names cost nothing and nobody can aim at a neighbour.
    counts: Mutex<HashMap<u64, Count>>,
}

struct Count {
    events: u32,
    until: Timestamp,
}

impl Counter {
    fn new(limit: u32, window: i64, capacity: usize) -> Self {
        Counter { limit, window, capacity, hasher: chance::hash_key(), counts: Mutex::default() }
    }

    fn check(&self, name: &[u8], now: Timestamp) -> Result<()> {
        let counts = self.counts.lock().unwrap_or_else(PoisonError::into_inner);
        match counts.get(&self.hasher.hash_one(name)) {
            Some(count) if count.until > now && count.events >= self.limit => {
                let left = (count.until.0 - now.0 + SECOND - 1) / SECOND;
                Err(Error::rate_limited(left.max(1) as u64))
            }
            _ => Ok(()),
        }
    }

    /// When the window began in which the limit was reached.
    fn full_since(&self, name: &[u8], now: Timestamp) -> Option<Timestamp> {
        let counts = self.counts.lock().unwrap_or_else(PoisonError::into_inner);
        let count = counts.get(&self.hasher.hash_one(name))?;
        let is_full = count.until > now && count.events >= self.limit;
        is_full.then(|| count.until.plus(-self.window))
    }

    fn add(&self, name: &[u8], now: Timestamp) {
        let mut counts = self.counts.lock().unwrap_or_else(PoisonError::into_inner);
        if counts.len() >= self.capacity {
            self.make_room(&mut counts, now);
        }
        let fresh = Count { events: 0, until: now.plus(self.window) };
        let count = counts.entry(self.hasher.hash_one(name)).or_insert(fresh);
        if count.until <= now {
            *count = Count { events: 0, until: now.plus(self.window) };
        }
        count.events = count.events.saturating_add(1);
    }

    fn take_back(&self, name: &[u8]) {
        let mut counts = self.counts.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(count) = counts.get_mut(&self.hasher.hash_one(name)) {
            count.events = count.events.saturating_sub(1);
        }
    }

    fn forget(&self, name: &[u8]) {
        self.counts.lock().unwrap_or_else(PoisonError::into_inner).remove(&self.hasher.hash_one(name));
    }

    /// Drops what is over, and then any others down to half, so that a flood pays for a sweep only now and then.
    fn make_room(&self, counts: &mut HashMap<u64, Count>, now: Timestamp) {
        counts.retain(|_, count| count.until > now);
        let mut excess = counts.len().saturating_sub(self.capacity / 2);
        counts.retain(|_, _| {
            let keep = excess == 0;
            excess = excess.saturating_sub(1);
            keep
        });
    }
}

/// An account as seen from one address.
fn source(account: &str, address: IpAddr) -> Vec<u8> {
    [&network(address), account.as_bytes()].concat()
}

/// An account as seen from the network around an address: what is given to one company, or to one who rents servers.
fn wide_source(account: &str, address: IpAddr) -> Vec<u8> {
    let wide = match address.to_canonical() {
        IpAddr::V4(v4) => Ipv4Addr::from_bits(v4.to_bits() & !0xff).to_ipv6_mapped().octets(),
        IpAddr::V6(v6) => Ipv6Addr::from_bits(v6.to_bits() & !(u128::MAX >> 48)).octets(),
    };
    [&wide, account.as_bytes()].concat()
}

fn pair(workspace_id: i64, recipient: &str) -> Vec<u8> {
    [&workspace_id.to_be_bytes(), recipient.as_bytes()].concat()
}

/// What counts as one address: an IPv4 address, or an IPv6 /64, which is what one customer is given.
fn network(address: IpAddr) -> [u8; 16] {
    match address.to_canonical() {
        IpAddr::V4(v4) => v4.to_ipv6_mapped().octets(),
        IpAddr::V6(v6) => Ipv6Addr::from_bits(v6.to_bits() & !u128::from(u64::MAX)).octets(),
    }
}

/// Where a request came from. `X-Forwarded-For` is believed as far as trusted proxies wrote it: the last address
/// that is not one of them.
pub fn client_address(peer: IpAddr, trusted: &[IpNet], forwarded_for: Option<&str>) -> IpAddr {
    let mut address = peer.to_canonical();
    for entry in forwarded_for.unwrap_or_default().rsplit(',') {
        if !is_trusted(address, trusted) {
            break;
        }
        match forwarded_address(entry.trim()) {
            Some(previous) => address = previous.to_canonical(),
            None => break,
        }
    }
    address
}

/// Says once that a proxy may be there which the settings do not name: whoever comes through it shares its limits.
pub fn tell_of_unnamed_proxy(peer: IpAddr, trusted: &[IpNet], forwarded_for: Option<&str>) {
    static IS_TOLD: AtomicBool = AtomicBool::new(false);
    if forwarded_for.is_some() && !is_trusted(peer, trusted) && !IS_TOLD.swap(true, Ordering::Relaxed) {
        log::warn!(
            peer:% = peer;
            "X-Forwarded-For is not believed: it comes from an address that is not in OPEN_SPANNER_TRUSTED_PROXIES. If that is a proxy, all its callers are one, and share its limits"
        );
    }
}

/// `203.0.113.5`, `203.0.113.5:80`, `2001:db8::1`, `[2001:db8::1]` or `[2001:db8::1]:443`: some proxies add the port.
fn forwarded_address(entry: &str) -> Option<IpAddr> {
    let bare = || entry.strip_prefix('[')?.strip_suffix(']')?.parse::<Ipv6Addr>().ok().map(IpAddr::V6);
    let plain = entry.parse().ok();
    plain.or_else(|| entry.parse::<SocketAddr>().ok().map(|both| both.ip())).or_else(bare)
}

pub fn is_trusted(peer: IpAddr, trusted: &[IpNet]) -> bool {
    let peer = peer.to_canonical();
    trusted.iter().any(|network| network.contains(&peer))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::error::Code;

    const NOW: Timestamp = Timestamp(1_000 * SECOND);

    fn ip(text: &str) -> IpAddr {
        text.parse().expect("address")
    }

    #[test]
    fn an_account_is_locked_for_an_address_after_ten_failures() {
        let throttle = Throttle::default();
        let (stranger, owner) = (ip("192.0.2.1"), ip("198.51.100.1"));
        for _ in 0..10 {
            assert!(throttle.check_login("ann@example.com", stranger, NOW).is_ok());
            throttle.login_failed(Some("ann@example.com"), stranger, NOW);
        }
        let refused = throttle.check_login("ann@example.com", stranger, NOW.plus(60 * SECOND));
        let refused = refused.expect_err("locked");
        assert_eq!((refused.code, refused.retry_after_seconds), (Code::RateLimited, Some(240)));
        assert_eq!(throttle.locked_since("ann@example.com", stranger, NOW), Some(NOW));
        assert!(throttle.check_login("bob@example.com", stranger, NOW).is_ok());
        // elsewhere nobody notices, and a right password there helps the stranger to nothing
        assert!(throttle.check_login("ann@example.com", owner, NOW).is_ok());
        throttle.login_succeeded("ann@example.com", owner);
        assert!(throttle.check_login("ann@example.com", stranger, NOW).is_err());
        assert!(throttle.check_login("ann@example.com", stranger, NOW.plus(FAILURE_WINDOW)).is_ok());
        throttle.unlock("ann@example.com", stranger);
        assert!(throttle.check_login("ann@example.com", stranger, NOW).is_ok());
    }

    const ANN: &str = "ann@example.com";

    /// Guesses of strangers with these addresses, in one window, until none of them may guess any more.
    fn guess(throttle: &Throttle, addresses: impl Iterator<Item = IpAddr>, now: Timestamp) -> u32 {
        let mut guesses = 0;
        for address in addresses {
            while throttle.check_login(ANN, address, now).is_ok() {
                throttle.login_failed(Some(ANN), address, now);
                guesses += 1;
            }
        }
        guesses
    }

    /// A host in each of so many networks, of those behind the first `after`.
    fn hosts(after: u32, count: u32) -> impl Iterator<Item = IpAddr> {
        (after..after + count).map(|at| IpAddr::V4(Ipv4Addr::from_bits(0x0b00_0000 + (at << 8))))
    }

    #[test]
    fn five_addresses_keep_no_owner_out_who_comes_with_a_new_browser() {
        let throttle = Throttle::default();
        for window in 0..288 {
            let now = NOW.plus(window * FAILURE_WINDOW);
            let guesses = guess(&throttle, hosts(0, 5), now);
            assert!(guesses <= FAILURES_PER_ACCOUNT + FAILURES_OF_NEWCOMER, "{guesses}");
            // two typing errors, and then the right password
            let owner = IpAddr::V4(Ipv4Addr::from_bits(0xc633_6401 + ((window as u32) << 8)));
            for _ in 0..2 {
                assert!(throttle.check_login(ANN, owner, now).is_ok(), "window {window}");
                throttle.login_failed(Some(ANN), owner, now);
            }
            assert!(throttle.check_login(ANN, owner, now).is_ok(), "window {window}");
            throttle.login_succeeded(ANN, owner);
        }
    }

    #[test]
    fn networks_without_end_guess_fourteen_thousand_times_a_day() {
        let throttle = Throttle::default();
        let (mut guesses, mut used) = (0, 0);
        for window in 0..288 {
            let now = NOW.plus(window * FAILURE_WINDOW);
            guesses += guess(&throttle, hosts(used, 50), now);
            used += 50;
            // all that is left to do then is to wait, and not for long
            let refused = throttle.check_login(ANN, ip("203.0.113.1"), now).expect_err("no turn is left");
            assert!(refused.retry_after_seconds.is_some_and(|seconds| seconds <= 300), "{refused:?}");
        }
        assert_eq!(guesses, 288 * (FAILURES_PER_ACCOUNT + FAILURES_OF_NEWCOMERS));
        assert_eq!(guesses, 14_400);
    }

    #[test]
    fn to_keep_an_owner_out_takes_hundreds_of_networks_a_day() {
        let throttle = Throttle::default();
        let owner = ip("198.51.100.1");
        let mut kept_out = 0;
        for window in 0..288 {
            let now = NOW.plus(window * FAILURE_WINDOW);
            guess(&throttle, hosts(0, 200), now);
            kept_out += u32::from(throttle.check_login(ANN, owner, now).is_err());
        }
        // each of the 200 has three failures as a newcomer, and ten of those keep the owner out for one window
        assert!((1..=200 * FAILURES_OF_NEWCOMER / FAILURES_OF_NEWCOMERS).contains(&kept_out), "{kept_out}");
        // addresses of one network are one newcomer
        let throttle = Throttle::default();
        let neighbours = |count| (0..count).map(|at| ip(&format!("192.0.2.{at}")));
        assert_eq!(guess(&throttle, neighbours(255), NOW), FAILURES_PER_ACCOUNT);
        let v6 = (0..255).map(|at| ip(&format!("2001:db8:7:{at:x}::1")));
        assert_eq!(guess(&throttle, v6, NOW), FAILURES_OF_NEWCOMER);
        assert!(throttle.check_login(ANN, owner, NOW).is_ok());
    }

    #[test]
    fn many_addresses_together_guess_no_faster_than_fifty() {
        let throttle = Throttle::default();
        let mut guesses = 0;
        for at in 0..200_u32 {
            let address = ip(&format!("11.0.{at}.1"));
            while throttle.check_login("ann@example.com", address, NOW).is_ok() {
                throttle.login_failed(Some("ann@example.com"), address, NOW);
                // the owner's own sign-ins give them no further guess
                throttle.login_succeeded("ann@example.com", ip("198.51.100.1"));
                guesses += 1;
            }
        }
        assert_eq!(guesses, FAILURES_PER_ACCOUNT + FAILURES_OF_NEWCOMERS);
        assert_eq!(throttle.locked_since("ann@example.com", ip("203.0.113.1"), NOW), Some(NOW));
    }

    #[test]
    fn success_clears_its_own_source_but_not_the_address() {
        let throttle = Throttle::default();
        let address = ip("192.0.2.1");
        for at in 0..300 {
            throttle.login_failed(Some(&format!("user{}", at / 5)), address, NOW);
            throttle.login_succeeded(&format!("user{}", at / 5), address);
        }
        assert!(throttle.check_login("user1", ip("192.0.2.2"), NOW).is_ok());
        assert!(throttle.check_login("user1", address, NOW).is_err());
        assert!(throttle.check_login("user1", address, NOW.plus(FAILURE_WINDOW)).is_ok());
    }

    #[test]
    fn retry_after_rounds_up_and_is_never_zero() {
        let counter = Counter::new(1, 10 * SECOND, 8);
        counter.add(b"x", NOW);
        let wait =
            |later| counter.check(b"x", NOW.plus(later)).err().and_then(|error| error.retry_after_seconds);
        assert_eq!(wait(0), Some(10));
        assert_eq!(wait(1), Some(10));
        assert_eq!(wait(10 * SECOND - 1), Some(1));
        assert_eq!(wait(10 * SECOND), None);
    }

    #[test]
    fn registrations_are_counted_per_address() {
        let throttle = Throttle::default();
        for _ in 0..REGISTRATIONS_PER_ADDRESS {
            assert!(throttle.register(ip("192.0.2.1"), NOW).is_ok());
        }
        assert!(throttle.register(ip("192.0.2.1"), NOW).is_err());
        assert!(throttle.register(ip("192.0.2.2"), NOW).is_ok());
    }

    #[test]
    fn invitations_are_mailed_to_one_person_and_by_one_workspace_so_many_times() {
        let throttle = Throttle::default();
        for _ in 0..3 {
            assert!(throttle.mail_invitation(1, ANN, NOW).is_ok());
        }
        let refused = throttle.mail_invitation(1, ANN, NOW).expect_err("a fourth");
        assert_eq!((refused.code, refused.retry_after_seconds), (Code::RateLimited, Some(86_400)));
        // what a stranger used up is nothing of another workspace's
        assert!(throttle.mail_invitation(9, ANN, NOW).is_ok());
        assert!(throttle.mail_invitation(1, ANN, NOW.plus(DAY)).is_ok());
        // and there is an end of it, beside the one of that day
        let ask = |workspace: &i64| throttle.mail_invitation(*workspace, ANN, NOW.plus(DAY)).is_ok();
        assert_eq!((100..200).filter(ask).count() as u32, INVITATIONS_PER_RECIPIENT - 1);
        for at in 0..INVITATIONS_PER_WORKSPACE {
            assert!(throttle.mail_invitation(7, &format!("{at}@example.com"), NOW).is_ok());
        }
        let refused = throttle.mail_invitation(7, "bob@example.com", NOW).expect_err("one too many");
        assert_eq!(refused.retry_after_seconds, Some(3_600));
        // one of which nothing came makes room for another
        throttle.invitation_was_not_mailed(7, "0@example.com");
        assert!(throttle.mail_invitation(7, "bob@example.com", NOW).is_ok());
        assert!(throttle.mail_invitation(7, "carl@example.com", NOW).is_err());
    }

    #[test]
    fn memory_is_bounded() {
        let counter = Counter::new(3, 10 * SECOND, 8);
        for at in 0..1_000_u32 {
            counter.add(&at.to_le_bytes(), NOW);
            assert!(counter.counts.lock().expect("lock").len() <= 8);
        }
        counter.add(b"later", NOW.plus(20 * SECOND));
        counter.add(b"later", NOW.plus(20 * SECOND));
        counter.add(b"later", NOW.plus(20 * SECOND));
        assert!(counter.check(b"later", NOW.plus(20 * SECOND)).is_err());
    }

    #[test]
    fn ipv6_customers_are_counted_by_network() {
        assert_eq!(network(ip("2001:db8:1:2:3::4")), network(ip("2001:db8:1:2:ffff::")));
        assert_ne!(network(ip("2001:db8:1:2::")), network(ip("2001:db8:1:3::")));
        assert_eq!(network(ip("::ffff:192.0.2.1")), network(ip("192.0.2.1")));
        assert_ne!(network(ip("192.0.2.1")), network(ip("192.0.2.2")));
    }

    #[test]
    fn forwarded_addresses_count_only_when_a_trusted_proxy_says_so() {
        let trusted: Vec<IpNet> = vec!["10.0.0.0/8".parse().expect("net"), "::1/128".parse().expect("net")];
        let from = |peer, forwarded| client_address(ip(peer), &trusted, forwarded).to_string();
        assert_eq!(from("192.0.2.9", Some("198.51.100.1")), "192.0.2.9");
        assert_eq!(from("10.0.0.1", None), "10.0.0.1");
        assert_eq!(from("10.0.0.1", Some("198.51.100.1")), "198.51.100.1");
        assert_eq!(from("10.0.0.1", Some("spoofed, 198.51.100.1, 10.0.0.2")), "198.51.100.1");
        assert_eq!(from("10.0.0.1", Some("1.1.1.1, 198.51.100.1")), "198.51.100.1");
        assert_eq!(from("10.0.0.1", Some("nonsense")), "10.0.0.1");
        assert_eq!(from("::ffff:10.0.0.1", Some("2001:db8::1")), "2001:db8::1");
        // with ports, as some proxies write them
        assert_eq!(from("10.0.0.1", Some("203.0.113.5:80")), "203.0.113.5");
        assert_eq!(from("10.0.0.1", Some("[2001:db8::1]:443")), "2001:db8::1");
        assert_eq!(from("10.0.0.1", Some("[2001:db8::1]")), "2001:db8::1");
        assert_eq!(from("10.0.0.1", Some("198.51.100.1, [::ffff:10.0.0.2]:8080")), "198.51.100.1");
        for nonsense in [
            "203.0.113.5:",
            "203.0.113.5:99999",
            "[203.0.113.5]:80",
            "[2001:db8::1",
            "2001:db8::1]:443",
            ":80",
        ] {
            assert_eq!(from("10.0.0.1", Some(nonsense)), "10.0.0.1", "{nonsense}");
        }
    }
}
