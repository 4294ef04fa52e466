//! The training that gives MaRio its name: Quark with a control token for each of several rewards of rationales.

use std::path::{Path, PathBuf};

use ruminate_datasets::Split;
use ruminate_datasets::mario::{
    GivenResponse, MarioDataset, MarioRow, OutputRow, OutputTable, label, num_sents, num_words, quark_rows,
    rationale, target, training_rows_file, training_summary_file,
};
use ruminate_models::{Generate, Model, Policy, Sampling, Tokenizer};
use ruminate_rewards::mario::{MarioItem, RewardSet, Summary};

use super::TextScorer;
use super::rows::{mean_and_longest, replace_line};
use crate::plan::{Pass, Work};
use crate::ppo::{KlPenalty, Prompt, Response};
use crate::quark::{
    Batch, Buckets, Condition, ControlConfig, ControlTokens, Expert, Judged, Lengths, Quark, QuarkConfig,
    QuarkData, RewardSpec, SamplingConfig, respond, shown_sample, summarize,
};
use crate::trainer::{Algorithm, Evaluation, Losses, Term};
use crate::{Collective, Error, Metrics, Observer, Phases, Result, Schedule, TrainerConfig};

/// Responses shown as samples of each validation.
const SAMPLES: usize = 6;

/// The settings of the published command for NumerSense, with the paper's four rewards in its order; `{dataset}` stands for the data set. The
/// authors set no top-k; 50 is what their library does then.
#[must_use]
pub fn published_quark() -> QuarkConfig {
    let names = ["{dataset}-rationale-quality-continuous", "accuracy", "plausibility", "diversity"];
    let spec = |name: &str| match name {
        "accuracy" => RewardSpec::new(name).buckets(Buckets::Correctness),
        _ => RewardSpec::new(name),
    };
    let lengths = Lengths { max_length: 256, min_length: 10 };
    QuarkConfig {
        control: ControlConfig { rewards: names.map(spec).into(), ..ControlConfig::default() },
        batch_size: 4,
        sample_interval: 4000,
        sampling: SamplingConfig {
            sampling: Sampling { top_k: Some(50), top_p: Some(0.7), ..Sampling::default() },
            lengths,
            passes: 1,
            batch_size: 150,
            drop_last: true,
        },
        eval_lengths: lengths,
        kl: KlPenalty::Fixed { coef: 0.1 },
        kl_vocab: Some(32_000),
        retokenize: true,
        ..QuarkConfig::default()
    }
}

/// The optimizer of the published command: Adam at 3e-5 with 1000 steps of warm-up and a linear decay over 50000 steps.
#[must_use]
pub fn published_quark_trainer() -> TrainerConfig {
    TrainerConfig {
        steps: 50_000,
        lr: 3e-5,
        schedule: Schedule::Linear,
        warmup_steps: 1000,
        betas: [0.9, 0.99],
        max_grad_norm: 1.0,
        log_every: 50,
        eval_every: 1000,
        ..TrainerConfig::default()
    }
}

/// The settings with the name of a data set in those of its rewards.
#[must_use]
pub fn for_dataset(mut config: QuarkConfig, dataset: MarioDataset) -> QuarkConfig {
    let fill = |name: &mut String| *name = name.replace("{dataset}", dataset.name());
    config.control.rewards.iter_mut().for_each(|reward| fill(&mut reward.name));
    fill(&mut config.best_by);
    config
}

/// A question as a prompt: the question itself.
///
/// # Errors
/// When the tokenizer fails.
pub fn prompt(row: &MarioRow, tokenizer: &Tokenizer) -> Result<Prompt<MarioItem>> {
    let (question, gold) = (row.question.clone(), row.answer.clone());
    let (ids, text) = (tokenizer.encode(&question)?, question.clone());
    Ok(Prompt { ids, text, task: String::new(), item: MarioItem { question, gold } })
}

