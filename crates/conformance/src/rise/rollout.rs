//! Kind `rollout`: scripted completions go in, requests and a log come out.

use std::cell::RefCell;
use std::collections::VecDeque;
use std::path::Path;

use ruminate_datasets::NullObserver;
use ruminate_datasets::environments::{Benchmark, Compat, DEMONSTRATION, Problem};
use ruminate_datasets::rise::{
    Answerer, Ask, Failed, MultiTurn, Reply, RolloutConfig, RolloutError, Setting,
};
use serde::Deserialize;
use serde_json::{Value, json};

use crate::Outcome;
use crate::compare::{Check, Mismatch, Tolerance, equal};
use crate::file::{GoldenError, GoldenFile};

#[derive(Deserialize)]
struct Case {
    mode: Mode,
    rows: Vec<Row>,
    options: Options,
    completions: VecDeque<String>,
    requests: Vec<Request>,
    log: Value,
    #[serde(default)]
    unused_completions: usize,
    #[serde(default)]
    aborts_with: Option<String>,
    #[serde(default)]
    fixed: Option<serde_json::Map<String, Value>>,
}

#[derive(Clone, Copy, PartialEq, Deserialize)]
#[serde(rename_all = "lowercase")]
enum Mode {
    Generate,
    Evaluate,
}

#[derive(Deserialize)]
struct Row {
    #[serde(alias = "problem")]
    question: String,
    #[serde(alias = "solution")]
    answer: String,
}

#[derive(Deserialize)]
struct Options {
    env: Benchmark,
    max_turns: usize,
    num_of_samples: Vec<usize>,
    #[serde(default)]
    models: Vec<String>,
    #[serde(default)]
    model: Option<String>,
    #[serde(default)]
    context_window: Option<usize>,
    #[serde(default)]
    dialogue_limit: Option<usize>,
}

#[derive(Debug, Clone, PartialEq, Deserialize)]
struct Request {
    model: String,
    history: Vec<(String, String)>,
    #[serde(default)]
    n: Option<usize>,
}

/// What the models of all turns share: a script, and a record of what was asked.
struct Script {
    completions: RefCell<VecDeque<String>>,
    requests: RefCell<Vec<Request>>,
}

struct Model<'a> {
    name: &'a str,
    script: &'a Script,
}

impl Model<'_> {
    /// Models of this name are reached through a chat service, which gives several answers to one request.
    fn chats(&self) -> bool {
        self.name.contains("gpt")
    }
}

impl Answerer for Model<'_> {
    fn answer(&self, asks: &[Ask]) -> Result<Vec<Reply>, Failed> {
        let mut replies = vec![];
        for ask in asks {
            let history: Vec<_> =
                ask.messages.iter().map(|message| (message.role.clone(), message.content.clone())).collect();
            let [question, answer] = DEMONSTRATION.map(str::to_owned);
            if !history.starts_with(&[("user".into(), question), (self.role().into(), answer)]) {
                return Err("the dialogue does not begin with the demonstration".into());
            }
            let request = |n| Request { model: self.name.into(), history: history[2..].to_vec(), n };
            let mut texts = vec![];
            let mut raised = None;
            if self.chats() {
                self.script.requests.borrow_mut().push(request(Some(ask.samples)));
            }
            for _ in 0..ask.samples {
                if !self.chats() {
                    self.script.requests.borrow_mut().push(request(None));
                }
                let next = self.script.completions.borrow_mut().pop_front();
                let text = next.ok_or("more completions are asked for than there are")?;
                match text.strip_prefix("__raise__:") {
                    None => texts.push(text),
                    Some(what) => {
                        raised = Some(what.to_owned());
                        break;
                    }
                }
            }
            replies.push(raised.map_or(Reply::Texts(texts), Reply::Blocked));
        }
        Ok(replies)
    }

    fn role(&self) -> &str {
        if self.chats() { "assistant" } else { "agent" }
    }
}

pub(super) fn rollout(path: &Path) -> Result<Outcome, GoldenError> {
    let cases = GoldenFile::read(path)?.cases("cases", |case: Case| {
        as_reference(&case, &play(&case, Compat::Reference)?)?;
        // A case says what the fixed mode gives where it shows a defect.
        let Some(fixed) = &case.fixed else { return Ok(()) };
        let check = as_fixed(&play(&case, Compat::Fixed)?, fixed);
        check.map_err(|Mismatch(text)| Mismatch(format!("fixed: {text}")))
    })?;
    Ok(Outcome { cases, ..Outcome::default() })
}

