//! The loop of STaR (algorithm 1): reason, keep what led to the right answer, train, and again.

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};

use ruminate::algorithms::trainer::verify;
use ruminate::datasets::json;
use ruminate::models::{Generate, GenerationConfig, Model, Tokenizer, derive_seed};
use ruminate::run::program::{Configuration, Rounds, enter, fit_in};
use ruminate::run::{
    ConfigError, ModelSection, Outcome, ReportPage, RunArgs, RunDirError, Table, Worker, print_json,
    resolve_link,
};
use serde::{Deserialize, Serialize};
use tch::Kind;

use crate::config::{DataSection, Phase, Row, SamplingSection, StarConfig};
use crate::finetune::Finetune;

/// An iteration that is over.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct Iteration {
    /// The checkpoint that reasoned.
    pub(crate) student: PathBuf,
    /// The checkpoint that came of it.
    pub(crate) model: PathBuf,
    pub(crate) questions: usize,
    /// Questions that it answered by itself, and those that it answered only with a hint.
    pub(crate) answered: usize,
    pub(crate) rationalized: usize,
    /// Rationales that were trained on.
    pub(crate) kept: usize,
    /// For each test question, whether the new model's greedy answer is right.
    pub(crate) right: Vec<bool>,
}

pub(crate) fn run(args: &RunArgs) -> anyhow::Result<Outcome> {
    args.refuse(&["--resume-from", "--dry-run"])?;
    let out = args.out.as_deref().ok_or(RunDirError::NoFolder)?;
    let mut config = StarConfig::load(args)?;
    enter(&mut config.phase, Phase::Iterate, |_| "star finetune".into())?;
    config.model.pretrained = Some(resolve_link(base(&config)?));
    if let Some(outcome) = args.launch()? {
        return Ok(outcome);
    }
    let worker = args.worker()?;
    let _dir = args.open(&config)?;
    let Some((start, iterations)) = iterate(&config, out, &worker)? else { return Ok(Outcome::Interrupted) };
    if worker.collective.is_main_process() {
        if args.json {
            let start = share(&start);
            print_json(
                &serde_json::json!({ "system": "star", "phase": "iterate", "start": start, "iterations": iterations }),
            )?;
        } else {
            table(&start, &iterations).print()?;
        }
    }
    let done = iterations.len() as u64 == config.iterations;
    Ok(if done { Outcome::Done } else { Outcome::Interrupted })
}

/// The model that every iteration trains.
fn base(config: &StarConfig) -> Result<&PathBuf, ConfigError> {
    let reason = "model.pretrained: name the model to start from, such as a checkpoint of `star finetune`";
    config.model.pretrained.as_ref().ok_or_else(|| ConfigError::invalid(reason))
}

/// Goes through the iterations. Returns which test questions the first model answers, and the iterations; `None` when the user asked to stop
/// before the first.
pub(crate) fn iterate(
    config: &StarConfig,
    out: &Path,
    worker: &Worker,
) -> anyhow::Result<Option<(Vec<bool>, Vec<Iteration>)>> {
    let base = base(config)?;
    let (train, test) = (DataSection::read(&config.data.train)?, DataSection::read(&config.data.test)?);
    let Some(start) = answers(config, base, &test, &out.join("start"), worker)? else { return Ok(None) };
    let rounds = Rounds { name: "iteration", count: config.iterations, out, worker };
    let iteration = |number: u64, folder: &Path, before: &[Iteration]| {
        let student = before.last().map_or(base, |last| &last.model);
        let Some(kept) = reason(config, number, student, &train, folder, worker)? else { return Ok(None) };
        // From the first model again, so that it does not overfit; the last one only reasons (section 3.1).
        let mut training = StarConfig { phase: Some(Phase::Finetune), ..config.clone() };
        training.model = ModelSection { pretrained: Some(base.clone()), ..config.model.clone() };
        training.trainer.steps =
            (config.trainer.steps as f64 * config.step_growth.powi(number as i32 - 1)).round() as u64;
        let command = Finetune { kept: Some(folder.join(KEPT)) };
        let trained = fit_in(&command, training, folder, worker)?;
        let Some(trained) = trained.filter(|trained| trained.is_finished()) else { return Ok(None) };
        let model = trained.fitted.last;
        let right = answers(config, &model, &test, &folder.join("test"), worker)?;
        Ok(right.map(|right| Iteration { student: student.clone(), model, right, ..kept }))
    };
    let report = |done: &[Iteration]| Ok(write_report(&start, done, &rounds).map(drop)?);
    let iterations = rounds.run(iteration, report)?;
    Ok(Some((start, iterations)))
}

