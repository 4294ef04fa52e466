//! What the demo shows.

use std::path::PathBuf;

use ruminate::run::demo::{Demo, DemoRun};
use ruminate::run::{Iterations, ReportPage, RunDirError, Table};

use super::RiseDemo;
use super::results::{Gain, Model, Results, TURNS};

/// The models' first attempts, and the votes of all their attempts.
pub(super) fn table(results: &Results<'_>) -> Table {
    let mut table =
        Table::new(["model", "first attempt (m1@t1)", "vote of five turns (m1@t5)", "gain by voting"]);
    for model in Model::ALL {
        table.row([
            model.name().to_string(),
            results.vote(model, 1).estimate.to_string(),
            results.vote(model, TURNS).estimate.to_string(),
            results.by_voting(model).to_string(),
        ]);
    }
    table
}

/// Writes the comparison, with links to the runs that it compares.
pub(super) fn write(results: &Results<'_>, run: &DemoRun<'_>) -> Result<PathBuf, RunDirError> {
    let subtitle = "Llamas of 0.8 million parameters, trained from scratch on sums in words.";
    let mut page = ReportPage::new("RISE on the bundled world", subtitle);
    page.heading("Does trying again help, and can it be learnt?")
        .note(&format!(
            "Shown are {}. Nobody tells the models whether an attempt was right: they are told after each turn that it was \
             wrong, and see the attempt before. `start` was trained for a while on solutions, and on second attempts that mostly have \
             a slip as the first had: it knows the form of later turns, but is not made to gain by them. `one iteration` has learnt from \
             its own first attempts and the best of sixteen second ones, weighted by what they were worth; the same examples without \
             weights are the comparison.",
            RiseDemo::RESULT
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
    let training = |(seed, folder): (String, PathBuf)| (seed, folder.join("iteration-1/finetune"));
    let curves: Vec<(String, PathBuf)> = run.curves("iterate").into_iter().map(training).collect();
    page.heading("Training").curves(&curves, &Iterations::CURVES[..2]);
    page.heading("Runs").links(&run.links(&["boost", "iterate", "unweighted"]));
    page.write(&run.args.out)
}

/// A difference in words, with its interval.
fn judged(results: &Results<'_>, gain: Gain) -> String {
    let measured = results.gain(gain);
    let better = match measured.interval {
        Some(interval) if interval.low > 0.0 => "better than",
        _ if measured.mean > 0.0 => "better, but not clearly, than",
        _ => "no better than",
    };
    let than = match gain {
        Gain::OverStart => "that of the start",
        Gain::ByVoting => "its first attempt",
        Gain::OverUnweighted => "that of unweighted training on the same examples",
    };
    format!("The vote of one iteration is {better} {than}: they differ by {measured}.")
}

fn next_attempts(results: &Results<'_>) -> Table {
    let mut table = Table::new(["model", "right after a wrong attempt", "right after a right attempt"]);
    for model in Model::ALL {
        let [wrong, right] = [false, true].map(|right| results.then_right(model, right).to_string());
        table.row([model.name().to_string(), wrong, right]);
    }
    table
}

fn by_seed(results: &Results<'_>) -> Table {
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
    for (i, seed) in results.seeds.iter().enumerate() {
        let share = |model, turns| format!("{:.3}", results.vote(model, turns).by_seed[i]);
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

fn by_turn(results: &Results<'_>) -> Table {
    let turns = (1..=TURNS).map(|turn| format!("m1@t{turn}"));
    let mut table = Table::new(std::iter::once("model".to_string()).chain(turns));
    for model in Model::ALL {
        let votes = (1..=TURNS).map(|turns| format!("{:.3}", results.vote(model, turns).estimate.mean));
        table.row(std::iter::once(model.name().to_string()).chain(votes));
    }
    table
}
