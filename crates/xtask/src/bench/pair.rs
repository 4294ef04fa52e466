//! Two programs that take turns at the same workload, so that whatever else the machine does meets both.

use std::io::{BufRead, BufReader, Write};
use std::process::{Child, ChildStdin, ChildStdout, Command, Stdio};

use anyhow::{Context, Result, bail};
use serde_json::Value;

/// A program of the `--paced` protocol: "ready", one line of seconds for each line that it is sent, the result at
/// the end of the input.
pub(super) struct Side {
    name: &'static str,
    process: Child,
    input: Option<ChildStdin>,
    output: BufReader<ChildStdout>,
    secs: Vec<f64>,
}

impl Side {
    pub(super) fn start(name: &'static str, mut command: Command) -> Result<Self> {
        command.stdin(Stdio::piped()).stdout(Stdio::piped());
        let mut process = command.spawn().with_context(|| format!("starting the {name} side"))?;
        let (input, output) = (process.stdin.take(), process.stdout.take());
        let output = BufReader::new(output.context("its output is a pipe")?);
        let mut side = Self { name, process, input, output, secs: vec![] };
        // The warm-up is over before the other side starts.
        if side.line()? != "ready" {
            bail!("the {name} side did not say that it is ready");
        }
        Ok(side)
    }

    fn line(&mut self) -> Result<String> {
        let mut line = String::new();
        self.output.read_line(&mut line)?;
        if line.is_empty() {
            bail!("the {} side ended early; what it said is above", self.name);
        }
        Ok(line.trim().to_string())
    }

    fn repeat(&mut self) -> Result<()> {
        let input = self.input.as_mut().context("its input is a pipe")?;
        writeln!(input).with_context(|| format!("asking the {} side for a repeat", self.name))?;
        let line = self.line()?;
        let secs = line.parse().with_context(|| format!("the {} side said {line:?}", self.name))?;
        self.secs.push(secs);
        Ok(())
    }

    /// Ends the program, which says its result.
    fn finish(mut self) -> Result<Measured> {
        drop(self.input.take());
        let line = self.line()?;
        let result =
            serde_json::from_str(&line).with_context(|| format!("the {} side said {line:?}", self.name))?;
        self.process.wait()?;
        Ok(Measured { secs: std::mem::take(&mut self.secs), result })
    }
}

impl Drop for Side {
    fn drop(&mut self) {
        // It has ended by itself unless something went wrong.
        let _ = self.process.kill();
        let _ = self.process.wait();
    }
}

/// What one side measured.
#[derive(Debug, Clone)]
pub(super) struct Measured {
    secs: Vec<f64>,
    /// The line that it printed.
    pub(super) result: Value,
}

impl Measured {
    /// With the rounds of another process of the same side; its larger peak and its lower floor count.
    fn join(&mut self, other: Self) {
        self.secs.extend(other.secs);
        let number = |result: &Value, key: &str| result[key].as_f64();
        if number(&other.result, "peak_rss_mib") > number(&self.result, "peak_rss_mib") {
            self.result["peak_rss_mib"] = other.result["peak_rss_mib"].clone();
        }
        if number(&other.result, "floor_s") < number(&self.result, "floor_s") {
            self.result["floor_s"] = other.result["floor_s"].clone();
        }
    }
}

/// One workload on both sides.
#[derive(Debug, Clone)]
pub(super) struct Comparison {
    bench: String,
    pub(super) ours: Measured,
    pub(super) theirs: Measured,
}

/// Lets the two sides repeat in turns: half of the rounds with ours started first, half with theirs. The program that
/// starts first may get the worse memory.
pub(super) fn alternate(
    bench: &str,
    ours: impl Fn() -> Result<Side>,
    theirs: impl Fn() -> Result<Side>,
    rounds: usize,
) -> Result<Comparison> {
    let turns = |ours_first: bool, rounds: usize| {
        let (mut a, mut b) = if ours_first {
            let ours = ours()?;
            (ours, theirs()?)
        } else {
            let theirs = theirs()?;
            (ours()?, theirs)
        };
        for _ in 0..rounds {
            a.repeat()?;
            b.repeat()?;
        }
        Ok::<_, anyhow::Error>((a.finish()?, b.finish()?))
    };
    let (mut ours, mut theirs) = turns(true, rounds.div_ceil(2))?;
    if rounds > 1 {
        let (again, theirs_again) = turns(false, rounds / 2)?;
        ours.join(again);
        theirs.join(theirs_again);
    }
    Ok(Comparison { bench: bench.into(), ours, theirs })
}

