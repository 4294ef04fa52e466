//! PPO with a reward of one's own: a T5 with random parameters learns to say "rainy".

use ruminate::algorithms::ppo::{KlPenalty, Ppo, PpoConfig, PpoData, Prompt, RolloutConfig};
use ruminate::algorithms::{Algorithm, NullObserver, Trainer, TrainerConfig};
use ruminate::models::{ActorCritic, Sampling, T5, T5Config, Tokenizer};
use ruminate::rewards::{Reward, RewardError, Rewarded, Sample};
use ruminate::tch::{Device, Kind};

/// The share of words that are "rainy".
struct Rainy;

impl<P> Reward<P, ()> for Rainy {
    fn rewards(&self, _: &P, samples: &[Sample<'_, ()>]) -> Result<Vec<Rewarded>, RewardError> {
        let share =
            |text: &str| text.matches("rainy").count() as f32 / text.split_whitespace().count().max(1) as f32;
        Ok(samples.iter().map(|sample| share(sample.text).into()).collect())
    }
}

#[expect(clippy::print_stdout, reason = "the result is for whoever runs the example")]
fn main() -> anyhow::Result<()> {
    let world = std::path::Path::new("fixtures/world/t5");
    let tokenizer = Tokenizer::open(world)?;
    let model = || T5::new(T5Config::open(world)?, Kind::Float, Device::Cpu, 1);
    let prompt = |name: &str| -> anyhow::Result<Prompt<()>> {
        let text = format!("What is the weather where {name} lives?");
        Ok(Prompt { ids: tokenizer.encode(&text)?, text, task: String::new(), item: () })
    };
    let train = ["Ada", "Ben", "Cora", "Dora", "Emil", "Flora", "Gavin", "Hugo"];
    let train = train.iter().cycle().take(64).map(|name| prompt(name));
    let held_out = ["Ida", "Jack"].map(prompt);
    let data = PpoData {
        train: train.collect::<Result<_, _>>()?,
        supervised: None,
        held_out: held_out.into_iter().collect::<Result<_, _>>()?,
    };
    let config = PpoConfig {
        batch_size: 64,
        kl: KlPenalty::Fixed { coef: 0.02 },
        rollout: RolloutConfig {
            max_new_tokens: 8,
            sampling: Sampling::default(),
            ..RolloutConfig::default()
        },
        ..PpoConfig::default()
    };
    let actor = ActorCritic::shared(model()?, config.seed)?;
    let mut ppo = Ppo::new(config, actor, model()?, tokenizer.clone(), Rainy, data)?;
    let before = ppo.evaluate(0, &mut NullObserver)?.score;
    let trainer = TrainerConfig { steps: 60, lr: 3e-3, eval_every: 20, ..TrainerConfig::default() };
    let fitted = Trainer::new(trainer, "runs/rainy".as_ref())?.fit(&mut ppo, &mut NullObserver)?;
    let after = ppo.evaluate(0, &mut NullObserver)?.score;
    println!("share of \"rainy\": {before:.2} before, {after:.2} after; {}", fitted.best.path.display());
    Ok(())
}
