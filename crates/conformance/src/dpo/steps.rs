//! Whole steps: from rows of ids and logits to the loss and its gradients.

use super::{DOUBLE, Params, SINGLE, ids, logits};
use crate::Outcome;
use crate::compare::{Check, Mismatch, Tolerance, equal};
use crate::file::{GoldenError, GoldenFile};
use crate::references::f64s;
use ruminate_algorithms::dpo::{
    DpoState, LengthNorm, LossOutput, PairLogps, WeightedLoss, confidence, preference_loss,
    preference_metrics, shift_for_decoder, token_logps,
};
use ruminate_models::{
    Batch, Example, FeedForward, IGNORED, Labels, Llama, LlamaConfig, LogitStatistics, Policy, ScoreOptions,
    Side, T5, T5Config,
};
use serde::Deserialize;
use serde_json::Value;
use std::collections::BTreeMap;
use std::path::Path;
use tch::{Device, Kind, Tensor};

/// Compares metrics by name. Without a reference the rewards of the file are of another definition.
pub(super) fn check_metrics(
    tolerance: &Tolerance,
    policy: &PairLogps,
    reference: Option<&PairLogps>,
    output: &LossOutput,
    want: &BTreeMap<String, f64>,
    skip_rewards: bool,
) -> Check {
    let got: BTreeMap<String, f64> = preference_metrics(policy, reference, output)?.into_iter().collect();
    for (name, &want) in want.iter().filter(|(name, _)| !(skip_rewards && name.starts_with("rewards/"))) {
        let got = got.get(name).ok_or_else(|| Mismatch(format!("metrics.{name}: missing")))?;
        tolerance.close(&format!("metrics.{name}"), &[*got], &[want])?;
    }
    Ok(())
}

/// Halves of `[2 * pairs, ...]`, chosen rows first.
fn halves(rows: &Tensor) -> Check<[Tensor; 2]> {
    let pairs = rows.size().first().copied().unwrap_or(0) / 2;
    Ok([rows.f_narrow(0, 0, pairs)?, rows.f_narrow(0, pairs, pairs)?])
}

/// Sums over labels `[2 * pairs, time]` under logits that score them in place.
fn pair_logps(logits: &Tensor, labels: &Tensor, ld_alpha: f64) -> Check<PairLogps> {
    let [chosen, rejected] = halves(&token_logps(logits, labels)?)?;
    let [chosen_mask, rejected_mask] = halves(&labels.f_ne(IGNORED)?.f_to_kind(logits.kind())?)?;
    Ok(PairLogps::from_tokens([&chosen, &rejected], [&chosen_mask, &rejected_mask], ld_alpha)?)
}

/// Minus the sum of the chosen log-probabilities through the number of chosen tokens.
fn token_nll(policy: &PairLogps) -> Check<Tensor> {
    let tokens = policy.chosen_len.f_sum(None::<Kind>)?;
    Ok(policy.chosen.f_sum(None::<Kind>)?.f_neg()?.f_div(&tokens)?)
}

/// As if the completions had one token each, whose log-probability is their mean.
fn means_of(logps: &PairLogps) -> Check<PairLogps> {
    let [chosen, rejected] = logps.means()?;
    let ones = || logps.chosen_len.f_ones_like();
    Ok(PairLogps::new(chosen, rejected, ones()?, ones()?)?)
}

#[derive(Deserialize)]
struct Features {
    prompt_input_ids: Vec<i64>,
    chosen_labels: Vec<i64>,
    rejected_labels: Vec<i64>,
}

#[derive(Deserialize)]
struct Collated {
    input_ids: Vec<Vec<i64>>,
    attention_mask: Vec<Vec<i64>>,
    labels: Vec<Vec<i64>>,
    decoder_input_ids: Vec<Vec<i64>>,
}

