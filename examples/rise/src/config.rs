//! The configuration file.

use std::path::{Path, PathBuf};

use ruminate::algorithms::rwr::RwrConfig;
use ruminate::algorithms::{Precision, TrainerConfig};
use ruminate::datasets::BadRows;
use ruminate::datasets::chat::{ChatTemplate, Date, NamedTemplate};
use ruminate::datasets::environments::{Benchmark, Compat, Environment, Problem, QuestionOnly};
use ruminate::datasets::rise::{ConvertConfig, Layout, RolloutConfig};
use ruminate::datasets::teacher::{Prices, TeacherConfig};
use ruminate::rewards::rise::MetricOptions;
use ruminate::run::{ConfigError, FlagKeys, ModelSection, RunArgs, RunDir, config};
use serde::{Deserialize, Serialize};

/// The keys that `--seed` and `--precision` stand for.
pub(crate) const FLAGS: FlagKeys = FlagKeys {
    seed: &[
        "seed",
        "collection.seed",
        "conversion.settings.seed",
        "finetune.training.shuffle_seed",
        "evaluation.seed",
        "evaluation.metrics.seed",
    ],
    precision: &[
        "collection.generation.precision",
        "finetune.trainer.precision",
        "evaluation.generation.precision",
    ],
};

/// What a run does.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub(crate) enum Phase {
    Collect,
    Convert,
    Finetune,
    Evaluate,
    Iterate,
}

impl Phase {
    /// What begins such a run.
    pub(crate) fn command(self) -> &'static str {
        match self {
            Self::Collect => "collect",
            Self::Convert => "convert",
            Self::Finetune => "finetune",
            Self::Evaluate => "evaluate",
            Self::Iterate => "iterate",
        }
    }
}

/// Everything that a run depends on. `configs/published.toml` explains each key.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub(crate) struct RiseConfig {
    /// What the run does; written by the command.
    pub(crate) phase: Option<Phase>,
    /// Seed of a new model's parameters.
    pub(crate) seed: u64,
    pub(crate) data: DataConfig,
    pub(crate) chat: ChatConfig,
    pub(crate) model: ModelSection,
    pub(crate) teacher: TeacherConfig,
    pub(crate) collection: CollectionSection,
    pub(crate) conversion: ConversionSection,
    pub(crate) finetune: FinetuneSection,
    pub(crate) evaluation: EvaluationSection,
    pub(crate) iteration: IterationSection,
}

/// Which problems, and what is said about them.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub(crate) struct DataConfig {
    /// The form of the files, and how answers are judged.
    pub(crate) benchmark: Benchmark,
    /// Problems to learn from, as JSON lines.
    pub(crate) problems: PathBuf,
    /// Only the first ones; 0 for all.
    pub(crate) limit: usize,
    /// Leave out bad rows instead of refusing the file.
    pub(crate) skip_bad_rows: bool,
    /// Whether dialogues begin with the published demonstration.
    pub(crate) demonstration: bool,
    /// With the published code's defects or without.
    pub(crate) compat: Compat,
}

impl Default for DataConfig {
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

impl DataConfig {
    /// How answers are judged, and what is said to them.
    pub(crate) fn environment(&self) -> Box<dyn Environment> {
        let environment = self.benchmark.environment(self.compat);
        if self.demonstration { environment } else { Box::new(QuestionOnly(environment)) }
    }

    /// The first problems of a file; all of them for a `limit` of 0.
    pub(crate) fn read(&self, path: &Path, limit: usize) -> anyhow::Result<Vec<Problem>> {
        let bad = if self.skip_bad_rows { BadRows::Skip } else { BadRows::Refuse };
        let loaded = self.benchmark.read(path, bad, self.compat)?;
        note(&loaded.skipped);
        let mut problems = loaded.problems;
        problems.truncate(if limit == 0 { usize::MAX } else { limit });
        if problems.is_empty() {
            return Err(ConfigError::invalid(format!("{} has no problems", path.display())).into());
        }
        Ok(problems)
    }

