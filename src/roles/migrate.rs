//! The migrate role: apply, show or take back migrations, under the lock that `serve` takes too; lay tables out over a
//! cluster; let a role in.

use crate::config::{Config, MigrateAction};
use crate::db::{self, cluster, migrations};
use crate::error::Result;
use crate::output::print_line;
use crate::retention;

pub fn run(config: &Config, action: MigrateAction) -> Result<()> {
    let driver = &config.db.driver;
    match action {
        MigrateAction::Up { distribute } => {
            let applied = migrations::run(driver)?;
            print_line!("{} applied, schema is up to date", applied.len());
            // without them events are stored as well, only pruned more slowly
            if let Err(error) = db::once(driver, retention::attach_year) {
                eprintln!("the months ahead were not attached: {}", error.message);
            }
            if distribute {
                cluster::distribute(driver)?.iter().for_each(|done| print_line!("{done}"));
            }
            if let Some(role) = &config.grant_to {
                migrations::grant(driver, role)?;
                print_line!("{role} may read and write the tables");
            }
        }
        MigrateAction::Status { json } => {
            let (steps, unknown) = migrations::status(driver)?;
            if json {
                let of = |applied| {
                    steps
                        .iter()
                        .filter(|step| step.applied == applied)
                        .map(|step| &step.name)
                        .collect::<Vec<_>>()
                };
                print_line!(
                    "{}",
                    serde_json::json!({"applied": of(true), "pending": of(false), "unknown": unknown})
                );
                return Ok(());
            }
            for step in steps {
                print_line!("{} {}", if step.applied { "applied" } else { "pending" }, step.name);
            }
            for version in unknown {
                print_line!("unknown {version}");
            }
        }
        MigrateAction::Revert(count) => {
            for version in migrations::revert(driver, count)? {
                print_line!("reverted {version}");
            }
        }
    }
    Ok(())
}
