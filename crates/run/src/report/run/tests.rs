use std::fmt::Write;
use std::time::{Duration, Instant};

use super::*;

fn folder(metrics: &str, samples: &str) -> tempfile::TempDir {
    let folder = tempfile::tempdir().unwrap();
    fs::write(folder.path().join("config.toml"), "lr = 1e-5 # <b>\n").unwrap();
    fs::write(folder.path().join("metrics.jsonl"), metrics).unwrap();
    fs::write(folder.path().join("samples.jsonl"), samples).unwrap();
    folder
}

fn report(folder: &Path) -> String {
    fs::read_to_string(write(folder).unwrap()).unwrap()
}

const METRICS: &str = r#"{"kind":"eval","step":0,"time":1.0,"eval/loss":3.5,"eval/acc/obqa":0.25,"eval/acc/csqa":0.2}
{"kind":"train","step":0,"time":2.0,"total_steps":1000,"secs":1.0,"tokens":500,"train/loss":3.25,"train/lr":1e-5,"time/forward":0.4,"time/evaluation":1.0}
{"kind":"train","step":10,"time":12.0,"total_steps":1000,"secs":9.0,"tokens":4500,"train/loss":2.25,"train/lr":1e-5,"reward/mean":0.5,"kl/mean":null,"time/forward":3.6}
"#;

#[test]
fn a_report_tells_what_the_files_tell() {
    let folder =
        folder(METRICS, "{\"step\":0,\"sample\":{\"question\":\"Why?\"}}\n{\"step\":5,\"sample\":1}\n{\"st");
    std::fs::create_dir(folder.path().join("checkpoints")).unwrap();
    std::os::unix::fs::symlink("step-0", folder.path().join("checkpoints/best")).unwrap();
    let html = report(folder.path());
    for needle in [
        "<dd>interrupted</dd>",
        "<dd>11 of 1\u{202f}000</dd>",
        "<dd>12 s</dd>",
        "<dd>5.00 k</dd>",
        "<dd>500</dd>",
        // Training and validation share a chart, tasks share one, other groups have a section.
        "<b>loss</b> <span class=\"key\"><i class=\"c0\"></i>train <data>2.250</data></span> \
         <span class=\"key\"><i class=\"c1\"></i>eval <data>3.500</data></span>",
        "<b>acc</b> <span class=\"key\"><i class=\"c1\"></i>eval csqa <data>0.2000</data></span> \
         <span class=\"key\"><i class=\"c2\"></i>eval obqa",
        "<h2>reward</h2>",
        "<td>best</td><td class=\"n\">0</td>",
        "<td>eval/acc/obqa</td><td class=\"n\">0.2500</td>",
        "<td>forward</td><td class=\"n\">4.0</td><td class=\"n\">33.3</td>",
        "<td>everything else</td><td class=\"n\">7.0</td>",
        "Samples before step 5",
        "The same before step 0",
        "lr = 1e-5 # &lt;b&gt;",
    ] {
        assert!(html.contains(needle), "{needle} is missing from\n{html}");
    }
    assert!(!html.contains("<h2>kl</h2>"), "what never was a number has no chart");
}

#[test]
fn the_end_is_told() {
    for ending in ["finished", "stopped"] {
        let end = format!(
            "{{\"kind\":\"end\",\"step\":11,\"time\":14.0,\"ending\":\"{ending}\",\"time/checkpoint\":2.0}}\n"
        );
        let folder = folder(&format!("{METRICS}{end}"), "");
        let html = report(folder.path());
        assert!(html.contains(&format!("<dd>{ending}</dd>")) && html.contains("<dd>14 s</dd>"), "{html}");
        assert!(html.contains("<td>checkpoint</td>"));
    }
}

#[test]
fn a_run_at_work_is_seen_from_another_process() {
    let folder = folder("", "");
    let dir = RunDir::create(folder.path(), &toml::Table::new()).unwrap();
    assert!(report(folder.path()).contains("<dd>running</dd>"));
    drop(dir);
    assert!(report(folder.path()).contains("<dd>interrupted</dd>"));
}

#[test]
fn a_folder_without_a_run_is_refused() {
    let folder = tempfile::tempdir().unwrap();
    assert!(matches!(write(folder.path()), Err(RunDirError::NoRun(_))));
    assert_eq!(fs::read_dir(folder.path()).unwrap().count(), 0);
}

