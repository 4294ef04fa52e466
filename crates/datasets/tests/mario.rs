//! MaRio's readers, parsers and filters: properties, malformed files, and slices of real data.

use proptest::prelude::*;
use ruminate_datasets::json;
use ruminate_datasets::mario::{
    ANSWER_MARKER, LeadingAnswer, MarioDataset, MarioRow, OutputRow, OutputTable, ResponseFormat,
    RewardParts, i2o_input, label, majority_accuracy, parse_completion, quark_rows, rationale, read_few_shot,
    read_gold, read_masked_tsv, read_responses, read_teacher, response, silver_filter, target, with_period,
};
use std::collections::BTreeSet;
use std::path::{Path, PathBuf};

fn file(text: &str) -> tempfile::NamedTempFile {
    let file = tempfile::NamedTempFile::new().unwrap();
    std::fs::write(file.path(), text).unwrap();
    file
}

fn row(question: &str, rationale: &str, answer: &str) -> MarioRow {
    MarioRow { question: question.into(), rationale: rationale.into(), answer: answer.into() }
}

#[test]
fn three_layouts_hold_the_same_rows_in_the_order_of_the_file() {
    let one = r#"{"question": "Is ice cold?", "rationale": "It is.", "answer": "yes"}"#;
    let two =
        r#"{"question": "Is fire cold?", "rationale": "dummy", "answer": false, "qid": "x", "facts": []}"#;
    let expected = [row("Is ice cold?", "It is.", "yes"), row("Is fire cold?", "dummy", "no")];
    for text in
        [format!(r#" {{"10": {one}, "9": {two}}}"#), format!("[{one}, {two}]"), format!("{one}\n\n{two}\r\n")]
    {
        assert_eq!(read_gold(file(&text).path(), MarioDataset::StrategyQa).unwrap(), expected, "{text}");
    }
}

#[test]
fn malformed_files_name_the_row_and_the_field() {
    let good = r#"{"question": "Q (A) x (B) y", "rationale": "dummy", "answer": "(A)"}"#;
    for (bad, reason) in [
        (
            r#"{"question": "Q", "rationale": "dummy", "answer": "(C)"}"#,
            "answer: is \"(C)\"; the labels of quarel",
        ),
        (r#"{"question": " ", "rationale": "dummy", "answer": "(A)"}"#, "question: is empty"),
        (r#"{"question": 3, "rationale": "dummy", "answer": "(A)"}"#, "question: invalid type"),
        (r#"{"question": "Q", "answer": "(A)"}"#, "missing field `rationale`"),
    ] {
        for (text, place) in [
            (format!("[{good}, {bad}]"), "item 1"),
            (format!(r#"{{"0": {good}, "1": {bad}}}"#), "item 1"),
            (format!("{good}\n{bad}\n"), "line 2"),
        ] {
            let error = read_gold(file(&text).path(), MarioDataset::QuaRel).unwrap_err().to_string();
            assert!(error.contains(place) && error.contains(reason), "{error}");
        }
    }
    for text in ["", "[]", "{}"] {
        let error = read_gold(file(text).path(), MarioDataset::QuaRel).unwrap_err().to_string();
        assert!(error.contains("empty split"), "{error}");
    }
    let tsv = file("There are <mask> apples.\tthree\nNo tab here\n");
    let error = read_masked_tsv(tsv.path()).unwrap_err().to_string();
    assert!(error.contains("line 2, field answer"), "{error}");
    let gold = [row("Q", "dummy", "yes")];
    let read = |text: &str, format| {
        read_responses(file(text).path(), format, MarioDataset::StrategyQa, &gold).unwrap_err().to_string()
    };
    let error = read(r#"{"question": ["Q", "R"], "model_response": ["x"]}"#, ResponseFormat::QuarkJson);
    assert!(error.contains("item 1, field model_response"), "{error}");
    let error = read("question,model_response\nQ\n", ResponseFormat::Csv);
    assert!(error.contains("line 2"), "{error}");
    assert!(read("question,answer\nQ,A\n", ResponseFormat::Csv).contains("model_response"));
    let error =
        read(r#"[{"question": "another", "gpt_answer": "So the answer is: yes."}]"#, ResponseFormat::Json);
    assert!(error.contains("none of its 1 rows"), "{error}");
}

#[test]
fn published_masked_sentences_become_questions() {
    let tsv = file("Birds have <mask> wings.\ttwo\n");
    let rows = read_masked_tsv(tsv.path()).unwrap();
    assert!(rows[0].question.starts_with("Birds have <mask> wings. \n (A) no (B) zero (C) one (D) two"));
    assert_eq!(rows[0].answer, "(D)");
}

#[test]
fn responses_survive_writing_and_reading() {
    let gold = [row("Is \"ice\", here, cold?", "dummy", "yes"), row("Is fire cold?\nReally?", "dummy", "no")];
    let output = |row: &MarioRow, text: &str| OutputRow {
        question: row.question.clone(),
        response: text.into(),
        correct: true,
        scores: vec![Some(0.5), None],
    };
    let rows = vec![
        output(&gold[0], "It is frozen. So the answer is yes."),
        output(&gold[1], "It burns. So the answer is no."),
    ];
    let table = OutputTable { rows, rewards: vec!["a".into(), "b".into()] };
    let folder = tempfile::tempdir().unwrap();
    let (columns, csv) = (folder.path().join("o.json"), folder.path().join("o.csv"));
    table.write_columns(&columns).unwrap();
    table.write_csv(&csv).unwrap();
    for (path, format) in [(&columns, ResponseFormat::QuarkJson), (&csv, ResponseFormat::Csv)] {
        let read = read_responses(path, format, MarioDataset::StrategyQa, &gold).unwrap();
        assert_eq!(read.skipped, 0);
        for (given, row) in read.responses.iter().zip(&gold) {
            assert_eq!((&given.question, &given.label), (&row.question, &row.answer), "{format}");
            assert!(given.correct());
        }
    }
    let header = std::fs::read_to_string(&csv).unwrap();
    assert!(
        header.starts_with("question,model_response,correctness,num_sents,num_words,a,b\r\n"),
        "{header}"
    );
}

#[test]
fn a_leading_answer_goes_as_a_word() {
    let parse =
        |text: &str| parse_completion(MarioDataset::StrategyQa, text, LeadingAnswer::Remove).rationale;
    for (text, rationale) in [
        ("Yes. Yesterday was long. So the answer is yes", "Yesterday was long."),
        ("Norman is in Oklahoma. So the answer is no", "Norman is in Oklahoma."),
        ("No one knows. So the answer is no", "one knows."),
        ("No, No is a lake. So the answer is no", "No is a lake."),
    ] {
        assert_eq!(parse(text), rationale);
    }
}

fn texts() -> impl Strategy<Value = String> {
    "[A-Za-z0-9 ,?é]{0,40}".prop_filter("no marker", |text| !text.contains(ANSWER_MARKER))
}

proptest! {
    #[test]
    fn targets_round_trip(text in texts(), set in 0usize..5, pick in 0usize..12) {
        let dataset = MarioDataset::ALL[set];
        let labels = dataset.labels();
        let gold = &labels[pick % labels.len()];
        let written = target(&row("Q", &text, gold));
        prop_assert_eq!(label(&written), gold.to_lowercase());
        prop_assert_eq!(dataset.label_index(&label(&written)), Some(pick % labels.len()));
        let learnt = with_period(&text);
        prop_assert_eq!(rationale(&written), learnt.trim());
        prop_assert_eq!(RewardParts::of(&written).label, gold);
        let rebuilt = response(RewardParts::of(&written).rationale.trim_end(), gold);
        prop_assert_eq!(rebuilt.trim(), written.trim());
    }

    #[test]
    fn parsers_take_any_text(text in any::<String>(), marked in "([Ss]o|The|, |the answer is|\\(| A|:|yes|\n|é){0,12}") {
        for text in [text, marked] {
            let _ = (label(&text), rationale(&text), RewardParts::of(&text));
            for dataset in MarioDataset::ALL {
                let _ = i2o_input(dataset, &text);
                for leading in [LeadingAnswer::Keep, LeadingAnswer::Remove, LeadingAnswer::Reference] {
                    let parsed = parse_completion(dataset, &text, leading);
                    prop_assert!(parsed.label.chars().count() <= 3);
                }
            }
        }
    }

    #[test]
    fn distinct_rows_are_the_first_of_their_questions(questions in prop::collection::vec("[ab]", 0..10)) {
        let rows: Vec<MarioRow> =
            questions.iter().enumerate().map(|(i, q)| row(q, &i.to_string(), "(A)")).collect();
        let distinct = quark_rows(&rows, true);
        prop_assert_eq!(distinct.len(), questions.iter().collect::<BTreeSet<_>>().len());
        for kept in distinct {
            prop_assert_eq!(&kept, rows.iter().find(|r| r.question == kept.question).unwrap());
        }
    }
}

#[test]
#[allow(clippy::print_stderr)]
fn real_slices() {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../../shared/data/mario");
    if !root.is_dir() {
        eprintln!("skipped: {} is not there", root.display());
        return;
    }
    let path = |set: MarioDataset, name: &str| -> PathBuf { root.join(set.name()).join(name) };
    for set in MarioDataset::ALL {
        for split in ["dev", "test"] {
            let rows = read_gold(&path(set, &format!("raw/{split}.jsonl")), set).unwrap();
            assert_eq!(rows.len(), 100, "{set} {split}");
            assert!((10.0..75.0).contains(&majority_accuracy(&rows)));
            // Copies of the rows read back; plain comparisons, so that a failure prints no real text.
            let copy = tempfile::NamedTempFile::new().unwrap();
            json::write(copy.path(), &rows).unwrap();
            assert!(read_gold(copy.path(), set).unwrap() == rows);
        }
    }
    // StrategyQA's own records are the same questions in the same order.
    let set = MarioDataset::StrategyQa;
    let records = read_gold(&path(set, "raw/strategyqa_processed_test.json"), set).unwrap();
    let test = read_gold(&path(set, "raw/test.jsonl"), set).unwrap();
    assert!(
        records.iter().map(|r| (&r.question, &r.answer)).eq(test.iter().map(|r| (&r.question, &r.answer)))
    );
    // The published sentences are the questions of the test rows.
    let set = MarioDataset::NumerSense;
    let masked = read_masked_tsv(&path(set, "numersense.validation.masked.tsv")).unwrap();
    assert!(masked == read_gold(&path(set, "raw/test.jsonl"), set).unwrap());

    for (set, kept) in
        [(MarioDataset::StrategyQa, 129), (MarioDataset::QuaRel, 165), (MarioDataset::NumerSense, 84)]
    {
        let teacher = read_teacher(&path(set, "gpt3/train_gpt3_responses.jsonl"), set).unwrap();
        let dev = read_gold(&path(set, "raw/dev.jsonl"), set).unwrap();
        let silver = silver_filter(set, &teacher, dev.iter().map(|row| row.question.as_str()));
        let train = read_gold(&path(set, "raw/train.jsonl"), set).unwrap();
        assert!(silver.train == train[..kept], "{set}: {} rows", silver.train.len());
        assert!(silver.dev.iter().all(|row| dev.contains(row)));
        assert_eq!(silver.dev.len(), if set.dev_is_cut_from_train() { 14 } else { 0 });
    }
    let prompts = read_few_shot(&root.join("few_shot_prompts.json")).unwrap();
    for set in MarioDataset::ALL {
        assert!(prompts.iter().any(|p| p.dataset == set && p.variant.starts_with("i2ro")), "{set}");
    }
    assert!(prompts.iter().all(|p| p.n_demonstrations >= 4 && p.prompt("Why?").contains("Why?")));
}
