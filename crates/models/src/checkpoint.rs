//! Safetensors files and Hugging Face model folders; GGUF files become such folders.

mod gguf;

use std::collections::BTreeMap;
use std::fs::{self, File};
use std::path::{Path, PathBuf};

use safetensors::tensor::{Dtype, SafeTensors, View};
use serde::{Deserialize, Serialize};
use tch::{Device, Kind, Tensor};

use crate::config::once;
use crate::{Error, Result};

pub use gguf::convert_gguf;

/// Weights in one file.
pub const WEIGHTS: &str = "model.safetensors";
/// Weights in several files.
pub const WEIGHTS_INDEX: &str = "model.safetensors.index.json";

/// Above this size a saved model is split into several files, as Hugging Face does.
pub(crate) const SHARD_BYTES: u64 = 5_000_000_000;

/// Reads every tensor of a safetensors file, in the order of their names.
///
/// # Errors
/// When the file cannot be read, is truncated or damaged, or holds a type that libtorch lacks.
pub fn read_tensors(path: &Path, device: Device) -> Result<BTreeMap<String, Tensor>> {
    read_some_tensors(path, device, &|_| true)
}

/// Reads those tensors of a safetensors file whose names are wanted; the others cost nothing.
///
/// # Errors
/// Those of [`read_tensors`], for the tensors that are wanted.
pub fn read_some_tensors(
    path: &Path,
    device: Device,
    wanted: &dyn Fn(&str) -> bool,
) -> Result<BTreeMap<String, Tensor>> {
    let map = ruminate_torch::map_file(path).map_err(Error::read(path))?;
    check_pointer(path, &map)?;
    let file = SafeTensors::deserialize(&map)
        .map_err(|source| Error::Safetensors { path: path.to_path_buf(), source })?;
    let mut tensors = BTreeMap::new();
    for (name, view) in file.tensors().into_iter().filter(|(name, _)| wanted(name)) {
        let refuse = |what: String| Error::Weights {
            path: path.to_path_buf(),
            problems: vec![format!("`{name}` has {what}, which is not supported")],
        };
        let kind = kind_of(view.dtype()).ok_or_else(|| refuse(format!("type {:?}", view.dtype())))?;
        let shape = shape_of(&view).ok_or_else(|| refuse(format!("shape {:?}", view.shape())))?;
        tensors.insert(name, Tensor::f_from_data_size(view.data(), &shape, kind)?.f_to_device(device)?);
    }
    Ok(tensors)
}

/// A tensor without elements may have sizes, besides the 0, whose product is beyond what libtorch can count.
fn shape_of(view: &impl View) -> Option<Vec<i64>> {
    view.shape().iter().try_fold(1i64, |strides, &n| strides.checked_mul(i64::try_from(n.max(1)).ok()?))?;
    Some(view.shape().iter().map(|&n| n as i64).collect())
}

/// Writes a safetensors file: under a temporary name first, then renamed, so that the name never stands for half a
/// file.
///
/// # Errors
/// When the folder is not writable or the disk is full; an older file of that name is left as it was.
pub fn write_tensors<'a>(
    path: &Path,
    tensors: impl IntoIterator<Item = (&'a str, &'a Tensor)>,
) -> Result<()> {
    let views = tensors
        .into_iter()
        .map(|(name, tensor)| Ok((name, TensorBytes::new(tensor)?)))
        .collect::<Result<Vec<_>>>()?;
    // Transformers refuses a file that does not say which framework's layout it has.
    let metadata = [("format".to_string(), "pt".to_string())].into();
    safetensors::serialize_to_file(views, Some(metadata), path).map_err(|e| match e {
        safetensors::SafeTensorError::IoError(source) => Error::write(path)(source),
        source => Error::Safetensors { path: path.to_path_buf(), source },
    })?;
    File::open(path).and_then(|f| f.sync_all()).map_err(Error::write(path))?;
    readable_by_all(path).map_err(Error::write(path))
}

/// Temporary files are private; a checkpoint is to have the permissions of any other file.
fn readable_by_all(path: &Path) -> std::io::Result<()> {
    #[cfg(unix)]
    {
        use std::os::unix::fs::PermissionsExt;
        fs::set_permissions(path, fs::Permissions::from_mode(0o644))?;
    }
    let _ = path;
    Ok(())
}

