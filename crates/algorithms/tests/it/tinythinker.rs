//! Staged generation, its pairs and both phases, on the bundled world's words.

use std::collections::BTreeSet;
use std::path::Path;

use approx::assert_abs_diff_eq;
use ruminate_algorithms::dpo::Dpo;
use ruminate_algorithms::tinythinker::{
    Accuracy, Acquisition, AcquisitionConfig, Asked, Decoding, GenerationSettings, Reflected, Reflection,
    ReflectionConfig, Round, StagePairs, Student,
};
use ruminate_algorithms::trainer::Algorithm;
use ruminate_algorithms::{Collective, NullObserver, Observer, Result, Sft, Trainer, TrainerConfig};
use ruminate_datasets::PreferenceExample;
use ruminate_datasets::tinythinker::{
    AnalysisOrder, Question, Reasoned, StageRecords, Variant, questions_of, teacher_runs,
};
use ruminate_models::{T5, T5Config, Tokenizer};
use tch::{Device, Kind};

use crate::support::alone;

fn root() -> &'static Path {
    Path::new(concat!(env!("CARGO_MANIFEST_DIR"), "/../../fixtures/world"))
}

fn tokenizer() -> Tokenizer {
    Tokenizer::open(&root().join("tinythinker/t5")).unwrap()
}

pub(crate) fn model(seed: i64) -> T5 {
    let config = T5Config::open(&root().join("tinythinker/t5/config.json")).unwrap();
    let small = T5Config {
        d_model: 32,
        d_kv: 8,
        d_ff: 64,
        num_heads: 2,
        num_layers: 1,
        num_decoder_layers: 1,
        ..config
    };
    T5::new(small, Kind::Float, Device::Cpu, seed).unwrap()
}

/// Questions about people, with as many options as they say.
fn questions(options: &[usize]) -> Vec<Question> {
    let names = ["Anna", "Boris", "Clara", "Emil", "Felix", "Greta"];
    let weathers = ["sunny", "rainy", "snowy", "windy"];
    let question = |(i, &count): (usize, &usize)| {
        let stem = format!("What is the weather where {} lives?", names[i]);
        let options = weathers[..count].iter().map(|w| (*w).to_string()).collect();
        Question::new(i.to_string(), stem, options, char::from(b'A' + (i % count) as u8)).unwrap()
    };
    options.iter().enumerate().map(question).collect()
}

fn records(variant: Variant) -> StageRecords {
    let questions = questions(&[4, 2, 3, 4, 4, 2]);
    let reasoned = |question: &Question| Reasoned {
        question: question.clone(),
        knowledge: "Every city has a weather.".into(),
        reasons: question.options.iter().map(|o| (o.label, format!("Perhaps {}.", o.text))).collect(),
    };
    let items: Vec<Reasoned> = questions.iter().map(reasoned).collect();
    StageRecords::new(variant, &items, &questions[..3], &questions[3..], AnalysisOrder::ByLabel)
}

fn settings(batch_size: usize) -> GenerationSettings {
    GenerationSettings { max_length: 8, temperature: 1.0, batch_size, seed: 7, ..Default::default() }
}

fn respond(
    variant: Variant,
    asked: &[Asked],
    decoding: Decoding,
    runs: usize,
    batch_size: usize,
) -> Vec<Vec<ruminate_algorithms::tinythinker::Response>> {
    let (policy, tokenizer) = (model(1), tokenizer());
    let student = Student { policy: &policy, tokenizer: &tokenizer, variant };
    student.respond(asked, decoding, runs, &settings(batch_size), &mut NullObserver).unwrap()
}

