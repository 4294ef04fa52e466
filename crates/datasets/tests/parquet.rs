//! Rows of Parquet files, written by the same library.
#![cfg(feature = "parquet")]

use std::path::Path;
use std::sync::Arc;

use parquet::basic::{Compression, GzipLevel, ZstdLevel};
use parquet::data_type::{BoolType, ByteArray, ByteArrayType, DoubleType, FloatType, Int64Type};
use parquet::file::properties::WriterProperties;
use parquet::file::writer::{SerializedFileWriter, SerializedRowGroupWriter};
use parquet::schema::parser::parse_message_type;
use ruminate_datasets::rows::{
    Columns, DataFiles, PreferenceRows, TextOrMessages, WeightedRow, read_preferences, read_prompts,
    read_supervised, read_weighted,
};
use ruminate_datasets::teacher::Message;
use ruminate_datasets::{DialoguePreference, SupervisedExample};

const MESSAGES: &str = "(LIST) { repeated group list { optional group element {
    optional binary role (STRING); optional binary content (STRING); } } }";

/// The values of a column with the levels that Parquet wants.
enum Column {
    Texts(Vec<ByteArray>, Vec<i16>, Vec<i16>),
    Doubles(Vec<f64>),
    Floats(Vec<f32>),
    Integers(Vec<i64>),
    Truths(Vec<bool>),
}

/// A column of texts, of which some are null.
fn texts(values: &[Option<&str>]) -> Column {
    let levels = values.iter().map(|value| i16::from(value.is_some())).collect();
    Column::Texts(values.iter().flatten().map(|text| ByteArray::from(*text)).collect(), levels, vec![])
}

/// The two columns of a list of messages; no list is null.
fn messages(rows: &[Vec<Message>]) -> [Column; 2] {
    let column = |of: fn(&Message) -> &str| {
        let values = rows.iter().flatten().map(|message| ByteArray::from(of(message))).collect();
        let definitions =
            rows.iter().flat_map(|row| if row.is_empty() { vec![1] } else { vec![4; row.len()] });
        let repetitions = rows.iter().flat_map(|row| (0..row.len().max(1)).map(|i| i16::from(i > 0)));
        Column::Texts(values, definitions.collect(), repetitions.collect())
    };
    [column(|message| &message.role), column(|message| &message.content)]
}

fn write(path: &Path, fields: &str, compression: Compression, groups: Vec<Vec<Column>>) {
    let schema = Arc::new(parse_message_type(&format!("message rows {{ {fields} }}")).unwrap());
    let properties = Arc::new(WriterProperties::builder().set_compression(compression).build());
    let mut writer =
        SerializedFileWriter::new(std::fs::File::create(path).unwrap(), schema, properties).unwrap();
    for columns in groups {
        let mut group: SerializedRowGroupWriter<'_, _> = writer.next_row_group().unwrap();
        for values in columns {
            let mut column = group.next_column().unwrap().expect("as many columns as the schema has");
            match values {
                Column::Texts(values, definitions, repetitions) => {
                    let repetitions = (!repetitions.is_empty()).then_some(&repetitions[..]);
                    column
                        .typed::<ByteArrayType>()
                        .write_batch(&values, Some(&definitions), repetitions)
                        .map(drop)
                }
                Column::Doubles(values) => {
                    column.typed::<DoubleType>().write_batch(&values, None, None).map(drop)
                }
                Column::Floats(values) => {
                    column.typed::<FloatType>().write_batch(&values, None, None).map(drop)
                }
                Column::Integers(values) => {
                    column.typed::<Int64Type>().write_batch(&values, None, None).map(drop)
                }
                Column::Truths(values) => {
                    column.typed::<BoolType>().write_batch(&values, None, None).map(drop)
                }
            }
            .unwrap();
            column.close().unwrap();
        }
        group.close().unwrap();
    }
    writer.close().unwrap();
}

