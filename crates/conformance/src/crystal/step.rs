//! Kind `tiny_t5_step`: a whole step of reinforcement, run by the trainer, on given statements.

use super::{EOS, PAD, Rows};
use crate::Outcome;
use crate::compare::{Check, Mismatch, Tolerance, equal};
use crate::file::{GoldenError, GoldenFile};
use crate::references::f64s;
use ruminate_algorithms::crystal::ReinforcementConfig;
use ruminate_algorithms::ppo::{Ppo, PpoConfig, PpoData, Prompt};
use ruminate_algorithms::{
    Metrics, Observer, ObserverError, Precision, StepReport, Trainer, TrainerConfig, mean_loss,
};
use ruminate_datasets::{Compat, Prompts, TokenId};
use ruminate_models::checkpoint::{WEIGHTS, write_json, write_tensors};
use ruminate_models::{
    ActorCritic, Example, Finish, Generate, Generated, GenerationConfig, IGNORED, Parameters, Policy,
    ScoreChoices, ScoreOptions, T5, TokenScores, Tokenizer,
};
use ruminate_rewards::{
    EncodedQuestion, Normalization, Reward, Sample, SelfFeedback, Shape, choices::choice_probs,
};
use serde::Deserialize;
use serde_json::{Value, json};
use std::collections::BTreeMap;
use std::path::Path;
use tch::{Device, Kind, Tensor};

#[derive(Deserialize)]
struct Case {
    config: Value,
    weights: BTreeMap<String, Value>,
    policy_delta: Delta,
    value_head: Head,
    separators: Separators,
    question_ids: Rows<TokenId>,
    knowledge_ids: Rows<TokenId>,
    choice_first_ids: Rows<TokenId>,
    labels: Rows<TokenId>,
    answer_index: Vec<usize>,
    gain: f64,
    bias: f64,
    kl_coef: f64,
    learning_rate: f64,
    expected: Expected,
}

#[derive(Deserialize)]
struct Delta {
    parameter: String,
    add: Rows<f64>,
}

#[derive(Deserialize)]
struct Head {
    weight: Rows<f64>,
    bias: Vec<f64>,
}

#[derive(Deserialize)]
struct Separators {
    knowledge: Vec<TokenId>,
    answer: Vec<TokenId>,
}

#[derive(Deserialize)]
struct Expected {
    greedy_knowledge_ids: Rows<TokenId>,
    logprobs: Rows<f64>,
    entropy: Rows<f64>,
    values: Rows<f64>,
    ref_logprobs: Rows<f64>,
    choice_probs_with: Rows<f64>,
    choice_probs_without: Rows<f64>,
    reward_raw: Vec<f64>,
    reward_normalized: Vec<f64>,
    penalized_rewards: Rows<f64>,
    loss_qka: f64,
    loss_qa: f64,
    loss_qk: f64,
    grad_norms_loss_qka: BTreeMap<String, f64>,
    grad_norms_rl_epoch0: BTreeMap<String, f64>,
    ppo_epochs: Vec<Losses>,
    logprobs_after: Rows<f64>,
    values_after: Rows<f64>,
}

#[derive(Deserialize)]
struct Losses {
    policy: f64,
    value: f64,
    total: f64,
}

/// What stands at masked cells in the expected log-probabilities; ours are 0 there.
const MASKED: f64 = -100_000.0;

pub(super) fn tiny_t5_step(path: &Path) -> Result<Outcome, GoldenError> {
    let file = GoldenFile::read(path)?;
    let tolerance = file.tolerance()?;
    let cases = file.cases("cases", |case: Case| check(&case, tolerance))?;
    Ok(Outcome { cases, ..Outcome::default() })
}

/// A T5 that says what it is told to; all else is its own.
struct Scripted {
    t5: T5,
    /// Prompts, and what to say to each.
    script: Vec<Example>,
}

impl Policy for Scripted {
    fn parameters(&self) -> &Parameters {
        self.t5.parameters()
    }

    fn device(&self) -> Device {
        self.t5.device()
    }

    fn hidden_size(&self) -> i64 {
        self.t5.hidden_size()
    }

    fn pad_token_id(&self) -> TokenId {
        self.t5.pad_token_id()
    }

    fn set_training(&mut self, training: bool) {
        self.t5.set_training(training);
    }