#[test]
fn responses_depend_on_question_and_run_and_nothing_else() {
    let _alone = alone();
    let asked: Vec<Asked> = questions(&[4, 2, 3, 4]).iter().map(Asked::from).collect();
    for variant in [
        Variant::RecallAnalyzeSummarize,
        Variant::RecallSummarize,
        Variant::AnalyzeSummarize,
        Variant::Summarize,
    ] {
        for decoding in [Decoding::Greedy, Decoding::Random, Decoding::RecallPass, Decoding::AnalyzePass] {
            let all = respond(variant, &asked, decoding, 3, 64);
            assert!(all.len() == 4 && all.iter().all(|of| of.len() == 3));
            assert_eq!(all, respond(variant, &asked, decoding, 3, 1), "{variant:?} {decoding:?}");
            assert_eq!(all[1..2], respond(variant, &asked[1..2], decoding, 3, 64));
            for (asked, of) in asked.iter().zip(&all) {
                for response in of {
                    assert_eq!(response.run.draft.recall().is_some(), variant.recalls());
                    let labels: Vec<char> = response.run.draft.analyses().iter().map(|(l, _)| *l).collect();
                    let expected = if variant.analyzes() { asked.draft.labels() } else { &[] };
                    assert_eq!(labels, expected);
                }
            }
        }
    }
}

#[test]
fn the_temperature_may_change_with_each_run() {
    let _alone = alone();
    let asked: Vec<Asked> = questions(&[4, 2, 3, 4]).iter().map(Asked::from).collect();
    let (policy, tokenizer) = (model(1), tokenizer());
    let student = Student { policy: &policy, tokenizer: &tokenizer, variant: Variant::default() };
    let respond = |asked: &[Asked], decoding, temperature: f64, increase: f64, batch_size| {
        let settings =
            GenerationSettings { temperature, temperature_increase: increase, ..settings(batch_size) };
        student.respond(asked, decoding, 3, &settings, &mut NullObserver)
    };
    for decoding in [Decoding::Random, Decoding::RecallPass, Decoding::AnalyzePass] {
        let all = respond(&asked, decoding, 1.0, 0.5, 64).unwrap();
        assert!(all.iter().all(|of| of.len() == 3));
        // As without it, a run depends on seed and question alone.
        assert_eq!(all, respond(&asked, decoding, 1.0, 0.5, 1).unwrap(), "{decoding:?}");
        assert_eq!(all[1..2], respond(&asked[1..2], decoding, 1.0, 0.5, 64).unwrap());
        // The first run has the temperature itself, the others have not.
        let other = respond(&asked, decoding, 1.0, -0.4, 64).unwrap();
        let run = |of: &[Vec<ruminate_algorithms::tinythinker::Response>], run: usize| {
            of.iter().map(|of| of[run].clone()).collect::<Vec<_>>()
        };
        assert_eq!(run(&all, 0), run(&other, 0));
        assert_ne!(run(&all, 2), run(&other, 2));
    }
    // Nothing is sampled, so nothing changes.
    assert_eq!(
        respond(&asked, Decoding::Greedy, 1.0, 0.5, 64).unwrap(),
        respond(&asked, Decoding::Greedy, 1.0, 0.0, 64).unwrap()
    );
    let error = respond(&asked, Decoding::Random, 1.0, -0.5, 64).unwrap_err().to_string();
    assert!(error.contains("temperature_increase") && error.contains("3 runs"), "{error}");
    let config = ReflectionConfig {
        generation: GenerationSettings { temperature_increase: -0.1, ..settings(64) },
        generation_times: 11,
        ..ReflectionConfig::default()
    };
    assert!(config.validate().unwrap_err().to_string().contains("temperature_increase"));
}

#[test]
fn each_decoding_samples_its_stages() {
    let _alone = alone();
    let asked: Vec<Asked> = questions(&[4, 4, 4]).iter().map(Asked::from).collect();
    let distinct = |decoding| {
        let all = respond(Variant::default(), &asked, decoding, 6, 64);
        let texts = |of: &dyn Fn(&ruminate_algorithms::tinythinker::Response) -> String| {
            all.iter().map(|runs| runs.iter().map(of).collect::<BTreeSet<_>>().len()).max().unwrap()
        };
        let recalls = texts(&|r| r.run.draft.recall().unwrap().into());
        // Analyses of one knowledge.
        let analyses = texts(&|r| format!("{:?} of {:?}", r.run.draft.analyses(), r.run.draft.recall()));
        (recalls, analyses)
    };
    assert_eq!(distinct(Decoding::Greedy), (1, 1));
    let (recalls, analyses) = distinct(Decoding::RecallPass);
    assert!(recalls > 1 && analyses == recalls, "{recalls} {analyses}");
    let (recalls, analyses) = distinct(Decoding::AnalyzePass);
    assert!(recalls == 1 && analyses > 1, "{recalls} {analyses}");
    assert!(distinct(Decoding::Random).0 > 1);
}

