//! Probabilities of completions.

use std::path::{Path, PathBuf};

use clap::Args;
use ruminate::algorithms::Error;
use ruminate::datasets::json as json_files;
use ruminate::datasets::rows::{Columns, PromptRow, read_prompts};
use ruminate::models::{Policy, ScoreOptions};
use ruminate::rewards::Rewarded;
use ruminate::rewards::configured::WeightedRewards;
use ruminate::run::{ConfigError, Outcome, print_json, print_result};
use ruminate::tch::{self, Kind};
use serde_json::{Map, Value, json};

use crate::using::{ModelArgs, UseConfig, means, told, with_fields};

#[derive(Debug, Args)]
pub(crate) struct ScoreArgs {
    #[command(flatten)]
    model: ModelArgs,
    /// File with rows of `prompt` and `completion`
    #[arg(long, value_name = "FILE")]
    data: PathBuf,
    /// Put each text to the model as a user's message, by its chat template; short for --set chat.wrap=true
    #[arg(long)]
    chat: bool,
}

pub(crate) fn score(args: &ScoreArgs) -> anyhow::Result<Outcome> {
    args.model.run.refuse(&["--nproc"])?;
    let loaded = match args.model.load(args.chat)? {
        Ok(loaded) => loaded,
        Err(outcome) => return Ok(outcome),
    };
    let rows = read_prompts(&args.data, &loaded.config.columns)?;
    let texts = completions(&rows, &loaded.config.columns, &args.data)?;
    let judged = loaded.worker.interruptible(|| judge(&loaded.config, &rows, &texts))?;
    let Some(judged) = judged else { return Ok(Outcome::Interrupted) };
    let examples = rows.iter().zip(&texts).map(|(row, text)| loaded.encoder.scored(&row.prompt, text));
    let examples = examples.collect::<anyhow::Result<Vec<_>>>()?;
    let mut observer = loaded.worker.console();
    let scored = loaded.worker.interruptible(|| {
        let mut sums: Vec<(f64, u64)> = vec![];
        for batch in examples.chunks(loaded.config.batch_size) {
            let scores = tch::no_grad(|| loaded.model.score(batch, ScoreOptions::default()))?;
            let all: Vec<f64> =
                Vec::try_from(scores.log_probs.f_sum_dim_intlist(1i64, false, Kind::Double)?)?;
            sums.extend(all.into_iter().zip(batch).map(|(sum, of)| (sum, of.target.len() as u64)));
            let (done, total) = (sums.len() as u64, examples.len() as u64);
            observer.progress("scores", done, total).map_err(Error::Observer)?;
        }
        Ok(sums)
    })?;
    let Some(scored) = scored else { return Ok(Outcome::Interrupted) };
    let line = |i: usize| {
        let (sum, tokens) = scored[i];
        let mut fields = vec![("log_prob", json!(sum)), ("tokens", json!(tokens))];
        fields.extend(judged.as_ref().map(|judged| ("rewards", told(&judged[i]))));
        with_fields(&rows[i], fields)
    };
    let lines: Vec<Map<String, Value>> = (0..rows.len()).map(line).collect();
    let (sum, tokens) = scored.iter().fold((0.0, 0), |(sum, all), (of, count)| (sum + of, all + count));
    let mut result = json!({
        "command": "score", "rows": rows.len(), "tokens": tokens,
        "log_prob": sum, "log_prob_per_token": sum / tokens as f64, "perplexity": (-sum / tokens as f64).exp(),
    });
    if let Some(judged) = &judged {
        result["rewards"] = means(judged);
    }
    if let Some(out) = &args.model.run.out {
        let file = out.join("scores.jsonl");
        json_files::write_lines(&file, &lines)?;
        result["file"] = json!(file);
    } else if !args.model.run.json {
        lines.iter().try_for_each(print_json)?;
    }
    print_result(Map::new(), &result, args.model.run.json)?;
    Ok(Outcome::Done)
}

/// The completions of rows.
fn completions(rows: &[PromptRow], columns: &Columns, file: &Path) -> anyhow::Result<Vec<String>> {
    let completion = |(i, row): (usize, &PromptRow)| {
        let text = row.fields.get(&columns.completion).and_then(Value::as_str);
        text.map(str::to_owned).ok_or_else(|| {
            let reason = format!("{}: row {} has no text in `{}`", file.display(), i + 1, columns.completion);
            ConfigError::invalid(reason)
        })
    };
    Ok(rows.iter().enumerate().map(completion).collect::<Result<_, _>>()?)
}

/// Judgements of completions, where there are rewards.
fn judge(config: &UseConfig, rows: &[PromptRow], texts: &[String]) -> anyhow::Result<Option<Vec<Rewarded>>> {
    if config.reward.is_empty() {
        return Ok(None);
    }
    let rows: Vec<&PromptRow> = rows.iter().collect();
    let texts: Vec<&str> = texts.iter().map(String::as_str).collect();
    Ok(Some(WeightedRewards::new(&config.reward)?.judge(&rows, &texts)?))
}
