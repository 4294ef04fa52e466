//! Stage II from a checkpoint of Stage I.

use std::fs;
use std::path::Path;

use approx::{abs_diff_eq, relative_eq};
use serde_json::Value;

use crate::bad_input::refused;
use crate::interruption::{assert_same, finish, signal, start_with, unfinished, wait_for_steps};
use crate::support::{Workplace, crystal, lines, names, succeed};

/// Reinforces the model with more settings; returns the run's folder.
fn reinforced(place: &Workplace, model: &str, run: &str, sets: &[&str]) -> String {
    let out = place.path(run);
    let mut args = vec!["reinforce", "--model", model, "--out", &out, "--json"];
    sets.iter().for_each(|set| args.extend(["--set", set]));
    succeed(&args);
    out
}

/// The records of steps, and those of validations.
fn records(run: &str) -> [Vec<Value>; 2] {
    let metrics = lines(&format!("{run}/metrics.jsonl"));
    for line in &metrics {
        // What is no number has no form in JSON but `null`.
        assert!(line.as_object().unwrap().values().all(|value| !value.is_null()), "{line}");
    }
    ["train/acc", "eval/acc_unweighted"]
        .map(|key| metrics.iter().filter(|line| line.get(key).is_some()).cloned().collect())
}

fn read(path: &str) -> Value {
    serde_json::from_str(&fs::read_to_string(path).unwrap()).unwrap()
}

#[test]
fn a_run_leaves_what_it_should() {
    let place = Workplace::new();
    let model = place.trained();
    let run = reinforced(&place, &model, "runs/two", &[]);
    for file in ["config.toml", "report.html", "samples.jsonl", "reward/reward_normalization.json"] {
        assert!(fs::metadata(format!("{run}/{file}")).unwrap().len() > 0, "{file}");
    }
    let scale = read(&format!("{run}/reward/reward_normalization.json"));
    assert!(scale["gain"].as_f64().unwrap() > 0.0 && scale["bias"].is_f64(), "{scale}");
    let statistics = read(&format!("{run}/reward/reward_statistics.json"));
    let count: u64 =
        statistics.as_object().unwrap().values().map(|task| task["count"].as_u64().unwrap()).sum();
    assert_eq!(count, 4 * 8, "{statistics}");

    let [steps, validations] = records(&run);
    assert_eq!(steps.len(), 24);
    let both = ["train/acc", "train/acc_knowless", "train/acc_delta"];
    let rewarded = [
        "train/loss/total",
        "train/loss/policy",
        "train/loss/value",
        "train/reward/penalized",
        "train/reward/KL",
        "train/reward/normalized",
        "train/reward/raw",
    ];
    for (step, line) in steps.iter().enumerate() {
        let reinforces = step % 16 < 8;
        let has = |key: &str| line.get(key).is_some_and(Value::is_f64);
        assert!(both.into_iter().all(has), "{line}");
        assert!(
            rewarded.into_iter().all(|key| has(key) == reinforces || key == "train/loss/total"),
            "{line}"
        );
        assert_eq!(has("train/loss/qka"), !reinforces, "{line}");
        let [delta, acc, less] =
            ["train/acc_delta", "train/acc", "train/acc_knowless"].map(|key| line[key].as_f64().unwrap());
        assert!(abs_diff_eq!(delta, acc - less, epsilon = 1e-6), "{line}");
        if reinforces {
            let value = |key: &str| line[key].as_f64().unwrap();
            let (raw, normalized) = (value("train/reward/raw"), value("train/reward/normalized"));
            let expected = scale["gain"].as_f64().unwrap() * raw + scale["bias"].as_f64().unwrap();
            assert!(relative_eq!(normalized, expected, epsilon = 1e-5, max_relative = 1e-5), "{line}");
        }
    }
    // The policy is the reference before it has moved.
    assert_eq!(steps[0]["train/reward/KL"].as_f64().unwrap(), 0.0);
    assert!(steps[7]["train/reward/KL"].as_f64().unwrap() != 0.0);

    // Before each phase and at the end.
    let at: Vec<u64> = validations.iter().map(|line| line["step"].as_u64().unwrap()).collect();
    assert_eq!(at, [0, 8, 16, 24]);
    let accuracies = [
        "eval/acc_weighted",
        "eval/acc_unweighted",
        "eval/acc_unweighted_knowless",
        "eval/acc_unweighted_delta",
        "eval/acc/lives",
        "eval/acc/twohop",
    ];
    let mut best = (0, f64::NEG_INFINITY);
    for line in &validations {
        for key in accuracies {
            assert!(line[key].as_f64().is_some_and(|acc| (-1.0..=1.0).contains(&acc)), "{key}: {line}");
        }
        let acc = line["eval/acc_unweighted"].as_f64().unwrap();
        if acc > best.1 {
            best = (line["step"].as_u64().unwrap(), acc);
        }
    }
    let link = fs::read_link(format!("{run}/checkpoints/best")).unwrap();
    assert_eq!(link, Path::new(&format!("step-{}", best.0)));
    assert!(
        lines(&format!("{run}/samples.jsonl")).iter().all(|sample| sample["sample"]["response"].is_string())
    );

    let last = format!("{run}/checkpoints/last");
    let files = names(&last);
    for file in
        ["model.safetensors", "value.safetensors", "trainer.safetensors", "manifest.json", "tokenizer.json"]
    {
        assert!(files.iter().any(|name| name == file), "{file}: {files:?}");
    }
    assert!(read(&format!("{last}/manifest.json")).to_string().contains("value.safetensors"));

    // The policy is evaluated as any model; what predicts values does not disturb.
    let result = succeed(&["evaluate", "--model", &last, "--json"]).json();
    assert_eq!(result["tasks"].as_array().unwrap().len(), 2);
    assert_eq!(names(&place.path("eval/two_ckp-24")), ["inference", "knowledge"]);
    // And is a model to start from.
    reinforced(&place, &last, "runs/three", &["reinforcement.trainer.steps=1"]);
}

