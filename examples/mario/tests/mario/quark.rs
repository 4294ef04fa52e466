//! Quark with several rewards as a command, and the demo.

use std::collections::BTreeMap;
use std::fs;
use std::path::Path;
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use assert_cmd::cargo::cargo_bin;
use serde_json::Value;

use crate::real_data::{data, tiny_model};
use crate::support::{Workplace, lines, mario, root, succeed};

/// Every file below a folder.
fn files(folder: &Path) -> BTreeMap<String, Vec<u8>> {
    let mut found = BTreeMap::new();
    for entry in fs::read_dir(folder).unwrap() {
        let path = entry.unwrap().path();
        found.insert(path.file_name().unwrap().to_string_lossy().into_owned(), fs::read(&path).unwrap());
    }
    found
}

/// Trains a stage of the configuration on real rows, and names the checkpoint.
fn stage(place: &Workplace, name: &str, sets: &[&str]) -> String {
    let command: &[&str] = match name {
        "sft" => &["sft"],
        _ => &["reward-model", "--mode", name],
    };
    let out = place.path(name);
    let model = format!("{name}.model.config={}", place.path("t5.json"));
    let trainer = [format!("{name}.trainer.steps=4"), format!("{name}.trainer.eval_every=0")];
    let mut args = [command, &["--config", "examples/mario/configs/tiny.toml", "--out", &out]].concat();
    args.extend(["-q", "--json", "--set", &model, "--set", &trainer[0], "--set", &trainer[1]]);
    sets.iter().for_each(|set| args.extend(["--set", set]));
    succeed(&args).json()["last"].as_str().unwrap().to_string()
}

