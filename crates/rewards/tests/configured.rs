//! Rewards that a configuration names.

use std::io::{BufRead, BufReader, Read, Write};
use std::net::TcpListener;
use std::time::{Duration, Instant};

use ruminate_datasets::rows::{PromptRow, TextOrMessages};
use ruminate_rewards::configured::{RewardConfig, WeightedRewards};
use serde_json::{Value, json};

fn row(answer: Option<&str>) -> PromptRow {
    let fields = json!({"level": 3}).as_object().unwrap().clone();
    PromptRow { prompt: TextOrMessages::Text("q".into()), answer: answer.map(Into::into), fields }
}

fn rewards(kind: Value) -> WeightedRewards {
    let config = json!([{"name": "r", "kind": kind}]);
    WeightedRewards::new(&serde_json::from_value::<Vec<RewardConfig>>(config).unwrap()).unwrap()
}

/// The reward of a text, or the error with its causes.
fn reward(rewards: &WeightedRewards, answer: Option<&str>, text: &str) -> Result<f32, String> {
    let judged = rewards.judge(&[&row(answer)], &[text]).map_err(|error| told(&error))?;
    Ok(judged[0].value)
}

fn told(error: &dyn std::error::Error) -> String {
    let causes = std::iter::successors(Some(error), |error| error.source());
    causes.map(ToString::to_string).collect::<Vec<_>>().join(": ")
}

#[test]
fn kinds_of_texts() {
    let gsm8k = "She has 3 * 4 = 12 apples.\n#### 12";
    for (kind, answer, text, expected) in [
        (json!("exact_match"), "Paris", " Paris\n", 1.0),
        (json!("exact_match"), "Paris", "paris", 0.0),
        (json!({"exact_match": {"ignore_case": true, "ignore_punctuation": true}}), "Paris.", "PARIS!", 1.0),
        (json!("number"), "1,000", "That makes 10 * 100 = 1000.", 1.0),
        (json!("number"), "7", "seven", 0.0),
        (json!({"number": {"tolerance": 0.1}}), "3.14", "About 3.2", 1.0),
        (
            json!({"regex": {"pattern": "(?i)answer is (\\w+)"}}),
            "b",
            "The Answer is a. No, the answer is b.",
            1.0,
        ),
        (json!({"regex": {"pattern": "^<think>"}}), "", "<think>hm</think>", 1.0),
        (json!({"regex": {"pattern": "^<think>"}}), "", "hm", 0.0),
        (json!("math"), r"\frac{1}{2}", r"so $\boxed{\frac12}$", 1.0),
        (json!("math"), r"Thus \boxed{3}", r"\boxed{3}", 1.0),
        (json!("math"), "3", "3", 0.0),
        (json!("gsm8k"), gsm8k, "#### 12", 1.0),
        (json!("gsm8k"), "12", r"It is \boxed{12}.", 1.0),
        (json!("gsm8k"), gsm8k, "It is 12.", 0.0),
        (json!("contains"), "bees", "Wild bees do.", 1.0),
        (json!({"contains": {"text": "Bees", "ignore_case": true}}), "", "wild bees", 1.0),
        (json!({"format": {"parts": ["<a>", "</a>"]}}), "", "x <a> y </a>", 1.0),
        (json!({"format": {"parts": ["<a>", "</a>"]}}), "", "</a> <a>", 0.0),
        (json!({"format": {"parts": ["<a>", "</a>"]}}), "", "<a></a><a>", 0.0),
        (json!({"length": {"max": 2}}), "", "one two", 1.0),
        (json!({"length": {"max": 2}}), "", "one two three", 0.0),
        (json!({"length": {"max": 2, "tolerance": 4}}), "", "one two three", 0.75),
        (json!({"length": {"min": 3, "tolerance": 4}}), "", "one", 0.5),
        (json!({"length": {"unit": "characters", "min": 2, "max": 2}}), "", "éü", 1.0),
    ] {
        assert_eq!(reward(&rewards(kind.clone()), Some(answer), text), Ok(expected), "{kind} {text}");
    }
}

#[test]
fn what_a_row_lacks_is_named() {
    let judged = rewards(json!("number")).judge(&[&row(Some("1")), &row(None)], &["1", "1"]);
    let error = told(&judged.unwrap_err());
    assert!(error.contains("reward `r`, sample 1: the row has no answer"), "{error}");
    let error = reward(&rewards(json!("number")), Some("none"), "1").unwrap_err();
    assert!(error.contains("\"none\" has no number"), "{error}");
    let error = reward(&rewards(json!({"length": {"unit": "tokens", "max": 3}})), None, "1").unwrap_err();
    assert!(error.contains("count words or characters"), "{error}");
}

