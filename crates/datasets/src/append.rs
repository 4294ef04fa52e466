//! Files of JSON lines that grow while a program runs, and from which it goes on after it was killed.

use std::fs::{File, OpenOptions};
use std::io::{self, Read, Write};
use std::path::{Path, PathBuf};

use serde::Serialize;

use crate::{Error, Result};

/// A file that is being written, by this process only.
#[derive(Debug)]
pub(crate) struct AppendFile {
    path: PathBuf,
    file: File,
    len: u64,
}

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
        // Asked before, since some special files have no end and others block.
        if path.exists() && !path.is_file() {
            let source = io::Error::new(io::ErrorKind::InvalidInput, "it is no ordinary file");
            return Err(cannot_write(source).into());
        }
        let open = OpenOptions::new().read(true).append(true).create(true).open(path);
        let mut file = open.map_err(cannot_write)?;
        match fs4::FileExt::try_lock(&file) {
            Ok(()) => {}
            Err(fs4::TryLockError::WouldBlock) => return Err(Error::Locked(path.into()).into()),
            // Some cluster file systems have no locks.
            Err(fs4::TryLockError::Error(error)) if error.kind() == io::ErrorKind::Unsupported => {}
            Err(fs4::TryLockError::Error(source)) => return Err(cannot_write(source).into()),
        }
        let mut bytes = vec![];
        file.read_to_end(&mut bytes).map_err(|source| Error::Read { path: path.into(), source })?;
        // A file that somebody edited may begin with a byte order mark.
        let text = crate::text::without_mark(&bytes);
        let (found, whole) = read(text)?;
        let whole = if whole == 0 { 0 } else { whole + bytes.len() - text.len() };
        let mut this = Self { path: path.into(), file, len: whole as u64 };
        if whole < bytes.len() {
            this.file.set_len(this.len).map_err(cannot_write)?;
        }
        if whole > 0 && bytes[whole - 1] != b'\n' {
            this.append(b"\n")?;
        }
        Ok((this, found))
    }

    /// Appends a line. Where that fails, what stood there before stays.
    pub(crate) fn write<T: Serialize>(&mut self, record: &T) -> Result<()> {
        let mut line = serde_json::to_vec(record)
            .map_err(|error| Error::Write { path: self.path.clone(), source: error.into() })?;
        line.push(b'\n');
        self.append(&line)
    }

    fn append(&mut self, bytes: &[u8]) -> Result<()> {
        if let Err(source) = self.file.write_all(bytes) {
            // If this fails too, the half line is removed when the file is opened again.
            let _ = self.file.set_len(self.len);
            return Err(Error::Write { path: self.path.clone(), source });
        }
        self.len += bytes.len() as u64;
        Ok(())
    }

    /// Waits until the system has everything on its disk.
    pub(crate) fn sync(&self) -> Result<()> {
        self.file.sync_data().map_err(|source| Error::Write { path: self.path.clone(), source })
    }
}
