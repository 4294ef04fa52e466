//! Staged generation: knowledge, then analyses, then an answer.

use std::collections::HashMap;

use ruminate_datasets::tinythinker::{Draft, Question, Run, Stage, Variant, answer_of};
use ruminate_models::{
    Generate, Generated, GenerationConfig, Sampling, Strategy, TokenId, Tokenizer, by_length, derive_seed,
};
use serde::{Deserialize, Serialize};

use crate::{Collective, Error, Observer, Result};

/// Settings of generation; the defaults are the published ones.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct GenerationSettings {
    /// Longest sequence of the decoder in tokens, the start token included.
    pub max_length: usize,
    /// Temperature where texts are sampled; nothing else changes the distribution.
    pub temperature: f64,
    /// Added to the temperature with each further run of a question; negative values make later runs more careful.
    pub temperature_increase: f64,
    /// Sequences that are written side by side.
    pub batch_size: usize,
    /// Seed of the samples.
    pub seed: u64,
}

impl Default for GenerationSettings {
    fn default() -> Self {
        Self { max_length: 200, temperature: 0.7, temperature_increase: 0.0, batch_size: 256, seed: 42 }
    }
}

impl GenerationSettings {
    /// Checks the settings.
    ///
    /// # Errors
    /// Names the setting that is wrong.
    pub fn validate(&self) -> Result<()> {
        if self.max_length < 2 {
            return Err(Error::config("max_length", "must be at least 2: the start token and one more"));
        }
        if self.batch_size == 0 {
            return Err(Error::config("batch_size", "is 0, but must be at least 1"));
        }
        Ok(self.sampling(0).validate()?)
    }

    /// Checks the settings for so many runs of a question.
    ///
    /// # Errors
    /// Names the setting that is wrong.
    pub fn validate_runs(&self, runs: usize) -> Result<()> {
        self.validate()?;
        let last = self.sampling(runs.saturating_sub(1)).temperature;
        if last.is_finite() && last > 0.0 {
            return Ok(());
        }
        let reason =
            format!("makes the temperature of the last of {runs} runs {last}, which must be above 0");
        Err(Error::config("temperature_increase", reason))
    }

    /// How a run of a question is sampled; runs are counted from 0.
    fn sampling(&self, run: usize) -> Sampling {
        let temperature = self.temperature + run as f64 * self.temperature_increase;
        Sampling { temperature, ..Sampling::default() }
    }
}

/// Which stages sample; the others are greedy, and answers always are.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Decoding {
    /// None.
    #[default]
    Greedy,
    /// Recall and analyze: for votes.
    Random,
    /// Recall alone: for pairs of knowledge.
    RecallPass,
    /// Analyze alone: for pairs of analyses.
    AnalyzePass,
}

impl Decoding {
    fn samples(self, stage: Stage) -> bool {
        match stage {
            Stage::Recall => matches!(self, Self::Random | Self::RecallPass),
            Stage::Analyze => matches!(self, Self::Random | Self::AnalyzePass),
            Stage::Summarize => false,
        }
    }
}

/// How a trained student answers; the defaults are the published ones.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct InferenceConfig {
    /// `greedy`, or `random` for votes.
    pub decoding: Decoding,
    /// Runs of each question.
    pub runs: usize,
    /// How texts are written.
    pub generation: GenerationSettings,
}

impl InferenceConfig {
    /// Checks the settings.
    ///
    /// # Errors
    /// Names the setting that is wrong.
    pub fn validate(&self) -> Result<()> {
        if self.runs == 0 {
            return Err(Error::config("inference.runs", "is 0, but must be at least 1"));
        }
        self.generation.validate_runs(self.runs)
    }
}

impl Default for InferenceConfig {
    fn default() -> Self {
        Self { decoding: Decoding::Greedy, runs: 1, generation: GenerationSettings::default() }
    }
}

/// A question on its way through the stages, and the label that is right.
#[derive(Debug, Clone, PartialEq)]
pub struct Asked {
    /// The question.
    pub id: String,
    /// What is given: nothing, or knowledge that is not to be recalled again.
    pub draft: Draft,
    /// The label that is right.
    pub gold: char,
}

