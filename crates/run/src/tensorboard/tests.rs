//! What was written is read back by a reader that shares no code with the writer.

use std::collections::BTreeMap;

use serde_json::json;

use super::*;

/// One event of a file.
/// Name; minimum, maximum, number, sum, sum of squares; upper edges; counts.
type Histogram = (String, [f64; 5], Vec<f64>, Vec<f64>);

#[derive(Debug, Default, PartialEq)]
pub(crate) struct Read {
    pub(crate) step: u64,
    pub(crate) version: Option<String>,
    pub(crate) start: bool,
    pub(crate) scalars: Vec<(String, f32)>,
    pub(crate) histograms: Vec<Histogram>,
    pub(crate) texts: Vec<(String, String)>,
    /// Names and values: numbers and words.
    pub(crate) settings: Vec<(String, String)>,
}

/// Every event of every event file of a folder, in the order of the files' names.
pub(crate) fn read(folder: &Path) -> Vec<Vec<Read>> {
    let mut files = BTreeMap::new();
    for entry in std::fs::read_dir(folder).unwrap() {
        let path = entry.unwrap().path();
        let name = path.file_name().unwrap().to_string_lossy().into_owned();
        if name.starts_with("events.out.tfevents.") {
            files.insert(name, std::fs::read(&path).unwrap());
        }
    }
    files.into_values().map(|bytes| records(&bytes).iter().map(|data| parse(data)).collect()).collect()
}

/// CRC-32C bit by bit, from its definition.
fn crc(data: &[u8]) -> u32 {
    let mut crc = u32::MAX;
    for byte in data {
        crc ^= u32::from(*byte);
        for _ in 0..8 {
            crc = if crc & 1 == 1 { crc >> 1 ^ 0x82f6_3b78 } else { crc >> 1 };
        }
    }
    !crc
}

fn checked(data: &[u8], stored: &[u8]) {
    let crc = crc(data);
    let masked = crc.rotate_right(15).wrapping_add(0xa282_ead8);
    assert_eq!(masked, u32::from_le_bytes(stored.try_into().unwrap()), "checksum");
}

fn records(mut bytes: &[u8]) -> Vec<Vec<u8>> {
    let mut records = vec![];
    while !bytes.is_empty() {
        let length = u64::from_le_bytes(bytes[..8].try_into().unwrap()) as usize;
        checked(&bytes[..8], &bytes[8..12]);
        checked(&bytes[12..12 + length], &bytes[12 + length..16 + length]);
        records.push(bytes[12..12 + length].to_vec());
        bytes = &bytes[16 + length..];
    }
    records
}

enum Field {
    Number(u64),
    Bytes(Vec<u8>),
}

impl Field {
    fn bytes(&self) -> &[u8] {
        match self {
            Self::Bytes(bytes) => bytes,
            Self::Number(number) => panic!("{number} is not bytes"),
        }
    }
    fn text(&self) -> String {
        String::from_utf8(self.bytes().to_vec()).unwrap()
    }
    fn number(&self) -> u64 {
        match self {
            Self::Number(number) => *number,
            Self::Bytes(bytes) => panic!("{bytes:?} is not a number"),
        }
    }
}

fn varint(bytes: &mut &[u8]) -> u64 {
    let mut value = 0;
    for shift in (0..).step_by(7) {
        let byte = bytes[0];
        *bytes = &bytes[1..];
        value |= u64::from(byte & 0x7f) << shift;
        if byte < 0x80 {
            break;
        }
    }
    value
}

fn fields(mut bytes: &[u8]) -> Vec<(u64, Field)> {
    let mut fields = vec![];
    while !bytes.is_empty() {
        let key = varint(&mut bytes);
        let length = match key & 7 {
            0 => {
                fields.push((key >> 3, Field::Number(varint(&mut bytes))));
                continue;
            }
            1 => 8,
            5 => 4,
            2 => varint(&mut bytes) as usize,
            other => panic!("wire type {other}"),
        };
        fields.push((key >> 3, Field::Bytes(bytes[..length].to_vec())));
        bytes = &bytes[length..];
    }
    fields
}

fn parse(data: &[u8]) -> Read {
    let mut event = Read::default();
    for (number, field) in fields(data) {
        match number {
            1 => assert!(f64::from_le_bytes(field.bytes().try_into().unwrap()) > 1.7e9, "wall time"),
            2 => event.step = field.number(),
            3 => event.version = Some(field.text()),
            5 => fields(field.bytes()).iter().for_each(|(_, value)| summary(value.bytes(), &mut event)),
            7 => event.start = fields(field.bytes())[0].1.number() == 1,
            other => panic!("field {other} of an event"),
        }
    }
    event
}

