//! A round's pairs, from the student's own runs.

use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;

use ruminate_datasets::tinythinker::{
    PairCounts, Question, Run, Stage, analyze_pairs, read_pairs, recall_pairs,
};
use ruminate_datasets::{PreferenceExample, Preferences};
use ruminate_files::JsonLines;
use ruminate_models::{Generate, Interrupt, derive_seed};
use serde::{Deserialize, Serialize};

use super::generation::{Asked, Decoding, GenerationSettings, Student, Written};
use super::reflection::{Reflected, ReflectionConfig};
use crate::{Collective, Error, Observer, Result};

/// Questions that a process answers together; what was sampled of them is on disk before the next ones begin.
const CHUNK: usize = 64;

/// The pairs of a round, and what became of its runs.
#[derive(Debug, Clone, PartialEq)]
pub struct RoundPairs {
    /// Pairs of knowledge.
    pub recall: Vec<PreferenceExample>,
    /// Pairs of analyses.
    pub analyze: Vec<PreferenceExample>,
    /// The manifest.
    pub summary: PairSummary,
}

/// The pair files of a round, as [`Student::make_pairs`] and the published code write them.
#[derive(Debug, Clone, PartialEq, Default)]
pub struct PairFiles {
    /// Pairs of knowledge: `recall_dpo.json`.
    pub recall: Preferences,
    /// Pairs of analyses: `analyze_dpo.json`.
    pub analyze: Preferences,
}

impl PairFiles {
    /// Reads the files of the stages that are to be trained. Pairs that cannot be trained on are left out and counted.
    ///
    /// # Errors
    /// A file is not there or damaged, or has prompts of another stage.
    pub fn read(folder: &Path, stages: Reflected) -> Result<Self> {
        let read = |stage, file: &str| match stages.trains(stage) {
            true => Ok(read_pairs(&folder.join(file), stage)?),
            false => Ok::<_, Error>(Preferences::default()),
        };
        Ok(Self { recall: read(Stage::Recall, RECALL)?, analyze: read(Stage::Analyze, ANALYZE)? })
    }

    /// How many pairs there are, and how many were left out for which reason, by stage.
    #[must_use]
    pub fn counts(&self) -> serde_json::Value {
        let of = |pairs: &Preferences| serde_json::json!({ "pairs": pairs.examples.len(), "left_out": pairs.left_out });
        serde_json::json!({ "recall": of(&self.recall), "analyze": of(&self.analyze) })
    }
}

/// The names of the pair files, as published.
const RECALL: &str = "recall_dpo.json";
const ANALYZE: &str = "analyze_dpo.json";

/// What became of a round's runs: `pairs.json`.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct PairSummary {
    /// Questions that were asked.
    pub questions: usize,
    /// Sampled runs through all stages.
    pub runs: usize,
    /// The share of them whose answer was right.
    pub right: f64,
    /// The share of them without a readable answer.
    pub unreadable: f64,
    /// Of pairs of knowledge.
    pub recall: PairCounts,
    /// Sampled runs on a given knowledge.
    pub analyze_runs: usize,
    /// Of pairs of analyses.
    pub analyze: PairCounts,
}

/// One of the rounds.
#[derive(Debug, Clone, Copy)]
pub struct Round<'a> {
    /// Its number: each has samples of its own.
    pub number: u64,
    /// What tells the student from others, such as a hash of its weights: runs of another student are refused.
    pub model: &'a str,
    /// Where its files are.
    pub folder: &'a Path,
    /// Who samples.
    pub collective: &'a Collective,
}

