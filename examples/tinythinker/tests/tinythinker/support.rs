//! Runs the binary, and ends it in the middle of its work.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use assert_cmd::cargo::cargo_bin;
use ruminate::models::checkpoint::read_tensors;
use serde_json::{Value, json};
use tch::Device;

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
fn command(args: &[String]) -> Command {
    command_in(&root(), args)
}

fn command_in(folder: &Path, args: &[String]) -> Command {
    let mut command = Command::new(cargo_bin!("tinythinker"));
    command.current_dir(folder).args(args).env("OMP_NUM_THREADS", "1").env_remove("OPENAI_API_KEY");
    command
}

pub(crate) fn tinythinker(args: &[String]) -> Finished {
    tinythinker_in(&root(), args)
}

/// Runs the program from another folder.
pub(crate) fn tinythinker_in(folder: &Path, args: &[String]) -> Finished {
    let output = command_in(folder, args).output().unwrap();
    let text = |bytes| String::from_utf8(bytes).unwrap();
    let finished =
        Finished { code: output.status.code(), stdout: text(output.stdout), stderr: text(output.stderr) };
    assert!(!finished.stderr.contains("panicked"), "{}", finished.stderr);
    finished
}

/// Runs a command line that must succeed.
pub(crate) fn succeed(args: &[String]) -> Finished {
    let finished = tinythinker(args);
    assert_eq!(finished.code, Some(0), "{args:?}\n{}", finished.stderr);
    finished
}

/// Kills the command once it has come as far as it should.
pub(crate) fn kill(args: &[String], far: impl Fn() -> bool) {
    let mut child = command(args).stdout(Stdio::null()).stderr(Stdio::null()).spawn().unwrap();
    let started = Instant::now();
    while !far() {
        assert!(child.try_wait().unwrap().is_none(), "{args:?} ended before it could be killed");
        assert!(started.elapsed() < Duration::from_secs(120), "{args:?} did not come that far");
        std::thread::sleep(Duration::from_millis(1));
    }
    child.kill().unwrap();
    child.wait().unwrap();
}

/// The lines of a text file; none if there is no file.
pub(crate) fn lines(path: &Path) -> Vec<String> {
    std::fs::read_to_string(path).unwrap_or_default().lines().map(String::from).collect()
}

/// A folder with records of a few questions of the bundled world, and the shape of a very small student.
pub(crate) struct Place(tempfile::TempDir);

impl Place {
    pub(crate) fn new() -> Self {
        let place = Self(tempfile::tempdir().unwrap());
        let world = root().join("fixtures/world/tinythinker");
        let read =
            |path: PathBuf| -> Value { serde_json::from_str(&fs::read_to_string(path).unwrap()).unwrap() };
        let items = read(world.join("items.json"));
        fs::write(place.path("items.json"), json!(items.as_array().unwrap()[..12]).to_string()).unwrap();
        let mut student = read(world.join("t5/config.json"));
        let small = json!({
            "d_model": 32, "d_kv": 8, "d_ff": 64, "num_heads": 2, "num_layers": 1, "num_decoder_layers": 1,
        });
        student.as_object_mut().unwrap().extend(small.as_object().unwrap().clone());
        fs::write(place.path("t5.json"), student.to_string()).unwrap();
        let items = place.path("items.json").display().to_string();
        place.run("teach", "teach", &["--items", &items], &[]);
        place
    }

    pub(crate) fn path(&self, name: &str) -> PathBuf {
        self.0.path().join(name)
    }

    pub(crate) fn run(&self, command: &str, out: &str, flags: &[&str], sets: &[String]) -> Finished {
        succeed(&self.args(command, out, flags, sets))
    }

    /// The arguments of a command on the records.
    pub(crate) fn args(&self, command: &str, out: &str, flags: &[&str], sets: &[String]) -> Vec<String> {
        let config = "examples/tinythinker/configs/world.toml";
        let out = self.path(out).display().to_string();
        let mut args: Vec<String> =
            [command, "--config", config, "-q", "--json", "--out", &out].map(String::from).to_vec();
        args.extend(flags.iter().map(|flag| (*flag).to_string()));
        let fixed = [
            format!("model.config={}", self.path("t5.json").display()),
            format!("data.records={}", self.path("teach/sft").display()),
        ];
        args.extend(fixed.iter().chain(sets).flat_map(|set| ["--set".to_string(), set.clone()]));
        args
    }

    /// Every parameter of the last checkpoints agrees to a millionth of its largest number.
    pub(crate) fn same_model(&self, runs: [&str; 2]) {
        let read = |run: &str| {
            let path = self.path(run).join("checkpoints/last/model.safetensors");
            read_tensors(&path, Device::Cpu).unwrap()
        };
        let [a, b] = runs.map(read);
        for (name, a) in &a {
            let difference = (a - &b[name]).abs().max().double_value(&[]) / a.abs().max().double_value(&[]);
            assert!(difference <= 1e-6, "{runs:?}, {name}: {difference:e}");
        }
    }
}