fn check_collation(features: &[Features], want: &Collated) -> Check {
    let config = T5Config {
        vocab_size: 64,
        d_model: 2,
        d_kv: 1,
        d_ff: 2,
        num_layers: 1,
        num_decoder_layers: 1,
        num_heads: 1,
        relative_attention_num_buckets: 4,
        relative_attention_max_distance: 8,
        dropout_rate: 0.0,
        layer_norm_epsilon: 1e-6,
        initializer_factor: 1.0,
        feed_forward: FeedForward::Relu,
        tie_word_embeddings: true,
        scale_decoder_outputs: true,
        is_encoder_decoder: true,
        pad_token_id: 0,
        eos_token_ids: vec![1],
        decoder_start_token_id: 0,
    };
    let model = T5::new(config, Kind::Float, Device::Cpu, 0)?;
    let twice = || features.iter().chain(features);
    let prompts: Vec<_> = twice().map(|f| f.prompt_input_ids.as_slice()).collect();
    let source = Batch::new(&prompts, 0, Side::Right, Device::Cpu)?;
    let rows = |tensor: &Tensor| -> Check<Vec<Vec<i64>>> { Ok(Vec::try_from(tensor)?) };
    equal("collated.input_ids", &rows(&source.ids)?, &want.input_ids)?;
    equal("collated.attention_mask", &rows(&source.mask)?, &want.attention_mask)?;
    let chosen = features.iter().map(|f| f.chosen_labels.as_slice());
    let targets: Vec<_> = chosen.chain(features.iter().map(|f| f.rejected_labels.as_slice())).collect();
    let labels = Labels::new(&targets, Device::Cpu)?;
    equal("collated.labels", &rows(&labels.ids)?, &want.labels)?;
    // There, rows are shifted before they are padded; here, after. The inputs differ behind the last label only, which no
    // label sees.
    let alone = targets.iter().map(|target| -> Check<Vec<i64>> {
        let labels = Labels::new(&[target], Device::Cpu)?;
        Ok(Vec::try_from(model.shift_right(&labels.ids)?.f_view_([-1])?)?)
    });
    let alone = Batch::new(&alone.collect::<Check<Vec<_>>>()?, 0, Side::Right, Device::Cpu)?;
    equal("collated.decoder_input_ids", &rows(&alone.ids)?, &want.decoder_input_ids)?;
    let scored = labels.ids.f_ne(IGNORED)?;
    let seen = |inputs: &Tensor| -> Check<Vec<i64>> { Ok(Vec::try_from(inputs.f_masked_select(&scored)?)?) };
    equal("decoder inputs at labels", seen(&model.shift_right(&labels.ids)?)?, seen(&alone.ids)?)
}

