//! The one training loop: accumulation, clipping, schedule, precision, validation, checkpoints, resume.

mod checkpoint;
mod config;
mod distributed;
mod log;
mod optimizer;
mod optimizer_step;
mod phases;

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::time::Instant;

use ruminate_models::{Interrupt, Policy};
use serde::Serialize;
use tch::{Device, Tensor};

use crate::{Collective, Error, Metrics, Observer, Result, StepReport};

use distributed::{align, all_counts, all_generators, distribute, expect, share};
use log::Log;
use optimizer_step::OptimizerStep;

use checkpoint::States;
pub use checkpoint::{Checkpoints, Damage, MANIFEST, TrainerState, file_hash, seal, verify};
pub use config::{Precision, TrainerConfig};
pub use optimizer::OptimizerChoice;
pub use phases::Phases;

fn due(every: u64, step: u64) -> bool {
    every > 0 && step.is_multiple_of(every)
}

/// One part of a loss: its share is `weight * sum / count`, with sums and counts over the whole optimizer step.
#[derive(Debug, Clone, PartialEq)]
pub struct Term {
    /// Name in the metrics, e.g. `qk_loss`.
    pub name: &'static str,
    /// Multiplier.
    pub weight: f64,
    /// Positions that the loss sums over; known before the forward pass.
    pub count: u64,
}

/// Losses of a micro-batch.
#[derive(Debug)]
pub struct Losses {
    /// One sum per [`Term`], in their order.
    pub sums: Vec<Tensor>,
    /// Real tokens that went through the model.
    pub tokens: u64,
}

/// What a validation found.
#[derive(Debug, Clone, PartialEq)]
pub struct Evaluation {
    /// What to record, e.g. `eval/loss`.
    pub metrics: Metrics,
    /// What the best checkpoint is chosen by; higher is better.
    pub score: f64,
}

/// What an algorithm adds to the loop.
pub trait Algorithm {
    /// A micro-batch.
    type Batch;

    /// The model that is trained.
    fn policy(&self) -> &dyn Policy;

    /// Takes this process's part of the data ([`Collective::shard`]): from now on, batches are those of this rank and statistics those
    /// of all. Called once, before the run starts, when several processes train together.
    ///
    /// # Errors
    /// When the algorithm works in one process only, or there is too little data for so many.
    fn distribute(&mut self, collective: &Collective) -> Result<()> {
        Error::alone(collective.size())
    }

    /// The model, to switch its mode.
    fn policy_mut(&mut self) -> &mut dyn Policy;

    /// The micro-batches of one optimizer update, about `accumulate` of them; `None` when step `step` has no more than
    /// `update` updates. Most algorithms make one update a step; a rollout phase comes before the first (`update` 0).
    /// A rank that has fewer updates than others takes part in theirs without a batch.
    ///
    /// # Errors
    /// When data runs out or a rollout fails.
    fn batches(&mut self, step: u64, update: usize, accumulate: usize) -> Result<Option<Vec<Self::Batch>>>;

    /// Seconds of phases of its own within [`batches`](Self::batches), e.g. `rollout` and `reward`, since the last call.
    /// What `batches` takes beyond them counts as `data`.
    fn phases(&mut self) -> Phases {
        Phases::default()
    }

    /// The parts of a micro-batch's loss.
    fn terms(&self, batch: &Self::Batch) -> Vec<Term>;

    /// Computes the losses of a micro-batch: the forward pass.
    ///
    /// # Errors
    /// When the model fails.
    fn losses(&mut self, batch: &Self::Batch) -> Result<Losses>;

