//! What changes logits before a token is chosen.

use ruminate_torch::kernels::Kernel;
use ruminate_torch::{Choice, Sampler};
use tch::{Device, Kind, Tensor};

use super::{Sampling, SequenceBias};
use crate::batch::check_range;
use crate::{Error, Result, TokenId};

/// What has been written before the token that is to be chosen.
#[derive(Debug, Clone, Copy)]
pub struct History<'a> {
    /// Token ids `[rows, time]`, the start token or the prompt included.
    pub tokens: &'a Tensor,
    /// Leading tokens per row that are padding, `[rows, 1]`, where there are any.
    pub padding: Option<&'a Tensor>,
}

/// One change of logits `[rows, vocab]`. The rules, ties and limits included, are those of transformers.
#[derive(Debug, Clone, PartialEq)]
#[non_exhaustive]
pub enum Processor {
    /// Divides by the temperature.
    Temperature(f64),
    /// Keeps the `k` largest and what is tied with the k-th; 0 keeps all.
    TopK(usize),
    /// Keeps the most probable tokens until their probabilities pass `p`; the one that crosses is kept.
    TopP {
        /// The mass to keep, in `[0, 1]`.
        p: f64,
        /// Tokens that stay in any case.
        min_keep: usize,
    },
    /// Keeps what is at least this share of the largest probability.
    MinP(f64),
    /// Keeps the tokens whose information is nearest to the entropy, until their probabilities pass this mass
    /// (arXiv 2202.00666).
    TypicalP(f64),
    /// Divides positive and multiplies negative logits of tokens in the history (arXiv 1909.05858).
    RepetitionPenalty(f64),
    /// Forbids what would repeat a sequence of this many tokens; 0 allows all.
    NoRepeatNgram(usize),
    /// Adds a bias to the last token of each sequence whose other tokens were just written; `-inf` forbids it.
    SequenceBias(Vec<SequenceBias>),
    /// Forbids tokens.
    Suppress(Vec<TokenId>),
    /// Forbids tokens while the history is shorter than this.
    SuppressUntil {
        /// Tokens of the history from which on they are allowed.
        length: usize,
        /// The tokens, usually those that end a sequence.
        ids: Vec<TokenId>,
    },
    /// Allows only one token when the history has this many tokens.
    ForceAt {
        /// Tokens of the history.
        length: usize,
        /// The token.
        id: TokenId,
    },
}

impl Processor {
    /// Applies the change.
    ///
    /// # Errors
    /// When a setting is out of its range, an id outside the vocabulary, or a tensor has another shape.
    pub fn apply(&self, logits: &Tensor, history: History<'_>) -> Result<Tensor> {
        let (rows, vocab) = check_logits(logits)?;
        self.check(vocab)?;
        history.check(rows, vocab)?;
        self.run(logits, history)
    }

    /// Refuses settings that mean nothing.
    fn check(&self, vocab: i64) -> Result<()> {
        let refuse = |reason: String| Err(Error::invalid("processor", reason));
        let positive = |name: &str, x: f64| match x > 0.0 && x.is_finite() {
            true => Ok(()),
            false => refuse(format!("{name} is {x}, but must be above 0")),
        };
        let share = |name: &str, x: f64| match (0.0..=1.0).contains(&x) {
            true => Ok(()),
            false => refuse(format!("{name} is {x}, but must be in [0, 1]")),
        };
        let ids = |ids: &[TokenId]| match ids.iter().find(|&&id| id < 0 || id >= vocab) {
            Some(id) => refuse(format!("token {id} is outside the vocabulary of {vocab}")),
            None => Ok(()),
        };
        match self {
            Self::Temperature(temperature) => positive("temperature", *temperature),
            Self::TopP { p, .. } => share("top_p", *p),
            Self::MinP(p) => share("min_p", *p),
            Self::TypicalP(p) => share("typical_p", *p),
            Self::RepetitionPenalty(penalty) => positive("repetition_penalty", *penalty),
            Self::SequenceBias(sequences) => {
                sequences.iter().try_for_each(|SequenceBias { ids: sequence, bias }| {
                    if bias.is_nan() {
                        return refuse("a bias of sequences is not a number".into());
                    }
                    ids(sequence)
                })
            }
            Self::Suppress(all) | Self::SuppressUntil { ids: all, .. } => ids(all),
            Self::ForceAt { id, .. } => ids(&[*id]),
            Self::TopK(_) | Self::NoRepeatNgram(_) => Ok(()),
        }
    }

