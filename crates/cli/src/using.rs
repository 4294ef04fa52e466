//! The common part of the commands that use a model.

use std::path::{Path, PathBuf};

use clap::Args;
use ruminate::algorithms::trainer::verify;
use ruminate::algorithms::{Collective, Error, KeptTexts, Precision};
use ruminate::datasets::rows::{Columns, PromptRow};
use ruminate::models::{
    Finish, Generate, GenerationConfig, Model, Sampling, Strategy, TokenId, Tokenizer, derive_seed,
};
use ruminate::rewards::Rewarded;
use ruminate::rewards::configured::RewardConfig;
use ruminate::run::demo::Estimate;
use ruminate::run::program::{Configuration, checkpoint};
use ruminate::run::{ConfigError, FlagKeys, Outcome, RunArgs, StopFlag, Worker};
use ruminate::tch::{Device, Kind};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use serde_json::{Map, Value, json};

use crate::chat::{ChatSection, Encoder};
use crate::train::set;

/// Settings of the commands that use a model.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(default, deny_unknown_fields)]
pub(crate) struct UseConfig {
    /// Seed of everything that is drawn.
    pub(crate) seed: u64,
    /// Prompts that are written on, or rows that are scored, at the same time.
    pub(crate) batch_size: usize,
    /// Precision of the weights: f32 or bf16.
    pub(crate) precision: Precision,
    /// The names of the fields.
    pub(crate) columns: Columns,
    /// Chat templates.
    pub(crate) chat: ChatSection,
    /// How responses are written. Without a section, as the model's folder says (generation_config.json), but up to 256 tokens.
    pub(crate) generation: Option<GenerationConfig>,
    /// Rewards that judge responses.
    pub(crate) reward: Vec<RewardConfig>,
}

impl Default for UseConfig {
    fn default() -> Self {
        Self {
            seed: 1,
            batch_size: 32,
            precision: Precision::F32,
            columns: Columns::default(),
            chat: ChatSection::default(),
            generation: None,
            reward: vec![],
        }
    }
}

impl Configuration for UseConfig {
    const FLAGS: FlagKeys = FlagKeys { seed: &["seed"], precision: &["precision"] };

    fn validate(&self) -> Result<(), ConfigError> {
        if self.batch_size == 0 {
            return Err(ConfigError::invalid("batch_size is 0, but must be at least 1"));
        }
        Ok(())
    }
}

/// Which model, and where it computes.
#[derive(Debug, Args)]
pub(crate) struct ModelArgs {
    /// Folder of the model
    #[arg(long, value_name = "DIR")]
    model: PathBuf,
    #[command(flatten)]
    pub(crate) run: RunArgs,
}

/// How responses are written.
#[derive(Debug, Args)]
pub(crate) struct WritingArgs {
    /// Tokens of a response at most. Default: 256
    #[arg(long, value_name = "N")]
    max_new_tokens: Option<usize>,
    /// Temperature of the draw; 0 takes the most probable token of each step. Default: what the model's folder says
    #[arg(long, value_name = "T")]
    temperature: Option<f64>,
    /// Draw from the smallest set of tokens that has this probability
    #[arg(long, value_name = "P")]
    top_p: Option<f64>,
    /// Responses to each prompt. Default: 1
    #[arg(long, value_name = "N")]
    samples: Option<usize>,
    /// A text that ends a response, of which it is cut off. Repeatable
    #[arg(long, value_name = "TEXT")]
    stop: Vec<String>,
}

