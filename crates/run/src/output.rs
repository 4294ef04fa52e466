use std::fmt;
use std::io::{self, Write};

use comfy_table::CellAlignment;
use serde::Serialize;
use serde_json::{Map, Value};

/// Prints a result as one line of JSON on stdout, for `--json`.
///
/// # Errors
/// stdout cannot be written to.
pub fn print_json(result: &impl Serialize) -> io::Result<()> {
    print(&serde_json::to_string(result)?)
}

/// Prints a result on stdout: as one line of JSON, the labels first, or as a table of its fields, in which lists are told by their lengths
/// and nested fields by dotted names.
///
/// # Errors
/// stdout cannot be written to.
pub fn print_result(labels: Map<String, Value>, fields: &Value, as_json: bool) -> io::Result<()> {
    if as_json {
        let mut line = labels;
        line.extend(fields.as_object().cloned().unwrap_or_default());
        return print_json(&line);
    }
    fields_table(fields).print()
}

fn fields_table(fields: &Value) -> Table {
    let mut table = Table::new(["result", ""]);
    fill(&mut table, "", fields);
    table
}

fn fill(table: &mut Table, name: &str, value: &Value) {
    let shown = match value {
        Value::Object(fields) => {
            for (key, value) in fields {
                let below = if name.is_empty() { key.clone() } else { format!("{name}.{key}") };
                fill(table, &below, value);
            }
            return;
        }
        Value::Null => return,
        Value::Array(items) => items.len().to_string(),
        Value::String(text) => text.clone(),
        Value::Number(value) if value.is_f64() => number(value.as_f64().unwrap_or(f64::NAN)),
        other => other.to_string(),
    };
    table.row([name.to_owned(), shown]);
}

/// Prints a text and a line feed on stdout.
///
/// # Errors
/// stdout cannot be written to.
pub fn print_text(text: &str) -> io::Result<()> {
    print(text)
}

/// One line (or table) on stdout. A reader that has seen enough (`| head`) is no error.
pub(crate) fn print(text: &str) -> io::Result<()> {
    match writeln!(io::stdout().lock(), "{text}") {
        Err(error) if error.kind() == io::ErrorKind::BrokenPipe => Ok(()),
        result => result,
    }
}

/// A table with aligned columns for the console; columns of numbers are aligned to the right.
///
/// ```no_run
/// use ruminate_run::Table;
///
/// let mut table = Table::new(["task", "accuracy"]);
/// table.row(["obqa".to_owned(), Table::number(0.6134)]);
/// table.print()?;
/// # Ok::<(), std::io::Error>(())
/// ```
#[derive(Debug, Clone)]
pub struct Table {
    header: Vec<String>,
    rows: Vec<Vec<String>>,
}

impl Table {
    /// A table without rows.
    pub fn new<C: Into<String>>(header: impl IntoIterator<Item = C>) -> Self {
        Self { header: header.into_iter().map(Into::into).collect(), rows: Vec::new() }
    }

    /// Adds a row. Missing cells stay empty; cells beyond the last column are left out.
    pub fn row<C: Into<String>>(&mut self, cells: impl IntoIterator<Item = C>) -> &mut Self {
        let mut cells: Vec<String> = cells.into_iter().map(Into::into).collect();
        cells.resize(self.header.len(), String::new());
        self.rows.push(cells);
        self
    }

    /// A cell with four significant digits.
    pub fn number(value: f64) -> String {
        number(value)
    }

    /// Prints the table on stdout.
    ///
    /// # Errors
    /// stdout cannot be written to.
    pub fn print(&self) -> io::Result<()> {
        print(&self.to_string())
    }
}

/// Prints tables on stdout with a blank line between them.
///
/// # Errors
/// stdout cannot be written to.
pub fn print_tables(tables: &[Table]) -> io::Result<()> {
    print(&tables.iter().map(Table::to_string).collect::<Vec<_>>().join("\n\n"))
}

impl Table {
    pub(crate) fn cells(&self) -> (&[String], &[Vec<String>]) {
        (&self.header, &self.rows)
    }

    /// Which columns hold nothing but numbers.
    pub(crate) fn numeric_columns(&self) -> Vec<bool> {
        let numeric = |column: usize| {
            self.rows.iter().all(|row| row[column].is_empty() || row[column].parse::<f64>().is_ok())
        };
        (0..self.header.len()).map(|column| !self.rows.is_empty() && numeric(column)).collect()
    }
}