#[test]
fn knowledge_that_is_given_is_not_recalled_again() {
    let _alone = alone();
    let mut asked: Vec<Asked> = questions(&[4, 4]).iter().map(Asked::from).collect();
    asked[0].draft.set_recall("Every city has weather");
    let all = respond(Variant::default(), &asked, Decoding::Random, 2, 64);
    assert!(all[0].iter().all(|response| response.run.draft.recall() == Some("Every city has weather.")));
    assert_ne!(all[1][0].run.draft.recall(), Some("Every city has weather."));
    assert_eq!(all[0].len(), 2);
}

#[test]
fn votes_are_counted_by_question() {
    let _alone = alone();
    let asked: Vec<Asked> = questions(&[4, 4]).iter().map(Asked::from).collect();
    let mut all = respond(Variant::Summarize, &asked, Decoding::Greedy, 3, 64);
    let answers = [[Some('A'), Some('B'), Some('A')], [None, None, Some('B')]];
    for (of, answers) in all.iter_mut().zip(answers) {
        of.iter_mut().zip(answers).for_each(|(response, answer)| response.run.answer = answer);
    }
    let accuracy = Accuracy::of(&all);
    assert_eq!((accuracy.voted, accuracy.unreadable), (1.0, 2.0 / 6.0));
    assert_eq!(accuracy.runs, [0.5, 0.0, 1.0]);
    assert!(accuracy.interval.is_some());
}

pub(crate) fn acquisition(accumulate: usize) -> Acquisition {
    let config = AcquisitionConfig {
        epochs: 2.0,
        batch_size: 4,
        interval: 1,
        generation: settings(64),
        ..AcquisitionConfig::default()
    };
    Acquisition::new(config, tokenizer(), &records(Variant::default()), root(), accumulate).unwrap()
}

#[test]
fn stages_take_turns_and_micro_batches_change_nothing() {
    let _alone = alone();
    let trained = |accumulate: usize| {
        let acquisition = acquisition(accumulate);
        // 6 recalls, 19 analyses and 6 answers in batches of 4, twice.
        assert_eq!(acquisition.interval().epoch_steps(), 2 + 5 + 2);
        assert_eq!(acquisition.interval().cycle_steps(), 1 + 4 + 1);
        let base =
            TrainerConfig { accumulate, lr: 1e-3, keep: 1, log_every: 1, ..AcquisitionConfig::trainer() };
        let config = acquisition.trainer(&base, 1);
        // Two processes: 6, 19 and 6 in batches of 8.
        assert_eq!(acquisition.trainer(&base, 2).steps, 2 * (1 + 3 + 1));
        assert_eq!((config.steps, config.warmup_steps, config.eval_every), (18, 2, 6));
        let folder = tempfile::tempdir().unwrap();
        let mut sft = Sft::new(model(1), acquisition, tokenizer());
        let mut seen = Losses::default();
        Trainer::new(config, folder.path()).unwrap().fit(&mut sft, &mut seen).unwrap();
        (seen.0, sft.into_policy())
    };
    let ((names, whole), (same, parts)) = (trained(1), trained(3));
    assert_eq!(names, same);
    assert_eq!(names[..9].iter().filter(|name| *name == "train/analyze_loss").count(), 5);
    assert_eq!((&names[0][..], &names[1][..]), ("train/recall_loss", "train/analyze_loss"));
    for ((name, a), (_, b)) in whole.parameters().iter().zip(parts.parameters().iter()) {
        assert!(a.allclose(b, 1e-4, 1e-5, false), "{name} differs");
    }
}

/// Phase 1 on `batch_size` records of one process.
pub(crate) fn acquisition_of_ranks(batch_size: usize, accumulate: usize) -> Result<Sft<T5, Acquisition>> {
    let config =
        AcquisitionConfig { batch_size, interval: 1, generation: settings(64), ..Default::default() };
    let records = records(Variant::default());
    let acquisition = Acquisition::new(config, tokenizer(), &records, root(), accumulate)?;
    Ok(Sft::new(model(1), acquisition, tokenizer()))
}

