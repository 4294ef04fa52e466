//! The report of one run, from the files in its folder.

use std::borrow::Cow;
use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::path::{Path, PathBuf};

use jiff::Timestamp;
use serde_json::Value;

use super::chart::{Chart, Line, Shape};
use super::page::Page;
use super::records::{Records, SPEED, Samples, Series};
use super::rewards;
use crate::output::{Table, duration, number};
use crate::provenance::{Provenance, Start};
use crate::rundir::{self, RunDir, RunDirError};

/// Groups that share charts: a loss in training beside the same loss in validation.
const COMPARED: [&str; 2] = ["train", "eval"];
/// Samples shown of a validation.
const SHOWN: usize = 12;

/// Writes `report.html` anew from the other files of a run's folder: metrics, samples, checkpoints and configuration. Any
/// metric `group/name` becomes a chart. While a run works, its own process does this; afterwards anyone can.
///
/// Whoever reads the old report meanwhile sees the old or the new one, never a part.
///
/// # Errors
/// There is no run in the folder, or it is not writable. Lines that cannot be read are passed over.
pub fn write(folder: &Path) -> Result<PathBuf, RunDirError> {
    if RunDir::stored_config(folder).is_none() {
        return Err(RunDirError::NoRun(folder.to_owned()));
    }
    write_as(folder, rundir::is_locked(folder))
}

/// Writes the report like [`write`], but into another folder, which is created where it is missing.
///
/// # Errors
/// There is no run in the folder, or `out` is not writable.
pub(crate) fn write_into(folder: &Path, out: &Path) -> Result<PathBuf, RunDirError> {
    if RunDir::stored_config(folder).is_none() {
        return Err(RunDirError::NoRun(folder.to_owned()));
    }
    fs::create_dir_all(out).map_err(RunDirError::io("create", out))?;
    page(folder, rundir::is_locked(folder)).write(out)
}

/// As [`write`]; the process that works on the run knows that it does.
pub(crate) fn write_as(folder: &Path, alive: bool) -> Result<PathBuf, RunDirError> {
    page(folder, alive).write(folder)
}

fn page(folder: &Path, alive: bool) -> Page {
    let records = Records::read(&folder.join(rundir::METRICS));
    let samples = Samples::read(&folder.join(rundir::SAMPLES));
    let now = Timestamp::now().strftime("%F %H:%M UTC");
    let mut page = Page::new(&name(folder), &format!("A run of ruminate, as of {now}."));
    page.facts(&facts(&records, alive));
    curves(&mut page, &records);
    reward_charts(&mut page, &[(String::new(), &records)]);
    checkpoints(&mut page, folder, &records);
    timing(&mut page, &records);
    texts(&mut page, &samples);
    if let Some(start) = Provenance::read(folder).starts.last() {
        computed_on(&mut page, start);
    }
    if let Some(config) = RunDir::stored_config(folder).and_then(|path| fs::read_to_string(path).ok()) {
        page.heading("Configuration").code(config.trim_end());
    }
    page
}

/// The name of a run: that of its folder.
pub(super) fn name(folder: &Path) -> String {
    let whole = folder.canonicalize().unwrap_or_else(|_| folder.to_owned());
    whole.file_name().map_or_else(|| "run".into(), |name| name.to_string_lossy().into_owned())
}

pub(super) fn reward_charts(page: &mut Page, runs: &[(String, &Records)]) {
    let histograms = rewards::histograms(runs);
    if !histograms.is_empty() {
        page.heading("Rewards of responses").charts(&histograms);
    }
    let paths = rewards::against_divergence(runs);
    if !paths.is_empty() {
        page.heading("Reward against divergence").charts(&paths).note(
            "A dot is a record of training. The line leads through means of their sixths, from the beginning to the large dot.",
        );
    }
}

