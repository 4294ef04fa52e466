//! `cargo xtask lint`: the checks that need no test to run.

use std::path::Path;
use std::process::Command;

use anyhow::Result;
use ruminate_libtorch::machine::first_line;

use crate::Cuda;
use crate::cargo::{cargo, program, run};
use crate::docs::links_are_intact;

/// Words that the spell checker does not know, and files that it need not read.
const SPELLING: &str = "crates/xtask/typos.toml";

pub(crate) fn lint(root: &Path, cuda: Cuda) -> Result<u8> {
    let plain = |args: &[&str]| {
        let mut command = Command::new(program());
        command.args(args);
        command
    };

    let mut clippy = cargo(root, cuda)?;
    // In the profile of everything else, which shares the compiled bindings.
    clippy.args(["clippy", "--release", "--workspace", "--all-targets", "--", "--deny", "warnings"]);

    let mut docs = cargo(root, cuda)?;
    docs.args(["doc", "--release", "--no-deps", "--workspace"]);
    docs.env("RUSTDOCFLAGS", deny_warnings(std::env::var("RUSTDOCFLAGS").ok()));

    let mut typos = Command::new("typos");
    typos.args(["--config", SPELLING]);

    let steps = [
        ("formatting", None, plain(&["fmt", "--all", "--check"])),
        ("clippy", None, clippy),
        ("documentation", None, docs),
        ("dependencies", Some("cargo-deny"), plain(&["deny", "check", "bans", "licenses", "sources"])),
        // Apart from the others: it fetches the list of known vulnerabilities, so it fails without a network.
        ("advisories", Some("cargo-deny"), plain(&["deny", "check", "advisories"])),
        ("spelling", Some("typos"), typos),
    ];

    let mut outcomes = Vec::new();
    for (name, tool, mut command) in steps {
        let outcome = match tool {
            Some(tool) if first_line(tool, &["--version"]).is_none() => Outcome::Skipped(tool),
            _ => {
                eprintln!("--- {name}");
                match run(command.current_dir(root))? {
                    0 => Outcome::Passed,
                    _ => Outcome::Failed,
                }
            }
        };
        outcomes.push((name, outcome));
    }
    eprintln!("--- links");
    outcomes.push(("links", if links_are_intact(root)? { Outcome::Passed } else { Outcome::Failed }));

    eprintln!();
    outcomes.iter().for_each(|(name, outcome)| eprintln!("{name:<14}{}", outcome.describe()));
    Ok(u8::from(outcomes.iter().any(|(_, outcome)| *outcome == Outcome::Failed)))
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Outcome {
    Passed,
    Failed,
    /// The named tool is not installed.
    Skipped(&'static str),
}

impl Outcome {
    fn describe(self) -> String {
        match self {
            Self::Passed => "ok".into(),
            Self::Failed => "FAILED".into(),
            Self::Skipped(tool) => {
                let package = if tool == "typos" { "typos-cli" } else { tool };
                format!("skipped, not installed: cargo install --locked {package}")
            }
        }
    }
}

fn deny_warnings(present: Option<String>) -> String {
    [present.unwrap_or_default().as_str(), "--deny warnings"].join(" ").trim_start().to_string()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn flags_for_the_documentation_are_kept() {
        assert_eq!(deny_warnings(None), "--deny warnings");
        assert_eq!(deny_warnings(Some("--cfg docsrs".into())), "--cfg docsrs --deny warnings");
    }

    #[test]
    fn a_skipped_step_says_how_to_have_it() {
        assert!(Outcome::Skipped("typos").describe().ends_with("typos-cli"));
        assert!(Outcome::Skipped("cargo-deny").describe().ends_with("cargo-deny"));
    }
}
