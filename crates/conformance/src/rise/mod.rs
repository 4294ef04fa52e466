//! RISE: rewards, prompts, rollouts, conversion, labels, loss, metrics, and training of a Llama.

mod llama;
mod loss;
mod metrics;
mod rollout;
mod texts;
mod training;

use ruminate_datasets::environments::Compat;

use crate::KindFn;

/// The kinds that are covered.
pub const KINDS: &[(&str, KindFn)] = &[
    ("convert", training::convert),
    ("gsm8k_reward", texts::gsm8k_reward),
    ("label_mask", training::label_mask),
    ("math_answers", texts::math_answers),
    ("metrics", metrics::metrics),
    ("prompts", texts::prompts),
    ("rollout", rollout::rollout),
    ("rope", llama::rope),
    ("rwr_loss", loss::rwr_loss),
    ("tiny_llama_rwr", llama::training),
];

/// Both modes, and their names.
const MODES: [(Compat, &str); 2] = [(Compat::Reference, "reference"), (Compat::Fixed, "fixed")];
