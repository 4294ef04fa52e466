//! Checkpoints: a Hugging Face model folder each, with the trainer's state beside the weights.

mod manifest;

use std::collections::{BTreeMap, BTreeSet};
use std::error::Error as _;
use std::fs::{self, File};
use std::io::{self, ErrorKind};
use std::path::{Path, PathBuf};

use ruminate_models::checkpoint::{read_json, read_some_tensors, write_json, write_tensors};
use ruminate_torch::optim::Optimizer;
use ruminate_torch::rng;
use serde::{Deserialize, Serialize};
use tch::{Device, Tensor};

use super::{Algorithm, OptimizerStep};
use crate::{Collective, Error, Result};

pub use manifest::{Damage, MANIFEST, file_hash, seal, verify};

/// Optimizer moments and generator states.
const TRAINER: &str = "trainer.safetensors";
/// [`TrainerState`].
const STATE: &str = "state.json";
/// How the names of generators begin.
const RNG: &str = "rng.";
const RNG_CPU: &str = "rng.cpu";
const RNG_CUDA: &str = "rng.cuda";

/// The states of this process' generators, by name.
pub(super) fn generators(device: Device) -> Result<Vec<(String, Tensor)>> {
    let mut states = vec![(RNG_CPU.to_string(), rng::state(Device::Cpu)?)];
    if let Device::Cuda(_) = device {
        states.push((RNG_CUDA.into(), rng::state(device)?));
    }
    Ok(states)
}

/// The name of a generator of a rank.
pub(super) fn of_rank(name: &str, rank: usize) -> String {
    if rank == 0 { name.to_string() } else { format!("{name}.{rank}") }
}

/// Where a run stands.
#[derive(Debug, Clone, PartialEq, Default, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct TrainerState {
    /// Optimizer steps taken.
    pub step: u64,
    /// Validation scores by step; higher is better.
    pub scores: BTreeMap<u64, f64>,
    /// Steps that were validated and do not compete for the best checkpoint ([`Algorithm::competes_at`]).
    #[serde(default, skip_serializing_if = "BTreeSet::is_empty")]
    pub unranked: BTreeSet<u64>,
    /// What the algorithm needs to go on.
    pub algorithm: serde_json::Value,
}

impl TrainerState {
    /// Whether the policy was validated at this step.
    pub(super) fn is_validated(&self) -> bool {
        self.scores.contains_key(&self.step) || self.unranked.contains(&self.step)
    }

    /// The state that lies beside a model, if it is a checkpoint.
    #[must_use]
    pub fn of_model(folder: &Path) -> Option<Self> {
        read_json(&folder.join(STATE)).ok()
    }

    /// True if none of the last `patience` validations is better than the best before them. Never with a patience of 0.
    pub(super) fn is_exhausted(&self, patience: u64) -> bool {
        let since_best = |best| self.scores.range(best..).skip(1).count() as u64;
        patience > 0 && self.best().is_some_and(|best| since_best(best) >= patience)
    }

    /// Step of the best validation; the earliest one among equals.
    #[must_use]
    pub fn best(&self) -> Option<u64> {
        self.best_until(u64::MAX)
    }

    /// The best validation up to `step`.
    fn best_until(&self, step: u64) -> Option<u64> {
        let better = |best: (u64, f64), other: (u64, f64)| if other.1 > best.1 { other } else { best };
        self.scores.range(..=step).map(|(&step, &score)| (step, score)).reduce(better).map(|(step, _)| step)
    }
}

/// What a checkpoint holds besides model and algorithm.
pub(super) struct States<'a> {
    pub(super) optimizer_step: &'a OptimizerStep,
    /// Of rank 0: those of all ranks.
    pub(super) generators: Vec<(String, Tensor)>,
    pub(super) collective: &'a Collective,
}

