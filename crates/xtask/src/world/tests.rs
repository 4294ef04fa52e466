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
    check(" \\n Knowledge: \\n Answer: So the answer is (A). explain choice: explanation: ");
    for path in ["qasc/raw/train", "qasc/kept/train", "statements/train"] {
        for row in mario_rows(&files, path) {
            ["question", "rationale", "answer", "statement"]
                .into_iter()
                .filter_map(|f| row[f].as_str())
                .for_each(check);
        }
    }
    check(&files[&format!("crystal/uqa/{REINFORCED}/train.tsv")]);
    for (task, split) in SETS {
        check(&files[&format!("crystal/uqa/{task}/{split}.tsv")]);
        for (_, _, statements) in silver(&files, "noisy", task, split) {
            statements.iter().for_each(|statement| check(statement));
        }
    }
}

fn mario_rows(files: &BTreeMap<String, String>, path: &str) -> Vec<Value> {
    files[&format!("mario/{path}.jsonl")].lines().map(|line| serde_json::from_str(line).unwrap()).collect()
}

fn text<'a>(row: &'a Value, field: &str) -> &'a str {
    row[field].as_str().unwrap()
}

/// The option that a label stands for.
fn option<'a>(question: &'a str, label: &str) -> &'a str {
    question.split_once(&format!("{label} ")).unwrap().1.split(' ').next().unwrap()
}

#[test]
fn the_teacher_is_as_sloppy_as_stated() {
    let files = generate().unwrap();
    let truth = truth(&files);
    for (folder, people) in [("raw", TRAIN_PEOPLE), ("kept", TRAIN_PEOPLE + REINFORCED_PEOPLE)] {
        let rows = mario_rows(&files, &format!("qasc/{folder}/train"));
        let twohop: Vec<&Value> = rows
            .iter()
            .filter(|row| {
                text(row, "question").contains("weather") && !text(row, "question").contains("weather in")
            })
            .collect();
        let asked = tally(twohop.iter().map(|row| text(row, "question")));
        assert_eq!(asked.len(), people);
        assert!(asked.values().all(|&count| count == 6));
        let kinds = tally(twohop.iter().map(|row| text(row, "rationale").split(' ').next().unwrap()));
        let [third, all] = [people / 3, people];
        assert_eq!(
            kinds,
            BTreeMap::from([
                ("Every", all + 2 * third),
                ("Indeed", all + 2 * third),
                ("Our", all),
                ("Perhaps", all + 2 * third)
            ])
        );
        for row in &twohop {
            let (rationale, answer) =
                (text(row, "rationale"), option(text(row, "question"), text(row, "answer")));
            let facts: Vec<&str> = rationale.trim_end_matches('.').split(". ").collect();
            let (kind, lives) = facts[0].split_once(' ').unwrap();
            match kind {
                "Every" => assert_eq!(rationale, TRUISM),
                "Our" | "Indeed" => assert!(truth.contains(&format!("Our {lives}")), "{rationale}"),
                _ => assert!(!truth.contains(&format!("Our {lives}")), "{rationale}"),
            }
            if kind != "Every" {
                let city = lives.split(' ').next_back().unwrap();
                assert!(truth.contains(&format!("{city} is {answer}")), "{rationale} {answer}");
            }
        }
    }
}

#[test]
fn held_out_people_are_strangers_to_the_teacher() {
    let files = generate().unwrap();
    let people = |path: &str| -> BTreeSet<String> {
        let rows = mario_rows(&files, path);
        let twohop = rows
            .iter()
            .map(|row| text(row, "question"))
            .filter(|q| q.contains("weather") && !q.contains("weather in"));
        twohop.map(|question| person(question).to_owned()).collect()
    };
    let known = people("qasc/kept/train");
    assert!(people("qasc/raw/train").is_subset(&known));
    for split in ["dev", "test"] {
        assert!(people(&format!("qasc/raw/{split}")).is_disjoint(&known));
        assert_eq!(
            mario_rows(&files, &format!("qasc/raw/{split}")),
            mario_rows(&files, &format!("qasc/kept/{split}"))
        );
    }
}

