mod malformed;

use std::io::Write;
use std::path::PathBuf;

use proptest::prelude::*;
use serde_json::json;

use super::*;
use crate::{Error, Result};

#[expect(dead_code, reason = "the folder is there as long as this is")]
struct File(tempfile::TempDir, PathBuf);

fn file(text: impl AsRef<[u8]>) -> File {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("rows.jsonl");
    std::fs::write(&path, text).unwrap();
    File(folder, path)
}

fn supervised(text: impl AsRef<[u8]>) -> Result<Vec<SupervisedExample>> {
    read_supervised(&file(text).1, &Columns::default())
}

fn completion(prompt: &str, completion: &str) -> SupervisedExample {
    SupervisedExample::Completion { prompt: prompt.into(), completion: completion.into() }
}

#[test]
fn examples_have_three_forms_also_mixed() {
    let [user, assistant] = [Message::new("user", "u"), Message::new("assistant", "a")];
    let rows = [
        json!({"prompt": "p", "completion": "c", "id": 7, "messages": null}),
        json!({"messages": [user, assistant]}),
        json!({"prompt": [user], "completion": [assistant]}),
        json!({"prompt": [user], "completion": "a"}),
    ];
    let answer =
        SupervisedExample::Answer { prompt: vec![user.clone()], completion: vec![assistant.clone()] };
    let expected = [
        completion("p", "c"),
        SupervisedExample::Dialogue { messages: vec![user, assistant] },
        answer.clone(),
        answer,
    ];
    let lines = rows.iter().map(|row| row.to_string()).collect::<Vec<_>>();
    assert_eq!(supervised(lines.join("\n")).unwrap(), expected);
    // What editors and other systems do to files: a mark, carriage returns, blank lines, no line feed at the end.
    assert_eq!(supervised(format!("\u{feff}\r\n{}", lines.join("\r\n\r\n"))).unwrap(), expected);
    assert_eq!(supervised(format!(" \n[{}]\n", lines.join(",\n"))).unwrap(), expected);
}

