//! Several processes on this machine that run the same command.

use std::collections::VecDeque;
use std::io::{BufRead, BufReader, Read, Write};
use std::net::TcpListener;
use std::process::{Child, Command, ExitStatus, Stdio};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

use rustix::process::{Pid, Signal, kill_process};
use signal_hook::consts::{SIGINT, SIGTERM};
use signal_hook::flag;

use crate::exit::Outcome;

/// Lines of a failed rank's log that are shown again at the end.
const SHOWN: usize = 20;
/// How long the others may take to notice that a rank is gone, before they are killed.
const GRACE: Duration = Duration::from_secs(10);
const POLL: Duration = Duration::from_millis(10);

/// Several processes could not be started, or did not end well.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum LaunchError {
    /// The launcher's own means failed.
    #[error("cannot start {processes} processes: {action} failed")]
    Start {
        /// How many were asked for.
        processes: usize,
        /// What was tried.
        action: &'static str,
        /// Why it failed.
        source: std::io::Error,
    },
    /// `--nproc` does not agree with the launcher that started this process.
    #[error("--nproc {nproc}: a launcher has started {size} processes already; leave out --nproc")]
    Twice {
        /// What was asked for.
        nproc: usize,
        /// What is there.
        size: usize,
    },
    /// A process failed; the others were stopped.
    #[error("rank {rank} of {size} failed ({status}); the others were stopped{}", again(log))]
    Rank {
        /// The process that failed first.
        rank: usize,
        /// How many there were.
        size: usize,
        /// How it ended.
        status: ExitStatus,
        /// The end of its log. That of rank 0 stands on the terminal as it is.
        log: Vec<String>,
    },
    /// The launcher's variables make no sense, or the processes do not find each other.
    #[error(transparent)]
    Group(#[from] ruminate_torch::Error),
}

fn again(log: &[String]) -> String {
    if log.is_empty() { String::new() } else { format!(". Its last words:\n  {}", log.join("\n  ")) }
}

impl LaunchError {
    /// Does another command line mend it?
    pub(crate) fn is_usage(&self) -> bool {
        match self {
            Self::Twice { .. } => true,
            Self::Rank { status, .. } => status.code() == Some(2),
            _ => false,
        }
    }
}

/// A started rank.
struct Rank {
    child: Child,
    /// The end of what it wrote on stderr.
    log: Arc<Mutex<VecDeque<String>>>,
    readers: Vec<JoinHandle<()>>,
    status: Option<ExitStatus>,
}

impl Rank {
    /// Rank 0 has the terminal; what the others write is shown line by line with their number before it, and their results
    /// are dropped, because they are those of rank 0.
    fn start(mut command: Command, rank: usize) -> std::io::Result<Self> {
        if rank > 0 {
            command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::piped());
        }
        let mut child = command.spawn()?;
        let log = Arc::new(Mutex::new(VecDeque::new()));
        let readers = child.stderr.take().map(|stream| show(stream, rank, Arc::clone(&log)));
        Ok(Self { child, log, readers: readers.into_iter().collect(), status: None })
    }

    /// Has it ended?
    fn ended(&mut self) -> std::io::Result<Option<ExitStatus>> {
        if self.status.is_none() {
            self.status = self.child.try_wait()?;
        }
        Ok(self.status)
    }

    fn last_words(&mut self) -> Vec<String> {
        self.readers.drain(..).for_each(|reader| drop(reader.join()));
        self.log.lock().unwrap_or_else(PoisonError::into_inner).drain(..).collect()
    }
}

impl Drop for Rank {
    /// No process stays behind.
    fn drop(&mut self) {
        if self.status.is_none() {
            let _ = self.child.kill();
            let _ = self.child.wait();
        }
    }
}

