//! Runs.

use std::fs;
use std::path::Path;

use ruminate_algorithms::ppo::{KlPenalty, Prompt};
use ruminate_algorithms::quark::{
    AddTo, Condition, ControlConfig, ExpertConfig, Judged, POOL, Quark, QuarkConfig, QuarkData, Ranked,
    RewardSpec, SamplingConfig, Scorer, StageSchedule, Tokens, labels,
};
use ruminate_algorithms::trainer::TrainerState;
use ruminate_algorithms::{Algorithm, Ending, Fitted, Result, Schedule, Trainer, TrainerConfig};
use ruminate_models::checkpoint::read_json;
use ruminate_models::{Example, Interrupt, Policy, ScoreOptions, T5, Tokenizer};
use ruminate_rewards::{RewardError, Sample};
use tch::{Kind, Tensor};

use super::{GOOD, TestQuark, config, data, experts, parts, prompts, quark_of, share};
use crate::support::{Recorder, alone, model, short};

/// Mean share of good tokens where the policy is asked for something.
fn asked_for(quark: &TestQuark, condition: Condition) -> f64 {
    let prompts = prompts(40);
    let prompts: Vec<&Prompt<()>> = prompts.iter().collect();
    let responses = quark.respond(&prompts, condition, 1000, |_| Ok(())).unwrap();
    responses.iter().map(|response| share(&response.ids)).sum::<f64>() / 40.0
}

fn trained(config: QuarkConfig, scale: f32, steps: u64) -> (TestQuark, Recorder) {
    trained_from(1, config, scale, steps)
}

fn trained_from(seed: i64, config: QuarkConfig, scale: f32, steps: u64) -> (TestQuark, Recorder) {
    let folder = tempfile::tempdir().unwrap();
    let mut quark = quark_of(config, scale, seed, data()).unwrap();
    let mut seen = Recorder::default();
    let trainer = TrainerConfig { lr: 1e-2, eval_every: 1000, max_grad_norm: 1.0, ..short(steps) };
    Trainer::new(trainer, folder.path()).unwrap().fit(&mut quark, &mut seen).unwrap();
    assert!(seen.has_values("eval/correct"));
    assert!(seen.means.keys().any(|(_, name)| name.starts_with("train/reward/")), "{:?}", seen.means);
    (quark, seen)
}

#[test]
fn the_policy_does_what_its_control_token_says() {
    let _alone = alone();
    // So few steps at such a rate depend on the start and on rounding: one alone says little.
    let mut all = vec![];
    for seed in 1..=4 {
        let (quark, seen) = trained_from(seed, config(), 1.0, 240);
        all.push((asked_for(&quark, Condition::Best), asked_for(&quark, Condition::Worst), seen));
    }
    let apart = all.iter().map(|(best, worst, _)| best - worst).sum::<f64>() / all.len() as f64;
    let shares: Vec<_> = all.iter().map(|(best, worst, _)| (best, worst)).collect();
    assert!(shares.iter().all(|&(best, _)| *best > 0.9) && apart > 0.2, "{shares:?}");
    let seen = all.swap_remove(0).2;
    // And what it is asked for in each round gets better.
    let rewards = seen.series("train/reward/share");
    assert!(rewards.len() == 16 && rewards[15] > rewards[0] + 0.2, "{rewards:?}");
    for name in
        ["loss/total", "loss/lm", "loss/kl", "objective/kl", "objective/entropy", "kl_coef", "pool/samples"]
    {
        let series = seen.series(&format!("train/{name}"));
        assert!(series.len() == 240 && series.iter().all(|x| x.is_finite()), "{name} {series:?}");
    }
    assert!(seen.series("train/loss/entropy").is_empty());
    let sizes = seen.series("train/pool/samples");
    assert_eq!([sizes[0], sizes[14], sizes[15], sizes[239]], [80.0, 80.0, 160.0, 1280.0]);
}

