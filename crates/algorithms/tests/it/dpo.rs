//! Preference optimisation of tiny models.

use std::fs;
use std::path::Path;

use approx::assert_relative_eq;
use ruminate_algorithms::dpo::{
    Dpo, DpoConfig, EncodedPairs, Pair, PairLengths, PreferenceLoss, PromptCut, Reference, ReferenceSync,
    ShuffledPairs, WeightedLoss, encode_pairs, precompute, precompute_cached,
};
use ruminate_algorithms::{Algorithm, Collective, Ending, Metrics, NullObserver, Trainer, TrainerConfig};
use ruminate_datasets::PreferenceExample;
use ruminate_models::{Example, LogitStatistics, Policy, ScoreOptions, T5, TokenId};
use tch::{Kind, Tensor};

use crate::support::{Recorder, alone, examples, model, short, tokenizer};

/// Pairs of different lengths.
pub(crate) fn pairs(count: i64) -> Vec<Pair> {
    let rejected = |i: i64| (0..(2 + i % 3)).map(|j| 20 + (11 * i + 5 * j) % 150).chain([1]).collect();
    let pair = |(i, Example { prompt, target })| Pair {
        source: if i % 2 == 0 { "even" } else { "odd" }.into(),
        ..Pair::new(prompt, target, rejected(i))
    };
    (0..).zip(examples(count)).map(pair).collect()
}

fn dpo(config: DpoConfig, policy: T5, reference: Reference<T5>) -> Dpo<T5, ShuffledPairs> {
    let source = ShuffledPairs::new(pairs(7), 2, 3).unwrap();
    Dpo::new(config, policy, reference, source, pairs(7), tokenizer()).unwrap()
}

fn metric(metrics: &Metrics, name: &str) -> f64 {
    metrics.iter().find(|(n, _)| n == name).unwrap_or_else(|| panic!("{name} is missing in {metrics:?}")).1
}

fn close(got: f64, want: f64) {
    assert_relative_eq!(got, want, epsilon = 2e-5, max_relative = 2e-5);
}

/// Log-probability of a target alone, from whole logits.
fn naive(model: &T5, prompt: &[TokenId], target: &[TokenId]) -> f64 {
    let encoded = model.encode(&model.batch(&[prompt]).unwrap()).unwrap();
    let labels = Tensor::from_slice(target).view([1, -1]);
    let states = model.decode(&encoded, &model.shift_right(&labels).unwrap()).unwrap();
    let all = model.logits(&states).unwrap().log_softmax(-1, Kind::Double);
    all.gather(-1, &labels.unsqueeze(-1), false).sum(Kind::Double).double_value(&[])
}

#[test]
fn a_step_is_what_a_naive_computation_gives() {
    let _alone = alone();
    let (policy, reference) = (model(0.0, 1), model(0.0, 2));
    let batch = pairs(5);
    let config = DpoConfig { beta: 0.3, rpo_alpha: 0.7, ..DpoConfig::default() };
    let (mut preference, mut nll) = (0.0, 0.0);
    for pair in &batch {
        let ratio =
            |ids: &[TokenId]| naive(&policy, &pair.prompt, ids) - naive(&reference, &pair.prompt, ids);
        preference += (1.0 + (-0.3 * (ratio(&pair.chosen) - ratio(&pair.rejected))).exp()).ln();
        nll -= naive(&policy, &pair.prompt, &pair.chosen);
    }
    let mut dpo = dpo(config, policy, Reference::Model(reference));
    let terms = dpo.terms(&batch);
    let tokens: usize = batch.iter().map(|pair| pair.chosen.len()).sum();
    assert_eq!(
        terms.iter().map(|term| (term.name, term.weight, term.count)).collect::<Vec<_>>(),
        [("preference_loss", 1.0, 5), ("nll_loss", 0.7, tokens as u64)]
    );
    let sums = dpo.losses(&batch).unwrap();
    close(sums.sums[0].double_value(&[]), preference);
    close(sums.sums[1].double_value(&[]), nll);
    // Prompts went through the encoder once for both completions.
    let real: usize = batch.iter().map(|p| p.prompt.len() + p.chosen.len() + p.rejected.len()).sum();
    assert_eq!(sums.tokens, real as u64);
    // However the batch is cut, the sums are the same.
    let parts = batch.chunks(2).map(|part| dpo.losses(&part.to_vec()).unwrap().sums[0].double_value(&[]));
    close(parts.sum(), preference);
}

