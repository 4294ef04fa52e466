//! The names of the fields.

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

/// The names of the fields in the rows of a file.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(default, deny_unknown_fields)]
pub struct Columns {
    /// The prompt: a text, or messages.
    pub prompt: String,
    /// The text that the model should write, or messages.
    pub completion: String,
    /// A whole dialogue, in place of prompt and completion.
    pub messages: String,
    /// The better completion of a pair.
    pub chosen: String,
    /// The worse completion of a pair.
    pub rejected: String,
    /// The right answer, which rewards compare with.
    pub answer: String,
    /// How good a completion is, for reward-weighted regression.
    pub reward: String,
    /// Factor on the loss of a pair.
    pub weight: String,
    /// Where a pair comes from; metrics are also told by source.
    pub source: String,
}

impl Default for Columns {
    fn default() -> Self {
        Self {
            prompt: "prompt".into(),
            completion: "completion".into(),
            messages: "messages".into(),
            chosen: "chosen".into(),
            rejected: "rejected".into(),
            answer: "answer".into(),
            reward: "reward".into(),
            weight: "weight".into(),
            source: "source".into(),
        }
    }
}

impl Columns {
    pub(super) fn column<'a>(&'a self, key: &'static str) -> Column<'a> {
        let name = match key {
            "prompt" => &self.prompt,
            "completion" => &self.completion,
            "messages" => &self.messages,
            "chosen" => &self.chosen,
            "rejected" => &self.rejected,
            "answer" => &self.answer,
            "reward" => &self.reward,
            "weight" => &self.weight,
            _ => &self.source,
        };
        Column { key, name }
    }

    /// A row of each form as errors show it, with these names.
    pub(super) fn supervised_example(&self) -> String {
        let Self { prompt, completion, messages, .. } = self;
        format!(
            r#"{{"{prompt}": "What do bees make? ", "{completion}": "honey"}} or {{"{messages}": [{{"role": "user", "content": "What do bees make?"}}, {{"role": "assistant", "content": "Honey."}}]}}"#
        )
    }

    pub(super) fn preference_example(&self) -> String {
        let Self { prompt, chosen, rejected, .. } = self;
        format!(
            r#"{{"{prompt}": "What do bees make?", "{chosen}": "Honey.", "{rejected}": "Bread."}}, or all three are lists of messages as [{{"role": "user", "content": "What do bees make?"}}]"#
        )
    }

    pub(super) fn prompt_example(&self) -> String {
        format!(r#"{{"{}": "What do bees make?", "{}": "honey"}}"#, self.prompt, self.answer)
    }

    pub(super) fn weighted_example(&self) -> String {
        let Self { prompt, completion, reward, .. } = self;
        format!(r#"{{"{prompt}": "What do bees make? ", "{completion}": "honey", "{reward}": 1.0}}"#)
    }
}

/// A setting of [`Columns`] and the field that it names.
#[derive(Debug, Clone, Copy)]
pub(super) struct Column<'a> {
    pub(super) key: &'static str,
    pub(super) name: &'a str,
}
