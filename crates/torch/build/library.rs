//! The shared library: compiled and linked, or taken from the cache.

use std::env;
use std::ffi::OsStr;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use ruminate_libtorch::{Libtorch, Problem};
use sha2::{Digest, Sha256};

use crate::sources::{Group, uses_openmp};

/// Name of the library that programs link to.
pub(crate) const NAME: &str = "ruminate_torch";

/// The library for these sources, compiler and libtorch. Its folder in the cache is named by a hash of all that decides about it.
pub(crate) fn build(libtorch: &Libtorch, groups: &[Group], out: &Path) -> Result<PathBuf, Problem> {
    let macos = env::var("CARGO_CFG_TARGET_OS").is_ok_and(|os| os == "macos");
    let file = format!("lib{NAME}.{}", if macos { "dylib" } else { "so" });
    let folder = ruminate_libtorch::cache()?.join("lib").join(key(libtorch, groups)?);
    let library = folder.join(&file);
    if library.exists() {
        return Ok(library);
    }
    let mut objects = Vec::new();
    for group in groups {
        let mut build = group.build.clone();
        let compiled = build.files(&group.files).out_dir(out.join(&group.name)).try_compile_intermediates();
        objects.extend(compiled.map_err(|error| {
            Problem::new(
                format!("the C++ of ruminate-torch does not compile: {error}"),
                "the compiler's message is above; without a C++ compiler, install one (on Debian and Ubuntu: apt-get install g++) or \
                 set CXX to yours",
            )
        })?);
    }
    // In the cache's own file system, so that it can be renamed.
    let partial = folder.with_extension(format!("partial-{}", std::process::id()));
    fs::create_dir_all(&partial).map_err(|error| io("creating", &partial, &error))?;
    if let Err(problem) =
        run(&mut linker(libtorch, &groups[1].build, &objects, &library, &partial.join(&file), macos))
    {
        let _ = fs::remove_dir_all(&partial);
        return Err(problem);
    }
    match fs::rename(&partial, &folder) {
        Ok(()) => Ok(library),
        // Another build was faster.
        Err(_) if library.exists() => {
            let _ = fs::remove_dir_all(&partial);
            Ok(library)
        }
        Err(error) => Err(io("renaming", &partial, &error)),
    }
}

fn linker(
    libtorch: &Libtorch,
    build: &cc::Build,
    objects: &[PathBuf],
    name: &Path,
    output: &Path,
    macos: bool,
) -> Command {
    let mut linker = build.get_compiler().to_command();
    let flag = |start: &str, path: &Path| {
        let mut flag = std::ffi::OsString::from(start);
        flag.push(path);
        flag
    };
    // A name with a slash is what programs then ask the loader for: this very file.
    if macos {
        linker
            .args(["-dynamiclib", "-undefined", "dynamic_lookup", "-Wl,-install_name"])
            .arg(flag("-Wl,", name));
    } else {
        // Functions of tch that write to streams stay open: the program brings them.
        linker.arg("-shared").arg(flag("-Wl,-soname,", name));
    }
    linker.arg("-o").arg(output).args(objects);
    linker.arg(flag("-L", &libtorch.lib)).arg(flag("-Wl,-rpath,", &libtorch.lib));
    if libtorch.has_cuda() {
        // CUDA registers itself when its library is loaded; no symbol asks for it.
        linker.args(["-Wl,--no-as-needed", "-ltorch_cuda", "-lc10_cuda", "-Wl,--as-needed"]);
    }
    linker.args(["-ltorch_cpu", "-lc10"]);
    if uses_openmp(build) {
        linker.arg(openmp(&libtorch.lib));
    }
    linker
}

/// libtorch's own runtime of OpenMP, as an argument of the linker.
fn openmp(lib: &Path) -> String {
    let files = fs::read_dir(lib).into_iter().flatten().flatten();
    let names = files.filter_map(|file| file.file_name().into_string().ok());
    match names.filter(|name| name.starts_with("libgomp") && name.contains(".so")).min() {
        Some(own) => format!("-l:{own}"),
        None => "-lgomp".into(),
    }
}

fn run(linker: &mut Command) -> Result<(), Problem> {
    let failed = |how: String| {
        Problem::new(
            format!("linking the bindings to libtorch failed ({how}); the linker's message is above"),
            "check that LIBTORCH, if it is set, is a complete libtorch for this platform",
        )
    };
    match linker.status() {
        Ok(status) if status.success() => Ok(()),
        Ok(status) => Err(failed(status.to_string())),
        Err(error) => Err(failed(error.to_string())),
    }
}

fn key(libtorch: &Libtorch, groups: &[Group]) -> Result<String, Problem> {
    let mut hash = Sha256::new();
    let mut add = |part: &[u8]| {
        hash.update((part.len() as u64).to_le_bytes());
        hash.update(part);
    };
    for group in groups {
        let compiler = group.build.get_compiler();
        add(group.name.as_bytes());
        add(group.flags.as_bytes());
        add(compiler.path().as_os_str().as_encoded_bytes());
        // Where headers lie differs from one target folder to the next; what is in them is hashed below.
        let mut arguments = compiler.args().iter();
        while let Some(argument) = arguments.next() {
            match argument == OsStr::new("-I") {
                true => drop(arguments.next()),
                false => add(argument.as_encoded_bytes()),
            }
        }
        let version = Command::new(compiler.path()).arg("--version").output();
        add(&version.map(|output| output.stdout).unwrap_or_default());
    }
    add(libtorch.folder.as_os_str().as_encoded_bytes());
    add(libtorch.lib.as_os_str().as_encoded_bytes());
    add(libtorch.version.as_deref().unwrap_or_default().as_bytes());
    add(env::var("TARGET").unwrap_or_default().as_bytes());
    let mut files: Vec<PathBuf> = vec![];
    collect(Path::new("build"), &mut files)?;
    collect(Path::new("shim"), &mut files)?;
    let bindings = groups.iter().flat_map(|group| &group.files).filter(|file| file.is_absolute());
    for folder in bindings.filter_map(|file| file.parent()).take(1) {
        collect(folder, &mut files)?;
    }
    files.sort();
    for file in files {
        add(file.file_name().unwrap_or_default().as_encoded_bytes());
        add(&fs::read(&file).map_err(|error| io("reading", &file, &error))?);
    }
    Ok(hash.finalize().iter().take(10).map(|byte| format!("{byte:02x}")).collect())
}

/// All files below a folder.
fn collect(folder: &Path, files: &mut Vec<PathBuf>) -> Result<(), Problem> {
    for entry in fs::read_dir(folder).map_err(|error| io("reading", folder, &error))?.flatten() {
        let path = entry.path();
        match path.is_dir() {
            true => collect(&path, files)?,
            false => files.push(path),
        }
    }
    Ok(())
}

fn io(doing: &str, path: &Path, error: &std::io::Error) -> Problem {
    Problem::new(
        format!("{doing} {}: {error}", path.display()),
        "check permissions and disk space, or set RUMINATE_CACHE to another folder",
    )
}
