//! The `star` binary as users run it, on settings so small that a training takes a second.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Output};

use serde_json::Value;
use tempfile::TempDir;

fn root() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../..")
}

fn star(args: &[&str]) -> Output {
    let mut command = Command::new(env!("CARGO_BIN_EXE_star"));
    command.current_dir(root()).env("OMP_NUM_THREADS", "1").args(args).output().unwrap()
}

fn succeed(args: &[&str]) -> Value {
    let output = star(args);
    let stderr = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{args:?}: {stderr}");
    serde_json::from_slice(&output.stdout).unwrap_or_default()
}

fn refused(args: &[&str], code: i32, told: &[&str]) {
    let output = star(args);
    let stderr = String::from_utf8_lossy(&output.stderr);
    assert_eq!(output.status.code(), Some(code), "{args:?}: {stderr}");
    told.iter().for_each(|needle| assert!(stderr.contains(needle), "{args:?}: {needle} is not in {stderr}"));
}

/// A model that has seen a question a hundred times, and the settings for the loop.
struct Workplace {
    folder: TempDir,
    start: String,
    config: String,
}

impl Workplace {
    fn new() -> Self {
        let folder = tempfile::tempdir().unwrap();
        let path = |name: &str| folder.path().join(name).display().to_string();
        let rows = |names: &[&str]| -> String {
            let row = |(i, name): (usize, &&str)| {
                let weather = ["sunny", "rainy"][i % 2];
                let answer = ["(A)", "(B)"][i % 2];
                format!(
                    "{{\"question\":\"What is the weather where {name} lives? (A) sunny (B) rainy\",\"rationale\":\"Our {name} lives in \
                     Corvale. Corvale is {weather}.\",\"answer\":\"{answer}\"}}\n"
                )
            };
            names.iter().enumerate().map(row).collect()
        };
        let names = ["Anna", "Abel", "Ada", "Adam"];
        fs::write(path("train.jsonl"), rows(&names)).unwrap();
        fs::write(path("test.jsonl"), rows(&names[..2])).unwrap();
        let text = fs::read_to_string(root().join("examples/star/configs/world.toml")).unwrap();
        let text = text
            .replace("fixtures/world/mario/qasc/kept/train.jsonl", &path("train.jsonl"))
            .replace("fixtures/world/mario/qasc/kept/test.jsonl", &path("test.jsonl"))
            .replace("batch_size = 64", "batch_size = 4")
            .replace("steps = 200", "steps = 4")
            .replace("iterations = 3", "iterations = 2");
        fs::write(path("config.toml"), text).unwrap();
        let (config, out) = (path("config.toml"), path("start"));
        succeed(&[
            "finetune",
            "--config",
            &config,
            "--out",
            &out,
            "--set",
            "trainer.steps=60",
            "--set",
            "trainer.lr=3e-3",
            "-q",
        ]);
        // From now on, the model is that of a folder.
        let text = fs::read_to_string(&config).unwrap();
        fs::write(&config, text.replace("config = \"fixtures/world/t5/config.json\"\n", "")).unwrap();
        Self { start: format!("model.pretrained={out}/checkpoints/last"), folder, config }
    }

    fn path(&self, name: &str) -> String {
        self.folder.path().join(name).display().to_string()
    }

    fn iterate<'a>(&'a self, out: &'a str, more: &[&'a str]) -> Vec<&'a str> {
        [&["iterate", "--config", &self.config, "--set", &self.start, "--out", out], more].concat()
    }
}

#[test]
fn the_loop_learns_from_right_rationales_and_goes_on_where_it_was() {
    let place = Workplace::new();
    let out = place.path("star");
    let whole = succeed(&place.iterate(&out, &["--json"]));
    assert_eq!((&whole["system"], &whole["phase"]), (&"star".into(), &"iterate".into()));
    let iterations = whole["iterations"].as_array().unwrap();
    assert_eq!(iterations.len(), 2);
    for iteration in iterations {
        let count = |key: &str| iteration[key].as_u64().unwrap();
        assert!(count("answered") >= 1 && count("answered") + count("rationalized") <= count("questions"));
        assert!(count("kept") >= count("answered"), "{iteration}");
    }
    // Each iteration trains the first model, 1.2 times as long as the one before, on rationales with the right answer alone.
    let config = fs::read_to_string(place.folder.path().join("star/iteration-2/config.toml")).unwrap();
    assert!(config.contains("steps = 5\n") && config.contains("start/checkpoints/step-60"), "{config}");
    let rows = fs::read_to_string(place.folder.path().join("star/iteration-1/kept.jsonl")).unwrap();
    let train = fs::read_to_string(place.path("train.jsonl")).unwrap();
    for row in rows.lines() {
        let row: Value = serde_json::from_str(row).unwrap();
        let same = |line: &str| {
            let given: Value = serde_json::from_str(line).unwrap();
            given["question"] == row["question"] && given["answer"] == row["answer"]
        };
        assert!(train.lines().any(same) && !row["rationale"].as_str().unwrap().is_empty(), "{row}");
    }
    assert!(place.folder.path().join("star/report.html").is_file());
    // What is over is not done again; an iteration that is gone is.
    let model =
        |out: &str| fs::read(format!("{out}/iteration-2/checkpoints/last/model.safetensors")).unwrap();
    let before = model(&out);
    fs::remove_dir_all(place.path("star/iteration-2")).unwrap();
    let again = succeed(&["iterate", "--out", &out, "--resume", "--json"]);
    assert_eq!(again, whole);
    assert!(model(&out) == before, "a resumed loop ends elsewhere");
    // Two processes come to the same texts and counts.
    let two = place.path("two");
    let together =
        succeed(&place.iterate(&two, &["--json", "--nproc", "2", "--set", "finetune.batch_size=2"]));
    for (one, two) in iterations.iter().zip(together["iterations"].as_array().unwrap()).take(1) {
        for key in ["answered", "rationalized", "kept"] {
            assert_eq!(one[key], two[key], "{key}");
        }
    }
}

#[test]
fn mistakes_are_told() {
    let folder = tempfile::tempdir().unwrap();
    let path = |name: &str| folder.path().join(name).display().to_string();
    let out = path("out");
    refused(&["iterate", "--out", &out], 2, &["model.pretrained"]);
    refused(&["iterate"], 2, &["--out"]);
    refused(&["finetune", "--out", &out, "--set", "iterations=0"], 2, &["iterations is 0"]);
    refused(&["finetune", "--out", &out, "--set", "sampling.samples=4"], 2, &["sampling.temperature"]);
    refused(&["finetune", "--out", &out, "--set", "data.completion={answer}"], 2, &["data.completion"]);
    let world = "examples/star/configs/world.toml";
    fs::write(path("rows.jsonl"), "{\"question\": \"Q\", \"answer\": \"(A)\"}\n{\"question\": \"Q\"}\n")
        .unwrap();
    let set = format!("data.train={}", path("rows.jsonl"));
    refused(
        &["finetune", "--config", world, "--out", &out, "--set", &set],
        1,
        &["rows.jsonl", "line 2", "answer"],
    );
    fs::write(path("rows.jsonl"), "").unwrap();
    refused(&["finetune", "--config", world, "--out", &out, "--set", &set], 2, &["has no rows"]);
    assert!(!Path::new(&out).exists());
    let plan = succeed(&["finetune", "--config", world, "--dry-run", "--json"]);
    assert!(plan["plan"]["steps"] == 200 && plan["data"][0]["instances"].as_u64().unwrap() > 1000, "{plan}");
}