    /// Name of the whole loss in the records.
    fn loss_name(&self) -> &'static str {
        "loss"
    }

    /// What there is to record besides the losses; called when a record is due, and tells of all steps since the last
    /// one.
    ///
    /// # Errors
    /// When the device fails.
    fn metrics(&mut self) -> Result<Metrics> {
        Ok(vec![])
    }

    /// The values behind some of the last [`metrics`](Self::metrics), by their names; see
    /// [`Observer::distribution`].
    fn distributions(&mut self) -> Vec<(String, Vec<f64>)> {
        vec![]
    }

    /// Whether a phase begins with step `step`: with `eval_every = 0`, the policy is validated before it.
    fn phase_begins(&self, step: u64) -> bool {
        let _ = step;
        false
    }

    /// Validates the model before step `step`.
    ///
    /// # Errors
    /// When the model or the observer fails.
    fn evaluate(&mut self, step: u64, observer: &mut dyn Observer) -> Result<Evaluation>;

    /// Whether the checkpoint before step `step` can be the best one. `false` where the score of its validation is not that of its
    /// weights, or where its weights are not trained yet and must not be chosen. Default: every one can.
    fn competes_at(&self, step: u64) -> bool {
        let _ = step;
        true
    }

    /// Position in the data and whatever else must survive a restart.
    fn state(&self) -> serde_json::Value;

    /// Continues from a state that [`state`](Self::state) returned.
    ///
    /// # Errors
    /// When the state belongs to other data.
    fn load_state(&mut self, state: serde_json::Value) -> Result<()>;

    /// Writes what belongs to the model besides weights and configuration, e.g. the tokenizer.
    ///
    /// # Errors
    /// When the folder is not writable.
    fn save_extras(&self, folder: &Path) -> Result<()>;

    /// Takes up what [`save_extras`](Self::save_extras) wrote and must survive a restart. Called before
    /// [`load_state`](Self::load_state).
    ///
    /// # Errors
    /// When a file cannot be read or belongs to other data.
    fn load_extras(&mut self, folder: &Path) -> Result<()> {
        let _ = folder;
        Ok(())
    }
}

/// How a run ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Ending {
    /// All steps were taken, or validations did not get better any more ([`TrainerConfig::early_stopping`]).
    Finished,
    /// The observer asked to stop; a checkpoint was written.
    Stopped,
}

/// What [`Trainer::fit`] leaves behind.
#[derive(Debug, Clone, PartialEq)]
pub struct Fitted {
    /// How the run ended.
    pub ending: Ending,
    /// Steps taken in total, earlier parts of a resumed run included.
    pub steps: u64,
    /// The folder of the last checkpoint.
    pub last: PathBuf,
    /// The best checkpoint. Where none has competed yet ([`Algorithm::competes_at`]), the last one with NaN for a score.
    pub best: BestCheckpoint,
}

/// The checkpoint with the highest score, the earliest among equals.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct BestCheckpoint {
    /// Steps that were taken before it was written.
    pub step: u64,
    /// Score of its validation.
    pub score: f64,
    /// Its folder.
    pub path: PathBuf,
}

/// Runs an [`Algorithm`].
#[derive(Debug)]
pub struct Trainer {
    config: TrainerConfig,
    checkpoints: Checkpoints,
    collective: Collective,
}

impl Trainer {
    /// A trainer that keeps its checkpoints in `folder` (created when missing).
    ///
    /// # Errors
    /// When a setting is out of its range or the folder is not writable.
    pub fn new(config: TrainerConfig, folder: &Path) -> Result<Self> {
        config.validate()?;
        Ok(Self {
            checkpoints: Checkpoints::open(folder)?.keep(config.keep),
            config,
            collective: Collective::default(),
        })
    }

    /// The trainer of one of several processes that train the same model together, each on its part of every batch. All together
    /// take the same steps as one process with the whole batches. All ranks see the same `folder`, and rank 0 writes it.
    ///
    /// # Errors
    /// Those of [`new`](Self::new), and when another rank fails.
    pub fn across(config: TrainerConfig, folder: &Path, collective: &Collective) -> Result<Self> {
        let collective = collective.clone();
        if collective.is_main_process() {
            let trainer = Self::new(config, folder)?;
            // The others look at the folder when it is tidy.
            collective.barrier()?;
            return Ok(Self { collective, ..trainer });
        }
        config.validate()?;
        collective.barrier()?;
        let checkpoints = Checkpoints::follow(folder, collective.rank()).keep(config.keep);
        Ok(Self { checkpoints, config, collective })
    }

