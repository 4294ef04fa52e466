//! The configuration file.

use std::path::{Path, PathBuf};

use ruminate::algorithms::{Schedule, TrainerConfig};
use ruminate::datasets::{SupervisedExample, json};
use ruminate::models::{GenerationConfig, Sampling, Strategy};
use ruminate::run::program::Configuration;
use ruminate::run::{ConfigError, FlagKeys, ModelSection};
use serde::{Deserialize, Serialize};

/// The command of a run.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub(crate) enum Phase {
    Finetune,
    Iterate,
}

/// Everything that a run depends on. `configs/default.toml` explains each key.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub(crate) struct StarConfig {
    pub(crate) phase: Option<Phase>,
    pub(crate) seed: u64,
    pub(crate) model: ModelSection,
    pub(crate) data: DataSection,
    pub(crate) finetune: FinetuneSection,
    pub(crate) trainer: TrainerConfig,
    pub(crate) sampling: SamplingSection,
    pub(crate) iterations: u64,
    pub(crate) step_growth: f64,
}

/// Questions, and how they become text.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub(crate) struct DataSection {
    pub(crate) train: PathBuf,
    pub(crate) test: PathBuf,
    pub(crate) prompt: String,
    pub(crate) hinted_prompt: String,
    pub(crate) completion: String,
}

/// Training on rationales.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub(crate) struct FinetuneSection {
    pub(crate) hints: bool,
    pub(crate) batch_size: usize,
    pub(crate) max_length: usize,
    pub(crate) shuffle_seed: u64,
}

/// How the model writes rationales to learn from.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub(crate) struct SamplingSection {
    pub(crate) samples: usize,
    pub(crate) temperature: f64,
    pub(crate) max_new_tokens: usize,
    pub(crate) stop: Vec<String>,
    pub(crate) rationalize: bool,
    pub(crate) batch: usize,
    pub(crate) seed: u64,
}

impl Default for StarConfig {
    fn default() -> Self {
        Self {
            phase: None,
            seed: 1,
            model: ModelSection::default(),
            data: DataSection {
                train: "data/train.jsonl".into(),
                test: "data/test.jsonl".into(),
                prompt: "Q: {question}\nA:".into(),
                hinted_prompt: "Q: {question} ({answer})\nA:".into(),
                completion: " {rationale} Therefore, the answer is {answer}.".into(),
            },
            finetune: FinetuneSection { hints: true, batch_size: 8, max_length: 512, shuffle_seed: 1 },
            // As in the paper, appendix H.
            trainer: TrainerConfig {
                steps: 40,
                lr: 1e-6,
                schedule: Schedule::Constant,
                warmup_steps: 100,
                eval_every: 0,
                ..TrainerConfig::default()
            },
            sampling: SamplingSection {
                samples: 1,
                temperature: 0.0,
                max_new_tokens: 256,
                stop: vec!["\nQ:".into()],
                rationalize: true,
                batch: 64,
                seed: 1,
            },
            iterations: 16,
            step_growth: 1.2,
        }
    }
}

impl Default for DataSection {
    fn default() -> Self {
        StarConfig::default().data
    }
}

impl Default for FinetuneSection {
    fn default() -> Self {
        StarConfig::default().finetune
    }
}

impl Default for SamplingSection {
    fn default() -> Self {
        StarConfig::default().sampling
    }
}

impl Configuration for StarConfig {
    const FLAGS: FlagKeys = FlagKeys {
        seed: &["seed", "finetune.shuffle_seed", "sampling.seed"],
        precision: &["trainer.precision"],
    };

    fn validate(&self) -> Result<(), ConfigError> {
        self.trainer.validate().map_err(ConfigError::invalid)?;
        let counts = [
            ("finetune.batch_size", self.finetune.batch_size),
            ("sampling.samples", self.sampling.samples),
            ("sampling.batch", self.sampling.batch),
            ("iterations", self.iterations as usize),
        ];
        if let Some((key, _)) = counts.into_iter().find(|(_, count)| *count == 0) {
            return Err(ConfigError::invalid(format!("{key} is 0, but must be at least 1")));
        }
        if self.sampling.samples > 1 && self.sampling.temperature == 0.0 {
            let reason =
                "sampling.samples: greedy rationales are all the same; raise sampling.temperature above 0";
            return Err(ConfigError::invalid(reason));
        }
        self.data.ending()?;
        self.model.validate("model")
    }
}

impl SamplingSection {
    /// A text up to where it should have stopped: what stops a model is part of what it wrote.
    pub(crate) fn stopped<'t>(&self, text: &'t str) -> &'t str {
        let end = self.stop.iter().filter_map(|stop| text.find(stop.as_str())).min();
        &text[..end.unwrap_or(text.len())]
    }

    /// How rationales are written.
    pub(crate) fn generation(&self, samples_per_prompt: usize, temperature: f64) -> GenerationConfig {
        let strategy = match temperature {
            0.0 => Strategy::Greedy,
            temperature => Strategy::Sample(Sampling { temperature, ..Sampling::default() }),
        };
        let (max_new_tokens, stop_strings) = (self.max_new_tokens, self.stop.clone());
        GenerationConfig {
            strategy,
            max_new_tokens,
            stop_strings,
            samples_per_prompt,
            ..GenerationConfig::default()
        }
    }
}

