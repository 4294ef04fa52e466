//! Running cargo with the environment that libtorch needs.

use std::ffi::OsStr;
use std::fs;
use std::os::unix::process::{CommandExt, ExitStatusExt};
use std::path::{Path, PathBuf};
use std::process::{Command, ExitStatus};

use anyhow::{Context, Result};

use crate::host;
use crate::libtorch::{LOADER_PATH, Libtorch};

/// A `cargo` command that builds with, and runs with, the given libtorch.
pub(crate) fn cargo(root: &Path, libtorch: &Libtorch) -> Result<Command> {
    let mut cargo = Command::new(program());
    for (name, value) in libtorch.build_environment(root) {
        match value {
            Some(value) => cargo.env(name, value),
            None => cargo.env_remove(name),
        };
    }
    let folders = libtorch.loader_folders(root);
    cargo.env(LOADER_PATH, host::search_path(&folders, std::env::var_os(LOADER_PATH)));
    let compiler = host::compiler()?;
    if compiler.needs_cxx {
        cargo.env("CXX", compiler.command);
    }
    Ok(cargo)
}

/// Says that a build will be long, if it will.
pub(crate) fn announce_first_build(root: &Path, cargo: &Command) {
    let target = cargo
        .get_envs()
        .find_map(|(name, value)| value.filter(|_| name == OsStr::new("CARGO_TARGET_DIR")))
        .map(PathBuf::from)
        .or_else(|| std::env::var_os("CARGO_TARGET_DIR").map(PathBuf::from))
        .unwrap_or_else(|| root.join("target"));
    if !has_bindings(&target) {
        eprintln!("The first build takes a few minutes: it compiles the bindings to libtorch.");
    }
}

/// Whether the bindings, by far the longest part of a build, have been compiled in a target folder.
fn has_bindings(target: &Path) -> bool {
    let Ok(builds) = fs::read_dir(target.join("release/build")) else { return false };
    builds.flatten().any(|build| {
        build.file_name().to_string_lossy().starts_with("torch-sys-") && build.path().join("output").exists()
    })
}

/// Cargo itself says which cargo it is; it may be a pinned one.
pub(crate) fn program() -> std::ffi::OsString {
    std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into())
}

/// Becomes `command`: signals, terminal and exit status are from then on its own. Returns only on failure.
pub(crate) fn hand_over(mut command: Command) -> Result<u8> {
    let error = command.exec();
    Err(error).with_context(|| format!("starting {}", command.get_program().to_string_lossy()))
}

/// Runs a command to its end and returns its exit status.
pub(crate) fn run(command: &mut Command) -> Result<u8> {
    let status =
        command.status().with_context(|| format!("starting {}", command.get_program().to_string_lossy()))?;
    Ok(exit_code(status))
}

/// The exit status as a shell reports it.
fn exit_code(status: ExitStatus) -> u8 {
    let code = status.code().or_else(|| status.signal().map(|signal| 128 + signal));
    code.and_then(|code| u8::try_from(code).ok()).unwrap_or(1)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn exit_codes_are_passed_on() {
        let shell = |script: &str| run(Command::new("sh").args(["-c", script])).unwrap();
        assert_eq!([shell("exit 0"), shell("exit 101"), shell("kill -9 $$")], [0, 101, 137]);
    }

    #[test]
    fn a_first_build_is_recognised() {
        let target = tempfile::tempdir().unwrap();
        let build = target.path().join("release/build/torch-sys-0123456789abcdef");
        assert!(!has_bindings(target.path()));
        fs::create_dir_all(&build).unwrap();
        assert!(!has_bindings(target.path()), "begun, not finished");
        fs::write(build.join("output"), "").unwrap();
        assert!(has_bindings(target.path()));
    }
}
