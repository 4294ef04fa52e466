//! `--dry-run`: what a stage would take.

use ruminate::algorithms::crystal::TaskCount;
use ruminate::algorithms::{Networks, Pass, Plan};
use ruminate::datasets::Split;
use ruminate::run::{DataRow, DryRun, Outcome, PlannedShape, RunArgs};

use crate::config::CrystalConfig;
use crate::reinforce::{read_data, stage_one};

/// Prints the plan of Stage I.
pub(crate) fn imitation(config: &CrystalConfig, args: &RunArgs) -> anyhow::Result<Outcome> {
    let PlannedShape { shape: model, missing } = config.model.planned()?;
    let missing = missing.map(anyhow::Error::from);
    let plan = |passes: &[Pass]| Plan::new(&config.trainer, Networks::single(&model), passes, 1.0);
    let measured = || -> anyhow::Result<(Plan, Vec<TaskCount>)> {
        let encoder = config.planned_encoder(&model)?;
        let (imitation, _) = crate::imitation(config, encoder)?;
        Ok((plan(&imitation.passes(&config.trainer)?), imitation.counts()))
    };
    let longest = config.imitation.longest_passes(&config.trainer, &config.lengths);
    print(plan(&longest), measured(), missing, args)
}

/// Prints the plan of Stage II.
pub(crate) fn reinforcement(config: &CrystalConfig, args: &RunArgs) -> anyhow::Result<Outcome> {
    stage_one(config)?;
    let PlannedShape { shape: model, missing } = config.model.planned()?;
    let missing = missing.map(anyhow::Error::from);
    let plan = |question| config.reinforcement.plan(&model, &config.lengths, question);
    let measured = || -> anyhow::Result<(Plan, Vec<TaskCount>)> {
        let encoder = config.planned_encoder(&model)?;
        let (data, _) = read_data(config)?;
        Ok((plan(data.question_lengths(&encoder)?), data.counts()))
    };
    print(plan([config.lengths.max_question_len as f64; 2]), measured(), missing, args)
}

/// Prints a plan, measured on the data where there are any, without loading weights or writing anything. What would keep
/// the run from starting is printed below the plan, and makes the command fail as the run would.
fn print(
    longest: Plan,
    measured: anyhow::Result<(Plan, Vec<TaskCount>)>,
    missing: Option<anyhow::Error>,
    args: &RunArgs,
) -> anyhow::Result<Outcome> {
    let device = args.setup()?;
    let ((plan, counts), problem) = match measured {
        Ok(measured) => (measured, missing),
        Err(error) => ((longest, vec![]), Some(missing.unwrap_or(error))),
    };
    let row = |TaskCount { task, questions, instances }| DataRow {
        task,
        split: Split::Train,
        questions,
        instances,
    };
    let data = counts.into_iter().map(row).collect();
    let problems = problem.iter().map(|error| format!("{error:#}")).collect();
    DryRun { plan: plan.across(args.processes()), data, problems, device, out: args.out.as_deref() }
        .print(args.json)?;
    problem.map_or(Ok(Outcome::Done), Err)
}
