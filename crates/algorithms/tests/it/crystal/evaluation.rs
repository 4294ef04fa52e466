//! Inference: statements, answers, and what comes of them.

use std::cell::RefCell;
use std::collections::BTreeSet;

use approx::assert_abs_diff_eq;
use ruminate_algorithms::crystal::{
    EnsembleAccuracy, EvaluationConfig, EvaluationReport, KnowledgeSource, evaluate,
};
use ruminate_algorithms::{Error, NullObserver};
use ruminate_datasets::{Annotated, Split};
use ruminate_models::{
    Generate, Generated, GenerationConfig, Result, Sampling, ScoreChoices, Strategy, T5, TokenId,
};
use ruminate_rewards::{Ensemble, EnsembleConfig};
use tch::Tensor;

use super::{TASKS, encoder, questions, silver, statement};
use crate::support::{Recorder, alone, chain, model};

fn config(knowledge: KnowledgeSource) -> EvaluationConfig {
    let sampling = Sampling { top_p: Some(0.9), ..EvaluationConfig::default().sampling };
    EvaluationConfig { knowledge, num_samples: 3, sampling, batch_size: 4, ..EvaluationConfig::default() }
}

fn run(t5: &T5, questions: &[Annotated], config: &EvaluationConfig) -> EvaluationReport {
    evaluate(t5, &encoder(), questions, config, &mut NullObserver).unwrap()
}

/// Questions with statements: a repeated one, one that another question has too, none at all.
fn annotated() -> Vec<Annotated> {
    let items: Vec<Annotated> = silver("clean", Split::Dev).into_iter().step_by(5).collect();
    let mut questions = items.clone();
    for (i, item) in questions.iter_mut().enumerate() {
        let own = item.knowledges[0].clone();
        let of_another = items[(i + 1) % items.len()].knowledges[0].clone();
        item.knowledges = vec![own.clone(), of_another, own, statement()];
    }
    questions[1].knowledges.clear();
    questions
}

/// A model that remembers what it was asked.
struct Witness<'a> {
    t5: &'a T5,
    generations: RefCell<Vec<GenerationConfig>>,
    answered: RefCell<Vec<Vec<TokenId>>>,
}

impl<'a> Witness<'a> {
    fn new(t5: &'a T5) -> Self {
        Self { t5, generations: RefCell::default(), answered: RefCell::default() }
    }
}

impl Generate for Witness<'_> {
    fn generate(
        &self,
        prompts: &[Vec<TokenId>],
        config: &GenerationConfig,
        seeds: &[u64],
    ) -> Result<Vec<Vec<Generated>>> {
        self.generations.borrow_mut().push(config.clone());
        self.t5.generate(prompts, config, seeds)
    }
}

impl ScoreChoices for Witness<'_> {
    fn choice_log_probs(&self, prompts: &[Vec<TokenId>], choices: &[Vec<Vec<TokenId>>]) -> Result<Tensor> {
        self.t5.choice_log_probs(prompts, choices)
    }

    fn first_token_logits(&self, prompts: &[Vec<TokenId>], tokens: &[Vec<TokenId>]) -> Result<Vec<Vec<f32>>> {
        self.answered.borrow_mut().extend_from_slice(prompts);
        self.t5.first_token_logits(prompts, tokens)
    }
}

fn close(a: &[Vec<f64>], b: &[Vec<f64>]) -> bool {
    let flat = |rows: &[Vec<f64>]| rows.concat();
    a.len() == b.len() && flat(a).iter().zip(flat(b)).all(|(a, b)| (a - b).abs() < 1e-4 * b.abs().max(1.0))
}

#[test]
fn items_come_in_the_order_of_the_data() {
    let _alone = alone();
    let questions = questions();
    let lengths: BTreeSet<usize> =
        questions.iter().map(|q| encoder().question(&q.question.question).unwrap().len()).collect();
    assert!(lengths.len() > 1, "batches are put together by length");
    for knowledge in [KnowledgeSource::None, KnowledgeSource::Sampled] {
        let report = run(&model(0.0, 1), &questions, &config(knowledge));
        let asked: Vec<&str> = questions.iter().map(|q| q.question.question.as_str()).collect();
        let answered: Vec<&str> = report.inference.iter().map(|item| item.knowledge.query.as_str()).collect();
        assert_eq!(answered, asked);
        let tasks: Vec<&str> = report.tasks.iter().map(|task| task.task.as_str()).collect();
        assert_eq!(tasks, TASKS);
    }
}