#[test]
fn training_on_real_rows_survives_a_kill_and_writes_the_published_files() {
    let Some(_) = data() else { return };
    let place = Workplace::new();
    tiny_model(&place);
    let said =
        |statement: &str, plausible| format!("{{\"statement\":\"{statement}\",\"plausible\":{plausible}}}\n");
    let statements = [said("Lead is heavy.", true), said("Lead is light.", false)].concat();
    place.write("train.jsonl", &statements);
    place.write("dev.jsonl", &statements);
    let path = format!("vera.training.path={}", place.path("{split}.jsonl"));
    let vera = stage(&place, "vera", &[&path, "vera.training.batch_size=2"]);
    let i2o = stage(&place, "i2o", &["i2o.training.epochs=0"]);
    let ir2o = stage(&place, "ir2o", &["ir2o.training.epochs=0"]);
    let sft = stage(&place, "sft", &["sft.training.epochs=0", "sft.training.max_length=12"]);
    let sets = [
        format!("quark.model={{pretrained=\"{sft}\"}}"),
        format!("quark.reference={sft}"),
        format!("rewards.vera={vera}"),
        format!("rewards.i2o={i2o}"),
        format!("rewards.ir2o={ir2o}"),
        "quark.trainer.steps=9".into(),
        "quark.trainer.eval_every=3".into(),
        "quark.trainer.log_every=1".into(),
        "quark.training.sample_interval=4".into(),
        "quark.training.sampling.lengths.max_length=20".into(),
        "quark.training.eval_lengths.max_length=20".into(),
    ];
    let begin = |out: &str| {
        let mut args =
            vec!["train".to_string(), "--config".into(), "examples/mario/configs/tiny.toml".into()];
        args.extend(["--out".into(), place.path(out), "--json".into(), "-q".into()]);
        sets.iter().for_each(|set| args.extend(["--set".into(), set.clone()]));
        args
    };
    let args = begin("whole");
    let args: Vec<&str> = args.iter().map(String::as_str).collect();
    let plan = succeed(&[&args[..], &["--dry-run"]].concat()).json();
    assert_eq!(plan["plan"]["steps"], 9, "{plan}");
    // The reference, two models that choose, and a verifier, which is an encoder and therefore smaller.
    let memory = &plan["plan"]["memory"];
    let [weights, frozen] = ["weights", "reference"].map(|part| memory[part].as_u64().unwrap());
    assert!(3 * weights < frozen && frozen < 4 * weights, "{plan}");
    assert_eq!(succeed(&args).json()["steps"], 9);

    let mut killed = Command::new(cargo_bin!("mario"));
    let killed = killed.current_dir(root()).args(begin("killed")).env("OMP_NUM_THREADS", "1");
    let mut killed = killed.stdout(Stdio::null()).stderr(Stdio::null()).spawn().unwrap();
    let (metrics, started) = (place.path("killed/metrics.jsonl"), Instant::now());
    while fs::read_to_string(&metrics).unwrap_or_default().matches("\"train\"").count() < 5 {
        assert!(killed.try_wait().unwrap().is_none() && started.elapsed() < Duration::from_secs(120));
        std::thread::sleep(Duration::from_millis(2));
    }
    killed.kill().unwrap();
    killed.wait().unwrap();
    let resumed = succeed(&["train", "--out", &place.path("killed"), "--resume", "-q", "--json"]).json();
    assert_eq!(resumed["steps"], 9);

    let [whole, killed] = ["whole", "killed"].map(|run| place.path(run));
    let reward = files(&Path::new(&whole).join("reward"));
    let again = files(&Path::new(&killed).join("reward"));
    assert!(reward.keys().eq(again.keys()));
    for (name, content) in &reward {
        assert!(*content == again[name], "{name} differs");
    }
    for file in ["model.safetensors", "trainer.safetensors", "state.json", "pool.jsonl"] {
        let read = |run: &str| fs::read(format!("{run}/checkpoints/last/{file}")).unwrap();
        assert!(read(&whole) == read(&killed), "{file} differs");
    }

    let columns = ["question", "model_response", "correctness", "num_sents", "num_words"];
    let rewards = ["quarel-rationale-quality-continuous", "plausibility", "diversity"];
    for split in ["val", "test"] {
        let log = lines(&format!("{whole}/reward/reward_scores_{split}_greedy.txt"));
        assert_eq!(log.len(), 4);
        for (line, step) in log.iter().zip([0, 3, 6, 9]) {
            let rest = line.strip_prefix(&format!("Step {step} - {}: ", rewards[0])).unwrap();
            assert!(rest.contains(" plausibility: ") && rest.contains(" diversity: "), "{line}");
            assert!(rest.contains(" num_sents: ") && rest.contains(" num_words: "), "{line}");
            assert!(rest.split_once("  Accuracy: ").unwrap().1.parse::<f64>().is_ok(), "{line}");
            let table = &reward[&format!("eval_output{split}_greedy_{step}.jsonl")];
            let table: Value = serde_json::from_slice(table).unwrap();
            let rows = table["question"].as_array().unwrap().len();
            assert!(rows >= 50 && columns.iter().all(|c| table[c].as_array().unwrap().len() == rows));
            for name in rewards {
                assert_eq!(table[name].as_array().unwrap().len(), rows);
                let scores = &reward[&format!("perspective_{name}_step{step}_eval_{split}greedy.json")];
                let scores = String::from_utf8(scores.clone()).unwrap();
                let scores: Vec<Value> = scores
                    .lines()
                    .map(|line| serde_json::from_str::<Value>(line).unwrap()["score"].clone())
                    .collect();
                assert_eq!(&scores, table[name].as_array().unwrap());
            }
        }
    }
    // All silver rows and a response to each question at the first round, only responses later.
    let count = |step| {
        let name = format!("reward_diversity_step{step}.json");
        reward[&name].iter().filter(|byte| **byte == b'\n').count()
    };
    assert!(count(0) > count(4) && count(4) == count(8), "{} {} {}", count(0), count(4), count(8));
    let first: Value =
        serde_json::from_slice(reward["reward_diversity_step0.json"].split(|b| *b == b'\n').next().unwrap())
            .unwrap();
    assert!(first["prompt"].is_string() && first["generations"][0]["text"].is_string(), "{first}");

    for condition in ["best", "worst", "random"] {
        let model = format!("{whole}/checkpoints/last");
        let out = place.path("results");
        // With the configuration of its run.
        let args = ["evaluate", "--model", &model, "--condition", condition];
        let result = succeed(&[&args[..], &["--out", &out, "--split", "dev", "--json"]].concat()).json();
        assert!(result["scores"]["plausibility"]["mean"].is_number(), "{result}");
        let prefix = if condition == "best" { String::new() } else { format!("{condition}_") };
        let log = lines(&format!("{out}/{prefix}eval_reward_scores_val_greedy.txt"));
        assert!(log[0].starts_with("Step 9 - quarel-rationale-quality-continuous: "), "{log:?}");
        assert!(Path::new(&format!("{out}/{prefix}eval_outputval_greedy_9.csv")).is_file());
    }
    // Another one's control tokens are not these.
    let few =
        "quark.training.control.rewards=[{name=\"accuracy\",buckets=\"correctness\"},{name=\"diversity\"}]";
    let model = format!("{whole}/checkpoints/last");
    let other = mario(&["evaluate", "--model", &model, "--out", &place.path("other"), "--set", few]);
    assert_eq!(other.code, Some(2), "{}", other.stderr);
    assert!(
        other.stderr.contains("trained with other rewards") && other.stderr.contains("--config"),
        "{}",
        other.stderr
    );
    // Before the first validation of a trained policy there is no best checkpoint.
    let state = fs::read_to_string(format!("{whole}/checkpoints/best/state.json")).unwrap();
    assert!(!state.contains("\"step\":0,"), "{state}");
}

