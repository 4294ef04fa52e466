//! Training on a data set of our own, and what the trained reward models say.

use std::path::Path;

use approx::assert_abs_diff_eq;

use crate::support::{Workplace, lines, mario, succeed};

#[test]
fn the_supervised_stage_trains_validates_and_resumes() {
    let place = Workplace::new();
    let (config, out) = (place.path("config.toml"), place.path("runs/sft"));
    let set = "sft.training.max_length=24";
    let args = ["sft", "--config", &config, "--out", &out, "--set", set];
    let plan = succeed(&[&args[..], &["--dry-run", "--json"]].concat()).json();
    assert!(!Path::new(&out).exists(), "{plan}");
    let shared = succeed(&[&args[..], &["--dry-run", "--json", "--nproc", "2"]].concat()).json();
    // Two processes are through with the rows in half the steps.
    assert_eq!([&plan, &shared].map(|of| of["plan"]["steps"].as_u64()), [Some(24), Some(12)]);

    let result = succeed(&[&args[..], &["--json", "-q"]].concat()).json();
    // 48 rows in batches of 4, twice.
    assert_eq!(result["steps"], 24);
    let log = lines(&format!("{out}/op_scores_val_greedy.txt"));
    assert!(log.len() >= 6, "{log:?}");
    for line in &log {
        let (step, rest) = line.strip_prefix("Step ").unwrap().split_once(" - num_sents: ").unwrap();
        assert!(step.parse::<u64>().unwrap() <= 24 && rest.contains(" num_words: "), "{line}");
        let accuracy: f64 = rest.split_once("  Accuracy: ").unwrap().1.parse().unwrap();
        assert!((0.0..=100.0).contains(&accuracy), "{line}");
    }
    let best = result["best"]["path"].as_str().unwrap();
    assert!(Path::new(best).join("tokenizer.json").is_file());
    succeed(&["report", &out]);

    // Everything about the model is read from its run: data set, gold rows, lengths.
    let results = place.path("results");
    let judged = succeed(&["evaluate", "--model", best, "--out", &results, "--json", "-q"]).json();
    assert_eq!((&judged["dataset"], &judged["questions"]), (&"quarel".into(), &6.into()), "{judged}");
    let log = lines(&format!("{results}/eval_reward_scores_test_greedy.txt"));
    let words: f64 = log[0].split("num_words: ").nth(1).unwrap().split(' ').next().unwrap().parse().unwrap();
    assert!(words <= 24.0, "{log:?}");
    assert!(!Path::new(&results).join("texts.jsonl").exists());
    // Elsewhere, nothing tells how it was trained.
    let elsewhere = place.path("elsewhere");
    std::fs::create_dir(&elsewhere).unwrap();
    for file in ["model.safetensors", "config.json", "tokenizer.json"] {
        std::fs::copy(Path::new(best).join(file), Path::new(&elsewhere).join(file)).unwrap();
    }
    let refused = mario(&["evaluate", "--model", &elsewhere, "--out", &results]);
    assert_eq!(refused.code, Some(2), "{}", refused.stderr);
    assert!(
        refused.stderr.contains("how it was trained") && refused.stderr.contains("--config"),
        "{}",
        refused.stderr
    );
    let stored = format!("{out}/config.toml");
    succeed(&["evaluate", "--model", &elsewhere, "--out", &results, "--config", &stored, "-q"]);
    let asked = mario(&["evaluate", "--model", best, "--out", &results, "--condition", "best"]);
    assert!(
        asked.code == Some(2) && asked.stderr.contains("`_TOKEN0_00000`, which the tokenizer lacks"),
        "{}",
        asked.stderr
    );

    succeed(&["sft", "--out", &out, "--resume", "-q"]);
    let wrong = mario(&["reward-model", "--mode", "i2o", "--out", &out, "--resume"]);
    assert_eq!(wrong.code, Some(2), "{}", wrong.stderr);
    assert!(wrong.stderr.contains("mario sft"), "{}", wrong.stderr);
}

