//! Micro-batches add up to the batch that they were cut from.

use approx::{assert_abs_diff_eq, relative_eq};
use ruminate_algorithms::{
    Curriculum, Evaluation, NullObserver, Objective, Observer, Result, Sft, Trainer, TrainerConfig,
};
use ruminate_models::{Example, IGNORED, Policy, ScoreOptions, T5};
use tch::{Kind, Tensor};

use crate::support::{Recorder, alone, examples, model, short, tokenizer};

/// Eight examples in batches, each for two objectives, of which the second trains on the first half of a batch only.
struct Pair {
    examples: Vec<Example>,
    batch: usize,
    at: usize,
}

impl<P: Policy> Curriculum<P> for Pair {
    fn next(&mut self, _: u64) -> Result<Vec<Objective>> {
        let examples = self.examples[self.at..self.at + self.batch].to_vec();
        self.at += self.batch;
        let odd = examples.iter().filter(|e| e.prompt.len() % 2 == 1).cloned().collect();
        Ok(vec![
            Objective { name: "all_loss", weight: 1.0, examples },
            Objective { name: "odd_loss", weight: 0.25, examples: odd },
        ])
    }

    fn evaluate(&mut self, _: &P, _: u64, _: &mut dyn Observer) -> Result<Evaluation> {
        Ok(Evaluation { metrics: vec![("eval/loss".into(), 0.0)], score: 0.0 })
    }

    fn state(&self) -> serde_json::Value {
        self.at.into()
    }

    fn load_state(&mut self, _: serde_json::Value) -> Result<()> {
        Ok(())
    }
}

/// Very different numbers of labels, one row with positions without loss, and one odd prompt in each pair.
fn rows() -> Vec<Example> {
    let mut rows = examples(8);
    for (i, row) in rows.iter_mut().enumerate() {
        row.target = (0..[1, 1, 9, 2, 1, 12, 3, 1][i]).map(|j| 60 + 5 * j).collect();
        row.prompt.truncate(3 + i % 2);
    }
    rows[5].target[2..8].fill(IGNORED);
    rows
}

fn one_step(batch: usize, observer: &mut dyn Observer) -> T5 {
    let folder = tempfile::tempdir().unwrap();
    let accumulate = 8 / batch;
    // A large epsilon keeps the first step from being the gradient's sign alone.
    let config = TrainerConfig { accumulate, eps: 1.0, ..short(1) };
    let mut sft = Sft::new(model(0.0, 1), Pair { examples: rows(), batch, at: 0 }, tokenizer());
    Trainer::new(config, folder.path()).unwrap().fit(&mut sft, observer).unwrap();
    sft.into_policy()
}

fn largest_difference(a: &Tensor, b: &Tensor) -> f64 {
    (a.detach() - b.detach()).abs().max().double_value(&[])
}

#[test]
fn four_pairs_are_one_batch_of_eight() {
    let _alone = alone();
    let (mut in_pairs, mut at_once) = (Recorder::default(), Recorder::default());
    let (pairs, batch) = (one_step(2, &mut in_pairs), one_step(8, &mut at_once));
    for ((name, a), (_, b)) in pairs.parameters().iter().zip(batch.parameters().iter()) {
        assert!(largest_difference(a, b) < 1e-6, "{name}");
        assert!(largest_difference(&a.grad(), &b.grad()) < 1e-6, "gradient of {name}");
        assert!(a.grad().abs().max().double_value(&[]) > 1e-4, "{name} is trained");
    }
    for name in ["train/loss", "train/all_loss", "train/odd_loss", "train/grad_norm"] {
        let (a, b) = (in_pairs.series(name)[0], at_once.series(name)[0]);
        assert!(relative_eq!(a, b, epsilon = 0.0, max_relative = 1e-5), "{name}: {a} {b}");
    }
    let loss = in_pairs.series("train/all_loss")[0] + 0.25 * in_pairs.series("train/odd_loss")[0];
    assert_abs_diff_eq!(in_pairs.series("train/loss")[0], loss, epsilon = 1e-5);
}

#[test]
fn a_mean_of_means_would_be_another_gradient() {
    // What the test above would not notice if the rows were all alike.
    let _alone = alone();
    let trained = one_step(8, &mut NullObserver);
    let t5 = model(0.0, 1);
    for rows in rows().chunks(2) {
        let odd: Vec<Example> = rows.iter().filter(|e| e.prompt.len() % 2 == 1).cloned().collect();
        for (rows, weight) in [(rows, 1.0), (&odd, 0.25)] {
            let scores = t5.score(rows, ScoreOptions::default()).unwrap();
            let mean = -scores.log_probs.sum(Kind::Float) / scores.labels.count as f64;
            (mean * (weight / 4.0)).backward();
        }
    }
    let differ = |(a, b): (&Tensor, &Tensor)| largest_difference(&a.grad(), &b.grad());
    let parameters = trained.parameters().iter().zip(t5.parameters().iter());
    let most = parameters.map(|((_, a), (_, b))| differ((a, b))).fold(0.0, f64::max);
    assert!(most > 1e-2, "{most}");
}
