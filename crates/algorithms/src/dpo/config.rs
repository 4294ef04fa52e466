//! Settings of preference optimisation.

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use crate::{Error, Result};

/// How the log-ratios of a pair become a loss. Symbols, per pair: `a` and `b` are the log-ratios of policy and reference
/// for the chosen and the rejected completion, `h = a - b`, `n` numbers of tokens. Without a reference `a` and `b` are the
/// policy's log-probabilities.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case", deny_unknown_fields)]
#[non_exhaustive]
pub enum PreferenceLoss {
    /// DPO (arXiv 2305.18290): `-log sigmoid(beta h)`.
    Sigmoid {
        /// Probability that a label is wrong (conservative DPO), below 1/2.
        #[serde(default)]
        label_smoothing: f64,
    },
    /// DPO made unbiased for labels that are wrong with a known probability (arXiv 2403.00409).
    Robust {
        /// That probability, below 1/2.
        label_smoothing: f64,
    },
    /// `max(0, 1 - beta h)` (SLiC, arXiv 2305.10425; RSO, 2309.06657).
    Hinge,
    /// `(h - 1 / (2 beta))^2` (IPO, arXiv 2310.12036).
    Ipo {
        /// Whether `h` is a difference of means or of sums.
        #[serde(default)]
        norm: LengthNorm,
    },
    /// EXO on pairs (arXiv 2402.00856).
    ExoPair {
        /// Probability of the rejected completion under the target, above 0; usually 1e-3.
        epsilon: f64,
    },
    /// Noise-contrastive alignment (arXiv 2402.05369).
    NcaPair,
    /// Binary classifier optimisation on pairs (arXiv 2404.04656).
    BcoPair {
        /// Subtract the running mean of all rewards, as the paper does.
        #[serde(default)]
        shift: bool,
    },
    /// Self-play preference optimisation with hard labels (arXiv 2405.00675).
    SppoHard,
    /// Alignment by optimal transport, paired (arXiv 2406.05882): differences are sorted over the micro-batch, and what comes
    /// out belongs to ranks, not pairs.
    Aot {
        /// As in [`Sigmoid`](Self::Sigmoid).
        #[serde(default)]
        label_smoothing: f64,
    },
    /// As [`Aot`](Self::Aot), with chosen and rejected ratios sorted apart.
    AotUnpaired {
        /// As in [`Sigmoid`](Self::Sigmoid).
        #[serde(default)]
        label_smoothing: f64,
    },
    /// Anchored preference optimisation that makes the chosen likelier (arXiv 2408.06266).
    ApoZero,
    /// Anchored preference optimisation that makes both less likely (same paper).
    ApoDown,
    /// The loss that a language model found (DiscoPOP, arXiv 2406.08414).
    DiscoPop {
        /// Temperature of the mixture; 0.05 in the paper.
        #[serde(default = "discopop_tau")]
        tau: f64,
    },
    /// DPO on ratios per token.
    SigmoidNorm,
    /// Negative log-likelihood of the chosen completions alone, to be mixed with others.
    Sft,
    /// DPO on log-probabilities per token, with a margin and no reference (SimPO, arXiv 2405.14734).
    Simpo {
        /// The margin.
        gamma: f64,
        /// As in [`Sigmoid`](Self::Sigmoid).
        #[serde(default)]
        label_smoothing: f64,
        /// The reward is `(1 - p^-alpha) / alpha` of the mean probability `p` (AlphaPO, arXiv 2501.03884), or its logarithm
        /// where `alpha` is 0.
        #[serde(default)]
        alpha: f64,
    },
    /// Contrastive preference optimisation (arXiv 2401.08417): no reference, plus the chosen's likelihood.
    Cpo {
        /// Hinge in place of the sigmoid.
        #[serde(default)]
        hinge: bool,
        /// As in [`Sigmoid`](Self::Sigmoid); not with `hinge`.
        #[serde(default)]
        label_smoothing: f64,
        /// Weight of the chosen's negative log-likelihood; 1 in the paper.
        #[serde(default = "one")]
        nll_weight: f64,
    },
    /// Odds ratios of mean log-probabilities, plus the chosen's negative log-likelihood, without a reference (arXiv 2403.07691).
    Orpo,
}

impl PreferenceLoss {
    /// Whether the loss has no place for a reference.
    #[must_use]
    pub fn reference_free(&self) -> bool {
        matches!(self, Self::Simpo { .. } | Self::Cpo { .. } | Self::Orpo)
    }

