//! Topic `crystal`.

mod bookkeeping;
mod ppo;
mod step;

use crate::compare::{Check, Mismatch, Tolerance, equal};
use crate::file::{GoldenError, GoldenFile};
use crate::references::f64s;
use crate::{KindFn, Outcome};
use ruminate_datasets::evaluation_files::{
    DEFAULT_PREFIX, KnowledgeItem, inference_file_name, knowledge_file_name,
};
use ruminate_datasets::prompts::choice_slots;
use ruminate_datasets::question::{letter, letters, parse_line};
use ruminate_datasets::{Compat, Origin, Prompts, Question, Split, TokenId};
use ruminate_models::{IGNORED, Sampling, filter_logits, forbid};
use ruminate_rewards::choices::{Ensemble, EnsembleConfig, Judgement, argmax, choice_probs, mean_nll_scores};
use serde::Deserialize;
use serde_json::Value;
use std::collections::BTreeMap;
use std::path::Path;
use tch::{Kind, Tensor};

// The ids of T5's vocabulary.
const PAD: TokenId = 0;
const EOS: TokenId = 1;

type Rows<T> = Vec<Vec<T>>;

/// The kinds that are covered.
pub const KINDS: &[(&str, KindFn)] = &[
    ("parse_lines", parse_lines),
    ("prompt_assembly", prompt_assembly),
    ("ensembling", ensembling),
    ("choice_scoring_mean_nll", choice_scoring_mean_nll),
    ("eval_output", eval_output),
    ("sampling_filter", sampling_filter),
    ("bookkeeping", bookkeeping::check),
    ("masked_stats", ppo::masked_stats),
    ("ppo_loss", ppo::ppo_loss),
    ("ppo_distributed", ppo::ppo_distributed),
    ("self_feedback_reward", ppo::self_feedback_reward),
    ("tiny_t5_step", step::tiny_t5_step),
];

fn parse_lines(path: &Path) -> Result<Outcome, GoldenError> {
    #[derive(Deserialize)]
    struct Case {
        task: String,
        line: String,
        expected: Expected,
    }
    #[derive(Deserialize)]
    struct Expected {
        skipped: bool,
        #[serde(flatten)]
        question: Option<Parsed>,
    }
    #[derive(Deserialize)]
    struct Parsed {
        question: String,
        choice_texts: Vec<String>,
        choice_labels: Vec<String>,
        answer_label: String,
        answer_index: usize,
    }
    let cases = GoldenFile::read(path)?.cases("cases", |case: Case| {
        let parsed = parse_line(&case.line);
        equal("expected.skipped", parsed.is_err(), case.expected.skipped)?;
        let Ok(parsed) = parsed else { return Ok(()) };
        let want =
            case.expected.question.ok_or_else(|| Mismatch("expected: fields are missing".to_owned()))?;
        let texts = parsed.choice_texts.clone();
        let question = Question::new(&Origin::new(case.task, 0, Split::Train), parsed);
        equal("question", &question.question, &want.question)?;
        equal("choice_texts", &texts, &want.choice_texts)?;
        equal("choice_texts of the question", &question.choice_texts(), &want.choice_texts)?;
        equal("choice_labels", &question.choices, &want.choice_labels)?;
        equal("answer_label", &question.answer, &want.answer_label)?;
        equal("answer_index", question.answer_ix, want.answer_index)
    })?;
    Ok(Outcome { cases, ..Outcome::default() })
}

