//! The server as clients see it, around a small Llama with random parameters.

use std::io::{Read, Write};
use std::net::{Shutdown, SocketAddr, TcpStream};
use std::path::{Path, PathBuf};
use std::sync::mpsc::channel;
use std::thread;
use std::time::{Duration, Instant};

use ruminate_models::{
    Example, Generate, GenerationConfig, Interrupt, Model, ModelConfig, Policy, Sampling, ScoreOptions,
    Strategy, TokenId, Tokenizer, derive_seed,
};
use ruminate_serve::{Error, ServeConfig, serve};
use serde_json::{Value, json};
use tch::{Device, Kind};

const TEMPLATE: &str =
    "{% for message in messages %}{{ message.role + ' : ' + message.content + ' ' }}{% endfor %}assistant :";
const PROMPT: &str = "Question : what is the answer ?";

/// A model's folder, and the model of it.
fn model(files: &tempfile::TempDir) -> Model {
    let world = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../fixtures/world/rise/llama");
    let folder: PathBuf = files.path().into();
    let config = ModelConfig::open(&world).unwrap();
    Model::new(config, Kind::Float, Device::Cpu, 7).unwrap().save(&folder).unwrap();
    std::fs::copy(world.join("tokenizer.json"), folder.join("tokenizer.json")).unwrap();
    let text = std::fs::read_to_string(world.join("tokenizer_config.json")).unwrap();
    let mut tokenizer: Value = serde_json::from_str(&text).unwrap();
    tokenizer["chat_template"] = TEMPLATE.into();
    std::fs::write(folder.join("tokenizer_config.json"), tokenizer.to_string()).unwrap();
    let mut model = Model::load(&folder, Kind::Float, Device::Cpu).unwrap();
    model.set_tokenizer(Tokenizer::open(&folder).unwrap());
    model
}

fn config() -> ServeConfig {
    ServeConfig { port: 0, ..ServeConfig::default() }
}

/// Runs a server, lets clients work with it, stops it, and returns how it ended and after what time.
fn with_server(config: ServeConfig, clients: impl FnOnce(SocketAddr, &Interrupt)) -> Duration {
    let (stop, (sender, ready)) = (Interrupt::default(), channel());
    thread::scope(|scope| {
        let server = {
            let stop = stop.clone();
            // Tensors stay on the thread that made them.
            scope.spawn(move || {
                let files = tempfile::tempdir().unwrap();
                let ready = |address| sender.send(address).unwrap();
                serve(&model(&files), "tiny", &config, ready, &stop)
            })
        };
        let address = ready.recv().unwrap();
        /// Stops the server also when a client has failed.
        struct Stopped<'a>(&'a Interrupt);
        impl Drop for Stopped<'_> {
            fn drop(&mut self) {
                self.0.raise();
            }
        }
        {
            let _stopped = Stopped(&stop);
            clients(address, &stop);
        }
        let since = Instant::now();
        server.join().unwrap().unwrap();
        since.elapsed()
    })
}

/// An open request.
fn open(address: SocketAddr, method: &str, path: &str, headers: &str, body: &[u8]) -> TcpStream {
    let mut stream = TcpStream::connect(address).unwrap();
    stream.set_read_timeout(Some(Duration::from_secs(120))).unwrap();
    let length = body.len();
    let head = format!(
        "{method} {path} HTTP/1.1\r\nHost: test\r\nConnection: close\r\nContent-Length: {length}\r\n{headers}\r\n"
    );
    stream.write_all(head.as_bytes()).unwrap();
    // The server may answer before it has read all.
    let _ = stream.write_all(body);
    stream
}

