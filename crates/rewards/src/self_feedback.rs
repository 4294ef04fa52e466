//! Crystal's reward (arXiv 2310.04921): how much a statement helps the policy itself to answer.

use std::collections::BTreeMap;

use ruminate_datasets::Prompts;
use ruminate_models::{ScoreChoices, TokenId, by_length};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use crate::choices::{UNUSED_SLOT_SCORE, argmax, choice_probs};
use crate::{ChoiceError, Reward, RewardError, Rewarded, Sample};

/// A multiple-choice question as a model reads it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct EncodedQuestion {
    /// The question with its choices, end token included.
    pub ids: Vec<TokenId>,
    /// The first token of each choice's label.
    pub choices: Vec<TokenId>,
    /// Index of the right choice.
    pub gold: usize,
    /// The label of the right choice, end token included: what supervised steps train on.
    pub answer: Vec<TokenId>,
}

/// How the scores of the choices become a reward, numbered as in the reference. `s` are raw logits of the choices'
/// first tokens, `p` their softmax, `n` is their number.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize, JsonSchema)]
#[serde(try_from = "u8", into = "u8")]
#[schemars(extend("maximum" = 7))]
pub enum Shape {
    /// 0: the gain in `p(gold)`.
    ProbGain,
    /// 1: `p(gold)` with the statement.
    Prob,
    /// 2: the gain in `s(gold)`.
    ScoreGain,
    /// 3: `s(gold)` with the statement.
    Score,
    /// 4: the gain in `tanh(s(gold) - best other s) / 2`.
    #[default]
    Margin,
    /// 5: as 4 with the sign in place of the hyperbolic tangent.
    MarginSign,
    /// 6: the gain in `tanh(p(gold) - 1/n) / 2`.
    Chance,
    /// 7: as 6 with the sign in place of the hyperbolic tangent.
    ChanceSign,
}

impl Shape {
    /// All of them, in the order of their numbers.
    pub const ALL: [Self; 8] = [
        Self::ProbGain,
        Self::Prob,
        Self::ScoreGain,
        Self::Score,
        Self::Margin,
        Self::MarginSign,
        Self::Chance,
        Self::ChanceSign,
    ];

    /// What the scores of one prompt are worth.
    ///
    /// # Errors
    /// When there are no scores, one is no number, or `gold` is none of the choices.
    pub fn worth(self, scores: &[f64], gold: usize) -> Result<f64, ChoiceError> {
        let probs = choice_probs(scores)?;
        let (Some(&score), Some(&prob)) = (scores.get(gold), probs.get(gold)) else {
            return Err(ChoiceError::GoldOutOfRange { gold, choices: scores.len() });
        };
        let others = scores.iter().enumerate().filter(|&(i, _)| i != gold).map(|(_, &s)| s);
        // A lone choice is compared with an empty slot, and always wins.
        let margin = score - others.fold(UNUSED_SLOT_SCORE, f64::max);
        let chance = prob - 1.0 / scores.len() as f64;
        Ok(match self {
            Self::ProbGain | Self::Prob => prob,
            Self::ScoreGain | Self::Score => score,
            Self::Margin => 0.5 * margin.tanh(),
            Self::MarginSign => 0.5 * sign(margin),
            Self::Chance => 0.5 * chance.tanh(),
            Self::ChanceSign => 0.5 * sign(chance),
        })
    }

    /// The reward of a statement from the scores with it and without it.
    ///
    /// # Errors
    /// As [`worth`](Self::worth).
    pub fn reward(self, with: &[f64], without: &[f64], gold: usize) -> Result<f64, ChoiceError> {
        let worth = self.worth(with, gold)?;
        Ok(if matches!(self, Self::Prob | Self::Score) {
            worth
        } else {
            worth - self.worth(without, gold)?
        })
    }
}

/// 0 for 0, unlike [`f64::signum`].
fn sign(x: f64) -> f64 {
    if x == 0.0 { 0.0 } else { x.signum() }
}

impl From<Shape> for u8 {
    fn from(shape: Shape) -> Self {
        shape as Self
    }
}

impl TryFrom<u8> for Shape {
    type Error = String;

    fn try_from(number: u8) -> Result<Self, String> {
        Self::ALL
            .get(usize::from(number))
            .copied()
            .ok_or_else(|| format!("there is no reward shape {number}; take 0 to 7"))
    }
}

