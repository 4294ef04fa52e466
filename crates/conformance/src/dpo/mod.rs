//! Preference losses: sequence log-probabilities, every loss with its gradients, whole steps.

mod steps;

use crate::compare::{Check, Mismatch, Tolerance};
use crate::file::{GoldenError, GoldenFile};
use crate::references::f64s;
use crate::{KindFn, Outcome};
use ruminate_algorithms::dpo::{
    Divergence, DpoConfig, DpoState, LengthNorm, LossOutput, PairLogps, PreferenceLoss, WeightedLoss,
    log_odds, preference_loss, shift_for_decoder, token_logps,
};
use ruminate_models::IGNORED;
use serde::Deserialize;
use serde_json::Value;
use std::collections::BTreeMap;
use std::path::Path;
use tch::{Kind, Tensor};

/// The kinds that are covered.
pub const KINDS: &[(&str, KindFn)] = &[
    ("sequence_logps", sequence_logps),
    ("losses_from_logps", losses_from_logps),
    ("reference_free_losses", reference_free_losses),
    ("encoder_decoder_step", steps::encoder_decoder_step),
    ("decoder_only_step", steps::decoder_only_step),
];

/// What numbers made in double precision must agree to, where the file does not say.
const DOUBLE: Tolerance = Tolerance { absolute: 1e-12, relative: 1e-9 };
/// The same for numbers that went through single precision.
const SINGLE: Tolerance = Tolerance { absolute: 1e-7, relative: 1e-5 };

fn doubles(values: &[f64]) -> Tensor {
    Tensor::from_slice(values)
}

/// `[rows, columns]` of equally long rows.
fn ids(rows: &[Vec<i64>]) -> Check<Tensor> {
    let columns = rows.first().map_or(0, Vec::len);
    if rows.iter().any(|row| row.len() != columns) {
        return Err(Mismatch("rows have different lengths".to_owned()));
    }
    Ok(Tensor::f_from_slice(&rows.concat())?.f_view_([rows.len() as i64, columns as i64])?)
}

/// `[rows, time, vocab]` in double precision.
fn logits(rows: &[Vec<Vec<f64>>]) -> Check<Tensor> {
    let (time, vocab) =
        (rows.first().map_or(0, Vec::len), rows.first().and_then(|r| r.first()).map_or(0, Vec::len));
    if rows.iter().any(|row| row.len() != time || row.iter().any(|states| states.len() != vocab)) {
        return Err(Mismatch("logits: rows have different lengths".to_owned()));
    }
    let flat = rows.concat().concat();
    Ok(Tensor::f_from_slice(&flat)?.f_view_([rows.len() as i64, time as i64, vocab as i64])?)
}

/// Parameters as the files name them.
#[derive(Deserialize, Default)]
#[serde(deny_unknown_fields, default)]
struct Params {
    loss_type: Option<String>,
    beta: Option<f64>,
    label_smoothing: f64,
    f_divergence_type: Option<String>,
    f_divergence_params: BTreeMap<String, f64>,
    f_alpha_divergence_coef: Option<f64>,
    discopop_tau: Option<f64>,
    reference_free: bool,
    simpo_gamma: f64,
    alpha: f64,
    rpo_alpha: f64,
    ld_alpha: Option<f64>,
    use_weighting: bool,
}

