//! The Jinja templates of checkpoints, in the surroundings that transformers gives them.

use std::collections::BTreeMap;
use std::fmt;
use std::path::Path;
use std::time::SystemTime;

use minijinja::syntax::SyntaxConfig;
use minijinja::value::Value;
use minijinja::{AutoEscape, Environment, ErrorKind, context};
use serde::Deserialize;
use serde_json::Map;

use super::date::strftime;
use super::source::rewritten;
use super::{Answer, ChatError, Message, Rendered, Result, is_answer, python_text};
use crate::{Error, json};

/// Steps after which a template is taken for endless.
const FUEL: u64 = 50_000_000;
const NAME: &str = "chat";

/// A chat template in Jinja. It may use what transformers offers: `messages`, `add_generation_prompt`, special tokens by name,
/// `raise_exception`, `strftime_now`, `tojson` with its options, `{% generation %}`, loop controls, Python's methods of strings and
/// dictionaries, and formatting with `%`. Values are written as Python writes them.
#[derive(Debug, Clone)]
pub struct JinjaTemplate {
    environment: Environment<'static>,
    tokens: BTreeMap<String, String>,
}

/// What `raise_exception` was given.
#[derive(Debug)]
struct Raised(String);

impl fmt::Display for Raised {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl std::error::Error for Raised {}

#[derive(Deserialize)]
#[serde(untagged, expecting = "a template, or a list of objects with name and template")]
enum Templates {
    One(String),
    Several(Vec<Named>),
}

#[derive(Deserialize)]
struct Named {
    name: String,
    template: String,
}

impl JinjaTemplate {
    /// Reads a template; `tokens` are special tokens by name, e.g. `bos_token` and `<s>`.
    ///
    /// # Errors
    /// [`ChatError::Syntax`].
    ///
    /// # Example
    /// ```
    /// use ruminate_datasets::chat::{JinjaTemplate, Message};
    /// let source = "{{ bos_token }}{% for m in messages %}{{ m['role'] }}: {{ m['content'].strip() }}\n{% endfor %}";
    /// let template = JinjaTemplate::new(source, &[("bos_token", "<s>")])?;
    /// assert_eq!(template.render(&[Message::new("user", " Hello ")], false)?, "<s>user: Hello\n");
    /// # Ok::<(), ruminate_datasets::chat::ChatError>(())
    /// ```
    pub fn new(source: &str, tokens: &[(&str, &str)]) -> Result<Self> {
        let tokens = tokens.iter().map(|&(name, token)| (name.to_owned(), token.to_owned())).collect();
        Self::with_tokens(source, tokens)
    }

    fn with_tokens(source: &str, tokens: BTreeMap<String, String>) -> Result<Self> {
        let mut environment = Environment::new();
        let syntax = SyntaxConfig::builder().trim_blocks(true).lstrip_blocks(true).build();
        environment.set_syntax(syntax.map_err(ChatError::Syntax)?);
        environment.set_fuel(Some(FUEL));
        environment.set_auto_escape_callback(|_| AutoEscape::None);
        python_text::install(&mut environment);
        environment.add_function("raise_exception", raise_exception);
        environment.add_template_owned(NAME, rewritten(source)).map_err(ChatError::Syntax)?;
        Ok(Self { environment, tokens }.at(None))
    }

    /// The template of a checkpoint: `chat_template.jinja`, or `chat_template` in `tokenizer_config.json`, where the one called
    /// `default` is taken of several.
    ///
    /// # Errors
    /// As [`ChatTemplate::open`](super::ChatTemplate::open).
    pub fn open(folder: &Path) -> Result<Self> {
        let (config, file) = (folder.join("tokenizer_config.json"), folder.join("chat_template.jinja"));
        let config: Map<String, serde_json::Value> =
            if config.is_file() { json::read(&config)? } else { Map::new() };
        // Special tokens are texts, or objects with more about them.
        let token = |(name, token): (&String, &serde_json::Value)| {
            let content = token.as_str().or_else(|| token.get("content")?.as_str())?;
            name.ends_with("_token").then(|| (name.clone(), content.to_owned()))
        };
        let tokens = config.iter().filter_map(token).collect();
        let mut source = match config.get("chat_template").filter(|template| !template.is_null()) {
            None => None,
            Some(templates) => match Templates::deserialize(templates) {
                Ok(Templates::One(source)) => Some(source),
                Ok(Templates::Several(all)) => {
                    all.into_iter().find(|named| named.name == "default").map(|named| named.template)
                }
                Err(source) => {
                    let (path, field) = (folder.join("tokenizer_config.json"), "chat_template".into());
                    return Err(Error::Json { path, place: None, field, source }.into());
                }
            },
        };
        if file.is_file() {
            source = Some(crate::text::read_to_string(&file)?);
        }
        let source = source.ok_or_else(|| ChatError::NoTemplate { folder: folder.into() })?;
        Self::with_tokens(&source, tokens)
    }

