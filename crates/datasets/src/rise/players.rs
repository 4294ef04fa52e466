//! Who takes turns, besides the student and the teacher.

use serde::{Deserialize, Serialize};

use super::ChatConfig;
use crate::teacher::{KeySource, Sampling, TeacherConfig};

/// Someone who takes turns under a name of their own: a checkpoint on this machine, or a model behind an OpenAI-compatible address.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct PlayerConfig {
    /// A checkpoint's folder; with `base_url`, the name of that server's model.
    pub model: String,
    /// The checkpoint's chat template, where it is not that of the run.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub template: Option<String>,
    /// The server's address, up to and without `/chat/completions`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub base_url: Option<String>,
    /// Where the server's key comes from. Default: the teacher's at the teacher's address, and none elsewhere.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub key: Option<KeySource>,
}

impl PlayerConfig {
    /// The settings of the server: those of the teacher's with another model, and another address. Keys and headers of the teacher go to
    /// the teacher's address only. None for a checkpoint.
    #[must_use]
    pub fn service(&self, teacher: &TeacherConfig) -> Option<TeacherConfig> {
        let base_url = self.base_url.clone()?;
        let mut service = TeacherConfig { model: self.model.clone(), ..teacher.clone() };
        if base_url != teacher.base_url {
            (service.key, service.key_header) = (KeySource::None, TeacherConfig::default().key_header);
            service.headers.clear();
        }
        service.base_url = base_url;
        service.key = self.key.clone().unwrap_or(service.key);
        Some(service)
    }

    /// Checks what can be checked before any file is read.
    ///
    /// # Errors
    /// The setting that is wrong, and what would be right.
    pub fn validate(&self, name: &str) -> Result<(), (&'static str, String)> {
        let is_plain = |c: char| c.is_ascii_alphanumeric() || matches!(c, '-' | '_' | '.');
        if name.is_empty() || !name.chars().all(is_plain) {
            return Err(("", format!("`{name}` is no name; take letters, digits, `-`, `_` and `.`")));
        }
        if matches!(name, "student" | "teacher") {
            let reason = "has settings of its own: collection.student, collection.teacher_model, [teacher]";
            return Err(("", format!("{reason}; take another name")));
        }
        if self.model.is_empty() {
            return Err(("model", "is empty; name a checkpoint's folder, or a model of the server".into()));
        }
        match (&self.base_url, &self.template, &self.key) {
            (Some(_), Some(_), _) => Err((
                "template",
                "has no use beside base_url: a server applies the template of its model".into(),
            )),
            (None, _, Some(_)) => {
                Err(("key", "has no use without base_url: a checkpoint needs no key".into()))
            }
            (_, Some(template), _) => ChatConfig::check(template).map_err(|reason| ("template", reason)),
            _ => Ok(()),
        }
    }
}

/// How a service is asked to write. The defaults are those of the published client.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct ServiceSampling {
    /// Temperature of the draw.
    pub temperature: f64,
    /// The smallest set of tokens with this probability is drawn from.
    pub top_p: f64,
    /// Most tokens of an answer.
    pub max_tokens: u32,
}

impl Default for ServiceSampling {
    fn default() -> Self {
        Self { temperature: 0.7, top_p: 1.0, max_tokens: 512 }
    }
}

impl From<&ServiceSampling> for Sampling {
    fn from(of: &ServiceSampling) -> Self {
        let (temperature, top_p) = (Some(of.temperature), Some(of.top_p));
        Self { max_tokens: Some(of.max_tokens), temperature, top_p, ..Self::default() }
    }
}

impl ServiceSampling {
    /// Checks the ranges.
    ///
    /// # Errors
    /// The setting that is wrong, and what would be right.
    pub fn validate(&self) -> Result<(), (&'static str, String)> {
        if !(self.temperature >= 0.0 && self.temperature.is_finite()) {
            return Err(("temperature", format!("is {}, but must be 0 or more", self.temperature)));
        }
        if !(self.top_p > 0.0 && self.top_p <= 1.0) {
            return Err(("top_p", format!("is {}, but must be in (0, 1]", self.top_p)));
        }
        if self.max_tokens == 0 {
            return Err(("max_tokens", "is 0, but must be at least 1".into()));
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn player(text: &str) -> PlayerConfig {
        toml::from_str(text).unwrap()
    }

    #[test]
    fn keys_and_headers_go_to_the_server_that_they_are_for() {
        let teacher = TeacherConfig {
            base_url: "http://one/v1".into(),
            key: KeySource::Env("ONE".into()),
            key_header: "x-key".into(),
            headers: [("organization".to_string(), "o".to_string())].into(),
            concurrency: 3,
            ..TeacherConfig::default()
        };
        let same = player("model = \"large\"\nbase_url = \"http://one/v1\"").service(&teacher).unwrap();
        assert_eq!(same, TeacherConfig { model: "large".into(), ..teacher.clone() });
        let other = player("model = \"m\"\nbase_url = \"http://two/v1\"").service(&teacher).unwrap();
        assert_eq!(
            (&other.key, &*other.key_header, other.headers.len()),
            (&KeySource::None, "authorization", 0)
        );
        assert_eq!((&*other.base_url, &*other.model, other.concurrency), ("http://two/v1", "m", 3));
        let keyed = "model = \"m\"\nbase_url = \"http://two/v1\"\nkey = { env = \"TWO\" }";
        assert_eq!(player(keyed).service(&teacher).unwrap().key, KeySource::Env("TWO".into()));
        assert_eq!(player("model = \"folder\"").service(&teacher), None);
    }

    #[test]
    fn contradictions_are_named() {
        for (name, text, field) in [
            ("student", "model = \"m\"", ""),
            ("a/b", "model = \"m\"", ""),
            ("", "model = \"m\"", ""),
            ("a", "model = \"\"", "model"),
            ("a", "model = \"m\"\ntemplate = \"llama2\"", "template"),
            ("a", "model = \"m\"\ntemplate = \"llama-2\"\nbase_url = \"http://h/v1\"", "template"),
            ("a", "model = \"m\"\nkey = \"none\"", "key"),
        ] {
            assert_eq!(player(text).validate(name).unwrap_err().0, field, "{name}: {text}");
        }
        player("model = \"m\"\ntemplate = \"jinja\"").validate("llama-2.1_b").unwrap();
        for text in ["temperature = -1.0", "top_p = 0.0", "max_tokens = 0"] {
            toml::from_str::<ServiceSampling>(text).unwrap().validate().unwrap_err();
        }
        ServiceSampling::default().validate().unwrap();
    }
}