#[test]
fn settings_are_checked() {
    let message = |config: Value| match serde_json::from_value::<Vec<RewardConfig>>(config) {
        Ok(configs) => told(&WeightedRewards::new(&configs).unwrap_err()),
        Err(error) => error.to_string(),
    };
    for (config, part) in [
        (json!([]), "there is none"),
        (json!([{"name": "a", "kind": "number"}, {"name": "a", "kind": "number"}]), "names must differ"),
        (json!([{"name": "reward", "kind": "number"}]), "which is the sum"),
        (json!([{"name": "a", "kind": "numbr"}]), "unknown variant `numbr`, expected one of `exact_match`"),
        (json!([{"name": "a", "kind": {"number": {"tol": 1}}}]), "unknown field `tol`"),
        (json!([{"name": "a", "kind": {"number": {"tolerance": -1}}}]), "must not be negative"),
        (json!([{"name": "a", "kind": "regex"}]), "pattern is empty"),
        (json!([{"name": "a", "kind": {"regex": {"pattern": "("}}}]), "unclosed group"),
        (json!([{"name": "a", "kind": "length"}]), "neither min nor max"),
        (json!([{"name": "a", "kind": {"length": {"min": 3, "max": 2}}}]), "more than max"),
        (json!([{"name": "a", "kind": "format"}]), "name at least one"),
        (json!([{"name": "a", "kind": "command"}]), "name a program"),
        (json!([{"name": "a", "kind": {"http": {"url": "localhost"}}}]), "must begin with http://"),
        (json!([{"name": "a", "wight": 1, "kind": "number"}]), "wight"),
    ] {
        let message = message(config.clone());
        assert!(message.contains(part), "{config}: {message}");
    }
}

#[test]
fn a_configuration_is_written_as_it_is_read() {
    let entry = json!({"name": "a", "weight": 0.5, "kind": {"length": {"max": 2}}});
    let config: RewardConfig = serde_json::from_value(entry).unwrap();
    let again = serde_json::from_value(json!(config)).unwrap();
    assert_eq!(config, again);
    let word: RewardConfig = serde_json::from_value(json!({"name": "a", "kind": "number"})).unwrap();
    assert_eq!(serde_json::from_value::<RewardConfig>(json!(word)).unwrap(), word);
}

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
    let begin = Instant::now();
    let counter = shell("while read -r line; do echo ${#line}; done");
    let text = "a response of some length";
    let (row, texts) = (row(None), vec![text; 10_000]);
    assert_eq!(counter.judge(&vec![&row; texts.len()], &texts).unwrap().len(), texts.len());
    assert!(begin.elapsed() < Duration::from_secs(10), "{:?}", begin.elapsed());
}

#[test]
fn a_program_that_fails_is_told_with_the_sample() {
    let two = |script: &str| {
        let begin = Instant::now();
        let (row, rewards) = (row(None), shell(script));
        let error = told(&rewards.judge(&[&row, &row], &["first", "second"]).unwrap_err());
        assert!(begin.elapsed() < Duration::from_secs(5), "{script}");
        // Nor is it asked again.
        let again = told(&rewards.judge(&[&row], &["third"]).unwrap_err());
        assert!(again.contains("has failed before"), "{again}");
        error
    };
    for (script, parts) in [
        (
            "read -r line; echo 1; echo oh no >&2; exit 3",
            &["sample 1 (\"second\")", "exit status: 3", "oh no"][..],
        ),
        ("exit 0", &["sample 0 (\"first\")", "exit status: 0"]),
        ("read -r line; echo 1; sleep 60", &["sample 1", "nothing for 1 s", "flush=True"]),
        ("read -r line; echo 1; exec >&-; sleep 60", &["sample 1", "closed its output"]),
        ("while read -r line; do echo nan; done", &["sample 0", "\"nan\" in place of a number"]),
        ("while read -r line; do echo 1e99; done", &["sample 0", "\"1e99\""]),
        ("while read -r line; do echo; done", &["sample 0", "\"\" in place of a number"]),
        ("while read -r line; do echo 1; echo note; done", &["sample 1", "\"note\""]),
        ("kill -9 $$", &["sample 0", "signal: 9"]),
    ] {
        let error = two(script);
        for part in parts {
            assert!(error.contains(part), "{script}: {error}");
        }
    }
    let missing = rewards(json!({"command": {"run": ["no-such-program"]}}));
    let error = reward(&missing, None, "t").unwrap_err();
    assert!(error.contains("cannot start `no-such-program`"), "{error}");
}

