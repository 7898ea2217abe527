//! Moving in: brings what other programs hold into a database of ours. A command, not a server: it works on one
//! connection, in order, and ends. Events go the way of all events (`crate::ingest::insert`); no event, roll-up or key
//! is written here.

mod files;
pub mod progress;
mod reference;
mod report;
pub mod sql;

use std::sync::atomic::AtomicBool;

use crate::config::import::{How, Import, Mapped};
use crate::config::{Config, Driver};
use crate::db::migrations::{self, Wanted};
use crate::db::session::Session;
use crate::error::Result;
use crate::import::files::{Format, Mapping, Reader};

pub fn run(config: &Config, import: &Import) -> Result<()> {
    let driver = &config.db.driver;
    migrations::prepare(driver, Wanted { migrate: true, accept_newer: false }, &AtomicBool::new(false))?;
    let _alone = migrations::use_alone(driver)?;
    match import {
        Import::Reference(asked) => {
            let is_trial = asked.how.dry_run || asked.compare;
            reference::run(Session::open(driver, is_trial)?, asked, config.auth.session_max_age)
        }
        Import::Openmeter(asked) => {
            files::run(ours(driver, &asked.how)?, asked, Reader::Of(Format::Openmeter))
        }
        Import::Lago(asked) => files::run(ours(driver, &asked.how)?, asked, Reader::Of(Format::Lago)),
        Import::Stripe(asked) => files::run(ours(driver, &asked.how)?, asked, Reader::Of(Format::Stripe)),
        Import::Csv(asked) => mapped(driver, asked, Reader::Csv),
        Import::Ndjson(asked) => mapped(driver, asked, Reader::Ndjson),
    }
}

fn mapped(driver: &Driver, asked: &Mapped, reader: fn(Mapping) -> Reader) -> Result<()> {
    let mapping = Mapping::read(&asked.map)?;
    files::run(ours(driver, &asked.files.how)?, &asked.files, reader(mapping))
}

fn ours(driver: &Driver, how: &How) -> Result<Session> {
    Session::open(driver, how.dry_run)
}
