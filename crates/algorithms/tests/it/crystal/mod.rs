//! Crystal on the bundled world.

mod data;
mod encoder;
mod evaluation;
mod files;
mod imitation;

use ruminate_algorithms::crystal::{
    CrystalData, Imitation, ImitationConfig, Lengths, QuestionEncoder, read_eval, read_silver,
};
use ruminate_datasets::question::parse_line;
use ruminate_datasets::{Annotated, Compat, Origin, Question, Split, TaskEntry};

use crate::support::{tiny, tokenizer, world};

const TASKS: [&str; 3] = ["lives", "weather", "twohop"];

/// The world's paths and tasks.
fn data(engine: &str) -> CrystalData {
    let below = |path: &str| world("crystal").join(path).display().to_string();
    CrystalData {
        data_path: below("{datapath}/{split}.tsv"),
        knowledge_path: below("knowledge/knowledge_gkp_gpt3{engine}.{split}.{task}.json"),
        engine: engine.into(),
        train_tasks: TASKS.map(String::from).into(),
        eval_tasks: TASKS.map(String::from).into(),
        tasks: TASKS.map(|task| (task.to_string(), TaskEntry::new(format!("uqa/{task}")))).into(),
        ..CrystalData::default()
    }
}

fn encoder() -> QuestionEncoder {
    let lengths = Lengths { max_question_len: 32, max_knowledge_len: 16, max_answer_len: 2 };
    QuestionEncoder::new(tokenizer(), &tiny(0.0).into(), lengths, Compat::Reference).unwrap()
}

fn silver(engine: &str, split: Split) -> Vec<Annotated> {
    read_silver(&data(engine), split).unwrap().items
}

/// Stage I on the world.
pub(crate) fn imitation(config: ImitationConfig) -> Imitation {
    imitation::imitation(config, "clean")
}

/// Some statement of the world.
fn statement() -> String {
    silver("clean", Split::Dev).remove(0).knowledges.remove(0)
}

/// Questions of all three tasks, of three different lengths.
fn questions() -> Vec<Annotated> {
    let all = read_eval(&data("clean"), Split::Dev).unwrap().items;
    all.into_iter().step_by(5).collect()
}

/// A question with that many choices.
fn with_choices(count: u8, split: Split) -> Annotated {
    let choices: Vec<String> = (0..count).map(|i| format!("({}) c{i}", char::from(b'A' + i))).collect();
    let line = format!("Which? \\n {}\tc0", choices.join(" "));
    let question = Question::new(&Origin::new("lives", 0, split), parse_line(&line).unwrap());
    assert_eq!(question.choices.len(), usize::from(count));
    Annotated { question, knowledges: vec![statement()] }
}
