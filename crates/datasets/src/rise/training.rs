//! The text that a model is trained on.

use std::ops::Range;

use serde::{Deserialize, Serialize};

use super::TrainingExample;
use crate::chat::{ChatError, ChatTemplate, Message, NamedTemplate};
use crate::environments::Compat;
use crate::python;

/// How an example is laid out.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Layout {
    /// All messages are turns of the dialogue, as the model is asked.
    #[default]
    Dialogue,
    /// As published: always Zephyr's markers, and the demonstration's question as system text.
    ZephyrSystemDemo,
}

/// A rendered example.
#[derive(Debug, Clone, PartialEq)]
pub struct TrainingText {
    /// The text. The begin token is in it only where the template writes it.
    pub text: String,
    /// Bytes of the text that are trained: answers with the markers that end them.
    pub spans: Vec<Range<usize>>,
    /// The weight of the loss.
    pub weight: f64,
}

/// Renders an example. The model's messages whose `loss` is not 0 are trained, and nothing else.
///
/// # Reference behaviour
/// The published code counts the tokens of pieces between role markers, and trains nothing where an answer holds such a marker or a
/// human message comes last; in the latter case the weight is 0 too. [`Compat::Reference`] does so for
/// [`Layout::ZephyrSystemDemo`].
///
/// # Errors
/// [`ChatError`], also for messages that come from neither `human` nor `gpt`, or not from a human first where the first one becomes
/// the system text.
pub fn training_text(
    example: &TrainingExample,
    template: &ChatTemplate,
    layout: Layout,
    compat: Compat,
) -> Result<TrainingText, ChatError> {
    let mut messages = vec![];
    for (index, said) in example.conversations.iter().enumerate() {
        let role = match said.from.as_str() {
            "human" => "user",
            "gpt" => "assistant",
            other => {
                let expected = "messages of examples come from human or gpt";
                return Err(ChatError::Role { index, role: other.into(), expected });
            }
        };
        messages.push(Message::new(role, said.value.as_str()));
    }
    let zephyr = ChatTemplate::from(NamedTemplate::Zephyr);
    let template = match layout {
        Layout::Dialogue => template,
        Layout::ZephyrSystemDemo => {
            let Some(first) = messages.first_mut().filter(|first| first.role == "user") else {
                let role = example.conversations.first().map_or("", |said| said.from.as_str());
                let expected = "this layout makes the system text of a first message from human";
                return Err(ChatError::Role { index: 0, role: role.into(), expected });
            };
            *first = Message::new("system", python::strip(&first.content));
            &zephyr
        }
    };
    let trained: Vec<bool> =
        example.conversations.iter().map(|said| said.is_models() && said.loss != 0.0).collect();
    let rendered = template.conversation(&messages)?;
    let mut result =
        TrainingText { spans: rendered.spans(&trained), text: rendered.text, weight: example.weight() };
    if compat == Compat::Reference && layout == Layout::ZephyrSystemDemo {
        let ends_with_human = example.conversations.last().is_some_and(|said| !said.is_models());
        let marker = |text: &str| ["<|user|>", "<|assistant|>"].iter().any(|marker| text.contains(marker));
        if ends_with_human {
            result.weight = 0.0;
        }
        if ends_with_human || example.conversations.iter().any(|said| said.is_models() && marker(&said.value))
        {
            result.spans.clear();
        }
    }
    Ok(result)
}

#[cfg(test)]
mod tests {
    use std::cell::RefCell;

    use super::*;
    use crate::NullObserver;
    use crate::chat::JinjaTemplate;
    use crate::environments::{Gsm8k, Problem};
    use crate::rise::{
        Answerer, Ask, ConvertConfig, Failed, MultiTurn, Reply, RolloutConfig, Utterance, convert,
    };

    fn example(turns: &[(&str, &str, f64)]) -> TrainingExample {
        let said = |&(from, value, loss): &(&str, &str, f64)| Utterance {
            from: from.into(),
            value: value.into(),
            loss,
        };
        TrainingExample { id: "identity_0".into(), conversations: turns.iter().map(said).collect() }
    }

