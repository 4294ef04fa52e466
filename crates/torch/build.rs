//! Compiles the C++ shim against the libtorch that `torch-sys` found.

use std::env;
use std::path::{Path, PathBuf};

fn main() {
    println!("cargo:rerun-if-changed=shim");
    println!("cargo:rustc-check-cfg=cfg(ruminate_cuda)");
    // torch-sys exports the folder of the libraries; the headers lie beside it in every libtorch layout.
    let Ok(lib) = env::var("DEP_TCH_LIBTORCH_LIB") else {
        // Documentation builds of torch-sys (`doc-only`) find no libtorch, and then nothing is linked either.
        return;
    };
    let lib = PathBuf::from(lib);
    let include = lib.with_file_name("include");
    let cuda = lib.join("libtorch_cuda.so").exists();
    let mut build = cc::Build::new();
    if cuda {
        build.define("RUMINATE_CUDA", None);
        println!("cargo:rustc-cfg=ruminate_cuda");
        cuda_headers(&mut build, &lib);
    }
    openmp(&mut build, &lib);
    let out = PathBuf::from(env::var("OUT_DIR").unwrap_or_default());
    kernel_sources(&out.join("kernel_sources.h"));
    build
        .cpp(true)
        .files(
            [
                "shim",
                "adafactor",
                "attention",
                "checkpoint",
                "cpu/processor",
                "dist",
                "dropout",
                "emulation",
                "gate",
                "graph",
                "info",
                "kernels",
                "log_probs",
                "matmul",
                "memory",
                "norm",
                "packed",
                "reducer",
                "rope",
                "sampling",
            ]
            .map(|name| format!("shim/{name}.cpp")),
        )
        .include(&include)
        .include(&out)
        // Gloo's names, in case libtorch comes without its headers.
        .include("shim")
        .include(include.join("torch/csrc/api/include"))
        .std("c++17")
        // libtorch's own headers warn freely; only ours should be heard.
        .warnings(false)
        .compile("ruminate_shim");
    loops();
    println!("cargo:rustc-link-search=native={}", lib.display());
    if cuda {
        println!("cargo:rustc-link-lib=torch_cuda");
        println!("cargo:rustc-link-lib=c10_cuda");
    }
    println!("cargo:rustc-link-lib=torch_cpu");
    println!("cargo:rustc-link-lib=c10");
}

/// Compiles the loops once for each vector unit; at run time the shim takes those that the processor has.
fn loops() {
    let x86 = env::var("CARGO_CFG_TARGET_ARCH").is_ok_and(|arch| arch == "x86_64");
    let units: &[(&str, &[&str])] = match x86 {
        true => &[("BASELINE", &[]), ("AVX2", &["-mavx2", "-mfma"]), ("AVX512", &["-mavx512f"])],
        false => &[("BASELINE", &[])],
    };
    for (name, flags) in units {
        let mut build = cc::Build::new();
        build
            .cpp(true)
            .file("shim/cpu/loops.cpp")
            .std("c++17")
            .define("RUMINATE_LOOPS", format!("LOOPS_{name}").as_str());
        flags.iter().for_each(|flag| {
            build.flag(flag);
        });
        build.compile(&format!("ruminate_loops_{}", name.to_lowercase()));
    }
}

/// libtorch's loops are templates, which run on one core where they are compiled without OpenMP. The runtime must be libtorch's
/// own, so that both share their threads.
fn openmp(build: &mut cc::Build, lib: &Path) {
    if !build.get_compiler().is_like_gnu() {
        println!(
            "cargo:warning=loops of the shim run on one core: only GCC's OpenMP is that of libtorch; set CXX=g++"
        );
        return;
    }
    build.flag("-fopenmp");
    let files = std::fs::read_dir(lib).into_iter().flatten().flatten();
    let names = files.filter_map(|file| file.file_name().into_string().ok());
    match names.filter(|name| name.starts_with("libgomp") && name.contains(".so")).min() {
        Some(own) => println!("cargo:rustc-link-lib=dylib:+verbatim={own}"),
        None => println!("cargo:rustc-link-lib=gomp"),
    }
}

/// Writes the sources of all kernels, in the order of the shim's enumeration, as text in the program.
fn kernel_sources(to: &Path) {
    let read = |name: &str| {
        let path = Path::new("shim/kernels").join(name);
        std::fs::read_to_string(&path).unwrap_or_else(|error| panic!("{}: {error}", path.display()))
    };
    let shared = read("common.cuh") + &read("arguments.h").replace("#pragma once\n", "");
    let entry =
        |name: &str| format!("{{\"{name}\", R\"source({shared}{})source\"}},\n", read(&format!("{name}.cu")));
    let entries: String = ["log_probs", "top_p", "decode_attention", "rope", "gate"].map(entry).concat();
    let text = format!(
        "struct Source {{\n  const char *name, *text;\n}};\nconst Source SOURCES[] = {{\n{entries}}};\n"
    );
    std::fs::write(to, text).unwrap_or_else(|error| panic!("{}: {error}", to.display()));
}

/// Adds kernels and NCCL if CUDA's headers and its own are there: in the packages that a libtorch from PyPI brings along, or in an own CUDA.
fn cuda_headers(build: &mut cc::Build, lib: &Path) {
    let packages = lib.ancestors().nth(2).map(|packages| packages.join("nvidia")).unwrap_or_default();
    let own = ["CUDA_HOME", "CUDA_PATH", "NCCL_HOME"].map(|name| {
        println!("cargo:rerun-if-env-changed={name}");
        env::var_os(name).map(|home| PathBuf::from(home).join("include"))
    });
    let folders: Vec<PathBuf> = [packages.join("cu13/include"), packages.join("nccl/include")]
        .into_iter()
        .chain(own.into_iter().flatten())
        .filter(|folder| folder.is_dir())
        .collect();
    let there = |header: &str| folders.iter().any(|folder| folder.join(header).exists());
    if !there("cuda_runtime.h") {
        println!(
            "cargo:warning=CUDA's headers were not found: kernels and training on several GPUs are left out"
        );
        return;
    }
    build.define("RUMINATE_KERNELS", None).includes(&folders);
    if there("nccl.h") {
        build.define("RUMINATE_NCCL", None);
    } else {
        println!("cargo:warning=NCCL's headers were not found: training on several GPUs is left out");
    }
}
