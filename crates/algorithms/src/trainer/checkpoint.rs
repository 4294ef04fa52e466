//! Checkpoints: a Hugging Face model folder each, with the trainer's state beside the weights.

use std::collections::BTreeMap;
use std::fs::{self, File};
use std::path::{Path, PathBuf};

use ruminate_models::checkpoint::{read_json, read_tensors, write_json, write_tensors};
use ruminate_torch::optim::Optimizer;
use ruminate_torch::rng;
use serde::{Deserialize, Serialize};
use tch::{Device, Tensor};

use super::Algorithm;
use crate::{Error, Result};

/// Optimizer moments and generator states.
const TRAINER: &str = "trainer.safetensors";
/// [`TrainerState`].
const STATE: &str = "state.json";
const RNG_CPU: &str = "rng.cpu";
const RNG_CUDA: &str = "rng.cuda";

/// Where a run stands.
#[derive(Debug, Clone, PartialEq, Default, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct TrainerState {
    /// Optimizer steps taken.
    pub step: u64,
    /// Validation scores by step; higher is better.
    pub scores: BTreeMap<u64, f64>,
    /// What the algorithm needs to go on.
    pub algorithm: serde_json::Value,
}

impl TrainerState {
    /// Step and score of the best validation; the earliest one among equals.
    #[must_use]
    pub fn best(&self) -> Option<(u64, f64)> {
        let mut best = None;
        for (&step, &score) in &self.scores {
            if best.is_none_or(|(_, other)| score > other) {
                best = Some((step, score));
            }
        }
        best
    }
}

/// A folder of checkpoints `step-N`, with the links `last` and `best`.
///
/// A checkpoint is written under a temporary name, flushed to disk and renamed; the links are replaced afterwards,
/// by renaming too. So at every moment `last` is a complete checkpoint, whatever happens to the process.
#[derive(Debug)]
pub struct Checkpoints {
    root: PathBuf,
}

impl Checkpoints {
    /// Opens or creates the folder, and clears away what an interrupted save left in it.
    ///
    /// # Errors
    /// When the folder is not writable.
    pub fn open(root: &Path) -> Result<Self> {
        fs::create_dir_all(root).map_err(Error::io("create", root))?;
        for entry in fs::read_dir(root).map_err(Error::io("read", root))? {
            let entry = entry.map_err(Error::io("read", root))?;
            if entry.file_name().to_string_lossy().starts_with(TEMPORARY) {
                let path = entry.path();
                let removed = if path.is_dir() && !path.is_symlink() {
                    fs::remove_dir_all(&path)
                } else {
                    fs::remove_file(&path)
                };
                removed.map_err(Error::io("remove", &path))?;
            }
        }
        Ok(Self { root: root.to_path_buf() })
    }

    /// The folder of the checkpoint after `step` steps.
    #[must_use]
    pub fn folder(&self, step: u64) -> PathBuf {
        self.root.join(format!("step-{step}"))
    }

    /// The state of the last checkpoint, if there is one.
    ///
    /// # Errors
    /// When it cannot be read.
    pub fn last_state(&self) -> Result<Option<TrainerState>> {
        let last = self.root.join("last");
        if !last.is_symlink() {
            return Ok(None);
        }
        Ok(Some(read_json(&last.join(STATE))?))
    }

    /// Puts model, optimizer, generators and algorithm into the state of the last checkpoint.
    pub(super) fn restore<A: Algorithm>(
        &self,
        algorithm: &mut A,
        optimizer: &mut dyn Optimizer,
    ) -> Result<Option<TrainerState>> {
        let Some(state) = self.last_state()? else { return Ok(None) };
        let folder = self.folder(state.step);
        let device = algorithm.policy().device();
        algorithm.policy().restore(&folder)?;
        let path = folder.join(TRAINER);
        let tensors = read_tensors(&path, Device::Cpu)?;
        optimizer.load_state(&|name| tensors.get(name).map(Tensor::shallow_clone)).map_err(|e| {
            Error::Checkpoint {
                path: path.clone(),
                reason: format!("{e}; it belongs to another model or optimizer"),
            }
        })?;
        let missing =
            |name: &str| Error::Checkpoint { path: path.clone(), reason: format!("`{name}` is missing") };
        rng::set_state(Device::Cpu, tensors.get(RNG_CPU).ok_or_else(|| missing(RNG_CPU))?)?;
        // A run that moves from CPU to CUDA has no state for the new generator, and needs none.
        if let (Device::Cuda(_), Some(saved)) = (device, tensors.get(RNG_CUDA)) {
            rng::set_state(device, saved)?;
        }
        algorithm.load_state(state.algorithm.clone())?;
        // The process may have died after it had replaced `last`.
        self.settle(&state)?;
        Ok(Some(state))
    }

