//! One line in the log for each request.

use std::sync::atomic::{AtomicU16, AtomicUsize, Ordering};
use std::time::Instant;

/// A request's line in the making. Whoever lets go of it last writes the line.
#[derive(Debug)]
pub(crate) struct LogLine {
    method: String,
    path: String,
    started: Instant,
    /// 0 until the request is answered whole; a client may hang up before.
    status: AtomicU16,
    prompt_tokens: AtomicUsize,
    completion_tokens: AtomicUsize,
}

impl LogLine {
    pub(crate) fn new(method: &str, path: &str) -> Self {
        // A path is the client's text: one line, and not too long.
        let path: String = path.chars().take(80).map(|c| if c.is_control() { ' ' } else { c }).collect();
        Self {
            method: method.into(),
            path,
            started: Instant::now(),
            status: AtomicU16::new(0),
            prompt_tokens: AtomicUsize::new(0),
            completion_tokens: AtomicUsize::new(0),
        }
    }

    pub(crate) fn set_status(&self, status: u16) {
        self.status.store(status, Ordering::Relaxed);
    }

    pub(crate) fn set_prompt_tokens(&self, tokens: usize) {
        self.prompt_tokens.store(tokens, Ordering::Relaxed);
    }

    pub(crate) fn add_completion_tokens(&self, tokens: usize) {
        self.completion_tokens.fetch_add(tokens, Ordering::Relaxed);
    }
}

impl Drop for LogLine {
    fn drop(&mut self) {
        let Self { method, path, started, .. } = self;
        let [prompt, completion] =
            [&self.prompt_tokens, &self.completion_tokens].map(|tokens| tokens.load(Ordering::Relaxed));
        let status = match self.status.load(Ordering::Relaxed) {
            0 => "client hung up".to_owned(),
            status => status.to_string(),
        };
        let secs = started.elapsed().as_secs_f64();
        log::info!("{method} {path}: {status}, {prompt} + {completion} tokens, {secs:.3} s");
    }
}