/// How much more the best token prefers good tokens to bad ones than the worst token does, in nats per token of what
/// was written.
fn preference(quark: &TestQuark) -> f64 {
    let log_probs = |condition| -> Vec<f32> {
        let code = quark.tokens().condition(condition, 0);
        let example = |ranked: &Ranked<Tokens>| {
            let Tokens { prompt, response } = &ranked.sample.item;
            Example { prompt: prompt.clone(), target: labels(&code, response) }
        };
        let examples: Vec<_> = quark.pool().samples().iter().take(100).map(example).collect();
        let scores = quark.policy().score(&examples, ScoreOptions::default()).unwrap();
        // Behind the code.
        let labels = scores.labels.ids.narrow(1, 1, scores.labels.ids.size()[1] - 1);
        let good = labels.gt(GOOD).to_kind(Kind::Float);
        let bad = labels.gt(1).to_kind(Kind::Float) - &good;
        let log_probs = scores.log_probs.narrow(1, 1, labels.size()[1]);
        let mean = |mask: &Tensor| (&log_probs * mask).sum(Kind::Float) / mask.sum(Kind::Float);
        Vec::try_from(Tensor::stack(&[mean(&good), mean(&bad)], 0)).unwrap()
    };
    let (best, worst) = (log_probs(Condition::Best), log_probs(Condition::Worst));
    f64::from((best[0] - best[1]) - (worst[0] - worst[1]))
}

#[test]
fn a_reward_without_spread_teaches_no_control() {
    let _alone = alone();
    // One round: in later ones equal scores keep the order of age, which is something to learn, too.
    let once = QuarkConfig { sample_interval: 1000, ..config() };
    let many = QuarkConfig { sampling: SamplingConfig { passes: 8, ..once.sampling.clone() }, ..once };
    let taught = |scale| preference(&trained(many.clone(), scale, 150).0);
    let (some, none) = (taught(1.0), taught(0.0));
    assert!(some > 0.4 && none.abs() < 0.25 * some, "with spread {some}, without {none}");
}

#[test]
fn the_divergence_holds_the_policy_back() {
    let _alone = alone();
    let drift = |coef| {
        let (_, seen) = trained(QuarkConfig { kl: KlPenalty::Fixed { coef }, ..config() }, 1.0, 30);
        *seen.series("train/objective/kl").last().unwrap()
    };
    let (loose, tight) = (drift(1e-3), drift(2.0));
    assert!(tight < 0.6 * loose, "{loose} {tight}");
}

#[test]
fn only_the_policy_moves_and_its_control_tokens_with_it() {
    let _alone = alone();
    let (quark, _) = trained(config(), 1.0, 5);
    let (_, before) = parts(&config().control, 1);
    let rows = |t5: &T5, first, count| {
        t5.parameters().get("shared.weight").unwrap().detach().narrow(0, first, count)
    };
    let moved = |first, count| {
        let difference = rows(quark.policy(), first, count) - rows(&before, first, count);
        difference.abs().max().double_value(&[])
    };
    let first = super::first_control_token();
    assert!(moved(first, 4) > 1e-4 && moved(5, 100) > 1e-4);
    for ((name, a), (_, b)) in quark.reference().parameters().iter().zip(model(0.0, 1).parameters().iter()) {
        assert_eq!(a, b, "{name}");
        assert!(!Tensor::grad(a).defined(), "{name}");
    }
    // No control token was ever written.
    for ranked in quark.pool().samples() {
        let response = &ranked.sample.item.response;
        assert!(response.iter().all(|&id| id > 0 && id < first), "{response:?}");
        assert!(response.len() <= 6 + 1 && response.last() == Some(&1));
    }
}

/// Good tokens, and short responses; whoever has no good token at all is wrong.
struct Two;

impl<P, Q> Scorer<P, Q> for Two {
    fn names(&self) -> Vec<String> {
        vec!["share".into(), "brevity".into(), "accuracy".into()]
    }

    fn judge(&self, _: &P, samples: &[Sample<'_, Q>]) -> std::result::Result<Vec<Judged>, RewardError> {
        let judge = |sample: &Sample<'_, Q>| {
            let (share, correct) = (share(sample.response), share(sample.response) > 0.0);
            // A score that is missing now and then.
            let brevity = (sample.response.len() != 2).then(|| 1.0 / sample.response.len() as f64);
            let scores = vec![Some(share), brevity, Some(f64::from(u8::from(correct)))];
            Judged { scores, valid: sample.response.len() > 1, correct }
        };
        Ok(samples.iter().map(judge).collect())
    }
}