#[test]
fn numbers_too_many_are_noticed() {
    let rewards = shell("read -r line; echo 1; echo 2; sleep 60");
    let row = row(None);
    let first = rewards.judge(&[&row], &["a"]);
    std::thread::sleep(Duration::from_millis(200));
    let error = first.err().or_else(|| rewards.judge(&[&row], &["b"]).err()).unwrap();
    assert!(told(&error).contains("\"2\" beyond the numbers"), "{}", told(&error));
}

#[test]
fn what_a_program_started_ends_with_it() {
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("pid");
    let script = format!("sleep 300 & echo $! > {}; wait", file.display());
    assert!(reward(&shell(&script), None, "t").unwrap_err().contains("nothing for 1 s"));
    let pid = std::fs::read_to_string(&file).unwrap();
    let state = || std::fs::read_to_string(format!("/proc/{}/stat", pid.trim())).unwrap_or_default();
    // A child that nobody has waited for yet is a zombie.
    let gone = || state().is_empty() || state().contains(") Z ");
    let begin = Instant::now();
    while !gone() && begin.elapsed() < Duration::from_secs(5) {
        std::thread::sleep(Duration::from_millis(10));
    }
    assert!(gone());
}

/// Answers each request by its body, and returns the address.
fn server(mut answer: impl FnMut(Value) -> (u16, String) + Send + 'static) -> String {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = listener.local_addr().unwrap();
    std::thread::spawn(move || {
        for stream in listener.incoming() {
            let mut stream = BufReader::new(stream.unwrap());
            let (mut length, mut line) = (0, String::new());
            while stream.read_line(&mut line).unwrap_or(0) > 2 {
                let header = line.to_ascii_lowercase();
                if let Some(value) = header.strip_prefix("content-length:") {
                    length = value.trim().parse().unwrap();
                }
                line.clear();
            }
            let mut body = vec![0; length];
            stream.read_exact(&mut body).unwrap();
            let (status, text) = answer(serde_json::from_slice(&body).unwrap());
            let reply = format!(
                "HTTP/1.1 {status} X\r\ncontent-length: {}\r\nconnection: close\r\n\r\n{text}",
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
    let url = server(move |body| {
        if busy > 0 {
            busy -= 1;
            return (503, "busy".into());
        }
        let query = body["query"].as_array().unwrap();
        assert_eq!(body["prompts"].as_array().unwrap().len(), query.len());
        assert_eq!(body["labels"][0], "x");
        let rewards: Vec<usize> = query.iter().map(|text| text.as_str().unwrap().len()).collect();
        (200, json!({ "rewards": rewards }).to_string())
    });
    let rewards = rewards(json!({"http": {"url": url, "batch": 2}}));
    let row = row(Some("x"));
    let judged = rewards.judge(&[&row, &row, &row], &["a", "ab", "abc"]).unwrap();
    assert_eq!(judged.iter().map(|of| of.value).collect::<Vec<_>>(), [2.0, 3.0, 4.0]);
}

#[test]
fn a_server_that_fails_is_told_with_the_sample() {
    for (status, reply, parts) in [
        (400, "no such model", &["sample 0 (\"a\")", "status 400: no such model"][..]),
        (200, "oops", &["\"oops\"", "{\"rewards\": [...]}"]),
        (200, r#"{"rewards": [1]}"#, &["sample 1 (\"b\")", "1 rewards for 2 samples"]),
        (200, r#"{"rewards": [1, 1e60]}"#, &["sample 1 (\"b\")", "no reward"]),
    ] {
        let url = server(move |_| (status, reply.to_owned()));
        let rewards = rewards(json!({"http": {"url": url, "retries": 0}}));
        let row = row(None);
        let error = told(&rewards.judge(&[&row, &row], &["a", "b"]).unwrap_err());
        for part in parts {
            assert!(error.contains(part), "{reply}: {error}");
        }
    }
    let nobody = rewards(json!({"http": {"url": "http://127.0.0.1:1", "retries": 1}}));
    let error = reward(&nobody, None, "t").unwrap_err();
    assert!(error.contains("http://127.0.0.1:1"), "{error}");
}
