//! What needs a process of its own: being killed, a full disk, and a key in the environment.

use std::io::Write;
use std::path::Path;
use std::process::{Command, Stdio};
use std::time::Duration;

use ruminate_datasets::NullObserver;
use ruminate_datasets::teacher::{KeySource, Teacher, TeacherConfig, TeacherError, read_answers};

use crate::stub::{self, Act, Stub};
use crate::{any, ask, assert_complete, echo, requests};

const ADDRESS: &str = "RUMINATE_TEST_ADDRESS";
const FILE: &str = "RUMINATE_TEST_FILE";
const KEY: &str = "RUMINATE_TEST_KEY";
const SECRET: &str = "sk-vQx7LmZ2pRt9KwY4bNc8HdJs5GfUt";

/// This test in a process of its own, asking for a thousand answers.
fn child(stub: &Stub, path: &Path) -> Command {
    let mut command = Command::new(std::env::current_exe().unwrap());
    command.args(["--exact", "child::asks", "--nocapture", "--test-threads=1"]);
    command.env(ADDRESS, stub.address()).env(FILE, path).env_remove(KEY);
    command
}

/// Shows whatever anybody logs.
struct Log;

impl log::Log for Log {
    fn enabled(&self, _: &log::Metadata<'_>) -> bool {
        true
    }

    fn log(&self, record: &log::Record<'_>) {
        let _ = writeln!(std::io::stderr(), "log: {}", record.args());
    }

    fn flush(&self) {}
}

/// Does nothing but in a child.
#[test]
#[expect(clippy::print_stdout, reason = "the parent reads it")]
fn asks() {
    let (Ok(address), Ok(path)) = (std::env::var(ADDRESS), std::env::var(FILE)) else { return };
    let has_key = std::env::var(KEY).is_ok();
    if has_key {
        log::set_logger(&Log).unwrap();
        // At level trace the HTTP library logs what servers send, too; one that repeats the key is out of anybody's hands.
        let repeats = path.contains("repeats");
        log::set_max_level(if repeats { log::LevelFilter::Debug } else { log::LevelFilter::Trace });
    }
    let key = if path.contains("keyed") { KeySource::Env(KEY.into()) } else { KeySource::None };
    let key_header = if path.contains("azure") { "api-key" } else { "authorization" };
    let config = TeacherConfig { key, key_header: key_header.into(), attempts: 2, ..stub::config(&address) };
    println!("{config:?}");
    println!("{}", toml::to_string(&config).unwrap());
    let teacher = match Teacher::new(config) {
        Ok(teacher) => teacher,
        Err(error) => return println!("error: {error}\n{error:?}"),
    };
    println!("{teacher:?}");
    match teacher.ask(&requests(1000), path.as_ref(), any, &mut NullObserver) {
        Ok(outcome) => println!("done: {outcome:?}"),
        Err(error) => println!("error: {error}\n{error:?}"),
    }
}

/// Everything that a command shows.
fn output(command: &mut Command) -> String {
    let output = command.output().unwrap();
    format!("{}{}", String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr))
}

#[test]
fn killed_in_the_middle_and_resumed_it_asks_only_for_what_is_missing() {
    let stub = Stub::start(|seen| Act::slow(20, echo(seen)));
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("answers.jsonl");
    let mut process = child(&stub, &path).stdout(Stdio::null()).spawn().unwrap();
    while stub.seen().len() < 200 {
        std::thread::sleep(Duration::from_millis(1));
    }
    process.kill().unwrap();
    process.wait().unwrap();
    // The kernel writes a line whole or not at all; a failing machine may not.
    let mut bytes = std::fs::read(&path).unwrap();
    bytes.truncate(bytes.len() - 30);
    std::fs::write(&path, &bytes).unwrap();
    let stored: Vec<String> =
        read_answers(&path).unwrap().into_iter().map(|e| e.messages[0].content.clone()).collect();
    assert!(stored.len() > 100 && stored.len() < 1000, "{}", stored.len());

    stub.forget();
    let requests = requests(1000);
    let outcome = ask(stub.config(), &requests, &path).unwrap();
    assert_complete(&requests, &outcome, &path);
    assert_eq!(outcome.progress.stored, stored.len());
    let mut all: Vec<String> = stub.seen().iter().map(|seen| seen.prompt().to_string()).collect();
    assert_eq!(all.len(), 1000 - stored.len());
    all.extend(stored);
    all.sort();
    all.dedup();
    assert_eq!(all.len(), 1000);
}

