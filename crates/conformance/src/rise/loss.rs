//! Kind `rwr_loss`: the loss from given logits, its gradient, and the schedule of the learning rate.

use std::path::Path;

use ruminate_algorithms::Schedule;
use ruminate_algorithms::dpo::{shift_for_decoder, token_logps};
use ruminate_algorithms::rwr::{rwr_loss as loss, warmup_steps};
use ruminate_models::IGNORED;
use serde::Deserialize;
use tch::{Kind, Tensor};

use crate::Outcome;
use crate::compare::{Check, Mismatch, Tolerance, equal};
use crate::file::{GoldenError, GoldenFile};
use crate::references::f64s;

#[derive(Deserialize)]
struct Case {
    logits: Vec<Vec<Vec<f64>>>,
    labels: Vec<Vec<i64>>,
    weights: Vec<f64>,
    sample_losses: Vec<f64>,
    loss: f64,
    grad_logits: Vec<Vec<Vec<f64>>>,
}

pub(super) fn rwr_loss(path: &Path) -> Result<Outcome, GoldenError> {
    #[derive(Deserialize)]
    struct Rates {
        total_steps: u64,
        warmup_ratio: f64,
        warmup_steps: u64,
        base_lr: f64,
        lr: Vec<f64>,
    }
    let file = GoldenFile::read(path)?;
    // As the file says in words.
    let tolerance = file.tolerance_or(Tolerance { absolute: 1e-6, relative: 1e-5 })?;
    let mut cases = file.cases("cases", |case: Case| run(&case, tolerance))?;
    cases.extend(file.cases("schedule", |case: Rates| {
        let warmup = warmup_steps(case.total_steps, case.warmup_ratio);
        equal("warmup_steps", warmup, case.warmup_steps)?;
        let rate = |step| Schedule::Cosine { cycles: 0.5 }.lr(case.base_lr, step, warmup, case.total_steps);
        let got: Vec<f64> = (0..case.total_steps).map(rate).collect();
        Tolerance { absolute: 1e-15, relative: 1e-9 }.close("lr", &got, &case.lr)
    })?);
    Ok(Outcome { cases, ..Outcome::default() })
}

fn run(case: &Case, tolerance: Tolerance) -> Check {
    let (rows, time) = (case.labels.len(), case.labels.first().map_or(0, Vec::len));
    let vocab = case.logits.first().and_then(|row| row.first()).map_or(0, Vec::len);
    if case.logits.concat().concat().len() != rows * time * vocab || case.labels.concat().len() != rows * time
    {
        return Err(Mismatch("logits: are no [batch, time, vocab] of the labels' shape".into()));
    }
    let logits = Tensor::f_from_slice(&case.logits.concat().concat())?;
    let logits = logits.f_view_([rows, time, vocab].map(|n| n as i64))?.f_to_kind(Kind::Float)?;
    let logits = logits.f_set_requires_grad(true)?;
    let labels = Tensor::f_from_slice(&case.labels.concat())?.f_view_([rows, time].map(|n| n as i64))?;
    let (shifted, labels) = shift_for_decoder(&logits, &labels)?;
    let mask = labels.f_ne(IGNORED)?;
    let weights = Tensor::f_from_slice(&case.weights)?.f_to_kind(Kind::Float)?;
    let got = loss(&token_logps(&shifted, &labels)?, &mask, &weights)?;
    tolerance.close("sample_losses", &f64s(&got.nll.f_detach()?)?, &case.sample_losses)?;
    let mean = got.loss.sum.f_div_scalar(got.loss.count as f64)?;
    tolerance.close("loss", &[mean.f_double_value(&[])?], &[case.loss])?;
    mean.f_backward()?;
    tolerance.close("grad_logits", &f64s(&logits.f_grad()?)?, &case.grad_logits.concat().concat())
}
