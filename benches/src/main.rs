//! Times one workload in this process and prints one line of JSON.
#![allow(clippy::print_stdout, reason = "a command-line tool prints its result")]

use std::io::BufRead;
use std::time::Instant;

use anyhow::{Context, Result};
use clap::Parser;
use ruminate_benches::{Precision, Setting, host, prepare, shape};
use ruminate_torch::CpuLevel;
use ruminate_torch::kernels::{Kernel, turn_on};
use serde_json::json;
use tch::{Device, Kind};

/// Times one workload and prints one line of JSON.
#[derive(Debug, Parser)]
struct Cli {
    /// Name of the workload
    #[arg(long)]
    bench: String,
    /// Size of the model
    #[arg(long, default_value = "t5-small")]
    model: String,
    /// Precision
    #[arg(long, value_enum, default_value_t = Precision::Fp32)]
    dtype: Precision,
    /// Threads
    #[arg(long, default_value_t = 2)]
    threads: i32,
    /// Run on the first CUDA device
    #[arg(long)]
    cuda: bool,
    /// Kernels for CUDA to turn on, or "all": log_probs, top_p, decode_attention, rope, gate, attention, graphs
    #[arg(long, value_delimiter = ',')]
    kernels: Vec<String>,
    /// Rows instead of the workload's own number
    #[arg(long)]
    batch: Option<usize>,
    /// Repeats before timing starts
    #[arg(long, default_value_t = 2)]
    warmup: usize,
    /// Timed repeats
    #[arg(long, default_value_t = 5)]
    repeats: usize,
    /// Say "ready" after the warm-up, then do one repeat for each line on stdin and print its seconds; the result
    /// comes at the end of the input. So two programs can take turns.
    #[arg(long)]
    paced: bool,
}

fn main() -> Result<()> {
    let cli = Cli::parse();
    ruminate_torch::keep_freed_memory();
    tch::set_num_threads(cli.threads);
    let device = if cli.cuda { Device::Cuda(0) } else { Device::Cpu };
    anyhow::ensure!(!cli.cuda || tch::Cuda::is_available(), "there is no CUDA device");
    turn_on(&kernels(&cli.kernels)?)?;
    let mut setting = Setting::new(shape(&cli.model)?, cli.dtype, device);
    setting.batch = cli.batch;
    let before = host::peak_rss_mib()?;
    let mut workload = prepare(&cli.bench, &setting)?;
    let mut lines = std::io::stdin().lock().lines();
    let (mut secs, mut turn, mut start) = (vec![], 0, Instant::now());
    workload.run(&mut |phases| {
        if turn > cli.warmup {
            secs.push(start.elapsed().as_secs_f64());
            if cli.paced {
                println!("{:.6}", secs[secs.len() - 1]);
            }
        } else if turn == cli.warmup {
            phases.take();
            if cli.paced {
                println!("ready");
            }
        }
        let more = match cli.paced {
            _ if turn < cli.warmup => true,
            true => lines.next().transpose()?.is_some(),
            false => secs.len() < cli.repeats,
        };
        turn += 1;
        start = Instant::now();
        Ok(more)
    })?;
    secs.sort_by(f64::total_cmp);
    let median =
        (secs.get((secs.len().max(1) - 1) / 2).context("no repeat was timed")? + secs[secs.len() / 2]) / 2.0;
    let peak = host::peak_rss_mib()?;
    let kind = if cli.dtype == Precision::Fp32 { Kind::Float } else { Kind::BFloat16 };
    let dropout = if cli.bench.starts_with("sft") && cli.bench != "sft_no_dropout" {
        setting.model.dropout()
    } else {
        0.0
    };
    let (gflops, bandwidth) = (host::matmul_gflops(kind, device)?, host::bandwidth(device)?);
    let mut result = json!({
        "bench": cli.bench, "model": cli.model, "parameters": workload.parameters,
        "device": if cli.cuda { "cuda" } else { "cpu" }, "dtype": cli.dtype.name(), "threads": cli.threads, "cpu_level": CpuLevel::in_use()?.name(),
        "batch": workload.batch, "tokens": workload.tokens, "dropout": dropout, "warmup": cli.warmup, "repeats": secs.len(),
        "median_s": rounded(median, 5), "min_s": rounded(secs[0], 5), "max_s": rounded(secs[secs.len() - 1], 5),
        "tokens_per_s": rounded(workload.tokens as f64 / median, 1),
        "rss_before_model_mib": before, "peak_rss_mib": peak,
        "matmul_gflops": gflops.round(), "bandwidth_gb_per_s": rounded(bandwidth / 1e9, 1), "load_average": host::load_average()?,
        "program": concat!("ruminate ", env!("CARGO_PKG_VERSION")),
    });
    if !cli.kernels.is_empty() {
        result["kernels"] = json!(cli.kernels);
    }
    if !workload.least.is_empty() {
        let floor: f64 = workload.least.iter().map(|work| work.seconds(gflops * 1e9, bandwidth)).sum();
        result["floor_s"] = json!(rounded(floor, 5));
    }
    if workload.sent.get() > 0 {
        let repeats = (cli.warmup + secs.len()) as f64;
        result["sent_mib_per_repeat"] =
            json!(rounded(workload.sent.get() as f64 / repeats / 1024.0 / 1024.0, 1));
    }
    for (phase, total) in workload.phases.take() {
        result[phase] = json!(rounded(total / secs.len() as f64, 5));
    }
    println!("{result}");
    Ok(())
}

fn kernels(names: &[String]) -> Result<Vec<Kernel>> {
    if names == ["all"] {
        return Ok(Kernel::ALL.to_vec());
    }
    let of = |name: &String| {
        let found = Kernel::ALL.into_iter().find(|kernel| kernel.name() == name);
        found.with_context(|| {
            format!("there is no kernel {name:?}; there are {}", Kernel::ALL.map(Kernel::name).join(", "))
        })
    };
    names.iter().map(of).collect()
}

fn rounded(x: f64, digits: i32) -> f64 {
    let scale = 10f64.powi(digits);
    (x * scale).round() / scale
}