/// Prompts from the questions of the training rows, and all rows as expert data.
///
/// # Errors
/// When the tokenizer fails.
pub fn quark_data(
    train: &[MarioRow],
    dev: &[MarioRow],
    tokenizer: &Tokenizer,
) -> Result<QuarkData<MarioItem>> {
    let prompts = |rows: &[MarioRow]| rows.iter().map(|row| prompt(row, tokenizer)).collect::<Result<_>>();
    let expert = |row: &MarioRow| Expert::new(prompt(row, tokenizer)?, &target(row), tokenizer);
    Ok(QuarkData {
        train: prompts(&quark_rows(train, true))?,
        expert: quark_rows(train, false).iter().map(expert).collect::<Result<_>>()?,
        held_out: prompts(dev)?,
    })
}

/// The average work of a step, for a [`Plan`](crate::Plan): an update of policy and reference, and its part of a round. The models behind
/// the rewards are not counted.
#[must_use]
pub fn quark_passes(config: &QuarkConfig, trainer: &TrainerConfig, data: &QuarkData<MarioItem>) -> Vec<Pass> {
    let source = mean_and_longest(data.expert.iter().map(|row| row.prompt.ids.len()));
    let target = mean_and_longest(data.expert.iter().map(|row| row.ids.len() + config.control.code_len()));
    let rows = config.batch_size.div_ceil(trainer.accumulate);
    let pass = |work, times, rows| Pass { work, times, networks: 1, rows, source, target };
    let accumulate = trainer.accumulate as f64;
    let batches = data.train.len().div_ceil(config.sampling.batch_size) as u64;
    let written = (batches * config.sampling.passes) as f64 / config.sample_interval as f64;
    vec![
        pass(Work::Training, accumulate, rows),
        pass(Work::Forward, accumulate, rows),
        pass(Work::Forward, written, config.sampling.batch_size),
    ]
}

/// How [`answers`] asks a model.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Asking {
    /// The quantiles that the control tokens ask for; without any, the model writes as one of the supervised stage.
    pub condition: Option<Condition>,
    /// The model's step, which tells which control tokens are in use, where they come one after another.
    pub step: u64,
    /// The data set of the questions.
    pub dataset: MarioDataset,
}

/// Greedy responses of a trained model to questions.
///
/// # Errors
/// When the tokenizer lacks the control tokens, or the model or the observer fails.
pub fn answers<P: Policy + Generate>(
    config: &QuarkConfig,
    model: &P,
    tokenizer: &Tokenizer,
    Asking { condition, step, dataset }: Asking,
    rows: &[MarioRow],
    observer: &mut dyn Observer,
) -> Result<Vec<GivenResponse>> {
    let tokens = match condition {
        // Without any, the error names the first that is missing.
        Some(_) => Some(match ControlTokens::of_model(tokenizer, &config.control)? {
            Some(tokens) => tokens,
            None => ControlTokens::find_in(tokenizer, &config.control)?,
        }),
        None => None,
    };
    let prompts = rows.iter().map(|row| prompt(row, tokenizer)).collect::<Result<Vec<_>>>()?;
    let total = prompts.len() as u64;
    let responses = respond(
        config,
        model,
        tokenizer,
        tokens.as_ref().zip(condition),
        &prompts.iter().collect::<Vec<_>>(),
        step,
        |done| observer.progress("writing", done, total).map_err(Error::Observer),
    )?;
    let given = |(row, response): (&MarioRow, Response)| GivenResponse {
        question: row.question.clone(),
        gold: row.answer.clone(),
        gold_response: target(row),
        rationale: rationale(&response.text).to_string(),
        label: dataset.normalise_label(&label(&response.text)),
        text: response.text,
    };
    Ok(rows.iter().zip(responses).map(given).collect())
}

/// [`Quark`] on rationales, with the published code's result files. Validation asks for the best of every reward, greedily,
/// about the development and the test questions; only the former choose the best checkpoint, which is never that of step 0.
///
/// # Reference behaviour
/// The published code validates after the update of a step, this trainer before it: line `Step s` is about the model after
/// `s` updates. In both, step 0 is the reference without control tokens.
#[derive(Debug)]
pub struct Distillation<P> {
    quark: Quark<P, MarioItem, TextScorer>,
    test: Vec<Prompt<MarioItem>>,
    folder: PathBuf,
}

