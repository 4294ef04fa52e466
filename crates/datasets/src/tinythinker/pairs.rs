//! Preference pairs from sampled runs.

use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;

use rand::seq::{IndexedRandom, SliceRandom};
use rand::{Rng, SeedableRng};
use rand_chacha::ChaCha8Rng;
use serde::{Deserialize, Serialize};

use super::stages::{Draft, Stage};
use crate::preference::{PreferenceExample, Preferences};
use crate::{Error, Result};

/// A run through all stages.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Run {
    /// The question.
    pub id: String,
    /// What was written.
    pub draft: Draft,
    /// The label that is right.
    pub gold: char,
    /// The answer, if one could be read.
    pub answer: Option<char>,
}

impl Run {
    fn right(&self) -> bool {
        self.answer == Some(self.gold)
    }

    fn recall(&self) -> &str {
        self.draft.recall().unwrap_or_default()
    }

    fn analysis(&self, option: char) -> Option<&str> {
        self.draft.analyses().iter().find(|(label, _)| *label == option).map(|(_, text)| text.as_str())
    }
}

/// Reads a file of pairs: an array of `{"prompt", "chosen", "rejected"}`, or such lines. Texts may be null, as the published code writes
/// them sometimes. Pairs that cannot be trained on are left out and counted.
///
/// # Errors
/// [`Error::Read`], [`Error::Json`] with item and field, and [`Error::BadField`] for a prompt that does not ask for this stage.
pub fn read_pairs(path: &Path, stage: Stage) -> Result<Preferences> {
    #[derive(Deserialize)]
    #[serde(expecting = "an object with prompt, chosen and rejected")]
    struct Row {
        prompt: String,
        chosen: Option<String>,
        rejected: Option<String>,
    }
    let mut pairs = Preferences::default();
    for (place, Row { prompt, chosen, rejected }) in crate::json::read_rows::<Row>(path)? {
        let asks = match stage {
            Stage::Recall => prompt.ends_with("\nRecall:"),
            Stage::Analyze => prompt.contains("\nAnalyze: For option ") && prompt.ends_with(','),
            Stage::Summarize => prompt.ends_with("\nSummarize:"),
        };
        if !asks {
            let reason = format!("does not ask for the stage {}: `{prompt}`", stage.name());
            return Err(Error::BadField { path: path.into(), place, field: "prompt", reason });
        }
        let (chosen, rejected) = (chosen.unwrap_or_default(), rejected.unwrap_or_default());
        let source = stage.name().into();
        let pair = PreferenceExample { source, ..PreferenceExample::new(prompt, chosen, rejected) };
        match pair.problem() {
            Some(problem) => *pairs.left_out.entry(problem).or_default() += 1,
            None => pairs.examples.push(pair),
        }
    }
    Ok(pairs)
}

/// How pairs are made.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct PairOptions {
    /// Drop pairs whose two texts are equal.
    pub drop_equal: bool,
    /// Drop pairs that were there before.
    pub drop_duplicates: bool,
    /// Most pairs of a question; 0 for no limit.
    pub max_per_question: usize,
    /// Runs without an answer are wrong in the recall stage, as in the published code; otherwise they are left out.
    pub unreadable_is_wrong: bool,
    /// Of draws from the teacher's knowledge.
    pub seed: u64,
}

impl Default for PairOptions {
    fn default() -> Self {
        Self {
            drop_equal: true,
            drop_duplicates: false,
            max_per_question: 0,
            unreadable_is_wrong: true,
            seed: 42,
        }
    }
}

/// What became of questions and pairs, by rule.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct PairCounts {
    /// Pairs that were made.
    pub pairs: usize,
    /// Groups without a wrong run.
    pub nothing_wrong: usize,
    /// Groups without a right run or anything in its place.
    pub nothing_right: usize,
    /// Runs left out because they have no readable answer.
    pub unreadable: usize,
    /// Pairs dropped because their texts are equal.
    pub equal: usize,
    /// Pairs dropped because a text is missing.
    pub missing: usize,
    /// Pairs dropped because they were there before.
    pub duplicates: usize,
    /// Pairs dropped beyond the most of a question.
    pub beyond_limit: usize,
}

/// Takes pairs and keeps the books.
struct Collector<'a> {
    options: &'a PairOptions,
    counts: PairCounts,
    pairs: Vec<PreferenceExample>,
    seen: BTreeSet<[String; 3]>,
    per_question: BTreeMap<String, usize>,
}

impl<'a> Collector<'a> {
    fn new(options: &'a PairOptions) -> Self {
        let (counts, pairs, seen, per_question) = Default::default();
        Self { options, counts, pairs, seen, per_question }
    }