pub(super) fn encoder_decoder_step(path: &Path) -> Result<Outcome, GoldenError> {
    #[derive(Deserialize)]
    struct Case {
        params: Params,
        features: Vec<Features>,
        collated: Collated,
        policy_logits: Vec<Vec<Vec<f64>>>,
        reference_logits: Vec<Vec<Vec<f64>>>,
        policy_chosen_logps: Vec<f64>,
        policy_rejected_logps: Vec<f64>,
        reference_chosen_logps: Vec<f64>,
        reference_rejected_logps: Vec<f64>,
        losses_without_nll: Vec<f64>,
        nll_chosen_clean: f64,
        nll_chosen_with_padding_as_token_0: f64,
        loss_clean: f64,
        loss_reference_with_padding: f64,
        metrics: BTreeMap<String, f64>,
        grad_policy_logits_of_loss_clean: Gradient,
    }
    #[derive(Deserialize)]
    struct Gradient {
        l2_norm: f64,
        first_chosen_row_first_position: Vec<f64>,
        first_rejected_row_first_position: Vec<f64>,
    }
    let file = GoldenFile::read(path)?;
    let tolerance = file.tolerance_or(DOUBLE)?;
    let cases = file.cases("cases", |case: Case| {
        check_collation(&case.features, &case.collated)?;
        let labels = ids(&case.collated.labels)?;
        let policy_logits = logits(&case.policy_logits)?.set_requires_grad(true);
        let config = case.params.single(LengthNorm::Token, false)?;
        let policy = pair_logps(&policy_logits, &labels, 1.0)?;
        let reference = pair_logps(&logits(&case.reference_logits)?, &labels, 1.0)?;
        // The log-probabilities in the file are what its loss works on.
        let per_token = case.params.loss_type.as_deref() == Some("ipo");
        let shown = |logps: &PairLogps| {
            let same = |t: &Tensor| t.shallow_clone();
            match per_token {
                true => means_of(logps),
                false => Ok(PairLogps::new(
                    same(&logps.chosen),
                    same(&logps.rejected),
                    same(&logps.chosen_len),
                    same(&logps.rejected_len),
                )?),
            }
        };
        let (shown_policy, shown_reference) = (shown(&policy)?, shown(&reference)?);
        for (name, got, want) in [
            ("policy_chosen_logps", &shown_policy.chosen, &case.policy_chosen_logps),
            ("policy_rejected_logps", &shown_policy.rejected, &case.policy_rejected_logps),
            ("reference_chosen_logps", &shown_reference.chosen, &case.reference_chosen_logps),
            ("reference_rejected_logps", &shown_reference.rejected, &case.reference_rejected_logps),
        ] {
            tolerance.close(name, &f64s(got)?, want)?;
        }
        let output = preference_loss(&policy, Some(&reference), &config, &mut DpoState::default())?;
        tolerance.close("losses_without_nll", &f64s(&output.losses)?, &case.losses_without_nll)?;
        let nll = token_nll(&policy)?;
        tolerance.close("nll_chosen_clean", &[nll.f_double_value(&[])?], &[case.nll_chosen_clean])?;
        let total = |nll: &Tensor| -> Check<Tensor> {
            Ok(output.losses.f_mean(None::<Kind>)?.f_add(&nll.f_mul_scalar(config.nll_weight())?)?)
        };
        // The defect: padding counts, as the token 0 that ought to be written there.
        let padded = halves(&labels.f_clamp_min(0)?)?;
        let padded_logps = token_logps(&halves(&policy_logits)?[0], &padded[0])?;
        let padded_nll = padded_logps.f_mean(None::<Kind>)?.f_neg()?;
        let with_padding = padded_nll.f_double_value(&[])?;
        let want = case.nll_chosen_with_padding_as_token_0;
        tolerance.close("nll_chosen_with_padding_as_token_0", &[with_padding], &[want])?;
        let reference_total = total(&padded_nll)?.f_double_value(&[])?;
        let want = case.loss_reference_with_padding;
        tolerance.close("loss_reference_with_padding", &[reference_total], &[want])?;
        let loss = total(&nll)?;
        tolerance.close("loss_clean", &[loss.f_double_value(&[])?], &[case.loss_clean])?;
        let shown_output =
            preference_loss(&shown_policy, Some(&shown_reference), &config, &mut DpoState::default())?;
        check_metrics(
            &tolerance,
            &shown_policy,
            Some(&shown_reference),
            &shown_output,
            &case.metrics,
            false,
        )?;
        loss.f_backward()?;
        let gradient = policy_logits.f_grad()?;
        let want = &case.grad_policy_logits_of_loss_clean;
        tolerance.close("gradient.l2_norm", &[gradient.f_norm()?.f_double_value(&[])?], &[want.l2_norm])?;
        let [chosen, rejected] = halves(&gradient)?;
        let first = |rows: &Tensor| -> Check<Vec<f64>> { Ok(f64s(&rows.f_get(0)?.f_get(0)?)?) };
        let want_chosen = &want.first_chosen_row_first_position;
        tolerance.close("gradient.first_chosen", &first(&chosen)?, want_chosen)?;
        tolerance.close(
            "gradient.first_rejected",
            &first(&rejected)?,
            &want.first_rejected_row_first_position,
        )
    })?;
    Ok(Outcome { cases, ..Outcome::default() })
}

/// A Llama whose output matrix is the identity, so that its states are logits.
fn reader(vocab: i64) -> Check<Llama> {
    let keys = serde_json::json!({
        "vocab_size": vocab, "hidden_size": vocab, "intermediate_size": 2, "num_hidden_layers": 1,
        "num_attention_heads": 1, "head_dim": 2, "eos_token_id": 1, "pad_token_id": 0,
    });
    let keys = keys.as_object().cloned().unwrap_or_default();
    let llama =
        Llama::new(LlamaConfig::from_json(keys, Path::new("config.json"))?, Kind::Float, Device::Cpu, 0)?;
    let (weight, _) = llama.output_projection().ok_or_else(|| Mismatch("no output matrix".to_owned()))?;
    tch::no_grad(|| weight.shallow_clone().f_copy_(&Tensor::f_eye(vocab, (Kind::Float, Device::Cpu))?))?;
    Ok(llama)
}

#[derive(Deserialize)]
struct PairIds {
    prompt_ids: Vec<i64>,
    chosen_ids: Vec<i64>,
    rejected_ids: Vec<i64>,
}

#[derive(Deserialize)]
struct JoinedRows {
    input_ids: Vec<Vec<i64>>,
    attention_mask: Vec<Vec<i64>>,
    completion_mask: Vec<Vec<i64>>,
}

