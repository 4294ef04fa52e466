//! `doctor`: what a run will find on this machine, and what mends what is not right.

use std::io;
use std::path::Path;

use ruminate_torch::CpuLevel;
use serde::Serialize;

use crate::host::{self, Gpu};
use crate::output::{print as print_line, print_json};

/// What is known of one thing.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub(crate) struct Finding {
    name: &'static str,
    state: State,
    found: String,
    /// The command, or the change, that mends it.
    #[serde(skip_serializing_if = "Option::is_none")]
    mend: Option<String>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
enum State {
    Ok,
    /// Works, but not as well as it could.
    Note,
    Problem,
}

impl Finding {
    fn ok(name: &'static str, found: impl Into<String>) -> Self {
        Self { name, state: State::Ok, found: found.into(), mend: None }
    }

    fn note(name: &'static str, found: impl Into<String>, mend: impl Into<String>) -> Self {
        Self { name, state: State::Note, found: found.into(), mend: Some(mend.into()) }
    }

    fn problem(name: &'static str, found: impl Into<String>, mend: impl Into<String>) -> Self {
        Self { name, state: State::Problem, found: found.into(), mend: Some(mend.into()) }
    }

    pub(crate) fn is_problem(&self) -> bool {
        self.state == State::Problem
    }
}

/// The libtorch that tch's bindings are made for.
const VERSION: &str = "2.11";
/// How a program is built that computes on a GPU.
const BUILD_CUDA: &str = "RUMINATE_CUDA=1 cargo build --release";
/// Less than this is not enough for a checkpoint of a large model.
const LITTLE_DISK: u64 = 10_000_000_000;

/// Looks at everything that a run depends on.
pub(crate) fn examine(out: &Path) -> Vec<Finding> {
    let info = ruminate_torch::build_info().unwrap_or_default();
    let cuda = Cuda {
        beside: host::loaded("libtorch_cpu")
            .iter()
            .any(|path| path.with_file_name("libtorch_cuda.so").exists()),
        loaded: !host::loaded("libtorch_cuda").is_empty(),
        devices: tch::Cuda::device_count(),
        gpus: host::gpus(),
        driver: host::has_driver(),
    };
    let mut findings = vec![libtorch(&info), cuda.finding()];
    if cuda.loaded {
        findings.push(nccl());
    }
    findings.extend(cuda.gpus.iter().map(|gpu| {
        let found = format!(
            "{}: {} of {} free, driver {}",
            gpu.name,
            host::bytes(gpu.free),
            host::bytes(gpu.total),
            gpu.driver
        );
        Finding::ok("gpu", found)
    }));
    let cores = std::thread::available_parallelism().map_or(1, usize::from);
    findings.push(cpu(&info, &host::cpu_flags()));
    findings.push(products());
    findings.push(threads(tch::get_num_threads(), cores, host::load()));
    findings.push(blas(&info));
    findings.push(memory(host::memory()));
    findings.push(writable(out));
    findings.push(disk(out, host::free_disk(out)));
    findings
}

/// Prints the findings on stdout.
pub(crate) fn print(findings: &[Finding], json: bool) -> io::Result<()> {
    if json {
        let problems = findings.iter().filter(|finding| finding.is_problem()).count();
        return print_json(&serde_json::json!({ "problems": problems, "findings": findings }));
    }
    let mut lines = vec![];
    for Finding { name, state, found, mend } in findings {
        let state = match state {
            State::Ok => "ok",
            State::Note => "note",
            State::Problem => "problem",
        };
        lines.push(format!("{state:<9}{name:<10}{found}"));
        lines.extend(mend.as_ref().map(|mend| format!("{:19}mend it: {mend}", "")));
    }
    print_line(&lines.join("\n"))
}

/// The value of `KEY=value,` in libtorch's description of itself.
fn setting<'a>(info: &'a str, key: &str) -> Option<&'a str> {
    let rest = info.split([',', '\n']).find_map(|part| {
        part.trim_start_matches([' ', '-']).trim_start_matches("Build settings: ").strip_prefix(key)
    })?;
    rest.strip_prefix('=').map(str::trim)
}

/// The version of libtorch.
pub(crate) fn libtorch_version() -> Option<String> {
    setting(&ruminate_torch::build_info().ok()?, "TORCH_VERSION").map(str::to_owned)
}

fn libtorch(info: &str) -> Finding {
    let Some(version) = setting(info, "TORCH_VERSION") else {
        return Finding::problem("libtorch", "does not tell its version", "unset LIBTORCH and rebuild");
    };
    let build = if setting(info, "USE_CUDA") == Some("1") { "CUDA" } else { "CPU" };
    let place =
        host::loaded("libtorch_cpu").first().map(|path| format!(", {}", path.display())).unwrap_or_default();
    let compiler = info.lines().nth(1).map(|line| line.trim_start_matches([' ', '-'])).unwrap_or_default();
    let found = format!("{version}, built for {build} with {compiler}{place}");
    if version.starts_with(VERSION) {
        Finding::ok("libtorch", found)
    } else {
        let mend = format!("unset LIBTORCH and rebuild, or point it at libtorch {VERSION}.0");
        Finding::problem("libtorch", format!("{found}; the bindings are made for {VERSION}"), mend)
    }
}

