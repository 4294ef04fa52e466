//! A plain data set for supervised fine-tuning: prompts with completions, and dialogues.

use std::ops::Range;

use ruminate_datasets::SupervisedExample;
use ruminate_datasets::chat::ChatTemplate;
use ruminate_datasets::rise::TrainingText;
use ruminate_models::{Example, Model, Policy, Tokenizer, Truncate};
use tch::Kind;

use crate::dpo::PolicyEvaluation;
use crate::rwr::{TooLong, encode_texts};
use crate::shuffled::Shuffled;
use crate::trainer::Evaluation;
use crate::{Collective, Curriculum, Error, Metrics, Objective, Observer, Result};

/// Encodes examples as token ids. A completion is one target; each of the assistant's messages in a dialogue is a target of its own,
/// behind everything that was said before.
///
/// The tokenizer tells the family: T5's puts an end token behind every text and nothing in front, so that prompt and target are encoded
/// alone. For all others they are one text, with the tokenizer's end token behind a completion that lacks it. Dialogues are rendered by
/// `template`.
///
/// Longer texts are cut to `max_length` tokens: of a T5, prompt and target each, with their end tokens; of others, the end of the whole, so
/// that targets which begin later are left out.
///
/// # Errors
/// When there is a dialogue but no template, the template refuses a dialogue, an example has no token to train, `max_length` is
/// below 2, or the tokenizer names no end token or fails. The error names the example's number, counted from 0.
pub fn encode_supervised(
    tokenizer: &Tokenizer,
    template: Option<&ChatTemplate>,
    examples: &[SupervisedExample],
    max_length: usize,
) -> Result<Vec<Example>> {
    let mut encoded = vec![];
    for (i, example) in examples.iter().enumerate() {
        let before = encoded.len();
        for text in texts(tokenizer, template, example)? {
            encoded.extend(encode(tokenizer, text, max_length)?);
        }
        if encoded.len() == before {
            let reason = format!(
                "number {i} has no token to train within {max_length} tokens; raise max_length or leave it out"
            );
            return Err(Error::config("examples", reason));
        }
    }
    Ok(encoded)
}

/// A text of which the end is trained.
struct Text {
    text: String,
    /// Where the target begins, in bytes.
    target: usize,
}

/// One text for each target of an example.
fn texts(
    tokenizer: &Tokenizer,
    template: Option<&ChatTemplate>,
    example: &SupervisedExample,
) -> Result<Vec<Text>> {
    let (messages, given) = match example {
        SupervisedExample::Completion { prompt, completion } => {
            let no_end = "names no end token, which completions get: put tokenizer_config.json with `eos_token` beside \
                          tokenizer.json, or call Tokenizer::set_end_token";
            let end = match (encodes_apart(tokenizer)?, tokenizer.end_token()) {
                (true, _) => "",
                (false, Some((end, _))) if completion.ends_with(end) => "",
                (false, Some((end, _))) => end,
                (false, None) => return Err(Error::config("tokenizer", no_end)),
            };
            return Ok(vec![Text { text: format!("{prompt}{completion}{end}"), target: prompt.len() }]);
        }
        SupervisedExample::Dialogue { messages } => (messages.clone(), 0),
        SupervisedExample::Answer { prompt, completion } => {
            ([&prompt[..], completion].concat(), prompt.len())
        }
    };
    let missing = "is missing, but dialogues need one: Model::chat_template reads that of the model's folder";
    let rendered = template.ok_or_else(|| Error::config("template", missing))?.conversation(&messages)?;
    let answers = rendered.answers.iter().filter(|answer| answer.message >= given);
    let text = |span: &Range<usize>| Text { text: rendered.text[..span.end].into(), target: span.start };
    Ok(answers.map(|answer| text(&answer.span)).collect())
}

/// Whether prompts and targets are encoded alone, each with its end token, as T5 wants them.
fn encodes_apart(tokenizer: &Tokenizer) -> Result<bool> {
    Ok(matches!(tokenizer.added_tokens()?, (0, 1..)))
}

/// The example of a text, if a token of its target is within the limit.
fn encode(tokenizer: &Tokenizer, Text { text, target }: Text, max_length: usize) -> Result<Option<Example>> {
    if encodes_apart(tokenizer)? {
        let encode = |text: &str| tokenizer.encode_truncated(text, max_length, Truncate::End);
        let example = Example { prompt: encode(&text[..target])?, target: encode(&text[target..])? };
        // An end token alone is no text.
        return Ok((example.target.len() > 1).then_some(example));
    }
    let completion = target..text.len();
    let text = TrainingText { text, spans: [completion].into(), weight: 1.0 };
    let encoded = encode_texts(tokenizer, &[text], max_length, TooLong::Cut)?;
    Ok(encoded.examples.into_iter().next().map(|weighted| weighted.example))
}

