//! The arithmetic of reinforcement: rewards, statistics, advantages and losses.

use super::Rows;
use crate::compare::{Check, Mismatch, Tolerance, equal};
use crate::file::{GoldenError, GoldenFile};
use crate::references::f64s;
use crate::{CaseResult, Outcome};
use ruminate_algorithms::ppo::{
    Estimates, Estimation, Grid, Mask, Moments, PpoConfig, clamp, fill_padding, policy_loss, token_rewards,
    value_loss, whiten,
};
use ruminate_datasets::Compat;
use ruminate_rewards::choices::{UNUSED_SLOT_SCORE, argmax, choice_probs};
use ruminate_rewards::{Normalization, Shape};
use serde::Deserialize;
use std::collections::BTreeMap;
use std::path::Path;
use tch::{Kind, Tensor};

fn grid(rows: &Rows<f64>) -> Check<Grid> {
    let shape = (rows.len(), rows.first().map_or(0, Vec::len));
    Ok(Grid::from_shape_vec(shape, rows.concat())?)
}

fn rows(grid: &Grid) -> Rows<f64> {
    grid.rows().into_iter().map(|row| row.to_vec()).collect()
}

fn mask_of(rows: &Rows<u8>) -> Check<Mask> {
    let rows: Rows<f64> = rows.iter().map(|row| row.iter().map(|&real| f64::from(real)).collect()).collect();
    Ok(grid(&rows)?.mapv(|real| real != 0.0))
}

fn tensor(rows: &Rows<f64>) -> Check<Tensor> {
    Ok(Tensor::f_from_slice(&rows.concat())?.f_view_([rows.len() as i64, -1])?)
}

pub(super) fn masked_stats(path: &Path) -> Result<Outcome, GoldenError> {
    #[derive(Deserialize)]
    struct Case {
        values: Rows<f64>,
        mask: Rows<u8>,
        expected: Expected,
    }
    #[derive(Deserialize)]
    struct Expected {
        reduce_sum: f64,
        reduce_mean: f64,
        reduce_var: f64,
        reduce_std: f64,
        reduce_sum_axis1: Vec<f64>,
        reduce_mean_axis1: Vec<Option<f64>>,
        whiten_shift: Rows<f64>,
        whiten_keep_mean: Rows<f64>,
        standard_whiten_shift: Rows<f64>,
        standard_whiten_keep_mean: Rows<f64>,
        mask_pad_default: Rows<f64>,
        mask_pad_zero: Rows<f64>,
    }
    #[derive(Deserialize)]
    struct CeilDiv {
        a: u64,
        b: usize,
        expected: u64,
    }
    let file = GoldenFile::read(path)?;
    let tolerance = file.tolerance()?;
    // A spread of zero leaves nothing but rounding, which has no relative size.
    let loose = Tolerance { absolute: tolerance.absolute.max(1e-9), ..tolerance };
    let mut cases = file.cases("cases", |case: Case| {
        let (values, mask, want) = (grid(&case.values)?, mask_of(&case.mask)?, case.expected);
        let moments = Moments::of(&values, &mask);
        let got = [moments.sum, moments.mean(), moments.variance(), moments.variance().sqrt()];
        let wanted = [want.reduce_sum, want.reduce_mean, want.reduce_var, want.reduce_std];
        loose.close("sum, mean, var, std", &got, &wanted)?;
        let row = |(values, mask): (&Vec<f64>, &Vec<u8>)| -> Check<Moments> {
            Ok(Moments::of(&grid(&vec![values.clone()])?, &mask_of(&vec![mask.clone()])?))
        };
        let by_row: Vec<Moments> = case.values.iter().zip(&case.mask).map(row).collect::<Check<_>>()?;
        let sums: Vec<f64> = by_row.iter().map(|row| row.sum).collect();
        tolerance.close("reduce_sum_axis1", &sums, &want.reduce_sum_axis1)?;
        let means: Vec<f64> = by_row.iter().map(|row| row.mean()).collect();
        let wanted: Vec<f64> = want.reduce_mean_axis1.iter().map(|mean| mean.unwrap_or(f64::NAN)).collect();
        tolerance.close("reduce_mean_axis1", &means, &wanted)?;
        let whitened = |compat, keep_mean| rows(&whiten(compat, &values, &mask, moments, keep_mean));
        loose.close_rows("whiten_shift", &whitened(Compat::Reference, false), &want.whiten_shift)?;
        loose.close_rows("whiten_keep_mean", &whitened(Compat::Reference, true), &want.whiten_keep_mean)?;
        // The textbook's padding is hidden in our results, and not in these numbers.
        let hidden = |want| Ok::<_, Mismatch>(rows(&fill_padding(grid(want)?, &mask, 0.0)));
        let (shift, keep) = (whitened(Compat::Corrected, false), whitened(Compat::Corrected, true));
        loose.close_rows("standard_whiten_shift", &shift, &hidden(&want.standard_whiten_shift)?)?;
        loose.close_rows("standard_whiten_keep_mean", &keep, &hidden(&want.standard_whiten_keep_mean)?)?;
        for (fill, want) in [(-100_000.0, &want.mask_pad_default), (0.0, &want.mask_pad_zero)] {
            tolerance.close_rows("mask_pad", &rows(&fill_padding(values.clone(), &mask, fill)), want)?;
        }
        Ok(())
    })?;
    cases.extend(file.cases("ceil_div", |case: CeilDiv| {
        let config = PpoConfig { batch_size: case.b, ..PpoConfig::default() };
        equal("expected", config.steps_for(case.a), case.expected)
    })?);
    cases.push(section("clamp", clamped(file.field("clamp")?, tolerance)));
    cases.push(section("entropy", entropies(file.field("entropy")?, tolerance)));
    Ok(Outcome { cases, ..Outcome::default() })
}

