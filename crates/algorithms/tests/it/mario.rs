//! MaRio's supervised stage, its reward models, and the judgement of responses, on words of the bundled world.

use ruminate_algorithms::mario::{
    JudgingConfig, OptionMode, OptionTraining, OptionTrainingConfig, Rationales, RationalesConfig,
    TextScorer, VerifierConfig, VerifierTraining, judge, quark_data,
};
use ruminate_algorithms::quark::Scorer;
use ruminate_algorithms::{Algorithm, Curriculum, NullObserver, Trainer, TrainerConfig};
use ruminate_datasets::mario::{
    GivenResponse, MarioDataset, MarioRow, Statement, i2o_input, read_statements, response, target,
};
use ruminate_models::{T5, T5Config, Vera};
use ruminate_rewards::mario::{Accuracy, Diversity, MarioItem, NumWords, Response, RewardSet, TextReward};
use ruminate_rewards::{RewardError, Sample};
use tch::{Device, Kind};

use crate::support::{alone, model, short, tiny, tokenizer, world};

const SET: MarioDataset = MarioDataset::QuaRel;

/// Rows about some people, two for each.
fn rows(people: &[&str], rationale: &str) -> Vec<MarioRow> {
    let row = |(ix, person): (usize, &&str)| MarioRow {
        question: format!("What is the weather where {person} lives? (A) sunny (B) rainy"),
        rationale: rationale.to_string(),
        answer: if ix % 2 == 0 { "(A)" } else { "(B)" }.to_string(),
    };
    people.iter().enumerate().map(row).flat_map(|row| [row.clone(), row]).collect()
}

const TRAIN: [&str; 6] = ["Ada", "Adam", "Agnes", "Alan", "Alba", "Albert"];

fn train() -> Vec<MarioRow> {
    rows(&TRAIN, "the city has sunny weather")
}

/// The supervised stage, validated on a few questions.
pub(crate) fn rationales() -> Rationales {
    let config =
        RationalesConfig { eval_batch_size: 3, max_length: 8, min_length: 4, ..RationalesConfig::default() };
    Rationales::new(config, tokenizer(), &train(), rows(&["Amy", "Ada", "Alan"], "dummy")).unwrap()
}

/// A reward model that chooses among labels.
pub(crate) fn options() -> OptionTraining {
    let config = OptionTrainingConfig { eval_batch_size: 1, ..OptionTrainingConfig::default() };
    let dev = rows(&["Amy", "Ada", "Alan"], "a city");
    OptionTraining::new(OptionMode::Ir2o, config, &tokenizer(), SET, train(), dev).unwrap()
}

/// A verifier with five statements.
pub(crate) fn verifier() -> VerifierTraining {
    let said = |(i, city): (usize, &str)| Statement {
        statement: format!("Our Ada lives in {city}."),
        plausible: i % 2 == 0,
    };
    let cities = ["Corvale", "Birkby", "Dunmere", "Holmor", "Birkby"];
    let statements: Vec<Statement> = cities.into_iter().enumerate().map(said).collect();
    let config = VerifierConfig { batch_size: 1, eval_batch_size: 2, ..VerifierConfig::default() };
    let encoder = T5Config { is_encoder_decoder: false, ..tiny(0.0) };
    let encoder = T5::new(encoder, Kind::Float, Device::Cpu, 1).unwrap();
    VerifierTraining::new(&config, encoder, tokenizer(), &statements, &statements).unwrap()
}

