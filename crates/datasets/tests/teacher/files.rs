//! Files of answers: resumed, damaged, made by others.

use std::path::Path;

use proptest::prelude::*;
use ruminate_datasets::teacher::{
    AnswerFile, Request, Teacher, TeacherConfig, TeacherError, match_answers, read_answers,
};
use ruminate_datasets::{Error, NullObserver};
use serde_json::json;

use crate::stub::{Stub, completion};
use crate::{ask, assert_complete, echo, requests};

fn line(request: &Request, text: &str) -> String {
    let request_body = json!({"model": "stub", "messages": request.messages});
    let line =
        json!({"id": request.id, "request": request_body, "response": completion(&[text]), "elapsed_ms": 1});
    format!("{line}\n")
}

#[test]
fn ids_are_there_once() {
    let stub = Stub::start(echo);
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("answers.jsonl");
    let mut twice = requests(3);
    twice[2].id = "id-0".into();
    let error = ask(stub.config(), &twice, &path).unwrap_err();
    assert!(matches!(&error, TeacherError::DuplicateId(id) if id == "id-0"), "{error}");
    assert!(!path.exists() && stub.seen().is_empty());

    let requests = requests(3);
    std::fs::write(&path, line(&requests[1], "x") + "\n" + &line(&requests[1], "y")).unwrap();
    let error = ask(stub.config(), &requests, &path).unwrap_err();
    assert!(matches!(&error, TeacherError::SecondAnswer { line: 3, id, .. } if id == "id-1"), "{error}");
}

#[test]
fn answers_to_other_requests_are_not_taken() {
    let stub = Stub::start(echo);
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("answers.jsonl");
    let good = requests(1);
    std::fs::write(&path, line(&good[0], "x")).unwrap();
    let mut changed = good.clone();
    changed[0].sampling.temperature = Some(0.5);
    let mut asked = good.clone();
    asked[0].messages[0].content = "another prompt".into();
    let other_model = TeacherConfig { model: "other".into(), ..stub.config() };
    for (config, requests, expected) in [
        (stub.config(), changed, "sampling"),
        (stub.config(), asked, "messages"),
        (other_model, good.clone(), "model"),
    ] {
        let error = ask(config, &requests, &path).unwrap_err();
        assert!(
            matches!(error, TeacherError::RequestChanged { line: 1, field, .. } if field == expected),
            "{error}"
        );
    }
    assert_eq!(ask(stub.config(), &good, &path).unwrap().progress.stored, 1);
    assert!(stub.seen().is_empty());
}

#[test]
fn damaged_lines_name_their_place() {
    let stub = Stub::start(echo);
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("answers.jsonl");
    let good = line(&requests(1)[0], "x");
    for bad in ["{\"id\": \"a\"", "[]", "[1, 2]", "{\"id\": 3}", "\u{0}\u{0}", "{}"] {
        std::fs::write(&path, format!("{good}{bad}\n{good}")).unwrap();
        for error in [read_answers(&path).unwrap_err(), ask(stub.config(), &requests(1), &path).unwrap_err()]
        {
            assert!(error.to_string().contains("answers.jsonl: line 2: "), "{bad}: {error}");
        }
    }
    let neither = good.replace("response", "reply");
    std::fs::write(&path, neither).unwrap();
    assert!(read_answers(&path).unwrap_err().to_string().contains("reply"));
}

#[test]
fn places_that_cannot_be_written() {
    let stub = Stub::start(echo);
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("file");
    std::fs::write(&file, "").unwrap();
    for path in [folder.path(), &file.join("answers.jsonl"), Path::new("/dev/full")] {
        let error = ask(stub.config(), &requests(1), path).unwrap_err();
        assert!(error.to_string().contains(&format!("cannot write {}", path.display())), "{error}");
    }
    let path = folder.path().join("answers.jsonl");
    let held = std::fs::File::create(&path).unwrap();
    fs4::FileExt::lock(&held).unwrap();
    assert!(matches!(ask(stub.config(), &requests(1), &path), Err(TeacherError::File(Error::Locked(_)))));
    assert!(stub.seen().is_empty());
    drop(held);
    ask(stub.config(), &requests(1), &path).unwrap();
}