impl<P: Generate> Student<'_, P> {
    /// Samples the runs of a round and makes its pairs. `teacher` holds the teacher's own runs on the same questions. The student's go to
    /// `recall_runs.jsonl` and `analyze_runs.jsonl` in the round's folder while they are sampled; a second call goes on from what is there.
    /// Then the pairs are written in the published layout, as `recall_dpo.json` and `analyze_dpo.json`, and `pairs.json` tells what became
    /// of the runs. Processes divide the questions, and rank 0 writes.
    ///
    /// `None` when the observer asked to stop.
    ///
    /// # Errors
    /// When the model fails, files cannot be read or written, or they belong to another student or other settings.
    pub fn make_pairs(
        &self,
        questions: &[Question],
        teacher: &[Run],
        config: &ReflectionConfig,
        round: &Round<'_>,
        observer: &mut dyn Observer,
    ) -> Result<Option<RoundPairs>> {
        config.validate()?;
        let Round { number, model, folder, collective } = *round;
        let runs = config.generation_times;
        let seeded = |pass: u64| GenerationSettings {
            seed: derive_seed(config.generation.seed, &[number, pass]),
            ..config.generation.clone()
        };
        let asked: Vec<Asked> = questions.iter().map(Asked::from).collect();
        let recall = Pass { decoding: Decoding::RecallPass, runs, settings: seeded(0), model, collective };
        let file = folder.join("recall_runs.jsonl");
        let Some(sampled) = self.sample(&asked, &recall, &file, observer)? else { return Ok(None) };
        let made = recall_pairs(&sampled, teacher, &config.pairs);
        // The knowledge of the chosen runs, to be analyzed again.
        let mut seen = BTreeSet::new();
        let chosen = made.chosen.iter().enumerate().map(|(i, run)| {
            let bare = run.draft.clone().stating(run.draft.recall(), &[]);
            // Ids are told apart by what they are sampled for.
            Asked { id: format!("{}/{i}", run.id), draft: bare, gold: run.gold }
        });
        let given: Vec<Asked> =
            chosen.filter(|a| !config.distinct_prompts || seen.insert(a.draft.summarize_prompt())).collect();
        let analyze = Pass { decoding: Decoding::AnalyzePass, settings: seeded(1), ..recall };
        let file = folder.join("analyze_runs.jsonl");
        let Some(mut analyzed) = self.sample(&given, &analyze, &file, observer)? else { return Ok(None) };
        for run in &mut analyzed {
            // The question's own id again.
            if let Some((id, _)) = run.id.rsplit_once('/') {
                run.id = id.to_string();
            }
        }
        let (pairs, counts) = analyze_pairs(&analyzed, &made.backup(), &config.pairs);
        let share = |count: usize| count as f64 / sampled.len().max(1) as f64;
        let summary = PairSummary {
            questions: questions.len(),
            runs: sampled.len(),
            right: share(sampled.iter().filter(|run| run.answer == Some(run.gold)).count()),
            unreadable: share(sampled.iter().filter(|run| run.answer.is_none()).count()),
            recall: made.counts,
            analyze_runs: analyzed.len(),
            analyze: counts,
        };
        let [first, second, third] = [RECALL, ANALYZE, "pairs.json"].map(|name| folder.join(name));
        if collective.is_main_process() {
            ruminate_datasets::json::write(&first, &untagged(&made.pairs))?;
            ruminate_datasets::json::write(&second, &untagged(&pairs))?;
            ruminate_datasets::json::write(&third, &summary)?;
        }
        Ok(Some(RoundPairs { recall: made.pairs, analyze: pairs, summary }))
    }

    /// The runs of a pass, sampled in parts and kept in a file.
    fn sample(
        &self,
        asked: &[Asked],
        pass: &Pass<'_>,
        path: &Path,
        observer: &mut dyn Observer,
    ) -> Result<Option<Vec<Run>>> {
        let key = pass.key(asked);
        let mut file = RunFile::open(path, &key, asked, pass.collective)?;
        let mut open: Vec<usize> =
            (0..asked.len()).filter(|i| !file.runs.contains_key(&asked[*i].id)).collect();
        let total = asked.len() as u64;
        let name = if pass.decoding == Decoding::RecallPass { Stage::Recall } else { Stage::Analyze };
        let phase = format!("sampling for {} pairs", name.name());
        while !open.is_empty() {
            observer.progress(&phase, total - open.len() as u64, total).map_err(Error::Observer)?;
            if pass.collective.any(observer.stop_requested())? {
                return Ok(None);
            }
            let rest = open.split_off((CHUNK * pass.collective.size()).min(open.len()));
            let part: Vec<Asked> = open.iter().map(|&i| asked[i].clone()).collect();
            let how = (pass.decoding, pass.runs);
            // Processes wait for each other, so none of them may leave by itself.
            let interrupt =
                if pass.collective.size() == 1 { observer.interrupt() } else { Interrupt::default() };
            let respond =
                || self.respond_among(pass.collective, &part, how, &pass.settings, &mut Stop(observer));
            let responses = match interrupt.during(respond) {
                Err(error) if error.is_interruption() => return Ok(None),
                responses => responses?,
            };
            let runs = responses.into_iter().map(|of| of.into_iter().map(|response| response.run).collect());
            file.append(part.iter().map(|asked| asked.id.as_str()).zip(runs).collect())?;
            open = rest;
        }
        observer.progress(&phase, total, total).map_err(Error::Observer)?;
        Ok(Some(asked.iter().filter_map(|asked| file.runs.remove(&asked.id)).flatten().collect()))
    }
}

/// Published files have no fields for weights and sources.
fn untagged(pairs: &[PreferenceExample]) -> Vec<PreferenceExample> {
    pairs.iter().map(|pair| PreferenceExample::new(&pair.prompt, &pair.chosen, &pair.rejected)).collect()
}

/// Hides the progress within a part, and nothing else.
struct Stop<'a>(&'a mut dyn Observer);

