//! From what the teacher wrote to items: validation, vote, choice.

use rand::SeedableRng;
use rand::seq::SliceRandom;
use rand_chacha::ChaCha8Rng;
use serde::{Deserialize, Serialize};

use super::question::Question;
use super::stages::with_full_stop;
use crate::python;
use crate::teacher::Completion;

/// A completion that is in order, in the order of the teacher's lines.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Candidate {
    /// General knowledge, with a full stop.
    pub knowledge: String,
    /// By option: is it called correct, and why.
    pub reasons: Vec<(char, bool, String)>,
    /// The option that is called correct.
    pub answer: char,
}

/// Why a completion is not used.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum Rejected {
    /// It was cut off.
    #[error("it was cut off")]
    CutOff,
    /// It does not begin with key information.
    #[error("its first line has no `Key Information:`")]
    NoKeyInformation,
    /// A line gives no verdict on an option of the question.
    #[error("a verdict is not of the form `X is correct.`, X being an option")]
    BadVerdict,
    /// An option has two verdicts.
    #[error("an option is judged twice")]
    JudgedTwice,
    /// Several options are called correct.
    #[error("more than one option is called correct")]
    SeveralAnswers,
    /// No option is called correct.
    #[error("no option is called correct")]
    NoAnswer,
    /// Some option has no reason.
    #[error("it has not one reason for each option")]
    MissingReason,
}

/// Checks a completion. Missing options are not looked for here; [`items_of`] does.
///
/// # Errors
/// Why it is not used.
pub fn check_candidate(completion: &Completion, labels: &[char]) -> Result<Candidate, Rejected> {
    if completion.finish_reason == "length" {
        return Err(Rejected::CutOff);
    }
    let text = fresh_lines(&completion.content);
    let mut lines = text.lines().map(str::trim).filter(|line| !line.is_empty());
    let first = lines.next().ok_or(Rejected::NoKeyInformation)?;
    let (_, knowledge) = first.split_once("Key Information:").ok_or(Rejected::NoKeyInformation)?;
    let mut candidate = Candidate { knowledge: with_full_stop(knowledge), reasons: vec![], answer: ' ' };
    let mut answer = None;
    for line in lines.take(labels.len()) {
        let judged = if line.contains("Explanations:") && line.contains("correct") {
            line.rsplit("Explanations: ").next().unwrap_or(line)
        } else if line.contains("is correct") || line.contains("is incorrect") {
            line
        } else {
            continue;
        };
        let delimiters = ["Because ", "Because, ", "Although ", "While "];
        let Some((verdict, reason)) = delimiters.iter().find_map(|delimiter| judged.split_once(delimiter))
        else {
            continue;
        };
        let (label, correct) = parse_verdict(verdict.trim(), labels).ok_or(Rejected::BadVerdict)?;
        if candidate.reasons.iter().any(|&(seen, ..)| seen == label) {
            return Err(Rejected::JudgedTwice);
        }
        if correct && answer.replace(label).is_some() {
            return Err(Rejected::SeveralAnswers);
        }
        candidate.reasons.push((label, correct, reason.trim().into()));
    }
    candidate.answer = answer.ok_or(Rejected::NoAnswer)?;
    Ok(candidate)
}

/// `X is correct.` or `X is incorrect.`
fn parse_verdict(text: &str, labels: &[char]) -> Option<(char, bool)> {
    let label = text.chars().next().filter(|label| labels.contains(label))?;
    match &text[label.len_utf8()..] {
        " is correct." => Some((label, true)),
        " is incorrect." => Some((label, false)),
        _ => None,
    }
}

/// Drops what stands before the key information, and puts `Explanations:` on a line of its own together with what follows it, one
/// blank behind the colon, whether or not there was white space.
fn fresh_lines(content: &str) -> String {
    const LABEL: &str = "Explanations:";
    let mut text = content.to_string();
    if let Some(start) = content.find("Key Information")
        && let Some(end) = content[start..].find(LABEL)
    {
        text = format!("{}\n{}", &content[start..start + end], &content[start + end..]);
    }
    let mut parts = text.split(LABEL);
    let mut joined = parts.next().unwrap_or_default().to_string();
    for part in parts {
        joined.push_str(LABEL);
        joined.push(' ');
        joined.push_str(part.trim_start_matches(python::is_space));
    }
    joined
}

/// The completions of a question, checked.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Checked {
    /// Those that are in order.
    pub accepted: Vec<Candidate>,
    /// Why the others are not.
    pub rejected: Vec<Rejected>,
}

impl Checked {
    /// Whether a completion was cut off, so that the next request should allow twice as many tokens.
    #[must_use]
    pub fn cut_off(&self) -> bool {
        self.rejected.contains(&Rejected::CutOff)
    }
}

