//! What every subcommand reports: one figure of several samples, for people or as JSON.

use serde::Serialize;

/// One measured figure. As JSON it is one line.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Figure {
    /// The subcommand.
    pub bench: &'static str,
    /// What was done.
    pub case: String,
    /// Who did it.
    pub subject: String,
    /// Of the three values below.
    pub unit: &'static str,
    /// The middle sample.
    pub median: f64,
    /// The smallest sample.
    pub min: f64,
    /// The largest sample.
    pub max: f64,
    /// Number of samples.
    pub n: usize,
}

impl Figure {
    /// The figure of `samples`; `None` when there are none.
    pub fn of(
        bench: &'static str,
        case: &str,
        subject: &str,
        unit: &'static str,
        samples: &[f64],
    ) -> Option<Self> {
        let median = median(samples)?;
        Some(Self {
            bench,
            case: case.into(),
            subject: subject.into(),
            unit,
            median: rounded(median),
            min: rounded(samples.iter().copied().fold(f64::INFINITY, f64::min)),
            max: rounded(samples.iter().copied().fold(f64::NEG_INFINITY, f64::max)),
            n: samples.len(),
        })
    }
}

/// The middle of `samples`, the mean of the two middle ones of an even number; `None` of none.
pub fn median(samples: &[f64]) -> Option<f64> {
    let mut sorted = samples.to_vec();
    sorted.sort_by(f64::total_cmp);
    let middle = sorted.len() / 2;
    let upper = *sorted.get(middle)?;
    Some(if sorted.len() % 2 == 1 { upper } else { f64::midpoint(sorted[middle - 1], upper) })
}

/// More digits than anybody measures are noise.
fn rounded(value: f64) -> f64 {
    (value * 100.0).round() / 100.0
}

#[cfg(test)]
mod tests {
    use super::{Figure, median};

    #[test]
    fn median_of_an_even_number_lies_between_the_two_middle_samples() {
        assert_eq!(median(&[4.0, 1.0, 3.0, 2.0]), Some(2.5));
        assert_eq!(median(&[9.0, 1.0, 3.0]), Some(3.0));
        assert_eq!(median(&[]), None);
    }

    #[test]
    fn a_figure_is_one_json_object_with_the_agreed_names() {
        let figure = Figure::of("veth", "10k", "xskiff", "kpps", &[3.0, 1.0, 2.004]);
        let line = serde_json::to_string(&figure).expect("plain data");
        assert_eq!(
            line,
            r#"{"bench":"veth","case":"10k","subject":"xskiff","unit":"kpps","median":2.0,"min":1.0,"max":3.0,"n":3}"#
        );
    }
}
