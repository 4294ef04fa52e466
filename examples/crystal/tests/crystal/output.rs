//! What is printed, for people and for programs.

use crate::support::{Finished, Workplace, crystal, root, succeed};

#[test]
fn json_is_all_of_stdout() {
    let place = Workplace::new();
    let (config, out) = (place.path("config.toml"), place.path("runs/tiny"));
    let args = ["imitate", "--config", &config, "--out", &out, "--set", "trainer.steps=2", "--json"];
    let trained = succeed(&args);
    assert!(trained.stderr.contains("starting: 2 steps"), "{}", trained.stderr);
    let result = trained.json();
    assert_eq!(
        (&result["system"], &result["stage"], &result["steps"]),
        (&"crystal".into(), &"imitation".into(), &2.into())
    );
    let best = result["best"]["path"].as_str().unwrap();
    assert!(best.starts_with(&out), "{best}");

    let result = succeed(&["evaluate", "--model", best, "--json"]).json();
    for key in ["acc_weighted", "acc_unweighted", "acc_weighted_knowless"] {
        assert!((0.0..=1.0).contains(&result[key].as_f64().unwrap()), "{result}");
    }
    assert_eq!(result["tasks"].as_array().unwrap().len(), 2);
    let files = result["files"].as_array().unwrap();
    let folder = place.path("eval/tiny_ckp-");
    assert!(
        files.len() == 4 && files.iter().all(|file| file.as_str().unwrap().starts_with(&folder)),
        "{files:?}"
    );
}

#[test]
fn quiet_leaves_the_result() {
    let place = Workplace::new();
    let (config, out) = (place.path("config.toml"), place.path("runs/tiny"));
    let args = ["imitate", "--config", &config, "--out", &out, "--set", "trainer.steps=2", "-q"];
    let trained = succeed(&args);
    assert_eq!(trained.stderr, "");
    assert!(trained.stdout.contains("runs/tiny/checkpoints/step-2"), "{}", trained.stdout);

    // lives has no test file, which is told unless nothing is to be told.
    let best = place.path("runs/tiny/checkpoints/best");
    let quiet = succeed(&["evaluate", "--model", &best, "--split", "test", "-q"]);
    assert_eq!(quiet.stderr, "");
    let normal = succeed(&["evaluate", "--model", &best, "--split", "test"]);
    assert!(normal.stderr.starts_with("note: lives (test): left out: "), "{}", normal.stderr);
    assert_eq!(quiet.stdout, normal.stdout);
    for needle in ["task ", "twohop", "acc_weighted", "acc_unweighted", "majority", "eval/tiny_ckp-"] {
        assert!(quiet.stdout.contains(needle), "{}", quiet.stdout);
    }
    assert_eq!(quiet.stdout.matches("\n\n").count(), 2, "tables stand apart\n{}", quiet.stdout);
}

#[test]
fn help_names_the_flags() {
    let help = |args: &[&str], needles: &[&str], absent: &[&str]| {
        let output =
            std::process::Command::new(assert_cmd::cargo::cargo_bin!("crystal")).args(args).output().unwrap();
        assert_eq!(output.status.code(), Some(0), "{args:?}");
        assert!(output.stderr.is_empty(), "{args:?}");
        let text = String::from_utf8(output.stdout).unwrap();
        for needle in needles {
            assert!(text.contains(needle), "{args:?}: {needle} is missing from\n{text}");
        }
        for needle in absent {
            assert!(!text.contains(needle), "{args:?}: {needle} does not belong to\n{text}");
        }
    };
    help(
        &["--help"],
        &["imitate", "reinforce", "evaluate", "demo", "report", "doctor", "arXiv 2310.04921"],
        &[],
    );
    help(&["--version"], &["crystal "], &[]);
    let common = ["--config", "--set", "--out", "--device", "--seed", "--threads", "--json", "--quiet"];
    help(
        &["imitate", "--help"],
        &[&common[..], &["--resume", "--dry-run", "--precision", "--skip-bad-rows", "direct-QA"]].concat(),
        &[],
    );
    let evaluate =
        [&common[..], &["--model", "--split", "--no-baseline", "--skip-bad-rows", "eval/my-run_ckp-500"]]
            .concat();
    help(&["evaluate", "--help"], &evaluate, &["--resume", "--precision", "--dry-run"]);
    help(
        &["demo", "--help"],
        &["--seeds", "--knowledge", "--world", "--out", "--set", "--threads", "--json"],
        &[],
    );

    let nothing = crystal(&["imitate", "--nonsense"]);
    assert_eq!(nothing.code, Some(2));
    assert!(nothing.stderr.contains("--nonsense"), "{}", nothing.stderr);
}