impl fmt::Display for Table {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut table = comfy_table::Table::new();
        table.load_style(comfy_table::presets::NOTHING).add_row(&self.header).add_rows(&self.rows);
        let widths = table.column_max_content_widths();
        let mut whole = comfy_table::Table::new();
        whole.load_style(comfy_table::presets::NOTHING).set_header(&self.header);
        whole.add_row(widths.iter().map(|&width| "-".repeat(width.into()))).add_rows(&self.rows);
        for (column, numeric) in whole.column_iter_mut().zip(self.numeric_columns()) {
            let right = if numeric { CellAlignment::Right } else { CellAlignment::Left };
            column.set_padding((0, 2)).set_cell_alignment(right);
        }
        f.write_str(&whole.trim_fmt())
    }
}

/// Four significant digits; integers are kept whole.
pub(crate) fn number(value: f64) -> String {
    let size = value.abs();
    if !value.is_finite() || (value.fract() == 0.0 && size < 1e15) {
        value.to_string()
    } else if (1e-3..1e5).contains(&size) {
        let digits_before_point = size.log10().floor() as i32;
        format!("{value:.*}", (3 - digits_before_point).max(0) as usize)
    } else {
        format!("{value:.3e}")
    }
}

/// A duration for people: its two largest units.
pub(crate) fn duration(secs: f64) -> String {
    let secs = secs.max(0.0);
    if secs < 9.95 {
        return format!("{secs:.1} s");
    }
    let secs = secs.round() as u64;
    let (days, hours, minutes) = (secs / 86_400, secs % 86_400 / 3600, secs % 3600 / 60);
    match (days, hours, minutes) {
        (0, 0, 0) => format!("{secs} s"),
        (0, 0, _) => format!("{minutes} min {} s", secs % 60),
        (0, _, _) => format!("{hours} h {minutes} min"),
        _ => format!("{days} d {hours} h"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_have_four_significant_digits() {
        let cases = [
            (0.0, "0"),
            (1234567.0, "1234567"),
            (0.61349, "0.6135"),
            (-12.3456, "-12.35"),
            (98765.43, "98765"),
            (0.00012345, "1.234e-4"),
            (3.5e20, "3.500e20"),
            (f64::NAN, "NaN"),
            (f64::INFINITY, "inf"),
        ];
        for (value, text) in cases {
            assert_eq!(number(value), text);
        }
    }

    #[test]
    fn durations_have_two_units() {
        let cases = [
            (0.04, "0.0 s"),
            (9.94, "9.9 s"),
            (9.96, "10 s"),
            (59.6, "1 min 0 s"),
            (3599.0, "59 min 59 s"),
            (3661.0, "1 h 1 min"),
            (200_000.0, "2 d 7 h"),
        ];
        for (secs, text) in cases {
            assert_eq!(duration(secs), text);
        }
    }

    #[test]
    fn fields_of_a_result_are_rows() {
        let fields = serde_json::json!({
            "round": 2, "share": 0.123456, "folder": "out", "none": null, "ids": ["a", "b"], "of": {"pairs": 3},
        });
        let text = fields_table(&fields).to_string();
        let rows: Vec<Vec<&str>> = text.lines().skip(2).map(|row| row.split_whitespace().collect()).collect();
        for row in [["round", "2"], ["share", "0.1235"], ["folder", "out"], ["ids", "2"], ["of.pairs", "3"]] {
            assert!(rows.contains(&row.to_vec()), "{row:?} is not in\n{text}");
        }
        assert_eq!(rows.len(), 5);
    }

    #[test]
    fn tables_align_their_columns() {
        let mut table = Table::new(["task", "accuracy", "n"]);
        table.row(["obqa", "0.61", "500"]).row(["commonsense", "0.7"]).row(["größe", "0.125", "10", "extra"]);
        let expected = "\
task         accuracy    n
-----------  --------  ---
obqa             0.61  500
commonsense       0.7
größe           0.125   10";
        assert_eq!(table.to_string(), expected);
        assert_eq!(Table::new(["a", "b"]).to_string(), "a  b\n-  -");
        // Two columns of a terminal each.
        let mut table = Table::new(["text", "n"]);
        table.row(["蜂蜜は甘い", "1"]).row(["honey", "2"]);
        assert_eq!(table.to_string(), "text        n\n----------  -\n蜂蜜は甘い  1\nhoney       2");
    }
}
