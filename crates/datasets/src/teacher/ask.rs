//! Many requests at a time.

use std::hash::{BuildHasher, Hasher, RandomState};
use std::path::Path;
use std::sync::mpsc::{self, RecvTimeoutError};
use std::thread;
use std::time::{Duration, Instant};

use rand::{Rng, SeedableRng};
use rand_chacha::ChaCha8Rng;

use super::client::{Client, Failure, shown};
use super::file::{AnswerFile, ids, stored};
use super::queue::{Queue, StopOnDrop};
use super::request::{Body, Reply};
use super::{
    Answer, Completion, Plan, Progress, Request, Result, TeacherConfig, TeacherError, TeacherObserver, Usage,
};

/// How often the observer is called at least.
const TICK: Duration = Duration::from_millis(200);

/// A large model behind an address.
///
/// # Example
/// ```no_run
/// use ruminate_datasets::NullObserver;
/// use ruminate_datasets::teacher::{Answer, KeySource, Message, Request, Teacher, TeacherConfig};
/// let config = TeacherConfig {
///     base_url: "http://localhost:8000/v1".into(),
///     model: "llama".into(),
///     key: KeySource::None,
///     ..TeacherConfig::default()
/// };
/// let requests = vec![Request::new("ice", vec![Message::new("user", "Is ice cold? Answer with yes or no.")])];
/// let valid = |_: &Request, answer: &Answer| match answer.text() {
///     "yes" | "no" => Ok(()),
///     other => Err(format!("`{other}` is neither yes nor no")),
/// };
/// let outcome = Teacher::new(config)?.ask(&requests, "answers.jsonl".as_ref(), valid, &mut NullObserver)?;
/// assert!(outcome.answers[0].is_some());
/// # Ok::<(), ruminate_datasets::teacher::TeacherError>(())
/// ```
#[derive(Debug)]
pub struct Teacher {
    config: TeacherConfig,
    client: Client,
}

/// What became of the requests.
#[derive(Debug, Clone, PartialEq)]
#[non_exhaustive]
pub struct Outcome {
    /// The answers in the order of the requests; none where a request has failed or was not sent any more.
    pub answers: Vec<Option<Answer>>,
    /// The ids of requests that failed, and why. They are asked again the next time.
    pub failed: Vec<(String, String)>,
    /// Whether the observer has stopped it.
    pub stopped: bool,
    /// Counts at the end.
    pub progress: Progress,
}

/// A request on its way.
#[derive(Debug)]
struct Job {
    index: usize,
    /// Failed attempts in a row.
    attempt: u32,
    /// Answers that were not valid.
    invalid: u32,
    /// Replies in a row in which no answer had content.
    empty: u32,
    /// Replies so far.
    replies: u64,
    /// Completions so far, when a server gives fewer than it is asked for.
    choices: Vec<Completion>,
    usage: Usage,
    started: Option<Instant>,
}

type Sent = (Job, std::result::Result<Reply, Failure>);

impl Teacher {
    /// Checks the settings and takes the key from where it is.
    ///
    /// # Errors
    /// [`TeacherError::Config`], [`TeacherError::MissingKey`].
    pub fn new(config: TeacherConfig) -> Result<Self> {
        let client = Client::new(&config)?;
        Ok(Self { config, client })
    }

    /// What [`ask`](Self::ask) would take. Sends nothing, changes no file and needs no key.
    ///
    /// # Errors
    /// Those of the requests and of the file.
    pub fn plan(config: &TeacherConfig, requests: &[Request], path: &Path) -> Result<Plan> {
        let answers = stored(path, &config.model, requests)?;
        let mut plan = Plan::default();
        for (request, answer) in requests.iter().zip(answers) {
            if answer.is_some() {
                plan.stored += 1;
                continue;
            }
            plan.to_ask += 1;
            plan.usage += Usage {
                prompt_tokens: request.prompt_tokens(),
                completion_tokens: request.completion_tokens(),
            };
        }
        Ok(plan)
    }

    /// Asks for what the file does not answer yet, and appends each answer to it as soon as it is there and `valid`: an answer with
    /// which something is wrong is asked for again, up to [`TeacherConfig::answers`] times in all. Answers that are in the file are
    /// taken as they are. Answers without content (refusals, or a model that was cut off while it thought) are none, and asked for again
    /// within the same limit.
    ///
    /// # Errors
    /// [`TeacherError::DuplicateId`] and whatever is wrong with the file, before anything is sent;
    /// [`TeacherError::Unauthorized`], [`TeacherError::Refused`] and [`TeacherError::GaveUp`] when the server answers nothing; a file
    /// that cannot be written. Nothing more is sent then, and answers that are under way are stored if possible.
    /// Single requests that fail are no error: they are in [`Outcome::failed`] and, with their reason, in the file.
    pub fn ask(
        &self,
        requests: &[Request],
        path: &Path,
        valid: impl FnMut(&Request, &Answer) -> std::result::Result<(), String>,
        observer: &mut dyn TeacherObserver,
    ) -> Result<Outcome> {
        ids(requests)?;
        self.ask_into(&mut AnswerFile::open(path)?, requests, valid, observer)
    }

