//! Samples of many cases, gathered over rounds.

use std::io;

use crate::figure::{Figure, median};
use crate::report::Report;

/// The unit of worst bursts, whose maximum counts.
pub const WORST: &str = "us";

#[derive(Debug)]
struct Series {
    case: String,
    subject: &'static str,
    unit: &'static str,
    values: Vec<f64>,
}

/// Samples by case and subject, in the order in which they first came.
#[derive(Debug, Default)]
pub struct Samples(Vec<Series>);

impl Samples {
    /// Adds one.
    pub fn add(&mut self, case: &str, subject: &'static str, unit: &'static str, value: f64) {
        let mut known = self.0.iter_mut();
        match known.find(|series| series.case == case && series.subject == subject) {
            Some(series) => series.values.push(value),
            None => self.0.push(Series { case: case.into(), subject, unit, values: vec![value] }),
        }
    }

    /// The middle sample of a subject in a case, if it has any.
    pub fn median_of(&self, case: &str, subject: &str) -> Option<f64> {
        let mut known = self.0.iter();
        let series = known.find(|series| series.case == case && series.subject == subject)?;
        median(&series.values)
    }

    /// Forgets the cases that `is_wanted` does not accept.
    pub fn keep(&mut self, is_wanted: impl Fn(&str) -> bool) {
        self.0.retain(|series| is_wanted(&series.case));
    }

    /// Reports the figures, subjects of a case together in the order of `names`; and adds to
    /// `ratios` how `own` compares with each of the others.
    ///
    /// # Errors
    /// The output is closed.
    pub fn report(
        self,
        bench: &'static str,
        names: &[&'static str],
        report: &mut Report,
        ratios: &mut Vec<String>,
    ) -> io::Result<()> {
        let mut cases: Vec<&str> = Vec::new();
        for series in &self.0 {
            if !cases.contains(&series.case.as_str()) {
                cases.push(&series.case);
            }
        }
        for case in cases {
            let of = |name: &str| self.0.iter().find(|s| s.case == case && s.subject == name);
            let found: Vec<_> = names.iter().filter_map(|name| of(name)).collect();
            for series in &found {
                let Series { case, subject, unit, values } = *series;
                report.add(Figure::of(bench, case, subject, unit, values))?;
            }
            ratios.extend(line_of_ratios(case, &found));
        }
        Ok(())
    }
}

/// The first subject's figure to each of the others'.
fn line_of_ratios(case: &str, found: &[&Series]) -> Option<String> {
    let (first, others) = found.split_first()?;
    let own = figure_that_counts(first)?;
    let ratio = |other: &&Series| {
        let ratio = own / figure_that_counts(other)?;
        let digits = if ratio < 0.1 { 5 } else { 2 };
        Some(format!("{} {ratio:.digits$}", other.subject))
    };
    let ratios: Vec<String> = others.iter().filter_map(ratio).collect();
    let listed = ratios.join(", ");
    (!ratios.is_empty()).then(|| format!("{case}: {} to {listed}", first.subject))
}

/// The median; of worst bursts the worst one.
fn figure_that_counts(series: &Series) -> Option<f64> {
    if series.unit == WORST {
        return series.values.iter().copied().reduce(f64::max);
    }
    median(&series.values)
}

#[cfg(test)]
mod tests {
    use super::{Samples, WORST, line_of_ratios};

    #[test]
    fn medians_are_compared_and_of_worst_bursts_the_worst() {
        for (unit, line) in [("ns/op", "a: x to y 0.50"), (WORST, "a: x to y 2.00")] {
            let mut samples = Samples::default();
            for (own, other) in [(1.0, 2.0), (1.0, 2.0), (6.0, 3.0)] {
                samples.add("a", "x", unit, own);
                samples.add("a", "y", unit, other);
            }
            let all: Vec<_> = samples.0.iter().collect();
            assert_eq!(line_of_ratios("a", &all).as_deref(), Some(line));
            samples.keep(|case| case != "a");
            assert!(samples.0.is_empty());
        }
    }
}
