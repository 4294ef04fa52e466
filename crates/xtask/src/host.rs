//! What this machine has to offer: Python, a C++ compiler, disk space.
//!
//! Each check returns a line that describes what it found, or the problem with what mends it.

use std::ffi::OsString;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use crate::problem::Problem;

const GB: u64 = 1_000_000_000;

/// The platform that the torch package's libtorch serves.
pub(crate) fn platform() -> Result<String, Problem> {
    supported(std::env::consts::OS, std::env::consts::ARCH, cfg!(target_env = "gnu"))
}

fn supported(os: &str, arch: &str, glibc: bool) -> Result<String, Problem> {
    if (os, arch, glibc) == ("linux", "x86_64", true) {
        return Ok(format!("{os} {arch}"));
    }
    let libc = if os == "linux" && !glibc { " without glibc" } else { "" };
    Err(Problem::new(
        format!(
            "there is no automatic set-up of libtorch for {os} {arch}{libc}, only for Linux x86-64 with glibc"
        ),
        format!(
            "install libtorch {} for this platform and set LIBTORCH to its folder, the one that holds lib/ and include/",
            crate::libtorch::VERSION
        ),
    ))
}

/// Python and pip, which fetch the torch package.
pub(crate) fn python() -> Result<String, Problem> {
    let Some(python) = first_line("python3", &["--version"]) else {
        return Err(Problem::new(
            "python3 was not found; its pip fetches libtorch",
            "install Python 3 with pip (on Debian and Ubuntu: apt-get install python3 python3-pip)",
        ));
    };
    // "pip 23.2.1 from /usr/lib/... (python 3.11)": the first two words are of interest.
    let Some(pip) = first_line("python3", &["-m", "pip", "--version"]) else {
        return Err(Problem::new(
            format!("{python} has no module pip, which fetches libtorch"),
            "install it (on Debian and Ubuntu: apt-get install python3-pip; elsewhere: python3 -m ensurepip --user)",
        ));
    };
    let pip: Vec<_> = pip.split_whitespace().take(2).collect();
    Ok(format!("{python}, {}", pip.join(" ")))
}

/// A C++ compiler that works.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Compiler {
    /// The command, as build scripts take it in CXX.
    pub(crate) command: String,
    /// What it says about itself.
    pub(crate) version: String,
    /// Whether build scripts would not find it by themselves: CXX has to name it.
    pub(crate) needs_cxx: bool,
}

/// The C++ compiler, which builds the bindings to libtorch.
pub(crate) fn compiler() -> Result<Compiler, Problem> {
    find_compiler(std::env::var("CXX").ok().as_deref(), |command| first_line(command, &["--version"]))
}

fn find_compiler(cxx: Option<&str>, version: impl Fn(&str) -> Option<String>) -> Result<Compiler, Problem> {
    let install = "install one (on Debian and Ubuntu: apt-get install g++), or set CXX to yours";
    if let Some(command) = cxx.filter(|cxx| !cxx.trim().is_empty()) {
        // CXX may name a wrapper with it, as in "ccache g++"; that the first word runs is what can be checked.
        let program = command.split_whitespace().next().unwrap_or(command);
        return match version(program) {
            Some(version) => Ok(Compiler { command: command.into(), version, needs_cxx: false }),
            None => Err(Problem::new(
                format!("CXX is set to '{command}', which does not run"),
                "set CXX to a C++ compiler that is installed, or unset it",
            )),
        };
    }
    ["c++", "g++", "clang++"]
        .into_iter()
        .find_map(|command| {
            let version = version(command)?;
            Some(Compiler { command: command.into(), version, needs_cxx: command != "c++" })
        })
        .ok_or_else(|| Problem::new("no C++ compiler was found; it builds the bindings to libtorch", install))
}

