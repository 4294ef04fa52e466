//! How rewards are distributed, and what they cost in divergence from the reference.

use std::borrow::Cow;
use std::collections::BTreeMap;

use super::chart::{Chart, Line, Shape};
use super::records::{Records, Series};
use crate::distribution::Distribution;

/// Bins of a drawn histogram.
const BINS: usize = 20;
/// The beginning and the end of a run are a fifth of its records each.
const PART: usize = 5;
/// Names of the divergence from the reference among the metrics.
const DIVERGENCES: [&str; 2] = ["train/reward/KL", "train/objective/kl"];

/// Histograms of each reward in training: of one run its beginning and its end, of several the end of each.
pub(super) fn histograms(runs: &[(String, &Records)]) -> Vec<Chart<'static>> {
    let chart = |name: &str| {
        let mut parts: Vec<(String, usize, Vec<&Distribution>)> = vec![];
        for (colour, (run, records)) in runs.iter().enumerate() {
            let Some(all) = records.distributions.get(name) else { continue };
            let part = all.len().div_ceil(PART);
            let label = |(first, last): (u64, u64)| match first == last {
                true => format!("step {first}"),
                false => format!("steps {first} to {last}"),
            };
            let ends = |steps: &[u64]| steps.first().copied().zip(steps.last().copied()).map(label);
            let steps: Vec<u64> = all.keys().copied().collect();
            let values: Vec<&Distribution> = all.values().collect();
            let (early, late) = (steps.get(..part), steps.get(steps.len() - part..));
            if let [_] = runs {
                if all.len() > 1 {
                    parts.push((early.and_then(ends).unwrap_or_default(), 0, values[..part].to_vec()));
                }
                parts.push((
                    late.and_then(ends).unwrap_or_default(),
                    1,
                    values[values.len() - part..].to_vec(),
                ));
            } else {
                let label = late.and_then(ends).unwrap_or_default();
                parts.push((format!("{run}, {label}"), colour, values[values.len() - part..].to_vec()));
            }
        }
        let all = || parts.iter().flat_map(|(.., values)| values.iter());
        let low = all().map(|of| of.low).reduce(f64::min)?;
        let high = all().map(|of| of.high).reduce(f64::max)?;
        let line = |(name, colour, values): &(String, usize, Vec<&Distribution>)| Line {
            name: name.clone(),
            colour: *colour,
            series: Cow::Owned(outline(values, low, high)),
        };
        let lines = parts.iter().map(line).collect();
        let across = title(name);
        (low < high).then(|| Chart {
            title: format!("{across}: share of responses"),
            shape: Shape::Outline(across),
            lines,
        })
    };
    names(runs).into_iter().filter_map(chart).collect()
}

/// Rewards over the divergence at the same time, from the beginning of each run to its end.
pub(super) fn against_divergence(runs: &[(String, &Records)]) -> Vec<Chart<'static>> {
    let path = |records: &Records, reward: &str| -> Option<Series> {
        let divergence = DIVERGENCES.iter().find_map(|name| records.series.get(*name))?;
        let at: BTreeMap<u64, f64> =
            divergence.points.iter().map(|&(step, value)| (step as u64, value)).collect();
        let rewards = &records.series.get(reward)?.points;
        let points: Vec<(f64, f64)> =
            rewards.iter().filter_map(|&(step, reward)| Some((*at.get(&(step as u64))?, reward))).collect();
        (points.len() > 1).then_some(Series { points })
    };
    let chart = |reward: &str| {
        let line = |(colour, (name, records)): (usize, &(String, &Records))| {
            let name = if runs.len() == 1 { String::new() } else { name.clone() };
            Some(Line { name, colour, series: Cow::Owned(path(records, reward)?) })
        };
        let lines: Vec<Line<'static>> = runs.iter().enumerate().filter_map(line).collect();
        let shape = Shape::Path("divergence from the reference (KL)".into());
        (!lines.is_empty()).then(|| Chart { title: title(reward), shape, lines })
    };
    names(runs).into_iter().filter_map(chart).collect()
}

/// The rewards in training whose values any run recorded.
fn names<'a>(runs: &[(String, &'a Records)]) -> Vec<&'a str> {
    let all = runs.iter().flat_map(|(_, records)| records.distributions.keys());
    let mut names: Vec<&str> = all.map(String::as_str).filter(|name| name.starts_with("train/")).collect();
    names.sort_unstable();
    names.dedup();
    names
}

fn title(name: &str) -> String {
    let name = name.strip_prefix("train/").unwrap_or(name);
    name.replace(['_', '/'], " ")
}

