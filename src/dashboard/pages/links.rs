//! `/subjects/{subject}/links`: the links with which a customer sees the usage of one subject.

use actix_web::{HttpResponse, web};
use askama::Template;

use crate::app::App;
use crate::auth::Caller;
use crate::auth::link_token::{self, NewLinkRequest};
use crate::auth::sql::links::SubjectLink;
use crate::dashboard::ask;
use crate::dashboard::confirm::Confirm;
use crate::dashboard::form::{Complaint, Fields, Form};
use crate::dashboard::once::{self, Once};
use crate::dashboard::view::{self, segment};
use crate::dashboard::visit::{Shell, Visit, ok, rejected};
use crate::error::{Error, Result};
use crate::http::extract::{Id, Ids};
use crate::metering::event::parse_subject;
use crate::metering::meter::Meter;
use crate::metering::time::Timestamp;

const LIVES: [(&str, &str); 5] = [
    ("3600", "an hour"),
    ("86400", "a day"),
    ("604800", "a week"),
    ("2592000", "30 days"),
    ("31536000", "a year"),
];

#[derive(Template)]
#[template(path = "subjects/links.html")]
struct LinksPage {
    shell: Shell,
    subject: String,
    links: Vec<SubjectLink>,
    meters: Vec<Meter>,
    fields: Fields,
    complaint: Complaint,
    /// The address of a link that was just made.
    made: String,
    now: Timestamp,
}

impl LinksPage {
    fn lives(&self) -> &'static [(&'static str, &'static str)] {
        &LIVES
    }

    fn state(&self, link: &SubjectLink) -> &'static str {
        link_token::status(link, self.now)
    }
}

async fn page(app: &App, caller: &Caller, visit: &Visit, subject: &str) -> Result<LinksPage> {
    Ok(LinksPage {
        shell: visit.shell("subjects", format!("Links of {subject}")),
        subject: subject.to_owned(),
        links: app.auth.list_links(caller, subject).await?,
        meters: ask::meters(app, caller).await?,
        fields: Fields::of([("seconds", "86400")]),
        complaint: Complaint::none(),
        made: String::new(),
        now: Timestamp::now(),
    })
}

pub async fn show(
    app: web::Data<App>,
    caller: Caller,
    visit: Visit,
    Id(subject): Id,
) -> Result<HttpResponse> {
    let page = page(&app, &caller, &visit, parse_subject(&subject)?).await?;
    match once::take(&visit, &caller) {
        Some(Once { secret: token, .. }) => {
            let made = format!("{}/share/{token}", visit.origin);
            once::page(&visit, &LinksPage { made, ..page })
        }
        None => ok(&page),
    }
}

/// What a link shows, and to whom, that is to be taken back.
pub async fn confirm_revoke(
    app: web::Data<App>,
    caller: Caller,
    visit: Visit,
    Ids(subject, id): Ids,
) -> Result<HttpResponse> {
    let subject = parse_subject(&subject)?;
    let links = app.auth.list_links(&caller, subject).await?;
    let link = links.into_iter().find(|link| link.public_id == id).ok_or_else(|| Error::not_found("link"))?;
    let shell = visit.shell("subjects", format!("Take back a link of {subject}"));
    let meters =
        if link.meters.0.is_empty() { "every meter of".to_owned() } else { link.meters.0.join(", ") + " of" };
    let used = match link.last_used_at {
        Some(at) => format!("was last used {}", shell.when(at).words()),
        None => "was never used".to_owned(),
    };
    let (end, button) = match link_token::status(&link, Timestamp::now()) {
        "active" => (
            "Whoever holds it sees nothing from now on. A link that was taken back cannot be given again: make another.",
            "Take back the link",
        ),
        _ => ("It opens nothing any more: there is nothing to take back.", ""),
    };
    let mut sentences = vec![
        format!("It shows {meters} {subject}, was made {}, and {used}.", shell.when(link.created_at).words()),
        end.to_owned(),
    ];
    if !link.origins.0.is_empty() {
        sentences.push(format!("Sites that show it in a frame: {}.", link.origins.0.join(", ")));
    }
    let page = format!("/subjects/{}", segment(subject));
    let list = format!("{page}/links");
    ok(&Confirm {
        sentences,
        action: list.clone(),
        fields: vec![("revoke", id)],
        button: button.to_owned(),
        ..Confirm::below(
            shell,
            [("Subjects", "/subjects"), (subject, page.as_str()), ("Links", list.as_str())],
        )
    })
}

/// Makes a link, or takes one back.
pub async fn change(
    app: web::Data<App>,
    caller: Caller,
    visit: Visit,
    Id(subject): Id,
    form: Form,
) -> Result<HttpResponse> {
    let Form(fields) = form;
    if let Some(id) = fields.some("revoke") {
        app.auth.revoke_link(&caller, &subject, &id).await?;
        let done = "The link is taken back: it opens nothing any more.";
        return Ok(visit.go(&format!("/subjects/{}/links", segment(&subject)), done));
    }
    match create(&app, &caller, &subject, &fields).await {
        Ok(token) => {
            let path = format!("/subjects/{}/links", segment(&subject));
            once::show_at(&visit, &caller, &path, &token, "")
        }
        Err(error) => {
            let complaint = Complaint::of(error, &["origins", "meters"])?;
            let page = page(&app, &caller, &visit, parse_subject(&subject)?).await?;
            rejected(&LinksPage { fields, complaint, ..page })
        }
    }
}

async fn create(app: &App, caller: &Caller, subject: &str, fields: &Fields) -> Result<String> {
    let origins = fields.raw("origins").split_whitespace().map(str::to_owned).collect();
    let meters = fields.all("meter").map(str::to_owned).collect();
    let wish = NewLinkRequest { meters, origins, expires_in_seconds: fields.integer("seconds")? };
    let (_, token) = app.auth.create_link(caller, parse_subject(subject)?, &wish).await?;
    Ok(token.expose().to_owned())
}
