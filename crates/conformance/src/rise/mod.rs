//! Topic `rise`: recursive introspection.

mod llama;

use std::path::Path;

use crate::KindFn;

/// The kinds that are covered.
pub fn find(kind: &str, _file: &Path) -> Option<KindFn> {
    Some(match kind {
        "rope" => llama::rope,
        "tiny_llama_rwr" => llama::training,
        _ => return None,
    })
}