    fn score(&self, examples: &[Example], want: ScoreOptions) -> ruminate_models::Result<TokenScores> {
        self.t5.score(examples, want)
    }

    fn save(&self, folder: &Path) -> ruminate_models::Result<()> {
        self.t5.save(folder)
    }
}

impl Generate for Scripted {
    fn generate(
        &self,
        prompts: &[Vec<TokenId>],
        _: &GenerationConfig,
        _: &[u64],
    ) -> ruminate_models::Result<Vec<Vec<Generated>>> {
        let line = |prompt: &Vec<TokenId>| {
            let line = self.script.iter().find(|line| line.prompt == *prompt);
            let ids = line.map(|line| line.target.clone()).unwrap_or_default();
            let zeros = vec![0.0; ids.len()];
            vec![Generated {
                log_probs: zeros.clone(),
                sampling_log_probs: zeros,
                finish: Finish::Stop,
                score: None,
                ids,
            }]
        };
        Ok(prompts.iter().map(line).collect())
    }
}

impl ScoreChoices for Scripted {
    fn choice_log_probs(
        &self,
        prompts: &[Vec<TokenId>],
        choices: &[Vec<Vec<TokenId>>],
    ) -> ruminate_models::Result<Tensor> {
        self.t5.choice_log_probs(prompts, choices)
    }

    fn first_token_logits(
        &self,
        prompts: &[Vec<TokenId>],
        tokens: &[Vec<TokenId>],
    ) -> ruminate_models::Result<Vec<Vec<f32>>> {
        self.t5.first_token_logits(prompts, tokens)
    }
}

/// The losses of the one step.
#[derive(Default)]
struct Recorder(BTreeMap<String, f64>);

impl Observer for Recorder {
    fn step(&mut self, report: &StepReport<'_>) -> Result<(), ObserverError> {
        self.0.extend(report.metrics.iter().cloned());
        Ok(())
    }

    fn evaluated(&mut self, _: u64, metrics: &Metrics) -> Result<(), ObserverError> {
        self.0.extend(metrics.iter().cloned());
        Ok(())
    }
}

/// Without the padding behind it: ids, or what losses leave out.
fn cut(row: &[TokenId]) -> Vec<TokenId> {
    let end = row.iter().rposition(|&id| id != PAD && id != IGNORED).map_or(0, |last| last + 1);
    row[..end].to_vec()
}

fn flat(value: &Value, into: &mut Vec<f32>, shape: &mut Vec<i64>, depth: usize) {
    match value {
        Value::Array(items) => {
            if shape.len() == depth {
                shape.push(items.len() as i64);
            }
            items.iter().for_each(|item| flat(item, into, shape, depth + 1));
        }
        other => into.push(other.as_f64().unwrap_or(f64::NAN) as f32),
    }
}

fn tensor(value: &Value) -> Check<Tensor> {
    let (mut numbers, mut shape) = (vec![], vec![]);
    flat(value, &mut numbers, &mut shape, 0);
    Ok(Tensor::f_from_slice(&numbers)?.f_view_(&shape[..])?)
}

/// The case's model, with the change that training has made of it or without.
fn model(case: &Case, folder: &Path, trained: bool) -> Check<T5> {
    let mut config = case.config.clone();
    for (key, value) in
        [("model_type", json!("t5")), ("dropout_rate", json!(0.0)), ("is_encoder_decoder", json!(true))]
    {
        config[key] = value;
    }
    write_json(&folder.join("config.json"), &config)?;
    let mut weights: BTreeMap<String, Tensor> = BTreeMap::new();
    for (name, value) in &case.weights {
        weights.insert(name.clone(), tensor(value)?);
    }
    if trained {
        let delta = tensor(&json!(case.policy_delta.add))?;
        let name = &case.policy_delta.parameter;
        let changed =
            weights.get(name).ok_or_else(|| Mismatch(format!("no weight {name}")))?.f_add(&delta)?;
        weights.insert(name.clone(), changed);
    }
    write_tensors(&folder.join(WEIGHTS), weights.iter().map(|(name, tensor)| (name.as_str(), tensor)))?;
    Ok(T5::load(folder, Kind::Float, Device::Cpu)?)
}