/// A round, from its samples on, of `batch_size` pairs of one process.
pub(crate) fn reflection_of_ranks(
    folder: &Path,
    (batch_size, accumulate): (usize, usize),
    collective: &Collective,
    observer: &mut dyn Observer,
) -> Result<Dpo<T5, StagePairs>> {
    let config = ReflectionConfig {
        generation_times: 3,
        generation: settings(64),
        batch_size,
        ..ReflectionConfig::default()
    };
    let (policy, tokenizer, variant) = (model(1), tokenizer(), Variant::default());
    let records = records(variant);
    let path = Path::new("recall_single.json");
    let questions = questions_of(&records.recall_single, path)?;
    let teacher = teacher_runs(&records.summarize, &questions, path)?;
    let student = Student { policy: &policy, tokenizer: &tokenizer, variant };
    let round = Round { number: 1, model: "a", folder, collective };
    let pairs = student.make_pairs(&questions, &teacher, &config, &round, observer)?.unwrap();
    let reflection = Reflection::new(config, &tokenizer, &pairs.recall, &pairs.analyze, accumulate)?;
    reflection.start(policy, tokenizer, variant, &questions, &folder.join("logps.json"), collective)
}

/// The stage that each step trained.
#[derive(Default)]
struct Losses(Vec<String>);

impl Observer for Losses {
    fn step(
        &mut self,
        report: &ruminate_algorithms::StepReport<'_>,
    ) -> std::result::Result<(), ruminate_algorithms::ObserverError> {
        let stages = ["train/recall_loss", "train/analyze_loss", "train/summarize_loss"];
        let names = report.metrics.iter().map(|(name, _)| name.clone());
        let mut found = names.filter(|name| stages.contains(&name.as_str()));
        self.0.push(found.next().unwrap());
        assert_eq!(found.next(), None, "a step mixes stages");
        Ok(())
    }
}

#[test]
fn records_that_cannot_be_trained_on_are_refused() {
    let _alone = alone();
    let new = |records: &StageRecords, config: AcquisitionConfig, accumulate| {
        Acquisition::new(config, tokenizer(), records, Path::new("data/sft"), accumulate)
            .unwrap_err()
            .to_string()
    };
    let good = records(Variant::default());
    let config = AcquisitionConfig { batch_size: 4, ..AcquisitionConfig::default() };
    let error = new(&StageRecords { analyze: vec![], ..good.clone() }, config.clone(), 1);
    assert!(error.contains("analyze.json") && error.contains("data/sft"), "{error}");
    let error = new(&StageRecords { valid: vec![], ..good.clone() }, config.clone(), 1);
    assert!(error.contains("valid"), "{error}");
    let mut torn = good.clone();
    torn.valid[1].input = "nothing".into();
    let error = new(&torn, config.clone(), 1);
    assert!(error.contains("valid.json") && error.contains("item 1"), "{error}");
    assert!(new(&good, config, 5).contains("batch_size"));
}

/// A student of random weights answers nothing readable, so the teacher's runs are what it is to prefer.
#[test]
fn pairs_are_sampled_once_and_belong_to_their_student() {
    let _alone = alone();
    let folder = tempfile::tempdir().unwrap();
    let records = records(Variant::default());
    let path = Path::new("recall_single.json");
    let questions = questions_of(&records.recall_single, path).unwrap();
    assert_eq!(questions.len(), 6);
    let teacher = teacher_runs(&records.summarize, &questions, path).unwrap();
    assert_eq!(teacher.len(), 6);
    let config =
        ReflectionConfig { generation_times: 3, generation: settings(64), ..ReflectionConfig::default() };
    let make = |config: &ReflectionConfig, model_name: &str, number: u64, observer: &mut dyn Observer| {
        let (policy, tokenizer) = (model(1), tokenizer());
        let student = Student { policy: &policy, tokenizer: &tokenizer, variant: Variant::default() };
        let round =
            Round { number, model: model_name, folder: folder.path(), collective: &Collective::default() };
        student.make_pairs(&questions, &teacher, config, &round, observer)
    };
    let stopped = make(&config, "a", 1, &mut Stop).unwrap();
    assert!(stopped.is_none());
    let pairs = make(&config, "a", 1, &mut NullObserver).unwrap().unwrap();
    assert_eq!((pairs.summary.questions, pairs.summary.runs), (6, 18));
    assert!(!pairs.recall.is_empty());
    assert!(pairs.recall.iter().all(|pair| pair.chosen == "Every city has a weather."));
    // What was sampled is read back, cut-off lines are sampled again.
    let file = folder.path().join("recall_runs.jsonl");
    let text = std::fs::read_to_string(&file).unwrap();
    assert_eq!(text.lines().count(), 7);
    let end = text.trim_end().rfind('\n').unwrap() + 10;
    std::fs::write(&file, &text[..end]).unwrap();
    assert_eq!(make(&config, "a", 1, &mut NullObserver).unwrap().unwrap(), pairs);
    assert_eq!(std::fs::read_to_string(&file).unwrap(), text);
    for (model, round) in [("b", 1), ("a", 2)] {
        let error = make(&config, model, round, &mut NullObserver).unwrap_err().to_string();
        assert!(error.contains("recall_runs.jsonl") && error.contains("another"), "{error}");
    }
}

