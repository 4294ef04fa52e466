//! DPO on six pairs: a T5 with random parameters learns to prefer one answer to another.

use ruminate_algorithms::dpo::{Dpo, DpoConfig, PairLengths, Reference, ShuffledPairs, encode_pairs};
use ruminate_algorithms::{Algorithm, NullObserver, Trainer, TrainerConfig};
use ruminate_datasets::PreferenceExample;
use ruminate_models::{T5, T5Config, Tokenizer};
use tch::{Device, Kind};

#[expect(clippy::print_stdout, reason = "the result is for whoever runs the example")]
fn main() -> Result<(), Box<dyn std::error::Error>> {
    let world = std::path::Path::new("fixtures/world/t5");
    let tokenizer = Tokenizer::open(world)?;
    let model = || T5::new(T5Config::open(world)?, Kind::Float, Device::Cpu, 1);
    let pairs = |names: &[&str]| {
        let pair = |name: &&str| {
            let prompt = format!("What is the weather where {name} lives?");
            PreferenceExample::new(prompt, "It is rainy.", "It is sunny.")
        };
        encode_pairs(&tokenizer, &names.iter().map(pair).collect::<Vec<_>>(), PairLengths::default())
    };
    let train = pairs(&["Ada", "Ben", "Cora", "Dora", "Emil", "Flora"])?.pairs;
    let held_out = pairs(&["Ida", "Jack"])?.pairs;
    let source = ShuffledPairs::new(train, 6, 1)?;
    let reference = Reference::Model(model()?);
    let mut dpo = Dpo::new(DpoConfig::default(), model()?, reference, source, held_out, tokenizer.clone())?;
    let steps = TrainerConfig { steps: 30, lr: 1e-3, eval_every: 10, ..TrainerConfig::default() };
    let fitted = Trainer::new(steps, "runs/dpo".as_ref())?.fit(&mut dpo, &mut NullObserver)?;
    for (name, value) in dpo.evaluate(30, &mut NullObserver)?.metrics {
        println!("{name}: {value:.3}");
    }
    println!("the best model is in {}", fitted.best.path.display());
    Ok(())
}
