//! Llama and Mistral: what a token sees, scores, gradients, folders.

use proptest::prelude::*;
use proptest::test_runner::TestCaseError;
use ruminate_models::checkpoint::{read_tensors, write_model, write_tensors};
use ruminate_models::{
    ActorCritic, Example, Generate, GenerationConfig, IGNORED, Llama, LlamaConfig, Parameters, Policy,
    ScoreChoices, ScoreOptions, Side, TokenId,
};
use serde_json::json;
use tch::{Device, Kind, Tensor};

use crate::padding::{choices_agree, row, same, scores_agree, target};
use crate::support::{
    CLOSE, VOCAB, assert_close, cases, close, entries, generator, llama, llama_changes, llama_config, llamas,
    refused,
};

fn named(kind: &str) -> impl Fn(TestCaseError) -> TestCaseError {
    move |e| TestCaseError::fail(format!("{kind}: {e}"))
}

fn refs<T: AsRef<[TokenId]>>(rows: &[T]) -> Vec<&[TokenId]> {
    rows.iter().map(AsRef::as_ref).collect()
}

proptest! {
    #![proptest_config(cases(12))]

    #[test]
    fn scores_do_not_depend_on_neighbours(
        examples in prop::collection::vec(
            (row(1..14), target()).prop_map(|(prompt, target)| Example { prompt, target }), 2..5),
    ) {
        for (kind, llama) in llamas() {
            scores_agree(&llama, &examples).map_err(named(kind))?;
            tch::no_grad(|| scores_agree(&llama, &examples)).map_err(named(kind))?;
        }
    }

    #[test]
    fn choices_do_not_depend_on_each_other(
        questions in prop::collection::vec((row(1..14), prop::collection::vec(row(1..5), 1..4)), 1..4),
    ) {
        let (prompts, choices): (Vec<_>, Vec<_>) = questions.into_iter().unzip();
        for (kind, llama) in llamas() {
            choices_agree(&llama, &prompts, &choices).map_err(named(kind))?;
        }
    }

    #[test]
    fn padding_on_either_side_is_invisible(rows in prop::collection::vec(row(1..14), 2..5)) {
        for (kind, llama) in llamas() {
            let sides = [Side::Left, Side::Right].map(|side| {
                let batch = llama.batch(&rows, side).unwrap();
                (llama.forward(&batch).unwrap(), batch.ids.size()[1])
            });
            for (i, row) in rows.iter().enumerate() {
                let alone = llama.forward(&llama.batch(&[row], Side::Left).unwrap()).unwrap().get(0);
                let length = row.len() as i64;
                let cut = |from| move |states: &Tensor| states.get(i as i64).narrow(0, from, length);
                same(&cut(sides[0].1 - length)(&sides[0].0), &alone, "left").map_err(named(kind))?;
                same(&cut(0)(&sides[1].0), &alone, "right").map_err(named(kind))?;
            }
        }
    }

    #[test]
    fn targets_that_share_a_prompt_score_as_if_they_did_not(
        prompts in prop::collection::vec(row(1..14), 1..4),
        halves in prop::collection::vec((target(), target()), 9),
        longest in 1usize..10,
    ) {
        // Shorter and longer than a head is wide, which attend in different ways.
        let cut = |(a, b): &(Vec<TokenId>, Vec<TokenId>)| a.iter().chain(b).take(longest).copied().collect();
        let targets: Vec<Vec<TokenId>> = halves.iter().map(cut).collect();
        let (prompts, targets) = (refs(&prompts), refs(&targets[..prompts.len() * 3]));
        let spread: Vec<&[TokenId]> = (0..targets.len()).map(|i| prompts[i / 3]).collect();
        let want = ScoreOptions { entropy: true, states: true };
        for (kind, llama) in llamas() {
            let run = |prompts: &[&[TokenId]]| {
                let scores = llama.score_alternatives(prompts, &targets, want).unwrap();
                let labels = scores.labels.mask.unsqueeze(2);
                let states = scores.states.unwrap() * labels;
                (&scores.log_probs.sum(Kind::Float) + states.square().sum(Kind::Float)).backward();
                let entropy = scores.entropy.unwrap().detach();
                let mut all = vec![scores.log_probs.detach(), entropy, states.detach()];
                all.extend(take_gradients(llama.parameters()));
                all
            };
            for (shared, apart) in run(&prompts).iter().zip(run(&spread)) {
                // Processors add in different orders; the elements of a gradient are sums in which terms as large as the largest cancel.
                let largest = apart.abs().max().clamp_min(1.0);
                close(&(shared / &largest), &(&apart / &largest), 3e-5)
                    .map_err(|e| TestCaseError::fail(format!("{kind}: {e}")))?;
            }
        }
    }
}

