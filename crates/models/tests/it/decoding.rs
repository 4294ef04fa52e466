//! Decoding step by step against decoding at once.

use ruminate_models::T5;
use serde_json::json;
use tch::Tensor;

use crate::support::{assert_close, config, encoder_only, ids, kinds, model, plain, refused};

fn sources() -> Vec<Vec<i64>> {
    vec![vec![9, 4, 17, 30, 2, 25, 11, 5, 6, 1], vec![8, 22, 1]]
}

fn inputs() -> Tensor {
    let row = |first: i64| (0..12).map(|i| if i == 0 { 0 } else { (first + 7 * i) % 40 }).collect();
    ids(&[row(3), row(11), row(18), row(29)])
}

/// States of every position, one step after the other.
fn stepwise(t5: &T5, sources: &[Vec<i64>], inputs: &Tensor) -> Tensor {
    let (rows, time) = inputs.size2().unwrap();
    let encoded = t5.encode(&t5.batch(sources).unwrap()).unwrap();
    let mut decoding = t5.start_decoding(&encoded, rows, time).unwrap();
    let steps: Vec<Tensor> = (0..time).map(|t| decoding.step(&inputs.narrow(1, t, 1)).unwrap()).collect();
    Tensor::cat(&steps, 1)
}

fn at_once(t5: &T5, sources: &[Vec<i64>], inputs: &Tensor) -> Tensor {
    t5.decode(&t5.encode(&t5.batch(sources).unwrap()).unwrap(), inputs).unwrap()
}

#[test]
fn steps_equal_the_full_pass_at_every_position() {
    let _guard = tch::no_grad_guard();
    for (kind, t5) in kinds() {
        let inputs = inputs().narrow(0, 0, 2);
        assert_close(&stepwise(&t5, &sources(), &inputs), &at_once(&t5, &sources(), &inputs), kind);
    }
}

#[test]
fn the_full_pass_is_the_same_with_and_without_gradients() {
    for (kind, t5) in kinds() {
        let inputs = inputs().narrow(0, 0, 2);
        let with = at_once(&t5, &sources(), &inputs);
        assert!(with.requires_grad());
        let without = tch::no_grad(|| at_once(&t5, &sources(), &inputs));
        assert_close(&with, &without, kind);
    }
}

#[test]
fn rows_that_share_a_source_equal_rows_with_copies_of_it() {
    let repeated: Vec<Vec<i64>> = sources().into_iter().flat_map(|s| [s.clone(), s]).collect();
    for (kind, t5) in kinds() {
        let copies = at_once(&t5, &repeated, &inputs());
        assert_close(&at_once(&t5, &sources(), &inputs()), &copies, kind);
        tch::no_grad(|| {
            assert_close(&at_once(&t5, &sources(), &inputs()), &copies, kind);
            assert_close(&stepwise(&t5, &sources(), &inputs()), &copies, kind);
        });
    }
}

#[test]
fn a_position_does_not_see_the_later_ones() {
    let t5 = model(plain());
    let changed = inputs();
    let _ = changed.narrow(1, 8, 4).fill_(5);
    let (before, after) = (at_once(&t5, &sources(), &inputs()), at_once(&t5, &sources(), &changed));
    assert_close(&before.narrow(1, 0, 8), &after.narrow(1, 0, 8), "positions before the change");
    let moved = (before - after).abs().amax([0, 2], false).narrow(0, 8, 4).min().double_value(&[]);
    assert!(moved > 1e-3, "the change is visible where it was made: {moved}");
}

#[test]
fn rows_that_do_not_fit_the_sources_are_errors() {
    let t5 = model(plain());
    let encoded = t5.encode(&t5.batch(&sources()).unwrap()).unwrap();
    for rows in [0, 1, 3] {
        refused(t5.start_decoding(&encoded, rows, 4), &[&format!("{rows} rows")]);
        let inputs = Tensor::zeros([rows, 4], (tch::Kind::Int64, tch::Device::Cpu));
        refused(t5.decode(&encoded, &inputs), &[&format!("{rows} rows")]);
    }
}

