//! A run that is killed or stopped, and resumed, ends as if nothing had happened.

use std::fs;
use std::hash::{BuildHasher, RandomState};
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use ruminate::models::checkpoint::read_tensors;
use serde_json::Value;

use crate::support::{Finished, Workplace, command, lines, succeed};

fn start(place: &Workplace, run: &str) -> Child {
    let (config, out) = (place.path("config.toml"), place.path(run));
    let mut args = vec!["imitate", "--config", &config, "--out", &out, "--json"];
    if Path::new(&out).join("config.toml").exists() {
        args.push("--resume");
    }
    command(&args).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap()
}

fn finish(child: Child) -> Finished {
    child.wait_with_output().unwrap().into()
}

/// Runs to the end and returns the seconds that it took.
fn complete(place: &Workplace, run: &str) -> Duration {
    let started = Instant::now();
    let finished = finish(start(place, run));
    assert_eq!(finished.code, Some(0), "{}", finished.stderr);
    assert_eq!(finished.json()["steps"], 30);
    started.elapsed()
}

fn wait_for_steps(child: &mut Child, metrics: &str, steps: usize) {
    let started = Instant::now();
    while fs::read_to_string(metrics).unwrap_or_default().matches("\"train\"").count() < steps {
        assert!(child.try_wait().unwrap().is_none(), "the run ended before step {steps}");
        assert!(started.elapsed() < Duration::from_secs(60), "the run does not get to step {steps}");
        std::thread::sleep(Duration::from_millis(1));
    }
}

/// Parameters, moments, generator states, scores, best checkpoint and metrics agree bit for bit.
fn assert_same(place: &Workplace, run: &str, undisturbed: &str) {
    for file in ["model.safetensors", "trainer.safetensors", "state.json", "config.json", "tokenizer.json"] {
        for link in ["last", "best"] {
            let read = |run| fs::read(place.path(&format!("{run}/checkpoints/{link}/{file}"))).unwrap();
            assert!(read(run) == read(undisturbed), "{link}/{file} of {run} differs");
        }
    }
    let names = |run: &str| {
        let entries = fs::read_dir(place.path(&format!("{run}/checkpoints"))).unwrap();
        let mut names: Vec<_> = entries.map(|entry| entry.unwrap().file_name()).collect();
        names.sort();
        names
    };
    assert_eq!(names(run), names(undisturbed));
    let metrics = |run: &str| -> Vec<Value> {
        let mut metrics = lines(&place.path(&format!("{run}/metrics.jsonl")));
        for line in &mut metrics {
            let timing = |key: &str| key == "time" || key == "secs" || key.starts_with("time/");
            line.as_object_mut().unwrap().retain(|key, _| !timing(key));
        }
        metrics
    };
    assert_eq!(metrics(run), metrics(undisturbed));
}

#[test]
fn a_killed_run_goes_on_bit_for_bit() {
    let place = Workplace::new();
    let seconds = complete(&place, "undisturbed");
    let trainer = place.path("undisturbed/checkpoints/last/trainer.safetensors");
    assert!(read_tensors(Path::new(&trainer), tch::Device::Cpu).unwrap().len() > 20, "moments are missing");

    let (mut killed, mut delays) = (0, vec![]);
    for attempt in 0..8u32 {
        // From before the first step to beyond the last one, which a resumed run may reach.
        let random = f64::from(RandomState::new().hash_one(attempt) as u32) / f64::from(u32::MAX);
        let delay = seconds.mul_f64(0.1 + 0.8 * random);
        delays.push(delay);
        let mut child = start(&place, "killed");
        std::thread::sleep(delay);
        killed += u32::from(child.try_wait().unwrap().is_none());
        child.kill().unwrap();
        child.wait().unwrap();
    }
    assert!(killed > 0, "no process lived long enough to be killed: {seconds:?}, {delays:?}");
    complete(&place, "killed");
    assert_same(&place, "killed", "undisturbed");
}

/// At every distance from a checkpoint, and while one may be written.
#[test]
fn a_run_killed_at_any_step_goes_on_bit_for_bit() {
    let place = Workplace::new();
    complete(&place, "undisturbed");
    for steps in [1, 4, 9, 10, 20, 27] {
        let mut child = start(&place, "killed");
        wait_for_steps(&mut child, &place.path("killed/metrics.jsonl"), steps);
        child.kill().unwrap();
        child.wait().unwrap();
    }
    complete(&place, "killed");
    assert_same(&place, "killed", "undisturbed");
}

#[test]
fn ctrl_c_writes_a_checkpoint_to_go_on_from() {
    let place = Workplace::new();
    complete(&place, "undisturbed");
    for (signal, steps) in [("INT", 2), ("TERM", 14)] {
        let mut child = start(&place, "stopped");
        wait_for_steps(&mut child, &place.path("stopped/metrics.jsonl"), steps);
        let kill =
            Command::new("kill").args([&format!("-{signal}"), &child.id().to_string()]).status().unwrap();
        assert!(kill.success());
        let finished = finish(child);
        assert_eq!(finished.code, Some(130), "{}", finished.stderr);
        // Where it stopped is told to people and to programs.
        let step = finished.json()["steps"].as_u64().unwrap();
        assert!((steps as u64..30).contains(&step), "{step}");
        assert!(finished.stderr.contains(&format!("step {step}: checkpoint")), "{}", finished.stderr);
    }
    complete(&place, "stopped");
    assert_same(&place, "stopped", "undisturbed");

    // A finished run has nothing to go on with, and says the same again.
    let out = place.path("stopped");
    let again = succeed(&["imitate", "--out", &out, "--resume", "--json"]);
    assert_eq!(again.json()["steps"], 30);
    assert_same(&place, "stopped", "undisturbed");
}
