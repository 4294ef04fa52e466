//! Compiles the C++ shim against the libtorch that `torch-sys` found.

use std::env;
use std::path::PathBuf;

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
    }
    build
        .cpp(true)
        .files(
            ["shim", "adafactor", "checkpoint", "dropout", "info", "log_probs", "matmul", "sampling"]
                .map(|name| format!("shim/{name}.cpp")),
        )
        .include(&include)
        .include(include.join("torch/csrc/api/include"))
        .std("c++17")
        // libtorch's own headers warn freely; only ours should be heard.
        .warnings(false)
        .compile("ruminate_shim");
    println!("cargo:rustc-link-search=native={}", lib.display());
    if cuda {
        println!("cargo:rustc-link-lib=torch_cuda");
    }
    println!("cargo:rustc-link-lib=torch_cpu");
    println!("cargo:rustc-link-lib=c10");
}
