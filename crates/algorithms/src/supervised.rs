//! A plain data set for supervised fine-tuning: prompts with completions, and dialogues.

use ruminate_datasets::SupervisedExample;
use ruminate_datasets::chat::ChatTemplate;
use ruminate_datasets::rise::TrainingText;
use ruminate_models::{Example, Policy, Tokenizer};
use tch::Kind;

use crate::rwr::{TooLong, encode_texts};
use crate::shuffled::Shuffled;
use crate::trainer::Evaluation;
use crate::{Collective, Curriculum, Error, Objective, Observer, Result};

/// Token ids of examples. The loss is on completions, and on the assistant's messages of dialogues.
///
/// The tokenizer tells the family: T5's puts an end token behind every text and nothing in front, so that prompt and completion are
/// encoded alone. For all others they are one text, with the tokenizer's end token behind a completion that lacks it. Dialogues are
/// rendered by `template`. Texts of more than `max_length` tokens lose their end.
///
/// # Errors
/// When there is a dialogue but no template, the template refuses a dialogue, an example has no token to train, or the tokenizer
/// names no end token or fails. The error names the example's number, counted from 0.
pub fn encode_supervised(
    tokenizer: &Tokenizer,
    template: Option<&ChatTemplate>,
    examples: &[SupervisedExample],
    max_length: usize,
) -> Result<Vec<Example>> {
    let apart = matches!(tokenizer.added_tokens()?, (0, 1..));
    let encode = |example: &SupervisedExample| -> Result<Option<Example>> {
        let (messages, given) = match example {
            SupervisedExample::Completion { prompt, completion } if apart => {
                let (mut prompt, mut target) =
                    (tokenizer.encode(prompt)?, tokenizer.encode_target(completion)?);
                prompt.truncate(max_length);
                target.truncate(max_length);
                return Ok((!prompt.is_empty() && !target.is_empty()).then_some(Example { prompt, target }));
            }
            SupervisedExample::Completion { prompt, completion } => {
                let no_end = "names no end token, which completions get: put tokenizer_config.json with `eos_token` beside \
                              tokenizer.json, or call Tokenizer::set_end_token";
                let (end, _) = tokenizer.end_token().ok_or_else(|| Error::config("tokenizer", no_end))?;
                let end = if completion.ends_with(end) { "" } else { end };
                let text = format!("{prompt}{completion}{end}");
                let completion = prompt.len()..text.len();
                let text = TrainingText { text, spans: [completion].into(), weight: 1.0 };
                return one(tokenizer, text, max_length);
            }
            SupervisedExample::Dialogue { messages } => (messages.clone(), 0),
            SupervisedExample::Answer { prompt, completion } => {
                ([&prompt[..], completion].concat(), prompt.len())
            }
        };
        let template = template.ok_or_else(|| {
            Error::config(
                "template",
                "is missing, but dialogues need one: ChatTemplate::open(folder) reads the model's",
            )
        })?;
        let rendered = template.conversation(&messages)?;
        let trained: Vec<bool> =
            messages.iter().enumerate().map(|(i, m)| i >= given && m.role == "assistant").collect();
        let spans = rendered.spans(&trained);
        one(tokenizer, TrainingText { text: rendered.text, spans, weight: 1.0 }, max_length)
    };
    let encoded = examples.iter().enumerate().map(|(i, example)| {
        let nothing = || {
            let reason = format!("number {i} has no token to train within {max_length} tokens; raise max_length or leave it out");
            Error::config("examples", reason)
        };
        encode(example)?.ok_or_else(nothing)
    });
    encoded.collect()
}

/// The example of a text, if a token of it is trained.
fn one(tokenizer: &Tokenizer, text: TrainingText, max_length: usize) -> Result<Option<Example>> {
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
/// use ruminate_datasets::{chat::ChatTemplate, supervised};
/// use ruminate_models::{Model, Tokenizer};
/// use tch::{Device, Kind};
///
/// let (folder, device) = ("models/qwen2.5-0.5b".as_ref(), Device::cuda_if_available());
/// let (model, tokenizer) = (Model::load(folder, Kind::Float, device)?, Tokenizer::open(folder)?);
/// let template = ChatTemplate::open(folder).ok();
/// let read = |file: &str| -> Result<_, Box<dyn std::error::Error>> {
///     Ok(encode_supervised(&tokenizer, template.as_ref(), &supervised::read(file.as_ref())?, 1024)?)
/// };
/// let data = SupervisedData::new(read("train.jsonl")?, read("valid.jsonl")?, 8, 1)?;
/// let mut sft = Sft::new(model, data, tokenizer.clone());
/// let fitted = Trainer::new(TrainerConfig::default(), "runs/sft".as_ref())?.fit(&mut sft, &mut NullObserver)?;
/// println!("the best model is in {}", fitted.best.path.display());
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
#[derive(Debug)]
pub struct SupervisedData {
    train: Shuffled<Example>,
    held_out: Vec<Example>,
    batch_size: usize,
    collective: Collective,
}

impl SupervisedData {
    /// Micro-batches of `batch_size` examples, in an order that `seed` decides. Without held-out examples, every checkpoint scores
    /// alike.
    ///
    /// # Errors
    /// When there are fewer examples than a batch needs.
    pub fn new(train: Vec<Example>, held_out: Vec<Example>, batch_size: usize, seed: u64) -> Result<Self> {
        let train = Shuffled::new(train, batch_size, seed)?;
        Ok(Self { train, held_out, batch_size, collective: Collective::default() })
    }

    /// Sum of the losses of the held-out examples and the number of their tokens.
    fn loss<P: Policy>(&self, policy: &P, observer: &mut dyn Observer) -> Result<(f64, f64)> {
        let batches: Vec<&[Example]> = self.held_out.chunks(self.batch_size.max(1)).collect();
        let mut done = 0;
        let losses = self.collective.map(batches.len(), |mine| {
            mine.iter()
                .map(|&i| {
                    let loss = tch::no_grad(|| policy.cross_entropy(batches[i]))?;
                    done += 1;
                    observer.progress("validation", done, mine.len() as u64).map_err(Error::Observer)?;
                    let sum = loss.sum.f_to_kind(Kind::Double)?.f_double_value(&[])?;
                    // Floats that are no number do not travel.
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

impl<P: Policy> Curriculum<P> for SupervisedData {
    fn distribute(&mut self, collective: &Collective) -> Result<()> {
        self.collective = collective.clone();
        self.train.shard(collective.shard()?)
    }

    fn next(&mut self, _: u64) -> Result<Vec<Objective>> {
        Ok(vec![Objective { name: "loss", weight: 1.0, examples: self.train.next_batch() }])
    }

    fn evaluate(&mut self, policy: &P, _: u64, observer: &mut dyn Observer) -> Result<Evaluation> {
        if self.held_out.is_empty() {
            return Ok(Evaluation { metrics: vec![], score: 0.0 });
        }
        let (sum, tokens) = self.loss(policy, observer)?;
        let loss = sum / tokens;
        let metrics = vec![("eval/loss".into(), loss), ("eval/perplexity".into(), loss.exp())];
        Ok(Evaluation { metrics, score: -loss })
    }

    fn state(&self) -> serde_json::Value {
        self.train.state()
    }

    fn load_state(&mut self, state: serde_json::Value) -> Result<()> {
        self.train.load_state(state)
    }
}
