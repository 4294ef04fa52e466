//! Learning-rate schedules.

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

/// How the learning rate changes after the warm-up; names and rules are those of transformers' `get_scheduler`.
#[derive(Debug, Clone, Copy, PartialEq, Default, Serialize, Deserialize, JsonSchema)]
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
    /// It falls along half a cosine to 0, again and again from the full rate.
    CosineWithRestarts {
        /// Falls until the last step.
        cycles: u64,
    },
    /// It falls along a power of the part of the run that is left.
    Polynomial {
        /// The rate at and after the last step.
        #[serde(default = "usual_lr_end")]
        lr_end: f64,
        /// The exponent; 1 is a straight line.
        #[serde(default = "usual_power")]
        power: f64,
    },
    /// It falls with the inverse square root of the step, whatever the length of the run.
    InverseSqrt {
        /// Steps in which it falls to `1 / sqrt(2)`; by default those of the warm-up, or 10 000 without one.
        #[serde(default)]
        timescale: Option<u64>,
    },
}

fn usual_lr_end() -> f64 {
    1e-7
}

fn usual_power() -> f64 {
    1.0
}

impl Schedule {
    /// The learning rate of the update with index `step` (from 0) of `total` updates, after `warmup` updates in which it
    /// rises from 0 to `base`.
    ///
    /// ```
    /// use ruminate_algorithms::Schedule;
    /// assert_eq!(Schedule::Linear.lr(0.5, 0, 2, 10), 0.0);
    /// assert_eq!(Schedule::Linear.lr(0.5, 2, 2, 10), 0.5);
    /// assert_eq!(Schedule::Linear.lr(0.5, 6, 2, 10), 0.25);
    /// ```
    #[must_use]
    pub fn lr(self, base: f64, step: u64, warmup: u64, total: u64) -> f64 {
        if step < warmup {
            return base * (step as f64 / warmup as f64);
        }
        let since = step - warmup;
        let progress = since as f64 / total.saturating_sub(warmup).max(1) as f64;
        match self {
            Self::Constant => base,
            Self::Linear => base * (1.0 - progress).max(0.0),
            Self::Cosine { cycles } => base * half_cosine(cycles * 2.0 * progress),
            Self::CosineWithRestarts { .. } if progress >= 1.0 => 0.0,
            Self::CosineWithRestarts { cycles } => base * half_cosine((cycles as f64 * progress) % 1.0),
            Self::Polynomial { lr_end, power } => {
                lr_end + (base - lr_end) * (1.0 - progress).max(0.0).powf(power)
            }
            Self::InverseSqrt { timescale } => {
                let timescale = timescale.unwrap_or(if warmup > 0 { warmup } else { 10_000 }) as f64;
                base / (1.0 + since as f64 / timescale).sqrt()
            }
        }
    }

    /// What is out of its range, for a base rate.
    pub(crate) fn validate(self, base: f64) -> Result<(), String> {
        match self {
            Self::Cosine { cycles } if !(cycles > 0.0 && cycles.is_finite()) => {
                Err(format!("has {cycles} cosine cycles, but must have more than 0"))
            }
            Self::CosineWithRestarts { cycles: 0 } => {
                Err("has 0 cosine cycles, but must have at least 1".into())
            }
            Self::Polynomial { lr_end, .. } if !(0.0..base).contains(&lr_end) => {
                Err(format!("ends at the rate {lr_end}, but must end at one from 0 to below lr ({base})"))
            }
            Self::Polynomial { power, .. } if !(power > 0.0 && power.is_finite()) => {
                Err(format!("has the power {power}, but must have one above 0"))
            }
            Self::InverseSqrt { timescale: Some(0) } => {
                Err("has a timescale of 0 steps, but must have at least 1".into())
            }
            _ => Ok(()),
        }
    }
}

/// From 1 to 0 as `x` goes from 0 to 1.
fn half_cosine(x: f64) -> f64 {
    (0.5 * (1.0 + (std::f64::consts::PI * x).cos())).max(0.0)
}

#[cfg(test)]
mod tests {
    use approx::assert_abs_diff_eq;

    use super::*;

