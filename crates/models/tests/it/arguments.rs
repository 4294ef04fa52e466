//! Arguments that mean nothing: every public function says so in words of its own, and none panics or shows libtorch's insides.

use std::fmt::Debug;

use ruminate_models::{
    Batch, Beam, EarlyStopping, Example, Generate, GenerationConfig, History, Llama, LlamaConfig, Policy,
    Processor, Sampling, ScoreChoices, ScoreOptions, SequenceBias, Side, Strategy, T5, T5Config, TokenId,
    VeraHead, embedding_statistics, filter_logits, forbid,
};
use serde_json::json;
use tch::{Device, Kind, Tensor};

use crate::support::{VOCAB, llama, llama_config, model, plain};

/// The error's text, which must hold these parts and nothing of libtorch.
#[track_caller]
fn says<T: Debug>(result: ruminate_models::Result<T>, parts: &[&str]) {
    let text = result.unwrap_err().to_string();
    for inside in ["Internal torch error", "Exception raised", "frame #", "libtorch"] {
        assert!(!text.contains(inside), "{text}");
    }
    for part in parts {
        assert!(text.contains(part), "`{part}` is not in: {text}");
    }
}

fn logits() -> Tensor {
    Tensor::arange(8, (Kind::Float, Device::Cpu)).view([2, 4])
}

#[test]
fn filters_check_their_settings_and_shapes() {
    let with = |sampling: Sampling| filter_logits(&logits(), &sampling);
    let usual = Sampling::default();
    assert!(with(Sampling { top_k: Some(0), ..usual }).unwrap().equal(&logits()), "0 is off");
    assert!(with(Sampling { top_k: Some(usize::MAX), ..usual }).unwrap().equal(&logits()));
    for temperature in [0.0, -1.0, f64::NAN, f64::INFINITY] {
        says(with(Sampling { temperature, ..usual }), &["temperature"]);
    }
    for top_p in [0.0, -0.1, 1.5, f64::NAN] {
        says(with(Sampling { top_p: Some(top_p), ..usual }), &["top_p"]);
    }
    for wrong in [
        logits().view([8]),
        logits().view([2, 2, 2]),
        logits().to_kind(Kind::Int64),
        logits().narrow(1, 0, 0),
    ] {
        says(filter_logits(&wrong, &usual), &["logits", "[rows, vocab]"]);
    }
    let ids = |ids: &[TokenId]| Tensor::from_slice(ids);
    for id in [-1, 4, TokenId::MAX] {
        says(forbid(&logits(), &ids(&[1, id])), &[&id.to_string(), "vocabulary of 4"]);
    }
    says(forbid(&logits(), &logits()), &["one row of i64"]);
    assert!(forbid(&logits(), &ids(&[])).unwrap().equal(&logits()));
}

#[test]
fn processors_check_their_settings_and_the_history() {
    let tokens = Tensor::from_slice(&[0i64, 1, 2, 3, 0, 1]).view([2, 3]);
    let apply = |processor: Processor| processor.apply(&logits(), History { tokens: &tokens, padding: None });
    let unchanged = [
        Processor::TopK(0),
        Processor::TopK(usize::MAX),
        Processor::NoRepeatNgram(0),
        Processor::NoRepeatNgram(usize::MAX),
        Processor::Suppress(vec![]),
        Processor::SequenceBias(vec![]),
        Processor::SequenceBias(vec![SequenceBias { ids: vec![], bias: 1.0 }]),
        Processor::ForceAt { length: usize::MAX, id: 1 },
        Processor::TopP { p: 1.0, min_keep: usize::MAX },
    ];
    for processor in unchanged {
        assert!(apply(processor.clone()).unwrap().equal(&logits()), "{processor:?}");
    }
    for number in [0.0, -1.0, f64::NAN, f64::INFINITY] {
        says(apply(Processor::Temperature(number)), &["temperature"]);
        says(apply(Processor::RepetitionPenalty(number)), &["repetition_penalty"]);
    }
    for share in [-0.1, 1.1, f64::NAN] {
        says(apply(Processor::TopP { p: share, min_keep: 1 }), &["top_p"]);
        says(apply(Processor::MinP(share)), &["min_p"]);
        says(apply(Processor::TypicalP(share)), &["typical_p"]);
    }
    for id in [-1, 4] {
        for processor in [
            Processor::Suppress(vec![id]),
            Processor::SuppressUntil { length: 9, ids: vec![id] },
            Processor::ForceAt { length: 3, id },
            Processor::SequenceBias(vec![SequenceBias { ids: vec![1, id], bias: 1.0 }]),
        ] {
            says(apply(processor), &[&id.to_string(), "vocabulary of 4"]);
        }
    }
    says(apply(Processor::SequenceBias(vec![SequenceBias { ids: vec![1], bias: f64::NAN }])), &["bias"]);
    let penalty = Processor::RepetitionPenalty(1.2);
    let with =
        |tokens: &Tensor, padding: Option<&Tensor>| penalty.apply(&logits(), History { tokens, padding });
    says(with(&tokens.view([3, 2]), None), &["history", "[2, time]"]);
    says(with(&tokens.view([6]), None), &["history", "[2, time]"]);
    says(with(&tokens.to_kind(Kind::Float), None), &["history", "i64"]);
    says(with(&(&tokens + 2), None), &["history", "vocabulary of 4"]);
    says(with(&tokens, Some(&tokens)), &["history", "[2, 1]"]);
}

