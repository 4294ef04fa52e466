//! The teacher against servers that misbehave.

mod child;
mod files;
mod guide;
#[cfg(feature = "https")]
mod https;
mod stub;
mod turns;

use std::collections::BTreeSet;
use std::ops::ControlFlow;
use std::path::Path;
use std::time::{Duration, Instant};

use ruminate_datasets::NullObserver;
use ruminate_datasets::teacher::{
    Answer, Endpoint, Message, Outcome, Prices, Progress, Request, RequestForm, Sampling, Teacher,
    TeacherConfig, TeacherError, TeacherObserver, TokenLimit, read_answers, write_requests,
};
use stub::{Act, Seen, Stub};

pub(crate) fn requests(count: usize) -> Vec<Request> {
    (0..count)
        .map(|i| Request::new(format!("id-{i}"), vec![Message::new("user", format!("prompt {i}"))]))
        .collect()
}

#[expect(clippy::unnecessary_wraps, reason = "the form of a validator")]
pub(crate) fn any(_: &Request, _: &Answer) -> Result<(), String> {
    Ok(())
}

/// What a good server says.
pub(crate) fn echo(seen: &Seen) -> Act {
    Act::say(&[&format!("answer to {}", seen.prompt())])
}

pub(crate) fn ask(config: TeacherConfig, requests: &[Request], path: &Path) -> Result<Outcome, TeacherError> {
    Teacher::new(config)?.ask(requests, path, any, &mut NullObserver)
}

/// Every request is answered, by its own answer, and stands in the file once.
pub(crate) fn assert_complete(requests: &[Request], outcome: &Outcome, path: &Path) {
    for (request, answer) in requests.iter().zip(&outcome.answers) {
        let expected = format!("answer to {}", request.messages[0].content);
        assert_eq!(answer.as_ref().unwrap().text(), expected);
    }
    let lines = read_answers(path).unwrap();
    let answered: Vec<&String> =
        lines.iter().filter(|line| line.outcome.is_ok()).map(|line| line.id.as_ref().unwrap()).collect();
    assert_eq!(answered.len(), requests.len());
    assert_eq!(answered.iter().collect::<BTreeSet<_>>().len(), requests.len());
}

/// Counts what it is told.
#[derive(Default)]
struct Watcher {
    last: Progress,
    again: Vec<String>,
    stop_after: Option<usize>,
}

impl TeacherObserver for Watcher {
    fn progress(&mut self, progress: &Progress) -> ControlFlow<()> {
        self.last = *progress;
        match self.stop_after {
            Some(count) if progress.answered >= count => ControlFlow::Break(()),
            _ => ControlFlow::Continue(()),
        }
    }

    fn again(&mut self, _id: &str, reason: &str, _wait: Duration) {
        self.again.push(reason.into());
    }
}

