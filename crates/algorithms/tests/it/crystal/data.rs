//! Reading the world's files, and files with something wrong about them.

use std::fs;
use std::path::Path;

use ruminate_algorithms::Error;
use ruminate_algorithms::crystal::{CrystalData, ReadItems, read_eval, read_silver};
use ruminate_datasets::{Annotated, Error as DataError, Split};

use super::{TASKS, data};
use crate::support::world;

const GOOD: &str = "Q1 \\n (A) x (B) y\tx\n";

/// A folder with one TSV file per task and content, and settings that point to it.
fn folder(files: &[(&str, &str)]) -> (tempfile::TempDir, CrystalData) {
    let folder = tempfile::tempdir().unwrap();
    for (task, content) in files {
        fs::create_dir_all(folder.path().join("uqa").join(task)).unwrap();
        fs::write(folder.path().join("uqa").join(task).join("dev.tsv"), content).unwrap();
    }
    let data_path = folder.path().join("{datapath}/{split}.tsv").display().to_string();
    let data = CrystalData { data_path, ..data("clean") };
    (folder, data)
}

fn silver_folder(task: &str, content: &str) -> (tempfile::TempDir, CrystalData) {
    let folder = tempfile::tempdir().unwrap();
    fs::write(folder.path().join(format!("davinci.train.{task}.json")), content).unwrap();
    let template = folder.path().join("{engine}.{split}.{task}.json").display().to_string();
    let data = CrystalData { knowledge_path: template, train_tasks: vec![task.into()], ..data("davinci") };
    (folder, data)
}

#[test]
fn the_world_is_read_in_the_order_of_its_tasks() {
    let ReadItems { items, notices } = read_eval(&data("clean"), Split::Dev).unwrap();
    assert!(notices.is_empty());
    let lines = |split: &str| {
        TASKS.map(|task| {
            let path = world(&format!("crystal/uqa/{task}/{split}.tsv"));
            fs::read_to_string(path).unwrap().lines().count()
        })
    };
    let counts =
        |items: &[Annotated]| TASKS.map(|task| items.iter().filter(|i| i.question.task == task).count());
    assert_eq!(counts(&items), lines("dev"));
    assert!(items.is_sorted_by_key(|item| item.question.task_ix));
    assert!(items.iter().all(|item| item.knowledges.is_empty()));
    let ReadItems { items: silver, notices } = read_silver(&data("noisy"), Split::Train).unwrap();
    assert!(notices.is_empty() && silver.iter().all(|item| !item.knowledges.is_empty()));
    let [lives, weather, twohop] = lines("train");
    assert_eq!(counts(&silver), [lives, weather, twohop]);
    let half = CrystalData { half_half: true, ..data("noisy") };
    let (second, third) = (lives, lives + weather);
    let halves =
        [&silver[..lives / 2], &silver[second..second + weather / 2], &silver[third..third + twohop / 2]];
    assert_eq!(read_silver(&half, Split::Train).unwrap().items, halves.concat());
    // What is not trained on is never cut.
    assert_eq!(read_silver(&half, Split::Dev).unwrap(), read_silver(&data("noisy"), Split::Dev).unwrap());
    assert_eq!(counts(&read_eval(&half, Split::Train).unwrap().items), [lives, weather, twohop]);
}

