//! What the machine says about itself and this process.

use std::fs;
use std::time::Instant;

use anyhow::{Context, Result};
use tch::{Device, Kind, Tensor};

/// Largest resident set of this process so far, in MiB.
///
/// # Errors
/// Where there is no `/proc`.
pub fn peak_rss_mib() -> Result<u64> {
    let status = fs::read_to_string("/proc/self/status").context("reading the peak memory")?;
    let line = status.lines().find_map(|line| line.strip_prefix("VmHWM:")).context("no VmHWM in it")?;
    let kib: u64 = line.split_whitespace().next().unwrap_or_default().parse()?;
    Ok(kib / 1024)
}

/// Mean number of processes that wanted to run in the last minute.
///
/// # Errors
/// Where there is no `/proc`.
pub fn load_average() -> Result<f64> {
    let text = fs::read_to_string("/proc/loadavg").context("reading the load")?;
    Ok(text.split_whitespace().next().unwrap_or_default().parse()?)
}

/// Best rate of a product of two square matrices, in Gflop/s: whether two runs had the same machine under them.
///
/// # Errors
/// When libtorch refuses.
pub fn matmul_gflops(kind: Kind, device: Device) -> Result<f64> {
    let n = if device == Device::Cpu { 2048 } else { 8192 };
    let matrix = Tensor::f_randn([n, n], (kind, device))?;
    let mut best = f64::INFINITY;
    for _ in 0..6 {
        let start = Instant::now();
        let _ = matrix.f_matmul(&matrix)?;
        if let Device::Cuda(index) = device {
            tch::Cuda::synchronize(index as i64);
        }
        best = best.min(start.elapsed().as_secs_f64());
    }
    Ok(2.0 * (n as f64).powi(3) / best / 1e9)
}

/// Best rate of reading memory, in bytes a second: by a sum, or by a product with one row, whichever is faster.
///
/// # Errors
/// When libtorch refuses.
pub fn bandwidth(device: Device) -> Result<f64> {
    let side = if device == Device::Cpu { 1i64 << 13 } else { 1i64 << 15 };
    let numbers = Tensor::f_ones([side, side], (Kind::Float, device))?;
    let row = Tensor::f_ones([1, side], (Kind::Float, device))?;
    let packed = ruminate_torch::Packed::new(&[&numbers])?;
    let mut best = f64::INFINITY;
    for _ in 0..6 {
        for product in [false, true] {
            let start = Instant::now();
            let _ = if product { packed.linear(&row)? } else { numbers.f_sum(Kind::Float)? };
            if let Device::Cuda(index) = device {
                tch::Cuda::synchronize(index as i64);
            }
            best = best.min(start.elapsed().as_secs_f64());
        }
    }
    Ok(4.0 * (side * side) as f64 / best)
}
