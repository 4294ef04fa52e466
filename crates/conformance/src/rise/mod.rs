//! RISE: rewards, prompts, rollouts, conversion, labels, loss, metrics.

mod loss;
mod metrics;
mod rollout;
mod texts;
mod training;

use std::path::Path;

use ruminate_datasets::environments::Compat;

use crate::KindFn;

/// The kinds that are covered.
pub fn find(kind: &str, _file: &Path) -> Option<KindFn> {
    Some(match kind {
        "convert" => training::convert,
        "gsm8k_reward" => texts::gsm8k_reward,
        "label_mask" => training::label_mask,
        "math_answers" => texts::math_answers,
        "metrics" => metrics::metrics,
        "prompts" => texts::prompts,
        "rollout" => rollout::rollout,
        "rwr_loss" => loss::rwr_loss,
        _ => return None,
    })
}

/// Both modes, and their names.
const MODES: [(Compat, &str); 2] = [(Compat::Reference, "reference"), (Compat::Fixed, "fixed")];
