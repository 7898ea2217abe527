//! The migrate role: apply, show or take back migrations, under the lock that `serve` takes too.

use crate::config::{Config, MigrateAction};
use crate::db::migrations;
use crate::error::Result;

pub fn run(config: &Config, action: MigrateAction) -> Result<()> {
    let driver = &config.db.driver;
    match action {
        MigrateAction::Up => {
            let applied = migrations::run(driver)?;
            println!("{} applied, schema is up to date", applied.len());
        }
        MigrateAction::Status => {
            for step in migrations::status(driver)? {
                println!("{} {}", if step.applied { "applied" } else { "pending" }, step.name);
            }
        }
        MigrateAction::Revert(count) => {
            for version in migrations::revert(driver, count)? {
                println!("reverted {version}");
            }
        }
    }
    Ok(())
}
