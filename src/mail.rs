//! Mail: plain text by SMTP, sent in the background, so that no answer waits for a mail server or tells by its time whether
//! there was anything to send. What stands in a letter is decided by who writes it.

use std::future::Future;
use std::sync::{Arc, PoisonError, RwLock};
use std::time::Duration;

use lettre::message::Mailbox;
use lettre::message::header::ContentType;
use lettre::transport::smtp;
use lettre::{AsyncSmtpTransport, AsyncTransport, Message, Tokio1Executor};
use tokio::sync::Semaphore;

use crate::config;
use crate::error::{Code, Error, Result};

/// Letters of each kind on their way at once; what comes beyond is dropped, and counted.
const ON_THEIR_WAY: usize = 64;
const TIMEOUT: Duration = Duration::from_secs(20);
/// What failed for a while is tried again after these.
const PAUSES: [Duration; 3] = [Duration::from_secs(2), Duration::from_secs(20), Duration::from_secs(60)];

/// A letter to one person.
#[derive(Clone, Debug)]
pub struct Letter {
    pub to: String,
    pub subject: String,
    pub text: String,
}

/// What a letter is about: each kind has room of its own, so that no crowd of one keeps the other from being sent.
#[derive(Clone, Copy, Debug)]
pub enum Kind {
    Reset,
    Invitation,
}

type Transport = AsyncSmtpTransport<Tokio1Executor>;

fn unusable(name: &str, why: impl std::fmt::Display) -> Error {
    Error::new(Code::Unusable, format!("OPEN_SPANNER_{name}: {why}"))
}

fn transport(settings: &config::Mail) -> Result<Transport> {
    let builder = Transport::from_url(settings.smtp_url.expose())
        // its own words may quote the password
        .map_err(|_| unusable("SMTP_URL", "is no address like smtps://USER:PASSWORD@HOST"))?;
    Ok(builder.timeout(Some(TIMEOUT)).build())
}

/// Cheap to clone.
#[derive(Clone)]
pub struct Mailer {
    /// Another one when the password of the mail server changes.
    transport: Arc<RwLock<Transport>>,
    from: Mailbox,
    resets: Arc<Semaphore>,
    invitations: Arc<Semaphore>,
}

impl Mailer {
    /// Connects to nothing yet. Settings that cannot work are told at the start.
    pub fn new(settings: &config::Mail) -> Result<Mailer> {
        // fails when somebody was first, which is as good
        let _ = rustls::crypto::ring::default_provider().install_default();
        let transport = Arc::new(RwLock::new(transport(settings)?));
        let from = settings.from.parse();
        let from = from.map_err(|error| unusable("MAIL_FROM", format_args!("is no address: {error}")))?;
        let room = || Arc::new(Semaphore::new(ON_THEIR_WAY));
        Ok(Mailer { transport, from, resets: room(), invitations: room() })
    }

    /// Letters from here on go to the server of these settings; who they come from stays.
    pub fn renew(&self, settings: &config::Mail) -> Result<()> {
        let new = transport(settings)?;
        *self.transport.write().unwrap_or_else(PoisonError::into_inner) = new;
        Ok(())
    }

    /// Has a letter written, if there is one to be written, and sent, while the caller goes on.
    pub fn post(&self, kind: Kind, write: impl Future<Output = Result<Option<Letter>>> + Send + 'static) {
        let room = match kind {
            Kind::Reset => &self.resets,
            Kind::Invitation => &self.invitations,
        };
        let Ok(place) = room.clone().try_acquire_owned() else {
            count("dropped");
            log::warn!("too many mails are on their way: one was dropped");
            return;
        };
        let own = self.clone();
        tokio::spawn(async move {
            let _place = place;
            match write.await {
                Ok(Some(letter)) => own.send(&letter).await,
                Ok(None) => {}
                Err(error) => log::warn!(error:% = error.message; "a mail was not written"),
            }
        });
    }

    async fn send(&self, letter: &Letter) {
        let message = match self.message(letter) {
            Ok(message) => message,
            Err(error) => {
                count("failed");
                return log::warn!(error; "a mail could not be addressed");
            }
        };
        for pause in PAUSES.into_iter().map(Some).chain([None]) {
            let transport = self.transport.read().unwrap_or_else(PoisonError::into_inner).clone();
            match transport.send(message.clone()).await {
                Ok(_) => return count("sent"),
                Err(error) if pause.is_some() && !error.is_permanent() => {
                    log::warn!(error:% = describe(&error); "the mail server did not take a mail; it is tried again");
                }
                Err(error) => {
                    count("failed");
                    return log::error!(error:% = describe(&error); "the mail server did not take a mail");
                }
            }
            if let Some(pause) = pause {
                tokio::time::sleep(pause).await;
            }
        }
    }

    fn message(&self, letter: &Letter) -> Result<Message, String> {
        let to = letter.to.parse().map_err(|_| "the address cannot receive mail".to_owned())?;
        let builder = Message::builder().from(self.from.clone()).to(Mailbox::new(None, to));
        let builder = builder.subject(&letter.subject).header(ContentType::TEXT_PLAIN);
        builder.body(letter.text.clone()).map_err(|error| error.to_string())
    }
}

fn describe(error: &smtp::Error) -> String {
    use std::error::Error as _;
    error.source().map_or_else(|| error.to_string(), |cause| format!("{error}: {cause}"))
}

fn count(outcome: &'static str) {
    metrics::counter!("open_spanner_mails_total", "outcome" => outcome).increment(1);
}