/// How prompts and completions become rows, and what the logits at the completions are like.
fn check_rows(
    pairs: &[PairIds],
    collated: &JoinedRows,
    policy_logits: &Tensor,
    want: &BTreeMap<String, f64>,
) -> Check {
    let llama = reader(policy_logits.size()[2])?;
    let example =
        |prompt: &Vec<i64>, target: &Vec<i64>| Example { prompt: prompt.clone(), target: target.clone() };
    let chosen = pairs.iter().map(|pair| example(&pair.prompt_ids, &pair.chosen_ids));
    let rejected = pairs.iter().map(|pair| example(&pair.prompt_ids, &pair.rejected_ids));
    let examples: Vec<Example> = chosen.chain(rejected).collect();
    let joined: Vec<Vec<i64>> = examples.iter().map(|e| [&e.prompt[..], &e.target].concat()).collect();
    let batch = llama.batch(&joined, Side::Right)?;
    let rows = |tensor: &Tensor| -> Check<Vec<Vec<i64>>> { Ok(Vec::try_from(tensor)?) };
    equal("collated.input_ids", &rows(&batch.ids)?, &collated.input_ids)?;
    equal("collated.attention_mask", &rows(&batch.mask)?, &collated.attention_mask)?;
    let width = batch.ids.size()[1] as usize;
    let completion = examples.iter().map(|e| {
        let (before, length) = (e.prompt.len(), e.target.len());
        (0..width).map(|i| i64::from((before..before + length).contains(&i))).collect::<Vec<_>>()
    });
    equal("collated.completion_mask", &completion.collect::<Vec<_>>(), &collated.completion_mask)?;

    // The model reads the same rows, where position `prompt + t - 1` predicts target `t`.
    let scores = llama.score(&examples, ScoreOptions::default())?;
    let labels = &scores.labels;
    let time = labels.ids.size()[1];
    let places: Vec<i64> = examples
        .iter()
        .enumerate()
        .flat_map(|(i, e)| {
            let first = (i * width + e.prompt.len() - 1) as i64;
            (0..time).map(move |t| (first + t).min(((i + 1) * width - 1) as i64))
        })
        .collect();
    let states = policy_logits.f_to_kind(Kind::Float)?.f_flatten(0, 1)?;
    let states = states.f_index_select(0, &Tensor::f_from_slice(&places)?)?;
    let states = states.f_view_([examples.len() as i64, time, -1])?;
    let statistics = LogitStatistics::of(&llama, &states, labels)?;
    let mean = |values: &Tensor, mask: &Tensor| -> Check<f64> {
        Ok(values.f_sum(Kind::Double)?.f_double_value(&[])? / mask.f_sum(Kind::Double)?.f_double_value(&[])?)
    };
    let [chosen_mask, rejected_mask] = halves(&labels.mask)?;
    let [chosen, rejected] = halves(&statistics.mean_logit)?;
    let [correct, _] = halves(&statistics.correct)?;
    for (name, got) in [
        ("num_tokens", scores.tokens as f64),
        ("logits/chosen", mean(&chosen, &chosen_mask)?),
        ("logits/rejected", mean(&rejected, &rejected_mask)?),
        ("entropy", mean(&statistics.entropy, &labels.mask)?),
        ("mean_token_accuracy", mean(&correct, &chosen_mask)?),
    ] {
        let want = want.get(name).ok_or_else(|| Mismatch(format!("metrics.{name}: missing")))?;
        SINGLE.close(&format!("metrics.{name}"), &[got], &[*want])?;
    }
    Ok(())
}

