use std::collections::BTreeSet;
use std::path::Path;

use ruminate_datasets::teacher::{
    Answer, Message, Request, Teacher, TeacherConfig, TeacherError, read_answers,
};

use super::*;
use crate::captured::Captured;
use crate::exit;
use crate::process_tests::{finish, signal, spawn, wait_until};

#[path = "../../../datasets/tests/teacher/stub.rs"]
#[allow(dead_code, reason = "these tests need a part of it")]
mod stub;

use stub::{Act, Seen, Stub};

const ADDRESS: &str = "RUMINATE_TEST_ADDRESS";
const FILE: &str = "RUMINATE_TEST_FILE";
const PRICES: Prices = Prices { prompt: 100.0, completion: 1000.0 };

fn requests(count: usize) -> Vec<Request> {
    (0..count)
        .map(|i| Request::new(format!("id-{i}"), vec![Message::new("user", format!("prompt {i}"))]))
        .collect()
}

fn ask(
    config: TeacherConfig,
    count: usize,
    path: &Path,
    console: &mut TeacherConsole,
) -> Result<Outcome, TeacherError> {
    Teacher::new(config)?.ask(&requests(count), path, |_: &Request, _: &Answer| Ok(()), console)
}

/// Tells of every event.
fn console(out: &Captured, verbosity: Verbosity) -> TeacherConsole {
    let console = Console::lines(Box::new(out.clone()), Duration::ZERO, verbosity);
    TeacherConsole { console, stop: StopFlag::default(), prices: None, part: false }
}

fn prompts(stub: &Stub) -> BTreeSet<String> {
    stub.seen().iter().map(|seen| seen.prompt().to_owned()).collect()
}

/// One prompt is refused, one is answered the second time.
fn moody(seen: &Seen) -> Act {
    match (seen.prompt(), seen.earlier) {
        ("prompt 1", _) => Act::Reply(400, "", r#"{"error": {"message": "too long"}}"#.into()),
        ("prompt 2", 0) => Act::Reply(500, "", "oops".into()),
        _ => Act::say(&["yes"]),
    }
}

#[test]
fn progress_shows_time_left_tokens_failures_and_cost() {
    let stub = Stub::start(moody);
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("answers.jsonl");
    let out = Captured::default();
    let config = TeacherConfig { concurrency: 1, ..stub.config() };
    let mut shown = console(&out, Verbosity::AllMetrics).with_prices(PRICES);
    ask(config.clone(), 4, &path, &mut shown).unwrap();
    let text = out.text();
    let lines: Vec<&str> = text.lines().collect();
    assert!(lines.contains(&"teacher: `id-1` failed: status 400: too long"), "{text}");
    assert!(text.contains("teacher: `id-2` is asked again in 0.0 s: status 500: oops"), "{text}");
    // Prompts take 10 tokens and completions 1.
    let after =
        |done: &str, status: &str| lines.iter().any(|line| line.starts_with(done) && line.ends_with(status));
    assert!(after("teacher 1/4  00:00:0", " left  10 prompt + 1 completion tokens, cost 0.002000"), "{text}");
    assert!(after("teacher 2/4  00:00:0", "cost 0.002000  1 failed"), "{text}");
    let end = "3 answered, 1 failed; 30 prompt + 3 completion tokens, cost 0.006000";
    assert!(lines[lines.len() - 1].starts_with("teacher: done in 00:00:0"), "{text}");
    assert!(lines[lines.len() - 1].ends_with(end), "{text}");

    // The next run asks for what has failed; without prices there is no cost.
    let out = Captured::default();
    ask(config, 4, &path, &mut console(&out, Verbosity::Normal)).unwrap();
    let text = out.text();
    let end = ": 0 answered, 3 stored before, 1 failed; 0 prompt + 0 completion tokens\n";
    assert!(text.ends_with(end) && !text.contains("again"), "{text}");
    assert!(
        !text.contains("left  0 prompt + 0 completion tokens\n"),
        "nothing says how long it takes: {text}"
    );
}

#[test]
fn a_quiet_console_asks_as_well() {
    let stub = Stub::start(moody);
    let folder = tempfile::tempdir().unwrap();
    let mut quiet = TeacherConsole::new(Verbosity::Quiet, StopFlag::default());
    assert_eq!(ask(stub.config(), 4, &folder.path().join("a"), &mut quiet).unwrap().progress.failed, 1);
}

#[test]
fn a_raised_flag_stops_and_the_next_run_asks_for_the_rest() {
    let stub = Stub::start(|_| Act::slow(5, Act::say(&["yes"])));
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("answers.jsonl");
    let out = Captured::default();
    let mut shown = console(&out, Verbosity::Normal);
    shown.stop.request();
    let outcome = ask(TeacherConfig { concurrency: 2, ..stub.config() }, 50, &path, &mut shown).unwrap();
    let asked = prompts(&stub);
    assert!(outcome.stopped && asked.len() <= 4, "{asked:?}");
    assert_eq!(read_answers(&path).unwrap().len(), asked.len());
    let (answered, open) = (asked.len(), 50 - asked.len());
    assert!(out.text().contains(&format!(": {answered} answered, {open} open; ")), "{}", out.text());
    stub.forget();
    let outcome = ask(stub.config(), 50, &path, &mut console(&out, Verbosity::Normal)).unwrap();
    assert!(!outcome.stopped && outcome.progress.open() == 0);
    assert!(prompts(&stub).is_disjoint(&asked));
}

/// Asks for a thousand answers.
#[test]
#[ignore = "is the child process of the next test"]
fn child() {
    let (Ok(address), Some(path)) = (std::env::var(ADDRESS), std::env::var_os(FILE)) else { return };
    let run = || -> anyhow::Result<crate::Outcome> {
        let mut console = TeacherConsole::new(Verbosity::Normal, StopFlag::on_ctrl_c()?);
        let config = TeacherConfig { concurrency: 4, ..stub::config(&address) };
        let outcome = ask(config, 1000, path.as_ref(), &mut console)?;
        Ok(if outcome.stopped { crate::Outcome::Interrupted } else { crate::Outcome::Done })
    };
    std::process::exit(exit::code(run(), &mut std::io::stderr()).into());
}

#[test]
fn ctrl_c_stores_what_is_under_way_and_nothing_is_asked_twice() {
    let stub = Stub::start(|_| Act::slow(100, Act::say(&["yes"])));
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("answers.jsonl");
    let child = spawn("teacher::tests::child", &[(ADDRESS, stub.address().as_ref()), (FILE, path.as_ref())]);
    wait_until("some are asked", || stub.seen().len() >= 10);
    signal(&child, "INT");
    let (status, stderr) = finish(child);
    assert_eq!(status.code(), Some(130), "{stderr}");
    assert_eq!(stderr.matches("press Ctrl-C again to quit at once").count(), 1, "{stderr}");
    assert!(stderr.contains("teacher: stopped in 00:00:"), "{stderr}");
    let asked = prompts(&stub);
    assert!((10..100).contains(&asked.len()), "{}", asked.len());
    let stored: BTreeSet<String> =
        read_answers(&path).unwrap().into_iter().map(|line| line.messages[0].content.clone()).collect();
    assert_eq!(stored, asked, "what was under way is stored");
    let plan = Teacher::plan(&stub.config(), &requests(1000), &path).unwrap();
    assert_eq!((plan.stored, plan.to_ask), (asked.len(), 1000 - asked.len()));
}
