//! Rewards of programs.

use std::time::{Duration, Instant};

use ruminate_models::Interrupt;
use ruminate_rewards::RewardError;
use ruminate_rewards::configured::WeightedRewards;
use serde_json::json;

use super::{reward, rewards, row, told};

fn shell(script: &str) -> WeightedRewards {
    rewards(json!({"command": {"run": ["sh", "-c", script], "timeout_s": 1}}))
}

#[test]
fn a_program_judges_and_stays() {
    // The number of lines so far, which shows that it is one program.
    let counter = shell("n=0; while read -r line; do n=$((n+1)); echo $n; done");
    let row = row(None);
    let values = |texts: &[&str]| {
        let judged = counter.judge(&vec![&row; texts.len()], texts).unwrap();
        judged.iter().map(|of| of.value).collect::<Vec<_>>()
    };
    assert_eq!(values(&["a", "b"]), [1.0, 2.0]);
    assert_eq!(values(&["c"]), [3.0]);
    assert_eq!(values(&[]), [0.0; 0]);
    let echo = shell(
        "while read -r line; do case $line in *'\"answer\":\"x\"'*'\"completion\":\"a\\nb\"'*'\"level\":3'*'\"prompt\":\"q\"'*) echo 1;; *) echo 0;; esac; done",
    );
    assert_eq!(reward(&echo, Some("x"), "a\nb"), Ok(1.0));
}

#[test]
fn ten_thousand_samples_go_through_one_program() {
    let script = "while read -r line; do echo ${#line}; done";
    let text = "a response of some length";
    let (row, texts) = (row(None), vec![text; 10_000]);
    let samples = vec![&row; texts.len()];
    let counter = shell(script);
    let begin = Instant::now();
    let judged = counter.judge(&samples, &texts).unwrap();
    let elapsed = begin.elapsed();
    assert_eq!(judged.len(), texts.len());
    assert!(judged.iter().all(|of| of == &judged[0]));
    assert!(elapsed < Duration::from_secs(2), "{elapsed:?}");
}

#[test]
fn a_program_may_read_all_before_it_writes() {
    // More than pipes hold in either direction: whoever waited for the other would wait forever.
    let sorted = shell(
        "lines=''; n=0; while [ $n -lt 300 ]; do read -r line; n=$((n+1)); done; i=0; while [ $i -lt 300 ]; do echo 1; i=$((i+1)); done; cat",
    );
    let (row, text) = (row(None), "x".repeat(2000));
    let judged = sorted.judge(&vec![&row; 300], &vec![text.as_str(); 300]).unwrap();
    assert_eq!(judged.len(), 300);
    // And one that writes long before it is done with reading, with more messages than a pipe holds.
    let noisy = shell("while read -r line; do printf '%2000s\\n' x >&2; echo 1; done");
    assert_eq!(noisy.judge(&vec![&row; 300], &vec![text.as_str(); 300]).unwrap().len(), 300);
}

#[test]
fn samples_may_come_in_lists() {
    let script = "read -r a; case $a in '[{'*'},{'*'}]') echo '[1, 2.5]';; esac; read -r b; case $b in '[{'*'}]') echo '[3]';; esac; read -r c; echo \"$c\"; cat";
    let lists = rewards(json!({"command": {"run": ["sh", "-c", script], "timeout_s": 5, "batch": 2}}));
    let row = row(None);
    let judged = lists.judge(&[&row, &row, &row], &["a", "b", "c"]).unwrap();
    assert_eq!(judged.iter().map(|of| of.value).collect::<Vec<_>>(), [1.0, 2.5, 3.0]);
    let error = told(&lists.judge(&[&row], &["d"]).unwrap_err());
    assert!(error.contains("in place of a list of 1 numbers"), "{error}");
    for (line, parts) in [
        ("[1]", ["sample 1 (\"b\")", "1 numbers for 2 samples"]),
        ("[1, 2, 3]", ["sample 1 (\"b\")", "3 numbers for 2 samples"]),
        ("[1, null]", ["sample 0 (\"a\")", "in place of a list of 2 numbers"]),
        ("[1, 1e99]", ["sample 1 (\"b\")", "which is no reward"]),
        ("1", ["sample 0 (\"a\")", "\"1\" in place of a list of 2 numbers"]),
    ] {
        let script = format!("while read -r line; do echo '{line}'; done");
        let lists = rewards(json!({"command": {"run": ["sh", "-c", script], "batch": 2}}));
        let error = told(&lists.judge(&[&row, &row], &["a", "b"]).unwrap_err());
        assert!(parts.iter().all(|part| error.contains(part)), "{line}: {error}");
    }
}

