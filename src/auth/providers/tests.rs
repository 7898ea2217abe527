//! Who is let in, without a provider.

use std::time::Duration;

use super::*;

const OPTIONS: Options = Options {
    cache_ttl: Duration::ZERO,
    registration_enabled: true,
    invited_may_register: false,
    password_sign_in: true,
    session_max_age: Duration::ZERO,
};

fn profile(email: &str, email_verified: bool) -> Profile {
    let (issuer, subject) = ("https://id.example".to_owned(), "1".to_owned());
    Profile { issuer, subject, email: email.to_owned(), email_verified, groups: None }
}

fn account(password_hash: &str, email_verified_at: Option<i64>) -> Account {
    Account { user_id: 7, password_hash: password_hash.to_owned(), email_verified_at, disabled_at: None }
}

fn entry(profile: &Profile, account: Option<&Account>, options: &Options) -> Option<Entry> {
    judge(profile, account, false, false, options).ok()
}

#[test]
fn an_address_that_is_not_verified_opens_nothing() {
    for address in [profile("ann@example.com", false), profile("", true)] {
        assert_eq!(entry(&address, None, &OPTIONS), None);
        assert_eq!(entry(&address, Some(&account("", Some(1))), &OPTIONS), None);
    }
}

#[test]
fn an_account_that_anybody_could_have_made_asks_for_its_password() {
    let ann = profile("ann@example.com", true);
    assert_eq!(entry(&ann, Some(&account("hash", None)), &OPTIONS), None);
    assert_eq!(entry(&ann, Some(&account("hash", Some(1))), &OPTIONS), Some(Entry::Connect(7)));
    assert_eq!(entry(&ann, Some(&account("", None)), &OPTIONS), Some(Entry::Connect(7)));
    // where passwords open nothing, there is none to ask for
    let without = Options { password_sign_in: false, ..OPTIONS };
    assert_eq!(entry(&ann, Some(&account("hash", None)), &without), Some(Entry::Connect(7)));
}

#[test]
fn newcomers_come_in_as_far_as_registration_is_open() {
    let ann = profile("ann@example.com", true);
    assert_eq!(entry(&ann, None, &OPTIONS), Some(Entry::Register));
    let closed = Options { registration_enabled: false, ..OPTIONS };
    let asked =
        |is_invited, has_role, options: &Options| judge(&ann, None, is_invited, has_role, options).ok();
    assert_eq!(asked(false, false, &closed), None);
    assert_eq!(asked(true, false, &closed), None);
    assert_eq!(asked(false, true, &closed), Some(Entry::Register), "a group is an invitation");
    let by_invitation = Options { invited_may_register: true, ..closed };
    assert_eq!(asked(false, false, &by_invitation), None);
    assert_eq!(asked(true, false, &by_invitation), Some(Entry::Register));
}

#[test]
fn domains_are_compared_whole() {
    let domains = ["example.com".to_owned()];
    assert!(is_within(&profile("ann@Example.com", true), &domains));
    for foreign in
        ["ann@evil-example.com", "ann@example.com.evil.test", "ann@sub.example.com", "example.com", ""]
    {
        assert!(!is_within(&profile(foreign, true), &domains), "{foreign}");
    }
    assert!(!is_within(&profile("ann@example.com", false), &domains));
    assert!(is_within(&profile("ann@elsewhere.test", false), &[]));
}

#[test]
fn the_highest_role_of_all_groups_counts() {
    let roles = vec![("staff".to_owned(), Role::Viewer), ("admins".to_owned(), Role::Admin)];
    let map = RolesOfGroups { workspace: String::new(), roles };
    let role =
        |groups: &[&str]| map.role(&groups.iter().map(|group| (*group).to_owned()).collect::<Vec<_>>());
    assert_eq!(role(&["staff", "admins"]), Some(Role::Admin));
    assert_eq!(role(&["staff", "x"]), Some(Role::Viewer));
    assert_eq!(role(&["Staff"]), None);
    assert_eq!(role(&[]), None);
}
