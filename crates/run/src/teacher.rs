use std::ops::ControlFlow;
use std::time::Duration;

use indicatif::FormattedDuration;
use ruminate_datasets::teacher::{Outcome, Plan, Prices, Progress, TeacherObserver, Usage};

use crate::console::{Console, Verbosity};
use crate::output::{Table, number, print_json};
use crate::signals::StopFlag;

/// Shows on stderr how far a teacher is, with the time left, the tokens so far and what they cost, and stops asking when a [`StopFlag`]
/// is raised: nothing more is sent, what is under way is stored, and the next run with the same file asks for the rest.
///
/// Requests that are given up are named with the reason; those that are sent again from [`Verbosity::AllMetrics`] on.
///
/// # Example
/// ```no_run
/// use ruminate_datasets::teacher::{Answer, Message, Prices, Request, Teacher, TeacherConfig};
/// use ruminate_run::{Outcome, StopFlag, TeacherConsole, Verbosity};
///
/// # fn main() -> Result<(), Box<dyn std::error::Error>> {
/// let stop = StopFlag::on_ctrl_c()?;
/// let prices = Prices { prompt: 2.5, completion: 10.0 };
/// let mut console = TeacherConsole::new(Verbosity::Normal, stop).with_prices(prices);
/// let requests = [Request::new("ice", vec![Message::new("user", "Is ice cold?")])];
/// let valid = |_: &Request, _: &Answer| Ok(());
/// let outcome = Teacher::new(TeacherConfig::default())?.ask(&requests, "answers.jsonl".as_ref(), valid, &mut console)?;
/// // What `exit_code` takes: 130 after Ctrl-C.
/// let ending = if outcome.stopped { Outcome::Interrupted } else { Outcome::Done };
/// # Ok(()) }
/// ```
#[derive(Debug)]
pub struct TeacherConsole {
    console: Console,
    stop: StopFlag,
    prices: Option<Prices>,
    /// Is asking a part of something that tells of its own end?
    part: bool,
}

const UNIT: &str = "teacher";

impl TeacherConsole {
    /// Shows no cost.
    #[must_use]
    pub fn new(verbosity: Verbosity, stop: StopFlag) -> Self {
        Self { console: Console::stderr(verbosity), stop, prices: None, part: false }
    }

    /// Shows what the tokens cost at these prices.
    #[must_use]
    pub fn with_prices(self, prices: Prices) -> Self {
        Self { prices: Some(prices), ..self }
    }

    /// Says nothing at the end, because it is asked many times in the course of something that tells how far it is.
    #[must_use]
    pub fn as_part(self) -> Self {
        Self { part: true, ..self }
    }

    fn spent(&self, usage: Usage) -> String {
        let cost = self.prices.map(|prices| format!(", cost {}", number(usage.cost(prices))));
        let Usage { prompt_tokens, completion_tokens } = usage;
        format!("{prompt_tokens} prompt + {completion_tokens} completion tokens{}", cost.unwrap_or_default())
    }
}

/// Prints what asking a teacher would take, for `--dry-run`: as a table under `title`, or as a line of JSON.
///
/// # Errors
/// When stdout cannot be written.
pub fn print_teacher_plan(
    title: &str,
    plan: &Plan,
    prices: Option<Prices>,
    as_json: bool,
) -> std::io::Result<()> {
    let Plan { stored, to_ask, usage, .. } = plan;
    let cost = prices.map(|prices| usage.cost(prices));
    if as_json {
        return print_json(&serde_json::json!({
            "stored": stored, "to_ask": to_ask, "prompt_tokens": usage.prompt_tokens,
            "completion_tokens": usage.completion_tokens, "cost": cost,
        }));
    }
    let mut table = Table::new([title, ""]);
    table.row(["answers that are there".to_string(), stored.to_string()]);
    table.row(["requests".to_string(), to_ask.to_string()]);
    table.row(["prompt tokens, about".to_string(), usage.prompt_tokens.to_string()]);
    table.row(["completion tokens, at most".to_string(), usage.completion_tokens.to_string()]);
    if let Some(cost) = cost {
        table.row(["cost, at most".to_string(), format!("{cost:.2}")]);
    }
    table.print()
}

impl TeacherObserver for TeacherConsole {
    fn progress(&mut self, progress: &Progress) -> ControlFlow<()> {
        // What matters least comes last: a narrow terminal cuts it off.
        let mut status = vec![];
        status.extend(progress.time_left().map(|left| format!("{} left", FormattedDuration(left))));
        status.push(self.spent(progress.usage));
        status.extend((progress.failed > 0).then(|| format!("{} failed", progress.failed)));
        let done = progress.requests - progress.open();
        self.console.work(UNIT, done as u64, progress.requests as u64, &status.join("  "));
        if self.stop.is_requested() { ControlFlow::Break(()) } else { ControlFlow::Continue(()) }
    }

    fn again(&mut self, id: &str, reason: &str, wait: Duration) {
        if self.console.verbosity() >= Verbosity::AllMetrics {
            let when =
                if wait.is_zero() { String::new() } else { format!(" in {:.1} s", wait.as_secs_f64()) };
            self.console.line(&format!("{UNIT}: `{id}` is asked again{when}: {reason}"));
        }
    }

    fn failed(&mut self, id: &str, reason: &str) {
        self.console.line(&format!("{UNIT}: `{id}` failed: {reason}"));
    }

    fn ended(&mut self, outcome: &Outcome) {
        self.console.end_work();
        if self.part {
            return;
        }
        let progress = &outcome.progress;
        let mut counts = vec![format!("{} answered", progress.answered)];
        for (count, what) in
            [(progress.stored, "stored before"), (progress.failed, "failed"), (progress.open(), "open")]
        {
            counts.extend((count > 0).then(|| format!("{count} {what}")));
        }
        let ending = if outcome.stopped { "stopped" } else { "done" };
        self.console.line(&format!(
            "{UNIT}: {ending} in {}: {}; {}",
            FormattedDuration(progress.elapsed),
            counts.join(", "),
            self.spent(progress.usage),
        ));
    }
}

#[cfg(test)]
mod tests;
