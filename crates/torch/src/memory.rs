//! The memory of this machine, as Linux tells it.

use std::path::Path;

/// Bytes of the machine's memory: all, and what programs can still get. A container's limit counts. `None` where the system does
/// not tell.
#[must_use]
pub fn host_memory() -> Option<(u64, u64)> {
    let text = std::fs::read_to_string("/proc/meminfo").ok()?;
    let kilobytes = |key: &str| -> Option<u64> {
        let line = text.lines().find_map(|line| line.strip_prefix(key))?;
        line.trim_start_matches(':').split_whitespace().next()?.parse().ok()
    };
    let (total, available) = (kilobytes("MemTotal")? * 1024, kilobytes("MemAvailable")? * 1024);
    let cgroup = |name: &str| -> Option<u64> {
        std::fs::read_to_string(Path::new("/sys/fs/cgroup").join(name)).ok()?.trim().parse().ok()
    };
    Some(match cgroup("memory.max") {
        Some(limit) if limit < total => {
            (limit, available.min(limit.saturating_sub(cgroup("memory.current").unwrap_or(0))))
        }
        _ => (total, available),
    })
}
