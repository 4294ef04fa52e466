//! Prompts assembled from token ids, as Crystal does: texts are never joined and encoded again.
//!
//! With `{q}` and `{k}` for the question and a statement, the texts behind the prompts are
//! `{q} \n Knowledge: ` (write a statement), `{q} \n Answer: ` (answer directly) and
//! `{q} \n Knowledge: {k} \n Answer: ` (answer with the statement).

use crate::{Error, Result, TokenId};
use serde::{Deserialize, Serialize};

/// What stands between a question and a statement. The backslash is a character of its own.
pub const KNOWLEDGE_SEPARATOR: &str = r" \n Knowledge: ";

/// What stands before an answer.
pub const ANSWER_SEPARATOR: &str = r" \n Answer: ";

/// Whether to reproduce published arithmetic, its defects included, or to do what it was meant to do.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Compat {
    /// As the published models were made.
    #[default]
    Reference,
    /// Without known defects.
    Corrected,
}

/// Assembles prompts from unpadded ids, each of which ends with eos (a statement may lack it, see [`Compat`]).
///
/// # Example
/// ```
/// use ruminate_datasets::{Compat, Prompts};
///
/// // In these ids 7 stands for "Knowledge:", 8 for "Answer:" and 1 for eos.
/// let prompts = Prompts::new(vec![3, 7, 1], vec![3, 8, 1], 1, Compat::Reference)?;
/// let (question, statement) = ([20, 21, 1], [30, 1]);
/// assert_eq!(prompts.qk(&question), [20, 21, 3, 7, 1]);
/// assert_eq!(prompts.qa(&question), [20, 21, 3, 8, 1]);
/// assert_eq!(prompts.qka(&question, &statement), [20, 21, 3, 7, 30, 3, 8, 1]);
/// # Ok::<(), ruminate_datasets::Error>(())
/// ```
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Prompts {
    knowledge_separator: Vec<TokenId>,
    answer_separator: Vec<TokenId>,
    eos: TokenId,
    compat: Compat,
}

impl Prompts {
    /// Takes [`KNOWLEDGE_SEPARATOR`] and [`ANSWER_SEPARATOR`] as the tokenizer encodes them, eos included.
    ///
    /// # Errors
    /// [`Error::BadSeparator`] if one does not end with its only eos.
    pub fn new(
        knowledge_separator: Vec<TokenId>,
        answer_separator: Vec<TokenId>,
        eos: TokenId,
        compat: Compat,
    ) -> Result<Self> {
        for (which, ids) in [("knowledge", &knowledge_separator), ("answer", &answer_separator)] {
            if ids.iter().position(|&id| id == eos).is_none_or(|at| at + 1 != ids.len()) {
                return Err(Error::BadSeparator { which, ids: ids.clone(), eos });
            }
        }
        Ok(Self { knowledge_separator, answer_separator, eos, compat })
    }

    /// For models without an encoder, which would take an eos for the end of the dialogue: separators without eos, so that prompts
    /// end open. Questions and statements still end with eos, and lose it as under [`Compat::Corrected`].
    #[must_use]
    pub fn open_ended(
        knowledge_separator: Vec<TokenId>,
        answer_separator: Vec<TokenId>,
        eos: TokenId,
    ) -> Self {
        Self { knowledge_separator, answer_separator, eos, compat: Compat::Corrected }
    }

    /// The prompt to write a statement about a question.
    pub fn qk(&self, question: &[TokenId]) -> Vec<TokenId> {
        self.append(question, &self.knowledge_separator)
    }

    /// The prompt to answer a question directly.
    pub fn qa(&self, question: &[TokenId]) -> Vec<TokenId> {
        self.append(question, &self.answer_separator)
    }

    /// The prompt to answer a question with a statement. An empty statement (nothing but eos) gives
    /// [`Prompts::qa`].
    ///
    /// # Reference behaviour
    /// A statement that reached its length limit has no eos; [`Compat::Reference`] loses its last token,
    /// [`Compat::Corrected`] keeps it.
    pub fn qka(&self, question: &[TokenId], statement: &[TokenId]) -> Vec<TokenId> {
        self.append(&self.question_with_statement(question, statement), &self.answer_separator)
    }

    /// A question followed by its separator and a statement, but no answer separator.
    pub fn question_with_statement(&self, question: &[TokenId], statement: &[TokenId]) -> Vec<TokenId> {
        let empty = match self.compat {
            Compat::Reference => statement.len() <= 1,
            Compat::Corrected => statement.is_empty() || statement == [self.eos],
        };
        if empty { question.to_vec() } else { self.append(&self.qk(question), statement) }
    }

