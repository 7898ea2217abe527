//! `backup` and `restore`: what `crate::backup` does, and how long it took.

use std::path::Path;

use serde_json::json;

use crate::backup::manifest::Manifest;
use crate::backup::{self};
use crate::cli::{Outcome, print_json};
use crate::clock;
use crate::config::Config;
use crate::config::commands::{Backup, BackupAction, Restore};
use crate::error::{Error, Result};
use crate::output::print;

pub fn backup(config: &Config, asked: &Backup) -> Result<Outcome> {
    match (&asked.action, &asked.file) {
        (Some(BackupAction::Verify { file, json }), _) => verify(config, file, json.json || asked.json.json),
        (None, Some(file)) => create(config, file, asked.json.json),
        (None, None) => Err(Error::invalid("say where to write the backup")),
    }
}

fn create(config: &Config, file: &Path, as_json: bool) -> Result<Outcome> {
    let began = clock::moment();
    let manifest = backup::create(&config.db.driver, file)?;
    let seconds = clock::since(began).as_secs_f64();
    if as_json {
        print_json(&json!({"file": file.display().to_string(), "seconds": seconds, "manifest": manifest}))?;
    } else {
        print(&format!("{}: {}, {seconds:.1} s\n", file.display(), summary(&manifest)));
    }
    Ok(Outcome::Done)
}

fn summary(manifest: &Manifest) -> String {
    let rows: i64 = manifest.contents.rows.values().sum();
    let (events, totals) = (manifest.contents.events(), manifest.contents.totals.len());
    format!("{rows} rows, {events} events in {totals} months of meters, {} bytes", manifest.bytes)
}

fn verify(config: &Config, file: &Path, as_json: bool) -> Result<Outcome> {
    let began = clock::moment();
    let (manifest, differences) = backup::verify(&config.db.driver, file)?;
    let seconds = clock::since(began).as_secs_f64();
    if as_json {
        print_json(&json!({"differences": differences, "seconds": seconds, "manifest": manifest}))?;
    } else if differences.is_empty() {
        print(&format!("{}: whole: {}, verified in {seconds:.1} s\n", file.display(), summary(&manifest)));
    } else {
        print(&format!("{}: not what was saved\n{}\n", file.display(), differences.join("\n")));
    }
    Ok(if differences.is_empty() { Outcome::Done } else { Outcome::Findings })
}

pub fn restore(config: &Config, asked: &Restore) -> Result<Outcome> {
    let began = clock::moment();
    let manifest = backup::restore(&config.db.driver, &asked.file)?;
    let owed = backup::webhooks_owed(&config.db.driver)?;
    let (seconds, made_at) = (clock::since(began).as_secs_f64(), &manifest.made_at);
    if asked.json.json {
        print_json(&json!({"rto_seconds": seconds, "made_at": made_at, "webhooks_owed": owed}))?;
        return Ok(Outcome::Done);
    }
    print(&format!(
        "restored: {}\nRTO {seconds:.1} s. What was stored after {made_at} is not there: send it again with the same \
         idempotency keys.\n{owed} queues of webhooks are sent on when an alert worker starts.\n",
        summary(&manifest)
    ));
    Ok(Outcome::Done)
}
