//! Optimizers, schedules and gradient clipping.

use std::path::Path;

use ruminate_algorithms::Schedule;
use ruminate_torch::optim::{Adam, DecayOn, clip_grad_norm};
use serde_json::Value;
use tch::Kind;

use super::{
    Fixture, OPTIMIZER, adam_config, close, list, name, number, number_close, parse, schedule, text,
};
use crate::Outcome;
use crate::compare::{Check, Mismatch};

pub(super) fn run(folder: &Path) -> Check<Outcome> {
    let fixture = Fixture::open(folder)?;
    let mut outcome = Outcome::default();
    for case in list(&fixture.json["optimizers"])? {
        let name = name(case);
        match text(&case["type"])? {
            "adam" | "adamw" => outcome.case(name, adam_case(&fixture, case)),
            _ => outcome.pending(name),
        }
    }
    for case in list(&fixture.json["schedules"])? {
        let name = format!("schedule {}", name(case));
        match schedule(text(&case["type"])?, &case["args"]) {
            Ok(schedule) => outcome.case(name, schedule_case(case, schedule)),
            Err(_) => outcome.pending(name),
        }
    }
    for case in list(&fixture.json["gradient_clipping"])? {
        outcome.case(format!("clipping {}", name(case)), clipping_case(&fixture, case));
    }
    Ok(outcome)
}

fn adam_case(fixture: &Fixture<'_>, case: &Value) -> Check {
    let settings = &case["settings"];
    let config = adam_config(settings, &case["type"], DecayOn::All)?;
    let initial = fixture.json["parameters"].as_object().ok_or_else(|| Mismatch("no parameters".into()))?;
    let parameters = initial
        .iter()
        .map(|(name, key)| Ok((name.clone(), fixture.tensor(key)?.f_set_requires_grad(true)?)))
        .collect::<Result<Vec<_>, Mismatch>>()?;
    let shared = parameters.iter().map(|(n, t)| (n.clone(), t.shallow_clone())).collect();
    let mut adam = Adam::new(shared, config)?;
    for step in 0..parse::<i64>(&fixture.json["steps"])? {
        adam.zero_grad()?;
        for (name, parameter) in &parameters {
            let grad = fixture.tensor(&fixture.json["gradients_by_step"][name])?.f_get(step)?;
            // The gradient of a product with a constant is that constant.
            parameter.f_mul(&grad)?.f_sum(Kind::Float)?.f_backward()?;
        }
        adam.step(number(&settings["lr"])?)?;
        for (name, parameter) in &parameters {
            let expected = &fixture.tensor(&case["parameters_after_each_step"][name])?.f_get(step)?;
            close(&format!("{name} after step {step}"), parameter, expected, OPTIMIZER)?;
        }
    }
    Ok(())
}

fn schedule_case(case: &Value, schedule: Schedule) -> Check {
    let warmup = parse(&case["args"]["num_warmup_steps"])?;
    let total = case["args"]["num_training_steps"].as_u64().unwrap_or(u64::MAX);
    let lr = number(&case["lr"])?;
    for (step, expected) in list(&case["lr_used_by_step"])?.iter().enumerate() {
        let got = lr * schedule.factor(step as u64, warmup, total);
        number_close(&format!("lr of step {step}"), got, number(expected)?, 1e-9 * lr.max(1e-3))?;
    }
    Ok(())
}

fn clipping_case(fixture: &Fixture<'_>, case: &Value) -> Check {
    let mut parameters = vec![];
    for key in list(&case["before"])? {
        let grad = &fixture.tensor(key)?;
        let parameter = grad.f_zeros_like()?.f_set_requires_grad(true)?;
        parameter.f_mul(grad)?.f_sum(Kind::Float)?.f_backward()?;
        parameters.push(parameter);
    }
    let norm = clip_grad_norm(&parameters, number(&case["max_norm"])?)?.f_double_value(&[])?;
    let expected = number(&case["returned_norm"])?;
    number_close("norm", norm, expected, OPTIMIZER * expected)?;
    for (parameter, key) in parameters.iter().zip(list(&case["after"])?) {
        close("clipped gradient", &parameter.f_grad()?, &fixture.tensor(key)?, OPTIMIZER)?;
    }
    Ok(())
}
