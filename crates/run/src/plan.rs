//! `--dry-run`: what a run would do and need, before it does and needs anything.

use std::path::Path;
use std::time::Instant;

use ruminate_algorithms::{Plan, Precision, WritingPlan};
use ruminate_datasets::Split;
use ruminate_models::ModelConfig;
use serde::Serialize;
use serde_json::{Value, json};
use tch::{Device, Kind, Tensor};

use crate::cli::RunArgs;
use crate::exit::Outcome;
use crate::host::{self, bytes};
use crate::model::{ModelSection, PlannedShape};
use crate::output::{Table, duration, print_json, print_tables};

/// What a dry run knows beside the [`Plan`].
#[derive(Debug, Clone)]
pub struct DryRun<'a> {
    /// What training takes.
    pub plan: Plan,
    /// The training data. Without any, the plan rests on the largest lengths that the settings allow.
    pub data: Vec<DataRow>,
    /// Why the run would not start as it is; only for `--json`, because the caller ends with them as errors.
    pub problems: Vec<String>,
    /// Where the run would compute.
    pub device: Device,
    /// Its folder, where it is known.
    pub out: Option<&'a Path>,
}

/// A row of the table of the training data.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct DataRow {
    /// Task or data set.
    pub task: String,
    /// Part of the data.
    pub split: Split,
    /// Questions.
    pub questions: usize,
    /// Training instances.
    pub instances: usize,
}

/// A plan as it is shown.
#[derive(Debug, Clone)]
pub struct ShownPlan {
    /// For programs.
    pub json: Value,
    /// For people.
    pub tables: Vec<Table>,
}

/// The plan of a step of a command, and why the step would not start as it is.
#[derive(Debug)]
pub struct PlanPart {
    /// The step's name.
    pub name: String,
    /// The tables and the JSON to print.
    pub shown: ShownPlan,
    /// The reason why the step would not start.
    pub problem: Option<anyhow::Error>,
}

impl PlanPart {
    /// The plan of a training.
    ///
    /// # Errors
    /// There is neither a model nor a published one of its folder's name, or the device is not there.
    pub fn training(
        model: &ModelSection,
        plan: impl FnOnce(&ModelConfig) -> Plan,
        data: DataRow,
        args: &RunArgs,
    ) -> anyhow::Result<Self> {
        let PlannedShape { shape, missing } = model.planned()?;
        let problem = missing.map(anyhow::Error::from);
        let problems = problem.iter().map(|error| format!("{error:#}")).collect();
        let (plan, device, out) = (plan(&shape).across(args.processes()), args.setup()?, args.out.as_deref());
        let shown = DryRun { plan, data: vec![data], problems, device, out }.shown();
        Ok(Self { name: "finetune".into(), shown, problem })
    }

    /// Prints the plans of all steps, and fails as the command would.
    ///
    /// # Errors
    /// The first problem of a step; also when stdout cannot be written to.
    pub fn print(system: &str, parts: Vec<Self>, json: bool) -> anyhow::Result<Outcome> {
        if json {
            let plans: serde_json::Map<String, Value> =
                parts.iter().map(|part| (part.name.clone(), part.shown.json.clone())).collect();
            print_json(&json!({ "system": system, "plan": plans }))?;
        } else {
            let mut tables = vec![];
            for Self { name, shown, .. } in &parts {
                let mut heading = Table::new([format!("plan of {name}")]);
                heading.row([String::new()]);
                tables.push(heading);
                tables.extend(shown.tables.iter().cloned());
            }
            print_tables(&tables)?;
        }
        parts.into_iter().find_map(|part| part.problem).map_or(Ok(Outcome::Done), Err)
    }
}

