//! Real data, which the project does not contain: it lies beside it, or the tests say that they are skipped.

use std::path::PathBuf;

use approx::abs_diff_eq;
use serde_json::Value;

use crate::support::{Workplace, lines, root, succeed};

#[expect(clippy::print_stderr, reason = "a skipped test says so")]
pub(crate) fn data() -> Option<PathBuf> {
    let data = root().join("../shared/data/mario");
    if !data.is_dir() {
        eprintln!("skipped: ../shared/data/mario is not there");
    }
    data.is_dir().then_some(data)
}

/// Diversity from its definition, on words.
fn diversity(rationale: &str) -> f64 {
    let words: Vec<&str> = rationale.split_whitespace().collect();
    (2..=4)
        .filter(|&n| words.len() >= n)
        .map(|n| {
            let all: Vec<&[&str]> = words.windows(n).collect();
            let distinct = (0..all.len()).filter(|&i| !all[..i].contains(&all[i])).count();
            distinct as f64 / all.len() as f64
        })
        .product()
}

#[test]
fn responses_of_other_models_give_what_their_rows_say() {
    let Some(data) = data() else { return };
    let place = Workplace::new();
    let out = place.path("results");
    for dataset in ["strategyqa", "quarel", "obqa", "numersense", "qasc"] {
        let gold = data.join(dataset).join("raw/test.jsonl").display().to_string();
        for (name, file, format) in [
            ("gpt3", "gpt3/test_gpt3_responses.jsonl".to_string(), "jsonl"),
            ("flant5", "flant5/test_flant5large_responses.jsonl".to_string(), "jsonl"),
            ("llama", format!("llama/llama-7b_{dataset}_test_output.jsonl"), "llama_json"),
        ] {
            let path = data.join(dataset).join(file);
            let (responses, name) = (path.display().to_string(), format!("{dataset}-{name}"));
            let args = [
                "evaluate",
                "--dataset",
                dataset,
                "--gold",
                &gold,
                "--responses",
                &responses,
                "--format",
                format,
                "--out",
                &out,
                "--name",
                &name,
                "--json",
                "--set",
                "evaluation.resamples=20",
            ];
            let result = succeed(&args).json();
            assert_eq!(
                (&result["responses"], &result["questions"], &result["skipped"]),
                (&100.into(), &100.into(), &0.into())
            );

            let text = std::fs::read_to_string(&path).unwrap();
            let rows: Vec<Value> = match format {
                "llama_json" => text.lines().map(|line| serde_json::from_str(line).unwrap()).collect(),
                _ => serde_json::from_str::<Value>(&text)
                    .unwrap()
                    .as_object()
                    .unwrap()
                    .values()
                    .cloned()
                    .collect(),
            };
            let said = |row: &Value| -> (bool, f64) {
                let of = |key: &str| row[key].as_str().unwrap().to_string();
                if format == "jsonl" {
                    return (
                        of("predicted_label") == of("gold_label"),
                        diversity(&of("predicted_rationale")),
                    );
                }
                let output = of("trunc_output");
                let marker =
                    if dataset == "strategyqa" { "\nA: So the answer is" } else { "So the answer is" };
                let (rationale, label) = output.split_once(marker).unwrap_or((&output, ""));
                let label = label.split("So the answer is").next().unwrap().replace([':', '.'], "");
                (label.trim().eq_ignore_ascii_case(&of("answer")), diversity(rationale))
            };
            let said: Vec<_> = rows.iter().map(said).collect();
            let mean =
                |of: &dyn Fn(&(bool, f64)) -> f64| said.iter().map(of).sum::<f64>() / said.len() as f64;
            let near = |value: &Value, expected: f64| {
                let value = value.as_f64().unwrap();
                assert!(abs_diff_eq!(value, expected, epsilon = 1e-9), "{name}: {value}, not {expected}");
            };
            near(&result["accuracy"]["mean"], mean(&|(correct, _)| f64::from(u8::from(*correct)) * 100.0));
            near(&result["scores"]["diversity"]["mean"], mean(&|(_, diversity)| *diversity));
            let interval = &result["accuracy"]["interval"];
            assert!(interval["low"].as_f64() <= result["accuracy"]["mean"].as_f64());
            assert!(interval["high"].as_f64() >= result["accuracy"]["mean"].as_f64());
        }
    }
    let written = lines(&format!("{out}/eval_reward_scores_other_outputs.txt"));
    assert_eq!(written.len(), 15);
    assert!(
        written[0].starts_with(
            "Name strategyqa-gpt3 - diversity: 0.95 num_sents: 3.05 num_words: 30.14  Accuracy: "
        )
    );
}

/// Gives the workplace's model the vocabulary of the tokenizer that lies beside the data.
pub(crate) fn tiny_model(place: &Workplace) {
    let model = place.path("t5.json");
    let tiny = std::fs::read_to_string(root().join("examples/crystal/configs/tiny-t5.json")).unwrap();
    let mut tiny: Value = serde_json::from_str(&tiny).unwrap();
    let small: Value = serde_json::from_str(&std::fs::read_to_string(&model).unwrap()).unwrap();
    for key in ["d_model", "d_kv", "d_ff", "num_heads", "num_layers", "num_decoder_layers"] {
        tiny[key] = small[key].clone();
    }
    place.write("t5.json", &tiny.to_string());
}

#[test]
fn a_small_model_trains_on_real_rows() {
    let Some(_) = data() else { return };
    let place = Workplace::new();
    tiny_model(&place);
    let model = place.path("t5.json");
    for (command, stage) in [(vec!["sft"], "sft"), (vec!["reward-model", "--mode", "ir2o"], "ir2o")] {
        let out = place.path(stage);
        let sets = [
            format!("{stage}.model.config={model}"),
            format!("{stage}.training.epochs=0"),
            format!("{stage}.trainer.steps=40"),
            format!("{stage}.trainer.eval_every=0"),
            format!("{stage}.trainer.log_every=1"),
            format!("{stage}.trainer.lr=3e-3"),
        ];
        let mut args = command;
        args.extend(["--config", "examples/mario/configs/tiny.toml", "--out", &out, "-q", "--json"]);
        sets.iter().for_each(|set| args.extend(["--set", set]));
        let max_length = "sft.training.max_length=32";
        args.extend(["--set", max_length]);
        assert_eq!(succeed(&args).json()["steps"], 40);
        let metrics = lines(&format!("{out}/metrics.jsonl"));
        let losses: Vec<f64> = metrics
            .iter()
            .filter_map(|line| serde_json::from_str::<Value>(line).unwrap().get("train/lm_loss")?.as_f64())
            .collect();
        let mean = |values: &[f64]| values.iter().sum::<f64>() / values.len() as f64;
        assert_eq!(losses.len(), 40);
        assert!(mean(&losses[35..]) < 0.9 * mean(&losses[..5]), "{losses:?}");
    }
}

/// Rationales end in a blank where the consistency reward reads them, and do not in training; T5 must not see the difference.
#[test]
#[expect(clippy::print_stderr, reason = "a skipped test says so")]
fn the_tokenizer_forgets_blanks_at_the_end() {
    let folder = root().join("../shared/golden/models/t5_v10_tied");
    if !folder.is_dir() {
        eprintln!("skipped: ../shared/golden is not there");
        return;
    }
    let tokenizer = ruminate::models::Tokenizer::open(&folder).unwrap();
    let encode = |text: &str| tokenizer.encode(text).unwrap();
    assert_eq!(encode("Lead is dense. "), encode("Lead is dense."));
    assert_eq!(encode("Lead  is dense."), encode("Lead is dense."));
}
