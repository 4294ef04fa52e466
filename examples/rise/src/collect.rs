//! Episodes to learn from.

use ruminate::run::{Outcome, PlanPart, Player, RunArgs, Table, print_json, resolve_link};
use serde_json::json;

use crate::config::{Phase, RiseConfig};

pub(crate) fn run(args: &RunArgs) -> anyhow::Result<Outcome> {
    let mut config = RiseConfig::of_run(args, Phase::Collect)?;
    config.collection.student = config.collection.student.as_deref().map(resolve_link);
    config.collection.teacher_model = config.collection.teacher_model.as_deref().map(resolve_link);
    if args.dry_run {
        return PlanPart::print("rise", vec![plan(&config, args)?], args.json);
    }
    if let Some(outcome) = args.launch()? {
        return Ok(outcome);
    }
    let worker = args.worker()?;
    let players: Vec<Player> = config.collecting()?.players.into_iter().map(|(_, player)| player).collect();
    let warnings = config.share(&players, &worker)?;
    let problems = config.training_problems()?;
    let rollout = config.collecting()?;
    rollout.check()?;
    let dir = args.open(&config)?;
    let Some(log) = rollout.play(&problems, &dir, &worker)? else { return Ok(Outcome::Interrupted) };
    if !worker.collective.is_main_process() {
        return Ok(Outcome::Done);
    }
    let turns = log.turns();
    if args.json {
        let solved = turns.iter().map(|turn| turn.solved).sum::<usize>();
        print_json(&json!({
            "system": "rise", "phase": "collect", "problems": log.episodes.len(), "solved": solved, "turns": turns,
            "log": dir.path().join(rollout.config.file_name()), "warnings": warnings,
        }))?;
    } else {
        let mut table = Table::new(["turn", "problems", "solved", "blocked"]);
        for (i, turn) in turns.iter().enumerate() {
            table.row([i + 1, turn.problems, turn.solved, turn.blocked].map(|count| count.to_string()));
        }
        table.print()?;
    }
    Ok(Outcome::Done)
}

/// What collecting takes.
pub(crate) fn plan(config: &RiseConfig, args: &RunArgs) -> anyhow::Result<PlanPart> {
    let benchmark = config.data.benchmark.to_string();
    config.collecting()?.plan("collect", config.training_problems(), &benchmark, args.setup()?)
}
