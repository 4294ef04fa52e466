//! `manifest.json`: name, size and hash of every file of a checkpoint, so that damage is noticed before it is used.

use std::collections::BTreeMap;
use std::fs::{self, File};
use std::io::{self, Read};
use std::path::{Component, Path, PathBuf};

use ruminate_models::checkpoint::{read_json, write_json};
use serde::{Deserialize, Serialize};

use super::{STATE, TRAINER, step_of, sync};
use crate::{Error, Result};

/// Name of the manifest; it is written last.
pub const MANIFEST: &str = "manifest.json";

#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Manifest {
    /// By path relative to the checkpoint, with `/` between its parts.
    files: BTreeMap<String, Entry>,
}

#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Entry {
    bytes: u64,
    blake3: String,
}

/// What is wrong with a file of a checkpoint.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum Damage {
    /// The manifest lists it, or it is the manifest, and it is not there.
    #[error("is missing")]
    Missing,
    /// It was cut short, or something was appended.
    #[error("has {found} bytes instead of {expected}")]
    Size {
        /// Bytes when it was written.
        expected: u64,
        /// Bytes now.
        found: u64,
    },
    /// The size is right, the content is not.
    #[error("is not what was written: its BLAKE3 hash differs")]
    Content,
    /// The manifest does not list it, but a model folder's reader would take it for weights.
    #[error("is not part of the checkpoint, but would be read as weights; move it elsewhere")]
    Unlisted,
    /// The manifest itself cannot be understood.
    #[error("is not a manifest: {0}")]
    Manifest(String),
}

/// A damaged file: its name in the checkpoint, and what is wrong with it.
pub(super) type Flaw = (String, Damage);

/// Writes `manifest.json` for the files that are in `folder` now, after flushing each of them to disk.
///
/// The trainer does this for every checkpoint. Call it for a checkpoint that was changed by hand, to say that the change
/// is meant.
///
/// # Errors
/// When a file cannot be read or flushed, or the manifest cannot be written.
pub fn seal(folder: &Path) -> Result<()> {
    let mut files = BTreeMap::new();
    let folders = list(folder, &mut |name, path| {
        // Flushed first: hashing then reads what is in memory anyway.
        File::open(path).and_then(|file| file.sync_all()).map_err(Error::io("flush", path))?;
        files.insert(name, Entry { bytes: size(path)?, blake3: hash(path)? });
        Ok(())
    })?;
    files.remove(MANIFEST);
    write_json(&folder.join(MANIFEST), &Manifest { files })?;
    folders.iter().try_for_each(|folder| sync(folder))
}

/// Compares a model folder with its manifest. A folder that is no checkpoint of a trainer, such as one from Hugging
/// Face, has none and passes.
///
/// # Errors
/// [`Error::Damaged`] names the first file that is not as it was written, and the newest earlier checkpoint beside it
/// that is intact.
pub fn verify(folder: &Path) -> Result<()> {
    let is_checkpoint = [MANIFEST, TRAINER, STATE].iter().any(|name| folder.join(name).exists());
    if is_checkpoint { require_intact(folder) } else { Ok(()) }
}

/// As [`verify`], and there must be a manifest.
pub(super) fn require_intact(folder: &Path) -> Result<()> {
    match flaw(folder)? {
        None => Ok(()),
        Some(flaw) => Err(damaged(folder, flaw)),
    }
}

/// As [`require_intact`], for one file.
pub(super) fn require_file_intact(folder: &Path, name: &str) -> Result<()> {
    let flaw = match open(folder) {
        Err(flaw) => Some(flaw),
        Ok(manifest) => match manifest.files.get(name) {
            Some(entry) => entry.flaw(name, &folder.join(name))?,
            None => Some((MANIFEST.into(), Damage::Manifest(format!("it does not list {name}")))),
        },
    };
    flaw.map_or(Ok(()), |flaw| Err(damaged(folder, flaw)))
}

/// The error for a damaged checkpoint, with an intact one to go on from.
pub(super) fn damaged(folder: &Path, (file, damage): Flaw) -> Error {
    Error::Damaged { folder: folder.to_path_buf(), file, damage, intact: earlier_intact(folder) }
}

/// The newest intact checkpoint among those before `folder`.
fn earlier_intact(folder: &Path) -> Option<PathBuf> {
    // `last` and `best` are links.
    let folder =
        fs::read_link(folder).ok().map_or(folder.to_path_buf(), |target| folder.with_file_name(target));
    let step = step_of(&folder)?;
    let mut earlier: Vec<(u64, PathBuf)> = fs::read_dir(folder.parent()?)
        .ok()?
        .filter_map(|entry| entry.ok().map(|entry| entry.path()))
        .filter_map(|path| Some((step_of(&path)?, path)))
        .filter(|(other, _)| *other < step)
        .collect();
    earlier.sort();
    earlier.into_iter().rev().map(|(_, path)| path).find(|path| matches!(flaw(path), Ok(None)))
}

