//! The crate's error type.

use std::path::{Path, PathBuf};

/// What can go wrong with models, checkpoints, tokenizers and generation.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// A file could not be read or written.
    #[error("cannot {action} {}", path.display())]
    Io {
        /// "read" or "write".
        action: &'static str,
        /// The file or folder.
        path: PathBuf,
        /// The operating system's reason.
        source: std::io::Error,
    },
    /// A JSON file does not parse.
    #[error("{} is not the JSON that is expected there", path.display())]
    Json {
        /// The file.
        path: PathBuf,
        /// Line, column and reason.
        source: serde_json::Error,
    },
    /// A safetensors file is damaged.
    #[error("{} is not a complete safetensors file; was it cut short while copying?", path.display())]
    Safetensors {
        /// The file.
        path: PathBuf,
        /// The reader's reason.
        source: safetensors::SafeTensorError,
    },
    /// A GGUF file is damaged, or holds something that is not implemented.
    #[error("{}: `{place}` {reason}", path.display())]
    Gguf {
        /// The file.
        path: PathBuf,
        /// The key of the metadata, the tensor, or the byte.
        place: String,
        /// The problem, and the remedy where there is one.
        reason: String,
    },
    /// Something else stands in the place of a file.
    #[error("{} {reason}", path.display())]
    NotThere {
        /// The file.
        path: PathBuf,
        /// The reason, and the command that fixes it.
        reason: String,
    },
    /// A model folder lacks its weights.
    #[error("{} holds no weights: {reason}", path.display())]
    NoWeights {
        /// The folder.
        path: PathBuf,
        /// What was looked for, and what to do.
        reason: String,
    },
    /// A checkpoint and a configuration do not describe the same model.
    #[error("{} does not fit its config.json:\n  {}", path.display(), problems.join("\n  "))]
    Weights {
        /// The file or folder of the weights.
        path: PathBuf,
        /// One line per missing, unexpected or misshapen tensor.
        problems: Vec<String>,
    },
    /// A `config.json` asks for something that this crate does not know.
    #[error("config.json: `{key}`: {reason}")]
    Config {
        /// The key.
        key: String,
        /// Why it is refused.
        reason: String,
    },
    /// The generation defaults of a model folder are wrong, or ask for something that this crate does not know.
    #[error("{}: {reason}", path.display())]
    GenerationConfig {
        /// `generation_config.json`, or `config.json` where the defaults stand there.
        path: PathBuf,
        /// The key, and why it is refused.
        reason: String,
    },
    /// The chat template of a model folder cannot be read.
    #[error(transparent)]
    ChatTemplate(#[from] ruminate_datasets::chat::ChatError),
    /// The tokenizer library failed.
    #[error("tokenizer: {reason}")]
    Tokenizer {
        /// What failed.
        reason: String,
        /// The library's error, where it gave one.
        source: Option<Box<dyn std::error::Error + Send + Sync>>,
    },
    /// A call's arguments contradict each other or the model.
    #[error("{what}: {reason}")]
    Invalid {
        /// The argument.
        what: &'static str,
        /// What is wrong with it.
        reason: String,
    },
    /// Somebody asked to stop while a model was writing; see [`Interrupt`](crate::Interrupt).
    #[error("stopped by request while a model was writing")]
    Interrupted,
    /// libtorch failed.
    #[error(transparent)]
    Tch(tch::TchError),
    /// The libtorch layer failed.
    #[error(transparent)]
    Torch(#[from] ruminate_torch::Error),
}

impl From<tch::TchError> for Error {
    fn from(error: tch::TchError) -> Self {
        Self::Tch(ruminate_torch::plain(error))
    }
}

impl Error {
    pub(crate) fn read(path: &Path) -> impl FnOnce(std::io::Error) -> Self {
        let path = path.to_path_buf();
        move |source| Self::Io { action: "read", path, source }
    }

    pub(crate) fn write(path: &Path) -> impl FnOnce(std::io::Error) -> Self {
        let path = path.to_path_buf();
        move |source| Self::Io { action: "write", path, source }
    }

    pub(crate) fn invalid(what: &'static str, reason: impl Into<String>) -> Self {
        Self::Invalid { what, reason: reason.into() }
    }
}

/// Results of this crate.
pub type Result<T> = std::result::Result<T, Error>;
