//! Records, stages, answers.

use super::{letter, problem, source};
use crate::Outcome;
use crate::compare::{Check, Mismatch, Tolerance, equal};
use crate::file::{GoldenError, GoldenFile};
use ruminate_datasets::tinythinker::{
    AnalysisOrder, Draft, Item, NoAnswer, Question, Reasoned, Record, Source, Stage, StageRecords, StageText,
    Variant, accuracy_percent, answer, vote,
};
use serde::Deserialize;
use serde_json::Value;
use std::collections::BTreeMap;
use std::path::Path;

const PERCENT: Tolerance = Tolerance { absolute: 1e-9, relative: 0.0 };

pub(super) fn records(path: &Path) -> Result<Outcome, GoldenError> {
    #[derive(Deserialize)]
    struct Row {
        #[serde(rename = "Q")]
        stem: String,
        #[serde(rename = "Options")]
        options: String,
        #[serde(rename = "GT")]
        gold: String,
    }
    #[derive(Deserialize)]
    struct Comma {
        raw: Value,
        our_input: String,
    }
    let file = GoldenFile::read(path)?;
    let items: Vec<Item> = file.field("items")?;
    let questions = |name: &str| -> Result<Check<Vec<Question>>, GoldenError> {
        let rows: Vec<Row> = file.field(name)?;
        let parse = |row: &Row| {
            let input = format!("{}\nOptions: {}", row.stem, row.options);
            let item = Item {
                input,
                gold: row.gold.clone(),
                general_knowledge: String::new(),
                specific_knowledge: vec![],
            };
            item.question("").map_err(problem)
        };
        Ok(rows.iter().map(parse).collect())
    };
    let (valid, test) = (questions("valid_rows")?, questions("test_rows")?);
    let parts = || -> Check<(Vec<Reasoned>, Vec<Question>, Vec<Question>)> {
        let parse = |(i, item): (usize, &Item)| Reasoned::parse(&i.to_string(), item).map_err(problem);
        let items = items.iter().enumerate().map(parse).collect::<Check<Vec<_>>>()?;
        Ok((items, valid.clone()?, test.clone()?))
    };
    let compare = |variant: Variant, order: AnalysisOrder, want: &BTreeMap<String, Vec<Record>>| -> Check {
        let (items, valid, test) = parts()?;
        let got = StageRecords::new(variant, &items, &valid, &test, order);
        let files = got.files();
        for (name, want) in want {
            let got = files.iter().find(|(of, _)| of == name).map(|(_, records)| *records);
            let got = got.ok_or_else(|| Mismatch(format!("there is no file `{name}`")))?;
            equal(&format!("length of {name}"), got.len(), want.len())?;
            for (i, (got, want)) in got.iter().zip(want).enumerate() {
                equal(&format!("{name}[{i}]"), got, want)?;
            }
        }
        for (name, records) in files.iter().filter(|(_, records)| !records.is_empty()) {
            equal(
                &format!("file {name} of {} records is expected", records.len()),
                want.contains_key(*name),
                true,
            )?;
        }
        Ok(())
    };
    let mut outcome = Outcome::default();
    let whole = Variant::RecallAnalyzeSummarize;
    let want: BTreeMap<String, Vec<Record>> = file.field("records")?;
    outcome.case("records", compare(whole, AnalysisOrder::AsGiven, &want));
    let sorted: Vec<String> = file.field("summarize_inputs_when_sorted_by_label")?;
    let by_label = || -> Check {
        let (items, valid, test) = parts()?;
        let got = StageRecords::new(whole, &items, &valid, &test, AnalysisOrder::ByLabel);
        let inputs: Vec<&String> = got.summarize.iter().map(|record| &record.input).collect();
        equal("summarize_inputs_when_sorted_by_label", inputs, sorted.iter().collect::<Vec<_>>())
    };
    outcome.case("sorted by label", by_label());
    for (name, want) in file.field::<BTreeMap<String, BTreeMap<String, Vec<Record>>>>("ablations")? {
        let check = || -> Check {
            let variant: Variant = serde_json::from_value(Value::String(name.clone()))?;
            compare(variant, AnalysisOrder::AsGiven, &want)
        };
        outcome.case(format!("ablation {name}"), check());
    }
    if file.content().get("option_comma").is_some() {
        let source: Source = match source(&file.field::<String>("dataset")?) {
            Ok(source) => source,
            Err(Mismatch(reason)) => return Err(GoldenError::Unusable { path: path.into(), reason }),
        };
        outcome.cases.extend(file.cases("option_comma", |case: Comma| {
            let question = source.parse(0, &case.raw).map_err(problem)?;
            equal("our_input", &Draft::new(&question).recall_prompt(), &case.our_input)
        })?);
    }
    Ok(outcome)
}

