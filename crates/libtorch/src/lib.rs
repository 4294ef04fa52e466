#![doc = include_str!("../README.md")]

mod fetch;
pub mod machine;
pub mod pip;
mod problem;

use std::ffi::OsString;
use std::fs;
use std::path::{Path, PathBuf};

pub use fetch::fetch;
pub use problem::Problem;

/// The version of libtorch that the bindings are made for.
pub const VERSION: &str = "2.11.0";

/// The file that lists the packages installed in a folder of the cache; a change of the pinned ones makes it stale.
const STAMP: &str = "ruminate.stamp";

/// The environment variables that decide which libtorch is taken. A build script looks at them again when they change.
pub const VARIABLES: [&str; 9] = [
    "LIBTORCH",
    "LIBTORCH_INCLUDE",
    "LIBTORCH_LIB",
    "LIBTORCH_USE_PYTORCH",
    "LIBTORCH_BYPASS_VERSION_CHECK",
    "RUMINATE_CUDA",
    "RUMINATE_CACHE",
    "XDG_CACHE_HOME",
    "VIRTUAL_ENV",
];

/// The two builds of libtorch in the cache.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Build {
    /// For processors only.
    Cpu,
    /// For NVIDIA GPUs, too.
    Cuda,
}

impl Build {
    /// The build that `RUMINATE_CUDA` asks for.
    pub fn from_env() -> Self {
        let asked = std::env::var_os("RUMINATE_CUDA").is_some_and(|value| !value.is_empty() && value != "0");
        if asked { Self::Cuda } else { Self::Cpu }
    }

    /// `CPU` or `CUDA`.
    pub fn name(self) -> &'static str {
        match self {
            Self::Cpu => "CPU",
            Self::Cuda => "CUDA",
        }
    }

    /// The requirements file that pip installs, with hashes.
    fn requirements(self) -> &'static str {
        match self {
            Self::Cpu => include_str!("../requirements/cpu.txt"),
            Self::Cuda => include_str!("../requirements/cuda.txt"),
        }
    }

    /// Size of the download and of the installation, in words.
    pub fn size(self) -> &'static str {
        match self {
            Self::Cpu => "downloads about 540 MB, takes 1.2 GB of disk",
            Self::Cuda => "downloads about 2.7 GB, takes 4.5 GB of disk",
        }
    }

    /// Bytes of disk that fetching takes at its peak: wheels, unpacked files and pip's cache at the same time.
    pub fn peak_disk(self) -> u64 {
        match self {
            Self::Cpu => 2_500_000_000,
            Self::Cuda => 10_000_000_000,
        }
    }

    /// The folder of this build in the cache.
    pub fn installation(self, cache: &Path) -> PathBuf {
        let name = match self {
            Self::Cpu => "cpu",
            Self::Cuda => "cuda",
        };
        cache.join(format!("libtorch-{VERSION}-{name}"))
    }

    /// The folder that holds `lib/` and `include/`, inside of the installation. The CPU build is a view of the package without its CUDA
    /// libraries, so that nothing links to them.
    fn subfolder(self) -> &'static str {
        match self {
            Self::Cpu => "torch-cpu",
            Self::Cuda => "torch",
        }
    }

    /// The libraries that make up this build.
    fn libraries(self) -> &'static [&'static str] {
        match self {
            Self::Cpu => &["libtorch_cpu.so", "libtorch.so", "libc10.so", "libgomp.so.1"],
            Self::Cuda => &["libtorch_cpu.so", "libtorch_cuda.so", "libc10_cuda.so"],
        }
    }

    /// Whether the cache holds this build, complete and of the pinned versions.
    pub fn is_fetched(self, cache: &Path) -> bool {
        self.is_complete(&self.installation(cache))
    }

    fn is_complete(self, installation: &Path) -> bool {
        let stamp = fs::read_to_string(installation.join(STAMP)).unwrap_or_default();
        let lib = installation.join(self.subfolder()).join("lib");
        stamp == self.requirements() && self.libraries().iter().all(|library| lib.join(library).exists())
    }
}

/// Which libtorch the environment asks for.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Source {
    /// The cache.
    Cache(Build),
    /// The folder that `LIBTORCH` names.
    Folder(PathBuf),
    /// The PyTorch of the Python at hand (`LIBTORCH_USE_PYTORCH`).
    Python,
}

impl Source {
    /// The source that the environment asks for; `build` is the one of the cache.
    pub fn from_env(build: Build) -> Self {
        Self::choose(build, std::env::var_os("LIBTORCH"), std::env::var_os("LIBTORCH_USE_PYTORCH").is_some())
    }

    fn choose(build: Build, folder: Option<OsString>, use_pytorch: bool) -> Self {
        match folder.filter(|folder| !folder.is_empty()) {
            _ if use_pytorch => Self::Python,
            Some(folder) => Self::Folder(folder.into()),
            None => Self::Cache(build),
        }
    }
}