impl From<&Question> for Asked {
    fn from(question: &Question) -> Self {
        Self { id: question.id.clone(), draft: Draft::new(question), gold: question.gold }
    }
}

/// What a student wrote in one run.
#[derive(Debug, Clone, PartialEq)]
pub struct Response {
    /// Knowledge, analyses and answer.
    pub run: Run,
    /// What it wrote in its last stage.
    pub summarize: String,
}

/// A run without what is known of its question: for files, and for other processes.
#[derive(Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct Written {
    recall: Option<String>,
    analyses: Vec<(char, String)>,
    answer: Option<char>,
}

impl From<&Run> for Written {
    fn from(run: &Run) -> Self {
        let (recall, analyses) = (run.draft.recall().map(String::from), run.draft.analyses().to_vec());
        Self { recall, analyses, answer: run.answer }
    }
}

impl Written {
    /// The run again.
    pub(super) fn of(&self, asked: &Asked) -> Run {
        Run {
            id: asked.id.clone(),
            draft: asked.draft.clone().stating(self.recall.as_deref(), &self.analyses),
            gold: asked.gold,
            answer: self.answer,
        }
    }
}

/// A student: a model that has learnt the stages of a variant.
#[derive(Debug)]
pub struct Student<'a, P> {
    /// The model.
    pub policy: &'a P,
    /// Its tokenizer.
    pub tokenizer: &'a Tokenizer,
    /// Its stages.
    pub variant: Variant,
}

impl<P: Generate> Student<'_, P> {
    /// Answers questions as configured.
    ///
    /// # Errors
    /// Those of [`respond`](Self::respond).
    pub fn infer(
        &self,
        questions: &[Question],
        config: &InferenceConfig,
        observer: &mut dyn Observer,
    ) -> Result<Vec<Vec<Response>>> {
        let asked: Vec<Asked> = questions.iter().map(Asked::from).collect();
        self.respond(&asked, config.decoding, config.runs, &config.generation, observer)
    }

    /// Lets the student go through its stages, `runs` times per question. One stage after the other is written for all questions, so
    /// that batches are full and of similar length. Equal prompts of a greedy stage are answered once. A sample depends on seed, question
    /// and run, and on nothing else in the batch.
    ///
    /// The result has `runs` responses for each of `asked`.
    ///
    /// # Errors
    /// When a setting is wrong, or the model or the observer fails.
    pub fn respond(
        &self,
        asked: &[Asked],
        decoding: Decoding,
        runs: usize,
        settings: &GenerationSettings,
        observer: &mut dyn Observer,
    ) -> Result<Vec<Vec<Response>>> {
        settings.validate_runs(runs)?;
        if runs == 0 {
            return Err(Error::config("runs", "are 0, but must be at least 1"));
        }
        // The runs of a question are one draft until a stage samples.
        let mut drafts: Vec<Vec<Draft>> = asked.iter().map(|asked| vec![asked.draft.clone()]).collect();
        let seed_of = |id: &str, stage: Stage, run: usize, option: usize| {
            derive_seed(settings.seed, &[hash(id), stage as u64, run as u64, option as u64])
        };
        let mut writer = Writer { student: self, settings, observer };
        if self.variant.recalls() {
            let todo: Vec<usize> = (0..asked.len()).filter(|&i| drafts[i][0].recall().is_none()).collect();
            let sampled = decoding.samples(Stage::Recall);
            let prompts = todo
                .iter()
                .map(|&i| Prompt {
                    text: drafts[i][0].recall_prompt(),
                    seed: seed_of(&asked[i].id, Stage::Recall, 0, 0),
                    run: 0,
                    samples: if sampled { runs } else { 1 },
                })
                .collect::<Vec<_>>();
            for (&i, texts) in todo.iter().zip(writer.write(Stage::Recall, &prompts, sampled)?) {
                drafts[i] = texts
                    .iter()
                    .map(|text| {
                        let mut draft = drafts[i][0].clone();
                        draft.set_recall(text);
                        draft
                    })
                    .collect();
            }
        }
        if self.variant.analyzes() {
            let sampled = decoding.samples(Stage::Analyze);
            let mut prompts = vec![];
            for (asked, drafts) in asked.iter().zip(&drafts) {
                // Runs that still are one split here.
                let samples = if sampled && drafts.len() < runs { runs } else { 1 };
                for (run, draft) in drafts.iter().enumerate() {
                    prompts.extend(draft.labels().iter().enumerate().map(|(option, &label)| Prompt {
                        text: draft.analyze_prompt(label),
                        seed: seed_of(&asked.id, Stage::Analyze, run, option),
                        run,
                        samples,
                    }));
                }
            }
            let mut written = writer.write(Stage::Analyze, &prompts, sampled)?.into_iter();
            for drafts in &mut drafts {
                *drafts = drafts
                    .iter()
                    .flat_map(|draft| {
                        let labels = draft.labels().to_vec();
                        let texts: Vec<Vec<String>> = written.by_ref().take(labels.len()).collect();
                        let samples = texts.first().map_or(0, Vec::len);
                        (0..samples).map(move |sample| {
                            let mut draft = draft.clone();
                            for (&label, texts) in labels.iter().zip(&texts) {
                                draft.push_analysis(label, &texts[sample]);
                            }
                            draft
                        })
                    })
                    .collect();
            }
        }
        let prompts: Vec<Prompt> = drafts
            .iter()
            .flatten()
            .map(|draft| Prompt { text: draft.summarize_prompt(), seed: 0, run: 0, samples: 1 })
            .collect();
        let mut written = writer.write(Stage::Summarize, &prompts, false)?.into_iter().flatten();
        let mut responses = Vec::with_capacity(asked.len());
        for (asked, drafts) in asked.iter().zip(drafts) {
            let mut of_question: Vec<Response> = drafts
                .into_iter()
                .zip(written.by_ref())
                .map(|(draft, summarize)| {
                    let answer = answer_of(&summarize, draft.labels());
                    Response { run: Run { id: asked.id.clone(), draft, gold: asked.gold, answer }, summarize }
                })
                .collect();
            if of_question.len() < runs {
                of_question = of_question.into_iter().cycle().take(runs).collect();
            }
            responses.push(of_question);
        }
        Ok(responses)
    }
}

