//! Event files for TensorBoard: records with masked CRC-32C checksums around protocol buffers, of which only the few
//! fields are written that scalars, histograms, texts and hyperparameters need.
//!
//! The layout is that of TensorFlow's `record_writer.h`, `event.proto` and `summary.proto`.

use std::fs::{File, OpenOptions};
use std::io::Write;
use std::path::{Path, PathBuf};
use std::time::{SystemTime, UNIX_EPOCH};

use ruminate_algorithms::Metrics;
use serde_json::Value;

use crate::distribution::Distribution;
use crate::hyperparameters;
use crate::rundir::RunDirError;

/// Texts of one step; TensorBoard is no place to read hundreds.
const TEXTS: usize = 10;

/// An event file of this process. It is made when the first event is written, so that a run that comes to nothing
/// leaves none.
#[derive(Debug)]
pub(crate) struct EventFile {
    folder: PathBuf,
    file: Option<(PathBuf, File)>,
}

impl EventFile {
    pub(crate) fn new(folder: &Path) -> Self {
        Self { folder: folder.to_owned(), file: None }
    }

    /// Says that what earlier files hold from `step` on is repeated here: TensorBoard then shows the later values.
    pub(crate) fn repeats_from(&mut self, step: u64) -> Result<(), RunDirError> {
        const SESSION_LOG: u32 = 7;
        const START: u64 = 1;
        self.write(step, |event| event.message(SESSION_LOG, |log| log.varint(1, START)))
    }

    /// The settings of the run, for the hyperparameters tab.
    pub(crate) fn hyperparameters(&mut self, settings: &[(String, toml::Value)]) -> Result<(), RunDirError> {
        const FLOAT: u64 = 1;
        self.write(0, |event| {
            event.message(SUMMARY, |summary| {
                summary.message(1, |entry| {
                    entry.bytes(1, SESSION_START.as_bytes());
                    // Readers expect some tensor.
                    entry.message(8, |tensor| {
                        tensor.varint(1, FLOAT);
                        tensor.message(2, |shape| shape.message(2, |dim| dim.varint(1, 1)));
                        tensor.float(5, 0.0);
                    });
                    entry.message(9, |metadata| {
                        metadata.message(1, |plugin| {
                            plugin.bytes(1, b"hparams");
                            plugin.message(2, |data| data.message(3, |start| session_start(start, settings)));
                        });
                    });
                });
            });
        })
    }

    /// Scalars, one event for all.
    pub(crate) fn scalars(&mut self, step: u64, metrics: &Metrics) -> Result<(), RunDirError> {
        if metrics.is_empty() {
            return Ok(());
        }
        self.write(step, |event| {
            event.message(SUMMARY, |summary| {
                for (name, value) in metrics {
                    summary.message(1, |entry| {
                        entry.bytes(1, name.as_bytes());
                        entry.float(2, *value as f32);
                    });
                }
            });
        })
    }

    /// A histogram.
    pub(crate) fn histogram(
        &mut self,
        step: u64,
        name: &str,
        distribution: &Distribution,
    ) -> Result<(), RunDirError> {
        let Distribution { count, mean, std, low, high, ref bins, .. } = *distribution;
        let count = count as f64;
        self.write(step, |event| {
            event.message(SUMMARY, |summary| {
                summary.message(1, |entry| {
                    entry.bytes(1, name.as_bytes());
                    entry.message(5, |histogram| {
                        let squares = std * std * (count - 1.0) + count * mean * mean;
                        for (field, number) in
                            [(1, low), (2, high), (3, count), (4, count * mean), (5, squares)]
                        {
                            histogram.double(field, number);
                        }
                        histogram.doubles(6, (0..bins.len()).map(|bin| distribution.edges(bin)[1]));
                        histogram.doubles(7, bins.iter().map(|&count| count as f64));
                    });
                });
            });
        })
    }

    /// Samples as texts `samples/0`, `samples/1` and so on.
    pub(crate) fn samples(&mut self, step: u64, samples: &[Value]) -> Result<(), RunDirError> {
        if samples.is_empty() {
            return Ok(());
        }
        self.write(step, |event| {
            event.message(SUMMARY, |summary| {
                for (number, sample) in samples.iter().take(TEXTS).enumerate() {
                    summary.message(1, |entry| {
                        text(entry, &format!("samples/{number}/text_summary"), &markdown(sample));
                    });
                }
            });
        })
    }

    fn write(&mut self, step: u64, fill: impl FnOnce(&mut Message)) -> Result<(), RunDirError> {
        let mut bytes = Vec::new();
        let (path, file) = match &mut self.file {
            Some(open) => open,
            None => {
                bytes = record(&event(0, |event| event.bytes(3, b"brain.Event:2")));
                self.file.insert(create(&self.folder)?)
            }
        };
        bytes.extend(record(&event(step, fill)));
        // Whole records only, at once: a killed process leaves a file that can be read.
        file.write_all(&bytes).map_err(RunDirError::io("write to", path))
    }
}