/// Checks all completions of a question.
#[must_use]
pub fn check_all(completions: &[Completion], labels: &[char]) -> Checked {
    let mut checked = Checked::default();
    for completion in completions {
        match check_candidate(completion, labels) {
            Ok(candidate) => checked.accepted.push(candidate),
            Err(reason) => checked.rejected.push(reason),
        }
    }
    checked
}

/// What becomes of a gold label that the teacher does not agree with.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum LabelPolicy {
    /// The teacher's most frequent answer takes its place, as in the published code.
    #[default]
    TeacherVote,
    /// It stays, and candidates that disagree are dropped.
    GoldOnly,
}

/// The label that a question is trained with: the most frequent answer, the first seen of equally frequent ones; the gold label where
/// there is no candidate.
#[must_use]
pub fn vote_on(candidates: &[Candidate], gold: char, policy: LabelPolicy) -> char {
    if policy == LabelPolicy::GoldOnly {
        return gold;
    }
    let answers: Vec<Option<char>> = candidates.iter().map(|candidate| Some(candidate.answer)).collect();
    super::answers::vote(&answers, super::NoAnswer::Abstains).unwrap_or(gold)
}

/// Edits (insertions, deletions, substitutions of characters) between two texts.
#[must_use]
pub fn edit_distance(a: &str, b: &str) -> usize {
    strsim::levenshtein(a, b)
}

/// Indices of texts that are more than 10 edits away from every other.
#[must_use]
pub fn far_from_all(texts: &[&str]) -> Vec<usize> {
    let far = |i: usize, j: usize| i == j || edit_distance(texts[i], texts[j]) > 10;
    (0..texts.len()).filter(|&i| (0..texts.len()).all(|j| far(i, j))).collect()
}

/// Chooses up to `keep` texts: first those [far from all others](far_from_all) in their order, then random draws from the rest.
#[must_use]
pub fn diverse(texts: &[&str], keep: usize, seed: u64) -> Vec<usize> {
    let mut chosen = far_from_all(texts);
    chosen.truncate(keep);
    let mut rest: Vec<usize> = (0..texts.len()).filter(|i| !chosen.contains(i)).collect();
    rest.shuffle(&mut ChaCha8Rng::seed_from_u64(seed));
    chosen.extend(rest);
    chosen.truncate(keep);
    chosen
}

/// A training item, in the form of the published files.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
#[serde(expecting = "an object with input, GT, general_knowledge and specific_knowledge")]
pub struct Item {
    /// Stem and options as the teacher reads them.
    pub input: String,
    /// The label.
    #[serde(rename = "GT")]
    pub gold: String,
    /// Knowledge about the question.
    pub general_knowledge: String,
    /// `For option X, …` for each option.
    pub specific_knowledge: Vec<String>,
}

impl Item {
    /// The question that it is about.
    ///
    /// # Errors
    /// The field and what is wrong with it.
    pub fn question(&self, id: &str) -> Result<Question, (&'static str, String)> {
        let bad = || ("input", format!("`{}` has no line that begins with `Options: `", self.input));
        let (stem, options) = self.input.rsplit_once("\nOptions: ").ok_or_else(bad)?;
        Question::from_option_line(id, stem, options, &self.gold)
    }
}

/// The items of a question from its accepted candidates (those of all rounds, so that one question has one label), and how many
/// candidates lack the reason of an option. At most `keep` are chosen, by [`diverse`].
#[must_use]
pub fn items_of(
    question: &Question,
    accepted: &[Candidate],
    policy: LabelPolicy,
    keep: usize,
    seed: u64,
) -> (Vec<Item>, usize) {
    let label = vote_on(accepted, question.gold, policy);
    let agreeing: Vec<&Candidate> = accepted.iter().filter(|candidate| candidate.answer == label).collect();
    let texts: Vec<&str> = agreeing.iter().map(|candidate| candidate.knowledge.as_str()).collect();
    let chosen = diverse(&texts, keep, seed);
    let count = chosen.len();
    let whole = chosen.into_iter().map(|i| agreeing[i]).filter(|c| c.reasons.len() == question.options.len());
    let items: Vec<Item> = whole
        .map(|candidate| Item {
            input: format!("{}\nOptions: {}", question.stem, question.option_line()),
            gold: label.into(),
            general_knowledge: candidate.knowledge.clone(),
            specific_knowledge: candidate
                .reasons
                .iter()
                .map(|(label, _, reason)| format!("For option {label}, {}", with_full_stop(reason)))
                .collect(),
        })
        .collect();
    let dropped = count - items.len();
    (items, dropped)
}

/// The next request about a question.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Retry {
    /// Candidates to ask for.
    pub n: usize,
    /// Tokens to allow for each.
    pub max_tokens: u32,
}

