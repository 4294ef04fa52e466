//! Runs the binary, and ends it in the middle of its work.

use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use assert_cmd::cargo::cargo_bin;
use serde_json::Value;

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
pub(crate) fn command(args: &[String]) -> Command {
    let mut command = Command::new(cargo_bin!("rise"));
    command.current_dir(root()).args(args).env("OMP_NUM_THREADS", "1").env_remove("OPENAI_API_KEY");
    command
}

pub(crate) fn rise(args: &[String]) -> Finished {
    let output = command(args).output().unwrap();
    let text = |bytes| String::from_utf8(bytes).unwrap();
    let finished =
        Finished { code: output.status.code(), stdout: text(output.stdout), stderr: text(output.stderr) };
    assert!(!finished.stderr.contains("panicked"), "{}", finished.stderr);
    finished
}

/// Runs a command line that must succeed.
pub(crate) fn succeed(args: &[String]) -> Finished {
    let finished = rise(args);
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
