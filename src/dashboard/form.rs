//! Forms: reading what was sent, with the token checked on the way, and keeping what was typed when it has to be
//! shown again. Never decides what a field may hold.

use std::collections::{HashMap, HashSet};
use std::future::Future;
use std::pin::Pin;
use std::time::Duration;

use actix_web::dev::{Payload, ServiceRequest};
use actix_web::{FromRequest, HttpMessage, HttpRequest, web};
use futures_util::StreamExt;
use percent_encoding::percent_decode;

use crate::app::App;
use crate::auth::Caller;
use crate::dashboard::{csrf, kept};
use crate::error::{Code, Error, Result};
use crate::net::budget::{Room, Tenant};
use crate::net::upload::Upload;

/// The longest form: a plan with a thousand limits fits.
const BYTES_MAX: usize = 512 * 1024;
const GUEST_BYTES_MAX: usize = 16 * 1024;
/// How long a form may wait for room in memory.
const ROOM_TIMEOUT: Duration = Duration::from_secs(2);
/// So much of a form takes none: whoever signs in, or revokes a key, does not wait behind what programs send.
const FREE_BYTES: usize = 4 * 1024;
/// The name of the hidden field that holds the token.
pub const TOKEN: &str = "form_token";

/// Fields of one form: a plan with a thousand limits has twelve thousand.
const FIELDS_MAX: usize = 20_000;
/// Repeated rows that are read: one more than any form may have, so that too many are told of as too many.
const ROWS_MAX: usize = 1_001;

/// The fields of a form in order, as they were sent or as they are to be shown.
#[derive(Clone, Debug, Default)]
pub struct Fields {
    pairs: Vec<(String, String)>,
    /// Where the first field of a name stands: pages ask for each of their fields, and some have thousands.
    first: HashMap<String, usize>,
}

impl Fields {
    pub fn of<N: Into<String>, V: Into<String>>(pairs: impl IntoIterator<Item = (N, V)>) -> Fields {
        let mut fields = Fields::default();
        pairs.into_iter().for_each(|(name, value)| fields.push(name.into(), value.into()));
        fields
    }

    fn parse(bytes: &[u8]) -> Result<Fields> {
        // bytes that are no text would become the same text as other such bytes
        if !bytes.split(|byte| *byte == b'&').all(|pair| percent_decode(pair).decode_utf8().is_ok()) {
            return Err(Error::invalid("a form must be UTF-8"));
        }
        let mut fields = Fields::default();
        for (name, value) in url::form_urlencoded::parse(bytes) {
            if fields.pairs.len() == FIELDS_MAX {
                return Err(Error::invalid(format_args!(
                    "a form must not have more than {FIELDS_MAX} fields"
                )));
            }
            fields.push(name.into_owned(), value.into_owned());
        }
        Ok(fields)
    }

    fn push(&mut self, name: String, value: String) {
        self.first.entry(name.clone()).or_insert(self.pairs.len());
        self.pairs.push((name, value));
    }

    /// What was typed, for whoever gets a token of their own.
    pub fn without_token(mut self) -> Fields {
        self.retain(|name| name != TOKEN);
        self
    }

    fn retain(&mut self, keeps: impl Fn(&str) -> bool) {
        let pairs = std::mem::take(&mut self.pairs);
        *self = Fields::of(pairs.into_iter().filter(|(name, _)| keeps(name)));
    }

    /// The first value with blanks around it cut off, or the empty text.
    pub fn get(&self, name: &str) -> &str {
        self.raw(name).trim()
    }

    pub fn pairs(&self) -> &[(String, String)] {
        &self.pairs
    }

    /// The first value as it was typed.
    pub fn raw(&self, name: &str) -> &str {
        self.first.get(name).map_or("", |at| &self.pairs[*at].1)
    }

    pub fn all<'a>(&'a self, name: &'a str) -> impl Iterator<Item = &'a str> {
        self.pairs.iter().filter(move |(key, _)| key == name).map(|(_, value)| value.as_str())
    }

    pub fn has(&self, name: &str, value: &str) -> bool {
        self.all(name).any(|held| held == value)
    }

