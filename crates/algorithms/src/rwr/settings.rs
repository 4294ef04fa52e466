//! The parts of RISE's configuration that say how episodes are played, trained on and evaluated, and what an iteration is.

use std::path::{Path, PathBuf};

use ruminate_datasets::environments::Compat;
use ruminate_datasets::json;
use ruminate_datasets::rise::{
    ChatConfig, EvaluationSetting, RiseData, RolloutConfig, ServiceSampling, TrainingExample, TrainingText,
    training_text,
};
use ruminate_datasets::teacher::Prices;
use ruminate_models::{GenerationConfig, ModelShape, Sampling, Strategy, Tokenizer};
use ruminate_rewards::rise::MetricOptions;
use serde::{Deserialize, Serialize};
use tch::Kind;

use super::{RwrConfig, RwrData, TokenLengths};
use crate::plan::{Networks, Pass, Plan, Work};
use crate::{Error, Precision, Result, TrainerConfig};

/// How local models write. The defaults are those of the published code.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct GenerationSettings {
    /// Temperature of the draw; 0 takes the most probable token of each step.
    pub temperature: f64,
    /// The smallest set of tokens with this probability is drawn from.
    pub top_p: f64,
    /// Most tokens of an answer.
    pub max_new_tokens: usize,
    /// Tokens of prompt and answer together; 0 for what the model was made for.
    pub context_length: usize,
    /// Removes blanks before punctuation.
    pub clean_up: bool,
    /// Precision of the weights.
    pub precision: Precision,
}

impl Default for GenerationSettings {
    fn default() -> Self {
        Self {
            temperature: 1.0,
            top_p: 1.0,
            max_new_tokens: 1000,
            context_length: 0,
            clean_up: false,
            precision: Precision::Bf16,
        }
    }
}

impl GenerationSettings {
    /// Tokens of a dialogue that a model without a limit reads, where `context_length` says nothing.
    pub const UNLIMITED: usize = 8192;

    /// True at temperature 0: answers are not drawn, so all answers to a prompt are the same.
    #[must_use]
    pub fn is_greedy(&self) -> bool {
        self.temperature == 0.0
    }

    /// The settings of a call; `max_memory` is what keys, values and logits may take.
    #[must_use]
    pub fn config(&self, max_memory: Option<u64>) -> GenerationConfig {
        let Self { temperature, top_p, max_new_tokens, .. } = *self;
        let strategy = if self.is_greedy() {
            Strategy::Greedy
        } else {
            // Without a limit, nothing has to be sorted.
            let top_p = Some(top_p).filter(|&share| share < 1.0);
            Strategy::Sample(Sampling { temperature, top_p, ..Sampling::default() })
        };
        GenerationConfig { strategy, max_new_tokens, max_memory, ..GenerationConfig::default() }
    }

    /// Tokens of prompt and answer together, for a model that was made for so many.
    #[must_use]
    pub fn context(&self, made_for: Option<usize>) -> usize {
        match self.context_length {
            0 => made_for.unwrap_or(Self::UNLIMITED),
            tokens => tokens,
        }
    }

    /// The kind of the weights.
    #[must_use]
    pub fn kind(&self) -> Kind {
        match self.precision {
            Precision::F32 => Kind::Float,
            Precision::Bf16 => Kind::BFloat16,
        }
    }

    /// Checks the ranges; `section` is the name in the configuration.
    ///
    /// # Errors
    /// Names the section and what would be right.
    pub fn validate(&self, section: &str) -> Result<()> {
        let Self { temperature, top_p, max_new_tokens, .. } = *self;
        let sampling = Sampling { temperature, top_p: Some(top_p), ..Sampling::default() };
        if max_new_tokens > 0 && top_p > 0.0 && (self.is_greedy() || sampling.validate().is_ok()) {
            return Ok(());
        }
        let reason = "needs a temperature of 0 (greedy) or above, a top_p above 0 and up to 1, and at least 1 new token";
        Err(Error::config(section, reason))
    }
}

