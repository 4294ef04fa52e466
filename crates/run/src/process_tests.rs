//! What only a real process shows: signals, exit codes and the end of a lock with its owner. The tests start this test
//! binary again with [`child`] as the only test.

use std::ffi::OsStr;
use std::path::Path;
use std::process::{Child, Command, ExitStatus, Stdio};
use std::time::{Duration, Instant};

use ruminate_algorithms::{Observer, StepReport};

use crate::{Outcome, RunDir, RunDirError, RunObserver, StopFlag, Verbosity, exit};

/// Names the child's run folder.
const DIR: &str = "RUMINATE_TEST_RUN_DIR";
/// Is set where the child's steps are not to end.
const STUCK: &str = "RUMINATE_TEST_STUCK";

#[test]
#[ignore = "is the child process of the other tests"]
fn child() {
    let Some(dir) = std::env::var_os(DIR) else { return };
    let code = exit::code(run(Path::new(&dir)), &mut std::io::stderr());
    std::process::exit(code.into());
}

/// A run of 10 ms steps that would take minutes.
fn run(path: &Path) -> anyhow::Result<Outcome> {
    let config = toml::Table::new();
    let stop = StopFlag::on_ctrl_c()?;
    let dir = match RunDir::stored_config(path) {
        Some(_) => RunDir::resume(path, &config)?,
        None => RunDir::create(path, &config)?,
    };
    let mut observer = RunObserver::new(&dir, tch::Device::Cpu, Verbosity::Normal, stop)?;
    let total_steps = 100_000;
    observer.started(0, total_steps).map_err(anyhow::Error::from_boxed)?;
    for step in 0..total_steps {
        std::thread::sleep(Duration::from_millis(10));
        let metrics = vec![("train/loss".to_owned(), 1.0)];
        let report = StepReport { step, total_steps, metrics: &metrics, tokens: 1, secs: 0.01 };
        observer.step(&report).map_err(anyhow::Error::from_boxed)?;
        if std::env::var_os(STUCK).is_none() && observer.stop_requested() {
            return Ok(Outcome::Interrupted);
        }
    }
    Ok(Outcome::Done)
}

const CHILD: &str = "process_tests::child";

fn only(test: &str) -> [&str; 4] {
    ["--exact", test, "--ignored", "--nocapture"]
}

/// Starts a test of this binary in a process of its own, with its stderr to be read.
pub(crate) fn spawn(test: &str, environment: &[(&str, &OsStr)]) -> Child {
    let mut command = Command::new(std::env::current_exe().unwrap());
    command.args(only(test)).envs(environment.iter().copied());
    command.stdout(Stdio::null()).stderr(Stdio::piped()).spawn().unwrap()
}

/// Starts the child and waits until it has taken a step.
fn start(dir: &Path, stuck: bool) -> Child {
    let environment = [(DIR, dir.as_os_str()), (STUCK, OsStr::new("1"))];
    let mut child = spawn(CHILD, if stuck { &environment } else { &environment[..1] });
    wait_until("the child takes a step", || {
        assert!(child.try_wait().unwrap().is_none(), "the child ended early");
        std::fs::metadata(dir.join("metrics.jsonl")).is_ok_and(|file| file.len() > 0)
    });
    child
}

pub(crate) fn wait_until(what: &str, mut condition: impl FnMut() -> bool) {
    let start = Instant::now();
    while !condition() {
        assert!(start.elapsed() < Duration::from_secs(60), "timed out: {what}");
        std::thread::sleep(Duration::from_millis(5));
    }
}

pub(crate) fn signal(child: &Child, name: &str) {
    let status = Command::new("kill").args([&format!("-{name}"), &child.id().to_string()]).status().unwrap();
    assert!(status.success());
}

pub(crate) fn finish(child: Child) -> (ExitStatus, String) {
    let output = child.wait_with_output().unwrap();
    (output.status, String::from_utf8(output.stderr).unwrap())
}

#[test]
fn the_first_ctrl_c_stops_after_the_step() {
    for name in ["INT", "TERM"] {
        let folder = tempfile::tempdir().unwrap();
        let child = start(folder.path(), false);
        signal(&child, name);
        let (status, stderr) = finish(child);
        assert_eq!(status.code(), Some(130), "{stderr}");
        let metrics = std::fs::read_to_string(folder.path().join("metrics.jsonl")).unwrap();
        assert!(metrics.ends_with('\n'), "{metrics}");
    }
}

#[test]
fn the_second_ctrl_c_quits_at_once_and_a_second_sigterm_does_not() {
    let folder = tempfile::tempdir().unwrap();
    let mut child = start(folder.path(), true);
    signal(&child, "TERM");
    signal(&child, "TERM");
    std::thread::sleep(Duration::from_millis(200));
    assert!(child.try_wait().unwrap().is_none(), "SIGTERM must leave time for a checkpoint");
    signal(&child, "INT");
    let (status, stderr) = finish(child);
    assert_eq!(status.code(), Some(130));
    assert_eq!(stderr.matches("press Ctrl-C again to quit at once").count(), 1, "{stderr}");
}

#[test]
fn a_killed_run_leaves_no_lock_behind() {
    let folder = tempfile::tempdir().unwrap();
    let mut child = start(folder.path(), false);
    let config = toml::Table::new();
    match RunDir::resume(folder.path(), &config) {
        Err(RunDirError::Locked { holder, .. }) => assert_eq!(holder, Some(child.id())),
        other => panic!("the folder of a live run was opened: {other:?}"),
    }
    child.kill().unwrap();
    child.wait().unwrap();
    RunDir::resume(folder.path(), &config).unwrap();
}

/// A limit on the size of files stands in for a full disk: both end in the middle of a line.
#[test]
fn metrics_that_find_no_room_end_the_run_after_a_whole_line() {
    let folder = tempfile::tempdir().unwrap();
    let mut command = Command::new("sh");
    // Room for the first report and some hundred steps. Without the trap the signal would end the process before it sees the error.
    command.args(["-c", "trap '' XFSZ; ulimit -f 40; exec \"$@\"", "sh"]);
    command.arg(std::env::current_exe().unwrap()).args(only(CHILD)).env(DIR, folder.path());
    let output = command.output().unwrap();
    let stderr = String::from_utf8(output.stderr).unwrap();
    assert_eq!(output.status.code(), Some(1), "{stderr}");
    let path = folder.path().join("metrics.jsonl");
    let error =
        format!("cannot write to `{}`; check that it is on a writable disk with space left", path.display());
    assert!(stderr.contains(&error) && stderr.contains("caused by: File too large"), "{stderr}");
    let metrics = std::fs::read_to_string(path).unwrap();
    let steps: Vec<u64> = metrics
        .lines()
        .map(|line| serde_json::from_str::<serde_json::Value>(line).unwrap()["step"].as_u64().unwrap())
        .collect();
    assert!(metrics.ends_with('\n') && steps.iter().copied().eq(0..steps.len() as u64), "{metrics}");
    assert!(steps.len() > 3);
    RunDir::resume(folder.path(), &toml::Table::new()).unwrap();
}
