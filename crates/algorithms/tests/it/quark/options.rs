//! Settings that make no sense are named; those that do are kept.

use ruminate_algorithms::ppo::KlPenalty;
use ruminate_algorithms::quark::{
    AddTo, Buckets, Condition, ControlConfig, ControlTokens, ExpertConfig, Lengths, NewTokens, Quark,
    QuarkConfig, QuarkData, RewardSpec, SamplingConfig, Single, Source, StageSchedule, Ties, TrainOption,
};
use ruminate_algorithms::{Algorithm, Error, NullObserver};
use ruminate_models::Sampling;

use super::{Share, config, data, experts, parts, prompts, quark_of};
use crate::support::{alone, chain, model, tokenizer};

fn control(rewards: Vec<RewardSpec>) -> ControlConfig {
    ControlConfig { rewards, ..ControlConfig::default() }
}

#[test]
fn settings_out_of_range_are_named() {
    let one = RewardSpec::new;
    let stages = |interval, groups| ControlConfig {
        stages: StageSchedule::Additive { interval, add_to: AddTo::Right, groups },
        ..config().control
    };
    let sampling = |change: fn(&mut SamplingConfig)| {
        let mut config = config();
        change(&mut config.sampling);
        config
    };
    let with = |control| QuarkConfig { control, ..config() };
    for (key, bad) in [
        ("control.rewards", with(control(vec![]))),
        ("control.rewards", with(control(vec![one("a"), one("a")]))),
        ("control.rewards", with(control(vec![one("")]))),
        ("control.rewards", with(ControlConfig::single("share", 0))),
        ("control.rewards", with(control(vec![one("a").buckets(Buckets::Values(vec![0.0, 1.0]))]))),
        ("control.rewards", with(control(vec![one("a").buckets(Buckets::Values(vec![1.0, f64::NAN]))]))),
        (
            "control.rewards",
            with(control(vec![one("a").option(TrainOption::Filter { threshold: f64::NAN })])),
        ),
        ("control.stages", with(stages(0, vec![]))),
        ("control.stages", with(stages(5, vec![1, 2]))),
        ("control.stages", with(stages(5, vec![1, 0]))),
        (
            "control.product_buckets",
            with(ControlConfig { as_product: true, product_buckets: Some(0), ..control(vec![one("a")]) }),
        ),
        (
            "control.product_buckets",
            with(ControlConfig { product_buckets: Some(3), ..control(vec![one("a")]) }),
        ),
        ("batch_size", QuarkConfig { batch_size: 0, ..config() }),
        ("sample_interval", QuarkConfig { sample_interval: 0, ..config() }),
        ("sampling.passes", sampling(|s| s.passes = 0)),
        ("sampling.lengths.max_length", sampling(|s| s.lengths.max_length = 2)),
        ("kl_vocab", QuarkConfig { kl_vocab: Some(0), ..config() }),
        ("kl", QuarkConfig { kl: KlPenalty::Fixed { coef: -0.1 }, ..config() }),
        ("entropy", QuarkConfig { entropy: KlPenalty::Fixed { coef: f64::NAN }, ..config() }),
        ("best_by", QuarkConfig { best_by: "beauty".into(), ..config() }),
    ] {
        let error = bad.validate().unwrap_err();
        assert!(
            error.is_configuration() && error.to_string().contains(&format!("`{key}`")),
            "{key}: {error}"
        );
    }
    let error = chain(&sampling(|s| s.sampling.temperature = 0.0).validate().unwrap_err());
    assert!(error.contains("temperature is 0"), "{error}");
    // Off, as everywhere in the field.
    sampling(|s| s.sampling.top_k = Some(0)).validate().unwrap();
    config().validate().unwrap();
}

#[test]
fn parts_that_do_not_fit_are_refused() {
    let _alone = alone();
    let refused = |config: QuarkConfig, data| quark_of(config, 1.0, 1, data).unwrap_err().to_string();
    let error = refused(config(), QuarkData { held_out: vec![], ..data() });
    assert!(error.contains("no prompt to validate with"), "{error}");
    let mut dropping = config();
    dropping.sampling = SamplingConfig { batch_size: 41, drop_last: true, ..dropping.sampling };
    assert!(refused(dropping, data()).contains("leaves out all of 40 prompts"));
    let common = super::first_control_token();
    let error = refused(QuarkConfig { kl_vocab: Some(common as usize + 1), ..config() }, data());
    let reason = format!("is {}, but reference and policy have only {common} tokens in common", common + 1);
    assert!(error.contains(&reason), "{error}");
    let error = refused(QuarkConfig { control: ControlConfig::single("other", 4), ..config() }, data());
    assert!(error.contains("are [\"other\"], but those that score are [\"share\"]"), "{error}");

    let new = |policy, tokenizer| {
        let scorer = Single::new("share", Share { scale: 1.0 });
        Quark::new(config(), policy, model(0.0, 1), tokenizer, scorer, data()).unwrap_err().to_string()
    };
    let (with_tokens, policy) = parts(&config().control, 1);
    assert!(new(policy, tokenizer()).contains("`_TOKEN0_00000`, which the tokenizer lacks"));
    let mut small = model(0.0, 1);
    small.add_tokens(common..common + 3, 1).unwrap();
    let reason = format!("need rows up to {} in the policy, which has {}", common + 6, common + 3);
    assert!(new(small, with_tokens).contains(&reason));
    let error = ControlTokens::add_to(&mut parts(&config().control, 1).0, &config().control).unwrap_err();
    assert!(error.to_string().contains("there already"), "{error}");
}

