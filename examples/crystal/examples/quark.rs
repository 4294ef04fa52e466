//! Quark with a reward of one's own: a T5 with random parameters learns to write short words where it is asked for the best.

use ruminate::algorithms::ppo::Prompt;
use ruminate::algorithms::quark::{
    Condition, ControlConfig, ControlTokens, Lengths, Quark, QuarkConfig, QuarkData, SamplingConfig, Single,
};
use ruminate::algorithms::{NullObserver, Trainer, TrainerConfig};
use ruminate::models::{Sampling, T5, T5Config, Tokenizer};
use ruminate::rewards::{Reward, RewardError, Rewarded, Sample};
use ruminate::tch::{Device, Kind};

/// The share of words of at most four letters.
struct Brevity;

impl<P> Reward<P, ()> for Brevity {
    fn rewards(&self, _: &P, samples: &[Sample<'_, ()>]) -> Result<Vec<Rewarded>, RewardError> {
        Ok(samples.iter().map(|sample| share(sample.text).into()).collect())
    }
}

fn share(text: &str) -> f32 {
    let words: Vec<&str> = text.split_whitespace().collect();
    words.iter().filter(|word| word.len() <= 4).count() as f32 / words.len().max(1) as f32
}

#[expect(clippy::print_stdout, reason = "the result is for whoever runs the example")]
fn main() -> anyhow::Result<()> {
    let world = std::path::Path::new("fixtures/world/t5");
    let words = Tokenizer::open(world)?;
    let model = || T5::new(T5Config::open(world)?, Kind::Float, Device::Cpu, 1);
    let prompt = |name: &&str| -> anyhow::Result<Prompt<()>> {
        let text = format!("What is the weather where {name} lives?");
        Ok(Prompt { ids: words.encode(&text)?, text, task: String::new(), item: () })
    };
    let prompts = |names: &[&str]| names.iter().map(prompt).collect::<Result<Vec<_>, _>>();
    let train = prompts(&["Ada", "Ben", "Cora", "Dora", "Emil", "Flora", "Gavin", "Hugo"])?;
    let data = QuarkData { train, expert: vec![], held_out: prompts(&["Ida", "Jack"])? };

    let lengths = Lengths { max_length: 10, min_length: 0 };
    let config = QuarkConfig {
        control: ControlConfig::single("brevity", 5),
        batch_size: 32,
        sample_interval: 20,
        sampling: SamplingConfig {
            sampling: Sampling { top_k: Some(20), ..Sampling::default() },
            lengths,
            passes: 32,
            drop_last: false,
            ..SamplingConfig::default()
        },
        eval_lengths: lengths,
        ..QuarkConfig::default()
    };
    // A token for each fifth of the samples, and rows for them in the policy. The reference stays as it is.
    let mut tokenizer = words.clone();
    let tokens = ControlTokens::add_to(&mut tokenizer, &config.control)?;
    let (mut policy, reference) = (model()?, model()?);
    policy.add_tokens(tokens.id_range(), config.seed)?;

    let scorer = Single::new("brevity", Brevity);
    let mut quark = Quark::new(config, policy, reference, tokenizer, scorer, data)?;
    let trainer = TrainerConfig {
        steps: 200,
        lr: 3e-3,
        eval_every: 50,
        max_grad_norm: 1.0,
        ..TrainerConfig::default()
    };
    Trainer::new(trainer, "runs/quark".as_ref())?.fit(&mut quark, &mut NullObserver)?;

    let ask = prompts(&["Ida", "Jack", "Kira"])?;
    for condition in [Condition::Best, Condition::Worst] {
        let responses = quark.respond(&ask.iter().collect::<Vec<_>>(), condition, 200, |_| Ok(()))?;
        let shares: Vec<f32> = responses.iter().map(|response| share(&response.text)).collect();
        println!("{condition:?}: shares of short words {shares:.2?}, e.g. {:?}", responses[0].text);
    }
    Ok(())
}