/// Writes a model's parameters by name into a folder as Hugging Face does: one `model.safetensors`, or, above
/// `shard_bytes`, numbered shards and an index.
///
/// # Errors
/// When the folder is not writable or the disk is full.
pub fn write_model<'a>(
    folder: &Path,
    parameters: impl IntoIterator<Item = (&'a str, &'a Tensor)>,
    shard_bytes: u64,
) -> Result<()> {
    let mut shards: Vec<Vec<(&str, &Tensor)>> = vec![vec![]];
    let (mut filled, mut total) = (0, 0);
    for (name, tensor) in parameters {
        let bytes = (tensor.numel() * tensor.kind().elt_size_in_bytes()) as u64;
        if filled > 0 && filled + bytes > shard_bytes {
            shards.push(vec![]);
            filled = 0;
        }
        filled += bytes;
        total += bytes;
        if let Some(shard) = shards.last_mut() {
            shard.push((name, tensor));
        }
    }
    if let [shard] = &shards[..] {
        write_tensors(&folder.join(WEIGHTS), shard.iter().copied())?;
        return remove(&folder.join(WEIGHTS_INDEX));
    }
    let mut weight_map = BTreeMap::new();
    let count = shards.len();
    for (i, shard) in shards.iter().enumerate() {
        let file = format!("model-{:05}-of-{count:05}.safetensors", i + 1);
        write_tensors(&folder.join(&file), shard.iter().copied())?;
        weight_map.extend(shard.iter().map(|(name, _)| (name.to_string(), file.clone())));
    }
    let index = Index { metadata: serde_json::json!({ "total_size": total }), weight_map };
    write_json(&folder.join(WEIGHTS_INDEX), &index)?;
    // Readers prefer the single file; one of an earlier model must not stand in for the shards.
    remove(&folder.join(WEIGHTS))
}

/// Removes a file if it is there.
fn remove(path: &Path) -> Result<()> {
    match fs::remove_file(path) {
        Err(e) if e.kind() != std::io::ErrorKind::NotFound => Err(Error::write(path)(e)),
        _ => Ok(()),
    }
}

/// Writes indented JSON with a final newline, under a temporary name first.
///
/// # Errors
/// When the folder is not writable or the disk is full.
pub fn write_json(path: &Path, value: &impl Serialize) -> Result<()> {
    let mut text = serde_json::to_string_pretty(value)
        .map_err(|source| Error::Json { path: path.to_path_buf(), source })?;
    text.push('\n');
    write_text(path, &text)
}

/// Writes a text file in one step.
pub(crate) fn write_text(path: &Path, text: &str) -> Result<()> {
    ruminate_files::write_atomically(path, |file| file.write_all(text.as_bytes())).map_err(Error::write(path))
}

/// Reads and parses a JSON file. A byte order mark at its head is no part of it.
///
/// # Errors
/// When the file cannot be read or does not parse; the error says where.
pub fn read_json<T: serde::de::DeserializeOwned>(path: &Path) -> Result<T> {
    serde_json::from_slice(&read_bytes(path)?)
        .map_err(|source| Error::Json { path: path.to_path_buf(), source })
}

/// The bytes of a text file in UTF-8, without a byte order mark.
pub(crate) fn read_bytes(path: &Path) -> Result<Vec<u8>> {
    let mut bytes = fs::read(path).map_err(Error::read(path))?;
    check_pointer(path, &bytes)?;
    if bytes.starts_with(b"\xEF\xBB\xBF") {
        bytes.drain(..3);
    }
    if matches!(bytes[..], [0xFF, 0xFE, _, 0, ..] | [0xFE, 0xFF, 0, _, ..]) {
        let file = path.display();
        let reason =
            format!("is UTF-16. Make it UTF-8: iconv -f UTF-16 -t UTF-8 {file} > new && mv new {file}");
        return Err(Error::NotThere { path: path.to_path_buf(), reason });
    }
    Ok(bytes)
}

/// Refuses a text that points to a file in Git LFS instead of being it.
fn check_pointer(path: &Path, bytes: &[u8]) -> Result<()> {
    if !bytes.starts_with(b"version https://git-lfs.github.com/spec/") {
        return Ok(());
    }
    let folder = path.parent().filter(|p| !p.as_os_str().is_empty()).unwrap_or(Path::new("."));
    let reason = format!(
        "is a pointer of Git LFS: the repository was cloned without its large files. Fetch them: git lfs install && \
         git -C {} lfs pull",
        folder.display()
    );
    Err(Error::NotThere { path: path.to_path_buf(), reason })
}