#[test]
fn ablations_run() {
    let place = Workplace::new();
    let model = place.trained();
    let count = |steps: &[Value], key: &str| steps.iter().filter(|line| line.get(key).is_some()).count();
    for (i, (sets, rewards, answers)) in [
        (&["compat=corrected"][..], 8, 4),
        (&["data.half_half=true"], 8, 4),
        (&["reinforcement.separate_value_model=true"], 8, 4),
        (&["reinforcement.ppo.rl_steps=16", "reinforcement.qka_coef=0"], 12, 0),
        (&["reinforcement.ppo.rl_steps=0"], 0, 12),
        (&["reinforcement.qa_coef=0.5"], 8, 4),
        (&["reinforcement.ppo.kl.fixed.coef=0"], 8, 4),
        (&["reinforcement.reward_shape=0"], 8, 4),
        (&["reinforcement.gain=2", "reinforcement.bias=0.5"], 8, 4),
        (&["reinforcement.gain=0"], 8, 4),
    ]
    .into_iter()
    .enumerate()
    {
        let sets = [sets, &["reinforcement.trainer.steps=12"]].concat();
        let run = reinforced(&place, &model, &format!("ablation-{i}"), &sets);
        let [steps, validations] = records(&run);
        let found = (count(&steps, "train/reward/raw"), count(&steps, "train/loss/qka"));
        assert_eq!(found, (rewards, answers), "{sets:?}");
        assert_eq!(count(&steps, "train/loss/qa"), if sets[0].contains("qa_coef=0.5") { 4 } else { 0 });
        assert!(!validations.is_empty());
        // Without reinforced steps, nothing needs a scale, and without measuring it has no statistics.
        let measured = rewards > 0 && !sets[0].contains("gain");
        let statistics = format!("{run}/reward/reward_statistics.json");
        assert_eq!(Path::new(&statistics).exists(), measured, "{sets:?}");
    }
}

/// With a head on the policy, and with a network for the values.
#[test]
fn a_killed_run_goes_on_bit_for_bit() {
    let place = Workplace::new();
    let model = place.trained();
    for (name, separate, kills) in [("head", "false", &[2, 6, 10, 14, 18][..]), ("network", "true", &[5, 12])]
    {
        let set = format!("reinforcement.separate_value_model={separate}");
        let undisturbed = format!("{name}-undisturbed");
        reinforced(&place, &model, &undisturbed, &[&set]);
        let run = place.path(name);
        let args = ["reinforce", "--model", &model, "--set", &set];
        // While the rewards are measured.
        let mut child = start_with(&args, &run);
        while !Path::new(&run).join("config.toml").exists() {
            assert!(child.try_wait().unwrap().is_none());
        }
        child.kill().unwrap();
        child.wait().unwrap();
        // Inside the phases: steps 0 to 7 and 16 to 23 are reinforced, the others train answers.
        for &steps in kills {
            let mut child = start_with(&args, &run);
            wait_for_steps(&mut child, &format!("{run}/metrics.jsonl"), steps);
            child.kill().unwrap();
            child.wait().unwrap();
        }
        // Amid a save.
        let mut child = start_with(&args, &run);
        while !unfinished(&run) && child.try_wait().unwrap().is_none() {}
        child.kill().unwrap();
        child.wait().unwrap();

        let finished = finish(start_with(&["reinforce"], &run));
        assert_eq!(finished.code, Some(0), "{}", finished.stderr);
        assert_same(&place, name, &undisturbed);
        for file in ["reward_normalization.json", "reward_statistics.json"] {
            let bytes = |run: &str| fs::read(place.path(&format!("{run}/reward/{file}"))).unwrap();
            assert_eq!(bytes(name), bytes(&undisturbed));
        }
    }
}

