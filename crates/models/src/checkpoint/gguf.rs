//! Model files of llama.cpp, turned into model folders of Hugging Face.

mod blocks;
mod config;
mod reader;
#[cfg(test)]
mod tests;
mod tokenizer;

use std::borrow::Cow;
use std::fs;
use std::path::Path;

use safetensors::tensor::{Dtype, View};
use serde_json::json;
use tch::Kind;

use self::config::{ModelConfig, NamedTensor};
use self::reader::{Gguf, RawTensor};
use super::{WEIGHTS, check_pointer, readable_by_all, write_json};
use crate::config::end_tokens_json;
use crate::{Error, Result, Tokenizer};

/// Writes the model of a GGUF file as a Hugging Face folder: `config.json`, `generation_config.json`, `model.safetensors`,
/// `tokenizer.json` and `tokenizer_config.json` with the chat template. transformers reads the folder, too.
///
/// Weights become numbers of `kind`: `Float` rounds nothing, `BFloat16` and `Half` take half of the disk. Read are the
/// architectures `llama` (Llama, Mistral, SmolLM2 and what else llama.cpp calls so), `qwen2` and `qwen3`, versions 2 and 3 of the
/// format, and the tensor types F32, F16, BF16, Q4_0, Q4_1, Q5_0, Q5_1, Q8_0, Q4_K, Q5_K and Q6_K. Besides the file, which is
/// mapped, it takes memory for one tensor at a time.
///
/// The folder must be new or empty: files of another model would be lost or mixed in. `config.json` is written last, so a folder that has
/// one is complete.
///
/// # Reference behaviour
/// Tensors, configuration and token ids are those that transformers 5 reads from the file, except where it leaves out what the
/// model was trained with, and llama.cpp and the model's own Hugging Face folder do not:
/// - the factors of Llama 3.1's rotary frequencies, which the file has as the tensor `rope_freqs.weight`;
/// - single digits as words (`tokenizer.ggml.pre` = `smollm`, `starcoder` and a few others), Qwen's normal form NFC, whole words
///   that no merge reaches, and the begin token of files of Llama 3 that do not mention it.
///
/// # Example
/// ```no_run
/// use std::path::Path;
/// use ruminate_models::{Llama, checkpoint::convert_gguf};
/// use tch::{Device, Kind};
/// let folder = Path::new("models/smollm2");
/// convert_gguf(Path::new("SmolLM2-135M-Instruct.Q4_1.gguf"), folder, Kind::Float)?;
/// let llama = Llama::load(folder, Kind::Float, Device::Cpu)?;
/// # Ok::<(), ruminate_models::Error>(())
/// ```
///
/// # Errors
/// When the file is damaged or asks for something that is not implemented ([`Error::Gguf`] names the key or the tensor), `kind` is
/// none of the three, or the folder is not empty or not writable.
pub fn convert_gguf(file: &Path, folder: &Path, kind: Kind) -> Result<()> {
    let dtype = match kind {
        Kind::Float => Dtype::F32,
        Kind::Half => Dtype::F16,
        Kind::BFloat16 => Dtype::BF16,
        other => {
            let reason = format!("is {other:?}; weights of a GGUF file become Float, Half or BFloat16");
            return Err(Error::invalid("kind", reason));
        }
    };
    let map = ruminate_torch::map_file(file).map_err(Error::read(file))?;
    check_pointer(file, &map)?;
    let gguf = Gguf::read(&map, file)?;
    let config = ModelConfig::read(&gguf)?;
    let tensors = config.tensors(&gguf)?;
    let special = tokenizer::SpecialTokens::read(&gguf)?;

    fs::create_dir_all(folder).map_err(Error::write(folder))?;
    if fs::read_dir(folder).map_err(Error::read(folder))?.next().is_some() {
        let reason =
            "is not empty, and its files would be overwritten. Name a new folder, or remove this one".into();
        return Err(Error::NotThere { path: folder.to_path_buf(), reason });
    }
    tokenizer::write(&gguf, &special, config.context_length, folder)?;
    Tokenizer::open(folder)?.check_fits(config.vocab_size)?;
    let generation = json!({
        "bos_token_id": special.bos,
        "eos_token_id": end_tokens_json(&special.ends),
        "pad_token_id": special.pad,
    });
    write_json(&folder.join("generation_config.json"), &generation)?;
    write_weights(&folder.join(WEIGHTS), &tensors, dtype)?;
    write_json(&folder.join("config.json"), &config.to_json(&special, dtype))
}

fn write_weights(path: &Path, tensors: &[NamedTensor<'_>], dtype: Dtype) -> Result<()> {
    let views = tensors.iter().map(|tensor| {
        let shape = tensor.raw.shape.iter().map(|&n| n as usize).collect();
        (
            tensor.name.as_str(),
            Converted { raw: &tensor.raw, rotary_heads: tensor.rotary_heads, dtype, shape },
        )
    });
    // Transformers refuses a file that does not say which framework's layout it has.
    let metadata = [("format".to_string(), "pt".to_string())].into();
    safetensors::serialize_to_file(views, Some(metadata), path).map_err(|e| match e {
        safetensors::SafeTensorError::IoError(source) => Error::write(path)(source),
        source => Error::Safetensors { path: path.to_path_buf(), source },
    })?;
    fs::File::open(path).and_then(|f| f.sync_all()).map_err(Error::write(path))?;
    readable_by_all(path).map_err(Error::write(path))
}

/// A tensor that is dequantised when the serializer reaches it.
struct Converted<'a> {
    raw: &'a RawTensor<'a>,
    rotary_heads: Option<usize>,
    dtype: Dtype,
    shape: Vec<usize>,
}

impl View for Converted<'_> {
    fn dtype(&self) -> Dtype {
        self.dtype
    }

    fn shape(&self) -> &[usize] {
        &self.shape
    }

    fn data(&self) -> Cow<'_, [u8]> {
        let mut values = self.raw.kind.dequantize(self.raw.bytes);
        if let Some(heads) = self.rotary_heads {
            values = halves_together(&values, heads, self.shape[0]);
        }
        let mut bytes = Vec::with_capacity(self.data_len());
        match self.dtype {
            Dtype::F16 => {
                values.iter().for_each(|&x| bytes.extend(half::f16::from_f32(x).to_le_bytes()));
            }
            Dtype::BF16 => {
                values.iter().for_each(|&x| bytes.extend(half::bf16::from_f32(x).to_le_bytes()));
            }
            _ => values.iter().for_each(|x| bytes.extend(x.to_le_bytes())),
        }
        bytes.into()
    }

    fn data_len(&self) -> usize {
        self.shape.iter().product::<usize>() * if self.dtype == Dtype::F32 { 4 } else { 2 }
    }
}

/// Rows of a projection in the order of Hugging Face. There, rotary positions turn row `i` of a head with row `i + head_dim / 2`;
/// in a file of the architecture `llama`, the two stand side by side.
fn halves_together(values: &[f32], heads: usize, rows: usize) -> Vec<f32> {
    let (width, head_dim) = (values.len() / rows, rows / heads);
    let row = |at: usize| &values[at * width..][..width];
    let mut out = Vec::with_capacity(values.len());
    for head in 0..heads {
        for half in 0..2 {
            (0..head_dim / 2).for_each(|i| out.extend(row(head * head_dim + 2 * i + half)));
        }
    }
    out
}
