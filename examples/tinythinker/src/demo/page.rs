//! What the demo shows.

use std::path::PathBuf;

use ruminate::algorithms::tinythinker::FinishedRound;
use ruminate::datasets::tinythinker::Run;
use ruminate::run::demo::{Comparison, Demo, DemoRun, run_name};
use ruminate::run::{ReportPage, RunDirError, Table};

use super::{Model, SeedResult, TinyThinkerDemo};

/// Rows of the table of responses.
const SHOWN: usize = 8;

/// The models' accuracies, and how much each stands above the one before.
pub(super) fn table(comparison: &Comparison) -> Table {
    let mut table = Table::new(["student", "accuracy", "gain"]);
    for (i, model) in Model::ALL.into_iter().enumerate() {
        let gain = i.checked_sub(1).map(|before| comparison.gain((before, 0), (i, 0)).to_string());
        table.row([
            model.name().to_string(),
            comparison.estimate(i, 0).to_string(),
            gain.unwrap_or_default(),
        ]);
    }
    table
}

/// Writes the comparison, with links to the runs that it compares. `samples` are shares of right samples and margins, averaged over seeds.
pub(super) fn write(
    seeds: &[SeedResult],
    comparison: &Comparison,
    samples: (&[f64], &[f64]),
    run: &DemoRun<'_>,
) -> Result<PathBuf, RunDirError> {
    let subtitle = "Students of a million parameters, trained from scratch on a teacher's items.";
    let mut page = ReportPage::new("TinyThinker on the bundled world", subtitle);
    page.heading("Do stages help, and does reflection?")
        .note(&format!(
            "Shown are {}. `summarize_only` learns the answers of the teacher's items and nothing else; `staged` learns to recall \
             and to analyze as well, and answers in three stages; `reflected` is staged after rounds of preference training on its own \
             right and wrong runs. A gain is the mean of the differences to the student above, question by question.",
            TinyThinkerDemo::RESULT
        ))
        .table(&table(comparison));
    page.heading("Rounds of reflection")
        .note(
            "Means over seeds. Half of what the teacher wrote about two-hop questions is a truism, so half of what a student recalls is \
             of no use. Right samples are the share of right answers among sampled runs on the questions that are reflected on: before \
             each round, and after the last. The reward margin is that of pairs about held-out questions at the end of the round; it \
             begins at 0.",
        )
        .table(&rounds(samples));
    if seeds.len() > 1 {
        page.heading("By seed").table(&by_seed(seeds, comparison));
    }
    let rounds = seeds.first().map_or(0, |seed| seed.margins.len());
    let runs = seeds.iter().map(|seed| (seed.seed, run_name(Model::Reflected.name(), seed.seed)));
    let of_round = |(seed, name): (u64, String)| {
        (1..=rounds)
            .map(move |round| (format!("seed {seed}, round {round}"), format!("{name}/round-{round}")))
    };
    let curves = runs.flat_map(of_round).map(|(name, folder)| (name, run.args.out.join(folder)));
    page.heading("Reflection").curves(&curves.collect::<Vec<_>>(), &FinishedRound::CURVES);
    page.heading("Learning the stages").curves(&run.curves(Model::Staged.name()), &STAGES);
    page.heading("What they write")
        .note("The first held-out questions, with the students of the first seed.")
        .table(&responses(seeds));
    page.heading("Runs").links(&run.links(&Model::ALL.map(Model::name)));
    page.write(&run.args.out)
}

const STAGES: [(&str, &str); 3] = [
    ("train/recall_loss", "loss of recall"),
    ("train/analyze_loss", "loss of analyze"),
    ("train/summarize_loss", "loss of summarize"),
];

fn rounds((right, margins): (&[f64], &[f64])) -> Table {
    let mut table = Table::new(["round", "right samples before", "after", "reward margin at the end"]);
    for (i, margin) in margins.iter().enumerate() {
        let share = |share: f64| format!("{share:.3}");
        table.row([(i + 1).to_string(), share(right[i]), share(right[i + 1]), format!("{margin:.2}")]);
    }
    table
}

fn by_seed(seeds: &[SeedResult], comparison: &Comparison) -> Table {
    let mut table = Table::new(["seed"].into_iter().chain(Model::ALL.map(Model::name)));
    for (i, seed) in seeds.iter().enumerate() {
        let accuracies = Model::ALL.map(|model| format!("{:.3}", comparison.of_seed(i, model as usize, 0)));
        table.row([seed.seed.to_string()].into_iter().chain(accuracies));
    }
    table
}

fn responses(seeds: &[SeedResult]) -> Table {
    let columns =
        ["question", "right", "summarize_only", "staged recalls", "answers", "reflected recalls", "answers"];
    let mut table = Table::new(columns);
    let Some(seed) = seeds.first() else { return table };
    let [direct, staged, reflected] = &seed.responses;
    for ((direct, staged), reflected) in direct.iter().zip(staged).zip(reflected).take(SHOWN) {
        let answer = |run: &Run| run.answer.map_or("none".into(), String::from);
        let recall = |run: &Run| run.draft.recall().unwrap_or_default().to_string();
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
