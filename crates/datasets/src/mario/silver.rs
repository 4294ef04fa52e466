//! From a teacher's responses to training rows.

use super::prompts::with_period;
use super::{MarioDataset, MarioRow, TeacherRow};
use std::collections::BTreeSet;

/// What the silver filter keeps.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Silver {
    /// Rows to train on, in the order of the teacher's file.
    pub train: Vec<MarioRow>,
    /// One row for each development question that the teacher answered, with the rationale `dummy`; only where the
    /// development questions were cut from the training questions.
    pub dev: Vec<MarioRow>,
}

/// Keeps the teacher's responses that have a rationale and the right label; they get a final period and the label in the
/// case of the gold files. Questions in `dev_questions` go to the development rows, whatever the label, where the data set
/// has them from the training questions; other data sets ignore `dev_questions`.
#[must_use]
pub fn silver_filter<'a>(
    dataset: MarioDataset,
    rows: &[TeacherRow],
    dev_questions: impl IntoIterator<Item = &'a str>,
) -> Silver {
    let dev: BTreeSet<&str> =
        if dataset.dev_is_cut_from_train() { dev_questions.into_iter().collect() } else { BTreeSet::new() };
    let mut seen = BTreeSet::new();
    let mut silver = Silver::default();
    for row in rows.iter().filter(|row| !row.predicted_rationale.is_empty()) {
        let [gold, predicted] = [&row.gold_label, &row.predicted_label].map(|l| dataset.normalise_label(l));
        let made = |rationale: String, answer| MarioRow { question: row.question.clone(), rationale, answer };
        if dev.contains(row.question.as_str()) {
            if seen.insert(row.question.as_str()) {
                silver.dev.push(made("dummy".to_string(), gold));
            }
        } else if gold == predicted {
            silver.train.push(made(with_period(&row.predicted_rationale), predicted));
        }
    }
    silver
}
