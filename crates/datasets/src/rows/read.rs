//! Rows of files, one after another.

use std::fmt;
use std::path::Path;

use serde::Deserializer;
use serde::de::{self, SeqAccess, Visitor};
use serde_json::Value;

use super::fields::{Row, cut, shown};
use crate::text::Lines;
use crate::{Error, Place, Result};

/// The use of a file's rows.
pub(super) type Take<'a> = dyn FnMut(Place, Row) -> Result<()> + 'a;

/// Hands the rows of a file to `take`, at most `limit`, and says how many they are: of JSON lines, of a JSON array, or of Parquet; the first
/// two also compressed by gzip. Rows are read one at a time, so memory holds what `take` keeps.
pub(super) fn each_row(path: &Path, limit: usize, example: &str, take: &mut Take<'_>) -> Result<usize> {
    let is_parquet = path.extension().is_some_and(|extension| extension.eq_ignore_ascii_case("parquet"));
    if is_parquet {
        return parquet(path, limit, take);
    }
    let mut lines = Lines::open(path)?;
    let first = lines.skip_blank()?;
    if lines.peek()?.starts_with(b"PAR1") {
        return parquet(path, limit, take);
    }
    if first == Some(b'[') {
        array(path, lines, limit, example, take)
    } else {
        json_lines(path, lines, limit, example, take)
    }
}

#[cfg(feature = "parquet")]
fn parquet(path: &Path, limit: usize, take: &mut Take<'_>) -> Result<usize> {
    super::parquet::each_row(path, limit, take)
}

#[cfg(not(feature = "parquet"))]
fn parquet(path: &Path, _: usize, _: &mut Take<'_>) -> Result<usize> {
    let reason = "Parquet is not part of this build: build with the feature `parquet` of ruminate-datasets, or write the rows as JSON \
                  lines, in Python with `pandas.read_parquet(file).to_json(out, orient=\"records\", lines=True)`";
    Err(Error::Rows { path: path.into(), reason: reason.into() })
}

fn json_lines(
    path: &Path,
    mut lines: Lines,
    limit: usize,
    example: &str,
    take: &mut Take<'_>,
) -> Result<usize> {
    let mut rows = 0;
    while rows < limit {
        let Some((number, line)) = lines.next_line()? else { break };
        if line.trim().is_empty() {
            continue;
        }
        let place = Place::Line(number);
        let row = serde_json::from_str(line).map_err(|error| not_json(line, &error)).and_then(object);
        let refuse = |reason| Error::Row { path: path.into(), place, reason, example: example.into() };
        take(place, row.map_err(refuse)?)?;
        rows += 1;
    }
    Ok(rows)
}

fn object(value: Value) -> std::result::Result<Row, String> {
    match value {
        Value::Object(row) => Ok(row),
        other => Err(format!("{} is no row", shown(&other))),
    }
}

/// Says why a line is no JSON.
fn not_json(line: &str, error: &serde_json::Error) -> String {
    if line.starts_with("version https://git-lfs") {
        return "the file is a pointer of Git LFS; fetch what it stands for with `git lfs pull`".into();
    }
    let what = error.to_string();
    let what = what.split(" at line ").next().unwrap_or_default();
    if error.is_eof() {
        return format!(
            "the row ends too early ({what}): the file is cut off, or the row goes on in the next line; a row is one line, \
             and only the rows of an array, between [ and ], may have several"
        );
    }
    format!("no JSON: {what} in column {} of {}", error.column(), quoted_line(line))
}

fn quoted_line(line: &str) -> String {
    Value::from(cut(line)).to_string()
}

fn array(path: &Path, lines: Lines, limit: usize, example: &str, take: &mut Take<'_>) -> Result<usize> {
    let above = lines.number();
    let mut items = Items { rows: 0, limit, take, failed: None, path, example, enough: false };
    let mut json = serde_json::Deserializer::from_reader(lines.rest());
    let outcome = json.deserialize_seq(&mut items).and_then(|()| json.end());
    if let Some(error) = items.failed {
        return Err(error);
    }
    match outcome {
        Err(error) if !items.enough => {
            if error.is_io() {
                return Err(Error::Read { path: path.into(), source: error.into() });
            }
            let what = error.to_string();
            let what = what.split(" at line ").next().unwrap_or_default();
            let at = format!("line {} column {}", above + error.line(), error.column());
            let reason = match error.is_eof() {
                true => format!(
                    "the array ends too early in {at} ({what}): the file is cut off, or `]` is missing"
                ),
                false => format!("no JSON: {what} in {at}"),
            };
            let place = Place::Item(items.rows);
            Err(Error::Row {
                path: path.into(),
                place,
                reason,
                example: format!("{example}, between [ and ] and with commas between rows"),
            })
        }
        _ => Ok(items.rows),
    }
}

/// The items of an array, each of which is handed on as soon as it is read.
struct Items<'a, 'b> {
    rows: usize,
    limit: usize,
    take: &'a mut Take<'b>,
    /// Why reading stopped, when it was not for the text.
    failed: Option<Error>,
    /// Reading stopped because there were `limit` rows.
    enough: bool,
    path: &'a Path,
    example: &'a str,
}

impl<'de> Visitor<'de> for &mut Items<'_, '_> {
    type Value = ();

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("an array of rows")
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut items: A) -> std::result::Result<(), A::Error> {
        loop {
            if self.rows == self.limit {
                self.enough = true;
                return Err(stop());
            }
            let Some(item) = items.next_element::<Value>()? else { return Ok(()) };
            let place = Place::Item(self.rows);
            let refuse =
                |reason| Error::Row { path: self.path.into(), place, reason, example: self.example.into() };
            if let Err(error) = object(item).map_err(refuse).and_then(|row| (self.take)(place, row)) {
                self.failed = Some(error);
                return Err(stop());
            }
            self.rows += 1;
        }
    }
}

/// Ends the reading of an array; what is reported is told elsewhere.
fn stop<E: de::Error>() -> E {
    E::custom("stopped")
}
