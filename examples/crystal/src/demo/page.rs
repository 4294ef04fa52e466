//! What the demo shows.

use std::path::PathBuf;

use ruminate::datasets::InferenceItem;
use ruminate::run::demo::{Comparison, Demo, DemoRun};
use ruminate::run::{ReportPage, RunDirError, Table};

use super::{CrystalDemo, Model, SeedResult};

/// Rows of the table of questions, for each kind of change.
const SHOWN: usize = 8;
/// Curves of Stage II.
const CURVES: [(&str, &str); 4] = [
    ("train/reward/raw", "reward"),
    ("train/reward/KL", "KL to Stage I"),
    ("train/acc", "accuracy with sampled statements, in training"),
    ("eval/acc_weighted", "accuracy with a greedy statement, dev"),
];

/// Accuracies by seed, and their means.
pub(super) fn accuracy_table(comparison: &Comparison, seeds: &[SeedResult]) -> Table {
    let mut table = Table::new(["seed"].into_iter().chain(Model::ALL.map(Model::name)));
    for (i, result) in seeds.iter().enumerate() {
        let of = |model| Table::number(comparison.of_seed(i, model as usize, 0));
        table.row([result.seed.to_string()].into_iter().chain(Model::ALL.map(of)));
    }
    let means = Model::ALL.map(|model| comparison.estimate(model as usize, 0).to_string());
    table.row(["mean".to_owned()].into_iter().chain(means));
    table
}

/// Writes the comparison, with links to the runs that it compares.
pub(super) fn write(
    demo: &CrystalDemo,
    results: &[SeedResult],
    accuracies: &Table,
    run: &DemoRun<'_>,
) -> Result<PathBuf, RunDirError> {
    let subtitle = format!(
        "Silver knowledge: {}. Each model is a T5 of a million parameters, trained from scratch.",
        demo.knowledge
    );
    let mut page = ReportPage::new("Crystal on the bundled world", &subtitle);
    page.heading("Does it help to write knowledge first, and to reinforce it?")
        .note(&format!(
            "Shown is the {}. The model \"direct\" answers the bare question, \"stage1\" imitates silver knowledge and \
             answers with its own, \"stage2\" is stage1 after reinforcement by its own confidence in the right answer.",
            CrystalDemo::RESULT
        ))
        .table(accuracies);
    page.heading("Reinforcement").curves(&run.curves(&demo.name(Model::Stage2)), &CURVES);
    page.heading("What knowledge did to the answers")
        .note(
            "Held-out questions whose answer differs with and without the model's own statements: fixed if it is right with \
             them only, broken if it is right without them only.",
        )
        .table(&change_table(results));
    for (verdict, change) in [("fixed", 1), ("broken", -1)] {
        let table = question_table(results, change);
        page.heading(&format!("Stage II: answers that knowledge has {verdict}"));
        match table {
            Some(table) => page.note(&format!("At most {SHOWN} of each seed.")).table(&table),
            None => page.note("None."),
        };
    }
    let names = Model::ALL.map(|model| demo.name(model));
    page.heading("Runs").links(&run.links(&names.each_ref().map(String::as_str)));
    page.write(&run.args.out)
}

/// How many answers knowledge fixed and broke.
fn change_table(results: &[SeedResult]) -> Table {
    let mut table = Table::new(["seed", "model", "questions", "fixed", "broken"]);
    for result in results {
        for model in [Model::Stage1, Model::Stage2] {
            let items = &result.reports[model as usize].inference;
            let count = |change| items.iter().filter(|item| item.rectified == change).count().to_string();
            table.row([
                result.seed.to_string(),
                model.name().into(),
                items.len().to_string(),
                count(1),
                count(-1),
            ]);
        }
    }
    table
}

/// The questions of Stage II with one kind of change.
fn question_table(results: &[SeedResult], change: i8) -> Option<Table> {
    let mut table = Table::new([
        "seed",
        "question",
        "statement that decided",
        "answer without",
        "answer with",
        "right answer",
    ]);
    let mut any = false;
    for result in results {
        let items = result.reports[Model::Stage2 as usize].inference.iter();
        for item in items.filter(|item| item.rectified == change).take(SHOWN) {
            any = true;
            table.row(question_row(result.seed, item));
        }
    }
    any.then_some(table)
}

fn question_row(seed: u64, item: &InferenceItem) -> [String; 6] {
    let asked = &item.knowledge;
    let (question, choices) = asked.query.split_once(" \\n ").unwrap_or((&asked.query, ""));
    let statement = item.selected_knowledge_ix.and_then(|ix| asked.knowledges.get(usize::try_from(ix).ok()?));
    let statement = statement.cloned().unwrap_or_else(|| "(none)".to_owned());
    let label = |choice: usize| asked.cands.get(choice).cloned().unwrap_or_default();
    // `(A) sunny (B) rainy`: from the label to the next one.
    let text = |label: String| {
        let after = choices.split_once(&format!("({label}) ")).map(|(_, after)| after);
        after.map_or(label, |after| after.split(" (").next().unwrap_or(after).to_owned())
    };
    let [without, with, right] = [item.pred_knowless, item.pred, asked.answer_ix].map(label).map(text);
    [seed.to_string(), question.to_owned(), statement, without, with, right]
}