    /// As [`ask`](Self::ask), with a file that stays open for further requests and is read only once. After an error, open it
    /// again.
    ///
    /// # Errors
    /// As [`ask`](Self::ask), except that the file is there already.
    pub fn ask_into(
        &self,
        file: &mut AnswerFile,
        requests: &[Request],
        valid: impl FnMut(&Request, &Answer) -> std::result::Result<(), String>,
        observer: &mut dyn TeacherObserver,
    ) -> Result<Outcome> {
        let answers = file.answers(&self.config.model, requests)?;
        let open: Vec<usize> = (0..requests.len()).filter(|&i| answers[i].is_none()).collect();
        let progress =
            Progress { requests: requests.len(), stored: requests.len() - open.len(), ..Progress::default() };
        let jobs = open.iter().map(|&index| {
            let job = Job {
                index,
                attempt: 0,
                invalid: 0,
                empty: 0,
                replies: 0,
                choices: vec![],
                usage: Usage::default(),
                started: None,
            };
            (cost(&requests[index]), job)
        });
        let queue = Queue::new(jobs, self.config.requests_per_minute, self.config.tokens_per_minute);
        let mut asking = Asking {
            config: &self.config,
            requests,
            queue: &queue,
            file,
            valid,
            observer,
            outcome: Outcome { answers, failed: vec![], stopped: false, progress },
            error: None,
            broken_file: false,
            failures: 0,
            started: Instant::now(),
            jitter: ChaCha8Rng::seed_from_u64(RandomState::new().build_hasher().finish()),
        };
        if open.is_empty() {
            asking.report();
            return Ok(asking.end());
        }
        let threads = self.config.concurrency.min(open.len());
        thread::scope(|scope| {
            // Dropped in reverse order: threads that wait to report see that nobody listens, then the queue stops.
            let _stop = StopOnDrop(&queue);
            let (sender, receiver) = mpsc::sync_channel::<Sent>(threads);
            for _ in 0..threads {
                let sender = sender.clone();
                let work = || {
                    let sender = sender;
                    let _stop = StopOnDrop(&queue);
                    while let Some(job) = queue.next() {
                        let (job, result) = self.send(job, requests);
                        if matches!(result, Err(Failure::Fatal(_))) {
                            // At once, before another thread takes the next one.
                            queue.stop();
                        }
                        if sender.send((job, result)).is_err() {
                            return;
                        }
                    }
                };
                if let Err(source) = thread::Builder::new().name("teacher".into()).spawn_scoped(scope, work) {
                    asking.stop(TeacherError::Threads(threads, source));
                    break;
                }
            }
            drop(sender);
            loop {
                match receiver.recv_timeout(TICK) {
                    Ok((job, result)) => asking.take(job, result),
                    Err(RecvTimeoutError::Timeout) => {}
                    Err(RecvTimeoutError::Disconnected) => break,
                }
                asking.report();
                if asking.outcome.progress.open() == 0 {
                    queue.stop();
                }
            }
        });
        let synced = asking.file.sync();
        match asking.error.take() {
            Some(error) => Err(error),
            None => synced.map(|()| asking.end()),
        }
    }

    fn send(&self, mut job: Job, requests: &[Request]) -> Sent {
        job.started.get_or_insert_with(Instant::now);
        let mut body = Body::new(&self.config.model, &requests[job.index]);
        let sampling = &mut body.sampling;
        if let Some(n) = sampling.n {
            let most = if self.config.most_choices == 0 { u32::MAX } else { self.config.most_choices };
            sampling.n = Some((n.max(1) - job.choices.len() as u32).min(most));
        }
        sampling.seed = sampling.seed.map(|seed| seed.wrapping_add(job.replies));
        let result = self.client.send(&body);
        (job, result)
    }
}

/// Tokens that a request may take.
fn cost(request: &Request) -> u64 {
    request.prompt_tokens() + request.completion_tokens()
}

/// The thread that asks: it alone decides, writes and tells.
struct Asking<'a, V> {
    config: &'a TeacherConfig,
    requests: &'a [Request],
    queue: &'a Queue<Job>,
    file: &'a mut AnswerFile,
    valid: V,
    observer: &'a mut dyn TeacherObserver,
    outcome: Outcome,
    error: Option<TeacherError>,
    broken_file: bool,
    /// Failed requests in a row.
    failures: usize,
    started: Instant,
    jitter: ChaCha8Rng,
}

