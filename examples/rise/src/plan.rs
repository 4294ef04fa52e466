//! `--dry-run` of what writes: collecting, evaluating, and the loop.

use std::path::Path;

use ruminate::algorithms::{Networks, Pass, Plan, Precision, Work, WritingPlan};
use ruminate::datasets::Split;
use ruminate::datasets::chat::{ChatTemplate, Message};
use ruminate::datasets::environments::Problem;
use ruminate::models::{BatchShape, GenerationConfig, ModelConfig, ModelShape, Tokenizer};
use ruminate::run::{
    DataRow, DryRun, ModelSection, Outcome, PlannedShape, RunArgs, ShownPlan, Table, print_json,
    print_tables, writing,
};
use serde_json::{Value, json};
use tch::{Device, Kind};

use crate::config::{Evaluating, GenerationSection, Player, RiseConfig};
use crate::iterate::first_student;
use crate::players::{UNLIMITED, generation};

/// Problems whose prompts are measured, evenly spread over the data.
const MEASURED: usize = 4096;

/// A model that writes.
struct Writer<'a> {
    name: String,
    model: ModelSection,
    template: &'a str,
    section: &'a GenerationSection,
    /// Answers in each turn of an episode that it is asked in.
    samples: Vec<usize>,
    /// Turns of an episode.
    turns: usize,
    /// Problems that are asked about at a time.
    batch: usize,
}

/// A part of a dry run: what is printed, and what would keep the run from starting.
struct Part {
    shown: ShownPlan,
    problem: Option<anyhow::Error>,
}

/// The plan of `rise collect`.
pub(crate) fn collect(config: &RiseConfig, args: &RunArgs) -> anyhow::Result<Outcome> {
    let device = args.setup()?;
    let section = &config.collection;
    let part = collecting(config, (&section.models, &section.samples), section.student.as_deref(), device)?;
    print(vec![("collect", part)], args.json)
}

/// The plan of `rise evaluate`.
pub(crate) fn evaluate(config: &RiseConfig, args: &RunArgs) -> anyhow::Result<Outcome> {
    let device = args.setup()?;
    let model = ModelSection::of_folder(config.evaluation.model.as_deref().unwrap_or(Path::new("")));
    let part = evaluating(config, &model, config.evaluation.setting, device)?;
    print(vec![("evaluate", part)], args.json)
}

/// The plan of the last of the iterations, which takes most, and of all evaluations of one model.
pub(crate) fn iterate(config: &RiseConfig, args: &RunArgs) -> anyhow::Result<Outcome> {
    let device = args.setup()?;
    let section = &config.iteration;
    let turns = usize::try_from(section.iterations)?;
    let models = [vec![Player::Student; turns], vec![section.last]].concat();
    let samples = [vec![1; turns], vec![section.last_samples]].concat();
    let student = first_student(config)?;
    let mut parts = vec![("collect", collecting(config, (&models, &samples), Some(&student), device)?)];
    parts.push(("finetune", training(config, turns + 1, args, device)?));
    let model = ModelSection::of_folder(&student);
    for &setting in &section.evaluate {
        parts.push((setting.name(), evaluating(config, &model, setting, device)?));
    }
    print(parts, args.json)
}

fn collecting(
    config: &RiseConfig,
    (models, samples): (&[Player], &[usize]),
    student: Option<&Path>,
    device: Device,
) -> anyhow::Result<Part> {
    let section = &config.collection;
    let turns = models.len();
    let of = |player| -> Vec<usize> {
        models.iter().zip(samples).filter(|(of, _)| **of == player).map(|(_, &count)| count).collect()
    };
    let writer = |name: &str, model, template, player| Writer {
        name: name.into(),
        model,
        template,
        section: &section.generation,
        samples: of(player),
        turns,
        batch: section.batch,
    };
    let folder = ModelSection::of_folder;
    let student = student.map_or_else(|| config.model.clone(), folder);
    let mut writers = vec![writer("student", student, &*config.chat.template, Player::Student)];
    if let Some(teacher) = &section.teacher_model {
        let template = section.teacher_template.as_ref().unwrap_or(&config.chat.template);
        writers.push(writer("teacher", folder(teacher), template, Player::Teacher));
    }
    writers.retain(|writer| !writer.samples.is_empty());
    part(config, &writers, config.data.training(), section.generation.precision, device)
}

fn evaluating(
    config: &RiseConfig,
    model: &ModelSection,
    setting: Evaluating,
    device: Device,
) -> anyhow::Result<Part> {
    let mut section = config.evaluation.clone();
    section.setting = setting;
    let samples = section.rollout(config.data.compat).samples;
    let writer = Writer {
        name: "model".into(),
        model: model.clone(),
        template: &config.chat.template,
        section: &section.generation,
        turns: samples.len(),
        samples,
        batch: section.batch,
    };
    let problems = config.data.read(&section.problems, section.limit);
    part(config, &[writer], problems, section.generation.precision, device)
}

/// The training of the last iteration, on examples as long as they may be, half of each a dialogue and half an answer.
fn training(config: &RiseConfig, turns: usize, args: &RunArgs, device: Device) -> anyhow::Result<Part> {
    let PlannedShape { shape, missing } = config.model.planned()?;
    let (training, mut trainer) = (&config.finetune.training, config.finetune.trainer.clone());
    let asked = config.data.training().map_or(0, |problems| problems.len());
    // Every attempt ends an example, at most.
    let examples = asked * turns;
    trainer.steps = training.steps(examples, &trainer, args.processes());
    let half = [training.max_length as f64 / 2.0; 2];
    let (times, rows) = (trainer.accumulate as f64, training.batch_size);
    let pass = Pass { work: Work::Training, times, networks: 1, rows, source: half, target: half };
    let plan = Plan::new(&trainer, Networks::single(&shape), &[pass], 1.0).across(args.processes());
    let problem = missing.map(anyhow::Error::from);
    let problems = problem.iter().map(|error| format!("{error:#}")).collect();
    let task = config.data.benchmark.to_string();
    let data = vec![DataRow { task, split: Split::Train, questions: asked, instances: examples }];
    let shown = DryRun { plan, data, problems, device, out: args.out.as_deref() }.shown();
    Ok(Part { shown, problem })
}

