//! Rewards with a model behind them: Vera, or the policy itself.

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::sync::{Mutex, PoisonError};

use ruminate_models::{EncodedText, ScoreChoices, TokenId, Tokenizer, Vera, by_length};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use serde_json::Value;
use tch::{Device, Kind};

use super::template::{fill, places};
use super::{Answered, Judge, Judged, PolicyModel, Unjudged};
use crate::{RewardError, Shape};

/// The precision of a model's weights and products.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum ModelPrecision {
    /// 32 bits.
    #[default]
    F32,
    /// 16 bits, `bfloat16`.
    Bf16,
}

/// Settings of `plausibility`: for how true Vera (arXiv 2305.03695) takes a statement, from 0 to 1.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(default, deny_unknown_fields)]
pub struct Plausible {
    /// Folder of the model: Vera's, or that of a verifier in its form.
    pub model: PathBuf,
    /// The statement, with places for the response (`{completion}`) and for fields of the row, such as `{prompt} {completion}`.
    pub statement: String,
    /// Where the model runs: `cpu`, `cuda`, `cuda:1`, or `auto` for the first GPU where there is one. Each process loads a model of its own.
    pub device: String,
    /// The precision of its weights.
    pub precision: ModelPrecision,
}

impl Default for Plausible {
    fn default() -> Self {
        Self {
            model: PathBuf::new(),
            statement: "{completion}".into(),
            device: "auto".into(),
            precision: ModelPrecision::F32,
        }
    }
}

impl Plausible {
    pub(super) fn prepared(&self) -> Result<PlausibleJudge, String> {
        device(&self.device)?;
        if self.model.as_os_str().is_empty() {
            return Err(
                "model is empty; name a folder, such as kind.plausibility.model = \"models/vera\"".into()
            );
        }
        if !self.model.join("config.json").is_file() {
            return Err(format!("model: there is no {}", self.model.join("config.json").display()));
        }
        if !places(&self.statement).any(|name| name == "completion") {
            return Err("statement: put {completion} where the response belongs".into());
        }
        Ok(PlausibleJudge { settings: self.clone(), vera: Mutex::default() })
    }

    fn load(&self) -> Result<Vera, Unjudged> {
        let kind = match self.precision {
            ModelPrecision::F32 => Kind::Float,
            ModelPrecision::Bf16 => Kind::BFloat16,
        };
        let device = device(&self.device).map_err(Unjudged::Setting)?;
        if let Device::Cuda(index) = device
            && !(tch::Cuda::is_available() && (index as i64) < tch::Cuda::device_count())
        {
            let reason = format!("device is `{}`, which this machine does not have", self.device);
            return Err(Unjudged::Setting(reason));
        }
        Ok(Vera::load(&self.model, kind, device).map_err(RewardError::from)?)
    }
}

fn device(name: &str) -> Result<Device, String> {
    match name {
        "auto" => Ok(Device::cuda_if_available()),
        "cpu" => Ok(Device::Cpu),
        "cuda" => Ok(Device::Cuda(0)),
        _ => name
            .strip_prefix("cuda:")
            .and_then(|index| index.parse().ok())
            .map(Device::Cuda)
            .ok_or_else(|| format!("device is `{name}`, but must be auto, cpu, cuda or cuda:N")),
    }
}

/// Vera, which is loaded when the first sample comes.
#[derive(Debug)]
pub(super) struct PlausibleJudge {
    settings: Plausible,
    vera: Mutex<Option<Vera>>,
}

impl Judge for PlausibleJudge {
    fn judge(&self, samples: &[Answered<'_>], _: Option<PolicyModel<'_>>) -> Judged {
        let mut statements = Vec::with_capacity(samples.len());
        for (sample, of) in samples.iter().enumerate() {
            let statement = fill(&self.settings.statement, of);
            statements.push(statement.map_err(|reason| Unjudged::Sample { sample, reason })?);
        }
        let mut vera = self.vera.lock().unwrap_or_else(PoisonError::into_inner);
        let vera = match &mut *vera {
            Some(vera) => vera,
            empty => empty.insert(self.settings.load()?),
        };
        let scores = vera.score(&statements).map_err(RewardError::from)?;
        Ok(scores.into_iter().map(|score| score.calibrated).collect())
    }
}

/// Settings of `self_feedback`: how much a response helps the policy itself to answer, as in Crystal (arXiv 2310.04921). The policy scores
/// the choices of a row after two texts, one without and one with the response. A choice's score is the log-probability of all its tokens,
/// its end token included; for labels of one token, differences of scores are those of the paper.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(default, deny_unknown_fields)]
pub struct SelfFeedbackReward {
    /// The field with the choices, a list of texts, one of which is the answer.
    pub choices: String,
    /// The text in front of a choice without the response, with places for fields of the row. A blank follows.
    pub without: String,
    /// The text with the response, `{completion}`.
    pub with: String,
    /// How scores become a reward, by the numbers of the paper's code, 0 to 7. Default: 4, from -1 to 1.
    pub shape: Shape,
    /// Texts in one pass of the policy.
    pub batch: usize,
}

impl Default for SelfFeedbackReward {
    fn default() -> Self {
        Self {
            choices: "choices".into(),
            without: "{prompt}\nAnswer:".into(),
            with: "{prompt}\n{completion}\nAnswer:".into(),
            shape: Shape::default(),
            batch: 32,
        }
    }
}

impl SelfFeedbackReward {
    pub(super) fn checked(&self) -> Result<Self, String> {
        let completion = |template| places(template).any(|name| name == "completion");
        if self.batch == 0 {
            return Err("batch must be at least 1".into());
        }
        if completion(&self.without) || !completion(&self.with) {
            return Err("with must hold {completion}, and without must not".into());
        }
        Ok(self.clone())
    }

