//! Finds or fetches libtorch, and compiles the C++ of torch-sys and of this crate into one shared library in the cache.
//!
//! torch-sys is built with its feature `doc-only`, so its own build script neither looks for libtorch nor links to it. Two things follow.
//! A crate that depends on ruminate needs no setting: the shared library bears its absolute path as its name, so the linker writes that
//! path into every program, and it names the folder of libtorch itself (`rpath`). And the C++, minutes of compiling, is compiled once
//! for all checkouts, profiles and choices of features. A program that was moved to a machine without this cache starts with
//! `LD_PRELOAD=/new/place/libruminate_torch.so`.

#![allow(
    clippy::print_stdout,
    clippy::print_stderr,
    reason = "a build script tells cargo what to do by printing"
)]

mod library;
mod sources;

use std::env;
use std::path::{Path, PathBuf};
use std::process::exit;

use ruminate_libtorch::{Build, Libtorch, Problem, VARIABLES, VERSION};

fn main() {
    println!("cargo:rerun-if-changed=build");
    println!("cargo:rerun-if-changed=shim");
    println!("cargo:rustc-check-cfg=cfg(ruminate_cuda)");
    for variable in
        VARIABLES.iter().chain(&["DOCS_RS", "RUMINATE_OFFLINE", "CXX", "CXXFLAGS", sources::BINDINGS])
    {
        println!("cargo:rerun-if-env-changed={variable}");
    }
    // Documentation is built without libtorch and without a network; nothing is linked either.
    if env::var_os("DOCS_RS").is_some() {
        return;
    }
    if let Err(problem) = build() {
        eprintln!("error: {}\n  what to do: {}", problem.what, problem.fix);
        exit(1);
    }
}

fn build() -> Result<(), Problem> {
    let libtorch = libtorch()?;
    let cuda = libtorch.has_cuda();
    if cuda {
        println!("cargo:rustc-cfg=ruminate_cuda");
    }
    let out = PathBuf::from(env::var_os("OUT_DIR").unwrap_or_default());
    let library = library::build(&libtorch, &sources::all(&libtorch, &out)?, &out)?;
    link(&library, &out);
    // Programs load it from there: where it was deleted, it is fetched again.
    println!("cargo:rerun-if-changed={}", libtorch.lib.display());
    // For build scripts of crates that depend on this one: DEP_RUMINATE_TORCH_LIBTORCH.
    println!("cargo:libtorch={}", libtorch.folder.display());
    Ok(())
}

fn libtorch() -> Result<Libtorch, Problem> {
    let build = Build::from_env();
    if let Some(libtorch) = ruminate_libtorch::find(build)? {
        return Ok(libtorch);
    }
    if env::var_os("RUMINATE_OFFLINE").is_some_and(|value| !value.is_empty() && value != "0") {
        return Err(Problem::new(
            "there is no libtorch, and RUMINATE_OFFLINE forbids to fetch it",
            format!(
                "unset RUMINATE_OFFLINE, or set LIBTORCH to the folder of a libtorch {VERSION} that holds lib/ and include/"
            ),
        ));
    }
    ruminate_libtorch::fetch(build, &|text| eprintln!("{text}"))?;
    ruminate_libtorch::find(build)?.ok_or_else(|| {
        Problem::new(
            "libtorch was fetched, but is not in the cache",
            "remove the cache folder and build again",
        )
    })
}

/// Links every program that has this crate in it to the library.
fn link(library: &Path, out: &Path) {
    // Deleting the cache builds it again.
    println!("cargo:rerun-if-changed={}", library.display());
    println!("cargo:rustc-link-search=native={}", library.parent().unwrap_or(Path::new(".")).display());
    println!("cargo:rustc-link-lib=dylib={}", library::NAME);
    // GNU ld drops a library that nothing has asked for yet, and the bindings of torch-sys come later on its command line. So
    // something asks for it at once.
    cc::Build::new()
        .file("build/anchor.c")
        .warnings(false)
        .out_dir(out.join("anchor"))
        .cargo_metadata(false)
        .compile("ruminate_torch_anchor");
    println!("cargo:rustc-link-search=native={}", out.join("anchor").display());
    println!("cargo:rustc-link-lib=static:+whole-archive,-bundle=ruminate_torch_anchor");
}
