//! An environment of one's own, two turns with it, and the training examples that come of them.

use ruminate_datasets::NullObserver;
use ruminate_datasets::chat::NamedTemplate;
use ruminate_datasets::environments::{Compat, Environment, Judgement, Problem};
use ruminate_datasets::rise::{
    Ask, ConvertConfig, Failed, Layout, MultiTurn, Reply, RolloutConfig, convert, training_text,
};

/// Words to be written backwards. An answer of the right length is worth a little.
struct Reversal;

impl Environment for Reversal {
    fn judge(&self, problem: &Problem, response: &str) -> Judgement {
        let answer = response.split_whitespace().last().map(str::to_owned);
        let reward = match &answer {
            Some(answer) if *answer == problem.solution => 1.0,
            Some(answer) if answer.len() == problem.solution.len() => 0.0,
            _ => -1.0,
        };
        Judgement { reward, answer }
    }

    /// The default is the demonstration of RISE, a question about sets.
    fn demonstration(&self) -> Option<[&str; 2]> {
        Some(["Reverse `ab`.", "The answer is ba"])
    }
}

#[expect(clippy::print_stdout, reason = "the result is for whoever runs the example")]
fn main() -> Result<(), Box<dyn std::error::Error>> {
    let problem = |(row, word): (usize, &str)| Problem {
        row,
        question: format!("Reverse `{word}`."),
        solution: word.chars().rev().collect(),
        ..Problem::default()
    };
    let problems: Vec<Problem> = ["stone", "noon"].into_iter().enumerate().map(problem).collect();

    // Repeats the word at first; reverses it when told that this was wrong.
    let student = |asks: &[Ask]| -> Result<Vec<Reply>, Failed> {
        let reply = |ask: &Ask| {
            let question = &ask.messages.last().ok_or("an empty dialogue")?.content;
            let word = question.rsplit('`').nth(1).ok_or("no word to reverse")?;
            let word = if ask.turn == 0 { word.to_owned() } else { word.chars().rev().collect() };
            Ok(Reply::Texts(vec![format!("The answer is {word}"); ask.samples]))
        };
        asks.iter().map(reply).collect()
    };

    let turns = MultiTurn::new(&Reversal, RolloutConfig::collect(&[1, 1]), &[&student, &student])?;
    let log = turns.play(&problems, None, &mut NullObserver)?;
    for episode in &log.episodes {
        println!("{} {:?}", episode.query, episode.turn_history.best_rewards);
    }
    let config = ConvertConfig { shuffle: false, ..ConvertConfig::default() };
    let template = NamedTemplate::MistralInstruct.into();
    for example in convert(&log, &Reversal, &config).examples {
        let text = training_text(&example, &template, Layout::Dialogue, Compat::Fixed)?;
        let trained: Vec<&str> = text.spans.iter().map(|span| &text.text[span.clone()]).collect();
        println!("weight {:.3} on {trained:?}", text.weight);
    }
    Ok(())
}
