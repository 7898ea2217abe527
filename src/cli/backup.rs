//! `backup` and `restore`: what `crate::backup` does, and how long it took.

use std::fs::File;
use std::io::{IsTerminal, Write};
use std::path::Path;

use serde_json::json;

use crate::backup::manifest::Manifest;
use crate::backup::{self};
use crate::cli::{Outcome, keys, print_json};
use crate::clock;
use crate::config::Config;
use crate::config::commands::{Backup, BackupAction, Restore};
use crate::db;
use crate::error::{Code, Error, Result};
use crate::jobs::sql;
use crate::metering::time::Timestamp;
use crate::output::print;
use crate::vault;

pub fn backup(config: &Config, asked: &Backup) -> Result<Outcome> {
    match (&asked.action, &asked.file) {
        (Some(BackupAction::Verify { file, json }), _) => verify(config, file, json.json || asked.json.json),
        (None, Some(file)) if file.as_os_str() == "-" => pass_on(config, asked.manifest.as_deref()),
        (None, Some(_)) if asked.manifest.is_some() => {
            Err(Error::invalid("--manifest is for -: else the manifest stands beside the file"))
        }
        (None, Some(file)) => create(config, file, asked.json.json),
        (None, None) => Err(Error::invalid("say where to write the backup")),
    }
}

fn create(config: &Config, file: &Path, as_json: bool) -> Result<Outcome> {
    let began = clock::moment();
    let manifest = backup::create(&config.db.driver, file)?;
    let seconds = clock::since(began).as_secs_f64();
    put_down(config);
    if as_json {
        let keys = sealed_with(config)?;
        print_json(&json!({"file": file.display().to_string(), "seconds": seconds, "sealed_with": keys,
                           "manifest": manifest}))?;
    } else {
        print(&format!("{}: {}, {seconds:.1} s\n", file.display(), summary(&manifest)));
        let keys = sealed_with(config)?;
        if !keys.is_empty() {
            let own = vault::own_file().filter(|file| file.exists());
            let place = own.map(|own| own.display().to_string());
            let place = place.unwrap_or_else(|| "OPEN_SPANNER_ENCRYPTION_KEYS".to_owned());
            let keys = keys.join(", ");
            print(&format!("secrets in it are sealed with {keys}: keep {place} as well, in another place\n"));
        }
    }
    Ok(Outcome::Done)
}

/// Tells the database that there is a backup of it, for metrics, `doctor` and the dashboard. One that is whole stays so
/// when that fails: a standby that is backed up takes no word.
fn put_down(config: &Config) {
    let note = |conn: &mut db::Conn| sql::note_chore(conn, sql::BACKUP, 0, Timestamp::now());
    if let Err(error) = db::once(&config.db.driver, note) {
        eprintln!("the backup is whole, but its time was not put down: {}", error.message);
    }
}

/// The keys without which a backup of this database cannot sign.
fn sealed_with(config: &Config) -> Result<Vec<String>> {
    Ok(keys::look(&config.db.driver)?.counts().map(|(id, _)| id.to_owned()).collect())
}

/// To standard output. The databases' own tools write files, and nothing is told before all of it is known to be whole: it
/// takes as much room in the temporary directory.
fn pass_on(config: &Config, to: Option<&Path>) -> Result<Outcome> {
    let to = to.ok_or_else(|| Error::invalid("with -, say where to write the manifest: --manifest FILE"))?;
    if std::io::stdout().is_terminal() {
        return Err(Error::invalid("a backup is no text: send standard output to a file or a program"));
    }
    if to.exists() {
        return Err(Error::conflict(format_args!("{} is there already", to.display())));
    }
    let folder = tempfile::tempdir()
        .map_err(|error| Error::new(Code::Unusable, format!("no temporary folder can be made: {error}")))?;
    let file = folder.path().join("backup");
    let manifest = backup::create(&config.db.driver, &file)?;
    manifest.write(to)?;
    let copied = File::open(&file).and_then(|mut file| {
        let mut out = std::io::stdout().lock();
        std::io::copy(&mut file, &mut out).and_then(|_| out.flush())
    });
    if let Err(error) = copied {
        // it would speak of a backup that nobody has
        let _ = std::fs::remove_file(to);
        return Err(Error::new(Code::Internal, format!("standard output cannot be written: {error}")));
    }
    put_down(config);
    eprintln!("{}", summary(&manifest));
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
        print(&format!("{}: something is wrong\n{}\n", file.display(), differences.join("\n")));
    }
    Ok(if differences.is_empty() { Outcome::Done } else { Outcome::Findings })
}

pub fn restore(config: &Config, asked: &Restore) -> Result<Outcome> {
    let began = clock::moment();
    let (manifest, owed) = backup::restore(&config.db.driver, &asked.file, asked.send_webhooks)?;
    let (seconds, made_at) = (clock::since(began).as_secs_f64(), &manifest.made_at);
    let sealed = keys::look(&config.db.driver)?;
    if asked.json.json {
        print_json(&json!({"rto_seconds": seconds, "made_at": made_at, "webhooks_owed": owed,
                           "webhooks_held": !asked.send_webhooks, "keys_missing": sealed.missing()}))?;
        return Ok(Outcome::Done);
    }
    let webhooks = match asked.send_webhooks {
        true => "are sent when an alert worker starts",
        false => {
            "are held back: /deliveries?status=dead_letter of the dashboard sends what was not sent since"
        }
    };
    print(&format!(
        "restored: {}\nRTO {seconds:.1} s. What was stored after {made_at} is not there: send it again with the same \
         idempotency keys.\n{owed} webhooks that were owed then {webhooks}.\n",
        summary(&manifest)
    ));
    if let Some(problem) = sealed.problem() {
        print(&format!("before you start it: {problem}\n"));
    }
    Ok(Outcome::Done)
}
