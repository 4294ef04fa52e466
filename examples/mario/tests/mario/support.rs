//! Runs the binary, and makes what it needs.

use std::fs;
use std::io::{BufRead, BufReader, Write};
use std::net::TcpListener;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::{Arc, Mutex};
use std::thread;
use std::time::Duration;

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
    mario_in(&root(), args)
}

/// Runs the program as [`mario`] does, in another folder.
pub(crate) fn mario_in(folder: &Path, args: &[&str]) -> Finished {
    let mut command = Command::new(cargo_bin!("mario"));
    let output = command.current_dir(folder).args(args).env("OMP_NUM_THREADS", "1").output().unwrap();
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

/// A teacher that answers every prompt with the same text, and remembers the prompts.
pub(crate) struct Teacher {
    pub(crate) address: String,
    prompts: Arc<Mutex<Vec<String>>>,
}

impl Teacher {
    /// Thinks for so many milliseconds first; `answer` gets the prompt.
    pub(crate) fn start(millis: u64, answer: impl Fn(&str) -> String + Send + Sync + 'static) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let address = format!("http://{}/v1", listener.local_addr().unwrap());
        let prompts = Arc::new(Mutex::new(vec![]));
        let (seen, answer) = (Arc::clone(&prompts), Arc::new(answer));
        thread::spawn(move || {
            for stream in listener.incoming().map_while(Result::ok) {
                let (seen, answer) = (Arc::clone(&seen), Arc::clone(&answer));
                thread::spawn(move || {
                    let mut reader = BufReader::new(stream.try_clone().unwrap());
                    while let Some(prompt) = prompt(&mut reader) {
                        let text = answer(&prompt);
                        seen.lock().unwrap().push(prompt);
                        thread::sleep(Duration::from_millis(millis));
                        let body = json!({
                            "choices": [{ "index": 0, "message": { "content": text }, "finish_reason": "stop" }],
                            "usage": { "prompt_tokens": 10, "completion_tokens": 5 },
                        });
                        let body = body.to_string();
                        let head = format!("HTTP/1.1 200 OK\r\ncontent-length: {}\r\n\r\n", body.len());
                        if (&stream).write_all((head + &body).as_bytes()).is_err() {
                            return;
                        }
                    }
                });
            }
        });
        Self { address, prompts }
    }

    /// The flags that ask it.
    pub(crate) fn flags(&self) -> Vec<String> {
        let sets = [format!("teacher.base_url={}", self.address), "teacher.key=\"none\"".into()];
        sets.into_iter().flat_map(|set| ["--set".into(), set]).collect()
    }

    pub(crate) fn prompts(&self) -> Vec<String> {
        self.prompts.lock().unwrap().clone()
    }
}

/// The message of the next request of a connection.
fn prompt(reader: &mut impl BufRead) -> Option<String> {
    let mut length = 0;
    loop {
        let mut line = String::new();
        if reader.read_line(&mut line).ok()? == 0 {
            return None;
        }
        match line.trim().to_lowercase().split_once(':') {
            Some(("content-length", value)) => length = value.trim().parse().ok()?,
            None if line.trim().is_empty() => break,
            _ => {}
        }
    }
    let mut body = vec![0; length];
    reader.read_exact(&mut body).ok()?;
    let body: Value = serde_json::from_slice(&body).ok()?;
    Some(body["messages"][0]["content"].as_str()?.to_owned())
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
