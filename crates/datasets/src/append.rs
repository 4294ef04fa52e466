//! Files of JSON lines that grow while a program runs, and from which it goes on after it was killed.

use std::io::ErrorKind;
use std::path::Path;

use ruminate_files::JsonLines;
use serde::Serialize;

use crate::{Error, Result};

/// A file that is being written, by this process only.
#[derive(Debug)]
pub(crate) struct AppendFile(JsonLines);

impl AppendFile {
    /// Opens or makes a file. `read` is given what is in it, and returns what it found and how many bytes are whole; the rest, a
    /// last line that was cut off, is removed.
    pub(crate) fn open<T, E: From<Error>>(
        path: &Path,
        read: impl FnOnce(&[u8]) -> std::result::Result<(T, usize), E>,
    ) -> std::result::Result<(Self, T), E> {
        let cannot_write = |source| Error::Write { path: path.into(), source };
        if let Some(folder) = path.parent() {
            std::fs::create_dir_all(folder).map_err(cannot_write)?;
        }
        let mut lines = JsonLines::open(path).map_err(cannot_write)?;
        lines.lock().map_err(|source| match source.kind() {
            ErrorKind::WouldBlock => Error::Locked(path.into()),
            _ => cannot_write(source),
        })?;
        let bytes = lines.read().map_err(|source| Error::Read { path: path.into(), source })?;
        // A file that somebody edited may begin with a byte order mark.
        let text = crate::text::without_mark(&bytes);
        let (found, whole) = read(text)?;
        let whole = if whole == 0 { 0 } else { whole + bytes.len() - text.len() };
        lines.truncate(whole as u64).and_then(|()| lines.end_line()).map_err(cannot_write)?;
        Ok((Self(lines), found))
    }

    /// Appends a line. Where that fails, what stood there before stays.
    pub(crate) fn write<T: Serialize>(&mut self, record: &T) -> Result<()> {
        self.0.append(record).map_err(|source| Error::Write { path: self.0.path().into(), source })
    }

    /// Waits until the system has everything on its disk.
    pub(crate) fn sync(&self) -> Result<()> {
        self.0.sync().map_err(|source| Error::Write { path: self.0.path().into(), source })
    }
}
