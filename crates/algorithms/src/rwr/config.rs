//! How a data set of weighted texts is trained on.

use ruminate_datasets::Order;
use ruminate_datasets::rise::TrainingText;
use ruminate_models::Tokenizer;
use serde::{Deserialize, Serialize};

use super::{
    EncodedExamples, TooLong, WeightedExample, Weighting, encode_texts, trainer_config, warmup_steps,
};
use crate::plan::{Pass, Work};
use crate::{Error, Result, TrainerConfig};

/// Settings of reward-weighted regression. The defaults are those of RISE's published scripts.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct RwrConfig {
    /// Passes over the examples; 0 takes the trainer's steps. Default: 0.3, as in the script; the README leaves it open.
    pub epochs: f64,
    /// Examples of a micro-batch. Default: 1.
    pub batch_size: usize,
    /// What the weights of the examples become.
    pub weighting: Weighting,
    /// Most tokens of an example. Default: 2048.
    pub max_length: usize,
    /// What becomes of longer ones.
    pub too_long: TooLong,
    /// Share of the steps in which the rate rises; 0 takes the trainer's warm-up. Default: 0.04.
    pub warmup_ratio: f64,
    /// Share of the problems whose examples are held out for validation. Default: 0; the published code has no validation.
    pub held_out: f64,
    /// Seed of the order of the examples and of what is held out. Default: 42.
    pub shuffle_seed: u64,
}

impl Default for RwrConfig {
    fn default() -> Self {
        Self {
            epochs: 0.3,
            batch_size: 1,
            weighting: Weighting::default(),
            max_length: 2048,
            too_long: TooLong::default(),
            warmup_ratio: 0.04,
            held_out: 0.0,
            shuffle_seed: 42,
        }
    }
}

impl RwrConfig {
    /// The published optimizer, see [`trainer_config`], with the 64 examples of an update on one device instead of four.
    #[must_use]
    pub fn trainer() -> TrainerConfig {
        // The steps are those where `epochs` is 0.
        let base = trainer_config(50_001);
        TrainerConfig { accumulate: 64, log_every: 1, eval_every: 100, warmup_steps: 0, ..base }
    }

    /// The steps of `processes` processes on so many examples, as transformers' trainer counts them: an epoch ends with its last whole
    /// update.
    #[must_use]
    pub fn steps(&self, examples: usize, trainer: &TrainerConfig, processes: usize) -> u64 {
        if self.epochs == 0.0 {
            return trainer.steps;
        }
        let batches = examples.div_ceil(self.batch_size * processes);
        let updates = (batches / trainer.accumulate).max(1);
        ((self.epochs * updates as f64).ceil() as u64).max(1)
    }

    /// Checks the settings.
    ///
    /// # Errors
    /// Names the setting that is wrong.
    pub fn validate(&self) -> Result<()> {
        if !(self.epochs >= 0.0 && self.epochs.is_finite()) {
            return Err(Error::config("epochs", format!("is {}, but must not be negative", self.epochs)));
        }
        for (key, share) in [("warmup_ratio", self.warmup_ratio), ("held_out", self.held_out)] {
            if !(0.0..1.0).contains(&share) {
                return Err(Error::config(key, format!("is {share}, but must be in [0, 1)")));
            }
        }
        for (key, value, least) in [("batch_size", self.batch_size, 1), ("max_length", self.max_length, 2)] {
            if value < least {
                return Err(Error::config(key, format!("is {value}, but must be at least {least}")));
            }
        }
        Ok(())
    }
}

/// What became of the texts of a data set.
#[derive(Debug, Clone, Copy, Default, PartialEq, Serialize)]
pub struct RwrCounts {
    /// Texts.
    pub texts: usize,
    /// Examples to train on.
    pub examples: usize,
    /// Examples held out for validation.
    pub held_out: usize,
    /// Texts whose end was cut off.
    pub cut: usize,
    /// Texts left out because they have too many tokens.
    pub too_long: usize,
    /// Texts left out because no token of them is trained.
    pub untrained: usize,
    /// Mean weight of the examples to train on.
    pub mean_weight: f64,
}

