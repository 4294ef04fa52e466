//! What the teacher is asked, and what becomes of what it writes.

use super::{letter, problem, source};
use crate::Outcome;
use crate::compare::{Check, Mismatch, equal};
use crate::file::{GoldenError, GoldenFile};
use ruminate_datasets::tinythinker::{
    Completion, FewShot, Item, LabelPolicy, Question, Rejected, Retry, TeacherRequest, check_all, diverse,
    edit_distance, extract, far_from_all, system_message, user_message,
};
use serde::Deserialize;
use serde_json::{Value, json};
use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

/// Few-shot examples are real and lie beside the golden vectors, or else beside the repository.
fn shared_data(path: &Path, file: &str) -> Option<PathBuf> {
    let beside = path.ancestors().nth(3).map(|root| root.join("data"));
    let usual = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../../shared/data");
    let files = beside.into_iter().chain([usual]).map(|data| data.join("tinythinker").join(file));
    files.into_iter().find(|file| file.is_file())
}

pub(super) fn teacher_prompts(path: &Path) -> Result<Outcome, GoldenError> {
    #[derive(Deserialize)]
    struct Case {
        dataset: String,
        few_shot_file: String,
        few_shot_order: Vec<usize>,
        system: String,
        request_fields: Value,
        rows: Vec<Row>,
    }
    #[derive(Deserialize)]
    struct Row {
        raw: Value,
        normalised: Value,
        user: String,
    }
    let file = GoldenFile::read(path)?;
    let mut outcome = Outcome::default();
    for (c, case) in file.field::<Vec<Case>>("cases")?.into_iter().enumerate() {
        let name = format!("cases[{c}] {}", case.dataset);
        let rows = || -> Check {
            let source = source(&case.dataset)?;
            if case.rows.is_empty() {
                return Err(Mismatch("rows: is empty".to_owned()));
            }
            for (i, row) in case.rows.iter().enumerate() {
                let question = source.parse(i, &row.raw).map_err(problem)?;
                let others: Vec<char> =
                    question.labels().into_iter().filter(|l| *l != question.gold).collect();
                let normalised = json!({"Q": question.stem, "Options": question.option_line(), "GT": question.gold,
                    "Other": others});
                equal(&format!("rows[{i}].normalised"), &normalised, &row.normalised)?;
                equal(&format!("rows[{i}].user"), &user_message(&question), &row.user)?;
                let request = serde_json::to_value(TeacherRequest::new(source, &case.system, &question))?;
                let keys: Vec<&String> = request.as_object().into_iter().flat_map(|o| o.keys()).collect();
                equal("keys of the request", keys.len(), 5)?;
                for (key, want) in case.request_fields.as_object().into_iter().flatten() {
                    equal(&format!("request_fields.{key}"), Some(want), request.get(key))?;
                }
                let messages = json!([{"role": "system", "content": case.system}, {"role": "user", "content": row.user}]);
                equal("messages", Some(&messages), request.get("messages"))?;
            }
            Ok(())
        };
        outcome.case(format!("{name}, rows"), rows());
        let files = (shared_data(path, &case.few_shot_file), shared_data(path, "request.json"));
        let (Some(few_shot), Some(request)) = files else {
            outcome.pending(format!("{name}, system message: its examples are not beside the golden files"));
            continue;
        };
        let system = || -> Check {
            let examples: Vec<FewShot> = ruminate_datasets::json::read(&few_shot)?;
            let instruction = ruminate_datasets::tinythinker::read_instruction(&request)?;
            let chosen = case.few_shot_order.iter().map(|&i| {
                examples.get(i).ok_or_else(|| Mismatch(format!("few_shot_order: there is no example {i}")))
            });
            equal("system", &system_message(&instruction, chosen.collect::<Check<Vec<_>>>()?), &case.system)
        };
        outcome.case(format!("{name}, system message"), system());
    }
    Ok(outcome)
}

pub(super) fn candidate_selection(path: &Path) -> Result<Outcome, GoldenError> {
    #[derive(Deserialize)]
    struct Case {
        texts: Vec<String>,
        keep: usize,
        edit_distances: Vec<Vec<usize>>,
        far_from_all_others: Vec<usize>,
        expected_first: Vec<usize>,
        expected_count: usize,
        expected_exact: Option<Vec<usize>>,
        fill_pool: Vec<usize>,
    }
    let cases = GoldenFile::read(path)?.cases("cases", |case: Case| {
        let texts: Vec<&str> = case.texts.iter().map(String::as_str).collect();
        let distances: Vec<Vec<usize>> =
            texts.iter().map(|a| texts.iter().map(|b| edit_distance(a, b)).collect()).collect();
        equal("edit_distances", &distances, &case.edit_distances)?;
        equal("far_from_all_others", &far_from_all(&texts), &case.far_from_all_others)?;
        for seed in 0..5 {
            let chosen = diverse(&texts, case.keep, seed);
            equal("expected_count", chosen.len(), case.expected_count)?;
            let (first, filled) = chosen.split_at(case.expected_first.len().min(chosen.len()));
            equal("expected_first", first, &case.expected_first[..])?;
            let in_pool = filled.iter().all(|i| case.fill_pool.contains(i));
            equal("the rest is drawn from fill_pool", in_pool, true)?;
            if let Some(exact) = &case.expected_exact {
                equal("expected_exact", &chosen, exact)?;
            }
        }
        Ok(())
    })?;
    Ok(Outcome { cases, ..Outcome::default() })
}

