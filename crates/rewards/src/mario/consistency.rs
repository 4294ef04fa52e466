//! How much a rationale helps a second model to the gold label.

use std::cell::RefCell;
use std::collections::BTreeMap;

use ndarray::Array2;
use ruminate_datasets::mario::{MarioDataset, RewardParts, i2o_input, ir2o_input};
use ruminate_models::{ScoreChoices, TokenId, Tokenizer, by_length};
use serde::{Deserialize, Serialize};
use tch::Kind;

use super::{Response, TextReward};
use crate::choices::{argmax, choice_probs};
use crate::{ChoiceError, RewardError};

/// Scores `[prompts, options]` of the same options for several prompts: the mean log-probability of an option's tokens, end token included.
/// Prompts of similar length share a batch, and all options of a prompt its encoder output; equal prompts are scored once.
///
/// # Errors
/// When an option is empty, a token is outside the vocabulary, or libtorch fails.
pub fn option_scores<M: ScoreChoices + ?Sized>(
    model: &M,
    prompts: &[Vec<TokenId>],
    options: &[Vec<TokenId>],
    batch_size: usize,
) -> ruminate_models::Result<Array2<f64>> {
    let mut numbers: BTreeMap<&[TokenId], usize> = BTreeMap::new();
    let mut distinct: Vec<&[TokenId]> = vec![];
    let slots: Vec<usize> = prompts
        .iter()
        .map(|prompt| {
            *numbers.entry(prompt).or_insert_with(|| {
                distinct.push(prompt);
                distinct.len() - 1
            })
        })
        .collect();
    let scores: Vec<Vec<f64>> = by_length(&distinct, batch_size, |batch| {
        let rows: Vec<_> = batch.iter().map(|&i| distinct[i].to_vec()).collect();
        let labels = vec![options.to_vec(); rows.len()];
        let log_probs = tch::no_grad(|| model.choice_log_probs(&rows, &labels))?;
        let sums = log_probs.f_sum_dim_intlist(-1, false, Kind::Double)?;
        let sums: Vec<Vec<f64>> = Vec::try_from(sums)?;
        let mean =
            |row: Vec<f64>| row.iter().zip(options).map(|(sum, o)| sum / o.len() as f64).collect::<Vec<_>>();
        Ok::<_, ruminate_models::Error>(sums.into_iter().map(mean).collect())
    })?;
    Ok(Array2::from_shape_fn((prompts.len(), options.len()), |(prompt, option)| {
        scores[slots[prompt]][option]
    }))
}

/// How two judgements become a reward.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum ConsistencyMode {
    /// The gain in the gold label's probability, in `[-1, 1]`: MaRio's.
    #[default]
    Continuous,
    /// -1 where the answer with the rationale is wrong, 0 where it is right with and without, 1 where only the rationale
    /// makes it right.
    Discrete,
}

impl ConsistencyMode {
    /// The reward from the options' scores without (I2O) and with the rationale (IR2O).
    ///
    /// # Errors
    /// When there are no scores, one is no number, or `gold` is none of the options.
    pub fn reward(self, i2o: &[f64], ir2o: &[f64], gold: usize) -> Result<f64, ChoiceError> {
        let (without, with) = (choice_probs(i2o)?, choice_probs(ir2o)?);
        let (Some(p_without), Some(p_with)) = (without.get(gold), with.get(gold)) else {
            return Err(ChoiceError::GoldOutOfRange { gold, choices: with.len().min(without.len()) });
        };
        Ok(match self {
            Self::Continuous => p_with - p_without,
            Self::Discrete if argmax(ir2o) != gold => -1.0,
            Self::Discrete => f64::from(u8::from(argmax(i2o) != gold)),
        })
    }
}

/// A model that chooses among the labels of a data set, with what it has said before.
#[derive(Debug)]
pub struct OptionModel<M> {
    model: M,
    tokenizer: Tokenizer,
    options: Vec<Vec<TokenId>>,
    /// Scores by input text: those of a question do not change while its rationales do.
    known: RefCell<BTreeMap<String, Vec<f64>>>,
}