impl WritingArgs {
    /// The settings of a call: those of the configuration or of the model's folder, changed by flags.
    pub(crate) fn config(
        &self,
        section: Option<&GenerationConfig>,
        model: &Model,
    ) -> anyhow::Result<GenerationConfig> {
        const NEW_TOKENS: usize = 256;
        let mut config = match section {
            Some(section) => section.clone(),
            None => GenerationConfig {
                max_new_tokens: NEW_TOKENS,
                max_length: None,
                ..model.generation_config()?
            },
        };
        config.max_new_tokens = self.max_new_tokens.unwrap_or(config.max_new_tokens);
        config.samples_per_prompt = self.samples.unwrap_or(config.samples_per_prompt);
        if !self.stop.is_empty() {
            config.stop_strings = self.stop.clone();
        }
        if self.temperature == Some(0.0) {
            if self.top_p.is_some() {
                return Err(ConfigError::invalid(
                    "--top-p has no use at --temperature 0, which draws nothing",
                )
                .into());
            }
            config.strategy = Strategy::Greedy;
        } else if self.temperature.is_some() || self.top_p.is_some() {
            let before = match config.strategy {
                Strategy::Sample(sampling) => sampling,
                _ => Sampling::default(),
            };
            let temperature = self.temperature.unwrap_or(before.temperature);
            config.strategy =
                Strategy::Sample(Sampling { temperature, top_p: self.top_p.or(before.top_p), ..before });
        }
        if config.samples_per_prompt > 1 && config.strategy == Strategy::Greedy {
            let reason = "several samples of a greedy model are all the same; give a --temperature above 0";
            return Err(ConfigError::invalid(reason).into());
        }
        Ok(config)
    }

    /// True if a flag asks for tokens to be drawn, or not to be.
    pub(crate) fn say_how_to_choose(&self) -> bool {
        self.temperature.is_some() || self.top_p.is_some()
    }
}

/// A model that is loaded, with all that it takes to use it.
pub(crate) struct Loaded {
    pub(crate) folder: PathBuf,
    pub(crate) model: Model,
    pub(crate) encoder: Encoder,
    pub(crate) config: UseConfig,
    pub(crate) worker: Worker,
}

impl ModelArgs {
    /// Loads the model; `None` where other processes have done the work.
    pub(crate) fn load(&self, chat: bool) -> anyhow::Result<Result<Loaded, Outcome>> {
        let folder = self.folder()?;
        self.run.refuse(&["--resume", "--resume-from", "--dry-run"])?;
        let mut run = self.run.clone();
        if chat {
            run.sets.insert(0, set("chat.wrap", &true));
        }
        let config = UseConfig::load(&run)?;
        if let Some(outcome) = run.launch()? {
            return Ok(Err(outcome));
        }
        let worker = run.worker()?;
        Ok(Ok(Self::with(folder, config, worker)?))
    }

    /// The folder of the model, which may be a run's.
    pub(crate) fn folder(&self) -> anyhow::Result<PathBuf> {
        Ok(checkpoint(&self.model)?)
    }

    /// Loads the model for somebody who talks with it: one process, in which Ctrl-C stops an answer.
    pub(crate) fn load_to_talk(&self) -> anyhow::Result<Loaded> {
        let folder = self.folder()?;
        self.run.refuse(&["--out", "--resume", "--resume-from", "--dry-run", "--nproc"])?;
        let config = UseConfig::load(&self.run)?;
        let (device, verbosity) = (self.run.setup()?, self.run.verbosity());
        let stop = StopFlag::on_each_ctrl_c()?;
        Self::with(folder, config, Worker { device, collective: Collective::default(), verbosity, stop })
    }

    fn with(folder: PathBuf, config: UseConfig, worker: Worker) -> anyhow::Result<Loaded> {
        let model = load_model(&folder, config.precision, worker.device)?;
        let encoder = Encoder::new(&config.chat, Tokenizer::open(&folder)?, &folder)?;
        Ok(Loaded { folder, model, encoder, config, worker })
    }
}

/// Loads a model with its tokenizer.
pub(crate) fn load_model(folder: &Path, precision: Precision, device: Device) -> anyhow::Result<Model> {
    verify(folder)?;
    let kind = match precision {
        Precision::F32 => Kind::Float,
        Precision::Bf16 => Kind::BFloat16,
    };
    let mut model = Model::load(folder, kind, device)?;
    model.set_tokenizer(Tokenizer::open(folder)?);
    Ok(model)
}

/// A response.
#[derive(Debug, Clone, Serialize)]
pub(crate) struct Written {
    pub(crate) text: String,
    tokens: usize,
    /// `stop`, or `length` where it was cut.
    finish_reason: &'static str,
}