pub(super) const HEADER: &str = "\
| workload | ruminate s | Python s | ratio (min .. max of the rounds) | of the floor | Python | peak MiB | Python peak MiB |
| --- | --- | --- | --- | --- | --- | --- | --- |";

impl Comparison {
    /// Theirs by ours: above 1 we are faster.
    pub(super) fn row(&self) -> String {
        let ratios: Vec<f64> = self.theirs.secs.iter().zip(&self.ours.secs).map(|(a, b)| a / b).collect();
        let (ours, theirs) = (median(&self.ours.secs), median(&self.theirs.secs));
        let least = ratios.iter().copied().fold(f64::INFINITY, f64::min);
        let most = ratios.iter().copied().fold(0.0, f64::max);
        // The least time that this machine could take, as ours measured its rates.
        let floor = self.ours.result["floor_s"].as_f64();
        let reached = |secs: f64| floor.map_or("".into(), |floor| format!("{:.0} %", 100.0 * floor / secs));
        format!(
            "| {} | {ours:.3} | {theirs:.3} | {:.2} ({least:.2} .. {most:.2}) | {} | {} | {} | {} |",
            self.bench,
            theirs / ours,
            reached(ours),
            reached(theirs),
            self.ours.result["peak_rss_mib"],
            self.theirs.result["peak_rss_mib"]
        )
    }
}

fn median(values: &[f64]) -> f64 {
    let mut sorted = values.to_vec();
    sorted.sort_by(f64::total_cmp);
    let n = sorted.len();
    if n == 0 { f64::NAN } else { (sorted[(n - 1) / 2] + sorted[n / 2]) / 2.0 }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn side(script: &str) -> Result<Side> {
        let mut command = Command::new("sh");
        command.args(["-c", script]);
        Side::start("test", command)
    }

    const WORKS: &str =
        "echo ready; while read line; do echo 0.5; done; echo '{\"peak_rss_mib\": 7, \"floor_s\": 0.25}'";

    #[test]
    fn two_sides_take_turns() {
        let slow = WORKS.replace("0.5", "1.0");
        for rounds in [1, 2, 3] {
            let comparison = alternate("sft", || side(WORKS), || side(&slow), rounds).unwrap();
            assert_eq!(comparison.ours.secs, vec![0.5; rounds]);
            let row = "| sft | 0.500 | 1.000 | 2.00 (2.00 .. 2.00) | 50 % | 25 % | 7 | 7 |";
            assert_eq!(comparison.row(), row);
        }
    }

    #[test]
    fn the_larger_peak_and_the_lower_floor_count() {
        let of = |peak: u64, floor: f64| Measured {
            secs: vec![floor],
            result: serde_json::json!({"peak_rss_mib": peak, "floor_s": floor}),
        };
        let (mut first, mut second) = (of(7, 0.5), of(9, 0.25));
        second.join(first.clone());
        first.join(of(9, 0.25));
        assert_eq!((&first.result, &first.secs), (&second.result, &vec![0.5, 0.25]));
    }

    #[test]
    fn a_side_that_fails_is_an_error() {
        assert!(side("exit 3").is_err());
        assert!(side("echo wrong").is_err());
        assert!(alternate("sft", || side("echo ready; read line"), || side(WORKS), 1).is_err());
    }

    #[test]
    fn the_median_of_an_even_number_lies_between() {
        assert_eq!(median(&[4.0, 1.0, 2.0, 3.0]), 2.5);
        assert_eq!(median(&[3.0, 1.0, 2.0]), 2.0);
    }
}