    /// Applies the change without [`apply`](Self::apply)'s checks, for decode loops.
    pub(super) fn run(&self, logits: &Tensor, history: History<'_>) -> Result<Tensor> {
        let length = history.tokens.size()[1] as usize;
        match self {
            Self::Temperature(temperature) => Ok(logits.f_div_scalar(*temperature)?),
            Self::TopK(k) => top_k(logits, *k),
            Self::TopP { p, min_keep } => top_p(logits, *p, *min_keep),
            Self::MinP(share) => min_p(logits, *share),
            Self::TypicalP(mass) => typical_p(logits, *mass),
            Self::RepetitionPenalty(penalty) => repetition_penalty(logits, *penalty, history),
            Self::NoRepeatNgram(n) => no_repeat_ngram(logits, *n, history),
            Self::SequenceBias(sequences) => {
                sequences.iter().try_fold(logits.shallow_clone(), |logits, SequenceBias { ids, bias }| {
                    sequence_bias(&logits, ids, *bias, history.tokens)
                })
            }
            Self::Suppress(ids) => without(logits, &ids_on(logits, ids)?),
            Self::SuppressUntil { length: limit, ids } if length < *limit => {
                without(logits, &ids_on(logits, ids)?)
            }
            Self::ForceAt { length: at, id } if length == *at => {
                let forced = logits.f_full_like(f64::NEG_INFINITY)?;
                Ok(forced.f_index_fill(1, &ids_on(logits, &[*id])?, 0.0)?)
            }
            Self::SuppressUntil { .. } | Self::ForceAt { .. } => Ok(logits.shallow_clone()),
        }
    }
}

/// Applies temperature, top-k, top-p, min-p and typical-p to logits `[rows, vocab]`; what may not be drawn becomes `-inf`.
///
/// # Errors
/// When a setting is out of its range, or the logits have another shape.
///
/// # Example
/// ```
/// use ruminate_models::{Sampling, filter_logits};
/// use tch::Tensor;
/// let logits = Tensor::from_slice(&[1.0, 3.0, 2.0]).view([1, 3]);
/// let kept = filter_logits(&logits, &Sampling { top_k: Some(2), ..Sampling::default() })?;
/// assert_eq!(kept.double_value(&[0, 0]), f64::NEG_INFINITY);
/// assert_eq!(kept.double_value(&[0, 2]), 2.0);
/// # Ok::<(), ruminate_models::Error>(())
/// ```
pub fn filter_logits(logits: &Tensor, sampling: &Sampling) -> Result<Tensor> {
    check_logits(logits)?;
    sampling.validate()?;
    filtered(logits, sampling)
}

/// [`filter_logits`] without its checks, for decode loops.
pub(super) fn filtered(logits: &Tensor, sampling: &Sampling) -> Result<Tensor> {
    let mut logits = logits.shallow_clone();
    if sampling.temperature != 1.0 {
        logits = logits.f_div_scalar(sampling.temperature)?;
    }
    if let Some(k) = sampling.top_k {
        logits = top_k(&logits, k)?;
    }
    if let Some(p) = sampling.top_p.filter(|&p| p < 1.0) {
        logits = top_p(&logits, p, 1)?;
    }
    if let Some(share) = sampling.min_p {
        logits = min_p(&logits, share)?;
    }
    match sampling.typical_p.filter(|&mass| mass < 1.0) {
        Some(mass) => typical_p(&logits, mass),
        None => Ok(logits),
    }
}

/// Takes some tokens out of logits `[rows, vocab]`; `ids` is a one-dimensional `i64` tensor on their device.
///
/// # Errors
/// When an id is outside the vocabulary, or a tensor has another shape or kind.
pub fn forbid(logits: &Tensor, ids: &Tensor) -> Result<Tensor> {
    let (_, vocab) = check_logits(logits)?;
    if ids.dim() != 1 || ids.kind() != Kind::Int64 {
        let reason = format!("{:?} of kind {:?}, but must be one row of i64", ids.size(), ids.kind());
        return Err(Error::invalid("forbidden ids", reason));
    }
    check_range("forbidden ids", ids, vocab)?;
    without(logits, ids)
}

fn without(logits: &Tensor, ids: &Tensor) -> Result<Tensor> {
    Ok(logits.f_index_fill(1, ids, f64::NEG_INFINITY)?)
}

