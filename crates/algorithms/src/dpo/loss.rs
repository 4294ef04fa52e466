//! The losses as pure functions of log-probabilities, with no model in sight.

use tch::{Kind, Tensor};

use super::config::{Divergence, DpoConfig, LengthNorm, PreferenceLoss};
use super::logps::{PairLogps, per_token};
use crate::{Error, Result};

/// Exponents beyond this would not be finite in `f32`.
const LARGEST_EXPONENT: f64 = 80.0;

/// What survives from batch to batch.
#[derive(Debug, Clone, Copy, Default, PartialEq, serde::Serialize, serde::Deserialize)]
pub struct DpoState {
    /// Sum of the rewards seen so far, for [`PreferenceLoss::BcoPair`] with its shift.
    pub reward_sum: f64,
    /// How many they were.
    pub rewards: u64,
}

impl DpoState {
    /// Adds sums of rewards, and their number.
    pub(super) fn add(&mut self, [chosen, rejected, count]: [f64; 3]) {
        self.reward_sum += chosen;
        self.reward_sum += rejected;
        self.rewards += count as u64;
    }

    /// The mean of all rewards so far, those of other processes included.
    fn shift(&mut self, rewards: [&Tensor; 2], of_all: OfAll<'_>) -> Result<f64> {
        let mut own = [0.0; 3];
        for (reward, sum) in rewards.into_iter().zip(&mut own) {
            *sum = reward.f_detach()?.f_sum(Kind::Double)?.f_double_value(&[])?;
        }
        own[2] = (rewards[0].numel() + rewards[1].numel()) as f64;
        self.add(of_all(own)?);
        Ok(self.reward_sum / self.rewards.max(1) as f64)
    }
}

/// Sums of chosen and rejected rewards and their number, over all processes instead of this one.
pub(super) type OfAll<'a> = &'a dyn Fn([f64; 3]) -> Result<[f64; 3]>;

/// The preference part of a loss.
#[derive(Debug)]
pub struct LossOutput {
    /// The weighted sum of all terms but the likelihood, `[pairs]` with gradients; by rank for losses that sort.
    pub losses: Tensor,
    /// What the chosen completions are worth to the policy, `[pairs]` without gradients.
    pub chosen_rewards: Tensor,
    /// What the rejected completions are worth to it, `[pairs]` without gradients.
    pub rejected_rewards: Tensor,
}

/// The preference losses of a batch. The chosen's likelihood is not in it: see [`chosen_nll`] and
/// [`DpoConfig::nll_weight`].
///
/// Rewards are `beta` times the log-ratios, or times the log-probabilities where there is no reference; those of losses on
/// means ([`PreferenceLoss::Simpo`], [`PreferenceLoss::Orpo`]) are `beta` times what these losses compare.
///
/// # Errors
/// When shapes do not fit, or a loss without a reference gets one.
///
/// # Example
/// ```
/// use ruminate_algorithms::dpo::{DpoConfig, DpoState, PairLogps, preference_loss};
/// use tch::Tensor;
///
/// let logps = |chosen: f64, rejected: f64| {
///     let row = |x: f64| Tensor::from_slice(&[x]);
///     PairLogps::new(row(chosen), row(rejected), row(4.0), row(5.0))
/// };
/// let (policy, reference) = (logps(-3.0, -7.0)?, logps(-4.0, -6.0)?);
/// let config = DpoConfig::default();
/// let output = preference_loss(&policy, Some(&reference), &config, &mut DpoState::default())?;
/// let expected = (1.0 + (-config.beta * 2.0f64).exp()).ln();
/// assert!((output.losses.double_value(&[0]) - expected).abs() < 1e-12);
/// # Ok::<(), ruminate_algorithms::Error>(())
/// ```
pub fn preference_loss(
    policy: &PairLogps,
    reference: Option<&PairLogps>,
    config: &DpoConfig,
    state: &mut DpoState,
) -> Result<LossOutput> {
    preference_loss_among(policy, reference, config, state, &|own| Ok(own))
}