/// Answers of the model now, beside its first ones to the same questions.
fn texts(page: &mut Page, samples: &Samples) {
    let ((first_step, first), (step, last)) = (&samples.first, &samples.last);
    let last = &last[..last.len().min(SHOWN)];
    if last.is_empty() {
        return;
    }
    let before = |sample: &Value| {
        let question = question(sample)?;
        first.iter().find(|before| self::question(before).as_ref() == Some(&question))
    };
    let rows: Vec<Vec<Option<&Value>>> =
        last.iter().filter_map(|sample| Some(vec![Some(before(sample)?), Some(sample)])).collect();
    if first_step != step && rows.len() == last.len() {
        let titles = [first_step, step].map(|step| format!("before step {step}"));
        page.heading("The same questions, before and after").side_by_side(&titles, &rows);
        return;
    }
    page.heading(&format!("Samples before step {step}")).samples(last);
    if first_step != step {
        page.folded(&format!("The same before step {first_step}"), |page| {
            page.samples(&first[..first.len().min(SHOWN)]);
        });
    }
}

/// By what samples of the same question are found.
pub(super) fn question(sample: &Value) -> Option<String> {
    let asked = ["question", "prompt", "query"].iter().find_map(|key| sample.get(key)?.as_str())?;
    Some(format!("{} {asked}", sample.get("task").and_then(Value::as_str).unwrap_or_default()))
}

/// Machine, versions and command of a start, for people.
pub(super) fn machine(start: &Start) -> Vec<(&'static str, String)> {
    let Start {
        time,
        command,
        version,
        commit,
        libtorch,
        device,
        processes,
        host,
        cpu,
        cpu_level,
        threads,
        ..
    } = start;
    let known = |text: &Option<String>| text.clone().unwrap_or_default();
    let facts = [
        ("started", time.clone()),
        ("command", command.join(" ")),
        ("ruminate", version.clone()),
        ("commit", known(commit)),
        ("libtorch", known(libtorch)),
        ("device", device.clone()),
        // Older versions did not record it.
        ("processes", if *processes == 0 { String::new() } else { processes.to_string() }),
        ("threads of each", threads.to_string()),
        ("processor", cpu.clone()),
        ("vector unit", cpu_level.clone()),
        ("host", known(host)),
    ];
    facts.into_iter().filter(|(_, value)| !value.is_empty()).collect()
}

fn computed_on(page: &mut Page, start: &Start) {
    let mut table = Table::new(["last start", ""]);
    for (name, value) in machine(start) {
        table.row([name.to_owned(), value]);
    }
    page.heading("Provenance").table(&table);
    if start.files.is_empty() {
        return;
    }
    let mut table = Table::new(["file", "bytes", "BLAKE3"]);
    for (path, file) in &start.files {
        table.row([path.clone(), file.bytes.to_string(), file.blake3.clone()]);
    }
    page.folded(&format!("{} files that were read, or that the settings name", start.files.len()), |page| {
        page.table(&table);
    });
}

pub(super) fn facts(records: &Records, alive: bool) -> Vec<(&'static str, String)> {
    let (done, total) = records.steps;
    let state = match records.ending.as_deref() {
        Some(ending) => ending,
        None if alive => "running",
        None => "interrupted",
    };
    let mut facts = vec![("State", state.to_owned())];
    facts.push((
        "Steps",
        total.map_or_else(|| done.to_string(), |total| format!("{} of {}", group(done), group(total))),
    ));
    facts.push(("Time", duration(records.time)));
    let (secs, tokens) = records.cost;
    if tokens > 0.0 {
        facts.push(("Tokens", short(tokens)));
        facts.push(("Tokens per second", group((tokens / secs).round() as u64)));
    }
    if let (true, Some(total), true) = (state == "running", total, done > 0) {
        let left = records.time / done as f64 * total.saturating_sub(done) as f64;
        facts.push(("Time left, about", duration(left)));
    }
    facts
}

/// Section, order and title of a metric's chart, and the name of its line: those of one family (`acc/obqa`, `acc/csqa`) and of training
/// and validation share a chart.
struct Place<'a> {
    section: String,
    order: usize,
    title: &'a str,
    line: String,
}

