//! What the demo shows.

use std::path::PathBuf;

use ruminate::rewards::mario::Interval;
use ruminate::run::{ReportPage, RunDirError, Table};

use super::results::{METRICS, Results};
use super::{DemoArgs, Model, run_name};
use crate::config::Stage;

/// What the numbers are of.
pub(super) const RESULT: &str = "means and 95 % bootstrap intervals over two-hop questions about people whom training never asked them about";
/// Rows of the table of responses.
const SHOWN: usize = 9;
/// Curves of the training.
const CURVES: [(&str, &str); 7] = [
    ("test/correct", "accuracy"),
    ("test/qasc-rationale-quality-continuous", "consistency"),
    ("test/plausibility", "plausibility"),
    ("test/diversity", "diversity"),
    ("train/loss/lm", "LM loss"),
    ("train/objective/kl", "KL to the supervised model"),
    ("train/pool/samples", "samples in the pool"),
];

/// The models' metrics, and how much the training gains.
pub(super) fn table(results: &Results) -> Table {
    let mut table = Table::new(["metric", "sft", "mario", "gain", "worst"]);
    let cell = |mean: f64, interval: Option<Interval>| {
        let range = interval.map_or(String::new(), |i| format!(" ({:.3} to {:.3})", i.low, i.high));
        format!("{mean:.3}{range}")
    };
    for (metric, name) in METRICS.iter().enumerate() {
        let of = |model| cell(results.mean(model, metric), results.interval(model, metric));
        let (gain, interval) = results.gain(metric);
        let cells = [of(Model::Sft), of(Model::Mario), cell(gain, interval), of(Model::Worst)];
        table.row([(*name).to_string()].into_iter().chain(cells));
    }
    table
}

/// Writes the comparison, with links to the runs that it compares.
pub(super) fn write(args: &DemoArgs, results: &Results) -> Result<PathBuf, RunDirError> {
    let subtitle = "Models of a million parameters, trained from scratch: the policy, two models behind consistency, and a \
                    verifier behind plausibility.";
    let mut page = ReportPage::new("MaRio on the bundled world", subtitle);
    page.heading("Do several rewards make better rationales?")
        .note(&format!(
            "Shown are {RESULT}. `sft` imitates a teacher whose rationales are repetitive, implausible or empty more often \
             than not. `mario` is sft after Quark with four rewards, asked for the best of each; `worst` is the same model, \
             asked for the worst. A gain is the mean of the differences question by question."
        ))
        .table(&table(results));
    if results.seeds.len() > 1 {
        page.heading("By seed").table(&by_seed(results));
    }
    let runs = |stage: Stage| args.seeds.iter().map(move |&seed| (seed, run_name(stage, seed)));
    let curves: Vec<(String, PathBuf)> =
        runs(Stage::Quark).map(|(seed, run)| (format!("seed {seed}"), args.out.join(run))).collect();
    page.heading("Training").curves(&curves, &CURVES);
    page.heading("What they write")
        .note("The first held-out questions, with the models of the first seed.")
        .table(&responses(results));
    let first = args.seeds.first().copied().unwrap_or_default();
    let judges = [Stage::Vera, Stage::I2o, Stage::Ir2o].map(|stage| run_name(stage, first));
    let policies = runs(Stage::Sft).chain(runs(Stage::Quark)).map(|(_, run)| run);
    let links: Vec<_> =
        judges.into_iter().chain(policies).map(|run| (format!("{run}/report.html"), run)).collect();
    page.heading("Runs").links(&links);
    page.write(&args.out)
}

fn by_seed(results: &Results) -> Table {
    let mut table = Table::new(["seed", "model"].into_iter().chain(METRICS));
    for seed in &results.seeds {
        for model in Model::ALL {
            let means = (0..METRICS.len()).map(|metric| format!("{:.3}", seed.mean(model, metric)));
            table.row([seed.seed.to_string(), model.name().to_string()].into_iter().chain(means));
        }
    }
    table
}

fn responses(results: &Results) -> Table {
    let mut table = Table::new(["question"].into_iter().chain(Model::ALL.map(Model::name)));
    let Some(seed) = results.seeds.first() else { return table };
    let [sft, mario, worst] = [0, 1, 2].map(|model: usize| &seed.judged[model].table.rows);
    for ((sft, mario), worst) in sft.iter().zip(mario).zip(worst).take(SHOWN) {
        let responses = [sft, mario, worst].map(|row| row.response.clone());
        table.row([sft.question.clone()].into_iter().chain(responses));
    }
    table
}
