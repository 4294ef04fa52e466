//! Runs the binary, and makes what it needs.

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Output};

use assert_cmd::cargo::cargo_bin;
use serde_json::{Value, json};
use tempfile::TempDir;

/// The project's folder, from which users start the binary.
pub(crate) fn root() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).ancestors().nth(2).unwrap().to_path_buf()
}

/// The binary in the project's folder, on one thread, so that tests beside each other do not slow each other down.
pub(crate) fn command(args: &[&str]) -> Command {
    let mut command = Command::new(cargo_bin!("crystal"));
    command.current_dir(root()).args(args).args(["--threads", "1"]);
    command
}

/// What a finished process left.
pub(crate) struct Finished {
    pub(crate) code: Option<i32>,
    pub(crate) stdout: String,
    pub(crate) stderr: String,
}

impl From<Output> for Finished {
    fn from(output: Output) -> Self {
        let text = |bytes| String::from_utf8(bytes).unwrap();
        let finished =
            Self { code: output.status.code(), stdout: text(output.stdout), stderr: text(output.stderr) };
        assert!(!finished.stderr.contains("panicked"), "{}", finished.stderr);
        finished
    }
}

impl Finished {
    /// The result of `--json`, which must be all of stdout.
    pub(crate) fn json(&self) -> Value {
        assert_eq!(self.stdout.lines().count(), 1, "{}", self.stdout);
        let value: Value = serde_json::from_str(&self.stdout).unwrap();
        assert!(value.is_object(), "{value}");
        value
    }
}

pub(crate) fn crystal(args: &[&str]) -> Finished {
    command(args).output().unwrap().into()
}

/// Runs a command line that must succeed.
pub(crate) fn succeed(args: &[&str]) -> Finished {
    let finished = crystal(args);
    assert_eq!(finished.code, Some(0), "{args:?}\n{}", finished.stderr);
    finished
}

/// A folder for one test with a configuration that trains a very small model on the bundled world.
pub(crate) struct Workplace {
    folder: TempDir,
}

impl Workplace {
    pub(crate) fn new() -> Self {
        let folder = tempfile::tempdir().unwrap();
        write_t5(&root().join("fixtures/world/t5/config.json"), &folder.path().join("t5.json"), json!({}));
        let config = format!(
            r#"[model]
config = "{}/t5.json"
tokenizer = "fixtures/world/t5"

[lengths]
max_question_len = 32
max_knowledge_len = 12

[data]
data_path = "fixtures/world/crystal/{{datapath}}/{{split}}.tsv"
knowledge_path = "fixtures/world/crystal/knowledge/knowledge_gkp_gpt3{{engine}}.{{split}}.{{task}}.json"
engine = "clean"
train_tasks = ["lives", "twohop"]
eval_tasks = ["twohop", "lives"]

[data.tasks.lives]
dir = "uqa/lives"

[data.tasks.twohop]
dir = "uqa/twohop"

[imitation]
qk_and_qka_steps = 4
qk_steps = 2
batch_size = 32

[trainer]
steps = 30
lr = 1e-3
log_every = 1
eval_every = 10
save_every = 3

[reinforcement]
normalization_batches = 4

[reinforcement.ppo]
batch_size = 8
rl_steps = 8
cycle_steps = 16
epochs = 2

[reinforcement.ppo.rollout]
batch_size = 8

[reinforcement.trainer]
steps = 24
lr = 1e-3
save_every = 3

[evaluation]
num_samples = 2
"#,
            folder.path().display()
        );
        fs::write(folder.path().join("config.toml"), config).unwrap();
        Self { folder }
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

    /// Trains one step into the folder `runs/tiny`; returns its checkpoint.
    pub(crate) fn trained(&self) -> String {
        let (config, out) = (self.path("config.toml"), self.path("runs/tiny"));
        succeed(&["imitate", "--config", &config, "--out", &out, "--set", "trainer.steps=1", "-q"]);
        self.path("runs/tiny/checkpoints/best")
    }

    /// Everything in the folder, to see what a command leaves behind. A lock names who held it last and may change.
    pub(crate) fn snapshot(&self) -> BTreeMap<PathBuf, Vec<u8>> {
        let mut files = BTreeMap::new();
        let mut folders = vec![self.folder.path().to_path_buf()];
        while let Some(folder) = folders.pop() {
            for entry in fs::read_dir(&folder).unwrap() {
                let path = entry.unwrap().path();
                if path.is_dir() && !path.is_symlink() {
                    folders.push(path.clone());
                    files.insert(path, vec![]);
                } else if path.is_file() && !path.ends_with(".lock") {
                    files.insert(path.clone(), fs::read(&path).unwrap());
                }
            }
        }
        files
    }
}

/// Writes a T5 configuration as small as it gets, with the vocabulary of another one.
pub(crate) fn write_t5(model: &Path, to: &Path, changes: Value) {
    let mut config: Value = serde_json::from_str(&fs::read_to_string(model).unwrap()).unwrap();
    let small = json!({
        "d_model": 32, "d_kv": 8, "d_ff": 64, "num_heads": 2, "num_layers": 1, "num_decoder_layers": 1,
    });
    for change in [small, changes] {
        config.as_object_mut().unwrap().extend(change.as_object().unwrap().clone());
    }
    fs::write(to, config.to_string()).unwrap();
}

/// The lines of a `.jsonl` file.
pub(crate) fn lines(path: &str) -> Vec<Value> {
    let text = fs::read_to_string(path).unwrap_or_else(|error| panic!("{path}: {error}"));
    text.lines().map(|line| serde_json::from_str(line).unwrap()).collect()
}

/// The names in a folder, sorted.
pub(crate) fn names(folder: &str) -> Vec<String> {
    let mut names: Vec<String> = fs::read_dir(folder)
        .unwrap_or_else(|error| panic!("{folder}: {error}"))
        .map(|entry| entry.unwrap().file_name().into_string().unwrap())
        .collect();
    names.sort();
    names
}
