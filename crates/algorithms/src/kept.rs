//! What a model has written, in a file.

use std::cell::RefCell;
use std::collections::HashMap;
use std::path::{Path, PathBuf};

use ruminate_files::JsonLines;
use ruminate_models::{
    CrossEntropy, Error as ModelError, Example, Finish, Generate, Generated, GenerationConfig, Parameters,
    Policy, Result as ModelResult, ScoreChoices, ScoreOptions, TokenId, TokenScores,
};
use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};
use tch::{Device, Tensor};

use crate::trainer::MANIFEST;
use crate::{Collective, Error, Result};

/// Values by key, each a line of a file. A last line that a killed program left unfinished is removed.
#[derive(Debug)]
pub(crate) struct KeptLines<T> {
    path: PathBuf,
    known: HashMap<String, T>,
    file: Option<JsonLines>,
}

#[derive(Serialize, Deserialize)]
struct Line<K, T> {
    key: K,
    value: T,
}

impl<T: Serialize + DeserializeOwned + Clone> KeptLines<T> {
    /// Goes on with a file; without one, it is made when there is something to keep.
    pub(crate) fn open(path: &Path) -> Result<Self> {
        let (mut known, mut file) = (HashMap::new(), None);
        if path.exists() {
            let mut lines = JsonLines::open(path).map_err(Error::io("write", path))?;
            let text = lines.read_whole_lines().map_err(Error::io("read", path))?;
            for (i, line) in text.split_inclusive(|&byte| byte == b'\n').enumerate() {
                let Line::<String, T> { key, value } = serde_json::from_slice(line).map_err(|error| {
                    let reason =
                        format!("line {} is none of this program's ({error}); remove the file", i + 1);
                    Error::io("read", path)(std::io::Error::other(reason))
                })?;
                known.insert(key, value);
            }
            lines.truncate(text.len() as u64).map_err(Error::io("write", path))?;
            file = Some(lines);
        }
        Ok(Self { path: path.into(), known, file })
    }

    pub(crate) fn get(&self, key: &str) -> Option<T> {
        self.known.get(key).cloned()
    }

    /// Adds lines, which reach the operating system at once.
    pub(crate) fn append(&mut self, lines: Vec<(String, T)>) -> Result<()> {
        if lines.is_empty() {
            return Ok(());
        }
        let io = |error| Error::io("write", &self.path)(error);
        let file = match &mut self.file {
            Some(file) => file,
            none => none.insert(JsonLines::open(&self.path).map_err(io)?),
        };
        file.append_all(lines.iter().map(|(key, value)| Line { key: key.as_str(), value })).map_err(io)?;
        self.known.extend(lines);
        Ok(())
    }

    /// Removes the file: what it kept is not needed any more.
    pub(crate) fn remove(&mut self) -> Result<()> {
        if self.path.exists() {
            std::fs::remove_file(&self.path).map_err(Error::io("remove", &self.path))?;
        }
        // Later lines go to a new file.
        self.file = None;
        self.known.clear();
        Ok(())
    }
}

/// A model that several processes evaluate together, and whose texts are kept in a file: an evaluation that is stopped or killed goes on
/// with those that are there. What it scores is not kept.
///
/// The processes ask the same. Each writes a part and computes a part of the first tokens' logits, and all get everything; other scores
/// each process computes itself. Rank 0 alone has the file.
///
/// # Example
/// ```no_run
/// use ruminate_algorithms::KeptTexts;
/// use ruminate_models::{Generate, GenerationConfig, T5};
///
/// # let folder = std::path::Path::new("model");
/// let t5 = T5::load(folder, tch::Kind::Float, tch::Device::Cpu)?;
/// let kept = KeptTexts::open(&t5, folder, std::path::Path::new("texts.jsonl"))?;
/// // The second time, nothing is written anew.
/// kept.generate(&[vec![5, 1]], &GenerationConfig::default(), &[])?;
/// kept.generate(&[vec![5, 1]], &GenerationConfig::default(), &[])?;
/// kept.remove()?;
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
#[derive(Debug)]
pub struct KeptTexts<'a, M> {
    model: &'a M,
    /// The model's [`model_identity`]: texts of another model are not reused.
    identity: String,
    /// None where nothing is kept: in other processes than rank 0, or without a file.
    lines: Option<RefCell<KeptLines<Vec<Text>>>>,
    collective: Collective,
}

/// A sequence. Numbers travel as bits, because JSON has no infinity.
#[derive(Debug, Clone, Serialize, Deserialize)]
struct Text {
    ids: Vec<TokenId>,
    log_probs: Vec<u32>,
    sampling_log_probs: Vec<u32>,
    finish: u8,
    score: Option<u64>,
}