#[test]
fn generation_checks_its_settings() {
    let (t5, llama) = (model(plain()), llama(json!({})));
    let usual = || GenerationConfig { max_new_tokens: 3, ..GenerationConfig::default() };
    let prompts = [vec![5, 1], vec![7, 1]];
    let both = |settings: &GenerationConfig, prompts: &[Vec<TokenId>]| {
        [t5.generate(prompts, settings, &[]), llama.generate(prompts, settings, &[])]
    };
    let beam = |num_beams| {
        Strategy::Beam(Beam { num_beams, length_penalty: 1.0, early_stopping: EarlyStopping::No })
    };
    let wrong = [
        (GenerationConfig { max_new_tokens: usize::MAX, ..usual() }, "max_new_tokens"),
        (GenerationConfig { samples_per_prompt: usize::MAX, ..usual() }, "samples_per_prompt"),
        (GenerationConfig { strategy: beam(usize::MAX), ..usual() }, "num_beams"),
        (GenerationConfig { strategy: beam(0), ..usual() }, "0 beams"),
        (GenerationConfig { repetition_penalty: 0.0, ..usual() }, "repetition_penalty"),
        (GenerationConfig { repetition_penalty: f64::NAN, ..usual() }, "repetition_penalty"),
        (GenerationConfig { prefix: vec![VOCAB], ..usual() }, "vocabulary of 40"),
    ];
    for (settings, part) in wrong {
        both(&settings, &prompts).into_iter().for_each(|result| says(result, &[part]));
    }
    for settings in [
        GenerationConfig { min_new_tokens: usize::MAX, ..usual() },
        GenerationConfig { no_repeat_ngram_size: usize::MAX, ..usual() },
        GenerationConfig { strategy: beam(7), ..usual() },
        GenerationConfig {
            strategy: Strategy::Sample(Sampling { top_k: Some(0), ..Sampling::default() }),
            ..usual()
        },
    ] {
        let seeds = [1, 2];
        assert_eq!(t5.generate(&prompts, &settings, &seeds).unwrap().len(), 2, "{settings:?}");
        assert_eq!(llama.generate(&prompts, &settings, &seeds).unwrap().len(), 2, "{settings:?}");
    }
    assert!(both(&usual(), &[]).iter().all(|result| result.as_ref().unwrap().is_empty()));
    both(&usual(), &[vec![]]).into_iter().for_each(|result| says(result, &["row 0"]));
    both(&usual(), &[vec![VOCAB]]).into_iter().for_each(|result| says(result, &["id 40"]));
    both(&usual(), &[vec![-1]]).into_iter().for_each(|result| says(result, &["id -1"]));
}

#[test]
fn a_model_without_end_tokens_writes_to_the_limit() {
    let endless = llama(json!({"eos_token_id": null}));
    let usual = GenerationConfig { max_new_tokens: 12, ..GenerationConfig::default() };
    let beams = GenerationConfig {
        strategy: Strategy::Beam(Beam { num_beams: 3, ..Beam::default() }),
        ..usual.clone()
    };
    for settings in [usual, beams] {
        let written = endless.generate(&[vec![5, 6]], &settings, &[]).unwrap();
        assert_eq!(written[0][0].ids.len(), 12);
    }
}

