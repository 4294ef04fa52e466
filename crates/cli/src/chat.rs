//! How texts and dialogues become what a model reads.

use std::path::Path;

use anyhow::Context;
use ruminate::algorithms::encode_supervised;
use ruminate::algorithms::ppo::Prompt;
use ruminate::datasets::chat::{ChatError, ChatTemplate};
use ruminate::datasets::rows::{PromptRow, TextOrMessages};
use ruminate::datasets::teacher::Message;
use ruminate::datasets::{DialoguePreference, PreferenceExample, SupervisedExample};
use ruminate::models::{Example, TokenId, Tokenizer};
use ruminate::run::ConfigError;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

/// Chat templates: the section `[chat]`.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(default, deny_unknown_fields)]
pub(crate) struct ChatSection {
    /// The template of dialogues: that of the model's folder unless a name is given, such as `llama-3` or `zephyr`.
    pub(crate) template: Option<String>,
    /// Put a prompt that is a plain text to the model as a user's message, and its completion as the answer.
    pub(crate) wrap: bool,
    /// A system message in front of each dialogue that has none. Empty for none.
    pub(crate) system: String,
}

/// Turns texts and dialogues into token ids by the rules of one model.
#[derive(Debug)]
pub(crate) struct Encoder {
    pub(crate) tokenizer: Tokenizer,
    pub(crate) template: Option<ChatTemplate>,
    section: ChatSection,
}

impl Encoder {
    /// The tokenizer of a model, and the template that lies in its folder or is named.
    pub(crate) fn new(section: &ChatSection, tokenizer: Tokenizer, folder: &Path) -> anyhow::Result<Self> {
        let template = match &section.template {
            Some(name) => Some(ChatTemplate::select(name, folder).context("chat.template")?),
            None => match ChatTemplate::open(folder) {
                // Plain texts need none.
                Err(ChatError::NoTemplate { .. }) => None,
                template => Some(template?),
            },
        };
        if template.is_none() && (section.wrap || !section.system.is_empty()) {
            let key = if section.wrap { "chat.wrap" } else { "chat.system" };
            let reason = format!(
                "{key} needs a chat template, and {} has none; name one with chat.template, such as llama-3",
                folder.display()
            );
            return Err(ConfigError::invalid(reason).into());
        }
        Ok(Self { tokenizer, template, section: section.clone() })
    }

    pub(crate) fn template(&self) -> anyhow::Result<&ChatTemplate> {
        self.template.as_ref().ok_or_else(|| {
            let reason = "a row holds messages, but the model's folder has no chat template; name one with \
                          chat.template, such as llama-3, or give prompts as plain texts";
            ConfigError::invalid(reason).into()
        })
    }

    /// A dialogue, led by the system message of the settings unless it has one.
    pub(crate) fn dialogue(&self, messages: &[Message]) -> Vec<Message> {
        let led = messages.first().is_some_and(|first| first.role == "system");
        let system = (!led && !self.section.system.is_empty())
            .then(|| Message::new("system", self.section.system.clone()));
        system.into_iter().chain(messages.iter().cloned()).collect()
    }

    /// The prompt as the model is given it: as it is, or as messages.
    fn given(&self, prompt: &TextOrMessages) -> TextOrMessages {
        match prompt {
            TextOrMessages::Text(text) if self.section.wrap => {
                TextOrMessages::Messages(self.dialogue(&[Message::new("user", text.clone())]))
            }
            TextOrMessages::Text(text) => TextOrMessages::Text(text.clone()),
            TextOrMessages::Messages(messages) => TextOrMessages::Messages(self.dialogue(messages)),
        }
    }

    /// The text of a prompt, and its token ids.
    pub(crate) fn prompt(&self, prompt: &TextOrMessages) -> anyhow::Result<(String, Vec<TokenId>)> {
        match self.given(prompt) {
            TextOrMessages::Text(text) => {
                let ids = self.tokenizer.encode(&text)?;
                Ok((text, ids))
            }
            TextOrMessages::Messages(messages) => {
                let template = self.template()?;
                let text = template.prompt(&messages)?;
                let ids = match template {
                    ChatTemplate::Jinja(_) => self.tokenizer.encode_plain(&text)?,
                    ChatTemplate::Named(_) => self.tokenizer.encode_with_offsets(&text)?.ids,
                };
                Ok((text, ids))
            }
        }
    }

    /// A prompt with its completion in token ids, as fine-tuning would have it.
    pub(crate) fn scored(&self, prompt: &TextOrMessages, completion: &str) -> anyhow::Result<Example> {
        let example = match self.given(prompt) {
            TextOrMessages::Text(prompt) => {
                SupervisedExample::Completion { prompt, completion: completion.into() }
            }
            TextOrMessages::Messages(prompt) => {
                SupervisedExample::Answer { prompt, completion: vec![Message::new("assistant", completion)] }
            }
        };
        let encoded = encode_supervised(&self.tokenizer, self.template.as_ref(), &[example], usize::MAX)?;
        encoded.into_iter().next().ok_or_else(|| anyhow::anyhow!("a completion has no token"))
    }

    /// A row as a prompt that responses are drawn for.
    pub(crate) fn prompt_of(&self, row: PromptRow) -> anyhow::Result<Prompt<PromptRow>> {
        let (text, ids) = self.prompt(&row.prompt)?;
        anyhow::ensure!(!ids.is_empty(), ConfigError::invalid("a prompt is empty, so nothing can follow it"));
        Ok(Prompt { ids, text, task: String::new(), item: row })
    }

    /// A row of fine-tuning, as the settings want it.
    pub(crate) fn example(&self, example: SupervisedExample) -> SupervisedExample {
        match example {
            SupervisedExample::Completion { prompt, completion } if self.section.wrap => {
                SupervisedExample::Answer {
                    prompt: self.dialogue(&[Message::new("user", prompt)]),
                    completion: vec![Message::new("assistant", completion)],
                }
            }
            SupervisedExample::Completion { .. } => example,
            SupervisedExample::Dialogue { messages } => {
                SupervisedExample::Dialogue { messages: self.dialogue(&messages) }
            }
            SupervisedExample::Answer { prompt, completion } => {
                SupervisedExample::Answer { prompt: self.dialogue(&prompt), completion }
            }
        }
    }

    /// True if preferences between plain texts are to be put as dialogues.
    pub(crate) fn wraps(&self) -> bool {
        self.section.wrap
    }

    /// A preference between dialogues, led by the system message of the settings.
    pub(crate) fn preference(&self, pair: DialoguePreference) -> DialoguePreference {
        DialoguePreference { prompt: self.dialogue(&pair.prompt), ..pair }
    }

    /// A preference between texts as one between dialogues.
    pub(crate) fn wrapped(&self, pair: PreferenceExample) -> DialoguePreference {
        let PreferenceExample { prompt, chosen, rejected, weight, source } = pair;
        let answer = |text: String| vec![Message::new("assistant", text)];
        let prompt = self.dialogue(&[Message::new("user", prompt)]);
        DialoguePreference { prompt, chosen: answer(chosen), rejected: answer(rejected), weight, source }
    }
}
