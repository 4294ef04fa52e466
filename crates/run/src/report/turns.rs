//! Tables and pages of rollouts, conversions and iterations of RISE.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use ruminate_algorithms::rwr::{EvaluationConfig, IterationConfig, TokenLengths};
use ruminate_datasets::chat::OtherTemplate;
use ruminate_datasets::environments::Environment;
use ruminate_datasets::json;
use ruminate_datasets::rise::{Conversion, EvaluationSetting, Log, TurnCount};
use ruminate_rewards::rise::{Attempts, MetricOptions, TurnMetric, turn_metrics};
use serde::{Deserialize, Serialize};
use serde_json::{Map, Value, json};

use super::page::Page;
use crate::config::ConfigError;
use crate::output::Table;
use crate::program::Rounds;
use crate::rundir::{RunDir, RunDirError};

/// The metrics of a log, and of whom they should be read with care.
#[derive(Debug, Clone)]
pub struct TurnReport {
    /// Problems of the log.
    pub problems: usize,
    /// Metrics, see [`turn_metrics`].
    pub metrics: Vec<TurnMetric>,
    /// Models that were asked with another chat template than they were trained with.
    pub warnings: Vec<OtherTemplate>,
}

impl TurnReport {
    /// The name of its file in a run folder.
    pub const FILE: &str = "metrics.json";

    /// The metrics of a log, this program's or another's.
    ///
    /// # Errors
    /// The log has no episodes.
    pub fn of(log: &Log, environment: &dyn Environment, options: MetricOptions) -> Result<Self, ConfigError> {
        if log.episodes.is_empty() {
            return Err(ConfigError::invalid("the log has no episodes"));
        }
        let metrics = turn_metrics(&Attempts::of_log(log, environment), options);
        Ok(Self { problems: log.episodes.len(), metrics, warnings: vec![] })
    }

    /// Metrics by name, for programs.
    #[must_use]
    pub fn json(&self) -> Value {
        let by_name = |value: &dyn Fn(&TurnMetric) -> Value| -> Map<String, Value> {
            self.metrics.iter().map(|metric| (metric.name.clone(), value(metric))).collect()
        };
        json!({
            "problems": self.problems, "metrics": by_name(&|metric| json!(metric.value)),
            "intervals": by_name(&|metric| json!(metric.interval)), "warnings": self.warnings,
        })
    }

    /// Metrics with their intervals, for people.
    #[must_use]
    pub fn table(&self) -> Table {
        let mut table = Table::new(["metric", "value", "95 % interval"]);
        for metric in &self.metrics {
            let interval = metric.interval.map(|i| format!("{:.3} to {:.3}", i.low, i.high));
            table.row([metric.name.clone(), format!("{:.3}", metric.value), interval.unwrap_or_default()]);
        }
        table
    }

    /// Writes the metrics into a folder.
    ///
    /// # Errors
    /// The file cannot be written.
    pub fn write(&self, folder: &Path) -> ruminate_datasets::Result<()> {
        json::write(&folder.join(Self::FILE), &self.json())
    }
}

/// A table of the problems, turn by turn.
#[must_use]
pub fn turns_table(turns: &[TurnCount]) -> Table {
    let mut table = Table::new(["turn", "problems", "solved", "blocked"]);
    for (i, turn) in turns.iter().enumerate() {
        table.row([i + 1, turn.problems, turn.solved, turn.blocked].map(|count| count.to_string()));
    }
    table
}

/// Writes a conversion into a run folder: the examples, a page, and last what became of the episodes.
///
/// # Errors
/// A file cannot be written.
pub fn write_conversion(
    conversion: &Conversion,
    lengths: Option<&TokenLengths>,
    dir: &RunDir,
) -> anyhow::Result<()> {
    json::write(&dir.path().join(Conversion::EXAMPLES), &conversion.examples)?;
    let mut page = Page::new("Conversion", "From episodes to weighted training examples.");
    for (title, table) in conversion_tables(conversion, lengths) {
        page.heading(title).table(&table);
    }
    page.write(dir.path())?;
    let mut summary = json!(conversion);
    summary["lengths"] = json!(lengths);
    Ok(json::write(&dir.path().join(Conversion::SUMMARY), &summary)?)
}

/// The tables of a conversion, with their titles.
#[must_use]
pub fn conversion_tables(
    conversion: &Conversion,
    lengths: Option<&TokenLengths>,
) -> Vec<(&'static str, Table)> {
    let mut counts = Table::new(["", ""]);
    for (name, count) in conversion.counts() {
        counts.row([name.to_owned(), count.to_string()]);
    }
    counts.row(["mean weight".to_owned(), Table::number(conversion.mean_weight)]);
    let effective = format!("{:.1}", conversion.effective_examples);
    counts.row(["examples of equal weight that are worth as much".to_owned(), effective]);
    let mut weights = Table::new(["reward", "weight", "examples"]);
    for count in &conversion.weights {
        weights.row([count.reward.to_string(), Table::number(count.weight), count.examples.to_string()]);
    }
    let mut tables = vec![("Episodes", counts), ("Weights", weights)];
    tables.extend(lengths.map(|lengths| ("Lengths in tokens", lengths_table(lengths))));
    tables
}

fn lengths_table(lengths: &TokenLengths) -> Table {
    let over = format!("longer than {}", lengths.max_length);
    let mut table = Table::new(["tokens", "mean", "variance", "p50", "p90", "p99", "max", &over]);
    for (name, of) in [
        ("of an example", lengths.total),
        ("before the attempt", lengths.prompt),
        ("trained", lengths.response),
    ] {
        let [mean, variance] = [of.mean, of.variance].map(Table::number);
        let [p50, p90, p99, max] = [of.p50, of.p90, of.p99, of.max].map(|length| length.to_string());
        // The limit is one of whole texts.
        let over = if of == lengths.total { lengths.over_max_length.to_string() } else { String::new() };
        table.row([name.into(), mean, variance, p50, p90, p99, max, over]);
    }
    table
}

