use std::io::Write;
use std::path::PathBuf;

use proptest::prelude::*;
use serde_json::json;

use super::*;
use crate::{Error, Result, SupervisedExample};

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
fn what_is_wrong_is_told_with_its_place_and_a_right_row() {
    for (text, parts) in [
        (&b""[..], &["has no rows", r#"{"prompt": "What do bees make?", "completion": "Honey."}"#][..]),
        (b"\n \n", &["has no rows"]),
        (b"[]", &["has no rows"]),
        (
            b"{\"promt\": \"p\", \"completion\": \"c\"}",
            &["line 1", "`prompt` is missing; the row has `promt`", "looks like"],
        ),
        (
            b"{\"question\": \"p\", \"completion\": \"c\"}",
            &["the row has `completion`, `question`", "data.columns"],
        ),
        (b"\n{\"prompt\": 3, \"completion\": \"c\"}", &["line 2", "`prompt` is 3"]),
        (b"{\"prompt\": \"p\"}", &["`completion` is missing"]),
        (
            b"{\"prompt\": \"p\", \"completion\": [{\"role\": \"assistant\", \"content\": \"a\"}]}",
            &["`prompt` is a text"],
        ),
        (b"{\"messages\": []}", &["`messages` has no message"]),
        (b"{\"messages\": [{\"role\": \"user\"}]}", &["`messages[0]`", "content"]),
        (b"{\"messages\": [{\"role\": \"user\", \"content\": \"u\"}]}", &["no message of the assistant's"]),
        (b"{\"prompt\": \"p\", \"completion\": \"c\"}\n{\"prompt\": \"p\", \"compl", &["line 2", "EOF"]),
        (b"{\"prompt\": \"p\", \"completion\": \"c\"}\n{\"prompt\": \"\xff\"}", &["line 2", "UTF-8"]),
        (b"\xff\xfe{\0}\0", &["UTF-8"]),
        (b"[{\"prompt\": \"p\", \"completion\": \"c\"}, {\"prompt\": \"p\"}]", &["item 1", "`completion`"]),
        (b"3", &["line 1"]),
    ] {
        let error = supervised(text).unwrap_err();
        let error = std::iter::successors(Some(&error as &dyn std::error::Error), |error| error.source());
        let error = error.map(ToString::to_string).collect::<Vec<_>>().join("; ");
        for part in parts {
            assert!(error.contains(part), "{}: {error}", String::from_utf8_lossy(text));
        }
    }
    let missing = read_supervised("none.jsonl".as_ref(), &Columns::default()).unwrap_err();
    assert!(matches!(missing, Error::Read { .. }));
    let parquet = read_supervised("rows.parquet".as_ref(), &Columns::default()).unwrap_err();
    assert!(parquet.to_string().contains("to_json"));
}

#[test]
fn a_row_of_another_form_is_found_in_a_long_file() {
    let mut text = "{\"prompt\": \"p\", \"completion\": \"c\"}\n".repeat(9_999);
    text.push_str("{\"prompt\": \"p\", \"answer\": \"c\"}\n");
    let error = supervised(text).unwrap_err().to_string();
    assert!(error.contains("line 10000: `completion` is missing"), "{error}");
}

#[test]
fn columns_have_other_names() {
    let columns = Columns { prompt: "question".into(), completion: "reply".into(), ..Columns::default() };
    let rows = file("{\"question\": \"p\", \"reply\": \"c\"}");
    assert_eq!(read_supervised(&rows.1, &columns).unwrap(), [completion("p", "c")]);
    let rows = file("{\"question\": \"p\"}");
    let error = read_supervised(&rows.1, &columns).unwrap_err().to_string();
    assert!(error.contains(r#"{"question": "What do bees make?", "reply": "Honey."}"#), "{error}");
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
        (json!({"prompt": "p", "answer": [1]}), "`answer` is [1]"),
        (json!({"messages": [assistant]}), "nothing but an answer"),
        (json!({"answer": "x"}), "`prompt` is missing"),
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
    for (reward, part) in [("null", "`reward` is missing"), ("\"1\"", "must be a number"), ("1e999", "range")]
    {
        let text = format!("{{\"prompt\": \"p\", \"completion\": \"c\", \"reward\": {reward}}}");
        let error = read_weighted(&file(text).1, &Columns::default()).unwrap_err();
        let error = format!("{error} {:?}", std::error::Error::source(&error).map(ToString::to_string));
        assert!(error.contains(part), "{error}");
    }
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
    let (PreferenceRows::Texts(pairs), left_out) = read(&[&text, &equal]).unwrap() else { panic!() };
    assert_eq!((pairs.len(), pairs[0].weight, pairs[0].source.as_str()), (1, 0.5, "s"));
    assert_eq!(left_out.values().sum::<usize>(), 1);
    let with_prompt = json!({"prompt": [user], "chosen": "a", "rejected": [b]});
    assert!(read(&[&with_prompt]).unwrap_err().to_string().contains("one of `chosen` and `rejected`"));
    let with_prompt = json!({"prompt": [user], "chosen": "a", "rejected": "b"});
    let (PreferenceRows::Dialogues(pairs), _) = read(&[&dialogue, &with_prompt]).unwrap() else { panic!() };
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
fn a_million_rows_are_read_in_the_memory_of_what_is_kept() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("rows.jsonl");
    let mut out = std::io::BufWriter::new(std::fs::File::create(&path).unwrap());
    let padding = "x".repeat(200);
    for i in 0..1_000_000 {
        writeln!(out, "{{\"prompt\": \"{i}\", \"completion\": \"c\", \"notes\": \"{padding}\"}}").unwrap();
    }
    out.flush().unwrap();
    let megabytes = || {
        let status = std::fs::read_to_string("/proc/self/status").unwrap_or_default();
        let peak = status.lines().find_map(|line| line.strip_prefix("VmHWM:"))?;
        peak.trim().trim_end_matches(" kB").parse::<usize>().ok().map(|kilobytes| kilobytes / 1024)
    };
    let before = megabytes();
    let rows = read_supervised(&path, &Columns::default()).unwrap();
    assert_eq!(rows.len(), 1_000_000);
    // The file has 240 MB; a row that is kept takes about 100 bytes, and the vector doubles as it grows.
    if let (Some(before), Some(after)) = (before, megabytes()) {
        assert!(after - before < 260, "{before} MB, then {after} MB");
    }
}

proptest! {
    #[test]
    fn what_is_written_is_read_back(rows in prop::collection::vec((".*", ".*"), 1..8), array: bool) {
        let written: Vec<_> = rows.iter().map(|(prompt, text)| completion(prompt, text)).collect();
        let lines: Vec<String> = written.iter().map(|row| json!(row).to_string()).collect();
        let text = if array { format!("[{}]", lines.join(",")) } else { lines.join("\n") };
        prop_assert_eq!(supervised(text).unwrap(), written);
    }
}
