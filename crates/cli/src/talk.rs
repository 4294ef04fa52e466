//! A dialogue in the terminal.

use std::io::Write;
use std::sync::mpsc::{Receiver, channel};

use clap::Args;
use ruminate::datasets::rows::TextOrMessages;
use ruminate::datasets::teacher::Message;
use ruminate::models::{Error as ModelError, GenerationConfig, TextStream, TokenId, derive_seed};
use ruminate::run::{ConfigError, Outcome, print_text};
use rustyline::DefaultEditor;
use rustyline::error::ReadlineError;

use crate::using::{Loaded, ModelArgs, WritingArgs};

#[derive(Debug, Args)]
pub(crate) struct ChatArgs {
    #[command(flatten)]
    model: ModelArgs,
    /// The system message; short for --set chat.system=TEXT
    #[arg(long, value_name = "TEXT")]
    system: Option<String>,
    #[command(flatten)]
    writing: WritingArgs,
}

const HELP: &str = "\
/system TEXT   set the system message, and begin anew
/reset         begin anew
/retry         answer the last message again
/quit          end (or Ctrl-D)
Ctrl-C stops an answer.";

/// A dialogue with a model.
struct Dialogue {
    loaded: Loaded,
    how: GenerationConfig,
    messages: Vec<Message>,
    /// Answers so far, so that each has a seed of its own.
    answers: u64,
}

pub(crate) fn chat(args: &ChatArgs) -> anyhow::Result<Outcome> {
    // It takes the handler of Ctrl-C for itself, so ours, which calls it, has to come later.
    let mut editor = DefaultEditor::new()?;
    let loaded = args.model.load_to_talk()?;
    let template = loaded.encoder.template()?;
    let mut how = args.writing.config(loaded.config.generation.as_ref(), &loaded.model)?;
    how.stop_strings.extend(template.stop_strings().iter().map(|stop| (*stop).to_owned()));
    if how.samples_per_prompt != 1 {
        return Err(ConfigError::invalid("a dialogue has one answer at a time; leave out --samples").into());
    }
    let system = args.system.clone().unwrap_or_else(|| loaded.config.chat.system.clone());
    let mut dialogue = Dialogue { loaded, how, messages: vec![], answers: 0 };
    dialogue.begin(&system);
    loop {
        let line = match editor.readline("> ") {
            Ok(line) => line,
            // Ctrl-C at the prompt drops the line.
            Err(ReadlineError::Interrupted) => continue,
            Err(ReadlineError::Eof) => return Ok(Outcome::Done),
            Err(error) => return Err(error.into()),
        };
        let line = line.trim();
        editor.add_history_entry(line)?;
        match line.split_once(' ').unwrap_or((line, "")) {
            ("", _) => {}
            ("/quit" | "/exit", _) => return Ok(Outcome::Done),
            ("/help", _) => print_text(HELP)?,
            ("/reset", _) => {
                let system = dialogue.system().to_owned();
                dialogue.begin(&system);
            }
            ("/system", text) => dialogue.begin(text.trim()),
            ("/retry", _) => match dialogue.take_back() {
                Some(question) => dialogue.answer(&question)?,
                None => print_text("nothing was said yet")?,
            },
            (command, _) if command.starts_with('/') => print_text(HELP)?,
            _ => dialogue.answer(line)?,
        }
    }
}

impl Dialogue {
    fn begin(&mut self, system: &str) {
        let system = (!system.is_empty()).then(|| Message::new("system", system));
        self.messages = system.into_iter().collect();
    }

    fn system(&self) -> &str {
        self.messages.first().filter(|first| first.role == "system").map_or("", |first| &first.content)
    }

    /// Forgets the last question and its answer.
    fn take_back(&mut self) -> Option<String> {
        let at = self.messages.iter().rposition(|message| message.role == "user")?;
        let question = self.messages[at].content.clone();
        self.messages.truncate(at);
        Some(question)
    }

    /// Answers a question, and shows the answer while it is written.
    fn answer(&mut self, question: &str) -> anyhow::Result<()> {
        self.messages.push(Message::new("user", question));
        let prompt = self.prompt()?;
        let Loaded { model, encoder, config, worker, .. } = &self.loaded;
        let (sender, tokens) = channel();
        let seed = derive_seed(config.seed, &[self.answers]);
        self.answers += 1;
        let (tokenizer, stops) = (encoder.tokenizer.clone(), self.how.stop_strings.clone());
        let shown = std::thread::spawn(move || show(&tokens, TextStream::new(&tokenizer, &stops)));
        // A Ctrl-C of before is over.
        let _ = worker.stop.take();
        let write = || model.generate_streaming(&prompt, &self.how, seed, sender);
        let written = worker.stop.interrupt().during(write);
        let text = shown.join().map_err(|_| anyhow::anyhow!("the answer could not be shown"))??;
        match written {
            Ok(_) | Err(ModelError::Interrupted) => {}
            Err(error) => return Err(error.into()),
        }
        let stopped = worker.stop.take();
        print_text(if stopped { " [stopped]" } else { "" })?;
        // What was stopped has been said, too.
        self.messages.push(Message::new("assistant", text));
        Ok(())
    }

    /// The dialogue in token ids. What does not fit any more is forgotten from the beginning, the system message aside.
    fn prompt(&mut self) -> anyhow::Result<Vec<TokenId>> {
        let mut forgotten = false;
        loop {
            let messages = TextOrMessages::Messages(self.messages.clone());
            let (_, ids) = self.loaded.encoder.prompt(&messages)?;
            let context = self.loaded.model.config().context_length();
            let fits = context.is_none_or(|most| ids.len() + self.how.max_new_tokens <= most);
            let first = usize::from(!self.system().is_empty());
            if fits || self.messages.len() <= first + 1 {
                if forgotten {
                    log::warn!("the dialogue is too long for the model: its beginning is forgotten");
                }
                return Ok(ids);
            }
            // A question and its answer.
            self.messages.drain(first..(first + 2).min(self.messages.len() - 1));
            forgotten = true;
        }
    }
}

/// Prints tokens as they come, and returns their text without what stopped it.
fn show(tokens: &Receiver<TokenId>, mut text: TextStream<'_>) -> anyhow::Result<String> {
    let mut out = std::io::stdout().lock();
    let mut shown = String::new();
    loop {
        let token = tokens.recv();
        let piece = match token {
            Ok(token) => text.push(token)?,
            Err(_) => text.finish()?,
        };
        out.write_all(piece.as_bytes()).and_then(|()| out.flush())?;
        shown.push_str(&piece);
        if token.is_err() {
            return Ok(shown.trim().to_owned());
        }
    }
}