    /// The problems to learn from.
    pub(crate) fn training(&self) -> anyhow::Result<Vec<Problem>> {
        self.read(&self.problems, self.limit)
    }
}

#[expect(clippy::print_stderr, reason = "what a user should know about the data goes to the terminal")]
fn note(skipped: &[ruminate::datasets::Error]) {
    for error in skipped {
        eprintln!("note: left out: {error}");
    }
}

/// How dialogues become text: the same in rollouts, training and evaluation.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub(crate) struct ChatConfig {
    /// Name of the template; `jinja` for the checkpoint's own.
    pub(crate) template: String,
    /// How training examples are laid out.
    pub(crate) layout: Layout,
    /// The day that a checkpoint's own template is told; the run's first one, which is written into its folder and kept.
    pub(crate) date: Option<Date>,
}

impl ChatConfig {
    /// A template by its name, on the run's day.
    pub(crate) fn open(&self, name: &str, folder: &Path) -> anyhow::Result<ChatTemplate> {
        let template = ChatTemplate::select(name, folder)?;
        Ok(match self.date {
            Some(date) => template.on(date),
            None => template,
        })
    }
}

impl Default for ChatConfig {
    fn default() -> Self {
        Self { template: NamedTemplate::Llama2.name().into(), layout: Layout::Dialogue, date: None }
    }
}

/// Who answers in a turn.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub(crate) enum Player {
    Student,
    Teacher,
}

/// How local models write.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub(crate) struct GenerationSection {
    pub(crate) temperature: f64,
    pub(crate) top_p: f64,
    pub(crate) max_new_tokens: usize,
    /// Tokens of prompt and answer together; 0 for what the model was made for.
    pub(crate) context_length: usize,
    /// Removes blanks before punctuation.
    pub(crate) clean_up: bool,
    /// Precision of the weights.
    pub(crate) precision: Precision,
}

impl Default for GenerationSection {
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

/// How the teacher's service is asked to write.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub(crate) struct TeacherSampling {
    pub(crate) temperature: f64,
    pub(crate) top_p: f64,
    pub(crate) max_tokens: u32,
}

impl Default for TeacherSampling {
    fn default() -> Self {
        Self { temperature: 0.7, top_p: 1.0, max_tokens: 512 }
    }
}

/// Episodes to learn from.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub(crate) struct CollectionSection {
    /// Who answers in each turn.
    pub(crate) models: Vec<Player>,
    /// Attempts in each turn.
    pub(crate) samples: Vec<usize>,
    /// Checkpoint of the student; without one, the model of `[model]`.
    pub(crate) student: Option<PathBuf>,
    /// Checkpoint of a local teacher; without one, the service of `[teacher]`.
    pub(crate) teacher_model: Option<PathBuf>,
    /// Its template, where it is not the student's.
    pub(crate) teacher_template: Option<String>,
    /// Prices of a million tokens, to show what the service costs.
    pub(crate) prices: Option<Prices>,
    /// Messages after the demonstration beyond which only the last ones are sent.
    pub(crate) dialogue_limit: usize,
    /// Times that a turn is sampled when nothing but degenerate text comes.
    pub(crate) tries: usize,
    pub(crate) seed: u64,
    /// Problems that are asked about at a time.
    pub(crate) batch: usize,
    pub(crate) generation: GenerationSection,
    pub(crate) teacher_sampling: TeacherSampling,
}

impl Default for CollectionSection {
    fn default() -> Self {
        let RolloutConfig { dialogue_limit, tries, .. } = RolloutConfig::default();
        Self {
            models: vec![Player::Student, Player::Teacher],
            samples: vec![1, 1],
            student: None,
            teacher_model: None,
            teacher_template: None,
            prices: None,
            dialogue_limit,
            tries,
            seed: 42,
            batch: 64,
            generation: GenerationSection::default(),
            teacher_sampling: TeacherSampling::default(),
        }
    }
}

/// From episodes to examples.
#[derive(Debug, Clone, PartialEq, Default, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub(crate) struct ConversionSection {
    /// Logs, of this or the published program.
    pub(crate) logs: Vec<PathBuf>,
    pub(crate) settings: ConvertConfig,
}

/// What is trained on.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub(crate) enum Source {
    /// Files of `rise convert`.
    Examples,
    /// The problems' own solutions.
    Solutions,
}

/// Training.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub(crate) struct FinetuneSection {
    pub(crate) source: Source,
    /// Files of examples.
    pub(crate) examples: Vec<PathBuf>,
    pub(crate) training: RwrConfig,
    pub(crate) trainer: TrainerConfig,
}

