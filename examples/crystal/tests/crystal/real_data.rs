//! Both stages and the evaluation on real questions, which the project does not contain: they lie beside it, or the test
//! says that it is skipped.

use std::fs;

use approx::assert_abs_diff_eq;
use serde_json::Value;

use crate::support::{Workplace, lines, names, root, succeed, write_t5};

const KNOWLEDGE: [&str; 7] = ["task", "split", "query", "cands", "answer_ix", "answer", "knowledges"];
const INFERENCE: [&str; 8] =
    ["scores_", "probs_", "probs", "pred", "ok", "pred_knowless", "ok_knowless", "rectified"];

/// The keys of the first item in the order of the file, which must be indented by 4.
fn keys(text: &str) -> Vec<&str> {
    assert!(
        text.starts_with("[\n    {\n        \"task\": \"") && text.ends_with("\n    }\n]"),
        "{text:.200}"
    );
    let first = text.split("\n    }").next().unwrap();
    let top = first.lines().filter_map(|line| line.strip_prefix("        \""));
    top.filter_map(|line| line.split_once("\": ")).map(|(key, _)| key).collect()
}

fn read(path: &str) -> (String, Vec<Value>) {
    let text = fs::read_to_string(path).unwrap_or_else(|error| panic!("{path}: {error}"));
    let items = serde_json::from_str(&text).unwrap();
    (text, items)
}

/// Mean of a metric over the first and over the last records that have it.
fn trend(metrics: &[Value], name: &str) -> (f64, f64) {
    let values: Vec<f64> = metrics.iter().filter_map(|line| line.get(name)?.as_f64()).collect();
    assert!(values.len() >= 10, "{name}: {values:?}");
    let mean = |values: &[f64]| values.iter().sum::<f64>() / values.len() as f64;
    (mean(&values[..3]), mean(&values[values.len() - 3..]))
}

#[test]
#[expect(clippy::print_stderr, reason = "a skipped test says so")]
fn quarel_with_statements_by_gpt_3() {
    if !root().join("../shared/data/crystal").is_dir() {
        eprintln!("skipped: ../shared/data/crystal is not there");
        return;
    }
    let place = Workplace::new();
    let t5 = place.path("t5.json");
    write_t5(&root().join("examples/crystal/configs/tiny-t5.json"), t5.as_ref(), serde_json::json!({}));
    let run = place.path("runs/quarel");
    let config = format!("model.config={t5}");
    let mut args =
        vec!["imitate", "--config", "examples/crystal/configs/quarel.toml", "--out", &run, "--set", &config];
    for set in [
        "trainer.steps=40",
        "trainer.eval_every=0",
        "trainer.log_every=1",
        "imitation.batch_size=8",
        "imitation.qk_and_qka_steps=20",
        "imitation.qk_steps=10",
        "lengths.max_knowledge_len=24",
        "evaluation.num_samples=2",
        "trainer.lr=3e-3",
    ] {
        args.extend(["--set", set]);
    }
    succeed(&args);
    let metrics = lines(&format!("{run}/metrics.jsonl"));
    for name in ["train/qk_loss", "train/qka_loss"] {
        let (first, last) = trend(&metrics, name);
        assert!(last < 0.9 * first, "{name}: {first}, then {last}");
    }

    evaluate_in_all_ways(&place);
    evaluate_given_statements(&place);
    reinforce(&place);
}

fn reinforce(place: &Workplace) {
    let (model, run) = (place.path("runs/quarel/checkpoints/best"), place.path("runs/reinforced"));
    let mut args = vec!["reinforce", "--model", &model, "--out", &run, "--json"];
    for set in [
        "reinforcement.normalization_batches=4",
        "reinforcement.ppo.batch_size=8",
        "reinforcement.ppo.rl_steps=4",
        "reinforcement.ppo.cycle_steps=8",
        "reinforcement.trainer.steps=8",
        "reinforcement.trainer.lr=1e-3",
    ] {
        args.extend(["--set", set]);
    }
    assert_eq!(succeed(&args).json()["steps"], 8);
    let metrics = lines(&format!("{run}/metrics.jsonl"));
    let steps: Vec<&Value> = metrics.iter().filter(|line| line.get("train/acc").is_some()).collect();
    assert_eq!(steps.len(), 8);
    for line in &metrics {
        // What is no number has no form in JSON but `null`.
        assert!(line.as_object().unwrap().values().all(|value| !value.is_null()), "{line}");
    }
    // Rewards of a model that has learnt something, on the scale that was measured.
    let raw: Vec<f64> = steps.iter().filter_map(|line| line.get("train/reward/raw")?.as_f64()).collect();
    assert!(raw.len() == 4 && raw.iter().any(|r| *r != 0.0), "{raw:?}");
    let out = place.path("reinforced-evaluation");
    let model = format!("{run}/checkpoints/last");
    let accuracies = succeed(&["evaluate", "--model", &model, "--out", &out, "--json"]).json();
    assert!((0.0..=1.0).contains(&accuracies["acc_weighted"].as_f64().unwrap()));
}

