//! What an evaluation prints.

use std::path::PathBuf;

use ruminate::algorithms::crystal::EvaluationReport;
use ruminate::run::{Table, print_tables};
use serde_json::json;

/// For programs.
pub(crate) fn summary(report: &EvaluationReport, written: &[PathBuf]) -> serde_json::Value {
    let ensembles: serde_json::Map<String, serde_json::Value> =
        report.ensembles.iter().map(|of| (of.ensemble.to_string(), json!(of.accuracy))).collect();
    json!({
        "system": "crystal", "acc_weighted": report.acc_weighted(), "acc_unweighted": report.acc_unweighted(),
        "acc_weighted_knowless": report.acc_weighted_knowless(), "ensembles": ensembles, "tasks": report.tasks,
        "files": written,
    })
}

/// For people.
pub(crate) fn print_report(report: &EvaluationReport, written: &[PathBuf]) -> std::io::Result<()> {
    let mut table = Table::new(["task", "questions", "accuracy", "without knowledge"]);
    for task in &report.tasks {
        let numbers = [task.accuracy, task.accuracy_knowless].map(Table::number);
        table.row([task.task.clone(), task.questions.to_string(), numbers[0].clone(), numbers[1].clone()]);
    }
    let all = report.inference.len().to_string();
    let weighted = [report.acc_weighted(), report.acc_weighted_knowless()].map(Table::number);
    table.row(["acc_weighted".into(), all.clone(), weighted[0].clone(), weighted[1].clone()]);
    let unweighted = [report.acc_unweighted(), report.acc_unweighted_knowless()].map(Table::number);
    table.row(["acc_unweighted".into(), all, unweighted[0].clone(), unweighted[1].clone()]);
    let mut ensembles = Table::new(["ensembling", "acc_weighted"]);
    for of in &report.ensembles {
        ensembles.row([of.ensemble.to_string(), Table::number(of.accuracy)]);
    }
    let mut files = Table::new(["written"]);
    for path in written {
        files.row([path.display().to_string()]);
    }
    print_tables(&[table, ensembles, files])
}