/// The gradients, zeroed for the next run.
fn take_gradients(parameters: &Parameters) -> Vec<Tensor> {
    let take = |(_, parameter): (&str, &Tensor)| {
        let mut gradient = parameter.grad();
        let copy = gradient.copy();
        let _ = gradient.zero_();
        copy
    };
    parameters.iter().map(take).collect()
}

fn example(prompt: &[i64], target: &[i64]) -> Example {
    Example { prompt: prompt.to_vec(), target: target.to_vec() }
}

#[test]
fn scores_are_the_log_softmax_of_the_next_tokens() {
    for (kind, llama) in llamas() {
        let target = [9, IGNORED, 31, 2];
        let want = ScoreOptions { entropy: true, states: true };
        let scores = llama.score(&[example(&[4, 5, 1], &target)], want).unwrap();
        // Where there is no label the padding token is read.
        let pad = llama.pad_token_id();
        let states = llama.forward(&llama.batch(&[[4, 5, 1, 9, pad, 31]], Side::Right).unwrap()).unwrap();
        let states = states.narrow(1, 2, 4);
        let all = llama.logits(&states).unwrap().log_softmax(-1, Kind::Float);
        let at = |position: i64, id: i64| all.double_value(&[0, position, id]) as f32;
        let expected = Tensor::from_slice2(&[[at(0, 9), 0.0, at(2, 31), at(3, 2)]]);
        assert_close(&scores.log_probs, &expected, kind);
        let entropy = (all.exp() * &all).sum_dim_intlist(-1, false, Kind::Float).neg();
        assert_close(&scores.entropy.unwrap(), &(entropy * &scores.labels.mask), kind);
        assert_close(&scores.states.unwrap(), &states, kind);
        assert_eq!((scores.labels.count, scores.tokens), (3, 6), "{kind}");
    }
}

#[test]
fn first_token_logits_are_those_behind_the_prompt() {
    let prompts = vec![vec![4, 5, 1], vec![7]];
    for (kind, llama) in llamas() {
        let got = llama.first_token_logits(&prompts, &[vec![3, 9], vec![5]]).unwrap();
        for (i, ids) in [vec![3, 9], vec![5]].iter().enumerate() {
            let states = llama.forward(&llama.batch(&prompts[i..=i], Side::Right).unwrap()).unwrap();
            let logits = llama.logits(&states.select(1, prompts[i].len() as i64 - 1)).unwrap();
            let expected = logits.view([-1]).index_select(0, &Tensor::from_slice(ids));
            assert_close(&Tensor::from_slice(&got[i]), &expected, kind);
        }
    }
}

#[test]
fn what_cannot_be_scored_is_an_error() {
    let llama = llama(json!({}));
    let score = |examples: &[Example]| llama.score(examples, ScoreOptions::default());
    refused(score(&[]), &["no token"]);
    refused(score(&[example(&[1], &[1]), example(&[], &[1])]), &["row 1", "no token"]);
    refused(score(&[example(&[1], &[])]), &["no token"]);
    refused(score(&[example(&[5, 40], &[1])]), &["row 0", "id 40", "vocabulary of 40"]);
    refused(score(&[example(&[1], &[1]), example(&[1], &[3, -1])]), &["row 1", "id -1"]);
    refused(
        llama.score_alternatives(&[&[1], &[2]], &[&[1], &[2], &[3]], ScoreOptions::default()),
        &["evenly"],
    );
    refused(llama.choice_log_probs(&[vec![1]], &[vec![vec![]]]), &["choice 0 of question 0"]);
}