    /// Whether values are sorted over the batch.
    #[must_use]
    pub fn sorts(&self) -> bool {
        matches!(self, Self::Aot { .. } | Self::AotUnpaired { .. })
    }

    /// Weight of the chosen's negative log-likelihood that the loss brings along.
    pub(super) fn nll_weight(&self) -> f64 {
        match self {
            Self::Sft | Self::Orpo => 1.0,
            Self::Cpo { nll_weight, .. } => *nll_weight,
            _ => 0.0,
        }
    }

    fn validate(&self) -> std::result::Result<(), String> {
        let below_half = |what: &str, value: f64| {
            if (0.0..0.5).contains(&value) {
                return Ok(());
            }
            Err(format!("{what} is {value}, but must be from 0 to below 0.5"))
        };
        let (what, value, good) = match *self {
            Self::Cpo { hinge: true, label_smoothing, .. } if label_smoothing != 0.0 => {
                return Err("label_smoothing does not go with hinge".into());
            }
            Self::Sigmoid { label_smoothing }
            | Self::Robust { label_smoothing }
            | Self::Aot { label_smoothing }
            | Self::AotUnpaired { label_smoothing } => return below_half("label_smoothing", label_smoothing),
            Self::Simpo { gamma, label_smoothing, alpha } => {
                below_half("label_smoothing", label_smoothing)?;
                ("gamma and alpha", gamma, gamma.is_finite() && alpha.is_finite())
            }
            Self::Cpo { label_smoothing, nll_weight, .. } => {
                below_half("label_smoothing", label_smoothing)?;
                ("nll_weight", nll_weight, nll_weight >= 0.0 && nll_weight.is_finite())
            }
            Self::ExoPair { epsilon } => {
                if !(epsilon > 0.0 && epsilon < 0.5) {
                    return Err(format!(
                        "epsilon is {epsilon}, but must be above 0 and below 0.5; 1e-3 is usual"
                    ));
                }
                return Ok(());
            }
            Self::DiscoPop { tau } => ("tau", tau, tau > 0.0 && tau.is_finite()),
            _ => return Ok(()),
        };
        if good { Ok(()) } else { Err(format!("{what}: {value} is out of range")) }
    }
}

impl Default for PreferenceLoss {
    fn default() -> Self {
        Self::Sigmoid { label_smoothing: 0.0 }
    }
}

fn discopop_tau() -> f64 {
    0.05
}

fn one() -> f64 {
    1.0
}

/// How log-probabilities of completions of different lengths are compared.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum LengthNorm {
    /// Means over tokens.
    #[default]
    Token,
    /// Sums.
    Sum,
}

/// What the log-ratios are transformed by (f-DPO, arXiv 2309.16240), in losses that are built on their differences.
/// Rewards in the metrics stay `beta` times the plain ratios.
#[derive(Debug, Clone, Copy, PartialEq, Default, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case", deny_unknown_fields)]
pub enum Divergence {
    /// `s(z) = z`.
    #[default]
    ReverseKl,
    /// `s(z) = -exp(-z)`.
    ForwardKl,
    /// `s(z) = log sigmoid(z)`: Jensen-Shannon.
    Js,
    /// `s(z) = exp((alpha - 1) z) / (alpha - 1)`; 1 is the reverse, 0 the forward KL.
    Alpha {
        /// The order.
        alpha: f64,
    },
    /// The same in an older parametrisation, `(1 - exp(-a z)) / a` with `alpha = 1 - a`.
    OldAlpha {
        /// The `a` of that formula.
        a: f64,
    },
}

/// One loss of a mixture.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct WeightedLoss {
    /// The loss.
    pub loss: PreferenceLoss,
    /// Its factor.
    #[serde(default = "one")]
    pub weight: f64,
}

/// What the chosen's negative log-likelihood is divided by.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum NllNorm {
    /// All chosen tokens of the optimizer step.
    #[default]
    Token,
    /// Each completion's own tokens, and then the pairs, as in arXiv 2404.19733.
    Sequence,
}

/// A reference that follows the policy (TR-DPO, arXiv 2404.09656).
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(default, deny_unknown_fields)]
pub struct ReferenceSync {
    /// Optimizer steps between two moves of the reference.
    pub every: u64,
    /// Share of the policy in the new reference.
    pub alpha: f64,
}

impl Default for ReferenceSync {
    fn default() -> Self {
        Self { every: 512, alpha: 0.6 }
    }
}

