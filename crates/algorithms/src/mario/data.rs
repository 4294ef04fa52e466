//! Where the rows are.

use std::path::PathBuf;

use ruminate_datasets::Split;
use ruminate_datasets::mario::{MarioDataset, MarioRow, read_gold};
use serde::{Deserialize, Serialize};

use crate::Result;

/// A data set and its files.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct MarioData {
    /// Which of the five.
    pub dataset: MarioDataset,
    /// Gold and silver rows; `{dataset}` and `{split}` are filled in.
    pub path: String,
}

impl Default for MarioData {
    fn default() -> Self {
        Self { dataset: MarioDataset::NumerSense, path: "data/{dataset}/raw/{split}.jsonl".into() }
    }
}

impl MarioData {
    /// The file of a split.
    #[must_use]
    pub fn file(&self, split: Split) -> PathBuf {
        self.path.replace("{dataset}", self.dataset.name()).replace("{split}", &split.to_string()).into()
    }

    /// Reads a split.
    ///
    /// # Errors
    /// As [`read_gold`].
    pub fn read(&self, split: Split) -> Result<Vec<MarioRow>> {
        Ok(read_gold(&self.file(split), self.dataset)?)
    }
}