#[test]
fn before_the_first_update_nothing_is_preferred() {
    let _alone = alone();
    // With dropout in the model, which must be off.
    let mut dpo = dpo(
        DpoConfig { logit_metrics: true, ..DpoConfig::default() },
        model(0.3, 1),
        Reference::Model(model(0.3, 1)),
    );
    dpo.policy_mut().set_training(true);
    let sums = dpo.losses(&pairs(4)).unwrap();
    close(sums.sums[0].double_value(&[]), 4.0 * std::f64::consts::LN_2);
    let metrics = dpo.metrics().unwrap();
    for name in
        ["rewards/chosen", "rewards/margins", "rewards/accuracies", "kl/rejected", "rewards/margins/even"]
    {
        assert_eq!(metric(&metrics, name), 0.0, "{name}");
    }
    assert!(metric(&metrics, "entropy") > 0.0 && metric(&metrics, "logps/chosen") < 0.0);
    assert!((0.0..=1.0).contains(&metric(&metrics, "mean_token_accuracy")));
    assert!(dpo.metrics().unwrap().is_empty(), "they were taken");
}

#[test]
fn margins_rise_and_every_loss_trains() {
    let _alone = alone();
    let simpo = PreferenceLoss::Simpo { gamma: 0.5, label_smoothing: 0.0, alpha: 0.0 };
    let cpo = PreferenceLoss::Cpo { hinge: false, label_smoothing: 0.0, nll_weight: 1.0 };
    let sigmoid = PreferenceLoss::default();
    for (loss, free) in [
        (sigmoid, false),
        (PreferenceLoss::Robust { label_smoothing: 0.1 }, false),
        (PreferenceLoss::Hinge, false),
        (PreferenceLoss::Ipo { norm: Default::default() }, false),
        (PreferenceLoss::ExoPair { epsilon: 1e-3 }, false),
        (PreferenceLoss::NcaPair, false),
        (PreferenceLoss::BcoPair { shift: true }, false),
        (PreferenceLoss::SppoHard, false),
        (PreferenceLoss::AotUnpaired { label_smoothing: 0.0 }, false),
        (PreferenceLoss::ApoZero, false),
        (PreferenceLoss::ApoDown, false),
        // At the paper's temperature of 0.05 it falls with the margin, where policy and reference agree.
        (PreferenceLoss::DiscoPop { tau: 1.0 }, false),
        (PreferenceLoss::SigmoidNorm, false),
        (simpo, true),
        (cpo, true),
        (PreferenceLoss::Orpo, true),
    ] {
        let reference = if free { Reference::None } else { Reference::Model(model(0.0, 1)) };
        let config = DpoConfig { wpo: loss == sigmoid, ..DpoConfig::with(loss) };
        let mut dpo = dpo(config, model(0.0, 1), reference);
        let before = dpo.evaluate(0, &mut NullObserver).unwrap().metrics;
        let folder = tempfile::tempdir().unwrap();
        let steps = if loss == sigmoid { 60 } else { 12 };
        Trainer::new(short(steps), folder.path()).unwrap().fit(&mut dpo, &mut NullObserver).unwrap();
        let after = dpo.evaluate(0, &mut NullObserver).unwrap().metrics;
        let change = |name: &str| metric(&after, name) - metric(&before, name);
        assert!(change("eval/rewards/margins") > 0.0, "{loss:?}: {}", change("eval/rewards/margins"));
        if loss == sigmoid {
            assert_eq!(metric(&after, "eval/rewards/accuracies"), 1.0);
            assert!(metric(&after, "eval/loss") < metric(&before, "eval/loss"));
        }
    }
}