/// The policy with its value head.
fn actor_critic(case: &Case, folder: &Path, script: &[Example]) -> Check<ActorCritic<Scripted>> {
    let t5 = model(case, folder, true)?;
    let model = ActorCritic::shared(Scripted { t5, script: script.to_vec() }, 0)?;
    let head = BTreeMap::from([
        ("value_head.weight", tensor(&json!(case.value_head.weight))?),
        ("value_head.bias", tensor(&json!(case.value_head.bias))?),
    ]);
    for (name, parameter) in model.value_parameters().iter() {
        tch::no_grad(|| parameter.shallow_clone().f_copy_(&head[name]))?;
    }
    Ok(model)
}

fn check(case: &Case, tolerance: Tolerance) -> Check {
    let folder = tempfile::tempdir()?;
    let folder = folder.path();
    let prompts = Prompts::new(
        case.separators.knowledge.clone(),
        case.separators.answer.clone(),
        EOS,
        Compat::Reference,
    )?;
    let questions: Rows<TokenId> = case.question_ids.iter().map(|row| cut(row)).collect();
    let statements: Rows<TokenId> = case.knowledge_ids.iter().map(|row| cut(row)).collect();
    let qk: Rows<TokenId> = questions.iter().map(|q| prompts.qk(q)).collect();
    let examples: Vec<Example> = qk
        .iter()
        .zip(&statements)
        .map(|(prompt, target)| Example { prompt: prompt.clone(), target: target.clone() })
        .collect();
    let script = examples.clone();
    let reference = Scripted { t5: model(case, folder, false)?, script: script.clone() };
    let model = actor_critic(case, folder, &script)?;
    let t5 = &model.actor().t5;

    generated(t5, &qk, &case.expected.greedy_knowledge_ids)?;
    scores(&model, &examples, &case.expected, tolerance)?;
    let reference_scores = tch::no_grad(|| reference.score(&examples, ScoreOptions::default()))?;
    masked("ref_logprobs", &reference_scores.log_probs, &case.expected.ref_logprobs, tolerance)?;
    supervised(t5, case, &prompts, &questions, &statements, &examples, tolerance)?;

    let items: Vec<EncodedQuestion> = (0..questions.len())
        .map(|i| EncodedQuestion {
            ids: questions[i].clone(),
            choices: case.choice_first_ids[i].iter().copied().filter(|&id| id != EOS).collect(),
            gold: case.answer_index[i],
            answer: cut(&case.labels[i]),
        })
        .collect();
    rewards(t5, case, &prompts, &items, &statements, tolerance)?;

    let tokenizer = tokenizer(t5.config().vocab_size, folder)?;
    drop(model);
    let train: Vec<Prompt<EncodedQuestion>> = qk
        .into_iter()
        .zip(items)
        .map(|(ids, item)| Prompt { ids, text: String::new(), task: String::new(), item })
        .collect();
    let parts = Parts { case, prompts, train, examples, script, tokenizer, folder };
    for epochs in 1..=case.expected.ppo_epochs.len() {
        trained(&parts, epochs, tolerance)?;
    }
    Ok(())
}

fn generated(t5: &T5, prompts: &[Vec<TokenId>], want: &Rows<TokenId>) -> Check {
    let width = want.first().map_or(0, Vec::len);
    let config = GenerationConfig { max_new_tokens: width, min_new_tokens: 2, ..GenerationConfig::default() };
    let written = t5.generate(prompts, &config, &[])?;
    let got: Rows<TokenId> = written
        .into_iter()
        .flatten()
        .map(|generated| generated.ids.into_iter().chain(std::iter::repeat(PAD)).take(width).collect())
        .collect();
    equal("greedy_knowledge_ids", &got, want)
}

fn masked(name: &str, got: &Tensor, want: &Rows<f64>, tolerance: Tolerance) -> Check {
    let (rows, time) = got.size2()?;
    equal(&format!("rows of {name}"), rows, want.len() as i64)?;
    let got = f64s(got)?;
    for (row, want) in want.iter().enumerate() {
        // The file may be padded to more than its longest row.
        let mut got = got[row * time as usize..][..time as usize].to_vec();
        got.resize(got.len().max(want.len()), 0.0);
        let mut want: Vec<f64> = want.iter().map(|&x| if x == MASKED { 0.0 } else { x }).collect();
        want.resize(got.len(), 0.0);
        tolerance.close(&format!("{name}[{row}]"), &got, &want)?;
    }
    Ok(())
}