#[test]
fn a_token_sees_no_further_than_the_window() {
    let mistral = json!({"model_type": "mistral", "num_key_value_heads": 2, "num_hidden_layers": 1, "sliding_window": 3});
    for (changes, reach) in [(mistral, 3), (json!({"num_hidden_layers": 1}), 8)] {
        let llama = llama(changes);
        let states = |first: TokenId| {
            let row = [first, 5, 6, 7, 8, 9, 10, 11];
            llama.forward(&llama.batch(&[row], Side::Right).unwrap()).unwrap().get(0)
        };
        let moved = (states(3) - states(30)).abs().amax([1i64], false);
        for position in 0..8 {
            assert_eq!(moved.double_value(&[position]) > 1e-4, position < reach, "{position} of {reach}");
        }
    }
}

#[test]
fn long_rows_through_the_fused_kernel_score_the_same() {
    let rows: Vec<Vec<TokenId>> = (0..5).map(|r| (0..1024).map(|t| (7 * t + r) % VOCAB).collect()).collect();
    let examples: Vec<Example> = rows.iter().map(|row| example(&row[..1], &row[1..])).collect();
    for changes in [
        json!({"num_key_value_heads": 2}),
        json!({"model_type": "mistral", "num_key_value_heads": 4, "sliding_window": 700}),
    ] {
        let llama = llama(changes);
        let run = |examples: &[Example]| {
            let scores = llama.score(examples, ScoreOptions::default()).unwrap();
            scores.log_probs.sum(Kind::Float).backward();
            (scores.log_probs.detach(), take_gradients(llama.parameters()))
        };
        // Five rows have more than 16 Mi scores, one has not.
        let (together, gradients) = run(&examples);
        let apart: Vec<_> = examples.iter().map(|e| run(std::slice::from_ref(e))).collect();
        let rows: Vec<&Tensor> = apart.iter().map(|(log_probs, _)| log_probs).collect();
        close(&together, &Tensor::cat(&rows, 0), 1e-4).unwrap();
        for (i, gradient) in gradients.iter().enumerate() {
            let sum = apart.iter().fold(gradient.zeros_like(), |sum, (_, all)| sum + &all[i]);
            let error = (gradient - &sum).norm().double_value(&[]) / sum.norm().double_value(&[]);
            assert!(error < 1e-4, "parameter {i}: {error}");
        }
    }
}

#[test]
fn a_gradient_is_the_slope_of_the_loss() {
    for (kind, llama) in llamas() {
        let examples = [example(&[5, 9, 11, 3, 8, 21, 30], &[7, 4, 2]), example(&[9], &[8, 2])];
        let loss =
            || llama.score(&examples, ScoreOptions::default()).unwrap().log_probs.sum(Kind::Double).neg();
        loss().backward();
        for (name, parameter) in llama.parameters().iter() {
            let slope = parameter.grad().square().sum(Kind::Double).double_value(&[]);
            assert!(slope.is_finite() && slope > 0.0, "{kind}: {name}");
            let step = 1e-3 / slope.sqrt();
            let moved = |by: f64| {
                tch::no_grad(|| {
                    let _ = parameter.shallow_clone().g_add_(&(parameter.grad() * by));
                    loss().double_value(&[])
                })
            };
            let up = moved(step);
            let down = moved(-2.0 * step);
            moved(step);
            let measured = (up - down) / (2.0 * step);
            assert!((measured / slope - 1.0).abs() < 0.05, "{kind}: {name}: {measured} against {slope}");
        }
    }
}

#[test]
fn gradient_checkpointing_changes_no_bit() {
    for (kind, changes) in llama_changes() {
        for dropout in [0.0, 0.3] {
            let mut model = llama_config(changes.clone());
            model.attention_dropout = dropout;
            let _generator = generator();
            let mut llama = Llama::new(model, Kind::Float, Device::Cpu, 3).unwrap();
            llama.set_training(true);
            let mut run = |on: bool| {
                llama.set_gradient_checkpointing(on);
                tch::manual_seed(5);
                let examples = [example(&[5, 9, 11, 3, 8, 21, 30], &[7, 4, 2]), example(&[9], &[8, 2])];
                let scores = llama.score(&examples, ScoreOptions::default()).unwrap();
                scores.log_probs.sum(Kind::Float).backward();
                let mut all = vec![scores.log_probs.detach()];
                all.extend(take_gradients(llama.parameters()));
                all
            };
            for (kept, remade) in run(false).iter().zip(run(true)) {
                assert!(kept.equal(&remade), "{kind}, dropout {dropout}");
            }
        }
    }
}

