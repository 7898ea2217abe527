//! What the program says about itself: completions and manual pages, made from the command line's description.

use crate::cli::Outcome;
use crate::config::command_line;
use crate::config::commands::Shell;
use crate::error::{Error, Result};
use crate::output::print;

pub fn completions(shell: Shell) -> Result<Outcome> {
    let mut text = Vec::new();
    clap_complete::generate(shell, &mut command_line(), "open-spanner", &mut text);
    print(&String::from_utf8_lossy(&text));
    Ok(Outcome::Done)
}

/// The page of the program, or of one of its commands.
pub fn man(name: Option<&str>) -> Result<Outcome> {
    let mut program = command_line();
    program.build();
    let command = match name {
        None => program,
        Some(name) => {
            let found = program.find_subcommand(name).cloned();
            let found = found.ok_or_else(|| Error::invalid(format_args!("there is no command {name:?}")))?;
            found.display_name(format!("open-spanner-{name}"))
        }
    };
    let mut text = Vec::new();
    clap_mangen::Man::new(command).render(&mut text).map_err(Error::internal)?;
    print(&String::from_utf8_lossy(&text));
    Ok(Outcome::Done)
}
