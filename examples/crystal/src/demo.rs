//! The bundled world: does it help to write knowledge first, and to reinforce it?

mod page;

use std::path::{Path, PathBuf};
use std::time::Instant;

use ruminate::algorithms::crystal::{EvaluationReport, KnowledgeSource, evaluate, read_eval};
use ruminate::algorithms::{Collective, Ending, Fitted};
use ruminate::datasets::Split;
use ruminate::run::{ConfigError, Outcome, RunDir, RunObserver, StopFlag, Verbosity, config, print_json};
use serde_json::json;
use tch::Device;

use crate::config::CrystalConfig;
use crate::{reinforce, show};

/// Questions that reinforcement starts from, and held-out questions on which the models are compared.
const REINFORCED: &str = "twohop_more";
const HELD_OUT: &str = "twohop";

#[derive(clap::Args)]
pub(crate) struct DemoArgs {
    /// Seeds; each trains all models
    // TOML's integers end at i64::MAX.
    #[arg(long, value_delimiter = ',', default_value = "1,2,3", value_parser = clap::value_parser!(u64).range(..=i64::MAX as u64))]
    seeds: Vec<u64>,
    /// Silver knowledge to imitate: `noisy` is true but mostly unhelpful, `clean` always helpful
    #[arg(long, default_value = "noisy", value_parser = ["clean", "noisy"])]
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

/// The settings that are the same for all models.
const WORLD: &str = include_str!("../configs/world.toml");

/// What is compared.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Model {
    /// Learns to answer without statements.
    Direct,
    /// Imitates silver statements, and learns to answer with them.
    Stage1,
    /// Stage I, reinforced.
    Stage2,
}

impl Model {
    const ALL: [Self; 3] = [Self::Direct, Self::Stage1, Self::Stage2];

    /// In folders and in JSON.
    fn name(self) -> &'static str {
        match self {
            Self::Direct => "direct",
            Self::Stage1 => "stage1",
            Self::Stage2 => "stage2",
        }
    }

    /// The checkpoint that is evaluated. The accuracy of imitation says little about its recall where most statements are
    /// of no use, so it goes to its end; reinforcement is stopped where the dev questions say so.
    fn checkpoint(self, fitted: Fitted) -> PathBuf {
        if self == Self::Stage2 { fitted.best.path } else { fitted.last }
    }
}

/// What became of the models of one seed, in their order.
struct SeedResult {
    seed: u64,
    reports: Vec<EvaluationReport>,
}

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
    let mut results = vec![];
    for &seed in &args.seeds {
        let mut result = SeedResult { seed, reports: vec![] };
        let mut checkpoint = PathBuf::new();
        for model in Model::ALL {
            let Some((trained, report)) = train_and_evaluate(args, model, seed, &checkpoint, &stop)? else {
                return Ok(Outcome::Interrupted);
            };
            checkpoint = trained;
            result.reports.push(report);
        }
        results.push(result);
    }
    let table = page::accuracy_table(&results);
    let report = page::write(args, &results, &table)?;
    let seconds = started.elapsed().as_secs_f64();
    if args.json {
        let metrics: serde_json::Map<_, _> =
            Model::ALL.iter().map(|&model| (model.name().into(), mean(&results, model).into())).collect();
        let by_seed: serde_json::Map<_, _> = (Model::ALL.iter())
            .map(|&model| (model.name().into(), json!(accuracies(&results, model).collect::<Vec<_>>())))
            .collect();
        print_json(&json!({
            "system": "crystal", "seeds": args.seeds, "metrics": metrics, "by_seed": by_seed, "seconds": seconds,
            "report": report,
        }))?;
        return Ok(Outcome::Done);
    }
    if !args.quiet {
        heading(&format!("report: {}", report.display()));
        heading(&format!("{}:", page::RESULT));
    }
    table.print()?;
    Ok(Outcome::Done)
}

/// The accuracy of a model for each seed.
fn accuracies(results: &[SeedResult], model: Model) -> impl Iterator<Item = f64> {
    results.iter().map(move |result| result.reports[model as usize].acc_weighted())
}

