//! Metadata and tensor list of a GGUF file, versions 2 and 3.
//!
//! Nothing is believed: every length is checked against the bytes that are there before it is used.

use std::collections::BTreeMap;
use std::path::Path;

use super::blocks::{BlockType, SUPPORTED, type_name};
use crate::{Error, Result};

/// Tensors begin at multiples of this many bytes, unless `general.alignment` says otherwise.
const ALIGNMENT: i64 = 32;
/// Dimensions of a tensor.
const MOST_DIMENSIONS: u32 = 4;

/// A GGUF file in memory.
#[derive(Debug)]
pub(super) struct Gguf<'a> {
    path: &'a Path,
    metadata: BTreeMap<&'a str, Value<'a>>,
    pub(super) tensors: BTreeMap<&'a str, RawTensor<'a>>,
}

/// A value of the metadata.
#[derive(Debug, Clone, Copy)]
enum Value<'a> {
    /// Any of the integer types.
    Integer(i128),
    /// A float. An `f32` becomes the number with the same decimal digits: 0.00001 stays 0.00001.
    Float(f64),
    Bool(bool),
    /// UTF-8, which is checked where it is used.
    Text(&'a [u8]),
    Array(Array<'a>),
}

/// The elements of an array, still encoded.
#[derive(Debug, Clone, Copy)]
struct Array<'a> {
    element: Type,
    count: usize,
    bytes: &'a [u8],
}

/// Types of the metadata.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Type {
    U8,
    I8,
    U16,
    I16,
    U32,
    I32,
    F32,
    Bool,
    Text,
    Array,
    U64,
    I64,
    F64,
}

/// A tensor, still quantised.
#[derive(Debug, Clone)]
pub(super) struct RawTensor<'a> {
    /// In PyTorch's order: rows first. Products of sizes are within `i64`.
    pub(super) shape: Vec<i64>,
    pub(super) kind: BlockType,
    /// Whole blocks.
    pub(super) bytes: &'a [u8],
}

impl<'a> Gguf<'a> {
    /// Reads everything but the values of tensors.
    pub(super) fn read(bytes: &'a [u8], path: &'a Path) -> Result<Self> {
        let mut reader = Reader { bytes, at: 0, path };
        let refuse = |place: &str, reason: String| refuse(path, place, reason);
        if reader.take(4)? != b"GGUF" {
            return Err(refuse("the first four bytes", "are not GGUF: this is no GGUF file".into()));
        }
        match reader.u32()? {
            2 | 3 => {}
            version if (1..=3).contains(&version.swap_bytes()) => {
                let reason = "is that of a big-endian file; make a little-endian one with llama.cpp's \
                              convert_hf_to_gguf.py without --bigendian";
                return Err(refuse("version", reason.into()));
            }
            version => {
                let reason = format!(
                    "is {version}; known are 2 and 3. Make the file again with a present llama.cpp, or use a newer \
                     release of this program for a newer file"
                );
                return Err(refuse("version", reason));
            }
        }
        let (tensor_count, entry_count) = (reader.u64()?, reader.u64()?);
        let mut metadata = BTreeMap::new();
        for _ in 0..entry_count {
            let key = reader.text("a key of the metadata")?;
            let value = reader.value(key)?;
            if metadata.insert(key, value).is_some() {
                return Err(refuse(key, "is there twice".into()));
            }
        }
        let mut gguf = Self { path, metadata, tensors: BTreeMap::new() };
        if let Some(parts) = gguf.integer("split.count")?.filter(|&parts| parts > 1) {
            let reason = format!(
                "this is one of {parts} parts of a model. Join them with llama.cpp: llama-gguf-split --merge FIRST_PART.gguf \
                 WHOLE.gguf"
            );
            return Err(refuse("split.count", reason));
        }
        let alignment = gguf.integer("general.alignment")?.unwrap_or(ALIGNMENT);
        let alignment = usize::try_from(alignment).ok().filter(|n| n.is_power_of_two()).ok_or_else(|| {
            refuse("general.alignment", format!("is {alignment}, but must be a power of two"))
        })?;
        let mut places = vec![];
        for _ in 0..tensor_count {
            places.push(reader.place()?);
        }
        let start = reader.at.checked_next_multiple_of(alignment).unwrap_or(usize::MAX);
        let data = bytes.get(start..).unwrap_or_default();
        places.sort_by_key(|place| place.offset);
        let mut end = 0;
        for place in places {
            let name = place.name;
            if place.offset % alignment != 0 || place.offset < end {
                let reason = format!(
                    "begins at byte {} of the data, inside of another tensor or not at a multiple of {alignment}",
                    place.offset
                );
                return Err(refuse(name, reason));
            }
            let tensor_bytes = place.offset.checked_add(place.length).and_then(|last| {
                end = last;
                data.get(place.offset..last)
            });
            let Some(bytes) = tensor_bytes else {
                let reason = format!(
                    "ends {} bytes behind byte {} of the data, where there are only {}: the file was cut short. Copy it again",
                    place.length,
                    place.offset,
                    data.len()
                );
                return Err(refuse(name, reason));
            };
            let tensor = RawTensor { shape: place.shape, kind: place.kind, bytes };
            if gguf.tensors.insert(name, tensor).is_some() {
                return Err(refuse(name, "is there twice".into()));
            }
        }
        Ok(gguf)
    }

