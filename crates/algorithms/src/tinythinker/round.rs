//! One round of reflection.

use std::path::{Path, PathBuf};

use ruminate_datasets::tinythinker::Variant;
use ruminate_models::{Generate, Policy, Tokenizer};
use serde::{Deserialize, Serialize};

use super::data::ReflectionData;
use super::generation::Student;
use super::reflection::{Reflection, ReflectionConfig};
use super::sampling::{PairSummary, Round, RoundPairs};
use crate::trainer::Checkpoints;
use crate::{Collective, Ending, Fitted, Observer, Result, TrainerConfig, model_identity};

/// A student that is about to be trained.
#[derive(Debug)]
pub struct Learner<P> {
    /// The model.
    pub policy: P,
    /// Its tokenizer.
    pub tokenizer: Tokenizer,
    /// Its stages.
    pub variant: Variant,
}

impl<P> Learner<P> {
    /// The student as it is now.
    pub fn student(&self) -> Student<'_, P> {
        Student { policy: &self.policy, tokenizer: &self.tokenizer, variant: self.variant }
    }
}

/// A round of reflection, from a checkpoint to the next one: runs are sampled and paired, then the student is trained on the pairs.
#[derive(Debug, Clone, Copy)]
pub struct ReflectionRound<'a> {
    /// Its number, from 1: each round has samples of its own.
    pub number: u64,
    /// The checkpoint that it begins with.
    pub start: &'a Path,
    /// Where its files are.
    pub folder: &'a Path,
    /// Settings of sampling, pairs and loss.
    pub config: &'a ReflectionConfig,
    /// Settings of the trainer.
    pub trainer: &'a TrainerConfig,
    /// Who works on it.
    pub collective: &'a Collective,
}

/// A round that is over: `round.json`.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct FinishedRound {
    /// From 1.
    pub round: u64,
    /// The checkpoint that the runs were sampled with, and that the round began with.
    pub start: PathBuf,
    /// The checkpoint that is taken further.
    pub best: PathBuf,
    /// Its step.
    pub step: u64,
    /// Share of right answers on the validation questions, before the round and with the best checkpoint.
    pub accuracy: [f64; 2],
    /// Counts of the sampled runs and their pairs.
    pub sampled: PairSummary,
    /// Pairs with a prompt that was cut.
    pub prompts_cut: usize,
    /// Stages that were not trained, because they had no pairs.
    pub without_pairs: Vec<String>,
}

impl FinishedRound {
    /// The columns of a table of rounds.
    pub const COLUMNS: [&str; 7] = [
        "round",
        "right samples",
        "recall pairs",
        "analyze pairs",
        "accuracy before",
        "accuracy after",
        "step",
    ];

    /// The metrics that show how rounds went, with titles.
    pub const CURVES: [(&str, &str); 5] = [
        ("eval/accuracy", "accuracy on the validation questions"),
        ("train/loss", "loss"),
        ("rewards/margins", "reward margin"),
        ("rewards/accuracies", "share of pairs in the right order"),
        ("train/nll_loss", "negative log-likelihood of the chosen"),
    ];

    /// The round's cells in such a table.
    #[must_use]
    pub fn cells(&self) -> [String; 7] {
        let Self { round, step, accuracy: [before, after], sampled, .. } = self;
        let [right, before, after] = [sampled.right, *before, *after].map(|share| format!("{share:.3}"));
        let [recall, analyze] = [sampled.recall, sampled.analyze].map(|counts| counts.pairs.to_string());
        [round.to_string(), right, recall, analyze, before, after, step.to_string()]
    }
}

impl ReflectionRound<'_> {
    /// Samples runs and writes the round's pair files, or goes on where an earlier call was; see [`Student::make_pairs`]. `None` when the
    /// observer asked to stop.
    ///
    /// # Errors
    /// Those of [`Student::make_pairs`].
    pub fn pairs<P: Generate>(
        &self,
        student: &Student<'_, P>,
        data: &ReflectionData,
        observer: &mut dyn Observer,
    ) -> Result<Option<RoundPairs>> {
        let Self { number, start, folder, collective, .. } = *self;
        let model = model_identity(start);
        let round = Round { number, model: &model, folder, collective };
        student.make_pairs(&data.questions, &data.teacher, self.config, &round, observer)
    }

    /// Goes through the whole round, from wherever it is. `None` when the observer asked to stop.
    ///
    /// # Errors
    /// Those of [`pairs`](Self::pairs), [`Reflection::new`] and [`Reflection::fit`].
    pub fn run<P: Policy + Generate + 'static>(
        &self,
        learner: Learner<P>,
        data: &ReflectionData,
        observer: &mut dyn Observer,
    ) -> Result<Option<FinishedRound>> {
        let Self { folder, config, trainer, collective, .. } = *self;
        let Some(pairs) = self.pairs(&learner.student(), data, observer)? else { return Ok(None) };
        let (recall, analyze) = (&pairs.recall, &pairs.analyze);
        let reflection =
            Reflection::new(config.clone(), &learner.tokenizer, recall, analyze, trainer.accumulate)?;
        let prompts_cut = reflection.counts.prompts_cut;
        let without_pairs = reflection.without_pairs.iter().map(|stage| stage.name().to_string()).collect();
        let Fitted { ending, best, .. } =
            reflection.fit(learner, &data.valid, trainer, folder, collective, observer)?;
        if ending == Ending::Stopped {
            return Ok(None);
        }
        let before = collective.first(|| -> Result<_> {
            let state = Checkpoints::open(&folder.join(CHECKPOINTS))?.last_state()?;
            Ok(state.and_then(|state| state.scores.get(&0).copied()))
        })?;
        Ok(Some(FinishedRound {
            round: self.number,
            start: self.start.into(),
            best: best.path,
            step: best.step,
            accuracy: [before.unwrap_or(f64::NAN), best.score],
            sampled: pairs.summary,
            prompts_cut,
            without_pairs,
        }))
    }
}

/// The folder of a run's checkpoints.
pub(super) const CHECKPOINTS: &str = "checkpoints";