/// Episodes to learn from. The defaults are the turns of the published example's first iteration.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct CollectionConfig {
    /// Who answers in each turn, by name.
    pub models: Vec<String>,
    /// Attempts in each turn.
    pub samples: Vec<usize>,
    /// Checkpoint of the student; without one, the model that is trained.
    pub student: Option<PathBuf>,
    /// Checkpoint of a local teacher; without one, the teacher's service.
    pub teacher_model: Option<PathBuf>,
    /// Its template, where it is not the student's.
    pub teacher_template: Option<String>,
    /// Prices of a million tokens, to show what services cost.
    pub prices: Option<Prices>,
    /// Messages after the demonstration beyond which only the last ones are sent.
    pub dialogue_limit: usize,
    /// Times that a turn is sampled when nothing but degenerate text comes.
    pub tries: usize,
    /// Seed of all samples.
    pub seed: u64,
    /// Problems that are asked about at a time.
    pub batch: usize,
    /// How local models write.
    pub generation: GenerationSettings,
    /// How services are asked to write.
    pub teacher_sampling: ServiceSampling,
}

impl Default for CollectionConfig {
    fn default() -> Self {
        let RolloutConfig { dialogue_limit, tries, .. } = RolloutConfig::default();
        Self {
            models: ["student", "teacher"].map(String::from).into(),
            samples: vec![1, 1],
            student: None,
            teacher_model: None,
            teacher_template: None,
            prices: None,
            dialogue_limit,
            tries,
            seed: 42,
            batch: 64,
            generation: GenerationSettings::default(),
            teacher_sampling: ServiceSampling::default(),
        }
    }
}

impl CollectionConfig {
    /// How episodes are played.
    #[must_use]
    pub fn rollout(&self, compat: Compat) -> RolloutConfig {
        let (dialogue_limit, tries, seed) = (self.dialogue_limit, self.tries, self.seed);
        RolloutConfig { dialogue_limit, tries, seed, compat, ..RolloutConfig::collect(&self.samples) }
    }

    /// Checks the settings; `compat` is the mode of the rollout.
    ///
    /// # Errors
    /// Names the setting that is wrong.
    pub fn validate(&self, compat: Compat) -> Result<()> {
        self.rollout(compat).validate().map_err(named("collection"))?;
        let (models, turns) = (self.models.len(), self.samples.len());
        if models != turns {
            let reason = format!("names {models} turns, but collection.samples {turns}; name as many");
            return Err(Error::config("collection.models", reason));
        }
        self.generation.validate("collection.generation")?;
        self.teacher_sampling.validate().map_err(named("collection.teacher_sampling"))
    }
}

/// How a model is evaluated, on which problems. The defaults are those of the published driver.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct EvaluationConfig {
    /// The checkpoint; written by the command.
    pub model: Option<PathBuf>,
    /// Instead of a checkpoint: somebody who takes turns in collections, by name.
    pub player: Option<String>,
    /// Problems to ask about.
    pub problems: PathBuf,
    /// Only the first ones; 0 for all.
    pub limit: usize,
    /// Turns or first attempts, with an oracle or without.
    pub setting: EvaluationSetting,
    /// Turns of the sequential settings.
    pub turns: usize,
    /// First attempts of the parallel one.
    pub samples: usize,
    /// Turns that a model sees at most.
    pub context_window: usize,
    /// Messages after the demonstration beyond which only the last ones are sent.
    pub dialogue_limit: usize,
    /// Times that a turn is sampled when nothing but degenerate text comes.
    pub tries: usize,
    /// Seed of all samples.
    pub seed: u64,
    /// Problems that are asked about at a time.
    pub batch: usize,
    /// How the model writes.
    pub generation: GenerationSettings,
    /// How metrics are made.
    pub metrics: MetricOptions,
}