/// What one response gave.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Extraction {
    /// Its items.
    pub items: Vec<Item>,
    /// What is to be asked again.
    pub retry: Option<Retry>,
}

/// Items and next request from one response to a request for `asked`. A response without completions is one that failed, and is
/// asked for again.
#[must_use]
pub fn extract(
    question: &Question,
    completions: &[Completion],
    asked: Retry,
    policy: LabelPolicy,
    keep: usize,
    seed: u64,
) -> Extraction {
    if completions.is_empty() {
        return Extraction { items: vec![], retry: Some(asked) };
    }
    let checked = check_all(completions, &question.labels());
    let (items, dropped) = items_of(question, &checked.accepted, policy, keep, seed);
    let missing = checked.rejected.len() + dropped;
    let factor = if checked.cut_off() { 2 } else { 1 };
    let retry = Retry { n: missing.min(asked.n.max(1)), max_tokens: asked.max_tokens.saturating_mul(factor) };
    Extraction { items, retry: (missing > 0).then_some(retry) }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn completion(content: &str) -> Completion {
        Completion { content: content.into(), finish_reason: "stop".into() }
    }

    #[test]
    fn what_the_published_code_accepts_or_dies_of_is_rejected() {
        let check = |content: &str| check_candidate(&completion(content), &['A', 'B']).map(|c| c.answer);
        let head = "Key Information: k\nExplanations: ";
        assert_eq!(check(&format!("{head}A is correct. Because x\nB is incorrect. Because y")), Ok('A'));
        for blank in ["", "\n\n", " \u{3000}\t"] {
            let content = format!(
                "Key Information: k\nExplanations:{blank}A is correct. Because x\nB is incorrect. Because y"
            );
            assert_eq!(check(&content), Ok('A'), "{blank:?}");
        }
        for (content, reason) in [
            (String::new(), Rejected::NoKeyInformation),
            ("\n \n".into(), Rejected::NoKeyInformation),
            (format!("{head}A is correct. Because x\nB is correct. Because y"), Rejected::SeveralAnswers),
            (format!("{head}A is correct. Because x\nA is incorrect. Because y"), Rejected::JudgedTwice),
            (format!("{head}C is correct. Because x\nA is incorrect. Because y"), Rejected::BadVerdict),
            (format!("{head}A is quite correct. Because x"), Rejected::BadVerdict),
            (format!("{head}A is correct, x\nB is incorrect. Because y"), Rejected::NoAnswer),
            ("Key Information: k".into(), Rejected::NoAnswer),
        ] {
            assert_eq!(check(&content), Err(reason), "{content}");
        }
    }

    #[test]
    fn gold_stays_where_it_is_asked_to() {
        let candidate = |answer: char| Candidate {
            knowledge: "k.".into(),
            reasons: vec![('A', answer == 'A', "x".into()), ('B', answer == 'B', "y".into())],
            answer,
        };
        let question = Question::new("1", "q?", vec!["x".into(), "y".into()], 'A').unwrap();
        let accepted = [candidate('B'), candidate('B'), candidate('A')];
        let labels = |policy| {
            let (items, _) = items_of(&question, &accepted, policy, 8, 1);
            items.into_iter().map(|item| item.gold).collect::<Vec<_>>()
        };
        assert_eq!(labels(LabelPolicy::TeacherVote), ["B", "B"]);
        assert_eq!(labels(LabelPolicy::GoldOnly), ["A"]);
        let failed = Retry { n: 3, max_tokens: 7 };
        assert_eq!(extract(&question, &[], failed, LabelPolicy::TeacherVote, 8, 1).retry, Some(failed));
    }

    proptest! {
        #[test]
        fn choices_are_distinct_and_as_many_as_can_be(texts in prop::collection::vec("[ab]{0,20}", 0..8), keep in 0usize..9, seed: u64) {
            let texts: Vec<&str> = texts.iter().map(String::as_str).collect();
            let mut chosen = diverse(&texts, keep, seed);
            let far: Vec<usize> = far_from_all(&texts).into_iter().take(keep).collect();
            prop_assert_eq!(&chosen[..far.len()], &far[..]);
            chosen.sort_unstable();
            chosen.dedup();
            prop_assert_eq!(chosen.len(), keep.min(texts.len()));
        }

        #[test]
        fn no_completion_makes_the_check_panic(
            content in "(\\PC|\\n|Key Information:|Explanations:| |A is correct\\. Because |B is incorrect\\. ){0,14}",
        ) {
            if let Ok(candidate) = check_candidate(&completion(&content), &['A', 'B']) {
                prop_assert_eq!(candidate.reasons.iter().filter(|r| r.1).count(), 1);
            }
        }
    }
}
