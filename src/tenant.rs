//! One workspace with everything, out of one installation and into another, whatever databases they use. Exporting reads
//! one instant and writes nothing; importing is one transaction, which is taken back unless what is there in the end is
//! what the file says. Never: what belongs to the installation, such as sessions, jobs and sealing keys.

mod archive;
mod export;
mod import;
mod secrets;
mod sql;
mod sums;
mod tables;

use std::sync::atomic::AtomicBool;

use crate::config::tenant::Tenant;
use crate::config::{Config, Driver};
use crate::db::migrations::{self, Wanted};
use crate::error::{Code, Error, Result};

pub fn run(config: &Config, tenant: &Tenant) -> Result<()> {
    let driver = &config.db.driver;
    match tenant {
        Tenant::Export(asked) => {
            prepare(driver, false)?;
            export::run(driver, asked)
        }
        Tenant::Import(asked) => {
            // before anything is made: a file that is not whole changes nothing
            let end = archive::check(&asked.file)?;
            prepare(driver, true)?;
            let _alone = migrations::use_alone(driver)?;
            import::run(driver, asked, &end)
        }
    }
}

fn prepare(driver: &Driver, migrate: bool) -> Result<()> {
    migrations::prepare(driver, Wanted { migrate, accept_newer: false }, &AtomicBool::new(false))?;
    Ok(())
}

fn unusable(message: impl Into<String>) -> Error {
    Error::new(Code::Unusable, message)
}
