//! Fine-tunes the model of a Hugging Face folder on JSON lines, and lets it answer the first prompt.

use std::error::Error;
use std::path::PathBuf;

use clap::Parser;
use ruminate::algorithms::{
    Algorithm, Observer, ObserverError, Sft, StepReport, SupervisedData, Trainer, TrainerConfig, encode_supervised,
};
use ruminate::datasets::supervised;
use ruminate::models::{Generate, Model};
use ruminate::tch::{Device, Kind};

/// Fine-tunes a model on prompts with completions, or on dialogues.
#[derive(Parser)]
struct Args {
    /// Hugging Face folder: config.json, model.safetensors, tokenizer.json
    #[arg(long)]
    model: PathBuf,
    /// JSON lines, each {"prompt": "...", "completion": "..."} or {"messages": [...]}
    #[arg(long, default_value = "data/train.jsonl")]
    data: PathBuf,
    /// Where checkpoints go; each is a Hugging Face folder
    #[arg(long, default_value = "runs/sft")]
    out: PathBuf,
    /// Steps of the optimizer
    #[arg(long, default_value_t = 100)]
    steps: u64,
    /// Examples in a step
    #[arg(long, default_value_t = 8)]
    batch_size: usize,
    /// Learning rate
    #[arg(long, default_value_t = 1e-5)]
    lr: f64,
    /// Longer examples are cut, in tokens
    #[arg(long, default_value_t = 1024)]
    max_len: usize,
}

/// Prints the loss of the steps that the trainer records. The feature `run` of ruminate has an observer with progress bars and a report.
struct Printed;

impl Observer for Printed {
    fn step(&mut self, report: &StepReport<'_>) -> Result<(), ObserverError> {
        if let Some((name, value)) = report.metrics.first() {
            println!("step {} of {}: {name} {value:.3}", report.step + 1, report.total_steps);
        }
        Ok(())
    }
}

fn main() -> Result<(), Box<dyn Error>> {
    let args = Args::parse();
    let model = Model::load(&args.model, Kind::Float, Device::cuda_if_available())?;
    let tokenizer = model.tokenizer().ok_or("the folder has no tokenizer.json")?.clone();
    let template = model.chat_template()?;
    let rows = supervised::read(&args.data)?;
    let examples = encode_supervised(&tokenizer, template.as_ref(), &rows, args.max_len)?;
    let prompt = examples.first().ok_or("the file holds no examples")?.prompt.clone();
    let generation = model.generation_config()?;

    let data = SupervisedData::new(examples, vec![], args.batch_size, 1)?;
    let mut sft = Sft::new(model, data, tokenizer.clone());
    let config = TrainerConfig { steps: args.steps, lr: args.lr, ..TrainerConfig::default() };
    let fitted = Trainer::new(config, &args.out)?.fit(&mut sft, &mut Printed)?;
    println!("checkpoint: {}", fitted.best.path.display());

    let written = sft.policy().generate(&[prompt], &generation, &[1])?;
    println!("first answer: {}", tokenizer.decode_clean(&written[0][0].ids)?);
    Ok(())
}