/// As [`preference_loss`], for a part of a batch: `of_all` is called once for each term with a running mean.
pub(super) fn preference_loss_among(
    policy: &PairLogps,
    reference: Option<&PairLogps>,
    config: &DpoConfig,
    state: &mut DpoState,
    of_all: OfAll<'_>,
) -> Result<LossOutput> {
    if reference.is_some() && config.reference_free() {
        return Err(Error::config("reference", "is given, but the losses have no place for one"));
    }
    let beta = config.beta;
    let ratios = Ratios::new(policy, reference, config.divergence)?;
    let mut losses = Tensor::f_zeros_like(&policy.chosen)?;
    for term in config.terms.iter().filter(|term| term.weight != 0.0) {
        if let Some(loss) = ratios.loss(&term.loss, beta, state, of_all)? {
            losses = losses.f_add(&loss.f_mul_scalar(term.weight)?)?;
        }
    }
    let [chosen, rejected] = match config.terms.first().map(|term| term.loss) {
        Some(PreferenceLoss::Simpo { alpha, .. }) => power_rewards(policy, alpha)?,
        Some(PreferenceLoss::Orpo) => policy.means()?,
        _ => [ratios.a.shallow_clone(), ratios.b.shallow_clone()],
    };
    Ok(LossOutput {
        losses,
        chosen_rewards: chosen.f_detach()?.f_mul_scalar(beta)?,
        rejected_rewards: rejected.f_detach()?.f_mul_scalar(beta)?,
    })
}

/// Negative log-likelihoods of the chosen completions per token, `[pairs]`; their mean is the likelihood term that
/// [`NllNorm::Sequence`](super::NllNorm::Sequence) stands for. That of [`NllNorm::Token`](super::NllNorm::Token) is minus the
/// sum of the log-probabilities through the sum of the lengths.
///
/// # Errors
/// When libtorch refuses.
pub fn chosen_nll(policy: &PairLogps) -> Result<Tensor> {
    Ok(per_token(&policy.chosen, &policy.chosen_len)?.f_neg()?)
}

/// Log-ratios, plain and transformed.
struct Ratios<'a> {
    policy: &'a PairLogps,
    reference: Option<&'a PairLogps>,
    a: Tensor,
    b: Tensor,
    /// Transformed by the divergence.
    sa: Tensor,
    sb: Tensor,
}

impl<'a> Ratios<'a> {
    fn new(policy: &'a PairLogps, reference: Option<&'a PairLogps>, divergence: Divergence) -> Result<Self> {
        let ratio = |policy: &Tensor, reference: Option<&Tensor>| match reference {
            Some(reference) => policy.f_sub(reference),
            None => Ok(policy.shallow_clone()),
        };
        let a = ratio(&policy.chosen, reference.map(|r| &r.chosen))?;
        let b = ratio(&policy.rejected, reference.map(|r| &r.rejected))?;
        let (sa, sb) = (transform(&a, divergence)?, transform(&b, divergence)?);
        Ok(Self { policy, reference, a, b, sa, sb })
    }

    /// Difference of the scores per token.
    fn mean_difference(&self) -> Result<Tensor> {
        let (n_w, n_l) = (&self.policy.chosen_len, &self.policy.rejected_len);
        Ok(per_token(&self.sa, n_w)?.f_sub(&per_token(&self.sb, n_l)?)?)
    }