#[test]
fn without_knowledge_the_bare_question_answers() {
    let _alone = alone();
    let report = run(&model(0.0, 1), &annotated(), &config(KnowledgeSource::None));
    for item in &report.inference {
        assert!(item.knowledge.knowledges.is_empty());
        assert_eq!((item.scores_.len(), item.selected_knowledge_ix), (1, Some(-1)));
        assert_eq!((item.pred, item.ok, item.rectified), (item.pred_knowless, item.ok_knowless, 0));
    }
    assert_eq!(report.acc_weighted(), report.acc_weighted_knowless());
    assert!(report.ensembles.iter().all(|of| of.accuracy == report.acc_weighted()));
}

#[test]
fn a_greedy_statement_is_what_the_model_would_say() {
    let _alone = alone();
    let (t5, encoder, questions) = (model(0.0, 1), encoder(), questions());
    let report = run(&t5, &questions, &config(KnowledgeSource::Greedy));
    let forbidden_ids = vec![encoder.pad];
    let generation = GenerationConfig {
        max_new_tokens: 16,
        min_new_tokens: 2,
        forbidden_ids,
        ..GenerationConfig::default()
    };
    for (item, question) in report.inference.iter().zip(&questions) {
        let prompt = encoder.prompts.qk(&encoder.question(&question.question.question).unwrap());
        let said = t5.generate(&[prompt], &generation, &[]).unwrap().remove(0).remove(0);
        let text = encoder.statement_text(&said.ids).unwrap();
        assert_eq!(item.knowledge.knowledges, if text.is_empty() { vec![] } else { vec![text] });
    }
    let again = run(&t5, &questions, &EvaluationConfig { seed: 77, ..config(KnowledgeSource::Greedy) });
    assert_eq!(again, report, "there is nothing to draw");
}

#[test]
fn statements_are_drawn_as_the_settings_say() {
    let _alone = alone();
    let t5 = model(0.0, 1);
    let witness = Witness::new(&t5);
    let config = EvaluationConfig { min_new_tokens: 4, ..config(KnowledgeSource::Sampled) };
    evaluate(&witness, &encoder(), &questions(), &config, &mut NullObserver).unwrap();
    let expected = GenerationConfig {
        strategy: Strategy::Sample(config.sampling),
        max_new_tokens: 16,
        min_new_tokens: 4,
        forbidden_ids: vec![0],
        samples_per_prompt: 3,
        ..GenerationConfig::default()
    };
    assert!(witness.generations.borrow().iter().all(|generation| *generation == expected));
    assert_eq!(witness.generations.borrow().len(), questions().len().div_ceil(4));
    let allowed = EvaluationConfig { forbid_pad: false, ..config };
    let witness = Witness::new(&t5);
    evaluate(&witness, &encoder(), &questions(), &allowed, &mut NullObserver).unwrap();
    assert!(witness.generations.borrow().iter().all(|generation| generation.forbidden_ids.is_empty()));
}

#[test]
fn the_same_seed_gives_the_same_report() {
    let _alone = alone();
    let (t5, questions) = (model(0.0, 1), questions());
    let with_seed =
        |seed| run(&t5, &questions, &EvaluationConfig { seed, ..config(KnowledgeSource::Sampled) });
    let report = with_seed(5);
    // Whatever else has drawn from libtorch's generator in between.
    tch::manual_seed(123);
    assert_eq!(with_seed(5), report);
    let statements = |report: &EvaluationReport| -> Vec<Vec<String>> {
        report.inference.iter().map(|item| item.knowledge.knowledges.clone()).collect()
    };
    assert_ne!(statements(&with_seed(6)), statements(&report));
    let distinct: BTreeSet<String> = statements(&report).concat().into_iter().collect();
    assert!(distinct.len() > questions.len(), "the samples of a question differ from each other");
}

#[test]
fn the_size_of_a_batch_changes_nothing() {
    let _alone = alone();
    let (t5, questions) = (model(0.0, 1), annotated());
    for knowledge in [KnowledgeSource::Sampled, KnowledgeSource::Greedy, KnowledgeSource::Given] {
        let of = |batch_size| run(&t5, &questions, &EvaluationConfig { batch_size, ..config(knowledge) });
        let alone = of(1);
        for batch_size in [3, 64] {
            let together = of(batch_size);
            assert_eq!(together.tasks, alone.tasks);
            for (a, b) in together.inference.iter().zip(&alone.inference) {
                assert_eq!((&a.knowledge, a.pred, a.pred_knowless), (&b.knowledge, b.pred, b.pred_knowless));
                assert!(close(&a.scores_, &b.scores_), "{knowledge:?}, {batch_size}");
            }
        }
    }
}

