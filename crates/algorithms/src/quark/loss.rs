//! The loss: likelihood of the response under its control tokens, divergence from the reference, entropy.

use ruminate_models::Policy;
use ruminate_torch::linear;
use tch::{Kind, Tensor};

use crate::{Error, Result, SumCount};

/// Logits that exist at the same time for one model, in elements.
const LOGITS: i64 = 10 << 20;

/// The states from which tokens are predicted, and the matrix that makes logits of them.
#[derive(Debug)]
pub struct Predictions {
    /// `[rows, hidden]`.
    pub states: Tensor,
    /// `[vocab, hidden]`.
    pub weight: Tensor,
    /// Factor on the states.
    pub scale: f64,
}

impl Predictions {
    /// What a policy predicts from states `[rows, hidden]`.
    ///
    /// # Errors
    /// When the policy has no output matrix.
    pub fn of(policy: &dyn Policy, states: Tensor) -> Result<Self> {
        let (weight, scale) = policy.output_projection().ok_or_else(|| {
            let reason = "has no output matrix (Policy::output_projection), which the divergence needs";
            Error::config("policy", reason)
        })?;
        Ok(Self { states, weight: weight.shallow_clone(), scale })
    }

    /// Logits `[rows, vocab]` `f32` of some states.
    fn logits(states: &Tensor, weight: &Tensor, scale: f64) -> Result<Tensor> {
        let states = if scale == 1.0 { states.shallow_clone() } else { states.f_mul_scalar(scale)? };
        Ok(linear(&states, weight)?.f_to_kind(Kind::Float)?)
    }
}

/// Parts of the loss for every token, `[rows]` `f32`, in nats.
#[derive(Debug)]
pub struct TokenTerms {
    /// Minus the log-probability of the token, over the whole vocabulary.
    pub lm: Tensor,
    /// Divergence of the policy from the reference.
    pub kl: Tensor,
    /// Entropy of the policy, over the whole vocabulary.
    pub entropy: Tensor,
}

impl TokenTerms {
    /// From logits `[rows, vocab]` of policy and reference, whose vocabularies may differ in size.
    ///
    /// The divergence is `KL(policy || reference)` of both distributions restricted to the first `kl_vocab` entries:
    /// tokens that one of the models does not know, as control tokens, are no part of it. Without a reference it is 0.
    ///
    /// # Errors
    /// When shapes do not fit or a target is outside the vocabulary.
    pub fn new(policy: &Tensor, reference: Option<&Tensor>, targets: &Tensor, kl_vocab: i64) -> Result<Self> {
        check(policy, reference, targets, kl_vocab)?;
        let log_p = policy.f_log_softmax(-1, Kind::Float)?;
        let lm = log_p.f_gather(1, &targets.f_unsqueeze(1)?, false)?.f_squeeze_dim(1)?.f_neg()?;
        let entropy = expectation(&log_p, &log_p)?.f_neg()?;
        let kl = match reference {
            Some(reference) => {
                let log_p = policy.f_narrow(1, 0, kl_vocab)?.f_log_softmax(-1, Kind::Float)?;
                let log_q = reference.f_narrow(1, 0, kl_vocab)?.f_log_softmax(-1, Kind::Float)?;
                expectation(&log_p, &log_p.f_sub(&log_q)?)?
            }
            None => lm.f_zeros_like()?,
        };
        Ok(Self { lm, kl, entropy })
    }

    /// From states, some rows at a time: the `[rows, vocab]` logits of neither model exist as a whole, and are made
    /// again in the backward pass.
    ///
    /// # Errors
    /// As [`new`](Self::new).
    pub fn chunked(
        policy: &Predictions,
        reference: Option<&Predictions>,
        targets: &Tensor,
        kl_vocab: i64,
    ) -> Result<Self> {
        let vocab = policy.weight.size().first().copied().unwrap_or(1);
        Self::chunked_by((LOGITS / vocab.max(1)).max(1), policy, reference, targets, kl_vocab)
    }

