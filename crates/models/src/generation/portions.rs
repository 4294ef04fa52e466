//! How many rows are written at the same time.

use std::ops::Range;

use super::{Decoder, GenerationConfig, Strategy};
use crate::TokenId;

/// The memory that is assumed where the system does not tell: a GPU's is known to its driver alone.
const UNKNOWN: u64 = 32 << 30;

/// Prompts, and which of their samples, that are written at the same time.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Portion {
    pub(super) prompts: Range<usize>,
    pub(super) samples: Range<usize>,
}

impl GenerationConfig {
    /// How many rows of `prompts` prompts of up to `longest` tokens are written at the same time, on the host or on a GPU, and the bytes that
    /// they take; `bytes` tells those of so many prompts of so many tokens with so many rows of so many new tokens, such as
    /// [`ModelShape::decoding_bytes`](crate::ModelShape::decoding_bytes).
    #[must_use]
    pub fn rows_in_flight(
        &self,
        prompts: usize,
        longest: usize,
        on_host: bool,
        bytes: &dyn Fn(usize, usize, usize, usize) -> u64,
    ) -> (usize, u64) {
        let new = self.prefix.len() + self.max_new_tokens;
        let of = |prompts, longest, rows| bytes(prompts, longest, rows, new);
        let portions = divide(&vec![longest; prompts], self, self.budget(on_host), &of);
        let rows = |portion: &Portion| (portion.prompts.len(), portion.prompts.len() * portion.samples.len());
        let (prompts, rows) = portions.iter().map(rows).max().unwrap_or_default();
        (rows, of(prompts, longest, rows))
    }

    /// Most bytes that decoding may hold.
    fn budget(&self, on_host: bool) -> u64 {
        // All of the memory, not what is free now: which rows are written together must not change from run to run.
        let total = || if on_host { ruminate_torch::host_memory().map(|(total, _)| total) } else { None };
        self.max_memory.unwrap_or_else(|| total().unwrap_or(UNKNOWN) / 4)
    }
}

/// Divides prompts and samples into portions that fit into memory, each as large as it can be.
pub(super) fn portions(
    model: &impl Decoder,
    prompts: &[Vec<TokenId>],
    config: &GenerationConfig,
) -> Vec<Portion> {
    let budget = config.budget(model.device() == tch::Device::Cpu);
    let prompt_lens: Vec<usize> = prompts.iter().map(Vec::len).collect();
    let new = config.prefix.len() + config.max_new_tokens;
    let bytes = |prompts, longest, rows| model.bytes_in_flight(prompts, longest, rows, new);
    divide(&prompt_lens, config, budget, &bytes)
}

/// Divides prompts of these lengths. `bytes` tells the memory of so many prompts, the tokens of the longest of them, and so many rows.
pub(super) fn divide(
    prompt_lens: &[usize],
    config: &GenerationConfig,
    budget: u64,
    bytes: &dyn Fn(usize, usize, usize) -> u64,
) -> Vec<Portion> {
    let samples = config.samples_per_prompt;
    // Beams of a prompt are extended together.
    let rows_per_prompt = match config.strategy {
        Strategy::Beam(beam) => beam.num_beams,
        _ => samples,
    };
    let mut portions = vec![];
    let mut first = 0;
    while first < prompt_lens.len() {
        let (mut end, mut longest) = (first, 0);
        while let Some(&length) = prompt_lens.get(end) {
            let prompts = end + 1 - first;
            if end > first && bytes(prompts, longest.max(length), prompts * rows_per_prompt) > budget {
                break;
            }
            (end, longest) = (end + 1, longest.max(length));
        }
        let mut at_once = samples;
        if end - first == 1 && rows_per_prompt == samples {
            while at_once > 1 && bytes(1, longest, at_once) > budget {
                at_once = at_once.div_ceil(2);
            }
        }
        let of_samples = (0..samples).step_by(at_once.max(1)).map(|from| from..(from + at_once).min(samples));
        portions.extend(of_samples.map(|samples| Portion { prompts: first..end, samples }));
        first = end;
    }
    portions
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::Beam;

    /// Bytes of a token each, for prompts and for rows of 10 new tokens.
    fn bytes(prompts: usize, longest: usize, rows: usize) -> u64 {
        (prompts * longest + 10 * rows) as u64
    }

    fn of(
        prompt_lens: &[usize],
        config: &GenerationConfig,
        budget: u64,
    ) -> Vec<(Range<usize>, Range<usize>)> {
        divide(prompt_lens, config, budget, &bytes).into_iter().map(|p| (p.prompts, p.samples)).collect()
    }

    #[test]
    fn rows_wait_for_memory() {
        let config =
            |samples_per_prompt| GenerationConfig { samples_per_prompt, ..GenerationConfig::default() };
        let prompt_lens = [5, 5, 20, 5];
        assert_eq!(of(&prompt_lens, &config(2), 1000), [(0..4, 0..2)]);
        // Two prompts of 5 take 50; with the long one, three would take 120.
        assert_eq!(of(&prompt_lens, &config(2), 90), [(0..2, 0..2), (2..4, 0..2)]);
        assert_eq!(of(&prompt_lens, &config(2), 50), [(0..2, 0..2), (2..3, 0..2), (3..4, 0..2)]);
        // The samples of one prompt are divided, too, and there is always one.
        assert_eq!(of(&[5], &config(5), 40), [(0..1, 0..3), (0..1, 3..5)]);
        assert_eq!(of(&[5], &config(3), 1), [(0..1, 0..1), (0..1, 1..2), (0..1, 2..3)]);
        let beam = Strategy::Beam(Beam { num_beams: 4, ..Beam::default() });
        assert_eq!(
            of(&[5, 5], &GenerationConfig { strategy: beam, ..config(2) }, 50),
            [(0..1, 0..2), (1..2, 0..2)]
        );
        assert!(of(&[], &config(2), 50).is_empty());

        let within =
            |max_memory| GenerationConfig { max_memory: Some(max_memory), max_new_tokens: 10, ..config(2) };
        let bytes = |prompts, longest, rows, new: usize| (prompts * longest + new * rows) as u64;
        assert_eq!(within(1000).rows_in_flight(4, 5, true, &bytes), (8, 100));
        assert_eq!(within(90).rows_in_flight(4, 5, true, &bytes), (6, 75));
    }
}
