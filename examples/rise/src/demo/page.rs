//! What the demo shows.

use std::path::PathBuf;

use ruminate::rewards::mario::Interval;
use ruminate::run::{ReportPage, RunDirError, Table};

use super::results::{Model, Results};
use super::{DemoArgs, run_name};
use crate::iterate::CURVES;

/// What the numbers are of.
pub(super) const RESULT: &str = "shares of right answers with 95 % bootstrap intervals, over sums whose numbers no model has seen together";
/// Turns of an evaluation.
const TURNS: usize = 5;

fn cell((mean, interval): (f64, Option<Interval>)) -> String {
    let range = interval.map_or(String::new(), |i| format!(" ({:.3} to {:.3})", i.low, i.high));
    format!("{mean:.3}{range}")
}

/// The models' first attempts, and the votes of all their attempts.
pub(super) fn table(results: &Results) -> Table {
    let mut table =
        Table::new(["model", "first attempt (m1@t1)", "vote of five turns (m1@t5)", "gain by voting"]);
    for model in Model::ALL {
        table.row([
            model.name().to_string(),
            cell(results.vote(model, 1)),
            cell(results.vote(model, TURNS)),
            cell(results.gain((model, 1), (model, TURNS))),
        ]);
    }
    table
}

/// Writes the comparison, with links to the runs that it compares.
pub(super) fn write(args: &DemoArgs, results: &Results) -> Result<PathBuf, RunDirError> {
    let subtitle = "Llamas of 0.8 million parameters, trained from scratch on sums in words.";
    let mut page = ReportPage::new("RISE on the bundled world", subtitle);
    let weighted = results.gain((Model::Unweighted, TURNS), (Model::Rise, TURNS));
    let judged = if weighted.0 > 0.0 { "better" } else { "no better" };
    page.heading("Does trying again help, and can it be learnt?")
        .note(&format!(
            "Shown are {RESULT}. Nobody tells the models whether an attempt was right: they are told after each turn that it was \
             wrong, and see the attempt before. `start` was trained on solutions for a while; `one iteration` has learnt from its own \
             first attempts and the best of sixteen second ones, weighted by what they were worth; the same examples without weights \
             are the comparison."
        ))
        .table(&table(results))
        .note(&format!(
            "Weighted training is {judged} than unweighted training on the same examples: the votes differ by {}.",
            cell(weighted)
        ));
    page.heading("By seed").table(&by_seed(results));
    page.heading("Turn by turn").note("Means over seeds of votes after each turn.").table(&by_turn(results));
    let runs = |name: &'static str| args.seeds.iter().map(move |&seed| (seed, run_name(name, seed)));
    let curves: Vec<(String, PathBuf)> = runs("iterate")
        .map(|(seed, run)| (format!("seed {seed}"), args.out.join(run).join("iteration-1/finetune")))
        .collect();
    page.heading("Training").curves(&curves, &CURVES[..2]);
    let links: Vec<_> = runs("boost")
        .chain(runs("iterate"))
        .chain(runs("unweighted"))
        .map(|(_, run)| (format!("{run}/report.html"), run))
        .collect();
    page.heading("Runs").links(&links);
    page.write(&args.out)
}

fn by_seed(results: &Results) -> Table {
    let columns = [
        "seed",
        "solved when collecting",
        "examples",
        "start m1@t1",
        "m1@t5",
        "one iteration m1@t1",
        "m1@t5",
        "unweighted m1@t5",
    ];
    let mut table = Table::new(columns);
    for seed in &results.seeds {
        let share = |model, turns| format!("{:.3}", seed.vote(model, turns));
        table.row([
            seed.seed.to_string(),
            format!("{} of {}", seed.solved[1], seed.solved[0]),
            seed.examples.to_string(),
            share(Model::Start, 1),
            share(Model::Start, TURNS),
            share(Model::Rise, 1),
            share(Model::Rise, TURNS),
            share(Model::Unweighted, TURNS),
        ]);
    }
    table
}

fn by_turn(results: &Results) -> Table {
    let turns = (1..=TURNS).map(|turn| format!("m1@t{turn}"));
    let mut table = Table::new(std::iter::once("model".to_string()).chain(turns));
    for model in Model::ALL {
        let votes = (1..=TURNS).map(|turns| format!("{:.3}", results.vote(model, turns).0));
        table.row(std::iter::once(model.name().to_string()).chain(votes));
    }
    table
}
