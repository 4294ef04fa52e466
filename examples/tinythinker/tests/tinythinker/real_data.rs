//! OpenBookQA from the teacher to the answers, killed on the way. The data lies beside the project, or the test says that it is skipped.

use std::collections::BTreeMap;
use std::path::Path;

use approx::assert_abs_diff_eq;
use serde_json::Value;

use crate::stub::{Act, Seen, Stub};
use crate::support::{kill, lines, root, succeed};

/// A teacher that writes as asked, in the words of the question. Some first answers are not in order, and some come late.
fn teach(seen: &Seen) -> Act {
    let prompt = seen.prompt().to_string();
    let (stem, rest) = prompt.split_once("\nOptions: ").unwrap();
    let gold = rest.split_once("Explanations: ").unwrap().1.chars().next().unwrap();
    let labels: Vec<char> = rest
        .match_indices(". Because")
        .map(|(i, _)| rest[..i].rfind(" is ").unwrap())
        .map(|i| rest.as_bytes()[i - 1] as char)
        .collect();
    let good = |number: usize| {
        let reason = |label: &char| {
            let verdict = if *label == gold { "correct" } else { "incorrect" };
            format!("{label} is {verdict}. Because option {label} is {verdict} here.")
        };
        let reasons: Vec<String> = labels.iter().map(reason).collect();
        format!("Key Information: Fact {number} about this: {stem}\nExplanations: {}", reasons.join("\n"))
    };
    let wanted = seen.body["n"].as_u64().unwrap() as usize;
    let mut texts: Vec<String> = (0..wanted).map(good).collect();
    if stem.len().is_multiple_of(4) && seen.earlier == 0 {
        texts[0] = "I would rather not say.".into();
    }
    let texts: Vec<&str> = texts.iter().map(String::as_str).collect();
    if stem.len().is_multiple_of(7) && seen.earlier == 0 {
        return Act::Reply(500, "", String::new());
    }
    Act::slow(15, Act::say(&texts))
}

/// The parts of a checkpoint that decide how a run goes on.
fn checkpoint(run: &Path) -> BTreeMap<&'static str, Vec<u8>> {
    let read = |file| (file, std::fs::read(run.join("checkpoints/last").join(file)).unwrap());
    ["model.safetensors", "trainer.safetensors", "state.json"].into_iter().map(read).collect()
}

