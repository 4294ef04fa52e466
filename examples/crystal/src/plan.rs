//! `--dry-run`: what Stage I would take.

use std::path::Path;

use ruminate::algorithms::Plan;
use ruminate::models::T5Config;
use ruminate::run::{DryRun, Outcome, RunArgs};

use crate::config::CrystalConfig;

/// Prints the plan without loading weights or writing anything. What would keep the run from starting is printed below
/// the plan, and makes the command fail as the run would.
pub(crate) fn run(config: &CrystalConfig, args: &RunArgs) -> anyhow::Result<Outcome> {
    let device = args.setup()?;
    let (model, missing) = shape(config)?;
    let mut dry = DryRun {
        plan: Plan::new(&config.trainer, &model, &config.imitation.longest_passes(&config.lengths), 0),
        data: vec![],
        problems: vec![],
        device,
        out: args.out.as_deref(),
    };
    let data = || crate::imitation(config, config.encoder(&config.tokenizer(), &model)?);
    let problem = match data() {
        Ok((imitation, _)) => {
            dry.plan = Plan::new(&config.trainer, &model, &imitation.passes()?, 0);
            dry.data = imitation.counts().into_iter().map(|(t, q, i)| (t, "train".into(), q, i)).collect();
            missing
        }
        Err(error) => Some(missing.unwrap_or(error)),
    };
    dry.problems.extend(problem.as_ref().map(|error| format!("{error:#}")));
    dry.print(args.json)?;
    problem.map_or(Ok(Outcome::Done), Err)
}

/// The model's shape, and what is missing for a real run. A published model need not be there.
fn shape(config: &CrystalConfig) -> anyhow::Result<(T5Config, Option<anyhow::Error>)> {
    let name = config.model.pretrained.as_deref().and_then(Path::file_name).and_then(|name| name.to_str());
    match config.shape() {
        Ok(model) => Ok((model, None)),
        Err(error) => match name.and_then(T5Config::published) {
            Some(model) => Ok((model, Some(error))),
            None => Err(error),
        },
    }
}
