//! The data pool for any samples.

use std::collections::BTreeMap;

use proptest::prelude::*;
use ruminate_algorithms::quark::{
    AddTo, Buckets, ControlConfig, DataPool, POOL, PoolSample, Ranked, RewardSpec, StageSchedule, Ties,
    TrainOption,
};

/// Two rewards, coarse so that there are ties, some missing, some responses twice.
fn samples(count: std::ops::Range<usize>) -> impl Strategy<Value = Vec<PoolSample<u32>>> {
    let score = prop_oneof![1 => Just(None), 1 => Just(Some(f64::NAN)), 12 => (0..20i32).prop_map(|x| Some(f64::from(x) / 8.0))];
    let sample = (0..6u32, 0..30u32, prop::collection::vec(score, 2), any::<bool>(), any::<u32>());
    prop::collection::vec(sample, count).prop_map(|samples| {
        let sample = |(prompt, response, scores, correct, item)| PoolSample {
            prompt: format!("q{prompt}"),
            response: format!("r{response}"),
            scores,
            correct,
            item,
        };
        samples.into_iter().map(sample).collect()
    })
}

/// Every response is another.
fn distinct(mut samples: Vec<PoolSample<u32>>) -> Vec<PoolSample<u32>> {
    samples.iter_mut().enumerate().for_each(|(i, sample)| sample.response = format!("r{i}"));
    samples
}

fn control(counts: [usize; 2], ties: Ties) -> ControlConfig {
    let reward = |(name, count)| RewardSpec::new(name).buckets(Buckets::Quantiles { count, ties });
    ControlConfig {
        rewards: ["a", "b"].into_iter().zip(counts).map(reward).collect(),
        ..ControlConfig::default()
    }
}

fn has_scores(sample: &PoolSample<u32>) -> bool {
    sample.scores.iter().all(|score| score.is_some_and(|score| !score.is_nan()))
}

fn pool_of(control: ControlConfig, samples: Vec<PoolSample<u32>>) -> Option<DataPool<u32>> {
    let mut pool = DataPool::new(control).unwrap();
    match pool.add(samples.clone(), 0) {
        Ok(()) => Some(pool),
        Err(error) => {
            assert!(error.to_string().contains("no sample is left"), "{error}");
            assert!(pool.is_empty() && !samples.iter().any(has_scores));
            None
        }
    }
}

proptest! {
    #![proptest_config(ProptestConfig { failure_persistence: None, ..ProptestConfig::with_cases(200) })]

    #[test]
    fn the_pool_holds_what_has_all_scores_in_the_order_of_the_last(new in samples(0..60)) {
        let new = distinct(new);
        let Some(pool) = pool_of(control([5, 3], Ties::Split), new.clone()) else { return Ok(()) };
        let held: BTreeMap<&str, &PoolSample<u32>> =
            pool.samples().iter().map(|ranked| (ranked.sample.response.as_str(), &ranked.sample)).collect();
        prop_assert_eq!(held.len(), pool.len());
        let complete: Vec<_> = new.iter().filter(|sample| has_scores(sample)).collect();
        prop_assert_eq!(complete.len(), pool.len());
        for sample in complete {
            prop_assert_eq!(held[sample.response.as_str()], sample);
        }
        for pair in pool.samples().windows(2) {
            prop_assert!(pair[0].sample.scores[1] >= pair[1].sample.scores[1]);
            prop_assert!(pair[0].buckets[1] <= pair[1].buckets[1]);
        }
    }

    #[test]
    fn buckets_have_their_sizes_and_their_order(new in samples(1..80), count in 1usize..9) {
        // All scores are there, so that no sample leaves behind a ranking that it was in.
        let mut new = distinct(new);
        new.iter_mut().flat_map(|s| &mut s.scores).for_each(|score| *score = Some(score.filter(|s| !s.is_nan()).unwrap_or(0.5)));
        let n = new.len();
        let pool = pool_of(control([count, 2], Ties::Split), new).unwrap();
        for (reward, count) in [(0, count), (1, 2)] {
            let mut sizes = vec![0; count];
            pool.samples().iter().for_each(|ranked| sizes[ranked.buckets[reward]] += 1);
            let mut expected = vec![n / count; count];
            expected[count - 1] += n % count;
            prop_assert_eq!(sizes, expected);
            // Whoever is in a better bucket has no lower score.
            for a in pool.samples() {
                for b in pool.samples() {
                    prop_assert!(a.buckets[reward] >= b.buckets[reward] || a.sample.scores[reward] >= b.sample.scores[reward]);
                }
            }
        }
    }

    #[test]
    fn equal_scores_may_share_a_bucket(new in samples(1..60), count in 1usize..7) {
        let Some(pool) = pool_of(control([count, 3], Ties::Share), distinct(new)) else { return Ok(()) };
        for a in pool.samples() {
            for b in pool.samples() {
                for reward in 0..2 {
                    let same = a.sample.scores[reward] == b.sample.scores[reward];
                    prop_assert!(!same || a.buckets[reward] == b.buckets[reward]);
                }
            }
        }
    }

    #[test]
    fn twins_are_told_apart_by_nobody(rounds in prop::collection::vec(samples(0..25), 1..4)) {
        let mut pool = DataPool::new(control([4, 3], Ties::Split)).unwrap();
        for round in rounds {
            let before = pool.clone();
            if pool.add(round, 0).is_err() {
                prop_assert_eq!(&pool, &before);
            }
            let mut seen: BTreeMap<(&str, &str), &Ranked<u32>> = BTreeMap::new();
            for ranked in pool.samples() {
                let key = (ranked.sample.prompt.as_str(), ranked.sample.response.as_str());
                prop_assert_eq!(*seen.entry(key).or_insert(ranked), ranked);
            }
        }
    }

    #[test]
    fn a_pool_that_was_stored_goes_on_as_one_that_was_not(rounds in prop::collection::vec(samples(1..25), 1..5)) {
        let control = || control([4, 3], Ties::Split);
        let (mut straight, mut stored) = (DataPool::new(control()).unwrap(), DataPool::new(control()).unwrap());
        for round in rounds {
            let folder = tempfile::tempdir().unwrap();
            stored.save(folder.path()).unwrap();
            stored = DataPool::new(control()).unwrap();
            stored.load(folder.path()).unwrap();
            prop_assert_eq!(straight.add(round.clone(), 0).is_ok(), stored.add(round, 0).is_ok());
            prop_assert_eq!(&straight, &stored);
        }
    }

    #[test]
    fn a_threshold_is_kept_from_its_stage_on(new in samples(1..40), threshold in 0.0f64..2.5) {
        let mut control = control([3, 3], Ties::Split);
        control.rewards[1].option = TrainOption::Filter { threshold };
        control.stages = StageSchedule::Additive { interval: 10, add_to: AddTo::Right, groups: vec![] };
        let complete: Vec<_> = distinct(new).into_iter().filter(has_scores).collect();
        for (step, filters) in [(0, false), (9, false), (10, true)] {
            let mut pool = DataPool::new(control.clone()).unwrap();
            let passes = |s: &&PoolSample<u32>| !filters || s.scores[1].is_some_and(|score| score >= threshold);
            let expected = complete.iter().filter(passes).count();
            prop_assert_eq!(pool.add(complete.clone(), step).is_ok(), expected > 0);
            prop_assert_eq!(pool.len(), expected);
        }
    }
}

