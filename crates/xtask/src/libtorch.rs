//! Which libtorch the build uses, where it is, and the environment that makes cargo and the programs find it.

use std::ffi::{OsStr, OsString};
use std::fs;
use std::path::{Path, PathBuf};

use crate::host;
use crate::problem::Problem;

/// The libtorch that `tch` is made for.
pub(crate) const VERSION: &str = "2.11.0";
/// Where it is put, in the root of the checkout.
pub(crate) const FOLDER: &str = ".libtorch";
/// What was installed there; a change of the pinned packages makes it stale.
const STAMP: &str = "ruminate.stamp";

/// Where the loader looks for libraries.
pub(crate) const LOADER_PATH: &str =
    if cfg!(target_os = "macos") { "DYLD_LIBRARY_PATH" } else { "LD_LIBRARY_PATH" };

/// Wins over the run paths in `.cargo/config.toml`, which serve the CPU build.
const CUDA_RUSTFLAGS_VAR: &str = "CARGO_TARGET_X86_64_UNKNOWN_LINUX_GNU_RUSTFLAGS";
/// From `target/cuda/release` and from one folder below.
const CUDA_RUSTFLAGS: &str = "-Clink-arg=-Wl,-rpath,$ORIGIN/../../../.libtorch/torch/lib \
     -Clink-arg=-Wl,-rpath,$ORIGIN/../../../../.libtorch/torch/lib";

/// The two builds of libtorch. An installation of the CUDA one contains the CPU one.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Flavour {
    Cpu,
    Cuda,
}

impl Flavour {
    pub(crate) fn name(self) -> &'static str {
        match self {
            Self::Cpu => "CPU",
            Self::Cuda => "CUDA",
        }
    }

    /// What pip installs.
    pub(crate) fn packages(self) -> &'static [&'static str] {
        match self {
            // libtorch_cpu.so of this package links to these two, whether or not there is a GPU.
            Self::Cpu => &["torch==2.11.0", "nvidia-cuda-runtime==13.0.*", "nvidia-cuda-cupti==13.0.*"],
            // The headers of the NCCL process group include some of crt and cccl, which torch does not depend on.
            Self::Cuda => &["torch==2.11.0", "nvidia-cuda-crt==13.0.*", "nvidia-cuda-cccl==13.0.*"],
        }
    }

    /// Whether pip installs what the packages depend on, too.
    pub(crate) fn with_dependencies(self) -> bool {
        self == Self::Cuda
    }

    /// Size of the download and of the installation, in words.
    pub(crate) fn size(self) -> &'static str {
        match self {
            Self::Cpu => "downloads about 540 MB, takes 1.2 GB of disk",
            Self::Cuda => "downloads about 2.7 GB, takes 4.5 GB of disk",
        }
    }

    /// Bytes of disk that setting it up takes at its peak: wheels, unpacked files and pip's cache
    /// at the same time.
    pub(crate) fn peak_disk(self) -> u64 {
        match self {
            Self::Cpu => 2_500_000_000,
            Self::Cuda => 10_000_000_000,
        }
    }

    /// What LIBTORCH points at, inside of the installation.
    fn subfolder(self) -> &'static str {
        match self {
            Self::Cpu => "torch-cpu",
            Self::Cuda => "torch",
        }
    }

    /// The libraries that make up this build.
    pub(crate) fn libraries(self) -> &'static [&'static str] {
        match self {
            Self::Cpu => &["libtorch_cpu.so", "libtorch.so", "libc10.so", "libgomp.so.1"],
            Self::Cuda => &["libtorch_cpu.so", "libtorch_cuda.so", "libc10_cuda.so"],
        }
    }

    fn stamp(self) -> String {
        format!("{}\n{}\n", self.name(), self.packages().join("\n"))
    }
}

