//! The Python environment that the comparison runs in.

use std::ffi::OsString;
use std::fs;
use std::path::Path;
use std::process::{Command, Stdio};

use anyhow::{Context, Result};
use ruminate_libtorch::Problem;

/// Below `target`: what is built from the requirements, and can be thrown away.
const FOLDER: &str = "target/bench/python";
const REQUIREMENTS: &str = "benches/python/requirements.txt";
/// The requirements that are installed, written last: without it the environment is incomplete or stale.
const STAMP: &str = "ruminate.stamp";

/// The environment's interpreter; the environment is made, or made anew, unless it holds exactly the requirements.
pub(super) fn ensure(root: &Path) -> Result<OsString> {
    let (folder, requirements) = (root.join(FOLDER), root.join(REQUIREMENTS));
    let wanted =
        fs::read_to_string(&requirements).with_context(|| format!("reading {}", requirements.display()))?;
    let python = folder.join("bin/python");
    if fs::read_to_string(folder.join(STAMP)).is_ok_and(|installed| installed == wanted) {
        return Ok(python.into());
    }
    eprintln!("Making a Python environment in {FOLDER}; it downloads about 2.5 GB.");
    step(Command::new("python3").args(["-m", "venv", "--clear"]).arg(&folder))?;
    step(
        Command::new(&python)
            .args(["-m", "pip", "install", "--disable-pip-version-check", "--no-input", "--requirement"])
            .arg(&requirements),
    )?;
    fs::write(folder.join(STAMP), wanted).context("recording what was installed")?;
    Ok(python.into())
}

fn step(command: &mut Command) -> Result<()> {
    command.stdin(Stdio::null()).stdout(std::io::stderr());
    let program = command.get_program().to_string_lossy().into_owned();
    let status = command.status().with_context(|| format!("starting {program}"))?;
    if status.success() {
        return Ok(());
    }
    Err(Problem::new(
        format!("the Python environment could not be made ({program}: {status}); what it said is above"),
        format!(
            "make one of your own with the packages of {REQUIREMENTS}, and name its interpreter with --python"
        ),
    )
    .into())
}
