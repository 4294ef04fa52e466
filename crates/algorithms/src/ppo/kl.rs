//! The penalty for leaving the reference policy.

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use crate::{Error, Result};

/// The coefficient of the penalty.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case", deny_unknown_fields)]
pub enum KlPenalty {
    /// It stays.
    Fixed {
        /// The coefficient.
        coef: f64,
    },
    /// It follows the divergence that is observed, by at most a fifth of `samples / horizon` an update (arXiv
    /// 1909.08593, section 2.2).
    Adaptive {
        /// The coefficient to begin with.
        initial: f64,
        /// The divergence to aim at, in nats per response.
        target: f64,
        /// Samples after which the coefficient may have changed by a fifth.
        horizon: f64,
    },
}

impl Default for KlPenalty {
    /// 0.05, as in TRL.
    fn default() -> Self {
        Self::Fixed { coef: 0.05 }
    }
}

impl KlPenalty {
    /// The coefficient to begin with.
    #[must_use]
    pub fn initial(self) -> f64 {
        match self {
            Self::Fixed { coef } => coef,
            Self::Adaptive { initial, .. } => initial,
        }
    }

    /// The coefficient after `samples` responses have shown a mean divergence of `kl` nats.
    #[must_use]
    pub fn next(self, coef: f64, kl: f64, samples: usize) -> f64 {
        match self {
            Self::Fixed { .. } => coef,
            Self::Adaptive { target, horizon, .. } => {
                let error = (kl / target - 1.0).clamp(-0.2, 0.2);
                coef * (1.0 + error * samples as f64 / horizon)
            }
        }
    }

    /// The coefficient of a bonus that follows the same rule the other way: it falls where more is observed than aimed at.
    #[must_use]
    pub fn next_bonus(self, coef: f64, observed: f64, samples: usize) -> f64 {
        2.0 * coef - self.next(coef, observed, samples)
    }

    pub(crate) fn validate(self) -> Result<()> {
        let positive = match self {
            Self::Fixed { .. } => [("target", 1.0), ("horizon", 1.0)],
            Self::Adaptive { target, horizon, .. } => [("target", target), ("horizon", horizon)],
        };
        let coef = self.initial();
        if !(coef >= 0.0 && coef.is_finite()) {
            return Err(Error::config(
                "kl",
                format!("has the coefficient {coef}, which must not be negative"),
            ));
        }
        match positive.into_iter().find(|(_, value)| !(*value > 0.0 && value.is_finite())) {
            Some((name, value)) => {
                Err(Error::config("kl", format!("has the {name} {value}, which must be above 0")))
            }
            None => Ok(()),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_the_adaptive_penalty_moves() {
        assert_eq!(KlPenalty::default().next(0.2, 50.0, 64), 0.2);
        let adaptive = KlPenalty::Adaptive { initial: 0.1, target: 6.0, horizon: 1000.0 };
        assert_eq!(adaptive.next(0.1, 6.0, 64), 0.1);
        assert!(adaptive.next(0.1, 7.0, 64) > 0.1 && adaptive.next(0.1, 1.0, 64) < 0.1);
    }

    #[test]
    fn penalties_that_make_no_sense_are_refused() {
        for bad in [
            KlPenalty::Fixed { coef: -1.0 },
            KlPenalty::Adaptive { initial: 0.2, target: 0.0, horizon: 10.0 },
            KlPenalty::Adaptive { initial: 0.2, target: 6.0, horizon: f64::NAN },
        ] {
            assert!(bad.validate().is_err(), "{bad:?}");
        }
    }
}