/// `report` and `doctor` take fewer flags than the commands of a run.
fn plain(args: &[&str]) -> Finished {
    let mut command = std::process::Command::new(assert_cmd::cargo::cargo_bin!("crystal"));
    command.current_dir(root()).args(args).output().unwrap().into()
}

#[test]
fn a_run_has_a_report_that_can_be_written_anew() {
    let place = Workplace::new();
    place.trained();
    let report = place.path("runs/tiny/report.html");
    let html = std::fs::read_to_string(&report).unwrap();
    for needle in ["<dd>finished</dd>", "<dd>1 of 1</dd>", "eval/acc/lives", "<td>backward</td>", "predicted"]
    {
        assert!(html.contains(needle), "{needle}");
    }
    std::fs::remove_file(&report).unwrap();
    let again = plain(&["report", &place.path("runs/tiny")]);
    assert_eq!((again.code, again.stdout.trim()), (Some(0), report.as_str()));
    assert!(std::fs::read_to_string(&report).unwrap().contains("<dd>finished</dd>"));
    let run = |name: &str, seed| {
        let (config, out) = (place.path("config.toml"), place.path(&format!("runs/{name}")));
        succeed(&["imitate", "--config", &config, "--out", &out, "--seed", seed, "-q"]);
        let text = std::fs::read_to_string(place.path(&format!("runs/{name}/run.json"))).unwrap();
        serde_json::from_str::<serde_json::Value>(&text).unwrap()["starts"][0].clone()
    };
    let start = run("other", "5");
    let command = start["command"].as_array().unwrap();
    assert!(command.contains(&"imitate".into()) && command.contains(&"5".into()), "{start}");
    let files: Vec<&String> = start["files"].as_object().unwrap().keys().collect();
    for read in ["train.lives.json", "dev.twohop.json", "tokenizer.json", "t5.json"] {
        assert!(files.iter().any(|path| path.ends_with(read)), "{read} is missing from {files:?}");
    }
    let (one, other, out) = (place.path("runs/tiny"), place.path("runs/other"), place.path("compared"));
    let page = plain(&["report", &one, &other, "--out", &out]);
    assert_eq!((page.code, page.stdout.trim()), (Some(0), format!("{out}/report.html").as_str()));
    let html = std::fs::read_to_string(format!("{out}/report.html")).unwrap();
    for needle in ["<td>seed</td>", "eval acc weighted", "95 % interval", "The same questions, by run"] {
        assert!(html.contains(needle), "{needle}");
    }
    let nothing = plain(&["report", &place.path("runs")]);
    assert_eq!(nothing.code, Some(2));
    assert!(nothing.stderr.contains("holds no run (no config.toml in it)"), "{}", nothing.stderr);
}

#[test]
fn a_dry_run_plans_and_leaves_nothing() {
    let place = Workplace::new();
    let (config, out) = (place.path("config.toml"), place.path("runs/tiny"));
    let before = place.snapshot();
    let args = ["imitate", "--config", &config, "--out", &out, "--dry-run", "--json"];
    let plan = succeed(&args).json();
    assert_eq!(place.snapshot(), before);
    assert_eq!(plan["plan"]["steps"], 30);
    assert_eq!(plan["data"].as_array().unwrap().len(), 2);
    assert!(plan["plan"]["tokens_per_step"].as_f64().unwrap() > 32.0);
    assert!(plan["seconds_per_step_estimate"].as_f64().unwrap() > 0.0);
    assert_eq!(plan["problems"].as_array().unwrap().len(), 0);

    // A published shape can be planned for without its weights, but the run could not start.
    let args = ["imitate", "--config", "examples/crystal/configs/3b.toml", "--dry-run", "--json"];
    let missing = crystal(&args);
    assert_eq!(missing.code, Some(2));
    assert_eq!(missing.json()["plan"]["parameters"], 2_851_598_336_u64);
    assert!(missing.stderr.contains("there is no folder t5-3b"), "{}", missing.stderr);
}

