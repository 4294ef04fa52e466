//! The guide's program, on a teacher whose candidates are not all in order.

use std::collections::BTreeSet;

use ruminate_datasets::teacher::{Teacher, TeacherConfig, read_answers};
use ruminate_datasets::tinythinker::{Question, Source};

use crate::stub::{Act, Stub, completion};

#[path = "../../examples/teacher.rs"]
mod example;

#[test]
fn the_guide_shows_the_example_as_it_is() {
    let program = include_str!("../../examples/teacher.rs");
    let guide = include_str!("../../../../docs/guide/teacher.md");
    assert!(guide.contains(program), "copy examples/teacher.rs into docs/guide/teacher.md");
}

/// A candidate; every text is more than ten edits away from the others.
fn candidate(number: usize, answer: char) -> String {
    let other = if answer == 'A' { 'B' } else { 'A' };
    let fact = format!("{number}").repeat(30);
    format!(
        "Key Information: {fact}\nExplanations: {answer} is correct. Because it is so.\n{other} is incorrect. Because it is not."
    )
}

#[test]
fn tinythinkers_items_from_a_teacher_that_is_not_always_in_order() {
    // Four candidates of the first question are asked for: two are in order, one is not, one is cut off.
    let stub = Stub::start(|seen| {
        let n = seen.body["n"].as_u64().unwrap() as usize;
        let texts: Vec<String> = (0..n).map(|i| candidate(4 * seen.earlier + i, 'A')).collect();
        let mut texts: Vec<&str> = texts.iter().map(String::as_str).collect();
        if seen.prompt().starts_with("Is ice") && seen.earlier == 0 {
            texts[1] = "I cannot say.";
            let mut reply = completion(&texts);
            reply["choices"][2]["finish_reason"] = "length".into();
            return Act::Reply(200, "", reply.to_string());
        }
        Act::say(&texts)
    });
    let question =
        |id: &str, stem: &str| Question::new(id, stem, vec!["yes".into(), "no".into()], 'A').unwrap();
    let questions = [question("ice", "Is ice cold?"), question("fire", "Is fire hot?")];
    let folder = tempfile::tempdir().unwrap();
    let config = TeacherConfig { concurrency: 1, ..stub.config() };
    let teacher = Teacher::new(config).unwrap();
    let run = || example::items(&teacher, Source::StrategyQa, "Judge.", &questions, folder.path()).unwrap();
    let items = run();
    assert_eq!(items.len(), 8);
    let distinct: BTreeSet<_> = items.iter().map(|item| (&item.input, &item.general_knowledge)).collect();
    assert_eq!(distinct.len(), 8);
    assert_eq!(items[0].specific_knowledge, ["For option A, it is so.", "For option B, it is not."]);
    let seen = stub.seen();
    let asked: Vec<_> = seen.iter().map(|seen| [&seen.body["n"], &seen.body["max_tokens"]]).collect();
    assert_eq!(asked, [[4, 256], [4, 256], [2, 512]]);
    assert!(
        seen[0].body["messages"][0]["content"] == "Judge."
            && seen[0].prompt().contains("A is correct. Because")
    );
    assert_eq!(read_answers(&folder.path().join("answers_1.jsonl")).unwrap()[0].id.as_deref(), Some("ice/1"));
    // The second time, everything comes from the files.
    stub.forget();
    assert_eq!(run(), items);
    assert!(stub.seen().is_empty());
}