/// The first thing that is wrong, if anything is.
fn flaw(folder: &Path) -> Result<Option<Flaw>> {
    let manifest = match open(folder) {
        Ok(manifest) => manifest,
        Err(flaw) => return Ok(Some(flaw)),
    };
    for (name, entry) in &manifest.files {
        if let Some(flaw) = entry.flaw(name, &folder.join(name))? {
            return Ok(Some(flaw));
        }
    }
    let mut unlisted = None;
    list(folder, &mut |name, _| {
        let weights = name.ends_with(".safetensors") || name.ends_with(".safetensors.index.json");
        if weights && !manifest.files.contains_key(&name) {
            unlisted.get_or_insert((name, Damage::Unlisted));
        }
        Ok(())
    })?;
    Ok(unlisted)
}

fn open(folder: &Path) -> std::result::Result<Manifest, Flaw> {
    let path = folder.join(MANIFEST);
    if !path.exists() {
        return Err((MANIFEST.into(), Damage::Missing));
    }
    let wrong = |reason: String| (MANIFEST.to_string(), Damage::Manifest(reason));
    let manifest: Manifest = read_json(&path).map_err(|error| {
        wrong(std::error::Error::source(&error).map_or(error.to_string(), ToString::to_string))
    })?;
    // A manifest leads nowhere else.
    let inside = |name: &str| Path::new(name).components().all(|part| matches!(part, Component::Normal(_)));
    match manifest.files.keys().find(|name| name.is_empty() || !inside(name)) {
        Some(name) => Err(wrong(format!("it lists {name:?}, which cannot be a file of the checkpoint"))),
        None => Ok(manifest),
    }
}

impl Entry {
    fn flaw(&self, name: &str, path: &Path) -> Result<Option<Flaw>> {
        if !path.is_file() {
            return Ok(Some((name.into(), Damage::Missing)));
        }
        let found = size(path)?;
        Ok(if found != self.bytes {
            Some((name.into(), Damage::Size { expected: self.bytes, found }))
        } else if hash(path)? != self.blake3 {
            Some((name.into(), Damage::Content))
        } else {
            None
        })
    }
}

fn size(path: &Path) -> Result<u64> {
    Ok(fs::metadata(path).map_err(Error::io("read", path))?.len())
}

fn hash(path: &Path) -> Result<String> {
    file_hash(path).map_err(Error::io("read", path))
}

/// The BLAKE3 hash of a file, computed on all cores, as a manifest has it.
///
/// The file is read and not mapped into memory: where somebody shortens a mapped file meanwhile, the process dies.
///
/// # Errors
/// The file cannot be read.
pub fn file_hash(path: &Path) -> io::Result<String> {
    const AT_ONCE: u64 = 16 << 20;
    let mut file = File::open(path)?;
    let (mut hasher, mut part) = (blake3::Hasher::new(), vec![]);
    while file.by_ref().take(AT_ONCE).read_to_end(&mut part)? > 0 {
        hasher.update_rayon(&part);
        part.clear();
    }
    Ok(hasher.finalize().to_hex().to_string())
}

/// Shows every file in and below `folder` with its relative name; returns all folders, the innermost first.
fn list(folder: &Path, file: &mut dyn FnMut(String, &Path) -> Result<()>) -> Result<Vec<PathBuf>> {
    fn visit(
        folder: &Path,
        prefix: &str,
        file: &mut dyn FnMut(String, &Path) -> Result<()>,
        folders: &mut Vec<PathBuf>,
    ) -> Result<()> {
        for entry in fs::read_dir(folder).map_err(Error::io("read", folder))? {
            let entry = entry.map_err(Error::io("read", folder))?;
            let path = entry.path();
            let name = format!("{prefix}{}", entry.file_name().to_string_lossy());
            // Links to folders are not followed: they may lead back.
            if entry.file_type().map_err(Error::io("read", &path))?.is_dir() {
                visit(&path, &format!("{name}/"), file, folders)?;
            } else {
                file(name, &path)?;
            }
        }
        folders.push(folder.to_path_buf());
        Ok(())
    }
    let mut folders = vec![];
    visit(folder, "", file, &mut folders)?;
    Ok(folders)
}
