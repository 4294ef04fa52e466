//! The bundled world: does a model learn to do better when it tries again?

mod page;
mod results;

use std::path::PathBuf;

use ruminate::algorithms::rwr::Weighting;
use ruminate::datasets::rise::{Conversion, EvaluationSetting, Log};
use ruminate::rewards::rise::Attempts;
use ruminate::run::ModelSection;
use ruminate::run::demo::{Demo, DemoResults, DemoRun};
use ruminate::run::program::{Configuration, fit_in};
use serde_json::{Map, json};

use crate::config::{Phase, RiseConfig};
use crate::finetune::Finetune;
use crate::iterate::{evaluating, iterate, problems};
use results::{Results, SeedResult};

/// The settings that are the same for all models.
const WORLD: &str = include_str!("../configs/world.toml");
/// Steps and rate of the first student's training, on solutions and on second attempts of which most slip again: it has the form then, and
/// some of the sums.
const BOOST: (u64, f64) = (480, 2e-3);

pub(crate) struct RiseDemo;

impl Demo for RiseDemo {
    type Seed = SeedResult;
    const SYSTEM: &'static str = "rise";
    const RESULT: &'static str = "shares of right answers with 95 % bootstrap intervals, over sums whose numbers no model has seen together";

    fn run_seed(&mut self, seed: u64, run: &DemoRun<'_>) -> anyhow::Result<Option<SeedResult>> {
        let mut config = configuration(run, seed)?;
        let mut boost = config.clone();
        boost.finetune.examples = vec![run.world("rise/boost.json")];
        boost.finetune.training.weighting = Weighting::None;
        boost.finetune.training.epochs = 0.0;
        (boost.finetune.trainer.steps, boost.finetune.trainer.lr) = BOOST;
        let Some(start) = finetune("boost", &boost, run)? else { return Ok(None) };
        config.model = ModelSection::of_folder(&start);
        let problems = problems(&config)?;
        let out = run.folder("iterate", seed);
        run.announce("iterate", seed);
        let iterations = iterate(&config, &problems, &out, &run.worker())?;
        let Some(last) = iterations.finished.last() else { return Ok(None) };
        // The same examples, all of weight 1.
        let mut unweighted = config.clone();
        unweighted.finetune.training.weighting = Weighting::None;
        unweighted.finetune.examples = vec![out.join("iteration-1/convert").join(Conversion::EXAMPLES)];
        let Some(plain) = finetune("unweighted", &unweighted, run)? else { return Ok(None) };
        let folder = run.folder("unweighted-evaluate", seed);
        let evaluation = evaluating(&config, &plain, EvaluationSetting::Sequential, 2);
        let dir = run.worker().open(&folder, &evaluation)?;
        let (rollout, metrics) = (evaluation.evaluating()?, config.evaluation.metrics);
        if rollout.evaluate(&problems[1], metrics, &dir, &run.worker())?.is_none() {
            return Ok(None);
        }
        let logs = [out.join("start/sequential"), out.join("iteration-1/evaluate/sequential"), folder];
        let name = rollout.config.file_name();
        let mut attempts = vec![];
        for log in logs {
            attempts.push(Attempts::of_log(&Log::read(&log.join(&name))?, &*config.data.environment()));
        }
        Ok(Some(SeedResult { seed, attempts, solved: last.problems, examples: last.examples }))
    }

    fn results(&self, seeds: &[SeedResult], run: &DemoRun<'_>) -> anyhow::Result<DemoResults> {
        let results = Results::of(seeds);
        let json = Map::from_iter([
            ("metrics".into(), results.by_metric(|of| json!(of.estimate.mean))),
            ("intervals".into(), results.by_metric(|of| json!(of.estimate.interval))),
            ("by_seed".into(), results.by_metric(|of| json!(of.by_seed))),
            ("gains".into(), results.gains()),
            ("next_attempts".into(), results.next_attempts()),
        ]);
        Ok(DemoResults { table: page::table(&results), json, report: page::write(&results, run)? })
    }
}

/// Trains a model; its last checkpoint.
fn finetune(name: &str, config: &RiseConfig, run: &DemoRun<'_>) -> anyhow::Result<Option<PathBuf>> {
    run.announce(name, config.seed);
    let config = RiseConfig { phase: Some(Phase::Finetune), ..config.clone() };
    let folder = run.folder(name, config.seed);
    let trained = fit_in(&Finetune(None), config, &folder, &run.worker())?;
    Ok(trained.filter(|trained| trained.is_finished()).map(|trained| trained.fitted.last))
}

/// The world's settings with paths and seed.
fn configuration(run: &DemoRun<'_>, seed: u64) -> anyhow::Result<RiseConfig> {
    let mut config: RiseConfig = run.config(WORLD)?;
    config.seed = seed;
    config.collection.seed = seed;
    config.conversion.settings.seed = seed;
    config.finetune.training.shuffle_seed = seed;
    config.evaluation.seed = seed;
    config.data.problems = run.world("rise/train.jsonl");
    config.evaluation.problems = run.world("rise/test.jsonl");
    config.model.config = Some(run.world("rise/llama/config.json"));
    config.validate()?;
    Ok(config)
}
