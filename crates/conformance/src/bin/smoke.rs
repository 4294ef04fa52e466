//! `smoke`: a few steps of training, scoring and writing with tiny models, as one JSON object, to be compared between processors.

use clap::Parser;
use ruminate_models::{
    Example, Generate, GenerationConfig, Llama, LlamaConfig, Policy, Sampling, ScoreOptions, Strategy, T5,
    T5Config, TokenId,
};
use ruminate_torch::CpuLevel;
use ruminate_torch::optim::{Adam, AdamConfig, Decay, DecayOn, Optimizer};
use serde_json::{Value, json};
use std::error::Error;
use std::io::Write;
use std::path::Path;
use std::process::ExitCode;
use tch::{Device, Kind, Tensor};

/// Train, score and write with tiny models, and print what came out.
///
/// The weights come from whole numbers, not from a generator, so that every processor starts with the same ones. `tokens` must be the
/// same on all processors, `numbers` up to rounding.
#[derive(Debug, Parser)]
struct Arguments {
    /// Print the levels of the vector unit that this process may use, the least first, and do nothing else
    #[arg(long)]
    levels: bool,
    /// Compare with what another process printed; exit with 1 and the difference if it is another result
    #[arg(long, value_name = "FILE")]
    expect: Option<std::path::PathBuf>,
}

const VOCAB: TokenId = 64;
const STEPS: usize = 3;
/// Largest difference of numbers, relative to numbers above 1.
const TOLERANCE: f64 = 1e-4;

fn main() -> ExitCode {
    match run(&Arguments::parse()) {
        Ok(text) => {
            let _ = writeln!(std::io::stdout().lock(), "{text}");
            ExitCode::SUCCESS
        }
        Err(error) => {
            let _ = writeln!(std::io::stderr().lock(), "error: {error}");
            ExitCode::FAILURE
        }
    }
}

fn run(arguments: &Arguments) -> Result<String, Box<dyn Error>> {
    let level = CpuLevel::in_use()?;
    if arguments.levels {
        let names = CpuLevel::ALL.into_iter().filter(|other| *other <= level).map(CpuLevel::name);
        return Ok(names.collect::<Vec<_>>().join("\n"));
    }
    tch::set_num_threads(1);
    let t5 = T5Config::from_json(
        object(json!({
            "vocab_size": VOCAB, "d_model": 32, "d_kv": 8, "d_ff": 48, "num_layers": 2, "num_heads": 4,
            "dropout_rate": 0.0, "feed_forward_proj": "gated-gelu", "tie_word_embeddings": false,
        })),
        Path::new("config.json"),
    )?;
    let llama = LlamaConfig::from_json(
        object(json!({
            "vocab_size": VOCAB, "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2,
            "num_attention_heads": 4, "num_key_value_heads": 2, "eos_token_id": 2,
        })),
        Path::new("config.json"),
    )?;
    let result = json!({
        "t5": exercise(&T5::new(t5, Kind::Float, Device::Cpu, 0)?)?,
        "llama": exercise(&Llama::new(llama, Kind::Float, Device::Cpu, 0)?)?,
    });
    if let Some(file) = &arguments.expect {
        let expected: Value = serde_json::from_str(&std::fs::read_to_string(file)?)?;
        compare("", &result, &expected["result"])?;
    }
    Ok(json!({ "level": level.name(), "products": ruminate_torch::product_library()?, "result": result })
        .to_string())
}

fn object(value: Value) -> serde_json::Map<String, Value> {
    value.as_object().cloned().unwrap_or_default()
}

/// Numbers in [-0.5, 0.5) from whole numbers; exact in float32.
fn fill(tensor: &Tensor, salt: u32) -> Result<(), Box<dyn Error>> {
    let numbers: Vec<f32> = (0..tensor.numel() as u32)
        .map(|i| {
            let mixed = (i ^ salt.wrapping_mul(0x9e37_79b9)).wrapping_mul(0x85eb_ca6b);
            let mixed = (mixed ^ (mixed >> 13)).wrapping_mul(0xc2b2_ae35);
            ((mixed >> 16) & 0xffff) as f32 / 65536.0 - 0.5
        })
        .collect();
    let numbers = Tensor::from_slice(&numbers).f_view(tensor.size().as_slice())?;
    // Norms stay near one, and T5's scores small, which are not scaled: steep distributions would magnify rounding.
    let numbers = match tensor.dim() {
        1 => numbers.f_mul_scalar(0.2)?.f_add_scalar(1.0)?,
        _ => numbers.f_mul_scalar(0.4)?,
    };
    tch::no_grad(|| tensor.shallow_clone().f_copy_(&numbers))?;
    Ok(())
}