fn section(name: &str, check: Check) -> CaseResult {
    CaseResult { name: name.to_owned(), failure: check.err().map(|Mismatch(text)| text) }
}

#[derive(Deserialize)]
struct Clamp {
    x: Vec<f64>,
    min: Vec<f64>,
    max: Vec<f64>,
    expected: Vec<f64>,
}

fn clamped(case: Clamp, tolerance: Tolerance) -> Check {
    let [x, min, max] = [&case.x, &case.min, &case.max].map(|values| Tensor::from_slice(values));
    tolerance.close("clamp", &f64s(&clamp(&x, &min, &max)?)?, &case.expected)
}

#[derive(Deserialize)]
struct Entropy {
    logits: Vec<Rows<f64>>,
    expected: Rows<f64>,
}

/// Entropies of logits: of hidden states whose output matrix is the identity.
fn entropies(case: Entropy, tolerance: Tolerance) -> Check {
    let logits = tensor(&case.logits.concat())?;
    let (rows, vocab) = logits.size2()?;
    let identity = Tensor::f_eye(vocab, (Kind::Double, logits.device()))?;
    let targets = Tensor::f_zeros([rows], (Kind::Int64, logits.device()))?;
    let scores = ruminate_torch::log_probs(&logits, &identity, &targets, 1.0, true)?;
    let entropy = scores.entropy.ok_or_else(|| Mismatch("no entropy came back".into()))?;
    // Ours are float32.
    let tolerance = Tolerance { relative: tolerance.relative.max(1e-6), ..tolerance };
    tolerance.close("entropy", &f64s(&entropy)?, &case.expected.concat())
}

#[derive(Deserialize, Clone, Copy)]
struct LossConfig {
    kl_coef: f64,
    gamma: f64,
    lambda: f64,
    cliprange: f64,
    cliprange_value: f64,
    pg_coef: f64,
    vf_coef: f64,
}

#[derive(Deserialize)]
struct LossCase {
    config: LossConfig,
    mask: Rows<u8>,
    old_logprobs: Rows<f64>,
    ref_logprobs: Rows<f64>,
    reward_normalized: Vec<f64>,
    old_values: Rows<f64>,
    new_logprobs: Rows<f64>,
    new_values: Rows<f64>,
    expected: LossExpected,
    expected_corrected: Option<LossExpected>,
}

