//! Episodes to learn from.

use ruminate::algorithms::rwr::{Divided, Kept, KeptAnswers};
use ruminate::datasets::environments::Problem;
use ruminate::datasets::rise::{Answerer, Log, MultiTurn, RolloutConfig};
use ruminate::run::{
    ConfigError, ModelSection, Outcome, RolloutConsole, RunArgs, RunDir, RunDirError, Table, Worker,
    print_json, resolve_link,
};
use serde::Serialize;
use serde_json::json;

use crate::config::{FLAGS, Phase, Player, RiseConfig};
use crate::plan;
use crate::players::{Local, service, warn};

/// Episodes as they come, in the order in which they end.
pub(crate) const EPISODES: &str = "episodes.jsonl";
/// Answers of turns that are over, of episodes that are not.
const ANSWERS: &str = "answers.jsonl";

pub(crate) fn run(args: &RunArgs) -> anyhow::Result<Outcome> {
    let mut config = load(args, Phase::Collect)?;
    config.collection.student = config.collection.student.as_deref().map(resolve_link);
    config.collection.teacher_model = config.collection.teacher_model.as_deref().map(resolve_link);
    if args.dry_run {
        return plan::collect(&config, args);
    }
    if let Some(outcome) = args.launch()? {
        return Ok(outcome);
    }
    let worker = args.worker()?;
    config.chat.date = worker.collective.first(|| anyhow::Ok(config.chat.date))?;
    let problems = config.data.training()?;
    let warnings = warn(&config, &worker)?;
    let dir = args.open(&config)?;
    let Some(log) = collect(&config, &problems, &dir, &worker)? else {
        return Ok(Outcome::Interrupted);
    };
    if !worker.collective.is_main_process() {
        return Ok(Outcome::Done);
    }
    let turns = turns(&log);
    let path = dir.path().join(config.rollout().file_name());
    if args.json {
        let solved = turns.iter().map(|turn| turn.solved).sum::<usize>();
        print_json(&json!({
            "system": "rise", "phase": "collect", "problems": log.episodes.len(), "solved": solved,
            "turns": turns, "log": path, "warnings": warnings,
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

/// The configuration of a run that writes to a folder, unless it is only planned.
pub(crate) fn load(args: &RunArgs, phase: Phase) -> anyhow::Result<RiseConfig> {
    let dry_run = args.dry_run && phase == Phase::Convert;
    let rewinds = args.resume_from.is_some() && phase != Phase::Finetune;
    for (flag, given) in [("--dry-run", dry_run), ("--resume-from", rewinds)] {
        if given {
            return Err(ConfigError::UselessFlag { flag }.into());
        }
    }
    if args.out.is_none() && !args.dry_run {
        return Err(RunDirError::NoFolder.into());
    }
    let mut config: RiseConfig = args.load(FLAGS)?;
    config.validate()?;
    config.enter(phase)?;
    config.fix_date(args)?;
    Ok(config)
}

/// Plays all problems and writes the log; `None` when the user asked to stop. Processes divide what local models are asked; a service is
/// asked by rank 0.
pub(crate) fn collect(
    config: &RiseConfig,
    problems: &[Problem],
    dir: &RunDir,
    worker: &Worker,
) -> anyhow::Result<Option<Log>> {
    let section = &config.collection;
    let wanted = |player| section.models.contains(&player);
    let open = |model: &ModelSection, template: &str| {
        Local::open(model, (&config.chat, template), &section.generation, config.seed, worker.device)
    };
    let folder = |path| ModelSection::of_folder(path);
    let student = section.student.as_deref().map_or_else(|| config.model.clone(), folder);
    let student = if wanted(Player::Student) { Some(open(&student, &config.chat.template)?) } else { None };
    let template = section.teacher_template.as_ref().unwrap_or(&config.chat.template);
    let (mut teacher, mut asked) = (None, None);
    match &section.teacher_model {
        _ if !wanted(Player::Teacher) => {}
        Some(path) => teacher = Some(open(&folder(path), template)?),
        None => asked = Some(service(config, dir.path(), worker)?),
    }
    let [student, teacher] = [&student, &teacher].map(|local| local.as_ref().map(Local::answerer));
    let collective = &worker.collective;
    let answerer = |player: &Player| match player {
        Player::Student => student.as_ref().map(|local| Divided::new(local, collective)),
        Player::Teacher => {
            let local = teacher.as_ref().map(|local| Divided::new(local, collective));
            local.or(asked.as_ref().map(|service| Divided::by_first(service, collective)))
        }
    };
    let answerers: Vec<Divided<'_>> = section.models.iter().filter_map(answerer).collect();
    play(config, problems, config.rollout(), &answerers, (section.batch, "problems"), dir, worker)
}

/// Plays problems into a folder, `batch` at a time in each process; `None` when the user asked to stop before the last one.
pub(crate) fn play(
    config: &RiseConfig,
    problems: &[Problem],
    rollout: RolloutConfig,
    answerers: &[Divided<'_>],
    (batch, shown): (usize, &'static str),
    dir: &RunDir,
    worker: &Worker,
) -> anyhow::Result<Option<Log>> {
    let environment = config.data.environment();
    let [path, episodes] = [&rollout.file_name(), EPISODES].map(|name| dir.path().join(name));
    let collective = &worker.collective;
    let kept = KeptAnswers::open(&dir.path().join(ANSWERS), collective)?;
    let answerers: Vec<Kept<'_>> = answerers.iter().map(|answerer| kept.of(answerer)).collect();
    let answerers: Vec<&dyn Answerer> = answerers.iter().map(|of| of as &dyn Answerer).collect();
    let turns = MultiTurn::new(&*environment, rollout, &answerers)?.batch(batch * collective.size());
    let mut console = RolloutConsole::of(worker, shown);
    // The others play what rank 0 plays, and write nothing.
    let finished = collective.first(|| anyhow::Ok(turns.finished(problems, &episodes)?))?;
    let log = worker.stop.interrupt().during(|| {
        if collective.is_main_process() {
            return turns.play(problems, Some(&episodes), &mut console);
        }
        let open: Vec<_> = problems.iter().filter(|p| !finished.contains(&p.row)).cloned().collect();
        turns.play(&open, None, &mut console)
    })?;
    let log = Log { episodes: collective.first(|| anyhow::Ok(log.episodes))? };
    if log.episodes.len() < problems.len() {
        return Ok(None);
    }
    if collective.is_main_process() {
        log.write(&path)?;
    }
    kept.remove()?;
    Ok(Some(log))
}

/// What became of the problems in a turn.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize)]
pub(crate) struct Turn {
    /// Problems that were asked about.
    pub(crate) problems: usize,
    /// Those with a right attempt, which ends an episode.
    pub(crate) solved: usize,
    /// Those that nobody answered.
    pub(crate) blocked: usize,
}

/// The turns of a log.
pub(crate) fn turns(log: &Log) -> Vec<Turn> {
    let mut turns: Vec<Turn> = vec![];
    for episode in &log.episodes {
        for (&turn, rewards) in &episode.turn_history.rewards {
            turns.resize(turns.len().max(turn + 1), Turn::default());
            turns[turn].problems += 1;
            turns[turn].solved += usize::from(rewards.contains(&Some(1.0)));
            turns[turn].blocked += usize::from(rewards.contains(&None));
        }
    }
    turns
}
