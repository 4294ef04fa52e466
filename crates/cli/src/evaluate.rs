//! Responses, judged by rewards.

use std::path::PathBuf;

use clap::Args;
use ruminate::datasets::json as json_files;
use ruminate::datasets::rows::{PromptRow, read_prompts};
use ruminate::models::Strategy;
use ruminate::rewards::Rewarded;
use ruminate::run::{Outcome, Table, print_json};
use serde_json::json;

use crate::train::ppo::rewards;
use crate::using::{ModelArgs, WritingArgs, means, told, with_fields};

#[derive(Debug, Args)]
pub(crate) struct EvaluateArgs {
    #[command(flatten)]
    model: ModelArgs,
    /// File with prompts and answers
    #[arg(long, value_name = "FILE")]
    data: PathBuf,
    /// Put each text to the model as a user's message, by its chat template; short for --set chat.wrap=true
    #[arg(long)]
    chat: bool,
    #[command(flatten)]
    writing: WritingArgs,
}

pub(crate) fn evaluate(args: &EvaluateArgs) -> anyhow::Result<Outcome> {
    let loaded = match args.model.load(args.chat)? {
        Ok(loaded) => loaded,
        Err(outcome) => return Ok(outcome),
    };
    let rewards = rewards(&loaded.config.reward)?;
    let rows = read_prompts(&args.data, &loaded.config.columns)?;
    let mut how = args.writing.config(loaded.config.generation.as_ref(), &loaded.model)?;
    if loaded.config.generation.is_none() && !args.writing.say_how_to_choose() && how.samples_per_prompt == 1
    {
        // What is measured should not depend on a draw, unless it is asked for.
        how.strategy = Strategy::Greedy;
    }
    let out = args.model.run.out.as_deref();
    let Some(written) = loaded.write(&rows, &how, out)? else { return Ok(Outcome::Interrupted) };
    if !loaded.leads() {
        return Ok(Outcome::Done);
    }
    let (mut of_rows, mut texts) = (vec![], vec![]);
    for (row, responses) in rows.iter().zip(&written) {
        of_rows.extend(responses.iter().map(|_| row));
        texts.extend(responses.iter().map(|response| response.text.as_str()));
    }
    let judged = loaded.worker.interruptible(|| Ok(rewards.judge(&of_rows, &texts)?))?;
    let Some(judged) = judged else { return Ok(Outcome::Interrupted) };
    let mut result = json!({ "command": "evaluate", "model": loaded.folder, "rows": rows.len(), "responses": texts.len() });
    result["rewards"] = means(&judged);
    if let Some(out) = out {
        let lines = of_rows.iter().zip(&texts).zip(&judged);
        let line = |((row, text), judged): ((&&PromptRow, &&str), &Rewarded)| {
            with_fields(row, vec![("completion", json!(text)), ("rewards", told(judged))])
        };
        json_files::write_lines(&out.join("completions.jsonl"), &lines.map(line).collect::<Vec<_>>())?;
        json_files::write(&out.join("results.json"), &result)?;
        loaded.forget(Some(out))?;
    }
    if args.model.run.json {
        print_json(&result)?;
    } else {
        let mut table = Table::new(["reward", "mean", "95 % interval"]);
        for (name, of) in result["rewards"].as_object().into_iter().flatten() {
            let number = |key: &str| Table::number(of[key].as_f64().unwrap_or(f64::NAN));
            table.row([name.clone(), number("mean"), format!("{} to {}", number("low"), number("high"))]);
        }
        table.print()?;
    }
    Ok(Outcome::Done)
}