impl Params {
    fn loss(&self, name: &str, norm: LengthNorm, shift: bool) -> Check<PreferenceLoss> {
        let label_smoothing = self.label_smoothing;
        Ok(match name {
            "sigmoid" => PreferenceLoss::Sigmoid { label_smoothing },
            "robust" => PreferenceLoss::Robust { label_smoothing },
            "hinge" => PreferenceLoss::Hinge,
            "ipo" => PreferenceLoss::Ipo { norm },
            "exo_pair" => PreferenceLoss::ExoPair { epsilon: label_smoothing },
            "nca_pair" => PreferenceLoss::NcaPair,
            "bco_pair" => PreferenceLoss::BcoPair { shift },
            "sppo_hard" => PreferenceLoss::SppoHard,
            "aot" => PreferenceLoss::Aot { label_smoothing },
            "aot_unpaired" => PreferenceLoss::AotUnpaired { label_smoothing },
            "apo_zero" => PreferenceLoss::ApoZero,
            "apo_down" => PreferenceLoss::ApoDown,
            "discopop" => PreferenceLoss::DiscoPop { tau: self.discopop_tau.unwrap_or(0.05) },
            "sigmoid_norm" => PreferenceLoss::SigmoidNorm,
            "sft" => PreferenceLoss::Sft,
            "simpo" => PreferenceLoss::Simpo { gamma: self.simpo_gamma, label_smoothing, alpha: self.alpha },
            other => return Err(Mismatch(format!("loss_type: there is no loss `{other}`"))),
        })
    }

    fn divergence(&self) -> Check<Divergence> {
        Ok(match self.f_divergence_type.as_deref() {
            None | Some("reverse_kl") => Divergence::ReverseKl,
            Some("forward_kl") => Divergence::ForwardKl,
            Some("js_divergence") => Divergence::Js,
            Some("alpha_divergence") => match self.f_alpha_divergence_coef {
                Some(alpha) => Divergence::Alpha { alpha },
                None => {
                    Divergence::OldAlpha { a: self.f_divergence_params.get("alpha").copied().unwrap_or(1.0) }
                }
            },
            Some(other) => return Err(Mismatch(format!("f_divergence_type: there is no `{other}`"))),
        })
    }

    fn config(&self, terms: Vec<WeightedLoss>) -> Check<DpoConfig> {
        let config = DpoConfig {
            beta: self.beta.unwrap_or(0.1),
            terms,
            divergence: self.divergence()?,
            rpo_alpha: self.rpo_alpha,
            ld_alpha: self.ld_alpha.unwrap_or(1.0),
            wpo: self.use_weighting,
            ..DpoConfig::default()
        };
        config.validate()?;
        Ok(config)
    }

    /// One loss, that of `loss_type`.
    fn single(&self, norm: LengthNorm, shift: bool) -> Check<DpoConfig> {
        let name =
            self.loss_type.as_deref().ok_or_else(|| Mismatch("params.loss_type: missing".to_owned()))?;
        self.config(vec![WeightedLoss { loss: self.loss(name, norm, shift)?, weight: 1.0 }])
    }
}

/// Given log-probabilities, of completions of one token each.
fn given(chosen: &[f64], rejected: &[f64]) -> Check<PairLogps> {
    let ones = || doubles(&vec![1.0; chosen.len()]);
    Ok(PairLogps::new(doubles(chosen), doubles(rejected), ones(), ones())?)
}

/// Given log-probabilities that gradients are asked for.
fn leaves(chosen: &[f64], rejected: &[f64]) -> Check<PairLogps> {
    let mut logps = given(chosen, rejected)?;
    logps.chosen = logps.chosen.set_requires_grad(true);
    logps.rejected = logps.rejected.set_requires_grad(true);
    Ok(logps)
}

/// What a loss gives.
#[derive(Deserialize)]
struct Expected {
    losses: Vec<f64>,
    loss: f64,
    rewards_chosen: Vec<f64>,
    rewards_rejected: Vec<f64>,
    grad_policy_chosen: Vec<f64>,
    grad_policy_rejected: Vec<f64>,
}

fn check_loss(
    tolerance: &Tolerance,
    policy: &PairLogps,
    reference: Option<&PairLogps>,
    config: &DpoConfig,
    want: &Expected,
    rewards: bool,
) -> Check<LossOutput> {
    let output = preference_loss(policy, reference, config, &mut DpoState::default())?;
    tolerance.close("losses", &f64s(&output.losses)?, &want.losses)?;
    let loss = output.losses.f_mean(None::<Kind>)?;
    tolerance.close("loss", &[loss.f_double_value(&[])?], &[want.loss])?;
    if rewards {
        tolerance.close("rewards_chosen", &f64s(&output.chosen_rewards)?, &want.rewards_chosen)?;
        tolerance.close("rewards_rejected", &f64s(&output.rejected_rewards)?, &want.rewards_rejected)?;
    }
    loss.f_backward()?;
    tolerance.close("grad_policy_chosen", &f64s(&policy.chosen.f_grad()?)?, &want.grad_policy_chosen)?;
    tolerance.close(
        "grad_policy_rejected",
        &f64s(&policy.rejected.f_grad()?)?,
        &want.grad_policy_rejected,
    )?;
    Ok(output)
}