/// The histogram of all values together, in bins of its own: a count is spread evenly over the width of its bin.
fn outline(parts: &[&Distribution], low: f64, high: f64) -> Series {
    let width = (high - low) / BINS as f64;
    let edge = |bin: usize| low + bin as f64 * width;
    let mut shares = [0.0; BINS];
    let total: f64 = parts.iter().map(|of| of.count as f64).sum();
    for part in parts {
        for (bin, &count) in part.bins.iter().enumerate() {
            let [from, to] = part.edges(bin);
            let share = count as f64 / total;
            if to <= from {
                let at = ((from - low) / width) as usize;
                shares[at.min(BINS - 1)] += share;
                continue;
            }
            for (at, sum) in shares.iter_mut().enumerate() {
                let overlap = (to.min(edge(at + 1)) - from.max(edge(at))).max(0.0);
                *sum += share * overlap / (to - from);
            }
        }
    }
    let steps =
        shares.iter().enumerate().flat_map(|(bin, &share)| [(edge(bin), share), (edge(bin + 1), share)]);
    let points = std::iter::once((low, 0.0)).chain(steps).chain([(high, 0.0)]).collect();
    Series { points }
}

#[cfg(test)]
mod tests {
    use approx::assert_abs_diff_eq;

    use super::*;

    fn records(batches: &[&[f64]]) -> Records {
        let of = |(step, values): (usize, &&[f64])| Some((step as u64, Distribution::of(values)?));
        let distributions = batches.iter().enumerate().filter_map(of).collect();
        let series = |scale: f64| Series {
            points: (0..batches.len()).map(|i| (i as f64, scale * i as f64)).collect(),
        };
        Records {
            distributions: [("train/reward/raw".to_owned(), distributions)].into(),
            series: [("train/reward/raw".to_owned(), series(0.1)), (DIVERGENCES[0].to_owned(), series(2.0))]
                .into(),
            ..Records::default()
        }
    }

    #[test]
    fn shares_add_up_whatever_the_bins() {
        let parts = [&[0.0, 1.0, 2.0, 2.0][..], &[-1.5, 0.3], &[2.0, 2.0, 2.0]]
            .map(|of| Distribution::of(of).unwrap());
        let series = outline(&parts.iter().collect::<Vec<_>>(), -1.5, 2.0);
        let shares: Vec<f64> =
            series.points[1..=2 * BINS].iter().step_by(2).map(|(_, share)| *share).collect();
        assert_abs_diff_eq!(shares.iter().sum::<f64>(), 1.0, epsilon = 1e-9);
        assert!(shares[BINS - 1] > 0.5, "most values are 2: {shares:?}");
        assert_eq!((series.points[0], series.points[2 * BINS + 1]), ((-1.5, 0.0), (2.0, 0.0)));
    }

    #[test]
    fn one_run_shows_beginning_and_end_and_several_their_ends() {
        let (short, long) = (records(&[&[0.0, 1.0]]), records(&[&[0.0, 1.0][..]; 10]));
        let labels = |runs: &[(String, &Records)]| -> Vec<String> {
            histograms(runs)
                .iter()
                .flat_map(|chart| chart.lines.iter().map(|line| line.name.clone()))
                .collect()
        };
        assert_eq!(labels(&[("a".into(), &long)]), ["steps 0 to 1", "steps 8 to 9"]);
        assert_eq!(labels(&[("a".into(), &short)]), ["step 0"]);
        assert_eq!(labels(&[("a".into(), &short), ("b".into(), &long)]), ["a, step 0", "b, steps 8 to 9"]);
        assert!(histograms(&[("a".into(), &records(&[&[1.0, 1.0]]))]).is_empty(), "nothing to draw");
        assert!(histograms(&[("a".into(), &Records::default())]).is_empty());
    }

    #[test]
    fn rewards_are_drawn_over_the_divergence() {
        let long = records(&[&[0.0, 1.0][..]; 100]);
        let charts = against_divergence(&[("a".into(), &long)]);
        let points = &charts[0].lines[0].series.points;
        assert_eq!(points.len(), 100);
        assert_abs_diff_eq!(points[10].0, 20.0, epsilon = 1e-9);
        assert_abs_diff_eq!(points[10].1, 1.0, epsilon = 1e-9);
        let none = Records { series: BTreeMap::new(), ..records(&[&[0.0, 1.0]]) };
        assert!(against_divergence(&[("a".into(), &none)]).is_empty());
    }
}
