//! What the demo shows.

use std::path::PathBuf;

use ruminate::run::demo::{Comparison, Demo, DemoRun, Estimate, run_name};
use ruminate::run::{ReportPage, RunDirError, Table};

use super::{METRICS, MarioDemo, Model, SeedResult};
use crate::config::Stage;

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

/// How much better the trained model is, question by question.
pub(super) fn gain(comparison: &Comparison, metric: usize) -> Estimate {
    comparison.gain((Model::Sft as usize, metric), (Model::Mario as usize, metric))
}

/// The models' metrics, and how much the training gains.
pub(super) fn table(comparison: &Comparison) -> Table {
    let mut table = Table::new(["metric", "sft", "mario", "gain", "worst"]);
    for (metric, name) in METRICS.iter().enumerate() {
        let of = |model: Model| comparison.estimate(model as usize, metric).to_string();
        let gain = gain(comparison, metric).to_string();
        let cells = [of(Model::Sft), of(Model::Mario), gain, of(Model::Worst)];
        table.row([(*name).to_string()].into_iter().chain(cells));
    }
    table
}

/// Writes the comparison, with links to the runs that it compares.
pub(super) fn write(
    comparison: &Comparison,
    seeds: &[SeedResult],
    metrics: &Table,
    run: &DemoRun<'_>,
) -> Result<PathBuf, RunDirError> {
    let subtitle = "Models of a million parameters, trained from scratch: the policy, two models behind consistency, and a \
                    verifier behind plausibility.";
    let mut page = ReportPage::new("MaRio on the bundled world", subtitle);
    page.heading("Do several rewards make better rationales?")
        .note(&format!(
            "Shown are {}. `sft` imitates a teacher whose rationales are repetitive, implausible or empty more often \
             than not. `mario` is sft after Quark with four rewards, asked for the best of each; `worst` is the same model, \
             asked for the worst. A gain is the mean of the differences question by question.",
            MarioDemo::RESULT
        ))
        .table(metrics);
    if seeds.len() > 1 {
        page.heading("By seed").table(&by_seed(comparison, seeds));
    }
    page.heading("Training").curves(&run.curves(Stage::Quark.name()), &CURVES);
    page.heading("What they write")
        .note("The first held-out questions, with the models of the first seed.")
        .table(&responses(seeds));
    let first = run.args.seeds.first().copied().unwrap_or_default();
    let judges = [Stage::Vera, Stage::I2o, Stage::Ir2o].map(|stage| run_name(stage.name(), first));
    let judges = judges.into_iter().map(|judge| (format!("{judge}/report.html"), judge));
    let policies = run.links(&[Stage::Sft.name(), Stage::Quark.name()]);
    page.heading("Runs").links(&judges.chain(policies).collect::<Vec<_>>());
    page.write(&run.args.out)
}

fn by_seed(comparison: &Comparison, seeds: &[SeedResult]) -> Table {
    let mut table = Table::new(["seed", "model"].into_iter().chain(METRICS));
    for (i, result) in seeds.iter().enumerate() {
        for model in Model::ALL {
            let mean = |metric| format!("{:.3}", comparison.of_seed(i, model as usize, metric));
            let means = (0..METRICS.len()).map(mean);
            table.row([result.seed.to_string(), model.name().to_string()].into_iter().chain(means));
        }
    }
    table
}

fn responses(seeds: &[SeedResult]) -> Table {
    let mut table = Table::new(["question"].into_iter().chain(Model::ALL.map(Model::name)));
    let Some(seed) = seeds.first() else { return table };
    let [sft, mario, worst] = [0, 1, 2].map(|model: usize| &seed.judged[model].table.rows);
    for ((sft, mario), worst) in sft.iter().zip(mario).zip(worst).take(SHOWN) {
        let responses = [sft, mario, worst].map(|row| row.response.clone());
        table.row([sft.question.clone()].into_iter().chain(responses));
    }
    table
}