fn codecs() -> [Compression; 4] {
    [
        Compression::UNCOMPRESSED,
        Compression::SNAPPY,
        Compression::GZIP(GzipLevel::default()),
        Compression::ZSTD(ZstdLevel::default()),
    ]
}

#[test]
fn texts_with_every_codec_and_several_row_groups() {
    let folder = tempfile::tempdir().unwrap();
    for (i, compression) in codecs().into_iter().enumerate() {
        let path = folder.path().join(format!("{i}.parquet"));
        let fields =
            "optional binary prompt (STRING); optional binary completion (STRING); required double reward;";
        let group = |prompt: &str| {
            vec![
                texts(&[Some(prompt), Some("é")]),
                texts(&[Some("c"), Some("")]),
                Column::Doubles(vec![0.1, -2.0]),
            ]
        };
        write(&path, fields, compression, vec![group("one"), group("two")]);
        let completion = |prompt: &str, completion: &str| SupervisedExample::Completion {
            prompt: prompt.into(),
            completion: completion.into(),
        };
        let expected =
            [completion("one", "c"), completion("é", ""), completion("two", "c"), completion("é", "")];
        assert_eq!(read_supervised(&path, &Columns::default()).unwrap(), expected);
        let rows = read_weighted(&path, &Columns::default()).unwrap();
        assert_eq!(rows[3], WeightedRow { example: expected[3].clone(), reward: -2.0 });
        assert!(ruminate_datasets::text::files_read().contains(&path));
        // Also without the name's end, and not further than the limit.
        let plain = folder.path().join("rows");
        std::fs::copy(&path, &plain).unwrap();
        let files = DataFiles { train: vec![plain.into()], limit: 3, ..DataFiles::default() };
        assert_eq!(files.supervised().unwrap().train, expected[..3]);
    }
}

#[test]
fn messages_are_lists_of_groups() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("rows.parquet");
    let [user, good, bad] =
        [("user", "u"), ("assistant", "a"), ("assistant", "b")].map(|(role, text)| Message::new(role, text));
    let dialogues =
        vec![vec![user.clone(), good.clone()], vec![user.clone(), bad.clone(), user.clone(), good.clone()]];
    write(
        &path,
        &format!("optional group messages {MESSAGES}"),
        Compression::SNAPPY,
        vec![messages(&dialogues).into()],
    );
    let expected: Vec<SupervisedExample> =
        dialogues.into_iter().map(|messages| SupervisedExample::Dialogue { messages }).collect();
    assert_eq!(read_supervised(&path, &Columns::default()).unwrap(), expected);
    let prompts = read_prompts(&path, &Columns::default()).unwrap();
    assert_eq!(prompts[0].prompt, TextOrMessages::Messages(vec![user.clone()]));
    assert_eq!(prompts[0].answer.as_deref(), Some("a"));
    let pair = [vec![user.clone()], vec![good], vec![bad]];
    let fields = ["prompt", "chosen", "rejected"].map(|name| format!("optional group {name} {MESSAGES}"));
    let columns = pair.iter().flat_map(|part| messages(std::slice::from_ref(part))).collect();
    write(&path, &fields.concat(), Compression::SNAPPY, vec![columns]);
    let [prompt, chosen, rejected] = pair;
    let pairs = read_preferences(&path, &Columns::default()).unwrap().pairs;
    assert_eq!(pairs, PreferenceRows::Dialogues(vec![DialoguePreference::new(prompt, chosen, rejected)]));
    write(
        &path,
        &format!("optional group messages {MESSAGES}"),
        Compression::SNAPPY,
        vec![messages(&[vec![user], vec![]]).into()],
    );
    let error = read_prompts(&path, &Columns::default()).unwrap_err().to_string();
    assert!(error.contains("rows.parquet: row 1: field `messages` has no message"), "{error}");
}