    /// An error about a key or a tensor of this file.
    pub(super) fn refuse(&self, place: &str, reason: impl Into<String>) -> Error {
        refuse(self.path, place, reason.into())
    }

    /// Keys that begin with a prefix, without it.
    pub(super) fn keys_behind(&self, prefix: &str) -> impl Iterator<Item = &'a str> {
        self.metadata.keys().filter_map(move |key| key.strip_prefix(prefix))
    }

    /// An integer. One for each layer counts as one where all are the same.
    pub(super) fn integer(&self, key: &str) -> Result<Option<i64>> {
        let Some(value) = self.metadata.get(key) else { return Ok(None) };
        let integer = match value {
            Value::Integer(value) => i64::try_from(*value).ok(),
            Value::Array(array) if array.count > 0 => {
                let mut values = array.values().map(|value| match value {
                    Value::Integer(value) => i64::try_from(value).ok(),
                    _ => None,
                });
                let first = values.next().flatten();
                if values.any(|value| value != first) {
                    return Err(self.refuse(key, "differs from layer to layer, which is not implemented"));
                }
                first
            }
            _ => None,
        };
        integer.map(Some).ok_or_else(|| self.refuse(key, "is not an integer of 64 bits"))
    }

    /// A number with a fraction, or an integer.
    pub(super) fn float(&self, key: &str) -> Result<Option<f64>> {
        match self.metadata.get(key) {
            None => Ok(None),
            Some(Value::Float(value)) if value.is_finite() => Ok(Some(*value)),
            Some(Value::Integer(value)) => Ok(Some(*value as f64)),
            Some(_) => Err(self.refuse(key, "is not a finite number")),
        }
    }

    /// True or false.
    pub(super) fn flag(&self, key: &str) -> Result<Option<bool>> {
        match self.metadata.get(key) {
            None => Ok(None),
            Some(Value::Bool(value)) => Ok(Some(*value)),
            Some(_) => Err(self.refuse(key, "is neither true nor false")),
        }
    }

    /// True where a value is 0 or false, or missing.
    pub(super) fn is_zero(&self, key: &str) -> bool {
        match self.metadata.get(key) {
            None | Some(Value::Integer(0) | Value::Bool(false)) => true,
            Some(Value::Float(value)) => *value == 0.0,
            Some(_) => false,
        }
    }

    /// A text.
    pub(super) fn text(&self, key: &str) -> Result<Option<&'a str>> {
        match self.metadata.get(key) {
            None => Ok(None),
            Some(Value::Text(bytes)) => {
                std::str::from_utf8(bytes).map(Some).map_err(|_| self.refuse(key, "is not UTF-8"))
            }
            Some(_) => Err(self.refuse(key, "is not a text")),
        }
    }

    /// A list of texts.
    pub(super) fn texts(&self, key: &str) -> Result<Option<Vec<&'a str>>> {
        self.list(key, None, "texts in UTF-8", |value| match value {
            Value::Text(bytes) => std::str::from_utf8(bytes).ok(),
            _ => None,
        })
    }

    /// A list of so many numbers.
    pub(super) fn floats(&self, key: &str, count: usize) -> Result<Option<Vec<f64>>> {
        self.list(key, Some(count), "numbers", |value| match value {
            Value::Float(value) if !value.is_nan() => Some(value),
            _ => None,
        })
    }

    /// A list of so many integers.
    pub(super) fn integers(&self, key: &str, count: usize) -> Result<Option<Vec<i128>>> {
        self.list(key, Some(count), "integers", |value| match value {
            Value::Integer(value) => Some(value),
            _ => None,
        })
    }

    fn list<T>(
        &self,
        key: &str,
        count: Option<usize>,
        of: &str,
        read: fn(Value<'a>) -> Option<T>,
    ) -> Result<Option<Vec<T>>> {
        match self.metadata.get(key) {
            None => Ok(None),
            Some(Value::Array(array)) if count.is_some_and(|count| count != array.count) => {
                let expected = count.unwrap_or_default();
                Err(self
                    .refuse(key, format!("has {} elements, but there are {expected} tokens", array.count)))
            }
            Some(Value::Array(array)) => array
                .values()
                .enumerate()
                .map(|(i, value)| {
                    read(value).ok_or_else(|| self.refuse(key, format!("element {i} is not one of {of}")))
                })
                .collect::<Result<_>>()
                .map(Some),
            Some(_) => Err(self.refuse(key, format!("is not a list of {of}"))),
        }
    }
}