/// Where libtorch comes from.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Libtorch {
    /// Set up by this program in the checkout.
    Provisioned(Flavour),
    /// The folder that the user's LIBTORCH names.
    Own(PathBuf),
    /// The PyTorch of the user's Python, by LIBTORCH_USE_PYTORCH.
    Python,
}

impl Libtorch {
    /// What the environment and the command line ask for.
    pub(crate) fn select(root: &Path, wanted: Flavour) -> Result<Self, Problem> {
        // torch-sys looks whether the variable is there, not at its value.
        let use_pytorch = std::env::var_os("LIBTORCH_USE_PYTORCH").is_some();
        choose(root, wanted, std::env::var_os("LIBTORCH"), use_pytorch)
    }

    /// The folder that holds lib/ and include/; nothing for a Python without PyTorch.
    pub(crate) fn folder(&self, root: &Path) -> Option<PathBuf> {
        match self {
            Self::Provisioned(flavour) => Some(root.join(FOLDER).join(flavour.subfolder())),
            Self::Own(folder) => Some(folder.clone()),
            Self::Python => {
                // The same interpreter that the build script of torch-sys asks.
                let python = if std::env::var_os("VIRTUAL_ENV").is_some() { "python" } else { "python3" };
                host::first_line(python, &["-c", "import os, torch; print(os.path.dirname(torch.__file__))"])
                    .map(PathBuf::from)
            }
        }
    }

    /// Variables to set, or to remove, for a build by cargo.
    pub(crate) fn build_environment(&self, root: &Path) -> Vec<(&'static str, Option<OsString>)> {
        match self {
            // .cargo/config.toml sets LIBTORCH, and cargo set it for this program. Setting it here again would make
            // a build from here differ from one by plain cargo: minutes of C++, again at every change.
            Self::Provisioned(Flavour::Cpu) => vec![("LIBTORCH", None)],
            Self::Provisioned(Flavour::Cuda) => {
                // A folder of its own, so that CPU and CUDA builds do not undo each other.
                let target = cuda_target(root, std::env::var_os("CARGO_TARGET_DIR"));
                let flags = cuda_rustflags(std::env::var(CUDA_RUSTFLAGS_VAR).ok());
                vec![
                    ("LIBTORCH", self.folder(root).map(PathBuf::into_os_string)),
                    ("CARGO_TARGET_DIR", Some(target.into_os_string())),
                    (CUDA_RUSTFLAGS_VAR, Some(flags.into())),
                ]
            }
            Self::Own(_) | Self::Python => Vec::new(),
        }
    }

    /// Folders for [`LOADER_PATH`]. Programs know where the CPU build is, but doc tests, which rustdoc builds
    /// elsewhere, do not.
    pub(crate) fn loader_folders(&self, root: &Path) -> Vec<PathBuf> {
        let mut folders: Vec<_> = self.folder(root).into_iter().map(|folder| folder.join("lib")).collect();
        if *self == Self::Provisioned(Flavour::Cuda) {
            // The compiler of kernels at run time looks for its own library here.
            folders.push(root.join(FOLDER).join("nvidia/cu13/lib"));
        }
        folders
    }
}

fn choose(
    root: &Path,
    wanted: Flavour,
    libtorch: Option<OsString>,
    use_pytorch: bool,
) -> Result<Libtorch, Problem> {
    let own = match libtorch.filter(|value| !value.is_empty()).map(PathBuf::from) {
        _ if use_pytorch => Libtorch::Python,
        None => return Ok(Libtorch::Provisioned(wanted)),
        // Cargo gives LIBTORCH from .cargo/config.toml to what it runs, this program included.
        Some(folder) => match subfolder_of_ours(root, &folder) {
            Some(name) if name == Flavour::Cuda.subfolder() => {
                return Ok(Libtorch::Provisioned(Flavour::Cuda));
            }
            Some(_) => return Ok(Libtorch::Provisioned(wanted)),
            None => Libtorch::Own(folder),
        },
    };
    if wanted == Flavour::Cuda {
        return Err(Problem::new(
            "--cuda sets up a libtorch, but LIBTORCH or LIBTORCH_USE_PYTORCH names one already",
            "leave --cuda out to use that one, or unset the variable",
        ));
    }
    Ok(own)
}