/// The error of a script that judges two samples.
fn failure(script: &str) -> String {
    let begin = Instant::now();
    let (row, rewards) = (row(None), shell(script));
    let error = told(&rewards.judge(&[&row, &row], &["first", "second"]).unwrap_err());
    assert!(begin.elapsed() < Duration::from_secs(5), "{script}");
    // Nor is it asked again.
    let again = told(&rewards.judge(&[&row], &["third"]).unwrap_err());
    assert!(again.contains("has failed before, and is not started again"), "{again}");
    error
}

#[test]
fn a_program_that_fails_is_told_with_the_sample() {
    for (script, parts) in [
        (
            "read -r line; echo 1; echo oh no >&2; exit 3",
            &[
                "reward `r`, sample 1 (\"second\"): the program ended (exit status: 3)",
                "its last messages:\noh no",
            ][..],
        ),
        ("exit 0", &["sample 0 (\"first\")", "exit status: 0"]),
        ("kill -9 $$", &["sample 0", "signal: 9"]),
        // Ten lines of many.
        (
            "i=0; while [ $i -lt 40 ]; do echo line $i >&2; i=$((i+1)); done; exit 1",
            &["messages:\nline 30\n", "line 39"],
        ),
        (
            "read -r line; echo 1; echo hm >&2; sleep 60",
            &["sample 1", "nothing for 1 s", "flush=True", "messages:\nhm"],
        ),
        ("read -r line; echo 1; exec >&-; sleep 60", &["sample 1", "closed its output"]),
        // It never reads.
        ("sleep 60", &["sample 0", "nothing for 1 s"]),
        ("while read -r line; do echo nan; done", &["sample 0", "\"nan\" in place of a number"]),
        ("while read -r line; do echo -inf; done", &["sample 0", "\"-inf\" in place of a number"]),
        ("while read -r line; do echo 1e99; done", &["sample 0", "\"1e99\""]),
        ("while read -r line; do echo True; done", &["sample 0", "\"True\" in place of a number"]),
        ("while read -r line; do echo '1 2'; done", &["sample 0", "\"1 2\" in place of a number"]),
        ("while read -r line; do echo; done", &["sample 0", "\"\" in place of a number"]),
        ("while read -r line; do echo 1; printf '\\377\\n'; done", &["sample 1", "in place of a number"]),
        (
            "while read -r line; do printf '%9999s\\n' 0 | tr ' ' 0; done",
            &["sample 0", "cannot be read: a line has more than 4096 bytes"],
        ),
        ("read -r line; echo 1; echo note; sleep 60", &["sample 1", "\"note\" in place of a number"]),
        // The last number has no end of a line, but is there; then there is none.
        ("read -r line; printf 1", &["sample 1", "exit status: 0"]),
        // It writes without end.
        ("yes note", &["sample 0", "\"note\""]),
        // What it has started holds the pipes open, within its group and outside.
        ("sleep 60 & exit 4", &["sample 0", "exit status: 4"]),
        ("setsid sleep 3 & echo left >&2; exit 4", &["sample 0", "exit status: 4", "messages:\nleft"]),
    ] {
        let error = failure(script);
        for part in parts {
            assert!(error.contains(part), "{script}: {error}");
        }
        assert!(error.len() < 1000, "{script}: {error}");
    }
}