fn prompt_assembly(path: &Path) -> Result<Outcome, GoldenError> {
    #[derive(Deserialize)]
    struct Separators {
        knowledge: Separator,
        answer: Separator,
    }
    #[derive(Deserialize)]
    struct Separator {
        ids: Vec<TokenId>,
    }
    #[derive(Deserialize)]
    struct PromptCase {
        question_ids: Rows<TokenId>,
        question_mask: Rows<TokenId>,
        knowledge_ids: Rows<TokenId>,
        knowledge_mask: Rows<TokenId>,
        expected: BTreeMap<String, Batch>,
    }
    #[derive(Deserialize)]
    struct Batch {
        ids: Rows<TokenId>,
        mask: Rows<TokenId>,
    }
    #[derive(Deserialize)]
    struct LetterCase {
        cap: usize,
        max_answer_len: usize,
        choices: Rows<String>,
        answers: Vec<String>,
        expected: Letters,
    }
    #[derive(Deserialize)]
    struct Letters {
        choice_first_token_ids: Rows<TokenId>,
        is_padding_choice: Rows<bool>,
        choice_ids: Vec<Rows<TokenId>>,
        choice_mask: Vec<Rows<TokenId>>,
        answer_labels: Rows<TokenId>,
    }
    let file = GoldenFile::read(path)?;
    let separators: Separators = file.field("separators")?;
    let mut cases = file.cases("prompt_cases", |case: PromptCase| {
        let prompts = Prompts::new(
            separators.knowledge.ids.clone(),
            separators.answer.ids.clone(),
            EOS,
            Compat::Reference,
        )?;
        some("expected", &case.expected)?;
        for (form, want) in &case.expected {
            let rows = (case.question_ids.iter().zip(&case.question_mask))
                .zip(case.knowledge_ids.iter().zip(&case.knowledge_mask));
            let mut got = Vec::new();
            for ((q, q_mask), (k, k_mask)) in rows {
                let (q, k) = (unpadded(q, q_mask), unpadded(k, k_mask));
                got.push(match form.as_str() {
                    "qk" => prompts.qk(&q),
                    "qa" => prompts.qa(&q),
                    "q_plus_k" => prompts.question_with_statement(&q, &k),
                    "qka" => prompts.qka(&q, &k),
                    "plain_concat" => prompts.append(&q, &k),
                    other => return Err(Mismatch(format!("expected.{other}: no such prompt"))),
                });
            }
            let want_ids: Rows<TokenId> =
                want.ids.iter().zip(&want.mask).map(|(ids, mask)| unpadded(ids, mask)).collect();
            equal(&format!("{form}.ids"), got, want_ids)?;
        }
        Ok(())
    })?;
    cases.extend(file.cases("letter_cases", |case: LetterCase| {
        let want = &case.expected;
        for (row, labels) in case.choices.iter().enumerate() {
            let joined = labels.concat().to_uppercase();
            equal("choices", &joined, &letters(labels.len()).concat())?;
            let slots = want.choice_ids.get(row);
            let encoded: Rows<TokenId> = (labels.iter().enumerate())
                .map(|(i, label)| {
                    let shown = slots.and_then(|slots| slots.get(i));
                    encode_letter(label, case.max_answer_len, shown)
                })
                .collect::<Check<_>>()?;
            let got = choice_slots(&encoded, case.cap, case.max_answer_len, EOS, PAD)?;
            let first: Vec<TokenId> = got.iter().filter_map(|slot| slot.first().copied()).collect();
            let unused: Vec<bool> = first.iter().map(|&id| id == EOS).collect();
            let mask: Rows<TokenId> =
                got.iter().map(|slot| slot.iter().map(|&id| (id != PAD).into()).collect()).collect();
            equal("choice_first_token_ids", Some(&first), want.choice_first_token_ids.get(row))?;
            equal("is_padding_choice", Some(&unused), want.is_padding_choice.get(row))?;
            equal("choice_ids", Some(&got), want.choice_ids.get(row))?;
            equal("choice_mask", Some(&mask), want.choice_mask.get(row))?;
            let gold = labels.iter().position(|label| case.answers.get(row) == Some(label));
            equal("answer_labels", gold.and_then(|gold| got.get(gold)), want.answer_labels.get(row))?;
        }
        Ok(())
    })?);
    Ok(Outcome { cases, ..Outcome::default() })
}

/// A case that expects nothing must not pass.
fn some<T>(field: &str, expected: &BTreeMap<String, T>) -> Check {
    if expected.is_empty() { Err(Mismatch(format!("{field}: is empty"))) } else { Ok(()) }
}

