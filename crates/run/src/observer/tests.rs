use std::io::Write;
use std::time::Duration;

use serde_json::Value;

use super::*;
use crate::captured::Captured;

impl Captured {
    fn observer(&self, dir: &RunDir, interval: Duration, verbosity: Verbosity) -> RunObserver {
        let console = Console::lines(Box::new(self.clone()), interval, verbosity);
        RunObserver::with_console(dir, Device::Cpu, console, StopFlag::default()).unwrap()
    }
}

const NEVER: Duration = Duration::from_secs(3600);

fn config() -> toml::Table {
    toml::Table::new()
}

fn train(observer: &mut RunObserver, steps: std::ops::Range<u64>, total: u64) {
    observer.started(steps.start, total).unwrap();
    for step in steps {
        let metrics =
            vec![("train/loss".to_owned(), 1.0 / (step + 1) as f64), ("train/b".to_owned(), f64::NAN)];
        let report = StepReport { step, total_steps: total, metrics: &metrics, tokens: 100, secs: 0.5 };
        observer.step(&report).unwrap();
    }
}

fn lines(dir: &RunDir, name: &str) -> Vec<Value> {
    let text = std::fs::read_to_string(dir.path().join(name)).unwrap();
    text.lines().map(|line| serde_json::from_str(line).unwrap()).collect()
}

#[test]
fn files_hold_what_was_reported() {
    let folder = tempfile::tempdir().unwrap();
    let dir = RunDir::create(folder.path(), &config()).unwrap();
    let mut observer = Captured::default().observer(&dir, NEVER, Verbosity::Normal);
    train(&mut observer, 0..1, 2);
    observer.evaluated(1, &vec![("dev/accuracy".to_owned(), 0.5)]).unwrap();
    observer.samples(1, &[json!({"question": "Why?"}), json!({"question": "How?"})]).unwrap();

    let text = std::fs::read_to_string(dir.metrics()).unwrap();
    assert!(text.starts_with("{\"kind\":\"train\",\"step\":0,\"time\":0"), "{text}");
    assert!(
        text.contains(
            ",\"total_steps\":2,\"secs\":0.5,\"tokens\":100,\"train/loss\":1.0,\"train/b\":null}\n"
        ),
        "{text}"
    );
    let metrics = lines(&dir, "metrics.jsonl");
    assert_eq!(metrics[1]["kind"], "eval");
    assert_eq!((&metrics[1]["step"], &metrics[1]["dev/accuracy"]), (&json!(1), &json!(0.5)));
    let samples = lines(&dir, "samples.jsonl");
    assert_eq!(samples[1]["sample"], json!({"question": "How?"}));
}

#[test]
fn a_resumed_run_leaves_no_step_twice() {
    let folder = tempfile::tempdir().unwrap();
    let dir = RunDir::create(folder.path(), &config()).unwrap();
    let mut observer = Captured::default().observer(&dir, NEVER, Verbosity::Normal);
    observer.earlier_secs = 100.0;
    train(&mut observer, 0..5, 6);
    observer.samples(1, &[json!("kept")]).unwrap();
    observer.samples(4, &[json!("repeated")]).unwrap();
    drop((observer, dir));
    std::fs::OpenOptions::new()
        .append(true)
        .open(folder.path().join("metrics.jsonl"))
        .and_then(|mut file| file.write_all(b"{\"kind\":\"tr"))
        .unwrap();

    let dir = RunDir::resume(folder.path(), &config()).unwrap();
    let captured = Captured::default();
    let mut observer = captured.observer(&dir, NEVER, Verbosity::Normal);
    train(&mut observer, 3..6, 6);
    // The next stage of the same process counts from 0 again and must not remove anything.
    train(&mut observer, 0..1, 1);

    let metrics = lines(&dir, "metrics.jsonl");
    let steps: Vec<u64> = metrics.iter().map(|line| line["step"].as_u64().unwrap()).collect();
    assert_eq!(steps, [0, 1, 2, 3, 4, 5, 0]);
    assert!(metrics.iter().all(|line| line["time"].as_f64().unwrap() >= 100.0));
    assert_eq!(lines(&dir, "samples.jsonl").len(), 1);
    assert!(captured.text().starts_with("resuming at step 3 of 6\n"), "{}", captured.text());
}