/// Rows and vocabulary of logits.
fn check_logits(logits: &Tensor) -> Result<(i64, i64)> {
    match logits.size()[..] {
        [rows, vocab] if vocab > 0 && logits.is_floating_point() => Ok((rows, vocab)),
        ref shape => {
            let reason =
                format!("{shape:?} of kind {:?}, but must be [rows, vocab] of floats", logits.kind());
            Err(Error::invalid("logits", reason))
        }
    }
}

impl History<'_> {
    fn check(self, rows: i64, vocab: i64) -> Result<()> {
        let wrong = |name: &str, tensor: &Tensor, right: &str| {
            let reason = format!(
                "{name} are {:?} of kind {:?}, but must be {right} of i64",
                tensor.size(),
                tensor.kind()
            );
            Err(Error::invalid("history", reason))
        };
        if self.tokens.dim() != 2 || self.tokens.size()[0] != rows || self.tokens.kind() != Kind::Int64 {
            return wrong("tokens", self.tokens, &format!("[{rows}, time]"));
        }
        if let Some(padding) = self.padding
            && (padding.size() != [rows, 1] || padding.kind() != Kind::Int64)
        {
            return wrong("counts of padding", padding, &format!("[{rows}, 1]"));
        }
        check_range("history", self.tokens, vocab)
    }
}

fn ids_on(logits: &Tensor, ids: &[TokenId]) -> Result<Tensor> {
    Ok(Tensor::f_from_slice(ids)?.f_to_device(logits.device())?)
}

fn drop_where(logits: &Tensor, dropped: &Tensor) -> Result<Tensor> {
    Ok(logits.f_masked_fill(dropped, f64::NEG_INFINITY)?)
}

fn top_k(logits: &Tensor, k: usize) -> Result<Tensor> {
    let vocab = logits.size()[1];
    let k = i64::try_from(k).unwrap_or(vocab);
    if k == 0 || k >= vocab {
        return Ok(logits.shallow_clone());
    }
    let (largest, _) = logits.f_topk(k, -1, true, true)?;
    drop_where(logits, &logits.f_lt_tensor(&largest.f_narrow(1, k - 1, 1)?)?)
}

/// Where it can, in one pass without sorting: `ruminate_torch::top_p`.
fn top_p(logits: &Tensor, p: f64, min_keep: usize) -> Result<Tensor> {
    let there = logits.device() == Device::Cpu || Kernel::TopP.is_on();
    if min_keep <= 1 && there && logits.kind() == Kind::Float {
        return Ok(ruminate_torch::top_p(logits, p)?);
    }
    top_p_by_sorting(logits, p, min_keep)
}

/// As transformers does it.
fn top_p_by_sorting(logits: &Tensor, p: f64, min_keep: usize) -> Result<Tensor> {
    let vocab = logits.size()[1];
    let (sorted, order) = logits.f_sort(-1, false)?;
    let dropped = sorted.f_softmax(-1, None::<Kind>)?.f_cumsum(-1, None::<Kind>)?.f_le(1.0 - p)?;
    // The most probable tokens survive, also when rounding says otherwise.
    let keep = i64::try_from(min_keep).unwrap_or(vocab).clamp(1, vocab);
    let _ = dropped.f_narrow(1, vocab - keep, keep)?.f_fill_(0.0)?;
    drop_where(logits, &dropped.f_scatter(1, &order, &dropped)?)
}

fn min_p(logits: &Tensor, share: f64) -> Result<Tensor> {
    let probs = logits.f_softmax(-1, None::<Kind>)?;
    let limit = probs.f_amax([-1i64].as_slice(), true)?.f_mul_scalar(share)?;
    drop_where(logits, &probs.f_lt_tensor(&limit)?)
}

fn typical_p(logits: &Tensor, mass: f64) -> Result<Tensor> {
    let log_probs = logits.f_log_softmax(-1, None::<Kind>)?;
    let entropy =
        log_probs.f_exp()?.f_mul(&log_probs)?.f_nansum([-1i64].as_slice(), true, None::<Kind>)?.f_neg()?;
    let (distance, order) = log_probs.f_neg()?.f_sub(&entropy)?.f_abs()?.f_sort(-1, false)?;
    let sorted = logits.f_gather(-1, &order, false)?;
    let cumulative = sorted.f_softmax(-1, None::<Kind>)?.f_cumsum(-1, None::<Kind>)?;
    let last = cumulative.f_lt(mass)?.f_sum_dim_intlist([1i64].as_slice(), true, Kind::Int64)?;
    let last = last.f_clamp_max(logits.size()[1] - 1)?;
    let dropped = distance.f_gt_tensor(&distance.f_gather(1, &last, false)?)?;
    let _ = dropped.f_narrow(1, 0, 1)?.f_fill_(0.0)?;
    drop_where(logits, &dropped.f_scatter(1, &order, &dropped)?)
}