/// Whether `needed` bytes are free at `folder`.
pub(crate) fn disk(folder: &Path, needed: u64) -> Result<String, Problem> {
    match fs4::available_space(folder) {
        Ok(free) => enough(folder, free, needed),
        // Not every file system tells; that is no reason to stop.
        Err(error) => Ok(format!("free space unknown ({error})")),
    }
}

fn enough(folder: &Path, free: u64, needed: u64) -> Result<String, Problem> {
    // Down to a tenth of a GB for what is free, so that the message never claims the space that is missing.
    let free_gb = (free / (GB / 10)) as f64 / 10.0;
    let needed_gb = needed as f64 / GB as f64;
    if free >= needed {
        return Ok(format!("{free_gb:.1} GB free ({needed_gb:.1} GB needed)"));
    }
    Err(Problem::new(
        format!("only {free_gb:.1} GB are free in {}, {needed_gb:.1} GB are needed", folder.display()),
        "free some space, or move this checkout to a larger disk",
    ))
}

/// The first line that a command prints, or nothing if it is missing or fails.
pub(crate) fn first_line(program: &str, args: &[&str]) -> Option<String> {
    let output = Command::new(program).args(args).stdin(Stdio::null()).stderr(Stdio::null()).output().ok()?;
    let text = String::from_utf8_lossy(&output.stdout);
    output.status.success().then(|| text.lines().next().unwrap_or_default().trim().to_string())
}

/// Folders and what is present already, as the value of a variable such as `LD_LIBRARY_PATH`.
pub(crate) fn search_path(folders: &[PathBuf], present: Option<OsString>) -> OsString {
    let mut joined = OsString::new();
    let parts = folders.iter().map(|folder| folder.as_os_str().to_os_string()).chain(present);
    for part in parts.filter(|part| !part.is_empty()) {
        if !joined.is_empty() {
            joined.push(":");
        }
        joined.push(part);
    }
    joined
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn other_platforms_are_told_to_bring_their_own_libtorch() {
        assert!(supported("linux", "x86_64", true).is_ok());
        for (os, arch, glibc) in
            [("macos", "aarch64", false), ("linux", "aarch64", true), ("linux", "x86_64", false)]
        {
            let problem = supported(os, arch, glibc).unwrap_err();
            assert!(problem.fix.contains("LIBTORCH"), "{problem:?}");
        }
    }

    #[test]
    fn cxx_wins_and_must_run() {
        let version = |command: &str| (command != "icpc").then(|| format!("{command} 1"));
        let found = find_compiler(Some("ccache g++-14"), version).unwrap();
        assert_eq!((found.command.as_str(), found.needs_cxx), ("ccache g++-14", false));
        assert!(find_compiler(Some("icpc"), version).unwrap_err().what.contains("icpc"));
        assert_eq!(find_compiler(Some(""), version).unwrap().command, "c++");
    }

    #[test]
    fn a_compiler_under_another_name_is_passed_on() {
        let found = find_compiler(None, |command| (command == "clang++").then(String::new)).unwrap();
        assert_eq!((found.command.as_str(), found.needs_cxx), ("clang++", true));
        assert!(find_compiler(None, |_| None).unwrap_err().fix.contains("g++"));
    }

    #[test]
    fn too_little_disk_says_how_much_is_missing() {
        let folder = Path::new("here");
        assert_eq!(enough(folder, 5 * GB, 5 * GB).unwrap(), "5.0 GB free (5.0 GB needed)");
        let problem = enough(folder, 5 * GB - 1, 5 * GB).unwrap_err();
        assert_eq!(problem.what, "only 4.9 GB are free in here, 5.0 GB are needed");
    }

    #[test]
    fn search_paths_have_no_empty_entries() {
        let lib = [PathBuf::from("/a/lib")];
        assert_eq!(search_path(&lib, None), "/a/lib");
        assert_eq!(search_path(&lib, Some("".into())), "/a/lib");
        assert_eq!(search_path(&lib, Some("/b:/c".into())), "/a/lib:/b:/c");
    }
}
