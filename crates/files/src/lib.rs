#![doc = include_str!("../README.md")]

use std::fs::{File, OpenOptions};
use std::io::{self, BufWriter, Read, Seek, SeekFrom, Write};
use std::path::{Path, PathBuf};

use serde::Serialize;

/// Writes a whole file: under a temporary name in the same folder, flushed to disk, then renamed. Readers see the old or the new content,
/// never a part, and so does whoever looks after a crash. The file gets the permissions that the umask allows.
///
/// ```
/// let folder = tempfile::tempdir()?;
/// let path = folder.path().join("result.txt");
/// ruminate_files::write_atomically(&path, |file| file.write_all(b"done\n"))?;
/// assert_eq!(std::fs::read_to_string(&path)?, "done\n");
/// # Ok::<(), std::io::Error>(())
/// ```
///
/// # Errors
/// That of `fill`, or of the disk. What the name stood for before is untouched, and nothing temporary is left.
pub fn write_atomically(path: &Path, fill: impl FnOnce(&mut dyn Write) -> io::Result<()>) -> io::Result<()> {
    let folder = path.parent().filter(|folder| !folder.as_os_str().is_empty()).unwrap_or(Path::new("."));
    let mut builder = tempfile::Builder::new();
    #[cfg(unix)]
    {
        use std::os::unix::fs::PermissionsExt;
        // A temporary file is private by default.
        builder.permissions(std::fs::Permissions::from_mode(0o666));
    }
    let mut file = builder.prefix(".writing-").tempfile_in(folder)?;
    let mut out = BufWriter::new(file.as_file_mut());
    fill(&mut out)?;
    out.flush()?;
    drop(out);
    file.as_file().sync_all()?;
    file.persist(path)?;
    Ok(())
}

/// A file of JSON lines that only grows. Each line reaches the operating system at once, so that a killed process loses at most the line
/// that it was writing.
///
/// ```
/// use ruminate_files::JsonLines;
///
/// let folder = tempfile::tempdir()?;
/// let path = folder.path().join("log.jsonl");
/// JsonLines::open(&path)?.append(&[1, 2])?;
/// std::fs::write(&path, "[1,2]\n[3,")?;
/// let mut lines = JsonLines::open(&path)?;
/// let whole = lines.read_whole_lines()?;
/// lines.truncate(whole.len() as u64)?;
/// lines.append(&[4])?;
/// assert_eq!(std::fs::read_to_string(&path)?, "[1,2]\n[4]\n");
/// # Ok::<(), std::io::Error>(())
/// ```
#[derive(Debug)]
pub struct JsonLines {
    path: PathBuf,
    file: File,
    /// The length of the file.
    len: u64,
}

impl JsonLines {
    /// Opens the file for reading and appending, creating it where it is missing.
    ///
    /// # Errors
    /// It cannot be opened, or is no ordinary file.
    pub fn open(path: &Path) -> io::Result<Self> {
        // Asked before, since some special files have no end and others block.
        if path.exists() && !path.is_file() {
            return Err(io::Error::new(io::ErrorKind::InvalidInput, "it is no ordinary file"));
        }
        let file = OpenOptions::new().read(true).append(true).create(true).open(path)?;
        let len = file.metadata()?.len();
        Ok(Self { path: path.to_owned(), file, len })
    }

    /// The path that the file was opened with.
    #[must_use]
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Locks the file against other processes for as long as it is open. Some cluster file systems have no locks; there, nothing happens.
    ///
    /// # Errors
    /// [`io::ErrorKind::WouldBlock`] when another process has it.
    pub fn lock(&self) -> io::Result<()> {
        match fs4::FileExt::try_lock(&self.file) {
            Ok(()) => Ok(()),
            Err(fs4::TryLockError::WouldBlock) => Err(io::ErrorKind::WouldBlock.into()),
            Err(fs4::TryLockError::Error(error)) if error.kind() == io::ErrorKind::Unsupported => Ok(()),
            Err(fs4::TryLockError::Error(error)) => Err(error),
        }
    }

    /// Everything that is in the file.
    ///
    /// # Errors
    /// It cannot be read.
    pub fn read(&self) -> io::Result<Vec<u8>> {
        let mut bytes = vec![];
        File::open(&self.path)?.read_to_end(&mut bytes)?;
        Ok(bytes)
    }

    /// Shortens the file to its first `len` bytes.
    ///
    /// # Errors
    /// It cannot be written.
    pub fn truncate(&mut self, len: u64) -> io::Result<()> {
        if len < self.len {
            self.file.set_len(len)?;
            self.len = len;
        }
        Ok(())
    }

    /// The lines of the file, without a last one that has no end of line: a killed process left it. [Truncated](Self::truncate) to the
    /// length of the result, the file holds whole lines only.
    ///
    /// # Errors
    /// It cannot be read.
    pub fn read_whole_lines(&self) -> io::Result<Vec<u8>> {
        let mut bytes = self.read()?;
        bytes.truncate(bytes.iter().rposition(|&byte| byte == b'\n').map_or(0, |end| end + 1));
        Ok(bytes)
    }

