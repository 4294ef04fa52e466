//! Inference as it is reported: sample statements, answer with each, combine the answers.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use ruminate_datasets::evaluation_files::{DEFAULT_PREFIX, inference_file_name, knowledge_file_name};
use ruminate_datasets::{Annotated, InferenceItem, KnowledgeItem, json};
use ruminate_models::{
    Generate, GenerationConfig, Sampling, ScoreChoices, Strategy, TokenId, by_length, derive_seed,
};
use ruminate_rewards::{Ensemble, EnsembleConfig, Judgement, first_token_scores};
use serde::{Deserialize, Serialize};

use super::{QuestionEncoder, most_choices};
use crate::{Error, Observer, Result};

/// Where statements come from.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum KnowledgeSource {
    /// The model samples them.
    #[default]
    Sampled,
    /// The model writes one by greedy choice, as in validation during training.
    Greedy,
    /// They came with the questions.
    Given,
    /// There are none: the bare question is answered.
    None,
}

/// Settings of [`evaluate`]; the defaults are those of the published evaluation.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct EvaluationConfig {
    /// Where statements come from.
    pub knowledge: KnowledgeSource,
    /// Statements per question.
    pub num_samples: usize,
    /// How they are drawn. The reference asks for top-p 0.5; its top-k 50 is a default of its generation library.
    pub sampling: Sampling,
    /// Tokens before which a statement may not end (the reference's minimum length of 3 counts the start token).
    pub min_new_tokens: usize,
    /// Never draw the padding token (the reference may).
    pub forbid_pad: bool,
    /// Fill given statements up to `num_samples` with empty ones, as the reference does. Each of them asks the bare question, which is
    /// an expert then, whatever [`EnsembleConfig::no_knowless_expert`] says.
    pub pad_given: bool,
    /// How the answers are combined.
    pub ensemble: EnsembleConfig,
    /// Questions per batch when writing; prompts per batch when answering.
    pub batch_size: usize,
    /// Seed of the statements.
    pub seed: u64,
}

impl Default for EvaluationConfig {
    fn default() -> Self {
        Self {
            knowledge: KnowledgeSource::Sampled,
            num_samples: 10,
            sampling: Sampling { temperature: 1.0, top_k: Some(50), top_p: Some(0.5), ..Sampling::default() },
            min_new_tokens: 2,
            forbid_pad: true,
            pad_given: false,
            ensemble: EnsembleConfig::default(),
            batch_size: 64,
            seed: 1,
        }
    }
}

impl EvaluationConfig {
    /// Checks the ranges.
    ///
    /// # Errors
    /// Names the setting that is wrong.
    pub fn validate(&self) -> Result<()> {
        for (key, value) in [("num_samples", self.num_samples), ("batch_size", self.batch_size)] {
            if value == 0 {
                return Err(Error::config(key, "is 0, but must be at least 1"));
            }
        }
        // Now, and not after the model is loaded or even trained.
        self.sampling.validate().map_err(|e| Error::config("sampling", e.to_string()))
    }

    fn generation(&self, encoder: &QuestionEncoder) -> GenerationConfig {
        let greedy = self.knowledge == KnowledgeSource::Greedy;
        GenerationConfig {
            strategy: if greedy { Strategy::Greedy } else { Strategy::Sample(self.sampling) },
            max_new_tokens: encoder.lengths().max_knowledge_len,
            min_new_tokens: self.min_new_tokens,
            forbidden_ids: if self.forbid_pad { vec![encoder.pad] } else { vec![] },
            samples_per_prompt: if greedy { 1 } else { self.num_samples },
            ..GenerationConfig::default()
        }
    }
}

/// Accuracy on one task.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct TaskAccuracy {
    /// The task.
    pub task: String,
    /// Its questions.
    pub questions: usize,
    /// Share answered correctly.
    pub accuracy: f64,
    /// Share answered correctly without knowledge.
    pub accuracy_knowless: f64,
}

/// What an evaluation found.
#[derive(Debug, Clone, PartialEq)]
pub struct EvaluationReport {
    /// One item per question, in the order of the data, as the reference writes them.
    pub inference: Vec<InferenceItem>,
    /// Accuracy per task, in the order of the tasks.
    pub tasks: Vec<TaskAccuracy>,
    /// Mean accuracy over questions under each way of combining the same answers.
    pub ensembles: Vec<EnsembleAccuracy>,
}

/// Mean accuracy over questions under one way of combining answers.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct EnsembleAccuracy {
    /// The way.
    pub ensemble: Ensemble,
    /// The accuracy, in `[0, 1]`.
    pub accuracy: f64,
}

impl EvaluationReport {
    /// Mean over questions.
    #[must_use]
    pub fn acc_weighted(&self) -> f64 {
        mean(self.inference.iter().map(|item| f64::from(item.ok)))
    }

