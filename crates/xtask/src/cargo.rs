//! Running cargo with the environment that libtorch needs.

use std::ffi::OsString;
use std::os::unix::process::{CommandExt, ExitStatusExt};
use std::path::{Path, PathBuf};
use std::process::{Command, ExitStatus};

use anyhow::{Context, Result};

use ruminate_libtorch::{Build, Problem, Source};

use crate::{Cuda, host};

/// Where the loader looks for libraries.
const LOADER_PATH: &str = "LD_LIBRARY_PATH";

/// A `cargo` command that builds with libtorch, which is fetched first where it is missing.
pub(crate) fn cargo(root: &Path, cuda: Cuda) -> Result<Command> {
    let build = Build::from(cuda);
    provide(build)?;
    let compiler = host::compiler()?;
    let mut cargo = Command::new(program());
    if compiler.needs_cxx {
        cargo.env("CXX", compiler.command);
    }
    if build == Build::Cuda {
        // A folder of its own, so that CPU and CUDA builds do not undo each other.
        let target = std::env::var_os("CARGO_TARGET_DIR").map_or_else(|| root.join("target"), PathBuf::from);
        cargo.env("RUMINATE_CUDA", "1").env("CARGO_TARGET_DIR", target.join("cuda"));
        // The compiler of kernels at run time looks for its own library here.
        let library = build.installation(&ruminate_libtorch::cache()?).join("nvidia/cu13/lib");
        cargo.env(LOADER_PATH, search_path(&library, std::env::var_os(LOADER_PATH)));
    }
    Ok(cargo)
}

/// Makes sure that there is a libtorch.
pub(crate) fn provide(build: Build) -> Result<()> {
    check_cuda(build, &Source::from_env(build))?;
    if ruminate_libtorch::find(build)?.is_none() {
        // Not needed for the download, but right after it: better to hear of it before waiting.
        host::compiler()?;
        ruminate_libtorch::fetch(build, &|text| eprintln!("{text}"))?;
        eprintln!("The first build takes a few minutes: it compiles the bindings to libtorch.");
    }
    Ok(())
}

fn check_cuda(build: Build, source: &Source) -> Result<(), Problem> {
    if build == Build::Cuda && !matches!(source, Source::Cache(_)) {
        return Err(Problem::new(
            "--cuda fetches a libtorch, but LIBTORCH or LIBTORCH_USE_PYTORCH names one already",
            "leave --cuda out to use that one, or unset the variable",
        ));
    }
    Ok(())
}

/// A folder and what is present already, as the value of a variable such as `LD_LIBRARY_PATH`.
fn search_path(folder: &Path, present: Option<OsString>) -> OsString {
    let mut joined = folder.as_os_str().to_os_string();
    if let Some(present) = present.filter(|present| !present.is_empty()) {
        joined.push(":");
        joined.push(present);
    }
    joined
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
    fn search_paths_have_no_empty_entries() {
        let folder = Path::new("/a/lib");
        assert_eq!(search_path(folder, None), "/a/lib");
        assert_eq!(search_path(folder, Some("".into())), "/a/lib");
        assert_eq!(search_path(folder, Some("/b:/c".into())), "/a/lib:/b:/c");
    }

    #[test]
    fn an_own_libtorch_and_the_option_do_not_go_together() {
        let own = Source::Folder("/opt/libtorch".into());
        assert!(check_cuda(Build::Cuda, &own).unwrap_err().fix.contains("--cuda"));
        assert!(
            check_cuda(Build::Cpu, &own).is_ok()
                && check_cuda(Build::Cuda, &Source::Cache(Build::Cuda)).is_ok()
        );
    }
}