/// A libtorch to build with.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Libtorch {
    /// The folder that holds `lib/` and `include/`.
    pub folder: PathBuf,
    /// The folder of the libraries.
    pub lib: PathBuf,
    /// Folders of the headers.
    pub include: Vec<PathBuf>,
    /// Version as the folder states it, such as `2.11.0+cu130`; a folder need not state one.
    pub version: Option<String>,
}

impl Libtorch {
    fn at(folder: PathBuf) -> Result<Self, Problem> {
        let from = |name: &str| std::env::var_os(name).filter(|value| !value.is_empty()).map(PathBuf::from);
        let lib = from("LIBTORCH_LIB").unwrap_or_else(|| folder.clone()).join("lib");
        let headers = from("LIBTORCH_INCLUDE").unwrap_or_else(|| folder.clone()).join("include");
        for (what, path) in [("lib", &lib), ("include", &headers)] {
            if !path.is_dir() {
                return Err(Problem::new(
                    format!(
                        "{} is to be a libtorch, but there is no folder {what}: {}",
                        folder.display(),
                        path.display()
                    ),
                    format!(
                        "set LIBTORCH to the folder of a libtorch {VERSION} that holds lib/ and include/, or unset it"
                    ),
                ));
            }
        }
        let version = version_in(&folder);
        if let Some(version) = &version
            && version.split('+').next() != Some(VERSION)
            && std::env::var_os("LIBTORCH_BYPASS_VERSION_CHECK").is_none()
        {
            return Err(Problem::new(
                format!(
                    "{} is libtorch {version}, but the bindings are made for {VERSION}",
                    folder.display()
                ),
                "point LIBTORCH at that version, or unset it: the build then fetches the right one",
            ));
        }
        let include = vec![headers.join("torch/csrc/api/include"), headers];
        Ok(Self { folder, lib, include, version })
    }

    /// Whether this libtorch has CUDA.
    pub fn has_cuda(&self) -> bool {
        self.lib.join("libtorch_cuda.so").exists()
    }
}

/// The folder of the cache: `RUMINATE_CACHE`, else `ruminate` in the user's cache folder.
///
/// # Errors
/// When the environment names no folder, not even a home, or a relative one.
pub fn cache() -> Result<PathBuf, Problem> {
    cache_from(|name| std::env::var_os(name).filter(|value| !value.is_empty()))
}

fn cache_from(variable: impl Fn(&str) -> Option<OsString>) -> Result<PathBuf, Problem> {
    if let Some(folder) = variable("RUMINATE_CACHE") {
        return full_path("RUMINATE_CACHE", folder.into());
    }
    let absolute = |name: &str| variable(name).map(PathBuf::from).filter(|path| path.is_absolute());
    absolute("XDG_CACHE_HOME")
        .map(|folder| folder.join("ruminate"))
        .or_else(|| absolute("HOME").map(|home| home.join(".cache/ruminate")))
        .ok_or_else(|| {
            Problem::new(
                "there is no folder to keep libtorch in: HOME is not set",
                "set RUMINATE_CACHE to a folder with 5 GB of free space, or LIBTORCH to a libtorch of your own",
            )
        })
}

/// Refuses a relative path: a build script starts in its crate's folder, so the same value would name different folders.
fn full_path(variable: &str, path: PathBuf) -> Result<PathBuf, Problem> {
    if path.is_absolute() {
        return Ok(path);
    }
    Err(Problem::new(
        format!("{variable} is set to {}, which is not a full path", path.display()),
        format!("set {variable} to a path that begins with /"),
    ))
}

/// The libtorch that the environment asks for, if it is there. The cache may not hold it yet: then [`None`], and [`fetch`] gets it.
///
/// # Errors
/// When `LIBTORCH` names no libtorch, or one of another version, or when Python cannot import torch.
pub fn find(build: Build) -> Result<Option<Libtorch>, Problem> {
    match Source::from_env(build) {
        Source::Folder(folder) => Libtorch::at(full_path("LIBTORCH", folder)?).map(Some),
        Source::Python => Libtorch::at(folder_of_pytorch()?).map(Some),
        Source::Cache(build) => {
            let cache = cache()?;
            if !build.is_fetched(&cache) {
                return Ok(None);
            }
            Libtorch::at(build.installation(&cache).join(build.subfolder())).map(Some)
        }
    }
}

fn folder_of_pytorch() -> Result<PathBuf, Problem> {
    let python = if std::env::var_os("VIRTUAL_ENV").is_some() { "python" } else { "python3" };
    let script = "import os, torch; print(os.path.dirname(torch.__file__))";
    machine::first_line(python, &["-c", script]).map(PathBuf::from).ok_or_else(|| {
        Problem::new(
            "LIBTORCH_USE_PYTORCH is set, but this Python cannot import torch",
            format!("activate the environment that has torch {VERSION}, or unset LIBTORCH_USE_PYTORCH"),
        )
    })
}

