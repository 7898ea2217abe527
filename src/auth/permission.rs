//! Who may do what: roles, scopes, and what a route demands of its caller (auth.md 6 to 8). Pure rules; the table of
//! routes lives with the routes, the look-up of roles in `store`.

use std::fmt;

use serde::{Serialize, Serializer};

use crate::auth::{Caller, Credential};
use crate::error::{Error, Result};

/// What a member may do in a workspace; each role may do all that the one before it may.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Role {
    /// Reads.
    Viewer,
    /// Reads and writes.
    Admin,
    /// Also decides about members.
    Owner,
}

impl Role {
    pub fn as_str(self) -> &'static str {
        match self {
            Role::Viewer => "viewer",
            Role::Admin => "admin",
            Role::Owner => "owner",
        }
    }

    /// Any letter case, blanks around it allowed.
    pub fn parse(text: &str) -> Option<Role> {
        let word = text.trim().to_lowercase();
        [Role::Viewer, Role::Admin, Role::Owner].into_iter().find(|role| role.as_str() == word)
    }
}

/// Reads the column `memberships.role`, whose CHECK allows these words only.
impl TryFrom<String> for Role {
    type Error = String;

    fn try_from(text: String) -> Result<Role, String> {
        Role::parse(&text).ok_or_else(|| format!("unknown role {text:?}"))
    }
}

impl fmt::Display for Role {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

impl Serialize for Role {
    fn serialize<S: Serializer>(&self, serializer: S) -> std::result::Result<S::Ok, S::Error> {
        serializer.serialize_str(self.as_str())
    }
}

/// One thing a route can demand of an API key. Writing does not include reading.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[repr(u16)]
pub enum Scope {
    UsageRead = 1,
    UsageWrite = 1 << 1,
    MetersRead = 1 << 2,
    MetersWrite = 1 << 3,
    AlertsRead = 1 << 4,
    AlertsWrite = 1 << 5,
    ExportsRead = 1 << 6,
    ExportsWrite = 1 << 7,
    PlansRead = 1 << 8,
    PlansWrite = 1 << 9,
    SystemRead = 1 << 10,
    SystemWrite = 1 << 11,
    AuditRead = 1 << 12,
    LinksWrite = 1 << 13,
}

impl Scope {
    pub const ALL: [Scope; 14] = [
        Scope::UsageRead,
        Scope::UsageWrite,
        Scope::MetersRead,
        Scope::MetersWrite,
        Scope::AlertsRead,
        Scope::AlertsWrite,
        Scope::ExportsRead,
        Scope::ExportsWrite,
        Scope::PlansRead,
        Scope::PlansWrite,
        Scope::SystemRead,
        Scope::SystemWrite,
        Scope::AuditRead,
        Scope::LinksWrite,
    ];

    pub fn as_str(self) -> &'static str {
        match self {
            Scope::UsageRead => "usage:read",
            Scope::UsageWrite => "usage:write",
            Scope::MetersRead => "meters:read",
            Scope::MetersWrite => "meters:write",
            Scope::AlertsRead => "alerts:read",
            Scope::AlertsWrite => "alerts:write",
            Scope::ExportsRead => "exports:read",
            Scope::ExportsWrite => "exports:write",
            Scope::PlansRead => "plans:read",
            Scope::PlansWrite => "plans:write",
            Scope::SystemRead => "system:read",
            Scope::SystemWrite => "system:write",
            Scope::AuditRead => "audit:read",
            Scope::LinksWrite => "links:write",
        }
    }

    fn family(self) -> &'static str {
        self.as_str().split(':').next().unwrap_or_default()
    }
}

impl fmt::Display for Scope {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

/// What a new key may do when nobody says otherwise, in the order clients expect.
pub const DEFAULT_SCOPES: [&str; 5] =
    ["usage:write", "usage:read", "meters:read", "meters:write", "plans:read"];

/// Everything an API key was granted, wildcards resolved.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Grants(u16);

impl Grants {
    /// From the words of a key. Unknown ones grant nothing: a newer server may have written them.
    pub fn of<'a>(words: impl IntoIterator<Item = &'a str>) -> Grants {
        words
            .into_iter()
            .filter_map(Grants::of_word)
            .fold(Grants::default(), |all, one| Grants(all.0 | one.0))
    }

    /// `usage:read`, `usage:*` or `*`.
    fn of_word(word: &str) -> Option<Grants> {
        let covered = Scope::ALL.into_iter().filter(|scope| match word.strip_suffix(":*") {
            Some(family) => scope.family() == family,
            None => word == "*" || scope.as_str() == word,
        });
        let bits = covered.fold(0, |bits, scope| bits | scope as u16);
        (bits != 0).then_some(Grants(bits))
    }

    pub fn cover(self, scope: Scope) -> bool {
        self.0 & scope as u16 != 0
    }
}

/// The scopes of a new key as they are kept: trimmed, lower-cased, without blanks and repeats, in the order given.
pub fn normal_scopes(given: &[String]) -> Result<Vec<String>> {
    if given.is_empty() {
        return Ok(DEFAULT_SCOPES.map(String::from).to_vec());
    }
    let mut scopes: Vec<String> = Vec::new();
    for text in given {
        let word = text.trim().to_lowercase();
        if word.is_empty() || scopes.contains(&word) {
            continue;
        }
        if Grants::of_word(&word).is_none() {
            return Err(Error::invalid(format_args!("unknown scope {word:?}")));
        }
        scopes.push(word);
    }
    if scopes.is_empty() {
        return Err(Error::invalid("scopes must not be blank"));
    }
    Ok(scopes)
}

