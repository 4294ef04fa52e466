//! Preference pairs.

use super::{letter, problem};
use crate::Outcome;
use crate::compare::{Check, equal};
use crate::file::{GoldenError, GoldenFile};
use ruminate_datasets::PreferenceExample;
use ruminate_datasets::tinythinker::{
    Backup, Draft, PairOptions, Run, StageText, analyze_pairs, recall_pairs,
};
use serde::Deserialize;
use std::path::Path;

#[derive(Deserialize)]
struct Row {
    input: String,
    #[serde(rename = "GT")]
    gold: String,
    prediction: Option<String>,
}

#[derive(Deserialize)]
struct Remembered {
    prompt_with_recall: String,
    analyses: Vec<Vec<String>>,
}

#[derive(Deserialize)]
struct Pair {
    prompt: String,
    chosen: String,
    rejected: String,
}

#[derive(Deserialize)]
struct Prompt {
    input: String,
    #[serde(rename = "GT")]
    gold: String,
}

/// A question's text is its id.
fn run(row: &Row) -> Check<Run> {
    let text = StageText::parse(&row.input).map_err(problem)?;
    Ok(Run {
        id: text.block.clone(),
        draft: Draft::of(&text).map_err(problem)?,
        gold: letter(&row.gold)?,
        answer: row.prediction.as_deref().map(letter).transpose()?,
    })
}

fn runs(passes: &[Vec<Row>]) -> Check<Vec<Run>> {
    passes.iter().flatten().map(run).collect()
}

fn same_pairs(field: &str, got: &[PreferenceExample], want: &[Pair]) -> Check {
    let got: Vec<_> = got.iter().map(|pair| [&pair.prompt, &pair.chosen, &pair.rejected]).collect();
    let want: Vec<_> = want.iter().map(|pair| [&pair.prompt, &pair.chosen, &pair.rejected]).collect();
    equal(&format!("number of {field}"), got.len(), want.len())?;
    got.iter()
        .zip(&want)
        .enumerate()
        .try_for_each(|(i, (got, want))| equal(&format!("{field}[{i}]"), got, want))
}

/// The analyses as the file shows them, by prompt.
fn shown(backup: &Backup) -> Vec<(&String, Vec<Vec<String>>)> {
    let texts = |analyses: &Vec<(char, String)>| {
        analyses.iter().map(|(label, text)| format!("For option {label}, {text}")).collect()
    };
    backup.iter().map(|(prompt, runs)| (prompt, runs.iter().map(texts).collect())).collect()
}

fn remembered(rows: &[Remembered]) -> Vec<(&String, Vec<Vec<String>>)> {
    let mut rows: Vec<_> = rows.iter().map(|row| (&row.prompt_with_recall, row.analyses.clone())).collect();
    rows.sort();
    rows
}

pub(super) fn dpo_pairs(path: &Path) -> Result<Outcome, GoldenError> {
    #[derive(Deserialize)]
    struct Recall {
        runs: Vec<Vec<Row>>,
        teacher: Vec<Prompt>,
        pairs: Vec<Pair>,
        next_prompts: Vec<Prompt>,
        backup: Vec<Remembered>,
    }
    #[derive(Deserialize)]
    struct Analyze {
        runs: Vec<Vec<Row>>,
        backup: Vec<Remembered>,
        our_pairs: Vec<Pair>,
        our_pairs_after_filter: Vec<Pair>,
    }
    let file = GoldenFile::read(path)?;
    let recall: Recall = file.field("recall")?;
    let analyze: Analyze = file.field("analyze")?;
    let all = PairOptions { drop_equal: false, ..PairOptions::default() };
    let mut outcome = Outcome::default();
    let made = || -> Check<_> {
        let teacher = recall.teacher.iter().map(|row| {
            run(&Row { input: row.input.clone(), gold: row.gold.clone(), prediction: Some(row.gold.clone()) })
        });
        Ok(recall_pairs(&runs(&recall.runs)?, &teacher.collect::<Check<Vec<_>>>()?, &all))
    };
    outcome
        .case("recall pairs", made().and_then(|made| same_pairs("recall.pairs", &made.pairs, &recall.pairs)));
    let prompts = || -> Check {
        let got = made()?.next_prompts(false);
        let want: Vec<(String, char)> = recall
            .next_prompts
            .iter()
            .map(|p| Ok((p.input.clone(), letter(&p.gold)?)))
            .collect::<Check<_>>()?;
        equal("recall.next_prompts", &got, &want)
    };
    outcome.case("prompts of the analyze pass", prompts());
    let backup = || -> Check { equal("recall.backup", shown(&made()?.backup()), remembered(&recall.backup)) };
    outcome.case("backup", backup());
    let given = || -> Check<Backup> {
        let entry = |row: &Remembered| -> Check<_> {
            let parse = |texts: &Vec<String>| -> Check<Vec<(char, String)>> {
                let joined = format!("{}\nAnalyze: {}\nSummarize:", row.prompt_with_recall, texts.join(" "));
                Ok(StageText::parse(&joined).map_err(problem)?.analyses)
            };
            Ok((row.prompt_with_recall.clone(), row.analyses.iter().map(parse).collect::<Check<Vec<_>>>()?))
        };
        analyze.backup.iter().map(entry).collect()
    };
    for (name, options, want) in [
        ("our_pairs", &all, &analyze.our_pairs),
        ("our_pairs_after_filter", &PairOptions::default(), &analyze.our_pairs_after_filter),
    ] {
        let check = || same_pairs(name, &analyze_pairs(&runs(&analyze.runs)?, &given()?, options).0, want);
        outcome.case(format!("analyze {name}"), check());
    }
    Ok(outcome)
}