fn row(seed: i64, length: i64) -> Vec<TokenId> {
    (0..length).map(|i| 3 + (i * i + 7 * seed + i * seed) % (VOCAB - 3)).collect()
}

fn exercise<M: Policy + Generate>(model: &M) -> Result<Value, Box<dyn Error>> {
    for (i, (_, parameter)) in model.parameters().iter().enumerate() {
        fill(parameter, i as u32 + 1)?;
    }
    let examples: Vec<Example> =
        [(9, 5), (4, 7), (12, 3)].map(|(p, t)| Example { prompt: row(p, p), target: row(t + 20, t) }).into();
    // With a large epsilon, so that a gradient next to zero makes a step next to zero, whichever way its last bits go.
    let adam = AdamConfig {
        beta1: 0.9,
        beta2: 0.999,
        eps: 1e-3,
        weight_decay: 0.01,
        decay: Decay::Decoupled,
        decay_on: DecayOn::All,
    };
    let parameters =
        model.parameters().iter().map(|(name, tensor)| (name.to_string(), tensor.shallow_clone()));
    let mut optimizer = Adam::new(parameters.collect(), adam)?;
    let before = write(model)?;
    let mut losses = vec![];
    for _ in 0..STEPS {
        let loss = model.cross_entropy(&examples)?;
        let mean = loss.sum.f_div_scalar(loss.count as f64)?;
        losses.push(mean.f_double_value(&[])?);
        mean.f_backward()?;
        optimizer.step(0.01)?;
        optimizer.zero_grad()?;
    }
    let scores =
        tch::no_grad(|| model.score(&examples, ScoreOptions { entropy: true, ..ScoreOptions::default() }))?;
    let numbers = |tensor: &Tensor| Vec::<f64>::try_from(tensor.f_flatten(0, -1)?.f_to_kind(Kind::Double)?);
    let entropy = scores.entropy.as_ref().map(numbers).transpose()?;
    Ok(json!({
        "tokens": { "before": before, "after": write(model)? },
        "numbers": { "losses": losses, "log_probs": numbers(&scores.log_probs)?, "entropy": entropy },
    }))
}

/// Greedy and drawn tokens.
fn write<M: Generate>(model: &M) -> Result<Value, Box<dyn Error>> {
    let prompts = [row(1, 6), row(2, 11)];
    let sampling = Sampling { temperature: 0.8, top_k: Some(20), top_p: Some(0.9), ..Sampling::default() };
    let mut written = vec![];
    for strategy in [Strategy::Greedy, Strategy::Sample(sampling)] {
        let config = GenerationConfig {
            strategy,
            max_new_tokens: 8,
            samples_per_prompt: 2,
            ..GenerationConfig::default()
        };
        for rows in model.generate(&prompts, &config, &[11, 12])? {
            written.extend(rows.into_iter().map(|row| row.ids));
        }
    }
    Ok(json!(written))
}

/// Whole numbers must be equal, others nearly so.
fn compare(place: &str, got: &Value, expected: &Value) -> Result<(), Box<dyn Error>> {
    let differ = || Err(format!("{place}: {got}, but {expected} was expected").into());
    match (got, expected) {
        (Value::Object(a), Value::Object(b)) if a.len() == b.len() => {
            a.iter().try_for_each(|(key, value)| compare(&format!("{place}/{key}"), value, &expected[key]))
        }
        (Value::Array(a), Value::Array(b)) if a.len() == b.len() => {
            a.iter().zip(b).enumerate().try_for_each(|(i, (a, b))| compare(&format!("{place}/{i}"), a, b))
        }
        (Value::Number(a), Value::Number(b)) if a.is_f64() || b.is_f64() => match (a.as_f64(), b.as_f64()) {
            (Some(a), Some(b)) if (a - b).abs() <= TOLERANCE * b.abs().max(1.0) => Ok(()),
            _ => differ(),
        },
        _ if got == expected => Ok(()),
        _ => differ(),
    }
}
