//! Tiny models, drills for them, and an observer that remembers.

use std::cell::RefCell;
use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::rc::Rc;
use std::sync::{Mutex, MutexGuard};

use ruminate_algorithms::{
    BestCheckpoint, Curriculum, Error, Evaluation, Fitted, Metrics, Objective, Observer, ObserverError,
    Result, Schedule, Sft, StepReport, Trainer, TrainerConfig, mean_loss,
};
use ruminate_models::{Example, Interrupt, Policy, T5, T5Config, TokenId, Tokenizer};
use tch::{Device, Kind};

/// All threads share libtorch's random generator; a test that draws from it or makes a model runs alone.
pub(crate) fn alone() -> MutexGuard<'static, ()> {
    static LOCK: Mutex<()> = Mutex::new(());
    // These models are too small for several threads, which would wait for each other most of the time.
    tch::set_num_threads(1);
    LOCK.lock().unwrap_or_else(std::sync::PoisonError::into_inner)
}

/// A path in the bundled world.
pub(crate) fn world(path: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../../fixtures/world").join(path)
}

pub(crate) fn tokenizer() -> Tokenizer {
    Tokenizer::open(&world("t5")).unwrap()
}

/// The world's model, made as small as can be.
pub(crate) fn tiny(dropout_rate: f64) -> T5Config {
    T5Config {
        d_model: 16,
        d_kv: 8,
        d_ff: 32,
        num_heads: 2,
        num_layers: 1,
        num_decoder_layers: 1,
        dropout_rate,
        ..T5Config::open(&world("t5/config.json")).unwrap()
    }
}

pub(crate) fn model(dropout_rate: f64, seed: i64) -> T5 {
    T5::new(tiny(dropout_rate), Kind::Float, Device::Cpu, seed).unwrap()
}

/// Prompts and targets of different lengths, without a pattern to learn but their own.
pub(crate) fn examples(count: i64) -> Vec<Example> {
    let row = |i: i64, length: i64, first: i64| -> Vec<TokenId> {
        (0..length).map(|j| first + (7 * i + 3 * j) % 150).chain([1]).collect()
    };
    (0..count).map(|i| Example { prompt: row(i, 3 + i % 4, 10), target: row(i, i * i % 5, 50) }).collect()
}

/// Examples in their order, over and over; validated on all of them, or as a test says.
pub(crate) struct Drill {
    pub(crate) examples: Vec<Example>,
    pub(crate) batch: usize,
    /// Validation scores by step; what is not named scores minus the mean loss.
    pub(crate) scores: BTreeMap<u64, f64>,
    /// The step from which on the loss is not a number.
    pub(crate) poisoned: Option<u64>,
    /// The steps at which the model was validated.
    pub(crate) validated: Rc<RefCell<Vec<u64>>>,
    pub(crate) at: usize,
}

impl Drill {
    pub(crate) fn new(examples: Vec<Example>, batch: usize) -> Self {
        let (scores, validated) = Default::default();
        Self { examples, batch, scores, poisoned: None, validated, at: 0 }
    }
}

impl<P: Policy> Curriculum<P> for Drill {
    fn next(&mut self, step: u64) -> Result<Vec<Objective>> {
        let examples = self.examples.iter().cycle().skip(self.at).take(self.batch).cloned().collect();
        self.at = (self.at + self.batch) % self.examples.len();
        let weight = if self.poisoned.is_some_and(|from| step >= from) { f64::NAN } else { 1.0 };
        Ok(vec![Objective { name: "drill_loss", weight, examples }])
    }

    fn evaluate(&mut self, policy: &P, step: u64, observer: &mut dyn Observer) -> Result<Evaluation> {
        self.validated.borrow_mut().push(step);
        observer.samples(step, &[]).map_err(Error::Observer)?;
        let loss = mean_loss(policy, &self.examples)?;
        let score = self.scores.get(&step).copied().unwrap_or(-loss);
        Ok(Evaluation { metrics: vec![("eval/loss".into(), loss)], score })
    }

    fn state(&self) -> serde_json::Value {
        serde_json::json!({ "at": self.at })
    }

    fn load_state(&mut self, state: serde_json::Value) -> Result<()> {
        self.at = state["at"].as_u64().unwrap() as usize;
        Ok(())
    }
}

/// The best checkpoint of a run in `folder`.
pub(crate) fn best_checkpoint(folder: &Path, step: u64, score: f64) -> BestCheckpoint {
    BestCheckpoint { step, score, path: folder.join(format!("step-{step}")) }
}

/// A short run with a rate at which something happens.
pub(crate) fn short(steps: u64) -> TrainerConfig {
    TrainerConfig {
        steps,
        lr: 1e-2,
        schedule: Schedule::Constant,
        max_grad_norm: 0.0,
        eval_every: 0,
        log_every: 1,
        ..TrainerConfig::default()
    }
}

/// Trains a new model on a drill in `folder`.
pub(crate) fn fit(
    folder: &Path,
    config: &TrainerConfig,
    drill: Drill,
    observer: &mut dyn Observer,
) -> Result<(Fitted, T5)> {
    let mut sft = Sft::new(model(0.0, 1), drill, tokenizer());
    let fitted = Trainer::new(config.clone(), folder)?.fit(&mut sft, observer)?;
    Ok((fitted, sft.into_policy()))
}

