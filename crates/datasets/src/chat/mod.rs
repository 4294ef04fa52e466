//! Dialogues as the one text that a model reads.
//!
//! A [`ChatTemplate`] is one of the [`NamedTemplate`]s, which are code, or the Jinja template of a checkpoint. [`Rendered`] holds the
//! text and the ranges of the answers in it, each with its end marker, so that [`labels`] can train on some answers and nothing else.
//!
//! # Example
//! ```
//! use ruminate_datasets::chat::{ChatTemplate, Message, NamedTemplate};
//!
//! let template = ChatTemplate::from(NamedTemplate::MistralInstruct);
//! let mut dialogue = vec![Message::new("user", "2+2?")];
//! assert_eq!(template.prompt(&dialogue)?, "[INST] 2+2? [/INST]");
//! dialogue.push(Message::new("assistant", "4"));
//! let rendered = template.conversation(&dialogue)?;
//! assert_eq!(rendered.text, "[INST] 2+2? [/INST] 4</s>");
//! assert_eq!(&rendered.text[rendered.answers[0].span.clone()], "4</s>");
//! # Ok::<(), ruminate_datasets::chat::ChatError>(())
//! ```

mod date;
mod jinja;
mod labels;
mod named;
mod python_text;
mod source;
mod trained;

use std::ops::Range;
use std::path::{Path, PathBuf};

pub use crate::teacher::Message;
pub use date::Date;
pub use jinja::JinjaTemplate;
pub use labels::{IGNORED, labels, trained_tokens};
pub use named::NamedTemplate;
pub use trained::{OtherTemplate, TrainedOn};

/// The result of rendering.
pub type Result<T> = std::result::Result<T, ChatError>;

/// Why a dialogue could not be rendered.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum ChatError {
    /// A role that does not exist, or not there.
    #[error("message {index} has the role `{role}`, but {expected}")]
    Role {
        /// The message, counted from 0.
        index: usize,
        /// Its role.
        role: String,
        /// What would be right.
        expected: &'static str,
    },
    /// A name that no template has.
    #[error("unknown chat template `{name}`; there are {}", .known.join(", "))]
    UnknownTemplate {
        /// The name.
        name: String,
        /// Those that exist.
        known: Vec<&'static str>,
    },
    /// A folder without a template.
    #[error("{} has no chat template (chat_template.jinja, or chat_template in tokenizer_config.json); name one: {}",
        .folder.display(), NamedTemplate::ALL.map(NamedTemplate::name).join(", "))]
    NoTemplate {
        /// The folder.
        folder: PathBuf,
    },
    /// The template is no Jinja.
    #[error("the chat template cannot be read")]
    Syntax(#[source] minijinja::Error),
    /// The template itself refuses the dialogue (`raise_exception`).
    #[error("the chat template refuses the dialogue: {0}")]
    Refused(String),
    /// The template fails.
    #[error("the chat template fails")]
    Render(#[source] minijinja::Error),
    /// What the template writes for an answer depends on what follows, so that nobody can say where the answer stands.
    #[error(
        "the chat template writes message {index} differently once others follow it, so it cannot be trained on; \
        use a named template, or train on the last answer only"
    )]
    Unstable {
        /// The message, counted from 0.
        index: usize,
    },
    /// As many tokens as offsets are needed.
    #[error("{ids} ids have {offsets} offsets; both must come from the same encoding")]
    Offsets {
        /// Ids.
        ids: usize,
        /// Offsets.
        offsets: usize,
    },
    /// A file.
    #[error(transparent)]
    Data(#[from] crate::Error),
}

/// An answer inside of a rendered dialogue.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Answer {
    /// Which message it is, counted from 0.
    pub message: usize,
    /// Bytes of the text: the answer and the marker that ends it.
    pub span: Range<usize>,
}

/// A rendered dialogue.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Rendered {
    /// The text, begin and end markers included where the template writes them.
    pub text: String,
    /// The answers that are not empty, in order.
    pub answers: Vec<Answer>,
}

impl Rendered {
    /// The ranges of those answers that are to be trained; `trained` holds a value for each message.
    #[must_use]
    pub fn spans(&self, trained: &[bool]) -> Vec<Range<usize>> {
        let wanted = |answer: &&Answer| trained.get(answer.message) == Some(&true);
        self.answers.iter().filter(wanted).map(|answer| answer.span.clone()).collect()
    }
}

/// How a model wants its dialogues.
#[derive(Debug, Clone)]
pub enum ChatTemplate {
    /// One that is code.
    Named(NamedTemplate),
    /// One that came with a checkpoint.
    Jinja(Box<JinjaTemplate>),
}

