//! `cargo xtask lint`: the checks that need no test to run.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result};
use ruminate_libtorch::machine::first_line;
use ruminate_libtorch::{Problem, pip};

use crate::cargo::{cargo, program, run};
use crate::docs::links_are_intact;
use crate::{Cuda, features};

/// The spell checker as a Python package; with a hash, pip takes nothing else.
const TYPOS: &str =
    "typos==1.52.0 --hash=sha256:418fd85f7fc11dec14e5482e747f6e916af56da96207cde0cdd69540a4b389f6\n";
/// Below the root: tools that the checks fetch.
const TOOLS: &str = "target/tools";

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

    let typos = Command::new(typos(root)?);

    let mut outcomes = Vec::new();
    eprintln!("--- features");
    outcomes.push(("features", if features::check(root)? { Outcome::Passed } else { Outcome::Failed }));
    let steps = [
        ("formatting", None, plain(&["fmt", "--all", "--check"])),
        ("clippy", None, clippy),
        ("documentation", None, docs),
        ("dependencies", Some("cargo-deny"), plain(&["deny", "check", "bans", "licenses", "sources"])),
        // Apart from the others: it fetches the list of known vulnerabilities, so it fails without a network.
        ("advisories", Some("cargo-deny"), plain(&["deny", "check", "advisories"])),
        ("spelling", None, typos),
    ];

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
                format!("skipped, not installed: cargo install --locked {tool}")
            }
        }
    }
}

/// The spell checker: an installed one, or a pinned one that is fetched once.
fn typos(root: &Path) -> Result<PathBuf> {
    if first_line("typos", &["--version"]).is_some() {
        return Ok("typos".into());
    }
    let folder = root.join(TOOLS).join("typos");
    let (program, stamp) = (folder.join("bin/typos"), folder.join("requirements.txt"));
    if fs::read_to_string(&stamp).is_ok_and(|installed| installed == TYPOS) && program.is_file() {
        return Ok(program);
    }
    if folder.exists() {
        fs::remove_dir_all(&folder).with_context(|| format!("removing {}", folder.display()))?;
    }
    fs::create_dir_all(&folder).with_context(|| format!("creating {}", folder.display()))?;
    let requirements = folder.join("wanted.txt");
    fs::write(&requirements, TYPOS).with_context(|| format!("writing {}", requirements.display()))?;
    if run(&mut pip::install(&requirements, &folder, &folder))? != 0 {
        let fix = "cargo install --locked typos-cli, or run this again when this machine is online";
        return Err(Problem::new("pip did not fetch the spell checker typos", fix).into());
    }
    fs::rename(&requirements, &stamp).with_context(|| format!("writing {}", stamp.display()))?;
    Ok(program)
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
        assert!(Outcome::Skipped("cargo-deny").describe().ends_with("cargo-deny"));
    }
}