    /// Whether this is the value, for the choice that is shown as made.
    pub fn is(&self, name: &str, value: &str) -> bool {
        self.get(name) == value
    }

    /// A value that is not blank.
    pub fn some(&self, name: &str) -> Option<String> {
        Some(self.get(name)).filter(|value| !value.is_empty()).map(str::to_owned)
    }

    /// A whole number, or the refusal that names the field.
    pub fn integer(&self, name: &str) -> Result<Option<i64>> {
        match self.get(name) {
            "" => Ok(None),
            text => {
                text.parse().map(Some).map_err(|_| Error::invalid(format!("{name} must be a whole number")))
            }
        }
    }

    pub fn set(&mut self, name: &str, value: impl Into<String>) {
        self.retain(|key| key != name);
        self.push(name.to_owned(), value.into());
    }

    /// The numbers of repeated rows: 3 for a field `dim.3.name`, in the order in which they were sent.
    pub fn rows(&self, group: &str) -> Vec<usize> {
        let (mut numbers, mut seen) = (Vec::new(), HashSet::new());
        for (name, _) in &self.pairs {
            let number = name
                .strip_prefix(group)
                .and_then(|rest| rest.strip_prefix('.')?.split('.').next()?.parse().ok());
            if let Some(number) = number.filter(|number| seen.insert(*number)) {
                numbers.push(number);
            }
            if numbers.len() == ROWS_MAX {
                break;
            }
        }
        numbers
    }

    /// What a button that adds or removes a row of this group asks for; true when it was one of them.
    pub fn change_rows(&mut self, group: &str, first_field: &str) -> bool {
        let asked = self.get("do").to_owned();
        if asked == format!("add {group}") {
            let next = self.rows(group).into_iter().max().map_or(0, |last| last + 1);
            self.push(format!("{group}.{next}.{first_field}"), String::new());
            return true;
        }
        let Some(row) = asked.strip_prefix(&format!("remove {group} ")) else { return false };
        let prefix = format!("{group}.{row}.");
        self.retain(|name| !name.starts_with(&prefix));
        true
    }
}

/// What a form held, for the page that offers to send it again. Forms with a password are those of guests, and not kept.
#[derive(Clone)]
pub struct Sent(pub Fields);

/// A form that was sent by one of our own pages, by the caller it was shown to.
pub struct Form(pub Fields);

/// The form of somebody who has not signed in: there is no token to know yet.
pub struct GuestForm(pub Fields);

type Read<T> = Pin<Box<dyn Future<Output = Result<T>>>>;

impl FromRequest for Form {
    type Error = Error;
    type Future = Read<Form>;

    fn from_request(request: &HttpRequest, payload: &mut Payload) -> Self::Future {
        let (request, payload) = (request.clone(), payload.take());
        let caller = request.extensions().get::<Caller>().cloned();
        Box::pin(async move {
            let fields = Fields::parse(&read(&request, payload, BYTES_MAX).await?)?;
            let caller = caller.ok_or_else(Error::unauthorized)?;
            csrf::check_token(&caller, fields.get(TOKEN)).inspect_err(|_| {
                request.extensions_mut().insert(csrf::Refused);
            })?;
            reject_nul(&fields)?;
            kept::forget(&caller, request.uri().path_and_query().map_or("/", |path| path.as_str()));
            request.extensions_mut().insert(Sent(fields.clone()));
            Ok(Form(fields))
        })
    }
}

impl FromRequest for GuestForm {
    type Error = Error;
    type Future = Read<GuestForm>;

    fn from_request(request: &HttpRequest, payload: &mut Payload) -> Self::Future {
        let (request, payload) = (request.clone(), payload.take());
        Box::pin(async move {
            let fields = Fields::parse(&read(&request, payload, GUEST_BYTES_MAX).await?)?;
            reject_nul(&fields)?;
            Ok(GuestForm(fields))
        })
    }
}