/// The models of a [`Distillation`], and the tokenizer of its policy.
#[derive(Debug)]
pub struct DistillationModels {
    /// The policy, which is trained and gets the control tokens.
    pub policy: Model,
    /// The policy's tokenizer, which gets them, too.
    pub tokenizer: Tokenizer,
    /// The frozen model that is not to be left.
    pub reference: Model,
    /// The rewards that score responses.
    pub rewards: RewardSet,
}

impl Distillation<Model> {
    /// Joins models and the rows of the three splits; result files go into `folder`. The configuration is one
    /// [`for_dataset`].
    ///
    /// # Errors
    /// When models, tokenizer and configuration do not fit together, or a setting is wrong.
    pub fn assemble(
        config: QuarkConfig,
        models: DistillationModels,
        [train, dev, test]: &[Vec<MarioRow>; 3],
        folder: PathBuf,
    ) -> Result<Self> {
        let DistillationModels { mut policy, mut tokenizer, reference, rewards } = models;
        let data = quark_data(train, dev, &tokenizer)?;
        let test = test.iter().map(|row| prompt(row, &tokenizer)).collect::<Result<_>>()?;
        let tokens = ControlTokens::add_to(&mut tokenizer, &config.control)?;
        policy.add_tokens(tokens.id_range(), config.seed)?;
        let scorer = TextScorer::new(rewards).log_to(folder.clone());
        Ok(Self::new(Quark::new(config, policy, reference, tokenizer, scorer, data)?, test, folder))
    }
}

impl<P: Policy + Generate> Distillation<P> {
    /// Adds the files, which go into `folder`, and test questions, of which there may be none.
    pub fn new(
        quark: Quark<P, MarioItem, TextScorer>,
        test: Vec<Prompt<MarioItem>>,
        folder: PathBuf,
    ) -> Self {
        Self { quark, test, folder }
    }

    /// The algorithm underneath.
    pub fn quark(&self) -> &Quark<P, MarioItem, TextScorer> {
        &self.quark
    }

    /// Responses to held-out questions and what they are worth, after the files about them are written.
    fn validate(
        &self,
        split: Split,
        step: u64,
        observer: &mut dyn Observer,
    ) -> Result<(Vec<Response>, Vec<Judged>)> {
        let (prompts, name, phase) = match split {
            Split::Test => (&self.test, "test", "test"),
            _ => (&self.quark.data().held_out, "val", "validation"),
        };
        let prompts: Vec<&Prompt<MarioItem>> = prompts.iter().collect();
        let total = prompts.len() as u64;
        let progress = |done| observer.progress(phase, done, total).map_err(Error::Observer);
        let responses = match step {
            0 => self.quark.respond_as_reference(&prompts, progress)?,
            _ => self.quark.respond(&prompts, Condition::Best, step, progress)?,
        };
        self.quark.scorer().begin(format!("step{step}_eval_{name}greedy"));
        let judged = self.quark.judge(&prompts, &responses)?;
        self.quark.scorer().finish()?;
        if self.quark.collective().is_main_process() {
            self.write(name, step, &prompts, &responses, &judged)?;
        }
        Ok((responses, judged))
    }