    /// Whether the pair was taken.
    fn put(
        &mut self,
        id: &str,
        stage: Stage,
        prompt: String,
        chosen: Option<&str>,
        rejected: Option<&str>,
    ) -> bool {
        let (Some(chosen), Some(rejected)) = (chosen, rejected) else {
            self.counts.missing += 1;
            return false;
        };
        if self.options.drop_equal && chosen == rejected {
            self.counts.equal += 1;
            return false;
        }
        let key = [prompt.clone(), chosen.to_string(), rejected.to_string()];
        if self.options.drop_duplicates && !self.seen.insert(key) {
            self.counts.duplicates += 1;
            return false;
        }
        let count = self.per_question.entry(id.into()).or_default();
        if self.options.max_per_question > 0 && *count == self.options.max_per_question {
            self.counts.beyond_limit += 1;
            return false;
        }
        *count += 1;
        self.counts.pairs += 1;
        self.pairs.push(PreferenceExample {
            source: stage.name().into(),
            ..PreferenceExample::new(prompt, chosen, rejected)
        });
        true
    }
}

/// The analyses that went with a chosen knowledge, by question block and knowledge.
pub type Backup = BTreeMap<String, Vec<Vec<(char, String)>>>;

/// Pairs of the recall stage, and what the analyze stage needs of them.
#[derive(Debug, Clone, PartialEq)]
pub struct RecallPairs {
    /// The pairs, questions in the order of their texts.
    pub pairs: Vec<PreferenceExample>,
    /// For each pair, the run that its chosen text is from.
    pub chosen: Vec<Run>,
    /// What became of questions and pairs.
    pub counts: PairCounts,
}

impl RecallPairs {
    /// The prompts of the analyze pass with their labels: for each pair, or for each distinct chosen text, one per option.
    #[must_use]
    pub fn next_prompts(&self, distinct: bool) -> Vec<(String, char)> {
        let mut seen = BTreeSet::new();
        let runs = self.chosen.iter().filter(|run| !distinct || seen.insert(run.draft.stated()));
        runs.flat_map(|run| run.draft.analyze_prompts().into_iter().map(|prompt| (prompt, run.gold)))
            .collect()
    }

    /// The analyses that went with the chosen texts.
    #[must_use]
    pub fn backup(&self) -> Backup {
        let mut backup = Backup::new();
        for run in &self.chosen {
            backup.entry(run.draft.stated()).or_default().push(run.draft.analyses().to_vec());
        }
        backup
    }
}

/// Pairs of knowledge: what right runs recalled against what wrong runs did. Where wrong texts are more, the teacher's knowledge of the
/// same question (`teacher`, runs of its items) fills up the right side; where right texts are more, the wrong ones are repeated.
#[must_use]
pub fn recall_pairs(runs: &[Run], teacher: &[Run], options: &PairOptions) -> RecallPairs {
    let mut collector = Collector::new(options);
    let mut chosen_runs = vec![];
    let mut rng = ChaCha8Rng::seed_from_u64(options.seed);
    for group in groups(runs, |run| run.draft.block().to_string()) {
        let readable: Vec<&Run> =
            group.iter().copied().filter(|run| options.unreadable_is_wrong || run.answer.is_some()).collect();
        collector.counts.unreadable += group.len() - readable.len();
        let (right, wrong) = sides(readable, |run| run.recall().to_string());
        if wrong.is_empty() {
            collector.counts.nothing_wrong += 1;
            continue;
        }
        let mut right = right;
        if wrong.len() > right.len() {
            let of_question: Vec<&Run> = teacher.iter().filter(|run| run.id == group[0].id).collect();
            right.extend(draw(&of_question, wrong.len() - right.len(), &mut rng));
        }
        if right.is_empty() {
            collector.counts.nothing_right += 1;
            continue;
        }
        for (right, wrong) in matches(&right, &wrong) {
            let prompt = right.draft.recall_prompt();
            let (chosen, rejected) = (right.draft.recall(), wrong.draft.recall());
            if collector.put(&right.id, Stage::Recall, prompt, chosen, rejected) {
                chosen_runs.push(right.clone());
            }
        }
    }
    RecallPairs { pairs: collector.pairs, chosen: chosen_runs, counts: collector.counts }
}

/// A run of the analyze pass: its knowledge was given.
pub type AnalyzeRun = Run;

