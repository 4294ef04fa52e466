//! Quark: its parts, and that it learns what control tokens mean.

mod loss;
mod options;
mod pool;
mod training;

use ruminate_algorithms::Result;
use ruminate_algorithms::ppo::{KlPenalty, Prompt};
use ruminate_algorithms::quark::{
    ControlConfig, ControlTokens, Expert, ExpertConfig, Lengths, Quark, QuarkConfig, QuarkData,
    SamplingConfig, Single,
};
use ruminate_models::{Sampling, T5, TokenId, Tokenizer};
use ruminate_rewards::{Reward, RewardError, Rewarded, Sample};

use crate::support::{model, tokenizer};

/// Tokens above this are good.
const GOOD: TokenId = 100;

fn share(response: &[TokenId]) -> f64 {
    response.iter().filter(|&&id| id > GOOD).count() as f64 / response.len().max(1) as f64
}

/// The share of good tokens, times `scale`.
pub(crate) struct Share {
    scale: f32,
}

impl<P, Q> Reward<P, Q> for Share {
    fn rewards(&self, _: &P, samples: &[Sample<'_, Q>]) -> std::result::Result<Vec<Rewarded>, RewardError> {
        Ok(samples.iter().map(|sample| (self.scale * share(sample.response) as f32).into()).collect())
    }
}

fn prompts(count: i64) -> Vec<Prompt<()>> {
    (0..count)
        .map(|i| Prompt {
            ids: (0..2 + i % 3).map(|j| 10 + (11 * i + j) % 120).chain([1]).collect(),
            text: format!("prompt {i}"),
            task: String::new(),
            item: (),
        })
        .collect()
}

/// Responses from elsewhere, one good and one bad to each prompt.
fn experts(count: i64) -> Vec<Expert<()>> {
    let expert = |(i, prompt): (usize, Prompt<()>)| {
        let first = if i % 2 == 0 { 110 } else { 20 };
        let ids: Vec<TokenId> = (0..4).map(|j| first + (i as i64 + j) % 70).chain([1]).collect();
        Expert { prompt, text: format!("expert {i}"), ids }
    };
    prompts(count).into_iter().flat_map(|prompt| [prompt.clone(), prompt]).enumerate().map(expert).collect()
}

/// Short responses to few prompts, in buckets of one reward.
fn config() -> QuarkConfig {
    let lengths = Lengths { max_length: 7, min_length: 0 };
    QuarkConfig {
        control: ControlConfig::single("share", 4),
        batch_size: 16,
        sample_interval: 15,
        sampling: SamplingConfig {
            // So that the same tokens are seen often enough to be learnt.
            sampling: Sampling { top_k: Some(8), ..Sampling::default() },
            lengths,
            passes: 2,
            batch_size: 20,
            drop_last: false,
        },
        eval_lengths: lengths,
        kl: KlPenalty::Fixed { coef: 0.05 },
        ..QuarkConfig::default()
    }
}

/// Tokenizer and model of `seed` with the control tokens.
/// The id of the first token that is added to the world's.
fn first_control_token() -> TokenId {
    tokenizer().vocab_size() as TokenId
}

fn parts(control: &ControlConfig, seed: i64) -> (Tokenizer, T5) {
    let (mut tokenizer, mut policy) = (tokenizer(), model(0.0, seed));
    let tokens = ControlTokens::add_to(&mut tokenizer, control).unwrap();
    policy.add_tokens(tokens.id_range(), 5).unwrap();
    (tokenizer, policy)
}

fn data() -> QuarkData<()> {
    QuarkData { train: prompts(40), expert: vec![], held_out: prompts(24) }
}

/// Quark on `batch_size` samples of one process, with everything that looks at all of them: rounds, experts, coefficients that
/// follow the policy.
pub(crate) fn of_ranks(seed: i64, batch_size: usize) -> Result<TestQuark> {
    let config = QuarkConfig {
        batch_size,
        sample_interval: 8,
        expert: ExpertConfig { per_round: Some(11), all_at_first: false, repeats: true },
        kl: KlPenalty::Adaptive { initial: 0.05, target: 0.5, horizon: 50.0 },
        entropy: KlPenalty::Adaptive { initial: 0.01, target: 3.0, horizon: 50.0 },
        ..config()
    };
    let data = QuarkData { train: prompts(41), expert: experts(20), held_out: prompts(25) };
    quark_of(config, 1.0, seed, data)
}

pub(crate) type TestQuark = Quark<T5, (), Single<Share>>;

fn quark_of(config: QuarkConfig, scale: f32, seed: i64, data: QuarkData<()>) -> Result<TestQuark> {
    let (tokenizer, policy) = parts(&config.control, seed);
    Quark::new(config, policy, model(0.0, 1), tokenizer, Single::new("share", Share { scale }), data)
}
