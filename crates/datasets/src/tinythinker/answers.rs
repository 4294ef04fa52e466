//! Answers in texts, accuracy and votes.

/// The sentence that an answer stands in.
const SENTENCE: &str = "the answer is option ";

/// The first answer in a text: a capital letter in `the answer is option X.`, case-sensitive.
#[must_use]
pub fn answer(text: &str) -> Option<char> {
    text.match_indices(SENTENCE).find_map(|(i, _)| {
        let mut rest = text[i + SENTENCE.len()..].chars();
        let letter = rest.next().filter(char::is_ascii_uppercase)?;
        (rest.next() == Some('.')).then_some(letter)
    })
}

/// As [`answer`], but a letter that is no option is no answer.
#[must_use]
pub fn answer_of(text: &str, labels: &[char]) -> Option<char> {
    answer(text).filter(|letter| labels.contains(letter))
}

/// Percentage of rows whose answer is the gold label. No answer is a wrong one.
#[must_use]
pub fn accuracy_percent(rows: impl IntoIterator<Item = (Option<char>, char)>) -> f64 {
    let (right, all) = rows.into_iter().fold((0u64, 0u64), |(right, all), (answer, gold)| {
        (right + u64::from(answer == Some(gold)), all + 1)
    });
    right as f64 / all.max(1) as f64 * 100.0
}

/// What a run without an answer does in a vote.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum NoAnswer {
    /// It abstains.
    #[default]
    Abstains,
    /// It votes for no answer, as in the published code.
    Votes,
}

/// The most frequent answer; of equally frequent ones that which was seen first. Nothing if there is no vote.
#[must_use]
pub fn vote(answers: &[Option<char>], no_answer: NoAnswer) -> Option<char> {
    let mut counts: Vec<(Option<char>, usize)> = vec![];
    for &answer in answers.iter().filter(|answer| no_answer == NoAnswer::Votes || answer.is_some()) {
        match counts.iter_mut().find(|(seen, _)| *seen == answer) {
            Some((_, count)) => *count += 1,
            None => counts.push((answer, 1)),
        }
    }
    // The last of the largest would win; reversed, that is the first.
    counts.into_iter().rev().max_by_key(|&(_, count)| count).and_then(|(answer, _)| answer)
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn letters_outside_the_options_are_no_answer() {
        assert_eq!(answer("So the answer is option Z."), Some('Z'));
        assert_eq!(answer_of("So the answer is option Z.", &['A', 'B']), None);
        assert_eq!(answer("the answer is option É."), None);
        assert_eq!(answer("the answer is option the answer is option B."), Some('B'));
    }

    #[test]
    fn nobody_votes_for_nothing() {
        assert_eq!(vote(&[], NoAnswer::Abstains), None);
        assert_eq!(vote(&[None, None, Some('B')], NoAnswer::Abstains), Some('B'));
        assert_eq!(vote(&[None, None, Some('B')], NoAnswer::Votes), None);
        assert_eq!(accuracy_percent([]), 0.0);
    }

    proptest! {
        #[test]
        fn no_answer_is_more_frequent_than_the_winner(answers in prop::collection::vec(prop::option::of(0u8..4), 1..20)) {
            let answers: Vec<Option<char>> = answers.iter().map(|a| a.map(|a| char::from(b'A' + a))).collect();
            let count = |of: Option<char>| answers.iter().filter(|&&a| a == of).count();
            let winner = vote(&answers, NoAnswer::Abstains);
            for &other in answers.iter().filter(|a| a.is_some() && **a != winner) {
                prop_assert!(count(other) <= count(winner));
                if count(other) == count(winner) {
                    let first = |of| answers.iter().position(|&a| a == of);
                    prop_assert!(first(winner) < first(other));
                }
            }
            prop_assert_eq!(winner.is_none(), answers.iter().all(Option::is_none));
        }
    }
}