/// A new file, also when an earlier process wrote one in the same second.
fn create(folder: &Path) -> Result<(PathBuf, File), RunDirError> {
    let (secs, process) = (now() as u64, std::process::id());
    let mut number = 0;
    loop {
        // TensorBoard reads the files of a folder in the order of their names.
        let path = folder.join(format!("events.out.tfevents.{secs:010}.{process}.{number}"));
        match OpenOptions::new().append(true).create_new(true).open(&path) {
            Ok(file) => return Ok((path, file)),
            Err(error) if error.kind() == std::io::ErrorKind::AlreadyExists => number += 1,
            Err(error) => return Err(RunDirError::io("create", &path)(error)),
        }
    }
}

fn now() -> f64 {
    SystemTime::now().duration_since(UNIX_EPOCH).map_or(0.0, |since| since.as_secs_f64())
}

const SUMMARY: u32 = 5;

fn event(step: u64, fill: impl FnOnce(&mut Message)) -> Vec<u8> {
    let mut event = Message::default();
    event.double(1, now());
    event.varint(2, step);
    fill(&mut event);
    event.0
}

const SESSION_START: &str = "_hparams_/session_start_info";

/// `SessionStartInfo` of the plugin's `plugin_data.proto`.
fn session_start(start: &mut Message, settings: &[(String, toml::Value)]) {
    for (name, value) in settings {
        start.message(1, |entry| {
            entry.bytes(1, name.as_bytes());
            entry.message(2, |of| match value {
                toml::Value::Integer(number) => of.double(2, *number as f64),
                toml::Value::Float(number) => of.double(2, *number),
                toml::Value::Boolean(on) => of.varint(4, u64::from(*on)),
                value => of.bytes(3, hyperparameters::text(value).as_bytes()),
            });
        });
    }
    start.double(5, now());
}

/// A summary value that the text plugin shows: a tensor with one string.
fn text(entry: &mut Message, tag: &str, text: &str) {
    const STRING: u64 = 7;
    entry.bytes(1, tag.as_bytes());
    entry.message(8, |tensor| {
        tensor.varint(1, STRING);
        tensor.message(2, |shape| shape.message(2, |dim| dim.varint(1, 1)));
        tensor.bytes(8, text.as_bytes());
    });
    entry.message(9, |metadata| metadata.message(1, |plugin| plugin.bytes(1, b"text")));
}

/// The fields of a sample as a list; TensorBoard renders Markdown.
fn markdown(sample: &Value) -> String {
    let show = |value: &Value| match value {
        Value::String(text) => text.clone(),
        other => other.to_string(),
    };
    let escape = |text: String| -> String {
        let special = |c: char| "\\`*_{}[]()#+-.!|<>".contains(c);
        text.chars().flat_map(|c| special(c).then_some('\\').into_iter().chain([c])).collect()
    };
    match sample.as_object() {
        Some(fields) => fields
            .iter()
            .map(|(key, value)| format!("- **{}**: {}\n", escape(key.clone()), escape(show(value))))
            .collect(),
        None => escape(show(sample)),
    }
}

/// A protocol buffer in the making.
#[derive(Default)]
struct Message(Vec<u8>);

impl Message {
    fn key(&mut self, field: u32, wire_type: u32) {
        self.raw_varint(u64::from(field << 3 | wire_type));
    }

    fn raw_varint(&mut self, mut value: u64) {
        while value >= 0x80 {
            self.0.push(value as u8 | 0x80);
            value >>= 7;
        }
        self.0.push(value as u8);
    }

    fn varint(&mut self, field: u32, value: u64) {
        self.key(field, 0);
        self.raw_varint(value);
    }

    fn double(&mut self, field: u32, value: f64) {
        self.key(field, 1);
        self.0.extend(value.to_le_bytes());
    }

    fn float(&mut self, field: u32, value: f32) {
        self.key(field, 5);
        self.0.extend(value.to_le_bytes());
    }

    fn doubles(&mut self, field: u32, values: impl Iterator<Item = f64>) {
        let packed: Vec<u8> = values.flat_map(f64::to_le_bytes).collect();
        self.bytes(field, &packed);
    }

    fn bytes(&mut self, field: u32, bytes: &[u8]) {
        self.key(field, 2);
        self.raw_varint(bytes.len() as u64);
        self.0.extend(bytes);
    }

    fn message(&mut self, field: u32, fill: impl FnOnce(&mut Message)) {
        let mut inner = Message::default();
        fill(&mut inner);
        self.bytes(field, &inner.0);
    }
}

fn record(data: &[u8]) -> Vec<u8> {
    let length = (data.len() as u64).to_le_bytes();
    let parts: [&[u8]; 4] =
        [&length, &masked_crc(&length).to_le_bytes(), data, &masked_crc(data).to_le_bytes()];
    parts.concat()
}

/// Checksums of data that holds checksums are masked, so that they are not all alike.
fn masked_crc(data: &[u8]) -> u32 {
    crc32c::crc32c(data).rotate_right(15).wrapping_add(0xa282_ead8)
}

#[cfg(test)]
pub(crate) mod tests;
