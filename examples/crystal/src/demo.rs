//! The bundled world: does it help to write knowledge first?

use std::path::PathBuf;
use std::time::Instant;

use ruminate::algorithms::Ending;
use ruminate::algorithms::crystal::{KnowledgeSource, evaluate, read_eval};
use ruminate::datasets::Split;
use ruminate::run::{
    ConfigError, Outcome, ReportPage, RunDir, RunObserver, StopFlag, Table, Verbosity, config, print_json,
};
use serde_json::json;

use crate::config::CrystalConfig;

/// Held-out questions on which both models are compared.
const HELD_OUT: &str = "twohop";

#[derive(clap::Args)]
pub(crate) struct DemoArgs {
    /// Seeds; each trains both models
    // TOML's integers end at i64::MAX.
    #[arg(long, value_delimiter = ',', default_value = "1,2", value_parser = clap::value_parser!(u64).range(..=i64::MAX as u64))]
    seeds: Vec<u64>,
    /// Silver knowledge to imitate: `clean` is always helpful, `noisy` mostly true but unhelpful
    #[arg(long, default_value = "clean", value_parser = ["clean", "noisy"])]
    knowledge: String,
    /// Folder of the bundled world
    #[arg(long, value_name = "DIR", default_value = "fixtures/world")]
    world: PathBuf,
    /// Folder for the runs; a second demo with the same settings goes on from what is there
    #[arg(long, value_name = "DIR", default_value = "runs/crystal-demo")]
    out: PathBuf,
    /// Change a setting of examples/crystal/configs/world.toml (repeatable)
    #[arg(long = "set", value_name = "KEY=VALUE")]
    sets: Vec<String>,
    /// CPU threads (default: all cores)
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u16).range(1..))]
    threads: Option<u16>,
    /// Print the result as one line of JSON on stdout
    #[arg(long)]
    json: bool,
    /// Show nothing but the result
    #[arg(short, long)]
    quiet: bool,
}

/// The settings that are the same for both models.
const WORLD: &str = include_str!("../configs/world.toml");

pub(crate) fn run(args: &DemoArgs) -> anyhow::Result<Outcome> {
    if let Some(threads) = args.threads {
        tch::set_num_threads(threads.into());
    }
    if !args.world.is_dir() {
        let reason = format!(
            "the bundled world is not at {}; run the demo from the project's folder, or name it with --world",
            args.world.display()
        );
        return Err(ConfigError::invalid(reason).into());
    }
    let started = Instant::now();
    let stop = StopFlag::on_ctrl_c()?;
    let (mut direct, mut stage1) = (vec![], vec![]);
    for &seed in &args.seeds {
        for (name, accuracies) in MODELS.into_iter().zip([&mut direct, &mut stage1]) {
            match train_and_evaluate(args, name, seed, &stop)? {
                Some(accuracy) => accuracies.push(accuracy),
                None => return Ok(Outcome::Interrupted),
            }
        }
    }
    let table = table(&args.seeds, &direct, &stage1);
    let report = report(args, &table).write(&args.out)?;
    let seconds = started.elapsed().as_secs_f64();
    if args.json {
        print_json(&json!({
            "system": "crystal", "seeds": args.seeds,
            "metrics": { "direct": mean(&direct), "stage1": mean(&stage1) }, "seconds": seconds, "report": report,
        }))?;
        return Ok(Outcome::Done);
    }
    if !args.quiet {
        heading(&format!("report: {}", report.display()));
        heading(&format!("{RESULT}:"));
    }
    table.print()?;
    Ok(Outcome::Done)
}

/// What the table says.
const RESULT: &str = "accuracy on two-hop questions about people whom training never asked them about";

/// Accuracies by seed, and their means.
fn table(seeds: &[u64], direct: &[f64], stage1: &[f64]) -> Table {
    let mut table = Table::new(["seed", "answers directly", "writes knowledge first"]);
    for ((seed, direct), stage1) in seeds.iter().zip(direct).zip(stage1) {
        table.row([seed.to_string(), Table::number(*direct), Table::number(*stage1)]);
    }
    table.row(["mean".into(), Table::number(mean(direct)), Table::number(mean(stage1))]);
    table
}

