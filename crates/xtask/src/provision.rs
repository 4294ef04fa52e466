//! Sets up libtorch in the checkout where it is missing.
//!
//! Everything is put together in a folder next to the final one and renamed at the end, so that an interrupted
//! set-up leaves nothing that looks finished. A lock keeps two set-ups apart.

use std::fs::{self, File};
use std::io::ErrorKind;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, bail};

use crate::libtorch::{self, FOLDER, Flavour, Libtorch};
use crate::problem::Problem;
use crate::{host, pip};

const LOCK: &str = ".libtorch.lock";
/// Followed by the process number, so that a pip whose xtask was killed never meets the next one.
const PARTIAL: &str = ".libtorch.partial-";
const OLD: &str = ".libtorch.old";

/// Bytes that building the workspace takes in `target`.
pub(crate) const BUILD_DISK: u64 = 3_000_000_000;

/// Makes sure that there is a libtorch and returns which one the build uses.
pub(crate) fn ensure(root: &Path, wanted: Flavour) -> Result<Libtorch> {
    let libtorch = Libtorch::select(root, wanted)?;
    match &libtorch {
        Libtorch::Provisioned(flavour) => {
            if !libtorch::installed(&root.join(FOLDER), *flavour) {
                provision(root, *flavour)?;
            }
        }
        Libtorch::Own(folder) => check_own(folder)?,
        Libtorch::Python => {
            libtorch.folder(root).ok_or_else(no_pytorch)?;
        }
    }
    Ok(libtorch)
}

/// A LIBTORCH of the user's must at least look like one.
pub(crate) fn check_own(folder: &Path) -> Result<(), Problem> {
    // Elsewhere the library bears another name, and LIBTORCH_LIB may move it.
    if folder.join("lib").is_dir() || std::env::var_os("LIBTORCH_LIB").is_some() {
        return Ok(());
    }
    Err(Problem::new(
        format!("LIBTORCH is set to {}, where there is no folder lib", folder.display()),
        format!(
            "set it to the folder of a libtorch {} that holds lib/ and include/, or unset it",
            libtorch::VERSION
        ),
    ))
}

pub(crate) fn no_pytorch() -> Problem {
    Problem::new(
        "LIBTORCH_USE_PYTORCH is set, but this Python cannot import torch",
        format!(
            "activate the environment that has torch {}, or unset LIBTORCH_USE_PYTORCH",
            libtorch::VERSION
        ),
    )
}

fn provision(root: &Path, flavour: Flavour) -> Result<()> {
    host::platform()?;
    host::python()?;
    // Not needed for the download, but right after it: better to hear of it before waiting.
    host::compiler()?;
    let _lock = lock(&root.join(LOCK))?;
    let (installation, old) = (root.join(FOLDER), root.join(OLD));
    let partial = root.join(format!("{PARTIAL}{}", std::process::id()));
    if libtorch::installed(&installation, flavour) {
        return Ok(()); // by the one that held the lock
    }
    remove_leftovers(root)?;
    host::disk(root, flavour.peak_disk() + BUILD_DISK)?;

    eprintln!(
        "Setting up libtorch {} ({} build) in {FOLDER}: {}.",
        libtorch::VERSION,
        flavour.name(),
        flavour.size()
    );
    let staged = partial.join("installation");
    if let Err(error) = stage(&staged, &partial.join("tmp"), flavour) {
        // Gigabytes that nobody will look at; but the error is what matters.
        let _ = remove(&partial);
        return Err(error);
    }
    if installation.symlink_metadata().is_ok() {
        rename(&installation, &old)?;
    }
    rename(&staged, &installation)?;
    remove(&old)?;
    remove(&partial)?;
    eprintln!("libtorch is ready.");
    Ok(())
}

/// Puts a complete installation together in `staged`.
fn stage(staged: &Path, scratch: &Path, flavour: Flavour) -> Result<()> {
    pip::install(staged, scratch, flavour)?;
    cpu_view(staged).context("arranging the CPU libraries")?;
    libtorch::record(staged, flavour).context("recording the versions")?;
    if !libtorch::installed(staged, flavour) {
        bail!("the torch package does not hold the libraries expected of it; this is a bug of xtask");
    }
    Ok(())
}