/// Settings of [`Dpo`](super::Dpo). The defaults are those of the DPO paper (arXiv 2305.18290).
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(default, deny_unknown_fields)]
pub struct DpoConfig {
    /// How strongly the policy is held at the reference.
    pub beta: f64,
    /// The losses that are added.
    pub terms: Vec<WeightedLoss>,
    /// What the log-ratios are transformed by.
    pub divergence: Divergence,
    /// Weight of the chosen's negative log-likelihood (arXiv 2404.19733).
    pub rpo_alpha: f64,
    /// What that likelihood is divided by.
    pub nll_norm: NllNorm,
    /// Weight of the tokens by which the longer completion of a pair exceeds the shorter (LD-DPO, arXiv 2409.06411); 1 counts
    /// them in full.
    pub ld_alpha: f64,
    /// Weigh pairs by how confidently the policy would write them (WPO, arXiv 2406.11827).
    pub wpo: bool,
    /// Let the reference follow the policy.
    pub sync: Option<ReferenceSync>,
    /// Keep dropout on in the policy. Off by default, so that before the first update policy and reference agree.
    pub dropout: bool,
    /// Count padding of the chosen half as the token to be predicted, as a defect of TRL 0.9.6 did for encoder-decoder
    /// models; only for comparisons with runs of that time.
    pub rpo_padding_compat: bool,
    /// Record mean logits, entropy and token accuracy. Costs another product with the output matrix.
    pub logit_metrics: bool,
}

impl Default for DpoConfig {
    fn default() -> Self {
        Self {
            beta: 0.1,
            terms: vec![WeightedLoss { loss: PreferenceLoss::default(), weight: 1.0 }],
            divergence: Divergence::ReverseKl,
            rpo_alpha: 0.0,
            nll_norm: NllNorm::Token,
            ld_alpha: 1.0,
            wpo: false,
            sync: None,
            dropout: false,
            rpo_padding_compat: false,
            logit_metrics: false,
        }
    }
}

impl DpoConfig {
    /// The defaults with one loss.
    #[must_use]
    pub fn with(loss: PreferenceLoss) -> Self {
        Self { terms: vec![WeightedLoss { loss, weight: 1.0 }], ..Self::default() }
    }

    /// Weight of the chosen's negative log-likelihood in the whole loss.
    #[must_use]
    pub fn nll_weight(&self) -> f64 {
        self.rpo_alpha + self.terms.iter().map(|term| term.weight * term.loss.nll_weight()).sum::<f64>()
    }

    /// Whether no loss uses a reference.
    #[must_use]
    pub fn reference_free(&self) -> bool {
        self.terms.iter().any(|term| term.loss.reference_free())
    }