const FINISHES: [Finish; 3] = [Finish::Stop, Finish::StopString, Finish::Length];

impl From<&Generated> for Text {
    fn from(of: &Generated) -> Self {
        let bits = |numbers: &[f32]| numbers.iter().map(|number| number.to_bits()).collect();
        Self {
            ids: of.ids.clone(),
            log_probs: bits(&of.log_probs),
            sampling_log_probs: bits(&of.sampling_log_probs),
            finish: FINISHES.iter().position(|finish| *finish == of.finish).unwrap_or(2) as u8,
            score: of.score.map(f64::to_bits),
        }
    }
}

impl From<Text> for Generated {
    fn from(of: Text) -> Self {
        let numbers = |bits: Vec<u32>| bits.into_iter().map(f32::from_bits).collect();
        Self {
            ids: of.ids,
            log_probs: numbers(of.log_probs),
            sampling_log_probs: numbers(of.sampling_log_probs),
            finish: FINISHES.get(usize::from(of.finish)).copied().unwrap_or(Finish::Length),
            score: of.score.map(f64::from_bits),
        }
    }
}

impl<'a, M> KeptTexts<'a, M> {
    /// Goes on with the texts that are in a file, as far as they are those of the model in `folder`.
    ///
    /// # Errors
    /// When the file cannot be read or written, or has other lines.
    pub fn open(model: &'a M, folder: &Path, file: &Path) -> Result<Self> {
        Self::across(model, folder, Some(file), &Collective::default())
    }

    /// Opens the file for several processes, of which rank 0 keeps texts. Without a file, nothing is kept.
    ///
    /// # Errors
    /// Those of [`open`](Self::open), in rank 0.
    pub fn across(model: &'a M, folder: &Path, file: Option<&Path>, collective: &Collective) -> Result<Self> {
        let file = file.filter(|_| collective.is_main_process());
        let lines = file.map(KeptLines::open).transpose()?.map(RefCell::new);
        Ok(Self { model, identity: model_identity(folder), lines, collective: collective.clone() })
    }

    /// Removes the file: what came of the texts is written.
    ///
    /// # Errors
    /// When that fails.
    pub fn remove(&self) -> Result<()> {
        self.lines.as_ref().map_or(Ok(()), |lines| lines.borrow_mut().remove())
    }

    /// Lets each process do its part of `count` pieces of work, and gives the results of all pieces to all. A process that is interrupted
    /// interrupts the others.
    fn divide<T: Serialize + DeserializeOwned>(
        &self,
        count: usize,
        work: impl FnOnce(&[usize]) -> ModelResult<Vec<T>>,
    ) -> ModelResult<Vec<T>> {
        let part = |mine: &[usize]| match work(mine) {
            Err(ModelError::Interrupted) => Ok(mine.iter().map(|_| None).collect()),
            own => Ok(own?.into_iter().map(Some).collect()),
        };
        let all: Vec<Option<T>> = self.collective.map(count, part).map_err(as_model_error)?;
        all.into_iter().collect::<Option<_>>().ok_or(ModelError::Interrupted)
    }

    /// Changes with all that a text depends on.
    fn key(&self, prompt: &[TokenId], config: &str, seed: Option<u64>) -> String {
        let mut hasher = blake3::Hasher::new();
        for text in [&self.identity, config] {
            hasher.update(&(text.len() as u64).to_le_bytes()).update(text.as_bytes());
        }
        prompt.iter().for_each(|id| {
            hasher.update(&id.to_le_bytes());
        });
        hasher.update(&[u8::from(seed.is_some())]).update(&seed.unwrap_or(0).to_le_bytes());
        hasher.finalize().to_hex().to_string()
    }
}

/// Text that changes with the model in a folder: its manifest, which has hashes of all files, or else the folder with the names, sizes and
/// times of its files, since somebody may put other weights there.
#[must_use]
pub fn model_identity(folder: &Path) -> String {
    if let Ok(manifest) = std::fs::read_to_string(folder.join(MANIFEST)) {
        return manifest;
    }
    let mut files: Vec<String> = std::fs::read_dir(folder)
        .into_iter()
        .flatten()
        .filter_map(|entry| {
            let entry = entry.ok()?;
            // Of a link, the file behind it.
            let file = std::fs::metadata(entry.path()).ok()?;
            Some(format!("{:?} {} {:?}", entry.file_name(), file.len(), file.modified().ok()))
        })
        .collect();
    files.sort();
    format!("{}\n{}", folder.display(), files.join("\n"))
}

