//! Rewards of a program: JSON lines in, a number a line out.

use std::collections::VecDeque;
use std::io::{BufRead, BufReader, Read, Write};
use std::process::{Child, Command, Stdio};
use std::sync::mpsc::{Receiver, RecvTimeoutError, Sender, channel};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use serde::{Deserialize, Serialize};
use serde_json::json;

use super::{Answered, Judge, Unjudged};

/// What a program says. It starts once and stays. For each sample it reads a line of JSON from its standard input, with `prompt`,
/// `completion`, `answer` and the row's other fields, and writes a line with a number to its standard output, in the same order; it must not
/// hold lines back (in Python, `print(..., flush=True)`).
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct CommandReward {
    /// The program and its arguments, such as `["python3", "reward.py"]`.
    pub run: Vec<String>,
    /// Seconds that it may take from one line to the next; 0 stands for 60.
    pub timeout_s: u64,
}

impl CommandReward {
    pub(super) fn prepared(&self) -> Result<CommandJudge, String> {
        if self.run.first().is_none_or(String::is_empty) {
            return Err(
                "run: name a program, such as kind.command = { run = [\"python3\", \"reward.py\"] }".into()
            );
        }
        Ok(CommandJudge { settings: self.clone(), state: Mutex::new(State::NotStarted) })
    }

    fn timeout(&self) -> Duration {
        Duration::from_secs(if self.timeout_s == 0 { 60 } else { self.timeout_s })
    }
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
    /// It failed: what it would say now belongs to who knows which sample.
    Failed(String),
}

impl Judge for CommandJudge {
    fn judge(&self, samples: &[Answered<'_>]) -> Result<Vec<f64>, Unjudged> {
        let failed = |sample, reason| Unjudged { sample, reason, external: true };
        let mut state = self.state.lock().unwrap_or_else(PoisonError::into_inner);
        let mut program = match std::mem::replace(&mut *state, State::NotStarted) {
            State::NotStarted => Program::start(&self.settings.run).map_err(|reason| failed(0, reason))?,
            State::Running(program) => program,
            State::Failed(reason) => {
                let again = failed(0, format!("the program has failed before: {reason}"));
                *state = State::Failed(reason);
                return Err(again);
            }
        };
        match program.judge(samples, self.settings.timeout()) {
            Ok(rewards) => {
                *state = State::Running(program);
                Ok(rewards)
            }
            Err((sample, reason)) => {
                *state = State::Failed(reason.clone());
                Err(failed(sample, reason))
            }
        }
    }
}

/// Lines of the error output that are kept for messages.
const KEPT_LINES: usize = 5;

/// Longest line that a program may write: a number takes a fraction of it.
const LONGEST_LINE: u64 = 4096;

/// A program that runs. It is killed when this is dropped.
struct Program {
    child: Child,
    /// Lines for its standard input go through a thread, because a pipe that is full waits for the program, which may wait for us.
    input: Option<Sender<Vec<u8>>>,
    output: Receiver<std::io::Result<Vec<u8>>>,
    errors: Arc<Mutex<VecDeque<String>>>,
    error_reader: Option<JoinHandle<()>>,
}

impl std::fmt::Debug for Program {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Program").field("child", &self.child).finish_non_exhaustive()
    }
}