/// Pairs of analyses: for each match of a right and a wrong run on the same knowledge, one for the right option and one for that which
/// the wrong run answered. Runs without a readable answer are left out. The shorter side is repeated; where no run is right, the analyses
/// in `backup` take their place.
#[must_use]
pub fn analyze_pairs(
    runs: &[AnalyzeRun],
    backup: &Backup,
    options: &PairOptions,
) -> (Vec<PreferenceExample>, PairCounts) {
    let mut collector = Collector::new(options);
    for group in groups(runs, |run| run.draft.stated()) {
        let readable: Vec<&Run> = group
            .iter()
            .copied()
            .filter(|run| run.answer.is_some_and(|answer| run.draft.labels().contains(&answer)))
            .collect();
        collector.counts.unreadable += group.len() - readable.len();
        let analyzed =
            readable.into_iter().filter(|run| run.answer.is_some_and(|a| run.analysis(a).is_some()));
        let (right, wrong) = sides(analyzed.collect(), |run| format!("{:?}", run.draft.analyses()));
        if wrong.is_empty() {
            collector.counts.nothing_wrong += 1;
            continue;
        }
        let stated = group[0].draft.stated();
        let remembered: Vec<Run> = backup
            .get(&stated)
            .into_iter()
            .flatten()
            .map(|analyses| Run {
                draft: group[0].draft.clone().stating(group[0].draft.recall(), analyses),
                answer: None,
                ..group[0].clone()
            })
            .collect();
        let right: Vec<&Run> = if right.is_empty() { remembered.iter().collect() } else { right };
        if right.is_empty() {
            collector.counts.nothing_right += 1;
            continue;
        }
        for (right, wrong) in matches(&right, &wrong) {
            for option in std::iter::once(wrong.gold).chain(wrong.answer) {
                let prompt = wrong.draft.analyze_prompt(option);
                collector.put(
                    &wrong.id,
                    Stage::Analyze,
                    prompt,
                    right.analysis(option),
                    wrong.analysis(option),
                );
            }
        }
    }
    (collector.pairs, collector.counts)
}

/// Runs on the same question and of the same key, in the order of the keys.
fn groups(runs: &[Run], key: impl Fn(&Run) -> String) -> Vec<Vec<&Run>> {
    let mut groups: BTreeMap<(String, &str), Vec<&Run>> = BTreeMap::new();
    for run in runs {
        groups.entry((key(run), &run.id)).or_default().push(run);
    }
    groups.into_values().collect()
}

/// Right and wrong runs, each text once, without texts that are on both sides.
fn sides(runs: Vec<&Run>, text: impl Fn(&Run) -> String) -> (Vec<&Run>, Vec<&Run>) {
    let (mut right, mut wrong): (Vec<&Run>, Vec<&Run>) = runs.into_iter().partition(|run| run.right());
    for side in [&mut right, &mut wrong] {
        let mut seen = BTreeSet::new();
        side.retain(|run| seen.insert(text(run)));
    }
    let texts = |side: &[&Run]| -> BTreeSet<String> { side.iter().map(|run| text(run)).collect() };
    let (of_right, of_wrong) = (texts(&right), texts(&wrong));
    right.retain(|run| !of_wrong.contains(&text(run)));
    wrong.retain(|run| !of_right.contains(&text(run)));
    (right, wrong)
}

/// `count` random ones: distinct where there are enough.
fn draw<'a>(from: &[&'a Run], count: usize, rng: &mut impl Rng) -> Vec<&'a Run> {
    if from.len() >= count {
        let mut order: Vec<&Run> = from.to_vec();
        order.shuffle(rng);
        order.truncate(count);
        return order;
    }
    (0..count).filter_map(|_| from.choose(rng).copied()).collect()
}

