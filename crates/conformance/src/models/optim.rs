//! Optimizers, schedules and gradient clipping.

use std::path::Path;

use ruminate_algorithms::Schedule;
use ruminate_torch::optim::{DecayOn, OptimizerConfig, clip_grad_norm};
use serde_json::Value;
use tch::{Kind, Tensor};

use super::{
    Fixture, OPTIMIZER, close, list, name, number, number_close, optimizer, parameter_tolerance, parse,
    schedule, text,
};
use crate::Outcome;
use crate::compare::{Check, Mismatch};

pub(super) fn run(folder: &Path) -> Check<Outcome> {
    let fixture = Fixture::open(folder)?;
    let mut outcome = Outcome::default();
    for case in list(&fixture.json["optimizers"])? {
        let name = name(case);
        match optimizer(&case["settings"], &case["type"], DecayOn::All)? {
            Some(config) => {
                outcome.case(name.as_str(), optimizer_case(&fixture, case, config));
                outcome.case(format!("regression {name}"), regression_case(&fixture, case, config));
            }
            None => outcome.pending(name),
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

fn optimizer_case(fixture: &Fixture<'_>, case: &Value, config: OptimizerConfig) -> Check {
    let initial = fixture.json["parameters"].as_object().ok_or_else(|| Mismatch("no parameters".into()))?;
    let parameters = initial
        .iter()
        .map(|(name, key)| Ok((name.clone(), fixture.tensor(key)?.f_set_requires_grad(true)?)))
        .collect::<Result<Vec<_>, Mismatch>>()?;
    let shared = parameters.iter().map(|(n, t)| (n.clone(), t.shallow_clone())).collect();
    let mut optimizer = config.build(shared)?;
    for step in 0..parse::<i64>(&fixture.json["steps"])? {
        optimizer.zero_grad()?;
        for (name, parameter) in &parameters {
            let grad = fixture.tensor(&fixture.json["gradients_by_step"][name])?.f_get(step)?;
            // The gradient of a product with a constant is that constant.
            parameter.f_mul(&grad)?.f_sum(Kind::Float)?.f_backward()?;
        }
        optimizer.step(given_lr(case))?;
        for (name, parameter) in &parameters {
            let expected = &fixture.tensor(&case["parameters_after_each_step"][name])?.f_get(step)?;
            close(&format!("{name} after step {step}"), parameter, expected, parameter_tolerance(&config))?;
        }
    }
    Ok(())
}

/// The rate, which is null where the optimizer has its own.
fn given_lr(case: &Value) -> f64 {
    case["settings"]["lr"].as_f64().unwrap_or(f64::NAN)
}

/// The same optimizer on a least-squares problem with its own gradients.
fn regression_case(fixture: &Fixture<'_>, case: &Value, config: OptimizerConfig) -> Check {
    let regression = &fixture.json["regression"];
    let expected = list(&regression["runs"])?.iter().find(|run| run["name"] == case["name"]);
    let expected = expected.ok_or_else(|| Mismatch("no such run".into()))?;
    let given = |name: &str| fixture.tensor(&Value::String(format!("regression.{name}")));
    let (x, y) = (&given("X")?, &given("Y")?);
    let [w, b] = [given("W0")?, given("b0")?].map(|t| t.set_requires_grad(true));
    let mut optimizer =
        config.build(vec![("W".into(), w.shallow_clone()), ("b".into(), b.shallow_clone())])?;
    for (step, before) in list(&expected["loss_before_each_step"])?.iter().enumerate() {
        optimizer.zero_grad()?;
        let loss: Tensor = x.f_linear(&w, Some(&b))?.f_sub(y)?.f_square()?.f_mean(Kind::Float)?;
        let before = number(before)?;
        number_close(&format!("loss before step {step}"), loss.f_double_value(&[])?, before, 1e-3 * before)?;
        loss.f_backward()?;
        optimizer.step(given_lr(case))?;
    }
    for (name, parameter) in [("W", &w), ("b", &b)] {
        close(name, parameter, &fixture.tensor(&expected[name])?, parameter_tolerance(&config))?;
    }
    Ok(())
}

fn schedule_case(case: &Value, schedule: Schedule) -> Check {
    let warmup = parse(&case["args"]["num_warmup_steps"])?;
    let total = case["args"]["num_training_steps"].as_u64().unwrap_or(u64::MAX);
    let lr = number(&case["lr"])?;
    for (step, expected) in list(&case["lr_used_by_step"])?.iter().enumerate() {
        let got = schedule.lr(lr, step as u64, warmup, total);
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