    fn factors(schedule: Schedule, warmup: u64, total: u64, steps: &[u64]) -> Vec<f64> {
        steps.iter().map(|&step| schedule.lr(1.0, step, warmup, total)).collect()
    }

    #[test]
    fn the_warm_up_rises_from_zero() {
        for schedule in [
            Schedule::Constant,
            Schedule::Linear,
            Schedule::Cosine { cycles: 0.5 },
            Schedule::CosineWithRestarts { cycles: 3 },
            Schedule::Polynomial { lr_end: 1e-7, power: 2.0 },
            Schedule::InverseSqrt { timescale: None },
        ] {
            assert_eq!(
                factors(schedule, 4, 100, &[0, 1, 2, 3, 4]),
                [0.0, 0.25, 0.5, 0.75, 1.0],
                "{schedule:?}"
            );
            assert_eq!(schedule.lr(1.0, 0, 0, 100), 1.0);
        }
    }

    #[test]
    fn each_falls_in_its_own_way() {
        assert_eq!(factors(Schedule::Constant, 2, 10, &[2, 9, 10, 99]), [1.0; 4]);
        assert_eq!(factors(Schedule::Linear, 2, 10, &[4, 6, 8, 10, 99]), [0.75, 0.5, 0.25, 0.0, 0.0]);
        let cosine = factors(Schedule::Cosine { cycles: 0.5 }, 0, 8, &[0, 2, 4, 8]);
        for (factor, expected) in cosine.into_iter().zip([1.0, (2.0 + 2f64.sqrt()) / 4.0, 0.5, 0.0]) {
            assert_abs_diff_eq!(factor, expected, epsilon = 1e-15);
        }
        // A whole cycle comes back.
        assert_abs_diff_eq!(Schedule::Cosine { cycles: 1.0 }.lr(1.0, 10, 0, 10), 1.0, epsilon = 1e-15);
    }

    #[test]
    fn restarts_powers_and_roots() {
        let restarts = factors(Schedule::CosineWithRestarts { cycles: 2 }, 0, 8, &[0, 2, 4, 6, 8, 9]);
        for (factor, expected) in restarts.into_iter().zip([1.0, 0.5, 1.0, 0.5, 0.0, 0.0]) {
            assert_abs_diff_eq!(factor, expected, epsilon = 1e-15);
        }
        let polynomial = Schedule::Polynomial { lr_end: 0.2, power: 2.0 };
        let rates = [2, 6, 10, 99].map(|step| polynomial.lr(1.2, step, 2, 10));
        for (rate, expected) in rates.into_iter().zip([1.2, 0.45, 0.2, 0.2]) {
            assert_abs_diff_eq!(rate, expected, epsilon = 1e-15);
        }
        // The scale is that of the warm-up, or what is given.
        assert_eq!(factors(Schedule::InverseSqrt { timescale: None }, 4, 0, &[4, 16, 64]), [1.0, 0.5, 0.25]);
        assert_eq!(
            factors(Schedule::InverseSqrt { timescale: Some(3) }, 0, 9, &[0, 9, 45]),
            [1.0, 0.5, 0.25]
        );
        assert_eq!(factors(Schedule::InverseSqrt { timescale: None }, 0, 9, &[30_000]), [0.5]);
    }

    #[test]
    fn what_is_left_out_is_usual() {
        let parse = |json: &str| serde_json::from_str::<Schedule>(json).unwrap();
        let polynomial = Schedule::Polynomial { lr_end: 1e-7, power: 1.0 };
        assert_eq!(parse(r#"{"polynomial": {}}"#), polynomial);
        assert_eq!(parse(r#"{"inverse_sqrt": {}}"#), Schedule::InverseSqrt { timescale: None });
        assert_eq!(
            parse(r#"{"cosine_with_restarts": {"cycles": 2}}"#),
            Schedule::CosineWithRestarts { cycles: 2 }
        );
    }

    #[test]
    fn a_run_that_is_all_warm_up_divides_by_nothing() {
        assert_eq!(factors(Schedule::Linear, 10, 10, &[5, 10]), [0.5, 1.0]);
        assert_eq!(factors(Schedule::Linear, 10, 5, &[4]), [0.4]);
        assert_eq!(Schedule::Linear.lr(1.0, 0, 0, 0), 1.0);
    }
}