    /// The step at which [`fit`](Self::fit) would go on: that of the last checkpoint, 0 without one.
    ///
    /// # Errors
    /// When the last checkpoint cannot be read.
    pub fn next_step(&self) -> Result<u64> {
        Ok(self.checkpoints.last_state()?.map_or(0, |state| state.step))
    }

    /// Trains to the last step, or until [early stopping](TrainerConfig::early_stopping), from the last checkpoint in the folder if there is one. A run that was interrupted
    /// and resumed gives the same parameters as one that was not, bit for bit on a CPU.
    ///
    /// # Errors
    /// When the data, the model, the observer or the disk fail, or a loss is not finite any more.
    pub fn fit<A: Algorithm>(&self, algorithm: &mut A, observer: &mut dyn Observer) -> Result<Fitted> {
        let (config, collective) = (&self.config, &self.collective);
        distribute(collective, algorithm)?;
        algorithm.policy_mut().set_gradient_checkpointing(config.gradient_checkpointing)?;
        let optimizer_step = &mut OptimizerStep::new(config, algorithm.policy(), collective)?;
        let mut state =
            self.checkpoints.restore(algorithm, optimizer_step.optimizer_mut())?.unwrap_or_default();
        align(collective, algorithm.policy(), state.step)?;
        observer.started(state.step, config.steps).map_err(Error::Observer)?;
        let mut log = Log::default();
        // Ranks wait for each other, so none of them may leave by itself.
        let interrupt = if collective.size() == 1 { observer.interrupt() } else { Interrupt::default() };
        while state.step < config.steps {
            let step = state.step;
            if config.validates_at(step) || (config.eval_every == 0 && algorithm.phase_begins(step)) {
                log.check(step, collective)?;
                if !self.validate(
                    algorithm,
                    &mut state,
                    optimizer_step,
                    &mut log.phases,
                    (observer, &interrupt),
                )? {
                    return self.fitted(&state, Ending::Stopped, log, observer);
                }
                // From the stored scores, so that a resumed run and all ranks decide alike.
                if let Some(best) = state.best().filter(|_| state.is_exhausted(config.early_stopping)) {
                    observer.stopped_early(step, best).map_err(Error::Observer)?;
                    return self.fitted(&state, Ending::Finished, log, observer);
                }
            } else if due(config.save_every, step) && step > 0 {
                log.check(step, collective)?;
                self.save(algorithm, &mut state, optimizer_step, &mut log.phases, observer)?;
            }
            let started = Instant::now();
            let lr = config.schedule.lr(config.lr, step, config.warmup_steps, config.steps);
            let lr = optimizer_step.optimizer().rate(lr);
            let Some(tokens) = self.update(algorithm, optimizer_step, lr, step, &mut log, &interrupt)? else {
                log.check(step, collective)?;
                self.save(algorithm, &mut state, optimizer_step, &mut log.phases, observer)?;
                return self.fitted(&state, Ending::Stopped, log, observer);
            };
            log.tokens = tokens;
            state.step += 1;
            let last = state.step == config.steps;
            let (mut metrics, mut distributions) = (vec![], vec![]);
            if last || step % config.log_every == 0 {
                metrics = log.take(step, lr, algorithm.loss_name(), collective)?;
                metrics.extend(algorithm.metrics()?);
                distributions = algorithm.distributions();
            }
            observer
                .step(&StepReport {
                    step,
                    total_steps: config.steps,
                    metrics: &metrics,
                    tokens: log.tokens,
                    secs: started.elapsed().as_secs_f64(),
                })
                .map_err(Error::Observer)?;
            for (name, values) in &distributions {
                observer.distribution(step, name, values).map_err(Error::Observer)?;
            }
            if !last && collective.any(observer.stop_requested())? {
                log.check(step, collective)?;
                self.save(algorithm, &mut state, optimizer_step, &mut log.phases, observer)?;
                return self.fitted(&state, Ending::Stopped, log, observer);
            }
        }
        // The reference leaves its last steps unsaved and unvalidated.
        let validated =
            self.validate(algorithm, &mut state, optimizer_step, &mut log.phases, (observer, &interrupt))?;
        self.fitted(&state, if validated { Ending::Finished } else { Ending::Stopped }, log, observer)
    }

