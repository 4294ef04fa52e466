//! The configuration file.

use std::path::PathBuf;

use ruminate::algorithms::TrainerConfig;
use ruminate::algorithms::tinythinker::{AcquisitionConfig, Decoding, GenerationSettings, ReflectionConfig};
use ruminate::datasets::teacher::{Prices, TeacherConfig};
use ruminate::datasets::tinythinker::{AnalysisOrder, Source, StageRecords, TeachingConfig, Variant};
use ruminate::run::{ConfigError, FlagKeys, ModelSection};
use serde::{Deserialize, Serialize};

/// The keys that `--seed` and `--precision` stand for.
pub(crate) const FLAGS: FlagKeys = FlagKeys {
    seed: &[
        "seed",
        "data.split_seed",
        "teaching.settings.seed",
        "acquisition.training.shuffle_seed",
        "reflection.training.shuffle_seed",
        "reflection.training.pairs.seed",
        "reflection.training.generation.seed",
        "inference.generation.seed",
    ],
    precision: &["acquisition.trainer.precision", "reflection.trainer.precision"],
};

/// What a run does.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub(crate) enum Phase {
    /// Asks a teacher.
    Teach,
    /// Phase 1.
    Acquire,
    /// Phase 2.
    Reflect,
}

impl Phase {
    /// What begins such a run.
    pub(crate) fn command(self) -> &'static str {
        match self {
            Self::Teach => "teach",
            Self::Acquire => "acquire",
            Self::Reflect => "reflect",
        }
    }
}

/// Everything that a run depends on. `configs/published.toml` explains each key.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub(crate) struct TinyThinkerConfig {
    /// What the run does; written by the command.
    pub(crate) phase: Option<Phase>,
    /// Seed of a new model's parameters and of dropout.
    pub(crate) seed: u64,
    pub(crate) data: DataConfig,
    pub(crate) teacher: TeacherConfig,
    pub(crate) teaching: TeachingSection,
    pub(crate) model: ModelSection,
    pub(crate) acquisition: AcquisitionSection,
    pub(crate) reflection: ReflectionSection,
    pub(crate) inference: InferenceSection,
}

/// Where the data are.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub(crate) struct DataConfig {
    /// Which data set.
    pub(crate) dataset: Source,
    /// Folder of its original files.
    pub(crate) original: PathBuf,
    /// Questions of CommonsenseQA's training file that are held out for validation.
    pub(crate) valid_questions: usize,
    /// Seed of the division.
    pub(crate) split_seed: u64,
    /// A `splits.json` to divide by instead.
    pub(crate) splits: Option<PathBuf>,
    /// Leave out bad rows instead of refusing the file.
    pub(crate) skip_bad_rows: bool,
    /// Order of the analyses that the summarize stage learns to read.
    pub(crate) analysis_order: AnalysisOrder,
    /// Folder of the students' records: `DIR/VARIANT/recall.json` and so on.
    pub(crate) records: PathBuf,
}

impl Default for DataConfig {
    fn default() -> Self {
        Self {
            dataset: Source::Csqa,
            original: "datasets/csqa/original".into(),
            valid_questions: 1221,
            split_seed: 42,
            splits: None,
            skip_bad_rows: false,
            analysis_order: AnalysisOrder::default(),
            records: "datasets/csqa/final/sft".into(),
        }
    }
}

impl DataConfig {
    /// The folder of a variant's records, and what is in it.
    pub(crate) fn read(&self, variant: Variant) -> anyhow::Result<(PathBuf, StageRecords)> {
        let folder = self.records.join(variant.name());
        if !folder.is_dir() {
            let reason = format!(
                "data.records: there is no folder {}; `tinythinker teach` makes it as OUT/sft/{}",
                folder.display(),
                variant.name()
            );
            return Err(ConfigError::invalid(reason).into());
        }
        let records = StageRecords::read(&folder)?;
        Ok((folder, records))
    }
}

/// What the teacher is asked.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub(crate) struct TeachingSection {
    /// File with the instruction.
    pub(crate) instruction: PathBuf,
    /// File with the examples.
    pub(crate) few_shot: PathBuf,
    /// Prices of a million tokens, to show what it costs.
    pub(crate) prices: Option<Prices>,
    /// Only the first training questions; 0 for all.
    pub(crate) questions: usize,
    pub(crate) settings: TeachingConfig,
}

impl Default for TeachingSection {
    fn default() -> Self {
        Self {
            instruction: "datasets/request.json".into(),
            few_shot: "datasets/csqa/prompt/csqa_cot.json".into(),
            prices: None,
            questions: 0,
            settings: TeachingConfig::default(),
        }
    }
}

/// Phase 1.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub(crate) struct AcquisitionSection {
    pub(crate) training: AcquisitionConfig,
    pub(crate) trainer: TrainerConfig,
}

impl Default for AcquisitionSection {
    fn default() -> Self {
        Self { training: AcquisitionConfig::default(), trainer: AcquisitionConfig::trainer() }
    }
}

/// Phase 2.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub(crate) struct ReflectionSection {
    /// Checkpoint of phase 1.
    pub(crate) start: Option<PathBuf>,
    /// Rounds.
    pub(crate) iterations: u64,
    /// Questions to reflect on instead of those of the records, in the form of the data set.
    pub(crate) questions: Option<PathBuf>,
    pub(crate) training: ReflectionConfig,
    pub(crate) trainer: TrainerConfig,
}

impl Default for ReflectionSection {
    fn default() -> Self {
        Self {
            start: None,
            iterations: 5,
            questions: None,
            training: ReflectionConfig::default(),
            trainer: ReflectionConfig::trainer(),
        }
    }
}