    /// The choices of a row, and which of them is right.
    fn question<'a>(&self, sample: &Answered<'a>) -> Result<(Vec<&'a str>, usize), String> {
        let field = &self.choices;
        let row = sample.row;
        let list = row.fields.get(field).and_then(Value::as_array);
        let list = list.ok_or_else(|| format!("the row has no list `{field}` of choices"))?;
        let choices = list.iter().map(|choice| choice.as_str().filter(|text| !text.is_empty()));
        let choices = choices.collect::<Option<Vec<_>>>();
        let choices =
            choices.ok_or_else(|| format!("the row's `{field}` holds something that is no text"))?;
        let answer = row.answer.as_deref().ok_or("the row has no `answer`, which is one of the choices")?;
        let gold = choices.iter().position(|choice| choice.trim() == answer.trim());
        let gold = gold.ok_or_else(|| format!("the answer {answer:?} is none of the row's `{field}`"))?;
        Ok((choices, gold))
    }
}

/// A text in front of choices, in token ids.
type Asked = (Vec<TokenId>, Vec<Vec<TokenId>>);

impl Judge for SelfFeedbackReward {
    fn judge(&self, samples: &[Answered<'_>], policy: Option<PolicyModel<'_>>) -> Judged {
        let PolicyModel { policy, tokenizer } = policy.ok_or_else(|| Unjudged::Sample {
            sample: 0,
            reason: "self_feedback asks the policy, and there is none here to ask: it works in training and its validation only (in Rust, by WeightedRewards::with_tokenizer)"
                .into(),
        })?;
        let (mut asked, mut golds) = (vec![], vec![]);
        for (sample, of) in samples.iter().enumerate() {
            let refuse = |reason| Unjudged::Sample { sample, reason };
            let (choices, gold) = self.question(of).map_err(refuse)?;
            for template in [&self.without, &self.with] {
                let text = fill(template, of).map_err(refuse)?;
                let question = encode(tokenizer, &text, &choices)?;
                asked.push(question.ok_or_else(|| {
                    refuse(format!(
                        "the tokenizer joins choices with the end of {text:?}; let the text end with a word"
                    ))
                })?);
            }
            golds.push(gold);
        }
        let scores = choice_scores(policy, asked, self.batch)?;
        let reward = |(sample, (pair, &gold)): (usize, (&[Vec<f64>], &usize))| {
            let refuse = |source| RewardError::Choices { sample, task: String::new(), source };
            Ok(self.shape.reward(&pair[1], &pair[0], gold).map_err(refuse)?)
        };
        scores.chunks(2).zip(&golds).enumerate().map(reward).collect()
    }

    fn asks_policy(&self) -> bool {
        true
    }
}

/// A text and the choices behind it in token ids, as the policy would read and write them; none where a token spans the end of the text.
fn encode(tokenizer: &Tokenizer, text: &str, choices: &[&str]) -> Result<Option<Asked>, RewardError> {
    if matches!(tokenizer.added_tokens()?, (0, 1..)) {
        // The encoder reads the text, and the decoder writes a choice.
        let choices = choices.iter().map(|choice| tokenizer.encode_target(choice));
        return Ok(Some((tokenizer.encode(text)?, choices.collect::<Result<_, _>>()?)));
    }
    let (text, end) = (text.trim_end(), tokenizer.encode_target("")?);
    let (mut prompt, mut targets) = (None, vec![]);
    for choice in choices {
        let EncodedText { mut ids, offsets } = tokenizer.encode_with_offsets(&format!("{text} {choice}"))?;
        let front = offsets.iter().take_while(|bytes| bytes.end <= text.len()).count();
        let target = ids.split_off(front);
        if *prompt.get_or_insert_with(|| ids.clone()) != ids {
            return Ok(None);
        }
        targets.push([target, end.clone()].concat());
    }
    Ok(prompt.map(|prompt| (prompt, targets)))
}

/// The log-probability of each choice after each text. Equal questions go through the policy once.
fn choice_scores(
    policy: &dyn ScoreChoices,
    asked: Vec<Asked>,
    batch: usize,
) -> Result<Vec<Vec<f64>>, RewardError> {
    let mut known: BTreeMap<Asked, usize> = BTreeMap::new();
    let slots: Vec<usize> = asked
        .into_iter()
        .map(|question| {
            let next = known.len();
            *known.entry(question).or_insert(next)
        })
        .collect();
    let mut distinct: Vec<(&Asked, usize)> = known.iter().map(|(question, &slot)| (question, slot)).collect();
    distinct.sort_by_key(|&(_, slot)| slot);
    let prompts: Vec<&[TokenId]> = distinct.iter().map(|((prompt, _), _)| prompt.as_slice()).collect();
    let scores = by_length(&prompts, batch, |rows| {
        let prompts: Vec<_> = rows.iter().map(|&row| prompts[row].to_vec()).collect();
        let choices: Vec<_> = rows.iter().map(|&row| distinct[row].0.1.clone()).collect();
        let log_probs = tch::no_grad(|| policy.choice_log_probs(&prompts, &choices))?;
        let sums =
            log_probs.f_sum_dim_intlist(-1, false, Kind::Double).map_err(ruminate_models::Error::from)?;
        let mut sums: Vec<Vec<f64>> = Vec::try_from(sums).map_err(ruminate_models::Error::from)?;
        // Questions with fewer choices than others of their batch have empty slots.
        sums.iter_mut().zip(&choices).for_each(|(sums, choices)| sums.truncate(choices.len()));
        Ok::<_, ruminate_models::Error>(sums)
    })?;
    Ok(slots.into_iter().map(|slot| scores[slot].clone()).collect())
}