#[derive(Deserialize, Default)]
struct LossExpected {
    whitened_rewards: Rows<f64>,
    gae_length: Option<usize>,
    advantages: Rows<f64>,
    returns: Rows<f64>,
    whitened_advantages: Rows<f64>,
    ratio: Option<Rows<f64>>,
    loss_policy: f64,
    loss_value: f64,
    loss_total: f64,
    grad_new_logprobs: Option<Rows<f64>>,
    grad_new_values: Option<Rows<f64>>,
    kl: Option<Rows<f64>>,
    penalized: Option<Rows<f64>>,
    log_reward_penalized: Option<f64>,
    log_reward_kl: Option<f64>,
}

pub(super) fn ppo_loss(path: &Path) -> Result<Outcome, GoldenError> {
    let file = GoldenFile::read(path)?;
    let tolerance = file.tolerance()?;
    let cases = file.cases("cases", |case: LossCase| {
        loss_case(&case, Compat::Reference, &case.expected, tolerance)?;
        let corrected = case.expected_corrected.as_ref();
        corrected.map_or(Ok(()), |want| loss_case(&case, Compat::Corrected, want, tolerance))
    })?;
    Ok(Outcome { cases, ..Outcome::default() })
}

fn loss_case(case: &LossCase, compat: Compat, want: &LossExpected, tolerance: Tolerance) -> Check {
    let (config, mask) = (&case.config, mask_of(&case.mask)?);
    let kl = grid(&case.old_logprobs)? - grid(&case.ref_logprobs)?;
    let penalized = token_rewards(compat, &kl, &case.reward_normalized, &mask, config.kl_coef)?;
    let mean_of_sums = |grid: &Grid| grid.iter().sum::<f64>() / mask.nrows() as f64;
    for (name, grid, want) in [("kl", &kl, &want.kl), ("penalized", &penalized, &want.penalized)] {
        want.as_ref().map_or(Ok(()), |want| tolerance.close_rows(name, &rows(grid), want))?;
    }
    for (name, grid, want) in [
        ("log_reward_kl", &kl, want.log_reward_kl),
        ("log_reward_penalized", &penalized, want.log_reward_penalized),
    ] {
        want.map_or(Ok(()), |want| tolerance.close(name, &[mean_of_sums(grid)], &[want]))?;
    }
    let how = Estimation { compat, whiten_rewards: true, gamma: config.gamma, lambda: config.lambda };
    let got = Estimates::new(how, &penalized, &grid(&case.old_values)?, &mask, Ok)?;
    if let Some(length) = want.gae_length {
        let used = rows(&got.advantages).iter().filter_map(|row| row.iter().rposition(|&a| a != 0.0)).max();
        equal("gae_length", used.map_or(0, |last| last + 1), length)?;
    }
    estimates(&got, want, tolerance)?;
    let [values, log_probs] = [&case.new_values, &case.new_logprobs]
        .map(|grid| tensor(grid).map(|tensor| tensor.set_requires_grad(true)));
    let losses = Losses::of(&got, case, values?, log_probs?, &mask, config)?;
    let count = losses.mask.f_sum(None::<Kind>)?.f_double_value(&[])?;
    if let Some(ratio) = &want.ratio {
        let got = losses.log_probs.f_sub(&tensor(&case.old_logprobs)?)?.f_exp()?;
        tolerance.close("ratio", &f64s(&got)?, &ratio.concat())?;
    }
    losses.check(1.0 / count, config, want, tolerance)
}

fn estimates(got: &Estimates, want: &LossExpected, tolerance: Tolerance) -> Check {
    tolerance.close_rows("whitened_rewards", &rows(&got.rewards), &want.whitened_rewards)?;
    tolerance.close_rows("advantages", &rows(&got.advantages), &want.advantages)?;
    tolerance.close_rows("returns", &rows(&got.returns), &want.returns)?;
    tolerance.close_rows("whitened_advantages", &rows(&got.whitened_advantages), &want.whitened_advantages)
}

