use ruminate_datasets::unifiedqa::BadRows;
use ruminate_datasets::{InferenceItem, Origin, ReadOptions, Split, json, knowledge, unifiedqa};

use crate::{Fuzz, folder, world};

fn seeds(paths: &[&str]) -> Vec<Vec<u8>> {
    paths.iter().map(|path| std::fs::read(world(&format!("crystal/{path}"))).unwrap()).collect()
}

fn origin() -> Origin {
    Origin::new("lives", 0, Split::Train)
}

const SKIP: ReadOptions = ReadOptions { bad_rows: BadRows::Skip, part: unifiedqa::Part::FirstHalf };

#[test]
fn questions() {
    let seeds = seeds(&["uqa/lives/dev.tsv", "uqa/twohop/dev.tsv"]);
    Fuzz::new("train.tsv", seeds, 1000).run(folder(), |path| {
        let skipped = unifiedqa::read(path, &origin(), SKIP);
        for question in unifiedqa::read(path, &origin(), ReadOptions::default())?.items {
            assert!(question.answer_ix < question.choices.len());
        }
        skipped.map(drop).map_err(Into::into)
    });
}

#[test]
fn silver_knowledge() {
    let seeds = seeds(&["knowledge/knowledge_gkp_gpt3clean.dev.weather.json"]);
    Fuzz::new("silver.json", seeds, 1000).run(folder(), |path| {
        let skipped = knowledge::read(path, &origin(), SKIP);
        for item in knowledge::read(path, &origin(), ReadOptions::default())?.items {
            assert!(item.question.answer_ix < item.question.choices.len());
            assert_eq!(item.statements(3).count(), 3);
        }
        skipped.map(drop).map_err(Into::into)
    });
}

#[test]
fn evaluation_files() {
    let item = |task: &str, query: &str| {
        format!(
            r#"{{"task": "{task}", "split": "dev", "query": "{query}", "cands": ["A", "B"], "answer_ix": 1,
            "answer": "B", "knowledges": ["one", "two"], "scores_": [[0.5, 1.0], [1e-3, 2]],
            "probs_": [[0.25, 0.75], [0.5, 0.5]], "probs": [0.25, 0.75], "pred": 1, "ok": 1, "pred_knowless": 0,
            "ok_knowless": 0, "rectified": 1, "selected_knowledge_ix": 0}}"#
        )
    };
    let file = format!("[{}, {}]", item("lives", "Q \\n (A) x (B) y"), item("twohop", "R \\n (A) x (B) y"));
    let file = file.replace("\n (A)", "\\n (A)").into_bytes();
    Fuzz::new("inference.json", vec![file], 1500).run(folder(), |path| {
        let items = knowledge::read_evaluation_file(path, Split::Dev);
        json::read::<Vec<InferenceItem>>(path)?;
        for item in items? {
            assert!(item.question.answer_ix < item.question.choices.len());
        }
        Ok(())
    });
}