impl DryRun<'_> {
    /// Prints the plan on stdout, as tables or as one line of JSON. The step's time is an estimate: its operations over the
    /// rate at which this device multiplies matrices, measured now; small models and short rows take longer.
    ///
    /// # Errors
    /// stdout cannot be written to.
    pub fn print(&self, json: bool) -> std::io::Result<()> {
        let shown = self.shown();
        if json { print_json(&shown.json) } else { print_tables(&shown.tables) }
    }

    /// The plan as JSON for programs, and as tables for people.
    #[must_use]
    pub fn shown(&self) -> ShownPlan {
        let plan = &self.plan;
        let rate = matrix_rate(self.device, plan.precision).ok();
        let secs = rate.map(|rate| plan.flops_per_step / rate);
        let memory = free_memory(self.device);
        let disk = host::free_disk(self.out.unwrap_or(Path::new(".")));
        let wanted_disk = plan.checkpoint_bytes * plan.checkpoints_kept;
        let value = json!({
                "plan": plan, "memory_total": plan.memory.total(), "memory_free": memory,
                "disk_needed": wanted_disk, "disk_free": disk, "device": format!("{:?}", self.device),
                "matrix_flops_per_second": rate, "seconds_per_step_estimate": secs,
                "data": self.data, "problems": self.problems,
        });
        let mut tables = vec![];
        if !self.data.is_empty() {
            let mut data = Table::new(["task", "split", "questions", "instances"]);
            for DataRow { task, split, questions, instances } in &self.data {
                data.row([task.clone(), split.to_string(), questions.to_string(), instances.to_string()]);
            }
            tables.push(data);
        }
        let mut training = Table::new(["training", ""]);
        let mut row = |name: &str, value: String| {
            training.row([name.to_owned(), value]);
        };
        if plan.processes > 1 {
            row("processes, each of which does and needs this", plan.processes.to_string());
        }
        row("parameters", format!("{:.2} M", plan.parameters as f64 / 1e6));
        row("steps", plan.steps.to_string());
        let longest = "the longest that the settings allow";
        row("lengths", if self.data.is_empty() { longest } else { "measured on the data" }.to_owned());
        if plan.updates_per_step != 1.0 {
            row("updates per step, on average", format!("{:.2}", plan.updates_per_step));
        }
        row("rows per step", format!("{:.0}", plan.rows_per_step));
        row("tokens per step", format!("{:.0}", plan.tokens_per_step));
        row("operations per step", format!("{:.3e}", plan.flops_per_step));
        if plan.forward_flops_per_step > 0.0 {
            row("of them to write and score texts", format!("{:.3e}", plan.forward_flops_per_step));
        }
        if let (Some(rate), Some(secs)) = (rate, secs) {
            row("matrix products, measured", format!("{:.3e} operations/s on {:?}", rate, self.device));
            row("time per step, estimated", format!("at least {}", short(secs)));
            row("time of all steps, estimated", format!("at least {}", duration(secs * plan.steps as f64)));
        }
        tables.push(training);
        tables.push(self.memory_table(memory));
        let mut files = Table::new(["disk", ""]);
        let kept = plan.checkpoints_kept;
        files.row(["one checkpoint".into(), bytes(plan.checkpoint_bytes)]);
        files.row([format!("{kept} checkpoints: the newest, the best, and the next"), bytes(wanted_disk)]);
        files.row(["free".into(), disk.map_or_else(|| "unknown".into(), |disk| fits(wanted_disk, disk))]);
        tables.push(files);
        ShownPlan { json: value, tables }
    }

    fn memory_table(&self, free: Option<u64>) -> Table {
        let memory = &self.plan.memory;
        let mut table = Table::new(["memory", ""]);
        for (name, count) in [
            ("weights, f32", memory.weights),
            ("gradients, f32", memory.gradients),
            ("optimizer, f32", memory.optimizer),
            ("what travels between processes", memory.buckets),
            ("weights, bf16 copies", memory.bf16_weights),
            ("frozen models, f32", memory.reference),
            ("activations of the largest batch, estimated", memory.activations),
        ] {
            if count > 0 {
                table.row([name.to_owned(), bytes(count)]);
            }
        }
        table.row(["together".into(), bytes(memory.total())]);
        table.row(["free".into(), free.map_or_else(|| "unknown".into(), |free| fits(memory.total(), free))]);
        table
    }
}

/// Memory that models may fill with what they write, where the library does not know it: a quarter of a GPU's.
#[must_use]
pub fn decoding_memory(device: Device) -> Option<u64> {
    match device {
        Device::Cuda(index) => host::gpus().get(index).map(|gpu| gpu.total / 4).filter(|bytes| *bytes > 0),
        _ => None,
    }
}

