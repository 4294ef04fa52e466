use approx::assert_abs_diff_eq;
use serde_json::json;

use super::*;

/// Writes the folder of a run with one validation.
fn run(folder: &Path, config: &str, accuracy: f64, response: &str) {
    fs::create_dir_all(folder).unwrap();
    fs::write(folder.join("config.toml"), config).unwrap();
    let lines = [
        json!({"kind": "train", "step": 0, "time": 1.0, "total_steps": 2, "secs": 1.0, "tokens": 10, "train/loss": 2.0}),
        json!({"kind": "train", "step": 1, "time": 2.0, "total_steps": 2, "secs": 1.0, "tokens": 10, "train/loss": 1.0}),
        json!({"kind": "distribution", "step": 2, "time": 2.0, "name": "eval/acc", "count": 10, "mean": accuracy, "std": 0.5,
            "interval": [0.25, 0.75], "low": 0.0, "high": 1.0, "bins": [5, 5]}),
        json!({"kind": "eval", "step": 2, "time": 3.0, "eval/acc": accuracy}),
        json!({"kind": "end", "step": 2, "time": 3.0, "ending": "finished"}),
    ];
    fs::write(folder.join("metrics.jsonl"), lines.map(|line| line.to_string()).join("\n") + "\n").unwrap();
    let sample =
        json!({"step": 2, "time": 3.0, "sample": {"question": "Why?", "answer": "x", "response": response}});
    fs::write(folder.join("samples.jsonl"), format!("{sample}\n")).unwrap();
    let start = json!({ "version": "1", "cpu_level": if accuracy > 0.5 { "avx2" } else { "avx512" }, "command": [response],
        "files": { "train.tsv": { "bytes": 1, "blake3": format!("0123456789ab{accuracy}") } } });
    fs::write(folder.join("run.json"), json!({ "starts": [start] }).to_string()).unwrap();
}

fn compared(configs: [&str; 2], accuracies: [f64; 2]) -> String {
    let place = tempfile::tempdir().unwrap();
    let folders = ["a", "b"].map(|name| place.path().join("runs").join(name));
    for ((folder, config), (accuracy, response)) in
        folders.iter().zip(configs).zip(accuracies.into_iter().zip(["because", "since"]))
    {
        run(folder, config, accuracy, response);
    }
    fs::read_to_string(write(&folders, &place.path().join("new/page")).unwrap()).unwrap()
}

#[test]
fn differences_are_shown_and_what_is_the_same_is_not() {
    let html = compared(["lr = 0.1\nsteps = 2\n", "steps = 2\n[ppo]\nclip = 0.2\n"], [0.4, 0.6]);
    for needle in [
        "<title>a, b</title>",
        "<td>State</td><td>finished</td><td>finished</td>",
        "<td>lr</td><td>0.1</td><td>–</td>",
        "<td>ppo.clip</td><td>–</td><td>0.2</td>",
        "<td>vector unit</td><td>avx512</td><td>avx2</td>",
        "<th class=\"n\">a (step 2)</th><th>95 % interval</th>",
        "<td>eval/acc</td><td class=\"n\">0.4000</td><td>0.2500\u{a0}to\u{a0}0.7500</td><td class=\"n\">0.6000</td>",
        "<b>train loss</b> <span class=\"key\"><i class=\"c0\"></i>a <data>1</data></span> <span class=\"key\"><i class=\"c1\"></i>b",
        "<dt class=\"title\">a, before step 2</dt><dt>response</dt><dd>because</dd>",
        "<dt class=\"title\">b, before step 2</dt><dt>response</dt><dd>since</dd>",
    ] {
        assert!(html.contains(needle), "{needle} is missing from\n{html}");
    }
    for same in ["<td>steps</td>", "train.tsv", "<td>ruminate</td>", "Mean over seeds"] {
        assert!(!html.contains(same), "{same}");
    }
}

#[test]
fn runs_that_differ_in_seeds_have_a_mean() {
    let configs = ["seed = 1\n[ppo]\nshuffle_seed = 3\n", "seed = 2\n[ppo]\nshuffle_seed = 4\n"];
    let html = compared(configs, [0.4, 0.6]);
    assert!(html.contains("<h2>Mean over seeds</h2>"), "{html}");
    // Half the width: 12.706 * 0.1414 / sqrt(2).
    assert!(
        html.contains("<td>eval/acc</td><td class=\"n\">0.5000</td><td>-0.7706\u{a0}to\u{a0}1.771</td>"),
        "{html}"
    );
    let (mean, half) = mean_of_runs(&[1.0, 2.0, 3.0]);
    assert_abs_diff_eq!(mean, 2.0);
    // `scipy.stats.t.interval(0.95, 2, 2, scipy.stats.sem([1, 2, 3]))`.
    assert_abs_diff_eq!(half, 2.484, epsilon = 1e-3);
    assert_abs_diff_eq!(mean_of_runs(&[0.0, 1.0].repeat(50)).1, 1.9842 * 0.050_252, epsilon = 1e-4);
}

#[test]
fn runs_of_one_name_are_told_apart_by_their_paths() {
    let place = tempfile::tempdir().unwrap();
    let folders = ["x/run", "y/run"].map(|name| place.path().join(name));
    folders.iter().for_each(|folder| run(folder, "", 0.5, "r"));
    let html = fs::read_to_string(write(&folders, place.path()).unwrap()).unwrap();
    assert!(html.contains("x/run") && html.contains("y/run"));
    assert!(html.contains("All settings are the same."));
    // The same settings and seeds are the same run, and no sample of runs.
    assert!(!html.contains("Mean over seeds"));
}

#[test]
fn a_folder_without_a_run_is_refused_and_nothing_is_written() {
    let place = tempfile::tempdir().unwrap();
    run(&place.path().join("a"), "", 0.5, "r");
    let out = place.path().join("out");
    let error = write(&[place.path().join("a"), place.path().join("none")], &out).unwrap_err();
    assert!(matches!(error, RunDirError::NoRun(path) if path.ends_with("none")));
    assert!(!out.exists());
}
