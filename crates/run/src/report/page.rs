use std::fmt::Write;
use std::path::{Path, PathBuf};

use serde_json::{Map, Value};

use super::chart::{self, Chart};
use crate::output::{Table, number};
use crate::rundir::{self, RunDirError};

/// A page that needs nothing but itself: style and drawings are inside, there is no script, and nothing is fetched.
/// It reads on a telephone, in the dark and on paper. Every text is escaped.
///
/// ```
/// use ruminate_run::{ReportPage, Table};
///
/// let mut table = Table::new(["seed", "accuracy"]);
/// table.row(["1".to_owned(), Table::number(0.96)]);
/// let mut page = ReportPage::new("Two seeds", "a comparison");
/// page.heading("Accuracy").table(&table).note("<b>chance</b> is 0.25");
/// let html = page.html();
/// assert!(html.contains("0.9600") && html.contains("&lt;b&gt;chance"));
/// ```
#[derive(Debug, Clone)]
pub struct Page {
    title: String,
    body: String,
}

impl Page {
    /// A page with a title and a line below it.
    #[must_use]
    pub fn new(title: &str, subtitle: &str) -> Self {
        let body = format!("<h1>{}</h1>\n<p class=\"note\">{}</p>\n", escape(title), escape(subtitle));
        Self { title: title.to_owned(), body }
    }

    /// Numbers to be seen first, each with its name.
    pub fn facts(&mut self, facts: &[(&str, String)]) -> &mut Self {
        self.body.push_str("<dl class=\"facts\">");
        for (name, value) in facts {
            let _ = write!(self.body, "<div><dt>{}</dt><dd>{}</dd></div>", escape(name), escape(value));
        }
        self.push("</dl>\n")
    }

    /// Starts a section.
    pub fn heading(&mut self, text: &str) -> &mut Self {
        self.push(&format!("<h2>{}</h2>\n", escape(text)))
    }

    /// A paragraph in small print.
    pub fn note(&mut self, text: &str) -> &mut Self {
        self.push(&format!("<p class=\"note\">{}</p>\n", escape(text)))
    }

    /// A table; columns of numbers are aligned to the right.
    pub fn table(&mut self, table: &Table) -> &mut Self {
        let numeric = table.numeric_columns();
        let row = |cells: &[String], tag: &str| {
            let mut html = String::from("<tr>");
            for (cell, numeric) in cells.iter().zip(&numeric) {
                let class = if *numeric { " class=\"n\"" } else { "" };
                let _ = write!(html, "<{tag}{class}>{}</{tag}>", escape(cell));
            }
            html + "</tr>\n"
        };
        let (header, rows) = table.cells();
        let head = row(header, "th");
        let body: String = rows.iter().map(|cells| row(cells, "td")).collect();
        self.push(&format!(
            "<div class=\"scroll\"><table><thead>{head}</thead><tbody>{body}</tbody></table></div>\n"
        ))
    }

    /// Links to files beside the page or below its folder.
    pub fn links(&mut self, links: &[(String, String)]) -> &mut Self {
        for (target, text) in links {
            let target: String = target.split('/').map(percent).collect::<Vec<_>>().join("/");
            let _ = writeln!(self.body, "<p><a href=\"{}\">{}</a></p>", escape(&target), escape(text));
        }
        self
    }

    /// Examples of what the model does. Fields that are known stand in their order; an answer is marked as right or wrong
    /// where the sample says so or the gold answer is there to compare with.
    pub fn samples(&mut self, samples: &[Value]) -> &mut Self {
        self.push("<div class=\"samples\">\n");
        for value in samples {
            self.body.push_str(&sample(value));
        }
        self.push("</div>\n")
    }

    /// A part that is shown on request.
    pub fn folded(&mut self, summary: &str, fill: impl FnOnce(&mut Self)) -> &mut Self {
        self.push(&format!("<details><summary>{}</summary>\n", escape(summary)));
        fill(self);
        self.push("</details>\n")
    }

    /// Answers of several models, or of one at several times, to the same questions: a row has one sample for each title, or none. The question
    /// and its answer are shown once.
    pub fn side_by_side(&mut self, titles: &[String], rows: &[Vec<Option<&Value>>]) -> &mut Self {
        self.push(if titles.len() > 2 { "<div class=\"pairs wide\">\n" } else { "<div class=\"pairs\">\n" });
        for row in rows {
            self.body.push_str(&pair(titles, row));
        }
        self.push("</div>\n")
    }

    /// Text with a meaning in every character, such as a configuration.
    pub fn code(&mut self, text: &str) -> &mut Self {
        self.push(&format!("<pre>{}</pre>\n", escape(text)))
    }

    /// The page.
    #[must_use]
    pub fn html(&self) -> String {
        format!(
            "<!DOCTYPE html>\n<html lang=\"en\">\n<head>\n<meta charset=\"utf-8\">\n\
             <meta name=\"viewport\" content=\"width=device-width, initial-scale=1\">\n<title>{}</title>\n\
             <style>\n{}</style>\n</head>\n<body>\n{}<footer>Written by ruminate {}.</footer>\n</body>\n</html>\n",
            escape(&self.title),
            include_str!("style.css"),
            self.body,
            env!("CARGO_PKG_VERSION"),
        )
    }

