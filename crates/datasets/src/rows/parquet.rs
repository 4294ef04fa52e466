//! Rows of Parquet files.

use std::fs::File;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::Path;

use parquet::errors::ParquetError;
use parquet::file::reader::{FileReader, SerializedFileReader};
use parquet::record::Field;
use parquet::record::reader::RowIter;
use serde_json::{Number, Value};

use super::fields::Row;
use super::read::Take;
use crate::{Error, Place, Result, text};

/// As [`super::read::each_row`]. Dates and times become texts; bytes that are no text become `null`.
pub(super) fn each_row(path: &Path, limit: usize, take: &mut Take<'_>) -> Result<usize> {
    let file = File::open(path).map_err(|source| Error::Read { path: path.into(), source })?;
    let damaged = |at: String, what: String| Error::Rows {
        path: path.into(),
        reason: format!(
            "{at}cannot be read as Parquet: {what}; write it again, compressed by snappy, gzip, zstd or not at all"
        ),
    };
    let reader = guarded(|| SerializedFileReader::new(file)).map_err(|what| damaged(String::new(), what))?;
    text::remember(path);
    let mut rows: RowIter<'_> =
        guarded(|| reader.get_row_iter(None)).map_err(|what| damaged(String::new(), what))?;
    for number in 0..limit {
        let row =
            guarded(|| rows.next().transpose()).map_err(|what| damaged(format!("row {number} "), what))?;
        let Some(row) = row else { return Ok(number) };
        take(Place::Row(number), object(row))?;
    }
    Ok(limit)
}

/// Calls the Parquet library, which panics on some damaged files.
fn guarded<T>(call: impl FnOnce() -> std::result::Result<T, ParquetError>) -> std::result::Result<T, String> {
    match catch_unwind(AssertUnwindSafe(call)) {
        Ok(Ok(value)) => Ok(value),
        Ok(Err(error)) => Err(error.to_string()),
        Err(_) => Err("the file is damaged".into()),
    }
}

fn object(row: parquet::record::Row) -> Row {
    row.into_columns().into_iter().map(|(name, field)| (name, value(field))).collect()
}

fn value(field: Field) -> Value {
    match field {
        Field::Null => Value::Null,
        Field::Bool(truth) => truth.into(),
        Field::Byte(number) => number.into(),
        Field::Short(number) => number.into(),
        Field::Int(number) => number.into(),
        Field::Long(number) => number.into(),
        Field::UByte(number) => number.into(),
        Field::UShort(number) => number.into(),
        Field::UInt(number) => number.into(),
        Field::ULong(number) => number.into(),
        Field::Float16(number) => float(&number.to_f32().to_string()),
        // Through its text, so that 0.1 stays 0.1 and does not become 0.10000000149011612.
        Field::Float(number) => float(&number.to_string()),
        Field::Double(number) => float(&number.to_string()),
        Field::Str(text) => text.into(),
        Field::Bytes(bytes) => std::str::from_utf8(bytes.data()).map_or(Value::Null, Value::from),
        Field::Group(row) => Value::Object(object(row)),
        Field::ListInternal(list) => list.elements().iter().cloned().map(value).collect(),
        Field::MapInternal(map) => {
            let entry = |(key, of): &(Field, Field)| {
                let key = match value(key.clone()) {
                    Value::String(key) => key,
                    other => other.to_string(),
                };
                (key, value(of.clone()))
            };
            Value::Object(map.entries().iter().map(entry).collect())
        }
        Field::Decimal(_) => float(&field.to_string()),
        other => other.to_string().into(),
    }
}

/// A number; NaN and infinities stay texts, as JSON has no word for them.
fn float(text: &str) -> Value {
    let number = text.parse().ok().and_then(Number::from_f64);
    number.map_or_else(|| text.into(), Value::Number)
}