impl<P: Generate> Student<'_, P> {
    /// As [`respond`](Self::respond); the processes divide the questions.
    pub(super) fn respond_among(
        &self,
        collective: &Collective,
        asked: &[Asked],
        (decoding, runs): (Decoding, usize),
        settings: &GenerationSettings,
        observer: &mut dyn Observer,
    ) -> Result<Vec<Vec<Response>>> {
        if collective.size() == 1 {
            return self.respond(asked, decoding, runs, settings, observer);
        }
        let written: Vec<Vec<(Written, String)>> = collective.map(asked.len(), |mine| {
            let part: Vec<Asked> = mine.iter().map(|&i| asked[i].clone()).collect();
            let responses = self.respond(&part, decoding, runs, settings, observer)?;
            let told = |response: Response| ((&response.run).into(), response.summarize);
            Ok(responses.into_iter().map(|of| of.into_iter().map(told).collect()).collect())
        })?;
        let responses = asked.iter().zip(written).map(|(asked, of)| {
            let response = |(run, summarize): (Written, String)| Response { run: run.of(asked), summarize };
            of.into_iter().map(response).collect()
        });
        Ok(responses.collect())
    }
}

struct Prompt {
    text: String,
    seed: u64,
    /// The run of its first sample.
    run: usize,
    samples: usize,
}

/// Writes stage after stage.
struct Writer<'a, 'o, P> {
    student: &'a Student<'a, P>,
    settings: &'a GenerationSettings,
    observer: &'o mut dyn Observer,
}

