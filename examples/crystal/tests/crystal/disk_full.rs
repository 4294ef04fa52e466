//! A disk without room for a checkpoint costs the steps since the last one, and nothing else.

use std::fs;
use std::path::Path;
use std::process::{Command, Stdio};

use crate::interruption::{assert_same, complete, finish, signal, start, wait_for_steps};
use crate::support::{Finished, Workplace, command, names};

/// A run that was stopped after some of its steps, at none of which it saves by itself.
fn stopped(place: &Workplace, run: &str) {
    let mut child = start(place, run);
    wait_for_steps(&mut child, &place.path(&format!("{run}/metrics.jsonl")), 11);
    signal(&child, "INT");
    assert_eq!(finish(child).code, Some(130));
}

/// The run failed for want of room, said so, and left the checkpoints as they were.
fn assert_refused(finished: &Finished, needles: &[&str]) {
    assert_eq!(finished.code, Some(1), "{}", finished.stderr);
    let needles =
        [needles, &["error: there is no room for the checkpoint", "/checkpoints/step-", "it takes"]];
    for needle in needles.concat() {
        assert!(finished.stderr.contains(needle), "`{needle}` is missing from\n{}", finished.stderr);
    }
}

/// A limit on the size of files, which needs no privileges, stands in for the disk.
#[test]
fn a_limit_that_a_checkpoint_exceeds() {
    let place = Workplace::new();
    complete(&place, "undisturbed");
    stopped(&place, "limited");
    let checkpoints = place.path("limited/checkpoints");
    let before = names(&checkpoints);
    let trainer = fs::metadata(format!("{checkpoints}/last/trainer.safetensors")).unwrap().len();
    // Blocks have 512 bytes in some shells, 1024 in others. Without the trap a signal would end the process.
    let limit = format!("trap '' XFSZ; ulimit -f {}; exec \"$@\"", trainer / 1024 / 2);
    let run = command(&["imitate", "--out", &place.path("limited"), "--resume"]);
    let mut limited = Command::new("sh");
    limited.current_dir(run.get_current_dir().unwrap()).args(["-c", &limit, "sh"]);
    let finished = Finished::from(limited.arg(run.get_program()).args(run.get_args()).output().unwrap());
    assert_refused(&finished, &["a limit on the size of files", "`ulimit -f`", "caused by: File too large"]);
    assert_eq!(names(&checkpoints), before);
    complete(&place, "limited");
    assert_same(&place, "limited", "undisturbed");
}

/// A disk that is really full, where the system lets a user mount one.
#[test]
#[expect(clippy::print_stderr, reason = "a test that is skipped says so")]
fn a_disk_that_is_full() {
    let place = Workplace::new();
    let disk = place.path("disk");
    fs::create_dir(&disk).unwrap();
    let mount = "mount -t tmpfs -o size=$SIZE none \"$DISK\"";
    let namespace = |script: &str, size: u64| {
        let mut unshare = Command::new("unshare");
        unshare.args(["-rm", "sh", "-ec", &format!("{mount}; {script}")]);
        unshare.env("SIZE", size.to_string()).env("DISK", &disk).stdin(Stdio::null());
        unshare
    };
    if !namespace("true", 1 << 20).output().is_ok_and(|output| output.status.success()) {
        eprintln!("skipped: this system does not let its users mount a file system (unshare -rm)");
        return;
    }
    complete(&place, "undisturbed");
    stopped(&place, "stopped");
    let (blocks, checkpoint) =
        (blocks(&place.path("stopped")), blocks(&place.path("stopped/checkpoints/last/")));
    let run = command(&["imitate", "--out", &format!("{disk}/run"), "--resume"]);
    // What happened on the disk is copied from it before it is gone.
    let script = "cp -a \"$STOPPED\" \"$DISK/run\"; \"$@\" && code=0 || code=$?; cp -a \"$DISK/run\" \"$FULL\"; exit $code";
    let mut full = namespace(script, blocks + checkpoint / 4);
    full.args(["sh"]).arg(run.get_program()).args(run.get_args()).current_dir(run.get_current_dir().unwrap());
    full.env("STOPPED", place.path("stopped")).env("FULL", place.path("full"));
    let finished = Finished::from(full.output().unwrap());
    assert_refused(&finished, &["Free at least", "caused by: No space left on device", "cannot write"]);
    assert_eq!(names(&place.path("full/checkpoints")), names(&place.path("stopped/checkpoints")));
    complete(&place, "full");
    assert_same(&place, "full", "undisturbed");
}

/// Bytes that a folder takes on a disk with pages of 4 KiB.
fn blocks(folder: &str) -> u64 {
    let mut sum = 4096;
    for entry in fs::read_dir(folder).unwrap() {
        let path = entry.unwrap().path();
        let link = path.is_symlink();
        sum += match fs::metadata(&path) {
            Ok(meta) if meta.is_dir() && !link => blocks(&path.display().to_string()),
            Ok(meta) if !link => meta.len().next_multiple_of(4096) + 4096,
            _ => 4096,
        };
    }
    assert!(Path::new(folder).is_dir());
    sum
}