impl<'a> Place<'a> {
    fn of(name: &'a str) -> Self {
        let (group, rest) = name.split_once('/').unwrap_or(("", name));
        let compared = COMPARED.contains(&group);
        let section = if compared { String::new() } else { group.to_owned() };
        let (title, line) = match rest.split_once('/') {
            Some((family, member)) if compared => (family, format!("{group} {member}")),
            Some((family, member)) => (family, member.to_owned()),
            None if compared => (rest, group.to_owned()),
            None => (rest, String::new()),
        };
        // Losses first, then other measures, then how training goes.
        let order = match title {
            "loss" => 0,
            title if title.contains("loss") => 1,
            "grad_norm" | "lr" => 3,
            _ if name == SPEED => 4,
            _ => 2,
        };
        Self { section, order, title, line }
    }
}

fn curves(page: &mut Page, records: &Records) {
    type Charts<'a> = BTreeMap<(usize, String), Vec<(String, &'a Series)>>;
    let mut sections: BTreeMap<String, Charts<'_>> = BTreeMap::new();
    for (name, series) in &records.series {
        let Place { section, order, title, line } = Place::of(name);
        let key = (order, title.replace('_', " "));
        let lines = sections.entry(section).or_default().entry(key).or_default();
        // Training before validation.
        let at = if name.starts_with("train/") { 0 } else { lines.len() };
        lines.insert(at, (line, series));
    }
    for (section, charts) in sections {
        let chart = |((_, title), lines): ((usize, String), Vec<(String, _)>)| {
            // The first colour is that of training, where there is training.
            let validation = section.is_empty() && lines.iter().all(|(name, _)| !name.starts_with("train"));
            let first = usize::from(validation);
            let line =
                |(at, (name, series))| Line { name, colour: first + at, series: Cow::Borrowed(series) };
            Chart { title, shape: Shape::Curve, lines: lines.into_iter().enumerate().map(line).collect() }
        };
        let charts: Vec<Chart<'_>> = charts.into_iter().map(chart).collect();
        page.heading(if section.is_empty() { "Training and validation" } else { &section });
        page.charts(&charts);
    }
}

/// All curves of several runs: a chart for each metric that any of them recorded, and in it a line for each run.
pub(super) fn overlaid(page: &mut Page, runs: &[(String, &Records)]) {
    let metrics: BTreeSet<&String> = runs.iter().flat_map(|(_, records)| records.series.keys()).collect();
    let mut sections: BTreeMap<String, Vec<(usize, &str)>> = BTreeMap::new();
    for metric in metrics {
        let Place { section, order, .. } = Place::of(metric);
        sections.entry(section).or_default().push((order, metric));
    }
    for (section, mut metrics) in sections {
        metrics.sort_unstable();
        let charts: Vec<Chart<'_>> = metrics
            .into_iter()
            .filter_map(|(_, metric)| overlay(runs, metric, metric.replace(['_', '/'], " ")))
            .collect();
        page.heading(if section.is_empty() { "Training and validation" } else { &section });
        page.charts(&charts);
    }
}

/// A metric of several runs, each of which keeps its colour.
fn overlay<'a>(runs: &[(String, &'a Records)], metric: &str, title: String) -> Option<Chart<'a>> {
    let line = |(colour, (name, records)): (usize, &(String, &'a Records))| {
        Some(Line { name: name.clone(), colour, series: Cow::Borrowed(records.series.get(metric)?) })
    };
    let lines: Vec<_> = runs.iter().enumerate().filter_map(line).collect();
    (!lines.is_empty()).then_some(Chart { title, shape: Shape::Curve, lines })
}

impl Page {
    /// Curves of several runs, each with its name: one chart for each of the metrics (`group/name`, as in `metrics.jsonl`)
    /// that any of the runs recorded.
    pub fn curves(&mut self, runs: &[(String, PathBuf)], metrics: &[(&str, &str)]) -> &mut Self {
        let records: Vec<(&String, Records)> =
            runs.iter().map(|(name, folder)| (name, Records::read(&folder.join(rundir::METRICS)))).collect();
        let runs: Vec<(String, &Records)> =
            records.iter().map(|(name, records)| ((*name).clone(), records)).collect();
        let chart = |&(metric, title): &(&str, &str)| overlay(&runs, metric, title.to_owned());
        let charts: Vec<Chart<'_>> = metrics.iter().filter_map(chart).collect();
        self.charts(&charts)
    }
}

