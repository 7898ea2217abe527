//! Links with which a customer sees the usage of one subject, and nothing else: made by a workspace, kept as a hash,
//! ended by time or by a call. [`check`] is asked on every use, so that a revoked link ends at once.

use url::Url;

use crate::auth::permission::Role;
use crate::auth::sql::keys::Words;
use crate::auth::sql::links::{self, LinkTerms, SubjectLink};
use crate::auth::token::{self, LINK_PREFIX, Token};
use crate::auth::{Auth, Caller};
use crate::db::Conn;
use crate::db::pool::{self, Reader};
use crate::error::{Error, Result};
use crate::metering::meter::NAME_BYTES_MAX;
use crate::metering::time::{DAY, SECOND, Timestamp};

const MAX_METERS: usize = 100;
const MAX_ORIGINS: usize = 20;
const MAX_ORIGIN_BYTES: usize = 255;
const DEFAULT_SECONDS: i64 = 86_400;
const MIN_SECONDS: i64 = 60;
const MAX_SECONDS: i64 = 366 * 86_400;
const LISTED: i64 = 200;
/// How often the last use of a link is written.
const NOTE_EVERY: i64 = 60 * SECOND;
const _: () = assert!(MAX_SECONDS * SECOND == 366 * DAY);

/// What somebody asks of a new link.
#[derive(Clone, Debug, Default)]
pub struct NewLinkRequest {
    pub meters: Vec<String>,
    pub origins: Vec<String>,
    /// Absent: a day.
    pub expires_in_seconds: Option<i64>,
}

impl NewLinkRequest {
    fn terms(&self, subject: &str, now: Timestamp) -> Result<LinkTerms> {
        let seconds = self.expires_in_seconds.unwrap_or(DEFAULT_SECONDS);
        if !(MIN_SECONDS..=MAX_SECONDS).contains(&seconds) {
            let rule = format_args!("expires_in_seconds must be between {MIN_SECONDS} and {MAX_SECONDS}");
            return Err(Error::invalid(rule));
        }
        let mut meters: Vec<String> = Vec::new();
        for name in self.meters.iter().map(|name| name.trim()).filter(|name| !name.is_empty()) {
            if name.len() > NAME_BYTES_MAX || meters.len() == MAX_METERS {
                let rule =
                    format_args!("meters may name at most {MAX_METERS}, each of {NAME_BYTES_MAX} bytes");
                return Err(Error::invalid(rule));
            }
            if !meters.iter().any(|known| known == name) {
                meters.push(name.to_owned());
            }
        }
        if self.origins.len() > MAX_ORIGINS {
            return Err(Error::invalid(format_args!("origins may name at most {MAX_ORIGINS}")));
        }
        let origins = self.origins.iter().map(|text| origin(text)).collect::<Result<Vec<_>>>()?;
        Ok(LinkTerms {
            subject: subject.to_owned(),
            meters: Words(meters),
            origins: Words(origins),
            expires_at: now.plus(seconds * SECOND),
        })
    }
}

/// `https://app.example.com`, as a browser writes it.
fn origin(text: &str) -> Result<String> {
    let refused = || Error::invalid("origins must be like https://app.example.com");
    let url = Url::parse(text.trim()).map_err(|_| refused())?;
    let is_plain = matches!(url.scheme(), "https" | "http")
        && url.path() == "/"
        && url.query().is_none()
        && url.fragment().is_none()
        && url.username().is_empty()
        && url.password().is_none();
    let origin = url.origin().ascii_serialization();
    // it stands in a header beside others: a host may hold a semicolon
    let is_one_word = origin.bytes().all(|byte| byte.is_ascii_alphanumeric() || b"-._:/[]".contains(&byte));
    if is_plain && is_one_word && origin.len() <= MAX_ORIGIN_BYTES { Ok(origin) } else { Err(refused()) }
}

/// The word for what became of a link.
pub fn status(link: &SubjectLink, now: Timestamp) -> &'static str {
    match link.revoked_at {
        Some(_) => "revoked",
        None if link.expires_at <= now.0 => "expired",
        None => "active",
    }
}

/// Whose share of the database's connections whoever opens the link reads from: the customers of a workspace take no more
/// of it than its people do.
pub fn reader(link: &SubjectLink) -> Reader {
    Reader { workspace_id: link.workspace_id, credential: pool::Credential::Link(link.id) }
}