#[test]
fn the_supervised_stage_learns_targets_and_counts_its_steps() {
    let _alone = alone();
    let config =
        RationalesConfig { batch_size: 5, max_length: 8, min_length: 4, ..RationalesConfig::default() };
    let dev = rows(&["Amy"], "dummy");
    let mut lesson = Rationales::new(config.clone(), tokenizer(), &train(), dev.clone()).unwrap();
    // 12 rows are two whole batches.
    let trainer = TrainerConfig { steps: 7, ..TrainerConfig::default() };
    assert_eq!((lesson.rows(), lesson.steps(&trainer, 1), lesson.steps(&trainer, 2)), (12, 50, 25));
    let encode = |text: &str| tokenizer().encode(text).unwrap();
    let expected: Vec<_> = train().iter().map(|row| (encode(&row.question), encode(&target(row)))).collect();
    let objective = Curriculum::<T5>::next(&mut lesson, 0).unwrap().remove(0);
    assert_eq!((objective.name, objective.examples.len()), ("lm_loss", 5));
    assert!(objective.examples.iter().all(|e| expected.contains(&(e.prompt.clone(), e.target.clone()))));

    let log = tempfile::tempdir().unwrap();
    let path = log.path().join("new/op_scores_val_greedy.txt");
    let mut lesson = lesson.log_to(path.clone());
    let evaluation = lesson.evaluate(&model(0.0, 1), 3, &mut NullObserver).unwrap();
    let (accuracy, metrics) = (evaluation.score, evaluation.metrics);
    assert_eq!(metrics[0], ("eval/accuracy".to_string(), accuracy));
    let number = |name: &str| metrics.iter().find(|(key, _)| key == name).unwrap().1;
    let expected = format!(
        "Step 3 - num_sents: {:?} num_words: {:?}  Accuracy: {accuracy:?}\n",
        number("eval/num_sents"),
        number("eval/num_words")
    );
    assert_eq!(std::fs::read_to_string(&path).unwrap(), expected);
    // A run that is resumed from before replaces what it repeats.
    for step in [6, 9, 3] {
        lesson.evaluate(&model(0.0, 1), step, &mut NullObserver).unwrap();
    }
    assert_eq!(std::fs::read_to_string(&path).unwrap(), expected);

    // Another amount of data is not what the position belongs to.
    let state = Curriculum::<T5>::state(&lesson);
    let mut other = Rationales::new(config, tokenizer(), &train()[..10], dev).unwrap();
    let error = Curriculum::<T5>::load_state(&mut other, state).unwrap_err().to_string();
    assert!(error.contains("12 rows"), "{error}");
}

#[test]
fn models_that_read_rationales_are_validated_on_rows_that_have_some() {
    let _alone = alone();
    let config = OptionTrainingConfig { held_out_questions: 2, ..OptionTrainingConfig::default() };
    let new = |mode, dev| OptionTraining::new(mode, config.clone(), &tokenizer(), SET, train(), dev).unwrap();
    let dummy = || rows(&["Amy"], "dummy");
    let mut ir2o = new(OptionMode::Ir2o, dummy());
    // Two questions with two rows each.
    assert_eq!((ir2o.rows(), ir2o.held_out()), (8, 4));
    let held_out_is_not_trained = |lesson: &mut OptionTraining| {
        let batches = (0..4).map(|step| Curriculum::<T5>::next(lesson, step).unwrap().remove(0).examples);
        batches.flatten().map(|e| e.prompt).collect::<std::collections::BTreeSet<_>>().len()
    };
    assert_eq!(held_out_is_not_trained(&mut ir2o), 4);
    assert_eq!(new(OptionMode::I2o, dummy()).rows(), 12);
    assert_eq!(new(OptionMode::Ir2o, rows(&["Amy"], "a city")).held_out(), 0);
    let none = OptionTrainingConfig { held_out_questions: 0, ..config.clone() };
    let as_published =
        OptionTraining::new(OptionMode::Ir2o, none, &tokenizer(), SET, train(), dummy()).unwrap();
    assert_eq!((as_published.rows(), as_published.held_out()), (12, 0));
    let evaluation = ir2o.evaluate(&model(0.0, 1), 0, &mut NullObserver).unwrap();
    assert!([0.0, 50.0, 100.0].contains(&evaluation.score), "{evaluation:?}");
    let log = tempfile::tempdir().unwrap();
    let path = log.path().join("op_scores_val.txt");
    let mut logged = new(OptionMode::Ir2o, dummy()).log_to(path.clone());
    for step in [0, 2, 4, 2] {
        logged.evaluate(&model(0.0, 1), step, &mut NullObserver).unwrap();
    }
    let steps: Vec<_> =
        std::fs::read_to_string(&path).unwrap().lines().map(|line| line[..6].to_owned()).collect();
    assert_eq!(steps, ["Step 0", "Step 2"]);

    let example =
        Curriculum::<T5>::next(&mut new(OptionMode::I2o, dummy()), 0).unwrap().remove(0).examples.remove(0);
    let prompts: Vec<_> =
        train().iter().map(|row| tokenizer().encode(&i2o_input(SET, &row.question)).unwrap()).collect();
    assert!(prompts.contains(&example.prompt));

    let mut wrong = train();
    wrong[3].answer = "(C)".into();
    let error =
        OptionTraining::new(OptionMode::I2o, config.clone(), &tokenizer(), SET, wrong, dummy()).unwrap_err();
    assert!(error.to_string().contains("\"(C)\" is none of (A), (B)"), "{error}");
}