/// Metrics by name, for each setting of an evaluation.
pub type SettingMetrics = BTreeMap<String, BTreeMap<String, f64>>;

/// An iteration that is over.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct FinishedIteration {
    /// Its number, from 1.
    pub iteration: u64,
    /// The checkpoint that collected.
    pub student: PathBuf,
    /// The checkpoint that training started from.
    pub start: PathBuf,
    /// The checkpoint that came of it.
    pub best: PathBuf,
    /// Problems, and those of them that were solved in the end.
    pub problems: [usize; 2],
    /// Examples that were trained on.
    pub examples: u64,
    /// Their mean weight.
    pub mean_weight: f64,
    /// How good the new student is.
    pub metrics: SettingMetrics,
}

/// Iterations, as far as they have come.
#[derive(Debug, Clone, PartialEq, Default, Serialize)]
pub struct Iterations {
    /// How good the first student is.
    pub start: SettingMetrics,
    /// Those that are over.
    pub finished: Vec<FinishedIteration>,
}

impl Iterations {
    /// Curves of the trainings, for [`Page::curves`].
    pub const CURVES: [(&str, &str); 4] = [
        ("train/rwr_loss", "weighted loss"),
        ("nll", "negative log-likelihood"),
        ("eval/loss", "weighted loss of held-out examples"),
        ("eval/nll", "negative log-likelihood of held-out examples"),
    ];

    /// The iterations side by side.
    #[must_use]
    pub fn table(&self, iteration: &IterationConfig, evaluation: &EvaluationConfig) -> Table {
        let EvaluationConfig { turns, samples, .. } = *evaluation;
        let of = |setting: &EvaluationSetting| {
            let name = setting.name();
            setting.headline(turns, samples).into_iter().map(move |metric| (name, metric))
        };
        let shown: Vec<(&str, String)> = iteration.evaluate.iter().flat_map(of).collect();
        let columns = shown.iter().map(|(setting, name)| match *setting {
            "sequential" => name.replace("_t1_to_last", ""),
            setting => format!("{name}, {setting}"),
        });
        let header = ["model", "problems", "solved", "examples", "mean weight"].map(String::from);
        let mut table = Table::new(header.into_iter().chain(columns));
        let values = |metrics: &SettingMetrics| -> Vec<String> {
            let value = |(setting, name): &(&str, String)| metrics.get(*setting)?.get(name).copied();
            shown
                .iter()
                .map(|column| value(column).map_or(String::new(), |value| format!("{value:.3}")))
                .collect()
        };
        let mut start = vec![String::new(); 5];
        start[0] = "start".into();
        table.row([start, values(&self.start)].concat());
        for done in &self.finished {
            let [problems, solved] = done.problems.map(|count| count.to_string());
            let name = format!("iteration {}", done.iteration);
            let row =
                vec![name, problems, solved, done.examples.to_string(), Table::number(done.mean_weight)];
            table.row([row, values(&done.metrics)].concat());
        }
        table
    }

    /// Writes the page about all iterations.
    ///
    /// # Errors
    /// It cannot be written.
    pub fn write_page(&self, table: &Table, rounds: &Rounds<'_>) -> Result<PathBuf, RunDirError> {
        let mut page =
            Page::new("RISE", "Iterations of trying again, and of learning from what attempts were worth.");
        page.heading("Iterations")
            .note(
                "Each iteration collects with the student of the one before and trains on what came of it. Solved problems are those \
                 with a right attempt in the end, the last turn's included; metrics are those of the new student on the problems of the \
                 evaluation.",
            )
            .table(table);
        let names: Vec<String> =
            self.finished.iter().map(|done| format!("{}-{}", rounds.name, done.iteration)).collect();
        let run = |name: &String| (name.clone(), rounds.out.join(name).join("finetune"));
        page.heading("Training").curves(&names.iter().map(run).collect::<Vec<_>>(), &Self::CURVES);
        let links = names.iter().flat_map(|name| {
            ["convert", "finetune"]
                .map(|step| (format!("{name}/{step}/report.html"), format!("{name}: {step}")))
        });
        page.heading("Runs").links(&links.collect::<Vec<_>>());
        page.write(rounds.out)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn iterations_stand_side_by_side() {
        let metrics = |value: f64| {
            let of = ["m1@t1", "acc@t5", "m1@t5", "p1@t5", "improved_t1_to_last", "broken_t1_to_last"];
            let sequential = of.map(|name| (name.to_owned(), value));
            SettingMetrics::from([("sequential".to_owned(), BTreeMap::from(sequential))])
        };
        let finished = FinishedIteration {
            iteration: 1,
            student: "a".into(),
            start: "b".into(),
            best: "c".into(),
            problems: [8, 5],
            examples: 13,
            mean_weight: 2.5,
            metrics: metrics(0.75),
        };
        let iterations = Iterations { start: metrics(0.5), finished: vec![finished] };
        let table = iterations.table(&IterationConfig::default(), &EvaluationConfig::default());
        let shown = table.to_string();
        for part in ["broken", "iteration 1", "0.750", "start", "0.500", "13", "2.5"] {
            assert!(shown.contains(part), "{part} is not in\n{shown}");
        }
    }

    #[test]
    fn an_empty_log_has_no_metrics() {
        let environment = ruminate_datasets::environments::Gsm8k::default();
        let error = TurnReport::of(&Log::default(), &environment, MetricOptions::default()).unwrap_err();
        assert!(format!("{error:?}").contains("no episodes"), "{error:?}");
    }
}
