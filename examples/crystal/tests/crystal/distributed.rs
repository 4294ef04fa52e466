//! Several processes train as one, and end together.

use std::path::Path;
use std::process::{Command, Stdio};
use std::thread::sleep;
use std::time::{Duration, Instant};

use ruminate::models::checkpoint::read_tensors;
use serde_json::Value;
use tch::Device;

use crate::support::{Finished, Workplace, command, crystal, lines, root, succeed};

/// Every parameter of the last checkpoints agrees to a millionth of its largest number.
fn same_model(a: &str, run: &str) {
    let read = |run: &str| {
        read_tensors(&Path::new(run).join("checkpoints/last/model.safetensors"), Device::Cpu).unwrap()
    };
    let (a, b) = (read(a), read(run));
    assert_eq!(a.len(), b.len());
    for (name, a) in &a {
        let difference = (a - &b[name]).abs().max().double_value(&[]) / a.abs().max().double_value(&[]);
        assert!(difference <= 1e-6, "{run}, {name}: {difference:e}");
    }
}

/// Trains on `batch` rows a process; without dropout, of which every process draws its own.
fn train(place: &Workplace, command: &[&str], run: &str, batch: u32, more: &[&str]) -> (Finished, String) {
    let (config, out) = (place.path("config.toml"), place.path(run));
    let sets = [format!("imitation.batch_size={batch}"), format!("reinforcement.ppo.batch_size={batch}")];
    let args = [
        command,
        &["--config", &config, "--out", &out, "--json", "--set", &sets[0], "--set", &sets[1]],
        // With two epochs each, ten steps of Stage II are twenty updates.
        &["--set", "trainer.steps=20", "--set", "reinforcement.trainer.steps=10"],
        more,
    ];
    (succeed(&args.concat()), out)
}

fn still(place: &Workplace) {
    let path = place.path("t5.json");
    let mut config: Value = serde_json::from_str(&std::fs::read_to_string(&path).unwrap()).unwrap();
    config["dropout_rate"] = 0.0.into();
    std::fs::write(path, config.to_string()).unwrap();
}

#[test]
fn two_processes_imitate_and_reinforce_as_one() {
    let place = Workplace::new();
    still(&place);
    let (_, one) = train(&place, &["imitate"], "runs/one", 16, &[]);
    let (finished, two) = train(&place, &["imitate"], "runs/two", 8, &["--nproc", "2"]);
    assert_eq!(finished.json()["steps"], 20);
    same_model(&one, &two);
    // Rank 0 alone has written.
    let steps = |run: &str| lines(&format!("{run}/metrics.jsonl")).len();
    assert_eq!(steps(&one), steps(&two));
    assert!(!finished.stderr.contains("[rank 1]"), "{}", finished.stderr);

    let model = format!("{one}/checkpoints/last");
    let stage = ["reinforce", "--model", &model];
    // Adam makes much of rounding where gradients are next to nothing; more slowly, it stays below the bound.
    let slow = ["--set", "reinforcement.trainer.lr=1e-4"];
    let (_, one) = train(&place, &stage, "runs/one-2", 8, &slow);
    // The scale of the rewards is measured on so many batches of one process.
    let more = [&["--nproc", "2", "--set", "reinforcement.normalization_batches=8"], &slow[..]].concat();
    let (_, two) = train(&place, &stage, "runs/two-2", 4, &more);
    same_model(&one, &two);
}

#[test]
fn a_killed_rank_ends_the_run_which_then_resumes() {
    let place = Workplace::new();
    still(&place);
    let (_, through) = train(&place, &["imitate"], "runs/through", 8, &["--nproc", "2"]);
    let (config, out) = (place.path("config.toml"), place.path("runs/killed"));
    let sets = ["--set", "imitation.batch_size=8", "--set", "trainer.steps=20", "--nproc", "2", "--json"];
    let args = [&["imitate", "--config", &config, "--out", &out], &sets[..]].concat();
    let launcher = command(&args).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
    let started = Instant::now();
    while !Path::new(&out).join("checkpoints/last").exists() {
        assert!(started.elapsed() < Duration::from_secs(60));
        sleep(Duration::from_millis(2));
    }
    let children = format!("/proc/{0}/task/{0}/children", launcher.id());
    let ranks = std::fs::read_to_string(children).unwrap();
    let last = ranks.split_whitespace().last().unwrap();
    assert!(Command::new("kill").args(["-KILL", last]).status().unwrap().success());
    let killed = Instant::now();
    let finished = Finished::from(launcher.wait_with_output().unwrap());
    assert!(killed.elapsed() < Duration::from_secs(60));
    assert_eq!(finished.code, Some(1), "{}", finished.stderr);
    assert!(finished.stderr.contains("error: rank 1 of 2 failed (signal: 9"), "{}", finished.stderr);
    assert!(finished.stderr.contains("the others were stopped"), "{}", finished.stderr);
    succeed(&["imitate", "--out", &out, "--resume", "--nproc", "2"]);
    same_model(&through, &out);
}

