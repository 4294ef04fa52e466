//! A plausibility model of one's own: an encoder that tells true statements from false ones, in Vera's form.

use std::path::Path;

use ruminate_datasets::mario::{Statement, read_statements};
use ruminate_datasets::{Cursor, Order, Shard, Split, TrainBatches};
use ruminate_models::{Policy, T5, TokenId, Tokenizer, VeraHead, last_states};
use serde::{Deserialize, Serialize};
use tch::{Kind, Reduction, Tensor};

use super::rows::{at_least_one, mean_and_longest};
use crate::observer::report_answers;
use crate::plan::{Pass, Work};
use crate::trainer::{Algorithm, Evaluation, Losses, Term};
use crate::{Collective, Error, Observer, Result, Schedule, TrainerConfig};

/// Settings of [`VerifierTraining`].
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct VerifierConfig {
    /// True and false statements, JSON lines of `statement` and `plausible`; `{split}` is filled in.
    pub path: String,
    /// Statements per micro-batch.
    pub batch_size: usize,
    /// Statements per batch in validation.
    pub eval_batch_size: usize,
    /// Seed of the order of the statements.
    pub shuffle_seed: u64,
}

impl Default for VerifierConfig {
    fn default() -> Self {
        Self {
            path: "data/statements/{split}.jsonl".into(),
            batch_size: 64,
            eval_batch_size: 64,
            shuffle_seed: 1,
        }
    }
}

impl VerifierConfig {
    /// Our settings of the optimizer: Adam at a constant 1e-5, without clipping.
    #[must_use]
    pub fn trainer() -> TrainerConfig {
        TrainerConfig {
            steps: 50_001,
            lr: 1e-5,
            schedule: Schedule::Constant,
            max_grad_norm: 0.0,
            log_every: 50,
            eval_every: 1000,
            ..TrainerConfig::default()
        }
    }

    /// Reads a split.
    ///
    /// # Errors
    /// As [`read_statements`].
    pub fn read(&self, split: Split) -> Result<Vec<Statement>> {
        let path = self.path.replace("{split}", &split.to_string());
        Ok(read_statements(path.as_ref())?)
    }

    /// The micro-batches of a step on some statements, for a [`Plan`](crate::Plan).
    ///
    /// # Errors
    /// When the tokenizer fails.
    pub fn passes(
        &self,
        trainer: &TrainerConfig,
        tokenizer: &Tokenizer,
        statements: &[Statement],
    ) -> Result<Vec<Pass>> {
        let lengths = statements.iter().map(|s| Ok(tokenizer.encode(&s.statement)?.len()));
        let source = mean_and_longest(lengths.collect::<Result<Vec<_>>>()?.into_iter());
        let (times, rows) = (trainer.accumulate as f64, self.batch_size);
        Ok(vec![Pass { work: Work::Training, times, networks: 1, rows, source, target: [0.0; 2] }])
    }

    /// Checks the settings.
    ///
    /// # Errors
    /// Names the setting that is wrong.
    pub fn validate(&self) -> Result<()> {
        at_least_one([("batch_size", self.batch_size), ("eval_batch_size", self.eval_batch_size)])
    }
}

/// Trains a T5 encoder as a binary classifier, with the binary cross-entropy of its one logit. The layer behind the encoder
/// lies where [`Vera`](ruminate_models::Vera) has it, so that a checkpoint is one of Vera; its temperature is 1. Validation
/// tells how many statements it judges right.
#[derive(Debug)]
pub struct VerifierTraining {
    encoder: T5,
    tokenizer: Tokenizer,
    /// Ids of weight, bias and temperature.
    head: [i64; 3],
    train: Encoded,
    dev: Encoded,
    batches: TrainBatches,
    shuffle_seed: u64,
    eval_batch_size: usize,
    collective: Collective,
}

/// Statements as ids, and whether they are true.
#[derive(Debug)]
struct Encoded(Vec<(Vec<TokenId>, bool)>);

impl Encoded {
    fn new(statements: &[Statement], tokenizer: &Tokenizer) -> Result<Self> {
        let encode = |s: &Statement| Ok((tokenizer.encode(&s.statement)?, s.plausible));
        statements.iter().map(encode).collect::<Result<_>>().map(Self)
    }
}

impl VerifierTraining {
    /// Joins the parts; sets the temperature to 1.
    ///
    /// # Errors
    /// When a setting is wrong, the tokenizer lacks one of [`VeraHead::TOKENS`], or there is no complete batch or nothing to
    /// validate on.
    pub fn new(
        config: &VerifierConfig,
        encoder: T5,
        tokenizer: Tokenizer,
        train: &[Statement],
        dev: &[Statement],
    ) -> Result<Self> {
        config.validate()?;
        let mut head = [0; 3];
        for (id, token) in head.iter_mut().zip(VeraHead::TOKENS) {
            let missing =
                || Error::config("tokenizer", format!("has no {token}, whose embedding holds the scorer"));
            *id = tokenizer.token_id(token).ok_or_else(missing)?;
        }
        if dev.is_empty() {
            return Err(Error::config("path", "there are no statements to validate on"));
        }
        let order = Order::reshuffled(train.len(), config.shuffle_seed);
        let training = Self {
            train: Encoded::new(train, &tokenizer)?,
            dev: Encoded::new(dev, &tokenizer)?,
            batches: TrainBatches::new(order, config.batch_size, Shard::SINGLE)?,
            shuffle_seed: config.shuffle_seed,
            eval_batch_size: config.eval_batch_size,
            collective: Collective::default(),
            encoder,
            tokenizer,
            head,
        };
        let mut temperature = training.row(2)?.f_detach()?.f_narrow(0, 0, 1)?;
        let _ = temperature.f_fill_(1.0)?;
        Ok(training)
    }

