//! Templates as code.

use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Serialize};

use super::{Answer, ChatError, Message, Rendered, Result, is_answer};
use crate::{TokenId, python};

const VICUNA_SYSTEM: &str = "A chat between a curious user and an artificial intelligence assistant. The assistant gives \
    helpful, detailed, and polite answers to the user's questions.";
const DEEPSEEK_BEGIN: &str = "<｜begin▁of▁sentence｜>";
const DEEPSEEK_END: &str = "<｜end▁of▁sentence｜>";

/// Templates of well-known models. An empty message counts as absent: only the marker of its role is written. A first message
/// of the role `system` is the system text; an empty one counts as absent too.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum NamedTemplate {
    /// Llama 2 chat.
    #[serde(rename = "llama-2")]
    Llama2,
    /// Mistral Instruct.
    MistralInstruct,
    /// Zephyr.
    Zephyr,
    /// Vicuna 1.1 and 1.5, with its system text unless there is another.
    Vicuna,
    /// Llama 3 Instruct. Writes the begin token; texts are trimmed.
    #[serde(rename = "llama-3")]
    Llama3,
    /// DeepSeekMath Instruct. Writes the begin token.
    DeepseekMath,
}

/// A message on the side that it belongs to.
#[derive(Clone, Copy)]
enum Side {
    User,
    Answer,
}

impl NamedTemplate {
    /// All of them.
    pub const ALL: [Self; 6] =
        [Self::Llama2, Self::MistralInstruct, Self::Zephyr, Self::Vicuna, Self::Llama3, Self::DeepseekMath];

    /// The name in configurations.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Self::Llama2 => "llama-2",
            Self::MistralInstruct => "mistral-instruct",
            Self::Zephyr => "zephyr",
            Self::Vicuna => "vicuna",
            Self::Llama3 => "llama-3",
            Self::DeepseekMath => "deepseek-math",
        }
    }

    /// Text that ends an answer besides the model's end token.
    #[must_use]
    pub fn stop_strings(self) -> &'static [&'static str] {
        match self {
            Self::Zephyr => &["</s>"],
            Self::Llama3 => &["<|eot_id|>"],
            Self::DeepseekMath => &[DEEPSEEK_END],
            Self::Llama2 | Self::MistralInstruct | Self::Vicuna => &[],
        }
    }

    /// The same as ids in the vocabularies of these models.
    #[must_use]
    pub fn stop_ids(self) -> &'static [TokenId] {
        match self {
            Self::Zephyr => &[2],
            Self::Llama3 => &[128_001, 128_009],
            _ => &[],
        }
    }

    /// Whether a blank of the template's own stands between the marker of an answer and its text. A model whose tokens carry their
    /// leading blank writes it itself, because a prompt ends with the marker; it is no part of the answer's text.
    #[must_use]
    pub fn blank_before_answers(self) -> bool {
        self.parts(Side::Answer, false).1 == " "
    }

    /// The dialogue as FastChat writes it, with the marker of another answer at the end where `open` asks for it.
    ///
    /// # Errors
    /// [`ChatError::Role`].
    pub fn render(self, messages: &[Message], open: bool) -> Result<Rendered> {
        let system = messages.first().filter(|message| message.role == "system");
        let skipped = usize::from(system.is_some());
        let system = system.map(|message| message.content.as_str()).filter(|text| !text.is_empty());
        let mut out = Rendered { text: self.begin(system), answers: vec![] };
        for (index, message) in messages.iter().enumerate().skip(skipped) {
            let side = match message.role.as_str() {
                "user" => Side::User,
                role if is_answer(role) => Side::Answer,
                role => {
                    let expected = if role == "system" {
                        "only the first message may have it"
                    } else {
                        "there are system, user, assistant and agent"
                    };
                    return Err(ChatError::Role { index, role: role.into(), expected });
                }
            };
            self.message(&mut out, index, index == skipped, side, &message.content);
        }
        if open {
            self.message(&mut out, messages.len(), messages.len() == skipped, Side::Answer, "");
        }
        Ok(out)
    }

    fn begin(self, system: Option<&str>) -> String {
        match (self, system) {
            (Self::Llama2, Some(s)) => format!("[INST] <<SYS>>\n{s}\n<</SYS>>\n\n"),
            (Self::MistralInstruct, Some(s)) => format!("[INST]{s}\n"),
            (Self::Llama2 | Self::MistralInstruct, None) => "[INST] ".into(),
            (Self::Zephyr, s) => format!("<|system|>\n{}</s>\n", s.unwrap_or_default()),
            (Self::Vicuna, s) => format!("{} ", s.unwrap_or(VICUNA_SYSTEM)),
            (Self::Llama3, None) => "<|begin_of_text|>".into(),
            (Self::Llama3, Some(s)) => {
                format!("<|begin_of_text|><|start_header_id|>system<|end_header_id|>\n\n{s}<|eot_id|>")
            }
            (Self::DeepseekMath, s) => {
                let s = s.map(|s| format!("{s}\n\n")).unwrap_or_default();
                format!("{DEEPSEEK_BEGIN}{s}")
            }
        }
    }

    /// Marker, blank, text, end, and what stands before the next message.
    fn message(self, out: &mut Rendered, index: usize, first: bool, side: Side, text: &str) {
        let (marker, blank, end, after) = self.parts(side, first && !text.is_empty());
        out.text.push_str(marker);
        if text.is_empty() {
            return;
        }
        out.text.push_str(blank);
        let start = out.text.len();
        out.text.push_str(if self == Self::Llama3 { python::strip(text) } else { text });
        out.text.push_str(end);
        if let Side::Answer = side {
            out.answers.push(Answer { message: index, span: start..out.text.len() });
        }
        out.text.push_str(after);
    }

    /// Marker, blank, end, and what stands before the next message; `opens` says whether it is the first message and has a text.
    fn parts(self, side: Side, opens: bool) -> (&'static str, &'static str, &'static str, &'static str) {
        match (self, side) {
            // The marker of the first question stands before the system text already.
            (Self::Llama2 | Self::MistralInstruct, Side::User) if opens => ("", "", " ", ""),
            (Self::Llama2 | Self::MistralInstruct, Side::User) => ("[INST]", " ", " ", ""),
            (Self::Llama2, Side::Answer) => ("[/INST]", " ", " </s>", "<s>"),
            (Self::MistralInstruct, Side::Answer) => ("[/INST]", " ", "</s>", ""),
            (Self::Zephyr, Side::User) => ("<|user|>\n", "", "</s>\n", ""),
            (Self::Zephyr, Side::Answer) => ("<|assistant|>\n", "", "</s>\n", ""),
            (Self::Vicuna, Side::User) => ("USER:", " ", " ", ""),
            (Self::Vicuna, Side::Answer) => ("ASSISTANT:", " ", "</s>", ""),
            (Self::Llama3, Side::User) => {
                ("<|start_header_id|>user<|end_header_id|>\n\n", "", "<|eot_id|>", "")
            }
            (Self::Llama3, Side::Answer) => {
                ("<|start_header_id|>assistant<|end_header_id|>\n\n", "", "<|eot_id|>", "")
            }
            (Self::DeepseekMath, Side::User) => ("User:", " ", "\n\n", ""),
            (Self::DeepseekMath, Side::Answer) => ("Assistant:", " ", DEEPSEEK_END, ""),
        }
    }
}