/// The name of the folder inside of our installation that `folder` is, if it is one.
fn subfolder_of_ours<'a>(root: &Path, folder: &'a Path) -> Option<&'a OsStr> {
    let parent = folder.parent()?;
    let same =
        |a: &Path, b: &Path| a == b || a.canonicalize().is_ok_and(|a| b.canonicalize().ok() == Some(a));
    (parent.file_name()? == FOLDER && same(parent.parent()?, root)).then(|| folder.file_name())?
}

fn cuda_target(root: &Path, target: Option<OsString>) -> PathBuf {
    let target = target.map_or_else(|| root.join("target"), PathBuf::from);
    // It is that already when the output of `env --cuda` is in effect.
    if target.ends_with("cuda") { target } else { target.join("cuda") }
}

fn cuda_rustflags(present: Option<String>) -> String {
    match present {
        Some(flags) if flags.contains(CUDA_RUSTFLAGS) => flags,
        Some(flags) if !flags.is_empty() => format!("{flags} {CUDA_RUSTFLAGS}"),
        _ => CUDA_RUSTFLAGS.to_string(),
    }
}

/// Whether `installation` holds this build, complete and of the pinned versions.
pub(crate) fn installed(installation: &Path, flavour: Flavour) -> bool {
    let stamp = fs::read_to_string(installation.join(STAMP)).unwrap_or_default();
    let stamped = stamp == flavour.stamp() || stamp == Flavour::Cuda.stamp();
    let lib = installation.join(flavour.subfolder()).join("lib");
    stamped && flavour.libraries().iter().all(|library| lib.join(library).exists())
}

/// Records what `installation` holds: for the next run, and for the version check of torch-sys.
pub(crate) fn record(installation: &Path, flavour: Flavour) -> std::io::Result<()> {
    for folder in [Flavour::Cpu, Flavour::Cuda].map(Flavour::subfolder) {
        fs::write(installation.join(folder).join("build-version"), VERSION)?;
    }
    fs::write(installation.join(STAMP), flavour.stamp())
}

/// The version that a libtorch folder states, as in `2.11.0+cu130`.
pub(crate) fn version_in(folder: &Path) -> Option<String> {
    if let Ok(version) = fs::read_to_string(folder.join("build-version")) {
        return Some(version.trim().to_string());
    }
    let python = fs::read_to_string(folder.join("version.py")).ok()?;
    let line = python.lines().find_map(|line| line.strip_prefix("__version__ = "))?;
    Some(line.trim_matches(['\'', '"']).to_string())
}