#[test]
fn a_task_without_a_file_is_left_out() {
    // The world has no test split but for one task.
    let ReadItems { items, notices } = read_eval(&data("clean"), Split::Test).unwrap();
    assert!(!items.is_empty());
    assert!(items.iter().all(|item| item.question.task == "twohop" && item.question.task_ix == 2));
    let left_out: Vec<&str> = notices.iter().map(|notice| notice.task.as_str()).collect();
    assert_eq!(left_out, ["lives", "weather"]);
    assert!(
        notices.iter().all(|n| n.split == Split::Test && n.text.starts_with("left out: task `")),
        "{notices:?}"
    );
    assert!(notices[0].text.contains("uqa/lives/test.tsv"), "{notices:?}");
    // So is one whose labels are withheld, whether bad rows are refused or not.
    let hidden = "Q1 \\n (A) x (B) y\t-\nQ2 \\n (A) x (B) y\t-\n";
    for skip_bad_rows in [false, true] {
        let (_folder, data) = folder(&[("lives", hidden), ("weather", GOOD), ("twohop", hidden)]);
        let ReadItems { items, notices } =
            read_eval(&CrystalData { skip_bad_rows, ..data }, Split::Dev).unwrap();
        let left_out: Vec<&str> = notices.iter().map(|notice| notice.task.as_str()).collect();
        assert_eq!((items.len(), left_out), (1, vec!["lives", "twohop"]));
        assert!(notices[0].text.contains("there is no label"), "{notices:?}");
    }
    // An empty file is as good as none.
    let (_folder, data) = folder(&[("lives", GOOD), ("weather", ""), ("twohop", GOOD)]);
    let ReadItems { items, notices } = read_eval(&data, Split::Dev).unwrap();
    assert_eq!((items.len(), notices.len(), notices[0].task.as_str()), (2, 1, "weather"));
}

#[test]
fn when_nothing_is_left_that_is_an_error() {
    let (_folder, data) = folder(&[]);
    let error = read_eval(&data, Split::Dev).unwrap_err();
    assert!(
        matches!(&error, Error::Data(DataError::MissingFile { task, .. }) if task == "lives"),
        "the first one: {error}"
    );
    let none = CrystalData { eval_tasks: vec![], ..data };
    let error = read_eval(&none, Split::Dev).unwrap_err();
    assert!(matches!(&error, Error::Config { key, .. } if key == "data.eval_tasks"), "{error}");
}

#[test]
fn an_unknown_task_is_an_error_that_knows_a_better_one() {
    let unknown = |task: &str| vec!["lives".to_string(), task.into()];
    let eval = CrystalData { eval_tasks: unknown("twohops"), ..data("clean") };
    let train = CrystalData { train_tasks: unknown("twohops"), ..data("clean") };
    for error in [read_eval(&eval, Split::Dev).unwrap_err(), read_silver(&train, Split::Dev).unwrap_err()] {
        assert!(matches!(error, Error::Data(DataError::UnknownTask { .. })), "{error}");
        assert!(error.to_string().contains("did you mean `twohop`?"), "{error}");
    }
}

#[test]
fn bad_rows_are_refused_or_left_out() {
    let bad = "no question\nQ2 \\n (A) x (B) y\ty\nQ3 \\n (A) x (B) y\tz\n";
    let (_folder, data) = folder(&[("lives", GOOD), ("weather", bad), ("twohop", GOOD)]);
    let error = read_eval(&data, Split::Dev).unwrap_err().to_string();
    assert!(error.contains("weather/dev.tsv: line 1, columns"), "{error}");
    let skipping = CrystalData { skip_bad_rows: true, ..data };
    let ReadItems { items, notices } = read_eval(&skipping, Split::Dev).unwrap();
    assert_eq!(items.len(), 3);
    assert_eq!((notices.len(), notices[0].task.as_str()), (1, "weather"));
    assert!(notices[0].text.starts_with("2 rows were left out, the first: line 1, columns"), "{notices:?}");
}

#[test]
fn a_file_that_cannot_be_read_is_not_left_out() {
    // Its task would silently be missing from the averages.
    let (folder, data) = folder(&[("lives", GOOD), ("twohop", GOOD)]);
    let path = folder.path().join("uqa/weather/dev.tsv");
    fs::create_dir_all(path.parent().unwrap()).unwrap();
    fs::write(&path, b"Q \xff \\n (A) x (B) y\tx\n").unwrap();
    let error = read_eval(&data, Split::Dev).unwrap_err();
    assert!(matches!(error, Error::Data(DataError::NotUtf8 { line: 1, .. })), "{error}");
    let template = CrystalData { data_path: "{no_such_field}/{split}.tsv".into(), ..data };
    let error = read_eval(&template, Split::Dev).unwrap_err();
    assert!(matches!(error, Error::Data(DataError::BadTemplate { .. })), "{error}");
}

