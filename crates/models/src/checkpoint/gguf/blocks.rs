//! Element types of GGUF tensors, and their values as `f32`.

use half::{bf16, f16};

/// An element type that can be read. Quantised types store blocks of values with a shared scale.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum BlockType {
    F32,
    F16,
    Bf16,
    Q4_0,
    Q4_1,
    Q5_0,
    Q5_1,
    Q8_0,
    Q4K,
    Q5K,
    Q6K,
}

/// The types that are supported, for the error about another one.
pub(super) const SUPPORTED: &str = "F32, F16, BF16, Q4_0, Q4_1, Q5_0, Q5_1, Q8_0, Q4_K, Q5_K and Q6_K";

/// Names of ggml's type numbers, for messages. Numbers that ggml has given up have none.
const NAMES: [(u32, &str); 31] = [
    (0, "F32"),
    (1, "F16"),
    (2, "Q4_0"),
    (3, "Q4_1"),
    (6, "Q5_0"),
    (7, "Q5_1"),
    (8, "Q8_0"),
    (9, "Q8_1"),
    (10, "Q2_K"),
    (11, "Q3_K"),
    (12, "Q4_K"),
    (13, "Q5_K"),
    (14, "Q6_K"),
    (15, "Q8_K"),
    (16, "IQ2_XXS"),
    (17, "IQ2_XS"),
    (18, "IQ3_XXS"),
    (19, "IQ1_S"),
    (20, "IQ4_NL"),
    (21, "IQ3_S"),
    (22, "IQ2_S"),
    (23, "IQ4_XS"),
    (24, "I8"),
    (25, "I16"),
    (26, "I32"),
    (27, "I64"),
    (28, "F64"),
    (29, "IQ1_M"),
    (30, "BF16"),
    (34, "TQ1_0"),
    (35, "TQ2_0"),
];

/// The name of a type number, with the number where it has none.
pub(super) fn type_name(id: u32) -> String {
    let name = NAMES.iter().find(|(known, _)| *known == id);
    name.map_or_else(|| format!("number {id}"), |(_, name)| (*name).to_string())
}

impl BlockType {
    /// The type with ggml's number.
    pub(super) fn from_id(id: u32) -> Option<Self> {
        Some(match id {
            0 => Self::F32,
            1 => Self::F16,
            2 => Self::Q4_0,
            3 => Self::Q4_1,
            6 => Self::Q5_0,
            7 => Self::Q5_1,
            8 => Self::Q8_0,
            12 => Self::Q4K,
            13 => Self::Q5K,
            14 => Self::Q6K,
            30 => Self::Bf16,
            _ => return None,
        })
    }

    /// Values in a block.
    pub(super) fn values(self) -> usize {
        match self {
            Self::F32 | Self::F16 | Self::Bf16 => 1,
            Self::Q4_0 | Self::Q4_1 | Self::Q5_0 | Self::Q5_1 | Self::Q8_0 => 32,
            Self::Q4K | Self::Q5K | Self::Q6K => 256,
        }
    }

    /// Bytes of a block.
    pub(super) fn bytes(self) -> usize {
        match self {
            Self::F32 => 4,
            Self::F16 | Self::Bf16 => 2,
            Self::Q4_0 => 18,
            Self::Q4_1 => 20,
            Self::Q5_0 => 22,
            Self::Q5_1 => 24,
            Self::Q8_0 => 34,
            Self::Q4K => 144,
            Self::Q5K => 176,
            Self::Q6K => 210,
        }
    }

    /// The values of whole blocks. Every operation is done in `f32`, in the order of ggml's reference code.
    pub(super) fn dequantize(self, bytes: &[u8]) -> Vec<f32> {
        let mut out = vec![0.0; bytes.len() / self.bytes() * self.values()];
        let blocks = bytes.chunks_exact(self.bytes()).zip(out.chunks_exact_mut(self.values()));
        match self {
            Self::F32 => {
                blocks.for_each(|(b, out)| out[0] = f32::from_le_bytes([b[0], b[1], b[2], b[3]]));
            }
            Self::F16 => blocks.for_each(|(b, out)| out[0] = half_at(b, 0)),
            Self::Bf16 => {
                blocks.for_each(|(b, out)| out[0] = bf16::from_le_bytes([b[0], b[1]]).to_f32());
            }
            Self::Q4_0 => blocks.for_each(|(b, out)| q4(&b[2..], out, half_at(b, 0), -8, 0.0)),
            Self::Q4_1 => blocks.for_each(|(b, out)| q4(&b[4..], out, half_at(b, 0), 0, half_at(b, 2))),
            Self::Q5_0 => blocks.for_each(|(b, out)| q5(&b[2..], out, half_at(b, 0), -16, 0.0)),
            Self::Q5_1 => blocks.for_each(|(b, out)| q5(&b[4..], out, half_at(b, 0), 0, half_at(b, 2))),
            Self::Q8_0 => blocks.for_each(|(b, out)| {
                let scale = half_at(b, 0);
                out.iter_mut().zip(&b[2..]).for_each(|(out, &q)| *out = scale * f32::from(q as i8));
            }),
            Self::Q4K => blocks.for_each(|(b, out)| q4_k(b, out)),
            Self::Q5K => blocks.for_each(|(b, out)| q5_k(b, out)),
            Self::Q6K => blocks.for_each(|(b, out)| q6_k(b, out)),
        }
        out
    }
}