#[test]
fn columns_have_other_names() {
    let columns = Columns { prompt: "question".into(), completion: "reply".into(), ..Columns::default() };
    let rows = file("{\"question\": \"p\", \"reply\": \"c\"}");
    assert_eq!(read_supervised(&rows.1, &columns).unwrap(), [completion("p", "c")]);
    let rows = file("{\"question\": \"p\"}");
    let error = read_supervised(&rows.1, &columns).unwrap_err().to_string();
    assert!(error.contains(r#"{"question": "What do bees make? ", "reply": "honey"}"#), "{error}");
}

#[test]
fn prompts_keep_what_else_is_known() {
    let [user, assistant] = [Message::new("user", "u"), Message::new("assistant", "a")];
    let rows = [
        json!({"prompt": "p", "answer": "x", "level": 3}),
        json!({"prompt": "p", "answer": 4.5}),
        json!({"prompt": "p", "answer": true}),
        json!({"prompt": [user]}),
        json!({"messages": [user, assistant]}),
        json!({"messages": [user, assistant], "answer": "x"}),
    ];
    let text = rows.map(|row| row.to_string()).join("\n");
    let rows = read_prompts(&file(text).1, &Columns::default()).unwrap();
    let answers: Vec<Option<&str>> = rows.iter().map(|row| row.answer.as_deref()).collect();
    assert_eq!(answers, [Some("x"), Some("4.5"), Some("true"), None, Some("a"), Some("x")]);
    assert_eq!(rows[0].fields["level"], 3);
    assert!(rows[3..].iter().all(|row| row.prompt == TextOrMessages::Messages(vec![user.clone()])));
    for (row, part) in [
        (json!({"prompt": "p", "answer": [1]}), "`answer` is a list that begins with a number"),
        (json!({"messages": [assistant]}), "nothing but an answer"),
        (json!({"answer": "x"}), "no field `prompt` or `messages`"),
    ] {
        let error = read_prompts(&file(row.to_string()).1, &Columns::default()).unwrap_err().to_string();
        assert!(error.contains(part), "{error}");
    }
}

#[test]
fn rewards_must_be_numbers() {
    let row = json!({"prompt": "p", "completion": "c", "reward": 0.5});
    let rows = read_weighted(&file(row.to_string()).1, &Columns::default()).unwrap();
    assert_eq!(rows, [WeightedRow { example: completion("p", "c"), reward: 0.5 }]);
    for (reward, part) in [
        ("null", "field `reward` is null"),
        ("\"1\"", "`reward` is the text \"1\", but must be a finite number"),
        ("1e999", "range"),
    ] {
        let text = format!("{{\"prompt\": \"p\", \"completion\": \"c\", \"reward\": {reward}}}");
        let error = read_weighted(&file(text).1, &Columns::default()).unwrap_err();
        assert!(error.to_string().contains(part), "{error}");
    }
    let rows = "{\"prompt\": \"p\", \"completion\": \"c\"}";
    let error = read_weighted(&file(rows).1, &Columns::default()).unwrap_err().to_string();
    assert!(error.contains("no field `reward`") && error.contains("\"reward\": 1.0"), "{error}");
}

#[test]
fn pairs_are_of_one_kind_and_bad_ones_are_counted() {
    let text = json!({"prompt": "p", "chosen": "a", "rejected": "b", "weight": 0.5, "source": "s"});
    let equal = json!({"prompt": "p", "chosen": "a", "rejected": "a"});
    let [user, a, b] =
        [("user", "u"), ("assistant", "a"), ("assistant", "b")].map(|(role, text)| Message::new(role, text));
    let dialogue = json!({"chosen": [user, a], "rejected": [user, b]});
    let read = |rows: &[&Value]| {
        let text = rows.iter().map(|row| row.to_string()).collect::<Vec<_>>().join("\n");
        read_preferences(&file(text).1, &Columns::default())
    };
    let PreferenceFile { pairs: PreferenceRows::Texts(pairs), left_out } = read(&[&text, &equal]).unwrap()
    else {
        panic!()
    };
    assert_eq!((pairs.len(), pairs[0].weight, pairs[0].source.as_str()), (1, 0.5, "s"));
    assert_eq!(left_out.values().sum::<usize>(), 1);
    let with_prompt = json!({"prompt": [user], "chosen": "a", "rejected": [b]});
    assert!(
        read(&[&with_prompt]).unwrap_err().to_string().contains("one of the fields `chosen` and `rejected`")
    );
    let with_prompt = json!({"prompt": [user], "chosen": "a", "rejected": "b"});
    let PreferenceRows::Dialogues(pairs) = read(&[&dialogue, &with_prompt]).unwrap().pairs else { panic!() };
    assert_eq!(pairs[0], pairs[1]);
    let error = read(&[&text, &dialogue]).unwrap_err().to_string();
    assert!(error.contains("line 2: a pair of messages, but line 1 has texts"), "{error}");
}

#[test]
fn files_are_mixed_split_and_counted() {
    let lines: String =
        (0..40).map(|i| format!("{{\"prompt\": \"{i}\", \"completion\": \"c\"}}\n")).collect();
    let (own, other) = (file(&lines), file("{\"prompt\": \"other\", \"completion\": \"c\"}"));
    let train =
        vec![FileEntry::Path(own.1.clone()), FileEntry::Weighted { path: other.1.clone(), weight: 3.0 }];
    let files = DataFiles { train, limit: 30, ..DataFiles::default() };
    let rows = files.supervised().unwrap();
    assert_eq!((rows.train.len(), rows.valid.len()), (31, 2));
    assert_eq!(rows.counts.files.iter().map(|of| of.rows).collect::<Vec<_>>(), [30, 1]);
    let valid = vec![FileEntry::Path(other.1.clone())];
    let rows = DataFiles { valid, ..files.clone() }.supervised().unwrap();
    assert_eq!((rows.train.len(), rows.valid.len()), (33, 1));
    for (bad, part) in [
        (DataFiles::default(), "--data FILE"),
        (DataFiles { valid_share: 1.0, ..files }, "data.valid_share: is 1"),
    ] {
        let error = bad.supervised().unwrap_err().to_string();
        assert!(error.contains(part), "{error}");
    }
    // Pairs of both kinds, in two files.
    let texts = file(json!({"prompt": "p", "chosen": "a", "rejected": "b"}).to_string());
    let message = |text: &str| json!([{"role": "assistant", "content": text}]);
    let user = json!([{"role": "user", "content": "u"}]);
    let dialogues =
        file(json!({"prompt": user, "chosen": message("a"), "rejected": message("b")}).to_string());
    let [texts, dialogues] = [texts, dialogues].map(|file| (FileEntry::Path(file.1.clone()), file));
    let pairs = |train: &[&FileEntry]| {
        let train = train.iter().map(|entry| (*entry).clone()).collect();
        DataFiles { train, ..DataFiles::default() }.preferences()
    };
    assert!(
        matches!(pairs(&[&texts.0, &texts.0]).unwrap().train, PreferenceRows::Texts(rows) if rows.len() == 2)
    );
    assert!(matches!(pairs(&[&dialogues.0]).unwrap().train, PreferenceRows::Dialogues(_)));
    let error = pairs(&[&texts.0, &dialogues.0]).unwrap_err().to_string();
    assert!(error.contains("has pairs of messages"), "{error}");
}

#[test]
fn a_completion_or_a_prompt_comes_before_messages() {
    let messages = json!([{"role": "user", "content": "u"}, {"role": "assistant", "content": "a"}]);
    let row = json!({"prompt": "p", "completion": "c", "messages": messages}).to_string();
    assert_eq!(supervised(&row).unwrap(), [completion("p", "c")]);
    let rows = read_prompts(&file(&row).1, &Columns::default()).unwrap();
    assert_eq!(
        (rows[0].prompt.last_text(), &rows[0].answer, &rows[0].fields["messages"]),
        ("p", &None, &messages)
    );
    // As in UltraChat: the prompt is the first of the messages once more.
    let row = json!({"prompt": "u", "messages": messages}).to_string();
    assert!(
        matches!(&supervised(row).unwrap()[..], [SupervisedExample::Dialogue { messages }] if messages.len() == 2)
    );
}

#[test]
fn gzip_is_read_and_files_are_remembered() {
    let lines = "{\"prompt\": \"p\", \"completion\": \"c\"}\n{\"prompt\": \"q\", \"completion\": \"d\"}\n";
    let packed = |text: &str| {
        let mut gzip = flate2::write::GzEncoder::new(vec![], flate2::Compression::fast());
        gzip.write_all(text.as_bytes()).unwrap();
        gzip.finish().unwrap()
    };
    let expected = [completion("p", "c"), completion("q", "d")];
    let array = format!("\u{feff}[{}]", lines.trim().replace('\n', ","));
    // Two files behind each other are one, as gzip has it.
    for bytes in [packed(lines), packed(&array), [packed(&lines[..20]), packed(&lines[20..])].concat()] {
        let file = file(&bytes);
        assert_eq!(read_supervised(&file.1, &Columns::default()).unwrap(), expected);
        assert!(crate::text::files_read().contains(&file.1));
        let cut = &bytes[..bytes.len() - 12];
        let error = supervised(cut).unwrap_err();
        assert!(matches!(error, Error::Read { .. }), "{error}");
    }
}

#[test]
fn no_more_rows_are_read_than_the_limit() {
    let row = "{\"prompt\": \"p\", \"chosen\": \"a\", \"rejected\": \"b\"}";
    for text in [format!("{row}\n{row}\nno JSON"), format!("[{row}, {row}, no JSON")] {
        let file = file(text);
        let files = |limit| DataFiles { train: vec![file.1.clone().into()], limit, ..DataFiles::default() };
        assert_eq!(files(2).preferences().unwrap().counts.train, 2);
        assert_eq!(files(1).preferences().unwrap().counts.train, 1);
        assert!(files(3).preferences().is_err());
        assert!(files(0).preferences().is_err());
    }
}

#[test]
fn held_out_prompts_are_not_trained_on() {
    let row = |i: usize, form: usize| match form {
        0 => json!({"prompt": format!("question {}", i / 3), "completion": "c"}),
        1 => {
            json!({"messages": [{"role": "user", "content": format!("question {}", i / 3)}, {"role": "assistant", "content": "a"}]})
        }
        _ => {
            json!({"prompt": [{"role": "system", "content": "s"}, {"role": "user", "content": format!("question {}", i / 3)}], "completion": "c"})
        }
    };
    let text: String = (0..300).map(|i| row(i, i % 3).to_string() + "\n").collect();
    let many = file(text);
    let read = |seed, weight| {
        let train = vec![FileEntry::Weighted { path: many.1.clone(), weight }];
        DataFiles { train, valid_share: 0.2, seed, ..DataFiles::default() }.supervised().unwrap()
    };
    let questions = |rows: &[SupervisedExample]| -> std::collections::BTreeSet<String> {
        let text = rows.iter().map(|row| json!(row).to_string());
        text.map(|text| text.split("question ").nth(1).unwrap().split('"').next().unwrap().to_owned())
            .collect()
    };
    for weight in [1.0, 2.0, 0.5, 1.5] {
        let rows = read(1, weight);
        assert!(questions(&rows.train).is_disjoint(&questions(&rows.valid)));
        assert_eq!(rows, read(1, weight));
        assert_ne!(rows.valid, read(2, weight).valid);
    }
    // What is held out is so once, however often the others are taken; and it is a share of what is taken.
    assert_eq!([1.0, 2.0, 3.0].map(|weight| read(1, weight).valid.len()), [60; 3]);
    assert_eq!([1.0, 2.0, 3.0].map(|weight| read(1, weight).train.len()), [240, 480, 720]);
    let half = read(1, 0.5);
    assert_eq!(half.train.len() + half.valid.len(), 150);
    assert!((28..=30).contains(&half.valid.len()), "{}", half.valid.len());
    assert_eq!((half.counts.files[0].rows, half.counts.files[0].taken), (300, 150));
}

#[test]
fn settings_are_plain() {
    let toml = r#"
        train = ["a.jsonl", { path = "b.parquet", weight = 0.5 }]
        valid_share = 0.1
        columns.prompt = "question"
    "#;
    let files: DataFiles = toml::from_str(toml).unwrap();
    assert_eq!(
        files.train,
        ["a.jsonl".into(), FileEntry::Weighted { path: "b.parquet".into(), weight: 0.5 }]
    );
    assert_eq!(
        (files.columns.prompt.as_str(), files.columns.completion.as_str()),
        ("question", "completion")
    );
    assert_eq!(toml::from_str::<DataFiles>(&toml::to_string(&files).unwrap()).unwrap(), files);
    for (bad, part) in [
        ("train = [3]", "a path, or a table with path and weight"),
        ("columns.promt = \"p\"", "promt"),
        ("share = 1", "share"),
    ] {
        let error = toml::from_str::<DataFiles>(bad).unwrap_err().to_string();
        assert!(error.contains(part), "{error}");
    }
    for weight in [0.0, -1.0, f64::NAN, f64::INFINITY, 1e9] {
        let train = vec![FileEntry::Weighted { path: "none".into(), weight }];
        let error = DataFiles { train, ..DataFiles::default() }.supervised().unwrap_err().to_string();
        assert!(error.starts_with("data.train: gives none the weight"), "{error}");
    }
}

#[test]
fn left_out_pairs_are_counted_by_file() {
    let good = file("{\"prompt\": \"p\", \"chosen\": \"a\", \"rejected\": \"b\"}\n".repeat(3));
    let bad = file("{\"prompt\": \"p\", \"chosen\": \"a\", \"rejected\": \"a\"}\n".repeat(2));
    let files = |train: &[&File]| {
        let train = train.iter().map(|file| file.1.clone().into()).collect();
        DataFiles { train, ..DataFiles::default() }.preferences()
    };
    let counts = files(&[&bad, &good]).unwrap().counts;
    assert_eq!(counts.files[0].left_out, [(crate::preference::PairProblem::EqualCompletions, 2)].into());
    assert!(counts.files[1].left_out.is_empty());
    assert_eq!(counts.left_out, [("both completions are the same".to_owned(), 2)].into());
    let error = files(&[&bad]).unwrap_err().to_string();
    assert!(error.contains("no row is left to train on; 2 rows: both completions are the same"), "{error}");
}

fn message() -> impl Strategy<Value = Message> {
    (prop::sample::select(vec!["system", "user", "assistant"]), any::<String>())
        .prop_map(|(role, content)| Message::new(role, content))
}

fn dialogue() -> impl Strategy<Value = Vec<Message>> {
    let answer = any::<String>().prop_map(|text| Message::new("assistant", text));
    (prop::collection::vec(message(), 0..4), answer).prop_map(|(mut messages, answer)| {
        messages.push(answer);
        messages
    })
}

fn example() -> impl Strategy<Value = SupervisedExample> {
    prop_oneof![
        any::<(String, String)>().prop_map(|(prompt, text)| completion(&prompt, &text)),
        dialogue().prop_map(|messages| SupervisedExample::Dialogue { messages }),
        (prop::collection::vec(message(), 1..4), dialogue())
            .prop_map(|(prompt, completion)| SupervisedExample::Answer { prompt, completion }),
    ]
}

/// Rows as a file: lines that end in one way or another, or an array.
fn written(rows: &[Value], layout: u8) -> File {
    let rows: Vec<String> = rows.iter().map(Value::to_string).collect();
    file(match layout % 4 {
        0 => rows.join("\n"),
        1 => format!("\u{feff}{}\r\n", rows.join("\r\n \r\n")),
        2 => format!("[{}]", rows.join(",")),
        _ => format!(" \r\n[\n{}\n]\n", rows.join("\n,\t")),
    })
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(128))]

    #[test]
    fn what_is_written_is_read_back(
        examples in prop::collection::vec((example(), prop::num::f64::NORMAL), 1..6), layout: u8,
    ) {
        let rows: Vec<Value> = examples.iter().map(|(example, reward)| {
            let mut row = json!(example);
            row["reward"] = json!(reward);
            row
        }).collect();
        let file = written(&rows, layout);
        let columns = Columns::default();
        let expected: Vec<SupervisedExample> = examples.iter().map(|(example, _)| example.clone()).collect();
        prop_assert_eq!(read_supervised(&file.1, &columns).unwrap(), expected.clone());
        prop_assert_eq!(crate::supervised::read(&file.1).unwrap(), expected);
        let weighted: Vec<WeightedRow> =
            examples.into_iter().map(|(example, reward)| WeightedRow { example, reward }).collect();
        prop_assert_eq!(read_weighted(&file.1, &columns).unwrap(), weighted);
    }

    #[test]
    fn pairs_are_read_back(
        texts in prop::collection::vec(any::<(String, String, String)>(), 1..6),
        dialogues in prop::collection::vec((prop::collection::vec(message(), 1..3), dialogue(), dialogue()), 1..4),
        layout: u8,
    ) {
        let texts: Vec<PreferenceExample> =
            texts.into_iter().map(|(prompt, chosen, rejected)| PreferenceExample::new(prompt, chosen, rejected)).collect();
        let rows: Vec<Value> = texts.iter().map(|pair| json!(pair)).collect();
        let read = read_preferences(&written(&rows, layout).1, &Columns::default()).unwrap();
        prop_assert_eq!(read.left_out.values().sum::<usize>(), texts.iter().filter(|pair| pair.problem().is_some()).count());
        let good: Vec<_> = texts.into_iter().filter(|pair| pair.problem().is_none()).collect();
        prop_assert_eq!(read.pairs, PreferenceRows::Texts(good));
        let mut dialogues: Vec<DialoguePreference> =
            dialogues.into_iter().map(|(prompt, chosen, rejected)| DialoguePreference::new(prompt, chosen, rejected)).collect();
        dialogues.push(DialoguePreference::new(vec![Message::new("user", "u")], vec![Message::new("assistant", "a")], vec![Message::new("assistant", "b")]));
        let rows: Vec<Value> = dialogues.iter().map(|pair| json!(pair)).collect();
        let read = read_preferences(&written(&rows, layout).1, &Columns::default()).unwrap();
        let good: Vec<_> = dialogues.into_iter().filter(|pair| pair.problem().is_none()).collect();
        prop_assert_eq!(read.pairs, PreferenceRows::Dialogues(good));
    }

    #[test]
    fn prompts_are_read_back(rows in prop::collection::vec((any::<String>(), prop::collection::vec(message(), 1..3), any::<Option<String>>(), any::<i32>()), 1..6), layout: u8) {
        let rows: Vec<PromptRow> = rows.into_iter().enumerate().map(|(i, (text, messages, answer, level))| PromptRow {
            prompt: if i % 2 == 0 { TextOrMessages::Text(text) } else { TextOrMessages::Messages(messages) },
            answer,
            fields: json!({"level": level, "nested": {"x": [null, level]}}).as_object().unwrap().clone(),
        }).collect();
        let values: Vec<Value> = rows.iter().map(|row| json!(row)).collect();
        prop_assert_eq!(read_prompts(&written(&values, layout).1, &Columns::default()).unwrap(), rows);
    }
}
