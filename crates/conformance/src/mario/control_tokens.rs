//! Kind `control_tokens`: names, ids, codes, stages, and the rows of new tokens.

use std::collections::BTreeMap;
use std::path::Path;

use ruminate_algorithms::quark::{Condition, ControlConfig, ControlTokens, Lengths, labels};
use ruminate_models::{TokenId, embedding_statistics};
use serde::Deserialize;
use tch::{Kind, Tensor};

use super::data_pool::{ids, reward, stages, tokenizer};
use crate::Outcome;
use crate::compare::{Check, Tolerance, equal};
use crate::file::{GoldenError, GoldenFile};
use crate::references::f64s;

/// `tokens` of the file.
#[derive(Deserialize, Clone)]
struct Tokens {
    config: Config,
    tokens_added_in_order: Vec<String>,
    token_ids: BTreeMap<String, TokenId>,
    base_tokenizer_len: usize,
    embedding_rows_before_after: [i64; 2],
    num_control_codes: usize,
    best_control_code_ids: Vec<TokenId>,
}

#[derive(Deserialize, Clone)]
struct Config {
    reward_name: String,
    n_extra_tokens: String,
    train_option: BTreeMap<String, String>,
    task_correctness: String,
    reward_as_product: u8,
}

pub(super) fn control_tokens(path: &Path) -> Result<Outcome, GoldenError> {
    let file = GoldenFile::read(path)?;
    let tokens: Vec<Tokens> = file.field("tokens")?;
    let mut cases = file.cases("tokens", |case: Tokens| run(&case))?;
    cases.extend(file.cases("staged", staged)?);
    cases.extend(file.cases("collator", |case: Collator| collator(&case, &tokens))?);
    cases.extend(file.cases("embedding_init", embedding)?);
    cases.extend(file.cases("generate_arguments", generation)?);
    Ok(Outcome { cases, pending: vec![] })
}

fn build(case: &Tokens) -> Check<(ControlConfig, ControlTokens)> {
    let config = &case.config;
    let counts = config.n_extra_tokens.split(',').map(str::parse).collect::<Result<Vec<usize>, _>>()?;
    // The product has as many buckets as the first reward, whatever that is.
    let product_buckets = (config.reward_as_product == 1).then(|| counts.first().copied()).flatten();
    let rewards = config.reward_name.split(',').zip(counts).map(|(name, count)| {
        reward(name, count, config.train_option.get(name).map_or("", String::as_str), 0.4)
    });
    let control = ControlConfig {
        rewards: rewards.collect::<Check<_>>()?,
        as_product: config.reward_as_product == 1,
        product_buckets,
        task_correctness: config.task_correctness == "yes",
        ..ControlConfig::default()
    };
    let mut tokenizer = tokenizer(case.base_tokenizer_len)?;
    let tokens = ControlTokens::add_to(&mut tokenizer, &control)?;
    equal("found again", ControlTokens::find_in(&tokenizer, &control)?, tokens.clone())?;
    Ok((control, tokens))
}

fn run(case: &Tokens) -> Check {
    let (control, tokens) = build(case)?;
    equal("tokens_added_in_order", tokens.names(), &case.tokens_added_in_order[..])?;
    equal("names_of", ControlTokens::names_of(&control), case.tokens_added_in_order.clone())?;
    let named = tokens.names().iter().cloned().zip(tokens.ids().iter().copied());
    equal("token_ids", named.collect::<BTreeMap<_, _>>(), case.token_ids.clone())?;
    equal("embedding rows", tokens.id_range().end, case.embedding_rows_before_after[1])?;
    equal("num_control_codes", control.code_len(), case.num_control_codes)?;
    equal("num_control_codes", tokens.code_len(), case.num_control_codes)?;
    equal("best_control_code_ids", tokens.condition(Condition::Best, 0), case.best_control_code_ids.clone())
}

#[derive(Deserialize)]
struct Staged {
    mode: String,
    stages_interval: u64,
    step: u64,
    full_code: Vec<TokenId>,
    code_at_sampling: Vec<TokenId>,
    code_in_training_labels: Vec<TokenId>,
    response_positions_scored: usize,
}

fn staged(case: Staged) -> Check {
    let schedule = stages(&case.mode, case.stages_interval)?;
    let len = case.full_code.len();
    let sampling = &case.full_code[schedule.sampling(case.step, len)];
    equal("code_at_sampling", sampling, &case.code_at_sampling[..])?;
    let training = &case.full_code[schedule.training(case.step, len)];
    equal("code_in_training_labels", training, &case.code_in_training_labels[..])?;
    // A response has as many positions with a loss, however long its code is.
    let response = vec![1; case.response_positions_scored];
    let target = labels(training, &response);
    equal("response_positions_scored", target.len() - training.len(), case.response_positions_scored)
}

#[derive(Deserialize)]
struct Collator {
    config_index: usize,
    batch: Vec<Row>,
    word_ids: BTreeMap<String, TokenId>,
    eos: TokenId,
    pad: TokenId,
    out: Collated,
}

#[derive(Deserialize)]
struct Row {
    response: String,
    cat_tokens: String,
    tc_tokens: String,
}

#[derive(Deserialize)]
struct Collated {
    response_ids_without_tc: Vec<Vec<TokenId>>,
    response_ids_with_tc: Vec<Vec<TokenId>>,
}

fn collator(case: &Collator, tokens: &[Tokens]) -> Check {
    let (_, control) = build(&tokens[case.config_index])?;
    for (correctness, want) in
        [(false, &case.out.response_ids_without_tc), (true, &case.out.response_ids_with_tc)]
    {
        let row = |row: &Row| {
            let code = row.cat_tokens.split(' ').chain(correctness.then_some(row.tc_tokens.as_str()));
            let code = ids(code, |token| control.id(token))?;
            let mut response = ids(row.response.split(' '), |word| case.word_ids.get(word).copied())?;
            response.push(case.eos);
            Ok(labels(&code, &response))
        };
        let mut rows = case.batch.iter().map(row).collect::<Check<Vec<_>>>()?;
        let width = rows.iter().map(Vec::len).max().unwrap_or(0);
        rows.iter_mut().for_each(|row| row.resize(width, case.pad));
        equal("response ids", rows, want.clone())?;
    }
    Ok(())
}

#[derive(Deserialize)]
struct Embedding {
    embedding: Vec<Vec<f64>>,
    mean: Vec<f64>,
    std: Vec<f64>,
}

fn embedding(case: Embedding) -> Check {
    let rows = case.embedding.len() as i64;
    let embedding =
        Tensor::f_from_slice(&case.embedding.concat())?.f_view_([rows, -1])?.f_to_kind(Kind::Float)?;
    let (mean, std) = embedding_statistics(&embedding)?;
    let tolerance = Tolerance { absolute: 1e-6, relative: 1e-5 };
    tolerance.close("mean", &f64s(&mean)?, &case.mean)?;
    tolerance.close("std", &f64s(&std)?, &case.std)
}

#[derive(Deserialize)]
struct Generation {
    arguments: Arguments,
    decoder_prefix: Vec<Vec<TokenId>>,
}

#[derive(Deserialize)]
struct Arguments {
    max_length: usize,
    min_length: usize,
}

fn generation(case: Generation) -> Check {
    let Arguments { max_length, min_length } = case.arguments;
    for beginning in &case.decoder_prefix {
        let lengths = Lengths { max_length, min_length };
        let new = lengths.new_tokens(beginning.len() - 1)?;
        equal("positions of the decoder", beginning.len() + new.max, max_length)?;
        equal("positions before the end", beginning.len() + new.min, min_length)?;
    }
    Ok(())
}
