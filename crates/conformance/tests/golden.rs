//! The golden vectors that are there, and how the runner takes what is not in order.

use ruminate_conformance::TOPICS;
use ruminate_conformance::runner::{Report, default_roots, run};
use std::path::{Path, PathBuf};

fn text(report: &Report) -> String {
    let mut out = Vec::new();
    report.write(&mut out).unwrap();
    String::from_utf8(out).unwrap()
}

#[test]
#[allow(clippy::print_stderr)]
fn golden_vectors_pass() {
    let roots = default_roots();
    if roots.is_empty() {
        eprintln!("skipped: there are no golden vectors");
        return;
    }
    let report = run(&roots, &[]);
    assert!(report.passed(), "\n{}", text(&report));
}

/// The vectors that the project ships, without those beside it: what a clone has.
#[test]
fn a_clone_alone_has_vectors_of_every_kind() {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../fixtures/golden");
    let report = run(std::slice::from_ref(&root), &[]);
    let text = text(&report);
    assert!(report.passed(), "\n{text}");
    for kind in &report.kinds {
        assert!(kind.outcome.is_some() && kind.pending().is_empty(), "{} {}\n{text}", kind.topic, kind.kind);
    }
    for topic in TOPICS {
        let folder = root.join(topic.name);
        let with_cases =
            report.kinds.iter().filter(|kind| kind.topic == topic.name && !kind.cases().is_empty());
        let covered: Vec<String> = with_cases
            .map(|kind| {
                let file = if topic.folders { kind.kind.clone() } else { format!("{}.json", kind.kind) };
                topic.kind_of(&folder.join(file))
            })
            .collect();
        let missing: Vec<&str> = topic
            .kinds
            .iter()
            .map(|(kind, _)| *kind)
            .filter(|kind| !covered.iter().any(|c| c == kind))
            .collect();
        assert!(missing.is_empty(), "topic {}: no public vector of {missing:?}\n{text}", topic.name);
    }
}

/// Every `--topic NAME` that the documents show is a topic; all of them have cases in a clone.
#[test]
fn topics_in_documents_exist() {
    let workspace = Path::new(env!("CARGO_MANIFEST_DIR")).join("../..");
    let folders =
        ["", "docs/papers", "docs/guide", "crates/conformance"].map(|folder| workspace.join(folder));
    let entries = folders
        .iter()
        .flat_map(|folder| std::fs::read_dir(folder).unwrap())
        .map(|entry| entry.unwrap().path());
    let mut shown = 0;
    for file in entries.filter(|file| file.extension().is_some_and(|e| e == "md")) {
        let document = std::fs::read_to_string(&file).unwrap();
        for rest in document.split("--topic ").skip(1) {
            let name: String = rest.chars().take_while(|c| c.is_ascii_alphanumeric()).collect();
            // `NAME` and `TOPIC` stand for any.
            if name.chars().any(|c| c.is_ascii_lowercase()) {
                assert!(
                    TOPICS.iter().any(|topic| topic.name == name),
                    "{}: no topic `{name}`",
                    file.display()
                );
                shown += 1;
            }
        }
    }
    assert!(shown > 0);
}

/// A root with the given files.
fn root(files: &[(&str, &str)]) -> (tempfile::TempDir, Vec<PathBuf>) {
    let dir = tempfile::tempdir().unwrap();
    for (name, content) in files {
        let path = dir.path().join(name);
        std::fs::create_dir_all(path.parent().unwrap()).unwrap();
        std::fs::write(path, content).unwrap();
    }
    let roots = vec![dir.path().to_owned()];
    (dir, roots)
}

const GOOD: &str = r#"{"cases": [{"task": "made_up", "line": "Q \\n (A) x (B) y\ty\n", "expected": {
    "skipped": false, "question": "Q \\n (A) x (B) y", "choice_texts": ["x", "y"], "choice_labels": ["A", "B"],
    "answer_label": "B", "answer_index": 1}}]}"#;