#[test]
fn without_anything_to_train_on_the_run_ends() {
    let _alone = alone();
    let late = QuarkConfig { start_sampling_at: 100, ..config() };
    let mut quark = quark_of(late.clone(), 1.0, 1, data()).unwrap();
    let error = quark.batches(0, 0, 1).unwrap_err();
    assert!(
        matches!(&error, Error::Pool { reason } if reason.contains("nothing to train on at step 0")),
        "{error}"
    );
    // Expert data alone will do.
    let mut quark = quark_of(late, 1.0, 1, QuarkData { expert: experts(3), ..data() }).unwrap();
    quark.batches(0, 0, 1).unwrap().unwrap();
    assert_eq!(quark.pool().len(), 6);
    // A threshold that nothing passes says so.
    let mut strict = config();
    strict.control.rewards[0].option = TrainOption::FilterQuark { threshold: 2.0 };
    let error = quark_of(strict, 1.0, 1, data()).unwrap().batches(0, 0, 1).unwrap_err().to_string();
    assert!(error.contains("no sample is left: of 80") && error.contains("0 for share"), "{error}");
}

#[test]
fn rounds_come_when_they_are_due() {
    let at = |config: &QuarkConfig, step| config.samples_from(step);
    let config = QuarkConfig { sample_interval: 10, ..config() };
    assert_eq!(at(&config, 0), Some(Source::Reference));
    assert_eq!(
        [1, 9, 10, 20].map(|step| at(&config, step)),
        [None, None, Some(Source::Policy), Some(Source::Policy)]
    );
    let quiet = QuarkConfig { sample_at_start: false, ..config.clone() };
    assert_eq!([0, 10].map(|step| at(&quiet, step)), [None, Some(Source::Policy)]);
    let late = QuarkConfig { start_sampling_at: 11, ..config };
    assert_eq!([0, 10, 20].map(|step| at(&late, step)), [None, None, Some(Source::Policy)]);
}

#[test]
fn expert_rows_come_in_as_they_are_asked_for() {
    let _alone = alone();
    let sizes = |expert: ExpertConfig| {
        let config = QuarkConfig { expert, start_sampling_at: 1000, sample_interval: 1, ..config() };
        let mut quark = quark_of(config, 1.0, 1, QuarkData { expert: experts(5), ..data() }).unwrap();
        let mut size = |step| {
            quark.batches(step, 0, 1).unwrap().unwrap();
            quark.pool().len()
        };
        [0, 1, 2, 3].map(&mut size)
    };
    let base = ExpertConfig { per_round: Some(4), all_at_first: false, repeats: true };
    assert_eq!(sizes(base), [4, 8, 10, 10]);
    assert_eq!(sizes(ExpertConfig { all_at_first: true, ..base }), [10; 4]);
    assert_eq!(sizes(ExpertConfig { per_round: None, ..base }), [10; 4]);
    assert_eq!(sizes(ExpertConfig { repeats: false, ..base }), [4, 5, 5, 5]);
}

#[test]
fn lengths_count_the_code() {
    let lengths = Lengths { max_length: 256, min_length: 10 };
    assert_eq!(lengths.new_tokens(0).unwrap(), NewTokens { max: 255, min: 9 });
    assert_eq!(lengths.new_tokens(4).unwrap(), NewTokens { max: 251, min: 5 });
    assert_eq!(Lengths { max_length: 6, min_length: 3 }.new_tokens(4).unwrap(), NewTokens { max: 1, min: 0 });
    assert!(lengths.new_tokens(255).is_err());
}

#[test]
fn random_codes_come_from_every_bucket() {
    let (tokenizer, _) = (parts(&config().control, 1).0, ());
    let tokens = ControlTokens::find_in(&tokenizer, &config().control).unwrap();
    let first = super::first_control_token();
    assert_eq!(tokens.condition(Condition::Best, 0), [first]);
    assert_eq!(tokens.condition(Condition::Worst, 0), [first + 3]);
    let drawn: std::collections::BTreeSet<_> =
        (0..100).map(|seed| tokens.condition(Condition::Random, seed)).collect();
    assert_eq!(drawn.len(), 4);
}

