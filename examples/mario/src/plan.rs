//! `--dry-run`: what a stage would take.

use ruminate::algorithms::mario::{OptionMode, for_dataset, quark_data};
use ruminate::algorithms::{Networks, Pass, Plan, TrainerConfig, Work};
use ruminate::datasets::Split;
use ruminate::models::{ModelConfig, Tokenizer};
use ruminate::run::{DataRow, DryRun, ModelSection, Outcome, PlannedShape, RunArgs};

use crate::config::{MarioConfig, Stage};
use crate::rewards;
use crate::train::{options, rationales};

/// How much there is to do.
struct Measured {
    rows: usize,
    steps: u64,
    passes: Vec<Pass>,
}

/// Prints what a run would take, without loading weights or writing anything.
pub(crate) fn run(config: &mut MarioConfig, args: &RunArgs, stage: Stage) -> anyhow::Result<Outcome> {
    let PlannedShape { shape, missing } = model(config, stage).planned()?;
    let tokenizer = model(config, stage).tokenizer(&shape);
    let measured = tokenizer
        .map_err(Into::into)
        .and_then(|tokenizer| measure(config, stage, tokenizer, args.processes()));
    let (others, unusable) = match stage {
        Stage::Quark => reward_models(config),
        Stage::Sft | Stage::I2o | Stage::Ir2o | Stage::Vera => (vec![], None),
    };
    let missing = missing.map(anyhow::Error::from).or(unusable);
    let device = args.setup()?;
    let name = config.data.dataset.to_string();
    let settings = trainer(config, stage);
    let (passes, data, problem) = match measured {
        Ok(Measured { rows, steps, passes }) => {
            settings.steps = steps;
            let data = DataRow { task: name, split: Split::Train, questions: rows, instances: rows };
            (passes, vec![data], missing)
        }
        Err(error) => (vec![], vec![], Some(missing.unwrap_or(error))),
    };
    let frozen = usize::from(stage == Stage::Quark);
    let networks = Networks { frozen, others: &others, ..Networks::single(&shape) };
    let plan = Plan::new(settings, networks, &passes, 1.0);
    let problems = problem.iter().map(|error| format!("{error:#}")).collect();
    DryRun { plan: plan.across(args.processes()), data, problems, device, out: args.out.as_deref() }
        .print(args.json)?;
    problem.map_or(Ok(Outcome::Done), Err)
}

fn model(config: &MarioConfig, stage: Stage) -> &ModelSection {
    match stage {
        Stage::Sft => &config.sft.model,
        Stage::I2o => &config.i2o.model,
        Stage::Ir2o => &config.ir2o.model,
        Stage::Vera => &config.vera.model,
        Stage::Quark => &config.quark.model,
    }
}

fn trainer(config: &mut MarioConfig, stage: Stage) -> &mut TrainerConfig {
    match stage {
        Stage::Sft => &mut config.sft.trainer,
        Stage::I2o => &mut config.i2o.trainer,
        Stage::Ir2o => &mut config.ir2o.trainer,
        Stage::Vera => &mut config.vera.trainer,
        Stage::Quark => &mut config.quark.trainer,
    }
}

/// The shapes of the models behind the rewards, and why the run would not start with them. Their work is not counted.
fn reward_models(config: &MarioConfig) -> (Vec<ModelConfig>, Option<anyhow::Error>) {
    let quark = for_dataset(config.quark.training.clone(), config.data.dataset);
    let folders = match rewards::folders(config, &quark) {
        Ok(folders) => folders,
        Err(error) => return (vec![], Some(error.into())),
    };
    let (mut shapes, mut problem) = (vec![], None);
    for (key, folder) in folders {
        let model = ModelSection { pretrained: Some(folder.into()), ..ModelSection::default() };
        let missing = match model.planned() {
            Ok(PlannedShape { shape, missing }) => {
                shapes.push(shape);
                missing
            }
            Err(error) => Some(error),
        };
        let context = || format!("cannot use the model of {key}");
        problem = problem.or(missing.map(|error| anyhow::Error::from(error).context(context())));
    }
    (shapes, problem)
}

/// What each of several processes does.
fn measure(
    config: &MarioConfig,
    stage: Stage,
    tokenizer: Tokenizer,
    processes: usize,
) -> anyhow::Result<Measured> {
    Ok(match stage {
        Stage::Sft => {
            let trainer = &config.sft.trainer;
            let rationales = rationales(config, tokenizer)?;
            let (steps, passes) = (rationales.steps(trainer, processes), rationales.passes(trainer));
            Measured { rows: rationales.rows(), steps, passes }
        }
        Stage::I2o | Stage::Ir2o => {
            let mode = if stage == Stage::I2o { OptionMode::I2o } else { OptionMode::Ir2o };
            let trainer = &config.option_training(mode).trainer;
            let options = options(config, mode, &tokenizer)?;
            Measured {
                rows: options.rows(),
                steps: options.steps(trainer, processes),
                passes: options.passes(trainer),
            }
        }
        Stage::Vera => {
            let (training, trainer) = (&config.vera.training, &config.vera.trainer);
            let statements = training.read(Split::Train)?;
            let ids = statements.iter().map(|s| Ok(tokenizer.encode(&s.statement)?.len()));
            let source = lengths(ids.collect::<anyhow::Result<Vec<_>>>()?.into_iter());
            let (times, rows) = (trainer.accumulate as f64, training.batch_size);
            let pass = Pass { work: Work::Training, times, networks: 1, rows, source, target: [0.0; 2] };
            Measured { rows: statements.len(), steps: trainer.steps, passes: vec![pass] }
        }
        Stage::Quark => {
            let (quark, trainer) = (&config.quark.training, &config.quark.trainer);
            let data =
                quark_data(&config.data.read(Split::Train)?, &config.data.read(Split::Dev)?, &tokenizer)?;
            let source = lengths(data.expert.iter().map(|row| row.prompt.ids.len()));
            let target = lengths(data.expert.iter().map(|row| row.ids.len() + quark.control.code_len()));
            let rows = quark.batch_size.div_ceil(trainer.accumulate);
            let pass = |work, times, rows| Pass { work, times, networks: 1, rows, source, target };
            let accumulate = trainer.accumulate as f64;
            let batches = data.train.len().div_ceil(quark.sampling.batch_size) as u64;
            let written = (batches * quark.sampling.passes) as f64 / quark.sample_interval as f64;
            let passes = vec![
                pass(Work::Training, accumulate, rows),
                pass(Work::Forward, accumulate, rows),
                pass(Work::Forward, written, quark.sampling.batch_size),
            ];
            Measured { rows: data.expert.len(), steps: trainer.steps, passes }
        }
    })
}

/// Mean and maximum.
fn lengths(of: impl Iterator<Item = usize> + Clone) -> [f64; 2] {
    let (sum, count) = of.clone().fold((0, 0), |(sum, count), length| (sum + length, count + 1));
    [sum as f64 / f64::from(count.max(1)), of.max().unwrap_or(0) as f64]
}