#[test]
fn ctrl_c_stops_inside_a_phase() {
    let place = Workplace::new();
    let model = place.trained();
    let undisturbed = reinforced(&place, &model, "undisturbed", &[]);
    let run = place.path("stopped");
    for (wait, phase) in [(2, 2..8), (10, 10..16)] {
        let mut child = start_with(&["reinforce", "--model", &model], &run);
        wait_for_steps(&mut child, &format!("{run}/metrics.jsonl"), wait);
        signal(&child, "INT");
        let finished = finish(child);
        assert_eq!(finished.code, Some(130), "{}", finished.stderr);
        let step = finished.json()["steps"].as_u64().unwrap();
        assert!(phase.contains(&step), "{step}");
    }
    let finished = finish(start_with(&["reinforce"], &run));
    assert_eq!(finished.code, Some(0), "{}", finished.stderr);
    assert_same(&place, "stopped", "undisturbed");
    let again = succeed(&["reinforce", "--out", &undisturbed, "--resume", "--json"]).json();
    assert_eq!(again["steps"], 24);
}

#[test]
fn mistakes_are_told() {
    let place = Workplace::new();
    let model = place.trained();
    let (config, out) = (place.path("config.toml"), place.path("new/run"));
    refused(&place, &["reinforce", "--config", &config, "--out", &out], 2, &["--model"]);
    refused(&place, &["reinforce", "--model", &model], 2, &["--out"]);
    let nowhere = place.path("nowhere");
    let absent = ["reinforce", "--model", &nowhere, "--config", &config, "--out", &out];
    refused(&place, &absent, 2, &["model.pretrained", &nowhere]);
    fs::create_dir(&nowhere).unwrap();
    refused(&place, &absent, 1, &[&nowhere, "config.json"]);

    let reinforce = |set: &str, code, needles: &[&str]| {
        refused(&place, &["reinforce", "--model", &model, "--out", &out, "--set", set], code, needles);
    };
    reinforce("reinforcement.gain=2", 2, &["`gain`", "give both or neither"]);
    reinforce("reinforcement.bias=0", 2, &["`gain`", "give both or neither"]);
    reinforce("reinforcement.ppo.rl_steps=17", 2, &["`rl_steps`", "more than cycle_steps (16)"]);
    reinforce("reinforcement.qka_coef=0", 2, &["`qka_coef`", "would train nothing"]);
    reinforce("reinforcement.reward_shape=8", 2, &["no reward shape 8", "0 to 7"]);
    reinforce("reinforcement.ppo.best_by=accuracy", 2, &["best_by", "accuracy", "acc"]);
    reinforce("reinforcement.ppo.batch_size=1000", 1, &["instances do not fill one step of 1 ranks x 1000"]);
    reinforce("reinforcement.ppo.epohs=1", 2, &["did you mean `reinforcement.ppo.epochs`?"]);

    // Questions with too many choices, and with one choice only, whose reward is always 0.
    let template = format!("data.data_path={}", place.path("{split}.tsv"));
    let choices = |n: u8| (0..n).map(|i| format!("({}) c{i} ", char::from(b'A' + i))).collect::<String>();
    let file = |n| format!("Q \\n {}\tc0\n", choices(n)).repeat(32);
    place.write("dev.tsv", &file(2));
    place.write("train.tsv", &file(9));
    reinforce(&template, 1, &["9", "8", "choices"]);
    place.write("train.tsv", &file(2));
    place.write("dev.tsv", &file(17));
    reinforce(&template, 1, &["17", "16", "choices"]);
    place.write("dev.tsv", &file(2));
    place.write("train.tsv", &file(1));
    let alike = crystal(&["reinforce", "--model", &model, "--out", &out, "--set", &template]);
    assert_eq!(alike.code, Some(1));
    for needle in ["standard deviation is 0", "reward shape", "gain and bias"] {
        assert!(alike.stderr.contains(needle), "{}", alike.stderr);
    }

    // A run is resumed by the command that it was started with.
    let two = reinforced(&place, &model, "two", &["reinforcement.trainer.steps=2"]);
    let one = place.path("runs/tiny");
    refused(
        &place,
        &["imitate", "--out", &two, "--resume"],
        2,
        &["a run of Stage II", "`crystal reinforce`"],
    );
    refused(
        &place,
        &["reinforce", "--out", &one, "--resume"],
        2,
        &["a run of Stage I;", "`crystal imitate`"],
    );
    let longer = ["reinforce", "--out", &two, "--resume", "--set", "reinforcement.trainer.steps=3"];
    refused(&place, &longer, 2, &["reinforcement.trainer.steps: stored 2, now 3"]);
}
