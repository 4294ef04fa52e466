//! What a model is shown before its next attempt.

use super::{RolloutConfig, TurnHistory};
use crate::chat::Message;
use crate::environments::{Compat, Environment, Problem};
use crate::python;

/// The dialogue before the next attempt: demonstration, opening, then attempts and what was said to them. `role` is the name of the
/// answering side.
///
/// # Reference behaviour
/// Beyond [`RolloutConfig::dialogue_limit`] the history starts with an attempt, and a [`RolloutConfig::context_window`] of 1 sends
/// everything. [`Compat::Fixed`] starts with a message of the user, and sends the question only.
#[must_use]
pub fn dialogue(
    environment: &dyn Environment,
    problem: &Problem,
    history: &TurnHistory,
    role: &str,
    config: &RolloutConfig,
) -> Vec<Message> {
    let turn = history.best_actions.len();
    let kept = match config.context_window {
        Some(1) if config.compat == Compat::Reference => turn,
        Some(window) if turn >= window => window.saturating_sub(1),
        _ => turn,
    };
    let mut messages = vec![Message::new("user", environment.opening(problem))];
    for (action, observation) in history.best_actions.iter().zip(&history.best_observations).skip(turn - kept)
    {
        messages.push(Message::new(role, action));
        messages.push(Message::new("user", observation));
    }
    if messages.len() > config.dialogue_limit {
        let limit = match config.compat {
            Compat::Reference => config.dialogue_limit,
            // An odd number ends and begins with the user.
            Compat::Fixed => config.dialogue_limit - usize::from(config.dialogue_limit.is_multiple_of(2)),
        };
        messages.drain(..messages.len() - limit);
    }
    let demonstration = environment
        .demonstration()
        .into_iter()
        .flat_map(|[question, answer]| [Message::new("user", question), Message::new(role, answer)]);
    demonstration.chain(messages).collect()
}

/// Has a model got stuck? Some word (in lower case, between white space) occurs more than 150 times or has more than 300
/// characters.
#[must_use]
pub fn is_degenerate(text: &str) -> bool {
    let lower = text.to_lowercase();
    let mut words: Vec<&str> = lower.split(python::is_space).filter(|word| !word.is_empty()).collect();
    words.sort_unstable();
    let repeated = words.chunk_by(|a, b| a == b).any(|equal| equal.len() > 150);
    repeated || words.iter().any(|word| word.chars().count() > 300)
}

/// Drops degenerate texts.
///
/// # Reference behaviour
/// The list is changed while it is gone through, so that the text after a dropped one is never looked at.
pub(super) fn drop_degenerate(texts: &mut Vec<String>, compat: Compat) {
    if compat == Compat::Fixed {
        texts.retain(|text| !is_degenerate(text));
        return;
    }
    let mut at = 0;
    while at < texts.len() {
        if is_degenerate(&texts[at]) {
            // Python's `remove` takes the first equal one.
            let first = texts.iter().position(|text| *text == texts[at]).unwrap_or(at);
            texts.remove(first);
        }
        at += 1;
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::environments::Gsm8k;

    fn played(turns: usize) -> TurnHistory {
        TurnHistory {
            best_actions: (0..turns).map(|t| format!("a{t}")).collect(),
            best_observations: (0..turns).map(|t| format!("o{t}")).collect(),
            ..TurnHistory::default()
        }
    }

    #[test]
    fn dialogues_begin_and_end_with_the_user_whatever_the_limits() {
        let problem = Problem { question: "q".into(), ..Problem::default() };
        for turns in 0..13 {
            for limit in 1..8 {
                for window in [None, Some(1), Some(2), Some(3)] {
                    let config = RolloutConfig {
                        dialogue_limit: limit,
                        context_window: window,
                        ..RolloutConfig::default()
                    };
                    let messages = dialogue(&Gsm8k::default(), &problem, &played(turns), "agent", &config);
                    assert!(messages.len() <= limit + 2);
                    for (i, message) in messages.iter().enumerate() {
                        assert_eq!(message.role, if i % 2 == 0 { "user" } else { "agent" });
                    }
                    assert!(messages.len() % 2 == 1);
                    if let Some(window) = window {
                        assert!(messages.len() <= 3 + 2 * (window - 1));
                    }
                }
            }
        }
    }

    #[test]
    fn limits_of_degeneration_are_exact() {
        let words = |n: usize| "Loop loop ".repeat(n / 2);
        assert!(!is_degenerate(&words(150)) && is_degenerate(&words(152)));
        assert!(!is_degenerate(&"é".repeat(300)) && is_degenerate(&"é".repeat(301)));
        assert!(!is_degenerate(""));
    }
}