/// Waits for a set-up that is under way in the same checkout. The lock ends with the returned file, also when
/// this process is killed.
fn lock(path: &Path) -> Result<File> {
    let file = File::create(path).with_context(|| format!("creating {}", path.display()))?;
    // The trait's methods by name: from Rust 1.89 on the standard library has some of the same name.
    if fs4::FileExt::try_lock(&file).is_err() {
        eprintln!("Another xtask is setting up libtorch here; waiting for it.");
        fs4::FileExt::lock(&file).with_context(|| format!("locking {}", path.display()))?;
    }
    Ok(file)
}

/// Arranges `torch-cpu/{lib,include}`: only what a build without CUDA links to, so that it loads no CUDA library
/// beyond the two that libtorch_cpu.so names.
fn cpu_view(installation: &Path) -> Result<()> {
    let view = installation.join("torch-cpu");
    let lib = view.join("lib");
    fs::create_dir_all(&lib)?;
    std::os::unix::fs::symlink("../torch/include", view.join("include"))?;
    for library in Flavour::Cpu.libraries() {
        let source = installation.join("torch/lib").join(library);
        let relative = PathBuf::from("../../torch/lib").join(library);
        let target = lib.join(library);
        // Some file systems have no hard links.
        fs::hard_link(&source, &target)
            .or_else(|_| std::os::unix::fs::symlink(&relative, &target))
            .or_else(|_| fs::copy(&source, &target).map(drop))
            .with_context(|| format!("linking {}", source.display()))?;
    }
    Ok(())
}

/// Removes what interrupted set-ups left; nobody else is at work while the lock is held.
fn remove_leftovers(root: &Path) -> Result<()> {
    remove(&root.join(OLD))?;
    for entry in fs::read_dir(root).with_context(|| format!("reading {}", root.display()))?.flatten() {
        if entry.file_name().to_string_lossy().starts_with(PARTIAL) {
            remove(&entry.path())?;
        }
    }
    Ok(())
}

/// Removes a folder, or a symbolic link to one, if it is there.
fn remove(path: &Path) -> Result<()> {
    match fs::remove_dir_all(path) {
        Err(error) if error.kind() != ErrorKind::NotFound => {
            Err(error).with_context(|| format!("removing {}", path.display()))
        }
        _ => Ok(()),
    }
}

fn rename(from: &Path, to: &Path) -> Result<()> {
    fs::rename(from, to).with_context(|| format!("renaming {} to {}", from.display(), to.display()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_view_holds_the_cpu_libraries_only() {
        let folder = tempfile::tempdir().unwrap();
        let root = folder.path();
        fs::create_dir_all(root.join("torch/lib")).unwrap();
        fs::create_dir_all(root.join("torch/include/torch")).unwrap();
        for library in Flavour::Cpu.libraries().iter().chain(Flavour::Cuda.libraries()) {
            fs::write(root.join("torch/lib").join(library), library).unwrap();
        }
        cpu_view(root).unwrap();
        libtorch::record(root, Flavour::Cpu).unwrap();
        assert!(libtorch::installed(root, Flavour::Cpu));
        assert!(root.join("torch-cpu/include/torch").is_dir());
        assert!(!root.join("torch-cpu/lib/libtorch_cuda.so").exists());
        let seen = fs::read_to_string(root.join("torch-cpu/lib/libc10.so")).unwrap();
        assert_eq!(seen, "libc10.so");
    }

    #[test]
    fn leftovers_are_removed_and_nothing_else() {
        let folder = tempfile::tempdir().unwrap();
        let root = folder.path();
        remove_leftovers(root).unwrap();
        for name in [".libtorch.partial-12", ".libtorch.old", FOLDER] {
            fs::create_dir_all(root.join(name).join("torch")).unwrap();
        }
        remove_leftovers(root).unwrap();
        let left: Vec<_> = fs::read_dir(root).unwrap().flatten().map(|entry| entry.file_name()).collect();
        assert_eq!(left, [FOLDER]);
    }

    #[test]
    fn an_own_libtorch_needs_a_lib_folder() {
        let folder = tempfile::tempdir().unwrap();
        assert!(check_own(folder.path()).unwrap_err().what.contains("LIBTORCH"));
        fs::create_dir(folder.path().join("lib")).unwrap();
        check_own(folder.path()).unwrap();
    }
}
