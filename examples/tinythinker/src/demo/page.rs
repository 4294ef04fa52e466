//! What the demo shows.

use std::path::PathBuf;

use ruminate::rewards::mario::Interval;
use ruminate::run::{ReportPage, RunDirError, Table};

use super::results::{Model, Results};
use super::{DemoArgs, run_name};
use crate::reflect::CURVES;

/// What the numbers are of.
pub(super) const RESULT: &str = "shares of right answers with 95 % bootstrap intervals, over two-hop questions about people whom training never asked them about";
/// Rows of the table of responses.
const SHOWN: usize = 8;

/// The models' accuracies, and how much each stands above the one before.
pub(super) fn table(results: &Results) -> Table {
    let mut table = Table::new(["student", "accuracy", "gain"]);
    let cell = |mean: f64, interval: Option<Interval>| {
        let range = interval.map_or(String::new(), |i| format!(" ({:.3} to {:.3})", i.low, i.high));
        format!("{mean:.3}{range}")
    };
    for (i, model) in Model::ALL.into_iter().enumerate() {
        let gain = i.checked_sub(1).map(|before| results.gain(Model::ALL[before], model));
        let gain = gain.map_or(String::new(), |(mean, interval)| cell(mean, interval));
        table.row([model.name().to_string(), cell(results.accuracy(model), results.interval(model)), gain]);
    }
    table
}

/// Writes the comparison, with links to the runs that it compares.
pub(super) fn write(args: &DemoArgs, results: &Results) -> Result<PathBuf, RunDirError> {
    let subtitle = "Students of a million parameters, trained from scratch on a teacher's items.";
    let mut page = ReportPage::new("TinyThinker on the bundled world", subtitle);
    page.heading("Do stages help, and does reflection?")
        .note(&format!(
            "Shown are {RESULT}. `summarize_only` learns the answers of the teacher's items and nothing else; `staged` learns to recall \
             and to analyze as well, and answers in three stages; `reflected` is staged after rounds of preference training on its own \
             right and wrong runs. A gain is the mean of the differences to the student above, question by question."
        ))
        .table(&table(results));
    page.heading("Rounds of reflection")
        .note(
            "Means over seeds. Half of what the teacher wrote about two-hop questions is a truism, so half of what a student recalls is \
             of no use. Right samples are the share of right answers among sampled runs on the questions that are reflected on: before \
             each round, and after the last. The reward margin is that of pairs about held-out questions at the end of the round; it \
             begins at 0.",
        )
        .table(&rounds(results));
    if results.seeds.len() > 1 {
        page.heading("By seed").table(&by_seed(results));
    }
    let runs = |model: Model| args.seeds.iter().map(move |&seed| (seed, run_name(model, seed)));
    let rounds = results.seeds.first().map_or(0, |seed| seed.rounds.len());
    let curves: Vec<(String, PathBuf)> = runs(Model::Reflected)
        .flat_map(|(seed, run)| {
            (1..=rounds)
                .map(move |round| (format!("seed {seed}, round {round}"), format!("{run}/round-{round}")))
        })
        .map(|(name, run)| (name, args.out.join(run)))
        .collect();
    page.heading("Reflection").curves(&curves, &CURVES);
    let curves: Vec<(String, PathBuf)> =
        runs(Model::Staged).map(|(seed, run)| (format!("seed {seed}"), args.out.join(run))).collect();
    page.heading("Learning the stages").curves(&curves, &STAGES);
    page.heading("What they write")
        .note("The first held-out questions, with the students of the first seed.")
        .table(&responses(results));
    let links: Vec<_> = Model::ALL
        .iter()
        .flat_map(|&model| runs(model))
        .map(|(_, run)| (format!("{run}/report.html"), run))
        .collect();
    page.heading("Runs").links(&links);
    page.write(&args.out)
}

const STAGES: [(&str, &str); 3] = [
    ("train/recall_loss", "loss of recall"),
    ("train/analyze_loss", "loss of analyze"),
    ("train/summarize_loss", "loss of summarize"),
];

fn rounds(results: &Results) -> Table {
    let mut table = Table::new(["round", "right samples before", "after", "reward margin at the end"]);
    let (right, margins) = (results.right_samples(), results.margins());
    for (i, margin) in margins.iter().enumerate() {
        let share = |share: f64| format!("{share:.3}");
        table.row([(i + 1).to_string(), share(right[i]), share(right[i + 1]), format!("{margin:.2}")]);
    }
    table
}

fn by_seed(results: &Results) -> Table {
    let mut table = Table::new(["seed"].into_iter().chain(Model::ALL.map(Model::name)));
    for seed in &results.seeds {
        let accuracies = Model::ALL.map(|model| format!("{:.3}", seed.accuracy(model)));
        table.row([seed.seed.to_string()].into_iter().chain(accuracies));
    }
    table
}

fn responses(results: &Results) -> Table {
    let columns =
        ["question", "right", "summarize_only", "staged recalls", "answers", "reflected recalls", "answers"];
    let mut table = Table::new(columns);
    let Some(seed) = results.seeds.first() else { return table };
    let [direct, staged, reflected] = &seed.responses;
    for ((direct, staged), reflected) in direct.iter().zip(staged).zip(reflected).take(SHOWN) {
        let answer =
            |run: &ruminate::datasets::tinythinker::Run| run.answer.map_or("none".into(), String::from);
        let recall =
            |run: &ruminate::datasets::tinythinker::Run| run.draft.recall().unwrap_or_default().to_string();
        table.row([
            direct.run.draft.block().to_string(),
            direct.run.gold.to_string(),
            answer(&direct.run),
            recall(&staged.run),
            answer(&staged.run),
            recall(&reflected.run),
            answer(&reflected.run),
        ]);
    }
    table
}