/// The plan of models that generate, as JSON for programs and as tables for people. All of them are on the device at the same time.
#[must_use]
pub fn writing(plans: &[WritingPlan], precision: Precision, device: Device) -> ShownPlan {
    let rate = matrix_rate(device, precision).ok();
    let needed: u64 = plans.iter().map(WritingPlan::memory).sum();
    let memory = free_memory(device);
    let value = json!({
        "models": plans, "memory_total": needed, "memory_free": memory, "device": format!("{device:?}"),
        "matrix_flops_per_second": rate,
        "seconds_estimate": rate.map(|rate| plans.iter().map(|plan| plan.flops).sum::<f64>() / rate),
    });
    let mut tables = vec![];
    for plan in plans {
        let mut table = Table::new([plan.name.as_str(), ""]);
        let mut row = |name: &str, value: String| {
            table.row([name.to_owned(), value]);
        };
        row("parameters", format!("{:.2} M", plan.parameters as f64 / 1e6));
        row("answers, at most", plan.answers.to_string());
        row("new tokens, at most", plan.tokens.to_string());
        row("answers asked for at a time", plan.rows.to_string());
        row("of them written at the same time", plan.rows_in_flight.to_string());
        row("weights", bytes(plan.weights));
        row("keys, values and logits of these", bytes(plan.decoding));
        if let Some(rate) = rate {
            row(
                "time, estimated",
                format!("at least {}, if all are as long as they may be", duration(plan.flops / rate)),
            );
        }
        tables.push(table);
    }
    let mut table = Table::new(["memory", ""]);
    table.row(["together".into(), bytes(needed)]);
    table.row(["free".into(), memory.map_or_else(|| "unknown".into(), |free| fits(needed, free))]);
    tables.push(table);
    ShownPlan { json: value, tables }
}

fn fits(needed: u64, free: u64) -> String {
    if needed <= free { bytes(free) } else { format!("{}: not enough", bytes(free)) }
}

fn short(secs: f64) -> String {
    if secs < 0.995 { format!("{:.2} ms", secs * 1e3) } else { duration(secs) }
}

fn free_memory(device: Device) -> Option<u64> {
    match device {
        Device::Cpu => host::memory().map(|(_, available)| available),
        Device::Cuda(index) => host::gpus().get(index).map(|gpu| gpu.free).filter(|free| *free > 0),
        _ => None,
    }
}

/// Floating-point operations per second in products of large matrices, from a fraction of a second of them.
fn matrix_rate(device: Device, precision: Precision) -> Result<f64, tch::TchError> {
    const SECS: f64 = 0.25;
    let size: i64 = if device.is_cuda() { 8192 } else { 1024 };
    let kind = match precision {
        Precision::F32 => Kind::Float,
        Precision::Bf16 => Kind::BFloat16,
    };
    let matrix = Tensor::f_ones([size, size], (kind, device))?;
    let round = |count: u32| -> Result<f64, tch::TchError> {
        let started = Instant::now();
        let mut last = None;
        for _ in 0..count {
            last = Some(matrix.f_matmul(&matrix)?);
        }
        // Reading a number waits for the device.
        if let Some(product) = last {
            product.f_double_value(&[0, 0])?;
        }
        Ok(started.elapsed().as_secs_f64())
    };
    round(1)?;
    let mut count = 1;
    loop {
        let secs = round(count)?;
        if secs >= SECS || count > 1 << 12 {
            return Ok(2.0 * (size as f64).powi(3) * f64::from(count) / secs);
        }
        count *= 2;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_rate_is_that_of_a_computer() {
        let rate = matrix_rate(Device::Cpu, Precision::F32).unwrap();
        assert!((1e8..1e15).contains(&rate), "{rate}");
    }

    #[test]
    fn too_little_is_said_to_be() {
        assert_eq!(fits(10, 20_000), "20.0 kB");
        assert_eq!(fits(30_000, 20_000), "20.0 kB: not enough");
        assert_eq!((short(0.0123), short(62.0)), ("12.30 ms".into(), "1 min 2 s".into()));
    }
}