/// The version that a libtorch folder states, as in `2.11.0+cu130`.
fn version_in(folder: &Path) -> Option<String> {
    if let Ok(version) = fs::read_to_string(folder.join("build-version")) {
        return Some(version.trim().to_string());
    }
    let python = fs::read_to_string(folder.join("version.py")).ok()?;
    let line = python.lines().find_map(|line| line.strip_prefix("__version__ = "))?;
    Some(line.trim_matches(['\'', '"']).to_string())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pins_agree_and_carry_hashes() {
        for build in [Build::Cpu, Build::Cuda] {
            let packages: Vec<&str> =
                build.requirements().lines().filter(|line| !line.starts_with('#')).collect();
            assert!(packages[0].starts_with(&format!("torch=={VERSION} ")));
            for package in packages {
                let (_, hash) = package.split_once(" --hash=sha256:").expect(package);
                assert!(hash.len() == 64 && hash.bytes().all(|byte| byte.is_ascii_hexdigit()), "{package}");
            }
        }
    }

    #[test]
    fn what_the_user_names_comes_first() {
        let own = || Some("/opt/libtorch".into());
        assert_eq!(Source::choose(Build::Cpu, None, false), Source::Cache(Build::Cpu));
        assert_eq!(Source::choose(Build::Cuda, Some("".into()), false), Source::Cache(Build::Cuda));
        assert_eq!(Source::choose(Build::Cuda, own(), false), Source::Folder("/opt/libtorch".into()));
        assert_eq!(Source::choose(Build::Cpu, own(), true), Source::Python);
    }

    #[test]
    fn the_cache_is_one_folder_for_each_user() {
        let with = |set: &[(&str, &str)]| {
            cache_from(|name| set.iter().find(|(key, _)| *key == name).map(|(_, value)| value.into()))
        };
        let home = ("HOME", "/home/ada");
        assert_eq!(with(&[home]).unwrap(), Path::new("/home/ada/.cache/ruminate"));
        assert_eq!(with(&[home, ("XDG_CACHE_HOME", "/big")]).unwrap(), Path::new("/big/ruminate"));
        assert_eq!(with(&[home, ("RUMINATE_CACHE", "/mine")]).unwrap(), Path::new("/mine"));
        assert!(with(&[]).unwrap_err().fix.contains("RUMINATE_CACHE"));
        assert!(with(&[home, ("RUMINATE_CACHE", "mine")]).unwrap_err().what.contains("not a full path"));
        // As the XDG specification has it, a relative path is no path.
        assert_eq!(with(&[home, ("XDG_CACHE_HOME", "big")]).unwrap(), Path::new("/home/ada/.cache/ruminate"));
    }

    #[test]
    fn a_stamp_of_other_versions_is_stale() {
        let cache = tempfile::tempdir().unwrap();
        for build in [Build::Cpu, Build::Cuda] {
            let installation = build.installation(cache.path());
            let lib = installation.join(build.subfolder()).join("lib");
            fs::create_dir_all(&lib).unwrap();
            build.libraries().iter().for_each(|library| fs::write(lib.join(library), "").unwrap());
            assert!(!build.is_fetched(cache.path()), "no stamp yet");
            fs::write(installation.join(STAMP), build.requirements()).unwrap();
            assert!(build.is_fetched(cache.path()));
            fs::write(installation.join(STAMP), build.requirements().replace(VERSION, "2.10.0")).unwrap();
            assert!(!build.is_fetched(cache.path()));
            fs::write(installation.join(STAMP), build.requirements()).unwrap();
            fs::remove_file(lib.join(build.libraries()[2])).unwrap();
            assert!(!build.is_fetched(cache.path()), "a library is missing");
        }
    }

    #[test]
    fn a_folder_of_another_version_or_form_is_refused() {
        let folder = tempfile::tempdir().unwrap();
        let at = || Libtorch::at(folder.path().to_path_buf());
        assert!(at().unwrap_err().what.contains("no folder lib"));
        fs::create_dir(folder.path().join("lib")).unwrap();
        assert!(at().unwrap_err().what.contains("no folder include"));
        fs::create_dir(folder.path().join("include")).unwrap();
        assert_eq!(at().unwrap().version, None);
        fs::write(folder.path().join("version.py"), "debug = False\n__version__ = '2.11.0+cu130'\n").unwrap();
        assert_eq!(at().unwrap().version.as_deref(), Some("2.11.0+cu130"));
        fs::write(folder.path().join("build-version"), "2.9.1+cpu\n").unwrap();
        assert!(at().unwrap_err().what.contains("2.9.1+cpu"));
    }
}
