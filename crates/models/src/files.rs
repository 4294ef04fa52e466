//! Text files of a model folder: written whole or not at all, read with errors that name them.

use std::collections::BTreeSet;
use std::fs;
use std::path::Path;
use std::sync::{Mutex, PoisonError};

use serde::Serialize;
use serde::de::DeserializeOwned;

use crate::{Error, Result};

/// Weights in one file.
pub const WEIGHTS: &str = "model.safetensors";
/// Weights in several files.
pub const WEIGHTS_INDEX: &str = "model.safetensors.index.json";

/// Defaults of generation, beside `config.json`.
pub(crate) const GENERATION_CONFIG: &str = "generation_config.json";

/// Writes indented JSON with a final newline, under a temporary name first.
///
/// # Errors
/// When the folder is not writable or the disk is full.
pub fn write_json(path: &Path, value: &impl Serialize) -> Result<()> {
    let mut text = serde_json::to_string_pretty(value)
        .map_err(|source| Error::Json { path: path.to_path_buf(), source })?;
    text.push('\n');
    write_text(path, &text)
}

/// Writes a text file in one step.
pub(crate) fn write_text(path: &Path, text: &str) -> Result<()> {
    write_bytes(path, text.as_bytes())
}

/// Writes a file in one step.
pub(crate) fn write_bytes(path: &Path, content: &[u8]) -> Result<()> {
    ruminate_files::write_atomically(path, |file| file.write_all(content)).map_err(Error::write(path))
}

/// Reads and parses a JSON file. A byte order mark at its head is no part of it.
///
/// # Errors
/// When the file cannot be read or does not parse; the error says where.
pub fn read_json<T: DeserializeOwned>(path: &Path) -> Result<T> {
    serde_json::from_slice(&read_bytes(path)?)
        .map_err(|source| Error::Json { path: path.to_path_buf(), source })
}

/// The bytes of a text file in UTF-8, without a byte order mark.
pub(crate) fn read_bytes(path: &Path) -> Result<Vec<u8>> {
    let mut bytes = fs::read(path).map_err(Error::read(path))?;
    check_pointer(path, &bytes)?;
    if bytes.starts_with(b"\xEF\xBB\xBF") {
        bytes.drain(..3);
    }
    if matches!(bytes[..], [0xFF, 0xFE, _, 0, ..] | [0xFE, 0xFF, 0, _, ..]) {
        let file = path.display();
        let reason =
            format!("is UTF-16. Make it UTF-8: iconv -f UTF-16 -t UTF-8 {file} > new && mv new {file}");
        return Err(Error::NotThere { path: path.to_path_buf(), reason });
    }
    Ok(bytes)
}

/// Refuses a text that points to a file in Git LFS instead of being it.
pub(crate) fn check_pointer(path: &Path, bytes: &[u8]) -> Result<()> {
    if !bytes.starts_with(b"version https://git-lfs.github.com/spec/") {
        return Ok(());
    }
    let folder = path.parent().filter(|p| !p.as_os_str().is_empty()).unwrap_or(Path::new("."));
    let reason = format!(
        "is a pointer of Git LFS: the repository was cloned without its large files. Fetch them: git lfs install && \
         git -C {} lfs pull",
        folder.display()
    );
    Err(Error::NotThere { path: path.to_path_buf(), reason })
}

/// Temporary files are private; a checkpoint is to have the permissions of any other file.
pub(crate) fn readable_by_all(path: &Path) -> std::io::Result<()> {
    #[cfg(unix)]
    {
        use std::os::unix::fs::PermissionsExt;
        fs::set_permissions(path, fs::Permissions::from_mode(0o644))?;
    }
    let _ = path;
    Ok(())
}

/// Says something about a file the first time only: a configuration is read by more than one part of a program.
pub(crate) fn once(message: &str, say: impl FnOnce()) {
    static SAID: Mutex<BTreeSet<String>> = Mutex::new(BTreeSet::new());
    if SAID.lock().unwrap_or_else(PoisonError::into_inner).insert(message.into()) {
        say();
    }
}
