//! Answers as they come: all at once, or as server-sent events.

use std::collections::VecDeque;
use std::convert::Infallible;
use std::sync::Arc;

use axum::http::StatusCode;
use axum::response::sse::{self, KeepAlive, Sse};
use axum::response::{IntoResponse, Response};
use futures_util::stream;
use serde_json::Value;
use tokio::sync::mpsc::UnboundedReceiver;
use tokio::time::{Instant, timeout_at};

use crate::answer::{Delta, Frame, Progress};
use crate::engine::Event;
use crate::error::{ApiError, json_response};
use crate::log_line::LogLine;
use crate::places::Places;

/// A request whose answers are under way. Dropping it ends them.
pub(crate) struct Running {
    pub(crate) events: UnboundedReceiver<Event>,
    pub(crate) progress: Progress,
    pub(crate) frame: Frame,
    pub(crate) deadline: Instant,
    /// For the message of a request that took too long.
    pub(crate) request_secs: u64,
    pub(crate) include_usage: bool,
    pub(crate) line: Arc<LogLine>,
    /// Given back when the answers are there, or nobody waits for them.
    pub(crate) _places: Places,
}

impl Running {
    /// The next piece of an answer; none when all have ended.
    async fn next(&mut self) -> Result<Option<Delta>, ApiError> {
        while self.progress.left > 0 {
            let event = timeout_at(self.deadline, self.events.recv()).await;
            match event.map_err(|_| ApiError::timeout(self.request_secs))? {
                Some(Event::Prompt { prompt, tokens }) => self.progress.set_prompt_tokens(prompt, tokens),
                Some(Event::Written(written)) => {
                    self.line.add_completion_tokens(written.count);
                    return Ok(Some(self.progress.take(written)));
                }
                Some(Event::Failed(error)) => return Err(error),
                // The thread of the model is gone.
                None => return Err(ApiError::closing()),
            }
        }
        Ok(None)
    }

    /// Waits for all answers.
    pub(crate) async fn whole(mut self) -> Result<Response, ApiError> {
        let mut answers: Vec<Delta> = vec![];
        while let Some(delta) = self.next().await? {
            match answers.iter_mut().find(|answer| answer.index == delta.index) {
                Some(answer) => {
                    answer.text.push_str(&delta.text);
                    answer.tokens.extend(delta.tokens);
                    answer.finish = delta.finish;
                }
                None => answers.push(delta),
            }
        }
        answers.sort_by_key(|answer| answer.index);
        let usage = self.progress.usage();
        Ok(json_response(StatusCode::OK, &self.frame.response(answers, usage)))
    }

    /// Sends pieces as they come.
    pub(crate) fn events(self) -> Response {
        let states = Sending { running: Some(self), ready: VecDeque::new() };
        let events = stream::unfold(states, |mut states| async {
            let event = states.next().await?;
            Some((Ok::<_, Infallible>(event), states))
        });
        // Proxies close connections on which nothing moves.
        Sse::new(events).keep_alive(KeepAlive::default()).into_response()
    }
}

/// A stream of events.
struct Sending {
    /// None when the last event is ready.
    running: Option<Running>,
    ready: VecDeque<sse::Event>,
}

impl Sending {
    async fn next(&mut self) -> Option<sse::Event> {
        if self.ready.is_empty()
            && let Some(running) = &mut self.running
        {
            let status = match running.next().await {
                Ok(Some(delta)) => {
                    self.ready.push_back(event(&running.frame.chunk(delta)));
                    None
                }
                Ok(None) => {
                    if running.include_usage {
                        let usage = running.progress.usage();
                        self.ready.push_back(event(&running.frame.usage_chunk(usage)));
                    }
                    self.ready.push_back(sse::Event::default().data("[DONE]"));
                    Some(StatusCode::OK)
                }
                Err(error) => {
                    self.ready.push_back(event(&error.to_json()));
                    Some(error.status)
                }
            };
            if let Some(status) = status {
                running.line.set_status(status.as_u16());
                self.running = None;
            }
        }
        self.ready.pop_front()
    }
}

fn event(json: &Value) -> sse::Event {
    sse::Event::default().data(json.to_string())
}
