//! The commands that run something built from this workspace.

use std::ffi::OsString;
use std::fs;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result};
use clap::Args;

use ruminate_libtorch::{Build, Problem, Source};

use crate::cargo::{cargo, hand_over, provide};
use crate::{Cuda, levels};

/// What to demonstrate.
#[derive(Debug, Args)]
pub(crate) struct Demo {
    /// The system: the name of a folder in examples/
    #[arg(default_value = "crystal")]
    system: String,
    /// Print the result as one line of JSON, the last line on stdout
    #[arg(long)]
    json: bool,
    #[command(flatten)]
    cuda: Cuda,
    /// More arguments for the system's own `demo` command
    #[arg(last = true)]
    extra: Vec<OsString>,
}

/// Which tests to run.
#[derive(Debug, Args)]
pub(crate) struct Test {
    #[command(flatten)]
    cuda: Cuda,
    /// Arguments for `cargo test`, as in `-p ruminate-models attention`
    #[arg(allow_hyphen_values = true, value_name = "CARGO_ARGS")]
    cargo: Vec<OsString>,
    /// Arguments for the test programs, as in `-- --nocapture`
    #[arg(last = true, value_name = "TEST_ARGS")]
    programs: Vec<OsString>,
}

/// Which vectors to check.
#[derive(Debug, Args)]
pub(crate) struct Golden {
    /// A folder with golden vectors, by topic; may be repeated [default: the project's own]
    #[arg(long, value_name = "DIR")]
    root: Vec<PathBuf>,
    /// Check this topic only; may be repeated [default: all]
    #[arg(long, value_name = "NAME")]
    topic: Vec<String>,
    #[command(flatten)]
    cuda: Cuda,
}

pub(crate) fn setup(build: Build) -> Result<u8> {
    provide(build)?;
    match Source::from_env(build) {
        Source::Cache(build) => {
            let folder = build.installation(&ruminate_libtorch::cache()?);
            eprintln!("libtorch ({} build) is in {}.", build.name(), folder.display());
            if build == Build::Cuda {
                eprintln!("Plain cargo uses the CPU build, unless RUMINATE_CUDA=1 is set.");
            }
        }
        Source::Folder(folder) => eprintln!("LIBTORCH is set: using {}.", folder.display()),
        Source::Python => eprintln!("LIBTORCH_USE_PYTORCH is set: using the PyTorch of your Python."),
    }
    Ok(0)
}

pub(crate) fn demo(root: &Path, args: &Demo) -> Result<u8> {
    let system = find_system(&root.join("examples"), &args.system)?;
    let mut cargo = cargo(root, args.cuda)?;
    cargo.args(["run", "--release", "--bin", &args.system, "--manifest-path"]).arg(system);
    cargo.args(["--", "demo"]).args(args.json.then_some("--json")).args(&args.extra);
    hand_over(cargo)
}

pub(crate) fn test(root: &Path, args: &Test) -> Result<u8> {
    // A choice of tests is somebody's work on them; the whole includes what runs on lesser processors.
    if args.cargo.is_empty() && args.programs.is_empty() {
        levels::test_lesser(root, args.cuda)?;
    }
    let mut cargo = cargo(root, args.cuda)?;
    // Tests run side by side, and threads of libtorch that wait by spinning would take the cores from one another.
    if std::env::var_os("OMP_WAIT_POLICY").is_none() {
        cargo.env("OMP_WAIT_POLICY", "passive");
    }
    cargo.args(test_arguments(args));
    hand_over(cargo)
}

/// Everything, to the end, unless the arguments choose something else.
fn test_arguments(args: &Test) -> Vec<OsString> {
    let given = |long: &str, short: &str| {
        args.cargo.iter().filter_map(|arg| arg.to_str()).any(|arg| {
            arg == long
                || arg.starts_with(&format!("{long}="))
                || !short.is_empty() && arg.starts_with(short) && !arg.starts_with("--")
        })
    };
    let mut all: Vec<OsString> = vec!["test".into(), "--release".into()];
    if !given("--package", "-p") && !given("--workspace", "") {
        all.push("--workspace".into());
    }
    if !given("--no-fail-fast", "") {
        all.push("--no-fail-fast".into());
    }
    all.extend(args.cargo.iter().cloned());
    if !args.programs.is_empty() {
        all.push("--".into());
        all.extend(args.programs.iter().cloned());
    }
    all
}

pub(crate) fn golden(root: &Path, args: &Golden) -> Result<u8> {
    let mut cargo = cargo(root, args.cuda)?;
    cargo.args(["run", "--release", "--quiet", "--package", "ruminate-conformance", "--bin", "golden", "--"]);
    for folder in &args.root {
        cargo.arg("--root").arg(folder);
    }
    for topic in &args.topic {
        cargo.arg("--topic").arg(topic);
    }
    hand_over(cargo)
}

/// The manifest of a system in `examples`.
fn find_system(examples: &Path, name: &str) -> Result<PathBuf> {
    let manifest = examples.join(name).join("Cargo.toml");
    let systems = systems(examples)?;
    if systems.iter().any(|system| system == name) {
        return Ok(manifest);
    }
    Err(Problem::new(
        format!("there is no system '{name}'"),
        format!("choose one of these: {}", systems.join(", ")),
    )
    .into())
}

/// The systems in `examples`, sorted by name.
fn systems(examples: &Path) -> Result<Vec<String>> {
    let entries = fs::read_dir(examples).with_context(|| format!("reading {}", examples.display()))?;
    let mut systems: Vec<_> = entries
        .flatten()
        .filter(|entry| entry.path().join("Cargo.toml").is_file())
        .filter_map(|entry| entry.file_name().into_string().ok())
        .collect();
    systems.sort();
    Ok(systems)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn arguments(cargo: &[&str], programs: &[&str]) -> Vec<OsString> {
        let owned = |args: &[&str]| args.iter().map(OsString::from).collect();
        test_arguments(&Test { cuda: Cuda { cuda: false }, cargo: owned(cargo), programs: owned(programs) })
    }

    #[test]
    fn all_tests_run_by_default() {
        assert_eq!(arguments(&[], &[]), ["test", "--release", "--workspace", "--no-fail-fast"]);
    }

    #[test]
    fn arguments_may_choose_packages_and_tests() {
        let chosen = arguments(&["-p", "ruminate-models", "t5"], &["--nocapture"]);
        let expected =
            ["test", "--release", "--no-fail-fast", "-p", "ruminate-models", "t5", "--", "--nocapture"];
        assert_eq!(chosen, expected);
        assert!(!arguments(&["--package=xtask"], &[]).contains(&"--workspace".into()));
        assert!(arguments(&["--profile", "release"], &[]).contains(&"--workspace".into()));
    }

    #[test]
    fn an_unknown_system_is_told_which_exist() {
        let examples = tempfile::tempdir().unwrap();
        for name in ["rise", "crystal", "notes"] {
            fs::create_dir(examples.path().join(name)).unwrap();
        }
        for name in ["rise", "crystal"] {
            fs::write(examples.path().join(name).join("Cargo.toml"), "").unwrap();
        }
        assert!(find_system(examples.path(), "rise").unwrap().ends_with("rise/Cargo.toml"));
        for name in ["notes", "quartz", "../examples/rise", ""] {
            let error = find_system(examples.path(), name).unwrap_err();
            let problem = error.downcast_ref::<Problem>().unwrap();
            assert_eq!(problem.fix, "choose one of these: crystal, rise", "{name}");
        }
    }
}
