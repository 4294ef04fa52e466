//! Values of blocks against those that the Python package `gguf` reads.

use serde::Deserialize;

use super::blocks::BlockType;
use super::halves_together;

#[derive(Deserialize)]
struct Case {
    r#type: u32,
    name: String,
    blocks: String,
    values: String,
}

fn bytes(hex: &str) -> Vec<u8> {
    (0..hex.len()).step_by(2).map(|at| u8::from_str_radix(&hex[at..at + 2], 16).unwrap()).collect()
}

#[test]
fn blocks_have_the_values_that_the_package_gguf_reads() {
    let cases: Vec<Case> = serde_json::from_str(include_str!("../../../tests/gguf/blocks.json")).unwrap();
    assert_eq!(cases.len(), 11);
    for case in cases {
        let kind = BlockType::from_id(case.r#type).unwrap();
        let blocks = bytes(&case.blocks);
        assert_eq!(blocks.len() % kind.bytes(), 0, "{}", case.name);
        let expected: Vec<u32> = bytes(&case.values)
            .chunks_exact(4)
            .map(|b| u32::from_le_bytes([b[0], b[1], b[2], b[3]]))
            .collect();
        let got: Vec<u32> = kind.dequantize(&blocks).iter().map(|x| x.to_bits()).collect();
        assert_eq!(got.len(), blocks.len() / kind.bytes() * kind.values(), "{}", case.name);
        // -0 and 0 are the same number.
        let number = |bits: &u32| f32::from_bits(*bits) + 0.0;
        assert!(got.iter().map(number).eq(expected.iter().map(number)), "{}", case.name);
    }
}

#[test]
fn rows_of_rotary_pairs_move_into_halves() {
    // Two heads of four rows of one value: pairs (0, 1) and (2, 3) in the file.
    let values: Vec<f32> = (0..8).map(|x| x as f32).collect();
    assert_eq!(halves_together(&values, 2, 8), [0.0, 2.0, 1.0, 3.0, 4.0, 6.0, 5.0, 7.0]);
}