/// Whether a version is the one that the bindings are made for, whatever it was built with.
pub(crate) fn fits(version: &str) -> bool {
    version.split('+').next() == Some(VERSION)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn chosen(libtorch: &str, use_pytorch: bool) -> Libtorch {
        choose(Path::new("/code"), Flavour::Cpu, Some(libtorch.into()), use_pytorch).unwrap()
    }

    #[test]
    fn pins_agree() {
        for flavour in [Flavour::Cpu, Flavour::Cuda] {
            assert_eq!(flavour.packages()[0], format!("torch=={VERSION}"));
        }
    }

    #[test]
    fn libtorch_from_the_cargo_configuration_is_ours() {
        assert_eq!(chosen("/code/.libtorch/torch-cpu", false), Libtorch::Provisioned(Flavour::Cpu));
        assert_eq!(chosen("", false), Libtorch::Provisioned(Flavour::Cpu));
        let cuda = choose(Path::new("/code"), Flavour::Cuda, Some("/code/.libtorch/torch-cpu".into()), false);
        assert_eq!(cuda, Ok(Libtorch::Provisioned(Flavour::Cuda)));
        assert_eq!(chosen("/code/.libtorch/torch", false), Libtorch::Provisioned(Flavour::Cuda));
    }

    #[test]
    fn libtorch_of_the_user_is_left_alone() {
        assert_eq!(chosen("/opt/libtorch", false), Libtorch::Own("/opt/libtorch".into()));
        assert_eq!(
            chosen("/other/.libtorch/torch-cpu", false),
            Libtorch::Own("/other/.libtorch/torch-cpu".into())
        );
        assert_eq!(chosen("/code/.libtorch/torch-cpu", true), Libtorch::Python);
        let both = choose(Path::new("/code"), Flavour::Cuda, Some("/opt/libtorch".into()), false);
        assert!(both.unwrap_err().fix.contains("--cuda"));
    }

    #[test]
    fn ours_is_recognised_through_a_symbolic_link() {
        let folder = tempfile::tempdir().unwrap();
        let (real, link) = (folder.path().join("real"), folder.path().join("link"));
        fs::create_dir(&real).unwrap();
        std::os::unix::fs::symlink(&real, &link).unwrap();
        let name = Path::new(".libtorch/torch-cpu");
        assert_eq!(subfolder_of_ours(&real, &link.join(name)), Some(OsStr::new("torch-cpu")));
        assert_eq!(subfolder_of_ours(&real, &folder.path().join(name)), None);
    }

    #[test]
    fn a_stamp_of_other_versions_is_stale() {
        let folder = tempfile::tempdir().unwrap();
        let root = folder.path();
        for flavour in [Flavour::Cpu, Flavour::Cuda] {
            let lib = root.join(flavour.subfolder()).join("lib");
            fs::create_dir_all(&lib).unwrap();
            flavour.libraries().iter().for_each(|library| fs::write(lib.join(library), "").unwrap());
        }
        assert!(!installed(root, Flavour::Cpu), "no stamp yet");
        record(root, Flavour::Cpu).unwrap();
        assert!(installed(root, Flavour::Cpu) && !installed(root, Flavour::Cuda));
        record(root, Flavour::Cuda).unwrap();
        assert!(installed(root, Flavour::Cpu) && installed(root, Flavour::Cuda));
        fs::write(root.join(STAMP), Flavour::Cpu.stamp().replace(VERSION, "2.10.0")).unwrap();
        assert!(!installed(root, Flavour::Cpu));
        record(root, Flavour::Cpu).unwrap();
        fs::remove_file(root.join("torch-cpu/lib/libc10.so")).unwrap();
        assert!(!installed(root, Flavour::Cpu), "a library is missing");
    }

    #[test]
    fn versions_are_read_from_either_file() {
        let folder = tempfile::tempdir().unwrap();
        assert_eq!(version_in(folder.path()), None);
        let text = "debug = False\n__version__ = '2.11.0+cu130'\n";
        fs::write(folder.path().join("version.py"), text).unwrap();
        assert_eq!(version_in(folder.path()).as_deref(), Some("2.11.0+cu130"));
        fs::write(folder.path().join("build-version"), "2.9.1+cpu\n").unwrap();
        assert_eq!(version_in(folder.path()).as_deref(), Some("2.9.1+cpu"));
        assert!(fits("2.11.0+cu130") && fits("2.11.0") && !fits("2.9.1+cpu"));
    }

    #[test]
    fn the_cuda_environment_can_be_applied_twice() {
        let root = Path::new("/code");
        let once = cuda_target(root, None);
        assert_eq!(once, Path::new("/code/target/cuda"));
        assert_eq!(cuda_target(root, Some(once.clone().into())), once);
        let flags = cuda_rustflags(Some("-Ctarget-cpu=native".into()));
        assert!(flags.starts_with("-Ctarget-cpu=native -Clink-arg="));
        assert_eq!(cuda_rustflags(Some(flags.clone())), flags);
    }
}
