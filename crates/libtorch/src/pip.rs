//! Installing and downloading Python packages with pip, pinned by hashes.

use std::path::Path;
use std::process::{Command, Stdio};

/// A command that installs a requirements file with hashes into `target`, for Linux on x86-64 whatever Python runs pip, with `scratch` for
/// everything temporary.
pub fn install(requirements: &Path, target: &Path, scratch: &Path) -> Command {
    let mut pip = Command::new("python3");
    pip.args(["-m", "pip", "install", "--no-deps", "--require-hashes", "--no-compile", "--target"])
        .arg(target);
    // Only the libraries in the wheel matter. One fixed Python version serves whichever Python runs pip, even one
    // that torch has no wheel for, and gives the same files on every machine.
    pip.args(["--only-binary=:all:", "--implementation=cp", "--python-version=3.12", "--abi=cp312"]);
    // pip takes only the platform tags that it is given.
    for glibc_minor in (5..=28).rev() {
        pip.arg(format!("--platform=manylinux_2_{glibc_minor}_x86_64"));
    }
    pip.args([
        "--platform=manylinux2014_x86_64",
        "--platform=manylinux2010_x86_64",
        "--platform=linux_x86_64",
    ]);
    pip.arg("--requirement").arg(requirements);
    quiet(&mut pip, scratch);
    pip
}

/// A command that downloads the wheels of a requirements file with hashes into `folder`, and installs nothing.
pub fn download(requirements: &Path, folder: &Path) -> Command {
    let mut pip = Command::new("python3");
    pip.args(["-m", "pip", "download", "--no-deps", "--require-hashes", "--only-binary=:all:", "--dest"]);
    pip.arg(folder).arg("--requirement").arg(requirements);
    quiet(&mut pip, folder);
    pip
}

/// Settings of every pip: `scratch` for temporary files, no questions, everything to stderr.
fn quiet(pip: &mut Command, scratch: &Path) {
    // On the disk that was checked for space; the usual folder is often small, and in memory.
    pip.env("TMPDIR", scratch);
    // Settings that are meant for installing into an environment do not work together with --target.
    pip.env("PIP_USER", "0").env("PIP_REQUIRE_VIRTUALENV", "0");
    pip.env("PIP_NO_INPUT", "1").env("PIP_DISABLE_PIP_VERSION_CHECK", "1");
    pip.env("PIP_ROOT_USER_ACTION", "ignore");
    pip.stdin(Stdio::null()).stdout(std::io::stderr());
}
