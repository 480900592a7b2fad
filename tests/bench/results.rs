//! What was measured: samples by scenario and subject, and their medians.

use std::{collections::BTreeMap, fmt};

use crate::{scenario::Scenario, subject::Kind};

/// A quantity.
#[derive(Clone, Copy, Debug, Eq, Ord, PartialEq, PartialOrd)]
pub(crate) enum Metric {
    /// Gbit/s that arrive.
    Throughput,
    /// The slower direction's share of the faster one's rate.
    Fairness,
    /// Processor seconds of the whole machine for a gigabyte that arrives.
    CpuPerGigabyte,
    /// Microseconds.
    RoundTrip,
    /// Microseconds that one in a hundred round trips exceeds.
    RoundTrip99,
    /// Round trips a second, all tunnels together.
    Rate,
    /// Processor microseconds of the whole machine for a round trip.
    CpuPerMessage,
    /// Tunnels a second: connect, ask, one round trip, close.
    Tunnels,
    /// Processor microseconds of the whole machine for such a tunnel.
    CpuPerTunnel,
    /// Bytes of the proxy's memory for a tunnel that is idle.
    Resident,
    /// Bytes of the kernel's slabs for it, ends included.
    Kernel,
}

impl Metric {
    /// What it is called in a table, with its unit.
    pub(crate) fn title(self) -> &'static str {
        match self {
            Self::Throughput => "Gbit/s",
            Self::Fairness => "slower/faster way",
            Self::CpuPerGigabyte => "CPU s/GB",
            Self::RoundTrip => "round trip, us",
            Self::RoundTrip99 => "99th percentile, us",
            Self::Rate => "round trips/s",
            Self::CpuPerMessage => "CPU us/round trip",
            Self::Tunnels => "tunnels/s",
            Self::CpuPerTunnel => "CPU us/tunnel",
            Self::Resident => "process, bytes/tunnel",
            Self::Kernel => "kernel, bytes/tunnel (with ends)",
        }
    }
}

/// One measurement.
#[derive(Clone, Debug, Default)]
pub(crate) struct Sample(pub(crate) Vec<(Metric, f64)>);

impl fmt::Display for Sample {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (place, (metric, value)) in self.0.iter().enumerate() {
            let comma = if place == 0 { "" } else { ", " };
            write!(f, "{comma}{} {}", number(*value), metric.title())?;
        }
        Ok(())
    }
}

/// Three significant digits or so.
pub(crate) fn number(value: f64) -> String {
    match value.abs() {
        size if size >= 100.0 => format!("{value:.0}"),
        size if size >= 10.0 => format!("{value:.1}"),
        _ => format!("{value:.2}"),
    }
}

/// Middle, least and greatest of some samples.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(crate) struct Summary {
    pub(crate) median: f64,
    pub(crate) least: f64,
    pub(crate) greatest: f64,
}

impl Summary {
    pub(crate) fn of(samples: &[f64]) -> Option<Self> {
        let mut sorted = samples.to_owned();
        sorted.sort_by(f64::total_cmp);
        let middle = sorted.len() / 2;
        let median = if sorted.len() % 2 == 1 {
            *sorted.get(middle)?
        } else {
            f64::midpoint(*sorted.get(middle.checked_sub(1)?)?, *sorted.get(middle)?)
        };
        Some(Self {
            median,
            least: *sorted.first()?,
            greatest: *sorted.last()?,
        })
    }
}

/// Everything.
#[derive(Debug, Default)]
pub(crate) struct Results {
    /// In the order they were measured first.
    pub(crate) scenarios: Vec<String>,
    pub(crate) subjects: Vec<Kind>,
    samples: BTreeMap<(String, Kind, Metric), Vec<f64>>,
    /// The first failure of each.
    failures: BTreeMap<(String, Kind), String>,
    /// Subjects that could not be had, and why.
    pub(crate) left_out: Vec<(Kind, String)>,
}

impl Results {
    pub(crate) fn leave_out(&mut self, kind: Kind, reason: String) {
        eprintln!("left out: {}: {reason}", kind.name());
        self.left_out.push((kind, reason));
    }

    pub(crate) fn add(&mut self, scenario: &Scenario, kind: Kind, outcome: Result<Sample, String>) {
        let name = scenario.name();
        if !self.scenarios.contains(&name) {
            self.scenarios.push(name.clone());
        }
        if !self.subjects.contains(&kind) {
            self.subjects.push(kind);
        }
        match outcome {
            Ok(sample) => {
                for (metric, value) in sample.0 {
                    let key = (name.clone(), kind, metric);
                    self.samples.entry(key).or_default().push(value);
                }
            }
            Err(wrong) => {
                self.failures.entry((name, kind)).or_insert(wrong);
            }
        }
    }

    /// What was measured in a scenario.
    pub(crate) fn metrics(&self, scenario: &str) -> Vec<Metric> {
        let keys = self.samples.keys().filter(|(name, _, _)| name == scenario);
        let mut metrics: Vec<_> = keys.map(|(_, _, metric)| *metric).collect();
        metrics.sort();
        metrics.dedup();
        metrics
    }

    pub(crate) fn summary(&self, scenario: &str, kind: Kind, metric: Metric) -> Option<Summary> {
        let key = (scenario.to_owned(), kind, metric);
        self.samples
            .get(&key)
            .and_then(|samples| Summary::of(samples))
    }

    pub(crate) fn median(&self, scenario: &str, kind: Kind, metric: Metric) -> Option<f64> {
        self.summary(scenario, kind, metric)
            .map(|summary| summary.median)
    }

    /// The median by that of direct forwarding.
    pub(crate) fn ratio(&self, scenario: &str, kind: Kind, metric: Metric) -> Option<f64> {
        let direct = self.median(scenario, Kind::Direct, metric)?;
        (direct > 0.0).then_some(self.median(scenario, kind, metric)? / direct)
    }

    pub(crate) fn failure(&self, scenario: &str, kind: Kind) -> Option<&str> {
        let key = (scenario.to_owned(), kind);
        self.failures.get(&key).map(String::as_str)
    }

    /// Every sample.
    pub(crate) fn json(&self) -> String {
        let samples = self
            .samples
            .iter()
            .map(|((scenario, kind, metric), values)| {
                serde_json::json!({
                    "scenario": scenario,
                    "subject": kind.name(),
                    "metric": metric.title(),
                    "samples": values,
                })
            });
        let failures = self.failures.iter().map(|((scenario, kind), wrong)| {
            serde_json::json!({ "scenario": scenario, "subject": kind.name(), "failure": wrong })
        });
        let all: Vec<_> = samples.chain(failures).collect();
        format!("{:#}\n", serde_json::Value::from(all))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_median_is_in_the_middle() {
        let summary = Summary::of(&[5.0, 1.0, 3.0]).unwrap();
        let expected = Summary {
            median: 3.0,
            least: 1.0,
            greatest: 5.0,
        };
        assert_eq!(summary, expected);
        assert!((Summary::of(&[4.0, 1.0]).unwrap().median - 2.5).abs() < 1e-9);
        assert_eq!(Summary::of(&[]), None);
    }

    #[test]
    fn numbers_have_three_digits() {
        assert_eq!(number(12345.6), "12346");
        assert_eq!(number(12.345), "12.3");
        assert_eq!(number(0.1234), "0.12");
    }
}
