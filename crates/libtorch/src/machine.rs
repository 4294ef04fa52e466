//! Checks of this machine: platform, Python, disk space.
//!
//! Each check returns a line that describes what it found, or the problem with what mends it.

use std::path::Path;
use std::process::{Command, Stdio};

use crate::Problem;

const GB: u64 = 1_000_000_000;

/// The platform that the torch package's libtorch serves.
///
/// # Errors
/// On other platforms.
pub fn platform() -> Result<String, Problem> {
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
            crate::VERSION
        ),
    ))
}

/// Python and pip, which fetch the torch package.
///
/// # Errors
/// When Python or its module pip is missing.
pub fn python() -> Result<String, Problem> {
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

/// Whether `needed` bytes are free at `folder`.
///
/// # Errors
/// When they are not.
pub fn disk(folder: &Path, needed: u64) -> Result<String, Problem> {
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
        "free some space, or set RUMINATE_CACHE to a folder on a larger disk",
    ))
}

/// The first line that a command prints, or nothing if it is missing or fails.
pub fn first_line(program: &str, args: &[&str]) -> Option<String> {
    let output = Command::new(program).args(args).stdin(Stdio::null()).stderr(Stdio::null()).output().ok()?;
    let text = String::from_utf8_lossy(&output.stdout);
    output.status.success().then(|| text.lines().next().unwrap_or_default().trim().to_string())
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
    fn too_little_disk_says_how_much_is_missing() {
        let folder = Path::new("here");
        assert_eq!(enough(folder, 5 * GB, 5 * GB).unwrap(), "5.0 GB free (5.0 GB needed)");
        let problem = enough(folder, 5 * GB - 1, 5 * GB).unwrap_err();
        assert_eq!(problem.what, "only 4.9 GB are free in here, 5.0 GB are needed");
    }
}