/// Sums of both losses, and what they were made of.
struct Losses {
    log_probs: Tensor,
    values: Tensor,
    mask: Tensor,
    policy: Tensor,
    value: Tensor,
}

impl Losses {
    fn of(
        got: &Estimates,
        case: &LossCase,
        values: Tensor,
        log_probs: Tensor,
        mask: &Mask,
        config: &LossConfig,
    ) -> Check<Self> {
        let mask = tensor(&rows(&mask.mapv(|real| f64::from(u8::from(real)))))?;
        let (old, old_values) = (tensor(&case.old_logprobs)?, tensor(&case.old_values)?);
        let advantages = tensor(&rows(&got.whitened_advantages))?;
        let policy = policy_loss(&log_probs, &old, &advantages, &mask, config.cliprange)?;
        let value =
            value_loss(&values, &old_values, &tensor(&rows(&got.returns))?, &mask, config.cliprange_value)?;
        Ok(Self { log_probs, values, mask, policy, value })
    }

    /// Compares the sums times `factor`, and their gradients.
    fn check(&self, factor: f64, config: &LossConfig, want: &LossExpected, tolerance: Tolerance) -> Check {
        let [policy, value] = [&self.policy, &self.value].map(|sum| sum.f_mul_scalar(factor));
        let (policy, value) = (policy?, value?);
        let total = policy.f_mul_scalar(config.pg_coef)?.f_add(&value.f_mul_scalar(config.vf_coef)?)?;
        total.f_backward()?;
        let got = [policy.f_double_value(&[])?, value.f_double_value(&[])?, total.f_double_value(&[])?];
        let wanted = [want.loss_policy, want.loss_value, want.loss_total];
        tolerance.close("loss_policy, loss_value, loss_total", &got, &wanted)?;
        for (name, of, want) in [
            ("grad_new_logprobs", &self.log_probs, &want.grad_new_logprobs),
            ("grad_new_values", &self.values, &want.grad_new_values),
        ] {
            let check = |want: &Rows<f64>| tolerance.close(name, &f64s(&of.f_grad()?)?, &want.concat());
            want.as_ref().map_or(Ok(()), check)?;
        }
        Ok(())
    }
}