    /// Fixes the time that `strftime_now` tells, in UTC; without one it is the time of rendering, and prompts change from day
    /// to day. A run keeps a [`Date`](super::Date).
    #[must_use]
    pub fn at(mut self, time: Option<SystemTime>) -> Self {
        self.environment.add_function("strftime_now", move |format: String| {
            strftime(time.unwrap_or_else(SystemTime::now), &format)
        });
        self
    }

    /// The dialogue as text, with the marker of another answer at the end if the template knows of one and
    /// `add_generation_prompt` asks for it.
    ///
    /// # Errors
    /// [`ChatError::Refused`], [`ChatError::Render`].
    pub fn render(&self, messages: &[Message], add_generation_prompt: bool) -> Result<String> {
        let role = |message: &Message| {
            if is_answer(&message.role) { "assistant".to_owned() } else { message.role.clone() }
        };
        let messages: Vec<Value> =
            messages.iter().map(|m| context! { role => role(m), content => m.content.as_str() }).collect();
        let tokens = Value::from_pairs(&self.tokens);
        let values = context! { messages, add_generation_prompt, tools => (), documents => (), ..tokens };
        let template = self.environment.get_template(NAME).map_err(ChatError::Syntax)?;
        template.render(values).map_err(|error| {
            let mut cause: Option<&dyn std::error::Error> = Some(&error);
            while let Some(error) = cause {
                if let Some(Raised(message)) = error.downcast_ref() {
                    return ChatError::Refused(message.clone());
                }
                cause = error.source();
            }
            ChatError::Render(error)
        })
    }

    /// The dialogue with the ranges of its answers: each begins where the prompt for it ends.
    ///
    /// # Errors
    /// As [`render`](Self::render), and [`ChatError::Unstable`].
    pub(super) fn conversation(&self, messages: &[Message]) -> Result<Rendered> {
        let text = self.render(messages, false)?;
        let mut answers = vec![];
        for (index, message) in messages.iter().enumerate() {
            if !is_answer(&message.role) || message.content.is_empty() {
                continue;
            }
            let before = self.render(&messages[..index], true)?;
            let until = self.render(&messages[..=index], false)?;
            if !text.starts_with(&until) || !until.starts_with(&before) {
                return Err(ChatError::Unstable { index });
            }
            answers.push(Answer { message: index, span: before.len()..until.len() });
        }
        Ok(Rendered { text, answers })
    }
}

fn raise_exception(message: String) -> std::result::Result<Value, minijinja::Error> {
    Err(minijinja::Error::new(ErrorKind::InvalidOperation, "raise_exception").with_source(Raised(message)))
}

#[cfg(test)]
mod tests {
    use std::time::UNIX_EPOCH;

    use super::*;
    use crate::chat::{ChatTemplate, NamedTemplate};

    /// The template that Mistral's Instruct models carry, in its general form.
    const INSTRUCT: &str = "{{ bos_token }}{% for message in messages %}\
        {% if (message['role'] == 'user') != (loop.index0 % 2 == 0) %}\
        {{ raise_exception('Conversation roles must alternate user/assistant') }}{% endif %}\
        {% if message['role'] == 'user' %}{{ '[INST] ' + message['content'] + ' [/INST]' }}\
        {% else %}{{ message['content'] + eos_token }}{% endif %}{% endfor %}";

    /// ChatML with a date and what else templates use.
    const CHATML: &str = r#"
{%- if messages[0].role == 'system' %}
    {{- '<|im_start|>system\n' + messages[0].content + '<|im_end|>\n' }}
{%- else %}
    {{- '<|im_start|>system\nToday: ' + strftime_now("%d %b %Y") + '<|im_end|>\n' }}
{%- endif %}
{% for message in messages %}
    {% if message.role == 'system' %}{% continue %}{% endif %}
    {{- '<|im_start|>' + message.role + '\n' }}
    {%- generation -%}
    {{ message.content.strip() }}
    {%- endgeneration -%}
    {{ '<|im_end|>\n' }}
{%- endfor %}
{%- if add_generation_prompt %}
    {{- '<|im_start|>assistant\n' }}
{%- endif %}"#;

    fn dialogue() -> Vec<Message> {
        let turns = [("user", "Hello"), ("agent", "Hi."), ("user", "2+2?"), ("assistant", "4")];
        turns.map(|(role, text)| Message::new(role, text)).to_vec()
    }

    fn instruct() -> JinjaTemplate {
        JinjaTemplate::new(INSTRUCT, &[("bos_token", "<s>"), ("eos_token", "</s>")]).unwrap()
    }

