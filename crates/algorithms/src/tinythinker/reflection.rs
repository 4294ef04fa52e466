//! Phase 2: a round of preference training on the student's own right and wrong runs.

use std::path::Path;

use ruminate_datasets::tinythinker::{PairOptions, Question, Stage, Variant};
use ruminate_datasets::{PreferenceExample, tinythinker::StageText};
use ruminate_models::{Generate, Policy, Tokenizer};
use serde::{Deserialize, Serialize};

use super::acquisition::{StagedValidation, mean_and_longest, published_trainer, scheduled, validate_warmup};
use super::batches::StageBatches;
use super::generation::{GenerationSettings, hash};
use super::interval::{Interval, Machine, preference_limits};
use super::round::{CHECKPOINTS, Learner};
use crate::dpo::{
    Dpo, DpoConfig, EncodedCounts, Pair, PairLengths, PairSource, PolicyEvaluation, PromptCut, Reference,
    encode_pairs, precompute_cached,
};
use crate::plan::{Pass, Work};
use crate::trainer::Evaluation;
use crate::{Collective, Error, Fitted, Observer, Result, Trainer, TrainerConfig};

/// Which stages are trained on pairs.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Reflected {
    /// Recall alone.
    Recall,
    /// Analyze alone; its prompts come from pairs of knowledge all the same.
    Analyze,
    /// Both.
    #[default]
    RecallAnalyze,
}

impl Reflected {
    pub(super) fn trains(self, stage: Stage) -> bool {
        match stage {
            Stage::Recall => self != Self::Analyze,
            Stage::Analyze => self != Self::Recall,
            Stage::Summarize => false,
        }
    }

    /// The name in files and settings.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Self::Recall => "recall",
            Self::Analyze => "analyze",
            Self::RecallAnalyze => "recall_analyze",
        }
    }
}

/// Settings of a round; the defaults are the published ones.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct ReflectionConfig {
    /// Which stages are trained.
    pub stages: Reflected,
    /// Sampled runs of each question, and of each chosen knowledge.
    pub generation_times: usize,
    /// How often the recall and analyze blocks come: a round validates once per block pair, and ends after as many.
    pub blocks: u64,
    /// Pairs of a process in an optimizer step, all of one stage. The trainer's `accumulate` divides them.
    pub batch_size: usize,
    /// What happens to a block when its stage runs out of pairs.
    pub machine: Machine,
    /// Share of the steps in which the rate rises; 0 takes the trainer's `warmup_steps`.
    pub warmup_ratio: f64,
    /// Analyses are sampled once for each distinct knowledge; otherwise once for each pair, as in the published code.
    pub distinct_prompts: bool,
    /// Share of the questions whose pairs are held out, to see loss and margins on.
    pub held_out: f64,
    /// The best of the trained checkpoints is taken even if it answers worse than the round's start, as in the published code.
    pub keep_if_worse: bool,
    /// Seed of the order of the pairs.
    pub shuffle_seed: u64,
    /// How pairs are made.
    pub pairs: PairOptions,
    /// Largest lengths. Of a prompt that is too long the middle is cut, so that it still says what is asked for; the published code
    /// cuts that off (`keep_start`).
    pub lengths: PairLengths,
    /// The loss.
    pub dpo: DpoConfig,
    /// How runs are sampled, and validation answers.
    pub generation: GenerationSettings,
}

impl Default for ReflectionConfig {
    fn default() -> Self {
        Self {
            stages: Reflected::default(),
            generation_times: 10,
            blocks: 10,
            batch_size: 32,
            machine: Machine::default(),
            warmup_ratio: 0.1,
            distinct_prompts: true,
            held_out: 0.0,
            keep_if_worse: false,
            shuffle_seed: 42,
            pairs: PairOptions::default(),
            // `Analyze: For option X,` and the end token are fewer.
            lengths: PairLengths { cut: PromptCut::KeepBoth { tail: 16 }, ..PairLengths::default() },
            dpo: DpoConfig { beta: 0.5, rpo_alpha: 0.5, ..DpoConfig::default() },
            generation: GenerationSettings::default(),
        }
    }
}

impl ReflectionConfig {
    /// The published optimizer: as in the supervised phase, at 5e-6.
    #[must_use]
    pub fn trainer() -> TrainerConfig {
        TrainerConfig { lr: 5e-6, ..published_trainer() }
    }