/// A form that nobody could take now, if it may be kept: not one that is long, or holds a password.
pub async fn read_kept(request: &mut ServiceRequest, bytes_max: usize) -> Option<Fields> {
    let payload = request.take_payload();
    let fields = Fields::parse(&read(request.request(), payload, bytes_max).await.ok()?).ok()?;
    let is_secret = |(name, _): &(String, String)| name.contains("password") || name.contains("secret");
    let may_be_kept = reject_nul(&fields).is_ok() && !fields.pairs.iter().any(is_secret);
    may_be_kept.then_some(fields)
}

/// Room in memory, of the sender's share.
fn room(request: &HttpRequest) -> Option<Room> {
    let app = request.app_data::<web::Data<App>>()?;
    let workspace = request.extensions().get::<Caller>().map(|caller| caller.workspace_id);
    Some(app.bodies.room(workspace.map_or(Tenant::Nobody, Tenant::Workspace)))
}

/// The bytes of a form. The room that they take is given back when the request is answered.
async fn read(request: &HttpRequest, mut payload: Payload, bytes_max: usize) -> Result<Vec<u8>> {
    let (mut bytes, mut upload, mut room) = (Vec::new(), Upload::default(), room(request));
    let late = || Error::invalid("the form took too long");
    let counted = |length: usize| length.saturating_sub(FREE_BYTES);
    while let Some(chunk) = upload.wait_for(payload.next()).await.ok_or_else(late)? {
        let chunk = chunk.map_err(|_| Error::invalid("the form was cut off"))?;
        if bytes.len() + chunk.len() > bytes_max {
            let rule = format!("the form is longer than {bytes_max} bytes");
            return Err(Error::new(Code::RequestTooLarge, rule));
        }
        if let Some(room) = &mut room {
            let more = counted(bytes.len() + chunk.len()) - counted(bytes.len());
            room.grow_within(ROOM_TIMEOUT, more).await?;
        }
        upload.note(chunk.len());
        bytes.extend_from_slice(&chunk);
    }
    if let Some(room) = room {
        request.extensions_mut().insert(room);
    }
    Ok(bytes)
}

fn reject_nul(fields: &Fields) -> Result<()> {
    match fields.pairs.iter().any(|(name, value)| name.contains('\0') || value.contains('\0')) {
        true => Err(Error::invalid("NUL characters are not allowed")),
        false => Ok(()),
    }
}

/// Why a form was not accepted, and at which of its fields.
#[derive(Clone, Debug, Default)]
pub struct Complaint {
    pub message: String,
    field: String,
}

impl Complaint {
    /// Nothing to complain about.
    pub fn none() -> Complaint {
        Complaint::default()
    }

    /// A mistake of the person at the form; anything else is the caller's to answer.
    pub fn of(error: Error, fields: &[&str]) -> Result<Complaint> {
        // that others of the workspace look up as much is nobody's mistake
        let is_mistake = matches!(error.code.http_status(), 400 | 404 | 409 | 429);
        if !is_mistake || error.code == Code::TooManyQueries {
            return Err(error);
        }
        let plain = ["invalid input: ", "conflict: ", "not found: "];
        let text =
            plain.iter().find_map(|prefix| error.message.strip_prefix(prefix)).unwrap_or(&error.message);
        let word = |field: &&&str| {
            text.split(|c: char| !c.is_alphanumeric() && c != '_').any(|word| word == **field)
        };
        let field = fields.iter().find(word).map(|field| (*field).to_owned()).unwrap_or_default();
        let mut message = in_words(text, fields);
        if let Some(first) = message.get(..1) {
            message = first.to_uppercase() + &message[1..];
        }
        Ok(Complaint { message, field })
    }

    pub fn is_some(&self) -> bool {
        !self.message.is_empty()
    }

    pub fn at(&self, field: &str) -> bool {
        self.is_some() && self.field == field
    }
}

