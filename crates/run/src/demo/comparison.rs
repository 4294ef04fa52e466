use std::fmt;

use ruminate_rewards::mario::{Interval, bootstrap};
use serde_json::{Map, Value, json};

const RESAMPLES: usize = 2000;

/// A mean over questions with its 95 % bootstrap interval.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Estimate {
    /// The mean.
    pub mean: f64,
    /// The interval, where there are questions.
    pub interval: Option<Interval>,
}

impl Estimate {
    /// The mean of some values; those that are no numbers are left out.
    #[must_use]
    pub fn of(values: &[f64]) -> Self {
        let interval = bootstrap(values.len(), RESAMPLES, 1, |of| {
            mean(&of.iter().map(|&i| values[i]).collect::<Vec<_>>())
        });
        Self { mean: mean(values).unwrap_or(f64::NAN), interval }
    }
}

/// The form for tables: `0.960 (0.930 to 0.985)`.
impl fmt::Display for Estimate {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:.3}", self.mean)?;
        self.interval.map_or(Ok(()), |i| write!(f, " ({:.3} to {:.3})", i.low, i.high))
    }
}

fn mean(values: &[f64]) -> Option<f64> {
    let numbers: Vec<f64> = values.iter().copied().filter(|value| !value.is_nan()).collect();
    (!numbers.is_empty()).then(|| numbers.iter().sum::<f64>() / numbers.len() as f64)
}

/// Scores of several models and seeds on the same questions. A mean is over questions, each averaged over seeds first: the
/// questions are the same for all seeds, so there are no more of them than they are.
#[derive(Debug, Clone, PartialEq)]
pub struct Comparison {
    models: Vec<String>,
    metrics: Vec<String>,
    /// By seed, model, metric and question.
    values: Vec<Vec<Vec<Vec<f64>>>>,
}

impl Comparison {
    /// A comparison of models by metrics, both named as in results.
    pub fn new<S: Into<String>, T: Into<String>>(
        models: impl IntoIterator<Item = S>,
        metrics: impl IntoIterator<Item = T>,
    ) -> Self {
        Self {
            models: models.into_iter().map(Into::into).collect(),
            metrics: metrics.into_iter().map(Into::into).collect(),
            values: vec![],
        }
    }

    /// Adds a seed: `value` gives, for the number of a model and of a metric, the value of each question.
    pub fn add_seed(&mut self, value: impl Fn(usize, usize) -> Vec<f64>) {
        let of_model = |model| (0..self.metrics.len()).map(|metric| value(model, metric)).collect();
        self.values.push((0..self.models.len()).map(of_model).collect());
    }

    /// The mean of one seed.
    #[must_use]
    pub fn of_seed(&self, seed: usize, model: usize, metric: usize) -> f64 {
        let values = self.values.get(seed).map(|of| of[model][metric].as_slice());
        values.and_then(mean).unwrap_or(f64::NAN)
    }

    /// The mean over questions and seeds.
    #[must_use]
    pub fn estimate(&self, model: usize, metric: usize) -> Estimate {
        Estimate::of(&self.values(model, metric))
    }

    /// How much better one model is than another, question by question; each is a model and a metric.
    #[must_use]
    pub fn gain(&self, from: (usize, usize), to: (usize, usize)) -> Estimate {
        let (from, to) = (self.values(from.0, from.1), self.values(to.0, to.1));
        Estimate::of(&to.iter().zip(from).map(|(to, from)| to - from).collect::<Vec<_>>())
    }

    /// Means, as `{"model": {"metric": 0.5}}`, or with one metric as `{"model": 0.5}`.
    #[must_use]
    pub fn metrics(&self) -> Value {
        self.by_model(|model, metric| json!(self.estimate(model, metric).mean))
    }

    /// Their intervals.
    #[must_use]
    pub fn intervals(&self) -> Value {
        self.by_model(|model, metric| json!(self.estimate(model, metric).interval))
    }

    /// The means of each seed, in the order of the seeds.
    #[must_use]
    pub fn by_seed(&self) -> Value {
        self.by_model(|model, metric| {
            (0..self.values.len()).map(|seed| json!(self.of_seed(seed, model, metric))).collect()
        })
    }

    fn by_model(&self, value: impl Fn(usize, usize) -> Value) -> Value {
        let of = |model: usize| match self.metrics.len() {
            1 => value(model, 0),
            _ => self
                .metrics
                .iter()
                .enumerate()
                .map(|(metric, name)| (name.clone(), value(model, metric)))
                .collect(),
        };
        self.models
            .iter()
            .enumerate()
            .map(|(model, name)| (name.clone(), of(model)))
            .collect::<Map<_, _>>()
            .into()
    }

    /// Each question's values, averaged over seeds.
    fn values(&self, model: usize, metric: usize) -> Vec<f64> {
        let seeds: Vec<&Vec<f64>> = self.values.iter().map(|seed| &seed[model][metric]).collect();
        let questions = seeds.iter().map(|values| values.len()).min().unwrap_or(0);
        let of = |question: usize| mean(&seeds.iter().map(|values| values[question]).collect::<Vec<_>>());
        (0..questions).map(|question| of(question).unwrap_or(f64::NAN)).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn questions_are_averaged_over_seeds_and_no_more_than_they_are() {
        let mut comparison = Comparison::new(["before", "after"], ["right", "words"]);
        comparison.add_seed(|model, metric| match (model, metric) {
            (0, 0) => vec![0.0, 0.0, 1.0, 0.0],
            (_, 0) => vec![1.0, 1.0, 1.0, 0.0],
            _ => vec![1.0, f64::NAN, 3.0, 2.0],
        });
        comparison.add_seed(|model, metric| match (model, metric) {
            (0, 0) => vec![0.0; 4],
            (_, 0) => vec![1.0; 4],
            _ => vec![f64::NAN; 4],
        });
        assert_eq!(comparison.estimate(0, 0).mean, 0.125);
        assert_eq!(comparison.of_seed(0, 1, 0), 0.75);
        assert_eq!(comparison.estimate(1, 1).mean, 2.0);
        assert_eq!(comparison.metrics()["after"]["right"], 0.875);
        assert_eq!(comparison.by_seed()["before"]["right"], json!([0.25, 0.0]));
        let gain = comparison.gain((0, 0), (1, 0));
        assert_eq!(gain.mean, 0.75);
        let interval = gain.interval.unwrap();
        assert!(interval.low >= 0.5 && interval.high <= 1.0, "{interval:?}");
        assert_eq!(Estimate::of(&[]).to_string(), "NaN");
        assert!(Estimate::of(&[1.0, 0.0]).to_string().starts_with("0.500 (0.000 to 1.000"));
        // A gain between two metrics of one model.
        approx::assert_abs_diff_eq!(comparison.gain((1, 0), (1, 1)).mean, 7.0 / 6.0, epsilon = 1e-12);
    }
}