fn given(question: &str, label: &str, rationale: &str) -> GivenResponse {
    GivenResponse {
        question: question.into(),
        gold: "(A)".into(),
        gold_response: response("dummy", "(A)"),
        rationale: rationale.into(),
        label: label.into(),
        text: response(rationale, label),
    }
}

#[test]
fn judgements_are_made_by_question() {
    let responses = [
        given("q", "(B)", "a a a a a a"),
        given("q", "(A)", "the city has weather"),
        given("q", "(A)", "the city has sunny weather"),
        given("r", "(B)", "the city"),
    ];
    let rewards = RewardSet::new().add(Accuracy).add(Diversity::Rationale).add(NumWords);
    let judged = judge(&responses, &rewards, &JudgingConfig::default()).unwrap();
    assert_eq!(judged.summary.accuracy, 50.0);
    let columns: Vec<(&str, Option<f64>)> =
        judged.summary.scores.iter().map(|(n, s)| (n.as_str(), *s)).collect();
    // Of the majority's responses to `q`, 9 and 10 words, and of the one to `r`, 7.
    let words = Some((9.5 + 7.0) / 2.0);
    assert_eq!(
        columns,
        [
            ("accuracy", Some(0.5)),
            ("diversity", Some(1.0)),
            ("num_words", words),
            ("num_sents", Some(1.0)),
            ("num_words", words),
        ]
    );
    // Accuracy counts once; what has no bounds does not count.
    assert_eq!(judged.normalised.unwrap().mean, 75.0);
    let interval = judged.accuracy_interval.unwrap();
    assert_eq!((interval.low, interval.high), (0.0, 100.0));
    assert_eq!(judged, judge(&responses, &rewards, &JudgingConfig::default()).unwrap());

    let folder = tempfile::tempdir().unwrap();
    for _ in 0..2 {
        judged.write(folder.path(), "mine").unwrap();
    }
    let lines = std::fs::read_to_string(folder.path().join("eval_reward_scores_other_outputs.txt")).unwrap();
    assert!(lines.starts_with("Name mine - accuracy: 0.5 diversity: 1.0 num_words: "), "{lines}");
    assert_eq!(lines.lines().count(), 2);
}

#[test]
fn lines_have_the_published_decimals() {
    let responses = [given("q", "(A)", "a a a b"), given("r", "(A)", "b a"), given("s", "(B)", "b a")];
    let rewards = RewardSet::new().add(Diversity::Rationale);
    let judged = judge(&responses, &rewards, &JudgingConfig::default()).unwrap();
    let folder = tempfile::tempdir().unwrap();
    judged.write(folder.path(), "mine").unwrap();
    judged.write_own(folder.path(), "val", None, "7").unwrap();
    let line = |name: &str| std::fs::read_to_string(folder.path().join(name)).unwrap();
    // Diversity is 2/3 once and 1 twice; there are 9, 7 and 7 words.
    let counts = "num_sents: 1.0 num_words: 7.67  Accuracy: 66.67\n";
    assert_eq!(line("eval_reward_scores_other_outputs.txt"), format!("Name mine - diversity: 0.89 {counts}"));
    assert_eq!(line("eval_reward_scores_val_greedy.txt"), format!("Step 7 - diversity: 0.889 {counts}"));
}

/// A model that has diverged.
struct Broken;

impl TextReward for Broken {
    fn name(&self) -> String {
        "broken".into()
    }

    fn bounds(&self) -> Option<(f64, f64)> {
        None
    }

