//! Tells the program which commit it is built from. Only release builds look at git: a development build would have to
//! be made anew after every commit.

#![expect(clippy::disallowed_methods, reason = "cargo speaks to build scripts through the environment")]

use std::process::Command;

const COMMIT: &str = "OPEN_SPANNER_COMMIT";

fn main() {
    println!("cargo::rerun-if-changed=build.rs");
    println!("cargo::rerun-if-env-changed={COMMIT}");
    let is_release = std::env::var("PROFILE").is_ok_and(|profile| profile == "release");
    // builds without the repository, like that of an image, are told
    let told = std::env::var(COMMIT).ok().filter(|commit| !commit.is_empty());
    let commit = match told {
        Some(commit) => commit,
        None if is_release => from_git().unwrap_or_else(|| "unknown commit".to_owned()),
        None => "development".to_owned(),
    };
    println!("cargo::rustc-env=BUILD_COMMIT={commit}");
}

/// Short hash and day of the commit.
fn from_git() -> Option<String> {
    if let Some(head) = git(&["rev-parse", "--git-path", "logs/HEAD"]) {
        println!("cargo::rerun-if-changed={head}");
    }
    git(&["log", "-1", "--format=%h %cs", "--abbrev=12"])
}

fn git(arguments: &[&str]) -> Option<String> {
    let output =
        Command::new("git").args(arguments).output().ok().filter(|output| output.status.success())?;
    let text = String::from_utf8(output.stdout).ok()?.trim().to_owned();
    (!text.is_empty()).then_some(text)
}