    fn write(
        &self,
        name: &str,
        step: u64,
        prompts: &[&Prompt<MarioItem>],
        responses: &[Response],
        judged: &[Judged],
    ) -> Result<()> {
        let names = self.quark.scorer().rewards().names();
        // Accuracy has columns of its own.
        let kept = |i: &usize| names[*i] != "accuracy";
        let of =
            |judged: &Judged| (0..names.len()).filter(kept).map(|i| judged.scores[i]).collect::<Vec<_>>();
        let rewards: Vec<String> = (0..names.len()).filter(kept).map(|i| names[i].clone()).collect();
        let row = |((prompt, response), judged): ((&&Prompt<MarioItem>, &Response), &Judged)| OutputRow {
            question: prompt.item.question.clone(),
            response: response.text.clone(),
            correct: judged.correct,
            scores: of(judged),
        };
        let rows: Vec<OutputRow> = prompts.iter().zip(responses).zip(judged).map(row).collect();
        let counts = |text: &str| [num_sents(text), num_words(text)].map(|count| Some(count as f64));
        let scores: Vec<(bool, Vec<Option<f64>>)> =
            rows.iter().map(|r| (r.correct, [&r.scores[..], &counts(&r.response)].concat())).collect();
        let columns = [rewards.clone(), ["num_sents", "num_words"].map(String::from).into()].concat();
        let summary = Summary::of(&columns, scores.iter().map(|(correct, scores)| (*correct, &scores[..])));
        let what = format!("Step {step}");
        replace_line(&self.folder.join(training_summary_file(name)), step, &summary.line(&what, Some(2)))?;
        let table = OutputTable { rows, rewards };
        Ok(table.write_columns(&self.folder.join(training_rows_file(name, step)))?)
    }
}

impl<P: Policy + Generate> Algorithm for Distillation<P> {
    type Batch = Batch;

    fn policy(&self) -> &dyn Policy {
        Algorithm::policy(&self.quark)
    }

    fn policy_mut(&mut self) -> &mut dyn Policy {
        self.quark.policy_mut()
    }

    fn distribute(&mut self, collective: &Collective) -> Result<()> {
        self.quark.distribute(collective)
    }

    fn loss_name(&self) -> &'static str {
        self.quark.loss_name()
    }

    fn phases(&mut self) -> Phases {
        self.quark.phases()
    }

    fn phase_begins(&self, step: u64) -> bool {
        self.quark.phase_begins(step)
    }

    fn batches(&mut self, step: u64, update: usize, accumulate: usize) -> Result<Option<Vec<Batch>>> {
        self.quark.scorer().begin(format!("step{step}"));
        let batches = self.quark.batches(step, update, accumulate)?;
        self.quark.scorer().finish()?;
        Ok(batches)
    }

    fn terms(&self, batch: &Batch) -> Vec<Term> {
        self.quark.terms(batch)
    }

    fn losses(&mut self, batch: &Batch) -> Result<Losses> {
        self.quark.losses(batch)
    }

    fn metrics(&mut self) -> Result<Metrics> {
        self.quark.metrics()
    }

    fn evaluate(&mut self, step: u64, observer: &mut dyn Observer) -> Result<Evaluation> {
        let (responses, judged) = self.validate(Split::Dev, step, observer)?;
        let config = self.quark.config();
        let mut evaluation = summarize(config, &judged)?;
        let prompts = &self.quark.data().held_out;
        let names = || config.control.rewards.iter().map(|reward| reward.name.as_str());
        let shown = (0..SAMPLES.min(prompts.len())).map(|i| i * prompts.len() / SAMPLES.min(prompts.len()));
        let samples: Vec<_> =
            shown.map(|i| shown_sample(step, &prompts[i], &responses[i], &judged[i], names())).collect();
        observer.samples(step, &samples).map_err(Error::Observer)?;
        if !self.test.is_empty() {
            let (_, judged) = self.validate(Split::Test, step, observer)?;
            let test = summarize(self.quark.config(), &judged)?.metrics.into_iter();
            evaluation.metrics.extend(test.map(|(name, value)| (name.replacen("eval/", "test/", 1), value)));
        }
        Ok(evaluation)
    }

    fn competes_at(&self, step: u64) -> bool {
        self.quark.competes_at(step)
    }

    fn state(&self) -> serde_json::Value {
        self.quark.state()
    }

    fn load_state(&mut self, state: serde_json::Value) -> Result<()> {
        self.quark.load_state(state)
    }

    fn save_extras(&self, folder: &Path) -> Result<()> {
        self.quark.save_extras(folder)
    }

    fn load_extras(&mut self, folder: &Path) -> Result<()> {
        self.quark.load_extras(folder)
    }
}