#[test]
fn precomputed_is_live_and_padding_is_invisible() {
    let _alone = alone();
    let (policy, reference) = (model(0.0, 1), model(0.0, 2));
    let batch = pairs(6);
    let mut precomputed = batch.clone();
    precompute(&reference, &mut precomputed, 0.5, 4).unwrap();
    for pair in &precomputed {
        let mut alone = [Pair { reference: None, ..pair.clone() }];
        precompute(&reference, &mut alone, 0.5, 1).unwrap();
        let ([chosen, rejected], [c, r]) = (pair.reference.unwrap(), alone[0].reference.unwrap());
        close(chosen.into(), c.into());
        close(rejected.into(), r.into());
    }
    let config = DpoConfig { ld_alpha: 0.5, ..DpoConfig::default() };
    let mut live = dpo(config.clone(), model(0.0, 1), Reference::Model(model(0.0, 2)));
    let mut stored = dpo(config, policy, Reference::Precomputed);
    let sum = |dpo: &mut Dpo<T5, ShuffledPairs>, batch: &Vec<Pair>| {
        dpo.losses(batch).unwrap().sums[0].double_value(&[])
    };
    close(sum(&mut stored, &precomputed), sum(&mut live, &batch));
    let error = stored.losses(&batch).unwrap_err().to_string();
    assert!(error.contains("lacks its log-probabilities"), "{error}");

    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("reference.json");
    let cached = |reference: &T5, ld_alpha| {
        let mut pairs = batch.clone();
        let read =
            precompute_cached(reference, &mut pairs, ld_alpha, 4, &file, &Collective::default()).unwrap();
        (read, pairs)
    };
    assert_eq!(cached(&reference, 0.5), (false, precomputed.clone()));
    assert_eq!(cached(&reference, 0.5), (true, precomputed.clone()));
    assert!(!cached(&reference, 1.0).0, "another weight of tails");
    assert!(!cached(&model(0.0, 3), 1.0).0, "another model");
    fs::write(&file, "nonsense").unwrap();
    assert!(!cached(&reference, 0.5).0);
}

/// One process of a run with everything that must survive a stop.
fn process(folder: &Path, seed: i64, observer: &mut Recorder) -> Ending {
    let terms = [PreferenceLoss::default(), PreferenceLoss::BcoPair { shift: true }];
    let config = DpoConfig {
        terms: terms.map(|loss| WeightedLoss { loss, weight: 0.5 }).to_vec(),
        rpo_alpha: 0.5,
        dropout: true,
        sync: Some(ReferenceSync { every: 3, alpha: 0.6 }),
        ..DpoConfig::default()
    };
    // The reference of a resumed process is wherever it was loaded from.
    let mut dpo = dpo(config, model(0.3, seed), Reference::Model(model(0.3, 1)));
    tch::manual_seed(seed);
    let config = TrainerConfig { accumulate: 2, eval_every: 4, max_grad_norm: 1.0, ..short(10) };
    Trainer::new(config, folder).unwrap().fit(&mut dpo, observer).unwrap().ending
}

#[test]
fn stops_leave_no_trace() {
    let _alone = alone();
    let last = |folder: &Path| {
        ["model.safetensors", "trainer.safetensors", "state.json", "reference.safetensors"]
            .map(|file| fs::read(folder.join("last").join(file)).unwrap())
    };
    let [whole, parts] = [(); 2].map(|()| tempfile::tempdir().unwrap());
    assert_eq!(process(whole.path(), 1, &mut Recorder::default()), Ending::Finished);
    // Behind a move of the reference, and right before one.
    for (seed, after) in [(1, 3), (2, 5)] {
        assert_eq!(process(parts.path(), seed, &mut Recorder::stopping_after(after)), Ending::Stopped);
    }
    assert_eq!(process(parts.path(), 99, &mut Recorder::default()), Ending::Finished);
    assert!(last(whole.path()) == last(parts.path()), "parameters, optimizer, state or reference differ");
}

