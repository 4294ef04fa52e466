//! Rollouts, and the public logs where they lie beside the repository.

use std::cell::RefCell;
use std::ops::ControlFlow;
use std::path::{Path, PathBuf};

use proptest::prelude::*;
use ruminate_datasets::NullObserver;
use ruminate_datasets::environments::{Benchmark, Compat, Gsm8k, Problem};
use ruminate_datasets::rise::{
    Answerer, Ask, ConvertConfig, Episode, Failed, Log, MultiTurn, Reply, RolloutConfig, RolloutError,
    RolloutObserver, Stopped, convert,
};
use ruminate_datasets::{BadRows, Error};

fn problems(count: usize) -> Vec<Problem> {
    let problem = |row: usize| Problem {
        row,
        question: format!("What is {row}+1?"),
        solution: format!("#### {}", row + 1),
        ..Problem::default()
    };
    (0..count).map(problem).collect()
}

/// Answers that follow from the seed and nothing else: right, wrong, without answer, degenerate, or refused.
fn student(asks: &[Ask]) -> Result<Vec<Reply>, Failed> {
    let reply = |ask: &Ask| {
        if ask.seed.is_multiple_of(23) {
            return Reply::Blocked("refused".into());
        }
        let text = |sample: usize| match ask.seed.rotate_left(7 * sample as u32) % 7 {
            0 => format!(r"\boxed{{{}}}", ask.row + 1),
            1 => "no idea".into(),
            2 => "loop ".repeat(200),
            other => format!(r"\boxed{{{}}} {sample}", other + 1000),
        };
        Reply::Texts((0..ask.samples).map(text).collect())
    };
    Ok(asks.iter().map(reply).collect())
}

fn play(
    config: &RolloutConfig,
    batch: usize,
    count: usize,
    file: Option<&Path>,
) -> Result<Log, RolloutError> {
    let answerers: Vec<&dyn Answerer> = vec![&student; config.samples.len()];
    let environment = Gsm8k::default();
    let turns = MultiTurn::new(&environment, config.clone(), &answerers)?.batch(batch);
    turns.play(&problems(count), file, &mut NullObserver)
}

/// Stops after some episodes.
struct Impatient(usize);

impl RolloutObserver for Impatient {
    fn finished(&mut self, _: &Episode, done: usize, _: usize) -> ControlFlow<()> {
        if done >= self.0 { ControlFlow::Break(()) } else { ControlFlow::Continue(()) }
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(24))]

    #[test]
    fn batches_and_restarts_change_nothing(seed: u64, batch in 1usize..9, stop in 1usize..12, cut in 0usize..200) {
        let config = RolloutConfig { seed, ..RolloutConfig::collect(&[1, 3, 2]) };
        let whole = play(&config, 100, 12, None).unwrap();
        prop_assert_eq!(&play(&config, batch, 12, None).unwrap(), &whole);
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("rollout.jsonl");
        let answerers: [&dyn Answerer; 3] = [&student; 3];
        let environment = Gsm8k::default();
        let turns = MultiTurn::new(&environment, config.clone(), &answerers).unwrap().batch(batch);
        let part = turns.play(&problems(12), Some(&path), &mut Impatient(stop)).unwrap();
        prop_assert!(part.episodes.len() >= stop);
        // Killed while it wrote.
        let bytes = std::fs::read(&path).unwrap();
        std::fs::write(&path, &bytes[..bytes.len().saturating_sub(cut)]).unwrap();
        prop_assert_eq!(&turns.play(&problems(12), Some(&path), &mut NullObserver).unwrap(), &whole);
        // Everything is there now, so nobody is asked.
        let nobody = |_: &[Ask]| -> Result<Vec<Reply>, Failed> { Err("asked".into()) };
        let answerers: [&dyn Answerer; 3] = [&nobody; 3];
        let again = MultiTurn::new(&environment, config, &answerers).unwrap();
        prop_assert_eq!(&again.play(&problems(12), Some(&path), &mut NullObserver).unwrap(), &whole);
        // And the log can be written, read and scored again.
        let log = folder.path().join("3_turns.json");
        whole.write(&log).unwrap();
        prop_assert_eq!(&Log::read(&log).unwrap(), &whole);
        let rescored = whole.rescore(&environment, true);
        prop_assert!(rescored.rewards.is_empty() && rescored.observations.is_empty());
    }
}

#[test]
fn the_seed_decides() {
    let of = |seed| play(&RolloutConfig { seed, ..RolloutConfig::sequential(3, 2) }, 4, 10, None).unwrap();
    assert_eq!(of(1), of(1));
    assert_ne!(of(1), of(2));
}