impl Default for FinetuneSection {
    fn default() -> Self {
        Self {
            source: Source::Examples,
            examples: vec![],
            training: RwrConfig::default(),
            trainer: RwrConfig::trainer(),
        }
    }
}

/// How a model is evaluated.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, clap::ValueEnum)]
#[serde(rename_all = "lowercase")]
pub(crate) enum Evaluating {
    /// Several turns, and nobody says which attempt is right.
    Sequential,
    /// Several turns, up to the first right attempt.
    Oracle,
    /// Several first attempts.
    Parallel,
}

impl Evaluating {
    pub(crate) fn name(self) -> &'static str {
        match self {
            Self::Sequential => "sequential",
            Self::Oracle => "oracle",
            Self::Parallel => "parallel",
        }
    }
}

/// Evaluation.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub(crate) struct EvaluationSection {
    /// The checkpoint; written by the command.
    pub(crate) model: Option<PathBuf>,
    /// Problems to ask about.
    pub(crate) problems: PathBuf,
    /// Only the first ones; 0 for all.
    pub(crate) limit: usize,
    pub(crate) setting: Evaluating,
    /// Turns of the sequential settings.
    pub(crate) turns: usize,
    /// First attempts of the parallel one.
    pub(crate) samples: usize,
    /// Turns that a model sees at most.
    pub(crate) context_window: usize,
    pub(crate) dialogue_limit: usize,
    pub(crate) tries: usize,
    pub(crate) seed: u64,
    /// Problems that are asked about at a time.
    pub(crate) batch: usize,
    pub(crate) generation: GenerationSection,
    pub(crate) metrics: MetricOptions,
}

impl Default for EvaluationSection {
    fn default() -> Self {
        let RolloutConfig { dialogue_limit, tries, .. } = RolloutConfig::default();
        Self {
            model: None,
            problems: "data/gsm8k/test.jsonl".into(),
            limit: 0,
            setting: Evaluating::Sequential,
            turns: 5,
            samples: 5,
            context_window: 5,
            dialogue_limit,
            tries,
            seed: 42,
            batch: 64,
            generation: GenerationSection::default(),
            metrics: MetricOptions::default(),
        }
    }
}

impl EvaluationSection {
    /// How its episodes are played.
    pub(crate) fn rollout(&self, compat: Compat) -> RolloutConfig {
        let rollout = match self.setting {
            Evaluating::Sequential => RolloutConfig::sequential(self.turns, self.context_window),
            Evaluating::Oracle => RolloutConfig {
                context_window: Some(self.context_window),
                ..RolloutConfig::collect(&vec![1; self.turns])
            },
            Evaluating::Parallel => RolloutConfig::parallel(self.samples),
        };
        let (dialogue_limit, tries, seed) = (self.dialogue_limit, self.tries, self.seed);
        RolloutConfig { dialogue_limit, tries, seed, compat, ..rollout }
    }
}

/// Where an iteration's training starts.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub(crate) enum Start {
    /// From the model that the iteration collected with.
    Previous,
    /// From `iteration.boosted`.
    Boosted,
    /// From `model.pretrained`.
    Base,
}

/// The whole loop.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub(crate) struct IterationSection {
    pub(crate) iterations: u64,
    /// Who answers in the last turn of an episode.
    pub(crate) last: Player,
    /// How often.
    pub(crate) last_samples: usize,
    pub(crate) start: Start,
    /// A checkpoint of fine-tuning on solutions, which is the first student.
    pub(crate) boosted: Option<PathBuf>,
    /// Train on the examples of all iterations so far.
    pub(crate) merge: bool,
    /// How each model is evaluated.
    pub(crate) evaluate: Vec<Evaluating>,
}

impl Default for IterationSection {
    fn default() -> Self {
        Self {
            iterations: 2,
            last: Player::Teacher,
            last_samples: 1,
            start: Start::Previous,
            boosted: None,
            merge: false,
            evaluate: vec![Evaluating::Sequential],
        }
    }
}