    /// As [`chunked`](Self::chunked) with `chunk` rows at a time.
    ///
    /// # Errors
    /// As [`new`](Self::new).
    pub fn chunked_by(
        chunk: i64,
        policy: &Predictions,
        reference: Option<&Predictions>,
        targets: &Tensor,
        kl_vocab: i64,
    ) -> Result<Self> {
        let (rows, chunk) = (targets.size1()?, chunk.max(1));
        if policy.states.size().first() != Some(&rows) {
            let reason = format!("are of shape {:?} for {rows} targets", policy.states.size());
            return Err(Error::config("states", reason));
        }
        if rows == 0 {
            let none = || policy.states.f_new_zeros([0], (Kind::Float, policy.states.device()));
            return Ok(Self { lm: none()?, kl: none()?, entropy: none()? });
        }
        let mut parts = vec![];
        for first in (0..rows).step_by(chunk as usize) {
            let take = |all: &Tensor| all.f_narrow(0, first, chunk.min(rows - first));
            let targets = take(targets)?;
            let reference = match reference {
                Some(r) => Some((take(&r.states)?, r.weight.shallow_clone(), r.scale)),
                None => None,
            };
            let scale = policy.scale;
            let terms = move |inputs: &[Tensor]| -> Result<Tensor> {
                let logits = Predictions::logits(&inputs[0], &inputs[1], scale)?;
                let reference = reference
                    .as_ref()
                    .map(|(states, weight, scale)| {
                        tch::no_grad(|| Predictions::logits(states, weight, *scale))
                    })
                    .transpose()?;
                let terms = Self::new(&logits, reference.as_ref(), &targets, kl_vocab)?;
                Ok(Tensor::f_stack(&[terms.lm, terms.kl, terms.entropy], 0)?)
            };
            let states = take(&policy.states)?;
            parts.push(if rows <= chunk {
                terms(&[states, policy.weight.shallow_clone()])?
            } else {
                ruminate_torch::checkpoint(&[&states, &policy.weight], terms)?
            });
        }
        let all = Tensor::f_cat(&parts, 1)?;
        let part = |i| all.f_select(0, i);
        Ok(Self { lm: part(0)?, kl: part(1)?, entropy: part(2)? })
    }
}

/// Refuses what [`TokenTerms::new`] cannot work with.
fn check(policy: &Tensor, reference: Option<&Tensor>, targets: &Tensor, kl_vocab: i64) -> Result<()> {
    let refuse = |reason: String| Err(Error::config("logits", reason));
    let (shape, targets) = (policy.size(), targets.size());
    let (&[rows, vocab], &[labels]) = (&shape[..], &targets[..]) else {
        return refuse(format!(
            "are {shape:?} for targets {targets:?}, but must be [rows, vocab] for [rows]"
        ));
    };
    if rows != labels {
        return refuse(format!(
            "are {shape:?} for targets {targets:?}, but must be [rows, vocab] for [rows]"
        ));
    }
    let Some(reference) = reference.map(Tensor::size) else { return Ok(()) };
    match reference[..] {
        [others, theirs] if others == rows && (1..=vocab.min(theirs)).contains(&kl_vocab) => Ok(()),
        _ => refuse(format!(
            "are {shape:?}, and {reference:?} of the reference, which have no {kl_vocab} entries in common (kl_vocab)"
        )),
    }
}

/// `sum(exp(log_p) * of)` over the vocabulary.
fn expectation(log_p: &Tensor, of: &Tensor) -> Result<Tensor> {
    Ok(log_p.f_exp()?.f_mul(of)?.f_sum_dim_intlist([1i64].as_slice(), false, Kind::Float)?)
}

/// Quark's loss over all tokens: `sum(lm + kl_coef * kl - entropy_coef * entropy)` and the number of tokens. Divided by
/// the count of a whole batch it is a mean over tokens, not over samples.
///
/// # Errors
/// When libtorch refuses.
pub fn quark_loss(terms: &TokenTerms, kl_coef: f64, entropy_coef: f64) -> Result<SumCount> {
    let TokenTerms { lm, kl, entropy } = terms;
    let all = lm.f_add(&kl.f_mul_scalar(kl_coef)?)?.f_sub(&entropy.f_mul_scalar(entropy_coef)?)?;
    Ok(SumCount { sum: all.f_sum(Kind::Float)?, count: all.size1()? as u64 })
}