#[test]
fn a_good_root_passes_and_uncovered_kinds_are_listed() {
    let (_dir, roots) = root(&[
        ("crystal/parse_lines.json", GOOD),
        ("crystal/README.md", "text"),
        ("crystal/something_new.json", "{}"),
        ("models/unheard_of/cases.json", "{}"),
        ("models/notes/README.md", "no golden folder"),
        ("strange/thing.json", "{}"),
    ]);
    let report = run(&roots, &[]);
    let text = text(&report);
    assert!(report.passed(), "{text}");
    assert!(text.contains("crystal  parse_lines        1       1        0"), "{text}");
    for line in ["crystal  something_new  not covered", "models   unheard_of     not covered"] {
        assert!(text.contains(line), "{text}");
    }
    assert!(text.contains("1 of 1 cases passed, 0 failed, 0 pending; 3 kinds not covered"), "{text}");
    assert!(!text.contains("README") && !text.contains("notes"), "{text}");
}

#[test]
fn a_named_topic_must_be_known_whole_and_present() {
    let (_dir, roots) = root(&[("crystal/parse_lines.json", GOOD), ("crystal/something_new.json", "{}")]);
    let named = |name: &str| text(&run(&roots, &[name.to_owned()]));
    assert!(named("crystal").contains("PROBLEM topic crystal: kind `something_new` is not known"));
    assert!(named("mario").contains("PROBLEM topic mario: no case ran"));
    assert!(named("cristal").contains("PROBLEM unknown topic `cristal`; the topics are models, crystal"));
    assert!(!run(&roots, &["crystal".to_owned()]).passed());
}

#[test]
fn nothing_to_run_is_a_failure() {
    let (_dir, roots) = root(&[("crystal/something_new.json", "{}")]);
    assert!(text(&run(&roots, &[])).contains("PROBLEM no case ran; looked below ["));
    let absent = [Path::new("/nonexistent/golden").to_owned()];
    let report = run(&absent, &[]);
    assert!(!report.passed() && text(&report).contains("/nonexistent/golden is no folder"));
}

#[test]
fn malformed_files_are_failed_cases() {
    let wrong = GOOD.replace("\"answer_index\": 1", "\"answer_index\": 0");
    let incomplete = GOOD.replace("\"line\"", "\"lines\"");
    for (kind, content, reason) in [
        ("parse_lines", wrong.as_str(), "FAILED cases[0]: answer_index: got 1, expected 0"),
        ("parse_lines", incomplete.as_str(), "parse_lines.json: field cases[0]: missing field `line`"),
        ("parse_lines", "{", "parse_lines.json is no JSON: EOF"),
        ("parse_lines", "{}", "parse_lines.json: field cases: missing"),
        ("parse_lines", r#"{"cases": []}"#, "parse_lines.json holds no case"),
        (
            "ensembling",
            r#"{"tolerance": "rough", "cases": []}"#,
            "ensembling.json: field tolerance: not \"exact\"",
        ),
        ("eval_output", r#"{"cases": []}"#, "eval_output.json: field tolerance: missing"),
    ] {
        let (_dir, roots) = root(&[(&format!("crystal/{kind}.json"), content)]);
        let report = run(&roots, &[]);
        assert!(!report.passed());
        assert!(text(&report).contains(reason), "{content}\n{}", text(&report));
    }
}

#[test]
fn ragged_numbers_are_failed_cases() {
    let ragged = r#"{"tolerance": "exact", "cases": [{"choice_ids": [[[4, 1], [1]]], "answer_index": [0],
        "logits": [[[[0.5, 1.0]]]], "expected": {"choice_scores": [], "choice_probs": [], "preds": [],
        "correct": []}}]}"#;
    let (_dir, roots) = root(&[("crystal/choice_scoring_mean_nll.json", ragged)]);
    let report = run(&roots, &[]);
    assert_eq!(report.kinds[0].failures().count(), 1, "{}", text(&report));
    let short = r#"{"tolerance": "exact", "cases": [{"answer_index": [0], "choice_first_ids": [[4, 9]],
        "expert_logits": [[[0.0]]], "expected": {"max": {}}}]}"#;
    let (_dir, roots) = root(&[("crystal/ensembling.json", short)]);
    assert!(text(&run(&roots, &[])).contains("expert_logits: nothing at question 0, token ids [4, 9]"));
}

/// Vectors of the layout that the published ones do not exhaust; `tests/layout/make.py` wrote them.
#[test]
fn everything_is_taken_from_the_vector() {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/layout");
    let report = run(&[root], &[]);
    assert!(report.passed(), "\n{}", text(&report));
    assert!(report.kinds.iter().all(|kind| kind.outcome.is_some() && kind.pending().is_empty()));
    assert_eq!(report.kinds.len(), 10, "\n{}", text(&report));
}