/// Remembers what it was told, and does as a test says.
#[derive(Default)]
pub(crate) struct Recorder {
    /// One line per event.
    pub(crate) events: Vec<String>,
    /// The recorded metrics by step.
    pub(crate) metrics: BTreeMap<u64, Metrics>,
    /// Means of the distributions of training and of validations, by step and name.
    pub(crate) means: BTreeMap<(u64, String), f64>,
    /// What validations found, by step.
    pub(crate) validations: BTreeMap<u64, Metrics>,
    /// Stop is requested after this step.
    pub(crate) stop_after: Option<u64>,
    /// The process ends without a word after this step.
    pub(crate) abort_after: Option<u64>,
    /// This event is an error.
    pub(crate) fail_at: Option<String>,
    pub(crate) last: Option<u64>,
    /// The request that ends validations and rollouts.
    pub(crate) interrupt: Interrupt,
}

impl Recorder {
    pub(crate) fn stopping_after(step: u64) -> Self {
        Self { stop_after: Some(step), ..Self::default() }
    }

    pub(crate) fn failing_at(event: &str) -> Self {
        Self { fail_at: Some(event.into()), ..Self::default() }
    }

    fn event(&mut self, event: String) -> std::result::Result<(), ObserverError> {
        let fails = self.fail_at.as_ref() == Some(&event);
        self.events.push(event);
        if fails { Err("no paper left".into()) } else { Ok(()) }
    }

    /// Were values told behind this metric?
    pub(crate) fn has_values(&self, name: &str) -> bool {
        self.means.keys().any(|(_, known)| known == name)
    }

    /// A training metric by step.
    pub(crate) fn series(&self, name: &str) -> Vec<f64> {
        let value = |metrics: &Metrics| metrics.iter().find(|(n, _)| n == name).map(|(_, value)| *value);
        self.metrics.values().filter_map(value).collect()
    }
}

impl Observer for Recorder {
    fn started(&mut self, first_step: u64, total_steps: u64) -> std::result::Result<(), ObserverError> {
        self.event(format!("started {first_step} of {total_steps}"))
    }

    fn step(&mut self, report: &StepReport<'_>) -> std::result::Result<(), ObserverError> {
        if self.abort_after == Some(report.step) {
            std::process::abort();
        }
        self.last = Some(report.step);
        assert!(report.secs > 0.0 && report.tokens > 0);
        if !report.metrics.is_empty() {
            self.metrics.insert(report.step, report.metrics.clone());
        }
        self.event(format!("step {} of {}", report.step, report.total_steps))
    }

    /// Values have the mean that is recorded: before, of training, and afterwards, of a validation.
    fn distribution(
        &mut self,
        step: u64,
        name: &str,
        values: &[f64],
    ) -> std::result::Result<(), ObserverError> {
        let mean = values.iter().sum::<f64>() / values.len() as f64;
        self.means.insert((step, name.to_owned()), mean);
        if name.starts_with("train/") {
            let recorded = self.metrics[&step].iter().find(|(n, _)| n == name);
            let (_, value) = recorded.unwrap_or_else(|| panic!("{name} is not recorded at step {step}"));
            approx::assert_relative_eq!(mean, *value, max_relative = 1e-5, epsilon = 1e-6);
        }
        Ok(())
    }

    fn evaluated(&mut self, step: u64, metrics: &Metrics) -> std::result::Result<(), ObserverError> {
        assert!(!metrics.is_empty());
        self.validations.insert(step, metrics.clone());
        for (name, value) in metrics {
            if let Some(mean) = self.means.get(&(step, name.clone())) {
                approx::assert_relative_eq!(mean, value, max_relative = 1e-5, epsilon = 1e-6);
            }
        }
        self.event(format!("evaluated {step}"))
    }

    fn samples(&mut self, step: u64, _: &[serde_json::Value]) -> std::result::Result<(), ObserverError> {
        self.event(format!("samples {step}"))
    }

    fn checkpoint(&mut self, step: u64, path: &Path) -> std::result::Result<(), ObserverError> {
        assert!(path.join("state.json").is_file() && path.ends_with(format!("step-{step}")));
        self.event(format!("checkpoint {step}"))
    }

    fn progress(&mut self, phase: &str, done: u64, total: u64) -> std::result::Result<(), ObserverError> {
        self.event(format!("{phase} {done} of {total}"))
    }

    fn stopped_early(&mut self, step: u64, best: u64) -> std::result::Result<(), ObserverError> {
        self.event(format!("stopped early {step}, best {best}"))
    }

    fn stop_requested(&self) -> bool {
        self.stop_after.is_some() && self.last == self.stop_after
    }

    fn interrupt(&self) -> Interrupt {
        self.interrupt.clone()
    }
}

/// The names in a folder, sorted.
pub(crate) fn names(folder: &Path) -> Vec<String> {
    let entries = std::fs::read_dir(folder).unwrap();
    let mut names: Vec<String> =
        entries.map(|e| e.unwrap().file_name().to_string_lossy().into_owned()).collect();
    names.sort();
    names
}

/// What a link in a folder points to.
pub(crate) fn target(folder: &Path, link: &str) -> String {
    std::fs::read_link(folder.join(link)).unwrap().to_string_lossy().into_owned()
}

/// An error with all its causes.
pub(crate) fn chain(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut source = error.source();
    while let Some(cause) = source {
        text = format!("{text}: {cause}");
        source = cause.source();
    }
    text
}