impl Default for RiseConfig {
    fn default() -> Self {
        Self {
            phase: None,
            seed: 42,
            data: DataConfig::default(),
            chat: ChatConfig::default(),
            model: ModelSection::default(),
            // The published client: 6 attempts with waits of 1 to 60 seconds, 20 seconds each.
            teacher: TeacherConfig {
                model: "gpt-3.5-turbo".into(),
                timeout_secs: 20.0,
                ..TeacherConfig::default()
            },
            collection: CollectionSection::default(),
            conversion: ConversionSection::default(),
            finetune: FinetuneSection::default(),
            evaluation: EvaluationSection::default(),
            iteration: IterationSection::default(),
        }
    }
}

impl RiseConfig {
    /// How episodes to learn from are played.
    pub(crate) fn rollout(&self) -> RolloutConfig {
        let CollectionSection { samples, dialogue_limit, tries, seed, .. } = &self.collection;
        let (dialogue_limit, tries, seed, compat) = (*dialogue_limit, *tries, *seed, self.data.compat);
        RolloutConfig { dialogue_limit, tries, seed, compat, ..RolloutConfig::collect(samples) }
    }

    /// Checks what can be checked before any file is read.
    pub(crate) fn validate(&self) -> Result<(), ConfigError> {
        let named = |section: &'static str| {
            move |(field, reason): (&str, String)| ConfigError::invalid(format!("{section}.{field} {reason}"))
        };
        self.model.validate("model")?;
        self.rollout().validate().map_err(named("collection"))?;
        self.evaluation.rollout(self.data.compat).validate().map_err(named("evaluation"))?;
        self.conversion.settings.validate().map_err(named("conversion.settings"))?;
        self.finetune.training.validate().map_err(ConfigError::invalid)?;
        self.finetune.trainer.validate().map_err(ConfigError::invalid)?;
        let (models, turns) = (self.collection.models.len(), self.collection.samples.len());
        if models != turns {
            let reason = format!(
                "collection.models names {models} turns and collection.samples {turns}; name as many"
            );
            return Err(ConfigError::invalid(reason));
        }
        for (section, generation) in
            [("collection", &self.collection.generation), ("evaluation", &self.evaluation.generation)]
        {
            let GenerationSection { temperature, top_p, max_new_tokens, .. } = *generation;
            if !(temperature > 0.0
                && temperature.is_finite()
                && top_p > 0.0
                && top_p <= 1.0
                && max_new_tokens > 0)
            {
                let reason = format!(
                    "{section}.generation needs a temperature above 0, a top_p from 0 to 1 and at least 1 new token"
                );
                return Err(ConfigError::invalid(reason));
            }
        }
        for (key, value) in [
            ("iteration.iterations", self.iteration.iterations),
            ("iteration.last_samples", self.iteration.last_samples as u64),
        ] {
            if value == 0 {
                return Err(ConfigError::invalid(format!("{key} is 0, but must be at least 1")));
            }
        }
        let templates = [("chat.template", Some(&self.chat.template))];
        let teacher = [("collection.teacher_template", self.collection.teacher_template.as_ref())];
        for (key, name) in templates.into_iter().chain(teacher) {
            if let Some(name) = name.filter(|name| *name != ChatTemplate::JINJA)
                && let Err(error) = name.parse::<NamedTemplate>()
            {
                return Err(ConfigError::invalid(format!(
                    "{key}: {error}, and jinja for the checkpoint's own"
                )));
            }
        }
        Ok(())
    }

    /// Fixes the day that a checkpoint's own template is told: today for a new run, and that of the run's folder for one that goes on,
    /// so that all prompts of a run agree.
    pub(crate) fn fix_date(&mut self, args: &RunArgs) -> Result<(), ConfigError> {
        let asks = |name: &String| name == ChatTemplate::JINJA;
        let own = asks(&self.chat.template) || self.collection.teacher_template.as_ref().is_some_and(asks);
        if !own || self.chat.date.is_some() {
            return Ok(());
        }
        self.chat.date = match args.out.as_deref().filter(|_| args.resumes()).and_then(RunDir::stored_config)
        {
            Some(stored) => config::load::<Self>(Some(&stored), &[])?.chat.date,
            None => Some(Date::today()),
        };
        Ok(())
    }

    /// Says what the run does, and refuses to go on with a run that does something else.
    pub(crate) fn enter(&mut self, phase: Phase) -> Result<(), ConfigError> {
        match self.phase.replace(phase) {
            Some(other) if other != phase => {
                let command = other.command();
                let reason = format!("this is the configuration of a run of `rise {command}`");
                Err(ConfigError::invalid(reason))
            }
            _ => Ok(()),
        }
    }
}