impl<M: Generate> Generate for KeptTexts<'_, M> {
    fn generate(
        &self,
        prompts: &[Vec<TokenId>],
        config: &GenerationConfig,
        seeds: &[u64],
    ) -> ModelResult<Vec<Vec<Generated>>> {
        // How many rows are written at a time changes nothing.
        let settings = GenerationConfig { max_memory: None, ..config.clone() };
        let settings = serde_json::json!(settings).to_string();
        let key = |i: usize| self.key(&prompts[i], &settings, seeds.get(i).copied());
        let keys: Vec<String> = (0..prompts.len()).map(key).collect();
        let known = self.collective.first(|| Ok::<_, Error>(self.known(&keys))).map_err(as_model_error)?;
        let open: Vec<usize> = (0..prompts.len()).filter(|&i| known[i].is_none()).collect();
        let texts = |of: &Vec<Generated>| of.iter().map(Text::from).collect::<Vec<Text>>();
        let written = self.divide(open.len(), |mine| {
            let rows: Vec<Vec<TokenId>> = mine.iter().map(|&i| prompts[open[i]].clone()).collect();
            let own: Vec<u64> = mine.iter().filter_map(|&i| seeds.get(open[i]).copied()).collect();
            let written = self.model.generate(&rows, config, &own)?;
            let written: Vec<Vec<Text>> = written.iter().map(texts).collect();
            // Its own part at once, and in rank 0 that of the others below.
            let part =
                mine.iter().zip(&written).map(|(&i, of)| (keys[open[i]].clone(), of.clone())).collect();
            self.append(part)?;
            Ok(written)
        })?;
        if self.collective.size() > 1 {
            let others = (0..open.len()).filter(|i| i % self.collective.size() != 0);
            self.append(others.map(|i| (keys[open[i]].clone(), written[i].clone())).collect())?;
        }
        let mut written = written.into_iter();
        let all = known.into_iter().filter_map(|known| known.or_else(|| written.next()));
        Ok(all.map(|texts| texts.into_iter().map(Generated::from).collect()).collect())
    }
}

impl<M> KeptTexts<'_, M> {
    fn known(&self, keys: &[String]) -> Vec<Option<Vec<Text>>> {
        let of = |key: &String| self.lines.as_ref().and_then(|lines| lines.borrow().get(key));
        keys.iter().map(of).collect()
    }

    fn append(&self, texts: Vec<(String, Vec<Text>)>) -> ModelResult<()> {
        let Some(lines) = &self.lines else { return Ok(()) };
        lines.borrow_mut().append(texts).map_err(as_model_error)
    }
}

/// An error of this crate, as those of models.
fn as_model_error(error: Error) -> ModelError {
    match error {
        Error::Io { action, path, source } => ModelError::Io { action, path, source },
        Error::Model(error) => error,
        other => ModelError::Io {
            action: "share what models write with",
            path: "other processes".into(),
            source: std::io::Error::other(other),
        },
    }
}

impl<M: ScoreChoices> ScoreChoices for KeptTexts<'_, M> {
    fn choice_log_probs(
        &self,
        prompts: &[Vec<TokenId>],
        choices: &[Vec<Vec<TokenId>>],
    ) -> ModelResult<Tensor> {
        self.model.choice_log_probs(prompts, choices)
    }

    fn first_token_logits(
        &self,
        prompts: &[Vec<TokenId>],
        tokens: &[Vec<TokenId>],
    ) -> ModelResult<Vec<Vec<f32>>> {
        let logits = self.divide(prompts.len(), |mine| {
            let prompts: Vec<Vec<TokenId>> = mine.iter().map(|&i| prompts[i].clone()).collect();
            let tokens: Vec<Vec<TokenId>> = mine.iter().map(|&i| tokens[i].clone()).collect();
            let logits = self.model.first_token_logits(&prompts, &tokens)?;
            Ok(logits.iter().map(|row| row.iter().map(|logit| logit.to_bits()).collect()).collect())
        })?;
        Ok(logits.into_iter().map(|row: Vec<u32>| row.into_iter().map(f32::from_bits).collect()).collect())
    }
}

