//! The bundled world: does it help to write knowledge first, and to reinforce it?

mod page;

use std::path::PathBuf;

use ruminate::algorithms::Fitted;
use ruminate::algorithms::crystal::{EvaluationReport, KnowledgeSource, evaluate, read_eval};
use ruminate::datasets::Split;
use ruminate::run::demo::{Comparison, Demo, DemoArgs, DemoResults, DemoRun};
use ruminate::run::program::{Configuration, Training, fit_in};
use serde_json::Map;
use tch::Device;

use crate::config::CrystalConfig;
use crate::imitate::Imitate;
use crate::reinforce::Reinforce;

/// Questions that reinforcement starts from, and held-out questions on which the models are compared.
const REINFORCED: &str = "twohop_more";
const HELD_OUT: &str = "twohop";

#[derive(clap::Args)]
pub(crate) struct CrystalDemo {
    /// Silver knowledge to imitate: `noisy` is true but mostly unhelpful, `clean` always helpful
    #[arg(long, default_value = "noisy", value_parser = ["clean", "noisy"])]
    knowledge: String,
    #[command(flatten)]
    pub(crate) args: DemoArgs,
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
pub(crate) struct SeedResult {
    seed: u64,
    reports: Vec<EvaluationReport>,
}

impl Demo for CrystalDemo {
    type Seed = SeedResult;
    const SYSTEM: &'static str = "crystal";
    const RESULT: &'static str = "accuracy with 95 % bootstrap intervals, on two-hop questions about people whom training never asked them about";

    fn run_seed(&mut self, seed: u64, run: &DemoRun<'_>) -> anyhow::Result<Option<SeedResult>> {
        let mut result = SeedResult { seed, reports: vec![] };
        let mut checkpoint = PathBuf::new();
        for model in Model::ALL {
            let config = self.configuration(run, model, seed)?;
            let trained = match model {
                Model::Stage2 => {
                    self.train(&Reinforce { model: Some(checkpoint) }, config.clone(), model, run)?
                }
                _ => self.train(&Imitate, config.clone(), model, run)?,
            };
            let Some(trained) = trained else { return Ok(None) };
            let (t5, encoder) = config.open(&trained, Device::Cpu)?;
            let questions = read_eval(&config.data, Split::Test)?.items;
            let report = evaluate(&t5, &encoder, &questions, &config.evaluation, run.observer().as_mut())?;
            result.reports.push(report);
            checkpoint = trained;
        }
        Ok(Some(result))
    }

    fn results(&self, seeds: &[SeedResult], run: &DemoRun<'_>) -> anyhow::Result<DemoResults> {
        let mut comparison = Comparison::new(Model::ALL.map(Model::name), ["accuracy"]);
        for seed in seeds {
            comparison.add_seed(|model, _| {
                seed.reports[model].inference.iter().map(|item| f64::from(item.ok)).collect()
            });
        }
        let table = page::accuracy_table(&comparison, seeds);
        let report = page::write(self, seeds, &table, run)?;
        let json = Map::from_iter([
            ("metrics".into(), comparison.metrics()),
            ("intervals".into(), comparison.intervals()),
            ("by_seed".into(), comparison.by_seed()),
        ]);
        Ok(DemoResults { table, json, report })
    }
}

impl CrystalDemo {
    /// The name of a model's runs.
    fn name(&self, model: Model) -> String {
        format!("{}-{}", self.knowledge, model.name())
    }

    /// The checkpoint to evaluate; `None` when the user asked to stop.
    fn train<T: Training<Config = CrystalConfig>>(
        &self,
        command: &T,
        mut config: CrystalConfig,
        model: Model,
        run: &DemoRun<'_>,
    ) -> anyhow::Result<Option<PathBuf>> {
        let (name, seed) = (self.name(model), config.seed);
        run.announce(&name, seed);
        command.configure(&mut config)?;
        let trained = fit_in(command, config, &run.folder(&name, seed), &run.worker())?;
        Ok(trained.filter(|trained| trained.is_finished()).map(|trained| model.checkpoint(trained.fitted)))
    }

    /// The world's settings with the paths, the seed, and what differs between the models.
    fn configuration(&self, run: &DemoRun<'_>, model: Model, seed: u64) -> anyhow::Result<CrystalConfig> {
        let mut config: CrystalConfig = run.config(WORLD)?;
        let below = |path: &str| run.world(path).display().to_string();
        config.seed = seed;
        config.imitation.shuffle_seed = seed;
        config.reinforcement.ppo.seed = seed;
        config.evaluation.seed = seed;
        config.model.config = Some(run.world("t5/config.json"));
        config.data.data_path = below("crystal/{datapath}/{split}.tsv");
        config.data.knowledge_path =
            below("crystal/knowledge/knowledge_gkp_gpt3{engine}.{split}.{task}.json");
        config.data.engine = self.knowledge.clone();
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
}