    /// The optimizer updates of one step; returns the tokens that went through the model. `None` when its rollout was interrupted,
    /// after which all is as it was before the step.
    fn update<A: Algorithm>(
        &self,
        algorithm: &mut A,
        optimizer_step: &mut OptimizerStep,
        lr: f64,
        step: u64,
        log: &mut Log,
        interrupt: &Interrupt,
    ) -> Result<Option<u64>> {
        let before = algorithm.state();
        let device = algorithm.policy().device();
        let max_norm =
            if self.config.max_grad_norm > 0.0 { self.config.max_grad_norm } else { f64::INFINITY };
        let (mut tokens, mut update) = (0, 0);
        // Before anything is prepared: a rollout has the memory of gradients.
        optimizer_step.zero_grad()?;
        loop {
            let started = Instant::now();
            let mut prepare = || algorithm.batches(step, update, self.config.accumulate);
            let batches = match update {
                0 => interrupt.during(|| self.precisely(device, &mut prepare)),
                _ => self.precisely(device, &mut prepare),
            };
            let batches = match batches {
                Err(error) if update == 0 && error.is_interruption() => {
                    algorithm.load_state(before)?;
                    return Ok(None);
                }
                batches => batches?,
            };
            let own = algorithm.phases();
            log.phases.add("data", (started.elapsed().as_secs_f64() - own.total()).max(0.0));
            log.phases.merge(own);
            let own = batches.as_deref().map(|batches| (counts(algorithm, batches), batches.len()));
            let Some((counts, rounds)) = all_counts(&self.collective, own)? else { break };
            let batches = batches.unwrap_or_default();
            algorithm.policy_mut().set_training(true);
            if update > 0 {
                optimizer_step.zero_grad()?;
            }
            log.begin_update();
            expect(&self.collective, &counts, algorithm.loss_name(), log)?;
            for round in 0..rounds {
                optimizer_step.begin(round, rounds);
                if let Some(batch) = batches.get(round) {
                    tokens += self.backward(algorithm, batch, &counts, log)?;
                }
                optimizer_step.finish(round, rounds, &mut log.phases)?;
            }
            let norm = optimizer_step.apply(max_norm, lr, &mut log.phases)?;
            log.add("grad_norm", &share(&self.collective, norm)?)?;
            algorithm.policy_mut().set_training(false);
            update += 1;
        }
        log.end_step()?;
        self.collective.total(tokens).map(Some)
    }

    /// Adds the gradients of a micro-batch; returns the tokens that went through the model.
    fn backward<A: Algorithm>(
        &self,
        algorithm: &mut A,
        batch: &A::Batch,
        counts: &Counts,
        log: &mut Log,
    ) -> Result<u64> {
        let (device, name) = (algorithm.policy().device(), algorithm.loss_name());
        let terms = algorithm.terms(batch);
        let mut forward = || algorithm.losses(batch);
        let losses = log.phases.time("forward", || self.precisely(device, &mut forward))?;
        let mut loss: Option<Tensor> = None;
        for (term, sum) in terms.iter().zip(&losses.sums) {
            let mean = sum.f_div_scalar(counts[term.name].max(1) as f64)?;
            log.add(term.name, &mean.f_detach()?)?;
            let share = mean.f_mul_scalar(term.weight)?;
            loss = Some(match loss {
                Some(loss) => loss.f_add(&share)?,
                None => share,
            });
        }
        if let Some(loss) = loss {
            log.phases.time("backward", || loss.f_backward())?;
            log.add(name, &loss.f_detach()?)?;
        }
        Ok(losses.tokens)
    }