/// Examples in an order that is drawn again for each epoch, and others that validate: the mean loss on them, and its exponential, the
/// perplexity.
///
/// # Example
/// Fine-tunes the model of a folder on a file of JSON lines:
/// ```no_run
/// use ruminate_algorithms::{NullObserver, Sft, SupervisedData, Trainer, TrainerConfig, encode_supervised};
/// use ruminate_datasets::supervised;
/// use ruminate_models::Model;
/// use tch::{Device, Kind};
///
/// let model = Model::load("models/qwen2.5-0.5b".as_ref(), Kind::Float, Device::cuda_if_available())?;
/// let tokenizer = model.tokenizer().ok_or("the folder has no tokenizer.json")?.clone();
/// let template = model.chat_template()?;
/// let read = |file: &str| -> Result<_, Box<dyn std::error::Error>> {
///     Ok(encode_supervised(&tokenizer, template.as_ref(), &supervised::read(file.as_ref())?, 1024)?)
/// };
/// let data = SupervisedData::new(read("train.jsonl")?, read("valid.jsonl")?, 8, 1)?;
/// let mut sft = Sft::new(model, data, tokenizer);
/// let fitted = Trainer::new(TrainerConfig::default(), "runs/sft".as_ref())?.fit(&mut sft, &mut NullObserver)?;
/// println!("the best model is in {}", fitted.best.path.display());
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
pub struct SupervisedData<P = Model> {
    train: Shuffled<Example>,
    held_out: Vec<Example>,
    batch_size: usize,
    evaluation: Option<Box<dyn PolicyEvaluation<P>>>,
    collective: Collective,
}

impl<P> std::fmt::Debug for SupervisedData<P> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("SupervisedData")
            .field("held_out", &self.held_out.len())
            .field("batch_size", &self.batch_size)
            .finish_non_exhaustive()
    }
}

impl<P: Policy> SupervisedData<P> {
    /// Micro-batches of `batch_size` examples, in an order that `seed` decides. Without held-out examples, the last checkpoint counts as
    /// the best, unless [`evaluated_by`](Self::evaluated_by) chooses.
    ///
    /// # Errors
    /// When there are fewer examples than a batch needs.
    pub fn new(train: Vec<Example>, held_out: Vec<Example>, batch_size: usize, seed: u64) -> Result<Self> {
        let train = Shuffled::new(train, batch_size, seed)?;
        Ok(Self { train, held_out, batch_size, evaluation: None, collective: Collective::default() })
    }

    /// Adds an evaluation, such as a [`RewardEvaluation`](crate::RewardEvaluation), whose score then chooses the best checkpoint.
    #[must_use]
    pub fn evaluated_by(mut self, evaluation: impl PolicyEvaluation<P> + 'static) -> Self {
        self.evaluation = Some(Box::new(evaluation));
        self
    }

    /// Sum of the losses of the held-out examples and the number of their tokens.
    fn loss(&self, policy: &P, observer: &mut dyn Observer) -> Result<(f64, f64)> {
        let batches: Vec<&[Example]> = self.held_out.chunks(self.batch_size.max(1)).collect();
        let mut done = 0;
        let losses = self.collective.map(batches.len(), |mine| {
            mine.iter()
                .map(|&i| {
                    let loss = tch::no_grad(|| policy.cross_entropy(batches[i]))?;
                    done += 1;
                    observer.progress("validation", done, mine.len() as u64).map_err(Error::Observer)?;
                    let sum = loss.sum.f_to_kind(Kind::Double)?.f_double_value(&[])?;
                    // JSON cannot encode NaN.
                    Ok((sum.to_bits(), loss.count))
                })
                .collect()
        })?;
        let add = |(sum, tokens): (f64, f64), (bits, count): (u64, u64)| {
            (sum + f64::from_bits(bits), tokens + count as f64)
        };
        Ok(losses.into_iter().fold((0.0, 0.0), add))
    }
}

impl<P: Policy> Curriculum<P> for SupervisedData<P> {
    fn distribute(&mut self, collective: &Collective) -> Result<()> {
        self.collective = collective.clone();
        if let Some(evaluation) = &mut self.evaluation {
            evaluation.distribute(collective)?;
        }
        self.train.shard(collective.shard()?)
    }

    fn next(&mut self, _: u64) -> Result<Vec<Objective>> {
        Ok(vec![Objective { name: "loss", weight: 1.0, examples: self.train.next_batch() }])
    }

    fn evaluate(&mut self, policy: &P, step: u64, observer: &mut dyn Observer) -> Result<Evaluation> {
        let (mut metrics, mut score): (Metrics, f64) = (vec![], step as f64);
        if !self.held_out.is_empty() {
            let (sum, tokens) = self.loss(policy, observer)?;
            let loss = sum / tokens;
            metrics.extend([("eval/loss".into(), loss), ("eval/perplexity".into(), loss.exp())]);
            score = -loss;
        }
        if let Some(evaluation) = &mut self.evaluation {
            let found = evaluation.evaluate(policy, step, observer)?;
            metrics.extend(found.metrics);
            score = found.score;
        }
        Ok(Evaluation { metrics, score })
    }

    fn state(&self) -> serde_json::Value {
        self.train.state()
    }

    fn load_state(&mut self, state: serde_json::Value) -> Result<()> {
        self.train.load_state(state)
    }
}