fn scores(
    model: &ActorCritic<Scripted>,
    examples: &[Example],
    want: &Expected,
    tolerance: Tolerance,
) -> Check {
    let all = ScoreOptions { entropy: true, ..ScoreOptions::default() };
    let (scores, values) = tch::no_grad(|| model.score_with_values(examples, all))?;
    masked("logprobs", &scores.log_probs, &want.logprobs, tolerance)?;
    masked("values", &values, &want.values, tolerance)?;
    let entropy = scores.entropy.ok_or_else(|| Mismatch("no entropy came back".into()))?;
    masked("entropy", &entropy, &want.entropy, tolerance)
}

/// The losses of the three supervised tasks, and the gradients of answering with a statement.
fn supervised(
    t5: &T5,
    case: &Case,
    prompts: &Prompts,
    questions: &Rows<TokenId>,
    statements: &Rows<TokenId>,
    qk: &[Example],
    tolerance: Tolerance,
) -> Check {
    let answers = |prompt: &dyn Fn(usize) -> Vec<TokenId>| -> Vec<Example> {
        (0..questions.len()).map(|i| Example { prompt: prompt(i), target: cut(&case.labels[i]) }).collect()
    };
    let qa = answers(&|i| prompts.qa(&questions[i]));
    let qka = answers(&|i| prompts.qka(&questions[i], &statements[i]));
    let want = &case.expected;
    let got = [mean_loss(t5, qk)?, mean_loss(t5, &qa)?, mean_loss(t5, &qka)?];
    tolerance.close("loss_qk, loss_qa, loss_qka", &got, &[want.loss_qk, want.loss_qa, want.loss_qka])?;
    let scores = t5.score(&qka, ScoreOptions::default())?;
    let loss = scores.log_probs.f_sum(Kind::Float)?.f_div_scalar(-(scores.labels.count as f64))?;
    loss.f_backward()?;
    norms("grad_norms_loss_qka", t5.parameters(), &want.grad_norms_loss_qka, tolerance)
}

/// Compares the norms of the gradients; a parameter without one counts as 0.
fn norms(field: &str, parameters: &Parameters, want: &BTreeMap<String, f64>, tolerance: Tolerance) -> Check {
    for (name, parameter) in parameters.iter() {
        let want = want.get(name).copied().unwrap_or(f64::NAN);
        let gradient = parameter.f_grad()?;
        let norm = if gradient.defined() { gradient.f_norm()?.f_double_value(&[])? } else { 0.0 };
        tolerance.close(&format!("{field}.{name}"), &[norm], &[want])?;
    }
    Ok(())
}

fn rewards(
    t5: &T5,
    case: &Case,
    prompts: &Prompts,
    items: &[EncodedQuestion],
    statements: &Rows<TokenId>,
    tolerance: Tolerance,
) -> Check {
    let want = &case.expected;
    let letters: Rows<TokenId> = items.iter().map(|item| item.choices.clone()).collect();
    let with: Rows<TokenId> =
        items.iter().zip(statements).map(|(item, k)| prompts.qka(&item.ids, k)).collect();
    let without: Rows<TokenId> = items.iter().map(|item| prompts.qa(&item.ids)).collect();
    for (name, asked, want) in [
        ("choice_probs_with", &with, &want.choice_probs_with),
        ("choice_probs_without", &without, &want.choice_probs_without),
    ] {
        let logits = tch::no_grad(|| t5.first_token_logits(asked, &letters))?;
        for (logits, want) in logits.iter().zip(want) {
            let logits: Vec<f64> = logits.iter().copied().map(f64::from).collect();
            let mut probs = choice_probs(&logits)?;
            probs.resize(want.len(), 0.0);
            tolerance.close(name, &probs, want)?;
        }
    }
    let feedback = SelfFeedback::new(prompts.clone(), Shape::default(), 2);
    let samples: Vec<_> = items
        .iter()
        .zip(statements)
        .map(|(item, statement)| Sample { task: "", item, response: statement, text: "" })
        .collect();
    let rewards: Vec<f64> =
        feedback.rewards(t5, &samples)?.iter().map(|reward| f64::from(reward.value)).collect();
    tolerance.close("reward_raw", &rewards, &want.reward_raw)?;
    let normalization = Normalization { gain: case.gain, bias: case.bias };
    let normalized: Vec<f64> = rewards.iter().map(|&reward| normalization.apply(reward)).collect();
    tolerance.close("reward_normalized", &normalized, &want.reward_normalized)
}