fn summary(data: &[u8], event: &mut Read) {
    let fields_of = fields(data);
    let get = |wanted: u64| fields_of.iter().find(|(number, _)| *number == wanted).map(|(_, field)| field);
    let tag = get(1).unwrap().text();
    let numbers = |bytes: &[u8]| -> Vec<f64> {
        bytes.chunks(8).map(|bytes| f64::from_le_bytes(bytes.try_into().unwrap())).collect()
    };
    if let Some(histogram) = get(5) {
        let of = fields(histogram.bytes());
        let [min, max, count, sum, squares, edges, counts] = &of[..] else { panic!("{} fields", of.len()) };
        let all = [min, max, count, sum, squares].map(|(_, field)| numbers(field.bytes())[0]);
        assert_eq!((edges.0, counts.0), (6, 7));
        event.histograms.push((tag, all, numbers(edges.1.bytes()), numbers(counts.1.bytes())));
        return;
    }
    match get(2) {
        Some(value) => event.scalars.push((tag, f32::from_le_bytes(value.bytes().try_into().unwrap()))),
        None => {
            let tensor = fields(get(8).unwrap().bytes());
            if tag == SESSION_START {
                let plugin = fields(fields(get(9).unwrap().bytes())[0].1.bytes());
                assert_eq!((plugin[0].1.text().as_str(), plugin[1].0), ("hparams", 2));
                let data = fields(plugin[1].1.bytes());
                assert_eq!(data[0].0, 3, "the start of a session");
                event.settings.extend(
                    fields(data[0].1.bytes()).iter().filter(|(number, _)| *number == 1).map(|(_, entry)| {
                        let entry = fields(entry.bytes());
                        let value = &fields(entry[1].1.bytes())[0];
                        let shown = match value.0 {
                            2 => numbers(value.1.bytes())[0].to_string(),
                            3 => value.1.text(),
                            4 => (value.1.number() == 1).to_string(),
                            other => panic!("field {other} of a value"),
                        };
                        (entry[0].1.text(), shown)
                    }),
                );
                return;
            }
            assert_eq!(tensor[0].1.number(), 7, "a tensor of strings");
            assert_eq!(tensor[1].1.bytes(), [0x12, 2, 8, 1], "of one element");
            let plugin = fields(fields(get(9).unwrap().bytes())[0].1.bytes())[0].1.text();
            assert_eq!(plugin, "text");
            event.texts.push((tag, tensor[2].1.text()));
        }
    }
}

#[test]
fn the_checksum_is_the_known_one() {
    // From RFC 3720, appendix B.4.
    assert_eq!(crc(&[0; 32]), 0x8a91_36aa);
    assert_eq!(crc32c::crc32c(&[0; 32]), 0x8a91_36aa);
}

#[test]
fn what_was_written_is_read_back() {
    let folder = tempfile::tempdir().unwrap();
    let mut file = EventFile::new(folder.path());
    assert_eq!(read(folder.path()).len(), 0, "no file without an event");
    let metrics: Metrics = vec![("train/loss".into(), 2.5), ("größe".into(), f64::NAN)];
    file.scalars(300, &metrics).unwrap();
    file.scalars(301, &vec![]).unwrap();
    file.samples(u64::from(u32::MAX) + 1, &[json!({"question": "Why *not*?", "n": 1}), json!("<b>")])
        .unwrap();
    let settings: toml::Table =
        "lr = 1e-3\nsteps = 7\nquick = true\nbetas = [0.9, 0.5]\nname = \"ü\"".parse().unwrap();
    file.hyperparameters(&settings.into_iter().collect::<Vec<_>>()).unwrap();
    file.histogram(7, "reward", &Distribution::of(&[1.0, 1.0, 3.0]).unwrap()).unwrap();
    let files = read(folder.path());
    let [version, scalars, texts, settings, histogram] = &files[0][..] else { panic!("{files:?}") };
    let (name, all, edges, counts) = &histogram.histograms[0];
    let expected = [1.0, 3.0, 3.0, 5.0, 11.0];
    assert!(name == "reward" && all.iter().zip(expected).all(|(a, b)| (a - b).abs() < 1e-9), "{all:?}");
    assert_eq!((edges.len(), edges[19], counts.iter().sum::<f64>()), (20, 3.0, 3.0));
    assert_eq!((version.version.as_deref(), version.step), (Some("brain.Event:2"), 0));
    let mut settings = settings.settings.clone();
    settings.sort();
    let expected =
        [("betas", "[0.9, 0.5]"), ("lr", "0.001"), ("name", "ü"), ("quick", "true"), ("steps", "7")];
    assert_eq!(settings, expected.map(|(name, value)| (name.to_owned(), value.to_owned())));
    assert_eq!(scalars.step, 300);
    assert_eq!(scalars.scalars[0], ("train/loss".into(), 2.5));
    assert!(scalars.scalars[1].0 == "größe" && scalars.scalars[1].1.is_nan());
    assert_eq!(texts.step, 4_294_967_296);
    let expected = [
        ("samples/0/text_summary", "- **n**: 1\n- **question**: Why \\*not\\*?\n"),
        ("samples/1/text_summary", "\\<b\\>"),
    ];
    assert_eq!(texts.texts, expected.map(|(tag, text)| (tag.to_owned(), text.to_owned())));
}

#[test]
fn another_file_leaves_the_first_alone() {
    let folder = tempfile::tempdir().unwrap();
    for step in [7, 3] {
        let mut file = EventFile::new(folder.path());
        file.repeats_from(step).unwrap();
        file.scalars(step, &vec![("a".into(), step as f64)]).unwrap();
    }
    let files = read(folder.path());
    assert_eq!(files.len(), 2, "two in the same second");
    for (events, step) in files.iter().zip([7, 3]) {
        assert!(events[1].start && events[1].step == step);
        assert_eq!(events[2].scalars, [("a".to_owned(), step as f32)]);
    }
}