fn sequence_logps(path: &Path) -> Result<Outcome, GoldenError> {
    #[derive(Deserialize)]
    struct Case {
        is_encoder_decoder: bool,
        logits: Vec<Vec<Vec<f64>>>,
        labels: Vec<Vec<i64>>,
        sum_logps: Vec<f64>,
        token_counts: Vec<f64>,
        mean_logps: Vec<Option<f64>>,
    }
    let file = GoldenFile::read(path)?;
    let tolerance = file.tolerance_or(DOUBLE)?;
    let cases = file.cases("cases", |case: Case| {
        let (mut logits, mut labels) = (logits(&case.logits)?, ids(&case.labels)?);
        if !case.is_encoder_decoder {
            (logits, labels) = shift_for_decoder(&logits, &labels)?;
        }
        let log_probs = token_logps(&logits, &labels)?;
        let mask = labels.f_ne(IGNORED)?.f_to_kind(Kind::Double)?;
        let rows = PairLogps::from_tokens([&log_probs, &log_probs], [&mask, &mask], 1.0)?;
        tolerance.close("sum_logps", &f64s(&rows.chosen)?, &case.sum_logps)?;
        tolerance.close("token_counts", &f64s(&rows.chosen_len)?, &case.token_counts)?;
        // The mean of nothing is 0 here and undefined there.
        let want: Vec<f64> = case.mean_logps.iter().map(|mean| mean.unwrap_or(0.0)).collect();
        tolerance.close("mean_logps", &f64s(&rows.means()?[0])?, &want)
    })?;
    Ok(Outcome { cases, ..Outcome::default() })
}

fn losses_from_logps(path: &Path) -> Result<Outcome, GoldenError> {
    #[derive(Deserialize)]
    struct Group {
        policy_chosen_logps: Vec<f64>,
        policy_rejected_logps: Vec<f64>,
        reference_chosen_logps: Vec<f64>,
        reference_rejected_logps: Vec<f64>,
        variants: Vec<Value>,
    }
    #[derive(Deserialize)]
    struct Variant {
        params: Params,
        delta_used: Option<f64>,
        #[serde(flatten)]
        expected: Expected,
        metrics: BTreeMap<String, f64>,
    }
    let file = GoldenFile::read(path)?;
    let double = file.tolerance_or(DOUBLE)?;
    let mut outcome = Outcome::default();
    for (g, group) in file.field::<Vec<Group>>("groups")?.into_iter().enumerate() {
        for (v, variant) in group.variants.iter().enumerate() {
            let name = variant.get("name").and_then(Value::as_str).unwrap_or_default();
            let check = || -> Check {
                let case = Variant::deserialize(variant)?;
                let policy = leaves(&group.policy_chosen_logps, &group.policy_rejected_logps)?;
                let reference = given(&group.reference_chosen_logps, &group.reference_rejected_logps)?;
                let free = case.params.reference_free;
                let config = case.params.single(LengthNorm::Sum, case.delta_used.is_some())?;
                // The running mean went through single precision.
                let tolerance = if case.delta_used.is_some() { SINGLE } else { double };
                let reference = (!free).then_some(&reference);
                // The library behind the file subtracts a reference from the rewards even without one.
                let output = check_loss(&tolerance, &policy, reference, &config, &case.expected, !free)?;
                steps::check_metrics(&tolerance, &policy, reference, &output, &case.metrics, free)
            };
            outcome.case(format!("groups[{g}].variants[{v}] {name}"), check());
        }
    }
    Ok(outcome)
}

