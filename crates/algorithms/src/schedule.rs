//! Learning-rate schedules.

use serde::{Deserialize, Serialize};

/// How the learning rate changes after the warm-up; the rules are those of transformers' `get_scheduler`.
#[derive(Debug, Clone, Copy, PartialEq, Default, Serialize, Deserialize)]
#[serde(rename_all = "snake_case", deny_unknown_fields)]
pub enum Schedule {
    /// It stays.
    #[default]
    Constant,
    /// It falls in a straight line to 0 at the last step.
    Linear,
    /// It follows a cosine; half a cycle ends at 0.
    Cosine {
        /// Cycles until the last step; 0.5 is usual.
        cycles: f64,
    },
}

impl Schedule {
    /// The factor on the base learning rate for the update with index `step` (from 0) of `total` updates, after
    /// `warmup` updates in which it rises from 0.
    ///
    /// ```
    /// use ruminate_algorithms::Schedule;
    /// assert_eq!(Schedule::Linear.factor(0, 2, 10), 0.0);
    /// assert_eq!(Schedule::Linear.factor(2, 2, 10), 1.0);
    /// assert_eq!(Schedule::Linear.factor(6, 2, 10), 0.5);
    /// ```
    #[must_use]
    pub fn factor(self, step: u64, warmup: u64, total: u64) -> f64 {
        if step < warmup {
            return step as f64 / warmup as f64;
        }
        let progress = (step - warmup) as f64 / total.saturating_sub(warmup).max(1) as f64;
        match self {
            Self::Constant => 1.0,
            Self::Linear => (1.0 - progress).max(0.0),
            Self::Cosine { cycles } => {
                (0.5 * (1.0 + (std::f64::consts::PI * cycles * 2.0 * progress).cos())).max(0.0)
            }
        }
    }
}
