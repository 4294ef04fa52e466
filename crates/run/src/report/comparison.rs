//! The report on several runs.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::path::{Path, PathBuf};

use jiff::Timestamp;
use serde_json::Value;
use toml::Table as Toml;

use super::page::Page;
use super::records::{Records, Samples};
use super::run::{facts, interval, machine, name, overlaid, question, range, reward_charts};
use crate::config;
use crate::distribution::student;
use crate::output::{Table, number};
use crate::provenance::Provenance;
use crate::rundir::{self, RunDir, RunDirError};

/// Questions shown with the answers of all runs.
const SHOWN: usize = 12;
/// Characters of a hash that tell it from others.
const HASH: usize = 12;

struct Run {
    name: String,
    records: Records,
    samples: Samples,
    config: BTreeMap<String, toml::Value>,
    provenance: Provenance,
    alive: bool,
}

impl Run {
    fn read(folder: &Path, name: String) -> Result<Self, RunDirError> {
        let file = RunDir::stored_config(folder).ok_or_else(|| RunDirError::NoRun(folder.to_owned()))?;
        Ok(Self {
            name,
            records: Records::read(&folder.join(rundir::METRICS)),
            samples: Samples::read(&folder.join(rundir::SAMPLES)),
            config: config::flatten(&config::load::<Toml>(Some(&file), &[])?),
            provenance: Provenance::read(folder),
            alive: rundir::is_locked(folder),
        })
    }
}

/// Writes `report.html` about several runs into `out`, which is created where it is missing: their curves on top of each other, the
/// settings and machines in which they differ, their last validations with intervals, rewards, and their answers to the same questions.
///
/// # Errors
/// One of the folders holds no run, its configuration cannot be read, or `out` is not writable.
pub fn write(folders: &[PathBuf], out: &Path) -> Result<PathBuf, RunDirError> {
    let names: Vec<String> = folders.iter().map(|folder| name(folder)).collect();
    let unique = names.iter().collect::<BTreeSet<_>>().len() == names.len();
    let shown = |(name, folder): (String, &PathBuf)| if unique { name } else { folder.display().to_string() };
    let runs = names
        .into_iter()
        .zip(folders)
        .map(|pair| Run::read(pair.1, shown(pair)))
        .collect::<Result<Vec<_>, _>>()?;
    fs::create_dir_all(out).map_err(RunDirError::io("create", out))?;
    page(&runs).write(out)
}

fn page(runs: &[Run]) -> Page {
    let names: Vec<String> = runs.iter().map(|run| run.name.clone()).collect();
    let now = Timestamp::now().strftime("%F %H:%M UTC");
    let mut page = Page::new(
        &names.join(", "),
        &format!("A comparison of {} runs of ruminate, as of {now}.", runs.len()),
    );
    page.table(&transposed(
        "",
        &names,
        &runs.iter().map(|run| facts(&run.records, run.alive)).collect::<Vec<_>>(),
    ));
    different_settings(&mut page, &names, runs);
    different_machines(&mut page, &names, runs);
    last_validations(&mut page, runs);
    let records: Vec<(String, &Records)> = runs.iter().map(|run| (run.name.clone(), &run.records)).collect();
    overlaid(&mut page, &records);
    reward_charts(&mut page, &records);
    texts(&mut page, &names, runs);
    page
}