/// The model as it is: it is not trained through this.
impl<M: Policy> Policy for KeptTexts<'_, M> {
    fn parameters(&self) -> &Parameters {
        self.model.parameters()
    }

    fn device(&self) -> Device {
        self.model.device()
    }

    fn hidden_size(&self) -> i64 {
        self.model.hidden_size()
    }

    fn pad_token_id(&self) -> TokenId {
        self.model.pad_token_id()
    }

    fn output_projection(&self) -> Option<(&Tensor, f64)> {
        self.model.output_projection()
    }

    fn end_token_ids(&self) -> &[TokenId] {
        self.model.end_token_ids()
    }

    fn set_training(&mut self, _: bool) {}

    fn has_dropout(&self) -> bool {
        self.model.has_dropout()
    }

    fn score(&self, examples: &[Example], want: ScoreOptions) -> ModelResult<TokenScores> {
        self.model.score(examples, want)
    }

    fn cross_entropy(&self, examples: &[Example]) -> ModelResult<CrossEntropy> {
        self.model.cross_entropy(examples)
    }

    fn states(&self, examples: &[Example]) -> ModelResult<Option<Tensor>> {
        self.model.states(examples)
    }

    fn save(&self, folder: &Path) -> ModelResult<()> {
        self.model.save(folder)
    }
}

#[cfg(test)]
mod tests {
    use std::cell::Cell;

    use super::*;

    /// Writes the length of the prompt and the seed.
    #[derive(Debug)]
    struct Counting(Cell<usize>);

    impl Generate for Counting {
        fn generate(
            &self,
            prompts: &[Vec<TokenId>],
            _: &GenerationConfig,
            seeds: &[u64],
        ) -> ModelResult<Vec<Vec<Generated>>> {
            self.0.set(self.0.get() + prompts.len());
            let text = |(prompt, &seed): (&Vec<TokenId>, &u64)| {
                vec![Generated {
                    ids: vec![prompt.len() as i64, seed as i64],
                    log_probs: vec![f32::NEG_INFINITY, -0.1],
                    sampling_log_probs: vec![0.0, -0.0],
                    finish: Finish::Stop,
                    score: Some(0.1),
                }]
            };
            Ok(prompts.iter().zip(seeds).map(text).collect())
        }
    }

    #[test]
    fn other_weights_in_the_same_folder_are_another_model() {
        let place = tempfile::tempdir().unwrap();
        let (folder, file) = (place.path().join("model"), place.path().join("texts.jsonl"));
        std::fs::create_dir(&folder).unwrap();
        let model = Counting(Cell::new(0));
        let write = |weights: &[u8]| {
            std::fs::write(folder.join("model.safetensors"), weights).unwrap();
            let kept = KeptTexts::open(&model, &folder, &file).unwrap();
            kept.generate(&[vec![1]], &GenerationConfig::default(), &[7]).unwrap();
            kept.generate(&[vec![1]], &GenerationConfig::default(), &[7]).unwrap();
            model.0.get()
        };
        assert_eq!([write(b"one"), write(b"other")], [1, 2]);
    }

    #[test]
    fn texts_are_written_once() {
        let folder = tempfile::tempdir().unwrap();
        let file = folder.path().join("texts.jsonl");
        let model = Counting(Cell::new(0));
        let open = |model_folder: &str| KeptTexts::open(&model, Path::new(model_folder), &file).unwrap();
        let config = GenerationConfig::default();
        let prompts = [vec![1], vec![1, 2], vec![1, 2, 3]];
        let first = open("a").generate(&prompts[..2], &config, &[7, 8]).unwrap();
        assert_eq!(model.0.get(), 2);
        // Killed while it wrote.
        let text = std::fs::read_to_string(&file).unwrap();
        std::fs::write(&file, format!("{text}{{\"key\":")).unwrap();
        let all = open("a").generate(&prompts, &config, &[7, 8, 9]).unwrap();
        assert_eq!((model.0.get(), &all[..2]), (3, &first[..]));
        // Another seed, other settings and another model are not the same; other memory is.
        open("a").generate(&prompts, &config, &[7, 8, 1]).unwrap();
        open("a")
            .generate(&prompts, &GenerationConfig { max_new_tokens: 1, ..config.clone() }, &[7, 8, 9])
            .unwrap();
        open("b").generate(&prompts, &config, &[7, 8, 9]).unwrap();
        assert_eq!(model.0.get(), 3 + 1 + 3 + 3);
        let kept = open("a");
        kept.generate(&prompts, &GenerationConfig { max_memory: Some(5), ..config }, &[7, 8, 9]).unwrap();
        assert_eq!(model.0.get(), 10);
        kept.remove().unwrap();
        assert!(!file.exists());
        std::fs::write(&file, "nonsense\n").unwrap();
        let error = KeptTexts::open(&model, Path::new("a"), &file).unwrap_err().to_string();
        assert!(error.contains("texts.jsonl"), "{error}");
    }
}