/// Rationales to learn from, as rows of `data.train`.
const KEPT: &str = "kept.jsonl";

/// Lets a model reason about all questions, tells it the answers of those that it got wrong, and keeps the rationales that led to the right
/// answer; `None` when the user asked to stop.
fn reason(
    config: &StarConfig,
    number: u64,
    student: &Path,
    rows: &[Row],
    folder: &Path,
    worker: &Worker,
) -> anyhow::Result<Option<Iteration>> {
    let section = &config.sampling;
    let mut writer = Writer::open(student, config, worker)?;
    let how = section.generation(section.samples, section.temperature);
    let rationales = |writer: &mut Writer<'_>, rows: &[&Row], hint: bool| {
        let prompts: Vec<String> = rows.iter().map(|row| config.data.prompt(row, hint)).collect();
        let seed = derive_seed(section.seed, &[number, u64::from(hint)]);
        let Some(texts) = writer.write(&prompts, &how, seed, folder)? else { return Ok(None) };
        // Each rationale once.
        let right = |(row, texts): (&&Row, Vec<String>)| -> BTreeSet<String> {
            let parsed = texts.iter().filter_map(|text| config.data.parse(text));
            parsed.filter(|(_, answer)| *answer == row.answer).map(|(rationale, _)| rationale).collect()
        };
        anyhow::Ok(Some(rows.iter().zip(texts).map(right).collect::<Vec<_>>()))
    };
    let all: Vec<&Row> = rows.iter().collect();
    let Some(own) = rationales(&mut writer, &all, false)? else { return Ok(None) };
    let wrong: Vec<&Row> =
        all.iter().zip(&own).filter(|(_, right)| right.is_empty()).map(|(row, _)| *row).collect();
    let mut hinted = vec![];
    if section.rationalize {
        let Some(texts) = rationales(&mut writer, &wrong, true)? else { return Ok(None) };
        hinted = texts;
    }
    let answered = rows.len() - wrong.len();
    let rationalized = hinted.iter().filter(|right| !right.is_empty()).count();
    let pairs = all.iter().zip(&own).chain(wrong.iter().zip(&hinted));
    let kept: Vec<Row> = pairs
        .flat_map(|(row, right)| {
            right.iter().map(|rationale| Row { rationale: rationale.clone(), ..(*row).clone() })
        })
        .collect();
    if kept.is_empty() {
        let reason =
            "no rationale led to the right answer; begin with a better model, or raise sampling.samples";
        return Err(ConfigError::invalid(reason).into());
    }
    worker.collective.first(|| anyhow::Ok(json::write_lines(&folder.join(KEPT), &kept)?))?;
    let (student, questions) = (student.to_path_buf(), rows.len());
    let model = PathBuf::new();
    Ok(Some(Iteration { student, model, questions, answered, rationalized, kept: kept.len(), right: vec![] }))
}