#[test]
fn files_of_others_serve_as_well() {
    let stub = Stub::start(echo);
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("train_openai_0_results.jsonl");
    let mut requests = requests(4);
    // The same question twice.
    requests[3].messages = requests[1].messages.clone();
    let asked = |i: usize| json!({"model": "gpt", "messages": requests[i].messages, "stop": "###", "n": 1});
    let lines = [
        json!([asked(2), completion(&["answer to prompt 2"])]),
        json!([asked(0), [{"error": "rate limit"}]]),
        json!([asked(1), completion(&["answer to prompt 1"])]),
        json!([asked(1), completion(&["answer to prompt 1"])]),
        json!([asked(1), completion(&["one too many"])]),
    ];
    std::fs::write(&path, lines.map(|line| line.to_string()).join("\n")).unwrap();
    let exchanges = read_answers(&path).unwrap();
    assert_eq!(exchanges.len(), 5);
    assert_eq!(exchanges[1].outcome.as_ref().unwrap_err(), r#"[{"error":"rate limit"}]"#);
    let answers = match_answers(&path, exchanges, &requests).unwrap();
    assert!(answers[0].is_none());
    assert!(answers[1..].iter().all(Option::is_some));
    // What is missing is asked for, into the same file.
    let outcome = ask(stub.config(), &requests, &path).unwrap();
    assert_eq!(stub.seen().len(), 1);
    assert_eq!(outcome.answers[0].as_ref().unwrap().text(), "answer to prompt 0");
    assert_eq!(outcome.answers[1..], answers[1..]);
    assert_eq!(read_answers(&path).unwrap().len(), 6);
}

#[test]
fn a_file_that_stays_open_is_read_once_and_belongs_to_one() {
    let stub = Stub::start(echo);
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("answers.jsonl");
    let requests = requests(5);
    let unnamed =
        json!([{"messages": requests[4].messages}, completion(&["answer to prompt 4"])]).to_string();
    std::fs::write(&path, line(&requests[0], "answer to prompt 0") + &unnamed + "\n{\"id\": cut").unwrap();
    let teacher = Teacher::new(stub.config()).unwrap();
    let mut file = AnswerFile::open(&path).unwrap();
    let mut ask_into =
        |requests: &[Request]| teacher.ask_into(&mut file, requests, crate::any, &mut NullObserver);
    let first = ask_into(&requests[..2]).unwrap();
    assert_eq!((first.progress.stored, stub.seen().len()), (1, 1));
    // Its own answers are known, too, and those without an id serve whoever asks.
    let all = ask_into(&requests).unwrap();
    assert_eq!((all.progress.stored, stub.seen().len()), (3, 3));
    assert_eq!((0..5).map(|i| format!("answer to prompt {i}")).collect::<Vec<_>>(), {
        all.answers.iter().flatten().map(|answer| answer.text().to_string()).collect::<Vec<_>>()
    });
    assert_eq!(ask_into(&requests).unwrap().progress.stored, 5);
    // What has changed is found by its line, in what was read and in what was written.
    for (index, line) in [(0, 1), (1, 3)] {
        let mut changed = requests.clone();
        changed[index].messages[0].content = "another prompt".into();
        let error = ask_into(&changed).unwrap_err();
        assert!(
            matches!(&error, TeacherError::RequestChanged { line: found, .. } if *found == line),
            "{error}"
        );
    }
    let mut twice = requests.clone();
    twice[1].id = "id-0".into();
    assert!(matches!(ask_into(&twice).unwrap_err(), TeacherError::DuplicateId(id) if id == "id-0"));
    assert!(matches!(AnswerFile::open(&path), Err(TeacherError::File(Error::Locked(_)))));
    drop(file);
    assert_eq!(ask(stub.config(), &requests, &path).unwrap().answers, all.answers);
    assert_eq!(stub.seen().len(), 3);
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(24))]

    #[test]
    fn a_file_that_was_cut_anywhere_is_completed(cut in 0.0..1.0f64) {
        let stub = Stub::start(echo);
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("answers.jsonl");
        let requests = requests(6);
        let whole: String =
            requests.iter().map(|r| line(r, &format!("answer to {}", r.messages[0].content))).collect();
        let bytes = &whole.as_bytes()[..(whole.len() as f64 * cut) as usize];
        std::fs::write(&path, bytes).unwrap();
        let stored = read_answers(&path).unwrap().len();
        let outcome = ask(stub.config(), &requests, &path).unwrap();
        assert_complete(&requests, &outcome, &path);
        prop_assert_eq!(outcome.progress.stored, stored);
        prop_assert_eq!(stub.seen().len(), 6 - stored);
        prop_assert!(std::fs::read(&path).unwrap().ends_with(b"\n"));
    }

    #[test]
    fn no_file_makes_the_reader_panic(bytes in prop::collection::vec(any::<u8>(), 0..60), text in "[\\[\\]{}\",:a0\n]{0,40}") {
        let file = tempfile::NamedTempFile::new().unwrap();
        for content in [bytes, text.into_bytes()] {
            std::fs::write(file.path(), content).unwrap();
            let _ = read_answers(file.path());
        }
    }
}