fn repetition_penalty(logits: &Tensor, penalty: f64, history: History<'_>) -> Result<Tensor> {
    let time = history.tokens.size()[1];
    let counted = match history.padding {
        Some(padding) => {
            let positions = Tensor::f_arange(time, (Kind::Int64, logits.device()))?.f_unsqueeze(0)?;
            positions.f_ge_tensor(padding)?.f_to_kind(Kind::Int64)?
        }
        None => history.tokens.f_ones_like()?,
    };
    let seen =
        logits.f_zeros_like()?.f_to_kind(Kind::Int64)?.f_scatter_add(1, history.tokens, &counted)?.f_gt(0)?;
    let negative = logits.f_lt(0.0)?;
    let penalised = logits.f_mul_scalar(penalty)?.f_where_self(&negative, &logits.f_div_scalar(penalty)?)?;
    Ok(penalised.f_where_self(&seen, logits)?)
}

fn no_repeat_ngram(logits: &Tensor, n: usize, history: History<'_>) -> Result<Tensor> {
    let History { tokens: history, padding } = history;
    let (rows, time) = history.size2()?;
    let n = i64::try_from(n).unwrap_or(i64::MAX);
    if n == 0 || time < n {
        return Ok(logits.shallow_clone());
    }
    // Every stretch of n tokens whose first n - 1 are those just written forbids its last.
    let stretches = history.f_unfold(1, n, 1)?;
    let tail = history.f_narrow(1, time - (n - 1), n - 1)?.f_unsqueeze(1)?;
    let mut repeats = stretches.f_narrow(2, 0, n - 1)?.f_eq_tensor(&tail)?.f_all_dim(2, false)?;
    if let Some(padding) = padding {
        let starts = Tensor::f_arange(repeats.size()[1], (Kind::Int64, logits.device()))?.f_unsqueeze(0)?;
        repeats = repeats.f_logical_and(&starts.f_ge_tensor(padding)?)?;
    }
    let last = stretches.f_select(2, n - 1)?;
    let marks = Tensor::f_zeros([rows, logits.size()[1]], (Kind::Int64, logits.device()))?;
    let banned = marks.f_scatter_add(1, &last, &repeats.f_to_kind(Kind::Int64)?)?.f_gt(0)?;
    drop_where(logits, &banned)
}

fn sequence_bias(logits: &Tensor, ids: &[TokenId], bias: f64, history: &Tensor) -> Result<Tensor> {
    let time = history.size()[1];
    let Some((&last, prefix)) = ids.split_last() else { return Ok(logits.shallow_clone()) };
    let length = prefix.len() as i64;
    if length >= time && length > 0 {
        return Ok(logits.shallow_clone());
    }
    let column = logits.f_narrow(1, last, 1)?;
    let biased = if prefix.is_empty() {
        column.f_add_scalar(bias)?
    } else {
        let matches = history.f_narrow(1, time - length, length)?.f_eq_tensor(&ids_on(logits, prefix)?)?;
        column.f_add_scalar(bias)?.f_where_self(&matches.f_all_dim(1, true)?, &column)?
    };
    Ok(logits.f_index_copy(1, &ids_on(logits, &[last])?, &biased)?)
}