    #[test]
    fn strangers_are_named() {
        let render = |example: &TrainingExample, layout| {
            let template = NamedTemplate::Llama2.into();
            training_text(example, &template, layout, Compat::Fixed).map_err(|error| error.to_string())
        };
        let system = example(&[("human", "q", 0.0), ("system", "s", 0.0)]);
        assert!(render(&system, Layout::Dialogue).unwrap_err().contains("message 1 has the role `system`"));
        let model = example(&[("gpt", "a", 1.0)]);
        assert!(
            render(&model, Layout::ZephyrSystemDemo).unwrap_err().contains("message 0 has the role `gpt`")
        );
        assert!(render(&example(&[]), Layout::ZephyrSystemDemo).is_err());
        let text = render(&model, Layout::Dialogue).unwrap();
        assert_eq!(&text.text[text.spans[0].clone()], "a </s>");
    }

    #[test]
    fn training_sees_what_generation_sends() {
        let turns =
            [("human", "q", 0.0), ("gpt", " wrong", 0.0), ("human", "no", 0.0), ("gpt", " right", 2.0)];
        for template in NamedTemplate::ALL.map(ChatTemplate::from) {
            let text = training_text(&example(&turns), &template, Layout::Dialogue, Compat::Fixed).unwrap();
            assert_eq!((text.spans.len(), text.weight), (1, 2.0));
            let asked = [("user", "q"), ("agent", " wrong"), ("user", "no")].map(|(r, t)| Message::new(r, t));
            assert!(text.text.starts_with(&template.prompt(&asked).unwrap()));
            assert_eq!(text.spans[0].end, text.text.len());
        }
    }

    /// A rollout of several turns with a model whose answers have white space around them; whatever each turn was sent begins the
    /// example that is made of it, and the trained part begins with what was stored.
    #[test]
    fn what_is_sent_is_what_is_stored_and_trained_on() {
        let jinja = "{% for m in messages %}{{ m.role }}: {{ m.content }}{% if m.role == 'assistant' %}</s>{% endif %}\n\
            {% endfor %}{% if add_generation_prompt %}assistant: {% endif %}";
        let jinja = ChatTemplate::from(JinjaTemplate::new(jinja, &[]).unwrap());
        let problem = Problem { question: "q?".into(), solution: "#### 9".into(), ..Problem::default() };
        let environment = Gsm8k::default();
        for template in NamedTemplate::ALL.into_iter().map(ChatTemplate::from).chain([jinja]) {
            let sent = RefCell::new(vec![]);
            let model = |asks: &[Ask]| -> Result<Vec<Reply>, Failed> {
                let answer = |ask: &Ask| {
                    sent.borrow_mut().push(template.prompt(&ask.messages).unwrap());
                    Reply::Texts(vec![format!(" \n\\boxed{{{}}} \n", ask.turn)])
                };
                Ok(asks.iter().map(answer).collect())
            };
            let players: [&dyn Answerer; 4] = [&model; 4];
            let turns = MultiTurn::new(&environment, RolloutConfig::collect(&[1; 4]), &players).unwrap();
            let log = turns.play(std::slice::from_ref(&problem), None, &mut NullObserver).unwrap();
            let stored = &log.episodes[0].turn_history.best_actions;
            for remove_duplicates in [false, true] {
                let config = ConvertConfig { remove_duplicates, shuffle: false, ..ConvertConfig::default() };
                let examples = convert(&log, &environment, &config).examples;
                assert_eq!(examples.len(), 4);
                for ((example, sent), stored) in examples.iter().zip(sent.borrow().iter()).zip(stored) {
                    let text = training_text(example, &template, Layout::Dialogue, Compat::Fixed).unwrap();
                    assert!(text.text.starts_with(sent.as_str()), "{sent}\n{}", text.text);
                    let blank = if template.blank_before_answers() { " " } else { "" };
                    assert!(
                        text.text[sent.len()..].starts_with(&format!("{blank}{stored}")),
                        "{}",
                        text.text
                    );
                    assert!(text.text[text.spans[0].clone()].starts_with(stored.as_str()));
                }
            }
        }
    }
}
