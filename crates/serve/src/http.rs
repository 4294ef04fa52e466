//! What stands at which address.

use std::hash::{BuildHasher, RandomState};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
use std::sync::mpsc::Sender;
use std::time::Duration;

use axum::Router;
use axum::extract::{Extension, Path, Request, State};
use axum::http::{StatusCode, header};
use axum::middleware::{Next, from_fn_with_state};
use axum::response::{IntoResponse, Response};
use axum::routing::{get, post};
use futures_util::StreamExt;
use ruminate_models::{Interrupt, derive_seed};
use serde_json::{Value, json};
use tokio::sync::mpsc::unbounded_channel;
use tokio::time::{Instant, timeout_at};

use crate::answer::{Frame, Progress, unix_time};
use crate::engine::Job;
use crate::error::{ApiError, json_response};
use crate::log_line::LogLine;
use crate::places::Places;
use crate::request::{Form, Served, Task};
use crate::stream::Running;

/// A request that is too large is read to its end, so that the client hears of it, if it is at most this many times as large as it may be.
const READ_ON: usize = 16;

/// The common state of all requests.
#[derive(Debug)]
pub(crate) struct Api {
    served: Arc<Served>,
    name: Arc<str>,
    key: Option<String>,
    jobs: Sender<Job>,
    /// Answers under way.
    taken: Arc<AtomicUsize>,
    /// Raised when the server stops.
    closing: Interrupt,
    created: u64,
    /// Names requests, and draws seeds for those that have none.
    requests: AtomicU64,
    entropy: u64,
}

impl Api {
    pub(crate) fn new(served: Served, key: Option<String>, jobs: Sender<Job>, closing: Interrupt) -> Self {
        Self {
            name: served.name.as_str().into(),
            served: Arc::new(served),
            key,
            jobs,
            taken: Arc::default(),
            closing,
            created: unix_time(),
            requests: AtomicU64::new(0),
            // The standard library draws its keys from the system's generator.
            entropy: RandomState::new().hash_one(std::process::id()),
        }
    }
}

pub(crate) fn router(api: Arc<Api>) -> Router {
    Router::new()
        .route("/health", get(health))
        .route("/v1/models", get(models))
        .route("/v1/models/{*name}", get(model))
        .route("/v1/completions", post(completions))
        .route("/v1/chat/completions", post(chat))
        .fallback(unknown_path)
        .method_not_allowed_fallback(wrong_method)
        .layer(from_fn_with_state(Arc::clone(&api), around))
        .with_state(api)
}

/// Checks the key, and writes the line of the log.
async fn around(State(api): State<Arc<Api>>, mut request: Request, next: Next) -> Response {
    let line = Arc::new(LogLine::new(request.method().as_str(), request.uri().path()));
    request.extensions_mut().insert(Arc::clone(&line));
    let response = match api.check_key(&request) {
        Ok(()) => next.run(request).await,
        Err(error) => error.into_response(),
    };
    let streams = |value: &axum::http::HeaderValue| value.as_bytes().starts_with(b"text/event-stream");
    if !response.headers().get(header::CONTENT_TYPE).is_some_and(streams) {
        line.set_status(response.status().as_u16());
    }
    response
}

async fn health(State(api): State<Arc<Api>>) -> Result<Response, ApiError> {
    match api.closing.is_raised() {
        true => Err(ApiError::closing()),
        false => Ok(json_response(StatusCode::OK, &json!({"status": "ok"}))),
    }
}

async fn models(State(api): State<Arc<Api>>) -> Response {
    json_response(StatusCode::OK, &json!({"object": "list", "data": [api.model()]}))
}

async fn model(State(api): State<Arc<Api>>, Path(name): Path<String>) -> Result<Response, ApiError> {
    match name == *api.name {
        true => Ok(json_response(StatusCode::OK, &api.model())),
        false => Err(ApiError::unknown_model(&name, &api.name)),
    }
}

async fn completions(
    State(api): State<Arc<Api>>,
    Extension(line): Extension<Arc<LogLine>>,
    request: Request,
) -> Result<Response, ApiError> {
    api.answer(Form::Completion, request, line).await
}

