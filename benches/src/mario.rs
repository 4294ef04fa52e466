//! MaRio's rewards, one after another, and a step of Quark with control tokens.

use anyhow::{Context, Result};
use ruminate_algorithms::quark::{Predictions, TokenTerms, labels, quark_loss};
use ruminate_models::{Example, Labels, Policy, ScoreChoices, T5, T5Config, TokenId, last_states};
use ruminate_rewards::mario::ngram_diversity;
use ruminate_torch::optim::{Adam, Optimizer, clip_grad_norm};
use tch::Tensor;

use crate::models::Shape;
use crate::training::{ADAM, LR};
use crate::{Setting, Workload};

/// Responses that are judged at once.
const RESPONSES: usize = 20;
/// Options of a question, and tokens of each.
const OPTIONS: (usize, usize) = (4, 2);
/// Control tokens before a response.
const CODE: usize = 4;

/// Consistency: two models choose among four labels, one with a rationale in its prompt.
pub(crate) fn consistency(setting: &Setting) -> Result<Workload> {
    let models: [T5; 2] = [setting.build()?, setting.build()?];
    let rows = setting.rows(RESPONSES);
    let question = setting.source.div_ceil(2);
    let prompts = [setting.ids(rows, question, 1), setting.ids(rows, question + setting.target, 2)];
    let options = vec![setting.ids(OPTIONS.0, OPTIONS.1, 3); rows];
    // As criterion counts elements: samples.
    let sizes = (rows, rows, models[0].parameters().count());
    let forward = setting.clone();
    Ok(Workload::new(setting, sizes, move || {
        for (model, prompts) in models.iter().zip(&prompts) {
            let _ = tch::no_grad(|| forward.forward(|| Ok(model.choice_log_probs(prompts, &options)?)))?;
        }
        Ok(())
    }))
}

/// Plausibility: an encoder reads rationales.
pub(crate) fn plausibility(setting: &Setting) -> Result<Workload> {
    let Shape::T5(config) = setting.model.clone() else { anyhow::bail!("only a T5 has an encoder") };
    let config = T5Config { is_encoder_decoder: false, ..config };
    let encoder = T5::new(config, setting.precision.kind(), setting.device, 1)?;
    let rows = setting.rows(RESPONSES);
    let rationales = setting.ids(rows, setting.target, 1);
    let sizes = (rows, rows, encoder.parameters().count());
    let forward = setting.clone();
    Ok(Workload::new(setting, sizes, move || {
        let _ = tch::no_grad(|| forward.forward(|| Ok(last_states(&encoder, &rationales)?)))?;
        Ok(())
    }))
}

/// Diversity: words are counted.
pub(crate) fn diversity(setting: &Setting) -> Result<Workload> {
    let rows = setting.rows(RESPONSES);
    let text =
        |ids: &Vec<TokenId>| ids.iter().map(|id| format!("w{}", id % 40)).collect::<Vec<_>>().join(" ");
    let texts: Vec<String> = setting.ids(rows, setting.target, 1).iter().map(text).collect();
    Ok(Workload::new(setting, (rows, rows, 1), move || {
        std::hint::black_box(texts.iter().map(|text| ngram_diversity(text, 2..=4)).sum::<f64>());
        Ok(())
    }))
}

/// A step of Quark: samples behind their codes, the divergence from a frozen reference, backward, clipping, Adam.
pub(crate) fn quark(setting: &Setting) -> Result<Workload> {
    let (policy, reference): (T5, T5) = (setting.build()?, setting.build()?);
    let mut adam = Adam::new(policy.parameters().named(), ADAM)?;
    let rows = setting.rows(8);
    let bare = setting.examples(rows);
    let codes = setting.ids(rows, CODE, 3);
    let behind = |(code, example): (&Vec<TokenId>, &Example)| Example {
        prompt: example.prompt.clone(),
        target: labels(code, &example.target),
    };
    let coded: Vec<Example> = codes.iter().zip(&bare).map(behind).collect();
    let targets: Vec<Vec<TokenId>> = bare.iter().map(|example| example.target.clone()).collect();
    let sizes = (rows, rows * (setting.source + setting.target), policy.parameters().count());
    let (forward, device) = (setting.clone(), setting.device);
    Ok(Workload::new(setting, sizes, move || {
        adam.zero_grad()?;
        let labels = Labels::new(&targets, device)?;
        let loss = || -> Result<Tensor> {
            let of = |model: &T5, examples: &[Example], code| predictions(model, examples, &labels, code);
            let policy = of(&policy, &coded, CODE)?;
            let reference = tch::no_grad(|| of(&reference, &bare, 0))?;
            let vocab = forward.model.vocab_size();
            let terms = TokenTerms::chunked(&policy, Some(&reference), &labels.targets, vocab)?;
            let loss = quark_loss(&terms, 0.1, 0.0)?;
            Ok(loss.sum.f_div_scalar(loss.count as f64)?)
        };
        forward.forward(loss)?.f_backward()?;
        let _ = clip_grad_norm(adam.parameters(), 1.0)?;
        adam.step(LR)?;
        Ok(())
    }))
}

/// States at the positions of the responses, behind codes of `code` tokens.
fn predictions(model: &T5, examples: &[Example], labels: &Labels, code: usize) -> Result<Predictions> {
    let states = model.states(examples)?.context("a T5 has states")?;
    let time = labels.ids.size()[1];
    let states = states.f_narrow(1, code as i64, time)?.f_flatten(0, 1)?;
    Ok(Predictions::of(model, states.f_index_select(0, &labels.positions)?)?)
}