#[test]
fn each_prompt_is_scored_once_and_as_if_alone() {
    let _alone = alone();
    let (t5, encoder, questions) = (model(0.0, 1), encoder(), annotated());
    let ensemble = EnsembleConfig { no_knowless_expert: false, ..EnsembleConfig::default() };
    let config = EvaluationConfig { num_samples: 4, ensemble, ..config(KnowledgeSource::Given) };
    let witness = Witness::new(&t5);
    let report = evaluate(&witness, &encoder, &questions, &config, &mut NullObserver).unwrap();
    for (item, Annotated { question, knowledges }) in report.inference.iter().zip(&questions) {
        assert_eq!(item.knowledge.knowledges, *knowledges);
        let q = encoder.question(&question.question).unwrap();
        let with = knowledges.iter().map(|k| encoder.prompts.qka(&q, &encoder.statement(k).unwrap()));
        let letters =
            encoder.labels(&question.choices).unwrap().into_iter().map(|label| label[0]).collect::<Vec<_>>();
        let alone: Vec<Vec<f64>> = std::iter::once(encoder.prompts.qa(&q))
            .chain(with)
            .map(|prompt| {
                let logits =
                    tch::no_grad(|| t5.first_token_logits(&[prompt], std::slice::from_ref(&letters)))
                        .unwrap();
                logits[0].iter().map(|&x| f64::from(x)).collect()
            })
            .collect();
        assert!(close(&item.scores_, &alone), "{:?} {alone:?}", item.scores_);
        if !knowledges.is_empty() {
            assert_eq!(item.scores_[1], item.scores_[3], "the repeated statement");
        }
    }
    let answered = witness.answered.into_inner();
    let distinct: BTreeSet<&Vec<TokenId>> = answered.iter().collect();
    assert_eq!(answered.len(), distinct.len());
    let occurrences: usize = questions.iter().map(|q| 1 + q.knowledges.len()).sum();
    assert!(answered.len() < occurrences);
}

#[test]
fn given_statements_are_cut_to_their_number() {
    let _alone = alone();
    let (t5, questions) = (model(0.0, 1), annotated());
    let witness = Witness::new(&t5);
    let config = EvaluationConfig { num_samples: 2, ..config(KnowledgeSource::Given) };
    let report = evaluate(&witness, &encoder(), &questions, &config, &mut NullObserver).unwrap();
    assert!(witness.generations.borrow().is_empty());
    for (i, (item, question)) in report.inference.iter().zip(&questions).enumerate() {
        let first: Vec<String> = question.knowledges.iter().take(2).cloned().collect();
        assert_eq!(item.knowledge.knowledges, first);
        // The bare question is an expert only where there is no other.
        let bare = i == 1;
        assert_eq!(item.scores_.len(), if bare { 1 } else { 2 });
        assert_eq!(item.selected_knowledge_ix == Some(-1), bare);
    }
}

#[test]
fn given_statements_may_be_filled_up_with_empty_ones() {
    let _alone = alone();
    let (t5, questions) = (model(0.0, 1), annotated());
    let ensemble = EnsembleConfig { ensembling: Ensemble::Moe, ..EnsembleConfig::default() };
    let config = EvaluationConfig { num_samples: 5, ensemble, ..config(KnowledgeSource::Given) };
    let plain = run(&t5, &questions, &config);
    let padded = run(&t5, &questions, &EvaluationConfig { pad_given: true, ..config });
    for (plain, padded) in plain.inference.iter().zip(&padded.inference) {
        // The files list what was given.
        assert_eq!(plain.knowledge, padded.knowledge);
        let given = plain.knowledge.knowledges.len();
        let probs = |item: &ruminate_datasets::InferenceItem| item.probs.clone().unwrap();
        if given == 0 {
            assert!(close(&[probs(plain)], &[probs(padded)]));
            continue;
        }
        // The mean has the bare question in it as often as statements are missing.
        let bare = &padded.probs_[given];
        let mean: Vec<f64> = probs(plain)
            .iter()
            .zip(bare)
            .map(|(with, bare)| (with * given as f64 + bare * (5 - given) as f64) / 5.0)
            .collect();
        assert!(given < 5 && close(&[mean], &[probs(padded)]), "{padded:?}");
    }
}