/// Status and body of an answer, put together where it comes in chunks.
fn read(mut stream: TcpStream) -> (u16, String) {
    let mut answer = vec![];
    stream.read_to_end(&mut answer).unwrap();
    let answer = String::from_utf8(answer).unwrap();
    let (head, body) = answer.split_once("\r\n\r\n").unwrap_or_else(|| panic!("no head: {answer:?}"));
    let status = head.split(' ').nth(1).unwrap().parse().unwrap();
    if !head.to_lowercase().contains("transfer-encoding: chunked") {
        return (status, body.to_owned());
    }
    let (mut rest, mut whole) = (body.as_bytes(), vec![]);
    while let Some(at) = rest.windows(2).position(|two| two == b"\r\n") {
        let length = usize::from_str_radix(std::str::from_utf8(&rest[..at]).unwrap(), 16).unwrap();
        whole.extend_from_slice(&rest[at + 2..at + 2 + length]);
        rest = &rest[at + 4 + length..];
    }
    (status, String::from_utf8(whole).unwrap())
}

fn send(address: SocketAddr, method: &str, path: &str, headers: &str, body: &[u8]) -> (u16, Value) {
    let (status, body) = read(open(address, method, path, headers, body));
    (status, serde_json::from_str(&body).unwrap_or(Value::String(body)))
}

fn post(address: SocketAddr, path: &str, body: &Value) -> (u16, Value) {
    send(address, "POST", path, "", body.to_string().as_bytes())
}

fn complete(address: SocketAddr, body: &Value) -> Value {
    let (status, answer) = post(address, "/v1/completions", body);
    assert_eq!(status, 200, "{answer}");
    answer
}

/// The pieces of a stream, which must end as it should.
fn pieces(address: SocketAddr, path: &str, body: &Value) -> Vec<Value> {
    let (status, text) = read(open(address, "POST", path, "", body.to_string().as_bytes()));
    assert_eq!(status, 200, "{text}");
    let mut data: Vec<&str> = text.lines().filter_map(|line| line.strip_prefix("data: ")).collect();
    assert_eq!(data.pop(), Some("[DONE]"), "{text}");
    data.into_iter().map(|piece| serde_json::from_str(piece).unwrap()).collect()
}

/// The texts that the model itself writes.
fn written(model: &Model, prompt: &str, seed: u64, config: &GenerationConfig) -> Vec<String> {
    let tokenizer = model.tokenizer().unwrap();
    let prompts = [tokenizer.encode(prompt).unwrap()];
    let written = model.generate(&prompts, config, &[seed]).unwrap();
    written[0].iter().map(|of| tokenizer.decode(&of.ids, true).unwrap()).collect()
}

fn texts(answer: &Value) -> Vec<String> {
    let choices = answer["choices"].as_array().unwrap();
    choices.iter().map(|choice| choice["text"].as_str().unwrap().to_owned()).collect()
}

