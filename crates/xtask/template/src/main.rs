//! Fine-tunes the model of a Hugging Face folder on JSON lines, and lets it answer the first prompt.

use std::error::Error;
use std::path::PathBuf;

use clap::Parser;
use ruminate::algorithms::{Algorithm, Sft, SupervisedData, Trainer, TrainerConfig, encode_supervised};
use ruminate::datasets::supervised;
use ruminate::models::{Generate, Model};
use ruminate::run::{ConsoleObserver, Verbosity};
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

fn main() -> Result<(), Box<dyn Error>> {
    let args = Args::parse();
    let model = Model::load(&args.model, Kind::Float, Device::cuda_if_available())?;
    let tokenizer = model.tokenizer().ok_or("the folder has no tokenizer.json")?.clone();
    let template = model.chat_template()?;
    let rows = supervised::read(&args.data)?;
    let examples = encode_supervised(&tokenizer, template.as_ref(), &rows, args.max_len)?;
    let prompt = examples[0].prompt.clone();
    let generation = model.generation_config()?;

    let data = SupervisedData::new(examples, vec![], args.batch_size, 1)?;
    let mut sft = Sft::new(model, data, tokenizer.clone());
    let config = TrainerConfig { steps: args.steps, lr: args.lr, ..TrainerConfig::default() };
    let fitted = Trainer::new(config, &args.out)?.fit(&mut sft, &mut ConsoleObserver::new(Verbosity::Normal))?;
    println!("checkpoint: {}", fitted.best.path.display());

    let written = sft.policy().generate(&[prompt], &generation, &[1])?;
    println!("first answer: {}", tokenizer.decode_clean(&written[0][0].ids)?);
    Ok(())
}