impl fmt::Display for NamedTemplate {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

impl FromStr for NamedTemplate {
    type Err = ChatError;

    fn from_str(name: &str) -> Result<Self> {
        Self::ALL.into_iter().find(|template| template.name() == name).ok_or_else(|| {
            ChatError::UnknownTemplate { name: name.into(), known: Self::ALL.map(Self::name).to_vec() }
        })
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::chat::ChatTemplate;

    #[test]
    fn names_are_the_same_everywhere() {
        for template in NamedTemplate::ALL {
            assert_eq!(template.name().parse::<NamedTemplate>().unwrap(), template);
            assert_eq!(serde_json::to_value(template).unwrap(), template.name());
        }
        let error = "llama-4".parse::<NamedTemplate>().unwrap_err().to_string();
        assert!(error.contains("llama-4") && error.contains("deepseek-math"), "{error}");
    }

    #[test]
    fn roles_in_the_wrong_place_are_refused() {
        let late = [Message::new("user", "a"), Message::new("system", "b")];
        let error = NamedTemplate::Zephyr.render(&late, true).unwrap_err().to_string();
        assert!(error.contains("message 1") && error.contains("only the first"), "{error}");
        let error =
            NamedTemplate::Zephyr.render(&[Message::new("human", "a")], true).unwrap_err().to_string();
        assert!(error.contains("`human`"), "{error}");
    }

    #[test]
    fn a_system_text_keeps_the_begin_token() {
        let messages = [Message::new("system", "S"), Message::new("user", "U")];
        let text = NamedTemplate::DeepseekMath.render(&messages, true).unwrap().text;
        assert_eq!(text, "<｜begin▁of▁sentence｜>S\n\nUser: U\n\nAssistant:");
    }

    fn dialogue() -> impl Strategy<Value = Vec<Message>> {
        let turn =
            |i: usize, text: String| Message::new(if i.is_multiple_of(2) { "user" } else { "agent" }, text);
        prop::collection::vec("[a-zé \\n]{0,6}|</s>|\\[INST\\]|<\\|assistant\\|>\\n", 0..7)
            .prop_map(move |texts| texts.into_iter().enumerate().map(|(i, t)| turn(i, t)).collect())
    }

    proptest! {
        #[test]
        fn spans_hold_exactly_the_answers(messages in dialogue()) {
            for template in NamedTemplate::ALL {
                let rendered = ChatTemplate::from(template).conversation(&messages).unwrap();
                let answers: Vec<usize> =
                    (0..messages.len()).filter(|&i| i % 2 == 1 && !messages[i].content.is_empty()).collect();
                prop_assert_eq!(rendered.answers.iter().map(|a| a.message).collect::<Vec<_>>(), answers);
                for answer in &rendered.answers {
                    let content = &messages[answer.message].content;
                    let content = if template == NamedTemplate::Llama3 { content.trim() } else { content };
                    prop_assert!(rendered.text[answer.span.clone()].starts_with(content));
                    // What stands before an answer is what the model saw when it gave it.
                    let before = ChatTemplate::from(template).prompt(&messages[..answer.message]).unwrap();
                    prop_assert_eq!(rendered.text[..answer.span.start].trim_end_matches(' '), before.trim_end_matches(' '));
                }
            }
        }
    }
}