#[test]
fn the_product_is_ranked_whatever_the_first_reward_is_and_twins_by_their_place() {
    let sample = |response: &str, scores: [f64; 2]| PoolSample {
        prompt: "q".into(),
        response: response.into(),
        scores: scores.map(Some).into(),
        correct: scores[0] == 1.0,
        item: 0,
    };
    let new = vec![
        sample("twin", [1.0, 0.5]),
        sample("wrong", [0.0, 0.9]),
        sample("best", [1.0, 0.8]),
        sample("twin", [1.0, 0.5]),
        sample("last", [-1.0, 0.9]),
    ];
    let ranked = |first: Buckets| {
        let rewards = vec![RewardSpec::new("accuracy").buckets(first), RewardSpec::new("b")];
        let mut pool =
            DataPool::new(ControlConfig { rewards, as_product: true, ..ControlConfig::default() }).unwrap();
        pool.add(new.clone(), 0).unwrap();
        let place = |ranked: &Ranked<u32>| (ranked.sample.response.clone(), ranked.buckets.clone());
        pool.samples().iter().map(place).collect::<Vec<_>>()
    };
    let order = |buckets: [usize; 5]| {
        let names = ["best", "twin", "twin", "wrong", "last"];
        names
            .into_iter()
            .zip(buckets)
            .map(|(name, bucket)| (name.to_owned(), vec![bucket]))
            .collect::<Vec<_>>()
    };
    assert_eq!(ranked(Buckets::Correctness), order([0, 0, 1, 1, 1]));
    assert_eq!(ranked(Buckets::Values(vec![1.0, 0.0, -1.0])), order([0, 1, 2, 2, 2]));
    assert_eq!(ranked(Buckets::Quantiles { count: 5, ties: Ties::Split }), order([0, 1, 2, 3, 4]));
    assert_eq!(ranked(Buckets::Quantiles { count: 5, ties: Ties::Share }), order([0, 1, 1, 3, 4]));
}

#[test]
fn samples_of_other_rewards_are_refused() {
    let sample = |scores: Vec<Option<f64>>| PoolSample {
        prompt: String::new(),
        response: String::new(),
        scores,
        correct: true,
        item: 0,
    };
    let mut pool = DataPool::new(control([2, 2], Ties::Split)).unwrap();
    let error = pool.add(vec![sample(vec![Some(1.0)])], 0).unwrap_err().to_string();
    assert!(error.contains("sample 0 has 1 scores, but there are 2 rewards"), "{error}");
    let ranked = Ranked { sample: sample(vec![Some(1.0); 2]), buckets: vec![0] };
    let error = pool.restore(vec![ranked]).unwrap_err().to_string();
    assert!(error.contains("other rewards"), "{error}");
    let folder = tempfile::tempdir().unwrap();
    std::fs::write(folder.path().join(POOL), "\n").unwrap();
    let error = pool.load(folder.path()).unwrap_err().to_string();
    assert!(error.contains("pool.jsonl") && error.contains("line 1 is no sample"), "{error}");
    std::fs::remove_file(folder.path().join(POOL)).unwrap();
    assert!(pool.load(folder.path()).unwrap_err().to_string().contains("cannot read"));
    let mut values = control([2, 2], Ties::Split);
    values.rewards[0].buckets = Buckets::Values(vec![1.0, 0.0, -1.0]);
    let mut pool = DataPool::new(values).unwrap();
    let error = pool.add(vec![sample(vec![Some(0.5); 2])], 0).unwrap_err().to_string();
    assert!(error.contains("`a` gave 0.5, which is none of [1.0, 0.0, -1.0]"), "{error}");
    assert!(pool.is_empty());
}
