//! Changes to a file, of the kinds that disks, editors and attackers make.

use rand::seq::IndexedRandom;
use rand::{Rng, RngCore, SeedableRng};
use rand_chacha::ChaCha8Rng;

/// What parsers stumble over, put in place of a number or anywhere.
const WORDS: &[&[u8]] = &[
    b"0",
    b"-1",
    b"1e999",
    b"-1e-999",
    b"NaN",
    b"nan",
    b"inf",
    b"1e30",
    b"0.5",
    b"255",
    b"2147483647",
    b"2147483648",
    b"4294967296",
    b"9223372036854775807",
    b"9223372036854775808",
    b"18446744073709551615",
    b"18446744073709551616",
    b"null",
    b"true",
    b"\"\"",
    b"{}",
    b"[]",
    b"\"",
    b"\\",
    b"\\u0000",
    b"\\ud800",
    b"\0",
    b"\xff",
    b"\xc3",
    b"\xf0\x9f\xa6\x80",
    b"\xef\xbb\xbf",
    b"\r",
    b"\n",
    b"\t",
    b"\\n",
    b"(A)",
    b",",
    b":",
    b"=",
    b"]",
    b"}",
    b"../../etc/passwd",
];

/// A stream of changes that its seed decides.
pub(crate) struct Mutator(ChaCha8Rng);

impl Mutator {
    pub(crate) fn new(seed: u64) -> Self {
        Self(ChaCha8Rng::seed_from_u64(seed))
    }

    /// One of the files with one to three changes.
    pub(crate) fn mutate(&mut self, files: &[Vec<u8>]) -> Vec<u8> {
        let mut bytes = files.choose(&mut self.0).cloned().unwrap_or_default();
        for _ in 0..self.0.random_range(1..=3) {
            self.change(&mut bytes, files);
        }
        bytes
    }

    fn change(&mut self, bytes: &mut Vec<u8>, files: &[Vec<u8>]) {
        let place = self.place(bytes);
        match self.0.random_range(0..11) {
            0 => {
                if let Some(byte) = bytes.get_mut(place.start) {
                    *byte ^= 1 << self.0.random_range(0..8);
                }
            }
            1 => bytes.truncate(place.start),
            2 => drop(bytes.drain(place)),
            3 => {
                let mut random = vec![0; self.0.random_range(1..16)];
                self.0.fill_bytes(&mut random);
                bytes.splice(place.start..place.start, random);
            }
            4 => {
                let word = WORDS.choose(&mut self.0).copied().unwrap_or_default();
                bytes.splice(place.start..place.start, word.iter().copied());
            }
            // A piece of this or another file.
            5 => {
                let other = files.choose(&mut self.0).cloned().unwrap_or_default();
                let piece = self.place(&other);
                bytes.splice(place, other[piece].iter().copied());
            }
            // Something deep.
            6 => {
                let depth = *[100, 1000, 100_000].choose(&mut self.0).unwrap_or(&0);
                let open: &[u8] =
                    [&b"["[..], b"{\"a\":", b"[[", b"("].choose(&mut self.0).copied().unwrap_or_default();
                bytes.splice(place.start..place.start, open.repeat(depth));
            }
            // A length in front, as safetensors has it.
            7 if bytes.len() >= 8 => {
                let length = bytes.len() as u64;
                let near = length.wrapping_add(self.0.random_range(0..20)).wrapping_sub(18);
                let claims = [0, 1, near, 1 << 20, 1 << 31, 1 << 40, 1 << 63, u64::MAX, u64::MAX - 7];
                bytes[..8].copy_from_slice(&claims.choose(&mut self.0).copied().unwrap_or(0).to_le_bytes());
            }
            // Most of what is left goes for numbers: they are sizes, indices and settings.
            _ => {
                let numbers = numbers(bytes);
                if let Some(number) = numbers.choose(&mut self.0) {
                    let word = WORDS.choose(&mut self.0).copied().unwrap_or_default();
                    bytes.splice(number.clone(), word.iter().copied());
                }
            }
        }
    }

    /// Somewhere in the file, mostly short.
    fn place(&mut self, bytes: &[u8]) -> std::ops::Range<usize> {
        let start = self.0.random_range(0..=bytes.len());
        let longest = if self.0.random_bool(0.8) { 16 } else { bytes.len() };
        start..bytes.len().min(start + self.0.random_range(0..=longest))
    }
}

/// Where numbers stand in a text; of a file that begins with a header, among its first kilobytes.
fn numbers(bytes: &[u8]) -> Vec<std::ops::Range<usize>> {
    let mut numbers: Vec<std::ops::Range<usize>> = vec![];
    for (i, byte) in bytes.iter().enumerate().take(16_384) {
        match numbers.last_mut() {
            Some(last) if last.end == i && (byte.is_ascii_digit() || *byte == b'.') => last.end = i + 1,
            _ if byte.is_ascii_digit() => numbers.push(i..i + 1),
            _ => {}
        }
    }
    numbers
}
