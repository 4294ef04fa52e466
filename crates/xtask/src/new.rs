//! `cargo xtask new`: a crate outside of this workspace that fine-tunes a model.

use std::fs;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result};
use clap::Args;
use ruminate_libtorch::Problem;

/// Where to put the crate.
#[derive(Debug, Args)]
pub(crate) struct New {
    /// A folder that is not there yet; its name is the crate's
    dir: PathBuf,
}

/// The files of the crate, without its manifest.
const FILES: [(&str, &str); 3] = [
    ("src/main.rs", include_str!("../template/src/main.rs")),
    ("data/train.jsonl", include_str!("../template/data/train.jsonl")),
    (".gitignore", "/target\n/models\n/runs\n"),
];

pub(crate) fn new(root: &Path, args: &New) -> Result<u8> {
    let name = crate_name(&args.dir)?;
    // Nothing that is there is overwritten.
    if args.dir.exists() {
        let what = format!("{} is there already", args.dir.display());
        return Err(Problem::new(what, "give the name of a new folder").into());
    }
    for (file, text) in FILES {
        write(&args.dir.join(file), text)?;
    }
    write(&args.dir.join("Cargo.toml"), &manifest(root, &name)?)?;
    // The versions that this checkout was tested with.
    fs::copy(root.join("Cargo.lock"), args.dir.join("Cargo.lock")).context("copying Cargo.lock")?;
    println!("{}", args.dir.display());
    eprintln!("Try it:  cd {} && cargo run --release -- --help", args.dir.display());
    eprintln!("A small model to begin with:  cargo xtask model smollm2  (in this checkout)");
    Ok(0)
}

fn write(path: &Path, text: &str) -> Result<()> {
    if let Some(folder) = path.parent() {
        fs::create_dir_all(folder).with_context(|| format!("creating {}", folder.display()))?;
    }
    fs::write(path, text).with_context(|| format!("writing {}", path.display()))
}

/// The crate's name, as cargo takes it.
fn crate_name(dir: &Path) -> Result<String, Problem> {
    let name = dir.file_name().map(|name| name.to_string_lossy().into_owned()).unwrap_or_default();
    let fits = name.starts_with(|c: char| c.is_ascii_alphabetic())
        && name.chars().all(|c| c.is_ascii_alphanumeric() || c == '-' || c == '_');
    match fits {
        true => Ok(name),
        false => Err(Problem::new(
            format!("'{name}' is no name for a crate"),
            "begin with a letter, and use letters, digits, - and _ only",
        )),
    }
}

fn manifest(root: &Path, name: &str) -> Result<String> {
    let workspace = fs::read_to_string(root.join("Cargo.toml")).context("reading Cargo.toml")?;
    let clap = workspace.lines().find(|line| line.starts_with("clap = ")).unwrap_or("clap = \"4\"");
    // A TOML string with backslashes and quotes as they are.
    let facade = toml_string(&root.join("crates/ruminate").display().to_string());
    Ok(format!(
        "[package]\nname = \"{name}\"\nversion = \"0.1.0\"\nedition = \"2024\"\npublish = false\n\n\
         [dependencies]\n{clap}\nruminate = {{ path = {facade} }}\n"
    ))
}

/// Text as a basic string of TOML.
fn toml_string(text: &str) -> String {
    format!("\"{}\"", text.replace('\\', "\\\\").replace('"', "\\\""))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_crate_is_written_and_nothing_overwritten() {
        let folder = tempfile::tempdir().unwrap();
        let dir = folder.path().join("my-model");
        let root = Path::new(env!("CARGO_MANIFEST_DIR")).ancestors().nth(2).unwrap();
        new(root, &New { dir: dir.clone() }).unwrap();
        let manifest = fs::read_to_string(dir.join("Cargo.toml")).unwrap();
        assert!(manifest.contains("name = \"my-model\"") && manifest.contains("crates/ruminate"));
        for (file, text) in FILES {
            assert_eq!(fs::read_to_string(dir.join(file)).unwrap(), text);
        }
        let again = new(root, &New { dir }).unwrap_err();
        assert!(again.to_string().contains("is there already"));
    }

    #[test]
    fn names_that_cargo_refuses_are_refused() {
        assert_eq!(crate_name(Path::new("../my_model")).unwrap(), "my_model");
        for name in ["2fast", "my model", "..", ""] {
            assert!(crate_name(Path::new(name)).is_err(), "{name}");
        }
    }
}