#[test]
fn a_step_takes_one_token_per_row() {
    let t5 = model(plain());
    let encoded = t5.encode(&t5.batch(&sources()).unwrap()).unwrap();
    let mut decoding = t5.start_decoding(&encoded, 4, 4).unwrap();
    for (rows, time) in [(1, 1), (2, 1), (8, 1), (4, 2), (4, 0)] {
        let tokens = Tensor::zeros([rows, time], (tch::Kind::Int64, tch::Device::Cpu));
        refused(decoding.step(&tokens), &["[4, 1]"]);
    }
    refused(decoding.step(&Tensor::from_slice(&[0i64; 4])), &["[4, 1]"]);
}

#[test]
fn more_steps_than_the_cache_has_room_for_are_an_error() {
    let _guard = tch::no_grad_guard();
    let t5 = model(plain());
    let encoded = t5.encode(&t5.batch(&sources()).unwrap()).unwrap();
    let mut decoding = t5.start_decoding(&encoded, 2, 3).unwrap();
    let tokens = ids(&[vec![0], vec![0]]);
    for _ in 0..3 {
        assert_eq!(decoding.step(&tokens).unwrap().size(), [2, 1, 16]);
    }
    refused(decoding.step(&tokens), &["3 tokens"]);
}

#[test]
fn a_model_without_decoder_encodes_and_does_nothing_else() {
    let t5 = model(encoder_only());
    let encoded = t5.encode(&t5.batch(&sources()).unwrap()).unwrap();
    assert_eq!(encoded.states.size(), [2, 10, 16]);
    refused(t5.decode(&encoded, &inputs()), &["only an encoder"]);
    refused(t5.start_decoding(&encoded, 2, 4), &["only an encoder"]);
    refused(t5.position_bias(4, false), &["only an encoder"]);
    assert_eq!(t5.position_bias(4, true).unwrap().size(), [1, 2, 4, 4]);
}

#[test]
fn traces_hold_every_block() {
    let t5 = model(crate::support::deep());
    let (mut encoder, mut decoder) = (vec![], vec![]);
    let encoded = t5.encode_traced(&t5.batch(&sources()).unwrap(), Some(&mut encoder)).unwrap();
    let states = t5.decode_traced(&encoded, &inputs(), Some(&mut decoder)).unwrap();
    assert_eq!((encoder.len(), decoder.len()), (1, 3));
    assert_eq!(encoder[0].size(), encoded.states.size());
    assert_eq!(decoder[2].size(), states.size());
    // The final norm, whose weight is 1 in a new model, makes the last block's output into the states.
    let norm = |x: &Tensor| x * (x.square().mean_dim(-1, true, tch::Kind::Float) + 1e-6).rsqrt();
    assert_close(&norm(&decoder[2]), &states, "decoder");
    assert_close(&norm(&encoder[0]), &encoded.states, "encoder");
}

/// Wide enough for the library that takes large products.
#[test]
fn a_wide_model_keeps_the_same_promises() {
    let wide = config(json!({"d_model": 256, "d_kv": 64, "d_ff": 512, "num_heads": 4}));
    let t5 = model(wide);
    let long: Vec<Vec<i64>> = (0..4).map(|row| (0..80).map(|i| 2 + (row + 3 * i) % 37).collect()).collect();
    let inputs = inputs();
    let with_gradients = at_once(&t5, &long, &inputs);
    tch::no_grad(|| {
        let together = at_once(&t5, &long, &inputs);
        assert_close(&together, &with_gradients, "without gradients");
        assert_close(&stepwise(&t5, &long, &inputs), &together, "step by step");
        for row in 0..4 {
            // Alone, and beside a longer row, so that it is padded.
            let alone = at_once(&t5, &long[row..=row], &inputs.narrow(0, row as i64, 1));
            assert_close(&alone, &together.narrow(0, row as i64, 1), "alone");
            let padded = [long[row].clone(), vec![5; 120]];
            let padded = at_once(&t5, &padded, &inputs.narrow(0, row as i64, 1).repeat([2, 1]));
            assert_close(&padded.narrow(0, 0, 1), &alone, "padded");
        }
    });
}
