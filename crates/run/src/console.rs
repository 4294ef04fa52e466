use std::fmt;
use std::io::Write;
use std::time::{Duration, Instant};

use indicatif::{FormattedDuration, MultiProgress, ProgressBar, ProgressStyle};
use ruminate_algorithms::{Metrics, StepReport};

use crate::output::number;

/// How much a run tells about itself on stderr. Its files are complete at every level.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, PartialOrd, Ord)]
pub enum Verbosity {
    /// Nothing.
    Quiet,
    /// Progress with the first three metrics, evaluations and checkpoints.
    #[default]
    Normal,
    /// Progress with all metrics.
    AllMetrics,
    /// Progress with all metrics, and every sample.
    Samples,
}

/// Time between two plain lines about the same work.
const INTERVAL: Duration = Duration::from_secs(10);

/// Progress on stderr: bars on a terminal, a line every now and then elsewhere.
pub(crate) struct Console {
    sink: Sink,
    verbosity: Verbosity,
    pace: Option<Pace>,
    /// The metrics of the last step that reported any.
    metrics: String,
    /// The phase that plain lines tell of, and when it began.
    phase: Option<(String, Instant)>,
}

enum Sink {
    Quiet,
    Lines { out: Box<dyn Write + Send>, interval: Duration, last: Instant },
    Bars { all: MultiProgress, steps: Option<ProgressBar>, phase: Option<(String, ProgressBar)> },
}

impl Console {
    pub(crate) fn stderr(verbosity: Verbosity) -> Self {
        let bars = MultiProgress::new();
        let sink = if verbosity == Verbosity::Quiet {
            Sink::Quiet
        } else if bars.is_hidden() {
            // stderr is not a terminal.
            Sink::Lines { out: Box::new(std::io::stderr()), interval: INTERVAL, last: Instant::now() }
        } else {
            Sink::Bars { all: bars, steps: None, phase: None }
        };
        Self { sink, verbosity, pace: None, metrics: String::new(), phase: None }
    }

    #[cfg(test)]
    pub(crate) fn lines(out: Box<dyn Write + Send>, interval: Duration, verbosity: Verbosity) -> Self {
        let sink = Sink::Lines { out, interval, last: Instant::now() };
        Self { sink, verbosity, pace: None, metrics: String::new(), phase: None }
    }

    pub(crate) fn verbosity(&self) -> Verbosity {
        self.verbosity
    }

    pub(crate) fn started(&mut self, first_step: u64, total_steps: u64) {
        self.pace = Some(Pace::new(first_step, total_steps));
        if let Sink::Bars { all, steps, .. } = &mut self.sink {
            let bar = all.add(ProgressBar::new(total_steps).with_style(style("step")));
            bar.set_position(first_step);
            if let Some(finished) = steps.replace(bar) {
                finished.finish_and_clear();
            }
        }
        match first_step {
            0 => self.line(&format!("starting: {total_steps} steps")),
            _ => self.line(&format!("resuming at step {first_step} of {total_steps}")),
        }
    }

    pub(crate) fn step(&mut self, report: &StepReport<'_>) {
        let pace = self.pace.get_or_insert_with(|| Pace::new(report.step, report.total_steps));
        pace.record(report);
        let shown = if self.verbosity >= Verbosity::AllMetrics { usize::MAX } else { 3 };
        if !report.metrics.is_empty() {
            self.metrics = show(report.metrics.iter().take(shown));
        }
        // The metrics come last, so that a narrow terminal cuts off the least important of them.
        let status = format!("{pace}  {}", self.metrics);
        let last_step = pace.done >= pace.total;
        let done = format!(
            "done: {} of {} steps in {}",
            pace.done,
            pace.total,
            FormattedDuration(pace.started.elapsed())
        );
        match &mut self.sink {
            Sink::Quiet => {}
            Sink::Bars { steps, .. } => {
                if let Some(bar) = steps {
                    bar.set_position(report.step + 1);
                    bar.set_message(status);
                }
                if last_step {
                    if let Some(bar) = steps.take() {
                        bar.finish_and_clear();
                    }
                    self.line(&done);
                }
            }
            Sink::Lines { interval, last, .. } => {
                if last_step || last.elapsed() >= *interval {
                    self.line(&format!("step {}/{}  {status}", report.step + 1, report.total_steps));
                }
                if last_step {
                    self.line(&done);
                }
            }
        }
    }

    pub(crate) fn progress(&mut self, phase: &str, done: u64, total: u64) {
        let began = match &self.phase {
            Some((name, began)) if name == phase => *began,
            _ => self.phase.insert((phase.to_owned(), Instant::now())).1,
        };
        // The first unit's own time is not known; the phase begins when it is told of.
        let left =
            began.elapsed().mul_f64(total.saturating_sub(done) as f64 / done.saturating_sub(1).max(1) as f64);
        if done >= total {
            self.phase = None;
        }
        self.work(phase, done, total, &format!("{} left", FormattedDuration(left)));
    }

