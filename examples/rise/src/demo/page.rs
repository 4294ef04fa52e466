//! What the demo shows.

use std::path::PathBuf;

use ruminate::run::{ReportPage, RunDirError, Table};

use super::results::{Gain, Measured, Model, Results, TURNS};
use super::{DemoArgs, run_name};
use crate::iterate::CURVES;

/// What the numbers are of.
pub(super) const RESULT: &str = "shares of right answers with 95 % bootstrap intervals, over sums whose numbers no model has seen together";

fn cell((mean, interval): Measured) -> String {
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
            cell(results.difference((model, 1), (model, TURNS))),
        ]);
    }
    table
}

/// Writes the comparison, with links to the runs that it compares.
pub(super) fn write(args: &DemoArgs, results: &Results) -> Result<PathBuf, RunDirError> {
    let subtitle = "Llamas of 0.8 million parameters, trained from scratch on sums in words.";
    let mut page = ReportPage::new("RISE on the bundled world", subtitle);
    page.heading("Does trying again help, and can it be learnt?")
        .note(&format!(
            "Shown are {RESULT}. Nobody tells the models whether an attempt was right: they are told after each turn that it was \
             wrong, and see the attempt before. `start` was trained for a while on solutions, and on second attempts that mostly have \
             a slip as the first had: it knows the form of later turns, but is not made to gain by them. `one iteration` has learnt from \
             its own first attempts and the best of sixteen second ones, weighted by what they were worth; the same examples without \
             weights are the comparison."
        ))
        .table(&table(results));
    for gain in Gain::ALL {
        page.note(&judged(results, gain));
    }
    page.heading("What is learnt")
        .note(
            "How often the next attempt is right, of all turns of all seeds together: after a wrong attempt that corrects it, after a right \
             one, which is called wrong as well, it keeps what was right.",
        )
        .table(&next_attempts(results));
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

/// A difference in words, with its interval.
fn judged(results: &Results, gain: Gain) -> String {
    let measured = results.gain(gain);
    let better = match measured {
        (_, Some(interval)) if interval.low > 0.0 => "better than",
        (mean, _) if mean > 0.0 => "better, but not clearly, than",
        _ => "no better than",
    };
    let than = match gain {
        Gain::OverStart => "that of the start",
        Gain::ByVoting => "its first attempt",
        Gain::OverUnweighted => "that of unweighted training on the same examples",
    };
    format!("The vote of one iteration is {better} {than}: they differ by {}.", cell(measured))
}

fn next_attempts(results: &Results) -> Table {
    let mut table = Table::new(["model", "right after a wrong attempt", "right after a right attempt"]);
    for model in Model::ALL {
        let [wrong, right] = [false, true].map(|right| cell(results.then_right(model, right)));
        table.row([model.name().to_string(), wrong, right]);
    }
    table
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