/// The reward: the policy answers with and without its statement, and the difference counts (section 3.2 of the
/// paper). The policy is asked as it is now, and nothing flows back into it.
///
/// Parts: `acc` and `acc_knowless` (1 where the answer with and without the statement is right) and `acc_delta`
/// (their difference: 1 where the statement mended the answer, -1 where it broke it).
#[derive(Debug, Clone)]
pub struct SelfFeedback {
    prompts: Prompts,
    shape: Shape,
    batch_size: usize,
}

impl SelfFeedback {
    /// Names of its parts: whether the answer with the statement is right, without it, and the difference.
    pub const PARTS: [&'static str; 3] = ["acc", "acc_knowless", "acc_delta"];

    /// Assembles the two prompts of a question with `prompts`, and asks about `batch_size` prompts at a time.
    #[must_use]
    pub fn new(prompts: Prompts, shape: Shape, batch_size: usize) -> Self {
        Self { prompts, shape, batch_size }
    }
}

impl<P: ScoreChoices + ?Sized> Reward<P, EncodedQuestion> for SelfFeedback {
    fn rewards(
        &self,
        policy: &P,
        samples: &[Sample<'_, EncodedQuestion>],
    ) -> Result<Vec<Rewarded>, RewardError> {
        // Samples of one question share the prompt without a statement; equal statements share theirs.
        let asked = samples.iter().flat_map(|sample| {
            let question = sample.item;
            [self.prompts.qa(&question.ids), self.prompts.qka(&question.ids, sample.response)]
                .map(|prompt| (prompt, question.choices.clone()))
        });
        let scores = first_token_scores(policy, asked, self.batch_size, |_, _| Ok::<_, RewardError>(()))?;
        let judge = |(i, (sample, pair)): (usize, (&Sample<'_, EncodedQuestion>, &[Vec<f64>]))| {
            let (without, with, gold) = (&pair[0], &pair[1], sample.item.gold);
            let refuse = |source| RewardError::Choices { sample: i, task: sample.task.into(), source };
            let value = self.shape.reward(with, without, gold).map_err(refuse)?;
            let [knowless, acc] = [without, with].map(|scores| f32::from(u8::from(argmax(scores) == gold)));
            let parts =
                Self::PARTS.map(Into::into).into_iter().zip([acc, knowless, acc - knowless]).collect();
            Ok(Rewarded { value: value as f32, parts })
        };
        samples.iter().zip(scores.chunks(2)).enumerate().map(judge).collect()
    }
}

/// Raw logits of tokens at the first position of the answer to a prompt, without gradients. Prompts that occur several
/// times go through the model once, prompts of similar length together; `progress` is told how many are done and
/// how many there are.
///
/// # Errors
/// Those of the model and of `progress`.
pub fn first_token_scores<P, E>(
    policy: &P,
    asked: impl Iterator<Item = (Vec<TokenId>, Vec<TokenId>)>,
    batch_size: usize,
    mut progress: impl FnMut(u64, u64) -> Result<(), E>,
) -> Result<Vec<Vec<f64>>, E>
where
    P: ScoreChoices + ?Sized,
    E: From<ruminate_models::Error>,
{
    let mut known: BTreeMap<(Vec<TokenId>, Vec<TokenId>), usize> = BTreeMap::new();
    let (mut prompts, mut tokens) = (vec![], vec![]);
    let slots: Vec<usize> = asked
        .map(|question| {
            *known.entry(question).or_insert_with_key(|(prompt, choices)| {
                prompts.push(prompt.clone());
                tokens.push(choices.clone());
                prompts.len() - 1
            })
        })
        .collect();
    let (mut done, total) = (0, prompts.len() as u64);
    let scores = by_length(&prompts, batch_size, |batch| {
        let rows: Vec<_> = batch.iter().map(|&i| prompts[i].clone()).collect();
        let ids: Vec<_> = batch.iter().map(|&i| tokens[i].clone()).collect();
        let logits = tch::no_grad(|| policy.first_token_logits(&rows, &ids))?;
        done += batch.len() as u64;
        progress(done, total)?;
        let wide = |row: Vec<f32>| row.into_iter().map(f64::from).collect::<Vec<f64>>();
        Ok::<_, E>(logits.into_iter().map(wide).collect())
    })?;
    Ok(slots.into_iter().map(|slot| scores[slot].clone()).collect())
}

#[cfg(test)]
mod tests {
    use approx::assert_abs_diff_eq;

    use super::*;
    use ruminate_datasets::Compat;
    use std::cell::RefCell;
    use tch::Tensor;

    /// Scores a prompt by its length, and remembers which prompts it was asked.
    #[derive(Default)]
    struct Lengths {
        asked: RefCell<Vec<Vec<TokenId>>>,
    }

    impl ScoreChoices for Lengths {
        fn choice_log_probs(
            &self,
            _: &[Vec<TokenId>],
            _: &[Vec<Vec<TokenId>>],
        ) -> ruminate_models::Result<Tensor> {
            Ok(Tensor::new())
        }

        fn first_token_logits(
            &self,
            prompts: &[Vec<TokenId>],
            tokens: &[Vec<TokenId>],
        ) -> ruminate_models::Result<Vec<Vec<f32>>> {
            self.asked.borrow_mut().extend(prompts.iter().cloned());
            Ok(prompts
                .iter()
                .zip(tokens)
                .map(|(p, t)| (0..t.len()).map(|i| i as f32 * (p.len() as f32 - 6.0)).collect())
                .collect())
        }
    }

    fn feedback(shape: Shape) -> SelfFeedback {
        let prompts = Prompts::new(vec![3, 7, 1], vec![3, 8, 1], 1, Compat::Reference).unwrap();
        SelfFeedback::new(prompts, shape, 4)
    }

    #[test]
    fn prompts_are_asked_once_and_rewards_keep_their_order() {
        let question =
            EncodedQuestion { ids: vec![20, 21, 1], choices: vec![30, 31], gold: 1, answer: vec![31, 1] };
        let statements: [&[TokenId]; 4] = [&[40, 1], &[40, 41, 1], &[40, 1], &[1]];
        let samples: Vec<_> =
            statements.map(|s| Sample { task: "t", item: &question, response: s, text: "" }).into();
        let policy = Lengths::default();
        let rewards = feedback(Shape::Margin).rewards(&policy, &samples).unwrap();
        // Without a statement the prompt has 5 tokens: the margin is -1. A statement adds two tokens and itself.
        let expected = [2.0f64, 3.0, 2.0, -1.0].map(|margin| 0.5 * (margin.tanh() - (-1.0f64).tanh()));
        for (reward, expected) in rewards.iter().zip(expected) {
            assert_abs_diff_eq!(f64::from(reward.value), expected, epsilon = 1e-6);
        }
        let parts = |values: [f32; 3]| {
            SelfFeedback::PARTS.map(Into::into).into_iter().zip(values).collect::<Vec<_>>()
        };
        assert_eq!(rewards[0].parts, parts([1.0, 0.0, 1.0]));
        assert_eq!(rewards[3].parts, parts([0.0, 0.0, 0.0]));
        assert_eq!(policy.asked.borrow().len(), 3);
    }

    #[test]
    fn a_sample_without_choices_is_named() {
        let question = EncodedQuestion { ids: vec![20, 1], choices: vec![30], gold: 1, answer: vec![] };
        let sample = Sample { task: "wg", item: &question, response: &[40, 1], text: "" };
        let error = feedback(Shape::Margin).rewards(&Lengths::default(), &[sample]).unwrap_err();
        assert_eq!(error.to_string(), "sample 0 (task wg)");
        assert!(std::error::Error::source(&error).unwrap().to_string().contains("choice 1"));
    }

    #[test]
    fn a_lone_choice_wins_with_and_without() {
        assert_eq!(Shape::Margin.worth(&[-3.0], 0).unwrap(), 0.5);
        assert_eq!(Shape::Margin.reward(&[-3.0], &[2.0], 0).unwrap(), 0.0);
    }

    #[test]
    fn even_choices_have_no_sign() {
        assert_eq!(Shape::MarginSign.worth(&[2.0, 2.0], 1).unwrap(), 0.0);
        assert_eq!(Shape::ChanceSign.worth(&[2.0, 2.0], 1).unwrap(), 0.0);
    }

    #[test]
    fn shapes_are_numbers_in_files() {
        for (number, shape) in Shape::ALL.into_iter().enumerate() {
            assert_eq!(serde_json::to_string(&shape).unwrap(), number.to_string());
            assert_eq!(serde_json::from_str::<Shape>(&number.to_string()).unwrap(), shape);
        }
        let error = serde_json::from_str::<Shape>("8").unwrap_err().to_string();
        assert!(error.contains("take 0 to 7"), "{error}");
    }
}
