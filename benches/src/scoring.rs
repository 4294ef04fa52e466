//! Log-probabilities of given tokens.

use anyhow::Result;
use ruminate_models::{ScoreOptions, TokenId};
use tch::Kind;

use crate::models::Model;
use crate::{Setting, Workload};

/// Log-probability of every target token, and their sum per row.
pub(crate) fn score<M: Model>(setting: &Setting) -> Result<Workload> {
    let model: M = setting.build()?;
    let parameters = model.parameters().count();
    let rows = setting.rows(32);
    let examples = setting.examples(rows);
    let tokens = rows * (setting.source + setting.target);
    let (forward, flop) = (setting.clone(), setting.pass(rows, setting.source, setting.target));
    let workload = Workload::new(setting, (rows, tokens, parameters), move || {
        tch::no_grad(|| {
            let scores = forward.forward(|| Ok(model.score(&examples, ScoreOptions::default())?))?;
            let _ = scores.log_probs.f_sum_dim_intlist(1, false, Kind::Float)?;
            Ok(())
        })
    });
    Ok(workload.of_products(flop))
}

/// Eight questions with four answer choices of `length` tokens each: log-probability of every choice.
pub(crate) fn choices<M: Model>(setting: &Setting, length: usize) -> Result<Workload> {
    const CHOICES: usize = 4;
    let model: M = setting.build()?;
    let parameters = model.parameters().count();
    let questions = setting.rows(8);
    let prompts = setting.ids(questions, setting.source, 1);
    let labels = setting.ids(questions * CHOICES, length, 2);
    let choices: Vec<Vec<Vec<TokenId>>> = labels.chunks(CHOICES).map(<[_]>::to_vec).collect();
    let tokens = questions * CHOICES * (setting.source + length);
    let (forward, flop) = (setting.clone(), setting.shared_pass(questions, CHOICES, length));
    let workload = Workload::new(setting, (questions, tokens, parameters), move || {
        tch::no_grad(|| {
            let scores = forward.forward(|| Ok(model.choice_log_probs(&prompts, &choices)?))?;
            let _ = scores.f_sum_dim_intlist(2, false, Kind::Float)?;
            Ok(())
        })
    });
    Ok(workload.of_products(flop))
}