#[test]
fn scoring_checks_rows_and_ids() {
    let (t5, llama) = (model(plain()), llama(json!({})));
    let score = |policy: &dyn Policy, prompt: &[TokenId], target: &[TokenId]| {
        policy.score(&[Example { prompt: prompt.to_vec(), target: target.to_vec() }], ScoreOptions::default())
    };
    for policy in [&t5 as &dyn Policy, &llama] {
        says(policy.score(&[], ScoreOptions::default()), &["no"]);
        says(score(policy, &[], &[1]), &["row 0"]);
        says(score(policy, &[5], &[VOCAB]), &["40"]);
        says(score(policy, &[5], &[-1]), &["-1"]);
        says(score(policy, &[-100], &[1]), &["-100"]);
        says(
            policy.score_alternatives(&[&[5], &[6]], &[&[1], &[1], &[1]], ScoreOptions::default()),
            &["evenly"],
        );
    }
    for scorer in [&t5 as &dyn ScoreChoices, &llama] {
        says(scorer.choice_log_probs(&[vec![5]], &[vec![]]), &["question 0"]);
        says(scorer.choice_log_probs(&[vec![5]], &[vec![vec![]]]), &["choice 0"]);
        says(scorer.choice_log_probs(&[], &[]), &["no question"]);
        says(scorer.first_token_logits(&[vec![5]], &[vec![VOCAB]]), &["40"]);
    }
}

#[test]
fn parts_of_models_check_what_they_get() {
    let (t5, llama) = (model(plain()), llama(json!({})));
    let ids = |ids: &[TokenId]| Tensor::from_slice(ids).view([1, -1]);
    let encoded = t5.encode(&t5.batch(&[[5, 1]]).unwrap()).unwrap();
    says(t5.decode(&encoded, &ids(&[VOCAB])), &["decoder input", "40"]);
    says(t5.decode(&encoded, &ids(&[])), &["decoder input"]);
    says(t5.decode(&encoded, &Tensor::from_slice(&[1i64])), &["decoder input", "[batch, time]"]);
    says(t5.logits(&Tensor::zeros([1, 3], (Kind::Float, Device::Cpu))), &["states", "16"]);
    let state = Tensor::zeros([1, 16], (Kind::Float, Device::Cpu));
    says(t5.logits_of(&state, &ids(&[VOCAB])), &["40"]);
    says(t5.logits_of(&state, &ids(&[1, 2]).view([2, 1])), &["states"]);
    for time in [0, -3] {
        says(t5.position_bias(time, true), &["position bias"]);
        says(t5.start_decoding(&encoded, 1, time).map(drop), &["decoding"]);
    }
    let mut decoding = t5.start_decoding(&encoded, 1, 2).unwrap();
    says(decoding.step(&ids(&[VOCAB])), &["decoder input", "40"]);
    says(t5.shift_right(&Tensor::from_slice(&[1i64])), &["labels"]);
    assert_eq!(t5.shift_right(&Tensor::zeros([2, 0], (Kind::Int64, Device::Cpu))).unwrap().size(), [2, 0]);
    says(llama.embed(&ids(&[-1])), &["-1"]);
    says(llama.logits(&Tensor::zeros([1, 3], (Kind::Float, Device::Cpu))), &["states", "16"]);
    let batch = Batch { ids: ids(&[VOCAB]), mask: ids(&[1]), tokens: 1 };
    says(llama.forward(&batch), &["40"]);
    says(t5.encode(&batch).map(drop), &["40"]);
    says(llama.batch::<Vec<TokenId>>(&[], Side::Left), &["no token"]);
    says(embedding_statistics(&Tensor::from_slice(&[1f32])), &["embedding"]);
    let head = VeraHead { weight: Tensor::from_slice(&[1f32, 2.0]), bias: 0.0, temperature: 1.0 };
    says(head.logits(&state), &["states", "[1, 16]"]);
}

#[test]
fn a_model_that_cannot_be_is_not_made() {
    let t5 = |changed: T5Config| T5::new(changed, Kind::Float, Device::Cpu, 1).map(drop);
    says(t5(T5Config { vocab_size: -1, ..plain() }), &["vocab_size"]);
    says(t5(T5Config { num_heads: 0, ..plain() }), &["num_heads"]);
    says(t5(T5Config { relative_attention_num_buckets: 0, ..plain() }), &["relative_attention_num_buckets"]);
    let usual = || llama_config(json!({}));
    let llama = |changed: LlamaConfig| Llama::new(changed, Kind::Float, Device::Cpu, 1).map(drop);
    says(llama(LlamaConfig { head_dim: 3, ..usual() }), &["head_dim"]);
    says(llama(LlamaConfig { num_key_value_heads: 0, ..usual() }), &["num_key_value_heads"]);
    says(llama(LlamaConfig { rope_theta: f64::NAN, ..usual() }), &["rope_theta"]);
    let mut grown = model(plain());
    says(grown.add_tokens(VOCAB..TokenId::MAX, 1), &["new tokens"]);
    says(grown.add_tokens(VOCAB..VOCAB, 1), &["new tokens"]);
}