    /// A part of the head: a row of the embedding.
    fn row(&self, part: usize) -> Result<Tensor> {
        let missing = || Error::config("model", "has no shared embedding");
        let embedding = self.encoder.parameters().get("shared.weight").ok_or_else(missing)?;
        Ok(embedding.f_select(0, self.head[part])?)
    }

    /// Logits `[rows]`.
    fn logits(&self, rows: &[&[TokenId]]) -> Result<Tensor> {
        let product = last_states(&self.encoder, rows)?.f_mv(&self.row(0)?)?;
        Ok(product.f_add(&self.row(1)?.f_select(0, 0)?)?)
    }
}

impl Algorithm for VerifierTraining {
    type Batch = Vec<usize>;

    fn policy(&self) -> &dyn Policy {
        &self.encoder
    }

    fn policy_mut(&mut self) -> &mut dyn Policy {
        &mut self.encoder
    }

    fn distribute(&mut self, collective: &Collective) -> Result<()> {
        self.collective = collective.clone();
        let order = Order::reshuffled(self.train.0.len(), self.shuffle_seed);
        self.batches = TrainBatches::new(order, self.batches.batch_size(), collective.shard()?)?;
        Ok(())
    }

    fn batches(&mut self, _: u64, update: usize, accumulate: usize) -> Result<Option<Vec<Self::Batch>>> {
        Ok((update == 0).then(|| self.batches.by_ref().take(accumulate).collect()))
    }

    fn terms(&self, batch: &Self::Batch) -> Vec<Term> {
        vec![Term { name: "bce_loss", weight: 1.0, count: batch.len() as u64 }]
    }

    fn losses(&mut self, batch: &Self::Batch) -> Result<Losses> {
        let rows: Vec<&[TokenId]> = batch.iter().map(|&i| self.train.0[i].0.as_slice()).collect();
        let truth: Vec<f32> = batch.iter().map(|&i| f32::from(u8::from(self.train.0[i].1))).collect();
        let truth = Tensor::f_from_slice(&truth)?.f_to_device(self.encoder.device())?;
        let none = None::<Tensor>;
        let sum = self.logits(&rows)?.f_binary_cross_entropy_with_logits(
            &truth,
            none.as_ref(),
            none.as_ref(),
            Reduction::Sum,
        )?;
        Ok(Losses { sums: vec![sum], tokens: rows.iter().map(|row| row.len() as u64).sum() })
    }

    fn evaluate(&mut self, step: u64, observer: &mut dyn Observer) -> Result<Evaluation> {
        let dev = &self.dev.0;
        let right = self.collective.map(dev.len(), |mine| {
            let mut right: Vec<bool> = vec![];
            for batch in mine.chunks(self.eval_batch_size) {
                let rows: Vec<&[TokenId]> = batch.iter().map(|&i| dev[i].0.as_slice()).collect();
                let logits: Vec<f32> =
                    Vec::try_from(tch::no_grad(|| self.logits(&rows))?.f_to_kind(Kind::Float)?)?;
                right.extend(batch.iter().zip(logits).map(|(&i, logit)| (logit > 0.0) == dev[i].1));
                observer
                    .progress("validation", right.len() as u64, mine.len() as u64)
                    .map_err(Error::Observer)?;
            }
            Ok(right)
        })?;
        let score = 100.0 * right.iter().filter(|right| **right).count() as f64 / dev.len() as f64;
        report_answers(observer, step, "eval/accuracy", 100.0, right)?;
        Ok(Evaluation { metrics: vec![("eval/accuracy".into(), score)], score })
    }

    /// An untrained model is not chosen.
    fn competes_at(&self, step: u64) -> bool {
        step > 0
    }

    fn state(&self) -> serde_json::Value {
        serde_json::json!({ "cursor": self.batches.cursor(), "rows": self.train.0.len() })
    }

    fn load_state(&mut self, state: serde_json::Value) -> Result<()> {
        #[derive(Deserialize)]
        struct State {
            cursor: Cursor,
            rows: usize,
        }
        let State { cursor, rows } = serde_json::from_value(state)
            .map_err(|e| Error::config("checkpoint", format!("its data position cannot be read: {e}")))?;
        if rows != self.train.0.len() {
            let reason =
                format!("it was trained on {rows} statements, but there are {} now", self.train.0.len());
            return Err(Error::config("checkpoint", reason));
        }
        Ok(self.batches.resume(cursor)?)
    }

    fn save_extras(&self, folder: &Path) -> Result<()> {
        Ok(self.tokenizer.save(folder)?)
    }
}