#[test]
fn statements_are_what_they_are_said_to_be() {
    let files = generate().unwrap();
    let truth = truth(&files);
    for split in ["train", "dev"] {
        let rows = mario_rows(&files, &format!("statements/{split}"));
        let plausible = rows.iter().filter(|row| row["plausible"] == true).count();
        assert!(plausible.abs_diff(rows.len() - plausible) < rows.len() / 20, "{split} {plausible}");
        for row in rows {
            let known = |fact: &str| {
                let (first, rest) = fact.split_once(' ').unwrap();
                let lives = ["Our", "Indeed", "Perhaps"].contains(&first);
                let fact = if lives { format!("Our {rest}") } else { fact.to_owned() };
                truth.contains(&fact) || fact == TRUISM.trim_end_matches('.')
            };
            let facts = text(&row, "statement").trim_end_matches('.').split(". ");
            assert_eq!(facts.into_iter().all(known), row["plausible"] == true, "{row}");
        }
    }
}

#[test]
fn held_out_weathers_follow_from_taught_facts_only() {
    let files = generate().unwrap();
    let rows = |name: &str| -> Vec<Value> {
        let text = &files[&format!("tinythinker/{name}.jsonl")];
        text.lines().map(|line| serde_json::from_str(line).unwrap()).collect()
    };
    let items: Vec<Value> = serde_json::from_str(&files["tinythinker/items.json"]).unwrap();
    let vocabulary = tinythinker::vocabulary();
    let known: BTreeSet<&str> = vocabulary.iter().map(String::as_str).collect();
    let mut helpful = 0;
    let mut taught = BTreeSet::new();
    for item in &items {
        let text = |field: &str| item[field].as_str().unwrap().to_owned();
        let (input, knowledge) = (text("input"), text("general_knowledge"));
        let (stem, options) = input.split_once("\nOptions: ").unwrap();
        let gold = options.split_once(&format!("{}. ", text("GT"))).unwrap().1.split(", ").next().unwrap();
        if stem.contains("weather") {
            taught.insert(stem.to_owned());
            helpful += usize::from(knowledge.starts_with("Our"));
        }
        let reasons: Vec<&str> =
            item["specific_knowledge"].as_array().unwrap().iter().map(|r| r.as_str().unwrap()).collect();
        assert_eq!(reasons.len(), options.split(", ").count());
        if knowledge.starts_with("Our") {
            assert!(knowledge.ends_with(&format!("is {gold}.")), "{knowledge}");
            let right: Vec<_> = reasons.iter().filter(|reason| !reason.contains("not")).collect();
            assert!(right.len() == 1 && right[0].ends_with(&format!("is {gold}.")), "{reasons:?}");
        } else {
            assert!(reasons.iter().all(|reason| reason.contains("Perhaps")), "{reasons:?}");
        }
        let all = [stem, &knowledge, &reasons.join(" ").replace(',', " , ")].join(" ");
        for word in all.split_whitespace() {
            assert!(known.contains(word.trim_end_matches(['.', '?'])), "{word}");
        }
    }
    assert_eq!((taught.len(), helpful), (TRAIN_PEOPLE, TRAIN_PEOPLE * 3 / 2));
    let stems = |name: &str| -> BTreeSet<String> {
        rows(name).iter().map(|row| row["question"]["stem"].as_str().unwrap().to_owned()).collect()
    };
    let held_out = &stems("dev") | &stems("test");
    assert!(stems("train").is_disjoint(&held_out) && stems("reflect").is_disjoint(&held_out));
    assert!(taught.is_subset(&stems("reflect")) && held_out.is_disjoint(&taught));
    // Of the people with one trait, every weather has as many.
    let mut shares: BTreeMap<(String, String), BTreeMap<String, usize>> = BTreeMap::new();
    let answer = |row: &Value| {
        let key = usize::from(row["answerKey"].as_str().unwrap().as_bytes()[0] - b'A');
        row["question"]["choices"][key]["text"].as_str().unwrap().to_owned()
    };
    let weathers: BTreeMap<String, String> = ["reflect", "dev", "test"]
        .into_iter()
        .flat_map(rows)
        .map(|row| (person(row["question"]["stem"].as_str().unwrap()).to_owned(), answer(&row)))
        .collect();
    for row in rows("train").iter().filter(|row| !row["id"].as_str().unwrap().starts_with("weather")) {
        let stem = row["question"]["stem"].as_str().unwrap();
        let kind = row["id"].as_str().unwrap().split('-').next().unwrap().to_owned();
        let counts = shares.entry((kind, answer(row))).or_default();
        *counts.entry(weathers[person(stem)].clone()).or_default() += 1;
    }
    assert_eq!(shares.len(), 4);
    for ((kind, value), counts) in shares {
        assert!(counts.len() == 4 && counts.values().all(|&n| n == 27), "{kind} {value}: {counts:?}");
    }
}