impl Default for EvaluationConfig {
    fn default() -> Self {
        let RolloutConfig { dialogue_limit, tries, .. } = RolloutConfig::default();
        Self {
            model: None,
            player: None,
            problems: "data/gsm8k/test.jsonl".into(),
            limit: 0,
            setting: EvaluationSetting::Sequential,
            turns: 5,
            samples: 5,
            context_window: 5,
            dialogue_limit,
            tries,
            seed: 42,
            batch: 64,
            generation: GenerationSettings::default(),
            metrics: MetricOptions::default(),
        }
    }
}

impl EvaluationConfig {
    /// How its episodes are played.
    #[must_use]
    pub fn rollout(&self, compat: Compat) -> RolloutConfig {
        let rollout = match self.setting {
            EvaluationSetting::Sequential => RolloutConfig::sequential(self.turns, self.context_window),
            EvaluationSetting::Oracle => RolloutConfig {
                context_window: Some(self.context_window),
                ..RolloutConfig::collect(&vec![1; self.turns])
            },
            EvaluationSetting::Parallel => RolloutConfig::parallel(self.samples),
        };
        let (dialogue_limit, tries, seed) = (self.dialogue_limit, self.tries, self.seed);
        RolloutConfig { dialogue_limit, tries, seed, compat, ..rollout }
    }

    /// Checks the settings; `compat` is the mode of the rollout.
    ///
    /// # Errors
    /// Names the setting that is wrong.
    pub fn validate(&self, compat: Compat) -> Result<()> {
        self.rollout(compat).validate().map_err(named("evaluation"))?;
        self.generation.validate("evaluation.generation")
    }
}

/// The source of training examples.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Source {
    /// Files of weighted examples.
    Examples,
    /// The problems' own solutions.
    Solutions,
}

/// Training.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct FinetuneConfig {
    /// The source of training examples.
    pub source: Source,
    /// Files of examples.
    pub examples: Vec<PathBuf>,
    /// How they are weighted and encoded.
    pub training: RwrConfig,
    /// The trainer's settings.
    pub trainer: TrainerConfig,
}

impl Default for FinetuneConfig {
    fn default() -> Self {
        Self {
            source: Source::Examples,
            examples: vec![],
            training: RwrConfig::default(),
            trainer: RwrConfig::trainer(),
        }
    }
}

impl FinetuneConfig {
    /// Reads the files of examples, one behind the other.
    ///
    /// # Errors
    /// No file is named, or one cannot be read.
    pub fn read(&self) -> Result<Vec<TrainingExample>> {
        if self.examples.is_empty() {
            let reason = "name files of `rise convert`, such as [\"runs/convert/examples.json\"], or train on the problems' \
                          solutions with finetune.source = \"solutions\"";
            return Err(Error::config("finetune.examples", reason));
        }
        let mut examples = vec![];
        for path in &self.examples {
            examples.extend(json::read::<Vec<_>>(path)?);
        }
        Ok(examples)
    }

    /// Checks that a model which was made for so many tokens can read all examples.
    ///
    /// # Errors
    /// They may be longer.
    pub fn check_context(&self, made_for: Option<usize>) -> Result<()> {
        let max_length = self.training.max_length;
        match made_for.filter(|&most| max_length > most) {
            None => Ok(()),
            Some(context_length) => {
                let reason = format!(
                    "is {max_length}, but the model was made for {context_length} tokens; lower it, or stretch the model's positions in \
                     its config.json (rope_scaling)"
                );
                Err(Error::config("finetune.training.max_length", reason))
            }
        }
    }

    /// Encodes and weighs examples; a checkpoint's own chat template is looked for in `folder`.
    ///
    /// # Errors
    /// Those of [`training_texts`] and [`RwrData::new`].
    pub fn encode(
        &self,
        examples: &[TrainingExample],
        (data, chat): (&RiseData, &ChatConfig),
        folder: &Path,
        tokenizer: &Tokenizer,
    ) -> Result<RwrData> {
        let texts = training_texts(examples, (data, chat), folder)?;
        let environment = data.environment();
        let problems: Vec<&str> = examples.iter().map(|example| example.opening(&*environment)).collect();
        RwrData::new(tokenizer, &texts, &problems, &self.training)
    }

