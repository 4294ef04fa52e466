//! A model that is used with another chat template than it was trained with.

use serde_json::{Value, json};

use crate::support::{root, succeed};

#[test]
fn another_template_than_the_model_was_trained_with_is_named() {
    let folder = tempfile::tempdir().unwrap();
    let path = |name: &str| folder.path().join(name).display().to_string();
    let args = |command: &str, out: &str, sets: &[&str]| -> Vec<String> {
        let config = "examples/rise/configs/world.toml";
        let mut args: Vec<String> =
            [command, "--config", config, "-q", "--json", "--out", &path(out)].map(String::from).to_vec();
        let few = [
            "data.limit=4",
            "evaluation.limit=2",
            "evaluation.turns=1",
            "finetune.training.epochs=1.0",
            "finetune.training.batch_size=2",
        ];
        args.extend(few.iter().chain(sets).flat_map(|set| ["--set".to_string(), (*set).to_string()]));
        args
    };
    let warned = |args: &[String], expected: Value| -> Value {
        let finished = succeed(args);
        let result = finished.json();
        assert_eq!(result["warnings"], expected, "{args:?}");
        let named = expected.as_array().unwrap();
        assert_eq!(finished.stderr.matches("warning: ").count(), named.len(), "{}", finished.stderr);
        for other in named {
            for part in ["model", "trained", "used"] {
                assert!(finished.stderr.contains(other[part].as_str().unwrap()), "{}", finished.stderr);
            }
        }
        result
    };
    let solutions = "finetune.source=solutions";
    let first = warned(&args("finetune", "first", &[solutions]), json!([]));
    let model = first["last"].as_str().unwrap().to_string();
    assert!(std::fs::read_to_string(root().join(&model).join("chat.json")).unwrap().contains("llama-2"));
    let other = json!([{ "model": model, "trained": "llama-2", "used": "mistral-instruct" }]);

    // Trained on: it is another one's afterwards.
    let (template, from) = ("chat.template=mistral-instruct", format!("model={{pretrained=\"{model}\"}}"));
    warned(&args("finetune", "same", &[solutions, &from]), json!([]));
    let again = warned(&args("finetune", "again", &[solutions, &from, template]), other.clone());
    let again = again["last"].as_str().unwrap().to_string();

    // Evaluated, and with the template of its own run.
    let evaluate = |out: &str, model: &str, sets: &[&str]| {
        [args("evaluate", out, sets), vec!["--model".into(), model.into()]].concat()
    };
    warned(&evaluate("evaluated", &model, &[template]), other.clone());
    let metrics = std::fs::read_to_string(folder.path().join("evaluated/metrics.json")).unwrap();
    assert_eq!(serde_json::from_str::<Value>(&metrics).unwrap()["warnings"], other);
    warned(&evaluate("evaluated-same", &again, &[template]), json!([]));

    // Episodes: only of those who answer, each with its own template.
    let collect = |out: &str, sets: &[&str]| {
        let student = format!("collection.student={model}");
        let teacher = format!("collection.teacher_model={again}");
        args("collect", out, &[&[student.as_str(), teacher.as_str()], sets].concat())
    };
    let [student, both] = ["collection.models=[\"student\"]", "collection.models=[\"student\", \"teacher\"]"];
    let (one, two) = ("collection.samples=[1]", "collection.samples=[1,1]");
    warned(&collect("student", &[student, one]), json!([]));
    warned(&collect("both", &[both, two, "collection.teacher_template=mistral-instruct"]), json!([]));
    let confused = json!([{ "model": again, "trained": "mistral-instruct", "used": "llama-2" }]);
    warned(&collect("confused", &[both, two]), confused);
}