    /// Puts `tail` after `ids` in place of the eos of `ids`. Without one, [`Compat::Reference`] overwrites the last id
    /// all the same.
    pub fn append(&self, ids: &[TokenId], tail: &[TokenId]) -> Vec<TokenId> {
        let head = match ids.split_last() {
            Some((last, head)) if self.compat == Compat::Reference || *last == self.eos => head,
            _ => ids,
        };
        [head, tail].concat()
    }
}

/// Pads the encoded labels of a question's choices to `capacity` slots of `length` ids. An unused slot holds eos and
/// pads: its first id is eos, which is how it is recognised.
///
/// # Errors
/// [`Error::TooManyChoices`] and [`Error::LabelTooLong`].
pub fn choice_slots(
    labels: &[Vec<TokenId>],
    capacity: usize,
    length: usize,
    eos: TokenId,
    pad: TokenId,
) -> Result<Vec<Vec<TokenId>>> {
    if labels.len() > capacity {
        return Err(Error::TooManyChoices {
            task: String::new(),
            question: String::new(),
            choices: labels.len(),
            capacity,
        });
    }
    let unused = vec![eos];
    let slots = labels.iter().chain(std::iter::repeat(&unused)).take(capacity).enumerate();
    slots
        .map(|(label, ids)| {
            if ids.len() > length {
                return Err(Error::LabelTooLong { label, tokens: ids.len(), length });
            }
            let mut slot = ids.clone();
            slot.resize(length, pad);
            Ok(slot)
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn open_prompts_hold_no_eos() {
        let prompts = Prompts::open_ended(vec![3, 7], vec![3, 8], 1);
        let (question, statement) = ([5, 20, 21, 1], [30, 31, 1]);
        assert_eq!(prompts.qk(&question), [5, 20, 21, 3, 7]);
        assert_eq!(prompts.qa(&question), [5, 20, 21, 3, 8]);
        assert_eq!(prompts.qka(&question, &statement), [5, 20, 21, 3, 7, 30, 31, 3, 8]);
        // A statement at its limit has no eos, and loses nothing.
        assert_eq!(prompts.qka(&question, &[30, 31]), [5, 20, 21, 3, 7, 30, 31, 3, 8]);
        assert_eq!(prompts.qka(&question, &[1]), prompts.qa(&question));
    }

    fn prompts(compat: Compat) -> Prompts {
        Prompts::new(vec![3, 7, 1], vec![3, 8, 1], 1, compat).unwrap()
    }

    #[test]
    fn an_empty_statement_leaves_the_direct_prompt() {
        for compat in [Compat::Reference, Compat::Corrected] {
            let p = prompts(compat);
            assert_eq!(p.qka(&[20, 1], &[1]), p.qa(&[20, 1]));
            assert_eq!(p.qka(&[20, 1], &[]), p.qa(&[20, 1]));
        }
    }

    #[test]
    fn a_statement_without_eos_keeps_its_end_only_in_corrected_mode() {
        let (question, statement) = ([20, 1], [30, 31]);
        assert_eq!(prompts(Compat::Reference).qka(&question, &statement), [20, 3, 7, 30, 3, 8, 1]);
        assert_eq!(prompts(Compat::Corrected).qka(&question, &statement), [20, 3, 7, 30, 31, 3, 8, 1]);
        assert_eq!(prompts(Compat::Corrected).qka(&question, &[30]), [20, 3, 7, 30, 3, 8, 1]);
    }

    #[test]
    fn separators_are_checked() {
        for bad in [vec![], vec![3, 7], vec![1, 7, 1]] {
            let error = Prompts::new(bad, vec![3, 8, 1], 1, Compat::Reference).unwrap_err().to_string();
            assert!(error.starts_with("the knowledge separator"), "{error}");
        }
    }

    #[test]
    fn slots_are_padded_and_checked() {
        let labels = [vec![71, 1], vec![272, 1]];
        let slots = choice_slots(&labels, 3, 3, 1, 0).unwrap();
        assert_eq!(slots, [[71, 1, 0], [272, 1, 0], [1, 0, 0]]);
        assert!(matches!(choice_slots(&labels, 1, 2, 1, 0), Err(Error::TooManyChoices { choices: 2, .. })));
        assert!(matches!(choice_slots(&labels, 2, 1, 1, 0), Err(Error::LabelTooLong { label: 0, .. })));
    }
}
