//! The bundled world: does a model reason better after learning from its own rationales?

use ruminate::run::demo::{Comparison, Demo, DemoResults, DemoRun};
use ruminate::run::program::{Configuration, Training, fit_in};
use ruminate::run::{ReportPage, Table};
use serde_json::{Map, json};

use crate::config::{Phase, StarConfig};
use crate::finetune::Finetune;
use crate::iterate::{Iteration, iterate, share, table};

/// The settings that are the same for all seeds.
const WORLD: &str = include_str!("../configs/world.toml");
/// Steps and rate of the first model's training, on all rationales of a sloppy teacher.
const START: (u64, f64) = (1500, 1e-3);
const MODELS: [&str; 3] = ["start", "star", "without hints"];

pub(crate) struct StarDemo;

/// The models of one seed: which test questions the first model answers, and what STaR made of it, with and without hints.
pub(crate) struct SeedResult {
    seed: u64,
    start: Vec<bool>,
    iterations: [Vec<Iteration>; 2],
}

impl SeedResult {
    fn right(&self, model: usize) -> &[bool] {
        match model {
            0 => &self.start,
            model => self.iterations[model - 1].last().map_or(&[], |last| &last.right),
        }
    }
}

impl Demo for StarDemo {
    type Seed = SeedResult;
    const SYSTEM: &'static str = "star";
    const RESULT: &'static str = "accuracy with 95 % bootstrap intervals, on two-hop questions about people whom training never asked them about";

    fn run_seed(&mut self, seed: u64, run: &DemoRun<'_>) -> anyhow::Result<Option<SeedResult>> {
        let mut config: StarConfig = run.config(WORLD)?;
        (config.seed, config.finetune.shuffle_seed, config.sampling.seed) = (seed, seed, seed);
        config.model.config = Some(run.world("t5/config.json"));
        config.data.test = run.world("mario/qasc/kept/test.jsonl");
        config.validate()?;
        run.announce("start", seed);
        let mut start = config.clone();
        start.data.train = run.world("mario/qasc/raw/train.jsonl");
        (start.trainer.steps, start.trainer.lr) = START;
        let command = Finetune { kept: None };
        command.configure(&mut start)?;
        let trained = fit_in(&command, start, &run.folder("start", seed), &run.worker())?;
        let Some(trained) = trained.filter(|trained| trained.is_finished()) else { return Ok(None) };
        (config.model.pretrained, config.model.config) = (Some(trained.fitted.last), None);
        config.data.train = run.world("mario/qasc/kept/train.jsonl");
        config.phase = Some(Phase::Iterate);
        let mut result = SeedResult { seed, start: vec![], iterations: [vec![], vec![]] };
        for (i, name) in MODELS[1..].iter().enumerate() {
            let name = name.replace(' ', "-");
            run.announce(&name, seed);
            config.sampling.rationalize = i == 0;
            let folder = run.folder(&name, seed);
            let _dir = run.worker().open(&folder, &config)?;
            let Some((start, iterations)) = iterate(&config, &folder, &run.worker())? else {
                return Ok(None);
            };
            if iterations.len() as u64 != config.iterations {
                return Ok(None);
            }
            (result.start, result.iterations[i]) = (start, iterations);
        }
        Ok(Some(result))
    }

    fn results(&self, seeds: &[SeedResult], run: &DemoRun<'_>) -> anyhow::Result<DemoResults> {
        let mut comparison = Comparison::new(MODELS, ["accuracy"]);
        for seed in seeds {
            comparison.add_seed(|model, _| {
                seed.right(model).iter().map(|&right| f64::from(u8::from(right))).collect()
            });
        }
        let mut shown = Table::new(["model", "accuracy", "gain"]);
        for (model, name) in MODELS.iter().enumerate() {
            let gain =
                if model == 0 { String::new() } else { comparison.gain((0, 0), (model, 0)).to_string() };
            shown.row([(*name).to_string(), comparison.estimate(model, 0).to_string(), gain]);
        }
        let mut page = ReportPage::new(
            "STaR on the bundled world",
            "A T5 of a million parameters, trained from scratch.",
        );
        page.heading("Does a model learn from its own rationales?")
            .note(&format!("Shown is the {}. `start` imitates a sloppy teacher; `star` is the same model after learning from its own \
                 rationales that led to right answers, `without hints` the same without rationalization. A gain is over `start`.", Self::RESULT))
            .table(&shown);
        for seed in seeds {
            page.heading(&format!("Seed {}", seed.seed)).table(&table(&seed.start, &seed.iterations[0]));
        }
        page.heading("Runs").links(&run.links(&["start", "star", "without-hints"]));
        let report = page.write(&run.args.out)?;
        let by_iteration: Vec<Vec<f64>> =
            seeds.iter().map(|seed| seed.iterations[0].iter().map(|of| share(&of.right)).collect()).collect();
        let json = Map::from_iter([
            ("metrics".into(), comparison.metrics()),
            ("intervals".into(), comparison.intervals()),
            ("by_seed".into(), comparison.by_seed()),
            ("by_iteration".into(), json!(by_iteration)),
        ]);
        Ok(DemoResults { table: shown, json, report })
    }
}