    /// Runs the model in the precision of the configuration.
    fn precisely<T>(&self, device: Device, work: &mut dyn FnMut() -> Result<T>) -> Result<T> {
        match self.config.precision {
            Precision::F32 => work(),
            Precision::Bf16 => ruminate_torch::autocast(device, work)?,
        }
    }

    /// Validates, saves, and marks the checkpoint as the best if it is. False when the validation was interrupted: then the checkpoint
    /// has no score, and is validated when the run goes on.
    fn validate<A: Algorithm>(
        &self,
        algorithm: &mut A,
        state: &mut TrainerState,
        optimizer_step: &OptimizerStep,
        phases: &mut Phases,
        (observer, interrupt): (&mut dyn Observer, &Interrupt),
    ) -> Result<bool> {
        if state.is_validated() {
            return Ok(true);
        }
        let evaluate = || interrupt.during(|| algorithm.evaluate(state.step, observer));
        let mut evaluation = match phases.time("evaluation", evaluate) {
            Err(error) if error.is_interruption() => {
                self.save(algorithm, state, optimizer_step, phases, observer)?;
                return Ok(false);
            }
            evaluation => evaluation?,
        };
        evaluation.score = self.collective.broadcast(evaluation.score)?;
        if !evaluation.score.is_finite() {
            let name = "validation score".into();
            return Err(Error::NotFinite { name, value: evaluation.score, step: state.step });
        }
        observer.evaluated(state.step, &evaluation.metrics).map_err(Error::Observer)?;
        if algorithm.competes_at(state.step) {
            state.scores.insert(state.step, evaluation.score);
        } else {
            state.unranked.insert(state.step);
        }
        self.save(algorithm, state, optimizer_step, phases, observer)?;
        Ok(true)
    }

    fn save<A: Algorithm>(
        &self,
        algorithm: &A,
        state: &mut TrainerState,
        optimizer_step: &OptimizerStep,
        phases: &mut Phases,
        observer: &mut dyn Observer,
    ) -> Result<()> {
        let path = phases.time("checkpoint", || {
            let generators = all_generators(&self.collective, algorithm.policy().device())?;
            let states = States { optimizer_step, generators, collective: &self.collective };
            let path = self.checkpoints.save(algorithm, state, states)?;
            self.collective.barrier().map(|()| path)
        })?;
        observer.checkpoint(state.step, &path).map_err(Error::Observer)
    }

    fn fitted(
        &self,
        state: &TrainerState,
        ending: Ending,
        mut log: Log,
        observer: &mut dyn Observer,
    ) -> Result<Fitted> {
        observer.ended(state.step, ending, &log.phases.take()).map_err(Error::Observer)?;
        let step = state.best().unwrap_or(state.step);
        let score = state.scores.get(&step).copied().unwrap_or(f64::NAN);
        Ok(Fitted {
            ending,
            steps: state.step,
            last: self.checkpoints.folder(state.step),
            best: BestCheckpoint { step, score, path: self.checkpoints.folder(step) },
        })
    }
}

/// Counts of the terms of an update by name, over all its micro-batches and ranks.
type Counts = BTreeMap<String, u64>;

fn counts<A: Algorithm>(algorithm: &A, batches: &[A::Batch]) -> Counts {
    let mut counts = Counts::new();
    for term in batches.iter().flat_map(|batch| algorithm.terms(batch)) {
        *counts.entry(term.name.to_string()).or_insert(0) += term.count;
    }
    counts
}
