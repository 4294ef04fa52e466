//! The bundled world: do several rewards make better rationales?

mod page;

use std::path::PathBuf;

use ruminate::algorithms::mario::{Judged, RewardModel, judge};
use ruminate::algorithms::quark::Condition;
use ruminate::datasets::Split;
use ruminate::run::ModelSection;
use ruminate::run::demo::{Comparison, Demo, DemoResults, DemoRun};
use ruminate::run::program::{Configuration, Training, fit_in};
use serde_json::{Map, Value, json};
use tch::Device;

use crate::config::{MarioConfig, Stage};
use crate::evaluate::respondent;

/// The settings that are the same for all models.
const WORLD: &str = include_str!("../configs/world.toml");

/// The metrics, each in its own unit; accuracy is a share.
const METRICS: [&str; 4] = ["accuracy", "consistency", "plausibility", "diversity"];

/// What is compared: the supervised model, and the one that has learnt from rewards, asked for the best and for the worst.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Model {
    Sft,
    Mario,
    Worst,
}

impl Model {
    const ALL: [Self; 3] = [Self::Sft, Self::Mario, Self::Worst];

    /// In tables and in JSON.
    fn name(self) -> &'static str {
        match self {
            Self::Sft => "sft",
            Self::Mario => "mario",
            Self::Worst => "worst",
        }
    }

    fn condition(self) -> Option<Condition> {
        match self {
            Self::Sft => None,
            Self::Mario => Some(Condition::Best),
            Self::Worst => Some(Condition::Worst),
        }
    }
}

/// The demo. The models behind the rewards, by which plausibility and consistency are judged, are trained once, with the first seed.
#[derive(Default)]
pub(crate) struct MarioDemo {
    /// Vera, I2O and IR2O.
    judges: Option<[PathBuf; 3]>,
}

/// The judged responses of one seed's models, in their order.
pub(crate) struct SeedResult {
    seed: u64,
    judged: Vec<Judged>,
}

impl SeedResult {
    /// A metric for each question.
    fn values(&self, model: usize, metric: usize) -> Vec<f64> {
        // The scores are those of consistency, plausibility and diversity.
        let value = |correct: bool, scores: &[Option<f64>]| match metric {
            0 => f64::from(u8::from(correct)),
            _ => scores.get(metric - 1).copied().flatten().unwrap_or(f64::NAN),
        };
        self.judged[model].questions.iter().map(|q| value(q.correct, &q.scores)).collect()
    }
}

impl Demo for MarioDemo {
    type Seed = SeedResult;
    const SYSTEM: &'static str = "mario";
    const RESULT: &'static str = "means and 95 % bootstrap intervals over two-hop questions about people whom training never asked them about";

    fn run_seed(&mut self, seed: u64, run: &DemoRun<'_>) -> anyhow::Result<Option<SeedResult>> {
        if self.judges.is_none() {
            let mut judges = [PathBuf::new(), PathBuf::new(), PathBuf::new()];
            for (stage, folder) in [Stage::Vera, Stage::I2o, Stage::Ir2o].into_iter().zip(&mut judges) {
                let Some(trained) = train(configuration(run, seed)?, stage, run)? else { return Ok(None) };
                *folder = trained;
            }
            self.judges = Some(judges);
        }
        let mut config = configuration(run, seed)?;
        let Some(sft) = train(config.clone(), Stage::Sft, run)? else { return Ok(None) };
        let judge = |of: usize| self.judges.as_ref().map(|judges| RewardModel::new(&judges[of]));
        (config.rewards.vera, config.rewards.i2o, config.rewards.ir2o) = (judge(0), judge(1), judge(2));
        config.quark.model =
            ModelSection { pretrained: Some(sft.clone()), config: None, ..config.quark.model.clone() };
        config.quark.reference = Some(sft.clone());
        config.data.path = run.world("mario/{dataset}/kept/{split}.jsonl").display().to_string();
        let Some(mario) = train(config.clone(), Stage::Quark, run)? else { return Ok(None) };
        let rows = config.data.read(Split::Test)?;
        let rewards = config.rewards.load(&config.rewards.available(), config.data.dataset, Device::Cpu)?;
        let mut judged = vec![];
        for model in Model::ALL {
            let folder = if model == Model::Sft { &sft } else { &mario };
            let respondent = respondent(&config, folder, model.condition(), Device::Cpu)?;
            let responses = respondent.answers(&respondent.model, &rows, run.observer().as_mut())?;
            judged.push(self::judge(&responses, &rewards, &config.evaluation)?);
        }
        Ok(Some(SeedResult { seed, judged }))
    }

    fn results(&self, seeds: &[SeedResult], run: &DemoRun<'_>) -> anyhow::Result<DemoResults> {
        let mut comparison = Comparison::new(Model::ALL.map(Model::name), METRICS);
        seeds.iter().for_each(|seed| comparison.add_seed(|model, metric| seed.values(model, metric)));
        let table = page::table(&comparison);
        let report = page::write(&comparison, seeds, &table, run)?;
        let gain = |metric: usize| {
            let gain = page::gain(&comparison, metric);
            (METRICS[metric].to_owned(), json!({ "mean": gain.mean, "interval": gain.interval }))
        };
        let gains: Map<String, Value> = (0..METRICS.len()).map(gain).collect();
        let json = Map::from_iter([
            ("metrics".into(), comparison.metrics()),
            ("intervals".into(), comparison.intervals()),
            ("gain".into(), gains.into()),
        ]);
        Ok(DemoResults { table, json, report })
    }
}

/// The checkpoint of a stage: the last one. The training with rewards goes on losing facts of people whom it does not ask
/// about, so it is stopped where the development questions say so. `None` when the user asked to stop.
fn train(mut config: MarioConfig, stage: Stage, run: &DemoRun<'_>) -> anyhow::Result<Option<PathBuf>> {
    let seed = config.seed;
    run.announce(stage.name(), seed);
    stage.configure(&mut config)?;
    let trained = fit_in(&stage, config, &run.folder(stage.name(), seed), &run.worker())?;
    let checkpoint = |fitted: ruminate::algorithms::Fitted| match stage {
        Stage::Quark => fitted.best.path,
        _ => fitted.last,
    };
    Ok(trained.filter(|trained| trained.is_finished()).map(|trained| checkpoint(trained.fitted)))
}

/// The world's settings with the paths and the seed.
fn configuration(run: &DemoRun<'_>, seed: u64) -> anyhow::Result<MarioConfig> {
    let mut config: MarioConfig = run.config(WORLD)?;
    config.seed = seed;
    config.sft.training.shuffle_seed = seed;
    config.i2o.training.shuffle_seed = seed;
    config.ir2o.training.shuffle_seed = seed;
    config.vera.training.shuffle_seed = seed;
    config.quark.training.seed = seed;
    config.evaluation.seed = seed;
    config.data.path = run.world("mario/{dataset}/raw/{split}.jsonl").display().to_string();
    config.vera.training.path = run.world("mario/statements/{split}.jsonl").display().to_string();
    config.validate()?;
    Ok(config)
}
