//! `cargo xtask doctor`: what this machine and this checkout have, and what mends what they lack.

use std::path::Path;

use anyhow::Result;
use ruminate_libtorch::machine::{self, first_line};
use ruminate_libtorch::{Build, Libtorch, Problem, Source, VERSION};

use crate::host;

/// Bytes that building the workspace takes in `target`.
const BUILD_DISK: u64 = 3_000_000_000;

/// The oldest Rust that compiles the workspace.
const MSRV: &str = env!("CARGO_PKG_RUST_VERSION");

/// What is known of one thing: fine, or not, or only worth knowing.
type Finding = Result<String, Problem>;

pub(crate) fn doctor(root: &Path, build: Build) -> Result<u8> {
    let source = Source::from_env(build);
    let found = ruminate_libtorch::find(build);
    // How much has yet to be fetched, and so what fetching needs.
    let to_fetch = matches!(found, Ok(None));
    let cache = ruminate_libtorch::cache();
    let cache = cache.as_deref().unwrap_or(root);

    let mut findings: Vec<(&str, Finding)> = vec![
        ("rustc", rustc(first_line("rustc", &["--version"]))),
        ("C++ compiler", host::compiler().map(|compiler| compiler.version)),
        ("python", python(to_fetch)),
        ("disk", machine::disk(root, BUILD_DISK)),
    ];
    if to_fetch {
        findings.push(("platform", machine::platform()));
        // The cache may not be there yet; the checkout is more likely beside it than anywhere else.
        let folder = cache.ancestors().find(|folder| folder.exists()).unwrap_or(root);
        findings.push(("cache", machine::disk(folder, build.peak_disk())));
    }
    findings.push(("LIBTORCH", Ok(origin(&source))));
    findings.push(("libtorch", found.and_then(|libtorch| describe(libtorch, build))));

    for (name, finding) in &findings {
        print!("{}", line(name, finding));
    }
    for note in notes(&source) {
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

fn python(to_fetch: bool) -> Finding {
    match machine::python() {
        Err(_) if !to_fetch => Ok("not needed: libtorch is there".into()),
        finding => finding,
    }
}

fn origin(source: &Source) -> String {
    match source {
        Source::Cache(_) => "not set by you: the cache is used".into(),
        Source::Folder(folder) => format!("set to your own: {}", folder.display()),
        Source::Python => "LIBTORCH_USE_PYTORCH is set: the PyTorch of your Python is used".into(),
    }
}

fn describe(libtorch: Option<Libtorch>, build: Build) -> Finding {
    let Some(libtorch) = libtorch else {
        let option = if build == Build::Cuda { " --cuda" } else { "" };
        return Err(Problem::new(
            format!("{VERSION} ({} build) is not in the cache", build.name()),
            format!("cargo xtask setup{option} ({})", build.size()),
        ));
    };
    let kind = if libtorch.has_cuda() { Build::Cuda } else { Build::Cpu }.name();
    let version = match &libtorch.version {
        Some(version) => version.clone(),
        None => format!("of unknown version ({VERSION} is needed)"),
    };
    Ok(format!("{version}, {kind} build, in {}", libtorch.folder.display()))
}

/// What is not wrong, but explains surprises.
fn notes(source: &Source) -> Vec<&'static str> {
    let mut notes = vec!["what a built program finds on this machine, it tells itself: crystal doctor"];
    if *source == Source::Cache(Build::Cpu) && Path::new("/proc/driver/nvidia/version").exists() {
        notes.push("this machine has an NVIDIA driver: the commands use its GPU with --cuda");
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
    fn what_is_not_there_says_which_command_gets_it() {
        let problem = describe(None, Build::Cuda).unwrap_err();
        assert!(problem.fix.starts_with("cargo xtask setup --cuda"));
        let own = Libtorch { folder: "/opt".into(), lib: "/opt/lib".into(), include: vec![], version: None };
        assert!(describe(Some(own), Build::Cpu).unwrap().contains("unknown version"));
    }
}
