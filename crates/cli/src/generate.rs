//! Responses to prompts.

use std::io::BufRead;
use std::path::PathBuf;

use anyhow::Context;
use clap::Args;
use ruminate::datasets::json as json_files;
use ruminate::datasets::rows::{PromptRow, TextOrMessages, read_prompts};
use ruminate::run::{Outcome, print_json, print_text};
use serde_json::{Map, Value, json};

use crate::using::{ModelArgs, WritingArgs, Written, with_fields};

#[derive(Debug, Args)]
pub(crate) struct GenerateArgs {
    #[command(flatten)]
    model: ModelArgs,
    /// A prompt. Repeatable
    #[arg(long, value_name = "TEXT")]
    prompt: Vec<String>,
    /// File with prompts: rows with `prompt` or `messages`
    #[arg(long, value_name = "FILE", conflicts_with = "prompt")]
    data: Option<PathBuf>,
    /// Put each text to the model as a user's message, by its chat template; short for --set chat.wrap=true
    #[arg(long)]
    chat: bool,
    #[command(flatten)]
    writing: WritingArgs,
}

pub(crate) fn generate(args: &GenerateArgs) -> anyhow::Result<Outcome> {
    let loaded = match args.model.load(args.chat)? {
        Ok(loaded) => loaded,
        Err(outcome) => return Ok(outcome),
    };
    let text = |text: &String| PromptRow {
        prompt: TextOrMessages::Text(text.clone()),
        answer: None,
        fields: Map::new(),
    };
    let rows: Vec<PromptRow> = match &args.data {
        Some(file) => read_prompts(file, &loaded.config.columns)?,
        None if args.prompt.is_empty() => {
            let lines = std::io::stdin().lock().lines().collect::<Result<Vec<_>, _>>();
            let lines = lines.context("cannot read prompts from the standard input")?;
            lines.iter().filter(|line| !line.trim().is_empty()).map(text).collect()
        }
        None => args.prompt.iter().map(text).collect(),
    };
    let how = args.writing.config(loaded.config.generation.as_ref(), &loaded.model)?;
    let out = args.model.run.out.as_deref();
    let Some(written) = loaded.write(&rows, &how, out)? else { return Ok(Outcome::Interrupted) };
    if !loaded.leads() {
        return Ok(Outcome::Done);
    }
    let line = |(row, responses): (&PromptRow, &Vec<Written>)| {
        let all: Vec<Value> = responses.iter().map(|response| json!(response)).collect();
        let completion = responses.first().map(|response| json!(response.text)).unwrap_or_default();
        let mut fields = vec![("completion", completion)];
        match all.as_slice() {
            [one] => fields.push(("finish_reason", one["finish_reason"].clone())),
            _ => fields.push(("completions", Value::Array(all))),
        }
        with_fields(row, fields)
    };
    let lines: Vec<Map<String, Value>> = rows.iter().zip(&written).map(line).collect();
    match out {
        Some(out) => {
            let file = out.join("completions.jsonl");
            json_files::write_lines(&file, &lines)?;
            loaded.forget(Some(out))?;
            if args.model.run.json {
                print_json(&json!({ "command": "generate", "rows": lines.len(), "file": file }))?;
            } else {
                print_text(&file.display().to_string())?;
            }
        }
        None if args.model.run.json || args.data.is_some() => {
            lines.iter().try_for_each(print_json)?;
        }
        None => {
            for response in written.iter().flatten() {
                print_text(&response.text)?;
            }
        }
    }
    Ok(Outcome::Done)
}