    /// One loss, `[pairs]`; nothing for a loss that is a likelihood only.
    fn loss(
        &self,
        loss: &PreferenceLoss,
        beta: f64,
        state: &mut DpoState,
        of_all: OfAll<'_>,
    ) -> Result<Option<Tensor>> {
        let Self { policy, a, b, sa, sb, .. } = self;
        let scaled = |x: &Tensor| x.f_mul_scalar(beta);
        let h = sa.f_sub(sb)?;
        let bh = scaled(&h)?;
        let target = 0.5 / beta;
        Ok(Some(match *loss {
            PreferenceLoss::Sigmoid { label_smoothing } => smoothed(&bh, label_smoothing)?,
            PreferenceLoss::Robust { label_smoothing: e } => {
                let right = neg_log_sigmoid(&bh)?.f_mul_scalar(1.0 - e)?;
                let wrong = neg_log_sigmoid(&bh.f_neg()?)?.f_mul_scalar(e)?;
                right.f_sub(&wrong)?.f_div_scalar(1.0 - 2.0 * e)?
            }
            PreferenceLoss::Hinge => hinge(&bh)?,
            PreferenceLoss::Ipo { norm } => {
                let h = match norm {
                    LengthNorm::Token => self.mean_difference()?,
                    LengthNorm::Sum => h,
                };
                h.f_sub_scalar(target)?.f_square()?
            }
            PreferenceLoss::ExoPair { epsilon } => {
                let side = |z: &Tensor, log_target: f64| -> Result<Tensor> {
                    Ok(z.f_sigmoid()?.f_mul(&z.f_log_sigmoid()?.f_sub_scalar(log_target)?)?)
                };
                side(&bh, (1.0 - epsilon).ln())?.f_add(&side(&bh.f_neg()?, epsilon.ln())?)?
            }
            PreferenceLoss::NcaPair => {
                let (ba, bb) = (scaled(sa)?, scaled(sb)?);
                let down = neg_log_sigmoid(&ba.f_neg()?)?.f_add(&neg_log_sigmoid(&bb.f_neg()?)?)?;
                neg_log_sigmoid(&ba)?.f_add(&down.f_mul_scalar(0.5)?)?
            }
            PreferenceLoss::BcoPair { shift } => {
                let (ba, bb) = (scaled(sa)?, scaled(sb)?);
                let shift = if shift { state.shift([&ba, &bb], of_all)? } else { 0.0 };
                let down = bb.f_sub_scalar(shift)?.f_neg()?;
                neg_log_sigmoid(&ba.f_sub_scalar(shift)?)?.f_add(&neg_log_sigmoid(&down)?)?
            }
            PreferenceLoss::SppoHard => {
                let up = sa.f_sub_scalar(target)?.f_square()?;
                up.f_add(&sb.f_add_scalar(target)?.f_square()?)?
            }
            PreferenceLoss::Aot { label_smoothing } => {
                let ours = sorted(&policy.chosen.f_sub(&policy.rejected)?)?;
                let difference = match self.reference {
                    Some(reference) => ours.f_sub(&sorted(&reference.chosen.f_sub(&reference.rejected)?)?)?,
                    None => ours,
                };
                smoothed(&scaled(&difference)?, label_smoothing)?
            }
            PreferenceLoss::AotUnpaired { label_smoothing } => {
                smoothed(&scaled(&sorted(a)?.f_sub(&sorted(b)?)?)?, label_smoothing)?
            }
            PreferenceLoss::ApoZero => {
                let up = scaled(a)?.f_neg()?.f_sigmoid()?;
                up.f_add(&scaled(b)?.f_sigmoid()?)?
            }
            PreferenceLoss::ApoDown => scaled(a)?.f_sigmoid()?.f_add(&bh.f_neg()?.f_sigmoid()?)?,
            PreferenceLoss::DiscoPop { tau } => {
                let modulation = bh.f_div_scalar(tau)?.f_sigmoid()?;
                let exponential = exp(&bh.f_neg()?)?.f_mul(&modulation)?;
                let logistic = neg_log_sigmoid(&bh)?;
                logistic.f_sub(&logistic.f_mul(&modulation)?)?.f_add(&exponential)?
            }
            PreferenceLoss::SigmoidNorm => neg_log_sigmoid(&scaled(&self.mean_difference()?)?)?,
            PreferenceLoss::Sft => return Ok(None),
            PreferenceLoss::Simpo { gamma, label_smoothing, alpha } => {
                let [chosen, rejected] = power_rewards(policy, alpha)?;
                smoothed(&scaled(&chosen.f_sub(&rejected)?)?.f_sub_scalar(gamma)?, label_smoothing)?
            }
            PreferenceLoss::Cpo { hinge: true, .. } => hinge(&bh)?,
            PreferenceLoss::Cpo { label_smoothing, .. } => smoothed(&bh, label_smoothing)?,
            PreferenceLoss::Orpo => neg_log_sigmoid(&log_odds(policy)?)?.f_mul_scalar(beta)?,
        }))
    }
}