fn evaluate_in_all_ways(place: &Workplace) {
    let model = place.path("runs/quarel/checkpoints/best");
    let folder = place.path("eval/quarel_ckp-40");
    let accuracies = succeed(&["evaluate", "--model", &model, "--json"]).json();
    assert_eq!(names(&folder), ["inference", "knowledge"]);
    let files = ["knowledge_rainier-ckp-1.json", "knowledge_rainier-ckp0.json"];
    assert_eq!(names(&format!("{folder}/knowledge")), files);
    assert_eq!(
        names(&format!("{folder}/inference")),
        files.map(|file| format!(
            "inference_{}.{file}",
            &file["knowledge_".len()..file.len() - ".json".len()]
        ))
    );

    let (text, knowledge) = read(&format!("{folder}/knowledge/knowledge_rainier-ckp0.json"));
    assert_eq!(keys(&text), KNOWLEDGE);
    let (text, inference) =
        read(&format!("{folder}/inference/inference_rainier-ckp0.knowledge_rainier-ckp0.json"));
    assert_eq!(keys(&text), [&KNOWLEDGE[..], &INFERENCE[..], &["selected_knowledge_ix"]].concat());
    let dev = fs::read_to_string(root().join("../shared/data/crystal/uqa/quarel/dev.tsv")).unwrap();
    assert_eq!((knowledge.len(), inference.len()), (dev.lines().count(), dev.lines().count()));
    let mut correct = 0.0;
    for ((line, known), inferred) in dev.lines().zip(&knowledge).zip(&inference) {
        assert_eq!(known["query"].as_str(), line.split('\t').next().map(str::trim));
        for key in KNOWLEDGE {
            assert_eq!(known[key], inferred[key]);
        }
        let statements = known["knowledges"].as_array().unwrap().len();
        assert!(statements <= 2 && inferred["scores_"].as_array().unwrap().len() <= 1 + statements);
        assert_eq!(inferred["ok"] == 1, inferred["pred"] == inferred["answer_ix"]);
        correct += inferred["ok"].as_f64().unwrap();
    }
    let accuracy = accuracies["acc_weighted"].as_f64().unwrap();
    assert_abs_diff_eq!(accuracy, correct / inference.len() as f64, epsilon = 1e-9);
    let (_, baseline) =
        read(&format!("{folder}/inference/inference_rainier-ckp-1.knowledge_rainier-ckp-1.json"));
    assert!(
        baseline.iter().all(|item| item["knowledges"] == serde_json::json!([]) && item["rectified"] == 0)
    );

    // Another task, and each way of combining: the table of all modes agrees with the mode that is in use.
    for mode in ["max", "moe", "poe", "majority"] {
        let out = place.path(&format!("obqa-{mode}"));
        let ensembling = format!("evaluation.ensemble.ensembling={mode}");
        let mut args = vec![
            "evaluate",
            "--model",
            &model,
            "--out",
            &out,
            "--no-baseline",
            "--json",
            "--set",
            &ensembling,
        ];
        args.extend([
            "--split",
            "test",
            "--set",
            "data.eval_tasks=[\"obqa\"]",
            "--set",
            "lengths.max_knowledge_len=12",
        ]);
        let result = succeed(&args).json();
        assert_eq!(result["tasks"][0]["questions"], 250);
        assert_eq!(result["acc_weighted"], result["ensembles"][mode]);
        assert_eq!(names(&format!("{out}/knowledge")), ["knowledge_rainier-ckp0.json"]);
        let (_, items) = read(&format!("{out}/inference/inference_rainier-ckp0.knowledge_rainier-ckp0.json"));
        assert!(items.iter().all(|item| item["cands"].as_array().unwrap().len() == 4));
    }
}

fn evaluate_given_statements(place: &Workplace) {
    let model = place.path("runs/quarel/checkpoints/best");
    let inference = |out: &str, data: &str| {
        let (out, data) = (place.path(out), format!("data.data_path={data}"));
        let result = succeed(&["evaluate", "--model", &model, "--out", &out, "--json", "--set", &data]);
        let files = names(&format!("{out}/inference"));
        // Nothing was written about knowledge, and the pass without it is named after the same file.
        assert_eq!(names(&out), ["inference"]);
        let [bare, with] = &files[..] else { panic!("{files:?}") };
        assert_eq!(bare.replace("-ckp-1.", "-ckp0."), *with);
        let (_, items) = read(&format!("{out}/inference/{with}"));
        (with.clone(), items, result.json())
    };

    // Silver statements, one file a task.
    let template = "../shared/data/crystal/knowledge/knowledge_gkp_gpt3davinci.{split}.{task}.json";
    let (_, items, _) = inference("silver", template);
    let (_, silver) = read(
        &root().join(template.replace("{split}", "dev").replace("{task}", "quarel")).display().to_string(),
    );
    assert_eq!(items.len(), silver.len());
    for (item, silver) in items.iter().zip(&silver) {
        assert_eq!(item["query"], silver["query"]);
        let given = silver["knowledges"].as_array().unwrap();
        assert_eq!(item["knowledges"].as_array().unwrap()[..], given[..given.len().min(2)]);
    }

    // What the evaluation above wrote. Statements come back as texts, so a token may differ from what was sampled.
    let written = place.path("eval/quarel_ckp-40/knowledge/knowledge_rainier-ckp0.json");
    let (name, again, _) = inference("again", &written);
    assert_eq!(name, "inference_rainier-ckp0.knowledge_rainier-ckp0.json");
    let (_, before) = read(&place.path(&format!("eval/quarel_ckp-40/inference/{name}")));
    assert_eq!(again.len(), before.len());
    for (again, before) in again.iter().zip(&before) {
        assert_eq!((&again["knowledges"], &again["answer"]), (&before["knowledges"], &before["answer"]));
        assert_eq!(again["pred_knowless"], before["pred_knowless"]);
    }
}