/// What decides whether CUDA can be used.
struct Cuda {
    /// The library lies beside the one that is loaded.
    beside: bool,
    loaded: bool,
    devices: i64,
    gpus: Vec<Gpu>,
    driver: bool,
}

impl Cuda {
    fn finding(&self) -> Finding {
        let name = "cuda";
        if self.devices > 0 {
            return Finding::ok(name, format!("{} device(s) for --device cuda:N", self.devices));
        }
        if self.loaded && self.driver {
            let hidden = std::env::var("CUDA_VISIBLE_DEVICES").is_ok();
            let mend = if hidden {
                "unset CUDA_VISIBLE_DEVICES, or name a device in it that nvidia-smi lists"
            } else {
                "compare the driver's version in nvidia-smi with what CUDA 13.0 needs (580 or newer), and update it"
            };
            return Finding::problem(name, "there is a driver, but libtorch sees no device", mend);
        }
        if self.loaded {
            let mend = "install NVIDIA's driver (580 or newer), in a container start it with --gpus all; or use --device cpu";
            return Finding::note(name, "a CUDA build on a machine without an NVIDIA driver", mend);
        }
        if self.beside {
            let found = "libtorch has CUDA, but this program does not load libtorch_cuda: everything would run on the CPU";
            return Finding::problem(
                name,
                found,
                format!("rebuild it: cargo clean -p ruminate-torch && {BUILD_CUDA}"),
            );
        }
        if self.driver {
            let found = "this machine has an NVIDIA driver, but this program is built for the CPU";
            return Finding::note(name, found, BUILD_CUDA);
        }
        Finding::ok(name, "none: a CPU build, and no NVIDIA driver on this machine")
    }
}

fn nccl() -> Finding {
    match host::loaded("libnccl").first() {
        Some(path) => Finding::ok("nccl", path.display().to_string()),
        None => Finding::note("nccl", "not loaded: several GPUs cannot work together", BUILD_CUDA),
    }
}

fn cpu(info: &str, flags: &[String]) -> Finding {
    let used =
        info.lines().find_map(|line| line.split_once("CPU capability usage: ")).map(|(_, used)| used.trim());
    let bf16: Vec<&str> =
        ["avx512_bf16", "amx_bf16"].into_iter().filter(|f| flags.iter().any(|g| g == f)).collect();
    let fast =
        if bf16.is_empty() { "none, so --precision bf16 is slower than f32".into() } else { bf16.join(", ") };
    let (detected, level) = match CpuLevel::detected().and_then(|all| Ok((all, CpuLevel::in_use()?))) {
        Ok(levels) => levels,
        Err(error) => return Finding::problem("cpu", error.to_string(), "unset RUMINATE_CPU"),
    };
    let found = format!(
        "{}; our loops use {level}, libtorch uses {}; bf16 instructions: {fast}",
        host::cpu_name().unwrap_or_else(|| std::env::consts::ARCH.into()),
        used.unwrap_or("unknown instructions")
    );
    if level < detected {
        return Finding::note("cpu", format!("{found}; the processor has {detected}"), "unset RUMINATE_CPU");
    }
    let limited = std::env::var("ATEN_CPU_CAPABILITY").is_ok();
    if limited && used.is_some_and(|used| !used.contains("512")) && flags.iter().any(|flag| flag == "avx512f")
    {
        return Finding::note("cpu", found, "unset ATEN_CPU_CAPABILITY");
    }
    Finding::ok("cpu", found)
}

/// Which library multiplies float32 matrices.
fn products() -> Finding {
    match ruminate_torch::product_library() {
        Ok(library) => {
            Finding::ok("products", format!("large ones by {library}; those of few rows by our own loops"))
        }
        Err(error) => Finding::problem("products", error.to_string(), "unset RUMINATE_CPU"),
    }
}

fn threads(used: i32, cores: usize, load: Option<f64>) -> Finding {
    let found = format!(
        "libtorch uses {used} on {cores} cores{}",
        load.map(|load| format!(", of which {load:.1} were busy in the last minute")).unwrap_or_default()
    );
    if usize::try_from(used).unwrap_or(0) > cores {
        return Finding::note("threads", found, format!("--threads {cores}, or unset OMP_NUM_THREADS"));
    }
    if used > 1 && load.is_some_and(|load| load > cores as f64) {
        let mend = "--threads 1 and GOMP_SPINCOUNT=0 while others use the machine: waiting threads burn the cores that they wait for";
        return Finding::note("threads", found, mend);
    }
    Finding::ok("threads", found)
}