impl Program {
    fn start(run: &[String]) -> Result<Self, String> {
        let mut command = Command::new(&run[0]);
        command.args(&run[1..]).stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped());
        // A group of its own: Ctrl-C is for us, and what the program starts ends with it.
        #[cfg(unix)]
        std::os::unix::process::CommandExt::process_group(&mut command, 0);
        let mut child =
            command.spawn().map_err(|error| format!("cannot start `{}`: {error}", run.join(" ")))?;
        let (stdin, stdout, stderr) = (child.stdin.take(), child.stdout.take(), child.stderr.take());
        let (Some(mut stdin), Some(stdout), Some(stderr)) = (stdin, stdout, stderr) else {
            return Err("the program's pipes are missing".into());
        };
        let (input, lines) = channel::<Vec<u8>>();
        std::thread::spawn(move || {
            // An error means that the program is gone, which its output tells.
            for line in lines {
                if stdin.write_all(&line).and_then(|()| stdin.flush()).is_err() {
                    return;
                }
            }
        });
        let (sender, output) = channel();
        std::thread::spawn(move || {
            let mut stdout = BufReader::new(stdout);
            loop {
                let mut line = vec![];
                match stdout.by_ref().take(LONGEST_LINE).read_until(b'\n', &mut line) {
                    Ok(0) => return,
                    read => {
                        if sender.send(read.map(|_| line)).is_err() {
                            return;
                        }
                    }
                }
            }
        });
        let errors = Arc::new(Mutex::new(VecDeque::new()));
        let kept = errors.clone();
        let error_reader = std::thread::spawn(move || {
            let mut stderr = BufReader::new(stderr);
            let mut line = vec![];
            while stderr.by_ref().take(LONGEST_LINE).read_until(b'\n', &mut line).is_ok_and(|read| read > 0) {
                let text = String::from_utf8_lossy(&line).trim_end().to_owned();
                line.clear();
                log::debug!("reward program: {text}");
                let mut kept = kept.lock().unwrap_or_else(PoisonError::into_inner);
                kept.push_back(text);
                if kept.len() > KEPT_LINES {
                    kept.pop_front();
                }
            }
        });
        Ok(Self { child, input: Some(input), output, errors, error_reader: Some(error_reader) })
    }

    /// One number for each sample; else the first sample without one, and what happened.
    fn judge(&mut self, samples: &[Answered<'_>], timeout: Duration) -> Result<Vec<f64>, (usize, String)> {
        if let Ok(line) = self.output.try_recv() {
            return Err((0, too_many(&line)));
        }
        let mut lines = vec![];
        for sample in samples {
            let mut fields = sample.row.fields.clone();
            fields.insert("prompt".into(), json!(sample.row.prompt));
            fields.insert("completion".into(), sample.text.into());
            fields.extend(sample.row.answer.as_ref().map(|answer| ("answer".into(), json!(answer))));
            serde_json::to_writer(&mut lines, &fields).map_err(|error| (0, error.to_string()))?;
            lines.push(b'\n');
        }
        // A program that is gone shows in its output.
        let _ = self.input.as_ref().map(|input| input.send(lines));
        let mut rewards = Vec::with_capacity(samples.len());
        while rewards.len() < samples.len() {
            let sample = rewards.len();
            let line = match self.output.recv_timeout(timeout) {
                Ok(line) => line.map_err(|error| (sample, format!("its output cannot be read: {error}")))?,
                Err(RecvTimeoutError::Timeout) => {
                    let reason = format!(
                        "the program has written nothing for {} s and was ended; it must write a line for each line that it reads, and not \
                         hold it back (in Python, print(..., flush=True)); kind.command.timeout_s allows more{}",
                        timeout.as_secs(),
                        self.last_errors()
                    );
                    return Err((sample, reason));
                }
                Err(RecvTimeoutError::Disconnected) => return Err((sample, self.ended())),
            };
            rewards.push(number(&line).map_err(|reason| (sample, reason))?);
        }
        if let Ok(line) = self.output.try_recv() {
            return Err((samples.len() - 1, too_many(&line)));
        }
        Ok(rewards)
    }

    /// How a program ended that should not have.
    fn ended(&mut self) -> String {
        // It closes its output a moment before it is gone, and may also have closed it only.
        let patience = Instant::now() + Duration::from_secs(1);
        let status = loop {
            match self.child.try_wait() {
                Ok(None) if Instant::now() < patience => std::thread::sleep(Duration::from_millis(5)),
                status => break status.ok().flatten(),
            }
        };
        let how = status.map_or("the program has closed its output".into(), |status| {
            format!("the program has ended with {status}")
        });
        if let (Some(_), Some(reader)) = (status, self.error_reader.take()) {
            // What it started may hold the pipe open.
            kill(&mut self.child);
            let _ = reader.join();
        }
        format!("{how} before it had written a number for this sample{}", self.last_errors())
    }

    fn last_errors(&self) -> String {
        let errors = self.errors.lock().unwrap_or_else(PoisonError::into_inner);
        let lines: Vec<&str> = errors.iter().map(String::as_str).collect();
        if lines.is_empty() { String::new() } else { format!("; it said:\n{}", lines.join("\n")) }
    }
}

impl Drop for Program {
    fn drop(&mut self) {
        self.input = None;
        kill(&mut self.child);
    }
}

/// Ends a program and what it has started.
fn kill(child: &mut Child) {
    #[cfg(unix)]
    if let Some(group) = rustix::process::Pid::from_raw(child.id() as i32) {
        let _ = rustix::process::kill_process_group(group, rustix::process::Signal::KILL);
    }
    let _ = child.kill();
    let _ = child.wait();
}

fn number(line: &[u8]) -> Result<f64, String> {
    let text = String::from_utf8_lossy(line);
    match text.trim().parse::<f64>() {
        Ok(number) if (number as f32).is_finite() => Ok(number),
        _ => Err(format!("the program has written {:?} in place of a number", text.trim())),
    }
}

fn too_many(line: &std::io::Result<Vec<u8>>) -> String {
    let line = line.as_ref().map(|line| String::from_utf8_lossy(line).trim().to_owned()).unwrap_or_default();
    format!(
        "the program has written {line:?} beyond the numbers that it was asked for; it must write one line for each line that it reads, and \
         print nothing else (messages belong to its standard error output)"
    )
}