pub(super) fn stage_prompts(path: &Path) -> Result<Outcome, GoldenError> {
    #[derive(Deserialize)]
    struct Case {
        data: Vec<Row>,
        stages: Vec<Texts>,
        final_texts: Vec<String>,
        labels: Vec<String>,
        stored_inputs: Vec<String>,
        stage_type: String,
    }
    #[derive(Deserialize)]
    struct Row {
        input: String,
        #[serde(rename = "GT")]
        gold: String,
    }
    #[derive(Deserialize)]
    struct Texts {
        inputs: Vec<String>,
        generations: Vec<String>,
    }
    let cases = GoldenFile::read(path)?.cases("cases", |case: Case| {
        // Rows of one question are adjacent where a question begins with its analyses.
        let mut drafts: Vec<Draft> = vec![];
        let mut golds: Vec<&str> = vec![];
        let mut stage = Stage::Summarize;
        for row in &case.data {
            let text = StageText::parse(&row.input).map_err(problem)?;
            let draft = Draft::of(&text).map_err(problem)?;
            stage = text.asks;
            if stage != Stage::Analyze || drafts.last() != Some(&draft) {
                drafts.push(draft);
                golds.push(&row.gold);
            }
        }
        equal("labels", golds, case.labels.iter().map(String::as_str).collect::<Vec<_>>())?;
        // Students that recall and do not analyze.
        let skips = case.stage_type == "recall_summarize";
        let mut finals = vec![];
        for (k, texts) in case.stages.iter().enumerate() {
            let inputs: Vec<String> = match stage {
                Stage::Recall => drafts.iter().map(Draft::recall_prompt).collect(),
                Stage::Analyze => drafts.iter().flat_map(Draft::analyze_prompts).collect(),
                Stage::Summarize => drafts.iter().map(Draft::summarize_prompt).collect(),
            };
            equal(&format!("stages[{k}].inputs"), &inputs, &texts.inputs)?;
            equal("number of generations", texts.generations.len(), inputs.len())?;
            let mut generations = texts.generations.iter();
            for draft in &mut drafts {
                match stage {
                    Stage::Recall => generations.by_ref().take(1).for_each(|text| draft.set_recall(text)),
                    Stage::Analyze => {
                        for label in draft.labels().to_vec() {
                            generations.by_ref().take(1).for_each(|text| draft.push_analysis(label, text));
                        }
                    }
                    Stage::Summarize => finals.extend(generations.next().map(|text| text.trim().to_owned())),
                }
            }
            stage = match stage {
                Stage::Recall if !skips => Stage::Analyze,
                _ => Stage::Summarize,
            };
        }
        equal("final_texts", &finals, &case.final_texts)?;
        // Without analyses the published code stores the inputs of the first stage.
        let stored: Vec<String> = if skips {
            case.data.iter().map(|row| row.input.clone()).collect()
        } else {
            drafts.iter().map(Draft::summarize_prompt).collect()
        };
        equal("stored_inputs", &stored, &case.stored_inputs)
    })?;
    Ok(Outcome { cases, ..Outcome::default() })
}

pub(super) fn answers(path: &Path) -> Result<Outcome, GoldenError> {
    #[derive(Deserialize)]
    struct Extraction {
        text: String,
        prediction: Option<String>,
    }
    #[derive(Deserialize)]
    struct Votes {
        rows: Vec<Row>,
        reference_accuracy_percent: f64,
        our_accuracy_percent: f64,
    }
    #[derive(Deserialize)]
    struct Row {
        input: String,
        #[serde(rename = "GT")]
        gold: String,
        prediction: Option<String>,
    }
    let file = GoldenFile::read(path)?;
    let near = file.tolerance_or(PERCENT)?;
    let shown = |answer: Option<char>| answer.map(String::from);
    let mut cases = file.cases("extraction", |case: Extraction| {
        equal("prediction", shown(answer(&case.text)), case.prediction)
    })?;
    let texts: Vec<Extraction> = file.field("extraction")?;
    let stripped: Vec<String> = file.field("stripped_texts")?;
    let labels: Vec<String> = file.field("labels")?;
    let percent: f64 = file.field("accuracy_percent")?;
    let whole = || -> Check {
        let trimmed: Vec<&str> = texts.iter().map(|case| case.text.trim()).collect();
        equal("stripped_texts", &trimmed, &stripped)?;
        equal("number of labels", labels.len(), texts.len())?;
        let rows = texts.iter().zip(&labels).map(|(case, gold)| Ok((answer(&case.text), letter(gold)?)));
        let got = accuracy_percent(rows.collect::<Check<Vec<_>>>()?);
        near.close("accuracy_percent", &[got], &[percent])
    };
    let mut outcome = Outcome::default();
    outcome.case("accuracy", whole());
    cases.extend(file.cases("majority_vote", |case: Votes| {
        for (rule, want) in [
            (NoAnswer::Votes, case.reference_accuracy_percent),
            (NoAnswer::Abstains, case.our_accuracy_percent),
        ] {
            let mut groups: BTreeMap<String, (char, Vec<Option<char>>)> = BTreeMap::new();
            for row in &case.rows {
                // The published code looks for one stage only, and so do not group what begins with another.
                let key = match rule {
                    NoAnswer::Votes => row.input.split("\nRecall").next().unwrap_or_default().to_owned(),
                    NoAnswer::Abstains => StageText::parse(&row.input).map_err(problem)?.block,
                };
                let group = groups.entry(key).or_insert((letter(&row.gold)?, vec![]));
                group.1.push(row.prediction.as_deref().map(letter).transpose()?);
            }
            let got = accuracy_percent(groups.values().map(|(gold, answers)| (vote(answers, rule), *gold)));
            near.close(&format!("accuracy where no answer {rule:?}"), &[got], &[want])?;
        }
        Ok(())
    })?);
    outcome.cases.extend(cases);
    Ok(outcome)
}