#[test]
fn a_thousand_requests_at_a_server_that_misbehaves_are_each_answered_once() {
    let stub = Stub::start(|seen| {
        let number: usize = seen.prompt().split(' ').nth(1).unwrap().parse().unwrap();
        // Most prompts meet one or two of the faults before they are answered.
        match (number + 3 * seen.earlier) % 10 {
            _ if seen.earlier == 3 => echo(seen),
            0 => Act::Reply(429, "retry-after: 0\r\n", r#"{"error": {"message": "slow down"}}"#.into()),
            1 => Act::Reply(500, "", "oops".into()),
            2 => Act::Cut(stub::completion(&["answer to no"]).to_string()),
            3 => Act::Reply(200, "", r#"{"choices": [{"message": {"con"#.into()),
            4 => Act::Reply(200, "", r#"{"choices": [{"text": "no message"}]}"#.into()),
            5 => Act::Reply(200, "", r#"{"choices": []}"#.into()),
            6 => Act::Close,
            7 => Act::slow(20, echo(seen)),
            _ => echo(seen),
        }
    });
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("deep/answers.jsonl");
    let requests = requests(1000);
    let mut watcher = Watcher::default();
    let outcome = Teacher::new(stub.config()).unwrap().ask(&requests, &path, any, &mut watcher).unwrap();
    assert_complete(&requests, &outcome, &path);
    assert!(outcome.failed.is_empty() && !outcome.stopped);
    assert!((4..=16).contains(&stub.most()), "{} at a time", stub.most());
    let progress = outcome.progress;
    assert_eq!(watcher.last, progress);
    assert_eq!([progress.answered, progress.open(), progress.stored], [1000, 0, 0]);
    assert_eq!([progress.usage.prompt_tokens, progress.usage.completion_tokens], [10_000, 1000]);
    assert_eq!(progress.usage.cost(Prices { prompt: 100.0, completion: 1000.0 }), 2.0);
    assert_eq!(watcher.again.len(), progress.retries);
    assert_eq!(stub.seen().len(), 1000 + progress.retries);
    for reason in ["status 429: slow down", "status 500: oops", "broke off", "no chat completion", "is empty"]
    {
        assert!(watcher.again.iter().any(|again| again.contains(reason)), "{reason}");
    }
    // All is there: nothing more is asked.
    stub.forget();
    assert_eq!(ask(stub.config(), &requests, &path).unwrap().answers, outcome.answers);
    assert!(stub.seen().is_empty());
}

#[test]
fn stopping_stores_what_is_under_way_and_resuming_asks_for_the_rest() {
    let stub = Stub::start(|seen| Act::slow(2, echo(seen)));
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("answers.jsonl");
    let requests = requests(200);
    let mut watcher = Watcher { stop_after: Some(50), ..Watcher::default() };
    let config = TeacherConfig { concurrency: 8, ..stub.config() };
    let outcome = Teacher::new(config.clone()).unwrap().ask(&requests, &path, any, &mut watcher).unwrap();
    assert!(outcome.stopped);
    let asked: BTreeSet<String> = stub.seen().iter().map(|seen| seen.prompt().into()).collect();
    assert!((50..80).contains(&asked.len()), "{}", asked.len());
    assert_eq!(outcome.answers.iter().flatten().count(), asked.len());
    let plan = Teacher::plan(&config, &requests, &path).unwrap();
    assert_eq!([plan.stored, plan.to_ask], [asked.len(), 200 - asked.len()]);
    assert!(plan.usage.prompt_tokens > 0);
    stub.forget();
    let outcome = ask(config, &requests, &path).unwrap();
    assert_complete(&requests, &outcome, &path);
    assert_eq!(outcome.progress.stored, asked.len());
    let again: BTreeSet<String> = stub.seen().iter().map(|seen| seen.prompt().into()).collect();
    assert_eq!(again.len(), 200 - asked.len());
    assert!(again.is_disjoint(&asked));
}

#[test]
fn a_silent_server_is_asked_again_and_then_given_up() {
    let stub = Stub::start(|seen| match seen.prompt() {
        "prompt 0" => Act::slow(6000, Act::Close),
        _ if seen.earlier == 0 => Act::slow(6000, Act::Close),
        _ => echo(seen),
    });
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("answers.jsonl");
    let config = TeacherConfig { timeout_secs: 0.5, attempts: 3, ..stub.config() };
    let start = Instant::now();
    let outcome = ask(config.clone(), &requests(3), &path).unwrap();
    assert!(start.elapsed() < Duration::from_millis(5900), "{:?}", start.elapsed());
    assert!(outcome.answers[0].is_none() && outcome.answers[1].is_some() && outcome.answers[2].is_some());
    let (id, reason) = &outcome.failed[0];
    assert_eq!((outcome.failed.len(), id.as_str()), (1, "id-0"));
    assert!(reason.starts_with("3 attempts failed") && reason.contains("timeout"), "{reason}");
    let failed: Vec<_> = read_answers(&path).unwrap().into_iter().filter(|e| e.outcome.is_err()).collect();
    assert_eq!((failed.len(), failed[0].outcome.as_ref().unwrap_err()), (1, reason));
    // The next time, what has failed is asked again, and nothing else.
    stub.forget();
    ask(config, &requests(3), &path).unwrap();
    assert_eq!(stub.seen().iter().map(|seen| seen.prompt().to_string()).collect::<Vec<_>>(), ["prompt 0"; 3]);
}

#[test]
fn everybody_waits_as_long_as_the_server_asks() {
    let stub = Stub::start(|seen| match (seen.prompt(), seen.earlier) {
        ("prompt 0", 0) => Act::Reply(429, "retry-after: 1\r\n", String::new()),
        _ => Act::slow(50, echo(seen)),
    });
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("answers.jsonl");
    let config = TeacherConfig { concurrency: 2, ..stub.config() };
    let outcome = ask(config, &requests(10), &path).unwrap();
    assert_complete(&requests(10), &outcome, &path);
    let seen = stub.seen();
    let pause = seen.windows(2).map(|pair| pair[1].at - pair[0].at).max().unwrap();
    assert!(pause >= Duration::from_millis(900), "{pause:?}");
}

#[test]
fn a_long_wait_can_be_broken_off() {
    struct Impatient;
    impl TeacherObserver for Impatient {
        fn progress(&mut self, progress: &Progress) -> ControlFlow<()> {
            if progress.elapsed > Duration::from_millis(300) {
                return ControlFlow::Break(());
            }
            ControlFlow::Continue(())
        }
    }
    let stub = Stub::start(|_| Act::Reply(503, "retry-after: 1000\r\n", String::new()));
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("answers.jsonl");
    let start = Instant::now();
    let outcome = Teacher::new(stub.config()).unwrap().ask(&requests(3), &path, any, &mut Impatient).unwrap();
    assert!(outcome.stopped && outcome.failed.is_empty());
    assert!(start.elapsed() < Duration::from_secs(20));
}

#[test]
fn no_more_is_sent_than_a_minute_allows() {
    let stub = Stub::start(echo);
    let folder = tempfile::tempdir().unwrap();
    let spent = |name: &str, config: TeacherConfig, requests: &[Request]| {
        let start = Instant::now();
        ask(config, requests, &folder.path().join(name)).unwrap();
        start.elapsed()
    };
    // A second's worth at once, the others one by one.
    let config = TeacherConfig { requests_per_minute: 1200.0, ..stub.config() };
    let time = spent("requests", config, &requests(30));
    assert!(time >= Duration::from_millis(480), "{time:?}");
    // The third one waits until what the others take is no more than is allowed.
    let mut long = requests(3);
    long.iter_mut().for_each(|request| request.sampling.max_tokens = Some(4000));
    let config = TeacherConfig { tokens_per_minute: 300_000.0, ..stub.config() };
    let time = spent("tokens", config, &long);
    assert!(time >= Duration::from_millis(580), "{time:?}");
}

#[test]
fn answers_that_are_not_valid_are_asked_for_again() {
    let stub = Stub::start(|seen| match (seen.prompt(), seen.earlier) {
        ("prompt 0", _) => Act::say(&["maybe"]),
        (_, 0) => Act::say(&["perhaps"]),
        _ => echo(seen),
    });
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("answers.jsonl");
    let mut requests = requests(2);
    requests.iter_mut().for_each(|request| request.sampling.seed = Some(7));
    let valid = |_: &Request, answer: &Answer| match answer.text() {
        text if text.starts_with("answer") => Ok(()),
        text => Err(format!("`{text}` is no answer")),
    };
    let teacher = Teacher::new(TeacherConfig { concurrency: 1, ..stub.config() }).unwrap();
    let outcome = teacher.ask(&requests, &path, valid, &mut NullObserver).unwrap();
    let reason = "the answer is not valid: `maybe` is no answer".to_string();
    assert_eq!(outcome.failed, [("id-0".to_string(), reason)]);
    assert_eq!(outcome.progress.invalid, 4);
    // What was spent in vain is counted, too.
    assert_eq!(outcome.answers[1].as_ref().unwrap().usage.prompt_tokens, 20);
    assert_eq!(outcome.progress.usage.prompt_tokens, 50);
    let seeds = |prompt: &str| -> Vec<u64> {
        let seen = stub.seen();
        seen.iter().filter(|s| s.prompt() == prompt).map(|s| s.body["seed"].as_u64().unwrap()).collect()
    };
    assert_eq!((seeds("prompt 0"), seeds("prompt 1")), (vec![7, 8, 9], vec![7, 8]));
}

#[test]
fn answers_without_content_are_asked_for_again_and_are_no_empty_texts() {
    let without = |message: &str, finish: &str| {
        let body = format!(
            r#"{{"choices": [{{"message": {message}, "finish_reason": "{finish}"}}],
            "usage": {{"prompt_tokens": 10, "completion_tokens": null}}}}"#
        );
        Act::Reply(200, "", body)
    };
    let stub = Stub::start(move |seen| match (seen.prompt(), seen.earlier) {
        ("prompt 0", _) => without(r#"{"content": null, "reasoning_content": "hm"}"#, "length"),
        ("prompt 1", _) => without("{\"content\": null, \"refusal\": \"I \\u001b[2Jcannot\"}", "stop"),
        ("prompt 2", 0) => without(r#"{"content": ""}"#, "length"),
        ("prompt 3", 0) => {
            let mut reply = stub::completion(&["b", "", "a"]);
            reply["choices"][0]["index"] = 2.into();
            reply["choices"][2]["index"] = 0.0.into();
            reply["choices"][1]["message"]["content"] = serde_json::Value::Null;
            Act::Reply(200, "", reply.to_string())
        }
        _ => echo(seen),
    });
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("answers.jsonl");
    let mut requests = requests(4);
    requests[3].sampling.n = Some(3);
    let mut watcher = Watcher::default();
    let outcome = Teacher::new(stub.config()).unwrap().ask(&requests, &path, any, &mut watcher).unwrap();
    let reason = |id: &str| outcome.failed.iter().find(|(failed, _)| failed == id).unwrap().1.clone();
    assert!(reason("id-0").contains("cut off before it began"), "{}", reason("id-0"));
    assert_eq!(reason("id-1"), r"the model refuses to answer: I \u{1b}[2Jcannot");
    assert_eq!(outcome.answers[2].as_ref().unwrap().text(), "answer to prompt 2");
    let texts: Vec<&str> =
        outcome.answers[3].as_ref().unwrap().choices.iter().map(|choice| choice.content.as_str()).collect();
    assert_eq!(texts, ["a", "b", "answer to prompt 3"]);
    let asked = |prompt: &str| stub.seen().iter().filter(|seen| seen.prompt() == prompt).count();
    assert_eq!(["prompt 0", "prompt 1", "prompt 2", "prompt 3"].map(asked), [3, 3, 2, 2]);
    assert_eq!(stub.seen().iter().rfind(|seen| seen.prompt() == "prompt 3").unwrap().body["n"], 1);
    // In the file they are failures, and asked for again.
    let failed = read_answers(&path).unwrap().into_iter().filter(|line| line.outcome.is_err()).count();
    assert_eq!((failed, Teacher::plan(&stub.config(), &requests, &path).unwrap().to_ask), (2, 2));
}

#[test]
fn the_limit_of_tokens_has_the_name_that_the_server_knows() {
    let stub = Stub::start(|seen| match seen.body.get("max_tokens") {
        Some(_) => {
            Act::Reply(400, "", r#"{"error": {"message": "use 'max_completion_tokens' instead"}}"#.into())
        }
        None => echo(seen),
    });
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("answers.jsonl");
    let mut requests = requests(1);
    requests[0].sampling.max_tokens = Some(9);
    let limit = |token_limit| TeacherConfig { token_limit, ..stub.config() };
    let outcome = ask(limit(TokenLimit::MaxTokens), &requests, &path).unwrap();
    assert!(
        outcome.failed[0].1.ends_with("set teacher.token_limit = \"max_completion_tokens\""),
        "{outcome:?}"
    );
    let outcome = ask(limit(TokenLimit::MaxCompletionTokens), &requests, &path).unwrap();
    assert_complete(&requests, &outcome, &path);
    assert_eq!(stub.seen()[1].body["max_completion_tokens"], 9);
    // The file has the request as it was meant, so that another name asks for nothing again.
    assert_eq!(ask(limit(TokenLimit::None), &requests, &path).unwrap().progress.stored, 1);
    ask(limit(TokenLimit::None), &requests, &folder.path().join("none")).unwrap();
    let body = &stub.seen()[2].body;
    assert!(body.get("max_tokens").is_none() && body.get("max_completion_tokens").is_none(), "{body}");
}

#[test]
fn replies_in_gzip_are_unpacked_and_binary_ones_are_not_printed() {
    let gzip = |text: &str| {
        let mut encoder = flate2::write::GzEncoder::new(vec![], flate2::Compression::default());
        std::io::Write::write_all(&mut encoder, text.as_bytes()).unwrap();
        encoder.finish().unwrap()
    };
    let stub = Stub::start(move |seen| {
        let text = stub::completion(&[&format!("answer to {}", seen.prompt())]).to_string();
        match (seen.prompt(), seen.earlier) {
            ("prompt 0", _) => Act::Bytes("content-encoding: gzip\r\n", gzip(&text)),
            ("prompt 1", _) => Act::Bytes("", gzip(&text)),
            ("prompt 2", 0) => Act::Bytes("", gzip(&text)[..20].to_vec()),
            ("prompt 3", 0) => Act::Bytes("", b"\x00\x1b[31m\xff\x9b".repeat(100)),
            ("prompt 4", 0) => Act::Bytes("", "\u{1b}[31m\u{7}words".as_bytes().to_vec()),
            ("prompt 5", _) => Act::Bytes("", format!("\u{feff}{text}").into_bytes()),
            _ => echo(seen),
        }
    });
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("answers.jsonl");
    let requests = requests(6);
    let mut watcher = Watcher::default();
    let config = TeacherConfig { concurrency: 1, ..stub.config() };
    let outcome = Teacher::new(config).unwrap().ask(&requests, &path, any, &mut watcher).unwrap();
    assert_complete(&requests, &outcome, &path);
    assert_eq!(watcher.again.len(), 3);
    for (reason, says) in watcher.again.iter().zip(["damaged gzip", "bytes that are no text", r"\u{1b}[31m"])
    {
        assert!(reason.contains(says), "{reason}");
        assert!(reason.chars().all(|c| !c.is_control()) && reason.chars().count() <= 301, "{reason}");
    }
}

#[test]
fn as_many_completions_as_asked_for_whatever_the_server_gives_at_once() {
    let stub = Stub::start(|seen| match seen.prompt() {
        // One, however many it was asked for; and more than it was asked for.
        "prompt 0" => Act::say(&[&format!("answer {}", seen.earlier)]),
        _ => Act::say(&["answer a", "answer b"]),
    });
    let folder = tempfile::tempdir().unwrap();
    let mut requests = requests(2);
    requests.iter_mut().for_each(|request| request.sampling.n = Some(3));
    let texts = |answer: &Option<Answer>| -> Vec<String> {
        answer.as_ref().unwrap().choices.iter().map(|choice| choice.content.clone()).collect()
    };
    let outcome = ask(stub.config(), &requests, &folder.path().join("a")).unwrap();
    assert_eq!(texts(&outcome.answers[0]), ["answer 0", "answer 1", "answer 2"]);
    assert_eq!(texts(&outcome.answers[1]), ["answer a", "answer b", "answer a"]);
    assert_eq!(outcome.answers[0].as_ref().unwrap().usage.prompt_tokens, 30);
    let asked: Vec<u64> = stub.seen().iter().map(|seen| seen.body["n"].as_u64().unwrap()).collect();
    assert_eq!(asked.iter().filter(|&&n| n == 3).count(), 2);
    stub.forget();
    ask(TeacherConfig { most_choices: 1, ..stub.config() }, &requests, &folder.path().join("b")).unwrap();
    assert!(stub.seen().iter().all(|seen| seen.body["n"] == 1));
}

#[test]
fn what_is_sent_is_what_was_asked() {
    let stub = Stub::start(echo);
    let folder = tempfile::tempdir().unwrap();
    let other = serde_json::json!({"top_k": 5, "response_format": {"type": "json_object"}});
    let sampling = Sampling {
        max_tokens: Some(9),
        n: Some(1),
        temperature: Some(0.8),
        top_p: Some(0.9),
        stop: vec!["###".into()],
        seed: Some(1),
        other: other.as_object().unwrap().clone(),
    };
    let messages = vec![Message::new("system", "ä\n\"x\""), Message::new("user", "prompt 0")];
    let request = Request { id: "a".into(), messages, sampling };
    let headers = [("x-project".to_string(), "ruminate".to_string())].into();
    let config = TeacherConfig { headers, ..stub.config() };
    ask(config, std::slice::from_ref(&request), &folder.path().join("answers.jsonl")).unwrap();
    let seen = &stub.seen()[0];
    let expected = serde_json::json!({
        "model": "stub",
        "messages": [{"role": "system", "content": "ä\n\"x\""}, {"role": "user", "content": "prompt 0"}],
        "max_tokens": 9, "n": 1, "temperature": 0.8, "top_p": 0.9, "stop": ["###"], "seed": 1,
        "top_k": 5, "response_format": {"type": "json_object"},
    });
    assert_eq!(seen.body, expected);
    let head = seen.head.to_ascii_lowercase();
    assert!(head.starts_with("post /v1/chat/completions http/1.1\r\n"), "{head}");
    assert!(head.contains("x-project: ruminate\r\n") && head.contains("content-type: application/json\r\n"));
    assert!(!head.contains("authorization"));
    let line = &read_answers(&folder.path().join("answers.jsonl")).unwrap()[0];
    assert_eq!(line.sampling.as_ref(), Some(&request.sampling));
}

#[test]
fn servers_that_can_answer_nothing_end_it_at_once() {
    let folder = tempfile::tempdir().unwrap();
    let quota = r#"{"error": {"message": "pay first", "code": "insufficient_quota"}}"#;
    for (name, status, headers, body) in [
        ("a", 404, "", r#"{"error": {"message": "no such model"}}"#),
        ("b", 307, "location: http://127.0.0.1:1/v1/chat/completions\r\n", ""),
        ("c", 429, "", quota),
    ] {
        let stub = Stub::start(move |_| Act::Reply(status, headers, body.into()));
        let config = TeacherConfig { concurrency: 2, ..stub.config() };
        let error = ask(config, &requests(100), &folder.path().join(name)).unwrap_err();
        assert!(matches!(error, TeacherError::Refused { status: s, .. } if s == status), "{error}");
        assert!(stub.seen().len() <= 2, "{}", stub.seen().len());
    }
}

#[test]
fn requests_that_are_refused_fail_alone_but_many_in_a_row_end_it() {
    let stub = Stub::start(|seen| match seen.prompt() {
        "prompt 1" => Act::Reply(400, "", r#"{"error": {"message": "too long"}}"#.into()),
        _ => echo(seen),
    });
    let folder = tempfile::tempdir().unwrap();
    let outcome = ask(stub.config(), &requests(5), &folder.path().join("a")).unwrap();
    assert_eq!(outcome.failed, [("id-1".to_string(), "status 400: too long".to_string())]);
    assert_eq!(outcome.progress.answered, 4);

    let stub = Stub::start(|_| Act::Reply(400, "", r#"{"error": "no such setting"}"#.into()));
    let config = TeacherConfig { concurrency: 1, give_up_after: 3, ..stub.config() };
    let error = ask(config, &requests(50), &folder.path().join("b")).unwrap_err();
    assert!(matches!(error, TeacherError::GaveUp { failures: 3, .. }), "{error}");
    assert!(error.to_string().contains("no such setting"), "{error}");
    assert!(stub.seen().len() <= 4);

    // Nobody listens at all.
    let config = TeacherConfig { give_up_after: 3, attempts: 2, ..stub::config("http://127.0.0.1:9/v1") };
    let error = ask(config, &requests(50), &folder.path().join("c")).unwrap_err();
    assert!(matches!(error, TeacherError::GaveUp { .. }), "{error}");
}

#[test]
fn a_validator_that_panics_leaves_nobody_waiting() {
    let stub = Stub::start(echo);
    let folder = tempfile::tempdir().unwrap();
    let teacher = Teacher::new(stub.config()).unwrap();
    let path = folder.path().join("answers.jsonl");
    let caught = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| {
        teacher.ask(&requests(50), &path, |_, _| panic!("on purpose"), &mut NullObserver).map(drop)
    }));
    assert!(caught.is_err());
    assert_complete(&requests(50), &ask(stub.config(), &requests(50), &path).unwrap(), &path);
}

#[test]
fn models_that_continue_a_text_are_asked_for_completions() {
    let stub = Stub::start(|seen| {
        assert!(seen.body["messages"].is_null() && seen.head.contains(" /v1/completions "), "{}", seen.head);
        assert_eq!(seen.body["max_tokens"], 5);
        let text = format!("{} goes on", seen.prompt());
        Act::write(&[&text])
    });
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("answers.jsonl");
    let messages = vec![Message::new("system", "Count. "), Message::new("user", "One two")];
    let sampling = Sampling { max_tokens: Some(5), ..Sampling::default() };
    let requests = [Request { sampling, ..Request::new("a", messages) }];
    let config = TeacherConfig { endpoint: Endpoint::Completions, ..stub.config() };
    let outcome = ask(config.clone(), &requests, &path).unwrap();
    assert_eq!(outcome.answers[0].as_ref().unwrap().text(), "Count. One two goes on");
    // What is there is not asked again, and another sender is told the same.
    ask(config.clone(), &requests, &path).unwrap();
    assert_eq!(stub.seen().len(), 1);
    let exported = folder.path().join("batch.jsonl");
    write_requests(&exported, &config, &requests, RequestForm::Batch).unwrap();
    let line: serde_json::Value = serde_json::from_str(&std::fs::read_to_string(&exported).unwrap()).unwrap();
    assert_eq!(
        (&line["url"], &line["body"]["prompt"]),
        (&"/v1/completions".into(), &"Count. One two".into())
    );
    assert!(line["body"]["messages"].is_null());
}
