//! The report of one run, from the files in its folder.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::path::{Path, PathBuf};
use std::time::{SystemTime, UNIX_EPOCH};

use super::chart::Chart;
use super::page::Page;
use super::records::{Records, SPEED, Samples, Series};
use crate::output::{Table, duration, number};
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

/// As [`write`]; the process that works on the run knows that it does.
pub(crate) fn write_as(folder: &Path, alive: bool) -> Result<PathBuf, RunDirError> {
    page(folder, alive).write(folder)
}

fn page(folder: &Path, alive: bool) -> Page {
    let records = Records::read(&folder.join(rundir::METRICS));
    let samples = Samples::read(&folder.join(rundir::SAMPLES));
    let whole = folder.canonicalize().unwrap_or_else(|_| folder.to_owned());
    let name = whole.file_name().map_or_else(|| "run".into(), |name| name.to_string_lossy().into_owned());
    let mut page = Page::new(&name, &format!("A run of ruminate, as of {}.", date(SystemTime::now())));
    page.facts(&facts(&records, alive));
    curves(&mut page, &records);
    checkpoints(&mut page, folder, &records);
    timing(&mut page, &records);
    if !samples.last.1.is_empty() {
        let (step, last) = &samples.last;
        page.heading(&format!("Samples before step {step}")).samples(&last[..last.len().min(SHOWN)]);
        let (first_step, first) = &samples.first;
        if first_step != step {
            let summary = format!("The same before step {first_step}");
            page.folded_samples(&summary, &first[..first.len().min(SHOWN)]);
        }
    }
    if let Some(config) = RunDir::stored_config(folder).and_then(|path| fs::read_to_string(path).ok()) {
        page.heading("Configuration").code(config.trim_end());
    }
    page
}

fn facts(records: &Records, alive: bool) -> Vec<(&'static str, String)> {
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

/// One chart per metric; those of one family (`acc/obqa`, `acc/csqa`) and of training and validation share one.
fn curves(page: &mut Page, records: &Records) {
    type Charts<'a> = BTreeMap<(usize, String), Vec<(String, &'a Series)>>;
    let mut sections: BTreeMap<String, Charts<'_>> = BTreeMap::new();
    for (name, series) in &records.series {
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
        let title = title.replace('_', " ");
        let lines = sections.entry(section).or_default().entry((order, title)).or_default();
        // Training before validation.
        let at = if group == "train" { 0 } else { lines.len() };
        lines.insert(at, (line, series));
    }
    for (section, charts) in sections {
        let chart = |((_, title), lines): ((usize, String), Vec<(String, _)>)| {
            // The first colour is that of training, where there is training.
            let validation = section.is_empty() && lines.iter().all(|(name, _)| !name.starts_with("train"));
            Chart { title, first_colour: usize::from(validation), lines }
        };
        let charts: Vec<Chart<'_>> = charts.into_iter().map(chart).collect();
        page.heading(if section.is_empty() { "Training and validation" } else { &section });
        page.charts(&charts);
    }
}

impl Page {
    /// Curves of several runs, each with its name: one chart for each of the metrics (`group/name`, as in `metrics.jsonl`)
    /// that any of the runs recorded.
    pub fn curves(&mut self, runs: &[(String, PathBuf)], metrics: &[(&str, &str)]) -> &mut Self {
        let records: Vec<(&String, Records)> =
            runs.iter().map(|(name, folder)| (name, Records::read(&folder.join(rundir::METRICS)))).collect();
        let mut charts = vec![];
        for &(metric, title) in metrics {
            let lines: Vec<_> = (records.iter())
                .filter_map(|(name, records)| Some(((*name).clone(), records.series.get(metric)?)))
                .collect();
            if !lines.is_empty() {
                charts.push(Chart { title: title.to_owned(), first_colour: 0, lines });
            }
        }
        self.charts(&charts)
    }
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
    let titles = columns.iter().map(|(title, step)| format!("{title} (step {step})"));
    let mut table = Table::new(["measure".to_owned()].into_iter().chain(titles));
    let names: BTreeSet<&String> = records.evaluations.values().flat_map(BTreeMap::keys).collect();
    for name in names {
        let cell = |(_, step): &(&str, u64)| {
            let value = records.evaluations.get(step).and_then(|metrics| metrics.get(name));
            value.map_or_else(String::new, |value| number(*value))
        };
        table.row([name.clone()].into_iter().chain(columns.iter().map(cell)));
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

/// `2026-11-20 19:45 UTC`. From days to dates as in H. Hinnant's `civil_from_days`.
fn date(time: SystemTime) -> String {
    let secs = time.duration_since(UNIX_EPOCH).map_or(0, |since| since.as_secs());
    let days = secs / 86_400 + 719_468;
    let (era, day_of_era) = (days / 146_097, days % 146_097);
    let year_of_era = (day_of_era - day_of_era / 1460 + day_of_era / 36_524 - day_of_era / 146_096) / 365;
    let day_of_year = day_of_era - (365 * year_of_era + year_of_era / 4 - year_of_era / 100);
    let shifted = (5 * day_of_year + 2) / 153;
    let day = day_of_year - (153 * shifted + 2) / 5 + 1;
    let month = if shifted < 10 { shifted + 3 } else { shifted - 9 };
    let year = era * 400 + year_of_era + u64::from(month <= 2);
    format!("{year:04}-{month:02}-{day:02} {:02}:{:02} UTC", secs % 86_400 / 3600, secs % 3600 / 60)
}

#[cfg(test)]
mod tests;