#[test]
fn damaged_lines_are_passed_over() {
    let folder = folder(&format!("garbage\n[1]\n{{}}\n{METRICS}\u{0}\n"), "null\n{\"step\":-1}\n");
    assert!(report(folder.path()).contains("<dd>11 of 1\u{202f}000</dd>"));
    fs::write(folder.path().join("metrics.jsonl"), [0xff, 0xfe, b'\n']).unwrap();
    assert!(report(folder.path()).contains("<dd>0</dd>"));
}

#[test]
fn a_hundred_thousand_steps_make_a_small_page_soon() {
    let mut metrics = String::new();
    for step in 0..100_000u32 {
        let (time, loss) =
            (f64::from(step) * 0.5, 3.0 / (1.0 + f64::from(step) * 1e-3) + f64::from(step % 7) * 0.01);
        let _ = write!(
            metrics,
            "{{\"kind\":\"train\",\"step\":{step},\"time\":{time},\"total_steps\":100000,\"secs\":0.5,\"tokens\":4096"
        );
        for name in ["loss", "qk_loss", "qka_loss", "grad_norm", "lr", "kl", "reward", "entropy"] {
            let _ = write!(metrics, ",\"train/{name}\":{loss}");
        }
        metrics.push_str("}\n");
    }
    let folder = folder(&metrics, "");
    let started = Instant::now();
    let html = report(folder.path());
    let taken = started.elapsed();
    assert!(html.len() < 500_000, "{} bytes", html.len());
    // A second on an idle machine.
    assert!(taken < Duration::from_secs(5), "{taken:?}");
    assert!(html.contains("100\u{202f}000 of 100\u{202f}000"));
}

#[test]
fn numbers_are_for_people() {
    assert_eq!((group(999), group(1_234_567)), ("999".into(), "1\u{202f}234\u{202f}567".into()));
    assert_eq!((short(999.0), short(1_234_567.0)), ("999".into(), "1.23 M".into()));
}

#[test]
fn the_same_questions_stand_side_by_side_and_intervals_beside_values() {
    let sample = |step: u64, response: &str| {
        let sample =
            serde_json::json!({"task": "t", "prompt": "Why?", "response": response, "acc": 0.123456});
        serde_json::json!({"step": step, "sample": sample}).to_string() + "\n"
    };
    let metrics = format!(
        "{METRICS}{}\n{}\n",
        r#"{"kind":"distribution","step":20,"time":13.0,"name":"eval/acc/obqa","count":9,"mean":0.5,"std":0.1,"interval":[0.4,0.6],"low":0.0,"high":1.0,"bins":[4,5]}"#,
        r#"{"kind":"eval","step":20,"time":13.0,"eval/acc/obqa":0.5}"#
    );
    let folder = folder(&metrics, &(sample(0, "because") + &sample(20, "since")));
    let start = serde_json::json!({"version": "7", "command": ["crystal", "imitate"], "libtorch": "2.11.0",
        "files": {"train.tsv": {"bytes": 5, "blake3": "abc"}}});
    fs::write(folder.path().join("run.json"), serde_json::json!({ "starts": [start] }).to_string()).unwrap();
    let html = report(folder.path());
    for needle in [
        "<h2>The same questions, before and after</h2>",
        "<dl><dt class=\"title\">before step 0</dt><dt>response</dt><dd>because</dd><dt>acc</dt><dd>0.1235</dd></dl>",
        "<dl><dt class=\"title\">before step 20</dt><dt>response</dt><dd>since</dd>",
        "<td>eval/acc/obqa</td><td class=\"n\">0.2500</td><td class=\"n\">0.5000</td><td>0.4000\u{a0}to\u{a0}0.6000</td>",
        "<td>command</td><td>crystal imitate</td>",
        "<td>libtorch</td><td>2.11.0</td>",
        "<td>train.tsv</td><td class=\"n\">5</td><td>abc</td>",
    ] {
        assert!(html.contains(needle), "{needle} is missing from\n{html}");
    }
    assert_eq!(html.matches("Why?").count(), 1);
    assert!(!html.contains("<td>commit</td>"), "what is not known is left out");
}
