//! The bundled world: do stages help, and does reflection?

mod page;

use std::path::{Path, PathBuf};

use anyhow::Context;
use ruminate::algorithms::NullObserver;
use ruminate::algorithms::tinythinker::{Asked, Decoding, FinishedRound, Response};
use ruminate::datasets::BadRows;
use ruminate::datasets::tinythinker::{Question, Splits, StageRecords, Variant, read_items};
use ruminate::run::demo::{Comparison, Demo, DemoResults, DemoRun};
use ruminate::run::program::{Configuration, Training, fit_in};
use serde_json::{Map, Value, json};
use tch::Device;

use crate::acquire::Acquire;
use crate::config::{Phase, TinyThinkerConfig};
use crate::reflect::reflect;

/// The settings that are the same for all models.
const WORLD: &str = include_str!("../configs/world.toml");
/// A student that only answers has shorter epochs, and gets more of them.
const SUMMARIZE_EPOCHS: f64 = 3.0;

/// The models that are compared.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Model {
    /// Answers at once.
    SummarizeOnly,
    /// Recalls, analyzes and answers.
    Staged,
    /// The staged student after rounds of reflection.
    Reflected,
}

impl Model {
    const ALL: [Self; 3] = [Self::SummarizeOnly, Self::Staged, Self::Reflected];

    /// In tables, in JSON and in names of folders.
    fn name(self) -> &'static str {
        match self {
            Self::SummarizeOnly => "summarize_only",
            Self::Staged => "staged",
            Self::Reflected => "reflected",
        }
    }
}

/// The students of one seed.
pub(crate) struct SeedResult {
    seed: u64,
    /// Each model's answers to the test questions.
    responses: [Vec<Response>; 3],
    /// Share of right answers among sampled runs, before each round and after the last.
    right: Vec<f64>,
    /// Reward margin on held-out pairs at the end of each round; it begins at 0.
    margins: Vec<f64>,
}

pub(crate) struct TinyThinkerDemo;

impl Demo for TinyThinkerDemo {
    type Seed = SeedResult;
    const SYSTEM: &'static str = "tinythinker";
    const RESULT: &'static str = "shares of right answers with 95 % bootstrap intervals, over two-hop questions about people whom training never asked them about";

    fn run_seed(&mut self, seed: u64, run: &DemoRun<'_>) -> anyhow::Result<Option<SeedResult>> {
        let mut direct = configuration(run, seed, Variant::Summarize)?;
        direct.acquisition.training.epochs *= SUMMARIZE_EPOCHS;
        let mut config = configuration(run, seed, Variant::default())?;
        let test = write_records(&config)?;
        let greedy = |config: &TinyThinkerConfig, model: &Path| -> anyhow::Result<Vec<Response>> {
            let learner = config.learner(model, Device::Cpu)?;
            let responses = learner.student().infer(&test, &config.inference, run.observer().as_mut())?;
            Ok(responses.into_iter().flatten().collect())
        };
        let Some(model) = acquire(run, Model::SummarizeOnly, direct.clone())? else { return Ok(None) };
        let summarize_only = greedy(&direct, &model)?;
        let Some(start) = acquire(run, Model::Staged, config.clone())? else { return Ok(None) };
        let staged = greedy(&config, &start)?;
        run.announce(Model::Reflected.name(), seed);
        config.enter(Phase::Reflect)?;
        config.reflection.start = Some(start);
        let data = config.data.read_reflection(config.variant(), config.reflection.questions.as_deref())?;
        let out = run.folder(Model::Reflected.name(), seed);
        let rounds = reflect(&config, &data, &out, &run.worker())?;
        let last = rounds.last().filter(|last| last.round == config.reflection.iterations);
        let Some(last) = last else { return Ok(None) };
        let reflected = greedy(&config, &last.best)?;
        let after = right_samples(&config, &data.questions, &last.best)?;
        let margins = rounds.iter().map(|round| margin(&out, round)).collect::<anyhow::Result<_>>()?;
        let right = rounds.iter().map(|round| round.sampled.right).chain([after]).collect();
        Ok(Some(SeedResult { seed, responses: [summarize_only, staged, reflected], right, margins }))
    }