#[test]
fn completions_are_what_the_model_writes() {
    let files = tempfile::tempdir().unwrap();
    let model = model(&files);
    with_server(config(), |address, _| {
        let greedy = GenerationConfig { max_new_tokens: 16, ..GenerationConfig::default() };
        let answer = complete(address, &json!({"model": "tiny", "prompt": PROMPT}));
        assert_eq!(texts(&answer), written(&model, PROMPT, 1, &greedy));
        let choice = &answer["choices"][0];
        assert_eq!((&choice["finish_reason"], &choice["logprobs"]), (&json!("length"), &Value::Null));
        let prompt_tokens = model.tokenizer().unwrap().encode(PROMPT).unwrap().len();
        let usage = json!({
            "prompt_tokens": prompt_tokens, "completion_tokens": 16, "total_tokens": prompt_tokens + 16,
        });
        assert_eq!((&answer["usage"], &answer["object"]), (&usage, &json!("text_completion")));

        // Several answers to several prompts, drawn.
        let sampled = GenerationConfig {
            strategy: Strategy::Sample(Sampling {
                temperature: 0.8,
                top_p: Some(0.9),
                ..Sampling::default()
            }),
            samples_per_prompt: 2,
            ..greedy
        };
        let asked = json!({
            "prompt": [PROMPT, "the answer"], "n": 2, "seed": 11, "temperature": 0.8, "top_p": 0.9,
        });
        let first = written(&model, PROMPT, 11, &sampled);
        let second = written(&model, "the answer", derive_seed(11, &[1]), &sampled);
        assert_eq!(texts(&complete(address, &asked)), [first, second].concat());

        // A stop string ends an answer before it, and other limits share its batch.
        let drawn = |further: Value| {
            let mut asked = json!({"prompt": PROMPT, "max_tokens": 30, "temperature": 1.5, "seed": 4});
            asked.as_object_mut().unwrap().extend(further.as_object().unwrap().clone());
            asked
        };
        let whole = texts(&complete(address, &drawn(json!({}))));
        let word = whole[0].split_whitespace().nth(5).unwrap();
        let cut = complete(address, &drawn(json!({"stop": [word, "zzz"]})));
        assert_eq!(texts(&cut)[0], whole[0][..whole[0].find(word).unwrap()]);
        assert_eq!(cut["choices"][0]["finish_reason"], "stop");
        assert!(cut["usage"]["completion_tokens"].as_u64().unwrap() < 30);

        // Token ids are a prompt, too.
        let ids = model.tokenizer().unwrap().encode(PROMPT).unwrap();
        assert_eq!(texts(&complete(address, &drawn(json!({"prompt": ids})))), whole);
    });
}

#[test]
fn pieces_of_a_stream_are_the_answer() {
    with_server(config(), |address, _| {
        let asked = |stream: bool| {
            let mut asked = json!({
                "prompt": [PROMPT, "the"], "n": 2, "seed": 5, "temperature": 1.0, "max_tokens": 20, "logprobs": 2,
            });
            if stream {
                asked["stream"] = true.into();
                asked["stream_options"] = json!({"include_usage": true});
            }
            asked
        };
        let whole = complete(address, &asked(false));
        let mut parts = pieces(address, "/v1/completions", &asked(true));
        let usage = parts.pop().unwrap();
        assert_eq!((&usage["usage"], &usage["choices"]), (&whole["usage"], &json!([])));
        assert!(parts.len() > 8, "{}", parts.len());
        for choice in whole["choices"].as_array().unwrap() {
            let own: Vec<&Value> = parts
                .iter()
                .map(|part| &part["choices"][0])
                .filter(|of| of["index"] == choice["index"])
                .collect();
            let text: String = own.iter().map(|of| of["text"].as_str().unwrap()).collect();
            assert_eq!(text, choice["text"].as_str().unwrap());
            let tokens: Vec<&Value> =
                own.iter().filter_map(|of| of["logprobs"]["tokens"].as_array()).flatten().collect();
            assert_eq!(json!(tokens), choice["logprobs"]["tokens"]);
            let finish: Vec<&Value> =
                own.iter().map(|of| &of["finish_reason"]).filter(|of| !of.is_null()).collect();
            assert_eq!(finish, [&choice["finish_reason"]]);
        }
    });
}