#[test]
fn dropout_acts_in_training_mode_only() {
    let mut llama = llama(json!({"attention_dropout": 0.4}));
    let score = |llama: &Llama| {
        llama.score(&[example(&[5, 9, 11, 3], &[7, 4, 2])], ScoreOptions::default()).unwrap().log_probs
    };
    let _generator = generator();
    let calm = score(&llama);
    assert!(calm.equal(&score(&llama)));
    llama.set_training(true);
    assert!((score(&llama) - &calm).abs().max().double_value(&[]) > 1e-3);
    llama.set_training(false);
    assert!(calm.equal(&score(&llama)));
}

#[test]
fn a_padding_token_that_the_configuration_names_is_not_learnt() {
    let row = [example(&[0, 5, 0, 9], &[0, 2])];
    for (named, learnt) in [(json!(null), true), (json!(0), false)] {
        let llama = llama(json!({"pad_token_id": named}));
        llama.score(&row, ScoreOptions::default()).unwrap().log_probs.sum(Kind::Float).backward();
        let gradient = llama.parameters().get("model.embed_tokens.weight").unwrap().grad();
        assert_eq!(gradient.get(0).norm().double_value(&[]) > 0.0, learnt);
        assert!(gradient.get(5).norm().double_value(&[]) > 0.0);
    }
}

#[test]
fn a_value_head_learns_from_the_states() {
    let critic = ActorCritic::shared(llama(json!({})), 3).unwrap();
    let examples = [example(&[5, 9, 11], &[7, 4, 2]), example(&[9], &[8, 2])];
    let (scores, values) = critic.score_with_values(&examples, ScoreOptions::default()).unwrap();
    assert_eq!(values.size(), scores.log_probs.size());
    values.sum(Kind::Float).backward();
    assert!(critic.parameters().get("model.layers.0.mlp.up_proj.weight").unwrap().grad().defined());
}

#[test]
fn weights_in_bfloat16_score_as_those_of_float32() {
    for (kind, exact) in llamas() {
        tch::no_grad(|| {
            for (_, p) in exact.parameters().iter() {
                p.shallow_clone().copy_(&p.to_kind(Kind::BFloat16));
            }
        });
        let folder = tempfile::tempdir().unwrap();
        exact.save(folder.path()).unwrap();
        let rounded = Llama::load(folder.path(), Kind::BFloat16, Device::Cpu).unwrap();
        let examples = [example(&[5, 9, 11, 3, 8, 21, 30], &[7, 4, 2]), example(&[9], &[8, 2])];
        let score = |llama: &Llama| llama.score(&examples, ScoreOptions::default()).unwrap().log_probs;
        let (a, b) = (score(&exact), score(&rounded));
        assert_eq!(b.kind(), Kind::Float);
        let off = (a - b).abs().max().double_value(&[]);
        assert!(off > 0.0 && off < 0.15, "{kind}: {off} nats apart");
    }
}

#[test]
fn products_in_bfloat16_score_and_write_as_float32_does() {
    let examples = [example(&[5, 9, 11, 3, 8, 21, 30], &[7, 4, 2]), example(&[9], &[8, 2])];
    for (kind, llama) in llamas() {
        let run = || -> ruminate_models::Result<_> {
            let scores = llama.score(&examples, ScoreOptions::default())?.log_probs;
            let prompts: Vec<_> = examples.iter().map(|e| e.prompt.clone()).collect();
            let settings =
                GenerationConfig { max_new_tokens: 4, samples_per_prompt: 2, ..Default::default() };
            let written = llama.generate(&prompts, &settings, &[])?.concat();
            for row in &written {
                assert!(row.log_probs.iter().all(|p| p.is_finite()));
            }
            Ok((scores, written))
        };
        let (exact, _) = run().unwrap();
        let (rounded, written) = ruminate_torch::autocast(Device::Cpu, run).unwrap().unwrap();
        let off = (&exact - &rounded).abs().max().double_value(&[]);
        assert!(off > 0.0 && off < 0.15, "{kind}: {off} nats apart");
        // What is written has the probabilities that scoring gives it.
        for (i, row) in written.iter().enumerate() {
            let example = Example { prompt: examples[i / 2].prompt.clone(), target: row.ids.clone() };
            let scores = llama.score(&[example], ScoreOptions::default()).unwrap().log_probs.view([-1]);
            let off = (scores - Tensor::from_slice(&row.log_probs)).abs().max().double_value(&[]);
            assert!(off < 0.15, "{kind}: {off} nats apart");
        }
    }
}