impl Observer for Stop<'_> {
    fn stop_requested(&self) -> bool {
        self.0.stop_requested()
    }
}

/// One way through all questions.
#[derive(Clone)]
struct Pass<'a> {
    decoding: Decoding,
    runs: usize,
    settings: GenerationSettings,
    model: &'a str,
    collective: &'a Collective,
}

impl Pass<'_> {
    /// Changes with whatever the runs depend on, batch sizes excepted.
    fn key(&self, asked: &[Asked]) -> String {
        let mut hasher = blake3::Hasher::new();
        let GenerationSettings { max_length, temperature, temperature_increase, seed, batch_size: _ } =
            self.settings;
        hasher.update(self.model.as_bytes()).update(&temperature.to_le_bytes());
        if temperature_increase != 0.0 {
            hasher.update(&temperature_increase.to_le_bytes());
        }
        for number in [max_length as u64, seed, self.runs as u64] {
            hasher.update(&number.to_le_bytes());
        }
        for asked in asked {
            hasher
                .update(asked.id.as_bytes())
                .update(b"\n")
                .update(asked.draft.summarize_prompt().as_bytes());
        }
        hasher.finalize().to_hex().to_string()
    }
}

/// Runs by question, on disk. Rank 0 reads and writes the file.
struct RunFile<'a> {
    path: &'a Path,
    asked: BTreeMap<&'a str, &'a Asked>,
    runs: BTreeMap<String, Vec<Run>>,
    /// Rank 0 writes.
    lines: Option<JsonLines>,
}

/// The first line.
#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Head {
    key: String,
}

/// The runs of a question.
#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Line {
    id: String,
    runs: Vec<Written>,
}

impl<'a> RunFile<'a> {
    /// What is there; a last line that was cut off is removed.
    fn open(path: &'a Path, key: &str, asked: &'a [Asked], collective: &Collective) -> Result<Self> {
        let asked = asked.iter().map(|asked| (asked.id.as_str(), asked)).collect();
        let mut this = Self { path, asked, runs: BTreeMap::new(), lines: None };
        let text = collective.first(|| match std::fs::read(path) {
            // The cut may be inside of a character.
            Ok(mut bytes) => {
                bytes.truncate(bytes.iter().rposition(|&byte| byte == b'\n').map_or(0, |end| end + 1));
                String::from_utf8(bytes)
                    .map_err(|error| Error::io("read", path)(std::io::Error::other(error)))
            }
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => Ok(String::new()),
            Err(source) => Err(Error::io("read", path)(source)),
        })?;
        let whole = text.rfind('\n').map_or(0, |end| end + 1);
        let bad = |number: usize, reason: String| Error::Checkpoint {
            path: path.into(),
            reason: format!("line {}: {reason}; remove the file to sample again", number + 1),
        };
        for (number, line) in text[..whole].lines().enumerate() {
            let unreadable = |error: serde_json::Error| bad(number, error.to_string());
            if number == 0 {
                let head: Head = serde_json::from_str(line).map_err(unreadable)?;
                if head.key != key {
                    let reason = "it holds runs of another model, of other questions or with other settings";
                    return Err(bad(number, reason.into()));
                }
                continue;
            }
            let line: Line = serde_json::from_str(line).map_err(unreadable)?;
            let runs =
                this.restore(&line).ok_or_else(|| bad(number, format!("nobody asked `{}`", line.id)))?;
            this.runs.insert(line.id, runs);
        }
        if !collective.is_main_process() {
            return Ok(this);
        }
        if let Some(folder) = path.parent() {
            std::fs::create_dir_all(folder).map_err(Error::io("create", folder))?;
        }
        let open = || -> std::io::Result<_> {
            let mut lines = JsonLines::open(path)?;
            lines.truncate(whole as u64)?;
            if whole == 0 {
                lines.append(&Head { key: key.into() })?;
            }
            Ok(lines)
        };
        this.lines = Some(open().map_err(Error::io("write", path))?);
        Ok(this)
    }

    fn restore(&self, line: &Line) -> Option<Vec<Run>> {
        let asked = self.asked.get(line.id.as_str())?;
        Some(line.runs.iter().map(|run| run.of(asked)).collect())
    }

    fn append(&mut self, runs: Vec<(&str, Vec<Run>)>) -> Result<()> {
        if let Some(lines) = &mut self.lines {
            let line = |(id, runs): &(&str, Vec<Run>)| Line {
                id: (*id).into(),
                runs: runs.iter().map(Written::from).collect(),
            };
            lines
                .append_all(runs.iter().map(line))
                .and_then(|()| lines.sync())
                .map_err(Error::io("write", self.path))?;
        }
        self.runs.extend(runs.into_iter().map(|(id, runs)| (id.to_string(), runs)));
        Ok(())
    }
}
