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

#[cfg(test)]
mod tests {
    use super::*;

    fn factors(schedule: Schedule, warmup: u64, total: u64, steps: &[u64]) -> Vec<f64> {
        steps.iter().map(|&step| schedule.factor(step, warmup, total)).collect()
    }

    #[test]
    fn the_warm_up_rises_from_zero() {
        for schedule in [Schedule::Constant, Schedule::Linear, Schedule::Cosine { cycles: 0.5 }] {
            assert_eq!(
                factors(schedule, 4, 100, &[0, 1, 2, 3, 4]),
                [0.0, 0.25, 0.5, 0.75, 1.0],
                "{schedule:?}"
            );
            assert_eq!(schedule.factor(0, 0, 100), 1.0);
        }
    }

    #[test]
    fn each_falls_in_its_own_way() {
        assert_eq!(factors(Schedule::Constant, 2, 10, &[2, 9, 10, 99]), [1.0; 4]);
        assert_eq!(factors(Schedule::Linear, 2, 10, &[4, 6, 8, 10, 99]), [0.75, 0.5, 0.25, 0.0, 0.0]);
        let cosine = factors(Schedule::Cosine { cycles: 0.5 }, 0, 8, &[0, 2, 4, 8]);
        for (factor, expected) in cosine.into_iter().zip([1.0, (2.0 + 2f64.sqrt()) / 4.0, 0.5, 0.0]) {
            assert!((factor - expected).abs() < 1e-15, "{factor} {expected}");
        }
        // A whole cycle comes back.
        assert!((Schedule::Cosine { cycles: 1.0 }.factor(10, 0, 10) - 1.0).abs() < 1e-15);
    }

    #[test]
    fn a_run_that_is_all_warm_up_divides_by_nothing() {
        assert_eq!(factors(Schedule::Linear, 10, 10, &[5, 10]), [0.5, 1.0]);
        assert_eq!(factors(Schedule::Linear, 10, 5, &[4]), [0.4]);
        assert_eq!(Schedule::Linear.factor(0, 0, 0), 1.0);
    }
}