impl<'a> Array<'a> {
    fn values(self) -> impl Iterator<Item = Value<'a>> {
        // The bytes were walked when the file was read, so nothing is missing here.
        let mut reader = Reader { bytes: self.bytes, at: 0, path: Path::new("") };
        (0..self.count).map_while(move |_| reader.scalar(self.element, "").ok())
    }
}

impl Type {
    fn from_id(id: u32) -> Option<Self> {
        const TYPES: [Type; 13] = [
            Type::U8,
            Type::I8,
            Type::U16,
            Type::I16,
            Type::U32,
            Type::I32,
            Type::F32,
            Type::Bool,
            Type::Text,
            Type::Array,
            Type::U64,
            Type::I64,
            Type::F64,
        ];
        TYPES.get(id as usize).copied()
    }
}

/// Where a tensor stands and what it is.
struct Place<'a> {
    name: &'a str,
    shape: Vec<i64>,
    kind: BlockType,
    /// From the begin of the data.
    offset: usize,
    length: usize,
}

struct Reader<'a> {
    bytes: &'a [u8],
    at: usize,
    path: &'a Path,
}

impl<'a> Reader<'a> {
    fn take(&mut self, length: usize) -> Result<&'a [u8]> {
        let taken = self.at.checked_add(length).and_then(|end| self.bytes.get(self.at..end));
        let Some(taken) = taken else {
            let reason = format!(
                "{length} bytes are to follow, and the file ends at byte {}: it was cut short or is damaged. Copy it again",
                self.bytes.len()
            );
            return Err(refuse(self.path, &format!("byte {}", self.at), reason));
        };
        self.at += length;
        Ok(taken)
    }

    fn array<const N: usize>(&mut self) -> Result<[u8; N]> {
        let mut array = [0; N];
        array.copy_from_slice(self.take(N)?);
        Ok(array)
    }

    fn u32(&mut self) -> Result<u32> {
        Ok(u32::from_le_bytes(self.array()?))
    }

    fn u64(&mut self) -> Result<u64> {
        Ok(u64::from_le_bytes(self.array()?))
    }

    fn size(&mut self) -> Result<usize> {
        Ok(usize::try_from(self.u64()?).unwrap_or(usize::MAX))
    }

    fn text(&mut self, what: &str) -> Result<&'a str> {
        let at = self.at;
        let length = self.size()?;
        std::str::from_utf8(self.take(length)?)
            .map_err(|_| refuse(self.path, &format!("byte {at}"), format!("{what} is not UTF-8")))
    }

    fn kind(&mut self, key: &str) -> Result<Type> {
        let id = self.u32()?;
        Type::from_id(id).ok_or_else(|| refuse(self.path, key, format!("has the unknown type {id}")))
    }

    fn value(&mut self, key: &str) -> Result<Value<'a>> {
        match self.kind(key)? {
            Type::Array => {
                let element = self.kind(key)?;
                let count = self.size()?;
                let start = self.at;
                match element.bytes() {
                    Some(bytes) => {
                        self.take(bytes.saturating_mul(count))?;
                    }
                    None => {
                        for _ in 0..count {
                            self.scalar(element, key)?;
                        }
                    }
                }
                Ok(Value::Array(Array { element, count, bytes: &self.bytes[start..self.at] }))
            }
            kind => self.scalar(kind, key),
        }
    }

    fn scalar(&mut self, kind: Type, key: &str) -> Result<Value<'a>> {
        Ok(match kind {
            Type::U8 => Value::Integer(u8::from_le_bytes(self.array()?).into()),
            Type::I8 => Value::Integer(i8::from_le_bytes(self.array()?).into()),
            Type::U16 => Value::Integer(u16::from_le_bytes(self.array()?).into()),
            Type::I16 => Value::Integer(i16::from_le_bytes(self.array()?).into()),
            Type::U32 => Value::Integer(u32::from_le_bytes(self.array()?).into()),
            Type::I32 => Value::Integer(i32::from_le_bytes(self.array()?).into()),
            Type::U64 => Value::Integer(u64::from_le_bytes(self.array()?).into()),
            Type::I64 => Value::Integer(i64::from_le_bytes(self.array()?).into()),
            Type::F32 => Value::Float(decimal(f32::from_le_bytes(self.array()?))),
            Type::F64 => Value::Float(f64::from_le_bytes(self.array()?)),
            Type::Bool => Value::Bool(self.array::<1>()? != [0]),
            Type::Text => {
                let length = self.size()?;
                Value::Text(self.take(length)?)
            }
            Type::Array => {
                return Err(refuse(self.path, key, "is a list of lists, for which no key is known".into()));
            }
        })
    }

    /// An entry of the tensor list.
    fn place(&mut self) -> Result<Place<'a>> {
        let name = self.text("the name of a tensor")?;
        let path = self.path;
        let refuse = |reason: String| refuse(path, name, reason);
        let dimensions = self.u32()?;
        if !(1..=MOST_DIMENSIONS).contains(&dimensions) {
            return Err(refuse(format!("has {dimensions} dimensions, but must have 1 to {MOST_DIMENSIONS}")));
        }
        let mut sizes = (0..dimensions).map(|_| self.u64()).collect::<Result<Vec<_>>>()?;
        let id = self.u32()?;
        let offset = self.size()?;
        let kind = BlockType::from_id(id).ok_or_else(|| {
            refuse(format!(
                "has the type {}, which is not read; read are {SUPPORTED}. Quantise the model again, to one of them: \
                 llama-quantize --allow-requantize OLD.gguf NEW.gguf Q8_0",
                type_name(id)
            ))
        })?;
        // ggml names the size of a row first.
        let row = sizes[0];
        sizes.reverse();
        let shape =
            sizes.iter().map(|&n| i64::try_from(n).ok().filter(|&n| n > 0)).collect::<Option<Vec<_>>>();
        let values = sizes.iter().try_fold(1u64, |product, &n| product.checked_mul(n));
        let length = values
            .filter(|&n| i64::try_from(n).is_ok())
            .and_then(|n| usize::try_from(n).ok()?.checked_div(kind.values())?.checked_mul(kind.bytes()));
        match (shape, length) {
            (Some(shape), Some(length)) if row % kind.values() as u64 == 0 => {
                Ok(Place { name, shape, kind, offset, length })
            }
            _ => {
                let reason = format!("has the shape {sizes:?}, which {} cannot have", type_name(id));
                Err(refuse(reason))
            }
        }
    }
}

impl Type {
    /// Bytes of an element, where all have the same.
    fn bytes(self) -> Option<usize> {
        match self {
            Self::U8 | Self::I8 | Self::Bool => Some(1),
            Self::U16 | Self::I16 => Some(2),
            Self::U32 | Self::I32 | Self::F32 => Some(4),
            Self::U64 | Self::I64 | Self::F64 => Some(8),
            Self::Text | Self::Array => None,
        }
    }
}

/// The number with the shortest decimal digits that name this one.
fn decimal(x: f32) -> f64 {
    x.to_string().parse().unwrap_or_else(|_| f64::from(x))
}

fn refuse(path: &Path, place: &str, reason: String) -> Error {
    // Names come from the file: a long one must not fill the screen.
    let place = place.chars().take(200).collect();
    Error::Gguf { path: path.to_path_buf(), place, reason }
}