/// A data set in token ids.
#[derive(Debug, Clone, PartialEq)]
pub struct RwrData {
    /// What is trained on.
    pub examples: Vec<WeightedExample>,
    /// What validation looks at.
    pub held_out: Vec<WeightedExample>,
    /// What became of the texts.
    pub counts: RwrCounts,
}

impl RwrData {
    /// Encodes texts, weighs them, and holds some out. `problems` names the problem of each text; all examples of a problem are
    /// either trained on or held out.
    ///
    /// # Errors
    /// A setting or a weight is wrong, or fewer examples are left than a batch needs.
    pub fn new<K: Ord>(
        tokenizer: &Tokenizer,
        texts: &[TrainingText],
        problems: &[K],
        config: &RwrConfig,
    ) -> Result<Self> {
        config.validate()?;
        if texts.len() != problems.len() {
            let reason = format!("{} texts belong to {} problems", texts.len(), problems.len());
            return Err(Error::config("problems", reason));
        }
        let EncodedExamples { mut examples, texts: kept, cut, too_long, untrained } =
            encode_texts(tokenizer, texts, config.max_length, config.too_long)?;
        let problems: Vec<&K> = kept.iter().map(|&text| &problems[text]).collect();
        let weights: Vec<f64> = kept.iter().map(|&text| texts[text].weight).collect();
        for (example, weight) in examples.iter_mut().zip(config.weighting.apply(&weights, &problems)?) {
            example.weight = weight as f32;
        }
        let mut names = problems.clone();
        names.sort_unstable();
        names.dedup();
        let mut order = Order::shuffled(names.len(), config.shuffle_seed).indices(0);
        order.truncate((names.len() as f64 * config.held_out) as usize);
        let held: std::collections::BTreeSet<&K> = order.into_iter().map(|i| names[i]).collect();
        let (held_out, examples): (Vec<_>, Vec<_>) =
            examples.into_iter().zip(&problems).partition(|(_, problem)| held.contains(*problem));
        let examples: Vec<WeightedExample> = examples.into_iter().map(|(example, _)| example).collect();
        let held_out: Vec<WeightedExample> = held_out.into_iter().map(|(example, _)| example).collect();
        if examples.len() < config.batch_size {
            let reason = format!(
                "{} texts leave {} examples to train on, fewer than batch_size = {} ({untrained} without a trained token within \
                 max_length = {}, {too_long} too long, {} held out)",
                texts.len(),
                examples.len(),
                config.batch_size,
                config.max_length,
                held_out.len()
            );
            return Err(Error::config("examples", reason));
        }
        let mean_weight =
            examples.iter().map(|example| f64::from(example.weight)).sum::<f64>() / examples.len() as f64;
        let counts = RwrCounts {
            texts: texts.len(),
            examples: examples.len(),
            held_out: held_out.len(),
            cut,
            too_long,
            untrained,
            mean_weight,
        };
        Ok(Self { examples, held_out, counts })
    }

    /// The settings of a trainer of `processes` processes with what follows from the data: steps and warm-up.
    #[must_use]
    pub fn trainer(&self, config: &RwrConfig, trainer: &TrainerConfig, processes: usize) -> TrainerConfig {
        let mut trainer = trainer.clone();
        trainer.steps = config.steps(self.examples.len(), &trainer, processes);
        if config.warmup_ratio > 0.0 {
            trainer.warmup_steps = warmup_steps(trainer.steps, config.warmup_ratio);
        }
        trainer
    }

    /// The micro-batches of a step, for a [`Plan`](crate::Plan).
    #[must_use]
    pub fn passes(&self, config: &RwrConfig, trainer: &TrainerConfig) -> Vec<Pass> {
        let lengths = |length: &dyn Fn(&WeightedExample) -> usize| {
            let lengths = || self.examples.iter().map(length);
            let sum: usize = lengths().sum();
            [sum as f64 / self.examples.len().max(1) as f64, lengths().max().unwrap_or(0) as f64]
        };
        let source = lengths(&|weighted| weighted.example.prompt.len());
        let target = lengths(&|weighted| weighted.example.target.len());
        let (times, rows) = (trainer.accumulate as f64, config.batch_size);
        vec![Pass { work: Work::Training, times, networks: 1, rows, source, target }]
    }
}