#[test]
fn a_program_that_cannot_be_started_is_named() {
    let missing = rewards(json!({"command": {"run": ["no-such-program", "a"]}}));
    for _ in 0..2 {
        let error = reward(&missing, None, "t").unwrap_err();
        assert!(error.contains("cannot start `no-such-program a`"), "{error}");
    }
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("reward.sh");
    std::fs::write(&file, "#!/bin/sh\n").unwrap();
    let error = reward(&rewards(json!({"command": {"run": [file]}})), None, "t").unwrap_err();
    assert!(error.contains("ermission denied"), "{error}");
}

#[test]
fn numbers_too_many_are_noticed() {
    let row = row(None);
    let late = shell("read -r line; echo 1; sleep 0.3; echo 2; sleep 60");
    late.judge(&[&row], &["a"]).unwrap();
    std::thread::sleep(Duration::from_millis(800));
    let error = told(&late.judge(&[&row], &["b"]).unwrap_err());
    assert!(
        error.contains(
            "sample 0 (\"b\"): before this sample was sent, the program has written \"2\" without being asked"
        ),
        "{error}"
    );
    let at_once = shell("while read -r line; do printf '1\\n2\\n'; done");
    let first = at_once.judge(&[&row], &["a"]);
    std::thread::sleep(Duration::from_millis(200));
    let error = first.err().or_else(|| at_once.judge(&[&row], &["b"]).err()).unwrap();
    assert!(told(&error).contains("\"2\" without being asked"), "{}", told(&error));
}

/// True once a process is gone. A child that nobody has waited for yet is a zombie.
fn goes(pid: &str) -> bool {
    let begin = Instant::now();
    while begin.elapsed() < Duration::from_secs(5) {
        let state = std::fs::read_to_string(format!("/proc/{}/stat", pid.trim())).unwrap_or_default();
        if state.is_empty() || state.contains(") Z ") {
            return true;
        }
        std::thread::sleep(Duration::from_millis(10));
    }
    false
}

#[test]
fn what_a_program_started_ends_with_it() {
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("pid");
    let script = format!("sleep 300 & echo $! > {}; wait", file.display());
    assert!(reward(&shell(&script), None, "t").unwrap_err().contains("nothing for 1 s"));
    assert!(goes(&std::fs::read_to_string(&file).unwrap()));
}

#[test]
fn a_program_ends_with_its_rewards() {
    let folder = tempfile::tempdir().unwrap();
    let file = |name: &str| folder.path().join(name);
    // One that ends with its input has the time to do so.
    let tidy = format!("while read -r line; do echo 1; done; echo tidied > {}", file("tidy").display());
    let tidy = shell(&tidy);
    assert_eq!(reward(&tidy, None, "t"), Ok(1.0));
    drop(tidy);
    assert_eq!(std::fs::read_to_string(file("tidy")).unwrap(), "tidied\n");
    // Another is killed.
    let stubborn =
        format!("echo $$ > {}; read -r line; echo 1; trap '' TERM; sleep 300", file("pid").display());
    let stubborn = shell(&stubborn);
    assert_eq!(reward(&stubborn, None, "t"), Ok(1.0));
    let begin = Instant::now();
    drop(stubborn);
    assert!(begin.elapsed() < Duration::from_secs(3));
    assert!(goes(&std::fs::read_to_string(file("pid")).unwrap()));
}

#[test]
fn a_request_to_stop_is_heard_while_a_program_thinks() {
    let slow = rewards(json!({"command": {"run": ["sh", "-c", "sleep 60"]}}));
    let interrupt = Interrupt::default();
    let raised = interrupt.clone();
    let begin = Instant::now();
    std::thread::spawn(move || {
        std::thread::sleep(Duration::from_millis(200));
        raised.raise();
    });
    let row = row(None);
    let result = interrupt.during(|| slow.judge(&[&row], &["t"]));
    assert!(matches!(result, Err(RewardError::Model(ruminate_models::Error::Interrupted))), "{result:?}");
    assert!(begin.elapsed() < Duration::from_secs(5), "{:?}", begin.elapsed());
    drop(slow);
    assert!(begin.elapsed() < Duration::from_secs(5), "{:?}", begin.elapsed());
}