#[test]
fn accuracies_are_shares_of_the_items() {
    let _alone = alone();
    let (t5, questions) = (model(0.0, 3), annotated());
    let of = |ensembling| {
        let ensemble = EnsembleConfig { ensembling, ..EnsembleConfig::default() };
        run(&t5, &questions, &EvaluationConfig { ensemble, ..config(KnowledgeSource::Given) })
    };
    let report = of(Ensemble::Max);
    let all = report.inference.len() as f64;
    for item in &report.inference {
        assert_eq!(item.ok, u8::from(item.pred == item.knowledge.answer_ix));
        assert_eq!(item.ok_knowless, u8::from(item.pred_knowless == item.knowledge.answer_ix));
    }
    let right: u32 = report.inference.iter().map(|item| u32::from(item.ok)).sum();
    assert_eq!(report.acc_weighted(), f64::from(right) / all);
    let mut unweighted = (0.0, 0.0);
    for (task, name) in report.tasks.iter().zip(TASKS) {
        let items: Vec<_> = report.inference.iter().filter(|item| item.knowledge.task == name).collect();
        assert_eq!((task.task.as_str(), task.questions), (name, items.len()));
        let share = |of: fn(&ruminate_datasets::InferenceItem) -> u8| {
            items.iter().map(|item| f64::from(of(item))).sum::<f64>() / items.len() as f64
        };
        assert_eq!((task.accuracy, task.accuracy_knowless), (share(|i| i.ok), share(|i| i.ok_knowless)));
        unweighted = (unweighted.0 + task.accuracy / 3.0, unweighted.1 + task.accuracy_knowless / 3.0);
    }
    assert_abs_diff_eq!(report.acc_unweighted(), unweighted.0, epsilon = 1e-12);
    assert_abs_diff_eq!(report.acc_unweighted_knowless(), unweighted.1, epsilon = 1e-12);
    // What each way of combining would have given is what it gives.
    let modes: Vec<Ensemble> = report.ensembles.iter().map(|of| of.ensemble).collect();
    assert_eq!(modes, Ensemble::ALL);
    for EnsembleAccuracy { ensemble: mode, accuracy } in &report.ensembles {
        assert_eq!(of(*mode).acc_weighted(), *accuracy, "{mode}");
    }
}

#[test]
fn an_observer_sees_both_phases_and_can_end_them() {
    let _alone = alone();
    let (t5, questions) = (model(0.0, 1), questions());
    let count = questions.len();
    let mut observer = Recorder::default();
    evaluate(&t5, &encoder(), &questions, &config(KnowledgeSource::Greedy), &mut observer).unwrap();
    let writing = count.div_ceil(4);
    assert_eq!(observer.events[0], format!("writing knowledge 4 of {count}"));
    assert_eq!(observer.events[writing - 1], format!("writing knowledge {count} of {count}"));
    assert_eq!(observer.events.last().unwrap(), &format!("answering {0} of {0}", 2 * count));
    let mut observer = Recorder::failing_at(&format!("answering 4 of {}", 2 * count));
    let error =
        evaluate(&t5, &encoder(), &questions, &config(KnowledgeSource::Greedy), &mut observer).unwrap_err();
    assert!(matches!(error, Error::Observer(_)), "{error}");
}

#[test]
fn wrong_settings_are_refused() {
    let _alone = alone();
    let (t5, questions) = (model(0.0, 1), questions());
    let refusal = |config: EvaluationConfig| {
        evaluate(&t5, &encoder(), &questions, &config, &mut NullObserver).unwrap_err()
    };
    let sampled = || config(KnowledgeSource::Sampled);
    let error = refusal(EvaluationConfig { num_samples: 0, ..sampled() });
    assert!(matches!(&error, Error::Config { key, .. } if key == "num_samples"), "{error}");
    let error = refusal(EvaluationConfig { batch_size: 0, ..sampled() });
    assert!(matches!(&error, Error::Config { key, .. } if key == "batch_size"), "{error}");
    let sampling = Sampling { temperature: 0.0, ..Sampling::default() };
    let error = chain(&refusal(EvaluationConfig { sampling, ..sampled() }));
    assert!(error.contains("temperature is 0"), "{error}");
}

#[test]
fn no_questions_give_an_empty_report() {
    let _alone = alone();
    let report = run(&model(0.0, 1), &[], &config(KnowledgeSource::Greedy));
    assert!(report.inference.is_empty() && report.tasks.is_empty());
    assert_eq!((report.acc_weighted(), report.acc_unweighted()), (0.0, 0.0));
}