#[test]
fn log_probabilities_are_those_of_the_model() {
    let files = tempfile::tempdir().unwrap();
    let model = model(&files);
    with_server(config(), |address, _| {
        // As evaluation harnesses ask: the prompt again, with nothing written to it.
        let asked = json!({"prompt": [PROMPT, "the answer"], "max_tokens": 0, "echo": true, "logprobs": 1});
        let answer = complete(address, &asked);
        for (prompt, choice) in [PROMPT, "the answer"].iter().zip(answer["choices"].as_array().unwrap()) {
            assert_eq!(choice["text"], *prompt);
            let ids = model.tokenizer().unwrap().encode(prompt).unwrap();
            let example = Example { prompt: ids[..1].to_vec(), target: ids[1..].to_vec() };
            let scores = tch::no_grad(|| model.score(&[example], ScoreOptions::default())).unwrap();
            let expected: Vec<f64> = Vec::try_from(scores.log_probs.view(-1).to_kind(Kind::Double)).unwrap();
            let told = choice["logprobs"]["token_logprobs"].as_array().unwrap();
            assert!(told[0].is_null() && told.len() == ids.len(), "{told:?}");
            for (told, expected) in told[1..].iter().zip(&expected) {
                assert!((told.as_f64().unwrap() - expected).abs() < 1e-4, "{told} {expected}");
            }
            // The best token is among those that are told.
            let top = choice["logprobs"]["top_logprobs"].as_array().unwrap();
            assert!(top[1..].iter().all(|of| (1..=2).contains(&of.as_object().unwrap().len())), "{top:?}");
            let offsets = choice["logprobs"]["text_offset"].as_array().unwrap();
            assert!(offsets.iter().is_sorted_by_key(|of| of.as_u64()), "{offsets:?}");
        }
        // Each token that was written is told, the one that ends an answer as well: harnesses count on it.
        let mut ends = 0;
        for seed in 0..40 {
            let asked = json!({
                "prompt": PROMPT, "seed": seed, "temperature": 3.0, "max_tokens": 8, "logprobs": 0, "echo": true,
            });
            let answer = complete(address, &asked);
            let (choice, usage) = (&answer["choices"][0], &answer["usage"]);
            let tokens = choice["logprobs"]["tokens"].as_array().unwrap();
            assert_eq!(tokens.len() as u64, usage["total_tokens"].as_u64().unwrap());
            if choice["finish_reason"] == "stop" {
                assert_eq!(tokens.last().unwrap(), "</s>");
                assert!(!choice["text"].as_str().unwrap().contains("</s>"));
                ends += 1;
            }
        }
        assert!(ends > 0);
        // What is written has the log-probabilities under which it was chosen, and greedy takes the best.
        let answer = complete(address, &json!({"prompt": PROMPT, "max_tokens": 6, "logprobs": 3}));
        let told = &answer["choices"][0]["logprobs"];
        for (of, top) in
            told["token_logprobs"].as_array().unwrap().iter().zip(told["top_logprobs"].as_array().unwrap())
        {
            let best = top.as_object().unwrap().values().filter_map(Value::as_f64).fold(f64::MIN, f64::max);
            assert_eq!(of.as_f64().unwrap(), best);
        }
    });
}

#[test]
fn dialogues_go_through_the_chat_template() {
    let files = tempfile::tempdir().unwrap();
    let model = model(&files);
    with_server(config(), |address, _| {
        let messages = json!([
            {"role": "system", "content": "the answer"},
            {"role": "user", "content": [{"type": "text", "text": "what is the answer ?"}]},
        ]);
        let prompt = "system : the answer user : what is the answer ? assistant :";
        let how = GenerationConfig { max_new_tokens: 9, ..GenerationConfig::default() };
        let ids: Vec<TokenId> = model.tokenizer().unwrap().encode_plain(prompt).unwrap();
        let expected = model.generate(&[ids], &how, &[1]).unwrap()[0][0].ids.clone();
        let expected = model.tokenizer().unwrap().decode(&expected, true).unwrap();
        let asked = json!({"model": "tiny", "messages": messages, "max_completion_tokens": 9, "logprobs": true, "top_logprobs": 2});
        let (status, answer) = post(address, "/v1/chat/completions", &asked);
        assert_eq!(status, 200, "{answer}");
        let choice = &answer["choices"][0];
        assert_eq!(choice["message"], json!({"role": "assistant", "content": expected, "refusal": null}));
        let tokens = choice["logprobs"]["content"].as_array().unwrap();
        assert_eq!((tokens.len(), tokens[0]["top_logprobs"].as_array().unwrap().len()), (9, 2));
        let mut streamed = asked.clone();
        streamed["stream"] = true.into();
        let parts = pieces(address, "/v1/chat/completions", &streamed);
        assert_eq!(parts[0]["choices"][0]["delta"]["role"], "assistant");
        let text: String =
            parts.iter().filter_map(|part| part["choices"][0]["delta"]["content"].as_str()).collect();
        assert_eq!(text, expected);
    });
}

