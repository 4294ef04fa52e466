//! Generation of a fixed number of tokens.

use anyhow::Result;
use ruminate_algorithms::crystal::ReinforcementConfig;
use ruminate_models::{GenerationConfig, Sampling, Strategy, TokenId, derive_seed};

use crate::models::Model;
use crate::{Setting, Workload};

/// Eight prompts are read, and the first token is chosen; prompt tokens count.
pub(crate) fn prefill<M: Model>(setting: &Setting) -> Result<Workload> {
    let prompts = setting.ids(setting.rows(8), setting.source, 1);
    let mut workload = generate::<M>(setting, prompts, config(1, Strategy::Greedy))?;
    workload.tokens = workload.batch * setting.source;
    Ok(workload)
}

/// As many tokens as a prompt has, the most probable ones, behind a single token: steps and nothing else.
pub(crate) fn decode<M: Model>(setting: &Setting, rows: usize) -> Result<Workload> {
    let prompts = setting.ids(setting.rows(rows), 1, 1);
    generate::<M>(setting, prompts, config(setting.source, Strategy::Greedy))
}

/// The most probable token at each step.
pub(crate) fn greedy<M: Model>(setting: &Setting, rows: usize) -> Result<Workload> {
    generate::<M>(setting, prompts(setting, rows), config(setting.new, Strategy::Greedy))
}

/// Temperature 0.7, then top-p 0.9 over the full vocabulary.
pub(crate) fn top_p<M: Model>(setting: &Setting, rows: usize) -> Result<Workload> {
    let sampling = Sampling { temperature: 0.7, top_k: None, top_p: Some(0.9), ..Sampling::default() };
    generate::<M>(setting, prompts(setting, rows), config(setting.new, Strategy::Sample(sampling)))
}

/// One response to each prompt, drawn as Crystal does.
pub(crate) fn rollout<M: Model>(setting: &Setting, rows: usize) -> Result<Workload> {
    generate::<M>(setting, prompts(setting, rows), crystal(setting))
}

/// Samples of a prompt in the two workloads below.
const SAMPLES: usize = 8;

/// Four prompts continued by eight samples each, which share what their prompt has left: its encoder states, or its keys and values.
pub(crate) fn samples<M: Model>(setting: &Setting) -> Result<Workload> {
    let config = GenerationConfig { samples_per_prompt: SAMPLES, ..crystal(setting) };
    generate::<M>(setting, prompts(setting, 4), config)
}

/// The same with every prompt given eight times.
pub(crate) fn samples_repeated<M: Model>(setting: &Setting) -> Result<Workload> {
    let prompts = prompts(setting, 4).into_iter().flat_map(|prompt| vec![prompt; SAMPLES]).collect();
    generate::<M>(setting, prompts, crystal(setting))
}

fn prompts(setting: &Setting, rows: usize) -> Vec<Vec<TokenId>> {
    setting.ids(setting.rows(rows), setting.source, 1)
}

/// Crystal's way of drawing responses: temperature 0.7, then top-k 50.
pub(crate) fn crystal(setting: &Setting) -> GenerationConfig {
    config(setting.response, Strategy::Sample(ReinforcementConfig::default().ppo.rollout.sampling))
}

/// No end token before the last token.
fn config(new: usize, strategy: Strategy) -> GenerationConfig {
    GenerationConfig { strategy, max_new_tokens: new, min_new_tokens: new, ..Default::default() }
}

/// A seed for each row.
pub(crate) fn seeds(rows: usize) -> Vec<u64> {
    (0..rows as u64).map(|row| derive_seed(1, &[row])).collect()
}

fn generate<M: Model>(
    setting: &Setting,
    prompts: Vec<Vec<TokenId>>,
    config: GenerationConfig,
) -> Result<Workload> {
    let model: M = setting.build()?;
    let parameters = model.parameters().count();
    let seeds = seeds(prompts.len());
    let (rows, new) = (prompts.len() * config.samples_per_prompt, config.max_new_tokens);
    let forward = setting.clone();
    let least = setting.writing((prompts.len(), rows), prompts.first().map_or(0, Vec::len), new);
    let workload = Workload::new(setting, (rows, rows * new, parameters), move || {
        let written = forward.forward(|| Ok(model.generate(&prompts, &config, &seeds)?))?;
        anyhow::ensure!(written.iter().flatten().all(|row| row.ids.len() == new), "a row ended early");
        Ok(())
    });
    Ok(Workload { least, ..workload })
}
