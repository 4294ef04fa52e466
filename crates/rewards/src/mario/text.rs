//! Rewards that count.

use std::collections::BTreeSet;
use std::ops::RangeInclusive;

use ruminate_datasets::mario::{label, num_sents, num_words, rationale};

use super::{Response, TextReward};
use crate::RewardError;

/// How many of a text's n-grams are repetitions, in `[0, 1)`: 1 minus the share of distinct ones. 0 for a text of fewer
/// than `n` words. Words are what white space parts; case and punctuation count.
#[must_use]
pub fn repetition(text: &str, n: usize) -> f64 {
    let words: Vec<&str> = text.split_whitespace().collect();
    let ngrams = words.windows(n.max(1));
    let total = ngrams.len();
    if total == 0 {
        return 0.0;
    }
    1.0 - ngrams.collect::<BTreeSet<_>>().len() as f64 / total as f64
}

/// The product of the shares of distinct n-grams, in `(0, 1]`.
#[must_use]
pub fn ngram_diversity(text: &str, n: RangeInclusive<usize>) -> f64 {
    n.map(|n| 1.0 - repetition(text, n)).product()
}

/// How little a response repeats itself. Texts of one word, and empty ones, score 1.
///
/// # Example
/// ```
/// use ruminate_rewards::mario::{Diversity, Response, TextReward};
///
/// let text = "It is wet and it is wet and it is wet. So the answer is (A).";
/// let responses = [Response { question: "Why? (A) wet (B) dry", gold: "(A)", text }];
/// assert!(Diversity::Rationale.scores(&responses)?[0] < 0.5);
/// # Ok::<(), ruminate_rewards::RewardError>(())
/// ```
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Diversity {
    /// Pairs, triples and quadruples of words of the rationale: MaRio's.
    #[default]
    Rationale,
    /// Triples and quadruples of the whole response.
    WholeResponse,
}

impl TextReward for Diversity {
    fn name(&self) -> String {
        match self {
            Self::Rationale => "diversity",
            Self::WholeResponse => "diversity-3-4",
        }
        .to_string()
    }

    fn bounds(&self) -> Option<(f64, f64)> {
        Some((0.0, 1.0))
    }

    fn scores(&self, responses: &[Response<'_>]) -> Result<Vec<f64>, RewardError> {
        let score = |response: &Response<'_>| match self {
            Self::Rationale => ngram_diversity(rationale(response.text), 2..=4),
            Self::WholeResponse => ngram_diversity(response.text, 3..=4),
        };
        Ok(responses.iter().map(score).collect())
    }
}

/// 1 for a response with the gold label, else 0.
///
/// # Example
/// ```
/// use ruminate_rewards::mario::{Accuracy, Response, TextReward};
///
/// let response = |text| Response { question: "Is ice cold?", gold: "yes", text };
/// let responses = [response("It is frozen. So the answer is yes."), response("So the answer is no.")];
/// assert_eq!(Accuracy.scores(&responses)?, [1.0, 0.0]);
/// # Ok::<(), ruminate_rewards::RewardError>(())
/// ```
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Accuracy;

impl TextReward for Accuracy {
    fn name(&self) -> String {
        "accuracy".to_string()
    }

    fn bounds(&self) -> Option<(f64, f64)> {
        Some((0.0, 1.0))
    }

    fn scores(&self, responses: &[Response<'_>]) -> Result<Vec<f64>, RewardError> {
        let right = |r: &Response<'_>| label(r.text) == r.gold.trim().trim_matches('.').to_lowercase();
        Ok(responses.iter().map(|r| f64::from(u8::from(right(r)))).collect())
    }
}

/// Words of the whole response.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct NumWords;

impl TextReward for NumWords {
    fn name(&self) -> String {
        "num_words".to_string()
    }

    fn bounds(&self) -> Option<(f64, f64)> {
        None
    }

