//! A teacher that takes the last turn of a rollout.

use std::ops::ControlFlow;

use ruminate_datasets::NullObserver;
use ruminate_datasets::environments::{Gsm8k, Problem};
use ruminate_datasets::rise::{Answerer, Ask, Failed, MultiTurn, Reply, RolloutConfig, TeacherAnswerer};
use ruminate_datasets::teacher::{Message, Progress, Teacher, TeacherConfig, TeacherObserver};

use crate::stub::{Act, Stub};

/// Stops once there are answers.
struct Impatient;

impl TeacherObserver for Impatient {
    fn progress(&mut self, progress: &Progress) -> ControlFlow<()> {
        if progress.answered > 0 { ControlFlow::Break(()) } else { ControlFlow::Continue(()) }
    }
}

#[test]
fn whoever_watches_the_teacher_may_stop_the_rollout() {
    let stub = Stub::start(|_| Act::slow(10, Act::say(&[r"\boxed{5}"])));
    let folder = tempfile::tempdir().unwrap();
    let (path, episodes) = (folder.path().join("answers.jsonl"), folder.path().join("episodes.jsonl"));
    let problem = |row| Problem {
        row,
        question: format!("row {row}?"),
        solution: "#### 5".into(),
        ..Problem::default()
    };
    let problems: Vec<Problem> = (0..6).map(problem).collect();
    let environment = Gsm8k::default();
    let play = |teacher: TeacherAnswerer| {
        let turns = MultiTurn::new(&environment, RolloutConfig::collect(&[1]), &[&teacher]).unwrap();
        turns.play(&problems, Some(&episodes), &mut NullObserver).unwrap()
    };
    let config = || TeacherConfig { concurrency: 1, ..stub.config() };
    let teacher = || TeacherAnswerer::new(Teacher::new(config()).unwrap(), &path);
    assert!(play(teacher().watched_by(Impatient)).episodes.is_empty());
    let log = play(teacher());
    assert!(log.episodes.iter().all(|episode| episode.max_reward == Some(1.0)));
    assert_eq!((log.episodes.len(), stub.seen().len()), (6, 6));
}

#[test]
fn batches_share_one_reading_of_the_file() {
    let stub = Stub::start(|_| Act::say(&[r"\boxed{5}"]));
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("answers.jsonl");
    let teacher = TeacherAnswerer::new(Teacher::new(stub.config()).unwrap(), &path);
    let ask = |row| Ask {
        row,
        turn: 1,
        attempt: 0,
        samples: 1,
        seed: row as u64,
        messages: vec![Message::new("user", format!("row {row}?"))],
    };
    assert!(!path.exists());
    let first = teacher.answer(&[ask(0)]).unwrap();
    // Whoever read it again would stumble.
    let text = std::fs::read_to_string(&path).unwrap();
    std::fs::write(&path, "damaged\n").unwrap();
    assert_eq!(teacher.answer(&[ask(0), ask(1)]).unwrap()[0], first[0]);
    assert_eq!(stub.seen().len(), 2);
    // After an error it is: the second question with its id is not the first one.
    let other = Ask { messages: vec![Message::new("user", "another?")], ..ask(0) };
    let error = teacher.answer(std::slice::from_ref(&other)).unwrap_err().to_string();
    assert!(error.contains("row 0"), "{error}");
    let error = teacher.answer(&[ask(0)]).unwrap_err().to_string();
    assert!(error.contains("line 1"), "{error}");
    std::fs::write(&path, text).unwrap();
    assert_eq!(teacher.answer(&[ask(0)]).unwrap(), first);
    assert_eq!(stub.seen().len(), 2);
}

#[test]
fn a_teacher_answers_what_the_student_cannot_and_is_asked_once() {
    let stub = Stub::start(|seen| {
        if seen.prompt().ends_with("row 2?") {
            return Act::Reply(400, "", "{\"error\": {\"message\": \"I would rather not\"}}".into());
        }
        let n = seen.body["n"].as_u64().unwrap_or(1) as usize;
        Act::say(&vec![r"\boxed{5}"; n])
    });
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("answers.jsonl");
    let student = |asks: &[Ask]| -> Result<Vec<Reply>, Failed> {
        Ok(asks.iter().map(|_| Reply::Texts(vec![r"\boxed{4}".into()])).collect())
    };
    let problem = |row| Problem {
        row,
        question: format!("row {row}?"),
        solution: "#### 5".into(),
        ..Problem::default()
    };
    let problems: Vec<Problem> = (0..4).map(problem).collect();
    let environment = Gsm8k::default();
    let play = || {
        let teacher = TeacherAnswerer::new(Teacher::new(stub.config()).unwrap(), &path);
        let answerers: [&dyn Answerer; 2] = [&student, &teacher];
        let turns = MultiTurn::new(&environment, RolloutConfig::collect(&[1, 2]), &answerers).unwrap();
        turns.batch(3).play(&problems, None, &mut NullObserver).unwrap()
    };
    let log = play();
    for (row, episode) in log.episodes.iter().enumerate() {
        let history = &episode.turn_history;
        if row == 2 {
            assert_eq!(
                (history.actions[&1].as_slice(), episode.max_reward),
                (&["blocked".into()][..], Some(0.0))
            );
        } else {
            assert_eq!((history.actions[&1].len(), episode.max_reward), (2, Some(1.0)));
        }
        let roles: Vec<&str> = episode.dialogue.iter().flatten().map(|m| m.role.as_str()).collect();
        assert_eq!(roles, ["user", "assistant", "user", "assistant", "user"]);
    }
    let body = &stub.seen()[0].body;
    assert_eq!((body["max_tokens"].as_u64(), body["temperature"].as_f64()), (Some(512), Some(0.7)));
    stub.forget();
    assert_eq!(play(), log);
    // What was answered is in the file; what was refused is asked for again.
    assert!(stub.seen().iter().all(|seen| seen.prompt().ends_with("row 2?")));
}