impl States<'_> {
    /// Writes this rank's file.
    fn write(&self, folder: &Path) -> Result<()> {
        let (rank, size) = (self.collective.rank(), self.collective.size());
        let file = if self.optimizer_step.is_sharded() { shard(rank, size) } else { TRAINER.into() };
        let state = self.optimizer_step.optimizer().state();
        let generators = if rank == 0 { &self.generators[..] } else { &[] };
        let tensors = state.iter().chain(generators).map(|(name, tensor)| (name.as_str(), tensor));
        Ok(write_tensors(&folder.join(file), tensors)?)
    }
}

/// The file of a rank that has states of its own, named as Hugging Face names the parts of a model.
fn shard(rank: usize, size: usize) -> String {
    format!("trainer-{:05}-of-{size:05}.safetensors", rank + 1)
}

/// The states of this optimizer and of all generators, from the one file or those of all ranks that wrote the checkpoint.
fn read_states(folder: &Path, optimizer: &dyn Optimizer) -> Result<BTreeMap<String, Tensor>> {
    let own: BTreeSet<String> = optimizer.state().into_iter().map(|(name, _)| name).collect();
    let wanted = |name: &str| own.contains(name) || name.starts_with(RNG);
    let mut files: Vec<PathBuf> = vec![];
    for entry in fs::read_dir(folder).map_err(Error::io("read", folder))? {
        let path = entry.map_err(Error::io("read", folder))?.path();
        let name = path.file_name().unwrap_or_default().to_string_lossy();
        if name.starts_with("trainer-") && name.ends_with(".safetensors") {
            files.push(path);
        }
    }
    if files.is_empty() {
        files.push(folder.join(TRAINER));
    }
    let mut tensors = BTreeMap::new();
    for file in files {
        tensors.extend(read_some_tensors(&file, Device::Cpu, &wanted)?);
    }
    Ok(tensors)
}

/// A folder of checkpoints `step-N`, with the links `last` and `best`.
///
/// A checkpoint is written under a temporary name, flushed to disk and renamed; the links are replaced afterwards,
/// by renaming too. So at every moment `last` is a complete checkpoint, whatever happens to the process. What happens to
/// the disk shows when a checkpoint is read: each has a [`MANIFEST`] with size and hash of every file. So that there is
/// something to go back to, the checkpoint before the last one is kept as well.
#[derive(Debug)]
pub struct Checkpoints {
    root: PathBuf,
    keep: usize,
    /// Of several processes, the first one writes and the others read.
    rank: usize,
}

impl Checkpoints {
    /// How many of the newest checkpoints stay if nothing else is said.
    pub const KEEP: usize = 2;

    /// Opens or creates the folder, and clears away what an interrupted save left in it.
    ///
    /// # Errors
    /// When the folder is not writable.
    pub fn open(root: &Path) -> Result<Self> {
        fs::create_dir_all(root).map_err(Error::io("create", root))?;
        for entry in fs::read_dir(root).map_err(Error::io("read", root))? {
            let path = entry.map_err(Error::io("read", root))?.path();
            let name = path.file_name().unwrap_or_default().to_string_lossy().into_owned();
            match name.strip_prefix(REPLACED).map(|name| root.join(name)) {
                // Its successor never took the name.
                Some(step) if !step.exists() => {
                    fs::rename(&path, &step).map_err(Error::io("rename", &path))?
                }
                Some(_) => remove(&path)?,
                None if name.starts_with(TEMPORARY) => remove(&path)?,
                None => {}
            }
        }
        Ok(Self { root: root.to_path_buf(), keep: Self::KEEP, rank: 0 })
    }

    /// The folder as a rank sees it that does not write it.
    pub(super) fn follow(root: &Path, rank: usize) -> Self {
        Self { root: root.to_path_buf(), keep: Self::KEEP, rank }
    }

    /// Keeps the `keep` newest checkpoints (at least the last one), and the best of what each of them knows.
    #[must_use]
    pub fn keep(self, keep: usize) -> Self {
        Self { keep: keep.max(1), ..self }
    }