#[derive(Serialize, Deserialize)]
struct Index {
    #[serde(default)]
    metadata: serde_json::Value,
    weight_map: BTreeMap<String, String>,
}

/// All weights of a model folder.
#[derive(Debug)]
pub(crate) struct Weights {
    pub(crate) path: PathBuf,
    pub(crate) tensors: BTreeMap<String, Tensor>,
}

impl Weights {
    /// Reads `model.safetensors`, or the shards of `model.safetensors.index.json`.
    pub(crate) fn open(folder: &Path, device: Device) -> Result<Self> {
        let single = folder.join(WEIGHTS);
        if single.exists() {
            return Ok(Self { tensors: read_tensors(&single, device)?, path: single });
        }
        let path = folder.join(WEIGHTS_INDEX);
        if path.exists() {
            return Self::open_shards(folder, path, device);
        }
        let no_weights =
            |reason: &str| Error::NoWeights { path: folder.to_path_buf(), reason: reason.into() };
        if !folder.is_dir() {
            return Err(no_weights("there is no such folder"));
        }
        Err(no_weights(&other_weights(folder)))
    }

    fn open_shards(folder: &Path, path: PathBuf, device: Device) -> Result<Self> {
        let index: Index = read_json(&path)?;
        let mut files: Vec<&String> = index.weight_map.values().collect();
        files.sort();
        files.dedup();
        let mut tensors = BTreeMap::new();
        for file in files {
            if Path::new(file).file_name() != Some(file.as_ref()) {
                let problems = vec![format!("the index names `{file}`, which is not a file of this folder")];
                return Err(Error::Weights { path, problems });
            }
            let read = read_tensors(&folder.join(file), device)?;
            // A tensor that is in two files is taken from the one that the index names.
            let here = |name: &String| index.weight_map.get(name).is_none_or(|named| named == file);
            tensors.extend(read.into_iter().filter(|(name, _)| here(name)));
        }
        let problems: Vec<String> = index
            .weight_map
            .iter()
            .filter(|(name, _)| !tensors.contains_key(*name))
            .map(|(name, file)| format!("`{name}` is not in {file}, where the index says it is"))
            .collect();
        if problems.is_empty() { Ok(Self { path, tensors }) } else { Err(Error::Weights { path, problems }) }
    }

    /// Whether the output matrix `head` is the embedding, in a model whose configuration says so or not. The weights decide: a
    /// matrix of its own is kept, and a copy of the embedding dropped.
    pub(crate) fn resolve_tie(&mut self, embedding: &str, head: &str, tied: bool) -> Result<bool> {
        if !tied {
            return Ok(false);
        }
        if let (Some(own), Some(shared)) = (self.get(head), self.get(embedding))
            && (own.size() != shared.size() || !own.f_equal(shared)?)
        {
            return Ok(false);
        }
        // A file may hold the one matrix under the other name.
        match self.get(embedding) {
            Some(_) => self.ignore(head),
            None => self.rename(head, embedding),
        }
        Ok(true)
    }

    /// Says that the weights hold an output matrix of their own, though the configuration says that it is the embedding.
    pub(crate) fn say_untied(&self, head: &str) {
        let message = format!(
            "{}: `{head}` is not the embedding, though config.json says `tie_word_embeddings: true`; the matrix of the file is \
             used. Write `tie_word_embeddings: false` there to say so",
            self.path.display()
        );
        once(&message, || log::warn!("{message}"));
    }

    pub(crate) fn get(&self, name: &str) -> Option<&Tensor> {
        self.tensors.get(name)
    }

    pub(crate) fn rename(&mut self, from: &str, to: &str) {
        if let Some(tensor) = self.tensors.remove(from) {
            self.tensors.insert(to.to_string(), tensor);
        }
    }

    /// Drops tensors that are known to be redundant or meaningless.
    pub(crate) fn ignore(&mut self, name: &str) {
        self.tensors.remove(name);
    }
}