#[cfg(test)]
#[path = "../../suggested.rs"]
mod suggested;

#[cfg(test)]
mod tests {
    use super::*;

    const PUBLISHED: &str = include_str!("../configs/published.toml");

    #[test]
    fn the_published_settings_are_the_defaults() {
        let mut config: RiseConfig = config::load_text("configs/published.toml", PUBLISHED, &[]).unwrap();
        config.validate().unwrap();
        // Which model is the user's choice.
        assert!(config.model.pretrained.take().is_some());
        assert_eq!(config, RiseConfig::default());
    }

    #[test]
    fn what_the_pages_suggest_is_taken() {
        let pages = [include_str!("../README.md"), include_str!("../../../docs/papers/rise.md")];
        assert!(suggested::all_are_taken(&pages, RiseConfig::validate) >= 8);
    }

    #[test]
    fn the_reference_has_every_quirk_switched_on() {
        let text = include_str!("../configs/reference.toml");
        let mut config: RiseConfig = config::load_text("configs/reference.toml", text, &[]).unwrap();
        config.validate().unwrap();
        let published: RiseConfig = config::load_text("configs/published.toml", PUBLISHED, &[]).unwrap();
        assert_eq!((config.data.compat, config.chat.layout), (Compat::Reference, Layout::ZephyrSystemDemo));
        assert!(config.collection.generation.clean_up && config.evaluation.generation.clean_up);
        assert!(config.collection.tries >= 1_000_000 && config.evaluation.tries >= 1_000_000);
        // All else is as published.
        (config.data.compat, config.chat.layout) = (Compat::Fixed, Layout::Dialogue);
        (config.collection.generation.clean_up, config.evaluation.generation.clean_up) = (false, false);
        (config.collection.tries, config.evaluation.tries) = (10, 10);
        config.teacher.concurrency = published.teacher.concurrency;
        assert_eq!(config, published);
    }

    #[test]
    fn a_run_keeps_the_day_that_its_template_is_told() {
        #[derive(clap::Parser)]
        struct Command {
            #[command(flatten)]
            run: RunArgs,
        }
        let folder = tempfile::tempdir().unwrap();
        let args = |more: &[&str]| {
            let out = folder.path().to_str().unwrap();
            let words = ["rise", "--out", out].into_iter().chain(more.iter().copied());
            <Command as clap::Parser>::parse_from(words).run
        };
        let mut named = RiseConfig::default();
        named.fix_date(&args(&[])).unwrap();
        assert_eq!(named, RiseConfig::default());
        let jinja = || {
            let mut config = RiseConfig::default();
            config.chat.template = ChatTemplate::JINJA.into();
            config
        };
        let mut new = jinja();
        new.fix_date(&args(&[])).unwrap();
        assert_eq!(new.chat.date, Some(Date::today()));
        // A day later, the run goes on with the day that is in its folder, whatever file is named.
        let mut begun = jinja();
        begun.chat.date = Some("2024-02-29".parse().unwrap());
        std::fs::write(folder.path().join("config.toml"), config::to_toml(&begun).unwrap()).unwrap();
        let mut resumed = jinja();
        resumed.fix_date(&args(&["--resume"])).unwrap();
        assert_eq!(resumed, begun);
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
        let defaults = config::to_toml(&RiseConfig::default()).unwrap();
        let mut keys = 0;
        let mut table = String::new();
        for line in defaults.lines() {
            if let Some(name) = line.strip_prefix('[').and_then(|line| line.strip_suffix(']')) {
                table = format!("{name}.");
            } else if let Some((key, _)) = line.split_once(" = ") {
                // Tables in one line, such as that of the key, are explained as a whole.
                let key = format!("{table}{key}");
                let whole = |named: &String| key == *named || key.starts_with(&format!("{named}."));
                assert!(explained.iter().any(whole), "configs/published.toml lacks {key}");
                keys += 1;
            }
        }
        assert!(keys > 90, "{keys}");
    }
}
