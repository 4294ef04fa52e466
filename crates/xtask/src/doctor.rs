//! `cargo xtask doctor`: what this machine and this checkout have, and what mends what they lack.

use std::path::Path;

use anyhow::Result;

use crate::host;
use crate::libtorch::{self, FOLDER, Flavour, Libtorch};
use crate::problem::Problem;
use crate::provision::{BUILD_DISK, check_own, no_pytorch};

/// The oldest Rust that compiles the workspace.
const MSRV: &str = env!("CARGO_PKG_RUST_VERSION");

/// What is known of one thing: fine, or not, or only worth knowing.
type Finding = Result<String, Problem>;

pub(crate) fn doctor(root: &Path, wanted: Flavour) -> Result<u8> {
    let selected = Libtorch::select(root, wanted);
    // How much has yet to be fetched, and so what fetching needs.
    let to_fetch = match &selected {
        Ok(Libtorch::Provisioned(flavour)) if !libtorch::installed(&root.join(FOLDER), *flavour) => {
            Some(*flavour)
        }
        _ => None,
    };

    let mut findings: Vec<(&str, Finding)> = vec![
        ("rustc", rustc(host::first_line("rustc", &["--version"]))),
        ("C++ compiler", host::compiler().map(|compiler| compiler.version)),
        ("python", python(to_fetch)),
        ("disk", host::disk(root, BUILD_DISK + to_fetch.map_or(0, Flavour::peak_disk))),
    ];
    if to_fetch.is_some() {
        findings.push(("platform", host::platform()));
    }
    findings.push(("LIBTORCH", selected.clone().map(|libtorch| origin(&libtorch))));
    if let Ok(libtorch) = &selected {
        findings.push(("libtorch", describe(root, libtorch)));
    }

    for (name, finding) in &findings {
        print!("{}", line(name, finding));
    }
    for note in notes(&selected) {
        println!("note     {note}");
    }
    Ok(u8::from(findings.iter().any(|(_, finding)| finding.is_err())))
}

fn line(name: &str, finding: &Finding) -> String {
    match finding {
        Ok(found) => format!("ok       {name:<14}{found}\n"),
        Err(problem) => format!("missing  {name:<14}{}\n{:23}mend it: {}\n", problem.what, "", problem.fix),
    }
}

fn rustc(version: Option<String>) -> Finding {
    let version = version.unwrap_or_else(|| "no rustc".into());
    let enough = numbers(&version).is_some_and(|found| Some(found) >= numbers(MSRV));
    if enough {
        return Ok(version);
    }
    Err(Problem::new(format!("{version}; {MSRV} or newer is needed"), "rustup update stable"))
}

/// Major and minor version: the first two numbers joined by a dot.
fn numbers(text: &str) -> Option<(u32, u32)> {
    text.split_whitespace().find_map(|word| {
        let mut parts = word.split('.');
        Some((parts.next()?.parse().ok()?, parts.next()?.parse().ok()?))
    })
}

fn python(to_fetch: Option<Flavour>) -> Finding {
    match (host::python(), to_fetch) {
        (Err(_), None) => Ok("not needed: libtorch is there".into()),
        (finding, _) => finding,
    }
}

fn origin(libtorch: &Libtorch) -> String {
    match libtorch {
        Libtorch::Provisioned(_) => "not set by you: this checkout's own libtorch is used".into(),
        Libtorch::Own(folder) => format!("set to your own: {}", folder.display()),
        Libtorch::Python => "LIBTORCH_USE_PYTORCH is set: the PyTorch of your Python is used".into(),
    }
}

fn describe(root: &Path, libtorch: &Libtorch) -> Finding {
    let folder = libtorch.folder(root).ok_or_else(no_pytorch)?;
    match libtorch {
        Libtorch::Provisioned(flavour) => {
            if !libtorch::installed(&root.join(FOLDER), *flavour) {
                let option = if *flavour == Flavour::Cuda { " --cuda" } else { "" };
                return Err(Problem::new(
                    format!("{} ({} build) is not set up", libtorch::VERSION, flavour.name()),
                    format!("cargo xtask setup{option} ({})", flavour.size()),
                ));
            }
        }
        Libtorch::Own(folder) => check_own(folder)?,
        Libtorch::Python => {}
    }
    let Some(version) = libtorch::version_in(&folder) else {
        return Ok(format!("of unknown version in {} ({} is needed)", folder.display(), libtorch::VERSION));
    };
    if !libtorch::fits(&version) {
        return Err(Problem::new(
            format!("{version} in {}, but the bindings are made for {}", folder.display(), libtorch::VERSION),
            "point LIBTORCH at that version, or unset it and run cargo xtask setup",
        ));
    }
    let cuda = folder.join("lib/libtorch_cuda.so").exists();
    let build = if cuda { Flavour::Cuda } else { Flavour::Cpu }.name();
    Ok(format!("{version}, {build} build, in {}", folder.display()))
}

/// What is not wrong, but explains surprises.
fn notes(selected: &Result<Libtorch, Problem>) -> Vec<&'static str> {
    let mut notes = vec!["what a built program finds on this machine, it tells itself: crystal doctor"];
    let on_cpu = matches!(selected, Ok(Libtorch::Provisioned(Flavour::Cpu)));
    if on_cpu && Path::new("/proc/driver/nvidia/version").exists() {
        notes.push("this machine has an NVIDIA driver: the commands use its GPU with --cuda");
    }
    if std::env::var_os("RUSTFLAGS").is_some_and(|flags| !flags.is_empty()) {
        notes.push(
            "RUSTFLAGS replaces the flags by which built programs find libtorch: start them through cargo xtask, \
             or after eval \"$(cargo xtask env)\"",
        );
    }
    notes
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_old_rustc_is_found_out() {
        assert!(rustc(Some("rustc 1.95.0 (59807616e 2026-04-14)".into())).is_ok());
        assert!(rustc(Some(format!("rustc {MSRV}.0"))).is_ok());
        assert!(rustc(Some("rustc 1.9.0".into())).unwrap_err().what.contains(MSRV));
        assert!(rustc(None).is_err());
    }

    #[test]
    fn each_problem_comes_with_its_remedy() {
        let text = line("disk", &Err(Problem::new("full", "empty it")));
        assert_eq!(text, "missing  disk          full\n                       mend it: empty it\n");
        assert_eq!(line("disk", &Ok("fine".into())), "ok       disk          fine\n");
    }

    #[test]
    fn an_own_libtorch_of_another_version_is_a_problem() {
        let folder = tempfile::tempdir().unwrap();
        let own = Libtorch::Own(folder.path().to_path_buf());
        assert!(describe(folder.path(), &own).unwrap_err().what.contains("LIBTORCH"));
        std::fs::create_dir(folder.path().join("lib")).unwrap();
        assert!(describe(folder.path(), &own).unwrap().contains("unknown version"));
        std::fs::write(folder.path().join("build-version"), "2.9.1+cpu").unwrap();
        assert!(describe(folder.path(), &own).unwrap_err().what.starts_with("2.9.1+cpu"));
        std::fs::write(folder.path().join("build-version"), "2.11.0+cpu").unwrap();
        assert!(describe(folder.path(), &own).unwrap().starts_with("2.11.0+cpu, CPU build"));
    }

    #[test]
    fn what_is_not_set_up_says_which_command_does_it() {
        let root = tempfile::tempdir().unwrap();
        let problem = describe(root.path(), &Libtorch::Provisioned(Flavour::Cuda)).unwrap_err();
        assert!(problem.fix.starts_with("cargo xtask setup --cuda"));
    }
}