fn show(
    stream: impl Read + Send + 'static,
    rank: usize,
    log: Arc<Mutex<VecDeque<String>>>,
) -> JoinHandle<()> {
    thread::spawn(move || {
        let mut lines = BufReader::new(stream);
        let mut line = vec![];
        while matches!(lines.read_until(b'\n', &mut line), Ok(read) if read > 0) {
            let text = String::from_utf8_lossy(&line).trim_end().to_owned();
            line.clear();
            // In one piece: rank 0 writes to the same place.
            let _ = std::io::stderr().write_all(format!("[rank {rank}] {text}\n").as_bytes());
            let mut log = log.lock().unwrap_or_else(PoisonError::into_inner);
            if log.len() == SHOWN {
                log.pop_front();
            }
            log.push_back(text);
        }
    })
}

/// Starts this program `size` times, with the arguments that it was started with and the variables that torchrun sets, and
/// waits until all have ended.
///
/// When one fails, the others are given a short while to end by themselves and then killed. Ctrl-C reaches them through the
/// terminal, a SIGTERM is passed on.
///
/// # Errors
/// When a process cannot be started, or fails.
pub(crate) fn launch(size: usize, threads: Option<u16>) -> Result<Outcome, LaunchError> {
    let failed = |action| move |source| LaunchError::Start { processes: size, action, source };
    let program = std::env::current_exe().map_err(failed("finding this program"))?;
    let arguments: Vec<_> = std::env::args_os().skip(1).collect();
    let commands = |port: u16, rank: usize| {
        let mut command = Command::new(&program);
        command.args(&arguments);
        // One machine's cores are shared.
        if threads.is_none() && std::env::var_os("OMP_NUM_THREADS").is_none() {
            let cores = thread::available_parallelism().map_or(1, usize::from);
            command.env("OMP_NUM_THREADS", (cores / size).max(1).to_string());
        }
        command
            .env("MASTER_ADDR", "127.0.0.1")
            .env("MASTER_PORT", port.to_string())
            .env("WORLD_SIZE", size.to_string())
            .env("LOCAL_WORLD_SIZE", size.to_string())
            .env("RANK", rank.to_string())
            .env("LOCAL_RANK", rank.to_string());
        command
    };
    let terminated = Arc::new(AtomicBool::new(false));
    let interrupted = Arc::new(AtomicBool::new(false));
    flag::register(SIGTERM, Arc::clone(&terminated)).map_err(failed("catching SIGTERM"))?;
    flag::register(SIGINT, Arc::clone(&interrupted)).map_err(failed("catching Ctrl-C"))?;
    let port = TcpListener::bind(("127.0.0.1", 0))
        .and_then(|listener| listener.local_addr())
        .map_err(failed("finding a free port"))?
        .port();
    let mut ranks = Vec::with_capacity(size);
    for rank in 0..size {
        ranks.push(Rank::start(commands(port, rank), rank).map_err(failed("starting a process"))?);
    }
    supervise(&mut ranks, &terminated).map_err(failed("waiting for a process"))?
}

fn supervise(ranks: &mut [Rank], terminated: &AtomicBool) -> std::io::Result<Result<Outcome, LaunchError>> {
    let mut failed: Option<(usize, ExitStatus, Instant)> = None;
    loop {
        let mut running = 0;
        for (rank, process) in ranks.iter_mut().enumerate() {
            match process.ended()? {
                None => running += 1,
                Some(status) if failed.is_none() && !matches!(status.code(), Some(0 | 130)) => {
                    failed = Some((rank, status, Instant::now()));
                }
                Some(_) => {}
            }
        }
        if terminated.swap(false, Ordering::SeqCst) {
            for process in ranks.iter().filter(|process| process.status.is_none()) {
                // It may have ended just now.
                let _ = kill_process(Pid::from_child(&process.child), Signal::TERM);
            }
        }
        let over = failed.is_some_and(|(_, _, since)| since.elapsed() > GRACE);
        if running == 0 || over {
            break;
        }
        thread::sleep(POLL);
    }
    let size = ranks.len();
    if let Some((rank, status, _)) = failed {
        let log = ranks[rank].last_words();
        return Ok(Err(LaunchError::Rank { rank, size, status, log }));
    }
    let interrupted = ranks.iter().any(|rank| rank.status.and_then(|s| s.code()) == Some(130));
    Ok(Ok(if interrupted { Outcome::Interrupted } else { Outcome::Done }))
}