/// Words for ids: their numbers.
fn tokenizer(vocab: i64, folder: &Path) -> Check<Tokenizer> {
    let words: BTreeMap<String, i64> = (0..vocab).map(|id| (id.to_string(), id)).collect();
    let path = folder.join("tokenizer.json");
    let model = json!({ "type": "WordLevel", "vocab": words, "unk_token": "2" });
    write_json(&path, &json!({ "version": "1.0", "added_tokens": [], "model": model }))?;
    Ok(Tokenizer::open(&path)?)
}

struct Parts<'a> {
    case: &'a Case,
    prompts: Prompts,
    train: Vec<Prompt<EncodedQuestion>>,
    examples: Vec<Example>,
    script: Vec<Example>,
    tokenizer: Tokenizer,
    folder: &'a Path,
}

/// Runs the trainer for one step of `epochs` passes, and compares the losses of the last pass.
fn trained(parts: &Parts<'_>, epochs: usize, tolerance: Tolerance) -> Check {
    let case = parts.case;
    let rows = parts.train.len();
    let config = PpoConfig {
        batch_size: rows,
        kl: ruminate_algorithms::ppo::KlPenalty::Fixed { coef: case.kl_coef },
        epochs,
        rl_steps: 1000,
        best_by: String::new(),
        ..ReinforcementConfig::default().ppo
    };
    let reference = Scripted { t5: model(case, parts.folder, false)?, script: parts.script.clone() };
    let data = PpoData { train: parts.train.clone(), supervised: None, held_out: parts.train.clone() };
    let mut ppo = Ppo::new(
        config,
        actor_critic(case, parts.folder, &parts.script)?,
        reference,
        parts.tokenizer.clone(),
        SelfFeedback::new(parts.prompts.clone(), Shape::default(), rows),
        data,
    )?
    .compat(Compat::Reference)
    .normalized_by(Normalization { gain: case.gain, bias: case.bias });
    let trainer = TrainerConfig {
        steps: 1,
        lr: case.learning_rate,
        log_every: 1,
        eval_every: 1000,
        precision: Precision::F32,
        ..ReinforcementConfig::default().trainer
    };
    let run = tempfile::tempdir()?;
    let mut seen = Recorder::default();
    Trainer::new(trainer, run.path())?.fit(&mut ppo, &mut seen)?;

    let want = &case.expected;
    // After an update, rounding has been through the optimizer.
    let after = Tolerance { relative: tolerance.relative.max(1e-3), absolute: tolerance.absolute.max(1e-4) };
    let allowed = if epochs == 1 { tolerance } else { after };
    let losses = &want.ppo_epochs[epochs - 1];
    for (name, want) in [("policy", losses.policy), ("value", losses.value), ("total", losses.total)] {
        let got = seen.0.get(&format!("train/loss/{name}")).copied().unwrap_or(f64::NAN);
        allowed.close(&format!("ppo_epochs[{}].{name}", epochs - 1), &[got], &[want])?;
    }
    if epochs == 1 {
        let sums = want.penalized_rewards.iter().flatten().sum::<f64>() / rows as f64;
        let got = seen.0.get("train/reward/penalized").copied().unwrap_or(f64::NAN);
        tolerance.close("mean of penalized_rewards", &[got], &[sums])?;
        let parameters = ruminate_algorithms::Algorithm::policy(&ppo).parameters();
        norms("grad_norms_rl_epoch0", parameters, &want.grad_norms_rl_epoch0, tolerance)?;
    }
    if epochs == want.ppo_epochs.len() {
        let all = ScoreOptions::default();
        let (scores, values) = tch::no_grad(|| ppo.model().score_with_values(&parts.examples, all))?;
        masked("logprobs_after", &scores.log_probs, &want.logprobs_after, after)?;
        masked("values_after", &values, &want.values_after, after)?;
    }
    Ok(())
}
