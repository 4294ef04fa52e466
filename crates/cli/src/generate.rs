//! Commands that use a model: responses, probabilities, and judgements.

use std::io::BufRead;
use std::path::{Path, PathBuf};

use anyhow::Context;
use clap::Args;
use ruminate::algorithms::trainer::verify;
use ruminate::algorithms::{Collective, Error, KeptTexts};
use ruminate::datasets::json as json_files;
use ruminate::datasets::rows::{Columns, PromptRow, TextOrMessages, read_prompts};
use ruminate::models::{
    Finish, Generate, GenerationConfig, Model, Policy, Sampling, ScoreOptions, Strategy, TokenId, Tokenizer,
    derive_seed,
};
use ruminate::rewards::Rewarded;
use ruminate::rewards::configured::{RewardConfig, WeightedRewards};
use ruminate::run::demo::Estimate;
use ruminate::run::program::{Configuration, checkpoint};
use ruminate::run::{
    ConfigError, FlagKeys, Outcome, RunArgs, StopFlag, Table, Worker, print_json, print_text,
};
use ruminate::tch::{self, Kind};
use serde::{Deserialize, Serialize};
use serde_json::{Map, Value, json};

use crate::chat::{ChatSection, Encoder};
use crate::train::set;

/// Settings of the commands that use a model.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub(crate) struct UseConfig {
    /// Seed of everything that is drawn.
    pub(crate) seed: u64,
    /// Prompts that are written on, or rows that are scored, at the same time.
    pub(crate) batch_size: usize,
    /// Precision of the weights: f32 or bf16.
    pub(crate) precision: ruminate::algorithms::Precision,
    /// The names of the fields.
    pub(crate) columns: Columns,
    /// Chat templates.
    pub(crate) chat: ChatSection,
    /// How responses are written. Without a section, as the model's folder says (generation_config.json), but up to 256 tokens.
    pub(crate) generation: Option<GenerationConfig>,
    /// What responses are worth.
    pub(crate) reward: Vec<RewardConfig>,
}