    /// How far work other than steps is; a line every now and then, or a bar until all is done or [`end_work`](Self::end_work).
    pub(crate) fn work(&mut self, unit: &str, done: u64, total: u64, status: &str) {
        match &mut self.sink {
            Sink::Quiet => {}
            Sink::Bars { all, phase: current, .. } => {
                if current.as_ref().is_none_or(|(name, _)| name != unit) {
                    let bar = all.add(ProgressBar::new(total).with_style(style(unit)));
                    if let Some((_, other)) = current.replace((unit.to_owned(), bar)) {
                        other.finish_and_clear();
                    }
                }
                if let Some((_, bar)) = current {
                    bar.set_length(total);
                    bar.set_position(done);
                    bar.set_message(status.to_owned());
                }
                if done >= total {
                    self.end_work();
                }
            }
            Sink::Lines { interval, last, .. } => {
                if last.elapsed() >= *interval {
                    self.line(&format!("{unit} {done}/{total}  {status}"));
                }
            }
        }
    }

    /// Takes the bar of such work away.
    pub(crate) fn end_work(&mut self) {
        if let Sink::Bars { phase, .. } = &mut self.sink
            && let Some((_, bar)) = phase.take()
        {
            bar.finish_and_clear();
        }
    }

    pub(crate) fn evaluated(&mut self, step: u64, metrics: &Metrics) {
        self.line(&format!("step {step}: {}", show(metrics)));
    }

    pub(crate) fn samples(&mut self, step: u64, samples: &[serde_json::Value]) {
        if self.verbosity >= Verbosity::Samples {
            for sample in samples {
                self.line(&format!("step {step}: sample {sample}"));
            }
        }
    }

    /// A line that stays. Nobody stops a run because its stderr is gone, so a failure is ignored.
    pub(crate) fn line(&mut self, text: &str) {
        match &mut self.sink {
            Sink::Quiet => {}
            Sink::Lines { out, last, .. } => {
                *last = Instant::now();
                let _ = writeln!(out, "{text}");
            }
            Sink::Bars { all, .. } => {
                let _ = all.println(text);
            }
        }
    }
}

impl Drop for Console {
    /// An interrupted or failed run must not leave half a bar in front of its last message.
    fn drop(&mut self) {
        if let Sink::Bars { all, .. } = &self.sink {
            let _ = all.clear();
        }
    }
}

impl fmt::Debug for Console {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Console").field("verbosity", &self.verbosity).finish_non_exhaustive()
    }
}

fn style(unit: &str) -> ProgressStyle {
    // Braces have a meaning in a template.
    let unit = unit.replace(['{', '}'], "");
    ProgressStyle::with_template(&format!("{unit} {{pos}}/{{len}} [{{bar:20}}] {{wide_msg}}"))
        .unwrap_or_else(|_| ProgressStyle::default_bar())
        .progress_chars("=> ")
}

/// `loss 1.234  dev/accuracy 0.61`: the prefix of the training metrics goes without saying.
fn show<'a>(metrics: impl IntoIterator<Item = &'a (String, f64)>) -> String {
    let metrics = metrics.into_iter().map(|(name, value)| {
        let name = name.strip_prefix("train/").unwrap_or(name);
        format!("{name} {}", number(*value))
    });
    metrics.collect::<Vec<_>>().join("  ")
}

/// Speed and time left.
struct Pace {
    started: Instant,
    first: u64,
    done: u64,
    total: u64,
    /// Decaying sums over the steps, so that their quotient is the speed of the last ten or so.
    tokens: f64,
    secs: f64,
}

impl Pace {
    fn new(first: u64, total: u64) -> Self {
        Self { started: Instant::now(), first, done: first, total, tokens: 0.0, secs: 0.0 }
    }

    fn record(&mut self, report: &StepReport<'_>) {
        const DECAY: f64 = 0.9;
        self.done = report.step + 1;
        self.total = report.total_steps;
        self.tokens = DECAY * self.tokens + report.tokens as f64;
        self.secs = DECAY * self.secs + report.secs;
    }

    /// From the wall clock, because evaluations and checkpoints between the steps take their time too.
    fn left(&self) -> Duration {
        let taken = self.done.saturating_sub(self.first).max(1);
        let left = self.total.saturating_sub(self.done);
        self.started.elapsed().mul_f64(left as f64 / taken as f64)
    }
}

impl fmt::Display for Pace {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} left", FormattedDuration(self.left()))?;
        if self.secs > 0.0 {
            write!(f, "  {:.0} tokens/s", self.tokens / self.secs)?;
        }
        Ok(())
    }
}
