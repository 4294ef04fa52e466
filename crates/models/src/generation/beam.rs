//! Beam search, by the rules of transformers 5.

use tch::{Kind, Tensor};

use super::rules::{processors, stop_ids, token_table};
use super::{
    Beam, Decoder, EarlyStopping, Finish, Generated, GenerationConfig, History, Interrupt, Prefill, Started,
    Steps,
};
use crate::{Result, TokenId};

/// A sequence with its sum of log-probabilities after the processors.
#[derive(Clone)]
struct Candidate {
    ids: Vec<TokenId>,
    /// Under the raw model.
    log_probs: Vec<f32>,
    total: f64,
}

/// The beams of one prompt.
struct Search {
    running: Vec<Candidate>,
    /// At most `num_beams`, best first, with their scores.
    finished: Vec<(f64, Candidate, Finish)>,
    done: bool,
}

pub(super) fn search<D: Decoder>(
    model: &D,
    prompts: &[Vec<TokenId>],
    config: &GenerationConfig,
    settings: &Beam,
) -> Result<Vec<Vec<Generated>>> {
    let device = model.device();
    let (beams, new) = (settings.num_beams, config.max_new_tokens);
    let rows = (prompts.len() * beams) as i64;
    let stop_ids = stop_ids(model, config);
    let vocab = model.vocab_size();
    // Enough continuations that `num_beams` are left when every end token of every beam is among the best.
    let width = (beams * (1 + stop_ids.len()).max(2)).min(beams * vocab as usize) as i64;

    let Started { mut steps, mut logits, prompt, padding } = model.prefill(Prefill {
        prompts,
        prefix: &config.prefix,
        samples_per_prompt: beams,
        max_new: new,
    })?;
    let prefix = prompt.size()[1];
    let processors = processors(config, &stop_ids, prefix);
    let mut tokens = token_table(&prompt, new as i64)?;
    // All beams of a prompt begin alike; only the first one counts in the first step.
    let start =
        |beam| Candidate { ids: vec![], log_probs: vec![], total: if beam == 0 { 0.0 } else { -1e9 } };
    let mut searches: Vec<Search> = prompts
        .iter()
        .map(|_| Search { running: (0..beams).map(start).collect(), finished: vec![], done: false })
        .collect();

    for step in 0..new {
        Interrupt::check()?;
        let written = prefix + step as i64;
        let raw = logits.f_log_softmax(-1, Kind::Float)?;
        let history = tokens.f_narrow(1, 0, written)?;
        let history = History { tokens: &history, padding: padding.as_ref() };
        let processed = processors.iter().try_fold(raw.shallow_clone(), |l, p| p.run(&l, history))?;
        let totals: Vec<f32> =
            searches.iter().flat_map(|s| s.running.iter().map(|c| c.total as f32)).collect();
        let totals = Tensor::f_from_slice(&totals)?.f_to_device(device)?.f_unsqueeze(1)?;
        let all = processed.f_add(&totals)?.f_view_([prompts.len() as i64, -1])?;
        let (best, at) = all.f_topk(width, -1, true, true)?;
        let chosen = raw.f_view_([prompts.len() as i64, -1])?.f_gather(1, &at, false)?;
        let (best, chosen): (Vec<Vec<f32>>, Vec<Vec<f32>>) = (Vec::try_from(best)?, Vec::try_from(chosen)?);
        let at: Vec<Vec<i64>> = Vec::try_from(at)?;

        let mut order = Vec::with_capacity(rows as usize);
        let mut next = Vec::with_capacity(rows as usize);
        for (prompt, search) in searches.iter_mut().enumerate() {
            let continuations = (0..width as usize).map(|rank| {
                let (beam, id) = (at[prompt][rank] / vocab, at[prompt][rank] % vocab);
                (beam as usize, id, f64::from(best[prompt][rank]), chosen[prompt][rank])
            });
            let parents = search.advance(continuations, step, new, &stop_ids, settings);
            order.extend(parents.iter().map(|&beam| (prompt * beams + beam) as i64));
            next.extend(search.running.iter().map(|c| c.ids.last().copied().unwrap_or(model.pad_token_id())));
        }
        if searches.iter().all(|search| search.done) {
            break;
        }
        let order = Tensor::f_from_slice(&order)?.f_to_device(device)?;
        steps.reorder(&order)?;
        tokens = tokens.f_index_select(0, &order)?;
        let next = Tensor::f_from_slice(&next)?.f_to_device(device)?.f_unsqueeze(1)?;
        tokens.f_narrow(1, written, 1)?.f_copy_(&next)?;
        logits = steps.next_logits(&next)?;
    }
    Ok(searches.into_iter().map(|search| search.results(config.samples_per_prompt)).collect())
}

impl Search {
    /// Takes one step: sorts the best continuations (best first) into finished and running ones, and returns the
    /// parent of each running beam.
    fn advance(
        &mut self,
        continuations: impl Iterator<Item = (usize, TokenId, f64, f32)>,
        step: usize,
        max_new: usize,
        stop_ids: &[TokenId],
        settings: &Beam,
    ) -> Vec<usize> {
        let beams = settings.num_beams;
        let length = (step + 1) as f64;
        let (mut parents, mut running) = (vec![], vec![]);
        for (rank, (beam, id, total, log_prob)) in continuations.enumerate() {
            let stopped = stop_ids.contains(&id);
            let ended = stopped || step + 1 == max_new;
            if ended && (rank >= beams || self.done) {
                continue;
            }
            if !ended && running.len() == beams {
                continue;
            }
            let parent = &self.running[beam];
            let mut candidate = Candidate { total, ..parent.clone() };
            candidate.ids.push(id);
            candidate.log_probs.push(log_prob);
            if ended {
                let finish = if stopped { Finish::Stop } else { Finish::Length };
                let score = total / length.powf(settings.length_penalty);
                let place = self.finished.iter().position(|(other, ..)| score > *other);
                self.finished.insert(place.unwrap_or(self.finished.len()), (score, candidate, finish));
                self.finished.truncate(beams);
            } else {
                parents.push(beam);
                running.push(candidate);
            }
        }
        if running.len() < beams {
            // Only at the last step, or with a vocabulary of little more than end tokens: nothing is left to run.
            self.done = true;
            return (0..beams).collect();
        }
        self.running = running;
        self.done |= self.cannot_improve(length, max_new as f64, settings);
        parents
    }

    /// Whether the best running beam can no longer beat the worst of `num_beams` finished ones.
    fn cannot_improve(&self, length: f64, max_length: f64, settings: &Beam) -> bool {
        let (Some((worst, ..)), true) = (self.finished.last(), self.finished.len() == settings.num_beams)
        else {
            return false;
        };
        let length = match settings.early_stopping {
            EarlyStopping::Yes => return true,
            EarlyStopping::Never if settings.length_penalty > 0.0 => max_length,
            _ => length,
        };
        let best = self
            .running
            .first()
            .map_or(f64::NEG_INFINITY, |c| c.total / length.powf(settings.length_penalty));
        best <= *worst
    }

    fn results(self, count: usize) -> Vec<Generated> {
        let generated = |(score, candidate, finish): (f64, Candidate, Finish)| Generated {
            ids: candidate.ids,
            sampling_log_probs: candidate.log_probs.clone(),
            log_probs: candidate.log_probs,
            finish,
            score: Some(score),
        };
        self.finished.into_iter().take(count).map(generated).collect()
    }
}