    /// Checks the settings.
    ///
    /// # Errors
    /// Names the setting that is wrong.
    pub fn validate(&self) -> Result<()> {
        for (key, value) in [
            ("generation_times", self.generation_times),
            ("blocks", self.blocks as usize),
            ("batch_size", self.batch_size),
        ] {
            if value == 0 {
                return Err(Error::config(key, "is 0, but must be at least 1"));
            }
        }
        if !(0.0..1.0).contains(&self.held_out) {
            return Err(Error::config("held_out", format!("is {}, but must be in [0, 1)", self.held_out)));
        }
        validate_warmup(self.warmup_ratio)?;
        self.dpo.validate()?;
        self.generation.validate_runs(self.generation_times)
    }
}

/// Pairs in the order of the stages' turns.
#[derive(Debug)]
pub struct StagePairs {
    stages: Vec<Vec<Pair>>,
    batches: StageBatches,
    /// Pairs of a process in a step.
    batch_size: usize,
}

impl StagePairs {
    /// Block lengths with so many processes.
    fn limits(stages: &[Vec<Pair>], batch_size: usize, processes: usize) -> Result<Vec<u64>> {
        let pairs = |stage: usize| stages.get(stage).map(|pairs| pairs.len() as u64);
        preference_limits(pairs(0), pairs(1), (batch_size * processes) as u64)
    }
}

impl PairSource for StagePairs {
    fn distribute(&mut self, collective: &Collective) -> Result<()> {
        let limits = Self::limits(&self.stages, self.batch_size, collective.size())?;
        self.batches.shard(limits, collective.shard()?)
    }

    fn next(&mut self, _: u64) -> Result<Vec<Pair>> {
        let batch = self.batches.next();
        Ok(batch.rows.iter().map(|&row| self.stages[batch.stage][row].clone()).collect())
    }

    fn state(&self) -> serde_json::Value {
        self.batches.state()
    }

    fn load_state(&mut self, state: serde_json::Value) -> Result<()> {
        self.batches.load_state(state)
    }
}

/// A round's training: pairs, and how their stages take turns. Policy and reference begin as the same model.
#[derive(Debug)]
pub struct Reflection {
    config: ReflectionConfig,
    source: StagePairs,
    held_out: Vec<Pair>,
    /// What was cut and left out.
    pub counts: EncodedCounts,
    /// Stages that are not trained in this round, because they have no pairs.
    pub without_pairs: Vec<Stage>,
}

impl Reflection {
    /// Encodes the pairs of both stages. A step takes `accumulate` micro-batches.
    ///
    /// # Errors
    /// When a setting is wrong, no stage that is to be trained has pairs, or the tokenizer fails.
    pub fn new(
        config: ReflectionConfig,
        tokenizer: &Tokenizer,
        recall: &[PreferenceExample],
        analyze: &[PreferenceExample],
        accumulate: usize,
    ) -> Result<Self> {
        config.validate()?;
        let mut counts = EncodedCounts::default();
        let (mut stages, mut held_out, mut without_pairs) = (vec![], vec![], vec![]);
        for (stage, examples) in [(Stage::Recall, recall), (Stage::Analyze, analyze)] {
            if !config.stages.trains(stage) {
                continue;
            }
            let (held, trained): (Vec<_>, Vec<_>) =
                examples.iter().cloned().partition(|pair| is_held_out(&pair.prompt, config.held_out));
            let trained = encode_pairs(tokenizer, &trained, config.lengths)?;
            let held = encode_pairs(tokenizer, &held, config.lengths)?;
            counts.add(trained.counts);
            counts.add(held.counts);
            if trained.pairs.is_empty() {
                without_pairs.push(stage);
                continue;
            }
            stages.push(trained.pairs);
            held_out.extend(held.pairs);
        }
        if stages.is_empty() {
            let reason = format!(
                "are none for `{}`: all sampled runs of a question were right, or all were wrong; sample more runs or at a \
                 higher temperature",
                config.stages.name()
            );
            return Err(Error::config("pairs", reason));
        }
        let batch_size = config.batch_size;
        let limits = StagePairs::limits(&stages, batch_size, 1)?;
        let rows: Vec<usize> = stages.iter().map(Vec::len).collect();
        let batches =
            StageBatches::new(&rows, limits, batch_size, accumulate, config.machine, config.shuffle_seed)?;
        let source = StagePairs { stages, batches, batch_size };
        Ok(Self { source, config, held_out, counts, without_pairs })
    }

    /// When stages take turns.
    #[must_use]
    pub fn interval(&self) -> &Interval {
        self.source.batches.interval()
    }

    /// The settings of a trainer of `processes` processes with what follows from the pairs: steps, warm-up and, where `eval_every` is 0,
    /// a validation per round of blocks.
    ///
    /// # Errors
    /// When there are no processes.
    pub fn trainer(&self, trainer: &TrainerConfig, processes: usize) -> Result<TrainerConfig> {
        let cycle = StagePairs::limits(&self.source.stages, self.config.batch_size, processes)?.iter().sum();
        Ok(scheduled(trainer, self.config.blocks * cycle, self.config.warmup_ratio, cycle))
    }

