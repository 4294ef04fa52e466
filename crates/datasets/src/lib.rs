#![doc = include_str!("../README.md")]

mod append;
pub mod chat;
pub mod environments;
pub mod error;
pub mod evaluation_files;
pub mod json;
pub mod knowledge;
pub mod mario;
pub mod order;
pub mod preference;
pub mod prompts;
mod python;
pub mod question;
pub mod rise;
pub mod rows;
pub mod supervised;
pub mod tasks;
pub mod teacher;
pub mod text;
pub mod tinythinker;
pub mod unifiedqa;

pub use error::{Error, Place, Result};
pub use evaluation_files::{InferenceItem, KnowledgeItem};
pub use knowledge::{Annotated, Instances, SilverItem};
pub use order::{Cursor, Order, Shard, TrainBatches};
pub use preference::{DialoguePreference, PreferenceExample, Preferences};
pub use prompts::{Compat, Prompts};
pub use question::{Origin, Question, SkipReason, Split};
pub use supervised::SupervisedExample;
pub use tasks::{TaskEntry, TaskRegistry};
pub use unifiedqa::{BadRows, Loaded, Part, ReadOptions, Skipped};

/// The id of a token: libtorch's index type, so that ids become tensors without a conversion.
pub type TokenId = i64;

/// An observer that ignores all events.
#[derive(Debug, Clone, Copy, Default)]
pub struct NullObserver;