/// Everything that a run keeps between steps is in use.
fn several() -> QuarkConfig {
    let rewards = vec![
        RewardSpec::new("share"),
        RewardSpec::new("brevity"),
        RewardSpec::new("accuracy").buckets(ruminate_algorithms::quark::Buckets::Correctness),
    ];
    let stages = StageSchedule::Additive { interval: 5, add_to: AddTo::Right, groups: vec![] };
    QuarkConfig {
        control: ControlConfig { rewards, task_correctness: true, stages, ..ControlConfig::default() },
        batch_size: 7,
        sample_interval: 4,
        expert: ExpertConfig { per_round: Some(3), all_at_first: false, repeats: true },
        kl: KlPenalty::Adaptive { initial: 0.1, target: 1.0, horizon: 100.0 },
        entropy: KlPenalty::Adaptive { initial: 0.01, target: 5.0, horizon: 100.0 },
        dropout: true,
        ..config()
    }
}

/// One process of a run: other objects, and the generator wherever its predecessor did not leave it.
fn process(folder: &Path, seed: i64, observer: &mut Recorder) -> Result<Fitted> {
    process_with(folder, seed, Two, observer)
}

fn process_with(
    folder: &Path,
    seed: i64,
    scorer: impl Scorer<T5, ()>,
    observer: &mut Recorder,
) -> Result<Fitted> {
    let (tokenizer, policy): (Tokenizer, T5) = parts(&several().control, seed);
    let data = QuarkData { expert: experts(5), ..data() };
    let mut quark = Quark::new(several(), policy, model(0.0, 1), tokenizer, scorer, data)?;
    tch::manual_seed(seed);
    let trainer = TrainerConfig {
        schedule: Schedule::Linear,
        warmup_steps: 3,
        max_grad_norm: 1.0,
        accumulate: 2,
        eval_every: 6,
        ..short(14)
    };
    Trainer::new(trainer, folder)?.fit(&mut quark, observer)
}

fn last(folder: &Path) -> [Vec<u8>; 5] {
    ["model.safetensors", "trainer.safetensors", "state.json", POOL, "tokenizer.json"]
        .map(|file| fs::read(folder.join("last").join(file)).unwrap())
}

#[test]
fn stops_leave_no_trace() {
    let _alone = alone();
    let straight = tempfile::tempdir().unwrap();
    process(straight.path(), 1, &mut Recorder::default()).unwrap();
    let folder = tempfile::tempdir().unwrap();
    // Right before a round, within one, and right after one.
    for (seed, stop_after) in [(1, 3), (2, 6), (3, 8)] {
        let fitted = process(folder.path(), seed, &mut Recorder::stopping_after(stop_after)).unwrap();
        assert_eq!((fitted.ending, fitted.steps), (Ending::Stopped, stop_after + 1));
    }
    // Dies without a word, with a checkpoint of step 12 behind it.
    process(folder.path(), 4, &mut Recorder::failing_at("step 13 of 14")).unwrap_err();
    let mut observer = Recorder::default();
    process(folder.path(), 5, &mut observer).unwrap();
    assert_eq!(observer.events[0], "started 12 of 14");
    assert!(last(folder.path()) == last(straight.path()), "parameters, optimizer, state or pool differ");
    assert!(!last(straight.path())[3].is_empty());
}

/// Worth less each time that it judges.
struct Falling(std::cell::Cell<f64>);

impl<P, Q> Scorer<P, Q> for Falling {
    fn names(&self) -> Vec<String> {
        vec!["share".into()]
    }