fn blas(info: &str) -> Finding {
    let found = format!(
        "{}; oneDNN {}; OpenMP {}",
        setting(info, "BLAS_INFO").or(setting(info, "BLAS")).map_or("none", |blas| blas),
        if tch::utils::has_mkldnn() { "yes" } else { "no" },
        if tch::utils::has_openmp() { "yes" } else { "no" },
    );
    if setting(info, "BLAS_INFO").is_none() && !tch::utils::has_mkl() {
        return Finding::note(
            "blas",
            found,
            "unset LIBTORCH and rebuild: the libtorch that the build fetches has one",
        );
    }
    Finding::ok("blas", found)
}

fn memory(memory: Option<(u64, u64)>) -> Finding {
    match memory {
        None => Finding::ok("memory", "unknown on this system"),
        Some((total, available)) => {
            let found = format!("{} of {} free", host::bytes(available), host::bytes(total));
            if available < 2_000_000_000 {
                return Finding::note(
                    "memory",
                    found,
                    "end other programs; --dry-run tells how much a run needs",
                );
            }
            Finding::ok("memory", found)
        }
    }
}

fn writable(out: &Path) -> Finding {
    let folder = host::existing(out);
    match tempfile::NamedTempFile::new_in(&folder) {
        Ok(_) if out.is_dir() => Finding::ok("out", format!("{} is writable", out.display())),
        Ok(_) => Finding::ok("out", format!("{} can be created", out.display())),
        Err(error) => {
            let mend = format!("choose another --out, or: sudo chown \"$USER\" {}", folder.display());
            Finding::problem("out", format!("{} is not writable: {error}", folder.display()), mend)
        }
    }
}

fn disk(out: &Path, free: Option<u64>) -> Finding {
    match free {
        None => Finding::ok("disk", "free space unknown"),
        Some(free) if free < LITTLE_DISK => Finding::note(
            "disk",
            format!("only {} free in {}", host::bytes(free), out.display()),
            "choose another --out; a checkpoint of t5-large with the optimizer's states takes 9 GB, and two are kept",
        ),
        Some(free) => Finding::ok("disk", format!("{} free", host::bytes(free))),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const INFO: &str = "PyTorch built with:\n  - GCC 13.3\n  - CPU capability usage: AVX512\n  - Build settings: \
                        BLAS_INFO=mkl, USE_CUDA=1, TORCH_VERSION=2.11.0, USE_NCCL=1, \n";

    #[test]
    fn libtorch_describes_itself() {
        assert_eq!((setting(INFO, "BLAS_INFO"), setting(INFO, "USE_CUDA")), (Some("mkl"), Some("1")));
        assert_eq!((setting(INFO, "TORCH_VERSION"), setting(INFO, "USE")), (Some("2.11.0"), None));
        let finding = libtorch(INFO);
        assert_eq!(finding.state, State::Ok);
        assert!(finding.found.starts_with("2.11.0, built for CUDA with GCC 13.3"), "{finding:?}");
        let old = libtorch(&INFO.replace("2.11.0", "2.9.1"));
        assert!(old.is_problem() && old.mend.unwrap().contains("2.11.0"));
        assert!(libtorch("").is_problem());
    }

    #[test]
    fn a_cuda_build_without_cuda_is_found_out() {
        let cuda = |beside, loaded, devices, driver| {
            Cuda { beside, loaded, devices, gpus: vec![], driver }.finding()
        };
        assert_eq!(cuda(true, true, 2, true).state, State::Ok);
        assert_eq!(cuda(false, false, 0, false).state, State::Ok);
        let dropped = cuda(true, false, 0, true);
        assert!(dropped.is_problem() && dropped.found.contains("does not load libtorch_cuda"));
        assert!(cuda(true, true, 0, true).is_problem());
        assert_eq!(cuda(true, true, 0, false).state, State::Note);
        let cpu_build = cuda(false, false, 0, true);
        assert!(cpu_build.state == State::Note && cpu_build.mend.unwrap().contains("RUMINATE_CUDA=1"));
    }

    #[test]
    fn what_is_not_right_comes_with_what_mends_it() {
        let folder = tempfile::tempdir().unwrap();
        let file = folder.path().join("file");
        std::fs::write(&file, "").unwrap();
        for finding in examine(&folder.path().join("runs")) {
            assert_eq!(finding.state == State::Ok, finding.mend.is_none(), "{finding:?}");
            assert!(!finding.is_problem(), "{finding:?}");
        }
        assert_eq!(std::fs::read_dir(folder.path()).unwrap().count(), 1, "nothing is left behind");
        assert_eq!(threads(8, 2, None).state, State::Note);
        assert_eq!(threads(2, 2, Some(9.0)).state, State::Note);
        assert_eq!(threads(1, 2, Some(9.0)).state, State::Ok);
        assert_eq!(disk(folder.path(), Some(1)).state, State::Note);
        assert_eq!(memory(Some((8 << 30, 1 << 30))).state, State::Note);
        let level = CpuLevel::in_use().unwrap();
        let expected = format!("our loops use {level}, libtorch uses AVX512; bf16 instructions: amx_bf16");
        assert!(cpu(INFO, &["amx_bf16".into()]).found.contains(&expected));
        assert!(products().found.contains("MKL"));
    }
}
