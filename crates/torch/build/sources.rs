//! Files to compile, with their flags.

use std::env;
use std::fs;
use std::path::{Path, PathBuf};

use ruminate_libtorch::{Libtorch, Problem};

/// Names the folder with the C++ of torch-sys where it is not found beside this crate or in cargo's registry.
pub(crate) const BINDINGS: &str = "RUMINATE_TORCH_SYS";
/// Folder of the version in Cargo.toml.
const TORCH_SYS: &str = "torch-sys-0.24.0";

/// The shim, but its loops.
const SHIM: [&str; 20] = [
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
];

/// Files that are compiled with the same flags.
pub(crate) struct Group {
    /// A folder of their objects.
    pub(crate) name: String,
    pub(crate) files: Vec<PathBuf>,
    pub(crate) build: cc::Build,
    /// Everything that decides about the objects but the files, the compiler and libtorch: flags in words.
    pub(crate) flags: String,
}

/// All groups, for a libtorch.
pub(crate) fn all(libtorch: &Libtorch, out: &Path) -> Result<Vec<Group>, Problem> {
    kernel_sources(&out.join("kernel_sources.h"))?;
    let mut groups = vec![bindings(libtorch)?, shim(libtorch, out)];
    groups.extend(loops());
    Ok(groups)
}

/// Builds of one kind whatever cargo's profile is, so that all profiles share the library.
fn compiler(level: u32) -> cc::Build {
    let mut build = cc::Build::new();
    build.cpp(true).std("c++17").opt_level(level).debug(false).pic(true).cargo_metadata(false);
    // libtorch's own headers warn freely.
    build.warnings(false);
    build
}

/// The C interface of torch-sys: thousands of small functions that hand on to libtorch, for which optimizing takes long and gains nothing.
fn bindings(libtorch: &Libtorch) -> Result<Group, Problem> {
    let folder = torch_sys()?;
    let mut build = compiler(1);
    build.includes(&libtorch.include).define("GLOG_USE_GLOG_EXPORT", None);
    let files = ["torch_api.cpp", "torch_api_generated.cpp"].map(|name| folder.join(name)).to_vec();
    Ok(Group { name: "bindings".into(), files, build, flags: "-O1".into() })
}

/// The folder with the C++ of torch-sys. Cargo does not tell where a dependency's files are.
fn torch_sys() -> Result<PathBuf, Problem> {
    if let Some(folder) = env::var_os(BINDINGS).map(PathBuf::from) {
        return match folder.join("torch_api.cpp").exists() {
            true => Ok(folder),
            false => Err(Problem::new(
                format!("{BINDINGS} is set to {}, where there is no torch_api.cpp", folder.display()),
                format!("set it to the folder libtch of {TORCH_SYS}, or unset it"),
            )),
        };
    }
    let here = PathBuf::from(env::var_os("CARGO_MANIFEST_DIR").unwrap_or_default());
    // A published crate and its dependencies lie side by side, in the registry and in a vendor folder.
    let beside = here.parent().map(Path::to_path_buf).into_iter();
    let home = env::var_os("CARGO_HOME")
        .map(PathBuf::from)
        .or_else(|| env::var_os("HOME").map(|home| PathBuf::from(home).join(".cargo")));
    let registries = home.map(|home| home.join("registry/src")).into_iter();
    let registries = registries.flat_map(fs::read_dir).flatten().flatten().map(|entry| entry.path());
    beside
        .chain(registries)
        .flat_map(|folder| [TORCH_SYS, "torch-sys"].map(|name| folder.join(name).join("libtch")))
        .find(|folder| folder.join("torch_api_generated.cpp").exists())
        .ok_or_else(|| {
            Problem::new(
                format!("the sources of {TORCH_SYS} were not found beside this crate or in cargo's registry"),
                format!("set {BINDINGS} to the folder libtch of that crate"),
            )
        })
}