pub(super) fn teacher_filter(path: &Path) -> Result<Outcome, GoldenError> {
    #[derive(Deserialize)]
    struct Dataset {
        num_options: usize,
        cases: Vec<Value>,
    }
    #[derive(Deserialize)]
    struct Case {
        content: String,
        finish_reason: String,
        reference: Value,
        ours: Value,
    }
    let file = GoldenFile::read(path)?;
    let mut outcome = Outcome::default();
    for (dataset, cases) in file.field::<BTreeMap<String, Dataset>>("datasets")? {
        let labels: Vec<char> = ('A'..='Z').take(cases.num_options).collect();
        for value in &cases.cases {
            let name = value.get("name").and_then(Value::as_str).unwrap_or_default();
            let check = || -> Check {
                let case = Case::deserialize(value)?;
                let want = if case.ours == json!("same") { &case.reference } else { &case.ours };
                let completion = Completion { content: case.content, finish_reason: case.finish_reason };
                let checked = check_all(&[completion], &labels);
                let accepted: Vec<Value> = (checked.accepted.iter())
                    .map(|candidate| {
                        let verdict = |(label, correct, _): &(char, bool, String)| {
                            format!("{label} is {}.", if *correct { "correct" } else { "incorrect" })
                        };
                        json!({
                            "general_knowledge": candidate.knowledge,
                            "answer_prefix": candidate.reasons.iter().map(verdict).collect::<Vec<_>>(),
                            "specific_knowledge": candidate.reasons.iter().map(|r| &r.2).collect::<Vec<_>>(),
                            "LLM_answer": candidate.answer,
                        })
                    })
                    .collect();
                let doubled = checked.rejected.contains(&Rejected::CutOff);
                let got = json!({"num_retry": checked.rejected.len(), "max_tokens_doubled": doubled, "accepted": accepted});
                equal("candidate", &got, want)
            };
            outcome.case(format!("{dataset} {name}"), check());
        }
    }
    Ok(outcome)
}

pub(super) fn teacher_extract(path: &Path) -> Result<Outcome, GoldenError> {
    #[derive(Deserialize)]
    struct Dataset {
        num_options: usize,
        num_augment: usize,
        lines: Vec<Value>,
    }
    #[derive(Deserialize)]
    struct Line {
        user: String,
        request_n: usize,
        request_max_tokens: u32,
        response: Vec<Value>,
        items: Vec<Item>,
        retry_fields: Option<Fields>,
    }
    #[derive(Deserialize)]
    struct Fields {
        n: usize,
        max_tokens: u32,
    }
    let file = GoldenFile::read(path)?;
    let mut outcome = Outcome::default();
    for (dataset, lines) in file.field::<BTreeMap<String, Dataset>>("datasets")? {
        for value in &lines.lines {
            let name = value.get("name").and_then(Value::as_str).unwrap_or_default();
            let check = || -> Check {
                let line = Line::deserialize(value)?;
                let question = question_of(&line.user)?;
                equal("num_options", question.options.len(), lines.num_options)?;
                equal("user", &user_message(&question), &line.user)?;
                // A response of texts is one of errors.
                let completions: Vec<Completion> = line
                    .response
                    .iter()
                    .filter(|completion| !completion.is_string())
                    .map(|completion| Ok(Completion::deserialize(completion)?))
                    .collect::<Check<_>>()?;
                let asked = Retry { n: line.request_n, max_tokens: line.request_max_tokens };
                let got =
                    extract(&question, &completions, asked, LabelPolicy::TeacherVote, lines.num_augment, 0);
                let want =
                    line.retry_fields.map(|fields| Retry { n: fields.n, max_tokens: fields.max_tokens });
                equal("retry_fields", got.retry, want)?;
                equal("items", &got.items, &line.items)
            };
            outcome.case(format!("{dataset} {name}"), check());
        }
    }
    Ok(outcome)
}

/// The question that a user message asks about.
fn question_of(user: &str) -> Check<Question> {
    let bad = || Mismatch(format!("user: `{user}` has not the usual lines"));
    let (stem, rest) = user.split_once("\nOptions: ").ok_or_else(bad)?;
    let (options, explanations) = rest.split_once("\nKey Information:\nExplanations: ").ok_or_else(bad)?;
    let gold = explanations.split_once(" is correct").ok_or_else(bad)?.0;
    let item = Item {
        input: format!("{stem}\nOptions: {options}"),
        gold: gold.to_owned(),
        general_knowledge: String::new(),
        specific_knowledge: vec![],
    };
    let mut question = item.question("").map_err(problem)?;
    question.gold = letter(gold)?;
    Ok(question)
}