/// An interval that no line breaks.
pub(super) fn range(low: f64, high: f64) -> String {
    format!("{}\u{a0}to\u{a0}{}", number(low), number(high))
}

/// The interval of a metric at a step, where the values behind it are known.
pub(super) fn interval(records: &Records, name: &str, step: u64) -> Option<String> {
    let [low, high] = records.distributions.get(name)?.get(&step)?.interval?;
    Some(range(low, high))
}

/// What was measured at the first, the best and the last validation.
fn checkpoints(page: &mut Page, folder: &Path, records: &Records) {
    let step_of = |link: &str| -> Option<u64> {
        let target = fs::read_link(folder.join(rundir::CHECKPOINTS).join(link)).ok()?;
        target.file_name()?.to_str()?.strip_prefix("step-")?.parse().ok()
    };
    let (best, last) = (step_of("best"), step_of("last"));
    if best.is_some() || last.is_some() {
        let mut table = Table::new(["checkpoint", "step", "folder"]);
        for (link, step) in [("best", best), ("last", last)] {
            if let Some(step) = step {
                table.row([
                    link.to_owned(),
                    step.to_string(),
                    format!("{}/step-{step}", rundir::CHECKPOINTS),
                ]);
            }
        }
        page.heading("Checkpoints").table(&table);
    }
    let Some((&latest, _)) = records.evaluations.last_key_value() else { return };
    let first = records.evaluations.keys().next().copied().unwrap_or(latest);
    let mut columns = vec![("first", first)];
    columns.extend(best.filter(|step| records.evaluations.contains_key(step)).map(|step| ("best", step)));
    columns.push(("last", latest));
    let names: BTreeSet<&String> = records.evaluations.values().flat_map(BTreeMap::keys).collect();
    let intervals = names.iter().any(|name| interval(records, name, latest).is_some());
    let titles = columns.iter().map(|(title, step)| format!("{title} (step {step})"));
    let last = intervals.then(|| "95 % interval of the last".to_owned());
    let mut table = Table::new(["measure".to_owned()].into_iter().chain(titles).chain(last));
    for name in names {
        let cell = |(_, step): &(&str, u64)| {
            let value = records.evaluations.get(step).and_then(|metrics| metrics.get(name));
            value.map_or_else(String::new, |value| number(*value))
        };
        let last = interval(records, name, latest);
        table.row([name.clone()].into_iter().chain(columns.iter().map(cell)).chain(last));
    }
    page.heading("Validation").table(&table);
}

fn timing(page: &mut Page, records: &Records) {
    if records.phases.is_empty() || records.time <= 0.0 {
        return;
    }
    let known: f64 = records.phases.values().sum();
    let mut phases: Vec<(&str, f64)> =
        records.phases.iter().map(|(name, secs)| (name.as_str(), *secs)).collect();
    phases.sort_by(|a, b| b.1.total_cmp(&a.1));
    phases.push(("everything else", (records.time - known).max(0.0)));
    let mut table = Table::new(["phase", "seconds", "share, %"]);
    for (name, secs) in phases {
        let share = 100.0 * secs / records.time.max(known);
        table.row([name.to_owned(), format!("{secs:.1}"), format!("{share:.1}")]);
    }
    page.heading("Time by phase").table(&table);
}

/// `1 234 567`.
fn group(value: u64) -> String {
    let digits = value.to_string();
    let mut text = String::new();
    for (at, digit) in digits.chars().enumerate() {
        if at > 0 && (digits.len() - at).is_multiple_of(3) {
            text.push('\u{202f}');
        }
        text.push(digit);
    }
    text
}

/// Three digits and a letter.
fn short(value: f64) -> String {
    for (size, unit) in [(1e12, " T"), (1e9, " G"), (1e6, " M"), (1e3, " k")] {
        if value >= size {
            return format!("{:.2}{unit}", value / size);
        }
    }
    format!("{value:.0}")
}

#[cfg(test)]
mod tests;