    /// Writes the page as `report.html` into a folder. Whoever reads an old one meanwhile never sees a part.
    ///
    /// # Errors
    /// The folder is not writable.
    pub fn write(&self, folder: &Path) -> Result<PathBuf, RunDirError> {
        rundir::write_file(folder, rundir::REPORT, self.html().as_bytes())?;
        Ok(folder.join(rundir::REPORT))
    }

    /// Charts side by side.
    pub(super) fn charts(&mut self, charts: &[Chart<'_>]) -> &mut Self {
        self.push("<div class=\"charts\">\n");
        for chart in charts {
            self.body.push_str(&chart::figure(chart));
        }
        self.push("</div>\n")
    }

    fn push(&mut self, html: &str) -> &mut Self {
        self.body.push_str(html);
        self
    }
}

/// Fields of samples that have a place of their own, in their order.
const FIELDS: [&str; 11] = [
    "task",
    "question",
    "prompt",
    "query",
    "choices",
    "knowledge",
    "statement",
    "rationale",
    "response",
    "answer",
    "predicted",
];
/// Fields of a sample that are the same for all models: the input, and the right answer.
const GIVEN: [&str; 6] = ["task", "question", "prompt", "query", "choices", "answer"];
/// Told elsewhere.
const HIDDEN: [&str; 1] = ["step"];

fn sample(value: &Value) -> String {
    match value.as_object() {
        Some(fields) => format!("<dl class=\"sample\">{}</dl>\n", entries(fields, |_| true)),
        None => format!("<div class=\"sample\">{}</div>\n", escape(&text(value))),
    }
}

fn pair(titles: &[String], row: &[Option<&Value>]) -> String {
    let objects: Vec<Option<&Map<String, Value>>> =
        row.iter().map(|value| value.and_then(Value::as_object)).collect();
    let present = || objects.iter().copied().flatten();
    let common = |key: &str| {
        let mut values = present().map(|fields| fields.get(key));
        let first = values.next().flatten();
        GIVEN.contains(&key) && values.all(|value| value == first)
    };
    let shared = present().next().map(|fields| entries(fields, common)).unwrap_or_default();
    let column = |(title, fields): (&String, &Option<&Map<String, Value>>)| {
        let own = |fields: &Map<String, Value>| entries(fields, |key| !common(key));
        let own = fields.map_or_else(|| "<dd>nothing</dd>".into(), own);
        format!("<dl><dt class=\"title\">{}</dt>{own}</dl>", escape(title))
    };
    let columns: String = titles.iter().zip(&objects).map(column).collect();
    format!("<div class=\"sample\"><dl>{shared}</dl><div class=\"columns\">{columns}</div></div>\n")
}

/// Fields of a sample with their verdicts.
fn entries(fields: &Map<String, Value>, shown: impl Fn(&str) -> bool) -> String {
    let place = |key: &str| FIELDS.iter().position(|field| key.starts_with(field)).unwrap_or(FIELDS.len());
    let mut keys: Vec<&String> =
        fields.keys().filter(|key| !HIDDEN.contains(&key.as_str()) && shown(key)).collect();
    keys.sort_by_key(|key| place(key));
    let gold = fields.get("answer").filter(|answer| !answer.is_null());
    let mut html = String::new();
    for key in keys {
        let value = &fields[key];
        if value.is_null() {
            continue;
        }
        let verdict = match (value, gold) {
            (Value::Bool(right), _) => Some(*right),
            (_, Some(gold)) if key.starts_with("predicted") => Some(value == gold),
            _ => None,
        };
        let shown = match verdict {
            None => escape(&text(value)),
            Some(right) => {
                let (class, mark) = if right { ("right", "✓ right") } else { ("wrong", "✗ wrong") };
                let value = if value.is_boolean() { String::new() } else { escape(&text(value)) + " " };
                format!("{value}<span class=\"{class}\">{mark}</span>")
            }
        };
        let _ = write!(html, "<dt>{}</dt><dd>{shown}</dd>", escape(&key.replace('_', " ")));
    }
    html
}

/// A value for people: lists line by line.
fn text(value: &Value) -> String {
    match value {
        // Data sets part a question from its choices by these two characters.
        Value::String(text) => text.replace("\\n", "\n").replace(" \n ", "\n"),
        Value::Array(items) => items.iter().map(text).collect::<Vec<_>>().join("\n"),
        Value::Number(value) if value.is_f64() => number(value.as_f64().unwrap_or_default()),
        other => other.to_string(),
    }
}

/// Text in HTML, also in attributes. Control characters, which HTML does not have, become visible.
pub(super) fn escape(text: &str) -> String {
    let mut html = String::with_capacity(text.len());
    for c in text.chars() {
        match c {
            '&' => html.push_str("&amp;"),
            '<' => html.push_str("&lt;"),
            '>' => html.push_str("&gt;"),
            '"' => html.push_str("&quot;"),
            '\'' => html.push_str("&#39;"),
            '\n' | '\t' => html.push(c),
            c if c.is_control() => html.push('\u{fffd}'),
            c => html.push(c),
        }
    }
    html
}

/// One part of a path in a link. Without a scheme's colon, a link leads nowhere but to a file.
fn percent(part: &str) -> String {
    let keep = |byte: u8| byte.is_ascii_alphanumeric() || b"-._~".contains(&byte);
    part.bytes().map(|b| if keep(b) { char::from(b).to_string() } else { format!("%{b:02X}") }).collect()
}

#[cfg(test)]
mod tests {
    use std::borrow::Cow;