impl Default for UseConfig {
    fn default() -> Self {
        Self {
            seed: 1,
            batch_size: 32,
            precision: ruminate::algorithms::Precision::F32,
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
    run: RunArgs,
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
}

#[derive(Debug, Args)]
pub(crate) struct GenerateArgs {
    #[command(flatten)]
    model: ModelArgs,
    /// A prompt. Repeatable
    #[arg(long, value_name = "TEXT")]
    prompt: Vec<String>,
    /// File with prompts: rows with `prompt` or `messages`
    #[arg(long, value_name = "FILE", conflicts_with = "prompt")]
    data: Option<PathBuf>,
    /// Put each text to the model as a user's message, by its chat template; short for --set chat.wrap=true
    #[arg(long)]
    chat: bool,
    #[command(flatten)]
    writing: WritingArgs,
}

#[derive(Debug, Args)]
pub(crate) struct ScoreArgs {
    #[command(flatten)]
    model: ModelArgs,
    /// File with rows of `prompt` and `completion`
    #[arg(long, value_name = "FILE")]
    data: PathBuf,
    /// Put each text to the model as a user's message, by its chat template; short for --set chat.wrap=true
    #[arg(long)]
    chat: bool,
}

#[derive(Debug, Args)]
pub(crate) struct EvaluateArgs {
    #[command(flatten)]
    model: ModelArgs,
    /// File with prompts and answers
    #[arg(long, value_name = "FILE")]
    data: PathBuf,
    /// Put each text to the model as a user's message, by its chat template; short for --set chat.wrap=true
    #[arg(long)]
    chat: bool,
    #[command(flatten)]
    writing: WritingArgs,
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
        let folder = checkpoint(&self.model)?;
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

    /// Loads the model for somebody who talks with it: one process, in which Ctrl-C stops an answer.
    pub(crate) fn load_to_talk(&self) -> anyhow::Result<Loaded> {
        let folder = checkpoint(&self.model)?;
        self.run.refuse(&["--resume", "--resume-from", "--dry-run", "--nproc"])?;
        let config = UseConfig::load(&self.run)?;
        let (device, verbosity) = (self.run.setup()?, self.run.verbosity());
        let stop = StopFlag::on_each_ctrl_c()?;
        Self::with(folder, config, Worker { device, collective: Collective::default(), verbosity, stop })
    }

    fn with(folder: PathBuf, config: UseConfig, worker: Worker) -> anyhow::Result<Loaded> {
        verify(&folder)?;
        let kind = match config.precision {
            ruminate::algorithms::Precision::F32 => Kind::Float,
            ruminate::algorithms::Precision::Bf16 => Kind::BFloat16,
        };
        let mut model = Model::load(&folder, kind, worker.device)?;
        let tokenizer = Tokenizer::open(&folder)?;
        model.set_tokenizer(tokenizer.clone());
        let encoder = Encoder::new(&config.chat, tokenizer, &folder)?;
        Ok(Loaded { folder, model, encoder, config, worker })
    }
}

/// A response.
#[derive(Debug, Clone, Serialize)]
struct Written {
    text: String,
    tokens: usize,
    /// `stop`, or `length` where it was cut.
    finish_reason: &'static str,
}

impl Loaded {
    /// Responses to prompts, in all processes together. Kept in `out`, if there is one.
    fn write(
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
    fn forget(&self, out: Option<&Path>) -> anyhow::Result<()> {
        Ok(KeptTexts::across(
            &self.model,
            &self.folder,
            out.map(|out| out.join("texts.jsonl")).as_deref(),
            &self.worker.collective,
        )?
        .remove()?)
    }

    fn leads(&self) -> bool {
        self.worker.collective.is_main_process()
    }
}

/// A row with further fields.
fn with_fields(row: &PromptRow, fields: Vec<(&str, Value)>) -> Map<String, Value> {
    let mut line = json!(row).as_object().cloned().unwrap_or_default();
    line.extend(fields.into_iter().map(|(name, value)| (name.to_owned(), value)));
    line
}

pub(crate) fn generate(args: &GenerateArgs) -> anyhow::Result<Outcome> {
    let loaded = match args.model.load(args.chat)? {
        Ok(loaded) => loaded,
        Err(outcome) => return Ok(outcome),
    };
    let text = |text: &String| PromptRow {
        prompt: TextOrMessages::Text(text.clone()),
        answer: None,
        fields: Map::new(),
    };
    let rows: Vec<PromptRow> = match &args.data {
        Some(file) => read_prompts(file, &loaded.config.columns)?,
        None if args.prompt.is_empty() => {
            let lines = std::io::stdin().lock().lines().collect::<Result<Vec<_>, _>>();
            let lines = lines.context("cannot read prompts from the standard input")?;
            lines.iter().filter(|line| !line.trim().is_empty()).map(text).collect()
        }
        None => args.prompt.iter().map(text).collect(),
    };
    let how = args.writing.config(loaded.config.generation.as_ref(), &loaded.model)?;
    let out = args.model.run.out.as_deref();
    let Some(written) = loaded.write(&rows, &how, out)? else { return Ok(Outcome::Interrupted) };
    if !loaded.leads() {
        return Ok(Outcome::Done);
    }
    let line = |(row, responses): (&PromptRow, &Vec<Written>)| {
        let all: Vec<Value> = responses.iter().map(|response| json!(response)).collect();
        let completion = responses.first().map(|response| json!(response.text)).unwrap_or_default();
        let mut fields = vec![("completion", completion)];
        match all.as_slice() {
            [one] => fields.push(("finish_reason", one["finish_reason"].clone())),
            _ => fields.push(("completions", Value::Array(all))),
        }
        with_fields(row, fields)
    };
    let lines: Vec<Map<String, Value>> = rows.iter().zip(&written).map(line).collect();
    match out {
        Some(out) => {
            let file = out.join("completions.jsonl");
            json_files::write_lines(&file, &lines)?;
            loaded.forget(Some(out))?;
            if args.model.run.json {
                print_json(&json!({ "command": "generate", "rows": lines.len(), "file": file }))?;
            } else {
                print_text(&file.display().to_string())?;
            }
        }
        None if args.model.run.json || args.data.is_some() => {
            lines.iter().try_for_each(print_json)?;
        }
        None => {
            for response in written.iter().flatten() {
                print_text(&response.text)?;
            }
        }
    }
    Ok(Outcome::Done)
}

/// A row with a completion.
fn completions(rows: &[PromptRow], columns: &Columns, file: &Path) -> anyhow::Result<Vec<String>> {
    let completion = |(i, row): (usize, &PromptRow)| {
        let text = row.fields.get(&columns.completion).and_then(Value::as_str);
        text.map(str::to_owned).ok_or_else(|| {
            let reason = format!("{}: row {} has no text in `{}`", file.display(), i + 1, columns.completion);
            ConfigError::invalid(reason)
        })
    };
    Ok(rows.iter().enumerate().map(completion).collect::<Result<_, _>>()?)
}

pub(crate) fn score(args: &ScoreArgs) -> anyhow::Result<Outcome> {
    args.model.run.refuse(&["--nproc"])?;
    let loaded = match args.model.load(args.chat)? {
        Ok(loaded) => loaded,
        Err(outcome) => return Ok(outcome),
    };
    let rows = read_prompts(&args.data, &loaded.config.columns)?;
    let texts = completions(&rows, &loaded.config.columns, &args.data)?;
    let judged = judge(&loaded.config, &rows, &texts)?;
    let examples = rows.iter().zip(&texts).map(|(row, text)| loaded.encoder.scored(&row.prompt, text));
    let examples = examples.collect::<anyhow::Result<Vec<_>>>()?;
    let mut observer = loaded.worker.console();
    let scored = loaded.worker.interruptible(|| {
        let mut sums: Vec<(f64, u64)> = vec![];
        for batch in examples.chunks(loaded.config.batch_size) {
            let scores = tch::no_grad(|| loaded.model.score(batch, ScoreOptions::default()))?;
            let all: Vec<f64> =
                Vec::try_from(scores.log_probs.f_sum_dim_intlist(1i64, false, Kind::Double)?)?;
            sums.extend(all.into_iter().zip(batch).map(|(sum, of)| (sum, of.target.len() as u64)));
            let (done, total) = (sums.len() as u64, examples.len() as u64);
            observer.progress("scores", done, total).map_err(Error::Observer)?;
        }
        Ok(sums)
    })?;
    let Some(scored) = scored else { return Ok(Outcome::Interrupted) };
    let line = |i: usize| {
        let (sum, tokens) = scored[i];
        let mut fields = vec![("log_prob", json!(sum)), ("tokens", json!(tokens))];
        fields.extend(judged.as_ref().map(|judged| ("rewards", told(&judged[i]))));
        with_fields(&rows[i], fields)
    };
    let lines: Vec<Map<String, Value>> = (0..rows.len()).map(line).collect();
    let (sum, tokens) = scored.iter().fold((0.0, 0), |(sum, all), (of, count)| (sum + of, all + count));
    let mut result = json!({
        "command": "score", "rows": rows.len(), "tokens": tokens,
        "log_prob": sum, "log_prob_per_token": sum / tokens as f64, "perplexity": (-sum / tokens as f64).exp(),
    });
    if let Some(judged) = &judged {
        result["rewards"] = means(judged);
    }
    if let Some(out) = &args.model.run.out {
        let file = out.join("scores.jsonl");
        json_files::write_lines(&file, &lines)?;
        result["file"] = json!(file);
    } else if !args.model.run.json {
        lines.iter().try_for_each(print_json)?;
    }
    show(&result, args.model.run.json)?;
    Ok(Outcome::Done)
}

pub(crate) fn evaluate(args: &EvaluateArgs) -> anyhow::Result<Outcome> {
    let loaded = match args.model.load(args.chat)? {
        Ok(loaded) => loaded,
        Err(outcome) => return Ok(outcome),
    };
    let rewards = crate::train::ppo::rewards(&loaded.config.reward)?;
    let rows = read_prompts(&args.data, &loaded.config.columns)?;
    let mut how = args.writing.config(loaded.config.generation.as_ref(), &loaded.model)?;
    if loaded.config.generation.is_none()
        && args.writing.temperature.is_none()
        && args.writing.top_p.is_none()
    {
        // What is measured should not depend on a draw, unless it is asked for.
        how.strategy = Strategy::Greedy;
    }
    let out = args.model.run.out.as_deref();
    let Some(written) = loaded.write(&rows, &how, out)? else { return Ok(Outcome::Interrupted) };
    if !loaded.leads() {
        return Ok(Outcome::Done);
    }
    let (mut of_rows, mut texts) = (vec![], vec![]);
    for (row, responses) in rows.iter().zip(&written) {
        of_rows.extend(responses.iter().map(|_| row));
        texts.extend(responses.iter().map(|response| response.text.as_str()));
    }
    let judged = rewards.judge(&of_rows, &texts)?;
    let mut result = json!({ "command": "evaluate", "model": loaded.folder, "rows": rows.len(), "responses": texts.len() });
    result["rewards"] = means(&judged);
    if let Some(out) = out {
        let lines = of_rows.iter().zip(&texts).zip(&judged);
        let line = |((row, text), judged): ((&&PromptRow, &&str), &Rewarded)| {
            with_fields(row, vec![("completion", json!(text)), ("rewards", told(judged))])
        };
        json_files::write_lines(&out.join("completions.jsonl"), &lines.map(line).collect::<Vec<_>>())?;
        json_files::write(&out.join("results.json"), &result)?;
        loaded.forget(Some(out))?;
    }
    if args.model.run.json {
        print_json(&result)?;
    } else {
        let mut table = Table::new(["reward", "mean", "95 % interval"]);
        for (name, of) in result["rewards"].as_object().into_iter().flatten() {
            let number = |key: &str| Table::number(of[key].as_f64().unwrap_or(f64::NAN));
            table.row([name.clone(), number("mean"), format!("{} to {}", number("low"), number("high"))]);
        }
        table.print()?;
    }
    Ok(Outcome::Done)
}

/// What rewards say of completions, where there are any rewards.
fn judge(config: &UseConfig, rows: &[PromptRow], texts: &[String]) -> anyhow::Result<Option<Vec<Rewarded>>> {
    if config.reward.is_empty() {
        return Ok(None);
    }
    let rows: Vec<&PromptRow> = rows.iter().collect();
    let texts: Vec<&str> = texts.iter().map(String::as_str).collect();
    Ok(Some(WeightedRewards::new(&config.reward)?.judge(&rows, &texts)?))
}

/// A judgement as a row has it.
fn told(judged: &Rewarded) -> Value {
    let parts = judged.parts.iter().map(|(name, value)| (name.to_string(), json!(value)));
    Value::Object(std::iter::once(("reward".into(), json!(judged.value))).chain(parts).collect())
}

/// Mean and bootstrap interval of each reward.
fn means(judged: &[Rewarded]) -> Value {
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

fn show(result: &Value, as_json: bool) -> anyhow::Result<()> {
    let labels = Map::new();
    Ok(ruminate::run::print_result(labels, result, as_json)?)
}
