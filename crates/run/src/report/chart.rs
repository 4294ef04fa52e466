//! Line charts as inline SVG. They are written by hand, because their colours and fonts have to follow the page's style
//! sheet (light, dark, print), which drawing libraries do not let them.

use std::borrow::Cow;
use std::fmt::Write;

use super::page::escape;
use super::records::Series;

/// The drawing's size in its own units. Narrow, so that the text is readable when a telephone shows it at full width.
const SIZE: (f64, f64) = (360.0, 210.0);
const LEFT: f64 = 48.0;
const RIGHT: f64 = 12.0;
const TOP: f64 = 10.0;
const BOTTOM: f64 = 34.0;
/// Columns into which more points than that are gathered.
const COLUMNS: usize = 240;
/// Points of the line that shows where a path leads.
const TREND: usize = 6;
/// Up to so many points are drawn as dots, too.
const DOTS: usize = 40;
/// Colours of the style sheet.
const COLOURS: usize = 8;
/// Ratio of the largest to the smallest value above which the scale is logarithmic.
const WIDE: f64 = 500.0;

/// Lines in one frame.
pub(super) struct Chart<'a> {
    pub(super) title: String,
    pub(super) shape: Shape,
    pub(super) lines: Vec<Line<'a>>,
}

/// Meaning of the lines of a chart.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Shape {
    /// A metric over the steps.
    Curve,
    /// A metric over another one, which is named.
    Path(String),
    /// The outline of a histogram, over the values that are named.
    Outline(String),
}

/// A line with its name.
pub(super) struct Line<'a> {
    pub(super) name: String,
    pub(super) colour: usize,
    pub(super) series: Cow<'a, Series>,
}

impl Chart<'_> {
    fn is_logarithmic(&self) -> bool {
        let values = self.lines.iter().flat_map(|line| line.series.points.iter().map(|(_, y)| *y));
        let (low, high) = range(values);
        !matches!(self.shape, Shape::Outline(_)) && low > 0.0 && high / low > WIDE
    }

    /// The quantity from left to right.
    fn across(&self) -> &str {
        match &self.shape {
            Shape::Curve => "step",
            Shape::Path(name) | Shape::Outline(name) => name,
        }
    }
}

/// A chart with its caption: title, and a legend with the last value of each line.
pub(super) fn figure(chart: &Chart<'_>) -> String {
    let scale = if chart.is_logarithmic() { " <span class=\"key\">(log scale)</span>" } else { "" };
    let mut html = format!("<figure><figcaption><b>{}</b>{scale}", escape(&chart.title));
    for Line { name, colour, series } in &chart.lines {
        let Some((_, value)) = series.points.last() else { continue };
        let value = match chart.shape {
            // A single path needs no name.
            _ if name.is_empty() && chart.shape != Shape::Curve => continue,
            Shape::Curve => format!(" <data>{}</data>", crate::output::number(*value)),
            _ => String::new(),
        };
        let colour = colour % COLOURS;
        let _ =
            write!(html, " <span class=\"key\"><i class=\"c{colour}\"></i>{}{value}</span>", escape(name));
    }
    html.push_str("</figcaption>");
    html.push_str(&svg(chart));
    html.push_str("</figure>\n");
    html
}

fn svg(chart: &Chart<'_>) -> String {
    let points = || chart.lines.iter().flat_map(|line| line.series.points.iter().copied());
    let x = Scale::linear(range(points().map(|(x, _)| x)), (LEFT, SIZE.0 - RIGHT));
    let (low, high) = range(points().map(|(_, y)| y));
    let span = (SIZE.1 - BOTTOM, TOP);
    let logarithmic = chart.is_logarithmic();
    let y =
        if logarithmic { Scale::logarithmic((low, high), span) } else { Scale::padded((low, high), span) };

    let mut svg = format!(
        "<svg viewBox=\"0 0 {} {}\" role=\"img\" aria-label=\"{} by {}\">",
        SIZE.0,
        SIZE.1,
        escape(&chart.title),
        escape(chart.across())
    );
    for (tick, label) in y.ticks(5) {
        let at = y.at(tick);
        let _ = write!(
            svg,
            "<path class=\"grid\" d=\"M{LEFT} {at:.1}H{}\"/><text x=\"{}\" y=\"{:.1}\" text-anchor=\"end\">{label}</text>",
            SIZE.0 - RIGHT,
            LEFT - 5.0,
            at + 3.5
        );
    }
    let bottom = SIZE.1 - BOTTOM;
    for (tick, label) in x.ticks(5) {
        let at = x.at(tick);
        let anchor = if at > SIZE.0 - RIGHT - 14.0 { "end" } else { "middle" };
        let at_text = if anchor == "end" { SIZE.0 - 2.0 } else { at };
        let _ = write!(
            svg,
            "<path class=\"axis\" d=\"M{at:.1} {bottom}v4\"/><text x=\"{at_text:.1}\" y=\"{:.1}\" text-anchor=\"{anchor}\">{label}</text>",
            bottom + 15.0
        );
    }
    let _ = write!(
        svg,
        "<path class=\"axis\" d=\"M{LEFT} {bottom}H{}\"/><text x=\"{}\" y=\"{}\" text-anchor=\"middle\">{}</text>",
        SIZE.0 - RIGHT,
        (LEFT + SIZE.0 - RIGHT) / 2.0,
        SIZE.1 - 4.0,
        escape(chart.across())
    );
    for Line { colour, series, .. } in &chart.lines {
        svg.push_str(&path(&series.points, colour % COLOURS, &chart.shape, &x, &y));
    }
    svg.push_str("</svg>");
    svg
}

