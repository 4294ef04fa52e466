//! Episodes to learn from.

use ruminate::run::{Outcome, PlanPart, RunArgs, print_json, turns_table};
use serde_json::json;

use crate::config::{Phase, RiseArgs, RiseConfig};

pub(crate) fn run(args: &RiseArgs) -> anyhow::Result<Outcome> {
    let args = &args.run();
    let mut config = RiseConfig::of_run(args, Phase::Collect)?;
    config.resolve_players();
    if args.dry_run {
        return PlanPart::print("rise", vec![plan(&config, args)?], args.json);
    }
    if let Some(outcome) = args.launch()? {
        return Ok(outcome);
    }
    let worker = config.worker(args)?;
    let problems = config.training_problems()?;
    let rollout = config.collecting()?;
    let warnings = rollout.ready(&worker)?;
    let dir = args.open(&config)?;
    let Some(log) = rollout.play(&problems, &dir, &worker)? else { return Ok(Outcome::Interrupted) };
    let turns = log.turns();
    if worker.collective.is_main_process() && args.json {
        let solved = turns.iter().map(|turn| turn.solved).sum::<usize>();
        print_json(&json!({
            "system": "rise", "phase": "collect", "problems": log.episodes.len(), "solved": solved, "turns": turns,
            "log": dir.path().join(rollout.config.file_name()), "warnings": warnings,
        }))?;
    } else if worker.collective.is_main_process() {
        turns_table(&turns).print()?;
    }
    Ok(Outcome::Done)
}

/// The plan of a collection.
pub(crate) fn plan(config: &RiseConfig, args: &RunArgs) -> anyhow::Result<PlanPart> {
    let benchmark = config.data.benchmark.to_string();
    config.collecting()?.plan("collect", config.training_problems(), &benchmark, args.setup()?)
}