/// The link that a token opens; 404 for one that is unknown, over or revoked, and 429 when it is used too often. The
/// workspace and the subject to show are the link's, never the caller's.
pub async fn check(auth: &Auth, token: &str) -> Result<SubjectLink> {
    let missing = || Error::not_found("link");
    if !token.starts_with(LINK_PREFIX) {
        return Err(missing());
    }
    let (hash, now) = (token::hash(token), Timestamp::now());
    let find = move |conn: &mut Conn| links::by_token(conn, &hash);
    let link = auth.0.store.vital().read("links::by_token", find).await?.ok_or_else(missing)?;
    if status(&link, now) != "active" {
        return Err(missing());
    }
    auth.0.throttle.use_link(link.id, now)?;
    let (id, since) = (link.id, now.plus(-NOTE_EVERY));
    if link.last_used_at.is_none_or(|at| at < since.0) {
        let note = move |conn: &mut Conn| links::note_use(conn, id, now, since);
        // whoever looks does not wait for it to be noted, nor fail by it
        if let Err(error) = auth.0.store.write("links::note_use", note).await {
            log::debug!(error:%; "the use of a link was not noted");
        }
    }
    Ok(link)
}

impl Auth {
    /// The new link and its token, which is shown once. A key that is confined to meters gives no more than those.
    pub async fn create_link(
        &self,
        caller: &Caller,
        subject: &str,
        wish: &NewLinkRequest,
    ) -> Result<(SubjectLink, Token)> {
        let now = Timestamp::now();
        let terms = wish.terms(subject, now)?;
        if terms.meters.0.is_empty() {
            caller.ensure_meter_allowed("")?;
        }
        terms.meters.0.iter().try_for_each(|name| caller.ensure_meter_allowed(name))?;
        let (standing, token) = (caller.standing(), Token::new(LINK_PREFIX)?);
        let hash = token.hash();
        let work = move |conn: &mut Conn| {
            standing.check_role(conn, Role::Admin, now)?;
            links::create(conn, standing.owner.workspace_id, standing.owner.user_id, &terms, &hash, now)
        };
        Ok((self.0.store.write("links::create", work).await?, token))
    }

    /// The newest links of a subject, ended ones too.
    pub async fn list_links(&self, caller: &Caller, subject: &str) -> Result<Vec<SubjectLink>> {
        let (workspace_id, subject) = (caller.workspace_id, subject.to_owned());
        let work = move |conn: &mut Conn| links::list(conn, workspace_id, &subject, LISTED);
        self.0.store.read("links::list", work).await
    }

    /// Ends a link at once; 404 for one that this subject does not have.
    pub async fn revoke_link(&self, caller: &Caller, subject: &str, id: &str) -> Result<()> {
        let (standing, now) = (caller.standing(), Timestamp::now());
        let (subject, id) = (subject.to_owned(), id.to_owned());
        let work = move |conn: &mut Conn| {
            standing.check_role(conn, Role::Admin, now)?;
            match links::revoke(conn, standing.owner.workspace_id, &subject, &id, now)? {
                true => Ok(()),
                false => Err(Error::not_found("link").into()),
            }
        };
        self.0.store.write("links::revoke", work).await
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn origins_are_those_of_browsers() {
        assert_eq!(origin(" HTTPS://App.Example.com:443/ ").ok().as_deref(), Some("https://app.example.com"));
        assert_eq!(origin("http://localhost:3000").ok().as_deref(), Some("http://localhost:3000"));
        for bad in [
            "",
            "*",
            "app.example.com",
            "https://a/b",
            "javascript:alert(1)",
            "https://u@a",
            "https://a?x",
            "data:text/html,x",
            "https://a;b",
        ] {
            assert!(origin(bad).is_err(), "{bad}");
        }
    }

    #[test]
    fn lifetimes_have_limits() {
        let terms = |seconds| {
            NewLinkRequest { expires_in_seconds: seconds, ..NewLinkRequest::default() }
                .terms("s", Timestamp(0))
        };
        assert_eq!(terms(None).expect("a day").expires_at, Timestamp(DAY));
        for bad in [0, -1, 59, MAX_SECONDS + 1, i64::MAX] {
            assert!(terms(Some(bad)).is_err(), "{bad}");
        }
    }
}
