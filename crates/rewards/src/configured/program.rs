//! A program that reads and writes lines.

use std::collections::VecDeque;
use std::io::{BufRead, BufReader, Read, Write};
use std::process::{Child, ChildStderr, ChildStdin, ChildStdout, Command, ExitStatus, Stdio};
use std::sync::mpsc::{Receiver, RecvTimeoutError, Sender, SyncSender, channel, sync_channel};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use ruminate_models::Interrupt;
use rustix::process::{Pid, Signal, WaitId, WaitIdOptions, kill_process_group, waitid};

/// Lines of the error output that are kept for messages.
const KEPT_LINES: usize = 10;
/// Lines of the output that wait to be read. A program that writes without end has to wait, too.
const WAITING_LINES: usize = 64;
/// Time between two looks for a request to stop.
const PATIENCE: Duration = Duration::from_millis(50);
/// Time that a program has to end once its input has ended.
const GRACE: Duration = Duration::from_millis(500);

/// A program that runs, in a process group of its own. When this is dropped, its input ends, and a moment later it is killed.
pub(super) struct Program {
    child: Child,
    /// How it ended, once it was waited for.
    status: Option<ExitStatus>,
    /// Lines go through a thread, because a full pipe waits for the program, which may itself wait until its output is read.
    input: Option<Sender<Vec<u8>>>,
    output: Receiver<std::io::Result<Vec<u8>>>,
    errors: Arc<Mutex<VecDeque<String>>>,
    error_reader: JoinHandle<()>,
}

impl std::fmt::Debug for Program {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Program").field("child", &self.child).finish_non_exhaustive()
    }
}

/// Why there is no line.
#[derive(Debug)]
pub(super) enum Stopped {
    /// The program failed, and how.
    Failed(String),
    /// Somebody asked to stop.
    Interrupted(ruminate_models::Error),
}

impl Program {
    /// Starts a program whose lines have at most `longest` bytes.
    pub(super) fn start(run: &[String], longest: u64) -> Result<Self, String> {
        let mut command = Command::new(&run[0]);
        command.args(&run[1..]).stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped());
        // Ctrl-C is for us, and what the program starts ends with it.
        std::os::unix::process::CommandExt::process_group(&mut command, 0);
        let mut child =
            command.spawn().map_err(|error| format!("cannot start `{}`: {error}", run.join(" ")))?;
        let (stdin, stdout, stderr) = (child.stdin.take(), child.stdout.take(), child.stderr.take());
        let (Some(stdin), Some(stdout), Some(stderr)) = (stdin, stdout, stderr) else {
            return Err("the program's pipes are missing".into());
        };
        let (input, lines) = channel();
        std::thread::spawn(move || write(stdin, &lines));
        let (sender, output) = sync_channel(WAITING_LINES);
        std::thread::spawn(move || read(stdout, longest, &sender));
        let errors = Arc::new(Mutex::default());
        let kept = Arc::clone(&errors);
        let error_reader = std::thread::spawn(move || read_errors(stderr, &kept));
        Ok(Self { child, status: None, input: Some(input), output, errors, error_reader })
    }

    /// A line that the program has written without being asked.
    pub(super) fn unasked(&self) -> Option<String> {
        let line = self.output.try_recv().ok()?;
        Some(line.map_or_else(|error| error.to_string(), |line| text(&line)))
    }

    /// Sends lines. A program that is gone shows in its output.
    pub(super) fn send(&self, lines: Vec<u8>) {
        let _ = self.input.as_ref().map(|input| input.send(lines));
    }

    /// The next line, without blanks around it. A program that gives none is ended.
    pub(super) fn line(&mut self, timeout: Duration) -> Result<String, Stopped> {
        let begin = Instant::now();
        loop {
            Interrupt::check().map_err(Stopped::Interrupted)?;
            let left = timeout.saturating_sub(begin.elapsed());
            match self.output.recv_timeout(left.min(PATIENCE)) {
                Ok(Ok(line)) => return Ok(text(&line)),
                Ok(Err(error)) => {
                    return Err(Stopped::Failed(format!("the program's output cannot be read: {error}")));
                }
                Err(RecvTimeoutError::Disconnected) => return Err(Stopped::Failed(self.ended())),
                // Something that it has started may hold its output open.
                Err(RecvTimeoutError::Timeout) if self.has_ended() => {
                    return match self.output.recv_timeout(GRACE) {
                        Ok(Ok(line)) => Ok(text(&line)),
                        _ => Err(Stopped::Failed(self.ended())),
                    };
                }
                Err(RecvTimeoutError::Timeout) if left > PATIENCE => {}
                Err(RecvTimeoutError::Timeout) => {
                    return Err(Stopped::Failed(format!(
                        "the program has written nothing for {} s and was killed; it must write a line for each line that it reads, and \
                         not hold it back (in Python, print(..., flush=True)); kind.command.timeout_s allows more time",
                        timeout.as_secs(),
                    )));
                }
            }
        }
    }

    /// How a program ended that should not have.
    fn ended(&mut self) -> String {
        // It closes its output a moment before it is gone, and may also have closed it only.
        let gone = wait_for(GRACE, || self.has_ended());
        match self.kill() {
            Some(status) if gone => {
                format!("the program ended ({status}) before it wrote a number for this sample")
            }
            _ => "the program closed its output before it wrote a number for this sample, and was killed"
                .into(),
        }
    }

    /// Ends the program; the end of what it wrote to its standard error output.
    pub(super) fn last_messages(&mut self) -> String {
        self.kill();
        // What it started may have left its group, and hold the pipe open.
        wait_for(GRACE, || self.error_reader.is_finished());
        let errors = self.errors.lock().unwrap_or_else(PoisonError::into_inner);
        let lines: Vec<&str> = errors.iter().map(String::as_str).collect();
        if lines.is_empty() { String::new() } else { format!("; its last messages:\n{}", lines.join("\n")) }
    }

    fn has_ended(&self) -> bool {
        let options = WaitIdOptions::EXITED | WaitIdOptions::NOHANG | WaitIdOptions::NOWAIT;
        let running = |pid| matches!(waitid(WaitId::Pid(pid), options), Ok(None));
        self.status.is_some() || !pid(&self.child).is_some_and(running)
    }

    /// Ends the program and what it has started, once: afterwards another process may get its number.
    fn kill(&mut self) -> Option<ExitStatus> {
        if self.status.is_none() {
            if let Some(group) = pid(&self.child) {
                let _ = kill_process_group(group, Signal::KILL);
            }
            let _ = self.child.kill();
            self.status = self.child.wait().ok();
        }
        self.status
    }
}

