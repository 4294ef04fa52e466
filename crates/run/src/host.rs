//! What this machine has, as Linux tells it. Elsewhere most of it is unknown, which is no error.

use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

pub(crate) use ruminate_torch::host_memory as memory;

/// One GPU, as the driver knows it.
#[derive(Debug, Clone, PartialEq)]
pub(crate) struct Gpu {
    pub(crate) name: String,
    /// Bytes.
    pub(crate) total: u64,
    pub(crate) free: u64,
    pub(crate) driver: String,
}

/// The GPUs that `nvidia-smi` lists; nothing where there is none.
pub(crate) fn gpus() -> Vec<Gpu> {
    let query = "--query-gpu=name,memory.total,memory.free,driver_version";
    let output = Command::new("nvidia-smi")
        .args([query, "--format=csv,noheader,nounits"])
        .stdin(Stdio::null())
        .stderr(Stdio::null())
        .output();
    output.map_or_else(|_| vec![], |output| parse_gpus(&String::from_utf8_lossy(&output.stdout)))
}

fn parse_gpus(text: &str) -> Vec<Gpu> {
    let gpu = |line: &str| -> Option<Gpu> {
        let mut parts = line.rsplitn(4, ',').map(str::trim);
        let (driver, free, total, name) = (parts.next()?, parts.next()?, parts.next()?, parts.next()?);
        // A slice of a GPU has no memory of its own to tell.
        let bytes = |text: &str| text.parse::<u64>().unwrap_or(0) << 20;
        Some(Gpu { name: name.into(), total: bytes(total), free: bytes(free), driver: driver.into() })
    };
    text.lines().filter_map(gpu).collect()
}

/// Is an NVIDIA driver loaded?
pub(crate) fn has_driver() -> bool {
    Path::new("/proc/driver/nvidia/version").exists() || Path::new("/dev/nvidiactl").exists()
}

/// The shared libraries that this process has loaded and whose file name contains `name`.
pub(crate) fn loaded(name: &str) -> Vec<PathBuf> {
    let maps = std::fs::read_to_string("/proc/self/maps").unwrap_or_default();
    let mut paths: Vec<PathBuf> = maps
        .lines()
        .filter_map(|line| Some(PathBuf::from(&line[line.find('/')?..])))
        .filter(|path| path.file_name().is_some_and(|file| file.to_string_lossy().contains(name)))
        .collect();
    paths.sort();
    paths.dedup();
    paths
}

/// Features of the CPU, as the kernel names them.
pub(crate) fn cpu_flags() -> Vec<String> {
    let text = std::fs::read_to_string("/proc/cpuinfo").unwrap_or_default();
    let flags = text.lines().find(|line| line.starts_with("flags") || line.starts_with("Features"));
    flags
        .and_then(|line| line.split_once(':'))
        .map_or_else(Vec::new, |(_, flags)| flags.split_whitespace().map(str::to_owned).collect())
}

/// The CPU's name.
pub(crate) fn cpu_name() -> Option<String> {
    let text = std::fs::read_to_string("/proc/cpuinfo").ok()?;
    let line = text.lines().find(|line| line.starts_with("model name"))?;
    Some(line.split_once(':')?.1.trim().to_owned())
}

/// The machine's name.
pub(crate) fn name() -> Option<String> {
    Some(std::fs::read_to_string("/proc/sys/kernel/hostname").ok()?.trim().to_owned())
}

/// Processes that wanted a core in the last minute, on average.
pub(crate) fn load() -> Option<f64> {
    std::fs::read_to_string("/proc/loadavg").ok()?.split_whitespace().next()?.parse().ok()
}

/// The nearest folder above (or at) a path that exists.
pub(crate) fn existing(path: &Path) -> PathBuf {
    let absolute = std::path::absolute(path).unwrap_or_else(|_| path.to_owned());
    absolute.ancestors().find(|folder| folder.is_dir()).unwrap_or(Path::new("/")).to_owned()
}

/// Bytes that can be written below a folder.
pub(crate) fn free_disk(path: &Path) -> Option<u64> {
    fs4::available_space(existing(path)).ok()
}

/// Bytes for people, in powers of 1000 as disks count.
pub(crate) fn bytes(count: u64) -> String {
    let count = count as f64;
    for (size, unit) in [(1e12, "TB"), (1e9, "GB"), (1e6, "MB"), (1e3, "kB")] {
        if count >= size {
            let digits = usize::from(count < 100.0 * size) + usize::from(count < 10.0 * size);
            return format!("{:.digits$} {unit}", count / size);
        }
    }
    format!("{count} bytes")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn gpus_are_read_from_the_drivers_list() {
        let text = "NVIDIA H200, 143771, 143156, 580.95.05\nX, with comma, [N/A], [N/A], 1\n\nnonsense\n";
        let gpus = parse_gpus(text);
        assert_eq!(gpus.len(), 2);
        assert_eq!((gpus[0].name.as_str(), gpus[0].total), ("NVIDIA H200", 143_771 << 20));
        assert_eq!((gpus[1].name.as_str(), gpus[1].free), ("X, with comma", 0));
    }

    #[test]
    fn bytes_have_two_or_three_digits() {
        let shown =
            [0, 999, 1000, 12_345, 999_999, 2_950_000_000, 123_000_000_000, 45_600_000_000_000].map(bytes);
        assert_eq!(
            shown,
            ["0 bytes", "999 bytes", "1.00 kB", "12.3 kB", "1000 kB", "2.95 GB", "123 GB", "45.6 TB"]
        );
    }

    #[test]
    fn missing_folders_have_one_above_them() {
        let folder = tempfile::tempdir().unwrap();
        assert_eq!(existing(&folder.path().join("a/b/c")), folder.path());
        assert!(free_disk(&folder.path().join("a/b")).unwrap() > 0);
    }

    #[test]
    fn the_libtorch_of_this_program_is_loaded() {
        let _ = tch::get_num_threads();
        assert!(cfg!(not(target_os = "linux")) || loaded("libtorch_cpu").len() == 1);
        assert_eq!(loaded("no such library"), Vec::<PathBuf>::new());
    }
}
