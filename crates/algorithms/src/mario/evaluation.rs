//! Which models are evaluated, and what is told of them.

use std::path::{Path, PathBuf};
use std::str::FromStr;

use ruminate_datasets::mario::{MarioDataset, MarioRow, ResponseFormat, read_responses};
use ruminate_models::{Generate, Policy};
use ruminate_rewards::mario::RewardSet;
use serde_json::{Map, Value, json};

use super::{Judged, JudgingConfig, Respondent, judge_across};
use crate::quark::Condition;
use crate::{Collective, Error, Observer, Result};

/// A model that answers.
#[derive(Debug, Clone, PartialEq)]
pub struct Candidate {
    /// Its folder.
    pub folder: PathBuf,
    /// Its name in results, where that is not the step in the folder's name.
    pub name: Option<String>,
    /// The condition that its control tokens state.
    pub condition: Option<Condition>,
}

/// Some checkpoints of a run: `all`, or steps such as `1000,2000`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Steps {
    /// Those that are there.
    All,
    /// Those of some steps.
    Some(Vec<u64>),
}

impl FromStr for Steps {
    type Err = String;

    fn from_str(text: &str) -> std::result::Result<Self, String> {
        if text == "all" {
            return Ok(Self::All);
        }
        let wrong = |_| "expected all, or steps such as 1000,2000".to_owned();
        text.split(',')
            .map(|step| step.trim().parse().map_err(wrong))
            .collect::<std::result::Result<_, _>>()
            .map(Self::Some)
    }
}

impl Steps {
    /// The checkpoints in a run's folder, in the order of their steps. Step 0 of a training with rewards is its `reference`, which has no
    /// control tokens; the others are asked for `condition`.
    ///
    /// # Errors
    /// The folder cannot be read, or has no checkpoint of a step.
    pub fn candidates(
        &self,
        run: &Path,
        reference: Option<&Path>,
        condition: Option<Condition>,
    ) -> Result<Vec<Candidate>> {
        let folder = run.join("checkpoints");
        let mut there = vec![];
        for entry in std::fs::read_dir(&folder).map_err(Error::io("read", &folder))? {
            let name = entry.map_err(Error::io("read", &folder))?.file_name();
            let step = |name: &str| name.strip_prefix("step-").and_then(|step| step.parse::<u64>().ok());
            there.extend(step(&name.to_string_lossy()));
        }
        there.extend(reference.map(|_| 0));
        there.sort_unstable();
        there.dedup();
        let chosen = match self {
            Self::All => &there,
            Self::Some(steps) => steps,
        };
        let candidate = |&step: &u64| {
            if !there.contains(&step) {
                let known: Vec<String> = there.iter().map(u64::to_string).collect();
                let reason = format!("there is no step {step}; the run has {}", known.join(", "));
                return Err(Error::config("--checkpoints", reason));
            }
            let name = Some(step.to_string());
            Ok(match reference.filter(|_| step == 0) {
                Some(reference) => Candidate { folder: reference.into(), name, condition: None },
                None => Candidate { folder: folder.join(format!("step-{step}")), name, condition },
            })
        };
        chosen.iter().map(candidate).collect()
    }
}

/// Judged responses, and where they were written.
#[derive(Debug, Clone, PartialEq)]
pub struct Evaluated {
    /// Whose they are.
    pub name: String,
    /// The split of the gold rows: `dev` or `test`.
    pub split: String,
    /// Their scores.
    pub judged: Judged,
    /// How many there are.
    pub responses: usize,
    /// Rows of a file that belong to no gold row.
    pub skipped: usize,
    /// Result files.
    pub files: Vec<PathBuf>,
}

impl Evaluated {
    /// All numbers, for programs.
    #[must_use]
    pub fn summary(&self, dataset: MarioDataset) -> Map<String, Value> {
        let judged = &self.judged;
        let scored = judged.summary.scores.iter().zip(&judged.intervals);
        let scores: Map<String, Value> = scored
            .map(|((name, mean), interval)| (name.clone(), json!({ "mean": mean, "interval": interval })))
            .collect();
        let correlated = judged.table.rewards.iter().zip(&judged.correlations);
        let correlations: Map<String, Value> =
            correlated.map(|(name, &correlation)| (name.clone(), json!(correlation))).collect();
        let fields = [
            ("system", json!("mario")),
            ("name", json!(self.name)),
            ("dataset", json!(dataset.name())),
            ("responses", json!(self.responses)),
            ("skipped", json!(self.skipped)),
            ("questions", json!(judged.questions.len())),
            ("accuracy", json!({ "mean": judged.summary.accuracy, "interval": judged.accuracy_interval })),
            ("scores", scores.into()),
            ("correlation_with_accuracy", correlations.into()),
            ("normalised_average", json!(judged.normalised)),
            ("files", json!(self.files)),
        ];
        fields.map(|(name, value)| (name.to_owned(), value)).into_iter().collect()
    }
}