impl<P: Generate> Writer<'_, '_, P> {
    /// The texts for each prompt.
    fn write(&mut self, stage: Stage, prompts: &[Prompt], sampled: bool) -> Result<Vec<Vec<String>>> {
        // Greedy texts depend on the prompt alone, so each prompt needs one.
        let mut seen: HashMap<&str, usize> = HashMap::new();
        let mut distinct: Vec<&Prompt> = vec![];
        let place: Vec<usize> = prompts
            .iter()
            .map(|prompt| {
                let next = distinct.len();
                let at = if sampled { next } else { *seen.entry(&prompt.text).or_insert(next) };
                if at == next {
                    distinct.push(prompt);
                }
                at
            })
            .collect();
        let texts = if sampled && self.settings.temperature_increase != 0.0 {
            self.by_run(stage, &distinct)?
        } else {
            let strategy =
                if sampled { Strategy::Sample(self.settings.sampling(0)) } else { Strategy::Greedy };
            self.write_distinct(stage, &distinct, strategy)?
        };
        Ok(place.into_iter().map(|at| texts[at].clone()).collect())
    }

    /// The texts for each prompt where the temperature depends on the run.
    fn by_run(&mut self, stage: Stage, prompts: &[&Prompt]) -> Result<Vec<Vec<String>>> {
        let mut texts = vec![vec![]; prompts.len()];
        let runs = prompts.iter().map(|prompt| prompt.run + prompt.samples).max().unwrap_or(0);
        for run in 0..runs {
            let of_run = |prompt: &Prompt| (prompt.run..prompt.run + prompt.samples).contains(&run);
            let rows: Vec<usize> = (0..prompts.len()).filter(|&row| of_run(prompts[row])).collect();
            let single = |&row: &usize| {
                let Prompt { text, seed, .. } = prompts[row];
                Prompt { text: text.clone(), seed: derive_seed(*seed, &[run as u64]), run, samples: 1 }
            };
            let singles: Vec<Prompt> = rows.iter().map(single).collect();
            let strategy = Strategy::Sample(self.settings.sampling(run));
            let written = self.write_distinct(stage, &singles.iter().collect::<Vec<_>>(), strategy)?;
            rows.into_iter().zip(written).for_each(|(row, written)| texts[row].extend(written));
        }
        Ok(texts)
    }

    fn write_distinct(
        &mut self,
        stage: Stage,
        distinct: &[&Prompt],
        strategy: Strategy,
    ) -> Result<Vec<Vec<String>>> {
        let tokenizer = self.student.tokenizer;
        let ids = distinct
            .iter()
            .map(|prompt| Ok(tokenizer.encode(&prompt.text)?))
            .collect::<Result<Vec<Vec<TokenId>>>>()?;
        // All prompts of a stage have as many samples, except where some questions came with knowledge.
        let samples = distinct.iter().map(|prompt| prompt.samples).max().unwrap_or(1);
        let config = GenerationConfig {
            strategy,
            // The start token is one of the sequence's.
            max_new_tokens: self.settings.max_length - 1,
            samples_per_prompt: samples,
            ..GenerationConfig::default()
        };
        let (mut done, total) = (0, ids.len() as u64);
        by_length(&ids, (self.settings.batch_size / samples).max(1), |rows| {
            let prompts: Vec<Vec<TokenId>> = rows.iter().map(|&row| ids[row].clone()).collect();
            let seeds: Vec<u64> = rows.iter().map(|&row| distinct[row].seed).collect();
            let written = self.student.policy.generate(&prompts, &config, &seeds)?;
            done += rows.len() as u64;
            self.observer.progress(stage.name(), done, total).map_err(Error::Observer)?;
            let text = |sample: &Generated| Ok(tokenizer.decode_clean(&sample.ids)?);
            let texts = |(samples, &row): (Vec<Generated>, &usize)| {
                samples.iter().take(distinct[row].samples).map(text).collect()
            };
            written.into_iter().zip(rows).map(texts).collect::<Result<Vec<Vec<String>>>>()
        })
    }
}

/// FNV-1a: a number for an id that is the same in every version.
pub(super) fn hash(id: &str) -> u64 {
    id.bytes().fold(0xCBF2_9CE4_8422_2325, |hash, byte| {
        (hash ^ u64::from(byte)).wrapping_mul(0x0000_0100_0000_01B3)
    })
}
