//! What the models read and what they learn to write.

use super::answer::{ANSWER_MARKER, response};
use super::{MarioDataset, MarioRow};
use serde::{Deserialize, Serialize};
use std::collections::BTreeSet;

/// What the supervised model learns to write.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Target {
    /// The rationale, then the answer: MaRio's.
    #[default]
    RationaleThenAnswer,
    /// The answer alone, as the published SFT script can train too; with another marker.
    AnswerOnly,
}

/// The target of a row: its rationale, which ends in a period (added behind any other last character), and its label
/// sentence.
#[must_use]
pub fn target(row: &MarioRow) -> String {
    response(&with_period(&row.rationale), &row.answer)
}

/// The target of [`Target::AnswerOnly`].
#[must_use]
pub fn i2o_target(row: &MarioRow) -> String {
    format!("The answer is {}.", row.answer)
}

/// The sentence that states a row's label.
#[must_use]
pub fn label_sentence(row: &MarioRow) -> String {
    format!("{ANSWER_MARKER} {}.", row.answer)
}

/// The rows of the Quark stage: those whose rationale does not hold the marker with a blank behind it already; with
/// `distinct`, only the first row of each question.
#[must_use]
pub fn quark_rows(rows: &[MarioRow], distinct: bool) -> Vec<MarioRow> {
    let mut seen = BTreeSet::new();
    let usable = rows.iter().filter(|row| !row.rationale.contains("So the answer is "));
    usable.filter(|row| !distinct || seen.insert(row.question.as_str())).cloned().collect()
}

/// What the reward model reads that answers from the question alone (I2O).
#[must_use]
pub fn i2o_input(dataset: MarioDataset, question: &str) -> String {
    format!("explain {}", with_choices(dataset, question))
}

/// What the reward model reads that answers with a rationale (IR2O). In training the rationale is one [`with_period`].
///
/// # Example
/// ```
/// use ruminate_datasets::mario::{MarioDataset, ir2o_input};
///
/// let input = ir2o_input(MarioDataset::QuaRel, "Which is heavier? (A) lead (B) air", "Lead is dense.");
/// assert_eq!(input, "Which is heavier? choice: (A) lead choice: (B) air explanation: Lead is dense.");
/// ```
#[must_use]
pub fn ir2o_input(dataset: MarioDataset, question: &str, rationale: &str) -> String {
    format!("{} explanation: {rationale}", with_choices(dataset, question))
}

/// Every occurrence of a label is announced as a choice.
fn with_choices(dataset: MarioDataset, question: &str) -> String {
    if !dataset.has_options_in_question() {
        let choices: Vec<String> = dataset.labels().iter().map(|label| format!("choice: {label}")).collect();
        return format!("{question}: {}", choices.join(" "));
    }
    dataset
        .labels()
        .iter()
        .fold(question.to_string(), |q, label| q.replace(label, &format!("choice: {label}")))
}

/// A rationale as models are trained on it: with a period at the end.
#[must_use]
pub fn with_period(rationale: &str) -> String {
    if rationale.ends_with('.') { rationale.to_string() } else { format!("{rationale}.") }
}
