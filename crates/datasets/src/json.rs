//! JSON files as Python's `json.dump(indent=4)` writes them: four blanks, everything outside ASCII escaped, no line
//! feed at the end.

use crate::{Error, Place, Result};
use serde::de::{DeserializeOwned, MapAccess, Visitor};
use serde::{Deserialize, Deserializer, Serialize};
use serde_json::ser::{Formatter, PrettyFormatter};
use serde_path_to_error::Segment;
use std::fmt;
use std::io::{self, Write};
use std::marker::PhantomData;
use std::path::Path;

/// Reads a value from a JSON file.
///
/// # Errors
/// [`Error::Read`], and [`Error::Json`] with item and field when the text does not fit `T`.
pub fn read<T: DeserializeOwned>(path: &Path) -> Result<T> {
    let bytes = crate::text::read(path)?;
    parse(path, &bytes, None)
}

/// Reads rows from a JSON file in one of three layouts, in the order of the file: an array, an object whose keys are row
/// numbers, or JSON lines. Each row comes with its place; empty lines are no rows.
///
/// # Errors
/// [`Error::Read`], [`Error::NotUtf8`], and [`Error::Json`] with row and field when a row is no `T`.
pub fn read_rows<T: DeserializeOwned>(path: &Path) -> Result<Vec<(Place, T)>> {
    let bytes = crate::text::read(path)?;
    let text = crate::text::utf8(path, &bytes)?;
    let items = |rows: Vec<T>| rows.into_iter().enumerate().map(|(i, row)| (Place::Item(i), row)).collect();
    match text.trim_start() {
        array if array.starts_with('[') => parse(path, &bytes, None).map(items),
        object if is_numbered(object) => {
            parse(path, &bytes, None).map(|Numbered(rows): Numbered<T>| items(rows))
        }
        _ => (text.lines().enumerate())
            .filter(|(_, line)| !line.trim().is_empty())
            .map(|(i, line)| {
                let place = Place::Line(i + 1);
                Ok((place, parse(path, line.as_bytes(), Some(place))?))
            })
            .collect(),
    }
}

/// Is this an object without keys, or one whose first key is a number?
fn is_numbered(text: &str) -> bool {
    let Some(inside) = text.strip_prefix('{').map(str::trim_start) else { return false };
    let key = inside.strip_prefix('"').and_then(|rest| rest.split_once('"')).map(|(key, _)| key);
    inside.starts_with('}') || key.is_some_and(|key| key.bytes().all(|b| b.is_ascii_digit()))
}

/// The values of an object in the order of the file.
struct Numbered<T>(Vec<T>);

impl<'de, T: Deserialize<'de>> Deserialize<'de> for Numbered<T> {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> std::result::Result<Self, D::Error> {
        struct Values<T>(PhantomData<T>);
        impl<'de, T: Deserialize<'de>> Visitor<'de> for Values<T> {
            type Value = Numbered<T>;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("an object of rows")
            }

            fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> std::result::Result<Numbered<T>, A::Error> {
                let mut rows = vec![];
                while map.next_key::<String>()?.is_some() {
                    rows.push(map.next_value()?);
                }
                Ok(Numbered(rows))
            }
        }
        deserializer.deserialize_map(Values(PhantomData))
    }
}

fn parse<T: DeserializeOwned>(path: &Path, bytes: &[u8], place: Option<Place>) -> Result<T> {
    let mut parser = serde_json::Deserializer::from_slice(bytes);
    let value = serde_path_to_error::deserialize(&mut parser).map_err(|error| {
        let mut segments = error.path().iter().peekable();
        let item = |segment: &Segment| match segment {
            Segment::Seq { index } => Some(Place::Item(*index)),
            Segment::Map { key } => key.parse().ok().map(Place::Item),
            _ => None,
        };
        let place = place.or_else(|| segments.next_if(|s| item(s).is_some()).and_then(item));
        let mut field = String::new();
        for segment in segments {
            match segment {
                Segment::Seq { .. } => field.push_str(&segment.to_string()),
                // A syntax error: serde cannot say in which field it is.
                Segment::Unknown => {}
                _ if field.is_empty() => field = segment.to_string(),
                _ => field.push_str(&format!(".{segment}")),
            }
        }
        Error::Json { path: path.into(), place, field, source: error.into_inner() }
    })?;
    parser.end().map_err(|source| Error::Json { path: path.into(), place, field: String::new(), source })?;
    Ok(value)
}

/// Writes a value to a JSON file in one step ([`ruminate_files::write_atomically`]). Missing folders are made.
///
/// # Errors
/// [`Error::Write`].
pub fn write<T: Serialize + ?Sized>(path: &Path, value: &T) -> Result<()> {
    write_indented(path, value, b"    ")
}

