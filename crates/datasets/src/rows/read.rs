//! Rows of JSON files, one after another.

use std::fs::File;
use std::io::{BufRead, BufReader};
use std::path::Path;

use serde_json::{Map, Value};

use crate::{Error, Place, Result, text};

/// A row before anybody has looked at its fields.
pub(super) type Row = Map<String, Value>;

/// Hands every row of a file to `take`: of JSON lines, or of a JSON array. Lines are read one at a time, so memory holds what `take` keeps.
pub(super) fn each_row(path: &Path, mut take: impl FnMut(Place, Row) -> Result<()>) -> Result<()> {
    if path.extension().is_some_and(|extension| extension.eq_ignore_ascii_case("parquet")) {
        let reason = "Parquet files are not read; write the rows as JSON lines, in Python for example with \
                      `pandas.read_parquet(file).to_json(out, orient=\"records\", lines=True)`";
        return Err(Error::Rows { path: path.into(), reason: reason.into() });
    }
    let failed = |source| Error::Read { path: path.into(), source };
    let mut lines = BufReader::with_capacity(1 << 16, File::open(path).map_err(failed)?);
    let head = lines.fill_buf().map_err(failed)?;
    let is_utf16 = head.starts_with(b"\xff\xfe") || head.starts_with(b"\xfe\xff");
    let first = text::without_mark(head).iter().find(|byte| !byte.is_ascii_whitespace());
    if is_utf16 || first == Some(&b'[') {
        // An array is one value; and the reader of whole files says what is wrong with UTF-16.
        let rows: Vec<(Place, Row)> = crate::json::read_rows(path)?;
        return rows.into_iter().try_for_each(|(place, row)| take(place, row));
    }
    text::remember(path);
    let (mut line, mut number) = (vec![], 0);
    loop {
        line.clear();
        if lines.read_until(b'\n', &mut line).map_err(failed)? == 0 {
            return Ok(());
        }
        number += 1;
        let bytes = if number == 1 { text::without_mark(&line) } else { &line };
        let line = std::str::from_utf8(bytes).map_err(|source| Error::NotUtf8 {
            path: path.into(),
            line: number,
            source,
        })?;
        if line.trim().is_empty() {
            continue;
        }
        let place = Place::Line(number);
        let row = serde_json::from_str(line.trim_end()).map_err(|source| Error::Json {
            path: path.into(),
            place: Some(place),
            field: String::new(),
            source,
        })?;
        take(place, row)?;
    }
}