#[test]
fn other_fields_are_kept_and_numbers_stay_as_they_are() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("rows.parquet");
    let fields = "optional binary prompt (STRING); required int64 answer; required float level; required boolean hard; \
                  optional binary raw;";
    let columns = vec![
        texts(&[Some("p"), Some("q")]),
        Column::Integers(vec![i64::MAX, -1]),
        Column::Floats(vec![0.1, f32::NAN]),
        Column::Truths(vec![true, false]),
        Column::Texts(vec![ByteArray::from(vec![0xff]), ByteArray::from("text")], vec![1, 1], vec![]),
    ];
    write(&path, fields, Compression::UNCOMPRESSED, vec![columns]);
    let rows = read_prompts(&path, &Columns::default()).unwrap();
    assert_eq!(rows[0].answer.as_deref(), Some("9223372036854775807"));
    let of = |row: usize, field: &str| rows[row].fields[field].to_string();
    assert_eq!(["level", "hard", "raw"].map(|field| of(0, field)), ["0.1", "true", "null"]);
    assert_eq!(["level", "hard", "raw"].map(|field| of(1, field)), ["\"NaN\"", "false", "\"text\""]);
    let columns = Columns { answer: "level".into(), ..Columns::default() };
    assert_eq!(read_prompts(&path, &columns).unwrap()[0].answer.as_deref(), Some("0.1"));
    let columns = Columns {
        prompt: "prompt".into(),
        completion: "prompt".into(),
        reward: "level".into(),
        ..Columns::default()
    };
    let error = read_weighted(&path, &columns).unwrap_err().to_string();
    assert!(error.contains("row 0: no field `prompt`"), "{error}");
}

#[test]
fn what_is_wrong_is_told_with_its_row() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("rows.parquet");
    let fields =
        "optional binary question (STRING); optional binary completion (STRING); required double reward;";
    let group = vec![
        texts(&[Some("p"), None]),
        texts(&[Some("c"), Some("c")]),
        Column::Doubles(vec![1.0, f64::INFINITY]),
    ];
    write(&path, fields, Compression::SNAPPY, vec![group]);
    let error = |columns: &Columns| read_supervised(&path, columns).unwrap_err().to_string();
    assert!(
        error(&Columns::default())
            .contains("row 0: no field `prompt`, but `completion`, `question`, `reward`")
    );
    let columns = Columns { prompt: "question".into(), ..Columns::default() };
    assert!(error(&columns).contains("row 1: field `question` is null"));
    let columns =
        Columns { prompt: "completion".into(), completion: "question".into(), ..Columns::default() };
    let weighted = read_weighted(&path, &columns).unwrap_err().to_string();
    assert!(
        weighted.contains("row 1: field `reward` is the text \"inf\", but must be a finite number"),
        "{weighted}"
    );
    let bytes = std::fs::read(&path).unwrap();
    for damaged in [&b"PAR1"[..], b"", b"{\"prompt\": \"p\"}", &bytes[..bytes.len() - 20]] {
        std::fs::write(&path, damaged).unwrap();
        let error = error(&Columns::default());
        assert!(error.contains("rows.parquet: cannot be read as Parquet: "), "{error}");
    }
}

/// The library panics on some damaged files.
#[test]
fn damaged_files_are_errors() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("rows.parquet");
    let dialogue = vec![Message::new("user", "u"), Message::new("assistant", "a")];
    write(
        &path,
        &format!("optional group messages {MESSAGES}"),
        Compression::SNAPPY,
        vec![messages(&vec![dialogue; 50]).into()],
    );
    let bytes = std::fs::read(&path).unwrap();
    std::panic::set_hook(Box::new(|_| {}));
    let (mut refused, mut state) = (0, 1_u64);
    for _ in 0..3000 {
        let mut damaged = bytes.clone();
        for _ in 0..3 {
            state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
            let at = (state >> 33) as usize % damaged.len();
            damaged[at] ^= 1 << (state >> 29 & 7);
        }
        std::fs::write(&path, damaged).unwrap();
        if let Err(error) = read_supervised(&path, &Columns::default()) {
            refused += 1;
            assert!(error.to_string().starts_with(&path.display().to_string()), "{error}");
        }
    }
    let _ = std::panic::take_hook();
    assert!(refused > 1000, "{refused}");
}
