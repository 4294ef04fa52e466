//! What `score`, `choice_log_probs` and `first_token_logits` compute and refuse.

use ruminate_models::{Example, IGNORED, Policy, ScoreChoices, ScoreOptions};
use tch::{Device, Kind, Tensor};

use crate::support::{assert_close, encoder_only, generator, ids, kinds, matrix, model, plain, refused};

fn example(prompt: &[i64], target: &[i64]) -> Example {
    Example { prompt: prompt.to_vec(), target: target.to_vec() }
}

#[test]
fn scores_are_the_log_softmax_of_the_shifted_targets() {
    for (kind, t5) in kinds() {
        let target = [9, IGNORED, 31, 1];
        let scores =
            t5.score(&[example(&[4, 5, 1], &target)], ScoreOptions { entropy: true, states: true }).unwrap();
        let encoded = t5.encode(&t5.batch(&[[4, 5, 1]]).unwrap()).unwrap();
        // Behind the start token; where there is no label the padding token is fed.
        let states = t5.decode(&encoded, &ids(&[vec![0, 9, 0, 31]])).unwrap();
        let all = t5.logits(&states).unwrap().log_softmax(-1, Kind::Float);
        let at = |position: i64, id: i64| all.double_value(&[0, position, id]) as f32;
        let expected = Tensor::from_slice2(&[[at(0, 9), 0.0, at(2, 31), at(3, 1)]]);
        assert_close(&scores.log_probs, &expected, kind);
        let entropy = (all.exp() * &all).sum_dim_intlist(-1, false, Kind::Float).neg();
        assert_close(&scores.entropy.unwrap(), &(entropy * &scores.labels.mask), kind);
        assert_close(&scores.states.unwrap(), &states, kind);
        assert_eq!((scores.labels.count, scores.tokens), (3, 6), "{kind}");
    }
}

#[test]
fn a_target_without_labels_scores_zero() {
    let t5 = model(plain());
    let scores = t5
        .score(&[example(&[4, 1], &[IGNORED, IGNORED])], ScoreOptions { entropy: true, states: false })
        .unwrap();
    assert_eq!(matrix(&scores.log_probs), [[0.0, 0.0]]);
    assert_eq!(matrix(&scores.entropy.unwrap()), [[0.0, 0.0]]);
    assert_eq!(scores.labels.count, 0);
    let mixed =
        t5.score(&[example(&[4, 1], &[]), example(&[4, 1], &[7, 1])], ScoreOptions::default()).unwrap();
    assert_eq!(matrix(&mixed.log_probs)[0], [0.0, 0.0]);
    assert!(matrix(&mixed.log_probs)[1].iter().all(|&p| p < 0.0));
}

#[test]
fn what_cannot_be_scored_is_an_error() {
    let t5 = model(plain());
    let score = |examples: &[Example]| t5.score(examples, ScoreOptions::default());
    refused(score(&[]), &["no token"]);
    refused(score(&[example(&[1], &[1]), example(&[], &[1])]), &["row 1", "no token"]);
    refused(score(&[example(&[1], &[])]), &["no token"]);
    refused(score(&[example(&[5, 40], &[1])]), &["row 0", "id 40", "vocabulary of 40"]);
    refused(score(&[example(&[IGNORED], &[1])]), &["id -100"]);
    refused(score(&[example(&[1], &[1]), example(&[1], &[3, -1])]), &["row 1", "id -1"]);
    refused(score(&[example(&[1], &[40])]), &["id 40"]);
    refused(
        model(encoder_only()).score(&[example(&[1], &[1])], ScoreOptions::default()),
        &["only an encoder"],
    );
}

#[test]
fn choices_that_cannot_be_scored_are_errors() {
    let t5 = model(plain());
    let prompts = [vec![4, 1], vec![5, 1]];
    let score = |choices: &[Vec<Vec<i64>>]| t5.choice_log_probs(&prompts, choices);
    refused(score(&[vec![vec![1]]]), &["2 prompts", "1"]);
    refused(score(&[vec![vec![1]], vec![]]), &["question 1"]);
    // The log-probability of nothing is 0, which would beat every real choice.
    refused(score(&[vec![vec![1]], vec![vec![3], vec![]]]), &["question 1", "choice 1"]);
    refused(score(&[vec![vec![1]], vec![vec![3], vec![40]]]), &["id 40"]);
    refused(t5.choice_log_probs(&[], &[]), &["no question"]);
    refused(t5.first_token_logits(&prompts, &[vec![1], vec![]]), &["question 1"]);
    refused(t5.first_token_logits(&prompts, &[vec![1], vec![-1]]), &["id -1"]);
    refused(t5.first_token_logits(&prompts[..1], &[vec![1], vec![1]]), &["1 prompts"]);
    refused(t5.first_token_logits(&[], &[]), &["no question"]);
}

#[test]
fn half_precision_models_score_in_float32() {
    let t5 = {
        let _generator = generator();
        ruminate_models::T5::new(plain(), Kind::BFloat16, Device::Cpu, 7).unwrap()
    };
    let examples = [example(&[4, 5, 6, 1], &[7, 8, 1]), example(&[9, 1], &[1])];
    let half = t5.score(&examples, ScoreOptions { entropy: true, states: false }).unwrap();
    let full = model(plain()).score(&examples, ScoreOptions::default()).unwrap();
    assert_eq!((half.log_probs.kind(), half.entropy.unwrap().kind()), (Kind::Float, Kind::Float));
    let difference = (half.log_probs - full.log_probs).abs().max().double_value(&[]);
    assert!(difference < 0.2, "bfloat16 is off by {difference}");
}
