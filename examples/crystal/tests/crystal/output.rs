//! What is printed, for people and for programs.

use crate::support::{Workplace, crystal, succeed};

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
    help(&["--help"], &["imitate", "evaluate", "demo", "arXiv 2310.04921"], &[]);
    help(&["--version"], &["crystal "], &[]);
    let common = ["--config", "--set", "--out", "--device", "--seed", "--threads", "--json", "--quiet"];
    help(
        &["imitate", "--help"],
        &[&common[..], &["--resume", "--precision", "--skip-bad-rows", "direct-QA"]].concat(),
        &[],
    );
    let evaluate =
        [&common[..], &["--model", "--split", "--no-baseline", "--skip-bad-rows", "eval/my-run_ckp-500"]]
            .concat();
    help(&["evaluate", "--help"], &evaluate, &["--resume", "--precision"]);
    help(
        &["demo", "--help"],
        &["--seeds", "--knowledge", "--world", "--out", "--set", "--threads", "--json"],
        &[],
    );

    let nothing = crystal(&["imitate", "--nonsense"]);
    assert_eq!(nothing.code, Some(2));
    assert!(nothing.stderr.contains("--nonsense"), "{}", nothing.stderr);
}
