//! Stage I.

use clap::Args;
use ruminate::algorithms::crystal::{Imitation, Notice, QuestionEncoder, ReadItems, TaskCount, read_silver};
use ruminate::algorithms::{Networks, Plan, Sft, TrainerConfig};
use ruminate::datasets::Split;
use ruminate::models::ModelConfig;
use ruminate::run::program::{Job, Measured, Prepared, Training, train};
use ruminate::run::{DataRow, ModelSection, Outcome, RunArgs, Worker};
use serde_json::{Map, Value};

use crate::config::{CrystalConfig, labels};
use crate::reinforce::check_stage;

#[derive(Args)]
pub(crate) struct ImitateArgs {
    /// Leave out rows that are not questions, and tell how many, instead of refusing the file
    #[arg(long)]
    skip_bad_rows: bool,
    #[command(flatten)]
    run: RunArgs,
}

pub(crate) fn run(args: &ImitateArgs) -> anyhow::Result<Outcome> {
    let run = with_settings(&args.run, args.skip_bad_rows);
    check_stage(&run, false)?;
    train(&Imitate, &run)
}

/// The common flags, with those of this program as settings.
pub(crate) fn with_settings(run: &RunArgs, skip_bad_rows: bool) -> RunArgs {
    let mut run = run.clone();
    run.sets.extend(skip_bad_rows.then(|| "data.skip_bad_rows=true".to_string()));
    run
}

/// Imitation of silver knowledge, and of answers with it.
pub(crate) struct Imitate;

impl Training for Imitate {
    type Config = CrystalConfig;

    fn labels(&self) -> Map<String, Value> {
        labels("imitation")
    }

    fn model<'c>(&self, config: &'c CrystalConfig) -> &'c ModelSection {
        &config.model
    }

    fn trainer<'c>(&self, config: &'c CrystalConfig) -> &'c TrainerConfig {
        &config.trainer
    }

    fn measure(&self, config: &CrystalConfig, model: &ModelConfig, _: usize) -> anyhow::Result<Measured> {
        let (imitation, _) = imitation(config, config.planned_encoder(model)?)?;
        let passes = imitation.passes(&config.trainer)?;
        let plan = Plan::new(&config.trainer, Networks::single(model), &passes, 1.0);
        Ok(Measured { plan, data: data_rows(imitation.counts()), problem: None })
    }

    fn longest(&self, config: &CrystalConfig, model: &ModelConfig) -> Plan {
        let passes = config.imitation.longest_passes(&config.trainer, &config.lengths);
        Plan::new(&config.trainer, Networks::single(model), &passes, 1.0)
    }

    fn prepare(&self, config: &mut CrystalConfig, job: &Job<'_>) -> anyhow::Result<Prepared> {
        let (model, encoder) = config.build(job.worker.device)?;
        let tokenizer = encoder.tokenizer().clone();
        let (imitation, notices) = imitation(config, encoder)?;
        show(&notices, job.worker);
        Ok(Prepared::new(Sft::new(model, imitation, tokenizer)))
    }
}

/// Reads the data.
fn imitation(config: &CrystalConfig, encoder: QuestionEncoder) -> anyhow::Result<(Imitation, Vec<Notice>)> {
    let ReadItems { items: train, mut notices } = read_silver(&config.data, Split::Train)?;
    let ReadItems { items: dev, notices: more } = read_silver(&config.data, Split::Dev)?;
    notices.extend(more);
    let tasks = config.data.train_tasks.clone();
    let imitation = Imitation::new(config.imitation.clone(), encoder, train, dev, tasks)?;
    Ok((imitation, notices))
}

/// The training data as a plan shows them.
pub(crate) fn data_rows(counts: Vec<TaskCount>) -> Vec<DataRow> {
    let row = |TaskCount { task, questions, instances }| DataRow {
        task,
        split: Split::Train,
        questions,
        instances,
    };
    counts.into_iter().map(row).collect()
}

/// Tells what a user should know about the data, once for all processes.
pub(crate) fn show(notices: &[Notice], worker: &Worker) {
    tell(notices, !worker.shows());
}

/// Tells what a user should know about the data.
#[expect(clippy::print_stderr, reason = "what a user should know about the data goes to the terminal")]
pub(crate) fn tell(notices: &[Notice], quiet: bool) {
    for notice in notices.iter().filter(|_| !quiet) {
        eprintln!("note: {} ({}): {}", notice.task, notice.split, notice.text);
    }
}