/// The ids that T5's tokenizer gives a letter, cut to `length` ids with eos at the end. Those of letters beyond `E` are what the file
/// shows in their slot.
fn encode_letter(label: &str, length: usize, shown: Option<&Vec<TokenId>>) -> Check<Vec<TokenId>> {
    let mut ids = match label {
        "A" => vec![71],
        "B" => vec![272],
        "C" => vec![205],
        "D" => vec![309],
        "E" => vec![262],
        "a" => vec![3, 9],
        "b" => vec![3, 115],
        "c" => vec![3, 75],
        "d" => vec![3, 26],
        "e" => vec![3, 15],
        other => {
            let slot = shown.ok_or_else(|| Mismatch(format!("choice_ids: nothing for {other:?}")))?;
            let ids: Vec<TokenId> = slot.iter().copied().filter(|&id| id != PAD).collect();
            return match ids.split_last() {
                Some((&EOS, [_, ..])) if ids.len() <= length => Ok(ids),
                _ => Err(Mismatch(format!("choice_ids: {slot:?} is no letter with its end"))),
            };
        }
    };
    ids.truncate(length.saturating_sub(1));
    ids.push(EOS);
    Ok(ids)
}

/// The ids that a mask keeps.
fn unpadded(ids: &[TokenId], mask: &[TokenId]) -> Vec<TokenId> {
    ids.iter().zip(mask).filter(|(_, keep)| **keep == 1).map(|(id, _)| *id).collect()
}

fn ensembling(path: &Path) -> Result<Outcome, GoldenError> {
    #[derive(Deserialize)]
    struct Case {
        answer_index: Vec<usize>,
        choice_first_ids: Rows<TokenId>,
        expert_logits: Vec<Rows<f64>>,
        expected: BTreeMap<String, BTreeMap<String, Expected>>,
    }
    #[derive(Deserialize)]
    struct Expected {
        preds: Vec<usize>,
        correct: Vec<u8>,
        rectified: Option<Vec<i8>>,
        combined: Option<Rows<f64>>,
        best_expert: Option<Vec<usize>>,
        expert_probs: Option<Vec<Rows<f64>>>,
    }
    let file = GoldenFile::read(path)?;
    let tolerance = file.tolerance()?;
    let cases = file.cases("cases", |case: Case| {
        some("expected", &case.expected)?;
        let mut scores = Vec::new();
        for (question, ids) in case.choice_first_ids.iter().enumerate() {
            let real: Vec<TokenId> = ids.iter().copied().take_while(|&id| id != EOS).collect();
            scores.push(expert_scores(&case.expert_logits, question, &real)?);
        }
        for (mode, by_experts) in &case.expected {
            for (experts, want) in by_experts {
                let config = EnsembleConfig {
                    ensembling: mode.parse()?,
                    no_knowless_expert: experts == "knowledge_experts_only",
                };
                let judged: Vec<Judgement> = (scores.iter().zip(&case.answer_index))
                    .map(|(scores, &gold)| judge(scores, gold, config))
                    .collect::<Check<_>>()?;
                let of = |name: &str| format!("{mode}.{experts}.{name}");
                let all = |f: fn(&Judgement) -> usize| judged.iter().map(f).collect::<Vec<_>>();
                equal(&of("preds"), all(|j| j.combined.prediction), want.preds.clone())?;
                let correct: Vec<u8> = judged.iter().map(|j| j.correct().into()).collect();
                equal(&of("correct"), &correct, &want.correct)?;
                if let Some(want) = &want.rectified {
                    let rectified: Vec<i8> = judged.iter().map(Judgement::rectified).collect();
                    equal(&of("rectified"), &rectified, want)?;
                }
                if let Some(want) = &want.best_expert {
                    let best: Vec<_> = judged.iter().filter_map(|j| j.combined.best_expert).collect();
                    equal(&of("best_expert"), &best, want)?;
                }
                if let Some(want) = &want.combined {
                    let combined: Rows<f64> =
                        judged.iter().map(|j| j.combined.scores.clone().unwrap_or_default()).collect();
                    tolerance.close_rows(&of("combined"), &zero_padded(combined, want), want)?;
                }
                for (expert, want) in want.expert_probs.iter().flatten().enumerate() {
                    let probs: Rows<f64> =
                        judged.iter().map(|j| j.probs.get(expert).cloned().unwrap_or_default()).collect();
                    tolerance.close_rows(&of("expert_probs"), &zero_padded(probs, want), want)?;
                }
            }
        }
        Ok(())
    })?;
    Ok(Outcome { cases, ..Outcome::default() })
}

