//! The command line: which role to run, and a flag for every row of the table of settings.
//!
//! Flags are texts like any other source; nothing is checked or converted here.

use std::collections::BTreeMap;
use std::ffi::OsString;
use std::path::Path;

use clap::error::ErrorKind;
use clap::{Arg, ArgAction, ArgMatches, Command, value_parser};

use crate::config::settings::{self, Setting, TABLE};
use crate::config::{MigrateAction, Role};

const ABOUT: &str = "Usage metering: exact, immediate, one binary";
const NOTE: &str = "Every setting is also an environment variable, given in brackets, and may stand \
in a file .env in the working directory. A flag wins over the environment, the environment over \
.env. A secret is a variable NAME, or a file named by NAME_FILE.";

/// Subcommand, what starts it when it is the name of the program, and what it does.
const ROLES: &[(&str, &str)] = &[
    ("serve", "REST, dashboard and gRPC (the default)"),
    ("migrate", "bring the database to the schema of this version"),
    ("export-worker", "run queued exports"),
    ("alert-worker", "evaluate alerts and deliver webhooks"),
    ("entitlement-worker", "evaluate entitlements"),
    ("usage-worker", "hand stored events to the alert and entitlement queues"),
];

/// What the command line said.
pub struct Cli {
    pub role: Role,
    /// Apply pending migrations at the start.
    pub migrate: bool,
    pub accept_newer_schema: bool,
    /// `migrate --grant`.
    pub grant_to: Option<String>,
    pub print_config: bool,
    /// Variable and text of each flag that was given.
    pub flags: BTreeMap<String, String>,
}

/// Reads the command line; the error also covers `--help` and `--version`.
pub fn parse(argv: impl IntoIterator<Item = OsString>) -> Result<Cli, clap::Error> {
    let argv: Vec<OsString> = argv.into_iter().collect();
    if let Some((name, about)) = argv.first().and_then(|program| worker_named(program)) {
        // old container entry points start a worker by the name of its program
        let program = format!("open-spanner-{name}");
        let command = with_settings(Command::new(program).about(about)).args(schema_flags());
        let matches = command.try_get_matches_from(argv)?;
        return Ok(cli(role(name, &matches), &matches, &matches));
    }
    let mut command = command();
    let matches = command.try_get_matches_from_mut(argv)?;
    let Some((name, matches_of_role)) = matches.subcommand() else {
        return Ok(cli(role("serve", &matches), &matches, &matches));
    };
    for flag in [NO_MIGRATE, ACCEPT_NEWER] {
        if matches.get_flag(flag) && name == "migrate" {
            let message = format!("--{flag} cannot be used with {name}");
            return Err(command.error(ErrorKind::ArgumentConflict, message));
        }
    }
    Ok(cli(role(name, matches_of_role), matches_of_role, &matches))
}

const NO_MIGRATE: &str = "no-migrate";
const ACCEPT_NEWER: &str = "accept-newer-schema";

/// What a process may be told about the schema that it finds.
fn schema_flags() -> [Arg; 2] {
    let flag = |name: &'static str, help| Arg::new(name).long(name).action(ArgAction::SetTrue).help(help);
    [
        flag(NO_MIGRATE, "leave the schema alone; end if it is not there: for a role that may not change it"),
        flag(ACCEPT_NEWER, "work with a schema that a newer version made: for going back to this one"),
    ]
}

/// The worker that a program name like `/usr/local/bin/open-spanner-alert-worker` stands for.
fn worker_named(program: &OsString) -> Option<(&'static str, &'static str)> {
    let name = Path::new(program).file_name()?.to_str()?.strip_prefix("open-spanner-")?;
    ROLES.iter().find(|(role, _)| *role == name && role.ends_with("-worker")).copied()
}

fn command() -> Command {
    let status = Arg::new("status")
        .long("status")
        .action(ArgAction::SetTrue)
        .conflicts_with("revert")
        .help("show which migrations have run, change nothing");
    let revert = Arg::new("revert")
        .long("revert")
        .value_name("N")
        .value_parser(value_parser!(u32).range(1..))
        .requires("yes-delete-data")
        .help("undo the last N migrations: drops their tables with all that is in them; refused while a server runs");
    let sure = Arg::new("yes-delete-data")
        .long("yes-delete-data")
        .action(ArgAction::SetTrue)
        .requires("revert")
        .help("what --revert cannot do without: data is deleted and only a backup brings it back");
    let grant = Arg::new("grant")
        .long("grant")
        .value_name("ROLE")
        .conflicts_with_all(["revert", "status"])
        .help("let this PostgreSQL role read and write the tables, but not change them, after migrating");
    let json =
        Arg::new("json").long("json").action(ArgAction::SetTrue).requires("status").help("--status as JSON");
    let roles = ROLES.iter().map(|(name, about)| {
        let role = Command::new(*name).about(*about).after_help(NOTE);
        match *name {
            "migrate" => role.args([&status, &json, &revert, &sure, &grant]),
            _ => role.args(schema_flags()),
        }
    });
    with_settings(Command::new("open-spanner").about(ABOUT).args(schema_flags()).subcommands(roles))
}

fn with_settings(command: Command) -> Command {
    let print_config = Arg::new("print-config")
        .long("print-config")
        .global(true)
        .action(ArgAction::SetTrue)
        .help("show every setting, its value and where it came from, then exit");
    let flags = TABLE.iter().flat_map(|group| group.rows.iter().map(|row| flag(row, group.title)));
    command
        .version(env!("CARGO_PKG_VERSION"))
        .propagate_version(true)
        .after_help(NOTE)
        .arg(print_config)
        .args(flags)
}

fn flag(setting: &Setting, heading: &'static str) -> Arg {
    let default = match setting.default {
        "" => String::new(),
        default => format!(", default {default}"),
    };
    let or_file = setting.file_variable().map(|name| format!(" or {name}")).unwrap_or_default();
    let help = format!("{} [{}{or_file}{default}]", setting.help, setting.variable());
    Arg::new(setting.flag_variable())
        .long(setting.flag())
        .value_name(setting.kind.placeholder())
        .global(true)
        .help_heading(heading)
        .help(help)
}

fn role(name: &str, matches: &ArgMatches) -> Role {
    match name {
        "migrate" => Role::Migrate(match matches.get_one::<u32>("revert") {
            Some(count) => MigrateAction::Revert(*count),
            None if matches.get_flag("status") => MigrateAction::Status { json: matches.get_flag("json") },
            None => MigrateAction::Up,
        }),
        "export-worker" => Role::ExportWorker,
        "alert-worker" => Role::AlertWorker,
        "entitlement-worker" => Role::EntitlementWorker,
        "usage-worker" => Role::UsageWorker,
        _ => Role::Serve,
    }
}

/// `outer`: the flags before the subcommand.
fn cli(role: Role, matches: &ArgMatches, outer: &ArgMatches) -> Cli {
    let is_set = |flag| {
        [matches, outer].iter().any(|matches| matches.try_get_one::<bool>(flag).ok().flatten() == Some(&true))
    };
    let given = |setting: &Setting| {
        let variable = setting.flag_variable();
        matches.get_one::<String>(&variable).map(|text| (variable, text.clone()))
    };
    Cli {
        role,
        migrate: !is_set(NO_MIGRATE),
        accept_newer_schema: is_set(ACCEPT_NEWER),
        grant_to: matches.try_get_one::<String>("grant").ok().flatten().cloned(),
        print_config: matches.get_flag("print-config"),
        flags: settings::all().filter_map(given).collect(),
    }
}