impl Loaded {
    /// Responses to prompts, in all processes together. Kept in `out`, if there is one.
    pub(crate) fn write(
        &self,
        rows: &[PromptRow],
        how: &GenerationConfig,
        out: Option<&Path>,
    ) -> anyhow::Result<Option<Vec<Vec<Written>>>> {
        let prompts = rows
            .iter()
            .map(|row| Ok(self.encoder.prompt(&row.prompt)?.1))
            .collect::<anyhow::Result<Vec<_>>>()?;
        let model = self.worker.evaluated(&self.model, &self.folder, out)?;
        let mut observer = self.worker.console();
        self.worker.interruptible(|| {
            let mut written = vec![];
            for chunk in prompts.chunks(self.config.batch_size) {
                let first = written.len();
                let seeds: Vec<u64> = (first..first + chunk.len())
                    .map(|i| derive_seed(self.config.seed, &[i as u64]))
                    .collect();
                for responses in model.generate(chunk, how, &seeds)? {
                    let one = |of: &ruminate::models::Generated| self.written(&of.ids, of.finish, how);
                    written.push(responses.iter().map(one).collect::<anyhow::Result<Vec<_>>>()?);
                }
                let (done, all) = (written.len() as u64, prompts.len() as u64);
                observer.progress("responses", done, all).map_err(Error::Observer)?;
            }
            Ok(written)
        })
    }

    fn written(&self, ids: &[TokenId], finish: Finish, how: &GenerationConfig) -> anyhow::Result<Written> {
        let mut text = self.encoder.tokenizer.decode(ids, true)?;
        if let Some(end) = how.stop_strings.iter().filter_map(|stop| text.find(stop.as_str())).min() {
            text.truncate(end);
        }
        let finish_reason = if finish == Finish::Length { "length" } else { "stop" };
        Ok(Written { text, tokens: ids.len(), finish_reason })
    }

    /// The texts of an evaluation are not needed any more.
    pub(crate) fn forget(&self, out: Option<&Path>) -> anyhow::Result<()> {
        Ok(KeptTexts::across(
            &self.model,
            &self.folder,
            out.map(|out| out.join("texts.jsonl")).as_deref(),
            &self.worker.collective,
        )?
        .remove()?)
    }

    pub(crate) fn leads(&self) -> bool {
        self.worker.collective.is_main_process()
    }
}

/// A row with further fields. Its prompt and answer stand under these names, whatever its columns are called.
pub(crate) fn with_fields(row: &PromptRow, fields: Vec<(&str, Value)>) -> Map<String, Value> {
    let mut line = row.fields.clone();
    line.insert("prompt".into(), json!(row.prompt));
    line.extend(row.answer.as_ref().map(|answer| ("answer".into(), json!(answer))));
    line.extend(fields.into_iter().map(|(name, value)| (name.to_owned(), value)));
    line
}

/// A judgement as a row has it.
pub(crate) fn told(judged: &Rewarded) -> Value {
    let parts = judged.parts.iter().map(|(name, value)| (name.to_string(), json!(value)));
    Value::Object(std::iter::once(("reward".into(), json!(judged.value))).chain(parts).collect())
}

/// Mean and bootstrap interval of each reward.
pub(crate) fn means(judged: &[Rewarded]) -> Value {
    let estimate = |values: Vec<f64>| {
        let Estimate { mean, interval } = Estimate::of(&values);
        json!({ "mean": mean, "low": interval.map(|of| of.low), "high": interval.map(|of| of.high) })
    };
    let mut means = Map::new();
    means.insert("reward".into(), estimate(judged.iter().map(|of| f64::from(of.value)).collect()));
    let names = judged.first().map(|of| of.parts.as_slice()).unwrap_or_default();
    for (i, (name, _)) in names.iter().enumerate() {
        let values = judged.iter().map(|of| f64::from(of.parts[i].1)).collect();
        means.insert(name.to_string(), estimate(values));
    }
    Value::Object(means)
}