/// `[expert][choice]` logits of one question, at the choices' token ids.
fn expert_scores(logits: &[Rows<f64>], question: usize, ids: &[TokenId]) -> Check<Rows<f64>> {
    let pick = |rows: &Rows<f64>| -> Option<Vec<f64>> {
        let row = rows.get(question)?;
        ids.iter().map(|&id| row.get(usize::try_from(id).ok()?).copied()).collect()
    };
    let scores: Option<Rows<f64>> = logits.iter().map(pick).collect();
    scores
        .ok_or_else(|| Mismatch(format!("expert_logits: nothing at question {question}, token ids {ids:?}")))
}

/// Judges `[expert][choice]` scores, the bare question first.
fn judge(scores: &[Vec<f64>], gold: usize, config: EnsembleConfig) -> Check<Judgement> {
    let (bare, statements) = scores.split_first().ok_or_else(|| Mismatch("no experts".to_owned()))?;
    Ok(Judgement::new(bare, statements, gold, config)?)
}

/// Fills up rows to the length of those they are compared with, which have a slot for every choice of the batch.
fn zero_padded(rows: Rows<f64>, like: &[Vec<f64>]) -> Rows<f64> {
    let pad = |(mut row, like): (Vec<f64>, &Vec<f64>)| {
        row.resize(row.len().max(like.len()), 0.0);
        row
    };
    rows.into_iter().zip(like).map(pad).collect()
}

fn choice_scoring_mean_nll(path: &Path) -> Result<Outcome, GoldenError> {
    #[derive(Deserialize)]
    struct Case {
        choice_ids: Vec<Rows<TokenId>>,
        answer_index: Vec<usize>,
        logits: Vec<Vec<Rows<f64>>>,
        expected: Expected,
    }
    #[derive(Deserialize)]
    struct Expected {
        choice_scores: Rows<f64>,
        choice_probs: Rows<f64>,
        preds: Vec<usize>,
        correct: Vec<u8>,
    }
    let file = GoldenFile::read(path)?;
    let tolerance = file.tolerance()?;
    let cases = file.cases("cases", |case: Case| {
        let batch = case.choice_ids.len() as i64;
        let capacity = case.choice_ids.first().map_or(0, Vec::len) as i64;
        let length = case.choice_ids.iter().flatten().next().map_or(0, Vec::len) as i64;
        // Padding may also be what losses leave out.
        let plain = |&id: &TokenId| if id == IGNORED { PAD } else { id };
        let ids: Vec<TokenId> = case.choice_ids.iter().flatten().flatten().map(plain).collect();
        let labels = Tensor::from_slice(&ids).f_view([batch, capacity, length])?;
        let logits: Vec<f64> = case.logits.iter().flatten().flatten().flatten().copied().collect();
        let logits = Tensor::from_slice(&logits).f_view([batch, capacity, length, -1])?;
        let log_probs = logits.f_log_softmax(-1, Kind::Double)?;
        let log_probs = log_probs.f_gather(-1, &labels.f_unsqueeze(-1)?, false)?.f_squeeze_dim(-1)?;

        let scores = f64s(&mean_nll_scores(&log_probs, &labels, EOS, PAD)?)?;
        let scores: Rows<f64> = scores.chunks(capacity.max(1) as usize).map(<[f64]>::to_vec).collect();
        let want = &case.expected;
        tolerance.close_rows("choice_scores", &scores, &want.choice_scores)?;
        let probs: Rows<f64> = scores.iter().map(|row| choice_probs(row)).collect::<Result<_, _>>()?;
        tolerance.close_rows("choice_probs", &probs, &want.choice_probs)?;
        let preds: Vec<usize> = scores.iter().map(|row| argmax(row)).collect();
        equal("preds", &preds, &want.preds)?;
        let correct: Vec<u8> =
            preds.iter().zip(&case.answer_index).map(|(p, gold)| (p == gold).into()).collect();
        equal("correct", &correct, &want.correct)
    })?;
    Ok(Outcome { cases, ..Outcome::default() })
}

