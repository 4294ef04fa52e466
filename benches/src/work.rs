//! The least that a repeat has to do, from which the machine's rates give the least time that it can take.

use ruminate_models::{BatchShape, ModelShape};

use crate::{Precision, Setting, Shape};

/// Arithmetic and memory traffic that nothing can save.
#[derive(Debug, Clone, Copy, Default, PartialEq)]
pub struct Work {
    /// Floating-point operations: twice the multiplications of matrix products.
    pub flop: f64,
    /// Bytes of weights that are read.
    pub bytes: f64,
    /// How often that has to happen one after the other: every token of a row waits for the one before.
    pub times: f64,
}

impl Work {
    /// The least seconds at a rate of products and a bandwidth of memory.
    #[must_use]
    pub fn seconds(&self, flop_per_second: f64, bytes_per_second: f64) -> f64 {
        self.times * (self.flop / flop_per_second).max(self.bytes / bytes_per_second)
    }

    /// Once.
    pub(crate) fn products(flop: f64) -> Self {
        Self { flop, bytes: 0.0, times: 1.0 }
    }
}

impl Setting {
    /// Operations of one pass over rows of one shape.
    pub(crate) fn pass(&self, rows: usize, source: usize, target: usize) -> f64 {
        let batch = BatchShape { rows: rows as f64, source: source as f64, target: target as f64 };
        self.shape().forward_flops(batch)
    }

    /// Of one pass over rows of which `each` share a prompt.
    pub(crate) fn shared_pass(&self, prompts: usize, each: usize, target: usize) -> f64 {
        let again = self.pass(prompts * (each - 1), self.source, 0);
        self.pass(prompts * each, self.source, target) - again
    }

    /// Of one pass over rows to be learnt, as [`lessons`](Self::lessons) lays them out.
    pub(crate) fn lesson_pass(&self, lessons: &[ruminate_models::Example]) -> f64 {
        lessons.iter().map(|lesson| self.pass(1, lesson.prompt.len(), lesson.target.len())).sum()
    }

    /// Of reading prompts, and of writing tokens in all rows behind them.
    pub(crate) fn writing(&self, (prompts, rows): (usize, usize), prompt: usize, new: usize) -> Vec<Work> {
        // Products read weights in their own precision.
        let element = if self.precision == Precision::Fp32 { 4.0 } else { 2.0 };
        let step = |parameters: f64, rows: usize, times: usize| Work {
            flop: 2.0 * parameters * rows as f64,
            bytes: element * parameters,
            times: times as f64,
        };
        let read = Work::products(self.pass(prompts, prompt, 0));
        match &self.model {
            Shape::T5(_) => vec![read, step(self.token(), rows, new)],
            // The prompt's last token has been through all blocks.
            Shape::Llama(config) => {
                let output = (config.hidden_size * config.vocab_size) as f64;
                vec![read, step(output, prompts, new.min(1)), step(self.token(), rows, new.saturating_sub(1))]
            }
        }
    }

    /// Parameters that one more token takes.
    fn token(&self) -> f64 {
        // A token's look at itself is attention.
        let own = match &self.model {
            Shape::T5(config) => config.num_decoder_layers * config.num_heads * config.d_kv,
            Shape::Llama(config) => config.num_hidden_layers * config.num_attention_heads * config.head_dim,
        };
        self.pass(1, 0, 1) / 2.0 - 2.0 * own as f64
    }

    fn shape(&self) -> &dyn ModelShape {
        match &self.model {
            Shape::T5(config) => config,
            Shape::Llama(config) => config,
        }
    }
}
