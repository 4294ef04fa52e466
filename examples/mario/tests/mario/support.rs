//! Runs the binary, and makes what it needs.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use assert_cmd::cargo::cargo_bin;
use serde_json::{Value, json};
use tempfile::TempDir;

/// The project's folder, from which users start the binary.
pub(crate) fn root() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).ancestors().nth(2).unwrap().to_path_buf()
}

/// What a finished process left.
pub(crate) struct Finished {
    pub(crate) code: Option<i32>,
    pub(crate) stdout: String,
    pub(crate) stderr: String,
}

impl Finished {
    /// The result of `--json`, which must be all of stdout.
    pub(crate) fn json(&self) -> Value {
        assert_eq!(self.stdout.lines().count(), 1, "{}", self.stdout);
        serde_json::from_str(&self.stdout).unwrap()
    }
}

/// The binary in the project's folder, on one thread each, so that tests beside each other do not slow each other down.
pub(crate) fn mario(args: &[&str]) -> Finished {
    let mut command = Command::new(cargo_bin!("mario"));
    let output = command.current_dir(root()).args(args).env("OMP_NUM_THREADS", "1").output().unwrap();
    let text = |bytes| String::from_utf8(bytes).unwrap();
    let finished =
        Finished { code: output.status.code(), stdout: text(output.stdout), stderr: text(output.stderr) };
    assert!(!finished.stderr.contains("panicked"), "{}", finished.stderr);
    finished
}

/// Runs a command line that must succeed.
pub(crate) fn succeed(args: &[&str]) -> Finished {
    let finished = mario(args);
    assert_eq!(finished.code, Some(0), "{args:?}\n{}", finished.stderr);
    finished
}

/// Names that the bundled world's tokenizer knows.
const NAMES: [&str; 36] = [
    "Ada", "Adam", "Agnes", "Alan", "Alba", "Albert", "Alice", "Alma", "Amos", "Amy", "Andrew", "Anna",
    "Anton", "Arthur", "Astrid", "Barbara", "Basil", "Beatrice", "Ben", "Bertha", "Bianca", "Boris", "Brian",
    "Bruno", "Carl", "Carmen", "Caspar", "Cecil", "Celia", "Charles", "Clara", "Claude", "Cora", "Cyril",
    "Daisy", "Daniel",
];

/// A folder for one test.
pub(crate) struct Workplace {
    folder: TempDir,
}

impl Workplace {
    /// With a data set of our own in the words of the bundled world and a configuration that trains a very small model on it.
    pub(crate) fn new() -> Self {
        let place = Self { folder: tempfile::tempdir().unwrap() };
        let model: Value =
            serde_json::from_str(&fs::read_to_string(root().join("fixtures/world/t5/config.json")).unwrap())
                .unwrap();
        let mut model = model;
        let small = json!({
            "d_model": 32, "d_kv": 8, "d_ff": 64, "num_heads": 2, "num_layers": 1, "num_decoder_layers": 1,
        });
        model.as_object_mut().unwrap().extend(small.as_object().unwrap().clone());
        place.write("t5.json", &model.to_string());
        for (split, names) in [("train", &NAMES[..24]), ("dev", &NAMES[24..30]), ("test", &NAMES[30..])] {
            place.write(&format!("data/quarel/raw/{split}.jsonl"), &rows(names));
        }
        let model = format!("config = \"{}\"\ntokenizer = \"fixtures/world/t5\"\n", place.path("t5.json"));
        let trainer = "lr = 3e-3\nwarmup_steps = 0\nlog_every = 1\neval_every = 4\nsave_every = 0\n";
        let mut config = format!(
            "[data]\ndataset = \"quarel\"\npath = \"{}\"\n",
            place.path("data/{dataset}/raw/{split}.jsonl")
        );
        for stage in ["sft", "i2o", "ir2o"] {
            config += &format!(
                "[{stage}.model]\n{model}[{stage}.training]\nepochs = 2\n[{stage}.trainer]\n{trainer}"
            );
        }
        config += "[evaluation]\nresamples = 50\n";
        place.write("config.toml", &config);
        place
    }

    pub(crate) fn path(&self, name: &str) -> String {
        self.folder.path().join(name).display().to_string()
    }

    pub(crate) fn write(&self, name: &str, content: &str) -> String {
        let path = self.folder.path().join(name);
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        fs::write(&path, content).unwrap();
        self.path(name)
    }
}

/// Two rows for each question, keyed by row number. The weather of a city is told by the rationale alone.
fn rows(names: &[&str]) -> String {
    let rows = (0..2 * names.len()).map(|row| {
        let (weather, answer) = if row / 2 % 2 == 0 { ("sunny", "(A)") } else { ("rainy", "(B)") };
        let content = json!({
            "question": format!("What is the weather where {} lives? (A) sunny (B) rainy", names[row / 2]),
            "rationale": format!("the city has {weather} weather"),
            "answer": answer,
        });
        (row.to_string(), content)
    });
    Value::Object(rows.collect()).to_string()
}

/// The lines of a text file.
pub(crate) fn lines(path: &str) -> Vec<String> {
    let text = fs::read_to_string(path).unwrap_or_else(|error| panic!("{path}: {error}"));
    text.lines().map(String::from).collect()
}
