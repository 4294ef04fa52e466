//! The rewards of MaRio: what a written rationale is worth, from its text, its question and the gold label alone.
//!
//! [`Consistency`], [`Accuracy`], [`Plausibility`] and [`Diversity`] are the paper's four; the others are those of its code
//! that can run. Each is a [`TextReward`] and can be used alone; a [`RewardSet`] keeps several in order.

mod consistency;
mod factuality;
mod names;
mod plausibility;
mod set;
mod statistics;
mod text;

pub use consistency::{Consistency, ConsistencyMode, OptionModel, option_scores};
pub use factuality::{Believer, Factuality, FactualityForm};
pub use names::{RewardName, UnknownReward};
pub use plausibility::{Plausibility, statement_with_question};
pub use set::RewardSet;
pub use statistics::{
    Interval, JudgedResponse, QuestionSummary, Summary, bootstrap, by_question, correlation_ratio, mean,
    normalised_average, rounded,
};
pub use text::{
    Accuracy, Diversity, LengthAndDiversity, LengthBetween, LengthMore, NumWords, ngram_diversity, repetition,
};

use crate::{Reward, RewardError, Rewarded, Sample};

/// What a response is about.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct MarioItem {
    /// The question with its options.
    pub question: String,
    /// The gold label.
    pub gold: String,
}

/// A response to be judged.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Response<'a> {
    /// The question with its options.
    pub question: &'a str,
    /// The gold label, e.g. `(B)` or `yes`.
    pub gold: &'a str,
    /// The whole response: rationale, marker and label.
    pub text: &'a str,
}

/// A reward that looks at nothing but text, and so judges responses of any model, also those read from files.
///
/// Every `TextReward` is a [`Reward`] about a [`MarioItem`] too, whatever the policy.
pub trait TextReward {
    /// The name of its column in result files.
    fn name(&self) -> String;

    /// The lowest and the highest score; none where there is no limit.
    fn bounds(&self) -> Option<(f64, f64)>;

    /// One finite score for each response, in their order. A response that cannot be judged is an error.
    ///
    /// # Errors
    /// Whatever prevents a judgement; it names the response by its number.
    fn scores(&self, responses: &[Response<'_>]) -> Result<Vec<f64>, RewardError>;

    /// Drops what it remembers of earlier calls. A score that is remembered may differ in its last bits from one that is
    /// made among other responses; a run that must be the same after a restart forgets where it could have been restarted.
    fn forget(&self) {}
}

impl<P: ?Sized, R: TextReward> Reward<P, MarioItem> for R {
    fn rewards(&self, _: &P, samples: &[Sample<'_, MarioItem>]) -> Result<Vec<Rewarded>, RewardError> {
        let responses: Vec<_> = samples
            .iter()
            .map(|s| Response { question: &s.item.question, gold: &s.item.gold, text: s.text })
            .collect();
        Ok(self.scores(&responses)?.into_iter().map(|score| Rewarded::from(score as f32)).collect())
    }
}