/// The half-precision number at a byte.
fn half_at(block: &[u8], at: usize) -> f32 {
    f16::from_le_bytes([block[at], block[at + 1]]).to_f32()
}

/// 32 numbers of 4 bits: the low halves of 16 bytes, then the high ones.
fn q4(packed: &[u8], out: &mut [f32], scale: f32, offset: i8, minimum: f32) {
    let (low, high) = out.split_at_mut(16);
    for ((low, high), &q) in low.iter_mut().zip(high).zip(packed) {
        *low = scale * f32::from((q & 15) as i8 + offset) + minimum;
        *high = scale * f32::from((q >> 4) as i8 + offset) + minimum;
    }
}

/// 32 numbers of 5 bits: the fifth bits of all of them in 4 bytes, then the others as in [`q4`].
fn q5(packed: &[u8], out: &mut [f32], scale: f32, offset: i8, minimum: f32) {
    let fifth = u32::from_le_bytes([packed[0], packed[1], packed[2], packed[3]]);
    let bit = |i: usize| ((fifth >> i) as u8 & 1) << 4;
    let (low, high) = out.split_at_mut(16);
    for (i, ((low, high), &q)) in low.iter_mut().zip(high).zip(&packed[4..]).enumerate() {
        *low = scale * f32::from((q & 15 | bit(i)) as i8 + offset) + minimum;
        *high = scale * f32::from((q >> 4 | bit(i + 16)) as i8 + offset) + minimum;
    }
}

/// Scale and minimum of one of the eight groups of a block, 6 bits each, out of 12 bytes.
fn scale_and_minimum(packed: &[u8], group: usize) -> (f32, f32) {
    let (scale, minimum) = if group < 4 {
        (packed[group] & 63, packed[group + 4] & 63)
    } else {
        (
            packed[group + 4] & 15 | packed[group - 4] >> 6 << 4,
            packed[group + 4] >> 4 | packed[group] >> 6 << 4,
        )
    };
    (f32::from(scale), f32::from(minimum))
}

/// Writes a group of 32 values as `scale * q - minimum`.
fn group(block: &[u8], number: usize, out: &mut [f32], q: impl Fn(usize) -> u8) {
    let (scale, minimum) = scale_and_minimum(&block[4..16], number);
    let (scale, minimum) = (half_at(block, 0) * scale, half_at(block, 2) * minimum);
    out.iter_mut().enumerate().for_each(|(i, out)| *out = scale * f32::from(q(i)) - minimum);
}

/// Scales, then 4 bits for each value: two groups share 32 bytes, the first has the low halves.
fn q4_k(block: &[u8], out: &mut [f32]) {
    for (number, out) in out.chunks_exact_mut(32).enumerate() {
        let packed = &block[16 + number / 2 * 32..][..32];
        group(block, number, out, |i| packed[i] >> (number % 2 * 4) & 15);
    }
}

/// Dequantises like [`q4_k`], with the fifth bits of all values in 32 bytes before: bit `n` of a byte belongs to group `n`.
fn q5_k(block: &[u8], out: &mut [f32]) {
    let fifth = &block[16..48];
    for (number, out) in out.chunks_exact_mut(32).enumerate() {
        let packed = &block[48 + number / 2 * 32..][..32];
        group(block, number, out, |i| packed[i] >> (number % 2 * 4) & 15 | (fifth[i] >> number & 1) << 4);
    }
}

/// 6 bits for each value: the low 4 bits, then the high 2; a scale for every 16 values.
fn q6_k(block: &[u8], out: &mut [f32]) {
    let (low, rest) = block.split_at(128);
    let (high, rest) = rest.split_at(64);
    let scale = half_at(rest, 16);
    for (number, out) in out.chunks_exact_mut(32).enumerate() {
        let (part, quarter) = (number / 4, number % 4);
        let low = &low[part * 64 + quarter % 2 * 32..][..32];
        let high = &high[part * 32..][..32];
        for (i, out) in out.iter_mut().enumerate() {
            let q = low[i] >> (quarter / 2 * 4) & 15 | (high[i] >> (quarter * 2) & 3) << 4;
            let scale = scale * f32::from(rest[number * 2 + i / 16] as i8);
            *out = scale * f32::from(q as i8 - 32);
        }
    }
}