    fn judge(&self, _: &P, samples: &[Sample<'_, Q>]) -> std::result::Result<Vec<Judged>, RewardError> {
        self.0.set(self.0.get() - 1.0);
        let judged = Judged { scores: vec![Some(self.0.get())], valid: true, correct: true };
        Ok(samples.iter().map(|_| judged.clone()).collect())
    }
}

#[test]
fn what_the_reference_earned_makes_no_checkpoint_the_best() {
    let _alone = alone();
    let folder = tempfile::tempdir().unwrap();
    let run = |steps, observer: &mut Recorder| {
        let (tokenizer, policy) = parts(&config().control, 1);
        let scorer = Falling(0.0.into());
        let mut quark = Quark::new(config(), policy, model(0.0, 1), tokenizer, scorer, data()).unwrap();
        let trainer = TrainerConfig { eval_every: 2, ..short(steps) };
        Trainer::new(trainer, folder.path()).unwrap().fit(&mut quark, observer).unwrap()
    };
    let best = || fs::read_link(folder.path().join("best")).ok();
    let stopped = run(4, &mut Recorder::stopping_after(0));
    assert_eq!((stopped.best.step, stopped.best.score.is_nan(), best()), (1, true, None));
    // Validation is done where it was done before.
    let mut seen = Recorder::default();
    let fitted = run(4, &mut seen);
    assert_eq!((fitted.best.step, best()), (2, Some("step-2".into())));
    assert!(!seen.events.contains(&"evaluated 0".to_string()), "{:?}", seen.events);
    let state: TrainerState = read_json(&folder.path().join("last/state.json")).unwrap();
    assert_eq!(
        (state.scores.into_keys().collect(), state.unranked.into_iter().collect()),
        (vec![2, 4], vec![0])
    );
}

#[test]
fn responses_are_shown_as_they_were_written() {
    let _alone = alone();
    let prompts = prompts(40);
    let prompts: Vec<&Prompt<()>> = prompts.iter().collect();
    for clean_up in [false, true] {
        let quark = quark_of(QuarkConfig { clean_up, ..config() }, 1.0, 3, data()).unwrap();
        let responses = quark.respond(&prompts, Condition::Best, 1, |_| Ok(())).unwrap();
        let decoded = |clean: bool| {
            let tokenizer = crate::support::tokenizer();
            let text = |ids: &[i64]| match clean {
                true => tokenizer.decode_clean(ids).unwrap().trim().to_string(),
                false => tokenizer.decode(ids, true).unwrap(),
            };
            responses.iter().map(|response| text(&response.ids)).collect::<Vec<_>>()
        };
        let written: Vec<String> = responses.iter().map(|response| response.text.clone()).collect();
        assert_eq!(written, decoded(clean_up));
    }
    assert!(!QuarkConfig::default().clean_up);
}

/// Somebody asks to stop while it judges for the `n`-th time.
struct Interrupting {
    n: std::cell::Cell<usize>,
    interrupt: Interrupt,
}

impl<P, Q> Scorer<P, Q> for Interrupting {
    fn names(&self) -> Vec<String> {
        Scorer::<P, Q>::names(&Two)
    }

    fn judge(&self, policy: &P, samples: &[Sample<'_, Q>]) -> std::result::Result<Vec<Judged>, RewardError> {
        match self.n.get() {
            1 => self.interrupt.raise(),
            n => self.n.set(n.saturating_sub(1)),
        }
        Two.judge(policy, samples)
    }
}

/// In a validation, between two passes of a round, after it, and in a later one.
#[test]
fn a_round_that_is_interrupted_begins_anew() {
    let _alone = alone();
    let straight = tempfile::tempdir().unwrap();
    process(straight.path(), 1, &mut Recorder::default()).unwrap();
    let folder = tempfile::tempdir().unwrap();
    for (seed, n, steps) in [(1, 1, 0), (2, 1, 0), (3, 2, 4), (4, 1, 4)] {
        let mut seen = Recorder::default();
        let scorer = Interrupting { n: n.into(), interrupt: seen.interrupt.clone() };
        let fitted = process_with(folder.path(), seed, scorer, &mut seen).unwrap();
        assert_eq!((fitted.ending, fitted.steps), (Ending::Stopped, steps), "{n}");
        assert!(seen.events.contains(&format!("checkpoint {steps}")), "{:?}", seen.events);
    }
    process(folder.path(), 4, &mut Recorder::default()).unwrap();
    assert!(last(folder.path()) == last(straight.path()), "parameters, optimizer, state or pool differ");
}

#[test]
fn a_checkpoint_of_other_data_is_refused() {
    let _alone = alone();
    let folder = tempfile::tempdir().unwrap();
    process(folder.path(), 1, &mut Recorder::stopping_after(5)).unwrap();
    let (tokenizer, policy) = parts(&several().control, 1);
    let other = QuarkData { train: prompts(39), ..data() };
    let mut quark = Quark::new(several(), policy, model(0.0, 1), tokenizer, Two, other).unwrap();
    let error = Trainer::new(short(14), folder.path()).unwrap().fit(&mut quark, &mut Recorder::default());
    let error = error.unwrap_err().to_string();
    assert!(error.contains("40 prompts and 10 expert rows, but there are 39 and 0 now"), "{error}");
}

#[test]
fn text_may_be_cut_into_tokens_anew() {
    let _alone = alone();
    let config = QuarkConfig { retokenize: true, ..config() };
    let mut quark = quark_of(config, 1.0, 1, data()).unwrap();
    quark.batches(0, 0, 1).unwrap();
    let tokenizer = crate::support::tokenizer();
    for ranked in quark.pool().samples() {
        let again = tokenizer.encode(&ranked.sample.response).unwrap();
        assert_eq!(ranked.sample.item.response, again);
    }
}
