//! The migrate role: apply, show or take back migrations, under the lock that `serve` takes too; lay tables out over a
//! cluster; let a role in.

use std::sync::atomic::AtomicBool;

use crate::config::{Config, MigrateAction};
use crate::db::inspect::Step;
use crate::db::{self, Wanted, cluster, migrations};
use crate::error::Result;
use crate::output::print_line;
use crate::retention;

pub fn run(config: &Config, action: MigrateAction) -> Result<()> {
    let driver = &config.db.driver;
    match action {
        MigrateAction::Up { distribute } => {
            // going back a version starts with this one too, where nothing is pending
            let wanted = Wanted { migrate: true, accept_newer: config.accept_newer_schema };
            let applied = migrations::prepare(driver, wanted, &AtomicBool::new(false))?;
            let (_, unknown) = migrations::status(driver)?;
            let state = if unknown.is_empty() { "up to date" } else { "that of a newer version" };
            print_line!("{} applied, schema is {state}", applied.len());
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
                print_line!("{}", status(&steps, &unknown));
                return Ok(());
            }
            for step in steps {
                let Step { name, note, .. } = &step;
                match step.applied {
                    true => print_line!("applied {name}"),
                    false => {
                        print_line!("pending {name}: keeps waiting {}, takes {}", note.locks, note.takes)
                    }
                }
            }
            for version in unknown {
                print_line!("unknown {version}");
            }
        }
        MigrateAction::Revert(count) => {
            // the command line does not go without
            let named = config.deletes_data_of.as_deref().unwrap_or_default();
            for version in migrations::revert(driver, count, named)? {
                print_line!("reverted {version}");
            }
        }
    }
    Ok(())
}

/// What a program wants to know before it upgrades: what there is to do, how long it keeps others waiting, and which of it
/// cannot be taken back without losing data.
fn status(steps: &[Step], unknown: &[String]) -> String {
    let names = |of: &dyn Fn(&Step) -> bool| {
        steps.iter().filter(|step| of(step)).map(|step| step.name.as_str()).collect::<Vec<_>>()
    };
    let each = steps.iter().map(|Step { name, applied, note }| {
        serde_json::json!({"name": name, "applied": applied, "reverting_deletes": note.deletes, "keeps_waiting": note.locks,
                           "takes": note.takes})
    });
    serde_json::json!({
        "applied": names(&|step: &Step| step.applied),
        "pending": names(&|step: &Step| !step.applied),
        "unknown": unknown,
        "irreversible": names(&|step: &Step| step.note.deletes.is_some()),
        "migrations": each.collect::<Vec<_>>(),
    })
    .to_string()
}