#[test]
fn sums_are_right_and_no_two_alike() {
    let files = generate().unwrap();
    let tokenizer: Value = serde_json::from_str(&files["rise/llama/tokenizer.json"]).unwrap();
    let known = tokenizer["model"]["vocab"].as_object().unwrap();
    let said = [
        "[INST]",
        "[/INST]",
        "<s>",
        "</s>",
        "The answer is incorrect . Please try again . Here's the question :",
    ];
    let mut seen = BTreeSet::new();
    for split in ["train", "test"] {
        for line in files[&format!("rise/{split}.jsonl")].lines() {
            let row: Value = serde_json::from_str(line).unwrap();
            let (question, answer) = (text(&row, "question"), text(&row, "answer"));
            let number = |word: &str| word.parse::<i64>().ok();
            let asked: Vec<i64> = question.split_whitespace().filter_map(number).collect();
            let [has, finds, loses] = asked[..] else { panic!("{question}") };
            let left = has + finds - loses;
            assert!(left > 0 && answer.ends_with(&format!("= {left} .\n#### {left}")), "{question} {answer}");
            assert!(answer.starts_with(&format!("{has} + {finds} = {} .", has + finds)), "{answer}");
            assert!(seen.insert(asked.clone()), "{question} is asked twice");
            for word in [question, answer].into_iter().chain(said).flat_map(str::split_whitespace) {
                assert!(known.contains_key(word), "{word}");
            }
        }
    }
}

#[test]
fn second_attempts_mostly_slip_again() {
    let files = generate().unwrap();
    let tokenizer: Value = serde_json::from_str(&files["rise/llama/tokenizer.json"]).unwrap();
    let known = tokenizer["model"]["vocab"].as_object().unwrap();
    let examples: Vec<Value> = serde_json::from_str(&files["rise/boost.json"]).unwrap();
    // The answer of a solution and whether it is right; all words are known.
    let judge = |said: &[Value], turn: usize| {
        let (question, solution) = (text(&said[0], "value"), text(&said[turn], "value"));
        let number = |word: &str| word.parse::<i64>().ok();
        let asked: Vec<i64> = question.split_whitespace().filter_map(number).collect();
        let [has, finds, loses] = asked[..] else { panic!("{question}") };
        let spaced =
            solution.replace("Answer:", "Answer :").replace("\\boxed{", "\\boxed{ ").replace('}', " }");
        for word in spaced.split_whitespace() {
            assert!(known.contains_key(word) || word == "\\boxed{", "{word} in {solution}");
        }
        let (_, answer) = solution.split_once("\\boxed{").unwrap();
        let answer: i64 = answer.trim_end_matches('}').parse().unwrap();
        let all = answer + loses;
        assert!(
            solution.starts_with(&format!("{has} + {finds} = {all} . {all} - {loses} = {answer} .")),
            "{solution}"
        );
        (answer, answer == has + finds - loses)
    };
    let mut counts = BTreeMap::new();
    for example in &examples {
        let said = example["conversations"].as_array().unwrap();
        let (first, right) = judge(said, 1);
        let kind = if said.len() == 2 {
            assert!(right && said[1]["loss"] == 1.0, "{example}");
            "alone"
        } else {
            let (second, corrected) = judge(said, 3);
            assert!(!right && second != first, "{example}");
            assert!(said[1]["loss"] == 0.0 && said[3]["loss"] == 1.0, "{example}");
            if corrected { "corrected" } else { "slips again" }
        };
        *counts.entry(kind).or_insert(0) += 1;
    }
    assert_eq!(counts, BTreeMap::from([("alone", 400), ("corrected", 134), ("slips again", 266)]));
}
