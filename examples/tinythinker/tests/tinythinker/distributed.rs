//! Several processes train as one.

use std::fs;

use crate::support::{Place, lines, tinythinker};

#[test]
fn two_processes_acquire_and_reflect_as_one() {
    let place = Place::new();
    let acquire = |out: &str, processes: &str, batch: usize| {
        let sets = [
            format!("acquisition.training.batch_size={batch}"),
            "acquisition.training.epochs=1".into(),
            "acquisition.training.generation.max_length=8".into(),
            "acquisition.trainer.eval_every=5".into(),
        ];
        place.run("acquire", out, &["--nproc", processes], &sets).json()
    };
    let one = acquire("one", "1", 16);
    let two = acquire("two", "2", 8);
    // An epoch has as many steps, and the questions are answered alike.
    assert_eq!((&one["steps"], &one["best"]["score"]), (&two["steps"], &two["best"]["score"]));
    place.same_model(["one", "two"]);
    // Rank 0 alone has written.
    assert_eq!(lines(&place.path("one/metrics.jsonl")).len(), lines(&place.path("two/metrics.jsonl")).len());
    // A position counts steps of so many records.
    let out = place.path("two").display().to_string();
    fs::remove_file(place.path("two/checkpoints/last")).unwrap();
    let resume = ["acquire", "--out", &out, "--resume", "-q"].map(String::from);
    let finished = tinythinker(&resume);
    assert_eq!(finished.code, Some(2), "{}", finished.stderr);
    assert!(finished.stderr.contains("it was trained in steps of 16 rows"), "{}", finished.stderr);

    let start = format!("reflection.start={}", place.path("one/checkpoints/last").display());
    let reflect = |out: &str, processes: &str, batch: usize| {
        let sets = [
            start.clone(),
            format!("reflection.training.batch_size={batch}"),
            "reflection.iterations=1".into(),
            // Those of the records, which the teacher has answered.
            "reflection.training.generation_times=2".into(),
            "reflection.training.blocks=1".into(),
            "reflection.training.generation.max_length=8".into(),
        ];
        place.run("reflect", out, &["--nproc", processes], &sets).json()
    };
    let one = reflect("reflect-one", "1", 8);
    let two = reflect("reflect-two", "2", 4);
    for key in ["sampled", "accuracy", "step"] {
        assert_eq!(one["rounds"][0][key], two["rounds"][0][key], "{key}");
    }
    place.same_model(["reflect-one/round-1", "reflect-two/round-1"]);
    for file in ["recall_runs.jsonl", "analyze_runs.jsonl", "recall_dpo.json", "analyze_dpo.json"] {
        let read = |run: &str| fs::read(place.path(run).join("round-1").join(file)).unwrap();
        assert!(read("reflect-one") == read("reflect-two"), "{file} differs");
    }

    // Answers are divided, and rank 0 writes them.
    let model = place.path("one/checkpoints/last").display().to_string();
    let infer = |out: &str, processes: &str| {
        let flags = ["--model", &model, "--split", "valid", "--votes", "3", "--nproc", processes];
        place.run("infer", out, &flags, &[]).json()
    };
    let (one, two) = (infer("infer-one", "1"), infer("infer-two", "2"));
    assert_eq!((&one["runs"], &one["questions"]), (&two["runs"], &two["questions"]));
    let read = |run: &str| fs::read(place.path(run).join("responses.jsonl")).unwrap();
    assert!(read("infer-one") == read("infer-two"), "responses differ");
    assert!(!place.path("infer-two/texts.jsonl").exists());
}
