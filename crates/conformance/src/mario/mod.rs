//! Topic `mario`.

mod control_tokens;
mod data;
mod data_pool;
mod evaluation;
mod ingest;
mod quark_loss;
mod rewards;

use crate::KindFn;

/// The kinds that are covered.
pub const KINDS: &[(&str, KindFn)] = &[
    ("answer_extraction", data::answer_extraction),
    ("consistency", rewards::consistency),
    ("control_tokens", control_tokens::control_tokens),
    ("data_pool", data_pool::data_pool),
    ("diversity", rewards::diversity),
    ("evaluation", evaluation::evaluation),
    ("pipeline", data::pipeline),
    ("plausibility", rewards::plausibility),
    ("prompts", data::prompts),
    ("quark_loss", quark_loss::quark_loss),
    ("slices", evaluation::slices),
];