/// What a route demands of its caller; every route declares one.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Access {
    /// Nothing at all.
    Public,
    /// A session whose user has at least this role. API keys are not looked at.
    Session(Role),
    /// A session or an API key of a user with at least this role; a key also needs every one of these scopes.
    Key(&'static [Scope], Role),
}

/// Judges an authenticated caller: 401 when the route does not take this kind of credential, 403 when the role or
/// a scope does not suffice. The role comes first, for keys too.
pub fn allow(caller: &Caller, access: &Access) -> Result<()> {
    let (scopes, role): (&[Scope], Role) = match (access, &caller.credential) {
        (Access::Public, _) => return Ok(()),
        (Access::Session(_), Credential::Key { .. }) => return Err(Error::unauthorized()),
        (Access::Session(role), Credential::Session { .. }) => (&[], *role),
        (Access::Key(scopes, role), _) => (scopes, *role),
    };
    if caller.role < role {
        return Err(Error::forbidden(format_args!("the role {} does not allow this", caller.role)));
    }
    let Credential::Key { grants, .. } = &caller.credential else { return Ok(()) };
    match scopes.iter().find(|scope| !grants.cover(**scope)) {
        Some(scope) => Err(Error::forbidden(format_args!("the API key lacks the scope {scope}"))),
        None => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::auth::tests::{caller_with_key, caller_with_session};
    use crate::error::Code;

    fn granted(words: &[&str]) -> Vec<&'static str> {
        let grants = Grants::of(words.iter().copied());
        Scope::ALL.into_iter().filter(|scope| grants.cover(*scope)).map(Scope::as_str).collect()
    }

    fn code(result: Result<()>) -> Option<Code> {
        result.err().map(|error| error.code)
    }

    #[test]
    fn every_scope_grants_itself_only() {
        for scope in Scope::ALL {
            assert_eq!(granted(&[scope.as_str()]), [scope.as_str()]);
        }
    }

    #[test]
    fn wildcards_cover_their_family() {
        assert_eq!(granted(&["usage:*"]), ["usage:read", "usage:write"]);
        assert_eq!(granted(&["system:*"]), ["system:read", "system:write"]);
        assert_eq!(granted(&["links:*"]), ["links:write"]);
        assert_eq!(granted(&["*"]).len(), 14);
        for unknown in ["", ":*", "billing:*", "usage:delete", "usage", "usage:", "*:*", "**", "*:read"] {
            assert!(granted(&[unknown]).is_empty(), "{unknown:?} grants something");
        }
    }

    #[test]
    fn scopes_are_kept_in_order_without_repeats() {
        let given =
            |words: &[&str]| normal_scopes(&words.iter().map(|word| word.to_string()).collect::<Vec<_>>());
        assert_eq!(given(&[]).expect("default"), DEFAULT_SCOPES);
        let kept = given(&[" Usage:READ ", "", "usage:read", "METERS:*"]).expect("valid");
        assert_eq!(kept, ["usage:read", "meters:*"]);
        for bad in [&["usage:delete"][..], &["", "  "], &["usage:read", "billing:*"]] {
            assert_eq!(given(bad).expect_err("refused").code, Code::InvalidInput);
        }
    }

    #[test]
    fn sessions_are_judged_by_role() {
        let roles = [Role::Viewer, Role::Admin, Role::Owner];
        for (at, role) in roles.into_iter().enumerate() {
            let caller = caller_with_session(role);
            for (needed_at, needed) in roles.into_iter().enumerate() {
                let want = (at < needed_at).then_some(Code::Forbidden);
                assert_eq!(
                    code(allow(&caller, &Access::Session(needed))),
                    want,
                    "{role} where {needed} is needed"
                );
                let either = Access::Key(&[Scope::UsageWrite, Scope::PlansRead], needed);
                assert_eq!(code(allow(&caller, &either)), want, "{role} where {needed} or a key is needed");
            }
            assert!(allow(&caller, &Access::Public).is_ok());
        }
    }

    #[test]
    fn keys_need_the_role_and_every_scope() {
        let route = Access::Key(&[Scope::UsageWrite, Scope::PlansRead], Role::Admin);
        let judge = |role, words: &[&str]| code(allow(&caller_with_key(role, words, &[]), &route));
        assert_eq!(judge(Role::Admin, &["usage:write", "plans:read"]), None);
        assert_eq!(judge(Role::Owner, &["*"]), None);
        assert_eq!(judge(Role::Owner, &["usage:write"]), Some(Code::Forbidden));
        assert_eq!(judge(Role::Owner, &["plans:*"]), Some(Code::Forbidden));
        assert_eq!(judge(Role::Viewer, &["*"]), Some(Code::Forbidden));
        let message = allow(&caller_with_key(Role::Viewer, &[], &[]), &route).expect_err("refused").message;
        assert!(message.contains("role"), "the role is judged before the scope: {message}");
    }

    #[test]
    fn keys_never_open_session_routes() {
        let key = caller_with_key(Role::Owner, &["*"], &[]);
        assert_eq!(code(allow(&key, &Access::Session(Role::Viewer))), Some(Code::Unauthorized));
    }

    #[test]
    fn roles_are_words() {
        assert_eq!(Role::parse(" Owner "), Some(Role::Owner));
        assert_eq!(Role::parse("god"), None);
        assert!(Role::Viewer < Role::Admin && Role::Admin < Role::Owner);
    }
}