fn mean(results: &[SeedResult], model: Model) -> f64 {
    accuracies(results, model).sum::<f64>() / results.len().max(1) as f64
}

fn run_name(args: &DemoArgs, model: Model, seed: u64) -> String {
    format!("{}-{}-seed-{seed}", args.knowledge, model.name())
}

/// The checkpoint and what it gets right of the held-out questions; `None` when the user asked to stop. `stage1` is where
/// Stage II starts.
fn train_and_evaluate(
    args: &DemoArgs,
    model: Model,
    seed: u64,
    stage1: &Path,
    stop: &StopFlag,
) -> anyhow::Result<Option<(PathBuf, EvaluationReport)>> {
    let mut config = configuration(args, model, seed)?;
    if model == Model::Stage2 {
        (config.model.pretrained, config.model.config) = (Some(stage1.to_path_buf()), None);
    }
    let out = args.out.join(run_name(args, model, seed));
    let dir = if RunDir::stored_config(&out).is_some() {
        RunDir::resume(&out, &config)?
    } else {
        RunDir::create(&out, &config)?
    };
    let verbosity = if args.quiet { Verbosity::Quiet } else { Verbosity::Normal };
    if !args.quiet {
        heading(&format!("{}, seed {seed}: {}", model.name(), out.display()));
    }
    let mut observer = RunObserver::new(&dir, Device::Cpu, verbosity, stop.clone())?;
    let (fitted, notices) = if model == Model::Stage2 {
        let (stage, notices) = reinforce::prepare(&config, Device::Cpu)?;
        match reinforce::reinforce(&config, stage, &Collective::default(), &dir, &mut observer)? {
            Some((fitted, _)) => (fitted, notices),
            None => return Ok(None),
        }
    } else {
        let (sft, notices) = crate::prepare(&config, Device::Cpu)?;
        (crate::imitate(&config, sft, &Collective::default(), &dir, &mut observer)?.0, notices)
    };
    show(&notices, args.quiet);
    if fitted.ending == Ending::Stopped {
        return Ok(None);
    }
    let checkpoint = model.checkpoint(fitted);
    let (t5, encoder) = config.open(&checkpoint, Device::Cpu)?;
    let questions = read_eval(&config.data, Split::Test)?.items;
    let report = evaluate(&t5, &encoder, &questions, &config.evaluation, &mut observer)?;
    Ok(Some((checkpoint, report)))
}

/// The world's settings with the paths, the seed, and what differs between the models.
fn configuration(args: &DemoArgs, model: Model, seed: u64) -> anyhow::Result<CrystalConfig> {
    let mut config: CrystalConfig = config::load_text("configs/world.toml", WORLD, &args.sets)?;
    let below = |path: &str| args.world.join(path).display().to_string();
    config.seed = seed;
    config.imitation.shuffle_seed = seed;
    config.reinforcement.ppo.seed = seed;
    config.evaluation.seed = seed;
    config.model.config = Some(args.world.join("t5/config.json"));
    config.data.data_path = below("crystal/{datapath}/{split}.tsv");
    config.data.knowledge_path = below("crystal/knowledge/knowledge_gkp_gpt3{engine}.{split}.{task}.json");
    config.data.engine = args.knowledge.clone();
    config.data.eval_tasks = vec![HELD_OUT.into()];
    match model {
        Model::Direct => {
            let imitation = &mut config.imitation;
            (imitation.qk_weight, imitation.qa_weight, imitation.qka_weight) = (0.0, 1.0, 0.0);
            config.evaluation.knowledge = KnowledgeSource::None;
        }
        Model::Stage1 => {}
        Model::Stage2 => config.data.train_tasks = vec![REINFORCED.into()],
    }
    config.validate()?;
    Ok(config)
}

#[expect(clippy::print_stderr, reason = "says which of the models the bars below belong to")]
fn heading(text: &str) {
    eprintln!("{text}");
}
