//! Generation of a fixed number of tokens.

use anyhow::Result;
use ruminate_models::{Generate, GenerationConfig, Sampling, Strategy, derive_seed};

use crate::{Setting, Workload};

/// The most probable token at each step.
pub(crate) fn greedy(setting: &Setting, rows: usize) -> Result<Workload> {
    generate(setting, rows, Strategy::Greedy)
}

/// Temperature 0.7, then top-p 0.9 over the full vocabulary.
pub(crate) fn top_p(setting: &Setting, rows: usize) -> Result<Workload> {
    let sampling = Sampling { temperature: 0.7, top_k: None, top_p: Some(0.9) };
    generate(setting, rows, Strategy::Sample(sampling))
}

fn generate(setting: &Setting, rows: usize, strategy: Strategy) -> Result<Workload> {
    let model = setting.build()?;
    let parameters = model.parameters().count();
    let rows = setting.rows(rows);
    let prompts = setting.ids(rows, setting.source, 1);
    let seeds: Vec<u64> = (0..rows as u64).map(|row| derive_seed(1, &[row])).collect();
    // No end token before the last token.
    let new = setting.target;
    let config =
        GenerationConfig { strategy, max_new_tokens: new, min_new_tokens: new, ..Default::default() };
    let forward = setting.clone();
    Ok(Workload::new(setting, (rows, rows * new, parameters), move || {
        let written = forward.forward(|| Ok(model.generate(&prompts, &config, &seeds)?))?;
        anyhow::ensure!(written.iter().all(|samples| samples[0].ids.len() == new), "a row ended early");
        Ok(())
    }))
}
