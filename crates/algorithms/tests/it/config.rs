//! Settings as they stand in a file.

use ruminate_algorithms::crystal::{EvaluationConfig, ImitationConfig, KnowledgeSource, Lengths};
use ruminate_algorithms::{OptimizerChoice, Precision, Schedule, TrainerConfig};
use ruminate_torch::optim::{AdafactorConfig, OptimizerConfig};
use serde_json::{Value, json};

/// Reads settings, and gives them back as they would be written.
fn round<T: serde::de::DeserializeOwned + serde::Serialize>(value: Value) -> Result<Value, String> {
    let config: T = serde_json::from_value(value).map_err(|e| e.to_string())?;
    let text = serde_json::to_string(&config).map_err(|e| e.to_string())?;
    let again: T = serde_json::from_str(&text).map_err(|e| e.to_string())?;
    serde_json::to_value(again).map_err(|e| e.to_string())
}

#[test]
fn what_is_left_out_has_its_default() {
    let config: TrainerConfig = serde_json::from_value(json!({ "steps": 7, "precision": "bf16" })).unwrap();
    let expected = TrainerConfig { steps: 7, precision: Precision::Bf16, ..TrainerConfig::default() };
    assert_eq!(config, expected);
    let given = json!({ "schedule": { "cosine": { "cycles": 0.5 } } });
    assert_eq!(round::<TrainerConfig>(given).unwrap()["schedule"]["cosine"]["cycles"], 0.5);
    assert_eq!(serde_json::to_value(Schedule::Linear).unwrap(), "linear");
    let config: EvaluationConfig = serde_json::from_value(json!({ "knowledge": "greedy" })).unwrap();
    assert_eq!(
        config,
        EvaluationConfig { knowledge: KnowledgeSource::Greedy, ..EvaluationConfig::default() }
    );
    assert_eq!(round::<ImitationConfig>(json!({ "best_by": "accuracy" })).unwrap()["best_by"], "accuracy");
}

#[test]
fn the_optimizer_is_named_with_its_settings() {
    let parse = |value: Value| serde_json::from_value::<TrainerConfig>(value).unwrap();
    let adam = parse(json!({ "optimizer": "adam", "betas": [0.8, 0.9], "weight_decay": 0.1 }));
    let OptimizerConfig::Adam(config) = adam.optimizer() else { panic!("{:?}", adam.optimizer()) };
    assert_eq!((config.beta1, config.beta2, config.weight_decay), (0.8, 0.9, 0.1));
    let adafactor = parse(json!({ "optimizer": { "adafactor": { "scale_parameter": true, "beta1": 0.9 } } }));
    let config = AdafactorConfig { scale_parameter: true, beta1: Some(0.9), ..AdafactorConfig::default() };
    assert_eq!(adafactor.optimizer, OptimizerChoice::Adafactor(config));
    assert_eq!(adafactor.optimizer(), OptimizerConfig::Adafactor(config));
    adafactor.validate().unwrap();
    let written = serde_json::to_value(&adafactor).unwrap();
    assert_eq!(serde_json::from_value::<TrainerConfig>(written).unwrap(), adafactor);
}

#[test]
fn unknown_keys_are_errors() {
    let key = json!({ "no_such_key": 1 });
    let errors = [
        round::<TrainerConfig>(key.clone()),
        round::<ImitationConfig>(key.clone()),
        round::<EvaluationConfig>(key.clone()),
        round::<Lengths>(key.clone()),
        round::<ruminate_algorithms::crystal::CrystalData>(key),
        round::<TrainerConfig>(json!({ "optimizer": { "adafactor": { "no_such_key": 1 } } })),
        round::<TrainerConfig>(json!({ "schedule": { "cosine": { "cycles": 0.5, "no_such_key": 1 } } })),
    ];
    for error in errors {
        let error = error.unwrap_err();
        assert!(error.contains("no_such_key"), "{error}");
    }
}

#[test]
fn defaults_are_the_published_ones() {
    let trainer = ImitationConfig::trainer();
    // Steps 0 to 50 000, both included.
    assert_eq!((trainer.steps, trainer.lr, trainer.betas), (50_001, 1e-5, [0.9, 0.999]));
    assert_eq!((trainer.eps, trainer.weight_decay, trainer.max_grad_norm), (1e-8, 0.0, 0.0));
    assert_eq!((trainer.schedule, trainer.warmup_steps, trainer.accumulate), (Schedule::Constant, 0, 1));
    let shared = TrainerConfig::default();
    assert_eq!((shared.lr, shared.schedule, shared.max_grad_norm), (5e-5, Schedule::Linear, 1.0));
    let imitation = ImitationConfig::default();
    assert_eq!((imitation.qk_weight, imitation.qa_weight, imitation.qka_weight), (1.0, 0.0, 1.0));
    assert_eq!(
        (imitation.qk_and_qka_steps, imitation.qk_steps, imitation.shuffle_seed),
        (1000, 500, 19_260_817)
    );
    let evaluation = EvaluationConfig::default();
    assert_eq!(
        (evaluation.num_samples, evaluation.sampling.top_p, evaluation.sampling.top_k),
        (10, Some(0.5), Some(50))
    );
    assert_eq!(
        Lengths::default(),
        Lengths { max_question_len: 256, max_knowledge_len: 32, max_answer_len: 2 }
    );
}
