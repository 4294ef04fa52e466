//! Rationale and label inside a response.

/// What parts rationale and label in a response.
pub const ANSWER_MARKER: &str = "So the answer is";

/// The label of a response: the text between the first and the second marker (or the end), without surrounding white
/// space, then without surrounding periods, in lower case. Empty without a marker. A response is correct when its label
/// equals that of the gold response.
///
/// # Example
/// ```
/// use ruminate_datasets::mario::label;
///
/// assert_eq!(label("Birds have wings. So the answer is (B)."), "(b)");
/// assert_eq!(label("So the answer is . no ."), " no "); // white space goes first
/// assert_eq!(label("So the answer is: (A)"), ": (a)"); // and so it is wrong
/// ```
#[must_use]
pub fn label(response: &str) -> String {
    let piece = response.split(ANSWER_MARKER).nth(1).unwrap_or("");
    piece.trim().trim_matches('.').to_lowercase()
}

/// The rationale of a response, as plausibility and diversity judge it: the text before the first marker, trimmed.
#[must_use]
pub fn rationale(response: &str) -> &str {
    response.split(ANSWER_MARKER).next().unwrap_or("").trim()
}

/// Whether a sampled response may be learnt from: it must contain the marker.
#[must_use]
pub fn is_valid(response: &str) -> bool {
    response.contains(ANSWER_MARKER)
}

/// A response from its parts.
#[must_use]
pub fn response(rationale: &str, label: &str) -> String {
    format!("{rationale} {ANSWER_MARKER} {label}.")
}

/// A response as the consistency reward takes it apart: at the marker *with* the blank behind it, nothing trimmed before
/// it, the case kept.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct RewardParts<'a> {
    /// The text before the first marker, trailing blank included; the whole response without a marker.
    pub rationale: &'a str,
    /// The text between the first and the second marker, without surrounding white space and then periods.
    pub label: &'a str,
}

impl<'a> RewardParts<'a> {
    /// Takes a response apart.
    #[must_use]
    pub fn of(response: &'a str) -> Self {
        let mut pieces = response.split("So the answer is ");
        let rationale = pieces.next().unwrap_or("");
        Self { rationale, label: pieces.next().unwrap_or("").trim().trim_matches('.') }
    }
}

/// Sentences of a response, counted by its periods.
#[must_use]
pub fn num_sents(response: &str) -> usize {
    response.matches('.').count()
}

/// Words of a response: the pieces between single blanks, so that two blanks in a row count one more.
#[must_use]
pub fn num_words(response: &str) -> usize {
    response.split(' ').count()
}