struct Stop;

impl Observer for Stop {
    fn stop_requested(&self) -> bool {
        true
    }
}

#[test]
fn a_round_trains_the_stages_that_have_pairs() {
    let _alone = alone();
    let questions = questions(&[4, 4, 4, 4, 4, 4]);
    let pair = |prompt: String| PreferenceExample::new(prompt, "Our city.", "Every city has a weather.");
    let drafts = || questions.iter().map(Asked::from).map(|asked| asked.draft);
    let recall: Vec<_> = drafts().map(|draft| pair(draft.recall_prompt())).collect();
    let analyze: Vec<_> = drafts().flat_map(|draft| draft.analyze_prompts()).map(pair).collect();
    let config = |stages| ReflectionConfig {
        stages,
        batch_size: 4,
        blocks: 2,
        held_out: 0.3,
        generation: settings(64),
        ..ReflectionConfig::default()
    };
    let new = |stages, recall: &[_], analyze: &[_]| {
        Reflection::new(config(stages), &tokenizer(), recall, analyze, 1)
    };
    let both = new(Reflected::RecallAnalyze, &recall, &analyze).unwrap();
    assert!(both.without_pairs.is_empty() && both.interval().cycle_steps() > 2);
    let trainer = both.trainer(&ReflectionConfig::trainer(), 1).unwrap();
    assert_eq!(trainer.steps, 2 * both.interval().cycle_steps());
    let alone = new(Reflected::RecallAnalyze, &recall, &[]).unwrap();
    assert_eq!(alone.without_pairs.len(), 1);
    assert_eq!(alone.interval(), new(Reflected::Recall, &recall, &analyze).unwrap().interval());
    let error = new(Reflected::Analyze, &recall, &[]).unwrap_err().to_string();
    assert!(error.contains("`pairs`") && error.contains("`analyze`"), "{error}");
    // The chosen become more probable than the rejected, on held-out questions too.
    let folder = tempfile::tempdir().unwrap();
    let cache = folder.path().join("reference_logps.json");
    let mut dpo = both
        .start(model(1), tokenizer(), Variant::default(), &questions[..2], &cache, &Collective::default())
        .unwrap();
    let margin = |dpo: &mut dyn Algorithm<Batch = Vec<ruminate_algorithms::dpo::Pair>>| {
        let metrics = dpo.evaluate(1, &mut NullObserver).unwrap().metrics;
        let find = |wanted: &str| metrics.iter().find(|(name, _)| name == wanted).map(|(_, value)| *value);
        assert!(find("eval/accuracy").is_some());
        find("eval/rewards/margins").unwrap()
    };
    assert_abs_diff_eq!(margin(&mut dpo), 0.0, epsilon = 1e-5);
    let trainer = TrainerConfig { lr: 1e-3, ..trainer };
    Trainer::new(trainer, &folder.path().join("checkpoints"))
        .unwrap()
        .fit(&mut dpo, &mut NullObserver)
        .unwrap();
    assert!(margin(&mut dpo) > 0.1);
    assert!(cache.is_file());
}