    /// Mean over questions without knowledge.
    #[must_use]
    pub fn acc_weighted_knowless(&self) -> f64 {
        mean(self.inference.iter().map(|item| f64::from(item.ok_knowless)))
    }

    /// Mean over tasks of their accuracies.
    #[must_use]
    pub fn acc_unweighted(&self) -> f64 {
        mean(self.tasks.iter().map(|task| task.accuracy))
    }

    /// Mean over tasks of their accuracies without knowledge.
    #[must_use]
    pub fn acc_unweighted_knowless(&self) -> f64 {
        mean(self.tasks.iter().map(|task| task.accuracy_knowless))
    }
}

fn mean(values: impl Iterator<Item = f64>) -> f64 {
    let (sum, count) = values.fold((0.0, 0u64), |(sum, count), value| (sum + value, count + 1));
    sum / count.max(1) as f64
}

/// One statement about a question.
struct Statement {
    ids: Vec<TokenId>,
    text: String,
}

/// Answers questions with statements and without, and combines the answers.
///
/// Statements stay token ids on their way from the model that writes to the model that answers. Equal prompts are
/// scored once.
///
/// # Errors
/// When a setting is wrong, or the model or the observer fails.
pub fn evaluate<P: Generate + ScoreChoices>(
    policy: &P,
    encoder: &QuestionEncoder,
    questions: &[Annotated],
    config: &EvaluationConfig,
    observer: &mut dyn Observer,
) -> Result<EvaluationReport> {
    config.validate()?;
    encoder.check_letters(most_choices(questions.iter()))?;
    let encoded =
        questions.iter().map(|item| encoder.question(&item.question.question)).collect::<Result<Vec<_>>>()?;
    let statements = statements(policy, encoder, questions, &encoded, config, observer)?;
    let scores = score(policy, encoder, questions, &encoded, &statements, config, observer)?;
    let mut inference = vec![];
    let mut correct = [0u64; Ensemble::ALL.len()];
    for ((item, statements), (bare, with)) in questions.iter().zip(&statements).zip(scores) {
        let judge = |ensemble| Judgement::new(&bare, &with, item.question.answer_ix, ensemble);
        for (ensembling, correct) in Ensemble::ALL.into_iter().zip(&mut correct) {
            *correct += u64::from(judge(EnsembleConfig { ensembling, ..config.ensemble })?.correct());
        }
        let judgement = judge(config.ensemble)?;
        let texts: Vec<&str> = statements.iter().map(|s| s.text.as_str()).collect();
        inference.push(judgement.inference_item(&item.question, &texts)?);
    }
    Ok(EvaluationReport {
        tasks: per_task(questions, &inference),
        inference,
        ensembles: Ensemble::ALL
            .into_iter()
            .zip(correct)
            .map(|(ensemble, right)| EnsembleAccuracy {
                ensemble,
                accuracy: right as f64 / questions.len().max(1) as f64,
            })
            .collect(),
    })
}

fn statements<P: Generate>(
    policy: &P,
    encoder: &QuestionEncoder,
    questions: &[Annotated],
    encoded: &[Vec<TokenId>],
    config: &EvaluationConfig,
    observer: &mut dyn Observer,
) -> Result<Vec<Vec<Statement>>> {
    match config.knowledge {
        KnowledgeSource::None => Ok(questions.iter().map(|_| vec![]).collect()),
        KnowledgeSource::Given => {
            let given = |text: &str| Ok(Statement { ids: encoder.statement(text)?, text: text.to_string() });
            let number = |item: &Annotated| match config.pad_given {
                true => config.num_samples,
                false => config.num_samples.min(item.knowledges.len()),
            };
            questions.iter().map(|item| item.statements(number(item)).map(given).collect()).collect()
        }
        KnowledgeSource::Sampled | KnowledgeSource::Greedy => {
            let prompts: Vec<Vec<TokenId>> = encoded.iter().map(|q| encoder.prompts.qk(q)).collect();
            let generation = config.generation(encoder);
            let mut done = 0;
            by_length(&prompts, config.batch_size, |batch| {
                let rows: Vec<_> = batch.iter().map(|&i| prompts[i].clone()).collect();
                let seeds: Vec<u64> = batch.iter().map(|&i| derive_seed(config.seed, &[i as u64])).collect();
                let generated = policy.generate(&rows, &generation, &seeds)?;
                done += batch.len();
                observer
                    .progress("writing knowledge", done as u64, prompts.len() as u64)
                    .map_err(Error::Observer)?;
                let statement = |g: ruminate_models::Generated| {
                    Ok(Statement { text: encoder.statement_text(&g.ids)?, ids: g.ids })
                };
                generated.into_iter().map(|samples| samples.into_iter().map(statement).collect()).collect()
            })
        }
    }
}