impl<M: ScoreChoices> OptionModel<M> {
    /// Joins a model with its tokenizer; the options are the labels of the data set.
    ///
    /// # Errors
    /// When the tokenizer fails.
    pub fn new(model: M, tokenizer: Tokenizer, dataset: MarioDataset) -> Result<Self, RewardError> {
        let options =
            dataset.labels().iter().map(|label| tokenizer.encode_target(label)).collect::<Result<_, _>>()?;
        Ok(Self { model, tokenizer, options, known: RefCell::default() })
    }

    /// Drops the scores of earlier calls.
    pub fn forget(&self) {
        self.known.borrow_mut().clear();
    }

    /// Scores `[inputs, labels]` of the labels for each input; no input is scored twice, until the model is told to
    /// [`forget`](Self::forget).
    ///
    /// # Errors
    /// When the tokenizer or the model fails.
    pub fn scores(&self, inputs: &[String], batch_size: usize) -> Result<Array2<f64>, RewardError> {
        let mut known = self.known.borrow_mut();
        let new: Vec<&String> = inputs.iter().filter(|input| !known.contains_key(*input)).collect();
        let prompts = new.iter().map(|input| self.tokenizer.encode(input)).collect::<Result<Vec<_>, _>>()?;
        let scores = option_scores(&self.model, &prompts, &self.options, batch_size)?;
        known.extend(new.into_iter().cloned().zip(scores.outer_iter().map(|row| row.to_vec())));
        let rows: Vec<&Vec<f64>> = inputs.iter().map(|input| &known[input]).collect();
        Ok(Array2::from_shape_fn((inputs.len(), self.options.len()), |(input, label)| rows[input][label]))
    }
}

/// MaRio's consistency reward: how much surer of the *gold* label a model is that reads question and rationale (IR2O) than
/// one that reads the question alone (I2O).
///
/// # Example
/// ```no_run
/// use ruminate_datasets::mario::MarioDataset;
/// use ruminate_models::{T5, Tokenizer};
/// use ruminate_rewards::mario::{Consistency, ConsistencyMode, OptionModel, Response, TextReward};
/// use tch::{Device, Kind};
///
/// let load = |folder: &str| -> Result<_, Box<dyn std::error::Error>> {
///     let t5 = T5::load(folder.as_ref(), Kind::Float, Device::Cpu)?;
///     Ok(OptionModel::new(t5, Tokenizer::open(folder.as_ref())?, MarioDataset::QuaRel)?)
/// };
/// let consistency =
///     Consistency::new(MarioDataset::QuaRel, load("i2o")?, load("ir2o")?, ConsistencyMode::Continuous);
/// let text = "Lead is dense. So the answer is (A).";
/// consistency.scores(&[Response { question: "What sinks? (A) lead (B) cork", gold: "(A)", text }])?;
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
#[derive(Debug)]
pub struct Consistency<M> {
    dataset: MarioDataset,
    i2o: OptionModel<M>,
    ir2o: OptionModel<M>,
    mode: ConsistencyMode,
    batch_size: usize,
}

/// Questions in one pass of a model, as published.
const BATCH: usize = 20;

impl<M: ScoreChoices> Consistency<M> {
    /// Compares two models, 20 questions at a time.
    #[must_use]
    pub fn new(
        dataset: MarioDataset,
        i2o: OptionModel<M>,
        ir2o: OptionModel<M>,
        mode: ConsistencyMode,
    ) -> Self {
        Self { dataset, i2o, ir2o, mode, batch_size: BATCH }
    }

    /// Another number of questions in one pass; the scores do not depend on it.
    #[must_use]
    pub fn batch_size(self, batch_size: usize) -> Self {
        Self { batch_size, ..self }
    }
}

impl<M: ScoreChoices> TextReward for Consistency<M> {
    fn name(&self) -> String {
        super::names::consistency(self.dataset, self.mode)
    }

    fn bounds(&self) -> Option<(f64, f64)> {
        Some((-1.0, 1.0))
    }