/// Why a folder has no weights that can be read, and the command that fixes it.
fn other_weights(folder: &Path) -> String {
    let names: Vec<String> = fs::read_dir(folder)
        .into_iter()
        .flatten()
        .filter_map(|entry| entry.ok()?.file_name().into_string().ok())
        .collect();
    let first =
        |wanted: &dyn Fn(&str) -> bool| names.iter().filter(|name| wanted(name)).min().map(String::as_str);
    let pickled = first(&|name| {
        let optimizer =
            ["training_args", "optimizer", "scheduler"].iter().any(|other| name.starts_with(other));
        name == "pytorch_model.bin.index.json" || name.ends_with(".bin") && !optimizer
    });
    if let Some(name) = pickled {
        return format!(
            "only a pickled {name}, which can run any code when it is opened. Convert it once: \
             python3 -c \"import sys, transformers as t; f = sys.argv[1]; \
             M = getattr(t, t.AutoConfig.from_pretrained(f).architectures[0]); \
             M.from_pretrained(f).save_pretrained(f, safe_serialization=True)\" {}",
            folder.display()
        );
    }
    if let Some(name) = first(&|name| name.ends_with(".gguf")) {
        return format!(
            "only {name}. Convert it once, in a checkout of ruminate: \
             cargo run --release -p ruminate-models --example gguf_to_hf -- {0}/{name} {0}",
            folder.display()
        );
    }
    if let Some(name) = first(&|name| name.starts_with("adapter_model.")) {
        return format!(
            "only {name}, an adapter for another model. Merge them: \
             python3 -c \"import sys, peft; f = sys.argv[1]; \
             peft.AutoPeftModelForCausalLM.from_pretrained(f).merge_and_unload().save_pretrained(f)\" {}",
            folder.display()
        );
    }
    "neither model.safetensors nor model.safetensors.index.json is there".into()
}

fn kind_of(dtype: Dtype) -> Option<Kind> {
    Some(match dtype {
        Dtype::F32 => Kind::Float,
        Dtype::F64 => Kind::Double,
        Dtype::F16 => Kind::Half,
        Dtype::BF16 => Kind::BFloat16,
        Dtype::I64 => Kind::Int64,
        Dtype::I32 => Kind::Int,
        Dtype::I16 => Kind::Int16,
        Dtype::I8 => Kind::Int8,
        Dtype::U8 => Kind::Uint8,
        Dtype::BOOL => Kind::Bool,
        _ => return None,
    })
}

fn dtype_of(kind: Kind) -> Option<Dtype> {
    Some(match kind {
        Kind::Float => Dtype::F32,
        Kind::Double => Dtype::F64,
        Kind::Half => Dtype::F16,
        Kind::BFloat16 => Dtype::BF16,
        Kind::Int64 => Dtype::I64,
        Kind::Int => Dtype::I32,
        Kind::Int16 => Dtype::I16,
        Kind::Int8 => Dtype::I8,
        Kind::Uint8 => Dtype::U8,
        Kind::Bool => Dtype::BOOL,
        _ => return None,
    })
}

/// A tensor whose bytes are copied when the serializer reaches it, one tensor at a time.
struct TensorBytes {
    /// On the CPU and contiguous.
    tensor: Tensor,
    dtype: Dtype,
    shape: Vec<usize>,
}

impl TensorBytes {
    fn new(tensor: &Tensor) -> Result<Self> {
        let dtype = dtype_of(tensor.kind()).ok_or_else(|| {
            Error::invalid("checkpoint", format!("tensors of kind {:?} cannot be written", tensor.kind()))
        })?;
        let shape = tensor.size().iter().map(|&n| n as usize).collect();
        Ok(Self { tensor: tensor.f_detach()?.f_to_device(Device::Cpu)?.f_contiguous()?, dtype, shape })
    }
}

impl View for TensorBytes {
    fn dtype(&self) -> Dtype {
        self.dtype
    }

    fn shape(&self) -> &[usize] {
        &self.shape
    }

    fn data(&self) -> std::borrow::Cow<'_, [u8]> {
        let mut bytes = vec![0u8; self.data_len()];
        self.tensor
            .f_copy_data_u8(&mut bytes, self.tensor.numel())
            .expect("a contiguous CPU tensor has exactly data_len bytes");
        bytes.into()
    }

    fn data_len(&self) -> usize {
        self.tensor.numel() * self.tensor.kind().elt_size_in_bytes()
    }
}