    /// Appends a line. Where that fails, what stood there before stays.
    ///
    /// # Errors
    /// The record cannot be expressed in JSON, or the disk is full.
    pub fn append(&mut self, record: &(impl Serialize + ?Sized)) -> io::Result<()> {
        self.append_all([record])
    }

    /// Appends a line for each record, all of them or none.
    ///
    /// # Errors
    /// Those of [`append`](Self::append).
    pub fn append_all(&mut self, records: impl IntoIterator<Item = impl Serialize>) -> io::Result<()> {
        let mut text = vec![];
        for record in records {
            serde_json::to_writer(&mut text, &record)?;
            text.push(b'\n');
        }
        self.write(&text)
    }

    /// Ends the last line, if its end is missing.
    ///
    /// # Errors
    /// The file cannot be read or written.
    pub fn end_line(&mut self) -> io::Result<()> {
        if self.len == 0 {
            return Ok(());
        }
        let mut last = [0];
        // Appending goes to the end of the file wherever reading stands.
        (&self.file).seek(SeekFrom::Start(self.len - 1))?;
        (&self.file).read_exact(&mut last)?;
        if last == *b"\n" { Ok(()) } else { self.write(b"\n") }
    }

    /// Waits until the lines are on the disk.
    ///
    /// # Errors
    /// That of the disk.
    pub fn sync(&self) -> io::Result<()> {
        self.file.sync_data()
    }

    fn write(&mut self, bytes: &[u8]) -> io::Result<()> {
        if let Err(error) = self.file.write_all(bytes) {
            // The error of the disk is what matters. If this fails too, the torn line is cut off when the file is opened again.
            let _ = self.file.set_len(self.len);
            return Err(error);
        }
        self.len += bytes.len() as u64;
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use std::fs;

    use super::*;

    #[test]
    fn a_failed_write_leaves_the_old_file_and_nothing_else() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("a.txt");
        write_atomically(&path, |file| file.write_all(b"old")).unwrap();
        let fail = |file: &mut dyn Write| {
            file.write_all(b"new")?;
            Err(io::Error::other("full"))
        };
        assert_eq!(write_atomically(&path, fail).unwrap_err().to_string(), "full");
        assert_eq!(fs::read_to_string(&path).unwrap(), "old");
        assert_eq!(fs::read_dir(folder.path()).unwrap().count(), 1);
        assert!(write_atomically(&folder.path().join("missing/a.txt"), |_| Ok(())).is_err());
    }

    #[cfg(unix)]
    #[test]
    fn files_are_as_public_as_any_other() {
        use std::os::unix::fs::PermissionsExt;
        let folder = tempfile::tempdir().unwrap();
        let (written, created) = (folder.path().join("a"), folder.path().join("b"));
        write_atomically(&written, |_| Ok(())).unwrap();
        File::create(&created).unwrap();
        let mode = |path: &Path| fs::metadata(path).unwrap().permissions().mode();
        assert_eq!(mode(&written), mode(&created));
    }

    #[test]
    fn a_file_may_end_anywhere() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("a.jsonl");
        let text = "{\"a\":1}\n{\"a\":2}\n";
        for end in 0..=text.len() {
            fs::write(&path, &text[..end]).unwrap();
            let mut lines = JsonLines::open(&path).unwrap();
            let whole = &text[..text[..end].rfind('\n').map_or(0, |at| at + 1)];
            assert_eq!(lines.read_whole_lines().unwrap(), whole.as_bytes());
            lines.truncate(whole.len() as u64).unwrap();
            lines.append_all([3, 4]).unwrap();
            assert_eq!(fs::read_to_string(&path).unwrap(), format!("{whole}3\n4\n"));
        }
    }

    #[test]
    fn a_last_line_may_be_ended() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("a.jsonl");
        for text in ["", "1\n", "1"] {
            fs::write(&path, text).unwrap();
            let mut lines = JsonLines::open(&path).unwrap();
            lines.end_line().unwrap();
            lines.append(&2).unwrap();
            assert_eq!(fs::read_to_string(&path).unwrap(), if text.is_empty() { "2\n" } else { "1\n2\n" });
        }
    }

    #[test]
    fn a_record_without_json_changes_nothing() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("a.jsonl");
        let mut lines = JsonLines::open(&path).unwrap();
        let keys_are_lists = std::collections::BTreeMap::from([(vec![1], 2)]);
        assert!(lines.append(&keys_are_lists).is_err());
        lines.append(&1).unwrap();
        assert_eq!(fs::read_to_string(&path).unwrap(), "1\n");
    }

    #[test]
    fn a_lock_keeps_others_out() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("a.jsonl");
        let first = JsonLines::open(&path).unwrap();
        first.lock().unwrap();
        let second = JsonLines::open(&path).unwrap();
        assert_eq!(second.lock().unwrap_err().kind(), io::ErrorKind::WouldBlock);
        drop(first);
        second.lock().unwrap();
        assert!(JsonLines::open(folder.path()).is_err());
    }
}