#[test]
fn a_file_of_another_run_is_refused() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("rollout.jsonl");
    let config = RolloutConfig::collect(&[1, 1]);
    play(&config, 4, 3, Some(&path)).unwrap();
    let says = |result: Result<Log, RolloutError>| result.unwrap_err().to_string();
    let other = RolloutConfig { seed: 9, ..config.clone() };
    assert!(says(play(&other, 4, 3, Some(&path))).contains("seed = 0"));
    assert!(says(play(&config, 4, 2, Some(&path))).contains("another problem in row 2"));
    let text = std::fs::read_to_string(&path).unwrap();
    let lines: Vec<&str> = text.lines().collect();
    std::fs::write(&path, format!("{text}{}\n", lines[1])).unwrap();
    assert!(says(play(&config, 4, 3, Some(&path))).contains("is there twice"));
    std::fs::write(&path, format!("{}\n{{}}\n", lines[0])).unwrap();
    assert!(says(play(&config, 4, 3, Some(&path))).contains("line 2"));
    std::fs::write(&path, "{\"rollout\": {\"colour\": 1}}\n").unwrap();
    assert!(says(play(&config, 4, 3, Some(&path))).contains("line 1"));
}

#[test]
fn who_is_stopped_keeps_what_is_finished_and_goes_on_later() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("rollout.jsonl");
    let environment = Gsm8k::default();
    let tired = |asks: &[Ask]| -> Result<Vec<Reply>, Failed> {
        if asks[0].row >= 2 { Err(Stopped.into()) } else { student(asks) }
    };
    let play = |answerer: &dyn Answerer| {
        let turns = MultiTurn::new(&environment, RolloutConfig::collect(&[1]), &[answerer]).unwrap();
        turns.batch(2).play(&problems(5), Some(&path), &mut NullObserver).unwrap()
    };
    let rows = |log: &Log| log.episodes.iter().map(|episode| episode.task_id).collect::<Vec<_>>();
    assert_eq!(rows(&play(&tired)), [0, 1]);
    // Nobody is blocked for it.
    let config = RolloutConfig::collect(&[1]);
    let undisturbed = MultiTurn::new(&environment, config, &[&student]).unwrap();
    assert_eq!(play(&student), undisturbed.play(&problems(5), None, &mut NullObserver).unwrap());
}

#[test]
fn what_cannot_be_played_is_refused() {
    let environment = Gsm8k::default();
    let play = |config: RolloutConfig, answerer: &dyn Answerer, problems: &[Problem]| {
        let answerers = vec![answerer; config.samples.len()];
        MultiTurn::new(&environment, config, &answerers)?.play(problems, None, &mut NullObserver)
    };
    let refused = |config: RolloutConfig, says: &str| {
        let error = play(config, &student, &problems(1)).unwrap_err().to_string();
        assert!(error.contains(says), "{error}");
    };
    refused(RolloutConfig::collect(&[]), "rollout.samples");
    refused(RolloutConfig::collect(&[1, 0]), "rollout.samples");
    refused(RolloutConfig::sequential(2, 0), "rollout.context_window");
    refused(RolloutConfig { dialogue_limit: 0, ..RolloutConfig::default() }, "rollout.dialogue_limit");
    refused(RolloutConfig { tries: 0, ..RolloutConfig::default() }, "rollout.tries");
    refused(RolloutConfig { samples: vec![1, 2], ..RolloutConfig::sequential(2, 2) }, "oracle");
    let one: [&dyn Answerer; 1] = [&student];
    let error = MultiTurn::new(&environment, RolloutConfig::collect(&[1, 1]), &one).unwrap_err();
    assert!(error.to_string().contains("2 turns have 1 models"), "{error}");
    let config = || RolloutConfig::collect(&[2]);
    let lazy = |_: &[Ask]| -> Result<Vec<Reply>, Failed> { Ok(vec![]) };
    assert!(matches!(play(config(), &lazy, &problems(2)), Err(RolloutError::Count { what: "replies", .. })));
    let short = |asks: &[Ask]| -> Result<Vec<Reply>, Failed> {
        Ok(asks.iter().map(|_| Reply::Texts(vec!["x".into()])).collect())
    };
    assert!(matches!(play(config(), &short, &problems(2)), Err(RolloutError::Count { what: "texts", .. })));
    let broken = |_: &[Ask]| -> Result<Vec<Reply>, Failed> { Err("no memory".into()) };
    assert!(matches!(play(config(), &broken, &problems(2)), Err(RolloutError::Answerer { turn: 0, .. })));
    let mut twice = problems(2);
    twice[1].row = 0;
    assert!(matches!(play(config(), &student, &twice), Err(RolloutError::Problem { row: 0, .. })));
    twice[0].solution = "none".into();
    assert!(matches!(play(config(), &student, &twice), Err(RolloutError::Problem { row: 0, .. })));
}