fn assert_same_parameters(a: &Llama, b: &Llama) {
    assert_eq!(a.parameters().iter().count(), b.parameters().iter().count());
    for ((name, x), (other, y)) in a.parameters().iter().zip(b.parameters().iter()) {
        assert!(name == other && x.equal(y), "{name}");
    }
}

#[test]
fn what_was_saved_is_loaded_again() {
    for (kind, llama) in llamas() {
        let folder = tempfile::tempdir().unwrap();
        llama.save(folder.path()).unwrap();
        let back = Llama::load(folder.path(), Kind::Float, Device::Cpu).unwrap();
        assert_eq!(back.config(), llama.config(), "{kind}");
        assert_same_parameters(&llama, &back);
        // In several files.
        write_model(folder.path(), llama.parameters(), 4000).unwrap();
        assert!(entries(folder.path()).len() > 4);
        assert_same_parameters(&llama, &Llama::load(folder.path(), Kind::Float, Device::Cpu).unwrap());
    }
}

#[test]
fn what_other_programs_add_to_a_folder_is_no_obstacle() {
    let llama = llama(json!({"tie_word_embeddings": true}));
    let folder = tempfile::tempdir().unwrap();
    llama.save(folder.path()).unwrap();
    let path = folder.path().join("model.safetensors");
    let mut tensors = read_tensors(&path, Device::Cpu).unwrap();
    // Old frequencies, and the embedding a second time.
    let frequencies = Tensor::zeros([2], (Kind::Float, Device::Cpu));
    tensors.insert("model.layers.1.self_attn.rotary_emb.inv_freq".into(), frequencies);
    tensors.insert("lm_head.weight".into(), tensors["model.embed_tokens.weight"].shallow_clone());
    write_tensors(&path, tensors.iter().map(|(name, tensor)| (name.as_str(), tensor))).unwrap();
    // Chat models name their end tokens here.
    let generation = folder.path().join("generation_config.json");
    std::fs::write(&generation, r#"{"eos_token_id": [3, 7], "do_sample": true}"#).unwrap();
    let back = Llama::load(folder.path(), Kind::Float, Device::Cpu).unwrap();
    assert_same_parameters(&llama, &back);
    assert_eq!(back.config().eos_token_ids, [3, 7]);
    for wrong in [r#"{"eos_token_id": "</s>"}"#, r#"{"eos_token_id": 40}"#, r#"{"eos_token_id": []}"#] {
        std::fs::write(&generation, wrong).unwrap();
        refused(Llama::load(folder.path(), Kind::Float, Device::Cpu), &["eos_token_id"]);
    }
}

#[test]
fn weights_that_do_not_fit_are_named() {
    let folder = tempfile::tempdir().unwrap();
    llama(json!({})).save(folder.path()).unwrap();
    let load = |changes| {
        let config: LlamaConfig = llama_config(changes);
        Llama::load_with(config, folder.path(), Kind::Float, Device::Cpu)
    };
    refused(load(json!({"num_key_value_heads": 2})), &["self_attn.k_proj.weight", "[16, 16]", "[8, 16]"]);
    refused(load(json!({"num_hidden_layers": 3})), &["model.layers.2.mlp.up_proj.weight", "missing"]);
    refused(load(json!({"num_hidden_layers": 1})), &["model.layers.1.mlp.up_proj.weight", "unexpected"]);
}

#[test]
fn a_seed_is_a_model() {
    let make = |seed| {
        let _generator = generator();
        Llama::new(llama_config(json!({})), Kind::Float, Device::Cpu, seed).unwrap()
    };
    assert_same_parameters(&make(3), &make(3));
    let (a, b) = (make(3), make(4));
    let weight = |llama: &Llama| llama.parameters().get("lm_head.weight").unwrap().shallow_clone();
    assert!((weight(&a) - weight(&b)).abs().max().double_value(&[]) > CLOSE);
    let deviation = weight(&a).std(true).double_value(&[]);
    assert!((deviation - 0.3).abs() < 0.03, "{deviation}");
}
