//! Generation of a fixed number of tokens.

use anyhow::Result;
use ruminate_algorithms::ppo::RolloutConfig;
use ruminate_models::{Generate, GenerationConfig, Sampling, Strategy, derive_seed};

use crate::{Setting, Workload};

/// The most probable token at each step.
pub(crate) fn greedy(setting: &Setting, rows: usize) -> Result<Workload> {
    generate(setting, rows, config(setting.target, Strategy::Greedy))
}

/// Temperature 0.7, then top-p 0.9 over the full vocabulary.
pub(crate) fn top_p(setting: &Setting, rows: usize) -> Result<Workload> {
    let sampling = Sampling { temperature: 0.7, top_k: None, top_p: Some(0.9) };
    generate(setting, rows, config(setting.target, Strategy::Sample(sampling)))
}

/// One response to each prompt, drawn as Crystal does.
pub(crate) fn rollout(setting: &Setting, rows: usize) -> Result<Workload> {
    generate(setting, rows, crystal(setting))
}

/// Crystal's way of drawing responses: temperature 0.7, then top-k 50.
pub(crate) fn crystal(setting: &Setting) -> GenerationConfig {
    config(setting.response, Strategy::Sample(RolloutConfig::default().sampling))
}

/// No end token before the last token.
fn config(new: usize, strategy: Strategy) -> GenerationConfig {
    GenerationConfig { strategy, max_new_tokens: new, min_new_tokens: new, ..Default::default() }
}

/// A seed for each row.
pub(crate) fn seeds(rows: usize) -> Vec<u64> {
    (0..rows as u64).map(|row| derive_seed(1, &[row])).collect()
}

fn generate(setting: &Setting, rows: usize, config: GenerationConfig) -> Result<Workload> {
    let model = setting.build()?;
    let parameters = model.parameters().count();
    let rows = setting.rows(rows);
    let prompts = setting.ids(rows, setting.source, 1);
    let (seeds, new) = (seeds(rows), config.max_new_tokens);
    let forward = setting.clone();
    Ok(Workload::new(setting, (rows, rows * new, parameters), move || {
        let written = forward.forward(|| Ok(model.generate(&prompts, &config, &seeds)?))?;
        anyhow::ensure!(written.iter().all(|samples| samples[0].ids.len() == new), "a row ended early");
        Ok(())
    }))
}
