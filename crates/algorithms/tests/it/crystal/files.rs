//! The files that an evaluation writes, and where.

use std::fs;
use std::os::unix::fs::symlink;
use std::path::{Path, PathBuf};

use ruminate_algorithms::NullObserver;
use ruminate_algorithms::crystal::{
    EvaluationConfig, EvaluationReport, KnowledgeSource, evaluate, evaluation_folder, write_evaluation,
};
use serde_json::Value;

use super::{encoder, questions};
use crate::support::{alone, chain, model, names};

fn report(knowledge: KnowledgeSource) -> EvaluationReport {
    let config = EvaluationConfig { knowledge, num_samples: 2, ..EvaluationConfig::default() };
    evaluate(&model(0.0, 1), &encoder(), &questions()[..3], &config, &mut NullObserver).unwrap()
}

fn read(path: &Path) -> Vec<Value> {
    let text = fs::read_to_string(path).unwrap();
    assert!(
        text.starts_with("[\n    {\n        \"task\": \"lives\",\n        \"split\": \"dev\",\n"),
        "{text}"
    );
    serde_json::from_str(&text).unwrap()
}

fn keys(item: &Value) -> Vec<&str> {
    let mut keys: Vec<&str> = item.as_object().unwrap().keys().map(String::as_str).collect();
    keys.sort_unstable();
    keys
}

#[test]
fn files_have_the_published_names_and_fields() {
    let _alone = alone();
    let folder = tempfile::tempdir().unwrap();
    let out = folder.path().join("eval/mine_ckp-5");
    let report = report(KnowledgeSource::Sampled);
    let written = write_evaluation(&out, &report, 0, None).unwrap();
    let knowledge = out.join("knowledge/knowledge_rainier-ckp0.json");
    let inference = out.join("inference/inference_rainier-ckp0.knowledge_rainier-ckp0.json");
    assert_eq!(written, [knowledge.clone(), inference.clone()]);
    let (knowledge, inference) = (read(&knowledge), read(&inference));
    assert_eq!((knowledge.len(), inference.len()), (3, 3));
    let common = ["answer", "answer_ix", "cands", "knowledges", "query", "split", "task"];
    for ((k, i), item) in knowledge.iter().zip(&inference).zip(&report.inference) {
        assert_eq!(keys(k), common);
        let more = [
            "answer",
            "answer_ix",
            "cands",
            "knowledges",
            "ok",
            "ok_knowless",
            "pred",
            "pred_knowless",
            "probs",
            "probs_",
            "query",
            "rectified",
            "scores_",
            "selected_knowledge_ix",
            "split",
            "task",
        ];
        assert_eq!(keys(i), more);
        assert!(common.iter().all(|key| k[key] == i[key]));
        assert_eq!(serde_json::to_value(item).unwrap(), *i);
    }
}

#[test]
fn the_baseline_and_given_statements_have_names_of_their_own() {
    let _alone = alone();
    let folder = tempfile::tempdir().unwrap();
    let report = report(KnowledgeSource::None);
    write_evaluation(folder.path(), &report, -1, None).unwrap();
    let written = write_evaluation(folder.path(), &report, 0, Some("knowledge_mine.json")).unwrap();
    assert_eq!(written, [folder.path().join("inference/inference_rainier-ckp0.knowledge_mine.json")]);
    // What was given is not written again.
    assert_eq!(names(&folder.path().join("knowledge")), ["knowledge_rainier-ckp-1.json"]);
    let expected = [
        "inference_rainier-ckp-1.knowledge_rainier-ckp-1.json",
        "inference_rainier-ckp0.knowledge_mine.json",
    ];
    assert_eq!(names(&folder.path().join("inference")), expected);
}

#[test]
fn a_failure_leaves_no_part_of_a_file() {
    let _alone = alone();
    let report = report(KnowledgeSource::None);
    // A file where a folder should be, and the other way round.
    let folder = tempfile::tempdir().unwrap();
    fs::write(folder.path().join("inference"), b"mine").unwrap();
    let error = chain(&write_evaluation(folder.path(), &report, 0, None).unwrap_err());
    assert!(error.contains(&folder.path().join("inference").display().to_string()), "{error}");
    assert_eq!(fs::read(folder.path().join("inference")).unwrap(), b"mine");
    // What was finished before is whole.
    assert_eq!(names(&folder.path().join("knowledge")), ["knowledge_rainier-ckp0.json"]);
    assert_eq!(read(&folder.path().join("knowledge/knowledge_rainier-ckp0.json")).len(), 3);

    let folder = tempfile::tempdir().unwrap();
    let name = "inference_rainier-ckp0.given.json";
    fs::create_dir_all(folder.path().join("inference").join(name).join("inside")).unwrap();
    let error = chain(&write_evaluation(folder.path(), &report, 0, Some("given.json")).unwrap_err());
    assert!(error.contains(name), "{error}");
    assert_eq!(names(&folder.path().join("inference")), [name], "nothing temporary is left");

    // An older file of the same name is replaced as a whole.
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("inference").join(name);
    fs::create_dir_all(path.parent().unwrap()).unwrap();
    fs::write(&path, vec![b'x'; 1 << 20]).unwrap();
    write_evaluation(folder.path(), &report, 0, Some("given.json")).unwrap();
    assert_eq!(read(&path).len(), 3);
}

#[test]
fn an_evaluation_lies_beside_its_run() {
    let of = |path: &str| evaluation_folder(Path::new(path));
    let is = |path: &str| Some(PathBuf::from(path));
    assert_eq!(of("runs/mine/checkpoints/step-500"), is("eval/mine_ckp-500"));
    assert_eq!(of("runs/mine/checkpoints/step-500/"), is("eval/mine_ckp-500"));
    assert_eq!(of("/data/runs/a/b/checkpoints/step-0"), is("/data/eval/a/b_ckp-0"));
    assert_eq!(of("runs/old/runs/mine/checkpoints/step-1"), is("runs/old/eval/mine_ckp-1"), "the innermost");
    for neither in [
        "runs/mine/checkpoints/absent",
        "runs/mine/checkpoints/step-",
        "runs/mine/checkpoints/step-5.old",
        "elsewhere/mine/checkpoints/step-5",
        "runs/checkpoints/step-5",
        "step-5",
        "t5-large",
        "",
    ] {
        assert_eq!(of(neither), None, "{neither}");
    }
    // A link's own place tells the run, what it points to tells the step.
    let folder = tempfile::tempdir().unwrap();
    let checkpoints = folder.path().join("runs/mine/checkpoints");
    fs::create_dir_all(checkpoints.join("step-7")).unwrap();
    symlink("step-7", checkpoints.join("best")).unwrap();
    symlink("nowhere", checkpoints.join("last")).unwrap();
    assert_eq!(evaluation_folder(&checkpoints.join("best")), Some(folder.path().join("eval/mine_ckp-7")));
    assert_eq!(evaluation_folder(&checkpoints.join("last")), None);
}
