//! The readers on slices of real data, which lie beside the repository on some machines.

use ruminate_datasets::BadRows;
use ruminate_datasets::tasks::KNOWLEDGE_PATH;
use ruminate_datasets::tinythinker::{Draft, FewShot, Source, StageText, read_instruction, system_message};
use ruminate_datasets::{
    Instances, Origin, ReadOptions, SilverItem, Split, TaskEntry, TaskRegistry, json, knowledge, unifiedqa,
};
use std::path::Path;

#[test]
#[allow(clippy::print_stderr)]
fn reads_real_slices() {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../../shared/data/crystal");
    if !root.is_dir() {
        eprintln!("skipped: {} is not there", root.display());
        return;
    }
    let mut tasks = TaskRegistry::default();
    tasks.register("quarel", TaskEntry::new("uqa/quarel"));
    let questions = format!("{}/{{datapath}}/{{split}}.tsv", root.display());
    let expected = [("obqa", 1000, 250), ("csqa", 1000, 250), ("quarel", 1000, 150)];
    for (ix, (task, train, dev)) in expected.into_iter().enumerate() {
        for (split, rows) in [(Split::Train, train), (Split::Dev, dev)] {
            let path = tasks.locate(&questions, task, split).unwrap();
            let data = unifiedqa::read(&path, &Origin::new(task, ix, split), ReadOptions::default()).unwrap();
            assert_eq!(data.items.len(), rows, "{task} {split}");
            assert!(data.skipped.is_empty());
        }
    }

    let template = KNOWLEDGE_PATH.replace("data/", &format!("{}/", root.display()));
    for split in [Split::Train, Split::Dev] {
        let path = tasks.locate_knowledge(&template, "davinci", "quarel", split).unwrap();
        let items =
            knowledge::read(&path, &Origin::new("quarel", 0, split), ReadOptions::default()).unwrap().items;
        let questions = items.len();
        let statements: usize = items.iter().map(|item| item.knowledges.len()).sum();
        let instances = Instances::new(items).len();
        assert_eq!(instances, if split == Split::Train { statements } else { questions });
        // What we write reads back; plain comparisons, so that a failure prints no real text.
        let silver: Vec<SilverItem> = json::read(&path).unwrap();
        let copy = tempfile::NamedTempFile::new().unwrap();
        json::write(copy.path(), &silver).unwrap();
        assert!(json::read::<Vec<SilverItem>>(copy.path()).unwrap() == silver);
        let text = std::fs::read_to_string(copy.path()).unwrap();
        assert!(text.is_ascii());
    }
}

#[test]
#[allow(clippy::print_stderr)]
fn reads_real_multiple_choice_questions() {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../../shared/data/tinythinker");
    if !root.is_dir() {
        eprintln!("skipped: {} is not there", root.display());
        return;
    }
    for (source, file, rows) in [
        (Source::Csqa, "csqa/original/train_rand_split.jsonl", 300),
        (Source::Csqa, "csqa/original/dev_rand_split.jsonl", 150),
        (Source::Obqa, "obqa/original/train.jsonl", 300),
        (Source::Obqa, "obqa/original/dev.jsonl", 150),
        (Source::Obqa, "obqa/original/test.jsonl", 150),
    ] {
        let (questions, skipped) = source.read(&root.join(file), BadRows::Refuse).unwrap();
        assert_eq!((questions.len(), skipped.len()), (rows, 0), "{file}");
        for question in &questions {
            // Plain comparisons, so that a failure prints no real text.
            let draft = Draft::new(question);
            let read = Draft::of(&StageText::parse(&draft.recall_prompt()).unwrap()).unwrap();
            assert!(read == draft, "{}", question.id);
        }
    }
    let instruction = read_instruction(&root.join("request.json")).unwrap();
    for (data_set, count) in [("csqa", 8), ("obqa", 7), ("strategyqa", 8)] {
        let examples: Vec<FewShot> =
            json::read(&root.join(format!("{data_set}/prompt/{data_set}_cot.json"))).unwrap();
        assert_eq!(examples.len(), count);
        assert_eq!(system_message(&instruction, &examples).matches("\n###").count(), 2 * count);
    }
}