#[test]
fn what_training_lacks_is_explained() {
    let place = Workplace::new();
    let (config, out) = (place.path("config.toml"), place.path("out"));
    let model =
        format!("quark.model={{config=\"{}\",tokenizer=\"fixtures/world/t5\"}}", place.path("t5.json"));
    let base = ["train", "--config", &config, "--out", &out, "--set", &model];
    let unknown = "quark.training.control.rewards=[{name=\"beauty\"}]";
    for (sets, reason) in [
        (vec![], "quark.reference"),
        (vec!["quark.training.control.rewards=[]"], "names no reward"),
        (vec!["quark.training.best_by=beauty"], "which is no reward"),
        (vec!["quark.reference=nowhere", unknown], "nowhere"),
    ] {
        let mut args = base.to_vec();
        sets.iter().for_each(|set| args.extend(["--set", set]));
        let finished = mario(&args);
        assert!(matches!(finished.code, Some(1 | 2)), "{args:?}: {}", finished.stderr);
        assert!(finished.stderr.contains(reason), "{args:?}: {}", finished.stderr);
    }
    assert!(!Path::new(&out).exists());
}

#[test]
fn a_dry_run_counts_the_models_behind_the_rewards() {
    let place = Workplace::new();
    let (config, t5) = (place.path("config.toml"), place.path("t5.json"));
    let model = format!("quark.model={{config=\"{t5}\",tokenizer=\"fixtures/world/t5\"}}");
    let dry_run = |sets: &[&str]| {
        let mut args = vec!["train", "--config", &config, "--dry-run", "--json", "--set", &model];
        sets.iter().for_each(|set| args.extend(["--set", set]));
        mario(&args)
    };
    let counted = |sets: &[&str], problem: &str| {
        let planned = dry_run(sets);
        assert_eq!(planned.code, Some(2), "{}", planned.stderr);
        assert!(planned.stderr.contains(problem), "{}", planned.stderr);
        let plan = planned.json();
        assert!(plan["problems"][0].as_str().unwrap().contains(problem), "{plan}");
        let memory = &plan["plan"]["memory"];
        memory["reference"].as_u64().unwrap() - memory["weights"].as_u64().unwrap()
    };
    assert_eq!(counted(&[], "rewards.i2o"), 0);
    // Published shapes need not be there to be counted: consistency asks two models, plausibility one.
    let (i2o, ir2o, vera) = ("rewards.i2o=t5-small", "rewards.ir2o=t5-base", "rewards.vera=t5-large");
    let [small, base, large] = [60_506_624, 222_903_552, 737_668_096_u64].map(|parameters| 4 * parameters);
    assert_eq!(counted(&[i2o, ir2o, vera], "there is no folder t5-small"), small + base + large);
    let names = |names: &[&str]| {
        let rewards: Vec<String> = names.iter().map(|name| format!("{{name=\"{name}\"}}")).collect();
        format!("quark.training.control.rewards=[{}]", rewards.join(","))
    };
    // Each of these loads a verifier of its own.
    let plausible = names(&["plausibility", "plausibility-w-qn"]);
    assert_eq!(counted(&[vera, &plausible], "cannot use the model of rewards.vera"), 2 * large);
    assert_eq!(dry_run(&[&names(&["accuracy", "diversity"])]).code, Some(0));
}

#[test]
fn the_demo_compares_models_and_goes_on_from_what_is_there() {
    let place = Workplace::new();
    let (out, model) = (place.path("demo"), place.path("t5.json"));
    let mut sets = vec![];
    for stage in ["sft", "i2o", "ir2o", "vera"] {
        sets.push(format!("{stage}.model.config={model}"));
        sets.push(format!("{stage}.trainer.steps=3"));
    }
    sets.extend(
        ["quark.trainer.steps=3", "quark.training.sample_interval=2", "sft.training.max_length=12"]
            .map(String::from),
    );
    sets.extend(["sampling.", "eval_"].map(|of| format!("quark.training.{of}lengths.max_length=14")));
    let mut args = vec!["demo", "--json", "--seeds", "1", "--out", &out];
    sets.iter().for_each(|set| args.extend(["--set", set]));
    let first = succeed(&args);
    assert!(first.stderr.contains("starting: 3 steps"), "{}", first.stderr);
    let result = first.json();
    for model in ["sft", "mario", "worst"] {
        for metric in ["accuracy", "consistency", "plausibility", "diversity"] {
            let value = result["metrics"][model][metric].as_f64().unwrap();
            assert!((-1.0..=1.0).contains(&value), "{result}");
        }
    }
    assert!(result["gain"]["diversity"]["interval"]["low"].is_number(), "{result}");
    let page = fs::read_to_string(result["report"].as_str().unwrap()).unwrap();
    for shown in ["<svg", "KL to the supervised model", "What they write", "quark-seed-1/report.html"] {
        assert!(page.contains(shown), "{shown}");
    }
    let second = succeed(&args);
    assert!(!second.stderr.contains("starting:"), "{}", second.stderr);
    assert_eq!(second.json()["metrics"], result["metrics"]);
}
