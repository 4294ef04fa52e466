//! PPO learns what it is rewarded for, and nothing without; and it can be interrupted anywhere.

use std::cell::Cell;
use std::fs;
use std::path::Path;

use approx::assert_abs_diff_eq;
use ruminate_algorithms::ppo::{
    Batch, KlPenalty, MeasuredRewards, Ppo, PpoConfig, PpoData, Prompt, RolloutConfig, Supervision,
};
use ruminate_algorithms::{
    Algorithm, Collective, Ending, Fitted, NullObserver, Objective, Precision, Result, Trainer, TrainerConfig,
};
use ruminate_datasets::Compat;
use ruminate_models::{
    ActorCritic, Example, Generate, Generated, GenerationConfig, Parameters, Policy, Sampling, ScoreOptions,
    T5, TokenId, TokenScores,
};
use ruminate_rewards::{Normalization, Reward, RewardError, Rewarded, Sample};
use tch::Tensor;

use crate::support::{Recorder, alone, chain, model, short, tokenizer};

/// Tokens above this are good.
const GOOD: TokenId = 140;

/// The share of good tokens, times `scale`.
pub(crate) struct Share {
    scale: f32,
}

impl<P, Q> Reward<P, Q> for Share {
    fn rewards(&self, _: &P, samples: &[Sample<'_, Q>]) -> std::result::Result<Vec<Rewarded>, RewardError> {
        let judge = |sample: &Sample<'_, Q>| {
            let good = sample.response.iter().filter(|&&id| id > GOOD).count();
            let share = good as f32 / sample.response.len() as f32;
            Rewarded { value: self.scale * share, parts: vec![("share".into(), share)] }
        };
        Ok(samples.iter().map(judge).collect())
    }
}

/// Trains the prompt's first token as the answer to prompt and response.
struct Echo;