/// A table with a column for each run, and a row for each fact that any of them has.
fn transposed(corner: &str, names: &[String], facts: &[Vec<(&'static str, String)>]) -> Table {
    let mut table = header(corner, names);
    let mut seen = BTreeSet::new();
    for (fact, _) in facts.iter().flatten().filter(|(fact, _)| seen.insert(*fact)) {
        let cell = |of: &Vec<(&str, String)>| {
            of.iter()
                .find(|(name, _)| name == fact)
                .map_or_else(|| "–".to_owned(), |(_, value)| value.clone())
        };
        table.row(std::iter::once((*fact).to_owned()).chain(facts.iter().map(cell)));
    }
    table
}

fn header(corner: &str, names: &[String]) -> Table {
    Table::new(std::iter::once(corner.to_owned()).chain(names.iter().cloned()))
}

/// The rows in which the runs do not all agree.
fn differing(
    rows: BTreeMap<String, Vec<Option<String>>>,
) -> impl Iterator<Item = (String, Vec<Option<String>>)> {
    rows.into_iter().filter(|(_, values)| values.windows(2).any(|pair| pair[0] != pair[1]))
}

/// Adds rows of values that a run may lack.
fn add(table: &mut Table, rows: impl Iterator<Item = (String, Vec<Option<String>>)>) -> usize {
    let mut count = 0;
    for (key, values) in rows {
        let cells = values.into_iter().map(|value| value.unwrap_or_else(|| "–".into()));
        table.row(std::iter::once(key).chain(cells));
        count += 1;
    }
    count
}

fn different_settings(page: &mut Page, names: &[String], runs: &[Run]) {
    let keys: BTreeSet<&String> = runs.iter().flat_map(|run| run.config.keys()).collect();
    let rows = keys.into_iter().map(|key| {
        let value = |run: &Run| run.config.get(key).map(ToString::to_string);
        (key.clone(), runs.iter().map(value).collect())
    });
    let mut table = header("key", names);
    page.heading("Settings that differ");
    match add(&mut table, differing(rows.collect())) {
        0 => page.note("All settings are the same."),
        _ => page.table(&table),
    };
}

/// Machines and files of the runs, as far as they differ.
fn different_machines(page: &mut Page, names: &[String], runs: &[Run]) {
    let starts: Vec<_> = runs.iter().map(|run| run.provenance.starts.last()).collect();
    let mut rows: BTreeMap<String, Vec<Option<String>>> = BTreeMap::new();
    for (at, start) in starts.iter().enumerate() {
        let Some(start) = start else { continue };
        let facts = machine(start).into_iter().filter(|(name, _)| !["started", "command"].contains(name));
        let files =
            start.files.iter().map(|(path, file)| (path.as_str(), file.blake3.chars().take(HASH).collect()));
        for (name, value) in facts.chain(files) {
            rows.entry(name.to_owned()).or_insert_with(|| vec![None; runs.len()])[at] = Some(value);
        }
    }
    let mut table = header("", names);
    page.heading("Provenance that differs");
    match add(&mut table, differing(rows)) {
        0 => page.note("Version, machine and files are the same."),
        _ => page.table(&table).note("Of files, the beginning of their BLAKE3 hash."),
    };
}

fn last_validations(page: &mut Page, runs: &[Run]) {
    let last: Vec<_> = runs.iter().map(|run| run.records.evaluations.last_key_value()).collect();
    let names: BTreeSet<&String> = last.iter().flatten().flat_map(|(_, metrics)| metrics.keys()).collect();
    if names.is_empty() {
        return;
    }
    let titles = runs.iter().zip(&last).flat_map(|(run, last)| {
        let step = last.map_or_else(String::new, |(step, _)| format!(" (step {step})"));
        [format!("{}{step}", run.name), "95 % interval".to_owned()]
    });
    let mut table = Table::new(std::iter::once("measure".to_owned()).chain(titles));
    for name in names {
        let cells = runs.iter().zip(&last).flat_map(|(run, last)| {
            let value = last.and_then(|(_, metrics)| metrics.get(name)).map(|value| number(*value));
            let interval = last.and_then(|(step, _)| interval(&run.records, name, *step));
            [value.unwrap_or_default(), interval.unwrap_or_default()]
        });
        table.row(std::iter::once(name.clone()).chain(cells));
    }
    page.heading("Last validation").table(&table);
    seeds(page, runs);
}

/// Means over runs that differ in nothing but their seeds.
fn seeds(page: &mut Page, runs: &[Run]) {
    type Settings = Vec<(String, String)>;
    let split = |run: &Run| -> (Settings, Settings) {
        let is_seed = |key: &str| key.rsplit('.').next().is_some_and(|last| last.ends_with("seed"));
        let all = run.config.iter().map(|(key, value)| (key.clone(), value.to_string()));
        all.partition(|(key, _)| is_seed(key))
    };
    // Values of different steps have no mean that says anything, nor has the same run twice.
    let mut groups: BTreeMap<(Settings, Option<u64>), Vec<&Run>> = BTreeMap::new();
    let mut seen = BTreeSet::new();
    for run in runs {
        let (seeds, rest) = split(run);
        let step = run.records.evaluations.last_key_value().map(|(step, _)| *step);
        if seen.insert((seeds, rest.clone(), step)) {
            groups.entry((rest, step)).or_default().push(run);
        }
    }
    for group in groups.values().filter(|group| group.len() > 1) {
        let mut values: BTreeMap<&String, Vec<f64>> = BTreeMap::new();
        for (name, value) in
            group.iter().filter_map(|run| run.records.evaluations.last_key_value()).flat_map(|of| of.1)
        {
            values.entry(name).or_default().push(*value);
        }
        let mut table = Table::new(["measure", "mean", "95 % interval", "runs"]);
        for (name, values) in values.into_iter().filter(|(_, values)| values.len() > 1) {
            let (mean, half) = mean_of_runs(&values);
            let interval = range(mean - half, mean + half);
            table.row([name.clone(), number(mean), interval, values.len().to_string()]);
        }
        let names: Vec<&str> = group.iter().map(|run| run.name.as_str()).collect();
        page.heading("Mean over seeds")
            .note(&format!("{} differ in their seeds only.", names.join(", ")))
            .table(&table);
    }
}

/// The mean of at least two values, and half the width of its 95 % interval by Student's distribution.
fn mean_of_runs(values: &[f64]) -> (f64, f64) {
    let n = values.len() as f64;
    let mean = values.iter().sum::<f64>() / n;
    let variance = values.iter().map(|value| (value - mean).powi(2)).sum::<f64>() / (n - 1.0);
    (mean, student(values.len() - 1) * (variance / n).sqrt())
}

/// The last answers of each run to the questions that the first of them shows.
fn texts(page: &mut Page, names: &[String], runs: &[Run]) {
    let of = |run: &Run, asked: &str| {
        run.samples.last.1.iter().find(|sample| question(sample).as_deref() == Some(asked)).cloned()
    };
    let asked: Vec<String> = runs.iter().flat_map(|run| &run.samples.last.1).filter_map(question).collect();
    let mut seen = BTreeSet::new();
    let rows: Vec<Vec<Option<Value>>> = asked
        .iter()
        .filter(|asked| seen.insert(*asked))
        .map(|asked| runs.iter().map(|run| of(run, asked)).collect::<Vec<_>>())
        .filter(|row| row.iter().flatten().count() > 1)
        .take(SHOWN)
        .collect();
    if rows.is_empty() {
        return;
    }
    let titles: Vec<String> = names
        .iter()
        .zip(runs)
        .map(|(name, run)| format!("{name}, before step {}", run.samples.last.0))
        .collect();
    let rows: Vec<Vec<Option<&Value>>> =
        rows.iter().map(|row| row.iter().map(Option::as_ref).collect()).collect();
    page.heading("The same questions, by run").side_by_side(&titles, &rows);
}

#[cfg(test)]
mod tests;