fn reference_free_losses(path: &Path) -> Result<Outcome, GoldenError> {
    #[derive(Deserialize)]
    struct Group {
        sum_logps: Logps,
        mean_logps: Logps,
        cpo_on_sums: BTreeMap<String, Value>,
        on_means: BTreeMap<String, Value>,
        orpo_on_means: Vec<Value>,
    }
    #[derive(Deserialize)]
    struct Logps {
        chosen: Vec<f64>,
        rejected: Vec<f64>,
    }
    #[derive(Deserialize)]
    struct Variant {
        params: Params,
        #[serde(flatten)]
        expected: Expected,
    }
    #[derive(Deserialize)]
    struct Orpo {
        params: Params,
        odds_term: Vec<f64>,
        preference_loss: f64,
        mean_log_sigmoid_log_odds: f64,
        mean_log_odds: f64,
        rewards_chosen: Vec<f64>,
        rewards_rejected: Vec<f64>,
    }
    let file = GoldenFile::read(path)?;
    let double = file.tolerance_or(DOUBLE)?;
    let mut outcome = Outcome::default();
    for (g, group) in file.field::<Vec<Group>>("groups")?.into_iter().enumerate() {
        let sums = group.cpo_on_sums.iter().map(|case| (&group.sum_logps, "cpo_on_sums", case));
        let means = group.on_means.iter().map(|case| (&group.mean_logps, "on_means", case));
        for (logps, family, (name, variant)) in sums.chain(means) {
            let check = || -> Check {
                let case = Variant::deserialize(variant)?;
                let policy = leaves(&logps.chosen, &logps.rejected)?;
                let mut config = case.params.single(LengthNorm::Token, false)?;
                if family == "cpo_on_sums" {
                    let (label_smoothing, nll_weight) = (case.params.label_smoothing, 1.0);
                    let hinge = match config.terms[0].loss {
                        PreferenceLoss::Hinge => true,
                        PreferenceLoss::Sigmoid { .. } => false,
                        other => return Err(Mismatch(format!("there is no CPO of the form {other:?}"))),
                    };
                    config.terms[0].loss = PreferenceLoss::Cpo { hinge, label_smoothing, nll_weight };
                }
                check_loss(&double, &policy, None, &config, &case.expected, true).map(drop)
            };
            outcome.case(format!("groups[{g}].{family}.{name}"), check());
        }
        for (i, value) in group.orpo_on_means.iter().enumerate() {
            let check = || -> Check {
                let case = Orpo::deserialize(value)?;
                let policy = given(&group.mean_logps.chosen, &group.mean_logps.rejected)?;
                let config =
                    case.params.config(vec![WeightedLoss { loss: PreferenceLoss::Orpo, weight: 1.0 }])?;
                let output = preference_loss(&policy, None, &config, &mut DpoState::default())?;
                let term: Vec<f64> = f64s(&output.losses)?.iter().map(|loss| -loss).collect();
                SINGLE.close("odds_term", &term, &case.odds_term)?;
                let mean =
                    |tensor: &Tensor| -> Check<f64> { Ok(tensor.f_mean(None::<Kind>)?.f_double_value(&[])?) };
                SINGLE.close("preference_loss", &[mean(&output.losses)?], &[case.preference_loss])?;
                let odds = log_odds(&policy)?;
                SINGLE.close("mean_log_odds", &[mean(&odds)?], &[case.mean_log_odds])?;
                let certain = mean(&odds.f_log_sigmoid()?)?;
                SINGLE.close("mean_log_sigmoid_log_odds", &[certain], &[case.mean_log_sigmoid_log_odds])?;
                SINGLE.close("rewards_chosen", &f64s(&output.chosen_rewards)?, &case.rewards_chosen)?;
                SINGLE.close("rewards_rejected", &f64s(&output.rejected_rewards)?, &case.rewards_rejected)
            };
            outcome.case(format!("groups[{g}].orpo_on_means[{i}]"), check());
        }
    }
    Ok(outcome)
}
