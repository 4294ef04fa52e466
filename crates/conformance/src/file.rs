//! Golden files: JSON with a tolerance and arrays of cases.

use crate::CaseResult;
use crate::compare::{Check, Mismatch, Tolerance};
use crate::lenient::Lenient;
use serde::de::DeserializeOwned;
use serde_json::Value;
use std::path::{Path, PathBuf};

/// What makes a whole file unusable.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum GoldenError {
    /// It could not be read.
    #[error("cannot read {}", .path.display())]
    Read {
        /// The file.
        path: PathBuf,
        /// What the system said.
        source: std::io::Error,
    },
    /// It is no JSON.
    #[error("{} is no JSON", .path.display())]
    Json {
        /// The file.
        path: PathBuf,
        /// Where it goes wrong.
        source: serde_json::Error,
    },
    /// A field is missing or holds something else.
    #[error("{}: field {field}: {reason}", .path.display())]
    Field {
        /// The file.
        path: PathBuf,
        /// The field.
        field: String,
        /// What is wrong.
        reason: String,
    },
    /// It holds no readable tensors.
    #[error("{} is no safetensors file", .path.display())]
    Tensors {
        /// The file.
        path: PathBuf,
        /// Where it goes wrong.
        source: safetensors::SafeTensorError,
    },
    /// What all its cases need could not be had.
    #[error("{}: {reason}", .path.display())]
    Unusable {
        /// The file or folder.
        path: PathBuf,
        /// What went wrong.
        reason: String,
    },
    /// libtorch refused.
    #[error("libtorch")]
    Torch(#[from] tch::TchError),
}

/// A golden file.
#[derive(Debug, Clone)]
pub struct GoldenFile {
    path: PathBuf,
    content: Value,
}

impl GoldenFile {
    /// Reads a file.
    ///
    /// # Errors
    /// [`GoldenError::Read`] and [`GoldenError::Json`].
    pub fn read(path: &Path) -> Result<Self, GoldenError> {
        let bytes = std::fs::read(path).map_err(|source| GoldenError::Read { path: path.into(), source })?;
        let content = serde_json::from_slice(&bytes)
            .map_err(|source| GoldenError::Json { path: path.into(), source })?;
        Ok(Self { path: path.into(), content })
    }

    /// All of it.
    pub fn content(&self) -> &Value {
        &self.content
    }

    /// A field at the top.
    ///
    /// # Errors
    /// [`GoldenError::Field`] if it is missing or something else than a `T`.
    pub fn field<T: DeserializeOwned>(&self, name: &str) -> Result<T, GoldenError> {
        let value = self.content.get(name).ok_or_else(|| self.bad(name, "missing"))?;
        parse(value).map_err(|error| self.bad(name, error))
    }

    /// The tolerance that the file states; that of its values, where gradients have one of their own.
    ///
    /// # Errors
    /// [`GoldenError::Field`] if it states none that [`Tolerance::parse`] knows.
    pub fn tolerance(&self) -> Result<Tolerance, GoldenError> {
        Ok(self.tolerances()?.0)
    }

    /// The tolerances of values and of gradients: one for both, or `{"values": .., "gradients": ..}`.
    ///
    /// # Errors
    /// As [`tolerance`](Self::tolerance).
    pub fn tolerances(&self) -> Result<(Tolerance, Tolerance), GoldenError> {
        let value: Value = self.field("tolerance")?;
        let (values, gradients) = match value.get("values") {
            Some(values) => (values, value.get("gradients").unwrap_or(values)),
            None => (&value, &value),
        };
        let known = "not \"exact\", a number, {\"relative\": .., \"absolute\": ..}, or {\"values\": .., \"gradients\": ..} of these";
        let parse = |value| Tolerance::parse(value).ok_or_else(|| self.bad("tolerance", known));
        Ok((parse(values)?, parse(gradients)?))
    }

    /// The tolerance that the file states, or what is usual for its kind.
    ///
    /// # Errors
    /// [`GoldenError::Field`] if it states one that [`Tolerance::parse`] does not know.
    pub fn tolerance_or(&self, usual: Tolerance) -> Result<Tolerance, GoldenError> {
        if self.content.get("tolerance").is_some() { self.tolerance() } else { Ok(usual) }
    }

    /// Runs `check` on every element of the array `name`. An element that is no `T` is a failed case.
    ///
    /// # Errors
    /// [`GoldenError::Field`] if there is no such array.
    pub fn cases<T: DeserializeOwned>(
        &self,
        name: &str,
        mut check: impl FnMut(T) -> Check,
    ) -> Result<Vec<CaseResult>, GoldenError> {
        let cases: Vec<Value> = self.field(name)?;
        let run = |(ix, case): (usize, &Value)| {
            let failure = match parse(case) {
                Ok(case) => check(case).err().map(|Mismatch(text)| text),
                Err(error) => Some(self.bad(&format!("{name}[{ix}]"), error).to_string()),
            };
            CaseResult { name: case_name(name, ix, case), failure }
        };
        Ok(cases.iter().enumerate().map(run).collect())
    }

    /// The names of the elements of the array `name`, as [`GoldenFile::cases`] gives them.
    ///
    /// # Errors
    /// [`GoldenError::Field`] if there is no such array.
    pub fn case_names(&self, name: &str) -> Result<Vec<String>, GoldenError> {
        let cases: Vec<Value> = self.field(name)?;
        Ok(cases.iter().enumerate().map(|(ix, case)| case_name(name, ix, case)).collect())
    }

    fn bad(&self, field: &str, reason: impl ToString) -> GoldenError {
        GoldenError::Field { path: self.path.clone(), field: field.to_owned(), reason: reason.to_string() }
    }
}

/// Like `from_value`, but an error begins with the path of the field, and `null` for a float is NaN.
fn parse<T: DeserializeOwned>(value: &Value) -> Result<T, String> {
    serde_path_to_error::deserialize(Lenient(value)).map_err(|error| {
        match error.path().to_string().as_str() {
            "." => error.into_inner().to_string(),
            path => format!("{path}: {}", error.inner()),
        }
    })
}

/// `cases[3]`, with the case's own name or note if it has one.
fn case_name(array: &str, ix: usize, case: &Value) -> String {
    let own = ["name", "note"].iter().find_map(|key| case.get(key)?.as_str().filter(|text| !text.is_empty()));
    match own {
        Some(own) => format!("{array}[{ix}] {own}"),
        None => format!("{array}[{ix}]"),
    }
}
