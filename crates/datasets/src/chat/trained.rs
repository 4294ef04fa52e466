//! Which template a checkpoint was trained with.

use std::fmt;
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};

use super::Result;
use crate::json;

/// What a checkpoint tells about the dialogues that it was trained on, in a file beside its weights.
///
/// # Example
/// ```
/// use ruminate_datasets::chat::TrainedOn;
/// let folder = std::env::temp_dir().join(format!("ruminate-trained-on-{}", std::process::id()));
/// std::fs::create_dir_all(&folder)?;
/// let (name, bytes) = TrainedOn { template: "llama-2".into() }.file();
/// std::fs::write(folder.join(name), bytes)?;
/// assert_eq!(TrainedOn::other_than("llama-2", &folder)?, None);
/// let other = TrainedOn::other_than("zephyr", &folder)?.ok_or("it is another one")?;
/// assert!(other.to_string().contains("llama-2"));
/// # std::fs::remove_dir_all(&folder)?;
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
#[serde(expecting = "an object with template")]
pub struct TrainedOn {
    /// The name that [`ChatTemplate::select`](super::ChatTemplate::select) takes.
    pub template: String,
}

impl TrainedOn {
    /// The file's name.
    pub const FILE: &str = "chat.json";

    /// Name and content of the file.
    #[must_use]
    pub fn file(&self) -> (String, Vec<u8>) {
        let text = serde_json::json!({ "template": self.template }).to_string();
        (Self::FILE.into(), text.into_bytes())
    }

    /// What a checkpoint's folder tells, where it tells anything.
    ///
    /// # Errors
    /// [`ChatError::Data`](super::ChatError::Data) for a file that cannot be read.
    pub fn read(folder: &Path) -> Result<Option<Self>> {
        let path = folder.join(Self::FILE);
        Ok(path.is_file().then(|| json::read(&path)).transpose()?)
    }

    /// That a checkpoint, as far as it tells, was trained with another template than the one of this name.
    ///
    /// # Errors
    /// As [`read`](Self::read).
    pub fn other_than(template: &str, folder: &Path) -> Result<Option<OtherTemplate>> {
        let trained = Self::read(folder)?.map(|this| this.template).filter(|trained| trained != template);
        let other = |trained| OtherTemplate { model: folder.into(), trained, used: template.into() };
        Ok(trained.map(other))
    }
}

/// A model is used with another chat template than it was trained with, and will hardly understand it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct OtherTemplate {
    /// The checkpoint's folder.
    pub model: PathBuf,
    /// The template that it was trained with.
    pub trained: String,
    /// The template that it is used with.
    pub used: String,
}

impl fmt::Display for OtherTemplate {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { model, trained, used } = self;
        write!(
            f,
            "{} was trained with the chat template `{trained}`, but is used with `{used}`",
            model.display()
        )
    }
}