/// Names of fields that refusals use and that are not those of every form that shows them.
const NAMES: [&str; 28] = [
    "aggregation_field",
    "allowed_meters",
    "allowed_networks",
    "current_password",
    "destination_id",
    "display_name",
    "effective_at",
    "evaluation_interval_seconds",
    "event_retention_days",
    "expires_at",
    "failure_policy",
    "group_by",
    "histogram_bounds",
    "idempotency_key",
    "key_conflicts",
    "meter_id",
    "plan_id",
    "quantity_is",
    "time_zone",
    "user_id",
    "value_expression",
    "warning_percent",
    "webhook_url",
    "week_start",
    "window_seconds",
    "worker_name",
    "workspace_id",
    "workspace_zone",
];

/// A sentence with names of fields as words. Everything else, and whatever stands in quotes, may be somebody's value.
fn in_words(text: &str, fields: &[&str]) -> String {
    let is_mark = |c: char| !c.is_alphanumeric() && c != '_';
    let (mut words, mut is_quoted) = (String::with_capacity(text.len()), false);
    for piece in text.split_inclusive(is_mark) {
        let word = piece.trim_end_matches(is_mark);
        match !is_quoted && (fields.contains(&word) || NAMES.contains(&word)) {
            true => words.push_str(&piece.replace('_', " ")),
            false => words.push_str(piece),
        }
        // a quote in a value is escaped
        is_quoted ^= piece.ends_with('"') && !words.ends_with("\\\"");
    }
    words
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_form_has_a_bounded_number_of_rows() {
        let form = |rows: usize| (0..rows).map(|row| format!("limit.{row}=&")).collect::<String>();
        let fields = Fields::parse(form(19_999).as_bytes()).expect("a form");
        assert_eq!(fields.rows("limit").len(), ROWS_MAX);
        assert!(Fields::parse(form(FIELDS_MAX + 1).as_bytes()).is_err());
        let fields = Fields::parse(b"a=1&a=2&b=3").expect("a form");
        assert_eq!((fields.get("a"), fields.get("b"), fields.get("c")), ("1", "3", ""));
        assert_eq!(Fields::parse(b"a=%C3%A9+%zz").expect("a form").get("a"), "\u{e9} %zz");
        for odd in [&b"a=k%ff"[..], b"a=k\xfe", b"%c3=1"] {
            assert!(Fields::parse(odd).is_err(), "{odd:?}");
        }
        assert_eq!(fields.all("a").collect::<Vec<_>>(), ["1", "2"]);
    }

    #[test]
    fn rows_are_added_and_removed() {
        let mut fields = Fields::parse(b"dim.0.name=a&dim.2.name=b&do=add+dim").expect("a form");
        assert!(fields.change_rows("dim", "name"));
        assert_eq!(fields.rows("dim"), [0, 2, 3]);
        fields.set("do", "remove dim 2");
        assert!(fields.change_rows("dim", "name"));
        assert_eq!(fields.rows("dim"), [0, 3]);
        fields.set("do", "save");
        assert!(!fields.change_rows("dim", "name"));
    }

    #[test]
    fn complaints_name_the_field() {
        let complaint =
            Complaint::of(Error::invalid("name is required"), &["unit", "name"]).expect("a mistake");
        assert!(complaint.at("name") && !complaint.at("unit"));
        assert_eq!(complaint.message, "Name is required");
        assert!(Complaint::of(Error::unavailable("away"), &[]).is_err());
        assert!(Complaint::of(Error::too_many_queries(4, 3), &[]).is_err());
        assert!(Complaint::of(Error::rate_limited(1), &[]).is_ok());
    }

    #[test]
    fn only_names_of_fields_become_words() {
        let shown = |text: &str| {
            Complaint::of(Error::invalid(text.to_owned()), &["plan_id", "of_this_form"])
                .expect("a mistake")
                .message
        };
        assert_eq!(
            shown("plan_id and of_this_form: org_2 is unknown"),
            "Plan id and of this form: org_2 is unknown"
        );
        assert_eq!(shown("limits[0].warning_percent is 2_000"), "Limits[0].warning percent is 2_000");
        // a value may be the name of a field, with a quote in it
        assert_eq!(
            shown(r#"group_by "plan_id" or "a\"plan_id" for time_zone"#),
            r#"Group by "plan_id" or "a\"plan_id" for time zone"#
        );
    }
}