    fn results(&self, seeds: &[SeedResult], run: &DemoRun<'_>) -> anyhow::Result<DemoResults> {
        let mut comparison = Comparison::new(Model::ALL.map(Model::name), ["accuracy"]);
        for seed in seeds {
            let right = |response: &Response| f64::from(u8::from(response.right()));
            comparison.add_seed(|model, _| seed.responses[model].iter().map(right).collect());
        }
        let table = page::table(&comparison);
        let right = means(seeds.iter().map(|seed| &seed.right));
        let margins = means(seeds.iter().map(|seed| &seed.margins));
        let report = page::write(seeds, &comparison, (&right, &margins), run)?;
        let json = Map::from_iter([
            ("metrics".into(), comparison.metrics()),
            ("intervals".into(), comparison.intervals()),
            ("by_seed".into(), comparison.by_seed()),
            ("right_samples".into(), json!(right)),
            ("margins".into(), json!(margins)),
        ]);
        Ok(DemoResults { table, json, report })
    }
}

/// Writes the records that the students learn from, and returns the test questions.
fn write_records(config: &TinyThinkerConfig) -> anyhow::Result<Vec<Question>> {
    let data = &config.data;
    let (splits, _) = Splits::read(data.dataset, &data.original, 0, 1, BadRows::Refuse)?;
    let items = read_items(&data.original.join("items.json"))?;
    StageRecords::write_variants(&data.records, &items, &splits, data.analysis_order)?;
    Ok(splits.test)
}

/// The share of right answers among runs sampled as a further round would.
fn right_samples(config: &TinyThinkerConfig, questions: &[Question], model: &Path) -> anyhow::Result<f64> {
    let learner = config.learner(model, Device::Cpu)?;
    let asked: Vec<Asked> = questions.iter().map(Asked::from).collect();
    let training = &config.reflection.training;
    let (runs, generation) = (training.generation_times, &training.generation);
    let student = learner.student();
    let responses = student.respond(&asked, Decoding::RecallPass, runs, generation, &mut NullObserver)?;
    let right = responses.iter().flatten().filter(|response| response.right()).count();
    Ok(right as f64 / (asked.len() * runs).max(1) as f64)
}

/// Phase 1; the best checkpoint.
fn acquire(
    run: &DemoRun<'_>,
    model: Model,
    mut config: TinyThinkerConfig,
) -> anyhow::Result<Option<PathBuf>> {
    let (name, seed) = (model.name(), config.seed);
    run.announce(name, seed);
    Acquire.configure(&mut config)?;
    let trained = fit_in(&Acquire, config, &run.folder(name, seed), &run.worker())?;
    Ok(trained.filter(|trained| trained.is_finished()).map(|trained| trained.fitted.best.path))
}

/// The world's settings with paths, variant and seed.
fn configuration(run: &DemoRun<'_>, seed: u64, variant: Variant) -> anyhow::Result<TinyThinkerConfig> {
    let mut config: TinyThinkerConfig = run.config(WORLD)?;
    config.seed = seed;
    config.acquisition.training.shuffle_seed = seed;
    config.acquisition.training.variant = variant;
    config.reflection.training.shuffle_seed = seed;
    config.reflection.training.pairs.seed = seed;
    config.reflection.training.generation.seed = seed;
    config.data.original = run.world("tinythinker");
    config.data.records = run.args.out.join("records");
    config.reflection.questions = Some(run.world("tinythinker/reflect.jsonl"));
    config.model.config = Some(run.world("tinythinker/t5/config.json"));
    config.model.tokenizer = Some(run.world("tinythinker/t5"));
    config.validate()?;
    Ok(config)
}

/// The reward margin on held-out pairs at a round's last step.
fn margin(out: &Path, round: &FinishedRound) -> anyhow::Result<f64> {
    let path = out.join(format!("round-{}", round.round)).join("metrics.jsonl");
    let text = std::fs::read_to_string(&path).with_context(|| format!("reading {}", path.display()))?;
    let of_line = |line: &str| -> Option<f64> {
        serde_json::from_str::<Value>(line).ok()?.get("eval/rewards/margins")?.as_f64()
    };
    Ok(text.lines().rev().find_map(of_line).unwrap_or(0.0))
}

/// The mean over seeds of each number.
fn means<'a>(seeds: impl Iterator<Item = &'a Vec<f64>>) -> Vec<f64> {
    let seeds: Vec<&Vec<f64>> = seeds.collect();
    let width = seeds.iter().map(|numbers| numbers.len()).min().unwrap_or(0);
    let mean = |i: usize| seeds.iter().map(|numbers| numbers[i]).sum::<f64>() / seeds.len() as f64;
    (0..width).map(mean).collect()
}
