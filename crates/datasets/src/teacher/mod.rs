//! The teacher: answers of a large model, from any server with OpenAI's chat completions or completions, or from files.
//!
//! [`Teacher::ask`] takes [`Request`]s, sends many at a time, and appends each answer to a file of JSON lines. What is in the file
//! already is not asked for again. [`read_answers`] reads such files, and files that others made: `[request, response]`, and the output of
//! OpenAI's batch interface. [`write_requests`] writes requests for another sender, and [`AnswerFile::import`] takes its answers.

mod ask;
mod batch;
mod client;
mod config;
mod connection;
mod error;
mod file;
mod observer;
mod queue;
mod request;
mod secret;
mod wire;

pub use ask::{Outcome, Teacher};
pub use batch::{Imported, RequestForm, write_requests};
pub use config::{Endpoint, KeySource, TeacherConfig, TokenLimit};
pub use connection::{Connection, ConnectionSettings, HttpReply};
pub use error::TeacherError;
pub use file::{AnswerFile, Exchange, match_answers, read_answers};
pub use observer::{Plan, Progress, TeacherObserver};
pub use request::{Answer, Completion, Message, Prices, Request, Sampling, Usage};

/// The result of asking a teacher.
pub type Result<T> = std::result::Result<T, TeacherError>;

/// The guide's programs compile.
#[cfg(doctest)]
#[doc = include_str!("../../../../docs/guide/teacher.md")]
struct Guide;