impl From<NamedTemplate> for ChatTemplate {
    fn from(template: NamedTemplate) -> Self {
        Self::Named(template)
    }
}

impl From<JinjaTemplate> for ChatTemplate {
    fn from(template: JinjaTemplate) -> Self {
        Self::Jinja(Box::new(template))
    }
}

impl ChatTemplate {
    /// The template of a checkpoint's folder.
    ///
    /// # Errors
    /// [`ChatError::NoTemplate`], [`ChatError::Syntax`], and [`ChatError::Data`] for a file that cannot be read.
    pub fn open(folder: &Path) -> Result<Self> {
        JinjaTemplate::open(folder).map(Self::from)
    }

    /// A named template, or for the name `jinja` that of a checkpoint's folder.
    ///
    /// # Errors
    /// [`ChatError::UnknownTemplate`], and as [`open`](Self::open).
    pub fn select(name: &str, folder: &Path) -> Result<Self> {
        if name == Self::JINJA { Self::open(folder) } else { Ok(name.parse::<NamedTemplate>()?.into()) }
    }

    /// The template on this day: what asks for the date is told its first second, whenever it is rendered.
    #[must_use]
    pub fn on(self, date: Date) -> Self {
        match self {
            Self::Named(template) => Self::Named(template),
            Self::Jinja(template) => Self::Jinja(Box::new(template.at(Some(date.start())))),
        }
    }

    /// The name that [`select`](Self::select) takes for a checkpoint's own template.
    pub const JINJA: &str = "jinja";

    /// The dialogue, ready for the next answer.
    ///
    /// # Errors
    /// [`ChatError`].
    pub fn prompt(&self, messages: &[Message]) -> Result<String> {
        self.render(messages, true)
    }

    /// The dialogue as one text, with what asks for the next answer behind it or not (`add_generation_prompt`).
    ///
    /// # Errors
    /// [`ChatError`].
    pub fn render(&self, messages: &[Message], add_generation_prompt: bool) -> Result<String> {
        match self {
            Self::Named(_) if !add_generation_prompt => Ok(self.conversation(messages)?.text),
            Self::Named(template) => Ok(template.render(messages, true)?.text),
            Self::Jinja(template) => template.render(messages, add_generation_prompt),
        }
    }

    /// The dialogue as it is, to be trained on. Llama 2's marker of a sequence that never begins is left out.
    ///
    /// # Errors
    /// [`ChatError`].
    pub fn conversation(&self, messages: &[Message]) -> Result<Rendered> {
        match self {
            Self::Named(template) => {
                let mut rendered = template.render(messages, false)?;
                let ended = messages.last().is_some_and(|last| is_answer(&last.role));
                if *template == NamedTemplate::Llama2 && ended && rendered.text.ends_with("<s>") {
                    rendered.text.truncate(rendered.text.len() - "<s>".len());
                }
                Ok(rendered)
            }
            Self::Jinja(template) => template.conversation(messages),
        }
    }

    /// Whether a blank of the template's own stands before an answer's text; see [`NamedTemplate::blank_before_answers`]. Of a
    /// checkpoint's own template nobody knows.
    #[must_use]
    pub fn blank_before_answers(&self) -> bool {
        matches!(self, Self::Named(template) if template.blank_before_answers())
    }

    /// What ends an answer besides the model's end token, as text.
    #[must_use]
    pub fn stop_strings(&self) -> &'static [&'static str] {
        match self {
            Self::Named(template) => template.stop_strings(),
            Self::Jinja(_) => &[],
        }
    }

    /// The text that a checkpoint's own template writes behind an answer, if any: chat models end an answer with it.
    #[must_use]
    pub fn answer_end(&self) -> Option<String> {
        let Self::Jinja(template) = self else { return None };
        let answer = "an answer";
        let dialogue = [Message::new("user", "a question"), Message::new("assistant", answer)];
        let text = template.render(&dialogue, false).ok()?;
        let end = &text[text.rfind(answer)? + answer.len()..];
        (!end.is_empty()).then(|| end.to_owned())
    }

    /// The same as token ids of the models that the template was made for.
    #[must_use]
    pub fn stop_ids(&self) -> &'static [crate::TokenId] {
        match self {
            Self::Named(template) => template.stop_ids(),
            Self::Jinja(_) => &[],
        }
    }
}

/// Is this a role of the answering side? Local models are called agents in RISE's files.
pub(crate) fn is_answer(role: &str) -> bool {
    matches!(role, "assistant" | "agent")
}