#[test]
fn the_evaluation_of_the_resumed_step_stays_unless_it_is_repeated() {
    for repeated in [false, true] {
        let folder = tempfile::tempdir().unwrap();
        let evaluate = |observer: &mut RunObserver, score: f64| {
            observer.samples(2, &[json!("a"), json!(score)]).unwrap();
            observer.samples(2, &[json!("b")]).unwrap();
            observer.evaluated(2, &vec![("dev/score".to_owned(), score)]).unwrap();
        };
        let dir = RunDir::create(folder.path(), &config()).unwrap();
        let mut observer = Captured::default().observer(&dir, NEVER, Verbosity::Normal);
        train(&mut observer, 0..2, 4);
        evaluate(&mut observer, 0.25);
        train(&mut observer, 2..3, 4);
        drop((observer, dir));

        let dir = RunDir::resume(folder.path(), &config()).unwrap();
        let mut observer = Captured::default().observer(&dir, NEVER, Verbosity::Normal);
        observer.started(2, 4).unwrap();
        if repeated {
            evaluate(&mut observer, 0.75);
        }
        let metrics = lines(&dir, "metrics.jsonl");
        let kinds: Vec<&str> = metrics.iter().map(|line| line["kind"].as_str().unwrap()).collect();
        assert_eq!(kinds, ["train", "train", "eval"]);
        assert_eq!(metrics[2]["dev/score"], if repeated { 0.75 } else { 0.25 });
        assert_eq!(lines(&dir, "samples.jsonl").len(), 3);
    }
}

#[test]
fn steps_without_metrics_only_move_the_progress() {
    let folder = tempfile::tempdir().unwrap();
    let dir = RunDir::create(folder.path(), &config()).unwrap();
    let captured = Captured::default();
    let mut observer = captured.observer(&dir, Duration::ZERO, Verbosity::Normal);
    train(&mut observer, 0..1, 3);
    let report = StepReport { step: 1, total_steps: 3, metrics: &vec![], tokens: 100, secs: 0.5 };
    observer.step(&report).unwrap();
    assert_eq!(lines(&dir, "metrics.jsonl").len(), 1);
    assert!(captured.text().ends_with("200 tokens/s  loss 1  b NaN\n"), "{}", captured.text());
    // What they cost is counted by the next line.
    let metrics = vec![("train/loss".to_owned(), 1.0)];
    let report = StepReport { step: 2, total_steps: 3, metrics: &metrics, tokens: 50, secs: 0.25 };
    observer.step(&report).unwrap();
    let line = &lines(&dir, "metrics.jsonl")[1];
    assert_eq!((&line["tokens"], &line["secs"]), (&json!(150), &json!(0.75)));
}

#[test]
fn the_observer_keeps_the_folder_locked() {
    let folder = tempfile::tempdir().unwrap();
    let observer = RunObserver::new(
        &RunDir::create(folder.path(), &config()).unwrap(),
        Device::Cpu,
        Verbosity::Quiet,
        StopFlag::default(),
    )
    .unwrap();
    assert!(matches!(RunDir::create(folder.path(), &config()), Err(RunDirError::Locked { .. })));
    drop(observer);
    RunDir::create(folder.path(), &config()).unwrap();
}

#[test]
fn plain_lines_come_at_the_start_at_the_end_and_now_and_then() {
    let folder = tempfile::tempdir().unwrap();
    let dir = RunDir::create(folder.path(), &config()).unwrap();
    let rare = Captured::default();
    let mut observer = rare.observer(&dir, NEVER, Verbosity::Normal);
    train(&mut observer, 0..4, 4);
    observer.progress("validation", 1, 2).unwrap();
    let text = rare.text();
    let shown: Vec<&str> = text.lines().collect();
    assert_eq!(shown[0], "starting: 4 steps");
    assert_eq!(shown[1], "step 4/4  00:00:00 left  200 tokens/s  loss 0.2500  b NaN");
    assert_eq!(shown[2], "done: 4 of 4 steps in 00:00:00");
    assert_eq!(shown.len(), 3);

    let often = Captured::default();
    let mut observer = often.observer(&dir, Duration::ZERO, Verbosity::Normal);
    train(&mut observer, 0..4, 8);
    observer.progress("validation", 1, 2).unwrap();
    observer.evaluated(4, &vec![("dev/accuracy".to_owned(), 0.5)]).unwrap();
    observer.checkpoint(4, Path::new("out/checkpoints/step-4")).unwrap();
    assert_eq!(often.text().matches("loss").count(), 4);
    let end = "validation 1/2  00:00:00 left\nstep 4: dev/accuracy 0.5000\nstep 4: checkpoint out/checkpoints/step-4\n";
    assert!(often.text().ends_with(end), "{}", often.text());
}