/// Rows, metrics and losses on logits of a decoder-only model.
pub(super) fn decoder_only_step(path: &Path) -> Result<Outcome, GoldenError> {
    #[derive(Deserialize)]
    struct Group {
        examples: Vec<PairIds>,
        collated: JoinedRows,
        metrics_for_sigmoid: BTreeMap<String, f64>,
        policy_logits: Vec<Vec<Vec<f64>>>,
        reference_logits: Vec<Vec<Vec<f64>>>,
        policy_logps: Sums,
        reference_logps: Sums,
        variants: Vec<Value>,
    }
    #[derive(Deserialize)]
    struct Sums {
        chosen: Vec<f64>,
        rejected: Vec<f64>,
    }
    #[derive(Deserialize)]
    struct Variant {
        loss_types: Vec<String>,
        loss_weights: Option<Vec<f64>>,
        params: Params,
        dtype: String,
        loss: f64,
        grad_logits_l2: f64,
        grad_logits_sum_abs: f64,
        rewards: BTreeMap<String, f64>,
    }
    let file = GoldenFile::read(path)?;
    let double = file.tolerance_or(DOUBLE)?;
    let mut outcome = Outcome::default();
    for (g, group) in file.field::<Vec<Group>>("groups")?.into_iter().enumerate() {
        let labels = || -> Check<Tensor> {
            let completion = ids(&group.collated.completion_mask)?;
            Ok(ids(&group.collated.input_ids)?.f_masked_fill(&completion.f_eq(0)?, IGNORED)?)
        };
        let rows = |given: &[Vec<Vec<f64>>]| -> Check<(Tensor, Tensor, Tensor)> {
            let given = logits(given)?.set_requires_grad(true);
            let (shifted, labels) = shift_for_decoder(&given, &labels()?)?;
            Ok((given, shifted, labels))
        };
        let sums = || -> Check {
            for (name, given, want) in [
                ("policy_logps", &group.policy_logits, &group.policy_logps),
                ("reference_logps", &group.reference_logits, &group.reference_logps),
            ] {
                let (_, logits, labels) = rows(given)?;
                let logps = pair_logps(&logits, &labels, 1.0)?;
                double.close(&format!("{name}.chosen"), &f64s(&logps.chosen)?, &want.chosen)?;
                double.close(&format!("{name}.rejected"), &f64s(&logps.rejected)?, &want.rejected)?;
            }
            Ok(())
        };
        outcome.case(format!("groups[{g}] log-probabilities"), sums());
        let joined = || {
            let policy = logits(&group.policy_logits)?;
            check_rows(&group.examples, &group.collated, &policy, &group.metrics_for_sigmoid)
        };
        outcome.case(format!("groups[{g}] collation and metrics of logits"), joined());
        for (v, variant) in group.variants.iter().enumerate() {
            let name = variant.get("name").and_then(Value::as_str).unwrap_or_default();
            let check = || -> Check {
                let case = Variant::deserialize(variant)?;
                let weights = case.loss_weights.unwrap_or_else(|| vec![1.0; case.loss_types.len()]);
                equal("number of loss_weights", weights.len(), case.loss_types.len())?;
                let losses = case.loss_types.iter().zip(weights).map(|(name, weight)| {
                    Ok(WeightedLoss { loss: case.params.loss(name, LengthNorm::Token, false)?, weight })
                });
                let config = case.params.config(losses.collect::<Check<_>>()?)?;
                let single = case.dtype == "float32" || case.loss_types.iter().any(|name| name == "exo_pair");
                let tolerance = if single { SINGLE } else { double };
                let (leaf, logits, labels) = rows(&group.policy_logits)?;
                let (_, reference_logits, _) = rows(&group.reference_logits)?;
                let policy = pair_logps(&logits, &labels, config.ld_alpha)?;
                let reference = pair_logps(&reference_logits.f_detach()?, &labels, config.ld_alpha)?;
                let output = preference_loss(&policy, Some(&reference), &config, &mut DpoState::default())?;
                let mut losses = output.losses.shallow_clone();
                if config.wpo {
                    let log_p = logits.f_detach()?.f_log_softmax(-1, None)?;
                    let collision = log_p.f_mul_scalar(2.0)?.f_logsumexp(-1i64, false)?;
                    let mask = labels.f_ne(IGNORED)?.f_to_kind(Kind::Double)?;
                    let [chosen, rejected] =
                        halves(&confidence(&token_logps(&logits, &labels)?, &collision, &mask)?)?;
                    losses = losses.f_mul(&chosen.f_mul(&rejected)?)?;
                }
                let plain = pair_logps(&logits, &labels, 1.0)?;
                let nll = token_nll(&plain)?.f_mul_scalar(config.nll_weight())?;
                let loss = losses.f_mean(None::<Kind>)?.f_add(&nll)?;
                tolerance.close("loss", &[loss.f_double_value(&[])?], &[case.loss])?;
                check_metrics(&SINGLE, &policy, Some(&reference), &output, &case.rewards, false)?;
                loss.f_backward()?;
                let gradient = leaf.f_grad()?;
                let l2 = gradient.f_norm()?.f_double_value(&[])?;
                tolerance.close("grad_logits_l2", &[l2], &[case.grad_logits_l2])?;
                let sum = gradient.f_abs()?.f_sum(None::<Kind>)?.f_double_value(&[])?;
                tolerance.close("grad_logits_sum_abs", &[sum], &[case.grad_logits_sum_abs])
            };
            outcome.case(format!("groups[{g}].variants[{v}] {name}"), check());
        }
    }
    Ok(outcome)
}