/// Chooses a token per row of `allowed`, what processors left of `logits`, both `[rows, vocab]`: the most probable, or one drawn by
/// the row's number in `[0, 1)`, of `[rows, 1]`. A row's choice depends on nothing but its own logits and number.
pub(super) fn choose(
    logits: &Tensor,
    allowed: &Tensor,
    draws: Option<(&Sampling, &Tensor)>,
) -> Result<Choice> {
    let fused = draws.is_none_or(|(sampling, _)| sampling.min_p.is_none() && sampling.typical_p.is_none());
    if fused && logits.device() == Device::Cpu && logits.kind() == Kind::Float {
        let sampler = draws.map(|(sampling, uniform)| {
            let Sampling { temperature, top_k, top_p, .. } = *sampling;
            (Sampler { temperature, top_k: top_k.unwrap_or(0), top_p: top_p.unwrap_or(1.0) }, uniform)
        });
        return Ok(ruminate_torch::choose(logits, allowed, sampler)?);
    }
    let Some((sampling, uniform)) = draws else {
        let tokens = allowed.f_argmax(1, true)?;
        let log_probs = log_prob(logits, &tokens)?;
        let sampling_log_probs = log_probs.shallow_clone();
        return Ok(Choice { tokens, log_probs, sampling_log_probs });
    };
    let filtered = filtered(allowed, sampling)?;
    let tokens = draw(&filtered, uniform)?;
    let sampling_log_probs = log_prob(&filtered, &tokens)?;
    Ok(Choice { log_probs: log_prob(logits, &tokens)?, sampling_log_probs, tokens })
}

/// Log-probability of one token per row under logits that are not normalised, `[rows, 1]`.
fn log_prob(logits: &Tensor, token: &Tensor) -> Result<Tensor> {
    Ok(logits.f_gather(1, token, false)?.f_sub(&logits.f_logsumexp([1].as_slice(), true)?)?)
}