impl Drop for Program {
    fn drop(&mut self) {
        self.input = None;
        wait_for(GRACE, || self.has_ended());
        self.kill();
    }
}

fn pid(child: &Child) -> Option<Pid> {
    Pid::from_raw(i32::try_from(child.id()).ok()?)
}

fn wait_for(longest: Duration, done: impl Fn() -> bool) -> bool {
    let begin = Instant::now();
    while !done() {
        if begin.elapsed() >= longest {
            return false;
        }
        std::thread::sleep(Duration::from_millis(2));
    }
    true
}

fn write(mut stdin: ChildStdin, lines: &Receiver<Vec<u8>>) {
    for line in lines {
        // An error means that the program is gone or does not read, which its output tells.
        if stdin.write_all(&line).and_then(|()| stdin.flush()).is_err() {
            return;
        }
    }
}

fn read(stdout: ChildStdout, longest: u64, lines: &SyncSender<std::io::Result<Vec<u8>>>) {
    let mut stdout = BufReader::new(stdout);
    loop {
        let mut line = vec![];
        let read = stdout.by_ref().take(longest).read_until(b'\n', &mut line);
        let line = match read {
            Ok(0) => return,
            Ok(_) if line.len() as u64 == longest && !line.ends_with(b"\n") => {
                Err(std::io::Error::other(format!("a line has more than {longest} bytes")))
            }
            read => read.map(|_| line),
        };
        let over = line.is_err();
        if lines.send(line).is_err() || over {
            return;
        }
    }
}

fn read_errors(stderr: ChildStderr, kept: &Mutex<VecDeque<String>>) {
    let (mut stderr, mut line) = (BufReader::new(stderr), vec![]);
    while stderr.by_ref().take(1000).read_until(b'\n', &mut line).is_ok_and(|read| read > 0) {
        let text = text(&line);
        line.clear();
        log::info!("reward program: {text}");
        let mut kept = kept.lock().unwrap_or_else(PoisonError::into_inner);
        kept.push_back(text);
        if kept.len() > KEPT_LINES {
            kept.pop_front();
        }
    }
}

fn text(line: &[u8]) -> String {
    String::from_utf8_lossy(line).trim().to_owned()
}

/// A line as a message shows it.
pub(super) fn shown(line: &str) -> String {
    super::beginning(line)
}
