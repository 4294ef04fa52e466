//! Padding is invisible: what a row gets does not depend on its neighbours.

use proptest::prelude::*;
use proptest::test_runner::TestCaseError;
use ruminate_models::{Example, IGNORED, Policy, ScoreChoices, ScoreOptions, TokenId};
use tch::Tensor;

use crate::support::{CLOSE, VOCAB, cases, close, kinds};

const ALL: ScoreOptions = ScoreOptions { entropy: true, states: true };

/// Any ids: padding and end tokens may stand inside a row like all others.
pub(crate) fn row(length: std::ops::Range<usize>) -> impl Strategy<Value = Vec<TokenId>> {
    prop::collection::vec(0..VOCAB, length)
}

pub(crate) fn target() -> impl Strategy<Value = Vec<TokenId>> {
    prop::collection::vec(prop_oneof![6 => 0..VOCAB, 1 => Just(IGNORED)], 1..7)
}

pub(crate) fn same(a: &Tensor, b: &Tensor, what: &str) -> Result<(), TestCaseError> {
    close(a, b, CLOSE).map_err(|reason| TestCaseError::fail(format!("{what}: {reason}")))
}

/// Scores of a batch against the scores of each example alone.
pub(crate) fn scores_agree(policy: &impl Policy, examples: &[Example]) -> Result<(), TestCaseError> {
    let together = policy.score(examples, ALL).unwrap();
    let width = together.log_probs.size()[1];
    prop_assert_eq!(width, examples.iter().map(|e| e.target.len()).max().unwrap() as i64);
    for (i, example) in examples.iter().enumerate() {
        let alone = policy.score(std::slice::from_ref(example), ALL).unwrap();
        let length = example.target.len() as i64;
        let row = |tensor: &Tensor| tensor.get(i as i64).narrow(0, 0, length);
        same(&row(&together.log_probs), &alone.log_probs.get(0), "log-probabilities")?;
        same(&row(together.entropy.as_ref().unwrap()), &alone.entropy.unwrap().get(0), "entropy")?;
        same(&row(together.states.as_ref().unwrap()), &alone.states.unwrap().get(0), "states")?;
        let fill = together.log_probs.get(i as i64).narrow(0, length, width - length);
        prop_assert_eq!(fill.count_nonzero(None::<i64>).int64_value(&[]), 0, "beyond the target all is 0");
    }
    Ok(())
}

/// Scores of the choices of several questions against those of each choice alone.
pub(crate) fn choices_agree(
    model: &(impl Policy + ScoreChoices),
    prompts: &[Vec<TokenId>],
    choices: &[Vec<Vec<TokenId>>],
) -> Result<(), TestCaseError> {
    let together = tch::no_grad(|| model.choice_log_probs(prompts, choices)).unwrap();
    let slots = choices.iter().map(Vec::len).max().unwrap() as i64;
    let width = choices.iter().flatten().map(Vec::len).max().unwrap() as i64;
    prop_assert_eq!(together.size(), [prompts.len() as i64, slots, width]);
    let expected = Tensor::zeros_like(&together);
    for (i, (prompt, choices)) in prompts.iter().zip(choices).enumerate() {
        for (j, choice) in choices.iter().enumerate() {
            let example = Example { prompt: prompt.clone(), target: choice.clone() };
            let alone = tch::no_grad(|| model.score(&[example], ScoreOptions::default())).unwrap();
            let mut place = expected.get(i as i64).get(j as i64).narrow(0, 0, choice.len() as i64);
            place.copy_(&alone.log_probs.get(0));
        }
    }
    same(&together, &expected, "choices")
}

proptest! {
    #![proptest_config(cases(16))]

    #[test]
    fn scores_do_not_depend_on_neighbours(
        examples in prop::collection::vec(
            (row(1..14), target()).prop_map(|(prompt, target)| Example { prompt, target }), 2..5),
    ) {
        for (kind, t5) in kinds() {
            let named = |e: TestCaseError| TestCaseError::fail(format!("{kind}: {e}"));
            scores_agree(&t5, &examples).map_err(named)?;
            // Without gradients another attention kernel is at work.
            tch::no_grad(|| scores_agree(&t5, &examples)).map_err(named)?;
        }
    }

    #[test]
    fn choices_do_not_depend_on_each_other(
        questions in prop::collection::vec((row(1..14), prop::collection::vec(row(1..5), 1..4)), 1..4),
    ) {
        let (prompts, choices): (Vec<_>, Vec<_>) = questions.into_iter().unzip();
        for (kind, t5) in kinds() {
            let named = |e: TestCaseError| TestCaseError::fail(format!("{kind}: {e}"));
            choices_agree(&t5, &prompts, &choices).map_err(named)?;
        }
    }

    #[test]
    fn first_logits_do_not_depend_on_neighbours(
        questions in prop::collection::vec((row(1..14), row(1..6)), 2..5),
    ) {
        let (prompts, tokens): (Vec<_>, Vec<_>) = questions.into_iter().unzip();
        for (kind, t5) in kinds() {
            let together = tch::no_grad(|| t5.first_token_logits(&prompts, &tokens)).unwrap();
            for (i, (prompt, tokens)) in prompts.iter().zip(&tokens).enumerate() {
                let encoded = tch::no_grad(|| t5.encode(&t5.batch(&[prompt]).unwrap())).unwrap();
                let start = Tensor::from_slice2(&[[t5.config().decoder_start_token_id]]);
                let all = tch::no_grad(|| t5.logits(&t5.decode(&encoded, &start).unwrap())).unwrap();
                let expected = all.view([-1]).index_select(0, &Tensor::from_slice(tokens));
                same(&Tensor::from_slice(&together[i]), &expected, kind)?;
            }
        }
    }
}
