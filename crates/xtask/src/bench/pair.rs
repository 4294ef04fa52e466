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

/// One workload on both sides.
#[derive(Debug, Clone)]
pub(super) struct Comparison {
    bench: String,
    pub(super) ours: Measured,
    pub(super) theirs: Measured,
}

/// Lets the two sides repeat in turns.
pub(super) fn alternate(bench: &str, mut ours: Side, mut theirs: Side, rounds: usize) -> Result<Comparison> {
    for _ in 0..rounds {
        ours.repeat()?;
        theirs.repeat()?;
    }
    Ok(Comparison { bench: bench.into(), ours: ours.finish()?, theirs: theirs.finish()? })
}

pub(super) const HEADER: &str = "\
| workload | ruminate s | Python s | ratio (min .. max of the rounds) | peak MiB | Python peak MiB |
| --- | --- | --- | --- | --- | --- |";

impl Comparison {
    /// Theirs by ours: above 1 we are faster.
    pub(super) fn row(&self) -> String {
        let ratios: Vec<f64> = self.theirs.secs.iter().zip(&self.ours.secs).map(|(a, b)| a / b).collect();
        let (ours, theirs) = (median(&self.ours.secs), median(&self.theirs.secs));
        let least = ratios.iter().copied().fold(f64::INFINITY, f64::min);
        let most = ratios.iter().copied().fold(0.0, f64::max);
        format!(
            "| {} | {ours:.3} | {theirs:.3} | {:.2} ({least:.2} .. {most:.2}) | {} | {} |",
            self.bench,
            theirs / ours,
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

    const WORKS: &str = "echo ready; while read line; do echo 0.5; done; echo '{\"peak_rss_mib\": 7}'";

    #[test]
    fn two_sides_take_turns() {
        let slow = WORKS.replace("0.5", "1.0");
        let comparison = alternate("sft", side(WORKS).unwrap(), side(&slow).unwrap(), 3).unwrap();
        assert_eq!(comparison.ours.secs, [0.5; 3]);
        assert_eq!(comparison.row(), "| sft | 0.500 | 1.000 | 2.00 (2.00 .. 2.00) | 7 | 7 |");
    }

    #[test]
    fn a_side_that_fails_is_an_error() {
        assert!(side("exit 3").is_err());
        assert!(side("echo wrong").is_err());
        let ends = side("echo ready; read line").unwrap();
        assert!(alternate("sft", ends, side(WORKS).unwrap(), 1).is_err());
    }

    #[test]
    fn the_median_of_an_even_number_lies_between() {
        assert_eq!(median(&[4.0, 1.0, 2.0, 3.0]), 2.5);
        assert_eq!(median(&[3.0, 1.0, 2.0]), 2.0);
    }
}