/// Few points are joined, with a dot each where they are very few; of many, a band shows the extremes and a line the
/// means. A path wanders, so its points are faint, and a line through a few means shows where it leads, with a dot at its end.
fn path(points: &[(f64, f64)], colour: usize, shape: &Shape, x: &Scale, y: &Scale) -> String {
    let place = |&(px, py): &(f64, f64)| format!("{:.1} {:.1}", x.at(px), y.at(py));
    let join = |points: &[(f64, f64)]| points.iter().map(place).collect::<Vec<_>>().join("L");
    let line = |points: &[(f64, f64)]| format!("<path class=\"c{colour}\" d=\"M{}\"/>", join(points));
    let dots = |points: &[(f64, f64)], class: &str, radius: f64| -> String {
        let dot = |&(px, py): &(f64, f64)| {
            let (cx, cy) = (x.at(px), y.at(py));
            format!("<circle class=\"c{colour}{class}\" cx=\"{cx:.1}\" cy=\"{cy:.1}\" r=\"{radius}\"/>")
        };
        points.iter().map(dot).collect()
    };
    let means = |columns: &[Column]| -> Vec<(f64, f64)> { columns.iter().map(|c| (c.x, c.mean)).collect() };
    if let Shape::Path(_) = shape {
        let trend = means(&thin(points, TREND));
        return dots(&means(&thin(points, COLUMNS)), " faint", 2.0)
            + &line(&trend)
            + &dots(trend.last().map_or(&[], std::slice::from_ref), "", 3.5);
    }
    if points.len() <= COLUMNS {
        let small = *shape == Shape::Curve && points.len() <= DOTS;
        return line(points) + &if small { dots(points, "", 2.0) } else { String::new() };
    }
    let columns = thin(points, COLUMNS);
    let upper: Vec<_> = columns.iter().map(|c| (c.x, c.max)).collect();
    let lower: Vec<_> = columns.iter().rev().map(|c| (c.x, c.min)).collect();
    let band = format!("<path class=\"band c{colour}\" d=\"M{}L{}Z\"/>", join(&upper), join(&lower));
    band + &line(&means(&columns))
}

/// The points of one column of a chart.
struct Column {
    x: f64,
    min: f64,
    mean: f64,
    max: f64,
}

fn thin(points: &[(f64, f64)], columns: usize) -> Vec<Column> {
    let column = |chunk: &[(f64, f64)]| {
        let values = || chunk.iter().map(|(_, y)| *y);
        let count = chunk.len() as f64;
        Column {
            x: chunk.iter().map(|(x, _)| x / count).sum(),
            min: values().fold(f64::INFINITY, f64::min),
            mean: values().map(|value| value / count).sum(),
            max: values().fold(f64::NEG_INFINITY, f64::max),
        }
    };
    points.chunks(points.len().div_ceil(columns).max(1)).map(column).collect()
}

fn range(values: impl Iterator<Item = f64>) -> (f64, f64) {
    values.fold((f64::INFINITY, f64::NEG_INFINITY), |(low, high), v| (low.min(v), high.max(v)))
}

/// From values to places.
struct Scale {
    low: f64,
    high: f64,
    span: (f64, f64),
    logarithmic: bool,
}

impl Scale {
    fn linear((mut low, mut high): (f64, f64), span: (f64, f64)) -> Self {
        if low >= high {
            // A single value stands in the middle.
            let half = if low == 0.0 { 1.0 } else { low.abs() };
            (low, high) = (low - half, high + half);
        }
        Self { low, high, span, logarithmic: false }
    }

    /// With air above and below, down to 0 where that is near.
    fn padded((low, high): (f64, f64), span: (f64, f64)) -> Self {
        let mut scale = Self::linear((low, high), span);
        if low < high {
            let air = 0.06 * (high - low);
            let near_zero = low >= 0.0 && low < 0.5 * high;
            scale.low = if near_zero { 0.0 } else { low - air };
            scale.high = high + air;
        }
        scale
    }

    fn logarithmic((low, high): (f64, f64), span: (f64, f64)) -> Self {
        Self { low: low.log10().floor(), high: high.log10().ceil(), span, logarithmic: true }
    }

    fn at(&self, value: f64) -> f64 {
        let value = if self.logarithmic { value.log10() } else { value };
        let share = (value - self.low) / (self.high - self.low);
        self.span.0 + share * (self.span.1 - self.span.0)
    }