    fn scores(&self, responses: &[Response<'_>]) -> Result<Vec<f64>, RewardError> {
        Ok((0..responses.len()).map(|ix| if ix == 1 { f64::NAN } else { 0.0 }).collect())
    }
}

#[test]
fn a_reward_that_is_no_number_names_the_response() {
    let responses = [given("q", "(A)", "x"), given("q", "(A)", "y")];
    let error =
        judge(&responses, &RewardSet::new().add(Broken), &JudgingConfig::default()).unwrap_err().to_string();
    assert!(error.contains("sample 1") && error.contains("broken"), "{error}");
}

#[test]
fn a_verifier_learns_what_is_true_and_is_a_vera_then() {
    let _alone = alone();
    let said =
        |city: &str, plausible| Statement { statement: format!("Our Ada lives in {city}."), plausible };
    let statements: Vec<Statement> = ["Corvale", "Birkby", "Dunmere", "Holmor"]
        .into_iter()
        .zip([true, false, true, false])
        .map(|(c, t)| said(c, t))
        .collect();
    let encoder = || {
        let config = T5Config { is_encoder_decoder: false, ..tiny(0.0) };
        T5::new(config, Kind::Float, Device::Cpu, 1).unwrap()
    };
    let config = VerifierConfig { batch_size: 4, eval_batch_size: 3, ..VerifierConfig::default() };
    let new = |statements: &[Statement]| {
        VerifierTraining::new(&config, encoder(), tokenizer(), statements, statements)
    };
    let mut verifier = new(&statements).unwrap();
    let folder = tempfile::tempdir().unwrap();
    let trainer = short(60);
    let fitted = Trainer::new(trainer, folder.path()).unwrap().fit(&mut verifier, &mut NullObserver).unwrap();
    assert_eq!(fitted.best.score, 100.0);

    let vera = Vera::load(&fitted.last, Kind::Float, Device::Cpu).unwrap();
    let texts: Vec<&str> = statements.iter().map(|s| s.statement.as_str()).collect();
    for (score, statement) in vera.score(&texts).unwrap().iter().zip(&statements) {
        assert_eq!(score.logit > 0.0, statement.plausible, "{statement:?} {score:?}");
        // The temperature of a new one is 1.
        assert_eq!(score.raw, score.calibrated);
    }
    let state = verifier.state();
    let error = new(&[&statements[..], &statements[..]].concat()).unwrap().load_state(state).unwrap_err();
    assert!(error.to_string().contains("4 statements"), "{error}");
    assert!(new(&[]).is_err());
    let bundled = read_statements(&world("mario/statements/dev.jsonl")).unwrap();
    assert!(bundled.iter().any(|s| s.plausible) && bundled.iter().any(|s| !s.plausible));
}

#[test]
fn texts_are_valid_when_they_answer_and_right_when_the_answer_is() {
    let scorer = TextScorer::new(RewardSet::new().add(Diversity::Rationale).add(NumWords));
    let item = MarioItem { question: "q".into(), gold: "(A)".into() };
    let sample = |text| Sample { task: "", item: &item, response: &[], text };
    let samples = ["a. So the answer is (A).", "a a a a. So the answer is (B).", "nothing"].map(sample);
    assert_eq!(Scorer::<T5, MarioItem>::names(&scorer), ["diversity", "num_words"]);
    let judged = Scorer::<T5, MarioItem>::judge(&scorer, &model(0.0, 1), &samples).unwrap();
    let what: Vec<_> = judged.iter().map(|j| (j.valid, j.correct, j.scores[1])).collect();
    assert_eq!(what, [(true, true, Some(6.0)), (true, false, Some(9.0)), (false, false, Some(1.0))]);
    assert!(judged[1].scores[0] < judged[0].scores[0]);
}

#[test]
fn prompts_are_distinct_questions_and_experts_all_rows() {
    let data = quark_data(&train(), &rows(&["Amy"], "dummy")[..1], &tokenizer()).unwrap();
    assert_eq!((data.train.len(), data.expert.len(), data.held_out.len()), (6, 12, 1));
    assert_eq!(data.expert[0].text, target(&train()[0]));
    assert_eq!(data.train[1].item.gold, "(B)");
}