struct Played {
    requests: Vec<Request>,
    unused: usize,
    log: Value,
    aborted: bool,
}

fn play(case: &Case, compat: Compat) -> Check<Played> {
    let options = &case.options;
    let mut samples = options.num_of_samples.clone();
    samples.truncate(options.max_turns);
    equal("turns with samples", samples.len(), options.max_turns)?;
    let usual = RolloutConfig::default();
    let config = RolloutConfig {
        samples,
        setting: if case.mode == Mode::Generate { Setting::Oracle } else { Setting::NoOracle },
        dialogue_limit: options.dialogue_limit.unwrap_or(usual.dialogue_limit),
        context_window: (case.mode == Mode::Evaluate).then_some(options.context_window.unwrap_or(5)),
        compat,
        ..usual
    };
    let script = Script { completions: RefCell::new(case.completions.clone()), requests: RefCell::default() };
    let names = options.models.iter().chain(std::iter::repeat_n(&options.model, options.max_turns).flatten());
    let models: Vec<Model<'_>> = names.map(|name| Model { name, script: &script }).collect();
    let answerers: Vec<&dyn Answerer> = models.iter().map(|model| model as &dyn Answerer).collect();
    let problem = |(row, Row { question, answer }): (usize, &Row)| Problem {
        row,
        question: question.clone(),
        solution: answer.clone(),
        ..Problem::default()
    };
    let problems: Vec<Problem> = case.rows.iter().enumerate().map(problem).collect();
    let environment = options.env.environment(compat);
    // The script is in the order of rows.
    let turns = MultiTurn::new(&*environment, config, &answerers)?.batch(1);
    let folder = tempfile::tempdir()?;
    let file = folder.path().join("rollout.jsonl");
    let (log, aborted) = match turns.play(&problems, Some(&file), &mut NullObserver) {
        Ok(log) => (serde_json::to_value(log)?, false),
        Err(RolloutError::BlockedFirst { .. }) => (kept(&file)?, true),
        Err(error) => return Err(error.into()),
    };
    let unused = script.completions.borrow().len();
    let requests = script.requests.borrow().clone();
    Ok(Played { requests, unused, log: brief(log, case.mode)?, aborted })
}

/// The episodes that were finished when a run was aborted.
fn kept(file: &Path) -> Check<Value> {
    let text = std::fs::read_to_string(file)?;
    let mut log = serde_json::Map::new();
    for line in text.lines().skip(1) {
        let episode: Value = serde_json::from_str(line)?;
        log.insert(episode["task_id"].to_string(), episode);
    }
    Ok(Value::Object(log))
}

/// The log with its dialogues as the golden files have them.
fn brief(mut log: Value, mode: Mode) -> Check<Value> {
    for (_, episode) in log.as_object_mut().into_iter().flatten() {
        let dialogue = episode.get("dialogue").and_then(Value::as_array);
        equal("is there a dialogue", dialogue.is_some(), mode == Mode::Generate)?;
        if let Some(messages) = dialogue {
            let pairs: Vec<Value> =
                messages.iter().skip(2).map(|m| json!([m["role"], m["content"]])).collect();
            episode["dialogue"] = json!(pairs);
        }
    }
    Ok(log)
}

fn as_reference(case: &Case, played: &Played) -> Check {
    equal("requests", &played.requests, &case.requests)?;
    equal("aborts_with", played.aborted, case.aborts_with.is_some())?;
    equal("unused_completions", played.unused, case.unused_completions)?;
    equal(
        "episodes",
        played.log.as_object().map(|log| log.len()),
        case.log.as_object().map(|log| log.len()),
    )?;
    Tolerance::EXACT.json("log", &played.log, &case.log)
}

/// What the first row must be.
fn as_fixed(played: &Played, fixed: &serde_json::Map<String, Value>) -> Check {
    equal("aborted", played.aborted, false)?;
    let episode = &played.log["0"];
    for (field, want) in fixed {
        if field == "histories" {
            let histories: Vec<_> = played.requests.iter().map(|request| &request.history).collect();
            Tolerance::EXACT.json(field, &json!(histories), want)?;
            continue;
        }
        let got = episode.get(field).or_else(|| episode["turn_history"].get(field));
        let got = got.ok_or_else(|| Mismatch(format!("{field}: missing")))?;
        equal(field, got, want)?;
    }
    Ok(())
}
