//! The demo in miniature.

use crate::support::{root, succeed};

#[test]
fn the_demo_compares_three_students_and_goes_on_from_what_is_there() {
    let folder = tempfile::tempdir().unwrap();
    let out = folder.path().join("demo").display().to_string();
    let mut args: Vec<String> = ["demo", "--json", "--seeds", "1", "--out", &out].map(String::from).to_vec();
    for set in [
        "acquisition.training.epochs=0.02",
        "acquisition.training.generation.max_length=6",
        "inference.generation.max_length=6",
        "reflection.iterations=1",
        "reflection.training.generation_times=2",
        "reflection.training.blocks=1",
        "reflection.training.batch_size=256",
        "reflection.training.generation.max_length=6",
    ] {
        args.extend(["--set".into(), set.into()]);
    }
    let first = succeed(&args);
    assert!(first.stderr.contains("reflected, seed 1"), "{}", first.stderr);
    let result = first.json();
    for model in ["summarize_only", "staged", "reflected"] {
        assert!((0.0..=1.0).contains(&result["metrics"][model].as_f64().unwrap()), "{result}");
        assert_eq!(result["by_seed"][model], serde_json::json!([result["metrics"][model]]));
    }
    assert_eq!(
        (result["right_samples"].as_array().unwrap().len(), result["margins"].as_array().unwrap().len()),
        (2, 1)
    );
    let page = std::fs::read_to_string(folder.path().join("demo/report.html")).unwrap();
    assert!(page.contains("reflected-seed-1/report.html"));
    // A second time, nothing is trained.
    let again = succeed(&args);
    assert_eq!(again.json()["by_seed"], result["by_seed"]);
    assert!(root().join("fixtures/world").is_dir());
}
