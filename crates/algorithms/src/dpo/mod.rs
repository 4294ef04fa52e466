//! Preference optimisation: DPO (arXiv 2305.18290) and its relatives.
//!
//! [`Dpo`] is an [`Algorithm`](crate::Algorithm): give it a policy, what to hold it at ([`Reference`]) and pairs, and run it with the
//! [`Trainer`](crate::Trainer). The losses are pure functions of log-probabilities: [`preference_loss`].

mod config;
mod data;
mod logps;
mod loss;
mod metrics;
mod train;

pub use config::{Divergence, DpoConfig, LengthNorm, NllNorm, PreferenceLoss, ReferenceSync, WeightedLoss};
pub use data::{
    EncodedCounts, EncodedPairs, Pair, PairLengths, PairSource, PromptCut, ShuffledPairs, encode_dialogues,
    encode_pairs, precompute, precompute_cached,
};
pub use logps::{PairLogps, confidence, shift_for_decoder, token_logps};
pub use loss::{DpoState, LossOutput, chosen_nll, log_odds, preference_loss};
pub use metrics::preference_metrics;
pub use train::{Dpo, PolicyEvaluation, Reference};