    /// Checks ranges and combinations.
    ///
    /// # Errors
    /// Names the setting that is wrong.
    pub fn validate(&self) -> Result<()> {
        let refuse = |key: &str, reason: String| Err(Error::config(key, reason));
        if !(self.beta > 0.0 && self.beta.is_finite()) {
            return refuse("beta", format!("is {}, but must be above 0", self.beta));
        }
        if self.terms.is_empty() {
            return refuse("terms", "has no loss".into());
        }
        for (i, WeightedLoss { loss, weight }) in self.terms.iter().enumerate() {
            let key = format!("terms[{i}]");
            if !(*weight >= 0.0 && weight.is_finite()) {
                return refuse(&key, format!("has the weight {weight}, but must not have a negative one"));
            }
            if let Err(reason) = loss.validate() {
                return refuse(&key, reason);
            }
        }
        let needs_one = |loss: &PreferenceLoss| !loss.reference_free() && *loss != PreferenceLoss::Sft;
        if self.reference_free() && self.terms.iter().any(|term| needs_one(&term.loss)) {
            return refuse("terms", "mixes losses that have a reference with losses that have none".into());
        }
        if self.wpo && self.terms.iter().any(|term| term.loss.sorts()) {
            return refuse("wpo", "weighs pairs, but a loss of `terms` sorts them into ranks".into());
        }
        if !(self.rpo_alpha >= 0.0 && self.rpo_alpha.is_finite()) {
            return refuse("rpo_alpha", format!("is {}, but must not be negative", self.rpo_alpha));
        }
        if !(0.0..=1.0).contains(&self.ld_alpha) {
            return refuse("ld_alpha", format!("is {}, but must be in [0, 1]", self.ld_alpha));
        }
        if let Divergence::Alpha { alpha: order } | Divergence::OldAlpha { a: order } = self.divergence
            && !order.is_finite()
        {
            return refuse("divergence", format!("has the order {order}, which is no number"));
        }
        if self.rpo_padding_compat && self.nll_norm == NllNorm::Sequence {
            return refuse("rpo_padding_compat", "only goes with nll_norm = \"token\"".into());
        }
        if let Some(sync) = self.sync {
            if sync.every == 0 {
                return refuse("sync.every", "is 0, but must be at least 1".into());
            }
            if !(sync.alpha > 0.0 && sync.alpha <= 1.0) {
                return refuse("sync.alpha", format!("is {}, but must be in (0, 1]", sync.alpha));
            }
            if self.reference_free() {
                return refuse("sync", "needs a reference, but the losses have none".into());
            }
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn settings_out_of_range_are_named() {
        let with = DpoConfig::with;
        let mixed = |losses: [PreferenceLoss; 2]| DpoConfig {
            terms: losses.map(|loss| WeightedLoss { loss, weight: 1.0 }).to_vec(),
            ..DpoConfig::default()
        };
        for (key, bad) in [
            ("beta", DpoConfig { beta: 0.0, ..DpoConfig::default() }),
            ("beta", DpoConfig { beta: f64::NAN, ..DpoConfig::default() }),
            ("terms", DpoConfig { terms: vec![], ..DpoConfig::default() }),
            ("terms[0]", with(PreferenceLoss::Sigmoid { label_smoothing: 0.5 })),
            ("terms[0]", with(PreferenceLoss::Robust { label_smoothing: -0.1 })),
            ("terms[0]", with(PreferenceLoss::ExoPair { epsilon: 0.0 })),
            ("terms[0]", with(PreferenceLoss::DiscoPop { tau: 0.0 })),
            ("terms[0]", with(PreferenceLoss::Cpo { hinge: true, label_smoothing: 0.1, nll_weight: 1.0 })),
            ("terms[0]", with(PreferenceLoss::Simpo { gamma: f64::NAN, label_smoothing: 0.0, alpha: 0.0 })),
            ("terms", mixed([PreferenceLoss::Orpo, PreferenceLoss::Hinge])),
            ("wpo", DpoConfig { wpo: true, ..with(PreferenceLoss::Aot { label_smoothing: 0.0 }) }),
            ("rpo_alpha", DpoConfig { rpo_alpha: -1.0, ..DpoConfig::default() }),
            ("ld_alpha", DpoConfig { ld_alpha: 1.5, ..DpoConfig::default() }),
            (
                "sync.every",
                DpoConfig { sync: Some(ReferenceSync { every: 0, alpha: 0.5 }), ..DpoConfig::default() },
            ),
            (
                "sync.alpha",
                DpoConfig { sync: Some(ReferenceSync { every: 1, alpha: 0.0 }), ..DpoConfig::default() },
            ),
            ("sync", DpoConfig { sync: Some(ReferenceSync::default()), ..with(PreferenceLoss::Orpo) }),
            (
                "divergence",
                DpoConfig { divergence: Divergence::Alpha { alpha: f64::NAN }, ..DpoConfig::default() },
            ),
        ] {
            let error = bad.validate().unwrap_err().to_string();
            assert!(error.contains(&format!("`{key}`")), "{key}: {error}");
        }
        DpoConfig::default().validate().unwrap();
        mixed([PreferenceLoss::Orpo, PreferenceLoss::Sft]).validate().unwrap();
    }

    #[test]
    fn likelihood_weights_add_up() {
        let mpo = DpoConfig {
            terms: vec![
                WeightedLoss { loss: PreferenceLoss::default(), weight: 0.8 },
                WeightedLoss { loss: PreferenceLoss::Sft, weight: 2.0 },
            ],
            rpo_alpha: 0.5,
            ..DpoConfig::default()
        };
        assert_eq!(mpo.nll_weight(), 2.5);
        assert_eq!(DpoConfig::default().nll_weight(), 0.0);
    }

    #[test]
    fn a_configuration_reads_back() {
        let text = r#"{"terms": [{"loss": "hinge"}, {"loss": {"simpo": {"gamma": 1.0}}, "weight": 0.5},
            {"loss": {"sigmoid": {}}}], "divergence": {"alpha": {"alpha": 0.5}}}"#;
        let config: DpoConfig = serde_json::from_str(text).unwrap();
        assert_eq!(config.terms[2].loss, PreferenceLoss::default());
        let again = serde_json::to_string(&config).unwrap();
        assert_eq!(serde_json::from_str::<DpoConfig>(&again).unwrap(), config);
        assert!(serde_json::from_str::<DpoConfig>(r#"{"terms": [{"loss": "hinges"}]}"#).is_err());
    }
}