#[test]
fn settings_are_read_from_toml() {
    let json = serde_json::json!({
        "control": {
            "rewards": [
                { "name": "consistency" },
                { "name": "accuracy", "buckets": "correctness" },
                { "name": "diversity", "buckets": { "quantiles": { "count": 3, "ties": "share" } },
                  "option": { "filter_quark": { "threshold": 0.4 } } },
                { "name": "discrete", "buckets": { "values": [1, 0, -1] }, "option": "quark_no_tag" },
            ],
            "stages": { "additive": { "interval": 1000, "add_to": "left" } },
        },
        "kl_vocab": 32000,
        "retokenize": true,
    });
    let config: QuarkConfig = serde_json::from_value(json).unwrap();
    config.validate().unwrap();
    let rewards = &config.control.rewards;
    assert_eq!(rewards[0], RewardSpec::new("consistency"));
    assert_eq!(rewards[1].buckets, Buckets::Correctness);
    assert_eq!(rewards[2].buckets, Buckets::Quantiles { count: 3, ties: Ties::Share });
    assert_eq!(rewards[2].option.threshold(), Some(0.4));
    assert_eq!(config.control.code_len(), 3);
    assert_eq!((config.batch_size, config.sampling.sampling), (128, Sampling::default()));
    assert!(serde_json::from_value::<QuarkConfig>(serde_json::json!({ "contrl": {} })).is_err());
}

#[test]
fn the_numbers_of_mario_are_those_of_its_published_command() {
    let mario = ruminate_algorithms::mario::published_quark();
    mario.validate().unwrap();
    assert_eq!(
        (mario.batch_size, mario.sample_interval, mario.kl),
        (4, 4000, KlPenalty::Fixed { coef: 0.1 })
    );
    let SamplingConfig { sampling, lengths, passes, batch_size, drop_last } = mario.sampling;
    assert_eq!(sampling, Sampling { top_k: Some(50), top_p: Some(0.7), ..Sampling::default() });
    assert_eq!((passes, batch_size, drop_last), (1, 150, true));
    assert_eq!((lengths, mario.eval_lengths), (Lengths { max_length: 256, min_length: 10 }, lengths));
    assert_eq!((mario.kl_vocab, mario.retokenize, mario.clean_up), (Some(32_000), true, false));
}

#[test]
fn validation_without_a_score_is_an_error() {
    struct Never;
    impl<P, Q> ruminate_algorithms::quark::Scorer<P, Q> for Never {
        fn names(&self) -> Vec<String> {
            vec!["share".into()]
        }
        fn judge(
            &self,
            _: &P,
            samples: &[ruminate_rewards::Sample<'_, Q>],
        ) -> Result<Vec<ruminate_algorithms::quark::Judged>, ruminate_rewards::RewardError> {
            Ok(samples.iter().map(|_| vec![None].into()).collect())
        }
    }
    let _alone = alone();
    let (tokenizer, policy) = parts(&config().control, 1);
    let data = QuarkData { train: prompts(4), expert: vec![], held_out: prompts(2) };
    let mut quark = Quark::new(config(), policy, model(0.0, 1), tokenizer, Never, data).unwrap();
    let error = quark.evaluate(0, &mut NullObserver).unwrap_err().to_string();
    assert!(error.contains("no held-out response has a score"), "{error}");
}

#[test]
fn a_trained_models_tokens_are_those_of_its_configuration() {
    let one = RewardSpec::new;
    let trained = control(vec![one("a"), one("accuracy").buckets(Buckets::Correctness), one("b")]);
    let (known, _) = parts(&trained, 1);
    assert_eq!(ControlTokens::of_model(&tokenizer(), &trained).unwrap(), None);
    let found = ControlTokens::of_model(&known, &trained).unwrap();
    assert_eq!(found, Some(ControlTokens::find_in(&known, &trained).unwrap()));
    let fewer = Buckets::Quantiles { count: 4, ties: Ties::Split };
    let more = Buckets::Quantiles { count: 6, ties: Ties::Split };
    for (other, reason) in [
        // Less than it was trained with, so that find_in finds all of them.
        (control(vec![one("a")]), "no token `_TOKEN2_00000`"),
        (
            control(vec![one("a"), one("accuracy").buckets(Buckets::Correctness), one("b").buckets(fewer)]),
            "no token `_TOKEN2_00004`",
        ),
        (
            control(vec![one("a"), one("accuracy").buckets(Buckets::Correctness), one("b").buckets(more)]),
            "need the token `_TOKEN2_00005`",
        ),
        (ControlConfig { as_product: true, ..trained.clone() }, "no token `_TOKEN0_00000`"),
    ] {
        let error = ControlTokens::of_model(&known, &other).unwrap_err().to_string();
        assert!(error.contains(reason), "{error}");
    }
}