/// As [`write()`], with other blanks.
pub(crate) fn write_indented<T: Serialize + ?Sized>(path: &Path, value: &T, indent: &[u8]) -> Result<()> {
    let fill = |out: &mut dyn Write| {
        let formatter = PythonFormatter(PrettyFormatter::with_indent(indent));
        value.serialize(&mut serde_json::Serializer::with_formatter(out, formatter))?;
        Ok(())
    };
    write_in_folder(path, fill)
}

/// As [`write()`], but a line of JSON for each value.
///
/// # Errors
/// [`Error::Write`].
pub fn write_lines<T: Serialize>(path: &Path, values: &[T]) -> Result<()> {
    let fill = |out: &mut dyn Write| {
        for value in values {
            serde_json::to_writer(&mut *out, value)?;
            out.write_all(b"\n")?;
        }
        Ok(())
    };
    write_in_folder(path, fill)
}

/// Writes a whole file in one step, making the folders above it.
fn write_in_folder(path: &Path, fill: impl FnOnce(&mut dyn Write) -> io::Result<()>) -> Result<()> {
    let write = || {
        if let Some(folder) = path.parent() {
            std::fs::create_dir_all(folder)?;
        }
        ruminate_files::write_atomically(path, fill)
    };
    write().map_err(|source| Error::Write { path: path.into(), source })
}

struct PythonFormatter<'a>(PrettyFormatter<'a>);

impl Formatter for PythonFormatter<'_> {
    fn write_string_fragment<W: Write + ?Sized>(&mut self, out: &mut W, fragment: &str) -> io::Result<()> {
        for c in fragment.chars() {
            if matches!(c, ' '..='~') {
                out.write_all(&[c as u8])?;
            } else {
                for unit in c.encode_utf16(&mut [0; 2]) {
                    write!(out, "\\u{unit:04x}")?;
                }
            }
        }
        Ok(())
    }

    fn begin_array<W: Write + ?Sized>(&mut self, out: &mut W) -> io::Result<()> {
        self.0.begin_array(out)
    }

    fn end_array<W: Write + ?Sized>(&mut self, out: &mut W) -> io::Result<()> {
        self.0.end_array(out)
    }

    fn begin_array_value<W: Write + ?Sized>(&mut self, out: &mut W, first: bool) -> io::Result<()> {
        self.0.begin_array_value(out, first)
    }

    fn end_array_value<W: Write + ?Sized>(&mut self, out: &mut W) -> io::Result<()> {
        self.0.end_array_value(out)
    }

    fn begin_object<W: Write + ?Sized>(&mut self, out: &mut W) -> io::Result<()> {
        self.0.begin_object(out)
    }

    fn end_object<W: Write + ?Sized>(&mut self, out: &mut W) -> io::Result<()> {
        self.0.end_object(out)
    }

    fn begin_object_key<W: Write + ?Sized>(&mut self, out: &mut W, first: bool) -> io::Result<()> {
        self.0.begin_object_key(out, first)
    }

    fn begin_object_value<W: Write + ?Sized>(&mut self, out: &mut W) -> io::Result<()> {
        self.0.begin_object_value(out)
    }

    fn end_object_value<W: Write + ?Sized>(&mut self, out: &mut W) -> io::Result<()> {
        self.0.end_object_value(out)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn writes_what_python_writes() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("new").join("a.json");
        let value = serde_json::json!([{"a": "é \u{1f600} \u{7f} \n \\n \u{1}", "b": [], "c": [1, 0.5]}, {}]);
        write(&path, &value).unwrap();
        let expected = r#"[
    {
        "a": "\u00e9 \ud83d\ude00 \u007f \n \\n \u0001",
        "b": [],
        "c": [
            1,
            0.5
        ]
    },
    {}
]"#;
        assert_eq!(std::fs::read_to_string(&path).unwrap(), expected);
        assert_eq!(read::<serde_json::Value>(&path).unwrap(), value);
        // Nothing temporary is left behind.
        assert_eq!(std::fs::read_dir(path.parent().unwrap()).unwrap().count(), 1);
    }

    #[test]
    fn errors_name_the_place() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("a.json");
        let read_as = |text: &str| {
            std::fs::write(&path, text).unwrap();
            read::<Vec<crate::SilverItem>>(&path).unwrap_err().to_string()
        };
        let ok = r#"{"query": "q", "answer": "a", "knowledges": []}"#;
        let error = read_as(&format!(r#"[{ok}, {{"query": "q", "answer": "a", "knowledges": ["k", 3]}}]"#));
        assert!(error.contains("a.json: item 1, field knowledges[1]: invalid type: integer `3`"), "{error}");
        let error = read_as(&format!(r#"[{ok}, {{"query": "q", "knowledges": []}}]"#));
        assert!(error.contains("a.json: item 1: missing field `answer` at line 1 column"), "{error}");
        let error = read_as("[{");
        assert!(error.contains("a.json: item 0") && error.contains("EOF"), "{error}");
        let error = read_as("[] x");
        assert!(error.contains("trailing characters"), "{error}");
    }
}
