//! The command line: which role to run, and a flag for every row of the table of settings.
//!
//! Flags are texts like any other source; nothing is checked or converted here.

use std::collections::BTreeMap;
use std::ffi::OsString;
use std::path::Path;

use clap::error::ErrorKind;
use clap::{Arg, ArgAction, ArgMatches, Command, FromArgMatches, Subcommand, value_parser};

use crate::config::commands;
use crate::config::settings::{self, Group, Setting, TABLE};
use crate::config::{MigrateAction, Role};

const ABOUT: &str = "Usage metering: exact, immediate, one binary";
const NOTE: &str = "Every setting is also an environment variable, given in brackets, and may stand \
in a file .env in the working directory. A flag wins over the environment, the environment over \
.env. A secret is a variable NAME, or a file named by NAME_FILE.";
const SHORT_NOTE: &str =
    "Every setting is a flag, an environment variable and a line of .env: --help lists them.";
const EXAMPLES: &str = "\
Examples:
  open-spanner serve                                     # SQLite in the working directory, port 18081
  open-spanner serve --db-driver postgres --postgres-dsn-file /run/secrets/dsn
  open-spanner admin key create --email me@example.com   # the first API key
  open-spanner serve --print-config                      # every setting and where its value came from

Exit codes:
  0  done
  1  failed; the same may succeed later
  2  cannot succeed before arguments, settings or files are changed
  3  done, and something was found that needs a look (doctor, backup verify, events import)";
/// Name of the version: which release, built from which commit.
pub const VERSION: &str = concat!(env!("CARGO_PKG_VERSION"), " (", env!("BUILD_COMMIT"), ")");

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
    /// What to do instead of a role.
    pub command: Option<commands::Command>,
    /// Fill a workspace with something to look at.
    pub demo: bool,
    /// Apply pending migrations at the start.
    pub migrate: bool,
    pub accept_newer_schema: bool,
    /// `migrate --grant`.
    pub grant_to: Option<String>,
    /// `migrate --yes-delete-data`.
    pub deletes_data_of: Option<String>,
    pub print_config: bool,
    /// Variable and text of each flag that was given.
    pub flags: BTreeMap<String, String>,
}

/// Reads the command line; the error also covers `--help` and `--version`.
pub fn parse(argv: impl IntoIterator<Item = OsString>) -> Result<Cli, clap::Error> {
    let argv: Vec<OsString> = argv.into_iter().collect();
    if let Some(name) = argv.first().and_then(|program| name_behind_dash(program)) {
        // old container entry points start a worker by the name of its program
        let program = format!("open-spanner-{name}");
        let worker = ROLES.iter().find(|(role, _)| *role == name && role.ends_with("-worker"));
        let Some((name, about)) = worker else {
            let message = format!("there is no program {program}: use open-spanner, or the name of a worker");
            return Err(command_line().error(ErrorKind::InvalidSubcommand, message));
        };
        let command = with_settings(Command::new(program).about(*about)).args(schema_flags());
        let matches = command.try_get_matches_from(argv)?;
        return Ok(cli(role(name, &matches), &[&matches]));
    }
    let mut command = command_line();
    let matches = command.try_get_matches_from_mut(argv)?;
    let Some((name, inner)) = matches.subcommand() else {
        return Ok(cli(role("serve", &matches), &[&matches]));
    };
    if !ROLES.iter().any(|(role, _)| *role == name) {
        let asked = commands::Command::from_arg_matches(&matches)?;
        let role = Role::Command(asked.name());
        return Ok(Cli { command: Some(asked), ..cli(role, &chain(&matches)) });
    }
    for flag in [NO_MIGRATE, ACCEPT_NEWER] {
        if matches.get_flag(flag) && name == "migrate" {
            let message = format!("--{flag} cannot be used with {name}");
            return Err(command.error(ErrorKind::ArgumentConflict, message));
        }
    }
    Ok(cli(role(name, inner), &[inner, &matches]))
}

/// The flags of each level, the innermost first.
fn chain(matches: &ArgMatches) -> Vec<&ArgMatches> {
    let mut levels = vec![matches];
    while let Some((_, inner)) = levels[0].subcommand() {
        levels.insert(0, inner);
    }
    levels
}

const NO_MIGRATE: &str = "no-migrate";
const ACCEPT_NEWER: &str = "accept-newer-schema";
const DEMO: &str = "demo";
const PRINT_CONFIG: &str = "print-config";

/// What a process may be told about the schema that it finds.
fn schema_flags() -> [Arg; 2] {
    let flag = |name: &'static str, help| Arg::new(name).long(name).action(ArgAction::SetTrue).help(help);
    [
        flag(NO_MIGRATE, "leave the schema alone; end if it is not there: for a role that may not change it"),
        flag(ACCEPT_NEWER, "work with a schema that a newer version made: for going back to this one"),
    ]
}

/// What stands behind `open-spanner-` in the name of a program like `/usr/local/bin/open-spanner-alert-worker`.
fn name_behind_dash(program: &OsString) -> Option<&str> {
    let name = Path::new(program).file_name()?.to_str()?.strip_prefix("open-spanner-")?;
    // open-spanner-0.2.0 is a version of the whole program
    (!name.starts_with(|first: char| first.is_ascii_digit())).then_some(name)
}