/// By what responses are judged, and where the results go. Several processes judge together, and rank 0 writes.
#[derive(Debug)]
pub struct Evaluator<'a> {
    /// The rewards.
    pub rewards: &'a RewardSet,
    /// Resamples and seed.
    pub config: &'a JudgingConfig,
    /// The data set of the questions.
    pub dataset: MarioDataset,
    /// The processes.
    pub collective: &'a Collective,
    /// The folder of the result files.
    pub out: &'a Path,
}

impl Evaluator<'_> {
    /// Lets a checkpoint answer the gold questions of some splits, and judges the answers. `model` is the checkpoint's, or something that
    /// writes as it does. With `replace`, lines about the same checkpoint are replaced.
    ///
    /// # Errors
    /// When the model, a reward or the observer fails, or a file cannot be written.
    pub fn own<P: Policy + Generate>(
        &self,
        (respondent, model): (&Respondent, &P),
        name: &str,
        gold: &[(String, Vec<MarioRow>)],
        replace: bool,
        observer: &mut dyn Observer,
    ) -> Result<Vec<Evaluated>> {
        let evaluate = |(split, rows): &(String, Vec<MarioRow>)| {
            let responses = respondent.answers(model, rows, observer)?;
            let judged = judge_across(&responses, self.rewards, self.config, self.collective)?;
            // As the published code calls it.
            let of = if split == "dev" { "val" } else { split };
            let condition = respondent.condition();
            let files = self.written(|| match replace {
                true => judged.replace_own(self.out, of, condition, name),
                false => judged.write_own(self.out, of, condition, name),
            })?;
            let (name, split, responses) = (name.to_owned(), split.clone(), rows.len());
            Ok(Evaluated { name, split, judged, responses, skipped: 0, files })
        };
        gold.iter().map(evaluate).collect()
    }

    /// Judges the responses of a file, which belong to the gold rows of a split.
    ///
    /// # Errors
    /// When the file does not fit its format or the gold rows, a reward fails, or a file cannot be written.
    pub fn given(
        &self,
        (file, format): (&Path, ResponseFormat),
        name: &str,
        (split, gold): &(String, Vec<MarioRow>),
    ) -> Result<Evaluated> {
        let given = read_responses(file, format, self.dataset, gold)?;
        let judged = judge_across(&given.responses, self.rewards, self.config, self.collective)?;
        let files = self.written(|| judged.write(self.out, name))?;
        let (name, split, responses) = (name.to_owned(), split.clone(), given.responses.len());
        Ok(Evaluated { name, split, judged, responses, skipped: given.skipped, files })
    }

    fn written(&self, write: impl FnOnce() -> Result<Vec<PathBuf>>) -> Result<Vec<PathBuf>> {
        if self.collective.is_main_process() { write() } else { Ok(vec![]) }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn checkpoints_are_chosen_by_their_steps() {
        let run = tempfile::tempdir().unwrap();
        for name in ["step-20", "step-3", ".tmp-step-40", "other"] {
            std::fs::create_dir_all(run.path().join("checkpoints").join(name)).unwrap();
        }
        let steps = |text: &str, reference: Option<&Path>| {
            let steps: Steps = text.parse().unwrap();
            let candidates = steps.candidates(run.path(), reference, Some(Condition::Worst));
            candidates
                .map(|all| all.into_iter().map(|one| (one.name.unwrap(), one.condition)).collect::<Vec<_>>())
        };
        let worst = |step: &str| (step.to_owned(), Some(Condition::Worst));
        assert_eq!(steps("all", None).unwrap(), [worst("3"), worst("20")]);
        let reference = Some(Path::new("sft"));
        assert_eq!(steps("all", reference).unwrap(), [("0".to_owned(), None), worst("3"), worst("20")]);
        assert_eq!(steps("20, 0", reference).unwrap(), [worst("20"), ("0".to_owned(), None)]);
        let error = steps("3,4", None).unwrap_err();
        assert!(
            error.is_configuration() && error.to_string().contains("no step 4; the run has 3, 20"),
            "{error}"
        );
        for wrong in ["", "best", "1,,2", "-1"] {
            assert!(wrong.parse::<Steps>().is_err(), "{wrong}");
        }
        assert!(Steps::All.candidates(Path::new("nowhere"), None, None).is_err());
    }
}