#[test]
fn alternatives_share_their_prompt() {
    let _alone = alone();
    let model = model(0.0, 1);
    let batch = pairs(3);
    let prompts: Vec<&[TokenId]> = batch.iter().map(|pair| pair.prompt.as_slice()).collect();
    let targets: Vec<&[TokenId]> =
        batch.iter().flat_map(|p| [p.chosen.as_slice(), p.rejected.as_slice()]).collect();
    let shared = model.score_alternatives(&prompts, &targets, ScoreOptions::default()).unwrap().log_probs;
    let sums = Vec::<f32>::try_from(shared.sum_dim_intlist(1i64, false, Kind::Float)).unwrap();
    for (i, (target, sum)) in targets.iter().zip(sums).enumerate() {
        close(sum.into(), naive(&model, prompts[i / 2], target));
    }
    let error =
        model.score_alternatives(&prompts, &targets[..4], ScoreOptions::default()).unwrap_err().to_string();
    assert!(error.contains("evenly"), "{error}");
}

#[test]
fn statistics_are_those_of_the_logits() {
    let _alone = alone();
    let model = model(0.0, 1);
    let example = &examples(3)[2..];
    let scores = model.score(example, ScoreOptions { states: true, entropy: true }).unwrap();
    let got = LogitStatistics::of(&model, scores.states.as_ref().unwrap(), &scores.labels).unwrap();
    let logits = model.logits(scores.states.as_ref().unwrap()).unwrap();
    let probs = logits.softmax(-1, Kind::Double);
    let time = scores.labels.ids.size()[1];
    for t in 0..time {
        let at = |tensor: &Tensor| tensor.double_value(&[0, t]);
        close(at(&got.mean_logit), logits.get(0).get(t).mean(Kind::Double).double_value(&[]));
        close(at(&got.entropy), at(scores.entropy.as_ref().unwrap()));
        close(at(&got.collision), probs.get(0).get(t).square().sum(Kind::Double).double_value(&[]).ln());
        let best = logits.get(0).get(t).argmax(0, false).int64_value(&[]);
        assert_eq!(at(&got.correct), f64::from(u8::from(best == scores.labels.ids.int64_value(&[0, t]))));
    }
}

#[test]
fn the_padding_defect_can_be_had() {
    let _alone = alone();
    let config = DpoConfig { rpo_alpha: 1.0, rpo_padding_compat: true, ..DpoConfig::default() };
    let mut dpo = dpo(config, model(0.0, 1), Reference::None);
    let batch = pairs(4);
    let width = batch.iter().map(|p| p.chosen.len().max(p.rejected.len())).max().unwrap();
    assert_eq!(dpo.terms(&batch)[1].count, (4 * width) as u64);
    let padded = |pair: &Pair| pair.chosen.iter().copied().chain([0; 9]).take(width).collect::<Vec<_>>();
    let want: f64 = batch.iter().map(|pair| -naive(dpo.policy(), &pair.prompt, &padded(pair))).sum();
    close(dpo.losses(&batch).unwrap().sums[1].double_value(&[]), want);
}