/// The plan of models that answer problems. Where problems or tokenizer are missing, prompts are as long as they may be.
fn part(
    config: &RiseConfig,
    writers: &[Writer<'_>],
    problems: anyhow::Result<Vec<Problem>>,
    precision: Precision,
    device: Device,
) -> anyhow::Result<Part> {
    let (problems, mut problem) = match problems {
        Ok(problems) => (problems, None),
        Err(error) => (vec![], Some(error)),
    };
    let mut plans = vec![];
    for writer in writers {
        let PlannedShape { shape, missing } = writer.model.planned()?;
        let measured = writer.model.tokenizer(&shape).map_err(Into::into);
        let measured = measured.and_then(|tokenizer| prompt_tokens(config, writer, &tokenizer, &problems));
        let longest = measured.as_ref().ok().copied();
        problem = problem.or(missing.map(Into::into)).or(measured.err());
        plans.push(writer.plan(&shape, problems.len(), longest, device));
    }
    let mut shown = writing(&plans, precision, device);
    shown.json["problems"] = json!(problem.iter().map(|error| format!("{error:#}")).collect::<Vec<_>>());
    shown.json["data"] = json!({ "benchmark": config.data.benchmark, "problems": problems.len() });
    let mut data = Table::new(["benchmark", "problems"]);
    data.row([config.data.benchmark.to_string(), problems.len().to_string()]);
    shown.tables.insert(0, data);
    Ok(Part { shown, problem })
}

/// Tokens of the longest first prompt.
fn prompt_tokens(
    config: &RiseConfig,
    writer: &Writer<'_>,
    tokenizer: &Tokenizer,
    problems: &[Problem],
) -> anyhow::Result<usize> {
    let template = ChatTemplate::select(writer.template, &writer.model.tokenizer_folder())?;
    let environment = config.data.environment();
    let tokens = |problem: &Problem| -> anyhow::Result<usize> {
        let mut messages = vec![];
        if let Some([question, answer]) = environment.demonstration() {
            messages.extend([Message::new("user", question), Message::new("agent", answer)]);
        }
        messages.push(Message::new("user", environment.opening(problem)));
        Ok(tokenizer.encode_with_offsets(&template.prompt(&messages)?)?.ids.len())
    };
    let every = problems.len().div_ceil(MEASURED).max(1);
    let tokens = problems.iter().step_by(every).map(tokens).collect::<anyhow::Result<Vec<_>>>()?;
    Ok(tokens.into_iter().max().unwrap_or(0))
}

impl Writer<'_> {
    fn plan(
        &self,
        shape: &ModelConfig,
        problems: usize,
        measured: Option<usize>,
        device: Device,
    ) -> WritingPlan {
        let kind = match self.section.precision {
            Precision::F32 => Kind::Float,
            Precision::Bf16 => Kind::BFloat16,
        };
        let most = self.samples.iter().copied().max().unwrap_or(0).max(1);
        let new = self.section.max_new_tokens;
        let config = GenerationConfig { samples_per_prompt: most, ..generation(self.section, device) };
        let context = match self.section.context_length {
            0 => shape.context_length().unwrap_or(UNLIMITED),
            tokens => tokens,
        };
        // Each turn adds an answer, and the question again.
        let room = context.saturating_sub(new + 1);
        let longest = measured.map_or(room, |first| room.min(first + (self.turns - 1) * (new + first)));
        let batch = if problems == 0 { self.batch } else { self.batch.min(problems) };
        let bytes = |prompts, longest, rows, new| shape.decoding_bytes(prompts, longest, rows, new, kind);
        let (rows_in_flight, decoding) = config.rows_in_flight(batch, longest, device == Device::Cpu, &bytes);
        let answers = problems * self.samples.iter().sum::<usize>();
        let prompts = BatchShape {
            rows: (problems * self.samples.len()) as f64,
            source: measured.unwrap_or(longest) as f64,
            target: 0.0,
        };
        let written = BatchShape { rows: answers as f64, source: 0.0, target: new as f64 };
        WritingPlan {
            name: self.name.clone(),
            parameters: shape.parameter_count(),
            weights: shape.parameter_count() * kind.elt_size_in_bytes() as u64,
            answers: answers as u64,
            tokens: (answers * new) as u64,
            rows: batch * most,
            rows_in_flight,
            decoding,
            flops: shape.forward_flops(prompts) + shape.forward_flops(written),
        }
    }
}

/// Prints all parts, and fails as the run would.
fn print(parts: Vec<(&str, Part)>, as_json: bool) -> anyhow::Result<Outcome> {
    if as_json {
        let values: serde_json::Map<String, Value> =
            parts.iter().map(|(name, part)| ((*name).to_string(), part.shown.json.clone())).collect();
        print_json(&json!({ "system": "rise", "plan": values }))?;
    } else {
        let mut tables = vec![];
        for (name, part) in &parts {
            let mut heading = Table::new([format!("plan of {name}")]);
            heading.row([String::new()]);
            tables.push(heading);
            tables.extend(part.shown.tables.iter().cloned());
        }
        print_tables(&tables)?;
    }
    parts.into_iter().find_map(|(_, part)| part.problem).map_or(Ok(Outcome::Done), Err)
}
