//! A server that behaves as it is told.

use std::collections::BTreeMap;
use std::io::{BufRead, BufReader, Read, Write};
use std::net::{TcpListener, TcpStream};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::thread;
use std::time::{Duration, Instant};

use ruminate_datasets::teacher::{KeySource, TeacherConfig};
use serde_json::{Value, json};

/// A request as the server sees it.
#[derive(Clone)]
pub(crate) struct Seen {
    pub(crate) at: Instant,
    pub(crate) head: String,
    pub(crate) body: Value,
    /// How many requests with this prompt came before.
    pub(crate) earlier: usize,
}

impl Seen {
    /// The last message, or the text that is to be completed.
    pub(crate) fn prompt(&self) -> &str {
        let message = self.body["messages"].as_array().and_then(|messages| messages.last());
        message.map_or(&self.body["prompt"], |message| &message["content"]).as_str().unwrap()
    }
}

pub(crate) enum Act {
    /// Status, further header lines, body.
    Reply(u16, &'static str, String),
    /// As `Reply`, with status 200 and any bytes.
    Bytes(&'static str, Vec<u8>),
    /// Promises more than it sends.
    Cut(String),
    /// Closes the connection.
    Close,
    /// Thinks first.
    Slow(Duration, Box<Act>),
}

impl Act {
    /// A chat completion with these texts.
    pub(crate) fn say(texts: &[&str]) -> Self {
        Self::Reply(200, "", completion(texts).to_string())
    }

    /// Completions of plain text.
    pub(crate) fn write(texts: &[&str]) -> Self {
        let mut all = completion(texts);
        for (choice, text) in all["choices"].as_array_mut().unwrap().iter_mut().zip(texts) {
            *choice =
                json!({"index": choice["index"], "text": text, "finish_reason": "stop", "logprobs": null});
        }
        Self::Reply(200, "", all.to_string())
    }

    pub(crate) fn slow(millis: u64, act: Act) -> Self {
        Self::Slow(Duration::from_millis(millis), Box::new(act))
    }
}

pub(crate) fn completion(texts: &[&str]) -> Value {
    let choice = |(index, text): (usize, &&str)| {
        json!({"index": index, "message": {"role": "assistant", "content": text, "refusal": null},
               "finish_reason": "stop", "logprobs": null})
    };
    let choices: Vec<Value> = texts.iter().enumerate().map(choice).collect();
    json!({"id": "x", "object": "chat.completion", "created": 1, "choices": choices,
           "usage": {"prompt_tokens": 10, "completion_tokens": texts.len(), "total_tokens": 10 + texts.len()}})
}

#[derive(Default)]
struct Books {
    seen: Mutex<Vec<Seen>>,
    by_prompt: Mutex<BTreeMap<String, usize>>,
    now: AtomicUsize,
    most: AtomicUsize,
}

pub(crate) struct Stub {
    address: String,
    books: Arc<Books>,
}

impl Stub {
    pub(crate) fn start(act: impl Fn(&Seen) -> Act + Send + Sync + 'static) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let address = format!("http://{}/v1", listener.local_addr().unwrap());
        let books = Arc::new(Books::default());
        let (act, shared) = (Arc::new(act), books.clone());
        thread::spawn(move || {
            for stream in listener.incoming() {
                let (act, books) = (act.clone(), shared.clone());
                thread::spawn(move || serve(stream.unwrap(), &*act, &books));
            }
        });
        Self { address, books }
    }

    pub(crate) fn address(&self) -> &str {
        &self.address
    }

    pub(crate) fn config(&self) -> TeacherConfig {
        config(&self.address)
    }

    pub(crate) fn seen(&self) -> Vec<Seen> {
        self.books.seen.lock().unwrap().clone()
    }

    pub(crate) fn forget(&self) {
        self.books.seen.lock().unwrap().clear();
    }

    /// The most requests at a time.
    pub(crate) fn most(&self) -> usize {
        self.books.most.load(Ordering::SeqCst)
    }
}

/// Settings without waits.
pub(crate) fn config(address: &str) -> TeacherConfig {
    TeacherConfig {
        base_url: address.into(),
        model: "stub".into(),
        key: KeySource::None,
        requests_per_minute: 0.0,
        tokens_per_minute: 0.0,
        backoff_secs: 0.001,
        longest_backoff_secs: 0.01,
        timeout_secs: 20.0,
        ..TeacherConfig::default()
    }
}

/// Answers the requests of a connection until it is closed.
fn serve(stream: TcpStream, act: &dyn Fn(&Seen) -> Act, books: &Books) {
    let mut reader = BufReader::new(stream.try_clone().unwrap());
    let mut stream = stream;
    while let Some((head, body)) = read(&mut reader) {
        let now = books.now.fetch_add(1, Ordering::SeqCst) + 1;
        books.most.fetch_max(now, Ordering::SeqCst);
        let mut seen = Seen { at: Instant::now(), head, body, earlier: 0 };
        {
            let mut by_prompt = books.by_prompt.lock().unwrap();
            let count = by_prompt.entry(seen.prompt().to_string()).or_default();
            seen.earlier = *count;
            *count += 1;
        }
        books.seen.lock().unwrap().push(seen.clone());
        let mut act = act(&seen);
        while let Act::Slow(time, then) = act {
            thread::sleep(time);
            act = *then;
        }
        // Before the reply, after which the next request may come.
        books.now.fetch_sub(1, Ordering::SeqCst);
        let (status, headers, body, promised) = match act {
            Act::Reply(status, headers, body) => {
                let len = body.len();
                (status, headers, body.into_bytes(), len)
            }
            Act::Bytes(headers, body) => {
                let len = body.len();
                (200, headers, body, len)
            }
            Act::Cut(body) => {
                let len = body.len() + 100;
                (200, "", body.into_bytes(), len)
            }
            Act::Close | Act::Slow(..) => return,
        };
        let head = format!("HTTP/1.1 {status} X\r\ncontent-length: {promised}\r\n{headers}\r\n");
        let reply = [head.as_bytes(), &body].concat();
        if stream.write_all(&reply).is_err() || promised != body.len() {
            return;
        }
    }
}

fn read(reader: &mut BufReader<TcpStream>) -> Option<(String, Value)> {
    let mut head = String::new();
    while !head.ends_with("\r\n\r\n") {
        if reader.read_line(&mut head).ok()? == 0 {
            return None;
        }
    }
    let lower = head.to_ascii_lowercase();
    let length = lower.split("content-length:").nth(1)?.lines().next()?.trim().parse().unwrap();
    let mut body = vec![0; length];
    reader.read_exact(&mut body).ok()?;
    Some((head, serde_json::from_slice(&body).unwrap()))
}
