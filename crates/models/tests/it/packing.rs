//! Rows of different lengths that do not share an attention block: the blocks of these models are so wide that padding costs more.

use ruminate_models::{Example, IGNORED, Parameters, Policy, ScoreOptions, TokenId};
use serde_json::json;
use tch::{Kind, Tensor};

use crate::padding::{choices_agree, scores_agree};
use crate::support::{VOCAB, assert_close, config, generator, llama, llama_changes, model};

const WIDE: i64 = 60_000;

/// Two of one length, two of nearly one length, one alone, ignored positions, and a target without tokens.
fn examples() -> Vec<Example> {
    let row =
        |seed: i64, length: i64| (0..length).map(|i| (i * i + 7 * seed) % VOCAB).collect::<Vec<TokenId>>();
    let lengths = [(20, 4), (3, 9), (20, 4), (11, 1), (12, 1), (40, 0), (3, 9)];
    let mut examples: Vec<Example> = lengths
        .into_iter()
        .enumerate()
        .map(|(i, (prompt, target))| Example {
            prompt: row(i as i64, prompt),
            target: row(50 + i as i64, target),
        })
        .collect();
    examples[1].target[3] = IGNORED;
    examples
}

/// Weighted, so that each position's gradient is its own.
fn gradients(policy: &impl Policy, examples: &[Example], weights: &[f64]) -> Vec<Tensor> {
    let parameters = policy.parameters();
    let scores = policy.score(examples, ScoreOptions { entropy: true, states: true }).unwrap();
    let total = scores.log_probs + scores.entropy.unwrap() * 0.5;
    let weights = Tensor::from_slice(weights).to_kind(Kind::Float).unsqueeze(1);
    clear(parameters);
    (total * weights).sum(Kind::Float).backward();
    parameters.iter().map(|(_, parameter)| parameter.grad().copy()).collect()
}

fn clear(parameters: &Parameters) {
    for (_, parameter) in parameters.iter() {
        let mut parameter = parameter.shallow_clone();
        parameter.zero_grad();
    }
}

fn agree(policy: &mut impl Policy) {
    let examples = examples();
    // Alone, a target without tokens is nothing to score.
    let scored: Vec<Example> = examples.iter().filter(|e| !e.target.is_empty()).cloned().collect();
    scores_agree(policy, &scored).unwrap();
    tch::no_grad(|| scores_agree(policy, &scored)).unwrap();

    let weights: Vec<f64> = (1..=examples.len()).map(|i| i as f64 / 4.0).collect();
    let together = gradients(policy, &examples, &weights);
    let mut alone: Vec<Tensor> = together.iter().map(Tensor::zeros_like).collect();
    for (example, weight) in examples.iter().zip(&weights).filter(|(e, _)| !e.target.is_empty()) {
        let one = gradients(policy, std::slice::from_ref(example), &[*weight]);
        alone.iter_mut().zip(&one).for_each(|(sum, one)| *sum += one);
    }
    for ((name, _), (together, alone)) in policy.parameters().iter().zip(together.iter().zip(&alone)) {
        let largest = alone.abs().max().double_value(&[]).max(1.0);
        assert_close(&(together / largest), &(alone / largest), name);
    }
    cross_entropy_is_the_sum_of_the_scores(policy, &examples);
    // Recomputation sets the generator back for a while, which others draw from.
    let _generator = generator();
    policy.set_gradient_checkpointing(true).unwrap();
    for (plain, again) in together.iter().zip(gradients(policy, &examples, &weights)) {
        assert_eq!(plain, &again, "recomputed");
    }
    policy.set_gradient_checkpointing(false).unwrap();
}

fn cross_entropy_is_the_sum_of_the_scores(policy: &impl Policy, examples: &[Example]) {
    let learn = |loss: &Tensor| {
        clear(policy.parameters());
        loss.backward();
        let gradients = policy.parameters().iter().map(|(_, parameter)| parameter.grad().copy());
        gradients.collect::<Vec<_>>()
    };
    let scores = policy.score(examples, ScoreOptions::default()).unwrap();
    let expected = scores.log_probs.sum(Kind::Float).neg();
    let loss = policy.cross_entropy(examples).unwrap();
    assert_eq!((loss.count, loss.tokens), (scores.labels.count, scores.tokens));
    assert_close(&loss.sum, &expected, "cross-entropy");
    let gradients = learn(&loss.sum);
    for ((name, _), (got, expected)) in
        policy.parameters().iter().zip(gradients.iter().zip(&learn(&expected)))
    {
        let largest = expected.abs().max().double_value(&[]).max(1.0);
        assert_close(&(got / largest), &(expected / largest), name);
    }
}

#[test]
fn t5_scores_and_gradients_are_those_of_each_row_alone() {
    agree(&mut model(config(json!({ "d_ff": WIDE }))));
    let gated = json!({ "d_ff": WIDE, "feed_forward_proj": "gated-gelu", "tie_word_embeddings": false });
    agree(&mut model(config(gated)));
}

#[test]
fn llama_scores_and_gradients_are_those_of_each_row_alone() {
    for (_, mut changes) in llama_changes() {
        changes["intermediate_size"] = WIDE.into();
        agree(&mut llama(changes));
    }
}

#[test]
fn choices_of_different_lengths_are_scored_as_if_each_were_alone() {
    let prompts: Vec<Vec<TokenId>> = examples().into_iter().map(|e| e.prompt).collect();
    let choices: Vec<Vec<Vec<TokenId>>> = (0..prompts.len())
        .map(|i| (0..1 + i % 3).map(|j| vec![(i + j) as TokenId; 1 + (i * j) % 5]).collect())
        .collect();
    choices_agree(&model(config(json!({ "d_ff": WIDE }))), &prompts, &choices).unwrap();
    let together = [&prompts[5][..], &prompts[1][..]];
    let t5 = model(config(json!({ "d_ff": WIDE })));
    let tokens = vec![vec![1, 2], vec![3]];
    let rows: Vec<Vec<TokenId>> = together.iter().map(|row| row.to_vec()).collect();
    let logits = ruminate_models::ScoreChoices::first_token_logits(&t5, &rows, &tokens).unwrap();
    for ((row, tokens), logits) in rows.iter().zip(&tokens).zip(&logits) {
        let alone = [row.clone()];
        let alone =
            ruminate_models::ScoreChoices::first_token_logits(&t5, &alone, std::slice::from_ref(tokens));
        for (a, b) in logits.iter().zip(&alone.unwrap()[0]) {
            assert!((a - b).abs() < 1e-4, "{a} {b}");
        }
    }
}