/// Where `RUMINATE_PYTHON` names a Python with PyTorch: its launcher starts the ranks anew after one was killed, and they go on.
#[test]
#[expect(clippy::print_stderr, reason = "says why nothing was tested")]
fn torchrun_starts_a_run_again_that_goes_on() {
    let Some(python) = std::env::var_os("RUMINATE_PYTHON") else {
        eprintln!("skipped: RUMINATE_PYTHON names no Python with PyTorch");
        return;
    };
    let place = Workplace::new();
    still(&place);
    let (_, through) = train(&place, &["imitate"], "runs/through", 8, &["--nproc", "2"]);
    let (config, out) = (place.path("config.toml"), place.path("runs/elastic"));
    let sets = ["--set", "imitation.batch_size=8", "--set", "trainer.steps=20"];
    let mut launcher = Command::new(python)
        .current_dir(root())
        .args(["-m", "torch.distributed.run", "--standalone", "--no-python", "--nproc-per-node", "2"])
        .args([
            "--max-restarts",
            "2",
            env!("CARGO_BIN_EXE_crystal"),
            "imitate",
            "--config",
            &config,
            "--out",
            &out,
        ])
        .args(sets)
        .env("OMP_NUM_THREADS", "1")
        // Cargo's names folders in which Python would find another libtorch than its own.
        .env_remove("LD_LIBRARY_PATH")
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    let started = Instant::now();
    while !Path::new(&out).join("checkpoints/step-3").exists() {
        if launcher.try_wait().unwrap().is_some() || started.elapsed() > Duration::from_secs(120) {
            launcher.kill().unwrap();
            panic!("{}", Finished::from(launcher.wait_with_output().unwrap()).stderr);
        }
        sleep(Duration::from_millis(2));
    }
    let children = format!("/proc/{0}/task/{0}/children", launcher.id());
    let ranks = std::fs::read_to_string(children).unwrap();
    let rank = ranks.split_whitespace().last().unwrap();
    assert!(Command::new("kill").args(["-KILL", rank]).status().unwrap().success());
    let finished = Finished::from(launcher.wait_with_output().unwrap());
    assert_eq!(finished.code, Some(0), "{}", finished.stderr);
    assert!(finished.stderr.contains("exitcode: -9"), "{}", finished.stderr);
    same_model(&through, &out);
}

#[test]
fn an_evaluation_by_two_processes_writes_what_one_writes() {
    let place = Workplace::new();
    let model = place.trained();
    let files = |name: &str, nproc: &str| {
        let out = place.path(name);
        let finished = crystal(&["evaluate", "--model", &model, "--out", &out, "--nproc", nproc, "--json"]);
        assert_eq!(finished.code, Some(0), "{}", finished.stderr);
        let result = finished.json();
        let written = result["files"].as_array().unwrap().clone();
        assert_eq!(written.len(), 4, "{result}");
        let read = |file: &serde_json::Value| -> serde_json::Value {
            serde_json::from_str(&std::fs::read_to_string(file.as_str().unwrap()).unwrap()).unwrap()
        };
        assert!(!Path::new(&out).join("texts.jsonl").exists());
        written.iter().map(read).collect::<Vec<_>>()
    };
    for (alone, together) in files("alone", "1").iter().zip(&files("together", "2")) {
        let (alone, together) = (alone.as_array().unwrap(), together.as_array().unwrap());
        assert_eq!(alone.len(), together.len());
        for (alone, together) in alone.iter().zip(together) {
            for key in ["query", "knowledges", "pred", "ok", "pred_knowless", "selected_knowledge_ix"] {
                assert_eq!(alone[key], together[key], "{key}");
            }
            for (a, b) in alone["probs"]
                .as_array()
                .into_iter()
                .flatten()
                .zip(together["probs"].as_array().into_iter().flatten())
            {
                assert!((a.as_f64().unwrap() - b.as_f64().unwrap()).abs() < 1e-6, "{a} {b}");
            }
        }
    }
}

#[test]
fn what_cannot_be_done_together_is_refused() {
    let place = Workplace::new();
    // A wrong setting is wrong usage of the launcher, too.
    let (config, out) = (place.path("config.toml"), place.path("runs/wrong"));
    let args = ["imitate", "--config", &config, "--out", &out, "--nproc", "2", "--set", "trainer.lr=-1"];
    assert_eq!(crystal(&args).code, Some(2));
    // Both ranks say what is wrong before they look for each other.
    let mut torchrun = command(&["imitate", "--config", &config, "--out", &out]);
    let finished = Finished::from(torchrun.envs([("RANK", "2"), ("WORLD_SIZE", "2")]).output().unwrap());
    assert!(finished.stderr.contains("environment variable RANK: is 2"), "{}", finished.stderr);
}

#[test]
fn the_log_of_a_rank_that_fails_is_shown() {
    let place = Workplace::new();
    let (config, out) = (place.path("config.toml"), place.path("runs/log"));
    // More processes than a batch has rows for.
    let set = ["--set", "imitation.batch_size=100000", "--nproc", "2", "--rank-timeout", "30"];
    let args = [&["imitate", "--config", &config, "--out", &out], &set[..]].concat();
    let finished = crystal(&args);
    assert!(finished.code.is_some_and(|code| code > 0));
    assert!(finished.stderr.contains("[rank 1] error: "), "{}", finished.stderr);
}