fn demo_flag() -> Arg {
    Arg::new(DEMO).long(DEMO).action(ArgAction::SetTrue).help(
        "fill a workspace of its own with three weeks of usage, plans and alerts, and print how to get in",
    )
}

fn migrate_flags() -> [Arg; 6] {
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
        .value_name("DATABASE")
        .requires("revert")
        .help("what --revert cannot do without: the name of the database (of SQLite, of its file) whose data is deleted; only a backup brings it back");
    let grant = Arg::new("grant")
        .long("grant")
        .value_name("ROLE")
        .conflicts_with_all(["revert", "status"])
        .help("let this PostgreSQL role read and write the tables, but not change them, after migrating");
    let json =
        Arg::new("json").long("json").action(ArgAction::SetTrue).requires("status").help("--status as JSON");
    let distribute = Arg::new("distribute")
        .long("distribute")
        .action(ArgAction::SetTrue)
        .conflicts_with_all(["revert", "status"])
        .help("lay the tables out over the nodes of a Citus cluster, after migrating; refused while a server runs");
    [status, json, revert, sure, grant, distribute]
}

/// All of it, also for completions and manual pages.
pub fn command_line() -> Command {
    let roles = ROLES.iter().map(|(name, about)| {
        let role = with_settings(Command::new(*name).about(*about));
        match *name {
            "migrate" => role.args(migrate_flags()),
            "serve" => role.args(schema_flags()).arg(demo_flag()),
            _ => role.args(schema_flags()),
        }
    });
    let program = with_settings(Command::new("open-spanner").about(ABOUT).args(schema_flags()));
    let program = program
        .version(VERSION)
        .propagate_version(true)
        .after_help(format!("{SHORT_NOTE}\n\n{EXAMPLES}"))
        .after_long_help(format!("{NOTE}\n\n{EXAMPLES}"))
        .subcommands(roles);
    let program = commands::Command::augment_subcommands(program);
    COMMAND_SETTINGS.iter().fold(program, |program, (name, wanted)| {
        program.mut_subcommand(*name, |command| {
            let groups = TABLE.iter().filter(|group| wanted.contains(&group.title));
            command.args(groups.flat_map(|group| flags(group).map(|flag| flag.global(true))))
        })
    })
}

/// The groups of settings that each command takes flags for; variables are read by all.
const COMMAND_SETTINGS: &[(&str, &[&str])] = &[
    ("probe", &["Listeners", "Export worker", "Alert worker", "Entitlement worker", "Usage worker"]),
    ("doctor", &["Listeners", "Database", "Exports"]),
    ("admin", &["Database"]),
    ("audit", &["Database"]),
    ("keys", &["Database"]),
    ("backup", &["Database"]),
    ("restore", &["Database"]),
    ("events", &["Client commands"]),
    ("usage", &["Client commands"]),
    ("import", &["Database"]),
];

fn with_settings(command: Command) -> Command {
    let print_config = Arg::new(PRINT_CONFIG)
        .long(PRINT_CONFIG)
        .action(ArgAction::SetTrue)
        .help("show every setting, its value and where it came from, then exit");
    let command = command.version(VERSION).after_help(SHORT_NOTE).after_long_help(NOTE);
    command.arg(print_config).args(TABLE.iter().flat_map(flags))
}

fn flags(group: &'static Group) -> impl Iterator<Item = Arg> {
    group.rows.iter().map(|row| flag(row, group.title))
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
        .help_heading(heading)
        .hide_short_help(true)
        .help(help)
}

fn role(name: &str, matches: &ArgMatches) -> Role {
    match name {
        "migrate" => Role::Migrate(match matches.get_one::<u32>("revert") {
            Some(count) => MigrateAction::Revert(*count),
            None if matches.get_flag("status") => MigrateAction::Status { json: matches.get_flag("json") },
            None => MigrateAction::Up { distribute: matches.get_flag("distribute") },
        }),
        "export-worker" => Role::ExportWorker,
        "alert-worker" => Role::AlertWorker,
        "entitlement-worker" => Role::EntitlementWorker,
        "usage-worker" => Role::UsageWorker,
        _ => Role::Serve,
    }
}

/// `levels`: the flags behind the subcommand, then those before it.
fn cli(role: Role, levels: &[&ArgMatches]) -> Cli {
    let is_set =
        |flag| levels.iter().any(|matches| matches.try_get_one::<bool>(flag).ok().flatten() == Some(&true));
    let text = |name: &str| {
        levels.iter().find_map(|matches| matches.try_get_one::<String>(name).ok().flatten()).cloned()
    };
    let given = |setting: &Setting| {
        let variable = setting.flag_variable();
        text(&variable).map(|text| (variable, text))
    };
    Cli {
        role,
        command: None,
        demo: is_set(DEMO),
        migrate: !is_set(NO_MIGRATE),
        accept_newer_schema: is_set(ACCEPT_NEWER),
        grant_to: text("grant"),
        deletes_data_of: text("yes-delete-data"),
        print_config: is_set(PRINT_CONFIG),
        flags: settings::all().filter_map(given).collect(),
    }
}
