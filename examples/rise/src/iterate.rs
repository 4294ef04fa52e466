//! The whole loop: collect, convert, fine-tune, evaluate, and again with the new student.

use std::path::{Path, PathBuf};

use ruminate::algorithms::rwr::{EvaluationConfig, Source};
use ruminate::datasets::environments::Problem;
use ruminate::datasets::rise::{Conversion, EvaluationSetting};
use ruminate::datasets::{Split, json};
use ruminate::run::program::{Rounds, Trained, fit_in};
use ruminate::run::{
    DataRow, FinishedIteration, Iterations, ModelSection, Outcome, PlanPart, Player, RunArgs, SettingMetrics,
    TurnReport, Worker, print_json, resolve_link,
};
use serde_json::{Value, json};

use crate::config::{Phase, RiseArgs, RiseConfig};
use crate::finetune::Finetune;
use crate::{collect, convert, evaluate};

pub(crate) fn run(args: &RiseArgs) -> anyhow::Result<Outcome> {
    let args = &args.run();
    let mut config = RiseConfig::of_run(args, Phase::Iterate)?;
    config.resolve_players();
    for path in [&mut config.model.pretrained, &mut config.iteration.boosted] {
        *path = path.as_deref().map(resolve_link);
    }
    if args.dry_run {
        return PlanPart::print("rise", plan(&config, args)?, args.json);
    }
    if let Some(outcome) = args.launch()? {
        return Ok(outcome);
    }
    let worker = config.worker(args)?;
    let problems = problems(&config)?;
    let template = &config.chat.template;
    let own = [&config.model.pretrained, &config.iteration.boosted].into_iter().flatten();
    let mut players: Vec<Player> = own.map(|folder| Player::checkpoint(folder, template)).collect();
    if config.iteration.last != "student" {
        players.push(config.player(&config.iteration.last)?);
    }
    let first = collecting(&config, 1, &first_student(&config)?)?;
    first.collecting()?.check()?;
    let warnings = Player::warn(&players, &worker)?;
    let dir = args.open(&config)?;
    let iterations = iterate(&config, &problems, dir.path(), &worker)?;
    let done = iterations.finished.len() as u64 == config.iteration.iterations;
    if worker.collective.is_main_process() && args.json {
        print_json(&json!({
            "system": "rise", "phase": "iterate", "start": iterations.start, "iterations": iterations.finished,
            "warnings": warnings,
        }))?;
    } else if worker.collective.is_main_process() {
        iterations.table(&config.iteration, &config.evaluation).print()?;
    }
    Ok(if done { Outcome::Done } else { Outcome::Interrupted })
}

/// Problems to learn from, and problems to evaluate on.
pub(crate) fn problems(config: &RiseConfig) -> anyhow::Result<[Vec<Problem>; 2]> {
    let test = config.test_problems()?;
    Ok([config.training_problems()?, test])
}

/// Goes through the iterations, from the first that is not over; fewer than configured when the user asked to stop.
pub(crate) fn iterate(
    config: &RiseConfig,
    problems: &[Vec<Problem>; 2],
    out: &Path,
    worker: &Worker,
) -> anyhow::Result<Iterations> {
    let first = first_student(config)?;
    // With the window of the first iteration, so that the numbers can be compared.
    let start = assess(config, &first, 2, &problems[1], &out.join("start"), worker)?;
    let Some(start) = start else { return Ok(Iterations::default()) };
    let rounds = Rounds { name: "iteration", count: config.iteration.iterations, out, worker };
    let iteration = |number, _: &Path, before: &[FinishedIteration]| {
        let student = before.last().map_or(&first, |last| &last.best);
        iteration(config, number, student, problems, &rounds)
    };
    let report = |finished: &[FinishedIteration]| {
        let iterations = Iterations { start: start.clone(), finished: finished.to_vec() };
        iterations.write_page(&iterations.table(&config.iteration, &config.evaluation), &rounds)?;
        Ok(())
    };
    let finished = rounds.run(iteration, report)?;
    Ok(Iterations { start, finished })
}

fn first_student(config: &RiseConfig) -> anyhow::Result<PathBuf> {
    Ok(config.iteration.first_student(config.model.pretrained.as_deref())?)
}

/// The configuration of an iteration's collection.
fn collecting(config: &RiseConfig, number: u64, student: &Path) -> anyhow::Result<RiseConfig> {
    let collection = config.iteration.collection(number, &config.collection, student)?;
    Ok(RiseConfig { phase: Some(Phase::Collect), collection, ..config.clone() })
}

