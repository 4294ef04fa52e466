//! The numbers of the comparison.

use std::collections::BTreeMap;

use ruminate::algorithms::mario::Judged;
use ruminate::rewards::mario::{Interval, bootstrap, mean};
use serde_json::{Map, Value, json};

use super::Model;

/// What is measured, each in its own unit; accuracy is a share.
pub(super) const METRICS: [&str; 4] = ["accuracy", "consistency", "plausibility", "diversity"];
const RESAMPLES: usize = 2000;

/// What the models of one seed wrote, in their order.
pub(super) struct SeedResult {
    pub(super) seed: u64,
    pub(super) judged: Vec<Judged>,
}

#[derive(Default)]
pub(super) struct Results {
    pub(super) seeds: Vec<SeedResult>,
}

impl SeedResult {
    /// A metric for each question.
    fn values(&self, model: Model, metric: usize) -> Vec<f64> {
        let judged = &self.judged[model as usize];
        // The scores are those of consistency, plausibility and diversity.
        let value = |correct: bool, scores: &[Option<f64>]| match metric {
            0 => f64::from(u8::from(correct)),
            _ => scores.get(metric - 1).copied().flatten().unwrap_or(f64::NAN),
        };
        judged.questions.iter().map(|q| value(q.correct, &q.scores)).collect()
    }

    pub(super) fn mean(&self, model: Model, metric: usize) -> f64 {
        average(&self.values(model, metric))
    }
}

impl Results {
    /// A metric for each question, averaged over seeds: the questions are the same for all, and no more than they are.
    fn values(&self, model: Model, metric: usize) -> Vec<f64> {
        let of_seed: Vec<Vec<f64>> = self.seeds.iter().map(|seed| seed.values(model, metric)).collect();
        let questions = of_seed.first().map_or(0, Vec::len);
        (0..questions).map(|q| average(&of_seed.iter().map(|values| values[q]).collect::<Vec<_>>())).collect()
    }

    pub(super) fn mean(&self, model: Model, metric: usize) -> f64 {
        average(&self.values(model, metric))
    }

    pub(super) fn interval(&self, model: Model, metric: usize) -> Option<Interval> {
        interval(&self.values(model, metric))
    }

    /// How much better the trained model is, question by question.
    pub(super) fn gain(&self, metric: usize) -> (f64, Option<Interval>) {
        let [before, after] = [Model::Sft, Model::Mario].map(|model| self.values(model, metric));
        let gains: Vec<f64> = after.iter().zip(before).map(|(after, before)| after - before).collect();
        (average(&gains), interval(&gains))
    }

    pub(super) fn metrics(&self) -> Value {
        self.by_model(|model, metric| json!(self.mean(model, metric)))
    }

    pub(super) fn intervals(&self) -> Value {
        self.by_model(|model, metric| json!(self.interval(model, metric)))
    }

    pub(super) fn gains(&self) -> Value {
        let gain = |metric| {
            let (mean, interval) = self.gain(metric);
            json!({ "mean": mean, "interval": interval })
        };
        json!((0..METRICS.len()).map(|metric| (METRICS[metric], gain(metric))).collect::<BTreeMap<_, _>>())
    }

    fn by_model(&self, value: impl Fn(Model, usize) -> Value) -> Value {
        let metrics = |model| -> Map<String, Value> {
            (0..METRICS.len()).map(|metric| (METRICS[metric].into(), value(model, metric))).collect()
        };
        let models: Map<String, Value> =
            Model::ALL.iter().map(|&model| (model.name().into(), metrics(model).into())).collect();
        models.into()
    }
}

fn average(values: &[f64]) -> f64 {
    mean(values.iter().map(|&value| Some(value))).unwrap_or(f64::NAN)
}

/// Over questions.
fn interval(values: &[f64]) -> Option<Interval> {
    bootstrap(values.len(), RESAMPLES, 1, |of| mean(of.iter().map(|&i| Some(values[i]))))
}
