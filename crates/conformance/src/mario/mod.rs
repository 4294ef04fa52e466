//! Topic `mario`.

mod control_tokens;
mod data_pool;
mod pipeline_quark;
mod quark_loss;

use std::path::Path;

use crate::file::{GoldenError, GoldenFile};
use crate::{KindFn, Outcome};

/// The kinds that are covered.
pub fn find(kind: &str, _file: &Path) -> Option<KindFn> {
    Some(match kind {
        "data_pool" => data_pool::data_pool,
        "control_tokens" => control_tokens::control_tokens,
        "quark_loss" => quark_loss::quark_loss,
        "pipeline" => pipeline,
        _ => return None,
    })
}

fn pipeline(path: &Path) -> Result<Outcome, GoldenError> {
    let file = GoldenFile::read(path)?;
    let mut cases = pipeline_quark::sampling_filters(&file)?;
    cases.extend(pipeline_quark::min_length(&file)?);
    cases.extend(pipeline_quark::lr_schedule(&file)?);
    cases.extend(pipeline_quark::ingest(&file, |response, sentence| {
        let answer = |text: &str| {
            let label = text.split("So the answer is").nth(1)?;
            Some(label.trim().trim_matches('.').to_lowercase())
        };
        (answer(response).is_some(), answer(response).is_some() && answer(response) == answer(sentence))
    })?);
    Ok(Outcome { cases, pending: file.case_names("silver_filter")? })
}
