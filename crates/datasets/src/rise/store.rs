//! Episodes in a file that grows.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};

use super::{Episode, RolloutConfig, RolloutError};
use crate::append::AppendFile;
use crate::environments::Problem;
use crate::{Error, Place};

/// Lines of a rollout: the first one says how it is played, each further one is an episode.
#[derive(Debug)]
pub(super) struct EpisodeFile(Option<AppendFile>);

#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
#[serde(expecting = "an object with rollout")]
struct Head {
    rollout: RolloutConfig,
}

impl EpisodeFile {
    /// Opens a file, and returns the episodes that it has by row; without a file, nothing is kept.
    pub(super) fn open(
        path: Option<&Path>,
        config: &RolloutConfig,
        problems: &[Problem],
    ) -> Result<(Self, BTreeMap<usize, Episode>), RolloutError> {
        let Some(path) = path else { return Ok((Self(None), BTreeMap::new())) };
        let (mut file, found) = AppendFile::open(path, |bytes| parse(path, bytes, config, problems))?;
        let episodes = match found {
            Some(episodes) => episodes,
            None => {
                file.write(&Head { rollout: config.clone() })?;
                BTreeMap::new()
            }
        };
        Ok((Self(Some(file)), episodes))
    }

    pub(super) fn write(&mut self, episode: &Episode) -> Result<(), RolloutError> {
        self.0.as_mut().map_or(Ok(()), |file| Ok(file.write(episode)?))
    }

    pub(super) fn sync(&self) -> Result<(), RolloutError> {
        self.0.as_ref().map_or(Ok(()), |file| Ok(file.sync()?))
    }
}

type Found = (Option<BTreeMap<usize, Episode>>, usize);

/// What is in the file, and the length of what is whole. Nothing at all is in one that ended before its first line.
fn parse(
    path: &Path,
    bytes: &[u8],
    config: &RolloutConfig,
    problems: &[Problem],
) -> Result<Found, RolloutError> {
    let questions: BTreeMap<usize, &Problem> =
        problems.iter().map(|problem| (problem.row, problem)).collect();
    let changed = |what: String| RolloutError::Changed { path: PathBuf::from(path), what };
    let mut episodes = None;
    let mut whole = 0;
    for (i, line) in bytes.split_inclusive(|&byte| byte == b'\n').enumerate() {
        // Only what was being written when the program ended has no end of line.
        if !line.ends_with(b"\n") {
            break;
        }
        let place = Place::Line(i + 1);
        let json =
            |source| Error::Json { path: path.into(), place: Some(place), field: String::new(), source };
        match &mut episodes {
            None => {
                let Head { rollout } = serde_json::from_slice(line).map_err(json)?;
                if rollout != *config {
                    return Err(changed(differing(&rollout, config)));
                }
                episodes = Some(BTreeMap::new());
            }
            Some(episodes) => {
                let episode: Episode = serde_json::from_slice(line).map_err(json)?;
                let row = episode.task_id;
                if let Some((field, reason)) = episode.flaw() {
                    return Err(Error::BadField { path: path.into(), place, field, reason }.into());
                }
                let same = |problem: &&Problem| {
                    problem.question == episode.query && problem.solution == episode.answer
                };
                if questions.get(&row).filter(|problem| same(problem)).is_none() {
                    return Err(changed(format!("another problem in row {row} ({place})")));
                }
                if episodes.insert(row, episode).is_some() {
                    let reason = format!("row {row} is there twice; remove one of them");
                    return Err(Error::BadField { path: path.into(), place, field: "task_id", reason }.into());
                }
            }
        }
        whole += line.len();
    }
    Ok((episodes, whole))
}

/// The first setting that differs.
fn differing(theirs: &RolloutConfig, ours: &RolloutConfig) -> String {
    let (theirs, ours) = (serde_json::json!(theirs), serde_json::json!(ours));
    let different =
        theirs.as_object().into_iter().flatten().find(|(key, value)| ours.get(key) != Some(value));
    different.map_or_else(|| "other settings".into(), |(key, value)| format!("{key} = {value}"))
}
