//! The choice of tokens against plain operations in double precision.

use ruminate_torch::{Choice, Sampler, choose};
use tch::{Device, Kind, Tensor};

use crate::numbers;

/// Probabilities `[rows, vocab]` of what temperature, top-k with ties and top-p by sorting leave.
fn distribution(logits: &Tensor, Sampler { temperature, top_k, top_p }: Sampler) -> Tensor {
    let mut logits = logits.to_kind(Kind::Double) / temperature;
    let vocab = logits.size()[1];
    let k = top_k as i64;
    if k > 0 && k < vocab {
        let least = logits.topk(k, -1, true, true).0.narrow(1, k - 1, 1);
        logits = logits.masked_fill(&logits.lt_tensor(&least), f64::NEG_INFINITY);
    }
    if top_p < 1.0 {
        let (sorted, order) = logits.sort(-1, false);
        let dropped = sorted.softmax(-1, None::<Kind>).cumsum(-1, None::<Kind>).le(1.0 - top_p);
        let _ = dropped.narrow(1, vocab - 1, 1).fill_(0.0);
        logits = logits.masked_fill(&dropped.scatter(1, &order, &dropped), f64::NEG_INFINITY);
    }
    logits.softmax(-1, None::<Kind>)
}

fn values(tensor: &Tensor) -> Vec<f64> {
    Vec::try_from(tensor.to_kind(Kind::Double).view(-1)).unwrap()
}

#[test]
fn the_largest_is_chosen_with_its_log_probability() {
    for vocab in [1, 2, 15, 16, 17, 511, 513, 5000] {
        let logits = numbers(&[9, vocab], 0.3) * 5.0;
        // A processor took some out.
        let allowed = logits.masked_fill(&logits.gt(4.5), f64::NEG_INFINITY);
        let allowed = if vocab < 10 { logits.shallow_clone() } else { allowed };
        let Choice { tokens, log_probs, sampling_log_probs } = choose(&logits, &allowed, None).unwrap();
        assert_eq!(tokens, allowed.argmax(1, true), "{vocab}");
        let expected = logits.to_kind(Kind::Double).log_softmax(-1, None::<Kind>).gather(1, &tokens, false);
        assert_eq!(log_probs, sampling_log_probs);
        for (got, expected) in values(&log_probs).iter().zip(values(&expected)) {
            assert!((got - expected).abs() < 1e-5 * expected.abs().max(1.0), "{vocab}: {got} {expected}");
        }
    }
    // Of equals the first, as in torch.
    let equal = Tensor::zeros([2, 600], (Kind::Float, Device::Cpu));
    assert_eq!(values(&choose(&equal, &equal, None).unwrap().tokens), [0.0, 0.0]);
}

#[test]
fn numbers_draw_the_token_at_their_place() {
    let draws = 64;
    for (vocab, spread) in [(1, 1.0), (7, 2.0), (1000, 0.0), (1000, 3.0), (5000, 8.0)] {
        let row = numbers(&[1, vocab], 0.7) * spread;
        // Ties at the borders, and tokens that are forbidden.
        let coarse = (&row * 4.0).round() / 4.0;
        let forbidden = row.masked_fill(&row.gt(0.9 * spread), f64::NEG_INFINITY);
        for row in [&row, &coarse, &forbidden] {
            for (temperature, top_k, top_p) in [
                (1.0, 0, 1.0),
                (0.7, 0, 1.0),
                (1.0, 5, 1.0),
                (1.3, 0, 0.6),
                (0.5, 40, 0.9),
                (1.0, 9999, 1e-6),
            ] {
                let sampler = Sampler { temperature, top_k, top_p };
                let uniform = (Tensor::arange(draws, (Kind::Float, Device::Cpu)) + 0.37) / draws as f64;
                let logits = row.repeat([draws, 1]);
                let drawn = choose(&logits, &logits, Some((sampler, &uniform.view([draws, 1])))).unwrap();
                let probabilities = values(&distribution(row, sampler));
                for ((number, token), log_prob) in values(&uniform)
                    .into_iter()
                    .zip(values(&drawn.tokens))
                    .zip(values(&drawn.sampling_log_probs))
                {
                    let token = token as usize;
                    let before: f64 = probabilities[..token].iter().sum();
                    let (from, to) = (before, before + probabilities[token]);
                    let case =
                        format!("{vocab} {spread} {sampler:?}: {number} drew {token} of [{from}, {to})");
                    // Which of several equal tokens at the border of top-p stay is not defined.
                    if top_p == 1.0 {
                        assert!(number > from - 1e-5 && number < to + 1e-5, "{case}");
                        let expected = probabilities[token].ln();
                        assert!((log_prob - expected).abs() < 1e-4, "{case}: {log_prob}, not {expected}");
                    } else {
                        assert!(log_prob <= 1e-6 && log_prob.is_finite(), "{case}");
                    }
                }
                // No more tokens than are left.
                let kept = probabilities.iter().filter(|p| **p > 0.0).count();
                let distinct: std::collections::BTreeSet<i64> =
                    values(&drawn.tokens).into_iter().map(|token| token as i64).collect();
                assert!(distinct.len() <= kept, "{vocab} {spread} {sampler:?}");
            }
        }
    }
}

#[test]
fn what_cannot_be_drawn_from_is_refused() {
    let logits = numbers(&[2, 5], 0.0);
    let numbers = Tensor::zeros([2, 1], (Kind::Float, Device::Cpu));
    let sampler = Sampler { temperature: 1.0, top_k: 0, top_p: 1.0 };
    for wrong in [
        Sampler { temperature: 0.0, ..sampler },
        Sampler { temperature: f64::NAN, ..sampler },
        Sampler { top_p: 0.0, ..sampler },
    ] {
        let error = choose(&logits, &logits, Some((wrong, &numbers))).unwrap_err().to_string();
        assert!(error.contains("leave nothing to draw from"), "{error}");
    }
    assert!(choose(&logits, &logits, Some((sampler, &numbers.narrow(0, 0, 1)))).is_err());
    assert!(choose(&logits, &logits.narrow(1, 0, 4), None).is_err());
    assert!(choose(&logits.to_kind(Kind::Double), &logits, None).is_err());
}
