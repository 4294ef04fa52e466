//! Files as memory.

use std::fs::File;
use std::io;
use std::path::Path;

/// Maps a file into memory for reading: weights go straight from the page cache into tensors.
///
/// The file must not be shortened by another process while the map is in use; checkpoints are therefore replaced by
/// renaming, never rewritten in place.
///
/// # Errors
/// When the file cannot be opened or mapped.
pub fn map_file(path: &Path) -> io::Result<memmap2::Mmap> {
    let file = File::open(path)?;
    if file.metadata()?.is_dir() {
        return Err(io::Error::new(io::ErrorKind::IsADirectory, "it is a folder"));
    }
    // SAFETY: the mapping is read-only; the documented rule above keeps the file's length.
    unsafe { memmap2::Mmap::map(&file) }
}