fn shim(libtorch: &Libtorch, out: &Path) -> Group {
    let mut build = compiler(3);
    let mut flags = String::from("-O3");
    let mut define = |build: &mut cc::Build, name: &str| {
        build.define(name, None);
        flags += " ";
        flags += name;
    };
    if libtorch.has_cuda() {
        define(&mut build, "RUMINATE_CUDA");
        cuda_headers(&mut build, &libtorch.lib, &mut define);
    }
    if uses_openmp(&build) {
        build.flag("-fopenmp");
        flags += " -fopenmp";
    } else {
        println!(
            "cargo:warning=loops of the shim run on one core: only GCC's OpenMP is that of libtorch; set CXX=g++"
        );
    }
    // Gloo's names lie in shim, in case libtorch comes without its headers.
    build.includes(&libtorch.include).include(out).include("shim");
    let files = SHIM.map(|name| PathBuf::from(format!("shim/{name}.cpp"))).to_vec();
    Group { name: "shim".into(), files, build, flags }
}

/// libtorch's loops are templates, which run on one core where they are compiled without OpenMP. The runtime must be libtorch's
/// own, so that both share their threads.
pub(crate) fn uses_openmp(build: &cc::Build) -> bool {
    build.get_compiler().is_like_gnu()
}

/// The loops, once for each vector unit; at run time the shim takes those that the processor has.
fn loops() -> Vec<Group> {
    let x86 = env::var("CARGO_CFG_TARGET_ARCH").is_ok_and(|arch| arch == "x86_64");
    let units: &[(&str, &[&str])] = match x86 {
        true => &[("BASELINE", &[]), ("AVX2", &["-mavx2", "-mfma"]), ("AVX512", &["-mavx512f"])],
        false => &[("BASELINE", &[])],
    };
    let group = |&(name, flags): &(&str, &[&str])| {
        let mut build = compiler(3);
        build.define("RUMINATE_LOOPS", format!("LOOPS_{name}").as_str());
        flags.iter().for_each(|flag| {
            build.flag(flag);
        });
        let flags = format!("-O3 {name} {}", flags.join(" "));
        Group { name: format!("loops_{name}"), files: vec!["shim/cpu/loops.cpp".into()], build, flags }
    };
    units.iter().map(group).collect()
}

/// Writes the sources of all kernels, in the order of the shim's enumeration, as text in the program.
fn kernel_sources(to: &Path) -> Result<(), Problem> {
    let failed = |path: &Path, error: std::io::Error| {
        Problem::new(
            format!("{}: {error}", path.display()),
            "restore the file from the sources of this crate",
        )
    };
    let read = |name: &str| {
        let path = Path::new("shim/kernels").join(name);
        fs::read_to_string(&path).map_err(|error| failed(&path, error))
    };
    let shared = read("common.cuh")? + &read("arguments.h")?.replace("#pragma once\n", "");
    let mut entries = String::new();
    for name in ["log_probs", "top_p", "decode_attention", "rope", "gate"] {
        let source = read(&format!("{name}.cu"))?;
        entries += &format!("{{\"{name}\", R\"source({shared}{source})source\"}},\n");
    }
    let text = format!(
        "struct Source {{\n  const char *name, *text;\n}};\nconst Source SOURCES[] = {{\n{entries}}};\n"
    );
    fs::write(to, text).map_err(|error| failed(to, error))
}

/// Adds kernels and NCCL if CUDA's headers and its own are there: in the packages that a libtorch from PyPI brings along, or in an own CUDA.
fn cuda_headers(build: &mut cc::Build, lib: &Path, define: &mut impl FnMut(&mut cc::Build, &str)) {
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
    define(build, "RUMINATE_KERNELS");
    build.includes(&folders);
    if there("nccl.h") {
        define(build, "RUMINATE_NCCL");
    } else {
        println!("cargo:warning=NCCL's headers were not found: training on several GPUs is left out");
    }
}
