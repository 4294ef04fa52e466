//! Files that are not what they should be.

use super::*;

const ROW: &str = "{\"prompt\": \"p\", \"completion\": \"c\"}";
const EXAMPLE: &str =
    r#"a row looks like {"prompt": "What do bees make? ", "completion": "honey"} or {"messages": "#;

#[track_caller]
fn refused(text: impl AsRef<[u8]>, parts: &[&str]) {
    let file = file(text);
    let error = read_supervised(&file.1, &Columns::default()).unwrap_err().to_string();
    assert!(error.starts_with(&file.1.display().to_string()), "{error}");
    for part in parts {
        assert!(error.contains(part), "`{part}` is missing from\n{error}");
    }
}

#[test]
fn fields_that_are_missing_or_of_another_kind() {
    let line = |rest: &str| format!("{ROW}\n\n{{{rest}}}\n");
    for (rest, part) in [
        (
            r#""promt": "p", "completion": "c""#,
            r#"no field `prompt`, but `promt`: rename it, or set columns.prompt = "promt""#,
        ),
        (r#""Prompt": "p", "completion": "c""#, "no field `prompt`, but `Prompt`"),
        (
            r#""question": "q", "answer": "a""#,
            "no field `prompt` or `messages`, but `answer`, `question`: where another one is meant, set columns.prompt to its name",
        ),
        (
            r#""conversation": [], "mesages": []"#,
            r#"but `mesages`: rename it, or set columns.messages = "mesages""#,
        ),
        (r#""prompt": "p", "completions": "c""#, "no field `completion`, but `completions`"),
        (r#""prompt": "p", "completion": null"#, "field `completion` is null"),
        (r#""prompt": "p""#, "no field `completion`; a row"),
        ("", "no field `prompt` or `messages`; a row"),
        (
            r#""prompt": 3, "completion": "c""#,
            "field `prompt` is the number 3, but must be a text or a list of messages",
        ),
        (
            r#""prompt": {"text": "p"}, "completion": "c""#,
            "field `prompt` is an object with the fields \"text\"",
        ),
        (r#""prompt": "p", "completion": true"#, "field `completion` is true"),
        (
            r#""prompt": "p", "completion": [{"role": "assistant", "content": "a"}]"#,
            "`completion` is a list of messages, but `prompt` is a text",
        ),
        (r#""messages": "u""#, "field `messages` is the text \"u\", but must be a list of messages"),
        (r#""messages": []"#, "field `messages` has no message"),
        (
            r#""messages": ["u"]"#,
            "field `messages[0]` is the text \"u\"; a message is {\"role\": \"user\", \"content\": \"...\"}",
        ),
        (
            r#""messages": [{"from": "human", "value": "u"}]"#,
            "field `messages[0]` has no role, but \"from\", \"value\"",
        ),
        (r#""messages": [{"role": "user"}]"#, "field `messages[0]` has no content; a message"),
        (
            r#""messages": [{"role": "user", "content": "u"}, {"role": "assistant", "content": null}]"#,
            "field `messages[1]` has null as content",
        ),
        (r#""messages": [{"role": "user", "content": "u"}]"#, "no message with the role assistant"),
        (
            r#""prompt": [{"role": "user", "content": "u"}], "completion": [{"role": "user", "content": "u"}]"#,
            "field `completion` has no message with the role assistant",
        ),
    ] {
        refused(line(rest), &["line 3: ", part, EXAMPLE]);
        refused(format!("[{ROW},\n{{{rest}}}]"), &["item 1: ", part, EXAMPLE]);
    }
}

#[test]
fn texts_that_are_no_rows() {
    for (text, parts) in [
        ("", &["has no rows", EXAMPLE][..]),
        ("\u{feff}", &["has no rows"]),
        ("\n \r\n", &["has no rows"]),
        ("[]", &["has no rows"]),
        ("3", &["line 1: the number 3 is no row"]),
        ("[[1]]", &["item 0: a list that begins with a number is no row"]),
        (
            "{\"prompt\": \"p\", \"completion\": \"c\"} x",
            &["line 1: no JSON: trailing characters in column 36"],
        ),
        (
            "prompt,completion\np,c\n",
            &["line 1: no JSON: expected value in column 1 of \"prompt,completion\"", EXAMPLE],
        ),
        ("{\"prompt\": NaN}", &["line 1: no JSON: expected value in column 12"]),
        ("{\"prompt\": \"\\ud800\"}", &["line 1: no JSON: "]),
        // A row that is cut off, or that was meant to have several lines.
        (
            "{\"prompt\": \"p\", \"completion\": \"c\"}\n{\"prompt\": \"p\", \"compl",
            &["line 2: the row ends too early", "is cut off"],
        ),
        (
            "{\n  \"prompt\": \"p\",\n  \"completion\": \"c\"\n}\n",
            &["line 1: the row ends too early", "several"],
        ),
        (
            "[{\"prompt\": \"p\", \"completion\": \"c\"},\n {\"prompt\": \"p\"",
            &["item 1: the array ends too early in line 2 column 15", "cut off"],
        ),
        (
            "\n\n[{\"prompt\": \"p\", \"completion\": \"c\"}\n {}]",
            &["item 1: no JSON: expected `,` or `]` in line 4 column 2"],
        ),
        (
            "[{\"prompt\": \"p\", \"completion\": \"c\"}]\n[]",
            &["no JSON: trailing characters in line 2 column 1"],
        ),
        (
            "[{\"prompt\": \"p\", \"completion\": \"c\"}, {\"prompt\": p}]",
            &["item 1: no JSON: expected value in line 1"],
        ),
        ("version https://git-lfs.github.com/spec/v1\noid sha256:0\n", &["line 1", "git lfs pull"]),
    ] {
        refused(text, parts);
    }
    refused("[".repeat(100_000), &["item 0", "recursion limit"]);
    refused(format!("{}1", "{\"a\":".repeat(100_000)), &["line 1", "recursion limit"]);
}

#[test]
fn bytes_that_are_no_utf_8() {
    refused(
        [ROW.as_bytes(), b"\r\n", ROW.as_bytes(), b"\n{\"prompt\": \"\xe9\"}\n"].concat(),
        &["line 3 is not UTF-8"],
    );
    refused([b"[", ROW.as_bytes(), b",\n{\"prompt\": \"\xe9\"}]"].concat(), &["item 1", "line 2", "unicode"]);
    let utf16 = |text: &str| -> Vec<u8> { text.encode_utf16().flat_map(u16::to_le_bytes).collect() };
    for bytes in [
        utf16(&format!("\u{feff}{ROW}")),
        utf16(ROW),
        ROW.encode_utf16().flat_map(u16::to_be_bytes).collect(),
    ] {
        refused(bytes, &["the text is UTF-16, not UTF-8", "iconv"]);
    }
}

#[test]
fn a_row_of_another_form_in_line_10_000() {
    let text = format!("{ROW}\n").repeat(9_999) + "{\"prompt\": \"p\", \"answer\": \"c\"}\n" + ROW;
    refused(text, &["line 10000: no field `completion`, but `answer`"]);
    let array = format!("[{}{{\"prompt\": \"p\", \"answer\": \"c\"}}]", format!("{ROW},\n").repeat(9_999));
    refused(array, &["item 9999: no field `completion`, but `answer`"]);
    let pair = "{\"prompt\": \"p\", \"chosen\": \"a\", \"rejected\": \"b\"}\n";
    let other =
        json!({"chosen": [{"role": "user", "content": "a"}], "rejected": [{"role": "user", "content": "b"}]});
    let file = file(format!("{}{other}\n{pair}", pair.repeat(9_999)));
    let error = read_preferences(&file.1, &Columns::default()).unwrap_err().to_string();
    assert!(error.contains("line 10000: a pair of messages, but line 1 has texts"), "{error}");
}

#[test]
fn files_that_cannot_be_read() {
    let folder = tempfile::tempdir().unwrap();
    for path in [folder.path(), &folder.path().join("none.jsonl"), &folder.path().join("none.parquet")] {
        let error = read_supervised(path, &Columns::default()).unwrap_err().to_string();
        #[cfg(not(feature = "parquet"))]
        if path.extension().is_some_and(|end| end == "parquet") {
            assert!(
                error.contains("build with the feature `parquet`") && error.contains("to_json"),
                "{error}"
            );
            continue;
        }
        assert!(error.starts_with(&format!("cannot read {}", path.display())), "{error}");
    }
}

#[cfg(not(feature = "parquet"))]
#[test]
fn parquet_is_told_by_what_the_file_holds() {
    refused("PAR1\0\0", &["feature `parquet`"]);
}