/// Several processes share their moments and divide by all tokens; gradients are averaged over them.
pub(super) fn ppo_distributed(path: &Path) -> Result<Outcome, GoldenError> {
    #[derive(Deserialize)]
    struct Case {
        world_size: usize,
        ranks: Vec<Rank>,
        expected_mean_over_ranks: BTreeMap<String, f64>,
    }
    #[derive(Deserialize)]
    struct Rank {
        mask: Rows<u8>,
        penalized_rewards: Rows<f64>,
        old_values: Rows<f64>,
        old_logprobs: Rows<f64>,
        new_logprobs: Rows<f64>,
        new_values: Rows<f64>,
        expected: Expected,
    }
    #[derive(Deserialize)]
    struct Expected {
        length_weight: f64,
        #[serde(flatten)]
        losses: LossExpected,
    }
    let file = GoldenFile::read(path)?;
    let tolerance = file.tolerance()?;
    let cases = file.cases("cases", |case: Case| {
        equal("ranks", case.ranks.len(), case.world_size)?;
        let how = Estimation { compat: Compat::Reference, whiten_rewards: true, gamma: 1.0, lambda: 0.95 };
        let config = LossConfig {
            kl_coef: 0.0,
            gamma: 1.0,
            lambda: 0.95,
            cliprange: 0.2,
            cliprange_value: 0.2,
            pg_coef: 1.0,
            vf_coef: 1.0,
        };
        let masks: Vec<Mask> = case.ranks.iter().map(|rank| mask_of(&rank.mask)).collect::<Check<_>>()?;
        let sum = |moments: &[Moments]| moments.iter().copied().fold(Moments::default(), |a, b| a + b);
        let run = |rank: &Rank, mask: &Mask, shared: &[Moments], own: &mut Vec<Moments>| {
            let (rewards, values) = (grid(&rank.penalized_rewards)?, grid(&rank.old_values)?);
            let reduce = |moments| {
                own.push(moments);
                Ok(shared.get(own.len() - 1).copied().unwrap_or(moments))
            };
            Check::Ok(Estimates::new(how, &rewards, &values, mask, reduce)?)
        };
        // What an all-reduce does, one reduction after the other: run until all moments are known.
        let mut shared: Vec<Moments> = vec![];
        for reduction in 0..2 {
            let mut of_ranks = vec![];
            for (rank, mask) in case.ranks.iter().zip(&masks) {
                let mut own = vec![];
                run(rank, mask, &shared, &mut own)?;
                of_ranks.push(own[reduction]);
            }
            shared.push(sum(&of_ranks));
        }
        let tokens = shared[0].count;
        let mut means: BTreeMap<&str, f64> = BTreeMap::new();
        for (rank, mask) in case.ranks.iter().zip(&masks) {
            let got = run(rank, mask, &shared, &mut vec![])?;
            let want = &rank.expected.losses;
            estimates(&got, want, tolerance)?;
            let rows = mask.nrows() as f64;
            let own = Moments::of(&grid(&rank.old_values)?, mask).count;
            let all_rows = rows * case.world_size as f64;
            tolerance.close(
                "length_weight",
                &[(own / rows) / (tokens / all_rows)],
                &[rank.expected.length_weight],
            )?;
            let [values, log_probs] = [&rank.new_values, &rank.new_logprobs]
                .map(|grid| tensor(grid).map(|tensor| tensor.set_requires_grad(true)));
            let as_case = LossCase {
                config,
                mask: rank.mask.clone(),
                old_logprobs: rank.old_logprobs.clone(),
                ref_logprobs: vec![],
                reward_normalized: vec![],
                old_values: rank.old_values.clone(),
                new_logprobs: vec![],
                new_values: vec![],
                expected: LossExpected::default(),
                expected_corrected: None,
            };
            let losses = Losses::of(&got, &as_case, values?, log_probs?, mask, &config)?;
            // A sum over the tokens of all processes, times their number, because gradients are averaged.
            let factor = case.world_size as f64 / tokens;
            losses.check(factor, &config, want, tolerance)?;
            for (name, sum) in [("loss_policy", &losses.policy), ("loss_value", &losses.value)] {
                let mean = sum.f_double_value(&[])? / tokens;
                *means.entry(name).or_default() += mean;
                *means.entry("loss_total").or_default() += mean;
            }
        }
        for (name, want) in &case.expected_mean_over_ranks {
            tolerance.close(name, &[means.get(name.as_str()).copied().unwrap_or(f64::NAN)], &[*want])?;
        }
        Ok(())
    })?;
    Ok(Outcome { cases, ..Outcome::default() })
}