impl Supervision<()> for Echo {
    fn objectives(&self, samples: &[Sample<'_, ()>]) -> Result<Vec<Objective>> {
        let example =
            |sample: &Sample<'_, ()>| Example { prompt: sample.response.to_vec(), target: vec![7, 1] };
        let examples = samples.iter().map(example).collect();
        Ok(vec![Objective { name: "loss/echo", weight: 0.5, examples }])
    }
}

fn prompts(count: i64) -> Vec<Prompt<()>> {
    (0..count)
        .map(|i| Prompt {
            ids: (0..2 + i % 3).map(|j| 10 + (11 * i + j) % 120).chain([1]).collect(),
            text: format!("prompt {i}"),
            task: format!("task {}", i % 2),
            item: (),
        })
        .collect()
}

fn config() -> PpoConfig {
    PpoConfig {
        rollout: RolloutConfig {
            sampling: Sampling { temperature: 1.0, top_k: None, top_p: None, ..Sampling::default() },
            max_new_tokens: 5,
            min_new_tokens: 1,
            clean_up: true,
            batch_size: 16,
            ..RolloutConfig::default()
        },
        batch_size: 16,
        kl: KlPenalty::Fixed { coef: 0.0 },
        whiten_rewards: true,
        value_coef: 1.0,
        best_by: "share".into(),
        ..PpoConfig::default()
    }
}

fn ppo(config: PpoConfig, scale: f32, seed: i64) -> Result<Ppo<T5, (), Share>> {
    let actor = ActorCritic::shared(model(0.0, seed), 3)?;
    let data = PpoData { train: prompts(40), supervised: None, held_out: prompts(12) };
    Ppo::new(config, actor, model(0.0, seed), tokenizer(), Share { scale }, data)
}

/// PPO on `batch_size` prompts of one process, with everything that looks at all of a rollout: whitening, an adaptive penalty,
/// limits to the drift, rewards that are scaled, and supervised steps in between.
pub(crate) fn of_ranks(policy: T5, batch_size: usize) -> Result<Ppo<T5, (), Share>> {
    let config = PpoConfig {
        batch_size,
        epochs: 2,
        kl: KlPenalty::Adaptive { initial: 0.1, target: 0.01, horizon: 50.0 },
        target_kl: 0.05,
        whiten_rewards: true,
        entropy_coef: 0.01,
        cycle_steps: 5,
        rl_steps: 4,
        ..config()
    };
    let actor = ActorCritic::shared(policy, 3)?;
    let data = PpoData { train: prompts(40), supervised: Some(prompts(24)), held_out: prompts(12) };
    let ppo = Ppo::new(config, actor, model(0.0, 1), tokenizer(), Share { scale: 1.0 }, data)?;
    Ok(ppo.supervised_by(Echo).normalized_by(Normalization { gain: 2.0, bias: -0.5 }))
}

/// Runs it; the share of good tokens before and after.
fn gain(config: PpoConfig, scale: f32, trainer: &TrainerConfig) -> (f64, f64, Recorder) {
    gain_from(1, config, scale, trainer)
}

fn gain_from(seed: i64, config: PpoConfig, scale: f32, trainer: &TrainerConfig) -> (f64, f64, Recorder) {
    let folder = tempfile::tempdir().unwrap();
    let mut ppo = ppo(config, scale, seed).unwrap();
    let before = ppo.evaluate(0, &mut NullObserver).unwrap().score;
    let mut seen = Recorder::default();
    Trainer::new(trainer.clone(), folder.path()).unwrap().fit(&mut ppo, &mut seen).unwrap();
    (before, ppo.evaluate(0, &mut NullObserver).unwrap().score, seen)
}

#[test]
fn the_policy_learns_what_is_rewarded_and_its_opposite() {
    let _alone = alone();
    let trainer = TrainerConfig { lr: 3e-3, eval_every: 1000, ..short(25) };
    let (before, after, seen) = gain(config(), 1.0, &trainer);
    assert!(after > before + 0.3 && after > 0.9, "{before} {after}");
    let (before, after, _) = gain(config(), -1.0, &trainer);
    assert!(after < 0.1, "{before} {after}");
    // What a run tells of itself.
    assert!(
        seen.has_values("train/reward/raw") && seen.has_values("eval/share_weighted"),
        "{:?}",
        seen.means
    );
    for name in [
        "loss/total",
        "loss/policy",
        "loss/value",
        "reward/raw",
        "reward/normalized",
        "reward/penalized",
        "reward/KL",
        "reward/spread",
        "clip_fraction",
        "approx_kl",
        "entropy",
        "response_tokens",
        "share",
    ] {
        let series = seen.series(&format!("train/{name}"));
        assert!(series.len() == 25 && series.iter().all(|x| x.is_finite()), "{name} {series:?}");
    }
    let raw = seen.series("train/reward/raw");
    let mean = |values: &[f64]| values.iter().sum::<f64>() / values.len() as f64;
    assert!(mean(&raw[20..]) > mean(&raw[..5]) + 0.1, "{raw:?}");
    assert!(seen.series("train/approx_kl").iter().all(|&kl| kl >= 0.0));
}

/// Whitened advantages of a constant reward are noise, so each run wanders; what it must not have is a direction.
#[test]
fn a_constant_reward_teaches_nothing() {
    let _alone = alone();
    let trainer = TrainerConfig { lr: 1e-3, eval_every: 1000, ..short(25) };
    let gains: Vec<f64> = (1..=12)
        .map(|seed| {
            let (before, after, _) = gain_from(seed, config(), 0.0, &trainer);
            after - before
        })
        .collect();
    assert!((gains.iter().sum::<f64>() / 12.0).abs() < 0.35, "{gains:?}");
    let (before, after, _) = gain(config(), 1.0, &trainer);
    assert!(after > before + 0.35, "{before} {after}");
}

#[test]
fn a_strong_penalty_keeps_the_policy_near_its_reference() {
    let _alone = alone();
    let trainer = TrainerConfig { lr: 5e-4, eval_every: 1000, ..short(40) };
    let divergence = |coef| {
        let (_, _, seen) = gain(PpoConfig { kl: KlPenalty::Fixed { coef }, ..config() }, 1.0, &trainer);
        seen.series("train/reward/KL")[30..].iter().sum::<f64>() / 10.0
    };
    let (free, held) = (divergence(0.0), divergence(5.0));
    assert!(held < free / 2.0, "{held} {free}");
}

#[test]
fn an_adaptive_penalty_follows_the_divergence() {
    let _alone = alone();
    let kl = KlPenalty::Adaptive { initial: 0.1, target: 1e-6, horizon: 100.0 };
    let trainer = TrainerConfig { eval_every: 1000, ..short(4) };
    let (.., seen) = gain(PpoConfig { kl, ..config() }, 1.0, &trainer);
    let coefs = seen.series("train/kl_coef");
    assert_eq!(coefs[0], 0.1);
    // The first rollout has not left the reference yet.
    assert!(coefs[1] < coefs[0] && coefs[3] > coefs[2], "{coefs:?}");
}

#[test]
fn the_first_update_starts_at_the_old_policy() {
    let _alone = alone();
    let trainer = TrainerConfig { eval_every: 1000, ..short(1) };
    let (.., seen) = gain(PpoConfig { epochs: 1, ..config() }, 1.0, &trainer);
    // Ratio 1 everywhere: nothing is clipped, and whitened advantages have no mean.
    assert_eq!(seen.series("train/clip_fraction"), [0.0]);
    assert_abs_diff_eq!(seen.series("train/approx_kl")[0], 0.0, epsilon = 1e-6);
    assert_abs_diff_eq!(seen.series("train/loss/policy")[0], 0.0, epsilon = 1e-5);
}

#[test]
fn passes_end_early_when_the_policy_has_moved_too_far() {
    let _alone = alone();
    let trainer = TrainerConfig { lr: 1e-2, eval_every: 1000, ..short(3) };
    let run = |target_kl| gain(PpoConfig { epochs: 6, target_kl, ..config() }, 1.0, &trainer).2;
    assert_eq!(run(1e-9).series("train/early_stops"), [1.0; 3]);
    assert!(run(0.0).series("train/early_stops").is_empty());
    assert!(run(1e9).series("train/early_stops").is_empty());
}

#[test]
fn value_warm_up_leaves_the_policy_loss_out() {
    let _alone = alone();
    let trainer = TrainerConfig { eval_every: 1000, ..short(4) };
    let (.., seen) = gain(PpoConfig { value_warmup_steps: 3, ..config() }, 1.0, &trainer);
    assert_eq!(seen.series("train/loss/policy").len(), 1);
    assert_eq!(seen.series("train/loss/value").len(), 4);
}

#[test]
fn the_entropy_bonus_keeps_the_policy_undecided() {
    let _alone = alone();
    let trainer = TrainerConfig { lr: 3e-3, eval_every: 1000, ..short(15) };
    let last = |entropy_coef| {
        let (.., seen) = gain(PpoConfig { entropy_coef, ..config() }, 1.0, &trainer);
        *seen.series("train/entropy").last().unwrap()
    };
    let (with, without) = (last(1.0), last(0.0));
    assert!(with > without + 0.2, "{with} {without}");
}

#[test]
fn mini_batches_and_micro_batches_cover_every_response_once() {
    let _alone = alone();
    let after = |config: PpoConfig, accumulate| {
        let folder = tempfile::tempdir().unwrap();
        let mut ppo = ppo(config, 1.0, 1).unwrap();
        // A large epsilon keeps the first steps from being the gradient's sign alone.
        let trainer = TrainerConfig { accumulate, eps: 1.0, eval_every: 1000, ..short(1) };
        Trainer::new(trainer, folder.path()).unwrap().fit(&mut ppo, &mut NullObserver).unwrap();
        let named = ppo.model().parameters().named();
        named.into_iter().map(|(_, t)| Vec::<f32>::try_from(t.reshape([-1])).unwrap()).collect::<Vec<_>>()
    };
    let close = |a: &[Vec<f32>], b: &[Vec<f32>]| {
        a.iter().flatten().zip(b.iter().flatten()).all(|(a, b)| (a - b).abs() <= 1e-6 + 1e-5 * b.abs())
    };
    let whole = after(config(), 1);
    // Micro-batches add up to the batch they were cut from, also where it does not divide evenly.
    assert!(close(&after(config(), 3), &whole));
    // Rows that are scored together do not matter.
    let narrow = RolloutConfig { batch_size: 5, ..config().rollout };
    assert!(close(&after(PpoConfig { rollout: narrow, ..config() }, 1), &whole));
    // Mini-batches make updates of their own.
    assert!(!close(&after(PpoConfig { mini_batch_size: 5, ..config() }, 1), &whole));
}

/// Both phases, mini-batches, a scale, and a penalty that remembers.
fn interrupted(folder: &Path, seed: i64, observer: &mut Recorder) -> Result<Fitted> {
    let config = PpoConfig {
        rl_steps: 3,
        cycle_steps: 5,
        mini_batch_size: 7,
        epochs: 2,
        kl: KlPenalty::Adaptive { initial: 0.1, target: 0.5, horizon: 50.0 },
        ..config()
    };
    let mut ppo = ppo(config, 1.0, seed)?
        .compat(Compat::Reference)
        .normalized_by(Normalization { gain: 2.0, bias: -0.5 })
        .supervised_by(Echo);
    tch::manual_seed(seed);
    let trainer = TrainerConfig { accumulate: 2, eval_every: 0, log_every: 1, ..short(12) };
    Trainer::new(trainer, folder)?.fit(&mut ppo, observer)
}

fn last(folder: &Path) -> [Vec<u8>; 4] {
    ["model.safetensors", "value.safetensors", "trainer.safetensors", "state.json"]
        .map(|file| fs::read(folder.join("last").join(file)).unwrap())
}

#[test]
fn stops_in_either_phase_leave_no_trace() {
    let _alone = alone();
    let folder = tempfile::tempdir().unwrap();
    // The reference is the model of seed 1 in all of them; a resumed policy comes from the checkpoint.
    interrupted(folder.path(), 1, &mut Recorder::default()).unwrap();
    let straight = last(folder.path());
    let stopped = tempfile::tempdir().unwrap();
    // Inside a reinforced phase, at its end, and inside a supervised one.
    for stop_after in [1, 2, 3, 6] {
        let fitted = interrupted(stopped.path(), 1, &mut Recorder::stopping_after(stop_after)).unwrap();
        assert_eq!((fitted.ending, fitted.steps), (Ending::Stopped, stop_after + 1));
    }
    let mut seen = Recorder::default();
    interrupted(stopped.path(), 1, &mut seen).unwrap();
    assert_eq!(seen.events[0], "started 7 of 12");
    assert!(last(stopped.path()) == straight, "parameters, optimizer or state differ");
    // Validation where a phase begins: 0, 3, 5, 8, 10, and at the end.
    let validated: Vec<_> = seen.events.iter().filter(|event| event.starts_with("evaluated")).collect();
    assert_eq!(validated, ["evaluated 8", "evaluated 10", "evaluated 12"]);
}

#[test]
fn a_separate_value_network_is_saved_and_leaves_the_policy_alone() {
    let _alone = alone();
    let folder = tempfile::tempdir().unwrap();
    let make = |seed| ActorCritic::separate(model(0.0, 1), model(0.0, seed), 3).unwrap();
    let first = make(2);
    first.save(folder.path()).unwrap();
    let second = make(5);
    second.restore(folder.path()).unwrap();
    let example = [Example { prompt: vec![10, 11, 1], target: vec![40, 41, 1] }];
    let values = |model: &ActorCritic<T5>| {
        let (_, values) = model.score_with_values(&example, Default::default()).unwrap();
        Vec::<f32>::try_from(values.view([-1])).unwrap()
    };
    assert_eq!(values(&first), values(&second));
    assert!(values(&make(5)) != values(&first));
    // The folder is the policy's, and of nothing else.
    T5::load(folder.path(), tch::Kind::Float, tch::Device::Cpu).unwrap();
    // A policy with a head has no place for such a network.
    let error = ActorCritic::shared(model(0.0, 1), 3).unwrap().restore(folder.path()).unwrap_err();
    assert!(error.to_string().contains("`value_model."), "{error}");
    // The value loss does not reach the policy.
    let (_, values) = first.score_with_values(&example, Default::default()).unwrap();
    values.sum(tch::Kind::Float).backward();
    assert!(first.actor().parameters().iter().all(|(_, t)| !t.grad().defined()));
    assert!(first.value_parameters().iter().any(|(_, t)| t.grad().defined()));
}

#[test]
fn measured_rewards_give_the_scale_and_the_tasks() {
    let _alone = alone();
    let ppo = ppo(config(), 1.0, 1).unwrap();
    let MeasuredRewards { normalization: map, by_task: tasks } =
        ppo.measure_rewards(None, &Collective::default(), &mut NullObserver).unwrap();
    assert_eq!(tasks.values().map(|task| task.count).sum::<usize>(), 40);
    assert_eq!(tasks.keys().collect::<Vec<_>>(), ["task 0", "task 1"]);
    assert!(map.gain > 0.0);
    // Two batches of 16.
    let some = ppo.measure_rewards(Some(2), &Collective::default(), &mut NullObserver).unwrap().by_task;
    assert_eq!(some.values().map(|task| task.count).sum::<usize>(), 32);
    // A part of the data is one of all tasks, though these come one after another.
    let ordered = |i: usize, prompt: Prompt<()>| Prompt { task: format!("task {}", i / 20), ..prompt };
    let train = prompts(40).into_iter().enumerate().map(|(i, prompt)| ordered(i, prompt)).collect();
    let actor = ActorCritic::shared(model(0.0, 1), 3).unwrap();
    let data = PpoData { train, supervised: None, held_out: prompts(12) };
    let ppo = Ppo::new(config(), actor, model(0.0, 1), tokenizer(), Share { scale: 1.0 }, data).unwrap();
    let part = ppo.measure_rewards(Some(1), &Collective::default(), &mut NullObserver).unwrap().by_task;
    let counts: Vec<usize> = part.values().map(|task| task.count).collect();
    assert_eq!((counts.len(), counts.iter().sum::<usize>()), (2, 16), "{counts:?}");
    let flat = self::ppo(config(), 0.0, 1).unwrap();
    let error = flat.measure_rewards(None, &Collective::default(), &mut NullObserver).unwrap_err();
    assert!(error.to_string().contains("standard deviation is 0"), "{error}");
}

/// Fails, or gives what it should not.
struct Broken(Option<f32>);

impl<P, Q> Reward<P, Q> for Broken {
    fn rewards(&self, _: &P, samples: &[Sample<'_, Q>]) -> std::result::Result<Vec<Rewarded>, RewardError> {
        match self.0 {
            Some(value) => Ok(samples.iter().map(|_| value.into()).collect()),
            None => Err(RewardError::Other("the judge is asleep".into())),
        }
    }
}

#[test]
fn what_is_wrong_is_named() {
    let _alone = alone();
    let run = |reward: Broken, best_by: &str| {
        let actor = ActorCritic::shared(model(0.0, 1), 3).unwrap();
        let data = PpoData { train: prompts(40), supervised: None, held_out: prompts(4) };
        let config = PpoConfig { best_by: best_by.into(), ..config() };
        let mut ppo = Ppo::new(config, actor, model(0.0, 1), tokenizer(), reward, data).unwrap();
        let folder = tempfile::tempdir().unwrap();
        chain(&Trainer::new(short(2), folder.path()).unwrap().fit(&mut ppo, &mut NullObserver).unwrap_err())
    };
    assert!(run(Broken(None), "").contains("the judge is asleep"));
    assert!(run(Broken(Some(f32::NAN)), "").contains("sample 0 (task task 0) is NaN"));
    assert!(run(Broken(Some(1.0)), "acc").contains("best_by"));

    let few = PpoConfig { batch_size: 41, ..config() };
    assert!(ppo(few, 1.0, 1).is_err());
    let answers = PpoConfig { rl_steps: 1, cycle_steps: 2, ..config() };
    let folder = tempfile::tempdir().unwrap();
    let error = Trainer::new(short(2), folder.path())
        .unwrap()
        .fit(&mut ppo(answers, 1.0, 1).unwrap(), &mut NullObserver)
        .unwrap_err();
    assert!(error.to_string().contains("rl_steps"), "{error}");
}

/// Writes nothing but padding in the first `empty` rows of a batch, and counts the passes that score; all else is the T5's.
struct Mute {
    t5: T5,
    empty: usize,
    scored: Cell<usize>,
}

impl Mute {
    fn new(dropout_rate: f64, empty: usize) -> Self {
        Self { t5: model(dropout_rate, 1), empty, scored: Cell::new(0) }
    }
}

impl Policy for Mute {
    fn parameters(&self) -> &Parameters {
        self.t5.parameters()
    }
    fn device(&self) -> tch::Device {
        self.t5.device()
    }
    fn hidden_size(&self) -> i64 {
        self.t5.hidden_size()
    }
    fn pad_token_id(&self) -> TokenId {
        self.t5.pad_token_id()
    }
    fn set_training(&mut self, training: bool) {
        self.t5.set_training(training);
    }
    fn has_dropout(&self) -> bool {
        self.t5.has_dropout()
    }
    fn score(&self, examples: &[Example], want: ScoreOptions) -> ruminate_models::Result<TokenScores> {
        self.scored.set(self.scored.get() + 1);
        self.t5.score(examples, want)
    }
    fn save(&self, folder: &Path) -> ruminate_models::Result<()> {
        self.t5.save(folder)
    }
}

impl Generate for Mute {
    fn generate(
        &self,
        prompts: &[Vec<TokenId>],
        config: &GenerationConfig,
        seeds: &[u64],
    ) -> ruminate_models::Result<Vec<Vec<Generated>>> {
        let mut written = self.t5.generate(prompts, config, seeds)?;
        written.iter_mut().take(self.empty).flatten().for_each(|generated| generated.ids.fill(0));
        Ok(written)
    }
}

fn muted(config: PpoConfig, dropout_rate: f64, empty: usize) -> Ppo<Mute, (), Share> {
    let data = PpoData { train: prompts(16), supervised: None, held_out: prompts(4) };
    let actor = ActorCritic::shared(Mute::new(dropout_rate, empty), 3).unwrap();
    let reference = Mute::new(dropout_rate, empty);
    Ppo::new(config, actor, reference, tokenizer(), Share { scale: 1.0 }, data).unwrap()
}

/// Unless there is dropout, or either is in pieces.
#[test]
fn the_pass_that_scores_a_rollout_is_that_of_its_first_update() {
    let _alone = alone();
    let passes = |config, dropout_rate, accumulate| {
        let mut ppo = muted(config, dropout_rate, 0);
        let mut counts = vec![];
        for update in 0..2 {
            let batches = ppo.batches(0, update, accumulate).unwrap().unwrap();
            counts.push(ppo.policy().scored.take());
            for batch in &batches {
                ppo.losses(batch).unwrap();
            }
            counts.push(ppo.policy().scored.take());
        }
        counts
    };
    assert_eq!(passes(config(), 0.0, 1), [1, 0, 0, 1]);
    assert_eq!(passes(config(), 0.1, 1), [1, 1, 0, 1]);
    assert_eq!(passes(config(), 0.0, 2), [1, 2, 0, 2]);
    let narrow = RolloutConfig { batch_size: 8, ..config().rollout };
    assert_eq!(passes(PpoConfig { rollout: narrow, ..config() }, 0.0, 1), [2, 1, 0, 1]);
    assert_eq!(passes(PpoConfig { mini_batch_size: 8, ..config() }, 0.0, 1), [1, 1, 0, 1]);
    assert_eq!(passes(PpoConfig { mini_batch_size: 16, ..config() }, 0.0, 1), [1, 0, 0, 1]);
}

/// Rollouts run under the same autocast, and what it has kept of the weights then has no gradients.
#[test]
fn that_pass_has_gradients_in_bfloat16_and_with_activations_made_again() {
    let _alone = alone();
    let changes = |trainer: &TrainerConfig, rows| {
        let rollout = RolloutConfig { batch_size: rows, ..config().rollout };
        let mut ppo = ppo(PpoConfig { rollout, epochs: 1, ..config() }, 1.0, 1).unwrap();
        let values = |ppo: &Ppo<T5, (), Share>| {
            let named = ppo.model().parameters().named();
            named.into_iter().map(|(name, t)| (name, t.detach().copy())).collect::<Vec<_>>()
        };
        let before = values(&ppo);
        let folder = tempfile::tempdir().unwrap();
        Trainer::new(trainer.clone(), folder.path()).unwrap().fit(&mut ppo, &mut NullObserver).unwrap();
        before
            .into_iter()
            .zip(values(&ppo))
            .map(|((name, was), (_, is))| (name, is - was))
            .collect::<Vec<_>>()
    };
    let norm = |x: &Tensor| x.norm().double_value(&[]);
    for (precision, gradient_checkpointing) in
        [(Precision::F32, true), (Precision::Bf16, false), (Precision::Bf16, true)]
    {
        // A large epsilon keeps the step from being the gradient's sign alone.
        let trainer = TrainerConfig {
            precision,
            gradient_checkpointing,
            eps: 1.0,
            lr: 1.0,
            eval_every: 1000,
            ..short(1)
        };
        for ((name, one), (_, pieces)) in changes(&trainer, 16).iter().zip(&changes(&trainer, 5)) {
            let error = norm(&(one - pieces)) / norm(pieces);
            let allowed = if precision == Precision::F32 { 1e-3 } else { 0.1 };
            assert!(error < allowed, "{precision:?} {gradient_checkpointing} {name}: {error}");
        }
    }
}

/// A row of nothing but padding is an error with the reference's arithmetic, and left out otherwise, even if all are.
#[test]
fn rows_without_tokens_are_left_out_or_refused() {
    let _alone = alone();
    let run = |compat, empty| {
        let mut ppo = muted(config(), 0.0, empty).compat(compat);
        let updates = ppo.batches(0, 0, 1)?;
        let rows = updates.iter().flatten().map(|batch| match batch {
            Batch::Reinforced { rows, .. } => rows.len(),
            Batch::Supervised(_) => 0,
        });
        Ok::<usize, ruminate_algorithms::Error>(rows.sum())
    };
    assert_eq!(run(Compat::Corrected, 0).unwrap(), 16);
    assert_eq!(run(Compat::Corrected, 3).unwrap(), 13);
    assert_eq!(run(Compat::Corrected, 16).unwrap(), 0);
    assert_eq!(run(Compat::Reference, 0).unwrap(), 16);
    let error = run(Compat::Reference, 3).unwrap_err().to_string();
    assert!(error.contains("has no token"), "{error}");
}
