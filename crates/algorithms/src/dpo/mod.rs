//! Preference optimisation: DPO (arXiv 2305.18290) and its relatives.

mod config;
mod logps;
mod loss;
mod metrics;

pub use config::{Divergence, DpoConfig, LengthNorm, NllNorm, PreferenceLoss, ReferenceSync, WeightedLoss};
pub use logps::{PairLogps, confidence, shift_for_decoder, token_logps};
pub use loss::{DpoState, LossOutput, chosen_nll, log_odds, preference_loss};
pub use metrics::preference_metrics;
