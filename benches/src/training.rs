//! Training: whole steps, and their parts.

use anyhow::{Context, Result};
use ruminate_models::{Example, Labels, T5};
use ruminate_torch::optim::{Adam, AdamConfig, Optimizer, clip_grad_norm};
use tch::{Kind, Tensor};

use crate::models::{Model, Shape};
use crate::{Setting, Workload};

pub(crate) const LR: f64 = 1e-5;
pub(crate) const ADAM: AdamConfig = AdamConfig {
    beta1: 0.9,
    beta2: 0.999,
    eps: 1e-8,
    weight_decay: 0.01,
    decay: ruminate_torch::optim::Decay::Decoupled,
    decay_on: ruminate_torch::optim::DecayOn::All,
};

/// One step of supervised fine-tuning with the model's dropout.
pub(crate) fn sft<M: Model>(setting: &Setting) -> Result<Workload> {
    learn::<M>(setting, setting.lessons(setting.rows(8)))
}

/// The same on rows of different lengths.
pub(crate) fn sft_mixed<M: Model>(setting: &Setting) -> Result<Workload> {
    learn::<M>(setting, setting.mixed_lessons(setting.rows(8)))
}

fn learn<M: Model>(setting: &Setting, examples: Vec<Example>) -> Result<Workload> {
    let tokens = examples.iter().map(|e| e.prompt.len() + e.target.len()).sum();
    let flop = 3.0 * setting.lesson_pass(&examples);
    let workload = step(setting, tokens, move |model: &M| {
        let loss = model.cross_entropy(&examples)?;
        Ok(loss.sum.f_div_scalar(loss.count as f64)?)
    })?;
    Ok(workload.of_products(flop))
}

/// The same without dropout.
pub(crate) fn sft_no_dropout(setting: &Setting) -> Result<Workload> {
    let mut setting = setting.clone();
    if let Shape::T5(config) = &mut setting.model {
        config.dropout_rate = 0.0;
    }
    sft::<T5>(&setting)
}

/// The same step with all logits in memory: what it would cost without chunks.
pub(crate) fn sft_full_logits<M: Model>(setting: &Setting) -> Result<Workload> {
    let examples = setting.lessons(setting.rows(8));
    let targets: Vec<_> = examples.iter().map(|e| e.target.as_slice()).collect();
    let targets = Labels::new(&targets, setting.device)?.targets;
    let tokens = examples.len() * (setting.source + setting.target);
    step(setting, tokens, move |model: &M| {
        let states = model.states(&examples)?.context("the model has states")?.f_flatten(0, 1)?;
        let (output, scale) = model.output_projection().context("the model has an output matrix")?;
        let states = states.f_mul_scalar(scale)?;
        mean_loss(&ruminate_torch::linear(&states, output)?.f_to_kind(Kind::Float)?, &targets)
    })
}

/// Forward, backward, clipping, AdamW.
fn step<M: Model>(
    setting: &Setting,
    tokens: usize,
    loss: impl Fn(&M) -> Result<Tensor> + 'static,
) -> Result<Workload> {
    let mut model: M = setting.build()?;
    model.set_training(true);
    let parameters = model.parameters().count();
    let mut adam = Adam::new(model.parameters().named(), ADAM)?;
    let rows = setting.rows(8);
    let forward = setting.clone();
    Ok(Workload::new(setting, (rows, tokens, parameters), move || {
        adam.zero_grad()?;
        forward.forward(|| loss(&model))?.f_backward()?;
        let _ = clip_grad_norm(adam.parameters(), 1.0)?;
        Ok(adam.step(LR)?)
    }))
}

/// The optimizer step alone; its tokens are parameters.
pub(crate) fn adam<M: Model>(setting: &Setting) -> Result<Workload> {
    let model: M = setting.build()?;
    let parameters = model.parameters().count();
    let mut adam = Adam::new(model.parameters().named(), ADAM)?;
    // The sum of all parameters: a gradient of 1 everywhere.
    let sums: Vec<Tensor> = adam.parameters().iter().map(|p| p.sum(Kind::Float)).collect();
    Tensor::f_stack(&sums, 0)?.f_sum(Kind::Float)?.f_backward()?;
    Ok(Workload::new(setting, (1, parameters as usize, parameters), move || Ok(adam.step(LR)?)))
}

/// Forward and backward of the loss alone, from the last states and the output matrix.
pub(crate) fn loss<M: Model>(setting: &Setting) -> Result<Workload> {
    head::<M>(setting, |states, weight, targets| {
        let sum = ruminate_torch::cross_entropy(states, weight, targets, 1.0)?;
        Ok(sum.f_div_scalar(targets.numel() as f64)?)
    })
}

/// The same with all logits in memory.
pub(crate) fn loss_full_logits<M: Model>(setting: &Setting) -> Result<Workload> {
    head::<M>(setting, |states, weight, targets| {
        let logits = states.f_linear(weight, None::<&Tensor>)?.f_to_kind(Kind::Float)?;
        mean_loss(&logits, targets)
    })
}

fn head<M: Model>(
    setting: &Setting,
    loss: impl Fn(&Tensor, &Tensor, &Tensor) -> Result<Tensor> + 'static,
) -> Result<Workload> {
    let rows = setting.rows(8);
    let labels = Labels::new(&setting.ids(rows, setting.target, 2), setting.device)?;
    let options = (setting.precision.kind(), setting.device);
    let count = (rows * setting.target) as i64;
    let (vocab, width) = (setting.model.vocab_size(), setting.model.hidden_size());
    let states = Tensor::f_randn([count, width], options)?.set_requires_grad(true);
    let weight = Tensor::f_randn([vocab, width], options)?;
    let weight = weight.f_mul_scalar(0.05)?.set_requires_grad(true);
    let parameters = weight.numel() as u64;
    let forward = setting.clone();
    Ok(Workload::new(setting, (rows, count as usize, parameters), move || {
        let loss = forward.forward(|| loss(&states, &weight, &labels.targets))?;
        drop(Tensor::f_run_backward(&[loss], &[&states, &weight], false, false)?);
        Ok(())
    }))
}

fn mean_loss(logits: &Tensor, targets: &Tensor) -> Result<Tensor> {
    Ok(logits.f_cross_entropy_loss::<&Tensor>(targets, None, tch::Reduction::Mean, -100, 0.0)?)
}
