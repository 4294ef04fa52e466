//! Kind `data_pool`: buckets and control strings over several rounds.

use std::path::Path;

use ruminate_algorithms::quark::{
    AddTo, Buckets, CORRECT, ControlConfig, ControlTokens, DataPool, PoolSample, RewardSpec, StageSchedule,
    Ties, TrainOption, WRONG,
};
use ruminate_models::{TokenId, Tokenizer};
use serde::Deserialize;
use serde_json::{Value, json};

use crate::Outcome;
use crate::compare::{Check, Mismatch, Tolerance, equal};
use crate::file::{GoldenError, GoldenFile};

#[derive(Deserialize)]
struct Case {
    config: Config,
    adds: Vec<Round>,
    expected: Vec<Value>,
}

#[derive(Deserialize)]
struct Config {
    rewards: Vec<String>,
    n_extra_tokens: Vec<usize>,
    filter_scores: Vec<f64>,
    train_options: Vec<String>,
    #[serde(default)]
    product: bool,
    #[serde(default)]
    stages: String,
    #[serde(default)]
    stages_mode: String,
    #[serde(default)]
    stages_interval: u64,
}

#[derive(Deserialize)]
struct Round {
    prompts: Vec<String>,
    responses: Vec<String>,
    gold_label_sequences: Vec<String>,
    scores: serde_json::Map<String, Value>,
    task_correctness: Vec<i64>,
    #[serde(default)]
    step: u64,
}

pub(super) fn data_pool(path: &Path) -> Result<Outcome, GoldenError> {
    let cases = GoldenFile::read(path)?.cases("cases", |case: Case| run(&case))?;
    Ok(Outcome { cases, pending: vec![] })
}

/// How the reference's arguments say what [`RewardSpec`] says.
pub(super) fn reward(name: &str, buckets: usize, option: &str, threshold: f64) -> Check<RewardSpec> {
    let buckets = match name {
        "accuracy" => Buckets::Correctness,
        name if name.ends_with("-discrete") => Buckets::Values(vec![1.0, 0.0, -1.0]),
        _ => Buckets::Quantiles { count: buckets, ties: Ties::Split },
    };
    let option = match option {
        "quark" => TrainOption::Quark,
        "filter" => TrainOption::Filter { threshold },
        "filter_quark" => TrainOption::FilterQuark { threshold },
        "quark_no_tag" => TrainOption::QuarkNoTag,
        other => return Err(Mismatch(format!("train option `{other}` is not known"))),
    };
    Ok(RewardSpec::new(name).buckets(buckets).option(option))
}

/// How the reference's arguments say what [`StageSchedule`] says.
pub(super) fn stages(mode: &str, interval: u64) -> Check<StageSchedule> {
    let (side, groups) = mode.split_once("_groups_").unwrap_or((mode, ""));
    let add_to = match side {
        "add_to_right" => AddTo::Right,
        "add_to_left" => AddTo::Left,
        other => return Err(Mismatch(format!("mode `{other}` is not known"))),
    };
    let groups =
        groups.split('-').filter(|group| !group.is_empty()).map(str::parse).collect::<Result<_, _>>()?;
    Ok(StageSchedule::Additive { interval, add_to, groups })
}

/// A tokenizer of `size` tokens.
pub(super) fn tokenizer(size: usize) -> Check<Tokenizer> {
    let vocab: serde_json::Map<String, Value> =
        (0..size).map(|i| (format!("<piece {i}>"), i.into())).collect();
    let model = json!({ "type": "WordLevel", "vocab": vocab, "unk_token": "<piece 0>" });
    let folder = tempfile::tempdir()?;
    let path = folder.path().join("tokenizer.json");
    std::fs::write(&path, json!({ "version": "1.0", "added_tokens": [], "model": model }).to_string())?;
    Ok(Tokenizer::open(&path)?)
}

fn run(case: &Case) -> Check {
    let mut tokenizer = tokenizer(3)?;
    let config = &case.config;
    let rewards = config.rewards.iter().enumerate().map(|(i, name)| {
        reward(name, config.n_extra_tokens[i], &config.train_options[i], config.filter_scores[i])
    });
    let control = ControlConfig {
        rewards: rewards.collect::<Check<_>>()?,
        as_product: config.product,
        product_buckets: config.product.then(|| config.n_extra_tokens.first().copied()).flatten(),
        task_correctness: false,
        stages: match config.stages.as_str() {
            "yes" => stages(&config.stages_mode, config.stages_interval)?,
            _ => StageSchedule::Classic,
        },
    };
    let tokens = ControlTokens::add_to(&mut tokenizer, &control)?;
    let mut pool = DataPool::new(control)?;
    equal("rounds", case.adds.len(), case.expected.len())?;
    for (i, (round, want)) in case.adds.iter().zip(&case.expected).enumerate() {
        let added = pool.add(samples(config, round)?, round.step);
        if want.get("error").is_some() {
            return equal(&format!("expected[{i}]: an error"), added.is_err(), true);
        }
        added?;
        Tolerance::EXACT.json(&format!("expected[{i}]"), &report(config, &pool, &tokens)?, want)?;
    }
    Ok(())
}

fn samples(config: &Config, round: &Round) -> Check<Vec<PoolSample<String>>> {
    let score = |reward: &String, i: usize| match round.scores.get(reward) {
        // The correctness flags are the scores of this reward.
        _ if reward == "accuracy" => Some(round.task_correctness[i] as f64),
        Some(scores) => scores[i].as_f64(),
        None => None,
    };
    let sample = |(i, prompt): (usize, &String)| PoolSample {
        prompt: prompt.clone(),
        response: round.responses[i].clone(),
        scores: config.rewards.iter().map(|reward| score(reward, i)).collect(),
        correct: round.task_correctness[i] == 1,
        item: round.gold_label_sequences[i].clone(),
    };
    Ok(round.prompts.iter().enumerate().map(sample).collect())
}

/// The pool as the file shows it.
fn report(config: &Config, pool: &DataPool<String>, tokens: &ControlTokens) -> Check<Value> {
    let samples = pool.samples();
    let column = |of: &dyn Fn(&PoolSample<String>) -> Value| -> Value {
        samples.iter().map(|ranked| of(&ranked.sample)).collect()
    };
    let codes = samples
        .iter()
        .map(|r| tokens.code_text(&r.buckets, r.sample.correct))
        .collect::<Result<Vec<_>, _>>()?;
    let scores: serde_json::Map<String, Value> = config
        .rewards
        .iter()
        .enumerate()
        .map(|(i, name)| (name.clone(), column(&|s| s.scores[i].into())))
        .collect();
    Ok(json!({
        "prompts": column(&|s| s.prompt.clone().into()),
        "responses": column(&|s| s.response.clone().into()),
        "cat_tokens": codes,
        "tc_tokens": column(&|s| if s.correct { CORRECT } else { WRONG }.into()),
        "gold_label_sequences": column(&|s| s.item.clone().into()),
        "task_correctness": column(&|s| i64::from(s.correct).into()),
        "scores": scores,
    }))
}

/// Ids of a row, where the file gives words.
pub(super) fn ids<'a>(
    words: impl Iterator<Item = &'a str>,
    id: impl Fn(&str) -> Option<TokenId>,
) -> Check<Vec<TokenId>> {
    words.map(|word| id(word).ok_or_else(|| Mismatch(format!("`{word}` has no id")))).collect()
}
