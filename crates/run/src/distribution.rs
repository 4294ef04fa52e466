//! Many values in few numbers: a histogram, and the interval of their mean.

use serde::{Deserialize, Serialize};

/// Bins of a histogram.
const BINS: usize = 20;
/// The standard normal distribution has 95 % of its mass within so many standard deviations.
const Z: f64 = 1.959_963_984_540_054;

/// Summary of the values behind a metric.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub(crate) struct Distribution {
    pub(crate) count: u64,
    pub(crate) mean: f64,
    /// Standard deviation of the sample.
    pub(crate) std: f64,
    /// 95 % confidence interval of the mean; nothing for a single value, or zeros only.
    pub(crate) interval: Option<[f64; 2]>,
    /// Smallest and largest value: the ends of the histogram.
    pub(crate) low: f64,
    pub(crate) high: f64,
    /// Values in each of the equally wide bins.
    pub(crate) bins: Vec<u64>,
}

impl Distribution {
    /// `None` where no value is a number.
    pub(crate) fn of(values: &[f64]) -> Option<Self> {
        let values: Vec<f64> = values.iter().copied().filter(|value| value.is_finite()).collect();
        let low = values.iter().copied().reduce(f64::min)?;
        let high = values.iter().copied().fold(low, f64::max);
        let n = values.len() as f64;
        let mean = values.iter().map(|value| value / n).sum::<f64>();
        let square = values.iter().map(|value| (value - mean).powi(2)).sum::<f64>();
        let std = if n > 1.0 { (square / (n - 1.0)).sqrt() } else { 0.0 };
        let mut bins = vec![0; if low < high { BINS } else { 1 }];
        for value in &values {
            let at = (value - low) / (high - low) * BINS as f64;
            let last = bins.len() - 1;
            bins[(at as usize).min(last)] += 1;
        }
        // Right answers may count in percent.
        let whole = [1.0, 100.0]
            .into_iter()
            .find(|&whole| values.iter().all(|&value| value == 0.0 || value == whole));
        let interval = match whole {
            // Of what, nobody can tell.
            _ if n < 2.0 || (low, high) == (0.0, 0.0) => None,
            Some(whole) => Some(wilson(mean / whole, n).map(|end| end * whole)),
            None => {
                let half = student(values.len() - 1) * std / n.sqrt();
                Some([mean - half, mean + half])
            }
        };
        Some(Self { count: values.len() as u64, mean, std, interval, low, high, bins })
    }

    /// Edges of a bin.
    pub(crate) fn edges(&self, bin: usize) -> [f64; 2] {
        let width = (self.high - self.low) / self.bins.len() as f64;
        [self.low + bin as f64 * width, self.low + (bin + 1) as f64 * width]
    }
}

/// The 97.5 % quantile of Student's distribution, for at least one degree of freedom.
pub(crate) fn student(degrees: usize) -> f64 {
    const TABLE: [f64; 30] = [
        12.706, 4.303, 3.182, 2.776, 2.571, 2.447, 2.365, 2.306, 2.262, 2.228, 2.201, 2.179, 2.160, 2.145,
        2.131, 2.120, 2.110, 2.101, 2.093, 2.086, 2.080, 2.074, 2.069, 2.064, 2.060, 2.056, 2.052, 2.048,
        2.045, 2.042,
    ];
    // Beyond the table, two terms of Cornish and Fisher's expansion are right to four digits.
    let n = degrees as f64;
    let beyond =
        || Z + (Z.powi(3) + Z) / (4.0 * n) + (5.0 * Z.powi(5) + 16.0 * Z.powi(3) + 3.0 * Z) / (96.0 * n * n);
    TABLE.get(degrees.saturating_sub(1)).copied().unwrap_or_else(beyond)
}

/// Wilson's interval of a share, which is inside 0 to 1 and right for few values, too.
fn wilson(share: f64, n: f64) -> [f64; 2] {
    let z2 = Z * Z / n;
    let centre = (share + z2 / 2.0) / (1.0 + z2);
    let half = Z / (1.0 + z2) * (share * (1.0 - share) / n + z2 / (4.0 * n)).sqrt();
    [(centre - half).max(0.0), (centre + half).min(1.0)]
}

#[cfg(test)]
mod tests {
    use approx::assert_abs_diff_eq;

    use super::*;

    #[test]
    fn values_are_counted_in_bins() {
        let values: Vec<f64> = (0..100).map(f64::from).chain([f64::NAN, f64::INFINITY]).collect();
        let all = Distribution::of(&values).unwrap();
        assert_eq!((all.count, all.low, all.high), (100, 0.0, 99.0));
        assert_eq!(all.bins, [5; BINS]);
        assert_eq!(all.edges(BINS - 1)[1], 99.0);
        assert_abs_diff_eq!(all.mean, 49.5);
        assert_abs_diff_eq!(all.std, 29.011_491_975_882_016, epsilon = 1e-9);
        let [low, high] = all.interval.unwrap();
        assert_abs_diff_eq!(high - low, 2.0 * student(99) * all.std / 10.0, epsilon = 1e-9);
        // `scipy.stats.t.ppf(0.975, degrees)`.
        let quantiles =
            [(1, 12.7062), (30, 2.0423), (31, 2.0395), (40, 2.0211), (99, 1.9842), (100_000, 1.96)];
        for (degrees, quantile) in quantiles {
            assert_abs_diff_eq!(student(degrees), quantile, epsilon = 5e-4);
        }
        let one = Distribution::of(&[2.5]).unwrap();
        assert_eq!((one.bins.as_slice(), one.interval, one.std), (&[1][..], None, 0.0));
        assert_eq!(Distribution::of(&[f64::NAN]), None);
        let wide = Distribution::of(&[-1e300, 1e300]).unwrap();
        assert_eq!(wide.bins.iter().sum::<u64>(), 2);
    }

    #[test]
    fn shares_have_wilson_s_interval() {
        // As statsmodels' `proportion_confint(8, 10, method="wilson")` gives it.
        let values: Vec<f64> = (0..10).map(|i| if i < 8 { 1.0 } else { 0.0 }).collect();
        let [low, high] = Distribution::of(&values).unwrap().interval.unwrap();
        assert_abs_diff_eq!(low, 0.490_162_471_536_642, epsilon = 1e-9);
        assert_abs_diff_eq!(high, 0.943_317_848_545_625, epsilon = 1e-9);
        let [low, high] = Distribution::of(&[1.0; 20]).unwrap().interval.unwrap();
        assert!(low > 0.8 && high == 1.0, "{low} {high}");
        let percent: Vec<f64> = values.iter().map(|value| 100.0 * value).collect();
        assert_abs_diff_eq!(
            Distribution::of(&percent).unwrap().interval.unwrap()[0],
            49.016_247,
            epsilon = 1e-5
        );
        assert_eq!(Distribution::of(&[0.0; 9]).unwrap().interval, None);
    }
}