#[test]
fn what_is_wrong_with_a_request_is_told() {
    let config = ServeConfig { max_request_bytes: 4096, max_n: 3, ..config() };
    with_server(config, |address, _| {
        let refused = |path: &str, body: &str, status: u16, message: &str| {
            let (got, answer) = send(address, "POST", path, "", body.as_bytes());
            assert_eq!(got, status, "{body:.200}: {answer}");
            let error = answer["error"]["message"].as_str().unwrap_or_else(|| panic!("{answer}"));
            assert!(error.contains(message), "{body:.200}: {error}");
        };
        let completions = "/v1/completions";
        for (body, message) in [
            ("", "not JSON"),
            ("{\"prompt\": ", "not JSON"),
            ("[1]", "must be a JSON object"),
            ("\u{0}\u{1}", "not JSON"),
            ("{}", "`prompt` is missing"),
            (r#"{"prompt": null}"#, "`prompt` is missing"),
            (r#"{"prompt": {}}"#, "`prompt`"),
            (r#"{"prompt": []}"#, "`prompt`"),
            (r#"{"prompt": [96]}"#, "token 96"),
            (r#"{"prompt": [-1]}"#, "token -1"),
            (r#"{"prompt": "the", "max_tokens": -1}"#, "`max_tokens` is -1"),
            (r#"{"prompt": "the", "max_tokens": 512}"#, "context length is 512"),
            (r#"{"prompt": "the", "max_tokens": 18446744073709551615}"#, "context length is 512"),
            (r#"{"prompt": "the", "n": 0}"#, "`n` is 0"),
            (r#"{"prompt": "the", "n": 4}"#, "`n` is 4"),
            (r#"{"prompt": "the", "temperature": -1}"#, "`temperature`"),
            (r#"{"prompt": "the", "temperature": "hot"}"#, "`temperature` is \"hot\""),
            (r#"{"prompt": "the", "top_p": 1.5}"#, "`top_p`"),
            (r#"{"prompt": "the", "top_k": -2}"#, "`top_k`"),
            (r#"{"prompt": "the", "logprobs": 21}"#, "`logprobs`"),
            (r#"{"prompt": "the", "stop": ""}"#, "`stop`"),
            (r#"{"prompt": "the", "stream_options": {}}"#, "`stream_options`"),
            (r#"{"prompt": "the", "presence_penalty": 0.5}"#, "`presence_penalty` is 0.5"),
            (r#"{"prompt": "the", "logit_bias": {"5": 1}}"#, "`logit_bias`"),
            (r#"{"prompt": "the", "tempertur": 1}"#, "`tempertur` is not known"),
        ] {
            refused(completions, body, 400, message);
        }
        refused(completions, r#"{"model": "gpt-5", "prompt": "the"}"#, 404, "this server has `tiny`");
        let chat = "/v1/chat/completions";
        for (body, message) in [
            ("{}", "`messages` is missing"),
            (r#"{"messages": []}"#, "`messages` is empty"),
            (r#"{"messages": ["hello"]}"#, "`messages`"),
            (r#"{"messages": [{"role": "user"}]}"#, "[0]: `role` or `content` is missing"),
            (r#"{"messages": [{"role": "user", "content": [{"type": "image_url"}]}]}"#, "[0]"),
            (
                r#"{"messages": [{"role": "user", "content": "a"}], "tools": [{"type": "function"}]}"#,
                "`tools`",
            ),
            (r#"{"messages": [{"role": "user", "content": "a"}], "top_logprobs": 2}"#, "`top_logprobs`"),
            (r#"{"messages": [{"role": "user", "content": "a"}], "max_tokens": 0}"#, "`max_tokens` is 0"),
            (
                r#"{"messages": [{"role": "user", "content": "a"}], "max_tokens": 1, "max_completion_tokens": 2}"#,
                "contradicts",
            ),
        ] {
            refused(chat, body, 400, message);
        }
        // Too large: also where the client goes on and on.
        let large = json!({"prompt": "the ".repeat(5000)}).to_string();
        refused(completions, &large, 413, "more than 4096 bytes");
        let endless = open(address, "POST", completions, "", &vec![b' '; 4 << 20]);
        let mut answer = String::new();
        let _ = { endless }.read_to_string(&mut answer);
        assert!(answer.is_empty() || answer.starts_with("HTTP/1.1 413"), "{answer:.200}");

        let (status, answer) = send(address, "GET", completions, "", b"");
        assert!(status == 405 && answer["error"]["message"].is_string(), "{status} {answer}");
        let (status, answer) = send(address, "GET", "/v1/embeddings", "", b"");
        assert!(status == 404 && answer["error"]["code"] == "unknown_url", "{status} {answer}");
        // Not HTTP at all; and it still works.
        let mut noise = TcpStream::connect(address).unwrap();
        noise.write_all(b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03\r\n\r\n").unwrap();
        drop(noise);
        let (status, models) = send(address, "GET", "/v1/models", "", b"");
        assert_eq!((status, &models["data"][0]["id"]), (200, &json!("tiny")));
        assert_eq!(send(address, "GET", "/v1/models/tiny", "", b"").0, 200);
        assert_eq!(send(address, "GET", "/v1/models/other", "", b"").0, 404);
        complete(address, &json!({"prompt": "the"}));
    });
}

#[test]
fn a_key_is_asked_for() {
    // Cargo sets this variable for tests.
    let config = ServeConfig { api_key_env: Some("CARGO_PKG_NAME".into()), ..config() };
    with_server(config, |address, _| {
        let asked = br#"{"prompt": "the"}"#;
        let with = |header: &str| send(address, "POST", "/v1/completions", header, asked);
        for header in [
            "",
            "Authorization: Bearer wrong\r\n",
            "Authorization: Bearer \r\n",
            "Authorization: Basic cnVtaW5hdGUtc2VydmU=\r\n",
        ] {
            let (status, answer) = with(header);
            assert_eq!((status, &answer["error"]["code"]), (401, &json!("invalid_api_key")), "{header}");
        }
        assert_eq!(with("Authorization: Bearer ruminate-serve\r\n").0, 200);
        assert_eq!(with("authorization: bearer ruminate-serve\r\n").0, 200);
        // Who only looks whether the server is there needs none.
        assert_eq!(send(address, "GET", "/health", "", b"").0, 200);
        assert_eq!(send(address, "GET", "/v1/models", "", b"").0, 401);
    });
}

#[test]
fn clients_that_hang_up_give_their_places_back() {
    let config = ServeConfig { max_rows: 1, ..config() };
    with_server(config, |address, _| {
        let long = json!({"prompt": "the", "max_tokens": 500, "stream": true}).to_string();
        for _ in 0..5 {
            let mut stream = open(address, "POST", "/v1/completions", "", long.as_bytes());
            let mut first = [0; 64];
            let _ = stream.read(&mut first).unwrap();
            // Meanwhile there is no place.
            let (status, answer) = post(address, "/v1/completions", &json!({"prompt": "the"}));
            assert!(status == 429 && answer["error"]["code"] == "rate_limit_exceeded", "{status} {answer}");
            stream.shutdown(Shutdown::Both).unwrap();
            let since = Instant::now();
            while post(address, "/v1/completions", &json!({"prompt": "the", "max_tokens": 1})).0 != 200 {
                assert!(since.elapsed() < Duration::from_secs(30), "the place was not given back");
                thread::sleep(Duration::from_millis(5));
            }
        }
    });
}

#[test]
fn two_hundred_requests_at_once() {
    let asked = |i: u64| {
        let limit = 3 + i % 17;
        json!({"prompt": format!("{PROMPT} {}", "the ".repeat(i as usize % 5)), "seed": i, "temperature": 1.0, "max_tokens": limit})
    };
    let run = |together: bool| {
        let mut answers = vec![];
        with_server(config(), |address, _| {
            answers = if together {
                thread::scope(|scope| {
                    let clients: Vec<_> =
                        (0..200).map(|i| scope.spawn(move || complete(address, &asked(i)))).collect();
                    clients.into_iter().map(|client| texts(&client.join().unwrap())).collect()
                })
            } else {
                (0..200).map(|i| texts(&complete(address, &asked(i)))).collect()
            };
        });
        answers
    };
    assert_eq!(run(true), run(false), "company in a batch changes no answer");
}

#[test]
fn a_request_has_an_end() {
    let config = ServeConfig { request_secs: 1, ..config() };
    with_server(config, |address, _| {
        // Half a request.
        let mut half = TcpStream::connect(address).unwrap();
        half.write_all(b"POST /v1/completions HTTP/1.1\r\nHost: test\r\nContent-Length: 100\r\n\r\n{")
            .unwrap();
        half.set_read_timeout(Some(Duration::from_secs(60))).unwrap();
        let mut answer = [0; 512];
        let length = half.read(&mut answer).unwrap();
        assert!(
            answer[..length].starts_with(b"HTTP/1.1 504"),
            "{}",
            String::from_utf8_lossy(&answer[..length])
        );
    });
}

#[test]
fn a_server_that_is_stopped_ends_what_is_under_way() {
    let long = json!({"prompt": "the", "max_tokens": 400}).to_string();
    // With time, the answer is given.
    with_server(config(), |address, stop| {
        let stream = open(address, "POST", "/v1/completions", "", long.as_bytes());
        thread::sleep(Duration::from_millis(100));
        stop.raise();
        let (status, answer) = read(stream);
        assert_eq!(status, 200, "{answer}");
    });
    // Without, an error is.
    let mut ends = vec![];
    let took = with_server(ServeConfig { grace_secs: 0, ..config() }, |address, stop| {
        let many = json!({"prompt": vec!["the"; 64], "max_tokens": 500}).to_string();
        let whole = open(address, "POST", "/v1/completions", "", many.as_bytes());
        let stream = json!({"prompt": "the", "max_tokens": 500, "stream": true}).to_string();
        let stream = open(address, "POST", "/v1/completions", "", stream.as_bytes());
        thread::sleep(Duration::from_millis(200));
        stop.raise();
        ends = [whole, stream].map(read).to_vec();
    });
    let (status, answer) = &ends[0];
    assert!(*status == 503 && answer.contains("shutting down"), "{status} {answer}");
    let (_, stream) = &ends[1];
    assert!(stream.contains("shutting down") && !stream.contains("[DONE]"), "{stream}");
    assert!(took < Duration::from_secs(20), "{took:?}");
}

#[test]
fn a_server_that_cannot_start_says_why() {
    let files = tempfile::tempdir().unwrap();
    let model = model(&files);
    let taken = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let port = taken.local_addr().unwrap().port();
    let start = |config: ServeConfig| {
        serve(&model, "tiny", &config, |_| panic!("it is not ready"), &Interrupt::default())
    };
    assert!(matches!(start(ServeConfig { port, ..config() }), Err(Error::Bind { .. })));
    assert!(matches!(
        start(ServeConfig { host: "0.0.0.0".into(), ..config() }),
        Err(Error::KeyNeeded { .. })
    ));
    let error = start(ServeConfig { context_length: Some(513), ..config() }).unwrap_err();
    assert!(error.to_string().contains("the model reads 512 tokens"), "{error}");
    // One that was asked to stop before it began ends at once.
    let stop = Interrupt::default();
    stop.raise();
    serve(&model, "tiny", &config(), |_| (), &stop).unwrap();
}