#[test]
fn a_dry_run_of_stage_two_needs_no_weights_of_a_published_model() {
    let place = Workplace::new();
    let model = place.trained();
    let before = place.snapshot();
    let plan = succeed(&["reinforce", "--model", &model, "--dry-run", "--json"]).json();
    assert_eq!(place.snapshot(), before);
    assert_eq!((&plan["plan"]["steps"], &plan["problems"]), (&24.into(), &serde_json::json!([])));
    assert_eq!(plan["plan"]["updates_per_step"], 1.5);
    assert_eq!(plan["data"][1]["questions"], 96);

    // Bytes by hand: 16 for each parameter and each of the 1025 of the value head, 4 for each parameter of the
    // reference, and 4 for the step counter of each of the 511 tensors.
    for (name, parameters) in
        [("t5-large", 737_668_096_u64), ("t5-3b", 2_851_598_336), ("t5-11b", 11_307_321_344)]
    {
        let missing = crystal(&["reinforce", "--model", name, "--dry-run", "--json"]);
        assert_eq!(missing.code, Some(2));
        assert!(missing.stderr.contains(&format!("there is no folder {name}")), "{}", missing.stderr);
        let plan = missing.json();
        let memory = &plan["plan"]["memory"];
        let activations = memory["activations"].as_u64().unwrap();
        let expected = 20 * parameters + 16 * 1025 + 4 * 511;
        assert_eq!(plan["memory_total"].as_u64().unwrap() - activations, expected, "{name}");
        assert_eq!(memory["reference"].as_u64(), Some(4 * parameters));
    }
}

#[test]
fn the_doctor_speaks_to_programs() {
    let place = Workplace::new();
    let found = plain(&["doctor", "--json", "--out", &place.path("runs")]);
    assert_eq!(found.code, Some(0), "{}", found.stdout);
    let found = found.json();
    assert_eq!(found["problems"], 0);
    let names: Vec<&str> =
        found["findings"].as_array().unwrap().iter().filter_map(|finding| finding["name"].as_str()).collect();
    for name in ["libtorch", "cuda", "cpu", "threads", "blas", "memory", "out", "disk"] {
        assert!(names.contains(&name), "{name}: {names:?}");
    }
}

/// As UnifiedQA's files have them where the answers are withheld.
#[test]
fn a_split_without_labels_is_left_out_with_a_note() {
    let place = Workplace::new();
    let model = place.trained();
    let hidden = "Q1 \\n (A) x (B) y\t-\nQ2 \\n (A) x (B) y\t-\n";
    place.write("data/lives.test.tsv", hidden);
    let labelled =
        std::fs::read_to_string(root().join("fixtures/world/crystal/uqa/twohop/test.tsv")).unwrap();
    place.write("data/twohop.test.tsv", &labelled);
    let template = format!("data.data_path={}", place.path("data/{task}.{split}.tsv"));
    let out = place.path("unlabelled");
    let args = ["evaluate", "--model", &model, "--split", "test", "--set", &template, "--out", &out];
    let finished = succeed(&args);
    assert!(finished.stderr.contains("note: lives (test): left out: "), "{}", finished.stderr);
    assert!(finished.stderr.contains("there is no label"), "{}", finished.stderr);
    assert!(finished.stdout.contains("twohop") && !finished.stdout.contains("lives"), "{}", finished.stdout);
    // When no task is left, that is an error.
    place.write("data/twohop.test.tsv", hidden);
    let nothing = crystal(&args);
    assert_eq!(nothing.code, Some(1));
    assert!(nothing.stderr.contains("there is no label"), "{}", nothing.stderr);
}