    fn scores(&self, responses: &[Response<'_>]) -> Result<Vec<f64>, RewardError> {
        Ok(responses.iter().map(|r| num_words(r.text) as f64).collect())
    }
}

/// Periods of the whole response: longer is better.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct LengthMore;

impl TextReward for LengthMore {
    fn name(&self) -> String {
        "length-more".to_string()
    }

    fn bounds(&self) -> Option<(f64, f64)> {
        None
    }

    fn scores(&self, responses: &[Response<'_>]) -> Result<Vec<f64>, RewardError> {
        Ok(responses.iter().map(|r| num_sents(r.text) as f64).collect())
    }
}

/// A parabola over the number of periods, 0 at both ends and highest between them: `(n - min) * (max - n)`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct LengthBetween {
    /// Fewest periods.
    pub min: u32,
    /// Most periods.
    pub max: u32,
}

impl TextReward for LengthBetween {
    fn name(&self) -> String {
        format!("length-min-{}-max-{}", self.min, self.max)
    }

    fn bounds(&self) -> Option<(f64, f64)> {
        None
    }

    fn scores(&self, responses: &[Response<'_>]) -> Result<Vec<f64>, RewardError> {
        let score = |n: f64| (n - f64::from(self.min)) * (f64::from(self.max) - n);
        Ok(responses.iter().map(|r| score(num_sents(r.text) as f64)).collect())
    }
}

/// Periods of the whole response, times its diversity over triples and quadruples of words: longer is better, as long as it says
/// something new.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct LengthAndDiversity;

impl TextReward for LengthAndDiversity {
    fn name(&self) -> String {
        "length-more_and_diversity-3-4".to_string()
    }

    fn bounds(&self) -> Option<(f64, f64)> {
        None
    }

    fn scores(&self, responses: &[Response<'_>]) -> Result<Vec<f64>, RewardError> {
        let [lengths, diversities] =
            [LengthMore.scores(responses)?, Diversity::WholeResponse.scores(responses)?];
        Ok(lengths.iter().zip(diversities).map(|(length, diversity)| length * diversity).collect())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::mario::RewardSet;
    use proptest::prelude::*;

    #[test]
    fn lengths() {
        let response = [Response { question: "", gold: "", text: "One. Two.  So the answer is no." }];
        assert_eq!(NumWords.scores(&response).unwrap(), [8.0]);
        assert_eq!(LengthMore.scores(&response).unwrap(), [3.0]);
        let between = LengthBetween { min: 2, max: 5 };
        assert_eq!(between.scores(&response).unwrap(), [2.0]);
        assert_eq!(between.name(), "length-min-2-max-5");
        let repeated = [Response { question: "", gold: "", text: "So it is. So it is. So it is." }];
        // Three of seven triples are distinct, and three of six quadruples.
        let score = LengthAndDiversity.scores(&repeated).unwrap()[0];
        approx::assert_abs_diff_eq!(score, 3.0 * (3.0 / 7.0) * (3.0 / 6.0), epsilon = 1e-12);
        assert_eq!(LengthAndDiversity.scores(&response).unwrap(), [3.0]);
    }

    proptest! {
        #[test]
        fn scores_keep_within_their_bounds(text in "([ab.] ?){0,40}(So the answer is [AB].)?", gold in "[AB]") {
            let set = RewardSet::new().add(Accuracy).add(Diversity::Rationale).add(Diversity::WholeResponse);
            let scores = set.scores(&[Response { question: "", gold: &gold, text: &text }]).unwrap();
            for (score, bounds) in scores.row(0).iter().zip(set.bounds()) {
                let (min, max) = bounds.unwrap();
                prop_assert!((min..=max).contains(score), "{}", score);
            }
        }

        #[test]
        fn saying_it_twice_is_less_diverse(words in prop::collection::vec("[a-z]{1,6}", 4..20)) {
            let once = words.join(" ");
            let (single, double) = (ngram_diversity(&once, 2..=4), ngram_diversity(&format!("{once} {once}"), 2..=4));
            prop_assert!(double < single, "{} {}", single, double);
        }
    }
}