impl<V: FnMut(&Request, &Answer) -> std::result::Result<(), String>> Asking<'_, V> {
    fn take(&mut self, mut job: Job, result: std::result::Result<Reply, Failure>) {
        let request = &self.requests[job.index];
        match result {
            Ok(answer) => {
                job.attempt = 0;
                job.replies += 1;
                job.usage += answer.usage;
                self.outcome.progress.usage += answer.usage;
                job.empty = if answer.choices.is_empty() { job.empty + 1 } else { 0 };
                job.choices.extend(answer.choices);
                if let Some(reason) = answer.missing {
                    self.outcome.progress.invalid += 1;
                    if job.empty >= self.config.answers {
                        return self.fail(&job, reason);
                    }
                    self.observer.again(&request.id, &reason, Duration::ZERO);
                }
                let wanted = request.sampling.choices() as usize;
                job.choices.truncate(wanted);
                if job.choices.len() < wanted {
                    return self.push(job, Duration::ZERO);
                }
                let answer = Answer { choices: std::mem::take(&mut job.choices), usage: job.usage };
                match (self.valid)(request, &answer) {
                    Ok(()) => self.store(&job, answer),
                    Err(reason) => {
                        self.outcome.progress.invalid += 1;
                        job.invalid += 1;
                        // Reasons may quote the answer.
                        let reason = format!("the answer is not valid: {}", shown(&reason));
                        if job.invalid >= self.config.answers {
                            return self.fail(&job, reason);
                        }
                        self.observer.again(&request.id, &reason, Duration::ZERO);
                        self.push(job, Duration::ZERO);
                    }
                }
            }
            Err(Failure::Transient { reason, wait }) => {
                job.attempt += 1;
                if let Some(wait) = wait {
                    self.queue.hold(wait);
                }
                if job.attempt >= self.config.attempts {
                    return self
                        .fail(&job, format!("{} attempts failed, the last one: {reason}", job.attempt));
                }
                self.outcome.progress.retries += 1;
                let backoff = self.config.backoff(job.attempt, self.jitter.random());
                let wait = wait.unwrap_or_default().max(backoff);
                self.observer.again(&request.id, &reason, wait);
                self.push(job, wait);
            }
            Err(Failure::Rejected(reason)) => self.fail(&job, reason),
            Err(Failure::Fatal(error)) => self.stop(error),
        }
    }

    fn push(&self, job: Job, wait: Duration) {
        let tokens = cost(&self.requests[job.index]);
        self.queue.push(job, tokens, wait);
    }

    fn store(&mut self, job: &Job, answer: Answer) {
        if self.write(job, Ok(&answer)) {
            self.failures = 0;
            self.outcome.progress.answered += 1;
            self.outcome.answers[job.index] = Some(answer);
        }
    }

    fn fail(&mut self, job: &Job, reason: String) {
        let id = &self.requests[job.index].id;
        if !self.write(job, Err(&reason)) {
            return;
        }
        self.failures += 1;
        self.outcome.progress.failed += 1;
        self.observer.failed(id, &reason);
        self.outcome.failed.push((id.clone(), reason.clone()));
        if self.config.give_up_after > 0 && self.failures >= self.config.give_up_after {
            self.stop(TeacherError::GaveUp { failures: self.failures, id: id.clone(), reason });
        }
    }

    /// Whether it could be written.
    fn write(&mut self, job: &Job, outcome: std::result::Result<&Answer, &str>) -> bool {
        if self.broken_file {
            return false;
        }
        let request = &self.requests[job.index];
        let body = Body::new(&self.config.model, request);
        let elapsed_ms = job.started.map_or(0, |started| started.elapsed().as_millis() as u64);
        match self.file.write(&request.id, body, outcome, elapsed_ms) {
            Ok(()) => true,
            Err(error) => {
                self.broken_file = true;
                self.stop(error);
                false
            }
        }
    }

    /// Ends with this error, unless there was one before.
    fn stop(&mut self, error: TeacherError) {
        self.error.get_or_insert(error);
        self.queue.stop();
    }

    fn report(&mut self) {
        self.outcome.progress.elapsed = self.started.elapsed();
        if self.observer.progress(&self.outcome.progress).is_break() && self.outcome.progress.open() > 0 {
            self.outcome.stopped = true;
            self.queue.stop();
        }
    }
    fn end(self) -> Outcome {
        self.observer.ended(&self.outcome);
        self.outcome
    }
}
