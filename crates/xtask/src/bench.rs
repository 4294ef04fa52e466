//! `cargo xtask bench`: the criterion groups, and the workloads beside the Python stack.

mod pair;
mod python;

use std::fs;
use std::io::Write;
use std::path::Path;

use anyhow::{Context, Result};
use clap::{Args, ValueEnum};

use ruminate_libtorch::Problem;

use crate::Cuda;
use crate::cargo::{cargo, hand_over, run};
use pair::{Comparison, Side};

/// What to time.
#[derive(Debug, Args)]
pub(crate) struct Bench {
    /// Time the criterion benches whose name contains this [default: all]
    filter: Option<String>,
    /// Time workloads in turns with the same ones in Python (transformers), and print the ratios
    #[arg(long, conflicts_with = "filter")]
    against_python: bool,
    /// Workloads to compare [default: those of the model's family]
    #[arg(long, value_delimiter = ',', requires = "against_python")]
    workloads: Option<Vec<String>>,
    /// How often the two sides take turns
    #[arg(long, default_value_t = 5, requires = "against_python")]
    rounds: usize,
    /// Precision of both sides
    #[arg(long, value_enum, default_value_t = Dtype::Fp32, requires = "against_python")]
    dtype: Dtype,
    /// Size of the model: t5-mini, t5-small, t5-base, t5-large, flan-t5-base, llama-mini, llama-60m or llama-1b
    /// [default: t5-small; t5-mini for criterion]
    #[arg(long)]
    model: Option<String>,
    /// Threads of each side
    #[arg(long, default_value_t = 2)]
    threads: usize,
    /// A Python that has the packages of benches/python/requirements.txt [default: an environment in target, made when
    /// it is first needed]
    #[arg(long, value_name = "PROGRAM", requires = "against_python")]
    python: Option<String>,
    #[command(flatten)]
    cuda: Cuda,
}

#[derive(Debug, Clone, Copy, ValueEnum)]
enum Dtype {
    /// Everything in float32
    Fp32,
    /// Everything in bfloat16
    Bf16,
    /// float32 weights, matrix products in bfloat16
    Amp,
}

/// What is compared of every model.
const COMPARED: &[&str] = &[
    "sft",
    "sft_mixed",
    "prefill",
    "decode_1",
    "decode_8",
    "decode_32",
    "gen_greedy_8",
    "gen_greedy_32",
    "gen_top_p_8",
    "gen_top_p_32",
    "rollout_8",
    "rollout_32",
    "ppo",
    "ppo_step",
    "score",
    "score_pairs",
    "dpo",
    "choices_2",
    "choices_16",
];

fn compared(model: &str) -> Vec<String> {
    // TRL trains decoder-only models only.
    let own: &[&str] = match model.starts_with("llama") {
        true => &["dpo_trainer", "dpo_trainer_logits"],
        false => &["sft_no_dropout"],
    };
    own.iter().chain(COMPARED).map(ToString::to_string).collect()
}

pub(crate) fn bench(root: &Path, args: &Bench) -> Result<u8> {
    if args.against_python { against_python(root, args) } else { criterion(root, args) }
}

fn criterion(root: &Path, args: &Bench) -> Result<u8> {
    let mut cargo = cargo(root, args.cuda)?;
    cargo.args([
        "bench",
        "--profile",
        "release",
        "--package",
        "ruminate-benches",
        "--bench",
        "workloads",
        "--bench",
        "kernels",
        "--",
    ]);
    cargo.args(&args.filter);
    if let Some(model) = &args.model {
        cargo.env("RUMINATE_BENCH_MODEL", model);
    }
    hand_over(threads(cargo, args.threads))
}

/// Libraries read it before anything else could tell them.
fn threads(mut command: std::process::Command, threads: usize) -> std::process::Command {
    command.env("OMP_NUM_THREADS", threads.to_string());
    command
}

fn against_python(root: &Path, args: &Bench) -> Result<u8> {
    if args.rounds == 0 {
        return Err(
            Problem::new("--rounds 0 compares nothing", "give at least 1; 5 or more for a claim").into()
        );
    }
    let mut build = cargo(root, args.cuda)?;
    build.args(["build", "--release", "--quiet", "--package", "ruminate-benches", "--bin", "workload"]);
    if run(&mut build)? != 0 {
        return Ok(1);
    }
    let python = match &args.python {
        Some(python) => python.into(),
        None => python::ensure(root)?,
    };

    let model = args.model.as_deref().unwrap_or("t5-small");
    let dtype = args.dtype.to_possible_value().map(|value| value.get_name().to_string()).unwrap_or_default();
    let arguments = |bench: &str| {
        let mut arguments: Vec<String> =
            ["--paced", "--bench", bench, "--model", model, "--dtype", &dtype].map(String::from).to_vec();
        arguments.extend(["--threads".into(), args.threads.to_string()]);
        arguments.extend(args.cuda.cuda.then(|| "--cuda".into()));
        arguments
    };
    let folder = root.join("target/bench");
    fs::create_dir_all(&folder).with_context(|| format!("creating {}", folder.display()))?;
    let path = folder.join(format!("{model}-{dtype}.jsonl"));
    let mut file = fs::File::create(&path).with_context(|| format!("creating {}", path.display()))?;

    let mut comparisons = vec![];
    for bench in &args.workloads.clone().unwrap_or_else(|| compared(model)) {
        eprintln!("{bench} ...");
        let ours = || {
            // Cargo finds the program; a build of it has just succeeded, so it starts at once.
            let mut ours = cargo(root, args.cuda)?;
            ours.args([
                "run",
                "--release",
                "--quiet",
                "--package",
                "ruminate-benches",
                "--bin",
                "workload",
                "--",
            ]);
            ours.args(arguments(bench));
            Side::start("ruminate", threads(ours, args.threads))
        };
        let theirs = || {
            let mut theirs = std::process::Command::new(&python);
            theirs.arg(root.join("benches/python/workload.py")).args(arguments(bench));
            Side::start("Python", threads(theirs, args.threads))
        };
        let comparison = pair::alternate(bench, ours, theirs, args.rounds)?;
        eprintln!("{}\n{}", pair::HEADER, comparison.row());
        for line in [&comparison.ours.result, &comparison.theirs.result] {
            writeln!(file, "{line}").with_context(|| format!("writing {}", path.display()))?;
        }
        comparisons.push(comparison);
    }
    println!("{}", pair::HEADER);
    comparisons.iter().map(Comparison::row).for_each(|row| println!("{row}"));
    if let Some(level) =
        comparisons.iter().find_map(|comparison| comparison.ours.result["cpu_level"].as_str())
    {
        println!("Vector unit of ruminate: {level}");
    }
    eprintln!("Results of each side: {}", path.display());
    Ok(0)
}
