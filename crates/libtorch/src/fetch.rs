//! Fetches libtorch into the cache.
//!
//! Everything is put together in a folder next to the final one and renamed at the end, so that an interrupted
//! download leaves nothing that looks finished. A lock keeps two builds apart.

use std::fs::{self, File};
use std::io::ErrorKind;
use std::path::{Path, PathBuf};

use crate::{Build, Problem, STAMP, VERSION, machine, pip};

/// Followed by the process number, so that a pip whose parent was killed never meets the next one.
const PARTIAL: &str = ".partial-";

/// Fetches a build of libtorch into the cache, unless it is there, and tells about it by `say`.
///
/// # Errors
/// When the platform has no package, when Python, pip or disk space is missing, when this machine is offline, or when a file is not the
/// one that is pinned. What mends it is in [`Problem::fix`].
pub fn fetch(build: Build, say: &dyn Fn(&str)) -> Result<(), Problem> {
    let cache = crate::cache()?;
    machine::platform()?;
    machine::python()?;
    fs::create_dir_all(&cache).map_err(|error| Problem::io("creating", &cache, &error))?;
    let _lock = lock(&cache.join(".lock"), say)?;
    if build.is_fetched(&cache) {
        return Ok(()); // by the one that held the lock
    }
    remove_leftovers(&cache)?;
    machine::disk(&cache, build.peak_disk())?;
    say(&format!(
        "Fetching libtorch {VERSION} ({} build) into {}: {}.",
        build.name(),
        cache.display(),
        build.size()
    ));
    let partial = cache.join(format!("{PARTIAL}{}", std::process::id()));
    let staged = partial.join("installation");
    if let Err(problem) = stage(build, &staged, &partial) {
        // Gigabytes that nobody will look at; but the error is what matters.
        let _ = remove(&partial);
        return Err(problem);
    }
    let installation = build.installation(&cache);
    remove(&installation)?;
    fs::rename(&staged, &installation).map_err(|error| Problem::io("renaming", &staged, &error))?;
    remove(&partial)?;
    say("libtorch is ready.");
    Ok(())
}

/// Puts a complete installation together in `staged`.
fn stage(build: Build, staged: &Path, partial: &Path) -> Result<(), Problem> {
    let scratch = partial.join("tmp");
    fs::create_dir_all(&scratch).map_err(|error| Problem::io("creating", &scratch, &error))?;
    let requirements = partial.join("requirements.txt");
    fs::write(&requirements, build.requirements())
        .map_err(|error| Problem::io("writing", &requirements, &error))?;
    let status = pip::install(&requirements, staged, &scratch).status();
    let failed = match status {
        Ok(status) if status.success() => None,
        Ok(status) => Some(status.to_string()),
        Err(error) => Some(error.to_string()),
    };
    if let Some(status) = failed {
        return Err(Problem::new(
            format!("pip did not install libtorch ({status}); what it said is above"),
            format!(
                "if this machine is offline, build once while it is online, or set LIBTORCH to the folder of a libtorch {VERSION} that \
                 holds lib/ and include/. If pip says that hashes differ, the package is not the pinned one: do not use it"
            ),
        ));
    }
    let finished = || {
        if build == Build::Cpu {
            cpu_view(staged)?;
        }
        fs::write(staged.join(build.subfolder()).join("build-version"), VERSION)?;
        fs::write(staged.join(STAMP), build.requirements())
    };
    finished().map_err(|error| Problem::io("arranging", staged, &error))?;
    if build.is_complete(staged) {
        return Ok(());
    }
    Err(Problem::new(
        "the package torch does not hold the libraries expected of it",
        "report this as a bug of ruminate; until then, set LIBTORCH to a libtorch of your own",
    ))
}

/// Waits for a download that is under way. The lock ends with the returned file, also when this process is killed.
fn lock(path: &Path, say: &dyn Fn(&str)) -> Result<File, Problem> {
    let file = File::create(path).map_err(|error| Problem::io("creating", path, &error))?;
    // The trait's methods by name: from Rust 1.89 on the standard library has some of the same name.
    if fs4::FileExt::try_lock(&file).is_err() {
        say("Another build is fetching libtorch; waiting for it.");
        fs4::FileExt::lock(&file).map_err(|error| Problem::io("locking", path, &error))?;
    }
    Ok(file)
}

/// Arranges `torch-cpu/{lib,include}`: only what a build without CUDA links to, so that it loads no CUDA library
/// beyond the two that libtorch_cpu.so names.
fn cpu_view(installation: &Path) -> std::io::Result<()> {
    let view = installation.join("torch-cpu");
    let lib = view.join("lib");
    fs::create_dir_all(&lib)?;
    symlink(Path::new("../torch/include"), view.join("include").as_path())?;
    for library in Build::Cpu.libraries() {
        let source = installation.join("torch/lib").join(library);
        let relative = PathBuf::from("../../torch/lib").join(library);
        let target = lib.join(library);
        // Some file systems have no hard links.
        fs::hard_link(&source, &target)
            .or_else(|_| symlink(&relative, &target))
            .or_else(|_| fs::copy(&source, &target).map(drop))?;
    }
    Ok(())
}

#[cfg(unix)]
use std::os::unix::fs::symlink;

/// There is nothing to fetch on such platforms.
#[cfg(not(unix))]
fn symlink(_: &Path, _: &Path) -> std::io::Result<()> {
    Err(ErrorKind::Unsupported.into())
}

/// Removes what interrupted downloads left; nobody else is at work while the lock is held.
fn remove_leftovers(cache: &Path) -> Result<(), Problem> {
    for entry in fs::read_dir(cache).map_err(|error| Problem::io("reading", cache, &error))?.flatten() {
        if entry.file_name().to_string_lossy().starts_with(PARTIAL) {
            remove(&entry.path())?;
        }
    }
    Ok(())
}

/// Removes a folder, or a symbolic link to one, if it is there.
fn remove(path: &Path) -> Result<(), Problem> {
    match fs::remove_dir_all(path) {
        Err(error) if error.kind() != ErrorKind::NotFound => Err(Problem::io("removing", path, &error)),
        _ => Ok(()),
    }
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
        for library in Build::Cpu.libraries().iter().chain(Build::Cuda.libraries()) {
            fs::write(root.join("torch/lib").join(library), library).unwrap();
        }
        cpu_view(root).unwrap();
        assert!(root.join("torch-cpu/include/torch").is_dir());
        assert!(!root.join("torch-cpu/lib/libtorch_cuda.so").exists());
        assert_eq!(fs::read_to_string(root.join("torch-cpu/lib/libc10.so")).unwrap(), "libc10.so");
    }

    #[test]
    fn leftovers_are_removed_and_nothing_else() {
        let folder = tempfile::tempdir().unwrap();
        let cache = folder.path();
        for name in [".partial-12", "libtorch-2.11.0-cpu"] {
            fs::create_dir_all(cache.join(name).join("torch")).unwrap();
        }
        remove_leftovers(cache).unwrap();
        let left: Vec<_> = fs::read_dir(cache).unwrap().flatten().map(|entry| entry.file_name()).collect();
        assert_eq!(left, ["libtorch-2.11.0-cpu"]);
    }
}