#[test]
fn reward_models_learn_and_judge() {
    let place = Workplace::new();
    let config = place.path("config.toml");
    let mut folders = vec![];
    for mode in ["i2o", "ir2o"] {
        let out = place.path(&format!("runs/{mode}"));
        let epochs = format!("{mode}.training.epochs=20");
        let args = [
            "reward-model",
            "--mode",
            mode,
            "--config",
            &config,
            "--out",
            &out,
            "--set",
            &epochs,
            "--json",
            "-q",
        ];
        let result = succeed(&args).json();
        assert_eq!((&result["stage"], &result["steps"]), (&mode.into(), &240.into()));
        let log = lines(&format!("{out}/op_scores_val.txt"));
        assert!(log.iter().all(|line| line.contains(" -  Accuracy: ")), "{log:?}");
        // Only the rationale tells the weather.
        if mode == "ir2o" {
            assert_eq!(result["best"]["score"], 100.0, "{log:?}");
        }
        // The best checkpoint is the first with that accuracy; the last is surest.
        folders.push(result["last"].as_str().unwrap().to_string());
    }
    let out = place.path("results");
    let refused = mario(&["evaluate", "--model", &folders[0], "--out", &out]);
    assert_eq!(refused.code, Some(2), "{}", refused.stderr);
    assert!(
        refused.stderr.contains("writes no rationales") && refused.stderr.contains("mario train"),
        "{}",
        refused.stderr
    );
    let models = [format!("rewards.i2o={}", folders[0]), format!("rewards.ir2o={}", folders[1])];
    let args = [
        "evaluate",
        "--gold-data",
        "--config",
        &config,
        "--out",
        &out,
        "--name",
        "gold",
        "--set",
        &models[0],
        "--set",
        &models[1],
        "--json",
    ];
    let result = succeed(&args).json();
    assert_eq!(result["accuracy"]["mean"], 100.0);
    let consistency = result["scores"]["quarel-rationale-quality-continuous"]["mean"].as_f64().unwrap();
    assert!(consistency > 0.25 && consistency <= 1.0, "{result}");
    // Of accuracy (100), consistency and diversity (no repetition in so short a text).
    let expected = (200.0 + 50.0 * (consistency + 1.0)) / 3.0;
    assert_abs_diff_eq!(result["normalised_average"]["mean"].as_f64().unwrap(), expected, epsilon = 1e-9);
    // In half the precision, on a device of its own.
    let half = format!("rewards.ir2o={{folder=\"{}\",device=\"cpu\",precision=\"bf16\"}}", folders[1]);
    let halved = succeed(&[&args[..], &["--set", &half]].concat()).json();
    let close = halved["scores"]["quarel-rationale-quality-continuous"]["mean"].as_f64().unwrap();
    assert!(close != consistency, "{halved}");
    assert_abs_diff_eq!(close, consistency, epsilon = 0.02);
    let table = lines(&format!("{out}/eval_output_othergold.csv"));
    assert_eq!(
        table[0],
        "question,model_response,correctness,num_sents,num_words,quarel-rationale-quality-continuous,diversity"
    );
    assert_eq!(table.len(), 1 + 12);
    let names = ["--rewards", "quarel-rationale-quality-discrete,num_words"];
    let named = succeed(&[&args[..], &names].concat()).json();
    let scores = &named["scores"];
    assert!(scores["num_words"]["mean"].is_number() && scores.get("diversity").is_none(), "{named}");
}

#[test]
fn wrong_input_is_explained() {
    let place = Workplace::new();
    let (config, out) = (place.path("config.toml"), place.path("out"));
    let responses =
        place.write("r.jsonl", r#"{"0": {"question": "Q", "predicted_label": "no", "gold_label": "(A)"}}"#);
    let evaluate = ["evaluate", "--responses", &responses, "--config", &config, "--out", &out];
    for (args, code, reason) in [
        (evaluate.to_vec(), 1, "item 0: missing field `predicted_rationale`"),
        ([&evaluate[..], &["--format", "yaml"]].concat(), 2, "unknown format `yaml`"),
        ([&evaluate[..], &["--dataset", "csqa"]].concat(), 2, "unknown data set `csqa`"),
        ([&evaluate[..], &["--set", "rewards.i2o=x"]].concat(), 2, "name both rewards.i2o and rewards.ir2o"),
        ([&evaluate[..], &["--gold", "nowhere.jsonl"]].concat(), 1, "cannot read nowhere.jsonl"),
        ([&evaluate[..], &["--rewards", "beauty"]].concat(), 2, "there is no reward `beauty`"),
        ([&evaluate[..], &["--rewards", "cola_grammar"]].concat(), 2, "RoBERTa"),
        ([&evaluate[..], &["--rewards", "plausibility"]].concat(), 2, "rewards.vera"),
        ([&evaluate[..], &["--split", "dev,test"]].concat(), 2, "belong to one split"),
        ([&evaluate[..], &["--checkpoints", "all"]].concat(), 2, "cannot be used with '--checkpoints"),
        (vec!["evaluate", "--model", &out, "--checkpoints", "best"], 2, "steps such as 1000,2000"),
        (vec!["evaluate", "--model", &out, "--checkpoints", "all"], 2, "there is no checkpoint folder"),
        (
            [&evaluate[..], &["--set", "unsupported.task_loss_coef=1.0"]].concat(),
            2,
            "looks for the answer's place in vain",
        ),
        (
            [&evaluate[..], &["--set", "unsupported.use_demonstrations=true"]].concat(),
            2,
            "not part of the published code",
        ),
        (vec!["sft", "--config", &config], 2, "--out"),
        (vec!["sft", "--out", &out], 2, "name exactly one of model.pretrained"),
        (
            vec!["sft", "--config", &config, "--out", &out, "--set", "sft.training.batch_size=0"],
            2,
            "batch_size",
        ),
        (
            vec!["sft", "--config", &config, "--out", &out, "--set", "data.dataset=qasc"],
            1,
            "qasc/raw/train.jsonl",
        ),
    ] {
        let finished = mario(&args);
        assert_eq!(finished.code, Some(code), "{args:?}: {}", finished.stderr);
        assert!(finished.stderr.contains(reason), "{args:?}: {}", finished.stderr);
    }
    assert!(!Path::new(&out).exists());
}