async fn chat(
    State(api): State<Arc<Api>>,
    Extension(line): Extension<Arc<LogLine>>,
    request: Request,
) -> Result<Response, ApiError> {
    api.answer(Form::Chat, request, line).await
}

async fn unknown_path(request: Request) -> ApiError {
    ApiError::unknown_path(request.method().as_str(), request.uri().path())
}

async fn wrong_method(request: Request) -> ApiError {
    ApiError::wrong_method(request.method().as_str(), request.uri().path())
}

impl Api {
    fn model(&self) -> Value {
        json!({"id": &*self.name, "object": "model", "created": self.created, "owned_by": "ruminate"})
    }

    fn check_key(&self, request: &Request) -> Result<(), ApiError> {
        let Some(key) = self.key.as_deref().filter(|_| request.uri().path() != "/health") else {
            return Ok(());
        };
        let given = request.headers().get(header::AUTHORIZATION).and_then(|value| value.to_str().ok());
        let given = given.and_then(|value| value.split_once(' '));
        match given.filter(|(scheme, _)| scheme.eq_ignore_ascii_case("bearer")) {
            Some((_, given)) if equal(given.trim().as_bytes(), key.as_bytes()) => Ok(()),
            Some(_) => Err(ApiError::wrong_key("the API key is wrong")),
            None => Err(ApiError::wrong_key("send the API key in the header `Authorization: Bearer KEY`")),
        }
    }

    /// The body of a request.
    async fn body(&self, request: Request) -> Result<Vec<u8>, ApiError> {
        let most = self.served.config.max_request_bytes;
        let (mut body, mut length) = (vec![], 0usize);
        let mut chunks = request.into_body().into_data_stream();
        while let Some(chunk) = chunks.next().await {
            let chunk =
                chunk.map_err(|error| ApiError::invalid(format!("the request breaks off: {error}")))?;
            length = length.saturating_add(chunk.len());
            if length <= most {
                body.extend_from_slice(&chunk);
            } else if length / READ_ON > most {
                break;
            }
        }
        if length > most { Err(ApiError::too_large(most)) } else { Ok(body) }
    }

    /// Reads a request, hands it to the thread of the model, and answers with what that writes.
    async fn answer(&self, form: Form, request: Request, line: Arc<LogLine>) -> Result<Response, ApiError> {
        let request_secs = self.served.config.request_secs;
        let deadline = Instant::now() + Duration::from_secs(request_secs);
        let body = timeout_at(deadline, self.body(request)).await;
        let body = body.map_err(|_| ApiError::timeout(request_secs))??;
        if self.closing.is_raised() {
            return Err(ApiError::closing());
        }
        let number = self.requests.fetch_add(1, Ordering::Relaxed);
        let (served, seed) = (Arc::clone(&self.served), derive_seed(self.entropy, &[number]));
        // Long texts take a while to become tokens; other requests go on meanwhile.
        let task = tokio::task::spawn_blocking(move || match form {
            Form::Completion => Task::completion(&served, &body, seed),
            Form::Chat => Task::chat(&served, &body, seed),
        });
        let task = task.await.map_err(|error| ApiError::internal(&error))??;
        line.set_prompt_tokens(task.prompt_tokens());

        let most = self.served.config.max_rows;
        let places = Places::take(&self.taken, task.rows(), most).ok_or_else(|| ApiError::busy(most))?;
        let (sender, events) = unbounded_channel();
        let running = Running {
            events,
            progress: Progress::new(&task),
            frame: Frame::new(&task, &self.name, derive_seed(self.entropy, &[number, 1])),
            deadline,
            request_secs,
            include_usage: task.include_usage,
            line,
            _places: places,
        };
        let Task { prompts, seeds, settings, .. } = task;
        let stream = settings.stream;
        let prompts = prompts.into_iter().map(|prompt| prompt.ids).collect();
        self.jobs.send(Job { prompts, seeds, settings, events: sender }).map_err(|_| ApiError::closing())?;
        if stream { Ok(running.events()) } else { running.whole().await }
    }
}

/// Compares in a time that tells nothing about where two keys differ.
fn equal(a: &[u8], b: &[u8]) -> bool {
    a.len() == b.len() && a.iter().zip(b).fold(0, |differ, (a, b)| differ | (a ^ b)) == 0
}