#[test]
fn verbosity_adds_metrics_and_samples() {
    let folder = tempfile::tempdir().unwrap();
    let dir = RunDir::create(folder.path(), &config()).unwrap();
    let metrics: Metrics = ["a", "b", "c", "d"].iter().map(|name| (name.to_string(), 1.0)).collect();
    let report = StepReport { step: 0, total_steps: 1, metrics: &metrics, tokens: 0, secs: 0.0 };
    for (verbosity, last_metric, sample) in [
        (Verbosity::Normal, false, false),
        (Verbosity::AllMetrics, true, false),
        (Verbosity::Samples, true, true),
    ] {
        let captured = Captured::default();
        let mut observer = captured.observer(&dir, NEVER, verbosity);
        observer.step(&report).unwrap();
        observer.samples(0, &[json!("hello")]).unwrap();
        assert_eq!(captured.text().contains("  d 1\n"), last_metric);
        assert_eq!(captured.text().contains("hello"), sample);
    }
}

#[test]
fn the_stop_flag_reaches_the_trainer() {
    let folder = tempfile::tempdir().unwrap();
    let dir = RunDir::create(folder.path(), &config()).unwrap();
    let stop = StopFlag::default();
    let observer = RunObserver::new(&dir, Device::Cpu, Verbosity::Quiet, stop.clone()).unwrap();
    assert!(!observer.stop_requested());
    stop.request();
    assert!(observer.stop_requested());
}

fn end_lines(dir: &RunDir) -> Vec<(u64, String)> {
    let ends = lines(dir, "metrics.jsonl").into_iter().filter(|line| line["kind"] == "end");
    ends.map(|line| (line["step"].as_u64().unwrap(), line["ending"].as_str().unwrap().to_owned())).collect()
}

#[test]
fn a_run_has_one_end() {
    let folder = tempfile::tempdir().unwrap();
    let dir = RunDir::create(folder.path(), &config()).unwrap();
    let mut observer = Captured::default().observer(&dir, NEVER, Verbosity::Normal);
    train(&mut observer, 0..2, 4);
    let time = vec![("time/checkpoint".to_owned(), 0.5)];
    observer.ended(2, Ending::Stopped, &time).unwrap();
    assert_eq!(end_lines(&dir), [(2, "stopped".into())]);
    drop((observer, dir));

    for time in [time, vec![]] {
        let dir = RunDir::resume(folder.path(), &config()).unwrap();
        let mut observer = Captured::default().observer(&dir, NEVER, Verbosity::Normal);
        train(&mut observer, if time.is_empty() { 4..4 } else { 2..4 }, 4);
        observer.ended(4, Ending::Finished, &time).unwrap();
        assert_eq!(end_lines(&dir), [(4, "finished".into())]);
        let last = lines(&dir, "metrics.jsonl").pop().unwrap();
        assert_eq!(last["time/checkpoint"], 0.5);
    }
}

#[test]
fn a_run_that_ended_early_says_so_and_has_one_end() {
    let folder = tempfile::tempdir().unwrap();
    for start in 0..2 {
        let dir = match start {
            0 => RunDir::create(folder.path(), &config()).unwrap(),
            _ => RunDir::resume(folder.path(), &config()).unwrap(),
        };
        let captured = Captured::default();
        let mut observer = captured.observer(&dir, NEVER, Verbosity::Normal);
        train(&mut observer, if start == 0 { 0..2 } else { 2..2 }, 4);
        observer.stopped_early(2, 1).unwrap();
        // Started once more, it has nothing to do.
        let time = if start == 0 { vec![("time/checkpoint".to_owned(), 0.5)] } else { vec![] };
        observer.ended(2, Ending::Finished, &time).unwrap();
        assert_eq!(end_lines(&dir), [(2, "finished".into())]);
        assert!(captured.text().contains("step 2: training ends early"), "{}", captured.text());
        assert!(captured.text().contains("since step 1 was better"), "{}", captured.text());
    }
}