    /// How long examples are for training; a checkpoint's own chat template is looked for in `folder`. None without examples.
    ///
    /// # Errors
    /// Those of [`training_texts`] and [`TokenLengths::of`].
    pub fn lengths(
        &self,
        examples: &[TrainingExample],
        how: (&RiseData, &ChatConfig),
        folder: &Path,
        tokenizer: &Tokenizer,
    ) -> Result<Option<TokenLengths>> {
        TokenLengths::of(tokenizer, &training_texts(examples, how, folder)?, self.training.max_length)
    }

    /// The plan of a training whose examples are as long as they may be, half of each a dialogue and half an answer.
    #[must_use]
    pub fn longest_plan(&self, model: &dyn ModelShape) -> Plan {
        let half = [self.training.max_length as f64 / 2.0; 2];
        let (times, rows) = (self.trainer.accumulate as f64, self.training.batch_size);
        let pass = Pass { work: Work::Training, times, networks: 1, rows, source: half, target: half };
        Plan::new(&self.trainer, Networks::single(model), &[pass], 1.0)
    }
}

/// Examples as the texts that are trained on; a checkpoint's own template is looked for in `folder`.
///
/// # Errors
/// There is no such template, or it refuses a dialogue.
pub fn training_texts(
    examples: &[TrainingExample],
    (data, chat): (&RiseData, &ChatConfig),
    folder: &Path,
) -> Result<Vec<TrainingText>> {
    let template = chat.open(&chat.template, folder)?;
    let text = |example| training_text(example, &template, chat.layout, data.compat);
    Ok(examples.iter().map(text).collect::<std::result::Result<_, _>>()?)
}

/// Where an iteration's training starts.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Start {
    /// From the model that the iteration collected with.
    Previous,
    /// From the boosted model.
    Boosted,
    /// From the base model.
    Base,
}

/// The loop: collect, convert, train, evaluate, and again with the new student.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct IterationConfig {
    /// How many. Iteration n has n turns of the student and a last one.
    pub iterations: u64,
    /// Who answers in the last turn of an episode, by name.
    pub last: String,
    /// How often.
    pub last_samples: usize,
    /// Where training starts.
    pub start: Start,
    /// A checkpoint of fine-tuning on solutions, which is the first student.
    pub boosted: Option<PathBuf>,
    /// Train on the examples of all iterations so far.
    pub merge: bool,
    /// How each model is evaluated.
    pub evaluate: Vec<EvaluationSetting>,
}

impl Default for IterationConfig {
    fn default() -> Self {
        Self {
            iterations: 2,
            last: "teacher".into(),
            last_samples: 1,
            start: Start::Previous,
            boosted: None,
            merge: false,
            evaluate: vec![EvaluationSetting::Sequential],
        }
    }
}

impl IterationConfig {
    /// The settings of an iteration's collection: so many turns of the student, and the last one. Each iteration has a seed of its own.
    ///
    /// # Errors
    /// There are more iterations than turns can be counted.
    pub fn collection(
        &self,
        number: u64,
        base: &CollectionConfig,
        student: &Path,
    ) -> Result<CollectionConfig> {
        let turns = usize::try_from(number)
            .map_err(|_| Error::config("iteration.iterations", "is more than can be counted"))?;
        let models = [vec!["student".to_owned(); turns], vec![self.last.clone()]].concat();
        let samples = [vec![1; turns], vec![self.last_samples]].concat();
        // Within what TOML can write.
        let seed = base.seed.wrapping_add(number - 1) & i64::MAX.unsigned_abs();
        Ok(CollectionConfig { models, samples, student: Some(student.into()), seed, ..base.clone() })
    }

