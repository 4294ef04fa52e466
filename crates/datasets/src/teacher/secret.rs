//! The key, which nobody may see.

use std::fmt;
use std::path::Path;

use ureq::http::HeaderValue;

use super::wire::StandIn;
use super::{Completion, KeySource, Result, TeacherError};

const HIDDEN: &str = "<key>";

/// Shorter ones are placeholders such as `EMPTY`, which answers may well contain.
const SHORTEST_SECRET: usize = 16;

/// A key. It is in no `Debug` output.
pub(super) struct ApiKey(Option<String>);

impl fmt::Debug for ApiKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(if self.0.is_some() { "ApiKey(<key>)" } else { "ApiKey(none)" })
    }
}

impl ApiKey {
    pub(super) fn load(source: &KeySource) -> Result<Self> {
        let missing = || TeacherError::MissingKey(source.clone());
        let key = match source {
            KeySource::None => return Ok(Self(None)),
            KeySource::Env(name) => std::env::var(name).map_err(|_| missing())?,
            KeySource::File(path) => read(path)?,
        };
        let key = key.trim();
        if key.is_empty() {
            return Err(missing());
        }
        if !key.bytes().all(|b| b.is_ascii_graphic()) {
            let reason = "the key holds characters that no key has, such as blanks; copy it again".into();
            return Err(TeacherError::Config { field: "key", reason });
        }
        Ok(Self(Some(key.into())))
    }

    /// The value of the header that carries it, and what goes into its place when it is sent; nothing without a key.
    pub(super) fn header(&self, bearer: bool) -> Option<(HeaderValue, Option<StandIn>)> {
        let key = self.0.as_deref()?;
        let stand_in = (key.len() >= SHORTEST_SECRET).then(|| StandIn::new(key));
        let key = stand_in.as_ref().map_or(key, StandIn::word);
        let text = if bearer { format!("Bearer {key}") } else { key.to_string() };
        let mut value = HeaderValue::from_str(&text).ok()?;
        value.set_sensitive(true);
        Some((value, stand_in))
    }

    /// A text for people, without the key.
    pub(super) fn hide(&self, text: &str) -> String {
        match &self.0 {
            Some(key) => text.replace(key, HIDDEN),
            None => text.into(),
        }
    }

    /// Takes the key out of completions, in case that a server sends it back.
    pub(super) fn hide_in(&self, completions: &mut [Completion]) {
        if let Some(key) = self.0.as_deref().filter(|key| key.len() >= SHORTEST_SECRET) {
            for completion in completions {
                for text in [&mut completion.content, &mut completion.finish_reason] {
                    if text.contains(key) {
                        *text = text.replace(key, HIDDEN);
                    }
                }
            }
        }
    }
}

/// Not by [`text`](crate::text), which remembers what results depend on: a key is no part of a record.
fn read(path: &Path) -> Result<String> {
    let bytes = std::fs::read(path).map_err(|source| crate::Error::Read { path: path.into(), source })?;
    Ok(crate::text::utf8(path, crate::text::without_mark(&bytes))?.to_owned())
}