/// Answers of a trained student.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub(crate) struct InferenceSection {
    /// `greedy`, or `random` for votes.
    pub(crate) decoding: Decoding,
    /// Runs of each question.
    pub(crate) runs: usize,
    pub(crate) generation: GenerationSettings,
}

impl Default for InferenceSection {
    fn default() -> Self {
        Self { decoding: Decoding::Greedy, runs: 1, generation: GenerationSettings::default() }
    }
}

impl Default for TinyThinkerConfig {
    fn default() -> Self {
        Self {
            phase: None,
            seed: 42,
            data: DataConfig::default(),
            teacher: TeacherConfig::default(),
            teaching: TeachingSection::default(),
            // That of the published models' configurations.
            model: ModelSection { dropout: 0.1, ..ModelSection::default() },
            acquisition: AcquisitionSection::default(),
            reflection: ReflectionSection::default(),
            inference: InferenceSection::default(),
        }
    }
}

impl TinyThinkerConfig {
    /// Checks what can be checked before any file is read.
    pub(crate) fn validate(&self) -> Result<(), ConfigError> {
        let check = || -> ruminate::algorithms::Result<()> {
            self.acquisition.training.validate()?;
            self.acquisition.trainer.validate()?;
            self.reflection.training.validate()?;
            self.reflection.trainer.validate()?;
            self.inference.generation.validate()
        };
        check().map_err(ConfigError::invalid)?;
        for (key, value) in [
            ("reflection.iterations", self.reflection.iterations),
            ("inference.runs", self.inference.runs as u64),
        ] {
            if value == 0 {
                return Err(ConfigError::invalid(format!("{key} is 0, but must be at least 1")));
            }
        }
        self.model.validate("model")
    }

    /// Says what the run does, and refuses to go on with a run that does something else.
    pub(crate) fn enter(&mut self, phase: Phase) -> Result<(), ConfigError> {
        match self.phase.replace(phase) {
            Some(other) if other != phase => {
                let command = other.command();
                let reason = format!("this is the configuration of a run of `tinythinker {command}`");
                Err(ConfigError::invalid(reason))
            }
            _ => Ok(()),
        }
    }

    pub(crate) fn variant(&self) -> Variant {
        self.acquisition.training.variant
    }
}

#[cfg(test)]
#[path = "../../suggested.rs"]
mod suggested;

#[cfg(test)]
mod tests {
    use ruminate::run::config;

    use super::*;

    const PUBLISHED: &str = include_str!("../configs/published.toml");

    #[test]
    fn the_published_settings_are_the_defaults() {
        let mut config: TinyThinkerConfig =
            config::load_text("configs/published.toml", PUBLISHED, &[]).unwrap();
        config.validate().unwrap();
        // Which model is the user's choice.
        assert!(config.model.pretrained.take().is_some());
        assert_eq!(config, TinyThinkerConfig::default());
    }

    #[test]
    fn what_the_pages_suggest_is_taken() {
        let pages = [include_str!("../README.md"), include_str!("../../../docs/papers/tinythinker.md")];
        assert!(suggested::all_are_taken(&pages, TinyThinkerConfig::validate) >= 3);
    }

    #[test]
    fn the_reference_has_every_quirk_switched_on() {
        let text = include_str!("../configs/reference.toml");
        let config: TinyThinkerConfig = config::load_text("configs/reference.toml", text, &[]).unwrap();
        config.validate().unwrap();
        let published: TinyThinkerConfig =
            config::load_text("configs/published.toml", PUBLISHED, &[]).unwrap();
        // Written without the quirks, it is what is published.
        let quirks = [
            "data.analysis_order=by_label",
            "teacher.attempts=6",
            "acquisition.trainer.keep=2",
            "reflection.training.distinct_prompts=true",
            "reflection.training.keep_if_worse=false",
            "reflection.training.pairs.drop_equal=true",
            "reflection.training.lengths.cut={keep_both={tail=16}}",
            "reflection.training.dpo.rpo_padding_compat=false",
            "reflection.training.dpo.dropout=false",
            "reflection.trainer.keep=2",
        ];
        let load = |sets: &[String]| -> TinyThinkerConfig {
            config::load_text("configs/reference.toml", text, sets).unwrap()
        };
        let without: Vec<String> = quirks.map(String::from).into();
        assert_eq!(load(&without), published);
        for i in 0..without.len() {
            let others = [&without[..i], &without[i + 1..]].concat();
            assert!(load(&others) != published, "{} is not switched on", quirks[i]);
        }
    }

    #[test]
    fn the_published_settings_name_and_explain_every_key() {
        let mut section = String::new();
        let mut explained = std::collections::BTreeSet::new();
        let mut above = "";
        for line in PUBLISHED.lines() {
            if let Some(name) = line.strip_prefix('[').and_then(|line| line.strip_suffix(']')) {
                section = format!("{name}.");
            } else if let Some((key, _)) = line.trim_start_matches("# ").split_once(" = ")
                && !key.contains(' ')
            {
                assert!(above.starts_with("# "), "{section}{key} is not explained");
                explained.insert(format!("{section}{key}"));
            }
            above = line;
        }
        let defaults = config::to_toml(&TinyThinkerConfig::default()).unwrap();
        let mut keys = 0;
        let mut table = String::new();
        for line in defaults.lines() {
            if line.starts_with('[') {
                table = format!("{}.", line.trim_matches(['[', ']']));
            } else if let Some((key, _)) = line.split_once(" = ") {
                // Inline tables explain what is in them.
                let path = format!("{table}{key}");
                let mut parents = path.match_indices('.').map(|(dot, _)| &path[..dot]).chain([&path[..]]);
                assert!(parents.any(|path| explained.contains(path)), "configs/published.toml lacks {path}");
                keys += 1;
            }
        }
        assert!(keys > 100, "{keys}");
    }
}