    /// The folder of the checkpoint after `step` steps.
    #[must_use]
    pub fn folder(&self, step: u64) -> PathBuf {
        self.root.join(format!("step-{step}"))
    }

    /// The state of the last checkpoint, if there is one.
    ///
    /// # Errors
    /// When it cannot be read, or is not as it was written.
    pub fn last_state(&self) -> Result<Option<TrainerState>> {
        let Some(step) = self.last_step()? else { return Ok(None) };
        let folder = self.folder(step);
        manifest::require_file_intact(&folder, STATE)?;
        let state: TrainerState = read_json(&folder.join(STATE))?;
        if state.step == step {
            return Ok(Some(state));
        }
        let reason = format!("{STATE} is that of step {}; was the folder renamed?", state.step);
        Err(Error::Checkpoint { path: folder, reason })
    }

    /// Makes an earlier checkpoint the last one: training goes on from it, and removes what comes after it. That is for
    /// a last checkpoint that is damaged, or that should not have been reached.
    ///
    /// # Errors
    /// When there is no checkpoint of that step, or it is damaged.
    pub fn rewind(&self, step: u64) -> Result<()> {
        let path = self.folder(step);
        if !path.is_dir() {
            let steps: Vec<String> = self.steps()?.iter().map(|step| format!("step-{step}")).collect();
            let reason = if steps.is_empty() {
                "there is none, nor any other; start anew".to_string()
            } else {
                format!("there is none; there are {}", steps.join(", "))
            };
            return Err(Error::Checkpoint { path, reason });
        }
        manifest::require_intact(&path)?;
        self.link("last", step)
    }

    /// Puts model, optimizer, generators and algorithm into the state of the last checkpoint.
    pub(super) fn restore<A: Algorithm>(
        &self,
        algorithm: &mut A,
        optimizer: &mut dyn Optimizer,
    ) -> Result<Option<TrainerState>> {
        let Some(mut state) = self.last_state()? else { return Ok(None) };
        // An earlier version let every step compete.
        let unranked = state.scores.keys().copied().filter(|&step| !algorithm.competes_at(step));
        state.unranked.extend(unranked.collect::<Vec<_>>());
        state.scores.retain(|step, _| !state.unranked.contains(step));
        let folder = self.folder(state.step);
        manifest::require_intact(&folder)?;
        let device = algorithm.policy().device();
        algorithm.policy().restore(&folder)?;
        let path = folder.join(TRAINER);
        let tensors = read_states(&folder, optimizer)?;
        optimizer.load_state(&|name| tensors.get(name).map(Tensor::shallow_clone)).map_err(|e| {
            Error::Checkpoint {
                path: path.clone(),
                reason: format!("{e}; it belongs to another model or optimizer"),
            }
        })?;
        let missing =
            |name: &str| Error::Checkpoint { path: path.clone(), reason: format!("`{name}` is missing") };
        match tensors.get(&of_rank(RNG_CPU, self.rank)) {
            Some(saved) => rng::set_state(Device::Cpu, saved)?,
            None if self.rank == 0 => return Err(missing(RNG_CPU)),
            // The run had fewer ranks.
            None => {}
        }
        // A run that moves from CPU to CUDA has no state for the new generator, and needs none.
        if let (Device::Cuda(_), Some(saved)) = (device, tensors.get(&of_rank(RNG_CUDA, self.rank))) {
            rng::set_state(device, saved)?;
        }
        let loaded =
            algorithm.load_extras(&folder).and_then(|()| algorithm.load_state(state.algorithm.clone()));
        loaded.map_err(|e| match e {
            // The run has other settings or data.
            e if e.is_configuration() => e,
            e => Error::Checkpoint { path: folder.join(STATE), reason: e.to_string() },
        })?;
        if self.rank == 0 {
            // The process may have died before or after it had replaced `last`.
            self.link("last", state.step)?;
            self.settle(&state)?;
        }
        Ok(Some(state))
    }

