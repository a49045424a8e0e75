//! `/metrics`: the node's [`Status`] in the Prometheus text format.
//!
//! Everything `xskiff status` knows is here under a name that ends in its unit; counters are
//! cumulative since the process began. What is exported is listed in [`families`]; this file
//! writes it.

use std::fmt::Write;

use control::admin::Status;
use prometheus_client::collector::Collector;
use prometheus_client::encoding::DescriptorEncoder;
use prometheus_client::metrics::MetricType;
use prometheus_client::registry::Registry;

mod arrivals;
mod audit;
mod cni;
mod families;
mod flow_tables;
mod kubernetes;
mod live_frames;
mod reconciles;
mod segments;

/// The content type of what [`encode`] writes.
pub const CONTENT_TYPE: &str = "text/plain; version=0.0.4; charset=utf-8";

/// One metric with its samples.
#[derive(Debug, Clone, PartialEq)]
struct Family {
    /// Without the `_total` of counters.
    name: &'static str,
    help: &'static str,
    counter: bool,
    unit: Unit,
    samples: Vec<Sample>,
}

/// What a sample's value counts.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Unit {
    /// Whole things, or seconds.
    One,
    /// Microseconds, written as seconds with a fraction.
    Microseconds,
}

type Labels = Vec<(&'static str, String)>;

#[derive(Debug, Clone, PartialEq)]
struct Sample {
    labels: Labels,
    value: u64,
}

/// One metric of how often something took how long.
#[derive(Debug, Clone, PartialEq)]
struct Distribution {
    name: &'static str,
    help: &'static str,
    samples: Vec<Distributed>,
}

/// Labels, all seconds together, and how many there are in each class by its upper bound.
type Distributed = (Labels, f64, Vec<(f64, u64)>);

#[derive(Debug)]
struct Families(Vec<Family>, Vec<Distribution>);

impl Collector for Families {
    fn encode(&self, mut encoder: DescriptorEncoder) -> Result<(), std::fmt::Error> {
        for family in &self.0 {
            let kind = if family.counter { MetricType::Counter } else { MetricType::Gauge };
            let mut metric = encoder.encode_descriptor(family.name, family.help, None, kind)?;
            for sample in &family.samples {
                let mut labelled = metric.encode_family(&sample.labels)?;
                // One division, so that it is the number that is nearest.
                let seconds = sample.value as f64 / 1e6;
                match (family.unit, family.counter) {
                    (Unit::One, true) => {
                        labelled.encode_counter::<Labels, u64, u64>(&sample.value, None)?;
                    }
                    (Unit::One, false) => labelled.encode_gauge(&sample.value)?,
                    (Unit::Microseconds, true) => {
                        labelled.encode_counter::<Labels, f64, u64>(&seconds, None)?;
                    }
                    (Unit::Microseconds, false) => labelled.encode_gauge(&seconds)?,
                }
            }
        }
        for one in &self.1 {
            let kind = MetricType::Histogram;
            let mut metric = encoder.encode_descriptor(one.name, one.help, None, kind)?;
            for (labels, sum, classes) in &one.samples {
                let count = classes.iter().map(|(_, count)| count).sum();
                let mut labelled = metric.encode_family(labels)?;
                labelled.encode_histogram::<Labels>(*sum, count, classes, None)?;
            }
        }
        Ok(())
    }
}

/// Writes `status` as Prometheus reads it.
///
/// # Errors
/// Only when formatting fails, which writing to a string does not.
pub fn encode(status: &Status) -> Result<String, std::fmt::Error> {
    let mut registry = Registry::default();
    registry.register_collector(Box::new(Families(
        families::families(status),
        arrivals::distributions(status),
    )));
    let mut text = String::new();
    prometheus_client::encoding::text::encode(&mut text, &registry)?;
    Ok(without_open_metrics(&text))
}

/// OpenMetrics names a counter's HELP and TYPE without `_total`, and ends with `# EOF`; the older
/// text format, which every scraper and `promtool check metrics` read, names the sample.
fn without_open_metrics(text: &str) -> String {
    let counters: Vec<&str> = text
        .lines()
        .filter_map(|line| line.strip_prefix("# TYPE ")?.strip_suffix(" counter"))
        .collect();
    let mut out = String::with_capacity(text.len());
    for line in text.lines().filter(|line| *line != "# EOF") {
        let renamed = ["# HELP ", "# TYPE "].iter().find_map(|keyword| {
            let (name, rest) = line.strip_prefix(keyword)?.split_once(' ')?;
            counters.contains(&name).then(|| format!("{keyword}{name}_total {rest}"))
        });
        let _ = writeln!(out, "{}", renamed.as_deref().unwrap_or(line));
    }
    out
}

#[cfg(test)]
mod tests;