/// Raw scores of the bare question and of each statement, per choice.
type Scores = (Vec<f64>, Vec<Vec<f64>>);

fn score<P: ScoreChoices>(
    policy: &P,
    encoder: &QuestionEncoder,
    questions: &[Annotated],
    encoded: &[Vec<TokenId>],
    statements: &[Vec<Statement>],
    config: &EvaluationConfig,
    observer: &mut dyn Observer,
) -> Result<Vec<Scores>> {
    let mut asked = vec![];
    for ((item, q), statements) in questions.iter().zip(encoded).zip(statements) {
        let letters = encoder.first_tokens(&item.question.choices)?;
        let with = statements.iter().map(|s| encoder.prompts.qka(q, &s.ids));
        asked.extend(
            std::iter::once(encoder.prompts.qa(q)).chain(with).map(|prompt| (prompt, letters.clone())),
        );
    }
    let progress = |done, total| observer.progress("answering", done, total).map_err(Error::Observer);
    let mut scores = first_token_scores(policy, asked.into_iter(), config.batch_size, progress)?.into_iter();
    let take = |statements: &Vec<Statement>| {
        (scores.next().unwrap_or_default(), scores.by_ref().take(statements.len()).collect())
    };
    Ok(statements.iter().map(take).collect())
}

fn per_task(questions: &[Annotated], inference: &[InferenceItem]) -> Vec<TaskAccuracy> {
    let mut tasks: BTreeMap<usize, (String, usize, u64, u64)> = BTreeMap::new();
    for (item, inferred) in questions.iter().zip(inference) {
        let entry =
            tasks.entry(item.question.task_ix).or_insert_with(|| (item.question.task.clone(), 0, 0, 0));
        entry.1 += 1;
        entry.2 += u64::from(inferred.ok);
        entry.3 += u64::from(inferred.ok_knowless);
    }
    tasks
        .into_values()
        .map(|(task, questions, ok, ok_knowless)| TaskAccuracy {
            task,
            questions,
            accuracy: ok as f64 / questions as f64,
            accuracy_knowless: ok_knowless as f64 / questions as f64,
        })
        .collect()
}

/// Writes the reference's output files below `folder`: `inference/...json`, and `knowledge/...json` where the model
/// wrote the statements. `step` is -1 for the baseline without knowledge and 0 otherwise, as the reference numbers
/// them; `given` is the file that given statements came from.
///
/// # Errors
/// When the folder is not writable.
pub fn write_evaluation(
    folder: &Path,
    report: &EvaluationReport,
    step: i64,
    given: Option<&str>,
) -> Result<Vec<PathBuf>> {
    let mut written = vec![];
    let knowledge_name = match given {
        Some(name) => name.to_string(),
        None => knowledge_file_name(DEFAULT_PREFIX, step),
    };
    if given.is_none() {
        let items: Vec<&KnowledgeItem> = report.inference.iter().map(|item| &item.knowledge).collect();
        written.push(write_items(&folder.join("knowledge"), &knowledge_name, &items)?);
    }
    let name = inference_file_name(DEFAULT_PREFIX, step, &knowledge_name);
    written.push(write_items(&folder.join("inference"), &name, &report.inference)?);
    Ok(written)
}

/// The folder for an evaluation of a checkpoint: the run's folder with `runs` replaced by `eval`, and the step
/// appended. `runs/mine/checkpoints/step-500`, also under the name `best` or `last`, gives `eval/mine_ckp-500`.
/// `None` when the path does not tell the run or the step.
#[must_use]
pub fn evaluation_folder(checkpoint: &Path) -> Option<PathBuf> {
    // The link's own place tells the run, what it points to tells the step.
    let name = std::fs::read_link(checkpoint).unwrap_or_else(|_| checkpoint.to_path_buf());
    let step: u64 = name.file_name()?.to_str()?.strip_prefix("step-")?.parse().ok()?;
    let run = checkpoint.parent()?.parent()?;
    let parts: Vec<_> = run.components().collect();
    let at = parts.iter().rposition(|part| part.as_os_str() == "runs")?;
    let mut name = parts.get(at + 1..)?.iter().collect::<PathBuf>().into_os_string();
    if name.is_empty() {
        return None;
    }
    name.push(format!("_ckp-{step}"));
    Some(parts[..at].iter().collect::<PathBuf>().join("eval").join(name))
}

fn write_items<T: Serialize>(folder: &Path, name: &str, items: &[T]) -> Result<PathBuf> {
    std::fs::create_dir_all(folder).map_err(Error::io("create", folder))?;
    let path = folder.join(name);
    json::write(&path, items)?;
    Ok(path)
}
