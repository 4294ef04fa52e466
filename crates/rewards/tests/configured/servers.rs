//! Rewards of servers.

use std::io::{BufRead, BufReader, Read, Write};
use std::net::TcpListener;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use ruminate_datasets::rows::{PromptRow, TextOrMessages};
use ruminate_datasets::teacher::Message;
use ruminate_models::Interrupt;
use ruminate_rewards::RewardError;
use serde_json::{Value, json};

use super::{reward, rewards, row, told};

/// A request as a server sees it: its headers in small letters, and its body.
struct Request {
    headers: String,
    body: Value,
}

/// A reply: status, headers, body.
type Reply = (u16, &'static str, String);

/// Answers each request, and returns the address.
fn server(mut answer: impl FnMut(Request) -> Reply + Send + 'static) -> String {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = listener.local_addr().unwrap();
    std::thread::spawn(move || {
        for stream in listener.incoming() {
            let mut stream = BufReader::new(stream.unwrap());
            let (mut headers, mut line) = (String::new(), String::new());
            while stream.read_line(&mut line).unwrap_or(0) > 2 {
                headers.push_str(&line.to_ascii_lowercase());
                line.clear();
            }
            let length = headers.lines().find_map(|line| line.strip_prefix("content-length:"));
            let mut body = vec![0; length.map_or(0, |length| length.trim().parse().unwrap())];
            stream.read_exact(&mut body).unwrap();
            let (status, more, text) =
                answer(Request { headers, body: serde_json::from_slice(&body).unwrap() });
            let reply = format!(
                "HTTP/1.1 {status} X\r\n{more}content-length: {}\r\nconnection: close\r\n\r\n{text}",
                text.len()
            );
            let _ = stream.get_mut().write_all(reply.as_bytes());
        }
    });
    format!("http://{address}/get_reward")
}

#[test]
fn a_server_judges_in_batches_and_may_be_busy() {
    let mut busy = 2;
    let url = server(move |Request { headers, body }| {
        assert!(headers.starts_with("post /get_reward "), "{headers}");
        assert!(headers.contains("content-type: application/json\r\n"), "{headers}");
        if busy > 0 {
            busy -= 1;
            return (if busy == 0 { 429 } else { 503 }, "retry-after: 0\r\n", "busy".into());
        }
        let query = body["query"].as_array().unwrap();
        assert_eq!(body["prompts"], json!(vec!["q"; query.len()]));
        assert_eq!(body["labels"], json!(vec!["x"; query.len()]));
        assert_eq!(body.as_object().unwrap().len(), 3);
        let rewards: Vec<usize> = query.iter().map(|text| text.as_str().unwrap().len()).collect();
        // As OpenRLHF's servers answer.
        (
            200,
            "",
            json!({ "rewards": rewards, "scores": rewards, "extra_logs": {"length": rewards} }).to_string(),
        )
    });
    let rewards = rewards(json!({"http": {"url": url, "batch": 2}}));
    let row = row(Some("x"));
    let judged = rewards.judge(&[&row, &row, &row], &["a", "ab", "abc"]).unwrap();
    assert_eq!(judged.iter().map(|of| of.value).collect::<Vec<_>>(), [2.0, 3.0, 4.0]);
}

#[test]
fn dialogues_missing_answers_and_lone_numbers() {
    let url = server(|Request { body, .. }| {
        let text = "user: Hi!\nassistant: Hello.\nuser: ü?\n";
        assert_eq!(body["prompts"], json!([text]));
        assert_eq!(body["query"], json!([format!("{text}\"\\\n")]));
        assert_eq!(body["labels"], json!([""]));
        (200, "", "{\"rewards\": -1.5}".into())
    });
    let messages = [("user", "Hi!"), ("assistant", "Hello."), ("user", "ü?")];
    let messages = messages.map(|(role, content)| Message::new(role, content)).to_vec();
    let row =
        PromptRow { prompt: TextOrMessages::Messages(messages), answer: None, fields: Default::default() };
    let judged = rewards(json!({"http": {"url": url}})).judge(&[&row], &["\"\\\n"]).unwrap();
    assert_eq!(judged[0].value, -1.5);
}

#[test]
fn keys_and_headers_are_sent_and_not_told() {
    const KEY: &str = "sk-0123456789-abcdefghij";
    let url = server(|Request { headers, .. }| {
        assert!(headers.contains(&format!("authorization: bearer {KEY}\r\n")), "{headers}");
        assert!(headers.contains("x-team: blue\r\n"), "{headers}");
        (401, "", format!("{KEY} is wrong\u{1b}[2J"))
    });
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("key");
    std::fs::write(&file, format!("{KEY}\n")).unwrap();
    let rewards =
        rewards(json!({"http": {"url": url, "key": {"file": file}, "headers": {"x-team": "blue"}}}));
    let error = reward(&rewards, None, "t").unwrap_err();
    assert!(error.contains("status 401: <key> is wrong\\u{1b}[2J"), "{error}");
    assert!(!format!("{rewards:?}").contains(KEY));
}

#[test]
fn a_server_that_fails_is_told_with_the_sample() {
    for (status, reply, parts) in [
        (
            400,
            "no such model",
            &["reward `r`, sample 0 (\"a\")", "/get_reward: status 400: no such model"][..],
        ),
        (307, "", &["status 307"]),
        (503, "busy", &["status 503: busy"]),
        (200, "oops", &["\"oops\"", "the reply is not {\"rewards\": [...]}"]),
        (200, "", &["the reply is not", "\"\""]),
        (200, r#"{"rewards": [1]}"#, &["sample 1 (\"b\")", "1 rewards for 2 samples"]),
        (200, r#"{"rewards": [1, 2, 3]}"#, &["sample 1 (\"b\")", "3 rewards for 2 samples"]),
        (200, r#"{"rewards": []}"#, &["sample 0 (\"a\")", "0 rewards for 2 samples"]),
        (200, r#"{"rewards": 1}"#, &["1 rewards for 2 samples"]),
        (200, r#"{"rewards": [1, null]}"#, &["`rewards` is no list of numbers"]),
        (200, r#"{"rewards": [1, NaN]}"#, &["the reply is not"]),
        (200, r#"{"rewards": [1, 1e60]}"#, &["sample 1 (\"b\")", "which is no reward"]),
        (200, r#"{"scores": [1, 2]}"#, &["missing field `rewards`"]),
    ] {
        let url = server(move |_| (status, "", reply.to_owned()));
        let rewards = rewards(json!({"http": {"url": url, "retries": 0}}));
        let row = row(None);
        let error = told(&rewards.judge(&[&row, &row], &["a", "b"]).unwrap_err());
        for part in parts {
            assert!(error.contains(part), "{reply}: {error}");
        }
    }
    // The index counts all samples, not those of the batch.
    let mut first = true;
    let url = server(move |_| match std::mem::replace(&mut first, false) {
        true => (200, "", "{\"rewards\": [1, 2]}".into()),
        false => (404, "", "gone".into()),
    });
    let row = row(None);
    let rewards = rewards(json!({"http": {"url": url, "batch": 2}}));
    let error = told(&rewards.judge(&[&row; 4], &["a", "b", "c", "d"]).unwrap_err());
    assert!(error.contains("sample 2 (\"c\")") && error.contains("status 404: gone"), "{error}");
}

#[test]
fn tries_are_counted() {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = listener.local_addr().unwrap();
    drop(listener);
    let nobody = rewards(json!({"http": {"url": format!("http://{address}/r"), "retries": 1}}));
    let error = reward(&nobody, None, "t").unwrap_err();
    assert!(error.contains(&format!("http://{address}/r: ")) && error.contains("(tried 2 times)"), "{error}");
    let asked = Arc::new(AtomicUsize::new(0));
    let counter = Arc::clone(&asked);
    let url = server(move |_| {
        counter.fetch_add(1, Ordering::SeqCst);
        (500, "retry-after: 0\r\n", "broken".into())
    });
    let error = reward(&rewards(json!({"http": {"url": url, "retries": 2}})), None, "t").unwrap_err();
    assert!(error.contains("status 500: broken (tried 3 times)"), "{error}");
    assert_eq!(asked.load(Ordering::SeqCst), 3);
}

#[test]
fn a_silent_server_is_waited_for_until_the_time_is_over_or_somebody_asks_to_stop() {
    // Nobody answers.
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let url = format!("http://{}", listener.local_addr().unwrap());
    let begin = Instant::now();
    let silent = |timeout| rewards(json!({"http": {"url": url, "timeout_s": timeout, "retries": 0}}));
    let error = reward(&silent(1), None, "t").unwrap_err();
    assert!(error.contains("timeout"), "{error}");
    assert!(begin.elapsed() < Duration::from_secs(5));
    let interrupt = Interrupt::default();
    let raised = interrupt.clone();
    std::thread::spawn(move || {
        std::thread::sleep(Duration::from_millis(200));
        raised.raise();
    });
    let (row, begin) = (row(None), Instant::now());
    let result = interrupt.during(|| silent(60).judge(&[&row], &["t"]));
    assert!(matches!(result, Err(RewardError::Model(ruminate_models::Error::Interrupted))), "{result:?}");
    assert!(begin.elapsed() < Duration::from_secs(5), "{:?}", begin.elapsed());
}