#[test]
fn texts_are_encoded_cut_and_counted() {
    let tokenizer = tokenizer();
    let example = |prompt: &str, chosen: &str, rejected: &str| PreferenceExample {
        weight: 0.5,
        source: "s".into(),
        ..PreferenceExample::new(prompt, chosen, rejected)
    };
    let long = "What is the weather where Ada lives?";
    let examples =
        [example(long, "It is rainy.", "It is sunny."), example("Ada", "It is rainy.", "It is  rainy.")];
    let EncodedPairs { pairs, counts } = encode_pairs(&tokenizer, &examples, PairLengths::default()).unwrap();
    assert_eq!((pairs.len(), counts.equal, counts.prompts_cut), (1, 1, 0));
    assert_eq!((pairs[0].weight, pairs[0].source.as_str()), (0.5, "s"));
    assert_eq!(pairs[0].prompt, tokenizer.encode(long).unwrap());
    let full = &pairs[0].prompt;
    for (cut, want) in [
        (PromptCut::KeepStart, [&full[..3], &[1]].concat()),
        (PromptCut::KeepEnd, full[full.len() - 4..].to_vec()),
        (PromptCut::KeepBoth { tail: 3 }, [&full[..1], &full[full.len() - 3..]].concat()),
    ] {
        let lengths = PairLengths { max_prompt: 4, max_target: 3, cut };
        let EncodedPairs { pairs, counts } = encode_pairs(&tokenizer, &examples[..1], lengths).unwrap();
        assert_eq!(counts.prompts_cut, 1);
        match pairs.first() {
            Some(pair) => assert_eq!(pair.prompt, want, "{cut:?}"),
            None => assert_eq!(counts.equal, 1),
        }
    }
    let bad = PairLengths { max_prompt: 4, cut: PromptCut::KeepBoth { tail: 4 }, ..PairLengths::default() };
    assert!(encode_pairs(&tokenizer, &examples, bad).unwrap_err().to_string().contains("`cut`"));
}

#[test]
fn contradictions_are_refused() {
    let _alone = alone();
    let new = |config, reference, held_out: Vec<Pair>| {
        let source = ShuffledPairs::new(pairs(4), 2, 1).unwrap();
        Dpo::new(config, model(0.0, 1), reference, source, held_out, tokenizer()).map(drop)
    };
    let orpo = || DpoConfig::with(PreferenceLoss::Orpo);
    let synced = DpoConfig { sync: Some(ReferenceSync::default()), ..DpoConfig::default() };
    for (result, key) in [
        (new(orpo(), Reference::Precomputed, pairs(1)), "`reference`"),
        (new(synced, Reference::Precomputed, pairs(1)), "`reference`"),
        (new(DpoConfig { beta: -1.0, ..DpoConfig::default() }, Reference::None, pairs(1)), "`beta`"),
    ] {
        let error = result.unwrap_err().to_string();
        assert!(error.contains(key), "{error}");
    }
    let source = ShuffledPairs::new(pairs(4), 2, 1).unwrap();
    let mut blind =
        Dpo::new(DpoConfig::default(), model(0.0, 1), Reference::None, source, vec![], tokenizer()).unwrap();
    for error in [blind.evaluate(0, &mut NullObserver).unwrap_err(), blind.batches(0, 0, 1).unwrap_err()] {
        assert!(error.to_string().contains("`held_out`"), "{error}");
    }
    let mut sorting =
        dpo(DpoConfig::with(PreferenceLoss::Aot { label_smoothing: 0.0 }), model(0.0, 1), Reference::None);
    let mut batch = pairs(2);
    batch[0].weight = 2.0;
    assert!(sorting.losses(&batch).unwrap_err().to_string().contains("ranks"));
    assert!(ShuffledPairs::new(pairs(1), 2, 1).is_err());
    let mut source = ShuffledPairs::new(pairs(4), 2, 1).unwrap();
    let other = ShuffledPairs::new(pairs(5), 2, 1).unwrap().state();
    assert!(source.load_state(other).unwrap_err().to_string().contains("5 examples"));
    assert!(source.load_state(serde_json::json!({})).is_err());
}

#[test]
fn the_guide_shows_the_example_as_it_is() {
    let program = include_str!("../../examples/dpo.rs");
    let guide = include_str!("../../../../docs/guide/dpo.md");
    assert!(guide.contains(program), "copy examples/dpo.rs into docs/guide/dpo.md");
}
