//! Installing packages into a folder with pip, and fetching them.

use std::fs;
use std::path::Path;
use std::process::{Command, Stdio};

use anyhow::{Context, Result};

use crate::libtorch::{self, Flavour};
use crate::problem::Problem;

/// Installs the packages of a libtorch into `target`, with `scratch` for everything temporary.
pub(crate) fn install(target: &Path, scratch: &Path, flavour: Flavour) -> Result<()> {
    fs::create_dir_all(scratch).with_context(|| format!("creating {}", scratch.display()))?;
    let status = command(target, scratch, flavour).status().context("starting python3")?;
    if status.success() {
        return Ok(());
    }
    let what = format!("pip did not install libtorch ({status}); what it said is above");
    let fix = format!(
        "if this machine is offline, run this again when it is online; or set LIBTORCH to a libtorch {} of your own \
         (the folder that holds lib/ and include/)",
        libtorch::VERSION
    );
    Err(Problem::new(what, fix).into())
}

fn command(target: &Path, scratch: &Path, flavour: Flavour) -> Command {
    let mut pip = Command::new("python3");
    pip.args(["-m", "pip", "install", "--no-compile", "--target"]).arg(target);
    // Only the libraries in the wheel matter. One fixed Python version serves whichever Python runs pip, even one
    // that torch has no wheel for, and gives the same files on every machine.
    pip.args(["--only-binary=:all:", "--implementation=cp", "--python-version=3.12", "--abi=cp312"]);
    for glibc_minor in (17..=28).rev() {
        pip.arg(format!("--platform=manylinux_2_{glibc_minor}_x86_64"));
    }
    pip.args(["--platform=manylinux2014_x86_64", "--platform=linux_x86_64"]);
    if !flavour.with_dependencies() {
        pip.arg("--no-deps");
    }
    pip.args(flavour.packages());
    quiet(&mut pip, scratch);
    pip
}

/// A command that downloads the wheels of a requirements file with hashes into `folder`, and installs nothing.
pub(crate) fn download(requirements: &Path, folder: &Path) -> Command {
    let mut pip = Command::new("python3");
    pip.args(["-m", "pip", "download", "--no-deps", "--require-hashes", "--only-binary=:all:", "--dest"]);
    pip.arg(folder).arg("--requirement").arg(requirements);
    quiet(&mut pip, folder);
    pip
}

/// Settings of every pip: `scratch` for temporary files, no questions, everything to stderr.
fn quiet(pip: &mut Command, scratch: &Path) {
    // On the disk of the checkout, which was checked for space; the usual folder is often small, and in memory.
    pip.env("TMPDIR", scratch);
    // Settings that are meant for installing into an environment do not work together with --target.
    pip.env("PIP_USER", "0").env("PIP_REQUIRE_VIRTUALENV", "0");
    pip.env("PIP_NO_INPUT", "1").env("PIP_DISABLE_PIP_VERSION_CHECK", "1");
    pip.env("PIP_ROOT_USER_ACTION", "ignore");
    pip.stdin(Stdio::null()).stdout(std::io::stderr());
}

#[cfg(test)]
mod tests {
    use super::*;

    fn arguments(flavour: Flavour) -> Vec<String> {
        let command = command(Path::new("site"), Path::new("tmp"), flavour);
        command.get_args().map(|arg| arg.to_string_lossy().into_owned()).collect()
    }

    #[test]
    fn only_the_cuda_build_installs_dependencies() {
        let (cpu, cuda) = (arguments(Flavour::Cpu), arguments(Flavour::Cuda));
        assert!(cpu.contains(&"--no-deps".into()) && !cuda.contains(&"--no-deps".into()));
        assert!(Flavour::Cpu.packages().iter().all(|package| cpu.iter().any(|arg| arg == package)));
        assert!(Flavour::Cuda.packages().iter().all(|package| cuda.iter().any(|arg| arg == package)));
    }
}