/// A question with its answer, and a rationale where there is one. Further fields of a file's row are ignored.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub(crate) struct Row {
    pub(crate) question: String,
    #[serde(default)]
    pub(crate) rationale: String,
    pub(crate) answer: String,
}

impl DataSection {
    /// Reads JSON lines.
    pub(crate) fn read(path: &Path) -> anyhow::Result<Vec<Row>> {
        let trimmed = |row: Row| Row { answer: row.answer.trim().to_owned(), ..row };
        let rows: Vec<Row> = json::read_rows(path)?.into_iter().map(|(_, row)| trimmed(row)).collect();
        if rows.is_empty() {
            return Err(ConfigError::invalid(format!("{} has no rows", path.display())).into());
        }
        Ok(rows)
    }

    /// The prompt for a question; with a hint, it tells the answer.
    pub(crate) fn prompt(&self, row: &Row, hint: bool) -> String {
        let template = if hint { &self.hinted_prompt } else { &self.prompt };
        template.replace("{question}", &row.question).replace("{answer}", &row.answer)
    }

    /// An example of reasoning.
    pub(crate) fn example(&self, row: &Row, hint: bool) -> SupervisedExample {
        let completion =
            self.completion.replace("{rationale}", &row.rationale).replace("{answer}", &row.answer);
        SupervisedExample::Completion { prompt: self.prompt(row, hint), completion }
    }

    /// The text between rationale and answer, and behind the answer.
    fn ending(&self) -> Result<(&str, &str), ConfigError> {
        let parts =
            self.completion.split_once("{rationale}").and_then(|(_, rest)| rest.split_once("{answer}"));
        parts.filter(|(between, _)| !between.trim().is_empty()).ok_or_else(|| {
            ConfigError::invalid(
                "data.completion: needs {rationale}, some words, and {answer}, in this order",
            )
        })
    }

    /// Rationale and answer of a text that a model wrote; none where it gives no answer.
    pub(crate) fn parse(&self, text: &str) -> Option<(String, String)> {
        let (between, after) = self.ending().ok()?;
        let (rationale, answer) = text.rsplit_once(between.trim())?;
        let answer = answer.trim().strip_suffix(after.trim()).unwrap_or(answer.trim()).trim();
        (!answer.is_empty()).then(|| (rationale.trim().to_owned(), answer.to_owned()))
    }
}

#[cfg(test)]
mod tests {
    use ruminate::run::config;

    use super::*;

    const DEFAULT: &str = include_str!("../configs/default.toml");

    #[test]
    fn the_file_has_the_defaults_and_explains_them() {
        let mut config: StarConfig = config::load_text("configs/default.toml", DEFAULT, &[]).unwrap();
        config.validate().unwrap();
        assert!(config.model.pretrained.take().is_some());
        assert_eq!(config, StarConfig::default());
        assert_eq!(config::unexplained_keys(DEFAULT, &config), [""; 0]);
    }

    #[test]
    fn what_a_prompted_model_goes_on_with_counts_for_nothing() {
        let StarConfig { data, sampling, .. } = StarConfig::default();
        let text =
            " One and one. Therefore, the answer is 2.\n\nQ: 2 + 2?\nA: Four. Therefore, the answer is 4.";
        assert_eq!(data.parse(sampling.stopped(text)), Some(("One and one.".into(), "2".into())));
        assert_eq!(sampling.stopped("no end"), "no end");
    }

    #[test]
    fn a_text_gives_what_it_was_made_of() {
        let data = StarConfig::default().data;
        let row = Row { question: "1 + 1?".into(), rationale: "One and one.".into(), answer: "2".into() };
        let SupervisedExample::Completion { prompt, completion } = data.example(&row, true) else { panic!() };
        assert_eq!(prompt, "Q: 1 + 1? (2)\nA:");
        assert_eq!(data.parse(&completion), Some((row.rationale, row.answer)));
        // The last answer counts; a text without one has none.
        let twice = "So, Therefore, the answer is 3. No. Therefore, the answer is 2";
        assert_eq!(data.parse(twice).unwrap().1, "2");
        for none in ["", "Two.", "Therefore, the answer is .", "Therefore, the answer is"] {
            assert_eq!(data.parse(none), None, "{none}");
        }
        let bad = DataSection { completion: "{answer} {rationale}".into(), ..data };
        assert!(format!("{:?}", bad.ending().unwrap_err()).contains("data.completion"));
    }
}