fn eval_output(path: &Path) -> Result<Outcome, GoldenError> {
    #[derive(Deserialize)]
    struct Case {
        step: i64,
        split: Split,
        knowledge_experts_only: bool,
        items: Vec<Item>,
        expert_logits: Vec<Rows<f64>>,
        choice_token_ids: Vec<TokenId>,
        expected: Expected,
    }
    #[derive(Deserialize)]
    struct Item {
        task: String,
        question: String,
        n: usize,
        gold: usize,
        knowledges: Vec<String>,
    }
    #[derive(Deserialize)]
    struct Expected {
        knowledge_file_name: String,
        inference_file_name: String,
        knowledge_file: Vec<Value>,
        inference_file: Vec<Value>,
    }
    let file = GoldenFile::read(path)?;
    let tolerance = file.tolerance()?;
    let cases = file.cases("cases", |case: Case| {
        let want = &case.expected;
        let knowledge_name = knowledge_file_name(DEFAULT_PREFIX, case.step);
        equal("knowledge_file_name", &knowledge_name, &want.knowledge_file_name)?;
        let inference_name = inference_file_name(DEFAULT_PREFIX, case.step, &knowledge_name);
        equal("inference_file_name", &inference_name, &want.inference_file_name)?;

        let config =
            EnsembleConfig { ensembling: Ensemble::Max, no_knowless_expert: case.knowledge_experts_only };
        let (mut knowledge, mut inference) = (Vec::new(), Vec::new());
        for (ix, item) in case.items.iter().enumerate() {
            let question = Question {
                task: item.task.clone(),
                task_ix: 0,
                split: case.split,
                question: item.question.clone(),
                choices: letters(item.n),
                answer: letter(item.gold),
                answer_ix: item.gold,
            };
            let ids = case.choice_token_ids.get(..item.n).unwrap_or(&case.choice_token_ids);
            let judgement = judge(&expert_scores(&case.expert_logits, ix, ids)?, item.gold, config)?;
            knowledge.push(serde_json::to_value(KnowledgeItem::new(&question, &item.knowledges))?);
            inference.push(serde_json::to_value(judgement.inference_item(&question, &item.knowledges)?)?);
        }
        Tolerance::EXACT.json("knowledge_file", &knowledge.into(), &want.knowledge_file.clone().into())?;
        tolerance.json("inference_file", &inference.into(), &want.inference_file.clone().into())
    })?;
    Ok(Outcome { cases, ..Outcome::default() })
}

/// The distribution that statements are drawn from.
fn sampling_filter(path: &Path) -> Result<Outcome, GoldenError> {
    #[derive(Deserialize)]
    struct Case {
        logits: Rows<f64>,
        temperature: Option<f64>,
        top_k_argument: Option<usize>,
        top_p_argument: Option<f64>,
        decoder_length_so_far: usize,
        min_length: usize,
        eos_id: TokenId,
        expected: Expected,
    }
    #[derive(Deserialize)]
    struct Expected {
        probs: Rows<f64>,
        kept: Rows<u8>,
        greedy_token: Vec<usize>,
    }
    let file = GoldenFile::read(path)?;
    let tolerance = file.tolerance()?;
    let cases = file.cases("cases", |case: Case| {
        let rows = case.logits.len() as i64;
        let mut logits = Tensor::f_from_slice(&case.logits.concat())?.f_view_([rows, -1])?;
        if case.decoder_length_so_far < case.min_length {
            logits = forbid(&logits, &Tensor::f_from_slice(&[case.eos_id])?)?;
        }
        let greedy: Vec<i64> = Vec::try_from(logits.f_argmax(1, false)?)?;
        let greedy: Vec<usize> = greedy.into_iter().map(|id| id as usize).collect();
        equal("greedy_token", greedy, case.expected.greedy_token)?;
        let sampling = Sampling {
            temperature: case.temperature.unwrap_or(1.0),
            // What the reference's generation library falls back to.
            top_k: Some(case.top_k_argument.unwrap_or(50)),
            top_p: case.top_p_argument,
            ..Sampling::default()
        };
        let probs = filter_logits(&logits, &sampling)?.f_softmax(-1, None::<Kind>)?;
        let probs: Rows<f64> = Vec::try_from(probs)?;
        let kept: Rows<u8> =
            probs.iter().map(|row| row.iter().map(|&p| u8::from(p > 0.0)).collect()).collect();
        equal("kept", kept, case.expected.kept)?;
        tolerance.close_rows("probs", &probs, &case.expected.probs)
    })?;
    Ok(Outcome { cases, pending: vec![] })
}
