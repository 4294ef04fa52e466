//! Topic `mario`.

mod data;
mod evaluation;
mod rewards;

use crate::KindFn;
use std::path::Path;

/// The kinds that are covered.
pub fn find(kind: &str, _file: &Path) -> Option<KindFn> {
    Some(match kind {
        "answer_extraction" => data::answer_extraction,
        "consistency" => rewards::consistency,
        "diversity" => rewards::diversity,
        "evaluation" => evaluation::evaluation,
        "pipeline" => data::pipeline,
        "plausibility" => rewards::plausibility,
        "prompts" => data::prompts,
        "slices" => evaluation::slices,
        _ => return None,
    })
}