    fn scores(&self, responses: &[Response<'_>]) -> Result<Vec<f64>, RewardError> {
        let gold = responses.iter().enumerate().map(|(sample, response)| {
            self.dataset.label_index(response.gold).ok_or_else(|| RewardError::GoldLabel {
                sample,
                label: response.gold.to_string(),
                known: self.dataset.labels(),
            })
        });
        let gold: Vec<usize> = gold.collect::<Result<_, _>>()?;
        let inputs = |of: &dyn Fn(&Response<'_>) -> String| responses.iter().map(of).collect::<Vec<_>>();
        let without = inputs(&|r| i2o_input(self.dataset, r.question));
        let with = inputs(&|r| ir2o_input(self.dataset, r.question, RewardParts::of(r.text).rationale));
        let without = self.i2o.scores(&without, self.batch_size)?;
        let with = self.ir2o.scores(&with, self.batch_size)?;
        let score = |sample: usize| {
            let task = self.dataset.to_string();
            let refuse = |source| RewardError::Choices { sample, task, source };
            let of = |scores: &Array2<f64>| scores.row(sample).to_vec();
            self.mode.reward(&of(&without), &of(&with), gold[sample]).map_err(refuse)
        };
        (0..responses.len()).map(score).collect()
    }

    fn forget(&self) {
        self.i2o.forget();
        self.ir2o.forget();
    }
}

#[cfg(test)]
mod tests {
    use approx::assert_abs_diff_eq;

    use super::*;
    use tch::{Device, Tensor};

    /// Prefers later options, the more so the longer the prompt is; counts the prompts that it reads.
    #[derive(Default)]
    struct Longer(RefCell<Vec<Vec<TokenId>>>);

    impl ScoreChoices for Longer {
        fn choice_log_probs(
            &self,
            prompts: &[Vec<TokenId>],
            choices: &[Vec<Vec<TokenId>>],
        ) -> ruminate_models::Result<Tensor> {
            self.0.borrow_mut().extend(prompts.iter().cloned());
            let options = choices[0].len() as i64;
            let time = choices[0].iter().map(Vec::len).max().unwrap() as i64;
            let log_probs = Tensor::zeros([prompts.len() as i64, options, time], (Kind::Float, Device::Cpu));
            for (i, prompt) in prompts.iter().enumerate() {
                for (j, option) in choices[i].iter().enumerate() {
                    let mut row = log_probs.get(i as i64).get(j as i64).narrow(0, 0, option.len() as i64);
                    let _ = row.fill_(j as f64 * prompt.len() as f64 - 50.0);
                }
            }
            Ok(log_probs)
        }

        fn first_token_logits(
            &self,
            _: &[Vec<TokenId>],
            _: &[Vec<TokenId>],
        ) -> ruminate_models::Result<Vec<Vec<f32>>> {
            Ok(vec![])
        }
    }

    #[test]
    fn scores_are_means_over_tokens_and_equal_prompts_are_read_once() {
        let model = Longer::default();
        let prompts = [vec![5; 3], vec![5; 2], vec![5; 3]];
        let options = [vec![7, 8, 1], vec![9, 1]];
        let scores = option_scores(&model, &prompts, &options, 1).unwrap();
        assert_eq!(scores, ndarray::array![[-50.0, -47.0], [-50.0, -48.0], [-50.0, -47.0]]);
        assert_eq!(model.0.borrow().len(), 2);
    }

    #[test]
    fn rewards_by_hand() {
        let (even, second) = (vec![0.0, 0.0], vec![0.0, 3f64.ln()]);
        let reward = |mode: ConsistencyMode, gold| mode.reward(&even, &second, gold).unwrap();
        assert_abs_diff_eq!(reward(ConsistencyMode::Continuous, 1), 0.25, epsilon = 1e-12);
        assert_abs_diff_eq!(reward(ConsistencyMode::Continuous, 0), -0.25, epsilon = 1e-12);
        assert_eq!(reward(ConsistencyMode::Discrete, 1), 1.0);
        assert_eq!(reward(ConsistencyMode::Discrete, 0), -1.0);
        assert_eq!(ConsistencyMode::Discrete.reward(&second, &second, 1).unwrap(), 0.0);
        assert!(ConsistencyMode::Continuous.reward(&even, &second, 2).is_err());
        assert!(ConsistencyMode::Continuous.reward(&[f64::NAN, 0.0], &second, 0).is_err());
    }
}
