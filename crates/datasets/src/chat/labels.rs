//! Which tokens of a text are trained.

use std::ops::Range;

use super::{ChatError, Result};
use crate::TokenId;

/// The label of a position without loss.
pub const IGNORED: TokenId = -100;

/// Which tokens are trained: those that share a byte with a span. `offsets` are ranges of bytes; tokens that the tokenizer
/// added have an empty one.
#[must_use]
pub fn trained_tokens(offsets: &[Range<usize>], spans: &[Range<usize>]) -> Vec<bool> {
    let overlaps =
        |token: &Range<usize>| spans.iter().any(|span| token.start.max(span.start) < token.end.min(span.end));
    offsets.iter().map(overlaps).collect()
}

/// The ids as labels, with [`IGNORED`] for tokens that are not trained. Losses shift them by one position.
///
/// # Errors
/// [`ChatError::Offsets`].
///
/// # Example
/// ```
/// use ruminate_datasets::chat::labels;
/// // Four tokens of the text "U: A</s>", of which "A</s>" is trained; the first one is the begin token.
/// let offsets = [0..0, 0..2, 2..4, 4..8];
/// assert_eq!(labels(&[1, 7, 8, 2], &offsets, &[3..8])?, [-100, -100, 8, 2]);
/// # Ok::<(), ruminate_datasets::chat::ChatError>(())
/// ```
pub fn labels(ids: &[TokenId], offsets: &[Range<usize>], spans: &[Range<usize>]) -> Result<Vec<TokenId>> {
    if ids.len() != offsets.len() {
        return Err(ChatError::Offsets { ids: ids.len(), offsets: offsets.len() });
    }
    let trained = trained_tokens(offsets, spans);
    Ok(ids.iter().zip(trained).map(|(&id, trained)| if trained { id } else { IGNORED }).collect())
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn ids_and_offsets_come_in_pairs() {
        assert!(labels(&[1], &[], &[]).is_err());
    }

    proptest! {
        #[test]
        fn a_token_is_trained_if_one_of_its_bytes_is(
            lengths in prop::collection::vec(0usize..4, 0..20),
            spans in prop::collection::vec((0usize..40, 0usize..6), 0..4),
        ) {
            let mut at = 0;
            let offsets: Vec<_> = lengths.iter().map(|length| { at += length; at - length..at }).collect();
            let spans: Vec<_> = spans.iter().map(|&(start, length)| start..start + length).collect();
            let trained = trained_tokens(&offsets, &spans);
            for (token, trained) in offsets.into_iter().zip(trained) {
                let mut bytes = token;
                prop_assert_eq!(trained, bytes.any(|byte| spans.iter().any(|span| span.contains(&byte))));
            }
        }
    }
}