/// One iteration; `None` when the user asked to stop.
fn iteration(
    config: &RiseConfig,
    number: u64,
    student: &Path,
    problems: &[Vec<Problem>; 2],
    rounds: &Rounds<'_>,
) -> anyhow::Result<Option<FinishedIteration>> {
    let (here, worker) = (rounds.folder(number), rounds.worker);

    let collecting = collecting(config, number, student)?;
    let rollout = collecting.collecting()?;
    let dir = worker.open(&here.join("collect"), &collecting)?;
    let path = dir.path().join(rollout.config.file_name());
    let Some(log) = rollout.play(&problems[0], &dir, worker)? else { return Ok(None) };

    let mut converting = RiseConfig { phase: Some(Phase::Convert), ..config.clone() };
    converting.conversion.logs = vec![path];
    let dir = worker.open(&here.join("convert"), &converting)?;
    // The others read the examples when they are there.
    worker.collective.first(|| -> anyhow::Result<()> {
        if !dir.path().join(Conversion::SUMMARY).is_file() {
            convert::write(&converting, &log, &dir)?;
        }
        Ok(())
    })?;

    let base = config.model.pretrained.as_deref().unwrap_or(student);
    let start = config.iteration.start(base, student);
    let mut training = RiseConfig { phase: Some(Phase::Finetune), ..config.clone() };
    training.model = ModelSection::of_folder(start);
    let first = if config.iteration.merge { 1 } else { number };
    let examples = (first..=number).map(|i| rounds.folder(i).join("convert").join(Conversion::EXAMPLES));
    (training.finetune.examples, training.finetune.source) = (examples.collect(), Source::Examples);
    let trained = fit_in(&Finetune(None), training, &here.join("finetune"), worker)?;
    let Some(Trained { fitted, data, .. }) = trained.filter(Trained::is_finished) else { return Ok(None) };

    let best = fitted.best.path;
    let window = collecting.collection.models.len();
    let metrics = assess(config, &best, window, &problems[1], &here.join("evaluate"), worker)?;
    let counted = |key: &str| data.as_ref().map_or(&Value::Null, |counts| &counts[key]);
    Ok(metrics.map(|metrics| FinishedIteration {
        iteration: number,
        student: student.into(),
        start: start.into(),
        best,
        problems: [log.episodes.len(), log.turns().iter().map(|turn| turn.solved).sum()],
        examples: counted("examples").as_u64().unwrap_or(0),
        mean_weight: counted("mean_weight").as_f64().unwrap_or(0.0),
        metrics,
    }))
}

/// The configuration of an evaluation.
pub(crate) fn evaluating(
    config: &RiseConfig,
    model: &Path,
    setting: EvaluationSetting,
    context_window: usize,
) -> RiseConfig {
    let model = Some(model.into());
    let evaluation =
        EvaluationConfig { model, player: None, setting, context_window, ..config.evaluation.clone() };
    RiseConfig { phase: Some(Phase::Evaluate), evaluation, ..config.clone() }
}

/// Evaluates a model in all settings, each in a folder of its own; `None` when the user asked to stop.
fn assess(
    config: &RiseConfig,
    model: &Path,
    window: usize,
    problems: &[Problem],
    folder: &Path,
    worker: &Worker,
) -> anyhow::Result<Option<SettingMetrics>> {
    let mut all = SettingMetrics::new();
    for &setting in &config.iteration.evaluate {
        let config = evaluating(config, model, setting, window);
        let dir = worker.open(&folder.join(setting.name()), &config)?;
        let file = dir.path().join(TurnReport::FILE);
        let there = worker.collective.first(|| anyhow::Ok(file.is_file()))?;
        let rollout = config.evaluating()?;
        if !there && rollout.evaluate(problems, config.evaluation.metrics, &dir, worker)?.is_none() {
            return Ok(None);
        }
        let report = worker.collective.first(|| anyhow::Ok(json::read::<Value>(&file)?))?;
        all.insert(setting.name().into(), serde_json::from_value(report["metrics"].clone())?);
    }
    Ok(Some(all))
}

/// The plan of the last of the iterations, which takes most, and of all evaluations of one model.
fn plan(config: &RiseConfig, args: &RunArgs) -> anyhow::Result<Vec<PlanPart>> {
    let student = first_student(config)?;
    let collecting = collecting(config, config.iteration.iterations, &student)?;
    let mut parts = vec![collect::plan(&collecting, args)?];
    // Every attempt ends an example, at most.
    let questions = config.training_problems().map_or(0, |problems| problems.len());
    let instances = questions * collecting.collection.models.len();
    let data = DataRow { task: config.data.benchmark.to_string(), split: Split::Train, questions, instances };
    let mut finetune = config.finetune.clone();
    finetune.trainer.steps = finetune.training.steps(instances, &finetune.trainer, args.processes());
    parts.push(PlanPart::training(&config.model, |model| finetune.longest_plan(model), data, args)?);
    for &setting in &config.iteration.evaluate {
        let config = evaluating(config, &student, setting, config.evaluation.context_window);
        parts.push(evaluate::plan(&config, setting.name(), args)?);
    }
    Ok(parts)
}