    /// Writes the checkpoint of the current step, and removes those that are not kept any more. With several ranks that have
    /// optimizer states of their own, each adds a file of its own; otherwise rank 0 does all of it.
    pub(super) fn save<A: Algorithm>(
        &self,
        algorithm: &A,
        state: &mut TrainerState,
        states: States<'_>,
    ) -> Result<PathBuf> {
        let folder = self.folder(state.step);
        let temporary = self.root.join(format!("{TEMPORARY}step-{}", state.step));
        let sharded = states.optimizer_step.is_sharded();
        if self.rank > 0 {
            if sharded {
                // Rank 0 makes the folder.
                states.collective.barrier()?;
                let written = states.write(&temporary);
                written.map_err(|error| no_room(error, &folder, || needed(algorithm, &states)))?;
                states.collective.barrier()?;
            }
            return Ok(folder);
        }
        state.algorithm = algorithm.state();
        fs::create_dir(&temporary).map_err(Error::io("create", &temporary))?;
        let written = self.write(&temporary, algorithm, state, &states);
        if written.is_err() {
            // A full disk must not be kept full by half a checkpoint.
            let _ = fs::remove_dir_all(&temporary);
        }
        written
            .and_then(|()| self.put(&temporary, &folder))
            .and_then(|()| self.link("last", state.step))
            .map_err(|error| no_room(error, &folder, || needed(algorithm, &states)))?;
        self.settle(state)?;
        Ok(folder)
    }

    /// Gives a complete checkpoint its name. There may be one of that name already: from before the validation of its
    /// step, from before a rewind, or one that never became `last`.
    fn put(&self, temporary: &Path, folder: &Path) -> Result<()> {
        let replaced =
            self.root.join(format!("{REPLACED}{}", folder.file_name().unwrap_or_default().to_string_lossy()));
        let replaces = folder.exists();
        if replaces {
            fs::rename(folder, &replaced).map_err(Error::io("rename", folder))?;
        }
        fs::rename(temporary, folder).map_err(Error::io("rename", temporary))?;
        sync(&self.root)?;
        if replaces { remove(&replaced) } else { Ok(()) }
    }

    /// What follows from a new `last`: `best`, and that others go.
    fn settle(&self, state: &TrainerState) -> Result<()> {
        if let Some(best) = state.best() {
            self.link("best", best)?;
        }
        self.prune(state)
    }

    fn write<A: Algorithm>(
        &self,
        folder: &Path,
        algorithm: &A,
        state: &TrainerState,
        states: &States<'_>,
    ) -> Result<()> {
        let sharded = states.optimizer_step.is_sharded();
        if sharded {
            states.collective.barrier()?;
        }
        algorithm.policy().save(folder)?;
        algorithm.save_extras(folder)?;
        states.write(folder)?;
        write_json(&folder.join(STATE), state)?;
        if sharded {
            // The files of all ranks are there.
            states.collective.barrier()?;
        }
        seal(folder)
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
        let steps = self.steps()?;
        let newest = steps.iter().copied().filter(|&step| step <= state.step).rev().take(self.keep);
        let kept: BTreeSet<u64> = newest
            // Whoever goes back to one of them finds its best, too.
            .flat_map(|step| [Some(step), state.best_until(step)])
            .flatten()
            .collect();
        steps.difference(&kept).try_for_each(|&step| remove(&self.folder(step)))
    }

    /// The checkpoints that are there.
    fn steps(&self) -> Result<BTreeSet<u64>> {
        let mut steps = BTreeSet::new();
        for entry in fs::read_dir(&self.root).map_err(Error::io("read", &self.root))? {
            steps.extend(step_of(&entry.map_err(Error::io("read", &self.root))?.path()));
        }
        Ok(steps)
    }

