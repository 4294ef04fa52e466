//! Rewards of a program: JSON lines in, a number a line out.

use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use serde_json::{Map, Value, json};

use super::program::{Program, Stopped, shown};
use super::{Answered, Judge, Judged, PolicyModel, Unjudged};

/// Settings of `command`: a program that judges. It starts with the first sample and stays. For each sample it reads a line of JSON from its
/// standard input, with `prompt`, `completion`, `answer` (where the row has one) and the row's other fields, and writes a line with a
/// number to its standard output, in the same order. It must not hold lines back (in Python, `print(..., flush=True)`). Its input ends
/// when no more samples come.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(default, deny_unknown_fields)]
pub struct CommandReward {
    /// The program and its arguments, such as `["python3", "reward.py"]`. Relative paths begin where `ruminate` was started.
    pub run: Vec<String>,
    /// Longest time without a line in seconds: from the first sample of a batch to its number, and from one number to the next.
    pub timeout_s: u64,
    /// Samples of a line at most. 0 sends each sample on a line of its own; with another number, a line is a list of samples, and its
    /// answer a list of as many numbers on one line: for programs with a model, which judge several at a time.
    pub batch: usize,
}

impl Default for CommandReward {
    fn default() -> Self {
        Self { run: vec![], timeout_s: 60, batch: 0 }
    }
}

impl CommandReward {
    pub(super) fn prepared(&self) -> Result<CommandJudge, String> {
        if self.run.first().is_none_or(String::is_empty) {
            return Err(
                "run: name a program, such as kind.command = { run = [\"python3\", \"reward.py\"] }".into()
            );
        }
        if self.timeout_s == 0 {
            return Err("timeout_s must be at least 1".into());
        }
        Ok(CommandJudge { settings: self.clone(), state: Mutex::new(State::NotStarted) })
    }

    /// Longest line that the program may write; longer ones are no numbers.
    fn longest_line(&self) -> u64 {
        4096 + 64 * self.batch as u64
    }

    /// The lines that the program reads about some samples.
    fn lines(&self, samples: &[Answered<'_>]) -> Result<Vec<u8>, serde_json::Error> {
        let mut lines = vec![];
        let samples: Vec<Map<String, Value>> = samples.iter().map(fields).collect();
        if self.batch == 0 {
            for sample in &samples {
                serde_json::to_writer(&mut lines, sample)?;
                lines.push(b'\n');
            }
        } else {
            for batch in samples.chunks(self.batch) {
                serde_json::to_writer(&mut lines, batch)?;
                lines.push(b'\n');
            }
        }
        Ok(lines)
    }
}

fn fields(sample: &Answered<'_>) -> Map<String, Value> {
    let row = sample.row;
    let mut fields = row.fields.clone();
    fields.insert("prompt".into(), json!(row.prompt));
    fields.insert("completion".into(), sample.text.into());
    if let Some(answer) = &row.answer {
        fields.insert("answer".into(), answer.as_str().into());
    }
    fields
}

/// A program that judges.
#[derive(Debug)]
pub(super) struct CommandJudge {
    settings: CommandReward,
    state: Mutex<State>,
}

#[derive(Debug)]
enum State {
    NotStarted,
    Running(Program),
    /// It failed, and has ended. What another start would say of later samples might not be what the first one would have said.
    Failed(String),
}

impl Judge for CommandJudge {
    fn judge(&self, samples: &[Answered<'_>], _: Option<PolicyModel<'_>>) -> Judged {
        let mut state = self.state.lock().unwrap_or_else(PoisonError::into_inner);
        match (self.ask(&mut state, samples), &mut *state) {
            (Err(Unjudged::External { sample, reason }), State::NotStarted | State::Running(_)) => {
                let messages = match &mut *state {
                    State::Running(program) => program.last_messages(),
                    _ => String::new(),
                };
                *state = State::Failed(reason.clone());
                Err(Unjudged::External { sample, reason: reason + &messages })
            }
            (Err(Unjudged::Other(error)), _) => {
                *state = State::Failed("it was interrupted".into());
                Err(error.into())
            }
            (result, _) => result,
        }
    }
}

impl CommandJudge {
    fn ask(&self, state: &mut State, samples: &[Answered<'_>]) -> Judged {
        let failed = |sample, reason| Unjudged::External { sample, reason };
        if let State::Failed(reason) = state {
            let reason = format!("the program has failed before, and is not started again: {reason}");
            return Err(failed(0, reason));
        }
        if let State::NotStarted = state {
            let program = Program::start(&self.settings.run, self.settings.longest_line());
            *state = State::Running(program.map_err(|reason| failed(0, reason))?);
        }
        let State::Running(program) = state else { return Ok(vec![]) };
        if let Some(line) = program.unasked() {
            return Err(failed(0, format!("before this sample was sent, {}", too_many(&line))));
        }
        let lines = self.settings.lines(samples).map_err(|error| failed(0, error.to_string()))?;
        program.send(lines);
        let mut rewards = Vec::with_capacity(samples.len());
        for batch in samples.chunks(self.settings.batch.max(1)) {
            let first = rewards.len();
            let line =
                program.line(Duration::from_secs(self.settings.timeout_s)).map_err(
                    |stopped| match stopped {
                        Stopped::Failed(reason) => failed(first, reason),
                        Stopped::Interrupted(error) => Unjudged::Other(error.into()),
                    },
                )?;
            let numbers = self.numbers(&line, batch.len());
            rewards.extend(numbers.map_err(|(sample, reason)| failed(first + sample, reason))?);
        }
        match program.unasked() {
            Some(line) => Err(failed(samples.len() - 1, format!("after this sample, {}", too_many(&line)))),
            None => Ok(rewards),
        }
    }

    /// The numbers of a line.
    fn numbers(&self, line: &str, count: usize) -> Result<Vec<f64>, (usize, String)> {
        let wrong = |what: &str| format!("the program has written {} in place of {what}", shown(line));
        if self.settings.batch == 0 {
            let number = line.parse().ok().filter(|&number| is_reward(number));
            return Ok(vec![number.ok_or_else(|| (0, wrong("a number")))?]);
        }
        let numbers: Vec<f64> =
            serde_json::from_str(line).map_err(|_| (0, wrong(&format!("a list of {count} numbers"))))?;
        if numbers.len() != count {
            let reason = format!("the program has written {} numbers for {count} samples", numbers.len());
            return Err((numbers.len().min(count - 1), reason));
        }
        match numbers.iter().position(|&number| !is_reward(number)) {
            Some(sample) => {
                Err((sample, format!("the program has written {}, which is no reward", numbers[sample])))
            }
            None => Ok(numbers),
        }
    }
}

/// True for a number that training can use.
pub(super) fn is_reward(number: f64) -> bool {
    (number as f32).is_finite()
}

fn too_many(line: &str) -> String {
    format!(
        "the program has written {} without being asked; it must write one line for each line that it reads, and print nothing else \
         (messages belong to its standard error output)",
        shown(line)
    )
}
