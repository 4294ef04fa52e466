//! Sections of a TinyThinker configuration.

use std::path::{Path, PathBuf};

use ruminate_models::Tokenizer;
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};

use super::acquisition::AcquisitionConfig;
use super::reflection::{Reflection, ReflectionConfig};
use super::round::ReflectionRound;
use super::sampling::PairFiles;
use crate::{Collective, Error, Result, TrainerConfig};

/// The `[acquisition]` section: phase 1. The defaults are the published ones.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct AcquisitionSection {
    /// Stages, batches and order of the training.
    pub training: AcquisitionConfig,
    /// How it is trained.
    pub trainer: TrainerConfig,
}

impl Default for AcquisitionSection {
    fn default() -> Self {
        Self { training: AcquisitionConfig::default(), trainer: AcquisitionConfig::trainer() }
    }
}

impl AcquisitionSection {
    /// Checks the settings.
    ///
    /// # Errors
    /// Names the setting that is wrong.
    pub fn validate(&self) -> Result<()> {
        self.training.validate()?;
        self.trainer.validate()
    }
}

/// The `[reflection]` section: phase 2. The defaults are the published ones.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct ReflectionSection {
    /// Checkpoint to begin with.
    pub start: Option<PathBuf>,
    /// Rounds.
    pub iterations: u64,
    /// Questions to reflect on instead of those of the records, in the form of the data set.
    pub questions: Option<PathBuf>,
    /// The round whose pairs are made, where they are made alone; none is the first.
    pub round: Option<u64>,
    /// Folder of pair files, where training on them is all.
    pub pairs: Option<PathBuf>,
    /// Sampling, pairs and loss.
    pub training: ReflectionConfig,
    /// How a round is trained.
    pub trainer: TrainerConfig,
}

impl Default for ReflectionSection {
    fn default() -> Self {
        Self {
            start: None,
            iterations: 5,
            questions: None,
            round: None,
            pairs: None,
            training: ReflectionConfig::default(),
            trainer: ReflectionConfig::trainer(),
        }
    }
}

impl ReflectionSection {
    /// Checks the settings.
    ///
    /// # Errors
    /// Names the setting that is wrong.
    pub fn validate(&self) -> Result<()> {
        self.training.validate()?;
        self.trainer.validate()?;
        for (key, value) in
            [("reflection.iterations", self.iterations), ("reflection.round", self.round.unwrap_or(1))]
        {
            if value == 0 {
                return Err(Error::config(key, "is 0, but must be at least 1"));
            }
        }
        Ok(())
    }

    /// The checkpoint to begin with.
    ///
    /// # Errors
    /// None is named.
    pub fn start(&self) -> Result<&Path> {
        let reason = "name a checkpoint of `tinythinker acquire`, such as runs/acquire/checkpoints/best";
        self.start.as_deref().ok_or_else(|| Error::config("reflection.start", reason))
    }

    /// A round that begins with `start`.
    ///
    /// # Errors
    /// Those of [`start`](Self::start).
    pub fn round<'a>(
        &'a self,
        number: u64,
        folder: &'a Path,
        collective: &'a Collective,
    ) -> Result<ReflectionRound<'a>> {
        let (config, trainer) = (&self.training, &self.trainer);
        Ok(ReflectionRound { number, start: self.start()?, folder, config, trainer, collective })
    }

    /// The training on the pair files in the folder `pairs`, and what there is to tell about them.
    ///
    /// # Errors
    /// No folder is named, or those of [`PairFiles::read`] and [`Reflection::new`].
    pub fn on_pair_files(&self, tokenizer: &Tokenizer) -> Result<(Reflection, Value)> {
        let reason =
            "name a folder with recall_dpo.json and analyze_dpo.json, such as one of `tinythinker pairs`";
        let folder = self.pairs.as_deref().ok_or_else(|| Error::config("reflection.pairs", reason))?;
        let pairs = PairFiles::read(folder, self.training.stages)?;
        let (recall, analyze) = (&pairs.recall.examples, &pairs.analyze.examples);
        let (training, accumulate) = (self.training.clone(), self.trainer.accumulate);
        let reflection = Reflection::new(training, tokenizer, recall, analyze, accumulate)?;
        let without: Vec<&str> = reflection.without_pairs.iter().map(|stage| stage.name()).collect();
        let counts =
            json!({ "files": pairs.counts(), "encoded": reflection.counts, "without_pairs": without });
        Ok((reflection, counts))
    }
}
