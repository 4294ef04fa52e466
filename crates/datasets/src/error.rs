//! What can go wrong while data is found, read, arranged and written.

use crate::{SkipReason, Skipped, Split, TokenId};
use std::fmt;
use std::path::PathBuf;

/// The result of a fallible function of this crate.
pub type Result<T> = std::result::Result<T, Error>;

/// A place inside a data file.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Place {
    /// A line of a text file, counted from 1.
    Line(usize),
    /// An element of a JSON array, counted from 0.
    Item(usize),
    /// A row of a table, counted from 0.
    Row(usize),
}

impl fmt::Display for Place {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Place::Line(n) => write!(f, "line {n}"),
            Place::Item(n) => write!(f, "item {n}"),
            Place::Row(n) => write!(f, "row {n}"),
        }
    }
}

/// Every error of this crate.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// A file could not be read.
    #[error("cannot read {}", .path.display())]
    Read {
        /// The file.
        path: PathBuf,
        /// What the system said.
        source: std::io::Error,
    },
    /// A file could not be written; what stood there before is untouched.
    #[error("cannot write {}", .path.display())]
    Write {
        /// The file.
        path: PathBuf,
        /// What the system said.
        source: std::io::Error,
    },
    /// Another process writes to the file.
    #[error("{} is being written by another process; wait for it, or write to another file", .0.display())]
    Locked(PathBuf),
    /// Bytes that are not UTF-8.
    #[error("{}: line {line} is not UTF-8; convert the file to UTF-8", .path.display())]
    NotUtf8 {
        /// The file.
        path: PathBuf,
        /// The line, counted from 1.
        line: usize,
        /// Where in the line.
        source: std::str::Utf8Error,
    },
    /// Text in UTF-16.
    #[error("{}: the text is UTF-16, not UTF-8; convert it, for example with `iconv -f UTF-16 -t UTF-8`", .0.display())]
    Utf16(PathBuf),
    /// A row that is not a question, while bad rows are refused.
    #[error("{}: {place}, {}: {reason}; mend it, or leave bad rows out with `--skip-bad-rows` (`BadRows::Skip`)",
        .path.display(), .reason.field())]
    BadRow {
        /// The file.
        path: PathBuf,
        /// The row.
        place: Place,
        /// What is wrong with it.
        reason: SkipReason,
    },
    /// A row of one's own data that has not the form that it should have.
    #[error("{}: {place}: {reason}; a row looks like {example}", .path.display())]
    Row {
        /// The file.
        path: PathBuf,
        /// The row.
        place: Place,
        /// The mistake.
        reason: String,
        /// A row as it should be.
        example: String,
    },
    /// A file, or several, whose rows cannot be used as a whole.
    #[error("{}: {reason}", .path.display())]
    Rows {
        /// The file.
        path: PathBuf,
        /// The mistake, and the remedy.
        reason: String,
    },
    /// Settings of one's own data that do not go together.
    #[error("{key}: {reason}")]
    DataSetting {
        /// The setting.
        key: &'static str,
        /// The mistake, and a right value.
        reason: String,
    },
    /// A file that yields nothing to train or evaluate on.
    #[error("{}: empty split: none of its {rows} rows is usable{}", .path.display(), first_skipped(.first))]
    EmptySplit {
        /// The file.
        path: PathBuf,
        /// Lines or items in the file (in its part, when it is cut in halves).
        rows: usize,
        /// The first row that was skipped, if any was.
        first: Option<Skipped>,
    },
    /// JSON that is malformed or has another layout.
    #[error("{}: {}{source}", .path.display(), json_place(*.place, .field))]
    Json {
        /// The file.
        path: PathBuf,
        /// The element of the outer array or the line of JSON lines, if the error lies in one; serde counts lines from
        /// that place.
        place: Option<Place>,
        /// The path of the field inside the item; empty when a field is missing or the text is no JSON.
        field: String,
        /// What serde said, with line and column.
        source: serde_json::Error,
    },
    /// A field holds a value that contradicts the rest of its item.
    #[error("{}: {place}, field {field}: {reason}", .path.display())]
    BadField {
        /// The file.
        path: PathBuf,
        /// The item.
        place: Place,
        /// The field.
        field: &'static str,
        /// The mistake, and the remedy.
        reason: String,
    },
    /// A task that nobody registered.
    #[error("unknown task `{task}`{}; register it in the configuration: [data.tasks.{task}] dir = \"uqa/{task}\" \
        (registered: {})", did_you_mean(.nearest), .known.join(", "))]
    UnknownTask {
        /// The key that was asked for.
        task: String,
        /// The registered key that looks most like it.
        nearest: Option<String>,
        /// All registered keys.
        known: Vec<String>,
    },
    /// A registered task without a file for the split.
    #[error("task `{task}` has no {split} file at {}; put it there, correct the data path or the task's `dir`, \
        or take the task off the list", .path.display())]
    MissingFile {
        /// The task.
        task: String,
        /// The split.
        split: Split,
        /// Where the file should be.
        path: PathBuf,
    },
    /// A path template that cannot be filled in.
    #[error("path template `{template}`: {reason}")]
    BadTemplate {
        /// The template.
        template: String,
        /// The mistake, and the remedy.
        reason: String,
    },
    /// A prompt that does not say where its question goes.
    #[error("{}: a prompt needs {{question}} once, where the question goes, but found {found} of them", path.display())]
    Prompt {
        /// The file.
        path: PathBuf,
        /// How many places it has.
        found: usize,
    },
    /// A word that names no split.
    #[error("unknown split `{0}`; the splits are train, dev and test")]
    UnknownSplit(String),
    /// A question with more choices than the choice slots of a batch.
    #[error(
        "task `{task}`: a question has {choices} choices but a batch holds {capacity}; raise the choice \
        capacity, or leave the question out: {question}"
    )]
    TooManyChoices {
        /// The task (empty where only labels are known).
        task: String,
        /// The text of the question (empty where only labels are known).
        question: String,
        /// How many choices it has.
        choices: usize,
        /// How many fit.
        capacity: usize,
    },
    /// A choice label that does not fit its slot.
    #[error("choice label {label} has {tokens} tokens but a slot holds {length}; raise the answer length")]
    LabelTooLong {
        /// The label's index.
        label: usize,
        /// Its tokens, eos included.
        tokens: usize,
        /// Tokens in a slot.
        length: usize,
    },
    /// A separator that the tokenizer did not end with eos, so that prompts could not be assembled.
    #[error(
        "the {which} separator {ids:?} must end with the only eos ({eos}) in it; encode it with special \
        tokens added"
    )]
    BadSeparator {
        /// `knowledge` or `answer`.
        which: &'static str,
        /// What the tokenizer gave.
        ids: Vec<TokenId>,
        /// The eos id.
        eos: TokenId,
    },
    /// Data too small for a single step.
    #[error(
        "{len} instances do not fill one step of {world} ranks x {batch_size}; take a smaller batch, fewer \
        ranks or more data"
    )]
    NoCompleteBatch {
        /// Instances.
        len: usize,
        /// Batch size of one rank.
        batch_size: usize,
        /// Ranks.
        world: usize,
    },
    /// A rank outside its world.
    #[error("rank {rank} is not one of the {world} ranks 0..{world}; check RANK and WORLD_SIZE")]
    BadShard {
        /// This process.
        rank: usize,
        /// All processes.
        world: usize,
    },
    /// A batch size or a combination of data and batch that makes no batch.
    #[error("cannot make batches of {batch_size} from {len} instances; both must be at least 1")]
    NoBatches {
        /// Instances.
        len: usize,
        /// Batch size of one rank.
        batch_size: usize,
    },
    /// A saved position that lies outside the data.
    #[error(
        "the saved position {position} lies behind the end of the data ({len} instances); resume with the \
        data that the run was started with"
    )]
    BadCursor {
        /// The position.
        position: usize,
        /// Instances.
        len: usize,
    },
}

fn first_skipped(first: &Option<Skipped>) -> String {
    first.as_ref().map(|s| format!("; the first: {s}")).unwrap_or_default()
}

fn json_place(place: Option<Place>, field: &str) -> String {
    match (place, field) {
        (None, "") => String::new(),
        (None, field) => format!("field {field}: "),
        (Some(place), "") => format!("{place}: "),
        (Some(place), field) => format!("{place}, field {field}: "),
    }
}

fn did_you_mean(nearest: &Option<String>) -> String {
    nearest.as_ref().map(|n| format!("; did you mean `{n}`?")).unwrap_or_default()
}