#[test]
fn degenerate_turns_are_blocked_in_the_end_and_the_run_goes_on() {
    let tries = RefCell::new(vec![]);
    let stuck = |asks: &[Ask]| -> Result<Vec<Reply>, Failed> {
        tries.borrow_mut().extend(asks.iter().map(|ask| (ask.row, ask.attempt, ask.seed)));
        let text = |ask: &Ask| if ask.row == 0 { "loop ".repeat(200) } else { r"\boxed{2}".into() };
        Ok(asks.iter().map(|ask| Reply::Texts(vec![text(ask)])).collect())
    };
    let environment = Gsm8k::default();
    let answerers: [&dyn Answerer; 1] = [&stuck];
    let turns = MultiTurn::new(&environment, RolloutConfig::collect(&[1]), &answerers).unwrap();
    let log = turns.play(&problems(2), None, &mut NullObserver).unwrap();
    assert_eq!(log.episodes[0].turn_history.actions[&0], ["blocked"]);
    assert_eq!((log.episodes[0].max_reward, log.episodes[1].max_reward), (None, Some(1.0)));
    let mut seeds: Vec<u64> = tries.borrow().iter().map(|&(.., seed)| seed).collect();
    assert_eq!(seeds.len(), 11);
    seeds.sort_unstable();
    seeds.dedup();
    assert_eq!(seeds.len(), 11, "each try has a seed of its own");
}

fn shared(path: &str) -> Option<PathBuf> {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../../shared/data/rise").join(path);
    path.exists().then_some(path)
}

#[test]
#[allow(clippy::print_stderr)]
fn public_logs_round_trip_and_are_scored_as_they_were() {
    let Some(folder) = shared("logs") else {
        eprintln!("skipped: the public logs are not there");
        return;
    };
    let out = tempfile::tempdir().unwrap();
    let mut actions = 0;
    for entry in std::fs::read_dir(folder).unwrap() {
        let path = entry.unwrap().path();
        let name = path.file_name().unwrap().to_string_lossy().into_owned();
        let log = Log::read(&path).unwrap();
        let copy = out.path().join(&name);
        log.write(&copy).unwrap();
        assert!(std::fs::read(&copy).unwrap() == std::fs::read(&path).unwrap(), "{name}");
        let benchmark = if name.contains("math_") { Benchmark::Math } else { Benchmark::Gsm8k };
        let benchmark = if name.contains("gen_gsm8k") { Benchmark::Gsm8k } else { benchmark };
        let environment = benchmark.environment(Compat::Reference);
        assert_eq!(log.has_oracle(&*environment), name.starts_with("gen_"), "{name}");
        let rescored = log.rescore(&*environment, name.starts_with("gen_"));
        assert_eq!((rescored.rewards, rescored.observations), (vec![], vec![]), "{name}");
        assert!(log.agrees_with(&*environment), "{name}");
        actions += rescored.actions;
        let conversion = convert(&log, &*environment, &ConvertConfig::default());
        assert!(!conversion.examples.is_empty());
    }
    assert_eq!(actions, 109);
}

#[test]
#[allow(clippy::print_stderr)]
fn real_problems_are_read() {
    let Some(folder) = shared("") else {
        eprintln!("skipped: the real problems are not there");
        return;
    };
    for (benchmark, file, rows) in [
        (Benchmark::Gsm8k, "gsm8k/train.jsonl", 500),
        (Benchmark::Gsm8k, "gsm8k/test.jsonl", 300),
        (Benchmark::Math, "math/test.jsonl", 200),
    ] {
        let loaded = benchmark.read(&folder.join(file), BadRows::Refuse, Compat::Fixed).unwrap();
        assert_eq!((loaded.problems.len(), loaded.skipped.len()), (rows, 0));
        assert!(loaded.problems.iter().enumerate().all(|(row, problem)| problem.row == row));
    }
    let error =
        Benchmark::Math.read(&folder.join("gsm8k/test.jsonl"), BadRows::Refuse, Compat::Fixed).unwrap_err();
    assert!(matches!(error, Error::BadField { field: "problem", .. }), "{error}");
}

#[test]
fn the_guide_shows_the_example_as_it_is() {
    let program = include_str!("../examples/environment.rs");
    let guide = include_str!("../../../docs/guide/environments.md");
    assert!(guide.contains(program), "copy examples/environment.rs into docs/guide/environments.md");
}