    /// About `count` round values with their labels.
    fn ticks(&self, count: usize) -> Vec<(f64, String)> {
        if self.logarithmic {
            let decades = (self.high - self.low) as usize;
            let every = decades.div_ceil(count).max(1);
            return (0..=decades)
                .step_by(every)
                .map(|decade| (10f64.powi(self.low as i32 + decade as i32), self.low as i32 + decade as i32))
                .map(|(value, power)| match power {
                    -3..=3 => (value, value.to_string()),
                    _ => (value, format!("1e{power}")),
                })
                .collect();
        }
        let raw = (self.high - self.low) / count as f64;
        if raw < f64::MIN_POSITIVE {
            return vec![(self.low, label(self.low, 1.0))];
        }
        let size = 10f64.powf(raw.log10().floor());
        // A hair below counts as enough: 1e-5 / 5 is a little more than 2e-6.
        let step =
            [1.0, 2.0, 2.5, 5.0, 10.0].into_iter().find(|m| m * size >= raw * (1.0 - 1e-9)).unwrap_or(10.0)
                * size;
        let first = (self.low / step).ceil() as i64;
        let last = (self.high / step + 1e-9).floor() as i64;
        (first..=last).map(|k| k as f64 * step).map(|value| (value, label(value, step))).collect()
    }
}

/// A label with as many digits as the distance of the ticks asks for.
fn label(value: f64, step: f64) -> String {
    let trim = |text: String| {
        if text.contains('.') { text.trim_end_matches('0').trim_end_matches('.').to_owned() } else { text }
    };
    if value == 0.0 {
        "0".into()
    } else if step >= 1e6 {
        trim(format!("{:.2}", value / 1e6)) + "M"
    } else if value.abs() >= 1e4 && step >= 10.0 {
        trim(format!("{:.2}", value / 1e3)) + "k"
    } else if step < 1e-3 {
        let power = (value.abs().log10() + 1e-9).floor() as i32;
        trim(format!("{:.2}", value / 10f64.powi(power))) + &format!("e{power}")
    } else {
        let decimals = (1 - step.log10().floor() as i32).max(0) as usize;
        trim(format!("{value:.decimals$}"))
    }
}

#[cfg(test)]
mod tests {
    use approx::assert_abs_diff_eq;

    use super::*;

    fn labels(low: f64, high: f64) -> Vec<String> {
        Scale::linear((low, high), (0.0, 1.0)).ticks(5).into_iter().map(|(_, label)| label).collect()
    }

    #[test]
    fn ticks_are_round_and_inside() {
        assert_eq!(labels(0.0, 1.0), ["0", "0.2", "0.4", "0.6", "0.8", "1"]);
        assert_eq!(labels(0.0, 1000.0), ["0", "200", "400", "600", "800", "1000"]);
        assert_eq!(labels(0.0, 50_001.0), ["0", "20k", "40k"]);
        assert_eq!(labels(2.31, 2.42), ["2.325", "2.35", "2.375", "2.4"]);
        assert_eq!(labels(0.0, 1e-5), ["0", "2e-6", "4e-6", "6e-6", "8e-6", "1e-5"]);
        assert_eq!(labels(-3.0, 3.0), ["-2", "0", "2"]);
        assert_eq!(labels(5.0, 5.0), ["0", "2", "4", "6", "8", "10"]);
        assert_eq!(labels(0.0, 5e6), ["0", "1M", "2M", "3M", "4M", "5M"]);
        let scale = Scale::logarithmic((2e-3, 700.0), (0.0, 1.0));
        assert_eq!(scale.ticks(5).len(), 4);
        assert_abs_diff_eq!(scale.at(1e-3), 0.0, epsilon = 1e-9);
        assert_abs_diff_eq!(scale.at(1000.0), 1.0, epsilon = 1e-9);
    }

    #[test]
    fn thinning_keeps_extremes_and_means() {
        let points: Vec<(f64, f64)> =
            (0..100_000).map(|i| (f64::from(i), if i == 61_234 { 50.0 } else { 1.0 })).collect();
        let columns = thin(&points, COLUMNS);
        assert!(columns.len() <= COLUMNS);
        assert_eq!(columns.iter().map(|c| c.max).fold(0.0, f64::max), 50.0);
        assert!(columns.windows(2).all(|pair| pair[0].x < pair[1].x));
        assert!(columns.iter().all(|c| c.min <= c.mean + 1e-9 && c.mean <= c.max + 1e-9));
    }

    #[test]
    fn any_values_give_finite_places() {
        for values in [vec![0.0], vec![-1.0, -1.0], vec![1e-300, 1e300], vec![1e9, -1e9], vec![-1e300, 1e300]]
        {
            let points = values.iter().enumerate().map(|(i, &v)| (i as f64, v)).collect();
            let series = Series { points };
            for shape in [Shape::Curve, Shape::Path("x".into()), Shape::Outline("x".into())] {
                let lines = vec![Line { name: "a".into(), colour: 9, series: Cow::Borrowed(&series) }];
                let svg = figure(&Chart { title: "x".into(), shape, lines });
                assert!(!svg.contains("NaN") && !svg.contains("inf"), "{svg}");
            }
        }
    }
}