/// The logarithm of the odds ratio of both completions, by their means over tokens (ORPO, arXiv 2403.07691, equation 4),
/// `[pairs]`.
///
/// # Errors
/// When libtorch refuses.
pub fn log_odds(policy: &PairLogps) -> Result<Tensor> {
    let [chosen, rejected] = policy.means()?;
    let against = log_one_minus_exp(&chosen)?.f_sub(&log_one_minus_exp(&rejected)?)?;
    Ok(chosen.f_sub(&rejected)?.f_sub(&against)?)
}

/// `log(1 - exp(x))` for `x` below 0, without loss of digits at either end. A probability of 1 has no odds; the largest `x`
/// below 0 stands in for it.
fn log_one_minus_exp(x: &Tensor) -> Result<Tensor> {
    let largest = if x.kind() == Kind::Double { -f64::EPSILON } else { -f64::from(f32::EPSILON) };
    let x = x.f_clamp_max(largest)?;
    let near_zero = x.f_gt(-std::f64::consts::LN_2)?;
    // Either side only sees values at which it has finite gradients.
    let half = Tensor::f_full_like(&x, -std::f64::consts::LN_2)?;
    let small = x.f_where_self(&near_zero, &half)?.f_expm1()?.f_neg()?.f_log()?;
    let large = half.f_where_self(&near_zero, &x)?.f_exp()?.f_neg()?.f_log1p()?;
    Ok(small.f_where_self(&near_zero, &large)?)
}

/// What SimPO and AlphaPO compare: a function of the mean probability of a token.
fn power_rewards(policy: &PairLogps, alpha: f64) -> Result<[Tensor; 2]> {
    let means = policy.means()?;
    if alpha == 0.0 {
        return Ok(means);
    }
    let [chosen, rejected] = means.map(|mean| -> Result<Tensor> {
        Ok(exp(&mean.f_mul_scalar(-alpha)?)?.f_neg()?.f_add_scalar(1.0)?.f_div_scalar(alpha)?)
    });
    Ok([chosen?, rejected?])
}

fn transform(z: &Tensor, divergence: Divergence) -> Result<Tensor> {
    let alpha = match divergence {
        Divergence::ReverseKl => return Ok(z.shallow_clone()),
        Divergence::Js => return Ok(z.f_log_sigmoid()?),
        Divergence::ForwardKl => 0.0,
        Divergence::Alpha { alpha } => alpha,
        Divergence::OldAlpha { a } => 1.0 - a,
    };
    let power = alpha - 1.0;
    if power.abs() < 1e-6 {
        return Ok(z.shallow_clone());
    }
    Ok(exp(&z.f_mul_scalar(power)?)?.f_div_scalar(power)?)
}

fn exp(z: &Tensor) -> Result<Tensor> {
    Ok(z.f_clamp_max(LARGEST_EXPONENT)?.f_exp()?)
}

fn neg_log_sigmoid(z: &Tensor) -> Result<Tensor> {
    Ok(z.f_log_sigmoid()?.f_neg()?)
}

/// `-(1 - e) log sigmoid(z) - e log sigmoid(-z)`.
fn smoothed(z: &Tensor, e: f64) -> Result<Tensor> {
    let right = neg_log_sigmoid(z)?;
    if e == 0.0 {
        return Ok(right);
    }
    Ok(right.f_mul_scalar(1.0 - e)?.f_add(&neg_log_sigmoid(&z.f_neg()?)?.f_mul_scalar(e)?)?)
}

fn hinge(z: &Tensor) -> Result<Tensor> {
    Ok(z.f_neg()?.f_add_scalar(1.0)?.f_relu()?)
}

fn sorted(z: &Tensor) -> Result<Tensor> {
    Ok(z.f_sort(0, false)?.0)
}