#[test]
fn statements_made_elsewhere_are_read_by_task() {
    let path = data("noisy").knowledge_path.replace("{engine}", "noisy");
    let given = CrystalData { data_path: path, ..data("clean") };
    let ReadItems { items, notices } = read_eval(&given, Split::Test).unwrap();
    assert_eq!(notices.len(), 2);
    assert!(!items.is_empty() && items.iter().all(|item| item.knowledges.len() > 1));

    let (folder, _) = folder(&[]);
    let write =
        |task: &str, text: &str| fs::write(folder.path().join(format!("dev.{task}.json")), text).unwrap();
    write("lives", r#"[{"query": "Q \\n (A) x (B) y", "answer": "x", "knowledges": ["k"]}]"#);
    write("weather", "[{");
    let template = folder.path().join("{split}.{task}.json").display().to_string();
    let error = read_eval(&CrystalData { data_path: template, ..data("clean") }, Split::Dev).unwrap_err();
    assert!(error.to_string().contains("dev.weather.json"), "{error}");
}

#[test]
fn an_evaluation_file_is_read_as_it_is() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("knowledge_rainier-ckp0.json");
    let item = r#"{"task": "new", "split": "dev", "query": "q", "cands": ["A", "B"], "answer": "B", "answer_ix": 1,
        "knowledges": ["k", "l"]}"#;
    fs::write(&path, format!("[{item}]")).unwrap();
    let read = |path: &Path| {
        // Its tasks need not be known.
        read_eval(
            &CrystalData { data_path: path.display().to_string(), ..CrystalData::default() },
            Split::Test,
        )
    };
    let ReadItems { items, notices } = read(&path).unwrap();
    assert!(notices.is_empty());
    assert_eq!((items[0].question.task.as_str(), items[0].question.split), ("new", Split::Dev));
    assert_eq!(items[0].knowledges, ["k", "l"]);
    assert!(matches!(read(&path.with_extension("no.json")), Err(Error::Data(DataError::Read { .. }))));
}

#[test]
fn silver_knowledge_must_be_whole() {
    let missing = CrystalData { engine: "curie".into(), ..data("clean") };
    let error = read_silver(&missing, Split::Train).unwrap_err();
    assert!(matches!(&error, Error::Data(DataError::MissingFile { task, .. }) if task == "lives"), "{error}");
    assert!(error.to_string().contains("knowledge_gkp_gpt3curie.train.lives.json"), "{error}");
    let none = CrystalData { train_tasks: vec![], ..data("clean") };
    let error = read_silver(&none, Split::Train).unwrap_err();
    assert!(matches!(&error, Error::Config { key, .. } if key == "data.train_tasks"), "{error}");

    let good = r#"{"query": "Q \\n (A) x (B) y", "answer": "x", "knowledges": ["k"]}"#;
    let (_folder, broken) = silver_folder("lives", &format!("[{good}, {{\"query\": \"Q\"}}]"));
    let error = read_silver(&broken, Split::Train).unwrap_err().to_string();
    assert!(error.contains("davinci.train.lives.json: item 1: missing field `answer`"), "{error}");

    let (_folder, bad) = silver_folder("lives", &format!("[{}, {good}]", good.replace("\"x\"", "\"z\"")));
    let error = read_silver(&bad, Split::Train).unwrap_err();
    assert!(matches!(error, Error::Data(DataError::BadRow { .. })), "{error}");
    let ReadItems { items, notices } =
        read_silver(&CrystalData { skip_bad_rows: true, ..bad }, Split::Train).unwrap();
    assert_eq!(items.len(), 1);
    assert!(notices[0].text.starts_with("1 row was left out, the first: item 0, answer"), "{notices:?}");

    let (_folder, empty) = silver_folder("lives", "[]");
    assert!(matches!(read_silver(&empty, Split::Train), Err(Error::Data(DataError::EmptySplit { .. }))));
}