#[cfg(unix)]
#[test]
fn a_full_disk_ends_it_and_nothing_is_lost() {
    let stub = Stub::start(echo);
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("answers.jsonl");
    // A file that must not grow is as good as a full disk.
    let child = child(&stub, &path);
    let mut limited = Command::new("sh");
    limited.args(["-c", "trap '' XFSZ; ulimit -f 20; exec \"$@\"", "sh"]).arg(child.get_program());
    limited.args(child.get_args()).envs(child.get_envs().filter_map(|(k, v)| Some((k, v?))));
    let output = output(&mut limited);
    assert!(output.contains(&format!("error: cannot write {}", path.display())), "{output}");
    let bytes = std::fs::read(&path).unwrap();
    assert!(bytes.len() > 5000 && bytes.ends_with(b"}\n"), "{} bytes", bytes.len());
    let stored = read_answers(&path).unwrap().len();
    assert!(stub.seen().len() <= stored + 40, "{} asked, {stored} stored", stub.seen().len());

    let outcome = ask(stub.config(), &requests(1000), &path).unwrap();
    assert_eq!(outcome.progress.stored, stored);
    assert_complete(&requests(1000), &outcome, &path);
}

#[test]
fn a_key_that_is_refused_ends_it_at_once_and_shows_nowhere() {
    for (folder_name, header) in [("keyed", "authorization: bearer "), ("keyed-azure", "api-key: ")] {
        let stub = Stub::start(|_| Act::Reply(401, "", r#"{"error": {"message": "bad key"}}"#.into()));
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join(folder_name).join("answers.jsonl");
        let shown = output(child(&stub, &path).env(KEY, SECRET));
        assert!(shown.contains(&format!("set the environment variable {KEY}")), "{shown}");
        assert!(shown.contains("Unauthorized") && shown.contains("status 401"), "{shown}");
        assert!(shown.contains("log: "), "{shown}");
        let seen = stub.seen();
        assert!((1..=16).contains(&seen.len()), "{}", seen.len());
        let sent = seen[0].head.to_ascii_lowercase();
        assert!(sent.contains(&format!("{header}{SECRET}\r\n").to_ascii_lowercase()), "{sent}");
        assert_no_secret(&shown, &path);
    }
}

#[test]
fn a_key_that_the_server_repeats_is_in_no_output_and_no_file() {
    let stub = Stub::start(|seen| match seen.prompt() {
        "prompt 1" => Act::Reply(500, "", seen.head.clone()),
        "prompt 2" => Act::Reply(400, "", serde_json::json!({"error": {"message": seen.head}}).to_string()),
        "prompt 3" => Act::Reply(200, "", serde_json::json!({"error": seen.head}).to_string()),
        // Far behind, where a message is cut.
        "prompt 4" => Act::Reply(500, "", "x".repeat(285) + SECRET),
        _ => Act::say(&[&seen.head]),
    });
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("keyed-repeats").join("answers.jsonl");
    let shown = output(child(&stub, &path).env(KEY, SECRET));
    assert!(shown.contains("done: ") && shown.contains("<key>"), "{shown}");
    assert_eq!(read_answers(&path).unwrap().len(), 1000);
    assert!(std::fs::read_to_string(&path).unwrap().contains("<key>"));
    assert_no_secret(&shown, &path);
}

fn assert_no_secret(shown: &str, path: &Path) {
    let file = std::fs::read_to_string(path).unwrap();
    for text in [shown, &file] {
        // Nor any larger part of it, as rows of a hex dump show.
        for start in 0..=SECRET.len() - 8 {
            let part = &SECRET[start..start + 8];
            let at = text
                .find(part)
                .map(|at| text[at.saturating_sub(100)..].chars().take(200).collect::<String>());
            assert!(at.is_none(), "{at:?}");
        }
    }
}

#[test]
fn a_key_that_is_missing_is_asked_for_before_anything_is_sent() {
    let stub = Stub::start(echo);
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("keyed").join("answers.jsonl");
    for key in [None, Some("  ")] {
        let mut child = child(&stub, &path);
        let shown = output(match key {
            Some(key) => child.env(KEY, key),
            None => &mut child,
        });
        assert!(shown.contains(&format!("set the environment variable {KEY}")), "{shown}");
        assert!(shown.contains("MissingKey") && stub.seen().is_empty());
    }
    // From a file.
    let key = folder.path().join("key");
    let config = TeacherConfig { key: KeySource::File(key.clone()), ..stub.config() };
    assert!(matches!(Teacher::new(config.clone()), Err(TeacherError::File(_))));
    std::fs::write(&key, format!("{SECRET} twice\n")).unwrap();
    let error = Teacher::new(config.clone()).unwrap_err();
    assert!(matches!(error, TeacherError::Config { field: "key", .. }), "{error:?}");
    assert!(!format!("{error} {error:?}").contains("sk-vQ"));
    std::fs::write(&key, format!("{SECRET}\n")).unwrap();
    ask(config, &requests(1), &folder.path().join("answers.jsonl")).unwrap();
    assert!(stub.seen()[0].head.contains(&format!("Bearer {SECRET}\r\n")));
}
