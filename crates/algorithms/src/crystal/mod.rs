//! Crystal (arXiv 2310.04921): one T5 that first writes a statement of knowledge about a question and then picks a
//! choice with the statement in its input.
//!
//! [`Imitation`] is Stage I, supervised imitation of a large model's statements; [`evaluate`] samples statements and
//! combines the answers that they lead to.

mod data;
mod encoder;
mod evaluation;
mod imitation;
mod plan;

pub use data::{CrystalData, Notice, read_eval, read_silver};
pub use encoder::{Lengths, QuestionEncoder};
pub use evaluation::{
    EvaluationConfig, EvaluationReport, KnowledgeSource, TaskAccuracy, evaluate, evaluation_folder,
    write_evaluation,
};
pub use imitation::{BestBy, Imitation, ImitationConfig};

use ruminate_datasets::Annotated;
use ruminate_models::TokenId;

use crate::Result;

/// The largest number of choices of a question.
pub(crate) fn most_choices<'a>(questions: impl Iterator<Item = &'a Annotated>) -> usize {
    questions.map(|item| item.question.choices.len()).max().unwrap_or(0)
}

/// Runs `work` on rows in batches of similar length and puts the results back into their order, so that short rows
/// are not padded to the longest of all. `work` gets the indices of its rows.
pub(crate) fn by_length<T>(
    rows: &[Vec<TokenId>],
    batch_size: usize,
    mut work: impl FnMut(&[usize]) -> Result<Vec<T>>,
) -> Result<Vec<T>> {
    let mut order: Vec<usize> = (0..rows.len()).collect();
    order.sort_by_key(|&i| rows[i].len());
    let mut results: Vec<Option<T>> = rows.iter().map(|_| None).collect();
    for batch in order.chunks(batch_size.max(1)) {
        for (&i, result) in batch.iter().zip(work(batch)?) {
            results[i] = Some(result);
        }
    }
    Ok(results.into_iter().flatten().collect())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn by_length_puts_the_results_back_into_their_order() {
        let lengths = [5, 1, 9, 1, 3, 9, 2];
        let rows: Vec<Vec<TokenId>> = lengths.iter().map(|&n| vec![7; n]).collect();
        for batch_size in [0, 1, 2, 3, 100] {
            let mut batches = vec![];
            let results = by_length(&rows, batch_size, |batch| {
                batches.push(batch.to_vec());
                Ok(batch.iter().map(|&i| (i, rows[i].len())).collect())
            });
            let expected: Vec<_> = lengths.iter().copied().enumerate().collect();
            assert_eq!(results.unwrap(), expected, "{batch_size}");
            assert!(batches.iter().all(|b| b.len() <= batch_size.max(1)));
            // Neighbours in a batch are neighbours in length, equal ones in the order in which they came.
            assert_eq!(batches.concat(), [1, 3, 6, 4, 0, 2, 5]);
        }
        assert_eq!(by_length(&[], 4, |_| Ok(vec![()])).unwrap(), []);
        let refused = by_length::<()>(&rows, 4, |_| Err(crate::Error::config("x", "no")));
        assert!(refused.is_err());
    }
}