    use proptest::prelude::*;
    use serde_json::json;

    use super::super::chart::{Line, Shape};
    use super::*;
    use crate::report::records::Series;

    const HOSTILE: &str =
        "</pre></style><script>alert('x')</script><img src=\"http://x/y\" onerror=x>&amp;\u{0}";

    /// The tags of a page, by name; panics at a `<` that does not begin one.
    fn tags(html: &str) -> Vec<String> {
        html.split('<')
            .skip(1)
            .map(|rest| {
                assert!(rest.contains('>'), "{rest}");
                rest.split(['>', ' ', '/']).find(|name| !name.is_empty()).unwrap_or_default().to_owned()
            })
            .collect()
    }

    fn page(text: &str) -> String {
        let mut table = Table::new([text, "n"]);
        table.row([text, "1"]);
        let series = Series { points: vec![(0.0, 1.0), (1.0, 2.0)] };
        let mut page = Page::new(text, text);
        page.facts(&[("f", text.to_owned())])
            .heading(text)
            .note(text)
            .table(&table)
            .links(&[(text.to_owned(), text.to_owned())])
            .charts(&[Chart {
                title: text.to_owned(),
                shape: Shape::Path(text.to_owned()),
                lines: vec![Line { name: format!("a{text}"), colour: 0, series: Cow::Borrowed(&series) }],
            }])
            .samples(&[
                json!({"question": text, text: text, "answer": text, "predicted": [text]}),
                json!(text),
            ])
            .side_by_side(
                &[text.to_owned(), text.to_owned()],
                &[vec![Some(&json!({ text: text, "predicted": text })), None]],
            )
            .folded(text, |page| {
                page.samples(&[json!([text])]);
            })
            .code(text);
        page.html()
    }

    #[test]
    fn hostile_texts_stay_texts() {
        let (plain, hostile) = (page("plain"), page(HOSTILE));
        assert_eq!(tags(&plain), tags(&hostile));
        assert!(!hostile.contains("<script") && !hostile.contains("src=\"") && !hostile.contains('\0'));
        assert!(!hostile.contains("href=\"http:"), "a link leads to a file only");
    }

    proptest! {
        #[test]
        fn no_text_makes_a_tag(text in "[<>&\"'a-z/ \\PC]{0,40}") {
            prop_assert_eq!(tags(&page("plain")), tags(&page(&text)));
        }
    }

    #[test]
    fn nothing_is_fetched_and_nothing_runs() {
        let html = page("plain");
        for outside in ["http", "<script", "@import", "url(", "<link", "<iframe", "src="] {
            assert!(!html.contains(outside), "{outside}");
        }
    }

    #[test]
    fn the_question_of_a_row_is_shown_once() {
        let before = json!({"question": "Why?", "answer": "a", "response": "x", "predicted": "b", "step": 0});
        let after = json!({"question": "Why?", "answer": "a", "response": "y", "predicted": "a", "step": 9});
        let titles = ["step 0".to_owned(), "step 9".to_owned(), "step 10".to_owned()];
        let html = pair(&titles, &[Some(&before), Some(&after), None]);
        assert_eq!(html.matches("Why?").count(), 1, "{html}");
        let expected = "<dl><dt class=\"title\">step 0</dt><dt>response</dt><dd>x</dd><dt>predicted</dt>\
             <dd>b <span class=\"wrong\">✗ wrong</span></dd></dl><dl><dt class=\"title\">step 9</dt><dt>response</dt><dd>y</dd>\
             <dt>predicted</dt><dd>a <span class=\"right\">✓ right</span></dd></dl>\
             <dl><dt class=\"title\">step 10</dt><dd>nothing</dd></dl>";
        assert!(html.contains(expected), "{html}");
    }

    #[test]
    fn predictions_are_marked() {
        let html = sample(&json!({
            "predicted_with": "(A)", "predicted_without": "(B)", "answer": "(A)", "question": "Why? \\n (A) x (B) y",
            "predicted_never": null, "correct": false, "step": 3,
        }));
        let expected = "<dt>question</dt><dd>Why?\n(A) x (B) y</dd><dt>answer</dt><dd>(A)</dd>\
             <dt>predicted with</dt><dd>(A) <span class=\"right\">✓ right</span></dd>\
             <dt>predicted without</dt><dd>(B) <span class=\"wrong\">✗ wrong</span></dd>\
             <dt>correct</dt><dd><span class=\"wrong\">✗ wrong</span></dd></dl>\n";
        assert_eq!(html, format!("<dl class=\"sample\">{expected}"));
    }
}
