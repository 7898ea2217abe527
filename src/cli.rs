//! Commands that end by themselves: what operators do, what a shell does as a client. `config::commands` has their
//! arguments. They print their answer to standard output and everything else to standard error; no SQL here.

mod admin;
mod backup;
mod client;
mod doctor;
mod http;
mod import;
mod keys;
mod pages;
mod people;
mod probe;
mod usage;
mod workspaces;

use std::process::ExitCode;

use serde::Serialize;

use crate::config::Config;
use crate::config::commands::{Command, Events, Usage};
use crate::error::{Error, Result};
use crate::output::print;

/// How a command ended that did what it was asked for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Outcome {
    Done,
    /// Something was found that needs a look.
    Findings,
}

impl From<Outcome> for ExitCode {
    fn from(outcome: Outcome) -> ExitCode {
        match outcome {
            Outcome::Done => ExitCode::SUCCESS,
            Outcome::Findings => ExitCode::from(3),
        }
    }
}

pub fn run(config: &Config, command: Command) -> Result<Outcome> {
    match command {
        Command::Probe(probe) => wait_for(probe::run(config, &probe)),
        Command::Doctor(json) => doctor::run(config, json.json),
        Command::Admin(admin) => admin::run(config, &admin),
        Command::Audit(asked) => people::audit(config, &asked),
        Command::Keys(asked) => keys::run(&config.db.driver, &asked),
        Command::Backup(asked) => backup::backup(config, &asked),
        Command::Restore(asked) => backup::restore(config, &asked),
        Command::Events(Events::Import(asked)) => wait_for(import::run(config, &asked)),
        Command::Events(Events::Tail(asked)) => wait_for(usage::tail(config, &asked)),
        Command::Usage(Usage::Query(asked)) => wait_for(usage::query(config, &asked)),
        Command::Import(asked) => crate::import::run(config, &asked).map(|()| Outcome::Done),
        Command::Tenant(asked) => crate::tenant::run(config, &asked).map(|()| Outcome::Done),
        Command::Completions { shell } => pages::completions(shell),
        Command::Man { command } => pages::man(command.as_deref()),
    }
}

/// Runs what waits for a server.
fn wait_for<T>(work: impl Future<Output = Result<T>>) -> Result<T> {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
    runtime.map_err(Error::internal)?.block_on(work)
}

fn print_json(value: &impl Serialize) -> Result<()> {
    let text = serde_json::to_string_pretty(value).map_err(Error::internal)?;
    print(&format!("{text}\n"));
    Ok(())
}

/// Columns as wide as their widest cell; the last one is as long as it is.
fn table<const N: usize>(titles: [&str; N], rows: &[[String; N]]) -> String {
    let titles = titles.map(str::to_owned);
    let width = |at: usize| {
        let cells = std::iter::once(&titles).chain(rows).map(|row| row[at].chars().count());
        cells.max().unwrap_or_default()
    };
    let widths: Vec<usize> = (0..N).map(width).collect();
    let mut text = String::new();
    for row in std::iter::once(&titles).chain(rows) {
        let cells = row.iter().zip(&widths).map(|(cell, width)| format!("{cell:width$}"));
        let line = cells.collect::<Vec<_>>().join("  ");
        text.push_str(line.trim_end());
        text.push('\n');
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn columns_are_as_wide_as_their_cells() {
        let rows = [["ü".to_owned(), "1".to_owned()], ["long".to_owned(), String::new()]];
        assert_eq!(table(["a", "b"], &rows), "a     b\nü     1\nlong\n");
        assert_eq!(table(["a", "b"], &[]), "a  b\n");
    }
}