    #[test]
    fn answers_are_found_in_any_template() {
        let rendered = instruct().conversation(&dialogue()).unwrap();
        assert_eq!(rendered.text, "<s>[INST] Hello [/INST]Hi.</s>[INST] 2+2? [/INST]4</s>");
        let texts: Vec<&str> = rendered.answers.iter().map(|a| &rendered.text[a.span.clone()]).collect();
        assert_eq!(texts, ["Hi.</s>", "4</s>"]);
        let chatml = JinjaTemplate::new(CHATML, &[]).unwrap().at(Some(UNIX_EPOCH));
        let rendered = ChatTemplate::from(chatml).conversation(&dialogue()).unwrap();
        assert!(
            rendered
                .text
                .starts_with("<|im_start|>system\nToday: 01 Jan 1970<|im_end|>\n<|im_start|>user\nHello<")
        );
        let texts: Vec<&str> = rendered.answers.iter().map(|a| &rendered.text[a.span.clone()]).collect();
        assert_eq!(texts, ["Hi.<|im_end|>\n", "4<|im_end|>\n"]);
    }

    #[test]
    fn what_a_template_refuses_or_cannot_do_is_an_error() {
        let twice = [Message::new("user", "a"), Message::new("user", "b")];
        let error = instruct().render(&twice, false).unwrap_err();
        assert!(matches!(&error, ChatError::Refused(text) if text.contains("alternate")), "{error:?}");
        assert!(matches!(JinjaTemplate::new("{% if %}", &[]), Err(ChatError::Syntax(_))));
        let render = |source: &str| JinjaTemplate::new(source, &[]).unwrap().render(&[], false);
        assert!(matches!(render("{{ nobody.knows.this }}"), Err(ChatError::Render(_))));
        assert!(matches!(render("{{ '%d' % 'x' }}"), Err(ChatError::Render(_))));
        let endless = "{% for a in range(9999) %}{% for b in range(9999) %}{% for c in range(9999) %}{% endfor %}{% endfor %}{% endfor %}";
        assert!(matches!(render(endless), Err(ChatError::Render(_))));
        let last = "{% for m in messages %}{% if loop.last %}{{ m.content }}{% endif %}{% endfor %}";
        let error = JinjaTemplate::new(last, &[]).unwrap().conversation(&dialogue()).unwrap_err();
        assert!(matches!(error, ChatError::Unstable { index: 1 }), "{error:?}");
    }

    #[test]
    fn json_is_what_python_writes() {
        let source = "{{ {'a<b': [1, 'é'], 'c': none} | tojson }}|{{ [1] | tojson(indent=2) }}";
        let text = JinjaTemplate::new(source, &[]).unwrap().render(&[], false).unwrap();
        assert_eq!(text, "{\"a<b\": [1, \"é\"], \"c\": null}|[\n  1\n]");
    }

    #[test]
    fn templates_are_found_in_folders() {
        let folder = tempfile::tempdir().unwrap();
        let error = ChatTemplate::open(folder.path()).unwrap_err().to_string();
        assert!(error.contains("has no chat template") && error.contains("llama-2"), "{error}");
        let config = |text: &str| std::fs::write(folder.path().join("tokenizer_config.json"), text).unwrap();
        let prompt = || ChatTemplate::open(folder.path())?.prompt(&dialogue()[..1]);
        config(
            r#"{"bos_token": {"content": "<s>", "lstrip": false}, "chat_template": "{{ bos_token }}one"}"#,
        );
        assert_eq!(prompt().unwrap(), "<s>one");
        config(
            r#"{"bos_token": null, "chat_template": [{"name": "tool", "template": "no"}, {"name": "default", "template": "{{ messages[0].content }}"}]}"#,
        );
        assert_eq!(prompt().unwrap(), "Hello");
        std::fs::write(folder.path().join("chat_template.jinja"), "file").unwrap();
        assert_eq!(prompt().unwrap(), "file");
        config("{");
        assert!(prompt().unwrap_err().to_string().contains("tokenizer_config.json"));
    }

    #[test]
    fn a_template_of_a_checkpoint_equals_the_code() {
        // Zephyr's own, which writes no system message where there is none.
        let source = "{% for message in messages %}\n{% if message['role'] == 'user' %}\n\
            {{ '<|user|>\n' + message['content'] + eos_token }}\n{% elif message['role'] == 'system' %}\n\
            {{ '<|system|>\n' + message['content'] + eos_token }}\n{% elif message['role'] == 'assistant' %}\n\
            {{ '<|assistant|>\n'  + message['content'] + eos_token }}\n{% endif %}\n\
            {% if loop.last and add_generation_prompt %}\n{{ '<|assistant|>' }}\n{% endif %}\n{% endfor %}";
        let zephyr = JinjaTemplate::new(source, &[("eos_token", "</s>")]).unwrap();
        let messages = [&[Message::new("system", "Be kind.")], &dialogue()[..]].concat();
        let code = NamedTemplate::Zephyr.render(&messages, false).unwrap();
        assert_eq!(zephyr.conversation(&messages).unwrap(), code);
    }
}
