//! Weighted fine-tuning.

use ruminate::algorithms::rwr::{Rwr, RwrCounts, RwrData};
use ruminate::algorithms::{Fitted, Networks, Pass, Plan, Trainer, Work};
use ruminate::datasets::chat::{OtherTemplate, TrainedOn};
use ruminate::datasets::rise::{TrainingExample, solutions, training_text};
use ruminate::datasets::{Split, json};
use ruminate::models::{ModelConfig, Tokenizer};
use ruminate::run::{
    ConfigError, DataRow, DryRun, Outcome, PlannedShape, RunArgs, RunDir, RunDirError, Table, Worker,
    print_json, resolve_link,
};
use serde_json::json;
use tch::Kind;

use crate::collect::load;
use crate::config::{Phase, RiseConfig, Source};
use crate::players::warn;

pub(crate) fn run(args: &RunArgs) -> anyhow::Result<Outcome> {
    let mut config = load(args, Phase::Finetune)?;
    config.model.pretrained = config.model.pretrained.as_deref().map(resolve_link);
    if args.dry_run {
        return plan(config, args);
    }
    if let Some(outcome) = args.launch()? {
        return Ok(outcome);
    }
    let worker = args.worker()?;
    config.chat.date = worker.collective.first(|| anyhow::Ok(config.chat.date))?;
    let warnings = warn(&config, &worker)?;
    let (fitted, counts) = fit(config, args.reuses_stored_config(), &worker, |config| args.open(config))?;
    if worker.collective.is_main_process() {
        print_fitted(&fitted, &counts, &warnings, args.json)?;
    }
    Ok(fitted.ending.into())
}

/// Trains a model. Everything that can be wrong with data or model shows before the run folder is opened. A run that goes on keeps the
/// number of its steps, which may have been another with as many processes as now.
pub(crate) fn fit(
    mut config: RiseConfig,
    reuses_stored_config: bool,
    worker: &Worker,
    open: impl FnOnce(&RiseConfig) -> Result<RunDir, RunDirError>,
) -> anyhow::Result<(Fitted, RwrCounts)> {
    let shape = config.model.shape()?;
    let data = data(&config, &shape, &config.model.tokenizer(&shape)?)?;
    let (llama, tokenizer) = config.model.open(config.seed, Kind::Float, worker.device)?;
    let RwrData { examples, held_out, counts } = data.clone();
    let template = TrainedOn { template: config.chat.template.clone() }.file();
    let training = &config.finetune.training;
    if !reuses_stored_config {
        config.finetune.trainer = data.trainer(training, &config.finetune.trainer, worker.collective.size());
    }
    let mut rwr = Rwr::new(llama, examples, held_out, training.batch_size, training.shuffle_seed, tokenizer)?
        .with_files(vec![template]);
    let dir = open(&config)?;
    let mut observer = worker.observer(&dir)?;
    if worker.collective.is_main_process() {
        json::write(&dir.path().join("data.json"), &counts)?;
    }
    let trainer = Trainer::across(config.finetune.trainer, &dir.checkpoints(), &worker.collective)?;
    Ok((trainer.fit(&mut rwr, observer.as_mut())?, counts))
}

/// The examples in token ids.
fn data(config: &RiseConfig, shape: &ModelConfig, tokenizer: &Tokenizer) -> anyhow::Result<RwrData> {
    let training = &config.finetune.training;
    if let Some(context_length) = shape.context_length().filter(|&most| training.max_length > most) {
        let reason = format!(
            "finetune.training.max_length is {}, but the model was made for {context_length} tokens; lower it, or stretch the model's positions \
             in its config.json (rope_scaling)",
            training.max_length
        );
        return Err(ConfigError::invalid(reason).into());
    }
    let environment = config.data.environment();
    let examples = match config.finetune.source {
        Source::Solutions => solutions(&config.data.training()?, &*environment),
        Source::Examples if config.finetune.examples.is_empty() => {
            let reason = "finetune.examples: name files of `rise convert`, such as [\"runs/convert/examples.json\"], or train on the \
                          problems' solutions with finetune.source = \"solutions\"";
            return Err(ConfigError::invalid(reason).into());
        }
        Source::Examples => {
            let mut examples: Vec<TrainingExample> = vec![];
            for path in &config.finetune.examples {
                examples.extend(json::read::<Vec<_>>(path)?);
            }
            examples
        }
    };
    let template = config.chat.open(&config.chat.template, &config.model.tokenizer_folder())?;
    let text = |example| training_text(example, &template, config.chat.layout, config.data.compat);
    let texts = examples.iter().map(text).collect::<Result<Vec<_>, _>>()?;
    let problems: Vec<&str> = examples.iter().map(|example| example.opening(&*environment)).collect();
    Ok(RwrData::new(tokenizer, &texts, &problems, training)?)
}

/// `--dry-run`: prints what a run would take, without loading weights or writing anything.
fn plan(config: RiseConfig, args: &RunArgs) -> anyhow::Result<Outcome> {
    let PlannedShape { shape, missing } = config.model.planned()?;
    let missing = missing.map(anyhow::Error::from);
    let tokenizer = config.model.tokenizer(&shape);
    let measured = tokenizer.map_err(Into::into).and_then(|tokenizer| data(&config, &shape, &tokenizer));
    let device = args.setup()?;
    let mut trainer = config.finetune.trainer.clone();
    let training = &config.finetune.training;
    let (passes, rows, problem) = match measured {
        Ok(data) => {
            trainer = data.trainer(training, &trainer, args.processes());
            let name = config.data.benchmark.to_string();
            let (questions, instances) = (data.counts.texts, data.counts.examples);
            let row = DataRow { task: name, split: Split::Train, questions, instances };
            (data.passes(training, &trainer), vec![row], missing)
        }
        // Examples as long as they may be, half of each a dialogue and half an answer.
        Err(error) => {
            let half = [training.max_length as f64 / 2.0; 2];
            let (times, rows) = (trainer.accumulate as f64, training.batch_size);
            let pass = Pass { work: Work::Training, times, networks: 1, rows, source: half, target: half };
            (vec![pass], vec![], Some(missing.unwrap_or(error)))
        }
    };
    let plan = Plan::new(&trainer, Networks::single(&shape), &passes, 1.0);
    let problems = problem.iter().map(|error| format!("{error:#}")).collect();
    DryRun { plan: plan.across(args.processes()), data: rows, problems, device, out: args.out.as_deref() }
        .print(args.json)?;
    problem.map_or(Ok(Outcome::Done), Err)
}

/// Says where the checkpoints of a run are.
fn print_fitted(
    fitted: &Fitted,
    counts: &RwrCounts,
    warnings: &[OtherTemplate],
    as_json: bool,
) -> std::io::Result<()> {
    if as_json {
        return print_json(&json!({
            "system": "rise", "phase": "finetune", "steps": fitted.steps, "last": fitted.last, "data": counts,
            "best": fitted.best, "warnings": warnings,
        }));
    }
    let mut table = Table::new(["checkpoint", "step", "folder"]);
    table.row(["last", &fitted.steps.to_string(), &fitted.last.display().to_string()]);
    table.row(["best", &fitted.best.step.to_string(), &fitted.best.path.display().to_string()]);
    table.print()
}