    /// The model that the first iteration collects with.
    ///
    /// # Errors
    /// Neither `base` nor a boosted model is named, as far as they are needed.
    pub fn first_student(&self, base: Option<&Path>) -> Result<PathBuf> {
        let Some(base) = base else {
            let reason = "name the checkpoint to start from, such as that of `rise finetune` on solutions";
            return Err(Error::config("model.pretrained", reason));
        };
        match (&self.boosted, self.start) {
            (Some(boosted), _) => Ok(boosted.clone()),
            (None, Start::Boosted) => {
                let reason = "name the checkpoint that iteration.start = \"boosted\" means";
                Err(Error::config("iteration.boosted", reason))
            }
            (None, _) => Ok(base.into()),
        }
    }

    /// The model that an iteration's training starts from.
    #[must_use]
    pub fn start<'a>(&'a self, base: &'a Path, student: &'a Path) -> &'a Path {
        match self.start {
            Start::Previous => student,
            Start::Boosted => self.boosted.as_deref().unwrap_or(base),
            Start::Base => base,
        }
    }

    /// Checks the settings.
    ///
    /// # Errors
    /// Names the setting that is wrong.
    pub fn validate(&self) -> Result<()> {
        let counts = [("iterations", self.iterations), ("last_samples", self.last_samples as u64)];
        match counts.iter().find(|(_, count)| *count == 0) {
            Some((key, _)) => Err(Error::config(&format!("iteration.{key}"), "is 0, but must be at least 1")),
            None => Ok(()),
        }
    }
}

/// An error of a section from the name of a setting and what is wrong with it.
fn named(section: &str) -> impl Fn((&'static str, String)) -> Error {
    move |(field, reason)| Error::config(&format!("{section}.{field}"), reason)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn no_temperature_is_greedy_and_a_tiny_one_is_refused() {
        let at = |temperature| GenerationSettings { temperature, ..GenerationSettings::default() };
        assert_eq!(at(0.0).config(None).strategy, Strategy::Greedy);
        assert!(matches!(at(0.7).config(None).strategy, Strategy::Sample(Sampling { top_p: None, .. })));
        at(0.0).validate("evaluation.generation").unwrap();
        let bad = [at(-1.0), at(1e-9), at(f64::NAN), GenerationSettings { top_p: 0.0, ..at(0.0) }];
        for settings in bad.into_iter().chain([GenerationSettings { max_new_tokens: 0, ..at(1.0) }]) {
            let error = settings.validate("evaluation.generation").unwrap_err().to_string();
            assert!(error.contains("evaluation.generation") && error.contains("greedy"), "{error}");
        }
        assert_eq!(at(1.0).context(None), GenerationSettings::UNLIMITED);
        assert_eq!(at(1.0).context(Some(4096)), 4096);
        assert_eq!(GenerationSettings { context_length: 100, ..at(1.0) }.context(Some(4096)), 100);
    }

    #[test]
    fn an_iteration_has_a_turn_more_than_the_one_before() {
        let (base, student) = (CollectionConfig::default(), Path::new("student"));
        let config = IterationConfig { last_samples: 16, ..IterationConfig::default() };
        let third = config.collection(3, &base, student).unwrap();
        assert_eq!(third.models, ["student", "student", "student", "teacher"]);
        assert_eq!((third.samples, third.seed), (vec![1, 1, 1, 16], 44));
        let (own, boosted) = (Path::new("base"), Some(PathBuf::from("boosted")));
        assert_eq!(config.first_student(Some(own)).unwrap(), own);
        assert!(config.first_student(None).unwrap_err().to_string().contains("model.pretrained"));
        let from = |start| IterationConfig { start, boosted: boosted.clone(), ..config.clone() };
        let starts = [Start::Previous, Start::Boosted, Start::Base];
        let of = starts.map(|start| from(start).start(own, student).to_path_buf());
        assert_eq!(of, ["student", "boosted", "base"].map(PathBuf::from));
        let lacking = IterationConfig { start: Start::Boosted, ..config.clone() };
        assert!(lacking.first_student(Some(own)).unwrap_err().to_string().contains("iteration.boosted"));
        for wrong in [
            IterationConfig { iterations: 0, ..config.clone() },
            IterationConfig { last_samples: 0, ..config },
        ] {
            wrong.validate().unwrap_err();
        }
    }
}
