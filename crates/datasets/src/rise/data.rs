//! Which problems a run is about, and how its dialogues become text.

use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};

use super::Layout;
use crate::chat::{self, ChatTemplate, Date, NamedTemplate};
use crate::environments::{Benchmark, Compat, Environment, Loaded, QuestionOnly};
use crate::{BadRows, Result};

/// Which problems, and what is said about them. The defaults are those of the published example.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct RiseData {
    /// The form of the files, and how answers are judged.
    pub benchmark: Benchmark,
    /// Problems to learn from, as JSON lines.
    pub problems: PathBuf,
    /// Only the first ones; 0 for all.
    pub limit: usize,
    /// Leave out bad rows instead of refusing the file.
    pub skip_bad_rows: bool,
    /// Begin dialogues with the published demonstration.
    pub demonstration: bool,
    /// With the published code's defects or without.
    pub compat: Compat,
}

impl Default for RiseData {
    fn default() -> Self {
        Self {
            benchmark: Benchmark::Gsm8k,
            problems: "data/gsm8k/train.jsonl".into(),
            limit: 0,
            skip_bad_rows: false,
            demonstration: true,
            compat: Compat::Fixed,
        }
    }
}

impl RiseData {
    /// How answers are judged, and what is said to them.
    #[must_use]
    pub fn environment(&self) -> Box<dyn Environment> {
        let environment = self.benchmark.environment(self.compat);
        if self.demonstration { environment } else { Box::new(QuestionOnly(environment)) }
    }

    /// The first problems of a file; all of them for a `limit` of 0.
    ///
    /// # Errors
    /// Those of [`Benchmark::read`].
    pub fn read(&self, path: &Path, limit: usize) -> Result<Loaded> {
        let bad = if self.skip_bad_rows { BadRows::Skip } else { BadRows::Refuse };
        let mut loaded = self.benchmark.read(path, bad, self.compat)?;
        loaded.problems.truncate(if limit == 0 { usize::MAX } else { limit });
        Ok(loaded)
    }
}

/// How dialogues become text: the same in rollouts, training and evaluation.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct ChatConfig {
    /// Name of the template; `jinja` for the checkpoint's own.
    pub template: String,
    /// How training examples are laid out.
    pub layout: Layout,
    /// The day that a checkpoint's own template is told; the run's first one, which is written into its folder and kept.
    pub date: Option<Date>,
}

impl Default for ChatConfig {
    fn default() -> Self {
        Self { template: NamedTemplate::Llama2.name().into(), layout: Layout::Dialogue, date: None }
    }
}

impl ChatConfig {
    /// A template by its name, on the run's day; `folder` is that of the tokenizer.
    ///
    /// # Errors
    /// Those of [`ChatTemplate::select`].
    pub fn open(&self, name: &str, folder: &Path) -> chat::Result<ChatTemplate> {
        let template = ChatTemplate::select(name, folder)?;
        Ok(match self.date {
            Some(date) => template.on(date),
            None => template,
        })
    }

    /// Checks that a template has this name.
    ///
    /// # Errors
    /// The name that is unknown, and those that are known.
    pub fn check(name: &str) -> std::result::Result<(), String> {
        if name == ChatTemplate::JINJA {
            return Ok(());
        }
        let named = name.parse::<NamedTemplate>();
        named.map(|_| ()).map_err(|error| format!("{error}, and jinja for the checkpoint's own"))
    }
}
