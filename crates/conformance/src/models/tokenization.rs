//! Text to ids and back.

use std::path::Path;

use ruminate_models::{TokenId, Tokenizer, Truncate, clean_up_spaces};
use serde_json::Value;

use super::{list, parse, text};
use crate::Outcome;
use crate::compare::{Check, equal};
use crate::file::GoldenFile;

pub(super) fn run(folder: &Path) -> Check<Outcome> {
    let mut outcome = Outcome::default();
    let mut files: Vec<_> =
        std::fs::read_dir(folder)?.map(|entry| Ok(entry?.path())).collect::<Check<_>>()?;
    files.retain(|file| file.extension().is_some_and(|e| e == "json"));
    files.sort();
    for file in files {
        let json = GoldenFile::read(&file)?.content().clone();
        let root = folder.parent().unwrap_or(folder);
        let tokenizer = Tokenizer::open(&root.join(text(&json["tokenizer"])?))?;
        let stem = file.file_stem().map(|s| s.to_string_lossy().into_owned()).unwrap_or_default();
        for (i, case) in list(&json["cases"])?.iter().enumerate() {
            outcome.case(format!("{stem} {i}"), tokenization_case(&tokenizer, case));
        }
        for (i, case) in list(&json["truncated"])?.iter().enumerate() {
            outcome.case(format!("{stem} truncated {i}"), truncation_case(&tokenizer, case));
        }
    }
    Ok(outcome)
}

fn tokenization_case(tokenizer: &Tokenizer, case: &Value) -> Check {
    let (input, ids): (&str, Vec<TokenId>) = (text(&case["text"])?, parse(&case["ids"])?);
    equal("ids", &tokenizer.encode(input)?, &ids)?;
    equal("tokens", &tokenizer.tokens(input)?, &parse::<Vec<String>>(&case["tokens"])?)?;
    equal(
        "ids_without_special",
        &tokenizer.encode_plain(input)?,
        &parse::<Vec<TokenId>>(&case["ids_without_special"])?,
    )?;
    let decoded = tokenizer.decode(&ids, true)?;
    equal("decoded_skip_special", &decoded.as_str(), &text(&case["decoded_skip_special"])?)?;
    equal(
        "decoded_keep_special",
        &tokenizer.decode(&ids, false)?.as_str(),
        &text(&case["decoded_keep_special"])?,
    )?;
    equal("decoded_cleaned", &clean_up_spaces(&decoded).as_str(), &text(&case["decoded_cleaned"])?)
}

fn truncation_case(tokenizer: &Tokenizer, case: &Value) -> Check {
    let ids = tokenizer.encode_truncated(text(&case["text"])?, parse(&case["max_length"])?, Truncate::End)?;
    equal("ids", &ids, &parse::<Vec<TokenId>>(&case["ids"])?)
}