pub(super) fn self_feedback_reward(path: &Path) -> Result<Outcome, GoldenError> {
    #[derive(Deserialize)]
    struct Case {
        gain: f64,
        bias: f64,
        choice_first_ids: Rows<usize>,
        answer_index: Vec<usize>,
        labels: Rows<i64>,
        logits_with_knowledge: Vec<Rows<f64>>,
        logits_without_knowledge: Vec<Rows<f64>>,
        expected: Expected,
    }
    #[derive(Deserialize)]
    struct Expected {
        scores_with: Rows<f64>,
        probs_with: Rows<f64>,
        preds_with: Vec<usize>,
        preds_without: Vec<usize>,
        correct_with: Vec<u8>,
        correct_without: Vec<u8>,
        rectified: Vec<i8>,
        loss_qka: f64,
        loss_qa: f64,
        rewards_by_shape: BTreeMap<u8, Rewards>,
    }
    #[derive(Deserialize)]
    struct Rewards {
        raw: Vec<f64>,
        normalized: Vec<f64>,
        raw_without_knowledge: Vec<f64>,
    }
    let file = GoldenFile::read(path)?;
    let tolerance = file.tolerance()?;
    let cases = file.cases("cases", |case: Case| {
        let want = case.expected;
        // Scores of the real choices: unused slots begin with the end token.
        let scores = |logits: &[Rows<f64>]| -> Rows<f64> {
            let row = |(logits, ids): (&Rows<f64>, &Vec<usize>)| {
                ids.iter().filter(|&&id| id as i64 != super::EOS).map(|&id| logits[0][id]).collect()
            };
            logits.iter().zip(&case.choice_first_ids).map(row).collect()
        };
        let (with, without) = (scores(&case.logits_with_knowledge), scores(&case.logits_without_knowledge));
        let capacity = case.choice_first_ids.first().map_or(0, Vec::len);
        let filled = |grid: &Rows<f64>, fill: f64| -> Rows<f64> {
            let wide =
                |row: &Vec<f64>| row.iter().copied().chain(std::iter::repeat(fill)).take(capacity).collect();
            grid.iter().map(wide).collect()
        };
        tolerance.close_rows("scores_with", &filled(&with, UNUSED_SLOT_SCORE), &want.scores_with)?;
        let probs: Rows<f64> = with.iter().map(|row| choice_probs(row)).collect::<Result<_, _>>()?;
        tolerance.close_rows("probs_with", &filled(&probs, 0.0), &want.probs_with)?;
        let preds = |grid: &Rows<f64>| -> Vec<usize> { grid.iter().map(|row| argmax(row)).collect() };
        let right = |preds: &[usize]| -> Vec<u8> {
            preds.iter().zip(&case.answer_index).map(|(p, a)| u8::from(p == a)).collect()
        };
        let (preds_with, preds_without) = (preds(&with), preds(&without));
        equal("preds_with", &preds_with, &want.preds_with)?;
        equal("preds_without", &preds_without, &want.preds_without)?;
        let (ok, ok_without) = (right(&preds_with), right(&preds_without));
        let rectified: Vec<i8> = ok.iter().zip(&ok_without).map(|(&a, &b)| a as i8 - b as i8).collect();
        equal("correct_with", ok, want.correct_with)?;
        equal("correct_without", ok_without, want.correct_without)?;
        equal("rectified", rectified, want.rectified)?;
        for (name, logits, want) in [
            ("loss_qka", &case.logits_with_knowledge, want.loss_qka),
            ("loss_qa", &case.logits_without_knowledge, want.loss_qa),
        ] {
            let targets = Tensor::f_from_slice(&case.labels.concat())?;
            let loss = tensor(&logits.concat())?.f_cross_entropy_loss(
                &targets,
                None::<&Tensor>,
                tch::Reduction::Mean,
                -100,
                0.0,
            )?;
            tolerance.close(name, &[loss.f_double_value(&[])?], &[want])?;
        }
        let normalization = Normalization { gain: case.gain, bias: case.bias };
        equal("number of shapes", want.rewards_by_shape.len(), Shape::ALL.len())?;
        for (number, want) in &want.rewards_by_shape {
            let shape = Shape::try_from(*number).map_err(Mismatch)?;
            let each = |f: &dyn Fn(usize) -> Result<f64, ruminate_rewards::ChoiceError>| -> Check<Vec<f64>> {
                Ok((0..with.len()).map(f).collect::<Result<_, _>>()?)
            };
            let gold = &case.answer_index;
            let raw = each(&|i| shape.reward(&with[i], &without[i], gold[i]))?;
            let normalized: Vec<f64> = raw.iter().map(|&reward| normalization.apply(reward)).collect();
            tolerance.close(&format!("shape {number}: raw"), &raw, &want.raw)?;
            tolerance.close(&format!("shape {number}: normalized"), &normalized, &want.normalized)?;
            let bare = each(&|i| shape.worth(&without[i], gold[i]))?;
            tolerance.close(&format!("shape {number}: without"), &bare, &want.raw_without_knowledge)?;
        }
        Ok(())
    })?;
    Ok(Outcome { cases, ..Outcome::default() })
}