/// Both sides in order; the shorter one is repeated.
fn matches<'a>(right: &[&'a Run], wrong: &[&'a Run]) -> Vec<(&'a Run, &'a Run)> {
    let count = right.len().max(wrong.len());
    right.iter().copied().cycle().zip(wrong.iter().copied().cycle()).take(count).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::tinythinker::Question;
    use proptest::prelude::*;

    fn run(recall: &str, analyses: [&str; 2], answer: Option<char>) -> Run {
        let question = Question::new("1", "q?", vec!["x".into(), "y".into()], 'A').unwrap();
        let analyses = [('A', analyses[0].to_string()), ('B', analyses[1].to_string())];
        Run {
            id: "1".into(),
            draft: Draft::new(&question).stating(Some(recall), &analyses),
            gold: 'A',
            answer,
        }
    }

    #[test]
    fn files_read_back_and_prompts_of_another_stage_are_named() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("pairs.json");
        let write = |text: &str| std::fs::write(&path, text).unwrap();
        let question = Question::new("1", "q?", vec!["x".into(), "y".into()], 'A').unwrap();
        let draft = Draft::new(&question);
        let (recall, analyze) = (draft.recall_prompt(), draft.analyze_prompt('B'));
        let pair = |prompt: &str| serde_json::json!({"prompt": prompt, "chosen": "a", "rejected": "b"});
        let row = |chosen: serde_json::Value| serde_json::json!({"prompt": recall, "chosen": chosen, "rejected": "b"});
        write(&serde_json::json!([pair(&recall), row("b".into()), row(serde_json::Value::Null)]).to_string());
        let read = read_pairs(&path, Stage::Recall).unwrap();
        assert_eq!((read.examples.len(), read.left_out.values().sum::<usize>()), (1, 2));
        assert_eq!(read.examples[0].source, "recall");
        // Lines are taken as well.
        write(&format!("{}\n{}\n", pair(&analyze), pair(&recall)));
        let error = read_pairs(&path, Stage::Analyze).unwrap_err().to_string();
        assert!(error.contains("line 2, field prompt") && error.contains("analyze"), "{error}");
        for text in ["[{\"prompt\": 3}]", "[{\"prompt\": \"q\"}]", "{\"prompt\": ", "[3]"] {
            write(text);
            let error = read_pairs(&path, Stage::Recall).unwrap_err().to_string();
            assert!(error.contains("pairs.json"), "{text}: {error}");
        }
    }

    #[test]
    fn rules_are_counted() {
        let options = PairOptions::default();
        let wrong = || run("bad.", ["a.", "b."], Some('B'));
        assert_eq!(recall_pairs(&[wrong()], &[], &options).counts.nothing_right, 1);
        assert_eq!(
            recall_pairs(&[run("good.", ["a.", "b."], Some('A'))], &[], &options).counts.nothing_wrong,
            1
        );
        let teacher = [run("bad.", ["a.", "b."], Some('A'))];
        let equal = recall_pairs(&[wrong()], &teacher, &options);
        assert_eq!((equal.counts.equal, equal.counts.pairs), (1, 0));
        let unreadable = run("bad.", ["a.", "b."], None);
        let left_out = PairOptions { unreadable_is_wrong: false, ..options.clone() };
        assert_eq!(recall_pairs(std::slice::from_ref(&unreadable), &teacher, &left_out).counts.unreadable, 1);
        let (pairs, counts) = analyze_pairs(&[unreadable, wrong()], &Backup::new(), &options);
        assert_eq!((pairs.len(), counts.unreadable, counts.nothing_right), (0, 1, 1));
        // No letter of the question.
        let other = run("k.", ["a.", "b."], Some('C'));
        assert_eq!(analyze_pairs(&[other], &Backup::new(), &options).1.unreadable, 1);
    }

    #[test]
    fn limits_and_duplicates() {
        let runs: Vec<Run> = (0..4)
            .flat_map(|i| {
                [
                    run("k.", [&format!("good {i}."), "b."], Some('A')),
                    run("k.", [&format!("bad {i}."), "b."], Some('B')),
                ]
            })
            .collect();
        let count = |options: PairOptions| analyze_pairs(&runs, &Backup::new(), &options).1;
        let all = count(PairOptions { drop_equal: false, ..PairOptions::default() });
        assert_eq!((all.pairs, all.duplicates), (8, 0));
        let distinct =
            count(PairOptions { drop_equal: false, drop_duplicates: true, ..PairOptions::default() });
        assert_eq!((distinct.pairs, distinct.duplicates), (5, 3));
        let few = count(PairOptions { max_per_question: 2, ..PairOptions::default() });
        assert_eq!((few.pairs, few.equal, few.beyond_limit), (2, 4, 2));
    }

    proptest! {
        #[test]
        fn pairs_are_of_right_and_wrong_texts(
            sampled in prop::collection::vec((0u8..5, prop::option::of(0u8..3)), 0..12),
            teacher in 0u8..4,
            seed: u64,
        ) {
            let runs: Vec<Run> = sampled
                .iter()
                .map(|(text, answer)| run(&format!("r{text}."), ["a.", "b."], answer.map(|a| char::from(b'A' + a))))
                .collect();
            let teacher: Vec<Run> = (0..teacher).map(|i| run(&format!("t{i}."), ["a.", "b."], Some('A'))).collect();
            let options = PairOptions { seed, ..PairOptions::default() };
            let made = recall_pairs(&runs, &teacher, &options);
            prop_assert_eq!(&made, &recall_pairs(&runs, &teacher, &options));
            prop_assert_eq!(made.pairs.len(), made.chosen.len());
            let texts = |right: bool| runs.iter().filter(move |run| run.right() == right).map(|run| run.recall().to_string());
            let (right, wrong): (BTreeSet<_>, BTreeSet<_>) = (texts(true).collect(), texts(false).collect());
            for pair in &made.pairs {
                prop_assert!(wrong.contains(&pair.rejected) && !right.contains(&pair.rejected));
                prop_assert!(pair.chosen.starts_with('t') || (right.contains(&pair.chosen) && !wrong.contains(&pair.chosen)));
            }
        }
    }
}