fn mean(values: &[f64]) -> f64 {
    values.iter().sum::<f64>() / values.len().max(1) as f64
}

/// The comparison, with links to the runs that it compares.
fn report(args: &DemoArgs, table: &Table) -> ReportPage {
    let subtitle = format!(
        "Knowledge: {}. Each model is a T5 of a million parameters, trained from scratch.",
        args.knowledge
    );
    let mut page = ReportPage::new("Crystal on the bundled world", &subtitle);
    page.heading("Does it help to write knowledge first?")
        .note(&format!("Shown is the {RESULT}."))
        .table(table);
    let link = |(seed, name): (u64, &str)| {
        let run = run_name(args, name, seed);
        (format!("{run}/report.html"), run)
    };
    let runs = args.seeds.iter().flat_map(|&seed| MODELS.map(|name| (seed, name)));
    page.heading("Runs").links(&runs.map(link).collect::<Vec<_>>());
    page
}

/// Answers directly; writes knowledge first.
const MODELS: [&str; 2] = ["direct", "stage1"];

fn run_name(args: &DemoArgs, name: &str, seed: u64) -> String {
    format!("{}-{name}-seed-{seed}", args.knowledge)
}

/// Accuracy on the held-out questions; `None` when the user asked to stop.
fn train_and_evaluate(
    args: &DemoArgs,
    name: &str,
    seed: u64,
    stop: &StopFlag,
) -> anyhow::Result<Option<f64>> {
    let config = configuration(args, name, seed)?;
    let out = args.out.join(run_name(args, name, seed));
    let dir = if RunDir::stored_config(&out).is_some() {
        RunDir::resume(&out, &config)?
    } else {
        RunDir::create(&out, &config)?
    };
    let verbosity = if args.quiet { Verbosity::Quiet } else { Verbosity::Normal };
    if !args.quiet {
        heading(&format!("{name}, seed {seed}: {}", out.display()));
    }
    let mut observer = RunObserver::new(&dir, verbosity, stop.clone())?;
    let (sft, notices) = crate::prepare(&config, tch::Device::Cpu)?;
    crate::show(&notices, args.quiet);
    let (fitted, _) = crate::imitate(&config, sft, &dir, &mut observer)?;
    if fitted.ending == Ending::Stopped {
        return Ok(None);
    }
    let (t5, encoder) = config.open(&fitted.best.2, tch::Device::Cpu)?;
    let (questions, _) = read_eval(&config.data, Split::Test)?;
    let report = evaluate(&t5, &encoder, &questions, &config.evaluation, &mut observer)?;
    Ok(Some(report.acc_weighted()))
}

/// The world's settings with the paths, the seed, and for the baseline only the loss of answering directly.
fn configuration(args: &DemoArgs, name: &str, seed: u64) -> anyhow::Result<CrystalConfig> {
    let mut config: CrystalConfig = config::load_text("configs/world.toml", WORLD, &args.sets)?;
    let below = |path: &str| args.world.join(path).display().to_string();
    config.seed = seed;
    config.imitation.shuffle_seed = seed;
    config.evaluation.seed = seed;
    config.model.config = Some(args.world.join("t5/config.json"));
    config.data.data_path = below("crystal/{datapath}/{split}.tsv");
    config.data.knowledge_path = below("crystal/knowledge/knowledge_gkp_gpt3{engine}.{split}.{task}.json");
    config.data.engine = args.knowledge.clone();
    config.data.eval_tasks = vec![HELD_OUT.into()];
    if name == "direct" {
        let imitation = &mut config.imitation;
        (imitation.qk_weight, imitation.qa_weight, imitation.qka_weight) = (0.0, 1.0, 0.0);
        config.evaluation.knowledge = KnowledgeSource::None;
    }
    config.validate()?;
    Ok(config)
}

#[expect(clippy::print_stderr, reason = "says which of the models the bars below belong to")]
fn heading(text: &str) {
    eprintln!("{text}");
}
