//! The demo in miniature.

use crate::support::{Workplace, succeed};

#[test]
fn the_demo_compares_three_models_and_goes_on_from_what_is_there() {
    let place = Workplace::new();
    let out = place.path("demo");
    let tiny = format!("model.config={}", place.path("t5.json"));
    let args = [
        "demo",
        "--json",
        "--seeds",
        "1",
        "--out",
        &out,
        "--set",
        "trainer.steps=4",
        "--set",
        "reinforcement.trainer.steps=2",
        "--set",
        "reinforcement.ppo.batch_size=8",
        "--set",
        "imitation.qk_and_qka_steps=2",
        "--set",
        "imitation.qk_steps=1",
        "--set",
        "evaluation.num_samples=2",
        "--set",
        &tiny,
    ];
    let first = succeed(&args);
    assert!(first.stderr.contains("starting: 4 steps"), "{}", first.stderr);
    let result = first.json();
    assert_eq!((&result["system"], &result["seeds"]), (&"crystal".into(), &serde_json::json!([1])));
    assert!(result["seconds"].as_f64().unwrap() > 0.0);
    for model in ["direct", "stage1", "stage2"] {
        assert!((0.0..=1.0).contains(&result["metrics"][model].as_f64().unwrap()), "{result}");
        assert_eq!(result["by_seed"][model], serde_json::json!([result["metrics"][model]]));
    }
    let page = std::fs::read_to_string(result["report"].as_str().unwrap()).unwrap();
    for shown in
        ["<svg", "KL to Stage I", "answers that knowledge has fixed", "noisy-stage2-seed-1/report.html"]
    {
        assert!(page.contains(shown), "{shown}");
    }
    let trained = |place: &Workplace| {
        place
            .snapshot()
            .into_iter()
            .filter(|(path, _)| {
                path.starts_with(&out) && path.extension().is_some_and(|e| e == "safetensors")
            })
            .collect::<Vec<_>>()
    };
    let before = trained(&place);
    assert!(!before.is_empty());

    let second = succeed(&args);
    assert!(!second.stderr.contains("starting:"), "{}", second.stderr);
    assert_eq!(second.json()["metrics"], result["metrics"]);
    assert!(trained(&place) == before, "the second demo trained again");
}