/// TensorBoard drops what an earlier file holds from the step on that a later one starts with.
#[test]
fn tensorboard_has_every_update_once() {
    let folder = tempfile::tempdir().unwrap();
    let dir = RunDir::create(folder.path(), &config()).unwrap();
    let mut observer = Captured::default().observer(&dir, NEVER, Verbosity::Normal);
    observer.evaluated(0, &vec![("dev/score".to_owned(), 0.5)]).unwrap();
    train(&mut observer, 0..4, 6);
    observer.samples(2, &[json!({"question": "Why?"})]).unwrap();
    observer.evaluated(2, &vec![("dev/score".to_owned(), 0.75)]).unwrap();
    drop((observer, dir));
    let dir = RunDir::resume(folder.path(), &config()).unwrap();
    let mut observer = Captured::default().observer(&dir, NEVER, Verbosity::Normal);
    train(&mut observer, 2..6, 6);

    let files = crate::tensorboard::tests::read(folder.path());
    assert_eq!(files.len(), 2);
    assert!(files.iter().all(|events| events[0].version.is_some()));
    assert!(files[0].iter().any(|event| event.step == 2 && event.texts.len() == 1));
    let mut shown = std::collections::BTreeMap::new();
    for event in files.iter().flatten() {
        if event.start {
            shown.retain(|(_, step), _| *step < event.step);
        }
        for (tag, value) in &event.scalars {
            assert_eq!(shown.insert((tag.clone(), event.step), *value), None, "{tag} {}", event.step);
        }
    }
    let steps = |wanted: &str| -> Vec<u64> {
        shown.keys().filter(|(tag, _)| tag == wanted).map(|(_, step)| *step).collect()
    };
    assert_eq!(steps("train/loss"), [1, 2, 3, 4, 5, 6]);
    assert_eq!(steps("dev/score"), [0, 2]);
}

#[test]
fn distributions_stay_with_the_validation_that_they_belong_to() {
    let folder = tempfile::tempdir().unwrap();
    let dir = RunDir::create(folder.path(), &config()).unwrap();
    let mut observer = Captured::default().observer(&dir, NEVER, Verbosity::Normal);
    observer.started(0, 9).unwrap();
    let tell = |observer: &mut RunObserver, step: u64, share: f64| {
        observer.distribution(step, "eval/acc", &[share, 1.0]).unwrap();
        observer.evaluated(step, &vec![("eval/acc".to_owned(), (share + 1.0) / 2.0)]).unwrap();
        observer.distribution(step, "train/reward", &[0.5, 2.5]).unwrap();
    };
    tell(&mut observer, 0, 0.0);
    tell(&mut observer, 1, 0.0);
    observer.distribution(1, "eval/none", &[f64::NAN]).unwrap();
    drop(observer);
    drop(dir);
    // The checkpoint to resume from was written after the validation of step 1.
    let dir = RunDir::resume(folder.path(), &config()).unwrap();
    let mut observer = Captured::default().observer(&dir, NEVER, Verbosity::Normal);
    observer.started(1, 9).unwrap();
    let told = |dir: &RunDir| -> Vec<(u64, String, f64)> {
        let lines = lines(dir, "metrics.jsonl").into_iter().filter(|line| line["kind"] == "distribution");
        lines
            .map(|line| {
                (
                    line["step"].as_u64().unwrap(),
                    line["name"].as_str().unwrap().into(),
                    line["mean"].as_f64().unwrap(),
                )
            })
            .collect()
    };
    let kept = vec![
        (0, "eval/acc".to_owned(), 0.5),
        (0, "train/reward".to_owned(), 1.5),
        (1, "eval/acc".to_owned(), 0.5),
    ];
    assert_eq!(told(&dir), kept);
    // And is made once more.
    observer.distribution(1, "eval/acc", &[1.0, 1.0]).unwrap();
    assert_eq!(told(&dir)[..2], kept[..2]);
    assert_eq!(told(&dir)[2..], [(1, "eval/acc".to_owned(), 1.0)]);
    let line = lines(&dir, "metrics.jsonl").pop().unwrap();
    assert_eq!((&line["count"], &line["bins"], &line["interval"][1]), (&json!(2), &json!([2]), &json!(1.0)));
}