    /// Where `last` points to. Without it, the newest checkpoint is the last: the process died before it made the link,
    /// or the folder was copied without links.
    fn last_step(&self) -> Result<Option<u64>> {
        let last = self.root.join("last");
        if !last.is_symlink() {
            return Ok(self.steps()?.last().copied());
        }
        let target = fs::read_link(&last).map_err(Error::io("read", &last))?;
        let reason = || format!("it points to {}, which is no `step-N`", target.display());
        step_of(&target).map(Some).ok_or_else(|| Error::Checkpoint { path: last, reason: reason() })
    }
}

/// Names of unfinished things; everything that starts so may be removed when a run starts.
const TEMPORARY: &str = ".tmp-";
/// Names of checkpoints that make way for another of the same step.
const REPLACED: &str = ".old-";

/// The step in a checkpoint's name.
fn step_of(folder: &Path) -> Option<u64> {
    folder.file_name()?.to_str()?.strip_prefix("step-")?.parse().ok()
}

/// Removes a file, a link or a folder, if it is there.
fn remove(path: &Path) -> Result<()> {
    let folder = path.is_dir() && !path.is_symlink();
    match if folder { fs::remove_dir_all(path) } else { fs::remove_file(path) } {
        Err(e) if e.kind() != ErrorKind::NotFound => Err(Error::io("remove", path)(e)),
        _ => Ok(()),
    }
}

/// Flushes a folder's entries to disk.
fn sync(folder: &Path) -> Result<()> {
    File::open(folder).and_then(|f| f.sync_all()).map_err(Error::io("flush", folder))
}

/// Bytes of a checkpoint, up to some thousands for names and settings.
fn needed<A: Algorithm>(algorithm: &A, states: &States<'_>) -> u64 {
    let bytes = |tensor: &Tensor| (tensor.numel() * tensor.kind().elt_size_in_bytes()) as u64;
    let weights: u64 = algorithm.policy().parameters().iter().map(|(_, tensor)| bytes(tensor)).sum();
    let own: u64 = states.optimizer_step.optimizer().state().iter().map(|(_, tensor)| bytes(tensor)).sum();
    // Ranks have about equal parts.
    weights + if states.optimizer_step.is_sharded() { own * states.collective.size() as u64 } else { own }
}

/// Says how much room a save would have needed, if that is why it failed.
fn no_room(error: Error, folder: &Path, needed: impl FnOnce() -> u64) -> Error {
    let full = std::iter::successors(error.source(), |&e| e.source())
        .filter_map(|cause| cause.downcast_ref::<io::Error>())
        .any(|e| {
            matches!(e.kind(), ErrorKind::StorageFull | ErrorKind::QuotaExceeded | ErrorKind::FileTooLarge)
        });
    if !full {
        return error;
    }
    let free = folder.parent().and_then(|root| fs4::available_space(root).ok());
    Error::NoRoom { path: folder.to_path_buf(), needed: needed(), free, source: Box::new(error) }
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
        assert_eq!(best(&[(9, -7.0)]), Some(9));
        assert_eq!(best(&[(20, 1.0), (3, 1.0), (100, 1.0), (2, 0.5)]), Some(3));
    }

    #[test]
    fn patience_counts_validations_since_the_best() {
        let state = |scores: &[f64]| TrainerState {
            scores: (0..).step_by(5).zip(scores.iter().copied()).collect(),
            ..TrainerState::default()
        };
        assert!(!state(&[]).is_exhausted(1));
        assert!(!state(&[1.0]).is_exhausted(1));
        // An equal score is no better one.
        assert!(state(&[1.0, 1.0]).is_exhausted(1));
        assert!(!state(&[1.0, 1.0]).is_exhausted(2));
        assert!(!state(&[1.0, 0.0, 2.0, 1.5]).is_exhausted(2));
        assert!(state(&[1.0, 0.0, 2.0, 1.5, 1.9]).is_exhausted(2));
        assert!(!state(&[2.0, 1.0, 0.0]).is_exhausted(0));
    }
}
