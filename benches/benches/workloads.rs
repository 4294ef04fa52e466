//! Criterion groups of the workloads, with throughput.
//!
//! `RUMINATE_BENCH_MODEL` chooses the size of model (default `t5-mini`, which like `llama-mini` takes a minute or two in all). With
//! the group `loss` comes the peak memory with and without full logits.
#![allow(missing_docs, clippy::print_stderr, reason = "a benchmark")]

use std::process::Command;
use std::time::{Duration, Instant};

use criterion::{Criterion, Throughput};
use ruminate_benches::{Precision, Setting, WORKLOADS, prepare, shape};
use tch::Device;

/// Groups and their workloads.
const GROUPS: &[(&str, &[&str])] = &[
    ("train", &["sft", "sft_no_dropout", "sft_mixed"]),
    ("ranks", &["sft_ranks", "sft_ranks_optimizer"]),
    ("loss", &["loss", "loss_full_logits"]),
    ("optimizer", &["adam"]),
    ("prefill", &["prefill"]),
    ("decode", &["decode_1", "decode_8", "decode_32"]),
    ("generate", &["gen_greedy_8", "gen_top_p_8"]),
    ("rollout", &["rollout_8", "rollout_32"]),
    ("samples", &["samples", "samples_repeated"]),
    ("ppo", &["ppo", "ppo_step"]),
    ("dpo", &["score_pairs", "dpo"]),
    ("choices", &["choices_2", "choices_16"]),
    ("quark", &["quark"]),
    // Samples per second, not tokens.
    ("rewards", &["reward_consistency", "reward_plausibility", "reward_diversity"]),
    ("score", &["score"]),
];

fn main() {
    ruminate_torch::keep_freed_memory();
    let model = std::env::var("RUMINATE_BENCH_MODEL").unwrap_or_else(|_| "t5-mini".into());
    let filters: Vec<String> = std::env::args().skip(1).filter(|arg| !arg.starts_with('-')).collect();
    if filters.iter().all(|filter| "loss/loss_full_logits".contains(filter)) {
        peaks(&model);
    }
    let mut criterion = Criterion::default()
        .sample_size(10)
        .warm_up_time(Duration::from_secs(1))
        .measurement_time(Duration::from_secs(3))
        .configure_from_args();
    measure(&mut criterion, &model, "cpu", Device::Cpu);
    if tch::Cuda::is_available() {
        measure(&mut criterion, &model, "cuda", Device::Cuda(0));
    } else {
        eprintln!("cuda: skipped, there is no such device");
    }
    criterion.final_summary();
}

fn measure(criterion: &mut Criterion, model: &str, name: &str, device: Device) {
    let setting =
        Setting::new(shape(model).unwrap_or_else(|error| panic!("{error}")), Precision::Fp32, device);
    for (group, workloads) in GROUPS {
        let mut group = criterion.benchmark_group(*group);
        for &workload in *workloads {
            if WORKLOADS.iter().any(|entry| entry.name == workload && !entry.fits(&setting.model)) {
                eprintln!("{workload}: skipped, it is no workload of {model}");
                continue;
            }
            let mut prepared =
                prepare(workload, &setting).unwrap_or_else(|error| panic!("{workload}: {error:#}"));
            group.throughput(Throughput::Elements(prepared.tokens as u64));
            group.bench_function(format!("{workload}/{model}/{name}"), |bencher| {
                bencher.iter_custom(|repeats| {
                    let start = Instant::now();
                    for _ in 0..repeats {
                        prepared.repeat().unwrap_or_else(|error| panic!("{workload}: {error:#}"));
                    }
                    start.elapsed()
                });
            });
        }
        group.finish();
    }
}

/// Peak memory, each in a process of its own.
fn peaks(model: &str) {
    for bench in ["loss", "loss_full_logits", "sft", "sft_full_logits"] {
        let output = Command::new(env!("CARGO_BIN_EXE_workload"))
            .args(["--bench", bench, "--model", model, "--warmup", "1", "--repeats", "2"])
            .output()
            .unwrap_or_else(|error| panic!("starting the workload: {error}"));
        let text = String::from_utf8_lossy(&output.stdout);
        let result: serde_json::Value =
            serde_json::from_str(text.trim()).unwrap_or_else(|error| panic!("{bench}: {error}"));
        eprintln!("{bench}: peak {} MiB", result["peak_rss_mib"]);
    }
}
