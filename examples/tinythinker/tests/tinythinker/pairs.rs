//! A round in two commands: the pairs, and the training on them.

use std::fs;

use serde_json::{Value, json};

use crate::support::{Place, kill, lines, succeed, tinythinker};

const FILES: [&str; 4] = ["recall_runs.jsonl", "recall_dpo.json", "analyze_dpo.json", "pairs.json"];

/// Settings of short rounds with several steps.
fn sets(place: &Place) -> Vec<String> {
    let start = place.path("acquired/checkpoints/last");
    let sets = [
        "reflection.training.batch_size=4",
        "reflection.iterations=2",
        "reflection.training.generation_times=2",
        "reflection.training.blocks=6",
        "reflection.training.generation.max_length=8",
        "reflection.trainer.eval_every=1000",
        "reflection.trainer.log_every=1",
        "reflection.trainer.save_every=2",
        "reflection.trainer.lr=1e-3",
    ];
    sets.map(String::from).into_iter().chain([format!("reflection.start={}", start.display())]).collect()
}

fn acquired() -> Place {
    let place = Place::new();
    let sets = ["acquisition.training.epochs=1", "acquisition.training.generation.max_length=8"];
    place.run("acquire", "acquired", &[], &sets.map(String::from));
    place
}

#[test]
fn pairs_and_training_alone_give_what_a_round_gives() {
    let place = acquired();
    let sets = sets(&place);
    let rounds = place.run("reflect", "reflected", &[], &sets).json();
    let read = |folder: &str, file: &str| fs::read(place.path(folder).join(file)).unwrap();

    // The first round, killed while it samples.
    let pairs = place.args("pairs", "pairs-1", &[], &sets);
    kill(&pairs, || place.path("pairs-1/recall_runs.jsonl").is_file());
    let made = succeed(&[&pairs[..], &["--resume".into()]].concat()).json();
    assert_eq!(
        (&made["system"], &made["phase"], &made["round"]),
        (&"tinythinker".into(), &"pairs".into(), &1.into())
    );
    assert_eq!(made["sampled"], rounds["rounds"][0]["sampled"]);
    for file in FILES {
        assert!(read("pairs-1", file) == read("reflected/round-1", file), "{file} differs");
    }
    // The second one samples otherwise, and from the checkpoint of the first.
    let model = rounds["rounds"][0]["best"].as_str().unwrap();
    place.run("pairs", "pairs-2", &["--round", "2", "--model", model], &sets);
    assert!(read("pairs-2", "recall_runs.jsonl") == read("reflected/round-2", "recall_runs.jsonl"));
    assert!(read("pairs-2", "recall_runs.jsonl") != read("pairs-1", "recall_runs.jsonl"));

    // Training, killed in the middle.
    let folder = place.path("pairs-1").display().to_string();
    let dpo = place.args("dpo", "dpo-1", &["--pairs", &folder], &sets);
    kill(&dpo, || place.path("dpo-1/checkpoints/last").exists());
    let out = place.path("dpo-1").display().to_string();
    let resumed = ["dpo", "--out", &out, "--resume", "--json", "-q"].map(String::from);
    let trained = succeed(&resumed).json();
    assert_eq!((&trained["phase"], &trained["best"]["step"]), (&"dpo".into(), &rounds["rounds"][0]["step"]));
    let recall = rounds["rounds"][0]["sampled"]["recall"]["pairs"].as_u64().unwrap();
    assert_eq!(trained["data"]["files"]["recall"], json!({"pairs": recall, "left_out": {}}));
    for file in ["model.safetensors", "trainer.safetensors"] {
        let of = |run: &str| read(run, &format!("checkpoints/last/{file}"));
        assert!(of("dpo-1") == of("reflected/round-1"), "{file} differs");
    }
    let plan = place.run("dpo", "dpo-1", &["--pairs", &folder, "--dry-run"], &sets).json();
    assert_eq!(plan["plan"]["steps"], trained["steps"], "{plan}");
}

#[test]
fn published_pair_files_are_trained_on_and_bad_ones_are_named() {
    let place = acquired();
    let sets = sets(&place);
    let folder = place.path("iter_1");
    fs::create_dir(&folder).unwrap();
    let question = "What is the weather where Anna lives?\n(A) sunny (B) rainy (C) snowy (D) windy";
    let write = |file: &str, rows: &[[Value; 3]]| {
        let rows: Vec<Value> = rows
            .iter()
            .map(|[prompt, chosen, rejected]| json!({"prompt": prompt, "chosen": chosen, "rejected": rejected}))
            .collect();
        fs::write(folder.join(file), json!(rows).to_string()).unwrap();
    };
    let recall = json!(format!("{question}\nRecall:"));
    let analyze = json!(format!("{question}\nRecall: Every city has a weather.\nAnalyze: For option B,"));
    let good = [recall.clone(), json!("Anna lives in a city."), json!("Every city has a weather.")];
    write("recall_dpo.json", &[good.clone(), [recall.clone(), json!("Anna."), json!("Anna.")]]);
    write(
        "analyze_dpo.json",
        &[
            [analyze.clone(), json!("No."), json!(null)],
            [analyze.clone(), json!("It rains."), json!("It may rain.")],
        ],
    );
    let pairs = folder.display().to_string();
    let trained = place.run("dpo", "dpo", &["--pairs", &pairs], &sets).json();
    let files = json!({"recall": {"pairs": 1, "left_out": {"equal_completions": 1}},
                       "analyze": {"pairs": 1, "left_out": {"empty_completion": 1}}});
    assert_eq!(trained["data"]["files"], files, "{trained}");
    assert!(lines(&place.path("dpo/metrics.jsonl")).iter().any(|line| line.contains("rewards/margins")));

    let fails = |out: &str, flags: &[&str], sets: &[String], wanted: &[&str]| {
        let finished = tinythinker(&place.args("dpo", out, flags, sets));
        assert!(matches!(finished.code, Some(1 | 2)), "{flags:?}: {:?}", finished.code);
        for part in wanted {
            assert!(finished.stderr.contains(part), "{part} is not named:\n{}", finished.stderr);
        }
        assert!(!place.path(out).join("checkpoints").exists());
    };
    fails("bad", &[], &sets, &["reflection.pairs", "tinythinker pairs"]);
    fails("bad", &["--pairs", "nowhere"], &sets, &["nowhere", "recall_dpo.json"]);
    write("recall_dpo.json", &[good, [analyze, json!("a"), json!("b")]]);
    fails("bad", &["--pairs", &pairs], &sets, &["recall_dpo.json", "item 1", "prompt", "recall"]);
    fs::write(folder.join("recall_dpo.json"), r#"[{"prompt": "q", "chosen": "a"}, {"prompt": 3}]"#).unwrap();
    fails("bad", &["--pairs", &pairs], &sets, &["recall_dpo.json", "item 1", "prompt"]);
    write("recall_dpo.json", &[]);
    let alone = [&sets[..], &["reflection.training.stages=recall".into()]].concat();
    fails("bad", &["--pairs", &pairs], &alone, &["pairs", "recall"]);
    let start = format!("reflection.start={}", place.path("nowhere").display());
    fails("bad", &["--pairs", &pairs], &[&sets[..], &[start]].concat(), &["nowhere"]);
}