/// Draws one token per row from filtered logits with a uniform number in `[0, 1)` each: `uniform` is `[rows, 1]`.
/// A row's draw depends on nothing but its own logits and number.
fn draw(filtered: &Tensor, uniform: &Tensor) -> Result<Tensor> {
    let cumulative = filtered.f_softmax(-1, None::<Kind>)?.f_cumsum(-1, None::<Kind>)?;
    let total = cumulative.f_narrow(1, cumulative.size()[1] - 1, 1)?;
    // The first token whose cumulative probability exceeds the number; it has a probability above 0, because the sum
    // grew there. The total is not exactly 1 in floating point, so the number is scaled to it.
    let number = uniform.f_mul(&total)?;
    Ok(number.f_searchsorted(&cumulative, false, true, "right", None::<&Tensor>)?)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn filtered(logits: &[f32], sampling: Sampling) -> Vec<f32> {
        let logits = Tensor::from_slice(logits).view([1, -1]);
        filter_logits(&logits, &sampling).unwrap().view([-1]).try_into().unwrap()
    }

    const NO: f32 = f32::NEG_INFINITY;

    #[test]
    fn top_k_keeps_ties() {
        let top = |k| filtered(&[1.0, 3.0, 2.0, 3.0], Sampling { top_k: Some(k), ..Sampling::default() });
        assert_eq!(top(1), [NO, 3.0, NO, 3.0]);
        assert_eq!(top(3), [NO, 3.0, 2.0, 3.0]);
        assert_eq!(top(4), [1.0, 3.0, 2.0, 3.0]);
        assert_eq!(top(0), [1.0, 3.0, 2.0, 3.0], "0 is off");
        assert_eq!(top(usize::MAX), [1.0, 3.0, 2.0, 3.0]);
        assert_eq!(top(100), [1.0, 3.0, 2.0, 3.0]);
    }

    #[test]
    fn top_p_keeps_the_token_that_crosses() {
        let logits: Vec<f32> = [0.5f32, 0.3, 0.15, 0.05].iter().map(|p| p.ln()).collect();
        let kept = |p| {
            let left = filtered(&logits, Sampling { top_p: Some(p), ..Sampling::default() });
            left.iter().filter(|x| x.is_finite()).count()
        };
        assert_eq!(
            [kept(1e-9), kept(0.49), kept(0.51), kept(0.79), kept(0.81), kept(0.96), kept(1.0)],
            [1, 1, 2, 2, 3, 4, 4]
        );
    }

    #[test]
    fn filters_are_applied_in_order() {
        let logits: Vec<f32> = [0.4f32, 0.3, 0.2, 0.1].iter().map(|p| p.ln()).collect();
        // Of the two that top-k leaves, the first has 4/7 of the probability.
        let both = Sampling { top_k: Some(2), top_p: Some(0.5), ..Sampling::default() };
        assert_eq!(filtered(&logits, both)[1], NO);
        // A high temperature evens them out before top-p looks at them.
        let hot = Sampling { temperature: 100.0, top_p: Some(0.6), ..Sampling::default() };
        assert!(filtered(&logits, hot)[2].is_finite());
        assert_eq!(filtered(&logits, Sampling { temperature: 1.0, ..hot })[2], NO);
    }

    #[test]
    fn buckets_and_sorting_keep_the_same_tokens() {
        tch::manual_seed(3);
        let options = (Kind::Float, Device::Cpu);
        for (vocab, spread) in
            [(1, 1.0), (2, 0.0), (7, 2.0), (1000, 0.1), (1000, 0.0), (5000, 8.0), (32128, 1.4)]
        {
            let logits = Tensor::randn([4, vocab], options) * spread;
            // Ties at the border, and tokens that are forbidden.
            let coarse = (&logits * 4.0).round() / 4.0;
            let forbidden = logits.masked_fill(&logits.gt(0.5), f64::NEG_INFINITY);
            for logits in [&logits, &coarse, &forbidden] {
                for p in [1e-6, 0.1, 0.5, 0.9, 0.999] {
                    // Which of several equal tokens at the border stay is not defined; how many is.
                    let kept = |filtered: Result<Tensor>| filtered.unwrap().sort(-1, false).0;
                    let buckets = kept(top_p(logits, p, 1));
                    let sorted = kept(top_p_by_sorting(logits, p, 1));
                    let differ = buckets.ne_tensor(&sorted).sum(Kind::Int64).int64_value(&[]);
                    assert_eq!(differ, 0, "vocabulary {vocab}, spread {spread}, p {p}");
                }
            }
        }
    }

    #[test]
    fn padding_repeats_nothing() {
        // Real are 0 1 0 and 1 0 0 1 0.
        let tokens = Tensor::from_slice2(&[[0i64, 0, 0, 1, 0], [1, 0, 0, 1, 0]]);
        let padding = Tensor::from_slice2(&[[2i64], [0]]);
        let history = History { tokens: &tokens, padding: Some(&padding) };
        let logits = Tensor::zeros([2, 3], (Kind::Float, Device::Cpu));
        let rows = |n| Processor::NoRepeatNgram(n).apply(&logits, history).unwrap().isfinite();
        assert_eq!(Vec::<Vec<bool>>::try_from(rows(2)).unwrap(), [[true, false, true], [false, false, true]]);
        assert_eq!(Vec::<Vec<bool>>::try_from(rows(3)).unwrap(), [[true; 3], [false, true, true]]);
    }

    #[test]
    fn a_row_is_filtered_by_itself() {
        let sampling = Sampling { temperature: 0.5, top_k: Some(2), top_p: Some(0.9), ..Sampling::default() };
        let rows = [[0.0f32, 1.0, 2.0], [5.0, 0.0, 4.9]];
        let together = filter_logits(&Tensor::from_slice2(&rows), &sampling).unwrap();
        let together: Vec<Vec<f32>> = together.try_into().unwrap();
        for (row, together) in rows.iter().zip(&together) {
            assert_eq!(&filtered(row, sampling), together);
        }
    }

    #[test]
    fn evenly_spaced_numbers_draw_in_proportion() {
        let probabilities = [0.0f32, 0.25, 0.0, 0.5, 0.125, 0.125, 0.0];
        let n = 4096;
        let logits = Tensor::from_slice(&probabilities).log().view([1, -1]).expand([n, -1], false);
        let numbers: Vec<f32> = (0..n).map(|i| i as f32 / n as f32).collect();
        let drawn = draw(&logits, &Tensor::from_slice(&numbers).view([-1, 1])).unwrap();
        for (id, p) in probabilities.iter().enumerate() {
            let count = drawn.eq(id as i64).sum(Kind::Int64).int64_value(&[]);
            assert!((count - (p * n as f32) as i64).abs() <= 1, "token {id}: {count} of {n}");
            assert!(*p > 0.0 || count == 0, "token {id} cannot be drawn");
        }
    }

    #[test]
    fn the_ends_of_the_interval_draw_possible_tokens() {
        let largest = 1.0 - 1.0 / (1u32 << 23) as f32;
        // Many equal tokens between two impossible ones: the total is off 1 by rounding.
        for count in [1usize, 3, 10, 1000, 32_000] {
            let logits: Vec<f32> = [vec![NO], vec![0.3; count], vec![NO]].concat();
            let logits = Tensor::from_slice(&logits).view([1, -1]).repeat([2, 1]);
            let drawn = draw(&logits, &Tensor::from_slice(&[0.0, largest]).view([2, 1])).unwrap();
            assert_eq!(Vec::<i64>::try_from(drawn.view([-1])).unwrap(), [1, count as i64]);
        }
    }
}