/// Which test questions a model answers, greedily; `None` when the user asked to stop.
fn answers(
    config: &StarConfig,
    model: &Path,
    rows: &[Row],
    folder: &Path,
    worker: &Worker,
) -> anyhow::Result<Option<Vec<bool>>> {
    let prompts: Vec<String> = rows.iter().map(|row| config.data.prompt(row, false)).collect();
    let texts = Writer::open(model, config, worker)?.write(
        &prompts,
        &config.sampling.generation(1, 0.0),
        0,
        folder,
    )?;
    let right = |(row, texts): (&Row, Vec<String>)| {
        texts.first().and_then(|text| config.data.parse(text)).is_some_and(|(_, answer)| answer == row.answer)
    };
    Ok(texts.map(|texts| rows.iter().zip(texts).map(right).collect()))
}

/// A model that writes, in all processes together. Texts are kept in a folder until its run is removed, so none is written twice.
struct Writer<'a> {
    folder: &'a Path,
    model: Model,
    tokenizer: Tokenizer,
    section: &'a SamplingSection,
    worker: &'a Worker,
}

impl<'a> Writer<'a> {
    fn open(folder: &'a Path, config: &'a StarConfig, worker: &'a Worker) -> anyhow::Result<Self> {
        verify(folder)?;
        let model = Model::load(folder, Kind::Float, worker.device)?;
        Ok(Self { folder, model, tokenizer: Tokenizer::open(folder)?, section: &config.sampling, worker })
    }

    fn write(
        &mut self,
        prompts: &[String],
        how: &GenerationConfig,
        seed: u64,
        kept_in: &Path,
    ) -> anyhow::Result<Option<Vec<Vec<String>>>> {
        let model = self.worker.evaluated(&self.model, self.folder, Some(kept_in))?;
        let mut observer = self.worker.console();
        self.worker.interruptible(|| {
            let mut texts = vec![];
            for chunk in prompts.chunks(self.section.batch) {
                let first = texts.len();
                let ids =
                    chunk.iter().map(|text| self.tokenizer.encode(text)).collect::<Result<Vec<_>, _>>()?;
                let seeds: Vec<u64> =
                    (first..first + chunk.len()).map(|i| derive_seed(seed, &[i as u64])).collect();
                for written in model.generate(&ids, how, &seeds)? {
                    let text = |ids: &[i64]| -> anyhow::Result<String> {
                        Ok(self.section.stopped(&self.tokenizer.decode(ids, true)?).to_owned())
                    };
                    texts.push(written.iter().map(|of| text(&of.ids)).collect::<Result<_, _>>()?);
                }
                let (done, all) = (texts.len() as u64, prompts.len() as u64);
                observer.progress("rationales", done, all).map_err(ruminate::algorithms::Error::Observer)?;
            }
            Ok(texts)
        })
    }
}

/// The share of right answers.
pub(crate) fn share(right: &[bool]) -> f64 {
    right.iter().filter(|&&right| right).count() as f64 / right.len().max(1) as f64
}

/// The iterations side by side.
pub(crate) fn table(start: &[bool], iterations: &[Iteration]) -> Table {
    let mut table = Table::new([
        "model",
        "questions",
        "answered",
        "with a hint only",
        "rationales kept",
        "test accuracy",
    ]);
    let accuracy = |right: &[bool]| format!("{:.3}", share(right));
    table.row(["start", "", "", "", "", &accuracy(start)]);
    for (i, of) in iterations.iter().enumerate() {
        let counts = [of.questions, of.answered, of.rationalized, of.kept].map(|count| count.to_string());
        table
            .row([vec![format!("iteration {}", i + 1)], counts.to_vec(), vec![accuracy(&of.right)]].concat());
    }
    table
}

fn write_report(
    start: &[bool],
    iterations: &[Iteration],
    rounds: &Rounds<'_>,
) -> Result<PathBuf, RunDirError> {
    let mut page =
        ReportPage::new("STaR", "A model that learns from its own rationales that led to right answers.");
    page.heading("Iterations")
        .note("Each iteration reasons with the model of the one before about all questions, and trains the first model on what led to right answers.")
        .table(&table(start, iterations));
    rounds.write_report(&mut page, iterations.len(), &[("train/loss", "loss")])
}
