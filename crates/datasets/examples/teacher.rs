//! TinyThinker's teacher: from questions to training items, in as many rounds as the paper has.

use std::path::Path;

use ruminate_datasets::BadRows;
use ruminate_datasets::teacher::{Silent, Teacher, TeacherConfig, TeacherError};
use ruminate_datasets::tinythinker::{
    Candidate, Item, Question, Retry, Source, TeacherRequest, check_all, items_of,
};

/// Asks about each question, and again for candidates that were not in order. One file of answers for each round.
pub(crate) fn items(
    teacher: &Teacher,
    source: Source,
    system: &str,
    questions: &[Question],
    folder: &Path,
) -> Result<Vec<Item>, TeacherError> {
    let mut accepted: Vec<Vec<Candidate>> = vec![vec![]; questions.len()];
    let all = Retry { n: source.candidates(), max_tokens: 256 };
    let mut round: Vec<(usize, Retry)> = (0..questions.len()).map(|i| (i, all)).collect();
    for number in 0..source.rounds() {
        let requests: Vec<_> = round
            .iter()
            .map(|&(i, Retry { n, max_tokens })| {
                let request =
                    TeacherRequest { n, max_tokens, ..TeacherRequest::new(source, system, &questions[i]) };
                request.named(format!("{}/{number}", questions[i].id))
            })
            .collect();
        let path = folder.join(format!("answers_{number}.jsonl"));
        // Whatever is wrong with single candidates is for the next round.
        let outcome = teacher.ask(&requests, &path, |_, _| Ok(()), &mut Silent)?;
        let mut next = vec![];
        for (&(i, asked), answer) in round.iter().zip(&outcome.answers) {
            let Some(answer) = answer else {
                next.push((i, asked));
                continue;
            };
            let checked = check_all(&answer.choices, &questions[i].labels());
            let max_tokens = if checked.cut_off() { 2 * asked.max_tokens } else { asked.max_tokens };
            if !checked.rejected.is_empty() {
                next.push((i, Retry { n: checked.rejected.len(), max_tokens }));
            }
            accepted[i].extend(checked.accepted);
        }
        round = next;
    }
    let items = questions.iter().zip(&accepted).filter(|(_, accepted)| !accepted.is_empty());
    Ok(items
        .flat_map(|(question, accepted)| {
            items_of(question, accepted, Default::default(), source.candidates(), 1).0
        })
        .collect())
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