#[test]
#[expect(clippy::print_stderr, reason = "a skipped test says so")]
fn every_phase_survives_a_kill_on_real_questions() {
    if !root().join("../shared/data/tinythinker").is_dir() {
        eprintln!("skipped: ../shared/data/tinythinker is not there");
        return;
    }
    let folder = tempfile::tempdir().unwrap();
    let path = |name: &str| folder.path().join(name);
    let stub = Stub::start(teach);
    let args = |command: &str, out: &str, rest: &[String]| -> Vec<String> {
        let config = "examples/tinythinker/configs/tiny.toml";
        let mut args: Vec<String> =
            vec![command.into(), "--config".into(), config.into(), "-q".into(), "--json".into()];
        args.extend(["--out".into(), path(out).display().to_string()]);
        let address = format!("teacher.base_url={}", stub.address());
        let records = format!("data.records={}", path("teach/sft").display());
        // Short texts and few validations: 150 questions are answered in each.
        let short = ["acquisition.training", "reflection.training", "inference"];
        let short = short.map(|section| format!("{section}.generation.max_length=12"));
        let few = ["acquisition", "reflection"].map(|section| format!("{section}.trainer.eval_every=1000"));
        let saves = "acquisition.trainer.save_every=8";
        let sets = ["teacher.concurrency=2", "teacher.backoff_secs=0.01", saves];
        let sets = sets.into_iter().map(String::from).chain([address, records]).chain(short).chain(few);
        args.extend(sets.flat_map(|set| ["--set".to_string(), set]));
        args.extend(rest.iter().cloned());
        args
    };
    let sets =
        |sets: &[String]| sets.iter().flat_map(|set| ["--set".to_string(), set.clone()]).collect::<Vec<_>>();
    let resumed = |args: &[String]| succeed(&[args, &["--resume".to_string()]].concat());

    // The teacher: no answer is asked for twice, except what was under way.
    let teaching = args("teach", "teach", &[]);
    kill(&teaching, || lines(&path("teach/answers_0.jsonl")).len() >= 10);
    let stored = lines(&path("teach/answers_0.jsonl")).len();
    let before = stub.seen().len();
    let taught = resumed(&teaching).json();
    assert_eq!(taught["items"], 160, "{taught}");
    assert_eq!(taught["counts"]["without_items"], 0);
    assert!(taught["counts"]["rejected"].as_u64().unwrap() > 0, "the teacher was always in order");
    let first_round = lines(&path("teach/answers_0.jsonl"));
    let ids: std::collections::BTreeSet<String> = first_round
        .iter()
        .map(|line| serde_json::from_str::<Value>(line).unwrap()["id"].as_str().unwrap().into())
        .collect();
    assert_eq!((first_round.len(), ids.len()), (40, 40));
    assert!(before <= stored + 2 + 10, "{before} requests for {stored} answers");
    // What was collected can be used again without a server.
    let files = [0, 1].map(|round| path(&format!("teach/answers_{round}.jsonl")).display().to_string());
    let offline = args("teach", "offline", &["--answers".into(), files[0].clone(), files[1].clone()]);
    assert_eq!(succeed(&offline).json()["items"], 160);
    let items = |out: &str| std::fs::read(path(out).join("items.json")).unwrap();
    assert!(items("teach") == items("offline"));

    // Phase 1.
    let whole = succeed(&args("acquire", "acquired", &[])).json();
    let acquire = args("acquire", "killed", &[]);
    kill(&acquire, || lines(&path("killed/metrics.jsonl")).iter().any(|line| line.contains("\"step\":10,")));
    assert_eq!(resumed(&acquire).json()["steps"], whole["steps"]);
    assert!(checkpoint(&path("acquired")) == checkpoint(&path("killed")));
    let losses = lines(&path("acquired/metrics.jsonl"));
    let loss = |line: &String| serde_json::from_str::<Value>(line).unwrap().get("train/loss")?.as_f64();
    let losses: Vec<f64> = losses.iter().filter_map(loss).collect();
    assert!(losses[losses.len() - 1] < 0.7 * losses[0], "{losses:?}");

    // Phase 2, once while it samples and once while it trains.
    let start = format!("reflection.start={}", path("acquired/checkpoints/best").display());
    let whole = succeed(&args("reflect", "reflected", &sets(std::slice::from_ref(&start)))).json();
    let round = &whole["rounds"][0];
    assert_eq!(round["sampled"]["runs"], 160, "{whole}");
    assert!(round["sampled"]["recall"]["pairs"].as_u64().unwrap() > 0, "{whole}");
    let reflect = args("reflect", "broken", &sets(&[start]));
    kill(&reflect, || path("broken/round-1/recall_runs.jsonl").is_file());
    let again = [&reflect[..], &["--resume".to_string()]].concat();
    kill(&again, || {
        lines(&path("broken/round-1/metrics.jsonl")).iter().any(|line| line.contains("\"train\""))
    });
    let broken = resumed(&reflect).json();
    assert_eq!(broken["rounds"][0]["sampled"], round["sampled"]);
    assert!(checkpoint(&path("reflected/round-1")) == checkpoint(&path("broken/round-1")));
    for file in ["recall_runs.jsonl", "recall_dpo.json", "analyze_dpo.json", "pairs.json"] {
        let read = |run: &str| std::fs::read(path(run).join("round-1").join(file)).unwrap();
        assert!(read("reflected") == read("broken"), "{file} differs");
    }
    assert!(path("reflected/report.html").is_file());

    // Answers, and the published form of them.
    let model = path("reflected/round-1/checkpoints/best").display().to_string();
    let mut infer =
        vec!["infer".to_string(), "--model".into(), model, "--votes".into(), "3".into(), "--json".into()];
    infer.extend(["-q".into(), "--out".into(), path("answers").display().to_string()]);
    let answers = succeed(&infer).json();
    assert_eq!((&answers["questions"], answers["runs"].as_array().unwrap().len()), (&150.into(), 3));
    assert_eq!(lines(&path("answers/responses.jsonl")).len(), 450);
    let published = std::fs::read_to_string(path("answers/dpo_test_recall_analyze_1_random.json")).unwrap();
    let published: Vec<Value> = serde_json::from_str(&published).unwrap();
    assert_eq!(published.len(), 450);
    let row = &published[0];
    assert!(row["input"].as_str().unwrap().ends_with("\nSummarize:") && row["GT"].is_string(), "{row}");
    let right = published.iter().take(150).filter(|row| row["prediction"] == row["GT"]).count();
    assert_abs_diff_eq!(answers["runs"][0].as_f64().unwrap(), right as f64 / 150.0, epsilon = 1e-9);
}
