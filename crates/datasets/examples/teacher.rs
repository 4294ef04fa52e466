//! TinyThinker's teacher: from questions to training items, in as many rounds as the paper has.

use std::path::Path;

use ruminate_datasets::teacher::{Teacher, TeacherConfig, TeacherError};
use ruminate_datasets::tinythinker::{Item, Question, Source, Teaching, TeachingConfig};
use ruminate_datasets::{BadRows, NullObserver};

/// Asks about each question, and again for candidates that were not in order. One file of answers for each round.
pub(crate) fn items(
    teacher: &Teacher,
    source: Source,
    system: &str,
    questions: &[Question],
    folder: &Path,
) -> Result<Vec<Item>, TeacherError> {
    let mut teaching = Teaching::new(source, system, questions, TeachingConfig::default());
    loop {
        let requests = teaching.requests();
        if requests.is_empty() {
            return Ok(teaching.items().0);
        }
        let path = folder.join(format!("answers_{}.jsonl", teaching.round()));
        // Whatever is wrong with single candidates is for the next round.
        let outcome = teacher.ask(&requests, &path, |_, _| Ok(()), &mut NullObserver)?;
        teaching.take(&outcome.answers);
    }
}

#[allow(dead_code, clippy::print_stdout, reason = "the result is for whoever runs the example")]
fn main() -> Result<(), Box<dyn std::error::Error>> {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let [base_url, model, questions] = &arguments[..] else {
        return Err("usage: teacher BASE_URL MODEL QUESTIONS.jsonl".into());
    };
    // The key is in the environment variable OPENAI_API_KEY; a local server takes any.
    let config =
        TeacherConfig { base_url: base_url.clone(), model: model.clone(), ..TeacherConfig::default() };
    let (questions, _) = Source::Csqa.read(questions.as_ref(), BadRows::Refuse)?;
    let system = "State the key information that the question turns on, then judge each option.";
    let items = items(&Teacher::new(config)?, Source::Csqa, system, &questions, "teacher".as_ref())?;
    ruminate_datasets::json::write("teacher/items.json".as_ref(), &items)?;
    println!("{} items about {} questions are in teacher/items.json", items.len(), questions.len());
    Ok(())
}
