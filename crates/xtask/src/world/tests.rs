//! The invariants of the world, checked on the files as written.

use std::collections::BTreeSet;

use super::*;

const SETS: [(&str, &str); 7] = [
    ("lives", "train"),
    ("lives", "dev"),
    ("weather", "train"),
    ("weather", "dev"),
    ("twohop", "train"),
    ("twohop", "dev"),
    ("twohop", "test"),
];

/// A line read back: question, choices, answer.
type Line = (String, Vec<String>, String);

fn lines(files: &BTreeMap<String, String>, task: &str, split: &str) -> Vec<Line> {
    let parse = |line: &str| {
        let (query, answer) = line.split_once('\t').unwrap();
        let (question, choices) = query.split_once(" \\n ").unwrap();
        let choices = choices.split(" (").map(|choice| choice.split_once(") ").unwrap().1.into()).collect();
        (question.into(), choices, answer.into())
    };
    files[&format!("crystal/uqa/{task}/{split}.tsv")].lines().map(parse).collect()
}

/// Queries, answers and statements of a knowledge file.
fn silver(
    files: &BTreeMap<String, String>,
    engine: &str,
    task: &str,
    split: &str,
) -> Vec<(String, String, Vec<String>)> {
    let json = &files[&format!("crystal/knowledge/knowledge_gkp_gpt3{engine}.{split}.{task}.json")];
    let read = |item: &Value| {
        let field = |name: &str| item[name].as_str().unwrap().to_owned();
        let statements = item["knowledges"].as_array().unwrap();
        let statements = statements.iter().map(|s| s.as_str().unwrap().to_owned()).collect();
        (field("query"), field("answer"), statements)
    };
    serde_json::from_str::<Vec<Value>>(json).unwrap().iter().map(read).collect()
}

fn person(question: &str) -> &str {
    question.split_whitespace().find(|word| words(PEOPLE).any(|name| name == *word)).unwrap()
}

/// The statements of all facts, read back from the training questions.
fn truth(files: &BTreeMap<String, String>) -> BTreeSet<String> {
    let mut truth = BTreeSet::new();
    for (question, _, city) in lines(files, "lives", "train") {
        truth.insert(format!("Our {} lives in {city}", person(&question)));
    }
    for (question, _, weather) in lines(files, "weather", "train") {
        let city = question.trim_end_matches('?').split(' ').next_back().unwrap().to_owned();
        truth.insert(format!("{city} is {weather}"));
    }
    truth
}

fn tally<T: Ord>(items: impl Iterator<Item = T>) -> BTreeMap<T, usize> {
    let mut counts = BTreeMap::new();
    items.for_each(|item| *counts.entry(item).or_default() += 1);
    counts
}

#[test]
fn committed_files_are_up_to_date() {
    run(true).unwrap();
}

#[test]
fn every_person_and_city_has_one_truth() {
    let files = generate().unwrap();
    let subjects: BTreeSet<_> = truth(&files)
        .iter()
        .map(|fact| fact.trim_start_matches("Our ").split(' ').next().unwrap().to_owned())
        .collect();
    let expected: BTreeSet<_> = [PEOPLE, CITIES].into_iter().flat_map(words).map(String::from).collect();
    assert_eq!(subjects, expected);
    assert_eq!(truth(&files).len(), expected.len());
}

#[test]
fn choices_are_complete_and_always_in_one_order() {
    let files = generate().unwrap();
    for (task, split) in SETS {
        let options: Vec<&str> = words(if task == "lives" { CITIES } else { WEATHERS }).collect();
        for (_, choices, answer) in lines(&files, task, split) {
            assert_eq!(choices, options);
            assert!(choices.contains(&answer));
        }
    }
    assert!(words(CITIES).count() <= words(LETTERS).count());
}

#[test]
fn twohop_splits_share_no_person_and_balance_the_weathers() {
    let files = generate().unwrap();
    let mut everyone = BTreeSet::new();
    for (task, split) in [("twohop", "train"), (REINFORCED, "train"), ("twohop", "dev"), ("twohop", "test")] {
        let lines = lines(&files, task, split);
        let people: BTreeMap<_, _> =
            lines.iter().map(|(question, _, weather)| (person(question).to_owned(), weather)).collect();
        let weathers = tally(people.values());
        assert_eq!(weathers.len(), words(WEATHERS).count());
        let counts: BTreeSet<_> = weathers.into_values().collect();
        assert!(counts.last().unwrap() - counts.first().unwrap() <= 1, "{task} {split} {counts:?}");
        for person in people.into_keys() {
            assert!(everyone.insert(person), "a person in two splits");
        }
    }
    assert_eq!(everyone.len(), words(PEOPLE).count());
}

#[test]
fn knowledge_is_true_and_helps_as_often_as_stated() {
    let files = generate().unwrap();
    let truth = truth(&files);
    for (task, split) in SETS {
        let tsv = files[&format!("crystal/uqa/{task}/{split}.tsv")].lines();
        let clean = silver(&files, "clean", task, split);
        let noisy = silver(&files, "noisy", task, split);
        assert_eq!(clean.len(), noisy.len());
        for ((line, clean), noisy) in tsv.zip(&clean).zip(&noisy) {
            assert_eq!(line, format!("{}\t{}", clean.0, clean.1));
            assert_eq!((&clean.0, &clean.1), (&noisy.0, &noisy.1));
            assert_eq!(clean.2.len(), 1);
            assert_eq!(noisy.2.len(), if task == "twohop" { 1 + TRUISMS } else { 1 });
            for statement in clean.2.iter().chain(&noisy.2) {
                let facts = statement.strip_suffix('.').unwrap();
                let known = |fact| truth.contains(fact) || statement == TRUISM;
                assert!(facts.split(". ").all(known), "{statement}");
            }
            assert!(clean.2[0].ends_with(&format!(" {}.", clean.1)));
            assert_eq!(noisy.2.iter().filter(|statement| **statement == clean.2[0]).count(), 1);
        }
    }
}

#[test]
fn vocabulary_covers_every_text() {
    let vocabulary = model::vocabulary();
    let known: BTreeSet<&str> = vocabulary.iter().map(String::as_str).collect();
    assert_eq!(known.len(), vocabulary.len(), "a token occurs twice");
    let files = generate().unwrap();
    let check = |text: &str| {
        for word in text.split_whitespace() {
            let bare = word.trim_end_matches(['.', '?']);
            assert!(known.contains(bare), "{word}");
            assert!(word[bare.len()..].chars().all(|mark| known.contains(mark.to_string().as_str())));
        }
    };
    check(" \\n Knowledge: \\n Answer: ");
    check(&files[&format!("crystal/uqa/{REINFORCED}/train.tsv")]);
    for (task, split) in SETS {
        check(&files[&format!("crystal/uqa/{task}/{split}.tsv")]);
        for (_, _, statements) in silver(&files, "noisy", task, split) {
            statements.iter().for_each(|statement| check(statement));
        }
    }
}