    /// Writes the checkpoint of the current step, and removes those that are neither last nor best any more.
    pub(super) fn save<A: Algorithm>(
        &self,
        algorithm: &A,
        state: &mut TrainerState,
        optimizer: &dyn Optimizer,
    ) -> Result<PathBuf> {
        state.algorithm = algorithm.state();
        let folder = self.folder(state.step);
        if self.last_state()?.is_some_and(|last| last.step == state.step) {
            // Weights and moments of this step are safe already; only a validation has been added since.
            write_json(&folder.join(STATE), state)?;
        } else {
            // A folder of this name that `last` does not point to was cut off before it counted.
            remove_folder(&folder)?;
            let temporary = self.root.join(format!("{TEMPORARY}step-{}", state.step));
            fs::create_dir(&temporary).map_err(Error::io("create", &temporary))?;
            if let Err(error) = self.write(&temporary, algorithm, state, optimizer) {
                // A full disk must not be kept full by half a checkpoint.
                let _ = fs::remove_dir_all(&temporary);
                return Err(error);
            }
            fs::rename(&temporary, &folder).map_err(Error::io("rename", &temporary))?;
            sync(&self.root)?;
        }
        self.link("last", state.step)?;
        self.settle(state)?;
        Ok(folder)
    }

    /// What follows from a new `last`: `best`, and that all others go.
    fn settle(&self, state: &TrainerState) -> Result<()> {
        if let Some((best, _)) = state.best() {
            self.link("best", best)?;
        }
        self.prune(state)
    }

    fn write<A: Algorithm>(
        &self,
        folder: &Path,
        algorithm: &A,
        state: &TrainerState,
        optimizer: &dyn Optimizer,
    ) -> Result<()> {
        algorithm.policy().save(folder)?;
        algorithm.save_extras(folder)?;
        let mut tensors = optimizer.state();
        tensors.push((RNG_CPU.into(), rng::state(Device::Cpu)?));
        if let device @ Device::Cuda(_) = algorithm.policy().device() {
            tensors.push((RNG_CUDA.into(), rng::state(device)?));
        }
        write_tensors(&folder.join(TRAINER), tensors.iter().map(|(name, tensor)| (name.as_str(), tensor)))?;
        write_json(&folder.join(STATE), state)?;
        sync(folder)
    }

    /// Points a link to a checkpoint, replacing it in one operation.
    fn link(&self, name: &str, step: u64) -> Result<()> {
        let temporary = self.root.join(format!("{TEMPORARY}{name}"));
        let link = self.root.join(name);
        if temporary.is_symlink() {
            fs::remove_file(&temporary).map_err(Error::io("remove", &temporary))?;
        }
        std::os::unix::fs::symlink(format!("step-{step}"), &temporary)
            .map_err(Error::io("create", &temporary))?;
        fs::rename(&temporary, &link).map_err(Error::io("rename", &temporary))?;
        sync(&self.root)
    }

    fn prune(&self, state: &TrainerState) -> Result<()> {
        let keep = [Some(state.step), state.best().map(|(step, _)| step)];
        for entry in fs::read_dir(&self.root).map_err(Error::io("read", &self.root))? {
            let path = entry.map_err(Error::io("read", &self.root))?.path();
            let step = path.file_name().and_then(|n| n.to_str()?.strip_prefix("step-")?.parse::<u64>().ok());
            if step.is_some() && !keep.contains(&step) {
                remove_folder(&path)?;
            }
        }
        Ok(())
    }
}

/// Names of unfinished things; everything that starts so may be removed when a run starts.
const TEMPORARY: &str = ".tmp-";

fn remove_folder(path: &Path) -> Result<()> {
    match fs::remove_dir_all(path) {
        Err(e) if e.kind() != std::io::ErrorKind::NotFound => Err(Error::io("remove", path)(e)),
        _ => Ok(()),
    }
}

/// Flushes a folder's entries to disk.
fn sync(folder: &Path) -> Result<()> {
    File::open(folder).and_then(|f| f.sync_all()).map_err(Error::io("flush", folder))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_best_is_the_earliest_of_the_highest() {
        let best = |scores: &[(u64, f64)]| {
            TrainerState { scores: scores.iter().copied().collect(), ..TrainerState::default() }.best()
        };
        assert_eq!(best(&[]), None);
        assert_eq!(best(&[(9, -7.0)]), Some((9, -7.0)));
        assert_eq!(best(&[(20, 1.0), (3, 1.0), (100, 1.0), (2, 0.5)]), Some((3, 1.0)));
    }
}