    /// Pairs of all stages that are trained.
    #[must_use]
    pub fn pairs(&self) -> usize {
        self.source.stages.iter().map(Vec::len).sum()
    }

    /// The micro-batches of a step, for a [`Plan`](crate::Plan): on average over the stages. Both completions of a pair are rows.
    #[must_use]
    pub fn passes(&self, trainer: &TrainerConfig) -> Vec<Pass> {
        let all = self.pairs() as f64;
        let pass = |pairs: &Vec<Pair>| Pass {
            work: Work::Training,
            times: trainer.accumulate as f64 * pairs.len() as f64 / all,
            networks: 1,
            rows: 2 * self.config.batch_size.div_ceil(trainer.accumulate),
            source: mean_and_longest(pairs.iter().map(|pair| pair.prompt.len())),
            target: mean_and_longest(pairs.iter().flat_map(|pair| [pair.chosen.len(), pair.rejected.len()])),
        };
        self.source.stages.iter().map(pass).collect()
    }

    /// Trains a student on the pairs, or goes on where the last checkpoint stands. Checkpoints go to `folder/checkpoints`, and the
    /// reference's log-probabilities to `folder/reference_logps.json`.
    ///
    /// # Errors
    /// Those of [`start`](Self::start), [`Trainer::across`] and [`Trainer::fit`].
    pub fn fit<P: Policy + Generate + 'static>(
        self,
        learner: Learner<P>,
        valid: &[Question],
        trainer: &TrainerConfig,
        folder: &Path,
        collective: &Collective,
        observer: &mut dyn Observer,
    ) -> Result<Fitted> {
        let trainer = self.trainer(trainer, collective.size())?;
        let Learner { policy, tokenizer, variant } = learner;
        let cache = folder.join("reference_logps.json");
        let mut dpo = self.start(policy, tokenizer, variant, valid, &cache, collective)?;
        Trainer::across(trainer, &folder.join(CHECKPOINTS), collective)?.fit(&mut dpo, observer)
    }

    /// The algorithm. The reference's log-probabilities are those of `policy` as it is now, and are kept in `cache`; processes that will
    /// train together compute them together. Validation answers `valid` in all stages.
    ///
    /// # Errors
    /// When the model fails, the cache cannot be written, or there is nothing to validate with.
    pub fn start<P: Policy + Generate + 'static>(
        mut self,
        policy: P,
        tokenizer: Tokenizer,
        variant: Variant,
        valid: &[Question],
        cache: &Path,
        collective: &Collective,
    ) -> Result<Dpo<P, StagePairs>> {
        let config = self.config;
        let validation = StagedValidation::new(tokenizer.clone(), variant, valid, config.generation.clone())?;
        let sizes: Vec<usize> = self.source.stages.iter().map(Vec::len).collect();
        let mut all: Vec<Pair> = self.source.stages.drain(..).flatten().chain(self.held_out).collect();
        precompute_cached(&policy, &mut all, config.dpo.ld_alpha, config.batch_size * 2, cache, collective)?;
        let mut all = all.into_iter();
        self.source.stages = sizes.into_iter().map(|size| all.by_ref().take(size).collect()).collect();
        let dpo =
            Dpo::new(config.dpo, policy, Reference::Precomputed, self.source, all.collect(), tokenizer)?;
        Ok(dpo.evaluated_by(Choice { validation, keep_if_worse: config.keep_if_worse }))
    }
}

/// Whether the question of a prompt is among the share that is held out: by its text, so that it is so in all rounds.
fn is_held_out(prompt: &str, share: f64) -> bool {
    let block = StageText::parse(prompt).map_or_else(|_| prompt.to_string(), |text| text.block);
    // Of the hash, the bits that fit into the fraction of a float.
    ((ruminate_models::derive_seed(hash(&block), &[]) >> 11) as f64 / (1u64 << 53) as f64) < share
}

/// Chooses among the checkpoints of a round.
struct Choice {
    validation: StagedValidation,
    keep_if_worse: bool,
}

impl<P: Generate> PolicyEvaluation<P> for Choice {
    fn distribute(&mut self, collective: &Collective) -> Result<()> {
        self.validation.distribute(collective);
        Ok(())
    }

    fn evaluate(&mut self, policy: &P, step: u64, observer: &mut dyn Observer) -> Result<Evaluation> {
        let mut found = self.validation.evaluate(policy, step, observer)?;
        if step == 0 && self.keep_if_worse {
            // Below all accuracies.
            found.score = -1.0;
        }
        Ok(found)
    }
}
